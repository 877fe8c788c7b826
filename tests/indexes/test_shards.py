"""Sharded search: hit for hit what one process gives, workers that die, both policies, changes of the folder."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from indexes.efforts import Effort
from indexes.errors import InputError, ShardLost
from indexes.index import Index
from indexes.segments import Entry
from indexes.shard_workers import shares
from indexes.shards import ShardedIndex
from indexes.transfer import save_vectors
from retrieval.fusion import search_reciprocal_ranks, search_z_scores

N, D = 1500, 32


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


ROWS = unit(np.random.default_rng(0).normal(size=(N, D)))
ROWS[700] = ROWS[3]  # ties across segments
QUERIES = np.concatenate([ROWS[[3, 700, 1]], unit(np.random.default_rng(1).normal(size=(17, D)))])


def store(folder, rows=ROWS, begin="d"):
    return save_vectors(folder, rows, [f"{begin}{n}" for n in range(len(rows))], made_by={"normalize": True})


def entries(count=N, begin="d"):
    return [Entry(f"{begin}{n}", ["all", f"word{n % 7}"], f"text {n}", {"year": 2000 + n % 20}) for n in range(count)]


def build(tmp_path, factory="Flat", segments=4):
    vectors = store(tmp_path / "v")
    return Index.build(vectors, factory, tmp_path / "index", entries=entries(), analyzer="none", segments=segments)


def same(found, expected):
    return (found.rows == expected.rows).all() and (found.scores == expected.scores).all()


def workers_of(sharded):
    return [worker.process.pid for worker in sharded.reader.dense._workers]


@pytest.mark.parametrize("segments", [1, 3, 4])
def test_an_index_of_several_segments_is_the_same_index(tmp_path, segments):
    whole = Index.build(store(tmp_path / "w"), "Flat", tmp_path / "whole", entries=entries(), analyzer="none")
    index = build(tmp_path, segments=segments)
    assert [one["documents"] for one in index.stats()["segments"]] == [N // segments] * segments
    assert same(index.search(QUERIES, 20), whole.search(QUERIES, 20))
    assert same(index.search(QUERIES, 5, filter="year < 2003"), whole.search(QUERIES, 5, filter="year < 2003"))
    assert (index.reader.lexical.scores(["word2", "all"]) == whole.reader.lexical.scores(["word2", "all"])).all()
    assert [one.text for one in index] == [one.text for one in whole]
    assert sorted(path.name for path in index.folder.iterdir() if path.is_dir()) == (
        [f"segment-000001-{n}" for n in range(1, segments + 1)] if segments > 1 else ["segment-000001"]
    )
    index.verify()


def test_compact_makes_as_many_segments_as_are_asked_for(tmp_path):
    index = build(tmp_path, "HNSW8", segments=1)
    index.delete([f"d{n}" for n in range(0, N, 5)])
    expected = [one.id for one in index]
    index.compact(segments=3)
    stats = index.stats()
    assert [one["documents"] for one in stats["segments"]] == [400] * 3
    assert {one["factory"] for one in stats["segments"]} == {"HNSW8"}
    assert [one.id for one in index] == expected
    generation = stats["generation"]
    index.compact(segments=3)
    assert index.stats()["generation"] == generation, "nothing to do"
    index.compact()
    assert len(index.stats()["segments"]) == 1
    assert [one.id for one in index] == expected
    index.verify()
    for refused in (lambda: index.compact(segments=0), lambda: build(tmp_path / "x", segments=0)):
        with pytest.raises(InputError, match="segments are 0; expected at least 1"):
            refused()


def test_a_factory_that_cannot_be_built_over_a_part_is_refused(tmp_path):
    with pytest.raises(InputError, match="FAISS cannot build 'IVF512,Flat' over 375 × 32"):
        build(tmp_path, "IVF512,Flat")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([10, 10, 10, 10], 2, [2, 2]),
        ([10, 10, 10, 10], 9, [1, 1, 1, 1]),
        ([100, 1, 1, 1], 2, [1, 3]),
        ([1, 1, 1, 100], 2, [3, 1]),
        ([1, 1, 1], 1, [3]),
        ([5, 1, 1, 1, 5], 3, [1, 3, 1]),
    ],
)
def test_neighbouring_segments_are_dealt_out_evenly(tmp_path, sizes, count, expected):
    live = np.arange(sum(sizes)) % 3 > 0
    made = shares(tmp_path, [(f"s{n}", size) for n, size in enumerate(sizes)], live, count, None)
    assert [len(one.segments) for one in made] == expected
    assert [name for one in made for name in one.segments] == [f"s{n}" for n in range(len(sizes))]
    assert [one.first for one in made] == np.cumsum([0, *(one.rows for one in made)])[:-1].tolist()
    for one in made:
        assert (np.unpackbits(one.live, count=one.rows) == live[one.first : one.first + one.rows]).all()


@pytest.mark.parametrize("factory", ["Flat", "IVF8,SQ8"])
def test_workers_give_what_one_process_gives(tmp_path, factory):
    index = build(tmp_path, factory)
    index.delete(["d3", "d10", "d1400"])
    with ShardedIndex(index.folder, workers=4) as sharded:
        assert len(set(workers_of(sharded))) == 4
        for k in (1, 10, 400):
            answer = sharded.search(QUERIES, k)
            assert same(answer, index.search(QUERIES, k))
            assert answer.coverage == 1
        for condition in ("year == 2003", "year > 3000", np.arange(N) % 2 == 0):
            assert same(sharded.search(QUERIES, 30, filter=condition), index.search(QUERIES, 30, filter=condition))
        effort = Effort(ef=200, nprobe=8, candidates=8)
        assert same(sharded.search(QUERIES, 10, effort=effort), index.search(QUERIES, 10, effort=effort))
        assert same(sharded.search(QUERIES, 5000), index.search(QUERIES, 5000))
        near, expected = sharded.search_within(QUERIES, 0.3), index.search_within(QUERIES, 0.3)
        assert all((ours == theirs).all() for ours, theirs in zip(near, expected, strict=True))
        rows = np.random.default_rng(2).integers(-1, N, size=(len(QUERIES), 9))
        assert (sharded.reader.scores(QUERIES, rows) == index.reader.scores(QUERIES, rows)).all()
        assert [one.text for one in sharded.get(["d5"])] == ["text 5"]
        with pytest.raises(InputError, match="k is 0"):
            sharded.search(QUERIES, 0)
        with pytest.raises(InputError, match="opened for sharded search; change it by Index.open"):
            sharded.delete(["d5"])


def test_fewer_segments_than_workers(tmp_path):
    index = build(tmp_path, segments=1)
    with ShardedIndex(index.folder, workers=3) as sharded:
        assert len(workers_of(sharded)) == 1
        assert same(sharded.search(QUERIES, 7), index.search(QUERIES, 7))
    with pytest.raises(ShardLost, match="the workers were ended; open the index again"):
        sharded.search(QUERIES, 7)


def test_fail_waits_for_a_lost_worker(tmp_path):
    index = build(tmp_path)
    expected = index.search(QUERIES, 10)
    with ShardedIndex(index.folder, workers=4) as sharded:
        for victim in workers_of(sharded)[:2]:
            os.kill(victim, signal.SIGKILL)
            answer = sharded.search(QUERIES, 10)
            assert same(answer, expected)
            assert answer.coverage == 1
        assert sharded.coverage == 1


@pytest.mark.parametrize(("policy", "times"), [("fail", 400), ("degrade", 1)])
def test_a_silent_worker_is_waited_for_as_long_as_was_said_and_started_again(tmp_path, policy, times):
    queries = np.tile(QUERIES, (times, 1))  # 400 times: more than a pipe takes
    index = build(tmp_path)
    with ShardedIndex(index.folder, workers=2, patience=30, on_loss=policy) as sharded:
        sharded.reader.dense._patience = 0.5
        silent = workers_of(sharded)[0]
        os.kill(silent, signal.SIGSTOP)
        start = time.monotonic()
        if policy == "fail":
            with pytest.raises(ShardLost, match="shard 1 of 2 .*segment-000001-1.* has not answered in 0.5 s"):
                sharded.search(queries, 10)
        else:
            assert sharded.search(queries[:20], 10).coverage == 0.5
        assert time.monotonic() - start < 15
        sharded.reader.dense._patience = 30
        assert same(sharded.reader.search(queries[:20], 10), index.search(queries[:20], 10))
        assert workers_of(sharded)[0] != silent


def test_large_questions_of_many_threads_and_large_answers(tmp_path):
    index = build(tmp_path, segments=2)
    queries = np.tile(QUERIES, (150, 1))
    expected = index.search(queries, 50)
    with ShardedIndex(index.folder, workers=2, patience=60) as sharded:
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(sharded.search(queries, 50))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(answers) == 4
        assert all(same(one, expected) for one in answers)


def test_what_cannot_say_its_coverage_waits(tmp_path):
    index = build(tmp_path)
    with ShardedIndex(index.folder, workers=2, on_loss="degrade") as sharded:
        os.kill(workers_of(sharded)[1], signal.SIGKILL)
        assert sharded.search(QUERIES, 10).coverage == 0.5
        near, expected = sharded.search_within(QUERIES, 0.3), index.search_within(QUERIES, 0.3)
        assert all((ours == theirs).all() for ours, theirs in zip(near, expected, strict=True))
        os.kill(workers_of(sharded)[1], signal.SIGKILL)
        terms = [["word2", "all"]] * len(QUERIES)
        for fuse in (search_z_scores, search_reciprocal_ranks):
            assert same(fuse(sharded.reader, QUERIES, terms, 10), fuse(index.reader, QUERIES, terms, 10))


def test_an_older_reader_goes_on_and_workers_end_with_the_last_of_them(tmp_path):
    index = build(tmp_path)
    with ShardedIndex(index.folder, workers=2) as sharded:
        older, old = sharded.reader, workers_of(sharded)
        before = index.search(QUERIES, 10)
        index.delete(["d3"])
        assert sharded.refresh()
        assert same(older.search(QUERIES, 10), before)
        assert all(map(_runs, old))
        del older
        gc.collect()
        assert not any(map(_runs, old))
        assert same(sharded.search(QUERIES, 10), index.search(QUERIES, 10))


def test_an_index_without_documents(tmp_path):
    index = build(tmp_path)
    index.delete([f"d{n}" for n in range(N)])
    with ShardedIndex(index.folder) as sharded:
        answer = sharded.search(QUERIES, 10)
        assert (answer.rows.shape, answer.coverage) == ((20, 0), 1.0)


def test_degrade_answers_without_a_lost_worker_and_says_so(tmp_path):
    index = build(tmp_path)
    expected = index.search(QUERIES, 10)
    with ShardedIndex(index.folder, workers=4, on_loss="degrade") as sharded:
        assert same(sharded.search(QUERIES, 10), expected)
        os.kill(workers_of(sharded)[1], signal.SIGKILL)
        partial = sharded.search(QUERIES, 10)
        assert partial.coverage == 0.75
        others = np.ones(N, bool)
        others[N // 4 : N // 2] = False
        assert same(partial, index.search(QUERIES, 10, filter=others))
        assert sharded.coverage == 0.75
        end = time.monotonic() + 60
        while sharded.coverage < 1 and time.monotonic() < end:
            time.sleep(0.05)
        answer = sharded.search(QUERIES, 10)
        assert same(answer, expected)
        assert answer.coverage == 1
        for victim in workers_of(sharded):
            os.kill(victim, signal.SIGKILL)
        with pytest.raises(ShardLost, match="no worker answers"):
            sharded.search(QUERIES, 10)


@pytest.mark.parametrize("policy", [pytest.param("fail", marks=pytest.mark.slow), "degrade"])
def test_answers_keep_coming_while_a_worker_dies_under_load(tmp_path, policy):
    index = build(tmp_path)
    expected = index.search(QUERIES, 10)
    answers, wrong, stop = [], [], threading.Event()

    def ask():
        while not stop.is_set():
            try:
                answers.append(sharded.search(QUERIES, 10))
            except Exception as error:
                wrong.append(error)

    with ShardedIndex(index.folder, workers=4, on_loss=policy) as sharded:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        before = len(answers)
        os.kill(workers_of(sharded)[2], signal.SIGKILL)
        end = time.monotonic() + 60
        while (
            sharded.coverage < 1 or len(answers) < before + 30 or answers[-1].coverage < 1
        ) and time.monotonic() < end:
            time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert len(answers) >= before + 30
    assert all(same(one, expected) for one in answers if one.coverage == 1)
    assert {one.coverage for one in answers} <= ({1.0} if policy == "fail" else {0.75, 1.0})
    assert answers[-1].coverage == 1


def test_refresh_starts_workers_for_the_new_generation(tmp_path):
    index = build(tmp_path)
    with ShardedIndex(index.folder, workers=2) as sharded:
        old = workers_of(sharded)
        index.delete(["d3"])
        more = store(tmp_path / "more", QUERIES[3:6], "e")
        index.add(more, entries=[Entry(f"e{n}", ["all"], "more") for n in range(3)])
        assert sharded.search(QUERIES[:1], 1).rows[0, 0] == 3, "as it was when it was opened"
        assert sharded.refresh()
        assert not sharded.refresh()
        assert same(sharded.search(QUERIES, 10), index.search(QUERIES, 10))
        assert not set(old) & set(workers_of(sharded))
        index.compact()
        os.kill(workers_of(sharded)[0], signal.SIGKILL)
        with pytest.raises(InputError, match="is not there any more, as the index was changed; refresh"):
            sharded.search(QUERIES, 10)
        assert sharded.refresh()
        assert same(sharded.search(QUERIES, 10), index.search(QUERIES, 10))


def test_workers_end_with_their_caller(tmp_path):
    build(tmp_path)
    program = (
        "import os, signal, sys\n"
        "from indexes.shards import ShardedIndex\n"
        "index = ShardedIndex(sys.argv[1])\n"
        "print(*[worker.process.pid for worker in index.reader.dense._workers], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "index"], capture_output=True, text=True, check=False
    )
    pids = [int(one) for one in done.stdout.split()]
    assert len(pids) == 2
    end = time.monotonic() + 20
    while any(_runs(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in pids)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "workers is 0; expected at least 1"),
        ({"threads": 0}, "threads is 0; expected at least 1"),
        ({"on_loss": "ignore"}, "on_loss is 'ignore'; expected one of fail, degrade"),
        ({"patience": 0.0}, "patience is 0.0 s; expected more than 0"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, options, said):
    build(tmp_path)
    with pytest.raises(InputError, match=said):
        ShardedIndex(tmp_path / "index", **options)


@pytest.mark.slow
def test_ray_actors_give_what_one_process_gives_though_one_is_killed(tmp_path):
    ray = pytest.importorskip("ray")
    index = build(tmp_path)
    index.delete(["d3"])
    expected = index.search(QUERIES, 10, filter="year < 2010")
    try:
        with ShardedIndex(index.folder, workers=4, ray=True, on_loss="degrade") as sharded:
            assert same(sharded.search(QUERIES, 10, filter="year < 2010"), expected)
            rows = np.random.default_rng(2).integers(-1, N, size=(len(QUERIES), 9))
            assert (sharded.reader.scores(QUERIES, rows) == index.reader.scores(QUERIES, rows)).all()
            ray.kill(sharded.reader.dense._workers[2]._handle)
            end = time.monotonic() + 60
            seen = set()
            while time.monotonic() < end:
                answer = sharded.search(QUERIES, 10, filter="year < 2010")
                seen.add(answer.coverage)
                if 0.75 in seen and answer.coverage == 1:
                    break
            assert 0.75 in seen
            assert same(answer, expected)
    finally:
        ray.shutdown()
