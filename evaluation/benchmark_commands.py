"""The commands `retrokit mteb` (tasks of MTEB) and `retrokit anchors` (published figures)."""

from pathlib import Path
from typing import Annotated, Any

import typer

from evaluation.anchors import anchors_for, known_datasets, known_means
from evaluation.versions import versions
from indexes.errors import InputError
from indexes.manifest import write_json
from retrieval.cache import cache_home
from retrieval.console import note, out, table


def mteb(
    tasks: Annotated[
        list[str], typer.Argument(help="Tasks of MTEB by name, or NAME=FOLDER with a local copy of the data.")
    ],
    encoder: Annotated[str, typer.Option(help="Evaluate this encoder: a model folder or hub name.")],
    mode: Annotated[
        str | None,
        typer.Option(
            help="Retrieval tasks by our own index: lexical, dense or hybrid  [default: the encoder by MTEB's search]"
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Where texts are neither queries nor documents: the prompt of either  [default: document]"),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write all scores to this file as JSON.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Where finished tasks are kept, by fingerprint  [default: ~/.cache/retrokit; may be deleted]"
        ),
    ] = None,
) -> None:
    """Run tasks of MTEB on an encoder; needs the extra eval. Interrupted? Finished tasks are kept."""
    if mode is not None and prompt is not None:
        raise InputError("--prompt is for texts that are no queries and no documents; search has none, leave it out")
    from evaluation.mteb_adapter import as_mteb_encoder, as_mteb_search
    from evaluation.mteb_tasks import registered_task, run_mteb
    from retrieval.encoder import Encoder

    wanted = [registered_task(task) for task in tasks]
    loaded = Encoder.load(encoder)
    home = cache or cache_home()
    model = as_mteb_encoder(loaded, prompt=prompt or "document")
    search = as_mteb_search(loaded, mode=mode, cache=home) if mode is not None else None
    found = run_mteb(search or model, wanted, home / "mteb")
    rows = [[one.task, one.main_score, f"{one.value:.5f}"] for one in found]
    out.print(table(["task", "main score", "value"], rows, title=loaded.name, numbers=False))
    if json is not None:
        write_json(
            json,
            {
                "metrics": {f"{one.task} {one.main_score}": one.value for one in found},
                "tasks": {one.task: {"scores": one.scores, "dataset_revision": one.dataset_revision} for one in found},
                "made_by": {
                    "encoder": encoder,
                    "encoder fingerprint": loaded.fingerprint,
                    "search": mode or "MTEB's own, over the encoder",
                    **versions("mteb"),
                },
            },
        )
        note(f"wrote {json}")


def anchors(
    dataset: Annotated[str | None, typer.Argument(help="Such as scifact or sts16; none: list the datasets.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file as JSON.")] = None,
) -> None:
    """Published figures of well-known systems on a dataset, each with its source and how it was measured."""
    document = _every_anchor() if dataset is None else _anchors_of(dataset)
    if json is not None:
        write_json(json, document)
        note(f"wrote {json}")


def _every_anchor() -> dict[str, Any]:
    """Show which datasets there are, and all means with the lists of their sets."""
    counts = {name: anchors_for(name) for name in known_datasets()}
    means = known_means()
    out.print(table(["dataset", "figures"], [[name, f"{len(found)}"] for name, found in counts.items()]))
    rows = [[one.system, one.measure, one.suite, f"{one.value:.4f}", one.source] for one in means]
    out.print(table(["system", "measure", "sets", "mean", "source"], rows, title="Means", numbers=False))
    for suite, sets in {one.suite: one.sets for one in means}.items():
        note(f"{suite}: {', '.join(sets)}")
    return {
        "datasets": {name: [one._asdict() for one in found] for name, found in counts.items()},
        "means": [one._asdict() for one in means],
    }


def _anchors_of(dataset: str) -> dict[str, Any]:
    found = anchors_for(dataset)
    if not found:
        raise InputError(f"no published figures for {dataset!r}; there are some for {', '.join(known_datasets())}")
    ways = list(dict.fromkeys((one.source, one.convention) for one in found))
    numbers = {way: f"{number}" for number, way in enumerate(ways, start=1)}
    rows = [[one.system, one.measure, f"{one.value:.4f}", numbers[one.source, one.convention]] for one in found]
    out.print(table(["system", "measure", "value", "made as"], rows, title=dataset))
    for (source, convention), number in numbers.items():
        note(f"{number}: {source}; {convention}")
    return {"dataset": dataset, "anchors": [one._asdict() for one in found]}
