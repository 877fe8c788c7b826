"""Test collections in BEIR layout: corpus, queries, judgements, and what is special about a dataset."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.qrels import Qrels, qrels_file, read_qrels
from indexes.checksums import fingerprint
from indexes.errors import InputError
from indexes.manifest import new_folder, seal
from retrieval.documents import (
    Document,
    document_bytes,
    read_documents,
    refuse_repeats,
    text_field,
)
from retrieval.lines import read_lines

_DROP_SELF_MATCHES = ("arguana", "quora", "fiqa", "fever", "msmarco", "trec-dl")


@dataclass(frozen=True)
class Profile:
    """What is special about a dataset."""

    drop_self_matches: bool = False
    """Whether a hit whose id is the query's id is taken out before measuring: right where the queries are
    documents of the corpus (ArguAna, Quora), wrong where both merely count from 1 (Cranfield, CISI)."""


@dataclass(frozen=True)
class TestSet:
    """The queries and judgements of one split of a test collection, and the way to its corpus."""

    __test__ = False  # pytest would take the name for a class of tests

    name: str
    path: Path
    split: str
    queries: dict[str, str] = field(repr=False)
    """Query id to text; only queries that have judgements in this split."""
    qrels: Qrels = field(repr=False)
    profile: Profile
    fingerprint: str
    """SHA-256 over the corpus and this split's queries and qrels."""
    corpus_fingerprint: str
    """SHA-256 over the corpus in its order: all splits share it."""
    notices: tuple[str, ...] = ()
    """Sentences about what a reader of the results should know of the data."""

    def documents(self) -> Iterable[Document]:
        """Read the corpus, lazily, from its start."""
        return read_documents(_data_file(self.path, "corpus"))


def load_dataset(spec: str | Path, split: str = "test", *, drop_self_matches: bool | None = None) -> TestSet:
    """Read one split of a test collection.

    The corpus is read through once (for its fingerprint and to check the judgements against it) and not kept.

    Args:
        spec: A BEIR folder: `corpus.jsonl`, `queries.jsonl` (each may end in `.gz`) and `qrels/<split>.tsv`,
            whose header line may be missing.
        split: Which qrels.
        drop_self_matches: Overrules the profile that goes with the dataset's name.

    Raises:
        InputError: A file is missing or malformed, an id occurs twice, a judgement occurs twice with
            different grades, no query of the split is there, or the split is unknown (the message names the
            splits there are).
    """
    path = Path(spec)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; expected a BEIR folder (corpus.jsonl, queries.jsonl, qrels/)")
    judgements = qrels_file(path, split)
    every_query = _read_queries(_data_file(path, "queries"))
    qrels, notices = read_qrels(judgements, every_query)
    queries = {query: every_query[query] for query in qrels}
    corpus = _survey(read_documents(_data_file(path, "corpus")), queries, qrels)
    name = path.resolve().name
    drop = _drops_self_matches(name) if drop_self_matches is None else drop_self_matches
    notices += _corpus_notices(corpus, drop=drop)
    digests = {"corpus": corpus.fingerprint, "queries": _digest(queries), "qrels": _digest(qrels)}
    return TestSet(
        name,
        path,
        split,
        queries,
        qrels,
        Profile(drop),
        fingerprint(digests),
        corpus.fingerprint,
        tuple(notices),
    )


def _data_file(folder: Path, name: str) -> Path:
    paths = [folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise InputError(f"{folder}: no {name}.jsonl and no {name}.jsonl.gz; expected one of them in a BEIR folder")
    return found


def _read_queries(path: Path) -> dict[str, str]:
    queries: dict[str, str] = {}
    for number, record in read_lines(path):
        place = f"{path}, line {number}"
        query = text_field(record, ("_id", "id"), place)
        if query in queries:
            raise InputError(f"{place}: query id {query!r} occurs twice; every query needs an id of its own")
        if query.split() != [query]:
            raise InputError(f"{place}: query id {query!r} is empty or holds white space; ids are single words")
        queries[query] = text_field(record, ("text",), place)
    return queries


class _Survey(NamedTuple):
    fingerprint: str
    unknown: int  # judgements whose document the corpus lacks
    collisions: int  # queries whose id is a document's id too
    equal_texts: int  # those of them whose text is the document's
    judged: int  # those of them for which that document is judged relevant


def _survey(documents: Iterable[Document], queries: Mapping[str, str], qrels: Qrels) -> _Survey:
    """Read the corpus once, keeping only the ids that queries and judgements name."""
    named = {document for grades in qrels.values() for document in grades}
    found: set[str] = set()
    same: list[tuple[str, bool]] = []
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document_bytes(document))
        if document.id in named:
            found.add(document.id)
        if document.id in queries:
            same.append((document.id, queries[document.id].strip() in (document.text.strip(), document.content)))
    return _Survey(
        fingerprint=digest.hexdigest(),
        unknown=sum(document not in found for grades in qrels.values() for document in grades),
        collisions=len(same),
        equal_texts=sum(equal for _, equal in same),
        judged=sum(qrels[query].get(query, 0) > 0 for query, _ in same),
    )


def _corpus_notices(corpus: _Survey, *, drop: bool) -> list[str]:
    notices = []
    if corpus.unknown:
        notices.append(
            f"{corpus.unknown:,} judgements are of documents that the corpus lacks; "
            "they count in the ideal ranking and as not found."
        )
    if corpus.collisions:
        done = "are dropped" if drop else "are kept"
        notices.append(
            f"{corpus.collisions:,} query ids are document ids too: {corpus.equal_texts:,} with the same "
            f"text, {corpus.judged:,} judged relevant to themselves; such hits {done}."
        )
    return notices


def _drops_self_matches(name: str) -> bool:
    plain = name.lower().replace("_", "-")
    return plain in _DROP_SELF_MATCHES or plain.startswith("trec-dl")


def _digest(value: Any) -> str:
    # Escaped to ASCII: texts may hold lone surrogates, which UTF-8 cannot.
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()


def write_collection(
    folder: str | Path,
    documents: Iterable[Document],
    queries: Mapping[str, str],
    qrels_by_split: Mapping[str, Mapping[str, Mapping[str, int]]],
    *,
    overwrite: bool = False,
) -> None:
    """Write a test collection in BEIR layout, wholly or not at all.

    Raises:
        InputError: The folder exists and may not be overwritten, an id is unusable, or a split judges an
            unknown query.
    """
    with new_folder(Path(folder), overwrite=overwrite) as new:
        fill_collection(new, documents, queries, qrels_by_split)
        seal(new, "test collection", {"splits": list(qrels_by_split)})


def fill_collection(
    folder: Path,
    documents: Iterable[Document],
    queries: Mapping[str, str],
    qrels_by_split: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> None:
    """Write the files of a test collection into an empty folder (for callers that add files of their own)."""
    write_lines(
        folder / "corpus.jsonl",
        ({"_id": one.id, "title": one.title, "text": one.text} for one in refuse_repeats(documents)),
    )
    write_lines(folder / "queries.jsonl", ({"_id": query, "text": text} for query, text in queries.items()))
    (folder / "qrels").mkdir()
    for split, qrels in qrels_by_split.items():
        unknown = next((query for query in qrels if query not in queries), None)
        if unknown is not None:
            raise InputError(f"split {split!r} judges query {unknown!r}, which is not among the queries; add its text")
        rows = [f"{query}\t{one}\t{grade}\n" for query, grades in qrels.items() for one, grade in grades.items()]
        (folder / "qrels" / f"{split}.tsv").write_text(
            "query-id\tcorpus-id\tscore\n" + "".join(rows), encoding="utf-8", newline="\n"
        )


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
