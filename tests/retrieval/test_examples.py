"""Training examples: every kind of file to one form, merged queries, what is refused and what is counted."""

import gzip
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexes.errors import InputError
from retrieval.documents import Document
from retrieval.examples import Candidate, Example, examples_digest, read_examples, write_examples

DOCUMENTS = {
    one.id: one
    for one in (Document("a", "alpha"), Document("b", "beta", "Title"), Document("c", "gamma"), Document("e", " "))
}
ALPHA, BETA, GAMMA = Candidate("alpha", "a"), Candidate("Title beta", "b"), Candidate("gamma", "c")


@pytest.fixture
def read(tmp_path):
    """Read lines of JSON objects (or texts); the notes come with the examples if they are asked for."""

    def reading(*lines, documents=DOCUMENTS, notes=None, **options):
        path = tmp_path / "examples.jsonl"
        path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
        on_note = None if notes is None else notes.append
        return list(read_examples(path, documents, on_note=on_note, **options))

    return reading


def test_candidates_are_texts_or_objects(read):
    found = read(
        {"query": "q", "positive": "one", "negatives": ["two", {"text": "three", "score": -1}]},
        {"query": "r", "positives": [{"id": "a"}, {"id": "b", "text": "Title beta", "score": 2}], "negative": "x"},
        {"query": "s", "positive": {"id": "a", "score": None}, "dataset": "own", "more": 1},
        dataset="all",
    )
    assert found == [
        Example("q", (Candidate("one"),), (Candidate("two"), Candidate("three", None, -1.0)), "all"),
        Example("r", (ALPHA, BETA._replace(score=2.0)), (Candidate("x"),), "all"),
        Example("s", (ALPHA,), (), "own"),
    ]
    assert read({"query": "q", "positive": {"id": "z", "text": "any"}}, documents=None) == [
        Example("q", (Candidate("any", "z"),))
    ]


def test_pairs_name_documents(read):
    pairs = [{"query": "q", "document": "a"}, {"query": "r", "document": {"text": "one"}}]
    assert read(*pairs) == [Example("q", (ALPHA,)), Example("r", (Candidate("one"),))]


def test_judgements_are_grouped_by_their_score(read):
    notes = []
    found = read(
        {"query": "q", "document": "a", "score": 2},
        {"query": "r", "document": "b", "score": 0},
        {"query": "q", "document": "c", "score": 0},
        {"query": "q", "document": "b", "score": 0.5},
        {"query": "q", "document": "a", "score": 2},
        notes=notes,
    )
    positives = (ALPHA._replace(score=2.0), BETA._replace(score=0.5))
    assert found == [Example("q", positives, (GAMMA._replace(score=0.0),))]
    assert [note.partition(".jsonl: ")[2] for note in notes] == [
        "1 queries have no positive and were left out",
        "1 candidates came again and were counted once",
    ]


def test_pairs_of_sentences_stay_apart(read):
    lines = [{"sentence1": "s", "sentence2": two, "score": score} for two, score in (("t", 0), ("u", 4.5), ("t", 1))]
    found = read(*lines)
    assert found == [
        Example("s", (Candidate(two, None, score),)) for two, score in (("t", 0.0), ("u", 4.5), ("t", 1.0))
    ]


def test_repeated_queries_are_merged_where_they_come_last(read):
    notes = []
    found = read(
        {"query": "q", "positive": {"id": "a"}, "negative": "n"},
        {"query": "r", "positive": "one"},
        {"query": "q", "positive": {"id": "b"}, "negatives": ["n", "m"]},
        {"query": "q", "positive": "another", "dataset": "other"},
        notes=notes,
    )
    assert found == [
        Example("r", (Candidate("one"),)),
        Example("q", (ALPHA, BETA), (Candidate("n"), Candidate("m"))),
        Example("q", (Candidate("another"),), (), "other"),
    ]
    assert [note.partition(".jsonl: ")[2] for note in notes] == [
        "1 queries came again and were merged",
        "1 candidates came again and were counted once",
    ]


def test_documents_without_text_are_left_out_and_counted(read):
    notes = []
    found = read(
        {"query": "q", "positives": [{"id": "e"}, {"id": "a"}]}, {"query": "r", "positive": {"id": "e"}}, notes=notes
    )
    assert found == [Example("q", (ALPHA,))]
    assert any("2 documents are empty" in note for note in notes)
    assert any("1 queries have no positive" in note for note in notes)


GOOD = {"query": "q", "positive": "one"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no examples found; expected lines such as"),
        (["{"], "line 1: not JSON"),
        ([{"question": "q"}], "line 1: found fields 'question'; expected lines such as"),
        ([GOOD, {"query": " ", "positive": "one"}], "line 2: field 'query' is empty"),
        ([{"query": 3, "positive": "one"}], "line 1: field 'query' is int; expected text"),
        ([{"query": "q\ud800", "positive": "one"}], "half a character"),
        ([{"query": "q", "positives": []}], "line 1: it has no positive"),
        ([{"query": "q", "negative": "n"}], "line 1: it has no positive"),
        ([{"query": "q", "positive": ""}], "line 1: field 'text' is empty"),
        ([{"query": "q", "positive": "a", "positives": ["b"]}], "found 'positive' and 'positives'"),
        ([{"query": "q", "positives": "a"}], "field 'positives' is str; expected a list"),
        ([{"query": "q", "positive": ["a"]}], "a candidate is list; expected a text or an object"),
        ([{"query": "q", "positive": {"score": 1}}], "it has no 'text'"),
        ([{"query": "q", "positive": {"id": "z"}}], r"document 'z' is not in the corpus \(4 documents\)"),
        ([{"query": "q", "positive": {"id": "a", "text": "omega"}}], "another text in the corpus .'alpha' ≠ 'omega'"),
        (['{"query": "q", "positive": {"text": "t", "score": NaN}}'], "score is nan; expected a number"),
        ([{"query": "q", "positive": {"text": "t", "score": True}}], "score is True; expected a number"),
        ([{"query": "q", "positive": "t", "negative": "t"}], "the text 't' is both a positive and a negative of"),
        ([{"query": "q", "positive": {"id": "a"}, "negative": {"id": "a"}}], "document 'a' is both a positive"),
        ([{"query": "q", "positive": {"id": "a"}, "negative": "alpha"}], "the text 'alpha' is both"),
        ([GOOD, {"query": "q", "positive": "x", "negative": "one"}], "line 2: the text 'one' is both"),
        ([GOOD, {"query": "r", "document": "a"}], "line 2: found pairs after examples; expected one kind"),
        (
            [{"query": "q", "document": "a", "score": 1}, {"query": "q", "document": "a", "score": 2}],
            "line 2: .* 1.0 b",
        ),
        ([{"query": "q", "document": "a", "score": None}], "score is null; expected a number"),
        ([{"query": "q", "document": {"id": "a", "score": 1}, "score": 2}], "both the line and its document have"),
        ([{"sentence1": "s", "sentence2": "t", "score": "x"}], "score is 'x'"),
        ([{"sentence1": "s", "sentence2": "t"}], "a pair of sentences has no score"),
    ],
)
def test_what_is_refused(read, lines, message):
    with pytest.raises(InputError, match=message):
        read(*lines)


def test_ids_alone_need_a_corpus(read):
    with pytest.raises(InputError, match="document 'a' is named by its id alone; give the corpus"):
        read({"query": "q", "document": "a"}, documents=None)


def test_documents_of_one_text_are_no_contradiction(read):
    documents = {"a": Document("a", "alpha"), "twin": Document("twin", "alpha")}
    notes = []
    found = read({"query": "q", "positive": {"id": "a"}, "negative": {"id": "twin"}}, documents=documents, notes=notes)
    assert found == [Example("q", (ALPHA,))]
    assert notes[0].endswith("1 negatives with the text of a positive were left out")


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1).filter(str.strip)
SCORES = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def examples(draw):
    """Any examples whose queries and texts occur once."""
    queries = draw(st.lists(WORDS, min_size=1, max_size=4, unique=True))
    found = []
    for query in queries:
        texts = draw(st.lists(WORDS, min_size=1, max_size=5, unique=True))
        ids = [draw(st.none() | st.just(f"d{number}")) for number in range(len(texts))]
        some = [Candidate(text, one, draw(SCORES)) for text, one in zip(texts, ids, strict=True)]
        cut = draw(st.integers(1, len(some)))
        found.append(Example(query, tuple(some[:cut]), tuple(some[cut:]), draw(st.sampled_from(["", "set"]))))
    return found


@given(examples())
def test_what_is_written_is_read_again(tmp_path_factory, found):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    assert write_examples(path, found) == len(found)
    assert list(read_examples(path)) == found


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "mine.jsonl"
    write_examples(path, [Example("q", (Candidate("one"),))])
    before = path.read_bytes()

    def broken():
        yield Example("q", (Candidate("one"),))
        yield Example("q", (Candidate("one", None, float("nan")),))

    with pytest.raises(InputError, match="a score of query 'q' is no number"):
        write_examples(path, broken())
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["mine.jsonl"]
    with pytest.raises(InputError, match="would be read as compressed"):
        write_examples(tmp_path / "x.jsonl.gz", [])
    with pytest.raises(InputError, match="is a folder"):
        write_examples(tmp_path, [])


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "beir"
    (place / "qrels").mkdir(parents=True)
    corpus = [{"_id": one.id, "text": one.text, "title": one.title} for one in DOCUMENTS.values()]
    (place / "corpus.jsonl").write_text("".join(json.dumps(one) + "\n" for one in corpus))
    queries = [{"_id": f"q{number}", "text": f"query {number}"} for number in range(4)]
    with gzip.open(place / "queries.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(one) + "\n" for one in queries)
    rows = ["query-id\tcorpus-id\tscore", "q2\ta\t2", "q0\tb\t1", "q2\tc\t0", "q0\te\t1", "q1\tgone\t1", "qx\ta\t1"]
    (place / "qrels" / "train.tsv").write_text("\n".join(rows) + "\n")
    (place / "qrels" / "dev.tsv").write_text("q3\tc\t1\n")
    return place


def test_a_beir_folder_holds_judgements(folder):
    notes = []
    assert list(read_examples(folder, on_note=notes.append)) == [
        Example("query 2", (ALPHA._replace(score=2.0),), (GAMMA._replace(score=0.0),)),
        Example("query 0", (BETA._replace(score=1.0),)),
    ]
    said = "\n".join(notes)
    assert "1 documents are empty and were left out" in said
    assert "1 judgements are of documents that the corpus lacks" in said
    assert "1 judgements are of queries that the queries file lacks" in said
    assert "1 queries have no positive" in said
    assert list(read_examples(f"{folder}#dev")) == [Example("query 3", (GAMMA._replace(score=1.0),))]
    other = {"a": Document("a", "another text")}
    assert [one.positives[0].text for one in read_examples(folder, other)] == ["another text"]


def test_queries_of_one_text_are_one_query(folder):
    """What answers one of them is no negative of the other."""
    queries = [{"_id": f"q{number}", "text": "the same question"} for number in range(3)]
    (folder / "queries.jsonl.gz").unlink()
    (folder / "queries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in queries))
    (folder / "qrels" / "train.tsv").write_text("q0\ta\t1\nq1\tb\t1\nq2\ta\t2\nq1\tc\t0\n")
    notes = []
    (found,) = read_examples(folder, on_note=notes.append)
    assert found.positives == (ALPHA._replace(score=2.0), BETA._replace(score=1.0))
    assert found.negatives == (GAMMA._replace(score=0.0),)
    assert "2 queries have a text that came before" in "\n".join(notes)


def test_only_judged_documents_are_kept(folder, monkeypatch):
    held = []

    def corpus(_):
        there = [Document(f"d{number}", "text") for number in range(50)]
        there[7] = DOCUMENTS["c"]._replace(text="gamma")
        before = [sys.getrefcount(one) for one in there]
        yield from there
        after = [sys.getrefcount(one) for one in there]
        held.extend(one.id for one, old, new in zip(there[:-1], before, after, strict=False) if new > old)

    monkeypatch.setattr("retrieval.judged.read_documents", corpus)
    assert list(read_examples(f"{folder}#dev")) == [Example("query 3", (GAMMA._replace(score=1.0),))]
    assert held == ["c"]


def test_what_is_refused_of_a_folder(folder):
    with pytest.raises(InputError, match=r"no judgements of the split 'test'; there are: .*#dev, .*#train"):
        list(read_examples(f"{folder}#test"))
    for line, message in (
        ("q0\ta", "line 2: found 2 columns"),
        ("q0\ta\tnan", "line 2: score is 'nan'"),
        ("q0\tb\t0\nq0\tb\t1", "document 'b' is both a positive and a negative of query 'query 0'"),
        ("q0\tb\t2\nq0\tb\t1", "line 3: document 'b' of query 'query 0' has score 1.0 here and 2.0 before"),
    ):
        (folder / "qrels" / "bad.tsv").write_text(f"query-id\tcorpus-id\tscore\n{line}\n")
        with pytest.raises(InputError, match=message):
            list(read_examples(f"{folder}#bad"))
    (folder / "queries.jsonl.gz").unlink()
    with pytest.raises(InputError, match=r"has no queries.jsonl"):
        list(read_examples(folder))


def test_the_digest_is_of_contents(folder, tmp_path):
    before = examples_digest(folder)
    assert examples_digest(f"{folder}#dev") != before
    with (folder / "qrels" / "train.tsv").open("a") as file:
        file.write("q3\ta\t1\n")
    assert examples_digest(folder) != before
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for path in (one, two):
        write_examples(path, [Example("q", (Candidate("one"),))])
    assert examples_digest(one) == examples_digest(two)
    with pytest.raises(InputError, match="no such file"):
        examples_digest(tmp_path / "none.jsonl")
