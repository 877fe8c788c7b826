"""The reader: every kind of corpus, and what it says of malformed ones."""

import gzip
import itertools
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes.errors import InputError
from retrieval.analyzer import Analyzer
from retrieval.documents import Document, _Digests, as_documents, corpus_fingerprint, read_documents, refuse_repeats
from retrieval.pairs import Pair, read_pairs
from retrieval.python_docs import known_item, read_python_docs


def read(path):
    return list(read_documents(path))


def test_json_lines_beir_folders_gzip_and_texts(tmp_path):
    lines = '{"_id": "a", "title": "T", "text": "x y"}\n\n{"id": 7, "text": "z", "title": null}\n'
    lines += '{"docid": "b", "contents": "c"}\n{"doc_id": "d", "text": null, "contents": "e", "other": 1}\n'
    expected = [Document("a", "x y", "T"), Document("7", "z"), Document("b", "c"), Document("d", "e")]
    (tmp_path / "beir").mkdir()
    for path in (tmp_path / "c.jsonl", tmp_path / "beir" / "corpus.jsonl"):
        path.write_text(lines)
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write(lines)
    assert read(tmp_path / "c.jsonl") == read(tmp_path / "c.jsonl.gz") == read(tmp_path / "beir") == expected
    assert expected[0].content == "T x y"
    assert expected[1].content == "z"
    texts = tmp_path / "texts"
    (texts / "sub dir").mkdir(parents=True)
    (texts / "b.md").write_text("# B\n")
    (texts / "sub dir" / "a.txt").write_text("A")
    (texts / "c.png").write_bytes(b"\x89")
    assert read(texts) == [Document("b.md", "# B"), Document("sub_dir/a.txt", "A")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"_id": "a", "text": "x"}\n{"_id": "b" "text"}\n',
            r"c.jsonl, line 2: not JSON .*'\{\"_id\": \"b\" \"text\"\}'; expected one JSON object",
        ),
        ('{"_id": "a", "text": "x"}\n[1]\n', "line 2: found a list; expected one JSON object"),
        ('{"_id": "a", "body": "x"}\n', "line 1: found fields '_id', 'body'; expected 'text'"),
        ('{"text": "x"}\n', "line 1: found fields 'text'; expected '_id' or 'id' or 'docid' or 'doc_id'"),
        ('{"_id": "a", "text": ["x"]}\n', "line 1: field 'text' is list; expected text"),
        ('{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n', "id 'a' occurs twice"),
        ('{"_id": "a b", "text": "x"}\n', "id 'a b' is empty or holds white space"),
        ("", "no documents found"),
        ('{"_id": "a", "text": null}\n', "line 1: field 'text' is null; expected text"),
        ('{"_id": "a", "text": "\\ud800"}\n', "line 1: field 'text' holds half a character"),
        (b'{"_id": "a", "text": "\xff"}\n', "not readable as text"),
        ('{"_id": ' + "1" * 5000 + "}", "line 1: not JSON .*limit.*; expected one JSON object"),
    ],
)
def test_malformed_input_is_named_by_file_and_line(tmp_path, content, message):
    path = tmp_path / "c.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_unknown_and_cut_off_sources(tmp_path):
    (tmp_path / "x.csv").write_text("a,b")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "a", "text": "x"}\n' * 50)[:-20])
    for name, message in (
        ("none.jsonl", "no such file or folder"),
        ("x.csv", "unknown kind of corpus"),
        ("empty", "no corpus.jsonl and no .txt"),
        ("cut.jsonl.gz", "not readable as text"),
    ):
        with pytest.raises(InputError, match=message):
            read(tmp_path / name)


def test_fingerprints_tell_documents_apart():
    one = [Document("a", "b c"), Document("d", "e")]
    assert corpus_fingerprint(one) == corpus_fingerprint(iter(one))
    others = [[Document("a", "b", "c"), Document("d", "e")], one[::-1], [Document("ab", " c"), one[1]], one[:1]]
    assert len({corpus_fingerprint(other) for other in [one, *others]}) == 5


def test_python_values_have_one_meaning_each():
    items = [Document("a", "x", "T"), {"docid": 7, "contents": "y"}, ("b", "z"), (8, "w", "U"), ("c", "v", None)]
    expected = [Document("a", "x", "T"), Document("7", "y"), Document("b", "z"), Document("8", "w", "U")]
    assert list(as_documents(items, "the list")) == [*expected, Document("c", "v")]
    assert list(as_documents(iter(["x", "y"]), "the list")) == [Document("0", "x"), Document("1", "y")]
    assert list(as_documents([], "the list")) == []


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([("a", "x"), ["b", "y"]], r"the list, item 1: found a list; expected a Document, a mapping .*, or a text"),
        ([("a",)], "item 0: found a tuple of 1; expected a Document"),
        ([Pair("query", "text", "a")], "item 0: found a Pair of 3; expected a Document"),
        ([None], "item 0: found a NoneType; expected a Document"),
        (["x", ("a", "y")], "item 1: found a tuple after texts alone; expected texts alone .* or none"),
        ([("a", "y"), "x"], "item 1: found a str after items with ids; expected texts alone .* or none"),
        ([{"id": "a"}], "item 0: found fields 'id'; expected 'text' or 'contents'"),
        ([Document("a", None)], "item 0: field 'text' is null; expected text"),
        ([Document("a", ["x"])], "item 0: field 'text' is list; expected text"),
        ([("a", "\ud800")], "item 0: field 'text' holds half a character"),
    ],
)
def test_other_python_values_are_named_by_position_and_type(items, message):
    with pytest.raises(InputError, match=message):
        list(as_documents(items, "the list"))


def numbered(ids):
    return (Document(str(one), "x") for one in ids)


@given(st.lists(st.integers(0, 6_000), max_size=300), st.integers(0, 6_000))
@settings(max_examples=30, deadline=None)
def test_repeats_are_found_where_a_set_finds_them(tail, head):
    ids = [*range(head), *tail]
    seen = set()
    first = next((n for n, one in enumerate(ids) if one in seen or seen.add(one)), None)
    got = []
    try:
        got.extend(document.id for document in itertools.islice(refuse_repeats(numbered(ids), "here"), len(ids) + 1))
        message = None
    except InputError as error:
        message = str(error)
    expected = f"here: id '{ids[first]}' occurs twice; every document needs an id of its own" if first else None
    assert message == (expected or (None if ids else "here: no documents found; expected at least one"))
    passed = refuse_repeats(numbered(ids), "here")
    assert [next(passed).id for _ in range(len(ids) if first is None else first)] == [str(n) for n in ids[:first]]


def test_documents_before_an_error_come_out_first():
    def broken():
        yield from numbered(range(100))
        raise OSError("the disk is gone")

    for source, error, message in (
        (broken(), OSError, "the disk is gone"),
        (numbered([*range(100), "a b"]), InputError, "id 'a b' is empty or holds white space"),
        (numbered([*range(100), ""]), InputError, "id '' is empty or holds white space"),
        (numbered([*range(100), 50, 1]), InputError, "id '50' occurs twice"),
        (itertools.chain(numbered(range(100)), ["text"]), InputError, "here: found a str; expected Document"),
    ):
        passed = refuse_repeats(source, "here")
        assert [next(passed).id for _ in range(100)] == [str(n) for n in range(100)]
        with pytest.raises(error, match=message):
            next(passed)


def test_every_id_is_remembered():
    digests, ids = _Digests(), [f"d{number}" for number in range(1500)]
    for start in range(0, 1500, 100):
        assert digests.add(ids[start : start + 100]) is None
        assert {digests.add(["new", one, "new"]) for one in ids[: start + 100]} == {1}
        assert digests.add([f"other{start}"]) is None
    assert digests.add(["new", "new"]) == 1
    assert digests.add([]) is None
    assert digests.add(["new"]) is None


def test_few_documents_are_read_ahead():
    drawn = []
    passed = refuse_repeats(drawn.append(number) or Document(str(number), "x") for number in itertools.count())
    for count in range(1, 20):
        next(passed)
        assert len(drawn) < 2 * count
    drawn = []
    texts = (drawn.append(number) or Document(str(number), "x" * 1_000_000) for number in itertools.count())
    passed = refuse_repeats(texts)
    next(passed)
    assert len(drawn) == 1
    for _ in range(50):
        next(passed)
    assert len(drawn) < 60  # of large ones; of small ones up to 1,024


def test_ids_take_twenty_bytes_each_not_a_string():
    count = 50_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in refuse_repeats(numbered(range(count)))) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 16 * count < peak < 20 * count + 1_000_000  # a set of strings takes over 90 bytes each


def test_known_items_keep_the_limits_of_the_definition():
    rest = " ".join(f"word{n}" for n in range(20))
    assert known_item("m.f", f"Four words in here.\n\n{rest}").query == "Four words in here."
    assert known_item("m.f", f"A paragraph that\nbreaks a line\n  \n{rest}").query == "A paragraph that breaks a line"
    assert known_item("m.f", f"Only three words\n\n{rest}") is None
    assert known_item("m.f", f"{'w ' * 31}\n\n{rest}") is None
    assert known_item("m.f", f"Four words in here.\n\n{rest.rpartition(' ')[0]}") is None
    assert known_item("m.f", "Four words in here.") is None


def test_python_docs_are_read_without_importing(monkeypatch):
    import builtins

    real = builtins.__import__
    imported = []
    monkeypatch.setattr(builtins, "__import__", lambda name, *a, **k: imported.append(name) or real(name, *a, **k))
    items = list(itertools.islice(read_python_docs("python-docs:networkx"), 300))
    assert not any(name.startswith("networkx") for name in imported)
    assert len(items) == 300
    assert all(item.document.id.startswith("networkx") for item in items)
    for part in (lambda i: i.document.id, lambda i: i.query.casefold(), lambda i: i.document.text):
        assert len({part(item) for item in items}) == 300
    assert all(4 <= len(item.query.split()) <= 30 and len(item.document.text.split()) >= 20 for item in items)
    documents = itertools.islice(read_documents("python-docs:networkx"), 300)
    assert [item.document for item in items] == list(documents)
    with pytest.raises(InputError, match="no-such-package is not installed"):
        read_documents("python-docs:networkx,no-such-package")


def test_pairs_name_documents_of_the_corpus(tmp_path):
    documents = {"a": Document("a", "x", "T")}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"query": "q", "document": "a"}) + "\n")
    assert [tuple(pair) for pair in read_pairs(path, documents)] == [("q", "T x", "a")]
    for line, message in (
        ('{"query": "q", "document": "b"}', "line 1: document 'b' is not in the corpus"),
        ('{"query": " ", "document": "a"}', "line 1: the query is empty"),
        ('{"document": "a"}', "line 1: found fields 'document'; expected 'query'"),
        ("", "no pairs found"),
    ):
        path.write_text(line)
        with pytest.raises(InputError, match=message):
            list(read_pairs(path, documents))


def test_terms_are_lower_case_stems_without_stop_words():
    assert Analyzer().terms("The Cats are running; a cat's C3PO!") == ["cat", "run", "cat", "c3po"]
    assert Analyzer("none").terms("The Cats") == ["the", "cats"]
    assert Analyzer("german").terms("Die Häuser") == ["die", "haus"]
    with pytest.raises(InputError, match="no stemmer for language 'klingon'"):
        Analyzer("klingon")
