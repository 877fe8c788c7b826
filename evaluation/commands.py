"""The commands of evaluation: `retrokit evaluate` and `retrokit collection`."""

import re
from collections.abc import Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from evaluation.known_items import split_known_items, write_known_items
from evaluation.measures import DEFAULT_MEASURES, parse_measures
from evaluation.rankings import Ranking
from evaluation.report import as_json, write_report
from evaluation.runs import read_run, read_table
from evaluation.search_commands import (
    VectorsSearch,
    check_search_options,
    measure_vectors,
    refuse_other_corpus,
    with_recall,
)
from evaluation.systems import MODES, Report, Searcher, evaluate_run, merge
from evaluation.systems import evaluate as evaluate_retriever
from evaluation.testsets import TestSet, load_dataset
from indexes.errors import InputError
from indexes.manifest import refuse_existing, write_json
from retrieval.cache import cache_home
from retrieval.console import note, out, progress, table

_PACKAGES = ("retrokit", "numpy", "torch", "sentence-transformers", "faiss-cpu", "faiss-gpu")


class _Opened(NamedTuple):
    searcher: Searcher
    made_by: dict[str, str]


def evaluate(
    dataset: Annotated[str, typer.Option(help="The test collection: a BEIR folder.")],
    encoder: Annotated[str | None, typer.Option(help="Evaluate this encoder: a model folder or hub name.")] = None,
    index: Annotated[Path | None, typer.Option(help="Evaluate this index folder.")] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Measure this run file (TREC's, plain or .gz, or .npz); repeat for several side by side."),
    ] = None,
    vectors: Annotated[
        Path | None, typer.Option(help="Search this vectors folder exactly, block by block, however large it is.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which qrels of the test collection.")] = "test",
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Measure lexical, dense and both fused.")] = False,
    mode: Annotated[
        list[str] | None,
        typer.Option(help="lexical, dense or hybrid; repeat for several, the last is the main one."),
    ] = None,
    measure: Annotated[
        list[str] | None, typer.Option(help=f"Repeat for several. Default: {', '.join(DEFAULT_MEASURES)}.")
    ] = None,
    k: Annotated[int | None, typer.Option("-k", "--k", help="Hits for each query  [default: 1000]", min=1)] = None,
    output: Annotated[Path | None, typer.Option(help="Write a report folder: page, tables, run files.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the measures to this file as JSON.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Where --encoder keeps vectors and index, and --vectors its hits, by fingerprint  "
            "[default: ~/.cache/retrokit; may be deleted]"
        ),
    ] = None,
    against_exact: Annotated[
        bool, typer.Option("--against-exact", help="How much of exact search's hits the --index finds: its recall.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Where --vectors are searched, such as cuda.")] = None,
    memory_gb: Annotated[
        float | None, typer.Option(help="What the search of --vectors may take, in 10^9 bytes  [default: 2]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing --output folder.")] = False,
) -> None:
    """Measure an encoder, an index, a vectors folder or a run file on a test collection.

    Killed while --vectors are searched? Run the same command again: it goes on where it was.
    """
    if run and k is not None:
        raise InputError("-k says how many hits to search for, but a run file was searched already; leave it out")
    k = 1000 if k is None else k
    measures = [one.name for one in parse_measures(measure or _default_measures(k))]
    modes = _wanted_modes(encoder, index, run, vectors, hybrid=hybrid, modes=mode)
    if cache is not None and encoder is None and vectors is None:
        raise InputError("--cache is where --encoder keeps its vectors; leave it out without --encoder or --vectors")
    check_search_options(index, vectors, modes, against_exact=against_exact, device=device, memory_gb=memory_gb)
    if output is not None:
        refuse_existing(output, overwrite=overwrite)  # before the work, not after it
    testset = load_dataset(dataset, split)
    if run:
        report = merge({name: _measure_run(path, name, testset, measures) for name, path in _system_names(run).items()})
    elif vectors is not None:
        how = VectorsSearch(vectors, encoder, k, device, memory_gb)
        report = measure_vectors(how, testset, measures, partial(_cache_folder, cache, testset), _versions())
    else:
        opened = _open_index(index, testset) if index is not None else _open_encoder(str(encoder), testset, cache)
        with progress("searching", "queries") as on_progress:
            report = evaluate_retriever(
                opened.searcher,
                testset,
                measures=measures,
                k=k,
                modes=modes,
                made_by=opened.made_by | _versions(),
                on_progress=on_progress,
            )
        if against_exact:
            report = with_recall(report, opened.searcher, opened.made_by["index factory"], testset)
    _show(report)
    _write(report, output, json, overwrite=overwrite)


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


def _default_measures(k: int) -> list[str]:
    """The usual measures, without those that read deeper than k hits."""
    kept = [name for name in DEFAULT_MEASURES if int(name.partition("@")[2] or 0) <= k]
    if len(kept) < len(DEFAULT_MEASURES):
        left_out = ", ".join(name for name in DEFAULT_MEASURES if name not in kept)
        note(f"notice: {left_out} read more than {k} hits and are left out")
    return kept


def _measure_run(path: Path, name: str, testset: TestSet, measures: list[str]) -> Report:
    made_by = {"run file": path.name, **_versions()}
    found: Mapping[str, Ranking] = read_table(path) if path.suffix == ".npz" else read_run(path)
    return evaluate_run(found, testset, name=name, measures=measures, made_by=made_by, check_documents=True)


def _system_names(paths: list[Path]) -> dict[str, Path]:
    """Name each run file's system after the file, and after its folder too where two files have one name."""
    stems = [_stem(path) for path in paths]
    names: dict[str, Path] = {}
    for path, stem in zip(paths, stems, strict=True):
        name = stem if stems.count(stem) == 1 else f"{path.resolve().parent.name}-{stem}"
        if name in names:
            raise InputError(f"two run files would be called {name!r}: {names[name]} and {path}; rename one")
        names[name] = path
    return names


def _stem(path: Path) -> str:
    """A run file's name without .trec, .run, .txt, .gz and .npz: the name of its system."""
    return re.sub(r"\.(trec|run|txt)(\.gz)?$|\.gz$|\.npz$", "", path.name)


def _wanted_modes(
    encoder: str | None,
    index: Path | None,
    run: list[Path] | None,
    vectors: Path | None,
    *,
    hybrid: bool,
    modes: list[str] | None,
) -> list[str] | None:
    """Check that the options agree and name the modes to search in; None: all that an index has."""
    if vectors is not None:
        if index or run or hybrid or set(modes or ()) - {"dense"}:
            raise InputError("--vectors are searched exactly, by dense search; besides, give --encoder at most")
        return ["dense"]
    given = [name for name, value in (("--encoder", encoder), ("--index", index), ("--run", run)) if value]
    if len(given) != 1:
        raise InputError(f"found {' and '.join(given) or 'none'} of --encoder, --index and --run; give exactly one")
    if run and (hybrid or modes):
        raise InputError("--hybrid and --mode say how to search, but a run file was searched already; leave them out")
    if hybrid and modes:
        raise InputError("--hybrid means all three modes, --mode names them; give one or the other")
    unknown = next((mode for mode in modes or () if mode not in MODES), None)
    if unknown is not None:
        raise InputError(f"unknown mode {unknown!r}; known are {', '.join(MODES)}")
    if hybrid:
        return list(MODES)
    return list(modes) if modes else ["dense"] if encoder is not None else None


def _open_index(folder: Path, testset: TestSet) -> _Opened:
    from retrieval.retriever import Retriever

    retriever = Retriever.open(folder)
    refuse_other_corpus(folder, retriever.index.reader.corpus, testset)
    made_by = retriever.index.reader.made_by
    found = {"index": folder.name, "encoder fingerprint": str(made_by.get("fingerprint", "unknown"))}
    return _Opened(retriever, found | {"index factory": retriever.index.reader.factory})


def _open_encoder(name: str, testset: TestSet, cache: Path | None) -> _Opened:
    """Encode the corpus exactly, or take it from the cache, and open a retriever over it."""
    from retrieval.building import build_index
    from retrieval.encoder import Encoder
    from retrieval.retriever import Retriever

    encoder = Encoder.load(name)
    folder = _cache_folder(cache, testset, encoder.fingerprint)
    with progress("encoding", "documents") as on_progress:
        vectors = encoder.encode_corpus(testset.documents(), folder / "vectors", on_progress=on_progress)
    if not (folder / "index").is_dir():
        build_index(vectors, folder / "index", documents=testset.documents())
    retriever = Retriever.open(folder / "index", encoder=encoder)
    return _Opened(retriever, {"encoder": name, "encoder fingerprint": encoder.fingerprint, "index factory": "Flat"})


def _cache_folder(cache: Path | None, testset: TestSet, encoder_fingerprint: str) -> Path:
    """A folder for one corpus and one encoder by their fingerprints, as names lie; all splits share it."""
    return (cache or cache_home()) / f"{testset.corpus_fingerprint[:24]}-{encoder_fingerprint[:24]}"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _show(report: Report) -> None:
    rows = [
        [system, *(f"{value:.4f}" for value in result.metrics.values())] for system, result in report.systems.items()
    ]
    title = f"{report.dataset} ({report.split}, {len(report.qrels):,} queries)"
    out.print(table(["system", *report.measures], rows, title=title))
    for notice in report.notices:
        note(f"notice: {notice}")


def _write(report: Report, output: Path | None, json: Path | None, *, overwrite: bool) -> None:
    if json is not None:
        write_json(json, as_json(report))
        note(f"wrote {json}")
    if output is not None:
        write_report(report, output, overwrite=overwrite)
        note(f"wrote {output}: open {output / 'report.html'}; the run files are {output / '*.trec'}")
