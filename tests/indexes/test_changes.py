"""Indexes that change: every state against brute force over a list of documents, crashes, other readers."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from indexes.checksums import fingerprint
from indexes.errors import InputError
from indexes.exact import search_exact
from indexes.index import Index
from indexes.lexical import Lexical
from indexes.live import SMALL, first_to_merge
from indexes.manifest import LOCK, MANIFEST, sole_writer
from indexes.postings import Postings
from indexes.segments import Entry
from indexes.transfer import save_vectors
from indexes.vector_writer import VectorWriter

D = 16
MADE_BY = {"encoder": "a", "normalize": True, "fingerprint": "f" * 64}
EXACT = ("Flat", "HNSW16")
"""Over so few documents the graph, too, finds the best."""
FACTORIES = [*EXACT, "HNSW16_SQ8", "IVF4,Flat", "SQ8", "PQ8x4fs", "IVF4,PQ8x4fs,RFlat", "PCA8,Flat"]
FILTER = "year >= 2005"


class Model:
    """What an index should hold: documents in the order in which they were added last."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.documents = {}

    def some(self, ids):
        """New versions of documents."""
        vectors = self.rng.normal(size=(len(ids), D)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return {
            id_: (
                vector,
                [f"w{word}" for word in self.rng.integers(0, 30, self.rng.integers(0, 12))],
                {"year": int(self.rng.integers(2000, 2010))} if self.rng.random() < 0.9 else {},
            )
            for id_, vector in zip(ids, vectors, strict=True)
        }

    def put(self, some):
        for id_, document in some.items():
            self.documents.pop(id_, None)
            self.documents[id_] = document

    @property
    def ids(self):
        return list(self.documents)

    @property
    def vectors(self):
        return np.array([vector for vector, _, _ in self.documents.values()], np.float32).reshape(-1, D)


def folder_of(some, path):
    return save_vectors(path, np.array([one[0] for one in some.values()]), list(some), made_by=MADE_BY, overwrite=True)


def entries_of(some):
    return (Entry(id_, terms, f"text {id_} {' '.join(terms)}", years) for id_, (_, terms, years) in some.items())


def build(model, factory, path, count=150):
    some = model.some([f"d{n}" for n in range(count)])
    model.put(some)
    return Index.build(folder_of(some, path / "v"), factory, path / "i", entries=entries_of(some), analyzer="none")


def check(index, model, queries, *, exact):
    """Every answer of the index is that of brute force over the documents."""
    reader = index.reader
    assert len(index) == len(model.documents)
    rows = reader.rows_of(model.ids)
    assert (np.diff(rows) > 0).all()  # all there, in their order
    assert [stored.id for stored in index] == model.ids
    years = np.array([one[2].get("year", 0) for one in model.documents.values()])
    for condition, keep in ((None, np.ones(len(years), bool)), (FILTER, years >= 2005)):
        truth = search_exact(queries, model.vectors, 10, keep=keep)
        found = index.search(queries, 10, filter=condition)
        k = min(10, int(keep.sum()))
        assert found.rows.shape == (len(queries), k)
        assert (found.rows >= 0).all()
        places = np.searchsorted(rows, found.rows)
        np.testing.assert_array_equal(rows[places], found.rows)  # none is deleted
        assert keep[places].all()
        if exact:
            np.testing.assert_array_equal(places, truth.rows[:, :k])
            np.testing.assert_array_equal(found.scores, truth.scores[:, :k])
        else:
            scores = np.take_along_axis(queries @ model.vectors.T, places, axis=1)
            np.testing.assert_allclose(found.scores, scores, atol=1e-6)
            assert (np.diff(found.scores, axis=1) <= 0).all()
        within = index.search_within(queries, 0.4, filter=condition)
        whole = (queries.astype(np.float64) @ model.vectors.T.astype(np.float64)).astype(np.float32)
        expected = (whole >= np.float32(0.4)) & keep
        lines = np.repeat(np.arange(len(queries)), np.diff(within.starts))
        assert set(zip(lines.tolist(), np.searchsorted(rows, within.rows).tolist(), strict=True)) == set(
            zip(*(part.tolist() for part in np.nonzero(expected)), strict=True)
        )
        fresh = Lexical([(Postings.of([one[1] for one in model.documents.values()]), None)])
        for terms in (["w1", "w2", "w1"], ["w29", "none"]):
            np.testing.assert_array_equal(reader.lexical.scores(terms)[rows], fresh.scores(terms))
            ours, theirs = reader.lexical.search([terms], 5, reader.matching(condition)), fresh.search([terms], 5, keep)
            assert [reader.ids[row] for row in ours.rows[0] if row >= 0] == [
                model.ids[row] for row in theirs.rows[0] if row >= 0
            ]
    mean, deviation = reader.moments.of_scores(queries)
    scores = queries.astype(np.float64) @ model.vectors.T.astype(np.float64)
    np.testing.assert_allclose(mean, scores.mean(axis=1), atol=1e-9)
    np.testing.assert_allclose(deviation, scores.std(axis=1), atol=1e-7)
    last = model.ids[-1]
    (stored,) = index.get([last])
    vector, terms, attributes = model.documents[last]
    np.testing.assert_array_equal(stored.vectors, vector[None])
    assert (stored.text, stored.attributes) == (f"text {last} {' '.join(terms)}", attributes)


@pytest.mark.parametrize("factory", FACTORIES)
def test_every_state_answers_as_brute_force_does(factory, tmp_path):
    model = Model(3)
    queries = np.array([one[0] for one in model.some([str(n) for n in range(5)]).values()])
    index = build(model, factory, tmp_path)
    exact = factory in EXACT
    new = iter(range(1000, 9999))
    for step in range(12):
        kind = ["add", "delete", "upsert", "filter", "compact", "reopen"][step % 6]
        if kind == "add":
            some = model.some([f"n{next(new)}" for _ in range(int(model.rng.integers(1, 40)))])
            index.add(folder_of(some, tmp_path / "v"), entries=entries_of(some))
            model.put(some)
        elif kind == "delete":
            gone = model.rng.choice(model.ids, int(model.rng.integers(1, len(model.ids) // 3)), replace=False).tolist()
            assert index.delete(gone) == len(gone)
            for id_ in gone:
                del model.documents[id_]
        elif kind == "upsert":
            old = model.rng.choice(model.ids, 7, replace=False).tolist()
            some = model.some([*old, f"n{next(new)}"])
            assert index.upsert(folder_of(some, tmp_path / "v"), entries=entries_of(some)) == 7
            model.put(some)
        elif kind == "filter":
            assert index.delete(filter="year == 2003") == sum(
                one[2].get("year") == 2003 for one in model.documents.values()
            )
            model.documents = {id_: one for id_, one in model.documents.items() if one[2].get("year") != 2003}
        elif kind == "compact":
            index.compact()
            assert [segment["deleted"] for segment in index.stats()["segments"]] == [0]
        else:
            index = Index.open(tmp_path / "i")
        check(index, model, queries, exact=exact)
    index.verify()
    assert index.stats()["generation"] >= 10


def test_passages_come_and_go_with_their_documents(tmp_path):
    rng = np.random.default_rng(0)

    def store(name, ids, counts):
        rows = rng.normal(size=(sum(counts), D)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        table = [(document, 7 * n, 7 * n + 5) for document, count in enumerate(counts) for n in range(count)]
        encoding = {"shard_rows": 9, "storage": "float32", "long_documents": "passages"}
        writer = VectorWriter(tmp_path / name, made_by={**MADE_BY, "dim": D}, encoding=encoding)
        writer.write(0, rows, ids, name, passages=np.array(table, np.int64))
        made = writer.finish(1, {"source": name, "fingerprint": None})
        return made, dict(zip(ids, np.split(rows, np.cumsum(counts)[:-1]), strict=True))

    first, one = store("one", ["a", "b", "c", "d"], [2, 1, 3, 2])
    second, two = store("two", ["e", "b", "f"], [1, 4, 2])
    index = Index.build(first, "Flat", tmp_path / "i")
    assert index.upsert(second) == 1
    index.delete(["c"])
    expected = {"a": one["a"], "d": one["d"], **two}
    query = rng.normal(size=(3, D)).astype(np.float32)
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    for _ in range(2):
        assert [stored.id for stored in index] == list(expected)
        for stored in index:
            np.testing.assert_array_equal(stored.vectors, expected[stored.id])
        found = index.search(query, 9)
        assert found.rows.shape == (3, 5)
        best = np.array([[(rows @ line).max() for rows in expected.values()] for line in query])
        np.testing.assert_allclose(found.scores, -np.sort(-best, axis=1), atol=1e-6)
        row = int(found.rows[0, 0])
        passages = expected[index.reader.ids[row]]
        begin = 7 * int((passages @ query[0]).argmax())
        assert index.reader.passage(query[0], row) == (begin, begin + 5)
        assert index.reader.moments.rows == sum(map(len, expected.values()))
        index.compact()
    with pytest.raises(InputError, match="treat long documents otherwise"):
        index.add(save_vectors(tmp_path / "v", query, ["x", "y", "z"], made_by=MADE_BY))


def test_changes_that_would_do_harm_are_refused_and_leave_the_index_as_it_was(tmp_path):
    model = Model(0)
    index = build(model, "Flat", tmp_path, 20)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "i").rglob("*")) if path.is_file()}
    new = model.some(["x", "y"])
    store = folder_of(new, tmp_path / "v")
    refused = {
        "1 of the documents are in .* already, such as 'd3'": lambda: index.add(
            folder_of(model.some(["x", "d3"]), tmp_path / "w"), entries=entries_of(model.some(["x", "d3"]))
        ),
        "2 of these documents are not in .*, such as 'p'": lambda: index.delete(["d1", "p", "q"]),
        "found one id, 'd1'": lambda: index.delete("d1"),
        "has BM25 and texts: pass entries": lambda: index.add(store),
        "document 1 of the corpus is 'y'; the vectors have 'x'": lambda: index.add(
            store, entries=entries_of(dict(reversed(new.items())))
        ),
        "attribute 'year' is of type int64 in the index, of string here": lambda: index.add(
            store, entries=(entry._replace(attributes={"year": "late"}) for entry in entries_of(new))
        ),
        "attributes are given for 1 documents that the vectors lack": lambda: index.add(
            store, entries=entries_of(new), attributes={"z": {"year": 1}}
        ),
        "was made by another encoder .*encoder: a ≠ b": lambda: index.add(
            save_vectors(
                tmp_path / "u", store[:], store.ids, made_by={**MADE_BY, "encoder": "b", "fingerprint": "e" * 64}
            ),
            entries=entries_of(new),
        ),
        "another process is writing": lambda: locked(index),
        "k is 0": lambda: index.search(store[:1], 0),
        "least score is nan": lambda: index.search_within(store[:1], float("nan")),
        "found one id": lambda: index.get("d1"),
    }

    def locked(index):
        with sole_writer(tmp_path / "i"):
            index.delete(["d1"])

    for message, change in refused.items():
        with pytest.raises(InputError, match=message):
            change()
        found = {path: path.read_bytes() for path in sorted((tmp_path / "i").rglob("*")) if path.is_file()}
        assert {path: data for path, data in found.items() if path.name != LOCK} == before
    assert index.delete(["nowhere"], missing_ok=True) == 0
    assert index.reader.generation == 1
    assert index.get(["d2", "nowhere"])[1] is None
    assert ("d2" in index, "nowhere" in index) == (True, False)


def test_an_index_can_be_emptied_and_filled_again(tmp_path):
    model = Model(1)
    index = build(model, "IVF4,Flat", tmp_path, 60)
    queries = model.vectors[:2].copy()
    index.delete(model.ids[5:])
    index.compact()  # 5 documents are too few to train 4 lists of them... FAISS warns; fewer it refuses
    index.delete(model.ids[2:5])
    index.compact()
    assert index.stats()["segments"][0]["factory"] == "Flat"
    index.delete(model.ids[:2])
    assert (len(index), index.search(queries, 3).rows.shape, list(index)) == (0, (2, 0), [])
    assert index.search_within(queries, 0.0).rows.size == 0
    assert index.reader.lexical.search([["w1"]], 2).rows.tolist() == [[-1, -1]]
    index.compact()
    again = Index.open(tmp_path / "i")
    assert (len(again), again.stats()["segments"]) == (0, [])
    some = model.some(["d1"])
    again.add(folder_of(some, tmp_path / "v"), entries=entries_of(some))
    np.testing.assert_allclose(again.search(some["d1"][0][None], 3).scores, [[1.0]], atol=1e-6)
    assert again.reader.corpus["fingerprint"] is None


def test_an_opened_index_shows_its_generation_until_it_is_refreshed(tmp_path):
    model = Model(2)
    index = build(model, "HNSW16_SQ8", tmp_path, 50)
    other = Index.open(tmp_path / "i")
    query = model.vectors[:3].copy()
    before, text = other.search(query, 5), other.reader.text(7)
    index.delete(["d0", "d1"])
    index.compact()
    assert not list((tmp_path / "i").glob("*-000001*"))
    np.testing.assert_array_equal(other.search(query, 5).rows, before.rows)
    assert (other.reader.text(7), other.get(["d0"])[0].id) == (text, "d0")
    assert (other.refresh(), other.refresh()) == (True, False)
    assert other.get(["d0"]) == [None]
    assert (index.refresh(), len(other)) == (False, 48)
    Index.build(folder_of(model.some(["x"]), tmp_path / "v"), "Flat", tmp_path / "i", overwrite=True)
    other.refresh()
    assert (len(other), other.reader.generation) == (1, 1)  # as numbered as the first one was


def test_a_reader_that_opens_while_others_change_finds_a_whole_generation(tmp_path):
    model = Model(4)
    index = build(model, "Flat", tmp_path, 30)
    some = model.some(["n"])
    store = folder_of(some, tmp_path / "v")
    stop, wrong = threading.Event(), []

    def open_again():
        while not stop.is_set():
            try:
                found = Index.open(tmp_path / "i").search(store[:1], 40).rows.shape[1]
                if found not in (30, 31):
                    wrong.append(found)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=open_again) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        index.upsert(store, entries=entries_of(some))
        index.compact()
        index.delete(["n"])
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_is_added_little_by_little_is_merged(tmp_path):
    model = Model(5)
    index = build(model, "Flat", tmp_path, 100)
    for number in range(20):
        some = model.some([f"n{number}"])
        index.add(folder_of(some, tmp_path / "v"), entries=entries_of(some))
        model.put(some)
    sizes = [segment["documents"] for segment in index.stats()["segments"]]
    assert sum(sizes) == 120
    assert len(sizes) <= 5
    check(index, model, model.vectors[:3].copy(), exact=True)
    assert index.reader.corpus["parts"][0]["documents"] == 100

    class Held:
        def __init__(self, documents, factory="Flat"):
            self.documents, self.record = documents, {"factory": factory}

    assert first_to_merge([], 5) == 0
    assert first_to_merge([Held(100)], 1) == 1
    assert first_to_merge([Held(5), Held(3)], 2) == 0
    assert first_to_merge([Held(9), Held(3)], 2) == 0
    assert first_to_merge([Held(11), Held(3)], 2) == 1
    assert first_to_merge([Held(3, "HNSW32")], 3) == 1
    assert first_to_merge([Held(SMALL)], SMALL) == 1


_ENDLESSLY = """
import sys
from pathlib import Path
from indexes.index import Index
from indexes.segments import Entry
from indexes.vectors import VectorStore
folder = Path(sys.argv[1])
index = Index.open(folder / "i")
stores = [VectorStore.open(folder / name) for name in ("v0", "v1")]
entries = lambda store: (Entry(id_, ["w", id_], "text " + id_) for id_ in store.ids)
print("ready", flush=True)
while True:
    for number, store in enumerate(stores):
        print("upsert", number, flush=True)
        index.upsert(store, entries=entries(store))
        print("done", flush=True)
        if number:
            print("compact", flush=True)
            index.compact()
            print("done", flush=True)
    print("delete", flush=True)
    index.delete(stores[1].ids)
    print("done", flush=True)
"""


@pytest.mark.parametrize("seed", range(6))
def test_whoever_is_killed_leaves_the_generation_before_or_after(tmp_path, seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(300, D)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    base = save_vectors(tmp_path / "base", rows[:200], [f"b{n}" for n in range(200)], made_by=MADE_BY)
    for name in ("v0", "v1"):
        save_vectors(tmp_path / name, rows[200:], [f"{name}-{n}" for n in range(100)], made_by=MADE_BY)
    Index.build(base, "Flat", tmp_path / "i", entries=(Entry(id_, ["w", id_], f"text {id_}") for id_ in base.ids))
    said = tmp_path / "said"
    with said.open("w") as file:
        process = subprocess.Popen([sys.executable, "-c", _ENDLESSLY, str(tmp_path)], stdout=file)
        while "ready" not in said.read_text():
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.6)))
        process.send_signal(signal.SIGKILL)
        process.wait()
    lines = said.read_text().split("\n")
    committed = [line for line, after in itertools.pairwise(lines) if after == "done"]
    begun = [line for line in lines if line not in ("ready", "done", "")]
    possible = [state_after(committed), state_after(begun)]
    index = Index.open(tmp_path / "i")
    index.verify()
    found = {stored.id.partition("-")[0] for stored in index} - {f"b{n}" for n in range(200)}
    assert found in possible
    assert index.search(rows[:5], 1).rows.tolist() == [[row] for row in range(5)]
    assert index.reader.lexical.search([["b7"]], 2).rows.tolist() == [[7, -1]]
    index.delete(["b0"])  # the next change clears away what the killed one left
    named = {name.partition("/")[0] for name in index.reader.manifest["files"]} | {MANIFEST, LOCK}
    assert {path.name for path in (tmp_path / "i").iterdir()} == named


def state_after(lines):
    state = set()
    for line in lines:
        if line.startswith("upsert"):
            state = state | {f"v{line[-1]}"}
        elif line == "delete":
            state = state - {"v1"}
    return state


def test_documents_without_words_come_and_go(tmp_path):
    model = Model(8)
    index = build(model, "Flat", tmp_path, 5)
    some = {id_: (vector, [], {}) for id_, (vector, _, _) in model.some(["x", "y"]).items()}
    index.add(folder_of(some, tmp_path / "v"), entries=entries_of(some))
    index.delete(model.ids)
    assert index.reader.lexical.search([["w1"]], 3, index.reader.matching(None)).rows.tolist() == [[-1] * 3]
    index.compact()
    assert [stored.text for stored in index] == ["text x ", "text y "]
    assert index.reader.lexical.scores(["w1"]).tolist() == [0, 0]


def test_a_full_disk_leaves_the_index_as_it_was(tmp_path, monkeypatch):
    model = Model(6)
    index = build(model, "Flat", tmp_path, 30)
    some = model.some(["n"])
    store = folder_of(some, tmp_path / "v")

    def full(*_):
        raise OSError(28, "No space left on device")

    places = ("postings.Postings.save", "live.merge_segments", "generations.describe", "generations.write_manifest")
    index.delete(["d0"])
    for place in places:
        with monkeypatch.context() as patch:
            patch.setattr(f"indexes.{place}", full)
            with pytest.raises(OSError, match="No space left"):
                index.add(store, entries=entries_of(some)) if place != places[1] else index.compact()
        again = Index.open(tmp_path / "i")
        assert (len(again), again.reader.generation) == (29, 2)
        assert not list((tmp_path / "i").glob("*-000003*"))
    index.add(store, entries=entries_of(some))
    assert len(Index.open(tmp_path / "i")) == 30


def test_a_damaged_file_of_any_generation_is_refused_by_name(tmp_path):
    model = Model(7)
    index = build(model, "Flat", tmp_path, 30)
    index.delete(["d3"])
    for path in [path for path in sorted((tmp_path / "i").rglob("*")) if path.is_file() and path.stat().st_size]:
        if path.name in (LOCK, MANIFEST):
            continue
        whole = path.read_bytes()
        broken = bytearray(whole)
        broken[len(broken) // 2] ^= 16
        path.write_bytes(broken)
        with pytest.raises(InputError, match=path.name.replace(".", r"\.")):
            Index.open(tmp_path / "i")
        os.truncate(path, len(whole) - 1)
        with pytest.raises(InputError, match=path.name.replace(".", r"\.")):
            Index.open(tmp_path / "i")
        path.write_bytes(whole)
    assert len(Index.open(tmp_path / "i")) == 29


def test_an_index_is_not_replaced_while_it_changes_nor_changed_once_it_was_replaced(tmp_path, monkeypatch):
    from indexes import index as module

    model = Model(9)
    index = build(model, "Flat", tmp_path, 20)
    other = folder_of(model.some(["x"]), tmp_path / "w")
    publish = module.publish

    def late(*arguments):
        with pytest.raises(InputError, match="another process is writing"):
            Index.build(other, "Flat", tmp_path / "i", overwrite=True)
        return publish(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "publish", late)
        index.delete(["d1"])
    assert len(Index.open(tmp_path / "i")) == 19

    def replaced(*arguments):
        (tmp_path / "i").rename(tmp_path / "old")
        Index.build(other, "Flat", tmp_path / "i")
        return publish(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "publish", replaced)
        with pytest.raises((InputError, OSError)):
            index.delete(["d2"])
    assert len(Index.open(tmp_path / "i")) == 1


def write_again_and_again(root, name, added, wrong):
    index, model = Index.open(root / "i"), Model(ord(name))
    for number in range(15):
        some = model.some([f"{name}{number}"])
        store = folder_of(some, root / name)
        try:
            index.add(store, entries=entries_of(some))
            added.update(some)
        except InputError as error:
            if "another process is writing" not in str(error):
                wrong.append(error)


def refresh_until(index, writers, wrong):
    while any(writer.is_alive() for writer in writers):
        try:
            index.refresh()
            reader = index.reader
            if len(reader) != len(list(reader)):
                wrong.append(len(reader))
        except Exception as error:
            wrong.append(error)


def test_two_writers_and_readers_at_once(tmp_path):
    """Whoever is refused has changed nothing, and nobody's documents are lost."""
    build(Model(10), "Flat", tmp_path, 20)
    added, wrong = set(), []
    shared = Index.open(tmp_path / "i")
    writers = [threading.Thread(target=write_again_and_again, args=(tmp_path, name, added, wrong)) for name in "ab"]
    readers = [threading.Thread(target=refresh_until, args=(shared, writers, wrong)) for _ in range(2)]
    for thread in [*writers, *readers]:
        thread.start()
    for thread in [*writers, *readers]:
        thread.join()
    assert wrong == []
    assert {stored.id for stored in Index.open(tmp_path / "i")} == added | {f"d{n}" for n in range(20)}


def test_an_index_that_never_rests_is_said_to_change(tmp_path, monkeypatch):
    index = build(Model(11), "Flat", tmp_path, 5)
    ids = iter(range(100))
    read = Path.read_text

    def restless(path, *arguments, **options):
        found = read(path, *arguments, **options)
        if path.name == MANIFEST and path.parent.name == "i":
            (tmp_path / "i" / f"moments-{index.reader.generation:06d}.npy").unlink(missing_ok=True)
            manifest = json.loads(found)
            manifest["generation"] = next(ids)
            manifest.pop("checksum")
            path.write_text(json.dumps({**manifest, "checksum": fingerprint(manifest)}))
        return found

    monkeypatch.setattr(Path, "read_text", restless)
    monkeypatch.setattr("indexes.generations._PATIENCE", 0.0)
    with pytest.raises(InputError, match="changes faster than it can be opened"):
        Index.open(tmp_path / "i")


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, D)).astype(np.float32)
    plain = {"encoder": "a", "normalize": False, "fingerprint": "f" * 64}
    index = Index.build(
        save_vectors(tmp_path / "v", rows, [f"d{n}" for n in range(30)], made_by=plain), "Flat", tmp_path / "i"
    )
    wide = save_vectors(tmp_path / "w", np.ones((2, D + 1), np.float32), ["x", "y"], made_by=plain)
    with pytest.raises(InputError, match=f"has {D + 1} dimensions; .* has {D}"):
        index.add(wide)
    writer = VectorWriter(
        tmp_path / "twice", made_by={**plain, "dim": D}, encoding={"shard_rows": 2, "storage": "float32"}
    )
    for shard in range(2):
        writer.write(shard, rows[:2], ["x", f"y{shard}"], f"{shard}")
    twice = writer.finish(2, {"source": None, "fingerprint": None})
    with pytest.raises(InputError, match="has document 'x' twice"):
        index.add(twice)
    mask = np.zeros(30, bool)
    mask[3] = True
    other = Index.open(tmp_path / "i")
    other.delete(["d0"])
    with pytest.raises(InputError, match="has changed since the filter was made"):
        index.delete(filter=mask)
    index.refresh()
    assert index.delete(filter=mask) == 1
    assert "d3" not in index
    for change, message in (
        (lambda: index.delete([3]), "an id is 3; expected a text"),
        (lambda: index.get("d1"), "found one id"),
        (lambda: index.search(rows[:1], 2.5), "k is 2.5"),
        (lambda: index.search(rows[:1], 2, filter=[True]), "a filter is"),
        (lambda: index.search_within(rows[:1], None), "least score is None"),
    ):
        with pytest.raises(InputError, match=message):
            change()
    with pytest.raises(ValueError, match="read-only"):
        index.reader.matching(None)[0] = True
    for least in (-1e38, -1e39, -np.finfo(np.float32).max):
        assert len(index.search_within(rows[:2], float(least)).rows) == 2 * 28
    assert len(index.search_within(rows[:2], 1e39).rows) == 0


def test_a_vector_of_great_length_leaves_no_trace_in_the_moments(tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, D)).astype(np.float32)
    rows[4] *= 1e9
    plain = {"encoder": "a", "normalize": False, "fingerprint": "f" * 64}
    index = Index.build(
        save_vectors(tmp_path / "v", rows, [f"d{n}" for n in range(30)], made_by=plain), "Flat", tmp_path / "i"
    )
    index.delete(["d4"])
    _, deviation = index.reader.moments.of_scores(rows[:2])
    expected = (rows[:2].astype(np.float64) @ np.delete(rows, 4, axis=0).T).std(axis=1)
    np.testing.assert_allclose(deviation, expected, rtol=1e-9)


def test_structures_are_built_where_there_is_enough_to_build_them_of(tmp_path, monkeypatch):
    model = Model(12)
    index = build(model, "IVF40,Flat", tmp_path, 100)
    monkeypatch.setattr("indexes.live.SMALL", 30)
    for count, prefix in ((35, "a"), (50, "b")):
        some = model.some([f"{prefix}{n}" for n in range(count)])
        index.upsert(folder_of(some, tmp_path / "v"), entries=entries_of(some))
        model.put(some)
    assert [segment["factory"] for segment in index.stats()["segments"]] == ["IVF40,Flat", "Flat", "IVF40,Flat"]
    index.delete([f"d{n}" for n in range(100)])
    index.delete([f"b{n}" for n in range(50)])
    assert [segment["factory"] for segment in index.stats()["segments"]] == ["Flat"]
    some = model.some([f"c{n}" for n in range(20)])
    index.add(folder_of(some, tmp_path / "v"), entries=entries_of(some))
    index.compact()
    assert [segment["factory"] for segment in index.stats()["segments"]] == ["IVF40,Flat"]


def test_attributes_stay_known_and_keep_their_kind(tmp_path):
    model = Model(13)
    index = build(model, "Flat", tmp_path, 20)

    def add(id_, **attributes):
        some = {id_: (model.some([id_])[id_][0], ["w1"], attributes)}
        index.add(folder_of(some, tmp_path / "v"), entries=entries_of(some))

    add("red", colour="red", year=2**60 + 1)
    assert index.search(model.vectors[:1], 5, filter="colour == 'red'").rows.shape == (1, 1)
    with pytest.raises(InputError, match="year.* cannot be kept as double"):
        add("half", year=0.5)
    index.delete(["red"])
    index.compact()
    for _ in range(2):
        assert index.search(model.vectors[:1], 5, filter="colour == 'red'").rows.shape == (1, 0)
        index.delete(filter="year is null or year is not null")
    with pytest.raises(InputError, match="attribute 'year' is of type int64 in the index, of string here"):
        add("late", year="late")
    with pytest.raises(InputError, match="attribute 'year' is of type"):
        add("listed", year=[])
    add("half", year=0.5)
    assert index.search(model.vectors[:1], 5, filter="year == 0.5").rows.shape == (1, 1)
