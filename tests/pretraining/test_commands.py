"""The command: what it says, and what importing it costs."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import pretraining
from pretraining.commands import pretrain
from pretraining.objective import PRESETS


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(pretrain)
    return app


def test_the_command_makes_a_folder_and_says_what_next(command, base, corpus, tmp_path):
    output, report = tmp_path / "model", tmp_path / "report.json"
    options = f"--objective retromae --base {base} --output {output} --max-steps 2 --batch-size 4 --max-length 16"
    result = CliRunner().invoke(command, [str(corpus), *options.split(), "--mask-ratio", "0.2", "--json", str(report)])
    assert result.exit_code == 0, result.output
    for words in (
        "24 documents, 1 empty ones skipped",
        "no decoder",
        f"wrote {output}",
        "retrokit encode",
        "fine-tune",
    ):
        assert words in result.output
    assert (output / "modules.json").is_file()
    card = json.loads(report.read_text())
    assert card["configuration"]["encoder_mask_ratio"] == 0.2
    assert card["output"] == str(output)
    again = CliRunner().invoke(command, [str(corpus), *options.split(), "--mask-ratio", "0.2"])
    assert "complete already" in again.output


def test_importing_package_and_commands_loads_no_torch():
    code = (
        "import sys, pretraining.commands; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_is_there_in_any_order_of_import():
    code = "import pretraining.run; from pretraining import pretrain; assert callable(pretrain)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(pretraining.__all__) == set(pretraining._HOMES)
    assert all(getattr(pretraining, name) for name in pretraining.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pretraining.nothing


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "examples").iterdir()), ids=lambda path: path.name)
def test_examples_call_the_command_as_it_is(path):
    text = path.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"retrokit pretrain (.*)", text)
    given = dict(re.findall(r"--([a-z-]+)(?: ([^\s-]\S*))?", line))
    known = {name.replace("_", "-") for name in inspect.signature(pretrain).parameters}
    assert given.keys() <= known
    assert given["objective"] in PRESETS
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
