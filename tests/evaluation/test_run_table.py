"""Runs as arrays: the same mapping as of rankings, checked, kept in .npz files and read back as they were."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.rankings import make_ranking
from evaluation.run_table import RunTable, longest, only, without_self_matches
from evaluation.runs import read_run, read_table, write_run
from indexes.errors import InputError
from indexes.hits import Hits

RUN = {
    "q 1": make_ranking(["a", "b b", "é"], np.float32([0.1, 1 / 3, 1e-30]), place="q1"),
    "none": make_ranking([], [], place="none"),
    "a": make_ranking(["a", "y", "x"], [-0.0, 7.0, 7.0], place="a"),
}


def same(one, other):
    return list(one) == list(other) and all(
        one[query].ids == other[query].ids and one[query].scores.tobytes() == other[query].scores.tobytes()
        for query in one
    )


def test_a_table_is_the_run_it_was_made_of():
    table = RunTable.of_run(RUN)
    assert same(table, RUN)
    assert (len(table), "none" in table, "q9" in table, longest(table), longest(RUN)) == (3, True, False, 3, 3)
    assert RunTable.of_run(table) is table
    with pytest.raises(KeyError):
        table["q9"]
    assert table.numbers(["x", "nowhere", "a"]).tolist() == [list(table.ids).index("x"), -1, list(table.ids).index("a")]
    for some in (only(table, {"a", "none"}), only(RUN, {"a", "none"})):
        assert list(some) == ["none", "a"]
        assert some["a"].ids == RUN["a"].ids
    assert without_self_matches(table)["a"].ids == without_self_matches(RUN)["a"].ids == ["y", "x"]
    assert without_self_matches(table)["q 1"].ids == RUN["q 1"].ids
    assert table.first(2)["a"].ids == ["y", "x"]
    assert table.first(9) is table
    assert sorted(only(table, ["a"]).compact().ids) == ["a", "x", "y"]
    assert same(table.compact(), RUN)


def test_hits_of_an_index_are_ordered_and_not_padded():
    hits = Hits(np.array([[2, 0, 1], [1, -1, -1]]), np.float32([[5, 5, 6], [1, -np.inf, -np.inf]]))
    table = RunTable.of_hits(["q1", "q2"], hits, ["a", "b", "c"])
    assert [one.ids for one in table.values()] == [["b", "c", "a"], ["b"]]
    assert table["q1"].scores.tolist() == [6, 5, 5]
    assert hits.rows[0].tolist() == [2, 0, 1]  # what came in is as it was


SCORES = st.sampled_from([0.0, -0.0, 1.0, 1.0 + 1e-9, 1e-40]) | st.floats(-1e9, 1e9)
HITS = st.dictionaries(st.text(max_size=3), st.dictionaries(st.text(max_size=2), SCORES, max_size=8), max_size=4)


@settings(max_examples=150, deadline=None)
@given(HITS)
def test_arrays_in_any_order_and_files_give_the_rankings(tmp_path_factory, hits):
    names = sorted({name for one in hits.values() for name in one})
    rows = np.array([names.index(name) for one in hits.values() for name in one], np.int64)
    scores = np.array([score for one in hits.values() for score in one.values()], np.float64)
    starts = np.cumsum([0, *(len(one) for one in hits.values())])
    table = RunTable.of(list(hits), starts, rows, scores, names)
    expected = {query: make_ranking(list(one), list(one.values()), place=query) for query, one in hits.items()}
    assert {query: one.ids for query, one in table.items()} == {query: one.ids for query, one in expected.items()}
    assert all(np.array_equal(table[query].scores, expected[query].scores) for query in expected)
    path = tmp_path_factory.mktemp("runs") / "run.npz"
    for run in (table, expected):
        write_run(run, path)
        assert same(read_run(path), run)
        assert same(read_table(path), run)


def test_the_file_has_arrays_only_and_the_same_bytes_for_the_same_run(tmp_path):
    write_run(RUN, tmp_path / "one.npz")
    write_run(RunTable.of_run(RUN), tmp_path / "other.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npz", "other.npz"]
    with np.load(tmp_path / "one.npz", allow_pickle=False) as file:
        kinds = {name: file[name].dtype.name for name in file}
    assert {kinds[name] for name in ("rows", "scores", "starts")} == {"int32", "float32", "int64"}
    assert "object" not in kinds.values()
    many = {
        "q": make_ranking([f"document-{row}" for row in range(5000)], np.random.default_rng(0).random(5000), place="")
    }
    for name in ("many.npz", "many.trec"):
        write_run(many | {f"q{number}": many["q"] for number in range(9)}, tmp_path / name)
    sizes = [(tmp_path / name).stat().st_size for name in ("many.npz", "many.trec")]
    assert sizes[0] < 8 * 50_000 + 30 * 5000 < sizes[1] / 2


def arrays(**changes):
    good = {
        "queries": ["q1", "q2"],
        "starts": [0, 2, 3],
        "rows": [0, 1, 1],
        "scores": [2.0, 1.0, 3.0],
        "ids": ["a", "b"],
    }
    given = {**good, **changes}
    numbers = (np.array(given["starts"]), np.array(given["rows"]), np.array(given["scores"]))
    return RunTable.of(given["queries"], *numbers, given["ids"], place="here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [1, 1, 1]}, r"here, query 'q1': document 'b' occurs twice; a ranking holds every document once"),
        ({"scores": [2, 1, np.nan]}, r"here, query 'q2': document 'b' has score nan; expected a finite float32"),
        ({"scores": [2, -np.inf, 1]}, r"here, query 'q1': document 'b' has score -inf"),
        ({"scores": [2, 1e39, 1]}, r"has score 1e\+39"),
        ({"rows": [0, 2, 1]}, r"here: document number 2; expected 0 to 1"),
        ({"rows": [0, -1, 1]}, r"here: document number -1"),
        ({"queries": ["q1", "q1"]}, r"here: 2 queries, 1 different ones"),
        ({"ids": ["a", "a"]}, r"here: 2 document ids, 1 different ones"),
        ({"starts": [0, 2]}, r"3 documents and 3 scores of 2 queries do not fit"),
        ({"starts": [0, 2, 2]}, r"do not fit"),
        ({"starts": [1, 2, 3]}, r"do not fit"),
        ({"starts": [0, 4, 3]}, r"do not fit"),
        ({"scores": [1.0, 2.0]}, r"3 documents and 2 scores"),
    ],
)
def test_arrays_that_are_no_run_are_refused(changes, message):
    assert arrays()["q2"].ids == ["b"]
    with pytest.raises(InputError, match=message):
        arrays(**changes)


def rewritten(path, **changes):
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[name] for name in file}
    np.savez(path, **{name: value for name, value in {**found, **changes}.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": None}, "not readable"),
        ({"format": np.int64(9)}, "has format 9; this retrokit reads 1"),
        ({"rows": np.zeros(6)}, "rows are float64"),
        ({"rows": np.zeros(6, np.int32)}, "document .* occurs twice"),
        ({"scores": np.full(6, np.nan, np.float32)}, "query 'q 1': document .* has score nan"),
        ({"ids_ends": np.array([0, 99])}, "ids are damaged"),
        ({"ids_ends": np.array([0, 1, 1, 1, 1, 1])}, "ids are damaged"),
        ({"queries": np.full(8, 255, np.uint8)}, "queries are no UTF-8"),
        ({"ids": np.array([{}], dtype=object)}, "not readable"),
    ],
)
def test_damaged_arrays_are_refused_in_one_line(tmp_path, changes, message):
    path = tmp_path / "bad.npz"
    write_run(RUN, path)
    rewritten(path, **changes)
    with pytest.raises(InputError, match=rf"bad\.npz.*{message}"):
        read_table(path)


def test_files_that_hold_no_arrays_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file; expected a run that retrokit wrote as .npz"):
        read_run(tmp_path / "absent.npz")
    path = tmp_path / "bad.npz"
    np.save(tmp_path / "plain.npy", np.arange(3))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("rows.npy", b"nothing")
    write_run(RUN, path)
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[whole.index(b"b b")] ^= 1  # a document's name, which its checksum finds
    for content in (
        b"",
        b"q Q0 d 1 0.5 tag\n",
        pickle.dumps({"rows": 1}),
        (tmp_path / "plain.npy").read_bytes(),
        packed.getvalue(),
        whole[:-30],
        bytes(middle),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.npz: not readable"):
            read_table(path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "run.npz"
    write_run(RUN, path)
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        write_run({"q": (["a"], None)}, path)
    assert path.read_bytes() == before
    write_run({"q": make_ranking(["two words"], [1.0], place="q")}, path)  # which TREC's columns could not hold
    assert read_run(path)["q"].ids == ["two words"]
