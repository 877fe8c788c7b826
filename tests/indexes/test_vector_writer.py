"""Writing vectors folders: killed anywhere, by several processes, on bad disks; never touching what is not ours."""

import contextlib
import os
import shutil
import threading
import time

import numpy as np
import pytest
from shards import CORPUS, flip, open_writer, run, start, tree, write_folder, write_shard

import indexes.manifest
from indexes.errors import InputError
from indexes.manifest import LOCK, Busy, held, read_manifest
from indexes.partial import unfinished
from indexes.storage import calibrate
from indexes.transfer import save_vectors
from indexes.vectors import KIND, VectorStore


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_writing_goes_on_where_it_stopped(tmp_path):
    first = open_writer(tmp_path / "v")
    write_shard(first, 0)
    first.close()
    # A process killed here leaves a shard without its record.
    np.save(tmp_path / "v.partial" / "folder" / "shard-00001.npy", np.zeros((3, 4), np.float32))
    with pytest.raises(InputError, match=r"v is unfinished \(.*v.partial holds its shards\); run the same encode"):
        VectorStore.open(tmp_path / "v")
    again = open_writer(tmp_path / "v")
    assert [again.source(0), again.source(1)] == ["source 0", None]
    write_shard(again, 1, rows=2)
    store = again.finish(2, CORPUS)
    assert store.ids == ["0-0", "0-1", "0-2", "1-0", "1-1"]
    assert (store.documents, store.truncated, store.corpus) == (5, 0, CORPUS)
    np.testing.assert_array_equal(store[:][:, 0], [0, 4, 8, 100, 104])
    assert names(tmp_path) == ["v"]
    assert names(tmp_path / "v") == sorted(["manifest.json", *store.manifest["files"]])


def test_how_far_an_unfinished_folder_is(tmp_path):
    assert unfinished(tmp_path / "v") is None
    with contextlib.closing(open_writer(tmp_path / "v")) as writer:
        write_shard(writer, 0)
        write_shard(writer, 2, rows=2)
        for folder in (tmp_path / "v", tmp_path / "v.partial"):
            found = unfinished(folder)
            assert [found[name] for name in ("shards", "documents", "rows")] == [2, 5, 5]
            assert found["plan"] == writer.plan
            assert found["partial"] == str(tmp_path / "v.partial")


@pytest.mark.parametrize("change", [flip, lambda path: os.truncate(path, 150), lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["shard-00001.npy", "shard-00001.ids.json"])
def test_a_damaged_shard_counts_as_unmade(tmp_path, change, name):
    with contextlib.closing(open_writer(tmp_path / "v")) as writer:
        for number in range(2):
            write_shard(writer, number)
    change(tmp_path / "v.partial" / "folder" / name)
    with contextlib.closing(open_writer(tmp_path / "v")) as writer:
        assert [writer.source(0), writer.source(1)] == ["source 0", None]
        write_shard(writer, 1)
        writer.finish(2, CORPUS)
    write_folder(tmp_path / "whole", shards=2)
    assert tree(tmp_path / "v") == tree(tmp_path / "whole")


def test_another_plan_is_refused_naming_what_differs_and_discarded_if_asked(tmp_path):
    with contextlib.closing(open_writer(tmp_path / "v")) as writer:
        write_shard(writer, 0)
    before = tree(tmp_path)
    differences = "encoder: a ≠ b, shard_rows: 3 ≠ 5, storage: float32 ≠ float16"
    other = {"fingerprint": "e" * 64, "encoder": "b", "dim": 4}
    with pytest.raises(InputError, match=rf"v.partial was begun differently \(.*{differences}\); encode as before"):
        open_writer(tmp_path / "v", made_by=other, shard_rows=5, storage="float16")
    assert tree(tmp_path) == before
    with contextlib.closing(open_writer(tmp_path / "v", overwrite=True)) as same:
        assert same.source(0) == "source 0"  # of the same plan, nothing is discarded
        with pytest.raises(InputError, match="another process is writing .*v.partial; wait for it"):
            open_writer(tmp_path / "v", shard_rows=5, overwrite=True)
        assert same.source(0) == "source 0"
    with contextlib.closing(open_writer(tmp_path / "v", shard_rows=5, overwrite=True)) as other:
        assert other.source(0) is None
    assert names(tmp_path) == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"thesis.txt": "years of work"}, "thesis.txt"),
        ({"plan.json": '{"title": "years of work"}'}, "plan.json"),
        ({"plan.json": '["years of work"]', "folder/thesis.txt": "years"}, "plan.json"),
        ({"folder/thesis.txt": "years of work"}, "folder"),
        ({"shard-00000.done.json": "{}"}, "shard-00000.done.json"),
    ],
)
def test_a_folder_that_is_not_ours_is_never_touched(tmp_path, files, named, overwrite):
    for name, text in files.items():
        path = tmp_path / "v.partial" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=f"v.partial holds {named} and was not made by encode; choose another"):
        open_writer(tmp_path / "v", overwrite=overwrite)
    assert tree(tmp_path) == before
    with pytest.raises(InputError, match="was not made by encode"):
        save_vectors(tmp_path / "v", np.zeros((1, 2), np.float32), ["a"], made_by={}, overwrite=overwrite)
    assert tree(tmp_path) == before


def test_a_plan_that_is_no_json_is_named_and_left_alone(tmp_path):
    with contextlib.closing(open_writer(tmp_path / "v")) as writer:
        write_shard(writer, 0)
    (tmp_path / "v.partial" / "plan.json").write_text("{")
    before = tree(tmp_path)
    with pytest.raises(InputError, match="plan.json: not readable as JSON"):
        open_writer(tmp_path / "v", overwrite=True)
    assert tree(tmp_path) == before


def test_what_was_hardly_begun_is_begun_again_and_nothing_is_left_behind(tmp_path):
    (tmp_path / "v.partial").mkdir()
    open_writer(tmp_path / "v").close()
    assert names(tmp_path) == []
    (tmp_path / "v.partial" / "folder").mkdir(parents=True)  # killed before the plan was there
    for name in (".lock", ".plan.json.123"):
        (tmp_path / "v.partial" / name).write_text("")
    write_folder(tmp_path / "v")
    assert names(tmp_path) == ["v"]
    with pytest.raises(InputError, match="'b' gave a vector with NaN or infinity, not written"):
        save_vectors(tmp_path / "w", np.array([[1.0], [np.inf]], np.float32), ["a", "b"], made_by={})
    assert names(tmp_path) == ["v"]


def test_vectors_are_looked_at_before_they_are_written(tmp_path):
    unit = {"fingerprint": "f" * 64, "dim": 2, "normalize": True}
    with contextlib.closing(open_writer(tmp_path / "v", made_by=unit)) as writer:
        with pytest.raises(InputError, match="document 'b' gave a vector of length 0.000; expected unit length"):
            writer.write(0, np.array([[1, 0], [0, 0]], np.float32), ["a", "b"], "one")
        passages = np.array([[0, 0, 5], [1, 0, 5], [1, 3, 8]])
        vectors = np.array([[1, 0], [0, 1], [0, 2]], np.float32)
        with pytest.raises(InputError, match="document 'b' gave a vector of length 2.000"):
            writer.write(0, vectors, ["a", "b"], "one", passages=passages)
        assert writer.source(0) is None
    with pytest.raises(InputError, match=r"2 ids \(1 distinct\) for vectors of shape \(2, 1\); one id a row"):
        save_vectors(tmp_path / "v", np.zeros((2, 1), np.float32), ["a", "a"], made_by={})


def test_int8_keeps_the_calibration_it_was_begun_with(tmp_path):
    with contextlib.closing(open_writer(tmp_path / "v", storage="int8")) as writer:
        with pytest.raises(InputError, match="int8 vectors come without their calibration"):
            write_shard(writer, 0)
        writer.set_calibration(calibrate(np.full((1, 4), 127 * 4, np.float32)))
    with contextlib.closing(open_writer(tmp_path / "v", storage="int8")) as writer:
        writer.set_calibration(calibrate(np.full((1, 4), 127 * 4, np.float32)))
        write_shard(writer, 0)
        store = writer.finish(1, CORPUS)
    np.testing.assert_array_equal(store.stored(slice(None))[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(VectorStore.open(tmp_path / "v")[:][:, 0], [0, 4, 8])


def test_a_shard_belongs_to_one_living_process_at_a_time(tmp_path):
    code = (
        "with open_writer(sys.argv[1]).claim(0) as mine:\n"
        "    assert mine\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)"
    )
    with contextlib.closing(open_writer(tmp_path / "v")) as writer, start(code, tmp_path / "v") as other:
        assert other.stdout.readline() == "held\n"
        with writer.claim(0) as mine:
            assert not mine
        with writer.claim(1) as mine, writer.claim(1) as twice:
            assert (mine, twice) == (True, False)
        other.kill()
        other.wait()
        with writer.claim(0) as mine:
            assert mine


def in_thread(work):
    """Run something that is going to wait for a lock, and give it the time to begin to wait."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    time.sleep(0.1)
    return lambda: thread.join(timeout=30) or results[0]


def test_a_lock_on_a_file_that_was_replaced_while_waiting_is_taken_anew(tmp_path):
    path, go = tmp_path / "lock", threading.Event()

    def hold():
        with held(path, wait=True):
            return go.wait(30)

    with held(path):
        result = in_thread(hold)
        path.unlink()
        path.touch()
    time.sleep(0.1)
    with pytest.raises(Busy), held(path):
        pass
    go.set()
    assert result()


def test_who_waits_while_the_folder_is_discarded_begins_it_again(tmp_path):
    with contextlib.closing(open_writer(tmp_path / "v")) as writer:
        write_shard(writer, 0)
    with held(tmp_path / "v.partial" / LOCK):
        result = in_thread(lambda: open_writer(tmp_path / "v"))
        shutil.rmtree(tmp_path / "v.partial")
    with contextlib.closing(result()) as writer:
        assert writer.source(0) is None
        write_shard(writer, 0)
        assert writer.finish(1, CORPUS).ids == ["0-0", "0-1", "0-2"]


def test_shards_survive_a_place_that_fails_for_a_moment(tmp_path, monkeypatch):
    with contextlib.closing(open_writer(tmp_path / "v")) as writer:
        write_shard(writer, 0)
    before = tree(tmp_path)

    def fail(*_, **__):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("indexes.vector_writer.held", fail)
        with pytest.raises(InputError, match=r"v.partial cannot be written \(Too many open files\)"):
            open_writer(tmp_path / "v")
    assert tree(tmp_path) == before


def test_two_processes_make_one_folder_and_each_shard_once(tmp_path):
    code = "print(write_folder(sys.argv[1], shards=6, seconds=0.1))"
    processes = [start(code, tmp_path / "v") for _ in range(2)]
    made = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(made) == 6
    write_folder(tmp_path / "whole", shards=6)
    assert tree(tmp_path / "v") == tree(tmp_path / "whole")
    assert names(tmp_path) == ["v", "whole"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_who_comes_late_finds_the_folder_finished(tmp_path, overwrite):
    if overwrite:
        write_folder(tmp_path / "v", shards=1)
    with contextlib.closing(open_writer(tmp_path / "v", overwrite=overwrite)) as first:
        late = open_writer(tmp_path / "v", overwrite=overwrite)
        for number in range(2):
            write_shard(first, number)
        first.finish(2, CORPUS)
        assert [late.source(0), late.source(1), late.source(2)] == ["source 0", "source 1", None]
        assert late.finish(2, CORPUS).ids == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]
    assert names(tmp_path) == ["v"]


def test_who_waits_for_a_process_that_dies_while_sealing_does_not_publish_the_old_folder(tmp_path, monkeypatch):
    """The new folder was exchanged for the old one, whose remains now lie where the shards were."""
    write_folder(tmp_path / "v", shards=1)
    first, late = (open_writer(tmp_path / "v", shard_rows=4, overwrite=True) for _ in range(2))
    write_shard(first, 0, rows=4)
    assert late.source(0) == "source 0"

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(indexes.manifest.shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            first.finish(1, CORPUS)
    first.close()
    store = late.finish(1, CORPUS)
    assert len(store) == 4
    store.verify()
    assert names(tmp_path) == ["v"]


@pytest.mark.parametrize(
    ("module", "function", "overwrite"),
    [
        ("indexes.vector_writer", "_save", False),
        ("indexes.vector_writer", "seal", False),
        ("indexes.vector_writer", "seal", True),
        ("indexes.vector_writer", "publish", False),
        ("indexes.manifest", "_exchange", True),
        ("indexes.partial", "empty", False),
    ],
)
def test_killed_at_any_step_the_same_bytes_come_of_it(tmp_path, module, function, overwrite):
    folder = tmp_path / "v"
    if overwrite:
        write_folder(folder, shards=1, shard_rows=9)
    code = f"import {module}\ndie_after({module}, {function!r})\nwrite_folder(sys.argv[1], overwrite={overwrite})"
    assert run(code, folder)[0] == -9
    if folder.exists():
        VectorStore.open(folder).verify()
    write_folder(folder, overwrite=overwrite)
    write_folder(tmp_path / "whole")
    assert tree(folder) == tree(tmp_path / "whole")
    assert names(tmp_path) == ["v", "whole"]


def test_killed_after_the_end_and_then_told_to_overwrite(tmp_path):
    """The plan and the records are still there, but what they speak of is in its place already."""
    with contextlib.closing(open_writer(tmp_path / "v")) as writer:
        write_shard(writer, 0)
        shutil.copytree(tmp_path / "v.partial", tmp_path / "copy")
        writer.finish(1, CORPUS)
    shutil.rmtree(tmp_path / "copy" / "folder")
    (tmp_path / "copy").rename(tmp_path / "v.partial")
    write_folder(tmp_path / "v", overwrite=True)
    write_folder(tmp_path / "whole")
    assert tree(tmp_path / "v") == tree(tmp_path / "whole")
    assert names(tmp_path) == ["v", "whole"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/v.partial cannot be written \(.*\); choose another --output or mend"):
        open_writer(tmp_path / "file" / "v")
    with pytest.raises(InputError, match="is no name for something new"):
        open_writer(tmp_path / "..")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="to root, no place is read-only")
def test_a_read_only_place_is_named(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(InputError, match=r"v.partial cannot be written \(Permission denied\); choose another"):
            open_writer(tmp_path / "v")
        assert names(tmp_path) == []
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.skipif(os.name != "posix", reason="a limit on the size of files stands for a full disk")
def test_a_full_disk_is_said_and_costs_nothing(tmp_path):
    code = """
import resource
from indexes.errors import InputError

def limited(size, work, *arguments):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        work(*arguments)
    except InputError as error:
        print(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

limited(10, open_writer, sys.argv[2])
writer = open_writer(sys.argv[1])
write_shard(writer, 0)
limited(150, write_shard, writer, 1)
print(writer.source(1))
write_shard(writer, 1)
limited(300, writer.finish, 2, CORPUS)
"""
    status, said = run(code, tmp_path / "v", tmp_path / "w")
    assert status == 0
    begin, shard, source, finish = said.splitlines()
    assert "w.partial cannot be written (File too large); choose another --output" in begin
    kept = "finished shards are kept: mend the disk and run the same command again"
    assert shard.startswith("shard 1 could not be written to ")
    assert finish.startswith("the folder could not be written to ")
    assert shard.endswith(kept)
    assert finish.endswith(kept)
    assert source == "None"
    assert names(tmp_path) == ["v.partial"]
    assert len(list((tmp_path / "v.partial").glob("*.done.json"))) == 2
    write_folder(tmp_path / "v", shards=2)
    write_folder(tmp_path / "whole", shards=2)
    assert tree(tmp_path / "v") == tree(tmp_path / "whole")


def test_a_damaged_shard_of_a_finished_folder_is_made_again_alone(tmp_path):
    folder = tmp_path / "v"
    write_folder(folder)
    before = tree(folder)
    kept = (folder / "shard-00000.npy").stat().st_ino
    flip(folder / "shard-00001.npy")
    os.truncate(folder / "shard-00002.ids.json", 5)
    damaged = tree(folder)
    with contextlib.closing(open_writer(folder, overwrite=True)) as writer:
        writer.adopt(folder, read_manifest(folder, KIND))
        assert [writer.source(number) for number in range(3)] == ["source 0", None, None]
        assert tree(folder) == damaged
        write_shard(writer, 1)
        write_shard(writer, 2)
        assert tree(folder) == damaged
        writer.finish(3, CORPUS)
    assert tree(folder) == before
    assert (folder / "shard-00000.npy").stat().st_ino == kept
    assert names(tmp_path) == ["v"]


def test_a_longer_corpus_of_before_leaves_nothing_behind(tmp_path):
    with contextlib.closing(open_writer(tmp_path / "v")) as writer:
        for number in range(3):
            write_shard(writer, number)
        writer.finish(2, CORPUS)
    write_folder(tmp_path / "whole", shards=2)
    assert tree(tmp_path / "v") == tree(tmp_path / "whole")


def test_a_shard_that_nobody_wrote_is_a_bug_and_is_not_sealed(tmp_path):
    with contextlib.closing(open_writer(tmp_path / "v")) as writer:
        write_shard(writer, 1)
        with pytest.raises(RuntimeError, match=r"shards \[0\] were never written"):
            writer.finish(2, CORPUS)
    assert names(tmp_path) == ["v.partial"]
