"""Indexes of our own measured as arrays, and approximate ones held against exact search."""

import json

import numpy as np
import pytest
from fixtures import random_texts

from evaluation import commands
from evaluation.index_runs import against_exact, exact_run
from evaluation.measures import ann_recall
from evaluation.run_table import RunTable
from evaluation.systems import evaluate, evaluate_run
from evaluation.testsets import load_dataset, write_collection
from indexes.errors import InputError
from indexes.hits import Hits
from retrieval.building import build_index
from retrieval.documents import Document
from retrieval.retriever import Retriever

MEASURES = ["nDCG@10", "MAP", "Recall@5", "Hole@10"]


class Plain:
    """The same retriever to whoever does not know its rows."""

    def __init__(self, retriever):
        self.modes, self.search_many = retriever.modes, retriever.search_many


@pytest.fixture(scope="module")
def built(tmp_path_factory, encoder):
    """A collection whose queries are document ids too, and its index, with deleted documents and two segments."""
    folder = tmp_path_factory.mktemp("built")
    texts = random_texts(300)
    texts[7] = texts[5]  # a tie
    documents = [Document(f"d{number}", text) for number, text in enumerate(texts)]
    queries = {f"d{number}": text for number, text in enumerate(random_texts(9, seed=2, longest=6))}
    rng = np.random.default_rng(0)
    qrels = {query: {f"d{row}": int(rng.integers(-1, 3)) for row in rng.integers(0, 320, 12)} for query in queries}
    write_collection(folder / "toy", documents, queries, {"test": qrels})
    vectors = encoder.encode_corpus(documents[:250], folder / "v")
    build_index(vectors, folder / "i", factory="IVF16,SQ8", documents=documents[:250])
    retriever = Retriever.open(folder / "i", encoder)
    retriever.add(documents[250:])
    retriever.index.delete(["d9", "d255"])
    return folder, retriever


@pytest.mark.parametrize("drop", [False, True])
def test_rows_give_the_report_that_hits_give(built, drop):
    folder, retriever = built
    testset = load_dataset(folder / "toy", drop_self_matches=drop)
    seen = []
    found = evaluate(retriever, testset, measures=MEASURES, k=40, on_progress=lambda *now: seen.append(now))
    right = evaluate(Plain(retriever), testset, measures=MEASURES, k=40)
    assert list(found.systems) == ["lexical", "dense", "hybrid"]
    assert seen == [(9, 27), (18, 27), (27, 27)]
    for mode, system in found.systems.items():
        assert isinstance(system.run, RunTable)
        assert system.per_query == right.systems[mode].per_query
        for query, one in right.systems[mode].run.items():
            assert system.run[query].ids == one.ids
            assert np.array_equal(system.run[query].scores, one.scores)
    assert (found.systems["dense"].run.counts == 40).all()
    assert found.notices == right.notices


def test_exact_search_beside_an_index_is_that_of_its_vectors(built, encoder):
    folder, retriever = built
    testset = load_dataset(folder / "toy")
    exact = exact_run(retriever, testset, 20, lambda done, total: None)
    asked = encoder.encode_queries(list(testset.queries.values())).astype(np.float64)
    stored = list(retriever.index)
    scores = asked @ np.concatenate([one.vectors for one in stored]).astype(np.float64).T
    for query, mine in zip(exact.values(), scores.astype(np.float32), strict=True):
        assert np.array_equal(query.scores, np.sort(mine)[::-1][:20])
        assert {"d9", "d255"}.isdisjoint(query.ids)
    run = evaluate(retriever, testset, measures=["MAP"], k=20, modes=["dense"]).main.run
    found = against_exact(run, retriever, testset, [5, 20], lambda done, total: None)
    for k in (5, 20):
        values = list(ann_recall(run, exact, k).values())
        assert found[f"recall@{k}"] == (pytest.approx(np.mean(values)), min(values))
    assert against_exact(exact, retriever, testset, [20], lambda *_: None)["recall@20"] == (1.0, 1.0)
    with pytest.raises(InputError, match="no depth"):
        against_exact(run, retriever, testset, [], lambda *_: None)


def test_the_command_says_the_recall_of_an_index(built, tmp_path, encoder, capsys):
    folder, _ = built
    dataset = load_dataset(folder / "toy")
    vectors = encoder.encode_corpus(dataset.documents(), tmp_path / "v")
    build_index(vectors, tmp_path / "i", factory="IVF16,SQ4", documents=dataset.documents())
    out = tmp_path / "out.json"
    commands.evaluate(str(folder / "toy"), index=tmp_path / "i", against_exact=True, k=30, measure=["MAP"], json=out)
    document = json.loads(out.read_text())
    assert list(document["against_exact"]) == ["dense"]
    assert 0 < document["against_exact"]["dense"]["recall@10"] <= 1
    line = next(one for one in document["notices"] if "against exact search" in one)
    assert f"recall@10 {document['against_exact']['dense']['recall@10']:.4f}" in line
    assert "recall@100" not in line  # which 30 hits cannot tell
    assert "dense search in IVF16,SQ4 against exact search" in " ".join(capsys.readouterr().err.split())


def test_an_index_that_changes_while_it_is_measured_is_refused(built, monkeypatch):
    folder, retriever = built
    testset = load_dataset(folder / "toy")
    monkeypatch.setattr("evaluation.index_runs._QUERIES_AT_ONCE", 4)
    readers = iter([retriever.index.reader, Retriever.open(folder / "i", retriever.encoder).index.reader])

    class Changing:
        modes = ("dense",)

        def search_rows(self, texts, k, *, mode):
            return Hits(np.zeros((len(texts), 1), np.int64), np.ones((len(texts), 1), np.float32)), next(readers)

    with pytest.raises(InputError, match="was changed while it was measured"):
        evaluate(Changing(), testset, measures=["MAP"])


def test_documents_and_hits_that_are_not_there_are_said(built):
    folder, _ = built
    testset = load_dataset(folder / "toy")
    hits = {query: {"d1": 2.0, "lost": 1.0} for query in testset.queries} | {"d0": {}, "d1": {"d2": 1.0, "gone": 0.5}}
    queries = list(hits)
    ids = ["d1", "d2", "gone", "lost"]
    rows = np.array([ids.index(name) for one in hits.values() for name in one])
    scores = np.array([score for one in hits.values() for score in one.values()])
    table = RunTable.of(queries, np.cumsum([0, *(len(one) for one in hits.values())]), rows, scores, ids)
    for run in (table, dict(table)):
        report = evaluate_run(run, testset, name="mine", measures=["MAP"], check_documents=True)
        assert report.notices[-2:] == (
            "1 of 9 queries have no hits in 'mine'; they count 0.",
            "2 documents of run 'mine' are not in the corpus, such as 'gone'; their 8 hits keep their ranks and are "
            "not relevant unless judged so.",
        )
    assert len(evaluate_run(table, testset, measures=["MAP"]).notices) == len(report.notices) - 1
