"""Fine-tuning of cross-encoders and of SPLADE models: they learn, go on after a kill, and load elsewhere."""

import json

import numpy as np
import pytest
import torch
from fixtures import make_cross_encoder, make_sparse
from kills import Killed, assert_same_weights, kill_at
from labelled import ANSWERED, ASKED, make_examples, make_pairs

from indexes.errors import InputError
from retrieval.encoder import Encoder
from retrieval.finetune_options import FinetuneConfig
from retrieval.finetune_run import load_model
from retrieval.finetuning import finetune
from retrieval.reranker import Reranker
from retrieval.sparse import SparseEncoder

OPTIONS = dict(steps=4, batch_size=8, checks=2, held_out=12, max_length=24, learning_rate=3e-3)
PAIRS = [(one, f"{other} {other}") for one in ASKED[:3] for other in ANSWERED[:3]]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return make_cross_encoder(tmp_path_factory.mktemp("models") / "classifier")


@pytest.fixture(scope="module")
def splade(tmp_path_factory):
    return make_sparse(tmp_path_factory.mktemp("models") / "splade")


def run(output, encoder, kind="cross-encoder", examples=None, **changes):
    given = {**OPTIONS, **changes}
    return finetune(examples or make_examples(scores=True), output, encoder=str(encoder), kind=kind, **given)


@pytest.mark.parametrize("loss", ["binary", "margin-mse"])
def test_a_cross_encoder_learns_and_loads_as_a_reranker(tmp_path, classifier, loss):
    from sentence_transformers import CrossEncoder

    result = run(tmp_path / "out", classifier, loss=loss, steps=24)
    checks = result.card["checks"]
    assert checks[str(result.card["chosen"])] > checks["0"]
    reranker = Reranker.load(str(tmp_path / "out"))
    theirs = CrossEncoder(str(tmp_path / "out"), device="cpu").predict(PAIRS)
    np.testing.assert_allclose(reranker.scores(PAIRS), theirs, atol=1e-5)
    assert reranker.fields["max_length"] == Reranker.load(str(classifier)).fields["max_length"]
    assert reranker.fingerprint != Reranker.load(str(classifier)).fingerprint


@pytest.mark.slow  # 5 seconds, as the next ones so marked
def test_a_killed_cross_encoder_ends_like_one_left_alone(tmp_path, classifier):
    more = {"loss": "infonce=1,binary=0.5", "focal": 0.5, "false_negative_margin": 1.0, "mini_batch": 4}
    run(tmp_path / "alone", classifier, **more)
    with pytest.raises(Killed):
        run(tmp_path / "killed", classifier, on_progress=kill_at(3), **more)
    run(tmp_path / "killed", classifier, **more)
    assert_same_weights(tmp_path / "alone", tmp_path / "killed")


@pytest.mark.slow  # 6 seconds each
@pytest.mark.parametrize("lora", [None, 2])
def test_an_encoder_becomes_a_cross_encoder(tmp_path, model_folder, lora):
    """Its new last layer is the same again, learns with adapters too, and comes out merged."""
    for name in ("one", "two"):
        run(tmp_path / name, model_folder, loss="infonce", lora=lora, steps=2)
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    scores = Reranker.load(str(tmp_path / "one"), activation="identity").scores(PAIRS)
    assert len(set(scores.tolist())) > 1
    start = run(tmp_path / "start", model_folder, loss="infonce", steps=2, lora=lora, learning_rate=1e-9)
    assert start.card["checks"]["0"] == start.card["checks"]["2"]


def test_scores_of_pairs_by_a_cross_encoder(tmp_path, classifier):
    result = run(tmp_path / "out", classifier, examples=make_pairs(), loss="regression", steps=16)
    assert result.card["measure"] == "Spearman"


def test_checks_have_full_precision_whatever_trainer_made_of_forward(tmp_path, classifier):
    config = FinetuneConfig(encoder=str(classifier), kind="cross-encoder", loss="binary")
    model, _ = load_model(config, 1)
    pairs = [(f"{ASKED[row % 8]} {row}", ANSWERED[row % 8]) for row in range(40)]
    before = model.score(pairs)
    inner = model.forward
    model.forward = lambda inputs: {"scores": inner(inputs)["scores"].to(torch.bfloat16)}  # as mixed precision does
    assert torch.equal(model.score(pairs), before)
    assert before.dtype == torch.float32


def test_scores_that_are_learned_are_saved_without_an_activation(tmp_path, classifier):
    examples = [
        one._replace(positives=(one.positives[0]._replace(score=one.positives[0].score / 5),)) for one in make_pairs()
    ]
    run(tmp_path / "out", classifier, examples=examples, loss="regression")
    assert Reranker.load(str(tmp_path / "out")).fields["activation"] == "identity"


def test_splade_learns_and_loads_as_a_sparse_encoder(tmp_path, splade):
    from sentence_transformers import SparseEncoder as Theirs

    result = run(tmp_path / "out", splade, "sparse", steps=12, learning_rate=1e-3, flops_steps=4)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert all(line["total"] == pytest.approx(line["infonce"] + line["flops"], rel=1e-5) for line in lines)
    assert result.card["measure"] == "nDCG@10"
    ours, theirs = SparseEncoder.load(str(tmp_path / "out")), Theirs(str(tmp_path / "out"), device="cpu")
    found = ours.encode_documents(ANSWERED[:2])
    weights = theirs.encode_document(ANSWERED[:2]).to_dense()
    assert [len(one) for one in found] == [int((row > 0).sum()) for row in weights]


@pytest.mark.slow
def test_flops_make_texts_sparser(tmp_path, splade):
    """Under a heavy regularisation, queries and documents keep less weight, each by its own."""
    sums = {}
    for name, weights in (("queries", (30.0, 0.0)), ("documents", (0.0, 30.0))):
        more = {"query_flops": weights[0], "document_flops": weights[1], "flops_steps": 1, "checks": 1}
        run(tmp_path / name, splade, "sparse", steps=3, learning_rate=3e-4, warmup_steps=0, **more)
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        sums[name] = json.loads(lines[0])["flops"], json.loads(lines[-1])["flops"]
    assert sums["queries"][1] < sums["queries"][0]
    assert sums["documents"][1] < sums["documents"][0]


@pytest.mark.slow
def test_a_killed_splade_ends_like_one_left_alone(tmp_path, splade):
    base = splade.parent / f"{splade.name}-mlm"  # a masked-language model as it is
    more = {"loss": "kl=1,infonce=0.1", "mix": 1, "mini_batch": 4, "lora": 2}
    run(tmp_path / "alone", base, "sparse", **more)
    with pytest.raises(Killed):
        run(tmp_path / "killed", base, "sparse", on_progress=kill_at(3), **more)
    run(tmp_path / "killed", base, "sparse", **more)
    assert_same_weights(tmp_path / "alone", tmp_path / "killed")


def test_models_of_another_kind_are_refused(tmp_path, model_folder):
    with pytest.raises(InputError, match="needs a SPLADE folder or a masked-language model|cannot be loaded|lacks"):
        run(tmp_path / "out", model_folder, "sparse")
    labels = make_cross_encoder(tmp_path / "three", labels=3)
    with pytest.raises(InputError, match="is a classifier of 3 labels; expected one of 1"):
        run(tmp_path / "out", labels)
    bare = [one._replace(negatives=()) for one in make_examples()]
    with pytest.raises(InputError, match="binary of kind cross-encoder needs some: retrokit mine"):
        run(tmp_path / "out", labels, examples=bare, loss="binary")
    with pytest.raises(InputError, match="loss 'opl' is none of kind cross-encoder"):
        run(tmp_path / "out", labels, loss="opl")
    assert not (tmp_path / "out").exists()


def test_a_decoder_learns_by_adapters_with_attention_both_ways(tmp_path, model_folder):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=2, pad_token_id=0, **sizes)
    Qwen3Model(config).save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    more = {"pooling": "mean", "attention": "bidirectional", "lora": 4, "learning_rate": 1e-2, "mini_batch": 4}
    run(tmp_path / "out", tmp_path / "decoder", "dense", loss="infonce", steps=6, **more)
    found = Encoder.load(str(tmp_path / "out"))
    assert (found.fields["attention"], found.fields["pooling"]) == ("bidirectional", "mean")
    plain = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(found.encode_queries(ASKED), plain.encode(ASKED), atol=1e-5)
