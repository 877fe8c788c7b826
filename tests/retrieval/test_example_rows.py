"""Examples as rows of a run: what is drawn, which batches there are, what is held out, and measures on it."""

import numpy as np
import pytest
import torch
from labelled import make_examples

from indexes.errors import InputError
from retrieval.example_rows import BatchOrder, ExampleRows, dataset_shares
from retrieval.examples import Candidate, Example
from retrieval.held_out import draw_texts, hold_out, make_ranking, ndcg_at_10, spearman
from retrieval.selection import Selection


def test_batches_are_of_one_data_set_and_hold_no_query_or_positive_twice():
    examples = [*make_examples(40, dataset="a"), *make_examples(24, dataset="b", seed=1)]
    shares = dataset_shares({"a": 40, "b": 24}, {"b": 2.0}, 1.0)
    assert shares == pytest.approx({"a": 40 / 88, "b": 48 / 88})
    assert dataset_shares({"a": 100, "b": 4}, {}, 0.5) == pytest.approx({"a": 10 / 12, "b": 2 / 12})
    order = list(BatchOrder(examples, 4, 400, shares, seed=3))
    assert order == list(BatchOrder(examples, 4, 400, shares, seed=3))
    assert order != list(BatchOrder(examples, 4, 400, shares, seed=4))
    names = []
    for start in range(0, len(order), 4):
        batch = [examples[address % 64] for address in order[start : start + 4]]
        assert len({one.query for one in batch}) == len({one.positives[0].text for one in batch}) == 4
        assert len({one.dataset for one in batch}) == 1
        names.append(batch[0].dataset)
    assert names.count("a") / 400 == pytest.approx(40 / 88, abs=0.08)
    visits = [address for address in order if address % 64 < 40]
    assert len(set(visits)) == len(visits)  # an example comes again only under the address of its next visit
    counts = np.bincount([address % 64 for address in visits], minlength=40)
    assert counts.max() - counts.min() <= 2


def test_batches_that_cannot_be_distinct_are_filled_all_the_same():
    same = [Example(f"q{row}", (Candidate("the one answer"),)) for row in range(6)]
    order = list(BatchOrder(same, 4, 3, {"": 1.0}, seed=0))
    assert len(order) == 12
    with pytest.raises(InputError, match="6 queries to learn from; a batch needs 8: lower --batch-size"):
        BatchOrder(same, 8, 3, {"": 1.0}, seed=0)


def test_each_visit_draws_anew_and_the_same_again():
    negatives = tuple(Candidate(str(number), None, float(number)) for number in range(9))
    rows = [ExampleRows([Example("q", (Candidate("a"), Candidate("b")), negatives)], 3, seed=0) for _ in range(2)]
    drawn = [rows[0][visit] for visit in range(30)]
    assert [one.texts for one in drawn] == [rows[1][visit].texts for visit in range(30)]
    assert {one.texts[0] for one in drawn} == {"a", "b"}
    assert all(len(set(one.texts)) == 4 and one.known == ("a", "b") for one in drawn)
    assert {text for one in drawn for text in one.texts[1:]} == set("012345678")
    assert all(one.scores[place] == float(one.texts[place]) for one in drawn for place in (1, 2, 3))


def test_held_out_queries_are_not_learned_from():
    examples = make_examples() + make_examples(24)  # some queries twice
    learned, held = hold_out(examples, 7, seed=1)
    assert len({one.query for one in held}) == 7
    assert not {one.query for one in held} & {one.query for one in learned}
    assert len(learned) + len(held) == len(examples)
    assert {one.query for one in hold_out(examples, 7, seed=2)[1]} != {one.query for one in held}
    assert len({one.query for one in hold_out(examples, 500, seed=1)[1]}) == 11


def test_measures():
    assert ndcg_at_10(torch.tensor([0.1, 0.9, 0.5]), [1]) == 1.0
    assert ndcg_at_10(torch.tensor([0.5, 0.5, 0.5]), [0]) == pytest.approx(1 / 2)  # ties count against it
    assert ndcg_at_10(torch.arange(20.0), [0]) == 0.0
    assert ndcg_at_10(torch.tensor([3.0, 2.0, 1.0]), [0, 2]) == pytest.approx(1.5 / (1 + 1 / np.log2(3)))
    assert spearman(torch.tensor([1.0, 2.0, 4.0]), [0.0, 0.5, 0.6]) == pytest.approx(1.0)
    assert spearman(torch.ones(3), [0.0, 0.5, 0.6]) == 0.0
    others = draw_texts((f"text {number}" for number in range(50)), 9, seed=0)
    assert len(others) == 9 == len(set(others))
    assert others == draw_texts([f"text {number}" for number in reversed(range(50))], 9, seed=0)
    ranking = make_ranking(make_examples(4), others, lambda _: {"query": "q: ", "document": ""})
    assert ranking.queries[0].startswith("q: ")
    assert set(others) < set(ranking.texts)
    assert len(ranking.texts) == len(set(ranking.texts))
    assert all(set(wanted) <= set(rows) for wanted, rows in zip(ranking.relevant, ranking.candidates, strict=True))


def test_what_answers_a_query_is_known_though_another_example_says_it():
    one, other, third = (Candidate(text) for text in ("first answer", "second answer", "wrong"))
    rows = ExampleRows([Example("q", (one,), (other, third)), Example("q", (other,)), Example("r", (other,))], 5, 0)
    assert rows[0].known == ("first answer", "second answer")
    assert set(rows[0].texts) == {"first answer", "wrong"}
    assert rows[2].known == ("second answer",)


def test_an_epoch_is_one_though_many_queries_share_few_answers():
    examples = [Example(f"q{row}", (Candidate(f"answer {row % 4}"),)) for row in range(1024)]
    order = list(BatchOrder(examples, 16, 64 + 40, {"": 1.0}, 0))
    seen = [address for address in order if address < 1024]
    assert len(seen) == len(set(seen)) == 1024  # all of the first visit, each once
    assert max(order) < 3 * 1024


def test_a_held_pair_is_not_learned_the_other_way_round():
    pairs = [(f"one {row}", f"other {row}") for row in range(10)]
    examples = [Example(a, (Candidate(b),)) for one in pairs for a, b in (one, one[::-1])]
    learned, held = hold_out(examples, 4, 0)
    kept = {(one.query, one.positives[0].text) for one in held}
    assert not kept & {(one.positives[0].text, one.query) for one in learned}


def test_an_answer_does_not_stand_in_its_own_way_under_another_prompt():
    held = [Example("a", (Candidate("A"),), (), "one"), Example("b", (Candidate("B"),), (), "two")]
    ranking = make_ranking(held, ["B", "C"], lambda name: {"query": "", "document": f"{name}: "})
    assert ranking.texts == ["one: A", "two: B", "one: C"]


def test_a_step_that_was_measured_keeps_its_value_and_its_weights(tmp_path):
    model, values = torch.nn.Linear(1, 1), iter([0.5, 0.9, 0.7])
    selection = Selection(model, lambda: next(values), "x", tmp_path, 1, lambda line: None)
    selection.check(0)
    selection.check(1)
    best = float(model.weight.detach())
    with torch.no_grad():
        model.weight += 1  # as a run that goes on elsewhere may have other bits
    again = Selection(model, lambda: next(values), "x", tmp_path, 1, lambda line: None)
    again.check(1)
    again.load_best()
    assert (again.best, again.checks[1], float(model.weight.detach())) == (1, 0.9, best)
