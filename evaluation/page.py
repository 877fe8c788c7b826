"""The report as one self-contained web page, readable on a phone and in the dark."""

from collections.abc import Iterable, Mapping
from html import escape

from evaluation.presentation import (
    Difference,
    best_values,
    conventions,
    headline,
    headline_measure,
    interval,
    largest_differences,
)
from evaluation.systems import Report, SystemResult

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0; --page: #ffffff;
  --card: #f5f7f9; --bar: #8fb4dd; --main: #1f6fc2; --best: #e3f0e4; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4af; --line: #363d46; --page:
#14181d;
  --card: #1d2229; --bar: #3f5f84; --main: #63a8f0; --best: #1d3a24; --good: #57c46f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.25rem 1rem 4rem; background: var(--page); color:
var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .4rem 0; }
.lead { font-size: 1.1rem; }
.soft, figcaption, dt { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .45rem .6rem; text-align: right; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--soft); font-weight: 600; font-size: .85rem; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--page); }
td.best { background: var(--best); font-weight: 700; }
figure { margin: 0; max-width: 34rem; }
svg { display: block; width: 100%; height: auto; font: 13px system-ui, sans-serif; fill: var(--ink); }
svg .bar { fill: var(--bar); } svg .main { fill: var(--main); }
svg .axis { stroke: var(--line); } svg .whisker { stroke: var(--ink); stroke-width: 1.5; }
svg .soft { fill: var(--soft); }
article { border: 1px solid var(--line); border-radius: .5rem; background: var(--card); padding: .7rem .9rem;
  margin: .7rem 0; }
article h3 { font-size: 1rem; margin: 0; font-weight: 600; }
ol { margin: .2rem 0 .2rem; padding-left: 1.6rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1.2rem; margin-top: .5rem; }
@media (max-width: 34rem) { .pair { grid-template-columns: 1fr; gap: .5rem; }
  table { font-size: .88rem; } th, td { padding: .4rem .4rem; } }
.hit { color: var(--good); font-weight: 700; }
dl { margin: 0; } dt { margin-top: .6rem; } dd { margin: 0; }
ul { padding-left: 1.2rem; margin: .3rem 0; }
code { font: .88em ui-monospace, Menlo, Consolas, monospace; }
@media print { body { max-width: none; } article { break-inside: avoid; } }
"""

_HITS_SHOWN = 5
_JUDGED_SHOWN = 8
_TEXT_SHOWN = 400


def as_html(report: Report) -> str:
    """The report as one HTML page without scripts and without anything to load."""
    title = f"{report.dataset} ({report.split})"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(headline(report))}.</p>',
        _table(report),
        _chart(report),
        _differences(report),
        _list("Notices", report.notices),
        _definitions("Conventions", conventions(report)),
        _definitions("Made by", {**report.made_by, "dataset fingerprint": report.fingerprint}),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _table(report: Report) -> str:
    """Measures down and systems across: there are usually more measures, and a phone is higher than wide."""
    best = best_values(report)
    head = "".join(f'<th scope="col">{escape(system)}</th>' for system in report.systems)
    rows = []
    for name in report.measures:
        values = [result.metrics[name] for result in report.systems.values()]
        cells = "".join(
            f'<td class="best">{value:.4f}</td>' if value == best.get(name) else f"<td>{value:.4f}</td>"
            for value in values
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    note = '<p class="soft">The best value of each measure is shaded and bold.</p>' if best else ""
    return (
        '<h2>Measures</h2>\n<div class="wide" tabindex="0" role="region" aria-label="Measures of the systems">'
        f'<table><thead><tr><th scope="col">measure</th>{head}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _chart(report: Report) -> str:
    """Bars of the headline measure with whiskers; in user units as wide as a phone, so text is readable."""
    measure = headline_measure(report)
    width, row, left, right = 380, 46, 6, 330
    main = next(reversed(report.systems))

    def place(value: float) -> float:
        return left + (right - left) * value

    bars = []
    for number, (system, result) in enumerate(report.systems.items()):
        value, (low, high) = result.metrics[measure], interval(report, system)
        top = number * row
        middle = top + 29
        ends = "".join(f"M{place(end):.1f} {middle - 4}v8" for end in (low, high))
        bars.append(
            f'<text x="{left}" y="{top + 15}">{escape(_cut(system, 46))}</text>'
            f'<rect class="{"main" if system == main else "bar"}" x="{left}" y="{top + 21}" '
            f'width="{place(value) - left:.1f}" height="16" rx="2"/>'
            f'<path class="whisker" fill="none" d="M{place(low):.1f} {middle}H{place(high):.1f}{ends}"/>'
            f'<text x="{right + 8}" y="{middle + 5}">{value:.3f}</text>'
        )
    bottom = len(report.systems) * row + 4
    ticks = "".join(
        f'<path class="axis" d="M{place(tick):.1f} 0V{bottom}"/>'
        f'<text class="soft" x="{place(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>'
        for tick in (0.25, 0.5, 0.75, 1)
    )
    label = f"{measure} of {len(report.systems)} systems with 95% intervals"
    return (
        f"<h2>{escape(measure)}</h2>\n"
        f'<figure><svg viewBox="0 0 {width} {bottom + 20}" role="img" aria-label="{escape(label)}">'
        f"{ticks}{''.join(bars)}</svg>"
        f"<figcaption>Whiskers: 95% bootstrap interval over the {len(report.qrels):,} queries. Systems whose "
        "intervals overlap may still differ: the same queries are easy or hard for all.</figcaption></figure>"
    )


def _differences(report: Report) -> str:
    pairs = largest_differences(report)
    if not pairs:
        return ""
    first, *_, last = report.systems
    articles = "\n".join(_difference(report, pair, first, last) for pair in pairs)
    return (
        f"<h2>Where {escape(first)} and {escape(last)} differ most</h2>\n"
        f'<p class="soft">{escape(headline_measure(report))} of single queries; the best {_HITS_SHOWN} hits, '
        f'<span class="hit">✓</span> = judged relevant.</p>\n{articles}'
    )


def _difference(report: Report, pair: Difference, first: str, last: str) -> str:
    grades = report.qrels[pair.query]
    relevant = sorted((name for name, grade in grades.items() if grade > 0), key=lambda name: (-grades[name], name))
    more = f" and {len(relevant) - _JUDGED_SHOWN:,} more" if len(relevant) > _JUDGED_SHOWN else ""
    shown = ", ".join(f"<code>{escape(name)}</code>" for name in relevant[:_JUDGED_SHOWN])
    columns = "".join(
        f"<div><strong>{escape(system)}</strong> {value:.3f}{_hits(report.systems[system], pair.query, grades)}</div>"
        for system, value in ((first, pair.first), (last, pair.last))
    )
    return (
        f"<article><h3>{escape(_cut(report.queries[pair.query], _TEXT_SHOWN))}</h3>"
        f'<p class="soft">query <code>{escape(pair.query)}</code> · {pair.last - pair.first:+.3f}</p>'
        f'<div class="pair">{columns}</div><p class="soft">Relevant: {shown}{more}</p></article>'
    )


def _hits(result: SystemResult, query: str, grades: Mapping[str, int]) -> str:
    ids = result.run[query].ids[:_HITS_SHOWN] if query in result.run else []
    if not ids:
        return '<p class="soft">no hits</p>'
    mark = ' <span class="hit">✓</span>'
    items = (f"<li><code>{escape(name)}</code>{mark if grades.get(name, 0) > 0 else ''}</li>" for name in ids)
    return f"<ol>{''.join(items)}</ol>"


def _list(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>{escape(title)}</h2>\n<ul>{items}</ul>" if items else ""


def _definitions(title: str, entries: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries.items())
    return f"<h2>{escape(title)}</h2>\n<dl>{items}</dl>"


def _cut(text: str, length: int) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= length else plain[: length - 1].rstrip() + "…"
