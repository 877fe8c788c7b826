"""Curves as SVG inside a web page, which follow its colours."""

import itertools
import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from retrieval.web_page import ticks

STYLE = """
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(17.5rem, 1fr)); gap: 1.1rem 1.4rem; }
.curves figure { max-width: none; }
.curves h3 { font-size: .95rem; margin: 0 0 .2rem; font-weight: 600; }
svg .curve { fill: none; stroke: var(--main); stroke-width: 1.6; stroke-linejoin: round; }
svg .band { fill: var(--bar); opacity: .35; } svg .point { fill: var(--main); }
dl { columns: 17rem 3; } dt { break-after: avoid; }
svg .kept { fill: none; stroke: var(--good); stroke-width: 2; }
"""

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 340, 170, 56, 316, 10, 144
_MOST_POINTS = 240


class Bin(NamedTuple):
    """Neighbouring values as one: their mean, least and greatest, at the mean of their steps."""

    step: float
    mean: float
    least: float
    greatest: float


def binned(steps: Sequence[int], values: Sequence[float], most: int = _MOST_POINTS) -> list[Bin]:
    """Put n values, one a step, into at most so many bins of as many values each, within one."""
    count = min(len(values), most)
    edges = [len(values) * number // count for number in range(count + 1)] if count else []
    parts = [(steps[start:end], values[start:end]) for start, end in itertools.pairwise(edges)]
    return [Bin(math.fsum(at) / len(at), math.fsum(of) / len(of), min(of), max(of)) for at, of in parts]


def curve(
    name: str, steps: Sequence[int], values: Sequence[float], *, points: bool = False, kept: int | None = None
) -> str:
    """One curve over steps as SVG: of many values the mean of neighbours, within their least and greatest.

    Args:
        name: What is drawn, for those who cannot see it.
        steps: (n) rising, n at least 1.
        values: (n) finite.
        points: Mark each value, which a pointer over it shows.
        kept: Ring the value of this step.
    """
    bins = binned(steps, values)
    low, high = min(one.least for one in bins), max(one.greatest for one in bins)
    if low == high:
        low, high = low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
    first, last = (0.0, steps[-1] or 1.0)

    def across(step: float) -> str:
        return f"{_LEFT + (_RIGHT - _LEFT) * (step - first) / (last - first):.1f}"

    def up(value: float) -> str:
        return f"{_BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low):.1f}"

    parts = [
        f'<path class="axis" d="M{_LEFT} {up(tick)}H{_RIGHT}"/>'
        f'<text class="soft" x="{_LEFT - 6}" y="{float(up(tick)) + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
        for tick in ticks(low, high)
    ]
    parts += [
        f'<text class="soft" x="{across(tick)}" y="{_BOTTOM + 19}" text-anchor="middle">{tick:,.0f}</text>'
        for tick in ticks(first, last, 3)
        if tick == round(tick)
    ]
    if any(one.least < one.greatest for one in bins):
        upper = "L".join(f"{across(one.step)} {up(one.greatest)}" for one in bins)
        lower = "L".join(f"{across(one.step)} {up(one.least)}" for one in reversed(bins))
        parts.append(f'<path class="band" d="M{upper}L{lower}Z"/>')
    parts.append(f'<path class="curve" d="M{"L".join(f"{across(one.step)} {up(one.mean)}" for one in bins)}"/>')
    if points or len(values) == 1:
        parts += [
            f'<circle class="point" cx="{across(step)}" cy="{up(value)}" r="3.2">'
            f"<title>step {step:,}: {value:.4g}</title></circle>"
            for step, value in zip(steps, values, strict=True)
        ]
    if kept is not None and kept in steps:
        at = values[steps.index(kept)]
        parts.append(f'<circle class="kept" cx="{across(kept)}" cy="{up(at)}" r="6.5"/>')
    label = f"{name}: {values[0]:.4g} at step {steps[0]:,}, {values[-1]:.4g} at step {steps[-1]:,}"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
