"""Losses of fine-tuning as functions of scores and vectors: contrast, distillation, regression, alignment.

Shapes: q queries, n documents, c candidates of one query (the positive first), d dim, v vocabulary. Scores are as the
model gives them; each loss has its temperature.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

_LEAST = 1e-12


def info_nce(
    scores: Tensor, positives: Tensor, allowed: Tensor | None = None, *, temperature: float, focal: float = 0.0
) -> Tensor:
    """The contrastive loss: mean of -(1 - p)^focal log p, p the softmax of the positive among all that is allowed.

    Columns are whatever is contrasted: documents of the batch, hard negatives, mixed ones, other queries.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding" (arXiv:1807.03748), eq. 4;
    the focal weight is that of KaLM-Embedding-V2 (arXiv:2506.20923), after Lin et al., "Focal Loss" (ICCV 2017), and
    like there the gradient goes through it.

    Args:
        scores: (q, n).
        positives: (q,) the column of each query's positive.
        allowed: bool (q, n), True at the positives: what else the softmax has; None: everything.
        temperature: Above 0.
        focal: The exponent, 0 or more: the greater, the less queries count that are right already.
    """
    logits = scores / temperature
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -float("inf"))
    log_p = logits.log_softmax(1).gather(1, positives[:, None]).squeeze(1)  # (q,)
    return -(focal_weights(log_p, focal) * log_p).mean()


def focal_weights(log_p: Tensor, exponent: float) -> Tensor:
    """(1 - p)^exponent of log-probabilities, of any shape."""
    if exponent == 0:
        return torch.ones_like(log_p)
    # At p = 1 the derivative of the root is infinite, and of its product with log p it is 0.
    return (-torch.expm1(log_p)).clamp(min=_LEAST) ** exponent


def false_negatives(scores: Tensor, of_positives: Tensor, margin: float) -> Tensor:
    """What scores above a query's positive by more than a margin, and so may answer it too: bool (q, n).

    Source: Qwen3 Embedding (arXiv:2506.05176), eq. 2: the student's scores, margin 0.1; GISTEmbed (arXiv:2402.16829): a
    guide's scores, margin 0.

    Args:
        scores: (q, n), of the student or of a teacher; NaN is no false negative. No gradient goes through them.
        of_positives: (q,) the scores of the positives.
        margin: Added to the positive's score.
    """
    return scores.detach() > of_positives.detach()[:, None] + margin


def mixed_negatives(one: Tensor, other: Tensor, share: Tensor, *, unit: bool = True) -> Tensor:
    """Synthetic hard negatives, share · one + (1 - share) · other: (q, m, d), of unit length if `unit`.

    Source: KaLM-Embedding-V2 (arXiv:2506.20923), online hard-negative mixing, with shares by Beta(2, 2).

    Args:
        one: (q, m, d) vectors of hard negatives.
        other: (q, m, d) vectors of other hard negatives of the same query.
        share: (q, m) between 0 and 1.
        unit: Whether scores are cosines.
    """
    mixed = share[..., None] * one + (1 - share[..., None]) * other
    return torch.nn.functional.normalize(mixed, dim=-1) if unit else mixed


def beta_2_2(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers drawn by Beta(2, 2), on the CPU: the middle one of three uniform ones is distributed so."""
    return torch.rand(*shape, 3, generator=generator).median(-1).values


def margin_mse(scores: Tensor, teacher: Tensor, *, temperature: float, teacher_temperature: float = 1.0) -> Tensor:
    """Mean squared difference between the student's margins, positive minus negative, and the teacher's.

    Source: Hofstätter et al., "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
    Distillation" (arXiv:2010.02666), eq. 7.

    Args:
        scores: (q, c) of the student, the positive first.
        teacher: (q, c); NaN where there is no candidate or no score.
        temperature: The student's scores are divided by it: cosines have no margins as wide as a cross-encoder's.
        teacher_temperature: The teacher's are divided by it.
    """
    known = (teacher.isfinite() & teacher[:, :1].isfinite())[:, 1:]
    margins = (scores[:, :1] - scores[:, 1:]) / temperature
    wanted = (teacher[:, :1] - teacher[:, 1:]) / teacher_temperature
    return mean_of((margins - wanted.where(known, margins.detach())) ** 2, known)


def listwise_kl(scores: Tensor, teacher: Tensor, *, temperature: float, teacher_temperature: float = 1.0) -> Tensor:
    """Mean over queries of KL(teacher ‖ student), both softmaxes over the candidates that the teacher scored.

    Queries with fewer than two of them say nothing and do not count.

    Source: Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach" (ICML 2007), and Reddi et al.,
    "RankDistil" (AISTATS 2021), of a teacher's scores; BGE's cross-entropy is the same but for a constant.

    Args:
        scores: (q, c) of the student.
        teacher: (q, c); NaN where there is no candidate or no score.
        temperature: Of the student's softmax.
        teacher_temperature: Of the teacher's.
    """
    known = teacher.isfinite()
    lists = known.sum(1) > 1
    known = known | ~lists[:, None]  # so that no row is without numbers; those rows are left out below
    logits = (teacher.nan_to_num(0.0) / teacher_temperature).masked_fill(~known, -float("inf"))
    wanted = logits.log_softmax(1)
    found = (scores / temperature).masked_fill(~known, -float("inf")).log_softmax(1)
    distance = (wanted.exp() * (wanted - found).masked_fill(~known, 0.0)).sum(1)  # (q,)
    return mean_of(distance, lists)


def score_regression(scores: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference between scores of pairs and those wanted: graded ones, or a cross-encoder's.

    Args:
        scores: Of pairs, of any shape.
        wanted: Of the same; NaN where nothing is.

    Source: Barkan et al., "Scalable Attentive Sentence-Pair Modeling via Distilled Sentence Embedding" (AAAI 2020).
    """
    known = wanted.isfinite()
    return mean_of((scores - wanted.where(known, scores.detach())) ** 2, known)


def orthogonal_projection(cosines: Tensor, present: Tensor, *, weight: float = 1.0) -> Tensor:
    """Mean of 1 - cosine of positives, plus weight · mean of |cosine| of negatives: it works at batch size 1.

    Source: Ranasinghe et al., "Orthogonal Projection Loss" (ICCV 2021), eq. 5 with the sign of negatives left out;
    used for long-context retrievers by M2-BERT (arXiv:2402.07440).

    Args:
        cosines: (q, c), the positive first.
        present: bool (q, c), where there is a candidate.
        weight: γ.
    """
    return (1 - cosines[:, 0]).mean() + weight * mean_of(cosines[:, 1:].abs(), present[:, 1:])


def alignment(source: Tensor, translation: Tensor, start: Tensor) -> Tensor:
    """Mean squared distance of a text's vector and of its translation's from what the text's was at the start.

    Source: Reimers & Gurevych, "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation"
    (EMNLP 2020), eq. 1; IndicSBERT (arXiv:2304.11434) aligns languages so.

    Args:
        source: (q, d) of the student.
        translation: (q, d) of the student.
        start: (q, d) of the frozen model for the source.
    """
    return ((source - start) ** 2 + (translation - start) ** 2).sum(1).mean()


def binary(logits: Tensor, relevant: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits (n,), by whether they are of positives: bool (n,).

    Source: Nogueira & Cho, "Passage Re-ranking with BERT" (arXiv:1901.04085), eq. 1.
    """
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, relevant.to(logits.dtype))


def flops(weights: Tensor) -> Tensor:
    """The sum over terms of the squared mean weight of texts (n, v): how many products a search has to make.

    Source: Paria et al., "Minimizing FLOPs to Learn Efficient Sparse Representations" (ICLR 2020), eq. 4, as in SPLADE
    (arXiv:2109.10086).
    """
    return (weights.abs().mean(0) ** 2).sum()


def quadratic_ramp(step: int, steps: int) -> float:
    """The share of a regularisation's weight at a step, (step / steps)², 1 from there on.

    Source: Formal et al., "SPLADE" (SIGIR 2021), section 4.
    """
    return min(1.0, (step + 1) / max(steps, 1)) ** 2


def matryoshka(
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    vectors: Mapping[str, Tensor],
    dims: Mapping[int | None, float],
    *,
    unit: bool = True,
) -> Tensor:
    """The weighted sum of a loss over vectors cut to their first numbers, then of unit length again.

    Source: Kusupati et al., "Matryoshka Representation Learning" (arXiv:2205.13147), eq. 1.

    Args:
        loss: Of vectors by name.
        vectors: (rows, d) each.
        dims: How many numbers are kept (None: all), to the weight of the loss over them.
        unit: Whether scores are cosines.
    """
    parts = []
    for dim, weight in dims.items():
        parts.append(weight * loss({name: cut(one, dim, unit=unit) for name, one in vectors.items()}))
    return torch.stack(parts).sum()


def cut(vectors: Tensor, dim: int | None, *, unit: bool) -> Tensor:
    """The first numbers of vectors (rows, d), None: all, scaled to unit length if `unit`."""
    kept = vectors[:, :dim]
    return torch.nn.functional.normalize(kept, dim=1) if unit else kept


def mean_of(values: Tensor, counted: Tensor) -> Tensor:
    """The mean of the values that are counted, bool of the same shape; 0 if there are none."""
    return values.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)
