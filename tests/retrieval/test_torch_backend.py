"""The torch backend: little memory, the same bytes on any number of threads, and what runs in which precision."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from fixtures import make_model, random_texts

from indexes.errors import InputError
from retrieval.batches import token_batches
from retrieval.encoder import Encoder
from retrieval.torch_backend import (
    EmbeddingModule,
    TorchBackend,
    out_of_memory,
    pool_cls,
    pool_last,
    pool_max,
    pool_mean,
)

TEXTS = random_texts(60, seed=8)


@pytest.fixture(autouse=True)
def threads():
    """The number of threads is the process's: each test begins with three and leaves what it found."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plain(encoder):
    return encoder.encode_documents(TEXTS)


class Limited(torch.nn.Module):
    """A module that has memory for so many texts at once, and notes what it was asked."""

    def __init__(self, module, most, error):
        super().__init__()
        self.module, self.most, self.error = module, most, error
        self.asked, self.failures, self.threads = [], [], set()

    def forward(self, ids, mask):
        self.threads.add((threading.current_thread().name, torch.get_num_threads()))
        self.asked.append(tuple(ids.shape))
        if len(ids) > self.most:
            self.failures.append(tuple(ids.shape))
            raise self.error
        return self.module(ids, mask)


def limited(model_folder, most, error=None):
    """An encoder of its own, whose module is limited."""
    encoder = Encoder.load(str(model_folder))
    module = Limited(encoder.backend.module, most, error or torch.OutOfMemoryError("CUDA out of memory. Tried"))
    encoder.backend = TorchBackend(module, "cpu")
    return encoder, module


ERRORS = [
    torch.OutOfMemoryError("Tried to allocate 20.00 MiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "mps"])
@pytest.mark.parametrize("most", [1, 7])
def test_batches_are_halved_until_they_fit(model_folder, plain, error, most, monkeypatch):
    encoder, module = limited(model_folder, most, error)
    encoder.backend.tokens_in_a_batch = 500
    torch.set_num_threads(1)  # one batch after the other, so that failures can be counted
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), plain, atol=1e-6)
    first = len(module.failures)
    assert first > 0
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), plain, atol=1e-6)
    assert len(module.failures) == first  # it knows by now
    smallest = min(rows * width for rows, width in module.failures)
    whole = [shape for shape in module.asked if shape not in module.failures]
    assert max(rows for rows, width in whole if rows * width < smallest) > most // 2  # and halves no more than it must
    assert torch.get_num_threads() == 1


def test_halves_in_many_threads(model_folder, plain, threads):
    encoder, module = limited(model_folder, 2)
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), plain, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_queries(TEXTS[:1]), plain[:1], atol=1e-6)
    assert module.failures
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("count", [1, 60])
def test_one_text_that_is_too_large_is_named(model_folder, threads, count):
    encoder, _ = limited(model_folder, 0)
    longest = max(len(ids) for ids in encoder.tokenizer.tokenizer(TEXTS[:count])["input_ids"])
    with pytest.raises(InputError, match=f"no memory for one text of {longest} tokens on cpu; lower max_length"):
        encoder.encode_documents(TEXTS[:count])
    assert torch.get_num_threads() == threads


def test_other_errors_are_not_swallowed(model_folder, threads):
    encoder, module = limited(model_folder, 3, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        encoder.encode_documents(TEXTS)
    assert {len(TEXTS)} == {rows for rows, _ in module.asked}  # and nothing was halved for them
    assert torch.get_num_threads() == threads


def test_what_says_that_memory_ran_out():
    assert all(map(out_of_memory, ERRORS))
    assert not out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


def test_the_same_bytes_on_any_number_of_threads(model_folder):
    found = set()
    for count in (1, 2, 3):
        encoder, module = limited(model_folder, len(TEXTS))
        encoder.backend.tokens_in_a_batch = 100
        torch.set_num_threads(count)
        found.add(encoder.encode_documents(TEXTS).tobytes())
        assert torch.get_num_threads() == count
        assert {number for _, number in module.threads} == {1}  # within a batch nothing is split up
        workers = {name for name, _ in module.threads}
        assert 1 <= len(workers) <= count
        assert threading.current_thread().name not in workers
        module.threads.clear()
        encoder.encode_queries(TEXTS[:1])
        assert module.threads == {(threading.current_thread().name, count)}  # a query has all of them
    assert len(found) == 1


def worker_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")}


def test_a_reader_that_stops_early_leaves_nothing_behind(encoder, threads):
    tokens = encoder.tokenizer.truncate(TEXTS, "").tokens
    before, taken = worker_threads(), []
    many = (taken.append(1) or next(token_batches(tokens[:4], 1000, 0)) for _ in range(1000))
    stream = encoder.backend.run(many)
    rows, vectors = next(stream)
    assert (len(rows), vectors.shape) == (4, (4, 32))
    next(stream)
    assert len(taken) <= threads + 2  # it does not run away with the source
    stream.close()
    assert torch.get_num_threads() == threads
    assert worker_threads() == before


def test_an_error_of_the_source_leaves_nothing_behind(encoder, threads):
    def broken():
        yield from token_batches([[1, 2, 3]] * 3, 3, 0)
        raise InputError("the corpus ends in the middle of a line")

    before = worker_threads()
    with pytest.raises(InputError, match="in the middle of a line"):
        list(encoder.backend.run(broken()))
    assert torch.get_num_threads() == threads
    assert worker_threads() == before


def test_batches_come_in_order_and_as_on_other_devices(encoder):
    """What a GPU runs, one batch behind the other, is tried here on the CPU."""
    tokens = encoder.tokenizer.truncate(TEXTS, "").tokens
    batches = list(token_batches(tokens, 100, 0))
    found, queued = list(encoder.backend.run(batches)), list(encoder.backend._run_queued(batches))
    assert len(found) == len(queued) == len(batches) > 5
    for batch, (rows, vectors), (same, others) in zip(batches, found, queued, strict=True):
        assert rows.tolist() == same.tolist() == batch.rows.tolist()
        np.testing.assert_allclose(vectors, others, atol=1e-6)
    assert list(encoder.backend._run_queued([])) == list(encoder.backend.run([])) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
def test_a_gpu_gives_the_vectors_of_the_cpu(model_folder, plain):
    encoder = Encoder.load(str(model_folder), device="cuda:0")
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), plain, atol=1e-4)
    np.testing.assert_allclose(encoder.encode_documents(TEXTS[:1]), plain[:1], atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_only_the_transformer_runs_in_low_precision(tmp_path, dtype, pooling):
    """Pooling and scaling its hidden states in double precision gives the same vectors, far closer than its own."""
    folder = str(make_model(tmp_path / "model", pooling=pooling))
    encoder = Encoder.load(folder, dtype=dtype)
    module, states = encoder.backend.module, []
    assert {value.dtype for value in module.backbone.parameters()} == {getattr(torch, dtype)}
    module.backbone.register_forward_hook(lambda *args: states.append(args[2].last_hidden_state))
    tokens = encoder.tokenizer.truncate(TEXTS, "").tokens
    (batch,) = token_batches(tokens, 10_000, 0)
    ((rows, vectors),) = encoder.backend.run([batch])
    (hidden,) = states
    assert hidden.dtype == getattr(torch, dtype)
    wide = hidden.double().numpy()
    weights = batch.mask[:, :, None] if pooling == "mean" else np.eye(1, batch.mask.shape[1])[:, :, None]
    oracle = (wide * weights).sum(1)
    oracle /= np.linalg.norm(oracle, axis=1, keepdims=True)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, oracle, atol=1e-6)
    full = Encoder.load(folder).encode_documents([TEXTS[row] for row in rows])
    assert 1e-6 < 1 - (vectors * full).sum(1).min() < 1e-3


HIDDEN = torch.tensor([[[1.0, 8.0], [3.0, -2.0], [7.0, 7.0]], [[-1.0, -2.0], [-3.0, -4.0], [-5.0, -9.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (pool_cls, [[1, 8], [-1, -2]]),
        (pool_mean, [[2, 3], [-3, -5]]),
        (pool_max, [[3, 8], [-1, -2]]),
        (pool_last, [[3, -2], [-5, -9]]),
    ],
)
def test_pooling_by_hand(pool, expected):
    before = HIDDEN.clone()
    assert pool(HIDDEN, MASK).tolist() == expected
    assert torch.equal(HIDDEN, before)


def test_vectors_are_projected_then_cut_then_scaled():
    layer = torch.nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0], [100.0, 100.0]]))
    module = EmbeddingModule(torch.nn.Identity(), "mean", [layer], dim=2, normalize=True)
    with torch.no_grad():
        np.testing.assert_allclose(module.finish(torch.tensor([[1.0, 1.0]])).numpy(), [[0.6, 0.8]], atol=1e-7)


def test_runs_of_several_threads_give_torch_its_threads_back(encoder):
    texts = random_texts(300, seed=9)
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda _: encoder.encode_documents(texts), range(4)), encoder.encode_documents(texts)]
    assert torch.get_num_threads() == 3
    assert all((one == found[0]).all() for one in found)
