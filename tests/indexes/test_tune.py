"""Tuning: bounds and fronts by hand, memory against real files, goals against brute force on other queries."""

import json
import xml.etree.ElementTree

import numpy as np
import pytest

from indexes import tune
from indexes.candidates import candidates, structure_bytes, usual_factory
from indexes.checksums import verify
from indexes.efforts import DEFAULT, Effort
from indexes.errors import InputError
from indexes.exact import search_exact
from indexes.faiss_files import build_faiss
from indexes.index import Index
from indexes.manifest import open_manifest
from indexes.operating_points import Goal, Point, fastest, least_mean, pareto, recalls, refusal
from indexes.segments import Entry
from indexes.transfer import save_vectors
from indexes.vector_writer import VectorWriter

N, D = 3000, 32
FACTORIES = ["Flat", "HNSW8", "HNSW8_SQ8", "IVF32,SQ8", "IVF32,PQ8x4fs"]


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def drawn(count, seed):
    """Rows of one and the same distribution: clusters, so that lists and graphs have something to find."""
    centres = np.random.default_rng(0).normal(size=(60, D))
    rng = np.random.default_rng(seed)
    return unit(centres[rng.integers(60, size=count)] + 0.7 * rng.normal(size=(count, D)))


ROWS, QUERIES, OTHERS = drawn(N, 1), drawn(300, 2), drawn(1000, 3)


def entries():
    return [Entry(f"d{n}", ["all", f"word{n % 7}"], f"text {n}", {"year": 2000 + n % 20}) for n in range(N)]


@pytest.fixture
def index(tmp_path):
    store = save_vectors(tmp_path / "v", ROWS, [f"d{n}" for n in range(N)], made_by={"normalize": True})
    return Index.build(store, "Flat", tmp_path / "index", entries=entries(), analyzer="none")


def point(name="HNSW32", recall=0.96, least=0.95, p95=1.0, size=1000, **effort):
    return Point(name, Effort(**effort), recall, least, p95 / 2, p95, 100.0, size)


def found_share(index, queries, k=10, **how):
    exact = search_exact(queries, np.stack([one.vectors[0] for one in index]), k).scores
    return recalls(index.search(queries, k, **how).scores, exact)


def test_the_lower_bound_of_a_mean_is_that_of_a_normal_one_with_a_zero_more():
    shares = np.array([1.0, 0.9, 1.0, 0.8])
    guarded = np.array([*shares, 0.0])
    expected = guarded.mean() - 1.6448536269514722 * guarded.std(ddof=1) / np.sqrt(5)
    assert least_mean(shares) == pytest.approx(expected)
    assert least_mean(shares, 0.5) == pytest.approx(guarded.mean())
    assert least_mean(np.ones(100)) < 0.98, "a hundred queries that found all are no proof of 0.98"
    assert least_mean(np.ones(1000)) > 0.995
    assert least_mean(np.zeros(3)) == 0


def test_the_lower_bound_holds_as_often_as_it_says():
    rng = np.random.default_rng(0)  # most queries are answered well, some hardly: that is how recall is spread

    def share_of_bounds(count):
        drawn = rng.binomial(10, rng.beta(4.5, 0.3, size=(2000, count))) / 10
        return np.mean([least_mean(one) <= 4.5 / 4.8 for one in drawn])

    assert share_of_bounds(50) >= 0.95
    assert 0.95 <= share_of_bounds(2000) <= 0.98


def test_recall_counts_ties_with_the_last_of_the_best():
    exact = np.array([[0.9, 0.8, 0.7]], np.float32)
    assert recalls(np.array([[0.9, 0.7, 0.7]], np.float32), exact).tolist() == [1.0]
    assert recalls(np.array([[0.9, 0.6, -np.inf]], np.float32), exact).tolist() == [pytest.approx(1 / 3)]


def test_the_front_has_whatever_nothing_else_beats_in_all_three():
    slow, quick = point("A", recall=0.99, p95=2.0), point("B", recall=0.95, p95=1.0)
    beaten, small = point("C", recall=0.95, p95=1.5), point("D", recall=0.90, p95=3.0, size=10)
    assert pareto([slow, quick, beaten, small]) == [quick, slow, small]
    assert pareto([quick, quick]) == [quick, quick], "two alike do not beat each other"


def test_only_what_meets_all_of_a_goal_is_chosen():
    goal = Goal(recall=0.95, p95_ms=1.0, memory_gb=1e-6)
    points = [point(p95=0.9, least=0.94), point(p95=1.1), point(p95=0.5, size=2000), point(p95=0.8), point(p95=0.7)]
    assert fastest(points, goal, 2) == [points[4], points[3]]


def test_a_refusal_names_what_comes_nearest():
    points = [point("A", p95=2.0, ef=64), point("B", recall=0.91, least=0.9, p95=0.5), point("C", p95=0.1, size=10**9)]
    said = refusal(points, Goal(recall=0.95, p95_ms=1.0, memory_gb=0.5))
    assert "recall@10 ≥ 0.95, p95 ≤ 1 ms, memory ≤ 0.5 GB (3 points tried)" in said
    assert "the fastest that finds enough is A (ef 64): recall 0.9600 (at least 0.9500), p95 2 ms" in said
    assert "what finds most in time is B: recall 0.9100" in said
    assert "the smallest is A" in refusal(points[:1], Goal(memory_gb=1e-9))


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        ({"recall": 0.0}, "recall is 0.0; expected more than 0, at most 1"),
        ({"recall": 95}, "recall is 95; expected"),
        ({"recall": float("nan")}, "recall is nan; expected"),
        ({"k": 0}, "k is 0; expected at least 1"),
        ({"batch": 0}, "batch is 0; expected at least 1"),
        ({"threads": 0}, "threads is 0; expected at least 1"),
        ({"p95_ms": 0.0}, "p95_ms is 0.0; expected more than 0"),
        ({"memory_gb": -1.0}, "memory_gb is -1.0; expected more than 0"),
        ({"p95_ms": float("nan")}, "p95_ms is nan; expected more than 0"),
    ],
)
def test_what_is_no_goal_is_refused(goal, said):
    with pytest.raises(InputError, match=said):
        Goal(**goal).check()


@pytest.mark.parametrize(
    "factory",
    [*FACTORIES, "HNSW16", "SQ8", "IVF32,Flat", "PQ8x4fs", "RaBitQ", "PCA16,SQ8", "IVF32,SQ8,Refine(SQ8)"],
)
def test_the_memory_of_an_index_is_known_before_it_is_built(factory, index, tmp_path):
    segment = index.reader.segments[0]
    rows = tune.JoinedRows([(segment.targets, np.arange(N))])
    build_faiss(rows, factory, tmp_path / "file")
    real = (tmp_path / "file").stat().st_size
    assert structure_bytes(factory, N, D) == pytest.approx(
        real, rel=0.25 if "x4fs" in factory or "PCA" in factory else 0.03
    )


def test_candidates_fit_any_number_of_vectors_and_dimensions():
    assert candidates(500, 384) == ["Flat"]
    assert candidates(1_000_000, 384)[4:] == [
        "IVF4096,PQ192x4fsr",
        "IVF4096,PQ96x4fsr",
        "IVF4096,PQ96x4fsr,Refine(SQ8)",
    ]
    for dim in (1, 2, 3, 7, 30, 97, 768):
        for factory in candidates(5000, dim):
            assert structure_bytes(factory, 5000, dim) > 0
    assert (usual_factory(20_000), usual_factory(20_001)) == ("Flat", "HNSW32_SQ8")


@pytest.mark.parametrize("wanted", [0.8, 0.95, 0.99])
def test_the_goal_is_met_on_other_queries(index, wanted):
    tuned = index.tune(QUERIES, Goal(recall=wanted), factories=FACTORIES[1:])
    assert tuned.chosen.least_recall >= wanted
    assert tuned.chosen.p95_ms == min(one.p95_ms for one in tuned.points if one.least_recall >= wanted)
    assert found_share(index, OTHERS).mean() >= wanted - 0.005
    assert {one.factory for one in tuned.points} == set(FACTORIES[1:])


def test_what_was_chosen_is_what_is_searched_from_then_on(index):
    before, texts = index.reader.lexical.scores(["word3"]), [one.text for one in index]
    tuned = index.tune(QUERIES, Goal(recall=0.9), factories=["HNSW8_SQ8", "IVF32,SQ8"])
    effort = tuned.chosen.effort
    again = Index.open(index.folder, "full")
    for one in (index, again):
        assert (one.reader.factory, one.reader.effort) == (tuned.chosen.factory, effort)
        as_chosen, by_itself = one.search(OTHERS, 10, effort=effort), one.search(OTHERS, 10)
        assert (as_chosen.rows == by_itself.rows).all()
        assert found_share(one, OTHERS).mean() == pytest.approx(found_share(one, OTHERS, effort=effort).mean())
        assert one.reader.tuned == tuned
        assert (one.reader.lexical.scores(["word3"]) == before).all()
        assert [row.text for row in one] == texts
        assert len(one.search(OTHERS[:5], 10, filter="year == 2003").rows[0]) == 10
    farther = Effort(**{name: value if value is None else 4 * value for name, value in effort._asdict().items()})
    assert found_share(index, OTHERS, effort=farther).mean() >= found_share(index, OTHERS).mean()


def test_table_and_plot_are_kept_and_guarded_by_checksums(index):
    tuned = index.tune(QUERIES, Goal(recall=0.9, p95_ms=1000), factories=FACTORIES)
    names = [name for name in open_manifest(index.folder, "index")["files"] if name.startswith("tuned")]
    assert names == ["tuned-000002.json", "tuned-000002.json.svg"]
    kept = json.loads((index.folder / names[0]).read_text())
    assert len(kept["points"]) == len(tuned.points) > len(tuned.front) > 0
    drawing = xml.etree.ElementTree.parse(index.folder / names[1])
    text = "".join(drawing.getroot().itertext())
    assert drawing.getroot().tag.endswith("svg")
    assert all(factory in text for factory in FACTORIES)
    assert tuned.chosen.name in text
    assert "recall@10" in text
    (index.folder / names[0]).write_text(json.dumps({**kept, "seconds": 0}))
    with pytest.raises(InputError, match="tuned-000002.json"):
        Index.open(index.folder, "full")


def test_nothing_is_relaxed_and_the_index_stays_as_it_was(index):
    before = index.reader.manifest
    with pytest.raises(InputError, match="no index meets recall@10 ≥ 0.99, p95 ≤ 1e-06 ms.*the fastest that finds"):
        index.tune(QUERIES, Goal(recall=0.99, p95_ms=1e-6), factories=FACTORIES)
    with pytest.raises(InputError, match="the smallest candidate, IVF32,PQ8x4fs, takes 4"):
        index.tune(QUERIES, Goal(memory_gb=1e-6), factories=FACTORIES)
    with pytest.raises(InputError, match="there are 49 queries to tune with; expected at least 50"):
        index.tune(QUERIES[:49])
    with pytest.raises(InputError, match="there are 300 queries to tune with; expected at least 301"):
        index.tune(QUERIES, Goal(batch=301))
    with pytest.raises(InputError, match="is opened on cpu; tuning is on the processor: open it without"):
        Index.open(index.folder, device="cpu").tune(QUERIES)
    with pytest.raises(InputError, match="k is 3001; there are 3000 documents"):
        index.tune(QUERIES, Goal(k=3001))
    with pytest.raises(InputError, match="FAISS does not know 'Nonsense'"):
        index.tune(QUERIES, factories=["Nonsense"])
    with pytest.raises(InputError, match="has length"):
        index.tune(2 * QUERIES)
    assert index.reader.manifest == before == Index.open(index.folder).reader.manifest
    assert index.explain().startswith("Flat, as it was asked for; its recall and its times were not measured")


def test_of_our_own_candidates_what_cannot_be_built_is_passed_over(index, monkeypatch):
    monkeypatch.setattr(tune, "candidates", lambda count, dim: ["IVF4096,Flat", "HNSW8"])
    lines = []
    assert index.tune(QUERIES, Goal(recall=0.8), report=lines.append).chosen.factory == "HNSW8"
    assert any(line.startswith("passed over: FAISS cannot build 'IVF4096,Flat'") for line in lines)
    with pytest.raises(InputError, match="FAISS cannot build 'IVF4096,Flat'"):
        index.tune(QUERIES, Goal(recall=0.8), factories=["IVF4096,Flat", "HNSW8"])


def test_memory_is_a_limit(index):
    limit = structure_bytes("HNSW8_SQ8", N, D) / 1e9 * 1.01
    tuned = index.tune(QUERIES, Goal(recall=0.9, memory_gb=limit), factories=FACTORIES)
    assert {one.factory for one in tuned.points} == {"HNSW8_SQ8", "IVF32,SQ8", "IVF32,PQ8x4fs"}
    assert (index.reader.segments[0].file).stat().st_size <= 1e9 * limit


def test_exact_search_needs_no_proof(index):
    tuned = index.tune(QUERIES, Goal(recall=1.0), factories=["Flat", "HNSW8_SQ8"])
    assert (tuned.chosen.factory, tuned.chosen.effort, tuned.chosen.least_recall) == ("Flat", DEFAULT, 1.0)
    assert index.stats()["segments"][0]["name"] == "segment-000001", "a Flat index that stays Flat is not written again"


def test_what_was_built_is_there_after_an_interruption(index, monkeypatch):
    built = []
    monkeypatch.setattr(
        tune, "build_faiss", lambda rows, factory, path: (built.append(factory), build_faiss(rows, factory, path))
    )

    def stop(line):
        if "HNSW8_SQ8 built" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.tune(QUERIES, Goal(recall=0.9), factories=["HNSW8", "HNSW8_SQ8"], report=stop)
    index.tune(QUERIES, Goal(recall=0.9), factories=["HNSW8", "HNSW8_SQ8"])
    assert built == ["HNSW8", "HNSW8_SQ8"]
    assert not (index.folder / ".tuning").exists()
    assert verify(index.folder, open_manifest(index.folder, "index")) is None


def test_what_was_built_for_another_generation_is_removed(index):
    with pytest.raises(InputError, match="no index meets"):
        index.tune(QUERIES, Goal(p95_ms=1e-6), factories=["HNSW8"])
    assert [path.name for path in (index.folder / ".tuning").rglob("*.faiss")] == ["HNSW8.faiss"]
    index.delete(["d5"])
    assert not list((index.folder / ".tuning").rglob("*.faiss"))


def test_an_index_of_segments_with_deleted_documents_becomes_one(index, tmp_path):
    more = save_vectors(tmp_path / "more", OTHERS[:100], [f"e{n}" for n in range(100)], made_by={"normalize": True})
    index.add(more, entries=[Entry(f"e{n}", ["all"], "more") for n in range(100)])
    index.delete([f"d{n}" for n in range(0, N, 3)])
    left = [one.id for one in index]
    index.tune(QUERIES, Goal(recall=0.9), factories=["HNSW8_SQ8"])
    stats = index.stats()
    assert [one["factory"] for one in stats["segments"]] == ["HNSW8_SQ8"]
    assert (stats["deleted"], stats["documents"]) == (0, len(left))
    assert [one.id for one in index] == left
    assert found_share(index, QUERIES).mean() > 0.9
    index.verify()


def test_documents_of_passages_are_tuned_as_documents(tmp_path):
    table = np.array([(row // 3, 0, 5) for row in range(N)], np.int64)
    encoding = {"shard_rows": 5000, "storage": "float32", "long_documents": "passages"}
    writer = VectorWriter(tmp_path / "v", made_by={"normalize": True, "dim": D, "fingerprint": "f"}, encoding=encoding)
    writer.write(0, ROWS, [f"d{n}" for n in range(N // 3)], "all", passages=table)
    store = writer.finish(1, {"source": None, "fingerprint": None})
    index = Index.build(store, "Flat", tmp_path / "index")
    whole = index.search(OTHERS, 10)
    tuned = index.tune(QUERIES, Goal(recall=0.9), factories=["HNSW8_SQ8", "IVF32,SQ8"])
    assert (tuned.documents, index.reader.factory) == (N // 3, tuned.chosen.factory)
    assert recalls(index.search(OTHERS, 10).scores, whole.scores).mean() > 0.89


def test_the_order_of_many_vectors_is_found_on_a_sample(index, monkeypatch):
    monkeypatch.setattr(tune, "_SAMPLE", 1000)
    lines = []
    tuned = index.tune(QUERIES, Goal(recall=0.9), factories=FACTORIES, report=lines.append)
    assert sum(line.startswith("of 1,000 vectors: ") for line in lines) == len(FACTORIES)
    assert {one.factory for one in tuned.points} == {tuned.chosen.factory}, "the first that meets the goal is taken"
    assert found_share(index, OTHERS).mean() > 0.9


def test_the_explanation_says_what_has_changed_since(index, tmp_path, monkeypatch):
    index.tune(QUERIES, Goal(recall=0.9, p95_ms=1e3, memory_gb=1, threads=1), factories=["HNSW8"], source="of users")
    said = index.explain()
    assert "HNSW8 (ef " in said
    assert "meet recall@10 ≥ 0.9, p95 ≤ 1000 ms, memory ≤ 1 GB" in said
    assert "over 300 queries (of users) and 3,000 documents" in said
    assert "calls of 1 query by 1 threads" in said
    assert len(said.splitlines()) == 3
    kept = index.reader.effort
    for count, expected in ((100, "100 documents were added since"), (300, "3,400 documents now, over 10% more")):
        ids = [f"e{count}-{n}" for n in range(count)]
        store = save_vectors(tmp_path / f"v{count}", OTHERS[:count], ids, made_by={"normalize": True})
        index.add(store, entries=[Entry(one, ["all"], "more") for one in ids])
        assert expected in index.explain()
    index.compact()
    assert "the index was compacted since" in index.explain()
    assert index.reader.effort == kept
    monkeypatch.setattr("indexes.tuned.processor", lambda: "Z80")
    assert "times were measured on another processor than this one (Z80)" in index.explain()


def test_a_factory_whose_size_faiss_does_not_tell_is_tuned_too(index):
    assert structure_bytes("NSG8", N, D) is None
    assert index.tune(QUERIES, Goal(recall=0.2, memory_gb=1), factories=["NSG8"]).chosen.factory == "NSG8"


def test_refinement_without_lists_takes_an_effort(tmp_path):
    store = save_vectors(tmp_path / "r", ROWS, [f"d{n}" for n in range(N)], made_by={"normalize": True})
    refined = Index.build(store, "PQ4x4fs,Refine(SQ8)", tmp_path / "refined")
    little, much = (found_share(refined, OTHERS, effort=Effort(candidates=count)).mean() for count in (2, 64))
    assert little < much - 0.05


def test_an_empty_index_is_not_tuned(index):
    index.delete([f"d{n}" for n in range(N)])
    with pytest.raises(InputError, match="k is 10; there are 0 documents"):
        index.tune(QUERIES)


def test_deleted_documents_are_not_counted_as_added(index, tmp_path):
    index.tune(QUERIES, Goal(recall=0.9), factories=["HNSW8"])
    index.delete([f"d{n}" for n in range(300)])
    store = save_vectors(tmp_path / "e", OTHERS[:100], [f"e{n}" for n in range(100)], made_by={"normalize": True})
    index.add(store, entries=[Entry(f"e{n}", ["all"], "more") for n in range(100)])
    assert "100 documents were added since" in index.explain()
    assert "300 documents were deleted since" in index.explain()


def test_several_queries_in_a_call(index):
    tuned = index.tune(QUERIES[:70], Goal(recall=0.8, batch=32), factories=["HNSW8"])
    assert tuned.goal.batch == 32
    assert tuned.chosen.queries_per_s > 32e3 / tuned.chosen.p95_ms / 10


def test_auto_is_by_the_number_of_vectors(tmp_path, monkeypatch):
    store = save_vectors(tmp_path / "v", ROWS, [f"d{n}" for n in range(N)], made_by={"normalize": True})
    assert Index.build(store, "auto", tmp_path / "few").reader.factory == "Flat"
    monkeypatch.setattr("indexes.candidates._FLAT_UP_TO", N - 1)
    assert Index.build(store, "auto", tmp_path / "many").reader.factory == "HNSW32_SQ8"
