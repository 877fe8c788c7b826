"""The model under an objective: invariance to padding, use of the sentence vector, sharing the encoder."""

import dataclasses

import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

from indexes.errors import InputError
from pretraining.heads import VocabularyHead
from pretraining.masking import IGNORED, Batch, Masks, seeded
from pretraining.model import Drawn, PretrainingModel
from pretraining.objective import Objective
from pretraining.terms.retromae import DecoderRows

CPU = torch.device("cpu")


def sampled(model, batch, seed=0):
    return model.sample(*batch, generator=seeded(CPU, seed))


def wider(drawn, more=3):
    """The same with more padding."""

    def pad(ids, value=0):
        return functional.pad(ids, (0, more), value=value)

    def masks(one):
        return Masks(pad(one.masked_ids), pad(one.labels, IGNORED))

    terms = {}
    for name, one in drawn.terms.items():
        terms[name] = masks(one) if isinstance(one, Masks) else one
        if isinstance(one, DecoderRows):
            visible = functional.pad(functional.pad(one.visible, (0, more)), (0, 0, 0, 2), value=True)
            terms[name] = DecoderRows(functional.pad(one.rows, (0, 2)), functional.pad(one.real, (0, 2)), visible)
    batch = Batch(pad(drawn.batch.ids), pad(drawn.batch.attention_mask), pad(drawn.batch.words, -1))
    return Drawn(batch, masks(drawn.masks), terms)


def test_the_total_is_the_weighted_sum_of_the_terms(make_model, batch):
    model = make_model({"encoder_mlm": 0.5, "bag_of_words": 2.0})
    losses = model.loss(*batch, generator=seeded(CPU, 1))
    assert set(losses) == {"total", "encoder_mlm", "bag_of_words"}
    assert losses["total"].item() == pytest.approx((0.5 * losses["encoder_mlm"] + 2 * losses["bag_of_words"]).item())
    assert model.untrained_heads == ["head"]
    assert make_model({"span_contrast": 1.0}).untrained_heads == []
    assert make_model({"decoder_mlm": 1.0}).untrained_heads == ["head", "decoder_mlm"]


@pytest.mark.parametrize(
    "objective",
    ["retromae", "dupmae", "dupmae-paper", "bowdpr", "cocondenser", "cotmae", "lexmae", {"dropout_contrast": 1.0}],
)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_losses_do_not_depend_on_padding(make_model, batch, objective, pooling):
    model = make_model(objective, pooling=pooling).eval()
    ids, mask = (torch.cat((each, each[:1])) for each in batch)  # two pairs
    drawn = sampled(model, (ids, mask))
    narrow, wide = model(drawn), model(wider(drawn))
    for name, value in narrow.items():
        assert value.item() == pytest.approx(wide[name].item(), abs=1e-5), name


def test_lean_terms_equal_dense_logits_over_all_positions(make_model, batch):
    model = make_model("retromae").eval()
    drawn = sampled(model, batch)
    view, words = model.view(drawn), model.backbone.embeddings.word_embeddings.weight
    dense = functional.cross_entropy(model.head(view.hidden, words).flatten(0, 1), drawn.masks.labels.flatten())
    assert model(drawn)["encoder_mlm"].item() == pytest.approx(dense.item(), abs=1e-6)


def test_a_fraction_of_the_rows_gives_those_rows_losses(make_model, batch):
    """Rows are independent: two halves average to the whole."""
    model = make_model("dupmae").eval()
    drawn = sampled(model, batch)
    whole, parts = drawn.terms["decoder_mlm"], []
    for half in (slice(0, 3), slice(3, None)):
        part = DecoderRows(whole.rows[:, half], whole.real[:, half], whole.visible[:, half])
        parts.append((model.terms["decoder_mlm"](model.view(drawn), part) * part.real.sum()).item())
    assert sum(parts) / whole.real.sum().item() == pytest.approx(model(drawn)["decoder_mlm"].item(), abs=1e-5)


@pytest.mark.parametrize("query", ["raw", "embedded"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_decoder_learns_to_use_the_sentence_vector(make_model, batch, query, pooling):
    model = make_model({"decoder_mlm": {"query": query, "ratio": 0.9}}, pooling=pooling)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(60):
        loss = model.loss(*batch, generator=seeded(CPU, step))["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = sampled(model, batch, seed=99)
    view, shuffled = model.view(drawn), model.view(drawn)
    shuffled.vector = view.vector.roll(1, 0)
    term, rows = model.terms["decoder_mlm"], drawn.terms["decoder_mlm"]
    assert term(shuffled, rows) > 1.3 * term(view, rows)


@pytest.mark.parametrize("objective", ["dupmae", "cocondenser", "cotmae", "lexmae", "bowdpr"])
def test_gradient_reaches_encoder_and_all_heads(make_model, batch, objective):
    model = make_model(objective)
    ids, mask = (torch.cat((each, each[:1])) for each in batch)
    model.loss(ids, mask, generator=seeded(CPU, 0))["total"].backward()
    without = [
        name for name, value in model.named_parameters() if value.grad is None or not value.grad.isfinite().all()
    ]
    assert without == []


def test_word_starts_default_to_the_vocabularys_continuations(make_model, tokenizer):
    model = make_model()
    encoded = tokenizer("river walking", return_tensors="pt")
    starts = ~model.continued[encoded["input_ids"]]
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"][0]) == ["[CLS]", "river", "walk", "##ing", "[SEP]"]
    assert starts.tolist() == [[True, True, True, False, True]]


def test_masks_stay_the_same_when_dropout_is_on(make_model, batch):
    model = make_model(hidden_dropout_prob=0.5)
    one, other = (model.loss(*batch, generator=seeded(CPU, 0))["total"] for _ in range(2))
    assert one != other
    assert torch.equal(sampled(model, batch).masks.masked_ids, sampled(model, batch).masks.masked_ids)


def test_a_model_of_another_kind_is_refused(tokenizer):
    config = T5Config(d_model=16, num_layers=1, num_heads=2, d_ff=32, d_kv=8, vocab_size=200)
    with pytest.raises(InputError, match="a t5 model; pretraining supports bert, roberta, xlm-roberta"):
        PretrainingModel(T5EncoderModel(config), tokenizer)


def test_a_tokenizer_that_does_not_belong_is_refused(make_model, tokenizer):
    config = make_model().backbone.config.to_dict() | {"vocab_size": 20}
    small = BertModel(BertConfig(**config))
    with pytest.raises(InputError, match="expected a tokenizer that belongs to the model"):
        PretrainingModel(small, tokenizer)


def test_an_objective_is_its_terms(make_model):
    made = Objective.parse("dupmae")
    assert list(made.terms) == ["encoder_mlm", "decoder_mlm", "bag_of_words"]
    assert dataclasses.replace(made) == made
    assert made.with_option("decoder_mlm", "ratio", 0.7).record()["decoder_mlm"]["ratio"] == 0.7
    assert make_model(made).terms["decoder_mlm"].query == "embedded"


def test_the_head_is_the_masked_language_models(make_model):
    model = make_model()
    assert isinstance(model.head, VocabularyHead)
    rows = torch.randn(4, 16)
    words = model.backbone.embeddings.word_embeddings.weight
    torch.testing.assert_close(model.head(rows, words), model.head.transform(rows) @ words.T + model.head.bias)
