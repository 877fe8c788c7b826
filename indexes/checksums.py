"""Files and their checksums: what a manifest says of each, and whether it is still so."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from indexes.errors import InputError

CHECKS = ("full", "sample", "size")
"""How the files of a folder are compared with its manifest: every byte, some of the larger ones', or their sizes."""
_ALWAYS_VERIFIED = 256_000_000
_SAMPLED = 16_000_000
_SAMPLES, _SAMPLE = 64, 65_536


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces), as 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below a folder, as 64 hex digits."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint({path.relative_to(folder).as_posix(): file_digest(path) for path in paths})


def sample_digest(path: Path) -> str:
    """SHA-256 of 64 blocks of 64 KiB, evenly spaced from the first to the last of a file, as 64 hex digits."""
    digest = hashlib.sha256()
    last = max(path.stat().st_size - _SAMPLE, 0)
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek(last * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: its size and SHA-256, and that of a sample of a large one."""
    size = path.stat().st_size
    sample = {"sample": sample_digest(path)} if size > _SAMPLED else {}
    return {"bytes": size, "sha256": file_digest(path), **sample}


def check_files(
    folder: Path,
    manifest: Mapping[str, Any],
    check: str | None,
    *,
    full_up_to: int | None = None,
    beyond: str = "size",
    known: dict[str, Any] | None = None,
) -> None:
    """Check that a folder's files are what its manifest says.

    Args:
        folder: The folder.
        manifest: Its manifest.
        check: As for `open_manifest`.
        full_up_to: As for `open_manifest`.
        beyond: As for `open_manifest`.
        known: Files that were checked before, as a manifest lists them: left out; those found sound are added.

    Raises:
        InputError: A file is missing, truncated or damaged.
    """
    if check not in (None, *CHECKS):
        raise InputError(f"check is {check!r}; expected one of {', '.join(CHECKS)}")
    known = {} if known is None else known
    size_of_all = sum(entry["bytes"] for entry in manifest["files"].values())
    check = check or ("full" if size_of_all <= (full_up_to or _ALWAYS_VERIFIED) else beyond)
    files = {name: entry for name, entry in manifest["files"].items() if known.get(name) != entry}
    for name, entry in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            state = "is missing" if size is None else f"has {size:,} bytes"
            raise InputError(f"{path} {state}; the manifest says {entry['bytes']:,} bytes: make the folder again")
    damaged = damaged_files(folder, files, check)
    known.update({name: entry for name, entry in files.items() if name not in damaged})
    _refuse_damaged(folder, damaged)


def verify(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare every file of a folder with the checksum in its manifest.

    Raises:
        InputError: Files are missing, cut short or different; the message names the first ones.
    """
    _refuse_damaged(folder, damaged_files(folder, manifest["files"]))


def _refuse_damaged(folder: Path, damaged: Sequence[str]) -> None:
    if damaged:
        more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        raise InputError(
            f"{', '.join(str(folder / name) for name in damaged[:3])}{more}: damaged "
            "(size or SHA-256 is not the manifest's); make the folder again"
        )


def damaged_files(folder: Path, files: Mapping[str, Mapping[str, Any]], check: str = "full") -> list[str]:
    """The names of files that are missing, of another size or of another SHA-256 than `files` says of them."""

    def sound(path: Path, entry: Mapping[str, Any]) -> bool:
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return False
        if check == "full":
            return file_digest(path) == entry["sha256"]
        return check == "size" or "sample" not in entry or sample_digest(path) == entry["sample"]

    return [name for name, entry in files.items() if not sound(folder / name, entry)]
