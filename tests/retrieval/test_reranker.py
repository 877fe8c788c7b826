"""Second stages: scores of the plain CrossEncoder, the order and what becomes of the rest, fingerprints, refusals."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures import make_cross_encoder, make_sparse, random_texts
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from typer.testing import CliRunner

from indexes.errors import InputError
from retrieval.building import build_index
from retrieval.cli import build_app
from retrieval.lexical_retriever import LexicalRetriever, build_lexical
from retrieval.reranker import Reranked, Reranker, reordered
from retrieval.retriever import Hit, Retriever

QUERIES = random_texts(5, seed=8, longest=7)


def retrokit(*arguments, expect=0):
    done = CliRunner().invoke(build_app(), list(map(str, arguments)), env={"COLUMNS": "300"})
    assert done.exit_code == expect, f"{done.output}\n{done.exception!r}"
    return done.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_cross_encoder(tmp_path_factory.mktemp("cross") / "tiny")


@pytest.fixture(scope="module")
def reranker(folder):
    return Reranker.load(str(folder), activation="identity")


@pytest.fixture(scope="module")
def plain(folder):
    return CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())


@pytest.fixture
def retriever(tmp_path, encoder, documents):
    vectors = encoder.encode_corpus(documents, tmp_path / "v")
    return Retriever(build_index(vectors, tmp_path / "i", documents=documents), encoder)


def expected_order(plain, query, hits):
    """Every pair scored by itself."""
    scores = [float(plain.predict([(query, hit.text)], show_progress_bar=False)[0]) for hit in hits]
    both = sorted(zip(scores, hits, strict=True), key=lambda one: -one[0])
    return [hit.id for _, hit in both], sorted(scores, reverse=True)


def test_the_order_is_that_of_every_pair_scored_alone(reranker, plain, retriever):
    for query in QUERIES[:2]:
        hits = retriever.search(query, 20)
        found = reranker.rerank(query, hits)
        ids, scores = expected_order(plain, query, hits)
        assert np.diff(scores).max() < -1e-6, "ties would leave the order open"
        assert [hit.id for hit in found] == ids != [hit.id for hit in hits]
        np.testing.assert_allclose([hit.score for hit in found], scores, atol=1e-5)
        assert [hit.rank for hit in found] == list(range(1, 21))
        assert {hit.id: hit.text for hit in found} == {hit.id: hit.text for hit in hits}


def test_all_queries_at_once_are_each_alone(folder, reranker, retriever):
    lists = [retriever.search(query, 20) for query in QUERIES] + [[]]
    seen = []
    small = Reranker.load(str(folder), activation="identity", batch_size=7)
    found = small.rerank_many([*QUERIES, "no hits"], lists, on_progress=lambda *now: seen.append(now))
    assert seen[-1] == (100, 100)
    assert len(seen) == 15
    assert found[-1] == []
    for query, hits, some in zip(QUERIES, lists, found, strict=False):
        alone = reranker.rerank(query, hits)
        assert [hit.id for hit in some] == [hit.id for hit in alone]
        np.testing.assert_allclose([hit.score for hit in some], [hit.score for hit in alone], atol=1e-5)
    assert small.rerank_many([], []) == []


def test_hits_beyond_the_depth_keep_their_order_behind_the_others(reranker, retriever):
    hits = retriever.search(QUERIES[0], 20)
    found = reranker.rerank(QUERIES[0], hits, 6)
    assert sorted(hit.id for hit in found[:6]) == sorted(hit.id for hit in hits[:6])
    assert [hit.id for hit in found[6:]] == [hit.id for hit in hits[6:]]
    scores = [hit.score for hit in found]
    least = np.float32(scores[5])
    assert scores[6:] == [float(np.float32(float(least) - place)) for place in range(1, 15)]
    assert (np.diff(np.float32([f"{score:.9g}" for score in scores])) < 0).all()
    assert [hit.rank for hit in found] == list(range(1, 21))
    assert reranker.rerank(QUERIES[0], hits, 100) == reranker.rerank(QUERIES[0], hits, 20)
    with pytest.raises(InputError, match="the depth of reranking is 0; expected at least 1"):
        reranker.rerank(QUERIES[0], hits, 0)


FLOATS = st.floats(-(2.0**99), 2.0**99, width=32)


@given(st.lists(FLOATS, max_size=8), st.integers(0, 8))
def test_any_scores_give_an_order_that_a_run_file_keeps(scores, rest):
    hits = [Hit(f"d{row:02}", 1.0 - row, row + 1, row) for row in range(len(scores) + rest)]
    found = reordered(hits, np.float32(scores))
    written = [(np.float32(f"{hit.score:.9g}"), hit.id) for hit in found]
    assert [name for _, name in sorted(written, reverse=True)] == [hit.id for hit in found]
    assert [hit.id for hit in found[len(scores) :]] == [hit.id for hit in hits[len(scores) :]]
    assert sorted(hit.row for hit in found) == list(range(len(hits)))


def test_ties_go_by_id_descending():
    hits = [Hit(name, 0.0, 1, row) for row, name in enumerate(["b", "d", "a", "c"])]
    assert [hit.id for hit in reordered(hits, np.float32([1, 1, 2, 1]))] == ["a", "d", "c", "b"]


def test_a_missing_text_and_wrong_lists_are_refused(reranker, retriever):
    hits = retriever.search_many(QUERIES[:1], 4)
    with pytest.raises(InputError, match=r"the text of document 'd\d+' is not here.*\(without --dense-only\)"):
        reranker.rerank(QUERIES[0], hits[0])
    with pytest.raises(InputError, match="found 1 queries and 2 lists of hits"):
        reranker.rerank_many(QUERIES[:1], [[], []])


def test_long_pairs_are_cut_and_counted(folder, plain):
    model = Reranker.load(str(folder), activation="identity")
    pairs = [("river", "stone " * count) for count in (3, 28, 29, 30, 500)]
    found = model.scores(pairs)
    assert model.truncated == 3  # 32 tokens, 3 of them special
    np.testing.assert_allclose(found, plain.predict(pairs, show_progress_bar=False), atol=1e-5)
    short = Reranker.load(str(folder), activation="identity", max_length=16)
    assert short.scores([("river", "stone " * 60)]) == pytest.approx(model.scores([("river", "stone " * 12)]), abs=1e-5)
    assert (model.fields["max_length"], short.fields["max_length"]) == (32, 16)


def test_the_fingerprint_is_of_what_decides_the_scores(tmp_path, folder, reranker):
    moved = shutil.copytree(folder, tmp_path / "tiny")
    assert Reranker.load(str(moved), activation="identity", batch_size=3).fingerprint == reranker.fingerprint
    assert Reranker.load(str(moved)).fields["activation"] == "sigmoid"
    other = make_cross_encoder(tmp_path / "other" / "tiny", seed=1)
    prints = {
        reranker.fingerprint,
        *(
            Reranker.load(str(name), **options).fingerprint
            for name, options in (
                (folder, {}),
                (folder, {"activation": "identity", "max_length": 20}),
                (folder, {"activation": "identity", "dtype": "bfloat16"}),
                (other, {"activation": "identity"}),
            )
        ),
    }
    assert len(prints) == 5
    assert reranker.made_by["encoder"] == str(folder)


def test_a_folder_saved_by_the_library_is_read_as_it_says(tmp_path, plain, reranker):
    plain.save_pretrained(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "modules.json").is_file()
    saved = Reranker.load(str(tmp_path / "saved"))
    pairs = [("river", text) for text in random_texts(9)]
    assert saved.fields["activation"] == "identity"
    np.testing.assert_allclose(saved.scores(pairs), reranker.scores(pairs), atol=1e-6)
    squashed = Reranker.load(str(tmp_path / "saved"), activation="sigmoid").scores(pairs)
    np.testing.assert_allclose(squashed, 1 / (1 + np.exp(-reranker.scores(pairs).astype(float))), atol=1e-6)


def test_the_cross_encoder_that_prop_leaves_loads(tmp_path, folder):
    """`pretrain` writes what `classifier` gives by `save_pretrained`, with the tokenizer beside it."""
    from transformers import AutoModel, AutoTokenizer

    from pretraining.cross_encoder import save_cross_encoder

    backbone = AutoModel.from_pretrained(folder)
    width = backbone.config.hidden_size
    term = SimpleNamespace(dense=torch.nn.Linear(width, width), score=torch.nn.Linear(width, 1))
    save_cross_encoder(tmp_path / "cross-encoder", backbone, AutoTokenizer.from_pretrained(folder), term)
    made = Reranker.load(str(tmp_path / "cross-encoder"))
    reference = CrossEncoder(str(tmp_path / "cross-encoder"), device="cpu")
    pairs = [("river", text) for text in random_texts(5)]
    np.testing.assert_allclose(made.scores(pairs), reference.predict(pairs, show_progress_bar=False), atol=1e-6)


def test_models_that_are_none_are_refused(tmp_path, folder, model_folder):
    cases = [
        (model_folder, "is a SentenceTransformer; a second stage takes a CrossEncoder"),
        (model_folder.parent / f"{model_folder.name}-plain", r"is no cross-encoder \(BertModel\); expected a …For"),
        (make_cross_encoder(tmp_path / "three", labels=3), "gives 3 numbers for a pair; expected a cross-encoder that"),
        (tmp_path / "none", "no such model folder"),
        (make_sparse(tmp_path / "splade"), "is a SparseEncoder; a second stage takes a CrossEncoder"),
    ]
    for name, message in cases:
        with pytest.raises(InputError, match=message):
            Reranker.load(str(name))
    headless = shutil.copytree(folder, tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, headless / "model.safetensors")
    with pytest.raises(InputError, match="headless lacks weights"):
        Reranker.load(str(headless))
    (headless / "model.safetensors").rename(headless / "pytorch_model.bin")
    with pytest.raises(InputError, match="has no safetensors file; other weights are not read"):
        Reranker.load(str(headless))
    for options, message in (
        ({"dtype": "int8"}, "dtype is 'int8'; expected one of float32"),
        ({"activation": "tanh"}, "activation is 'tanh'; expected one of identity, sigmoid"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_length": 33}, "max_length is 33; expected 8 to 32, the model's own"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
    ):
        with pytest.raises(InputError, match=message):
            Reranker.load(str(folder), **options)


def test_scores_that_are_none_are_refused(tmp_path, folder):
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["classifier.bias"] = torch.full_like(weights["classifier.bias"], float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="gives a pair of query 'river' the score nan"):
        Reranker.load(str(broken)).scores([("river", "stone")])


def test_code_that_a_folder_brings_is_not_run(tmp_path, folder):
    foreign = shutil.copytree(folder, tmp_path / "foreign")
    config = json.loads((foreign / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "evil.Model"}
    config["model_type"] = "evil"
    (foreign / "config.json").write_text(json.dumps(config))
    (foreign / "evil.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(InputError, match="cannot be loaded as a cross-encoder"):
        Reranker.load(str(foreign))


def test_batches_that_do_not_fit_are_halved(folder, reranker, monkeypatch):
    small = Reranker.load(str(folder), activation="identity")
    predict = small._model.predict

    def narrow(pairs, **how):
        if len(pairs) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return predict(pairs, **how)

    monkeypatch.setattr(small._model, "predict", narrow)
    pairs = [("river", text) for text in random_texts(20)]
    np.testing.assert_allclose(small.scores(pairs), reranker.scores(pairs), atol=1e-5)
    monkeypatch.setattr(small._model, "predict", lambda pairs, **how: narrow([0] * 9))
    with pytest.raises(InputError, match="no memory for one pair of texts on cpu; lower max_length"):
        small.scores(pairs)


def test_a_reranked_retriever_is_searched_like_it(reranker, retriever):
    both = Reranked(retriever, reranker, 12)
    assert both.modes == (
        *("lexical", "dense", "hybrid"),
        *("lexical+rerank", "dense+rerank", "hybrid+rerank"),
    )
    assert both.search(QUERIES[0], 5, mode="dense") == retriever.search(QUERIES[0], 5, mode="dense")
    for mode in retriever.modes:
        expected = [reranker.rerank(query, retriever.search(query, 20, mode=mode), 12) for query in QUERIES]
        found = both.search_many(QUERIES, 20, mode=f"{mode}+rerank")
        assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in expected]
        assert {hit.text for hits in found for hit in hits} == {None}
    one = both.search(QUERIES[0], 3)
    assert one == reranker.rerank(QUERIES[0], retriever.search(QUERIES[0], 12), 12)[:3]
    assert one[0].text is not None
    assert [hit.id for hit in both.search_many(QUERIES[:1], 3)[0]] == [hit.id for hit in one]
    assert both.search_queries(dict(enumerate(QUERIES)), 4, mode="dense") == both.search_many(QUERIES, 4, mode="dense")
    with pytest.raises(InputError, match=r"unknown mode 'dense\+'; there are lexical, dense"):
        both.search("river", mode="dense+")
    with pytest.raises(InputError, match="the depth of reranking is -1"):
        Reranked(retriever, reranker, -1)


def test_words_alone_are_reranked_too(tmp_path, reranker, documents):
    words = LexicalRetriever(build_lexical(documents, tmp_path / "l"))
    found = Reranked(words, reranker).search(QUERIES[0], 4)
    assert found == reranker.rerank(QUERIES[0], words.search(QUERIES[0], 100))[:4]


def test_an_index_without_texts_is_refused(tmp_path, encoder, reranker, documents):
    vectors = encoder.encode_corpus(documents, tmp_path / "v")
    bare = Reranked(Retriever(build_index(vectors, tmp_path / "bare"), encoder), reranker)
    for search in (lambda: bare.search("river"), lambda: bare.search_many(["river"])):
        with pytest.raises(InputError, match="is not here, and a cross-encoder reads texts; index the documents too"):
            search()


@pytest.mark.filterwarnings("ignore")
def test_the_command_reranks_and_refuses_what_does_nothing(tmp_path, folder, retriever, encoder):
    index, out = tmp_path / "i", tmp_path / "hits.json"
    retrokit("search", index, QUERIES[0], "--rerank", folder, "--rerank-depth", 20, "-k", 4, "--json", out)
    expected = Reranked(retriever, Reranker.load(str(folder)), 20).search(QUERIES[0], 4)
    assert [hit["id"] for hit in json.loads(out.read_text())["hits"]] == [hit.id for hit in expected]
    retrokit("search", index, QUERIES[0], "--rerank", folder, "--mode", "lexical", "--json", out)
    expected = Reranked(retriever, Reranker.load(str(folder))).search(QUERIES[0], mode="lexical+rerank")
    assert [hit["id"] for hit in json.loads(out.read_text())["hits"]] == [hit.id for hit in expected]
    bare = tmp_path / "bare"
    build_index(encoder.encode_corpus([("a", "river")], tmp_path / "one"), bare)
    for arguments, message in (
        ((index, "--rerank-depth", 5), "error: --rerank-depth is how far --rerank goes"),
        ((index, "--mode", "dense", "--fusion", "rrf"), "error: --fusion says how both sides are fused, which a dense"),
        ((index, "--mode", "lexical", "--weight", 1), "error: --weight says how both sides are fused, which a lexical"),
        ((index, "--mode", "dense", "--sparse", "x"), "error: --sparse weighs terms, which a dense search does not do"),
        ((bare, "--fusion", "rrf"), "error: --fusion says how both sides are fused, which a dense search does not do"),
        ((bare, "--rerank", folder), "error: the text of document 'a' is not here"),
    ):
        said = retrokit("search", arguments[0], "river", *arguments[1:], expect=2)
        assert message in said
    retrokit("search", index, "river", "--fusion", "rrf", "--weight", 0.5)
