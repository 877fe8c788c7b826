"""Runs over several cleaned corpora: what goes, what is recorded, killed and gone on with bit for bit."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from kills import Killed, assert_same_weights, kill_at
from typer.testing import CliRunner

from indexes.arrays import map_array
from indexes.errors import InputError
from pretraining import cleaning, pretrain
from pretraining.cleaning import Cleaner, CleaningOptions
from pretraining.configuration import PretrainConfig
from pretraining.contamination import TestQueries
from pretraining.loop import PretrainingTrainer
from pretraining.mixture import MixedOrder, Mixture
from pretraining.token_writer import Extras, write_tokens
from pretraining.tokens import Accompanied, Collator, SpanPairs, TokenWindows
from retrieval.cli import build_app
from retrieval.documents import Document, corpus_fingerprint, read_documents
from retrieval.trainer import resumable_arguments

OPTIONS = dict(max_steps=7, batch_size=4, max_length=16, save_steps=2, learning_rate=1e-3, warmup_steps=1)
WORDS = ["river", "stone", "green", "walk", "night", "paper", "music", "water", "house", "train"]
QUERY = "green night water stone walk house river paper"


def write_corpus(path: Path, texts: list[str]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"_id": str(n), "text": text}) + "\n" for n, text in enumerate(texts)))
    return str(path)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    chance = random.Random(0)
    return [" ".join(chance.choices(WORDS, k=chance.randint(17, 40))) for _ in range(24)]


@pytest.fixture(scope="module")
def corpora(texts, tmp_path_factory) -> tuple[str, str]:
    """Two corpora: one with a repeated and a contaminated document, one with a near duplicate of the first one's."""
    folder = tmp_path_factory.mktemp("corpora")
    one = [*texts[:14], texts[3].upper(), f"{texts[14]} {QUERY.title()}! {texts[15]}"]
    other = [*texts[16:], f"{texts[12]} house"]
    return write_corpus(folder / "one.jsonl", one), write_corpus(folder / "other.jsonl", other)


@pytest.fixture(scope="module")
def queries(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("collection")
    write_corpus(folder / "queries.jsonl", [QUERY, "paper"])
    return folder


def cleaned(*options, queries=None):
    return Cleaner(CleaningOptions(*options), TestQueries(queries) if queries else None)


def documents(*texts):
    return [Document(str(number), text) for number, text in enumerate(texts)]


def ids(stream):
    return [document.id for document in stream]


def test_the_first_document_stays_across_corpora_and_everything_is_counted(texts):
    cleaner = cleaned("near", queries=[QUERY])
    assert ids(cleaner.clean("a", documents(texts[0], texts[0].upper(), QUERY, texts[1], "", ""))) == list("0345")
    assert ids(cleaner.clean("b", documents(texts[1], f"{texts[0]} house", texts[2], QUERY))) == ["2"]
    assert cleaner.removed == [
        {"read": 6, "with_test_queries": 1, "duplicates": 1, "near_duplicates": 0},
        {"read": 4, "with_test_queries": 1, "duplicates": 1, "near_duplicates": 1},
    ]


def test_each_option_does_its_part_alone(texts):
    stream = documents(texts[0], texts[0], f"{texts[0]} house", QUERY)
    assert ids(cleaned().clean("a", stream)) == list("0123")
    assert ids(cleaned("exact").clean("a", stream)) == list("023")
    assert ids(cleaned("near").clean("a", stream)) == list("03")
    assert ids(cleaned("near", 1.0).clean("a", stream)) == list("023")
    assert ids(cleaned(queries=[QUERY]).clean("a", stream)) == list("012")


def test_a_document_that_goes_for_its_query_shields_no_other(texts):
    longer = f"{texts[0]} {texts[1]}"
    stream = documents(f"{longer} {QUERY}", longer)
    assert ids(cleaned("near").clean("a", stream)) == ["0"]
    assert ids(cleaned("near", queries=[QUERY]).clean("a", stream)) == ["1"]


def test_documents_are_read_as_they_are_needed(texts):
    read = []
    stream = (read.append(number) or Document(str(number), f"{number} {texts[0]}") for number in range(10_000))
    kept = cleaned("exact").clean("a", stream)
    for _ in range(300):
        next(kept)
    assert len(read) <= 2 * 256


def test_a_corpus_of_which_nothing_is_left_is_refused(texts, base, tmp_path):
    cleaner = cleaned("exact")
    assert len(list(cleaner.clean("a", documents(*texts)))) == len(texts)
    with pytest.raises(InputError, match="b: nothing is left of it, 2 of 2 documents left out: 2 duplicates; leave it"):
        list(cleaner.clean("b", documents(*texts[:2])))
    one, other = write_corpus(tmp_path / "a.jsonl", texts), write_corpus(tmp_path / "b.jsonl", texts[:2])
    with pytest.raises(InputError, match=r"b\.jsonl: nothing is left of it"):
        pretrain({one: 1, other: 1}, tmp_path / "model", base=base, deduplicate="exact", **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_windows_know_their_corpus(tokenizer, texts, tmp_path):
    folder = tmp_path / "tokens"
    made = write_tokens(documents(*texts[:3], ""), tokenizer, folder, max_length=16, also=[documents(*texts[3:9])])
    rows = TokenWindows(folder)
    assert map_array(folder / "sources.npy").dtype == np.uint16
    assert len(rows.sources) == len(rows)
    texts_of = {0: " ".join(texts[:3]), 1: " ".join(texts[3:9])}
    for source, text in texts_of.items():
        chosen = [rows[number]["ids"].tolist() for number in np.flatnonzero(rows.sources == source).tolist()]
        assert tokenizer.decode(np.concatenate(chosen).tolist()) == text
        assert made["sources"][source]["windows"] == len(chosen)
        assert made["sources"][source]["tokens"] == len(np.concatenate(chosen).tolist())
    assert [one["documents"] for one in made["sources"]] == [4, 6]
    assert made["documents"] == 10
    assert made["sources"][0]["empty"] == made["empty"] == 1
    assert SpanPairs(folder, 0, (1.0, 1.0)).sources.tolist() == [0] * 3 + [1] * 6


def test_a_corpus_without_text_beside_others_is_named(tokenizer, texts, tmp_path):
    with pytest.raises(InputError, match="none of corpus 2's 1 documents has a token"):
        write_tokens(documents(*texts), tokenizer, tmp_path / "tokens", max_length=16, also=[documents(" ")])
    write_tokens(documents(*texts), tokenizer, tmp_path / "tokens", max_length=16, also=[documents("river")])
    with pytest.raises(InputError, match="no document of corpus 2 has 16 tokens"):
        SpanPairs(tmp_path / "tokens", 0, (1.0, 2.0))


@pytest.mark.slow  # 8 seconds each
@pytest.mark.parametrize("objective", ["retromae", "cocondenser"])
def test_a_killed_run_over_a_mixture_goes_on_with_the_same_bits(objective, corpora, queries, base, tmp_path):
    one, other = corpora
    options = OPTIONS | {"objective": objective, "deduplicate": "near", "remove_queries": [queries], "base": base}
    data, notes = {one: 1.0, other: 2.5}, []
    result = pretrain(data, tmp_path / "whole", **options)
    with pytest.raises(Killed):
        pretrain(data, tmp_path / "model", on_progress=kill_at(5), **options)
    again = pretrain(data, tmp_path / "model", on_note=notes.append, **options)
    assert again.resumed_from == 4
    assert_same_weights(tmp_path / "whole", tmp_path / "model")
    assert again.card["sources"] == result.card["sources"]
    assert f"{one}: 2 of 16 documents left out: 1 that give test queries away, 1 duplicates" in notes
    assert f"{other}: 1 of 9 documents left out: 1 near duplicates" in notes
    assert pretrain(data, tmp_path / "model", **options).already_complete
    pretrain(data | {other: 1.0}, tmp_path / "lighter", **options)
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "whole", tmp_path / "lighter")


def test_the_card_says_what_was_learned_from(corpora, queries, base, tmp_path):
    one, other = corpora
    options = OPTIONS | {"max_steps": 1, "deduplicate": "near", "remove_queries": queries}
    card = pretrain({one: 1, other: 3}, tmp_path / "model", base=base, **options).card
    assert card["corpus"] == {one: 1.0, other: 3.0}
    configuration = card["configuration"]
    assert configuration["weights"] == [1.0, 3.0]
    assert (configuration["deduplicate"], configuration["near_duplicates_at"]) == ("near", 0.8)
    assert configuration["query_words"] == 8
    assert configuration["test_queries"] == TestQueries(["paper", QUERY]).fingerprint()
    first, second = card["sources"]
    assert first["left_out"] == {"read": 16, "with_test_queries": 1, "duplicates": 1, "near_duplicates": 0}
    assert second["left_out"] == {"read": 9, "with_test_queries": 0, "duplicates": 0, "near_duplicates": 1}
    assert (first["documents"], second["documents"]) == (14, 8)
    weighed = 3 * second["windows"]
    assert second["share"] == pytest.approx(weighed / (weighed + first["windows"]), abs=1e-6)


def test_other_data_over_the_same_working_folder_are_refused_by_name(corpora, queries, base, tmp_path):
    one, other = corpora
    options = OPTIONS | {"remove_queries": queries}
    with pytest.raises(Killed):
        pretrain({one: 1, other: 2}, tmp_path / "model", base=base, on_progress=kill_at(3), **options)
    (tmp_path / "more.txt").write_text("water music\n")
    for data, changes, message in (
        ({one: 1, other: 3}, {}, r"weights: \[1\.0, 3\.0\] ≠ \[1\.0, 2\.0\]\)"),
        ({one: 1}, {}, r"\(corpus: \w+ ≠ \w+, weights: None ≠"),
        ({one: 1, other: 2}, {"deduplicate": "exact"}, r"\(deduplicate: exact ≠ none\)"),
        ({one: 1, other: 2}, {"deduplicate": "near", "near_duplicates_at": 0.7}, "near_duplicates_at: 0.7 ≠ None"),
        ({one: 1, other: 2}, {"query_words": 6}, r"\(query_words: 6 ≠ 8\)"),
        ({one: 1, other: 2}, {"remove_queries": tmp_path / "more.txt"}, r"\(test_queries: \w+ ≠ \w+\)"),
        ({one: 1, other: 2}, {"remove_queries": ()}, r"test_queries: None ≠ \w+, query_words: None ≠ 8"),
    ):
        with pytest.raises(InputError, match=f"belongs to another run .*{message}"):
            pretrain(data, tmp_path / "model", base=base, **(options | changes))


def test_no_input_is_overwritten(corpora, queries, base):
    one, other = corpora
    for output in (Path(other).parent, queries):
        with pytest.raises(InputError, match="is or holds the input"):
            pretrain({one: 1, other: 1}, output, base=base, remove_queries=queries, overwrite=True, **OPTIONS)
    assert Path(other).exists()
    assert (queries / "queries.jsonl").exists()


def test_one_corpus_in_a_mapping_is_that_corpus(corpora, base, tmp_path):
    options = OPTIONS | {"max_steps": 2, "base": base}
    pretrain(corpora[0], tmp_path / "model", **options)
    assert pretrain({corpora[0]: 5.0}, tmp_path / "model", **options).already_complete


def test_corpora_with_fields_are_mixed_and_their_fields_searched_for_queries(texts, queries, base, tmp_path):
    paths = []
    for name, rows in (("a", texts[:8]), ("b", texts[8:])):
        fields = [QUERY if row == 2 else WORDS[row % 10] for row in range(len(rows))]
        lines = (
            {"_id": str(n), "text": text, "why": why} for n, (text, why) in enumerate(zip(rows, fields, strict=True))
        )
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = OPTIONS | {"max_steps": 2, "objective": {"encoder_mlm": 1.0, "field_decoder/why": {"field": "why"}}}
    mixed = dict(zip(map(str, paths), (1.0, 2.0), strict=True))
    card = pretrain(mixed, tmp_path / "model", base=base, remove_queries=queries, **options).card
    assert [one["left_out"]["with_test_queries"] for one in card["sources"]] == [2, 3]  # "paper" is a query too
    paths[1].write_text(paths[1].read_text().replace('"why": "stone"', '"why": "river"'))
    with pytest.raises(InputError, match=r"was made otherwise \(fields: \w+ ≠ \w+\)"):
        pretrain(mixed, tmp_path / "model", base=base, remove_queries=queries, **options)


def test_the_loop_reads_mixtures_in_their_order(make_model, tokenizer, texts, tmp_path):
    folder = tmp_path / "tokens"
    extras, also = Extras(texts=True), [documents(*texts[6:])]
    write_tokens(documents(*texts[:6]), tokenizer, folder, max_length=16, also=also, extras=extras)
    args = resumable_arguments(
        tmp_path / "run", max_steps=5, batch_size=4, learning_rate=1e-3, warmup_steps=0, save_steps=9, seed=3
    )
    weights = (1.0, 0.5)
    accompanied = Accompanied(folder, 3, tokenizer, characters=5, weights=weights)
    for rows in (TokenWindows(folder, weights), SpanPairs(folder, 3, weights), accompanied):
        trainer = PretrainingTrainer(make_model(), args, rows, Collator(tokenizer), tmp_path / "log.jsonl")
        anew = not isinstance(rows, TokenWindows)
        expected = list(MixedOrder(rows.sources, weights, 20, 3, anew=anew))
        batches = list(trainer.get_train_dataloader())
        assert len(batches) == 5
        for number, batch in enumerate(batches):
            made = Collator(tokenizer)([rows[row] for row in expected[4 * number : 4 * number + 4]])
            assert batch["ids"].cpu().equal(made["ids"])
            for name, other in made.get("others", {}).items():
                assert batch["others"][name]["ids"].cpu().equal(other["ids"])


def test_a_corpus_that_changes_while_it_is_read_is_refused(texts, tokenizer, tmp_path):
    path = write_corpus(tmp_path / "a.jsonl", texts)
    mixture, digest = Mixture.of(path), corpus_fingerprint(read_documents(path))
    write_corpus(tmp_path / "a.jsonl", texts[1:])
    with pytest.raises(InputError, match=r"a\.jsonl changed while it was read"):
        cleaning.write_cleaned(
            mixture, [digest], cleaned(), tokenizer, tmp_path / "tokens", max_length=16, note=lambda _: None
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_long_reading_is_reported(texts, monkeypatch, tokenizer, tmp_path):
    monkeypatch.setattr(cleaning, "_SECONDS_BETWEEN_NOTES", -1.0)
    path, notes = write_corpus(tmp_path / "a.jsonl", texts), []
    mixture = Mixture.of(path)
    cleaning.write_cleaned(
        mixture, mixture.digests(), cleaned(), tokenizer, tmp_path / "tokens", max_length=16, note=notes.append
    )
    assert notes[-1] == f"{path}: 24 documents read"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deduplicate": "fuzzy"}, "deduplicate is 'fuzzy'; expected none, exact, near"),
        ({"near_duplicates_at": 0.2}, "near_duplicates_at is 0.2; expected a Jaccard from 0.5 to 1"),
        ({"query_words": 0}, "query_words is 0; expected at least 1"),
    ],
)
def test_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        PretrainConfig(base="x", **options)


def test_the_command_mixes_and_cleans(corpora, queries, base, tmp_path):
    one, other = corpora
    given = [one, "--base", str(base), "--output", str(tmp_path / "model"), "--max-steps", "1", "--batch-size", "4"]
    given += ["--max-length", "16", "--also", f"{other}=2", "--deduplicate", "near", "--near-duplicates-at", "0.9"]
    given += ["--remove-queries", str(queries), "--query-words", "7"]
    done = CliRunner().invoke(build_app(), ["pretrain", *given])
    assert done.exit_code == 0, done.output
    assert f"{one}: 2 of 16 documents left out: 1 that give test queries away, 1 duplicates" in done.output
    assert f"{other}, weight 2: " in done.output
    configuration = json.loads((tmp_path / "model" / "retrokit.json").read_text())["configuration"]
    assert configuration["weights"] == [1.0, 2.0]
    assert (configuration["near_duplicates_at"], configuration["query_words"]) == (0.9, 7)
    for more, message in (
        (["--also", f"{one}=2"], "is given twice"),
        (["--also", f"{other}=zero"], "has no weight"),
        (["--remove-queries", str(tmp_path / "none")], "no such file"),
    ):
        refused = CliRunner().invoke(build_app(), ["pretrain", *given, *more])
        assert refused.exit_code == 2
        assert message in refused.output
