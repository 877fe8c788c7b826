"""Losses of fine-tuning: each equals a slow float64 oracle, its gradient the oracle's finite differences."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from retrieval import losses
from retrieval.bi_encoder import BiEncoder, lists_of
from retrieval.candidate_lists import CandidateLists, text_key
from retrieval.cross_encoder import PairEncoder
from retrieval.example_rows import Drawn
from retrieval.finetune_options import FinetuneConfig
from retrieval.gradient_cache import cache, send_on
from retrieval.seeds import seeded

CPU = torch.device("cpu")
NAN = float("nan")


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def agree(found, oracle, *arrays, step=1e-6):
    """A loss of tensors equals an oracle of arrays, and its gradient by the first one the oracle's differences."""
    given = [torch.tensor(array, requires_grad=number == 0) for number, array in enumerate(arrays)]
    loss = found(*given)
    assert float(loss.detach()) == pytest.approx(oracle(*arrays), rel=1e-10, abs=1e-12)
    loss.backward()
    wanted = np.zeros_like(arrays[0])
    for place in np.ndindex(arrays[0].shape):
        up, down = arrays[0].copy(), arrays[0].copy()
        up[place] += step
        down[place] -= step
        wanted[place] = (oracle(up, *arrays[1:]) - oracle(down, *arrays[1:])) / (2 * step)
    np.testing.assert_allclose(given[0].grad.numpy(), wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("focal", [0.0, 0.5, 2.0])
def test_info_nce(rng, focal):
    positives, allowed = [2, 0, 5], rng.random((3, 6)) < 0.6
    allowed[range(3), positives] = True

    def oracle(scores):
        total = 0.0
        for row, positive in enumerate(positives):
            z = sum(np.exp(scores[row, col] / 0.3) for col in range(6) if allowed[row, col])
            p = np.exp(scores[row, positive] / 0.3) / z
            total += -((1 - p) ** focal) * np.log(p)
        return total / 3

    def found(scores):
        return losses.info_nce(scores, torch.tensor(positives), torch.from_numpy(allowed), temperature=0.3, focal=focal)

    assert (~allowed).any()
    agree(found, oracle, rng.normal(size=(3, 6)))


def test_a_query_that_is_right_for_sure_has_no_gradient_and_no_nan():
    scores = torch.tensor([[60.0, 0.0], [0.3, 0.1]], requires_grad=True)
    losses.info_nce(scores, torch.zeros(2, dtype=torch.long), temperature=0.05, focal=0.5).backward()
    assert torch.equal(scores.grad[0], torch.zeros(2))
    assert scores.grad[1].isfinite().all()
    assert scores.grad[1].abs().min() > 0


def test_it_is_the_loss_of_sentence_transformers(rng):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    vectors = [losses.cut(torch.tensor(rng.normal(size=(4, 8))), None, unit=True) for _ in range(3)]
    theirs = MultipleNegativesRankingLoss(None, scale=20).compute_loss_from_embeddings(vectors, None)
    scores = vectors[0] @ torch.cat(vectors[1:]).T
    assert losses.info_nce(scores, torch.arange(4), temperature=0.05) == pytest.approx(float(theirs), rel=1e-12)


TEACHER = np.array([[4.0, 1.0, NAN, 2.5], [NAN, 1.0, 2.0, 3.0], [0.5, NAN, NAN, NAN], [2.0, 2.5, -1.0, 0.0]])


def test_margin_mse(rng):
    def oracle(scores, teacher):
        found = []
        for row in range(4):
            for col in range(1, 4):
                if not np.isnan(teacher[row, 0] + teacher[row, col]):
                    student = (scores[row, 0] - scores[row, col]) / 0.2
                    found.append((student - (teacher[row, 0] - teacher[row, col]) / 2) ** 2)
        return np.mean(found)

    def found(scores, teacher):
        return losses.margin_mse(scores, teacher, temperature=0.2, teacher_temperature=2.0)

    agree(found, oracle, rng.normal(size=(4, 4)), TEACHER)


def test_listwise_kl(rng):
    def softmax(values):
        return np.exp(values) / np.exp(values).sum()

    def oracle(scores, teacher):
        found = []
        for row in range(4):
            known = [col for col in range(4) if not np.isnan(teacher[row, col])]
            if len(known) > 1:
                wanted, student = softmax(teacher[row, known] / 2), softmax(scores[row, known] / 0.2)
                found.append((wanted * np.log(wanted / student)).sum())
        return np.mean(found)

    def found(scores, teacher):
        return losses.listwise_kl(scores, teacher, temperature=0.2, teacher_temperature=2.0)

    agree(found, oracle, rng.normal(size=(4, 4)), TEACHER)
    nothing = torch.full((2, 3), NAN, dtype=torch.float64)
    given = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    loss = found(given, nothing) + losses.margin_mse(given, nothing, temperature=1.0)
    loss.backward()
    assert loss == 0
    assert torch.equal(given.grad, torch.zeros(2, 3))


def test_regression_projection_alignment_flops_and_binary(rng):
    agree(
        losses.score_regression,
        lambda one, other: sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one),
        rng.normal(size=5),
        rng.normal(size=5),
    )
    present = np.array([[True, True, False], [True, False, False], [True, True, True]])

    def projection(cosines):
        positives = [1 - row[0] for row in cosines]
        negatives = [abs(cosines[row, col]) for row in range(3) for col in (1, 2) if present[row, col]]
        return np.mean(positives) + 0.5 * np.mean(negatives)

    agree(
        lambda cosines: losses.orthogonal_projection(cosines, torch.from_numpy(present), weight=0.5),
        projection,
        rng.normal(size=(3, 3)),
    )
    alone = torch.tensor([[0.6, -0.2]], dtype=torch.float64)
    assert losses.orthogonal_projection(alone, torch.ones(1, 2, dtype=bool)) == pytest.approx(0.6)
    agree(
        lambda translation, source, start: losses.alignment(source, translation, start),
        lambda translation, source, start: np.mean(
            [((s - o) ** 2).sum() + ((t - o) ** 2).sum() for s, t, o in zip(source, translation, start, strict=True)]
        ),
        *(rng.normal(size=(3, 4)) for _ in range(3)),
    )
    agree(losses.flops, lambda w: sum(np.abs(w[:, term]).mean() ** 2 for term in range(4)), rng.random((3, 4)) + 0.1)
    relevant = np.array([True, False, False])
    agree(
        lambda logits: losses.binary(logits, torch.from_numpy(relevant)),
        lambda logits: np.mean([np.log1p(np.exp(-x if y else x)) for x, y in zip(logits, relevant, strict=True)]),
        rng.normal(size=3),
    )


def test_matryoshka(rng):
    dims = {6: 1.0, 2: 0.3}

    def loss(vectors):
        scores = vectors["queries"] @ vectors["documents"].T
        return losses.info_nce(scores, torch.arange(3), temperature=0.1)

    def oracle(queries, documents):
        total = 0.0
        for dim, weight in dims.items():
            parts = [part[:, :dim] for part in (queries, documents)]
            one, other = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts)
            scores = one @ other.T / 0.1
            total += weight * np.mean([-np.log(np.exp(row[i]) / np.exp(row).sum()) for i, row in enumerate(scores)])
        return total

    agree(
        lambda queries, documents: losses.matryoshka(loss, {"queries": queries, "documents": documents}, dims),
        oracle,
        *(rng.normal(size=(3, 6)) for _ in range(2)),
    )


def test_shares_are_distributed_by_beta_2_2():
    from scipy.stats import beta, kstest

    drawn = losses.beta_2_2((4000,), seeded(CPU, 1)).double().numpy()
    assert kstest(drawn, beta(2, 2).cdf).pvalue > 0.01


def test_the_ramp_is_quadratic_and_ends():
    assert [losses.quadratic_ramp(step, 4) for step in (0, 1, 3, 9)] == [1 / 16, 1 / 4, 1.0, 1.0]


ROWS = [
    Drawn("a", ("A", "X", "Y"), (5.0, 1.0, 6.0), ("A", "A2"), ""),
    Drawn("b", ("B", "A2", "Z"), (NAN, NAN, NAN), ("B",), ""),  # A2 answers a too
    Drawn("c", ("C", "X"), (2.0, 3.0), ("C", "D"), ""),
    Drawn("d", ("D", "V", "W", "U"), (1.0, 0.0, 0.5, NAN), ("D",), ""),  # D answers c too
    Drawn("a", ("A3",), (NAN,), ("A3",), ""),  # the first query again: A answers it, and A3 the first
]
KNOWN = {"a": {"A", "A2", "A3"}, "b": {"B"}, "c": {"C", "D"}, "d": {"D"}}


def made(model=BiEncoder, **options):
    """A model's losses without a model."""
    config = FinetuneConfig(encoder="none", **{"temperature": 0.5, **options})
    encoder = SimpleNamespace(max_seq_length=8, prompts={})
    return model(encoder, config, unit=True) if model is BiEncoder else model(encoder, config)


def vectors_of(rng, rows=ROWS):
    """Unit vectors, those of the same text being the same."""
    texts = [text for row in rows for text in row.texts]
    table = {text: rng.normal(size=4) for text in dict.fromkeys(["q " + row.query for row in rows] + texts)}
    queries, documents = ([table["q " + row.query] for row in rows], [table[text] for text in texts])
    return [np.array([one / np.linalg.norm(one) for one in part]) for part in (queries, documents)]


TEXTS = [text for row in ROWS for text in row.texts]
OWNERS = [number for number, row in enumerate(ROWS) for _ in row.texts]
SCORES = [score for row in ROWS for score in row.scores]
FIRST = [OWNERS.index(number) for number in range(len(ROWS))]


class Contrast:
    """The contrastive loss of `ROWS` by loops over texts."""

    def __init__(self, by="student", margin=None, extra=(), mix=0, focal=0.0):
        self.by, self.margin, self.extra, self.mix, self.focal = by, margin, extra, mix, focal
        generator = seeded(CPU, 3)
        if mix:
            by_text = [text_key(row.query) ^ text_key(row.texts[0]) for row in ROWS]
            order = [sorted(by_text).index(key) for key in by_text]
            self.noise = torch.rand(5, mix, 4, generator=generator).numpy()[order]
            self.shares = losses.beta_2_2((5, mix), generator).double().numpy()[order]

    def __call__(self, queries, documents):
        total = 0.0
        for row in range(len(ROWS)):
            positive = queries[row] @ documents[FIRST[row]]
            negatives = self.negatives(row, queries[row] @ documents.T, positive)
            columns = [positive, *(queries[row] @ documents[col] for col in negatives)]
            columns += self.others(row, queries, documents[FIRST], positive)
            columns += self.mixed(row, [col for col in negatives if OWNERS[col] == row], queries[row], documents)
            p = np.exp(positive / 0.5) / np.exp(np.array(columns) / 0.5).sum()
            total += -((1 - p) ** self.focal) * np.log(p)
        return total / len(ROWS)

    def negatives(self, row, scores, positive):
        found = [col for col in range(len(TEXTS)) if TEXTS[col] not in KNOWN[ROWS[row].query]]
        if self.by == "teacher":
            own = [col for col in found if OWNERS[col] == row]
            return [col for col in found if col not in own or not SCORES[col] > SCORES[FIRST[row]] + self.margin]
        return [col for col in found if self.margin is None or scores[col] <= positive + self.margin]

    def others(self, row, queries, positives, positive):
        found = []
        for other, another in enumerate(ROWS):
            alike = {another.texts[0]} & KNOWN[ROWS[row].query] or {ROWS[row].texts[0]} & KNOWN[another.query]
            for kind, part in (("qq", queries), ("dd", positives)):
                score = part[row] @ part[other]
                good = self.margin is not None and self.by == "student" and score > positive + self.margin
                found += [score] * (kind in self.extra and not alike and not good)
        return found

    def mixed(self, row, usable, query, documents):
        found = []
        for number in range(self.mix if len(usable) > 1 else 0):
            best = sorted(usable, key=lambda col, number=number: -self.noise[row, number, col - FIRST[row]])
            share = self.shares[row, number]
            vector = share * documents[best[0]] + (1 - share) * documents[best[1]]
            found.append(query @ vector / np.linalg.norm(vector))
        return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"margin": 0.05, "extra": ("qq", "dd"), "focal": 0.5},
        {"by": "teacher", "margin": 0.5, "extra": ("dd",)},
        {"margin": 0.3, "extra": ("qq", "dd"), "mix": 3, "focal": 0.5},
    ],
    ids=["plain", "extra", "teacher", "mixed"],
)
def test_contrast_of_a_whole_batch(rng, options):
    """Known positives, false negatives, other queries and documents, and mixed negatives."""
    oracle = Contrast(**options)
    names = {"margin": "false_negative_margin", "by": "false_negatives_by", "extra": "extra_negatives"}
    model = made(**{names.get(name, name): value for name, value in options.items()})
    queries, documents = vectors_of(rng)
    given = [torch.tensor(part, requires_grad=True) for part in (queries, documents)]
    outputs = dict(zip(("queries", "documents"), given, strict=True))
    loss = model.losses([outputs], [lists_of(ROWS)], seeded(CPU, 3))["total"]
    assert loss.item() == pytest.approx(oracle(queries, documents), rel=1e-9)
    assert not options or loss.item() != pytest.approx(Contrast()(queries, documents), rel=1e-3)
    loss.backward()
    for number, place in [(0, (0, 1)), (0, (2, 0)), (0, (4, 3)), (1, (0, 1)), (1, (4, 2)), (1, (9, 0))]:
        values = []
        for step in (1e-6, -1e-6):
            moved = [queries.copy(), documents.copy()]
            moved[number][place] += step
            moved[number] /= np.linalg.norm(moved[number], axis=1, keepdims=True)
            values.append(oracle(*moved))
        wanted = (values[0] - values[1]) / 2e-6
        assert given[number].grad[place].item() == pytest.approx(wanted, rel=1e-4, abs=1e-8)


def test_a_cross_encoders_losses_are_over_own_candidates(rng):
    flat = torch.tensor(rng.normal(size=sum(len(row.texts) for row in ROWS)))
    lists = [scores.numpy() for scores in flat.split([len(row.texts) for row in ROWS])]
    found = made(PairEncoder, kind="cross-encoder", loss="infonce,binary", temperature=0.5).losses(
        [{"scores": flat}], [lists_of(ROWS)], None
    )
    nce = np.mean([-np.log(np.exp(one[0] / 0.5) / np.exp(one / 0.5).sum()) for one in lists])
    assert found["infonce"].item() == pytest.approx(nce)
    labels = np.concatenate([[1.0] + [0.0] * (len(one) - 1) for one in lists])
    cross = -np.mean(labels * -np.log1p(np.exp(-flat.numpy())) + (1 - labels) * -np.log1p(np.exp(flat.numpy())))
    assert found["binary"].item() == pytest.approx(cross)
    assert found["total"].item() == pytest.approx(nce + cross)


def test_batches_join_as_one(rng):
    """A batch in parts is the batch as a whole: lists shift, and losses are the same."""
    model = made(mix=2, extra_negatives=("qq", "dd"), loss="infonce,kl", teacher_temperature=2.0)
    queries, documents = (torch.tensor(part) for part in vectors_of(rng))
    split = [
        {"queries": queries[:2], "documents": documents[:6]},
        {"queries": queries[2:], "documents": documents[6:]},
    ]
    whole = model.losses([{"queries": queries, "documents": documents}], [lists_of(ROWS)], seeded(CPU, 3))
    parts = model.losses(split, [lists_of(ROWS[:2]), lists_of(ROWS[2:])], seeded(CPU, 3))
    for name, value in whole.items():
        assert parts[name].item() == pytest.approx(value.item(), rel=1e-12), name
    lists = CandidateLists.of_batch(lists_of(ROWS))
    assert lists.positives.tolist() == [0, 3, 6, 8, 12]
    assert lists.present.sum(1).tolist() == [3, 3, 2, 4, 1]


def test_cached_gradients_are_those_of_the_whole_batch():
    """With dropout, in parts of different sizes: the same loss, and the same gradient of every weight."""
    torch.manual_seed(0)
    tower = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Dropout(0.5), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    tower = tower.double()
    given = [torch.randn(rows, 5, dtype=torch.float64) for rows in (3, 2, 4)]

    def passed(number):
        torch.manual_seed(100 + number)
        return {"queries": tower(given[number]), "documents": tower(given[number] + 1)}

    def loss(parts):
        queries, documents = (torch.cat([part[name] for part in parts]) for name in ("queries", "documents"))
        return {"total": losses.info_nce(queries @ documents.T, torch.arange(9), temperature=0.3, focal=0.5)}

    whole = loss([passed(number) for number in range(3)])["total"]
    wanted = torch.autograd.grad(whole, list(tower.parameters()))
    with torch.no_grad():
        outputs = [passed(number) for number in range(3)]
    values, gradients = cache(outputs, loss)
    assert not torch.equal(outputs[0]["queries"], tower(given[0]))  # dropout is at work
    for number in range(3):
        share = send_on(passed(number), gradients[number], values["total"])
        assert share.item() == pytest.approx(whole.item(), rel=1e-12)
        share.backward()
    for value, gradient in zip(tower.parameters(), wanted, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-12, atol=1e-14)
