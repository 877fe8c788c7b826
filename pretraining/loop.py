"""The loop of pretraining: masks sampled on the device, and losses over the vectors of a whole step."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainingArguments

from pretraining.mixture import MixedOrder
from pretraining.model import Cached, Drawn
from pretraining.orders import GroupedByLength, TimesOrder
from pretraining.terms.term import at_least_float32
from pretraining.tokens import Accompanied, SpanPairs
from retrieval.loading import quiet
from retrieval.orders import EpochOrder
from retrieval.trainer import ResumableTrainer, resumable_arguments

if TYPE_CHECKING:
    from pretraining.adaptation import AdaptConfig
    from pretraining.distillation import DistillConfig


class PretrainingTrainer(ResumableTrainer):
    """The loop over token windows or pairs of spans: masks are sampled on the device of the batch.

    Losses over the vectors of a whole step are exact whatever number of micro-batches it has, by gradient caching: a
    first pass without gradients makes all vectors, the loss' gradient by them is kept, and each micro-batch's own pass,
    with the same masks and dropout, sends its part on.

    Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (RepL4NLP 2021).
    """

    micro_batches: Sequence[dict[str, Any]] = ()
    """Those of the present step."""
    grouped: bool = False
    """Whether rows of like length come together."""

    def get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
        """Keep the micro-batches of a step in mind."""
        batches, count = super().get_batch_samples(*arguments, **named)
        self.micro_batches = batches
        return batches, count

    def losses(self, model: Any, inputs: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Sample the masks of a batch and compute the objective."""
        self.model.progress = self.state.global_step / self.args.max_steps
        parts = self.args.gradient_accumulation_steps
        names = [name for name, term in self.model.terms.items() if term.uses_whole_step] if parts > 1 else []
        if names and self._micro == 0:
            self._cache(names)
            generator = self.seeded_for(0)
        whole = {}
        for name in names:
            loss, gradients = self._cached[name]
            # What a micro-batch gives is divided by the number of them all.
            whole[name] = Cached(loss, parts * gradients[self._micro])
        return model(self._sample(inputs, generator), whole)

    def _sample(self, inputs: dict[str, Any], generator: torch.Generator) -> Drawn:
        return self.model.sample_batch(inputs, generator)

    def _cache(self, names: Sequence[str]) -> None:
        vectors = []
        for micro, inputs in enumerate(self.micro_batches):
            drawn = self._sample(self._prepare_inputs(inputs), self.seeded_for(micro))
            with torch.no_grad(), self.accelerator.autocast():  # as the pass with gradients has it
                vectors.append(at_least_float32(self.model.vectors(drawn)))
        everything = torch.cat(vectors).requires_grad_()
        self._cached: dict[str, tuple[Tensor, tuple[Tensor, ...]]] = {}
        for name in names:
            loss = self.model.terms[name].of_vectors(everything)
            (gradient,) = torch.autograd.grad(loss, everything)
            self._cached[name] = loss.detach(), gradient.split([len(one) for one in vectors])

    def more_to_log(self) -> dict[str, float]:
        """How strongly each term pulls at the encoder's outputs."""
        return {f"gradient_norm/{name}": value.item() for name, value in self.model.gradient_norms.items()}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows, total, seed = self.train_dataset, self.rows_of_run(), self.args.seed
        anew = isinstance(rows, SpanPairs | Accompanied)
        order: Sampler[int]
        if len(rows.weights) > 1:
            order = MixedOrder(rows.sources, rows.weights, total, seed, anew=anew)
        else:
            order = (TimesOrder if anew else EpochOrder)(len(rows), total, seed)
        if not self.grouped:
            return order
        return GroupedByLength(order, rows.lengths, self.args.per_device_train_batch_size, seed)


def arguments_of(config: "AdaptConfig | DistillConfig", folder: Path, *, save_steps: int) -> TrainingArguments:
    """What Trainer is told of a run that is short beside pretraining; a tenth of its steps are warm-up."""
    with quiet():
        return resumable_arguments(
            folder,
            max_steps=config.steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            warmup_steps=config.steps // 10,
            save_steps=save_steps,
            seed=config.seed,
            mixed=config.precision == "bfloat16",
        )
