"""Exact search over vectors folders: the hits of search in memory, within a bound, killed and going on."""

import json
import os
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from fixtures import make_model, random_texts

from evaluation import commands, exact_search
from evaluation.exact_search import Pieces, blocks, cut, search_vectors
from evaluation.run_table import RunTable
from evaluation.testsets import write_collection
from indexes.errors import InputError
from indexes.exact import search_exact
from indexes.manifest import sole_writer
from indexes.targets import Targets
from indexes.vector_writer import VectorWriter
from indexes.vectors import VectorStore
from retrieval.documents import Document
from retrieval.passages import LongDocuments

N, D, Q, K = 1500, 16, 21, 7
SHARD = 130
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(N, D)).round(1).astype(np.float32)  # rounded, so that some scores tie
ASKED = RNG.normal(size=(Q, D)).round(1).astype(np.float32)
QUERIES = {f"q{number}": f"text {number}" for number in range(Q)}


def make_store(folder, rows=ROWS, storage="float32", made_by="e", shard=SHARD):
    encoding = {"shard_rows": shard, "storage": storage}
    record = {"fingerprint": made_by, "encoder": made_by, "dim": rows.shape[1]}
    writer = VectorWriter(folder, made_by=record, encoding=encoding)
    parts = range(0, len(rows), shard)
    for number, first in enumerate(parts):
        some = rows[first : first + shard]
        writer.write(number, some, [f"d{first + row}" for row in range(len(some))], f"source {number}")
    return writer.finish(len(parts), {"source": None, "fingerprint": None})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store") / "v")


def encode(texts):
    return ASKED[[int(text.split()[1]) for text in texts]]


def expected(rows=ROWS, k=K, starts=None):
    hits = search_exact(ASKED, Targets(rows, starts), k)
    return RunTable.of_hits(list(QUERIES), hits, [f"d{row}" for row in range(len(rows))])


def same(one, other):
    return list(one) == list(other) and all(
        one[query].ids == other[query].ids and np.array_equal(one[query].scores, other[query].scores) for query in one
    )


def small(monkeypatch, queries, rows):
    """Cut the search into pieces of so many queries and rows, whatever memory allows."""
    monkeypatch.setattr(exact_search, "cut", lambda asked, *rest, **more: Pieces(min(asked, queries), rows))
    monkeypatch.setattr(exact_search, "_READ_ROWS", 50)


@pytest.mark.parametrize(("queries", "rows"), [(Q, N), (Q, 100), (8, 333), (1, 700), (5, 1)])
def test_hits_are_those_of_search_in_memory(tmp_path, store, monkeypatch, queries, rows):
    if rows == 1:
        monkeypatch.setattr(exact_search, "_SECONDS_BETWEEN_SAVES", 100)
        rows = 20
    small(monkeypatch, queries, rows)
    seen = []
    found = search_vectors(store, QUERIES, encode, K, tmp_path, on_progress=lambda *now: seen.append(now))
    assert same(found, expected())
    total = -(-Q // queries) * N
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]  # and nothing unfinished


def test_groups_of_queries_and_the_device_give_the_same_hits(tmp_path, store, monkeypatch):
    pytest.importorskip("torch")
    small(monkeypatch, Q, 400)
    monkeypatch.setattr(exact_search, "_GROUP", 4)
    monkeypatch.setattr(exact_search, "_DEVICE_GROUP", 8)
    assert same(search_vectors(store, QUERIES, encode, K, tmp_path / "one"), expected())
    assert same(search_vectors(store, QUERIES, encode, K, tmp_path / "other", device="cpu"), expected())
    with pytest.raises(InputError, match="device 'nowhere' cannot be used here"):
        search_vectors(store, QUERIES, encode, 2, tmp_path / "one", device="nowhere")


@pytest.mark.parametrize("storage", ["float16", "binary"])
def test_vectors_are_searched_as_they_are_read_back(tmp_path, monkeypatch, storage):
    store = make_store(tmp_path / "v", storage=storage)
    small(monkeypatch, Q, 400)
    assert same(search_vectors(store, QUERIES, encode, K, tmp_path / "found"), expected(store[:]))


def test_more_hits_than_documents_are_all_documents(tmp_path, store):
    found = search_vectors(store, dict(list(QUERIES.items())[:2]), encode, 10 * N, tmp_path)
    assert found.counts.tolist() == [N, N]


def test_documents_in_passages_count_by_their_best(tmp_path, encoder, monkeypatch):
    documents = [Document(f"d{number}", text) for number, text in enumerate(random_texts(60, longest=90))]
    passages = LongDocuments("passages", 12)
    store = encoder.encode_corpus(documents, tmp_path / "v", shard_rows=8, long_documents=passages)
    assert len(store) > store.documents
    asked = encoder.encode_queries(list(QUERIES.values()))
    starts = np.searchsorted(store.passages[:, 0], np.arange(61))
    hits = search_exact(asked, Targets(store[:], starts), K)
    right = RunTable.of_hits(list(QUERIES), hits, store.ids)
    most = max(shard["rows"] for shard in store.manifest["shards"])
    for rows in (most, 2 * most, len(store)):
        small(monkeypatch, 8, rows)
        assert same(search_vectors(store, QUERIES, encoder.encode_queries, K, tmp_path / str(rows)), right)
    small(monkeypatch, 8, most - 1)
    with pytest.raises(InputError, match=r"shard-\d+ holds .* passages of whole documents, .* allow more"):
        search_vectors(store, QUERIES, encoder.encode_queries, K, tmp_path / "few")
    whole = list(blocks(store, 2 * most))
    middle = whole[1].first
    assert [block.first for block in blocks(store, 2 * most, middle)] == [block.first for block in whole[1:]]


def test_pieces_keep_to_the_memory_and_take_as_many_queries_as_fit():
    of = dict(rows=10**8, dim=768, k=1000)
    for memory in (0.6e9, 1e9, 4e9, 64e9):
        pieces = cut(50_000, memory=memory, **of)
        taken = exact_search.fixed_bytes(pieces.queries, 768, 1000) + pieces.queries * (12_000 + 8 * 768)
        assert taken + pieces.rows * 4 * 768 <= memory
        assert pieces.rows >= 1024
    assert cut(50_000, memory=64e9, **of).queries == 50_000
    assert cut(50_000, memory=1e9, **of).queries < 50_000
    assert cut(10, rows=500, dim=8, k=5, memory=1e9) == (10, 500)
    with pytest.raises(InputError, match=r"memory is 0.01 GB; search for 1,000 hits .* takes at least 0\.\d+: allow"):
        cut(50_000, memory=1e7, **of)


def test_the_memory_is_not_exceeded(tmp_path, monkeypatch):
    """Of what numpy and Python allocate: mapped files are the system's to drop."""
    rows = np.random.default_rng(3).normal(size=(60_000, D)).astype(np.float32)  # 3.8 MB
    store = make_store(tmp_path / "v", rows, shard=4000)
    memory = 4_000_000
    pieces = cut(Q, len(rows), D, K, memory)
    assert pieces.rows < len(rows) / 2
    sizes = []
    read = exact_search.read_rows
    monkeypatch.setattr(exact_search, "read_rows", lambda *all: sizes.append(len(read(*all))) or read(*all))
    tracemalloc.start()
    found = search_vectors(store, QUERIES, encode, K, tmp_path / "found", memory_gb=memory / 1e9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(sizes) == pieces.rows
    assert sum(sizes) == len(rows)
    assert peak < memory
    assert same(found, expected(rows))


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from evaluation import exact_search
from indexes.vectors import VectorStore
folder, asked, found, block, k = sys.argv[1:]
asked = np.load(asked)
exact_search._SECONDS_BETWEEN_SAVES = 0
exact_search.cut = lambda queries, *rest, **more: exact_search.Pieces(min(queries, 8), 300)
read, count = exact_search.read_rows, iter(range(10**6))
def killing(*all):
    if next(count) == int(block):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(*all)
exact_search.read_rows = killing
queries = {f"q{number}": f"text {number}" for number in range(len(asked))}
encode = lambda texts: asked[[int(text.split()[1]) for text in texts]]
exact_search.search_vectors(VectorStore.open(folder), queries, encode, int(k), Path(found))
"""


@pytest.mark.parametrize("block", [0, 3, 7])
def test_a_killed_search_goes_on_where_it_was(tmp_path, store, monkeypatch, block):
    """A real SIGKILL: 3 parts of queries in 5 blocks of vectors each."""
    np.save(tmp_path / "asked.npy", ASKED)
    arguments = [str(store.folder), str(tmp_path / "asked.npy"), str(tmp_path / "found"), str(block), str(K)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, env=environment)
    assert done.returncode == -signal.SIGKILL
    small(monkeypatch, 8, 300)
    read, searched = exact_search.read_rows, []
    monkeypatch.setattr(exact_search, "read_rows", lambda *all: searched.append(all[1].first) or read(*all))

    def gone(texts):
        raise AssertionError("the queries were encoded again")

    found = search_vectors(store, QUERIES, gone, K, tmp_path / "found")
    assert len(searched) == 15 - block
    assert same(found, expected())
    again = search_vectors(store, QUERIES, gone, K, tmp_path / "found")
    assert len(searched) == 15 - block
    assert same(again, expected())


def interrupted(store, folder, monkeypatch, queries=8):
    """Leave a search after two blocks."""
    small(monkeypatch, queries, 300)
    monkeypatch.setattr(exact_search, "_SECONDS_BETWEEN_SAVES", 0)

    def stop(done, total):
        if done == 600:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_vectors(store, QUERIES, encode, K, folder, on_progress=stop)
    (partial,) = folder.glob("*.partial")
    return partial


def test_a_search_goes_on_with_other_blocks_but_not_with_less_memory_than_its_queries_take(
    tmp_path, store, monkeypatch
):
    interrupted(store, tmp_path, monkeypatch)
    small(monkeypatch, 4, 300)
    with pytest.raises(InputError, match=r"was begun with 8 queries at a time, which take more than 2 GB; allow as"):
        search_vectors(store, QUERIES, encode, K, tmp_path)
    small(monkeypatch, 100, 170)
    assert same(search_vectors(store, QUERIES, encode, K, tmp_path), expected())


@pytest.mark.parametrize("name", ["part-00000.npz", "queries.npy", "plan.json"])
def test_what_is_damaged_is_named_and_not_searched_with(tmp_path, store, monkeypatch, name):
    partial = interrupted(store, tmp_path, monkeypatch)
    path = partial / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=name):
        search_vectors(store, QUERIES, encode, K, tmp_path)
    other = {"part-00000.npz": dict(done=3, rows=np.zeros((2, 2)), scores=np.zeros((2, 2))), "queries.npy": ASKED[:2]}
    if name == "plan.json":
        path.write_text(json.dumps({**json.loads(whole), "search": "another"}))
    elif name == "queries.npy":
        np.save(path, other[name])
    else:
        np.savez(path, **other[name])
    with pytest.raises(InputError, match=r"not of this search|gave vectors \(2, 16\)"):
        search_vectors(store, QUERIES, encode, K, tmp_path)
    path.write_bytes(whole)
    assert same(search_vectors(store, QUERIES, encode, K, tmp_path), expected())


def test_what_was_searched_once_is_known_by_vectors_queries_and_k_not_by_names(tmp_path, store, monkeypatch):
    first = search_vectors(store, QUERIES, encode, K, tmp_path / "found")
    other = ROWS.copy()
    other[7] = 50
    again = make_store(tmp_path / "other" / "v", other)  # the folder's and the encoder's names are the same
    assert same(search_vectors(again, QUERIES, encode, K, tmp_path / "found"), expected(other))
    assert not same(first, expected(other))
    moved = make_store(tmp_path / "moved", ROWS)

    def gone(texts):
        raise AssertionError("searched again")

    assert same(search_vectors(moved, QUERIES, gone, K, tmp_path / "found"), first)
    with pytest.raises(AssertionError, match="searched again"):
        search_vectors(moved, QUERIES | {"q0": "text 1"}, gone, K, tmp_path / "found")
    with pytest.raises(AssertionError, match="searched again"):
        search_vectors(make_store(tmp_path / "third", ROWS, made_by="f"), QUERIES, gone, K, tmp_path / "found")


def test_what_cannot_be_searched_is_refused(tmp_path, store):
    for options in ({"k": 0}, {"k": 3, "memory_gb": 0}, {"k": 3, "memory_gb": float("nan")}):
        with pytest.raises(InputError, match="expected at least 1 hit, and more than 0 GB"):
            search_vectors(store, QUERIES, encode, folder=tmp_path, **options)
    with pytest.raises(InputError, match=r"query 'q3' gave a vector with NaN or infinity"):
        search_vectors(store, QUERIES, lambda texts: np.where(np.arange(Q)[:, None] == 3, np.nan, ASKED), K, tmp_path)
    with pytest.raises(InputError, match=r"queries gave vectors \(21, 4\); .* expects \(21, 16\)"):
        search_vectors(store, QUERIES, lambda texts: ASKED[:, :4], K, tmp_path / "narrow")
    (partial,) = tmp_path.glob("*.partial")
    with sole_writer(partial), pytest.raises(InputError, match="another process is writing"):
        search_vectors(store, QUERIES, encode, K, tmp_path)


@pytest.fixture
def toy(tmp_path, documents):
    queries = {f"q{number}": text for number, text in enumerate(random_texts(6, seed=5))}
    write_collection(tmp_path / "toy", documents, queries, {"test": {query: {"d1": 1, "d7": 2} for query in queries}})
    return tmp_path / "toy"


def test_the_command_measures_a_vectors_folder_as_an_index_of_it(toy, tmp_path, encoder, documents, capsys):
    store = encoder.encode_corpus(documents, tmp_path / "toy.vectors", shard_rows=16)
    from retrieval.building import build_index

    build_index(store, tmp_path / "toy.index")
    common = {"measure": ["nDCG@10", "Judged@10"], "k": 20}
    commands.evaluate(str(toy), index=tmp_path / "toy.index", json=tmp_path / "index.json", **common)
    place = {"vectors": store.folder, "cache": tmp_path / "cache", "memory_gb": 0.5}
    commands.evaluate(str(toy), **place, json=tmp_path / "vectors.json", output=tmp_path / "report", **common)
    index, vectors = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("index", "vectors"))
    assert vectors["systems"] == index["systems"]
    assert list(vectors["systems"]) == ["dense"]
    assert vectors["made_by"]["encoder fingerprint"] == encoder.fingerprint
    (kept,) = (tmp_path / "cache").glob(f"*-{encoder.fingerprint[:24]}/exact-*.npz")
    assert (tmp_path / "report" / "dense.trec").is_file()
    commands.evaluate(
        str(toy), run=[kept, tmp_path / "report" / "dense.trec"], json=tmp_path / "run.json", measure=["MAP"]
    )
    systems = json.loads((tmp_path / "run.json").read_text())["systems"]
    assert len(systems) == 2
    assert len({one["MAP"] for one in systems.values()}) == 1
    with pytest.raises(InputError, match="Judged@50 reads 50 hits, but k is 20"):
        commands.evaluate(str(toy), vectors=store.folder, measure=["Judged@50"], k=20)
    capsys.readouterr()


def test_another_encoder_than_the_vectors_is_refused_naming_both(toy, tmp_path, encoder, documents):
    store = encoder.encode_corpus(documents, tmp_path / "toy.vectors")
    other = make_model(tmp_path / "elsewhere" / "tiny", seed=1)  # another model of the same name
    with pytest.raises(
        InputError, match=r"toy.vectors was made by another encoder than .*elsewhere.*weights: \w{12} ≠ \w{12}"
    ):
        commands.evaluate(str(toy), vectors=store.folder, encoder=str(other), cache=tmp_path / "cache")
    write_collection(tmp_path / "set", [Document("a", "river")], {"q": "river"}, {"test": {"q": {"a": 1}}})
    with pytest.raises(InputError, match="holds another corpus than set"):
        commands.evaluate(str(tmp_path / "set"), vectors=store.folder, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vectors": "v", "index": "i"}, "--vectors are searched exactly"),
        ({"vectors": "v", "hybrid": True}, "--vectors are searched exactly"),
        ({"vectors": "v", "mode": ["lexical"]}, "--vectors are searched exactly"),
        ({"encoder": "e", "device": "cuda"}, "leave them out without --vectors"),
        ({"index": "i", "memory_gb": 1.0}, "leave them out without --vectors"),
        ({"encoder": "e", "against_exact": True}, "give --index"),
        ({"index": "i", "mode": ["lexical"], "against_exact": True}, "compares the dense search"),
    ],
)
def test_options_that_do_not_agree_are_refused(toy, options, message):
    with pytest.raises(InputError, match=message):
        commands.evaluate(str(toy), **options)


def test_a_vectors_folder_of_another_kind_is_refused(toy, tmp_path):
    (tmp_path / "v").mkdir()
    with pytest.raises(InputError, match="expected a vectors folder"):
        commands.evaluate(str(toy), vectors=tmp_path / "v")
    assert isinstance(make_store(tmp_path / "made"), VectorStore)
