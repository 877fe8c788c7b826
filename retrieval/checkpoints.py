"""Checkpoints that count only when they are whole: a marker, written last, names every file and its size."""

import os
import shutil
from pathlib import Path

from indexes.manifest import read_json, write_json

MARKER = "complete.json"
_PREFIX = "checkpoint-"


def finish_checkpoint(folder: Path) -> None:
    """Flush a written checkpoint to disk and mark it as complete."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    write_json(folder / MARKER, {"files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}})


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint has its marker and every file that the marker names, at its full size."""
    if not (folder / MARKER).is_file():
        return False
    sizes = read_json(folder / MARKER)["files"]
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def newest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """The newest complete checkpoint and its step; None if there is none."""
    whole = [(step_of(path), path) for path in folder.glob(f"{_PREFIX}*") if is_complete(path)]
    return max(whole, default=None)


def keep_only(folder: Path, kept: Path | None) -> None:
    """Remove every checkpoint but one: older ones and those that were never finished."""
    for path in folder.glob(f"{_PREFIX}*"):
        if path != kept:
            (path / MARKER).unlink(missing_ok=True)  # first, so that a half-removed one cannot count
            shutil.rmtree(path)


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name, `checkpoint-STEP`."""
    return int(folder.name.removeprefix(_PREFIX))
