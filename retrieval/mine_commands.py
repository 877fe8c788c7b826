"""The command that mines hard negatives: `retrokit mine`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from indexes.errors import InputError
from indexes.manifest import write_json
from retrieval.commands import Json, Overwrite
from retrieval.console import note, out, progress

if TYPE_CHECKING:
    from retrieval.retriever import Retriever


def mine(
    pairs: Annotated[
        str,
        typer.Argument(
            help="JSON lines of query and positive, query and document (an id), judgements; or a BEIR FOLDER[#SPLIT].",
            metavar="PAIRS",
        ),
    ],
    *,
    index: Annotated[Path, typer.Option(help="The index folder to find negatives in.", metavar="INDEX_FOLDER")],
    output: Annotated[Path, typer.Option(help="The file of training examples to make, JSON lines.", metavar="FILE")],
    negatives: Annotated[int, typer.Option(help="For each query, at most.")] = 4,
    mode: Annotated[
        str | None, typer.Option(help="lexical, dense or hybrid (the default, but for a dense index).")
    ] = None,
    fusion: Annotated[
        str | None, typer.Option(help="How hybrid fuses: zscore, minmax, rrf or sum  [default: zscore]")
    ] = None,
    weight: Annotated[float | None, typer.Option(help="Of the lexical side in it, as for search.")] = None,
    from_rank: Annotated[int, typer.Option(help="The first hit that may be a negative.")] = 1,
    to_rank: Annotated[int, typer.Option(help="The last one.")] = 100,
    margin: Annotated[
        float | None, typer.Option(help="A negative's score is at most the positive's less so much.")
    ] = None,
    percentage: Annotated[
        float | None, typer.Option(help="A negative's score is at most so much of the positive's; 0.95 is good.")
    ] = None,
    least_score: Annotated[float | None, typer.Option(help="Of a negative.")] = None,
    most_score: Annotated[float | None, typer.Option(help="Of a negative.")] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="A cross-encoder, or fused (the hybrid score): leaves out what it scores above the positive; its "
            "scores are written.",
            metavar="CROSS_ENCODER|fused",
        ),
    ] = None,
    teacher_margin: Annotated[
        float | None, typer.Option(help="Its score of a negative is at most the positive's less so much  [default: 0]")
    ] = None,
    sample: Annotated[str, typer.Option(help="top: the first that may be negatives; random: any of them.")] = "top",
    seed: Annotated[int | None, typer.Option(help="Of random  [default: 0]")] = None,
    corpus: Annotated[str | None, typer.Option(help="The documents' texts, if the index keeps none.")] = None,
    ids_only: Annotated[bool, typer.Option("--ids-only", help="Write ids instead of texts: a small file.")] = False,
    encoder: Annotated[str | None, typer.Option(help="The index's encoder, if it moved.", metavar="MODEL")] = None,
    sparse: Annotated[
        str | None, typer.Option(help="The index's sparse encoder, if it moved.", metavar="MODEL")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Such as cuda: models and the index's vectors go there  [default: models to the best]"),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where hits are kept by fingerprints  [default: ~/.cache/retrokit]")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """Add hard negatives to training examples: what an index finds for a query and what does not answer it.

    Killed? Run the same command again: finished blocks of queries are kept.
    """
    from retrieval.mined_blocks import FUSED
    from retrieval.mining import mine as run
    from retrieval.reranker import Reranker

    _refuse_idle(teacher, teacher_margin, sample, seed)
    retriever = _open(index, encoder, sparse, device, {"fusion": fusion or "zscore", "weight": weight})
    mode = mode or retriever.modes[-1]
    if mode != "hybrid" and teacher != FUSED and (fusion is not None or weight is not None):
        raise InputError(f"--fusion and --weight say how both sides are fused, which the mode {mode} does not do")
    guards = (margin, percentage, most_score, teacher)
    if all(one is None for one in guards) and from_rank == 1:
        note("nothing keeps false negatives out: try --percentage 0.95, or --teacher fused")
    judge = teacher if teacher in (None, FUSED) else Reranker.load(str(teacher), device=device)
    with progress("Mining", "queries") as on_progress:
        result = run(
            pairs,
            retriever,
            output,
            corpus=corpus,
            teacher=judge,
            cache=cache,
            overwrite=overwrite,
            on_progress=on_progress,
            on_note=note,
            negatives=negatives,
            mode=mode,
            from_rank=from_rank,
            to_rank=to_rank,
            margin=margin,
            percentage=percentage,
            least_score=least_score,
            most_score=most_score,
            teacher_margin=teacher_margin or 0.0,
            sample=sample,
            seed=seed or 0,
            ids_only=ids_only,
        )
    report = result.report
    if json is not None:
        done = {"already_complete": result.already_complete, "resumed_from": result.resumed_from}
        write_json(json, {"output": str(output), **done, **report})
    if result.already_complete:
        note(f"{output} is complete already; nothing to do")
    out.print(f"{output}: {_summary(report, negatives)}", markup=False)
    note(f"next: retrokit finetune {output} --encoder MODEL --output MODEL_FOLDER")


def _refuse_idle(teacher: str | None, teacher_margin: float | None, sample: str, seed: int | None) -> None:
    """Refuse options of what is not asked for."""
    if teacher is None and teacher_margin is not None:
        raise InputError("--teacher-margin is of a teacher's scores; give one by --teacher or leave it out")
    if sample == "top" and seed is not None:
        raise InputError("--seed draws nothing with --sample top; leave it out or draw by --sample random")


def _open(
    folder: Path, encoder: str | None, sparse: str | None, device: str | None, fusing: dict[str, Any]
) -> "Retriever":
    """Open an index and its encoders; its vectors go to the device, if one is named that is not the processor."""
    from indexes.index import Index
    from retrieval.retriever import Retriever, encoder_of, sparse_encoder_of

    if device is None or device == "cpu":
        return Retriever.open(folder, encoder, sparse=sparse, device=device, **fusing)
    index = Index.open(folder, device=device)
    weighted = isinstance(index.reader.analyzer, dict)
    loads = (lambda: sparse_encoder_of(index, sparse, device)) if weighted or sparse is not None else None
    return Retriever(index, encoder_of(index, encoder, device), sparse=loads, **fusing)


def _summary(report: dict[str, Any], wanted: int) -> str:
    left_out = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in report["left_out"].items())
    short = f"; {report['short']:,} examples have fewer than {wanted}" if report["short"] else ""
    return (
        f"{report['examples']:,} examples, {report['negatives']:,} negatives of {report['hits']:,} hits; left out: "
        f"{left_out or 'none'}{short}"
    )
