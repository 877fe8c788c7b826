"""The cross-encoder that PROP trains, as a classifier of pairs that sentence-transformers' CrossEncoder loads."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from pretraining.terms.word_order import WordSetOrder
from retrieval.loading import quiet

FOLDER = "cross-encoder"


def classifier(backbone: Any, term: WordSetOrder) -> Any:
    """A classifier of pairs with one score: that of a term over an encoder.

    BERT's classifiers put the pooler before it, RoBERTa's kin a layer of their own; both are a linear map and tanh.
    """
    config = type(backbone.config)(**{**backbone.config.to_dict(), "num_labels": 1})
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForSequenceClassification.from_config(config)
    own = model.base_model.state_dict()
    model.base_model.load_state_dict(
        {name: value for name, value in backbone.state_dict().items() if name in own}, strict=False
    )
    bert = config.model_type == "bert"
    first, last = (
        (model.base_model.pooler.dense, model.classifier)
        if bert
        else (model.classifier.dense, model.classifier.out_proj)
    )
    first.load_state_dict(term.dense.state_dict())
    last.load_state_dict(term.score.state_dict())
    return model.eval()


def save_cross_encoder(folder: Path, backbone: Any, tokenizer: Any, term: WordSetOrder) -> None:
    """Write the classifier with its tokenizer."""
    with quiet():
        classifier(backbone, term).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
