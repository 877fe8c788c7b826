"""Index folders as one table, which other search engines load: ids, vectors, texts and attributes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from indexes.errors import InputError
from indexes.reader import Reader
from indexes.segments import Segment
from indexes.transfer import new_files, refuse_file

_NUMBERS = 1 << 22
"""Numbers held in memory at a time: 16 MB of float32, in a row group of a Parquet file."""
_SUFFIXES = (".parquet", ".arrow")
_OURS = ("id", "vector", "text", "begin", "end")

OnProgress = Callable[[int, int | None], None]


def export_index(
    reader: Reader, path: str | Path, *, overwrite: bool = False, on_progress: OnProgress = lambda done, total: None
) -> Path:
    """Write all documents of an index, deleted ones left out, to a Parquet or Arrow file, block by block.

    Columns are `id` (text, or int64), `vector` (fixed_size_list of float32), `text` if the index keeps texts, and each
    attribute under its name. Where documents are held in passages, a row is a passage: `text` is its own, and `begin`
    and `end` are where it stands in the document.

    Args:
        reader: What an `Index` shows.
        path: The file to make, .parquet or .arrow.
        overwrite: Replace it if it exists.
        on_progress: Called with the documents written and their total.

    Returns:
        The file. It appears when all is written.

    Raises:
        InputError: The suffix is none of these, the file exists or cannot be written, an attribute is called like one
            of our columns, or an id is a number beyond 64 bits.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise InputError(f"--output {path} ends in {path.suffix!r}; expected one of {', '.join(_SUFFIXES)}")
    if path.resolve().is_relative_to(reader.folder.resolve()):
        raise InputError(f"--output {path} lies inside {reader.folder}; choose another place")
    refuse_file(path, overwrite=overwrite)
    schema = _schema(reader)
    try:
        with new_files({path.suffix: path}) as new, pa.OSFile(str(new[path.suffix]), "wb") as file:
            make = parquet.ParquetWriter if path.suffix == ".parquet" else pa.ipc.new_file
            with make(file, schema) as writer:
                for done, batch in _batches(reader, schema):
                    writer.write_table(pa.Table.from_batches([batch]))
                    on_progress(done, len(reader))
    except OSError as error:
        raise InputError(f"{path} was not written ({error.strerror or error}); choose another --output") from None
    return path


def _schema(reader: Reader) -> pa.Schema:
    columns = [
        ("id", pa.int64() if reader.whole_ids else pa.string()),
        ("vector", pa.list_(pa.float32(), reader.dim)),
    ]
    if any(one.texts is not None for one in reader.segments):
        columns.append(("text", pa.string()))
    if any(one.table is not None for one in reader.segments):
        columns += [("begin", pa.int64()), ("end", pa.int64())]
    if reader.attributes is not None:
        if taken := [name for name in reader.attributes.names if name in _OURS]:
            raise InputError(f"{reader.folder} has an attribute {taken[0]!r}, which is a column of ours; rename it")
        columns += [(field.name, field.type) for field in reader.attributes.table.schema]
    return pa.schema(columns)


def _batches(reader: Reader, schema: pa.Schema) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (documents so far, record batch) over all segments."""
    done = 0
    vectors = sum(one.dense.rows for one in reader.segments) / max(reader.rows, 1)  # of a document
    step = max(1, int(_NUMBERS / (reader.dim * max(vectors, 1))))
    for first, segment, live in zip(reader.starts, reader.segments, reader.of_segments(reader.live), strict=False):
        numbers = np.arange(len(segment)) if live is None else np.flatnonzero(live)
        for begin in range(0, len(numbers), step):
            some = numbers[begin : begin + step]
            done += len(some)
            yield done, _batch(reader, schema, segment, first, some)


def _batch(
    reader: Reader, schema: pa.Schema, segment: Segment, first: int, numbers: NDArray[np.int64]
) -> pa.RecordBatch:
    rows = segment.vector_rows(numbers)
    vectors = segment.dense.targets.rows(rows)  # (r, d)
    owners, spans = numbers, None
    if segment.table is not None:
        owners, spans = np.asarray(segment.table[rows, 0]), np.asarray(segment.table[rows, 1:])
    columns: dict[str, Any] = {"id": _ids(reader, first + owners)}
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), reader.dim)
    if "text" in schema.names:
        texts = [reader.text(row) or "" for row in (first + owners).tolist()]
        if spans is not None:
            texts = [text[begin:end] for text, (begin, end) in zip(texts, spans.tolist(), strict=True)]
        columns["text"] = pa.array(texts, pa.string())
    if spans is not None:
        columns |= {"begin": pa.array(spans[:, 0]), "end": pa.array(spans[:, 1])}
    if reader.attributes is not None:
        chosen = reader.attributes.table.take(pa.array(first + owners)).combine_chunks()
        for name in reader.attributes.names:
            column = chosen.column(name)
            columns[name] = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def _ids(reader: Reader, rows: NDArray[np.int64]) -> pa.Array:
    ids = [reader.ids[row] for row in rows.tolist()]
    try:
        return pa.array(ids, pa.int64() if reader.whole_ids else pa.string())
    except (OverflowError, pa.ArrowInvalid):
        most = max(ids, key=lambda one: abs(int(one)))
        raise InputError(f"an id is {most}; a table holds whole numbers up to 2^63 - 1") from None
