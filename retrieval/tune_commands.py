"""The command that tunes an index: `retrokit tune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieval.commands import Json
from retrieval.console import note, out, table

if TYPE_CHECKING:
    from indexes.tuned import Tuned


def tune(
    index: Annotated[Path, typer.Argument(help="An index folder.", metavar="INDEX_FOLDER")],
    *,
    queries: Annotated[
        Path | None,
        typer.Option(help="Users' queries: JSON lines with a text, or one a line; 500 are good.", metavar="FILE"),
    ] = None,
    recall: Annotated[float, typer.Option(help="Of what exact search finds, the share to find at least.")] = 0.95,
    k: Annotated[int, typer.Option("-k", help="Documents for each query.")] = 10,
    p95_ms: Annotated[float | None, typer.Option(help="Milliseconds in which 95% of searches must end.")] = None,
    memory_gb: Annotated[float | None, typer.Option(help="What is searched may take, in 10^9 bytes.")] = None,
    batch: Annotated[int, typer.Option(help="Queries searched at once.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Threads of a search; as many as it takes by default.")] = None,
    factory: Annotated[
        list[str] | None, typer.Option(help="A FAISS factory string to try; may be repeated. By default, six kinds.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="The index's encoder, if it moved.", metavar="MODEL")] = None,
    json: Json = None,
) -> None:
    """Find the fastest index that meets a goal, by measuring, and make the index that one.

    Recall is measured against exact search and must be met by its lower 95% bound. Nothing is relaxed: if no index
    meets the goal, it is refused, and what comes nearest is named.

    Killed? Run the same command again: what was built is there.
    """
    from indexes.operating_points import Goal
    from retrieval.retriever import Retriever
    from retrieval.tuning import read_queries, tune_retriever

    goal = Goal(recall, k, p95_ms, memory_gb, batch, threads)
    goal.check()
    texts = None if queries is None else read_queries(queries)
    if texts is None:
        note("no --queries: sentences of the documents stand in for them, which are easier to answer than users are")
    retriever = Retriever.open(index, encoder)
    tuned = tune_retriever(retriever, texts, goal, factories=factory or None, report=note)
    if json is not None:
        tuned.save(json)
    _show(tuned, goal.k)
    out.print(f"{index}: {retriever.index.explain()}", markup=False)
    note(f"all points: {index / str(retriever.index.reader.manifest['tuned'])}; their plot has .svg behind its name")


def _show(tuned: "Tuned", k: int) -> None:
    columns = ("the best points", f"recall@{k}", "at least", "p50 ms", "p95 ms", "queries/s", "MB")
    rows = [
        (
            f"{one.name}{' ←' if one == tuned.chosen else ''}",
            f"{one.recall:.4f}",
            f"{one.least_recall:.4f}",
            f"{one.p50_ms:.3g}",
            f"{one.p95_ms:.3g}",
            f"{one.queries_per_s:,.0f}",
            f"{one.bytes / 1e6:,.1f}",
        )
        for one in tuned.front
    ]
    out.print(table(columns, rows))
