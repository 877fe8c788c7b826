"""DropHead: whole attention heads left out while training (Zhou et al. 2020, arXiv 2004.13342)."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from indexes.errors import InputError
from pretraining.backbones import FAMILIES, Backbone
from pretraining.layers import layers_of


@contextlib.contextmanager
def dropped_heads(backbone: Backbone, share: float) -> Iterator[None]:
    """Leave attention heads out of every layer, for every text another draw, as long as this is entered.

    What a layer's heads say is put together by one linear map; before it, each head of each text is struck out with a
    chance of `share`, and those that stay are multiplied by heads / (heads that stay), so that their sum keeps its
    size; one stays at least. It draws from torch's own generator, as dropout does.

    Args:
        backbone: Whose heads.
        share: The chance of a head to be left out; 0 changes nothing.
    """
    if not share:
        yield
        return
    heads = backbone.config.num_attention_heads

    def strike(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        context: Tensor = inputs[0]  # (b, t, d)
        kept = head_weights(len(context), heads, share, context.device)[:, None, :, None].to(context.dtype)
        return ((context.unflatten(-1, (heads, -1)) * kept).flatten(-2), *inputs[1:])

    with contextlib.ExitStack() as hooks:
        for module in attention_outputs(backbone.module):
            hooks.callback(module.register_forward_pre_hook(strike).remove)
        yield


def attention_outputs(module: Any) -> list[torch.nn.Module]:
    """Each layer's map that puts its attention heads together; its input is what they say, one after the other."""
    name = FAMILIES[module.config.model_type].layers.attention_output
    return [layer.get_submodule(name) for layer in layers_of(module)]


def head_weights(texts: int, heads: int, share: float, device: torch.device) -> Tensor:
    """Draw what each head is multiplied by, (texts, heads): 0, or heads / (heads that stay)."""
    chance = torch.rand(texts, heads, device=device)
    kept = (chance >= share) | (chance == chance.amax(1, keepdim=True))
    return kept * (heads / kept.sum(1, keepdim=True))


def check_drophead(share: float) -> None:
    """Refuse what is no chance of a head to be left out.

    Raises:
        InputError: It is below 0, or not below 1.
    """
    if not 0 <= share < 1:
        raise InputError(f"drophead is {share}; expected at least 0 and below 1, such as 0.2")
