"""The checks of a training run, and the weights that did best in one of them, the start included."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from indexes.manifest import read_json, write_json
from retrieval.trainer import unique_state

_BEST, _CHECKS = "best.safetensors", "checks.json"


class Selection(TrainerCallback):
    """Measures a model every so often and keeps the weights that do best.

    Args:
        model: Whose weights are kept.
        measure: Gives the value of the weights as they are; the higher the better.
        name: Of the measure.
        folder: The run's working folder.
        every: Steps between two checks.
        on_note: Called with a line for each check.

    Attributes:
        checks: Step to value.
    """

    def __init__(
        self,
        model: nn.Module,
        measure: Callable[[], float],
        name: str,
        folder: Path,
        every: int,
        on_note: Callable[[str], None],
    ) -> None:
        self.model, self.measure, self.name = model, measure, name
        self.folder, self.every, self.on_note = folder, every, on_note
        written = read_json(folder / _CHECKS) if (folder / _CHECKS).is_file() else {}
        self.checks: dict[int, float] = {int(step): value for step, value in written.items()}

    @property
    def best(self) -> int:
        """The step that did best; of equals the earliest."""
        return max(self.checks, key=lambda step: (self.checks[step], -step))

    def check(self, step: int) -> None:
        """Measure the weights as they are; a step that was measured before a kill keeps its value and its weights."""
        if step in self.checks:
            return
        self.checks[step] = round(self.measure(), 9)
        if self.best == step:
            temporary = self.folder / f".{_BEST}"
            save_file({name: value.contiguous() for name, value in unique_state(self.model).items()}, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self.folder / _BEST)
        write_json(self.folder / _CHECKS, self.checks)
        best = " (best)" if self.best == step else ""
        self.on_note(f"step {step:,}: held-out {self.name} {self.checks[step]:.4f}{best}")

    def load_best(self) -> None:
        """Put the best weights back into the model."""
        weights = load_file(self.folder / _BEST)
        for name, value in unique_state(self.model).items():
            value.copy_(weights[name])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check after every so many steps and after the last, before the checkpoint of that step is written."""
        if args.should_save and (state.global_step % self.every == 0 or state.global_step == state.max_steps):
            self.check(state.global_step)
