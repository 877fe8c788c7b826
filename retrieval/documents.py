"""Documents: what one is, how records become documents, and the check that every id is met once."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from indexes.errors import InputError
from retrieval.sorted_runs import SortedRuns

if TYPE_CHECKING:
    from retrieval.corpora import Corpus

ID_FIELDS = ("_id", "id", "docid", "doc_id")
TEXT_FIELDS = ("text", "contents")
TITLE_FIELDS = ("title",)

_BLOCK = 1024
_BLOCK_CHARACTERS = 1 << 22


class Document(NamedTuple):
    """One unit of retrieval."""

    id: str
    text: str
    title: str = ""
    attributes: Mapping[str, Any] | None = None
    """Values to filter by, such as a year; no part of what encoders and analyzers read."""

    @property
    def content(self) -> str:
        """What encoders and analyzers read: title, one space, text (the convention of BEIR and MTEB)."""
        return f"{self.title} {self.text}".strip()


def read_documents(source: "str | Path | Corpus | Iterable[Any]", attributes: Sequence[str] = ()) -> "Corpus":
    """Open a corpus, to be read lazily and as often as it is iterated over; it is never in memory as a whole.

    Records, of whatever format, hold an id (`_id`, `id`, `docid` or `doc_id`), a text (`text` or `contents`) and
    optionally a `title`; other fields are passed over, but for those that are asked for.

    Args:
        source: One of

            - a BEIR folder: `corpus.jsonl`, plain, `.gz` or `.zst`;
            - a file of JSON lines (`.jsonl`, `.ndjson` or `.json-lines`, plain, `.gz` or `.zst`), of Parquet
              (`.parquet`) or of Arrow (`.arrow` or `.feather`, IPC file or IPC stream);
            - a folder of such files of one kind, read in the order of their paths, or one that
              `datasets.Dataset.save_to_disk` wrote;
            - a folder of .txt, .md, .markdown or .rst files (id: the path inside the folder);
            - `hf:PATH_OR_NAME[:CONFIG][@SPLIT]`: what `datasets.load_dataset` streams, from the Hub or from a folder;
              the split is the only one there is, or else `train`;
            - `python-docs[:PACKAGE,…]`: the documentation of the installed Python packages;
            - a `datasets.Dataset` or `IterableDataset`;
            - any Python iterable of what `as_documents` takes; an iterator can be read only once.
        attributes: Fields of the records to keep as attributes of the documents; `metadata.year` is the field `year`
            inside the field `metadata`, and is then called `year`.

    Returns:
        The corpus; its documents come in a deterministic order, and `refuse_repeats` has checked them.

    Raises:
        InputError: The source is missing, of no known kind, or without fields. While it is read: it is empty,
            a field asked for is no column, a record is malformed (file, line from 1 or row from 0, what was found,
            what was expected), or an id occurs twice.
    """
    from retrieval import corpora

    wanted = tuple(attributes)
    called = [name.rpartition(".")[2] for name in wanted]
    if len(set(called)) < len(called):
        twice = next(name for name in called if called.count(name) > 1)
        raise InputError(f"two attributes are called {twice!r} ({', '.join(wanted)}); leave one out")
    if isinstance(source, corpora.Corpus):
        if wanted:
            raise InputError(f"{source.source} is open already; ask for {', '.join(wanted)} when it is opened")
        return source
    if isinstance(source, str | Path):
        return corpora.named_corpus(str(source), wanted)
    return corpora.python_corpus(source, wanted)


def as_documents(items: Iterable[Any], what: str, attributes: Sequence[str] = ()) -> Iterator[Document]:
    """Turn Python values into documents, one after the other; each kind of value has one meaning.

    Args:
        items: `Document`s; mappings with the fields of a record; tuples (id, text) or (id, text, title); or texts
            alone, whose ids are then their positions, from 0. Texts alone do not mix with the others.
        what: What to call the items in a message.
        attributes: Fields of mappings to keep as attributes; documents keep theirs.

    Raises:
        InputError: An item is none of these (its position and type are named), or lacks a field.
    """
    texts_alone = None
    for position, item in enumerate(items):
        place = f"{what}, item {position}"
        if texts_alone is None:
            texts_alone = isinstance(item, str)
        if isinstance(item, str) != texts_alone:
            raise InputError(
                f"{place}: found a {type(item).__name__} after {'texts alone' if texts_alone else 'items with ids'}; "
                "expected texts alone (their ids are their positions) or none of them"
            )
        document = as_document(_record(item, position, place), place, attributes)
        yield document._replace(attributes=item.attributes) if isinstance(item, Document) else document


def as_document(record: Mapping[str, Any], place: str, attributes: Sequence[str] = ()) -> Document:
    """Turn a record (a JSON object, a row of a table) into a document.

    Raises:
        InputError: It lacks an id or a text, or one of its fields is not text.
    """
    return Document(
        id=text_field(record, ID_FIELDS, place),
        text=text_field(record, TEXT_FIELDS, place),
        title=text_field(record, TITLE_FIELDS, place, default=""),
        attributes={name.rpartition(".")[2]: _inside(record, name) for name in attributes} or None,
    )


def _inside(record: Any, name: str) -> Any:
    """A field of a record, or of a record inside it; None where there is none."""
    if name in record:
        return record[name]
    for part in name.split("."):
        record = record.get(part) if isinstance(record, Mapping) else None
    return record


def _record(item: Any, position: int, place: str) -> Mapping[str, Any]:
    if isinstance(item, Mapping):
        return item
    if isinstance(item, str):
        return {"id": position, "text": item}
    if isinstance(item, Document):
        return item._asdict()
    if type(item) is tuple and len(item) in (2, 3):
        return dict(zip(Document._fields, item, strict=False))
    size = f" of {len(item)}" if isinstance(item, tuple) else ""
    raise InputError(
        f"{place}: found a {type(item).__name__}{size}; "
        "expected a Document, a mapping with id and text, a tuple (id, text) or (id, text, title), or a text"
    )


def refuse_repeats(documents: Iterable[Document], source: str = "the corpus") -> Iterator[Document]:
    """Pass documents on, refusing ids that occur twice or hold white space, and a corpus without documents.

    Run files are columns separated by white space, so an id with a space in it could never be evaluated.

    Documents are read ahead in blocks (of 1 at first, later of up to 1,024 or some 4 million characters) and checked
    together. Those before a bad one, or before an error of the source, still come out first. Of an id only a 16-byte
    digest is kept.
    """
    seen, stream, size, found = _Digests(), iter(documents), 1, False
    while True:
        block, error = _read_block(stream, size, source)
        repeat = seen.add([document.id for document in block])
        yield from block[:repeat]
        if repeat is not None:
            raise InputError(f"{source}: id {block[repeat].id!r} occurs twice; every document needs an id of its own")
        if error is not None:
            raise error
        if not block:
            break
        size, found = min(2 * size, _BLOCK), True
    if not found:
        raise InputError(f"{source}: no documents found; expected at least one")


def _read_block(stream: Iterator[Document], size: int, source: str) -> tuple[list[Document], Exception | None]:
    """The next documents, and the error that came instead of one more."""
    block: list[Document] = []
    characters = 0
    try:
        for document in stream:
            if not isinstance(document, Document):
                raise InputError(f"{source}: found a {type(document).__name__}; expected Document(id, text)")
            if document.id.split() != [document.id]:
                raise InputError(f"{source}: id {document.id!r} is empty or holds white space; ids are single words")
            block.append(document)
            characters += len(document.text)
            if len(block) == size or characters > _BLOCK_CHARACTERS:
                break
    except Exception as error:
        return block, error
    return block, None


class _Digests:
    """Which ids have occurred, in 16 bytes each (BLAKE2b; two ids share a digest with a chance of 2^-128)."""

    def __init__(self) -> None:
        self._runs = SortedRuns()

    def add(self, ids: list[str]) -> int | None:
        """Add ids; if one occurred before, add none and return the position of the first that did."""
        if not ids:
            return None
        digests = [hashlib.blake2b(one.encode("utf-8", "surrogatepass"), digest_size=16).digest() for one in ids]
        new = np.sort(np.frombuffer(b"".join(digests), dtype="S16"))
        if (new[1:] == new[:-1]).any() or self._runs.hold(new).any():
            return self._first_repeat(digests)
        self._runs.add(new)
        return None

    def _first_repeat(self, digests: list[bytes]) -> int:
        known = self._runs.hold(np.array(digests, dtype="S16"))
        before: set[bytes] = set()
        for position, digest in enumerate(digests):
            if known[position] or digest in before:
                break
            before.add(digest)
        return position


def corpus_fingerprint(documents: Iterable[Document]) -> str:
    """SHA-256 over the documents in their order, as 64 hex digits."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document_bytes(document))
    return digest.hexdigest()


def document_bytes(document: Document) -> bytes:
    """What a corpus fingerprint reads of one document: no two of different texts, titles or ids give the same bytes.

    Attributes are left out: vectors do not depend on them.
    """
    return json.dumps(document[:3], ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def text_field(record: Mapping[str, Any], names: tuple[str, ...], place: str, default: str | None = None) -> str:
    """Take the first of several fields as text; numbers become text, null counts as absent.

    Raises:
        InputError: The field is absent (and has no default) or is neither text nor a whole number.
    """
    name = next((name for name in names if record.get(name) is not None), None)
    if name is None:
        if default is not None:
            return default
        nothing = next((name for name in names if name in record), None)
        if nothing:
            raise InputError(f"{place}: field {nothing!r} is null; expected text")
        found = ", ".join(map(repr, record)) or "nothing"
        raise InputError(f"{place}: found fields {found}; expected {' or '.join(map(repr, names))}")
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{place}: field {name!r} is {type(value).__name__}; expected text")
    return whole_text(str(value), f"{place}: field {name!r}")


def whole_text(text: str, what: str) -> str:
    """Refuse half characters (lone surrogates), which no tokenizer and no file takes.

    Raises:
        InputError: The text holds one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} holds half a character (\\u{ord(text[error.start]):04x}); expected Unicode") from None
    return text
