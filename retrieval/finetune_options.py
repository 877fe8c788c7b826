"""What decides the result of fine-tuning, checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from indexes.errors import InputError

LOSSES = {
    "dense": ("infonce", "margin-mse", "kl", "regression", "opl", "alignment"),
    "cross-encoder": ("infonce", "binary", "margin-mse", "kl", "regression"),
    "sparse": ("infonce", "margin-mse", "kl"),
}
"""Kinds of models, and what each can learn by."""
RANKING = {"infonce", "binary", "margin-mse", "kl", "opl"}
BY_TEACHER = {"margin-mse", "kl"}
EXTRA = ("qq", "dd")
_INFONCE_ONLY = {"focal": 0.0, "mix": 0, "extra_negatives": (), "false_negative_margin": None}
_BI_ENCODERS_ONLY = {"mix": 0, "extra_negatives": ()}
_DENSE_ONLY = {"matryoshka": (), "pooling": None, "attention": None, "append_eos": None}
_SPARSE_ONLY = {"query_flops": None, "document_flops": None, "flops_steps": None}


@dataclass(frozen=True)
class FinetuneConfig:
    """What decides the result of fine-tuning.

    Attributes:
        encoder: The model to start from: a folder, the packaged model's name, or one of the model hub.
        kind: `dense`; `cross-encoder`, a classifier of pairs, or made one; or `sparse`, SPLADE over a masked-language
            model.
        loss: Names and weights (see `LOSSES`): `infonce`, a mapping, or a text such as `kl=1,infonce=0.2`.
        temperature: Scores are divided by it; None: 0.05 for cosines, 1 for other scores.
        teacher_temperature: What a teacher's scores are divided by.
        focal: Exponent of focal weights, such as 0.5; 0: all queries count alike.
        mix: How many negatives are mixed of two hard ones, a query.
        extra_negatives: `qq`, other queries; `dd`, other positives beside a query's own.
        false_negative_margin: Negatives that score above the positive by more than this are left out; None: none.
        false_negatives_by: Whose scores say so: the `student`'s, or the `teacher`'s, of the negatives that have one.
        matryoshka: Numbers of a vector's beginning over which the losses are taken, perhaps to their weights.
        score_range: What scores of pairs become 0 and 1 for `regression`; None: they are taken as they are.
        negatives: The most hard negatives of a query in a batch.
        lora: The rank of low-rank adapters that alone learn, and are merged into the model; None: all weights learn.
        query_flops: Weight of the regularisation of queries' terms, of a sparse model; None: 5e-5.
        document_flops: The same of documents; None: 3e-5.
        flops_steps: In how many steps both rise to that; None: a third of all.
        dataset_weights: How likely batches of a data set are, times its size to the power `dataset_alpha`; else 1.
        dataset_alpha: 1: in proportion to sizes; 0: all alike.
        prompts: Of each data set what goes before its `query` and its `document`, where it is not the model's own.
        pooling: `cls`, `mean`, `max` or `lasttoken`, where the folder of a dense encoder does not say.
        attention: `bidirectional` or `causal`, to change it, of a decoder language model; the folder keeps it.
        append_eos: Whether an end-of-text token is appended, where the folder and its tokenizer disagree.
        epochs: How often all examples are gone through.
        steps: Optimizer steps, in the place of epochs.
        batch_size: Examples whose documents are each other's negatives, on each device.
        mini_batch: Examples that go through the model at once (gradient caching: the same gradients in less memory);
            None: all of a batch.
        accumulation: Batches an optimizer step.
        max_length: Tokens of a text while learning; the model keeps its own length. None: as many.
        learning_rate: The greatest one, of AdamW; it falls linearly to 0.
        warmup_steps: Steps in which it rises from 0; None: a tenth of all.
        weight_decay: Of AdamW; not on biases and layer norms.
        precision: `float32`, or `bfloat16` for mixed precision.
        gradient_checkpointing: Whether layers are computed again in the backward pass.
        held_out: Queries held back to choose the checkpoint by; at most a fifth of them.
        held_out_texts: The most texts that stand in the way of their answers: of the corpus, if it is given, or else
            positives of other examples.
        checks: How often they are ranked, the start not counted.
        seed: Of order, dropout, draws, and which queries are held back.
    """

    encoder: str
    kind: str = "dense"
    loss: Mapping[str, float] | str = "infonce"
    temperature: float | None = None
    teacher_temperature: float = 1.0
    focal: float = 0.0
    mix: int = 0
    extra_negatives: Sequence[str] = ()
    false_negative_margin: float | None = None
    false_negatives_by: str = "student"
    matryoshka: Mapping[int, float] | Sequence[int] = ()
    score_range: tuple[float, float] | None = None
    negatives: int = 7
    lora: int | None = None
    query_flops: float | None = None
    document_flops: float | None = None
    flops_steps: int | None = None
    dataset_weights: Mapping[str, float] = field(default_factory=dict)
    dataset_alpha: float = 1.0
    prompts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    pooling: str | None = None
    attention: str | None = None
    append_eos: bool | None = None
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 32
    mini_batch: int | None = None
    accumulation: int = 1
    max_length: int | None = 256
    learning_rate: float = 2e-5
    warmup_steps: int | None = None
    weight_decay: float = 0.01
    precision: str = "float32"
    gradient_checkpointing: bool = False
    held_out: int = 200
    held_out_texts: int = 1000
    checks: int = 4
    seed: int = 0
    losses: dict[str, float] = field(init=False, repr=False)
    matryoshka_dims: dict[int, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder", str(self.encoder))
        if self.kind not in LOSSES:
            raise InputError(f"kind is {self.kind!r}; expected {', '.join(LOSSES)}")
        object.__setattr__(self, "losses", parse_losses(self.loss, self.kind))
        given = self.matryoshka
        dims = given if isinstance(given, Mapping) else dict.fromkeys(given, 1.0)
        object.__setattr__(self, "matryoshka_dims", {int(dim): float(weight) for dim, weight in dims.items()})
        self._check_numbers()
        self._check_choices()
        self._check_idle()

    def _check_numbers(self) -> None:
        leasts: dict[str, float] = {"batch_size": 1, "accumulation": 1, "negatives": 0, "mix": 0, "checks": 1}
        leasts |= {"held_out": 1, "held_out_texts": 0, "focal": 0, "dataset_alpha": 0}
        leasts |= dict.fromkeys(("mini_batch", "lora", "steps", "flops_steps"), 1) | {"max_length": 8}
        leasts |= dict.fromkeys(("warmup_steps", "query_flops", "document_flops"), 0)
        for name, least in leasts.items():
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):
                raise InputError(f"{name} is {value}; expected at least {least:g}")
        bounds = {"learning_rate": 1.0, "temperature": 1e3, "teacher_temperature": 1e3, "epochs": 1e6}
        for name, most in bounds.items():
            value = getattr(self, name)
            if value is not None and not 0 < value < most:
                raise InputError(f"{name} is {value}; expected above 0 and below {most:g}")
        for name, end in (("weight_decay", 1), ("seed", 2**32)):
            if not 0 <= getattr(self, name) < end:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 0 and below {end:,}")
        self._check_parts()

    def _check_parts(self) -> None:
        for name, weight in self.dataset_weights.items():
            if not 0 < weight < float("inf"):
                raise InputError(f"the weight of data set {name!r} is {weight}; expected above 0")
        if self.mini_batch is not None and self.batch_size % self.mini_batch:
            raise InputError(
                f"mini_batch is {self.mini_batch}; expected a number that divides batch_size, {self.batch_size}"
            )
        for dim, weight in self.matryoshka_dims.items():
            if dim < 1 or not 0 < weight < float("inf"):
                raise InputError(f"matryoshka has {dim} numbers of weight {weight}; expected both above 0")
        if self.score_range is not None and not self.score_range[0] < self.score_range[1]:
            raise InputError(f"score_range is {self.score_range}; expected a lower and a higher number, such as 0,5")
        if self.score_range is not None and (BY_TEACHER & self.losses.keys() or self.false_negatives_by == "teacher"):
            raise InputError("score_range changes the scores that a teacher gave; learn by regression apart from it")
        margin = self.false_negative_margin
        if margin is not None and not math.isfinite(margin):
            raise InputError(f"false_negative_margin is {margin}; expected a number, such as 0.1")
        if self.kind == "cross-encoder" and any("document" in prompts for prompts in self.prompts.values()):
            raise InputError("a cross-encoder reads a document with its query, and has no prompt of its own for it")

    def _check_choices(self) -> None:
        for name, choices in (("precision", ("float32", "bfloat16")), ("false_negatives_by", ("student", "teacher"))):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {' or '.join(choices)}")
        for name in self.extra_negatives:
            if name not in EXTRA:
                raise InputError(f"extra_negatives has {name!r}; expected some of {', '.join(EXTRA)}")
        for name, prompts in self.prompts.items():
            for role in prompts:
                if role not in ("query", "document"):
                    raise InputError(f"data set {name!r} has a prompt of {role!r}; expected query or document")

    def _check_idle(self) -> None:
        """Refuse options that would do nothing."""
        of_kind = f"; the kind is {self.kind}"
        rules: tuple[tuple[bool, Mapping[str, Any], str], ...] = (
            ("infonce" in self.losses, _INFONCE_ONLY, f"the loss infonce; the loss is {', '.join(self.losses)}"),
            (self.kind != "cross-encoder", _BI_ENCODERS_ONLY, f"vectors{of_kind}"),
            (self.kind == "sparse", _SPARSE_ONLY, f"kind sparse{of_kind}"),
            (self.kind == "dense", _DENSE_ONLY, f"kind dense{of_kind}"),
            (self.false_negative_margin is not None, {"false_negatives_by": "student"}, "false_negative_margin"),
            (bool(BY_TEACHER & self.losses.keys()), {"teacher_temperature": 1.0}, "the loss kl or margin-mse"),
            (self.has_temperature, {"temperature": None}, "the loss infonce, kl or margin-mse"),
            ("regression" in self.losses, {"score_range": None}, "the loss regression"),
            (self.steps is None, {"epochs": 1.0}, "no number of steps"),
        )
        for met, usual, need in rules:
            for name, value in usual.items():
                given = getattr(self, name)
                empty = given in ((), [], {}, "") and not value
                if not met and given != value and not empty:
                    raise InputError(f"{name} is {given!r} and needs {need}; leave it out")

    @property
    def has_temperature(self) -> bool:
        """Whether a loss divides scores by a temperature."""
        return bool({"infonce", *BY_TEACHER} & self.losses.keys())

    @property
    def temperatures(self) -> dict[str, float]:
        """Those of losses by a teacher."""
        return {"temperature": self.temperature or 1.0, "teacher_temperature": self.teacher_temperature}

    @property
    def parts(self) -> int:
        """How many parts of a batch go through the model one after the other."""
        return self.batch_size // (self.mini_batch or self.batch_size)


def parse_losses(losses: Mapping[str, float] | str, kind: str) -> dict[str, float]:
    """Losses and weights from a mapping or a text: `infonce`, or `kl=1,infonce=0.2`.

    Raises:
        InputError: A loss is none of this kind of model, or a weight is no number above 0.
    """
    if isinstance(losses, str):
        pairs = [part.strip().partition("=") for part in losses.split(",")]
        losses = {name: value or 1.0 for name, _, value in pairs}  # type: ignore[misc]
    found: dict[str, float] = {}
    for name, value in losses.items():
        if name not in LOSSES[kind]:
            raise InputError(f"loss {name!r} is none of kind {kind}; expected some of {', '.join(LOSSES[kind])}")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = 0.0
        if not 0 < found[name] < float("inf"):
            raise InputError(f"the weight of {name} is {value!r}; expected a number above 0")
    if not found:
        raise InputError(f"losses are empty; expected some of {', '.join(LOSSES[kind])}")
    return found
