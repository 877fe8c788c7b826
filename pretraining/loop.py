"""The training loop: transformers' Trainer with our data order, masks, checkpoints and log, resumable bit for bit."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from indexes.errors import InputError
from pretraining.checkpoints import finish_checkpoint, keep_only
from pretraining.masking import seed_of, seeded
from pretraining.objective import PretrainingModel
from pretraining.tokens import Collator, TokenWindows

WEIGHTS = "model.safetensors"
_DROPOUT = 1  # keeps the seeds of dropout apart from those of masks


class EpochOrder(Sampler[int]):
    """Row numbers of a whole run in one go: every epoch another permutation, drawn from (seed, epoch)."""

    def __init__(self, rows: int, total: int, seed: int) -> None:
        self.rows, self.total, self.seed = rows, total, seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        for epoch in range(math.ceil(self.total / self.rows)):
            generator = seeded(torch.device("cpu"), self.seed, epoch)
            order = torch.randperm(self.rows, generator=generator)
            yield from order[: self.total - epoch * self.rows].tolist()


class PretrainingTrainer(Trainer):
    """Trainer over a PretrainingModel.

    Everything random in a micro-step (masks, dropout) depends on (seed, step, micro-step, rank) and on nothing else,
    so that a run that was killed and started again computes what the uninterrupted run computes.

    Args:
        model: What is trained.
        args: Made by `training_arguments`.
        windows: The tokens.
        collator: Windows to a batch.
        log_file: Where one JSON object is appended a step.
        on_progress: Called with the steps done and their total.
    """

    def __init__(
        self,
        model: PretrainingModel,
        args: TrainingArguments,
        windows: TokenWindows,
        collator: Collator,
        log_file: Path,
        on_progress: Callable[[int, int | None], None] | None = None,
    ) -> None:
        self.log_file, self._micro, self._at = log_file, 0, -1
        self._terms: dict[str, Tensor] = {}
        callbacks = [_Progress(on_progress)] if on_progress else []
        super().__init__(model=model, args=args, train_dataset=windows, data_collator=collator, callbacks=callbacks)
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sample masks, run the objective, and keep each term's value for the log."""
        self._micro = self._micro + 1 if self.state.global_step == self._at else 0
        self._at = self.state.global_step
        address = (self.args.seed, self._at, self._micro, self.args.process_index)
        torch.manual_seed(seed_of(*address, _DROPOUT))
        generator = seeded(inputs["ids"].device, *address)
        batch = self.model.sample(inputs["ids"], inputs["attention_mask"], inputs["word_starts"], generator=generator)
        losses = model(batch)
        share = {name: value.detach() / self.args.gradient_accumulation_steps for name, value in losses.items()}
        self._terms = {name: value + (self._terms[name] if self._micro else 0) for name, value in share.items()}
        return (losses["total"], losses) if return_outputs else losses["total"]

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
        line |= {"gradient_norm": logs["grad_norm"], "learning_rate": logs["learning_rate"]}
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        micro_batches = self.args.max_steps * self.args.gradient_accumulation_steps * self.args.world_size
        return EpochOrder(
            len(self.train_dataset), micro_batches * self.args.per_device_train_batch_size, self.args.seed
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        state = state_dict or self.model.state_dict()
        save_file(
            {name: value.contiguous() for name, value in state.items()}, folder / WEIGHTS, metadata={"format": "pt"}
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        (model or self.model).load_state_dict(load_file(Path(resume_from_checkpoint) / WEIGHTS))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            finish_checkpoint(folder)
            keep_only(folder.parent, folder)


def training_arguments(folder: Path, config: Any) -> TrainingArguments:
    """What Trainer is told; trackers, bars, evaluation and its own rotation of checkpoints are off."""
    on_cpu = not torch.accelerator.is_available()
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup,
        lr_scheduler_type="linear",
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and torch.distributed.is_torchelastic_launched() else None,
        ddp_find_unused_parameters=False,
        seed=config.seed,
    )
    args._n_gpu = min(args.n_gpu, 1)  # several GPUs are torchrun's business, not that of DataParallel
    return args


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
