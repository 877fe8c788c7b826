"""Probes in a run: training is left alone, what is kept and an early end outlive kills; trackers and the report."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from kills import Killed, assert_same_weights, kill_at
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.integrations import integration_utils
from typer.testing import CliRunner

from indexes.checksums import verify
from indexes.errors import InputError
from indexes.manifest import open_manifest
from pretraining.commands import report
from pretraining.configuration import PretrainConfig
from pretraining.probing import NDCG, Probe, ProbeOptions, sample_probe_pairs
from pretraining.run import pretrain
from pretraining.stopping import Probing
from retrieval.cli import build_app
from retrieval.documents import Document, read_documents

OPTIONS = dict(max_steps=6, batch_size=4, max_length=16, save_steps=2, learning_rate=1e-3, warmup_steps=1)
PROBES = OPTIONS | dict(probe_steps=2, probe_updates=3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Documents of 20 to 40 words, long enough for pairs."""
    words = ["river", "stone", "green", "walk", "night", "paper", "music", "water", "house", "train"]
    generator = torch.Generator().manual_seed(1)
    lines = []
    for number in range(40):
        picked = torch.randint(len(words), (20 + number % 20,), generator=generator).tolist()
        text = " ".join(words[word] for word in picked[:9]) + ". " + " ".join(words[word] for word in picked[9:])
        lines.append(json.dumps({"_id": f"d{number}", "title": f"{words[number % 10]} {number}", "text": text}))
    path = tmp_path_factory.mktemp("probed") / "corpus.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def card_of(folder):
    return json.loads((folder / "retrokit.json").read_text())


@pytest.fixture(scope="module")
def probed(base, corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "model"
    pretrain(corpus, output, base=base, **PROBES)
    return output


def test_probes_leave_training_as_it_is(probed, base, corpus, tmp_path):
    pretrain(corpus, tmp_path / "plain", base=base, **OPTIONS)
    assert_same_weights(probed, tmp_path / "plain")
    training = [line for line in log_of(probed) if NDCG not in line]
    assert training == log_of(tmp_path / "plain")


def test_a_probe_says_what_it_should(probed):
    lines = [line for line in log_of(probed) if NDCG in line]
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    names = {"ndcg@10", "term_coverage", "alignment", "uniformity", "effective_rank", "shuffle_gap/decoder_mlm"}
    for line in lines:
        assert set(line) == {"step", *(f"probe/{name}" for name in names)}
        assert 0 <= line[NDCG] <= 1
        assert 0 <= line["probe/term_coverage"] <= 1
        assert 0 <= line["probe/alignment"] <= 4
        assert -4 <= line["probe/uniformity"] <= 0
        assert 1 <= line["probe/effective_rank"] <= 16
    assert len({line[name] for line in lines for name in ("probe/alignment",)}) == 4, "the encoder changes"
    card = card_of(probed)
    assert {int(step) for step in card["probes"]} == {0, 2, 4, 6}
    assert card["probes"]["4"] == {name: value for name, value in lines[2].items() if name != "step"}
    assert (card["kept"], card["steps"]) == (6, 6)
    assert card["configuration"]["probe_updates"] == 3


@pytest.fixture
def scripted(monkeypatch):
    """Give probes values by step, and keep the weights that each one saw."""

    def install(values):
        seen, at = {}, [0]

        def measure(self):
            seen[at[0]] = {name: value.clone() for name, value in self.base.model.backbone.state_dict().items()}
            return {NDCG: values[at[0]]}

        def measure_at(self, step):
            at[0] = step
            original(self, step)

        original = Probing._measure
        monkeypatch.setattr(Probing, "_measure", measure_at)
        monkeypatch.setattr(Probe, "measure", measure)
        return seen

    return install


def test_the_best_probes_weights_come_out(scripted, base, corpus, tmp_path):
    seen = scripted({0: 0.1, 2: 0.5, 4: 0.5, 6: 0.4})
    notes = []
    options = PROBES | {"keep": "best"}
    pretrain(corpus, tmp_path / "model", base=base, on_note=notes.append, **options)
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in seen[2].items())
    assert not torch.equal(seen[2]["embeddings.word_embeddings.weight"], seen[6]["embeddings.word_embeddings.weight"])
    assert card_of(tmp_path / "model")["kept"] == 2
    assert "step 2: probe nDCG@10 0.5000 (best)" in notes
    assert "step 4: probe nDCG@10 0.5000" in notes, "of equals the earliest"
    assert "kept the weights of step 2" in notes
    verify(tmp_path / "model", open_manifest(tmp_path / "model", "model"))


def test_a_base_that_only_gets_worse_comes_out_as_it_came(scripted, base, corpus, tmp_path):
    seen, notes = scripted({0: 0.9, 2: 0.5, 4: 0.6}), []
    options = PROBES | {"keep": "best", "patience": 2}
    result = pretrain(corpus, tmp_path / "model", base=base, on_note=notes.append, **options)
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in seen[0].items())
    assert (result.card["kept"], result.card["steps"], set(result.card["probes"])) == (0, 4, {"0", "2", "4"})
    assert "stopped at step 4 of 6: no probe was better than that of step 0" in notes
    assert [line["step"] for line in log_of(tmp_path / "model") if NDCG not in line] == [1, 2, 3, 4]
    assert pretrain(corpus, tmp_path / "model", base=base, **options).already_complete


VALUES = {0: 0.1, 1: 0.2, 2: 0.7, 3: 0.8, 4: 0.3, 5: 0.4, 6: 0.5}


@pytest.mark.parametrize(("keep", "killed"), [("best", 4), pytest.param("last", 5, marks=pytest.mark.slow)])
def test_a_killed_run_stops_and_keeps_as_one_left_alone(killed, keep, scripted, base, corpus, tmp_path):
    """A probe at every step, checkpoints every two; ends at step 5, two probes after the best of step 3."""
    scripted(VALUES)
    options = PROBES | {"probe_steps": 1, "keep": keep, "patience": 2}
    pretrain(corpus, tmp_path / "alone", base=base, **options)
    with pytest.raises(Killed):
        pretrain(corpus, tmp_path / "model", base=base, on_progress=kill_at(killed), **options)
    result = pretrain(corpus, tmp_path / "model", base=base, **options)
    assert result.resumed_from == (killed - 1) // 2 * 2
    assert (result.card["steps"], result.card["kept"]) == (5, 3 if keep == "best" else 5)
    assert_same_weights(tmp_path / "alone", tmp_path / "model")
    for name in ("log.jsonl", "report.html"):
        one, other = ((tmp_path / run / name).read_text() for run in ("alone", "model"))
        assert one.replace("alone", "model") == other
    assert not (tmp_path / "model.partial").exists()


def test_the_best_as_of_the_checkpoint_is_there_even_if_later_probes_were_better(scripted, base, corpus, tmp_path):
    """Killed after a better probe and before its checkpoint; what follows then ranks otherwise, as on a GPU it may."""
    values = dict(VALUES)
    seen = scripted(values)
    options = PROBES | {"probe_steps": 1, "keep": "best"}
    with pytest.raises(Killed):
        pretrain(corpus, tmp_path / "model", base=base, on_progress=kill_at(4), **options)
    best = seen[2]
    folder = tmp_path / "model.partial" / "best"
    assert sorted(path.name for path in folder.iterdir()) == ["best-2.safetensors", "best-3.safetensors"]
    values[3] = 0.3
    result = pretrain(corpus, tmp_path / "model", base=base, **options)
    assert result.card["kept"] == 2
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in best.items())


@pytest.mark.slow
def test_a_run_that_was_to_stop_at_its_checkpoint_trains_no_further(scripted, base, corpus, tmp_path, monkeypatch):
    scripted({0: 0.5, 2: 0.4, 4: 0.3})
    options = PROBES | {"patience": 2}
    pretrain(corpus, tmp_path / "alone", base=base, **options)

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("pretraining.run.write_model_folder", killed)
        with pytest.raises(Killed):
            pretrain(corpus, tmp_path / "model", base=base, **options)
    result = pretrain(corpus, tmp_path / "model", base=base, **options)
    assert (result.resumed_from, result.card["steps"]) == (4, 4)
    assert_same_weights(tmp_path / "alone", tmp_path / "model")


def test_missing_best_weights_are_said_and_not_made_up(scripted, base, corpus, tmp_path):
    scripted(VALUES)
    options = PROBES | {"keep": "best"}
    with pytest.raises(Killed):
        pretrain(corpus, tmp_path / "model", base=base, on_progress=kill_at(5), **options)
    (tmp_path / "model.partial" / "best" / "best-2.safetensors").unlink()
    with pytest.raises(InputError, match=r"best-2.safetensors is missing, the best weights so far; start anew: remove"):
        pretrain(corpus, tmp_path / "model", base=base, **options)


@pytest.mark.slow
def test_a_probed_process_killed_by_the_system_goes_on(base, corpus, tmp_path):
    options = PROBES | {"keep": "best", "probe_steps": 1, "save_steps": 1}
    pretrain(corpus, tmp_path / "alone", base=base, **options)
    output, partial = tmp_path / "model", tmp_path / "model.partial"
    call = f"pretrain({str(corpus)!r}, {str(output)!r}, base={str(base)!r}, **{options!r})"
    code = "import torch\nfrom pretraining import pretrain\ntorch.set_num_threads(1)\n" + call
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    deadline = time.monotonic() + 60
    while not (partial / "log.jsonl").exists() or len((partial / "log.jsonl").read_text().splitlines()) < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    assert pretrain(corpus, output, base=base, **options).resumed_from > 0
    assert_same_weights(tmp_path / "alone", output)
    assert (output / "log.jsonl").read_text() == (tmp_path / "alone" / "log.jsonl").read_text()
    assert card_of(output)["kept"] == card_of(tmp_path / "alone")["kept"]


def test_a_judge_ranks_in_place_of_the_held_out_queries(base, corpus, tmp_path):
    class Judge:
        name, fingerprint = "three queries", "abc"
        calls: list = []

        def __call__(self, encoder):
            assert not encoder.training
            self.calls.append(encoder.encode_query(["river", "stone"]))
            return len(self.calls) / 10

    judge = Judge()
    result = pretrain(corpus, tmp_path / "model", base=base, judge=judge, **PROBES)
    assert [value[NDCG] for value in result.card["probes"].values()] == [0.1, 0.2, 0.3, 0.4]
    assert result.card["probes_rank"] == "three queries"
    assert not (judge.calls[0] == judge.calls[1]).all()
    judge.fingerprint = "def"
    with pytest.raises(InputError, match=r"made otherwise \(judge: def ≠ abc\)"):
        pretrain(corpus, tmp_path / "model", base=base, judge=judge, **PROBES)


@pytest.mark.slow
def test_span_objectives_and_bfloat16_are_probed_too(base, corpus, tmp_path):
    for objective, gaps in (("cotmae", ["span_decoder"]), ("simcse", [])):
        options = PROBES | {"objective": objective, "precision": "bfloat16", "max_steps": 1}
        (values, _) = pretrain(corpus, tmp_path / objective, base=base, **options).card["probes"].values()
        assert [name for name in values if "gap" in name] == [f"probe/shuffle_gap/{name}" for name in gaps]
        assert ("probe/term_coverage" in values) == (objective != "simcse")


def test_pairs_depend_on_the_seed_and_documents_only(corpus):
    documents = list(read_documents(corpus))
    pairs = sample_probe_pairs(documents, 3)
    assert sorted(pairs) == sorted(sample_probe_pairs(reversed(documents), 3))
    assert sorted(pairs) != sorted(sample_probe_pairs(documents, 4))
    long = [Document(f"d{number}", "word " * 30_000) for number in range(12)]
    assert max(len(pair.text) for pair in sample_probe_pairs(long, 0)) <= 4000
    with pytest.raises(InputError, match="9 of 9 documents are long enough; expected at least 10"):
        sample_probe_pairs(documents[:9], 0)


def test_too_few_documents_leave_nothing_behind(base, tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": "river stone"}\n')
    with pytest.raises(InputError, match="0 of 1 documents are long enough"):
        pretrain(tmp_path / "corpus.jsonl", tmp_path / "model", base=base, **PROBES)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe_steps": -1}, "probe_steps is -1; expected the steps between two"),
        ({"probe_steps": 5, "probe_updates": 0}, "probe_updates is 0; expected at least 1"),
        ({"keep": "first"}, "keep is 'first'; expected last or best"),
        ({"keep": "best"}, "keep best needs probes, and probe_steps is 0"),
        ({"patience": 3}, "patience needs probes, and probe_steps is 0"),
        ({"probe_steps": 5, "patience": 0}, "patience is 0; expected at least 1 probe"),
    ],
)
def test_options_are_refused_in_the_users_words(options, message):
    with pytest.raises(InputError, match=message):
        PretrainConfig(base="x", **options)


def test_runs_without_probes_are_the_runs_they_were():
    assert "keep" not in PretrainConfig(base="x").record()
    assert ProbeOptions(5).record().keys() <= PretrainConfig(base="x", probe_steps=5).record().keys()


class Tracker(TrainerCallback):
    seen: list = []

    def on_log(self, args, state, control, logs=None, **_):
        self.seen.append((state.global_step, dict(logs)))


def test_trackers_hear_of_losses_terms_and_probes(base, corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["wandb"])
    Tracker.seen.clear()
    pretrain(corpus, tmp_path / "model", base=base, report_to=["wandb"], **PROBES)
    heard = [{"step": step, **values} for step, values in Tracker.seen]
    assert heard == log_of(tmp_path / "model")
    assert {"total", "decoder_mlm", "learning_rate"} <= heard[1].keys()


def test_trackers_that_are_not_there_are_refused_by_name(base, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", list)
    with pytest.raises(InputError, match="report_to has tensorboard, which is not installed here: pip install tensor"):
        pretrain(corpus, tmp_path / "model", base=base, report_to=["tensorboard"], **OPTIONS)
    with pytest.raises(InputError, match="report_to has 'excel'; expected trackers among azure_ml, .*tensorboard"):
        pretrain(corpus, tmp_path / "model", base=base, report_to=["excel"], **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_tensorboards_files_lie_beside_the_folder(monkeypatch, tmp_path):
    from pretraining.trackers import tracker_callbacks

    class Board(TrainerCallback):
        logging_dir = None

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Board)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["tensorboard"])
    (made,) = tracker_callbacks(["tensorboard", "tensorboard"], tmp_path / "model.tensorboard")
    assert made.logging_dir == str(tmp_path / "model.tensorboard")


# ---------------------------------------------------------------------------------------------------------- the report


class Page(HTMLParser):
    """What a page shows: texts, tags, and the labels of its drawings."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags, self.labels, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "path", "circle", "rect"):
            self.open.append(tag)
        values = dict(attributes)
        if tag == "svg":
            self.labels.append(values["aria-label"])
        assert not {"src", "href", "onload", "onclick"} & values.keys()

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag in ("path", "circle", "rect"):
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_report_is_one_page_with_every_curve(probed):
    text = (probed / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert not re.search(r"https?:|url\(|@import", text)
    log = [line for line in log_of(probed) if NDCG not in line]
    for name in ("total", "encoder_mlm", "decoder_mlm", "bag_of_words", "gradient_norm/decoder_mlm", "learning_rate"):
        wanted = f"{name}: {log[0][name]:.4g} at step 1, {log[-1][name]:.4g} at step 6"
        assert wanted in page.labels
    assert any(label.startswith("nDCG@10 after") for label in page.labels)
    assert any(label.startswith("Shuffle gap of decoder_mlm") for label in page.labels)
    shown = " ".join(page.texts)
    for words in ("6 of 6 steps", "the best of 4 probes", "probe_updates", "max_steps", "documents", "transformers"):
        assert words in shown
    verify(probed, open_manifest(probed, "model"))


def test_the_working_folder_has_a_report_of_how_far_it_came(base, corpus, tmp_path):
    with pytest.raises(Killed):
        pretrain(corpus, tmp_path / "model", base=base, on_progress=kill_at(4), **PROBES)
    page = Page((tmp_path / "model.partial" / "report.html").read_text())
    assert "2 of 6 steps; the best of 2 probes" in " ".join(page.texts)
    assert "retrokit pretrain: model" in page.texts
    output = tmp_path / "page.html"
    done = CliRunner().invoke(build_app(), ["report", str(tmp_path / "model.partial"), "--output", str(output)])
    assert done.exit_code == 0, done.output
    assert "3 of 6 steps" in output.read_text()
    assert pretrain(corpus, tmp_path / "model", base=base, **PROBES).resumed_from == 2


def test_the_command_reports_a_finished_folder(probed, tmp_path):
    output, values = tmp_path / "page.html", tmp_path / "values.json"
    arguments = ["report", str(probed), "--output", str(output), "--json", str(values)]
    assert CliRunner().invoke(build_app(), arguments).exit_code == 0
    assert output.read_text() == (probed / "report.html").read_text()
    series = json.loads(values.read_text())["series"]
    assert series[NDCG]["steps"] == [0, 2, 4, 6]
    assert series["total"]["values"] == [line["total"] for line in log_of(probed) if "total" in line]


@pytest.mark.parametrize(
    ("folder", "output", "message"),
    [
        ("{tmp}", "{tmp}/page.html", "has no retrokit.json"),
        ("{probed}", "{tmp}/page.txt", "is no name of a page; give one that ends in .html"),
        ("{probed}", "{probed}/mine.html", "lies inside a folder that must stay as it is"),
        ("{probed}", "{tmp}/folder.html", "is a folder; give the name of a file"),
    ],
)
def test_the_command_refuses_in_one_line(folder, output, message, probed, tmp_path):
    (tmp_path / "folder.html").mkdir()
    paths = [one.format(tmp=tmp_path, probed=probed) for one in (folder, output)]
    done = CliRunner().invoke(build_app(), ["report", paths[0], "--output", paths[1]])
    assert done.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]
    with pytest.raises(InputError, match=message):
        report(Path(paths[0]), output=Path(paths[1]))


def test_texts_in_the_report_are_escaped():
    from pretraining.report import as_html

    evil = "<script>alert('x')</script>"
    card = {"made_by": "retrokit pretrain", "corpus": evil, "configuration": {"objective": {evil: 1}, "max_steps": 2}}
    lines = [{"step": 0, "probe/ndcg@10": 0.5, f"probe/{evil}": 1.0}, {"step": 1, "total": 2.0, evil: 3.0}]
    text = as_html(evil, card, lines)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 5


def test_curves_are_where_their_values_are():
    from pretraining.curves import binned, curve, ticks

    steps, values = list(range(1, 1001)), [1000.0 - step for step in range(1000)]
    bins = binned(steps, values)
    assert len(bins) == 240
    assert sum(one.mean for one in bins) / 240 == pytest.approx(500.5, rel=1e-2)
    assert (bins[0].greatest, bins[-1].least) == (1000, 1)
    drawn = curve("falling", [0, 50, 100], [3.0, 2.0, 1.0], points=True, kept=50)
    places = re.findall(r'class="point" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert [(float(x), float(y)) for x, y in places] == [(56, 10), (186, 77), (316, 144)]
    assert 'class="kept" cx="186.0" cy="77.0"' in drawn
    assert 'd="M56.0 10.0L186.0 77.0L316.0 144.0"' in drawn
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(0.013, 0.021) == pytest.approx([0.014, 0.016, 0.018, 0.02])
    assert ticks(0, 100_000, 3) == pytest.approx([0, 50_000, 100_000])
    assert "circle" in curve("one value", [0], [0.0]), "also where there is no range"
    assert "nan" not in curve("flat", [1, 2], [5.0, 5.0])
