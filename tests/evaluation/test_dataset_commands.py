import json

import pytest

from evaluation.dataset_commands import dataset
from evaluation.testsets import load_dataset, write_collection
from indexes.errors import InputError
from retrieval.documents import Document


@pytest.fixture
def toy(tmp_path):
    documents = [Document("d1", "one", "t"), Document("d2", "two")]
    qrels = {"test": {"q1": {"d1": 2, "d2": 1}, "q2": {"d1": 0, "d2": 1}}}
    write_collection(tmp_path / "toy", documents, {"q1": "one?", "q2": "two?"}, qrels)
    return tmp_path / "toy"


def test_what_a_collection_holds(toy, tmp_path, capsys):
    dataset(str(toy), json=tmp_path / "out.json")
    facts = json.loads((tmp_path / "out.json").read_text())
    testset = load_dataset(toy)
    assert (facts["documents"], facts["queries"], facts["judgements"]) == (2, 2, 4)
    assert facts["grades"] == {"0": 1, "1": 2, "2": 1}
    assert facts["relevant_per_query"] == {"least": 1, "median": 1.5, "mean": 1.5, "most": 2}
    assert (facts["fingerprint"], facts["identical_to"]) == (testset.fingerprint, None)
    assert facts["profile"] == {
        "drop_self_matches": False,
        "main_measure": "nDCG@10",
        "title_separator": " ",
        "set_by_hand": [],
    }
    shown = capsys.readouterr()
    assert testset.fingerprint[:12] in shown.out
    assert "least: 1, median: 1.50, mean: 1.50, most: 2" in shown.out


def test_rules_are_overruled_by_flags(toy, tmp_path):
    dataset(str(toy), drop_self_matches=True, json=tmp_path / "out.json")
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["profile"]["set_by_hand"] == ["drop_self_matches"]
    assert "by hand" in facts["notices"][-1]


@pytest.mark.parametrize("form", ["beir", "trec"])
def test_a_split_is_converted(toy, tmp_path, form, capsys):
    dataset(str(toy), output=tmp_path / "new", format=form)
    again = load_dataset(tmp_path / "new") if form == "beir" else load_dataset(f"trec:{tmp_path / 'new'}")
    assert list(again.documents()) == list(load_dataset(toy).documents())
    assert [*again.queries] == (["qq1", "qq2"] if form == "beir" else ["q1", "q2"])
    assert f"wrote {tmp_path / 'new'}: retrokit evaluate" in capsys.readouterr().err
    with pytest.raises(InputError, match="already exists"):
        dataset(str(toy), output=tmp_path / "new", format=form)


def test_bad_options_are_refused_before_anything_is_read(toy, tmp_path):
    with pytest.raises(InputError, match="unknown format 'csv'; expected beir or trec"):
        dataset(str(toy), format="csv")
    with pytest.raises(InputError, match="is or holds the input"):
        dataset(str(toy), output=toy, overwrite=True)
