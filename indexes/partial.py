"""The folder beside an unfinished vectors folder: whose it is, what its writers agreed on, how far they came."""

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from indexes.errors import InputError
from indexes.manifest import LOCK, Busy, differences, held, read_json, write_json
from indexes.vectors import partial_folder

PLAN = "plan.json"
CONTENT = "folder"
"""Inside the partial folder: what becomes the folder. Plan, records and locks stay outside it."""
_KIND = "vectors plan"
_RECORDS = "shard-*.done.json"


def unfinished(folder: Path) -> dict[str, Any] | None:
    """How far the writers of a vectors folder came; None where none is at work and none was interrupted.

    The files of the shards are not looked at: a writer does that when it goes on.

    Args:
        folder: The folder that they make, or its partial folder.

    Returns:
        `partial` (where it is), `shards`, `documents` and `rows` that are done, and the `plan`.

    Raises:
        InputError: The plan is damaged or no writer's.
    """
    places = [folder, partial_folder(folder)] if folder.name else [folder]
    partial = next((place for place in places if (place / PLAN).is_file()), None)
    if partial is None:
        return None
    plan = read_plan(partial)
    records = [read_json(path) for path in partial.glob(_RECORDS)]
    counts = {name: sum(record[name] for record in records) for name in ("documents", "rows")}
    return {"partial": str(partial), "shards": len(records), **counts, "plan": plan}


def has_shards(partial: Path) -> bool:
    """Whether there is anything to go on with."""
    return (partial / CONTENT).is_dir() and any(partial.glob(_RECORDS))


def write_plan(partial: Path, plan: Mapping[str, Any]) -> None:
    """Say what is being made here; from now on this is a writer's folder."""
    write_json(partial / PLAN, {"kind": _KIND, **plan})


def read_plan(partial: Path) -> dict[str, Any]:
    """What is being made here: the records `made_by` and `encoding`.

    Raises:
        InputError: There is no plan, or the file of that name is not a writer's.
    """
    plan = read_json(partial / PLAN)
    if not isinstance(plan, dict) or plan.pop("kind", None) != _KIND:
        raise InputError(f"{partial} holds {PLAN} and was not made by encode; choose another --output")
    return plan


def refuse_foreign(partial: Path) -> None:
    """Refuse a folder that no writer made, before anything in it is touched; an empty one is free to take.

    Raises:
        InputError: It holds something else; the message names it.
    """
    if (partial / PLAN).is_file():
        read_plan(partial)
    elif partial.is_dir():
        for path in partial.iterdir():
            begun = path.name == LOCK or path.name.startswith(f".{PLAN}.")  # killed before the plan was there
            if not begun and not (path.name == CONTENT and path.is_dir() and not any(path.iterdir())):
                raise InputError(f"{partial} holds {path.name} and was not made by encode; choose another --output")


def empty(partial: Path) -> None:
    """Remove everything but the lock; the plan goes last, so that a killed process leaves a writer's folder."""
    for path in sorted(partial.iterdir(), key=lambda path: path.name == PLAN):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def discard(partial: Path) -> None:
    """Remove a partial folder, if it is a writer's and no process is at it."""
    with contextlib.suppress(OSError, InputError, Busy):
        refuse_foreign(partial)
        with held(partial / LOCK):
            empty(partial)
            shutil.rmtree(partial)


def same_plan(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two plans make the same bytes."""
    return (one["made_by"]["fingerprint"], one["encoding"]) == (other["made_by"]["fingerprint"], other["encoding"])


def plan_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Name the fields in which two plans differ, both sides."""
    return differences(*({**plan["made_by"], **plan["encoding"]} for plan in (one, other)))
