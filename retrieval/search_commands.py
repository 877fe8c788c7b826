"""The command that searches: `retrokit search`."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from indexes.errors import InputError
from indexes.manifest import write_json
from retrieval.commands import Json
from retrieval.console import note, out


def search(
    index: Annotated[Path, typer.Argument(help="An index folder.", metavar="INDEX_FOLDER")],
    query: Annotated[str, typer.Argument(help="The question, in quotes.")],
    *,
    k: Annotated[int, typer.Option("-k", help="How many documents to show.")] = 10,
    mode: Annotated[
        str | None, typer.Option(help="lexical, dense or hybrid (the default, but for a dense index).")
    ] = None,
    fusion: Annotated[
        str | None,
        typer.Option(help="How hybrid fuses: zscore, minmax, rrf, or sum (with a sparse encoder)  [default: zscore]"),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="Of the lexical side in it (zscore: 0.5, minmax: 0.25, rrf, sum: 1).")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="The index's encoder, if it moved.", metavar="MODEL")] = None,
    sparse: Annotated[
        str | None, typer.Option(help="The index's sparse encoder, if it moved.", metavar="MODEL")
    ] = None,
    filter: Annotated[
        str | None, typer.Option(help='What hits\' attributes must meet: \'year >= 2020 and lang in ["en", "de"]\'.')
    ] = None,
    rerank: Annotated[
        str | None,
        typer.Option(help="Put the first hits in the order of this cross-encoder.", metavar="CROSS_ENCODER"),
    ] = None,
    rerank_depth: Annotated[
        int | None, typer.Option(help="How many hits --rerank reads  [default: 100]", min=1)
    ] = None,
    json: Json = None,
) -> None:
    """Search an index with one question."""
    from retrieval.reranker import DEPTH, SUFFIX, Reranked, Reranker
    from retrieval.retriever import Retriever

    if rerank_depth is not None and rerank is None:
        raise InputError("--rerank-depth is how far --rerank goes; give a cross-encoder by --rerank or leave it out")
    of_hybrid = {"--fusion": fusion, "--weight": weight}
    _refuse_idle({**of_hybrid, "--sparse": sparse} if mode == "dense" else of_hybrid, mode)
    retriever = Retriever.open(index, encoder, sparse=sparse, fusion=fusion or "zscore", weight=weight)
    _refuse_idle(of_hybrid, mode or retriever.modes[-1])
    if rerank is None:
        hits = retriever.search(query, k, mode=mode, filter=filter)
    else:
        both = Reranked(retriever, Reranker.load(rerank), rerank_depth or DEPTH)
        hits = both.search(query, k, mode=(mode or retriever.modes[-1]) + SUFFIX, filter=filter)
    if json is not None:
        write_json(json, {"query": query, "hits": [_plain(hit._asdict()) for hit in hits]})
    if not hits:
        note(f"nothing in {index} matches {query!r}")
    for hit in hits:
        out.print(f"{hit.rank:>3}  {hit.score:8.4f}  {hit.id}", style="bold", markup=False)
        if hit.attributes:
            values = (f"{name} {value}" for name, value in _plain(hit.attributes).items())
            out.print(f"     {' · '.join(values)}", markup=False)
        if hit.shown:
            out.print(f"     {_preview(hit.shown)}", markup=False)


def _refuse_idle(options: Mapping[str, Any], mode: str | None) -> None:
    """Refuse options of a hybrid search's two sides in a mode that has one of them."""
    given = next((name for name, value in options.items() if value is not None), None)
    if given is not None and mode in ("lexical", "dense"):
        what = "weighs terms" if given == "--sparse" else "says how both sides are fused"
        raise InputError(f"{given} {what}, which a {mode} search does not do; leave it out, or search by hybrid")


def _plain(value: Any) -> Any:
    """JSON's values of Python's: dates become texts."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.isoformat() if isinstance(value, datetime.date) else value


def _preview(text: str, width: int = 160) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else f"{flat[: width - 1]}…"
