"""What makes training cheaper and must not change what is learned: batches of like lengths, recomputed layers."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler

from pretraining import pretrain
from pretraining.masking import seeded
from pretraining.orders import GroupedByLength
from retrieval.orders import EpochOrder
from retrieval.trainer import recompute_layers

OPTIONS = dict(max_steps=6, batch_size=4, max_length=24, save_steps=2, learning_rate=1e-3, warmup_steps=1)


def test_every_row_comes_as_often_as_before():
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    order = EpochOrder(1000, 3000, 7)
    grouped = list(GroupedByLength(order, lengths, 8, 7))
    assert sorted(grouped) == sorted(order)
    assert grouped == list(GroupedByLength(EpochOrder(1000, 3000, 7), lengths, 8, 7))
    assert grouped != list(GroupedByLength(EpochOrder(1000, 3000, 8), lengths, 8, 8))
    padding = [
        sum(int(lengths[rows[at : at + 8]].max() * 8 - lengths[rows[at : at + 8]].sum()) for at in range(0, 3000, 8))
        for rows in (np.array(list(order)), np.array(grouped))
    ]
    assert padding[1] < 0.1 * padding[0]
    first = [int(lengths[grouped[at]]) for at in range(0, 512, 8)]
    assert first != sorted(first), "batches do not come by length"


def test_rows_that_are_counted_on_keep_their_lengths():
    lengths = np.array([5, 1, 9, 3])
    rows = list(GroupedByLength(SequentialSampler(range(8)), lengths, 2, 0))
    pairs = sorted(tuple(sorted(rows[at : at + 2])) for at in range(0, 8, 2))
    assert pairs == [(0, 4), (1, 5), (2, 6), (3, 7)]


@pytest.mark.parametrize(
    "objective", ["mirror", *(pytest.param(one, marks=pytest.mark.slow) for one in ("dupmae", "cocondenser"))]
)
def test_a_grouped_run_goes_on_with_the_same_bits(objective, base, corpus, tmp_path):
    options = {**OPTIONS, "objective": objective, "group_by_length": True, "base": base}
    pretrain(corpus, tmp_path / "whole", **options)

    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(corpus, tmp_path / "model", on_progress=stop, **options)
    assert pretrain(corpus, tmp_path / "model", **options).resumed_from == 4
    assert (tmp_path / "model/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_layers_that_are_computed_again_give_the_same_gradients(make_model, batch):
    found = []
    for again in (False, True):
        model = make_model("dupmae", num_hidden_layers=2, hidden_dropout_prob=0.1).train()
        calls = []
        for layer in model.backbone.encoder.layer:
            layer.attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        if again:
            recompute_layers(model.backbone)
        torch.manual_seed(3)
        model.loss(*batch, generator=seeded(torch.device("cpu"), 0))["total"].backward()
        assert len(calls) == (4 if again else 2)
        found.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


@pytest.mark.slow
def test_a_run_with_recomputed_layers_ends_with_the_same_bits(base, corpus, tmp_path):
    for name, again in (("plain", False), ("again", True)):
        pretrain(corpus, tmp_path / name, base=base, gradient_checkpointing=again, **OPTIONS)
    assert (tmp_path / "plain/model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_compiled_encoder_learns_the_same(base, corpus, tmp_path):
    """But for dropout, which compiled code draws otherwise. Compiling takes a minute."""
    still = shutil.copytree(base, tmp_path / "still")
    config = json.loads((still / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(config))
    for name, compiled in (("plain", False), ("compiled", True)):
        pretrain(corpus, tmp_path / name, base=still, compile=compiled, **OPTIONS)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "compiled"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)
