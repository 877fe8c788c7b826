import math

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.measures import (
    DEFAULT_MEASURES,
    ann_recall,
    means,
    parse_measure,
    parse_measures,
    score_hits,
    score_run,
)
from evaluation.rankings import make_ranking
from evaluation.run_table import RunTable
from indexes.errors import InputError


def ranking(hits):
    return make_ranking(list(hits), list(hits.values()), place="test")


def value(measure, hits, grades):
    return score_run({"q": ranking(hits)}, {"q": grades}, [measure])["q"][measure]


HITS = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}
GRADES = {"b": 3, "d": 1, "far": 2, "a": 0}


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        # b (grade 3) at rank 2, d (grade 1) at rank 4; ideal: 3, 2, 1.
        ("nDCG@10", (3 / math.log2(3) + 1 / math.log2(5)) / (3 + 2 / math.log2(3) + 1 / 2)),
        ("nDCG@2", (3 / math.log2(3)) / (3 + 2 / math.log2(3))),
        ("nDCG@1", 0.0),
        ("MRR@10", 1 / 2),
        ("MRR@1", 0.0),
        ("MAP", (1 / 2 + 2 / 4) / 3),
        ("MAP@3", (1 / 2) / 3),
        ("Recall@3", 1 / 3),
        ("P@4", 2 / 4),
        ("P@10", 2 / 10),
        ("Success@1", 0.0),
        ("Success@2", 1.0),
        ("CappedRecall@1", 0.0),
        ("CappedRecall@2", 1 / 2),
        ("CappedRecall@4", 2 / 3),
        ("Rprec", 1 / 3),
        # a, b and d have judgements, a's being 0; there are 4 hits.
        ("Judged@1", 1.0),
        ("Judged@3", 2 / 3),
        ("Judged@10", 3 / 4),
        ("Hole@3", 1 / 3),
        ("Hole@10", 1 / 4),
    ],
)
def test_values_computed_by_hand(measure, expected):
    assert value(measure, HITS, GRADES) == pytest.approx(expected, abs=1e-15)


def test_gain_is_linear_not_exponential():
    grades = {"a": 1, "b": 3}
    hits = {"a": 2.0, "b": 1.0}
    assert value("nDCG@10", hits, grades) == pytest.approx(0.7967, abs=1e-4)  # exponential: 0.7098


def test_ties_are_broken_by_document_id_descending_whatever_the_order_given():
    for order in ("abc", "cba", "bca"):
        hits = dict.fromkeys(order, 1.0)
        assert value("MRR@10", hits, {"a": 1}) == pytest.approx(1 / 3)
        assert value("MRR@10", hits, {"c": 1}) == 1.0


def test_scores_tie_if_they_are_the_same_float32():
    assert value("MRR@10", {"a": 1.0 + 1e-9, "b": 1.0}, {"a": 1}) == 0.5


def test_missing_queries_and_queries_without_relevant_documents_count_zero():
    qrels = {"q": {"a": 1}, "missing": {"a": 1}, "hopeless": {"a": 0}, "negative": {"a": -1}}
    run = {name: ranking({"a": 1.0}) for name in ("q", "hopeless", "negative", "not in the qrels")}
    values = score_run(run, qrels, ["nDCG", "MAP", "MRR", "Recall@5", "P@1", "Success@1"])
    assert list(values) == list(qrels)
    assert means(values) == dict.fromkeys(["nDCG", "MAP", "MRR", "Recall@5", "P@1", "Success@1"], 0.25)


def test_names_are_read_in_any_case_once_each():
    assert [one.name for one in parse_measures(["ndcg@10", "nDCG@10", "map"])] == ["nDCG@10", "MAP"]
    assert [one.name for one in parse_measures(DEFAULT_MEASURES)] == list(DEFAULT_MEASURES)


def test_shares_of_judged_hits_without_hits_and_with_negative_grades():
    qrels = {"none": {"a": 1}, "junk": {"a": -2}, "empty": {"a": 1}}
    run = {"junk": ranking({"a": 2.0, "b": 1.0}), "empty": ranking({})}
    values = score_run(run, qrels, ["Judged@5", "Hole@5", "CappedRecall@5", "Rprec"])
    assert values["none"] == values["empty"] == dict.fromkeys(values["none"], 0.0)
    assert values["junk"] == {"Judged@5": 0.5, "Hole@5": 0.5, "CappedRecall@5": 0.0, "Rprec": 0.0}


@pytest.mark.parametrize(
    "name",
    [
        "Rprec@3",
        "Judged",
        "Hole",
        "CappedRecall",
        "F1@10",
        "nDCG@",
        "nDCG@0",
        "nDCG@-1",
        "nDCG@ten",
        "Recall",
        "P",
        "",
        "@10",
        "nDCG@²",
    ],
)
def test_unknown_names_are_refused_naming_the_known(name):
    with pytest.raises(InputError, match=r"unknown measure .* known are nDCG@k, MRR@k, MAP@k, Recall@k, P@k"):
        parse_measure(name)


def test_no_measures_and_no_queries_are_refused():
    with pytest.raises(InputError, match="no measure given"):
        parse_measures([])
    with pytest.raises(InputError, match="no queries to average over"):
        means({})


IDS = st.sampled_from(["d1", "d10", "d2", "D2", "é", "ß", "z", "漢", "😀", "a-b", "10", "9"])
SCORES = st.one_of(
    st.sampled_from([1.0, 1.0 + 1e-9, 0.5, -3.0, 0.0, -0.0, 1e-40]),
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.floats(0, 1),
)
# pytrec_eval 0.5.11 writes outside its memory (`ndcg`) for a query all of whose grades are negative: "anchor" has 0.
JUDGED = st.dictionaries(IDS, st.integers(-2, 4), max_size=9).map(lambda grades: {"anchor": 0, **grades})
QRELS = st.dictionaries(st.sampled_from(["q1", "q2", "q3"]), JUDGED, min_size=1)
RUN = st.dictionaries(st.sampled_from(["q1", "q2", "q3", "q4"]), st.dictionaries(IDS, SCORES, min_size=1))
K = st.integers(1, 8)


def forms(hits):
    """The same run in all forms that can be scored."""
    run = {query: ranking(one) for query, one in hits.items()}
    names = sorted({name for one in hits.values() for name in one})
    number = {name: row for row, name in enumerate(names)}
    rows = [number[name] for one in hits.values() for name in one]
    scores = [score for one in hits.values() for score in one.values()]
    starts = np.cumsum([0, *(len(one) for one in hits.values())])
    arrays = (np.array(rows, np.int64), np.array(scores, np.float64))
    return run, RunTable.of_run(run), RunTable.of(list(hits), starts, *arrays, names)


@settings(max_examples=300, deadline=None)
@given(QRELS, RUN, K)
def test_equal_to_trec_eval(qrels, hits, k):
    """Ties, graded and negative judgements, unjudged documents, missing and foreign queries, in every form of a run."""
    theirs = {
        "nDCG": "ndcg",
        f"nDCG@{k}": f"ndcg_cut_{k}",
        "MAP": "map",
        f"MAP@{k}": f"map_cut_{k}",
        "MRR": "recip_rank",
        "Rprec": "Rprec",
        f"Recall@{k}": f"recall_{k}",
        f"P@{k}": f"P_{k}",
        f"Success@{k}": f"success_{k}",
    }
    names = {"ndcg", "map", "recip_rank", "Rprec"}
    names |= {f"{family}.{k}" for family in ("ndcg_cut", "map_cut", "recall", "P", "success")}
    expected = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(hits)
    found, *others = [score_run(run, qrels, theirs) for run in forms(hits)]
    assert set(found) == set(qrels)
    for query, values in found.items():
        for ours, name in theirs.items():
            assert values[ours] == pytest.approx(expected.get(query, {}).get(name, 0.0), abs=1e-9), (query, ours)
    assert all(other == found for other in [*others, score_hits(hits, qrels, theirs)])


@settings(max_examples=100, deadline=None)
@given(QRELS, RUN, K)
def test_all_forms_of_a_run_agree_where_trec_eval_has_no_such_measure(qrels, hits, k):
    names = [f"{family}@{k}" for family in ("MRR", "CappedRecall", "Judged", "Hole", "nDCG")]
    found, *others = [score_run(run, qrels, names) for run in forms(hits)]
    assert all(other == found for other in [*others, score_hits(hits, qrels, names)])
    for query, grades in qrels.items():
        order = forms({"q": hits.get(query, {})})[0]["q"].ids[:k]
        judged, relevant = sum(name in grades for name in order), sum(grade > 0 for grade in grades.values())
        right = sum(grades.get(name, 0) > 0 for name in order)
        assert found[query][f"Judged@{k}"] == (judged / len(order) if order else 0.0)
        assert found[query][f"Hole@{k}"] == ((len(order) - judged) / len(order) if order else 0.0)
        assert found[query][f"CappedRecall@{k}"] == (right / min(k, relevant) if relevant else 0.0)


def plain_values(ids, grades, k):
    """nDCG and MAP of one query, summed as numpy sums an array of its own."""
    worth = np.array([max(grades.get(name, 0), 0) for name in ids])
    ranks = np.flatnonzero(worth) + 1
    ideal = np.array(sorted((grade for grade in grades.values() if grade > 0), reverse=True))[:k]
    within = ranks[ranks <= k]
    gain = (worth[within - 1] / np.log2(within + 1)).sum()
    best = (ideal / np.log2(np.arange(2, len(ideal) + 2))).sum()
    precisions = np.arange(1, len(within) + 1) / within
    return gain / best, precisions.sum() / sum(grade > 0 for grade in grades.values())


def test_all_queries_at_once_give_the_values_of_each_alone_to_the_last_bit():
    rng = np.random.default_rng(0)
    qrels, run = {}, {}
    for number in range(40):
        names = [f"d{row}" for row in rng.choice(3000, 1000, replace=False)]
        judged = rng.choice(3000, rng.integers(1, 400), replace=False)
        qrels[f"q{number}"] = {f"d{row}": int(rng.integers(-1, 4)) for row in judged} | {"far": 1}
        run[f"q{number}"] = make_ranking(names, rng.random(1000), place="test")
    for k in (10, 100, 1000):
        for form in (run, RunTable.of_run(run)):
            values = score_run(form, qrels, [f"nDCG@{k}", f"MAP@{k}"])
            for query, ranked in run.items():
                assert tuple(values[query].values()) == plain_values(ranked.ids, qrels[query], k)


def test_no_qrels_and_no_run_give_no_values():
    assert score_run({}, {}, ["nDCG"]) == score_run(RunTable.of_run({}), {}, ["nDCG"]) == {}
    assert score_run(RunTable.of_run({}), {"q": {"a": 1}}, ["P@1"]) == {"q": {"P@1": 0.0}}


@pytest.mark.parametrize("score", [float("nan"), float("inf"), 1e39])
def test_hits_with_scores_that_are_none_are_refused(score):
    with pytest.raises(InputError, match=r"query 'q': document 'b' has score .*; expected a finite float32"):
        score_hits({"q": {"a": 1.0, "b": score}}, {"q": {"a": 1}}, ["MAP"])


def test_recall_against_exact_search_counts_ties_with_the_last():
    exact = {"q": ranking({"a": 3.0, "b": 2.0, "c": 1.0, "d": 1.0}), "lost": ranking({"a": 1.0}), "none": ranking({})}
    assert ann_recall(exact, exact, 3) == {"q": 1.0, "lost": 1.0, "none": 1.0}
    found = {"q": ranking({"b": 2.0, "c": 1.0, "d": 1.0})}
    assert ann_recall(found, exact, 3) == {"q": 1.0, "lost": 0.0, "none": 1.0}  # c and d both tie with the third
    assert ann_recall(found, exact, 2) == {"q": 1 / 2, "lost": 0.0, "none": 1.0}
    # A tie that exact search's list was too short for, known by its score; and one known by its id only.
    assert ann_recall({"q": ranking({"a": 3.0, "z": 2.0})}, {"q": ranking({"a": 3.0, "b": 2.0})}, 2) == {"q": 1.0}
    assert ann_recall({"q": ranking({"d": 0.7})}, exact, 3)["q"] == 1 / 3
    assert ann_recall(RunTable.of_run(found), exact, 3) == ann_recall(found, exact, 3)
    with pytest.raises(InputError, match="k is 0"):
        ann_recall(found, exact, 0)


@settings(max_examples=150, deadline=None)
@given(JUDGED, st.dictionaries(IDS, SCORES, min_size=1), K)
def test_reciprocal_rank_with_a_cutoff_is_that_of_the_cut_run(grades, hits, k):
    """trec_eval's recip_rank has no cut-off: the run is cut to k under trec_eval's own tie rule, written out here."""
    order = sorted(hits, key=lambda name: (np.float32(hits[name]), name.encode()), reverse=True)
    cut = {name: float(-rank) for rank, name in enumerate(order[:k])}
    expected = pytrec_eval.RelevanceEvaluator({"q": grades}, {"recip_rank"}).evaluate({"q": cut})
    assert value(f"MRR@{k}", hits, grades) == pytest.approx(expected["q"]["recip_rank"], abs=1e-9)
