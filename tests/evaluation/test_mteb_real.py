"""Published values of a real encoder on real data: SciFact through three paths, STS-B, SICK-R, our expected figures.

On two cores SciFact takes three to six minutes, the STS files half a minute, the other collections two.
"""

import json

import pytest

from evaluation import commands, expected
from evaluation.mteb_adapter import as_mteb_encoder
from evaluation.mteb_tasks import registered_task, run_mteb
from evaluation.pairs_sets import load_pairs
from evaluation.prepared import cache_folder
from evaluation.sts import evaluate_pairs
from evaluation.testsets import load_dataset
from indexes.vectors import VectorStore
from retrieval.encoder import Encoder

pytest.importorskip("mteb")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def minilm():
    return Encoder.load("all-MiniLM-L6-v2")


class Memo:
    """An encoder that knows the vectors of some texts and counts the texts it had to encode itself.

    A path that feeds another text, or the right one on the wrong side, shows as one more text encoded.
    """

    def __init__(self, encoder, queries, documents):
        self._encoder, self._queries, self._documents = encoder, queries, documents
        self.encoded, self.asked = 0, 0

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def _look_up(self, known, encode, texts):
        import numpy as np

        missing = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(missing, encode(missing), strict=True))
        self.encoded += len(missing)
        self.asked += len(texts)
        return np.stack([known[text] for text in texts])

    def encode_queries(self, texts, on_progress=None):
        return self._look_up(self._queries, self._encoder.encode_queries, texts)

    def encode_documents(self, texts, on_progress=None):
        return self._look_up(self._documents, self._encoder.encode_documents, texts)


def as_hub_folder(source, folder):
    """SciFact's files in the layout of its repository on the hub, untouched but for the qrels' format."""
    folder.mkdir()
    for name in ("corpus", "queries"):
        (folder / f"{name}.jsonl").write_bytes((source / f"{name}.jsonl").read_bytes())
    rows = [line.split("\t") for line in (source / "qrels" / "test.tsv").read_text().splitlines()[1:]]
    records = [{"query-id": query, "corpus-id": document, "score": int(grade)} for query, document, grade in rows]
    (folder / "qrels.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    configs = [("corpus", "corpus", "corpus"), ("queries", "queries", "queries"), ("default", "test", "qrels")]
    lines = [
        f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {name}.jsonl"
        for config, split, name in configs
    ]
    (folder / "README.md").write_text("---\nconfigs:\n" + "\n".join(lines) + "\n---\n")
    return folder


def through_beir(folder, encoder):
    """BEIR's own loader, joining of title and text, search and measures."""
    import torch
    from beir.datasets.data_loader import GenericDataLoader
    from beir.retrieval.evaluation import EvaluateRetrieval
    from beir.retrieval.models import SentenceBERT
    from beir.retrieval.search.dense import DenseRetrievalExactSearch

    class Side:
        def __init__(self, encode):
            self._encode = encode

        def encode(self, texts, **options):
            return torch.from_numpy(self._encode(list(texts)))

    model = SentenceBERT()
    model.q_model, model.doc_model = Side(encoder.encode_queries), Side(encoder.encode_documents)
    corpus, queries, qrels = GenericDataLoader(str(folder)).load(split="test")
    search = DenseRetrievalExactSearch(model, show_progress_bar=False)
    judge = EvaluateRetrieval(search, score_function="cos_sim", k_values=[10, 100])
    ndcg, _, recall, _ = judge.evaluate(qrels, judge.retrieve(corpus, queries), judge.k_values)
    return ndcg["NDCG@10"], recall["Recall@100"]


def test_scifact_has_one_value_through_our_own_path_mtebs_and_beirs(
    test_data, minilm, real_cache, tmp_path, monkeypatch
):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = test_data / "beir" / "scifact"
    commands.evaluate(str(folder), encoder="all-MiniLM-L6-v2", cache=real_cache, json=tmp_path / "ours.json")
    document = json.loads((tmp_path / "ours.json").read_text())
    ours = document["metrics"]["nDCG@10"], document["metrics"]["Recall@100"]
    assert any(notice.startswith("As expected: nDCG@10") for notice in document["notices"])

    dataset = load_dataset(folder)
    rows = VectorStore.open(cache_folder(real_cache, dataset, minilm.fingerprint) / "vectors")[:]
    known = {one.content: row for one, row in zip(dataset.documents(), rows, strict=True)}
    queries = list(dataset.queries.values())
    memo = Memo(minilm, dict(zip(queries, minilm.encode_queries(queries), strict=True)), known)
    task = registered_task(f"SciFact={as_hub_folder(folder, tmp_path / 'hub')}")
    (result,) = run_mteb(as_mteb_encoder(memo), [task], tmp_path / "mteb")
    (scores,) = result.scores["test"]
    mtebs = scores["ndcg_at_10"], scores["recall_at_100"]
    assert memo.asked == 5183 + 300
    beirs = through_beir(folder, memo)
    assert memo.asked == 2 * (5183 + 300)
    assert memo.encoded == 0  # every text of MTEB's and BEIR's was one of ours, on the same side

    assert [*ours, *mtebs, *beirs] == pytest.approx(3 * [0.64508, 0.925], abs=6e-6)


@pytest.mark.parametrize(("name", "published"), [("stsb-test", 0.8203), ("sick", 0.7758)])
def test_sts_has_the_published_values(test_data, minilm, name, published):
    pairs = load_pairs(f"sts:{test_data / 'sts' / f'{name}.jsonl'}")
    report = evaluate_pairs(minilm, pairs)
    assert report.metrics["cosine_spearman"] == pytest.approx(published, abs=5e-4)
    (said,) = expected.check(minilm.fingerprint, report.fingerprint, report.metrics)
    assert said.startswith("As expected")


@pytest.mark.parametrize("name", ["cacm", "cisi", "cranfield"])
def test_the_collections_have_their_expected_figures(test_data, real_cache, tmp_path, name):
    options = {"encoder": "all-MiniLM-L6-v2", "cache": real_cache, "json": tmp_path / "out.json"}
    commands.evaluate(str(test_data / "beir" / name), **options)
    notices = json.loads((tmp_path / "out.json").read_text())["notices"]
    assert any(notice.startswith("As expected: nDCG@10") for notice in notices), notices
