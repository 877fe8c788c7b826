"""Documents that give test queries away, against the plain definition."""

import gzip
import json

import numpy as np
import pytest

from indexes.errors import InputError
from pretraining.contamination import TestQueries, read_test_queries
from retrieval.documents import Document
from retrieval.shingles import normalised

LONG = "How do neutrophils reach the site of a fresh wound?"


def given_away(queries: TestQueries, *documents: Document) -> list[bool]:
    return queries.given_away(documents, [normalised(document.content) for document in documents]).tolist()


def test_what_gives_a_query_away():
    queries = TestQueries([LONG, "Covid vaccine", "  ", "東京タワー"])
    assert len(queries) == 3
    assert given_away(
        queries,
        Document("whole", "how do neutrophils reach the site of a fresh wound"),
        Document("inside", f"Asked often: “{LONG.upper()}” Nobody knows."),
        Document("nearly", "how do neutrophils reach the site of a fresh wounds"),
        Document("longer word", "show do neutrophils reach the site of a fresh wound"),
        Document("begins so", "how do neutrophils reach the site of a house"),
        Document("short inside", "A covid vaccine is tested."),
        Document("short title", "We tested it.", "COVID-vaccine!"),
        Document("short text", "covid vaccine", "Something else"),
        Document("title and text", "vaccine", "Covid"),
        Document("over the border", "the site of a fresh wound? We looked.", "How do neutrophils reach"),
        Document("characters", "東京タワー。"),
        Document("empty", "...", "!"),
        Document("another field", "...", attributes={"year": 1999, "summary": f"We ask: {LONG}"}),
        Document("no such field", "...", attributes={"year": 1999, "summary": "We ask."}),
    ) == [True, True, False, False, False, False, True, True, True, True, True, False, True, False]


def test_against_the_plain_definition():
    chance = np.random.default_rng(0)
    words = np.array(["a", "b", "c", "d"])
    queries = [" ".join(chance.choice(words, size=chance.integers(1, 9))) for _ in range(60)]
    documents = [
        Document(str(number), " ".join(chance.choice(words, size=chance.integers(0, 40))), " ".join(title))
        for number, title in enumerate(chance.choice(words, size=(400, 3)))
    ]
    for least in (1, 4, 6, 8):
        expected = [
            any(
                query in (item.content, item.title, item.text)
                or (len(query.split()) >= least and f" {query} " in f" {item.content} ")
                for query in queries
            )
            for item in documents
        ]
        assert given_away(TestQueries(queries, least), *documents) == expected
        assert 0 < sum(expected)
    assert sum(expected) < 300, "both answers occur"


def test_queries_are_known_by_their_words():
    one, other = TestQueries(["Green tea?", "black tea"]), TestQueries(["BLACK tea", "green tea", "green  tea"])
    assert one.fingerprint() == other.fingerprint() != TestQueries(["green tea"]).fingerprint()


def test_folders_and_files(tmp_path):
    lines = "".join(json.dumps({"_id": str(n), "text": text}) + "\n" for n, text in enumerate([LONG, "tea"]))
    (tmp_path / "queries.jsonl").write_text(lines)
    assert read_test_queries(tmp_path) == read_test_queries(tmp_path / "queries.jsonl") == [LONG, "tea"]
    (tmp_path / "zipped").mkdir()
    with gzip.open(tmp_path / "zipped" / "queries.jsonl.gz", "wt") as file:
        file.write(lines)
    assert read_test_queries(str(tmp_path / "zipped")) == [LONG, "tea"]
    (tmp_path / "plain.txt").write_text(f"{LONG}\ntea\n")
    assert read_test_queries(tmp_path / "plain.txt") == [LONG, "tea"]


def test_refusals(tmp_path):
    with pytest.raises(InputError, match=r"no queries\.jsonl in it; expected a BEIR folder"):
        read_test_queries(tmp_path)
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"none\.jsonl: no queries found"):
        read_test_queries(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="query_words is 0; expected at least 1"):
        TestQueries([LONG], 0)
