"""Learned weights of terms: inner products against a plain computation, through all that happens to an index."""

import numpy as np
import pytest

from indexes.errors import InputError
from indexes.index import Index
from indexes.lexical import Impacts
from indexes.postings import Postings
from indexes.segments import Entry
from indexes.transfer import save_vectors
from retrieval.fusion import search_sums

N, D, TERMS = 400, 16, 60
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(N, D)).astype(np.float32)
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)
WEIGHTS = np.where(RNG.random((N, TERMS)) < 0.15, RNG.gamma(1.0, 1.0, (N, TERMS)), 0).astype(np.float32)
ASKED = [{f"t{term}": float(RNG.gamma(1.0)) for term in RNG.choice(TERMS + 3, 5, replace=False)} for _ in range(12)]


def entry(number, begin="d"):
    terms = {f"t{term}": float(WEIGHTS[number, term]) for term in range(TERMS)}  # zeros included
    return Entry(f"{begin}{number}", terms, f"text {number}", {"odd": bool(number % 2)})


def build(tmp_path, count=N, **how):
    store = save_vectors(tmp_path / "v", ROWS[:count], [f"d{n}" for n in range(count)], made_by={"normalize": True})
    return Index.build(store, "Flat", tmp_path / "i", entries=map(entry, range(count)), **how)


def plain(asked):
    """Scores (q, n) by the definition."""
    queries = np.array([[one.get(f"t{term}", 0.0) for term in range(TERMS)] for one in asked])
    return (queries @ WEIGHTS.T.astype(np.float64)).astype(np.float32)


def best(scores, k, keep=None):
    scores = np.where(scores > 0, scores, -np.inf) if keep is None else np.where((scores > 0) & keep, scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(scores, order, 1) == -np.inf, -1, order)


def test_scores_are_inner_products(tmp_path):
    index = build(tmp_path)
    assert isinstance(index.reader.lexical, Impacts)
    for asked, line in zip(ASKED, plain(ASKED), strict=True):
        np.testing.assert_allclose(index.reader.lexical.scores(asked), line, rtol=1e-6)
    keep = np.arange(N) % 3 == 0
    for k in (1, 10, N):
        assert (index.reader.lexical.search(ASKED, k).rows == best(plain(ASKED), k)).all()
        assert (index.reader.lexical.search(ASKED, k, keep).rows == best(plain(ASKED), k, keep)).all()
    assert index.reader.lexical.search([{"unknown": 1.0}, {}], 3).rows.max() == -1
    assert index.reader.lexical.search([], 3).rows.shape == (0, 3)


def test_what_happens_to_an_index_changes_no_score(tmp_path):
    index = build(tmp_path, 300, segments=3)
    more = save_vectors(tmp_path / "m", ROWS[300:], [f"d{n}" for n in range(300, N)], made_by={"normalize": True})
    index.add(more, entries=map(entry, range(300, N)))
    index.delete([f"d{n}" for n in range(0, N, 7)])
    live = np.arange(N) % 7 > 0
    expected = plain(ASKED)
    for step in ("segments", "compacted", "opened"):
        rows = np.flatnonzero(live) if step != "segments" else np.arange(N)
        for asked, line in zip(ASKED, expected, strict=True):
            found = index.reader.lexical.scores(asked)
            mask = live if step == "segments" else np.ones(len(rows), bool)
            np.testing.assert_allclose(found[mask], line[rows][mask], rtol=1e-6, err_msg=step)
        if step == "segments":
            index.compact()
        index = Index.open(index.folder, "full")
    assert [one.text for one in index][:2] == ["text 1", "text 2"]


def test_the_sum_with_dense_scores_is_exact(tmp_path):
    index = build(tmp_path)
    vectors = ROWS[: len(ASKED)]
    total = vectors.astype(np.float64) @ ROWS.T.astype(np.float64) + 0.1 * plain(ASKED)
    for k in (1, 10, 50):
        found = search_sums(index.reader, vectors, ASKED, k, weight=0.1)
        order = np.argsort(-total, axis=1, kind="stable")[:, :k]
        assert (found.rows == order).all()
        np.testing.assert_allclose(found.scores, np.take_along_axis(total, order, 1), rtol=1e-5)


def test_counts_and_weights_are_not_mixed(tmp_path):
    with pytest.raises(InputError, match="document 2 has terms to be counted, those before it weights of terms"):
        Postings.of([{"a": 1.0}, ["a"]])
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="document 1 has weight .* for 'a'; expected 0 or more, and finite"):
            Postings.of([{"a": wrong}])
    index = build(tmp_path, 50)
    before = index.reader.manifest
    more = save_vectors(tmp_path / "m", ROWS[50:51], ["x"], made_by={"normalize": True})
    with pytest.raises(InputError, match="holds weights of terms; the entries have terms, for BM25"):
        index.add(more, entries=[Entry("x", ["a"], "text")])
    with pytest.raises(InputError, match="the query is terms; this index holds weights of terms"):
        index.reader.lexical.scores(["a"])
    assert Index.open(index.folder).reader.manifest == before
