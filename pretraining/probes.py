"""Probes: numbers that say whether an encoder becomes a better start for retrieval, of its vectors and of its losses.

Shapes: b batch, t tokens, d dim, v vocabulary, n texts.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pretraining.masking import IGNORED, Masks
from pretraining.model import Drawn, PretrainingModel
from pretraining.terms.bag_of_words import own_words, sentence_logits
from retrieval.processes import alone


def alignment(one: Tensor, other: Tensor, power: float = 2.0) -> float:
    """Mean of ‖x − y‖^α over n pairs that belong together, of unit vectors (n, d) and (n, d): 0 is best.

    Source: Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere" (ICML 2020, arXiv 2005.10242), section 4.1; α = 2 as there.
    """
    return float((one.double() - other.double()).norm(dim=1).pow(power).mean())


def uniformity(vectors: Tensor, temperature: float = 2.0) -> float:
    """Log of the mean of exp(−t ‖x − y‖²) over all pairs of n ≥ 2 unit vectors (n, d): lower is more even.

    From 0 (all the same) to about −2t (evenly on a sphere of many dimensions).

    Source: Wang and Isola 2020, section 4.1.2; t = 2 as there.
    """
    squares = torch.pdist(vectors.double()).square()
    return float(torch.logsumexp(-temperature * squares, 0) - math.log(len(squares)))


def effective_rank(vectors: Tensor, *, centred: bool = True) -> float:
    """In how many directions vectors (n, d) spread: exp of the entropy of the singular values' shares; 1 to min(n, d).

    Args:
        vectors: As they are or of unit length.
        centred: Take their mean away first, which says nothing about texts and hides the rest. The paper's rank is of
            the matrix as it is: give false.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality" (EUSIPCO 2007), definition 1.
    """
    exact = vectors.double()
    values = torch.linalg.svdvals(exact - exact.mean(0) if centred else exact)
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


def term_coverage(logits: Tensor, words: Tensor, k: int | None = None) -> float:
    """Share of a text's different terms that are among its k greatest logits, as mean over texts that have any.

    What Ma et al. 2024 ("Drop your Decoder", arXiv 2401.11248) explain the worth of pretraining for retrieval by.

    Args:
        logits: (b, v), of each text's sentence vector; -inf for what is no term.
        words: Which terms a text has, 1 or 0, (b, v).
        k: None: as many as the text has, so that 1 can be reached.
    """
    owned = words.bool()
    counts = owned.sum(1)  # (b,)
    if not bool(counts.any()):
        return 0.0
    most = int(counts.max()) if k is None else min(k, logits.shape[1])
    order = logits.topk(most, dim=1).indices  # (b, most)
    within = torch.arange(most, device=logits.device) < (counts[:, None] if k is None else most)
    found = (owned.gather(1, order) & within).sum(1)
    return float((found[counts > 0].double() / counts[counts > 0]).mean())


@torch.no_grad()
def sentence_coverage(model: PretrainingModel, batches: Iterable[Drawn], k: int | None = None) -> float:
    """`term_coverage` of the sentence vectors of whole texts, nothing masked, over all texts of some batches.

    Args:
        model: Has a vocabulary head.
        batches: The texts.
        k: As in `term_coverage`.
    """
    total, rows = 0.0, 0
    with evaluating(model):
        for drawn in batches:
            view = model.view(unmasked(drawn))
            words = own_words(view)
            some = int((words.sum(1) > 0).sum())
            total += some * term_coverage(sentence_logits(view).masked_fill(view.special, -torch.inf), words, k)
            rows += some
    return total / max(rows, 1)


@torch.no_grad()
def shuffle_gaps(model: PretrainingModel, batches: Sequence[Drawn]) -> dict[str, float]:
    """By how much each term's loss rises when texts are decoded from one another's vectors; as a mean over batches.

    Masks are the same, nothing is learned, and dropout is off. About 0 means that a decoder does without the vector,
    which then learns nothing from it. Terms without a bottleneck are left out.

    Args:
        model: What is pretrained.
        batches: Of at least two texts each, or four (two documents) where the objective takes two spans of each.
    """
    terms = {name: term for name, term in model.terms.items() if term.has_bottleneck}
    shift = 2 if model.objective.uses_pairs else 1  # the other span of the same document would be no stranger
    gaps = dict.fromkeys(terms, 0.0)
    with evaluating(model):
        for drawn in batches if terms else ():
            view = model.view(drawn)
            for name, term in terms.items():
                as_is, shuffled = (term(one, drawn.terms[name]) for one in (view, view.shuffled(shift)))
                gaps[name] += float(shuffled - as_is) / len(batches)
    return gaps


def unmasked(drawn: Drawn) -> Drawn:
    """The batch as the encoder meets it in use: nothing to guess."""
    ids = drawn.batch.ids
    return Drawn(drawn.batch, Masks(ids, torch.full_like(ids, IGNORED)), {})


def spread(queries: Tensor, answers: Tensor, texts: Tensor) -> dict[str, float]:
    """Alignment of queries (q, d) with their answers (q, d), uniformity and effective rank of texts (n, d)."""
    unit = [functional.normalize(one.double(), dim=1) for one in (queries, answers, texts)]
    values = {"alignment": alignment(unit[0], unit[1]), "effective_rank": effective_rank(unit[2])}
    return values | ({"uniformity": uniformity(unit[2])} if len(texts) > 1 else {})


@contextlib.contextmanager
def evaluating(model: PretrainingModel) -> Iterator[None]:
    """Compute without dropout and without other processes; afterwards the model is as it was."""
    training = model.training
    model.eval()
    try:
        with alone():
            yield
    finally:
        model.train(training)
