import math

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.measures import DEFAULT_MEASURES, means, parse_measure, parse_measures, score_run
from evaluation.runs import make_ranking
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


@pytest.mark.parametrize(
    "name", ["F1@10", "nDCG@", "nDCG@0", "nDCG@-1", "nDCG@ten", "Recall", "P", "", "@10", "nDCG@²"]
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


@settings(max_examples=300, deadline=None)
@given(QRELS, RUN, K)
def test_equal_to_trec_eval(qrels, hits, k):
    """Ties, graded and negative judgements, unjudged documents, missing and foreign queries."""
    theirs = {
        "nDCG": "ndcg",
        f"nDCG@{k}": f"ndcg_cut_{k}",
        "MAP": "map",
        f"MAP@{k}": f"map_cut_{k}",
        "MRR": "recip_rank",
        f"Recall@{k}": f"recall_{k}",
        f"P@{k}": f"P_{k}",
        f"Success@{k}": f"success_{k}",
    }
    names = {"ndcg", f"ndcg_cut.{k}", "map", f"map_cut.{k}", "recip_rank", f"recall.{k}", f"P.{k}", f"success.{k}"}
    expected = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(hits)
    found = score_run({query: ranking(one) for query, one in hits.items()}, qrels, theirs)
    assert set(found) == set(qrels)
    for query, values in found.items():
        for ours, name in theirs.items():
            assert values[ours] == pytest.approx(expected.get(query, {}).get(name, 0.0), abs=1e-9), (query, ours)


@settings(max_examples=150, deadline=None)
@given(JUDGED, st.dictionaries(IDS, SCORES, min_size=1), K)
def test_reciprocal_rank_with_a_cutoff_is_that_of_the_cut_run(grades, hits, k):
    """trec_eval's recip_rank has no cut-off: the run is cut to k under trec_eval's own tie rule, written out here."""
    order = sorted(hits, key=lambda name: (np.float32(hits[name]), name.encode()), reverse=True)
    cut = {name: float(-rank) for rank, name in enumerate(order[:k])}
    expected = pytrec_eval.RelevanceEvaluator({"q": grades}, {"recip_rank"}).evaluate({"q": cut})
    assert value(f"MRR@{k}", hits, grades) == pytest.approx(expected["q"]["recip_rank"], abs=1e-9)
