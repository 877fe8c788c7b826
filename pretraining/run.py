"""A pretraining run: a corpus and a base to a model folder, resumable at every step."""

import contextlib
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed
from transformers import TrainingArguments

from indexes.checksums import fingerprint
from indexes.errors import InputError
from indexes.manifest import refuse_existing, write_json
from pretraining.base import Base, load_base
from pretraining.cleaning import Cleaner, describe_sources, sources, write_cleaned
from pretraining.configuration import PretrainConfig
from pretraining.mixture import Mixture
from pretraining.model_folder import write_model_folder
from pretraining.probing import Judge, sample_probe_pairs
from pretraining.tokens import LONGEST_SET, Rows, SpanPairs
from pretraining.trackers import tracker_callbacks
from pretraining.training import CHECKPOINTS, PAIRS, OnNote, OnProgress, open_windows, train
from pretraining.window_words import prepare_word_sets
from retrieval.digests import tokenizer_digest
from retrieval.documents import read_documents
from retrieval.loading import quiet
from retrieval.run_card import LOG, finished_card, package_versions
from retrieval.trainer import back_to_checkpoint, resumable_arguments
from retrieval.working import partial_folder, working_folder

_TOKENS = "tokens"


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
    judge: Judge | None = None,
    report_to: Sequence[str] = (),
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
    mixture = Mixture.of(corpus)
    refuse_existing(target, overwrite=True, inputs=[*mixture.corpora, config.base, *config.cleaning.remove_queries])
    if judge is not None and not config.probe_steps:
        raise InputError(f"{judge.name} is to judge probes, of which there are none; give --probe-steps, such as 500")
    trackers = tracker_callbacks(report_to, target.with_name(f"{target.name}.tensorboard"))
    partial = partial_folder(target)
    base = load_base(config.base, config.parsed, config.masks, pooling=config.pooling, seed=config.seed)
    limit = base.model.parts.longest - (LONGEST_SET if config.parsed.word_sets else 0)
    if config.max_length > limit:
        where = f"{base.model.parts.longest} positions"
        where += f", {LONGEST_SET} of them for words before the text" if config.parsed.word_sets else ""
        raise InputError(f"max_length is {config.max_length}; the base has {where}: take at most {limit}")
    with quiet():
        args = resumable_arguments(
            partial / CHECKPOINTS,
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
    if config.fsdp and args.world_size == 1:
        raise InputError("fsdp shares a model out among processes, and there is one; start several with torchrun")
    queries, digests = config.cleaning.queries(), mixture.digests()
    card = _card(config, base, mixture, args, judge)
    card["configuration"] |= {**mixture.record(digests), **config.cleaning.record(queries)}
    if finished := finished_card(target, card["configuration"], overwrite=overwrite):
        return PretrainResult(target, True, 0, finished)
    with contextlib.ExitStack() as held:
        with args.main_process_first(local=False):
            if args.should_save:
                held.enter_context(working_folder(target, card, overwrite=overwrite))
                data = Cleaner(config.cleaning, queries)
                _prepare(partial, mixture, digests, data, config, base.tokenizer, note)
                prepare_word_sets(partial / _TOKENS, config, base, note)
        windows = open_windows(partial / _TOKENS, config, base.tokenizer, mixture.weights)
        card["sources"] = sources(mixture, windows)
        _say_start(note, base, windows, card["sources"])
        counts = {name: windows.manifest[name] for name in ("documents", "empty", "windows", "tokens")}
        card |= {"counts": counts, "untrained_heads": base.model.untrained_heads}
        step = train(base, windows, partial, args, config, judge, card, trackers, on_progress, note)
        if args.should_save:
            log = partial / LOG
            write_model_folder(target, base, max_length=config.max_length, card=card, log=log, overwrite=overwrite)
    if args.world_size > 1:
        torch.distributed.barrier()  # nobody goes on before the folder is there
    return PretrainResult(target, False, step, card)


def _card(
    config: PretrainConfig, base: Base, mixture: Mixture, args: TrainingArguments, judge: Judge | None
) -> dict[str, Any]:
    """The run card; its `configuration`, with that of the data, is what must be equal for a run to go on."""
    configuration = {
        **config.record(),
        "pooling": base.model.pooling,
        "processes": args.world_size,
        "base": base.fingerprint,
        "tokenizer": tokenizer_digest(base.tokenizer),
        **({"judge": judge.fingerprint} if judge is not None else {}),
    }
    ranked = judge.name if judge is not None else "queries held out from the corpus"
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
        **({"probes_rank": ranked} if config.probe_steps else {}),
    }


def _prepare(
    partial: Path,
    mixture: Mixture,
    digests: Sequence[str],
    cleaner: Cleaner,
    config: PretrainConfig,
    tokenizer: Any,
    note: OnNote,
) -> None:
    """Bring the working folder to where training can start: pairs to probe with, tokens, whole checkpoints only."""
    if config.probe_steps and not (partial / PAIRS).is_file():
        documents = itertools.chain.from_iterable(map(read_documents, mixture.corpora))
        write_json(partial / PAIRS, sample_probe_pairs(documents, config.seed))
    if not (partial / _TOKENS).is_dir():
        try:
            write_cleaned(
                mixture,
                digests,
                cleaner,
                tokenizer,
                partial / _TOKENS,
                max_length=config.max_length,
                extras=config.extras,
                attributes=config.attributes,
                note=note,
            )
        except InputError:  # the corpus changed, perhaps, and the pairs were of what it was
            (partial / PAIRS).unlink(missing_ok=True)
            raise
    back_to_checkpoint(partial / CHECKPOINTS, partial / LOG)


def _say_start(note: OnNote, base: Base, windows: Rows, corpora: Sequence[Mapping[str, Any]]) -> None:
    counts = windows.manifest
    empty = f", {counts['empty']:,} empty ones skipped" if counts["empty"] else ""
    for line in describe_sources(corpora):
        note(line)
    note(f"{counts['documents']:,} documents{empty}: {counts['windows']:,} windows, {counts['tokens']:,} tokens")
    if isinstance(windows, SpanPairs):
        note(f"two spans each of {len(windows):,} documents; the others are too short")
    for line in base.model.objective.cautions():
        note(line)
    if base.model.untrained_heads:
        note(f"the base brings no {' and no '.join(base.model.untrained_heads)}: starting from random numbers")
