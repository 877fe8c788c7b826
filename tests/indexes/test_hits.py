"""Top-k: order, ties, padding, and merging, against a plain sort."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from indexes.hits import Hits, merge, top


def plain_top(scores, k):
    lines = []
    for line in scores:
        order = sorted((row for row in range(len(line)) if line[row] != -np.inf), key=lambda row: (-line[row], row))
        lines.append((order + [-1] * k)[:k])
    return np.array(lines)


@given(
    arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=st.sampled_from([-np.inf, 0, 0.5, 1, 2])
    ),
    st.integers(1, 40),
)
def test_equals_a_plain_sort_with_ties_by_row(scores, k):
    found = top(scores, k)
    np.testing.assert_array_equal(found.rows, plain_top(scores, k))
    assert found.rows.shape == found.scores.shape == (len(scores), k)
    taken = found.rows >= 0
    np.testing.assert_array_equal(np.take_along_axis(scores, np.maximum(found.rows, 0), 1)[taken], found.scores[taken])
    assert np.isneginf(found.scores[~taken]).all()


@given(
    arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(2, 30)), elements=st.integers(0, 4).map(float)),
    st.integers(1, 12),
    st.data(),
)
def test_merging_parts_equals_the_whole(scores, k, data):
    cut = data.draw(st.integers(1, scores.shape[1] - 1))
    left, right = top(scores[:, :cut], k), top(scores[:, cut:], k)
    right = Hits(np.where(right.rows >= 0, right.rows + cut, -1), right.scores)
    whole = top(scores, k)
    joined = merge([left, right], k)
    np.testing.assert_array_equal(joined.rows, whole.rows)
    np.testing.assert_array_equal(joined.scores, whole.scores)


@pytest.mark.parametrize("k", [1, 3])
def test_one_line_and_named_rows(k):
    found = top(np.array([0.1, 0.9, 0.5], np.float32), k, np.array([7, 5, 3]))
    assert found.rows[0].tolist() == [5, 3, 7][:k]
