"""The line-up of a comparison: systems by their specs, each measured on every test set, and published figures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.comparison import Published
from evaluation.depths import cut_lines, first_hits
from evaluation.kept_runs import keep_run, kept_run, run_key
from evaluation.measures import DEFAULT_MEASURES
from evaluation.opening import name_of, open_system
from evaluation.rankings import Ranking
from evaluation.runs import read_run
from evaluation.systems import MODES, Report, evaluate, evaluate_run, merge
from evaluation.testsets import TestSet
from indexes.errors import InputError
from retrieval.cache import cache_home
from retrieval.console import note, progress

ANCHOR = "anchor:"
_PLACES = ("{dataset}", "{split}")
_NO_NAME = ("/", ":", "+", "\\", "{")


class System(NamedTuple):
    """One system as the command line names it."""

    name: str | None
    """None: as it calls itself."""
    spec: str

    def on(self, testset: TestSet) -> str:
        """The spec for one test set: `{dataset}` and `{split}` are replaced by its own."""
        return self.spec.replace("{dataset}", testset.name).replace("{split}", testset.split)


class Measured(NamedTuple):
    """What a line-up gave."""

    reports: list[Report]
    """One for each test set, all with the same systems."""
    published: tuple[Published, ...]
    opened: dict[str, tuple[System, str]]
    """System to what it was opened by and its mode; run files are not among them."""


def parse_system(text: str) -> System:
    """Read `[NAME=]SPEC`; a path that is there is a spec, even with a `=` in it.

    Raises:
        InputError: There is no spec.
    """
    name, equals, spec = text.partition("=")
    named = bool(equals) and bool(name.strip()) and not any(one in name for one in _NO_NAME) and not Path(text).exists()
    system = System(name.strip(), spec.strip()) if named else System(None, text.strip())
    if not system.spec:
        raise InputError(f"system {text!r} has no spec; expected [NAME=]SPEC, such as bm25 or tuned=path/to/model")
    return system


def measure_systems(
    systems: Sequence[System | str],
    testsets: Sequence[TestSet],
    *,
    measures: Iterable[str] = DEFAULT_MEASURES,
    k: int = 1000,
    modes: Sequence[str] = (),
    cache: Path | None = None,
    baseline: str | None = None,
) -> Measured:
    """Measure every system on every test set; what was finished before, by fingerprints, is not done again.

    Args:
        systems: What `open_system` opens, run files, or `anchor:NAME`; `{dataset}` in it stands for a test set's name.
        testsets: From `load_dataset`.
        measures: Names such as `nDCG@10`.
        k: Hits for each query.
        modes: Of systems that can be searched in several; none: all they have, each as a system of its own.
        cache: Where vectors, indexes and runs are kept; None: `~/.cache/retrokit`.
        baseline: A name that one of the systems must turn out to have; that none can is seen before any work.

    Raises:
        InputError: A system cannot be opened or searched, two have one name, there is nothing to measure, or no system
            has the baseline's name.
    """
    given = [parse_system(one) if isinstance(one, str) else one for one in systems]
    real = [one for one in given if not one.spec.startswith(ANCHOR)]
    if not real or not testsets:
        raise InputError("nothing to measure; expected at least one system that is no anchor, and one dataset")
    _check_baseline(baseline, real)
    if len({testset.fingerprint for testset in testsets}) < len(testsets):
        raise InputError("a dataset is given twice (same corpus, queries and judgements); leave one out")
    wanted = list(measures)
    published = [one for system in given if system.spec.startswith(ANCHOR) for one in _published(system, testsets)]
    reports: list[dict[str, Report]] = [{} for _ in testsets]
    opened: dict[str, tuple[System, str]] = {}
    for system in real:
        name = system.name
        for testset, found in zip(testsets, reports, strict=True):
            if Path(system.on(testset)).is_file():
                name = name or _own_name(system)
                parts = {name: _read(system, testset, name, wanted, k)}
            else:
                name, searched = _search(system, testset, name, k, modes, wanted, cache or cache_home())
                opened.update({label: (system, mode) for label, (mode, _) in searched.items()})
                parts = {label: report for label, (_, report) in searched.items()}
            if twice := next((label for label in parts if label in found), None):
                raise InputError(f"two systems are called {twice!r}; name one, such as other={system.spec}")
            found.update(parts)
    if modes and not any(mode in modes for _, mode in opened.values()):
        raise InputError(f"no system here can be searched by {', '.join(modes)}; leave the mode out")
    return Measured([merge(one) for one in reports], tuple(published), opened)


def _check_baseline(baseline: str | None, systems: Sequence[System]) -> None:
    """Refuse a baseline that is no system's name, with or without a mode behind it."""
    names = [one.name or _own_name(one) for one in systems]
    labels = [*names, *(f"{name} {mode}" for name in names for mode in MODES)]
    if baseline is not None and baseline not in labels:
        raise InputError(f"no system is called {baseline!r}, the baseline; there are {', '.join(names)}")


def _own_name(system: System) -> str:
    """The name of a system that was given none: its spec where that differs from set to set."""
    if any(place in system.spec for place in _PLACES):
        return system.spec
    return Path(system.spec).name.partition(".")[0] if Path(system.spec).is_file() else name_of(system.spec)


def _read(system: System, testset: TestSet, name: str, measures: Sequence[str], k: int) -> Report:
    """Measure the first k hits of a run file, as many as the others are searched for."""
    path = Path(system.on(testset))
    run = read_run(path)
    report = evaluate_run(
        first_hits(run, k), testset, name=name, measures=measures, made_by={"run file": path.name}, check_documents=True
    )
    return replace(report, notices=(*report.notices, *cut_lines(name, run, k)))


def _search(
    system: System,
    testset: TestSet,
    name: str | None,
    k: int,
    modes: Sequence[str],
    measures: Sequence[str],
    cache: Path,
) -> tuple[str, dict[str, tuple[str, Report]]]:
    """Search in all modes that are wanted, unless it was done before; labels to modes and reports."""
    spec = system.on(testset)
    opened = open_system(spec, testset, cache=cache)
    name = name or _own_name(system)
    chosen = [mode for mode in opened.modes if not modes or mode in modes] or list(opened.modes)
    found = {}
    for mode in chosen:
        label = name if len(chosen) == 1 else f"{name} {mode}"
        key = run_key(opened.made_by, mode, testset, k, spec)
        run: Mapping[str, Ranking] | None = kept_run(cache / "runs", key)
        if run is None:
            with progress(f"searching {label} on {testset.name}", "queries") as on_progress:
                report = evaluate(
                    opened.searcher, testset, measures=measures, k=k, modes=[mode], on_progress=on_progress
                )
            run = report.main.run
            keep_run(cache / "runs", key, run)
        else:
            note(f"{label} on {testset.name}: found as it was searched before")
        said = getattr(opened.searcher, "notices", ())
        found[label] = (mode, _measured(run, testset, label, measures, opened.made_by, said, k))
    return name, found


def _measured(
    run: Mapping[str, Ranking],
    testset: TestSet,
    label: str,
    measures: Sequence[str],
    made_by: Mapping[str, str],
    notices: Sequence[str],
    k: int,
) -> Report:
    """The same report whether the run was kept or has just been made."""
    nothing = Ranking([], np.empty(0, dtype=np.float32))
    whole = {query: run.get(query, nothing) for query in testset.qrels}
    report = evaluate_run(whole, testset, name=label, measures=measures, made_by=made_by, k=k)
    return replace(report, notices=(*report.notices, *notices))


def _published(system: System, testsets: Sequence[TestSet]) -> list[Published]:
    """The figures of one anchor for these test sets, by their fingerprints or else their names."""
    anchors_for = import_module("evaluation.anchors").anchors_for
    wanted = system.spec.removeprefix(ANCHOR).strip().lower()
    every = {one.name: list(anchors_for(one.fingerprint) or anchors_for(one.name)) for one in testsets}
    known = sorted({anchor.system for anchors in every.values() for anchor in anchors})
    chosen = [one for one in known if one.lower() == wanted] or [one for one in known if one.lower().startswith(wanted)]
    if len(chosen) != 1 or not wanted:
        there = f"there are {', '.join(_nearest(wanted, chosen or known))}" if known else "there is none for them"
        said = f"{len(chosen)} published systems begin with" if len(chosen) > 1 and wanted else "no published figure of"
        raise InputError(f"{said} {wanted!r} for {', '.join(every)}; {there}")
    return [
        Published(system.name or one.system, dataset, one.measure, one.value, one.source, _convention(one))
        for dataset, anchors in every.items()
        for one in anchors
        if one.system == chosen[0]
    ]


def _nearest(wanted: str, names: Sequence[str]) -> list[str]:
    """Names, the most alike first."""
    return sorted(names, key=lambda name: -SequenceMatcher(None, wanted, name.lower()).ratio())


def _convention(anchor: Any) -> str:
    """How a published figure was made, and in what it differs, as far as is known, from how it is done here."""
    differs, unknown = (", ".join(getattr(anchor, name, ())) for name in ("differs", "unknown"))
    parts = (anchor.convention, differs and f"differs in {differs}", unknown and f"not known: {unknown}")
    return "; ".join(part for part in parts if part)
