"""What the options of several commands mean: datasets, measures."""

from evaluation.measures import DEFAULT_MEASURES
from evaluation.pairs_sets import pairs_kind
from evaluation.testsets import TestSet, load_dataset
from indexes.errors import InputError
from retrieval.console import note, progress


def load_testset(dataset: str, split: str | None) -> TestSet:
    """Read a test collection with progress, and say so if it is a known one.

    Raises:
        InputError: It is a set of pairs, or what `load_dataset` refuses.
    """
    if pairs_kind(dataset):
        raise InputError(
            f"{dataset} is a set of pairs, not a test collection; measure it by retrokit evaluate --encoder"
        )
    with progress("reading", "documents") as on_progress:
        testset = load_dataset(dataset, split, on_progress=on_progress)
    if testset.identical_to:
        note(f"the test collection is {testset.identical_to}, to the last character")
    return testset


def default_measures(k: int) -> list[str]:
    """The usual measures, without those that read deeper than k hits."""
    kept = [name for name in DEFAULT_MEASURES if int(name.partition("@")[2] or 0) <= k]
    if len(kept) < len(DEFAULT_MEASURES):
        left_out = ", ".join(name for name in DEFAULT_MEASURES if name not in kept)
        note(f"notice: {left_out} read more than {k} hits and are left out")
    return kept
