"""When to stop: probes while a run goes on, the best one's weights, and an early end; all of it outlives a kill."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from indexes.errors import InputError
from pretraining.probing import NDCG, Probe, ProbeOptions
from retrieval.processes import told_by_first
from retrieval.trainer import ResumableTrainer, unique_state

OnNote = Callable[[str], None]


class ProbeHistory:
    """The probes of a run, as its log has them: the log is the only place where they are kept.

    Args:
        log: The run's log, which ends where the run goes on.
        patience: As in `ProbeOptions`.

    Attributes:
        values: Each probe's values by step.
    """

    def __init__(self, log: Path, patience: int | None) -> None:
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        found = [json.loads(line) for line in lines if f'"{NDCG}"' in line]
        self.patience = patience
        self.values: dict[int, dict[str, float]] = {
            line["step"]: {name: value for name, value in line.items() if name != "step"} for line in found
        }

    @property
    def best(self) -> int | None:
        """The step that ranked best; of equals the earliest; None before the first probe."""
        return max(self.values, key=lambda step: (self.values[step][NDCG], -step), default=None)

    @property
    def exhausted(self) -> bool:
        """Whether patience is at its end."""
        best = self.best
        since = 0 if best is None else sum(step > best for step in self.values)
        return self.patience is not None and since >= self.patience


class BestWeights:
    """The weights of the best probe, on disk.

    Those of the best probe as of the newest checkpoint stay until there is a newer checkpoint: a killed run goes on
    from there, and must find what was best then.

    Args:
        folder: Where they are kept; what the history does not know of is removed.
        history: What there was when the newest checkpoint was made.

    Raises:
        InputError: They are gone.
    """

    def __init__(self, folder: Path, history: ProbeHistory) -> None:
        self.folder, self.safe = folder, history.best
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_but(self.safe)
        if self.safe is not None and not self._path(self.safe).is_file():
            raise InputError(
                f"{self._path(self.safe)} is missing, the best weights so far; start anew: remove {folder.parent}"
            )

    def keep(self, model: nn.Module, step: int) -> None:
        """Write the weights that were probed at a step."""
        temporary = self.folder / f".best-{step}"
        save_file({name: value.contiguous() for name, value in unique_state(model).items()}, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(self._path(step))
        self._remove_but(step, self.safe)

    def saved(self, best: int | None) -> None:
        """A checkpoint was made when this step was the best."""
        self.safe = best
        self._remove_but(best)

    def load(self, model: nn.Module, step: int) -> None:
        """Put the weights of a step into the model."""
        weights = load_file(self._path(step))
        for name, value in unique_state(model).items():
            value.copy_(weights[name])

    def _path(self, step: int) -> Path:
        return self.folder / f"best-{step}.safetensors"

    def _remove_but(self, *steps: int | None) -> None:
        kept = {self._path(step) for step in steps if step is not None}
        for path in [*self.folder.glob("best-*"), *self.folder.glob(".best-*")]:
            if path not in kept:
                path.unlink()


class Probing(TrainerCallback):
    """Probes every so often, before the checkpoint of that step is written, and ends training when patience is out.

    The first process probes; the others wait for it, and learn from it whether to go on.

    Args:
        trainer: Whose log the values go to.
        probe: Of the first process; None in others.
        options: When to probe.
        history: What there is already.
        best: Where to keep the best weights; None: nowhere.
        on_note: Called with a line for each probe.
    """

    def __init__(
        self,
        trainer: ResumableTrainer,
        probe: Probe | None,
        options: ProbeOptions,
        history: ProbeHistory,
        best: BestWeights | None,
        on_note: OnNote,
    ) -> None:
        self.trainer, self.probe, self.options = trainer, probe, options
        self.history, self.best, self.on_note = history, best, on_note

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Probe the encoder as it came."""
        if state.global_step == 0 and not self.history.values:
            self._measure(0)
        self._wait(args, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Probe after every so many steps and after the last."""
        if state.global_step % self.options.every == 0 or state.global_step == state.max_steps:
            self._measure(state.global_step)
            self._wait(args, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """From now on, a killed run goes on from here."""
        if self.best is not None:
            self.best.saved(self.history.best)

    def _measure(self, step: int) -> None:
        self.trainer.gather()
        if self.probe is None:
            return
        values = self.probe.measure()
        self.history.values[step] = values
        is_best = self.history.best == step
        if is_best and self.best is not None:
            self.best.keep(self.probe.base.model, step)  # before the log says that there is such a probe
        self.trainer.write_line({"step": step, **values})
        self.on_note(f"step {step:,}: {said_of(values)}{' (best)' if is_best else ''}")

    def _wait(self, args: Any, control: Any) -> None:
        if told_by_first(self.history.exhausted, args.device):
            control.should_training_stop = True


def said_of(values: Mapping[str, float]) -> str:
    """A probe in one line."""
    gaps = [f"{name.rpartition('/')[2]} {value:+.3f}" for name, value in values.items() if "shuffle_gap/" in name]
    return ", ".join(
        [
            f"probe nDCG@10 {values[NDCG]:.4f}",
            *([f"shuffle gap of {' and '.join(gaps)}"] if gaps else []),
        ]
    )
