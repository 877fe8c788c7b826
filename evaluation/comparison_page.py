"""A comparison as one self-contained web page, readable on a phone and in the dark."""

from collections.abc import Iterable, Sequence
from html import escape

from evaluation import case_parts, comparison_charts
from evaluation.case_parts import cases_part, slices_part
from evaluation.comparison import HOLE, Comparison, Mean, Tested
from evaluation.comparison_charts import Interval, Point, differences_chart, intervals_chart, pareto_chart
from evaluation.comparison_text import (
    MARKS,
    SEEN,
    conventions,
    headline,
    legend,
    p_text,
    verdicts,
    weakest,
)
from evaluation.costs import BATCH, Cost
from evaluation.power import queries_needed
from evaluation.presentation import ends
from evaluation.significance import Paired
from retrieval.web_page import definitions, web_page

_CLASSES = {"better": "up", "worse": "down", "unclear": "soft-mark"}
_STYLE = """
td { vertical-align: top; } td, th .soft { white-space: nowrap; } .text { white-space: normal; }
td .soft, th .soft { font-size: .8rem; }
td .mark { font-weight: 700; } .soft-mark { color: var(--soft); }
"""
_LEAKS_SHOWN = 5


def as_html(comparison: Comparison) -> str:
    """The comparison as one HTML page without scripts and without anything to load."""
    sets = ", ".join(comparison.reports)
    title = f"{', '.join(comparison.systems)} on {sets}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(headline(comparison))}.</p>',
        _list("", verdicts(comparison)),
        _means(comparison),
        _intervals(comparison),
        _tests(comparison),
        _queries(comparison),
        slices_part(comparison),
        cases_part(comparison),
        _measures(comparison),
        _costs(comparison),
        _published(comparison),
        _leaks(comparison),
        _list("Notices", comparison.notices),
        definitions("Conventions", conventions(comparison)),
        definitions("Made by", {**comparison.made_by, **_fingerprints(comparison)}),
    ]
    style = comparison_charts.STYLE + case_parts.STYLE + _STYLE
    return web_page(title, "\n".join(part for part in parts if part), style)


def _means(comparison: Comparison) -> str:
    head = _head([comparison.measure, *comparison.systems])
    rows = [_means_row(comparison, name, name, means) for name, means in comparison.means.items()]
    if len(comparison.reports) > 1:
        rows.append(_means_row(comparison, "mean", None, comparison.suite))
    marks = f'<p class="soft">{escape(legend(comparison))} The best value is shaded.</p>' if comparison.tests else ""
    return f"<h2>{escape(comparison.measure)}</h2>\n{_table(head, rows, comparison.measure)}{marks}"


def _means_row(comparison: Comparison, label: str, dataset: str | None, means: dict[str, Mean]) -> str:
    best = max(one.value for one in means.values())
    cells = []
    for system in comparison.systems:
        shade = ' class="best"' if means[system].value == best and comparison.others else ""
        if system == comparison.baseline:
            mean = means[system]
            beside = f'<span class="soft">{ends(mean.interval, between="–")}</span>'
            cells.append(f"<td{shade}>{mean.value:.4f}{beside}</td>")
            continue
        one = comparison.tested(system, dataset)
        beside = f'<span class="soft">{one.result.difference:+.4f}</span>'
        cells.append(f"<td{shade}>{means[system].value:.4f} {_mark(one)}{beside}</td>")
    count = f"{len(comparison.reports[dataset].qrels):,} queries" if dataset else f"of {len(comparison.reports)} sets"
    return f'<tr><th scope="row">{escape(label)}<span class="soft">{count}</span></th>{"".join(cells)}</tr>'


def _mark(one: Tested) -> str:
    said = {"better": "better", "worse": "worse", "unclear": "cannot be told from the baseline"}[one.verdict]
    return (
        f'<span class="mark {_CLASSES[one.verdict]}" role="img" aria-label="{said}" title="{said}">'
        f"{MARKS[one.verdict]}</span>"
    )


def _intervals(comparison: Comparison) -> str:
    if not comparison.tests:
        return ""
    several = len(comparison.others) > 1
    lines = [
        Interval(
            " · ".join([one.dataset or "mean over sets", *([one.system] if several else [])]),
            one.result.difference,
            one.result.interval,
            one.verdict,
        )
        for one in sorted(comparison.tests, key=lambda one: _order(comparison, one))
    ]
    measure, baseline = escape(comparison.measure), escape(comparison.baseline)
    chart = intervals_chart(f"Differences of {comparison.measure} from {comparison.baseline} with 95% intervals", lines)
    return (
        f"<h2>Differences from {baseline}</h2>\n<figure>{chart}<figcaption>Mean difference of {measure}, with its 95% "
        "bootstrap interval; green and red: better and worse after correction for all comparisons, grey: may be "
        "chance.</figcaption></figure>"
    )


def _order(comparison: Comparison, one: Tested) -> int:
    """Sets in their order, the mean over sets last."""
    return list(comparison.reports).index(one.dataset) if one.dataset else len(comparison.reports)


def _tests(comparison: Comparison) -> str:
    if not comparison.tests:
        return ""
    names = (
        "set",
        "system",
        "difference",
        "95% interval",
        "p, corrected",
        "p",
        "p, t-test",
        "better / same / worse",
        "would be found",
        f"queries for {SEEN:g}",
    )
    rows = [_test_row(one) for one in sorted(comparison.tests, key=lambda one: _order(comparison, one))]
    sentence = weakest(comparison)
    return (
        f"<h2>How sure</h2>\n<p>{escape(sentence)}</p>"
        f'<details><summary>All tests</summary><div class="inside">{_table(_head(names), rows, "All tests")}'
        '<p class="soft">p: paired randomisation; the t-test is a second opinion. “Would be found”: the least mean '
        "difference that so many queries show with a chance of 80%; then: how many queries it would take to find one "
        f"of {SEEN:g}.</p></div></details>"
    )


def _test_row(one: Tested) -> str:
    result = one.result
    counted, p_t, found, needed = "", "", "", ""
    if isinstance(result, Paired):
        counted, p_t = f"{result.wins:,} / {result.ties:,} / {result.losses:,}", p_text(result.p_t)
        if result.detectable is not None:
            found, needed = f"{result.detectable:.3f}", f"{queries_needed(result.deviation, SEEN):,}"
    cells = (
        f"{result.difference:+.4f} {_mark(one)}",
        ends(result.interval, "+.3f"),
        *map(escape, (p_text(one.adjusted), p_text(result.p_randomisation), p_t, counted, found, needed)),
    )
    return (
        f'<tr><th scope="row">{escape(one.dataset or "mean over sets")}</th><td>{escape(one.system)}</td>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
    )


def _queries(comparison: Comparison) -> str:
    figures = []
    for one in comparison.tests:
        if isinstance(one.result, Paired) and one.dataset:
            pairs = zip(
                comparison.values(one.dataset, one.system),
                comparison.values(one.dataset, comparison.baseline),
                strict=True,
            )
            result = one.result
            said = f"{result.wins:,} better, {result.ties:,} the same, {result.losses:,} worse"
            name = f"{one.system} − {comparison.baseline}, {one.dataset}"
            chart = differences_chart(f"{name}: {said}", [mine - base for mine, base in pairs])
            figures.append(f"<figure><h3>{escape(name)}</h3>{chart}<figcaption>{said}</figcaption></figure>")
    if not figures:
        return ""
    return (
        f'<h2>Query by query</h2>\n<p class="soft">Difference of {escape(comparison.measure)} of every query, largest '
        f'gain first.</p>\n<div class="charts">{"".join(figures)}</div>'
    )


def _measures(comparison: Comparison) -> str:
    parts = []
    for name, report in comparison.reports.items():
        rows = []
        for measure in report.measures:
            cells = "".join(f"<td>{result.metrics[measure]:.4f}</td>" for result in report.systems.values())
            rows.append(f'<tr><th scope="row">{escape(measure)}</th>{cells}</tr>')
        holes = "".join(f"<td>{comparison.holes[name][system]:.4f}</td>" for system in report.systems)
        rows.append(f'<tr><th scope="row">hole@{HOLE}</th>{holes}</tr>')
        table = _table(_head(["measure", *report.systems]), rows, f"Measures on {name}")
        parts.append(f'<details><summary>{escape(name)}</summary><div class="inside">{table}</div></details>')
    about = f"hole@{HOLE} is the share of the first {HOLE} hits that nobody judged; they count as not relevant."
    return f'<h2>All measures</h2>\n<p class="soft">{about}</p>\n{"".join(parts)}'


def _costs(comparison: Comparison) -> str:
    if not comparison.costs:
        return ""
    names = (
        "system",
        comparison.measure,
        "p50 ms",
        "p95 ms",
        "p99 ms",
        f"queries/s by {BATCH}",
        "documents/s",
        "index MB",
        "memory MB",
    )
    rows = [_cost_row(comparison, system, cost) for system, cost in comparison.costs.items()]
    some = next(iter(comparison.costs.values()))
    many = [
        ("p95 of one query, ms", {system: cost.p95_ms for system, cost in comparison.costs.items()}),
        ("index, MB", {one: cost.index_bytes / 1e6 for one, cost in comparison.costs.items() if cost.index_bytes}),
    ]
    charts = []
    for axis, costs in many:
        if len(costs) > 1:
            points = [Point(one, cost, comparison.suite[one].value) for one, cost in costs.items()]
            chart = pareto_chart(f"{comparison.measure} against {axis}", axis, points)
            charts.append(f"<figure><h3>{escape(f'{comparison.measure} against {axis}')}</h3>{chart}</figure>")
    said = (
        f"Measured on {some.machine}, each system in a fresh process, over {some.dataset}: {some.queries:,} single "
        f"queries and batches of {BATCH}, 10 hits each, warmed up, medians of three rounds; documents/s: encoding "
        f"{some.documents:,} of its documents by all encoders of the system. Index: files that the search reads, "
        "without stored texts. Memory: the most the process had while it opened the system and searched, Python and "
        "libraries too. A busy machine shows in all of it but the index."
    )
    drawn = (
        f'<div class="charts">{"".join(charts)}</div><p class="soft">A broken line joins the systems that no other one '
        "beats in both.</p>"
        if charts
        else ""
    )
    return f'<h2>Cost</h2>\n{_table(_head(names), rows, "Cost")}<p class="soft">{escape(said)}</p>{drawn}'


def _cost_row(comparison: Comparison, system: str, cost: Cost) -> str:
    cells = (
        f"{comparison.suite[system].value:.4f}",
        *(f"{value:.3g}" for value in (cost.p50_ms, cost.p95_ms, cost.p99_ms)),
        f"{cost.queries_per_s:,.0f}",
        "–" if cost.documents_per_s is None else f"{cost.documents_per_s:,.0f}",
        "–" if cost.index_bytes is None else f"{cost.index_bytes / 1e6:,.1f}",
        f"{cost.peak_bytes / 1e6:,.0f}",
    )
    return f'<tr><th scope="row">{escape(system)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _published(comparison: Comparison) -> str:
    if not comparison.published:
        return ""
    rows = [
        f'<tr><th scope="row">{escape(one.system)}</th><td>{escape(one.dataset)}</td><td>{escape(one.measure)}</td>'
        f"<td>{one.value:g}</td></tr>"
        for one in comparison.published
    ]
    table = _table(_head(["system", "set", "measure", "value"]), rows, "Published figures")
    ways = dict.fromkeys((one.system, one.source, one.convention) for one in comparison.published)
    sources = _list("", (f"{system}: {source}; {convention}" for system, source, convention in ways))
    return (
        f"<h2>Published figures</h2>\n{table}{sources}"
        '<p class="soft">Figures of others: there are no values of single queries, '
        "so that nothing is tested. They may be compared only where the convention is the same.</p>"
    )


def _leaks(comparison: Comparison) -> str:
    parts = []
    for name, leak in comparison.leaks.items():
        exact = sum(one.exact for one in leak.queries)
        said = (
            f"{name}: {exact:,} of {len(comparison.reports[name].qrels):,} queries are in {leak.source} "
            f"({leak.training_texts:,} texts) word for word, {len(leak.queries) - exact:,} more have {leak.words} "
            f"words in a row in common with it ({leak.short:,} are shorter and were looked for as a whole only); "
            f"{len(leak.documents):,} relevant documents are in it."
        )
        if leak.queries and leak.means:
            means = ", ".join(f"{system} {value:.4f}" for system, value in leak.means.items())
            said += f" {comparison.measure} of the other {leak.left:,} queries: {means}."
        items = "".join(
            f'<li>{escape(one.text)} <span class="soft">{escape(one.place)}: “{escape(one.words)}”</span></li>'
            for one in leak.queries[:_LEAKS_SHOWN]
        )
        parts.append(f"<p>{escape(said)}</p>" + (f"<ul>{items}</ul>" if items else ""))
    return f"<h2>Training set and test queries</h2>\n{''.join(parts)}" if parts else ""


def _fingerprints(comparison: Comparison) -> dict[str, str]:
    return {f"{name}, fingerprint": report.fingerprint for name, report in comparison.reports.items()}


def _head(names: Sequence[str]) -> str:
    return "".join(f'<th scope="col">{escape(name)}</th>' for name in names)


def _table(head: str, rows: Iterable[str], label: str) -> str:
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _list(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    heading = f"<h2>{escape(title)}</h2>\n" if title else ""
    return f"{heading}<ul>{items}</ul>" if items else ""
