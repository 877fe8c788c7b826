"""The commands of vectors folders: `retrokit vectors info`, `verify`, `merge` and `export`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from indexes.checksums import damaged_files
from indexes.errors import InputError
from indexes.manifest import MANIFEST, read_manifest, write_json
from retrieval.commands import Json, Overwrite
from retrieval.console import note, out, progress, table

Folder = Annotated[Path, typer.Argument(help="A vectors folder.", metavar="VECTORS_FOLDER")]


def info(folder: Folder, *, json: Json = None) -> None:
    """Say what is in a vectors folder, what made it, and, if it is unfinished, how far it is."""
    from indexes.partial import unfinished
    from indexes.vectors import VectorStore

    begun = unfinished(folder)
    if begun is not None and not (folder / MANIFEST).is_file():
        fields = {"folder": str(folder), "finished": False, **begun}
    else:
        fields = _fields(VectorStore.open(folder))
    if json is not None:
        write_json(json, fields)
    out.print(table(("field", "value"), list(_lines(fields)), numbers=False))
    if not fields["finished"]:
        note("it is being made, or was interrupted: the same retrokit encode goes on where it was")
    elif begun is not None:
        note(f"{begun['partial']} is beside it: another encode is at work or was interrupted")


def verify(folder: Folder, *, json: Json = None) -> None:
    """Compare every file of a vectors folder with its checksum, and name the damaged ones."""
    from indexes.partial import unfinished
    from indexes.vectors import KIND

    if not (folder / MANIFEST).is_file() and unfinished(folder) is not None:
        raise InputError(f"{folder} is unfinished; the same retrokit encode again checks what is there and goes on")
    manifest = read_manifest(folder, KIND)
    files = manifest["files"]
    total = sum(entry["bytes"] for entry in files.values())
    damaged: list[str] = []
    done = 0
    with progress(f"Verifying {folder}", "MB") as report:
        for name, entry in files.items():
            damaged += damaged_files(folder, {name: entry})
            done += entry["bytes"]
            report(done // 1_000_000, total // 1_000_000)
    if json is not None:
        write_json(json, {"folder": str(folder), "files": len(files), "bytes": total, "damaged": damaged})
    if damaged:
        merged = manifest["corpus"].get("parts")
        remedy = (
            "merge its parts again with --overwrite"
            if merged
            else "the same retrokit encode again makes just the shards of these again"
        )
        raise InputError(f"{folder}: {len(damaged)} of {len(files)} files are damaged: {', '.join(damaged)}; {remedy}")
    out.print(f"{folder}: {len(files):,} files, {total / 1e6:,.1f} MB, all as their checksums say", markup=False)


def merge(
    folders: Annotated[list[Path], typer.Argument(help="Vectors folders of one encoder.", metavar="VECTORS_FOLDER…")],
    *,
    output: Annotated[Path, typer.Option(help="The vectors folder to make.", metavar="VECTORS_FOLDER")],
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """Make one vectors folder out of several, in the order given.

    They must come from one encoder, be encoded alike, and have no document in common. Files are linked, not copied,
    where the file system can.
    """
    from indexes.transfer import merge_vectors

    with progress(f"Merging into {output}", "documents") as report:
        store = merge_vectors(folders, output, overwrite=overwrite, on_progress=report)
    if json is not None:
        write_json(json, {"folders": len(folders), "rows": len(store), "documents": store.documents, "dim": store.dim})
    out.print(f"{output}: {len(store):,} vectors of {store.dim} dimensions from {len(folders)} folders", markup=False)


def export(
    folder: Folder,
    *,
    output: Annotated[Path, typer.Option(help="The file to make: .npy, .parquet or .arrow.", metavar="FILE")],
    stored: Annotated[
        bool, typer.Option("--stored", help="Numbers as they are stored (float16, int8, bits), not as float32.")
    ] = False,
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """Write a vectors folder to one file that other programs read.

    An .npy file has its ids beside it, one a line; .parquet and .arrow have columns of ids and vectors.
    """
    from indexes.transfer import export_vectors
    from indexes.vectors import VectorStore

    store = VectorStore.open(folder)
    with progress(f"Exporting {folder}", "rows") as report:
        files = export_vectors(store, output, overwrite=overwrite, stored=stored, on_progress=report)
    names = [str(file) for file in files]
    if json is not None:
        write_json(json, {"rows": len(store), "dim": store.dim, "files": names})
    out.print(f"{', '.join(names)}: {len(store):,} rows of {store.dim} dimensions", markup=False)


def _fields(store: Any) -> dict[str, Any]:
    return {
        "folder": str(store.folder),
        "finished": True,
        "rows": len(store),
        "documents": store.documents,
        "truncated": store.truncated,
        "dim": store.dim,
        "storage": store.storage.form,
        "shards": len(store.manifest["shards"]),
        "bytes": sum(entry["bytes"] for entry in store.manifest["files"].values()),
        "encoder": store.made_by.get("encoder"),
        "fingerprint": store.made_by["fingerprint"],
        "encoding": store.encoding,
        "corpus": store.corpus,
    }


def _lines(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Rows of a table: what is nested gets a name with a dot, each part of a corpus a number."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield from _lines({f"{name} {number}": part for number, part in enumerate(value)}, prefix)
        else:
            yield f"{prefix}{name}", f"{value:,}" if type(value) is int else str(value)
