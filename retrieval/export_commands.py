"""The command that writes an index for other search engines: `retrokit export`."""

from pathlib import Path
from typing import Annotated

import typer

from indexes.manifest import write_json
from retrieval.commands import Json, Overwrite
from retrieval.console import out, progress


def export(
    index: Annotated[Path, typer.Argument(help="An index folder.", metavar="INDEX_FOLDER")],
    *,
    output: Annotated[Path, typer.Option(help="The file to make: .parquet or .arrow.", metavar="FILE")],
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """Write an index to one table of ids, vectors, texts and attributes, as other search engines load it."""
    from indexes.exports import export_index
    from indexes.index import Index

    reader = Index.open(index).reader
    with progress(f"Exporting {index}", "documents") as report:
        export_index(reader, output, overwrite=overwrite, on_progress=report)
    if json is not None:
        write_json(json, {"documents": len(reader), "dim": reader.dim, "file": str(output)})
    out.print(f"{output}: {len(reader):,} documents, {reader.dim} dimensions", markup=False)
