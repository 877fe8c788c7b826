"""Every term and gradient equals the authors' own code, number for number."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM

from pretraining.masking import MaskedBatch
from pretraining.objective import PretrainingModel
from pretraining.terms.bag_of_words import pooled_logits, word_set


class NumberTokenizer:
    """Only what the model asks of a tokenizer: 211 ids without continuation pieces."""

    mask_token_id = 3

    def get_vocab(self):
        return {str(number): number for number in range(211)}


def load(folder, name):
    expected = json.loads((folder / "expected.json").read_text())
    config = BertConfig(**expected["config"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    weights = load_file(folder / f"{name}.weights.safetensors")
    lm = BertForMaskedLM(config)
    lm.load_state_dict({key[3:]: value for key, value in weights.items() if key.startswith("lm.")})
    model = PretrainingModel(lm.bert, NumberTokenizer(), name)
    head = {key[19:]: value for key, value in weights.items() if key.startswith("lm.cls.predictions.")}
    model.head.load_state_dict({key: value for key, value in head.items() if not key.startswith("decoder.")})
    model.decoder.load_state_dict({key[7:]: value for key, value in weights.items() if key.startswith("c_head.")})
    data = load_file(folder / f"{name}.batch.safetensors")
    batch = MaskedBatch.explicit(
        data["decoder_input_ids"], data["encoder_attention_mask"], data["encoder_input_ids"], data["encoder_labels"],
        data["decoder_labels"], data["decoder_attention_mask"],
    )  # fmt: skip
    return model.eval(), batch, data, expected[name]


@pytest.mark.parametrize("name", ["retromae", "dupmae"])
def test_terms_and_gradients_equal_the_authors_code(golden_folder, name):
    model, batch, data, expected = load(golden_folder, name)
    view = model.view(batch)
    torch.testing.assert_close(view.vector, data["expected.cls"], atol=1e-5, rtol=0)
    losses = model(batch)
    for term, value in losses.items():
        assert value.item() == pytest.approx(expected[term], abs=1e-5), term
    losses["total"].backward()
    parameters = dict(model.named_parameters())
    names = (("lm.bert.", "backbone."), ("c_head.", "decoder."), ("lm.cls.predictions.", "head."))
    for theirs, norm in expected["gradient_norms"].items():
        ours = next(new + theirs.removeprefix(old) for old, new in names if theirs.startswith(old))
        assert parameters[ours].grad.norm().item() == pytest.approx(norm, rel=1e-4), theirs


def test_bag_of_words_target_and_logits_equal_the_authors_code(golden_folder):
    model, batch, data, _ = load(golden_folder, "dupmae")
    words = model.backbone.embeddings.word_embeddings.weight
    logits = pooled_logits(model.view(batch), model.head, words, "code")
    torch.testing.assert_close(logits, data["expected.ot"], atol=1e-5, rtol=0)
    content = data["decoder_labels"] != -100
    target = word_set(batch.ids, content, 211) / content.sum(1, keepdim=True)
    torch.testing.assert_close(target, data["bag_word_weight"])
