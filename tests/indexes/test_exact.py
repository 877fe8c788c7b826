"""Exact search: the hits of float64 products, whatever multiplies, in blocks of whatever size."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import indexes.exact as exact
import indexes.products as products
from indexes.exact import search_exact
from indexes.products import Bfloat16Products, Float32Products
from indexes.targets import Targets

D = 24


def oracle(queries, rows, k, starts=None, keep=None):
    """Every score in float64, sorted whole: by score as float32, then by number."""
    scores = queries.astype(np.float64) @ rows.astype(np.float64).T
    if starts is not None:
        scores = np.stack([scores[:, a:b].max(axis=1) for a, b in pairwise(starts)], axis=1)
    scores = scores.astype(np.float32)
    numbers = np.arange(scores.shape[1]) if keep is None else np.flatnonzero(keep)
    order = [np.lexsort((numbers, -line[numbers]))[:k] for line in scores]
    return [(numbers[mine], line[numbers[mine]]) for mine, line in zip(order, scores, strict=True)]


def agree(found, expected):
    for rows, scores, (right, best) in zip(found.rows, found.scores, expected, strict=True):
        np.testing.assert_array_equal(rows[: len(right)], right)
        np.testing.assert_array_equal(scores[: len(right)], best)
        assert (rows[len(right) :] == -1).all()
        assert np.isneginf(scores[len(right) :]).all()


@pytest.fixture(params=["float32", "bfloat16"])
def precision(request, monkeypatch):
    """Small blocks, and the products that large searches would choose."""
    monkeypatch.setattr(exact, "_ROWS_AT_ONCE", 64)
    monkeypatch.setattr(products, "_BFLOAT16_QUERIES", 1)
    monkeypatch.setattr(products, "_BFLOAT16_PRODUCTS", 1)
    monkeypatch.setattr(products, "bfloat16_pays", lambda: request.param == "bfloat16")
    return request.param


def vectors(kind, n, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, D)).astype(np.float32)
    if kind == "near":  # closer to each other than bfloat16 can tell apart
        rows = rows[:1] + 1e-3 * rows
    if kind == "twins":
        rows = rows[rng.integers(0, 5, n)]
    if kind == "long":  # among them one that makes every error bound large
        rows[n // 2] *= 1e4
    if kind == "huge":
        rows *= np.float32(1e18)
    if kind == "tiny":
        rows *= np.float32(1e-19)
    if kind == "vanishing":  # their squares are 0 in float32
        rows = (rows[:1] + 1e-6 * rows) * np.float32(1e-25 if seed == 0 else 1e20)
    if kind == "denormal":
        rows *= np.float32(1e-40 if seed == 0 else 1e20)
    if kind == "extreme":  # rounded to bfloat16 it would be infinite
        rows = rows * np.float32(1e-4)
        rows[:, 0] = 0 if seed == 0 else 3.4e38
    return rows


@pytest.mark.parametrize(
    "kind", ["random", "near", "twins", "long", "huge", "tiny", "vanishing", "denormal", "extreme"]
)
@pytest.mark.parametrize("k", [1, 10, 100])
def test_hits_are_those_of_float64(precision, kind, k):
    rows, queries = vectors(kind, 700), vectors(kind, 30, seed=1)
    queries[0] = rows[3]
    queries[1] = 0  # of which all scores are equal
    agree(search_exact(queries, rows, k), oracle(queries, rows, k))
    keep = np.random.default_rng(2).random(700) < 0.2
    agree(search_exact(queries, rows, k, keep=keep), oracle(queries, rows, k, keep=keep))


@pytest.mark.parametrize("kind", ["random", "near", "twins"])
def test_documents_count_by_their_best_row(precision, kind):
    rows, queries = vectors(kind, 700), vectors(kind, 20, seed=1)
    starts = np.unique(np.random.default_rng(3).integers(1, 700, 200))
    # One document is longer than a block.
    starts = np.concatenate([[0], starts[(starts < 300) | (starts > 450)], [700]])
    targets = Targets(rows, starts)
    assert len(targets) == len(starts) - 1
    agree(search_exact(queries, targets, 10), oracle(queries, rows, 10, starts))
    keep = np.random.default_rng(2).random(len(targets)) < 0.3
    agree(search_exact(queries, targets, 10, keep=keep), oracle(queries, rows, 10, starts, keep))


def test_most_is_left_out_by_fast_products(precision, monkeypatch):
    scored = []
    of = Targets.scores_of_pairs

    def count(self, queries, lines, numbers):
        scored.append(len(numbers))
        return of(self, queries, lines, numbers)

    monkeypatch.setattr(Targets, "scores_of_pairs", count)
    monkeypatch.setattr(exact, "_ROWS_AT_ONCE", 1000)
    rows, queries = vectors("random", 20_000), vectors("random", 20, seed=1)
    agree(search_exact(queries, rows, 5), oracle(queries, rows, 5))
    assert 0 < sum(scored) < 0.02 * 20 * 20_000


def test_more_hits_than_rows_and_none_to_keep():
    rows, queries = vectors("random", 5), vectors("random", 3)
    agree(search_exact(queries, rows, 8), oracle(queries, rows, 8))
    agree(
        search_exact(queries, rows, 8, keep=np.zeros(5, bool)), [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * 3
    )
    assert search_exact(queries[:0], rows, 8).rows.shape == (0, 8)
    assert (search_exact(queries, rows[:0], 2).rows == -1).all()


def test_rows_in_reverse_and_read_only(precision, recwarn):
    rows, queries = vectors("random", 700), vectors("random", 30, seed=1)
    agree(search_exact(queries, rows[::-1], 10), oracle(queries, rows[::-1], 10))
    rows.flags.writeable = False
    agree(search_exact(queries, rows, 10), oracle(queries, rows, 10))
    assert not recwarn.list


def test_queries_in_groups_and_unaligned_rows(monkeypatch):
    rows, queries = vectors("random", 300), vectors("random", 40)
    monkeypatch.setattr(exact, "_QUERIES_AT_ONCE", 7)
    shifted = np.frombuffer(b"." + rows.tobytes(), np.uint8)[1:].view(np.float32).reshape(rows.shape)
    assert not shifted.flags.aligned
    agree(search_exact(queries, shifted, 10), oracle(queries, rows, 10))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 3, 64, 768]), st.sampled_from([1e-20, 1e-3, 1.0, 1e15]))
def test_no_product_strays_farther_than_its_bound(seed, dim, scale):
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=(50, dim)) * rng.choice([1, 1e-3, 1 + 2**-8, 3], size=(50, dim)) * scale).astype(np.float32)
    queries = rng.normal(size=(9, dim)).astype(np.float32)
    queries[:4] = rows[:4] / np.float32(scale)  # scores near the largest there can be
    truth = (queries.astype(np.float64) @ rows.astype(np.float64).T).astype(np.float32)
    for make in (Float32Products, Bfloat16Products):
        multiply = make(queries, Targets(rows).longest)
        for column in range(0, 50, 7):
            limits = np.nextafter(truth[:, column], np.float32(-np.inf))  # this column is above it, by a hair
            lines, columns, low, high = multiply.above(rows, None, limits, 1)
            passing = np.zeros(truth.shape, bool)
            passing[lines, columns] = True
            assert passing[truth > limits[:, None]].all()
            assert (low <= truth[lines, columns]).all()
            assert (truth[lines, columns] <= high).all()


def test_the_bounds_are_not_wide():
    rng = np.random.default_rng(0)
    rows, queries = (unit(rng.normal(size=(n, 384))) for n in (500, 100))
    truth = queries.astype(np.float64) @ rows.T
    for make, near in ((Float32Products, 5e-5), (Bfloat16Products, 0.02)):
        for limit in (0.1, -0.1):
            multiply = make(queries, 1.0)
            limits = np.full(100, limit, np.float32)
            lines, columns, low, high = multiply.above(rows, None, limits, 1)
            assert (truth[lines, columns] > limits[lines] - near).all()
            assert (high - low < near).all()


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
