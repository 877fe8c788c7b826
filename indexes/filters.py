"""Filters: conditions on attributes, parsed and never evaluated as code, to the rows that meet them.

    expression:  expression or expression | expression and expression | not expression | (expression) | condition
    condition:   year >= 2020 | lang == "en" | lang in ["en", "de"] | lang not in ["fr"] | tags contains "tea"
                 | title starts with "The" | checked is null | checked is not null | published

`and` binds closer than `or`. A row that has no value (null) meets no condition but `is null`, nor its opposite: as in
SQL, `not year >= 2020` leaves out rows without a year. Dates are compared with texts such as "2024-05-01". Names that
are no words, or words of this language, stand in `backticks`.
"""

import datetime
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from indexes.errors import InputError

_DEEPEST = 50
_TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?!\w))
      | (?P<name>`[^`]+`)
      | (?P<word>[^\W\d]\w*)
      | (?P<sign><=|>=|==|!=|=|<|>|\(|\)|\[|\]|,)""",
    re.VERBOSE,
)
_SPACE = re.compile(r"\s*")
_LONGEST_NUMBER = 400
_ESCAPED = {"n": "\n", "t": "\t"}
_COMPARE: dict[str, Callable[..., Any]] = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_WORDS = ("and", "or", "not", "in", "is", "null", "true", "false", "contains", "starts", "with")


class _Token(NamedTuple):
    kind: str
    value: Any
    at: int


@dataclass(frozen=True)
class Condition:
    """A field and what it is compared with."""

    field: str
    operation: str
    """`==`, `!=`, `<`, `<=`, `>`, `>=`, `in`, `contains`, `starts with` or `is null`."""
    value: Any = None


@dataclass(frozen=True)
class Combined:
    """`and`, `or` or `not` over other expressions."""

    operation: str
    parts: "tuple[Expression, ...]"


Expression = Condition | Combined


def parse_filter(text: str) -> Expression:
    """Parse a filter.

    Raises:
        InputError: It is none; the message says where and what was expected.
    """
    return _Parser(text).whole()


def matching(filter_text: str, table: pa.Table) -> NDArray[np.bool_]:
    """Which rows (n,) of a table of attributes meet a filter.

    Raises:
        InputError: It is no filter, names a field that there is not, or compares one with another kind of value.
    """
    met = _evaluate(parse_filter(filter_text), table, filter_text)
    return pc.fill_null(met, False).to_numpy(zero_copy_only=False)


class _Parser:
    """Recursive descent over the tokens of one filter."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._split())
        self.next = 0
        self.depth = 0

    def whole(self) -> Expression:
        found = self._or()
        if self._peek().kind != "end":
            raise self._expected("'and', 'or' or the end")
        return found

    def _split(self) -> Any:
        at = _SPACE.match(self.text).end()  # type: ignore[union-attr] # (it matches anything)
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None:
                raise InputError(
                    f"filter {self.text!r} has a stray {self.text[at]!r} at character {at + 1}; leave it out"
                )
            if match.lastgroup == "number" and len(match[0]) > _LONGEST_NUMBER:
                raise InputError(
                    f"a number in the filter has {len(match[0])} characters; expected at most {_LONGEST_NUMBER}"
                )
            yield _token(str(match.lastgroup), match[0], at)
            at = _SPACE.match(self.text, match.end()).end()  # type: ignore[union-attr]
        yield _Token("end", "the end", len(self.text))

    def _peek(self) -> _Token:
        return self.tokens[self.next]

    def _take(self, *words: str) -> _Token | None:
        """The next tokens, if they are these words or signs."""
        upcoming = self.tokens[self.next : self.next + len(words)]
        if [token.value for token in upcoming if token.kind in ("keyword", "sign")] != list(words):
            return None
        self.next += len(words)
        return upcoming[0]

    def _expected(self, what: str) -> InputError:
        token = self._peek()
        return InputError(
            f"filter {self.text!r} has {token.value!r} at character {token.at + 1}; expected {what} there"
        )

    def _or(self) -> Expression:
        parts = [self._and()]
        while self._take("or"):
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else Combined("or", tuple(parts))

    def _and(self) -> Expression:
        parts = [self._not()]
        while self._take("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else Combined("and", tuple(parts))

    def _not(self) -> Expression:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise InputError(f"filter {self.text[:40]!r}… is nested more than {_DEEPEST} deep; write it flatter")
        if self._take("not"):
            found: Expression = Combined("not", (self._not(),))
        elif self._take("("):
            found = self._or()
            if not self._take(")"):
                raise self._expected("')'")
        else:
            found = self._condition()
        self.depth -= 1
        return found

    def _condition(self) -> Expression:
        token = self._peek()
        if token.kind != "name":
            raise self._expected("a field, 'not' or '('")
        self.next += 1
        field = token.value
        for sign in ("==", "=", "!=", "<=", ">=", "<", ">"):
            if self._take(sign):
                return Condition(field, "==" if sign == "=" else sign, self._value())
        if self._take("in"):
            return Condition(field, "in", self._values())
        if self._take("not", "in"):
            return Combined("not", (Condition(field, "in", self._values()),))
        if self._take("contains"):
            return Condition(field, "contains", self._value())
        if self._take("starts", "with"):
            return Condition(field, "starts with", self._value())
        if self._take("is", "null"):
            return Condition(field, "is null")
        if self._take("is", "not", "null"):
            return Combined("not", (Condition(field, "is null"),))
        return Condition(field, "==", True)

    def _value(self) -> Any:
        token = self._peek()
        if token.kind == "keyword" and token.value in ("true", "false"):
            self.next += 1
            return token.value == "true"
        if token.kind not in ("text", "number"):
            raise self._expected('a "text", a number, true or false')
        self.next += 1
        return token.value

    def _values(self) -> tuple[Any, ...]:
        if not self._take("["):
            raise self._expected("'['")
        found: list[Any] = []
        while not self._take("]"):
            if found and not self._take(","):
                raise self._expected("',' or ']'")
            found.append(self._value())
        return tuple(found)


def _token(kind: str, text: str, at: int) -> _Token:
    if kind == "text":
        return _Token(kind, re.sub(r"\\(.)", lambda found: _ESCAPED.get(found[1], found[1]), text[1:-1]), at)
    if kind == "number":
        return _Token(kind, int(text) if re.fullmatch(r"-?\d+", text) else float(text), at)
    if kind == "name":
        return _Token(kind, text[1:-1], at)
    if kind == "word":
        return _Token("keyword" if text in _WORDS else "name", text, at)
    return _Token(kind, text, at)


def _evaluate(expression: Expression, table: pa.Table, text: str) -> Any:
    if isinstance(expression, Condition):
        return _Meets(table, text).of(expression)
    parts = [_evaluate(part, table, text) for part in expression.parts]
    if expression.operation == "not":
        return pc.invert(parts[0])
    join = pc.and_kleene if expression.operation == "and" else pc.or_kleene
    found = parts[0]
    for part in parts[1:]:
        found = join(found, part)
    return found


class _Meets:
    """Conditions over the columns of a table."""

    def __init__(self, table: pa.Table, text: str) -> None:
        self.table = table
        self.text = text

    def of(self, condition: Condition) -> Any:
        """Which rows meet a condition; null where the field has no value."""
        field, operation, value = condition.field, condition.operation, condition.value
        if field not in self.table.column_names:
            there = ", ".join(self.table.column_names) or "none"
            raise InputError(f"filter {self.text!r} asks for {field!r}; the attributes of this index are {there}")
        column = self.table.column(field)
        kind = column.type
        if operation == "is null":
            return pc.is_null(column)
        listed = pa.types.is_list(kind)
        if listed != (operation == "contains"):
            raise InputError(
                f"filter {self.text!r} asks whether {field} {operation} a value; {field} holds {_called(kind)}"
                + (": ask whether it contains one" if listed else ", and only lists contain values")
            )
        if operation == "contains":
            return self._contains(column, self._as(value, kind.value_type, field))
        if operation == "in":
            if pa.types.is_integer(kind):  # which no fraction equals
                value = [int(one) if _whole(one) else one for one in value if not isinstance(one, float) or _whole(one)]
            return self._among(column, [self._as(one, kind, field) for one in value])
        return self._compared(column, kind, operation, value, field)

    def _compared(self, column: Any, kind: Any, operation: str, value: Any, field: str) -> Any:
        if operation == "starts with":
            if not pa.types.is_string(kind) or not isinstance(value, str):
                raise InputError(f"filter {self.text!r}: {field} holds {_called(kind)}; only texts start with a text")
            return pc.starts_with(column, self._as(value, kind, field).as_py())
        if pa.types.is_boolean(kind) and operation not in ("==", "!="):
            raise InputError(f"filter {self.text!r}: {field} holds true or false, which are only == or !=")
        if pa.types.is_integer(kind) and _whole(value):
            value = int(value)
        elif pa.types.is_integer(kind) and isinstance(value, float) and math.isfinite(value):
            if operation in ("==", "!="):  # no whole number equals a fraction
                return pc.xor(self._among(column, []), pa.scalar(operation == "!="))
            value = math.floor(value) if operation in ("<=", ">") else math.ceil(value)
        return _COMPARE[operation](column, self._as(value, kind, field))

    def _among(self, column: Any, values: list[Any]) -> Any:
        found = pc.is_in(column, pa.array([value.as_py() for value in values], column.type))
        return pc.if_else(pc.is_null(column), pa.scalar(None, pa.bool_()), found)

    def _contains(self, column: Any, value: Any) -> Any:
        column = column.combine_chunks()
        found = np.zeros(len(column), dtype=bool)
        hits = pc.fill_null(pc.equal(pc.list_flatten(column), value), False)
        found[pc.list_parent_indices(column).filter(hits).to_numpy()] = True
        return pc.if_else(pc.is_null(column), pa.scalar(None, pa.bool_()), pa.array(found))

    def _as(self, value: Any, kind: Any, field: str) -> Any:
        """A value to compare a column of a kind with.

        Raises:
            InputError: It is of another kind.
        """
        try:
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if pa.types.is_integer(kind) and isinstance(value, int) and number:
                return pa.scalar(value, pa.int64())
            if pa.types.is_floating(kind) and number:
                return pa.scalar(float(value) + 0.0, pa.float64())  # without -0, which `in` would tell from 0
            if pa.types.is_boolean(kind) and isinstance(value, bool):
                return pa.scalar(value)
            if pa.types.is_string(kind) and isinstance(value, str):
                return pa.scalar(value)
            if pa.types.is_timestamp(kind) and isinstance(value, str):
                return pa.scalar(plain_time(datetime.datetime.fromisoformat(value)), kind)
        except (ValueError, OverflowError, pa.ArrowInvalid) as error:
            raise InputError(f"filter {self.text!r}: {value!r} is no value of {field} ({error})") from None
        raise InputError(f"filter {self.text!r}: {field} holds {_called(kind)}; it cannot be compared with {value!r}")


def plain_time(time: datetime.datetime) -> datetime.datetime:
    """A time in UTC that does not say so."""
    return time if time.tzinfo is None else time.astimezone(datetime.UTC).replace(tzinfo=None)


def _whole(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value == math.floor(value)


def _called(kind: Any) -> str:
    if pa.types.is_list(kind):
        return f"lists of {_called(kind.value_type)}"
    names: list[tuple[Callable[[Any], bool], str]] = [
        (pa.types.is_integer, "whole numbers"),
        (pa.types.is_floating, "numbers"),
        (pa.types.is_string, "texts"),
        (pa.types.is_boolean, "true or false"),
        (pa.types.is_timestamp, "dates"),
    ]
    return next((name for test, name in names if test(kind)), str(kind))
