"""Merging and exporting vectors folders: the same numbers and ids come out, and what does not fit is refused."""

import contextlib
import json
import os

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from shards import MADE_BY, flip, open_writer, run, tree

import indexes.interchange
from indexes import export_vectors, merge_vectors
from indexes.checksums import fingerprint
from indexes.errors import InputError
from indexes.storage import FORMS, calibrate
from indexes.transfer import save_vectors
from indexes.vectors import VectorStore

D = 8


def numbers(rows, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, D)).astype(np.float32)


def make(folder, ids, *, seed=0, storage="float32", rows=3, made_by=None, passages=(), fresh=True, **encoding):
    """A folder of shards of so many documents; each of them with as many rows as `passages` says, else one."""
    sizes = dict(zip(ids, passages or [1] * len(ids), strict=True))
    vectors = numbers(sum(sizes.values()), seed)
    made_by = {**MADE_BY, "dim": D, **(made_by or {})}
    encoding |= {"shard_rows": rows, "storage": storage}
    with contextlib.closing(open_writer(folder, made_by=made_by, **encoding)) as writer:
        if storage == "int8":
            writer.set_calibration(calibrate(numbers(20) if fresh else vectors))
        shards, first = 0, 0
        for shards, start in enumerate(range(0, len(ids), rows), start=1):
            names = ids[start : start + rows]
            table = [[n, 5 * p, 5 * p + 9] for n, name in enumerate(names) for p in range(sizes[name])]
            part = vectors[first : first + len(table)]
            table = np.array(table) if passages else None
            writer.write(shards - 1, part, names, f"{folder.name}{start}", passages=table, truncated=1)
            first += len(part)
        return writer.finish(shards, {"source": f"/{folder.name}.jsonl", "fingerprint": folder.name * 4})


def test_merged_is_what_was_there_one_after_the_other(tmp_path):
    one = make(tmp_path / "one", ["a", "b", "c", "d"])
    two = make(tmp_path / "two", ["e", "f"], seed=1)
    seen = []
    merged = merge_vectors([two.folder, one.folder], tmp_path / "m", on_progress=lambda *done: seen.append(done))
    np.testing.assert_array_equal(merged[:], np.vstack([two[:], one[:]]))
    assert merged.ids == ["e", "f", "a", "b", "c", "d"]
    assert (len(merged), merged.documents, merged.truncated) == (6, 6, 3)
    assert (merged.made_by, merged.encoding) == (one.made_by, one.encoding)
    parts = [
        {"source": "/two.jsonl", "fingerprint": "two" * 4, "documents": 2},
        {"source": "/one.jsonl", "fingerprint": "one" * 4, "documents": 4},
    ]
    assert merged.corpus == {"source": None, "fingerprint": fingerprint(["two" * 4, "one" * 4]), "parts": parts}
    assert seen == [(2, 6), (5, 6), (6, 6)]
    merged.verify()
    assert [shard["name"] for shard in merged.manifest["shards"]] == ["shard-00000", "shard-00001", "shard-00002"]
    for ours, theirs in (("shard-00000", two.folder / "shard-00000"), ("shard-00002", one.folder / "shard-00001")):
        for suffix in (".npy", ".ids.json"):
            file = theirs.with_name(theirs.name + suffix)
            assert (merged.folder / f"{ours}{suffix}").read_bytes() == file.read_bytes()
            assert (merged.folder / f"{ours}{suffix}").samefile(file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "one", "two"]


def test_parts_of_parts_are_parts_and_the_merged_folder_stands_by_itself(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(1, "no links here")

    monkeypatch.setattr("indexes.vector_writer.os.link", no_links)
    folders = [make(tmp_path / name, [name], seed=n).folder for n, name in enumerate("abc")]
    inner = merge_vectors(folders[:2], tmp_path / "inner")
    outer = merge_vectors([inner.folder, folders[2]], tmp_path / "outer")
    assert outer.corpus == merge_vectors(folders, tmp_path / "at-once").corpus
    assert tree(tmp_path / "outer") == tree(tmp_path / "at-once")
    for path in (*folders, inner.folder):
        for file in path.iterdir():
            file.write_bytes(b"")
    outer.verify()
    assert VectorStore.open(tmp_path / "outer").ids == ["a", "b", "c"]


def test_passages_keep_their_documents(tmp_path):
    one = make(tmp_path / "one", ["a", "b"], rows=1, passages=[2, 1])
    two = make(tmp_path / "two", ["c", "d"], rows=2, passages=[1, 3])
    merged = merge_vectors([one.folder, two.folder], tmp_path / "m")
    assert merged.passages[:, 0].tolist() == [0, 0, 1, 2, 3, 3, 3]
    np.testing.assert_array_equal(merged.passages[:, 1:], np.vstack([one.passages, two.passages])[:, 1:])
    assert (len(merged), merged.documents) == (7, 4)
    assert merged.encoding["shard_rows"] is None


@pytest.mark.parametrize("storage", FORMS)
def test_merged_forms_read_back_the_same(tmp_path, storage):
    stores = [make(tmp_path / name, [name], seed=n, storage=storage) for n, name in enumerate("ab")]
    merged = merge_vectors([store.folder for store in stores], tmp_path / "m")
    np.testing.assert_array_equal(merged[:], np.vstack([store[:] for store in stores]))


def test_a_corpus_that_nobody_named_and_no_documents_at_all(tmp_path):
    store = save_vectors(tmp_path / "a", numbers(2), ["x", "y"], made_by={})
    empty = save_vectors(tmp_path / "b", numbers(0), [], made_by={})
    merged = merge_vectors([empty.folder, store.folder], tmp_path / "m")
    assert merged.corpus["fingerprint"] is None
    assert merged.ids == ["x", "y"]
    assert len(merge_vectors([empty.folder], tmp_path / "n")) == 0


def test_folders_that_do_not_fit_are_refused_naming_both_sides(tmp_path):
    one = make(tmp_path / "one", ["a"]).folder
    other = {
        "encoder": make(tmp_path / "encoder", ["b"], made_by={"fingerprint": "e" * 64, "encoder": "z"}).folder,
        "form": make(tmp_path / "form", ["b"], storage="float16", backend="onnx").folder,
        "int8": make(tmp_path / "int8", ["b"], storage="int8").folder,
        "steps": make(tmp_path / "steps", ["c"], storage="int8", seed=1, fresh=False).folder,
    }
    (tmp_path / "link").symlink_to(one)
    for folders, message in (
        (
            [one, other["encoder"]],
            r"one and .*encoder were made by different encoders \(.*encoder: a ≠ z",
        ),
        ([one, other["form"]], r"encoded differently \(storage: float32 ≠ float16, backend: None ≠ onnx\); merge"),
        ([other["int8"], other["steps"]], r"int8 and .*steps have different int8 calibrations \(step of dimension 0: "),
        ([one, one], "one is given twice; merge each folder once"),
        ([one, tmp_path / "link"], "link is given twice"),
        ([], "no folders to merge; give at least one"),
        ([one, tmp_path / "none"], "none: no such folder; expected a vectors folder"),
    ):
        with pytest.raises(InputError, match=message):
            merge_vectors(folders, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_document_in_two_folders_is_named_with_both(tmp_path, monkeypatch):
    one = make(tmp_path / "one", [f"a{n}" for n in range(9)]).folder
    two = make(tmp_path / "two", ["b0", "b1", "a7", "b2"]).folder
    message = "document 'a7' is in .*one and in .*two; ids must be distinct"
    with pytest.raises(InputError, match=message):
        merge_vectors([one, two], tmp_path / "m")
    # Digests that agree by chance are no reason to refuse: here all of them do.
    monkeypatch.setattr("indexes.transfer._digest", lambda name: 7)
    with pytest.raises(InputError, match=message):
        merge_vectors([one, two], tmp_path / "m")
    three = make(tmp_path / "three", ["c"]).folder
    assert merge_vectors([one, three], tmp_path / "m").documents == 10


def test_a_damaged_part_is_refused_and_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("indexes.checksums._ALWAYS_VERIFIED", 0)  # as in folders too large to verify when opened
    folders = [make(tmp_path / name, [name], seed=n).folder for n, name in enumerate("ab")]
    path = folders[1] / "shard-00000.npy"
    flip(path)
    with pytest.raises(InputError, match=r"b/shard-00000.npy is damaged \(size or SHA-256.*make that folder again"):
        merge_vectors(folders, tmp_path / "m")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


def test_outputs_of_merge_are_guarded(tmp_path):
    folders = [make(tmp_path / name, [name], seed=n).folder for n, name in enumerate("ab")]
    merge_vectors(folders, tmp_path / "m")
    with pytest.raises(InputError, match="m already exists; choose another --output or pass --overwrite"):
        merge_vectors(folders, tmp_path / "m")
    assert merge_vectors(folders[:1], tmp_path / "m", overwrite=True).ids == ["a"]
    before = tree(tmp_path)
    with pytest.raises(InputError, match="--output .*a is or holds the input"):
        merge_vectors(folders, folders[0], overwrite=True)
    with pytest.raises(InputError, match="m lies inside .*a; choose another --output"):
        merge_vectors(folders, folders[0] / "m")
    assert tree(tmp_path) == before


def read_table(path):
    if path.suffix == ".parquet":
        return parquet.read_table(path)
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("storage", FORMS)
@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".arrow"])
def test_exported_numbers_and_ids_are_those_of_the_folder(tmp_path, monkeypatch, suffix, storage, stored):
    monkeypatch.setattr(indexes.interchange, "_NUMBERS", 2 * D)  # blocks of two rows; shards have three
    store = make(tmp_path / "v", list("abcdefg"), storage=storage)
    expected = store.stored(slice(None)) if stored else store[:]
    seen = []
    files = export_vectors(
        store, tmp_path / "out" / f"x{suffix}", stored=stored, on_progress=lambda *done: seen.append(done)
    )
    assert files[0] == tmp_path / "out" / f"x{suffix}"
    assert seen == [(2, 7), (3, 7), (5, 7), (6, 7), (7, 7)]
    scaled = stored and storage == "int8"
    if suffix == ".npy":
        found = np.load(files[0])
        assert [file.name for file in files[1:]] == ["x.ids.txt", *(["x.scale.npy"] if scaled else [])]
        assert files[1].read_text() == "a\nb\nc\nd\ne\nf\ng\n"
        scale = np.load(files[2]) if scaled else None
    else:
        table = read_table(files[0])
        kind = table.schema.field("vector").type
        assert (table.column_names, kind.list_size) == (["id", "vector"], expected.shape[1])
        assert kind.value_type == pa.from_numpy_dtype(expected.dtype)
        assert table["id"].to_pylist() == store.ids
        found = np.array(table["vector"].to_pylist(), dtype=expected.dtype)
        records = {name.decode(): json.loads(text) for name, text in table.schema.metadata.items()}
        scale = np.array(records.pop("calibration")["scale"], np.float32) if scaled else None
        assert records == {"made_by": store.made_by, "encoding": store.encoding, "corpus": store.corpus}
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype
    if scaled:
        np.testing.assert_array_equal(found * scale, store[:])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(file.name for file in files)


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".arrow"])
def test_exported_passages_say_whose_they_are(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(indexes.interchange, "_NUMBERS", 2 * D)
    store = make(tmp_path / "v", ["a", "b", "c"], rows=2, passages=[3, 1, 2])
    files = export_vectors(store, tmp_path / f"x{suffix}")
    if suffix == ".npy":
        assert [file.name for file in files] == ["x.npy", "x.ids.txt", "x.passages.npy"]
        assert files[1].read_text() == "a\nb\nc\n"
        np.testing.assert_array_equal(np.load(files[2]), store.passages)
    else:
        table = read_table(files[0])
        assert table["id"].to_pylist() == ["a", "a", "a", "b", "c", "c"]
        spans = np.stack([table["begin"].to_numpy(), table["end"].to_numpy()], axis=1)
        np.testing.assert_array_equal(spans, store.passages[:, 1:])


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".arrow"])
def test_a_folder_of_nothing_is_exported_too(tmp_path, suffix):
    store = save_vectors(tmp_path / "v", numbers(0), [], made_by={})
    files = export_vectors(store, tmp_path / f"x{suffix}")
    found = np.load(files[0]) if suffix == ".npy" else read_table(files[0])
    assert found.shape == ((0, D) if suffix == ".npy" else (0, 2))


def test_row_groups_of_parquet_go_over_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(indexes.interchange, "_NUMBERS", 5 * D)
    store = make(tmp_path / "v", list("abcdefg"))
    groups = parquet.ParquetFile(export_vectors(store, tmp_path / "x.parquet")[0]).metadata
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [6, 1]


def test_outputs_of_export_are_guarded(tmp_path):
    store = make(tmp_path / "v", ["a", "b"], passages=[1, 2])
    plain = make(tmp_path / "w", ["a\nb"])
    (tmp_path / "folder.npy").mkdir()
    export_vectors(store, tmp_path / "x.npy")
    before = tree(tmp_path)
    for source, name, message in (
        (store, "x.csv", r"x.csv ends in '.csv'; expected one of .npy, .parquet, .arrow"),
        (store, "x", r"ends in ''; expected one of"),
        (store, "x.npy", "x.npy already exists; choose another --output or pass --overwrite"),
        (store, "folder.npy", "folder.npy is a folder; choose another --output"),
        (store, "v/x.npy", "x.npy lies inside .*v; choose another --output"),
        (plain, "y.npy", r"document 'a\\nb' has a line break in its id; export to .parquet or .arrow"),
    ):
        with pytest.raises(InputError, match=message):
            export_vectors(source, tmp_path / name)
    assert tree(tmp_path) == before
    (tmp_path / "x.npy").unlink()
    with pytest.raises(InputError, match=r"x.ids.txt already exists"):
        export_vectors(store, tmp_path / "x.npy")
    export_vectors(save_vectors(tmp_path / "u", numbers(1), ["a"], made_by={}), tmp_path / "x.npy", overwrite=True)
    assert len(np.load(tmp_path / "x.npy")) == 1
    assert not (tmp_path / "x.passages.npy").exists()  # of the export that was replaced


@pytest.mark.skipif(os.name != "posix", reason="a limit on the size of files stands for a full disk")
def test_a_full_disk_leaves_the_export_of_before(tmp_path):
    store = make(tmp_path / "v", [f"d{n}" for n in range(60)], rows=30)
    for suffix in (".npy", ".parquet", ".arrow"):
        (tmp_path / f"x{suffix}").write_text("before")
    before = tree(tmp_path)
    code = """
import resource
from indexes import InputError, export_vectors
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for suffix in (".npy", ".parquet", ".arrow"):
    try:
        export_vectors(VectorStore.open(sys.argv[1]), Path(sys.argv[1]).with_name("x" + suffix), overwrite=True)
    except InputError as error:
        print(error)
"""
    status, said = run(code, store.folder)
    assert status == 0
    assert [line.endswith("; choose another --output") for line in said.splitlines()] == [True] * 3
    assert said.count("File too large") == 3
    assert tree(tmp_path) == before
