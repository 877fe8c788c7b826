"""Mixtures: shares that are exact over time, an order that depends on nothing but its seed."""

import json
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from indexes.errors import InputError
from pretraining.mixture import MixedOrder, Mixture

SOURCES = np.repeat([0, 1, 2], [40, 9, 25]).astype(np.uint16)
WEIGHTS = (1.0, 3.0, 0.3)


def share(source: int) -> Fraction:
    return int((SOURCES == source).sum()) * Fraction(repr(WEIGHTS[source]))


def test_every_epoch_is_the_multiset_that_the_weights_say():
    order = MixedOrder(SOURCES, WEIGHTS, 10_000, 5)
    total: Counter[int] = Counter()
    for number in range(20):
        epoch = order.epoch(number).tolist()
        total.update(epoch)
        of = Counter(SOURCES[epoch].tolist())
        for source in range(3):
            weight = share(source)
            assert of[source] == math.floor((number + 1) * weight) - math.floor(number * weight)
            times = [total[row] for row in np.flatnonzero(SOURCES == source).tolist()]
            assert sum(times) == math.floor((number + 1) * weight)
            assert max(times) - min(times) <= 1, "no row comes again before all others did"
    assert [total[row] for row in (0, 40, 49)] == [20, 60, 6]


def test_every_stretch_has_its_share():
    order = MixedOrder(SOURCES, WEIGHTS, 10_000, 5)
    for number in (0, 7):
        of = SOURCES[order.epoch(number)]
        for source in range(3):
            count = np.cumsum(of == source)
            assert np.abs(count - count[-1] * np.arange(1, len(of) + 1) / len(of)).max() <= 3
        assert len(set(of[:10].tolist())) > 1


def test_the_order_depends_on_the_seed_alone_and_epochs_differ():
    rows = list(MixedOrder(SOURCES, WEIGHTS, 500, 5))
    assert rows == list(MixedOrder(SOURCES, WEIGHTS, 500, 5))
    assert rows[:300] == list(MixedOrder(SOURCES, WEIGHTS, 300, 5)), "its end does not matter"
    assert rows != list(MixedOrder(SOURCES, WEIGHTS, 500, 6))
    order = MixedOrder(SOURCES, WEIGHTS, 500, 5)
    late, early = order.epoch(3).tolist(), order.epoch(0).tolist()
    assert rows[: len(early)] == early
    assert order.epoch(3).tolist() == late != early
    assert len(rows) == len(order) == 500
    assert [list(MixedOrder(SOURCES, WEIGHTS, total, 5)) for total in (0, 1)] == [[], rows[:1]]


def test_rows_that_are_drawn_anew_are_counted_on():
    plain = MixedOrder(SOURCES, WEIGHTS, 2000, 5)
    anew = MixedOrder(SOURCES, WEIGHTS, 2000, 5, anew=True)
    numbers = np.array(list(anew))
    assert (numbers % len(SOURCES)).tolist() == list(plain)
    assert len(set(numbers.tolist())) == 2000, "every time another draw"
    assert Counter((numbers[numbers % len(SOURCES) == 0] // len(SOURCES)).tolist()).keys() == set(
        range(int((numbers % len(SOURCES) == 0).sum()))
    )


def test_weights_that_give_no_row_in_most_epochs():
    order = MixedOrder(np.array([0, 0, 1]), (0.001, 0.01), 50, 0)
    assert Counter(list(order)) == {0: 4, 1: 4, 2: 42} or Counter(list(order))[2] in (41, 42, 43)


def test_mixtures_as_they_are_given(tmp_path):
    assert Mixture.of("a.jsonl") == Mixture(("a.jsonl",), (1.0,)) == Mixture.parse("a.jsonl", [])
    mixture = Mixture.parse("a.jsonl", ["hf:x@train=3", "b=c.jsonl=0.5"])
    assert mixture == Mixture(("a.jsonl", "hf:x@train", "b=c.jsonl"), (1.0, 3.0, 0.5))
    assert Mixture.of({"a.jsonl": 1, "hf:x@train": 3, "b=c.jsonl": 0.5}) == Mixture.of(mixture) == mixture
    assert Mixture.of(tmp_path).names() == str(tmp_path)
    assert mixture.names() == {"a.jsonl": 1.0, "hf:x@train": 3.0, "b=c.jsonl": 0.5}


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({}, "corpus is {}; expected a path, a name, or a mapping"),
        (["a", "b"], "expected a path, a name, or a mapping"),
        ({"a": 0}, "weight of a is 0; expected a number from 0.001 to 1000"),
        ({"a": 1, "b": -2.0}, "weight of b is -2.0"),
        ({"a": float("nan")}, "weight of a is nan"),
        ({"a": 1e6}, "weight of a is 1000000.0"),
        ({"a": True}, "weight of a is True"),
        ({"a": "2"}, "weight of a is '2'"),
    ],
)
def test_mixtures_that_are_none(corpus, message):
    with pytest.raises(InputError, match=message):
        Mixture.of(corpus)


@pytest.mark.parametrize(
    ("also", "message"),
    [
        (["b"], "--also b has no weight; expected CORPUS=WEIGHT, such as b=2"),
        (["b=two"], "--also b=two has no weight"),
        (["=2"], "--also =2 has no weight"),
        (["b=nan"], "--also b=nan has no weight"),
        (["b=0"], "weight of b is 0.0; expected a number from 0.001"),
        (["b=2", "b=3"], "b is given twice; name it once, with a higher weight"),
        (["a=3"], "a is given twice"),
    ],
)
def test_options_that_are_none(also, message):
    with pytest.raises(InputError, match=message):
        Mixture.parse("a", also)


def test_one_corpus_twice_is_refused(tmp_path):
    line = json.dumps({"_id": "1", "text": "tea"}) + "\n"
    for name in ("corpus.jsonl", "copy.jsonl"):
        (tmp_path / name).write_text(line)
    one, copy = str(tmp_path / "corpus.jsonl"), str(tmp_path / "copy.jsonl")
    with pytest.raises(InputError, match=r"\./corpus.jsonl and .*corpus.jsonl are one corpus"):
        Mixture.of({one: 1, f"{tmp_path}/./corpus.jsonl": 2})
    for other in (copy, str(tmp_path)):
        with pytest.raises(InputError, match="hold the same; name one of them, with a higher weight"):
            Mixture.of({one: 1, other: 2}).digests()
