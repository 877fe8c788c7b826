"""DupMAE's two halves: their sum is the paper's score, and each loads as what it says it is."""

import json
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForMaskedLM

from indexes.errors import InputError
from pretraining import pretrain
from pretraining.base import load_base
from pretraining.hybrid import Words, export_hybrid, heaviest_words, hybrid_scores, reduction
from pretraining.masking import MaskOptions
from pretraining.objective import Objective
from retrieval import Encoder, Retriever
from retrieval.building import build_index
from retrieval.documents import read_documents
from retrieval.sparse import SparseEncoder

TEXTS = ["river walking stones", "green paper music of water", "stone houses at night", "train paper music river night"]


@pytest.fixture(scope="module")
def dupmae(base, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dupmae") / "model"
    pretrain(
        corpus, folder, base=str(base), objective="dupmae", max_steps=6, batch_size=8, max_length=24, learning_rate=1e-2
    )
    return folder


@pytest.fixture(scope="module")
def halves(dupmae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid") / "halves"
    export_hybrid(dupmae, folder, TEXTS * 4, dim=8)
    return folder


def test_the_score_is_the_papers():
    torch.manual_seed(0)
    vectors = [torch.randn(3, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)]
    weights = [torch.randn(3, 30, dtype=torch.float64), torch.randn(4, 30, dtype=torch.float64)]
    special = torch.zeros(30, dtype=torch.bool)
    special[:6] = True
    kept = heaviest_words(weights[1], 7, special)
    found = hybrid_scores(vectors[0], weights[0], vectors[1], kept)
    for query in range(3):
        for document in range(4):
            words = sorted(range(6, 30), key=lambda word: -weights[1][document, word])[:7]
            expected = sum(vectors[0][query] * vectors[1][document])
            expected += sum(weights[0][query, word] * weights[1][document, word] for word in words)
            assert found[query, document].item() == pytest.approx(expected.item())
    assert heaviest_words(weights[0], 99, special).ids.shape == (3, 24)
    assert isinstance(kept, Words)


def test_the_map_keeps_inner_products_best():
    torch.manual_seed(0)
    vectors = torch.randn(200, 12) @ torch.diag(torch.linspace(2, 0.1, 12))
    exact = vectors @ vectors.T

    def error(each):
        return float((vectors @ each.T @ each @ vectors.T - exact).square().sum())

    mine = reduction(vectors, 6)
    torch.testing.assert_close(mine @ mine.T, torch.eye(6), rtol=0, atol=1e-5)
    for seed in range(20):
        torch.manual_seed(seed)
        other, _ = torch.linalg.qr(torch.randn(12, 6))
        assert error(mine) < error(other.T)
    assert error(mine) <= error(torch.eye(12)[:6])
    assert error(reduction(vectors, 12)) == pytest.approx(0, abs=1e-3)


def test_the_halves_are_what_the_model_computes(dupmae, halves, tokenizer):
    model = load_base(str(dupmae), Objective.parse("mlm"), MaskOptions(), pooling=None, seed=0).model.eval()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model.parts.run(batch["input_ids"], batch["attention_mask"])[0]
        logits = model.head.transform(hidden) @ model.parts.words.T + model.head.bias
        logits = logits.masked_fill(~batch["attention_mask"].bool()[..., None], -torch.inf)
        expected = torch.log1p(logits.amax(1).clamp(min=0))  # (b, v)
    whole = SentenceTransformer(str(halves / "dense"), device="cpu")
    (projection,) = [module.linear.weight for module in whole if hasattr(module, "linear")]
    reduced = hidden[:, 0] @ projection.detach().T
    assert reduced.shape == (4, 8)
    np.testing.assert_allclose(
        Encoder.load(str(halves / "dense"), device="cpu").encode_documents(TEXTS), reduced, atol=1e-5
    )
    pieces = tokenizer.get_vocab()
    for weights, line in zip(
        SparseEncoder.load(str(halves / "sparse"), device="cpu").encode_documents(TEXTS), expected, strict=True
    ):
        found = torch.zeros(len(line))
        for piece, weight in weights.items():
            found[pieces[piece]] = weight
        torch.testing.assert_close(found, line, rtol=1e-4, atol=1e-5)


def test_an_index_over_both_scores_by_their_sum(halves, corpus, tmp_path):
    encoder = Encoder.load(str(halves / "dense"), device="cpu")
    sparse = SparseEncoder.load(str(halves / "sparse"), device="cpu")
    documents = [document for document in read_documents(corpus) if document.content]
    store = encoder.encode_corpus(documents, tmp_path / "vectors")
    terms = sparse.encode_corpus(documents, tmp_path / "terms")
    build_index(store, tmp_path / "index", documents=documents, terms=terms)
    retriever = Retriever.open(tmp_path / "index", encoder, sparse=sparse, fusion="sum")
    query = "paper river"
    best = retriever.search(query, k=3)[0]
    dense = encoder.encode_queries([query]) @ encoder.encode_documents([one.content for one in documents]).T
    (asked,), have = sparse.encode_queries([query]), sparse.encode_documents([one.content for one in documents])
    scores = {
        one.id: float(dense[0, row]) + sum(weight * asked.get(term, 0.0) for term, weight in have[row].items())
        for row, one in enumerate(documents)
    }
    assert best.score == pytest.approx(max(scores.values()), rel=1e-4)
    assert best.id == max(scores, key=scores.__getitem__)


def test_few_words_keep_a_weight(dupmae, tmp_path):
    export_hybrid(dupmae, tmp_path / "halves", [], dim=16, words=3)
    sparse = SparseEncoder.load(str(tmp_path / "halves" / "sparse"), device="cpu")
    assert {len(weights) for weights in sparse.encode_documents(TEXTS)} == {3}
    assert Encoder.load(str(tmp_path / "halves" / "dense"), device="cpu").encode_documents(TEXTS).shape == (4, 16)
    assert json.loads((tmp_path / "halves" / "retrokit.json").read_text())["words"] == 3
    AutoModelForMaskedLM.from_pretrained(tmp_path / "halves" / "sparse")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dim": 17}, "dim is 17; expected 1 to 16"),
        ({"dim": 0}, "dim is 0; expected 1 to 16"),
        ({"dim": 8, "words": 0}, "words is 0; expected at least 1"),
        ({"dim": 8, "texts": TEXTS}, "4 texts are given; a map to 8 numbers needs as many"),
    ],
)
def test_what_cannot_be_is_refused(dupmae, tmp_path, given, message):
    with pytest.raises(InputError, match=message):
        export_hybrid(dupmae, tmp_path / "halves", given.pop("texts", TEXTS * 9), **given)
    assert not (tmp_path / "halves").exists()


def test_a_model_without_a_vocabulary_head_has_no_words(base, corpus, tmp_path, dupmae):
    shutil.copytree(dupmae, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "heads")
    with pytest.raises(InputError, match="has no vocabulary head; take a folder that pretrain made"):
        export_hybrid(tmp_path / "bare", tmp_path / "halves", TEXTS, dim=16)
