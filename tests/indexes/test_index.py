"""Index folders: search against brute force, fusion moments, refusals, damage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from indexes.efforts import Effort
from indexes.errors import InputError
from indexes.exact import search_exact
from indexes.index import Index
from indexes.lexical import Lexical
from indexes.manifest import differences, new_folder, refuse_existing
from indexes.moments import ScoreMoments
from indexes.postings import Postings
from indexes.segments import Entry
from indexes.transfer import save_vectors

FACTORIES = ["Flat", "HNSW16", "HNSW16_SQ8", "IVF8,Flat", "SQ8", "PQ8x4fs", "IVF8,PQ8x4fs,RFlat", "PCA16,Flat"]
N, D = 1200, 32


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(N, D)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def queries(rows):
    noisy = rows[:40] + 0.05 * np.random.default_rng(1).normal(size=(40, D)).astype(np.float32)
    return (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def store(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors") / "rows"
    return save_vectors(folder, rows, [f"d{n}" for n in range(N)], made_by={"encoder": "a", "normalize": True})


def entries():
    return (Entry(f"d{n}", ["all", f"word{n % 7}"], f"text number {n}") for n in range(N))


@pytest.mark.parametrize("factory", FACTORIES)
def test_every_factory_gives_exact_scores_and_min_k_n_hits(store, rows, queries, factory, tmp_path):
    index = Index.build(store, factory, tmp_path / "index")
    truth = search_exact(queries, rows, 10)
    found = index.search(queries, 10)
    exact = np.take_along_axis(queries @ rows.T, found.rows, axis=1)
    np.testing.assert_allclose(found.scores, exact, atol=1e-6)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    # The query is a document with a little noise: its own document must come first whatever the compression.
    assert (found.rows[:, 0] == truth.rows[:, 0]).mean() >= 0.9
    if factory in ("Flat", "HNSW16"):
        np.testing.assert_array_equal(found.rows, truth.rows)
    deep = index.search(queries[:2], N + 5)
    assert [(line >= 0).sum() for line in deep.rows] == [N, N]
    assert all(len(set(line[:N].tolist())) == N for line in deep.rows)


def test_opened_again_answers_the_same_and_faiss_reads_the_file(store, queries, tmp_path):
    import faiss

    built = Index.build(store, "HNSW16", tmp_path / "index", entries=entries(), analyzer="none")
    opened = Index.open(tmp_path / "index")
    np.testing.assert_array_equal(built.search(queries, 5).rows, opened.search(queries, 5).rows)
    plain = faiss.read_index(str(tmp_path / "index" / "segment-000001" / "dense.faiss"))
    assert (plain.ntotal, plain.d, plain.metric_type) == (N, D, faiss.METRIC_INNER_PRODUCT)
    assert opened.reader.ids[17] == "d17"
    assert opened.reader.text(17) == "text number 17"
    assert opened.reader.lexical.search([["word3"]], 3).rows.tolist() == [[3, 10, 17]]
    assert opened.reader.lexical.search([["unknown"], ["word3", "unknown"]], 1).rows.tolist() == [[-1], [3]]
    opened.verify()


def test_an_index_of_whole_documents_scores_them_and_has_no_passages(store, rows, queries, tmp_path):
    index = Index.build(store, "SQ8", tmp_path / "index")
    some = np.array([[5, -1, 0], [N - 1, 3, -1]])
    exact = np.take_along_axis(queries[:2] @ rows.T, np.maximum(some, 0), axis=1)
    np.testing.assert_allclose(index.reader.scores(queries[:2], some), np.where(some < 0, -np.inf, exact), atol=1e-6)
    assert index.reader.segments[0].passages is None
    assert index.reader.passage(queries[0], 5) is None
    assert not (tmp_path / "index" / "segment-000001" / "passages.npy").exists()
    assert (index.reader.manifest["documents"], index.reader.manifest["rows"]) == (N, N)
    assert index.reader.encoding == store.encoding


@pytest.mark.parametrize(
    ("factory", "little", "much"),
    [
        ("HNSW4", {"ef": 1}, {"ef": 600}),
        ("IVF64,Flat", {"nprobe": 1}, {"nprobe": 64}),
        ("PCA24,HNSW4", {"ef": 1, "candidates": 1}, {"ef": 900, "candidates": 40}),
        ("PCA24,IVF64,PQ8x4", {"nprobe": 1}, {"nprobe": 999, "candidates": 100}),
        ("IVF64,PQ8x4fs,RFlat", {"nprobe": 1}, {"nprobe": 64, "candidates": 120}),
        ("PQ8x4", {"candidates": 1}, {"candidates": 120}),
    ],
)
def test_more_effort_finds_more_and_changes_nothing_for_others(store, rows, queries, factory, little, much, tmp_path):
    index = Index.build(store, factory, tmp_path / "index")
    truth = search_exact(queries, rows, 10).rows

    def recall(**options):
        found = index.search(queries, 10, **options).rows
        return np.mean([len(set(one) & set(other)) / 10 for one, other in zip(found, truth, strict=True)])

    usual = recall()
    assert recall(effort=Effort(**little)) < recall(effort=Effort(**much))
    assert recall(effort=Effort(**much)) > 0.95
    assert recall() == usual
    with pytest.raises(InputError, match="effort nprobe is 0; expected at least 1"):
        recall(effort=Effort(nprobe=0))


@pytest.mark.parametrize("storage", ["float16", "int8", "binary"])
@pytest.mark.parametrize("factory", ["Flat", "IVF8,SQ8"])
def test_vectors_kept_in_other_forms_are_searched_as_they_are_read_back(rows, queries, tmp_path, storage, factory):
    ids = [f"d{n}" for n in range(N)]
    store = save_vectors(tmp_path / "v", rows, ids, made_by={"normalize": True}, storage=storage)
    index = Index.build(store, factory, tmp_path / "index")
    read = store[:]
    found = index.search(queries, 10)
    np.testing.assert_allclose(found.scores, np.take_along_axis(queries @ read.T, found.rows, axis=1), atol=1e-6)
    assert index.reader.segments[0].dense.targets.vectors.dtype == np.float32
    assert index.reader.metric == "cosine"
    if factory == "Flat":
        np.testing.assert_array_equal(found.rows, search_exact(queries, read, 10).rows)


def test_search_refuses_what_would_answer_wrongly(store, queries, tmp_path):
    index = Index.build(store, "Flat", tmp_path / "index")
    with pytest.raises(InputError, match=r"shape \(40, 31\)"):
        index.search(queries[:, 1:], 3)
    with pytest.raises(InputError, match="length 2.000"):
        index.search(queries * 2, 3)
    with pytest.raises(InputError, match="NaN"):
        index.search(np.full((1, D), np.nan, np.float32), 3)
    with pytest.raises(InputError, match="k is 0"):
        index.search(queries, 0)
    with pytest.raises(
        InputError, match=r"index ≠ encoder: encoder: a ≠ b, normalize: True ≠ False, fingerprint: .* ≠ 0{12}"
    ):
        index.reader.check_encoder({"encoder": "b", "fingerprint": "0" * 64, "normalize": False}, "b")


def test_inner_product_where_vectors_are_not_of_unit_length(tmp_path, rows, queries):
    store = save_vectors(tmp_path / "raw", rows * 3, [f"d{n}" for n in range(N)], made_by={"normalize": False})
    index = Index.build(store, "Flat", tmp_path / "index")
    assert index.reader.metric == "ip"
    np.testing.assert_allclose(
        index.search(queries * 2, 1).scores, 6 * search_exact(queries, rows, 1).scores, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "segment-000001" / "ids.txt").unlink(), "ids.txt is missing"),
        (lambda folder: os.truncate(folder / "segment-000001" / "dense.faiss", 100), "dense.faiss has 100 bytes"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not readable as JSON"),
        (
            lambda folder: (folder / "manifest.json").write_text('{"kind": "vectors"}'),
            "kind 'vectors'; expected 'index'",
        ),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
    ],
)
def test_a_damaged_index_is_refused_by_name(store, tmp_path, change, message):
    Index.build(store, "Flat", tmp_path / "index")
    change(tmp_path / "index")
    with pytest.raises(InputError, match=message):
        Index.open(tmp_path / "index")


def test_a_flipped_bit_is_found_on_opening_and_by_verify(store, tmp_path):
    index = Index.build(store, "Flat", tmp_path / "index")
    path = tmp_path / "index" / "moments-000001.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"moments-000001.npy: damaged"):
        index.verify()
    with pytest.raises(InputError, match=r"moments-000001.npy: damaged"):
        Index.open(tmp_path / "index")


def test_a_failed_build_leaves_what_was_there(store, tmp_path):
    Index.build(store, "Flat", tmp_path / "index")
    before = (tmp_path / "index" / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="already exists"):
        Index.build(store, "Flat", tmp_path / "index")
    with pytest.raises(InputError, match="FAISS does not know 'Nonsense'.*could not parse"):
        Index.build(store, "Nonsense", tmp_path / "index", overwrite=True)
    with pytest.raises(InputError, match="document 1 of the corpus is 'x'; the vectors have 'd0'"):
        Index.build(store, "Flat", tmp_path / "index", entries=iter([Entry("x", ["a"], "a")]), overwrite=True)
    with pytest.raises(InputError, match="has 1 documents; the vectors have 1200"):
        Index.build(store, "Flat", tmp_path / "index", entries=iter([Entry("d0", ["a"], "a")]), overwrite=True)
    assert (tmp_path / "index" / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    Index.build(store, "HNSW16", tmp_path / "index", overwrite=True)
    assert Index.open(tmp_path / "index").reader.factory == "HNSW16"


def test_moments_equal_those_of_all_scores(rows, queries):
    scores = queries.astype(np.float64) @ rows.astype(np.float64).T
    mean, deviation = ScoreMoments.of([(0, rows[:500]), (500, rows[500:])], D).of_scores(queries)
    np.testing.assert_allclose(mean, scores.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(deviation, scores.std(axis=1), atol=1e-12)


def test_bm25_equals_its_formula():
    documents = [["a", "b", "a"], ["b", "c"], ["c", "c", "c", "d"], ["e"]]
    index = Lexical([(Postings.of(documents), None)], k1=0.9, b=0.4)
    mean = np.mean([len(document) for document in documents])

    def score(terms, document):
        total = 0.0
        for term in terms:
            df = sum(term in other for other in documents)
            tf = document.count(term)
            idf = np.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            total += idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * len(document) / mean)) if df else 0
        return total

    for query in (["a"], ["b", "c"], ["c", "c", "zzz"], ["zzz"]):
        np.testing.assert_allclose(index.scores(query), [score(query, document) for document in documents], rtol=1e-6)
    with pytest.raises(InputError, match="k1 is -1 and b is 0.4"):
        Lexical([], k1=-1)


@pytest.mark.parametrize("seed", range(3))
def test_bm25_equals_that_of_bm25s(seed):
    import bm25s
    from bm25s.tokenization import Tokenized

    rng = np.random.default_rng(seed)
    words = np.minimum(rng.zipf(1.3, size=20_000), 400).tolist()
    documents = np.array_split([f"w{word}" for word in words], 300)
    vocabulary = {f"w{word}": number for number, word in enumerate(dict.fromkeys(words))}
    peer = bm25s.BM25(k1=0.9, b=0.4, method="lucene")
    ids = [[vocabulary[term] for term in document] for document in documents]
    peer.index(Tokenized(ids=ids, vocab=vocabulary), create_empty_token=False, show_progress=False)
    ours = Lexical([(Postings.of([document.tolist() for document in documents]), None)])
    for _ in range(20):
        terms = [f"w{word}" for word in rng.choice(400, 5)]
        known = peer.get_tokens_ids(terms)
        np.testing.assert_allclose(ours.scores(terms), peer.get_scores_from_ids(known), rtol=1e-5, atol=1e-6)


def test_bm25_needs_words(store, tmp_path):
    entries = (Entry(f"d{n}", [], "") for n in range(N))
    with pytest.raises(InputError, match="none of the 1200 documents holds a term"):
        Index.build(store, "Flat", tmp_path / "i", entries=entries)


def test_a_check_of_less_than_every_byte(store, tmp_path, monkeypatch):
    monkeypatch.setattr("indexes.checksums._SAMPLED", 1000)
    monkeypatch.setattr("indexes.checksums._SAMPLES", 3)
    monkeypatch.setattr("indexes.checksums._SAMPLE", 100)
    Index.build(store, "Flat", tmp_path / "i")
    path = tmp_path / "i" / "segment-000001" / "dense.faiss"
    whole = path.read_bytes()
    for place, found in ((5, {"full", "sample"}), (len(whole) // 2, {"full", "sample"}), (len(whole) // 4, {"full"})):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        for check in ("full", "sample"):
            if check in found:
                with pytest.raises(InputError, match=r"dense.faiss: damaged"):
                    Index.open(tmp_path / "i", check)
            else:
                Index.open(tmp_path / "i", check)
    with pytest.raises(InputError, match="check is 'none'; expected one of full, sample, size"):
        Index.open(tmp_path / "i", "none")


def test_overwriting_takes_only_what_retrokit_made(tmp_path, store):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(mine)
    for name, message in (
        ("mine", "was not made by retrokit"),
        ("file", "is a file or a link"),
        ("link", "is a file or a link"),
        (".", "is no name for something new"),
    ):
        with pytest.raises(InputError, match=message):
            Index.build(store, "Flat", tmp_path / name if name != "." else Path(), overwrite=True)
    assert (mine / "thesis.txt").read_text() == "years of work"
    Index.build(store, "Flat", tmp_path / "i")
    with pytest.raises(InputError, match="is or holds the input"):
        refuse_existing(tmp_path / "i", overwrite=True, inputs=[tmp_path / "i" / "segment-000001"])


@pytest.mark.parametrize("factory", ["HNSW1", "HNSW0", "IVF0,Flat", "NSG0"])
def test_strings_that_crash_faiss_are_refused(store, tmp_path, factory):
    with pytest.raises(InputError, match=f"factory '{factory}' has .*, which crashes FAISS"):
        Index.build(store, factory, tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_a_killed_build_leaves_nothing_but_a_folder_that_is_swept_up(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from indexes.manifest import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as new:\n"
        "    (new / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == 1
    with new_folder(tmp_path / "out") as new:
        (new / "whole").write_text(json.dumps({}))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_differences_name_both_sides():
    assert differences({"a": 1, "b": "", "c": "x" * 64}, {"a": 2, "b": "q", "c": "y" * 64}) == (
        f"a: 1 ≠ 2, b: '' ≠ q, c: {'x' * 12} ≠ {'y' * 12}"
    )


def test_ids_may_be_whole_numbers(rows, queries, tmp_path):
    ids = np.arange(N, dtype=np.int64) * 7 - 70
    store = save_vectors(tmp_path / "v", rows, ids, made_by={"encoder": "a", "normalize": True})
    kept = [Entry(int(id_), ["all", f"word{n % 7}"], f"text {n}") for n, id_ in enumerate(ids)]
    attributes = {int(id_): {"half": n % 2} for n, id_ in enumerate(ids)}
    index = Index.build(store, "Flat", tmp_path / "i", entries=kept, analyzer="none", attributes=attributes)
    (first, none) = index.get([-70, 1])
    assert (first.id, first.text, first.attributes, none) == (-70, "text 0", {"half": 0}, None)
    assert (7 in index, 8 in index) == (True, False)
    assert index.reader.ids[1:3] == [-63, -56]
    found = index.search(queries, 1).rows[:, 0].tolist()
    assert [index.reader.ids[row] for row in found] == ids[found].tolist()
    assert index.delete([-70, np.int64(-63)]) == 2
    more = save_vectors(tmp_path / "m", rows[:2], [10**20, -70], made_by={"encoder": "a", "normalize": True})
    index.add(more, entries=[Entry(10**20, ["all"], "far"), Entry(-70, ["all"], "back")])
    index.compact()
    again = Index.open(tmp_path / "i")
    assert [one.id for one in again] == [*ids[2:].tolist(), 10**20, -70]
    for refused in ("7", 7.0, True, None):
        with pytest.raises(InputError, match=f"an id is {refused!r}; expected a whole number"):
            index.get([refused])
    texts = save_vectors(tmp_path / "t", rows[:1], ["7"], made_by={"encoder": "a", "normalize": True})
    with pytest.raises(InputError, match="the ids of .* are whole numbers, those of .* texts: use one kind"):
        index.add(texts, entries=[Entry("7", [], "x")])
    with pytest.raises(InputError, match="an id is 'x'; expected a whole number"):
        save_vectors(tmp_path / "x", rows[:2], [1, "x"], made_by={"normalize": True})
    with pytest.raises(InputError, match="an id is 1; expected a text"):
        save_vectors(tmp_path / "x", rows[:2], ["x", 1], made_by={"normalize": True})


def test_lengths_of_queries_are_told_for_any_type_of_number(tmp_path):
    rows = np.eye(4, 16, dtype=np.float32)
    cosine = Index.build(
        save_vectors(tmp_path / "v", rows, list("abcd"), made_by={"normalize": True}), "Flat", tmp_path / "i"
    )
    for wrong in (np.array([[16, 1] + [0] * 14], np.int8), np.ones((1, 16), bool), 1.03 * rows[:1], np.zeros((1, 16))):
        with pytest.raises(InputError, match="a query vector has length"):
            cosine.search(wrong, 1)
    for right in (rows[:1], rows[:1].astype(np.float16), rows[:1].astype(np.int8), rows[:1].astype(np.float64)):
        assert cosine.search(right, 1).rows.tolist() == [[0]]
    assert cosine.search(rows[:0], 1).rows.shape == (0, 1)
    with pytest.raises(InputError, match="holds NaN or infinity"):
        cosine.search(rows[:1] * np.nan, 1)
    store = save_vectors(tmp_path / "w", rows, list("abcd"), made_by={"normalize": False})
    products = Index.build(store, "Flat", tmp_path / "p")
    assert products.search(rows[:1] * 1e30, 1).scores.tolist() == [[np.float32(1e30)]]
