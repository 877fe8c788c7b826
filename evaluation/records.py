"""Records of data files: JSON lines, Parquet, and tables separated by tabs or commas, one after the other."""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from indexes.errors import InputError
from retrieval.corpora import LINES_SUFFIXES, Corpus, readable
from retrieval.documents import Document, as_document
from retrieval.lines import Meter, read_lines, text_lines

PACKED = ("", ".gz", ".zst")
TABLE_SUFFIXES = tuple(f".{kind}{packed}" for kind in ("tsv", "csv") for packed in PACKED)
DATA_SUFFIXES = (*LINES_SUFFIXES, *TABLE_SUFFIXES, ".parquet")

_TABLE = "a table with a header line"
_ROWS = 256

Record = tuple[str, Mapping[str, Any]]
"""The place of a record, for messages, and the record."""


def is_data_file(path: Path) -> bool:
    """Whether `read_records` reads files of such a name."""
    return path.name.lower().endswith(DATA_SUFFIXES)


def read_records(path: Path, meter: Meter | None = None) -> Iterator[Record]:
    """Read the records of one file, lazily: JSON lines or tables (plain, gzip or zstd), or Parquet.

    Raises:
        InputError: The file is missing, malformed, or of another kind.
    """
    name = path.name.lower()
    if name.endswith(LINES_SUFFIXES):
        return ((f"{path}, line {number}", record) for number, record in read_lines(path, meter))
    if name.endswith(".parquet"):
        return readable(_parquet(path), str(path), "a whole Parquet file")
    if name.endswith(TABLE_SUFFIXES):
        return readable(_table(path, meter), str(path), _TABLE)
    raise InputError(f"{path}: unknown kind of file; expected {', '.join(DATA_SUFFIXES)}")


def _parquet(path: Path) -> Iterator[Record]:
    from pyarrow.parquet import ParquetFile

    row = 0
    with ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_ROWS):
            for record in batch.to_pylist():
                yield f"{path}, row {row}", record
                row += 1


def _table(path: Path, meter: Meter | None) -> Iterator[Record]:
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    lines = (line for _, line in text_lines(path, _TABLE, meter, blank_lines=True))
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    for record in reader:
        place = f"{path}, line {reader.line_num}"
        if None in record or None in record.values():
            raise InputError(f"{place}: has more or fewer columns than the header line; expected as many")
        yield place, record


def corpus_of(
    source: str,
    paths: Sequence[Path],
    keep: Callable[[Mapping[str, Any]], bool] | None = None,
    make: Callable[[Mapping[str, Any], str], Document] = as_document,
) -> Corpus:
    """A corpus of data files, read lazily and anew each time.

    Args:
        source: What the user calls it, for messages.
        paths: The files, in their order.
        keep: Which records are documents of this corpus; None: all.
        make: Makes a document of a record and its place.
    """

    def read(meter: Meter) -> Iterable[Document]:
        return (
            make(record, place)
            for path in paths
            for place, record in read_records(path, meter)
            if keep is None or keep(record)
        )

    metered = not any(path.name.endswith(".parquet") for path in paths)
    return Corpus(source, read, size=sum(path.stat().st_size for path in paths) if metered else None)
