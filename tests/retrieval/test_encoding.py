"""Encoding a corpus: the same bytes whoever makes the shards, however often they are killed; refusals."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from fixtures import random_texts

from indexes.errors import InputError
from indexes.manifest import held
from indexes.vectors import VectorStore
from retrieval import runners
from retrieval.documents import Document, read_documents
from retrieval.encoder import Encoder
from retrieval.encoding import encode_corpus
from retrieval.passages import LongDocuments
from retrieval.runners import ThisProcess


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(tmp_path, encoder, documents):
    """What an undisturbed run of one process makes of 50 documents in 7 shards."""
    encode_corpus(encoder, documents, tmp_path / "whole", shard_rows=8)
    return files(tmp_path / "whole")


@pytest.mark.parametrize(("rank", "world"), [(0, 2), (1, 3), (6, 7), (8, 9)])
def test_any_rank_alone_ends_in_the_same_folder(tmp_path, encoder, documents, whole, rank, world):
    store = encode_corpus(encoder, documents, tmp_path / "v", shard_rows=8, runner=ThisProcess(rank, world))
    assert files(tmp_path / "v") == whole
    assert store.ids == [document.id for document in documents]
    assert not (tmp_path / "v.partial").exists()


def rank_process(corpus_file, model_folder, output, rank, world, slow=0.0):
    code = (
        "import sys, time\n"
        "from retrieval.encoder import Encoder\n"
        "run = Encoder.run\n"
        f"Encoder.run = lambda self, *rest: (time.sleep({slow}), run(self, *rest))[1]\n"
        "sys.argv[0] = 'retrokit'\n"
        "from retrieval.cli import main; main()"
    )
    command = ["encode", corpus_file, "--encoder", model_folder, "--shard-rows", 8, "--output", output]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command)],
        env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world)},
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_a_rank_that_dies_is_noticed_and_its_shards_are_made_by_the_other(tmp_path, corpus_file, model_folder, whole):
    """Two processes that share nothing but the folder; one is killed while it makes a shard."""
    output = tmp_path / "v"
    partial = tmp_path / "v.partial"
    killed = rank_process(corpus_file, model_folder, output, 1, 2, slow=600)
    until = time.monotonic() + 240
    while not list(partial.glob("*.claim")) and time.monotonic() < until:
        time.sleep(0.05)
    # Only now: on a busy machine the other could make every shard before the first had claimed one.
    other = rank_process(corpus_file, model_folder, output, 0, 2)
    while len(list(partial.glob("*.done.json"))) < 4 and time.monotonic() < until:
        time.sleep(0.05)
    assert other.poll() is None  # it waits for the living one, which has a shard
    os.kill(killed.pid, signal.SIGKILL)
    assert other.wait(timeout=20) == 0, other.stderr.read()
    assert files(output) | {"manifest.json": b""} == whole | {"manifest.json": b""}
    VectorStore.open(output).verify()
    for process in (killed, other):
        process.wait()
        process.stderr.close()


def test_work_that_another_process_holds_is_waited_for_and_taken_over(tmp_path, encoder, documents, whole):
    with pytest.raises(InputError, match="3 processes cannot share it"):
        encode_corpus(encoder, iter(documents), tmp_path / "v", runner=ThisProcess(0, 3))
    for given, refused in ((documents, False), (iter(documents), True)):
        output = tmp_path / f"v{refused}"
        (tmp_path / f"v{refused}.partial").mkdir()
        released = threading.Event()

        def hold(path=tmp_path / f"v{refused}.partial" / "shard-00002.claim", until=released):
            path.parent.joinpath(".lock").touch()
            while not path.parent.joinpath("plan.json").is_file():
                time.sleep(0.001)
            with held(path):
                until.wait(0.7)

        holder = threading.Thread(target=hold)
        holder.start()
        slow = SlowStart(holder)
        if refused:
            with pytest.raises(InputError, match="shard 2 was left unmade by another process"):
                encode_corpus(encoder, given, output, shard_rows=8, runner=slow)
        else:
            encode_corpus(encoder, given, output, shard_rows=8, runner=slow)
            assert files(output) == whole
        holder.join()


class SlowStart(ThisProcess):
    """Gives another thread of the test the time to take its claim."""

    def __init__(self, holder):
        super().__init__()
        self.holder = holder

    def encode(self, *task):
        time.sleep(0.2)
        return super().encode(*task)


def test_a_damaged_shard_is_made_again_and_nothing_else(tmp_path, encoder, documents, whole, monkeypatch):
    folder = tmp_path / "whole"
    damaged = bytearray(whole["shard-00003.npy"])
    damaged[-1] ^= 1
    (folder / "shard-00003.npy").write_bytes(damaged)
    with pytest.raises(InputError, match=r"shard-00003.npy: damaged"):
        VectorStore.open(folder)
    made = []
    run = Encoder.run
    monkeypatch.setattr(Encoder, "run", lambda self, part, *rest: made.append(part.documents) or run(self, part, *rest))
    encode_corpus(encoder, documents, folder, shard_rows=8)
    assert made == [8]
    assert files(folder) == whole
    encode_corpus(encoder, documents, folder, shard_rows=20)  # finished, in shards of another size: good as it is
    assert made == [8]
    assert files(folder) == whole


def test_a_repair_leaves_the_unfinished_work_of_another_plan_alone(tmp_path, encoder, documents, whole, model_folder):
    folder = tmp_path / "whole"
    with pytest.raises(ZeroDivisionError):
        encode_corpus(
            Encoder.load(str(model_folder), max_length=16),
            documents,
            folder,
            shard_rows=8,
            overwrite=True,
            on_progress=lambda done, total: done < 30 or 1 / 0,
        )
    before = len(list((tmp_path / "whole.partial").glob("*.done.json")))
    assert before >= 3
    assert files(folder) == whole
    os.truncate(folder / "shard-00000.npy", 100)
    with pytest.raises(InputError, match=r"begun differently .*max_length: 16 ≠ 32"):
        encode_corpus(encoder, documents, folder, shard_rows=8)
    assert len(list((tmp_path / "whole.partial").glob("*.done.json"))) == before


def test_a_number_that_is_not_finite_stops_the_run_by_name(tmp_path, model_folder, documents):
    import torch

    encoder = Encoder.load(str(model_folder))
    with torch.no_grad():
        embeddings = encoder.backend.module.backbone.embeddings.word_embeddings.weight
        embeddings[encoder.tokenizer.tokenizer.convert_tokens_to_ids("cat")] = float("nan")
    first = next(document.id for document in documents if "cat" in document.text.split())
    with pytest.raises(InputError, match=f"document '{first}' gave a vector with NaN or infinity"):
        encode_corpus(encoder, documents, tmp_path / "v", shard_rows=50)
    assert not (tmp_path / "v").exists()
    assert not (tmp_path / "v.partial").exists()


@pytest.mark.parametrize("storage", ["float16", "int8", "binary"])
def test_forms_are_the_same_for_every_rank_and_close_to_the_vectors(tmp_path, encoder, documents, storage):
    plain = encode_corpus(encoder, documents, tmp_path / "a", shard_rows=8, storage=storage)
    encode_corpus(encoder, documents, tmp_path / "b", shard_rows=8, storage=storage, runner=ThisProcess(2, 3))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    vectors = encoder.encode_documents([document.content for document in documents])
    cosines = (plain[:] * vectors).sum(axis=1) / np.linalg.norm(plain[:], axis=1)
    assert cosines.min() > {"float16": 0.99999, "int8": 0.97, "binary": 0.6}[storage]
    with pytest.raises(InputError, match=rf"made otherwise \(storage: {storage} ≠ float32\)"):
        encode_corpus(encoder, documents, tmp_path / "a", shard_rows=8)


@pytest.mark.parametrize("strategy", ["passages", "mean", "late"])
def test_long_documents_in_shards_of_several_windows(tmp_path, encoder, monkeypatch, strategy):
    documents = [Document(f"d{n}", text) for n, text in enumerate(random_texts(30, seed=5, longest=90))]
    long = LongDocuments(strategy)
    one = encode_corpus(encoder, documents, tmp_path / "one", shard_rows=30, long_documents=long)
    monkeypatch.setattr(runners, "_WINDOW", 7)
    several = encode_corpus(encoder, documents, tmp_path / "several", shard_rows=15, long_documents=long)
    np.testing.assert_allclose(one[:], several[:], atol=1e-5)
    assert several.documents == 30
    if strategy == "mean":
        assert (one.passages, len(one)) == (None, 30)
        return
    np.testing.assert_array_equal(one.passages, several.passages)
    assert len(one) == len(one.passages) > 60
    for document, begin, end in one.passages.tolist():
        assert documents[document].content[begin:end].strip()
    with pytest.raises(InputError, match=f"long_documents: {strategy} ≠ truncate"):
        encode_corpus(encoder, documents, tmp_path / "one", shard_rows=30)


def test_progress_tells_what_is_left(tmp_path, encoder, corpus_file):
    told = []
    store = encode_corpus(
        encoder, read_documents(corpus_file), tmp_path / "v", shard_rows=8, on_progress=lambda *now: told.append(now)
    )
    done, totals = zip(*told, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == 50
    assert totals[-1] == 50
    assert store.truncated == 0
    told.clear()
    encode_corpus(encoder, iter([Document("a", "b")]), tmp_path / "w", on_progress=lambda *now: told.append(now))
    assert told[-1] == (1, None)


def test_cut_documents_are_counted_in_the_folder(tmp_path, encoder):
    texts = ["river " * length for length in (3, 40, 50)]
    store = encode_corpus(encoder, texts, tmp_path / "v")
    assert (store.truncated, store.ids) == (2, ["0", "1", "2"])
    assert encode_corpus(encoder, texts, tmp_path / "w", long_documents=LongDocuments("passages")).truncated == 0
