"""Contrast of two crops of a text, and a queue of earlier ones: Contriever (Izacard et al. 2022, arXiv 2112.09118)."""

import copy

import torch
from torch import Tensor
from torch.nn import functional

from indexes.errors import InputError
from pretraining.backbones import Backbone
from pretraining.masking import Batch, Masks, Vocabulary, check_share
from pretraining.terms.parts import Part, kept_tokens
from pretraining.terms.term import Term, at_least_float32
from pretraining.view import EncoderView, sentence_vector
from retrieval.processes import gathered, rank


class CropContrast(Term):
    """InfoNCE of a crop with another of its text, among those of earlier batches: passes of its own, two a batch.

    Each crop is a run of a share of the text's tokens, drawn uniformly, from which tokens are left out. One of them is
    encoded by a slow copy of the encoder, which follows it (momentum), without gradients; its vectors then wait in a
    queue as negatives. (The authors' queue begins as random vectors; this one is empty at first, and the other texts of
    the batch are negatives too.) Vectors are as they come, not of unit length.

    Args:
        backbone: The encoder.
        temperature: Inner products are divided by it.
        momentum: How much of the slow copy stays in a step.
        queue: How many vectors wait; the authors' 131,072 are for batches of thousands.
        shortest: The least share of a text that a crop is.
        longest: The greatest.
        deleted: The share of a crop's tokens that are left out.
    """

    uses_head = False
    starts_untrained = False

    def __init__(
        self,
        backbone: Backbone,
        *,
        temperature: float = 0.05,
        momentum: float = 0.9995,
        queue: int = 4096,
        shortest: float = 0.05,
        longest: float = 0.5,
        deleted: float = 0.1,
    ) -> None:
        super().__init__(backbone)
        if not 0 < temperature <= 10:
            raise InputError(f"temperature is {temperature}; expected above 0 and at most 10")
        if not 0 <= momentum < 1:
            raise InputError(f"momentum is {momentum}; expected at least 0 and below 1")
        if queue < 1:
            raise InputError(f"queue is {queue}; expected at least 1")
        check_share("longest", longest, 1.0)
        check_share("shortest", shortest, longest)
        if not 0 <= deleted < 1:
            raise InputError(f"deleted is {deleted}; expected at least 0 and below 1")
        self.temperature, self.momentum = temperature, momentum
        self.shares, self.deleted = (shortest, longest), deleted
        self.slow = copy.deepcopy(backbone.module).requires_grad_(False)
        self.waiting: Tensor
        self.count: Tensor
        self.register_buffer("waiting", torch.zeros(queue, backbone.config.hidden_size))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def draw(self, batch: Batch, masks: Masks, vocabulary: Vocabulary, generator: torch.Generator) -> tuple[Part, Part]:
        """Draw two crops of each text."""
        one, other = (crop(batch, self.shares, self.deleted, generator) for _ in range(2))
        return one, other

    @torch.no_grad()
    def advance(self, backbone: Backbone) -> None:
        """The slow copy follows the encoder by a step."""
        for mine, theirs in zip(self.slow.parameters(), backbone.module.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.momentum)

    def forward(self, view: EncoderView, drawn: tuple[Part, Part]) -> Tensor:
        """The loss, one number; it moves the queue on while training."""
        asking, asked = drawn
        queries = sentence_vector(view.backbone.run(*asking)[0], asking.attention_mask, view.pooling)
        with torch.no_grad():
            keys = sentence_vector(Backbone(self.slow).run(*asked)[0], asked.attention_mask, view.pooling)
            keys = gathered(keys)
        filled = self.waiting[: min(int(self.count), len(self.waiting))].to(keys.dtype)
        first = len(queries) * rank()
        scores = queries @ torch.cat((keys, filled)).T / self.temperature  # (b, all b + waiting)
        positives = torch.arange(len(queries), device=queries.device) + first
        if self.training:
            self._enqueue(keys)
        return functional.cross_entropy(at_least_float32(scores), positives)

    def _enqueue(self, keys: Tensor) -> None:
        keys = keys[-len(self.waiting) :]
        places = (self.count + torch.arange(len(keys), device=keys.device)) % len(self.waiting)
        self.waiting[places] = keys.to(self.waiting.dtype)
        self.count += len(keys)


def crop(batch: Batch, shares: tuple[float, float], deleted: float, generator: torch.Generator) -> Part:
    """Draw a run of tokens of each text, of a share of its length, and leave some of them out; at least one stays."""
    device, content = batch.ids.device, batch.content
    lengths = content.sum(1)  # (b,)
    chance = torch.rand(3, len(lengths), generator=generator, device=device)
    share = shares[0] + chance[0] * (shares[1] - shares[0])
    run = (lengths * share).long().clamp(min=1)
    start = (chance[1] * (lengths - run + 1)).long()
    place = content.cumsum(1) - 1  # the number of each token in its text
    kept = content & (place >= start[:, None]) & (place < (start + run)[:, None])
    left_out = torch.rand(batch.ids.shape, generator=generator, device=device) < deleted
    spared = start + (chance[2] * run).long()  # one of the run stays whatever is drawn
    kept &= ~left_out | (place == spared[:, None])
    return kept_tokens(batch, kept)
