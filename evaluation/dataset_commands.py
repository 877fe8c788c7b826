"""The commands of test collections: `retrokit dataset` and `retrokit collection`."""

from collections import Counter
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from evaluation.known_items import split_known_items, write_known_items
from evaluation.testsets import TestSet, load_dataset, to_beir_dir
from indexes.errors import InputError
from indexes.manifest import refuse_existing, write_json
from retrieval.console import note, out, progress, table

FORMATS = ("beir", "trec")


def dataset(
    spec: Annotated[
        str,
        typer.Argument(
            help="A BEIR folder, a name in $RETROKIT_DATA, or trec:, hf:, irds:, mteb:, beir:, longembed:, loco:"
        ),
    ],
    split: Annotated[
        str | None, typer.Option(help="Which qrels  [default: the usual ones: dev of MS MARCO, test of others]")
    ] = None,
    drop_self_matches: Annotated[
        bool | None,
        typer.Option(
            "--drop-self-matches/--keep-self-matches",
            help="Of hits with the query's id, against the dataset's own rule.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the split to this folder, in --format.")] = None,
    format: Annotated[str, typer.Option(help="beir or trec: the layout of --output.")] = "beir",
    json: Annotated[Path | None, typer.Option(help="Write what is shown to this file as JSON.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing --output folder.")] = False,
) -> None:
    """Show what a test collection holds, what is odd about it, and whether it is a known one; convert it."""
    if format not in FORMATS:
        raise InputError(f"unknown format {format!r}; expected {' or '.join(FORMATS)}")
    if output is not None:
        refuse_existing(output, overwrite=overwrite, inputs=[spec])
    with progress("reading", "documents") as on_progress:
        testset = load_dataset(spec, split, drop_self_matches=drop_self_matches, on_progress=on_progress)
    facts = describe(testset)
    shown = {name: value for name, value in facts.items() if name not in ("notices", "profile")}
    rows = [[name.replace("_", " "), _text(value)] for name, value in {**shown, **facts["profile"]}.items()]
    out.print(table(["", "value"], rows, title=f"{testset.name} ({testset.split})", numbers=False))
    for notice in testset.notices:
        note(f"notice: {notice}")
    if json is not None:
        write_json(json, facts)
        note(f"wrote {json}")
    if output is not None:
        _convert(testset, output, format, overwrite=overwrite)


def describe(testset: TestSet) -> dict[str, Any]:
    """What there is to say of a test collection, as a JSON document."""
    relevant = [sum(grade > 0 for grade in grades.values()) for grades in testset.qrels.values()]
    grades = Counter(grade for judged in testset.qrels.values() for grade in judged.values())
    profile = testset.profile
    return {
        "name": testset.name,
        "split": testset.split,
        "documents": testset.size,
        "queries": len(testset.queries),
        "judgements": grades.total(),
        "grades": {str(grade): grades[grade] for grade in sorted(grades)},
        "relevant_per_query": {
            "least": min(relevant),
            "median": median(relevant),
            "mean": sum(relevant) / len(relevant),
            "most": max(relevant),
        },
        "fingerprint": testset.fingerprint,
        "corpus_fingerprint": testset.corpus_fingerprint,
        "identical_to": testset.identical_to,
        "profile": {
            "drop_self_matches": profile.drop_self_matches,
            "main_measure": profile.measure,
            "title_separator": profile.title_separator,
            "set_by_hand": list(profile.overruled),
        },
        "notices": list(testset.notices),
    }


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(one)}" for name, one in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,.2f}".removesuffix(".00")
    if isinstance(value, list):
        return ", ".join(value) or "nothing"
    return "no known collection" if value is None else repr(value) if value != value.strip() else value


def _convert(testset: TestSet, output: Path, form: str, *, overwrite: bool) -> None:
    if form == "beir":
        to_beir_dir(testset, output, overwrite=overwrite)
        note(f"wrote {output}: retrokit evaluate --encoder MODEL --dataset {output} --split {testset.split}")
        if not testset.profile.drop_self_matches:
            note("query ids begin with q there, so that BEIR's own code drops no hit for its id")
    else:
        from evaluation.trec_files import write_trec

        write_trec(testset, output, overwrite=overwrite)
        note(f"wrote {output}: retrokit evaluate --encoder MODEL --dataset trec:{output} --split {testset.split}")


def collection(
    source: Annotated[str, typer.Argument(help="python-docs or python-docs:PACKAGE,…")],
    output: Annotated[Path, typer.Option(help="The test collection folder to make.")],
    documents: Annotated[int, typer.Option(help="How many documents.", min=1)] = 3000,
    test_queries: Annotated[int, typer.Option(help="How many queries for the test split.", min=1)] = 300,
    development_queries: Annotated[int, typer.Option(help="How many queries for the split dev.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Another seed draws another sample.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write what was made to this file as JSON.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")] = False,
) -> None:
    """Make a test collection without labels: documents that bring a query of their own."""
    if source.partition(":")[0] != "python-docs":
        raise InputError(f"no known items in {source!r}; expected python-docs or python-docs:PACKAGE,…")
    refuse_existing(output, overwrite=overwrite)
    from retrieval.python_docs import read_python_docs

    known_items = split_known_items(
        read_python_docs(source),
        documents=documents,
        test_queries=test_queries,
        development_queries=development_queries,
        seed=seed,
    )
    write_known_items(output, known_items, overwrite=overwrite)
    splits = {split: len(qrels) for split, qrels in known_items.qrels.items()}
    if json is not None:
        write_json(json, {"output": str(output), "documents": len(known_items.documents), "queries": splits})
    counts = ", ".join(f"{count:,} {split}" for split, count in splits.items())
    note(f"wrote {output}: {len(known_items.documents):,} documents, queries: {counts}")
    note(f"next: retrokit evaluate --encoder MODEL --dataset {output}")
