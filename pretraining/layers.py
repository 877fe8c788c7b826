"""Layers: which of an encoder's are kept for a smaller one, and how it is made deeper.

A layer of BERT's kind ends with a norm: y = LN(h + FFN(h)), h = LN(x + Attention(x)). With both outputs zeroed it
computes LN(LN(x)), which is no identity, because the norm before it left x with gains and offsets. But those can be
moved: the norm before it becomes a plain one, the new layer's inner norm is plain too, and its outer norm takes over
the gains and offsets. A plain norm of what is normalised already changes nothing but for the norm's epsilon, ε: a
factor of 1 + ε/2 (1/variance - 1), which for BERT (1e-12) is 1 and for RoBERTa (1e-5) within 1e-4 of it wherever the
variance of what was normalised exceeds 0.05.
"""

import copy
import re
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from indexes.errors import InputError
from pretraining.backbones import FAMILIES, LayerParts

METHODS = ("identity", "stack", "interleave")


def layers_of(backbone: Any) -> Any:
    """The list of a model's layers."""
    return backbone.get_submodule(FAMILIES[backbone.config.model_type].layers.stack)


def spread(count: int, total: int) -> list[int]:
    """`count` of `total` layers, evenly spread, the first and the last among them; one alone is the first.

    >>> spread(3, 12)
    [0, 6, 11]
    """
    return [0] if count == 1 else [(2 * place * (total - 1) + count - 1) // (2 * (count - 1)) for place in range(count)]


def keep_layers(backbone: Any, kept: int | Sequence[int]) -> Any:
    """A model of some of a model's layers (a student: Sanh et al. 2019; Fan et al. 2020, "every other").

    Args:
        backbone: A model of transformers, of a family in `backbones`.
        kept: How many, evenly spread (`spread`); or the numbers of those to keep, from 0, in ascending order.

    Raises:
        InputError: It does not have these layers, or there would be no other model.
    """
    total = len(layers_of(backbone))
    if isinstance(kept, int):
        if not 1 <= kept < total:
            raise InputError(f"keep_layers is {kept}; the model has {total} layers: take 1 to {total - 1}")
        kept = spread(kept, total)
    if not kept or list(kept) != sorted({*kept}) or not 0 <= kept[0] <= kept[-1] < total or len(kept) == total:
        shown = ", ".join(map(str, kept))
        raise InputError(f"keep_layers is {shown}; expected ascending numbers from 0 to {total - 1}, not all of them")
    if kept[0] != 0 and backbone.config.model_type == "modernbert":
        raise InputError(f"keep_layers begins with {kept[0]}; ModernBERT's first layer has no norm: keep layer 0")
    return relayered(backbone, kept)


def deepen(backbone: Any, total: int, method: str = "identity") -> Any:
    """A model of more layers.

    Args:
        backbone: A model of transformers, of a family in `backbones`.
        total: How many layers it shall have.
        method: `identity`: the new layers, spread evenly behind the old ones, are copies of those before them whose
            outputs are zero, and the model computes what it did (see this module's first lines). `stack`: copies of all
            layers on top of all layers (StackBERT; Gong et al., "Efficient Training of BERT by Progressively Stacking",
            ICML 2019). `interleave`: each layer followed by copies of it. The latter two compute something else, and
            have to be trained.

    Raises:
        InputError: It has as many layers already, or the method is unknown or not exact for this model.
    """
    there = len(layers_of(backbone))
    if total <= there:
        raise InputError(f"grow_layers is {total}; the model has {there} layers: take more")
    if method not in METHODS:
        raise InputError(f"depth_method is {method!r}; expected {', '.join(METHODS)}")
    if getattr(backbone.config, "conv_kernel_size", 0):
        raise InputError(
            "the model has a convolution beside its first layer (DeBERTa-v2-xlarge); it cannot be deepened"
        )
    if method == "stack":
        return relayered(backbone, [place % there for place in range(total)])
    if method == "interleave":
        return relayered(backbone, [place * there // total for place in range(total)])
    more = total - there
    order: list[int] = []
    fresh: set[int] = set()
    for layer in range(there):
        copies = (layer + 1) * more // there - layer * more // there
        fresh |= set(range(len(order) + 1, len(order) + 1 + copies))
        order += [layer] * (1 + copies)
    return relayered(backbone, order, fresh)


def relayered(backbone: Any, order: Sequence[int], fresh: Collection[int] = ()) -> Any:
    """A model whose layer i is a copy of layer `order[i]`; those in `fresh` change nothing of what reaches them."""
    config = copy.deepcopy(backbone.config)
    config.num_hidden_layers = len(order)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in order]
    parts = FAMILIES[config.model_type].layers
    found = re.compile(rf"{re.escape(parts.stack)}\.(\d+)\.(.+)")
    state = backbone.state_dict()
    weights = {name: value for name, value in state.items() if not found.fullmatch(name)}
    for place, layer in enumerate(order):
        prefix = f"{parts.stack}.{layer}."
        for name, value in state.items():
            if name.startswith(prefix):
                weights[f"{parts.stack}.{place}.{name.removeprefix(prefix)}"] = value.clone()
    for place in sorted(fresh):
        _silence(weights, parts, place)
    return with_weights(backbone, config, weights)


def _silence(weights: dict[str, Tensor], parts: LayerParts, place: int) -> None:
    """Make a layer an identity, at the cost of the gains and offsets of the norm before it, which it takes over."""
    here, before = (f"{parts.stack}.{number}." for number in (place, place - 1))
    for name in (parts.attention_output, parts.output):
        for kind in ("weight", "bias"):
            if f"{here}{name}.{kind}" in weights:
                weights[f"{here}{name}.{kind}"].zero_()
    if parts.attention_norm is None:
        return
    for kind, plain in (("weight", torch.ones_like), ("bias", torch.zeros_like)):
        inner, outer = (f"{here}{norm}.{kind}" for norm in (parts.attention_norm, parts.output_norm))
        last = f"{before}{parts.output_norm}.{kind}"
        weights[outer] = weights[last]
        weights[inner], weights[last] = plain(weights[inner]), plain(weights[last])


def with_weights(backbone: Any, config: Any, weights: dict[str, Tensor]) -> Any:
    """A model of the same class with these settings and weights.

    Norms that the weights lack (ModernBERT's first layer has none) are plain ones.
    """
    made = type(backbone)(config).to(backbone.dtype)
    lacking, more = made.load_state_dict(weights, strict=False)
    if more or not all(name.endswith("norm.weight") for name in lacking):
        raise RuntimeError(f"weights that do not fit: {[*lacking, *more][:3]}")
    return made.eval()
