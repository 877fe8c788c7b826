"""Every source of a corpus gives the same documents, lazily and again; what is wrong with one is said in one line."""

import gzip
import itertools
import json
import random

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from indexes.errors import InputError
from retrieval import read_documents
from retrieval.corpora import Corpus
from retrieval.documents import Document, corpus_fingerprint

DOCUMENTS = [Document("a", "x y", "T"), Document("7", "z"), Document("ü", "é" * 50)]
RECORDS = [{"_id": one.id, "text": one.text, "title": one.title or None, "junk": 1.5} for one in DOCUMENTS]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
TABLE = pa.Table.from_pylist(RECORDS)


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


def write_ipc(path, table=TABLE, opener=pa.ipc.new_file, rows=2, compression=None):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with path.open("wb") as file, opener(file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)


WRITERS = {
    "c.jsonl": lambda path: path.write_bytes(LINES),
    "c.ndjson": lambda path: path.write_bytes(LINES),
    "c.json-lines.GZ": lambda path: path.write_bytes(gzip.compress(LINES[:20]) + gzip.compress(LINES[20:])),
    "c.jsonl.zst": lambda path: path.write_bytes(zstd(LINES[:20]) + zstd(LINES[20:])),
    "c.parquet": lambda path: pq.write_table(TABLE, path, row_group_size=2),
    "c.arrow": write_ipc,
    "lz4.arrow": lambda path: write_ipc(path, compression="lz4"),
    "stream.arrow": lambda path: write_ipc(path, opener=pa.ipc.new_stream),
    "c.feather": lambda path: pyarrow.feather.write_feather(TABLE, path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_are_read_again_and_say_how_far_they_are(tmp_path, name):
    WRITERS[name](tmp_path / name)
    corpus = read_documents(tmp_path / name)
    assert corpus.source == str(tmp_path / name)
    assert corpus.repeatable
    assert list(corpus) == DOCUMENTS == list(corpus)
    assert read_documents(corpus) is corpus
    lines = "json" in name
    assert corpus.total == (None if lines else 3)
    assert corpus.fraction == (1.0 if lines else None)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_fraction_grows_with_the_bytes_read_over_all_shards(tmp_path, pack):
    # Texts that hardly compress, so that half of the lines are half of the bytes of a compressed file, too.
    texts, suffix = random.Random(0), {bytes: "", gzip.compress: ".gz", zstd: ".zst"}[pack]
    for shard in range(2):
        lines = [f'{{"_id": "{shard}-{n}", "text": "{texts.randbytes(500).hex()}"}}\n' for n in range(2_000)]
        (tmp_path / f"{shard}.jsonl{suffix}").write_bytes(pack("".join(lines).encode()))
    corpus = read_documents(tmp_path)
    assert corpus.fraction == 0.0
    stream = iter(corpus)
    for count, expected in ((1, 0.0), (999, 0.25), (1_000, 0.5), (1_000, 0.75)):
        list(itertools.islice(stream, count))
        assert corpus.fraction == pytest.approx(expected, abs=0.15)
    list(stream)
    assert corpus.fraction == 1.0
    next(iter(corpus))
    assert corpus.fraction < 0.15  # of the newest iteration


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz", "corpus.jsonl.zst"])
def test_beir_folders(tmp_path, name):
    pack = {"jsonl": bytes, "gz": gzip.compress, "zst": zstd}[name.rpartition(".")[2]]
    (tmp_path / name).write_bytes(pack(LINES))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "no document"}\n')
    assert list(read_documents(tmp_path)) == DOCUMENTS


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        (".parquet", pq.write_table),
        (".arrow", lambda table, path: write_ipc(path, table)),
        (".jsonl", lambda table, path: path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))),
    ],
)
def test_folders_of_shards_are_read_in_the_order_of_their_paths(tmp_path, suffix, write):
    (tmp_path / "b").mkdir()
    (tmp_path / ".cache").mkdir()
    for row, name in ((2, "c"), (0, "a-10"), (1, "b/part-00")):
        write(TABLE.slice(row, 1), tmp_path / f"{name}{suffix}")
    write(TABLE, tmp_path / ".cache" / f"copy{suffix}")
    (tmp_path / "README.md").write_text("About these shards.")
    corpus = read_documents(tmp_path)
    assert list(corpus) == DOCUMENTS
    assert corpus.total == (None if suffix == ".jsonl" else 3)


def test_folders_of_several_kinds_or_with_queries_are_refused(tmp_path):
    pq.write_table(TABLE, tmp_path / "c.parquet")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "notes.txt").write_text("a text")
    with pytest.raises(InputError, match=r"several kinds \(1 JSON lines, 1 Parquet, 1 text\); expected one"):
        read_documents(tmp_path)
    (tmp_path / "set" / "queries").mkdir(parents=True)
    for name in ("corpus.parquet", "queries/part-0.parquet"):
        pq.write_table(TABLE, tmp_path / "set" / name)
    with pytest.raises(InputError, match=r"queries.part-0.parquet holds queries, not documents"):
        read_documents(tmp_path / "set")


def test_folders_of_texts_know_their_number(tmp_path):
    (tmp_path / "b.md").write_text("B")
    (tmp_path / "README.md").write_text("A document here")
    corpus = read_documents(tmp_path)
    assert (corpus.total, corpus.fraction) == (2, None)
    assert [one.id for one in corpus] == ["README.md", "b.md"]
    (tmp_path / "b.md").unlink()
    with pytest.raises(InputError, match=r"b.md: no such file any more"):
        list(corpus)


def test_saved_datasets_are_read_in_the_order_of_their_state(tmp_path):
    saved = datasets.Dataset.from_list(RECORDS)
    saved.save_to_disk(tmp_path / "set", num_shards=3)
    corpus = read_documents(tmp_path / "set")
    assert list(corpus) == DOCUMENTS
    assert corpus.total == 3
    path = tmp_path / "set" / "state.json"
    state = json.loads(path.read_text())
    state["_data_files"].reverse()
    path.write_text(json.dumps(state))
    assert list(read_documents(tmp_path / "set")) == DOCUMENTS[::-1]
    path.write_text(json.dumps(state | {"_indices_data_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(InputError, match=r"in the order of an index; .*load_from_disk"):
        read_documents(tmp_path / "set")
    datasets.DatasetDict(train=saved).save_to_disk(tmp_path / "one")
    assert list(read_documents(tmp_path / "one")) == DOCUMENTS
    datasets.DatasetDict(train=saved, test=saved).save_to_disk(tmp_path / "two")
    with pytest.raises(InputError, match=r"found the splits train, test; expected one"):
        read_documents(tmp_path / "two")


@pytest.fixture
def hub_folder(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(TABLE, folder / "train-0.parquet")
    pq.write_table(TABLE.slice(0, 1), folder / "test-0.parquet")
    return folder


def test_hf_streams_a_split_of_a_data_set(tmp_path, hub_folder):
    corpus = read_documents(f"hf:{hub_folder}")
    assert list(corpus) == DOCUMENTS == list(corpus)
    assert (corpus.total, corpus.fraction, corpus.repeatable) == (None, None, True)
    assert list(read_documents(f"hf:{hub_folder}@test")) == list(read_documents(f"hf:{hub_folder}:default@test"))
    assert len(list(read_documents(f"hf:{hub_folder}@test"))) == 1
    (hub_folder / "train-0.parquet").unlink()
    assert list(read_documents(f"hf:{hub_folder}")) == DOCUMENTS[:1]  # the only split there is
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "c.jsonl").write_bytes(LINES)
    assert list(read_documents(f"hf:{tmp_path}/lines")) == DOCUMENTS


def test_hf_says_what_is_wrong(tmp_path, hub_folder):
    for source, message in (
        (f"hf:{hub_folder}@dev", r"no split 'dev'; found train, test: choose one with @SPLIT"),
        (f"hf:{hub_folder}:other", r"not readable \(BuilderConfig 'other' not found. Available: \['default'\]"),
        (f"hf:{tmp_path}/none", r"not readable .*any data file"),
        ("hf:", "names no data set; expected hf:PATH_OR_NAME"),
        ("hf:no/such", r"hf:no/such: not readable \(Couldn't reach 'no/such' on the Hub"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            read_documents(source)
        assert "\n" not in str(caught.value)
    pq.write_table(TABLE.drop_columns("text"), hub_folder / "train-0.parquet")
    with pytest.raises(InputError, match=r"found fields '_id', 'title', 'junk'; expected 'text' or 'contents'"):
        list(read_documents(f"hf:{hub_folder}"))


def test_datasets_objects():
    dataset = datasets.Dataset.from_list(RECORDS)
    corpus = read_documents(dataset.select([2, 0, 1]).with_format("numpy", columns=["_id"]))
    assert list(corpus) == [DOCUMENTS[2], DOCUMENTS[0], DOCUMENTS[1]] == list(corpus)
    assert (corpus.source, corpus.total) == ("the Dataset", 3)
    stream = datasets.IterableDataset.from_generator(lambda: iter(RECORDS))
    for iterable in (stream, dataset.to_iterable_dataset()):
        corpus = read_documents(iterable)
        assert list(corpus) == DOCUMENTS == list(corpus)
        assert corpus.total is None
    with pytest.raises(InputError, match=r"the Dataset: found fields '_id'; expected 'text'"):
        list(read_documents(dataset.select_columns(["_id"])))
    with pytest.raises(InputError, match=r"the DatasetDict has the keys train, test; expected one of its values"):
        read_documents(datasets.DatasetDict(train=dataset, test=dataset))


def test_python_iterables_are_read_again_and_iterators_once():
    corpus = read_documents(RECORDS)
    assert list(corpus) == DOCUMENTS == list(corpus)
    assert (corpus.source, corpus.total, corpus.fraction, corpus.repeatable) == ("the list", 3, None, True)
    drawn = []
    once = read_documents(drawn.append(one) or one for one in DOCUMENTS)
    assert not once.repeatable
    assert once.total is None
    stream = iter(once)
    assert next(stream) == DOCUMENTS[0]
    assert len(drawn) == 1  # lazily
    assert list(stream) == DOCUMENTS[1:]
    with pytest.raises(InputError, match="the generator: it can be read once, and was; pass a list"):
        iter(once)


class Table:
    columns = ("_id", "text")

    def __iter__(self):
        return iter(self.columns)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (7, "found int; expected a path, a datasets object or an iterable of documents"),
        (b"c.jsonl", "found bytes; expected a path"),
        ({"a": "x"}, "the dict has the keys a; expected one of its values"),
        (Table(), "the Table is a table, which Python reads by column; expected its rows"),
    ],
)
def test_what_is_no_corpus_is_refused(source, message):
    with pytest.raises(InputError, match=message):
        read_documents(source)


def test_tables_with_other_names_types_and_nulls(tmp_path):
    table = pa.table({"doc_id": [3, 4], "contents": pa.array(["x", "y"]).dictionary_encode(), "title": [None, "T"]})
    pq.write_table(table, tmp_path / "c.parquet")
    write_ipc(tmp_path / "c.arrow", table)
    expected = [Document("3", "x"), Document("4", "y", "T")]
    assert list(read_documents(tmp_path / "c.parquet")) == list(read_documents(tmp_path / "c.arrow")) == expected
    for columns, message in (
        ({"id": ["a", "b"], "text": ["x", None]}, r"c.parquet, row 1: field 'text' is null; expected text"),
        ({"id": [1.5], "text": ["x"]}, r"row 0: field 'id' is float; expected text"),
        ({"body": ["x"], "docid": ["a"]}, r"c.parquet: found fields 'body', 'docid'; expected 'text' or 'contents'"),
        ({"id": ["a", "a"], "text": ["x", "y"]}, r"c.parquet: id 'a' occurs twice"),
        ({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())}, r"c.parquet: no documents found"),
        ({"id": ["a"], "text": pa.array([b"\xff"]).view(pa.string())}, r"c.parquet: not readable .*utf-8"),
    ):
        pq.write_table(pa.table(columns), tmp_path / "c.parquet")
        with pytest.raises(InputError, match=message):
            list(read_documents(tmp_path / "c.parquet"))


def test_damaged_and_missing_files(tmp_path):
    for name in ("c.parquet", "c.arrow", "stream.arrow"):
        WRITERS[name](tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-300])
        with pytest.raises(InputError, match=rf"{name}: not readable \(.*\); expected a whole Parquet or Arrow file"):
            list(read_documents(tmp_path / name))
    with pytest.raises(InputError, match=r"c.parquet: not readable"):
        _ = read_documents(tmp_path / "c.parquet").total
    for name, content, message in (
        ("cut.jsonl.zst", zstd(LINES)[:-9], ": not readable as text .*Truncated"),
        ("second.jsonl.zst", zstd(LINES) + zstd(LINES)[:-9], ": not readable as text .*Truncated"),
        ("not.jsonl.zst", b"plain text, not zstd", ": not readable as text .*ZSTD"),
        ("cut.jsonl.gz", gzip.compress(LINES)[:-9], ", after line .: not readable as text"),
        ("not.jsonl.gz", b"plain text, not gzip", ": not readable as text .*gzip"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}{message}") as caught:
            list(read_documents(tmp_path / name))
        assert "expected JSON lines" in str(caught.value)
    corpus = read_documents(tmp_path / "cut.jsonl.gz")
    (tmp_path / "cut.jsonl.gz").unlink()
    with pytest.raises(InputError, match=r"cut.jsonl.gz: no such file; expected JSON lines"):
        list(corpus)
    with pytest.raises(InputError, match="no such file or folder"):
        read_documents(tmp_path / "cut.jsonl.gz")


def test_one_large_row_group_is_never_in_memory_as_a_whole(tmp_path):
    texts = [f"{number:04d}" * 625 for number in range(8_000)]  # 20 MB
    table = pa.table({"id": [str(number) for number in range(8_000)], "text": texts, "junk": texts})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=8_000, compression="none", use_dictionary=False)
    write_ipc(tmp_path / "c.arrow", table, rows=8_000)
    del table
    for name in ("c.parquet", "c.arrow"):
        corpus = read_documents(tmp_path / name)
        assert corpus.total == 8_000
        before, most = pa.total_allocated_bytes(), 0
        for document in corpus:
            most = max(most, pa.total_allocated_bytes() - before)
            assert len(document.text) == 2500
        assert most < 5_000_000


def test_a_corpus_of_your_own():
    corpus = Corpus("mine", lambda meter: iter(DOCUMENTS[:1] * 2))
    with pytest.raises(InputError, match="mine: id 'a' occurs twice"):
        list(corpus)
    assert repr(corpus) == "Corpus('mine')"


def test_attributes_that_are_asked_for_come_with_the_documents(tmp_path):
    rows = [
        {"id": "a", "text": "x", "year": 2020, "metadata": {"lang": "en"}, "other": 1},
        {"id": "b", "text": "y", "year": None, "metadata": {"lang": None}, "other": 2},
    ]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "c.parquet")
    write_ipc(tmp_path / "c.arrow", table)
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
    wanted = ["year", "metadata.lang"]
    expected = [{"year": 2020, "lang": "en"}, {"year": None, "lang": None}]
    sources = [tmp_path / "c.parquet", tmp_path / "c.arrow", tmp_path / "c.jsonl", tmp_path / "saved", rows]
    sources += [datasets.Dataset(table), datasets.Dataset(table).to_iterable_dataset()]
    for source in sources:
        documents = list(read_documents(source, wanted))
        assert [document.attributes for document in documents] == expected, source
        plain = list(read_documents(source))
        assert [document.attributes for document in plain] == [None, None]
        assert corpus_fingerprint(documents) == corpus_fingerprint(plain)
    for source in sources[:2]:
        with pytest.raises(InputError, match="no field 'yaer'; found id, text, year, metadata, other"):
            list(read_documents(source, ["yaer"]))
    flat = [{"id": "a", "text": "x", "meta.lang": "de", "meta": {"lang": "en"}}]
    assert next(iter(read_documents(flat, ["meta.lang"]))).attributes == {"lang": "de"}
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("words")
    for source in (tmp_path / "texts", "python-docs"):
        with pytest.raises(InputError, match="its texts have no fields such as 'year'"):
            read_documents(source, ["year"])
    with pytest.raises(InputError, match="is open already; ask for year"):
        read_documents(read_documents(rows), ["year"])
    with pytest.raises(InputError, match="two attributes are called 'year'"):
        read_documents(rows, ["year", "metadata.year"])
    again = list(read_documents([Document("a", "x", attributes={"kept": 1}), Document("b", "y")]))
    assert [document.attributes for document in again] == [{"kept": 1}, None]
