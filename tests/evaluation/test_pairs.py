import itertools
import json

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import average_precision_score

from evaluation import commands
from evaluation.pairs_sets import load_pairs, pairs_kind
from evaluation.sts import (
    classification_measures,
    evaluate_pair_classification,
    evaluate_pairs,
    evaluate_reranking,
    evaluate_sts,
)
from indexes.errors import InputError


class Angles:
    """An encoder of numbers: a text is an angle in degrees; queries are turned by 90."""

    def __init__(self, length=1.0):
        self.length, self.calls = length, []

    def encode_documents(self, texts, on_progress=None):
        self.calls.append(list(texts))
        turns = np.deg2rad([float(text or 45) for text in texts])
        return (self.length * np.stack([np.cos(turns), np.sin(turns)], axis=1)).astype(np.float32)

    def encode_queries(self, texts, on_progress=None):
        return self.encode_documents([str(float(text or 45) + 90) for text in texts])


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def pairs_of(path, values, name="score", seed=0, **more):
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0, 180, size=(len(values), 2))
    return write(
        path,
        [
            {"sentence1": str(one), "sentence2": str(other), name: value, **more}
            for (one, other), value in zip(angles, values, strict=True)
        ],
    )


def cosines(pairs):
    return np.cos(np.deg2rad([float(a) - float(b) for a, b in zip(pairs.first, pairs.second, strict=True)]))


def test_sts_correlates_all_pairs_of_all_subsets_and_each_subset(tmp_path):
    rng = np.random.default_rng(1)
    pairs_of(tmp_path / "years/one.jsonl", rng.uniform(0, 5, 40).tolist(), seed=1)
    pairs_of(tmp_path / "years/two.jsonl", rng.uniform(0, 5, 20).tolist(), seed=2)
    pairs = load_pairs(f"sts:{tmp_path / 'years'}")
    report = evaluate_sts(Angles(), pairs)
    found = cosines(pairs)
    assert list(report.metrics)[:2] == ["cosine_spearman", "cosine_pearson"]
    assert report.metrics["cosine_spearman"] == pytest.approx(spearmanr(found, pairs.values).statistic, abs=1e-6)
    assert report.metrics["cosine_pearson"] == pytest.approx(pearsonr(found, pairs.values).statistic, abs=1e-6)
    one, two = (spearmanr(found[rows], pairs.values[rows]).statistic for rows in (slice(0, 40), slice(40, 60)))
    assert {name: values["cosine_spearman"] for name, values in report.subsets.items()} == pytest.approx(
        {"one": one, "two": two}, abs=1e-6
    )
    assert report.metrics["cosine_spearman_mean"] == pytest.approx((one + two) / 2, abs=1e-6)
    assert report.metrics["cosine_spearman_wmean"] == pytest.approx((40 * one + 20 * two) / 60, abs=1e-6)
    assert report.interval[0] < report.metrics["cosine_spearman"] < report.interval[1]
    assert evaluate_sts(Angles(length=7), pairs).metrics == pytest.approx(report.metrics, abs=1e-6)


def test_a_text_is_encoded_once_and_equals_itself_exactly(tmp_path):
    same = [{"sentence1": str(angle), "sentence2": str(angle), "score": 5} for angle in (13, 77, 131)]
    other = [{"sentence1": "13", "sentence2": "77", "score": score} for score in (1, 2)]
    pairs = load_pairs(f"sts:{write(tmp_path / 'same.jsonl', same + other)}")
    encoder = Angles()
    report = evaluate_sts(encoder, pairs)
    assert encoder.calls == [["13", "77", "131"]]
    # Equal sentences are ties at the top, equal pairs are ties below.
    assert report.metrics["cosine_spearman"] == pytest.approx(spearmanr([2, 2, 2, 1, 1], pairs.values).statistic)


def test_subsets_without_a_correlation_and_odd_pairs_are_said(tmp_path):
    records = [{"sentence1": str(row), "sentence2": "90", "score": row, "subset": "good"} for row in range(5)]
    records += [{"sentence1": str(row), "sentence2": "", "score": 3, "subset": "flat"} for row in range(5)]
    records += [records[0]]
    report = evaluate_sts(Angles(), load_pairs(f"sts:{write(tmp_path / 'x.jsonl', records)}"))
    said = " ".join(report.notices)
    assert "5 of 11 pairs hold an empty sentence" in said
    assert "1 of 11 pairs occur again" in said
    assert "Subset 'flat' has no correlation of its own" in said
    assert list(report.subsets) == ["good"]
    assert report.metrics["cosine_spearman_mean"] == report.subsets["good"]["cosine_spearman"]


@pytest.mark.parametrize(
    ("kind", "records", "message"),
    [
        ("sts", [{"sentence1": "1", "sentence2": "2", "score": 3}] * 2, "found 2 pairs; expected at least 3"),
        ("sts", [{"sentence1": "1", "sentence2": "2", "score": 3}] * 5, "every score is 3; expected different ones"),
        ("sts", [{"sentence1": "1", "sentence2": "2", "score": float("nan")}], "line 1: score is nan; expected a fin"),
        ("sts", [{"sentence1": "1", "sentence2": "2", "score": "3"}], "line 1: score is '3'; expected a finite"),
        ("sts", [{"sentence1": "1", "sentence2": "2"}], "line 1: score is None"),
        ("sts", [{"sentence1": "1", "score": 3}], "found fields 'sentence1', 'score'; expected 'sentence2'"),
        ("pairs", [{"sentence1": "1", "sentence2": "2", "label": 2}], "line 1: label is 2; expected 0 or 1"),
        ("pairs", [{"sentence1": "1", "sentence2": "2", "label": 1}] * 4, "every label is 1"),
        ("reranking", [{"query": "1", "positive": "2", "negative": []}], "field 'positive' is '2'; expected a list"),
        ("reranking", [{"query": "1", "positive": ["2"], "negative": []}], "no query with a positive and a negative"),
    ],
)
def test_sets_without_a_measure_are_refused(tmp_path, kind, records, message):
    with pytest.raises(InputError, match=message):
        load_pairs(f"{kind}:{write(tmp_path / 'bad.jsonl', records)}")


def test_specs(tmp_path):
    assert [pairs_kind(spec) for spec in ("sts:a", "pairs:a", "reranking:a")] == ["sts", "pairs", "reranking"]
    assert [pairs_kind(spec) for spec in ("scifact", "hf:a/b", "sts", None)] == [None] * 4
    with pytest.raises(InputError, match="'scifact' is no set of pairs; expected one of sts:FILE, pairs:FILE"):
        load_pairs("scifact")
    with pytest.raises(InputError, match="no such file"):
        load_pairs(f"sts:{tmp_path / 'none.jsonl'}")
    with pytest.raises(InputError, match="no files of JSON lines"):
        load_pairs(f"sts:{tmp_path}")


def test_the_fingerprint_is_of_the_data_not_of_its_name(tmp_path):
    one, again, other = (
        pairs_of(tmp_path / name, [1, 2, 3], seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    prints = [load_pairs(f"sts:{path}").fingerprint for path in (one, again, other)]
    assert prints[0] == prints[1] != prints[2]


def test_an_encoder_that_gives_no_numbers_or_one_number_is_refused(tmp_path):
    pairs = load_pairs(f"sts:{pairs_of(tmp_path / 'a.jsonl', [1, 2, 3])}")
    with pytest.raises(InputError, match="is not finite; the encoder is broken for this text"):
        evaluate_sts(Angles(length=float("nan")), pairs)
    with pytest.raises(InputError, match="all 3 numbers are 0; a correlation needs"):
        evaluate_sts(Angles(length=0), pairs)
    with pytest.raises(InputError, match="prompt is 'both'; expected one of document, query"):
        evaluate_sts(Angles(), pairs, prompt="both")
    with pytest.raises(InputError, match="a is a set of kind 'sts'; expected 'pairs'"):
        evaluate_pair_classification(Angles(), pairs)


def by_hand(scores, labels):
    """F1 and accuracy at every threshold between two different scores."""
    values = sorted(set(scores))
    f1 = accuracy = 0.0
    for low, high in itertools.pairwise(values):
        said = scores > (low + high) / 2
        hits = (said & labels).sum()
        f1 = max(f1, 2 * hits / (said.sum() + labels.sum()))
        accuracy = max(accuracy, (said == labels).mean())
    return f1, accuracy


@pytest.mark.parametrize("seed", range(8))
def test_classification_equals_scikit_learn_and_every_threshold_tried(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, 60) / 12 if seed % 2 else rng.random(60)
    labels = rng.random(60) < 0.1 + 0.6 * scores
    found = classification_measures(scores, labels)
    assert found["ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert (found["f1"], found["accuracy"]) == pytest.approx(by_hand(scores, labels), abs=1e-12)
    both = found["precision"], found["recall"]
    assert 2 * both[0] * both[1] / sum(both) == pytest.approx(found["f1"])


def test_one_score_for_all_is_cut_nowhere():
    found = classification_measures(np.ones(4), np.array([True, False, False, False]))
    assert found == {"ap": 0.25, "f1": 0.0, "accuracy": 0.0, "precision": 0.0, "recall": 0.0}


def test_reranking_orders_each_querys_own_documents(tmp_path):
    records = [
        {"query": "0", "positive": ["91"], "negative": ["120", "150"]},  # the query is turned by 90
        {"query": "0", "positive": ["150"], "negative": ["100", "95"]},
        {"query": "10", "positive": ["40"], "negative": ["40"]},  # a tie counts against the encoder
        {"query": "5", "positive": [], "negative": ["1"]},
    ]
    given = load_pairs(f"reranking:{write(tmp_path / 'r.jsonl', records)}")
    report = evaluate_reranking(Angles(), given)
    assert report.metrics["MAP"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert report.metrics["MRR"] == report.metrics["MAP"]
    assert report.size == 3
    said = " ".join(report.notices)
    assert "1 queries without a positive or without a negative document were left out" in said
    assert "1 queries have a text among their positive and their negative documents" in said
    with pytest.raises(InputError, match="reranking gives queries and documents each their own"):
        evaluate_pairs(Angles(), given, prompt="query")


def test_the_command_measures_pairs_and_writes_them(tmp_path, model_folder, encoder, capsys):
    records = [
        {"sentence1": f"{a} walk", "sentence2": f"{b} water", "score": score}
        for a, b, score in [("dog", "dog", 5), ("cat", "tree", 1), ("bank", "bank", 4), ("dog", "cloud", 0.5)]
    ]
    path = write(tmp_path / "mine.jsonl", records)
    commands.evaluate(f"sts:{path}", encoder=str(model_folder), json=tmp_path / "out.json")
    document = json.loads((tmp_path / "out.json").read_text())
    pairs = load_pairs(f"sts:{path}")
    assert document["metrics"] == evaluate_sts(encoder, pairs).metrics
    assert document["dataset"] == {"name": "mine", "kind": "sts", "pairs": 4, "fingerprint": pairs.fingerprint}
    assert document["made_by"]["encoder fingerprint"] == encoder.fingerprint
    low, high = document["intervals"]["cosine_spearman"]
    assert low <= document["metrics"]["cosine_spearman"] <= high
    printed = capsys.readouterr()
    assert "cosine_spearman" in printed.out
    assert "95% interval" in printed.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "is measured by an encoder; give --encoder"),
        ({"encoder": "a", "hybrid": True, "k": 5}, "pairs and not searched; leave out -k, --hybrid"),
        ({"encoder": "a", "split": "dev"}, "leave out --split"),
    ],
)
def test_options_of_searching_are_refused_for_pairs(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        commands.evaluate(f"sts:{pairs_of(tmp_path / 'a.jsonl', [1, 2, 3])}", **options)


def test_prompt_is_of_pairs_only(tmp_path):
    with pytest.raises(InputError, match="--prompt is for pairs"):
        commands.evaluate(str(tmp_path), encoder="a", prompt="query")
    records = [{"query": "0", "positive": ["91"], "negative": ["120"]}]
    with pytest.raises(InputError, match="--prompt is for sentence pairs"):
        commands.evaluate(f"reranking:{write(tmp_path / 'r.jsonl', records)}", encoder="a", prompt="query")
