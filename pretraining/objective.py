"""Objectives: weighted sums of named loss terms over one encoder pass, and how weights change while training."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from indexes.errors import InputError
from pretraining.terms import TERMS
from pretraining.word_sets import SetOptions

SCHEDULES = ("constant", "linear", "cosine")
_OF_WEIGHT = ("weight", "end_weight", "schedule")


@dataclass(frozen=True)
class Weighted:
    """A term of an objective.

    Attributes:
        name: One of `terms.TERMS`; `TERM/LABEL` for another of the same kind.
        weight: At the start.
        end_weight: At the end of training; None: it stays as it is.
        schedule: How it gets there: `linear`, or `cosine` (half a period, as BowDPR's coefficient falls).
        options: Of the term; see its class.
    """

    name: str
    weight: float = 1.0
    end_weight: float | None = None
    schedule: str = "constant"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if kind_of(self.name) not in TERMS:
            raise InputError(f"objective has {self.name!r}; expected terms among {', '.join(TERMS)}, or {NAMES}")
        if not _is_number(self.weight) or not 0 < self.weight < math.inf:
            raise InputError(f"objective's weight of {self.name} is {self.weight}; expected a number above 0")
        if self.end_weight is not None and not (_is_number(self.end_weight) and 0 <= self.end_weight < math.inf):
            raise InputError(f"objective's end_weight of {self.name} is {self.end_weight}; expected 0 or more")
        if self.schedule not in SCHEDULES:
            raise InputError(f"the schedule of {self.name} is {self.schedule!r}; expected {', '.join(SCHEDULES)}")
        if (self.schedule == "constant") != (self.end_weight is None):
            raise InputError(f"{self.name} has a schedule or an end_weight, not both; give both or neither")
        known = options_of(self.name)
        for name, value in self.options.items():
            if name not in known:
                has = f"it has {', '.join(known)}" if known else "it has none"
                raise InputError(f"{self.name} has no option {name!r}; {has}")
            if not _alike(value, known[name]):
                raise InputError(f"{self.name}'s {name} is {value!r}; expected something like {known[name]!r}")

    def at(self, progress: float) -> float:
        """The weight when a share of training is done, from 0 to 1."""
        if self.end_weight is None:
            return self.weight
        share = progress if self.schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return self.weight + share * (self.end_weight - self.weight)

    def record(self) -> dict[str, Any]:
        """It as JSON values."""
        changing = {} if self.end_weight is None else {"end_weight": self.end_weight, "schedule": self.schedule}
        return {"weight": self.weight, **changing, **self.options}


def kind_of(name: str) -> str:
    """Which of `terms.TERMS` a name in an objective stands for: what comes before `/`, where there is one.

    >>> kind_of("field_decoder/judgment")
    'field_decoder'
    """
    return name.partition("/")[0]


def options_of(term: str) -> dict[str, Any]:
    """The options of a term, with what they are by default."""
    parameters = inspect.signature(TERMS[kind_of(term)].__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _alike(value: Any, default: Any) -> bool:
    """Whether a value is of the type of an option's default; None stands for a whole number that may be left out."""
    if default is None:
        return value is None or (isinstance(value, int) and not isinstance(value, bool))
    if isinstance(default, float):
        return _is_number(value)
    return type(value) is type(default)


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms.

    Attributes:
        terms: By name; what `parse` reads.
    """

    terms: Mapping[str, Weighted]

    def __post_init__(self) -> None:
        if not self.terms:
            raise InputError(f"objective has no term; expected terms among {', '.join(TERMS)}, or {NAMES}")

    @classmethod
    def parse(cls, value: "str | Mapping[str, Any] | Objective") -> "Objective":
        """Read an objective.

        Args:
            value: The name of one; `TERM=WEIGHT,TERM=WEIGHT,…`; a mapping from terms to weights, or to mappings of
                `weight`, `end_weight`, `schedule` and the term's options; or one made before.

        Raises:
            InputError: It is none of these.
        """
        if isinstance(value, Objective):
            return value
        if isinstance(value, str) and "=" in value:
            parts = [_weight(part) for part in value.split(",")]
            if len(parts) > len(dict(parts)):
                raise InputError(f"objective {value!r} has a term twice; give each once")
            value = dict(parts)
        if isinstance(value, str):
            if value not in PRESETS:
                raise InputError(f"objective is {value!r}; expected {NAMES}, or weights of {', '.join(TERMS)}")
            value = PRESETS[value]
        return cls({name: _weighted(name, given) for name, given in value.items()})

    def with_option(self, term: str, name: str, value: Any) -> "Objective":
        """It with another option of one of its terms.

        Raises:
            InputError: It has no such term.
        """
        if term not in self.terms:
            raise InputError(f"{name} is an option of {term}, which the objective has not; leave it out")
        old = self.terms[term]
        new = Weighted(old.name, old.weight, old.end_weight, old.schedule, {**old.options, name: value})
        return Objective({**self.terms, term: new})

    @property
    def uses_pairs(self) -> bool:
        """Whether a term needs two spans of each document."""
        return any(TERMS[kind_of(name)].uses_pairs for name in self.terms)

    @property
    def characters(self) -> int:
        """How many characters of a text to mask for the term that needs it so; 0 where none does."""
        return next(
            (self._option(name, "characters") for name in self.terms if TERMS[kind_of(name)].uses_characters), 0
        )

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of the documents that terms decode, each once."""
        named = (self._option(name, "field") for name in self.terms if TERMS[kind_of(name)].uses_field)
        return tuple(dict.fromkeys(named))

    @property
    def accompanied(self) -> bool:
        """Whether a term needs other texts beside each text."""
        return bool(self.characters or self.fields or self.word_sets)

    @property
    def word_sets(self) -> SetOptions | None:
        """How the sets of words are drawn that a term needs beside each text; None where none does.

        Raises:
            InputError: Terms want unlike ones; a text comes with two sets for all.
        """
        wanted = {
            SetOptions(self._option(name, "sets"), float(self._option(name, "temperature")))
            for name in self.terms
            if TERMS[kind_of(name)].uses_word_sets
        }
        if len(wanted) > 1:
            raise InputError("the terms of an objective draw word sets in unlike ways; give them the same options")
        return next(iter(wanted), None)

    def cautions(self) -> list[str]:
        """Lines for a person, of terms that are known to hurt somewhere."""
        found = {name: TERMS[kind_of(name)].caution for name in self.terms}
        return [f"{name}: {caution}" for name, caution in found.items() if caution]

    def _option(self, term: str, name: str) -> Any:
        return self.terms[term].options.get(name, options_of(term)[name])

    def record(self) -> dict[str, Any]:
        """It as JSON values."""
        return {name: term.record() for name, term in self.terms.items()}


def read_recipe(value: str) -> str | dict[str, Any]:
    """What a command was given for an objective: the terms of a YAML file, or the text itself if it names no file.

    Raises:
        InputError: The file is not to be read, or holds no mapping.
    """
    if not value.endswith((".yaml", ".yml")):
        return value
    try:
        read = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{value} cannot be read as an objective: {' '.join(str(error).split())}") from None
    if not isinstance(read, dict):
        raise InputError(
            f"{value} holds {type(read).__name__}; expected terms with their weights, such as encoder_mlm: 1"
        )
    return read


def _weighted(name: str, given: Any) -> Weighted:
    if _is_number(given):
        return Weighted(name, float(given))
    if not isinstance(given, Mapping):
        raise InputError(f"objective's {name} is {given!r}; expected a weight, or weight, schedule and options")
    options = {key: value for key, value in given.items() if key not in _OF_WEIGHT}
    return Weighted(name, **{key: given[key] for key in _OF_WEIGHT if key in given}, options=options)


def _weight(part: str) -> tuple[str, float]:
    name, _, weight = part.partition("=")
    try:
        return name.strip(), float(weight)
    except ValueError:
        raise InputError(f"objective has {part!r}; expected TERM=WEIGHT, such as encoder_mlm=1") from None


_MLM = {"encoder_mlm": 1.0}
PRESETS: dict[str, dict[str, Any]] = {
    "mlm": _MLM,
    "bowdpr": {**_MLM, "bag_of_words_cls": {"weight": 1.0, "end_weight": 0.1, "schedule": "cosine"}},
    "retromae": {**_MLM, "decoder_mlm": {"query": "raw"}},
    "dupmae": {**_MLM, "decoder_mlm": {"query": "embedded"}, "bag_of_words": {"weight": 0.1, "variant": "code"}},
    "dupmae-paper": {**_MLM, "decoder_mlm": {"query": "embedded"}, "bag_of_words": {"variant": "paper"}},
    "condenser": {**_MLM, "condenser_mlm": 1.0},
    "cocondenser": {**_MLM, "condenser_mlm": 1.0, "span_contrast": 1.0},
    "cotmae": {**_MLM, "span_decoder": 1.0},
    "lexmae": {**_MLM, "lexicon_bottleneck": 1.0},
    "simcse": {"dropout_contrast": 1.0},
    "contriever": {"crop_contrast": 1.0},
    "tsdae": {"denoising": 1.0},
    "rts": {"replaced_detection": 1.0},
    "slm": {"swapped_lm": 1.0},
    "prop": {"word_set_order": 1.0},
    "bprop": {"word_set_order": {"sets": "bprop"}},
    "mirror": {"mirror_characters": 1.0},
    "mirror-words": {"mirror_words": 1.0},
}
"""The authors' code, as far as it is a matter of terms and weights: RetroMAE (arXiv 2205.12035), DupMAE (2305.02564;
its paper weighs the bag of words 1), BowDPR (2401.11248), Condenser (2104.08253) with late MLM, coCondenser
(2108.05540), CoT-MAE (2208.07670), LexMAE (2208.14754), SimCSE (2104.08821), Contriever (2112.09118; pool by mean),
Mirror-BERT (2104.08027; characters masked, or words), TSDAE (2104.06979), and for rerankers random token substitution
and swapped language modelling (2204.10515), PROP (2010.10137) and B-PROP (2104.09791). SimLM's term
and SAILER's need options of their own."""
NAMES = ", ".join(PRESETS)
