"""Made-up training examples, of words that stand for other words."""

import numpy as np
from fixtures import WORDS

from retrieval.examples import Candidate, Example

ASKED, ANSWERED = WORDS[:8], WORDS[8:]


def make_examples(count=56, negatives=2, *, seed=0, dataset="", scores=False):
    """Queries of a word and a number; the document of each has the word that stands for it; others are negatives."""
    rng = np.random.default_rng(seed)
    texts = [f"{word} {word}" for word in ANSWERED]
    examples = []
    for row in range(count):
        right = row % 8
        others = rng.choice([other for other in range(8) if other != right], negatives, replace=False).tolist()
        wrong = [Candidate(texts[other], None, -float(abs(other - right)) if scores else None) for other in others]
        positive = Candidate(texts[right], None, 3.0 if scores else None)
        examples.append(Example(f"{ASKED[right]} {row}", (positive,), tuple(wrong), dataset))
    return examples


def make_pairs(count=60, *, seed=0):
    """Pairs of sentences, whose score from 0 to 5 is how many words they share."""
    rng = np.random.default_rng(seed)
    found = []
    for row in range(count):
        words = rng.permutation(WORDS)
        shared = row % 6
        other = " ".join(words[5 - shared : 10 - shared])
        found.append(Example(" ".join(words[:5]), (Candidate(other, None, float(shared)),)))
    return found
