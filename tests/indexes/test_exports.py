"""Indexes exported to tables: every document that lives, as the index keeps it."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from indexes.errors import InputError
from indexes.exports import export_index
from indexes.index import Index
from indexes.segments import Entry
from indexes.transfer import save_vectors
from indexes.vector_writer import VectorWriter

N, D = 50, 8
ROWS = np.random.default_rng(0).normal(size=(N + 9, D)).astype(np.float32)


def entries(numbers, begin="d"):
    return [Entry(f"{begin}{n}", ["a"], f"text é {n}", {"year": n} if n % 3 else None) for n in numbers]


def build(tmp_path, factory="Flat"):
    store = save_vectors(tmp_path / "v", ROWS[:N], [f"d{n}" for n in range(N)], made_by={})
    index = Index.build(store, factory, tmp_path / "i", entries=entries(range(N)), analyzer="none")
    more = save_vectors(tmp_path / "m", ROWS[N:], [f"e{n}" for n in range(9)], made_by={})
    index.add(more, entries=entries(range(9), "e"))
    index.delete(["d4", "e0"])
    return index


def read(path):
    if path.suffix == ".parquet":
        return parquet.read_table(path)
    return pa.ipc.open_file(path).read_all()


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("factory", ["Flat", "HNSW4_SQ8"])
def test_all_that_lives_is_there_as_it_was(tmp_path, suffix, factory, monkeypatch):
    monkeypatch.setattr("indexes.exports._NUMBERS", 7 * D)
    index = build(tmp_path, factory)
    seen = []
    path = export_index(
        index.reader, tmp_path / f"out{suffix}", on_progress=lambda done, total: seen.append((done, total))
    )
    rows = read(path).to_pylist()
    assert len(rows) == len(index) == N + 7
    for row, stored in zip(rows, index, strict=True):
        assert (row["id"], row["text"]) == (stored.id, stored.text)
        assert row["year"] == stored.attributes.get("year")
        assert row["vector"] == stored.vectors[0].tolist()
    assert seen[-1] == (N + 7, N + 7)
    assert len(seen) > 7
    assert read(path).schema.field("vector").type == pa.list_(pa.float32(), D)


def test_passages_are_rows_of_their_own(tmp_path):
    table = np.array([(0, 0, 4), (0, 5, 9), (1, 0, 3)], np.int64)
    encoding = {"shard_rows": 10, "storage": "float32", "long_documents": "passages"}
    writer = VectorWriter(tmp_path / "v", made_by={"dim": D, "fingerprint": "f"}, encoding=encoding)
    writer.write(0, ROWS[:3], ["a", "b"], "all", passages=table)
    texts = [Entry("a", ["x"], "tree leaf"), Entry("b", ["x"], "sea")]
    index = Index.build(writer.finish(1, {"source": None, "fingerprint": None}), "Flat", tmp_path / "i", entries=texts)
    rows = read(export_index(index.reader, tmp_path / "out.parquet")).to_pylist()
    assert [(row["id"], row["text"], row["begin"], row["end"]) for row in rows] == [
        ("a", "tree", 0, 4),
        ("a", "leaf", 5, 9),
        ("b", "sea", 0, 3),
    ]
    assert [row["vector"] for row in rows] == ROWS[:3].tolist()


def test_whole_numbers_stay_numbers(tmp_path):
    store = save_vectors(tmp_path / "v", ROWS[:3], [7, -1, 2**40], made_by={})
    index = Index.build(store, "Flat", tmp_path / "i")
    table = read(export_index(index.reader, tmp_path / "out.parquet"))
    assert table.column("id").to_pylist() == [7, -1, 2**40]
    assert table.column_names == ["id", "vector"]
    index.add(save_vectors(tmp_path / "m", ROWS[3:4], [2**70], made_by={}))
    with pytest.raises(InputError, match=f"an id is {2**70}; a table holds whole numbers up to 2.63 - 1"):
        export_index(index.reader, tmp_path / "far.parquet")
    assert not list(tmp_path.glob("*far*")), "what cannot be written leaves nothing behind"


def test_what_cannot_be_exported_is_refused(tmp_path):
    index = build(tmp_path)
    with pytest.raises(InputError, match="ends in '.csv'; expected one of .parquet, .arrow"):
        export_index(index.reader, tmp_path / "out.csv")
    with pytest.raises(InputError, match="lies inside"):
        export_index(index.reader, index.folder / "out.parquet")
    (tmp_path / "out.parquet").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        export_index(index.reader, tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_text() == "mine"
    export_index(index.reader, tmp_path / "out.parquet", overwrite=True)
    store = save_vectors(tmp_path / "w", ROWS[:2], ["a", "b"], made_by={})
    named = Index.build(store, "Flat", tmp_path / "j", attributes={"a": {"vector": 1}})
    with pytest.raises(InputError, match="has an attribute 'vector', which is a column of ours; rename it"):
        export_index(named.reader, tmp_path / "x.parquet")
