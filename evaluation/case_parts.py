"""Parts of the page of a comparison that are unfolded: slices of queries, and single queries side by side."""

from html import escape
from itertools import groupby

from evaluation.cases import Case, Hit, Relevant
from evaluation.comparison import Comparison
from evaluation.presentation import ends

STYLE = """
details { border: 1px solid var(--line); border-radius: .5rem; margin: .5rem 0; background: var(--page); }
details > summary { cursor: pointer; padding: .55rem .8rem; font-weight: 600; }
details[open] > summary { border-bottom: 1px solid var(--line); }
details > .inside { padding: .3rem .8rem .8rem; }
details details { background: var(--card); } details details > summary { font-weight: 400; }
.up { color: var(--good); font-weight: 700; } .down { color: var(--bad); font-weight: 700; }
.inside h4 { margin: 1rem 0 .3rem; font-size: .95rem; } td .soft, th .soft { font-weight: 400; display: block; }
"""


def slices_part(comparison: Comparison) -> str:
    """Tables of the means of slices, one set after the other."""
    if not any(comparison.slices.values()):
        return ""
    body = "".join(_slices_of_set(comparison, name) for name in comparison.reports if comparison.slices.get(name))
    return (
        "<h2>Kinds of queries</h2>\n"
        f'<p class="soft">Mean {escape(comparison.measure)} of the queries that are alike in one feature, and the '
        f"difference from {escape(comparison.baseline)} with its 95% interval. These are not tested: they show where "
        f"to look.</p>\n{body}"
    )


def _slices_of_set(comparison: Comparison, name: str) -> str:
    head = "".join(f'<th scope="col">{escape(system)}</th>' for system in comparison.systems)
    tables = []
    for feature, some in groupby(comparison.slices[name], key=lambda one: one.feature):
        rows = []
        for one in some:
            cells = []
            for system in comparison.systems:
                beside = ""
                if system in one.differences:
                    mean = one.differences[system]
                    beside = f'<span class="soft">{mean.value:+.3f}</span>'
                    beside += f'<span class="soft">{ends(mean.interval, "+.3f")}</span>'
                cells.append(f"<td>{one.means[system]:.3f}{beside}</td>")
            many = len(one.queries)
            count = f'<span class="soft">{many:,} {"query" if many == 1 else "queries"}</span>'
            rows.append(f'<tr><th scope="row">{escape(one.label)}{count}</th>{"".join(cells)}</tr>')
        tables.append(
            f"<h4>{escape(feature[:1].upper() + feature[1:])}</h4>"
            f'<div class="wide" tabindex="0" role="region" aria-label="{escape(f"{feature}, {name}")}"><table><thead>'
            f'<tr><th scope="col">{escape(feature)}</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        )
    return f'<details><summary>{escape(name)}</summary><div class="inside">{"".join(tables)}</div></details>\n'


def cases_part(comparison: Comparison) -> str:
    """The queries with the worst losses and the best gains, to be unfolded."""
    if not any(comparison.cases.values()):
        return ""
    body = "".join(
        f"<details><summary>{escape(name)}</summary>"
        f'<div class="inside">{_cases_of_set(comparison, name)}</div></details>\n'
        for name in comparison.reports
        if comparison.cases.get(name)
    )
    return (
        "<h2>Worst losses and best gains</h2>\n"
        f'<p class="soft">Single queries beside {escape(comparison.baseline)}: documents that are judged relevant with '
        "their ranks in both systems, and both systems' first hits. "
        '<span class="up">✓</span> judged relevant, <span class="down">✗</span> judged not relevant, ? not judged '
        f"(counts as not relevant).</p>\n{body}"
    )


def _cases_of_set(comparison: Comparison, name: str) -> str:
    parts = []
    for system in comparison.others:
        here = [case for case in comparison.cases[name] if case.system == system]
        for title, some in (
            (f"{system} loses most", [case for case in here if case.difference < 0]),
            (f"{system} gains most", [case for case in here if case.difference > 0]),
        ):
            if some:
                parts.append(f"<h4>{escape(title)}</h4>" + "".join(_case(comparison.baseline, case) for case in some))
    return "".join(parts)


def _case(baseline: str, case: Case) -> str:
    kind = "up" if case.difference > 0 else "down"
    names = (baseline, case.system)
    asked = "".join(_relevant(one, names) for one in case.relevant) or '<p class="soft">no relevant document</p>'
    rest = case.relevant_count - len(case.relevant)
    more = f'<p class="soft">and {rest:,} more relevant documents</p>' if rest > 0 else ""
    columns = "".join(
        f"<div><strong>{escape(name)}</strong> {value:.3f}{_hits(hits)}</div>"
        for name, value, hits in (
            (baseline, case.first, case.first_hits),
            (case.system, case.second, case.second_hits),
        )
    )
    return (
        f'<details><summary><span class="{kind}">{case.difference:+.3f}</span> {escape(case.text)}</summary>'
        f'<div class="inside"><p class="soft">query <code>{escape(case.query)}</code>: {case.first:.3f} in '
        f"{escape(baseline)}, {case.second:.3f} in {escape(case.system)}</p>{asked}{more}"
        f'<div class="pair">{columns}</div></div></details>'
    )


def _relevant(one: Relevant, names: tuple[str, str]) -> str:
    """A relevant document: its ranks in both systems, and below them its text, as wide as the page."""
    ranks = ", ".join(
        f"{escape(name)} {f'rank {rank:,}' if rank is not None else 'not found'}"
        for name, rank in zip(names, (one.first, one.second), strict=True)
    )
    text = escape(one.text) or '<span class="soft">not in the corpus</span>'
    grade = f", grade {one.grade}" if one.grade != 1 else ""
    return f"<p>Relevant: <code>{escape(one.document)}</code>{grade}: <strong>{ranks}</strong><br>{text}</p>"


def _hits(hits: tuple[Hit, ...]) -> str:
    if not hits:
        return '<p class="soft">no hits</p>'
    items = (f"<li>{_mark(one)} <code>{escape(one.document)}</code> {escape(one.text)}</li>" for one in hits)
    return f"<ol>{''.join(items)}</ol>"


def _mark(hit: Hit) -> str:
    if hit.grade is None:
        return '<span role="img" aria-label="not judged">?</span>'
    if hit.grade > 0:
        return '<span class="up" role="img" aria-label="judged relevant">✓</span>'
    return '<span class="down" role="img" aria-label="judged not relevant">✗</span>'
