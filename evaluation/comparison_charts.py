"""Charts of a comparison as SVG inside a web page, which follow its colours and are as wide as a phone."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from retrieval.web_page import ticks, whisker

STYLE = """
:root { --bad: #b3402a; --loss: #d9826f; --gain: #6fae7e; }
@media (prefers-color-scheme: dark) { :root { --bad: #f08a72; --loss: #a85845; --gain: #3f8a55; } }
svg .gain { fill: var(--gain); } svg .loss { fill: var(--loss); } svg .zero { stroke: var(--soft); }
svg .over { paint-order: stroke; stroke: var(--page); stroke-width: 4px; stroke-linejoin: round; }
svg .dot { fill: var(--main); } svg .unclear { fill: var(--soft); }
svg .better { fill: var(--good); } svg .worse { fill: var(--bad); }
svg .front { fill: none; stroke: var(--bar); stroke-width: 1.5; stroke-dasharray: 4 3; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.1rem 1.4rem; }
.charts figure { max-width: none; } .charts h3 { font-size: .95rem; margin: 0 0 .2rem; font-weight: 600; }
"""

_WIDTH = 380
_MOST_COLUMNS = 400


class Interval(NamedTuple):
    """One line of the chart of differences."""

    label: str
    difference: float
    ends: tuple[float, float] | None
    """None: the difference of one query, which has no interval."""
    verdict: str
    """`better`, `worse` or `unclear`: the colour."""


class Point(NamedTuple):
    """One system in a chart of effectiveness and cost."""

    name: str
    cost: float
    """Above 0; less is better."""
    value: float
    """More is better."""


def intervals_chart(name: str, lines: Sequence[Interval]) -> str:
    """Differences from 0 with their intervals, one under the other.

    Args:
        name: What is drawn, for those who cannot see it.
        lines: At least one.
    """
    row, left, right = 38, 12, 318
    reached = [0.0, *(one.difference for one in lines), *(end for one in lines for end in one.ends or ())]
    low, high = min(reached), max(reached)
    if low == high:
        low, high = -0.01, 0.01
    room = 0.03 * (high - low)
    low, high = low - room, high + room

    def across(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    bottom = row * len(lines) + 4
    parts = [
        f'<path class="{"zero" if abs(tick) < 1e-12 else "axis"}" d="M{across(tick):.1f} 0V{bottom}"/>'
        f'<text class="soft" x="{across(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{_signed(tick)}</text>'
        for tick in ticks(low, high, 5)
    ]
    for number, one in enumerate(lines):
        top = number * row
        middle = top + 26
        parts.append(
            f'<text class="over" x="{left}" y="{top + 14}">{escape(_cut(one.label, 50))}</text>'
            f"{whisker(across, one.ends, middle)}"
            f'<circle class="{one.verdict}" cx="{across(one.difference):.1f}" cy="{middle}" r="4.5">'
            f"<title>{escape(one.label)}: {one.difference:+.4f}</title></circle>"
            f'<text x="{right + 8}" y="{middle + 5}">{one.difference:+.3f}</text>'
        )
    return _svg(_WIDTH, bottom + 20, name, parts)


def differences_chart(name: str, differences: Sequence[float]) -> str:
    """The differences of single queries as bars, sorted, the largest gain first.

    Args:
        name: What is drawn, for those who cannot see it.
        differences: (q,) at least one; of more than 400, every so many-th is drawn.
    """
    width, left, right, top, bottom = 340, 40, 334, 8, 118
    ordered = sorted(differences, reverse=True)
    if len(ordered) > _MOST_COLUMNS:
        ordered = [ordered[int((column + 0.5) * len(ordered) / _MOST_COLUMNS)] for column in range(_MOST_COLUMNS)]
    high = max(0.0, ordered[0])
    low = min(0.0, ordered[-1])
    if low == high:
        low, high = -1.0, 1.0

    def up(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = [
        f'<path class="axis" d="M{left} {up(tick):.1f}H{right}"/>'
        f'<text class="soft" x="{left - 5}" y="{up(tick) + 4:.1f}" text-anchor="end">{_signed(tick)}</text>'
        for tick in ticks(low, high, 4)
    ]
    step = (right - left) / len(ordered)
    for kind, chosen in (("gain", [one > 0 for one in ordered]), ("loss", [one < 0 for one in ordered])):
        rows = [row for row, wanted in enumerate(chosen) if wanted]
        if rows:
            path = f"M{left + step * rows[0]:.1f} {up(0):.1f}"
            path += "".join(f"V{up(ordered[row]):.1f}H{left + step * (row + 1):.1f}" for row in rows)
            parts.append(f'<path class="{kind}" d="{path}V{up(0):.1f}Z"/>')
    parts.append(f'<path class="zero" d="M{left} {up(0):.1f}H{right}"/>')
    return _svg(width, bottom + 6, name, parts)


def pareto_chart(name: str, axis: str, points: Sequence[Point]) -> str:
    """Effectiveness against cost; a broken line joins those that no other system beats in both.

    Args:
        name: What is drawn, for those who cannot see it.
        axis: What the cost is, with its unit.
        points: At least one.
    """
    left, right, top, bottom = 46, 366, 12, 178
    costs = [math.log10(one.cost) for one in points]
    first, last = min(costs) - 0.15, max(costs) + 0.15
    low, high = min(one.value for one in points), max(one.value for one in points)
    room = 0.12 * (high - low) or 0.01
    low, high = low - room, high + room

    def across(cost: float) -> float:
        return left + (right - left) * (math.log10(cost) - first) / (last - first)

    def up(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = [
        f'<path class="axis" d="M{left} {up(tick):.1f}H{right}"/>'
        f'<text class="soft" x="{left - 5}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:.3g}</text>'
        for tick in ticks(low, high, 4)
    ]
    parts += [
        f'<path class="axis" d="M{across(tick):.1f} {top}V{bottom}"/>'
        f'<text class="soft" x="{across(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:,g}</text>'
        for tick in _round_numbers(10**first, 10**last)
    ]
    parts.append(f'<text class="soft" x="{right}" y="{bottom + 33}" text-anchor="end">{escape(axis)}</text>')
    best = front(points)
    corners = "L".join(f"{across(one.cost):.1f} {up(one.value):.1f}" for one in best)
    parts.append(f'<path class="front" d="M{corners}"/>' if len(best) > 1 else "")
    for one in points:
        x, y = across(one.cost), up(one.value)
        inwards = x > (left + right) / 2
        place = f'x="{x - 9:.1f}" text-anchor="end"' if inwards else f'x="{x + 9:.1f}"'
        parts.append(
            f'<circle class="{"dot" if one in best else "unclear"}" cx="{x:.1f}" cy="{y:.1f}" r="5">'
            f"<title>{escape(one.name)}: {one.value:.4f} at {one.cost:.3g}</title></circle>"
            f'<text class="over" {place} y="{y + (16 if inwards and one in best else -8):.1f}">'
            f"{escape(_cut(one.name, 26))}</text>"
        )
    return _svg(_WIDTH, bottom + 40, name, parts)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one equals or beats in both value and cost, from cheap to dear."""
    found: list[Point] = []
    for one in sorted(points, key=lambda point: (point.cost, -point.value)):
        if not found or one.value > found[-1].value:
            found.append(one)
    return found


def _round_numbers(low: float, high: float) -> list[float]:
    """Powers of ten inside a range, or 1, 2 and 5 times them where there are few."""
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    plain = [one for one in powers if low <= one <= high]
    if len(plain) > 2:
        return plain
    return [factor * one for one in powers for factor in (1, 2, 5) if low <= factor * one <= high]


def _svg(width: int, height: int, name: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)}">{"".join(parts)}</svg>'


def _signed(value: float) -> str:
    return "0" if abs(value) < 1e-12 else f"{value:+.3g}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
