"""Retrievers: lexical, dense and fused search against a plain computation over all documents."""

import numpy as np
import pytest
from fixtures import random_texts

from indexes.errors import InputError
from indexes.index import Entry, Index
from indexes.vectors import save_vectors
from retrieval.analyzer import Analyzer
from retrieval.encoder import Encoder
from retrieval.fusion import search_z_scores, z_score
from retrieval.retriever import Retriever, build_index

QUERIES = random_texts(12, seed=5, longest=6)


@pytest.fixture
def retriever(tmp_path, encoder, documents):
    vectors = encoder.encode_corpus(documents, tmp_path / "v")
    return Retriever(build_index(vectors, tmp_path / "index", documents=documents), encoder)


def all_scores(retriever, documents):
    vectors = retriever.encoder.encode_documents([document.content for document in documents])
    dense = retriever.encoder.encode_queries(QUERIES) @ vectors.T
    terms = [Analyzer().terms(query) for query in QUERIES]
    return dense.astype(np.float64), np.array([retriever.index.lexical.scores(one) for one in terms], dtype=np.float64)


def standardised(scores):
    return (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, keepdims=True)


def ids_of(hits):
    return [[hit.id for hit in line] for line in hits]


def test_dense_and_lexical_are_the_best_of_all(retriever, documents):
    dense, lexical = all_scores(retriever, documents)
    assert ids_of(retriever.search_many(QUERIES, 7, mode="dense")) == [
        [f"d{row}" for row in np.argsort(-line, kind="stable")[:7]] for line in dense
    ]
    for hits, line in zip(retriever.search_many(QUERIES, 50, mode="lexical"), lexical, strict=True):
        assert [hit.id for hit in hits] == [f"d{row}" for row in np.argsort(-line, kind="stable") if line[row] > 0]
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))


@pytest.mark.parametrize("k", [1, 5, 50, 80])
def test_fused_by_z_scores_is_exact_over_the_whole_collection(retriever, documents, k):
    dense, lexical = all_scores(retriever, documents)
    fused = standardised(dense) + 0.5 * standardised(lexical)
    for hits, line in zip(retriever.search_many(QUERIES, k), fused, strict=True):
        order = np.argsort(-line, kind="stable")[:k]
        np.testing.assert_allclose([hit.score for hit in hits], line[order], atol=1e-4)
        assert [hit.id for hit in hits] == [f"d{row}" for row in order]


def test_the_threshold_deepens_until_no_document_can_be_missed(tmp_path):
    """The dense order is the reverse of BM25's, so that the best fused documents are at the top of neither."""
    n = 600
    angles = np.linspace(0, np.pi / 2, n)
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    store = save_vectors(tmp_path / "v", rows, [f"d{row}" for row in range(n)], made_by={"normalize": True})
    entries = (Entry(f"d{row}", ["word"] * (row + 1), "") for row in range(n))
    index = Index.build(store, "Flat", tmp_path / "i", entries=entries, analyzer="none")
    depths = []
    search = index.search
    index.search = lambda queries, k: depths.append(k) or search(queries, k)
    query = np.array([[1.0, 0.0]], np.float32)
    found = search_z_scores(index, query, [["word"]], 10, weight=1.0)
    lexical = index.lexical.scores(["word"]).astype(np.float64)[None]
    fused = standardised((query @ rows.T).astype(np.float64)) + standardised(lexical)
    best = np.argsort(-fused[0], kind="stable")[:10]
    np.testing.assert_array_equal(found.rows[0], best)
    assert not set(best) & set(range(100))
    assert depths == [100, 400]


def test_reciprocal_ranks(retriever, documents):
    by_rank = Retriever(retriever.index, retriever.encoder, fusion="rrf", weight=0.7)
    dense, lexical = (retriever.search_many(QUERIES, 50, mode=mode) for mode in ("dense", "lexical"))
    for hits, ours, theirs in zip(by_rank.search_many(QUERIES, 10), dense, lexical, strict=True):
        gains = {hit.id: 1 / (60 + hit.rank) for hit in ours}
        for hit in theirs:
            gains[hit.id] += 0.7 / (60 + hit.rank)
        np.testing.assert_allclose([hit.score for hit in hits], sorted(gains.values(), reverse=True)[:10], rtol=1e-6)
        np.testing.assert_allclose([gains[hit.id] for hit in hits], [hit.score for hit in hits], rtol=1e-6)


def test_weight_zero_is_the_dense_order(retriever):
    alone = Retriever(retriever.index, retriever.encoder, weight=0.0)
    assert ids_of(alone.search_many(QUERIES, 10)) == ids_of(retriever.search_many(QUERIES, 10, mode="dense"))


def test_a_query_without_known_words_falls_back_to_dense_order(retriever):
    hits, dense = retriever.search("zzz qqq", 5), retriever.search("zzz qqq", 5, mode="dense")
    assert [hit.id for hit in hits] == [hit.id for hit in dense]
    assert retriever.search("zzz qqq", 5, mode="lexical") == []
    assert z_score(np.ones(3), 1.0, 0.0).tolist() == [0, 0, 0]


def test_hits_bring_their_texts_and_min_k_n(retriever, documents):
    texts = {document.id: document.content for document in documents}
    hits = retriever.search("river stone", 100)
    assert len(hits) == 50
    assert all(hit.text == texts[hit.id] for hit in hits)


def test_opening_finds_the_encoder_and_refuses_another(retriever, tmp_path, model_folder):
    folder = retriever.index.folder
    assert ids_of(Retriever.open(folder).search_many(QUERIES, 5)) == ids_of(retriever.search_many(QUERIES, 5))
    with pytest.raises(InputError, match=r"made by another encoder .*max_length: 32 ≠ 16"):
        Retriever.open(folder, Encoder.load(str(model_folder), max_length=16))


def test_an_index_remembers_a_shorter_length_and_another_precision(tmp_path, documents, model_folder):
    encoder = Encoder.load(str(model_folder), max_length=16, dtype="bfloat16")
    vectors = encoder.encode_corpus(documents, tmp_path / "v")
    index = build_index(vectors, tmp_path / "i")
    opened = Retriever.open(tmp_path / "i")
    assert opened.modes == ("dense",)
    assert opened.encoder.fields == encoder.fields
    assert len(index) == 50


def test_an_index_is_not_built_over_texts_that_changed(tmp_path, encoder, documents):
    vectors = encoder.encode_corpus(documents, tmp_path / "v")
    changed = [documents[0]._replace(text="other words"), *documents[1:]]
    with pytest.raises(InputError, match="was made of other texts"):
        build_index(vectors, tmp_path / "i", documents=changed)
    assert not (tmp_path / "i").exists()


def test_no_queries_give_no_hits(retriever):
    for fusion in ("zscore", "rrf"):
        for mode in retriever.modes:
            assert Retriever(retriever.index, retriever.encoder, fusion=fusion).search_many([], mode=mode) == []


def test_bad_arguments(retriever):
    for arguments, message in (
        ({"mode": "fuzzy"}, "cannot be searched by 'fuzzy'; it has lexical, dense, hybrid"),
        ({"k": 0}, "k is 0; expected at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            retriever.search("river", **arguments)
    with pytest.raises(InputError, match="fusion is 'sum'"):
        Retriever(retriever.index, retriever.encoder, fusion="sum")
    with pytest.raises(InputError, match="weight of BM25 is -1"):
        Retriever(retriever.index, retriever.encoder, weight=-1)
