"""Telling tokens that were put in from those that were there, and guessing what was: bases for rerankers.

Sources: ELECTRA (Clark et al. 2020, arXiv 2003.10555); random token substitution, its clustered form and swapped
language modelling (Di Liello, Gabburo and Moschitti 2022, arXiv 2204.10515). For retrievers these are worse than masked
language modelling: 36.2 against 36.7 MRR@10 on MS MARCO, by SimLM's table 5 (arXiv 2207.02578); rerankers gain.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from indexes.errors import InputError
from pretraining.backbones import Backbone, activation_of
from pretraining.generator import Generator
from pretraining.heads import initialise
from pretraining.masking import IGNORED, Batch, MaskOptions, Masks, Vocabulary, draw_places
from pretraining.terms.term import Term, at_least_float32
from pretraining.view import EncoderView
from retrieval.processes import of_all_rows, summed

_FOR_RERANKERS = (
    "for bases of rerankers; retrievers do better with masked language modelling (arXiv 2207.02578, table 5)"
)
SOURCES = ("random", "generator", "cluster")


class Replaced(NamedTuple):
    """Texts with tokens replaced."""

    ids: Tensor
    """(b, t)"""
    places: Tensor
    """Where a replacement was drawn, which may be what was there, bool (b, t)."""


class ReplacedDetection(Term):
    """Each token is told to be the text's own or not, by cross-entropy over all of them: a pass of its own.

    Replacements are drawn uniformly (RTS), by a frozen generator (ELECTRA's, which trains it too), or from clusters of
    words that were mistaken before (C-RTS): each pair of clusters counts how often such a replacement passed, less
    how often it did not, and clusters are drawn by these counts, words of them uniformly.

    For bases of rerankers; retrievers do better without.

    Args:
        backbone: The encoder.
        source: `random`, `generator` or `cluster`.
        generator: For `generator`: a masked-language model with the same vocabulary.
        ratio: Share of tokens, specials included, that are replaced.
        clusters: For `cluster`: how many; of word embeddings, by k-means.
    """

    uses_head = False
    caution: ClassVar[str] = _FOR_RERANKERS

    def __init__(
        self,
        backbone: Backbone,
        *,
        source: str = "random",
        generator: str = "",
        ratio: float = 0.15,
        clusters: int = 100,
    ) -> None:
        super().__init__(backbone)
        if source not in SOURCES:
            raise InputError(f"source is {source!r}; expected {', '.join(SOURCES)}")
        if generator and source != "generator":
            raise InputError(f"source is {source!r}, which needs no generator; leave it out, or take source: generator")
        if source == "cluster" and not 2 <= clusters <= len(backbone.words):
            raise InputError(f"clusters is {clusters}; expected 2 to {len(backbone.words)}, the words there are")
        self.options, self.source = MaskOptions(ratio, "piece"), source
        self.generator = Generator(generator) if source == "generator" else None
        width = backbone.config.hidden_size
        self.dense, self.score = nn.Linear(width, width), nn.Linear(width, 1)
        self.activation = ACT2FN[activation_of(backbone.config)]
        initialise(self, backbone.config.initializer_range)
        if source == "cluster":
            self.cluster: Tensor
            self.passed: Tensor
            self.register_buffer("cluster", clusters_of(backbone.words, clusters))
            self.register_buffer("passed", torch.ones(clusters, clusters, dtype=torch.long))

    def draw(self, batch: Batch, masks: Masks, vocabulary: Vocabulary, generator: torch.Generator) -> Replaced:
        """Draw which tokens are replaced, and by what."""
        places = draw_places(Batch(batch.ids, batch.attention_mask, batch.words), self.options, generator)
        if self.generator:
            ids = self.generator.fill(batch.ids, batch.attention_mask, places, vocabulary, generator)
        elif self.source == "cluster":
            ids = self._from_clusters(batch.ids, places, generator)
        else:
            ids = random_tokens(batch.ids, places, vocabulary, generator)
        return Replaced(ids, places)

    def forward(self, view: EncoderView, drawn: Replaced) -> Tensor:
        """The loss, one number; while training with clusters it moves their counts on."""
        batch = view.batch
        hidden = view.backbone.run(drawn.ids, batch.attention_mask)[0]
        scores = at_least_float32(self.score(self.activation(self.dense(hidden)))[..., 0])  # (b, t)
        is_replaced = drawn.ids != batch.ids
        if self.source == "cluster" and self.training:
            self._count(batch.ids, drawn.ids, is_replaced & batch.content, scores.detach() > 0)
        scores, wanted = scores[batch.content], is_replaced[batch.content]
        loss = functional.binary_cross_entropy_with_logits(scores, wanted.to(scores.dtype), reduction="sum")
        return of_all_rows(loss / max(len(scores), 1), len(scores))

    def _from_clusters(self, ids: Tensor, places: Tensor, generator: torch.Generator) -> Tensor:
        chances = self.passed.double()[self.cluster[ids[places]]]  # (n, clusters)
        chosen = torch.multinomial(chances, 1, generator=generator)[:, 0]  # (n,)
        order = self.cluster.argsort(stable=True)
        sizes = self.cluster.bincount(minlength=len(self.passed))
        first = sizes.cumsum(0) - sizes
        share = torch.rand(len(chosen), generator=generator, device=ids.device, dtype=torch.float64)
        found = ids.clone()
        found[places] = order[first[chosen] + (share * sizes[chosen]).long()]
        return found

    @torch.no_grad()
    def _count(self, ids: Tensor, replaced: Tensor, places: Tensor, told: Tensor) -> None:
        pairs = self.cluster[ids[places]] * len(self.passed) + self.cluster[replaced[places]]
        change = torch.where(told[places], -1, 1)
        changes = summed(torch.zeros_like(self.passed).view(-1).index_add(0, pairs, change))
        self.passed.copy_((self.passed + changes.view_as(self.passed)).clamp(min=1))


class SwappedLM(Term):
    """What was at the places where tokens were replaced by random ones is guessed: a pass of its own, without [MASK].

    Mean cross-entropy at those places. For bases of rerankers; retrievers do better with masks.

    Args:
        backbone: The encoder.
        ratio: Share of tokens, specials included, that are replaced, by whole words.
    """

    caution: ClassVar[str] = _FOR_RERANKERS

    def __init__(self, backbone: Backbone, *, ratio: float = 0.15) -> None:
        super().__init__(backbone)
        self.options = MaskOptions(ratio)

    def draw(self, batch: Batch, masks: Masks, vocabulary: Vocabulary, generator: torch.Generator) -> Masks:
        """Draw which tokens are replaced, and by what."""
        places = draw_places(Batch(batch.ids, batch.attention_mask, batch.words), self.options, generator)
        ids = random_tokens(batch.ids, places, vocabulary, generator)
        return Masks(ids, torch.where(places, batch.ids, IGNORED))

    def forward(self, view: EncoderView, drawn: Masks) -> Tensor:
        """The loss, one number."""
        hidden = view.backbone.run(drawn.masked_ids, view.batch.attention_mask)[0]
        wanted = drawn.labels != IGNORED
        return view.head.loss(hidden[wanted], drawn.labels[wanted], view.backbone.words)


def random_tokens(ids: Tensor, places: Tensor, vocabulary: Vocabulary, generator: torch.Generator) -> Tensor:
    """Ids (b, t) with those at places (b, t) drawn uniformly from all ids."""
    drawn = torch.randint(vocabulary.size, ids.shape, generator=generator, device=ids.device)
    return torch.where(places, drawn, ids)


def clusters_of(words: Tensor, count: int) -> Tensor:
    """The cluster of each word, int64 (v,), by k-means of its embedding; none is empty."""
    from sklearn.cluster import MiniBatchKMeans

    vectors = words.detach().float().cpu().numpy()
    found = torch.from_numpy(MiniBatchKMeans(count, random_state=0, n_init=1).fit_predict(vectors)).long()
    for empty in (found.bincount(minlength=count) == 0).nonzero()[:, 0]:
        largest = found.bincount(minlength=count).argmax()
        found[(found == largest).nonzero()[0, 0]] = empty
    return found
