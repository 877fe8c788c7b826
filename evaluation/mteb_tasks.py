"""Our datasets as MTEB's tasks, MTEB's tasks over local data, and running them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.mteb_adapter import MtebEncoder, MtebSearch, import_mteb
from evaluation.pairs_sets import PairSet, RerankingSet
from evaluation.sts import candidate_ids
from evaluation.testsets import TestSet
from indexes.checksums import folder_digest
from indexes.errors import InputError

_TYPES = {"sts": "STS", "pairs": "PairClassification", "reranking": "Reranking"}
_MAIN = {"sts": "cosine_spearman", "pairs": "cosine_ap", "reranking": "map_at_1000"}


class TaskScores(NamedTuple):
    """What MTEB found on one task."""

    task: str
    main_score: str
    """The name of the task's main score."""
    value: float
    """Its mean over the splits and subsets, as MTEB takes it."""
    scores: dict[str, list[dict[str, Any]]]
    """Split to one record a subset, all that MTEB wrote."""
    dataset_revision: str


def as_mteb_task(dataset: TestSet | PairSet | RerankingSet, split: str = "test") -> Any:
    """A local dataset as a task for `mteb.evaluate`.

    The name ends with the dataset's fingerprint, which is the revision too: MTEB 2.26 serves the stored scores of a
    task by its name alone if they are complete, though the revision of its data is another.

    Args:
        dataset: From `load_dataset` or `load_pairs`.
        split: What to call the only split of pairs; a test collection has its own.

    Returns:
        An `AbsTaskRetrieval`, `AbsTaskSTS` or `AbsTaskPairClassification`.

    Raises:
        InputError: MTEB is not installed.
    """
    import_mteb()
    if isinstance(dataset, TestSet):
        return _retrieval_task(dataset)
    if isinstance(dataset, RerankingSet):
        return _reranking_task(dataset, split)
    return _pairs_task(dataset, split)


def _metadata(name: str, fingerprint: str, kind: str, main_score: str, split: str) -> Any:
    from mteb import TaskMetadata

    plain = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "local"
    return TaskMetadata(
        name=f"{plain}-{split}-{fingerprint[:12]}",
        description=f"A local dataset of retrokit's: {name}, split {split}.",
        type=kind,
        category="t2t",
        dataset={"path": name, "revision": fingerprint},
        eval_splits=[split],
        eval_langs=["eng-Latn"],
        main_score=main_score,
    )


def _retrieval_task(testset: TestSet) -> Any:
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    class LocalRetrieval(AbsTaskRetrieval):
        metadata = _metadata(testset.name, testset.fingerprint, "Retrieval", "ndcg_at_10", testset.split)
        ignore_identical_ids = testset.profile.drop_self_matches

        data_loaded: bool

        def load_data(self, num_proc: int | None = None, **options: Any) -> None:
            """Read corpus, queries and judgements into memory."""
            if self.data_loaded:
                return
            corpus = [{"id": one.id, "title": one.title, "text": one.text} for one in testset.documents()]
            queries = [{"id": query, "text": text} for query, text in testset.queries.items()]
            data = {
                "corpus": Dataset.from_list(corpus),
                "queries": Dataset.from_list(queries),
                "relevant_docs": {query: dict(grades) for query, grades in testset.qrels.items()},
                "top_ranked": None,
            }
            self.dataset = {"default": {testset.split: data}}
            self.data_loaded = True

    return LocalRetrieval()


def _reranking_task(given: RerankingSet, split: str) -> Any:
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    class LocalReranking(AbsTaskRetrieval):
        metadata = _metadata(given.name, given.fingerprint, "Reranking", _MAIN["reranking"], split)

        data_loaded: bool

        def load_data(self, num_proc: int | None = None, **options: Any) -> None:
            """Turn queries and their documents into MTEB's layout, ids as in its own reranking tasks."""
            if self.data_loaded:
                return
            ids = {query: candidate_ids(given, query) for query in given.queries}
            texts = {query: [*given.positive[query], *given.negative[query]] for query in given.queries}
            corpus = [
                {"id": one, "title": "", "text": text}
                for query in given.queries
                for one, text in zip(ids[query], texts[query], strict=True)
            ]
            data = {
                "corpus": Dataset.from_list(corpus),
                "queries": Dataset.from_list([{"id": one, "text": text} for one, text in given.queries.items()]),
                "relevant_docs": {query: {one: int(one[0] == "a") for one in ids[query]} for query in ids},
                "top_ranked": ids,
            }
            self.dataset = {"default": {split: data}}
            self.data_loaded = True

    return LocalReranking()


def _pairs_task(pairs: PairSet, split: str) -> Any:
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.pair_classification import AbsTaskPairClassification
    from mteb.abstasks.sts import AbsTaskSTS

    base: Any = AbsTaskSTS if pairs.kind == "sts" else AbsTaskPairClassification
    low, high = pairs.values.min(), pairs.values.max()

    class LocalPairs(base):
        metadata = _metadata(pairs.name, pairs.fingerprint, _TYPES[pairs.kind], _MAIN[pairs.kind], split)
        min_score, max_score = float(low), float(high)

        data_loaded: bool

        def load_data(self, num_proc: int | None = None, **options: Any) -> None:
            """Turn the pairs into MTEB's columns."""
            if self.data_loaded:
                return
            values = pairs.values.tolist() if pairs.kind == "sts" else [int(one) for one in pairs.values]
            columns = {
                "sentence1": pairs.first,
                "sentence2": pairs.second,
                "score" if pairs.kind == "sts" else "labels": values,
            }
            self.dataset = DatasetDict({split: Dataset.from_dict(columns)})
            self.data_loaded = True

    return LocalPairs()


def registered_task(spec: str) -> tuple[Any, str]:
    """One of MTEB's own tasks by its name, or, as NAME=FOLDER, over a local copy of its data.

    Args:
        spec: Such as `STSBenchmark`, or `STSBenchmark=clones/stsbenchmark-sts`: a folder that `datasets.load_dataset`
            reads, in the layout of the task's repository on the Hugging Face hub.

    Returns:
        The task, and the digest of the local folder ("" without one).

    Raises:
        InputError: MTEB is not installed, has no such task (similar names are given), or the folder is not there.
    """
    mteb = import_mteb()
    name, equals, place = spec.partition("=")
    try:
        task = mteb.get_task(name)
    except KeyError:
        import difflib

        names = [one.metadata.name for one in mteb.get_tasks()]
        near = difflib.get_close_matches(name, names, 3, 0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"MTEB has no task {name!r} among {len(names):,}{hint}") from None
    if not equals:
        return task, ""
    folder = Path(place)
    if not folder.is_dir():
        raise InputError(f"{place}: no such folder; expected a copy of the data of task {name}")
    digest = folder_digest(folder)
    dataset = {**task.metadata.dataset, "path": str(folder.resolve()), "revision": digest}
    task.metadata = task.metadata.model_copy(update={"dataset": dataset})
    return task, digest


def run_mteb(model: MtebEncoder | MtebSearch, tasks: Iterable[tuple[Any, str]], cache: Path) -> list[TaskScores]:
    """Run tasks one after the other; those that were finished before are taken from the cache.

    Args:
        model: From `as_mteb_encoder` or `as_mteb_search`.
        tasks: Each with the digest of its local data, or "", as `registered_task` gives them.
        cache: Where MTEB keeps its results. Those of local data, and of another version of MTEB, lie apart, since
            MTEB serves what it finds under a task's name.

    Raises:
        InputError: The data of a task cannot be had, or the task is none for this model.
    """
    mteb = import_mteb()
    found = []
    for task, digest in tasks:
        folder = cache / mteb.__version__ / (f"data-{digest[:24]}" if digest else "hub")
        results = mteb.ResultCache(folder)
        try:
            mteb.evaluate(model, task, cache=results, co2_tracker=False)
        except OSError as error:  # ConnectionError is one
            raise InputError(
                f"the data of task {task.metadata.name} cannot be had ({' '.join(str(error).split())[:200]}); "
                "allow the network, or pass NAME=FOLDER with a local copy"
            ) from None
        except (ValueError, KeyError) as error:
            if not digest or task.data_loaded:
                raise
            raise InputError(
                f"the folder given for task {task.metadata.name} is no copy of its data "
                f"({' '.join(str(error).split())[:200]}); expected the layout of its repository on the hub"
            ) from None
        except TypeError as error:
            if "SearchProtocol" not in str(error) and "EncoderProtocol" not in str(error):
                raise
            raise InputError(
                f"task {task.metadata.name} ({task.metadata.type}) is no search task; leave --mode out"
            ) from None
        # As MTEB keeps them, which is with fewer digits: the figures are the same the second time.
        scores = results.load_task_result(task.metadata.name, model.mteb_model_meta, raise_if_not_found=True)
        found.append(
            TaskScores(
                task.metadata.name,
                task.metadata.main_score,
                float(scores.get_score()),
                {split: [dict(one) for one in records] for split, records in scores.scores.items()},
                str(scores.dataset_revision),
            )
        )
    return found
