"""Distillation: losses against their formulas, students that come closer, resumption, refusals."""

import json
import math

import numpy as np
import pytest
import torch
from fixtures import make_model, random_texts
from kills import Killed, assert_same_weights, kill_at
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from indexes.errors import InputError
from pretraining import DistillConfig, distill, reshape
from pretraining.distillation import hold_out, parse_losses
from pretraining.students import Distillation, log_relations, relation_loss, similarity_loss, vector_loss
from retrieval.cli import build_app
from retrieval.encoder import Encoder

OPTIONS = dict(steps=6, batch_size=8, max_length=24, learning_rate=1e-3, save_steps=2, held_out=16, relation_heads=4)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    return make_model(folder, pooling="cls", prompts={"query": "q. ", "document": "d. "}, seed=4)


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student") / "student"
    reshape(teacher, folder, keep_layers=1)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    lines = [json.dumps({"_id": str(number), "text": text}) for number, text in enumerate(random_texts(120))]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_losses_of_vectors_are_their_formulas():
    torch.manual_seed(0)
    ours, theirs = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    unit = [each / each.norm(dim=1, keepdim=True) for each in (ours, theirs)]
    cosine = [float(unit[0][row] @ unit[1][row]) for row in range(5)]
    assert float(vector_loss(ours, theirs)) == pytest.approx(np.mean([2 - 2 * value for value in cosine]))
    assert float(vector_loss(3 * ours, ours)) == pytest.approx(0)
    other = torch.randn(5, 3).double()
    flat = other / other.norm(dim=1, keepdim=True)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    expected = np.mean([float(unit[0][i] @ unit[0][j] - flat[i] @ flat[j]) ** 2 for i, j in pairs])
    assert float(similarity_loss(ours, other)) == pytest.approx(expected)
    turned = torch.linalg.qr(torch.randn(7, 7).double())[0]
    assert float(similarity_loss(ours, ours @ turned)) == pytest.approx(0, abs=1e-20)
    ours.requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: similarity_loss(rows, other), ours)


def slow_relation_loss(student, teacher, lengths, heads):
    """The formula, one number after the other: KL(teacher ‖ student) for each text, head and token."""
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        texts = []
        for text, length in enumerate(lengths):
            rows = []
            for head in range(heads):
                parts = []
                for side in (theirs, ours):
                    size = side.shape[2] // heads
                    part = side.detach()[text, :length, head * size : (head + 1) * size].double()
                    parts.append([[float(one @ other) / math.sqrt(size) for other in part] for one in part])
                for scores, others in zip(*parts, strict=True):
                    p, q = (np.exp(np.array(row)) / np.exp(np.array(row)).sum() for row in (scores, others))
                    rows.append(float((p * np.log(p / q)).sum()))
            texts.append(np.mean(rows))
        total += np.mean(texts)
    return total


def test_relations_are_minilm_s():
    torch.manual_seed(0)
    lengths = [5, 2, 4]
    mask = torch.tensor([[1] * length + [0] * (5 - length) for length in lengths])
    ours = [torch.randn(3, 5, 8, requires_grad=True) for _ in range(3)]
    theirs = [torch.randn(3, 5, 12) for _ in range(3)]
    loss = relation_loss(ours, theirs, mask, 4)
    assert float(loss.detach()) == pytest.approx(slow_relation_loss(ours, theirs, lengths, 4), rel=1e-5)
    loss.backward()
    for rows in ours:
        assert rows.grad.isfinite().all()
        assert rows.grad[mask == 0].eq(0).all()
        assert rows.grad[mask == 1].ne(0).any()
    assert float(relation_loss(theirs, theirs, mask, 2)) == pytest.approx(0, abs=1e-6)
    assert log_relations(theirs[0], mask.bool(), 2).exp().sum(-1).allclose(torch.ones(3, 2, 5, 5)[..., 0])


@pytest.mark.parametrize(
    "losses",
    [*(pytest.param(one, marks=pytest.mark.slow) for one in ("vectors", "similarities")), "vectors=1,relations=0.5"],
)
def test_a_student_comes_closer(model_folder, corpus, tmp_path, losses):
    reshape(model_folder, tmp_path / "student", keep_layers=1)
    made = distill(
        corpus,
        tmp_path / "out",
        teacher=model_folder,
        student=tmp_path / "student",
        losses=losses,
        **{**OPTIONS, "steps": 40},
    )
    before, after = made.card["agreement"]["before"], made.card["agreement"]["after"]
    closer = "cosine" if "vectors" in losses else "correlation"
    assert after[closer] > before[closer] + 0.02
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    weights = parse_losses(losses)
    assert [line["step"] for line in lines] == list(range(1, 41))
    for line in lines[:3]:
        assert line["total"] == pytest.approx(sum(weight * line[name] for name, weight in weights.items()), rel=1e-5)
    assert np.mean([line["total"] for line in lines[-8:]]) < np.mean([line["total"] for line in lines[:8]])


def test_the_result_is_used_like_the_teacher(teacher, student, corpus, tmp_path):
    distill(corpus, tmp_path / "out", teacher=teacher, student=student, **OPTIONS)
    ours, theirs = (Encoder.load(str(folder)) for folder in (tmp_path / "out", teacher))
    for name in ("pooling", "max_length", "normalize", "query_prompt", "document_prompt"):
        assert getattr(ours.settings, name) == getattr(theirs.settings, name)
    plain = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(plain.encode_query(["river"]), ours.encode_queries(["river"]), atol=1e-5)
    unlike = SentenceTransformer(str(student), device="cpu").encode_query(["river"])
    assert np.abs(plain.encode_query(["river"]) - unlike).max() > 1e-4
    assert not (tmp_path / "out.partial").exists()
    assert distill(corpus, tmp_path / "out", teacher=teacher, student=student, **OPTIONS).already_complete
    with pytest.raises(InputError, match=r"made otherwise \(steps: 7 ≠ 6\)"):
        distill(corpus, tmp_path / "out", teacher=teacher, student=student, **{**OPTIONS, "steps": 7})


def test_a_killed_run_ends_like_one_left_alone(teacher, student, corpus, tmp_path):
    losses = {"vectors": 1.0, "similarities": 0.5, "relations": 0.1}
    options = {"teacher": teacher, "student": student, "losses": losses, **OPTIONS}
    alone = distill(corpus, tmp_path / "alone", **options)
    with pytest.raises(Killed):
        distill(corpus, tmp_path / "killed", on_progress=kill_at(3), **options)
    with pytest.raises(InputError, match=r"belongs to another run \(learning_rate: 0.002 ≠ 0.001\)"):
        distill(corpus, tmp_path / "killed", **{**options, "learning_rate": 2e-3})
    notes = []
    resumed = distill(corpus, tmp_path / "killed", on_note=notes.append, **options)
    assert "going on from step 2 of 6" in notes
    assert resumed.card["agreement"] == alone.card["agreement"]
    assert_same_weights(tmp_path / "alone", tmp_path / "killed")
    assert (tmp_path / "alone" / "log.jsonl").read_text() == (tmp_path / "killed" / "log.jsonl").read_text()


def test_a_checkpoint_holds_no_teacher(teacher, student):
    both = [SentenceTransformer(str(folder), device="cpu") for folder in (student, teacher)]
    model = Distillation(*both, DistillConfig(teacher, student, **OPTIONS))
    assert len(list(model.parameters())) == len(list(both[0].parameters()))
    assert not any(one.requires_grad for one in both[1].parameters())
    model.train()
    assert not both[1].training


def test_a_student_of_another_width_follows_by_similarities(teacher, corpus, tmp_path):
    reshape(teacher, tmp_path / "wide", grow_width=2)
    options = {"teacher": teacher, "student": tmp_path / "wide", **OPTIONS}
    with pytest.raises(InputError, match="student's vectors have 64 dimensions and the teacher's 32.*similarities"):
        distill(corpus, tmp_path / "out", **options)
    card = distill(corpus, tmp_path / "out", losses="similarities", **options).card
    assert set(card["agreement"]["after"]) == {"correlation"}


def test_a_plain_student_takes_over_the_teacher_s_pooling(teacher, corpus, tmp_path):
    plain = teacher.parent / "teacher-plain"
    distill(corpus, tmp_path / "out", teacher=teacher, student=plain, **OPTIONS)
    assert Encoder.load(str(tmp_path / "out")).settings.pooling == "cls"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": "vector"}, "loss 'vector' is unknown; expected some of vectors, similarities, relations"),
        ({"losses": "vectors=0"}, "weight of vectors is '0'; expected a number above 0"),
        ({"losses": {"vectors": float("nan")}}, "expected a number above 0"),
        ({"losses": {}}, "losses are empty"),
        ({"batch_size": 1}, "batch_size is 1; expected at least 2"),
        ({"batch_size": 500}, "has 120 distinct texts; a batch of 500"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"precision": "half"}, "expected float32 or bfloat16"),
        ({"losses": "relations", "relation_heads": 5}, "relation_heads is 5, which does not divide the student's 32"),
        ({"losses": "relations", "relation_layer": 2}, "relation_layer is 2; the teacher has layers 0 to 1"),
        ({"student": "./nowhere"}, "nowhere: no such model folder"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_left(teacher, student, corpus, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        distill(corpus, tmp_path / "out", **{"teacher": teacher, "student": student, **OPTIONS, **options})
    assert list(tmp_path.iterdir()) == []


def test_relations_need_the_same_tokens(teacher, corpus, tmp_path):
    reshape(teacher, tmp_path / "trimmed", trim_vocabulary=_few(tmp_path))
    options = {"teacher": teacher, "student": tmp_path / "trimmed", **OPTIONS}
    with pytest.raises(InputError, match="different tokenizers; relations compare token by token"):
        distill(corpus, tmp_path / "out", losses="relations", **options)
    assert distill(corpus, tmp_path / "out", **options).card["agreement"]["after"]["cosine"] > 0


def _few(folder):
    (folder / "few.jsonl").write_text('{"_id": "1", "text": "river stone"}\n')
    return folder / "few.jsonl"


def test_held_out_texts_are_not_learned_from():
    texts = [*random_texts(60), *random_texts(60)]
    learned, held_out = hold_out(texts, DistillConfig("a", "b", held_out=9, batch_size=4))
    assert len(held_out) == 9
    assert not {*learned} & {*held_out}
    assert {*learned} | {*held_out} == {*texts}


def test_the_command_says_how_close_they_are(teacher, student, corpus, tmp_path):
    options = "--steps 2 --batch-size 4 --max-length 16 --held-out 8 --loss similarities=2"
    arguments = ["distill", str(corpus), "--teacher", str(teacher), "--student", str(student), *options.split()]
    run = CliRunner().invoke
    done = run(build_app(), [*arguments, "--output", str(tmp_path / "out"), "--json", str(tmp_path / "r.json")])
    assert done.exit_code == 0, done.output
    card = json.loads((tmp_path / "r.json").read_text())
    assert f"correlation {card['agreement']['before']['correlation']:.4f} →" in done.output
    refused = run(build_app(), [*arguments, "--loss", "none", "--output", str(tmp_path / "other")])
    assert refused.exit_code == 2
    assert "loss 'none' is unknown" in refused.output
