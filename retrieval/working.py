"""Working folders of long runs: opened by one configuration, gone on with by the same one, refused to another."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from indexes.errors import InputError
from indexes.manifest import LOCK, differences, read_json, sole_writer, write_json

RUN = "run.json"
"""The run card in a working folder; its `configuration` is what must be equal for two runs to be the same."""


def partial_folder(target: Path) -> Path:
    """Where the run that makes a folder or a file keeps its working state."""
    return target.with_name(f"{target.name}.partial")


@contextlib.contextmanager
def working_folder(target: Path, card: Mapping[str, Any], *, overwrite: bool) -> Iterator[Path]:
    """Hold the working folder of a run: a new one, or the one that the same configuration began.

    It is removed when the block ends well, and kept when it does not.

    Args:
        target: The folder or file that the run makes.
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


def sweep(target: Path, configuration: Mapping[str, Any]) -> None:
    """Remove what a run of this configuration left, that was killed after publishing; another run's stays."""
    partial = partial_folder(target)
    if not (partial / RUN).is_file() or differences(configuration, read_json(partial / RUN)["configuration"]):
        return
    with contextlib.suppress(InputError):  # somebody is at work in it
        with sole_writer(partial):
            pass
        shutil.rmtree(partial)


def _open(partial: Path, card: Mapping[str, Any], *, overwrite: bool) -> None:
    there = [path for path in partial.iterdir() if path.name != LOCK]
    if not (partial / RUN).is_file() and there:
        raise InputError(f"{partial} holds {there[0].name} and belongs to no run; choose another --output")
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
