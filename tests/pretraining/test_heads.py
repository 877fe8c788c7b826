"""Lean heads equal dense ones in value and gradient, and never hold the dense logits."""

import pytest
import torch
from torch.nn import functional

from pretraining import heads
from pretraining.heads import linear_cross_entropy, linear_max


def leaves(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def gradients(value, inputs):
    return torch.autograd.grad(value, inputs)


@pytest.fixture(params=["one block", "many blocks"])
def block_size(request, monkeypatch):
    if request.param == "many blocks":
        monkeypatch.setattr(heads, "_ELEMENTS_AT_ONCE", 100)


@pytest.mark.usefixtures("block_size")
def test_cross_entropy_equals_the_dense_one():
    inputs = leaves((11, 8), (37, 8), (37,))
    labels = torch.arange(11) * 3
    dense = functional.cross_entropy(functional.linear(*inputs), labels)
    lean = linear_cross_entropy(*inputs, labels)
    torch.testing.assert_close(lean, dense)
    torch.testing.assert_close(gradients(2.5 * lean, inputs), gradients(2.5 * dense, inputs))


def test_cross_entropy_without_rows_is_zero():
    inputs = leaves((0, 8), (37, 8), (37,))
    loss = linear_cross_entropy(*inputs, torch.zeros(0, dtype=torch.long))
    assert loss.item() == 0
    assert all((gradient == 0).all() for gradient in gradients(loss, inputs))


def dense_max(hidden, weight, bias, keep):
    logits = functional.linear(hidden, weight, bias)
    return logits.masked_fill(~keep[..., None], -torch.inf).amax(1)


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("with_bias", [True, False])
def test_max_over_tokens_equals_the_dense_one(with_bias):
    hidden, weight, bias = leaves((3, 7, 8), (37, 8), (37,))
    inputs = [hidden, weight, bias] if with_bias else [hidden, weight]
    keep = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    lean = linear_max(hidden, weight, bias if with_bias else None, keep)
    dense = dense_max(hidden, weight, bias if with_bias else None, keep)
    torch.testing.assert_close(lean, dense)
    factor = leaves((3, 37), seed=1)[0].detach()
    torch.testing.assert_close(gradients((lean * factor).sum(), inputs), gradients((dense * factor).sum(), inputs))


def test_dense_logits_never_exist(monkeypatch):
    monkeypatch.setattr(heads, "_ELEMENTS_AT_ONCE", 100)
    sizes, linear = [], functional.linear

    def watched(*arguments):
        result = linear(*arguments)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(heads.functional, "linear", watched)
    hidden, weight = leaves((2, 5, 8), (37, 8))
    linear_max(hidden, weight, None, torch.ones(2, 5, dtype=torch.bool)).sum().backward()
    assert max(sizes) <= 100
    assert sum(sizes) == 2 * 5 * 37
