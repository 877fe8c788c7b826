"""Distillation: a student's vectors follow a teacher's on raw text, without labels."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from indexes.checksums import folder_digest
from indexes.errors import InputError
from indexes.manifest import read_json, refuse_existing
from retrieval.documents import corpus_fingerprint, read_documents
from retrieval.model_folder import resolve
from retrieval.run_card import CARD, finished_card
from retrieval.working import working_folder

LOSSES = ("vectors", "similarities", "relations")

OnNote = Callable[[str], None]
OnProgress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class DistillConfig:
    """What decides the result of a distillation.

    Attributes:
        teacher: The model whose vectors are followed: a folder, the packaged model's name, or one of the model hub.
        student: The model that follows; one that `reshape` made of the teacher, or any other of a supported family.
        losses: Weights of `vectors` (squared distance of unit vectors; both of equal length), `similarities` (squared
            difference of the cosines within a batch) and `relations` (MiniLMv2's, between tokens, in the last layers).
        relation_heads: Into how many parts queries, keys and values are cut for `relations`.
        relation_layer: The teacher's layer whose relations are followed, from 0; None: the last.
        steps: Optimizer steps.
        batch_size: Texts a step.
        max_length: Tokens of a text while learning; the result has the teacher's length, as far as it has positions.
        learning_rate: The greatest one, of AdamW, after a tenth of the steps; it falls linearly to 0.
        save_steps: Steps between two checkpoints.
        held_out: Texts that are not learned from, on which student and teacher are compared; at most a fifth.
        precision: `float32`, or `bfloat16` for mixed precision.
        seed: Of order and dropout, and of which texts are held out.
    """

    teacher: str
    student: str
    losses: Mapping[str, float] | str = "vectors"
    relation_heads: int = 12
    relation_layer: int | None = None
    steps: int = 1000
    batch_size: int = 32
    max_length: int = 128
    learning_rate: float = 1e-4
    save_steps: int = 500
    held_out: int = 200
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("teacher", "student"):
            object.__setattr__(self, name, str(getattr(self, name)))
        object.__setattr__(self, "losses", parse_losses(self.losses))
        leasts = {"steps": 1, "batch_size": 2, "max_length": 8, "save_steps": 1, "held_out": 2, "relation_heads": 1}
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"learning_rate is {self.learning_rate}; expected above 0 and below 1, such as 1e-4")
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"precision is {self.precision!r}; expected float32 or bfloat16")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; expected a number from 0 to 4,294,967,295")

    @property
    def weights(self) -> dict[str, float]:
        """The losses' weights."""
        return dict(self.losses)  # type: ignore[arg-type]


@dataclass(frozen=True)
class DistillResult:
    """What a call of `distill` did.

    Attributes:
        output: The model folder.
        already_complete: Whether the folder was there, made by the same call; nothing was done then.
        card: The run card, as in the folder's `retrokit.json`: `agreement` holds, `before` and `after`, the correlation
            of the student's and the teacher's cosines between held-out texts and, where vectors are of equal length,
            the mean cosine of the two vectors of a text.
    """

    output: Path
    already_complete: bool
    card: dict[str, Any]


def parse_losses(losses: Mapping[str, float] | str) -> dict[str, float]:
    """Losses and weights from a mapping or a text: `vectors`, or `vectors=1,similarities=0.5`.

    Raises:
        InputError: A loss is unknown or a weight is no number above 0.
    """
    if isinstance(losses, str):
        pairs = [part.strip().partition("=") for part in losses.split(",")]
        losses = {name: value or 1.0 for name, _, value in pairs}  # type: ignore[misc]
    found: dict[str, float] = {}
    for name, value in losses.items():
        if name not in LOSSES:
            raise InputError(f"loss {name!r} is unknown; expected some of {', '.join(LOSSES)}")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = 0.0
        if not 0 < found[name] < float("inf"):
            raise InputError(f"the weight of {name} is {value!r}; expected a number above 0")
    if not found:
        raise InputError(f"losses are empty; expected some of {', '.join(LOSSES)}")
    return found


def distill(
    corpus: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    on_note: OnNote | None = None,
    **options: Any,
) -> DistillResult:
    """Train a student to give a teacher's vectors, on the texts of a corpus, and write it as a model folder.

    The folder has the teacher's pooling, normalisation and prompts. Working state is in `OUTPUT.partial/`: the same
    call, made again after a kill, goes on from the newest checkpoint and ends with the same weights.

    Source: Reimers & Gurevych, "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation"
    (EMNLP 2020), whose loss is the squared distance of vectors; here of unit vectors, so that it is 2 - 2 cosine.

    Args:
        corpus: What `retrieval.documents.read_documents` reads.
        output: The model folder to make.
        overwrite: Replace an existing folder, and discard working state of other options.
        on_progress: Called with the steps done and their total.
        on_note: Called with lines for a person.
        **options: The fields of `DistillConfig`; `teacher` and `student` are required.

    Raises:
        InputError: An option, a model or the corpus cannot be used, or the models do not fit the losses; the folder
            exists; or its working state belongs to other options (the message names the fields that differ).
    """
    config, target, note = DistillConfig(**options), Path(output), on_note or (lambda _: None)
    refuse_existing(target, overwrite=True, inputs=[corpus, config.teacher, config.student])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("distill runs in one process; start it without torchrun")
    documents = read_documents(corpus)
    card = _card(config, str(corpus), corpus_fingerprint(documents))
    if finished := finished_card(target, card["configuration"], overwrite=overwrite):
        return DistillResult(target, True, finished)
    learned, held_out = hold_out([each.content for each in documents if each.content], config)
    note(f"{len(learned):,} texts to learn from, {len(held_out):,} held out")

    from pretraining.students import train  # torch is loaded no earlier than bad input is refused

    with working_folder(target, card, overwrite=overwrite) as partial:
        train(
            learned, held_out, config, partial, target, card, overwrite=overwrite, on_progress=on_progress, on_note=note
        )
    return DistillResult(target, False, read_json(target / CARD))


def hold_out(texts: Sequence[str], config: DistillConfig) -> tuple[list[str], list[str]]:
    """Hold back some distinct texts; which depends on the seed and the texts alone.

    Raises:
        InputError: There are fewer texts than a batch and those held back need.
    """
    distinct = list(dict.fromkeys(texts))
    count = min(config.held_out, len(distinct) // 5)
    if count < 2 or len(distinct) - count < config.batch_size:
        raise InputError(
            f"the corpus has {len(distinct)} distinct texts; a batch of {config.batch_size} and the held-out ones need "
            f"at least {max(10, -(-5 * config.batch_size // 4))}: give more texts or a smaller --batch-size"
        )
    order = sorted(distinct, key=lambda text: hashlib.sha256(f"{config.seed}\0held out\0{text}".encode()).digest())
    chosen = set(order[:count])
    return [text for text in distinct if text not in chosen], order[:count]


def _card(config: DistillConfig, corpus: str, digest: str) -> dict[str, Any]:
    """The run card; its `configuration` is what must be equal for a run to go on."""
    configuration = {name: str(value) for name, value in asdict(config).items()}
    configuration |= {name: folder_digest(resolve(configuration[name])) for name in ("teacher", "student")}
    configuration["corpus"] = digest
    sources = {"teacher": config.teacher, "student": config.student, "corpus": corpus}
    return {"made_by": "retrokit distill", **sources, "configuration": configuration}
