"""Encoders that are fine-tuned on queries and documents apart, dense ones and sparse ones, under their losses."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from retrieval import losses
from retrieval.candidate_lists import CandidateLists, text_key
from retrieval.gradient_cache import Outputs
from retrieval.processes import gathered_rows, of_whole_batch

if TYPE_CHECKING:
    from retrieval.example_rows import Drawn
    from retrieval.finetuning import FinetuneConfig

_TEXTS_AT_ONCE = 64


class _Mixing(NamedTuple):
    """What online hard-negative mixing draws for a batch, the same for all dimensions of a Matryoshka loss."""

    noise: Tensor
    """(q, m, c) which two of a query's negatives are mixed: those of the greatest numbers."""
    shares: Tensor
    """(q, m)"""


class BiEncoder(nn.Module):
    """An encoder of queries and documents under its losses, which see the vectors of a whole batch.

    Args:
        encoder: A SentenceTransformer, or a SparseEncoder of the same library.
        config: Losses, temperatures, lengths, prompts.
        unit: Whether scores are cosines; else they are inner products.
        start: A frozen copy of the encoder as it came, which `alignment` needs.
    """

    def __init__(self, encoder: Any, config: "FinetuneConfig", *, unit: bool, start: Any = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.settings = config  # Trainer takes an attribute `config` for a transformers one
        self.unit = unit
        self.own_length = encoder.max_seq_length
        self.step = 0
        encoder.max_seq_length = min(config.max_length or self.own_length, self.own_length)
        self._start = [start]  # not a part of this module: it is neither trained nor saved

    def forward(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Vectors of a collated batch: `queries` (q, d), `documents` (n, d), and `start` (q, d) where it is needed."""
        outputs = {name: _vectors(self.encoder, inputs[name]) for name in ("queries", "documents")}
        (start,) = self._start
        if start is not None:
            start.to(outputs["queries"].device)
            with torch.no_grad():
                outputs["start"] = _vectors(start, inputs["queries"])
        return outputs

    def collate(self, rows: "Sequence[Drawn]") -> dict[str, Any]:
        """Tokens of a batch's queries and documents, each after its prompt, and whose documents they are."""
        queries, texts = [], []
        for row in rows:
            prompts = self.prompts(row.dataset)
            queries.append(prompts["query"] + row.query)
            texts += [prompts["document"] + text for text in row.texts]
        return {
            "queries": tokens(self.encoder, queries),
            "documents": tokens(self.encoder, texts),
            **lists_of(rows),
        }

    def prompts(self, dataset: str) -> dict[str, str]:
        """What goes before queries and documents of a data set: its own prompts, or else the encoder's."""
        own = self.encoder.prompts or {}
        return {"query": "", "document": "", **own, **self.settings.prompts.get(dataset, {})}

    def losses(
        self, parts: Sequence[Outputs], inputs: Sequence[Mapping[str, Any]], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Losses over a batch that came in parts, and in every process: `total` and each one before its weight.

        Args:
            parts: What `forward` gave for each part.
            inputs: The parts as collated.
            generator: On the CPU, of what is drawn for the whole batch: the same in all processes.
        """
        lists = CandidateLists.join([CandidateLists.of_batch(dict(one)) for one in inputs]).of_all_processes()
        vectors = {name: gathered_rows(torch.cat([part[name] for part in parts])) for name in parts[0]}
        mixing = self._draw(lists, generator)
        dims: dict[int | None, float] = dict(self.settings.matryoshka_dims.items()) or {None: 1.0}
        found = {}
        for name in self.settings.losses:
            term = getattr(self, f"_{name.replace('-', '_')}")

            def of_vectors(cut: Mapping[str, Tensor], term: Any = term) -> Tensor:
                return term(cut, lists, mixing)

            found[name] = losses.matryoshka(of_vectors, vectors, dims, unit=self.unit)
        total = torch.stack([weight * found[name] for name, weight in self.settings.losses.items()]).sum()
        if self.settings.kind == "sparse":
            found["flops"] = self._flops(vectors)
            total = total + found["flops"]
        return {**found, "total": of_whole_batch(total)}

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors (texts, d) of texts with their prompts, in float32, as they are compared."""
        return losses.cut(encoded(self.encoder, texts), None, unit=self.unit)

    @torch.no_grad()
    def encode_at_start(self, texts: Sequence[str]) -> Tensor:
        """The same by the encoder as it came."""
        start = self._start[0].to(next(self.encoder.parameters()).device)
        return losses.cut(encoded(start, texts), None, unit=self.unit)

    def _infonce(self, vectors: Mapping[str, Tensor], lists: CandidateLists, mixing: _Mixing | None) -> Tensor:
        settings = self.settings
        queries, documents, positives = vectors["queries"], vectors["documents"], lists.positives
        scores = queries @ documents.T  # (q, n)
        of_positives = scores.gather(1, positives[:, None]).squeeze(1)
        answers_both = ~lists.negatives()
        allowed = ~answers_both & ~self._too_good(scores, of_positives, lists)
        columns, masks = [scores], [allowed.scatter(1, positives[:, None], True)]
        if mixing is not None:
            mixed, there = self._mixed(documents, allowed, lists, mixing)
            columns.append(torch.einsum("qd,qmd->qm", queries, mixed))
            masks.append(there)
        alike = answers_both[:, positives]  # (q, q) queries with an answer in common, oneself among them
        own = documents[positives]
        for name, more in (("qq", queries @ queries.T), ("dd", own @ own.T)):
            if name in settings.extra_negatives:
                columns.append(more)
                masks.append(~alike & ~alike.T & ~self._too_good(more, of_positives))
        return losses.info_nce(
            torch.cat(columns, 1),
            positives,
            torch.cat(masks, 1),
            temperature=settings.temperatures["temperature"],
            focal=settings.focal,
        )

    def _too_good(self, scores: Tensor, of_positives: Tensor, lists: CandidateLists | None = None) -> Tensor:
        """Which negatives are taken for false ones: by the student, or, where it scored them, by the teacher."""
        margin = self.settings.false_negative_margin
        if margin is not None and self.settings.false_negatives_by == "student":
            return losses.false_negatives(scores, of_positives, margin)
        if margin is not None and lists is not None:
            rows = torch.arange(len(lists.owners), device=scores.device)
            teacher = torch.full_like(scores, float("nan")).index_put((lists.owners, rows), lists.teacher.to(scores))
            return losses.false_negatives(teacher, lists.teacher[lists.positives].to(scores), margin)
        return torch.zeros_like(scores, dtype=torch.bool)

    def _mixed(
        self, documents: Tensor, allowed: Tensor, lists: CandidateLists, mixing: _Mixing
    ) -> tuple[Tensor, Tensor]:
        """Mixed negatives (q, m, d), and where there are any: bool (q, m)."""
        rows = torch.arange(len(documents), device=documents.device)
        row_of = lists.lists(rows, 0)  # (q, c)
        usable = lists.lists(allowed[lists.owners, rows].to(torch.int32), 0) > 0
        usable = torch.cat([torch.zeros_like(usable[:, :1]), usable[:, 1:]], 1)  # not the positive
        noise = mixing.noise.to(documents.device).masked_fill(~usable[:, None], -1.0)
        best = noise.topk(2, dim=-1).indices  # (q, m, 2)
        pair = row_of[:, None].expand(noise.shape).gather(2, best)  # (q, m, 2)
        mixed = losses.mixed_negatives(
            documents[pair[..., 0]], documents[pair[..., 1]], mixing.shares.to(documents), unit=self.unit
        )
        return mixed, (usable.sum(1) > 1)[:, None].expand(pair.shape[:2])

    def _draw(self, lists: CandidateLists, generator: torch.Generator) -> _Mixing | None:
        width = int(lists.places.max()) + 1
        if not self.settings.mix or width < 3:
            return None
        shape = (len(lists.query_keys), self.settings.mix)
        noise, shares = torch.rand(*shape, width, generator=generator), losses.beta_2_2(shape, generator)
        # By texts, not by places in the batch, which processes and parts arrange otherwise.
        texts = (lists.query_keys ^ lists.keys[lists.positives]).cpu()
        order = texts.argsort(stable=True).argsort(stable=True)
        return _Mixing(noise[order], shares[order])

    def _margin_mse(self, vectors: Mapping[str, Tensor], lists: CandidateLists, mixing: _Mixing | None) -> Tensor:
        scores, teacher = self._lists(vectors, lists)
        return losses.margin_mse(scores, teacher, **self.settings.temperatures)

    def _kl(self, vectors: Mapping[str, Tensor], lists: CandidateLists, mixing: _Mixing | None) -> Tensor:
        scores, teacher = self._lists(vectors, lists)
        return losses.listwise_kl(scores, teacher, **self.settings.temperatures)

    def _lists(self, vectors: Mapping[str, Tensor], lists: CandidateLists) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's scores of each query's own candidates, (q, c)."""
        scores = lists.own(vectors["queries"] @ vectors["documents"].T)
        return scores, lists.lists(lists.teacher, float("nan")).to(scores)

    def _opl(self, vectors: Mapping[str, Tensor], lists: CandidateLists, mixing: _Mixing | None) -> Tensor:
        queries, documents = (losses.cut(vectors[name], None, unit=True) for name in ("queries", "documents"))
        return losses.orthogonal_projection(lists.own(queries @ documents.T), lists.present)

    def _regression(self, vectors: Mapping[str, Tensor], lists: CandidateLists, mixing: _Mixing | None) -> Tensor:
        return losses.score_regression(*self._lists(vectors, lists))

    def _alignment(self, vectors: Mapping[str, Tensor], lists: CandidateLists, mixing: _Mixing | None) -> Tensor:
        return losses.alignment(vectors["queries"], vectors["documents"][lists.positives], vectors["start"])

    def _flops(self, vectors: Mapping[str, Tensor]) -> Tensor:
        settings = self.settings
        of_queries, of_documents = (losses.flops(vectors[name]) for name in ("queries", "documents"))
        ramp = losses.quadratic_ramp(self.step, settings.flops_steps or 1)
        return ramp * ((settings.query_flops or 0.0) * of_queries + (settings.document_flops or 0.0) * of_documents)


def tokens(encoder: Any, texts: Sequence[Any]) -> dict[str, Tensor]:
    """What an encoder of sentence-transformers reads of texts, or of pairs of them."""
    return {name: value for name, value in encoder.preprocess(list(texts)).items() if torch.is_tensor(value)}


def encoded(encoder: Any, texts: Sequence[str]) -> Tensor:
    """Vectors (texts, d) without gradients or dropout, texts of like length together."""
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    found = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        read = tokens(encoder, [texts[row] for row in order[start : start + _TEXTS_AT_ONCE]])
        found.append(_vectors(encoder, {name: value.to(device) for name, value in read.items()}))
    encoder.train(training)
    back = torch.tensor(order, device=device).argsort()
    return torch.cat(found)[back]


def _vectors(encoder: Any, read: Mapping[str, Tensor]) -> Tensor:
    return encoder(dict(read))["sentence_embedding"].float()


def lists_of(rows: "Sequence[Drawn]") -> dict[str, Tensor]:
    """The tensors of `CandidateLists` of a batch."""
    places = [(owner, place) for owner, row in enumerate(rows) for place in range(len(row.texts))]
    known = [(owner, text_key(text)) for owner, row in enumerate(rows) for text in row.known]
    return {
        "query_keys": torch.tensor([text_key(row.query) for row in rows]),
        "owners": torch.tensor([owner for owner, _ in places]),
        "places": torch.tensor([place for _, place in places]),
        "teacher": torch.tensor([score for row in rows for score in row.scores], dtype=torch.float32),
        "keys": torch.tensor([text_key(text) for row in rows for text in row.texts]),
        "known_owners": torch.tensor([owner for owner, _ in known]),
        "known_keys": torch.tensor([key for _, key in known]),
    }
