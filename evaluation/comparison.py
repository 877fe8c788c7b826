"""Systems compared over test collections: differences from a baseline, and whether they may be chance."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.presentation import HEADLINE_MEASURE
from evaluation.rankings import Ranking
from evaluation.significance import (
    SAMPLES,
    Interval,
    Paired,
    Suite,
    benjamini_hochberg,
    bootstrap_interval,
    holm,
    paired,
    paired_suite,
    suite_interval,
)
from evaluation.systems import Report
from indexes.errors import InputError

if TYPE_CHECKING:
    from evaluation.cases import Case
    from evaluation.costs import Cost
    from evaluation.leakage import Leak
    from evaluation.slices import Slice

LEVEL = 0.05
CORRECTIONS = {"holm": holm, "bh": benjamini_hochberg}
HOLE = 10
"""Hits of a query among which those without a judgement are counted."""


class Mean(NamedTuple):
    """A mean and the bootstrap interval around it."""

    value: float
    interval: Interval | None
    """None: one query, or a set of one query, has no spread."""


class Tested(NamedTuple):
    """A system beside the baseline: on one set or, with `dataset` None, by the mean over all sets."""

    system: str
    dataset: str | None
    result: Paired | Suite
    adjusted: float
    """p of the randomisation test, corrected for all comparisons of the report."""

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `unclear`."""
        if self.adjusted >= LEVEL:
            return "unclear"
        return "better" if self.result.difference > 0 else "worse"


class Published(NamedTuple):
    """A figure that others published; it has no values of single queries, so that nothing can be tested."""

    system: str
    dataset: str
    measure: str
    value: float
    source: str
    convention: str


@dataclass(frozen=True)
class Comparison:
    """Systems measured on the same sets, and every system beside the baseline."""

    measure: str
    """What is tested; all measures are in `reports`."""
    baseline: str
    reports: dict[str, Report]
    """A name of each set to its report, whose systems are the same ones in the same order."""
    means: dict[str, dict[str, Mean]] = field(repr=False)
    """Set to system to the mean of the measure."""
    suite: dict[str, Mean] = field(repr=False)
    """System to the mean of the sets' means."""
    tests: tuple[Tested, ...] = field(repr=False)
    holes: dict[str, dict[str, float]] = field(repr=False)
    """Set to system to the share of its first ten hits that have no judgement."""
    correction: str
    over_sets: bool
    samples: int
    seed: int
    slices: dict[str, tuple["Slice", ...]] = field(default_factory=dict, repr=False)
    cases: dict[str, tuple["Case", ...]] = field(default_factory=dict, repr=False)
    costs: dict[str, "Cost"] = field(default_factory=dict, repr=False)
    published: tuple[Published, ...] = field(default=(), repr=False)
    leaks: dict[str, "Leak"] = field(default_factory=dict, repr=False)
    notices: tuple[str, ...] = ()
    made_by: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def systems(self) -> tuple[str, ...]:
        """All systems, the baseline among them, in the order given."""
        return tuple(next(iter(self.reports.values())).systems)

    @property
    def others(self) -> tuple[str, ...]:
        """All systems but the baseline."""
        return tuple(system for system in self.systems if system != self.baseline)

    def tested(self, system: str, dataset: str | None) -> Tested:
        """The comparison of a system with the baseline on one set, or (None) over all."""
        return next(one for one in self.tests if (one.system, one.dataset) == (system, dataset))

    def values(self, dataset: str, system: str) -> list[float]:
        """(q,) the measure of each query of a set, in the order of its qrels."""
        report = self.reports[dataset]
        per_query = report.systems[system].per_query
        return [per_query[query][self.measure] for query in report.qrels]

    def with_more(self, **found: Any) -> "Comparison":
        """The same comparison with more that was found out, such as `slices`."""
        return dataclasses.replace(self, **found)


def compare(
    reports: Sequence[Report],
    *,
    baseline: str | None = None,
    measure: str | None = None,
    correction: str = "holm",
    over_sets: bool = False,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare systems with a baseline on every set and over all sets.

    Each difference is tested by a paired randomisation test; the p-values of all systems on all sets, and over all
    sets where there are several, are corrected together.

    Args:
        reports: One for each set, from `evaluate`, `evaluate_run` or `merge`, all with the same systems.
        baseline: The system that the others are compared with; None: the first.
        measure: What is tested; None: nDCG@10, or the first one measured.
        correction: `holm`: of all comparisons, the chance that any errs; `bh`: the share of those found that errs.
        over_sets: Whether the interval of the mean over sets also draws the sets again.
        samples: Of tests and intervals.
        seed: The same seed gives the same numbers.

    Raises:
        InputError: No reports, systems that are not measured everywhere or not by the same measures, an unknown
            baseline, measure or correction.
    """
    named = _named(reports)
    systems = _same_systems(named)
    chosen = _choose("baseline", baseline, systems)
    measures = next(iter(named.values())).measures
    default = HEADLINE_MEASURE if HEADLINE_MEASURE in measures else measures[0]
    tested = _choose("measure", measure or default, measures)
    _choose("correction", correction, tuple(CORRECTIONS))
    values = {
        system: {
            name: [report.systems[system].per_query[query][tested] for query in report.qrels]
            for name, report in named.items()
        }
        for system in systems
    }
    draw = {"samples": samples, "seed": seed}
    found: list[tuple[str, str | None, Paired | Suite]] = []
    for system in systems:
        if system != chosen:
            found += [(system, name, paired(values[chosen][name], values[system][name], **draw)) for name in named]
            if len(named) > 1:
                one = paired_suite(values[chosen], values[system], over_sets=over_sets, **draw)
                found.append((system, None, one))
    adjusted = CORRECTIONS[correction]([result.p_randomisation for _, _, result in found])
    return Comparison(
        measure=tested,
        baseline=chosen,
        reports=named,
        means={
            name: {
                system: Mean(
                    report.systems[system].metrics[tested], bootstrap_interval(values[system][name], seed=seed)
                )
                for system in systems
            }
            for name, report in named.items()
        },
        suite={system: Mean(*suite_interval(values[system], over_sets=over_sets, seed=seed)) for system in systems},
        tests=tuple(Tested(*one, p) for one, p in zip(found, adjusted, strict=True)),
        holes={
            name: {system: hole(report.systems[system].run, report.qrels) for system in systems}
            for name, report in named.items()
        },
        correction=correction,
        over_sets=over_sets,
        samples=samples,
        seed=seed,
        notices=_notices(named),
        made_by=_made_by(named),
    )


def hole(run: Mapping[str, Ranking], qrels: Mapping[str, Mapping[str, int]], k: int = HOLE) -> float:
    """The share of the first k hits of all queries of the qrels that have no judgement for their query.

    The greater it is, the more a low value may be for want of judgements: documents without one count as not relevant.
    It is 0 where there are no hits.
    """
    hits = [(query, document) for query in qrels if query in run for document in run[query].ids[:k]]
    return sum(document not in qrels[query] for query, document in hits) / len(hits) if hits else 0.0


def _notices(reports: Mapping[str, Report]) -> tuple[str, ...]:
    said = [f"{name}: {notice}" for name, report in reports.items() for notice in report.notices]
    for name, report in reports.items():
        if len(report.qrels) == 1:
            mean = ", nor has the mean over sets" if len(reports) > 1 else ""
            said.append(f"{name}: one query says nothing about others; its value has no interval{mean}.")
    return tuple(said)


def _named(reports: Iterable[Report]) -> dict[str, Report]:
    """Name each set by its dataset, and by its split and fingerprint where that does not tell sets apart."""
    given = list(reports)
    if not given:
        raise InputError("no reports to compare; expected one for each dataset")
    names = [report.dataset for report in given]
    longer = [f"{report.dataset} ({report.split})" for report in given]
    if len(set(names)) < len(names):
        names = longer
    if len(set(names)) < len(names):
        names = [f"{name} {report.fingerprint[:8]}" for name, report in zip(longer, given, strict=True)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"dataset {twice} is given twice; leave one out")
    return dict(zip(names, given, strict=True))


def _same_systems(reports: Mapping[str, Report]) -> tuple[str, ...]:
    (first_name, first), *others = reports.items()
    for name, report in others:
        for what, ours, theirs in (
            ("systems", tuple(first.systems), tuple(report.systems)),
            ("measures", first.measures, report.measures),
        ):
            if ours != theirs:
                raise InputError(
                    f"{first_name} and {name} cannot be compared: {what} {', '.join(ours)} ≠ {', '.join(theirs)}; "
                    "measure every system on every dataset by the same measures"
                )
    return tuple(first.systems)


def _choose(what: str, name: str | None, known: Sequence[str]) -> str:
    if name is None:
        return known[0]
    if name not in known:
        raise InputError(f"unknown {what} {name!r}; there are {', '.join(known)}")
    return name


def _made_by(reports: Mapping[str, Report]) -> dict[str, str]:
    """What made the runs: what is the same for all sets once, the rest with the set's name."""
    every = [report.made_by for report in reports.values()]
    same = {key: value for key, value in every[0].items() if all(one.get(key) == value for one in every)}
    rest = {
        f"{name}: {key}": value
        for name, report in reports.items()
        for key, value in report.made_by.items()
        if key not in same
    }
    return same | rest
