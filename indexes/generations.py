"""Index folders that change: each change is a generation, published whole by one writer; readers never wait.

The manifest names all files of its generation. A change writes new files beside them, then replaces the manifest in one
step, and only then removes what no generation needs any more: whoever is killed, whenever, leaves the old generation
or the new one. Readers keep their files mapped, so that they go on reading their generation after it is gone.
"""

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from indexes.checksums import check_files, describe
from indexes.errors import InputError
from indexes.manifest import MANIFEST, read_manifest, sole_writer, sync, whole_manifest, write_manifest

KIND = "index"
_OURS = re.compile(
    r"(segment|moments|deleted|tuned)-\d{6,}(-\d+)?(\.npy|\.new|\.json|\.json\.svg)?|\.(manifest|tuned-\d{6,})\.json\.\d+"
)
PLOT = "{}.svg"
"""The name of the plot beside a table of what tuning measured."""
_SUFFIXES = {"segment": "", "tuned": ".json"}
_WORK = ".tuning"
_FULL_UP_TO = 8_000_000_000
_PATIENCE = 30.0

T = TypeVar("T")


class Change:
    """A generation in the making. What is written under the names it gives is published by `commit`, or removed.

    Attributes:
        manifest: Of the generation before.
        generation: The number of the new one.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self._folder = folder
        self.manifest = manifest
        self.generation: int = manifest["generation"] + 1

    def path(self, kind: str, number: int | None = None) -> Path:
        """Where a new file or folder of a kind is to be written: segment, moments, deleted or tuned.

        Args:
            kind: Which.
            number: Among several of the kind.
        """
        return self._folder / file_name(kind, self.generation, number)

    def describe(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest of the new generation, all of whose files are on the disk.

        Args:
            content: Of the manifest; `segments`, `moments` and `deleted` say which files it consists of.
        """
        known = self.manifest["files"]
        files = {name: known.get(name) or describe(self._folder / name) for name in _files_of(self._folder, content)}
        new = [self._folder / name for name in files.keys() - known.keys()]
        for path in [*new, *{path.parent for path in new}]:
            sync(path)
        return whole_manifest(KIND, {**content, "generation": self.generation}, files)

    def commit(self, manifest: Mapping[str, Any]) -> None:
        """Make a generation the folder's.

        Raises:
            InputError: Another has taken the place of the generation before.
        """
        if read_manifest(self._folder, KIND) != self.manifest:
            raise InputError(f"{self._folder} was replaced by another index meanwhile; change that one")
        write_manifest(self._folder, manifest)
        sync(self._folder)


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[Change]:
    """Hold an index folder for a change; what is not published when the block ends, or is needed no more, is removed.

    Raises:
        InputError: Another process is changing it, or it cannot be written.
    """
    read_manifest(folder, KIND)
    with sole_writer(folder):
        _sweep(folder)
        try:
            yield Change(folder, read_manifest(folder, KIND))
        finally:
            with contextlib.suppress(InputError):  # of a folder that was taken away meanwhile
                _sweep(folder)


def file_name(kind: str, generation: int, number: int | None = None) -> str:
    """The name of a generation's own file or folder, one of several if it has a number."""
    which = "" if number is None else f"-{number}"
    return f"{kind}-{generation:06d}{which}{_SUFFIXES.get(kind, '.npy')}"


def work_folder(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Where what was built to tune a generation is kept, until there is another one."""
    return folder / _WORK / f"{manifest['build']}-{manifest['generation']}"


def opened(
    folder: Path, read: Callable[[dict[str, Any]], T], check: str | None, known: Mapping[str, Any] | None = None
) -> T:
    """What `read` makes of the folder's manifest, once its files are found to be what it says.

    If the folder changes meanwhile and takes files away, its new generation is read; files that were checked before
    are not checked again.

    Args:
        folder: The index folder.
        read: Called with the manifest; opens all files it needs.
        check: One of `CHECKS`; None: full up to 8 GB, else sample.
        known: Files of another generation that were checked, as its manifest lists them.

    Raises:
        InputError: There is no index, its files are damaged, or it changes again and again for half a minute.
    """
    checked = dict(known or {})
    end = time.monotonic() + _PATIENCE
    while True:
        manifest = read_manifest(folder, KIND)
        try:
            check_files(folder, manifest, check, full_up_to=_FULL_UP_TO, beyond="sample", known=checked)
            made = read(manifest)
        except (InputError, OSError):
            if _present(folder) == manifest:
                raise
        else:
            if read_manifest(folder, KIND)["build"] == manifest["build"]:
                return made  # else another index took its place, with files of the same names
        if time.monotonic() > end:
            raise InputError(f"{folder} changes faster than it can be opened; open it with check='size'")


def _present(folder: Path) -> Any:
    try:
        return read_manifest(folder, KIND)
    except (InputError, OSError):
        return None


def _files_of(folder: Path, content: Mapping[str, Any]) -> Iterator[str]:
    tuned = content.get("tuned")
    for name in (content["moments"], content["deleted"], tuned):
        if name is not None:
            yield name
    if tuned is not None:
        yield PLOT.format(tuned)
    for segment in content["segments"]:
        paths = sorted(path for path in (folder / segment["name"]).rglob("*") if path.is_file())
        yield from (path.relative_to(folder).as_posix() for path in paths)


def _sweep(folder: Path) -> None:
    """Remove files of other generations than the folder's own."""
    manifest = read_manifest(folder, KIND)
    needed = {MANIFEST, *(name.partition("/")[0] for name in manifest["files"])}
    for path in folder.iterdir():
        if path.name not in needed and _OURS.fullmatch(path.name):
            with contextlib.suppress(OSError):  # Windows keeps what is mapped; the next change removes it
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    ours = work_folder(folder, manifest)
    for path in ours.parent.iterdir() if ours.parent.is_dir() else ():
        if path != ours:
            shutil.rmtree(path, ignore_errors=True)
