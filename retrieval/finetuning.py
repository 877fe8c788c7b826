"""Fine-tuning: a model learns from examples with labels, and the checkpoint that does best on held-out ones is kept."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from indexes.checksums import fingerprint, folder_digest
from indexes.errors import InputError
from indexes.manifest import read_json, refuse_existing
from retrieval.examples import Example, place_of
from retrieval.finetune_options import BY_TEACHER, FinetuneConfig
from retrieval.held_out import draw_texts, hold_out
from retrieval.model_folder import resolve
from retrieval.run_card import CARD, finished_card
from retrieval.working import working_folder

OnNote = Callable[[str], None]
OnProgress = Callable[[int, int | None], None]

_OWN = ("losses", "matryoshka_dims", "encoder")
"""What a run card has otherwise than as options."""


@dataclass(frozen=True)
class FinetuneResult:
    """What a call of `finetune` did.

    Attributes:
        output: The model folder.
        already_complete: Whether the folder was there, made by the same call; nothing was done then.
        card: The run card, as in the folder's `retrokit.json`: `checks` holds the held-out `measure` by step, `chosen`
            the step that was kept (0: the model as it came).
    """

    output: Path
    already_complete: bool
    card: dict[str, Any]


def finetune(
    examples: Iterable[Example],
    output: str | Path,
    *,
    overwrite: bool = False,
    texts: Iterable[str] = (),
    sources: Sequence[str | Path] = (),
    on_progress: OnProgress | None = None,
    on_note: OnNote | None = None,
    **options: Any,
) -> FinetuneResult:
    """Fine-tune a dense encoder, a cross-encoder or a sparse encoder with labels, and write it as a model folder.

    Some queries are held back; the checkpoint that does best on them is kept, the start included, so that the result is
    never worse than the model was, by that measure: nDCG@10 of ranking their candidates among others, or Spearman's
    correlation (`regression` alone), or the cosine with the start's vectors (`alignment` alone). Working state is in
    `OUTPUT.partial/`: the same call, made again after a kill, goes on from the newest checkpoint and ends with the same
    weights, bit for bit on a CPU. Under torchrun every process makes this call, and together they compute what one
    with the whole batch does.

    Args:
        examples: Such as `retrieval.examples.read_examples` gives; `dataset` says which ones share batches.
        output: The model folder to make.
        overwrite: Replace an existing folder, and discard working state of other options.
        texts: Of the corpus, of which some stand in the way of the held-out queries' answers: the more, the better is
            the choice of the checkpoint. (Only held-out examples' own candidates and other positives do, without.)
        sources: Where the examples came from: remembered, and never overwritten.
        on_progress: Called with the steps done and their total.
        on_note: Called with lines for a person.
        **options: The fields of `FinetuneConfig`; `encoder` is required.

    Raises:
        InputError: An option, the model or the examples cannot be used, or do not fit together; the folder exists; or
            its working state belongs to other options (the message names the fields that differ).
    """
    config, target, note = FinetuneConfig(**options), Path(output), on_note or (lambda _: None)
    refuse_existing(target, overwrite=True, inputs=[config.encoder, *(place_of(one)[0] for one in sources)])
    found = check_examples(list(examples), config, note)
    learned, held = hold_out(found, config.held_out, config.seed)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    per_step = config.batch_size * config.accumulation * processes
    steps = config.steps or max(1, math.ceil(config.epochs * len(learned) / per_step))
    others = draw_texts(texts, config.held_out_texts, config.seed)
    if not others:
        others = draw_texts((one.positives[0].text for one in learned), config.held_out_texts, config.seed)
    card = _card(config, found, [str(one) for one in sources], steps, processes)
    card["configuration"]["others"] = fingerprint(others)
    if finished := finished_card(target, card["configuration"], overwrite=overwrite):
        return FinetuneResult(target, True, finished)
    note(f"{len(learned):,} examples to learn from, {len(held):,} held out, {steps:,} steps")

    from retrieval.finetune_run import Run, arguments_of  # torch comes no earlier than bad input is refused

    args = arguments_of(config, target, steps)
    run = Run(
        config, steps, learned, (held, others), args, note
    )  # refuses a model that does not fit before anything is written
    with contextlib.ExitStack() as stack:
        with args.main_process_first(local=False):
            if args.should_save:
                partial = stack.enter_context(working_folder(target, card, overwrite=overwrite))
                run.prepare(partial)
        run.train(target, on_progress)
        if args.should_save:
            run.publish(target, card, overwrite=overwrite)
    run.wait()
    return FinetuneResult(target, False, read_json(target / CARD))


def check_examples(examples: Sequence[Example], config: FinetuneConfig, note: OnNote) -> list[Example]:
    """The examples, scores brought to the range that the losses expect.

    Raises:
        InputError: There are too few, or they lack the scores or negatives that a loss needs.
    """
    queries = len({example.query for example in examples})
    if queries < 2:
        raise InputError(f"found {queries} queries; expected at least 2, to learn from one and hold one back")
    for example in examples:
        if not example.positives or not example.query.strip():
            raise InputError(f"query {example.query[:60]!r} of an example is empty, or has no positive; leave it out")
    for name in config.prompts:
        if name not in {example.dataset for example in examples}:
            raise InputError(f"there are no examples of data set {name!r}, which has a prompt")
    if "regression" in config.losses:
        examples = [_regressed(example, config) for example in examples]
    if {"infonce", "opl", "binary"} & config.losses.keys() and "regression" not in config.losses:
        _refuse_wrong_answers(examples)
    _check_negatives(examples, config)
    _check_teacher(examples, config, note)
    return list(examples)


def _check_negatives(examples: Sequence[Example], config: FinetuneConfig) -> None:
    """Refuse what would have nothing to contrast or to mix."""
    most = min(config.negatives, max(len(example.negatives) for example in examples))
    lists = {"opl", "binary", *BY_TEACHER} | ({"infonce"} if config.kind == "cross-encoder" else set())
    if lists & config.losses.keys() and most == 0:
        raise InputError(
            f"no example has a negative, or negatives is 0; {', '.join(sorted(lists & config.losses.keys()))} of kind "
            f"{config.kind} needs some: retrokit mine"
        )
    if config.mix and most < 2:
        raise InputError(f"mix takes two hard negatives of a query, and there are at most {most}; leave it out")
    if {"infonce"} == set(config.losses) and config.batch_size == 1 and most == 0:
        raise InputError("a batch of 1 without hard negatives has nothing to contrast; expected batch_size 2 or more")


def _check_teacher(examples: Sequence[Example], config: FinetuneConfig, note: OnNote) -> None:
    """Refuse examples that no teacher has scored, where its scores are needed."""
    needs = sorted(BY_TEACHER & config.losses.keys())
    if config.false_negatives_by == "teacher":
        needs.append("false_negatives_by")
    taught = sum(_is_taught(example) for example in examples)
    if needs and taught == 0:
        raise InputError(
            f"no example has a teacher's scores of its positive and of a negative, which {', '.join(needs)} needs: "
            "retrokit mine --teacher"
        )
    if needs and taught < len(examples):
        note(f"{len(examples) - taught:,} of {len(examples):,} examples have no teacher's scores of a negative")


def _refuse_wrong_answers(examples: Sequence[Example]) -> None:
    """Refuse pairs whose score says that they do not belong together, where they would be learned as if they did."""
    for example in examples:
        alone = all(one.score is None for one in example.negatives)
        if alone and any(one.score is not None and one.score <= 0 for one in example.positives):
            raise InputError(
                f"a pair of {example.query[:60]!r} has score 0 or less and would be learned as an answer; leave it "
                "out, or learn scores by the loss regression"
            )


def _is_taught(example: Example) -> bool:
    return any(one.score is not None for one in example.positives) and any(
        one.score is not None for one in example.negatives
    )


def _regressed(example: Example, config: FinetuneConfig) -> Example:
    low, high = config.score_range or (0.0, 1.0)
    if any(one.score is None for one in example.positives):
        raise InputError(f"a pair of {example.query[:60]!r} has no score, which regression needs")
    changed: dict[str, Any] = {}
    for name, candidates in (("positives", example.positives), ("negatives", example.negatives)):
        found = [
            one._replace(score=None if one.score is None else (one.score - low) / (high - low)) for one in candidates
        ]
        beyond = next((one for one in found if one.score is not None and not -1 <= one.score <= 1), None)
        if config.kind == "dense" and beyond is not None:
            raise InputError(
                f"a pair of {example.query[:60]!r} has score {beyond.score:g}, and cosines are between -1 and 1: give "
                "--score-range, such as 0,5"
            )
        changed[name] = tuple(found)
    return example._replace(**changed)


def examples_digest(examples: Iterable[Example]) -> str:
    """SHA-256 over examples in their order, as 64 hex digits."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(example, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _card(
    config: FinetuneConfig, examples: Sequence[Example], sources: Sequence[str], steps: int, processes: int
) -> dict[str, Any]:
    """The run card; its `configuration` is what must be equal for a run to go on."""
    configuration = {name: str(value) for name, value in asdict(config).items() if name not in _OWN}
    configuration |= {"encoder": folder_digest(resolve(config.encoder)), "examples": examples_digest(examples)}
    configuration |= {"processes": str(processes)}
    return {
        "made_by": "retrokit finetune",
        "encoder": config.encoder,
        "pairs": list(sources),
        "examples": len(examples),
        "steps": steps,
        "global_batch": config.batch_size * config.accumulation * processes,
        "configuration": configuration,
    }
