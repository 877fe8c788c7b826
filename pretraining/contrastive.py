"""Contrastive training on pairs: sentence-transformers' loss, an objective beside it, and the best checkpoint."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainerCallback

from indexes.errors import InputError
from indexes.manifest import new_folder, read_json, seal, write_json
from pretraining.adaptation import AdaptConfig, HeldOut
from pretraining.base import load_heads, save_heads
from pretraining.loop import arguments_of
from pretraining.model import PretrainingModel
from retrieval.loading import quiet
from retrieval.model_folder import read_model_folder, resolve
from retrieval.orders import EpochOrder
from retrieval.pairs import Pair
from retrieval.run_card import CARD, KIND, LOG, package_versions
from retrieval.trainer import ResumableTrainer, back_to_checkpoint, unique_state

_BATCHES_WAITING = 16
_BEST, _CHECKS, _CHECKPOINTS = "best.safetensors", "checks.json", "checkpoints"

OnNote = Callable[[str], None]
OnProgress = Callable[[int, int | None], None]


def train(
    pairs: Sequence[Pair],
    held_out: HeldOut,
    config: AdaptConfig,
    partial: Path,
    target: Path,
    card: dict[str, Any],
    *,
    overwrite: bool,
    on_progress: OnProgress | None,
    on_note: OnNote,
) -> None:
    """Train, keep the checkpoint that ranks the held-out queries best, and publish it; arguments as in `adapt`."""
    folder = resolve(config.encoder)
    model = Adaptation(load_sentence_transformer(folder), config)
    if model.auxiliary is not None:
        load_heads(model.auxiliary, folder)
        if model.auxiliary.untrained_heads:
            on_note(f"{config.encoder} has no {' and no '.join(model.auxiliary.untrained_heads)}: they start untrained")
    selection = Selection(model, held_out, partial, config.check_steps, on_note)
    args = arguments_of(config, partial / _CHECKPOINTS, save_steps=config.check_steps)
    step, newest = back_to_checkpoint(partial / _CHECKPOINTS, partial / LOG)
    if newest:
        on_note(f"going on from step {step:,} of {config.steps:,}")
    else:
        selection.check(0)
    with quiet():
        trainer = PairTrainer(model, args, Pairs(pairs), model.collate, partial / LOG, on_progress)
        trainer.add_callback(selection)
        trainer.to_the_end(newest)
    if config.steps not in selection.checks:
        selection.check(config.steps)
    _publish(model, selection, folder, target, card, partial / LOG, overwrite=overwrite)


class Adaptation(nn.Module):
    """An encoder under a contrastive loss, and a pretraining objective over the same weights.

    Args:
        encoder: A SentenceTransformer.
        config: Temperature, objective, lengths.
    """

    def __init__(self, encoder: Any, config: AdaptConfig) -> None:
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        super().__init__()
        self.encoder = encoder
        self.settings = config  # Trainer takes an attribute `config` for a transformers one
        self.own_length = encoder.max_seq_length
        encoder.max_seq_length = min(config.max_length, self.own_length)
        self.contrastive = MultipleNegativesRankingLoss(encoder, scale=1 / config.temperature)
        self.auxiliary: PretrainingModel | None = None
        if config.objective is not None:
            torch.manual_seed(config.seed)  # of the heads that start untrained
            pooling = encoder[1].pooling_mode
            self.auxiliary = PretrainingModel(
                encoder[0].auto_model, encoder.tokenizer, config.objective, pooling=pooling
            )

    def forward(self, inputs: dict[str, dict[str, Tensor]], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of a batch of pairs: `total`, `contrastive`, and the objective's terms before its weight.

        Args:
            inputs: `queries` and `documents`, each with ids and attention mask (b, t).
            generator: For the objective's masks.
        """
        columns = [dict(inputs[name]) for name in ("queries", "documents")]
        losses = {"contrastive": self.contrastive(columns, torch.empty(0))}
        losses["total"] = losses["contrastive"]
        if self.auxiliary is not None:
            ids, mask = (
                inputs["documents"][name][: self.settings.objective_texts] for name in ("input_ids", "attention_mask")
            )
            width = int(mask.sum(1).max())
            terms = self.auxiliary.loss(ids[:, :width], mask[:, :width], generator=generator)
            losses["total"] = losses["contrastive"] + self.settings.objective_weight * terms.pop("total")
            losses |= terms
        return losses

    def collate(self, pairs: Sequence[Pair]) -> dict[str, dict[str, Tensor]]:
        """Tokens of a batch of pairs, each side after its prompt."""
        prompts = self.encoder.prompts
        return {
            "queries": self._tokens([prompts["query"] + pair.query for pair in pairs]),
            "documents": self._tokens([prompts["document"] + pair.text for pair in pairs]),
        }

    def _tokens(self, texts: list[str]) -> dict[str, Tensor]:
        length = self.encoder.max_seq_length
        return dict(
            self.encoder.tokenizer(texts, truncation=True, max_length=length, padding=True, return_tensors="pt")
        )


class Pairs(Dataset[Pair]):
    """Pairs by number."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> Pair:
        return self.pairs[number]


class DistinctOrder(EpochOrder):
    """The order of `EpochOrder`, but no batch holds two pairs of one document: they would be each other's negatives.

    A pair whose document is in the batch already waits for a later one, as long as not too many wait.

    Raises:
        InputError: There are fewer documents than a batch holds.
    """

    def __init__(self, pairs: Sequence[Pair], total: int, seed: int, batch_size: int) -> None:
        super().__init__(len(pairs), total, seed)
        self.documents = [pair.document for pair in pairs]
        self.batch_size = batch_size
        distinct = len(set(self.documents))
        if distinct < batch_size:
            raise InputError(
                f"{distinct} documents have a pair; a batch needs {batch_size}: take a smaller --batch-size"
            )

    def __iter__(self) -> Iterator[int]:
        """Yield the rows of whole batches, as many as the run reads."""
        waiting: deque[int] = deque()
        stream = self._endless()
        for _ in range(math.ceil(self.total / self.batch_size)):
            batch: dict[str, int] = {}
            for row in [waiting.popleft() for _ in range(len(waiting))]:
                self._place(row, batch, waiting)
            while len(batch) < self.batch_size:
                self._place(next(stream), batch, waiting)
            yield from batch.values()

    def _endless(self) -> Iterator[int]:
        for epoch in itertools.count():
            yield from self.epoch(epoch)

    def _place(self, row: int, batch: dict[str, int], waiting: deque[int]) -> None:
        if len(batch) < self.batch_size and self.documents[row] not in batch:
            batch[self.documents[row]] = row
        elif len(waiting) < _BATCHES_WAITING * self.batch_size:
            waiting.append(row)


class PairTrainer(ResumableTrainer):
    """The resumable loop over pairs."""

    def _get_train_sampler(self, train_dataset: Any = None) -> DistinctOrder:
        return DistinctOrder(self.train_dataset.pairs, self.rows_of_run(), self.args.seed, self.args.train_batch_size)


class Selection(TrainerCallback):
    """Ranks the held-out queries every so often and keeps the weights that do it best.

    Attributes:
        checks: Step to held-out nDCG@10.
    """

    def __init__(self, model: Adaptation, held_out: HeldOut, folder: Path, every: int, on_note: OnNote) -> None:
        self.model, self.held_out, self.folder, self.every, self.on_note = model, held_out, folder, every, on_note
        written = read_json(folder / _CHECKS) if (folder / _CHECKS).is_file() else {}
        self.checks: dict[int, float] = {int(step): value for step, value in written.items()}

    @property
    def best(self) -> int:
        """The step that ranked best; of equals the earliest."""
        return max(self.checks, key=lambda step: (self.checks[step], -step))

    def check(self, step: int) -> None:
        """Rank the held-out queries with the weights as they are."""
        self.checks[step] = round(held_out_ndcg(self.model.encoder, self.held_out), 9)
        if self.best == step:
            temporary = self.folder / f".{_BEST}"
            save_file({name: value.contiguous() for name, value in unique_state(self.model).items()}, temporary)
            temporary.replace(self.folder / _BEST)
        write_json(self.folder / _CHECKS, self.checks)
        self.on_note(f"step {step:,}: held-out nDCG@10 {self.checks[step]:.4f}{' (best)' if self.best == step else ''}")

    def load_best(self) -> None:
        """Put the best weights back into the model."""
        weights = load_file(self.folder / _BEST)
        for name, value in unique_state(self.model).items():
            value.copy_(weights[name])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check after every so many steps, before the checkpoint of that step is written."""
        if state.global_step % self.every == 0 and args.should_save:
            self.check(state.global_step)


@torch.no_grad()
def held_out_ndcg(encoder: Any, held_out: HeldOut) -> float:
    """Mean nDCG@10 of ranking each query's one document among all texts: 1 / log2(1 + rank), 0 below rank 10."""
    training = encoder.training
    options = {"batch_size": 64, "convert_to_tensor": True, "normalize_embeddings": True, "show_progress_bar": False}
    queries = encoder.encode_query(held_out.queries, **options)  # (q, d)
    texts = encoder.encode_document(held_out.texts, **options)  # (n, d)
    encoder.train(training)
    scores = queries @ texts.T  # (q, n)
    ranks = 1 + (scores > scores.diagonal()[:, None]).sum(1)  # (q,)
    return float(torch.where(ranks <= 10, 1 / torch.log2(1.0 + ranks), 0.0).mean())


def load_sentence_transformer(folder: Path) -> Any:
    """Load a model folder for training.

    Raises:
        InputError: retrokit cannot encode with it, or it does not pool by cls or mean.
    """
    from sentence_transformers import SentenceTransformer

    settings = read_model_folder(folder)
    if settings.pooling not in ("cls", "mean"):
        raise InputError(f"{folder} pools by {settings.pooling}; adaptation supports cls and mean")
    with quiet():
        return SentenceTransformer(str(folder), prompts=settings.prompts)


def _publish(
    model: Adaptation,
    selection: Selection,
    base: Path,
    target: Path,
    card: dict[str, Any],
    log: Path,
    *,
    overwrite: bool,
) -> None:
    selection.load_best()
    model.encoder.max_seq_length = model.own_length
    with new_folder(target, overwrite=overwrite) as new:
        with quiet():
            model.encoder.save_pretrained(str(new), create_model_card=False)
        if model.auxiliary is not None:
            save_heads(model.auxiliary, new)
        (new / LOG).write_bytes(log.read_bytes())
        checks = {str(step): value for step, value in selection.checks.items()}
        chosen = {"checks": checks, "chosen": selection.best, "base": str(base)}
        write_json(new / CARD, {**card, **chosen, "packages": package_versions()})
        seal(new, KIND, {})
