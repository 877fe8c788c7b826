"""One block of queries that are mined for negatives: search, filters, a teacher, and what is drawn in the end."""

import contextlib
import itertools
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.hits import Hits
from indexes.reader import Reader
from retrieval.building import long_documents_of
from retrieval.documents import Document
from retrieval.examples import Candidate, Example, example_line
from retrieval.negatives import REASONS, MineConfig, drawing_order, why_not
from retrieval.reranker import Reranker
from retrieval.retriever import Retriever
from retrieval.row_scores import QueryScores, padded
from retrieval.stored_documents import StoredDocuments

FUSED = "fused"
"""The teacher that is the fused score of the index itself."""

_HYBRID = "hybrid"


class Block(NamedTuple):
    """Some examples, in the order of their file."""

    number: int
    """From 0."""
    examples: Sequence[Example]
    positives: Sequence[Sequence[int]]
    """The rows of each example's positives in the index; -1: they are not there."""
    negatives: Sequence[Sequence[int]]
    """The same of the negatives that it came with."""


class Asked(NamedTuple):
    """What a teacher is to score."""

    line: int
    """The number of the query in its block."""
    row: int
    text: str


class Drawn(NamedTuple):
    """A negative."""

    row: int
    text: str
    score: float | None
    """The teacher's."""


Judge = Callable[[Sequence[Asked]], Sequence[float]]
"""A teacher's scores of some documents for queries of a block."""


class Found(NamedTuple):
    """What is known of a block before any text is read."""

    hits: Hits
    why: NDArray[np.int8]
    """(q, k) why a hit is no negative, as `why_not` says it."""
    judge: Judge | None
    """The teacher, if there is one."""


class Miner:
    """Mines blocks, each by itself: what comes out depends on nothing but the block.

    Args:
        retriever: What searches.
        reader: The generation of its index that is searched.
        texts: Those of the documents.
        config: The rules.
        teacher: `FUSED`, a cross-encoder, or None.
        cache: Where hits are kept; its name says what decides them.
    """

    def __init__(
        self,
        retriever: Retriever,
        reader: Reader,
        texts: StoredDocuments,
        config: MineConfig,
        teacher: "Reranker | str | None",
        cache: Path,
    ) -> None:
        self._retriever, self._reader, self._texts = retriever, reader, texts
        self._config, self._teacher, self._cache = config, teacher, cache

    def find(self, block: Block) -> Found:
        """All that takes the index and its encoders; may run in a thread of its own."""
        scores = QueryScores(self._retriever, self._reader, [one.query for one in block.examples])
        hits = self._hits(block.number, scores)
        positive = np.full(len(block.examples), np.nan, np.float32)
        if self._config.positive_aware:
            found = self._positive_scores(block, scores, hits)
            positive = np.where(np.isnan(found), np.float32(np.inf), found).min(axis=1)
        why = why_not(hits.rows, hits.scores, positive, self._config)
        for name, rows in (("given", block.negatives), ("relevant", block.positives)):
            for column in padded(rows).T:
                why[(hits.rows == column[:, None]) & (hits.rows >= 0)] = REASONS.index(name)
        return Found(hits, why, self._judge(block, scores, hits, why))

    def draw(self, block: Block, found: Found) -> tuple[list[str], Counter[str]]:
        """The lines of a block, and its counts; those of documents left out are named `left out: REASON`."""
        hits, why, judge = found
        counts = Counter(
            {f"left out: {name}": int(np.count_nonzero(why == at)) for at, name in enumerate(REASONS) if at}
        )
        counts["hits"] = int(np.count_nonzero(why >= 0))
        drawing = _Drawing(block, hits, why, self._texts, self._config, counts)
        taught = self._taught(block, judge)
        drawn = drawing.draw(judge, [min(one[0]) - self._config.teacher_margin for one in taught] if judge else None)
        return [self._line(*one, counts) for one in zip(block.examples, taught, drawn, strict=True)], counts

    def _hits(self, number: int, scores: QueryScores) -> Hits:
        """The hits of a block: from the cache, or from a search."""
        path = self._cache / f"block-{number:05d}.hits.npz"
        shape = (len(scores.queries), min(self._config.to_rank, len(self._reader)))
        kept = _kept(path, shape, "rows", "scores")
        if kept is not None:
            return Hits(kept[0].astype(np.int64), kept[1])
        hits = scores.search(self._config.mode, self._config.to_rank)
        rows = hits.rows.astype(np.int32) if self._reader.rows < 2**31 else hits.rows
        _keep(path, rows=rows, scores=hits.scores)
        return hits

    def _positive_scores(self, block: Block, scores: QueryScores, hits: Hits) -> NDArray[np.float32]:
        """Scores (q, p) of the positives in the mode of the search; NaN where a query has fewer."""
        path = self._cache / f"block-{block.number:05d}.positives.npz"
        kept = _kept(path, (len(block.examples), max(map(len, block.positives))), "scores")
        if kept is not None:
            return kept[0]
        known = [_known(*line) for line in zip(hits.rows, hits.scores, strict=True)]
        found = _scores_of(scores, self._config.mode, block.positives, known)
        absent = [
            (line, place)
            for line, rows in enumerate(block.positives)
            for place, row in enumerate(rows)
            if row < 0 and self._config.mode == "dense"
        ]
        if absent:
            self._score_texts(block, scores, absent, found)
        _keep(path, scores=found)
        return found

    def _score_texts(
        self, block: Block, scores: QueryScores, absent: Sequence[tuple[int, int]], found: NDArray[np.float32]
    ) -> None:
        """Encode positives that the index does not hold, and score them as if it did."""
        encoder = self._retriever.encoder
        texts = [block.examples[line].positives[place].text for line, place in absent]
        tokens = encoder.tokenize([Document("", text) for text in texts], long_documents_of(self._reader))
        encoded = encoder.run(tokens)
        owners = range(len(texts)) if encoded.passages is None else encoded.passages[:, 0].tolist()
        for owner, vector in zip(owners, encoded.vectors.astype(np.float64), strict=True):
            line, place = absent[owner]
            score = np.float32(scores.vectors[line].astype(np.float64) @ vector)
            found[line, place] = np.fmax(found[line, place], score)  # a document scores what its best passage does

    def _judge(self, block: Block, scores: QueryScores, hits: Hits, why: NDArray[np.int8]) -> Judge | None:
        """What scores documents as the teacher does."""
        if self._teacher is None:
            return None
        if isinstance(self._teacher, Reranker):
            reranker = self._teacher
            return lambda asked: reranker.scores([(scores.queries[one.line], one.text) for one in asked]).tolist()
        known: list[dict[int, float]] = [{} for _ in block.examples]
        if self._config.mode == _HYBRID:
            known = [_known(*line) for line in zip(hits.rows, hits.scores, strict=True)]
        wanted = [
            [*rows[not_left_out].tolist(), *positives, *negatives]
            for rows, not_left_out, positives, negatives in zip(
                hits.rows, why == 0, block.positives, block.negatives, strict=True
            )
        ]
        found = _scores_of(scores, _HYBRID, wanted, known)
        taught = [_known(np.asarray(rows), line[: len(rows)]) for rows, line in zip(wanted, found, strict=True)]
        return lambda asked: [taught[one.line][one.row] for one in asked]

    def _taught(self, block: Block, judge: Judge | None) -> list[tuple[list[float], list[float]]]:
        """The teacher's scores of each example's positives, and of the negatives that it came with."""
        if judge is None:
            return [([], []) for _ in block.examples]
        asked = [
            Asked(line, row, candidate.text)
            for line, example in enumerate(block.examples)
            for candidate, row in zip(
                (*example.positives, *example.negatives),
                (*block.positives[line], *block.negatives[line]),
                strict=True,
            )
        ]
        scores = iter(judge(asked))
        return [
            ([next(scores) for _ in one.positives], [next(scores) for _ in one.negatives]) for one in block.examples
        ]

    def _line(
        self,
        example: Example,
        taught: tuple[Sequence[float], Sequence[float]],
        drawn: Sequence[Drawn],
        counts: Counter[str],
    ) -> str:
        positives, negatives = taught
        if self._teacher is not None:
            example = example._replace(
                positives=_scored(example.positives, positives), negatives=_scored(example.negatives, negatives)
            )
        missing = self._config.negatives - len(drawn)
        counts.update(
            {
                "examples": 1,
                "positives": len(example.positives),
                "given": len(example.negatives),
                "negatives": len(drawn),
                "missing": missing,
                "short": int(missing > 0),
            }
        )
        mined = (Candidate(text, str(self._reader.ids[row]), _short(score)) for row, text, score in drawn)
        whole = example._replace(negatives=(*example.negatives, *mined))
        return example_line(whole, ids_only=self._config.ids_only, missing=missing)


class _Drawing:
    """Draws negatives of a block's queries, in rounds: a teacher scores no more than may be needed."""

    def __init__(
        self,
        block: Block,
        hits: Hits,
        why: NDArray[np.int8],
        texts: StoredDocuments,
        config: MineConfig,
        counts: Counter[str],
    ) -> None:
        self._hits, self._texts, self._config, self._counts = hits, texts, config, counts
        self._left = [self._candidates(line, one, why[line] == 0) for line, one in enumerate(block.examples)]
        self._drawn: list[list[tuple[int, Drawn]]] = [[] for _ in block.examples]

    def draw(self, judge: Judge | None, limits: Sequence[float] | None) -> list[list[Drawn]]:
        """Draw.

        Args:
            judge: The teacher, if there is one.
            limits: The highest score that it may give to a negative of each query.

        Returns:
            The negatives of each query, at most as many as are wanted, in the order of the hits.
        """
        lines = list(range(len(self._left)))
        while lines:
            asked = [one for line in lines for one in self._next(line)]
            scores = [None] * len(asked) if judge is None else judge([one for _, one in asked])
            for (place, one), score in zip(asked, scores, strict=True):
                if score is not None and limits is not None and score > limits[one.line]:
                    self._counts["left out: teacher"] += 1
                else:
                    self._drawn[one.line].append((place, Drawn(one.row, one.text, score)))
            # Whom nothing is left of was asked for fewer than were wanted.
            still = {one.line for _, one in asked}
            lines = [line for line in lines if line in still and len(self._drawn[line]) < self._config.negatives]
        return [[one for _, one in sorted(some, key=lambda one: one[0])] for some in self._drawn]

    def _next(self, line: int) -> list[tuple[int, Asked]]:
        """As many candidates as are still wanted, or as are left."""
        wanted = self._config.negatives - len(self._drawn[line])
        return list(itertools.islice(self._left[line], wanted))

    def _candidates(self, line: int, example: Example, free: NDArray[np.bool_]) -> Iterator[tuple[int, Asked]]:
        """Hits of a query that may be negatives by their ranks, scores and texts, in the order of drawing."""
        places = np.flatnonzero(free)
        seen = {example.query.strip(): "same_as_query", "": "empty"}
        seen.update({one.text.strip(): "same_as_another" for one in example.negatives})
        seen.update({one.text.strip(): "same_as_positive" for one in example.positives})
        for place in places[drawing_order(len(places), self._config, example.query)].tolist():
            row = int(self._hits.rows[line, place])
            text = self._texts.text(row)
            why = seen.setdefault(text.strip(), "")
            if why:
                self._counts[f"left out: {why}"] += 1
            else:
                seen[text.strip()] = "same_as_another"
                yield place, Asked(line, row, text)


def _scores_of(
    scores: QueryScores, mode: str, rows: Sequence[Sequence[int]], known: Sequence[Mapping[int, float]]
) -> NDArray[np.float32]:
    """Scores (q, m) of each query's own documents: those that are known, or else computed; NaN for row -1."""
    wanted = padded(rows)
    new = [[-1 if row in here else row for row in some] for some, here in zip(rows, known, strict=True)]
    found = np.full(wanted.shape, np.nan, np.float32)
    if any(row >= 0 for some in new for row in some):
        found = scores.of_rows(mode, padded(new))
    for line, (some, here) in enumerate(zip(rows, known, strict=True)):
        for place, row in enumerate(some):
            if row in here:
                found[line, place] = here[row]
    return found


def _known(rows: NDArray[np.int64], scores: NDArray[np.float32]) -> dict[int, float]:
    return {row: score for row, score in zip(rows.tolist(), scores.tolist(), strict=True) if row >= 0}


def _scored(candidates: Sequence[Candidate], scores: Sequence[float]) -> tuple[Candidate, ...]:
    return tuple(one._replace(score=_short(score)) for one, score in zip(candidates, scores, strict=True))


def _short(score: float | None) -> float | None:
    """A float32 in as few digits as bring it back."""
    return None if score is None else float(f"{score:.9g}")


def _kept(path: Path, shape: tuple[int, int], *names: str) -> list[NDArray[np.float32]] | None:
    """Arrays (q, any) of a file; None if there is none, or it is damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[name] for name in names]
        if all(one.shape == shape for one in arrays):
            return arrays
    return None


def _keep(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
