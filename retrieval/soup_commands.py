"""The command `retrokit soup`."""

from pathlib import Path
from typing import Annotated

import typer

from indexes.errors import InputError
from indexes.manifest import write_json
from retrieval.console import note, out, progress


def soup(
    models: Annotated[list[str], typer.Argument(help="Models of one architecture: folders or names.")],
    *,
    output: Annotated[Path, typer.Option(help="Model folder to make.", metavar="MODEL_FOLDER")],
    weights: Annotated[
        str | None, typer.Option(help="One for each model, such as 0.7,0.3  [default: equal]", metavar="NUMBERS")
    ] = None,
    method: Annotated[
        str, typer.Option(help="linear (weighted mean), slerp (two models, spherical) or task (base + differences).")
    ] = "linear",
    base: Annotated[str | None, typer.Option(help="For task: what the models were trained from.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write what was done to this JSON file.")] = None,
) -> None:
    """Average or interpolate the weights of models into one model."""
    from retrieval.soup import make_soup

    with progress("Blending", "tensors") as on_progress:
        result = make_soup(
            models,
            output,
            weights=_numbers(weights),
            method=method,
            base=base,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    if json:
        write_json(json, {"output": str(output), "already_complete": result.already_complete, **result.card})
    if result.already_complete:
        note(f"{output} is complete already; nothing to do")
    names, shares = result.card["models"], result.card["configuration"]["weights"]
    parts = " + ".join(f"{share:g} · {name}" for name, share in zip(names, shares, strict=True))
    out.print(f"{output}: {parts} ({method})", markup=False)
    note(f"next: retrokit evaluate --encoder {output} --dataset SPEC")


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in str(text).split(",")]
    except ValueError:
        raise InputError(f"--weights is {text!r}; expected numbers separated by commas, such as 0.7,0.3") from None
