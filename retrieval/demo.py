"""The main job as a recipe: build a test collection, search it, adapt the encoder to it, and measure what that brought.

Every stage is a command called through the command table, and hands a folder on.
"""

import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from indexes.errors import InputError
from indexes.manifest import differences, read_json, write_json
from retrieval.cli import load_command
from retrieval.console import muted, note, out, table
from retrieval.python_docs import check_packages

PACKAGES = "numpy,scipy,scikit-learn,networkx,torch"
ENCODER = "all-MiniLM-L6-v2"
SHOWN = ("nDCG@10", "MRR@10", "Recall@100")


def demo(
    output: Annotated[Path, typer.Option(help="The folder for all that is made.", metavar="FOLDER")] = Path(
        "retrokit-demo"
    ),
    *,
    documents: Annotated[int, typer.Option(help="Documents to search.")] = 3000,
    test_queries: Annotated[int, typer.Option(help="Queries that are held out to measure with.")] = 300,
    steps: Annotated[int, typer.Option(help="Training steps of the adaptation.")] = 40,
    packages: Annotated[str, typer.Option(help="Whose documentation, by distribution name.")] = PACKAGES,
    seed: Annotated[int, typer.Option(help="Another seed, another sample.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew if the folder exists.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Also write the measures to this file.")] = None,
) -> None:
    """Search the documentation of the Python packages installed here, then teach the encoder to do it better.

    Measures BM25, the packaged encoder, both fused, and the encoder adapted to this corpus, on queries it never saw.
    Needs no network and no labels. Interrupted? Run it again: finished stages are kept.
    """
    start = time.monotonic()
    options = {"documents": documents, "test_queries": test_queries, "steps": steps, "packages": packages, "seed": seed}
    precision = _open(output, options, overwrite=overwrite)
    corpus = output / "python-docs"
    if not corpus.exists():
        _stage(1, f"collect documents and queries from the documentation of {packages}")
        spec = f"python-docs:{packages}"
        try:
            with muted():
                load_command("collection")(spec, corpus, documents=documents, test_queries=test_queries, seed=seed)
        except InputError:
            shutil.rmtree(output)  # begun, but with options that cannot be; others may follow
            raise
    _stage(2, f"encode, index and measure: BM25, {ENCODER}, and both fused")
    base = _measure(output, "base", ENCODER, corpus, precision)
    _stage(3, "adapt the encoder to the corpus, by contrast alone and with DupMAE beside it")
    adapted = {
        "contrastive": _adapt(output / "adapted-contrastive", corpus, steps, seed, precision, objective=None),
        "contrastive + DupMAE": _adapt(output / "adapted", corpus, steps, seed, precision, objective="dupmae"),
    }
    _say_terms(adapted)
    _stage(4, "encode, index and measure again with the adapted encoder")
    after = _measure(output, "adapted", str(output / "adapted"), corpus, precision)
    systems = {
        "bm25": base["lexical"],
        "base": base["dense"],
        "fused": base["hybrid"],
        "adapted": after["dense"],
        "adapted+fused": after["hybrid"],
    }
    runs = [_named_run(output, name, part) for name, part in zip(systems, _RUNS, strict=True)]
    with muted():
        load_command("evaluate")(str(corpus), run=runs, output=output / "report", overwrite=True)
    if json is not None:
        write_json(json, {"systems": systems, "terms": adapted, "seconds": round(time.monotonic() - start, 1)})
    rows = [(name, *(f"{measures[measure]:.4f}" for measure in SHOWN)) for name, measures in systems.items()]
    title = f"{documents:,} documents, {test_queries} queries that training never saw"
    out.print(table(("system", *SHOWN), rows, title=title))
    out.print(f"report: {output / 'report' / 'report.html'}", markup=False)
    out.print(f'next:   retrokit search {output / "adapted.index"} "solve a system of linear equations"', markup=False)
    note(f"{time.monotonic() - start:.0f} s in all")


_RUNS = ("base/lexical", "base/dense", "base/hybrid", "adapted/dense", "adapted/hybrid")


def _open(output: Path, options: dict[str, Any], *, overwrite: bool) -> str:
    """Begin the demo's folder, or go on in the one that the same options began; give the precision to compute in.

    The precision is bfloat16 where this processor is clearly faster with it, chosen once for all stages.

    Raises:
        InputError: The folder holds something else, or a demo with other options.
    """
    marker = output / "demo.json"
    check_packages(f"python-docs:{options['packages']}")
    if not marker.is_file():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise InputError(f"{output} holds something else than a demo; choose another --output")
    elif (begun := read_json(marker)) and begun["options"] == options and not overwrite:
        return begun["precision"]
    elif not overwrite:
        raise InputError(
            f"{output} was begun with other options ({differences(begun['options'], options)}); "
            "give the same ones, choose another --output or pass --overwrite"
        )
    else:
        shutil.rmtree(output)
    from retrieval.devices import bfloat16_is_faster

    precision = "bfloat16" if bfloat16_is_faster() else "float32"
    write_json(marker, {"options": options, "precision": precision})
    return precision


def _measure(output: Path, name: str, encoder: str, corpus: Path, precision: str) -> dict[str, dict[str, float]]:
    """Encode, index and evaluate; stages whose result is there are kept."""
    vectors, index, result = (output / f"{name}.{kind}" for kind in ("vectors", "index", "evaluation"))
    options: dict[str, Any] = {"max_length": 128, "dtype": precision, "shard_rows": 512}
    with muted():
        load_command("encode")(str(corpus), encoder=encoder, output=vectors, **options)
        if not index.exists():
            load_command("index")(str(vectors), output=index)
        if not result.exists():
            load_command("evaluate")(str(corpus), index=index, output=result)
    return read_json(result / "report.json")["systems"]


def _adapt(
    model: Path, corpus: Path, steps: int, seed: int, precision: str, *, objective: str | None
) -> dict[str, Any]:
    """Learn from the corpus's own training queries; give what the held-back ones say."""
    load_command("adapt")(
        str(corpus),
        encoder=ENCODER,
        output=model,
        pairs=corpus / "train-pairs.jsonl",
        objective=objective,
        objective_texts=4,
        steps=steps,
        max_length=96,
        precision=precision,
        held_out=150,
        checks=1,
        seed=seed,
    )
    card = read_json(model / "retrokit.json")
    return {"start": card["checks"]["0"], "best": max(card["checks"].values()), "chosen step": card["chosen"]}


def _say_terms(adapted: dict[str, dict[str, Any]]) -> None:
    rows = [
        (name, f"{found['start']:.4f}", f"{found['best']:.4f}", f"{found['best'] - found['start']:+.4f}")
        for name, found in adapted.items()
    ]
    title = "what each term brought, nDCG@10 on queries held back from training"
    out.print(table(("terms", "before", "after", "gain"), rows, title=title))


def _named_run(output: Path, name: str, part: str) -> Path:
    """Copy a run file to where its file name is the system's name in the report."""
    folder, _, mode = part.partition("/")
    target = output / "runs" / f"{name}.trec"
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(output / f"{folder}.evaluation" / f"{mode}.trec", target)
    return target


def _stage(number: int, what: str) -> None:
    note(f"[{number}/4] {what}")
