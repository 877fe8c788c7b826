"""Test collections that other libraries load: ir_datasets and MTEB, both in the extra `eval`."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from evaluation.profiles import Profile, find_profile
from evaluation.qrels import Judgement
from evaluation.sources import QUERY_IDS, QUERY_TEXTS, Query, Source, choose_split
from indexes.errors import InputError
from retrieval.corpora import Corpus, readable
from retrieval.documents import Document, as_document, text_field

_SPLITS = ("train", "dev", "validation", "test")
_SKIPPED = "MTEB leaves out the first hit of every query of this task; here it is kept: figures cannot be compared."


def open_irds(rest: str, split: str | None) -> Source:
    """Open `irds:ID`, a test collection of ir_datasets, which downloads it where it is not in `$IR_DATASETS_HOME`.

    The corpus is read from ir_datasets' own files; of a document its `title` and `text` are taken, else what it gives
    as its default text. The split is the last part of the ID; an ID without judgements takes it from `split`.

    Raises:
        InputError: ir_datasets is not there, knows no such ID or cannot get it, or the ID has no documents, queries
            or judgements.
    """
    irds = _library("ir_datasets", f"irds:{rest}")
    dataset, identifier = _irds_dataset(irds, rest, split)
    parts = [part for part in identifier.split("/") if part != "beir"]
    ends = parts[-1] in _SPLITS
    place = f"irds:{identifier}"
    if ends and split not in (None, parts[-1]):
        raise InputError(
            f"irds:{rest} is the split {parts[-1]!r}, not {split!r}; name irds:{rest.rpartition('/')[0]}/{split}"
        )
    return Source(
        "/".join(parts[:-1] if ends else parts),
        Path(place),
        parts[-1] if ends else split or "test",
        lambda: Corpus(place, lambda _: readable(_irds_documents(dataset), place, "documents of ir_datasets")),
        lambda: readable(_irds_queries(dataset, place), place, "queries of ir_datasets"),
        lambda _: readable(_irds_judgements(dataset, place), place, "judgements of ir_datasets"),
        expected="judgements of ir_datasets",
    )


def _library(name: str, spec: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"{spec}: needs {name} ({error}); install it with pip install 'retrokit[eval]'") from None


def _irds_dataset(irds: Any, rest: str, split: str | None) -> tuple[Any, str]:
    tried = [rest] if split is None else [rest, f"{rest}/{split}"]
    found = None
    for identifier in tried:
        try:
            dataset = irds.load(identifier)
        except KeyError:
            continue
        if dataset.has_docs() and dataset.has_queries() and dataset.has_qrels():
            return dataset, identifier
        found = identifier
    if found:
        raise InputError(
            f"irds:{found}: has not all of documents, queries and judgements; expected such as irds:{found}/test"
        )
    raise InputError(f"irds:{rest}: ir_datasets knows no such ID; expected one of its list, such as beir/scifact/test")


def _irds_documents(dataset: Any) -> Iterator[Document]:
    for one in dataset.docs_iter():
        text = getattr(one, "text", None)
        title = getattr(one, "title", "") if text is not None else ""
        yield Document(str(one.doc_id), one.default_text() if text is None else text, title or "")


def _irds_queries(dataset: Any, place: str) -> Iterator[Query]:
    for one in dataset.queries_iter():
        text = getattr(one, "text", None)
        yield Query(place, str(one.query_id), one.default_text() if text is None else text)


def _irds_judgements(dataset: Any, place: str) -> Iterator[Judgement]:
    for one in dataset.qrels_iter():
        yield Judgement(f"{place}, query {one.query_id!r}", str(one.query_id), str(one.doc_id), one.relevance)


def open_mteb(rest: str, split: str | None) -> Source:
    """Open `mteb:TASK[/SUBSET]`, a retrieval task of MTEB, which downloads it where it is not in the hub's cache.

    The corpus is an Arrow table mapped into memory; queries and judgements are held by MTEB as a whole. Whether
    self-matches are dropped is the task's own rule.

    Raises:
        InputError: MTEB is not there, knows no such task or subset, cannot get it, or it is no retrieval of texts.
    """
    mteb = _library("mteb", f"mteb:{rest}")
    name, _, subset = rest.partition("/")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            task = mteb.get_task(name)
    except KeyError as error:
        raise InputError(f"mteb:{rest}: MTEB knows no such task ({' '.join(str(error).split())})") from None
    if not hasattr(task, "convert_v1_dataset_format_to_v2"):
        raise InputError(f"mteb:{rest}: is of type {task.metadata.type}; expected a retrieval task")
    chosen = choose_split(name, split, list(task.metadata.eval_splits), f"mteb:{rest}")
    data = _mteb_data(task, chosen, subset or "default", f"mteb:{rest}")
    profile = replace(find_profile(name) or Profile(), drop_self_matches=bool(task.ignore_identical_ids))
    return Source(
        name if not subset else f"{name}/{subset}",
        Path(f"mteb:{rest}"),
        chosen,
        lambda: Corpus(
            f"mteb:{rest}",
            lambda _: (
                as_document(row, f"mteb:{rest}, document {number}") for number, row in enumerate(data["corpus"])
            ),
            count=lambda: len(data["corpus"]),
        ),
        lambda: _mteb_queries(data["queries"], f"mteb:{rest}"),
        lambda _: _mteb_judgements(data["relevant_docs"], f"mteb:{rest}"),
        expected="MTEB's relevant_docs",
        profile=profile,
        notices=(_SKIPPED,) if getattr(task, "skip_first_result", False) else (),
    )


def _mteb_data(task: Any, split: str, subset: str, place: str) -> Mapping[str, Any]:
    """One split of a task, loaded."""
    try:
        task.filter_eval_splits([split])
        task.load_data()
        task.convert_v1_dataset_format_to_v2(num_proc=None)
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"{place}: MTEB cannot load it ({reason}); expected {task.metadata.dataset['path']} on or from the hub"
        ) from error
    if subset not in task.dataset:
        raise InputError(
            f"{place}: no subset {subset!r}; there are {', '.join(task.dataset)}: name one as mteb:TASK/SUBSET"
        )
    data: Mapping[str, Any] = task.dataset[subset][split]
    return data


def _mteb_queries(rows: Any, place: str) -> Iterator[Query]:
    for number, row in enumerate(rows):
        where = f"{place}, query {number}"
        yield Query(where, text_field(row, QUERY_IDS, where), text_field(row, QUERY_TEXTS, where))


def _mteb_judgements(relevant: Mapping[str, Mapping[str, Any]], place: str) -> Iterator[Judgement]:
    for query, grades in relevant.items():
        for document, grade in grades.items():
            yield Judgement(f"{place}, query {query!r}", str(query), str(document), grade)
