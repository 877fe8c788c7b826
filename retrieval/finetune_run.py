"""A fine-tuning run: the model, its loop, the checks, and the folder that comes out."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.utils.data import Sampler
from transformers import TrainingArguments

from indexes.errors import InputError
from indexes.manifest import new_folder, seal, write_json
from retrieval.adapters import add_adapters
from retrieval.bi_encoder import BiEncoder
from retrieval.checkpoints import newest_checkpoint
from retrieval.cross_encoder import PairEncoder
from retrieval.example_rows import BatchOrder, ExampleRows, dataset_shares
from retrieval.examples import Example
from retrieval.finetune_options import RANKING, FinetuneConfig
from retrieval.gradient_cache import cache, send_on
from retrieval.held_out import (
    COSINE,
    NDCG,
    SPEARMAN,
    make_ranking,
    mean_ndcg,
    mean_ndcg_of_pairs,
    prompted_pairs,
    scored,
    spearman,
)
from retrieval.loading import quiet
from retrieval.run_card import CARD, KIND, LOG, package_versions
from retrieval.seeds import seeded
from retrieval.selection import Selection
from retrieval.trainable import load_cross_encoder, load_dense, load_sparse
from retrieval.trainer import (
    ResumableTrainer,
    back_to_checkpoint,
    recompute_layers,
    resumable_arguments,
)
from retrieval.working import partial_folder

_CHECKPOINTS = "checkpoints"
_STEPS_AT_RISK = 500


class FinetuningTrainer(ResumableTrainer):
    """The resumable loop over examples: a batch goes through the model in `parts`, by gradient caching."""

    parts = 1
    order: BatchOrder
    micro_batches: Sequence[dict[str, Any]] = ()

    def get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
        """Keep the micro-batches of a step in mind."""
        batches, count = super().get_batch_samples(*arguments, **named)
        self.micro_batches = batches
        return batches, count

    def losses(self, model: Any, inputs: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """The losses of a batch, or one part's share of their gradient."""
        self.model.step = self.state.global_step
        place, first = self._micro % self.parts, self._micro - self._micro % self.parts
        # Of the batch, whatever process: they all draw the same for the whole of it.
        address = (self.args.seed, self.state.global_step, first // self.parts, "whole batch")
        if self.parts == 1:
            return self.model.losses([model(inputs)], [inputs], seeded(torch.device("cpu"), *address))
        if place == 0:
            batch = [self._prepare_inputs(one) for one in self.micro_batches[first : first + self.parts]]
            outputs = []
            for micro, one in enumerate(batch, start=first):
                self.seeded_for(micro)
                with torch.no_grad(), self.accelerator.autocast():  # as the pass with gradients has it
                    outputs.append(self.model(one))
            drawing = seeded(torch.device("cpu"), *address)
            self._cached = cache(outputs, lambda leaves: self.model.losses(leaves, batch, drawing))
            self.seeded_for(first)
        losses, gradients = self._cached
        # What a micro-batch gives is divided by the number of them all.
        return {**losses, "total": send_on(model(inputs), gradients[place], losses["total"], self.parts)}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.order


class Run:
    """A fine-tuning run from its examples to the model folder; every process has one.

    Args:
        config: Of the run.
        steps: Optimizer steps.
        learned: What is learned from.
        held: What is held out, and the texts that stand in its way.
        args: Of Trainer.
        note: Called with lines for a person.

    Raises:
        InputError: The model cannot be trained so, or a data set is too small for a batch.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        steps: int,
        learned: Sequence[Example],
        held: tuple[Sequence[Example], Sequence[str]],
        args: TrainingArguments,
        note: Callable[[str], None],
    ) -> None:
        self.steps, self.learned, self.args, self.note = steps, learned, args, note
        sizes: dict[str, int] = {}
        for example in learned:
            sizes[example.dataset] = sizes.get(example.dataset, 0) + 1
        shares = dataset_shares(sizes, config.dataset_weights, config.dataset_alpha)
        batches = steps * config.accumulation
        self.order = BatchOrder(learned, config.batch_size * args.world_size, batches, shares, config.seed)
        self.model, self.config = load_model(config, steps)
        self._merge: Callable[[], Any] = lambda: None
        if self.config.lora is not None:
            classifier = self.config.kind == "cross-encoder"
            self._merge = add_adapters(self.model.encoder, self.config.lora, seed=config.seed, classifier=classifier)
        if self.config.kind == "dense":
            freeze_pooler(self.model)
        if self.config.gradient_checkpointing:
            recompute_layers(self.model.encoder.transformers_model)
        self.measure, self.measured = held_out_measure(self.model, *held, self.config)

    def prepare(self, partial: Path) -> None:
        """Bring the working folder to where training can start: whole checkpoints only."""
        back_to_checkpoint(partial / _CHECKPOINTS, partial / LOG)

    def train(self, target: Path, on_progress: Callable[[int, int | None], None] | None) -> None:
        """Train from the newest checkpoint, or from the start, to the last step."""
        partial, config = partial_folder(target), self.config
        step, newest = newest_checkpoint(partial / _CHECKPOINTS) or (0, None)
        every = max(1, -(-self.steps // config.checks))
        self.selection = Selection(self.model, self.measure, self.measured, partial, every, self.note)
        with quiet():
            rows = ExampleRows(self.learned, config.negatives, config.seed)
            trainer = FinetuningTrainer(self.model, self.args, rows, self.model.collate, partial / LOG, on_progress)
            trainer.parts, trainer.order = config.parts, self.order
            trainer.add_callback(self.selection)
            if newest:
                self.note(f"going on from step {step:,} of {self.steps:,}")
            elif self.args.should_save:
                self.selection.check(0)
            trainer.to_the_end(newest)

    def publish(self, target: Path, card: Mapping[str, Any], *, overwrite: bool) -> None:
        """Write the best weights as a model folder."""
        selection, encoder = self.selection, self.model.encoder
        selection.load_best()
        with quiet():
            self._merge()
        encoder.max_seq_length = self.model.own_length
        checks = {str(step): value for step, value in selection.checks.items()}
        chosen = {"measure": self.measured, "checks": checks, "chosen": selection.best}
        with new_folder(target, overwrite=overwrite) as new:
            with quiet():
                encoder.save_pretrained(str(new), create_model_card=False)
            (new / LOG).write_bytes((partial_folder(target) / LOG).read_bytes())
            write_json(new / CARD, {**card, **chosen, "packages": package_versions()})
            seal(new, KIND, {})

    def wait(self) -> None:
        """Wait for the other processes: nobody goes on before the folder is there."""
        if self.args.world_size > 1:
            torch.distributed.barrier()


def load_model(config: FinetuneConfig, steps: int) -> tuple[Any, FinetuneConfig]:
    """The model under its losses, and the configuration with what depends on the model.

    Raises:
        InputError: It cannot be loaded as this kind, or has fewer numbers than a Matryoshka loss wants.
    """
    if config.kind == "cross-encoder":
        config = _heated(config, 1.0)
        encoder = load_cross_encoder(config.encoder, config.seed, config.max_length)
        if "regression" in config.losses:
            encoder.activation_fn = torch.nn.Identity()  # what is learned are the scores themselves
        return PairEncoder(encoder, config), config
    if config.kind == "sparse":
        config = replace(
            _heated(config, 1.0),
            query_flops=5e-5 if config.query_flops is None else config.query_flops,
            document_flops=3e-5 if config.document_flops is None else config.document_flops,
            flops_steps=config.flops_steps or max(1, steps // 3),
        )
        return BiEncoder(load_sparse(config.encoder), config, unit=False), config
    encoder, unit = load_dense(
        config.encoder, pooling=config.pooling, attention=config.attention, append_eos=config.append_eos
    )
    config = _heated(config, 0.05 if unit else 1.0)
    dim = encoder.get_embedding_dimension()
    for wanted in config.matryoshka_dims:
        if wanted > dim:
            raise InputError(f"matryoshka has {wanted} numbers; vectors of {config.encoder} have {dim}")
    start = None
    if "alignment" in config.losses:
        start = copy.deepcopy(encoder).eval().requires_grad_(False)
        start.max_seq_length = min(config.max_length or encoder.max_seq_length, encoder.max_seq_length)
    return BiEncoder(encoder, config, unit=unit, start=start), config


def _heated(config: FinetuneConfig, temperature: float) -> FinetuneConfig:
    """The configuration with a temperature, where it needs one and none was given."""
    needed = config.has_temperature and config.temperature is None
    return replace(config, temperature=temperature) if needed else config


def held_out_measure(
    model: Any, held: Sequence[Example], others: Sequence[str], config: FinetuneConfig
) -> tuple[Callable[[], float], str]:
    """What is measured on held-out examples, and its name."""
    if RANKING & config.losses.keys():
        ranking = make_ranking(held, others, model.prompts)
        if config.kind == "cross-encoder":
            return lambda: mean_ndcg_of_pairs(model, ranking), NDCG
        return lambda: mean_ndcg(model, ranking), NDCG
    pairs = prompted_pairs(held, model.prompts)
    one, other = [query for query, _ in pairs], [text for _, text in pairs]
    if "regression" not in config.losses:
        return lambda: float(cosine_similarity(model.encode(other), model.encode_at_start(one)).mean()), COSINE
    wanted = [float(found.score or 0.0) for example in held for found in scored(example)]
    if config.kind == "cross-encoder":
        return lambda: spearman(model.score(pairs), wanted), SPEARMAN
    return lambda: spearman((model.encode(one) * model.encode(other)).sum(1), wanted), SPEARMAN


def arguments_of(config: FinetuneConfig, target: Path, steps: int) -> TrainingArguments:
    """What Trainer is told."""
    every = max(1, -(-steps // config.checks))
    with quiet():
        return resumable_arguments(
            partial_folder(target) / _CHECKPOINTS,
            max_steps=steps,
            batch_size=config.batch_size // config.parts,
            accumulation=config.accumulation * config.parts,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            warmup_steps=steps // 10 if config.warmup_steps is None else min(config.warmup_steps, steps),
            save_steps=min(every, _STEPS_AT_RISK),
            seed=config.seed,
            mixed=config.precision == "bfloat16",
        )


def freeze_pooler(model: BiEncoder) -> None:
    """Leave a transformer's own pooler out of the training: no vector depends on it, and DDP would wait for it."""
    for name, value in model.encoder.named_parameters():
        if ".pooler." in name:
            value.requires_grad_(False)
