"""The command line as a user meets it: exit status, one line on bad input, nothing lost."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from retrieval.cli import build_app

BIN = [sys.executable, "-c", "import sys; sys.argv[0] = 'retrokit'; from retrieval.cli import main; main()"]


def retrokit(*arguments, expect=0):
    done = CliRunner().invoke(build_app(), [str(argument) for argument in arguments])
    assert done.exit_code == expect, f"{done.output}\n{done.exception!r}"
    return done


def error_of(*arguments):
    """The one line that a command says when it ends with status 2."""
    lines = [line for line in retrokit(*arguments, expect=2).output.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def index(tmp_path, corpus_file, model_folder):
    retrokit("index", corpus_file, "--encoder", model_folder, "--output", tmp_path / "i")
    return tmp_path / "i"


def tree(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.filterwarnings("ignore")
def test_encode_index_search_show(tmp_path, corpus_file, model_folder):
    retrokit(
        "encode", corpus_file, "--encoder", model_folder, "--output", tmp_path / "v", "--json", tmp_path / "e.json"
    )
    assert json.loads((tmp_path / "e.json").read_text())["rows"] == 50
    retrokit("index", tmp_path / "v", "--factory", "HNSW16", "--output", tmp_path / "i")
    found = retrokit("search", tmp_path / "i", "river stone", "-k", 3, "--json", tmp_path / "s.json")
    hits = json.loads((tmp_path / "s.json").read_text())["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert all(hit["id"] in found.output for hit in hits)
    for folder, words in (
        (tmp_path / "i", ["HNSW16", "cosine", "mean"]),
        (tmp_path / "v", ["rows"]),
        (model_folder, ["32"]),
    ):
        shown = retrokit("show", folder).output
        assert all(word in shown for word in words)
    assert "checksums" in retrokit("show", tmp_path / "i", "--verify").output


@pytest.mark.filterwarnings("ignore")
def test_a_broken_line_a_cut_shard_and_a_foreign_encoder(tmp_path, corpus_file, model_folder, index):
    """The three of the road: one clear line, status 2, and what was there is untouched."""
    from fixtures import make_model

    broken = tmp_path / "broken.jsonl"
    broken.write_text(corpus_file.read_text() + '{"_id": "x", "text": \n')
    before = tree(index)
    said = error_of("index", broken, "--encoder", model_folder, "--output", index, "--overwrite")
    assert f"{broken}, line 51: not JSON" in said
    assert tree(index) == before

    other = make_model(tmp_path / "other", seed=7)
    said = error_of("search", index, "river", "--encoder", other)
    assert "made by another encoder than" in said
    assert "weights: " in said
    assert tree(index) == before

    vectors = tmp_path / "i.vectors"
    os.truncate(vectors / "shard-00000.npy", 500)
    before = tree(vectors)
    said = error_of("index", vectors, "--output", tmp_path / "new")
    assert "shard-00000.npy has 500 bytes; the manifest says" in said
    assert tree(vectors) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.filterwarnings("ignore")
def test_config_files(tmp_path, index):
    config = tmp_path / "c.yaml"
    config.write_text("k: 4\nmode: dense\njson: " + str(tmp_path / "s.json"))
    retrokit("search", index, "river", "--config", config, "-k", 2)
    assert len(json.loads((tmp_path / "s.json").read_text())["hits"]) == 2
    retrokit("search", index, "river", "--config", config)
    assert len(json.loads((tmp_path / "s.json").read_text())["hits"]) == 4
    for content, message in (
        ("colour: red", "c.yaml: colour: unknown option; expected one of encoder, filter, fusion"),
        ("k: many", "c.yaml: k: Input should be a valid integer"),
        ("[1, 2]", "found a list; expected options"),
        ("k: [", "not YAML"),
    ):
        config.write_text(content)
        assert message in error_of("search", index, "river", "--config", config)
    assert "no such file" in error_of("search", index, "river", "--config", tmp_path / "none.yaml")


@pytest.mark.filterwarnings("ignore")
def test_errors_have_no_traceback_unless_asked(tmp_path, monkeypatch):
    assert "no such file or folder" in error_of("encode", tmp_path / "none", "--output", tmp_path / "v")
    assert retrokit("encode", "--no-such-option", expect=2)
    done = retrokit("show", tmp_path / "none", "--traceback", expect=1)
    assert done.exception is not None
    monkeypatch.setattr("retrieval.commands._describe", lambda *a, **k: 1 / 0)
    assert "internal error: ZeroDivisionError" in retrokit("show", tmp_path, expect=1).output


@pytest.mark.parametrize(
    "arguments", [["encode", "x", "--nope"], ["encode", "x", "--output", "v", "--shard-rows", "a"]]
)
def test_usage_errors_are_one_line_too(arguments):
    done = subprocess.run([*BIN, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")


def test_without_a_command_there_is_help():
    done = subprocess.run(BIN, capture_output=True, text=True, check=False)
    assert "Usage" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.filterwarnings("ignore")
def test_an_input_is_never_its_own_output(tmp_path, model_folder, index):
    before = tree(index)
    assert "is or holds the input" in error_of(
        "index", index, "--encoder", model_folder, "--output", index, "--overwrite"
    )
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("river stone")
    command = ["--encoder", model_folder, "--output", texts, "--overwrite"]
    assert "is or holds the input" in error_of("index", texts, *command)
    assert "is or holds the input" in error_of("encode", texts, *command)
    assert (texts / "a.txt").read_text() == "river stone"
    assert tree(index) == before


@pytest.mark.filterwarnings("ignore")
def test_evaluate_refuses_an_index_of_another_corpus(tmp_path, index, model_folder):
    from evaluation import write_collection
    from retrieval.documents import Document

    write_collection(tmp_path / "set", [Document("a", "river")], {"q": "river"}, {"test": {"q": {"a": 1}}})
    assert "holds another corpus than set" in error_of("evaluate", "--index", index, "--dataset", tmp_path / "set")
    options = ["--dataset", tmp_path / "set", "--cache", tmp_path / "cache", "--json", tmp_path / "new" / "out.json"]
    retrokit("evaluate", "--encoder", model_folder, "-k", 10, *options)
    assert json.loads((tmp_path / "new" / "out.json").read_text())["metrics"]["nDCG@10"] == 1.0


@pytest.mark.filterwarnings("ignore")
def test_encode_killed_by_the_system_goes_on(tmp_path, corpus_file, model_folder):
    """A real SIGKILL in the middle, then the same command again."""
    command = ["encode", str(corpus_file), "--encoder", str(model_folder), "--shard-rows", "8"]
    killer = (
        "import os, signal, sys; sys.argv[0] = 'retrokit'\n"
        "from indexes.vector_writer import VectorWriter\n"
        "write = VectorWriter.write\n"
        "def once(self, shard, *rest, **more):\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if shard == 3 else write(self, shard, *rest, **more)\n"
        "VectorWriter.write = once\n"
        "from retrieval.cli import main; main()"
    )
    killed = subprocess.run([sys.executable, "-c", killer, *command, "--output", str(tmp_path / "v")], check=False)
    assert killed.returncode == -9
    assert len(list((tmp_path / "v.partial").glob("*.done.json"))) == 3
    assert "is unfinished" in error_of("index", tmp_path / "v", "--output", tmp_path / "i")
    retrokit(*command, "--output", tmp_path / "v")
    retrokit(*command, "--output", tmp_path / "whole")
    ours, whole = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("shard-*")} for name in ("v", "whole")
    )
    assert ours == whole
    assert len(ours) == 14


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flags", [[], ["--dense-only"]])
def test_attributes_and_filters(tmp_path, documents, model_folder, flags):
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"_id": one.id, "text": one.text, "metadata": {"year": 1990 + n}} for n, one in enumerate(documents)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = ("index", corpus, "--encoder", model_folder, "--output", tmp_path / "i", *flags)
    assert "no document has a value of attribute 'yaer'" in error_of(*made, "--attributes", "metadata.yaer")
    retrokit(*made, "--attributes", "metadata.year")
    search = ("search", tmp_path / "i", "river stone", "-k", 20, "--json", tmp_path / "s.json", "--filter")
    found = retrokit(*search, "year >= 2030 or year == 1990")
    hits = json.loads((tmp_path / "s.json").read_text())["hits"]
    assert {hit["attributes"]["year"] for hit in hits} == {1990, *range(2030, 2040)}
    assert "year 1990" in found.output
    assert "expected a field" in error_of(*search, "2030 <= year")
    assert "year holds whole numbers" in error_of(*search, "year == 'x'")
    assert "int64" in retrokit("show", tmp_path / "i").output


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flags", [[], ["--dense-only"]])
def test_add_delete_compact(tmp_path, documents, model_folder, flags):
    def write(name, some, year):
        rows = [{"_id": one.id, "text": one.text, "year": year} for one in some]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    index = tmp_path / "i"
    first, second = write("a.jsonl", documents[:30], 2000), write("b.jsonl", documents[25:], 2024)
    with_years = ("--attributes", "year")
    retrokit("index", first, "--encoder", model_folder, "--output", index, *with_years, *flags)
    before = tree(index)
    assert "5 of the documents are in" in error_of("add", index, second, *with_years)
    assert {path: data for path, data in tree(index).items() if path.name != ".lock"} == before
    write("b.jsonl", documents[24:], 2024)
    assert "6 of the documents are in" in error_of("add", index, second, *with_years)  # not those that were encoded
    write("b.jsonl", documents[25:], 2024)
    left = sorted(tmp_path.glob("i.adding-*"))
    assert len(left) == 2  # of two states of the source; what is younger than a day may be another run's
    (tmp_path / "i.adding-notes.txt").write_text("mine")
    for one in left:
        os.utime(one, (0, 0))
    told = retrokit("add", index, second, *with_years, "--replace", "--json", tmp_path / "j.json").output
    assert f"{len(documents) - 25} documents added, 5 of them in place of older ones; " in told
    said = json.loads((tmp_path / "j.json").read_text())
    assert (said["added"], said["replaced"], said["index"]["documents"]) == (len(documents) - 25, 5, len(documents))
    (tmp_path / "i.adding-notes.txt").unlink()
    assert sorted(path.name for path in tmp_path.glob("i*")) == ["i", "i.vectors"]  # those of the addition are gone
    search = ("search", index, "river stone", "-k", 40, "--mode", "dense", "--json", tmp_path / "s.json")
    retrokit(*search, "--filter", "year == 2024")
    hits = json.loads((tmp_path / "s.json").read_text())["hits"]
    assert {hit["id"] for hit in hits} == {one.id for one in documents[25:]}
    assert "nothing to delete is named" in error_of("delete", index)
    assert "1 of these documents are not in" in error_of("delete", index, "d1", "zzz")
    (tmp_path / "ids").write_text("d2\nzzz\n")
    assert (
        "3 documents deleted"
        in retrokit("delete", index, "d0", "d1", "--ids-from", tmp_path / "ids", "--missing-ok").output
    )
    assert f"{len(documents) - 25} documents deleted" in retrokit("delete", index, "--filter", "year > 2001").output
    assert "cannot be read" in error_of("delete", index, "--ids-from", tmp_path / "none")
    assert "deleted documents gone; 22 documents" in retrokit("compact", index).output
    assert "1 segments to 2" in retrokit("compact", index, "--segments", 2).output
    assert "segments are 0; expected at least 1" in error_of("compact", index, "--segments", 0)
    shown = retrokit("show", index, "--verify").output
    assert "generation" in shown
    assert "all as their checksums say" in shown
    retrokit(*search)
    assert len(json.loads((tmp_path / "s.json").read_text())["hits"]) == 22
    store = ("encode", second, "--encoder", model_folder, "--output", tmp_path / "later")
    retrokit(*store)
    retrokit("add", index, tmp_path / "later", *with_years)
    assert "no such folder" in error_of("compact", tmp_path / "none")


def test_whole_numbers_are_deleted_by_their_digits(tmp_path):
    import numpy as np

    from indexes.index import Index
    from indexes.transfer import save_vectors

    vectors = save_vectors(tmp_path / "v", np.eye(5, dtype=np.float32), range(10, 15), made_by={"normalize": True})
    Index.build(vectors, "Flat", tmp_path / "i")
    assert "1 documents deleted" in retrokit("delete", tmp_path / "i", "12").output
    assert [one.id for one in Index.open(tmp_path / "i")] == [10, 11, 13, 14]
    for wrong in ("x", "1_0", "010"):
        assert f"an id is {wrong!r}; the ids of this index are whole numbers" in error_of(
            "delete", tmp_path / "i", wrong
        )


def test_the_factory_auto(tmp_path, corpus_file, model_folder):
    made = retrokit("index", corpus_file, "--encoder", model_folder, "--factory", "auto", "--output", tmp_path / "i")
    assert "50 documents, Flat (cosine)" in made.output


def test_export(index, tmp_path):
    from pyarrow import parquet

    assert "50 documents, 32 dimensions" in retrokit("export", index, "--output", tmp_path / "o.parquet").output
    assert parquet.read_table(tmp_path / "o.parquet").column_names == ["id", "vector", "text"]
    assert "already exists" in error_of("export", index, "--output", tmp_path / "o.parquet")
