import gzip

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evaluation.runs import make_ranking, read_run, write_run
from indexes.errors import InputError

RUN = {
    "q1": make_ranking(["a", "b", "c"], np.float32([0.1, 1 / 3, 1e-30]), place="q1"),
    "q2": make_ranking(["x", "y"], [7.0, 7.0], place="q2"),
}


def same(one, other):
    return list(one) == list(other) and all(
        one[query].ids == other[query].ids and np.array_equal(one[query].scores, other[query].scores) for query in one
    )


@pytest.mark.parametrize("name", ["a.trec", "a.trec.gz"])
def test_a_run_read_back_is_the_run(tmp_path, name):
    write_run(RUN, tmp_path / name, tag="my system")
    assert same(read_run(tmp_path / name), RUN)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path):
    write_run(RUN, tmp_path / "run")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "run").read_bytes())
    assert same(read_run(tmp_path / "marked"), RUN)
    with pytest.raises(InputError, match="a folder; expected a TREC run file"):
        read_run(tmp_path)


def test_the_file_has_six_columns_in_the_order_that_is_measured(tmp_path):
    write_run(RUN, tmp_path / "run", tag="my system")
    lines = (tmp_path / "run").read_text().splitlines()
    assert lines[0] == "q1 Q0 b 1 0.333333343 my_system"
    assert lines[3:] == ["q2 Q0 y 1 7 my_system", "q2 Q0 x 2 7 my_system"]


def test_the_same_run_gives_the_same_bytes_when_packed(tmp_path):
    write_run(RUN, tmp_path / "one.gz")
    write_run(RUN, tmp_path / "other.gz")
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "other.gz").read_bytes()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
@example([float(np.finfo(np.float32).max), -float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)])
def test_nine_digits_give_every_float32_back(tmp_path_factory, scores):
    path = tmp_path_factory.mktemp("runs") / "run"
    run = {"q": make_ranking([f"d{row}" for row in range(len(scores))], scores, place="q")}
    write_run(run, path)
    assert same(read_run(path), run)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 d 1 0.5", r"line 2: found 5 columns in 'q Q0 d 1 0.5'; expected six columns: query Q0 document rank"),
        ("q Q0 d 1 nan tag", r"line 2: score 'nan'; expected a finite float32"),
        ("q Q0 d 1 inf tag", r"line 2: score 'inf'"),
        ("q Q0 d 1 1e39 tag", r"line 2: score '1e39'"),
        ("q Q0 d 1 high tag", r"line 2: score 'high'"),
        ("q Q0 first 2 0.5 tag", r"line 2: document 'first' occurs twice for query 'q'"),
    ],
)
def test_malformed_lines_are_refused_with_file_and_line(tmp_path, line, message):
    path = tmp_path / "bad.trec"
    path.write_text(f"q Q0 first 1 0.9 tag\n{line}\n")
    with pytest.raises(InputError, match=rf"bad\.trec, {message}"):
        read_run(path)


def test_files_that_are_no_run_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file; expected a TREC run file"):
        read_run(tmp_path / "absent")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InputError, match="holds no hits"):
        read_run(tmp_path / "empty")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="binary, line 1: not readable as text"):
        read_run(tmp_path / "binary")
    lines = [f"q{row} Q0 d 1 0.5 tag".encode() for row in range(5000)]  # more than a decoder takes at once
    (tmp_path / "late").write_bytes(b"\n".join([*lines[:4321], b"\xff" * 3, *lines[4321:]]))
    with pytest.raises(InputError, match="late, line 4322: not readable as text"):
        read_run(tmp_path / "late")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"q Q0 d 1 0.5 tag\n")[:-9])
    with pytest.raises(InputError, match="not readable as text"):
        read_run(tmp_path / "cut.gz")


def test_rankings_that_cannot_be_measured_are_refused():
    with pytest.raises(InputError, match="query 'q': document 'b' occurs twice"):
        make_ranking(["a", "b", "b"], [3, 2, 1], place="query 'q'")
    with pytest.raises(InputError, match="document 'b' has score nan; expected a finite float32"):
        make_ranking(["a", "b"], [3, float("nan")], place="query 'q'")
    with pytest.raises(InputError, match="document 'a' has score inf"):
        make_ranking(["a"], [float("inf")], place="query 'q'")
    with pytest.raises(InputError, match="2 documents but 1 scores"):
        make_ranking(["a", "b"], [1.0], place="query 'q'")


@pytest.mark.parametrize("bad", ["", "two words", "tab\tid"])
def test_a_failed_write_leaves_the_old_file(tmp_path, bad):
    path = tmp_path / "run"
    write_run(RUN, path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="is empty or holds white space"):
        write_run({"q": make_ranking([bad], [1.0], place="q")}, path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["run"]
