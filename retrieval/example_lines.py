"""Lines of JSON to training examples, one kind of lines a file; see `retrieval.examples.read_examples`."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from indexes.errors import InputError
from retrieval.documents import Document, text_field, whole_text
from retrieval.examples import EXPECTED, Candidate, Example, Line
from retrieval.lines import read_lines


class ExampleLines:
    """Reads a file of examples.

    Args:
        documents: What ids stand for; None: nothing.
        dataset: What examples belong to that do not say it themselves.
        counts: Where to count what is merged or left out.
    """

    def __init__(self, documents: Mapping[str, Document] | None, dataset: str, counts: Counter[str]) -> None:
        self._documents = documents
        self._dataset = dataset
        self._counts = counts

    def read(self, path: Path) -> Iterator[list[Line]]:
        """What is said of each query, given where it comes last; memory holds what is said of those that come again.

        The file is gone through twice: to see which those are, by a digest of each query, and to read it.

        Raises:
            InputError: A line is malformed, with file and line.
        """
        kind, last, repeated = self._survey(path)
        parse = {"sentences": self._sentences, "pairs": self._judgement, "judgements": self._judgement}.get(
            kind, self._example
        )
        held: dict[bytes, list[Line]] = {}
        for number, record in read_lines(path):
            place = f"{path}, line {number}"
            if _kind(record, place) != kind:
                raise InputError(
                    f"{place}: found {_kind(record, place)} after {kind}; expected one kind of lines a file"
                )
            line = Line(place, parse(record, place))
            key = _key(record, self._dataset) if repeated else b""
            if key not in repeated:
                yield [line]
                continue
            held.setdefault(key, []).append(line)
            if number == last[key]:
                yield held.pop(key)

    def _survey(self, path: Path) -> tuple[str, dict[bytes, int], set[bytes]]:
        """The kind of the first line, where each query comes last, and which come more than once."""
        kind = ""
        last: dict[bytes, int] = {}
        repeated: set[bytes] = set()
        for number, record in read_lines(path):
            kind = kind or _kind(record, f"{path}, line {number}")
            if kind == "sentences":
                break
            key = _key(record, self._dataset)
            if key in last:
                repeated.add(key)
            last[key] = number
        if repeated and kind != "judgements":  # of judgements there are several a query
            self._counts["queries came again and were merged"] = len(repeated)
        return kind, {key: last[key] for key in repeated}, repeated

    def _example(self, record: Mapping[str, Any], place: str) -> Example:
        positives, negatives = (_several(record, name, place) for name in ("positive", "negative"))
        if not positives:
            raise InputError(f"{place}: it has no positive; expected at least one")
        query = _text(record, "query", place)
        dataset = text_field(record, ("dataset",), place, default=self._dataset)
        return Example(query, self._all(positives, place), self._all(negatives, place), dataset)

    def _judgement(self, record: Mapping[str, Any], place: str) -> Example:
        query, value = _text(record, "query", place), record["document"]
        score = _score(record, place)
        if score is None and "score" in record:
            raise InputError(f"{place}: score is null; expected a number")
        if not isinstance(value, Mapping):
            value = {"id": text_field(record, ("document",), place)}
        if score is not None:
            if value.get("score") is not None:
                raise InputError(f"{place}: both the line and its document have a score; expected one")
            value = {**value, "score": score}
        some = self._all([value], place)
        dataset = text_field(record, ("dataset",), place, default=self._dataset)
        return Example(query, some, (), dataset) if score is None or score > 0 else Example(query, (), some, dataset)

    def _sentences(self, record: Mapping[str, Any], place: str) -> Example:
        first, second = (_text(record, name, place) for name in ("sentence1", "sentence2"))
        score = _score(record, place)
        if score is None:
            raise InputError(f"{place}: a pair of sentences has no score; expected a number")
        dataset = text_field(record, ("dataset",), place, default=self._dataset)
        return Example(first, (Candidate(second, None, score),), (), dataset)

    def _all(self, values: Sequence[Any], place: str) -> tuple[Candidate, ...]:
        found = []
        for value in values:
            one = self._candidate({"text": value} if isinstance(value, str) else value, place)
            if one is None:
                self._counts["documents are empty and were left out"] += 1
            else:
                found.append(one)
        return tuple(found)

    def _candidate(self, value: Any, place: str) -> Candidate | None:
        """A candidate as a line gives it; None if the corpus has its document, and that is empty."""
        if not isinstance(value, Mapping):
            raise InputError(
                f"{place}: a candidate is {type(value).__name__}; expected a text or an object of text or id"
            )
        name = text_field(value, ("id",), place) if value.get("id") is not None else None
        score = _score(value, place)
        if name is None:
            return Candidate(_text(value, "text", place), None, score)
        given = _text(value, "text", place) if value.get("text") is not None else None
        if self._documents is None:
            if given is None:
                raise InputError(f"{place}: document {name!r} is named by its id alone; give the corpus")
            return Candidate(given, name, score)
        document = self._documents.get(name)
        if document is None:
            raise InputError(f"{place}: document {name!r} is not in the corpus ({len(self._documents):,} documents)")
        text = document.content
        if given is not None and given != text:
            raise InputError(
                f"{place}: document {name!r} has another text in the corpus ({text[:40]!r} ≠ {given[:40]!r}); leave "
                "the text or the id out"
            )
        return Candidate(text, name, score) if text.strip() else None


def refuse_sentences(path: Path) -> None:
    """Refuse pairs of sentences with scores, where examples with positives are needed.

    Raises:
        InputError: The first line of the file is such a pair.
    """
    for number, record in read_lines(path):
        if _kind(record, f"{path}, line {number}") == "sentences":
            raise InputError(
                f"{path}: pairs of sentences with scores, of which none is said to be a positive; expected lines of "
                "query and positive: leave the pairs of low scores out, and name the fields so"
            )
        break


def _kind(record: Mapping[str, Any], place: str) -> str:
    if "sentence1" in record and "sentence2" in record:
        return "sentences"
    if "query" in record and "document" in record:
        return "judgements" if "score" in record else "pairs"
    if "query" in record and any(name in record for name in ("positive", "positives", "negative", "negatives")):
        return "examples"
    found = ", ".join(map(repr, record)) or "nothing"
    raise InputError(f"{place}: found fields {found}; expected {EXPECTED}")


def _key(record: Mapping[str, Any], dataset: str) -> bytes:
    """Which lines belong together: those of one query and data set."""
    key = json.dumps([record.get("query"), record.get("dataset") or dataset])
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def _several(record: Mapping[str, Any], name: str, place: str) -> Sequence[Any]:
    """The values of `positive` or `positives`, and of their like."""
    one, many = record.get(name), record.get(f"{name}s")
    if one is not None and many is not None:
        raise InputError(f"{place}: found {name!r} and '{name}s'; expected one of them")
    if many is not None and not isinstance(many, list):
        raise InputError(f"{place}: field '{name}s' is {type(many).__name__}; expected a list")
    return [one] if one is not None else many or []


def _text(record: Mapping[str, Any], name: str, place: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        found = f"field {name!r} is {type(value).__name__}" if value is not None else f"it has no {name!r}"
        raise InputError(f"{place}: {found}; expected text")
    if not value.strip():
        raise InputError(f"{place}: field {name!r} is empty; expected text")
    return whole_text(value, f"{place}: field {name!r}")


def _score(record: Mapping[str, Any], place: str) -> float | None:
    value = record.get("score")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{place}: score is {value!r}; expected a number")
    return float(value)
