"""Encoders measured on pairs: similarity (STS), pair classification and reranking, by cosine, with MTEB's figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.correlation import pearson, spearman, spearman_interval
from evaluation.measures import means, score_run
from evaluation.pairs_sets import PairSet, RerankingSet
from evaluation.rankings import Run, make_ranking
from evaluation.significance import Interval, bootstrap_interval
from indexes.errors import InputError
from retrieval.console import OnProgress

PROMPTS = ("document", "query")
"""Whose prompt both sentences of a pair may get: the document's (usually none), or the query's (as E5 asks for)."""
RERANKING_MEASURES = ("MAP", "MRR", "nDCG@10")

_PAIRS_AT_ONCE = 65_536


class TextEncoder(Protocol):
    """What is measured: texts in, vectors out (`retrieval.Encoder` is one)."""

    def encode_queries(self, texts: Sequence[str], on_progress: OnProgress | None = None) -> NDArray[np.float32]:
        """Vectors of queries, (n, d)."""

    def encode_documents(self, texts: Sequence[str], on_progress: OnProgress | None = None) -> NDArray[np.float32]:
        """Vectors of documents, (n, d)."""


@dataclass(frozen=True)
class PairReport:
    """How an encoder did on a set of pairs or on a reranking set."""

    kind: str
    dataset: str
    fingerprint: str
    """The set's."""
    size: int
    """Pairs, or queries."""
    metrics: dict[str, float]
    """Measure to value; the first one is the main one."""
    interval: Interval | None
    """95% bootstrap interval of the main measure; None: a single query has none."""
    subsets: dict[str, dict[str, float]]
    """Subset to measure to value; empty if there are none."""
    notices: tuple[str, ...] = ()
    conventions: dict[str, str] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The name of the main measure."""
        return next(iter(self.metrics))


def evaluate_pairs(
    encoder: TextEncoder,
    pairs: PairSet | RerankingSet,
    *,
    prompt: str = "document",
    on_progress: OnProgress | None = None,
) -> PairReport:
    """Measure an encoder on a set from `load_pairs`, whichever kind it is.

    Raises:
        InputError: As the function of its kind, or a prompt is given for reranking, which uses both.
    """
    if isinstance(pairs, RerankingSet):
        if prompt != "document":
            raise InputError(f"prompt is {prompt!r}, but reranking gives queries and documents each their own")
        return evaluate_reranking(encoder, pairs, on_progress=on_progress)
    measure = evaluate_sts if pairs.kind == "sts" else evaluate_pair_classification
    return measure(encoder, pairs, prompt=prompt, on_progress=on_progress)


def evaluate_sts(
    encoder: TextEncoder, pairs: PairSet, *, prompt: str = "document", on_progress: OnProgress | None = None
) -> PairReport:
    """Correlate the cosines of sentence pairs with people's scores.

    `cosine_spearman` and `cosine_pearson` are over all pairs of all subsets in one correlation ("all"). Where there
    are subsets, the mean of their correlations follows, plain and weighted by their sizes (`_mean`, `_wmean`).

    Args:
        encoder: What is measured; every different text is encoded once.
        pairs: From `load_pairs("sts:…")`.
        prompt: Whose prompt both sentences get.
        on_progress: Called with the texts encoded so far and their number.

    Raises:
        InputError: A set of another kind, an unknown prompt, a vector that is not finite, or cosines that are all the
            same, so that there is no correlation.

    Source:
        SemEval 2012 to 2017 for the task; the three settings as in Gao et al., "SimCSE", EMNLP 2021, appendix B.
    """
    found = _scored(encoder, pairs, "sts", prompt, on_progress)
    metrics = {"cosine_spearman": spearman(found, pairs.values), "cosine_pearson": pearson(found, pairs.values)}
    subsets, notices = _correlations(found, pairs)
    if subsets:
        sizes = [pairs.subsets.count(name) for name in subsets]
        for name in ("cosine_spearman", "cosine_pearson"):
            values = [measures[name] for measures in subsets.values()]
            metrics[f"{name}_mean"] = float(np.mean(values))
            metrics[f"{name}_wmean"] = float(np.average(values, weights=sizes))
    interval = spearman_interval(found, pairs.values)
    return _report(pairs, metrics, interval, subsets, [*_flat(found), *notices], prompt)


def _correlations(found: NDArray[np.float32], pairs: PairSet) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Both correlations in each subset, and which subsets have none."""
    names = sorted(set(pairs.subsets))
    subsets, notices = {}, []
    for name in names if len(names) > 1 else []:
        rows = [row for row, subset in enumerate(pairs.subsets) if subset == name]
        try:
            one, other = found[rows], pairs.values[rows]
            subsets[name] = {"cosine_spearman": spearman(one, other), "cosine_pearson": pearson(one, other)}
        except InputError as error:
            notices.append(f"Subset {name!r} has no correlation of its own and counts in no mean of subsets: {error}.")
    return subsets, notices


def evaluate_pair_classification(
    encoder: TextEncoder, pairs: PairSet, *, prompt: str = "document", on_progress: OnProgress | None = None
) -> PairReport:
    """Tell pairs that say the same from those that do not, by a threshold of their cosine.

    `cosine_ap` needs no threshold; `cosine_f1` and `cosine_accuracy` are those at the threshold that suits each best,
    chosen on the same pairs, as MTEB does. The interval is of the average precision, over the pairs.

    Args:
        encoder: What is measured.
        pairs: From `load_pairs("pairs:…")`.
        prompt: Whose prompt both sentences get.
        on_progress: Called with the texts encoded so far and their number.

    Raises:
        InputError: As `evaluate_sts`.
    """
    found = _scored(encoder, pairs, "pairs", prompt, on_progress)
    labels = pairs.values > 0
    metrics = {f"cosine_{name}": value for name, value in classification_measures(found, labels).items()}
    interval = _resampled_ap(found, labels)
    return _report(pairs, metrics, interval, {}, _flat(found), prompt)


def classification_measures(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> dict[str, float]:
    """Average precision, and the best F1 (with its precision and recall) and accuracy that a threshold gives.

    A threshold lies between two different scores, so that equal scores are on one side of it. As in MTEB, thresholds
    that put all pairs on one side are not among them.

    Args:
        scores: (n,) the higher, the likelier positive.
        labels: (n,) which pairs are positive; both kinds occur.

    Source:
        Average precision: sum of (recall - recall before) × precision over the distinct scores, as in scikit-learn's
        `average_precision_score`. F1 and accuracy: MTEB 2's AbsTaskPairClassification.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(scores[order][1:] != scores[order][:-1], True))  # the last of each equal score
    hits = np.cumsum(labels[order])[ends]  # (cuts,) positives above each cut
    taken = ends + 1  # (cuts,) pairs above it
    positives, pairs = int(labels.sum()), len(labels)
    precision, recall = hits / taken, hits / positives
    ap = float((np.diff(recall, prepend=0.0) * precision).sum())
    if len(ends) == 1:  # one score for all: nothing to cut
        return {"ap": ap, "f1": 0.0, "accuracy": 0.0, "precision": 0.0, "recall": 0.0}
    f1 = (2 * hits / (taken + positives))[:-1]
    accuracy = ((hits + (pairs - taken) - (positives - hits)) / pairs)[:-1]
    best = int(f1.argmax())
    return {
        "ap": ap,
        "f1": float(f1[best]),
        "accuracy": float(accuracy.max()),
        "precision": float(precision[best]),
        "recall": float(recall[best]),
    }


def _resampled_ap(scores: NDArray[np.floating], labels: NDArray[np.bool_], samples: int = 1000) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(samples):
        rows = generator.integers(len(labels), size=len(labels))
        if labels[rows].any():
            found.append(classification_measures(scores[rows], labels[rows])["ap"])
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def evaluate_reranking(
    encoder: TextEncoder, given: RerankingSet, *, on_progress: OnProgress | None = None
) -> PairReport:
    """Put each query's own documents in order by cosine and measure the order: MAP, MRR and nDCG@10.

    Equal scores count against the encoder, as in MTEB: of two equal documents the negative one comes first.

    Args:
        encoder: What is measured.
        given: From `load_pairs("reranking:…")`.
        on_progress: Called with the texts encoded so far and their number.

    Raises:
        InputError: A vector is not finite.
    """
    texts = [text for name in given.queries for text in [*given.positive[name], *given.negative[name]]]
    documents = _vectors(encoder, texts, "document", on_progress)
    queries = _vectors(encoder, list(given.queries.values()), "query", None)
    run: Run = {}
    for name, text in given.queries.items():
        ids = candidate_ids(given, name)
        vectors = np.stack([documents[one] for one in [*given.positive[name], *given.negative[name]]])
        run[name] = make_ranking(ids, _cosine(queries[text], vectors), place=f"query {name!r}")
    qrels = {name: {one: int(one[0] == "a") for one in candidate_ids(given, name)} for name in given.queries}
    per_query = score_run(run, qrels, RERANKING_MEASURES)
    metrics = means(per_query)
    interval = bootstrap_interval([values["MAP"] for values in per_query.values()])
    return _report(given, metrics, interval, {}, [], None)


def candidate_ids(given: RerankingSet, query: str) -> list[str]:
    """Ids of a query's documents, positives first; in trec_eval's order of ties, negatives come first."""
    positive = [f"apositive_{query}_{row:05}" for row in range(len(given.positive[query]))]
    return [*positive, *(f"negative_{query}_{row:05}" for row in range(len(given.negative[query])))]


def _scored(
    encoder: TextEncoder, pairs: PairSet, kind: str, prompt: str, on_progress: OnProgress | None
) -> NDArray[np.float32]:
    if not isinstance(pairs, PairSet) or pairs.kind != kind:
        raise InputError(f"{pairs.name} is a set of kind {pairs.kind!r}; expected {kind!r}")
    if prompt not in PROMPTS:
        raise InputError(f"prompt is {prompt!r}; expected one of {', '.join(PROMPTS)}")
    vectors = _vectors(encoder, [*pairs.first, *pairs.second], prompt, on_progress)
    out = np.empty(len(pairs), dtype=np.float32)
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        rows = slice(start, start + _PAIRS_AT_ONCE)
        first, second = (np.stack([vectors[text] for text in side[rows]]) for side in (pairs.first, pairs.second))
        out[rows] = _cosine(first, second)
    return out


def _vectors(
    encoder: TextEncoder, texts: Sequence[str], prompt: str, on_progress: OnProgress | None
) -> dict[str, NDArray[np.float64]]:
    """Text to vector of unit length (or all zeros); a text that occurs twice is encoded once, so it equals itself."""
    unique = list(dict.fromkeys(texts))
    encode = encoder.encode_queries if prompt == "query" else encoder.encode_documents
    vectors = np.asarray(encode(unique, on_progress), dtype=np.float64)  # (u, d)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise InputError(f"the vector of {unique[bad[0]][:60]!r} is not finite; the encoder is broken for this text")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(lengths > 0, lengths, 1)
    return dict(zip(unique, vectors, strict=True))


def _cosine(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float32]:
    """Cosines of rows of unit length, rounded to what the vectors' own precision can tell apart."""
    return np.asarray((first * second).sum(axis=-1), dtype=np.float32)


def _flat(found: NDArray[np.float32]) -> list[str]:
    zeros = int((found == 0).sum())
    return [f"{zeros:,} pairs have a cosine of exactly 0, as where a vector is all zeros."] if zeros else []


def _report(
    pairs: PairSet | RerankingSet,
    metrics: dict[str, float],
    interval: Interval | None,
    subsets: dict[str, dict[str, float]],
    notices: Sequence[str],
    prompt: str | None,
) -> PairReport:
    conventions = {"similarity": "cosine in double precision, rounded to float32"}
    if prompt is None:
        conventions |= {
            "prompts": "the query's for queries, the document's for documents",
            "ties": "of equal scores a negative document comes first, as in MTEB",
            "mean": "over all queries with a positive and a negative document",
        }
    else:
        conventions["prompts"] = f"both sentences get the prompt of a {prompt}"
    if pairs.kind == "sts":
        conventions["ties"] = "equal numbers share the average of their ranks"
        conventions["setting"] = "all: the pairs of all subsets in one correlation"
    if pairs.kind == "pairs":
        conventions["threshold"] = "the best one on these very pairs, between two different scores, as in MTEB"
    return PairReport(
        pairs.kind,
        pairs.name,
        pairs.fingerprint,
        len(pairs),
        metrics,
        interval,
        subsets,
        (*pairs.notices, *notices),
        conventions,
    )


def as_json(report: PairReport, made_by: dict[str, str] | None = None) -> dict[str, Any]:
    """The report as a JSON document: `metrics`, the interval of the main one, subsets, and the data."""
    return {
        "metrics": report.metrics,
        "intervals": {report.main: report.interval and list(report.interval)},
        "subsets": report.subsets,
        "dataset": {
            "name": report.dataset,
            "kind": report.kind,
            "pairs" if report.kind != "reranking" else "queries": report.size,
            "fingerprint": report.fingerprint,
        },
        "conventions": report.conventions,
        "notices": list(report.notices),
        "made_by": dict(made_by or {}),
    }
