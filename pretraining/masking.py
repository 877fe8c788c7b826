"""Masks: whole-word masks for the encoder and visibility for the decoder, sampled on the device in whole tensors.

Shapes: b batch, t tokens, r decoded rows, w words.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from indexes.errors import InputError

IGNORED = -100
"""The label of a position without loss, as in torch's cross-entropy."""

OUTSIDE = -1
"""The word number of positions that belong to no word: [CLS], [SEP], padding."""


@dataclass(frozen=True)
class MaskOptions:
    """How masks are drawn.

    Attributes:
        encoder_ratio: Share of a text's tokens, specials included, that the encoder has to guess.
        decoder_ratio: Share of a text's tokens, specials included, that are hidden from each decoder row.
        row_fraction: Share of the rows that the decoder reconstructs; 1 is the paper, less is cheaper.
        pool: None draws a fresh mask for every row (Xiao et al. 2022, section 3.2); a number draws that many masks a
            text and lets rows share them with replacement, as the authors' code does with 256.
    """

    encoder_ratio: float = 0.3
    decoder_ratio: float = 0.5
    row_fraction: float = 1.0
    pool: int | None = None

    def __post_init__(self) -> None:
        for name in ("encoder_ratio", "decoder_ratio", "row_fraction"):
            value = getattr(self, name)
            top = 1.0 if name == "row_fraction" else 0.9
            if not 0 < value <= top:
                raise InputError(f"{name} is {value}; expected a share above 0 and at most {top}")
        if self.pool is not None and self.pool < 1:
            raise InputError(f"pool is {self.pool}; expected at least 1 mask, or none for a fresh mask a row")


@dataclass(frozen=True)
class MaskedBatch:
    """One batch with everything random about it decided.

    Attributes:
        ids: Clean token ids, (b, t).
        attention_mask: 1 on real tokens, (b, t).
        masked_ids: What the encoder reads, (b, t).
        labels: Clean ids where the encoder has to guess, else -100, (b, t).
        rows: Positions that the decoder reconstructs, (b, r); short texts repeat position 0.
        real: Which of the rows count, bool (b, r).
        visible: Which columns each row may look at, bool (b, r, t).
    """

    ids: Tensor
    attention_mask: Tensor
    masked_ids: Tensor
    labels: Tensor
    rows: Tensor
    real: Tensor
    visible: Tensor

    @classmethod
    def explicit(
        cls,
        ids: Tensor,
        attention_mask: Tensor,
        masked_ids: Tensor,
        labels: Tensor,
        row_labels: Tensor,
        visible: Tensor,
    ) -> "MaskedBatch":
        """Take given masks: rows are those with a label in `row_labels` (b, t); `visible` is (b, t, t)."""
        rows, real = select_rows(row_labels != IGNORED)
        seen = visible.bool().gather(1, rows[..., None].expand(-1, -1, visible.shape[2]))  # (b, r, t)
        return cls(ids, attention_mask, masked_ids, labels, rows, real, _open_unused(seen, real))


def seeded(device: torch.device, *address: int) -> torch.Generator:
    """A generator on `device` for one address (seed, step, micro-step, rank).

    It depends on the address only, so that a resumed run draws what the uninterrupted run would have drawn.
    """
    return torch.Generator(device).manual_seed(seed_of(*address))


def seed_of(*address: int) -> int:
    """63 bits that depend on every number of an address and on their order."""
    digest = hashlib.sha256("/".join(map(str, address)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def content_positions(attention_mask: Tensor) -> Tensor:
    """Real tokens except the first and the last one ([CLS], [SEP]), bool (b, t)."""
    real = attention_mask.bool()
    content = real.clone()
    content[:, 0] = False
    content[:, :-1] &= real[:, 1:]
    content[:, -1] = False
    return content


def word_numbers(word_starts: Tensor, content: Tensor) -> Tensor:
    """Number the words of each text from 0, int64 (b, t); -1 outside of words.

    A text's first content token begins a word even if it continues one of the window before.
    """
    starts = word_starts & content
    starts[:, 1] = content[:, 1]
    return torch.where(content, starts.cumsum(1) - 1, OUTSIDE)


def budgets(attention_mask: Tensor, ratio: float) -> Tensor:
    """Tokens to mask a text, int64 (b,): round(ratio · length with specials), at least 1."""
    return (attention_mask.sum(1).double() * ratio).round().long().clamp(min=1)


def whole_word_mask(words: Tensor, budget: Tensor, generator: torch.Generator, masks: int = 1) -> Tensor:
    """Draw whole-word masks with an exact budget.

    The words of a text are put in random order and taken one after the other; a word that would overflow the budget
    is skipped, and the search goes on with the next one. This is the rule of BERT's and RetroMAE's collators, so long
    words are taken a little less often and fewer tokens than the budget may be masked.

    Computed without a loop over words: cumulative sums find the first overflow of every mask; all later words
    that are longer than the room left there can never fit (room only shrinks) and are struck out; repeat. Every
    pass uses up room, so that passes are bounded by the longest word and are two to four in practice.

    Args:
        words: Word numbers, (b, t), -1 outside.
        budget: Most tokens to mask, (b,).
        generator: On the device of `words`.
        masks: Independent masks a text.

    Returns:
        True where masked, bool (b, masks, t).
    """
    batch = words.shape[0]
    inside = words != OUTSIDE
    most = max(int(words.max()) + 1, 1)
    sizes = torch.zeros(batch, most, dtype=torch.long, device=words.device)
    sizes.scatter_add_(1, words.clamp(min=0), inside.long())  # (b, w)
    order = torch.rand(batch, masks, most, generator=generator, device=words.device).argsort(-1)  # (b, masks, w)
    size = sizes[:, None].expand_as(order).gather(-1, order)
    room_at_start = budget[:, None, None]
    taken = size > 0
    while True:
        used = (size * taken).cumsum(-1)
        over = used > room_at_start  # true from the first overflow on
        if not over.any():
            break
        room = room_at_start - (size * (taken & ~over)).sum(-1, keepdim=True)
        taken &= ~over | (size <= room)
    chosen = torch.zeros_like(taken).scatter_(-1, order, taken)  # (b, masks, w)
    columns = words.clamp(min=0)[:, None].expand(-1, masks, -1)
    return chosen.gather(-1, columns) & inside[:, None]  # (b, masks, t)


def replace_masked(
    ids: Tensor, masked: Tensor, *, mask_id: int, vocabulary: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Replace masked tokens: 80% by [MASK], 10% by a random id, 10% stay (Devlin et al. 2019, section 3.1).

    Returns:
        What the encoder reads (b, t) and the labels (b, t).
    """
    chance = torch.rand(ids.shape, generator=generator, device=ids.device)
    random_ids = torch.randint(vocabulary, ids.shape, generator=generator, device=ids.device)
    seen = torch.where(masked & (chance < 0.8), mask_id, ids)
    seen = torch.where(masked & (chance >= 0.9), random_ids, seen)
    return seen, torch.where(masked, ids, IGNORED)


def select_rows(
    content: Tensor, fraction: float = 1.0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Positions to decode: all content positions, or a random fraction (rounded up) of each text's.

    Returns:
        Positions in rising order, int64 (b, r), and which of them count, bool (b, r); the others are position 0.
    """
    lengths = content.sum(1)  # (b,)
    wanted = (lengths.double() * fraction).ceil().long()
    if fraction < 1:
        rank = torch.rand(content.shape, generator=generator, device=content.device).masked_fill(~content, 2.0)
        content = content & (rank.argsort(1).argsort(1) < wanted[:, None])
    most = max(int(wanted.max()), 1)
    rows = (~content).to(torch.int8).argsort(dim=1, stable=True)[:, :most]  # content first, in order
    real = torch.arange(most, device=content.device) < wanted[:, None]
    return torch.where(real, rows, 0), real


def decoder_visibility(
    words: Tensor, attention_mask: Tensor, rows: Tensor, real: Tensor, options: MaskOptions, generator: torch.Generator
) -> Tensor:
    """Which columns each decoder row may look at (Xiao et al. 2022, equation 6), bool (b, r, t).

    Per row a whole-word mask hides `decoder_ratio` of the text; the row's own column and padding are always hidden;
    [CLS], which is the sentence vector here, and [SEP] are never masked.
    """
    budget = budgets(attention_mask, options.decoder_ratio)
    if options.pool is None:
        hidden = whole_word_mask(words, budget, generator, rows.shape[1])
    else:
        pool = attention_mask.sum(1, keepdim=True).clamp(max=options.pool)  # (b, 1)
        drawn = whole_word_mask(words, budget, generator, int(pool.max()))
        pick = (torch.rand(rows.shape, generator=generator, device=rows.device) * pool).long()  # (b, r)
        hidden = drawn.gather(1, pick[..., None].expand(-1, -1, words.shape[1]))
    visible = ~hidden & attention_mask.bool()[:, None]
    visible.scatter_(2, rows[..., None], False)
    return _open_unused(visible, real)


def sample_batch(
    ids: Tensor,
    attention_mask: Tensor,
    word_starts: Tensor,
    options: MaskOptions,
    *,
    mask_id: int,
    vocabulary: int,
    generator: torch.Generator,
) -> MaskedBatch:
    """Draw everything random about one batch; `ids`, `attention_mask` and `word_starts` are (b, t)."""
    content = content_positions(attention_mask)
    words = word_numbers(word_starts, content)
    masked = whole_word_mask(words, budgets(attention_mask, options.encoder_ratio), generator)[:, 0]
    seen, labels = replace_masked(ids, masked, mask_id=mask_id, vocabulary=vocabulary, generator=generator)
    rows, real = select_rows(content, options.row_fraction, generator)
    visible = decoder_visibility(words, attention_mask, rows, real, options, generator)
    return MaskedBatch(ids, attention_mask, seen, labels, rows, real, visible)


def _open_unused(visible: Tensor, real: Tensor) -> Tensor:
    # A row that may look at nothing gives NaN in some attention kernels; rows without loss look at column 0.
    visible[..., 0] |= ~real
    return visible
