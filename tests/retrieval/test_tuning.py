"""Tuning by texts: queries from files, sentences in place of queries, the command."""

import gzip
import json

import pytest
from fixtures import random_texts
from typer.testing import CliRunner

from indexes.errors import InputError
from indexes.index import Index
from indexes.operating_points import Goal
from retrieval.building import build_index
from retrieval.cli import build_app
from retrieval.documents import Document
from retrieval.retriever import Retriever
from retrieval.tuning import read_queries, sentences, tune_retriever

QUESTIONS = random_texts(60, seed=9, longest=9)


@pytest.fixture
def retriever(tmp_path, encoder):
    documents = [Document(f"d{n}", f"{text}. {other}.") for n, (text, other) in enumerate(pairs(600))]
    vectors = encoder.encode_corpus(documents, tmp_path / "v")
    build_index(vectors, tmp_path / "index", documents=documents)
    return Retriever.open(tmp_path / "index")


def pairs(count):
    return zip(random_texts(count), random_texts(count, seed=1), strict=True)


def test_queries_come_from_json_lines_or_lines(tmp_path):
    lines = "".join(json.dumps({"_id": f"q{n}", "text": text}) + "\n" for n, text in enumerate(QUESTIONS))
    (tmp_path / "queries.jsonl").write_text(lines)
    with gzip.open(tmp_path / "queries.jsonl.gz", "wt") as file:
        file.write(lines)
    (tmp_path / "queries.txt").write_text("\n\n".join(QUESTIONS))
    for name in ("queries.jsonl", "queries.jsonl.gz", "queries.txt"):
        assert read_queries(tmp_path / name) == QUESTIONS
    (tmp_path / "wrong.jsonl").write_text(lines + '{"_id": "q"}\n')
    with pytest.raises(InputError, match='line 61: has no "text"; expected a query'):
        read_queries(tmp_path / "wrong.jsonl")
    with pytest.raises(InputError, match="no such file"):
        read_queries(tmp_path / "none.txt")


def test_sentences_are_of_the_documents_that_live(retriever):
    retriever.index.delete([f"d{n}" for n in range(300)])
    found = sentences(retriever.index.reader, 100)
    assert len(found) == len(set(found)) == 100
    assert found == sentences(retriever.index.reader, 100)
    alive = {text.strip() for n, both in enumerate(pairs(600)) for text in both if n >= 300}
    assert set(found) <= alive
    assert all(5 <= len(one.split()) <= 25 for one in found)


def test_texts_tune_as_their_vectors_do(retriever, encoder):
    tuned = tune_retriever(retriever, QUESTIONS, Goal(recall=0.8), factories=["HNSW16"])
    assert (tuned.queries, tuned.source) == (60, "held out")
    exact = tune_retriever(retriever, None, Goal(recall=1.0), factories=["Flat"])
    assert exact.source == "sentences of the documents, in place of queries"
    assert "(sentences of the documents, in place of queries)" in retriever.index.explain()


def test_without_texts_queries_are_asked_for(tmp_path, encoder, documents):
    build_index(encoder.encode_corpus(documents, tmp_path / "v"), tmp_path / "index")
    with pytest.raises(InputError, match="keeps no texts to make queries of; pass --queries"):
        tune_retriever(Retriever.open(tmp_path / "index"))


def retrokit(*arguments, expect=0):
    done = CliRunner().invoke(build_app(), [str(argument) for argument in arguments])
    assert done.exit_code == expect, done.output
    return done.output


def test_the_command(retriever, tmp_path):
    queries, folder = tmp_path / "q.txt", tmp_path / "index"
    queries.write_text("\n".join(QUESTIONS))
    tried = ("--factory", "HNSW16", "--factory", "IVF16,SQ8")
    output = retrokit(
        "tune", folder, "--queries", queries, "--recall", 0.8, *tried, "-k", 5, "--json", tmp_path / "t.json"
    )
    said = json.loads((tmp_path / "t.json").read_text())
    assert said["chosen"]["factory"] in ("HNSW16", "IVF16,SQ8")
    assert (said["goal"]["k"], said["queries"]) == (5, 60)
    assert "recall@5" in output
    assert "HNSW16 built over 600 vectors" in output
    assert Index.open(folder).reader.tuned.chosen.recall == said["chosen"]["recall"]
    assert "recall@5" in retrokit("show", folder)
    refused = retrokit("tune", folder, "--queries", queries, "--p95-ms", 1e-6, *tried, expect=2)
    assert refused.splitlines()[-1].startswith("error: no index meets recall@10 ≥ 0.95, p95 ≤ 1e-06 ms")
    assert "recall is 95.0; expected" in retrokit("tune", folder, "--recall", 95, expect=2)
    assert Index.open(folder).reader.tuned.chosen.recall == said["chosen"]["recall"], "what is refused changes nothing"
