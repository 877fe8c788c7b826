"""Objectives: weights, invariance to padding, use of the sentence vector, sharing the encoder."""

import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from indexes.errors import InputError
from pretraining.heads import VocabularyHead
from pretraining.masking import MaskedBatch, MaskOptions, seeded
from pretraining.objective import Objective, PretrainingModel
from pretraining.terms.bag_of_words import bag_of_words
from pretraining.terms.retromae import decoder_mlm

CPU = torch.device("cpu")


def sampled(model, batch, seed=0):
    return model.sample(*batch, generator=seeded(CPU, seed))


def test_the_total_is_the_weighted_sum_of_the_terms(make_model, batch):
    model = make_model({"encoder_mlm": 0.5, "bag_of_words": 2.0})
    losses = model.loss(*batch, generator=seeded(CPU, 1))
    assert set(losses) == {"total", "encoder_mlm", "bag_of_words"}
    assert losses["total"].item() == pytest.approx((0.5 * losses["encoder_mlm"] + 2 * losses["bag_of_words"]).item())
    assert model.decoder is None
    assert model.untrained_heads == ["head"]


@pytest.mark.parametrize("objective", ["retromae", "dupmae", Objective({"bag_of_words": 1.0}, bag_variant="paper")])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_losses_do_not_depend_on_padding(make_model, batch, objective, pooling):
    model = make_model(objective, pooling=pooling).eval()
    masked = sampled(model, batch)
    wider = MaskedBatch(
        *(functional.pad(each, (0, 3)) for each in (masked.ids, masked.attention_mask, masked.masked_ids)),
        functional.pad(masked.labels, (0, 3), value=-100),
        functional.pad(masked.rows, (0, 2)),
        functional.pad(masked.real, (0, 2)),
        functional.pad(functional.pad(masked.visible, (0, 3)), (0, 0, 0, 2), value=True),
    )
    narrow, wide = model(masked), model(wider)
    for name, value in narrow.items():
        assert value.item() == pytest.approx(wide[name].item(), abs=1e-5), name


def test_lean_terms_equal_dense_logits_over_all_positions(make_model, batch):
    model = make_model("retromae").eval()
    masked = sampled(model, batch)
    view, words = model.view(masked), model.backbone.embeddings.word_embeddings.weight
    dense = functional.cross_entropy(model.head(view.hidden, words).flatten(0, 1), masked.labels.flatten())
    assert model(masked)["encoder_mlm"].item() == pytest.approx(dense.item(), abs=1e-6)


def test_a_fraction_of_the_rows_gives_those_rows_losses(make_model, batch):
    """Rows are independent: two halves average to the whole."""
    model = make_model("dupmae").eval()
    whole = sampled(model, batch)
    view = model.view(whole)
    parts = []
    for half in (slice(0, 3), slice(3, None)):
        part = MaskedBatch(
            whole.ids, whole.attention_mask, whole.masked_ids, whole.labels,
            whole.rows[:, half], whole.real[:, half], whole.visible[:, half],
        )  # fmt: skip
        loss = decoder_mlm(
            type(view)(part, view.hidden, view.vector), model.decoder, model.backbone.embeddings, model.head, "embedded"
        )
        parts.append((loss * part.real.sum()).item())
    assert sum(parts) / whole.real.sum().item() == pytest.approx(model(whole)["decoder_mlm"].item(), abs=1e-5)


@pytest.mark.parametrize("objective", ["retromae", "dupmae"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_decoder_learns_to_use_the_sentence_vector(make_model, batch, objective, pooling):
    weights = Objective.parse(objective)
    model = make_model(
        Objective({"decoder_mlm": 1.0}, weights.decoder_query), pooling=pooling, masks=MaskOptions(decoder_ratio=0.9)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(60):
        loss = model.loss(*batch, generator=seeded(CPU, step))["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    masked = sampled(model, batch, seed=99)
    view = model.view(masked)
    shuffled = type(view)(masked, view.hidden, view.vector.roll(1, 0))
    parts = (model.decoder, model.backbone.embeddings, model.head, weights.decoder_query)
    assert decoder_mlm(shuffled, *parts) > 1.3 * decoder_mlm(view, *parts)


def test_gradient_reaches_encoder_head_and_decoder(make_model, batch):
    model = make_model("dupmae")
    model.loss(*batch, generator=seeded(CPU, 0))["total"].backward()
    without = [
        name for name, value in model.named_parameters() if value.grad is None or not value.grad.isfinite().all()
    ]
    assert without == []


def test_the_papers_bag_of_words_leaves_masked_tokens_out_and_counts_each_word_once(make_model, batch):
    model = make_model(Objective({"bag_of_words": 1.0}, bag_variant="paper")).eval()
    masked = sampled(model, batch)
    view, words = model.view(masked), model.backbone.embeddings.word_embeddings.weight
    expected = []
    for text in range(len(masked.ids)):
        end = int(masked.attention_mask[text].sum()) - 1
        keep = [place for place in range(1, end) if masked.labels[text, place] == -100] or [0]
        logits = (view.hidden[text, keep] @ words.T).amax(0).log_softmax(0)
        expected.append(-logits[masked.ids[text, 1:end].unique()].sum())
    assert model(masked)["bag_of_words"].item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    assert bag_of_words(view, model.head, words, "code") != bag_of_words(view, model.head, words, "paper")


def test_a_shared_backbone_is_trained_and_keeps_its_identity(make_model, tokenizer, batch):
    backbone = make_model().backbone
    model = PretrainingModel(backbone, tokenizer, "dupmae", masks=MaskOptions(row_fraction=0.5))
    assert model.backbone is backbone
    starts = torch.ones_like(batch[0], dtype=torch.bool)
    model.loss(*batch, starts, generator=seeded(CPU, 0, 0, 0, 0))["total"].backward()
    assert backbone.embeddings.word_embeddings.weight.grad.norm() > 0
    addresses = [value.data_ptr() for value in model.state_dict().values()]
    assert len(addresses) == len(set(addresses))  # nothing is stored twice


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
    assert torch.equal(sampled(model, batch).masked_ids, sampled(model, batch).masked_ids)


def test_a_model_of_another_kind_is_refused(tokenizer):
    config = RobertaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=200
    )
    with pytest.raises(InputError, match="a roberta model; pretraining supports bert"):
        PretrainingModel(RobertaModel(config), tokenizer)


def test_a_tokenizer_that_does_not_belong_is_refused(make_model, tokenizer):
    config = make_model().backbone.config.to_dict() | {"vocab_size": 20}
    small = BertModel(BertConfig(**config))
    with pytest.raises(InputError, match="expected a tokenizer that belongs to the model"):
        PretrainingModel(small, tokenizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": {}}, "objective has no term"),
        ({"weights": {"encoder_mlm": 0.0}}, "weight of encoder_mlm is 0.0; expected a number above 0"),
        ({"weights": {"encoder_mlm": 1.0}, "decoder_query": "x"}, "decoder_query is 'x'; expected raw or embedded"),
        ({"weights": {"bag_of_words": 1.0}, "bag_variant": "x"}, "bag_variant is 'x'; expected code or paper"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Objective(**arguments)


def test_the_head_is_the_masked_language_models(make_model):
    model = make_model()
    assert isinstance(model.head, VocabularyHead)
    rows = torch.randn(4, 16)
    words = model.backbone.embeddings.word_embeddings.weight
    torch.testing.assert_close(model.head(rows, words), model.head.transform(rows) @ words.T + model.head.bias)
