"""Reading vectors folders: slices, rows, blocks and passages over shards; what is refused."""

import contextlib
import os

import numpy as np
import pytest
from shards import CORPUS, open_writer, write_folder, write_shard

from indexes.errors import InputError
from indexes.storage import FORMS, Storage, calibrate
from indexes.transfer import save_vectors
from indexes.vector_writer import VectorWriter
from indexes.vectors import VectorStore

SIZES = [3, 1, 0, 4, 2]
N, D = sum(SIZES), 8


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


def make(folder, vectors, storage):
    made_by = {"fingerprint": "f" * 64, "dim": D}
    writer = VectorWriter(folder, made_by=made_by, encoding={"shard_rows": 4, "storage": storage})
    with contextlib.closing(writer):
        if storage == "int8":
            writer.set_calibration(calibrate(vectors))
        for number, end in enumerate(np.cumsum(SIZES)):
            rows = range(end - SIZES[number], end)
            writer.write(number, vectors[rows], [f"d{row}" for row in rows], str(number), truncated=number)
        return writer.finish(len(SIZES), CORPUS)


@pytest.fixture(scope="module")
def store(vectors, tmp_path_factory):
    return make(tmp_path_factory.mktemp("vectors") / "v", vectors, "float32")


SLICES = [
    slice(None),
    slice(0, 3),
    slice(1, 3),
    slice(2, 5),
    slice(3, 4),
    slice(4, 8),
    slice(0, 0),
    slice(7, 3),
    slice(N, None),
    slice(-3, None),
    slice(-100, 100),
    slice(None, None, 3),
    slice(None, None, -1),
    slice(8, 1, -2),
]


@pytest.mark.parametrize("storage", FORMS)
def test_rows_are_those_of_the_plain_array(vectors, tmp_path, storage):
    store = make(tmp_path / "v", vectors, storage)
    form = Storage.of(storage, D, calibrate(vectors))
    stored = form.encode(vectors)
    plain = form.decode(stored)
    assert (len(store), store.dim, store.documents, store.truncated) == (N, D, N, 10)
    for rows in [*SLICES, [], [9], [4, 4, 0, 9, 3], np.arange(N)[::-1], np.array([2, 7], np.int32)]:
        numbers = rows if isinstance(rows, slice) else np.array(rows, int)
        np.testing.assert_array_equal(store[rows], plain[numbers])
        np.testing.assert_array_equal(store.stored(rows), stored[numbers])
        assert (store[rows].dtype, store.stored(rows).dtype) == (np.float32, stored.dtype)


def test_a_slice_within_a_shard_of_float32_is_a_view_of_the_file(store):
    blocks = {first: block for first, block in store.blocks()}
    for rows, first in ((slice(0, 3), 0), (slice(1, 3), 0), (slice(3, 4), 3), (slice(5, 8), 4), (slice(-2, None), 8)):
        view = store[rows]
        assert isinstance(view, np.memmap)
        assert np.shares_memory(view, blocks[first])
        assert not view.flags.writeable
    for rows in (slice(2, 4), [0, 1], slice(0, 3, 2)):
        assert not any(np.shares_memory(store[rows], block) for block in blocks.values())


def test_blocks_cover_all_rows_once_in_order(store, vectors):
    for rows in (1, 2, 100):
        blocks = list(store.blocks(rows))
        assert max(len(block) for _, block in blocks) <= rows
        assert [first for first, _ in blocks] == np.cumsum([0, *(len(block) for _, block in blocks)])[:-1].tolist()
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), vectors)


def test_what_is_no_row_is_refused(store):
    for rows in ([N], [0, -1], [2**40]):
        with pytest.raises(InputError, match=f"row {rows[-1]} asked for; there are {N} rows"):
            store[rows]
    with pytest.raises(InputError, match="rows asked for by bool; expected row numbers or a slice"):
        store[np.ones(N, bool)]
    with pytest.raises(InputError, match="rows asked for by float64"):
        store[[1.5]]


def test_ids_and_passages_count_documents_over_shards(store, tmp_path):
    assert store.ids == [f"d{row}" for row in range(N)]
    assert store.passages is None
    assert not store.has_passages
    with contextlib.closing(open_writer(tmp_path / "v")) as writer:
        table = np.array([[0, 0, 9], [0, 7, 12], [1, 0, 4]])
        writer.write(0, np.ones((3, 4), np.float32), ["a", "b"], "one", passages=table)
        writer.write(1, np.ones((2, 4), np.float32), ["c"], "two", passages=table[:2])
        passages = writer.finish(2, CORPUS)
    assert passages.ids == ["a", "b", "c"]
    assert (len(passages), passages.documents, passages.has_passages) == (5, 3, True)
    assert passages.passages.tolist() == [[0, 0, 9], [0, 7, 12], [1, 0, 4], [2, 0, 9], [2, 7, 12]]


@pytest.mark.parametrize("shards", [0, 1])
def test_a_folder_of_nothing(tmp_path, shards):
    with contextlib.closing(open_writer(tmp_path / "v")) as writer:
        for number in range(shards):
            write_shard(writer, number, rows=0)
        store = writer.finish(shards, CORPUS)
    assert (len(store), store.ids, list(store.blocks())) == (0, [], [])
    assert store[:].shape == store[[]].shape == (0, 4)
    assert store.passages is None


@pytest.mark.parametrize("storage", FORMS)
def test_vectors_made_elsewhere(tmp_path, vectors, storage):
    ids = [f"d{row}" for row in range(N)]
    save_vectors(tmp_path / "v", vectors, ids, made_by={"encoder": "elsewhere"}, storage=storage)
    store = VectorStore.open(tmp_path / "v")
    form = Storage.of(storage, D, calibrate(vectors))
    np.testing.assert_array_equal(store[:], form.decode(form.encode(vectors)))
    assert store.ids == ids
    assert store.made_by["encoder"] == "elsewhere"
    with pytest.raises(InputError, match="v already exists; choose another --output or pass --overwrite"):
        save_vectors(tmp_path / "v", vectors, ids, made_by={})
    save_vectors(tmp_path / "v", vectors[:2] * 2, ids[:2], made_by={}, overwrite=True)
    assert len(VectorStore.open(tmp_path / "v")) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: os.truncate(path, 150), r"shard-00001.npy has 150 bytes; the manifest says 176 bytes: make"),
        (lambda path: path.unlink(), r"shard-00001.npy is missing; the manifest says"),
        (lambda path: path.write_bytes(b"\0" * 176), r"shard-00001.npy: damaged"),
        (lambda path: (path.parent / "manifest.json").unlink(), "has no manifest.json"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(tmp_path, change, message):
    write_folder(tmp_path / "v")
    change(tmp_path / "v" / "shard-00001.npy")
    with pytest.raises(InputError, match=message):
        VectorStore.open(tmp_path / "v")


def test_files_that_are_not_what_the_manifest_says_are_refused(tmp_path, monkeypatch):
    """In folders too large to be verified on every opening, headers are still compared."""
    monkeypatch.setattr("indexes.checksums._ALWAYS_VERIFIED", 0)
    write_folder(tmp_path / "v")
    path = tmp_path / "v" / "shard-00001.npy"
    whole = path.read_bytes()
    for damaged, message in (
        (whole.replace(b"(3, 4)", b"(4, 3)"), r"holds \(4, 3\) float32; the manifest says \(3, 4\) float32"),
        (whole.replace(b"<f4", b"<i4"), r"holds \(3, 4\) int32"),
        (b"\0" * len(whole), "not readable as an array"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"shard-00001.npy:? {message}.* make the (vectors|folder) again"):
            VectorStore.open(tmp_path / "v")
    path.write_bytes(whole[:-1] + b"?")
    with pytest.raises(InputError, match=r"shard-00001.npy: damaged \(size or SHA-256"):
        VectorStore.open(tmp_path / "v").verify()


def test_the_folder_one_is_in_has_a_name_too(tmp_path, monkeypatch):
    write_folder(tmp_path / "v")
    monkeypatch.chdir(tmp_path / "v")
    assert len(VectorStore.open(".")) == 9
