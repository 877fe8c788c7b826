"""What decides the result of a pretraining run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexes.checksums import fingerprint
from indexes.errors import InputError
from pretraining.cleaning import CleaningOptions
from pretraining.marks import Marks, read_words
from pretraining.masking import MaskOptions
from pretraining.model import POOLINGS
from pretraining.objective import Objective
from pretraining.probing import ProbeOptions
from pretraining.token_writer import Extras


@dataclass(frozen=True)
class PretrainConfig:
    """What decides the result of a run.

    Attributes:
        base: The model to start from: a folder, the packaged model's name, or one of the model hub.
        objective: A name such as `dupmae`, a mapping from terms to weights, or what else `Objective.parse` reads.
        max_steps: Optimizer steps.
        batch_size: Texts a micro-batch on each device; documents, of two spans each, where a term needs pairs.
        accumulation: Micro-batches an optimizer step.
        max_length: Tokens a text, [CLS] and [SEP] included; longer documents are cut into windows.
        learning_rate: The greatest one, of AdamW; it falls linearly to 0.
        warmup_steps: Steps in which it rises from 0; None is a tenth of `max_steps`.
        weight_decay: Of AdamW; not on biases and layer norms.
        save_steps: Steps between two checkpoints.
        seed: Of data order, masks, dropout and untrained heads.
        encoder_mask_ratio: Share of tokens that the encoder guesses.
        mask_unit: What of them is masked as a whole: `word`, `piece` or `ngram`.
        mask_words: A file of words, one a line, case apart: the encoder guesses these alone.
        mask_spans: The field of the corpus's records that holds pairs of characters of their `text`, from the first up
            to the second, such as those of entities: the encoder guesses tokens in them alone (or listed words).
        decoder_mask_ratio: Share of tokens hidden from each row of `decoder_mlm`; None: as the objective says, or 0.5.
        row_fraction: Share of rows that `decoder_mlm` rebuilds; less than 1 is cheaper and not in the papers. None: as
            the objective says, or 1.
        word_sets: How `word_set_order` draws words that represent a text: `prop`, by its language model, or `bprop`, by
            what the base attends to in it (one more pass over the corpus). None: as the objective says, or `prop`.
        word_temperature: T of `bprop`'s chances; None: as the objective says, or 0.05.
        pooling: `cls` or `mean`; None takes what the base's folder records, else `cls`.
        precision: `float32`, or `bfloat16` for mixed precision: faster where the processor has it.
        group_by_length: Whether texts of like length come together in a batch: less padding where lengths differ.
        gradient_checkpointing: Whether the encoder's layers are computed again in the backward pass: the same result
            in less memory and more time.
        compile: Whether the encoder is compiled by torch (which takes a minute at the start; it needs a C++ compiler on
            a CPU, and a resumed run equals another compiled one).
        deduplicate: `none`; `exact`: of documents of the same words the first stays; `near`: near duplicates go too.
        near_duplicates_at: The least Jaccard of the five-word shingles of near duplicates.
        remove_queries: BEIR folders or files of test queries; documents that give one away go.
        query_words: Words of a query that is looked for inside documents; a shorter one has to be all of a title or
            text.
        probe_steps: Steps between two probes; 0: none.
        probe_updates: Steps of the contrastive training that a copy of the encoder gets in each probe.
        keep: Which weights come out: `last`, or those of the `best` probe, which may be the base as it came.
        patience: Training ends after so many probes without a better one; None: at `max_steps`.
    """

    base: str
    objective: str | Mapping[str, Any] | Objective = "dupmae"
    max_steps: int = 10_000
    batch_size: int = 32
    accumulation: int = 1
    max_length: int = 256
    learning_rate: float = 1e-4
    warmup_steps: int | None = None
    weight_decay: float = 0.01
    save_steps: int = 500
    seed: int = 0
    encoder_mask_ratio: float = 0.3
    mask_unit: str = "word"
    mask_words: str | Path | None = None
    mask_spans: str | None = None
    decoder_mask_ratio: float | None = None
    row_fraction: float | None = None
    word_sets: str | None = None
    word_temperature: float | None = None
    pooling: str | None = None
    precision: str = "float32"
    group_by_length: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    deduplicate: str = "none"
    near_duplicates_at: float = 0.8
    remove_queries: Sequence[str | Path] = ()
    query_words: int = 8
    probe_steps: int = 0
    probe_updates: int = 50
    keep: str = "last"
    patience: int | None = None
    parsed: Objective = field(init=False, repr=False)
    masks: MaskOptions = field(init=False, repr=False)
    extras: Extras = field(init=False, repr=False)
    cleaning: CleaningOptions = field(init=False, repr=False)
    probes: ProbeOptions = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", str(self.base))
        parsed = Objective.parse(self.objective)
        for term, name, value in (
            ("decoder_mlm", "ratio", self.decoder_mask_ratio),
            ("decoder_mlm", "row_fraction", self.row_fraction),
            ("word_set_order", "sets", self.word_sets),
            ("word_set_order", "temperature", self.word_temperature),
        ):
            parsed = parsed if value is None else parsed.with_option(term, name, value)
        object.__setattr__(self, "parsed", parsed)
        object.__setattr__(self, "masks", MaskOptions(self.encoder_mask_ratio, self.mask_unit))
        object.__setattr__(self, "extras", self._extras())
        given = [self.remove_queries] if isinstance(self.remove_queries, str | Path) else self.remove_queries
        queries = tuple(map(str, given))
        cleaning = CleaningOptions(self.deduplicate, self.near_duplicates_at, queries, self.query_words)
        object.__setattr__(self, "cleaning", cleaning)
        probes = ProbeOptions(self.probe_steps, self.probe_updates, self.keep, self.patience)
        object.__setattr__(self, "probes", probes)
        for name, least in (
            ("max_steps", 1),
            ("batch_size", 1),
            ("accumulation", 1),
            ("save_steps", 1),
            ("max_length", 8),
        ):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"learning_rate is {self.learning_rate}; expected above 0 and below 1, such as 1e-4")
        if not 0 <= self.weight_decay < 1:
            raise InputError(f"weight_decay is {self.weight_decay}; expected at least 0 and below 1, such as 0.01")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; expected a number from 0 to 4,294,967,295")
        if not 0 <= self.warmup <= self.max_steps:
            raise InputError(f"warmup_steps is {self.warmup}; expected 0 to max_steps, {self.max_steps}")
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"precision is {self.precision!r}; expected float32 or bfloat16")
        if self.pooling not in (None, *POOLINGS):
            raise InputError(f"pooling is {self.pooling!r}; expected {' or '.join(POOLINGS)}")

    def _extras(self) -> Extras:
        words = read_words(Path(self.mask_words)) if self.mask_words is not None else frozenset()
        marks = Marks(words, _called(self.mask_spans or ""))
        if self.parsed.uses_pairs and self.parsed.accompanied:
            raise InputError(
                f"{', '.join(self.parsed.terms)} need pairs of spans and texts beside each text; leave one kind out"
            )
        fields = tuple(map(_called, self.parsed.fields))
        texts = self.parsed.characters > 0 or self.parsed.word_sets is not None
        return Extras(texts, fields, marks if any(marks) else None)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The fields of the corpus's records that are read beside title and text."""
        return (*self.parsed.fields, *([self.mask_spans] if self.mask_spans else []))

    @property
    def warmup(self) -> int:
        """Steps of warm-up."""
        return self.max_steps // 10 if self.warmup_steps is None else self.warmup_steps

    def record(self) -> dict[str, Any]:
        """The options as JSON values, one field each."""
        named = ("max_steps", "batch_size", "accumulation", "max_length", "learning_rate", "weight_decay", "save_steps")
        switches = ("group_by_length", "gradient_checkpointing", "compile")
        ratios = ("seed", "encoder_mask_ratio", "mask_unit", "mask_spans", "precision")
        marks = self.extras.marks
        return {
            "objective": self.parsed.record(),
            "mask_words": fingerprint(sorted(marks.words)) if marks and marks.words else None,
            "warmup_steps": self.warmup,
            **{name: getattr(self, name) for name in (*named, *switches, *ratios)},
            **self.probes.record(),
        }


def _called(attribute: str) -> str:
    """The name under which documents have a field of their records."""
    return attribute.rpartition(".")[2]
