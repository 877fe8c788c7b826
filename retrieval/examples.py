"""Training examples of retrievers and rerankers: one form, read from several kinds of files and written to one."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from indexes.errors import InputError
from retrieval.documents import Document
from retrieval.lines import whole_file

SPLIT = "train"
"""The judgements of a BEIR folder that are read where none are named."""

OnNote = Callable[[str], None]

EXPECTED = (
    'lines such as {"query": "a question", "positive": "a text"}, {"query": …, "document": "its id"}, '
    '{"query": …, "document": …, "score": 1} or {"sentence1": …, "sentence2": …, "score": 4.5}'
)


class Candidate(NamedTuple):
    """A document beside a query."""

    text: str
    id: str | None = None
    score: float | None = None
    """A teacher's, or a graded judgement."""


class Example(NamedTuple):
    """One training example: a query, what answers it, and what does not."""

    query: str
    positives: tuple[Candidate, ...]
    negatives: tuple[Candidate, ...] = ()
    dataset: str = ""
    """What it belongs to, where several are mixed."""


def read_examples(
    path: str | Path,
    documents: Mapping[str, Document] | None = None,
    *,
    dataset: str = "",
    on_note: OnNote | None = None,
) -> Iterator[Example]:
    """Read training examples; a query that comes again is merged with its earlier lines.

    Args:
        path: JSON lines (plain, `.gz` or `.zst`) of one of these kinds, or a folder. X is a text, or an object of
            `text` or `id` (of a document) or both, and perhaps a `score`.

            - `{"query", "positive": X or "positives": [X …], "negative": X or "negatives": [X …], "dataset"}`, the last
              two being optional;
            - `{"query", "document"}`: a document's id, or X as an object: pairs;
            - `{"query", "document", "score"}`: graded judgements, a score above 0 being a positive's;
            - `{"sentence1", "sentence2", "score"}`: pairs of sentences, whatever their score: each is an example of its
              own, whose positive keeps the score, for losses that learn scores;
            - `FOLDER` or `FOLDER#SPLIT`: a BEIR folder, of whose `corpus.jsonl` only the judged documents are kept in
              memory; its split is `train` if none is named.
        documents: What ids stand for, by id; None: a folder's own corpus, or none.
        dataset: What examples belong to that do not say it themselves.
        on_note: Told once, at the end, what was merged or left out, and how often.

    Yields:
        Examples in the order of the file; a merged one comes where its query came last.

    Raises:
        InputError: While it is read, with file and line: a malformed line, an empty text, a score that is no number, an
            unknown id, a text that is not its document's, an example without positives, a document that is both a
            positive and a negative of a query or has two scores. Or there is no example.
    """
    place, split = place_of(path)
    counts: Counter[str] = Counter()
    found = False
    for lines in _groups(place, split, documents, dataset, counts):
        example = joined(lines, counts)
        if example is None:
            counts["queries have no positive and were left out"] += 1
        else:
            found = True
            yield example
    if on_note is not None:
        for what, count in counts.items():
            on_note(f"{path}: {count:,} {what}")
    if not found:
        raise InputError(f"{path}: no examples found; expected {EXPECTED}")


def write_examples(path: str | Path, examples: Iterable[Example]) -> int:
    """Write examples as JSON lines, which `read_examples` reads; the file is there whole or not at all.

    Returns:
        How many there were.

    Raises:
        InputError: A score is no number, or the path cannot be a file of lines. What was there is as it was.
    """
    count = 0
    with whole_file(Path(path)) as file:
        for example in examples:
            file.write(example_line(example))
            count += 1
    return count


def example_line(example: Example, *, ids_only: bool = False, missing: int = 0) -> str:
    """An example as a line of JSON.

    Args:
        example: The example.
        ids_only: Leave out the texts of candidates that have an id.
        missing: How many negatives it lacks, which the line then says as `negatives_missing`.

    Raises:
        InputError: A score is no number.
    """
    record: dict[str, Any] = {"query": example.query}
    for name, candidates in (("positives", example.positives), ("negatives", example.negatives)):
        if candidates:
            record[name] = [_plain(one, ids_only=ids_only) for one in candidates]
    if missing:
        record["negatives_missing"] = missing
    if example.dataset:
        record["dataset"] = example.dataset
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        raise InputError(f"a score of query {example.query[:60]!r} is no number; leave it out") from None


def examples_digest(path: str | Path) -> str:
    """SHA-256 of the bytes that decide what queries and judgements `read_examples` finds, without a corpus's."""
    place, split = place_of(path)
    files = [place]
    if place.is_dir():
        from retrieval.judged import judgements_file, queries_file

        files = [queries_file(place), judgements_file(place, split)]
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as raw:
                digest.update(hashlib.file_digest(raw, "sha256").digest())
        except FileNotFoundError:
            raise InputError(f"{file}: no such file; expected {EXPECTED}") from None
    return digest.hexdigest()


class Line(NamedTuple):
    """What a line or a judgement says of a query."""

    place: str
    """Where it stands, for messages."""
    example: Example


def joined(lines: Sequence[Line], counts: Counter[str]) -> Example | None:
    """One example of all that is said of one query; None if nothing answers it.

    Two candidates are the same document if their ids are the same, or their texts where one has no id.

    Args:
        lines: At least one, all of one query.
        counts: Where to count what is left out.

    Raises:
        InputError: A document is both a positive and a negative, or has two scores.
    """
    first = lines[0].example
    positives, negatives = _Candidates(first.query), _Candidates(first.query)
    for place, example in lines:
        for one in example.positives:
            positives.add(one, place, counts)
    for place, example in lines:
        for one in example.negatives:
            same, twin = positives.known(one)
            if same:
                raise InputError(
                    f"{place}: {named(one)} is both a positive and a negative of query {first.query[:60]!r}; expected "
                    "one of them"
                )
            if twin:
                counts["negatives with the text of a positive were left out"] += 1
            else:
                negatives.add(one, place, counts)
    if not positives.all:
        return None
    return first._replace(positives=tuple(positives.all), negatives=tuple(negatives.all))


class _Candidates:
    """Candidates of one query, each once."""

    def __init__(self, query: str) -> None:
        self.all: list[Candidate] = []
        self._query = query
        self._by_id: dict[str, Candidate] = {}
        self._by_text: dict[str, Candidate] = {}

    def known(self, one: Candidate) -> tuple[Candidate | None, Candidate | None]:
        """The same document if it is here; and any document of the same text."""
        twin = self._by_text.get(one.text)
        if one.id is not None and one.id in self._by_id:
            return self._by_id[one.id], twin
        return (twin if twin and (one.id is None or twin.id is None) else None), twin

    def add(self, one: Candidate, place: str, counts: Counter[str]) -> None:
        """Add a candidate, or count that it is here already."""
        same, _ = self.known(one)
        if same is None:
            self.all.append(one)
            self._by_text.setdefault(one.text, one)
            if one.id is not None:
                self._by_id[one.id] = one
        elif same.score != one.score:
            raise InputError(
                f"{place}: {named(one)} of query {self._query[:60]!r} has score {one.score} here and {same.score} "
                "before; expected one score"
            )
        else:
            counts["candidates came again and were counted once"] += 1


def _groups(
    place: Path, split: str | None, documents: Mapping[str, Document] | None, dataset: str, counts: Counter[str]
) -> Iterator[list[Line]]:
    if place.is_dir():
        from retrieval.judged import judged_queries

        return judged_queries(place, split, documents, dataset, counts)
    from retrieval.example_lines import ExampleLines

    return ExampleLines(documents, dataset, counts).read(place)


def place_of(path: str | Path) -> tuple[Path, str | None]:
    """A file or folder, and the split that is named behind a `#`."""
    place = Path(path)
    if place.exists() or "#" not in str(path):
        return place, None
    folder, _, split = str(path).rpartition("#")
    return Path(folder), split


def _plain(one: Candidate, *, ids_only: bool) -> str | dict[str, Any]:
    named = {} if one.id is None else {"id": one.id}
    texts = {} if ids_only and one.id is not None else {"text": one.text}
    scores = {} if one.score is None else {"score": one.score}
    return {**named, **texts, **scores} if named or scores else one.text


def named(one: Candidate) -> str:
    """What to call a candidate in a message."""
    return f"document {one.id!r}" if one.id is not None else f"the text {' '.join(one.text.split())[:60]!r}"
