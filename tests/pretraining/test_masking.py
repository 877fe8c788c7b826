"""Masks: ratios, budgets, whole words, what a decoder row may see, and the same draws from the same address."""

import pytest
import torch

from indexes.errors import InputError
from pretraining.masking import (
    IGNORED,
    Batch,
    MaskOptions,
    Vocabulary,
    budgets,
    content_positions,
    draw_masks,
    replace_masked,
    seeded,
    select_rows,
    units_of,
    whole_word_mask,
    word_numbers,
)
from pretraining.terms.retromae import DecoderMLM

CPU = torch.device("cpu")
LENGTHS = (64, 41, 9, 3)


@pytest.fixture
def texts():
    """Ids, attention mask and word starts of four texts, (4, 64), with words of one to four pieces."""
    generator = seeded(CPU, 7)
    ids = torch.randint(10, 200, (len(LENGTHS), 64), generator=generator)
    attention = (torch.arange(64) < torch.tensor(LENGTHS)[:, None]).long()
    return ids, attention, torch.rand(ids.shape, generator=generator) < 0.6


VOCABULARY = Vocabulary(mask_id=3, size=200)


def sample(texts, *address, make_model, **options):
    """What RetroMAE's decoder rebuilds."""
    term = make_model({"decoder_mlm": options}).terms["decoder_mlm"]
    assert isinstance(term, DecoderMLM)
    return term.draw(Batch.of(*texts), None, VOCABULARY, seeded(CPU, *address))


def masked(texts, *address, **options):
    return draw_masks(Batch.of(*texts), MaskOptions(**options), VOCABULARY, seeded(CPU, *address))


def greedy(sizes, order, budget):
    """The rule as the authors' collator states it, one word after the other."""
    taken, used = [], 0
    for word in order:
        if used + sizes[word] <= budget:
            taken.append(word)
            used += sizes[word]
    return set(taken)


def test_the_mask_is_the_sequential_rule_in_the_same_random_order(texts):
    _, attention, starts = texts
    words = word_numbers(starts, content_positions(attention))
    budget = budgets(attention, 0.3)
    masked = whole_word_mask(words, budget, seeded(CPU, 1), masks=50)
    most = int(words.max()) + 1
    order = torch.rand(len(words), 50, most, generator=seeded(CPU, 1)).argsort(-1)
    for text in range(len(words)):
        sizes = [int((words[text] == word).sum()) for word in range(most)]
        for mask in range(50):
            expected = greedy(sizes, [word for word in order[text, mask].tolist() if sizes[word]], int(budget[text]))
            assert set(words[text][masked[text, mask]].tolist()) == expected


def test_budget_ratio_and_whole_words(texts):
    _, attention, starts = texts
    words = word_numbers(starts, content_positions(attention))
    budget = budgets(attention, 0.3)
    assert budget.tolist() == [round(0.3 * length) for length in LENGTHS]
    masked = whole_word_mask(words, budget, seeded(CPU, 2), masks=400)
    counts = masked.sum(-1)
    assert (counts <= budget[:, None]).all()
    assert counts[0].float().mean() / LENGTHS[0] == pytest.approx(0.3, abs=0.01)
    assert not masked[words[:, None].expand_as(masked) < 0].any()
    for word in range(int(words[0].max()) + 1):
        pieces = masked[0][:, words[0] == word]
        assert (pieces.all(1) == pieces.any(1)).all()


def test_a_word_longer_than_the_budget_is_never_masked():
    words = torch.tensor([[-1, 0, 0, 0, 0, 1, -1]])
    masked = whole_word_mask(words, torch.tensor([2]), seeded(CPU, 1), masks=20)[0]
    assert (masked == (words == 1)).all()


def test_words_are_numbered_between_first_and_last_token():
    attention = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    starts = torch.tensor([[1, 0, 1, 0, 1, 1], [0, 1, 0, 1, 1, 1]]).bool()
    words = word_numbers(starts, content_positions(attention))
    assert words.tolist() == [[-1, 0, 1, 1, -1, -1], [-1, 0, 0, 1, 2, -1]]


def test_replacement_is_eighty_ten_ten():
    ids = torch.full((100, 300), 50)
    masked = torch.rand(ids.shape, generator=seeded(CPU, 4)) < 0.5
    found = replace_masked(ids, masked, VOCABULARY, seeded(CPU, 5))
    assert (found.masked_ids[~masked] == 50).all()
    assert ((found.labels == 50) == masked).all()
    assert (found.labels[~masked] == IGNORED).all()
    share = [(found.masked_ids[masked] == number).float().mean().item() for number in (3, 50)]
    assert share == pytest.approx([0.8 + 0.1 / 200, 0.1 + 0.1 / 200], abs=0.01)


@pytest.mark.parametrize("pool", [None, 256])
def test_what_a_decoder_row_sees(texts, pool, make_model):
    batch = sample(texts, 1, pool=pool, make_model=make_model)
    for text, length in enumerate(LENGTHS):
        rows = batch.rows[text][batch.real[text]]
        assert rows.tolist() == list(range(1, length - 1))
        visible = batch.visible[text][batch.real[text]]  # (r, t)
        assert visible[:, 0].all()  # the sentence vector
        assert visible[:, length - 1].all()  # [SEP]
        assert not visible[:, length:].any()  # padding
        assert not visible.gather(1, rows[:, None]).any()  # itself
    assert batch.visible.any(-1).all()
    first = batch.visible[0][batch.real[0]]
    hidden = 1 - first[:, 1:63].float().mean()
    assert hidden.item() == pytest.approx(0.5 * 64 / 62, abs=0.03)


def test_rows_draw_their_masks_independently_or_from_a_pool(texts, make_model):
    fresh = sample(texts, 1, make_model=make_model).visible[0]
    assert len({tuple(row.tolist()) for row in fresh[:, 40:63]}) > 55
    pooled = sample(texts, 1, pool=3, make_model=make_model).visible[0][:20, 40:63]
    assert len({tuple(row.tolist()) for row in pooled}) <= 3


def test_a_fraction_of_the_rows_is_rounded_up_and_drawn_anew(texts, make_model):
    one, other = (sample(texts, seed, row_fraction=0.25, make_model=make_model) for seed in (1, 2))
    assert one.real.sum(1).tolist() == [16, 10, 2, 1]
    assert not torch.equal(one.rows, other.rows)
    content = content_positions(texts[1])
    assert content.gather(1, one.rows)[one.real].all()
    rows, real = select_rows(content)
    assert rows[real].shape == (int(content.sum()),)


def test_the_same_address_draws_the_same_and_another_draws_otherwise(texts, make_model):
    torch.rand(10)  # nothing before matters
    one, same = (sample(texts, 5, 9, 0, 1, make_model=make_model) for _ in range(2))
    for name in ("rows", "visible"):
        assert torch.equal(getattr(one, name), getattr(same, name))
    first, again = masked(texts, 5, 9, 0, 1), masked(texts, 5, 9, 0, 1)
    for name in ("masked_ids", "labels"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    for address in ((6, 9, 0, 1), (5, 10, 0, 1), (5, 9, 1, 1), (5, 9, 0, 2), (9, 5, 0, 1), (5, 9, 0, 1, "name")):
        assert not torch.equal(first.masked_ids, masked(texts, *address).masked_ids)


def test_pieces_are_masked_one_by_one(texts):
    words = Batch.of(*texts).words
    units = units_of(words, "piece", seeded(CPU, 1))
    for line, mine in zip(words, units, strict=True):
        assert mine[line >= 0].tolist() == list(range(int((line >= 0).sum())))
        assert (mine[line < 0] == -1).all()
    labels = masked(texts, 1, unit="piece").labels
    assert (labels != IGNORED).sum(1).tolist() == budgets(texts[1], 0.3).tolist()


def test_ngrams_are_one_to_three_words_the_shorter_the_likelier():
    words = torch.arange(3000).repeat(4, 1)
    units = units_of(words, "ngram", seeded(CPU, 1))
    assert (units.diff(dim=1) >= 0).all()
    assert (units.diff(dim=1) <= 1).all()
    sizes = torch.bincount(torch.cat([torch.bincount(line)[:-1] for line in units]))
    shares = sizes[1:] / sizes.sum()
    assert shares.tolist() == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.02)


def test_an_ngram_holds_whole_words(texts):
    words = Batch.of(*texts).words
    units = units_of(words, "ngram", seeded(CPU, 1))
    assert ((units < 0) == (words < 0)).all()
    for line, mine in zip(words, units, strict=True):
        for word in line[line >= 0].unique():
            assert len(mine[line == word].unique()) == 1


@pytest.mark.parametrize("value", [0.0, 0.95, "half"])
def test_shares_out_of_range_are_refused(value):
    with pytest.raises(InputError, match=f"mask ratio is {value}; expected a share above 0"):
        MaskOptions(value)
    with pytest.raises(InputError, match="mask unit is 'letter'; expected word, piece, ngram"):
        MaskOptions(unit="letter")
