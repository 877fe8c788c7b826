"""Folders that know what they are: atomic publication, locks and `manifest.json`."""

import contextlib
import ctypes
import errno
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from indexes.checksums import check_files, describe, fingerprint
from indexes.errors import InputError

try:
    import fcntl
except ModuleNotFoundError:
    fcntl = None  # type: ignore[assignment]

MANIFEST = "manifest.json"
LOCK = ".lock"
FORMAT = 3
_CHECKSUM = "checksum"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is either wholly there or not at all: temporary sibling, fsync, rename.

    Folders on the way to it are made.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = named(path).with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); restore it or make the folder again") from None


@contextlib.contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary sibling to fill, and put it in the place of `target` when the block ends well.

    A process killed at any moment leaves `target` as it was or as it should be. An exception inside the block
    removes the temporary folder and leaves `target` untouched.

    Raises:
        InputError: `target` exists and `overwrite` is false.
    """
    refuse_existing(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    temporary = target.with_name(f".{target.name}.new-{socket.gethostname()}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        publish(temporary, target, overwrite=overwrite)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def named(path: Path) -> Path:
    """Give a path back, if it has a name to put siblings beside.

    Raises:
        InputError: It is `.`, `..`, `/` or the like.
    """
    if not path.name or path.name == "..":
        raise InputError(f"{path} is no name for something new; give a name inside a folder")
    return path


def refuse_existing(target: Path, *, overwrite: bool, inputs: Iterable[Path | str] = ()) -> None:
    """Refuse an output that exists, unless it may be overwritten and is something that retrokit made.

    Args:
        target: The output folder.
        overwrite: Whether the user asked for it.
        inputs: What the work reads: never to be overwritten, nor any folder that holds it.

    Raises:
        InputError: It must not be written.
    """
    named(target)
    place = target.resolve()
    for source in map(Path, inputs):
        if source.exists() and place in (source.resolve(), *source.resolve().parents):
            raise InputError(f"--output {target} is or holds the input {source}; choose another --output")
    if not (target.exists() or target.is_symlink()):
        return
    if target.is_symlink() or not target.is_dir():
        raise InputError(f"{target} is a file or a link; choose another --output")
    if not overwrite:
        raise InputError(f"{target} already exists; choose another --output or pass --overwrite")
    if any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise InputError(f"{target} was not made by retrokit (no {MANIFEST} in it), so --overwrite leaves it alone")


class Busy(Exception):
    """A lock is held by another process that lives."""


@contextlib.contextmanager
def held(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold a lock on a file, made if need be, for the length of the block; the system frees it if the process dies.

    Where the system has no advisory locks (Windows, some network file systems), the block runs without one.

    Args:
        path: The lock file.
        shared: Beside others who share it, against those who do not.
        wait: Until it is free, instead of raising.

    Raises:
        Busy: Another process holds it.
        FileNotFoundError: Its folder was removed, perhaps while we waited.
    """
    while True:
        with path.open("a+") as file:  # read and write: NFS locks a file for sharing only if it may be read
            if fcntl is not None:
                kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
                try:
                    fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise Busy(f"{path} is held by another process") from None
                except OSError as error:
                    if error.errno not in _NO_LOCKS:
                        raise
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                continue  # removed and made again while we waited: what we hold locks nobody out
            yield
            return


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a working folder against other processes of this machine; a killed holder lets go of it.

    Raises:
        InputError: Another process is writing there, or nobody may.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(folder / LOCK))
        except Busy:
            raise InputError(f"another process is writing {folder}; wait for it or choose another folder") from None
        except PermissionError as error:
            raise InputError(
                f"{folder} cannot be written ({error.strerror}); change its permissions or copy it"
            ) from None
        yield


def publish(temporary: Path, target: Path, *, overwrite: bool = False) -> None:
    """Flush `temporary` to disk and rename it to `target`, exchanging the two if `target` exists."""
    for path in sorted(temporary.rglob("*")):
        sync(path)
    sync(temporary)
    refuse_existing(target, overwrite=overwrite)
    if target.exists():
        _exchange(temporary, target)
        shutil.rmtree(temporary)
    else:
        temporary.rename(target)
    sync(target.parent)


def seal(
    folder: Path, kind: str, content: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write the manifest of a filled folder: kind, format version, content, size and SHA-256 of each file, and its own.

    Args:
        folder: All files are in it.
        kind: What it is.
        content: What else the manifest says.
        files: What `describe` gave for each file, where that is known already; None: read them all.
    """
    if files is None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, LOCK))
        files = {path.relative_to(folder).as_posix(): describe(path) for path in paths}
    write_manifest(folder, whole_manifest(kind, content, files))


def whole_manifest(kind: str, content: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A manifest as `read_manifest` will give it."""
    manifest = {"kind": kind, "format": FORMAT, **content, "files": dict(sorted(files.items()))}
    return dict(json.loads(json.dumps(manifest, ensure_ascii=False)))


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write what `whole_manifest` gave, with its checksum, in one step."""
    write_json(folder / MANIFEST, {**manifest, _CHECKSUM: fingerprint(manifest)})


def open_manifest(
    folder: Path, kind: str, check: str | None = None, *, full_up_to: int | None = None, beyond: str = "size"
) -> dict[str, Any]:
    """Read a folder's manifest and check that the folder is of this kind and that its files are what it says.

    Args:
        folder: The folder.
        kind: What it should be.
        check: One of `CHECKS`; None: full for a folder of few bytes, else `beyond`. Sizes are always compared.
        full_up_to: So many are few; None: 256 MB, which take tenths of a second.
        beyond: For more.

    Raises:
        InputError: No such folder, no manifest, another kind or format, or a missing, truncated or damaged file.
    """
    manifest = read_manifest(folder, kind)
    check_files(folder, manifest, check, full_up_to=full_up_to, beyond=beyond)
    return manifest


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """Read a folder's manifest and check that the folder is of this kind, without a look at its other files.

    Raises:
        InputError: No such folder, no manifest, another kind or format.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected {_a(kind)} folder")
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} has no {MANIFEST}; expected {_a(kind)} folder made by retrokit")
    manifest = read_json(folder / MANIFEST)
    found = manifest.get("kind") if isinstance(manifest, dict) else None
    if found != kind:
        raise InputError(f"{folder} is a folder of kind {found!r}; expected {kind!r}")
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{folder} has format {manifest.get('format')!r}; this retrokit reads format {FORMAT}: make it again"
        )
    checksum = manifest.pop(_CHECKSUM, None)
    if checksum != fingerprint(manifest):
        raise InputError(f"{folder / MANIFEST} is damaged (its own checksum is another): make the folder again")
    return manifest


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Name the fields in which two flat records differ, both sides: `pooling: mean ≠ cls, max_length: 256 ≠ 128`."""
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return ", ".join(f"{name}: {_short(ours.get(name))} ≠ {_short(theirs.get(name))}" for name in names)


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 and " " not in text else repr(value) if value == "" else text


def sync(path: Path) -> None:
    """Have the system write a file or a folder's names to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    """Swap two paths in one step where the system can (Linux), else by two renames."""
    at_working_directory, exchange = -100, 2
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = (os.fsencode(one), os.fsencode(other))
    if rename and rename(at_working_directory, names[0], at_working_directory, names[1], exchange) == 0:
        return
    aside = other.with_name(f".{other.name}.old-{os.getpid()}")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)


def _remove_abandoned(target: Path) -> None:
    """Remove the temporary siblings that processes of this machine left when they were killed."""
    prefix = f".{target.name}.new-{socket.gethostname()}-"
    for path in target.parent.glob(f"{prefix}*"):
        process = path.name.removeprefix(prefix)
        if process.isdigit() and not Path(f"/proc/{process}").exists() and Path("/proc/self").exists():
            shutil.rmtree(path, ignore_errors=True)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
