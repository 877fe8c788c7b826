"""Every term and gradient equals the authors' own code, number for number."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM

from pretraining.masking import Batch, Masks, content_positions, word_numbers
from pretraining.model import Drawn, PretrainingModel
from pretraining.terms.bag_of_words import word_set
from pretraining.terms.retromae import DecoderRows
from pretraining.terms.spans import span_contrast

OURS = {"late_mlm": "encoder_mlm", "head_mlm": "condenser_mlm"}


class NumberTokenizer:
    """Only what the model asks of a tokenizer: 211 ids without continuation pieces."""

    mask_token_id = 3

    def get_vocab(self):
        return {str(number): number for number in range(211)}


def load(folder, name, objective):
    expected = json.loads((folder / "expected.json").read_text())
    sizes = expected["condenser_config" if name == "condenser" else "config"]
    config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    weights = load_file(folder / f"{name}.weights.safetensors")
    lm = BertForMaskedLM(config)
    lm.load_state_dict({key[3:]: value for key, value in weights.items() if key.startswith("lm.")})
    model = PretrainingModel(lm.bert, NumberTokenizer(), objective)
    head = {key[19:]: value for key, value in weights.items() if key.startswith("lm.cls.predictions.")}
    model.head.load_state_dict({key: value for key, value in head.items() if not key.startswith("decoder.")})
    decoder = next(term.decoder for term in model.terms.values() if hasattr(term, "decoder"))
    decoder.load_state_dict({key[7:]: value for key, value in weights.items() if key.startswith("c_head.")})
    return model.eval(), load_file(folder / f"{name}.batch.safetensors"), expected[name]


def texts(ids, attention):
    starts = torch.ones_like(ids, dtype=torch.bool)
    return Batch(ids, attention, word_numbers(starts, content_positions(attention)))


def drawn(data):
    batch = texts(data["decoder_input_ids"], data["encoder_attention_mask"])
    rows = DecoderRows.explicit(data["decoder_labels"], data["decoder_attention_mask"])
    masks = Masks(data["encoder_input_ids"], data["encoder_labels"])
    return Drawn(batch, masks, {"encoder_mlm": None, "decoder_mlm": rows, "bag_of_words": None})


def check(model, given, expected, decoder):
    losses = model(given)
    for term, value in losses.items():
        theirs = term if term in expected else next(name for name, ours in OURS.items() if ours == term)
        assert value.item() == pytest.approx(expected[theirs], abs=1e-5), term
    losses["total"].backward()
    parameters = dict(model.named_parameters())
    names = (("lm.bert.", "backbone."), ("c_head.", f"terms.{decoder}.decoder."), ("lm.cls.predictions.", "head."))
    for theirs, norm in expected["gradient_norms"].items():
        ours = next(new + theirs.removeprefix(old) for old, new in names if theirs.startswith(old))
        assert parameters[ours].grad.norm().item() == pytest.approx(norm, rel=1e-4), theirs


@pytest.mark.parametrize("name", ["retromae", "dupmae"])
def test_terms_and_gradients_equal_the_authors_code(golden_folder, name):
    model, data, expected = load(golden_folder, name, name)
    given = drawn(data)
    torch.testing.assert_close(model.view(given).vector, data["expected.cls"], atol=1e-5, rtol=0)
    check(model, given, expected, "decoder_mlm")


def test_bag_of_words_target_and_logits_equal_the_authors_code(golden_folder):
    model, data, _ = load(golden_folder, "dupmae", "dupmae")
    view = model.view(drawn(data))
    logits = model.terms["bag_of_words"].logits(view)
    torch.testing.assert_close(logits, data["expected.ot"], atol=1e-5, rtol=0)
    content = data["decoder_labels"] != -100
    target = word_set(view.batch.ids, content, 211) / content.sum(1, keepdim=True)
    torch.testing.assert_close(target, data["bag_word_weight"])


def test_condenser_equals_the_authors_code(golden_folder):
    options = {"encoder_mlm": 1.0, "condenser_mlm": {"layers": 2, "skip_from": 2}}
    model, data, expected = load(golden_folder, "condenser", options)
    attention, seen, labels = data["attention_mask"], data["input_ids"], data["labels"]
    clean = torch.where(labels == -100, seen, labels)
    given = Drawn(texts(clean, attention), Masks(seen, labels), {"encoder_mlm": None, "condenser_mlm": None})
    check(model, given, expected, "condenser_mlm")


def test_span_contrast_equals_the_authors_code(golden_folder):
    (vectors,) = load_file(golden_folder / "cocondenser.batch.safetensors").values()
    expected = json.loads((golden_folder / "expected.json").read_text())["cocondenser_span_loss"]["loss"]
    assert span_contrast(vectors).item() == pytest.approx(expected, abs=1e-5)
