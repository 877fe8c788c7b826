"""Cross-encoders that are fine-tuned on queries together with their candidates, under their losses."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from retrieval import losses
from retrieval.bi_encoder import lists_of, tokens
from retrieval.candidate_lists import CandidateLists
from retrieval.gradient_cache import Outputs
from retrieval.processes import gathered_rows, of_whole_batch

if TYPE_CHECKING:
    from retrieval.example_rows import Drawn
    from retrieval.finetuning import FinetuneConfig

_PAIRS_AT_ONCE = 32


class PairEncoder(nn.Module):
    """A classifier of pairs with one score, under losses over the candidates of each query.

    Args:
        encoder: A CrossEncoder of sentence-transformers with one label.
        config: Losses, temperatures, lengths, prompts.
    """

    def __init__(self, encoder: Any, config: "FinetuneConfig") -> None:
        super().__init__()
        self.encoder = encoder
        self.settings = config
        self.own_length = encoder.max_seq_length
        self.step = 0
        encoder.max_seq_length = min(config.max_length or self.own_length, self.own_length)

    def forward(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The `scores` (n,) of a collated batch's pairs, before any activation."""
        return {"scores": self.encoder(dict(inputs["pairs"]))["scores"].float().squeeze(1)}

    def collate(self, rows: "Sequence[Drawn]") -> dict[str, Any]:
        """Tokens of a batch's pairs, and whose documents they are."""
        pairs = [(self.prompts(row.dataset)["query"] + row.query, text) for row in rows for text in row.texts]
        return {"pairs": tokens(self.encoder, pairs), **lists_of(rows)}

    def prompts(self, dataset: str) -> dict[str, str]:
        """What goes before a pair: the data set's own `query` prompt, or else what the model puts there itself."""
        own = (self.encoder.prompts or {}).get(self.encoder.default_prompt_name or "", "")
        return {"document": "", "query": self.settings.prompts.get(dataset, {}).get("query", own)}

    def losses(
        self, parts: Sequence[Outputs], inputs: Sequence[Mapping[str, Any]], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Losses over a batch that came in parts, and in every process; as those of `BiEncoder`."""
        lists = CandidateLists.join([CandidateLists.of_batch(dict(one)) for one in inputs]).of_all_processes()
        flat = gathered_rows(torch.cat([part["scores"] for part in parts]))  # (n,)
        scores, teacher = lists.lists(flat, 0.0), lists.lists(lists.teacher, float("nan")).to(flat)
        found = {name: self._loss(name, flat, scores, teacher, lists) for name in self.settings.losses}
        total = torch.stack([weight * found[name] for name, weight in self.settings.losses.items()]).sum()
        return {**found, "total": of_whole_batch(total)}

    def _loss(self, name: str, flat: Tensor, scores: Tensor, teacher: Tensor, lists: CandidateLists) -> Tensor:
        settings = self.settings
        if name == "binary":
            return losses.binary(flat, lists.places == 0)
        if name == "regression":
            return losses.score_regression(scores, teacher)
        if name == "margin-mse":
            return losses.margin_mse(scores, teacher, **settings.temperatures)
        if name == "kl":
            return losses.listwise_kl(scores, teacher, **settings.temperatures)
        first, allowed = torch.zeros_like(lists.query_keys), lists.present.clone()
        if settings.false_negative_margin is not None:
            judge = scores if settings.false_negatives_by == "student" else teacher
            allowed &= ~losses.false_negatives(judge, judge[:, 0], settings.false_negative_margin)
        allowed[:, 0] = True
        temperature = settings.temperatures["temperature"]
        return losses.info_nce(scores, first, allowed, temperature=temperature, focal=settings.focal)

    @torch.no_grad()
    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Scores (pairs,) without dropout, pairs of like length together."""
        training, device = self.encoder.training, next(self.encoder.parameters()).device
        self.encoder.eval()
        order = sorted(range(len(pairs)), key=lambda row: len(pairs[row][0]) + len(pairs[row][1]))
        found = []
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            read = tokens(self.encoder, [pairs[row] for row in order[start : start + _PAIRS_AT_ONCE]])
            # Not by `forward`, which Trainer may have replaced by one of less precision.
            moved = {name: value.to(device) for name, value in read.items()}
            found.append(self.encoder(moved)["scores"].float().squeeze(1))
        self.encoder.train(training)
        return torch.cat(found)[torch.tensor(order, device=device).argsort()]
