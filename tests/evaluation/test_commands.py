import json
import subprocess
import sys
import types

import pytest

import evaluation
from evaluation import commands, dataset_commands
from evaluation.known_items import split_known_items
from evaluation.opening import Opened
from evaluation.runs import make_ranking, write_run
from evaluation.testsets import load_dataset, write_collection
from indexes.errors import InputError
from retrieval.documents import Document


class Hit(types.SimpleNamespace):
    pass


class Everything:
    modes = ("lexical", "dense", "hybrid")

    def search_many(self, texts, k, *, mode):
        order = ["d1", "d2"] if mode != "lexical" else ["d2", "d1"]
        return [[Hit(id=name, score=-row) for row, name in enumerate(order)] for _ in texts]


@pytest.fixture
def toy(tmp_path):
    documents = [Document("d1", "one"), Document("d2", "two")]
    write_collection(tmp_path / "toy", documents, {"q1": "one?"}, {"test": {"q1": {"d1": 1}}})
    return tmp_path / "toy"


@pytest.fixture
def opened(monkeypatch):
    searcher, made_by = Everything(), {"encoder fingerprint": "e" * 64}
    of_encoder = Opened("some", searcher, made_by, ("dense",))
    of_index = Opened("some", searcher, made_by, searcher.modes)
    monkeypatch.setattr(commands, "open_encoder", lambda name, testset, *, cache, sparse: of_encoder)
    monkeypatch.setattr(commands, "open_index", lambda folder, testset, *, sparse: of_index)
    monkeypatch.setattr(commands, "open_system", lambda spec, testset, *, cache: of_encoder)


def test_a_run_file_is_measured(toy, tmp_path, capsys):
    write_run({"q1": make_ranking(["d2", "d1"], [2, 1], place="q1")}, tmp_path / "mine.trec")
    out, report = tmp_path / "out.json", tmp_path / "report"
    commands.evaluate(str(toy), run=[tmp_path / "mine.trec"], measure=["MRR@10"], json=out, output=report)
    document = json.loads(out.read_text())
    assert document["metrics"] == {"MRR@10": 0.5}
    assert document["systems"] == {"mine": {"MRR@10": 0.5}}
    assert (report / "report.html").is_file()
    printed = capsys.readouterr()
    assert "0.5000" in printed.out
    assert f"wrote {out}" in printed.err
    with pytest.raises(InputError, match="already exists"):
        commands.evaluate(str(toy), run=[tmp_path / "mine.trec"], output=report)


def test_run_files_side_by_side(toy, tmp_path):
    paths = [tmp_path / name for name in ("a/dense.trec", "b/dense.run.gz", "b/lexical.txt")]
    for place, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        write_run({"q1": make_ranking(["d2", "d1"], [1, place], place="q1")}, path)
    out = tmp_path / "out.json"
    commands.evaluate(str(toy), run=paths, measure=["MRR@10"], json=out)
    systems = json.loads(out.read_text())["systems"]
    assert {name: measures["MRR@10"] for name, measures in systems.items()} == {
        "a-dense": 0.5,
        "b-dense": 0.5,
        "lexical": 1.0,
    }
    with pytest.raises(InputError, match="two run files would be called 'a-dense'"):
        commands.evaluate(str(toy), run=[paths[0], paths[0]])


@pytest.mark.parametrize(
    ("options", "systems"),
    [
        ({"encoder": "some"}, ["dense"]),
        ({"encoder": "some", "hybrid": True}, ["lexical", "dense", "hybrid"]),
        ({"encoder": "some", "mode": ["dense", "lexical"]}, ["dense", "lexical"]),
        ({"index": "some"}, ["lexical", "dense", "hybrid"]),
        ({"system": "some"}, ["dense"]),
    ],
)
def test_the_systems_follow_from_the_options(toy, tmp_path, opened, options, systems):
    commands.evaluate(str(toy), json=tmp_path / "out.json", **options)
    document = json.loads((tmp_path / "out.json").read_text())
    assert list(document["systems"]) == systems
    assert document["metrics"] == document["systems"][systems[-1]]
    assert document["made_by"]["encoder fingerprint"] == "e" * 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "found none of --encoder, --index, --run, --vectors and --system; give exactly one"),
        ({"encoder": "a", "index": "b"}, "found --encoder and --index of"),
        ({"run": "a", "hybrid": True}, "a run file was searched already"),
        ({"encoder": "a", "hybrid": True, "mode": ["dense"]}, "give one or the other"),
        ({"encoder": "a", "mode": ["sparse"]}, "unknown mode 'sparse'; known are lexical, dense, hybrid"),
        ({"index": "a", "cache": "b"}, "--cache is where --encoder, --vectors and --system keep what they make"),
        ({"system": "bm25", "mode": ["lexical"]}, "and so does --system; leave them out"),
        ({"system": "bm25", "sparse": "a"}, "--sparse goes with --encoder or --index"),
        ({"run": ["a"], "sparse": "a"}, "--sparse goes with --encoder or --index"),
        (
            {"index": "a", "rerank_depth": 3},
            "--rerank-depth is how far --rerank goes; give a cross-encoder by --rerank",
        ),
        ({"encoder": "a", "measure": ["F1"]}, "unknown measure 'F1'"),
    ],
)
def test_options_that_do_not_agree_are_refused(toy, options, message):
    with pytest.raises(InputError, match=message):
        commands.evaluate(str(toy), **options)


def test_a_collection_is_made_from_known_items(tmp_path, monkeypatch):
    items = [types.SimpleNamespace(document=Document(f"f{row}", "text"), query=f"q {row}") for row in range(20)]
    fake = types.ModuleType("retrieval.python_docs")
    fake.read_python_docs = lambda spec: iter(items)
    monkeypatch.setitem(sys.modules, "retrieval.python_docs", fake)
    made, out = tmp_path / "made", tmp_path / "out.json"
    dataset_commands.collection("python-docs", made, documents=15, test_queries=5, json=out)
    assert load_dataset(made).qrels == split_known_items(items, documents=15, test_queries=5, seed=0).qrels["test"]
    assert json.loads(out.read_text())["queries"] == {"test": 5, "train": 10}
    with pytest.raises(InputError, match="already exists"):
        dataset_commands.collection("python-docs", made)
    with pytest.raises(InputError, match=r"no known items in 'corpus.jsonl'; expected python-docs"):
        dataset_commands.collection("corpus.jsonl", tmp_path / "other")


def test_every_public_name_is_there_and_a_function_is_never_hidden_by_a_module():
    assert evaluation.__all__ == sorted(evaluation._HOMES, key=lambda name: evaluation.__all__.index(name))
    assert set(evaluation.__all__) == set(evaluation._HOMES)
    for name in evaluation.__all__:
        assert not isinstance(getattr(evaluation, name), types.ModuleType), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = evaluation.nothing


def test_importing_everything_loads_no_torch():
    modules = (
        "compare_commands, comparison, comparison_report, costs, inspection, leakage, lineup, "
        "anchors, benchmark_commands, commands, correlation, dataset_commands, downloads, expected, hub_layout, "
        "known_items, library_sources, long_sets, measures, mteb_adapter, mteb_tasks, opening, options, page, "
        "pair_commands, pairs_sets, prepared, presentation, qrels, report, runs, significance, sources, stored, sts, "
        "systems, testsets, trec_files"
    )
    heavy = {"torch", "transformers", "faiss", "mteb", "scipy", "sklearn"}
    code = f"import sys; from evaluation import {modules}; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
