"""Students: the losses by which one model follows another, and the training by them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from indexes.errors import InputError
from indexes.manifest import new_folder, seal, write_json
from pretraining.backbones import FAMILIES
from pretraining.contrastive import load_sentence_transformer
from pretraining.distillation import DistillConfig
from pretraining.layers import layers_of
from pretraining.loop import arguments_of
from retrieval.digests import tokenizer_digest
from retrieval.loading import quiet
from retrieval.model_folder import ModelFolder, read_model_folder, resolve
from retrieval.run_card import CARD, KIND, LOG, package_versions
from retrieval.trainer import ResumableTrainer, back_to_checkpoint

_CHECKPOINTS = "checkpoints"

OnNote = Callable[[str], None]
OnProgress = Callable[[int, int | None], None]


def vector_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over texts of the squared distance of unit vectors (b, d) and (b, d): 2 - 2 cosine."""
    return (functional.normalize(student, dim=-1) - functional.normalize(teacher, dim=-1)).square().sum(-1).mean()


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosines between different texts of a batch; vectors (b, d) and (b, d').

    The idea of Tung & Mori, "Similarity-Preserving Knowledge Distillation" (ICCV 2019), on cosines.
    """
    one, other = (cosines(vectors) for vectors in (student, teacher))
    return (one - other).square().sum() / (len(one) * (len(one) - 1))  # both have ones on the diagonal


def cosines(vectors: Tensor) -> Tensor:
    """Cosines (b, b) of vectors (b, d), with exact ones on the diagonal."""
    unit = functional.normalize(vectors, dim=-1)
    found = unit @ unit.T
    return found - torch.diag(found.diagonal()) + torch.eye(len(found), dtype=found.dtype, device=found.device)


def relation_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], attention_mask: Tensor, heads: int) -> Tensor:
    """MiniLMv2's loss: KL(teacher ‖ student) of the relations among queries, keys and values, the three summed.

    Relations of a text's tokens are softmax(X Xᵀ / √d_r) in each of `heads` parts of X; padding is in none. Each text
    counts as the mean over its heads and tokens.

    Source: Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
    Transformers" (Findings of ACL 2021), with all weights 1.

    Args:
        student: Queries, keys and values, (b, t, d) each.
        teacher: The same, (b, t, d') each.
        attention_mask: (b, t), 1 for tokens.
        heads: It divides d and d'.
    """
    real = attention_mask.bool()  # (b, t)
    losses = []
    for one, other in zip(student, teacher, strict=True):
        ours, theirs = (log_relations(rows, real, heads) for rows in (one, other))  # (b, a, t, t)
        apart = theirs.exp() * (theirs - ours).masked_fill(~real[:, None, None], 0.0)
        each = apart.sum(-1).mean(1)  # (b, t)
        losses.append(((each * real).sum(1) / real.sum(1)).mean())
    return torch.stack(losses).sum()


def log_relations(rows: Tensor, real: Tensor, heads: int) -> Tensor:
    """Logarithms (b, a, t, t) of the scaled dot-product relations of rows (b, t, d) among `real` (b, t) tokens."""
    batch, tokens, width = rows.shape
    parts = rows.float().view(batch, tokens, heads, width // heads).transpose(1, 2)  # (b, a, t, d/a)
    scores = parts @ parts.transpose(2, 3) / (width // heads) ** 0.5
    return scores.masked_fill(~real[:, None, None], -1e30).log_softmax(-1)


class Distillation(nn.Module):
    """A student under a teacher's eyes; the teacher is not part of the module's state and does not learn.

    Args:
        student: A SentenceTransformer.
        teacher: Another.
        config: Losses, lengths.

    Raises:
        InputError: The two do not fit the losses.
    """

    def __init__(self, student: Any, teacher: Any, config: DistillConfig) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher.eval().requires_grad_(False),)  # a tuple hides it from the module's parameters
        self.settings = config
        self.same_tokens = tokenizer_digest(student.tokenizer) == tokenizer_digest(teacher.tokenizer)
        self._check()
        self.length = min(config.max_length, student.max_seq_length, teacher.max_seq_length)
        self._heard: dict[str, Tensor] = {}
        if "relations" in config.weights:
            self._listen(student, "student", None)
            self._listen(teacher, "teacher", config.relation_layer)

    @property
    def teacher(self) -> Any:
        """The teacher."""
        return self._teacher[0]

    def forward(self, inputs: dict[str, dict[str, Tensor]], generator: torch.Generator) -> dict[str, Tensor]:
        """The losses of a batch, before their weights, and `total`.

        Args:
            inputs: The tokens of `student` and `teacher`.
            generator: Not used: nothing but dropout is random.
        """
        device = inputs["student"]["input_ids"].device
        with torch.no_grad():
            theirs = self.teacher.to(device)(dict(inputs["teacher"]))["sentence_embedding"].float()
        ours = self.student(dict(inputs["student"]))["sentence_embedding"].float()
        made = {"vectors": vector_loss, "similarities": similarity_loss}
        weights = self.settings.weights
        losses = {name: made[name](ours, theirs) for name in weights if name in made}
        if "relations" in weights:
            student, teacher = (
                [self._heard[f"{side}{number}"] for number in range(3)] for side in ("student", "teacher")
            )
            mask = inputs["student"]["attention_mask"]
            losses["relations"] = relation_loss(student, teacher, mask, self.settings.relation_heads)
        losses["total"] = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return losses

    def collate(self, texts: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """Tokens of texts, for both, after the document prompt."""
        prompt = self.teacher.prompts.get("document") or ""
        texts = [prompt + text for text in texts]
        return {"student": self._tokens(self.student, texts), "teacher": self._tokens(self.teacher, texts)}

    def _tokens(self, model: Any, texts: list[str]) -> dict[str, Tensor]:
        return dict(model.tokenizer(texts, truncation=True, max_length=self.length, padding=True, return_tensors="pt"))

    def _check(self) -> None:
        losses = self.settings.weights
        ours, theirs = (model.get_embedding_dimension() for model in (self.student, self.teacher))
        if "vectors" in losses and ours != theirs:
            raise InputError(
                f"the student's vectors have {ours} dimensions and the teacher's {theirs}; the loss vectors compares "
                "equal ones: take --loss similarities"
            )
        if "relations" not in losses:
            return
        if not self.same_tokens:
            raise InputError(
                "student and teacher have different tokenizers; relations compare token by token: leave them out"
            )
        for name, model in (("student", self.student), ("teacher", self.teacher)):
            config, heads = model[0].auto_model.config, self.settings.relation_heads
            if config.model_type not in FAMILIES or FAMILIES[config.model_type].layers.relations is None:
                raise InputError(
                    f"the {name} is a {config.model_type} model, which relations do not support; leave them out"
                )
            if config.hidden_size % heads:
                raise InputError(
                    f"relation_heads is {heads}, which does not divide the {name}'s {config.hidden_size} hidden units"
                )
        layers = len(layers_of(self.teacher[0].auto_model))
        if not 0 <= (self.settings.relation_layer or 0) < layers:
            raise InputError(
                f"relation_layer is {self.settings.relation_layer}; the teacher has layers 0 to {layers - 1}"
            )

    def _listen(self, model: Any, side: str, layer: int | None) -> None:
        """Keep what a layer's maps to queries, keys and values give."""
        backbone = model[0].auto_model
        names = FAMILIES[backbone.config.model_type].layers.relations
        place = layers_of(backbone)[-1 if layer is None else layer]
        for number, name in enumerate(names or ()):
            place.get_submodule(name).register_forward_hook(
                lambda _, __, given, key=f"{side}{number}": self._heard.__setitem__(key, given)
            )


class Texts(Dataset[str]):
    """Texts by number."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, number: int) -> str:
        return self.texts[number]


def train(
    texts: Sequence[str],
    held_out: Sequence[str],
    config: DistillConfig,
    partial: Path,
    target: Path,
    card: dict[str, Any],
    *,
    overwrite: bool,
    on_progress: OnProgress | None,
    on_note: OnNote,
) -> None:
    """Train and publish; arguments as in `distill`."""
    teacher_folder, student_folder = resolve(config.teacher), resolve(config.student)
    teacher = load_sentence_transformer(teacher_folder).float()
    student = load_student(student_folder, config.student, read_model_folder(teacher_folder))
    model = Distillation(student, teacher, config)
    agreement = {"before": agreement_of(model, held_out)}
    args = arguments_of(config, partial / _CHECKPOINTS, save_steps=config.save_steps)
    step, newest = back_to_checkpoint(partial / _CHECKPOINTS, partial / LOG)
    if newest:
        on_note(f"going on from step {step:,} of {config.steps:,}")
    with quiet():
        trainer = ResumableTrainer(model, args, Texts(texts), model.collate, partial / LOG, on_progress)
        trainer.to_the_end(newest)
    agreement["after"] = agreement_of(model, held_out)
    with new_folder(target, overwrite=overwrite) as new:
        with quiet():
            student.save_pretrained(str(new), create_model_card=False)
        (new / LOG).write_bytes((partial / LOG).read_bytes())
        write_json(new / CARD, {**card, "agreement": agreement, "packages": package_versions()})
        seal(new, KIND, {})


def load_student(folder: Path, name: str, teacher: ModelFolder) -> Any:
    """Load a student; pooling, normalisation and prompts are the teacher's, dense layers its own.

    Raises:
        InputError: It cannot be loaded, or is of no supported family.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    own = read_model_folder(folder) if (folder / "modules.json").is_file() else None
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of a pooler that the folder lacks, which takes no part
            transformer = Transformer(str(own.backbone if own else folder))
            dense = list(SentenceTransformer(str(folder), device="cpu"))[2:] if own and own.dense else []
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name} cannot be loaded as a model: {' '.join(str(error).split())[:200]}") from None
    config = transformer.auto_model.config
    if config.model_type not in FAMILIES:
        raise InputError(f"the student is a {config.model_type} model; distillation supports {', '.join(FAMILIES)}")
    pooling = Pooling(config.hidden_size, pooling_mode=teacher.pooling)
    modules = [transformer, pooling, *(one for one in dense if not isinstance(one, Normalize))]
    model = SentenceTransformer(
        modules=[*modules, *([Normalize()] if teacher.normalize else [])], prompts=teacher.prompts, device="cpu"
    )
    model = model.float()  # whatever the folder holds, learning takes float32
    limit = own.max_length if own else model.max_seq_length
    model.max_seq_length = min(teacher.max_length, limit or teacher.max_length)
    return model


@torch.no_grad()
def agreement_of(model: Distillation, texts: Sequence[str]) -> dict[str, float]:
    """How alike the two are: `correlation` of their cosines between texts, and the mean `cosine` of their vectors."""
    training, prompt = model.student.training, model.teacher.prompts.get("document") or ""
    options = {"convert_to_tensor": True, "show_progress_bar": False, "prompt": prompt}
    ours, theirs = (one.encode(list(texts), **options).float().cpu() for one in (model.student, model.teacher))
    model.student.train(training)
    above = torch.triu_indices(len(texts), len(texts), offset=1).unbind()
    pairs = torch.stack([cosines(vectors)[above] for vectors in (ours, theirs)])  # (2, pairs)
    found = {"correlation": round(float(torch.corrcoef(pairs.double())[0, 1]), 6)} if pairs.shape[1] > 1 else {}
    if ours.shape == theirs.shape:
        found["cosine"] = round(float(functional.cosine_similarity(ours, theirs).mean()), 6)
    return found
