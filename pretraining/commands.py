"""The command `retrokit pretrain`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from indexes.manifest import write_json
from retrieval.console import note, progress


class ObjectiveName(StrEnum):
    """Objectives that have a name."""

    retromae = "retromae"
    dupmae = "dupmae"


class PoolingName(StrEnum):
    """Ways to make the sentence vector."""

    cls = "cls"
    mean = "mean"


def pretrain(
    corpus: Annotated[str, typer.Argument(help="JSON lines, a BEIR folder, a folder of texts, or python-docs.")],
    base: Annotated[str, typer.Option(help="Model to start from: a folder or a name.")],
    output: Annotated[Path, typer.Option(help="Model folder to make.")],
    objective: Annotated[ObjectiveName, typer.Option(help="What to learn from.")] = ObjectiveName.dupmae,
    max_steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 10_000,
    batch_size: Annotated[int, typer.Option(help="Texts a micro-batch on each device.")] = 32,
    accumulation: Annotated[int, typer.Option(help="Micro-batches an optimizer step.")] = 1,
    max_length: Annotated[int, typer.Option(help="Tokens a text; longer documents become several windows.")] = 256,
    learning_rate: Annotated[float, typer.Option(help="Greatest learning rate of AdamW.")] = 1e-4,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps of warm-up  [default: a tenth]")] = None,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.01,
    save_steps: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    mask_ratio: Annotated[float, typer.Option(help="Share of tokens that the encoder guesses.")] = 0.3,
    decoder_mask_ratio: Annotated[float, typer.Option(help="Share of tokens hidden from each decoder row.")] = 0.5,
    row_fraction: Annotated[float, typer.Option(help="Share of rows that the decoder rebuilds.")] = 1.0,
    pooling: Annotated[
        PoolingName | None, typer.Option(help="Sentence vector  [default: the base's, else cls]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write what was done to this JSON file.")] = None,
) -> None:
    """Pretrain an encoder on raw text; the same command goes on where a killed one stopped."""
    from pretraining.run import pretrain as run

    with progress("Pretraining", "steps") as on_progress:
        result = run(
            corpus,
            output,
            overwrite=overwrite,
            on_progress=on_progress,
            on_note=note,
            base=base,
            objective=str(objective),
            max_steps=max_steps,
            batch_size=batch_size,
            accumulation=accumulation,
            max_length=max_length,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            save_steps=save_steps,
            seed=seed,
            encoder_mask_ratio=mask_ratio,
            decoder_mask_ratio=decoder_mask_ratio,
            row_fraction=row_fraction,
            pooling=str(pooling) if pooling else None,
        )
    if json:
        done = {"output": str(output), "already_complete": result.already_complete, "resumed_from": result.resumed_from}
        write_json(json, {**done, **result.card})
    note(f"{output} is complete already; nothing to do" if result.already_complete else f"wrote {output}")
    note(f"next: retrokit encode CORPUS --encoder {output} --output VECTORS_FOLDER")
    note("a pretrained encoder is a start, not a search engine: fine-tune it (retrokit finetune, retrokit adapt) first")
