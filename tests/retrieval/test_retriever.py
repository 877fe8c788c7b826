"""Retrievers: lexical, dense and fused search against a plain computation over all documents."""

import numpy as np
import pytest
from fixtures import random_texts

from indexes.errors import InputError
from indexes.index import Entry, Index
from indexes.shards import ShardedIndex
from indexes.transfer import save_vectors
from indexes.vector_writer import VectorWriter
from retrieval.analyzer import Analyzer
from retrieval.building import build_index
from retrieval.documents import Document, corpus_fingerprint
from retrieval.encoder import Encoder
from retrieval.fusion import Scale, search_z_scores
from retrieval.retriever import Hit, Retriever

QUERIES = random_texts(12, seed=5, longest=6)


@pytest.fixture
def retriever(tmp_path, encoder, documents):
    vectors = encoder.encode_corpus(documents, tmp_path / "v")
    return Retriever(build_index(vectors, tmp_path / "index", documents=documents), encoder)


def cut(document, number):
    """Where the passages of a document begin and end: 1 to 4 pieces of whole words."""
    words = document.content.split(" ")
    size = -(-len(words) // (1 + number % 4))
    pieces = [" ".join(words[first : first + size]) for first in range(0, len(words), size)]
    ends = np.cumsum([len(piece) + 1 for piece in pieces]) - 1
    return [(end - len(piece), end) for piece, end in zip(pieces, ends.tolist(), strict=True)]


@pytest.fixture
def of_passages(tmp_path, encoder, documents):
    """A retriever over passages, and for each document the vectors of its own (passages, d)."""
    spans = [cut(document, number) for number, document in enumerate(documents)]
    table = np.array([(row, *span) for row, mine in enumerate(spans) for span in mine], np.int64)
    vectors = encoder.encode_documents([documents[row].content[begin:end] for row, begin, end in table.tolist()])
    encoding = {"shard_rows": 50, "storage": "float32", "long_documents": "passages"}
    writer = VectorWriter(tmp_path / "v", made_by=encoder.made_by, encoding=encoding)
    writer.write(0, vectors, [document.id for document in documents], "all", passages=table)
    store = writer.finish(1, {"source": None, "fingerprint": corpus_fingerprint(documents)})
    retriever = Retriever(build_index(store, tmp_path / "index", documents=documents), encoder)
    return retriever, [vectors[table[:, 0] == row] for row in range(len(documents))]


def all_scores(retriever, documents):
    vectors = retriever.encoder.encode_documents([document.content for document in documents])
    dense = retriever.encoder.encode_queries(QUERIES) @ vectors.T
    terms = [Analyzer().terms(query) for query in QUERIES]
    return dense.astype(np.float64), np.array(
        [retriever.index.reader.lexical.scores(one) for one in terms], dtype=np.float64
    )


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
    index = Index.build(store, "Flat", tmp_path / "i", entries=entries, analyzer="none").reader
    depths = []
    search = index.search
    index.search = lambda queries, k, filter=None: depths.append(k) or search(queries, k)
    query = np.array([[1.0, 0.0]], np.float32)
    found = search_z_scores(index, query, [["word"]], 10, weight=1.0)
    lexical = index.lexical.scores(["word"]).astype(np.float64)[None]
    fused = standardised((query @ rows.T).astype(np.float64)) + standardised(lexical)
    best = np.argsort(-fused[0], kind="stable")[:10]
    np.testing.assert_array_equal(found.rows[0], best)
    assert not set(best) & set(range(100))
    assert depths == [100, 400]


def test_documents_that_tie_come_by_row_even_where_depth_cuts_through_them(tmp_path):
    """98 documents lead the dense ranking and lose; 502 that are all alike win, so that the first ten of them must."""
    rows = np.repeat(np.eye(2, dtype=np.float32), [98, 502], axis=0)
    store = save_vectors(tmp_path / "v", rows, [f"d{row}" for row in range(600)], made_by={"normalize": True})
    entries = (Entry(f"d{row}", ["word" if row >= 98 else "other"], "") for row in range(600))
    index = Index.build(store, "Flat", tmp_path / "i", entries=entries, analyzer="none").reader
    found = search_z_scores(index, rows[:1], [["word"]], 10, weight=2.0)
    assert found.rows.tolist() == [list(range(98, 108))]


@pytest.mark.parametrize("seed", range(4))
def test_fused_by_z_scores_over_passages_is_exact(tmp_path, monkeypatch, seed):
    """Against float64 over all documents, moments over all passages; BM25 contradicts the first query's vector."""
    rng = np.random.default_rng(seed)
    n = 600
    table = np.array([(row, 0, 1) for row, count in enumerate(rng.integers(1, 7, size=n)) for _ in range(count)])
    rows = rng.normal(size=(len(table), 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = rows[:20]
    products = queries.astype(np.float64) @ rows.astype(np.float64).T  # (q, passages)
    best = np.stack([products[:, table[:, 0] == row].max(axis=1) for row in range(n)], axis=1)  # (q, n)
    made_by = {"fingerprint": "f" * 64, "dim": 8, "normalize": True}
    writer = VectorWriter(tmp_path / "v", made_by=made_by, encoding={"shard_rows": n, "storage": "float32"})
    writer.write(0, rows, [f"d{row}" for row in range(n)], "all", passages=table)
    store = writer.finish(1, {"source": None, "fingerprint": None})
    ranks = np.argsort(np.argsort(-best[0])).tolist()
    words = [
        [*mine, "first" if rank < 150 else "last"]
        for mine, rank in zip(rng.choice(list("abcde"), (n, 3)).tolist(), ranks, strict=True)
    ]
    entries = (Entry(f"d{row}", mine, "") for row, mine in enumerate(words))
    index = Index.build(store, "Flat", tmp_path / "i", entries=entries).reader
    depths, search = [], index.search
    monkeypatch.setattr(index, "search", lambda queries, k, filter=None: depths.append(k) or search(queries, k))
    terms = [["last"], *rng.choice(list("abcde"), (19, 2)).tolist()]
    found = search_z_scores(index, queries, terms, 10, weight=1.0)
    lexical = np.array([index.lexical.scores(one) for one in terms], np.float64)
    dense = (best - products.mean(axis=1, keepdims=True)) / products.std(axis=1, keepdims=True)
    fused = dense + standardised(lexical)
    order = np.argsort(-fused, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(found.rows, order)
    np.testing.assert_allclose(found.scores, np.take_along_axis(fused, order, axis=1), atol=1e-4)
    assert depths[:2] == [100, 400]


def test_over_passages_every_mode_speaks_of_documents(of_passages, documents):
    retriever, vectors = of_passages
    queries = retriever.encoder.encode_queries(QUERIES)
    dense = np.array([[(mine @ query).max() for mine in vectors] for query in queries])
    assert ids_of(retriever.search_many(QUERIES, 7, mode="dense")) == [
        [f"d{row}" for row in np.argsort(-line, kind="stable")[:7]] for line in dense
    ]
    for fusion in ("zscore", "minmax", "rrf"):
        fused = Retriever(retriever.index, retriever.encoder, fusion=fusion)
        for mode in fused.modes:
            for hits in fused.search_many(QUERIES, 50, mode=mode):
                assert len({hit.id for hit in hits}) == len(hits)
                assert len(hits) == 50 or mode == "lexical"
    assert [hit.id for hit in retriever.search(QUERIES[0], 60)] == ids_of(retriever.search_many(QUERIES[:1], 60))[0]


def test_a_hit_shows_the_passage_that_answers_best(of_passages, documents):
    retriever, vectors = of_passages
    query = retriever.encoder.encode_queries(QUERIES[:1])[0]
    for mode in ("dense", "hybrid"):
        hits = retriever.search(QUERIES[0], 20, mode=mode)
        for hit in hits:
            begin, end = cut(documents[hit.row], hit.row)[int((vectors[hit.row] @ query).argmax())]
            assert hit.passage == (begin, end)
            assert hit.text == documents[hit.row].content
            assert hit.shown == hit.text[begin:end]
        assert any(hit.passage[0] > 0 for hit in hits)
    for hit in retriever.search(QUERIES[0], 5, mode="lexical"):
        assert hit.passage is None
        assert hit.shown == hit.text
    assert Hit("d", 1.0, 1, 0, None, (0, 3)).shown is None
    assert {hit.passage for hit in retriever.search_many(QUERIES, 5)[0]} == {None}


@pytest.mark.parametrize("k", [1, 5, 50])
def test_fused_by_min_max_is_exact_over_the_whole_collection(retriever, documents, k):
    dense, lexical = all_scores(retriever, documents)
    best = np.maximum(lexical.max(axis=1, keepdims=True), 1e-9)
    fused = (dense + 1) / (dense.max(axis=1, keepdims=True) + 1) + 0.25 * lexical / best
    scaled = Retriever(retriever.index, retriever.encoder, fusion="minmax")
    for hits, line in zip(scaled.search_many(QUERIES, k), fused, strict=True):
        order = np.argsort(-line, kind="stable")[:k]
        np.testing.assert_allclose([hit.score for hit in hits], line[order], atol=1e-5)
        assert [hit.id for hit in hits] == [f"d{row}" for row in order]
    keep = np.arange(len(documents)) % 2 == 0
    for hits, line in zip(scaled.search_many(QUERIES, 5, filter=keep), fused, strict=True):
        order = [row for row in np.argsort(-line, kind="stable") if row % 2 == 0][:5]
        assert [hit.id for hit in hits] == [f"d{row}" for row in order]


def test_min_max_needs_a_least_score(tmp_path, documents, model_folder):
    encoder = Encoder.load(str(model_folder), normalize=False)
    index = build_index(encoder.encode_corpus(documents, tmp_path / "v"), tmp_path / "i", documents=documents)
    with pytest.raises(InputError, match="compares inner products, which have no least value.*fuse by zscore or rrf"):
        Retriever(index, encoder, fusion="minmax").search("river")


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
    assert Scale(1.0, 0.0).of(np.ones(3)).tolist() == [0, 0, 0]


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


@pytest.mark.parametrize(
    "options",
    [{"max_length": 16, "dtype": "bfloat16"}, {"dim": 16, "normalize": False, "query_prompt": "river "}],
)
def test_an_index_remembers_what_its_encoder_was_told(tmp_path, documents, model_folder, options):
    encoder = Encoder.load(str(model_folder), **options)
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


def test_vectors_merged_of_parts_are_compared_part_by_part(tmp_path, encoder, documents):
    halves = documents[:20], documents[20:]
    parts = [
        {"source": f"half{number}", "fingerprint": corpus_fingerprint(half), "documents": len(half)}
        for number, half in enumerate(halves)
    ]
    writer = VectorWriter(tmp_path / "v", made_by=encoder.made_by, encoding={"shard_rows": 20, "storage": "float32"})
    for shard, half in enumerate(halves):
        vectors = encoder.encode_documents([document.content for document in half])
        writer.write(shard, vectors, [document.id for document in half], f"half{shard}")
    store = writer.finish(
        2, {"source": None, "fingerprint": "not of the documents one after the other", "parts": parts}
    )
    assert len(build_index(store, tmp_path / "i", documents=iter(documents))) == 50
    changed = [*documents[:30], documents[30]._replace(text="other words"), *documents[31:]]
    with pytest.raises(InputError, match=r"made of other texts \(.* ≠ .* in the part from half1\), the corpus changed"):
        build_index(store, tmp_path / "j", documents=iter(changed))
    with pytest.raises(InputError, match="document 51 of the corpus is 'x'; the vectors have None there"):
        build_index(store, tmp_path / "j", documents=[*documents, documents[0]._replace(id="x")])
    assert not (tmp_path / "j").exists()


def test_no_queries_give_no_hits(retriever):
    for fusion in ("zscore", "minmax", "rrf"):
        for mode in retriever.modes:
            assert Retriever(retriever.index, retriever.encoder, fusion=fusion).search_many([], mode=mode) == []


def test_bad_arguments(retriever):
    for arguments, message in (
        ({"mode": "fuzzy"}, "cannot be searched by 'fuzzy'; it has lexical, dense, hybrid"),
        ({"k": 0}, "k is 0; expected at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            retriever.search("river", **arguments)
    with pytest.raises(InputError, match="fusion is 'best'"):
        Retriever(retriever.index, retriever.encoder, fusion="best")
    with pytest.raises(InputError, match="weight of the lexical side is -1"):
        Retriever(retriever.index, retriever.encoder, weight=-1)


@pytest.fixture
def filtered(tmp_path, encoder, documents):
    """A retriever whose documents have attributes, and which of them are kept."""
    tagged = [one._replace(attributes={"number": row, "odd": row % 2 == 1}) for row, one in enumerate(documents)]
    vectors = encoder.encode_corpus(tagged, tmp_path / "v")
    retriever = Retriever(build_index(vectors, tmp_path / "index", documents=tagged), encoder)
    return retriever, "odd and number < 40", [f"d{row}" for row in range(1, 40, 2)]


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
@pytest.mark.parametrize("k", [1, 7, 50])
def test_with_a_filter_hits_are_those_without_it_that_meet_it(filtered, mode, k):
    retriever, condition, kept = filtered
    everything = retriever.search_many(QUERIES, 50, mode=mode)
    for found, whole in zip(retriever.search_many(QUERIES, k, mode=mode, filter=condition), everything, strict=True):
        expected = [hit for hit in whole if hit.id in kept][:k]
        assert [hit.id for hit in found] == [hit.id for hit in expected]
        assert [hit.rank for hit in found] == list(range(1, len(found) + 1))
        np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], atol=1e-6)


def test_reciprocal_ranks_with_a_filter_are_those_among_what_is_kept(filtered):
    retriever, condition, kept = filtered
    fused = Retriever(retriever.index, retriever.encoder, fusion="rrf")
    for number, query in enumerate(QUERIES):
        expected = dict.fromkeys(kept, 0.0)
        for mode in ("dense", "lexical"):
            ranked = [hit.id for hit in retriever.search_many([query], 50, mode=mode)[0] if hit.id in kept]
            for rank, one in enumerate(ranked, start=1):
                expected[one] += 1 / (60 + rank)
        found = fused.search_many(QUERIES, 5, filter=condition)[number]
        assert len(found) == 5
        np.testing.assert_allclose([hit.score for hit in found], sorted(expected.values(), reverse=True)[:5], rtol=1e-6)


def test_a_filter_that_nothing_meets_and_hits_with_their_attributes(filtered):
    retriever, condition, _ = filtered
    assert retriever.search_many(QUERIES, 5, filter="number > 99") == [[] for _ in QUERIES]
    hit = retriever.search(QUERIES[0], 1, filter=condition)[0]
    assert hit.attributes == {"number": hit.row, "odd": True}
    with pytest.raises(InputError, match="asks for 'colour'; the attributes of this index are number, odd"):
        retriever.search("words", filter="colour == 'red'")


@pytest.mark.parametrize("fusion", ["zscore", "minmax", "rrf"])
def test_an_index_that_changed_answers_as_one_built_of_what_is_left(tmp_path, encoder, documents, fusion):
    first, later = documents[:30], documents[30:]
    vectors = encoder.encode_corpus(first, tmp_path / "v")
    retriever = Retriever(build_index(vectors, tmp_path / "i", documents=first), encoder, fusion=fusion)
    retriever.add(later)
    changed = [(document.id, f"quite another text {document.id}") for document in documents[5:10]]
    assert retriever.upsert(changed) == 5
    gone = {document.id for document in documents[12:20]}
    retriever.index.delete(sorted(gone))
    left = [one for one in documents if one.id not in gone and one.id not in {id_ for id_, _ in changed}]
    whole = [*left, *(Document(id_, text) for id_, text in changed)]
    built = build_index(encoder.encode_corpus(whole, tmp_path / "w"), tmp_path / "fresh", documents=whole)
    fresh = Retriever(built, encoder, fusion=fusion)
    for _ in range(2):
        for mode in ("dense", "lexical", "hybrid"):
            for query in QUERIES:
                found, expected = (one.search(query, 9, mode=mode) for one in (retriever, fresh))
                assert [(hit.id, hit.text) for hit in found] == [(hit.id, hit.text) for hit in expected]
                np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], atol=1e-5)
        retriever.index.compact()
    with pytest.raises(InputError, match="are in .* already, such as 'd5'"):
        retriever.add(changed[:1])
    assert retriever.upsert([]) == 0


def test_documents_of_a_dense_index_come_with_their_attributes(tmp_path, encoder, documents):
    index = build_index(encoder.encode_corpus(documents[:9], tmp_path / "v"), tmp_path / "i")
    retriever = Retriever(index, encoder)
    retriever.add([{"id": "new", "text": "a river stone", "year": 2024}], attributes=["year"])
    assert retriever.search("a river stone", 1, filter="year == 2024")[0].id == "new"
    (stored,) = index.get(["new"])
    assert (stored.text, stored.attributes) == (None, {"year": 2024})


def test_an_index_that_was_replaced_by_one_of_another_encoder_is_refused(tmp_path, encoder, documents, model_folder):
    retriever = Retriever(build_index(encoder.encode_corpus(documents, tmp_path / "v"), tmp_path / "i"), encoder)
    shorter = Encoder.load(str(model_folder), max_length=8)
    build_index(shorter.encode_corpus(documents, tmp_path / "w"), tmp_path / "i", overwrite=True)
    retriever.index.refresh()
    with pytest.raises(InputError, match="made by another encoder .*max_length"):
        retriever.search("river")


def test_vectors_that_were_made_elsewhere_are_added_to(tmp_path, encoder, documents):
    rows = encoder.encode_documents([one.content for one in documents])
    store = save_vectors(tmp_path / "v", rows, [one.id for one in documents], made_by=encoder.made_by)
    retriever = Retriever(build_index(store, tmp_path / "i"), encoder)
    retriever.add([("new", "a river stone")])
    assert retriever.search("a river stone", 1)[0].id == "new"


@pytest.mark.parametrize("fusion", ["zscore", "minmax", "rrf"])
def test_shards_answer_texts_as_one_process_does(tmp_path, encoder, documents, fusion):
    vectors = encoder.encode_corpus(documents, tmp_path / "v")
    whole = Retriever(build_index(vectors, tmp_path / "i", documents=documents), encoder, fusion=fusion)
    expected = {mode: whole.search_many(QUERIES, 9, mode=mode) for mode in whole.modes}
    whole.index.compact(segments=2)
    with ShardedIndex(tmp_path / "i") as index:
        assert len(index.stats()["segments"]) == 2
        sharded = Retriever(index, encoder, fusion=fusion)
        assert {mode: sharded.search_many(QUERIES, 9, mode=mode) for mode in sharded.modes} == expected
        assert sharded.search(QUERIES[0], 3)[0].text == whole.search(QUERIES[0], 3)[0].text
        with pytest.raises(InputError, match="opened for sharded search; change it by Index.open"):
            sharded.add([("new", "text")])
