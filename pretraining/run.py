"""A pretraining run: a corpus and a base to a model folder, resumable at every step."""

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed
from transformers import TrainingArguments

from indexes.checksums import fingerprint
from indexes.errors import InputError
from indexes.manifest import refuse_existing
from pretraining.base import Base, load_base
from pretraining.checkpoints import keep_only, newest_checkpoint
from pretraining.cleaning import Cleaner, CleaningOptions, describe_sources, sources, write_cleaned
from pretraining.loop import PretrainingTrainer, recompute_layers, resumable_arguments, trim_log
from pretraining.marks import Marks, read_words
from pretraining.masking import MaskOptions
from pretraining.mixture import Mixture
from pretraining.model import POOLINGS
from pretraining.model_folder import LOG, package_versions, write_model_folder
from pretraining.objective import Objective, kind_of
from pretraining.terms import TERMS
from pretraining.token_writer import Extras
from pretraining.tokens import LONGEST_SET, Accompanied, Collator, Rows, SpanPairs, TokenWindows
from pretraining.working import finished_card, partial_folder, working_folder
from retrieval.digests import tokenizer_digest
from retrieval.documents import read_documents
from retrieval.loading import quiet

_CHECKPOINTS, _TOKENS = "checkpoints", "tokens"

OnNote = Callable[[str], None]
OnProgress = Callable[[int, int | None], None]


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
    pooling: str | None = None
    precision: str = "float32"
    group_by_length: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    deduplicate: str = "none"
    near_duplicates_at: float = 0.8
    remove_queries: Sequence[str | Path] = ()
    query_words: int = 8
    parsed: Objective = field(init=False, repr=False)
    masks: MaskOptions = field(init=False, repr=False)
    extras: Extras = field(init=False, repr=False)
    cleaning: CleaningOptions = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", str(self.base))
        parsed = Objective.parse(self.objective)
        for name, value in (("ratio", self.decoder_mask_ratio), ("row_fraction", self.row_fraction)):
            parsed = parsed if value is None else parsed.with_option("decoder_mlm", name, value)
        object.__setattr__(self, "parsed", parsed)
        object.__setattr__(self, "masks", MaskOptions(self.encoder_mask_ratio, self.mask_unit))
        object.__setattr__(self, "extras", self._extras())
        given = [self.remove_queries] if isinstance(self.remove_queries, str | Path) else self.remove_queries
        queries = tuple(map(str, given))
        cleaning = CleaningOptions(self.deduplicate, self.near_duplicates_at, queries, self.query_words)
        object.__setattr__(self, "cleaning", cleaning)
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
        texts = self.parsed.characters > 0 or self.parsed.word_sets
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
        }


@dataclass(frozen=True)
class PretrainResult:
    """What a call of `pretrain` did.

    Attributes:
        output: The model folder.
        already_complete: Whether the folder was there, made by the same configuration; nothing was done then.
        resumed_from: The step that this call went on from; 0 for a start from the base.
        card: The run card, as in the folder's `retrokit.json`.
    """

    output: Path
    already_complete: bool
    resumed_from: int
    card: dict[str, Any]


def pretrain(
    corpus: str | Path | Mapping[str, float] | Mixture,
    output: str | Path,
    *,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    on_note: OnNote | None = None,
    **options: Any,
) -> PretrainResult:
    """Pretrain an encoder on raw text and write it as a model folder.

    The working state is in `OUTPUT.partial/`. The same call, made again after the process was killed, goes on from the
    newest complete checkpoint and ends with the same weights, bit for bit on a CPU. Under torchrun every process makes
    this call.

    Corpora are read lazily, once for their fingerprints and once to be tokenised; what is in memory is said by
    `Cleaner`, by `write_tokens`' arrays (8 bytes a document, 10 a window) and by the order of an epoch.

    Args:
        corpus: What `retrieval.documents.read_documents` reads, or a `Mixture`, or several corpora mapped to their
            weights: how often each is gone through while one of weight 1 is gone through once, 0.5 being another half
            of it each time.
        output: The model folder to make.
        overwrite: Replace an existing folder, and discard working state of another configuration.
        on_progress: Called with the steps done and `max_steps`.
        on_note: Called with lines for a person: untrained heads, resumption, what was skipped.
        **options: The fields of `PretrainConfig`; `base` is required.

    Raises:
        InputError: An option, the base or the corpus cannot be used; the folder exists; or its working state belongs to
            another configuration (the message names the fields that differ).
    """
    config, target, note = PretrainConfig(**options), Path(output), on_note or (lambda _: None)
    mixture = Mixture.of(corpus)
    refuse_existing(target, overwrite=True, inputs=[*mixture.corpora, config.base, *config.cleaning.remove_queries])
    partial = partial_folder(target)
    base = load_base(config.base, config.parsed, config.masks, pooling=config.pooling, seed=config.seed)
    limit = base.model.parts.longest - (LONGEST_SET if config.parsed.word_sets else 0)
    if config.max_length > limit:
        where = f"{base.model.parts.longest} positions"
        where += f", {LONGEST_SET} of them for words before the text" if config.parsed.word_sets else ""
        raise InputError(f"max_length is {config.max_length}; the base has {where}: take at most {limit}")
    with quiet():
        args = resumable_arguments(
            partial / _CHECKPOINTS,
            max_steps=config.max_steps,
            batch_size=config.batch_size,
            accumulation=config.accumulation,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup,
            save_steps=config.save_steps,
            seed=config.seed,
            mixed=config.precision == "bfloat16",
        )
    queries, digests = config.cleaning.queries(), mixture.digests()
    card = _card(config, base, mixture, args)
    card["configuration"] |= {**mixture.record(digests), **config.cleaning.record(queries)}
    if finished := finished_card(target, card["configuration"], overwrite=overwrite):
        return PretrainResult(target, True, 0, finished)
    with contextlib.ExitStack() as held:
        with args.main_process_first(local=False):
            if args.should_save:
                held.enter_context(working_folder(target, card, overwrite=overwrite))
                if not (partial / _TOKENS).is_dir():
                    write_cleaned(
                        mixture,
                        digests,
                        Cleaner(config.cleaning, queries),
                        base.tokenizer,
                        partial / _TOKENS,
                        max_length=config.max_length,
                        extras=config.extras,
                        attributes=config.attributes,
                        note=note,
                    )
                _drop_unfinished(partial)
        windows = open_windows(partial / _TOKENS, config, base.tokenizer, mixture.weights)
        card["sources"] = sources(mixture, windows)
        _say_start(note, base, windows, card["sources"])
        step = _train(config, base, windows, partial, args, on_progress, note)
        counts = {name: windows.manifest[name] for name in ("documents", "empty", "windows", "tokens")}
        card |= {"counts": counts, "untrained_heads": base.model.untrained_heads}
        if args.should_save:
            log = partial / LOG
            write_model_folder(target, base, max_length=config.max_length, card=card, log=log, overwrite=overwrite)
    if args.world_size > 1:
        torch.distributed.barrier()  # nobody goes on before the folder is there
    return PretrainResult(target, False, step, card)


def _card(config: PretrainConfig, base: Base, mixture: Mixture, args: TrainingArguments) -> dict[str, Any]:
    """The run card; its `configuration`, with that of the data, is what must be equal for a run to go on."""
    configuration = {
        **config.record(),
        "pooling": base.model.pooling,
        "processes": args.world_size,
        "base": base.fingerprint,
        "tokenizer": tokenizer_digest(base.tokenizer),
    }
    if config.attributes:
        digest = hashlib.sha256()
        for corpus in mixture.corpora:
            for document in read_documents(corpus, config.attributes):
                digest.update(fingerprint(document.attributes).encode())
        configuration["fields"] = digest.hexdigest()
    return {
        "made_by": "retrokit pretrain",
        "base": config.base,
        "corpus": mixture.names(),
        "global_batch": config.batch_size * config.accumulation * args.world_size,
        "configuration": configuration,
        "packages": package_versions(),
    }


def open_windows(tokens: Path, config: PretrainConfig, tokenizer: Any, weights: Sequence[float] = (1.0,)) -> Rows:
    """The rows that a run trains on, as its terms need them."""
    objective = config.parsed
    if objective.uses_pairs:
        return SpanPairs(tokens, config.seed, weights)
    if objective.accompanied:
        beside = {"characters": objective.characters, "fields": config.extras.fields, "word_sets": objective.word_sets}
        return Accompanied(tokens, config.seed, tokenizer, weights=weights, **beside)  # type: ignore[arg-type]
    return TokenWindows(tokens, weights)


def _called(attribute: str) -> str:
    """The name under which documents have a field of their records."""
    return attribute.rpartition(".")[2]


def _drop_unfinished(partial: Path) -> None:
    """Bring the working folder to where training can start: whole checkpoints only, and a log up to the newest."""
    step, newest = newest_checkpoint(partial / _CHECKPOINTS) or (0, None)
    keep_only(partial / _CHECKPOINTS, newest)
    trim_log(partial / LOG, step)


def _say_start(note: OnNote, base: Base, windows: Rows, corpora: Sequence[Mapping[str, Any]]) -> None:
    counts = windows.manifest
    empty = f", {counts['empty']:,} empty ones skipped" if counts["empty"] else ""
    for line in describe_sources(corpora):
        note(line)
    note(f"{counts['documents']:,} documents{empty}: {counts['windows']:,} windows, {counts['tokens']:,} tokens")
    if isinstance(windows, SpanPairs):
        note(f"two spans each of {len(windows):,} documents; the others are too short")
    for name in base.model.objective.terms:
        if caution := TERMS[kind_of(name)].caution:
            note(f"{name}: {caution}")
    if base.model.untrained_heads:
        note(f"the base brings no {' and no '.join(base.model.untrained_heads)}: starting from random numbers")


def _train(
    config: PretrainConfig,
    base: Base,
    windows: Rows,
    partial: Path,
    args: TrainingArguments,
    on_progress: OnProgress | None,
    note: OnNote,
) -> int:
    """Train from the newest complete checkpoint; gives the step it went on from."""
    step, newest = newest_checkpoint(partial / _CHECKPOINTS) or (0, None)
    if newest:
        note(f"going on from step {step:,} of {args.max_steps:,}")
    if config.gradient_checkpointing:
        recompute_layers(base.model.backbone)
    if config.compile:
        base.model.backbone.compile(dynamic=True)
    with quiet():
        trainer = PretrainingTrainer(base.model, args, windows, Collator(base.tokenizer), partial / LOG, on_progress)
        trainer.grouped = config.group_by_length
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    trainer.release()
    return step
