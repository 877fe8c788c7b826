"""Every example of the README runs, in order, in one folder, as a reader would run them."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from retrieval.cli import build_app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = [
    (heading, kind, block)
    for heading, text in re.findall(r"^#+ ([^\n]*)\n(.*?)(?=^#+ |\Z)", README, flags=re.M | re.S)
    for kind, block in re.findall(r"^```(python|console)\n(.*?)^```", text, flags=re.M | re.S)
]
LONG = {
    "Decoder language models as encoders",
    "Mine hard negatives",
    "Sentence pairs, MTEB, published figures",
    "Blend models",
    "Fine-tune with labels",
    "Queries of words that stand out, and of pages that link",
    "Mix and clean what is learned from",
    "Mask some words only, decode other fields",
    "DupMAE's hybrid representation",
    "Know when to stop",
    "Reshape an encoder, and distill it",
}
"""Sections that nothing after them needs, and that take more than a minute together: `make test-slow` runs them too."""

TEXTS = {
    "git.md": "# Git\n\nTo undo the last commit but keep its changes, run git reset --soft HEAD~1.",
    "python.md": "# Python\n\nA virtual environment keeps the packages of one project apart from those of others.",
    "tea/green.txt": "Green tea is best brewed at eighty degrees for two or three minutes.",
}


def run_console(block: str) -> None:
    commands = re.findall(r"^\$ (retrokit .*?)(?<!\\)\n", block, flags=re.M | re.S)
    assert commands
    for command in commands:
        arguments = shlex.split(command.replace("\\\n", " "))[1:]
        done = CliRunner().invoke(build_app(), arguments)
        assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"


def test_every_block_is_under_a_heading():
    every = re.findall(r"^```(python|console)\n(.*?)^```", README, flags=re.M | re.S)
    assert [(kind, block) for _, kind, block in BLOCKS] == every
    assert {heading for heading, _, _ in BLOCKS} >= LONG


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("left_out", [LONG, pytest.param(set(), marks=pytest.mark.slow)], ids=["most", "all"])
def test_examples_run_in_order(left_out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, text in TEXTS.items():
        path = tmp_path / "my-texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    names: dict = {}
    assert {kind for _, kind, _ in BLOCKS} == {"python", "console"}
    for heading, kind, block in BLOCKS:
        if heading in left_out:
            continue
        if kind == "console":
            run_console(block)
        else:
            exec(compile(block, "README.md", "exec"), names)


def test_yaml_in_the_readme_is_what_the_config_example_reads():
    assert "k: 3" in README


def test_demo_figures_are_those_of_the_kept_run():
    """The README prints what `benchmarks/demo.json` holds, the output of a real run."""
    systems = json.loads((ROOT / "benchmarks" / "demo.json").read_text())["systems"]
    for name, measures in systems.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| {name} |"))
        assert [cell.strip(" *") for cell in row.split("|")[2:4]] == [
            f"{measures[measure]:.3f}" for measure in ("nDCG@10", "MRR@10")
        ]


def test_files_named_in_the_readme_are_there():
    for package, table in re.findall(r"^### `(\w+)/`\n(.*?)(?=^#)", README, flags=re.M | re.S):
        named = set(re.findall(r"^\| `([\w/]+\.py|[\w]+/)`", table, flags=re.M))
        there = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py"}
        there |= {f"{path.name}/" for path in (ROOT / package).iterdir() if path.is_dir() and path.name[0] != "_"}
        assert named == there, package
