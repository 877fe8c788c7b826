"""Web pages of one file, readable on a phone and in the dark, without scripts and without anything to load."""

import math
from collections.abc import Callable, Mapping
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0; --page: #ffffff;
  --card: #f5f7f9; --bar: #8fb4dd; --main: #1f6fc2; --best: #e3f0e4; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4af; --line: #363d46; --page: #14181d;
  --card: #1d2229; --bar: #3f5f84; --main: #63a8f0; --best: #1d3a24; --good: #57c46f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.25rem 1rem 4rem; background: var(--page); color: var(--ink);
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


def web_page(title: str, body: str, style: str = "") -> str:
    """A whole page in the common style.

    Args:
        title: A text.
        body: HTML, whose texts are escaped.
        style: CSS of this page alone.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def definitions(title: str, entries: Mapping[str, str]) -> str:
    """A list of names and what they are, under a heading."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries.items())
    return f"<h2>{escape(title)}</h2>\n<dl>{items}</dl>"


def whisker(place: Callable[[float], float], ends: tuple[float, float] | None, middle: float) -> str:
    """An interval as an SVG path: a line with a stop at each end; nothing where there is none.

    Args:
        place: From a value to its x.
        ends: The interval.
        middle: The y of the line.
    """
    if ends is None:
        return ""
    low, high = map(place, ends)
    stops = "".join(f"M{end:.1f} {middle - 4}v8" for end in (low, high))
    return f'<path class="whisker" fill="none" d="M{low:.1f} {middle}H{high:.1f}{stops}"/>'


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high, both included in the range: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]
