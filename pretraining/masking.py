"""Masks: whole-word masks for the encoder and visibility for the decoder, sampled on the device in whole tensors.

Shapes: b batch, t tokens, r decoded rows, w words.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from indexes.errors import InputError
from retrieval.seeds import seed_of as seed_of
from retrieval.seeds import seeded as seeded

IGNORED = -100
"""The label of a position without loss, as in torch's cross-entropy."""

OUTSIDE = -1
"""The word number of positions that belong to no word: [CLS], [SEP], padding."""


UNITS = ("word", "piece", "ngram")
_LONGEST_NGRAM = 3


@dataclass(frozen=True)
class MaskOptions:
    """How the encoder's masks are drawn.

    Attributes:
        ratio: Share of a text's tokens, specials included, that the encoder has to guess.
        unit: What is masked or left as a whole: a `word` (Devlin et al. 2019, as RetroMAE and DupMAE do), a word
            `piece`, or an `ngram` of one to three words, the shorter the likelier (1/n; BERT's code, SpanBERT's idea).
    """

    ratio: float = 0.3
    unit: str = "word"

    def __post_init__(self) -> None:
        check_share("mask ratio", self.ratio, 0.9)
        if self.unit not in UNITS:
            raise InputError(f"mask unit is {self.unit!r}; expected {', '.join(UNITS)}")


def check_share(name: str, value: float, most: float) -> None:
    """Refuse what is no share.

    Raises:
        InputError: It is not above 0, or above the greatest.
    """
    if not isinstance(value, float | int) or not 0 < value <= most:
        raise InputError(f"{name} is {value}; expected a share above 0 and at most {most:g}")


@dataclass(frozen=True)
class Batch:
    """Texts as they are.

    Attributes:
        ids: Token ids, [CLS] first and [SEP] last, (b, t).
        attention_mask: 1 on real tokens, (b, t); padding is on the right.
        words: The number of each token's word in its text, (b, t); -1 outside of words.
        marked: Which tokens masks may take, bool (b, t); None: any of the text.
        others: Other texts that belong to these, row by row, under the names by which terms know them.
    """

    ids: Tensor
    attention_mask: Tensor
    words: Tensor
    marked: Tensor | None = None
    others: "Mapping[str, Batch]" = field(default_factory=dict)

    @classmethod
    def of(cls, ids: Tensor, attention_mask: Tensor, word_starts: Tensor, **more: Any) -> "Batch":
        """Number the words that begin where `word_starts` (b, t) is true; `more` are the other fields."""
        return cls(ids, attention_mask, word_numbers(word_starts, content_positions(attention_mask)), **more)

    @property
    def content(self) -> Tensor:
        """Which tokens are the text's own, bool (b, t)."""
        return content_positions(self.attention_mask)


@dataclass(frozen=True)
class Masks:
    """What the encoder has to guess.

    Attributes:
        masked_ids: What it reads, (b, t).
        labels: Clean ids where it has to guess, else -100, (b, t).
    """

    masked_ids: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Vocabulary:
    """What is to be known of a tokenizer's ids.

    Attributes:
        mask_id: That of [MASK].
        size: How many there are.
        digest: SHA-256 over pieces and ids.
    """

    mask_id: int
    size: int
    digest: str = ""


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


def units_of(words: Tensor, unit: str, generator: torch.Generator) -> Tensor:
    """Number what is masked as a whole, (b, t), given the words' numbers (b, t); -1 outside."""
    inside = words != OUTSIDE
    if unit == "piece":
        return torch.where(inside, inside.cumsum(1) - 1, OUTSIDE)
    if unit == "ngram":
        most = max(int(words.max()) + 1, 1)
        chance = 1.0 / torch.arange(1, _LONGEST_NGRAM + 1, device=words.device)
        lengths = 1 + torch.multinomial(
            chance.expand(len(words), -1), most, replacement=True, generator=generator
        )  # (b, w)
        return torch.where(inside, torch.searchsorted(lengths.cumsum(1), words.contiguous(), right=True), OUTSIDE)
    return words


def replace_masked(ids: Tensor, masked: Tensor, vocabulary: Vocabulary, generator: torch.Generator) -> Masks:
    """Replace masked tokens (b, t): 80% by [MASK], 10% by a random id, 10% stay (Devlin et al. 2019, section 3.1)."""
    chance = torch.rand(ids.shape, generator=generator, device=ids.device)
    random_ids = torch.randint(vocabulary.size, ids.shape, generator=generator, device=ids.device)
    seen = torch.where(masked & (chance < 0.8), vocabulary.mask_id, ids)
    seen = torch.where(masked & (chance >= 0.9), random_ids, seen)
    return Masks(seen, torch.where(masked, ids, IGNORED))


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


def row_visibility(attention_mask: Tensor, rows: Tensor, hidden: Tensor) -> Tensor:
    """Which columns rows (b, r) may look at, bool (b, r, t), given what masks (b, r, t) hide from them.

    The row's own column and padding are always hidden; [CLS], which is the sentence vector here, and [SEP] are never
    masked.
    """
    visible = ~hidden & attention_mask.bool()[:, None]
    return visible.scatter_(2, rows[..., None], False)


def draw_places(batch: Batch, options: MaskOptions, generator: torch.Generator) -> Tensor:
    """Draw which tokens are masked, bool (b, t): of marked tokens alone, where there are marks."""
    words = batch.words if batch.marked is None else torch.where(batch.marked, batch.words, OUTSIDE)
    units = units_of(words, options.unit, generator)
    return whole_word_mask(units, budgets(batch.attention_mask, options.ratio), generator)[:, 0]


def draw_masks(batch: Batch, options: MaskOptions, vocabulary: Vocabulary, generator: torch.Generator) -> Masks:
    """Draw what the encoder has to guess of a batch."""
    return replace_masked(batch.ids, draw_places(batch, options, generator), vocabulary, generator)


def more_masked(batch: Batch, masks: Masks, ratio: float, vocabulary: Vocabulary, generator: torch.Generator) -> Masks:
    """Masks of a greater share of the tokens that hold all that the encoder has to guess, replaced anew."""
    places = more_places(batch, masks.labels != IGNORED, ratio, generator)
    return replace_masked(batch.ids, places, vocabulary, generator)


def more_places(batch: Batch, masked: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Draw a greater share of the tokens that holds what is masked, bool (b, t).

    "Inclusive" masks, as SimLM's and LexMAE's decoders have.
    """
    left = torch.where(masked, OUTSIDE, batch.words)
    budget = (budgets(batch.attention_mask, ratio) - masked.sum(1)).clamp(min=0)
    return masked | whole_word_mask(left, budget, generator)[:, 0]
