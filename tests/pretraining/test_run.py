"""A run: killed and resumed bit for bit, refused when it differs, published as a plain model folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kills import Killed, assert_same_weights, kill_at
from safetensors.torch import load_file, save_file

from indexes.errors import InputError
from pretraining.base import load_base
from pretraining.configuration import PretrainConfig
from pretraining.loop import PretrainingTrainer
from pretraining.masking import MaskOptions
from pretraining.objective import Objective
from pretraining.run import pretrain
from pretraining.terms.spans import span_contrast
from pretraining.token_writer import write_tokens
from pretraining.tokens import Collator, SpanPairs
from retrieval.checkpoints import MARKER
from retrieval.documents import read_documents
from retrieval.trainer import resumable_arguments

OPTIONS = dict(max_steps=7, batch_size=4, max_length=16, save_steps=2, learning_rate=1e-3, warmup_steps=1)


@pytest.fixture(scope="module")
def finished(base, corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "model"
    result = pretrain(corpus, output, base=base, **OPTIONS)
    assert not result.already_complete
    return output


def run_killed(corpus, output, base, step, **changes):
    with pytest.raises(Killed):
        pretrain(corpus, output, base=base, on_progress=kill_at(step), **(OPTIONS | changes))


@pytest.mark.parametrize("step", [1, 4, 5, 7])
def test_a_run_interrupted_at_any_step_ends_with_the_same_bits(step, finished, base, corpus, tmp_path):
    output, notes = tmp_path / "model", []
    run_killed(corpus, output, base, step)
    assert not output.exists()
    result = pretrain(corpus, output, base=base, on_note=notes.append, **OPTIONS)
    assert result.resumed_from == (step - 1) // 2 * 2
    assert_same_weights(finished, output)
    assert (output / "log.jsonl").read_text() == (finished / "log.jsonl").read_text()
    assert not (tmp_path / "model.partial").exists()


@pytest.mark.parametrize(
    "objective",
    [pytest.param(one, marks=pytest.mark.slow) for one in ("retromae", "cotmae,lexmae")]
    + ["dupmae", "cocondenser", "contriever"],
)
def test_every_kind_of_objective_goes_on_with_the_same_bits(objective, base, corpus, tmp_path):
    mixture = {"span_decoder": 1.0, "lexicon_bottleneck": 0.5, "dropout_contrast": 0.1}
    options = {"objective": mixture if "," in objective else objective, "accumulation": 2}
    options |= {"precision": "bfloat16"} if objective == "dupmae" else {}
    pretrain(corpus, tmp_path / "whole", base=base, **(OPTIONS | options))
    run_killed(corpus, tmp_path / "model", base, 5, **options)
    assert pretrain(corpus, tmp_path / "model", base=base, **(OPTIONS | options)).resumed_from == 4
    assert_same_weights(tmp_path / "whole", tmp_path / "model")


def test_training_changes_the_weights_and_the_loss_falls(finished, base):
    before = load_file(base / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    after = load_file(finished / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert not torch.equal(before, after)
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6, 7]
    terms = ("encoder_mlm", "decoder_mlm", "bag_of_words")
    names = {"total", *terms, *(f"gradient_norm/{term}" for term in terms), "gradient_norm", "learning_rate"}
    assert set(log[0]) == {"step", *names}
    assert log[-1]["total"] < log[0]["total"]


def test_a_half_written_checkpoint_never_counts(finished, base, corpus, tmp_path):
    output = tmp_path / "model"
    run_killed(corpus, output, base, 5)
    folder = tmp_path / "model.partial" / "checkpoints"
    broken = folder / "checkpoint-6"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    cut = folder / "checkpoint-5"
    cut.mkdir()
    (cut / "model.safetensors").write_bytes(b"")
    (cut / MARKER).write_text(json.dumps({"files": {"model.safetensors": 10}}))
    assert pretrain(corpus, output, base=base, **OPTIONS).resumed_from == 4
    assert_same_weights(finished, output)


def test_another_configuration_over_the_same_working_folder_is_refused(base, corpus, tmp_path):
    output = tmp_path / "model"
    run_killed(corpus, output, base, 3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"belongs to another run \(learning_rate: 0.01 ≠ 0.001, seed: 1 ≠ 0\)"):
        pretrain(corpus, output, base=base, **(OPTIONS | {"seed": 1, "learning_rate": 0.01}))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_finished_folder_is_recognised_and_another_configuration_refused(finished, base, corpus):
    assert pretrain(corpus, finished, base=base, **OPTIONS).already_complete
    with pytest.raises(InputError, match="max_steps: 8 ≠ 7"):
        pretrain(corpus, finished, base=base, **(OPTIONS | {"max_steps": 8}))


def test_a_foreign_folder_is_refused_at_once(base, corpus, tmp_path):
    with pytest.raises(InputError, match="already exists"):
        pretrain(corpus, tmp_path, base=base, **OPTIONS)


def test_a_folder_that_happens_to_have_the_working_folders_name_is_left_alone(base, corpus, tmp_path):
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"model.partial holds thesis.txt and belongs to no run"):
        pretrain(corpus, tmp_path / "model", base=base, **OPTIONS)
    assert (tmp_path / "model.partial" / "thesis.txt").exists()


def test_a_diverging_run_stops_with_advice(base, corpus, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    tensors = load_file(base / "model.safetensors")
    tensors["bert.embeddings.LayerNorm.weight"] = tensors["bert.embeddings.LayerNorm.weight"] * float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"the loss became nan at step 1 with learning rate 0\.001; take a lower"):
        pretrain(corpus, tmp_path / "model", base=broken, **OPTIONS)


def test_heads_of_another_size_are_refused(finished, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    tensors = load_file(other / "heads" / "model.safetensors")
    save_file(tensors | {"head.bias": torch.zeros(3)}, other / "heads" / "model.safetensors")
    with pytest.raises(InputError, match="does not fit the model"):
        load_base(str(other), Objective.parse("dupmae"), MaskOptions(), pooling=None, seed=0)


def test_the_folder_loads_in_plain_sentence_transformers(finished, tokenizer):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(finished), device="cpu")
    assert model.max_seq_length == 16
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling"]
    vectors = model.encode(["river stone", "green paper " * 20], convert_to_tensor=True)
    assert vectors.shape == (2, 16)
    saved = load_file(finished / "model.safetensors")
    for name, value in model[0].model.state_dict().items():
        assert torch.equal(value, saved[name]), name


def test_the_run_card_says_what_was_done(finished):
    card = json.loads((finished / "retrokit.json").read_text())
    assert card["configuration"]["objective"] == {
        "encoder_mlm": {"weight": 1.0},
        "decoder_mlm": {"weight": 1.0, "query": "embedded"},
        "bag_of_words": {"weight": 0.1, "variant": "code"},
    }
    assert card["configuration"]["pooling"] == "cls"
    assert card["global_batch"] == 4
    assert card["counts"]["documents"] == 24
    assert card["counts"]["empty"] == 1
    assert card["untrained_heads"] == ["decoder_mlm"]
    assert card["packages"]["torch"] in torch.__version__


def test_going_on_from_a_finished_folder_loads_its_heads(finished, base):
    options = dict(pooling=None, seed=5)
    assert load_base(str(base), Objective.parse("dupmae"), MaskOptions(), **options).model.untrained_heads == [
        "decoder_mlm"
    ]
    again = load_base(str(finished), Objective.parse("retromae"), MaskOptions(), **options)
    assert again.model.untrained_heads == []
    saved = load_file(finished / "heads" / "model.safetensors")
    assert torch.equal(
        again.model.terms["decoder_mlm"].decoder.output.dense.weight, saved["decoder_mlm.decoder.output.dense.weight"]
    )
    assert torch.equal(again.model.head.transform.dense.weight, saved["head.transform.dense.weight"])


def test_a_mean_pooled_normalized_base_without_heads_stays_one(finished, corpus, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    start, output, notes = tmp_path / "start", tmp_path / "model", []
    transformer = SentenceTransformer(str(finished), device="cpu")[0]
    SentenceTransformer(modules=[transformer, Pooling(16, "mean"), Normalize()], device="cpu").save(str(start))
    options = OPTIONS | {"max_steps": 1, "objective": "retromae", "accumulation": 2}
    pretrain(corpus, output, base=start, on_note=notes.append, **options)
    assert "the base brings no head and no decoder_mlm: starting from random numbers" in notes
    model = SentenceTransformer(str(output), device="cpu")
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    assert model[1].pooling_mode == "mean"


def test_a_model_that_is_no_bert_is_refused(corpus, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(InputError, match="a t5 model; pretraining supports bert, roberta"):
        pretrain(corpus, tmp_path / "model", base=tmp_path, **OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps is 0; expected at least 1"),
        ({"learning_rate": 3.0}, "learning_rate is 3.0; expected above 0 and below 1"),
        ({"objective": "bert"}, "objective is 'bert'; expected mlm, bowdpr, retromae"),
        ({"objective": {"mlm": 1}}, "objective has 'mlm'; expected terms among encoder_mlm"),
        ({"encoder_mask_ratio": 1.2}, "mask ratio is 1.2; expected a share above 0"),
        ({"pooling": "max"}, "pooling is 'max'; expected cls or mean"),
        ({"precision": "int8"}, "precision is 'int8'; expected float32 or bfloat16"),
        ({"warmup_steps": 99, "max_steps": 9}, "warmup_steps is 99; expected 0 to max_steps, 9"),
    ],
)
def test_options_are_refused_in_the_users_words(options, message):
    with pytest.raises(InputError, match=message):
        PretrainConfig(base="x", **options)


def test_more_positions_than_the_base_has_are_refused(base, corpus, tmp_path):
    with pytest.raises(InputError, match="max_length is 64; the base has 32 positions"):
        pretrain(corpus, tmp_path / "model", base=base, **(OPTIONS | {"max_length": 64}))


def test_a_process_killed_by_the_system_goes_on(finished, base, corpus, tmp_path):
    output, partial = tmp_path / "model", tmp_path / "model.partial"
    call = f"pretrain({str(corpus)!r}, {str(output)!r}, base={str(base)!r}, on_progress=slow, **{OPTIONS!r})"
    slow = "import time, torch\nfrom pretraining import pretrain\ntorch.set_num_threads(1)\n"
    slow += "slow = lambda done, total: time.sleep(0.3)\n"
    process = subprocess.Popen([sys.executable, "-c", slow + call], env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    deadline = time.monotonic() + 60
    while not (partial / "checkpoints" / "checkpoint-4" / MARKER).exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    assert pretrain(corpus, output, base=base, **OPTIONS).resumed_from in (4, 6)
    assert_same_weights(finished, output)


def test_a_loss_over_a_whole_step_does_not_depend_on_its_parts(make_model, tokenizer, corpus, tmp_path):
    """Gradient caching, dropout included: gradients are those of one graph over all micro-batches."""
    write_tokens(read_documents(corpus), tokenizer, tmp_path / "tokens", max_length=16)
    rows, collate = SpanPairs(tmp_path / "tokens", 0), Collator(tokenizer)
    objective = {"dropout_contrast": 0.5, "encoder_mlm": 1.0, "span_contrast": 2.0}
    model = make_model(objective, num_hidden_layers=2, hidden_dropout_prob=0.2).double()
    sizes = {"max_steps": 1, "batch_size": 2, "accumulation": 3, "learning_rate": 1e-3, "warmup_steps": 0}
    args = resumable_arguments(tmp_path / "run", **sizes, save_steps=9, seed=5)
    trainer = PretrainingTrainer(model.train(), args, rows, collate, tmp_path / "log.jsonl")
    batches = [collate([rows[2 * number], rows[2 * number + 1]]) for number in range(3)]
    trainer.micro_batches = batches
    values = []
    for batch in batches:
        loss, terms = trainer.compute_loss(model, batch, return_outputs=True)
        (loss / 3).backward()
        values.append(terms["span_contrast"].item())
    cached = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    trainer._at, vectors, others = 0, [], []
    for micro, batch in enumerate(batches):
        drawn = trainer._sample(batch, trainer.seeded_for(micro))
        view = model.view(drawn)
        vectors.append(view.vector)
        others.append(0.5 * model.terms["dropout_contrast"](view, None) + model.terms["encoder_mlm"](view, None))
    whole = span_contrast(torch.cat(vectors))
    (2 * whole + torch.stack(others).mean()).backward()
    assert values == pytest.approx([whole.item()] * 3)
    for name, value in model.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(cached[name], value.grad, msg=name)
    alone = sum(span_contrast(one).item() for one in vectors) / 3
    assert whole.item() > 1.2 * alone, "more spans are harder to tell apart"
