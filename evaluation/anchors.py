"""Anchors: published figures of well-known systems, each with its source and the convention it was made by."""

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.systems import Report

_FILE = Path(__file__).with_name("anchors.json")


class Anchor(NamedTuple):
    """One published figure."""

    system: str
    measure: str
    value: float
    """0 to 1 (correlations -1 to 1), with the digits it was published with."""
    source: str
    convention: str
    """How it was made, as far as its source says."""
    dataset: str = ""
    """The dataset's name here: BEIR's."""
    differs: tuple[str, ...] = ()
    """In what it certainly differs from how `retrokit evaluate` measures."""
    unknown: tuple[str, ...] = ()
    """What its source does not say, and matters."""
    self_matches: str = ""
    """Whether a hit whose id is the query's was `dropped` or `kept` (or `not known`), on datasets where that
    matters; else nothing."""


class Mean(NamedTuple):
    """A mean over several sets, with their list: means over other lists are other figures."""

    system: str
    measure: str
    value: float
    suite: str
    sets: tuple[str, ...]
    source: str


class Published(NamedTuple):
    """An anchor beside what was found."""

    anchor: Anchor
    yours: float
    same_convention: str
    """`yes`, `no: …` or `not known: …`."""


@functools.cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return content


def known_datasets() -> list[str]:
    """The names of the datasets that there are figures for."""
    with_figures = {name for one in _content()["systems"] for name in one["values"]}
    return [name for name in _content()["datasets"] if name in with_figures]


def known_dataset(name: str, fingerprint: str = "", split: str | None = None) -> tuple[str | None, bool]:
    """Which known dataset this is, and whether that is certain.

    Args:
        name: Such as `scifact` or `SciFact`.
        fingerprint: `TestSet.fingerprint`, where it is at hand.
        split: The split; None: the one that figures are published for.

    Returns:
        The dataset's name here (None: not known), and whether the data is the same, by its fingerprint; if not, only
        the name is.
    """
    plain = name.lower().replace("_", "-")
    for known, said in _content()["datasets"].items():
        if fingerprint and fingerprint in said.get("fingerprints", ()):
            return known, True
        if plain in (known, *said.get("aliases", ())) and split in (None, said["split"]):
            return known, False
    return None, False


def anchors_for(dataset: str) -> list[Anchor]:
    """The published figures on a dataset; none if it is not known.

    Args:
        dataset: Its name (such as `scifact`), or its fingerprint.
    """
    name, _ = known_dataset(dataset, dataset)
    if name is None:
        return []
    content = _content()
    matters = content["datasets"][name].get("self matches", False)
    found = []
    for one in content["systems"]:
        if name not in one["values"]:
            continue
        cell, source = one["values"][name], content["sources"][one["source"]]
        value, detail = cell if isinstance(cell, list) else (cell, "")
        found.append(
            Anchor(
                one["system"],
                one["measure"],
                _scaled(value),
                f"{source['title']}; {detail}" if detail else source["title"],
                source["convention"],
                name,
                tuple(source.get("differs", ())),
                tuple(source.get("unknown", ())),
                source["self matches"] if matters else "",
            )
        )
    return found


def known_means() -> list[Mean]:
    """Means over suites of sets: published ones, and those of the anchors here that cover a suite."""
    content = _content()
    suites: Mapping[str, list[str]] = content["suites"]
    found = []
    for one in content["systems"]:
        for suite, sets in suites.items():
            cells = [one["values"].get(name) for name in sets]
            if None in cells:
                continue
            values = [_scaled(cell[0] if isinstance(cell, list) else cell) for cell in cells]
            source = f"mean of the figures of {content['sources'][one['source']]['title']}"
            value = round(math.fsum(values) / len(values), 4)
            found.append(Mean(one["system"], one["measure"], value, suite, tuple(sets), source))
    for one in content["means"]:
        measure = "cosine_spearman" if one["suite"].startswith("STS") else "nDCG@10"
        source = content["sources"][one["source"]]["title"] + (f"; {one['note']}" if "note" in one else "")
        value, suite = _scaled(one["value"]), one["suite"]
        found.append(Mean(one["system"], measure, value, suite, tuple(suites[suite]), source))
    return found


def same_convention(anchor: Anchor, *, drop_self_matches: bool = False) -> str:
    """Whether a figure of `retrokit evaluate` may be set beside an anchor: `yes`, `no: …` or `not known: …`.

    What belongs to the system itself (analyzer, length, prompts) is not compared; its convention says it.
    """
    differs, unknown = list(anchor.differs), list(anchor.unknown)
    if anchor.self_matches == "not known":
        unknown.append("whether a hit whose id is the query's was dropped")
    elif anchor.self_matches and (anchor.self_matches == "dropped") != drop_self_matches:
        differs.append(f"hits whose id is the query's were {anchor.self_matches}")
    if differs:
        return "no: " + ", ".join(differs)
    return "not known: " + ", ".join(unknown) if unknown else "yes"


def published(report: Report) -> list[Published]:
    """The anchors on a report's dataset beside its main system, for every measure that both have."""
    name, _ = known_dataset(report.dataset, report.fingerprint, report.split)
    drop = report.profile.drop_self_matches
    return [
        Published(anchor, report.main.metrics[anchor.measure], same_convention(anchor, drop_self_matches=drop))
        for anchor in anchors_for(name or "")
        if anchor.measure in report.main.metrics
    ]


def published_of(report: Report) -> str:
    """In one sentence: whose published figures these are, and whether the data is certainly the same."""
    name, certain = known_dataset(report.dataset, report.fingerprint, report.split)
    same = "the same data, by its fingerprint" if certain else "the name is the same; whether the data is, is not known"
    return f"Published figures on {name} ({same}) beside {next(reversed(report.systems))}."


def _scaled(value: float) -> float:
    """From the scale of the file, per cent, without digits that nobody published."""
    return round(value / _content()["scale"], 6)
