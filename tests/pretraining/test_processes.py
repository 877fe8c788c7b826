"""Two processes compute what one does, each with a copy of the model (DDP) or with a part of it (FSDP)."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from families import KINDS, config_of
from kills import weights
from ranks import LEARNING_RATE, STEPS, train
from transformers import AutoModel

from indexes.errors import InputError
from pretraining.configuration import PretrainConfig
from pretraining.masking import IGNORED, seeded
from pretraining.model import PretrainingModel
from pretraining.objective import PRESETS
from pretraining.run import pretrain
from pretraining.terms import TERMS
from retrieval.checkpoints import MARKER

ROOT = Path(__file__).parents[2]
MIXTURE = {"encoder_mlm": 1.0, "condenser_mlm": 1.0, "span_contrast": 1.0, "crop_contrast": {"momentum": 0.5}}
OPTIONS = dict(max_steps=4, save_steps=2, batch_size=2, accumulation=2, max_length=16, learning_rate=1e-3)
RETROKIT = [sys.executable, "-c", "from retrieval.cli import main; main()"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python", *RETROKIT]


def environment(**more):
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def start(*command, **more):
    return subprocess.Popen([sys.executable, *map(str, command)], env=environment(**more), stderr=subprocess.PIPE)


@pytest.fixture
def make_case(pairs, beside):
    """What two processes are given, and what one makes of it; texts differ in length and in what is masked."""

    def make(model):
        given = copy.deepcopy(model.double().train())
        drawn = model.sample(*pairs, generator=seeded(torch.device("cpu"), 1), others=beside)
        counts = (drawn.masks.labels != IGNORED).sum(1)
        assert counts[:2].sum() != counts[2:].sum()
        return (given, drawn), train(model, model, copy.deepcopy(drawn))

    return make


def all_terms(base):
    return dict.fromkeys(TERMS, 1.0) | {
        "crop_contrast": {"momentum": 0.5, "queue": 6},
        "replaced_lm": {"generator": str(base), "layers": 1},
        "replaced_detection": {"source": "cluster", "clusters": 5},
        "field_decoder": {"field": "reason"},
    }


def model_of(kind, tokenizer):
    """A model of a family, without dropout, under DupMAE and crops with their momentum encoder."""
    config = config_of(kind, tokenizer)
    for name, value in vars(config).items():
        if "dropout" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    backbone = AutoModel.from_config(config)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler.requires_grad_(False)  # as a base's
    return PretrainingModel(backbone, tokenizer, {**PRESETS["dupmae"], "crop_contrast": {"momentum": 0.5}})


@pytest.mark.parametrize("families", [(), pytest.param(KINDS, marks=pytest.mark.slow)], ids=["bert", "all"])
def test_the_number_of_processes_changes_nothing(families, make_case, make_model, tokenizer, base, corpus, tmp_path):
    """Losses, gradients and weights of every term, and whole runs, killed and gone on with.

    The slow one, of 40 s, has every family of encoders too, and bfloat16 with layers computed again.
    """
    every = all_terms(base)
    whole = {name: options for name, options in every.items() if not TERMS[name].opens_layers}
    assert len(every) > len(whole)
    models = {name: make_model(one, num_hidden_layers=2) for name, one in (("every", every), ("whole", whole))}
    cases = {
        name: make_case(one) for name, one in (models | {kind: model_of(kind, tokenizer) for kind in families}).items()
    }
    options = {**OPTIONS, "corpus": corpus, "base": base, "objective": MIXTURE}
    mixed = {"max_steps": 2, "precision": "bfloat16", "gradient_checkpointing": True, "objective": "dupmae"}
    runs = [
        ({**options, "output": tmp_path / "ddp"},),
        ({**options, "output": tmp_path / "fsdp", "fsdp": True},),
        ({**options, "output": tmp_path / "again", "fsdp": True}, 3),
        ({**options, "output": tmp_path / "again", "fsdp": True},),
    ]
    if families:
        runs += [
            ({**options, **mixed, "output": tmp_path / "ddp-mixed"},),
            ({**options, **mixed, "output": tmp_path / "fsdp-mixed", "fsdp": True},),
        ]
    torch.save({"cases": {name: case for name, (case, _) in cases.items()}, "runs": runs}, tmp_path / "given.pt")
    running = [start(ROOT / "tests/support/ranks.py", tmp_path, rank) for rank in (0, 1)]
    said = [process.communicate(timeout=200)[1].decode()[-2000:] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    both = [torch.load(tmp_path / f"found-{rank}.pt", weights_only=False) for rank in (0, 1)]
    for name, (_, alone) in cases.items():
        for way in ("ddp", "fsdp"):
            assert_alike(alone, [one["cases"][name][way] for one in both])
        rows = [one["cases"][name]["rows"] for one in both]
        assert all(rows[0][key] + rows[1][key] == len(alone["state"][key]) for key in rows[0])
    assert both[0]["runs"] == both[1]["runs"] == [0, 0, None, 2, 0, 0][: len(runs)]
    assert_same_run(tmp_path / "ddp", tmp_path / "fsdp", 2e-6)
    assert_same_run(tmp_path / "fsdp", tmp_path / "again", 0)
    if families:
        assert_same_run(tmp_path / "ddp-mixed", tmp_path / "fsdp-mixed", 1e-4)


def assert_alike(alone, both):
    """One process's training, and that of two, each of which has its share of the loss."""
    for step in range(STEPS):
        for name, value in alone["losses"][step].items():
            share = [one["losses"][step][name] for one in both]
            assert sum(share) / 2 == pytest.approx(value, rel=1e-6, abs=1e-9), (step, name)
    for one in both:
        assert one["gradients"].keys() == alone["gradients"].keys()
        for name, value in alone["gradients"].items():
            torch.testing.assert_close(one["gradients"][name], value, rtol=1e-6, atol=1e-7, msg=name)
        for name, value in alone["state"].items():
            tolerance = LEARNING_RATE * 1e-4 if value.is_floating_point() else 0
            torch.testing.assert_close(one["state"][name], value, rtol=tolerance, atol=tolerance, msg=name)


def assert_same_run(one, other, tolerance):
    found, wanted = weights(other), weights(one)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda said, name=name: f"{name}: {said}"
        )
    logs = [[json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()] for path in (one, other)]
    for mine, theirs in zip(*logs, strict=True):
        assert mine == pytest.approx(theirs, rel=max(tolerance, 1e-9) * 10)


def test_what_cannot_be_sharded_is_refused(base, corpus, tmp_path):
    with pytest.raises(InputError, match="there is one; start several with torchrun"):
        pretrain(corpus, tmp_path / "model", base=base, **OPTIONS, fsdp=True)
    with pytest.raises(InputError, match="compile makes another of it; leave one of them out"):
        PretrainConfig(base=str(base), fsdp=True, compile=True)


@pytest.mark.slow
def test_a_sharded_run_goes_on_after_it_was_killed(base, corpus, tmp_path):
    """About a minute: three times two processes under torchrun, probes and best weights among it."""
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in (OPTIONS | {"max_steps": 60}).items()]
    more = ["--objective=contriever", "--fsdp", "--probe-steps=20", "--probe-updates=1", "--keep=best"]

    def begun(name):
        return start(*TORCHRUN, "pretrain", corpus, f"--base={base}", *sizes, *more, f"--output={tmp_path / name}")

    whole = begun("whole")
    assert whole.wait(200) == 0, whole.stderr.read().decode()[-3000:]
    killed, checkpoints = begun("model"), tmp_path / "model.partial" / "checkpoints"
    deadline = time.monotonic() + 100
    while not list(checkpoints.glob(f"checkpoint-*/{MARKER}")):
        assert killed.poll() is None, killed.stderr.read().decode()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for child in Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "model").exists()
    again = begun("model")
    assert again.wait(200) == 0, again.stderr.read().decode()[-3000:]
    assert_same_run(tmp_path / "whole", tmp_path / "model", 0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_compute_what_two_processors_do(base, corpus, tmp_path):
    for name, more in (("ddp", []), ("fsdp", ["--fsdp"])):
        sizes = [f"--{one.replace('_', '-')}={value}" for one, value in OPTIONS.items()]
        command = [*TORCHRUN, "pretrain", corpus, f"--base={base}", *sizes, *more, f"--output={tmp_path / name}"]
        process = start(*command, CUDA_VISIBLE_DEVICES="0,1")
        assert process.wait(200) == 0, process.stderr.read().decode()[-3000:]
    assert_same_run(tmp_path / "ddp", tmp_path / "fsdp", 1e-4)
