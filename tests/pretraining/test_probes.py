"""Probes: their formulas against float64 by hand, the shuffle gap of terms that use their bottleneck and of others."""

import math

import numpy as np
import pytest
import torch

from pretraining.masking import MaskOptions, seeded
from pretraining.probes import (
    alignment,
    effective_rank,
    evaluating,
    sentence_coverage,
    shuffle_gaps,
    spread,
    term_coverage,
    uniformity,
)
from pretraining.terms import TERMS
from pretraining.view import EncoderView

CPU = torch.device("cpu")
NOUNS = ["river", "stone", "green", "walk", "night", "paper", "music", "water", "house", "train"]


def unit(rows, seed=0):
    vectors = np.random.default_rng(seed).standard_normal(rows)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_alignment_and_uniformity_are_the_papers_sums():
    one, other = unit((7, 5)), unit((7, 5), 1)
    expected = np.mean([np.sum((x - y) ** 2) for x, y in zip(one, other, strict=True)])
    assert alignment(torch.tensor(one), torch.tensor(other)) == pytest.approx(expected, rel=1e-12)
    pairs = [math.exp(-2 * np.sum((one[i] - one[j]) ** 2)) for i in range(7) for j in range(i)]
    assert uniformity(torch.tensor(one)) == pytest.approx(math.log(np.mean(pairs)), rel=1e-12)
    same = torch.tensor(one[:1]).expand(4, 5)
    assert alignment(same, same) == 0
    assert uniformity(same) == pytest.approx(0)


def test_effective_rank_counts_directions():
    assert effective_rank(torch.eye(6), centred=False) == pytest.approx(6)
    assert effective_rank(torch.eye(6)) == pytest.approx(5), "the mean is taken away"
    vectors = np.random.default_rng(0).standard_normal((9, 4)) + 50
    for centred, matrix in ((False, vectors), (True, vectors - vectors.mean(0))):
        values = np.linalg.svd(matrix, compute_uv=False)
        shares = values / values.sum()
        expected = math.exp(-(shares * np.log(shares)).sum())
        assert effective_rank(torch.tensor(vectors), centred=centred) == pytest.approx(expected, rel=1e-10)
    assert effective_rank(torch.tensor(vectors), centred=False) < 1.5 < 3 < effective_rank(torch.tensor(vectors))
    assert effective_rank(torch.ones(5, 3)) == 1, "a collapse"


def test_spread_does_not_depend_on_lengths():
    one, texts = torch.tensor(unit((4, 5))), torch.tensor(unit((8, 5), 1))
    assert spread(3 * one, texts[:4], 7 * texts) == pytest.approx(spread(one, texts[:4], texts))


def test_term_coverage_by_hand():
    logits = torch.tensor([[9.0, 8, 7, 6, 5], [9, 8, 7, 6, 5], [1, 2, 3, 4, 5]])
    words = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
    assert term_coverage(logits, words) == (1 / 2 + 0) / 2
    assert term_coverage(logits, words, 3) == (1 + 0) / 2
    assert term_coverage(logits, words, 99) == 1
    assert term_coverage(logits, torch.zeros(3, 5)) == 0


def drawn_texts(model, tokenizer, count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(len(NOUNS), (count, 9), generator=generator)
    texts = [" ".join(NOUNS[word] for word in row) for row in picked.tolist()]
    return drawn_of(model, tokenizer, texts, seeded(CPU, seed, "masks"))


def drawn_of(model, tokenizer, texts, generator):
    """The texts with themselves as whatever terms want beside them."""
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    beside = {"ids": ids, "attention_mask": mask, "word_starts": torch.ones_like(ids, dtype=torch.bool)}
    others = dict.fromkeys(("masked", "reason", "better", "worse"), beside)
    return model.sample(ids, mask, generator=generator, others=others)


def needed(name, base):
    """The options that a term does not go without."""
    return {"field_decoder": {"field": "reason"}, "replaced_lm": {"generator": str(base)}}.get(name, {})


WITH = [name for name, term in TERMS.items() if term.has_bottleneck]


def test_which_terms_have_a_bottleneck():
    assert set(WITH) == {
        "bag_of_words_cls",
        "decoder_mlm",
        "condenser_mlm",
        "span_decoder",
        "field_decoder",
        "replaced_lm",
        "denoising",
        "lexicon_bottleneck",
    }


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("name", list(TERMS))
def test_what_a_term_says_of_its_bottleneck_is_so(name, pooling, make_model, tokenizer, base):
    """A shuffled view changes the loss of terms with a bottleneck and of no others, contrasts of vectors left out."""
    objective = {name: {"weight": 1.0, **needed(name, base)}}
    model = make_model(objective, pooling=pooling, num_hidden_layers=2, initializer_range=0.5)
    drawn = drawn_texts(model, tokenizer)
    term = model.terms[name]
    with torch.no_grad(), evaluating(model):
        view = model.view(drawn)
        gap = float(term(view.shuffled(2), drawn.terms[name]) - term(view, drawn.terms[name]))
    assert (abs(gap) > 1e-4) == term.has_bottleneck, gap
    assert set(shuffle_gaps(model, [drawn])) == ({name} if term.has_bottleneck else set())


HIDES_MOST = {name: {"ratio": 0.9} for name in ("decoder_mlm", "span_decoder", "lexicon_bottleneck", "field_decoder")}
HIDES_MOST["replaced_lm"] = {"decoder_ratio": 0.9}


@pytest.mark.parametrize("name", WITH)
def test_the_gap_opens_where_a_trained_decoder_uses_the_vector(name, make_model, tokenizer, base, monkeypatch):
    """Texts of one word each, which decoders see little of; Condenser's early tokens know nothing at all."""
    objective = {name: {"weight": 1.0, **needed(name, base), **HIDES_MOST.get(name, {})}}
    model = make_model(objective, num_hidden_layers=2, initializer_range=0.2, masks=MaskOptions(0.5))
    monkeypatch.setattr(EncoderView, "layer", lambda self, number: torch.zeros_like(self.hidden))
    texts = [" ".join([noun] * 9) for noun in NOUNS[:4] for _ in range(2)]
    batches = [drawn_of(model, tokenizer, texts, seeded(CPU, seed)) for seed in range(4)]
    # Neighbours are of one word, as two spans of a document are; so shuffle as for an objective over spans.
    monkeypatch.setattr(type(model.objective), "uses_pairs", True)
    before = shuffle_gaps(model, batches)[name]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(60):
        optimizer.zero_grad()
        model(batches[step % 4])["total"].backward()
        optimizer.step()
    assert abs(before) < 0.2
    assert shuffle_gaps(model, batches)[name] > 0.5


def test_a_span_is_not_rebuilt_from_its_own_vector(make_model, tokenizer):
    """Moved by one place, every other span of a pair would get the vector of the very text that is rebuilt."""
    model = make_model({"span_decoder": 1.0}, initializer_range=0.5)
    drawn = drawn_texts(model, tokenizer)
    given = []
    model.terms["span_decoder"].decoder.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0][:, 0]))
    shuffle_gaps(model, [drawn])
    as_is, shuffled = given
    with torch.no_grad(), evaluating(model):
        vectors = model.view(drawn).vector
    rows = torch.arange(8)
    torch.testing.assert_close(as_is, vectors[rows ^ 1])
    torch.testing.assert_close(shuffled, vectors[((rows ^ 1) - 2) % 8])


def test_a_decoder_that_does_without_the_vector_has_no_gap(make_model, tokenizer):
    model = make_model("retromae", initializer_range=0.5)
    drawn = drawn_texts(model, tokenizer)
    assert abs(shuffle_gaps(model, [drawn])["decoder_mlm"]) > 1e-3
    with torch.no_grad():
        norm = model.backbone.encoder.layer[-1].output.LayerNorm
        norm.weight[:] = 0  # every text has the same vector
    assert shuffle_gaps(model, [drawn])["decoder_mlm"] == pytest.approx(0, abs=1e-7)


def test_the_gap_is_the_difference_of_losses_and_changes_nothing(make_model, tokenizer):
    model = make_model({"decoder_mlm": 1.0, "crop_contrast": 1.0}, hidden_dropout_prob=0.5).train()
    batches = [drawn_texts(model, tokenizer, seed=seed) for seed in (0, 1)]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gap = shuffle_gaps(model, batches)["decoder_mlm"]
    assert gap == shuffle_gaps(model, batches)["decoder_mlm"], "without dropout"
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
    model.eval()
    expected = []
    for drawn in batches:
        view, other = model.view(drawn), model.view(drawn)
        as_is = model.terms["decoder_mlm"](view, drawn.terms["decoder_mlm"]).item()
        other.__dict__["vector"] = view.vector[[7, 0, 1, 2, 3, 4, 5, 6]]
        expected.append(model.terms["decoder_mlm"](other, drawn.terms["decoder_mlm"]).item() - as_is)
    assert gap == pytest.approx(sum(expected) / 2, rel=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_trained_bag_of_words_covers_its_terms(pooling, make_model, tokenizer):
    model = make_model("bowdpr", pooling=pooling, initializer_range=0.2)
    drawn = drawn_texts(model, tokenizer, count=4)
    before = sentence_coverage(model, [drawn])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        model(drawn)["total"].backward()
        optimizer.step()
    after = sentence_coverage(model, [drawn, drawn])
    assert before < 0.6 < 0.9 < after <= 1
    assert sentence_coverage(model, [drawn], k=len(tokenizer)) == 1
