"""Runners: shares from the environment, pools whose workers die, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from collections import deque

import numpy as np
import pytest

from indexes.errors import InputError
from retrieval.encoder import Encoded
from retrieval.encoding import encode_corpus
from retrieval.runners import Processes, ThisProcess, Work, WorkerDied, dispatch, local_device


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (3, 8)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, (1, 4)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "4"}, (2, 4)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "10",
                "SLURM_ARRAY_TASK_MIN": "2",
                "SLURM_ARRAY_TASK_STEP": "4",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_PROCID": "1",
                "SLURM_NTASKS": "2",
            },
            (5, 6),
        ),
    ],
)
def test_the_share_of_a_process_comes_from_what_started_it(environment, share):
    runner = ThisProcess.from_environment(environment)
    assert (runner.rank, runner.world) == share


def test_shares_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="rank is 8 of 8 processes; expected 0 to 7"):
        ThisProcess.from_environment({"RANK": "8", "WORLD_SIZE": "8"})
    with pytest.raises(InputError, match="WORLD_SIZE=two; expected a whole number"):
        ThisProcess.from_environment({"RANK": "0", "WORLD_SIZE": "two"})
    with pytest.raises(InputError, match="workers are 0; expected at least 1"):
        Processes(0)


def test_local_processes_take_devices_in_turn(monkeypatch):
    monkeypatch.setattr("retrieval.runners.devices", lambda: ["cuda:0", "cuda:1"])
    assert [local_device({"LOCAL_RANK": str(rank)}) for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert local_device({"SLURM_LOCALID": "1"}) == "cuda:1"
    assert local_device({}) is None
    assert Processes().workers == 2


class FakeWorker:
    """Makes a shard at once, unless it is told to die."""

    alive = 0

    def __init__(self, dies):
        self.given = deque()
        self.dies = dies
        FakeWorker.alive += 1

    def give(self, work):
        self.given.append(work)

    def take(self):
        if self.dies(self.given[0].shard):
            raise WorkerDied("was killed by SIGKILL")
        work = self.given.popleft()
        return work, Encoded(np.zeros((0, 2), np.float32), None, 0)

    def stop(self):
        FakeWorker.alive -= 1


def run_pool(dies, shards=10, count=3):
    works = (Work(shard, []) for shard in range(shards))
    pool = dispatch(lambda _: FakeWorker(dies), lambda w: [n for n, one in enumerate(w) if one.given], count, works)
    return [work.shard for work, _ in pool]


def test_shards_of_dead_workers_are_made_once_and_all_workers_are_ended(capsys):
    deaths = deque([2, 5, 5])
    assert sorted(run_pool(lambda shard: bool(deaths) and deaths[0] == shard and bool(deaths.popleft() + 1))) == list(
        range(10)
    )
    assert not deaths
    assert "was killed by SIGKILL; another one makes its shards again" in capsys.readouterr().err
    with pytest.raises(InputError, match="3 workers died over shard 4, the last one was killed by SIGKILL"):
        run_pool(lambda shard: shard == 4)
    assert FakeWorker.alive == 0


def test_a_pool_that_is_closed_early_ends_its_workers():
    works = (Work(shard, []) for shard in range(10))
    pool = dispatch(lambda _: FakeWorker(lambda shard: False), lambda w: [0], 2, works)
    next(pool)
    assert FakeWorker.alive == 2
    pool.close()
    assert FakeWorker.alive == 0


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_processes_make_the_same_bytes_though_one_is_killed(tmp_path, encoder, documents, monkeypatch, capsys):
    import retrieval.runners as module

    encode_corpus(encoder, documents, tmp_path / "whole", shard_rows=4)
    killed = []
    take = module._Process.take

    def take_and_kill_another(self):
        made = take(self)
        if not killed and self.given:
            killed.append(self.process.pid)
            os.kill(self.process.pid, signal.SIGKILL)
        return made

    monkeypatch.setattr(module._Process, "take", take_and_kill_another)
    encode_corpus(encoder, documents, tmp_path / "v", shard_rows=4, runner=Processes(2))
    assert killed
    assert "was killed by SIGKILL" in capsys.readouterr().err
    assert files(tmp_path / "v") == files(tmp_path / "whole")


def test_what_a_worker_refuses_is_said_in_one_line(tmp_path, encoder, documents, monkeypatch):
    monkeypatch.setitem(encoder.settings.__dict__, "max_length", 32)  # unchanged: the folder stays the same one
    other = type(encoder)(encoder.name, encoder.settings, encoder.tokenizer.tokenizer, encoder.backend, encoder.fields)
    other.fingerprint = "f" * 64
    with pytest.raises(InputError, match=r"a worker found another model under .* ≠ ffffffffffff"):
        encode_corpus(other, documents, tmp_path / "v", shard_rows=8, runner=Processes(1))
    assert not (tmp_path / "v").exists()


@pytest.mark.slow
def test_workers_end_with_the_process_that_called_them(tmp_path, corpus_file, model_folder):
    command = ["encode", corpus_file, "--encoder", model_folder, "--output", tmp_path / "v", "--workers", "2"]
    code = "import sys; sys.argv[0] = 'retrokit'\nfrom retrieval.cli import main; main()"
    caller = subprocess.Popen([sys.executable, "-c", code, *map(str, command)], stderr=subprocess.DEVNULL)
    children = f"/proc/{caller.pid}/task/{caller.pid}/children"
    until = time.monotonic() + 60
    workers: list[str] = []
    while len(workers) < 2 and time.monotonic() < until:
        workers = open(children).read().split()  # noqa: PTH123
        time.sleep(0.02)
    caller.kill()
    caller.wait()
    while any(os.path.exists(f"/proc/{worker}") for worker in workers) and time.monotonic() < until:  # noqa: PTH110
        time.sleep(0.05)
    assert workers
    assert not any(os.path.exists(f"/proc/{worker}") for worker in workers)  # noqa: PTH110


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_actors_make_the_same_bytes_though_one_is_killed(tmp_path, encoder, documents, monkeypatch):
    pytest.importorskip("ray")
    import retrieval.ray_runner as module

    encode_corpus(encoder, documents, tmp_path / "whole", shard_rows=4)
    killed = []
    take = module._Actor.take

    def take_and_kill(self):
        made = take(self)
        if not killed:
            killed.append(self.handle)
            self.ray.kill(self.handle)
        return made

    monkeypatch.setattr(module._Actor, "take", take_and_kill)
    runner = module.RayActors(2)
    try:
        encode_corpus(encoder, documents, tmp_path / "v", shard_rows=4, runner=runner)
    finally:
        runner.ray.shutdown()
    assert killed
    assert files(tmp_path / "v") == files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_ray_node_that_is_gone_ends_the_run_and_its_shards_are_kept(tmp_path, encoder, documents, monkeypatch):
    pytest.importorskip("ray")
    import psutil

    import retrieval.ray_runner as module

    take = module._Actor.take

    def take_and_kill_the_node(self):
        made = take(self)
        for raylet in psutil.Process().children():
            if raylet.name() == "raylet":
                for process in [*raylet.children(recursive=True), raylet]:
                    process.kill()
        return made

    monkeypatch.setattr(module._Actor, "take", take_and_kill_the_node)
    runner = module.RayActors(1)
    try:
        with pytest.raises(InputError, match=r"Ray node \w{8} .* is gone; finished shards are kept"):
            encode_corpus(encoder, documents, tmp_path / "v", shard_rows=4, runner=runner)
    finally:
        runner.ray.shutdown()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "v.partial").rglob("shard-*.npy")}
    encode_corpus(encoder, documents, tmp_path / "v", shard_rows=4)
    assert kept
    assert kept.items() <= files(tmp_path / "v").items()
