"""Sharded training (FSDP): every process keeps its part of weights, gradients and optimiser state, and no more.

Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (VLDB 2023, arXiv 2304.11277), in its
second form, torch's `fully_shard`, which is called here and not by accelerate: on a CPU, where this is tested,
accelerate leaves the model whole without a word. Mixed precision and all else are accelerate's and Trainer's.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import AutocastKwargs
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments

from pretraining.layers import layers_of
from pretraining.loop import PretrainingTrainer
from pretraining.model import PretrainingModel
from pretraining.terms.term import PlainDecoder
from retrieval.trainer import WEIGHTS

_SCHEDULER = "scheduler.pt"


def shard(model: PretrainingModel, device: torch.device) -> None:
    """Cut a model's parameters, each along its first dimension, into as many parts as there are processes; in place.

    A layer's parameters come together when it computes and part again after it; all others, the word embeddings among
    them, are whole as long as the model computes. Numbers stay what they are: sums are taken in another order only.

    Args:
        model: Called, or asked for `vectors`, by all processes at the same time from now on.
        device: Where this process computes.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    # Parameters that stayed whole after a pass without gradients would hide what `advance` changes in their parts.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "vectors")


def _layers(model: PretrainingModel) -> Iterator[nn.Module]:
    """The layers that are only ever called as a whole."""
    terms = list(model.terms.values())
    if not any(term.opens_layers for term in terms):
        yield from layers_of(model.backbone)
    for term in terms:
        for module in term.modules():
            if isinstance(module, PlainDecoder):
                yield from module
            elif getattr(module, "config", None) is not None and type(module) is type(model.backbone):
                yield from layers_of(module)


def whole_tensor(value: Tensor) -> Tensor:
    """A tensor put together from the parts of all processes, each of which has to ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def write_part(value: Tensor, whole: Tensor) -> None:
    """Write a whole tensor into one of which this process may have a part only."""
    if isinstance(value, DTensor):
        part = distribute_tensor(whole, value.device_mesh, value.placements, src_data_rank=None)
        value.to_local().copy_(part.to_local())
    else:
        value.copy_(whole)


class ShardedTrainer(PretrainingTrainer):
    """The loop over a model of which each process keeps a part.

    A checkpoint has the weights as a whole, as any other, and the optimiser's state in one file a process.

    Args:
        model: What is trained. The first process shards a copy: the model itself stays whole, on the CPU, and is as
            trained as of the last `gather`. In other processes it is sharded itself.
        args: As in `ResumableTrainer`, as are the other arguments.
    """

    def __init__(self, model: PretrainingModel, args: TrainingArguments, *arguments: Any) -> None:
        self._whole = model
        super().__init__(copy.deepcopy(model) if args.should_save else model, args, *arguments)
        shard(self.model, args.device)

    @property
    def whole(self) -> nn.Module:
        """The model as of the last `gather`; in the first process only."""
        return self._whole

    def gather(self) -> None:
        """Bring the weights of all processes together in the first one's whole model."""
        target = self._whole.state_dict() if self.args.should_save else {}
        for name, value in self.model.state_dict().items():
            found = whole_tensor(value)
            if target:
                target[name].copy_(found)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Leave it where it is: `shard` moves it part by part, so that the device never holds it all."""

    def _wrap_model(self, model: nn.Module, *_: Any, **__: Any) -> nn.Module:
        # Mixed precision, and a mark by which accelerate leaves the model as it is: nothing is to go around it. Weights
        # in bfloat16 are not kept from layer to layer, which would hold the whole model in each process.
        self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        return self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        norm = nn.utils.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        return whole_tensor(norm)

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        written = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        for name, value in self.model.state_dict().items():
            write_part(value, written[name])

    def _optimizer_file(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"optimizer-{self.args.process_index}.pt"

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        found = self.optimizer.state_dict()
        parts = {
            number: {name: value.to_local() if isinstance(value, DTensor) else value for name, value in state.items()}
            for number, state in found["state"].items()
        }
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # the first process may not have come to it
        torch.save({**found, "state": parts}, self._optimizer_file(output_dir))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        saved = torch.load(self._optimizer_file(checkpoint), map_location="cpu", weights_only=True)
        parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
        state = {
            number: {name: _part_like(parameters[number], value) for name, value in parts.items()}
            for number, parts in saved["state"].items()
        }
        self.optimizer.load_state_dict({**saved, "state": state})
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / _SCHEDULER, weights_only=True))


def _part_like(parameter: DTensor, value: Tensor) -> Tensor:
    """This process's part of what an optimiser keeps for a parameter; its count of steps is no part of anything."""
    if not value.ndim:
        return value
    shape, stride = parameter.shape, parameter.stride()
    value = value.to(parameter.device)
    return DTensor.from_local(value, parameter.device_mesh, parameter.placements, shape=shape, stride=stride)
