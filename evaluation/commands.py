"""The command `retrokit evaluate`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from evaluation.expected import with_expected
from evaluation.measures import DEFAULT_MEASURES, parse_measures
from evaluation.opening import SPECS, Opened, open_encoder, open_index, open_system, with_reranker
from evaluation.options import default_measures, load_testset
from evaluation.pair_commands import measure_pairs
from evaluation.pairs_sets import pairs_kind
from evaluation.prepared import cache_folder
from evaluation.rankings import Ranking
from evaluation.report import as_json, write_report
from evaluation.runs import read_run, read_table
from evaluation.search_commands import VectorsSearch, check_search_options, measure_vectors, with_recall
from evaluation.systems import MODES, Report, evaluate_run, merge
from evaluation.systems import evaluate as evaluate_retriever
from evaluation.testsets import TestSet
from evaluation.versions import versions
from indexes.errors import InputError
from indexes.manifest import refuse_existing, write_json
from retrieval.cache import cache_home
from retrieval.console import note, out, progress, table


@dataclass(frozen=True)
class _Asked:
    """What is to be measured, as the options say it."""

    encoder: str | None
    index: Path | None
    run: list[Path] | None
    vectors: Path | None
    system: str | None
    sparse: str | None
    rerank: str | None
    rerank_depth: int | None
    cache: Path | None
    k: int


def evaluate(
    dataset: Annotated[
        str,
        typer.Option(
            help="A test collection: a BEIR folder, or what `retrokit dataset` takes; or pairs: sts:FILE, pairs:FILE, "
            "reranking:FILE."
        ),
    ],
    encoder: Annotated[str | None, typer.Option(help="Evaluate this encoder: a model folder or hub name.")] = None,
    index: Annotated[Path | None, typer.Option(help="Evaluate this index folder.")] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Measure this run file (TREC's, plain or .gz, or .npz); repeat for several side by side."),
    ] = None,
    vectors: Annotated[
        Path | None, typer.Option(help="Search this vectors folder exactly, block by block, however large it is.")
    ] = None,
    system: Annotated[str | None, typer.Option(help=f"Evaluate any system: {SPECS}.", metavar="SPEC")] = None,
    split: Annotated[
        str | None, typer.Option(help="Which qrels  [default: the usual ones: dev of MS MARCO, test of others]")
    ] = None,
    sparse: Annotated[
        str | None,
        typer.Option(
            help="A sparse encoder: with --encoder in the place of BM25, with --index its own, if it moved.",
            metavar="MODEL",
        ),
    ] = None,
    rerank: Annotated[
        str | None,
        typer.Option(help="Also measure the last system with its first hits reranked by it.", metavar="CROSS_ENCODER"),
    ] = None,
    rerank_depth: Annotated[
        int | None, typer.Option(help="How many hits of each query --rerank reads  [default: 100]", min=1)
    ] = None,
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
            help="Where --encoder and --system keep what they make, and --vectors its hits, by fingerprint  "
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
    prompt: Annotated[
        str | None, typer.Option(help="Of pairs: both get the prompt of a document or a query  [default: document]")
    ] = None,
) -> None:
    """Measure an encoder, an index, vectors or a run file on a test collection, or an encoder on pairs of sentences.

    Killed while --vectors are searched? Run the same command again: it goes on where it was.
    """
    if pairs_kind(dataset):
        others: dict[str, Any] = {"--index": index, "--run": run, "--vectors": vectors, "--system": system, "-k": k}
        others |= {"--sparse": sparse, "--rerank": rerank, "--rerank-depth": rerank_depth, "--hybrid": hybrid}
        others |= {"--mode": mode, "--measure": measure, "--output": output, "--cache": cache, "--split": split}
        others |= {"--against-exact": against_exact, "--device": device, "--memory-gb": memory_gb}
        others |= {"--overwrite": overwrite}
        return measure_pairs(dataset, encoder, prompt, json, unfit=[name for name, value in others.items() if value])
    if prompt is not None:
        raise InputError("--prompt is for pairs (sts:FILE, pairs:FILE); queries and documents have each their own")
    if run and k is not None:
        raise InputError("-k says how many hits to search for, but a run file was searched already; leave it out")
    asked = _Asked(encoder, index, run, vectors, system, sparse, rerank, rerank_depth, cache, 1000 if k is None else k)
    modes = _wanted_modes(asked, hybrid=hybrid, modes=mode)
    _refuse_idle(asked, output=output, overwrite=overwrite)
    check_search_options(index, vectors, modes, against_exact=against_exact, device=device, memory_gb=memory_gb)
    measures = [one.name for one in parse_measures(measure or default_measures(asked.k))]
    if output is not None:
        refuse_existing(output, overwrite=overwrite)  # before the work, not after it
    testset = load_testset(dataset, split)
    measures = measures if measure else list(dict.fromkeys([*measures, *_main_measure(testset, asked.k)]))
    if vectors is not None:
        how = VectorsSearch(vectors, encoder, asked.k, device, memory_gb)
        report = measure_vectors(
            how, testset, measures, partial(cache_folder, cache or cache_home(), testset), versions()
        )
    elif run and rerank is None:
        report = merge({name: _measure_run(path, name, testset, measures) for name, path in _system_names(run).items()})
    else:
        report = _search(asked, testset, measures, modes, against_exact=against_exact)
    report = with_expected(report)
    _show(report)
    _write(report, output, json, overwrite=overwrite)
    return None


def _search(
    asked: _Asked, testset: TestSet, measures: list[str], modes: list[str] | None, *, against_exact: bool
) -> Report:
    """Open what is asked for, search every query in its modes, and measure what was found."""
    opened, k = _open(asked, testset)
    modes = modes or list(opened.modes)
    if asked.rerank is not None:
        opened = with_reranker(replace(opened, modes=tuple(modes)), asked.rerank, asked.rerank_depth)
        modes = [*modes, *opened.modes]
    with progress("searching", "queries") as on_progress:
        report = evaluate_retriever(
            opened.searcher,
            testset,
            measures=measures,
            k=k,
            modes=modes,
            made_by=opened.made_by | versions(),
            on_progress=on_progress,
        )
    if against_exact:
        report = with_recall(report, opened.searcher, opened.made_by["index factory"], testset)
    return report


def _open(asked: _Asked, testset: TestSet) -> tuple[Opened, int]:
    """The system, and how many hits each query gets."""
    if asked.run:
        opened, depth = _open_runs(asked.run, testset)
        return opened, max(asked.k, depth)
    if asked.index is not None:
        return open_index(asked.index, testset, sparse=asked.sparse), asked.k
    if asked.system is not None:
        return open_system(asked.system, testset, cache=asked.cache), asked.k
    return open_encoder(str(asked.encoder), testset, cache=asked.cache, sparse=asked.sparse), asked.k


def _main_measure(testset: TestSet, k: int) -> list[str]:
    """The measure of the dataset's published figures, if it can be measured at this depth."""
    return [one.name for one in parse_measures([testset.profile.measure]) if one.k <= k]


def _measure_run(path: Path, name: str, testset: TestSet, measures: list[str]) -> Report:
    made_by = {"run file": path.name, **versions()}
    return evaluate_run(_read(path), testset, name=name, measures=measures, made_by=made_by, check_documents=True)


def _read(path: Path) -> Mapping[str, Ranking]:
    return read_table(path) if path.suffix == ".npz" else read_run(path)


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


def _wanted_modes(asked: _Asked, *, hybrid: bool, modes: list[str] | None) -> list[str] | None:
    """Check that the options agree and name the modes to search in; None: those of the system."""
    run, system = asked.run, asked.system
    if asked.vectors is not None:
        if asked.index or run or system or hybrid or set(modes or ()) - {"dense"}:
            raise InputError("--vectors are searched exactly, by dense search; besides, give --encoder at most")
        return ["dense"]
    every = (("--encoder", asked.encoder), ("--index", asked.index), ("--run", run), ("--system", system))
    given = [name for name, value in every if value]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise InputError(f"found {found} of --encoder, --index, --run, --vectors and --system; give exactly one")
    if run and (hybrid or modes):
        raise InputError("--hybrid and --mode say how to search, but a run file was searched already; leave them out")
    if system and (hybrid or modes):
        raise InputError("--hybrid and --mode say how to search, and so does --system; leave them out")
    if hybrid and modes:
        raise InputError("--hybrid means all three modes, --mode names them; give one or the other")
    unknown = next((mode for mode in modes or () if mode not in MODES), None)
    if unknown is not None:
        raise InputError(f"unknown mode {unknown!r}; known are {', '.join(MODES)}")
    return list(MODES) if hybrid else list(dict.fromkeys(modes)) if modes else None


def _refuse_idle(asked: _Asked, *, output: Path | None, overwrite: bool) -> None:
    """Refuse options that would do nothing."""
    if overwrite and output is None:
        raise InputError("--overwrite replaces an --output, and none is given; leave it out")
    if asked.system is not None and "{dataset}" in asked.system:
        raise InputError(
            f"{asked.system}: {{dataset}} stands for the names of several datasets in retrokit compare; "
            "write the name out"
        )
    if asked.vectors is not None and (asked.sparse is not None or asked.rerank is not None):
        raise InputError("--vectors are searched by dense search alone; leave --sparse and --rerank out")
    made = (asked.encoder, asked.vectors, asked.system)
    if asked.cache is not None and made == (None, None, None):
        raise InputError("--cache is where --encoder, --vectors and --system keep what they make; leave it out without")
    if asked.sparse is not None and asked.encoder is None and asked.index is None:
        raise InputError("--sparse goes with --encoder or --index; for a sparse encoder alone: --system sparse:MODEL")
    if asked.rerank_depth is not None and asked.rerank is None:
        raise InputError("--rerank-depth is how far --rerank goes; give a cross-encoder by --rerank or leave it out")


def _open_runs(paths: list[Path], testset: TestSet) -> "tuple[Opened, int]":
    """Run files as the modes of one searcher, and the most hits that a query has."""
    from evaluation.stored import StoredRuns

    runs = {name: _read(path) for name, path in _system_names(paths).items()}
    searcher = StoredRuns(runs, testset)
    made_by = {"run files": ", ".join(path.name for path in paths)}
    return Opened("runs", searcher, made_by, searcher.modes), searcher.depth


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
