"""A pretraining run: a corpus and a base to a model folder, resumable at every step."""

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed
from transformers import TrainerCallback, TrainingArguments

from indexes.errors import InputError
from indexes.manifest import read_json, refuse_existing, write_json
from pretraining.base import Base, load_base
from pretraining.checkpoints import keep_only, newest_checkpoint
from pretraining.loop import PretrainingTrainer, resumable_arguments, trim_log
from pretraining.masking import MaskOptions
from pretraining.model import POOLINGS
from pretraining.model_folder import package_versions, write_model_folder
from pretraining.objective import Objective
from pretraining.probing import Judge, Probe, ProbeOptions, sample_probe_pairs
from pretraining.stopping import BestWeights, ProbeHistory, Probing
from pretraining.tokens import Collator, SpanPairs, TokenWindows, write_tokens
from pretraining.trackers import Reporting, tracker_callbacks
from pretraining.working import LOG, finished_card, partial_folder, working_folder
from retrieval.digests import tokenizer_digest
from retrieval.documents import corpus_fingerprint, read_documents
from retrieval.loading import quiet
from retrieval.pairs import Pair

_CHECKPOINTS, _TOKENS, _BEST, _PAIRS = "checkpoints", "tokens", "best", "probe-pairs.json"

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
        decoder_mask_ratio: Share of tokens hidden from each row of `decoder_mlm`; None: as the objective says, or 0.5.
        row_fraction: Share of rows that `decoder_mlm` rebuilds; less than 1 is cheaper and not in the papers. None: as
            the objective says, or 1.
        pooling: `cls` or `mean`; None takes what the base's folder records, else `cls`.
        precision: `float32`, or `bfloat16` for mixed precision: faster where the processor has it.
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
    decoder_mask_ratio: float | None = None
    row_fraction: float | None = None
    pooling: str | None = None
    precision: str = "float32"
    probe_steps: int = 0
    probe_updates: int = 50
    keep: str = "last"
    patience: int | None = None
    parsed: Objective = field(init=False, repr=False)
    masks: MaskOptions = field(init=False, repr=False)
    probes: ProbeOptions = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", str(self.base))
        parsed = Objective.parse(self.objective)
        for name, value in (("ratio", self.decoder_mask_ratio), ("row_fraction", self.row_fraction)):
            parsed = parsed if value is None else parsed.with_option("decoder_mlm", name, value)
        object.__setattr__(self, "parsed", parsed)
        object.__setattr__(self, "masks", MaskOptions(self.encoder_mask_ratio, self.mask_unit))
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

    @property
    def warmup(self) -> int:
        """Steps of warm-up."""
        return self.max_steps // 10 if self.warmup_steps is None else self.warmup_steps

    def record(self) -> dict[str, Any]:
        """The options as JSON values, one field each."""
        named = ("max_steps", "batch_size", "accumulation", "max_length", "learning_rate", "weight_decay", "save_steps")
        ratios = ("seed", "encoder_mask_ratio", "mask_unit", "precision")
        return {
            "objective": self.parsed.record(),
            "warmup_steps": self.warmup,
            **{name: getattr(self, name) for name in (*named, *ratios)},
            **self.probes.record(),
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
    corpus: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    on_note: OnNote | None = None,
    judge: Judge | None = None,
    report_to: Sequence[str] = (),
    **options: Any,
) -> PretrainResult:
    """Pretrain an encoder on raw text and write it as a model folder.

    The working state is in `OUTPUT.partial/`. The same call, made again after the process was killed, goes on from the
    newest complete checkpoint and ends with the same weights, bit for bit on a CPU. Under torchrun every process makes
    this call.

    Args:
        corpus: What `retrieval.documents.read_documents` reads.
        output: The model folder to make.
        overwrite: Replace an existing folder, and discard working state of another configuration.
        on_progress: Called with the steps done and `max_steps`.
        on_note: Called with lines for a person: untrained heads, resumption, what was skipped, probes.
        judge: Ranks with the probed encoder, such as `evaluation.DatasetProbe`; None: held-out queries made of the
            corpus are ranked.
        report_to: Trainer's names of trackers that losses and probes are sent to, such as `tensorboard`, whose files
            are put into `OUTPUT.tensorboard/`.
        **options: The fields of `PretrainConfig`; `base` is required.

    Raises:
        InputError: An option, the base or the corpus cannot be used; the folder exists; or its working state belongs to
            another configuration (the message names the fields that differ).
    """
    config, target, note = PretrainConfig(**options), Path(output), on_note or (lambda _: None)
    refuse_existing(target, overwrite=True, inputs=[corpus, config.base])
    if judge is not None and not config.probe_steps:
        raise InputError(f"{judge.name} is to judge probes, of which there are none; give --probe-steps, such as 500")
    trackers = tracker_callbacks(report_to, target.with_name(f"{target.name}.tensorboard"))
    partial = partial_folder(target)
    base = load_base(config.base, config.parsed, config.masks, pooling=config.pooling, seed=config.seed)
    limit = base.model.parts.longest
    if config.max_length > limit:
        raise InputError(f"max_length is {config.max_length}; the base has {limit} positions: take at most {limit}")
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
    card = _card(config, base, str(corpus), args, judge)
    if finished := finished_card(target, card["configuration"], overwrite=overwrite):
        return PretrainResult(target, True, 0, finished)
    with contextlib.ExitStack() as held:
        with args.main_process_first(local=False):
            if args.should_save:
                held.enter_context(working_folder(target, card, overwrite=overwrite))
                _prepare(partial, corpus, base, card, config)
        tokens = partial / _TOKENS
        windows = SpanPairs(tokens, config.seed) if config.parsed.uses_pairs else TokenWindows(tokens)
        _say_start(note, base, windows)
        counts = {name: windows.manifest[name] for name in ("documents", "empty", "windows", "tokens")}
        card |= {"counts": counts, "untrained_heads": base.model.untrained_heads}
        step = _train(base, windows, partial, args, config, judge, card, trackers, on_progress, note)
        if args.should_save:
            log = partial / LOG
            write_model_folder(target, base, max_length=config.max_length, card=card, log=log, overwrite=overwrite)
    if args.world_size > 1:
        torch.distributed.barrier()  # nobody goes on before the folder is there
    return PretrainResult(target, False, step, card)


def _card(
    config: PretrainConfig, base: Base, corpus: str, args: TrainingArguments, judge: Judge | None
) -> dict[str, Any]:
    """The run card; its `configuration` is what must be equal for a run to go on."""
    configuration = {
        **config.record(),
        "pooling": base.model.pooling,
        "processes": args.world_size,
        "base": base.fingerprint,
        "tokenizer": tokenizer_digest(base.tokenizer),
        "corpus": corpus_fingerprint(read_documents(corpus)),
        **({"judge": judge.fingerprint} if judge is not None else {}),
    }
    ranked = judge.name if judge is not None else "queries held out from the corpus"
    return {
        "made_by": "retrokit pretrain",
        "base": config.base,
        "corpus": corpus,
        "global_batch": config.batch_size * config.accumulation * args.world_size,
        "configuration": configuration,
        "packages": package_versions(),
        **({"probes_rank": ranked} if config.probe_steps else {}),
    }


def _prepare(partial: Path, corpus: str | Path, base: Base, card: Mapping[str, Any], config: PretrainConfig) -> None:
    """Bring the working folder to where training can start: pairs to probe with, tokens, whole checkpoints only."""
    if config.probe_steps and not (partial / _PAIRS).is_file():
        write_json(partial / _PAIRS, sample_probe_pairs(read_documents(corpus), config.seed))
    if not (partial / _TOKENS).is_dir():
        length = card["configuration"]["max_length"]
        made = write_tokens(read_documents(corpus), base.tokenizer, partial / _TOKENS, max_length=length)
        if made["corpus"] != card["configuration"]["corpus"]:
            shutil.rmtree(partial / _TOKENS)
            (partial / _PAIRS).unlink(missing_ok=True)
            raise InputError(f"{corpus} changed while it was read; start again when it is at rest")
    step, newest = newest_checkpoint(partial / _CHECKPOINTS) or (0, None)
    keep_only(partial / _CHECKPOINTS, newest)
    trim_log(partial / LOG, step)


def _say_start(note: OnNote, base: Base, windows: TokenWindows | SpanPairs) -> None:
    counts = windows.manifest
    empty = f", {counts['empty']:,} empty ones skipped" if counts["empty"] else ""
    note(f"{counts['documents']:,} documents{empty}: {counts['windows']:,} windows, {counts['tokens']:,} tokens")
    if isinstance(windows, SpanPairs):
        note(f"two spans each of {len(windows):,} documents; the others are too short")
    if base.model.untrained_heads:
        note(f"the base brings no {' and no '.join(base.model.untrained_heads)}: starting from random numbers")


def _train(
    base: Base,
    windows: TokenWindows | SpanPairs,
    partial: Path,
    args: TrainingArguments,
    config: PretrainConfig,
    judge: Judge | None,
    card: dict[str, Any],
    trackers: Sequence[TrainerCallback],
    on_progress: OnProgress | None,
    note: OnNote,
) -> int:
    """Train from the newest complete checkpoint, and tell the card how far; gives the step it went on from."""
    step, newest = newest_checkpoint(partial / _CHECKPOINTS) or (0, None)
    if newest:
        note(f"going on from step {step:,} of {args.max_steps:,}")
    history, best = ProbeHistory(partial / LOG, config.patience), None
    with quiet():
        trainer = PretrainingTrainer(base.model, args, windows, Collator(base.tokenizer), partial / LOG, on_progress)
        for one in trackers:
            trainer.add_callback(one)
        if config.probe_steps:
            best = BestWeights(partial / _BEST, history) if config.keep == "best" and args.should_save else None
            probe = _probe(base, windows, partial, config, judge, note) if args.should_save else None
            trainer.add_callback(Probing(trainer, probe, config.probes, history, best, note))
        if args.should_save:
            trainer.add_callback(Reporting(partial, partial.stem, card))
        if newest and (history.exhausted or step >= args.max_steps):
            trainer.load_weights(newest)
            done = step
        else:
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
            done = trainer.state.global_step
    trainer.release()
    card |= {"steps": done}
    if config.probe_steps and args.should_save:
        _conclude(base, args, history, best, card, note)
    return step


def _probe(
    base: Base,
    windows: TokenWindows | SpanPairs,
    partial: Path,
    config: PretrainConfig,
    judge: Judge | None,
    note: OnNote,
) -> Probe:
    pairs = [Pair(*one) for one in read_json(partial / _PAIRS)]
    sizes = {"updates": config.probe_updates, "max_length": config.max_length, "seed": config.seed}
    probe = Probe(base, windows, pairs, **sizes, mixed=config.precision == "bfloat16", judge=judge)
    note(
        f"probes every {config.probe_steps:,} steps: {config.probe_updates:,} updates on {len(probe.learned):,} pairs, "
        f"then nDCG@10 of {probe.ranked}"
    )
    return probe


def _conclude(
    base: Base,
    args: TrainingArguments,
    history: ProbeHistory,
    best: BestWeights | None,
    card: dict[str, Any],
    note: OnNote,
) -> None:
    """Take the weights that are to be kept, and say on the card what the probes were."""
    done, found = card["steps"], history.best
    if done < args.max_steps:
        note(f"stopped at step {done:,} of {args.max_steps:,}: no probe was better than that of step {found:,}")
    card |= {"probes": {str(step): values for step, values in history.values.items()}, "kept": done}
    if best is not None and found is not None:
        best.load(base.model, found)
        card["kept"] = found
        note("kept the base as it came, which ranks best" if found == 0 else f"kept the weights of step {found:,}")
