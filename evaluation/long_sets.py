"""Long-document retrieval: LongEmbed and LoCoV1, by their own conventions.

Sources: Zhu et al., "LongEmbed: Extending embedding models for long context retrieval", EMNLP 2024 (data
dwzhu/LongEmbed on the hub); Saad-Falcon et al., "Benchmarking and building long-context retrieval models with LoCo
and M2-BERT", ICML 2024 (data hazyresearch/LoCoV1-Documents and -Queries).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evaluation.hub_layout import download, table_judgements, table_queries
from evaluation.profiles import Profile
from evaluation.qrels import Judgement
from evaluation.records import corpus_of, is_data_file, read_records
from evaluation.sources import Query, Source, choose_split, data_file
from indexes.errors import InputError
from retrieval.documents import Document, text_field

LONGEMBED = ("narrativeqa", "qmsum", "2wikimqa", "summ_screen_fd", "passkey", "needle")
LOCO = (
    "summ_screen_fd",
    "gov_report",
    "qmsum",
    "qasper_title",
    "qasper_abstract",
    "2wikimqa",
    "multifieldqa",
    "passage_retrieval",
    "courtlistener_HTML",
    "courtlistener_Plain_Text",
    "legal_case_reports",
    "stackoverflow",
)

_LENGTH = "context_length"
_SYNTHETIC = Profile(
    measure="Success@1",
    note="LongEmbed's passkey and needle are measured for each context length by accuracy@1, which is Success@1; "
    "published figures are the mean over the lengths.",
)


def open_longembed(rest: str, split: str | None) -> Source:
    """Open `longembed:TASK` from the hub or its cache, or `longembed:FOLDER/TASK`, in a local clone.

    A task has corpus.jsonl (`doc_id`, `text`), queries.jsonl (`qid`, `text`) and qrels.jsonl (`qid`, `doc_id`: one
    relevant document, of grade 1). The synthetic tasks have a split for each context length, as `test_256`, with
    queries and a corpus of its own, and are measured by Success@1; the others have the split `test` and nDCG@10.

    Raises:
        InputError: There is no such task or split, or a file is missing.
    """
    folder, task = _task(rest, LONGEMBED, "longembed")
    path = folder / task if folder else download("dwzhu/LongEmbed", None, task) / task
    files = {name: [data_file(path, name)] for name in ("corpus", "queries", "qrels")}
    lengths = sorted({record[_LENGTH] for _, record in read_records(files["queries"][0]) if _LENGTH in record})
    splits = [f"test_{length}" for length in lengths] or ["test"]
    chosen = choose_split(task, split, splits, f"longembed:{rest}")
    length = int(chosen.removeprefix("test_")) if lengths else None

    def keep(record: Mapping[str, Any]) -> bool:
        return record.get(_LENGTH) == length

    return Source(
        f"longembed-{task}",
        path,
        chosen,
        lambda: corpus_of(f"longembed:{rest}", files["corpus"], keep),
        lambda: table_queries(files["queries"], keep),
        lambda _: table_judgements(files["qrels"], keep, grade=1),
        expected="records with qid and doc_id",
        profile=_SYNTHETIC if lengths else Profile(),
    )


def open_loco(rest: str, split: str | None) -> Source:
    """Open `loco:TASK` from the hub or its cache, or `loco:FOLDER/TASK`, FOLDER holding clones of both repositories.

    LoCoV1-Documents has records with `dataset` (the task), `pid` and `passage`, LoCoV1-Queries with `dataset`, `qid`,
    `query` and `answer_pids`, which are relevant with grade 1. A task is searched in its own documents only.

    Raises:
        InputError: There is no such task, or a file is missing.
    """
    folder, task = _task(rest, LOCO, "loco")
    documents = _data(folder, "LoCoV1-Documents")
    queries = _data(folder, "LoCoV1-Queries")
    chosen = choose_split(task, split, ["test"], f"loco:{rest}")

    def keep(record: Mapping[str, Any]) -> bool:
        return record.get("dataset") == task

    return Source(
        f"loco-{task}",
        folder or Path(f"loco:{rest}"),
        chosen,
        lambda: corpus_of(f"loco:{rest}", documents, keep, _passage),
        lambda: _loco_queries(queries, task),
        lambda _: _loco_judgements(queries, task),
        expected="records with qid and answer_pids",
        profile=Profile(),
    )


def _task(rest: str, tasks: tuple[str, ...], kind: str) -> tuple[Path | None, str]:
    """The folder, if one is given, and the task."""
    path = Path(rest)
    if path.name not in tasks:
        raise InputError(f"{kind}:{rest}: no task {path.name!r}; expected [FOLDER/] and one of {', '.join(tasks)}")
    folder = path.parent if path != Path(path.name) else None
    if folder and not folder.is_dir():
        raise InputError(f"{kind}:{rest}: no such folder {folder}; expected a local clone, or {kind}:{path.name} alone")
    return folder, path.name


def _data(folder: Path | None, name: str) -> list[Path]:
    clone = folder / name if folder else download(f"hazyresearch/{name}", None)
    paths = sorted(path for path in clone.rglob("*") if path.is_file() and is_data_file(path))
    if not paths:
        raise InputError(f"{clone}: no data files; expected a clone of hazyresearch/{name}")
    return paths


def _passage(record: Mapping[str, Any], place: str) -> Document:
    return Document(text_field(record, ("pid",), place), text_field(record, ("passage",), place))


def _loco_rows(paths: list[Path], task: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path in paths:
        for place, record in read_records(path):
            if record.get("dataset") == task:
                yield place, text_field(record, ("qid",), place), record


def _loco_queries(paths: list[Path], task: str) -> Iterator[Query]:
    for place, query, record in _loco_rows(paths, task):
        yield Query(place, query, text_field(record, ("query",), place))


def _loco_judgements(paths: list[Path], task: str) -> Iterator[Judgement]:
    for place, query, record in _loco_rows(paths, task):
        answers = record.get("answer_pids")
        if not isinstance(answers, list):
            raise InputError(f"{place}: field 'answer_pids' is {type(answers).__name__}; expected a list of pids")
        for answer in answers:
            yield Judgement(place, query, str(answer), 1)
