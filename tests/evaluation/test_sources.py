"""Every source of test collections gives what the BEIR folder with the same texts gives."""

import gzip
import json
import os
import subprocess
import sys
import zipfile
from collections import namedtuple

import pytest

from evaluation.hub_layout import find_parts
from evaluation.testsets import load_dataset, write_collection
from indexes.errors import InputError
from retrieval.documents import Document

DOCUMENTS = [
    Document("7", 'a < b && c > d,  "quoted"\n\nsecond paragraph', "On  two spaces & more"),
    Document("d2", "2020-01-01T00:00:00", "2021-02-03"),
    Document("d3", "Grüße, 漢字 \u2028 and \x85 in between"),
    Document("d4", "", "a title alone"),
]
QUERIES = {"q1": "what is < than &lt; ?", "12": "2020-01-01", "q3": "Topic: colons", "q4": "not judged in test"}
QRELS = {"test": {"q1": {"7": 2, "d2": 0}, "12": {"d2": 1, "d3": -1}, "q3": {"d4": 1}}, "train": {"q4": {"d3": 1}}}


@pytest.fixture
def toy(tmp_path):
    write_collection(tmp_path / "toy", DOCUMENTS, QUERIES, QRELS)
    return tmp_path / "toy"


@pytest.fixture
def expected(toy):
    return load_dataset(toy)


def same(testset, expected):
    assert list(testset.documents()) == DOCUMENTS == list(testset.documents())
    assert (testset.queries, testset.qrels) == (expected.queries, expected.qrels)
    assert (testset.fingerprint, testset.corpus_fingerprint) == (expected.fingerprint, expected.corpus_fingerprint)
    assert (testset.split, testset.size) == ("test", 4)
    assert testset.notices == expected.notices
    return True


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def records():
    corpus = [{"_id": one.id, "title": one.title, "text": one.text, "metadata": {}} for one in DOCUMENTS]
    queries = [{"_id": name, "text": text} for name, text in QUERIES.items()]
    qrels = {
        split: [
            {"query-id": query, "corpus-id": document, "score": grade}
            for query, grades in judged.items()
            for document, grade in grades.items()
        ]
        for split, judged in QRELS.items()
    }
    return corpus, queries, qrels


README = """---
license: other
configs:
- config_name: default
  data_files:
  - split: train
    path: qrels/train.jsonl
  - split: test
    path: qrels/test.jsonl
- config_name: corpus
  data_files:
  - split: corpus
    path: corpus.jsonl
- config_name: queries
  data_files:
  - split: queries
    path: "queries*.jsonl"
---
# Toy
"""


def hub_clone(folder):
    corpus, queries, qrels = records()
    write_lines(folder / "corpus.jsonl", corpus)
    write_lines(folder / "queries.jsonl", queries)
    for split, judged in qrels.items():
        write_lines(folder / "qrels" / f"{split}.jsonl", judged)
    (folder / "README.md").write_text(README)
    return folder


# ---- BEIR folders


@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_packed_folders(toy, expected, packed):
    import pyarrow

    for path in (toy / "corpus.jsonl", toy / "queries.jsonl", toy / "qrels" / "test.tsv"):
        if packed == "gz":
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        else:
            with pyarrow.CompressedOutputStream(str(path) + ".zst", "zstd") as file:
                file.write(path.read_bytes())
        path.unlink()
    assert same(load_dataset(toy), expected)


def test_a_name_is_looked_up_in_the_data_folder(toy, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(toy)
    with pytest.raises(InputError, match=r"toy: no such folder; expected a BEIR folder .*RETROKIT_DATA.* is not set"):
        load_dataset("toy")
    monkeypatch.setenv("RETROKIT_DATA", str(tmp_path))
    assert same(load_dataset("toy"), expected)
    with pytest.raises(
        InputError, match=rf"msmarco: no such folder; .*qrels/dev\.tsv.*, nor in {tmp_path} \(\$RETROKIT"
    ):
        load_dataset("msmarco")
    with pytest.raises(InputError, match=r"beir:scifact downloads it \(https://.*scifact.zip, MD5 5f7d1de60b1"):
        load_dataset("scifact")


def test_unknown_sources_and_several_collections_are_refused(toy, tmp_path):
    with pytest.raises(InputError, match=r"unknown source 'ftp'; expected a BEIR folder or trec:, hf:, irds:"):
        load_dataset("ftp:somewhere")
    with pytest.raises(InputError, match="irds:: names nothing; expected irds:ID"):
        load_dataset("irds:")
    (tmp_path / "cqadupstack").mkdir()
    (toy).rename(tmp_path / "cqadupstack" / "android")
    with pytest.raises(InputError, match=r"holds 1 test collections \(android\); name one"):
        load_dataset(tmp_path / "cqadupstack")
    testset = load_dataset(tmp_path / "cqadupstack" / "android")
    assert testset.name == "cqadupstack-android"
    assert "unweighted mean of all 12" in testset.notices[-1]


def test_the_split_is_the_usual_one_or_the_only_one(tmp_path):
    both = {"test": QRELS["test"], "dev": QRELS["train"]}
    write_collection(tmp_path / "msmarco", DOCUMENTS, QUERIES, both)
    write_collection(tmp_path / "other", DOCUMENTS, QUERIES, both)
    write_collection(tmp_path / "lone", DOCUMENTS, QUERIES, {"validation": QRELS["test"]})
    write_collection(tmp_path / "two", DOCUMENTS, QUERIES, {"a": QRELS["test"], "b": QRELS["train"]})
    msmarco = load_dataset(tmp_path / "msmarco")
    assert msmarco.split == "dev"
    assert "43 queries of TREC-DL 2019" in msmarco.notices[-1]
    assert load_dataset(tmp_path / "other").split == "test"
    assert load_dataset(tmp_path / "lone").split == "validation"
    with pytest.raises(InputError, match="no split 'test'; there are a, b"):
        load_dataset(tmp_path / "two")


# ---- the hub's layout


def test_a_local_clone_of_the_hub(tmp_path, expected):
    hub_clone(tmp_path / "clones" / "toy")
    spec = f"hf:{tmp_path / 'clones' / 'toy'}"
    assert same(load_dataset(spec), expected)
    assert load_dataset(spec, "train").qrels == QRELS["train"]
    with pytest.raises(InputError, match="no split 'dev'; there are train, test"):
        load_dataset(spec, "dev")
    with pytest.raises(InputError, match="is a local clone, which is at one revision; leave @main out"):
        load_dataset(spec + "@main")


def test_datasets_reads_the_same_from_a_clone(tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = hub_clone(tmp_path / "clones" / "toy")
    splits = find_parts(folder, None, "x")["qrels"]
    theirs = datasets.load_dataset(str(folder), "default", cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in theirs.items()} == {
        split: sum(1 for path in paths for _ in path.open()) for split, paths in splits.items()
    }


def test_clones_without_configurations_in_parquet(tmp_path, expected):
    import pyarrow
    from pyarrow import parquet

    corpus, queries, qrels = records()
    folder = tmp_path / "clones" / "toy"
    for name, rows in {
        "corpus/corpus-00000-of-00002": corpus[:2],
        "corpus/corpus-00001-of-00002": corpus[2:],
        "queries/queries-00000-of-00001": queries,
        "qrels/test-00000-of-00001": qrels["test"],
        "qrels/train-00000-of-00001": qrels["train"],
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        plain = [{key: value for key, value in row.items() if key != "metadata"} for row in rows]
        parquet.write_table(pyarrow.Table.from_pylist(plain), folder / f"{name}.parquet")
    assert same(load_dataset(f"hf:{folder}"), expected)


def test_qrels_in_a_repository_of_their_own(tmp_path, expected):
    corpus, queries, qrels = records()
    folder = tmp_path / "clones" / "toy"
    for name, rows in (("corpus", corpus), ("queries", queries)):
        write_lines(folder / f"{name}.jsonl", rows)
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress((folder / f"{name}.jsonl").read_bytes()))
        (folder / f"{name}.jsonl").unlink()
    (folder / "toy.py").write_text("the old loading script")
    with pytest.raises(
        InputError, match=r"found no qrels; expected a configuration qrels or default in README\.md, or"
    ):
        load_dataset(f"hf:{folder}")
    apart = tmp_path / "clones" / "toy-qrels"
    apart.mkdir()
    for split, rows in qrels.items():
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row.values())) for row in rows)]
        (apart / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    assert same(load_dataset(f"hf:{folder}"), expected)


def test_one_of_several_configurations(tmp_path, expected):
    corpus, queries, qrels = records()
    folder = tmp_path / "clone"
    blocks = []
    for name, rows in (("corpus", corpus), ("queries", queries), ("qrels", qrels["test"])):
        write_lines(folder / "de" / f"{name}.jsonl", rows)
        blocks.append(f"- config_name: de-{name}\n  data_files:\n  - split: test\n    path: de/{name}.jsonl")
    (folder / "README.md").write_text("---\nconfigs:\n" + "\n".join(blocks) + "\n---\n")
    assert same(load_dataset(f"hf:{folder}:de"), expected)
    with pytest.raises(InputError, match="no configuration 'fr' and no fr-corpus; README.md names de-corpus"):
        load_dataset(f"hf:{folder}:fr")


def test_files_that_readme_names_must_be_there_and_inside(tmp_path):
    folder = hub_clone(tmp_path / "clone")
    (folder / "qrels" / "test.jsonl").unlink()
    with pytest.raises(InputError, match=r"README.md names qrels/test.jsonl, but there is no such file"):
        load_dataset(f"hf:{folder}")
    (folder / "README.md").write_text(README.replace("qrels/test.jsonl", "../toy/qrels/test.jsonl"))
    with pytest.raises(InputError, match="leads out of the repository"):
        load_dataset(f"hf:{folder}")


def test_the_hub_is_asked_for_the_revision_and_read_from_its_cache(tmp_path, expected, monkeypatch):
    import huggingface_hub

    folder, asked = hub_clone(tmp_path / "snapshot"), []

    def snapshot(name, **options):
        asked.append((name, options["revision"], options["repo_type"]))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    testset = load_dataset("hf:org/toy@refs/pr/1")
    assert same(testset, expected)
    assert testset.name == "toy"
    assert asked == [("org/toy", "refs/pr/1", "dataset")]


def test_a_name_that_is_neither_on_the_hub_nor_in_its_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="org/absent-toy: not to be had from the hub or its cache"):
        load_dataset("hf:org/absent-toy")


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("qrels/test.jsonl", {"query-id": "q1", "corpus-id": "7"}, "expected 'score' or 'grade'"),
        ("qrels/test.jsonl", {"query-id": "q1", "score": 1}, "expected 'corpus-id' or"),
        ("qrels/test.jsonl", {"query-id": "q1", "corpus-id": "7", "score": "high"}, "grade 'high'; expected a whole"),
        ("queries.jsonl", {"_id": "q1", "text": "twice"}, "query id 'q1' occurs twice"),
        ("corpus.jsonl", {"_id": "7", "text": "twice"}, "id '7' occurs twice"),
    ],
)
def test_malformed_clones_are_refused_by_line(tmp_path, name, record, message):
    folder = hub_clone(tmp_path / "clone")
    with (folder / name).open("a") as file:
        file.write(json.dumps(record) + "\n")
    with pytest.raises(InputError, match=message):
        load_dataset(f"hf:{folder}")


# ---- long documents


def longembed_clone(folder):
    lengths = (256, 512)
    for task in ("qmsum", "needle"):
        synthetic = task == "needle"
        rows = {"corpus": [], "queries": [], "qrels": []}
        for length in lengths if synthetic else lengths[:1]:
            extra = {"context_length": length} if synthetic else {}
            for number in range(3):
                rows["corpus"].append({"doc_id": f"d{number}", "text": f"document {number} of {length}", **extra})
                rows["queries"].append({"qid": f"q{number}", "text": f"query {number} of {length}", **extra})
                rows["qrels"].append({"qid": f"q{number}", "doc_id": f"d{number}", **extra})
        for name, records in rows.items():
            write_lines(folder / task / f"{name}.jsonl", records)
    return folder


def test_longembed(tmp_path):
    folder = longembed_clone(tmp_path / "LongEmbed")
    qmsum = load_dataset(f"longembed:{folder}/qmsum")
    assert (qmsum.name, qmsum.split, qmsum.profile.measure) == ("longembed-qmsum", "test", "nDCG@10")
    assert qmsum.qrels == {"q0": {"d0": 1}, "q1": {"d1": 1}, "q2": {"d2": 1}}
    needle = load_dataset(f"longembed:{folder}/needle", "test_512")
    assert needle.profile.measure == "Success@1"
    assert needle.queries["q1"] == "query 1 of 512"
    assert [one.text for one in needle.documents()] == [f"document {number} of 512" for number in range(3)]
    assert load_dataset(f"longembed:{folder}/needle", "test_256").fingerprint != needle.fingerprint
    with pytest.raises(InputError, match="no split 'test'; there are test_256, test_512"):
        load_dataset(f"longembed:{folder}/needle")
    with pytest.raises(InputError, match=r"no task 'govreport'; expected \[FOLDER/\] and one of narrativeqa, qmsum"):
        load_dataset(f"longembed:{folder}/govreport")
    with pytest.raises(InputError, match=r"no such folder .*absent; expected a local clone, or longembed:qmsum alone"):
        load_dataset(f"longembed:{tmp_path}/absent/qmsum")


def test_longembed_tasks_are_fetched_alone(tmp_path, monkeypatch):
    import huggingface_hub

    folder, asked = longembed_clone(tmp_path / "LongEmbed"), []

    def snapshot(name, **options):
        asked.append((name, next(pattern for pattern in options["allow_patterns"] if "jsonl" in pattern)))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert len(load_dataset("longembed:qmsum").queries) == 3
    assert asked == [("dwzhu/LongEmbed", "qmsum/*.jsonl")]


def test_loco(tmp_path):
    documents = [
        {"dataset": task, "pid": f"{task}_{number}", "passage": f"passage {number} of {task}"}
        for task in ("qmsum", "gov_report")
        for number in range(3)
    ]
    queries = [
        {"dataset": task, "qid": f"{task}_q{number}", "query": f"query {number}", "answer_pids": [f"{task}_{number}"]}
        for task in ("qmsum", "gov_report")
        for number in range(2)
    ]
    queries[0]["answer_pids"].append("qmsum_2")
    write_lines(tmp_path / "LoCoV1-Documents" / "documents" / "all_test.jsonl", documents)
    write_lines(tmp_path / "LoCoV1-Queries" / "documents" / "all_test.jsonl", queries)
    testset = load_dataset(f"loco:{tmp_path}/qmsum")
    assert (testset.name, testset.split, testset.profile.measure) == ("loco-qmsum", "test", "nDCG@10")
    assert testset.qrels == {"qmsum_q0": {"qmsum_0": 1, "qmsum_2": 1}, "qmsum_q1": {"qmsum_1": 1}}
    assert [one.id for one in testset.documents()] == ["qmsum_0", "qmsum_1", "qmsum_2"]
    assert testset.queries["qmsum_q1"] == "query 1"
    with pytest.raises(InputError, match="no judgement of a query"):
        load_dataset(f"loco:{tmp_path}/stackoverflow")
    queries[0]["answer_pids"] = "qmsum_0"
    write_lines(tmp_path / "LoCoV1-Queries" / "documents" / "all_test.jsonl", queries)
    with pytest.raises(InputError, match="field 'answer_pids' is str; expected a list of pids"):
        load_dataset(f"loco:{tmp_path}/qmsum")


# ---- other libraries


@pytest.fixture
def irds(monkeypatch):
    """ir_datasets with a collection of our own registered for one test."""
    library = pytest.importorskip("ir_datasets")
    doc = namedtuple("Doc", "doc_id text title")
    query = namedtuple("Query", "query_id text")
    qrel = namedtuple("Qrel", "query_id doc_id relevance iteration")

    class Docs(library.formats.BaseDocs):
        def docs_iter(self):
            return iter(doc(*one[:3]) for one in DOCUMENTS)

    class Queries(library.formats.BaseQueries):
        def queries_iter(self):
            return iter(query(*one) for one in QUERIES.items())

    class Qrels(library.formats.BaseQrels):
        def qrels_iter(self):
            return (
                qrel(name, document, grade, "0")
                for name, grades in QRELS["test"].items()
                for document, grade in grades.items()
            )

    made = {
        "retrokit-toy": library.Dataset(Docs(), Queries()),
        "retrokit-toy/test": library.Dataset(Docs(), Queries(), Qrels()),
    }
    load = library.load
    monkeypatch.setattr(library, "load", lambda name: made[name] if name in made else load(name))
    return library


@pytest.mark.filterwarnings("ignore")
def test_ir_datasets(irds, expected):
    assert same(load_dataset("irds:retrokit-toy/test"), expected)
    assert same(load_dataset("irds:retrokit-toy", "test"), expected)
    assert load_dataset("irds:retrokit-toy/test").name == "retrokit-toy"
    with pytest.raises(InputError, match="irds:retrokit-toy: has not all of documents, queries and judgements"):
        load_dataset("irds:retrokit-toy")
    with pytest.raises(InputError, match="is the split 'test', not 'train'; name irds:retrokit-toy/train"):
        load_dataset("irds:retrokit-toy/test", "train")
    with pytest.raises(InputError, match="ir_datasets knows no such ID"):
        load_dataset("irds:no/such/thing")


def test_without_the_extra_the_message_names_it(monkeypatch):
    for name, spec in (("ir_datasets", "irds:beir/scifact/test"), ("mteb", "mteb:SciFact")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(
            InputError, match=rf"{spec}: needs {name} .*; install it with pip install 'retrokit\[eval\]'"
        ):
            load_dataset(spec)


def test_ir_datasets_reads_a_beir_archive_in_its_home(toy, expected, tmp_path):
    pytest.importorskip("ir_datasets")
    home = tmp_path / "irds"
    (home / "beir" / "scifact").mkdir(parents=True)
    with zipfile.ZipFile(home / "beir" / "scifact" / "source.zip", "w") as archive:
        for path in toy.rglob("*.*"):
            if path.is_file():
                archive.write(path, f"scifact/{path.relative_to(toy)}")
    code = (
        "from evaluation.testsets import load_dataset\n"
        "print(load_dataset('irds:beir/scifact/test').fingerprint, load_dataset('irds:beir/scifact', 'train').split)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "IR_DATASETS_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [expected.fingerprint, "train"]


@pytest.mark.slow  # 5 to 10 seconds: importing mteb
@pytest.mark.filterwarnings("ignore")
def test_mteb_tasks(tmp_path, expected, monkeypatch):
    mteb = pytest.importorskip("mteb")
    folder = hub_clone(tmp_path / "clone")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    get_task = mteb.get_task

    def redirected(name):
        task = get_task(name)
        path = {"path": str(folder), "revision": "x"}
        task.metadata = task.metadata.model_copy(update={"dataset": path})
        return task

    monkeypatch.setattr(mteb, "get_task", redirected)
    testset = load_dataset("mteb:SCIDOCS")
    assert (testset.queries, testset.qrels) == (expected.queries, expected.qrels)
    assert testset.fingerprint == expected.fingerprint
    assert not testset.profile.drop_self_matches
    assert load_dataset("mteb:ArguAna").profile.drop_self_matches
    with pytest.raises(InputError, match="no subset 'de'; there are default"):
        load_dataset("mteb:SCIDOCS/de")
    with pytest.raises(InputError, match="MTEB knows no such task"):
        load_dataset("mteb:NoSuchTask")
    with pytest.raises(InputError, match="is of type STS; expected a retrieval task"):
        load_dataset("mteb:STSBenchmark")
