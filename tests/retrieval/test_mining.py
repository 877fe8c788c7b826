"""Mining: negatives and counts of a plain computation over all documents, resume, cache, teachers, refusals."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from fixtures import make_cross_encoder, make_model, random_texts
from hypothesis import given
from hypothesis import strategies as st
from kills import Killed, kill_at
from typer.testing import CliRunner

from indexes.errors import InputError
from retrieval import mined_blocks, mining
from retrieval.building import build_index
from retrieval.cli import build_app
from retrieval.documents import Document
from retrieval.encoder import Encoder
from retrieval.examples import Candidate, Example, read_examples, write_examples
from retrieval.mining import card_file, mine
from retrieval.negatives import REASONS, MineConfig, drawing_order, why_not
from retrieval.reranker import Reranker
from retrieval.retriever import Retriever
from retrieval.row_scores import QueryScores, padded

TEXTS = random_texts(80, seed=3, longest=9)
QUERIES = random_texts(13, seed=4, longest=6)
TEXTS[10] = TEXTS[11] = TEXTS[12]  # copies
TEXTS[20] = QUERIES[5]  # a query that is a document
DOCUMENTS = [Document(f"d{number}", text) for number, text in enumerate(TEXTS)]
EXAMPLES = [
    Example(query, (Candidate(TEXTS[3 * number], f"d{3 * number}"),), (), "set" if number % 2 else "")
    for number, query in enumerate(QUERIES)
]
EXAMPLES[2] = EXAMPLES[2]._replace(positives=(*EXAMPLES[2].positives, Candidate(TEXTS[50], "d50")))
EXAMPLES[4] = EXAMPLES[4]._replace(negatives=(Candidate(TEXTS[51], "d51"), Candidate("given alone")))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("mining")


@pytest.fixture(scope="module")
def retriever(place, encoder):
    vectors = encoder.encode_corpus(DOCUMENTS, place / "v")
    index = build_index(vectors, place / "index", documents=DOCUMENTS)
    index.delete(["d79"])
    return Retriever(index, encoder)


@pytest.fixture(scope="module")
def cross_encoder(place):
    return Reranker.load(str(make_cross_encoder(place / "cross")), activation="identity")


@pytest.fixture(scope="module")
def pairs(place):
    write_examples(place / "pairs.jsonl", EXAMPLES)
    return place / "pairs.jsonl"


@pytest.fixture
def mined(tmp_path, retriever, pairs):
    """Mine with some options; gives the examples and the report."""

    def run(name="mined.jsonl", index=retriever, source=pairs, **options):
        done = mine(source, index, tmp_path / name, **{"cache": tmp_path / "cache", "block": 5, **options})
        return list(read_examples(done.output)), done.report

    return run


def ranking(retriever, query, mode):
    """All documents of a query with their scores, best first, as the search gives them."""
    return [(hit.id, hit.score) for hit in retriever.search_many([query], 1000, mode=mode)[0]]


def plain(retriever, options):
    """Negatives of each example, one document after the other; and how often what left one out."""
    config = MineConfig(**{"mode": "dense", **options})
    found, counts = [], Counter()
    for example in EXAMPLES:
        ranked = ranking(retriever, example.query, config.mode)
        scores = dict(ranked)
        positive = min(scores.get(one.id, 0.0) for one in example.positives)
        kept, why = [], {}
        for rank, (name, score) in enumerate(ranked[: config.to_rank], start=1):
            exact = float(np.float64(score))
            reasons = {
                "relevant": name in [one.id for one in example.positives],
                "given": name in [one.id for one in example.negatives],
                "from_rank": rank < config.from_rank,
                "most_score": config.most_score is not None and exact > config.most_score,
                "least_score": config.least_score is not None and exact < config.least_score,
                "margin": config.margin is not None and exact > positive - config.margin,
                "percentage": config.percentage is not None
                and exact > positive - abs(positive) * (1 - config.percentage),
            }
            why[name] = next((reason for reason, holds in reasons.items() if holds), "")
            if not why[name]:
                kept.append(name)
            else:
                counts[why[name]] += 1
        drawn, seen = [], {}
        for name in [kept[place] for place in drawing_order(len(kept), config, example.query)]:
            text = TEXTS[int(name[1:])]
            if len(drawn) == config.negatives:
                break
            if text in [one.text for one in example.positives]:
                counts["same_as_positive"] += 1
            elif text == example.query:
                counts["same_as_query"] += 1
            elif text in seen:
                counts["same_as_another"] += 1
            else:
                seen[text] = name
                drawn.append(name)
        order = [name for name, _ in ranked]
        found.append(sorted(drawn, key=order.index))
    return found, counts


MANY = {"negatives": 30, "to_rank": 60}


@pytest.mark.parametrize("mode", ["lexical", "dense", "hybrid"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"negatives": 30, "to_rank": 78},
        {"from_rank": 4, "to_rank": 20},
        {"margin": 0.05, **MANY},
        {"percentage": 0.95, **MANY},
        {"percentage": 0.9, "margin": 0.3, "most_score": 2.0, "least_score": 0.1, **MANY},
        {"sample": "random", "seed": 7, "to_rank": 30},
    ],
    ids=str,
)
def test_negatives_are_those_of_a_plain_computation(retriever, mined, mode, options):
    found, report = mined(mode=mode, **options)
    wanted, counts = plain(retriever, {"mode": mode, **options})
    assert [[one.id for one in example.negatives[len(EXAMPLES[n].negatives) :]] for n, example in enumerate(found)] == (
        wanted
    )
    assert report["left_out"] == {name: counts[name] for name in REASONS if counts[name]}
    assert report["negatives"] == sum(map(len, wanted))
    assert report["missing"] == 13 * MineConfig(**{"mode": mode, **options}).negatives - report["negatives"]
    assert (report["examples"], report["positives"], report["given"]) == (13, 14, 2)
    for example, before in zip(found, EXAMPLES, strict=True):
        assert example._replace(negatives=example.negatives[: len(before.negatives)]) == before
        assert all(one.text == TEXTS[int(one.id[1:])] for one in example.negatives if one.id)
        assert "d79" not in [one.id for one in example.negatives], "it was deleted"


def test_each_rule_leaves_something_out(mined):
    """Else the comparison above would compare nothing."""
    left_out = Counter()
    for number, options in enumerate(
        ({"negatives": 60, "to_rank": 79}, {"margin": 0.05, **MANY}, {"percentage": 0.95, **MANY}, {"from_rank": 3})
    ):
        left_out.update(mined(f"{number}.jsonl", mode="dense", **options)[1]["left_out"])
    assert left_out.keys() == {
        *("relevant", "given", "from_rank", "margin", "percentage"),
        *("same_as_query", "same_as_positive", "same_as_another"),
    }


SCORE = st.floats(-3, 3, width=32)


@given(
    st.integers(1, 4).flatmap(
        lambda k: st.lists(
            st.tuples(st.lists(SCORE, min_size=k, max_size=k), st.lists(st.booleans(), min_size=k, max_size=k), SCORE),
            min_size=1,
            max_size=3,
        )
    ),
    st.none() | st.floats(0, 2),
    st.none() | st.floats(0.01, 1),
    st.none() | st.floats(-3, 0),
    st.none() | st.floats(0, 3),
    st.integers(1, 3),
)
def test_rules_are_those_of_one_hit_at_a_time(lines, margin, percentage, least, most, first):
    scores = np.array([one[0] for one in lines], np.float32)
    rows = np.where([one[1] for one in lines], 5, -1)
    positive = np.array([one[2] for one in lines], np.float32)
    config = MineConfig(1, "dense", first, 9, margin, percentage, least, most)
    found = why_not(rows, scores, positive, config)
    for line, column in np.ndindex(rows.shape):
        score, best = float(scores[line, column]), float(positive[line])
        reason = REASONS[found[line, column]]
        if rows[line, column] < 0:
            assert found[line, column] == -1
        elif column + 1 < first:
            assert reason == "from_rank"
        elif most is not None and score > most:
            assert reason == "most_score"
        elif least is not None and score < least:
            assert reason == "least_score"
        elif margin is not None and score > best - margin:
            assert reason == "margin"
        elif percentage is not None and score > best - abs(best) * (1 - percentage):
            assert reason == "percentage"
        else:
            assert reason == ""
            assert percentage is None or best < 0 or score <= percentage * best + 1e-6


def test_random_negatives_follow_from_the_query_and_the_seed(place, mined):
    random = {"mode": "dense", "sample": "random", "to_rank": 40}
    first, _ = mined("first.jsonl", **random)
    write_examples(place / "turned.jsonl", EXAMPLES[::-1])
    turned, _ = mined("turned.jsonl", source=place / "turned.jsonl", **random)
    assert sorted(turned) == sorted(first)
    other, _ = mined("other.jsonl", **random, seed=1)
    assert other != first
    top, _ = mined("top.jsonl", mode="dense", to_rank=40)
    assert first != top


def test_scores_of_rows_are_those_of_a_search(retriever):
    """In every mode and fusion, bit for bit."""
    for fusion in ("zscore", "minmax"):
        one = Retriever(retriever.index, retriever.encoder, fusion=fusion)
        scores = QueryScores(one, one.index.reader, QUERIES)
        for mode in ("lexical", "dense", "hybrid"):
            hits = scores.search(mode, 40)
            np.testing.assert_array_equal(hits.rows, one.search_rows(QUERIES, 40, mode=mode)[0].rows)
            found = scores.of_rows(mode, hits.rows)
            there = hits.rows >= 0
            np.testing.assert_array_equal(found[there], hits.scores[there])
            assert np.isnan(found[~there]).all()
    assert padded([[1], [], [2, 3]]).tolist() == [[1, -1], [-1, -1], [2, 3]]
    assert padded([]).shape == (0, 0)


@pytest.mark.parametrize("sample", ["top", "random"])
def test_a_cross_encoder_keeps_out_what_it_scores_above_the_positive(mined, cross_encoder, sample):
    options = {"mode": "dense", "to_rank": 30, "negatives": 6, "sample": sample}
    bare, _ = mined("bare.jsonl", **options | {"negatives": 30})
    found, report = mined(teacher=cross_encoder, teacher_margin=0.01, **options)

    def score(query, text):
        return float(cross_encoder.scores([(query, text)])[0])

    kept_out = 0
    for example, before, all_of_them in zip(found, EXAMPLES, bare, strict=True):
        for one in (*example.positives, *example.negatives):
            assert one.score == pytest.approx(score(example.query, one.text), abs=1e-5)
        limit = min(one.score for one in example.positives) - 0.01
        given = len(before.negatives)
        assert all(one.score <= limit for one in example.negatives[given:])
        drawn = [one.id for one in example.negatives[given:]]
        candidates = all_of_them.negatives[given:]
        good = [one.id for one in candidates if score(example.query, one.text) <= limit]
        if sample == "top":
            assert drawn == good[:6]
            last = [one.id for one in candidates].index(drawn[-1]) if len(drawn) == 6 else len(candidates) - 1
            kept_out += sum(one.id not in good for one in candidates[: last + 1])
        else:
            assert set(drawn) <= set(good)
            assert len(drawn) == min(6, len(good))
    if sample == "top":
        assert report["left_out"]["teacher"] == kept_out > 0


@pytest.mark.parametrize("mode", ["lexical", "dense", "hybrid"])
def test_the_fused_score_teaches(retriever, mined, mode, tmp_path):
    plain_pairs = [one._replace(negatives=one.negatives[:1]) for one in EXAMPLES]
    write_examples(tmp_path / "plain.jsonl", plain_pairs)
    found, report = mined(source=tmp_path / "plain.jsonl", teacher="fused", mode=mode, negatives=8, to_rank=30)
    assert report["left_out"].get("teacher", 0) > 0
    for example, before in zip(found, plain_pairs, strict=True):
        fused = dict(ranking(retriever, example.query, "hybrid"))
        for one in (*example.positives, *example.negatives):
            assert one.score == pytest.approx(fused[one.id], abs=1e-6)
        limit = min(one.score for one in example.positives)
        assert all(one.score <= limit for one in example.negatives[len(before.negatives) :])
        first = [name for name, _ in ranking(retriever, example.query, mode)[:30]]
        known = {one.id for one in (*example.positives, *before.negatives)}
        good = [name for name in first if name not in known and fused[name] <= limit]
        drawn = [one.id for one in example.negatives[len(before.negatives) :]]
        assert [name for name in good if name in drawn] == drawn
        assert len(drawn) == min(8, len({TEXTS[int(name[1:])] for name in good} - {example.query}))


@pytest.mark.parametrize("kill", [0, 5, 10])
@pytest.mark.parametrize("teacher", [None, "fused", "cross"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path, retriever, place, cross_encoder, teacher, kill):
    pairs = place / "for-kills.jsonl"
    write_examples(pairs, [one._replace(negatives=one.negatives[:1]) for one in EXAMPLES])
    how = {"teacher": cross_encoder if teacher == "cross" else teacher, "block": 5, "percentage": 0.97}
    whole = mine(pairs, retriever, tmp_path / "whole.jsonl", cache=tmp_path / "one", **how)
    with pytest.raises(Killed):
        mine(pairs, retriever, tmp_path / "m.jsonl", cache=tmp_path / "two", on_progress=kill_at(kill), **how)
    assert not (tmp_path / "m.jsonl").exists()
    seen = []
    again = mine(
        *(pairs, retriever, tmp_path / "m.jsonl"),
        cache=tmp_path / "two",
        on_progress=lambda *now: seen.append(now),
        **how,
    )
    assert again.resumed_from == kill // 5
    assert (tmp_path / "m.jsonl").read_bytes() == whole.output.read_bytes()
    assert card_file(again.output).read_bytes() == card_file(whole.output).read_bytes()
    assert seen == [(0, 13), (5, 13), (10, 13), (13, 13)]
    assert sorted(one.name for one in tmp_path.iterdir() if one.name.startswith((".m", "m"))) == [
        "m.jsonl",
        "m.jsonl.card.json",
    ]


def test_a_kill_inside_a_block_or_while_publishing_loses_nothing(tmp_path, retriever, pairs, monkeypatch):
    how = {"cache": tmp_path / "cache", "block": 5}
    whole = mine(pairs, retriever, tmp_path / "whole.jsonl", **how)
    write = mining.write_json
    for killed in ("block-00001.json", "m.jsonl.card.json"):

        def dying(path, value, killed=killed):
            if path.name == killed:
                raise Killed
            write(path, value)

        monkeypatch.setattr(mining, "write_json", dying)
        with pytest.raises(Killed):
            mine(pairs, retriever, tmp_path / "m.jsonl", **how)
        assert not (tmp_path / "m.jsonl").exists()
    monkeypatch.setattr(mining, "write_json", write)
    assert mine(pairs, retriever, tmp_path / "m.jsonl", **how).resumed_from == 3
    assert (tmp_path / "m.jsonl").read_bytes() == whole.output.read_bytes()


def test_other_filters_do_not_search_again(mined, monkeypatch):
    usual, _ = mined("1.jsonl", mode="dense", margin=0.1)
    search, searches = QueryScores.search, []

    def counted(self, mode, k):
        searches.append(mode)
        return search(self, mode, k)

    monkeypatch.setattr(QueryScores, "search", counted)
    other, _ = mined("2.jsonl", mode="dense", margin=0.2, sample="random", negatives=2)
    assert mined("3.jsonl", mode="dense", margin=0.1)[0] == usual != other
    assert searches == []
    mined("4.jsonl", mode="dense", margin=0.1, to_rank=20)
    assert searches == ["dense"] * 3


def test_hits_are_kept_by_contents_and_never_by_name(tmp_path, mined, encoder, place):
    def built(texts, model):
        for name in ("v", "index"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        documents = [Document(f"d{number}", text) for number, text in enumerate(texts)]
        vectors = model.encode_corpus(documents, tmp_path / "v")
        return Retriever(build_index(vectors, tmp_path / "index", documents=documents), model)

    first, _ = mined("1.jsonl", built(TEXTS, encoder), mode="dense")
    changed = [*TEXTS[:60], *random_texts(20, seed=9)]
    write_examples(place / "changed.jsonl", EXAMPLES)
    second, _ = mined("2.jsonl", built(changed, encoder), place / "changed.jsonl", mode="dense")
    assert second != first
    other = Encoder.load(str(make_model(place / "other", seed=5)))
    third, _ = mined("3.jsonl", built(TEXTS, other), mode="dense")
    assert third not in (first, second)
    assert len(list((tmp_path / "cache" / "mining").iterdir())) == 3
    for path in (tmp_path / "cache").rglob("*.npz"):
        path.write_bytes(b"damaged")
    assert mined("4.jsonl", built(TEXTS, encoder), mode="dense")[0] == first
    assert len(list((tmp_path / "cache" / "mining").iterdir())) == 3, "the same documents and encoder again"


def test_what_is_there_is_not_made_again_nor_lost(tmp_path, retriever, pairs):
    how = {"cache": tmp_path / "cache", "mode": "dense"}
    output = tmp_path / "m.jsonl"
    first = mine(pairs, retriever, output, **how)
    again = mine(pairs, retriever, output, **how)
    assert (again.already_complete, again.report) == (True, first.report)
    with pytest.raises(InputError, match=r"m.jsonl was mined otherwise \(margin: None ≠ 0.1|margin: 0.1 ≠ None"):
        mine(pairs, retriever, output, margin=0.1, **how)
    before = output.read_bytes()
    output.write_bytes(before + b"{}\n")
    with pytest.raises(InputError, match="was changed since it was mined; choose another --output or pass --overwrite"):
        mine(pairs, retriever, output, **how)
    assert mine(pairs, retriever, output, overwrite=True, **how).already_complete is False
    assert output.read_bytes() == before
    with pytest.raises(Killed):
        mine(pairs, retriever, output, overwrite=True, margin=0.1, on_progress=kill_at(0), **how)
    assert output.read_bytes() == before
    with pytest.raises(InputError, match=r"m.jsonl.partial belongs to another run \(margin"):
        mine(pairs, retriever, tmp_path / "gone" / ".." / "m.jsonl", overwrite=False, margin=0.2, **how)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": 0}, "negatives are 0, block 512, seed 0; expected 1, 1, 0 or more"),
        ({"from_rank": 0}, "4 negatives of the hits 0 to 100; expected at least as many"),
        ({"from_rank": 9, "to_rank": 11}, "4 negatives of the hits 9 to 11"),
        ({"margin": -0.1}, "margin is -0.1; expected 0 or more"),
        ({"percentage": 95}, "percentage is 95; expected more than 0 and at most 1, such as 0.95"),
        ({"least_score": 1.0, "most_score": 0.5}, "least_score is 1.0, most_score 0.5"),
        ({"most_score": float("nan")}, "most_score nan"),
        ({"teacher_margin": float("inf")}, "teacher_margin inf"),
        ({"sample": "best"}, "sample is 'best'; expected one of top, random"),
        ({"mode": "sparse"}, "cannot be searched by 'sparse'; it has lexical, dense, hybrid"),
    ],
)
def test_options_out_of_range(retriever, pairs, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        mine(pairs, retriever, tmp_path / "m.jsonl", **options)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_ours_are_left_alone(retriever, pairs, tmp_path):
    with pytest.raises(InputError, match="is the input; choose another --output"):
        mine(pairs, retriever, pairs, overwrite=True)
    thesis = tmp_path / "thesis.jsonl"
    thesis.write_text("{}\n")
    with pytest.raises(InputError, match="exists and was not mined; choose another --output"):
        mine(pairs, retriever, thesis, overwrite=True)
    assert thesis.read_text() == "{}\n"
    for name in ("m.jsonl.gz", "."):
        with pytest.raises(InputError, match="cannot be a file of plain JSON lines"):
            mine(pairs, retriever, tmp_path / name)
    (tmp_path / "bad.jsonl").write_text('{"query": "q", "positive": {"id": "d1"}}\n{"query": "q"}\n')
    with pytest.raises(InputError, match="line 2: found fields 'query'"):
        mine(tmp_path / "bad.jsonl", retriever, tmp_path / "m.jsonl")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bad.jsonl", "thesis.jsonl"]


def test_an_index_without_texts_takes_them_from_a_corpus(tmp_path, place, encoder, pairs, retriever, mined):
    dense = build_index(encoder.encode_corpus(DOCUMENTS, place / "v"), tmp_path / "dense")
    dense.delete(["d79"])
    with pytest.raises(InputError, match=r"keeps no texts of its documents; give their corpus"):
        mine(pairs, Retriever(dense, encoder), tmp_path / "m.jsonl")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": one.id, "text": one.text}) + "\n" for one in DOCUMENTS))
    found, _ = mined("of-corpus.jsonl", Retriever(dense, encoder), corpus=str(corpus))
    assert found == mined("of-index.jsonl", mode="dense")[0]
    corpus.write_text("".join(corpus.read_text().splitlines(keepends=True)[:60]))
    with pytest.raises(InputError, match=r"document 'd[67].' of .*dense is not in the corpus \(60 documents\)"):
        mined("less.jsonl", Retriever(dense, encoder), corpus=str(corpus))


def test_ids_alone_are_texts_again_with_the_documents(mined, tmp_path):
    whole, _ = mined("whole.jsonl", mode="dense")
    with pytest.raises(InputError, match="is named by its id alone; give the corpus"):
        mined("ids.jsonl", mode="dense", ids_only=True)
    assert list(read_examples(tmp_path / "ids.jsonl", {one.id: one for one in DOCUMENTS})) == whole
    assert (tmp_path / "ids.jsonl").stat().st_size < (tmp_path / "whole.jsonl").stat().st_size


def test_an_example_says_how_many_negatives_it_lacks(mined, tmp_path):
    found, report = mined(mode="dense", negatives=8, percentage=0.98, to_rank=40)
    lines = [json.loads(line) for line in (tmp_path / "mined.jsonl").read_text().splitlines()]
    given = [len(one.negatives) for one in EXAMPLES]
    missing = [8 - (len(one.negatives) - some) for one, some in zip(found, given, strict=True)]
    assert [line.get("negatives_missing", 0) for line in lines] == missing
    assert (report["missing"], report["short"]) == (sum(missing), sum(map(bool, missing)))
    assert 0 < report["short"] < 13


def test_texts_without_ids_are_found_in_the_index(tmp_path, mined):
    """By their texts, so that their scores are those of the documents."""
    bare = [
        one._replace(positives=tuple(some._replace(id=None) for some in one.positives), negatives=())
        for one in EXAMPLES
    ]
    write_examples(tmp_path / "bare.jsonl", bare)
    write_examples(tmp_path / "named.jsonl", [one._replace(negatives=()) for one in EXAMPLES])
    for mode in ("lexical", "dense", "hybrid"):
        how = {"mode": mode, "percentage": 0.97, "to_rank": 30}
        found, report = mined(f"bare-{mode}.jsonl", source=tmp_path / "bare.jsonl", **how)
        named, same = mined(f"named-{mode}.jsonl", source=tmp_path / "named.jsonl", **how)
        assert [one.negatives for one in found] == [one.negatives for one in named]
        assert report == same


def test_texts_that_the_index_lacks(tmp_path, retriever, mined):
    text = "river stone green river stone"
    write_examples(tmp_path / "new.jsonl", [Example(QUERIES[0], (Candidate(text),))])
    source = tmp_path / "new.jsonl"
    found, _ = mined("dense.jsonl", source=source, mode="dense", margin=0.02, negatives=20)
    query = retriever.encoder.encode_queries([QUERIES[0]])[0].astype(np.float64)
    limit = float(query @ retriever.encoder.encode_documents([text])[0]) - 0.02
    ranked = ranking(retriever, QUERIES[0], "dense")
    below = [name for name, score in ranked if score <= limit and name not in ("d11", "d12")]
    assert [one.id for one in found[0].negatives if one.id not in ("d11", "d12")] == below[: len(found[0].negatives)]
    assert 0 < len(found[0].negatives)
    assert ranked[0][1] > limit
    for how in ({"mode": "lexical", "margin": 1.0}, {"mode": "hybrid", "percentage": 0.9}, {"teacher": "fused"}):
        with pytest.raises(InputError, match=r"the text 'river stone green river stone' of query .* is no document of"):
            mined("no.jsonl", source=source, **how)
    assert mined("lexical.jsonl", source=source, mode="lexical")[1]["negatives"] == 4


def test_what_an_index_cannot_do(tmp_path, encoder, place, pairs, retriever):
    dense = build_index(encoder.encode_corpus(DOCUMENTS, place / "v"), tmp_path / "dense")
    with pytest.raises(InputError, match="has no words to fuse with; take a cross-encoder"):
        mine(pairs, Retriever(dense, encoder), tmp_path / "m.jsonl", teacher="fused")
    ranks = Retriever(retriever.index, encoder, fusion="rrf")
    for how in ({"teacher": "fused", "mode": "dense"}, {"mode": "hybrid", "margin": 0.1}):
        with pytest.raises(InputError, match="fusion rrf gives scores to hits alone"):
            mine(pairs, ranks, tmp_path / "m.jsonl", **how)
    assert mine(pairs, ranks, tmp_path / "m.jsonl", mode="hybrid", cache=tmp_path).report["negatives"] == 52


def test_only_what_may_be_drawn_is_shown_to_the_cross_encoder(mined, cross_encoder, monkeypatch):
    asked = []
    score = Reranker.scores

    def counted(self, pairs, on_progress=None):
        asked.append(len(pairs))
        return score(self, pairs, on_progress)

    monkeypatch.setattr(Reranker, "scores", counted)
    _, report = mined(teacher=cross_encoder, mode="dense", negatives=2, to_rank=70)
    assert sum(asked) == 14 + 2 + report["negatives"] + report["left_out"].get("teacher", 0)
    assert mined_blocks.FUSED == "fused"


def retrokit(*arguments, expect=0):
    done = CliRunner().invoke(build_app(), list(map(str, arguments)), env={"COLUMNS": "300"})
    assert done.exit_code == expect, f"{done.output}\n{done.exception!r}"
    return done.output


def test_the_command(tmp_path, place, pairs, retriever, model_folder):
    def run(*more, **expect):
        common = ("--index", place / "index", "--output", tmp_path / "m.jsonl", "--cache", tmp_path / "cache")
        return retrokit("mine", pairs, *common, *more, **expect)

    said = run("--mode", "dense", "--percentage", 0.95, "--json", tmp_path / "r.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert f"13 examples, {report['negatives']} negatives of {report['hits']:,} hits; left out: 14 relevant" in said
    assert "retrokit finetune" in said
    assert "nothing keeps false negatives out" not in said
    assert "is complete already" in run("--mode", "dense", "--percentage", 0.95)
    assert "was mined otherwise" in run("--mode", "dense", expect=2)
    assert "nothing keeps false negatives out" in run("--overwrite")
    assert "--teacher-margin is of a teacher's scores" in run("--teacher-margin", 1, expect=2)
    assert "--seed draws nothing with --sample top" in run("--seed", 1, expect=2)
    assert "which the mode dense does not do" in run("--mode", "dense", "--weight", 1, expect=2)
    cross = place / "cross"
    if not cross.is_dir():
        make_cross_encoder(cross)
    said = run("--teacher", cross, "--mode", "lexical", "--sample", "random", "--seed", 3, "--overwrite", "--ids-only")
    assert "13 examples" in said


def test_positives_that_the_index_lacks_are_counted_and_said(retriever, tmp_path):
    one, other = Example("a question", (Candidate("no document at all"),)), Example("more", (Candidate(TEXTS[6]),))
    write_examples(tmp_path / "pairs.jsonl", [one, other])
    notes = []
    options = {"mode": "dense", "cache": tmp_path / "cache", "on_note": notes.append}
    done = mine(tmp_path / "pairs.jsonl", retriever, tmp_path / "out.jsonl", **options)
    assert done.report["absent"] == 1
    assert any(line.startswith("1 positives are no documents of") for line in notes)


def test_pairs_of_sentences_are_no_examples_to_mine_for(retriever, tmp_path):
    path = tmp_path / "sts.jsonl"
    path.write_text(json.dumps({"sentence1": "one", "sentence2": "two", "score": 4.0}) + "\n")
    with pytest.raises(InputError, match="pairs of sentences with scores, of which none is said to be a positive"):
        mine(path, retriever, tmp_path / "out.jsonl", cache=tmp_path / "cache")


def test_a_finished_file_does_not_sweep_away_another_run(retriever, pairs, tmp_path):
    options = {"cache": tmp_path / "cache", "block": 5}
    mine(pairs, retriever, tmp_path / "out.jsonl", **options)
    with pytest.raises(Killed):
        mine(pairs, retriever, tmp_path / "out.jsonl", negatives=2, overwrite=True, on_progress=kill_at(5), **options)
    left = sorted(path.name for path in (tmp_path / "out.jsonl.partial").iterdir())
    assert mine(pairs, retriever, tmp_path / "out.jsonl", **options).already_complete
    assert sorted(path.name for path in (tmp_path / "out.jsonl.partial").iterdir()) == left
    assert mine(pairs, retriever, tmp_path / "out.jsonl", negatives=2, overwrite=True, **options).resumed_from == 1


def test_a_bad_file_leaves_nothing_in_the_way(retriever, pairs, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": one.id, "text": one.text}) + "\n" for one in DOCUMENTS))
    (tmp_path / "bad.jsonl").write_text(json.dumps({"query": "x", "positive": {"id": "nowhere"}}) + "\n")
    options = {"cache": tmp_path / "cache", "corpus": str(corpus)}
    with pytest.raises(InputError, match="document 'nowhere' is not in the corpus"):
        mine(tmp_path / "bad.jsonl", retriever, tmp_path / "out.jsonl", **options)
    assert mine(pairs, retriever, tmp_path / "out.jsonl", **options).report["examples"] == len(EXAMPLES)
