"""`retrokit vectors …` as a user meets it: exit status, one line on bad input, the same as JSON."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shards import CORPUS, MADE_BY, flip, open_writer, tree, write_folder, write_shard
from typer.testing import CliRunner

from indexes.transfer import save_vectors
from indexes.vectors import VectorStore
from retrieval.cli import COMMANDS, GROUPS, build_app

NAMES = ["info", "verify", "merge", "export"]


def retrokit(*arguments, expect=0):
    done = CliRunner().invoke(build_app(), ["vectors", *map(str, arguments)], env={"COLUMNS": "300"})
    assert done.exit_code == expect, f"{done.output}\n{done.exception!r}"
    return done.output


def error_of(*arguments):
    lines = [line for line in retrokit(*arguments, expect=2).splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def test_info_of_a_finished_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a long name would make the table's other column narrow
    folder = Path("v")
    write_folder(folder, storage="float16")
    said = retrokit("info", folder, "--json", tmp_path / "i.json")
    fields = json.loads((tmp_path / "i.json").read_text())
    assert fields == {
        "folder": str(folder),
        "finished": True,
        "rows": 9,
        "documents": 9,
        "truncated": 0,
        "dim": 4,
        "storage": "float16",
        "shards": 3,
        "bytes": sum(path.stat().st_size for path in folder.glob("shard-*")),
        "encoder": "a",
        "fingerprint": MADE_BY["fingerprint"],
        "encoding": {"shard_rows": 3, "storage": "float16"},
        "corpus": CORPUS,
    }
    lines = {" ".join(line.replace("│", " ").split()) for line in said.splitlines()}
    assert {"rows 9", "encoder a", "encoding.storage float16", "corpus.fingerprint x"} <= lines
    assert f"fingerprint {'f' * 64}" in lines


def test_info_of_a_merged_folder_names_the_parts(tmp_path):
    for name in "ab":
        save_vectors(tmp_path / name, np.ones((2, 4), np.float32), [f"{name}{n}" for n in range(2)], made_by={})
    retrokit("merge", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "m")
    lines = [line.replace("│", " ").split() for line in retrokit("info", tmp_path / "m").splitlines()]
    assert ["corpus.parts", "1.documents", "2"] in lines


@pytest.mark.parametrize("name", ["v", "v.partial"])
def test_info_and_verify_of_an_unfinished_folder(tmp_path, name):
    with contextlib.closing(open_writer(tmp_path / "v")) as writer:
        write_shard(writer, 0)
        write_shard(writer, 1, rows=2)
    before = tree(tmp_path / "v.partial")
    said = retrokit("info", tmp_path / name, "--json", tmp_path / "i.json")
    fields = json.loads((tmp_path / "i.json").read_text())
    assert [fields[name] for name in ("finished", "shards", "documents", "rows")] == [False, 2, 5, 5]
    assert fields["plan"] == {"made_by": MADE_BY, "encoding": {"shard_rows": 3, "storage": "float32"}}
    assert "plan.encoding.shard_rows" in said
    assert "the same retrokit encode goes on where it was" in said
    assert f"{name} is unfinished; the same retrokit encode again checks" in error_of("verify", tmp_path / name)
    assert tree(tmp_path / "v.partial") == before


def test_info_says_that_another_encode_is_at_work_beside_it(tmp_path):
    write_folder(tmp_path / "v")
    with contextlib.closing(open_writer(tmp_path / "v", overwrite=True)):
        said = retrokit("info", tmp_path / "v")
        assert "v.partial is beside it: another encode is at work or was interrupted" in said
        assert "finished" in said


def test_verify_names_every_damaged_file(tmp_path):
    folder = tmp_path / "v"
    write_folder(folder)
    assert retrokit("verify", folder).splitlines()[-1].endswith("6 files, 0.0 MB, all as their checksums say")
    flip(folder / "shard-00000.npy")
    os.truncate(folder / "shard-00001.npy", 100)
    (folder / "shard-00002.ids.json").unlink()
    before = tree(folder)
    said = error_of("verify", folder, "--json", tmp_path / "v.json")
    damaged = ["shard-00000.npy", "shard-00001.npy", "shard-00002.ids.json"]
    assert f"v: 3 of 6 files are damaged: {', '.join(damaged)}; the same retrokit encode again makes" in said
    assert json.loads((tmp_path / "v.json").read_text())["damaged"] == damaged
    assert tree(folder) == before
    assert "1.npy has 100 bytes; the manifest says" in error_of("info", folder)


def test_verify_of_a_merged_folder_sends_to_its_parts(tmp_path):
    write_folder(tmp_path / "v")
    retrokit("merge", tmp_path / "v", "--output", tmp_path / "m")
    (tmp_path / "m" / "shard-00000.npy").unlink()
    assert "1 of 6 files are damaged: shard-00000.npy; merge its parts again with --overwrite" in error_of(
        "verify", tmp_path / "m"
    )
    retrokit("merge", tmp_path / "v", "--output", tmp_path / "m", "--overwrite")
    retrokit("verify", tmp_path / "m")


def test_merge_and_export(tmp_path):
    for name in "ab":
        vectors = np.full((2, 4), ord(name), np.float32)
        save_vectors(
            tmp_path / name, vectors, [f"{name}{n}" for n in range(2)], made_by={"encoder": "x"}, storage="float16"
        )
    folders = [tmp_path / "b", tmp_path / "a"]
    said = retrokit("merge", *folders, "--output", tmp_path / "m", "--json", tmp_path / "m.json")
    assert "m: 4 vectors of 4 dimensions from 2 folders" in said
    assert json.loads((tmp_path / "m.json").read_text()) == {"folders": 2, "rows": 4, "documents": 4, "dim": 4}
    assert VectorStore.open(tmp_path / "m").ids == ["b0", "b1", "a0", "a1"]
    assert "m already exists" in error_of("merge", *folders, "--output", tmp_path / "m")
    assert "a is given twice" in error_of("merge", tmp_path / "a", tmp_path / "a", "--output", tmp_path / "n")
    export = ["export", tmp_path / "m", "--output", tmp_path / "x.npy"]
    said = retrokit(*export, "--json", tmp_path / "x.json")
    assert said.splitlines()[-1].endswith("x.npy, " + str(tmp_path / "x.ids.txt") + ": 4 rows of 4 dimensions")
    assert json.loads((tmp_path / "x.json").read_text())["files"] == [
        str(tmp_path / name) for name in ("x.npy", "x.ids.txt")
    ]
    assert np.load(tmp_path / "x.npy").dtype == np.float32
    assert "x.npy already exists" in error_of(*export, "--stored")
    retrokit(*export, "--stored", "--overwrite")
    assert np.load(tmp_path / "x.npy")[:, 0].tolist() == [98, 98, 97, 97]
    assert np.load(tmp_path / "x.npy").dtype == np.float16
    assert "expected one of .npy, .parquet, .arrow" in error_of("export", tmp_path / "m", "--output", tmp_path / "x")
    config = tmp_path / "c.yaml"
    config.write_text(f"output: {tmp_path / 'y.npy'}\nstored: true")
    retrokit("export", tmp_path / "m", "--config", config)
    assert np.load(tmp_path / "y.npy").dtype == np.float16


def test_the_group_has_its_help_and_its_commands_share_what_all_have():
    assert {name.split()[0] for name in COMMANDS if " " in name} == set(GROUPS)
    for arguments, status in ([], 2), (["--help"], 0):
        said = retrokit(*arguments, expect=status)
        assert GROUPS["vectors"] in said
        assert all(f" {name} " in said for name in NAMES)
    for name in NAMES:
        said = retrokit(name, "--help")
        assert all(option in said for option in ("--json", "--config", "--traceback"))
        assert f"vectors {name}" in retrokit(name, expect=2)


def test_usage_errors_are_one_line_and_nothing_heavy_is_loaded():
    code = (
        "import sys; sys.argv[0] = 'retrokit'\n"
        "from retrieval.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'transformers', 'faiss', 'pyarrow'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code, "vectors", "nope"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == ["error: No such command 'nope'. (see retrokit vectors --help)"]
