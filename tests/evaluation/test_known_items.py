import json
import random
from typing import NamedTuple

import pytest

from evaluation.known_items import split_known_items, write_known_items
from evaluation.testsets import load_dataset
from indexes.errors import InputError
from retrieval.documents import Document


class Item(NamedTuple):
    document: Document
    query: str


ITEMS = [Item(Document(f"m.f{row}", f"text {row}"), f"question {row}?") for row in range(60)]


def split(items=ITEMS, **changes):
    return split_known_items(
        items, **{"documents": 30, "test_queries": 8, "development_queries": 4, "seed": 0} | changes
    )


def test_the_sample_depends_on_seed_and_ids_but_not_on_order():
    shuffled = random.Random(1).sample(ITEMS, len(ITEMS))
    assert split(shuffled) == split()
    assert split(seed=1).documents != split().documents


def test_one_more_item_changes_one_document_at_most():
    more = [*ITEMS, Item(Document("new", "text"), "new?")]
    assert len(set(split(more).documents) ^ set(split().documents)) in (0, 2)


def test_more_documents_keep_the_test_queries():
    assert split(documents=50).qrels["test"] == split().qrels["test"]


def test_every_query_is_in_one_split_and_asks_for_its_document():
    found = split()
    assert {name: len(qrels) for name, qrels in found.qrels.items()} == {"test": 8, "dev": 4, "train": 18}
    assert sorted(query for qrels in found.qrels.values() for query in qrels) == sorted(found.queries)
    for qrels in found.qrels.values():
        for query, grades in qrels.items():
            assert {query.removeprefix("q:"): 1} == grades
    assert [one.id for one in found.documents] == sorted(one.id for one in found.documents)
    assert "dev" not in split(development_queries=0).qrels


def test_a_query_that_two_documents_share_is_no_query():
    twins = [Item(Document("twin1", "a"), "Same  thing"), Item(Document("twin2", "b"), "same thing")]
    found = split([*ITEMS[:10], *twins], documents=12, test_queries=3, development_queries=0)
    assert {"twin1", "twin2"} <= {one.id for one in found.documents}
    assert len(found.queries) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": 61}, "60 known items found, 61 documents asked for"),
        ({"test_queries": 27}, "30 queries that only one document answers, but 31 asked for"),
        ({"test_queries": 0}, "asked for 30 documents, 0 test queries and 4 development queries; expected at least 1"),
        ({"items": [*ITEMS, ITEMS[0]]}, r"known item 'm\.f0' occurs twice"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        split(**changes)


def test_the_folder_is_a_test_collection_with_training_pairs(tmp_path):
    found = split()
    write_known_items(tmp_path / "made", found)
    for name, qrels in found.qrels.items():
        testset = load_dataset(tmp_path / "made", name)
        assert testset.qrels == qrels
        assert testset.notices == ()
    pairs = [json.loads(line) for line in (tmp_path / "made" / "train-pairs.jsonl").read_text().splitlines()]
    assert [pair["document"] for pair in pairs] == [query.removeprefix("q:") for query in found.qrels["train"]]
    assert {pair["query"] for pair in pairs} == {found.queries[query] for query in found.qrels["train"]}
    with pytest.raises(InputError, match="already exists"):
        write_known_items(tmp_path / "made", found)
