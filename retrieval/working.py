"""Working folders of training runs: opened by one configuration, gone on with by the same one, refused to another."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from indexes.checksums import verify
from indexes.errors import InputError
from indexes.manifest import LOCK, differences, open_manifest, read_json, refuse_existing, sole_writer, write_json

CARD = "retrokit.json"
"""The run card in a finished model folder; its `configuration` is what must be equal for two runs to be the same."""
KIND = "model"
RUN = "run.json"
"""The run card in a working folder."""
LOG = "log.jsonl"
"""The log in both: a JSON object a step."""

_PACKAGES = ("torch", "transformers", "tokenizers", "sentence-transformers", "accelerate", "numpy")


def package_versions() -> dict[str, str]:
    """The versions of the packages that decide what a run computes."""
    return {name: version(name) for name in _PACKAGES}


def partial_folder(target: Path) -> Path:
    """Where the run that makes a model folder keeps its working state."""
    return target.with_name(f"{target.name}.partial")


def finished_card(target: Path, configuration: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """The card of a model folder that this very configuration made and that is whole; None if it has to be made.

    Raises:
        InputError: The folder exists and is another's or damaged, and may not be overwritten.
    """
    if overwrite or not target.exists():
        refuse_existing(target, overwrite=overwrite)
        return None
    if not (target / CARD).is_file():
        refuse_existing(target, overwrite=False)
    card = read_json(target / CARD)
    found = differences(configuration, card.get("configuration", {}))
    if found:
        raise InputError(f"{target} was made otherwise ({found}); choose another --output or pass --overwrite")
    verify(target, open_manifest(target, KIND))
    # A process killed between publishing the folder and sweeping up leaves its working state behind.
    if (partial_folder(target) / RUN).is_file():
        shutil.rmtree(partial_folder(target))
    return card


@contextlib.contextmanager
def working_folder(target: Path, card: Mapping[str, Any], *, overwrite: bool) -> Iterator[Path]:
    """Hold the working folder of a run: a new one, or the one that the same configuration began.

    It is removed when the block ends well, and kept when it does not.

    Args:
        target: The model folder that the run makes.
        card: Holds the `configuration`.
        overwrite: Discard the state of another configuration instead of refusing.

    Raises:
        InputError: It belongs to another configuration or to something else, or another process is at work in it.
    """
    partial = partial_folder(target)
    partial.mkdir(parents=True, exist_ok=True)
    with sole_writer(partial):
        _open(partial, card, overwrite=overwrite)
        try:
            yield partial
        except InputError:
            if {path.name for path in partial.iterdir()} <= {RUN, LOCK}:
                shutil.rmtree(partial)  # nothing to go on with, and other options may follow
            raise
    shutil.rmtree(partial)


def _open(partial: Path, card: Mapping[str, Any], *, overwrite: bool) -> None:
    there = [path for path in partial.iterdir() if path.name != LOCK]
    if not (partial / RUN).is_file() and there:
        raise InputError(f"{partial} holds {there[0].name} and belongs to no training run; choose another --output")
    if (partial / RUN).is_file():
        found = differences(card["configuration"], read_json(partial / RUN)["configuration"])
        if not found:
            return
        if not overwrite:
            raise InputError(
                f"{partial} belongs to another run ({found}); give the same options, choose another --output, "
                "or pass --overwrite to start anew"
            )
        # First, so that a half-removed state, left by a kill, can be taken for nobody's run.
        write_json(partial / RUN, {"configuration": {}})
        for path in there:
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != RUN:
                path.unlink()
    write_json(partial / RUN, card)
