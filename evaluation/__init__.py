"""Judging search: test collections, runs, measures and reports.

Words: a *query* asks, a *document* answers, the *corpus* is all documents, a *run* is what a system found for
every query, *qrels* are the judgements, a *measure* turns a run and qrels into a number. Nothing here loads
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluation.exact_search import search_vectors
    from evaluation.known_items import KnownItems, split_known_items, write_known_items
    from evaluation.measures import DEFAULT_MEASURES, ann_recall, means, score_hits, score_run
    from evaluation.page import as_html
    from evaluation.probe import DatasetProbe
    from evaluation.qrels import Qrels
    from evaluation.rankings import Ranking, Run, make_ranking
    from evaluation.report import as_json, as_markdown, write_report
    from evaluation.run_table import RunTable
    from evaluation.runs import read_run, read_table, write_run
    from evaluation.systems import Report, Searcher, SystemResult, evaluate, evaluate_run, merge
    from evaluation.testsets import Profile, TestSet, load_dataset, write_collection

_HOMES = {
    "DEFAULT_MEASURES": "measures",
    "DatasetProbe": "probe",
    "KnownItems": "known_items",
    "Profile": "testsets",
    "Qrels": "qrels",
    "Ranking": "rankings",
    "Report": "systems",
    "Run": "rankings",
    "RunTable": "run_table",
    "Searcher": "systems",
    "SystemResult": "systems",
    "TestSet": "testsets",
    "ann_recall": "measures",
    "as_html": "page",
    "as_json": "report",
    "as_markdown": "report",
    "evaluate": "systems",
    "evaluate_run": "systems",
    "load_dataset": "testsets",
    "make_ranking": "rankings",
    "means": "measures",
    "merge": "systems",
    "read_run": "runs",
    "read_table": "runs",
    "score_hits": "measures",
    "score_run": "measures",
    "search_vectors": "exact_search",
    "split_known_items": "known_items",
    "write_collection": "testsets",
    "write_known_items": "known_items",
    "write_report": "report",
    "write_run": "runs",
}

__all__ = [
    "DEFAULT_MEASURES",
    "DatasetProbe",
    "KnownItems",
    "Profile",
    "Qrels",
    "Ranking",
    "Report",
    "Run",
    "RunTable",
    "Searcher",
    "SystemResult",
    "TestSet",
    "ann_recall",
    "as_html",
    "as_json",
    "as_markdown",
    "evaluate",
    "evaluate_run",
    "load_dataset",
    "make_ranking",
    "means",
    "merge",
    "read_run",
    "read_table",
    "score_hits",
    "score_run",
    "search_vectors",
    "split_known_items",
    "write_collection",
    "write_known_items",
    "write_report",
    "write_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'evaluation' has no attribute {name!r}")
    return getattr(import_module(f"evaluation.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
