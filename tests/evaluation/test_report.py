import json
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest

from evaluation.page import as_html
from evaluation.presentation import largest_differences
from evaluation.report import as_json, as_markdown, write_report
from evaluation.runs import make_ranking, read_run
from evaluation.systems import evaluate_run, merge
from evaluation.testsets import Profile, TestSet
from indexes.errors import InputError
from retrieval.documents import Document

NASTY = "<script>alert('x')</script> & \"quotes\" | pipe"
VOID = {"meta", "br", "rect", "path"}


def make_report(names=("base", "fused & tuned"), queries=30):
    rng = np.random.default_rng(0)
    texts = {f"q{row}": f"what is {row}?" for row in range(queries)} | {"q0": NASTY}
    qrels = {query: {f"d{rng.integers(40)}": 1, "<b>": 2} for query in texts}
    testset = TestSet("toy", None, "test", texts, qrels, Profile(), "f" * 64, "c" * 64, (f"Careful: {NASTY}.",))
    reports = {}
    for name in names:
        run = {
            query: make_ranking(["<b>", *(f"d{row}" for row in range(40))], rng.random(41), place=query)
            for query in texts
        }
        reports[name] = evaluate_run(run, testset, name=name, made_by={"encoder": NASTY})
    return replace(merge(reports), documents=None)  # there is no corpus


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)


def test_the_page_is_well_formed_self_contained_and_escaped():
    text = as_html(make_report())
    page = Page(text)
    assert page.open == []
    assert page.links == []
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "url(" not in text
    assert "@import" not in text
    assert text.count("&lt;script&gt;") >= 2
    assert page.tags.count("svg") == 1
    assert page.tags.count("rect") == 2
    assert page.tags.count("article") == 10
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("form", [as_html, as_markdown, as_json])
def test_a_report_always_gives_the_same_text(form):
    assert form(make_report()) == form(make_report())


def test_one_system_has_nothing_to_be_compared_with():
    text = as_html(make_report(["only"]))
    assert "differ most" not in text
    assert 'class="best"' not in text
    assert "**" not in as_markdown(make_report(["only"]))


def test_documents_are_shown_with_their_texts_where_the_corpus_has_them():
    report = make_report()
    read = []

    def documents():
        read.append(1)
        return iter([Document("<b>", NASTY, "A title"), Document("d1", "word " * 100), Document("unseen", "nowhere")])

    plain = as_html(report)
    text = as_html(replace(report, documents=documents))
    assert read == [1]
    assert f'<code>&lt;b&gt;</code> <span class="soft">A title {escape(NASTY)}</span>' in text
    assert f'<code>d1</code> <span class="soft">{("word " * 24)[:119].rstrip()}…</span>' in text
    assert "nowhere" not in text
    assert "<code>d2</code></li>" in text
    assert Page(text).open == []
    assert "A title" not in plain
    assert plain.count("<article>") == text.count("<article>") == 10

    def gone():
        raise InputError("corpus.jsonl: no such <file>")

    text = as_html(replace(report, documents=gone))
    assert "Texts of documents are left out: corpus.jsonl: no such &lt;file&gt;." in text
    assert Page(text).open == []
    only = make_report(["only"])
    as_html(replace(only, documents=gone))  # nothing to show, nothing read


def test_the_queries_shown_differ_most():
    report = make_report()
    shown = largest_differences(report)
    gaps = [abs(one.first - one.last) for one in shown]
    assert gaps == sorted(gaps, reverse=True)
    first, last = report.systems.values()
    every = sorted(
        (abs(first.per_query[q]["nDCG@10"] - last.per_query[q]["nDCG@10"]) for q in report.qrels), reverse=True
    )
    assert gaps == every[:10]


def test_json_and_markdown_say_the_numbers_and_the_rules():
    report = make_report()
    document = json.loads(json.dumps(as_json(report)))
    assert document["metrics"] == document["systems"]["fused & tuned"]
    assert set(document["metrics"]) == {"nDCG@10", "MRR@10", "MAP", "Recall@10", "Recall@100", "Recall@1000"}
    assert document["dataset"] == {"name": "toy", "split": "test", "queries": 30, "fingerprint": "f" * 64}
    assert "document id, descending" in document["conventions"]["ties"]
    text = as_markdown(report)
    best = max(one.metrics["nDCG@10"] for one in report.systems.values())
    assert f"**{best:.4f}**" in text
    assert "\\<script\\>" in text


def test_the_folder_holds_everything_and_the_runs_give_the_numbers_again(tmp_path):
    report = make_report()
    write_report(report, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "base.trec",
        "fused-tuned.trec",
        "manifest.json",
        "per-query.tsv",
        "report.html",
        "report.json",
        "report.md",
    ]
    lines = (tmp_path / "out" / "per-query.tsv").read_text().splitlines()
    assert lines[0].split("\t")[:3] == ["query", "system", "nDCG@10"]
    assert len(lines) == 1 + 30 * 2
    testset = TestSet("toy", None, "test", report.queries, report.qrels, report.profile, "f" * 64, "c" * 64)
    again = evaluate_run(read_run(tmp_path / "out" / "fused-tuned.trec"), testset)
    assert again.main.per_query == report.main.per_query
    with pytest.raises(InputError, match="already exists"):
        write_report(report, tmp_path / "out")
    write_report(report, tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("names", [("a b", "a/b"), ("ok", "…")])
def test_systems_that_cannot_have_a_file_of_their_own_are_refused(tmp_path, names):
    with pytest.raises(InputError, match=r"would be written to .* rename the system"):
        write_report(make_report(names), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
