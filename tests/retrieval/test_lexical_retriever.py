"""Lexical index folders: the hits of an index that has vectors too, without an encoder; refusals."""

import numpy as np
import pytest
from fixtures import make_sparse, random_texts

from indexes.errors import InputError
from indexes.inverted import LexicalIndex
from indexes.lexical import Lexical
from retrieval.building import build_index
from retrieval.documents import Document, corpus_fingerprint
from retrieval.lexical_retriever import LexicalRetriever, build_lexical
from retrieval.retriever import Retriever
from retrieval.sparse import SparseEncoder

QUERIES = random_texts(9, seed=4, longest=6)


def plain(hits_lists):
    return [[tuple(hit) for hit in hits] for hits in hits_lists]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    return SparseEncoder.load(str(make_sparse(tmp_path_factory.mktemp("sparse") / "splade")))


def test_bm25_is_that_of_an_index_with_vectors(tmp_path, encoder, documents):
    vectors = encoder.encode_corpus(documents, tmp_path / "v")
    whole = Retriever(build_index(vectors, tmp_path / "i", documents=documents), encoder)
    built = build_lexical(iter(documents), tmp_path / "l", source="here")
    alone = LexicalRetriever.open(tmp_path / "l")
    assert plain(alone.search_many(QUERIES, 7)) == plain(whole.search_many(QUERIES, 7, mode="lexical"))
    assert alone.search(QUERIES[0], 3) == whole.search(QUERIES[0], 3, mode="lexical")
    assert (alone.modes, len(built), built.analyzer) == (("lexical",), 50, "english+cjk")
    assert built.corpus == {"source": "here", "fingerprint": corpus_fingerprint(documents)}
    assert 0 < built.bytes < sum(path.stat().st_size for path in (tmp_path / "l").rglob("*") if path.is_file())
    ids = ["d3", "nothing", "d0"]
    assert alone.texts(ids) == whole.texts(ids) == [documents[3].content, None, documents[0].content]
    assert isinstance(built.lexical, Lexical)


def test_learned_weights_are_those_of_an_index_with_vectors(tmp_path, encoder, documents, sparse):
    terms = sparse.encode_corpus(documents, tmp_path / "t")
    vectors = encoder.encode_corpus(documents, tmp_path / "v")
    index = build_index(vectors, tmp_path / "i", documents=documents, terms=terms)
    whole = Retriever(index, encoder, sparse=sparse)
    alone = LexicalRetriever(build_lexical(documents, tmp_path / "l", terms=terms), sparse)
    assert plain(alone.search_many(QUERIES, 100)) == plain(whole.search_many(QUERIES, 100, mode="lexical"))
    with pytest.raises(InputError, match="holds weights of terms; open it with its sparse encoder"):
        LexicalRetriever.open(tmp_path / "l")
    cut = SparseEncoder.load(sparse.name, document_terms=3)
    with pytest.raises(InputError, match="made by another sparse encoder than .*document_terms: None ≠ 3"):
        LexicalRetriever.open(tmp_path / "l", cut)
    with pytest.raises(InputError, match="language german is of BM25"):
        build_lexical(documents, tmp_path / "x", terms=terms, language="german")
    with pytest.raises(InputError, match="the corpus changed"):
        build_lexical([Document(one.id, "other") for one in documents], tmp_path / "x", terms=terms)
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_built_or_searched_is_refused(tmp_path, documents, sparse):
    build_lexical(documents, tmp_path / "l")
    before = {path: path.read_bytes() for path in (tmp_path / "l").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="already exists"):
        build_lexical(documents, tmp_path / "l")
    with pytest.raises(InputError, match="document 'a' occurs twice"):
        build_lexical([Document("a", "one two"), Document("a", "two")], tmp_path / "l", overwrite=True)
    with pytest.raises(InputError, match="none of the 1 documents holds a term"):
        build_lexical([Document("a", "!")], tmp_path / "l", overwrite=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "l").rglob("*") if path.is_file()}
    retriever = LexicalRetriever.open(tmp_path / "l")
    with pytest.raises(InputError, match="k is 0"):
        retriever.search_many(QUERIES, 0)
    with pytest.raises(InputError, match="cannot be searched by 'dense'; it has lexical"):
        retriever.search_many(QUERIES, mode="dense")
    with pytest.raises(InputError, match="the query is empty"):
        retriever.search(" ")
    with pytest.raises(InputError, match="has no learned weights of terms"):
        LexicalRetriever.open(tmp_path / "l", sparse)
    assert retriever.search_many([]) == []
    assert retriever.search_many(["zzz", ""]) == [[], []]


def test_a_damaged_folder_is_refused(tmp_path, documents):
    build_lexical(documents, tmp_path / "l")
    path = tmp_path / "l" / "lexical" / "rows.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"rows\.npy"):
        LexicalIndex.open(tmp_path / "l")
    with pytest.raises(InputError, match="no such folder"):
        LexicalIndex.open(tmp_path / "none")


def test_bm25_from_its_formula(tmp_path):
    documents = [Document("a", "cat cat dog"), Document("b", "dog"), Document("c", "cat bird fish mouse")]
    retriever = LexicalRetriever(build_lexical(documents, tmp_path / "l", language="none"))
    found = {hit.id: hit.score for hit in retriever.search("cat")}
    idf, mean = np.log(1 + (3 - 2 + 0.5) / (2 + 0.5)), 8 / 3
    for name, count, length in (("a", 2, 3), ("c", 1, 4)):
        expected = idf * count / (count + 0.9 * (1 - 0.4 + 0.4 * length / mean))
        assert found[name] == pytest.approx(expected, rel=1e-6)
