"""Comparisons: what is tested, corrected, sliced, shown, and the forms it is written in."""

import csv
import io
import itertools
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from comparisons import make_collection, make_report, make_sets
from scipy import stats

from evaluation.cases import cases_of, largest
from evaluation.comparison import Published, compare, hole
from evaluation.comparison_charts import Interval, Point, differences_chart, front, intervals_chart, pareto_chart
from evaluation.comparison_page import as_html
from evaluation.comparison_report import as_csv, as_json, as_markdown, files_of, per_query_csv, write_comparison
from evaluation.comparison_text import headline, p_text, verdicts, weakest
from evaluation.costs import Cost
from evaluation.inspection import look_closer
from evaluation.measures import means
from evaluation.page import as_html as report_html
from evaluation.presentation import headline as report_headline
from evaluation.runs import make_ranking
from evaluation.significance import holm, paired
from evaluation.slices import groups, lexical_overlap
from evaluation.testsets import Profile, TestSet, load_dataset
from indexes.errors import InputError

NASTY = "<script>alert('x')</script> & \"quotes\" | pipe"
SKILLS = {"base": 0.5, "weak": 0.1, "strong": 0.9}
VOID = {"meta", "br", "rect", "path"}
COST = Cost("red", 24, 1.0, 2.0, 3.0, 900.0, 55.0, 128, 2_000_000, 300_000_000, None, "some machine")


@pytest.fixture(scope="module")
def testsets(tmp_path_factory):
    return make_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def comparison(testsets):
    reports = [make_report(one, SKILLS, seed=row) for row, one in enumerate(testsets)]
    found = compare(reports, measure="nDCG@10", samples=2000)
    costs = {"base": COST, "strong": COST._replace(p95_ms=40.0, index_bytes=None)}
    anchors = (Published("RetroMAE", "red", "nDCG@10", 0.653, "README", "trec_eval"),)
    return look_closer(found, testsets).with_more(costs=costs, published=anchors)


def test_every_system_is_tested_on_every_set_and_over_all(comparison, testsets):
    assert comparison.systems == ("base", "weak", "strong")
    assert [(one.system, one.dataset) for one in comparison.tests] == [
        (system, name) for system in ("weak", "strong") for name in ("red", "green", None)
    ]
    for system in ("weak", "strong"):
        for name in ("red", "green"):
            first, second = comparison.values(name, "base"), comparison.values(name, system)
            one = comparison.tested(system, name)
            assert one.result == paired(first, second, samples=2000)
            assert one.result.p_t == pytest.approx(stats.ttest_rel(second, first).pvalue)
        both = comparison.tested(system, None).result
        assert both.difference == pytest.approx(
            np.mean([comparison.tested(system, name).result.difference for name in ("red", "green")])
        )
        assert both.sets == ("red", "green")
    assert [one.adjusted for one in comparison.tests] == holm([one.result.p_randomisation for one in comparison.tests])
    assert comparison.tested("strong", None).verdict == "better"
    assert comparison.tested("weak", None).verdict == "worse"
    for name, report in comparison.reports.items():
        assert comparison.means[name]["weak"].value == means(report.systems["weak"].per_query)["nDCG@10"]
    assert comparison.suite["weak"].value == pytest.approx(
        np.mean([comparison.means[name]["weak"].value for name in ("red", "green")])
    )


def test_another_baseline_measure_and_correction(testsets):
    reports = [make_report(testsets[0], SKILLS)]
    found = compare(reports, baseline="weak", measure="MRR@10", correction="bh", samples=500)
    assert found.others == ("base", "strong")
    assert {one.dataset for one in found.tests} == {"red"}
    holm_too = compare(reports, baseline="weak", measure="MRR@10", samples=500)
    for loose, strict in zip(found.tests, holm_too.tests, strict=True):
        assert loose.result == strict.result
        assert loose.adjusted <= strict.adjusted
    assert "MRR@10" in headline(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "nobody"}, "unknown baseline 'nobody'; there are base, weak"),
        ({"measure": "F1"}, "unknown measure 'F1'"),
        ({"correction": "none"}, "unknown correction 'none'; there are holm, bh"),
    ],
)
def test_what_is_not_there_is_refused(comparison, options, message):
    with pytest.raises(InputError, match=message):
        compare(list(comparison.reports.values()), **options)


def test_reports_must_fit_together(testsets):
    one, other = (make_report(testset, SKILLS) for testset in testsets)
    with pytest.raises(InputError, match="no reports to compare"):
        compare([])
    with pytest.raises(InputError, match="red and green cannot be compared: systems base, weak, strong ≠ base"):
        compare([one, make_report(testsets[1], {"base": 0.1})])
    with pytest.raises(InputError, match=r"dataset red \(test\) \w{8} is given twice"):
        compare([one, one])
    assert list(compare([one, other], samples=100).reports) == ["red", "green"]


def test_sets_of_one_name_are_told_apart(tmp_path):
    sets = [load_dataset(make_collection(tmp_path / str(row) / "same", queries=8, seed=row)) for row in range(2)]
    found = compare([make_report(one, SKILLS) for one in sets], samples=100)
    assert list(found.reports) == [f"same (test) {one.fingerprint[:8]}" for one in sets]


def test_one_system_and_systems_that_are_the_same():
    testset = TestSet("toy", None, "test", {"q": "why"}, {"q": {"d1": 1}}, Profile(), "f" * 64, "c" * 64)
    alone = compare([make_report(testset, {"only": 0.5})])
    assert alone.tests == ()
    assert "only reaches nDCG@10" in headline(alone)
    for form in (as_html, as_markdown, as_csv, as_json):
        assert form(alone)
    same = make_report(testset, {"one": 0.5})
    same.systems["two"] = same.systems["one"]
    found = compare([same], samples=100)
    assert found.tests[0].result.ties == 1
    assert found.tests[0].adjusted == 1.0
    assert "has the best" in headline(found)
    assert as_html(found)


def test_the_headline_says_what_is_better_and_how_sure(comparison, testsets):
    assert headline(comparison).startswith("strong is best: nDCG@10 ")
    assert "on average over 2 sets (red, green)" in headline(comparison)
    assert "after Holm's correction" in headline(comparison)
    assert "better on 2 of 2 sets, worse on none" in headline(comparison)
    assert "weak is worse than base" in verdicts(comparison)[0]
    first = compare([make_report(testsets[0], SKILLS)], baseline="strong", samples=1000)
    assert headline(first).startswith("strong, the baseline, has the best nDCG@10")
    assert "neither of the two others is better" in headline(first)
    close = compare([make_report(testsets[0], {"one": 0.3, "two": 0.31}, seed=3)], samples=1000)
    assert "may be chance" in headline(close) or "the baseline, has the best" in headline(close)
    assert [p_text(p) for p in (0.00001, 0.0004, 0.0499, 1.0)] == ["< 0.0001", "0.0004", "0.050", "1.000"]


def test_holes_are_hits_without_a_judgement():
    run = {"q": make_ranking(["a", "b", "c"], [3, 2, 1], place="q"), "foreign": make_ranking(["x"], [1], place="f")}
    assert hole(run, {"q": {"a": 1, "c": 0}, "absent": {"a": 1}}) == pytest.approx(1 / 3)
    assert hole(run, {"q": {"a": 1, "c": 0}}, k=1) == 0
    assert hole({}, {"q": {"a": 1}}) == 0


def test_groups_are_even_and_keep_equal_values_together():
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 7, 90):
        for most in (1, 2, 5, 100):
            values = {f"q{row}": float(value) for row, value in enumerate(rng.integers(most, size=count))}
            found = groups(values)
            assert sorted(query for some in found for query in some) == sorted(values)
            assert 1 <= len(found) <= min(3, len(set(values.values())))
            assert len(found) > 1 or len(set(values.values())) == 1
            for low, high in itertools.pairwise(found):
                assert max(values[query] for query in low) < min(values[query] for query in high)
    assert [len(some) for some in groups({str(row): float(row) for row in range(90)})] == [30, 30, 30]
    assert groups({}) == []


def test_slices_hold_every_query_once_and_their_means(comparison):
    for name, slices in comparison.slices.items():
        report = comparison.reports[name]
        assert {one.feature for one in slices} == {"query length", "words in common", "relevant documents"}
        for feature in {one.feature for one in slices}:
            some = [one for one in slices if one.feature == feature]
            assert sorted(query for one in some for query in one.queries) == sorted(report.qrels)
            for one in some:
                values = [report.systems["weak"].per_query[query]["nDCG@10"] for query in one.queries]
                assert one.means["weak"] == pytest.approx(np.mean(values))
                assert one.differences["weak"].value == pytest.approx(one.means["weak"] - one.means["base"])
    counts = [one for one in comparison.slices["red"] if one.feature == "relevant documents"]
    assert counts[0].label == "1 document"


def test_lexical_overlap_is_the_mean_share_of_terms(comparison):
    report = make_report(
        TestSet(
            "toy",
            None,
            "test",
            {"q1": "green houses of the river", "q2": "the of", "q3": "cat"},
            {"q1": {"a": 1, "b": 2, "c": 0}, "q2": {"a": 1}, "q3": {"gone": 1}},
            Profile(),
            "f" * 64,
            "c" * 64,
        ),
        {"x": 0.1},
    )
    texts = {"a": "The house is green.", "b": "a RIVER", "c": "green houses of the river"}
    assert lexical_overlap(report, texts) == {"q1": pytest.approx((2 / 3 + 1 / 3) / 2)}


def test_the_cases_lose_and_gain_most_and_show_both_sides(comparison, testsets):
    values = dict(zip(comparison.reports["red"].qrels, comparison.values("red", "weak"), strict=True))
    base = dict(zip(comparison.reports["red"].qrels, comparison.values("red", "base"), strict=True))
    cases = [case for case in comparison.cases["red"] if case.system == "weak"]
    losses = [case for case in cases if case.difference < 0]
    assert losses[0].difference == min(values[query] - base[query] for query in values)
    assert [case.difference for case in losses] == sorted(case.difference for case in losses)
    assert len(losses) == 3 == len(largest(comparison, "red", "weak", 3)) - len(cases[3:])
    report = comparison.reports["red"]
    texts = {one.id: one.content for one in testsets[0].documents()}
    for case in cases:
        assert case.text == report.queries[case.query]
        for one in case.relevant:
            assert one.text == " ".join(texts[one.document].split())
            assert report.systems["base"].run[case.query].ids[one.first - 1] == one.document
            assert report.systems["weak"].run[case.query].ids[one.second - 1] == one.document
        for hits, system in ((case.first_hits, "base"), (case.second_hits, "weak")):
            assert [hit.document for hit in hits] == report.systems[system].run[case.query].ids[:5]
            assert [hit.grade for hit in hits] == [report.qrels[case.query].get(hit.document) for hit in hits]
    assert cases_of(comparison, "red", {}, 0) == []


def test_a_closer_look_needs_the_same_sets(comparison, testsets):
    with pytest.raises(InputError, match="the test sets are not those of the reports"):
        look_closer(comparison, testsets[::-1])


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [
            value
            for name, value in attributes
            if name in ("src", "href", "srcset", "data", "action") or name[:2] == "on"
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)


def test_a_set_of_one_query_has_no_interval_and_says_so(tmp_path):
    sets = [load_dataset(make_collection(tmp_path / str(count), queries=count, seed=count)) for count in (1, 12)]
    comparison = compare([make_report(one, {"bm25": 0.2, "new": 0.5}) for one in sets], samples=100)
    assert comparison.notices[-1] == (
        "1: one query says nothing about others; its value has no interval, nor has the mean over sets."
    )
    assert comparison.means["1"]["new"].interval is comparison.suite["new"].interval is None
    assert comparison.means["12"]["new"].interval is not None
    document = as_json(comparison)
    assert document["systems"]["new"]["mean_over_sets"]["interval"] is None
    assert [(one["low"] is None, one["dataset"]) for one in document["tests"]] == [
        (True, "1"),
        (False, "12"),
        (True, None),
    ]
    assert "no interval" in document["headline"]
    assert weakest(comparison).endswith("Of 1 this cannot be said: differences there have no spread.")
    for text in (as_html(comparison), as_markdown(comparison), as_csv(comparison)):
        assert "nan" not in text.lower().replace("nanosecond", "")
    assert "no interval" in as_html(comparison)
    alone = make_report(sets[0], {"new": 0.5})
    assert "(one query: there is no interval)" in report_headline(alone)
    assert 'whisker" fill' not in report_html(alone)


def test_the_page_is_well_formed_self_contained_and_complete(comparison):
    text = as_html(comparison)
    page = Page(text)
    assert page.open == []
    assert page.links == []
    assert "script" not in page.tags
    for outside in ("http", "url(", "@import"):
        assert outside not in text, outside
    assert page.tags.count("svg") == 1 + 4 + 1  # intervals, two systems on two sets, one cost that both have
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    for heading in (
        "nDCG@10",
        "Differences from base",
        "How sure",
        "Query by query",
        "Kinds of queries",
        "Worst losses and best gains",
        "All measures",
        "Cost",
        "Published figures",
        "Conventions",
        "Made by",
    ):
        assert f"<h2>{heading}</h2>" in text
    for mark in ("▲", "▼"):
        assert mark in text
    assert "RetroMAE" in text
    assert "some machine" in text


def hostile(tmp_path):
    testset = TestSet(
        NASTY, None, NASTY, {NASTY: NASTY, "q2": NASTY}, {NASTY: {NASTY: 1}, "q2": {"d3": 1}}, Profile(), "f" * 64,
        "c" * 64, (NASTY,)
    )  # fmt: skip
    report = make_report(testset, {f"first {NASTY}": 0.2, f"second {NASTY}": 0.9}, seed=1)
    found = compare([report], samples=50)
    object.__setattr__(testset, "documents", lambda: [])
    from evaluation.slices import slices_of

    leaks = {}
    return found.with_more(
        cases={NASTY: tuple(cases_of(found, NASTY, {"d3": NASTY, NASTY: NASTY}))},
        slices={NASTY: tuple(slices_of(found, NASTY, {"d3": NASTY}))},
        costs={system: COST._replace(machine=NASTY, dataset=NASTY) for system in found.systems},
        published=(Published(NASTY, NASTY, NASTY, 0.5, NASTY, NASTY),),
        leaks=leaks,
        made_by={NASTY: NASTY},
    )


def test_hostile_texts_are_only_texts(tmp_path):
    found = hostile(tmp_path)
    text = as_html(found)
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert "<script" not in text.lower()
    assert "\\<script\\>" in as_markdown(found)
    assert "<script>" not in as_markdown(found)
    assert json.loads(json.dumps(as_json(found)))["systems"]
    rows = list(csv.reader(io.StringIO(as_csv(found))))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert rows[1][0] == NASTY


def test_json_markdown_and_csv_say_the_same(comparison):
    document = json.loads(json.dumps(as_json(comparison)))
    assert document["best"] == "strong"
    assert document["metrics"]["nDCG@10"] == pytest.approx(comparison.suite["strong"].value)
    assert list(document["datasets"]) == ["red", "green"]
    assert len(document["tests"]) == 6
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert [(row["dataset"], row["system"]) for row in rows] == [
        (name, system) for name in ("red", "green") for system in comparison.systems
    ]
    for row in rows:
        mean = comparison.means[row["dataset"]][row["system"]].value
        assert float(row["nDCG@10"]) == pytest.approx(mean, rel=1e-8)
        if row["system"] != "base":
            one = comparison.tested(row["system"], row["dataset"])
            assert float(row["p_adjusted"]) == pytest.approx(one.adjusted, rel=1e-8)
            assert f"{one.result.difference:+.4f}" in as_markdown(comparison)
    every = list(csv.DictReader(io.StringIO(per_query_csv(comparison))))
    assert len(every) == 3 * (24 + 54)
    assert "| mean over sets |" in as_markdown(comparison)


def test_the_same_comparison_gives_the_same_bytes(comparison, testsets):
    reports = [make_report(one, SKILLS, seed=row) for row, one in enumerate(testsets)]
    again = look_closer(compare(reports, measure="nDCG@10", samples=2000), testsets)
    again = again.with_more(costs=comparison.costs, published=comparison.published)
    for form in (as_html, as_markdown, as_csv, per_query_csv):
        assert form(again) == form(comparison)


def test_a_file_with_others_beside_it_or_a_folder(comparison, tmp_path):
    wrote = write_comparison(comparison, tmp_path / "out" / "page.html")
    assert sorted(path.name for path in wrote) == sorted(
        path.name for path in (tmp_path / "out").iterdir()
    ) == ["page.csv", "page.html", "page.json", "page.md", "page.per-query.csv"]  # fmt: skip
    with pytest.raises(InputError, match=r"page\.html already exists; choose another --output or pass --overwrite"):
        write_comparison(comparison, tmp_path / "out" / "page.html")
    write_comparison(comparison, tmp_path / "out" / "page.html", overwrite=True)
    write_comparison(comparison, tmp_path / "folder")
    assert (tmp_path / "folder" / "manifest.json").is_file()
    for ending, path in files_of(tmp_path / "folder").items():
        assert path.read_bytes() == (tmp_path / "out" / f"page{ending}").read_bytes()
    with pytest.raises(InputError, match="already exists"):
        write_comparison(comparison, tmp_path / "folder")


def test_charts_of_the_least_and_the_most():
    for values in ([0.0], [1.0], [-1.0, 1.0], [0.0] * 5, np.linspace(-1, 1, 5000).tolist()):
        text = differences_chart("all", values)
        assert len(text) < 20_000
        assert Page(text).open == []
    assert "nan" not in intervals_chart("none", [Interval("a", 0.0, (0.0, 0.0), "unclear")])
    one = intervals_chart("one query", [Interval("a", 0.3, None, "unclear")])
    assert ("whisker" in one, "+0.300" in one) == (False, True)
    points = [Point("cheap", 1, 0.2), Point("dear", 100, 0.5), Point("worse", 120, 0.4), Point("same", 1, 0.1)]
    assert [one.name for one in front(points)] == ["cheap", "dear"]
    assert Page(pareto_chart("all", "ms", points)).tags.count("circle") == 4
    assert "nan" not in pareto_chart("one", "ms", points[:1])
