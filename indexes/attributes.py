"""Attributes: typed values of each document, such as a year or a language, in one memory-mapped Arrow file."""

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.filters import matching, plain_time

_TYPES = {
    "true or false": pa.bool_(),
    "a whole number": pa.int64(),
    "a number": pa.float64(),
    "a text": pa.string(),
    "a date": pa.timestamp("us"),
}
_ARROW = {str(kind): kind for one in _TYPES.values() for kind in (one, pa.list_(one))}


class Attributes:
    """A table of n rows with typed columns, to filter by.

    Args:
        table: Columns of int64, float64, string, bool, timestamps, or lists of one of these.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def names(self) -> list[str]:
        """The attributes' names."""
        return self.table.column_names

    @property
    def types(self) -> dict[str, str]:
        """Arrow's name for each attribute's type."""
        return {field.name: str(field.type) for field in self.table.schema}

    @classmethod
    def of(
        cls, rows: Sequence[Mapping[str, Any]], ids: Sequence[str], known: "Attributes | None" = None
    ) -> "Attributes":
        """Make typed columns of Python values: bool, int, float, str, date or datetime, or lists of one of these.

        Each column has one type; whole numbers beside others become float64, and no value, None or NaN is null.

        Args:
            rows: The values of each document by their names.
            ids: Of the documents, to name them.
            known: Those of other documents, whose attributes need not have a value here.

        Raises:
            InputError: No document has a value of an attribute that is named, two documents give one values of
                different kinds, or a value is of none of these.
        """
        names = dict.fromkeys(name for row in rows for name in row)
        if strange := [name for name in names if not isinstance(name, str)]:
            raise InputError(f"an attribute is called {strange[0]!r}; expected a text")
        elsewhere = {} if known is None else {field.name: field.type for field in known.table.schema}
        columns = {name: _column(name, [row.get(name) for row in rows], ids, elsewhere.get(name)) for name in names}
        return cls(pa.table(columns)) if columns else cls.none(len(rows))

    @classmethod
    def none(cls, rows: int) -> "Attributes":
        """Of n documents that have none."""
        return cls(pa.table({"": pa.nulls(rows)}).select([]))  # a table without columns still has rows

    @classmethod
    def joined(cls, parts: Sequence["Attributes"], known: Mapping[str, str] | None = None) -> "Attributes":
        """Those of several segments as one; where a segment lacks an attribute, it is null.

        Args:
            parts: Of each segment.
            known: Arrow's names for the types of attributes that are there even if no segment has them.

        Raises:
            InputError: An attribute is of one kind here and of another there, or whole numbers are beside others and
                too large to be kept as such.
        """
        types: dict[str, Any] = {name: _ARROW[said] for name, said in (known or {}).items()}
        for part in parts:
            for field in part.table.schema:
                types[field.name] = _common(field.name, types.get(field.name, field.type), field.type)
        if not types:
            return cls.none(sum(map(len, parts)))
        columns = {
            name: pa.chunked_array([chunk for part in parts for chunk in part.chunks(name, kind)], kind)
            for name, kind in types.items()
        }
        return cls(pa.table(columns))

    def chunks(self, name: str, kind: Any) -> list[pa.Array]:
        """The values of an attribute as a type; nulls if there is none of that name."""
        if name not in self.names:
            return [pa.nulls(len(self), kind)]
        column = self.table.column(name)
        try:
            return list((column if column.type == kind else column.cast(kind)).chunks)
        except pa.ArrowInvalid as error:
            raise InputError(f"attribute {name!r} cannot be kept as {kind} ({error}); make it one kind") from None

    def take(self, rows: NDArray[np.int64]) -> "Attributes":
        """Those of some documents (m,)."""
        return Attributes(self.table.take(pa.array(rows))) if self.names else Attributes.none(len(rows))

    def save(self, path: Path) -> None:
        """Write an Arrow IPC file."""
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, self.table.schema) as writer:
            writer.write_table(self.table)

    @classmethod
    def open(cls, path: Path) -> "Attributes":
        """Map a file that `save` wrote.

        Raises:
            InputError: It is none.
        """
        try:
            return cls(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{path}: Arrow cannot read it ({error}); make the index again") from None

    def matching(self, filter_text: str) -> NDArray[np.bool_]:
        """Which rows (n,) meet a filter; the language is that of `indexes.filters`.

        Raises:
            InputError: It is no filter, or not one for these attributes.
        """
        return matching(filter_text, self.table)

    def row(self, number: int) -> dict[str, Any]:
        """The values of one row, without those that are null."""
        values = {name: self.table.column(name)[number].as_py() for name in self.names}
        return {name: value for name, value in values.items() if value is not None}


def _column(name: str, values: list[Any], ids: Sequence[str], known: Any) -> pa.Array:
    values = [_plain(value) for value in values]
    lists = any(isinstance(value, list) for value in values)
    found: dict[str, tuple[str, Any]] = {}
    for value, id_ in zip(values, ids, strict=True):
        if value is not None and isinstance(value, list) != lists:
            other = next(one for one, it in zip(ids, values, strict=True) if isinstance(it, list))
            raise InputError(f"attribute {name!r} is a list in document {other!r}, {value!r} in {id_!r}; make both one")
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            found.setdefault(_kind(one, name, id_), (id_, one))
    if set(found) == {"a whole number", "a number"}:
        del found["a whole number"]
    if len(found) > 1:
        (one, (first, _)), (other, (second, example)) = list(found.items())[:2]
        raise InputError(
            f"attribute {name!r} is {one} in document {first!r}, {other} in {second!r} ({example!r}); make it one kind"
        )
    if not found and known is not None and lists in (False, pa.types.is_list(known)):
        return pa.array(values, known)
    if not found and not lists and values:
        raise InputError(f"no document has a value of attribute {name!r}; leave it out or mend its name")
    kind = _TYPES[next(iter(found), "a text")]
    try:
        return pa.array(values, pa.list_(kind) if lists else kind)
    except (OverflowError, pa.ArrowInvalid) as error:
        raise InputError(f"attribute {name!r} holds a value that 64 bits cannot ({error})") from None


def _common(name: str, one: Any, other: Any) -> Any:
    """The type of an attribute that is of two types in two segments."""
    numbers = {pa.int64(), pa.float64()}
    if one == other:
        return one
    if {one, other} == numbers:
        return pa.float64()
    if pa.types.is_list(one) and pa.types.is_list(other) and {one.value_type, other.value_type} == numbers:
        return pa.list_(pa.float64())
    raise InputError(f"attribute {name!r} is of type {one} in the index, of {other} here; make it one kind")


def _plain(value: Any) -> Any:
    """A Python value of a numpy scalar, a list of other sequences, None of NaN."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]")
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, datetime.datetime):
        return plain_time(value) if value == value else None
    if isinstance(value, datetime.date):
        return datetime.datetime(value.year, value.month, value.day)
    if isinstance(value, tuple | list):
        return [one for one in map(_plain, value) if one is not None]
    if isinstance(value, float):
        return None if math.isnan(value) else value + 0.0  # without -0, which `in` would tell from 0
    return value


def _kind(value: Any, name: str, id_: str) -> str:
    kinds: Iterable[tuple[Any, str]] = (
        (bool, "true or false"),
        (int, "a whole number"),
        (float, "a number"),
        (str, "a text"),
        (datetime.date, "a date"),
    )
    found = next((called for kind, called in kinds if isinstance(value, kind)), None)
    if found is None:
        expected = "bool, int, float, str, date, or a list of one of these"
        raise InputError(f"attribute {name!r} of document {id_!r} is {value!r}; expected {expected}")
    if isinstance(value, str) and not value.isprintable():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(f"attribute {name!r} of document {id_!r} holds half a character") from None
    return found
