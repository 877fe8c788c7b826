"""Test collections in the layout of the Hugging Face hub: from the hub, its cache, or a local clone.

A repository has a corpus, queries and qrels, each with splits: as configurations that its README.md names
(`corpus`, `queries`, `default` or `qrels`; with a prefix `CONFIG-` where there are several collections), as the
splits of one configuration, or by the names of its files. Qrels may be in a repository of their own, `NAME-qrels`
(as BeIR's are), beside a local clone or on the hub. The data files are read here, lazily and as they are: the
library `datasets` refuses repositories with a script in them, and takes texts that look like dates for dates.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.qrels import Judgement
from evaluation.records import DATA_SUFFIXES, Record, corpus_of, is_data_file, read_records
from evaluation.sources import QUERY_IDS, QUERY_TEXTS, Query, Source, choose_split
from indexes.errors import InputError
from retrieval.documents import text_field

Splits = dict[str, list[Path]]
"""The data files of each split."""

QUERIES = ("query-id", "query_id", "qid")
DOCUMENTS = ("corpus-id", "corpus_id", "doc_id", "docid", "pid")
GRADES = ("score", "grade", "relevance", "label")

_ROLES = {"corpus": ("corpus",), "queries": ("queries", "query"), "qrels": ("qrels", "default")}
_SHARD = re.compile(r"-\d{5}-of-\d{5}.*$")


def open_hub(rest: str, split: str | None) -> Source:
    """Open `hf:ORG/NAME[:CONFIG][@REVISION]`, from the hub or its cache, or `hf:FOLDER[:CONFIG]`, a local clone.

    Raises:
        InputError: It is not to be had, or lacks a part.
    """
    name, config, revision = _parsed(rest)
    local = Path(name).is_dir()
    folder = Path(name) if local else download(name, revision)
    parts = find_parts(folder, config, f"hf:{rest}")
    if not parts["qrels"] and not config:
        parts["qrels"] = _own_qrels(_beside(folder) if local else download(f"{name}-qrels", None))
    for role, splits in parts.items():
        if not splits:
            raise InputError(
                f"hf:{rest}: found no {role}; expected a configuration {' or '.join(_ROLES[role])} in README.md, or "
                f"files {role}.jsonl or {role}/*.parquet ({', '.join(DATA_SUFFIXES)})"
            )
    plain = (Path(name).resolve().name if local else name.rpartition("/")[2]) if config is None else config
    return table_source(plain, folder, split, parts, f"hf:{rest}")


def _beside(clone: Path) -> Path:
    """Where a clone's qrels are if they have a repository of their own."""
    return clone.resolve().with_name(f"{clone.resolve().name}-qrels")


def _parsed(rest: str) -> tuple[str, str | None, str | None]:
    if Path(rest).is_dir():
        return rest, None, None
    match = re.fullmatch(r"([^@]+?)(?::([^/:@]+))?(?:@(.+))?", rest)
    if match is None:
        raise InputError(f"hf:{rest}: names nothing; expected hf:ORG/NAME[:CONFIG][@REVISION] or hf:FOLDER[:CONFIG]")
    name, config, revision = match.groups()
    if revision and Path(name).is_dir():
        raise InputError(f"hf:{rest}: {name} is a local clone, which is at one revision; leave @{revision} out")
    return name, config, revision


def download(name: str, revision: str | None, only: str | None = None) -> Path:
    """A repository's data files and README.md in the hub's cache, downloaded where they are not there yet.

    Args:
        name: `ORG/NAME`.
        revision: A branch, tag or commit; None: the newest.
        only: A folder in it, if the rest is not needed.

    Raises:
        InputError: It is neither on the hub (or there is no network) nor in its cache.
    """
    from huggingface_hub import snapshot_download

    inside = f"{only}/*" if only else "*"
    wanted = ["README.md", *(f"{inside}{suffix}" for suffix in DATA_SUFFIXES)]
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=wanted))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name}: not to be had from the hub or its cache ({reason}); expected ORG/NAME of a dataset repository "
            "(qrels may be in NAME-qrels), or the folder of a local clone"
        ) from None


def find_parts(folder: Path, config: str | None, place: str) -> dict[str, Splits]:
    """The data files of corpus, queries and qrels, by split; empty where there are none.

    Args:
        folder: A clone.
        config: The collection, where there are several; None: the only one.
        place: What to call it in messages.
    """
    configs = _configs(folder)
    if config in configs and set(configs[config]) >= {"corpus", "queries", "qrels"}:
        own = configs[config]
        return {
            "corpus": {"corpus": own["corpus"]},
            "queries": {"queries": own["queries"]},
            "qrels": {"test": own["qrels"]},
        }
    prefix = f"{config}-" if config else ""
    if config and not any(name.startswith(prefix) for name in configs):
        names = ", ".join(configs) or "none"
        raise InputError(f"{place}: no configuration {config!r} and no {prefix}corpus; README.md names {names}")
    parts: dict[str, Splits] = {}
    for role, called in _ROLES.items():
        named = next((configs[prefix + name] for name in called if prefix + name in configs), None)
        if named is None and not config:
            named = _named_files(folder, called, whole=role != "qrels")
        parts[role] = named or {}
    return parts


def _configs(folder: Path) -> dict[str, Splits]:
    """What README.md says: the data files of each configuration's splits."""
    import yaml

    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    match = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        header = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        raise InputError(f"{readme}: its header is not YAML: {' '.join(str(error).split())}") from None
    configs = header.get("configs") or [] if isinstance(header, dict) else []
    found = {}
    for config in configs:
        if isinstance(config, dict) and "config_name" in config and "data_files" in config:
            found[str(config["config_name"])] = _data_files(folder, config["data_files"])
    return found


def _data_files(folder: Path, described: Any) -> Splits:
    """The files that a configuration names: a pattern, several, or patterns for each split."""
    entries = described if isinstance(described, list) else [described]
    splits: dict[str, list[str]] = {}
    for entry in entries:
        split, paths = (entry.get("split", "train"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        splits.setdefault(str(split), []).extend(paths if isinstance(paths, list) else [str(paths)])
    return {
        split: [path for pattern in patterns for path in _matching(folder, pattern)]
        for split, patterns in splits.items()
    }


def _matching(folder: Path, pattern: str) -> list[Path]:
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise InputError(f"{folder / 'README.md'}: {pattern} leads out of the repository; expected files inside")
    found = sorted(path for path in folder.glob(pattern) if path.is_file() and is_data_file(path))
    if not found:
        raise InputError(f"{folder / 'README.md'} names {pattern}, but there is no such file; expected a whole clone")
    return found


def _named_files(folder: Path, names: Sequence[str], *, whole: bool) -> Splits:
    """Files by their names: `corpus.jsonl.gz`, `corpus/…parquet`, `qrels/test.tsv`, `qrels/test-00000-of-….parquet`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and is_data_file(path))
    inside = [path.relative_to(folder) for path in paths]
    own = [path for path in inside if path.parts[0].partition(".")[0] in names]
    if whole:
        return {names[0]: [folder / path for path in own]} if own else {}
    splits: Splits = {}
    for path in own:
        splits.setdefault(_split_of(path) if len(path.parts) > 1 else "test", []).append(folder / path)
    return splits


def _own_qrels(folder: Path) -> Splits:
    """The qrels of a repository that holds nothing else."""
    if not folder.is_dir():
        return {}
    configs = _configs(folder)
    if configs:
        return configs.get("default") or configs.get("qrels") or next(iter(configs.values()))
    splits: Splits = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and is_data_file(path)):
        splits.setdefault(_split_of(path), []).append(path)
    return splits


def _split_of(path: Path) -> str:
    return _SHARD.sub("", path.name.partition(".")[0])


def table_source(name: str, path: Path, split: str | None, parts: Mapping[str, Splits], place: str) -> Source:
    """A test collection of data files, whose qrels have a split of their own and whose others may."""
    chosen = choose_split(name, split, list(parts["qrels"]), place)
    corpus = _files_of(parts["corpus"], chosen, "corpus", place)
    queries = _files_of(parts["queries"], chosen, "queries", place)
    return Source(
        name,
        path,
        chosen,
        lambda: corpus_of(place, corpus),
        lambda: table_queries(queries),
        lambda _: table_judgements(parts["qrels"][chosen]),
        expected="records with query-id, corpus-id and score",
    )


def _files_of(splits: Splits, chosen: str, role: str, place: str) -> list[Path]:
    if chosen in splits or role in splits:
        return splits[chosen] if chosen in splits else splits[role]
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise InputError(f"{place}: the {role} has the splits {', '.join(splits)}; expected {chosen}, {role} or one alone")


def _kept(paths: Sequence[Path], keep: Callable[[Mapping[str, Any]], bool] | None) -> Iterator[Record]:
    return ((place, record) for path in paths for place, record in read_records(path) if keep is None or keep(record))


def table_queries(paths: Sequence[Path], keep: Callable[[Mapping[str, Any]], bool] | None = None) -> Iterator[Query]:
    """The queries of data files."""
    for place, record in _kept(paths, keep):
        yield Query(place, text_field(record, QUERY_IDS, place), text_field(record, QUERY_TEXTS, place))


def table_judgements(
    paths: Sequence[Path], keep: Callable[[Mapping[str, Any]], bool] | None = None, grade: int | None = None
) -> Iterator[Judgement]:
    """The judgements of data files.

    Args:
        paths: The files.
        keep: Which records are judgements of this collection; None: all.
        grade: Of all judgements, where the records name relevant documents only; None: each has a grade.

    Raises:
        InputError: A record lacks a field.
    """
    for place, record in _kept(paths, keep):
        query, document = text_field(record, QUERIES, place), text_field(record, DOCUMENTS, place)
        given = next((record[name] for name in GRADES if record.get(name) is not None), grade)
        if given is None:
            raise InputError(
                f"{place}: found fields {', '.join(map(repr, record))}; expected {' or '.join(map(repr, GRADES))}"
            )
        yield Judgement(place, query, document, given)
