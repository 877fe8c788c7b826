"""Test collections: corpus, queries and judgements by one loader, from whatever source, and what is odd about them."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.known_sets import Known, differing_known, identical_known
from evaluation.profiles import Profile, find_profile, overrule
from evaluation.qrels import Qrels, gather_qrels
from evaluation.sources import Query, Source, data_file, open_source
from indexes.checksums import fingerprint
from indexes.errors import InputError
from indexes.manifest import new_folder, seal
from retrieval.console import OnProgress
from retrieval.corpora import Corpus
from retrieval.documents import Document, document_bytes, read_documents, refuse_repeats

__all__ = ["Profile", "TestSet", "fill_collection", "load_dataset", "to_beir_dir", "write_collection", "write_lines"]

_DOCUMENTS_BETWEEN_REPORTS = 1000


@dataclass(frozen=True)
class TestSet:
    """The queries and judgements of one split of a test collection, and the way to its corpus."""

    __test__ = False  # pytest would take the name for a class of tests

    name: str
    path: Path
    """The folder, or the spec of a collection that another library holds."""
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
    size: int | None = None
    """How many documents the corpus has; None: it was not read."""
    identical_to: str | None = None
    """The known test collection that this is, to the last character, if it is one: "BEIR scifact (test)"."""
    open_corpus: Callable[[], Corpus] | None = field(default=None, repr=False, compare=False)
    """Opens the corpus; None: the corpus.jsonl of the folder."""

    def documents(self) -> Iterable[Document]:
        """Read the corpus, lazily, from its start."""
        return self.open_corpus() if self.open_corpus else read_documents(data_file(self.path, "corpus"))


def load_dataset(
    spec: str | Path,
    split: str | None = None,
    *,
    drop_self_matches: bool | None = None,
    title_separator: str | None = " ",
    on_progress: OnProgress | None = None,
) -> TestSet:
    """Read one split of a test collection.

    The corpus is read through once (for its fingerprint and to check the judgements against it) and not kept;
    queries and judgements are. The same texts, ids and grades in the same order have the same fingerprint from
    whatever source.

    Args:
        spec: One of

            - a BEIR folder: `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv` (each may end in `.gz` or `.zst`;
              the header line may be missing), or the name of one in `$RETROKIT_DATA`;
            - `trec:FOLDER` or `trec:docs=PATH,topics=PATH,qrels=PATH[,field=desc]`, see `open_trec`;
            - `hf:ORG/NAME[:CONFIG][@REVISION]` from the hub or its cache, or `hf:FOLDER[:CONFIG]`, a local clone;
            - `irds:ID`, through ir_datasets; `mteb:TASK[/SUBSET]`, through MTEB (extra `eval`);
            - `beir:NAME`: BEIR's archive, downloaded once into retrokit's cache and checked;
            - `longembed:[FOLDER/]TASK` and `loco:[FOLDER/]TASK`: long documents, from the hub or a local clone.

            Only the last five, and `hf:` without a folder, ever use the network.
        split: Which qrels; None: the one that published figures are of (`dev` of MS MARCO, `test` of all others), or
            the only one there is.
        drop_self_matches: Overrules the dataset's own rule: by its name where that is known; otherwise they are dropped
            if ids of queries and documents collide, always with the same text, and never judged relevant.
        title_separator: What stands between title and text; None leaves titles out. BEIR and MTEB join by a space;
            anything else makes another corpus, with another fingerprint.
        on_progress: Called with the number of documents read.

    Raises:
        InputError: A file is missing or malformed, an id occurs twice, a judgement occurs twice with
            different grades, no query of the split is there, or the split is unknown (the message names the
            splits there are).
    """
    source = open_source(spec, split)
    every_query = _read_queries(source.queries())
    place = str(source.path)
    qrels, notices = gather_qrels(source.judgements(every_query), every_query, place, source.expected)
    queries = {query: every_query[query] for query in qrels}
    open_corpus = source.documents if title_separator == " " else partial(_retitled, source, title_separator)
    corpus = _survey(open_corpus(), queries, qrels, on_progress)
    profile = _settle(source, corpus, drop_self_matches, title_separator)
    digests = {"corpus": corpus.fingerprint, "queries": _digest(queries), "qrels": _digest(qrels)}
    contents = {**digests, "corpus": corpus.contents}
    known = identical_known(contents)
    return TestSet(
        source.name,
        source.path,
        source.split,
        queries,
        qrels,
        profile,
        fingerprint(digests),
        corpus.fingerprint,
        (
            *notices,
            *_corpus_notices(corpus, drop=profile.drop_self_matches),
            *_text_notices(corpus, queries, qrels),
            *_profile_notices(profile),
            *source.notices,
            *_known_notices(source, known, contents, corpus),
        ),
        corpus.size,
        known.label if known else None,
        open_corpus,
    )


def _read_queries(found: Iterable[Query]) -> dict[str, str]:
    queries: dict[str, str] = {}
    for place, query, text in found:
        if query in queries:
            raise InputError(f"{place}: query id {query!r} occurs twice; every query needs an id of its own")
        if query.split() != [query]:
            raise InputError(f"{place}: query id {query!r} is empty or holds white space; ids are single words")
        queries[query] = text
    return queries


def _retitled(source: Source, separator: str | None) -> Corpus:
    """The corpus with its titles joined to the texts by something else than a space, or left out."""
    inner = source.documents()
    return Corpus(inner.source, lambda _: (_retitle(one, separator) for one in inner))


def _retitle(document: Document, separator: str | None) -> Document:
    joined = document.text if separator is None or not document.title else document.title + separator + document.text
    return document._replace(title="", text=joined)


class _Survey(NamedTuple):
    fingerprint: str
    contents: str  # the same, whatever the order of the documents
    size: int
    empty: int  # documents without text
    unknown: int  # judgements whose document the corpus lacks
    collisions: int  # queries whose id is a document's id too
    equal_texts: int  # those of them whose text is the document's
    judged: int  # those of them for which that document is judged relevant


def _survey(
    documents: Iterable[Document], queries: Mapping[str, str], qrels: Qrels, on_progress: OnProgress | None
) -> _Survey:
    """Read the corpus once, keeping only the ids that queries and judgements name."""
    named = {document for grades in qrels.values() for document in grades}
    found: set[str] = set()
    same: list[tuple[str, bool]] = []
    digest = hashlib.sha256()
    total, size, empty = 0, 0, 0
    for size, document in enumerate(documents, start=1):
        line = document_bytes(document)
        digest.update(line)
        # A sum does not depend on the order (AdHash: Bellare & Micciancio, EUROCRYPT 1997).
        total += int.from_bytes(hashlib.sha256(line).digest())
        empty += not document.content
        if document.id in named:
            found.add(document.id)
        if document.id in queries:
            same.append((document.id, queries[document.id].strip() in (document.text.strip(), document.content)))
        if on_progress is not None and size % _DOCUMENTS_BETWEEN_REPORTS == 0:
            on_progress(size, None)
    return _Survey(
        fingerprint=digest.hexdigest(),
        contents=f"{total % 2**256:064x}",
        size=size,
        empty=empty,
        unknown=sum(document not in found for grades in qrels.values() for document in grades),
        collisions=len(same),
        equal_texts=sum(equal for _, equal in same),
        judged=sum(qrels[query].get(query, 0) > 0 for query, _ in same),
    )


def _settle(source: Source, corpus: _Survey, drop: bool | None, separator: str | None) -> Profile:
    """The rules of the dataset, or what its data suggest where it is unknown, and what was set by hand."""
    rules = source.profile or find_profile(source.name)
    if rules is None:
        queries_are_documents = 0 < corpus.collisions == corpus.equal_texts and not corpus.judged
        rules = Profile(drop_self_matches=queries_are_documents)
    by_hand = {"title_separator": separator, **({} if drop is None else {"drop_self_matches": drop})}
    return overrule(rules, by_hand)


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


def _text_notices(corpus: _Survey, queries: Mapping[str, str], qrels: Qrels) -> list[str]:
    notices = []
    if corpus.empty:
        notices.append(f"{corpus.empty:,} of {corpus.size:,} documents have no text; they are kept.")
    if empty := sum(not text.strip() for text in queries.values()):
        notices.append(f"{empty:,} of {len(queries):,} queries have no text; they are kept.")
    if fruitless := sum(all(grade <= 0 for grade in grades.values()) for grades in qrels.values()):
        notices.append(
            f"{fruitless:,} of {len(qrels):,} queries have no relevant document; they count 0 in every mean."
        )
    return notices


def _profile_notices(profile: Profile) -> list[str]:
    said = [
        f"{name} was set to {getattr(profile, name)!r} by hand, against the dataset's own rule."
        for name in profile.overruled
    ]
    return [*([profile.note] if profile.note else []), *said]


def _known_notices(source: Source, known: Known | None, contents: Mapping[str, str], corpus: _Survey) -> list[str]:
    if known is not None:
        another_order = known.corpus_fingerprint != corpus.fingerprint
        return [f"The documents are those of {known.label}, in another order."] if another_order else []
    other = differing_known(source.name, source.split)
    if other is None:
        return []
    parts = [name for name, digest in contents.items() if getattr(other, name) != digest]
    differing = f"This differs from the known {other.label} in its {' and '.join(parts)}"
    return [f"{differing}: results are not comparable with figures published for it."]


def _digest(value: Any) -> str:
    # Escaped to ASCII: texts may hold lone surrogates, which UTF-8 cannot.
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()


def to_beir_dir(
    testset: TestSet, folder: str | Path, *, query_prefix: str | None = None, overwrite: bool = False
) -> None:
    """Write a test collection as a BEIR folder from which BEIR's own code measures the same.

    BEIR always drops the hit whose id is the query's. Where the profile keeps such hits, query ids get a prefix, so
    that no query has a document's id.

    Args:
        testset: From `load_dataset`.
        folder: To be made.
        query_prefix: None: nothing where self-matches are dropped, and `q` where they are kept.
        overwrite: Replace an existing folder.

    Raises:
        InputError: The folder exists and may not be overwritten, or a prefixed query id is a document's id.
    """
    prefix = query_prefix if query_prefix is not None else "" if testset.profile.drop_self_matches else "q"
    queries = {prefix + query: text for query, text in testset.queries.items()}
    qrels = {prefix + query: grades for query, grades in testset.qrels.items()}
    refused = () if testset.profile.drop_self_matches else queries
    write_collection(
        folder, _without_ids(testset.documents(), refused), queries, {testset.split: qrels}, overwrite=overwrite
    )


def _without_ids(documents: Iterable[Document], refused: Mapping[str, str] | tuple[()]) -> Iterable[Document]:
    for document in documents:
        if document.id in refused:
            raise InputError(f"query id {document.id!r} would be a document's id too; expected another query_prefix")
        yield document


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
