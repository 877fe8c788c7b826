"""Judging search: test collections, runs, measures and reports.

Words: a *query* asks, a *document* answers, the *corpus* is all documents, a *run* is what a system found for
every query, *qrels* are the judgements, a *measure* turns a run and qrels into a number. Nothing here loads
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluation.anchors import anchors_for
    from evaluation.comparison import compare
    from evaluation.comparison_report import write_comparison
    from evaluation.exact_search import search_vectors
    from evaluation.inspection import look_closer
    from evaluation.known_items import KnownItems, split_known_items, write_known_items
    from evaluation.lineup import measure_systems
    from evaluation.measures import DEFAULT_MEASURES, ann_recall, means, score_hits, score_run
    from evaluation.mteb_adapter import as_mteb_encoder, as_mteb_search
    from evaluation.mteb_tasks import as_mteb_task
    from evaluation.opening import Opened, open_system
    from evaluation.page import as_html
    from evaluation.pairs_sets import PairSet, RerankingSet, load_pairs
    from evaluation.probe import DatasetProbe
    from evaluation.qrels import Qrels
    from evaluation.rankings import Ranking, Run, make_ranking
    from evaluation.report import as_json, as_markdown, write_report
    from evaluation.run_table import RunTable
    from evaluation.runs import read_run, read_table, write_run
    from evaluation.significance import (
        Paired,
        bootstrap_interval,
        holm,
        paired,
        paired_t_test,
        randomisation_test,
        suite_interval,
    )
    from evaluation.sts import PairReport, evaluate_pairs
    from evaluation.systems import Report, Searcher, SystemResult, evaluate, evaluate_run, merge
    from evaluation.testsets import Profile, TestSet, load_dataset, to_beir_dir, write_collection
    from evaluation.trec_files import write_trec

_HOMES = {
    "DEFAULT_MEASURES": "measures",
    "DatasetProbe": "probe",
    "KnownItems": "known_items",
    "Opened": "opening",
    "PairReport": "sts",
    "PairSet": "pairs_sets",
    "Paired": "significance",
    "Profile": "testsets",
    "Qrels": "qrels",
    "Ranking": "rankings",
    "Report": "systems",
    "RerankingSet": "pairs_sets",
    "Run": "rankings",
    "RunTable": "run_table",
    "Searcher": "systems",
    "SystemResult": "systems",
    "TestSet": "testsets",
    "anchors_for": "anchors",
    "ann_recall": "measures",
    "as_html": "page",
    "as_json": "report",
    "as_markdown": "report",
    "as_mteb_encoder": "mteb_adapter",
    "as_mteb_search": "mteb_adapter",
    "as_mteb_task": "mteb_tasks",
    "bootstrap_interval": "significance",
    "compare": "comparison",
    "evaluate": "systems",
    "evaluate_pairs": "sts",
    "evaluate_run": "systems",
    "holm": "significance",
    "load_dataset": "testsets",
    "load_pairs": "pairs_sets",
    "look_closer": "inspection",
    "make_ranking": "rankings",
    "means": "measures",
    "measure_systems": "lineup",
    "merge": "systems",
    "open_system": "opening",
    "paired": "significance",
    "paired_t_test": "significance",
    "randomisation_test": "significance",
    "read_run": "runs",
    "read_table": "runs",
    "score_hits": "measures",
    "score_run": "measures",
    "search_vectors": "exact_search",
    "split_known_items": "known_items",
    "suite_interval": "significance",
    "to_beir_dir": "testsets",
    "write_collection": "testsets",
    "write_comparison": "comparison_report",
    "write_known_items": "known_items",
    "write_report": "report",
    "write_run": "runs",
    "write_trec": "trec_files",
}

__all__ = [
    "DEFAULT_MEASURES",
    "DatasetProbe",
    "KnownItems",
    "Opened",
    "PairReport",
    "PairSet",
    "Paired",
    "Profile",
    "Qrels",
    "Ranking",
    "Report",
    "RerankingSet",
    "Run",
    "RunTable",
    "Searcher",
    "SystemResult",
    "TestSet",
    "anchors_for",
    "ann_recall",
    "as_html",
    "as_json",
    "as_markdown",
    "as_mteb_encoder",
    "as_mteb_search",
    "as_mteb_task",
    "bootstrap_interval",
    "compare",
    "evaluate",
    "evaluate_pairs",
    "evaluate_run",
    "holm",
    "load_dataset",
    "load_pairs",
    "look_closer",
    "make_ranking",
    "means",
    "measure_systems",
    "merge",
    "open_system",
    "paired",
    "paired_t_test",
    "randomisation_test",
    "read_run",
    "read_table",
    "score_hits",
    "score_run",
    "search_vectors",
    "split_known_items",
    "suite_interval",
    "to_beir_dir",
    "write_collection",
    "write_comparison",
    "write_known_items",
    "write_report",
    "write_run",
    "write_trec",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'evaluation' has no attribute {name!r}")
    return getattr(import_module(f"evaluation.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
