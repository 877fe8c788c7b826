from typing import NamedTuple

import numpy as np
import pytest

from evaluation.runs import make_ranking, read_run, write_run
from evaluation.significance import bootstrap_interval
from evaluation.systems import evaluate, evaluate_run, merge
from evaluation.testsets import load_dataset, write_collection
from indexes.errors import InputError
from retrieval.documents import Document


class Hit(NamedTuple):
    id: str
    score: float
    rank: int = 0
    text: str | None = None


class Canned:
    """A searcher that gives the same hits to every query."""

    def __init__(self, **hits):
        self.hits = hits
        self.modes = tuple(hits)
        self.asked = []

    def search_many(self, texts, k, *, mode):
        self.asked.append((len(texts), k, mode))
        return [[Hit(*hit) for hit in self.hits[mode]][:k] for _ in texts]


RETRIEVER = {"dense": [("d1", 3.0), ("d2", 2.0), ("q1", 1.0)], "lexical": [("d2", 1.0)]}


@pytest.fixture
def testset(tmp_path):
    documents = [Document("d1", "one"), Document("d2", "two"), Document("q1", "query one")]
    queries = {"q1": "query one", "q2": "query two"}
    write_collection(
        tmp_path / "toy", documents, queries, {"test": {"q1": {"d1": 1}, "q2": {"d2": 1}}, "dev": {"q1": {"d2": 1}}}
    )
    return load_dataset(tmp_path / "toy", drop_self_matches=False)


def test_each_mode_is_a_system_and_the_last_is_the_main_one(testset):
    retriever = Canned(**RETRIEVER)
    seen = []
    report = evaluate(
        retriever, testset, measures=["MRR@10"], k=10, made_by={"by": "me"}, on_progress=lambda *now: seen.append(now)
    )
    assert {name: one.metrics for name, one in report.systems.items()} == {
        "lexical": {"MRR@10": 0.5},
        "dense": {"MRR@10": 0.75},
    }
    assert report.main is report.systems["dense"]
    assert report.main.per_query == {"q1": {"MRR@10": 1.0}, "q2": {"MRR@10": 0.5}}
    assert retriever.asked == [(2, 10, "lexical"), (2, 10, "dense")]
    assert seen == [(2, 4), (4, 4)]
    assert (report.dataset, report.split, report.made_by) == ("toy", "test", {"by": "me"})
    assert list(evaluate(retriever, testset, modes=["dense", "lexical"]).systems) == ["dense", "lexical"]


def test_self_matches_are_dropped_only_where_the_profile_says_so(tmp_path, testset):
    hits = {"dense": [("q1", 9.0), ("d1", 8.0), ("d2", 7.0)]}
    kept = evaluate(Canned(**hits), testset, measures=["MRR@2"], k=2)
    assert kept.main.per_query == {"q1": {"MRR@2": 0.5}, "q2": {"MRR@2": 0.0}}
    retriever = Canned(**hits)
    other = load_dataset(tmp_path / "toy", drop_self_matches=True)
    dropped = evaluate(retriever, other, measures=["MRR@2"], k=2)
    assert dropped.main.per_query == {"q1": {"MRR@2": 1.0}, "q2": {"MRR@2": 0.0}}
    assert retriever.asked == [(2, 3, "dense")]
    assert [len(one.ids) for one in dropped.main.run.values()] == [2, 2]
    again = evaluate_run(
        kept.main.run | {"q1": make_ranking(["q1", "d1"], [2, 1], place="q1")}, other, measures=["MRR@2"]
    )
    assert again.main.per_query["q1"] == {"MRR@2": 1.0}


def test_a_run_read_back_has_the_same_measures(tmp_path, testset):
    rng = np.random.default_rng(0)
    run = {
        query: make_ranking([f"d{row}" for row in range(50)], rng.random(50).round(1), place=query)
        for query in ("q1", "q2")
    }
    write_run(run, tmp_path / "run.trec.gz")
    before, after = evaluate_run(run, testset), evaluate_run(read_run(tmp_path / "run.trec.gz"), testset)
    assert before.main.per_query == after.main.per_query


def test_missing_and_foreign_queries_of_a_run_are_said(testset):
    hit = make_ranking(["d1"], [1.0], place="test")
    report = evaluate_run({"q1": hit, "q9": hit}, testset, name="mine", measures=["MRR@10"])
    assert report.main.metrics == {"MRR@10": 0.5}
    assert report.notices[-3:] == (
        "1 of 2 queries are missing in run 'mine'; they count 0.",
        "1 queries of run 'mine' have no judgements; they were left out.",
        "no query of run 'mine' has more than 1 hit: MRR@10 can count no others.",
    )
    with pytest.raises(InputError, match=r"run 'run' has no query of toy \(test\): its ids are like 'q9'"):
        evaluate_run({"q9": hit}, testset)


def test_what_cannot_be_evaluated_is_refused(testset):
    with pytest.raises(InputError, match=r"Recall@1000 reads 1,000 hits, but k is 100"):
        evaluate(Canned(**RETRIEVER), testset, k=100)
    with pytest.raises(InputError, match="k is 0"):
        evaluate(Canned(**RETRIEVER), testset, k=0)
    with pytest.raises(InputError, match="no mode 'hybrid' in this retriever; it has dense, lexical"):
        evaluate(Canned(**RETRIEVER), testset, modes=["hybrid"])
    with pytest.raises(InputError, match="mode 'dense', query 'q1': document 'd1' has score nan"):
        evaluate(Canned(dense=[("d1", float("nan"))]), testset)
    with pytest.raises(InputError, match="mode 'dense', query 'q1': document 'd1' occurs twice"):
        evaluate(Canned(dense=[("d1", 2.0), ("d1", 1.0)]), testset)


def test_reports_of_one_dataset_merge(testset, tmp_path):
    base = evaluate(Canned(dense=RETRIEVER["lexical"]), testset, made_by={"encoder": "base", "numpy": "2"})
    both = evaluate(Canned(**RETRIEVER), testset, made_by={"encoder": "adapted", "numpy": "2"})
    merged = merge({"base": base, "adapted": both})
    assert list(merged.systems) == ["base", "adapted lexical", "adapted dense"]
    assert merged.main.metrics == both.main.metrics
    assert merged.made_by == {"encoder": "base", "numpy": "2", "adapted: encoder": "adapted"}
    other = evaluate(Canned(**RETRIEVER), load_dataset(tmp_path / "toy", "dev"))
    with pytest.raises(InputError, match="'base' and 'other' cannot be compared: dataset fingerprint"):
        merge({"base": base, "other": other})
    with pytest.raises(InputError, match="cannot be compared: measures"):
        merge({"base": base, "other": evaluate(Canned(**RETRIEVER), testset, measures=["MAP"])})
    dropped = evaluate(Canned(**RETRIEVER), load_dataset(tmp_path / "toy", drop_self_matches=True))
    with pytest.raises(InputError, match="cannot be compared: drop_self_matches False ≠ True"):
        merge({"base": base, "other": dropped})
    with pytest.raises(InputError, match="no reports to merge"):
        merge({})


def test_the_bootstrap_interval_is_the_normal_one_for_many_values():
    values = np.random.default_rng(1).random(4000)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval([0.5, 0.5]) == (0.5, 0.5)
    with pytest.raises(InputError, match="no values"):
        bootstrap_interval([])
    with pytest.raises(InputError, match="confidence is 95"):
        bootstrap_interval([1.0], confidence=95)
