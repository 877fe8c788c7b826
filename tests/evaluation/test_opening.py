"""Systems by a spec, end to end over a tiny collection: what they find, what they are made of, what is made once."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from fixtures import make_cross_encoder, make_model, make_sparse, random_texts
from typer.testing import CliRunner

from evaluation.opening import open_encoder, open_index, open_system, split_rerank
from evaluation.prepared import cache_folder
from evaluation.runs import make_ranking, write_run
from evaluation.stored import StoredRuns
from evaluation.systems import evaluate, evaluate_run
from evaluation.testsets import load_dataset, write_collection
from indexes.errors import InputError
from retrieval.building import build_index
from retrieval.cli import build_app
from retrieval.documents import Document
from retrieval.encoder import Encoder
from retrieval.lexical_retriever import build_lexical
from retrieval.reranker import Reranker
from retrieval.retriever import Retriever
from retrieval.sparse import SparseEncoder

pytestmark = pytest.mark.filterwarnings("ignore")
DOCUMENTS = [Document(f"d{row}", text) for row, text in enumerate(random_texts(40))]
QUERIES = {f"q{row}": text for row, text in enumerate(random_texts(6, seed=3, longest=6))}


def retrokit(*arguments, expect=0):
    done = CliRunner().invoke(build_app(), list(map(str, arguments)), env={"COLUMNS": "300"})
    assert done.exit_code == expect, f"{done.output}\n{done.exception!r}"
    return done.output


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("systems")


@pytest.fixture(scope="module")
def testset(place):
    qrels = {query: {f"d{row}": 1, f"d{row + 9}": 2} for row, query in enumerate(QUERIES)}
    write_collection(place / "toy", DOCUMENTS, QUERIES, {"test": qrels})
    return load_dataset(place / "toy")


@pytest.fixture(scope="module")
def models(place):
    return {
        "dense": str(make_model(place / "models" / "dense", pooling="cls")),
        "sparse": str(make_sparse(place / "models" / "splade")),
        "cross": str(make_cross_encoder(place / "models" / "cross")),
    }


@pytest.fixture(scope="module")
def cache(place):
    return place / "cache"


@pytest.fixture(scope="module")
def whole(place, models):
    """A retriever of all modes, made without `open_system`."""
    encoder = Encoder.load(models["dense"])
    vectors = encoder.encode_corpus(iter(DOCUMENTS), place / "whole.vectors")
    return Retriever(build_index(vectors, place / "whole", documents=DOCUMENTS), encoder)


@pytest.fixture(scope="module")
def learned(place, models, whole):
    sparse = SparseEncoder.load(models["sparse"])
    terms = sparse.encode_corpus(DOCUMENTS, place / "terms")
    vectors = whole.encoder.encode_corpus(iter(DOCUMENTS), place / "whole.vectors")
    index = build_index(vectors, place / "learned", documents=DOCUMENTS, terms=terms)
    return Retriever(index, whole.encoder, sparse=sparse)


def found(searcher, mode, k=15):
    return [
        [(hit.id, hit.score) for hit in hits] for hits in searcher.search_many(list(QUERIES.values()), k, mode=mode)
    ]


def test_an_encoder_is_encoded_once(testset, cache, models, whole):
    first = open_system(models["dense"], testset, cache=cache)
    assert (first.name, first.modes, first.documents_encoded) == ("dense", ("dense",), 40)
    assert first.encode_seconds > 0
    assert found(first.searcher, "dense") == found(whole, "dense")
    again = open_system(models["dense"], testset, cache=cache)
    assert (again.encode_seconds, again.documents_encoded) == (None, 0)
    assert again.made_by == first.made_by
    assert first.made_by["encoder fingerprint"] == whole.encoder.fingerprint
    assert again.index_bytes == first.index_bytes > 40 * 32 * 4
    moved = open_encoder(models["dense"], testset, cache=cache)
    assert (moved.modes, moved.documents_encoded) == (("dense",), 0)


def test_hybrid_is_both_fused(testset, cache, models, whole):
    opened = open_system(f"hybrid:{models['dense']}", testset, cache=cache)
    assert (opened.name, opened.modes) == ("hybrid:dense", ("hybrid",))
    assert found(opened.searcher, "hybrid") == found(whole, "hybrid")
    assert opened.made_by["BM25"] == "english+cjk, k1 0.9, b 0.4"
    assert opened.made_by["fusion"] == "zscore, weight 0.5"
    assert opened.index_bytes > open_system(models["dense"], testset, cache=cache).index_bytes


def test_bm25_needs_no_encoder(testset, cache, whole):
    opened = open_system("bm25", testset, cache=cache)
    assert (opened.name, opened.modes, opened.encode_seconds) == ("bm25", ("lexical",), None)
    assert found(opened.searcher, "lexical") == found(whole, "lexical")
    assert opened.made_by == {"BM25": "english+cjk, k1 0.9, b 0.4"}
    assert 0 < opened.index_bytes < sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    german = open_system("bm25:german", testset, cache=cache)
    assert german.made_by == {"BM25": "german+cjk, k1 0.9, b 0.4"}
    assert german.name == "bm25:german"
    with pytest.raises(InputError, match="no stemmer for language 'klingon'"):
        open_system("bm25:klingon", testset, cache=cache)


def test_learned_sparse_alone_and_beside_vectors(testset, cache, models, learned):
    alone = open_system(f"sparse:{models['sparse']}", testset, cache=cache)
    assert (alone.name, alone.modes, alone.documents_encoded) == ("sparse:splade", ("lexical",), 40)
    assert found(alone.searcher, "lexical") == found(learned, "lexical")
    assert alone.made_by["sparse encoder fingerprint"] == learned.sparse.fingerprint
    assert open_system(f"sparse:{models['sparse']}", testset, cache=cache).documents_encoded == 0
    both = open_system(f"hybrid:{models['dense']}", testset, cache=cache, sparse=models["sparse"])
    assert found(both.searcher, "hybrid") == found(learned, "hybrid")
    assert "BM25" not in both.made_by


def test_halves_of_a_hybrid_model_are_added(testset, cache, place, models, learned):
    """As `retrokit hybrid` lays them out."""
    halves = place / "halves"
    for half, name in (("dense", "dense"), ("sparse", "sparse")):
        shutil.copytree(models[name], halves / half)
    (halves / "manifest.json").write_text('{"kind": "model"}')
    opened = open_system(str(halves), testset, cache=cache)
    assert (opened.name, opened.modes) == ("halves", ("hybrid",))
    summed = Retriever(learned.index, learned.encoder, sparse=learned.sparse, fusion="sum")
    assert found(opened.searcher, "hybrid") == found(summed, "hybrid")
    assert opened.made_by["fusion"] == "sum, weight 1"
    with pytest.raises(InputError, match="halves has a sparse half of its own; leave --sparse out"):
        open_system(str(halves), testset, cache=cache, sparse=models["sparse"])


def test_an_index_folder_has_its_modes(testset, cache, place, whole, learned):
    opened = open_system(str(place / "whole"), testset, cache=cache)
    assert (opened.name, opened.modes) == ("whole", ("lexical", "dense", "hybrid"))
    for mode in opened.modes:
        assert found(opened.searcher, mode) == found(whole, mode)
    size = sum(path.stat().st_size for path in (place / "whole").rglob("*") if path.is_file())
    assert 0 < opened.index_bytes < size
    assert opened.made_by["index fingerprint"] != open_index(place / "learned", testset).made_by["index fingerprint"]
    build_index(whole.encoder.encode_corpus(iter(DOCUMENTS), place / "whole.vectors"), place / "bare")
    bare = open_index(place / "bare", testset)
    assert bare.modes == ("dense",)
    assert "fusion" not in bare.made_by
    assert bare.index_bytes < opened.index_bytes
    build_lexical(DOCUMENTS, place / "words")
    words = open_system(str(place / "words"), testset)
    assert found(words.searcher, "lexical") == found(whole, "lexical")


def test_a_sparse_encoder_that_moved_is_named(testset, place, models, learned):
    gone = place / "gone"
    sparse = shutil.copytree(models["sparse"], gone)
    terms = SparseEncoder.load(str(sparse)).encode_corpus(DOCUMENTS, place / "gone.terms")
    vectors = learned.encoder.encode_corpus(iter(DOCUMENTS), place / "whole.vectors")
    build_index(vectors, place / "gone.index", documents=DOCUMENTS, terms=terms)
    shutil.rmtree(gone)
    out = place / "out.json"
    common = ("evaluate", "--dataset", place / "toy", "--index", place / "gone.index", "--json", out)
    assert "cannot be loaded; pass --sparse" in retrokit(*common, expect=2)
    retrokit(*common, "--sparse", models["sparse"])
    systems = json.loads(out.read_text())["systems"]
    expected = evaluate(learned, testset)
    assert systems == {mode: result.metrics for mode, result in expected.systems.items()}
    # Tuning searches vectors only, so that it needs no sparse encoder.
    few = place / "few.txt"
    few.write_text("\n".join(random_texts(50, seed=6)))
    retrokit("tune", place / "gone.index", "--queries", few, "--factory", "Flat", "--recall", 0.5)


def test_a_run_file_is_searched_by_query_ids(testset, place):
    run = {query: make_ranking(["d1", "d2", f"d{row + 3}"], [3, 2, 1], place="x") for row, query in enumerate(QUERIES)}
    del run["q5"]
    run["q99"] = run["q1"]
    write_run(run, place / "mine.trec.gz")
    opened = open_system(str(place / "mine.trec.gz"), testset)
    assert (opened.name, opened.modes, opened.index_bytes, opened.encode_seconds) == ("mine", ("mine",), 0, None)
    report = evaluate(opened.searcher, testset, modes=opened.modes)
    assert report.main.per_query == evaluate_run(run, testset).main.per_query
    assert report.notices[-2:] == (
        "1 of 6 queries are missing in run 'mine'; they count 0.",
        "1 queries of run 'mine' have no judgements; they were left out.",
    )
    assert [hit.id for hit in opened.searcher.search_many([QUERIES["q1"]], 2, mode="mine")[0]] == ["d1", "d2"]
    assert opened.searcher.search_many([QUERIES["q5"]], 2, mode="mine") == [[]]
    with pytest.raises(InputError, match="no query of toy is 'unheard of'"):
        opened.searcher.search_many(["unheard of"], 2, mode="mine")
    other = place / "other.trec"
    write_run({"x": run["q1"]}, other)
    with pytest.raises(InputError, match=r"run 'other' has no query of toy \(test\): its ids are like 'x'"):
        open_system(str(other), testset)


def test_two_queries_of_one_text_keep_their_own_hits(testset):
    same = replace(testset, queries=dict.fromkeys(QUERIES, "one text"))
    run = {query: make_ranking([f"d{row}"], [1.0], place="x") for row, query in enumerate(QUERIES)}
    stored = StoredRuns({"mine": run}, same)
    assert evaluate(stored, same, measures=["MRR@10"]).main.metrics == {"MRR@10": 1.0}
    with pytest.raises(InputError, match="queries 'q0', 'q1', 'q2' have one text and other hits; search by ids"):
        stored.search_many(["one text"], 1, mode="mine")


@pytest.mark.parametrize("first", ["dense", "bm25", "index", "run", "sparse"])
def test_a_reranked_system_is_its_first_stage_reranked(testset, cache, place, models, whole, first):
    run = {query: make_ranking([f"d{row}" for row in range(20)], range(20), place="x") for query in QUERIES}
    write_run(run, place / "stored.trec")
    spec = {
        "dense": models["dense"],
        "bm25": "bm25",
        "index": str(place / "whole"),
        "run": str(place / "stored.trec"),
        "sparse": f"sparse:{models['sparse']}",
    }[first]
    base = open_system(spec, testset, cache=cache)
    opened = open_system(f"{spec}+rerank:{models['cross']}@7", testset, cache=cache)
    assert (opened.name, opened.modes) == (f"{base.name}+rerank:cross@7", (f"{base.modes[-1]}+rerank",))
    reranker = Reranker.load(models["cross"])
    assert opened.made_by == base.made_by | {
        "reranker": models["cross"],
        "reranker fingerprint": reranker.fingerprint,
        "rerank depth": "7",
    }
    assert opened.searcher.queries_at_once == 2048 // 7
    before = evaluate(base.searcher, testset, modes=base.modes[-1:], k=15, measures=["MAP"]).main.run
    after = evaluate(opened.searcher, testset, modes=opened.modes, k=15, measures=["MAP"]).main.run
    texts = {one.id: one.content for one in DOCUMENTS}
    assert before.keys() == after.keys()
    for query, ranking in before.items():
        some = ranking.ids[:7]
        scores = reranker.scores([(QUERIES[query], texts[name]) for name in some])
        best = [some[row] for row in np.argsort(-scores)]
        assert after[query].ids == best + ranking.ids[7:]


def test_deep_reranking_shows_progress_after_few_queries(testset, cache, models):
    opened = open_system(f"bm25+rerank:{models['cross']}@1000", testset, cache=cache)
    seen = []
    evaluate(opened.searcher, testset, modes=opened.modes, on_progress=lambda *now: seen.append(now))
    assert seen == [(2, 6), (4, 6), (6, 6)]


def test_without_modes_all_are_measured_the_reranked_ones_last(testset, cache, place, models, whole):
    opened = open_system(f"{place / 'whole'}+rerank:{models['cross']}@3", testset, cache=cache)
    names = ["lexical", "dense", "hybrid"]
    assert list(evaluate(opened.searcher, testset).systems) == [*names, *(f"{name}+rerank" for name in names)]


def test_specs_of_two_stages():
    assert split_rerank("bm25") == ("bm25", None, None)
    assert split_rerank("bm25+rerank:a/b") == ("bm25", "a/b", None)
    assert split_rerank("hybrid:m+rerank:a/b@50") == ("hybrid:m", "a/b", 50)
    assert split_rerank("m+rerank:name@v2") == ("m", "name@v2", None)
    for wrong in ("+rerank:a", "bm25+rerank:", "bm25+rerank:@5", "a+rerank:b+rerank:c"):
        with pytest.raises(InputError, match=r"is no system of two stages; expected SPEC\+rerank:MODEL"):
            split_rerank(wrong)


def test_models_of_one_folder_name_never_share_a_cache(testset, place, tmp_path):
    """MTEB serves one local model's scores for another's; here everything goes by what a model is made of."""
    folders = [make_model(tmp_path / name / "model", seed=seed) for seed, name in enumerate("ab")]
    opened = [open_system(str(folder), testset, cache=tmp_path / "cache") for folder in folders]
    assert [one.documents_encoded for one in opened] == [40, 40]
    assert [one.name for one in opened] == ["model", "model"]
    assert found(opened[0].searcher, "dense") != found(opened[1].searcher, "dense")
    shutil.rmtree(folders[0])
    shutil.copytree(folders[1], folders[0])  # the path of the first, the weights of the second
    again = open_system(str(folders[0]), testset, cache=tmp_path / "cache")
    assert (again.documents_encoded, found(again.searcher, "dense")) == (0, found(opened[1].searcher, "dense"))


def test_the_cache_goes_by_fingerprints(testset, place, monkeypatch, tmp_path):
    assert cache_folder(place, testset, "e" * 64) == place / f"{testset.corpus_fingerprint[:24]}-{'e' * 24}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    open_system("bm25", testset)
    assert [path.name for path in (tmp_path / "retrokit").iterdir()] == [
        f"{testset.corpus_fingerprint[:24]}-bm25-english+cjk"
    ]


def test_what_cannot_be_opened_is_refused(testset, cache, place, models, whole, tmp_path):
    write_collection(tmp_path / "other", DOCUMENTS[:30], QUERIES, {"test": {"q1": {"d1": 1}}})
    other = load_dataset(tmp_path / "other")
    cross = models["cross"]
    build_lexical(DOCUMENTS, tmp_path / "words")
    vectors = whole.encoder.encode_corpus(iter(DOCUMENTS), place / "whole.vectors")
    build_index(vectors, tmp_path / "bare")
    cases = [
        (str(place / "whole"), other, "whole holds another corpus than other"),
        (str(tmp_path / "words"), other, "words holds another corpus than other"),
        (str(place / "whole.vectors"), testset, "is a folder of kind 'vectors'; expected a model"),
        (f"{tmp_path / 'bare'}+rerank:{cross}", testset, "bare keeps no texts, and a cross-encoder reads texts"),
        (f"bm25+rerank:{cross}@0", testset, r"@0' reranks 0 hits; expected \+rerank:MODEL@DEPTH with"),
        (f"bm25+rerank:{models['dense']}", testset, "is a SentenceTransformer; a second stage takes a CrossEncoder"),
        (
            "anchor:BM25",
            testset,
            "anchor:BM25 is a published figure, with nothing to search; give it to retrokit compare",
        ),
        ("sparse:", testset, "'sparse:' names no model; expected sparse:MODEL"),
        (f"sparse:{models['dense']}", testset, "is no sparse encoder"),
        ("/no/such/model", testset, "/no/such/model: no such model folder"),
    ]
    for spec, data, message in cases:
        with pytest.raises(InputError, match=message):
            open_system(spec, data, cache=cache)
    with pytest.raises(InputError, match="a sparse encoder goes with a model or an index folder, not with bm25"):
        open_system("bm25", testset, cache=cache, sparse=models["sparse"])
    gone = make_ranking(["d1", "d777"], [2, 1], place="x")
    write_run(dict.fromkeys(QUERIES, gone), tmp_path / "gone.trec")
    opened = open_system(f"{tmp_path / 'gone.trec'}+rerank:{cross}", testset)
    with pytest.raises(InputError, match="the text of document 'd777' is not here"):
        evaluate(opened.searcher, testset, modes=opened.modes)


def test_the_command_measures_the_last_system_reranked_too(testset, cache, place, models):
    out = place / "reranked.json"
    common = ("evaluate", "--dataset", place / "toy", "--json", out)
    rerank = ("--rerank", models["cross"], "--rerank-depth", 7)
    retrokit(*common, "--encoder", models["dense"], "--hybrid", "--cache", cache, *rerank)
    document = json.loads(out.read_text())
    assert list(document["systems"]) == ["lexical", "dense", "hybrid", "hybrid+rerank"]
    opened = open_system(f"hybrid:{models['dense']}+rerank:{models['cross']}@7", testset, cache=cache)
    expected = evaluate(opened.searcher, testset, modes=opened.modes)
    assert document["metrics"] == document["systems"]["hybrid+rerank"] == expected.main.metrics
    assert document["made_by"]["rerank depth"] == "7"
    retrokit(*common, "--system", "bm25", "--cache", cache)
    assert list(json.loads(out.read_text())["systems"]) == ["lexical"]
    write_run(expected.main.run, place / "one.trec")
    write_run(dict(list(expected.main.run.items())[:3]), place / "two.trec")
    said = retrokit(*common, "--run", place / "one.trec", "--run", place / "two.trec", *rerank)
    document = json.loads(out.read_text())
    assert list(document["systems"]) == ["one", "two", "two+rerank"]
    assert document["systems"]["one"] == expected.main.metrics
    assert "3 of 6 queries are missing in run 'two'" in said
    assert "-k says how many hits" in retrokit(*common, "--run", place / "one.trec", *rerank, "-k", 5, expect=2)
