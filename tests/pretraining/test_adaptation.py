"""Adaptation: what is learned and held out, the checkpoint that is kept, resume, and the folder that comes out."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from fixtures import WORDS, make_model
from safetensors.torch import load_file

from indexes.errors import InputError
from pretraining.adaptation import AdaptConfig, adapt, hold_out
from pretraining.contrastive import DistinctOrder, HeldOut, held_out_ndcg
from retrieval.encoder import Encoder
from retrieval.pairs import Pair

OPTIONS = dict(steps=6, batch_size=8, objective_texts=2, max_length=24, checks=3, held_out=20, learning_rate=1e-3)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Documents named by the two words they hold; queries are the same words in upper-case pieces of other words."""
    folder = tmp_path_factory.mktemp("task")
    names = [(one, other) for one in WORDS for other in WORDS if one < other]
    rng = np.random.default_rng(0)
    lines, pairs = [], []
    for one, other in names:
        noise = " ".join(rng.choice(WORDS, size=6))
        lines.append(json.dumps({"_id": f"{one}-{other}", "text": f"{one} {other} {noise} {one} {other}"}))
        pairs.append(json.dumps({"query": f"{other} {one}", "document": f"{one}-{other}"}))
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "pairs.jsonl").write_text("\n".join(pairs) + "\n")
    return folder


def run(task, output, model_folder, **changes):
    options = {"pairs": task / "pairs.jsonl", "encoder": str(model_folder), **OPTIONS, **changes}
    return adapt(task / "corpus.jsonl", output, **options)


def test_it_learns_and_the_best_checkpoint_is_what_comes_out(task, tmp_path, model_folder):
    from sentence_transformers import SentenceTransformer

    result = run(task, tmp_path / "out", model_folder, steps=24)
    checks = {int(step): value for step, value in result.card["checks"].items()}
    assert set(checks) == {0, 8, 16, 24}
    assert checks[result.card["chosen"]] == max(checks.values()) > checks[0]
    encoder = Encoder.load(str(tmp_path / "out"))
    plain = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(encoder.encode_queries(WORDS), plain.encode(WORDS), atol=1e-5)
    assert encoder.settings.max_length == Encoder.load(str(model_folder)).settings.max_length == 32
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert np.mean([line["contrastive"] for line in lines[-6:]]) < np.mean([line["contrastive"] for line in lines[:6]])
    assert not (tmp_path / "out.partial").exists()
    assert run(task, tmp_path / "out", model_folder, steps=24).already_complete
    with pytest.raises(InputError, match=r"made otherwise \(steps: 25 ≠ 24\)"):
        run(task, tmp_path / "out", model_folder, steps=25)


def test_never_worse_than_the_start(task, tmp_path, model_folder, monkeypatch):
    """Where every check ranks worse than the start did, the start is kept, to the last bit."""
    values = iter([0.9, 0.5, 0.8, 0.9])
    monkeypatch.setattr("pretraining.contrastive.held_out_ndcg", lambda *_: next(values))
    result = run(task, tmp_path / "out", model_folder, learning_rate=0.5)
    assert result.card["chosen"] == 0
    texts = ["river stone", "cat"]
    ours, base = (Encoder.load(str(folder)).encode_documents(texts) for folder in (tmp_path / "out", model_folder))
    np.testing.assert_array_equal(ours, base)


@pytest.mark.parametrize("objective", [None, "dupmae", {"encoder_mlm": 1.0}])
def test_a_killed_run_ends_like_one_left_alone(task, tmp_path, model_folder, objective):
    class Killed(Exception):
        pass

    def kill_at_three(done, total):
        if done == 3:
            raise Killed

    left_alone = run(task, tmp_path / "alone", model_folder, objective=objective)
    with pytest.raises(Killed):
        run(task, tmp_path / "killed", model_folder, objective=objective, on_progress=kill_at_three)
    assert (tmp_path / "killed.partial" / "checkpoints" / "checkpoint-2" / "complete.json").is_file()
    notes = []
    resumed = run(task, tmp_path / "killed", model_folder, objective=objective, on_note=notes.append)
    assert "going on from step 2 of 6" in notes
    assert resumed.card["checks"] == left_alone.card["checks"]
    files = ["model.safetensors", *(["heads/model.safetensors"] if objective else [])]
    for name in files:
        one, other = (load_file(tmp_path / folder / name) for folder in ("alone", "killed"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    logs = [(tmp_path / folder / "log.jsonl").read_text() for folder in ("alone", "killed")]
    assert logs[0] == logs[1]
    assert ("decoder_mlm" in logs[0]) == (objective == "dupmae")


def test_the_objective_changes_what_is_learned(task, tmp_path, model_folder):
    for name, objective in (("without", None), ("with", "dupmae")):
        run(task, tmp_path / name, model_folder, objective=objective, checks=1, learning_rate=1e-4)
    lines = {
        name: [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("without", "with")
    }
    assert lines["without"][0]["contrastive"] == lines["with"][0]["contrastive"]
    assert lines["without"][-1]["contrastive"] != lines["with"][-1]["contrastive"]
    first = lines["with"][0]
    terms = first["encoder_mlm"] + first["decoder_mlm"] + 0.1 * first["bag_of_words"]
    assert first["total"] == pytest.approx(first["contrastive"] + 0.1 * terms, rel=1e-5)


def test_another_run_over_the_same_working_state_is_refused(task, tmp_path, model_folder):
    class Killed(Exception):
        pass

    def kill(done, total):
        raise Killed

    with pytest.raises(Killed):
        run(task, tmp_path / "out", model_folder, on_progress=kill)
    with pytest.raises(InputError, match=r"belongs to another run \(learning_rate: 0.002 ≠ 0.001\)"):
        run(task, tmp_path / "out", model_folder, learning_rate=2e-3)
    assert (tmp_path / "out.partial" / "run.json").is_file()


class Killed(Exception):
    pass


def kill_at(step):
    def on_progress(done, total):
        if done == step:
            raise Killed

    return on_progress


def same_weights(one, other):
    found = [load_file(folder / "model.safetensors") for folder in (one, other)]
    return all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_terms_are_read_once_and_a_killed_run_ends_alike(task, tmp_path, model_folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = {"pairs": None, "samplers": ("terms",), "terms_temperature": 0.2}
    notes = []
    alone = run(task, tmp_path / "alone", model_folder, **options, on_note=notes.append)
    assert "reading 120 texts once for what the encoder attends to" in notes
    assert alone.card["configuration"]["terms_temperature"] == "0.2"
    monkeypatch.setattr("pretraining.attended_words.first_token_attention", None)  # it would be called to read again
    with pytest.raises(Killed):
        run(task, tmp_path / "killed", model_folder, **options, on_progress=kill_at(3))
    run(task, tmp_path / "killed", model_folder, **options)
    assert same_weights(tmp_path / "alone", tmp_path / "killed")
    assert run(task, tmp_path / "alone", model_folder, **options).already_complete
    run(task, tmp_path / "hotter", model_folder, **{**options, "terms_temperature": 2.0})
    assert not same_weights(tmp_path / "alone", tmp_path / "hotter")
    with pytest.raises(InputError, match=r"made otherwise \(pairs: .*terms_temperature: 0.05 ≠ 0.2|terms_temperature"):
        run(task, tmp_path / "alone", model_folder, **{**options, "terms_temperature": None})


def test_another_encoder_may_say_what_words_are_drawn(task, tmp_path, model_folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    other = make_model(tmp_path / "other", seed=5)
    options = {"pairs": None, "samplers": ("terms",)}
    one = run(task, tmp_path / "one", model_folder, **options).card["configuration"]
    two = run(task, tmp_path / "two", model_folder, **options, terms_model=str(other)).card["configuration"]
    assert one["encoder"] == two["encoder"] == one["terms_model"] != two["terms_model"]
    assert one["pairs"] != two["pairs"]


def test_links_are_learned_from(tmp_path, model_folder):
    rng = np.random.default_rng(0)
    lines = []
    for number in range(40):
        text = " ".join(f"{' '.join(rng.choice(WORDS, size=6)).capitalize()}." for _ in range(8))
        links = [f"p{one}" for one in rng.choice(40, size=3)] + ["gone"]
        lines.append(json.dumps({"_id": f"p{number}", "text": text, **({"links": links} if number % 4 else {})}))
    (tmp_path / "pages.jsonl").write_text("\n".join(lines) + "\n")
    notes, options = [], dict(encoder=str(model_folder), samplers=("links",), **OPTIONS)
    result = adapt(tmp_path / "pages.jsonl", tmp_path / "out", on_note=notes.append, **options)
    assert any(line.startswith("links left out: 30 to unknown ids, ") for line in notes)
    assert set(result.card["checks"]) == {"0", "2", "4", "6"}
    assert Encoder.load(str(tmp_path / "out")).encode_queries(WORDS).shape == (16, 32)
    assert adapt(tmp_path / "pages.jsonl", tmp_path / "out", **options).already_complete
    lines[1] = lines[1].replace('"gone"', '"p2"')
    (tmp_path / "pages.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"made otherwise \(pairs: "):
        adapt(tmp_path / "pages.jsonl", tmp_path / "out", **options)


def test_held_out_documents_are_never_learned_from():
    pairs = [Pair(f"q{number}{part}", f"text {number}", f"d{number}") for number in range(50) for part in "ab"]
    learned, held_out = hold_out(pairs, AdaptConfig("e", held_out=10))
    assert len(held_out.queries) == 10
    assert len(held_out.texts) == 30
    documents = {pair.document for pair in learned}
    assert len(documents) == 40
    assert len(learned) == 80
    for query, text in zip(held_out.queries, held_out.texts, strict=False):
        assert f"d{text.split()[1]}" not in documents
        assert query.startswith(f"q{text.split()[1]}")
    assert len(hold_out(pairs[:20], AdaptConfig("e", held_out=200))[1].queries) == 2


def test_batches_hold_no_document_twice_and_every_pair_comes():
    pairs = [Pair(f"q{number}", "t", f"d{number % 7}") for number in range(35)]
    order = list(DistinctOrder(pairs, total=35, seed=0, batch_size=5))
    for start in range(0, 35, 5):
        assert len({pairs[row].document for row in order[start : start + 5]}) == 5
    assert sorted(order) == list(range(35))
    assert order != list(DistinctOrder(pairs, total=35, seed=1, batch_size=5))


def test_every_batch_is_full_however_uneven_the_documents():
    pairs = [Pair(f"q{number}", "t", "many") for number in range(100)] + [Pair("q", "t", f"d{n}") for n in range(4)]
    order = list(DistinctOrder(pairs, total=60, seed=0, batch_size=5))
    assert len(order) == 60
    for start in range(0, 60, 5):
        assert len({pairs[row].document for row in order[start : start + 5]}) == 5
    with pytest.raises(InputError, match="5 documents have a pair; a batch needs 6"):
        DistinctOrder(pairs, total=60, seed=0, batch_size=6)


def test_another_base_under_the_same_name_is_noticed(task, tmp_path, model_folder):
    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    run(task, tmp_path / "out", base, steps=2, checks=1)
    shutil.rmtree(base)
    make_model(base, seed=3)
    with pytest.raises(InputError, match=r"made otherwise \(encoder: "):
        run(task, tmp_path / "out", base, steps=2, checks=1)


def test_a_damaged_result_is_not_complete(task, tmp_path, model_folder):
    run(task, tmp_path / "out", model_folder, steps=2, checks=1)
    os.truncate(tmp_path / "out" / "model.safetensors", 100)
    with pytest.raises(InputError, match=r"model.safetensors has 100 bytes"):
        run(task, tmp_path / "out", model_folder, steps=2, checks=1)
    assert not run(task, tmp_path / "out", model_folder, steps=2, checks=1, overwrite=True).already_complete
    assert run(task, tmp_path / "out", model_folder, steps=2, checks=1).already_complete


def test_prompts_are_learned_with_and_kept(task, tmp_path):
    prompts = {"query": "river ", "passage": "stone "}
    folder = make_model(tmp_path / "prompted", prompts=prompts)
    run(task, tmp_path / "out", folder, steps=2, checks=1)
    settings = Encoder.load(str(tmp_path / "out")).settings
    assert settings.prompts == {"query": "river ", "document": "stone "}


def test_held_out_ndcg_by_hand():
    class Fake:
        training = False

        def train(self, mode):
            assert mode is False

        def encode_query(self, texts, **_):
            return torch.eye(3)[: len(texts)]

        def encode_document(self, texts, **_):
            # Query 0 finds its own first, query 1 has one before it, query 2 has two.
            return torch.tensor([[0.9, 0.8, 0.7], [0.1, 0.5, 0.9], [0.1, 0.2, 0.6]])

    value = held_out_ndcg(Fake(), HeldOut(["a", "b", "c"], ["x", "y", "z"]))
    assert value == pytest.approx((1 + 1 / np.log2(3) + 1 / np.log2(4)) / 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"objective_texts": 9, "objective": "dupmae"}, "objective_texts is 9; expected 1 to 8, the batch_size"),
        ({"temperature": 0}, "temperature is 0; expected above 0"),
        ({"precision": "int8"}, "precision is 'int8'"),
        ({"samplers": ("magic",)}, "sampler 'magic' is unknown"),
        ({"samplers": ("links",)}, "none of 120 documents links to another one"),
        ({"terms_temperature": 0.1}, "terms_temperature is an option of the sampler terms, which is not used"),
        ({"terms_model": "other", "samplers": ("span",)}, "terms_model is an option of the sampler terms"),
        ({"terms_temperature": 0.0, "samplers": ("terms",)}, "the temperature of word sets is 0.0; expected above 0"),
        ({"objective": "magic"}, "objective is 'magic'; expected mlm, bowdpr, retromae"),
        ({"objective": "mirror"}, "mirror needs other texts beside each document, which adapt has not"),
        ({"objective": "cocondenser"}, "cocondenser needs two spans of each document; adapt reads documents whole"),
        (
            {"pairs": None, "samplers": ("title",)},
            "0 pairs of 0 documents came of 120 documents by title; expected pairs of at least 10 documents",
        ),
    ],
)
def test_bad_options_leave_nothing_behind(task, tmp_path, model_folder, options, message):
    with pytest.raises(InputError, match=message):
        run(task, tmp_path / "out", model_folder, **options)
    assert list(tmp_path.iterdir()) == []
