"""Filters and attributes: what a condition means, what is refused, and hits that all meet it."""

import contextlib
import datetime
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes.attributes import Attributes
from indexes.errors import InputError
from indexes.filters import Combined, Condition, parse_filter
from indexes.index import Index
from indexes.transfer import save_vectors

ROWS = [
    {"year": 2019, "lang": "en", "price": 1.5, "tags": ["tea", "cup"], "done": True, "day": datetime.date(2024, 5, 1)},
    {"year": 2020, "lang": "de", "price": 2, "tags": [], "done": False, "day": datetime.date(2024, 5, 2)},
    {"year": 2021, "lang": 'f"r', "price": float("nan"), "tags": ["cup"], "done": None, "not": "x"},
    {},
    {"year": 2020, "lang": "en", "price": -3.0, "tags": None, "done": True},
]


@pytest.fixture
def attributes():
    return Attributes.of(ROWS, [f"d{row}" for row in range(len(ROWS))])


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("year >= 2020", [1, 2, 4]),
        ("year > 2019.5 and year < 2.021e3", [1, 4]),
        ("year = 2020", [1, 4]),
        ("year != 2020", [0, 2]),
        ("not year == 2020", [0, 2]),
        ("year in [2019, 2021.0, 2020.5]", [0, 2]),
        ("year == 2020.5 or year == 2021.0", [2]),
        ("year != 2020.5", [0, 1, 2, 4]),
        ("year < 2019.5", [0]),
        ("year <= 2019.5", [0]),
        ("year > 2020.5 or year >= 2020.5", [2]),
        ("price in [-3, 0]", [4]),
        ("day == '2024-05-01T02:00:00+02:00'", [0]),
        ("year not in [2019]", [1, 2, 4]),
        ("year in []", []),
        ("year not in []", [0, 1, 2, 4]),
        ("year is null", [3]),
        ("year is not null and not (lang == 'en')", [1, 2]),
        ("price <= -3", [4]),
        ("price is null", [2, 3]),
        ('lang == "f\\"r"', [2]),
        ("lang starts with 'e'", [0, 4]),
        ("lang > 'de'", [0, 2, 4]),
        ("tags contains 'cup'", [0, 2]),
        ("not tags contains 'tea'", [1, 2]),
        ("tags is null", [3, 4]),
        ("done", [0, 4]),
        ("not done", [1]),
        ("done == false or done is null", [1, 2, 3]),
        ("day >= '2024-05-02'", [1]),
        ("day < '2024-05-01T00:00:01'", [0]),
        ("`not` == 'x'", [2]),
        ("year == 2019 or year == 2020 and lang == 'de'", [0, 1]),
        ("(year == 2019 or year == 2020) and lang == 'en'", [0, 4]),
    ],
)
def test_a_condition_is_met_by_its_rows(attributes, condition, rows, tmp_path):
    assert np.flatnonzero(attributes.matching(condition)).tolist() == rows
    attributes.save(tmp_path / "a.arrow")
    again = Attributes.open(tmp_path / "a.arrow")
    assert np.flatnonzero(again.matching(condition)).tolist() == rows
    assert again.row(1) == {
        "year": 2020,
        "lang": "de",
        "price": 2.0,
        "tags": [],
        "done": False,
        "day": datetime.datetime(2024, 5, 2),
    }


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ("", "has 'the end' at character 1; expected a field"),
        ("year >=", 'expected a "text", a number, true or false there'),
        ("year >= lang", "has 'lang' at character 9"),
        ("year >= 2020 lang", "expected 'and', 'or' or the end"),
        ("(year >= 2020", r"expected '\)'"),
        ("year in 2020", r"expected '\['"),
        ("year in [2020", "expected ',' or ']'"),
        ("year; import os", "stray ';' at character 5"),
        ("__import__('os')", r"has '\(' at character 11"),
        ("month == 1", "asks for 'month'; the attributes of this index are year, lang"),
        ("year == '2020'", "year holds whole numbers; it cannot be compared with '2020'"),
        ("lang == 1", "lang holds texts"),
        ("done > true", "only == or !="),
        ("year", "cannot be compared with True"),
        ("tags == 'tea'", "ask whether it contains one"),
        ("lang contains 'e'", "only lists contain"),
        ("year starts with 2", "only texts start"),
        ("day > 'yesterday'", "'yesterday' is no value of day"),
        ("year > 99999999999999999999", "is no value of year"),
        ("price > 1e999", "price holds numbers; it cannot be compared with inf"),
        ("not " * 60 + "done", "more than 50 deep"),
        ("year == " + "9" * 400, "is no value of year"),
        ("year == " + "9" * 5000, "has 5000 characters; expected at most 400"),
        ("year in [1e300]", "is no value of year"),
        ("lang starts with '\ud800'", "no value of lang"),
        ("day in ['20000-01-01']", "no value of day"),
        ("day < '999999-01-01'", "no value of day"),
        ("day == 'now'", "no value of day"),
        ("day == ''", "no value of day"),
    ],
)
def test_what_is_no_filter_is_refused(attributes, condition, why):
    with pytest.raises(InputError, match=why):
        attributes.matching(condition)


def test_a_filter_is_parsed():
    assert parse_filter("a == 1 or not b in ['x']") == Combined(
        "or", (Condition("a", "==", 1), Combined("not", (Condition("b", "in", ("x",)),)))
    )


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="year lang()[]\"',<>=!andortgs0123.5\\`", max_size=40))
def test_any_text_is_a_filter_or_refused(text):
    attributes = Attributes.of(ROWS, [f"d{row}" for row in range(len(ROWS))])
    with contextlib.suppress(InputError):
        assert attributes.matching(text).shape == (len(ROWS),)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([{"a": 1}, {"a": "x"}], r"'a' is a whole number in document 'd0', a text in 'd1' \('x'\)"),
        ([{"a": [1]}, {"a": 1}], "'a' is a list in document 'd0', 1 in 'd1'"),
        ([{"a": {"b": 1}}], "'a' of document 'd0' is {'b': 1}; expected bool"),
        ([{"a": 2**70}], "64 bits"),
        ([{"a": "\ud800"}], "half a character"),
        ([{5: 1}], "called 5; expected a text"),
    ],
)
def test_attributes_of_mixed_kinds_are_refused(rows, why):
    with pytest.raises(InputError, match=why):
        Attributes.of(rows, [f"d{row}" for row in range(len(rows))])


def test_numbers_of_numpy_are_numbers_and_whole_ones_beside_others_floats():
    table = Attributes.of([{"a": np.int32(1)}, {"a": np.float32(0.5)}], ["x", "y"])
    assert [table.row(0), table.row(1)] == [{"a": 1.0}, {"a": 0.5}]
    assert len(Attributes.of([{}, {}], ["x", "y"])) == 2


N, D = 1500, 16
FACTORIES = [
    "Flat",
    "HNSW16",
    "HNSW16_SQ8",
    "IVF16,Flat",
    "IVF16,SQ8",
    "IVF16,PQ8x4fs",
    "PQ8x4fs",
    "SQ8",
    "PCA8,IVF16,Flat",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(N, D)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids = [f"d{row}" for row in range(N)]
    return save_vectors(tmp_path_factory.mktemp("v") / "v", rows, ids, made_by={"normalize": True})


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("few", [0, 10**9])
def test_hits_meet_the_filter_and_none_is_missing(store, factory, few, tmp_path, monkeypatch):
    """Whether FAISS filters (few = 0) or all that is kept is searched."""
    monkeypatch.setattr("indexes.approximate._FEW_ROWS", few)
    chance = random.Random(0)
    attributes = {f"d{row}": {"part": chance.choices(range(4), [500, 300, 20, 1])[0], "row": row} for row in range(N)}
    index = Index.build(store, factory, tmp_path / "i", attributes=attributes)
    queries = store[:20]
    for condition in ("part == 0", "part == 1", "part == 2", "part in [2, 3]", "row < 3", "part != 0 and row >= 700"):
        keep = index.reader.matching(condition)
        exact = np.where(keep, (queries.astype(np.float64) @ store[:].T.astype(np.float64)), -np.inf)
        for k in (1, 10, 400):
            found = index.search(queries, k, filter=condition)
            assert found.rows.shape == (20, min(k, keep.sum()))
            assert found.rows.min() >= 0
            assert keep[found.rows].all()
            assert all(len(set(line)) == len(line) for line in found.rows.tolist())
            np.testing.assert_array_equal(found.scores, np.take_along_axis(exact, found.rows, 1).astype(np.float32))
            order = np.argsort(-exact, axis=1, kind="stable")[:, : found.rows.shape[1]]
            recall = np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.rows, order, strict=True)])
            assert recall == 1 if few else recall > 0.8
    assert index.search(queries, 5, filter="row < 0").rows.shape == (20, 0)
    mask = np.arange(N) % 2 == 1
    assert (index.search(queries, 5, filter=mask).rows % 2 == 1).all()
    again = Index.open(tmp_path / "i").search(queries, 10, filter="part == 1")
    np.testing.assert_array_equal(again.rows, index.search(queries, 10, filter="part == 1").rows)


def test_times_of_all_kinds_are_in_utc_and_not_a_time_is_null():
    zone = datetime.timezone(datetime.timedelta(hours=2))
    times = [datetime.datetime(2024, 5, 1, 2, tzinfo=zone), np.datetime64("2024-05-01", "ns"), np.datetime64("NaT")]
    table = Attributes.of([{"a": time, "b": -0.0, "c": np.array(3)} for time in times], ["x", "y", "z"])
    assert table.matching("a == '2024-05-01'").tolist() == [True, True, False]
    assert table.matching("a is null").tolist() == [False, False, True]
    assert table.matching("b in [0] and b == -0.0 and c == 3").all()


def test_whole_numbers_beyond_floats_are_compared_exactly():
    table = Attributes.of([{"a": 2**53 + 1}, {"a": 2**53}], ["x", "y"])
    assert table.matching(f"a == {2**53 + 1}").tolist() == [True, False]
    assert table.matching("a > 1.5").all()


@pytest.mark.parametrize("factory", ["IVF64,Flat", "IVF64,SQ8", "IVF64,PQ8x4fs", "IVF64,RQ2x4", "NSG16"])
def test_lists_that_take_a_filter_and_lists_that_do_not(tmp_path, monkeypatch, factory):
    monkeypatch.setattr("indexes.approximate._FEW_ROWS", 0)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    store = save_vectors(tmp_path / "v", rows, [f"d{row}" for row in range(3000)], made_by={"normalize": True})
    index = Index.build(store, factory, tmp_path / "i")
    keep = rng.random(3000) < 0.6
    found = index.search(rows[:20], 10, filter=keep)
    assert keep[found.rows].all()
    exact = np.where(keep, rows[:20].astype(np.float64) @ rows.T.astype(np.float64), -np.inf)
    right = np.argsort(-exact, axis=1)[:, :10]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.rows, right, strict=True)]) > 0.7


@pytest.mark.parametrize("queries", [3, 40])
def test_queries_that_lie_far_from_what_is_kept_are_answered_exactly_by_graphs(tmp_path, monkeypatch, queries):
    """Where a filter leaves out what lies near a query, a graph's way ends among rows that are not to be kept."""
    monkeypatch.setattr("indexes.approximate._FEW_ROWS", 0)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 24))
    owners = rng.integers(30, size=6000)
    rows = centres[owners] + 0.25 * rng.normal(size=(6000, 24))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    store = save_vectors(tmp_path / "v", rows, [f"d{row}" for row in range(6000)], made_by={"normalize": True})
    index = Index.build(store, "HNSW4", tmp_path / "i")
    keep = owners >= 15
    asked = rows[~keep][:queries]
    exact = np.where(keep, asked.astype(np.float64) @ rows.T.astype(np.float64), -np.inf)
    right = np.argsort(-exact, axis=1, kind="stable")[:, :10]
    dense = index.reader.segments[0].dense
    _, _, parameters = dense._plan(queries, 10, keep, index.reader.effort)
    assert parameters is not None, "FAISS filters here"
    bare = dense._index.search(asked, 10, params=parameters)[1]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(bare.tolist(), right.tolist(), strict=True)]) < 0.95
    np.testing.assert_array_equal(index.search(asked, 10, filter=keep).rows, right)


def test_an_index_of_another_metric_is_not_built(store, tmp_path):
    with pytest.raises(InputError, match="compares by another metric than inner products"):
        Index.build(store, "IVF64,ITQ16,SH", tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_filters_without_attributes_or_of_another_shape_are_refused(store, tmp_path):
    index = Index.build(store, "Flat", tmp_path / "i")
    with pytest.raises(InputError, match="has no attributes to filter by"):
        index.search(store[:1], 1, filter="a == 1")
    with pytest.raises(InputError, match=r"expected a text, or bool of \(1500,\)"):
        index.search(store[:1], 1, filter=np.ones(3, bool))
    with pytest.raises(InputError, match="1 documents that the vectors lack, such as 'x'"):
        Index.build(store, "Flat", tmp_path / "j", attributes={"x": {}})
    assert not (tmp_path / "j").exists()
