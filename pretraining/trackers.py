"""Who follows a run: Trainer's own trackers (TensorBoard, Weights & Biases and the like), and the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import integration_utils

from indexes.errors import InputError
from pretraining.report import REPORT, write_report

_PACKAGES = {"azure_ml": "azureml-core"}
_NO_TRACKERS = ("flyte", "kubeflow")
"""Callbacks that Trainer lists among them and that work inside their own systems only."""


def tracker_callbacks(names: Sequence[str], tensorboard: Path) -> list[TrainerCallback]:
    """Trainer's callbacks for trackers by name, such as `tensorboard`, `wandb` or `mlflow`.

    They are set up as Trainer does it, by their own environment variables.

    Args:
        names: As Trainer's `report_to` has them.
        tensorboard: Where TensorBoard's files go if TENSORBOARD_LOGGING_DIR does not say it.

    Raises:
        InputError: A tracker is unknown or not installed.
    """
    known = {name: one for name, one in integration_utils.INTEGRATION_TO_CALLBACK.items() if name not in _NO_TRACKERS}
    there = integration_utils.get_available_reporting_integrations() if names else []
    made = []
    for name in dict.fromkeys(names):
        if name not in known:
            raise InputError(f"report_to has {name!r}; expected trackers among {', '.join(sorted(known))}")
        if name not in there:
            package = _PACKAGES.get(name, name.replace("_", "-"))
            raise InputError(f"report_to has {name}, which is not installed here: pip install {package}")
        made.append(known[name]())
        if name == "tensorboard" and made[-1].logging_dir is None:
            made[-1].logging_dir = str(tensorboard)
    return made


class Reporting(TrainerCallback):
    """Writes the report of a run that goes on, after each checkpoint and each probe.

    Args:
        folder: The run's working folder.
        name: Of the run.
        card: The run card.
    """

    def __init__(self, folder: Path, name: str, card: Mapping[str, Any]) -> None:
        self.folder, self.name, self.card = folder, name, card

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """There is a checkpoint."""
        write_report(self.folder, self.folder / REPORT, name=self.name, card=self.card)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """There is a probe, if the line is of one."""
        if any(name.startswith("probe/") for name in logs or ()):
            write_report(self.folder, self.folder / REPORT, name=self.name, card=self.card)
