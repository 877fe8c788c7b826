"""Reports of made-up systems over made-up test collections, for tests of comparisons."""

from pathlib import Path

import numpy as np
from fixtures import WORDS

from evaluation.runs import make_ranking
from evaluation.systems import Report, evaluate_run, merge
from evaluation.testsets import TestSet, load_dataset, write_collection
from retrieval.documents import Document

DOCUMENTS = 40


def make_collection(folder: Path, *, queries: int = 24, seed: int = 0, extra: str = "") -> Path:
    """A BEIR folder whose queries are words of their relevant documents, one to three of each."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(6, 14))) for _ in range(DOCUMENTS)]
    documents = [Document(f"d{row}", f"{text} {extra}".strip(), f"No {row}") for row, text in enumerate(texts)]
    asked, qrels = {}, {}
    for number in range(queries):
        relevant = rng.choice(DOCUMENTS, size=int(rng.integers(1, 4)), replace=False).tolist()
        words = texts[relevant[0]].split()
        asked[f"q{number}"] = " ".join(words[: int(rng.integers(2, len(words)))])
        qrels[f"q{number}"] = {f"d{row}": 1 + (place == 0) for place, row in enumerate(relevant)}
        qrels[f"q{number}"][f"d{(relevant[0] + 1) % DOCUMENTS}"] = 0
    write_collection(folder, documents, asked, {"test": qrels})
    return folder


def make_report(testset: TestSet, skills: dict[str, float], *, seed: int = 0) -> Report:
    """Systems that score by chance, and relevant documents higher by their skill."""
    reports = {}
    for number, (name, skill) in enumerate(skills.items()):
        rng = np.random.default_rng([seed, number])
        run = {}
        for query, grades in testset.qrels.items():
            scores = rng.random(DOCUMENTS) + [skill * (grades.get(f"d{row}", 0) > 0) for row in range(DOCUMENTS)]
            run[query] = make_ranking([f"d{row}" for row in range(DOCUMENTS)], scores, place=query)
        reports[name] = evaluate_run(run, testset, name=name, made_by={"skill": str(skill)})
    return merge(reports)


def make_sets(folder: Path, names: tuple[str, ...] = ("red", "green")) -> list[TestSet]:
    """Test sets of different sizes."""
    return [
        load_dataset(make_collection(folder / name, queries=24 + 30 * place, seed=place))
        for place, name in enumerate(names)
    ]
