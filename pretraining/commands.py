"""The commands pretrain, adapt and report."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from indexes.errors import InputError
from indexes.manifest import write_json
from retrieval.console import note, out, progress


class Duplicates(StrEnum):
    """Which repeated documents are left out."""

    none = "none"
    exact = "exact"
    near = "near"


class PoolingName(StrEnum):
    """Ways to make the sentence vector."""

    cls = "cls"
    mean = "mean"


def pretrain(
    corpus: Annotated[str, typer.Argument(help="JSON lines, a BEIR folder, a folder of texts, or python-docs.")],
    base: Annotated[str, typer.Option(help="Model to start from: a folder or a name.")],
    output: Annotated[Path, typer.Option(help="Model folder to make.")],
    objective: Annotated[
        str,
        typer.Option(
            help="mlm, bowdpr, retromae, dupmae, condenser, cocondenser, cotmae, lexmae, simcse, contriever, mirror, "
            "mirror-words, tsdae, rts, slm, prop, bprop; terms and weights such as encoder_mlm=1,bag_of_words_cls=0.5; "
            "or a YAML file of terms, weights and options."
        ),
    ] = "dupmae",
    max_steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 10_000,
    batch_size: Annotated[int, typer.Option(help="Texts a micro-batch on each device.")] = 32,
    accumulation: Annotated[int, typer.Option(help="Micro-batches an optimizer step.")] = 1,
    max_length: Annotated[int, typer.Option(help="Tokens a text; longer documents become several windows.")] = 256,
    learning_rate: Annotated[float, typer.Option(help="Greatest learning rate of AdamW.")] = 1e-4,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps of warm-up  [default: a tenth of all]")] = None,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.01,
    save_steps: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    mask_ratio: Annotated[float, typer.Option(help="Share of tokens that the encoder guesses.")] = 0.3,
    mask_unit: Annotated[str, typer.Option(help="What is masked as a whole: word, piece or ngram.")] = "word",
    mask_words: Annotated[Path | None, typer.Option(help="File of words, one a line: mask these alone.")] = None,
    mask_spans: Annotated[
        str | None, typer.Option(help="Field with pairs of characters of the text, such as entities: mask these alone.")
    ] = None,
    decoder_mask_ratio: Annotated[
        float | None, typer.Option(help="Share of tokens hidden from each row of RetroMAE's decoder  [default: 0.5]")
    ] = None,
    row_fraction: Annotated[
        float | None, typer.Option(help="Share of rows that RetroMAE's decoder rebuilds  [default: 1]")
    ] = None,
    word_sets: Annotated[
        str | None,
        typer.Option(help="How PROP draws words: prop (language model), bprop (attention)  [default: the objective's]"),
    ] = None,
    word_temperature: Annotated[
        float | None, typer.Option(help="Of bprop: the lower, the more the most contrastive words  [default: 0.05]")
    ] = None,
    pooling: Annotated[
        PoolingName | None, typer.Option(help="Sentence vector  [default: the base's, else cls]")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="float32, or bfloat16: mixed, faster where the processor has it.")
    ] = "float32",
    group_by_length: Annotated[
        bool, typer.Option("--group-by-length", help="Put texts of like length into a batch: less padding.")
    ] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time, the same result.")
    ] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Have torch compile the encoder first.")] = False,
    fsdp: Annotated[
        bool, typer.Option("--fsdp", help="Share the model out among torchrun's processes: for one too large for each.")
    ] = False,
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CORPUS=WEIGHT",
            help="Another corpus, gone through WEIGHT times (3, or 0.5) while CORPUS is gone through once; repeat.",
        ),
    ] = None,
    deduplicate: Annotated[
        Duplicates, typer.Option(help="Documents to leave out: repeated ones (exact), and those that resemble (near).")
    ] = Duplicates.none,
    near_duplicates_at: Annotated[
        float, typer.Option(help="Least Jaccard of the five-word shingles of near duplicates.")
    ] = 0.8,
    remove_queries: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER|FILE",
            help="Test queries (a BEIR folder, or a file): leave out documents that give one away; repeat.",
        ),
    ] = None,
    query_words: Annotated[
        int, typer.Option(help="Words of a query to look for inside documents; shorter ones are compared as a whole.")
    ] = 8,
    probe_steps: Annotated[
        int, typer.Option(help="Steps between two probes, which say whether retrieval gets better; 0: none.")
    ] = 0,
    probe_updates: Annotated[int, typer.Option(help="Contrastive steps that a probe's copy of the encoder gets.")] = 50,
    probe_collection: Annotated[
        Path | None,
        typer.Option(help="A small BEIR folder to rank in probes  [default: held-out queries of the corpus]"),
    ] = None,
    keep: Annotated[str, typer.Option(help="Which weights come out: last, or those of the best probe.")] = "last",
    patience: Annotated[
        int | None, typer.Option(help="End after so many probes without a better one  [default: never]")
    ] = None,
    report_to: Annotated[
        list[str] | None, typer.Option(help="Trainer's trackers: tensorboard, wandb, mlflow …; repeat.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write what was done to this JSON file.")] = None,
) -> None:
    """Pretrain an encoder on raw text; the same command goes on where a killed one stopped.

    OUTPUT/report.html shows how it went; while it goes on, OUTPUT.partial/report.html does.
    """
    from pretraining.mixture import Mixture
    from pretraining.objective import read_recipe
    from pretraining.run import pretrain as run
    from retrieval.cli import load_callback

    judge = load_callback("probe collection")(probe_collection) if probe_collection else None
    with progress("Pretraining", "steps") as on_progress:
        result = run(
            Mixture.parse(corpus, also or ()),
            output,
            overwrite=overwrite,
            on_progress=on_progress,
            on_note=note,
            judge=judge,
            report_to=report_to or (),
            base=base,
            objective=read_recipe(objective),
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
            mask_unit=mask_unit,
            mask_words=mask_words,
            mask_spans=mask_spans,
            decoder_mask_ratio=decoder_mask_ratio,
            row_fraction=row_fraction,
            word_sets=word_sets,
            word_temperature=word_temperature,
            pooling=str(pooling) if pooling else None,
            precision=precision,
            group_by_length=group_by_length,
            gradient_checkpointing=gradient_checkpointing,
            compile=compile,
            fsdp=fsdp,
            deduplicate=str(deduplicate),
            near_duplicates_at=near_duplicates_at,
            remove_queries=remove_queries or (),
            query_words=query_words,
            probe_steps=probe_steps,
            probe_updates=probe_updates,
            keep=keep,
            patience=patience,
        )
    if json:
        done = {"output": str(output), "already_complete": result.already_complete, "resumed_from": result.resumed_from}
        write_json(json, {**done, **result.card})
    note(f"{output} is complete already; nothing to do" if result.already_complete else f"wrote {output}")
    note(f"how it went: {output / 'report.html'}")
    note(f"next: retrokit encode CORPUS --encoder {output} --output VECTORS_FOLDER")
    note("a pretrained encoder is a start, not a search engine: adapt it (retrokit adapt) or fine-tune it first")


def adapt(
    corpus: Annotated[str, typer.Argument(help="JSON lines, a BEIR folder, a folder of texts, or python-docs.")],
    *,
    encoder: Annotated[str, typer.Option(help="The model to adapt: a folder or a name.")] = "all-MiniLM-L6-v2",
    output: Annotated[Path, typer.Option(help="Model folder to make.")],
    pairs: Annotated[
        Path | None, typer.Option(help="Your own pairs: JSON lines of `query` and `document` (an id of the corpus).")
    ] = None,
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            help="How to make pairs: title, lead, sentence, span, section, words, terms, links; repeat  [default: the "
            "first four, or none with --pairs]"
        ),
    ] = None,
    terms_model: Annotated[
        str | None,
        typer.Option(help="Encoder whose attention says what --sampler terms draws  [default: the one to adapt]"),
    ] = None,
    terms_temperature: Annotated[
        float | None,
        typer.Option(help="Of --sampler terms: the lower, the more the most contrastive words  [default: 0.05]"),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="A pretraining objective beside the contrastive loss, such as dupmae.")
    ] = None,
    objective_weight: Annotated[float, typer.Option(help="Its weight; the contrastive loss has 1.")] = 0.1,
    objective_texts: Annotated[int, typer.Option(help="Documents of a batch that it reads.")] = 8,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 200,
    batch_size: Annotated[int, typer.Option(help="Pairs a step.")] = 32,
    max_length: Annotated[int, typer.Option(help="Tokens of a text while training.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Greatest learning rate of AdamW.")] = 5e-5,
    temperature: Annotated[float, typer.Option(help="Of the contrastive softmax.")] = 0.05,
    precision: Annotated[
        str, typer.Option(help="float32, or bfloat16: mixed, twice as fast where the processor has it.")
    ] = "float32",
    held_out: Annotated[int, typer.Option(help="Queries held back to choose the checkpoint by.")] = 200,
    checks: Annotated[int, typer.Option(help="How often they are ranked.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write what was done to this JSON file.")] = None,
) -> None:
    """Adapt an encoder to a corpus, without labels or with your own queries, and keep the best checkpoint.

    Killed? The same command goes on from the newest checkpoint.
    """
    from pretraining.adaptation import adapt as run
    from pretraining.objective import read_recipe

    with progress("Adapting", "steps") as on_progress:
        result = run(
            corpus,
            output,
            pairs=pairs,
            overwrite=overwrite,
            on_progress=on_progress,
            on_note=note,
            encoder=encoder,
            samplers=tuple(sampler) if sampler else None,
            terms_model=terms_model,
            terms_temperature=terms_temperature,
            objective=None if objective is None else read_recipe(objective),
            objective_weight=objective_weight,
            objective_texts=objective_texts,
            steps=steps,
            batch_size=batch_size,
            max_length=max_length,
            learning_rate=learning_rate,
            temperature=temperature,
            precision=precision,
            held_out=held_out,
            checks=checks,
            seed=seed,
        )
    chosen, scores = result.card["chosen"], result.card["checks"]
    if json:
        write_json(json, {"output": str(output), "already_complete": result.already_complete, **result.card})
    if result.already_complete:
        note(f"{output} is complete already; nothing to do")
    what = "the encoder as it came (training did not help)" if chosen == 0 else f"the encoder after step {chosen:,}"
    out.print(
        f"{output}: {what} ranks best, held-out nDCG@10 {scores['0']:.4f} → {scores[str(chosen)]:.4f}", markup=False
    )
    note(f"next: retrokit index {corpus} --encoder {output} --output {output.with_suffix('.index')}")


def hybrid(
    model: Annotated[str, typer.Argument(help="Folder that `retrokit pretrain` made, such as by dupmae.")],
    corpus: Annotated[str, typer.Option(help="Whose first 2,000 texts say which numbers of a vector count most.")],
    output: Annotated[Path, typer.Option(help="Folder to make, with dense/ and sparse/ in it.")],
    dim: Annotated[int, typer.Option(help="Numbers of the dense half.")] = 384,
    words: Annotated[
        int | None, typer.Option(help="Words of a text that keep a weight, the heaviest  [default: all]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write what was done to this JSON file.")] = None,
) -> None:
    """Split a pretrained model into DupMAE's two halves: reduced vectors, and weights of words."""
    from pretraining.hybrid import export_hybrid
    from retrieval.documents import read_documents

    texts = (document.content for document in read_documents(corpus))
    export_hybrid(model, output, texts, dim=dim, words=words, overwrite=overwrite, on_note=note)
    if json:
        write_json(json, {"dense": f"{output}/dense", "sparse": f"{output}/sparse", "dim": dim, "words": words})
    note(f"wrote {output}/dense and {output}/sparse")
    note(f"next: retrokit index CORPUS --encoder {output}/dense --sparse {output}/sparse --output INDEX_FOLDER")
    note("then: retrokit search INDEX_FOLDER QUERY --fusion sum")


def report(
    folder: Annotated[Path, typer.Argument(help="A model folder of pretrain or adapt, or a run's OUTPUT.partial.")],
    *,
    output: Annotated[Path, typer.Option(help="The page to write, FILE.html.", metavar="FILE")],
    json: Annotated[Path | None, typer.Option(help="Also write every value of the log to this JSON file.")] = None,
) -> None:
    """Write how a training run went as one web page: losses, gradients, probes, options."""
    from pretraining.report import read_log, series_of, write_report
    from retrieval.run_card import LOG

    refuse_page(output)
    write_report(folder, output, name=folder.name.removesuffix(".partial"))
    if json:
        found = series_of(read_log(folder / LOG))
        write_json(json, {"output": str(output), "series": {name: one._asdict() for name, one in found.items()}})
    note(f"wrote {output}")


def refuse_page(path: Path) -> None:
    """Refuse a page that would replace anything but a page, or change a folder that must stay as it is.

    Raises:
        InputError: It is so.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--output {path} is no name of a page; give one that ends in .html")
    if path.is_dir():
        raise InputError(f"--output {path} is a folder; give the name of a file")
    if any((one / name).is_file() for one in path.resolve().parents for name in ("manifest.json", "modules.json")):
        raise InputError(f"--output {path} lies inside a folder that must stay as it is; choose another place")
