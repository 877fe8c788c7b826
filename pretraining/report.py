"""The training report: what a run's log says, as one web page without any other file."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from indexes.errors import InputError
from indexes.manifest import read_json
from pretraining.curves import STYLE, curve
from retrieval.run_card import CARD, LOG
from retrieval.web_page import definitions, web_page
from retrieval.working import RUN

REPORT = "report.html"

_PROBE, _GRADIENT, _GAP = "probe/", "gradient_norm/", "shuffle_gap/"
_NOT_LOSSES = ("gradient_norm", "learning_rate")
_EXPLAINED = {
    "ndcg@10": (
        "nDCG@10 after a short contrastive training",
        "Higher is better; this is the number to stop by. Every probe trains a copy of the encoder on the same pairs "
        "in the same order: values of one run can be compared with one another, and with nothing else.",
    ),
    "term_coverage": (
        "Term coverage of the sentence vector",
        "Higher is better: the share of a text's different terms that the vocabulary head reads out of its sentence "
        "vector, in as many guesses as it has terms.",
    ),
    "alignment": (
        "Alignment",
        "Lower is better while uniformity stays low too: the mean squared distance between queries and their texts on "
        "the unit sphere (0 to 4), before the contrastive training.",
    ),
    "uniformity": (
        "Uniformity",
        "Lower is better: 0 where all texts have the same vector, about −4 where they are spread evenly.",
    ),
    "effective_rank": (
        "Effective rank",
        "Higher is better: in how many directions the vectors of texts differ. A fall towards 1 is a collapse.",
    ),
}
_GAP_EXPLAINED = (
    "Well above 0 is good: by how much this loss rises when texts are decoded from one another's sentence vectors. "
    "Near 0 the decoder does without the vector, which then learns nothing from this term."
)


class Series(NamedTuple):
    """One value's course."""

    steps: list[int]
    values: list[float]


def write_report(folder: Path, output: Path, *, name: str, card: Mapping[str, Any] | None = None) -> None:
    """Write the report of a run, wholly or not at all.

    Args:
        folder: A model folder, or the working folder of a run that goes on.
        output: The page's file.
        name: Of the run, for the title.
        card: The run card, if there is a newer one than the folder's.

    Raises:
        InputError: The folder is of no run.
    """
    page = as_html(name, read_card(folder) if card is None else card, read_log(folder / LOG))
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    temporary.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")
    temporary.replace(output)


def read_card(folder: Path) -> dict[str, Any]:
    """The run card of a model folder, or of a run's working folder.

    Raises:
        InputError: There is none, or no log beside it.
    """
    found = next((folder / name for name in (CARD, RUN) if (folder / name).is_file()), None)
    if found is None or not (folder / LOG).is_file():
        raise InputError(
            f"{folder} has no {CARD if found is None else LOG}; expected a model folder of retrokit pretrain or adapt, "
            "or the OUTPUT.partial of a run that goes on"
        )
    return read_json(found)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; one that is being written is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def series_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """The course of every value in a log, by name, in the order of first occurrence; what is not finite is left out."""
    found: dict[str, Series] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                steps, values = found.setdefault(name, Series([], []))
                steps.append(line["step"])
                values.append(float(value))
    return found


def as_html(name: str, card: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    """The report as one HTML page without scripts and without anything to load.

    Args:
        name: Of the run.
        card: The run card: `configuration` and, as far as they are there, `counts`, `packages`, `kept`, `steps`.
        lines: Of the log.
    """
    found = series_of(lines)
    probes = {key: one for key, one in found.items() if key.startswith(_PROBE)}
    pulls = {key: one for key, one in found.items() if key.startswith(_GRADIENT)}
    rest = {key: one for key, one in found.items() if key not in probes and key not in pulls}
    losses = {key: one for key, one in rest.items() if key not in _NOT_LOSSES}
    done = losses["total"].steps[-1] if "total" in losses else 0
    title = f"{card.get('made_by', 'retrokit')}: {name}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(_state(card, done, probes))}</p>',
        _probes(probes, card) if probes or "pretrain" in title else "",
        _section(
            "Losses",
            "Before their weights; total is the weighted sum. A loss that falls says that its own task is learned, not "
            "that retrieval gets better. Lines are means of neighbouring steps, bands their least and greatest values.",
            losses,
        ),
        _section(
            "Gradient norms",
            "How strongly each term pulls at the encoder's outputs, after its weight: one far below the others hardly "
            "counts. The first is that of all parameters, before clipping.",
            {key: one for key, one in rest.items() if key == "gradient_norm"} | pulls,
        ),
        _section("Learning rate", "", {key: one for key, one in rest.items() if key == "learning_rate"}),
        definitions("Configuration", _flat(card.get("configuration", {}))),
        definitions("Corpus and base", _sources(card)),
        definitions("Packages", _flat(card.get("packages", {}))),
    ]
    return web_page(title, "\n".join(part for part in parts if part), STYLE)


def _state(card: Mapping[str, Any], done: int, probes: Mapping[str, Series]) -> str:
    configuration = card.get("configuration", {})
    total = int(configuration.get("max_steps", configuration.get("steps", 0)))
    steps = f"{done:,} of {total:,} steps"
    if "kept" in card and card.get("steps", done) < total:
        steps = f"Stopped early after {steps}"
    ranks = probes.get(f"{_PROBE}ndcg@10")
    if ranks is None:
        return f"{steps}."
    best = max(range(len(ranks.steps)), key=lambda row: (ranks.values[row], -row))
    kept = f"; the weights of step {card['kept']:,} are in the folder" if "kept" in card else ""
    return (
        f"{steps}; the best of {len(ranks.steps)} probes is that of step {ranks.steps[best]:,}, nDCG@10 "
        f"{ranks.values[best]:.4f} (before the first step: {ranks.values[0]:.4f}){kept}."
    )


def _probes(probes: Mapping[str, Series], card: Mapping[str, Any]) -> str:
    if not probes:
        return (
            "<h2>Probes</h2>\n<p>None: the losses below do not say when to stop. "
            "<code>--probe-steps</code> measures retrieval while training goes on.</p>"
        )
    ranks = f"Ranked: {card['probes_rank']}. " if "probes_rank" in card else ""
    kept = card.get("kept")
    figures = [
        _figure(*_explained(key.removeprefix(_PROBE)), one, points=True, kept=kept) for key, one in probes.items()
    ]
    ringed = "The ring is the step whose weights were kept." if kept is not None else ""
    return (
        f'<h2>Probes</h2>\n<p class="soft">{escape(ranks + ringed)}</p>\n<div class="curves">{"".join(figures)}</div>\n'
        + _table(probes)
    )


def _explained(name: str) -> tuple[str, str]:
    if name.startswith(_GAP):
        return f"Shuffle gap of {name.removeprefix(_GAP)}", _GAP_EXPLAINED
    return _EXPLAINED.get(name, (name, ""))


def _table(probes: Mapping[str, Series]) -> str:
    """Probes down and values across."""
    steps = sorted({step for one in probes.values() for step in one.steps})
    head = "".join(f'<th scope="col">{escape(key.removeprefix(_PROBE))}</th>' for key in probes)
    by_step = [dict(zip(one.steps, one.values, strict=True)) for one in probes.values()]
    rows = []
    for step in steps:
        cells = "".join(f"<td>{one[step]:.4f}</td>" if step in one else "<td></td>" for one in by_step)
        rows.append(f'<tr><th scope="row">{step:,}</th>{cells}</tr>')
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Values of all probes"><table>'
        f'<thead><tr><th scope="col">step</th>{head}</tr></thead>\n<tbody>{"".join(rows)}</tbody></table></div>'
    )


def _section(title: str, text: str, found: Mapping[str, Series]) -> str:
    if not found:
        return ""
    figures = "".join(_figure(key, "", one) for key, one in found.items())
    said = f'<p class="soft">{escape(text)}</p>\n' if text else ""
    return f'<h2>{escape(title)}</h2>\n{said}<div class="curves">{figures}</div>'


def _figure(title: str, text: str, one: Series, *, points: bool = False, kept: int | None = None) -> str:
    drawn = curve(title, one.steps, one.values, points=points, kept=kept)
    caption = f"<figcaption>{escape(text)}</figcaption>" if text else ""
    return f"<figure><h3>{escape(title)}</h3>{drawn}{caption}</figure>"


def _sources(card: Mapping[str, Any]) -> dict[str, str]:
    names = ("corpus", "base", "encoder", "pairs", "global_batch", "untrained_heads")
    return _flat(card.get("counts", {})) | _flat({name: card[name] for name in names if card.get(name)})


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): one if isinstance(one, str) else json.dumps(one) for name, one in values.items()}
