"""Depth and width: what stays the same when layers and units are added, for every family, and what is refused."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from indexes.errors import InputError
from pretraining.backbones import FAMILIES
from pretraining.growth import split_columns, widen, widen_head
from pretraining.heads import VocabularyHead
from pretraining.layers import deepen, keep_layers, layers_of, spread
from pretraining.masking import seeded

CPU = torch.device("cpu")
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 50,
    "max_position_embeddings": 40, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0,
    "sep_token_id": 2, "type_vocab_size": 2, "relative_attention": True, "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"], "dim": 16, "n_heads": 2, "n_layers": 3, "hidden_dim": 24,
    "norm_rel_ebd": "layer_norm",
}  # fmt: skip
IDS = torch.tensor([[0, 7, 8, 9, 10, 2], [0, 30, 31, 2, 1, 1]])
MASK = (IDS != 1).long()
NARROW = [kind for kind, family in FAMILIES.items() if family.layers.attention_norm]


def backbone_of(kind, *, deviation=0.3, **changes):
    """A random model in float64 whose norms have gains and offsets of their own."""
    known = AutoConfig.for_model(kind)
    sizes = {name: value for name, value in SIZES.items() if hasattr(known, name)}
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **{**sizes, **changes}, initializer_range=deviation))
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value)
        elif "norm" in name.lower():
            torch.nn.init.uniform_(value, 0.3, 2.0)
    return model.double().eval()


def hidden(model):
    """What the model gives for real tokens, (n, d)."""
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK).last_hidden_state[MASK.bool()]


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("total", [4, 8])
def test_new_layers_change_nothing(kind, total):
    small = backbone_of(kind)
    large = deepen(small, total)
    assert large.config.num_hidden_layers == len(layers_of(large)) == total
    epsilon = getattr(small.config, "layer_norm_eps", 1e-12)
    if kind == "distilbert":
        epsilon = 1e-12
    tolerance = 1e-9 if kind == "modernbert" or epsilon == 1e-12 else 1e-3
    torch.testing.assert_close(hidden(large), hidden(small), rtol=tolerance, atol=tolerance)
    if total == 4:
        # The new layer does learn: what it gives depends on weights that have a gradient.
        large(input_ids=IDS, attention_mask=MASK).last_hidden_state.square().sum().backward()
        parts = FAMILIES[kind].layers
        for name in (parts.attention_output, parts.output):
            weight = layers_of(large)[-1].get_submodule(name).weight
            assert weight.eq(0).all()
            assert weight.grad.abs().sum() > 0


def test_zeroed_outputs_alone_would_be_no_identity():
    """Why gains are moved: a norm of a norm with gains is another vector."""
    small = backbone_of("bert")
    naive = deepen(small, 4, "stack")
    last = layers_of(naive)[-1]
    for linear in (last.attention.output.dense, last.output.dense):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    assert (hidden(naive) - hidden(small)).abs().max() > 0.1


def test_copies_go_where_their_papers_put_them():
    small = backbone_of("bert")
    marks = [layer.output.dense.weight for layer in layers_of(small)]

    def order(model):
        return [
            next(n for n, mark in enumerate(marks) if mark.equal(layer.output.dense.weight))
            for layer in layers_of(model)
        ]

    assert order(deepen(small, 6, "stack")) == [0, 1, 2, 0, 1, 2]
    assert order(deepen(small, 6, "interleave")) == [0, 0, 1, 1, 2, 2]
    assert order(keep_layers(small, 2)) == [0, 2]
    assert order(keep_layers(small, 1)) == [0]
    assert order(keep_layers(small, (0, 1))) == [0, 1]


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [(6, 12, [0, 2, 4, 7, 9, 11]), (3, 12, [0, 6, 11]), (3, 6, [0, 3, 5]), (2, 12, [0, 11]), (1, 12, [0])],
)
def test_kept_layers_are_spread(count, total, expected):
    assert spread(count, total) == expected


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_model_of_the_first_layers_computes_what_they_did(kind):
    small = backbone_of(kind)
    student = keep_layers(small, (0, 1))
    with torch.no_grad():
        states = small(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
    real = MASK.bool()
    expected = states[2][real]
    if kind == "modernbert":
        expected = small.final_norm(expected)
    torch.testing.assert_close(hidden(student), expected.detach())
    assert student.config.num_hidden_layers == 2


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize(("factor", "inner"), [(2, None), (3, 80), (1, 31)])
def test_a_wider_model_gives_the_same_numbers_again(kind, factor, inner):
    small = backbone_of(kind)
    large = widen(small, factor, inner=inner, seed=5)
    torch.testing.assert_close(hidden(large), hidden(small).repeat(1, factor), rtol=1e-9, atol=1e-9)
    assert large.config.hidden_size == 16 * factor
    assert large.config.num_attention_heads == 2 * factor
    width = layers_of(large)[0].get_submodule(FAMILIES[kind].layers.inner).out_features
    assert width == (inner or 24 * factor)
    single = widen(small.float(), factor, inner=inner, seed=5)
    one, other = hidden(single), hidden(small.float()).repeat(1, factor)
    assert (1 - torch.cosine_similarity(one, other)).abs().max() < 1e-5


def test_copies_of_a_unit_do_not_stay_alike():
    """Equal shares would give equal gradients; ours do not."""
    large = widen(backbone_of("bert"), 2, seed=1)
    target = torch.randn(2, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (large(input_ids=IDS, attention_mask=MASK).last_hidden_state - target).square().sum().backward()
    for name in ("attention.self.query", "intermediate.dense", "attention.output.dense"):
        gradient = layers_of(large)[0].get_submodule(name).weight.grad
        half = len(gradient) // 2
        assert (gradient[:half] - gradient[half:]).abs().max() > 1e-3 * gradient.abs().max()


def test_shares_sum_to_what_was_there():
    weight = torch.randn(5, 4, dtype=torch.float64)
    units = torch.tensor([0, 1, 2, 3, 0, 1, 0])
    shared = split_columns(weight, units, seeded(CPU, 0))
    back = torch.zeros_like(weight).index_add_(1, units, shared)
    torch.testing.assert_close(back, weight)
    torch.testing.assert_close(shared[:, 2:4], weight[:, 2:4], rtol=1e-12, atol=0)  # units of one copy


def test_the_head_of_a_wider_model_gives_the_same_logits():
    small = backbone_of("bert")
    head = VocabularyHead(small.config).double()
    torch.nn.init.normal_(head.bias)
    large = widen(small, 3)
    wide = widen_head(head, large.config, 3)
    ours = wide(hidden(large), large.embeddings.word_embeddings.weight)
    theirs = head(hidden(small), small.embeddings.word_embeddings.weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_what_cannot_be_exact_is_refused():
    small = backbone_of("bert")
    with pytest.raises(InputError, match="is a modernbert model; growth in width supports bert, roberta"):
        widen(backbone_of("modernbert"), 2)
    with pytest.raises(InputError, match="inner_size 20; expected whole multiples from 1 and at least 24"):
        widen(small, 1, inner=20)
    with pytest.raises(InputError, match="grow_width is 1 and inner_size 24, as the model has them"):
        widen(small, 1)
    with pytest.raises(InputError, match="grow_layers is 3; the model has 3 layers"):
        deepen(small, 3)
    with pytest.raises(InputError, match="depth_method is 'copy'; expected identity, stack, interleave"):
        deepen(small, 4, "copy")
    with pytest.raises(InputError, match="convolution"):
        deepen(backbone_of("deberta-v2", conv_kernel_size=3, conv_act="gelu"), 4)
    for kept in (0, 3, (), (1, 0), (0, 3), (0, 0), (0, 1, 2)):
        with pytest.raises(InputError, match="keep_layers is"):
            keep_layers(small, kept)
    with pytest.raises(InputError, match="keep layer 0"):
        keep_layers(backbone_of("modernbert"), (1, 2))
