"""Encoders with one model for queries and another for documents, as sentence-transformers' Router."""

import json
import shutil

import numpy as np
import pytest
from fixtures import make_model
from typer.testing import CliRunner

from evaluation.opening import open_system
from evaluation.testsets import load_dataset, write_collection
from indexes.errors import InputError
from pretraining import adapt
from retrieval import Encoder, Processes, Retriever, build_index, make_soup
from retrieval.cli import build_app
from retrieval.documents import Document, read_documents
from retrieval.model_folder import read_model_folder

DOCUMENTS = [
    Document(f"d{row}", text) for row, text in enumerate(["apple bird", "cloud door", "eagle fish", "grape hill"])
]
QUERIES = ["a bird", "the fish in a cloud"]


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """A model of documents, and the same with another model of queries."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.router import Router

    place = tmp_path_factory.mktemp("sides")
    one, other = make_model(place / "documents", seed=0), make_model(place / "queries", seed=1)
    router = Router(
        {"query": list(SentenceTransformer(str(other))), "document": list(SentenceTransformer(str(one)))},
        default_route="document",
    )
    both = SentenceTransformer(modules=[router])
    both.prompts = {"query": "", "document": ""}
    both.save_pretrained(str(place / "both"), create_model_card=False)
    return one, other, place / "both"


def test_each_side_is_what_it_was_alone_and_what_sentence_transformers_computes(sides):
    from sentence_transformers import SentenceTransformer

    one, other, both = (Encoder.load(str(path)) for path in sides)
    texts = [document.content for document in DOCUMENTS]
    np.testing.assert_array_equal(both.encode_documents(texts), one.encode_documents(texts))
    np.testing.assert_array_equal(both.encode_queries(QUERIES), other.encode_queries(QUERIES))
    assert np.abs(both.encode_queries(texts) - one.encode_queries(texts)).max() > 0.01
    theirs = SentenceTransformer(str(sides[2]))
    np.testing.assert_allclose(both.encode_queries(QUERIES), theirs.encode_query(QUERIES), atol=1e-6)
    np.testing.assert_allclose(both.encode_documents(texts), theirs.encode_document(texts), atol=1e-6)


def test_vectors_belong_to_the_side_of_documents_and_all_else_to_both(sides, tmp_path):
    one, _, both = (Encoder.load(str(path)) for path in sides)
    assert both.document_fingerprint == one.fingerprint == one.document_fingerprint
    assert both.fingerprint != one.fingerprint
    vectors = one.encode_corpus(iter(DOCUMENTS), tmp_path / "vectors")
    build_index(vectors, tmp_path / "index", documents=iter(DOCUMENTS))
    assert both.encode_corpus(iter(DOCUMENTS), tmp_path / "vectors").made_by == one.made_by  # complete already
    found = Retriever.open(tmp_path / "index", encoder=both).search_many(QUERIES, 4, mode="dense")
    scores = both.encode_queries(QUERIES) @ both.encode_documents([one.content for one in DOCUMENTS]).T
    for hits, line in zip(found, scores, strict=True):
        assert [hit.row for hit in hits] == np.argsort(-line, kind="stable").tolist()
    build_index(both.encode_corpus(iter(DOCUMENTS), tmp_path / "own"), tmp_path / "own-index")
    assert Retriever.open(tmp_path / "own-index").encoder.fingerprint == both.fingerprint  # by the name in its record
    with pytest.raises(InputError, match="weights"):
        Retriever.open(tmp_path / "own-index", encoder=str(sides[1]))


def test_the_cache_of_evaluation_shares_vectors_and_keeps_runs_apart(sides, tmp_path):
    write_collection(tmp_path / "set", DOCUMENTS, {"q": QUERIES[0]}, {"test": {"q": {"d0": 1}}})
    testset = load_dataset(tmp_path / "set")
    alone = open_system(str(sides[0]), testset, cache=tmp_path / "cache")
    both = open_system(str(sides[2]), testset, cache=tmp_path / "cache")
    assert (alone.documents_encoded, both.documents_encoded) == (4, 0)
    assert alone.made_by["encoder fingerprint"] != both.made_by["encoder fingerprint"]
    encoder = Encoder.load(str(sides[2]))
    index = build_index(encoder.encode_corpus(iter(DOCUMENTS), tmp_path / "v"), tmp_path / "index")
    opened = open_system(str(index.folder), testset)
    assert opened.made_by["encoder fingerprint"] == encoder.fingerprint


def test_options_are_of_both_sides(sides):
    short = Encoder.load(str(sides[2]), max_length=8, dim=4, query_prompt="ask ", normalize=False)
    alone = Encoder.load(str(sides[1]), max_length=8, dim=4, query_prompt="ask ", normalize=False)
    np.testing.assert_array_equal(short.encode_queries(QUERIES), alone.encode_queries(QUERIES))
    assert short.dim == short.queries.dim == 4
    again = Encoder.load(**short.options)
    assert again.fingerprint == short.fingerprint


def test_a_record_makes_both_sides_again_though_they_are_unlike(sides, tmp_path):
    """Queries longer than documents, and raw vectors on one side."""
    both = shutil.copytree(sides[2], tmp_path / "both")
    settings = both / "document_0_Transformer" / "sentence_bert_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "max_seq_length": 8}))
    router = json.loads((both / "router_config.json").read_text())
    router["structure"]["query"] = router["structure"]["query"][:2]  # without Normalize
    (both / "router_config.json").write_text(json.dumps(router))
    encoder = Encoder.load(str(both))
    assert (encoder.settings.max_length, encoder.queries.settings.max_length) == (8, 32)
    assert Encoder.load(**encoder.options).fingerprint == encoder.fingerprint
    build_index(encoder.encode_corpus(iter(DOCUMENTS), tmp_path / "v"), tmp_path / "index")
    assert Retriever.open(tmp_path / "index").encoder.fingerprint == encoder.fingerprint
    workers = encoder.encode_corpus(iter(DOCUMENTS), tmp_path / "by-workers", runner=Processes(1))
    assert workers.made_by["fingerprint"] == encoder.document_fingerprint
    long, before = " ".join(QUERIES * 10), encoder.truncated
    encoder.encode_queries([long, long])
    assert encoder.truncated == before + 2


def test_vectors_are_evaluated_by_both_sides(sides, tmp_path):
    write_collection(tmp_path / "set", DOCUMENTS, {"q": QUERIES[0]}, {"test": {"q": {"d0": 1}}})
    Encoder.load(str(sides[2])).encode_corpus(read_documents(str(tmp_path / "set")), tmp_path / "v")
    arguments = ["evaluate", "--vectors", str(tmp_path / "v"), "--dataset", str(tmp_path / "set"), "--measure", "MRR@4"]
    done = CliRunner().invoke(build_app(), [*arguments, "-k", "4", "--cache", str(tmp_path / "cache")])
    assert done.exit_code == 0, done.output


def test_what_needs_one_model_refuses_two(sides, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": one.id, "text": one.text * 9}) + "\n" for one in DOCUMENTS))
    with pytest.raises(InputError, match="both has a model for queries and one for documents; expected one for both"):
        read_model_folder(sides[2])
    with pytest.raises(InputError):
        adapt(corpus, tmp_path / "out", encoder=str(sides[2]), batch_size=2)
    with pytest.raises(InputError, match="has a model for queries and one for documents; a soup needs one for both"):
        make_soup([str(sides[2]), str(sides[2])], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_routers_of_another_kind_are_refused(sides, tmp_path):
    other = shutil.copytree(sides[2], tmp_path / "other")
    config = json.loads((other / "router_config.json").read_text())
    config["structure"]["image"] = config["structure"].pop("query")
    (other / "router_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="other routes document, image; expected query and document"):
        Encoder.load(str(other))


def test_show_names_both(sides):
    done = CliRunner().invoke(build_app(), ["show", str(sides[2])])
    assert done.exit_code == 0, done.output
    assert "queries" in done.output
