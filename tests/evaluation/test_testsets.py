import gzip
import json
import os
from pathlib import Path

import pytest

from evaluation.testsets import Profile, load_dataset, write_collection
from indexes.errors import InputError
from retrieval.documents import Document

DATA = Path(os.environ.get("RETROKIT_TEST_DATA") or Path(__file__).parents[2] / "../shared/data") / "beir"
DOCUMENTS = [Document("d1", "one", "first"), Document("d2", "two"), Document("d3", "three")]
QUERIES = {"q1": "who is one?", "q2": "who is two?", "q3": "who is three?"}
QRELS = {"test": {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1, "d3": -1}}, "train": {"q3": {"d3": 1}}}


@pytest.fixture
def toy(tmp_path):
    write_collection(tmp_path / "toy", DOCUMENTS, QUERIES, QRELS)
    return tmp_path / "toy"


def write_qrels(folder, text):
    (folder / "qrels" / "test.tsv").write_text(text, encoding="utf-8")


def test_what_is_written_is_loaded(toy):
    testset = load_dataset(toy)
    assert (testset.name, testset.split, testset.qrels) == ("toy", "test", QRELS["test"])
    assert testset.queries == {"q1": "who is one?", "q2": "who is two?"}
    assert list(testset.documents()) == DOCUMENTS == list(testset.documents())
    assert testset.profile == Profile(drop_self_matches=False)
    assert testset.notices == ()


def test_beir_loads_the_same(toy):
    loader = pytest.importorskip("beir.datasets.data_loader").GenericDataLoader
    corpus, queries, qrels = loader(str(toy)).load(split="test")
    testset = load_dataset(toy)
    assert (queries, qrels) == (testset.queries, testset.qrels)
    assert corpus == {one.id: {"text": one.text, "title": one.title} for one in DOCUMENTS}


def test_packed_files_and_a_missing_header_change_nothing(toy):
    before = load_dataset(toy)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (toy / f"{name}.gz").write_bytes(gzip.compress((toy / name).read_bytes()))
        (toy / name).unlink()
    write_qrels(toy, "q1\td1\t2.0\nq1\td2\t0\n\nq2\td2\t1\r\nq2\td3\t-1")
    after = load_dataset(toy)
    assert (after.qrels, after.fingerprint) == (before.qrels, before.fingerprint)


def test_the_fingerprint_is_of_corpus_queries_and_qrels(toy):
    test, train = load_dataset(toy), load_dataset(toy, "train")
    assert test.fingerprint != train.fingerprint
    assert test.corpus_fingerprint == train.corpus_fingerprint
    write_qrels(toy, "q1\td1\t1\nq1\td2\t0\nq2\td2\t1\nq2\td3\t-1\n")
    assert load_dataset(toy).fingerprint not in (test.fingerprint, train.fingerprint)
    lines = (toy / "corpus.jsonl").read_text().replace("one", "uno")
    (toy / "corpus.jsonl").write_text(lines)
    assert load_dataset(toy).corpus_fingerprint != test.corpus_fingerprint


def test_unknown_documents_are_kept_and_unknown_queries_dropped_with_a_notice(toy):
    write_qrels(toy, "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td1\t1\nq1\tgone\t1\nq9\td1\t1\nq8\td1\t1\n")
    testset = load_dataset(toy)
    assert testset.qrels == {"q1": {"d1": 1, "gone": 1}}
    assert testset.notices == (
        "2 judgements are of queries that the queries file lacks; they were left out.",
        "1 judgements occur again with the same grade; they were counted once.",
        "1 judgements are of documents that the corpus lacks; they count in the ideal ranking and as not found.",
    )


def test_ids_that_collide_are_kept_and_said(tmp_path):
    write_collection(
        tmp_path / "x", DOCUMENTS, {"d1": "one", "d2": "else"}, {"test": {"d1": {"d1": 1}, "d2": {"d1": 1}}}
    )
    testset = load_dataset(tmp_path / "x")
    assert not testset.profile.drop_self_matches
    assert testset.notices == (
        "2 query ids are document ids too: 1 with the same text, 1 judged relevant to themselves; such hits are kept.",
    )
    assert "are dropped" in load_dataset(tmp_path / "x", drop_self_matches=True).notices[0]


@pytest.mark.parametrize("name", ["arguana", "quora", "fiqa", "FEVER", "msmarco", "trec-dl", "trec_dl_2019"])
def test_profiles_go_by_the_name_of_the_dataset(tmp_path, name):
    write_collection(tmp_path / name, DOCUMENTS, QUERIES, QRELS)
    assert load_dataset(tmp_path / name).profile.drop_self_matches
    assert not load_dataset(tmp_path / name, drop_self_matches=False).profile.drop_self_matches


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1\td1", "line 2: found 2 columns in .* expected three columns separated by tabs"),
        ("q1 0 d1 1", "line 2: found 1 columns"),
        ("q1\td1\thigh", "line 2: grade 'high'; expected a whole number"),
        ("q1\td1\tnan", "line 2: grade 'nan'"),
        ("q1\td2\t1", "line 2: document 'd2' of query 'q1' has grade 1 here and 0 before; expected one grade"),
    ],
)
def test_malformed_judgements_are_refused_with_file_and_line(toy, line, message):
    write_qrels(toy, f"q1\td2\t0\n{line}\n")
    with pytest.raises(InputError, match=rf"test\.tsv, {message}"):
        load_dataset(toy)


def test_a_first_line_with_a_known_query_is_no_header(toy):
    write_qrels(toy, "q1\td1\tone\n")
    with pytest.raises(InputError, match="line 1: grade 'one'"):
        load_dataset(toy)


def test_what_is_not_there_is_named(toy, tmp_path):
    with pytest.raises(InputError, match="no split 'dev'; there are test, train"):
        load_dataset(toy, "dev")
    with pytest.raises(InputError, match="no such folder; expected a BEIR folder"):
        load_dataset(tmp_path / "absent")
    write_qrels(toy, "query-id\tcorpus-id\tscore\nq9\td1\t1\n")
    with pytest.raises(InputError, match="no judgement of a query in the queries file"):
        load_dataset(toy)
    (toy / "queries.jsonl").unlink()
    with pytest.raises(InputError, match=r"no queries\.jsonl and no queries\.jsonl\.gz"):
        load_dataset(toy, "train")
    for path in (toy / "qrels").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"expected qrels/test\.tsv"):
        load_dataset(toy)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"_id": "q1", "text": "again"}, "line 4: query id 'q1' occurs twice"),
        ({"_id": "q 9", "text": ""}, "white space"),
    ],
)
def test_unusable_query_ids_are_refused(toy, query, message):
    with (toy / "queries.jsonl").open("a") as file:
        file.write(json.dumps(query) + "\n")
    with pytest.raises(InputError, match=message):
        load_dataset(toy)


def test_a_collection_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(InputError, match="split 'test' judges query 'q9', which is not among the queries"):
        write_collection(tmp_path / "x", DOCUMENTS, QUERIES, {"test": {"q9": {"d1": 1}}})
    with pytest.raises(InputError, match="'d1' occurs twice"):
        write_collection(tmp_path / "x", DOCUMENTS * 2, QUERIES, QRELS)
    assert list(tmp_path.iterdir()) == []
    write_collection(tmp_path / "x", DOCUMENTS, QUERIES, QRELS)
    with pytest.raises(InputError, match="already exists"):
        write_collection(tmp_path / "x", DOCUMENTS, QUERIES, QRELS)


@pytest.mark.parametrize(
    ("name", "queries", "judgements", "collisions"),
    [("cisi", 76, 3114, 76), ("cacm", 52, 796, 52), ("scifact", 300, 339, 0)],
)
def test_real_collections(name, queries, judgements, collisions):
    if not DATA.is_dir():
        pytest.skip(f"no test data at {DATA}; set RETROKIT_TEST_DATA")
    testset = load_dataset(DATA / name)
    assert len(testset.queries) == queries
    assert sum(map(len, testset.qrels.values())) == judgements
    assert not testset.profile.drop_self_matches
    assert [notice.split()[0] for notice in testset.notices if "document ids too" in notice] == (
        [str(collisions)] if collisions else []
    )
