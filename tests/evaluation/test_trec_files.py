import gzip

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation.testsets import load_dataset, write_collection
from evaluation.trec_files import read_topics, trec_corpus, write_trec
from indexes.errors import InputError
from indexes.manifest import new_folder
from retrieval.documents import Document

SGML = """<?xml version="1.0"?>
<DOC>
<DOCNO> FT911-1 </DOCNO>
<PROFILE>_AN-BEOA7AAIFT</PROFILE>
<HEADLINE>
FT  14 MAY 91 / <F P=105>Words</F> &amp; deeds
</HEADLINE>
<TEXT>
First line, AT&T and x < y.

Second&#45;line
</TEXT>
<text>another</text>
</DOC> <DOC><DOCNO>FT911-2</DOCNO>no text element <P>but text</P></DOC>
"""
TOPICS = """
<top>
<num> Number: 301
<title> International Organized Crime

<desc> Description:
Identify organizations that
participate in crime.

<narr> Narrative:
A relevant document must...

</top>
<top lang='en'>
<num>302</num>
<title>Closed   &amp; short</title>
<desc>d</desc>
</top>
"""


def test_documents_of_trec(tmp_path):
    path = tmp_path / "ft.sgml"
    path.write_text(SGML)
    assert list(trec_corpus("x", [path])) == [
        Document("FT911-1", "First line, AT&T and x < y.\n\nSecond-line\nanother", "FT  14 MAY 91 /  Words  & deeds"),
        Document("FT911-2", "no text element  but text"),
    ]


def test_topics_of_trec(tmp_path):
    path = tmp_path / "topics.txt"
    path.write_text(TOPICS)
    found = [(one.id, one.text) for one in read_topics(path)]
    assert found == [("301", "International Organized Crime"), ("302", "Closed   & short")]
    assert next(iter(read_topics(path, "desc"))).text == "Identify organizations that participate in crime."
    with pytest.raises(InputError, match="line 14: no <narr> in the topic; found <num>, <title>, <desc>"):
        list(read_topics(path, "narr"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<DOC>\n<DOCNO>1</DOCNO>\n", "the <DOC> of line 1 has no </DOC>"),
        ("<DOC>\n<DOCNO>1</DOCNO>\n<DOC>\n</DOC>", "line 3: <DOC> inside the document of line 1"),
        ("<DOC>\n</DOC>\n", "line 1: no <DOCNO> in the document"),
        ("just text\n", "no <DOC> found; expected TREC documents"),
        ("<DOC><DOCNO>1 2</DOCNO></DOC>", "id '1 2' is empty or holds white space"),
    ],
)
def test_malformed_documents_are_refused_by_line(tmp_path, text, message):
    (tmp_path / "documents.trec").write_text(text)
    with pytest.raises(InputError, match=message):
        list(trec_corpus("x", [tmp_path / "documents.trec"]))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "robust"
    made.mkdir()
    (made / "documents").mkdir()
    (made / "documents" / "b.jsonl").write_text('{"id": "d3", "contents": "three"}\n')
    (made / "documents" / "a").write_bytes(b"<DOC><DOCNO>d1</DOCNO><TEXT>one</TEXT></DOC>")
    (made / "topics.tsv.gz").write_bytes(gzip.compress(b"1\tfirst one\n2\tsecond\n"))
    (made / "qrels.txt").write_text("1 0 d1 2\n1 0 d3 0\n2 Q0 d3 0.5\n")
    return made


def test_a_folder_and_the_explicit_form(folder):
    testset = load_dataset(f"trec:{folder}")
    assert [one.id for one in testset.documents()] == ["d1", "d3"]
    assert testset.queries == {"1": "first one", "2": "second"}
    assert testset.qrels == {"1": {"d1": 2, "d3": 0}, "2": {"d3": 1}}
    assert testset.notices == ("1 grades are no whole numbers; they were rounded (0.5 became 1).",)
    assert (testset.name, testset.split) == ("robust", "test")
    parts = f"docs={folder}/documents,topics={folder}/topics.tsv.gz,qrels={folder}/qrels.txt"
    assert load_dataset(f"trec:{parts}").fingerprint == testset.fingerprint
    for wrong in (parts.replace("docs=", "documents="), parts.partition(",")[0]):
        with pytest.raises(InputError, match="expected trec:docs=PATH,topics=PATH,qrels=PATH"):
            load_dataset(f"trec:{wrong}")
    with pytest.raises(InputError, match="field 'head'; expected one of title, desc, narr"):
        load_dataset(f"trec:{parts},field=head")


def test_splits_by_the_names_of_the_files(folder):
    (folder / "qrels.txt").rename(folder / "qrels.dev.txt")
    assert load_dataset(f"trec:{folder}").split == "dev"
    (folder / "qrels.test.txt").write_text("2 0 d3 1\n")
    assert load_dataset(f"trec:{folder}").qrels == {"2": {"d3": 1}}
    assert len(load_dataset(f"trec:{folder}", "dev").queries) == 2
    with pytest.raises(InputError, match="no split 'train'; there are dev, test"):
        load_dataset(f"trec:{folder}", "train")


def test_what_is_missing_or_double_is_named(folder, tmp_path):
    (folder / "topics.trec").write_text(TOPICS)
    with pytest.raises(InputError, match=r"found topics\.trec and topics\.tsv\.gz; expected one topics"):
        load_dataset(f"trec:{folder}")
    (folder / "topics.trec").unlink()
    (folder / "docs.trec").write_text(SGML)
    with pytest.raises(InputError, match=r"found docs\.trec, documents; expected one documents"):
        load_dataset(f"trec:{folder}")
    with pytest.raises(InputError, match=r"no such folder; expected documents\.\*, topics\.\* and qrels"):
        load_dataset(f"trec:{tmp_path}/absent")
    (folder / "docs.trec").unlink()
    (folder / "qrels.txt").write_text("1 d1 2\n")
    with pytest.raises(InputError, match="line 1: found 3 columns in '1 d1 2'; expected four columns"):
        load_dataset(f"trec:{folder}")


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
ids = st.text(st.characters(categories=["L", "N"], include_characters="<&;-_"), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.dictionaries(ids, st.tuples(words, words), min_size=1, max_size=4),
    queries=st.dictionaries(ids, words, min_size=1, max_size=3),
    grade=st.integers(-3, 5),
)
def test_whatever_is_written_is_read_as_the_same_texts(tmp_path_factory, documents, queries, grade):
    folder = tmp_path_factory.mktemp("round")
    corpus = [Document(name, text, title) for name, (text, title) in documents.items()]
    qrels = {query: {corpus[0].id: grade} for query in queries}
    write_collection(folder / "beir", corpus, queries, {"dev": qrels})
    testset = load_dataset(folder / "beir", "dev")
    write_trec(testset, folder / "trec")
    again = load_dataset(f"trec:{folder / 'trec'}", "dev")
    assert list(again.documents()) == corpus
    assert (again.queries, again.qrels) == (queries, qrels)
    assert again.fingerprint == testset.fingerprint


def test_an_existing_folder_is_left_alone(folder):
    testset = load_dataset(f"trec:{folder}")
    with pytest.raises(InputError, match="already exists"):
        write_trec(testset, folder)
    with pytest.raises(InputError, match="was not made by retrokit"):
        write_trec(testset, folder, overwrite=True)
    assert new_folder
