"""The plot of what tuning measured: recall against time, one line a factory."""

from pathlib import Path
from typing import Any

from indexes.operating_points import Point
from indexes.tuned import Tuned

_STYLE = {
    "svg.hashsalt": "retrokit",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def plot(tuned: Tuned, path: Path) -> None:
    """Draw all points to an SVG file: the front is filled and joined by lines, the chosen point ringed."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    goal, front, chosen = tuned.goal, set(tuned.front), tuned.chosen
    with rc_context(_STYLE):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        for number, factory in enumerate(dict.fromkeys(one.factory for one in tuned.points)):
            here = sorted((one for one in tuned.points if one.factory == factory), key=lambda one: one.p95_ms)
            colour = f"C{number}"
            axes.scatter(*_places(here), s=22, facecolors="none", edgecolors=colour, alpha=0.5)
            label = f"{factory}, {here[0].bytes / 1e6:,.3g} MB"
            axes.plot(*_places([one for one in here if one in front]), "o-", color=colour, markersize=5, label=label)
        limits: dict[str, Any] = {"color": "0.5", "linestyle": ":", "linewidth": 1}
        axes.axhline(goal.recall, **limits)
        if goal.p95_ms is not None:
            axes.axvline(goal.p95_ms, **limits)
        axes.scatter(*_places([chosen]), s=170, facecolors="none", edgecolors="black", linewidths=1.4, zorder=3)
        axes.annotate(chosen.name, (chosen.p95_ms, chosen.recall), xytext=(10, -16), textcoords="offset points")
        least = min(goal.recall, *(one.recall for one in tuned.points))
        axes.set_xscale("log")
        axes.set_ylim(max(0.0, least - 0.02), 1.005)
        axes.set_xlabel(f"p95 of calls of {goal.batch} {'query' if goal.batch == 1 else 'queries'}, ms")
        axes.set_ylabel(f"recall@{goal.k}")
        axes.set_title(f"{tuned.documents:,} documents, {tuned.queries:,} queries", loc="left")
        axes.legend(frameon=False, loc="lower right")
        figure.savefig(path, format="svg", metadata={"Date": None})


def _places(points: list[Point]) -> tuple[list[float], list[float]]:
    return [one.p95_ms for one in points], [one.recall for one in points]
