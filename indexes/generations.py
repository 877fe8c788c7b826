"""Index folders that change: each change is a generation, published whole by one writer; readers never wait.

The manifest names all files of its generation. A change writes new files beside them, then replaces the manifest in one
step, and only then removes what no generation needs any more: whoever is killed, whenever, leaves the old generation
or the new one. Readers keep their files mapped, so that they go on reading their generation after it is gone.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from indexes.errors import InputError
from indexes.manifest import MANIFEST, describe, read_manifest, seal, sole_writer, sync

KIND = "index"
_OURS = re.compile(r"(segment|moments|deleted)-\d{6,}(\.npy)?|\.manifest\.json\.\d+")
_ATTEMPTS = 5

T = TypeVar("T")


class Change:
    """A generation in the making. What is written under the names it gives is published by `publish`, or removed.

    Attributes:
        manifest: Of the generation before.
        generation: The number of the new one.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self._folder = folder
        self.manifest = manifest
        self.generation: int = manifest["generation"] + 1

    def path(self, kind: str) -> Path:
        """Where a new file or folder of a kind is to be written: segment, moments or deleted."""
        return self._folder / file_name(kind, self.generation)

    def publish(self, content: Mapping[str, Any]) -> None:
        """Make the new generation the folder's.

        Args:
            content: Of the manifest; `segments`, `moments` and `deleted` say which files it consists of.
        """
        known = self.manifest["files"]
        files = {name: known.get(name) or describe(self._folder / name) for name in _files_of(self._folder, content)}
        for name in files.keys() - known.keys():
            sync(self._folder / name)
        for parent in {(self._folder / name).parent for name in files.keys() - known.keys()}:
            sync(parent)
        seal(self._folder, KIND, {**content, "generation": self.generation}, files)
        sync(self._folder)


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[Change]:
    """Hold an index folder for a change; what is not published when the block ends, or is needed no more, is removed.

    Raises:
        InputError: Another process is changing it.
    """
    read_manifest(folder, KIND)
    with sole_writer(folder):
        _sweep(folder)
        try:
            yield Change(folder, read_manifest(folder, KIND))
        finally:
            _sweep(folder)


def file_name(kind: str, generation: int) -> str:
    """The name of a generation's own file or folder."""
    return f"{kind}-{generation:06d}" + ("" if kind == "segment" else ".npy")


def opened(folder: Path, read: Callable[[], T]) -> T:
    """What `read` gives; if the folder changed meanwhile and took the files away, what it gives then."""
    for _ in range(_ATTEMPTS):
        before = _present(folder)
        try:
            return read()
        except (InputError, OSError):
            if _present(folder) == before:
                raise
    return read()


def _present(folder: Path) -> Any:
    try:
        return read_manifest(folder, KIND)
    except (InputError, OSError):
        return None


def _files_of(folder: Path, content: Mapping[str, Any]) -> Iterator[str]:
    for name in (content["moments"], content["deleted"]):
        if name is not None:
            yield name
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
