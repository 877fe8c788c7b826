"""What tuning found: the table and the plot that an index folder keeps, and their explanation."""

import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from indexes.manifest import read_json, write_json
from indexes.operating_points import Goal, Point, pareto

_GROWN = 0.1


class Tuned(NamedTuple):
    """What was measured, and what was chosen."""

    goal: Goal
    chosen: Point
    points: list[Point]
    """All that were measured over all documents."""
    queries: int
    """How many the figures are means over."""
    source: str
    """Where the queries are from."""
    documents: int
    """How many there were."""
    processor: str
    seconds: float
    """What it took."""
    segment: str = ""
    """The name of the segment that was measured."""

    @property
    def front(self) -> list[Point]:
        """The points than which no other is better in everything."""
        return pareto(self.points)

    @classmethod
    def open(cls, path: Path) -> "Tuned":
        """Read what `save` wrote."""
        record = read_json(path)
        record["points"] = [Point.of_record(one) for one in record["points"]]
        return cls(**{**record, "goal": Goal(**record["goal"]), "chosen": Point.of_record(record["chosen"])})

    def save(self, path: Path) -> None:
        """Write all of it as JSON."""
        said = {**self._asdict(), "goal": self.goal._asdict(), "chosen": self.chosen.record()}
        write_json(path, {**said, "points": [one.record() for one in self.points]})

    def explain(self, documents: int, segments: Mapping[str, int]) -> str:
        """Why this point, what it was measured on, and what has changed since; some lines.

        Args:
            documents: How many there are now.
            segments: The present segments and how many documents each has, deleted ones not counted.
        """
        return "\n".join([*self._measured(), *self._since(documents, segments)])

    def _measured(self) -> Iterator[str]:
        one, goal = self.chosen, self.goal
        wanted = f"recall@{goal.k} ≥ {goal.recall:g}"
        wanted += "" if goal.p95_ms is None else f", p95 ≤ {goal.p95_ms:g} ms"
        wanted += "" if goal.memory_gb is None else f", memory ≤ {goal.memory_gb:g} GB"
        factories = len({point.factory for point in self.points})
        calls = f"calls of {goal.batch} {'query' if goal.batch == 1 else 'queries'}"
        by = "" if goal.threads is None else f" by {goal.threads} threads"
        yield f"{one.name}: the fastest of {len(self.points)} points of {factories} factories that meet {wanted}"
        yield (
            f"recall@{goal.k} {one.recall:.4f}, at least {one.least_recall:.4f} with 95% confidence, "
            f"over {self.queries:,} queries ({self.source}) and {self.documents:,} documents"
        )
        yield (
            f"{calls}{by}: p50 {one.p50_ms:.3g} ms, p95 {one.p95_ms:.3g} ms, {one.queries_per_s:,.0f} queries/s; "
            f"{one.bytes / 1e9:.3g} GB searched; on {self.processor}"
        )

    def _since(self, documents: int, segments: Mapping[str, int]) -> Iterator[str]:
        if self.segment not in segments:
            yield "the index was compacted since: its recall may have moved a little; tune again to be certain"
        elif documents > (1 + _GROWN) * self.documents:
            yield f"it has {documents:,} documents now, over 10% more: tune again"
        elif len(segments) > 1:
            yield f"{documents - segments[self.segment]:,} documents were added since"
        if (gone := self.documents - segments.get(self.segment, self.documents)) > 0:
            yield f"{gone:,} documents were deleted since"
        if processor() != self.processor:
            yield f"times were measured on another processor than this one ({processor()}): tune again for them"


def processor() -> str:
    """The name of this machine's processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
