"""What `retrokit evaluate --vectors` and `--against-exact` do."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evaluation.index_runs import DEPTHS, against_exact, recall_line
from evaluation.prepared import refuse_other_corpus
from evaluation.run_table import RunTable, longest
from evaluation.systems import Report, Searcher, deep_enough, evaluate_run
from evaluation.testsets import TestSet
from indexes.errors import InputError
from indexes.manifest import differences
from retrieval.console import progress

if TYPE_CHECKING:
    from indexes.vectors import VectorStore
    from retrieval.encoder import Encoder


def check_search_options(
    index: Path | None,
    vectors: Path | None,
    modes: list[str] | None,
    *,
    against_exact: bool,
    device: str | None,
    memory_gb: float | None,
) -> None:
    """Refuse options that say nothing about what is searched.

    Raises:
        InputError: The message names them.
    """
    if vectors is None and (device is not None or memory_gb is not None):
        raise InputError("--device and --memory-gb say how --vectors are searched; leave them out without --vectors")
    if against_exact and (index is None or (modes is not None and "dense" not in modes)):
        raise InputError("--against-exact compares the dense search of an --index with exact search; give --index")


class VectorsSearch(NamedTuple):
    """How a vectors folder is searched."""

    folder: Path
    encoder: str | None
    k: int
    device: str | None
    memory_gb: float | None


def measure_vectors(
    search: VectorsSearch,
    testset: TestSet,
    measures: list[str],
    cache_of: Callable[[str], Path],
    versions: Mapping[str, str],
) -> Report:
    """Search a vectors folder exactly, or take what was found before, and measure it.

    Args:
        search: What to search, and how.
        testset: Of the same corpus.
        measures: Names.
        cache_of: The folder in which to keep what an encoder, by its fingerprint, found.
        versions: Of packages, for the report.

    Raises:
        InputError: The vectors are of another corpus, or of another encoder than asks, both being named; or a measure
            reads more than k hits.
    """
    from evaluation.exact_search import MEMORY_GB, search_vectors
    from indexes.vectors import VectorStore

    measures = deep_enough(measures, search.k)
    store = VectorStore.open(search.folder)
    refuse_other_corpus(search.folder, store.corpus, testset)
    encoder = _encoder_of(store, search.encoder)
    drop = testset.profile.drop_self_matches
    with progress("searching", "vectors") as on_progress:
        table = search_vectors(
            store,
            testset.queries,
            encoder.encode_queries,
            search.k + drop,  # one more where one may be dropped
            cache_of(encoder.fingerprint),
            memory_gb=MEMORY_GB if search.memory_gb is None else search.memory_gb,
            device=search.device,
            on_progress=on_progress,
        )
    table = table.without_self_matches().first(search.k) if drop else table
    made_by = {"vectors": search.folder.name, "encoder": encoder.name, "encoder fingerprint": encoder.fingerprint}
    made_by |= {"search": f"exact, of vectors kept as {store.storage.form}", **versions}
    unknown = store.corpus["fingerprint"] is None
    return evaluate_run(
        table, testset, name="dense", measures=measures, made_by=made_by, k=search.k, check_documents=unknown
    )


def _encoder_of(store: "VectorStore", name: str | None) -> "Encoder":
    """The encoder that made the vectors: the one they name, or one of this name, if it is the same."""
    from retrieval.retriever import encoder_by_record

    encoder = encoder_by_record(store.made_by, store.folder, name)
    if encoder.document_fingerprint != store.made_by["fingerprint"]:
        raise InputError(
            f"{store.folder} was made by another encoder than {encoder.name} (vectors ≠ encoder: "
            f"{differences(store.made_by, encoder.made_by)}); ask with the encoder that made them, or encode again"
        )
    return encoder


def with_recall(report: Report, retriever: Searcher, factory: str, testset: TestSet) -> Report:
    """Add how much of exact search's hits a retriever's index finds by dense search."""
    dense = report.systems["dense"]
    depths = [depth for depth in DEPTHS if depth <= longest(dense.run)] or [max(1, longest(dense.run))]
    with progress("searching exactly", "queries") as on_progress:
        found = against_exact(RunTable.of_run(dense.run), retriever, testset, depths, on_progress)
    result = replace(dense, against_exact={name: one.mean for name, one in found.items()})
    line = recall_line("dense", factory, found)
    return replace(report, systems={**report.systems, "dense": result}, notices=(*report.notices, line))
