"""The scripts in `examples/`: shell, torchrun and retrokit understand them."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser
from typer.testing import CliRunner

from pretraining.configuration import PretrainConfig
from pretraining.run import PretrainResult
from retrieval.cli import build_app

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").iterdir())


def commands(script: str) -> list[list[str]]:
    """The words of each torchrun command, variables put in."""
    lines = script.replace("\\\n", " ").splitlines()
    found = [re.search(r"\btorchrun .*?(?=&?$)", line) for line in lines if not line.startswith("#")]
    return [shlex.split(os.path.expandvars(one[0]))[1:] for one in found if one]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_can_be_started(path, monkeypatch):
    """All but the run itself: options are known, and their values are what a run takes."""
    for name, value in {"CORPUS": "corpus.jsonl", "BASE": "base", "OUTPUT": "model", "SLURM_NNODES": "2"}.items():
        monkeypatch.setenv(name, value)
    subprocess.run(["bash", "-n", path], check=True)
    configurations = []

    def begun(corpus, output, *, overwrite, on_progress, on_note, judge, report_to, **options):
        assert (list(corpus.corpora), str(output)) == (["corpus.jsonl"], "model")
        configurations.append(PretrainConfig(**options))
        return PretrainResult(output, True, 0, {})

    monkeypatch.setattr("pretraining.run.pretrain", begun)
    found = commands(path.read_text())
    assert found
    for words in found:
        torchrun = get_args_parser().parse_args(words)
        assert torchrun.no_python
        assert torchrun.training_script == "retrokit"
        done = CliRunner().invoke(build_app(), torchrun.training_script_args)
        assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    assert [one.fsdp for one in configurations] == ["fsdp" in path.name] * len(found)
