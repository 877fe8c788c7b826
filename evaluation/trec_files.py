"""Test collections in TREC's files: documents in SGML or JSON lines, topics, qrels of four columns.

The files of a folder (each may be `.gz` or `.zst`):

    documents.trec (or docs.…; .sgml, .xml, .txt; .jsonl), or a folder documents/ (or docs/) of such files
    topics.trec (.txt, .xml: `<top>`; .tsv: id, tab, text; .jsonl), or topics.SPLIT.… where splits have their own
    qrels.txt (.trec, .qrels), or qrels.SPLIT.…: query, iteration, document, grade, separated by white space
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html.entities import html5
from pathlib import Path

from evaluation.profiles import default_split
from evaluation.qrels import Judgement
from evaluation.records import PACKED, read_records
from evaluation.sources import QUERY_IDS, QUERY_TEXTS, Query, Source, choose_split
from evaluation.testsets import TestSet
from indexes.errors import InputError
from indexes.manifest import new_folder, seal
from retrieval.corpora import LINES_SUFFIXES, Corpus
from retrieval.documents import Document, as_document, text_field
from retrieval.lines import Meter, text_lines

_DOCUMENTS = ("documents", "docs")
_TITLES = ("TITLE", "HEADLINE", "HEAD", "TTL")
_ABOUT = ("readme", "license", "manifest")
_DOCUMENT_FILE = "TREC documents: <DOC>, <DOCNO>, <TEXT>, </DOC>"
_COLUMNS = "four columns separated by white space: query, iteration, document, whole-number grade"
_FIELDS = ("title", "desc", "narr")

_OPEN = re.compile(r"<DOC(?:\s[^>]*)?>", re.IGNORECASE)
_CLOSE = re.compile(r"</DOC\s*>", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][\w.-]*(?:\s[^<>]*)?/?>")
_REFERENCE = re.compile(r"&(#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]*);")
_TOPIC_TAG = re.compile(r"<(num|title|desc|narr)\b[^>]*>", re.IGNORECASE)
_LABEL = re.compile(r"\s*(?:Number|Topic|Description|Narrative)\s*:", re.IGNORECASE)


def open_trec(rest: str, split: str | None) -> Source:
    """Open `trec:FOLDER`, or `trec:docs=PATH,topics=PATH,qrels=PATH[,field=title|desc|narr]`.

    A document's title is its `<TITLE>`, `<HEADLINE>`, `<HEAD>` or `<TTL>`; its text is all of its `<TEXT>`, or
    where there is none everything but number and title. Tags are left out, character references resolved. A
    topic's text is its `<title>`, or the field that is asked for, on one line.

    Raises:
        InputError: A file is missing or malformed, or the split is unknown.
    """
    field = "title"
    if "=" in rest and not Path(rest).exists():
        given = _given(rest)
        field = given.get("field", field)
        documents, topics = Path(given["docs"]), Path(given["topics"])
        judged, chosen = Path(given["qrels"]), split or "test"
        place = topics.resolve().parent
    else:
        place = Path(rest)
        documents, topics, judged, chosen = _found(place, split)
    if field not in _FIELDS:
        raise InputError(f"trec:{rest}: field {field!r}; expected one of {', '.join(_FIELDS)}")
    paths = _document_files(documents)
    return Source(
        place.resolve().name,
        place,
        chosen,
        lambda: trec_corpus(f"trec:{documents}", paths),
        lambda: read_topics(topics, field),
        lambda _: read_trec_qrels(judged),
        expected=_COLUMNS,
    )


def _given(rest: str) -> dict[str, str]:
    """The paths of the explicit form."""
    pairs = [part.partition("=") for part in rest.split(",")]
    given = {name: value for name, equals, value in pairs if equals}
    known = ("docs", "topics", "qrels", "field")
    if len(given) < len(pairs) or not {"docs", "topics", "qrels"} <= given.keys() <= set(known):
        raise InputError(f"trec:{rest}: expected trec:docs=PATH,topics=PATH,qrels=PATH[,field=title|desc|narr]")
    return given


def _found(folder: Path, split: str | None) -> tuple[Path, Path, Path, str]:
    """Documents, topics and qrels of a folder, by the names that the module's docstring states."""
    if not folder.is_dir():
        raise InputError(f"trec:{folder}: no such folder; expected documents.*, topics.* and qrels.* in it")
    documents = sorted(path for path in folder.iterdir() if path.name.partition(".")[0] in _DOCUMENTS)
    if len(documents) != 1:
        names = ", ".join(path.name for path in documents) or "none"
        raise InputError(f"trec:{folder}: found {names}; expected one documents.* (.trec, .sgml, .jsonl) or documents/")
    qrels, topics = _by_split(folder, "qrels"), _by_split(folder, "topics")
    splits = [name or split or default_split(folder.resolve().name) for name in qrels]
    chosen = choose_split(folder.resolve().name, split, splits, f"trec:{folder}")
    own = topics.get(chosen) or topics.get("")
    if own is None:
        raise InputError(f"trec:{folder}: no topics.* and no topics.{chosen}.*; expected the topics of the qrels")
    return documents[0], own, qrels.get(chosen) or qrels[""], chosen


def _by_split(folder: Path, stem: str) -> dict[str, Path]:
    """The files of one kind by the split in their names; an empty split where the name has none."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob(f"{stem}.*")):
        parts = [part for part in path.name.split(".")[1:] if f".{part}" not in PACKED]
        split = ".".join(parts[:-1])
        if split in found:
            raise InputError(f"trec:{folder}: found {found[split].name} and {path.name}; expected one {stem}.*")
        found[split] = path
    if not found:
        raise InputError(f"trec:{folder}: no {stem}.*; expected {stem}.txt or {stem}.SPLIT.txt")
    return found


def _document_files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"trec: {path}: no such file or folder; expected {_DOCUMENT_FILE}, or JSON lines")
    if path.is_file():
        return [path]
    inside = sorted(one for one in path.rglob("*") if one.is_file() and not one.name.startswith("."))
    files = [one for one in inside if one.name.partition(".")[0].lower() not in _ABOUT]
    if not files:
        raise InputError(f"trec: {path}: holds no files; expected {_DOCUMENT_FILE}, or JSON lines")
    return files


def trec_corpus(source: str, paths: Sequence[Path]) -> Corpus:
    """A corpus of TREC documents (or JSON lines, by the file's name), one document in memory at a time."""

    def read(meter: Meter) -> Iterable[Document]:
        for path in paths:
            if path.name.lower().endswith(LINES_SUFFIXES):
                yield from (as_document(record, place) for place, record in read_records(path, meter))
            else:
                yield from _read_sgml(path, meter)

    return Corpus(source, read, size=sum(path.stat().st_size for path in paths))


def _read_sgml(path: Path, meter: Meter) -> Iterator[Document]:
    block: list[str] | None = None
    start, found = 0, False
    for number, line in text_lines(path, _DOCUMENT_FILE, meter, blank_lines=True):
        while line:
            begin = _OPEN.search(line)
            if block is None:
                if begin is None:
                    break
                block, start, line = [], number, line[begin.end() :]
            end = _CLOSE.search(line)
            if begin and number > start and (end is None or begin.start() < end.start()):
                raise InputError(f"{path}, line {number}: <DOC> inside the document of line {start}; expected </DOC>")
            if end is None:
                block.append(line)
                break
            block.append(line[: end.start()])
            yield _document("".join(block), f"{path}, line {start}")
            block, line, found = None, line[end.end() :], True
    if block is not None:
        raise InputError(f"{path}: the <DOC> of line {start} has no </DOC>; expected a whole file")
    if not found:
        raise InputError(f"{path}: no <DOC> found; expected {_DOCUMENT_FILE}")


def _document(block: str, place: str) -> Document:
    number, rest = _take(block, "DOCNO")
    if number is None:
        raise InputError(f"{place}: no <DOCNO> in the document; expected {_DOCUMENT_FILE}")
    title = None
    for tag in _TITLES:
        if title is None:
            title, rest = _take(rest, tag)
    texts = _element("TEXT").findall(rest)
    return Document(_plain(number), "\n".join(map(_plain, texts)) if texts else _plain(rest), _plain(title or ""))


def _element(tag: str) -> re.Pattern[str]:
    return re.compile(rf"<{tag}(?:\s[^>]*)?>(.*?)</{tag}\s*>", re.IGNORECASE | re.DOTALL)


def _take(block: str, tag: str) -> tuple[str | None, str]:
    """The content of the first element of a name, and the block without it."""
    match = _element(tag).search(block)
    return (None, block) if match is None else (match[1], block[: match.start()] + block[match.end() :])


def _plain(fragment: str) -> str:
    """Text without tags and outer white space, its character references resolved."""
    return _REFERENCE.sub(_resolve, _TAG.sub(" ", fragment).strip())


def _resolve(match: re.Match[str]) -> str:
    name = match[1]
    if not name.startswith("#"):
        return html5.get(f"{name};", match[0])
    code = int(name[2:], 16) if name[1] in "xX" else int(name[1:])
    return chr(code) if 0 < code < 0xD800 or 0xDFFF < code <= 0x10FFFF else match[0]


def read_topics(path: Path, field: str = "title") -> Iterator[Query]:
    """Read topics: JSON lines, `id<tab>text`, or `<top>` with or without closing tags, by the file's name.

    Raises:
        InputError: A topic is malformed or lacks the field.
    """
    name = path.name.lower()
    if name.endswith(LINES_SUFFIXES):
        for place, record in read_records(path):
            yield Query(place, text_field(record, QUERY_IDS, place), text_field(record, QUERY_TEXTS, place))
    elif name.endswith(tuple(f".tsv{packed}" for packed in PACKED)):
        yield from _tab_topics(path)
    else:
        yield from _top_topics(path, field)


def _tab_topics(path: Path) -> Iterator[Query]:
    for number, line in text_lines(path, "topics: id, tab, text"):
        query, tab, text = line.rstrip("\r\n").partition("\t")
        if not tab:
            raise InputError(f"{path}, line {number}: no tab in {line.strip()[:60]!r}; expected id, tab, text")
        yield Query(f"{path}, line {number}", query.strip(), text.strip())


def _top_topics(path: Path, field: str) -> Iterator[Query]:
    expected = "topics: <top>, <num>, <title>, </top>"
    block: list[str] | None = None
    start, found = 0, False
    for number, line in text_lines(path, expected):
        if re.match(r"\s*<top(?:\s[^>]*)?>", line, re.IGNORECASE):
            block, start = [], number
        elif re.match(r"\s*</top\s*>", line, re.IGNORECASE) and block is not None:
            yield _topic("".join(block), field, f"{path}, line {start}")
            block, found = None, True
        elif block is not None:
            block.append(line)
    if block is not None:
        raise InputError(f"{path}: the <top> of line {start} has no </top>; expected a whole file")
    if not found:
        raise InputError(f"{path}: no <top> found; expected {expected}")


def _topic(block: str, field: str, place: str) -> Query:
    pieces = _TOPIC_TAG.split(block)
    fields = {name.lower(): content for name, content in zip(pieces[1::2], pieces[2::2], strict=True)}
    if missing := [name for name in ("num", field) if name not in fields]:
        found = ", ".join(f"<{name}>" for name in fields) or "no fields"
        raise InputError(f"{place}: no <{missing[0]}> in the topic; found {found}")
    return Query(place, _one_line(fields["num"]), _one_line(fields[field]))


def _one_line(content: str) -> str:
    """A topic's field without its label, its lines put together."""
    bare = _LABEL.sub("", _TAG.sub(" ", content), count=1) if _LABEL.match(content) else _TAG.sub(" ", content)
    return _REFERENCE.sub(_resolve, " ".join(line.strip() for line in bare.split("\n") if line.strip()))


def read_trec_qrels(path: Path) -> Iterator[Judgement]:
    """Read judgements of four columns.

    Raises:
        InputError: A line has not four columns.
    """
    for number, line in text_lines(path, _COLUMNS):
        columns = line.split()
        if len(columns) != 4:
            raise InputError(
                f"{path}, line {number}: found {len(columns)} columns in {line.strip()[:60]!r}; expected {_COLUMNS}"
            )
        yield Judgement(f"{path}, line {number}", columns[0], columns[2], columns[3])


def write_trec(testset: TestSet, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write a test collection as documents.trec, topics.SPLIT.trec and qrels.SPLIT.txt, wholly or not at all.

    `load_dataset("trec:FOLDER")` reads the same texts, with the same fingerprint.

    Raises:
        InputError: The folder exists and may not be overwritten.
    """
    with new_folder(Path(folder), overwrite=overwrite) as new:
        _fill(new, testset.documents(), testset.queries, testset.qrels, testset.split)
        seal(new, "test collection", {"splits": [testset.split]})


def _fill(
    folder: Path,
    documents: Iterable[Document],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    split: str,
) -> None:
    with (folder / "documents.trec").open("w", encoding="utf-8", newline="\n") as file:
        for one in documents:
            file.write(f"<DOC>\n<DOCNO>{_escape(one.id)}</DOCNO>\n")
            file.write(f"<TITLE>{_escape(one.title)}</TITLE>\n<TEXT>\n{_escape(one.text)}\n</TEXT>\n</DOC>\n")
    with (folder / f"topics.{split}.trec").open("w", encoding="utf-8", newline="\n") as file:
        for query, text in queries.items():
            line = _escape(text).replace("\n", "&#10;")
            shown = re.sub(r"^(?=[A-Za-z]+\s*:)(.)", lambda match: f"&#{ord(match[1])};", line)
            file.write(f"<top>\n<num>{_escape(query)}</num>\n<title>{shown}</title>\n</top>\n")
    rows = (f"{query} 0 {one} {grade}\n" for query, grades in qrels.items() for one, grade in grades.items())
    (folder / f"qrels.{split}.txt").write_text("".join(rows), encoding="utf-8", newline="\n")


def _escape(text: str) -> str:
    """Text as SGML gives it back: no markup in it, and no outer white space that would be taken off."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\r", "&#13;")
    body = safe.strip()
    start = len(safe) - len(safe.lstrip())
    before, after = (safe, "") if not body else (safe[:start], safe[start + len(body) :])
    return "".join(f"&#{ord(one)};" for one in before) + body + "".join(f"&#{ord(one)};" for one in after)
