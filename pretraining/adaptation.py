"""Adaptation: an encoder learns from pairs made out of a corpus, and the checkpoint that ranks best is kept."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from indexes.checksums import fingerprint, folder_digest
from indexes.errors import InputError
from indexes.manifest import read_json, refuse_existing
from pretraining.contrastive_terms import TEMPERATURE, check_temperature
from pretraining.samplers import LINKS, TERMS, USUAL, sample_pairs
from retrieval.documents import Document, corpus_fingerprint, read_documents
from retrieval.model_folder import resolve
from retrieval.pairs import Pair, read_pairs
from retrieval.run_card import CARD, finished_card
from retrieval.working import working_folder

OnNote = Callable[[str], None]
OnProgress = Callable[[int, int | None], None]

_BY_DIGEST = ("encoder", "terms_model", "terms_temperature")
"""Options that a run card has otherwise than as they were given."""


@dataclass(frozen=True)
class AdaptConfig:
    """What decides the result of an adaptation.

    Attributes:
        encoder: The model to adapt: a folder, the packaged model's name, or one of the model hub.
        samplers: How pairs are made of documents (`title`, `lead`, `sentence`, `span`, `section`, `words`, `terms`,
            `links`); None: the first four, or none of them where a file of pairs is given.
        terms_model: The encoder whose attention says what words `terms` draws; None: the one that is adapted.
        terms_temperature: T of `terms`, above 0: the lower, the more a document's most contrastive words are drawn;
            None: 0.05.
        objective: A pretraining objective beside the contrastive loss, such as `dupmae`, weights of terms, or None.
        objective_weight: Its weight; the contrastive loss has 1.
        objective_texts: How many documents of each batch it reads.
        steps: Optimizer steps.
        batch_size: Pairs a step on each device; every other document of the batch is a negative.
        max_length: Tokens of a query or document while learning; the model keeps its own length for encoding.
        learning_rate: The greatest one, of AdamW, after a tenth of the steps; it falls linearly to 0.
        temperature: Of the contrastive softmax over cosines.
        precision: `float32`, or `bfloat16` for mixed precision: twice as fast where the processor has it.
        held_out: Queries held back to choose the checkpoint by; at most a fifth of them.
        checks: How often they are ranked, the start not counted.
        seed: Of sampling, order, dropout and masks.
    """

    encoder: str
    samplers: tuple[str, ...] | None = None
    terms_model: str | None = None
    terms_temperature: float | None = None
    objective: str | Mapping[str, float] | None = None
    objective_weight: float = 0.1
    objective_texts: int = 8
    steps: int = 200
    batch_size: int = 32
    max_length: int = 128
    learning_rate: float = 5e-5
    temperature: float = 0.05
    precision: str = "float32"
    held_out: int = 200
    checks: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 2), ("max_length", 8), ("held_out", 1), ("checks", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {least}")
        for name, most in (("learning_rate", 1.0), ("temperature", 10.0)):
            if not 0 < getattr(self, name) < most:
                raise InputError(f"{name} is {getattr(self, name)}; expected above 0 and below {most:g}")
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"precision is {self.precision!r}; expected float32 or bfloat16")
        if not 0 < self.objective_weight < float("inf"):
            raise InputError(f"objective_weight is {self.objective_weight}; expected above 0, such as 0.1")
        self._check_terms()
        if self.objective is not None and not 1 <= self.objective_texts <= self.batch_size:
            most = self.batch_size
            raise InputError(f"objective_texts is {self.objective_texts}; expected 1 to {most}, the batch_size")

    def _check_terms(self) -> None:
        for name in ("terms_model", "terms_temperature"):
            if getattr(self, name) is not None and not self.uses_terms:
                raise InputError(f"{name} is an option of the sampler terms, which is not used; leave it out")
        if self.terms_temperature is not None:
            check_temperature(self.terms_temperature)

    @property
    def uses_terms(self) -> bool:
        """Whether pairs are made of words that an encoder attends to."""
        return TERMS in (self.samplers or ())

    @property
    def check_steps(self) -> int:
        """Steps between two checks."""
        return max(1, -(-self.steps // self.checks))


@dataclass(frozen=True)
class AdaptResult:
    """What a call of `adapt` did.

    Attributes:
        output: The model folder.
        already_complete: Whether the folder was there, made by the same call; nothing was done then.
        card: The run card, as in the folder's `retrokit.json`: `checks` holds the held-out nDCG@10 by step, `chosen`
            the step that was kept (0: the encoder as it came).
    """

    output: Path
    already_complete: bool
    card: dict[str, Any]


@dataclass(frozen=True)
class HeldOut:
    """Queries that the encoder must not learn from, and the texts it has to rank for them.

    Attributes:
        queries: (q) texts.
        texts: The first q are the answers, in the order of the queries; the others only stand in the way.
    """

    queries: list[str]
    texts: list[str]


def adapt(
    corpus: str | Path,
    output: str | Path,
    *,
    pairs: str | Path | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    on_note: OnNote | None = None,
    **options: Any,
) -> AdaptResult:
    """Adapt an encoder to a corpus without labels, or with pairs of your own, and write it as a model folder.

    Pairs are learned from contrastively (InfoNCE over the batch, as sentence-transformers computes it). Some queries
    are held back; the checkpoint that ranks their documents best is kept, the start included, so that the result is
    never worse than the encoder was, by that measure. Working state is in `OUTPUT.partial/`: the same call, made again
    after a kill, goes on from the newest check and ends alike.

    Use `pretrain` for an encoder that is no retriever yet, and sentence-transformers' trainers for labelled data with
    mined negatives.

    Args:
        corpus: What `retrieval.documents.read_documents` reads.
        output: The model folder to make.
        pairs: JSON lines of `query` and `document` (an id of the corpus).
        overwrite: Replace an existing folder, and discard working state of other options.
        on_progress: Called with the steps done and their total.
        on_note: Called with lines for a person.
        **options: The fields of `AdaptConfig`; `encoder` is required.

    Raises:
        InputError: An option, the encoder, the corpus or the pairs cannot be used; too few pairs come of them; the
            folder exists; or its working state belongs to other options (the message names the fields that differ).
    """
    config, target, note = AdaptConfig(**options), Path(output), on_note or (lambda _: None)
    refuse_existing(target, overwrite=True, inputs=[corpus, config.encoder, *([pairs] if pairs else [])])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("adapt runs in one process; start it without torchrun (pretrain takes several)")
    attributes = (LINKS,) if LINKS in (config.samplers or ()) else ()
    documents = {document.id: document for document in read_documents(corpus, attributes)}
    found = make_pairs(documents, config, Path(pairs) if pairs else None, note)
    card = _card(config, str(corpus), str(pairs) if pairs else None, documents, found)
    if finished := finished_card(target, card["configuration"], overwrite=overwrite):
        return AdaptResult(target, True, finished)
    if config.objective is not None:
        from pretraining.objective import Objective

        objective = Objective.parse(config.objective)  # refused before anything is written
        if objective.uses_pairs:
            raise InputError(
                f"{config.objective} needs two spans of each document; adapt reads documents whole: choose another "
                "objective, or pretrain first"
            )
        if objective.accompanied:
            raise InputError(
                f"{config.objective} needs other texts beside each document, which adapt has not: choose another "
                "objective, or pretrain first"
            )
        for line in objective.cautions():
            note(line)
    learned, held_out = hold_out(found, config)
    note(f"{len(learned):,} pairs to learn from, {len(held_out.queries):,} queries held out")

    from pretraining.contrastive import train  # torch is loaded no earlier than bad input is refused

    with working_folder(target, card, overwrite=overwrite) as partial:
        train(
            learned,
            held_out,
            config,
            partial,
            target,
            card,
            overwrite=overwrite,
            on_progress=on_progress,
            on_note=note,
        )
    return AdaptResult(target, False, read_json(target / CARD))


def make_pairs(documents: Mapping[str, Document], config: AdaptConfig, path: Path | None, note: OnNote) -> list[Pair]:
    """Read the user's pairs, if any, and sample those of the corpus.

    Raises:
        InputError: Fewer documents have a pair than a batch and those held out need; or as of `sample_pairs` and
            `attended_words.cached_terms`.
    """
    samplers = config.samplers if config.samplers is not None else (() if path else USUAL)
    found = list(read_pairs(path, documents)) if path else []
    terms = None
    if config.uses_terms:
        from pretraining.attended_words import cached_terms

        temperature = config.terms_temperature or TEMPERATURE
        terms = cached_terms(documents.values(), config.terms_model or config.encoder, temperature, note)
    found += sample_pairs(documents.values(), samplers, config.seed, terms=terms, note=note)
    distinct = len({pair.document for pair in found})
    if distinct * 4 // 5 < config.batch_size:
        of = f"{len(documents):,} documents by {', '.join(samplers) or 'no sampler'}" + (f" and {path}" if path else "")
        raise InputError(
            f"{len(found)} pairs of {distinct} documents came of {of}; expected pairs of at least "
            f"{-(-5 * config.batch_size // 4)} documents, for a batch and the held-out ones: give a larger corpus, "
            "more samplers or a smaller --batch-size"
        )
    return found


def hold_out(pairs: Sequence[Pair], config: AdaptConfig) -> tuple[list[Pair], HeldOut]:
    """Hold back one query of each of some documents, and learn from no pair of those documents.

    Which documents depends on the seed and their ids alone.
    """
    first = {pair.document: pair for pair in reversed(pairs)}
    order = sorted(first, key=lambda name: hashlib.sha256(f"{config.seed}\0held out\0{name}".encode()).digest())
    chosen = set(order[: max(1, min(config.held_out, len(order) // 5))])
    learned = [pair for pair in pairs if pair.document not in chosen]
    answers = [first[name] for name in order if name in chosen]
    others = [first[name].text for name in order if name not in chosen][: 2 * config.held_out]
    return learned, HeldOut([pair.query for pair in answers], [*(pair.text for pair in answers), *others])


def _card(
    config: AdaptConfig, corpus: str, pairs: str | None, documents: Mapping[str, Document], found: Sequence[Pair]
) -> dict[str, Any]:
    """The run card; its `configuration` is what must be equal for a run to go on."""
    configuration = {name: str(value) for name, value in asdict(config).items() if name not in _BY_DIGEST}
    if config.uses_terms:
        configuration["terms_model"] = folder_digest(resolve(config.terms_model or config.encoder))
        configuration["terms_temperature"] = str(config.terms_temperature or TEMPERATURE)
    configuration |= {
        "encoder": folder_digest(resolve(config.encoder)),
        "corpus": corpus_fingerprint(documents.values()),
    }
    configuration["pairs"] = fingerprint([list(pair) for pair in found])
    sources = {"encoder": config.encoder, "corpus": corpus, "pairs": pairs}
    return {"made_by": "retrokit adapt", **sources, "configuration": configuration}
