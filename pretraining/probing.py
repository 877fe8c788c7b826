"""A run's probe: what a short contrastive training makes of a copy of the encoder, and what its vectors are like."""

import hashlib
import heapq
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from indexes.errors import InputError
from pretraining.adaptation import AdaptConfig, HeldOut, hold_out
from pretraining.base import Base
from pretraining.contrastive import Adaptation, DistinctOrder, held_out_ndcg, load_sentence_transformer
from pretraining.masking import seed_of, seeded
from pretraining.model import Drawn
from pretraining.model_folder import save_encoder
from pretraining.probes import sentence_coverage, shuffle_gaps, spread
from pretraining.samplers import USUAL, sample_pairs
from pretraining.tokens import Collator, Rows, SpanPairs
from retrieval.documents import Document
from retrieval.loading import quiet
from retrieval.pairs import Pair

NDCG = "probe/ndcg@10"
"""The number that says which probe is the best."""
KEEP = ("last", "best")

_DOCUMENTS, _CHARACTERS, _HELD_OUT = 2000, 4000, 200
_LEAST_DOCUMENTS = 10
_BATCH, _MAX_LENGTH, _LEARNING_RATE, _MAX_NORM = 32, 128, 1e-4, 1.0
_TEXTS, _TEXTS_AT_ONCE = 64, 32


@dataclass(frozen=True)
class ProbeOptions:
    """When a run is probed, and what follows from it.

    Attributes:
        every: Steps between two probes, of which one is before the first step and one after the last; 0: none.
        updates: Steps of the contrastive training of the copy.
        keep: Which weights come out: `last`, or those of the `best` probe.
        patience: Training ends after so many probes without a better one; None: it goes to its end.
    """

    every: int = 0
    updates: int = 50
    keep: str = "last"
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.every < 0:
            raise InputError(f"probe_steps is {self.every}; expected the steps between two probes, or 0 for none")
        if self.updates < 1:
            raise InputError(f"probe_updates is {self.updates}; expected at least 1")
        if self.keep not in KEEP:
            raise InputError(f"keep is {self.keep!r}; expected {' or '.join(KEEP)}")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience is {self.patience}; expected at least 1 probe")
        for name, needs in (("keep best", self.keep == "best"), ("patience", self.patience is not None)):
            if needs and not self.every:
                raise InputError(f"{name} needs probes, and probe_steps is 0; give the steps between two, such as 500")

    def record(self) -> dict[str, Any]:
        """They as JSON values; nothing where there are no probes."""
        if not self.every:
            return {}
        return {
            "probe_steps": self.every,
            "probe_updates": self.updates,
            "keep": self.keep,
            "patience": self.patience,
        }


class Judge(Protocol):
    """Says how well an encoder ranks; `evaluation.DatasetProbe` is one.

    Attributes:
        name: Of what it ranks, for people.
        fingerprint: Of what it ranks: a run goes on with the same one only.
    """

    name: str
    fingerprint: str

    def __call__(self, encoder: Any) -> float:
        """Mean nDCG@10 of a SentenceTransformer."""


class Probe:
    """Measures a model in training, which it leaves as it was, to the last bit.

    A copy of the encoder is trained contrastively on pairs made of the corpus' documents, always the same ones in the
    same order, and ranks queries then: those of documents that it has not been trained on, or a judge's. All else is
    measured before that, on fixed texts of the corpus. Texts are cut at 128 tokens.

    Args:
        base: The model in training, with its tokenizer.
        rows: What it is trained on.
        pairs: What `sample_probe_pairs` gave.
        updates: Steps of the copy's training.
        max_length: Tokens of the longest text in training.
        seed: Of everything random.
        mixed: Whether the copy is trained in bfloat16 where that is safe.
        judge: Ranks in place of the held-out queries.
    """

    def __init__(
        self,
        base: Base,
        rows: Rows,
        pairs: Sequence[Pair],
        *,
        updates: int,
        max_length: int,
        seed: int,
        mixed: bool = False,
        judge: Judge | None = None,
    ) -> None:
        self.base, self.rows, self.judge, self.mixed, self.seed = base, rows, judge, mixed, seed
        self.max_length, self.collate = max_length, Collator(base.tokenizer)
        length = min(_MAX_LENGTH, max_length)
        config = AdaptConfig("", steps=updates, max_length=length, held_out=_HELD_OUT, seed=seed)
        self.learned, self.held_out = hold_out(pairs, config)
        self.config = config
        self._encoder: Any = None

    @property
    def ranked(self) -> str:
        """What nDCG@10 is measured on, in words."""
        if self.judge is not None:
            return self.judge.name
        return f"{len(self.held_out.queries):,} held-out queries among {len(self.held_out.texts):,} texts of the corpus"

    def measure(self) -> dict[str, float]:
        """All values by name, each beginning with `probe/`."""
        model = self.base.model
        device = next(model.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            found = {f"shuffle_gap/{name}": gap for name, gap in shuffle_gaps(model, self._mixable(device)).items()}
            if model.head is not None:
                found["term_coverage"] = sentence_coverage(model, self._batches(device))
            encoder = self._copy().to(device)
            try:
                found |= vector_spread(encoder, self.held_out)
                train_copy(encoder, self.learned, self.config, mixed=self.mixed)
                ndcg = self.judge(encoder) if self.judge is not None else held_out_ndcg(encoder, self.held_out)
            finally:
                encoder.zero_grad(set_to_none=True)
                encoder.to("cpu")
        return {NDCG: round(ndcg, 9), **{f"probe/{name}": round(value, 9) for name, value in found.items()}}

    def _copy(self) -> Any:
        """The encoder as it is now, as sentence-transformers has it."""
        if self._encoder is None:
            with tempfile.TemporaryDirectory() as folder, quiet():
                save_encoder(Path(folder), self.base, self.max_length)
                self._encoder = load_sentence_transformer(Path(folder)).to("cpu")
            self._encoder.max_seq_length = self.config.max_length
        self._encoder[0].auto_model.load_state_dict(self.base.model.backbone.state_dict())
        return self._encoder

    def _batches(self, device: torch.device) -> Iterator[Drawn]:
        """Some of the training rows, always the same with the same masks, in batches of about the same size."""
        spans = 2 if isinstance(self.rows, SpanPairs) else 1
        chosen = np.unique(np.linspace(0, len(self.rows) - 1, min(len(self.rows), _TEXTS // spans)).astype(int))
        for number, part in enumerate(np.array_split(chosen, -(-len(chosen) * spans // _TEXTS_AT_ONCE))):
            batch = moved(self.collate([self.rows[int(row)] for row in part]), device)
            yield self.base.model.sample_batch(batch, seeded(device, self.seed, "probe", number))

    def _mixable(self, device: torch.device) -> list[Drawn]:
        """Those batches that hold more than one document."""
        least = 4 if self.base.model.objective.uses_pairs else 2
        return [drawn for drawn in self._batches(device) if len(drawn.batch.ids) >= least]


def moved(batch: Any, device: torch.device) -> Any:
    """A batch of tensors, and of such batches, on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    return {name: moved(one, device) for name, one in batch.items()}


def sample_probe_pairs(documents: Iterable[Document], seed: int) -> list[Pair]:
    """Make pairs of some of the documents; which ones depends on the seed and their ids alone.

    Raises:
        InputError: Too few documents are long enough.
    """

    def place(document: Document) -> bytes:
        return hashlib.sha256(f"{seed}\0probe\0{document.id}".encode("utf-8", "replace")).digest()

    count = 0

    def counted() -> Iterator[Document]:
        nonlocal count
        for document in documents:
            count += 1
            yield document._replace(text=document.text[:_CHARACTERS])

    pairs = list(sample_pairs(heapq.nsmallest(_DOCUMENTS, counted(), key=place), USUAL, seed))
    distinct = len({pair.document for pair in pairs})
    if distinct < _LEAST_DOCUMENTS:
        raise InputError(
            f"probes need queries made of documents, and {distinct} of {count:,} documents are long enough; expected "
            f"at least {_LEAST_DOCUMENTS}: give a larger corpus, or pretrain without --probe-steps"
        )
    return pairs


def train_copy(encoder: Any, pairs: Sequence[Pair], config: AdaptConfig, *, mixed: bool = False) -> None:
    """Train a SentenceTransformer by the in-batch contrastive loss on the device where it is.

    Trainer is for runs that can be killed and gone on with; this is a minute's work, done anew after a kill, inside
    another run of Trainer's.

    Args:
        encoder: It learns.
        pairs: Of at least two documents.
        config: Steps, temperature and seed; the learning rate is a probe's own, with warm-up and linear decay.
        mixed: Compute in bfloat16 where that is safe.
    """
    model = Adaptation(encoder, config).train()
    device = next(model.parameters()).device
    size = min(_BATCH, len({pair.document for pair in pairs}))
    order = iter(DistinctOrder(pairs, config.steps * size, config.seed, size))
    warmup = max(1, config.steps // 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.0)
    for step in range(config.steps):
        torch.manual_seed(seed_of(config.seed, "probe", step))  # of dropout
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * min((step + 1) / warmup, 1 - step / config.steps)
        batch = model.collate([pairs[next(order)] for _ in range(size)])
        inputs = {side: {name: one.to(device) for name, one in columns.items()} for side, columns in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss = model(inputs, torch.Generator(device))["total"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_NORM)
        optimizer.step()
    encoder.eval()


@torch.no_grad()
def vector_spread(encoder: Any, held_out: HeldOut) -> dict[str, float]:
    """Alignment, uniformity and effective rank of an encoder's vectors of held-out queries and texts."""
    options = {"batch_size": 64, "convert_to_tensor": True, "show_progress_bar": False}
    queries: Tensor = encoder.encode_query(held_out.queries, **options)  # (q, d)
    texts: Tensor = encoder.encode_document(held_out.texts, **options)  # (n, d)
    return spread(queries, texts[: len(queries)], texts)
