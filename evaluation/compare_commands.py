"""The command `retrokit compare`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evaluation.comparison import CORRECTIONS, Comparison, compare
from evaluation.comparison_report import as_json, cost_lines, files_of, leak_lines, refuse_output, write_comparison
from evaluation.comparison_text import MARKS, headline, p_text, published_lines, verdicts, weakest
from evaluation.measures import DEFAULT_MEASURES, parse_measures
from evaluation.options import default_measures, load_testset
from evaluation.systems import MODES
from evaluation.testsets import TestSet
from evaluation.versions import versions
from indexes.errors import InputError
from indexes.manifest import write_json
from retrieval.console import note, out, progress, table

if TYPE_CHECKING:
    from evaluation.lineup import System


def compare_systems(
    system: Annotated[
        list[str],
        typer.Argument(
            help="[NAME=]SPEC: an encoder (model folder or hub name), an index folder, a TREC run file, bm25, "
            "hybrid:MODEL, sparse:MODEL, any of them with +rerank:MODEL, or anchor:NAME for published figures. "
            "{dataset} in it stands for the dataset's name, such as runs/{dataset}.trec."
        ),
    ],
    dataset: Annotated[list[str], typer.Option(help="A test collection; repeat for several.")],
    output: Annotated[
        Path | None,
        typer.Option(help="A page, such as report.html, beside which .json, .md and .csv go; or a folder for them."),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="The system to compare with  [default: the first]")] = None,
    split: Annotated[
        str | None, typer.Option(help="Which qrels  [default: test, or what a known collection is measured on]")
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(help=f"Repeat for several; the first is tested. Default: {', '.join(DEFAULT_MEASURES)}."),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(help="lexical, dense or hybrid, of systems that have several; repeat. Default: all."),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="Hits for each query.", min=1)] = 1000,
    correction: Annotated[
        str, typer.Option(help="For several comparisons: holm, or bh (false discovery rate).")
    ] = "holm",
    over_sets: Annotated[
        bool, typer.Option("--over-sets", help="Draw the datasets again too, for the interval of the mean over them.")
    ] = False,
    samples: Annotated[int, typer.Option(help="Of tests and intervals.", min=100)] = 10_000,
    seed: Annotated[int, typer.Option(help="Another seed draws others.")] = 0,
    cases: Annotated[int, typer.Option(help="Worst losses, and best gains, to show of each system.", min=0)] = 3,
    trained_on: Annotated[
        list[str] | None,
        typer.Option(
            help="Look for the test queries in this training set: JSON lines or a corpus; repeat for several."
        ),
    ] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Measure time, index size and memory of each system on the largest dataset.")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Where vectors, indexes and runs are kept  [default: ~/.cache/retrokit]")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything to this file as JSON.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
) -> None:
    """Compare systems on test collections: differences, how sure they are, where they lie, what they cost."""
    from evaluation.inspection import look_closer
    from evaluation.lineup import measure_systems

    measures = [one.name for one in parse_measures(measure or default_measures(k))]
    _check(correction, mode or [], trained_on or [])
    if overwrite and output is None:
        raise InputError("--overwrite replaces an --output, and none is given; leave it out")
    if output is not None:
        refuse_output(output, overwrite=overwrite)  # before the work, not after it
    testsets = [load_testset(one, split) for one in dataset]
    measured = measure_systems(
        system, testsets, measures=measures, k=k, modes=mode or [], cache=cache, baseline=baseline
    )
    comparison = compare(
        measured.reports,
        baseline=baseline,
        measure=measures[0],
        correction=correction,
        over_sets=over_sets,
        samples=samples,
        seed=seed,
    )
    comparison = comparison.with_more(published=measured.published, made_by=comparison.made_by | versions("scipy"))
    comparison = look_closer(comparison, testsets, cases=cases, trained_on=trained_on or [], progress=progress)
    if cost:
        comparison = _with_costs(comparison, measured.opened, dataset, testsets, cache)
    _show(comparison)
    if json is not None and not _written_anyway(json, output):
        write_json(json, as_json(comparison))
        note(f"wrote {json}")
    if output is not None:
        wrote = write_comparison(comparison, output, overwrite=overwrite)
        note(f"wrote {', '.join(map(str, wrote))}; open {wrote[0]}")


def _written_anyway(json: Path, output: Path | None) -> bool:
    return output is not None and json.resolve() in [path.resolve() for path in files_of(output).values()]


def _check(correction: str, modes: list[str], trained_on: list[str]) -> None:
    """Refuse what is known to be wrong before any work."""
    missing = next((one for one in trained_on if ":" not in one and not Path(one).exists()), None)
    if missing is not None:
        raise InputError(f"{missing}: no such file or folder; expected a training set for --trained-on")
    if correction not in CORRECTIONS:
        raise InputError(f"--correction is {correction!r}; expected one of {', '.join(CORRECTIONS)}")
    unknown = next((mode for mode in modes if mode not in MODES), None)
    if unknown is not None:
        raise InputError(f"unknown mode {unknown!r}; known are {', '.join(MODES)}")


def _with_costs(
    comparison: Comparison,
    opened: Mapping[str, tuple["System", str]],
    specs: Sequence[str],
    testsets: Sequence[TestSet],
    cache: Path | None,
) -> Comparison:
    """Measure what each system takes on the largest dataset; one that cannot be measured is a notice."""
    from evaluation.costs import measure_in_fresh_process

    sizes = [one.size or sum(1 for _ in one.documents()) for one in testsets]
    place = sizes.index(max(sizes))
    costs, notices = {}, []
    with progress("measuring costs", "systems") as on_progress:
        for number, (label, (one, mode)) in enumerate(opened.items()):
            on_progress(number, len(opened))
            testset = testsets[place]
            try:
                costs[label] = measure_in_fresh_process(one.on(testset), specs[place], testset.split, mode, cache)
            except InputError as error:
                notices.append(str(error))
    without = [label for label in comparison.systems if label not in opened]
    if without:
        notices.append(f"{', '.join(without)}: a run file was searched elsewhere, so that there is no cost of it.")
    return comparison.with_more(costs=costs, notices=(*comparison.notices, *notices))


def _show(comparison: Comparison) -> None:
    """Means with marks, the main result and the verdicts."""
    rows = []
    for name, means in [*comparison.means.items(), *([("mean", comparison.suite)] if _several(comparison) else [])]:
        cells = [name]
        for system in comparison.systems:
            mark = ""
            if system != comparison.baseline:
                one = comparison.tested(system, name if name in comparison.reports else None)
                mark = f" {MARKS[one.verdict]} p {p_text(one.adjusted)}"
            cells.append(f"{means[system].value:.4f}{mark}")
        rows.append(cells)
    out.print(table([comparison.measure, *comparison.systems], rows))
    out.print(f"{headline(comparison)}.", markup=False)
    for sentence in verdicts(comparison):
        out.print(sentence, markup=False)
    if sentence := weakest(comparison):
        out.print(sentence, markup=False)
    for line in cost_lines(comparison):
        out.print(f"cost of {line}", markup=False)
    for line in leak_lines(comparison):
        out.print(f"training set: {line}", markup=False)
    for line in published_lines(comparison):
        out.print(f"published, not tested: {line}", markup=False)
    for notice in comparison.notices:
        note(f"notice: {notice}")


def _several(comparison: Comparison) -> bool:
    return len(comparison.reports) > 1
