"""Soups: exact means, what is refused, folders that load everywhere, greedy choice that goes on after a kill."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import make_decoder
from fixtures import make_cross_encoder, make_model, make_sparse, random_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from indexes.checksums import verify
from indexes.errors import InputError
from indexes.manifest import open_manifest, read_json
from retrieval import Encoder, greedy_soup, interpolate, make_soup
from retrieval.cli import build_app
from retrieval.ingredients import StoredTensors
from retrieval.soup import slerp

TEXTS = random_texts(10, seed=1)
PROMPTS = {"query": "green ", "document": ""}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soups")
    return [str(make_model(folder / f"m{seed}", seed=seed, prompts=PROMPTS)) for seed in range(3)]


def tensors(folder) -> dict:
    return load_file(Path(folder) / "model.safetensors")


def changed(model, target: Path, name: str, change) -> str:
    """A copy of a model folder, one of its JSON files changed."""
    shutil.copytree(model, target)
    value = json.loads((target / name).read_text())
    (target / name).write_text(json.dumps(change(value) or value))
    return str(target)


def random_states(count, dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    sizes = {"a.weight": (5, 3), "a.bias": (3,), "scale": ()}
    states = [{name: torch.randn(size, generator=rng).to(dtype) for name, size in sizes.items()} for _ in range(count)]
    return [{**state, "positions": torch.arange(4)} for state in states]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(-64, 64), min_size=2, max_size=4).filter(lambda found: sum(found) != 0),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_interpolate_is_the_float64_mean_rounded_once(parts, dtype):
    weights = [part / sum(parts) for part in parts]
    states = random_states(len(parts), dtype)
    found = interpolate(states, weights)
    for name in ("a.weight", "a.bias", "scale"):
        values = np.stack([state[name].double().numpy() for state in states])
        right = torch.from_numpy(np.asarray(np.tensordot(weights, values, 1)))
        assert found[name].dtype == dtype
        torch.testing.assert_close(found[name], right.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-12)
    assert torch.equal(found["positions"], torch.arange(4))


def test_interpolate_is_exact_where_it_can_be():
    one, other, _ = random_states(3)
    half = interpolate([one, other], [0.5, 0.5])
    for name in ("a.weight", "a.bias"):
        assert torch.equal(half[name], ((one[name].double() + other[name].double()) / 2).float())
        assert torch.equal(interpolate([one, other], [1, 0])[name], one[name])
    broken = {**other, "a.bias": torch.full((3,), torch.nan)}
    assert torch.equal(interpolate([one, broken], [1, 0])["a.bias"], one["a.bias"])
    minus = interpolate([{"a": torch.tensor([-0.0])}] * 2, [0.25, 0.75])["a"]
    assert torch.signbit(minus).all(), "bits, not only values"
    third = interpolate([one] * 3, [1 / 3] * 3)
    assert all(torch.equal(third[name], one[name]) for name in one)
    mixed = interpolate(
        [
            one,
            {name: value.double() for name, value in other.items() if value.ndim}
            | {"scale": other["scale"], "positions": other["positions"]},
        ],
        [0.25, 0.75],
    )
    assert mixed["a.bias"].dtype == torch.float32
    aliased = interpolate([one, other], [1, 0])
    aliased["a.bias"].zero_()
    aliased["positions"].zero_()
    assert one["a.bias"].abs().sum() > 0
    assert one["positions"].sum() > 0


def test_interpolate_takes_states_that_train():
    layer = torch.nn.Linear(2, 2)
    found = interpolate([layer.state_dict(), dict(layer.named_parameters())], [0.5, 0.5])
    assert torch.equal(found["weight"], layer.weight)
    assert not found["weight"].requires_grad


@pytest.mark.parametrize(
    ("change", "weights", "message"),
    [
        ({}, [1], "1 weights are given for 2 models; expected one for each"),
        ({}, [0.5, 0.6], "the weights' sum is 1.1; expected 1"),
        ({}, [float("nan"), 1], "expected finite numbers"),
        ({"a.bias": torch.zeros(4)}, [0.5, 0.5], r"a.bias has shapes \(3,\) ≠ \(4,\)"),
        ({"b": torch.zeros(4)}, [0.5, 0.5], "b is in one only"),
        (
            {"positions": torch.zeros(4, dtype=int)},
            [0.5, 0.5],
            "positions holds whole numbers .* that differ",
        ),
        ({"positions": torch.zeros(4)}, [0.5, 0.5], "positions has types torch.int64 ≠ torch.float32"),
    ],
)
def test_interpolate_refuses(change, weights, message):
    one, other = random_states(2)
    with pytest.raises(InputError, match=message):
        interpolate([one, {**other, **change}], weights)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1), st.integers(2, 20))
def test_slerp_equals_a_turn_in_the_plane_of_both(seed, share, size):
    """The oracle turns the first vector towards the second in an orthonormal basis of their plane."""
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((2, size))
    first, second = first / np.linalg.norm(first), second / np.linalg.norm(second)
    angle = np.arccos(np.clip(first @ second, -1, 1))
    across = second - (first @ second) * first
    if np.linalg.norm(across) < 1e-3:
        return
    across /= np.linalg.norm(across)
    right = np.cos(share * angle) * first + np.sin(share * angle) * across
    found = slerp(torch.from_numpy(first), torch.from_numpy(second), share)
    np.testing.assert_allclose(found.numpy(), right, atol=1e-9)
    assert abs(float(found.norm()) - 1) < 1e-9
    longer = slerp(torch.from_numpy(3 * first), torch.from_numpy(3 * second), share)
    np.testing.assert_allclose(longer.numpy(), 3 * right, atol=1e-8)


def test_slerp_at_its_ends_and_of_vectors_without_an_angle():
    one, other = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).unbind()
    assert torch.equal(slerp(one, other, 0).float(), one)
    assert torch.equal(slerp(one, other, 1).float(), other)
    for parallel in (one * 2, -one, torch.zeros(4, 3)):
        found = slerp(one, parallel, 0.25)
        torch.testing.assert_close(found, 0.75 * one.double() + 0.25 * parallel.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["linear", "slerp", "task"])
def test_folders_are_what_the_formulas_give(tmp_path, models, method):
    from sentence_transformers import SentenceTransformer

    first, second, base = map(tensors, models)
    options = {"base": models[2]} if method == "task" else {}
    weights = [0.5, 0.25] if method == "task" else [0.75, 0.25]
    result = make_soup(models[:2], tmp_path / "soup", weights=weights, method=method, **options)
    made = tensors(tmp_path / "soup")
    assert set(made) == set(first)
    for name, one in first.items():
        one, other, start = one.double(), second[name].double(), base[name].double()
        right = {
            "linear": 0.75 * one + 0.25 * other,
            "slerp": slerp(one, other, 0.25),
            "task": start + 0.5 * (one - start) + 0.25 * (other - start),
        }[method]
        torch.testing.assert_close(made[name], right.float(), rtol=1e-6, atol=1e-7)
    encoder = Encoder.load(str(tmp_path / "soup"))
    theirs = SentenceTransformer(str(tmp_path / "soup"), device="cpu")
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), theirs.encode_query(TEXTS), atol=1e-5)
    own = Encoder.load(models[0])
    assert {name: value for name, value in encoder.fields.items() if name != "weights"} == {
        name: value for name, value in own.fields.items() if name != "weights"
    }
    assert np.abs(encoder.encode_queries(TEXTS) - own.encode_queries(TEXTS)).max() > 1e-3
    card = read_json(tmp_path / "soup" / "retrokit.json")
    assert card == result.card
    assert card["models"] == ([models[2], *models[:2]] if method == "task" else models[:2])
    assert card["configuration"]["weights"] == ([0.25, 0.5, 0.25] if method == "task" else weights)
    assert len(set(card["configuration"]["models"])) == len(card["models"])
    verify(tmp_path / "soup", open_manifest(tmp_path / "soup", "model"))


def test_all_of_one_model_is_that_model(tmp_path, models):
    make_soup(models[:2], tmp_path / "soup", weights=[1, 0])
    assert Encoder.load(str(tmp_path / "soup")).fingerprint == Encoder.load(models[0]).fingerprint


def test_once_made_it_is_made_no_more_and_nothing_else_is_lost(tmp_path, models):
    target = tmp_path / "soup"
    first = make_soup(models[:2], target)
    assert not first.already_complete
    before = (target / "model.safetensors").stat().st_mtime_ns
    assert make_soup(models[:2], target).already_complete
    assert make_soup(models[:2], target, weights=[0.5, 0.5]).already_complete
    with pytest.raises(InputError, match="was made otherwise .weights: .0.25, 0.75. ≠ .0.5, 0.5."):
        make_soup(models[:2], target, weights=[0.25, 0.75])
    assert (target / "model.safetensors").stat().st_mtime_ns == before
    assert not make_soup(models[:2], target, weights=[0.25, 0.75], overwrite=True).already_complete
    (target / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="damaged|bytes"):
        make_soup(models[:2], target, weights=[0.25, 0.75])
    other = tmp_path / "mine"
    other.mkdir()
    (other / "precious.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError):
            make_soup(models[:2], other, overwrite=overwrite)
    with pytest.raises(InputError, match="is or holds the input"):
        make_soup(models[:2], models[0], overwrite=True)
    assert (other / "precious.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "soup"]


def test_what_is_interrupted_leaves_nothing_behind(tmp_path, models):
    def cut(done, total):
        assert total == len(tensors(models[0]))
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_soup(models[:2], tmp_path / "soup", on_progress=cut)
    assert not list(tmp_path.iterdir())


def test_models_of_another_kind_are_refused_by_their_first_difference(tmp_path, models):
    def refused(other, message):
        with pytest.raises(InputError, match=message):
            make_soup([models[0], other], tmp_path / "soup")
        assert not (tmp_path / "soup").exists()

    config = "config.json"
    refused(make_model(tmp_path / "cls", pooling="cls", prompts=PROMPTS), "pooling: 'mean' ≠ 'cls'")
    refused(make_model(tmp_path / "raw", normalize=False, prompts=PROMPTS), "modules: .* ≠ 'Transformer → Pooling'")
    refused(make_model(tmp_path / "bare"), "prompt 'query': 'green ' ≠ None")
    short = changed(models[1], tmp_path / "s", "tokenizer_config.json", lambda one: one.update(model_max_length=16))
    refused(short, "max_length: 32 ≠ 16")
    refused(
        changed(models[1], tmp_path / "act", config, lambda one: one.update(hidden_act="relu")),
        "model.hidden_act: 'gelu' ≠ 'relu'",
    )
    refused(
        changed(models[1], tmp_path / "causal", config, lambda one: one.update(is_causal=False)),
        "model.is_causal: None ≠ False",
    )

    def swap(tokenizer):
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["river"], vocabulary["stone"] = vocabulary["stone"], vocabulary["river"]

    refused(changed(models[1], tmp_path / "v", "tokenizer.json", swap), "vocabulary: token 7 is 'river' ≠ 'stone'")
    cased = changed(models[1], tmp_path / "cased", "tokenizer_config.json", lambda one: one.update(do_lower_case=False))
    refused(cased, "tokenizer: another normalizer")
    refused(make_decoder(tmp_path / "qwen", prompts=PROMPTS), "pooling: 'mean' ≠ 'lasttoken'")

    def weights(name, change):
        shutil.copytree(models[1], tmp_path / name)
        state = tensors(models[1])
        change(state)
        save_file(state, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        return tmp_path / name

    query = "encoder.layer.0.attention.self.query.weight"
    refused(weights("less", lambda state: state.pop(query)), f"tensor {query} is in one only")
    refused(
        weights("wide", lambda state: state.update({query: torch.zeros(2, 2)})),
        rf"shape of {query}: \(32, 32\) ≠ \(2, 2\)",
    )


def test_settings_beside_the_weights_of_other_kinds_must_be_equal(tmp_path):
    cross, sparse = make_cross_encoder(tmp_path / "cross"), make_sparse(tmp_path / "sparse")
    cases = [
        (cross, "config_sentence_transformers.json", {"prompts": {"query": "ask "}}, "prompts: None ≠"),
        (cross, "tokenizer_config.json", {"model_max_length": 16}, "model_max_length: "),
        (sparse, "config_sentence_transformers.json", {"prompts": {"query": "river "}}, "prompts"),
    ]
    for number, (model, file, more, said) in enumerate(cases):
        place = tmp_path / f"other{number}"
        if (Path(model) / file).is_file():
            other = changed(model, place, file, lambda value, more=more: {**value, **more})
        else:
            other = str(shutil.copytree(model, place))
            (place / file).write_text(json.dumps(more))
        with pytest.raises(InputError, match=said):
            make_soup([str(model), other], tmp_path / "out")


def test_an_unused_pooler_may_be_lacking(tmp_path, models):
    shutil.copytree(models[1], tmp_path / "headless")
    state = {name: value for name, value in tensors(models[1]).items() if "pooler" not in name}
    save_file(state, tmp_path / "headless" / "model.safetensors", metadata={"format": "pt"})
    make_soup([models[0], tmp_path / "headless"], tmp_path / "soup")
    made, first = tensors(tmp_path / "soup"), tensors(models[0])
    assert torch.equal(made["pooler.dense.weight"], first["pooler.dense.weight"])
    make_soup([tmp_path / "headless", models[0]], tmp_path / "other")
    assert "pooler.dense.weight" not in tensors(tmp_path / "other")
    both = [Encoder.load(str(tmp_path / name)).encode_documents(TEXTS) for name in ("soup", "other")]
    np.testing.assert_allclose(*both, atol=1e-6)


def test_what_is_no_model_is_refused(tmp_path, models):
    for call, message in (
        (lambda: make_soup(models[:1], tmp_path / "s"), "1 models are given; expected at least 2"),
        (lambda: make_soup(models, tmp_path / "s", method="slerp"), "3 models are given; slerp takes two"),
        (lambda: make_soup(models, tmp_path / "s", method="magic"), "method is 'magic'; expected one of linear, slerp"),
        (lambda: make_soup(models, tmp_path / "s", method="task"), "method task takes a base: give base"),
        (lambda: make_soup(models, tmp_path / "s", base=models[0]), "method linear takes no base"),
        (lambda: make_soup(models[:1], tmp_path / "s", base=models[2], method="task"), "method task needs weights"),
        (lambda: make_soup(models[:2], tmp_path / "s", weights=[1, 1]), "the weights' sum is 2"),
        (lambda: make_soup([models[0], tmp_path], tmp_path / "s"), "is no model folder"),
        (lambda: make_soup([models[0], "./nowhere"], tmp_path / "s"), "no such model folder"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="is an adapter without its base; merge it"):
        make_soup([models[0], tmp_path / "adapter"], tmp_path / "s")
    shutil.copytree(models[1], tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(InputError, match="has weights as pickles only"):
        make_soup([models[0], tmp_path / "pickled"], tmp_path / "s")
    shutil.copytree(models[1], tmp_path / "cut")
    whole = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[:2000])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        make_soup([models[0], tmp_path / "cut"], tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_every_kind_of_model_folder(tmp_path):
    """A dense layer, shards, SPLADE, a cross-encoder, a decoder that attends in both directions."""
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    from retrieval.loading import load_sentence_transformer
    from retrieval.sparse import SparseEncoder

    def dense(seed):
        model = SentenceTransformer(str(make_model(tmp_path / f"plain{seed}", seed=seed)), device="cpu")
        model.insert(2, Dense(32, 8, activation_function=torch.nn.Identity()))
        model.save_pretrained(str(tmp_path / f"dense{seed}"))
        model[0].auto_model.save_pretrained(tmp_path / f"dense{seed}", max_shard_size="30KB")
        (tmp_path / f"dense{seed}" / "model.safetensors").unlink()
        return tmp_path / f"dense{seed}"

    parts = [dense(seed) for seed in range(2)]
    assert len(StoredTensors(parts[0]).files) > 1
    make_soup(parts, tmp_path / "soup")
    found, state = Encoder.load(str(tmp_path / "soup")), [Encoder.load(str(part)).backend.module for part in parts]
    right = interpolate([one.state_dict() for one in state], [0.5, 0.5])
    made = found.backend.module.state_dict()
    assert all(torch.equal(made[name], right[name]) for name in right)
    assert found.dim == 8

    sparse = [make_sparse(tmp_path / f"sparse{seed}", seed=seed) for seed in range(2)]
    make_soup(sparse, tmp_path / "sparse-soup")
    assert SparseEncoder.load(str(tmp_path / "sparse-soup"), device="cpu").encode_queries(["river"])
    with pytest.raises(InputError, match="modules: 'Transformer → Pooling"):
        make_soup([parts[0], sparse[0]], tmp_path / "never")

    crosses = [make_cross_encoder(tmp_path / f"cross{seed}", seed=seed) for seed in range(2)]
    make_soup(crosses, tmp_path / "cross-soup")
    assert CrossEncoder(str(tmp_path / "cross-soup"), device="cpu").predict([("river", "stone")]).shape == (1,)

    decoder = str(make_decoder(tmp_path / "qwen"))
    load_sentence_transformer(decoder, attention="bidirectional").save_pretrained(str(tmp_path / "both"))
    make_soup([tmp_path / "both", tmp_path / "both"], tmp_path / "decoder-soup")
    assert Encoder.load(str(tmp_path / "decoder-soup")).fields["attention"] == "bidirectional"
    with pytest.raises(InputError, match="model.is_causal"):
        make_soup([tmp_path / "both", decoder], tmp_path / "never")


def likeness(target):
    """A score: how near an encoder's first weights are to a target's."""
    right = Encoder.load(str(target)).backend.module.state_dict()["backbone.embeddings.word_embeddings.weight"]

    def score(encoder):
        found = encoder.backend.module.state_dict()["backbone.embeddings.word_embeddings.weight"]
        return -float((found - right).norm())

    return score


def test_the_greedy_soup_takes_what_helps(tmp_path, models):
    make_soup(models[:2], tmp_path / "goal", weights=[0.5, 0.5])
    order = [models[2], models[1], models[0]]
    notes = []
    result = greedy_soup(order, likeness(tmp_path / "goal"), tmp_path / "soup", measure="near", on_note=notes.append)
    assert result.card["chosen"] == [models[1], models[0]]
    assert result.card["score"] == 0 == result.card["scores"]["1+2"]
    assert set(result.card["scores"]) == {"0", "1", "2", "1+2", "0+1+2"}
    assert len(notes) == 5
    for name, value in tensors(tmp_path / "goal").items():
        assert torch.equal(tensors(tmp_path / "soup")[name], value)
    again = greedy_soup(order, None, tmp_path / "soup", measure="near")
    assert again.already_complete
    assert again.card == result.card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["goal", "soup"]
    with pytest.raises(InputError, match="was made otherwise .measure: far ≠ near"):
        greedy_soup(order, None, tmp_path / "soup", measure="far")


def test_a_greedy_soup_may_be_one_model_and_a_tie_joins(tmp_path, models):
    alone = greedy_soup(models, likeness(models[1]), tmp_path / "alone", measure="near")
    assert alone.card["chosen"] == [models[1]]
    assert Encoder.load(str(tmp_path / "alone")).fingerprint == Encoder.load(models[1]).fingerprint
    everyone = greedy_soup(models, lambda encoder: 1.0, tmp_path / "all", measure="equal")
    assert everyone.card["chosen"] == models


def test_a_killed_greedy_soup_goes_on(tmp_path, models):
    score = likeness(models[1])
    asked = []

    def cut(encoder):
        asked.append(score(encoder))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return asked[-1]

    with pytest.raises(KeyboardInterrupt):
        greedy_soup(models, cut, tmp_path / "soup", measure="near")
    with pytest.raises(InputError, match="belongs to another soup .measure: far ≠ near"):
        greedy_soup(models, score, tmp_path / "soup", measure="far")
    result = greedy_soup(models, cut, tmp_path / "soup", measure="near")
    assert len(asked) == 3 + len(result.card["scores"]) - 2, "two scores were kept"
    whole = greedy_soup(models, score, tmp_path / "whole", measure="near")
    assert whole.card == result.card
    with pytest.raises(InputError, match="near is nan for the mean of models 0; expected a finite number"):
        greedy_soup(models, lambda encoder: float("nan"), tmp_path / "nan", measure="near")
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds notes.txt and belongs to no soup"):
        greedy_soup(models, score, tmp_path / "x", measure="near")


def test_from_the_command_line(tmp_path, models):
    def run(*arguments):
        return CliRunner().invoke(build_app(), ["soup", *arguments])

    done = run(
        *models[:2], "--weights", "0.7,0.3", "--output", str(tmp_path / "soup"), "--json", str(tmp_path / "r.json")
    )
    assert done.exit_code == 0, done.output
    assert f"0.7 · {models[0]} + 0.3 · {models[1]} (linear)" in done.output
    assert read_json(tmp_path / "r.json")["configuration"]["weights"] == [0.7, 0.3]
    again = run(*models[:2], "--weights", "0.7,0.3", "--output", str(tmp_path / "soup"))
    assert again.exit_code == 0
    assert "is complete already" in again.output
    (tmp_path / "task.yaml").write_text(f"method: task\nbase: {models[2]}\nweights: '-0.5'\n")
    task = run(models[0], "--config", str(tmp_path / "task.yaml"), "--output", str(tmp_path / "task"))
    assert task.exit_code == 0, task.output
    assert f"1.5 · {models[2]} + -0.5 · {models[0]} (task)" in task.output
    for arguments, message in (
        ((*models[:2], "--weights", "half"), "--weights is 'half'; expected numbers separated by commas"),
        ((models[0],), "1 models are given"),
    ):
        failed = run(*arguments, "--output", str(tmp_path / "never"))
        assert (failed.exit_code, (tmp_path / "never").exists()) == (2, False)
        assert message in failed.output


@pytest.mark.slow
def test_the_packaged_model_and_a_copy_in_todays_layout(tmp_path):
    """Written by another version of sentence-transformers, without a pooler's weights: 5 s."""
    from retrieval.loading import load_sentence_transformer

    load_sentence_transformer("all-MiniLM-L6-v2").save_pretrained(str(tmp_path / "copy"))
    make_soup(["all-MiniLM-L6-v2", tmp_path / "copy"], tmp_path / "soup", weights=[0.25, 0.75])
    packaged, made = Encoder.load("all-MiniLM-L6-v2"), Encoder.load(str(tmp_path / "soup"))
    assert made.fingerprint == packaged.fingerprint
