"""Low-rank adapters that learn in the place of a model's weights, and are merged into them in the end."""

import warnings
from collections.abc import Callable
from typing import Any

import torch

from indexes.errors import InputError


def add_adapters(encoder: Any, rank: int, *, seed: int, classifier: bool) -> Callable[[], None]:
    """Put low-rank adapters (LoRA) beside all linear layers of a model; gives what merges them into the weights.

    They start as zeros, so that the model computes what it did. The last layer of a classifier learns whole.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685), eq. 3, with alpha = 2 r.

    Args:
        encoder: Any model of sentence-transformers.
        rank: r.
        seed: Of the half that does not start as zeros.
        classifier: Whether it is a classifier.

    Raises:
        InputError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError:
        raise InputError("lora needs peft, which is not installed: pip install 'retrokit[lora]'") from None
    task = "SEQ_CLS" if classifier else None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type=task)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of an old name in transformers that peft uses
        torch.manual_seed(seed)
        adapted = get_peft_model(encoder.transformers_model, config)  # it changes the model that it is given
    return adapted.merge_and_unload
