"""Two processes, each with half of a batch, learn what one learns of the whole."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures import make_cross_encoder, make_model, make_sparse
from kills import assert_same_weights, weights
from labelled import make_examples

from retrieval.finetuning import finetune

ROOT = Path(__file__).parents[2]
OPTIONS = dict(steps=3, checks=3, held_out=8, max_length=16, learning_rate=1e-3, warmup_steps=0)
SPLIT = dict(mix=2, focal=0.5, extra_negatives=("qq", "dd"), false_negative_margin=0.3, mini_batch=2)
KINDS = {
    "dense": {"loss": "infonce=1,kl=0.3,margin-mse=0.1", **SPLIT},
    "cross-encoder": {"loss": "infonce,binary,margin-mse"},
    "sparse": {"query_flops": 0.1, "document_flops": 0.2, "flops_steps": 2, "mini_batch": 2},
    "aligned": {"kind": "dense", "loss": "alignment", "lora": 2},
}


def without_dropout(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(config))
    return folder


def ragged():
    """Examples with as many negatives as it comes: processes have different numbers of documents."""
    whole = make_examples(negatives=3, scores=True)
    return [one._replace(negatives=one.negatives[: row % 4]) for row, one in enumerate(whole)]


@pytest.mark.slow  # 10 to 25 seconds: processes of their own
def test_the_number_of_processes_changes_nothing(tmp_path):
    """All kinds of models and losses, a batch in parts, and a run that was killed."""
    made = {"dense": make_model, "cross-encoder": make_cross_encoder, "sparse": make_sparse, "aligned": make_model}
    models = {kind: without_dropout(make(tmp_path / f"{kind}-base")) for kind, make in made.items()}
    examples, runs = ragged(), []
    for kind, more in KINDS.items():
        options = {**OPTIONS, "kind": kind, **more, "encoder": str(models[kind]), "batch_size": 4}
        runs.append((examples, {**options, "output": tmp_path / f"{kind}-two"}, None))
    again = {**runs[0][1], "output": tmp_path / "dense-again"}
    runs += [(examples, again, 2), (examples, again, None)]
    (tmp_path / "given.pickle").write_bytes(pickle.dumps(runs))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "tests/support/finetune_ranks.py"), str(tmp_path)]
    both = [
        subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for kind, more in KINDS.items():
        options = {**OPTIONS, "kind": kind, **more, "encoder": str(models[kind]), "batch_size": 8}
        finetune(examples, tmp_path / f"{kind}-one", **options)
    torch.set_num_threads(threads)
    said = [process.communicate(timeout=200)[1][-3000:] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    found = [pickle.loads((tmp_path / f"found-{rank}.pickle").read_bytes()) for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0][4] is None  # killed
    for kind in KINDS:
        assert_alike(tmp_path / f"{kind}-one", tmp_path / f"{kind}-two")
    assert_same_weights(tmp_path / "dense-two", tmp_path / "dense-again")


def assert_alike(one, two):
    """The same losses at every step, and weights that differ by rounding."""
    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (one, two)]
    assert len(logs[0]) == OPTIONS["steps"]
    for mine, theirs in zip(*logs, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-3, abs=1e-6)
    assert logs[1][0]["gradient_norm"] == pytest.approx(logs[0][0]["gradient_norm"], rel=1e-4)
    wanted, given = weights(one), weights(two)
    for name, value in wanted.items():
        if not name.endswith("key.bias"):  # whose gradient is 0 but for rounding, which AdamW makes steps of
            torch.testing.assert_close(given[name], value, rtol=1e-3, atol=1e-4, msg=name)
