import pytest

from evaluation import known_sets
from evaluation.known_sets import KNOWN, Known
from evaluation.measures import parse_measures
from evaluation.profiles import Profile, find_profile, overrule
from evaluation.testsets import load_dataset, to_beir_dir, write_collection
from indexes.errors import InputError
from retrieval.documents import Document

DOCUMENTS = [Document("d1", "one", "first"), Document("d2", "two"), Document("d3", "")]
QUERIES = {"q1": "who?", "q2": " ", "q3": "why?"}
QRELS = {"test": {"q1": {"d1": 1}, "q2": {"d1": 1}, "q3": {"d2": 0, "d3": -1}}}


@pytest.mark.parametrize(
    ("name", "dropped", "split"),
    [
        ("FiQA2018", True, "test"),
        ("QuoraRetrieval", True, "test"),
        ("FEVERHardNegatives", True, "test"),
        ("msmarco-passage/trec-dl-2019/judged", True, "test"),
        ("msmarco-passage/dev/small", True, "dev"),
        ("MSMARCO", True, "dev"),
        ("CQADupstackAndroidRetrieval", False, "test"),
        ("cqadupstack/gis", False, "test"),
        ("Touche2020Retrieval.v3", False, "test"),
        ("ClimateFEVER", False, "test"),
        ("SciFact", False, "test"),
    ],
)
def test_names_of_many_libraries(name, dropped, split):
    profile = find_profile(name)
    assert (profile.drop_self_matches, profile.split) == (dropped, split)
    assert parse_measures([profile.measure])


def test_names_that_nobody_knows():
    assert find_profile("my-own") is None
    assert find_profile("fever-of-mine") is None


def test_what_is_set_by_hand_is_recorded():
    assert overrule(Profile(), {"drop_self_matches": False}) == Profile()
    assert overrule(Profile(), {"drop_self_matches": True}).overruled == ("drop_self_matches",)


@pytest.mark.parametrize(
    ("texts", "relevant", "dropped"),
    [
        (("one", "two"), "other", True),  # queries that are documents
        (("one", "else"), "other", False),  # ids that merely collide
        (("one", "two"), "own", False),  # judgements that say otherwise
    ],
)
def test_unknown_collections_go_by_their_texts(tmp_path, texts, relevant, dropped):
    documents = [Document("a", "one"), Document("b", "two"), Document("c", "three")]
    qrels = {name: {("c" if relevant == "other" else name): 1} for name in "ab"}
    write_collection(tmp_path / "x", documents, dict(zip("ab", texts, strict=True)), {"test": qrels})
    testset = load_dataset(tmp_path / "x")
    assert testset.profile.drop_self_matches is dropped
    assert f"such hits are {'dropped' if dropped else 'kept'}" in testset.notices[0]
    by_hand = load_dataset(tmp_path / "x", drop_self_matches=not dropped)
    assert by_hand.profile.drop_self_matches is not dropped
    assert f"drop_self_matches was set to {not dropped} by hand" in by_hand.notices[-1]
    assert by_hand.fingerprint == testset.fingerprint


def test_texts_that_are_missing_and_queries_without_relevant_documents_are_counted(tmp_path):
    write_collection(tmp_path / "x", DOCUMENTS, QUERIES, QRELS)
    assert load_dataset(tmp_path / "x").notices == (
        "1 of 3 documents have no text; they are kept.",
        "1 of 3 queries have no text; they are kept.",
        "1 of 3 queries have no relevant document; they count 0 in every mean.",
    )


def test_grades_are_rounded_with_a_notice_and_never_twice(tmp_path):
    write_collection(tmp_path / "x", DOCUMENTS, QUERIES, QRELS)
    qrels = tmp_path / "x" / "qrels" / "test.tsv"
    qrels.write_text("q1\td1\t0.5\nq1\td2\t1.4\nq1\td3\t-0.5\nq3\td1\t2.0\n")
    testset = load_dataset(tmp_path / "x")
    assert testset.qrels == {"q1": {"d1": 1, "d2": 1, "d3": 0}, "q3": {"d1": 2}}
    assert testset.notices[0] == "3 grades are no whole numbers; they were rounded (0.5 became 1)."
    qrels.write_text("q1\td1\t1e99\n")
    with pytest.raises(InputError, match="grade '1e99'; expected a whole number"):
        load_dataset(tmp_path / "x")


def test_another_title_rule_makes_another_corpus(tmp_path):
    write_collection(tmp_path / "x", DOCUMENTS, QUERIES, QRELS)
    usual = load_dataset(tmp_path / "x")
    joined = load_dataset(tmp_path / "x", title_separator=" [SEP] ")
    bare = load_dataset(tmp_path / "x", title_separator=None)
    assert [one.content for one in usual.documents()] == ["first one", "two", ""]
    assert [one.content for one in joined.documents()] == ["first [SEP] one", "two", ""]
    assert [one.content for one in bare.documents()] == ["one", "two", ""]
    assert len({one.corpus_fingerprint for one in (usual, joined, bare)}) == 3
    assert bare.profile.overruled == ("title_separator",)
    assert "title_separator was set to None by hand" in bare.notices[-1]


@pytest.fixture
def known(monkeypatch):
    """Makes a test collection known for one test, by the name `toy`."""

    def make(testset, **changed):
        from evaluation import testsets

        corpus = testsets._survey(testset.documents(), testset.queries, testset.qrels, None)
        digests = (testsets._digest(testset.queries), testsets._digest(testset.qrels))
        one = Known("toy", "test", "BEIR", testset.fingerprint, corpus.fingerprint, corpus.contents, *digests)
        monkeypatch.setattr(known_sets, "KNOWN", (one._replace(**changed),))

    return make


def test_a_known_collection_is_recognised_whatever_its_name_and_order(tmp_path, known):
    write_collection(tmp_path / "toy", DOCUMENTS, QUERIES, QRELS)
    known(load_dataset(tmp_path / "toy"))
    assert load_dataset(tmp_path / "toy").identical_to == "BEIR toy (test)"
    (tmp_path / "toy").rename(tmp_path / "other")
    assert load_dataset(tmp_path / "other").identical_to == "BEIR toy (test)"
    lines = (tmp_path / "other" / "corpus.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "other" / "corpus.jsonl").write_text("".join(reversed(lines)))
    turned = load_dataset(tmp_path / "other")
    assert turned.identical_to == "BEIR toy (test)"
    assert turned.notices[-1] == "The documents are those of BEIR toy (test), in another order."


@pytest.mark.parametrize(
    ("field", "said"), [("corpus", "its corpus"), ("queries", "its queries"), ("qrels", "its qrels")]
)
def test_a_known_name_with_other_contents_is_said(tmp_path, known, field, said):
    write_collection(tmp_path / "toy", DOCUMENTS, QUERIES, QRELS)
    known(load_dataset(tmp_path / "toy"), **{field: "0" * 64})
    testset = load_dataset(tmp_path / "toy")
    assert testset.identical_to is None
    assert testset.notices[-1] == (
        f"This differs from the known BEIR toy (test) in {said}: "
        "results are not comparable with figures published for it."
    )


def test_known_collections_are_recognised(test_data):
    for one in KNOWN:
        testset = load_dataset(test_data / "beir" / one.name, one.split)
        assert testset.identical_to == one.label
        assert (testset.fingerprint, testset.corpus_fingerprint) == (one.fingerprint, one.corpus_fingerprint)
    assert {(one.name, one.split) for one in KNOWN} >= {("scifact", "test"), ("scifact", "train"), ("npl", "test")}


def test_a_folder_for_beir_measures_the_same_there(tmp_path):
    write_collection(
        tmp_path / "x", DOCUMENTS, {"d1": "who?", "q2": "what?"}, {"test": {"d1": {"d1": 1}, "q2": {"d2": 1}}}
    )
    kept = load_dataset(tmp_path / "x")
    to_beir_dir(kept, tmp_path / "kept")
    written = load_dataset(tmp_path / "kept")
    assert written.queries == {"qd1": "who?", "qq2": "what?"}
    assert written.qrels == {"qd1": {"d1": 1}, "qq2": {"d2": 1}}
    assert list(written.documents()) == DOCUMENTS
    to_beir_dir(load_dataset(tmp_path / "x", drop_self_matches=True), tmp_path / "dropped")
    assert load_dataset(tmp_path / "dropped").queries == kept.queries
    with pytest.raises(InputError, match="query id 'd1' would be a document's id too; expected another query_prefix"):
        to_beir_dir(kept, tmp_path / "again", query_prefix="")
    assert not (tmp_path / "again").exists()
