"""The training loop: transformers' Trainer with our data order, checkpoints and log, resumable bit for bit."""

import ctypes
import gc
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from indexes.errors import InputError
from retrieval.checkpoints import finish_checkpoint, keep_only, newest_checkpoint
from retrieval.devices import best_device
from retrieval.orders import EpochOrder
from retrieval.seeds import seed_of, seeded

WEIGHTS = "model.safetensors"
_STEPS_BETWEEN_TRIMS = 5
_DROPOUT = 1  # keeps the seeds of dropout apart from those of masks


class ResumableTrainer(Trainer):
    """Trainer whose runs, killed and started again, compute what an uninterrupted run computes.

    Everything random in a micro-step (masks, dropout) depends on (seed, step, micro-step, rank) and on nothing else;
    the order of the data on (seed, epoch); and a checkpoint counts once it is whole.

    Args:
        model: Called with what `losses` passes it; gives a dictionary of losses with `total`.
        args: Made by `resumable_arguments`.
        rows: What is trained on.
        collate: Rows to a batch.
        log_file: Where one JSON object is appended a step.
        on_progress: Called with the steps done and their total.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        rows: Dataset[Any],
        collate: Callable[[list[Any]], dict[str, Any]],
        log_file: Path,
        on_progress: Callable[[int, int | None], None] | None = None,
    ) -> None:
        self.log_file, self._micro, self._at = log_file, 0, -1
        self._terms: dict[str, Tensor] = {}
        callbacks = [_Progress(on_progress)] if on_progress else []
        super().__init__(model=model, args=args, train_dataset=rows, data_collator=collate, callbacks=callbacks)
        self.remove_callback(PrinterCallback)

    def losses(self, model: Any, inputs: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Call the model on a batch; a subclass prepares here what its model needs."""
        return model(inputs, generator)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Seed this micro-step, compute the losses, and keep each one's value for the log."""
        self._micro = self._micro + 1 if self.state.global_step == self._at else 0
        self._at = self.state.global_step
        if self._at % _STEPS_BETWEEN_TRIMS == 0:
            return_free_memory()
        generator = self.seeded_for(self._micro)
        losses = self.losses(model, inputs, generator)
        share = {name: value.detach() / self.args.gradient_accumulation_steps for name, value in losses.items()}
        self._terms = {name: value + (self._terms[name] if self._micro else 0) for name, value in share.items()}
        return (losses["total"], losses) if return_outputs else losses["total"]

    def seeded_for(self, micro: int) -> torch.Generator:
        """Seed the dropout of a micro-step of the present step, and give a generator for its masks."""
        address = (self.args.seed, self._at, micro, self.args.process_index)
        torch.manual_seed(seed_of(*address, _DROPOUT))
        return seeded(self.args.device, *address)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Append one line a step; the values are of this process's share of the batch.

        Raises:
            InputError: The loss is no longer a finite number.
        """
        if "loss" not in logs or not self.args.should_save:
            return
        terms = {name: value.item() for name, value in self._terms.items()}
        if not math.isfinite(terms["total"]):
            raise InputError(
                f"the loss became {terms['total']} at step {self.state.global_step} with learning rate "
                f"{self.args.learning_rate:g}; take a lower --learning-rate or a longer --warmup-steps"
            )
        line = {"step": self.state.global_step, **terms}
        line |= {"gradient_norm": logs["grad_norm"], "learning_rate": logs["learning_rate"], **self.more_to_log()}
        self.write_line(line)

    def write_line(self, line: dict[str, float]) -> None:
        """Append a line to the log, and tell Trainer's trackers, if there are any, at the present step."""
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        values = {name: value for name, value in line.items() if name != "step"}
        # Not `on_log` itself, which would take this line for the one of the step that is going on.
        self.callback_handler.call_event("on_log", self.args, self.state, self.control, logs=values)

    def more_to_log(self) -> dict[str, float]:
        """What else a step's line says; a subclass has more to say."""
        return {}

    def to_the_end(self, checkpoint: Path | None) -> None:
        """Train from a checkpoint, or from the start, to the last step, and give up what training alone needs."""
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        self.release()
        if self.state.global_step != self.args.max_steps:
            raise RuntimeError(f"training ended at step {self.state.global_step} of {self.args.max_steps}")

    def release(self) -> None:
        """Give up optimizer and gradients, which would live on in cycles and in accelerate's shared state."""
        self.accelerator.free_memory()
        self.optimizer = self.lr_scheduler = None
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        return_free_memory()

    def rows_of_run(self) -> int:
        """How many rows the whole run reads, all processes together."""
        micro_batches = self.args.max_steps * self.args.gradient_accumulation_steps * self.args.world_size
        return micro_batches * self.args.per_device_train_batch_size

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return EpochOrder(len(self.train_dataset), self.rows_of_run(), self.args.seed)

    @property
    def whole(self) -> nn.Module:
        """The model that probes read and checkpoints hold; a subclass may have it apart from the trained one."""
        return self.model

    def gather(self) -> None:
        """Bring `whole` up to date, all processes together."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights, once, into a checkpoint's folder."""
        self.gather()
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            state = {name: value.contiguous() for name, value in unique_state(self.whole).items()}
            save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    def load_weights(self, checkpoint: Path) -> None:
        """Put a checkpoint's weights into the model, without going on from it."""
        self._load_from_checkpoint(str(checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        written = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        for name, value in unique_state(model or self.model).items():
            value.copy_(written[name])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with self.log_file.open("rb") as file:
                os.fsync(file.fileno())  # what the log says up to here must not be lost if the checkpoint is not
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            finish_checkpoint(folder)
            keep_only(folder.parent, folder)


def recompute_layers(backbone: Any) -> None:
    """Have a model's layers computed again in the backward pass instead of kept: the same bits, in less memory."""
    # transformers 5.23 renamed it, and warns of the old name.
    enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise InputError(
            f"this model's layers cannot be computed again: {' '.join(str(error).split())[:200]}"
        ) from None


def return_free_memory() -> None:
    """Hand freed memory back to the system where the C library can (glibc).

    Batches differ in shape, so that freed blocks seldom fit the next one and the heap would grow by gigabytes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of a model's state once, under the first of its names: safetensors refuses shared memory."""
    seen: dict[int, str] = {}
    state = model.state_dict()
    return {name: value for name, value in state.items() if seen.setdefault(value.data_ptr(), name) == name}


def resumable_arguments(
    folder: Path,
    *,
    max_steps: int,
    batch_size: int,
    learning_rate: float,
    warmup_steps: int,
    save_steps: int,
    seed: int,
    accumulation: int = 1,
    weight_decay: float = 0.01,
    mixed: bool = False,
) -> TrainingArguments:
    """What Trainer is told; trackers, bars, evaluation and its own rotation of checkpoints are off.

    `mixed` computes in bfloat16 where that is safe and keeps weights in float32.
    """
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=max_steps,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
        lr_scheduler_type="linear",
        save_strategy="steps",
        save_steps=save_steps,
        save_total_limit=None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        seed=seed,
        bf16=mixed,
        use_cpu=best_device() == "cpu",
    )
    args._n_gpu = min(args.n_gpu, 1)  # several GPUs are torchrun's business, not that of DataParallel
    return args


def back_to_checkpoint(folder: Path, log: Path) -> tuple[int, Path | None]:
    """Drop what came after the newest complete checkpoint, log lines too; gives its step and folder, or 0 and None."""
    step, newest = newest_checkpoint(folder) or (0, None)
    keep_only(folder, newest)
    trim_log(log, step)
    return step, newest


def trim_log(path: Path, step: int) -> None:
    """Drop the lines after `step`, which a resumed run writes again, and a line that was cut short."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.endswith("}") or json.loads(line)["step"] > step:
            break
        kept.append(line + "\n")
    temporary = path.with_suffix(".new")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


class _Progress(TrainerCallback):
    def __init__(self, on_progress: Callable[[int, int | None], None]) -> None:
        self.on_progress = on_progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_progress(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_progress(state.global_step, state.max_steps)
