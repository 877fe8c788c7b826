"""A closer look at a comparison: slices, cases and leaks, for which every corpus is read once."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from evaluation.cases import CASES, cases_of, documents_shown, texts_of
from evaluation.comparison import Comparison
from evaluation.leakage import find_leaks
from evaluation.slices import slices_of
from evaluation.systems import OnProgress
from evaluation.testsets import TestSet
from indexes.errors import InputError

Progress = Callable[[str, str], AbstractContextManager[OnProgress]]
"""Shows one piece of long work: its label and its unit (`retrieval.console.progress`)."""


def look_closer(
    comparison: Comparison,
    testsets: Sequence[TestSet],
    *,
    cases: int = CASES,
    trained_on: Sequence[str] = (),
    progress: Progress | None = None,
) -> Comparison:
    """Add slices of queries, the queries that differ most, and what of the test sets is in training sets.

    Args:
        comparison: From `compare`.
        testsets: Those that its reports are of, in the same order.
        cases: Worst losses, and best gains, of each system on each set.
        trained_on: Training sets in which test queries are looked for; see `find_leaks`.
        progress: Shows how far the reading of training sets is.

    Raises:
        InputError: The test sets are others than the reports', or a training set cannot be read.
    """
    if [one.fingerprint for one in testsets] != [one.fingerprint for one in comparison.reports.values()]:
        raise InputError("the test sets are not those of the reports; give the same ones in the same order")
    texts_by_set = {}
    for (name, report), testset in zip(comparison.reports.items(), testsets, strict=True):
        relevant = {one for grades in report.qrels.values() for one, grade in grades.items() if grade > 0}
        wanted = relevant | documents_shown(comparison, name, cases)
        texts_by_set[name] = texts_of(((one.id, one.content) for one in testset.documents()), wanted)
    found = comparison.with_more(
        slices={name: tuple(slices_of(comparison, name, texts)) for name, texts in texts_by_set.items()},
        cases={name: tuple(cases_of(comparison, name, texts, cases)) for name, texts in texts_by_set.items()},
    )
    if not trained_on:
        return found
    if progress is None:
        return found.with_more(leaks=find_leaks(comparison, trained_on, texts_by_set))
    with progress("reading training sets", "texts") as on_progress:
        return found.with_more(leaks=find_leaks(comparison, trained_on, texts_by_set, on_progress=on_progress))
