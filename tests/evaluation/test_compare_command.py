"""`retrokit compare` from systems' specs to the page: opened, kept, gone on with, refused."""

import gzip
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from comparisons import make_collection, make_report, make_sets
from fixtures import make_model
from typer.testing import CliRunner

from evaluation import compare_commands, costs, lineup
from evaluation.compare_commands import compare_systems
from evaluation.comparison import compare
from evaluation.inspection import look_closer
from evaluation.kept_runs import keep_run, kept_run, run_key
from evaluation.leakage import find_leaks, training_texts
from evaluation.lineup import System, measure_systems, parse_system
from evaluation.runs import make_ranking, read_run, write_run
from evaluation.testsets import load_dataset
from indexes.errors import InputError
from retrieval.cli import build_app


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collections")
    return [make_collection(folder / name, queries=12, seed=row) for row, name in enumerate(("red", "green"))]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models whose folders have one name."""
    return [make_model(tmp_path_factory.mktemp(f"m{seed}") / "model", seed=seed) for seed in range(2)]


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix not in (".html", ".json")}


@pytest.fixture(scope="module")
def whole(sets, models, tmp_path_factory):
    """A comparison of two encoders and BM25 that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    run(sets, models, folder / "cache", folder / "out" / "report.html", json=folder / "all.json")
    return folder


def run(sets, models, cache, output, **options):
    systems = ["bm25", f"first={models[0]}", f"second={models[1]}"]
    compare_systems(systems, [str(one) for one in sets], output=output, cache=cache, samples=200, k=20, **options)


@pytest.mark.filterwarnings("ignore")
def test_encoders_and_bm25_over_two_sets(whole, sets):
    document = json.loads((whole / "all.json").read_text())
    assert list(document["systems"]) == ["bm25", "first", "second"]
    assert list(document["datasets"]) == ["red", "green"]
    assert len(document["tests"]) == 6
    assert document == json.loads((whole / "out" / "report.json").read_text())
    assert document["systems"]["bm25"]["sets"]["red"]["measures"]["nDCG@10"] > 0.3
    assert "Recall@100" not in document["metrics"], "20 hits are not enough for it"
    first, second = (document["systems"][name]["sets"]["red"]["measures"] for name in ("first", "second"))
    assert first != second, "two models in folders of one name share nothing"
    fingerprints = {value for key, value in document["made_by"].items() if "encoder fingerprint" in key}
    assert len(fingerprints) == 2
    assert document["cases"]["red"]
    assert document["slices"]["red"]


@pytest.mark.filterwarnings("ignore")
def test_killed_work_goes_on_where_it_was(whole, sets, models, tmp_path, monkeypatch, capsys):
    searched = []
    evaluate = lineup.evaluate

    def killed(searcher, testset, **options):
        if len(searched) == 4:
            raise KeyboardInterrupt
        searched.append(testset.name)
        return evaluate(searcher, testset, **options)

    monkeypatch.setattr(lineup, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        run(sets, models, tmp_path / "cache", tmp_path / "out" / "report.html")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(
        lineup, "evaluate", lambda *given, **options: searched.append("again") or evaluate(*given, **options)
    )
    run(sets, models, tmp_path / "cache", tmp_path / "out" / "report.html")
    assert searched == ["red", "green", "red", "green", "again", "again"]
    assert capsys.readouterr().err.count("found as it was searched before") == 4
    for name, text in written(whole / "out").items():
        assert written(tmp_path / "out")[name] == text, name
    assert (tmp_path / "out" / "report.html").read_text() == (whole / "out" / "report.html").read_text()


def test_systems_by_name_and_spec(tmp_path):
    assert parse_system("bm25") == System(None, "bm25")
    assert parse_system("tuned=models/a=b") == System("tuned", "models/a=b")
    assert parse_system("models/a=b") == System(None, "models/a=b")
    assert parse_system("mine = runs/{dataset}.trec") == System("mine", "runs/{dataset}.trec")
    for text in ("", "name=", "  "):
        with pytest.raises(InputError, match="has no spec"):
            parse_system(text)


def write_runs(folder, sets, skills):
    testsets = [load_dataset(one) for one in sets]
    for testset in testsets:
        report = make_report(testset, skills)
        for name, result in report.systems.items():
            (folder / name).mkdir(exist_ok=True, parents=True)
            write_run(result.run, folder / name / f"{testset.name}.trec")
    return testsets


def test_what_a_training_set_holds_and_what_search_costs_is_printed(sets, tmp_path, capsys):
    compare_systems(["bm25"], [str(sets[0])], cache=tmp_path, trained_on=[str(sets[0] / "queries.jsonl")], cost=True)
    shown = " ".join(capsys.readouterr().out.split())
    assert "training set: red: 12 queries and" in shown
    assert "cost of bm25: " in shown


def test_run_files_by_a_pattern(sets, tmp_path, capsys):
    testsets = write_runs(tmp_path, sets, {"one": 0.2, "two": 0.8})
    patterns = [f"{tmp_path}/one/{{dataset}}.trec", f"second={tmp_path}/two/{{dataset}}.trec"]
    measured = measure_systems(patterns, testsets, measures=["nDCG@10"])
    assert list(measured.reports[0].systems) == [patterns[0], "second"]
    expected = make_report(testsets[1], {"one": 0.2, "two": 0.8})
    assert measured.reports[1].main.per_query == {
        query: {"nDCG@10": values["nDCG@10"]} for query, values in expected.main.per_query.items()
    }
    assert measured.opened == {}
    compare_systems(patterns, [str(one) for one in sets], json=tmp_path / "out.json", samples=100)
    shown = capsys.readouterr().out
    assert "second" in shown
    assert "mean" in shown
    with pytest.raises(InputError, match="two systems are called 'second'"):
        measure_systems([patterns[1], patterns[1]], testsets)


def test_published_figures_stand_beside_and_are_not_tested(sets, tmp_path, monkeypatch):
    testsets = write_runs(tmp_path, sets, {"one": 0.2})
    anchor = types.SimpleNamespace(
        system="RetroMAE", measure="nDCG@10", value=0.653, source="its README", convention="trec_eval"
    )
    fake = types.ModuleType("evaluation.anchors")
    fake.anchors_for = lambda name: [anchor] if name in (testsets[0].fingerprint, "green") else []
    monkeypatch.setitem(sys.modules, "evaluation.anchors", fake)
    systems = [f"one={tmp_path}/one/{{dataset}}.trec", "anchor:retromae", "again=anchor:RetroMAE"]
    measured = measure_systems(systems, testsets, measures=["nDCG@10"])
    assert [(one.system, one.dataset, one.value) for one in measured.published] == [
        ("RetroMAE", "red", 0.653),
        ("RetroMAE", "green", 0.653),
        ("again", "red", 0.653),
        ("again", "green", 0.653),
    ]
    assert list(measured.reports[0].systems) == ["one"]
    assert measure_systems([systems[0], "anchor:retro"], testsets).published == measured.published[:2]
    with pytest.raises(InputError, match="no published figure of 'bert' for red, green; there are RetroMAE"):
        measure_systems([systems[0], "anchor:BERT"], testsets)
    others = [types.SimpleNamespace(**{**vars(anchor), "system": name}) for name in ("BM25 flat", "RetroMAE-2")]
    fake.anchors_for = lambda name: [anchor, *others]
    assert len(measure_systems([systems[0], "anchor:retromae"], testsets).published) == 2  # a whole name comes first
    said = "2 published systems begin with 'retro' for red, green; there are RetroMAE, RetroMAE-2"
    with pytest.raises(InputError, match=said):
        measure_systems([systems[0], "anchor:retro"], testsets)
    with pytest.raises(InputError, match="no published figure of 'bm-25' for red, green; there are BM25 flat, "):
        measure_systems([systems[0], "anchor:bm-25"], testsets)


@pytest.mark.parametrize(
    ("systems", "options", "message"),
    [
        (["anchor:BERT"], {}, "nothing to measure; expected at least one system that is no anchor"),
        (["bm25"], {"correction": "bonferroni"}, "--correction is 'bonferroni'; expected one of holm, bh"),
        (["bm25"], {"mode": ["sparse"]}, "unknown mode 'sparse'"),
        (["bm25"], {"measure": ["F1"]}, "unknown measure 'F1'"),
        (["bm25", "bm25"], {}, "two systems are called 'bm25'; name one, such as other=bm25"),
        (["no/such/model"], {}, "no/such/model"),
        (["no such model"], {}, "no such model: no such folder, and not to be had"),
        (["runs/mine.trec"], {}, "runs/mine.trec: no such run file"),
        (["bm25"], {"mode": ["dense"]}, "no system here can be searched by dense; leave the mode out"),
        (["bm25"], {"trained_on": ["nothing.jsonl"]}, "nothing.jsonl: no such file or folder"),
        (["bm25"], {"overwrite": True}, "--overwrite replaces an --output, and none is given"),
        (["bm25+rerank:cross@0"], {}, "'bm25\\+rerank:cross@0' reranks 0 hits; expected"),
    ],
)
def test_what_cannot_be_compared_is_refused(sets, tmp_path, systems, options, message):
    with pytest.raises(InputError, match=message):
        compare_systems(systems, [str(sets[0])], cache=tmp_path, **options)


def test_a_baseline_that_no_system_can_be_is_refused_before_the_work(sets, models, tmp_path, monkeypatch):
    monkeypatch.setattr(lineup, "open_system", lambda *given, **options: pytest.fail("worked"))
    systems = ["bm25", f"tuned={models[0]}", str(models[1]), f"hybrid:{models[1]}+rerank:cross@5"]
    said = r"no system is called 'bm 25', the baseline; there are bm25, tuned, model, hybrid:model\+rerank:cross@5"
    with pytest.raises(InputError, match=said):
        compare_systems(systems, [str(sets[0])], cache=tmp_path, baseline="bm 25")


def test_pairs_are_no_collection_to_compare_on(tmp_path):
    with pytest.raises(InputError, match=r"sts:pairs\.jsonl is a set of pairs, not a test collection; measure it by"):
        compare_systems(["bm25"], ["sts:pairs.jsonl"], cache=tmp_path)
    with pytest.raises(InputError, match="no test collection is named; expected a BEIR folder or trec:"):
        compare_systems(["bm25"], [""], cache=tmp_path)


def test_runs_of_other_depth_are_cut_or_said(sets, tmp_path):
    testsets = write_runs(tmp_path, sets[:1], {"deep": 0.2, "flat": 0.4})
    flat = read_run(tmp_path / "flat" / "red.trec")
    write_run({query: make_ranking(*one._replace(ids=one.ids[:5], scores=one.scores[:5]), place="x") for query, one in
               flat.items()}, tmp_path / "flat" / "red.trec")  # fmt: skip
    systems = [f"deep={tmp_path}/deep/{{dataset}}.trec", f"flat={tmp_path}/flat/{{dataset}}.trec"]
    (report,) = measure_systems(systems, testsets, measures=["nDCG@10", "MAP"], k=30).reports
    assert "a query of run 'deep' has up to 40 hits; the first 30 are read." in report.notices
    assert "no query of run 'flat' has more than 5 hits: nDCG@10 can count no others." in report.notices
    assert report.notices[-1] == "MAP reads all hits of a query, which are at most 30 of 'deep', 5 of 'flat'."
    assert {len(one.ids) for one in report.systems["deep"].run.values()} == {30}
    (report,) = measure_systems(systems, testsets, measures=["P@5"], k=40).reports
    assert not any("hits" in notice for notice in report.notices)


def test_json_that_the_output_holds_anyway_is_written_once(sets, tmp_path):
    write_runs(tmp_path, sets[:1], {"one": 0.2})
    options = {"output": tmp_path / "out.html", "json": tmp_path / "out.json", "samples": 100}
    compare_systems([f"one={tmp_path}/one/{{dataset}}.trec"], [str(sets[0])], **options)
    assert json.loads((tmp_path / "out.json").read_text())["best"] == "one"


def test_a_dataset_twice_and_an_output_that_is_there_are_refused_before_the_work(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(lineup, "evaluate", lambda *given, **options: pytest.fail("worked"))
    with pytest.raises(InputError, match="a dataset is given twice"):
        compare_systems(["bm25"], [str(sets[0]), str(sets[0])], cache=tmp_path)
    (tmp_path / "report.md").write_text("mine")
    with pytest.raises(InputError, match=r"report\.md already exists"):
        compare_systems(["bm25"], [str(sets[0])], cache=tmp_path, output=tmp_path / "report.html")
    assert (tmp_path / "report.md").read_text() == "mine"


def test_the_command_line(sets, tmp_path):
    write_runs(tmp_path, sets, {"one": 0.2, "two": 0.8})
    arguments = ["compare", f"one={tmp_path}/one/{{dataset}}.trec", f"two={tmp_path}/two/{{dataset}}.trec"]
    for one in sets:
        arguments += ["--dataset", str(one)]
    done = CliRunner().invoke(build_app(), [*arguments, "--output", str(tmp_path / "report"), "--samples", "100"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "report" / "report.html").is_file()
    done = CliRunner().invoke(build_app(), [*arguments, "--output", str(tmp_path / "report")])
    assert done.exit_code == 2
    assert "already exists" in done.output


def test_a_run_is_kept_as_it_is_by_all_that_decides_it(tmp_path, sets):
    one, other = (load_dataset(path) for path in sets)
    run = {
        "q 1": make_ranking(["a b", "ü\n"], [np.float32(1 / 3), -2e-30], place="q"),
        "empty": make_ranking([], [], place="q"),
    }
    made_by = {"encoder fingerprint": "e" * 64}
    keys = {
        run_key(made_by, "dense", one, 10, "model"),
        run_key(made_by, "dense", other, 10, "model"),
        run_key(made_by, "hybrid", one, 10, "model"),
        run_key(made_by, "dense", one, 100, "model"),
        run_key({"encoder fingerprint": "f" * 64}, "dense", one, 10, "model"),
        run_key(made_by, "dense", one, 10, str(sets[0])),
    }
    (sets[0] / "more.json").write_text("{}")
    keys.add(run_key(made_by, "dense", one, 10, str(sets[0])))
    (sets[0] / "more.json").unlink()
    assert len(keys) == 7
    key = min(keys)
    assert kept_run(tmp_path / "runs", key) is None
    keep_run(tmp_path / "runs", key, run)
    found = kept_run(tmp_path / "runs", key)
    assert list(found) == list(run)
    for query, ranking in run.items():
        assert found[query].ids == ranking.ids
        assert found[query].scores.tobytes() == ranking.scores.tobytes()
    (path,) = (tmp_path / "runs").iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole[:40], b"", b"no gzip", gzip.compress(b"{}\n"), gzip.compress(b"no json")):
        path.write_bytes(damaged)
        assert kept_run(tmp_path / "runs", key) is None


def brute_leaks(queries, texts, words):
    from retrieval.shingles import normalised

    exact, partly = set(), set()
    plain = [normalised(text) for text in texts]
    for query, text in queries.items():
        parts = normalised(text).split()
        runs = [" ".join(parts[at : at + words]) for at in range(len(parts) - words + 1)]
        if " ".join(parts) in plain:
            exact.add(query)
        elif any(f" {run} " in f" {one} " for run in runs for one in plain):
            partly.add(query)
    return exact, partly


def test_leaks_are_those_of_the_plain_definition(tmp_path):
    testsets = make_sets(tmp_path)
    comparison = compare([make_report(one, {"x": 0.1, "y": 0.5}) for one in testsets], samples=50)
    rng = np.random.default_rng(0)
    records = []
    for testset in testsets:
        documents = {one.id: one for one in testset.documents()}
        for text in list(testset.queries.values())[:20]:
            shorter = " ".join(text.split()[1:])
            kinds = [
                {"query": text.upper() + "!", "positive": ["anything", {"text": "at all"}]},
                {"query": "why", "pos": f"They ask: {shorter} and more"},
                {"_id": text, "text": "nothing of it"},
                {"title": documents["d1"].title, "text": documents["d1"].text},
            ]
            records.append(kinds[int(rng.integers(4))])
    path = tmp_path / "train.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write("\n".join(map(json.dumps, records)))
    texts = {one.name: {doc.id: doc.content for doc in one.documents()} for one in testsets}
    plain = [text for _, text in training_texts(path)]
    for words in (3, 5):
        found = find_leaks(comparison, [path], texts, words=words)
        for testset in testsets:
            leak = found[testset.name]
            exact, partly = brute_leaks(testset.queries, plain, words)
            assert {one.query for one in leak.queries if one.exact} == exact
            assert {one.query for one in leak.queries if not one.exact} == partly
            assert exact
            assert partly
            gone = exact | partly
            values = comparison.reports[testset.name].systems["y"].per_query
            left = [value["nDCG@10"] for query, value in values.items() if query not in gone]
            assert leak.means["y"] == pytest.approx(np.mean(left))
            assert leak.left == len(left)
            assert leak.training_texts == len(plain)
            assert set(leak.documents) <= {"d1"}
            assert leak.queries[0].place.startswith("train.jsonl.gz, line ")
    assert any(leak.documents for leak in found.values())
    page = look_closer(comparison, testsets, trained_on=[str(path)])
    assert page.leaks["red"].queries


def test_a_corpus_is_a_training_set_too_and_an_empty_one_is_refused(tmp_path, sets):
    testset = load_dataset(sets[0])
    comparison = compare([make_report(testset, {"x": 0.1})])
    relevant = {one for grades in testset.qrels.values() for one, grade in grades.items() if grade > 0}
    texts = {testset.name: {one.id: one.content for one in testset.documents() if one.id in relevant}}
    leak = find_leaks(comparison, [sets[0]], texts)[testset.name]
    assert set(leak.documents) == relevant
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no texts found"):
        find_leaks(comparison, [tmp_path / "empty.jsonl"], texts)
    with pytest.raises(InputError, match="words is 0"):
        find_leaks(comparison, [sets[0]], texts, words=0)


class Searcher:
    modes = ("hybrid",)

    def __init__(self):
        self.sizes, self.encoded = [], []
        self.encoder = types.SimpleNamespace(encode_documents=lambda texts: self.encoded.append(len(texts)))

    def search_many(self, texts, k, *, mode):
        assert (k, mode) == (10, "hybrid")
        self.sizes.append(len(texts))
        return [[] for _ in texts]


def test_costs_are_counted_over_queries_batches_and_documents():
    searcher = Searcher()
    cost = costs.measure_costs(searcher, "hybrid", ["q"] * 70, ["d"] * 12, dataset="toy")
    assert searcher.sizes == [1] * (5 + 3 * 70) + [32, 32, 6] * 3
    assert searcher.encoded == [5, 12, 12, 12]
    assert 0 < cost.p50_ms <= cost.p95_ms <= cost.p99_ms
    assert cost.queries_per_s > 0
    assert cost.documents_per_s > 0
    assert cost.peak_bytes > 10_000_000
    assert (cost.queries, cost.documents, cost.dataset) == (70, 12, "toy")
    assert cost.index_bytes is None
    reranked = types.SimpleNamespace(searcher=searcher)
    assert costs._documents_per_s(reranked, "dense+rerank", ["d"]) > 0
    assert costs._documents_per_s(reranked, "lexical+rerank", ["d"]) is None
    with pytest.raises(InputError, match="no queries to time"):
        costs.measure_costs(searcher, "hybrid", [])


def test_costs_of_a_system_in_a_process_of_its_own(sets, tmp_path, capsys):
    compare_systems(
        ["bm25", "again=bm25"], [str(sets[0])], cache=tmp_path, cost=True, samples=100, output=tmp_path / "r.html"
    )
    document = json.loads((tmp_path / "r.json").read_text())
    assert list(document["costs"]) == ["bm25", "again"]
    assert document["costs"]["bm25"]["dataset"] == "red"
    assert document["costs"]["bm25"]["index_bytes"] == document["costs"]["again"]["index_bytes"] > 0
    assert document["costs"]["bm25"]["documents_per_s"] is None
    assert "<h2>Cost</h2>" in (tmp_path / "r.html").read_text()
    with pytest.raises(InputError, match=r"the costs of no/such could not be measured \(status 1\): error: "):
        costs.measure_in_fresh_process("no/such", str(sets[0]), "test", "dense", tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux says it there")
def test_the_memory_of_a_process_is_its_own_and_not_that_of_who_started_it():
    code = "from evaluation.costs import peak_memory; print(peak_memory())"
    held = np.ones(60_000_000)  # 480 MB here
    theirs = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert theirs < 300_000_000 < held.nbytes <= costs.peak_memory()


def test_a_system_whose_costs_cannot_be_measured_is_a_notice(sets, tmp_path, monkeypatch):
    def refuse(*given):
        raise InputError("the costs of bm25 could not be measured")

    monkeypatch.setattr(costs, "measure_in_fresh_process", refuse)
    testset = load_dataset(sets[0])
    comparison = compare([make_report(testset, {"x": 0.1})])
    found = compare_commands._with_costs(comparison, {"x": (System(None, "bm25"), "lexical")}, ["s"], [testset], None)
    assert found.costs == {}
    assert found.notices[-1] == "the costs of bm25 could not be measured"
