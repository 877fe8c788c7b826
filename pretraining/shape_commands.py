"""The commands `retrokit reshape` and `retrokit distill`."""

from pathlib import Path
from typing import Annotated

import typer

from indexes.errors import InputError
from indexes.manifest import write_json
from retrieval.console import note, out, progress


def reshape(
    model: Annotated[str, typer.Argument(help="The model: a folder or a name.")],
    output: Annotated[Path, typer.Option(help="Model folder to make.")],
    trim_vocabulary: Annotated[
        str | None, typer.Option(metavar="CORPUS", help="Leave out the pieces that this corpus does not use.")
    ] = None,
    least_count: Annotated[int, typer.Option(help="How often a piece must occur there to stay.")] = 1,
    extend_vocabulary: Annotated[
        str | None, typer.Option(metavar="CORPUS", help="Add frequent words of this corpus that are split (WordPiece).")
    ] = None,
    words: Annotated[int, typer.Option(help="How many words are added at most.")] = 1000,
    keep_layers: Annotated[
        str | None, typer.Option(help="Keep so many layers, evenly spread, or those numbered (from 0): 0,5,11.")
    ] = None,
    grow_layers: Annotated[int | None, typer.Option(help="Make the model as many layers deep.")] = None,
    depth_method: Annotated[
        str, typer.Option(help="New layers by identity (the same vectors), stack or interleave (others: train it).")
    ] = "identity",
    grow_width: Annotated[
        int | None, typer.Option(help="So many times the hidden units and heads: the same cosines.")
    ] = None,
    inner_size: Annotated[
        int | None, typer.Option(help="Units inside feed-forward networks  [default: grow with --grow-width]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn in growing.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write what was done to this JSON file.")] = None,
) -> None:
    """Change a model's vocabulary, depth or width, and nothing else."""
    from pretraining.reshaping import reshape as run

    with progress("Counting", "documents") as on_progress:
        result = run(
            model,
            output,
            overwrite=overwrite,
            on_progress=on_progress,
            on_note=note,
            trim_vocabulary=trim_vocabulary,
            least_count=least_count,
            extend_vocabulary=extend_vocabulary,
            words=words,
            keep_layers=_layers(keep_layers),
            grow_layers=grow_layers,
            depth_method=depth_method,
            grow_width=grow_width,
            inner_size=inner_size,
            seed=seed,
        )
    if json:
        write_json(json, {"output": str(output), "already_complete": result.already_complete, **result.card})
    if result.already_complete:
        note(f"{output} is complete already; nothing to do")
    before, after = result.card["before"], result.card["after"]
    sizes = ", ".join(f"{name} {before[name]:,} → {after[name]:,}" for name in ("vocabulary", "layers", "dim"))
    out.print(
        f"{output}: parameters {before['parameters']:,} → {after['parameters']:,}, "
        f"{before['bytes'] / 1e6:.1f} → {after['bytes'] / 1e6:.1f} MB ({sizes})",
        markup=False,
    )
    if keep_layers or extend_vocabulary or (grow_layers and depth_method != "identity"):
        note(
            f"it has to learn now: retrokit distill CORPUS --teacher {model} --student {output} --output STUDENT_FOLDER"
        )
    else:
        note(f"next: retrokit encode CORPUS --encoder {output} --output VECTORS_FOLDER")


def _layers(text: str | None) -> int | tuple[int, ...] | None:
    """A number, or several, separated by commas; `3,` is layer 3 alone."""
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in str(text).split(",") if part.strip())
    except ValueError:
        raise InputError(f"--keep-layers is {text!r}; expected a number of layers, or numbers such as 0,5,11") from None
    return numbers if "," in str(text) else numbers[0] if numbers else ()


def distill(
    corpus: Annotated[str, typer.Argument(help="JSON lines, a BEIR folder, a folder of texts, or python-docs.")],
    *,
    teacher: Annotated[str, typer.Option(help="The model whose vectors are followed: a folder or a name.")],
    student: Annotated[str, typer.Option(help="The model that follows, such as one of `retrokit reshape`.")],
    output: Annotated[Path, typer.Option(help="Model folder to make.")],
    loss: Annotated[
        str,
        typer.Option(help="vectors, similarities, relations (MiniLMv2), or weights such as vectors=1,relations=0.1."),
    ] = "vectors",
    relation_heads: Annotated[int, typer.Option(help="Parts of queries, keys and values for relations.")] = 12,
    relation_layer: Annotated[
        int | None, typer.Option(help="The teacher's layer for relations, from 0  [default: the last]")
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Texts a step.")] = 32,
    max_length: Annotated[int, typer.Option(help="Tokens of a text while training.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Greatest learning rate of AdamW.")] = 1e-4,
    save_steps: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 500,
    held_out: Annotated[int, typer.Option(help="Texts held back to compare student and teacher on.")] = 200,
    precision: Annotated[
        str, typer.Option(help="float32, or bfloat16: mixed, faster where the processor has it.")
    ] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write what was done to this JSON file.")] = None,
) -> None:
    """Train a smaller or changed model to give another's vectors, on raw text.

    Killed? The same command goes on from the newest checkpoint.
    """
    from pretraining.distillation import distill as run

    with progress("Distilling", "steps") as on_progress:
        result = run(
            corpus,
            output,
            overwrite=overwrite,
            on_progress=on_progress,
            on_note=note,
            teacher=teacher,
            student=student,
            losses=loss,
            relation_heads=relation_heads,
            relation_layer=relation_layer,
            steps=steps,
            batch_size=batch_size,
            max_length=max_length,
            learning_rate=learning_rate,
            save_steps=save_steps,
            held_out=held_out,
            precision=precision,
            seed=seed,
        )
    if json:
        write_json(json, {"output": str(output), "already_complete": result.already_complete, **result.card})
    if result.already_complete:
        note(f"{output} is complete already; nothing to do")
    before, after = (result.card["agreement"][when] for when in ("before", "after"))
    said = ", ".join(f"{name} {before[name]:.4f} → {after[name]:.4f}" for name in after)
    out.print(f"{output}: with the teacher on held-out texts: {said}", markup=False)
    note(f"next: retrokit index {corpus} --encoder {output} --output {output.with_suffix('.index')}")
