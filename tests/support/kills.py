"""Runs that are killed, without a process for each, and gone on with: helpers, and how their results are compared."""

import torch
from safetensors.torch import load_file

HEADS = "heads/model.safetensors"


class Killed(Exception):
    """In the place of a kill."""


def kill_at(step):
    """An `on_progress` that kills the run after a step."""

    def on_progress(done, total):
        if done == step:
            raise Killed

    return on_progress


def weights(folder):
    """All weights of a model folder, those of its heads under `heads/model.safetensors`."""
    files = ["model.safetensors", *([HEADS] if (folder / HEADS).is_file() else [])]
    return {f"{file} {name}": value for file in files for name, value in load_file(folder / file).items()}


def assert_same_weights(one, other):
    """Two model folders have the same weights bit for bit."""
    found, wanted = weights(other), weights(one)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
