"""Search on a torch device: hit for hit what the processor finds. On the processor everywhere, on CUDA where it is."""

import types
from functools import partial

import numpy as np
import pytest
import torch

from indexes import gpu
from indexes.approximate import Approximate
from indexes.device import DeviceSearch, checked_device
from indexes.efforts import Effort
from indexes.errors import InputError
from indexes.exact import search_exact
from indexes.faiss_files import build_faiss, load_faiss
from indexes.index import Index
from indexes.segments import JoinedRows
from indexes.targets import Targets
from indexes.transfer import save_vectors
from indexes.vector_writer import VectorWriter

N, D = 3000, 48
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
DEVICES = ["cpu", pytest.param("cuda", marks=cuda)]


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


ROWS = unit(np.random.default_rng(0).normal(size=(N, D)))
QUERIES = unit(np.random.default_rng(1).normal(size=(37, D)))
KEEP = np.random.default_rng(2).random(N) < 0.3


def same(found, expected):
    return (found.rows == expected.rows).all() and (found.scores == expected.scores).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("starts", [None, np.unique(np.append(np.arange(0, N, 7), [1, 2, N]))])
def test_hits_are_those_of_exact_search(device, resident, starts, monkeypatch):
    monkeypatch.setattr("indexes.device._BLOCK", 700)
    monkeypatch.setattr("indexes.device._QUERIES_AT_ONCE", 16)
    targets = Targets(ROWS, starts)
    search = DeviceSearch(targets, checked_device(device), resident).search
    keep = KEEP[: len(targets)]
    for k in (1, 10, 300):
        assert same(search(QUERIES, k), search_exact(QUERIES, targets, k))
        assert same(search(QUERIES, k, keep), search_exact(QUERIES, targets, k, keep=keep))
    few = np.zeros(len(targets), bool)
    few[[3, 5]] = True
    assert same(search(QUERIES, 2, few), search_exact(QUERIES, targets, 2, keep=few))
    assert search(QUERIES, 3, np.zeros(len(targets), bool)).rows.max() == -1
    assert search(QUERIES[:0], 5).rows.shape == (0, 5)


@pytest.mark.parametrize("device", DEVICES)
def test_k_has_no_limit(device):
    targets = Targets(ROWS)
    assert same(DeviceSearch(targets, checked_device(device)).search(QUERIES, N), search_exact(QUERIES, targets, N))


@pytest.mark.parametrize("device", DEVICES)
def test_near_ties_are_told_apart_on_the_processor(device):
    rows = np.repeat(ROWS[:10], 300, axis=0)
    rows += np.random.default_rng(3).normal(size=rows.shape).astype(np.float32) * 1e-7
    targets = Targets(rows)
    assert same(DeviceSearch(targets, checked_device(device)).search(QUERIES, 10), search_exact(QUERIES, targets, 10))


def test_less_precise_products_are_allowed_for(monkeypatch):
    search = DeviceSearch(Targets(ROWS), checked_device("cpu"))
    assert search._error(D) < 1e-5
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert search._error(D) > 2**-11, "TF32 keeps ten bits behind the first"


@pytest.mark.parametrize("device", DEVICES)
def test_an_index_is_searched_on_a_device(device, tmp_path):
    store = save_vectors(tmp_path / "v", ROWS, [f"d{n}" for n in range(N)], made_by={"normalize": True})
    Index.build(store, "Flat", tmp_path / "i")
    here, there = Index.open(tmp_path / "i"), Index.open(tmp_path / "i", device=device)
    assert same(there.search(QUERIES, 10), here.search(QUERIES, 10))
    more = save_vectors(tmp_path / "m", QUERIES, [f"e{n}" for n in range(len(QUERIES))], made_by={"normalize": True})
    there.add(more)
    there.delete(["d7"])
    assert here.refresh()
    assert same(there.search(QUERIES, 10), here.search(QUERIES, 10))
    assert str(there.reader.segments[-1]._device) == device, "what was added is searched there too"
    assert same(
        there.search(QUERIES, 5, filter=np.arange(N + 37) % 2 == 0),
        here.search(QUERIES, 5, filter=np.arange(N + 37) % 2 == 0),
    )


@pytest.mark.parametrize("device", DEVICES)
def test_documents_of_passages_are_searched_on_a_device(device, tmp_path):
    table = np.array([(row // 3, 0, 5) for row in range(N)], np.int64)
    encoding = {"shard_rows": 5000, "storage": "float32", "long_documents": "passages"}
    writer = VectorWriter(tmp_path / "v", made_by={"normalize": True, "dim": D, "fingerprint": "f"}, encoding=encoding)
    writer.write(0, ROWS, [f"d{n}" for n in range(N // 3)], "all", passages=table)
    Index.build(writer.finish(1, {"source": None, "fingerprint": None}), "Flat", tmp_path / "i")
    here, there = Index.open(tmp_path / "i"), Index.open(tmp_path / "i", device=device)
    assert same(there.search(QUERIES, 10), here.search(QUERIES, 10))


def test_a_device_that_is_not_there_is_refused(tmp_path):
    store = save_vectors(tmp_path / "v", ROWS, [f"d{n}" for n in range(N)], made_by={"normalize": True})
    Index.build(store, "HNSW8", tmp_path / "i")
    with pytest.raises(InputError, match="device 'gpu' cannot be used here"):
        Index.open(tmp_path / "i", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device 'cuda' cannot be used here"):
            Index.open(tmp_path / "i", device="cuda")
    with pytest.raises(InputError, match="FAISS does not search IndexHNSW.* on a GPU; open the index without a device"):
        Index.open(tmp_path / "i", device="cpu")


def test_faiss_without_gpu_support_is_refused_with_the_remedy():
    if hasattr(load_faiss(), "StandardGpuResources"):
        pytest.skip("this FAISS has GPU support")
    with pytest.raises(InputError, match="no GPU support; pip uninstall faiss-cpu, then pip install 'retrokit.gpu.'"):
        gpu.device_number(types.SimpleNamespace(type="cuda", index=0))
    with pytest.raises(InputError, match="device is cpu"):
        gpu.device_number(torch.device("cpu"))


class _Gpu:
    """FAISS as a wheel for GPUs shows itself, its GPU being the processor."""

    def __init__(self, faiss, gpus=1):
        self._faiss, self._gpus, self.copies = faiss, gpus, []

    def __getattr__(self, name):
        return getattr(self._faiss, name)

    def StandardGpuResources(self):
        return object()

    def get_num_gpus(self):
        return self._gpus

    def index_cpu_to_gpu(self, resources, number, index):
        self.copies.append((number, type(index).__name__))
        return index


@pytest.fixture
def faiss_gpu(monkeypatch):
    faked = _Gpu(load_faiss())
    monkeypatch.setattr(gpu, "load_faiss", lambda: faked)
    return faked


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16,SQ8", "IVF16,PQ4"])
def test_inverted_lists_are_searched_by_faiss_within_its_limits(factory, faiss_gpu, tmp_path, monkeypatch):
    path = tmp_path / "file"
    build_faiss(JoinedRows([(Targets(ROWS), np.arange(N))]), factory, path)
    here, there = Approximate(path, ROWS), Approximate(path, ROWS)
    there.move_to(types.SimpleNamespace(type="cuda", index=0))
    asked = []

    def search(self, queries, k, nprobe):
        asked.append((k, nprobe))
        return here._index.search(queries, k, params=load_faiss().SearchParametersIVF(nprobe=nprobe))

    monkeypatch.setattr(gpu.GpuCopy, "search", search)
    effort = Effort(nprobe=16, candidates=2)
    assert same(there.search(QUERIES, 10, effort=effort), here.search(QUERIES, 10, effort=effort))
    assert asked == [(20, 16)]
    assert same(there.search(QUERIES, 10, KEEP, effort), here.search(QUERIES, 10, KEEP, effort))
    there.search(QUERIES, 2000, effort=effort)
    assert len(asked) == 1, "filters and what is beyond the limits stay on the processor"
    assert faiss_gpu.copies == [(0, type(here._index).__name__)]


def test_a_gpu_that_faiss_does_not_see_is_refused(faiss_gpu):
    faiss_gpu._gpus = 0
    with pytest.raises(InputError, match="FAISS sees 0 GPUs: check the driver and CUDA_VISIBLE_DEVICES"):
        gpu.device_number(types.SimpleNamespace(type="cuda", index=None))


def test_lists_are_clustered_on_the_gpu(faiss_gpu, tmp_path):
    rows = JoinedRows([(Targets(ROWS), np.arange(N))])
    build_faiss(rows, "IVF16,PQ8x4fs", tmp_path / "there", partial(gpu.fill_on_gpu, number=0))
    assert faiss_gpu.copies == [(0, "IndexFlatIP")]
    found = Approximate(tmp_path / "there", ROWS).search(QUERIES, 10, effort=Effort(nprobe=16, candidates=150))
    assert (found.scores == search_exact(QUERIES, ROWS, 10).scores).mean() > 0.95
    with pytest.raises(InputError, match="IndexFlatIP is not built on a GPU; leave the device out, or choose IVF"):
        gpu.fill_on_gpu(load_faiss().IndexFlatIP(D), rows, 0)


def test_graphs_are_made_on_the_gpu_and_searched_here(faiss_gpu, tmp_path):
    rows = JoinedRows([(Targets(ROWS), np.arange(N))])
    with pytest.raises(InputError, match="no cuVS, which makes graphs on GPUs"):
        build_faiss(rows, "HNSW16", tmp_path / "there", partial(gpu.fill_on_gpu, number=0))
    made = []

    class Cagra:
        """Stands for CAGRA: of what it is told, its graph is made here."""

        def __init__(self, resources, dim, metric, settings):
            made.append((dim, metric, vars(settings)))

        def train(self, given):
            self.given = given

        def copyTo(self, graph):
            graph.add(self.given)

    faiss_gpu.GpuIndexCagra, faiss_gpu.GpuIndexCagraConfig = Cagra, types.SimpleNamespace
    build_faiss(rows, "HNSW16", tmp_path / "there", partial(gpu.fill_on_gpu, number=0))
    settings = {"device": 0, "graph_degree": 32, "intermediate_graph_degree": 64}
    assert made == [(D, load_faiss().METRIC_INNER_PRODUCT, settings)]
    there = Approximate(tmp_path / "there")
    assert type(there._index).__name__ == "IndexHNSWCagra"
    for keep in (None, KEEP):
        found, right = there.search(QUERIES, 10, keep, Effort(ef=256)), search_exact(QUERIES, ROWS, 10, keep=keep)
        assert (found.scores == right.scores).mean() > 0.95
    few = JoinedRows([(Targets(ROWS), np.arange(10))])
    build_faiss(few, "HNSW16", tmp_path / "few", partial(gpu.fill_on_gpu, number=0))
    assert len(made) == 1, "so few are not worth the way"


@cuda
def test_cagra_on_a_real_gpu(tmp_path):
    if not hasattr(load_faiss(), "GpuIndexCagra"):
        pytest.skip("this FAISS has no cuVS")
    rows = JoinedRows([(Targets(ROWS), np.arange(N))])
    build_faiss(rows, "HNSW16", tmp_path / "there", partial(gpu.fill_on_gpu, number=0))
    found, right = Approximate(tmp_path / "there").search(QUERIES, 10), search_exact(QUERIES, ROWS, 10)
    assert (found.scores == right.scores).mean() > 0.9


@cuda
@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16,SQ8", "IVF16,PQ4"])
def test_faiss_on_a_real_gpu(factory, tmp_path):
    if not hasattr(load_faiss(), "StandardGpuResources"):
        pytest.skip("this FAISS has no GPU support")
    path = tmp_path / "file"
    build_faiss(JoinedRows([(Targets(ROWS), np.arange(N))]), factory, path, partial(gpu.fill_on_gpu, number=0))
    here, there = Approximate(path, ROWS), Approximate(path, ROWS)
    there.move_to(torch.device("cuda"))
    effort = Effort(nprobe=16, candidates=8)
    assert (there.search(QUERIES, 10, effort=effort).rows == here.search(QUERIES, 10, effort=effort).rows).mean() > 0.99
