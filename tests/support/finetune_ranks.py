"""One of two processes that fine-tune together, on a CPU with gloo: `python finetune_ranks.py FOLDER RANK`."""

import os
import pickle
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from kills import Killed, kill_at

from retrieval.finetuning import finetune

WORLD = 2


def run(examples, options, killed_at):
    """A run, perhaps killed by both processes after a step."""
    try:
        return finetune(examples, **options, on_progress=kill_at(killed_at)).card["checks"]
    except Killed:
        return None


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    given = pickle.loads((folder / "given.pickle").read_bytes())
    (folder / f"found-{rank}.pickle").write_bytes(pickle.dumps([run(*one) for one in given]))
    dist.destroy_process_group()
