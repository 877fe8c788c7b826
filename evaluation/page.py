"""The report as one self-contained web page, readable on a phone and in the dark."""

from collections.abc import Iterable, Mapping
from html import escape

from evaluation.anchors import published, published_of
from evaluation.presentation import (
    Difference,
    best_values,
    conventions,
    document_texts,
    headline,
    headline_measure,
    interval,
    largest_differences,
)
from evaluation.systems import Report, SystemResult
from retrieval.web_page import definitions, web_page, whisker

_HITS_SHOWN = 5
_JUDGED_SHOWN = 8
_TEXT_SHOWN = 400
_DOCUMENT_SHOWN = 120


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
        _published(report),
        definitions("Conventions", conventions(report)),
        definitions("Made by", {**report.made_by, "dataset fingerprint": report.fingerprint}),
    ]
    body = "\n".join(part for part in parts if part)
    return web_page(title, body)


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
        value = result.metrics[measure]
        top = number * row
        middle = top + 29
        bars.append(
            f'<text x="{left}" y="{top + 15}">{escape(_cut(system, 46))}</text>'
            f'<rect class="{"main" if system == main else "bar"}" x="{left}" y="{top + 21}" '
            f'width="{place(value) - left:.1f}" height="16" rx="2"/>'
            f"{whisker(place, interval(report, system), middle)}"
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


def _published(report: Report) -> str:
    """Published figures beside the main system's, or nothing."""
    found = published(report)
    if not found:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(one.anchor.system)}</th><td>{escape(one.anchor.measure)}</td>'
        f"<td>{one.anchor.value:.4f}</td><td>{one.yours - one.anchor.value:+.4f}</td>"
        f"<td>{escape(one.same_convention)}</td><td>{escape(one.anchor.source)}</td></tr>\n"
        for one in found
    )
    names = ("system", "measure", "published", "yours minus it", "same convention?", "source")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        f'<h2>Published figures</h2>\n<p class="soft">{escape(published_of(report))}</p>\n'
        '<div class="wide" tabindex="0" role="region" aria-label="Published figures">'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )


def _differences(report: Report) -> str:
    pairs = largest_differences(report)
    if not pairs:
        return ""
    first, *_, last = report.systems
    shown = [name for pair in pairs for name in _documents_of(report, pair, first, last)]
    texts, failure = document_texts(report, shown)
    articles = "\n".join(_difference(report, pair, first, last, texts) for pair in pairs)
    said = f'<p class="soft">Texts of documents are left out: {escape(failure)}.</p>\n' if failure else ""
    return (
        f"<h2>Where {escape(first)} and {escape(last)} differ most</h2>\n"
        f'<p class="soft">{escape(headline_measure(report))} of single queries; the best {_HITS_SHOWN} hits, '
        f'<span class="hit">✓</span> = judged relevant.</p>\n{said}{articles}'
    )


def _documents_of(report: Report, pair: Difference, *systems: str) -> list[str]:
    """The documents that the article of a query shows."""
    hits = [name for system in systems for name in _first_hits(report.systems[system], pair.query)]
    return hits + _relevant(report.qrels[pair.query])[:_JUDGED_SHOWN]


def _relevant(grades: Mapping[str, int]) -> list[str]:
    return sorted((name for name, grade in grades.items() if grade > 0), key=lambda name: (-grades[name], name))


def _first_hits(result: SystemResult, query: str) -> list[str]:
    return result.run[query].ids[:_HITS_SHOWN] if query in result.run else []


def _document(name: str, texts: Mapping[str, str]) -> str:
    """A document's id, and the beginning of its title and text where they are known."""
    text = f' <span class="soft">{escape(_cut(texts[name], _DOCUMENT_SHOWN))}</span>' if texts.get(name) else ""
    return f"<code>{escape(name)}</code>{text}"


def _difference(report: Report, pair: Difference, first: str, last: str, texts: Mapping[str, str]) -> str:
    grades = report.qrels[pair.query]
    relevant = _relevant(grades)
    more = f" and {len(relevant) - _JUDGED_SHOWN:,} more" if len(relevant) > _JUDGED_SHOWN else ""
    shown = ", ".join(_document(name, texts) for name in relevant[:_JUDGED_SHOWN])
    columns = "".join(
        f"<div><strong>{escape(system)}</strong> {value:.3f}"
        f"{_hits(report.systems[system], pair.query, grades, texts)}</div>"
        for system, value in ((first, pair.first), (last, pair.last))
    )
    return (
        f"<article><h3>{escape(_cut(report.queries[pair.query], _TEXT_SHOWN))}</h3>"
        f'<p class="soft">query <code>{escape(pair.query)}</code> · {pair.last - pair.first:+.3f}</p>'
        f'<div class="pair">{columns}</div><p class="soft">Relevant: {shown}{more}</p></article>'
    )


def _hits(result: SystemResult, query: str, grades: Mapping[str, int], texts: Mapping[str, str]) -> str:
    ids = _first_hits(result, query)
    if not ids:
        return '<p class="soft">no hits</p>'
    mark = '<span class="hit">✓</span> '
    items = (f"<li>{mark if grades.get(name, 0) > 0 else ''}{_document(name, texts)}</li>" for name in ids)
    return f"<ol>{''.join(items)}</ol>"


def _list(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>{escape(title)}</h2>\n<ul>{items}</ul>" if items else ""


def _cut(text: str, length: int) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= length else plain[: length - 1].rstrip() + "…"
