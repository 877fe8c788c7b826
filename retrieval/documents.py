"""Documents and their one reader: BEIR folders, JSON lines, folders of texts, documentation of Python packages."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from indexes.errors import InputError

TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".rst")


class Document(NamedTuple):
    """One unit of retrieval."""

    id: str
    text: str
    title: str = ""

    @property
    def content(self) -> str:
        """What encoders and analyzers read: title, one space, text (the convention of BEIR and MTEB)."""
        return f"{self.title} {self.text}".strip()


def read_documents(source: str | Path) -> Iterator[Document]:
    """Read a corpus lazily.

    Args:
        source: A BEIR folder (with `corpus.jsonl` or `corpus.jsonl.gz`); a `.jsonl` or `.jsonl.gz` file whose lines
            hold `_id` or `id`, `text` and optionally `title`; a folder of .txt, .md, .markdown or .rst files
            (id: the path inside the folder); or `python-docs[:PACKAGE,…]`, the documentation of the installed
            Python packages.

    Yields:
        Documents in a deterministic order.

    Raises:
        InputError: The source is missing or empty, a line is malformed (file, line number, what was found, what was
            expected), or an id occurs twice.
    """
    if str(source).partition(":")[0] == "python-docs":
        from retrieval.python_docs import read_python_docs

        documents: Iterable[Document] = (item.document for item in read_python_docs(str(source)))
    else:
        documents = _read_path(Path(source))
    return refuse_repeats(documents, str(source))


def refuse_repeats(documents: Iterable[Document], source: str = "the corpus") -> Iterator[Document]:
    """Pass documents on, refusing ids that occur twice or hold white space, and a corpus without documents.

    Run files are columns separated by white space, so an id with a space in it could never be evaluated.
    """
    seen: set[str] = set()
    for document in documents:
        if not isinstance(document, Document):
            raise InputError(f"{source}: found a {type(document).__name__}; expected Document(id, text)")
        if document.id in seen:
            raise InputError(f"{source}: id {document.id!r} occurs twice; every document needs an id of its own")
        if not document.id or any(character.isspace() for character in document.id):
            raise InputError(f"{source}: id {document.id!r} is empty or holds white space; ids are single words")
        seen.add(document.id)
        yield document
    if not seen:
        raise InputError(f"{source}: no documents found; expected at least one")


def corpus_fingerprint(documents: Iterable[Document]) -> str:
    """SHA-256 over the documents in their order, as 64 hex digits."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document_bytes(document))
    return digest.hexdigest()


def document_bytes(document: Document) -> bytes:
    """What a corpus fingerprint reads of one document: no two different documents give the same bytes."""
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read JSON lines (plain or gzip) as (line number, object); blank lines are passed over.

    Raises:
        InputError: A line is not a JSON object, or the file is not readable as UTF-8 text.
    """
    for number, line in text_lines(path, "JSON lines"):
        yield number, _parse(line, f"{path}, line {number}")


def text_lines(path: Path, expected: str) -> Iterator[tuple[int, str]]:
    """Read a text file (plain or gzip) as (line number, line); blank lines are passed over.

    Args:
        path: The file; gzip if its name ends with `.gz`.
        expected: What it should hold, for the message.

    Raises:
        InputError: It is missing, or not readable as UTF-8 text.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected {expected}") from None
    except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile, IsADirectoryError) as error:
        raise InputError(f"{path}, after line {number}: not readable as text ({error}); expected {expected}") from None


def text_field(record: dict[str, Any], names: tuple[str, ...], place: str, default: str | None = None) -> str:
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


def _parse(line: str, place: str) -> dict[str, Any]:
    expected = "expected one JSON object a line"
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        found = line.strip()
        raise InputError(f"{place}: not JSON ({error.msg}): {found[:60]!r}; {expected}") from None
    if not isinstance(record, dict):
        raise InputError(f"{place}: found a {type(record).__name__}; {expected}")
    return record


def _read_path(path: Path) -> Iterator[Document]:
    if path.is_dir():
        beir = next((path / name for name in ("corpus.jsonl", "corpus.jsonl.gz") if (path / name).is_file()), None)
        return _read_jsonl(beir) if beir else _read_texts(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected a corpus (JSON lines, a folder, python-docs)")
    if path.name.endswith((".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")):
        return _read_jsonl(path)
    raise InputError(f"{path}: unknown kind of corpus; expected .jsonl, .jsonl.gz, a folder or python-docs")


def _read_jsonl(path: Path) -> Iterator[Document]:
    for number, record in read_lines(path):
        place = f"{path}, line {number}"
        yield Document(
            id=text_field(record, ("_id", "id"), place),
            text=text_field(record, ("text",), place),
            title=text_field(record, ("title",), place, default=""),
        )


def _read_texts(folder: Path) -> Iterator[Document]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in TEXT_SUFFIXES and path.is_file())
    if not paths:
        raise InputError(
            f"{folder}: no corpus.jsonl and no {', '.join(TEXT_SUFFIXES)} files; expected one or the other"
        )
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text (byte {error.start}); expected UTF-8") from None
        identifier = whole_text(path.relative_to(folder).as_posix(), f"{folder}: the name of a file")
        yield Document(id="_".join(identifier.split()), text=text.strip())
