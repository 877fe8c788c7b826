"""Fine-tuning of dense encoders: what is learned, the checkpoint that is kept, resume, refusals, and the folder."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from fixtures import WORDS, make_model
from kills import Killed, assert_same_weights, kill_at
from labelled import ANSWERED, ASKED, make_examples, make_pairs
from safetensors.torch import load_file
from typer.testing import CliRunner

from evaluation.testsets import write_collection
from indexes.errors import InputError
from retrieval.cli import build_app
from retrieval.documents import Document
from retrieval.encoder import Encoder
from retrieval.example_rows import drawn
from retrieval.examples import Candidate, Example, write_examples
from retrieval.finetune_options import FinetuneConfig
from retrieval.finetune_run import load_model
from retrieval.finetuning import check_examples, finetune

OPTIONS = dict(steps=4, batch_size=8, checks=2, held_out=12, max_length=24, learning_rate=1e-3)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def quiet_model(tmp_path_factory):
    """The tiny model without dropout."""
    folder = make_model(tmp_path_factory.mktemp("models") / "quiet")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(output, encoder, examples=None, **changes):
    return finetune(examples or make_examples(), output, encoder=str(encoder), **{**OPTIONS, **changes})


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("loss", "more"),
    [
        ("infonce", {"learning_rate": 3e-3}),
        ("kl=1,infonce=0.2", {"learning_rate": 2e-3, "teacher_temperature": 2.0}),
        ("opl", {"batch_size": 1}),
    ],
)
def test_it_learns_and_the_best_checkpoint_is_what_comes_out(tmp_path, model_folder, loss, more):
    from sentence_transformers import SentenceTransformer

    scores = loss not in ("infonce", "opl")
    result = run(tmp_path / "out", model_folder, make_examples(scores=scores), loss=loss, **{"steps": 24, **more})
    checks = {int(step): value for step, value in result.card["checks"].items()}
    assert set(checks) == {0, 12, 24}
    assert result.card["measure"] == "nDCG@10"
    assert checks[result.card["chosen"]] == max(checks.values()) > checks[0]
    encoder = Encoder.load(str(tmp_path / "out"))
    plain = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(encoder.encode_queries(WORDS), plain.encode(WORDS), atol=1e-5)
    assert encoder.settings.max_length == Encoder.load(str(model_folder)).settings.max_length == 32
    lines = logged(tmp_path / "out")
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert set(loss.replace("=1", "").replace("=0.2", "").split(",")) <= lines[0].keys()
    assert not (tmp_path / "out.partial").exists()


def test_a_finished_folder_is_known_again_and_others_are_refused(tmp_path, model_folder):
    result = run(tmp_path / "out", model_folder)
    assert run(tmp_path / "out", model_folder).already_complete
    hard = run(tmp_path / "hard", model_folder, texts=[f"{one} {two} ." for one in ANSWERED for two in ANSWERED])
    assert hard.card["checks"]["0"] < result.card["checks"]["0"]  # more stands in the way
    with pytest.raises(InputError, match=r"made otherwise \(focal: 0.5 ≠ 0.0\)"):
        run(tmp_path / "out", model_folder, focal=0.5)
    with pytest.raises(InputError, match="made otherwise .examples"):
        run(tmp_path / "out", model_folder, make_examples(negatives=3))


def test_never_worse_than_the_start(tmp_path, model_folder, monkeypatch):
    """Where every check is worse than the start was, the start is kept, to the last bit."""
    values = iter([0.9, 0.5, 0.8])
    monkeypatch.setattr("retrieval.finetune_run.mean_ndcg", lambda *_: next(values))
    for name, more in (("whole", {}), ("adapters", {"lora": 2})):
        values = iter([0.9, 0.5, 0.8])
        assert run(tmp_path / name, model_folder, learning_rate=0.5, **more).card["chosen"] == 0
        ours, base = (Encoder.load(str(folder)).encode_documents(WORDS) for folder in (tmp_path / name, model_folder))
        np.testing.assert_array_equal(ours, base)


EVERYTHING = dict(
    mix=2, focal=0.5, extra_negatives=("qq", "dd"), false_negative_margin=0.2, matryoshka={32: 1.0, 16: 0.3}
)


@pytest.mark.parametrize(
    "more",
    [{**EVERYTHING, "batch_size": 4, "mini_batch": 2, "accumulation": 2}, {"lora": 2, "loss": "alignment"}],
    ids=["everything", "adapters"],
)
def test_a_killed_run_ends_like_one_left_alone(tmp_path, model_folder, more):
    """Bit for bit, dropout among it."""
    alone = run(tmp_path / "alone", model_folder, steps=6, checks=3, **more)
    with pytest.raises(Killed):
        run(tmp_path / "killed", model_folder, steps=6, checks=3, on_progress=kill_at(3), **more)
    assert (tmp_path / "killed.partial" / "checkpoints" / "checkpoint-2" / "complete.json").is_file()
    with pytest.raises(InputError, match=r"belongs to another run \(weight_decay: 0.1 ≠ 0.01\)"):
        run(tmp_path / "killed", model_folder, steps=6, checks=3, weight_decay=0.1, **more)
    notes = []
    resumed = run(tmp_path / "killed", model_folder, steps=6, checks=3, on_note=notes.append, **more)
    assert "going on from step 2 of 6" in notes
    assert resumed.card["checks"] == alone.card["checks"]
    assert_same_weights(tmp_path / "alone", tmp_path / "killed")
    assert (tmp_path / "alone" / "log.jsonl").read_bytes() == (tmp_path / "killed" / "log.jsonl").read_bytes()


def test_mini_batches_change_nothing_but_memory(tmp_path, quiet_model):
    """Gradient caching: one batch, in parts of 4 and of 2, with all that is drawn for a batch."""
    widest = []
    for name, size in (("whole", None), ("four", 4), ("two", 2)):
        run(tmp_path / name, quiet_model, steps=3, mini_batch=size, checks=1, **EVERYTHING)
        widest.append(logged(tmp_path / name))
    for other in ("four", "two"):
        whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", other))
        for name, value in whole.items():
            if not name.endswith("key.bias"):  # whose gradient is 0 but for rounding, which AdamW makes steps of
                torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=2e-5, msg=name)
    for lines in zip(*widest, strict=True):
        assert lines[1] == pytest.approx(lines[0], rel=1e-3)
        assert lines[2] == pytest.approx(lines[0], rel=1e-3)
    assert widest[0][0] != widest[0][1]


def test_adapters_are_merged_and_peft_is_not_needed_to_load(tmp_path, model_folder, monkeypatch):
    from sentence_transformers import SentenceTransformer

    run(tmp_path / "out", model_folder, steps=8, lora=4, learning_rate=1e-2)
    base, found = (load_file(folder / "model.safetensors") for folder in (model_folder, tmp_path / "out"))
    assert base.keys() == found.keys()
    changed = {name for name, value in base.items() if not torch.equal(value, found[name])}
    assert changed
    assert all(".dense." in name or ".self." in name for name in changed)
    assert not any("bias" in name or "embeddings" in name or "pooler" in name for name in changed)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert SentenceTransformer(str(tmp_path / "out"), device="cpu").encode("river").shape == (32,)


def test_scores_of_pairs_and_translations(tmp_path, model_folder):
    result = run(tmp_path / "regression", model_folder, make_pairs(), loss="regression", score_range=(0, 5), steps=16)
    checks = result.card["checks"]
    assert result.card["measure"] == "Spearman"
    assert checks[str(result.card["chosen"])] > checks["0"]
    aligned = run(tmp_path / "aligned", model_folder, loss="alignment", steps=16)
    checks = aligned.card["checks"]
    assert checks[str(aligned.card["chosen"])] > checks["0"] + 0.02
    before, after = (Encoder.load(str(folder)) for folder in (model_folder, tmp_path / "aligned"))
    sources = before.encode_queries(ASKED)
    translations = [f"{one.positives[0].text}" for one in make_examples(8)]
    moved, still = ((model.encode_documents(translations) * sources).sum(1).mean() for model in (after, before))
    assert moved > still


def test_data_sets_have_prompts_of_their_own(tmp_path, model_folder):
    """Tokens are those of texts that have the prompt in them already; other data sets keep the model's."""
    prompts = {"told": {"query": "paper ", "document": "music "}}
    model, _ = load_model(FinetuneConfig(encoder=str(model_folder), prompts=prompts), 1)
    plain, _ = load_model(FinetuneConfig(encoder=str(model_folder)), 1)
    rows = [drawn(one, one.positives[0], one.negatives) for one in make_examples(4, dataset="told")]
    rows += [drawn(one, one.positives[0], one.negatives) for one in make_examples(2, dataset="plain", seed=1)]
    spelt = [
        one._replace(query=f"paper {one.query}", texts=tuple(f"music {text}" for text in one.texts))
        if one.dataset == "told"
        else one
        for one in rows
    ]
    found, wanted = model.collate(rows), plain.collate(spelt)
    for name in ("queries", "documents"):
        assert torch.equal(found[name]["input_ids"], wanted[name]["input_ids"])
    assert torch.equal(found["keys"], plain.collate(rows)["keys"])  # texts are told apart without their prompts
    with pytest.raises(InputError, match="no examples of data set 'told'"):
        run(tmp_path / "bad", model_folder, prompts=prompts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "dens"}, "kind is 'dens'; expected dense, cross-encoder, sparse"),
        ({"loss": "triplet"}, "loss 'triplet' is none of kind dense; expected some of infonce"),
        ({"loss": "kl=none"}, "the weight of kl is 'none'; expected a number above 0"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"mini_batch": 3}, "mini_batch is 3; expected a number that divides batch_size, 8"),
        ({"temperature": 0.0}, "temperature is 0.0; expected above 0"),
        ({"learning_rate": 2.0}, "learning_rate is 2.0; expected above 0 and below 1"),
        ({"precision": "half"}, "precision is 'half'; expected float32 or bfloat16"),
        ({"extra_negatives": ("qd",)}, "extra_negatives has 'qd'; expected some of qq, dd"),
        ({"false_negatives_by": "guide"}, "false_negatives_by is 'guide'; expected student or teacher"),
        ({"false_negatives_by": "teacher"}, "needs false_negative_margin; leave it out"),
        ({"loss": "kl", "focal": 0.5}, "focal is 0.5 and needs the loss infonce; the loss is kl; leave it out"),
        ({"kind": "cross-encoder", "mix": 2}, "mix is 2 and needs vectors; the kind is cross-encoder"),
        ({"query_flops": 0.1}, "query_flops is 0.1 and needs kind sparse"),
        ({"kind": "sparse", "matryoshka": (8,)}, "matryoshka is .* needs kind dense"),
        ({"loss": "opl", "temperature": 0.1}, "temperature is 0.1 and needs the loss infonce, kl or margin-mse"),
        ({"score_range": (0, 5)}, "score_range is .* needs the loss regression"),
        ({"loss": "regression", "score_range": (5, 0)}, "expected a lower and a higher number"),
        ({"loss": "regression=1,kl=1", "score_range": (0, 5)}, "score_range changes the scores that a teacher gave"),
        ({"false_negative_margin": float("nan")}, "false_negative_margin is nan"),
        ({"loss": "kl", "false_negative_margin": 0.0}, "false_negative_margin is 0.0 and needs the loss infonce"),
        ({"kind": "sparse", "append_eos": False}, "append_eos is False and needs kind dense"),
        ({"loss": "opl", "negatives": 0}, "no example has a negative, or negatives is 0; opl of kind dense needs some"),
        ({"mix": 3, "negatives": 1}, "mix takes two hard negatives of a query, and there are at most 1"),
        ({"batch_size": 1, "negatives": 0}, "a batch of 1 without hard negatives has nothing to contrast"),
        (
            {"kind": "cross-encoder", "loss": "binary", "prompts": {"": {"document": "x"}}},
            "a cross-encoder reads a document with its query",
        ),
        ({"epochs": 2.0}, "epochs is 2.0 and needs no number of steps"),
        ({"matryoshka": (64,)}, "matryoshka has 64 numbers; vectors of .* have 32"),
        ({"prompts": {"x": {"title": "t"}}}, "data set 'x' has a prompt of 'title'"),
        ({"dataset_weights": {"x": 2.0}}, "there is no data set 'x' to weigh"),
        ({"loss": "kl"}, "no example has a teacher's scores of its positive and of a negative, which kl needs"),
        ({"batch_size": 64}, "45 queries to learn from; a batch needs 64"),
        ({"encoder": "/nowhere/at/all"}, "no such model folder"),
    ],
)
def test_refusals(tmp_path, model_folder, changes, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", **{"encoder": model_folder, **changes})
    assert not list(tmp_path.iterdir())


def test_examples_that_do_not_fit_are_refused(tmp_path, model_folder):
    bare = [one._replace(negatives=()) for one in make_examples()]
    with pytest.raises(InputError, match="no example has a negative, or negatives is 0; opl of kind dense needs some"):
        run(tmp_path / "out", model_folder, bare, loss="opl")
    with pytest.raises(InputError, match="found 1 queries; expected at least 2"):
        run(tmp_path / "out", model_folder, bare[:1])
    with pytest.raises(InputError, match="has score 2, and cosines are between -1 and 1: give --score-range"):
        run(tmp_path / "out", model_folder, make_pairs()[2:], loss="regression")
    with pytest.raises(InputError, match="has no score, which regression needs"):
        run(tmp_path / "out", model_folder, bare, loss="regression")
    some = [*make_examples(20, scores=True), *(one._replace(query=one.query + "!") for one in make_examples(4))]
    notes = []
    check_examples(some, FinetuneConfig(encoder="x", loss="kl"), notes.append)
    assert notes == ["4 of 24 examples have no teacher's scores of a negative"]


def test_pairs_that_do_not_belong_together_are_no_answers(tmp_path, model_folder):
    with pytest.raises(InputError, match="has score 0 or less and would be learned as an answer"):
        run(tmp_path / "out", model_folder, make_pairs())


def test_scores_of_negatives_are_learned_too(tmp_path, model_folder):
    examples = [
        Example(
            f"{ASKED[row % 8]} {row}", (Candidate(ANSWERED[row % 8], None, 5.0),), (Candidate(f"no {row}", None, 0.0),)
        )
        for row in range(40)
    ]
    config = FinetuneConfig(encoder=str(model_folder), loss="regression", score_range=(0, 5))
    model, _ = load_model(config, 1)
    one = check_examples(examples, config, lambda line: None)[0]
    assert (one.positives[0].score, one.negatives[0].score) == (1.0, 0.0)
    batch = model.eval().collate([drawn(one, one.positives[0], one.negatives)])
    outputs = model(batch)
    found = model.losses([outputs], [batch], torch.Generator())["regression"]
    scores = (outputs["queries"] @ outputs["documents"].T)[0].detach().double()
    assert float(found.detach()) == pytest.approx(float(((scores - torch.tensor([1.0, 0.0])) ** 2).mean()), rel=1e-5)
    result = run(tmp_path / "out", model_folder, examples, loss="regression", score_range=(0, 5))
    assert result.card["measure"] == "Spearman"
    assert result.card["checks"]["0"] != 0  # the held-out scores are not all the same


def test_what_is_learned_from_is_never_overwritten(tmp_path, model_folder):
    """Not even by another split of it, or where it was made by retrokit and may be replaced otherwise."""
    documents = [Document(f"d{row}", f"{ANSWERED[row % 8]} {row}") for row in range(16)]
    queries = {f"q{row}": f"{ASKED[row % 8]} {row}" for row in range(16)}
    write_collection(tmp_path / "set", documents, queries, {"train": {f"q{row}": {f"d{row}": 1} for row in range(16)}})
    (tmp_path / "set" / "manifest.json").write_text(json.dumps({"format": 1, "kind": "collection", "files": {}}))
    before = sorted(path.name for path in (tmp_path / "set").rglob("*"))
    arguments = ["finetune", f"{tmp_path}/set#train", "--encoder", str(model_folder), "--steps", "1", "--overwrite"]
    more = ["--batch-size", "4", "--checks", "1", "--output", str(tmp_path / "set")]
    done = CliRunner().invoke(build_app(), [*arguments, *more])
    assert done.exit_code == 2, done.output
    write_examples(tmp_path / "examples.jsonl", make_examples())
    arguments[1] = str(tmp_path / "examples.jsonl")
    done = CliRunner().invoke(build_app(), [*arguments, *more, "--corpus", str(tmp_path / "set")])
    assert done.exit_code == 2, done.output
    assert sorted(path.name for path in (tmp_path / "set").rglob("*")) == before


def test_files_of_one_name_are_to_be_named(tmp_path, model_folder):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_examples(tmp_path / folder / "train.jsonl", make_examples())
    sources = [str(tmp_path / folder / "train.jsonl") for folder in ("a", "b")]
    command = ["finetune", *sources, "--encoder", str(model_folder), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(build_app(), command)
    assert (done.exit_code, "are both called 'train'; name one" in " ".join(done.output.split())) == (2, True)
    done = CliRunner().invoke(build_app(), [*command, "--matryoshka", "inf"])
    assert done.exit_code == 2


def test_a_cosine_is_one_though_vectors_are_long(tmp_path):
    raw = make_model(tmp_path / "raw", normalize=False)
    pairs = [Example(f"{WORDS[row % 9]} {row}", (Candidate(f"{WORDS[row % 7]} {row}"),)) for row in range(20)]
    result = run(tmp_path / "out", raw, pairs, loss="alignment", steps=2)
    assert all(-1 <= value <= 1 + 1e-6 for value in result.card["checks"].values())


def test_without_peft_adapters_are_refused(tmp_path, model_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"lora needs peft, which is not installed: pip install 'retrokit\[lora\]'"):
        run(tmp_path / "out", model_folder, lora=2)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_no_number_ends_the_run(tmp_path, model_folder):
    broken = shutil.copytree(model_folder, tmp_path / "broken")
    from safetensors.torch import save_file

    weights = load_file(broken / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][:] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="the loss became nan at step 1"):
        run(tmp_path / "out", broken)


@pytest.mark.slow  # 4 seconds
def test_mixed_precision_layers_computed_again_and_plain_folders(tmp_path, model_folder):
    plain = model_folder.parent / f"{model_folder.name}-plain"
    with pytest.raises(InputError, match="does not record its pooling"):
        run(tmp_path / "out", plain)
    more = {"pooling": "cls", "precision": "bfloat16", "gradient_checkpointing": True, "mini_batch": 4}
    run(tmp_path / "out", plain, **more)
    encoder = Encoder.load(str(tmp_path / "out"))
    assert encoder.fields["pooling"] == "cls"
    np.testing.assert_allclose(np.linalg.norm(encoder.encode_queries(WORDS), axis=1), 1, atol=1e-5)
    dtypes = {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()}
    assert dtypes == {torch.float32}


def test_the_card_says_what_was_done(tmp_path, model_folder):
    run(tmp_path / "out", model_folder, steps=None, epochs=2.0, sources=["pairs.jsonl"])
    card = json.loads((tmp_path / "out" / "retrokit.json").read_text())
    assert card["made_by"] == "retrokit finetune"
    assert card["steps"] == 12  # 2 · 45 examples / 8
    assert (card["examples"], card["global_batch"], card["pairs"]) == (56, 8, ["pairs.jsonl"])
    fields = {one.name for one in dataclasses.fields(FinetuneConfig) if one.init}
    assert fields <= card["configuration"].keys()


@pytest.mark.parametrize("named", [False, True])
def test_the_command(tmp_path, model_folder, named):
    from typer.testing import CliRunner

    from retrieval.cli import build_app

    write_examples(tmp_path / "pairs.jsonl", make_examples(scores=True))
    pairs = f"words={tmp_path / 'pairs.jsonl'}" if named else str(tmp_path / "pairs.jsonl")
    name = "words" if named else "pairs"
    options = [
        *("--steps=2", "--batch-size=8", "--checks=1", "--held-out=8", "--matryoshka=32,16=0.5", "--loss=infonce,kl"),
        *(f"--dataset-prompt={name}:query=paper ", f"--dataset-weight={name}=2", "--extra-negatives=qq,dd"),
    ]
    out = tmp_path / "out"
    done = CliRunner().invoke(
        build_app(), ["finetune", pairs, f"--encoder={model_folder}", f"--output={out}", *options, f"--json={out}.json"]
    )
    assert done.exit_code == 0, done.output
    assert "does best, held-out nDCG@10" in done.output
    card = json.loads((tmp_path / "out.json").read_text())
    assert card["configuration"]["matryoshka"] == "{32: 1.0, 16: 0.5}"
    assert card["configuration"]["prompts"] == str({name: {"query": "paper "}})
    bad = CliRunner().invoke(build_app(), ["finetune", pairs, f"--output={out}", "--matryoshka=wide"])
    assert bad.exit_code == 2
    assert "--matryoshka has 'wide'; expected numbers such as 384,192" in " ".join(bad.output.split())
