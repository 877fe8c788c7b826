"""Graphs laid out by neighbourhood find what they found before, whatever is asked of them."""

import faiss
import numpy as np
import pytest

from indexes import Effort, Index, InputError, save_vectors
from indexes.layout import order_file

N, DIM = 600, 16
FACTORIES = ["HNSW8_SQ8", "HNSW8_SQfp16", "HNSW8_SQ4"]


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Builds an index twice, as it comes and laid out, over the same graph."""
    monkeypatch.setattr("indexes.approximate._FEW_ROWS", 20)  # so that graphs are searched with filters, too
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # or no two graphs are the same
    rng = np.random.default_rng(0)
    middles = 3 * rng.standard_normal((12, DIM))
    rows = (middles[rng.integers(12, size=N)] + rng.standard_normal((N, DIM))).astype(np.float32)
    ids = [f"d{row}" for row in range(N)]
    store = save_vectors(tmp_path / "vectors", rows, ids, made_by={"encoder": "x"})
    years = {name: {"year": row % 10} for row, name in enumerate(ids)}

    def build(factory):
        made = []
        for name, least in (("plain", 10**9), ("laid-out", 100)):
            monkeypatch.setattr("indexes.layout.LEAST_ROWS", least)
            made.append(Index.build(store, factory, tmp_path / f"{name}-{factory}", attributes=years))
        return made, (rows[:20] + rng.standard_normal((20, DIM))).astype(np.float32)

    yield build
    faiss.omp_set_num_threads(threads)


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("asked", [{}, {"filter": "year >= 4"}, {"filter": "year != 3"}, {"effort": Effort(ef=24)}])
def test_answers_are_the_same(two, factory, asked):
    (plain, laid_out), queries = two(factory)
    file = laid_out.reader.segments[0].file
    assert order_file(file).is_file()
    assert not order_file(plain.reader.segments[0].file).is_file()
    order = np.load(order_file(file))
    assert sorted(order.tolist()) == list(range(-1, N))
    assert order[:-1].tolist() != list(range(N))
    expected, found = (index.search(queries, 10, **asked) for index in (plain, laid_out))
    assert np.array_equal(expected.rows, found.rows)
    assert np.array_equal(expected.scores, found.scores)


def test_linked_rows_lie_near_each_other(two):
    (plain, laid_out), _ = two("HNSW8_SQ8")
    distances = []
    for index in (plain, laid_out):
        whole = faiss.read_index(str(index.reader.segments[0].file))  # held: its parts do not keep it alive
        graph = whole.hnsw
        most = graph.cum_nb_neighbors(1)
        first = faiss.vector_to_array(graph.offsets)[:N].astype(np.int64)
        links = faiss.vector_to_array(graph.neighbors)[first[:, None] + np.arange(most)]
        far = np.abs(links - np.arange(N)[:, None])
        distances.append(np.median(far[links >= 0]))
    assert distances[1] < 0.7 * distances[0]


def test_changes_keep_the_answers(two):
    (plain, laid_out), queries = two("HNSW8_SQ8")
    for index in (plain, laid_out):
        index.delete([f"d{row}" for row in range(0, N, 7)])
    expected, found = (index.search(queries, 10) for index in (plain, laid_out))
    assert np.array_equal(expected.rows, found.rows)
    laid_out.compact()
    assert order_file(laid_out.reader.segments[0].file).is_file(), "what is built anew is laid out anew"
    found = laid_out.search(queries, 10)
    exact = laid_out.search(queries, 10, effort=Effort(ef=N))
    assert np.mean([len(set(a) & set(b)) for a, b in zip(found.rows, exact.rows, strict=True)]) > 9


def test_a_file_without_its_order_is_refused(two):
    (_, index), queries = two("HNSW8_SQ8")
    file, folder = index.reader.segments[0].file, index.folder
    whole = order_file(file).read_bytes()
    order_file(file).unlink()
    with pytest.raises(InputError, match=r"order\.npy"):
        Index.open(folder, "size")
    order_file(file).write_bytes(whole[:-8])
    with pytest.raises(InputError, match=r"order\.npy"):
        Index.open(folder, "size")
    order_file(file).write_bytes(whole)
    assert len(Index.open(folder).search(queries, 3).rows) == len(queries)


@pytest.mark.parametrize("factory", ["HNSW8", "IVF8,SQ8", "SQ8", "PQ4x4fs", "PCA8,HNSW8_SQ8"])
def test_other_indexes_stay_as_they_are(two, factory):
    (_, index), queries = two(factory)
    assert not order_file(index.reader.segments[0].file).is_file()
    assert len(index.search(queries, 5).rows[0]) == 5
