"""Vocabulary heads that never hold logits for positions without a loss, and never (b, t, v) at once.

Shapes: b batch, t tokens, d dim, v vocabulary, n rows with a loss.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional
from transformers.activations import ACT2FN

from pretraining.backbones import activation_of, epsilon_of
from retrieval.processes import of_all_rows

_ELEMENTS_AT_ONCE = 1 << 24  # 64 MiB of float32


class Transform(nn.Module):
    """What a masked-language model does to a row before it is compared with the words: linear map, activation, norm.

    Parameter names are those of `BertForMaskedLM.cls.predictions.transform`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=getattr(config, "classifier_bias", True))
        self.activation = ACT2FN[activation_of(config)]
        bias = getattr(config, "norm_bias", True)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=epsilon_of(config), bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Rows (…, d) to rows (…, d)."""
        return self.LayerNorm(self.activation(self.dense(hidden)))


class VocabularyHead(nn.Module):
    """A masked-language model's head without its output matrix, which is the word embeddings' (tied).

    The matrix is passed in, so that no two parameters share memory and a checkpoint holds everything once.
    Parameter names are those of `BertForMaskedLM.cls.predictions`: `transform.*` and `bias`.

    Args:
        config: Of the encoder, of any family in `backbones`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        initialise(self, config.initializer_range)

    def forward(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """Logits (n, v) of rows (n, d) with the word embeddings (v, d)."""
        return functional.linear(self.transform(hidden), embeddings, self.bias)

    def loss(self, hidden: Tensor, labels: Tensor, embeddings: Tensor) -> Tensor:
        """Mean cross-entropy of rows (n, d), of all processes, with labels (n,); 0 without rows."""
        mean = linear_cross_entropy(self.transform(hidden), embeddings, self.bias, labels)
        return of_all_rows(mean, len(labels))


def initialise(module: nn.Module, deviation: float) -> None:
    """Give every linear layer BERT's first values: weights N(0, deviation²), biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=deviation)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of `hidden @ weight.T + bias`, holding the logits of a few rows at a time.

    Equal to `functional.cross_entropy(functional.linear(hidden, weight, bias), labels)` in value and gradient, except
    that it is 0 instead of NaN when there are no rows. Gradients are made in the forward pass, block by block, while
    the logits are there (the idea of Liger's fused kernel, Hsu et al. 2024); it has no second derivative.

    Args:
        hidden: (n, d).
        weight: (v, d).
        bias: (v,).
        labels: Ids, (n,).
    """
    return _LinearCrossEntropy.apply(hidden, weight, bias, labels)


def linear_max(hidden: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor) -> Tensor:
    """The greatest logit of each vocabulary entry over a text's tokens, never holding (b, t, v).

    Equal to `(hidden @ weight.T + bias).masked_fill(~keep[..., None], -inf).amax(1)` in value, and in gradient where
    the maximum is reached once (a tie gives the whole gradient to one of its tokens). The forward pass streams over
    blocks of the vocabulary and keeps maximum and argmax; the backward pass touches v (token, entry) pairs a text.

    Args:
        hidden: (b, t, d).
        weight: (v, d).
        bias: (v,) or none.
        keep: Which tokens take part, bool (b, t); at least one a text.

    Returns:
        (b, v).
    """
    greatest = _LinearMax.apply(hidden, weight, keep)
    return greatest if bias is None else greatest + bias


def _running_max(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and its place over tokens of (b, t, block); on a CPU three times as fast as `logits.max(1)`."""
    if logits.is_cuda:
        found = logits.max(1)
        return found.values, found.indices
    value, place = logits[:, 0].clone(), torch.zeros_like(logits[:, 0], dtype=torch.int16)
    for token in range(1, logits.shape[1]):
        place.masked_fill_(logits[:, token] > value, token)
        torch.maximum(value, logits[:, token], out=value)
    return value, place.long()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        rows, kind = len(hidden), hidden.device.type
        step = max(1, _ELEMENTS_AT_ONCE // len(weight))
        needed = any(ctx.needs_input_grad)  # type: ignore[attr-defined]
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        exact = torch.promote_types(hidden.dtype, torch.float32)
        hidden, lowered = hidden.to(low), weight.to(low)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        gradients: tuple[Tensor, ...] = ()
        if needed:
            gradients = (torch.empty_like(hidden), torch.zeros_like(lowered), torch.zeros_like(bias))
        # One block of memory for all: a new one each time would cost the system as much as the sums in it.
        space = torch.empty(min(step, rows), len(weight), dtype=exact, device=hidden.device)
        for start in range(0, rows, step):
            block, wanted = hidden[start : start + step], labels[start : start + step, None]
            logits = space[: len(block)]
            _product(block, lowered.T, logits)
            logits += bias
            logits -= logits.amax(1, keepdim=True)
            total -= logits.gather(1, wanted).sum()
            sums = logits.exp_().sum(1, keepdim=True)
            total += sums.log().sum()
            if needed:
                logits /= sums
                ones = torch.full_like(wanted, -1, dtype=exact)
                error = logits.scatter_add_(1, wanted, ones).to(low)  # softmax - onehot; divided by rows in backward
                torch.mm(error, lowered, out=gradients[0][start : start + step])
                gradients[1].addmm_(error.T, block)
                gradients[2].add_(error.sum(0))
        ctx.save_for_backward(*gradients)
        ctx.rows = max(rows, 1)  # type: ignore[attr-defined]
        return total / max(rows, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        share = gradient / ctx.rows
        return (*(each * share.to(each.dtype) for each in ctx.saved_tensors), None)


def _product(rows: Tensor, columns: Tensor, out: Tensor) -> None:
    """Write rows @ columns into `out`, which may be of a greater type."""
    if out.dtype == rows.dtype:
        torch.mm(rows, columns, out=out)
    else:
        out.copy_(rows @ columns)


class _LinearMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, keep: Tensor) -> Tensor:
        batch, tokens, _ = hidden.shape
        hide = None if bool(keep.all()) else ~keep[..., None]
        values, places = [], []
        for block in weight.split(max(1, _ELEMENTS_AT_ONCE // (batch * tokens))):
            logits = functional.linear(hidden, block)  # (b, t, block)
            value, place = _running_max(logits if hide is None else logits.masked_fill_(hide, -torch.inf))
            values.append(value)
            places.append(place)
        place = torch.cat(places, 1)  # (b, v)
        ctx.save_for_backward(hidden, weight, place)
        return torch.cat(values, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, place = ctx.saved_tensors
        batch, tokens, dim = hidden.shape
        count = torch.arange(batch, device=place.device)[:, None]
        # Of each word its token in each text; of each token its words, which are put in the order of tokens for it.
        to_weight = _weighted_sums(
            (place + count * tokens).T.contiguous(), None, hidden.reshape(-1, dim), gradient.T.contiguous()
        )
        words = place.argsort(1)  # (b, v)
        firsts = torch.searchsorted(
            place.gather(1, words), torch.arange(tokens, device=place.device).expand(batch, -1).contiguous()
        )
        begins = (firsts + count * len(weight)).reshape(-1)  # (b·t,)
        to_hidden = _weighted_sums(words.reshape(-1), begins, weight, gradient.gather(1, words).reshape(-1))
        return to_hidden.view_as(hidden).to(hidden.dtype), to_weight.to(weight.dtype), None


def _weighted_sums(rows: Tensor, begins: Tensor | None, table: Tensor, weights: Tensor) -> Tensor:
    """Sums of a table's rows, each times its weight: of each line of `rows`, or of those from one begin to the next.

    Twelve times as fast as products and sums of the rows that are gathered first.
    """
    exact = torch.promote_types(table.dtype, torch.float32)
    return functional.embedding_bag(rows, table.to(exact), begins, mode="sum", per_sample_weights=weights.to(exact))
