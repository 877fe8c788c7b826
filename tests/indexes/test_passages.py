"""Indexes over passages: documents by their best passage, against brute force over all of them."""

import json

import numpy as np
import pytest

from indexes.checksums import fingerprint
from indexes.errors import InputError
from indexes.index import Entry, Index
from indexes.passages import check_passages
from indexes.storage import calibrate
from indexes.vector_writer import VectorWriter

DOCUMENTS, D = 220, 32
FACTORIES = ["HNSW32", "IVF4,Flat", "SQ8", "PQ8x4fs", "IVF4,PQ8x4fs,RFlat"]


def unit(rng, rows, dim=D):
    vectors = rng.normal(size=(rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def coarse(rng, rows, dim=64):
    """Unit vectors of ±1/8, mostly +: products are 32nds, exact in any order of summing, often equal."""
    return np.where(rng.random((rows, dim)) < 0.8, 0.125, -0.125).astype(np.float32)


def table_of(counts):
    """Passages in the order of their documents; characters that no two passages share, to tell them apart."""
    begins = np.arange(sum(counts)) * 10
    return np.stack([np.repeat(np.arange(len(counts)), counts), begins, begins + 9], axis=1).astype(np.int64)


def make_store(folder, vectors, counts, *, storage="float32", shard_documents=90):
    """A vectors folder of several shards, each counting its documents from 0, as encoding writes it."""
    made_by = {"fingerprint": "f" * 64, "encoder": "a", "dim": vectors.shape[1], "normalize": True}
    encoding = {"shard_rows": shard_documents, "storage": storage, "long_documents": "passages"}
    writer = VectorWriter(folder, made_by=made_by, encoding=encoding)
    if storage == "int8":
        writer.set_calibration(calibrate(vectors))
    table, shards = table_of(counts), range(0, len(counts), shard_documents)
    for shard, first in enumerate(shards):
        last = min(first + shard_documents, len(counts))
        here = (table[:, 0] >= first) & (table[:, 0] < last)
        ids = [f"d{document}" for document in range(first, last)]
        writer.write(shard, vectors[here], ids, f"source {shard}", passages=table[here] - [first, 0, 0])
    return writer.finish(len(shards), {"source": None, "fingerprint": None})


def entries():
    words = (np.random.default_rng(4).integers(0, 9, size=DOCUMENTS)).tolist()
    return (Entry(f"d{n}", ["all", f"w{word}"], f"text {n}") for n, word in enumerate(words))


def max_scores(queries, vectors, counts):
    """(q, documents) in float64: the plain definition."""
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    ends = np.cumsum(counts)
    return np.stack([products[:, end - n : end].max(axis=1) for end, n in zip(ends, counts, strict=True)], axis=1)


def order_of(scores, k):
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.fixture(scope="module")
def counts():
    return np.random.default_rng(0).integers(1, 7, size=DOCUMENTS)


@pytest.fixture(scope="module")
def vectors(counts):
    return unit(np.random.default_rng(1), counts.sum())


@pytest.fixture(scope="module")
def queries():
    return unit(np.random.default_rng(2), 30)


@pytest.fixture(scope="module")
def store(tmp_path_factory, vectors, counts):
    return make_store(tmp_path_factory.mktemp("vectors") / "v", vectors, counts)


@pytest.fixture(scope="module")
def flat(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "i"
    return Index.build(store, "Flat", folder, entries=entries(), analyzer="none")


@pytest.mark.parametrize("k", [1, 10, 100, DOCUMENTS, DOCUMENTS + 50])
def test_flat_gives_the_best_documents_by_their_best_passages(flat, vectors, queries, counts, k):
    truth = max_scores(queries, vectors, counts)
    found = flat.search(queries, k)
    assert found.rows.shape == (len(queries), min(k, DOCUMENTS))
    np.testing.assert_array_equal(found.rows, order_of(truth, k))
    np.testing.assert_allclose(found.scores, np.take_along_axis(truth, found.rows, axis=1), atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_flat_breaks_ties_by_document_across_blocks(tmp_path, monkeypatch, seed):
    """Sums that are exact in float32: documents and scores equal brute force bit for bit, ties and all."""
    rng = np.random.default_rng(seed)
    counts = np.concatenate([rng.integers(1, 7, size=150), [60], rng.integers(1, 4, size=20)])
    vectors, queries = coarse(rng, counts.sum()), coarse(rng, 25)
    monkeypatch.setattr("indexes.exact._ROWS_AT_ONCE", 40)
    monkeypatch.setattr("indexes.exact._QUERIES_AT_ONCE", 10)
    index = Index.build(make_store(tmp_path / "v", vectors, counts), "Flat", tmp_path / "i")
    truth = max_scores(queries, vectors, counts)
    assert len(np.unique(truth)) < 40  # ties everywhere
    for k in (1, 7, 60, len(counts)):
        found = index.search(queries, k)
        np.testing.assert_array_equal(found.rows, order_of(truth, k))
        np.testing.assert_array_equal(found.scores, np.take_along_axis(truth, found.rows, axis=1))


@pytest.mark.parametrize("factory", FACTORIES)
def test_every_factory_gives_each_document_once_and_min_k_n_of_them(store, vectors, queries, counts, factory, tmp_path):
    index = Index.build(store, factory, tmp_path / "i")
    truth = max_scores(queries, vectors, counts)
    for k in (1, 10, DOCUMENTS, DOCUMENTS + 50):
        found = index.search(queries, k)
        assert found.rows.shape == (len(queries), min(k, DOCUMENTS))
        assert all(len(set(line.tolist())) == min(k, DOCUMENTS) for line in found.rows)
        assert found.rows.min() >= 0
        np.testing.assert_allclose(found.scores, np.take_along_axis(truth, found.rows, axis=1), atol=1e-6)
        assert (np.diff(found.scores, axis=1) <= 0).all()
    if factory in ("HNSW32", "SQ8"):
        best = order_of(truth, 10)
        found = index.search(queries, 10).rows
        assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, best, strict=True)]) > 0.97


def test_looks_deeper_where_one_document_crowds_the_others_out(tmp_path, monkeypatch):
    """One document has most of the passages and all of the best ones."""
    rng = np.random.default_rng(5)
    query = unit(rng, 1)
    crowd = query + 0.05 * unit(rng, 400)
    vectors = np.concatenate([crowd / np.linalg.norm(crowd, axis=1, keepdims=True), unit(rng, 300)]).astype(np.float32)
    counts = [400, *[2] * 150]
    index = Index.build(make_store(tmp_path / "v", vectors, counts), "HNSW32", tmp_path / "i")
    depths, search = [], index.reader.segments[0].dense.search
    monkeypatch.setattr(
        index.reader.segments[0].dense, "search", lambda queries, k, *_: depths.append(k) or search(queries, k)
    )
    truth = max_scores(query, vectors, counts)
    np.testing.assert_array_equal(index.search(query, 5).rows, order_of(truth, 5))
    assert depths == [100, 400]  # and then all documents, rather than 1,600 of 700 passages
    depths.clear()
    other = unit(rng, 1)
    np.testing.assert_array_equal(index.search(other, 5).rows[:, 0], order_of(max_scores(other, vectors, counts), 1)[0])
    assert depths == [100]


def test_scores_of_given_documents_and_the_passage_that_won(flat, vectors, queries, counts):
    truth = max_scores(queries, vectors, counts)
    rows = np.random.default_rng(3).integers(-1, DOCUMENTS, size=(len(queries), 17))
    rows[0] = -1
    expected = np.where(rows < 0, -np.inf, np.take_along_axis(truth, np.maximum(rows, 0), axis=1))
    np.testing.assert_allclose(flat.reader.scores(queries, rows), expected, atol=1e-6)
    starts = np.cumsum(counts) - counts
    for row in range(0, DOCUMENTS, 7):
        best = int((vectors[starts[row] : starts[row] + counts[row]] @ queries[0]).argmax())
        assert flat.reader.passage(queries[0], row) == (10 * (starts[row] + best), 10 * (starts[row] + best) + 9)


def test_the_folder_keeps_passages_and_counts_both(flat, store, queries):
    manifest = json.loads((flat.folder / "manifest.json").read_text())
    assert (
        (manifest["documents"], manifest["rows"])
        == (DOCUMENTS, len(store))
        == (len(flat), flat.reader.segments[0].dense.rows)
    )
    assert manifest["encoding"] == flat.reader.encoding == store.encoding
    assert "segment-000001/passages.npy" in manifest["files"]
    opened = Index.open(flat.folder)
    np.testing.assert_array_equal(opened.search(queries, 9).rows, flat.search(queries, 9).rows)
    assert opened.reader.passage(queries[0], 5) == flat.reader.passage(queries[0], 5)
    assert list(opened.reader.ids) == [f"d{n}" for n in range(DOCUMENTS)]
    assert opened.reader.lexical.rows == DOCUMENTS


@pytest.mark.parametrize("storage", ["float16", "int8", "binary"])
def test_rows_kept_in_other_forms_are_searched_as_they_are_read_back(tmp_path, vectors, queries, counts, storage):
    store = make_store(tmp_path / "v", vectors, counts, storage=storage)
    truth = max_scores(queries, store[:], counts)
    for factory in ("Flat", "SQ8"):
        index = Index.build(store, factory, tmp_path / factory)
        found = index.search(queries, 10)
        np.testing.assert_allclose(found.scores, np.take_along_axis(truth, found.rows, axis=1), atol=1e-6)
        assert index.reader.segments[0].dense.targets.vectors.dtype == np.float32
        if factory == "Flat":
            np.testing.assert_allclose(found.scores, -np.sort(-truth, axis=1)[:, :10], atol=1e-6)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([0, 2, 2], "hold document 2 at row 1"),
        ([0, 1, 0], "hold document 0 at row 2"),
        ([1, 1, 2], "hold document 1 at row 0"),
        ([0, 1, 1], "hold nothing at row 3"),
        ([0, 1, 3], "hold document 3 at row 2"),
        ([0, 1], r"have shape \(2, 3\); expected \(3, 3\)"),
    ],
)
def test_passages_that_are_not_the_documents_in_order_are_refused(tmp_path, documents, message):
    table = np.array([(document, 0, 1) for document in documents], np.int64)
    with pytest.raises(InputError, match=f"{tmp_path}: passages {message}.*make the vectors again"):
        check_passages(table, 3, 3, tmp_path)
    check_passages(table_of([1, 1, 1]), 3, 3, tmp_path)


def test_an_index_whose_passages_are_of_another_is_refused(store, vectors, counts, tmp_path):
    Index.build(store, "Flat", tmp_path / "i")
    path, manifest = tmp_path / "i" / "segment-000001" / "passages.npy", tmp_path / "i" / "manifest.json"
    np.save(path, table_of(counts)[:-1])
    listed = json.loads(manifest.read_text())
    del listed["files"]["segment-000001/passages.npy"]  # as if the checksums had been made to fit
    del listed["checksum"]
    manifest.write_text(json.dumps({**listed, "checksum": fingerprint(listed)}))
    with pytest.raises(
        InputError, match=f"dense.faiss holds {len(vectors)} rows of {len(vectors) - 1}; make the index again"
    ):
        Index.open(tmp_path / "i")
