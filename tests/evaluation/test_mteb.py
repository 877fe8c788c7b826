"""MTEB over our encoders and retrievers, offline; needs the extra eval."""

import json
import sys

import numpy as np
import pytest
from fixtures import WORDS, make_model, random_texts

from evaluation import commands
from evaluation.benchmark_commands import mteb as mteb_command
from evaluation.mteb_adapter import as_mteb_encoder, as_mteb_search
from evaluation.mteb_tasks import as_mteb_task, registered_task, run_mteb
from evaluation.pairs_sets import load_pairs
from evaluation.sts import evaluate_pairs
from evaluation.systems import evaluate
from evaluation.testsets import load_dataset, write_collection
from indexes.errors import InputError
from retrieval.building import build_index
from retrieval.documents import Document
from retrieval.encoder import Encoder
from retrieval.retriever import Retriever

mteb = pytest.importorskip("mteb")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Two encoders from two folders of one name."""
    home = tmp_path_factory.mktemp("twins")
    for seed, place in enumerate(("trained", "random")):
        (home / place).mkdir()
        make_model(home / place / "model", seed=seed + 1)
    return [Encoder.load(str(home / place / "model")) for place in ("trained", "random")]


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A small one of every kind."""
    home = tmp_path_factory.mktemp("sets")
    first, second = random_texts(40, seed=1, longest=8), random_texts(40, seed=2, longest=8)
    second[::5] = first[::5]
    rng = np.random.default_rng(0)
    both = [{"sentence1": one, "sentence2": other} for one, other in zip(first, second, strict=True)]
    lines(home / "sts.jsonl", [{**pair, "score": float(rng.integers(0, 11)) / 2} for pair in both])
    lines(home / "pairs.jsonl", [{**pair, "label": int(rng.integers(2))} for pair in both])
    texts = iter(random_texts(200, seed=3, longest=8))
    lines(
        home / "reranking.jsonl",
        [
            {"query": next(texts), "positive": [next(texts), next(texts)], "negative": [next(texts) for _ in range(6)]}
            for _ in range(12)
        ],
    )
    texts = random_texts(60, seed=4)
    documents = [Document(f"d{row}", text, f"title {row}" if row % 3 else "") for row, text in enumerate(texts)]
    queries = {f"q{row}": text for row, text in enumerate(random_texts(10, 5, longest=6))} | {"q10": "zzz 777"}
    qrels = {query: {f"d{row}": 1 + row % 2 for row in rng.integers(60, size=3)} for query in queries}
    write_collection(home / "collection", documents, queries, {"test": qrels})
    return home


def scores_of(model, task, cache=None):
    result = mteb.evaluate(model, task, cache=cache, co2_tracker=False, show_progress_bar=False)
    (record,) = result.task_results[0].scores["test"]
    return record


def test_two_local_models_of_one_name_share_no_stored_score_and_no_stored_vector(twins, sets, tmp_path):
    from mteb.models.cache_wrappers import CachedEmbeddingWrapper

    assert len({encoder.name.rpartition("/")[2] for encoder in twins}) == 1
    datasets = [load_pairs(f"sts:{sets / 'sts.jsonl'}"), load_dataset(sets / "collection")]
    cache = mteb.ResultCache(tmp_path / "results")
    for dataset in datasets:
        main = "cosine_spearman" if dataset.name == "sts" else "ndcg_at_10"
        alone = [scores_of(as_mteb_encoder(encoder), as_mteb_task(dataset))[main] for encoder in twins]
        assert abs(alone[0] - alone[1]) > 1e-3
        for _ in range(2):  # the second time, both are served from the cache
            shared = [scores_of(as_mteb_encoder(encoder), as_mteb_task(dataset), cache)[main] for encoder in twins]
            assert shared == pytest.approx(alone, abs=1e-6)  # MTEB keeps six digits
        # Not compared with those above: MTEB's wrapper puts the title before a document's text once more.
        kept = []
        for places in (("shared", "shared"), ("one", "other")):
            models = [
                CachedEmbeddingWrapper(as_mteb_encoder(encoder), tmp_path / "vectors" / place)
                for encoder, place in zip(twins, places, strict=True)
            ]
            kept.append([scores_of(model, as_mteb_task(dataset))[main] for model in models])
        assert kept[0] == pytest.approx(kept[1], abs=1e-6)
        assert abs(kept[0][0] - kept[0][1]) > 1e-3
    served = CountingEncoder(twins[0])
    scores_of(as_mteb_encoder(served), as_mteb_task(datasets[0]), cache)
    assert served.texts == 0
    metas = [as_mteb_encoder(encoder).mteb_model_meta for encoder in twins]
    found = cache.load_results(models=metas, include_remote=False)
    assert {one.model_revision for one in found.model_results} == {encoder.fingerprint for encoder in twins}


def test_our_own_cache_shares_no_vector_between_models_of_one_name(twins, sets, tmp_path):
    found = []
    for folder in ("shared", "shared", "trained", "random"):
        encoder = twins[len(found) % 2]
        out = tmp_path / f"{len(found)}.json"
        commands.evaluate(
            str(sets / "collection"), encoder=encoder.name, cache=tmp_path / folder, k=60, json=out, measure=["nDCG@10"]
        )
        found.append(json.loads(out.read_text())["metrics"]["nDCG@10"])
    assert found[:2] == found[2:]
    assert found[0] != found[1]
    assert len(list((tmp_path / "shared").iterdir())) == 2


class CountingEncoder:
    """Passes on to an encoder and counts the texts."""

    def __init__(self, encoder):
        self._encoder, self.texts, self.sides = encoder, 0, []

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def encode_queries(self, texts, on_progress=None):
        self.texts += len(texts)
        self.sides.append("query")
        return self._encoder.encode_queries(texts, on_progress)

    def encode_documents(self, texts, on_progress=None):
        self.texts += len(texts)
        self.sides.append("document")
        return self._encoder.encode_documents(texts, on_progress)


def test_data_that_changed_is_measured_anew_though_task_and_model_have_their_names(twins, sets, tmp_path):
    cache = mteb.ResultCache(tmp_path / "results")
    records = [json.loads(line) for line in (sets / "sts.jsonl").read_text().splitlines()]
    found = []
    for scores in (1, -1):
        (tmp_path / str(scores)).mkdir()
        changed = [{**record, "score": scores * record["score"]} for record in records]
        pairs = load_pairs(f"sts:{lines(tmp_path / str(scores) / 'sts.jsonl', changed)}")
        found.append(scores_of(as_mteb_encoder(twins[0]), as_mteb_task(pairs), cache)["cosine_spearman"])
    assert found[0] == pytest.approx(-found[1], abs=1e-9)
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("sts", {"cosine_spearman": "cosine_spearman", "cosine_pearson": "cosine_pearson"}),
        ("pairs", {f"cosine_{one}": f"cosine_{one}" for one in ("ap", "f1", "accuracy", "precision", "recall")}),
        ("reranking", {"MAP": "map_at_1000", "MRR": "mrr_at_1000", "nDCG@10": "ndcg_at_10"}),
    ],
)
def test_pairs_and_reranking_give_mtebs_figures(twins, sets, kind, names):
    dataset = load_pairs(f"{kind}:{sets / f'{kind}.jsonl'}")
    ours = evaluate_pairs(twins[0], dataset).metrics
    theirs = scores_of(as_mteb_encoder(twins[0]), as_mteb_task(dataset))
    # MTEB rounds the measures of retrieval to five digits, and its cosines of equal sentences differ by 1e-8.
    assert {name: theirs[their] for name, their in names.items()} == pytest.approx(
        {name: ours[name] for name in names}, abs=2e-3 if kind == "sts" else 6e-6
    )


def test_classification_runs(twins):
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.classification import AbsTaskClassification

    texts = random_texts(60, seed=7)

    class Local(AbsTaskClassification):
        metadata = mteb.TaskMetadata(
            name="LocalClassification",
            description="which word begins",
            type="Classification",
            category="t2c",
            dataset={"path": "local", "revision": "1"},
            eval_langs=["eng-Latn"],
            main_score="accuracy",
        )
        n_experiments = 2

        def load_data(self, num_proc=None, **options):
            rows = {"text": texts, "label": [int(text.split()[0] in WORDS[:8]) for text in texts]}
            half = Dataset.from_dict(rows)
            self.dataset = DatasetDict({"train": half.select(range(40)), "test": half.select(range(40, 60))})
            self.data_loaded = True

    assert 0 <= scores_of(as_mteb_encoder(twins[0]), Local())["accuracy"] <= 1


def test_retrieval_has_the_same_figures_through_mteb_as_through_our_own_path(twins, sets, tmp_path):
    """q10 shares no word with any document: lexical search finds nothing, and that counts 0 in both."""
    testset = load_dataset(sets / "collection")
    encoder = twins[0]
    vectors = encoder.encode_corpus(testset.documents(), tmp_path / "vectors")
    build_index(vectors, tmp_path / "index", documents=testset.documents())
    retriever = Retriever.open(tmp_path / "index", encoder=encoder)
    ours = evaluate(retriever, testset, k=60, measures=["nDCG@10", "Recall@20", "MAP"])
    for mode, result in ours.systems.items():
        models = [as_mteb_search(encoder, mode=mode, cache=tmp_path / "cache"), as_mteb_search(retriever, mode=mode)]
        for model in [*models, as_mteb_encoder(encoder)] if mode == "dense" else models:
            theirs = scores_of(model, as_mteb_task(testset))
            found = [theirs[name] for name in ("ndcg_at_10", "recall_at_20", "map_at_1000")]
            assert found == pytest.approx([*result.metrics.values()], abs=6e-6), mode
    assert "q10" not in ours.systems["lexical"].run or not ours.systems["lexical"].run["q10"].ids
    assert len(list((tmp_path / "cache").iterdir())) == 1  # the modes share vectors and index


def test_search_answers_every_query_and_only_with_top_ranked_documents(twins, sets, tmp_path):
    task = as_mteb_task(load_dataset(sets / "collection"))
    task.load_data()
    data = task.dataset["default"]["test"]
    search = as_mteb_search(twins[0], mode="lexical", cache=tmp_path)
    with pytest.raises(InputError, match="call index first"):
        search.search(data["queries"], task_metadata=task.metadata, top_k=5)
    search.index(data["corpus"], task_metadata=task.metadata)
    hits = search.search(data["queries"], task_metadata=task.metadata, top_k=5)
    assert set(hits) == set(data["queries"]["id"])
    assert hits["q10"] == {}
    assert max(map(len, hits.values())) == 5
    only = {query: ["d1", "d2", "unknown"] for query in hits if query != "q3"}
    again = as_mteb_search(twins[0], mode="hybrid", cache=tmp_path)
    again.index(data["corpus"], task_metadata=task.metadata)
    ranked = again.search(data["queries"], task_metadata=task.metadata, top_k=5, top_ranked=only)
    assert {tuple(sorted(found)) for query, found in ranked.items() if query != "q3"} == {("d1", "d2")}
    assert ranked["q3"] == {}


def test_an_index_of_another_corpus_is_refused(twins, sets, tmp_path):
    documents = [Document("d1", "river stone")]
    vectors = twins[0].encode_corpus(documents, tmp_path / "vectors")
    build_index(vectors, tmp_path / "index", documents=documents)
    search = as_mteb_search(Retriever.open(tmp_path / "index", encoder=twins[0]), mode="dense")
    with pytest.raises(InputError, match=r"holds another corpus than task collection-test-\w+ \(1 documents ≠ 60"):
        scores_of(search, as_mteb_task(load_dataset(sets / "collection")))
    with pytest.raises(InputError, match="mode is 'fast'; expected one of lexical, dense, hybrid"):
        as_mteb_search(twins[0], mode="fast")


def test_each_side_gets_its_prompt_and_the_rest_the_chosen_one(sets, tmp_path):
    folder = make_model(tmp_path / "prompted", prompts={"query": "river ", "document": "stone "})
    counting = CountingEncoder(Encoder.load(str(folder)))
    scores_of(as_mteb_encoder(counting), as_mteb_task(load_dataset(sets / "collection")))
    assert counting.sides == ["query", "document"]
    pairs = load_pairs(f"sts:{sets / 'sts.jsonl'}")
    revisions = []
    for prompt in ("document", "query"):
        counting = CountingEncoder(Encoder.load(str(folder)))
        model = as_mteb_encoder(counting, prompt=prompt)
        found = scores_of(model, as_mteb_task(pairs))["cosine_spearman"]
        assert counting.sides == [prompt, prompt]
        assert found == pytest.approx(
            evaluate_pairs(counting, pairs, prompt=prompt).metrics["cosine_spearman"], abs=2e-3
        )
        revisions.append(model.mteb_model_meta.revision)
    assert len(set(revisions)) == 2
    with pytest.raises(InputError, match="prompt is 'none'; expected one of document, query"):
        as_mteb_encoder(counting, prompt="none")


def test_what_the_encoder_cannot_give_is_refused(twins):
    model = as_mteb_encoder(twins[0])
    meta = mteb.get_task("STSBenchmark").metadata
    with pytest.raises(InputError, match="precision is 'int8'; load the encoder with dtype= instead"):
        model.encode([], task_metadata=meta, hf_split="test", hf_subset="default", precision="int8")
    with pytest.raises(InputError, match="task STSBenchmark has inputs without text"):
        model.encode([{"image": [1]}], task_metadata=meta, hf_split="test", hf_subset="default")


def test_similarities_are_cosines_or_inner_products_as_the_encoder_scales(twins, tmp_path):
    one, other = np.random.default_rng(0).normal(size=(2, 5, 32)).astype(np.float32)
    lengths = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=1)
    raw = Encoder.load(str(make_model(tmp_path / "raw", normalize=False)))
    for encoder, scale in ((twins[0], lengths), (raw, 1)):
        model = as_mteb_encoder(encoder)
        np.testing.assert_allclose(model.similarity(one, other), one @ other.T / scale, atol=1e-4)
        np.testing.assert_allclose(model.similarity_pairwise(one, other), np.diag(one @ other.T / scale), atol=1e-4)
    assert as_mteb_encoder(raw).mteb_model_meta.similarity_fn_name.value == "dot"


@pytest.fixture
def hub_copy(sets, tmp_path, monkeypatch):
    """A local copy of a task's data in the layout of its repository."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "stsbenchmark-sts"
    folder.mkdir()
    (folder / "test.jsonl").write_text((sets / "sts.jsonl").read_text())
    return folder


def test_the_command_runs_a_task_of_mtebs_over_local_data(twins, sets, hub_copy, tmp_path, capsys):
    task = f"STSBenchmark={hub_copy}"
    options = {"encoder": twins[0].name, "cache": tmp_path / "cache", "json": tmp_path / "out.json"}
    mteb_command([task], **options)
    document = json.loads((tmp_path / "out.json").read_text())
    ours = evaluate_pairs(twins[0], load_pairs(f"sts:{sets / 'sts.jsonl'}")).metrics
    assert document["metrics"]["STSBenchmark cosine_spearman"] == pytest.approx(ours["cosine_spearman"], abs=2e-3)
    assert document["tasks"]["STSBenchmark"]["scores"]["test"][0]["cosine_pearson"] == pytest.approx(
        ours["cosine_pearson"], abs=1e-5
    )
    assert document["made_by"]["encoder fingerprint"] == twins[0].fingerprint
    assert document["made_by"]["mteb"] == mteb.__version__
    assert "STSBenchmark" in capsys.readouterr().out
    counting = CountingEncoder(twins[0])
    again = run_mteb(as_mteb_encoder(counting), [registered_task(task)], tmp_path / "cache" / "mteb")
    assert counting.texts == 0  # finished already
    assert again[0].value == document["metrics"]["STSBenchmark cosine_spearman"]
    records = [json.loads(line) for line in (hub_copy / "test.jsonl").read_text().splitlines()]
    lines(hub_copy / "test.jsonl", [{**record, "score": 5 - record["score"]} for record in records])
    changed = run_mteb(as_mteb_encoder(counting), [registered_task(task)], tmp_path / "cache" / "mteb")
    assert changed[0].value == pytest.approx(-again[0].value, abs=1e-6)


def test_tasks_that_cannot_run_are_refused_in_one_line(twins, hub_copy, tmp_path):
    with pytest.raises(InputError, match="MTEB has no task 'SciFacts' among .*; did you mean .*SciFact"):
        registered_task("SciFacts")
    with pytest.raises(InputError, match="nowhere: no such folder; expected a copy of the data of task SciFact"):
        registered_task("SciFact=nowhere")
    with pytest.raises(InputError, match="the data of task STS12 cannot be had .*pass NAME=FOLDER"):
        run_mteb(as_mteb_encoder(twins[0]), [registered_task("STS12")], tmp_path)
    with pytest.raises(InputError, match=r"task STSBenchmark \(STS\) is no search task; leave --mode out"):
        run_mteb(as_mteb_search(twins[0]), [registered_task(f"STSBenchmark={hub_copy}")], tmp_path)
    with pytest.raises(InputError, match="search has none, leave it out"):
        mteb_command(["SciFact"], encoder="a", mode="dense", prompt="query")


def test_without_the_extra_its_name_is_said(twins, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    for make in (lambda: as_mteb_encoder(twins[0]), lambda: as_mteb_search(twins[0]), lambda: registered_task("STS12")):
        with pytest.raises(InputError, match=r"MTEB is not installed .*pip install 'retrokit\[eval\]'"):
            make()
