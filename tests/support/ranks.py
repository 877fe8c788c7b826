"""One of two processes of a run, on a CPU with gloo: `python ranks.py FOLDER RANK`; FOLDER/given.pt says what to do."""

import copy
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from kills import Killed, kill_at
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from pretraining import pretrain
from pretraining.sharding import shard, whole_tensor

WORLD = 2
STEPS, LEARNING_RATE = 3, 1e-2


def train(model, called, drawn):
    """A few steps: the losses, the first step's gradients and the state that they lead to."""
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    losses, first = [], {}
    for _ in range(STEPS):
        values = called(drawn)
        values["total"].backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        first = first or {name: whole_tensor(value).clone() for name, value in gradients.items()}
        losses.append({name: value.item() for name, value in values.items()})
        optimizer.step()
        optimizer.zero_grad()
    state = {name: whole_tensor(value).clone() for name, value in model.state_dict().items()}
    return {"losses": losses, "gradients": first, "state": state}


def half_of(one, rank):
    """A batch's rows of one process, whatever they are in."""
    if isinstance(one, torch.Tensor):
        return one.tensor_split(WORLD)[rank]
    if isinstance(one, dict):
        return {name: half_of(value, rank) for name, value in one.items()}
    if one is None or (isinstance(one, tuple) and not hasattr(one, "_fields")):
        return one and tuple(half_of(value, rank) for value in one)
    values = one if isinstance(one, tuple) else vars(one).values()
    return type(one)(*(half_of(value, rank) for value in values))


def compare(model, drawn, rank):
    """The same by a copy in each process (DDP) and by parts (FSDP)."""
    type(model.backbone)(model.backbone.config)  # transformers has to have built one to know what layers are
    drawn, parts = half_of(drawn, rank), copy.deepcopy(model)
    found = {"ddp": train(model, DistributedDataParallel(model), copy.deepcopy(drawn))}
    shard(parts, torch.device("cpu"))
    assert all(isinstance(value, DTensor) for value in parts.parameters())
    found["rows"] = {name: len(value.to_local()) for name, value in parts.named_parameters()}
    return found | {"fsdp": train(parts, parts, drawn)}


def run(options, killed_at=None):
    """A run, perhaps killed by both processes after a step."""
    try:
        return pretrain(**options, on_progress=kill_at(killed_at)).resumed_from
    except Killed:
        return None


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    given = torch.load(folder / "given.pt", weights_only=False)
    done = {
        "cases": {name: compare(*case, rank) for name, case in given["cases"].items()},
        "runs": [run(*one) for one in given["runs"]],
    }
    torch.save(done, folder / f"found-{rank}.pt")
    dist.destroy_process_group()
