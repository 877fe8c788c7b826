"""A collection as a judge of encoders in training: its nDCG@10 is that of `evaluate`."""

import pytest
from fixtures import make_model, random_texts

from evaluation.probe import DatasetProbe
from evaluation.systems import evaluate
from evaluation.testsets import load_dataset, write_collection
from indexes.errors import InputError
from retrieval.building import build_index
from retrieval.documents import Document
from retrieval.encoder import Encoder
from retrieval.retriever import Retriever


@pytest.fixture
def collection(tmp_path):
    """Graded judgements, several a query; two queries have the ids of documents."""
    documents = [Document(f"d{number}", text, f"title {number}") for number, text in enumerate(random_texts(60))]
    queries = {f"d{number}": text for number, text in enumerate(random_texts(12, seed=1, longest=6))}
    qrels = {query: {f"d{3 * n + k}": 1 + k % 2 for k in range(1 + n % 4)} for n, query in enumerate(queries)}
    for name in ("toy", "arguana"):
        write_collection(tmp_path / name, documents, queries, {"test": qrels})
    return tmp_path


@pytest.mark.parametrize("name", ["toy", "arguana"])
def test_it_is_what_evaluate_measures(name, collection):
    """Also where a query's own document must not count."""
    from sentence_transformers import SentenceTransformer

    folder = make_model(collection / "model", prompts={"query": "river ", "document": "stone "})
    encoder, dataset = Encoder.load(str(folder)), load_dataset(collection / name)
    vectors = encoder.encode_corpus(dataset.documents(), collection / "toy.vectors")
    build_index(vectors, collection / "toy.index", documents=dataset.documents())
    report = evaluate(Retriever.open(str(collection / "toy.index")), dataset)
    judge = DatasetProbe(collection / name)
    measured = judge(SentenceTransformer(str(folder), device="cpu"))
    assert measured == pytest.approx(report.systems["dense"].metrics["nDCG@10"], abs=1e-6)
    assert 0 < measured < 1
    assert judge.name == f"12 queries of {name} (test) among 60 documents"


def test_its_fingerprint_is_the_datasets_and_no_collection_is_refused(collection):
    assert DatasetProbe(collection / "toy").fingerprint == load_dataset(collection / "toy").fingerprint
    with pytest.raises(InputError, match="no such folder; expected a BEIR folder"):
        DatasetProbe(collection / "nothing")
