"""Gradient caching: a loss over the vectors of a large batch whose parts go through the model one at a time.

The loss' gradient by the vectors is made of vectors without a graph; each part's own pass, with the same dropout, then
sends its share on to the weights. Memory is that of one part, and the gradient that of the whole batch.

sentence-transformers has a mixin for it, tied to losses of columns with a row a query and to the random state of the
process. Here examples have as many negatives as they have, dropout is seeded by step and part (which makes resumed runs
equal), and the optimizer's micro-batches are the parts, so that DDP needs nothing of its own.

Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv:2101.06983).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Outputs = Mapping[str, Tensor]
"""What a model gives for a part: vectors or scores, by name."""


def cache(
    parts: Sequence[Outputs], loss: Callable[[Sequence[Outputs]], Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The loss' values, and of each part the gradient of `total` by its outputs.

    Args:
        parts: Outputs of all parts, of which no graph is needed.
        loss: All parts to losses by name, among them `total`.
    """
    leaves = [{name: value.detach().requires_grad_() for name, value in part.items()} for part in parts]
    losses = loss(leaves)
    flat = [value for part in leaves for value in part.values()]
    gradients = iter(torch.autograd.grad(losses["total"], flat, allow_unused=True, materialize_grads=True))
    return (
        {name: value.detach() for name, value in losses.items()},
        [{name: next(gradients) for name in part} for part in leaves],
    )


def send_on(outputs: Outputs, gradient: Outputs, loss: Tensor, share: float = 1.0) -> Tensor:
    """The loss' value, with the gradient of one part's outputs times `share`."""
    own = torch.stack([(value * gradient[name]).sum() for name, value in outputs.items()]).sum()
    return loss + share * (own - own.detach())
