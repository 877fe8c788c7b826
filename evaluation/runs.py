"""Run files: TREC's six columns, or arrays in `.npz`."""

import contextlib
import gzip
import io
import itertools
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from evaluation.rankings import LARGEST, Ranking, Run, make_ranking
from evaluation.run_table import RunTable
from indexes.errors import InputError
from retrieval.lines import text_lines

__all__ = ["Ranking", "Run", "make_ranking", "read_run", "read_table", "replaced", "write_run"]

_COLUMNS = "six columns: query Q0 document rank score tag"
_FORMAT = 1
_ARRAYS = {"starts": "int64", "rows": "int32", "scores": "float32"}
_TEXTS = ("queries", "ids")


def read_run(path: str | Path) -> Run:
    """Read a run file: TREC's columns, plain or `.gz`, or what `write_run` wrote to a name that ends in `.npz`.

    TREC's are query, Q0, document, rank, score, tag, separated by white space. The columns Q0, rank and tag are not
    read, as in trec_eval: the scores give the order.

    Raises:
        InputError: The file is missing, empty or neither, or a line is malformed, has a score that is not a finite
            float32, or repeats a document of its query; the message gives file and line.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return dict(read_table(path))
    hits: dict[str, dict[str, float]] = {}
    for number, line in text_lines(path, "a TREC run file"):
        query, document, score = _parse(line, f"{path}, line {number}")
        found = hits.setdefault(query, {})
        if document in found:
            raise InputError(f"{path}, line {number}: document {document!r} occurs twice for query {query!r}; keep one")
        found[document] = score
    if not hits:
        raise InputError(f"{path}: holds no hits; expected lines of {_COLUMNS}")
    return {
        query: make_ranking(list(found), list(found.values()), place=f"{path}, query {query!r}")
        for query, found in hits.items()
    }


def read_table(path: str | Path) -> RunTable:
    """Read a run file in `.npz` as arrays; a list of ids for each query is made only when it is asked for.

    Raises:
        InputError: The file is missing or none of `write_run`'s, or the run is none that measures could read.
    """
    path = Path(path)
    expected = "expected a run that retrokit wrote as .npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in ("format", *_ARRAYS, *_parts(*_TEXTS))}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {expected}") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not readable ({' '.join(str(error).split())}); {expected}") from None
    if found["format"].tolist() != _FORMAT:
        raise InputError(f"{path} has format {found['format']}; this retrokit reads {_FORMAT}: write it again")
    for name, dtype in _ARRAYS.items():
        if found[name].dtype != dtype or found[name].ndim != 1:
            raise InputError(f"{path}: {name} are {found[name].dtype}; {expected}")
    queries, ids = (_texts(found[name], found[f"{name}_ends"], f"{path}: {name}") for name in _TEXTS)
    return RunTable.of(queries, found["starts"], found["rows"], found["scores"], ids, place=str(path))


def _parse(line: str, place: str) -> tuple[str, str, float]:
    columns = line.split()
    if len(columns) != 6:
        raise InputError(f"{place}: found {len(columns)} columns in {line.strip()[:60]!r}; expected {_COLUMNS}")
    try:
        score = float(columns[4])
    except ValueError:
        score = math.nan
    if not abs(score) <= LARGEST:  # NaN compares false with everything
        raise InputError(f"{place}: score {columns[4]!r}; expected a finite float32")
    return columns[0], columns[2], score


def write_run(run: Mapping[str, Ranking], path: str | Path, *, tag: str = "retrokit") -> None:
    """Write a run file, wholly or not at all: arrays if the name ends in `.npz`, else TREC's columns (`.gz`: packed).

    Both give the same measures when read back: nine significant digits are enough for every float32. Arrays take 8
    bytes a hit and each id once, keep queries without hits, and ids may hold white space.

    Args:
        run: The run; queries are written in its order, hits in trec_eval's.
        path: The file; one that is there is replaced.
        tag: The system's name in the last column; white space in it becomes `_`.

    Raises:
        InputError: An id is empty or holds white space, so that TREC's columns could not be told apart.
    """
    path = Path(path)
    if path.suffix == ".npz":
        _write_arrays(RunTable.of_run(run).compact(), path)
        return
    name = "_".join(tag.split()) or "retrokit"
    run = run.compact() if isinstance(run, RunTable) else run
    with replaced(path) as raw, _text(raw, packed=path.suffix == ".gz") as file:
        for query, ranking in run.items():
            _refuse_spaces([query, *ranking.ids], f"{path}, query {query!r}")
            for rank, (document, score) in enumerate(zip(ranking.ids, ranking.scores.tolist(), strict=True), start=1):
                file.write(f"{query} Q0 {document} {rank} {score:.9g} {name}\n")


def _write_arrays(table: RunTable, path: Path) -> None:
    arrays: dict[str, Any] = {"format": np.int64(_FORMAT)}
    arrays |= {name: np.asarray(getattr(table, name), dtype) for name, dtype in _ARRAYS.items()}
    for name in _TEXTS:
        encoded = [text.encode(errors="surrogatepass") for text in getattr(table, name)]
        arrays[name] = np.frombuffer(b"".join(encoded), np.uint8)
        arrays[f"{name}_ends"] = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    with replaced(path) as file:
        np.savez(file, **arrays)


def _parts(*names: str) -> list[str]:
    return [part for name in names for part in (name, f"{name}_ends")]


def _texts(joined: NDArray[np.uint8], ends: NDArray[np.int64], place: str) -> Sequence[str]:
    sound = ends.ndim == 1 and ends.dtype == np.int64 and len(ends) > 0 and joined.dtype == np.uint8
    if not sound or ends[0] != 0 or ends[-1] != joined.size or (np.diff(ends) < 0).any():
        raise InputError(f"{place} are damaged; write the run again")
    whole, edges = joined.tobytes(), ends.tolist()
    try:
        return [whole[begin:end].decode(errors="surrogatepass") for begin, end in itertools.pairwise(edges)]
    except UnicodeDecodeError:
        raise InputError(f"{place} are no UTF-8; write the run again") from None


def _refuse_spaces(ids: Iterable[str], place: str) -> None:
    for name in ids:
        if name.split() != [name]:
            raise InputError(f"{place}: id {name!r} is empty or holds white space; run files need single words")


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to fill under a temporary name; it replaces `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _text(raw: IO[bytes], *, packed: bool) -> Iterator[io.TextIOWrapper]:
    with contextlib.ExitStack() as stack:
        target: Any = raw
        if packed:  # no time and no name in the header: the same run gives the same bytes
            target = stack.enter_context(gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0))
        text = io.TextIOWrapper(target, encoding="utf-8", newline="\n")
        try:
            yield text
        finally:
            text.detach()
