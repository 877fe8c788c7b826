"""Corpora: files, folders, data sets and Python iterables, each read anew whenever its documents are iterated over."""

import functools
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from indexes.errors import InputError
from indexes.manifest import read_json
from retrieval.documents import (
    ID_FIELDS,
    TEXT_FIELDS,
    TITLE_FIELDS,
    Document,
    as_document,
    as_documents,
    refuse_repeats,
    whole_text,
)
from retrieval.lines import Meter, read_lines

TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".rst")
LINES_SUFFIXES = tuple(name + packed for name in (".jsonl", ".ndjson", ".json-lines") for packed in ("", ".gz", ".zst"))

_BEIR = ("corpus.jsonl", "corpus.jsonl.gz", "corpus.jsonl.zst")
_FIELDS = (*ID_FIELDS, *TEXT_FIELDS, *TITLE_FIELDS)
_ABOUT = ("readme", "license")  # texts that lie beside shards and tell about them
_ROWS = 256  # rows of a table that are Python objects at a time
_BUFFER = 1 << 20
_IPC_FILE = b"ARROW1"  # how an Arrow IPC file begins; an IPC stream does not
_TABLE = "a whole Parquet or Arrow file"
_DATASET = "a data set that datasets.load_dataset streams"

T = TypeVar("T")
Wanted = tuple[str, ...]
"""Fields to keep as attributes."""


class Corpus:
    """Documents that are read anew, lazily, each time they are iterated over; `read_documents` opens one.

    Each iteration is checked by `refuse_repeats`.

    Args:
        source: What the user calls it; errors begin with it.
        read: Starts a reading of the documents and tells the meter how far it is.
        size: Bytes of the files, if the reading uses the meter.
        count: How many documents there are, if that is cheap to find out.
        repeatable: Whether it can be iterated over more than once.
    """

    def __init__(
        self,
        source: str,
        read: Callable[[Meter], Iterable[Document]],
        *,
        size: int | None = None,
        count: Callable[[], int] | None = None,
        repeatable: bool = True,
    ) -> None:
        self.source = source
        self.repeatable = repeatable
        self._read, self._size, self._count = read, size, count
        self._meter: Meter | None = None

    def __repr__(self) -> str:
        return f"Corpus({self.source!r})"

    def __iter__(self) -> Iterator[Document]:
        if self._meter and not self.repeatable:
            raise InputError(
                f"{self.source}: it can be read once, and was; "
                "pass a list, a file, or an object whose __iter__ starts again"
            )
        self._meter = Meter(self._size or 0)
        return refuse_repeats(self._read(self._meter), self.source)

    @functools.cached_property
    def total(self) -> int | None:
        """How many documents there are; None if only reading them would tell.

        Raises:
            InputError: The file that should tell is not readable.
        """
        return self._count() if self._count else None

    @property
    def fraction(self) -> float | None:
        """The share of the bytes that the newest iteration has read so far; None if the source is no JSON lines."""
        if self._size is None:
            return None
        return self._meter.fraction if self._meter else 0.0


class _Format(NamedTuple):
    suffixes: tuple[str, ...]
    read: Callable[[Path, Meter, Wanted], Iterator[Document]]
    rows: Callable[[Path], Iterable[int]] | None
    """How many rows a file has, in parts, if that is cheap to find out."""

    def holds(self, path: Path) -> bool:
        return path.name.lower().endswith(self.suffixes)


def named_corpus(source: str, wanted: Wanted = ()) -> Corpus:
    """Open a corpus by its name or path; see `retrieval.read_documents`.

    Raises:
        InputError: It is missing or of no known kind.
    """
    if source.partition(":")[0] == "python-docs":
        _refuse_fields(wanted, source)
        return _python_docs(source)
    if source.startswith("hf:"):
        return _streamed(source, wanted)
    path = Path(source)
    if path.is_dir():
        return _folder(path, wanted)
    if not path.exists():
        raise InputError(
            f"{path}: no such file or folder; expected a corpus: JSON lines, Parquet, Arrow, a folder, hf:, python-docs"
        )
    form = next((form for form in _FORMATS.values() if form.holds(path)), None)
    if form is None:
        raise InputError(
            f"{path}: unknown kind of corpus; expected .jsonl (plain, .gz, .zst), .parquet, .arrow, .feather, "
            "a folder, hf: or python-docs"
        )
    return _files(source, [path], form, wanted)


def python_corpus(items: Any, wanted: Wanted = ()) -> Corpus:
    """Make a corpus of a `datasets` object or of any Python iterable of what `as_documents` takes.

    Raises:
        InputError: It is a mapping or a table, whose iteration gives names, or no iterable at all.
    """
    source = f"the {type(items).__name__}"
    datasets = sys.modules.get("datasets")  # who has such an object has imported it
    if datasets and isinstance(items, datasets.Dataset):
        read = functools.partial(_tables, items, source, wanted)
        return Corpus(source, lambda _: _rows(_records(read()), source, wanted), count=lambda: len(items))
    if datasets and isinstance(items, datasets.IterableDataset):
        return Corpus(source, lambda _: _rows(_examples(items, source, wanted), source, wanted))
    if isinstance(items, Mapping):
        raise InputError(f"{source} has the keys {', '.join(map(str, items))[:200]}; expected one of its values")
    if hasattr(items, "columns"):
        raise InputError(f"{source} is a table, which Python reads by column; expected its rows, as dictionaries")
    if isinstance(items, bytes | bytearray) or not isinstance(items, Iterable):
        raise InputError(f"found {source[4:]}; expected a path, a datasets object or an iterable of documents")
    return Corpus(
        source,
        lambda _: as_documents(items, source, wanted),
        count=items.__len__ if isinstance(items, Sized) else None,
        repeatable=iter(items) is not items,
    )


def _python_docs(source: str) -> Corpus:
    from retrieval.python_docs import check_packages, read_python_docs

    if ":" in source:
        check_packages(source)
    return Corpus(source, lambda _: (item.document for item in read_python_docs(source)))


def _files(source: str, paths: Sequence[Path], form: _Format, wanted: Wanted) -> Corpus:
    def read(meter: Meter) -> Iterator[Document]:
        return itertools.chain.from_iterable(form.read(path, meter, wanted) for path in paths)

    rows = form.rows
    if rows is None:
        return Corpus(source, read, size=sum(path.stat().st_size for path in paths))
    return Corpus(source, read, count=lambda: sum(sum(readable(rows(path), str(path), _TABLE)) for path in paths))


def _folder(folder: Path, wanted: Wanted) -> Corpus:
    beir = next((folder / name for name in _BEIR if (folder / name).is_file()), None)
    if beir:
        return _files(str(folder), [beir], _LINES, wanted)
    if files := _described(folder / "state.json", "_data_files"):
        return _files(str(folder), [folder / one["filename"] for one in files], _FORMATS["Arrow"], wanted)
    if splits := _described(folder / "dataset_dict.json", "splits"):
        if len(splits) == 1:
            return _folder(folder / splits[0], wanted)
        raise InputError(f"{folder}: found the splits {', '.join(splits)}; expected one: name its folder in this one")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    visible = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    shards = {kind: [path for path in visible if form.holds(path)] for kind, form in _FORMATS.items()}
    if any(shards.values()):
        kinds = {kind: some for kind, some in shards.items() if some}
        return _files(str(folder), *_one_kind(folder, visible, kinds), wanted)
    _refuse_fields(wanted, str(folder))
    return _texts(folder, [path for path in paths if path.suffix.lower() in TEXT_SUFFIXES])


def _one_kind(folder: Path, visible: Sequence[Path], shards: Mapping[str, list[Path]]) -> tuple[list[Path], _Format]:
    """The shards of a folder; a README or a licence beside them is none of the documents."""
    found = {kind: len(paths) for kind, paths in shards.items()}
    texts = [path for path in visible if path.suffix.lower() in TEXT_SUFFIXES and path.stem.lower() not in _ABOUT]
    if texts:
        found["text"] = len(texts)
    if len(found) > 1:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.items())
        raise InputError(f"{folder}: found files of several kinds ({kinds}); expected one: name a file or folder in it")
    kind, paths = next(iter(shards.items()))
    for inside in (path.relative_to(folder) for path in paths):
        if any(part.partition(".")[0] == "queries" for part in inside.parts):
            raise InputError(
                f"{folder}: {inside} holds queries, not documents; expected a corpus: name its file or folder"
            )
    return paths, _FORMATS[kind]


def _described(path: Path, field: str) -> list[Any]:
    """What `datasets.save_to_disk` says in a file of its folder; empty if it did not write the file."""
    described = read_json(path) if path.is_file() else None
    if isinstance(described, dict) and described.get("_indices_data_files"):
        raise InputError(
            f"{path.parent}: its rows are in the order of an index; expected none: pass the object that "
            f"datasets.load_from_disk({str(path.parent)!r}) returns"
        )
    return described.get(field) or [] if isinstance(described, dict) else []


def _texts(folder: Path, paths: Sequence[Path]) -> Corpus:
    if not paths:
        raise InputError(
            f"{folder}: no corpus.jsonl and no {', '.join(TEXT_SUFFIXES)} files, nor JSON lines, Parquet or Arrow; "
            "expected one of them"
        )
    return Corpus(str(folder), lambda _: _read_texts(folder, paths), count=lambda: len(paths))


def _read_texts(folder: Path, paths: Sequence[Path]) -> Iterator[Document]:
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text (byte {error.start}); expected UTF-8") from None
        except FileNotFoundError:
            raise InputError(f"{path}: no such file any more; read the folder again when it is at rest") from None
        identifier = whole_text(path.relative_to(folder).as_posix(), f"{folder}: the name of a file")
        yield Document(id="_".join(identifier.split()), text=text.strip())


def _read_jsonl(path: Path, meter: Meter, wanted: Wanted) -> Iterator[Document]:
    for number, record in read_lines(path, meter):
        yield as_document(record, f"{path}, line {number}", wanted)


def _read_parquet(path: Path, _: Meter, wanted: Wanted) -> Iterator[Document]:
    return _rows(readable(_records(_parquet_batches(path, wanted)), str(path), _TABLE), str(path), wanted)


def _read_arrow(path: Path, _: Meter, wanted: Wanted) -> Iterator[Document]:
    batches = _arrow_batches(path, lambda names: _columns(names, str(path), wanted), mapped=True)
    return _rows(readable(_records(batches), str(path), _TABLE), str(path), wanted)


def _rows(records: Iterable[Mapping[str, Any]], place: str, wanted: Wanted) -> Iterator[Document]:
    for number, record in enumerate(records):
        yield as_document(record, f"{place}, row {number}", wanted)


def _records(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The rows of record batches or tables."""
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS):
            yield from batch.slice(start, _ROWS).to_pylist()


def _columns(names: Sequence[str], place: str, wanted: Wanted) -> list[str]:
    """The columns that a document is made of, once it is clear that they suffice."""
    as_document(dict.fromkeys(names, ""), place)
    columns = {field: field if field in names else field.partition(".")[0] for field in wanted}
    if missing := [field for field, column in columns.items() if column not in names]:
        raise InputError(f"{place}: no field {missing[0]!r}; found {', '.join(names)}")
    return [name for name in names if name in _FIELDS or name in columns.values()]


def _refuse_fields(wanted: Wanted, place: str) -> None:
    if wanted:
        raise InputError(f"{place}: its texts have no fields such as {wanted[0]!r}; expected records with attributes")


def _parquet_batches(path: Path, wanted: Wanted) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    # With a buffer Arrow reads a column page by page; without one, a whole row group of it is in memory.
    with ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
        columns = _columns(file.schema_arrow.names, str(path), wanted)
        yield from file.iter_batches(batch_size=_ROWS, columns=columns, use_threads=False)


def _parquet_rows(path: Path) -> Iterator[int]:
    from pyarrow.parquet import read_metadata

    yield read_metadata(path).num_rows


def _arrow_batches(path: Path, choose: Callable[[Sequence[str]], Sequence[str]], *, mapped: bool) -> Iterator[Any]:
    """The record batches of an IPC file or an IPC stream, of the chosen columns only.

    Args:
        path: The file.
        choose: Names the wanted ones of the columns there are.
        mapped: Leave an IPC file's columns where they are, mapped into memory, for its one batch can be all of it.
            Otherwise the chosen columns are copied, and compressed ones that were not chosen stay compressed.
    """
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        is_stream = file.read(len(_IPC_FILE)) != _IPC_FILE
        opener = pyarrow.ipc.open_stream if is_stream else pyarrow.ipc.open_file
        file.seek(0)
        names = opener(file).schema.names
        wanted = choose(names)
        fields = [] if mapped and not is_stream else sorted({names.index(name) for name in wanted})
        file.seek(0)
        reader = opener(file, options=pyarrow.ipc.IpcReadOptions(included_fields=fields))
        batches = reader if is_stream else map(reader.get_batch, range(reader.num_record_batches))
        yield from (batch.select(wanted) for batch in batches)


def _arrow_rows(path: Path) -> Iterator[int]:
    def shortest(names: Sequence[str]) -> Sequence[str]:
        return [name for name in names if name in ID_FIELDS][:1] or names[:1]

    return (batch.num_rows for batch in _arrow_batches(path, shortest, mapped=False))


def readable(items: Iterable[T], place: str, expected: str) -> Iterator[T]:
    """Pass items on; what the library that reads them raises becomes an `InputError` of one line."""
    try:
        yield from items
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{place}: not readable ({reason}); expected {expected}") from error


def _streamed(source: str, wanted: Wanted) -> Corpus:
    """What `datasets` streams from the Hub or a folder, for `hf:PATH_OR_NAME[:CONFIG][@SPLIT]`."""
    match = re.fullmatch(r"hf:(.+?)(?::([^/:@]+))?(?:@([^/:@]+))?", source)
    if match is None:
        raise InputError(f"{source}: names no data set; expected hf:PATH_OR_NAME[:CONFIG][@SPLIT]")
    name, config, split = match.groups()
    splits = dict(readable(_splits(name, config), source, _DATASET))
    split = split or (next(iter(splits)) if len(splits) == 1 else "train")
    if split not in splits:
        raise InputError(f"{source}: no split {split!r}; found {', '.join(splits)}: choose one with @SPLIT")
    examples = functools.partial(_examples, splits[split], source, wanted)
    return Corpus(source, lambda _: _rows(readable(examples(), source, _DATASET), source, wanted))


def _splits(name: str, config: str | None) -> Iterator[tuple[str, Any]]:
    import datasets

    yield from datasets.load_dataset(name, config, streaming=True).items()


def _examples(dataset: Any, source: str, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """The examples of an iterable data set, of the needed columns only, where it knows its columns."""
    if dataset.column_names is not None:
        dataset = dataset.select_columns(_columns(dataset.column_names, source, wanted))
    yield from dataset.with_format(None)


def _tables(dataset: Any, source: str, wanted: Wanted) -> Iterator[Any]:
    columns = _columns(dataset.column_names, source, wanted)
    yield from dataset.with_format("arrow", columns=columns).iter(batch_size=_ROWS)


_LINES = _Format(LINES_SUFFIXES, _read_jsonl, None)
_FORMATS = {
    "JSON lines": _LINES,
    "Parquet": _Format((".parquet",), _read_parquet, _parquet_rows),
    "Arrow": _Format((".arrow", ".feather"), _read_arrow, _arrow_rows),
}
