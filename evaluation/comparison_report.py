"""Comparisons on disk: JSON, Markdown, two tables of comma-separated values, and the page."""

import csv
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from evaluation.comparison import Comparison, Mean, Tested
from evaluation.comparison_page import as_html
from evaluation.comparison_text import (
    MARKS,
    conventions,
    headline,
    legend,
    p_text,
    power,
    published_lines,
    verdicts,
    weakest,
)
from evaluation.costs import Cost
from evaluation.presentation import ends
from evaluation.report import plain, section
from evaluation.significance import Paired, Suite
from indexes.errors import InputError
from indexes.manifest import new_folder, refuse_existing, seal, write_json

_PAGE = ".html"
_ENDINGS = (".html", ".json", ".md", ".csv", ".per-query.csv")


def files_of(output: Path) -> dict[str, Path]:
    """The files that a comparison is written to, by their endings: beside a page's file, or inside a folder.

    Args:
        output: A file that ends in `.html`, or a folder.
    """
    base = output.with_suffix("") if output.suffix == _PAGE else output / "report"
    return {ending: base.with_name(base.name + ending) for ending in _ENDINGS}


def refuse_output(output: Path, *, overwrite: bool) -> None:
    """Refuse an output that may not be written, before the work is done.

    Raises:
        InputError: It exists and may not be overwritten.
    """
    if output.suffix != _PAGE:
        refuse_existing(output, overwrite=overwrite)
        return
    there = next((path for path in files_of(output).values() if path.exists()), None)
    if there is not None and (there.is_dir() or not overwrite):
        raise InputError(f"{there} already exists; choose another --output or pass --overwrite")


def write_comparison(comparison: Comparison, output: str | Path, *, overwrite: bool = False) -> list[Path]:
    """Write a comparison: `.html`, `.json`, `.md`, `.csv` (a line for each system on each set) and `.per-query.csv`.

    Args:
        comparison: What is written.
        output: A file that ends in `.html`, beside which the others go, each wholly or not at all; or a folder, which
            appears whole.
        overwrite: Replace what is there.

    Raises:
        InputError: It exists and may not be overwritten.
    """
    target = Path(output)
    refuse_output(target, overwrite=overwrite)
    if target.suffix != _PAGE:
        with new_folder(target, overwrite=overwrite) as new:
            _write(comparison, files_of(new))
            seal(new, "comparison", {"datasets": {name: one.fingerprint for name, one in comparison.reports.items()}})
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(comparison, files_of(target))
    return list(files_of(target).values())


def _write(comparison: Comparison, files: dict[str, Path]) -> None:
    write_json(files[".json"], as_json(comparison))
    forms: dict[str, Callable[[Comparison], str]] = {
        ".html": as_html,
        ".md": as_markdown,
        ".csv": as_csv,
        ".per-query.csv": per_query_csv,
    }
    for ending, form in forms.items():
        temporary = files[ending].with_name(f".{files[ending].name}.{os.getpid()}")
        try:
            temporary.write_text(form(comparison), encoding="utf-8", errors="backslashreplace", newline="\n")
            temporary.replace(files[ending])
        finally:
            temporary.unlink(missing_ok=True)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as a JSON document: `metrics` are the means over sets of the best system, then everything."""
    best = max(comparison.systems, key=lambda system: comparison.suite[system].value)
    measures = next(iter(comparison.reports.values())).measures
    over_sets = {
        system: {
            measure: sum(report.systems[system].metrics[measure] for report in comparison.reports.values())
            / len(comparison.reports)
            for measure in measures
        }
        for system in comparison.systems
    }
    return {
        "headline": headline(comparison),
        "metrics": over_sets[best],
        "best": best,
        "measure": comparison.measure,
        "baseline": comparison.baseline,
        "systems": {
            system: {
                "mean_over_sets": {"measures": over_sets[system], **_mean(comparison.suite[system])},
                "sets": {
                    name: {
                        "measures": dict(report.systems[system].metrics),
                        **_mean(comparison.means[name][system]),
                        "hole@10": comparison.holes[name][system],
                    }
                    for name, report in comparison.reports.items()
                },
            }
            for system in comparison.systems
        },
        "tests": [_test(one) for one in comparison.tests],
        "correction": comparison.correction,
        "samples": comparison.samples,
        "seed": comparison.seed,
        "over_sets": comparison.over_sets,
        "datasets": {
            name: {
                "split": report.split,
                "queries": len(report.qrels),
                "fingerprint": report.fingerprint,
                "drop_self_matches": report.profile.drop_self_matches,
            }
            for name, report in comparison.reports.items()
        },
        "slices": {name: [one._asdict() for one in found] for name, found in comparison.slices.items()},
        "cases": {name: [_case(one) for one in found] for name, found in comparison.cases.items()},
        "costs": {system: cost._asdict() for system, cost in comparison.costs.items()},
        "published": [one._asdict() for one in comparison.published],
        "leaks": {
            name: {**one._asdict(), "queries": [q._asdict() for q in one.queries]}
            for name, one in comparison.leaks.items()
        },
        "power": power(comparison),
        "conventions": conventions(comparison),
        "notices": list(comparison.notices),
        "made_by": dict(comparison.made_by),
    }


def as_markdown(comparison: Comparison) -> str:
    """The comparison as Markdown: headline, table with marks, tests, costs, notices, conventions."""
    lines = [f"# {plain(', '.join(comparison.systems))}", "", f"{plain(headline(comparison))}.", ""]
    lines += [f"| {plain(comparison.measure)} | " + " | ".join(map(plain, comparison.systems)) + " |"]
    lines += ["|---|" + "---:|" * len(comparison.systems)]
    for name, means in comparison.means.items():
        lines.append(_row(comparison, plain(name), means, name))
    if len(comparison.reports) > 1:
        lines.append(_row(comparison, "mean over sets", comparison.suite, None))
    if comparison.tests:
        lines += ["", plain(legend(comparison)), "", "| system | set | difference | 95% interval | p, corrected | p "]
        lines[-1] += "| p, t-test | better / same / worse | would be found |"
        lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|"]
        lines += [_test_row(one) for one in comparison.tests]
        lines += ["", plain(weakest(comparison))]
    lines.append("")
    if comparison.published:
        lines += section(
            "Published figures, not tested",
            published_lines(comparison),
        )
    lines += section("Cost", cost_lines(comparison))
    lines += section("Training set", leak_lines(comparison))
    lines += section("Verdicts", verdicts(comparison))
    lines += section("Notices", comparison.notices)
    lines += section("Conventions", [f"{name}: {text}" for name, text in conventions(comparison).items()])
    lines += section("Made by", [f"{name}: {text}" for name, text in comparison.made_by.items()])
    return "\n".join(lines)


def as_csv(comparison: Comparison) -> str:
    """A line for each system on each set: its measures, and how it differs from the baseline."""
    measures = next(iter(comparison.reports.values())).measures
    tested = ("difference", "low", "high", "p", "p_adjusted", "p_t", "wins", "ties", "losses", "detectable")
    rows: list[list[Any]] = [["dataset", "system", "queries", *measures, "hole@10", *tested]]
    for name, report in comparison.reports.items():
        for system, result in report.systems.items():
            row = [name, system, len(report.qrels), *(f"{result.metrics[one]:.9g}" for one in measures)]
            row.append(f"{comparison.holes[name][system]:.9g}")
            if system == comparison.baseline:
                rows.append([*row, *[""] * len(tested)])
                continue
            one = _test(comparison.tested(system, name))
            rows.append([*row, *("" if one[key] is None else f"{one[key]:.9g}" for key in tested)])
    return _csv(rows)


def per_query_csv(comparison: Comparison) -> str:
    """The values of every query: dataset, query, system, then the measures."""
    measures = next(iter(comparison.reports.values())).measures
    rows: list[list[Any]] = [["dataset", "query", "system", *measures]]
    for name, report in comparison.reports.items():
        for query in report.qrels:
            for system, result in report.systems.items():
                rows.append([name, query, system, *(f"{result.per_query[query][one]:.9g}" for one in measures)])
    return _csv(rows)


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _mean(mean: Mean) -> dict[str, Any]:
    return {"mean": mean.value, "interval": mean.interval and list(mean.interval)}


def _test(one: Tested) -> dict[str, Any]:
    result = one.result
    both = {
        "system": one.system,
        "dataset": one.dataset,
        "verdict": one.verdict,
        "difference": result.difference,
        "low": result.interval and result.interval[0],
        "high": result.interval and result.interval[1],
        "p": result.p_randomisation,
        "p_adjusted": one.adjusted,
    }
    if isinstance(result, Suite):
        return {**both, "sets": list(result.sets)}
    names = ("p_t", "wins", "ties", "losses", "queries", "deviation", "detectable")
    values = result._asdict()
    return {**both, **{name: values[name] for name in names}}


def _case(case: Any) -> dict[str, Any]:
    found = case._asdict()
    for name in ("relevant", "first_hits", "second_hits"):
        found[name] = [one._asdict() for one in found[name]]
    return found


def _row(comparison: Comparison, label: str, means: dict[str, Mean], dataset: str | None) -> str:
    cells = []
    for system in comparison.systems:
        mark = "" if system == comparison.baseline else f" {MARKS[comparison.tested(system, dataset).verdict]}"
        cells.append(f"{means[system].value:.4f}{mark}")
    return f"| {label} | " + " | ".join(cells) + " |"


def _test_row(one: Tested) -> str:
    result = one.result
    counted = p_t = found = ""
    if isinstance(result, Paired):
        counted, p_t = f"{result.wins} / {result.ties} / {result.losses}", p_text(result.p_t)
        found = "" if result.detectable is None else f"{result.detectable:.3f}"
    cells = (
        plain(one.system),
        plain(one.dataset or "mean over sets"),
        f"{result.difference:+.4f} {MARKS[one.verdict]}",
        ends(result.interval, "+.4f"),
        p_text(one.adjusted),
        p_text(result.p_randomisation),
        p_t,
        counted,
        found,
    )
    return "| " + " | ".join(cells) + " |"


def cost_lines(comparison: Comparison) -> list[str]:
    """A line for each system whose cost was measured."""
    return [f"{system}: {_cost_text(cost)}" for system, cost in comparison.costs.items()]


def leak_lines(comparison: Comparison) -> list[str]:
    """A line for each test set about what of it is in the training set."""
    return [
        f"{name}: {len(one.queries):,} queries and {len(one.documents):,} relevant documents are in {one.source}"
        for name, one in comparison.leaks.items()
    ]


def _cost_text(cost: Cost) -> str:
    parts = [
        f"{cost.p50_ms:.3g}, {cost.p95_ms:.3g}, {cost.p99_ms:.3g} ms a query (p50, p95, p99)",
        f"{cost.queries_per_s:,.3g} queries/s by 32",
        f"{cost.documents_per_s:,.3g} documents/s encoded" if cost.documents_per_s else "",
        f"{cost.index_bytes / 1e6:,.3g} MB of index" if cost.index_bytes is not None else "",
        f"{cost.peak_bytes / 1e6:,.0f} MB of memory at most",
    ]
    return f"{', '.join(part for part in parts if part)}; {cost.dataset}, {cost.machine}"
