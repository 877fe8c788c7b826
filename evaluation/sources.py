"""Where test collections come from: what every source hands over, which sources there are, and BEIR folders."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from evaluation.profiles import Profile, default_split
from evaluation.qrels import TAB_COLUMNS, Judgement, qrels_files, tab_judgements
from evaluation.records import PACKED
from indexes.errors import InputError
from retrieval.corpora import Corpus
from retrieval.documents import read_documents, text_field
from retrieval.lines import read_lines

_KINDS = {
    "trec": "trec_files:open_trec",
    "hf": "hub_layout:open_hub",
    "irds": "library_sources:open_irds",
    "mteb": "library_sources:open_mteb",
    "beir": "downloads:open_beir",
    "longembed": "long_sets:open_longembed",
    "loco": "long_sets:open_loco",
}
"""What a spec may begin with, and the function that opens the rest of it."""
_ALL_KINDS = ", ".join(f"{kind}:" for kind in _KINDS)

QUERY_IDS = ("_id", "id", "qid", "query_id", "query-id")
QUERY_TEXTS = ("text", "query")


class Query(NamedTuple):
    """One query as a source gives it."""

    place: str
    """Where it was read, for messages."""
    id: str
    text: str


@dataclass(frozen=True)
class Source:
    """A test collection that is found but not read: what every kind of source hands to `load_dataset`."""

    name: str
    """What reports and profiles call it."""
    path: Path
    """The folder, or the spec where there is none."""
    split: str
    documents: Callable[[], Corpus]
    queries: Callable[[], Iterable[Query]]
    """All queries, also those that this split does not judge."""
    judgements: Callable[[Mapping[str, str]], Iterable[Judgement]]
    """The judgements of the split; takes all queries, by which a header line is told from a judgement."""
    expected: str = "judgements of the queries"
    """What the judgements should be, for messages."""
    profile: Profile | None = None
    """The rules, where the source itself knows them; None: they go by the name."""
    notices: tuple[str, ...] = ()


def open_source(spec: str | Path, split: str | None) -> Source:
    """Find what a spec stands for, and one split of it; see `evaluation.load_dataset`.

    Raises:
        InputError: There is no such thing, or no such split; the message says what was expected where.
    """
    text = str(spec)
    if not text.strip():
        raise InputError(f"no test collection is named; expected a BEIR folder or {_ALL_KINDS}")
    kind, colon, rest = text.partition(":")
    if not colon or Path(text).exists():
        return open_folder(_find_folder(text), split)
    if kind not in _KINDS:
        raise InputError(f"{text}: unknown source {kind!r}; expected a BEIR folder or {_ALL_KINDS}")
    if not rest:
        raise InputError(f"{text}: names nothing; expected {_usage(kind)}")
    module, _, function = _KINDS[kind].partition(":")
    source: Source = getattr(import_module(f"evaluation.{module}"), function)(rest, split)
    return source


def choose_split(name: str, wanted: str | None, splits: Sequence[str], place: str) -> str:
    """The split that is asked for, else the one that is usual for the dataset, else `test`, else the only one there is.

    Raises:
        InputError: It is not there; the message names those there are.
    """
    usual = default_split(name)
    if usual not in splits:
        usual = splits[0] if len(splits) == 1 else "test"
    chosen = usual if wanted is None else wanted
    if chosen not in splits:
        raise InputError(f"{place}: no split {chosen!r}; there are {', '.join(splits)}")
    return chosen


def open_folder(folder: Path, split: str | None) -> Source:
    """Open a BEIR folder.

    Raises:
        InputError: It lacks a file or the split.
    """
    name = folder.resolve().name
    if folder.resolve().parent.name.lower() == "cqadupstack":
        name = f"cqadupstack-{name}"
    files = qrels_files(folder)
    if not files:
        _refuse_several(folder)
        raise InputError(
            f"{folder}: no qrels/*.tsv; expected qrels/{split or default_split(name)}.tsv in a BEIR folder"
        )
    chosen = choose_split(name, split, list(files), str(folder))
    corpus, queries = data_file(folder, "corpus"), data_file(folder, "queries")
    return Source(
        name,
        folder,
        chosen,
        lambda: read_documents(corpus),
        lambda: lines_queries(queries),
        lambda known: tab_judgements(files[chosen], known),
        expected=TAB_COLUMNS,
    )


def data_file(folder: Path, name: str) -> Path:
    """The JSON lines of one name in a folder, plain, gzip or zstd.

    Raises:
        InputError: There are none.
    """
    found = next((path for packed in PACKED if (path := folder / f"{name}.jsonl{packed}").is_file()), None)
    if found is None:
        raise InputError(
            f"{folder}: no {name}.jsonl and no {name}.jsonl.gz or .zst; expected one of them in a BEIR folder"
        )
    return found


def lines_queries(path: Path) -> Iterator[Query]:
    """Read queries from JSON lines with the fields `_id` (or `id`) and `text`."""
    for number, record in read_lines(path):
        place = f"{path}, line {number}"
        yield Query(place, text_field(record, ("_id", "id"), place), text_field(record, ("text",), place))


def _find_folder(text: str) -> Path:
    """A folder by its path, or by its name in `$RETROKIT_DATA`."""
    path, home = Path(text), os.environ.get("RETROKIT_DATA")
    if path.is_dir():
        return path
    if home and (Path(home) / path).is_dir():
        return Path(home) / path
    beside = f", nor in {home} ($RETROKIT_DATA)" if home else " ($RETROKIT_DATA, where names are looked up, is not set)"
    raise InputError(
        f"{path}: no such folder; expected a BEIR folder (corpus.jsonl, queries.jsonl, "
        f"qrels/{default_split(path.name)}.tsv; each may be .gz or .zst){beside}{_hint(text)}"
    )


def _hint(name: str) -> str:
    """How else a name of BEIR's might be meant."""
    from evaluation.downloads import MD5, url_of

    if name.partition("/")[0] not in MD5:
        return f"; or one of {', '.join(map('{}:'.format, _KINDS))}"
    archive = name.partition("/")[0]
    return f"; beir:{name} downloads it ({url_of(archive)}, MD5 {MD5[archive]})"


def _refuse_several(folder: Path) -> None:
    inside = sorted(path.parent.name for path in folder.glob("*/corpus.jsonl*"))
    if inside:
        raise InputError(
            f"{folder}: holds {len(inside)} test collections ({', '.join(inside)}); name one, as {folder / inside[0]}"
        )


def _usage(kind: str) -> str:
    return {
        "trec": "trec:FOLDER or trec:docs=PATH,topics=PATH,qrels=PATH",
        "hf": "hf:ORG/NAME[:CONFIG][@REVISION] or hf:FOLDER[:CONFIG]",
        "irds": "irds:ID, such as irds:beir/scifact/test",
        "mteb": "mteb:TASK[/SUBSET]",
        "beir": "beir:NAME, such as beir:scifact",
        "longembed": "longembed:[FOLDER/]TASK",
        "loco": "loco:[FOLDER/]TASK",
    }[kind]
