"""The training of a run: the loop over its rows, probes, and which weights come out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from indexes.manifest import read_json
from pretraining.base import Base
from pretraining.configuration import PretrainConfig
from pretraining.loop import PretrainingTrainer
from pretraining.probing import Judge, Probe
from pretraining.sharding import ShardedTrainer
from pretraining.stopping import BestWeights, ProbeHistory, Probing
from pretraining.tokens import Accompanied, Collator, Rows, SpanPairs, TokenWindows
from pretraining.trackers import Reporting
from pretraining.window_words import open_word_sets
from retrieval.checkpoints import newest_checkpoint
from retrieval.loading import quiet
from retrieval.pairs import Pair
from retrieval.run_card import LOG
from retrieval.trainer import recompute_layers

CHECKPOINTS, BEST, PAIRS = "checkpoints", "best", "probe-pairs.json"

OnNote = Callable[[str], None]
OnProgress = Callable[[int, int | None], None]


def open_windows(tokens: Path, config: PretrainConfig, tokenizer: Any, weights: Sequence[float] = (1.0,)) -> Rows:
    """The rows that a run trains on, as its terms need them."""
    objective = config.parsed
    if objective.uses_pairs:
        return SpanPairs(tokens, config.seed, weights)
    if objective.accompanied:
        return Accompanied(
            tokens,
            config.seed,
            tokenizer,
            characters=objective.characters,
            fields=config.extras.fields,
            word_sets=open_word_sets(tokens, objective.word_sets) if objective.word_sets else None,
            weights=weights,
        )
    return TokenWindows(tokens, weights)


def train(
    base: Base,
    windows: Rows,
    partial: Path,
    args: TrainingArguments,
    config: PretrainConfig,
    judge: Judge | None,
    card: dict[str, Any],
    trackers: Sequence[TrainerCallback],
    on_progress: OnProgress | None,
    note: OnNote,
) -> int:
    """Train from the newest complete checkpoint, and tell the card how far; gives the step it went on from.

    Args:
        base: What is trained.
        windows: What it is trained on.
        partial: The working folder, with `probe-pairs.json` where probes are wanted.
        args: Of Trainer.
        config: Of the run.
        judge: Of probes; None: the corpus' own queries.
        card: The run card, which learns what the probes were.
        trackers: Callbacks that are told what the log is.
        on_progress: Called with the steps done and their total.
        note: Called with lines for a person.
    """
    step, newest = newest_checkpoint(partial / CHECKPOINTS) or (0, None)
    if newest:
        note(f"going on from step {step:,} of {args.max_steps:,}")
    if config.gradient_checkpointing:
        recompute_layers(base.model.backbone)
    if config.compile:
        base.model.backbone.compile(dynamic=True)
    history, best = ProbeHistory(partial / LOG, config.patience), None
    with quiet():
        kind = ShardedTrainer if config.fsdp else PretrainingTrainer
        trainer = kind(base.model, args, windows, Collator(base.tokenizer), partial / LOG, on_progress)
        trainer.grouped = config.group_by_length
        for one in trackers:
            trainer.add_callback(one)
        if config.probe_steps:
            best = BestWeights(partial / BEST, history) if config.keep == "best" and args.should_save else None
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
        trainer.gather()
    trainer.release()
    card |= {"steps": done}
    if config.probe_steps and args.should_save:
        _conclude(base, args, history, best, card, note)
    return step


def _probe(
    base: Base,
    windows: Rows,
    partial: Path,
    config: PretrainConfig,
    judge: Judge | None,
    note: OnNote,
) -> Probe:
    pairs = [Pair(*one) for one in read_json(partial / PAIRS)]
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
