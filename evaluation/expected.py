"""Expected figures: what a known encoder reaches on known data, to all its digits, and the check against it.

A wrong prompt, a damaged text or a changed default moves a mean by less than its interval, and no interval shows it;
the known figure does. Encoder and data are known by their fingerprints, never by their names.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from evaluation.systems import Report

_FILE = Path(__file__).with_name("expected.json")
_DEPTH = 1000
"""Hits for each query, of the known figures."""


class Expected(NamedTuple):
    """What one encoder reaches on one dataset."""

    model: str
    dataset: str
    metrics: dict[str, float]
    tolerance: float
    """How far from a figure another machine or backend may lie."""
    source: str


@functools.cache
def _known() -> dict[tuple[str, str], Expected]:
    content = json.loads(_FILE.read_text(encoding="utf-8"))
    found = {}
    for figures in content["figures"]:
        model, dataset = figures["model"], figures["dataset"]
        key = content["models"][model], content["datasets"][dataset]
        found[key] = Expected(
            model,
            dataset,
            figures["metrics"],
            figures.get("tolerance", content["tolerance"]),
            figures.get("source", content["source"]),
        )
    return found


def expected(model_fingerprint: str, dataset_fingerprint: str) -> Expected | None:
    """The known figures of an encoder on a dataset, or None if one of them is not known."""
    return _known().get((model_fingerprint, dataset_fingerprint))


def check(model_fingerprint: str, dataset_fingerprint: str, metrics: Mapping[str, float]) -> list[str]:
    """Compare figures of dense exact search, or of pairs, with those that are known.

    Args:
        model_fingerprint: `Encoder.fingerprint`: weights, tokenizer, pooling, prompts, length, dtype.
        dataset_fingerprint: `TestSet.fingerprint`, or a set of pairs'.
        metrics: Measure to value.

    Returns:
        Sentences for the report: nothing if the encoder or the data is not known, or none of the measures; one
        sentence if all is as expected; one for each measure that is not, with both values.
    """
    known = expected(model_fingerprint, dataset_fingerprint)
    if known is None:
        return []
    both = {name: (metrics[name], value) for name, value in known.metrics.items() if name in metrics}
    wrong = {name: pair for name, pair in both.items() if not abs(pair[0] - pair[1]) <= known.tolerance}
    if not both:
        return []
    if not wrong:
        return [
            f"As expected: {', '.join(both)} as known of {known.model} on {known.dataset}, within {known.tolerance:g}."
        ]
    return [
        f"NOT AS EXPECTED: {name} is {found:.5f}, but {known.model} reaches {value:.5f} on {known.dataset} "
        f"({known.source}). Encoder and data are the same by their fingerprints, so encoding, search or measuring went "
        "wrong; do not use these figures before that is explained."
        for name, (found, value) in wrong.items()
    ]


def with_expected(report: Report) -> Report:
    """Add what `check` says of a report's dense system to its notices.

    Only exact search over whole documents by an encoder that was evaluated as such is compared: an index may be
    approximate, or hold passages.
    """
    made_by = report.made_by
    if report.profile.drop_self_matches:  # the known figures are of sets that keep them
        return report
    if "dense" not in report.systems or "encoder" not in made_by or made_by.get("index factory") != "Flat":
        return report
    result = report.systems["dense"]
    depth = max((len(one.ids) for one in result.run.values()), default=0)
    # A measure without a cut-off reads all hits, so it is another one where fewer were searched for.
    metrics = {name: value for name, value in result.metrics.items() if "@" in name or depth >= _DEPTH}
    found = check(made_by["encoder fingerprint"], report.fingerprint, metrics)
    return dataclasses.replace(report, notices=(*report.notices, *found))
