"""Learned sparse encoders: weights as sentence-transformers gives them, through an index, bound by a fingerprint."""

import json
import shutil

import numpy as np
import pytest
import torch
from fixtures import make_sparse, random_texts
from safetensors.torch import load_file, save_file
from sentence_transformers import SparseEncoder as Reference
from typer.testing import CliRunner

from indexes.errors import InputError
from indexes.index import Index
from indexes.terms import TermStore
from retrieval import sparse as module
from retrieval.building import add_to_index, build_index
from retrieval.cli import build_app
from retrieval.documents import Document
from retrieval.retriever import Retriever
from retrieval.sparse import SparseEncoder, load_options

QUERIES = random_texts(8, seed=5, longest=6)


@pytest.fixture
def documents():
    return [Document(f"d{number}", text) for number, text in enumerate(random_texts(130))]


def retrokit(*arguments, expect=0):
    done = CliRunner().invoke(build_app(), list(map(str, arguments)), env={"COLUMNS": "300"})
    assert done.exit_code == expect, f"{done.output}\n{done.exception!r}"
    return done.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_sparse(tmp_path_factory.mktemp("sparse") / "splade")


@pytest.fixture(scope="module")
def sparse(folder):
    return SparseEncoder.load(str(folder))


@pytest.fixture
def retriever(tmp_path, encoder, sparse, documents):
    vectors = encoder.encode_corpus(documents, tmp_path / "v")
    terms = sparse.encode_corpus(documents, tmp_path / "t")
    return Retriever(build_index(vectors, tmp_path / "i", documents=documents, terms=terms), encoder, sparse=sparse)


def test_weights_are_the_librarys(folder, sparse):
    texts = random_texts(40, seed=1)
    model = Reference(str(folder), device="cpu")
    wanted = model.encode_document(texts, convert_to_sparse_tensor=False).numpy()
    found = sparse.encode_documents(texts)
    vocabulary = model.tokenizer.get_vocab()
    assert max(map(len, found)) > 10
    for line, terms in zip(wanted, found, strict=True):
        mine = np.zeros_like(line)
        mine[[vocabulary[term] for term in terms]] = list(terms.values())
        np.testing.assert_allclose(mine, line, rtol=1e-5, atol=1e-6)
    assert sparse.encode_queries([]) == []
    with pytest.raises(InputError, match="one text"):
        sparse.encode_queries("river")


def test_the_heaviest_terms_are_kept(folder, sparse):
    texts = random_texts(10, seed=2)
    few = SparseEncoder.load(str(folder), document_terms=4)
    for whole, cut in zip(sparse.encode_documents(texts), few.encode_documents(texts), strict=True):
        assert cut.keys() == set(sorted(whole, key=whole.get)[-4:])
    assert few.encode_queries(texts) == sparse.encode_queries(texts)
    assert few.fingerprint != sparse.fingerprint


def test_the_fingerprint_is_of_what_decides_the_weights(tmp_path, folder, sparse):
    assert SparseEncoder.load(str(shutil.copytree(folder, tmp_path / "copy"))).fingerprint == sparse.fingerprint
    assert SparseEncoder.load(str(make_sparse(tmp_path / "other", seed=1))).fingerprint != sparse.fingerprint
    settings = next(folder.glob("*SpladePooling/config.json")).relative_to(folder)
    changed = tmp_path / "copy" / settings
    changed.write_text(json.dumps({**json.loads(changed.read_text()), "pooling_strategy": "sum"}))
    assert SparseEncoder.load(str(tmp_path / "copy")).fingerprint != sparse.fingerprint
    prompted = make_sparse(tmp_path / "prompted", prompts={"query": "find ", "document": ""})
    assert SparseEncoder.load(str(prompted)).fingerprint != sparse.fingerprint
    short = SparseEncoder.load(str(folder), max_length=8)
    assert short.fingerprint != sparse.fingerprint
    text = " ".join(random_texts(1, seed=3, longest=60) * 3)
    assert short.encode_documents([text]) != sparse.encode_documents([text])
    assert (short.truncated, SparseEncoder.load(str(folder), max_length=32).fingerprint) == (1, sparse.fingerprint)


def test_what_is_no_sparse_encoder_is_refused(tmp_path, model_folder, folder):
    with pytest.raises(InputError, match="no sparse encoder \\(Transformer → Pooling → Normalize\\)"):
        SparseEncoder.load(str(model_folder))
    with pytest.raises(InputError, match="reads 32 tokens at most"):
        SparseEncoder.load(str(folder), max_length=33)
    with pytest.raises(InputError, match="document_terms is 0"):
        SparseEncoder.load(str(folder), document_terms=0)
    with pytest.raises(InputError, match="compares by cosine"):
        SparseEncoder.load(str(make_sparse(tmp_path / "cosine", similarity_fn_name="cosine")))
    broken = shutil.copytree(folder, tmp_path / "broken")
    next(broken.rglob("model.safetensors")).write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be loaded as a sparse encoder"):
        SparseEncoder.load(str(broken))


def test_a_corpus_goes_on_where_it_was_killed(tmp_path, sparse, documents, monkeypatch):
    monkeypatch.setattr(module, "PART_DOCUMENTS", 50)
    whole = list(sparse.encode_corpus(documents, tmp_path / "whole", source="here"))
    assert [id_ for id_, _ in whole] == [one.id for one in documents]
    for (_, weights), wanted in zip(
        whole[:50], sparse.encode_documents([one.content for one in documents[:50]]), strict=True
    ):
        assert weights == pytest.approx(wanted, rel=1e-6)

    def dying():
        yield from documents[:120]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sparse.encode_corpus(dying(), tmp_path / "t")
    assert not (tmp_path / "t").exists()
    calls = []
    encode = sparse.encode_documents
    monkeypatch.setattr(sparse, "encode_documents", lambda texts: calls.append(len(texts)) or encode(texts))
    seen = []
    store = sparse.encode_corpus(documents, tmp_path / "t", on_progress=lambda done, total: seen.append((done, total)))
    assert list(store) == whole
    assert sum(calls) < len(documents)  # (readers look some documents ahead of what is encoded)
    assert seen[-1] == (len(documents), len(documents))
    calls.clear()
    assert list(sparse.encode_corpus(documents, tmp_path / "t")) == whole
    assert not calls
    with pytest.raises(InputError, match="made from another corpus"):
        sparse.encode_corpus(documents[1:], tmp_path / "t")
    assert len(sparse.encode_corpus(documents[1:], tmp_path / "t", overwrite=True)) == len(documents) - 1


def test_search_is_by_inner_products(retriever, sparse, documents):
    queries = sparse.encode_queries(QUERIES)
    weights = sparse.encode_documents([one.content for one in documents])
    scores = np.array([[sum(w * d.get(t, 0.0) for t, w in q.items()) for d in weights] for q in queries])
    dense = retriever.encoder.encode_queries(QUERIES).astype(np.float64) @ retriever.encoder.encode_documents(
        [one.content for one in documents]
    ).T.astype(np.float64)
    assert retriever.modes == ("lexical", "dense", "hybrid")
    added = Retriever(retriever.index, retriever.encoder, sparse=sparse, fusion="sum", weight=0.5)
    for found, wanted in (
        (retriever.search_many(QUERIES, 10, mode="lexical"), scores),
        (added.search_many(QUERIES, 10), dense + 0.5 * scores),
    ):
        for hits, line in zip(found, wanted, strict=True):
            np.testing.assert_allclose([hit.score for hit in hits], np.sort(line)[::-1][:10], rtol=1e-4)
            np.testing.assert_allclose([hit.score for hit in hits], line[[hit.row for hit in hits]], rtol=1e-4)


def test_another_sparse_encoder_is_refused(tmp_path, retriever, sparse, documents, encoder):
    other = SparseEncoder.load(str(make_sparse(tmp_path / "other", seed=1)))
    with pytest.raises(InputError, match="another sparse encoder than .*weights: "):
        Retriever(retriever.index, encoder, sparse=other)
    alone = Retriever(retriever.index, encoder)
    assert alone.modes == ("dense",)
    new = [Document("new", "", "river stone")]
    with pytest.raises(InputError, match="open it with its sparse encoder"):
        alone.add(new)
    vectors = encoder.encode_corpus(new, tmp_path / "nv")
    terms = other.encode_corpus(new, tmp_path / "nt")
    with pytest.raises(InputError, match="index ≠ terms"):
        add_to_index(retriever.index, vectors, documents=new, terms=terms)
    with pytest.raises(InputError, match="holds weights of terms"):
        add_to_index(retriever.index, vectors, documents=new)
    elsewhere = sparse.encode_corpus([Document("old", "", "river stone")], tmp_path / "et")
    with pytest.raises(InputError, match="has document 'old' where the corpus has 'new'"):
        add_to_index(retriever.index, vectors, documents=new, terms=elsewhere)
    assert len(retriever.index) == len(documents)
    with pytest.raises(InputError, match="give both"):
        build_index(vectors, tmp_path / "x", terms=terms)
    plain = build_index(vectors, tmp_path / "x", documents=new)
    with pytest.raises(InputError, match="no learned weights to add"):
        Retriever(plain, encoder, fusion="sum")
    with pytest.raises(InputError, match="leave the sparse encoder out"):
        Retriever.open(tmp_path / "x", encoder, sparse="splade")
    with pytest.raises(InputError, match="holds terms, for BM25"):
        add_to_index(plain, vectors, documents=new, terms=elsewhere, replace=True)


def test_documents_come_and_go(retriever, sparse, documents):
    def score():
        found = {hit.id: hit.score for hit in retriever.search("tree", len(documents) + 1, mode="lexical")}
        return found.get("new")

    def product(text):
        query, document = sparse.encode_queries(["tree"])[0], sparse.encode_documents([text])[0]
        return pytest.approx(sum(weight * document.get(term, 0.0) for term, weight in query.items()), rel=1e-5)

    retriever.add([("new", "paper music paper music")])
    assert score() == product("paper music paper music")
    retriever.upsert([("new", "tree")])
    assert score() == product("tree")
    retriever.index.delete(["new"])
    assert score() is None


def test_from_the_command_line(tmp_path, folder, model_folder, documents):
    corpus, more = tmp_path / "c.jsonl", tmp_path / "m.jsonl"
    lines = [json.dumps({"_id": one.id, "text": one.text}) + "\n" for one in documents]
    corpus.write_text("".join(lines[:100]))
    more.write_text("".join(lines[100:110]))
    index = tmp_path / "i"
    made = ["index", corpus, "--encoder", model_folder, "--sparse", folder, "--output", index]
    assert "sparse terms + texts" in retrokit(*made)
    assert len(TermStore.open(tmp_path / "i.terms")) == 100
    retrokit("add", index, more)
    assert sorted(path.name for path in tmp_path.glob("i*")) == ["i", "i.terms", "i.vectors"]
    assert len(Index.open(index)) == 110
    asked = ["search", index, documents[105].text, "-k", "1", "--json", tmp_path / "hits.json"]
    for options in ([], ["--fusion", "sum"], ["--mode", "lexical"]):
        retrokit(*asked, *options)
        assert len(json.loads((tmp_path / "hits.json").read_text())["hits"]) == 1
    assert "give one or the other" in retrokit(*made, "--dense-only", "--overwrite", expect=2)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"_id": one.id, "text": "tree"}) + "\n" for one in documents[110:120]))
    right = tmp_path / "right.jsonl"
    right.write_text("".join(lines[110:120]))
    vectors = tmp_path / "more.vectors"
    retrokit("encode", right, "--encoder", model_folder, "--output", vectors)
    assert "was made of other texts" in retrokit("add", index, vectors, "--corpus", other, expect=2)
    retrokit("add", index, vectors, "--corpus", right)  # though the terms of another corpus are there
    assert len(Index.open(index)) == 120
    assert "--language is of BM25" in retrokit(*made, "--language", "german", "--overwrite", expect=2)
    place = tmp_path / "x.terms"
    shutil.copytree(vectors, place)
    said = ["index", place, "--sparse", folder, "--output", tmp_path / "x", "--overwrite"]
    assert "is or holds the input" in retrokit(*said, expect=2)
    assert (place / "shard-00000.npy").is_file()
    said = ["index", corpus, "--sparse", tmp_path / "none", "--output", tmp_path / "y"]
    assert "no such model folder" in retrokit(*said, expect=2)
    assert not list(tmp_path.glob("y*"))
    moved = folder.rename(folder.with_name("moved"))
    try:
        assert "pass --sparse" in retrokit(*asked, expect=2)
        retrokit(*asked, "--mode", "dense")
        retrokit(*asked, "--sparse", moved)
        retrokit("add", index, more, "--replace", "--sparse", moved)
    finally:
        moved.rename(folder)


def test_what_a_folder_lacks_is_not_invented(tmp_path, folder):
    broken = shutil.copytree(folder, tmp_path / "broken")
    path = next(broken.rglob("model.safetensors"))
    save_file({name: value for name, value in load_file(path).items() if "transform" not in name}, path)
    with pytest.raises(InputError, match="lacks weights; it is not a whole model"):
        SparseEncoder.load(str(broken))


def test_both_sides_of_a_router_are_in_the_fingerprint(tmp_path, folder):
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding

    model = Reference(str(folder), device="cpu")
    router = Router.for_query_document(
        query_modules=[SparseStaticEmbedding(model.tokenizer)], document_modules=list(model.children())
    )
    Reference(modules=[router], device="cpu").save_pretrained(str(tmp_path / "router"))
    made = SparseEncoder.load(str(tmp_path / "router"))
    assert made.encode_queries(["river stone"]) == [{"river": 1.0, "stone": 1.0}]
    again = SparseEncoder.load(str(tmp_path / "router"), **load_options(made.made_by))
    assert again.fingerprint == made.fingerprint
    assert again.encode_documents(["river stone"]) == made.encode_documents(["river stone"])
    for path in sorted((tmp_path / "router").glob("*/tokenizer.json")):
        kept = path.read_text()
        path.write_text(kept.replace('"river"', '"revir"'))
        assert SparseEncoder.load(str(tmp_path / "router")).fingerprint != made.fingerprint, path
        path.write_text(kept)


def test_the_sparse_encoder_is_loaded_when_it_is_needed(retriever, encoder, documents):
    asked = []

    def load():
        asked.append(1)
        raise InputError("gone")

    lazy = Retriever(retriever.index, encoder, sparse=load)
    assert lazy.modes == ("lexical", "dense", "hybrid")
    assert len(lazy.search("river", 3, mode="dense")) == 3
    assert not asked
    with pytest.raises(InputError, match="gone"):
        lazy.search("river")


def test_terms_of_fewer_or_more_documents_are_refused(tmp_path, encoder, sparse, documents):
    vectors = encoder.encode_corpus(documents, tmp_path / "v")
    for some in (documents[:100], [*documents, Document("more", "tree")]):
        terms = sparse.encode_corpus(some, tmp_path / "t", overwrite=True)
        with pytest.raises(InputError, match="where the corpus has|was made of other texts"):
            build_index(vectors, tmp_path / "i", documents=documents, terms=terms)
    with pytest.raises(InputError, match="language german is of BM25"):
        build_index(vectors, tmp_path / "i", documents=documents, terms=terms, language="german")
    plain = build_index(vectors, tmp_path / "i", documents=documents)
    with pytest.raises(InputError, match="leave the sparse encoder out"):
        Retriever(plain, encoder, sparse=sparse)


def test_weights_that_are_not_finite_are_refused(tmp_path, folder):
    model = SparseEncoder.load(str(folder))
    with torch.no_grad():
        next(model._model.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="weight nan; the model is broken"):
        model.encode_queries(["river"])
