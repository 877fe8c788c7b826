"""Batches hold every text once and little padding; work done ahead keeps its order, its errors and no threads."""

import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes.errors import InputError
from retrieval.batches import Batch, ahead, token_batches

PAD = 99


def aheads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "ahead"}


@pytest.fixture
def is_alive():
    """Whether a thread runs that this test started."""
    others = aheads()
    return lambda: bool(aheads() - others)


def wait_until(condition) -> None:
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    assert condition()


def rows_of_tokens(batch: Batch) -> dict[int, list[int]]:
    """Each text of a batch, by its mask; that nothing but padding lies outside of it is checked."""
    assert batch.ids.shape == batch.mask.shape == (len(batch.rows), batch.ids.shape[1])
    assert {array.dtype for array in batch} == {np.dtype(np.int64)}
    assert (batch.ids[batch.mask == 0] == PAD).all()
    assert (np.diff(batch.mask, axis=1) <= 0).all()  # padding is on the right
    zipped = zip(batch.rows.tolist(), batch.ids, batch.mask, strict=True)
    return {row: ids[mask == 1].tolist() for row, ids, mask in zipped}


texts = st.lists(st.lists(st.integers(0, 50), max_size=20), max_size=30)


@settings(deadline=None)
@given(texts, st.integers(1, 60))
def test_every_text_is_in_one_batch_within_the_budget(tokens, budget):
    batches = list(token_batches(tokens, budget, PAD))
    found = [item for batch in batches for item in rows_of_tokens(batch).items()]
    assert sorted(found) == list(enumerate(tokens))
    for batch in batches:
        longest = max(len(tokens[row]) for row in batch.rows)
        assert batch.ids.shape[1] == max(longest, 1)  # no wider than it must be
        assert batch.ids.size <= budget or len(batch.rows) == 1
    lengths = [len(tokens[row]) for batch in batches for row in batch.rows]
    assert lengths == sorted(lengths, reverse=True)
    for first, second in itertools.pairwise(batches):  # and none is left emptier than it need be
        assert first.ids.shape[1] * (len(first.rows) + 1) > budget
        assert first.rows[-1] < second.rows[0] or len(tokens[first.rows[-1]]) > len(tokens[second.rows[0]])


@settings(deadline=None)
@given(texts)
def test_the_same_texts_make_the_same_batches(tokens):
    for one, two in zip(token_batches(tokens, 40, PAD), token_batches(list(map(tuple, tokens)), 40, PAD), strict=True):
        assert all(np.array_equal(*pair) for pair in zip(one, two, strict=True))


def test_a_text_longer_than_the_budget_is_alone():
    batches = list(token_batches([[1] * 3, [2] * 50, [3] * 3], 10, PAD))
    assert [batch.rows.tolist() for batch in batches] == [[1], [0, 2]]
    assert batches[0].ids.shape == (1, 50)


@pytest.mark.parametrize(
    ("longest", "most", "width"),
    [(255, 256, 256), (249, 512, 256), (248, 512, 248), (47, 512, 48), (255, 255, 255), (16, 512, 16), (15, 512, 15)],
)
def test_batches_are_filled_up_to_a_near_multiple_of_16_that_the_model_reads(longest, most, width):
    (batch,) = token_batches([[1] * 9, [2] * longest], 10_000, PAD, most)
    assert batch.ids.shape[1] == width
    assert rows_of_tokens(batch) == {0: [1] * 9, 1: [2] * longest}


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 50), max_size=20), min_size=2, max_size=9))
def test_halves_are_the_batch_and_no_wider_than_their_texts(tokens):
    (batch,) = token_batches(tokens, 10_000, PAD)
    first, second = batch.split()
    assert abs(len(first.rows) - len(second.rows)) <= 1
    assert np.concatenate([first.rows, second.rows]).tolist() == batch.rows.tolist()
    assert {**rows_of_tokens(first), **rows_of_tokens(second)} == dict(enumerate(tokens))
    for half in (first, second):
        assert half.ids.shape[1] == max(1, *(len(tokens[row]) for row in half.rows))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers()), st.integers(1, 4))
def test_ahead_passes_everything_on_in_order(items, depth):
    before = aheads()
    assert list(ahead(items, depth)) == items
    assert aheads() == before


def test_items_are_made_in_another_thread():
    (maker,) = ahead(threading.current_thread() for _ in range(1))
    assert maker is not threading.current_thread()


def test_ahead_raises_an_exception_in_its_place(is_alive):
    def items():
        yield 1
        yield 2
        raise InputError("line 3 is no document")

    found = []
    with pytest.raises(InputError, match=r"^line 3 is no document$"):  # noqa: PT012 - the loop raises
        for item in ahead(items(), 3):
            found.append(item)
    assert found == [1, 2]
    assert not is_alive()


@pytest.mark.parametrize("depth", [1, 3])
def test_ahead_makes_no_more_than_it_may(is_alive, depth):
    """Of an endless source: `depth` items wait, and one more is in the maker's hands."""
    made = []
    source = (made.append(number) or number for number in itertools.count())
    stream = ahead(source, depth)
    for taken in range(1, 20):
        assert next(stream) == taken - 1
        if taken % 5 == 0:
            wait_until(lambda taken=taken: len(made) >= taken + depth)  # it does work ahead
            time.sleep(0.01)
        assert len(made) <= taken + depth + 1
    stream.close()
    assert not is_alive()


def test_closing_early_ends_the_thread_while_it_waits_and_while_it_works(is_alive):
    stream = ahead(itertools.count())
    next(stream)
    assert is_alive()
    stream.close()
    assert not is_alive()

    started, go_on = threading.Event(), threading.Event()

    def slow():
        yield 1
        started.set()
        go_on.wait(5)
        yield 2
        raise AssertionError("made an item for nobody")

    stream = ahead(slow())
    next(stream)
    started.wait(5)
    threading.Timer(0.05, go_on.set).start()
    stream.close()
    assert not is_alive()


def test_an_error_of_the_reader_ends_the_thread(is_alive):
    with pytest.raises(KeyError):  # noqa: PT012 - the loop raises
        for _ in ahead(itertools.count()):
            raise KeyError
    wait_until(lambda: not is_alive())


def test_nothing_is_started_before_the_first_item_is_asked_for(is_alive):
    stream = ahead(itertools.count())
    assert not is_alive()
    stream.close()
