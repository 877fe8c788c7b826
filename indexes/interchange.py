"""The files that other programs read vectors from: NumPy, Arrow and Parquet, written block by block."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.vectors import VectorStore

_NUMBERS = 1 << 24
"""Numbers held in memory at a time: 64 MB of float32."""


def write_npy(files: Mapping[str, Path], store: VectorStore, *, stored: bool) -> Iterator[int]:
    """Write the array (n, d) to `files[".npy"]`, the ids to `ids.txt`, and, if wanted, `passages.npy` and `scale.npy`.

    The array is streamed: under a memory map, a full disk would end the process.

    Yields:
        The rows written so far.

    Raises:
        InputError: An id has a line break.
    """
    with files["ids.txt"].open("w", encoding="utf-8", newline="\n") as lines:
        for ids in store.shard_ids():
            for name in ids:
                if "\n" in name or "\r" in name:
                    raise InputError(f"document {name!r} has a line break in its id; export to .parquet or .arrow")
                lines.write(f"{name}\n")
    if "passages.npy" in files:
        with files["passages.npy"].open("wb") as file:
            _write_header(file, np.dtype(np.int64), (len(store), 3))
            for part in store.shard_passages():
                if part is not None:
                    _write_rows(file, part)
    if "scale.npy" in files and store.storage.scale is not None:
        with files["scale.npy"].open("wb") as file:
            np.save(file, store.storage.scale)
    with files[".npy"].open("wb") as file:
        dtype, width = _form(store, stored=stored)
        _write_header(file, dtype, (len(store), width))
        rows = _rows_at_once(store)
        for first, block in store.stored_blocks(rows) if stored else store.blocks(rows):
            _write_rows(file, block)
            yield first + len(block)


def write_arrow(files: Mapping[str, Path], store: VectorStore, *, stored: bool) -> Iterator[int]:
    """Write an Arrow IPC file, of a record batch or more for each shard, to `files[".arrow"]`.

    Yields:
        The rows written so far.
    """
    import pyarrow as pa

    schema = _schema(store, stored=stored)
    with pa.OSFile(str(files[".arrow"]), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for done, batch in _batches(store, schema, stored=stored):
            writer.write_batch(batch)
            yield done


def write_parquet(files: Mapping[str, Path], store: VectorStore, *, stored: bool) -> Iterator[int]:
    """Write a Parquet file, of row groups of about 64 MB, to `files[".parquet"]`.

    Yields:
        The rows written so far.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = _schema(store, stored=stored)
    waiting: list[Any] = []
    with (
        pa.OSFile(str(files[".parquet"]), "wb") as file,
        parquet.ParquetWriter(file, schema, use_dictionary=False, write_statistics=["id"]) as writer,
    ):
        for done, batch in _batches(store, schema, stored=stored):
            waiting.append(batch)
            rows = sum(map(len, waiting))
            if done == len(store) or rows * store.dim >= _NUMBERS:
                writer.write_table(pa.Table.from_batches(waiting), row_group_size=rows)
                waiting.clear()
            yield done


def _schema(store: VectorStore, *, stored: bool) -> Any:
    import pyarrow as pa

    dtype, width = _form(store, stored=stored)
    columns = [("id", pa.string()), ("vector", pa.list_(pa.from_numpy_dtype(dtype), width))]
    if store.has_passages:
        columns += [("begin", pa.int64()), ("end", pa.int64())]
    records = {"made_by": store.made_by, "encoding": store.encoding, "corpus": store.corpus}
    if stored and store.storage.form == "int8":
        records["calibration"] = store.manifest["calibration"]
    return pa.schema(columns, {name: json.dumps(record, ensure_ascii=False) for name, record in records.items()})


def _batches(store: VectorStore, schema: Any, *, stored: bool) -> Iterator[tuple[int, Any]]:
    """Yield (rows so far, record batch) over the whole folder."""
    import pyarrow as pa

    first_row = first_document = 0
    for shard, ids, passages in zip(store.manifest["shards"], store.shard_ids(), store.shard_passages(), strict=True):
        end = first_row + shard["rows"]
        step = _rows_at_once(store)
        for start in range(first_row, end, step):
            rows = slice(start, min(start + step, end))
            numbers = np.ascontiguousarray(store.stored(rows) if stored else store[rows])
            within = slice(start - first_row, rows.stop - first_row)
            part = None if passages is None else passages[within]
            names = ids[within] if part is None else [ids[document - first_document] for document in part[:, 0]]
            columns = [
                pa.array(names, pa.string()),
                pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), numbers.shape[1]),
                *([] if part is None else [pa.array(part[:, 1]), pa.array(part[:, 2])]),
            ]
            yield rows.stop, pa.record_batch(columns, schema=schema)
        first_row, first_document = end, first_document + shard["documents"]


def _rows_at_once(store: VectorStore) -> int:
    return max(_NUMBERS // store.dim, 1)


def _form(store: VectorStore, *, stored: bool) -> tuple[np.dtype[Any], int]:
    """The type and number of columns of the array."""
    return (store.storage.dtype, store.storage.width) if stored else (np.dtype(np.float32), store.dim)


def _write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, int]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def _write_rows(file: IO[bytes], rows: NDArray[Any]) -> None:
    file.write(np.ascontiguousarray(rows).data)
