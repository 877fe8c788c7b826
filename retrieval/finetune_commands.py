"""The command finetune."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from indexes.errors import InputError
from indexes.manifest import write_json
from retrieval.commands import CORPUS, Json, Overwrite
from retrieval.console import note, out, progress
from retrieval.examples import place_of


def finetune(
    pairs: Annotated[
        list[str],
        typer.Argument(
            help="Files of examples, or BEIR folders (FOLDER#SPLIT); NAME=FILE names a data set.", metavar="PAIRS…"
        ),
    ],
    *,
    encoder: Annotated[str, typer.Option(help="The model to fine-tune: a folder or a name.")] = "all-MiniLM-L6-v2",
    output: Annotated[Path, typer.Option(help="Model folder to make.", metavar="MODEL_FOLDER")],
    corpus: Annotated[str | None, typer.Option(help=f"What ids in PAIRS stand for. {CORPUS}")] = None,
    kind: Annotated[str, typer.Option(help="dense, cross-encoder, or sparse (SPLADE).")] = "dense",
    loss: Annotated[
        str,
        typer.Option(
            help="infonce; margin-mse or kl, by a teacher's scores in PAIRS; regression, on scores of pairs; opl; "
            "alignment, of translations; binary (cross-encoders); or weights such as kl=1,infonce=0.2."
        ),
    ] = "infonce",
    temperature: Annotated[
        float | None, typer.Option(help="Scores are divided by it  [default: 0.05 for cosines, else 1]")
    ] = None,
    teacher_temperature: Annotated[float, typer.Option(help="A teacher's scores are divided by it.")] = 1.0,
    focal: Annotated[float, typer.Option(help="Exponent of focal weights, such as 0.5.")] = 0.0,
    mix: Annotated[int, typer.Option(help="Negatives mixed of two hard ones, a query.")] = 0,
    extra_negatives: Annotated[str, typer.Option(help="qq (other queries), dd (other positives), or both.")] = "",
    false_negative_margin: Annotated[
        float | None, typer.Option(help="Leave out negatives that score above the positive by more than this.")
    ] = None,
    false_negatives_by: Annotated[str, typer.Option(help="Whose scores say so: student or teacher.")] = "student",
    matryoshka: Annotated[
        str, typer.Option(help="Numbers kept, such as 384,192,96, or with weights: 384=1,96=0.3.")
    ] = "",
    score_range: Annotated[
        str | None, typer.Option(help="Scores that become 0 and 1 for regression, such as 0,5.")
    ] = None,
    negatives: Annotated[int, typer.Option(help="The most hard negatives of a query in a batch.")] = 7,
    lora: Annotated[int | None, typer.Option(help="Rank of low-rank adapters that alone learn (extra lora).")] = None,
    query_flops: Annotated[
        float | None, typer.Option(help="Of sparse models: weight of FLOPS of queries  [default: 5e-5]")
    ] = None,
    document_flops: Annotated[float | None, typer.Option(help="The same of documents  [default: 3e-5]")] = None,
    flops_steps: Annotated[int | None, typer.Option(help="Steps in which both rise  [default: a third of all]")] = None,
    dataset_weight: Annotated[
        list[str] | None, typer.Option(help="How often a data set comes, beyond its size: NAME=2; repeat.")
    ] = None,
    dataset_alpha: Annotated[float, typer.Option(help="1: data sets come in proportion to sizes; 0: alike.")] = 1.0,
    dataset_prompt: Annotated[
        list[str] | None, typer.Option(help="Before its texts: NAME:query=TEXT or NAME:document=TEXT; repeat.")
    ] = None,
    pooling: Annotated[str | None, typer.Option(help="cls, mean, max or lasttoken, if the model does not say.")] = None,
    attention: Annotated[
        str | None, typer.Option(help="Of a decoder language model: bidirectional or causal, to change it.")
    ] = None,
    append_eos: Annotated[
        bool | None,
        typer.Option("--append-eos/--no-append-eos", help="End of text, where the tokenizer disagrees."),
    ] = None,
    epochs: Annotated[float, typer.Option(help="How often all examples are gone through.")] = 1.0,
    steps: Annotated[int | None, typer.Option(help="Training steps, in the place of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples a batch on each device.")] = 32,
    mini_batch: Annotated[
        int | None, typer.Option(help="Examples at once: gradient caching, the same result in less memory.")
    ] = None,
    accumulation: Annotated[int, typer.Option(help="Batches an optimizer step.")] = 1,
    max_length: Annotated[int, typer.Option(help="Tokens of a text while training.")] = 256,
    learning_rate: Annotated[float, typer.Option(help="Greatest learning rate of AdamW.")] = 2e-5,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps of warm-up  [default: a tenth of all]")] = None,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.01,
    precision: Annotated[
        str, typer.Option(help="float32, or bfloat16: mixed, faster where the processor has it.")
    ] = "float32",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory in more time.")
    ] = False,
    held_out: Annotated[int, typer.Option(help="Queries held back to choose the checkpoint by.")] = 200,
    held_out_texts: Annotated[
        int, typer.Option(help="Texts in their answers' way, of --corpus or a BEIR folder, or else other positives.")
    ] = 1000,
    checks: Annotated[int, typer.Option(help="How often they are ranked.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """Fine-tune an encoder, a cross-encoder or a sparse encoder with labels, and keep the best checkpoint.

    Killed? The same command goes on from the newest checkpoint. Under torchrun several processes share each batch.
    """
    from retrieval.documents import read_documents
    from retrieval.examples import read_examples
    from retrieval.finetuning import finetune as run

    documents = {one.id: one for one in read_documents(corpus)} if corpus else None
    sources = [_source(one) for one in pairs]
    _refuse_one_name(sources)
    found = [
        example for name, path in sources for example in read_examples(path, documents, dataset=name, on_note=note)
    ]
    places = [place for place in (path.parent / path.name.partition("#")[0] for _, path in sources) if place.is_dir()]
    texts = (one.content for place in ([] if documents else places) for one in read_documents(place))
    if documents:
        texts = (one.content for one in documents.values())
    with progress("Fine-tuning", "steps") as on_progress:
        result = run(
            found,
            output,
            overwrite=overwrite,
            texts=texts,
            sources=[*(path for _, path in sources), *([corpus] if corpus else [])],
            on_progress=on_progress,
            on_note=note,
            encoder=encoder,
            kind=kind,
            loss=loss,
            temperature=temperature,
            teacher_temperature=teacher_temperature,
            focal=focal,
            mix=mix,
            extra_negatives=tuple(_parts(extra_negatives)),
            false_negative_margin=false_negative_margin,
            false_negatives_by=false_negatives_by,
            matryoshka=_dims(matryoshka),
            score_range=_range(score_range),
            negatives=negatives,
            lora=lora,
            query_flops=query_flops,
            document_flops=document_flops,
            flops_steps=flops_steps,
            dataset_weights=_weights(dataset_weight or []),
            dataset_alpha=dataset_alpha,
            prompts=_prompts(dataset_prompt or []),
            pooling=pooling,
            attention=attention,
            append_eos=append_eos,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            mini_batch=mini_batch,
            accumulation=accumulation,
            max_length=max_length,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            precision=precision,
            gradient_checkpointing=gradient_checkpointing,
            held_out=held_out,
            held_out_texts=held_out_texts,
            checks=checks,
            seed=seed,
        )
    card = result.card
    if json:
        write_json(json, {"output": str(output), "already_complete": result.already_complete, **card})
    if result.already_complete:
        note(f"{output} is complete already; nothing to do")
    chosen, checked = card["chosen"], card["checks"]
    what = "the model as it came (training did not help)" if chosen == 0 else f"the model after step {chosen:,}"
    values = f"{checked['0']:.4f} → {checked[str(chosen)]:.4f}"
    out.print(f"{output}: {what} does best, held-out {card['measure']} {values}", markup=False)
    note(f"next: {_next(kind, output)}")


def _next(kind: str, output: Path) -> str:
    if kind == "cross-encoder":
        return f"retrokit search INDEX_FOLDER QUERY --rerank {output}"
    how = "--encoder" if kind == "dense" else "--sparse"
    return f"retrokit index CORPUS {how} {output} --output {output.with_suffix('.index')}"


def _source(pairs: str) -> tuple[str, Path]:
    """The name of a data set and its place: those of NAME=FILE, or the file's own."""
    name, equals, path = pairs.partition("=")
    if equals and name and "/" not in name and not Path(pairs).exists():
        return name, Path(path)
    return Path(pairs.partition("#")[0]).name.partition(".")[0], Path(pairs)


def _refuse_one_name(sources: Sequence[tuple[str, Path]]) -> None:
    """Refuse files that would be one data set because they are called alike."""
    places: dict[str, Path] = {}
    for name, path in sources:
        place = place_of(path)[0].resolve()
        if places.setdefault(name, place) != place:
            raise InputError(f"{places[name]} and {place} are both called {name!r}; name one, such as other={path}")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _number(text: str, option: str, expected: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option} has {text!r}; expected {expected}") from None


def _dims(text: str) -> dict[int, float]:
    expected = "numbers such as 384,192 or 384=1,192=0.5"
    pairs = [part.partition("=") for part in _parts(text)]
    for dim, _, _ in pairs:
        if not dim.strip().isdecimal():
            raise InputError(f"--matryoshka has {dim!r}; expected {expected}")
    return {int(dim): _number(weight or "1", "--matryoshka", expected) for dim, _, weight in pairs}


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    numbers = [_number(part, "--score-range", "two numbers such as 0,5") for part in _parts(text)]
    if len(numbers) != 2:
        raise InputError(f"--score-range is {text!r}; expected two numbers such as 0,5")
    return numbers[0], numbers[1]


def _weights(given: Sequence[str]) -> dict[str, float]:
    pairs = [one.rpartition("=") for one in given]
    return {name: _number(weight, "--dataset-weight", "NAME=NUMBER, such as nq=2") for name, _, weight in pairs}


def _prompts(given: Sequence[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for one in given:
        place, equals, text = one.partition("=")
        name, colon, role = place.rpartition(":")
        if not equals or not colon:
            raise InputError(f"--dataset-prompt is {one!r}; expected NAME:query=TEXT or NAME:document=TEXT")
        found.setdefault(name, {})[role] = text
    return found
