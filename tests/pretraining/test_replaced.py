"""Replaced tokens: drawn from what a generator expects, from clusters that pass; heads that are left out."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from transformers import BertForMaskedLM

from indexes.errors import InputError
from pretraining.backbones import Backbone
from pretraining.drophead import dropped_heads, head_weights
from pretraining.generator import Generator, pieces_digest
from pretraining.masking import Vocabulary, seeded
from pretraining.terms.detection import clusters_of

CPU = torch.device("cpu")


@pytest.fixture
def vocabulary(tokenizer):
    return Vocabulary(tokenizer.mask_token_id, len(tokenizer), pieces_digest(tokenizer.get_vocab()))


def test_a_generator_draws_what_it_expects(base, batch, vocabulary):
    ids, mask = batch
    places = torch.zeros_like(ids, dtype=torch.bool)
    places[0, 2] = places[1, 1] = True
    filler, counts = Generator(str(base)), torch.zeros(vocabulary.size)
    model = BertForMaskedLM.from_pretrained(base).eval()
    masked = torch.where(places, vocabulary.mask_id, ids)
    with torch.no_grad():
        expected = model(input_ids=masked, attention_mask=mask).logits[0, 2].softmax(-1)
    generator = seeded(CPU, 0)
    many = 4000
    filled = filler.fill(
        ids[:1].expand(many, -1), mask[:1].expand(many, -1), places[:1].expand(many, -1), vocabulary, generator
    )
    assert torch.equal(filled.masked_fill(places[:1], 0), ids[:1].masked_fill(places[:1], 0).expand(many, -1))
    counts = filled[:, 2].bincount(minlength=vocabulary.size) / many
    assert (counts - expected).abs().max() < 0.02
    one, other = (filler.fill(ids, mask, places, vocabulary, seeded(CPU, 5)) for _ in range(2))
    assert torch.equal(one, other)


def test_generators_that_do_not_fit_are_refused(base, batch, vocabulary, tokenizer, tmp_path):
    ids, mask = batch
    with pytest.raises(InputError, match="has another vocabulary than the base"):
        Generator(str(base)).fill(ids, mask, mask.bool(), replace(vocabulary, digest="x"), seeded(CPU, 0))
    with pytest.raises(InputError, match="generator is ''; expected a masked-language model"):
        Generator("")
    headless = tmp_path / "headless"
    BertForMaskedLM.from_pretrained(base).bert.save_pretrained(headless)
    tokenizer.save_pretrained(headless)
    with pytest.raises(InputError, match="lacks [0-9]+ weights, such as cls.predictions"):
        Generator(str(headless))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    with pytest.raises(InputError, match="is no masked-language model"):
        Generator(str(broken))


def test_a_generator_is_neither_trained_nor_saved(make_model, base, batch):
    model = make_model({"replaced_lm": {"generator": str(base), "layers": 1}})
    inside = model.terms["replaced_lm"].generator._model
    before = {name: value.clone() for name, value in inside.state_dict().items()}
    model.loss(*batch, generator=seeded(CPU, 0))["total"].backward()
    assert all(value.grad is None for value in inside.parameters())
    assert all(torch.equal(value, before[name]) for name, value in inside.state_dict().items())
    assert not any("generator" in name for name in model.state_dict())


def test_the_decoder_begins_as_the_encoders_last_layers(make_model, base):
    options = {"generator": str(base), "layers": 1}
    model = make_model({"replaced_lm": options}, num_hidden_layers=2)
    mine, theirs = model.terms["replaced_lm"].decoder[0].state_dict(), model.backbone.encoder.layer[-1].state_dict()
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())
    assert model.untrained_heads == ["head"]
    mine["output.dense.weight"].zero_()
    assert theirs["output.dense.weight"].abs().sum() > 0, "a copy"
    deeper = make_model({"replaced_lm": {**options, "layers": 3}}, num_hidden_layers=2)
    assert deeper.untrained_heads == ["head", "replaced_lm"]


def test_clusters_that_pass_are_drawn_more_often(make_model, batch):
    options = {"source": "cluster", "clusters": 4, "ratio": 0.9}
    model = make_model({"replaced_detection": options}).train()
    term = model.terms["replaced_detection"]
    assert term.cluster.bincount(minlength=4).min() > 0
    before = term.passed.clone()
    drawn = model.sample(*batch, generator=seeded(CPU, 0))
    replaced = drawn.terms["replaced_detection"]
    changed = (replaced.ids != drawn.batch.ids) & drawn.batch.content
    with torch.no_grad():
        term.score.bias.fill_(-100.0)  # nothing is told from the text's own
    model(drawn)
    expected = before.clone()
    for old, new in zip(drawn.batch.ids[changed], replaced.ids[changed], strict=True):
        expected[term.cluster[old], term.cluster[new]] += 1
    assert torch.equal(term.passed, expected)
    with torch.no_grad():
        term.score.bias.fill_(100.0)
    model(drawn)
    assert torch.equal(term.passed, before), "and back, but never below 1"
    model(drawn)
    assert torch.equal(term.passed, before)
    model.eval()
    with torch.no_grad():
        term.score.bias.fill_(-100.0)
    model(drawn)
    assert torch.equal(term.passed, before), "measuring counts nothing"
    term.passed[:, 2] = 10**9
    ids = model.sample(*batch, generator=seeded(CPU, 1)).terms["replaced_detection"]
    assert (term.cluster[ids.ids[ids.places]] == 2).all()


def test_clusters_draw_every_word_of_theirs(make_model):
    model = make_model({"replaced_detection": {"source": "cluster", "clusters": 3}})
    term = model.terms["replaced_detection"]
    ids = torch.full((1, 20_000), 7)
    found = term._from_clusters(ids, torch.ones_like(ids, dtype=torch.bool), seeded(CPU, 0))
    counts = found[0].bincount(minlength=len(term.cluster)).double()
    sizes = term.cluster.bincount(minlength=3)
    expected = 20_000 / 3 / sizes[term.cluster]
    assert ((counts - expected).abs() < 6 * expected.sqrt()).all()


def test_no_cluster_is_empty():
    words = torch.zeros(30, 4)
    words[:3] = torch.eye(4)[:3]
    found = clusters_of(words, 8)
    assert found.bincount(minlength=8).min() > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"replaced_detection": {"source": "x"}}, "source is 'x'; expected random, generator, cluster"),
        ({"replaced_detection": {"generator": "x"}}, "source is 'random', which needs no generator"),
        ({"replaced_detection": {"source": "cluster", "clusters": 1}}, "clusters is 1; expected 2 to"),
        ({"replaced_lm": {"generator": ""}}, "generator is ''"),
        ({"replaced_lm": {"ratio": 0.6}}, "ratio is 0.6; expected a share above 0 and at most 0.5"),
        ({"denoising": {"deleted": 1.0}}, "deleted is 1.0; expected at least 0 and below 1"),
        ({"mirror_words": {"drophead": 1.0}}, "drophead is 1.0; expected at least 0 and below 1"),
        ({"mirror_characters": {"temperature": 0.0}}, "temperature is 0.0; expected above 0"),
    ],
)
def test_options_out_of_range_are_refused(make_model, given, message):
    with pytest.raises(InputError, match=message):
        make_model(given)


def test_heads_that_are_left_out_say_nothing(make_model, batch, monkeypatch):
    model = make_model("mlm", num_hidden_layers=2).double()
    weights = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    monkeypatch.setattr("pretraining.drophead.head_weights", lambda *_: weights)
    parts = Backbone(model.backbone)
    plain = parts.run(*batch)[0]
    with dropped_heads(parts, 0.5):
        dropped = parts.run(*batch)[0]
    assert torch.equal(parts.run(*batch)[0], plain), "only as long as it is entered"
    for text, each in enumerate(weights):
        other = copy.deepcopy(model.backbone)
        for layer in other.encoder.layer:
            layer.attention.output.dense.weight.data *= each.repeat_interleave(8)
        expected = other(input_ids=batch[0], attention_mask=batch[1]).last_hidden_state[text]
        torch.testing.assert_close(dropped[text], expected)
    with dropped_heads(parts, 0.0):
        assert torch.equal(parts.run(*batch)[0], plain)


def test_heads_keep_their_sum():
    torch.manual_seed(0)
    drawn = head_weights(2000, 4, 0.9, CPU)
    assert torch.allclose(drawn.sum(1), torch.tensor(4.0))
    assert (drawn > 0).any(1).all(), "one stays"
    share = (head_weights(5000, 12, 0.2, CPU) == 0).float().mean().item()
    assert share == pytest.approx(0.2, abs=0.01)


def test_heads_are_left_out_while_training_alone(make_model, batch):
    model = make_model({"mirror_words": {"drophead": 0.5}}, num_hidden_layers=2)
    drawn = model.sample(*batch, generator=seeded(CPU, 0))
    one, other = (model.train()(drawn)["total"].item() for _ in range(2))
    assert one != other
    one, other = (model.eval()(drawn)["total"].item() for _ in range(2))
    assert one == other
