"""Reports on disk: JSON, Markdown, a page, values per query, and the run files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.anchors import published, published_of
from evaluation.page import as_html
from evaluation.presentation import best_values, conventions, headline
from evaluation.runs import write_run
from evaluation.systems import Report
from indexes.errors import InputError
from indexes.manifest import new_folder, seal, write_json


def write_report(report: Report, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write a report folder, wholly or not at all.

    It holds `report.json`, `report.md`, `report.html` (one page without any other file), `per-query.tsv` and
    one TREC run file for each system.

    Raises:
        InputError: The folder exists and may not be overwritten, or two systems would share a file name.
    """
    names = _file_names(report.systems)
    with new_folder(Path(folder), overwrite=overwrite) as new:
        write_json(new / "report.json", as_json(report))
        (new / "report.md").write_text(as_markdown(report), encoding="utf-8", newline="\n")
        (new / "report.html").write_text(as_html(report), encoding="utf-8", newline="\n")
        (new / "per-query.tsv").write_text(as_table(report), encoding="utf-8", newline="\n")
        for system, result in report.systems.items():
            write_run(result.run, new / names[system], tag=system)
        seal(new, "report", {"dataset": report.dataset, "fingerprint": report.fingerprint})


def as_json(report: Report) -> dict[str, Any]:
    """The report as a JSON document: `metrics` of the main (last) system, `systems`, and the data."""
    compared = {system: dict(one.against_exact) for system, one in report.systems.items() if one.against_exact}
    return {
        "metrics": dict(report.main.metrics),
        "systems": {system: dict(result.metrics) for system, result in report.systems.items()},
        **({"against_exact": compared} if compared else {}),
        "dataset": {
            "name": report.dataset,
            "split": report.split,
            "queries": len(report.qrels),
            "fingerprint": report.fingerprint,
        },
        "conventions": conventions(report),
        "published": [
            {**one.anchor._asdict(), "yours": one.yours, "same_convention": one.same_convention}
            for one in published(report)
        ],
        "notices": list(report.notices),
        "made_by": dict(report.made_by),
    }


def as_markdown(report: Report) -> str:
    """The report as Markdown: headline, table (best values in bold), notices, conventions, what made it."""
    best = best_values(report)
    rows = []
    for system, result in report.systems.items():
        cells = [
            f"**{value:.4f}**" if value == best.get(name) else f"{value:.4f}" for name, value in result.metrics.items()
        ]
        rows.append("| " + " | ".join([plain(system), *cells]) + " |")
    lines = [
        f"# {plain(report.dataset)} ({plain(report.split)})",
        "",
        f"{plain(headline(report))}.",
        "",
        "| system | " + " | ".join(report.measures) + " |",
        "|---|" + "---:|" * len(report.measures),
        *rows,
        "",
        *section("Notices", report.notices),
        *_published(report),
        *section("Conventions", [f"{name}: {text}" for name, text in conventions(report).items()]),
        *section("Made by", [f"{name}: {text}" for name, text in report.made_by.items()]),
        f"Dataset fingerprint: `{report.fingerprint}`",
        "",
    ]
    return "\n".join(lines)


def as_table(report: Report) -> str:
    """The values of every query as tab-separated columns: query, system, then the measures."""
    lines = ["\t".join(("query", "system", *report.measures))]
    for query in report.qrels:
        for system, result in report.systems.items():
            values = result.per_query[query]
            lines.append(
                "\t".join((query, " ".join(system.split()), *(f"{values[name]:.9g}" for name in report.measures)))
            )
    return "\n".join(lines) + "\n"


def _published(report: Report) -> list[str]:
    """Published figures beside the main system's, or nothing."""
    found = published(report)
    if not found:
        return []
    rows = [
        f"| {plain(one.anchor.system)} | {plain(one.anchor.measure)} | {one.anchor.value:.4f} | {one.yours:.4f} | "
        f"{one.yours - one.anchor.value:+.4f} | {plain(one.same_convention)} | {plain(one.anchor.source)} |"
        for one in found
    ]
    head = ["| system | measure | published | yours | difference | same convention? | source |"]
    line = plain(published_of(report))
    return ["## Published figures", "", line, "", *head, "|---|---|---:|---:|---:|---|---|", *rows, ""]


def section(title: str, lines: tuple[str, ...] | list[str]) -> list[str]:
    """The lines of a Markdown section with a list of texts; none if there are none."""
    return [f"## {title}", "", *(f"- {plain(line)}" for line in lines), ""] if lines else []


def plain(text: str) -> str:
    """Text on one line that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", " ".join(text.split()))


def _file_names(systems: Mapping[str, Any]) -> dict[str, str]:
    names = {system: re.sub(r"[^\w.+-]+", "-", system).strip("-.") + ".trec" for system in systems}
    owners: dict[str, str] = {}
    for system, name in names.items():
        if name == ".trec" or owners.setdefault(name.lower(), system) != system:
            taken = f"system {owners[name.lower()]!r} has it" if name != ".trec" else "a name needs a letter or digit"
            raise InputError(f"system {system!r} would be written to {name!r}, but {taken}; rename the system")
    return names
