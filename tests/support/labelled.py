"""Made-up training examples: queries of words of their documents."""

import numpy as np
from fixtures import WORDS

from retrieval.examples import Candidate, Example

RARE = [f"{one}{other}" for one in WORDS[:8] for other in WORDS[8:]]


def make_examples(count=40, negatives=2, *, seed=0, dataset="", scores=False):
    """Each document has a word of its own, and its query is that word and another; negatives are of other words."""
    rng = np.random.default_rng(seed)
    texts = [" ".join([RARE[row % len(RARE)], *rng.choice(WORDS, 6), str(row)]) for row in range(count + negatives)]
    examples = []
    for row in range(count):
        query = f"{texts[row].split()[0]} {row}"
        others = rng.choice([other for other in range(len(texts)) if other != row], negatives, replace=False)
        teacher = rng.normal(size=negatives).tolist() if scores else [None] * negatives
        wrong = tuple(Candidate(texts[other], None, score) for other, score in zip(others, teacher, strict=True))
        examples.append(Example(query, (Candidate(texts[row], None, 3.0 if scores else None),), wrong, dataset))
    return examples


def make_pairs(count=40, *, seed=0):
    """Pairs of sentences, whose score from 0 to 5 is how many words they share."""
    rng = np.random.default_rng(seed)
    found = []
    for row in range(count):
        one, shared = rng.choice(WORDS, 5, replace=False), row % 6
        other = [*one[:shared], *rng.choice(RARE, 5 - shared)]
        found.append(Example(" ".join(one), (Candidate(" ".join(other), None, float(shared)),)))
    return found
