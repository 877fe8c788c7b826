"""Depths: how many hits of a query runs have, and what is said where a measure reads more of one than of another."""

from collections.abc import Iterable, Mapping

from evaluation.measures import WHOLE, parse_measures
from evaluation.rankings import Ranking
from evaluation.run_table import RunTable, longest


def first_hits(run: Mapping[str, Ranking], k: int) -> Mapping[str, Ranking]:
    """A run with at most k hits of each query."""
    if isinstance(run, RunTable):
        return run.first(k)
    return {query: Ranking(ranking.ids[:k], ranking.scores[:k]) for query, ranking in run.items()}


def cut_lines(name: str, run: Mapping[str, Ranking], k: int) -> list[str]:
    """What to say of a run that has more hits than are read."""
    deepest = longest(run)
    return [f"a query of run {name!r} has up to {deepest:,} hits; the first {k:,} are read."] if deepest > k else []


def shallow_lines(
    name: str, run: Mapping[str, Ranking], measures: Iterable[str], documents: int | None = None
) -> list[str]:
    """What to say of a run that ends before the cut-off of a measure: it would reach more if it went on.

    Args:
        name: The run's.
        run: The run.
        measures: Names such as `Recall@100`.
        documents: How many there are; a run of them all has no more to give. None: not known.
    """
    depth = longest(run)
    beyond = [one.name for one in parse_measures(measures) if depth < one.k < WHOLE]
    if not beyond or (documents is not None and depth >= documents):
        return []
    hits = f"{depth:,} {'hit' if depth == 1 else 'hits'}"
    return [f"no query of run {name!r} has more than {hits}: {', '.join(beyond)} can count no others."]


def unequal_lines(runs: Mapping[str, Mapping[str, Ranking]], measures: Iterable[str]) -> list[str]:
    """What to say of runs of different depth side by side, under measures that read all hits."""
    depths = {name: longest(run) for name, run in runs.items()}
    whole = [one.name for one in parse_measures(measures) if one.k == WHOLE]
    if not whole or len(set(depths.values())) < 2:
        return []
    said = ", ".join(f"{depth:,} of {name!r}" for name, depth in depths.items())
    reads = "reads" if len(whole) == 1 else "read"
    return [f"{', '.join(whole)} {reads} all hits of a query, which are at most {said}."]
