"""Reshaping: a model folder with another vocabulary, depth or width, and with everything else as it was."""

import contextlib
from collections.abc import Callable, Iterator
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

OnNote = Callable[[str], None]
OnProgress = Callable[[int, int | None], None]
COUNTS = ("trim.json", "extend.json")
"""What is counted for trimming and for extension, in the working folder."""
METHODS = ("identity", "stack", "interleave")


@dataclass(frozen=True)
class ReshapeConfig:
    """What is changed: layers, then width, then the vocabulary, first trimmed and then extended.

    Attributes:
        trim_vocabulary: A corpus whose pieces stay; the others go (`pretraining.vocabulary.trim`).
        least_count: How often a piece must occur there to stay.
        extend_vocabulary: A corpus whose frequent words that are split become pieces (WordPiece only).
        words: How many at most; those that save most tokens.
        keep_layers: How many layers stay, evenly spread, or which, numbered from 0.
        grow_layers: How many layers there shall be.
        depth_method: How the new ones come: `identity` leaves all vectors as they are, `stack` and `interleave` do not
            (`pretraining.layers.deepen`).
        grow_width: The multiple of hidden units and heads; vectors become copies of themselves, cosines stay.
        inner_size: Units inside the feed-forward networks, at least as many as there are; None: they grow with
            `grow_width`.
        seed: Of what is drawn in growing.
    """

    trim_vocabulary: str | None = None
    least_count: int = 1
    extend_vocabulary: str | None = None
    words: int = 1000
    keep_layers: int | tuple[int, ...] | None = None
    grow_layers: int | None = None
    depth_method: str = "identity"
    grow_width: int | None = None
    inner_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("trim_vocabulary", "extend_vocabulary"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, str(getattr(self, name)))
        if isinstance(self.keep_layers, list):
            object.__setattr__(self, "keep_layers", tuple(self.keep_layers))
        for name in ("least_count", "words"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; expected a number from 0 to 4,294,967,295")
        if self.depth_method not in METHODS:
            raise InputError(f"depth_method is {self.depth_method!r}; expected {', '.join(METHODS)}")
        if self.keep_layers is not None and self.grow_layers is not None:
            raise InputError("keep_layers and grow_layers are both given; give one of them")
        asked = ("trim_vocabulary", "extend_vocabulary", "keep_layers", "grow_layers", "grow_width", "inner_size")
        if all(getattr(self, name) is None for name in asked):
            raise InputError(f"nothing is to be changed; give one or more of {', '.join(asked)}")


@dataclass(frozen=True)
class ReshapeResult:
    """What a call of `reshape` did.

    Attributes:
        output: The model folder.
        already_complete: Whether the folder was there, made by the same call; nothing was done then.
        card: The run card, as in the folder's `retrokit.json`: `before` and `after` hold `parameters`, `bytes` (of all
            weights), `vocabulary`, `layers` and `dim`; `added` the words that came in and the tokens that each saves.
    """

    output: Path
    already_complete: bool
    card: dict[str, Any]


def reshape(
    model: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    on_note: OnNote | None = None,
    **options: Any,
) -> ReshapeResult:
    """Write a model folder of another shape: fewer or more pieces, layers or units.

    What is not asked to change stays: pooling, normalisation, prompts, length; the vocabulary head (in `heads/`, where
    there is one) follows. Trimming leaves the vectors of texts whose pieces all stay as they are, bit for bit; growth
    by `identity` and in width leaves all cosines as they are, within rounding. A model of fewer layers or new words has
    to learn: `distill` from the old one, or pretrain and adapt it.

    A killed count of a corpus goes on where it was; all else takes seconds.

    Args:
        model: A sentence-transformers folder, a transformers one (its first token is its vector), the packaged model's
            name, or one of the model hub.
        output: The model folder to make.
        overwrite: Replace an existing folder, and discard working state of other options.
        on_progress: Called with the documents counted.
        on_note: Called with lines for a person.
        **options: The fields of `ReshapeConfig`.

    Raises:
        InputError: An option, the model or a corpus cannot be used; the change is not exact for this family or kind of
            tokenizer; the folder exists, or its working state belongs to other options.
    """
    config, target, note = ReshapeConfig(**options), Path(output), on_note or (lambda _: None)
    corpora = [each for each in (config.trim_vocabulary, config.extend_vocabulary) if each]
    refuse_existing(target, overwrite=True, inputs=[model, *corpora])
    folder = resolve(str(model))
    card = _card(config, str(model), folder)
    if finished := finished_card(target, card["configuration"], overwrite=overwrite):
        return ReshapeResult(target, True, finished)

    from pretraining.shape import Shape  # torch is loaded no earlier than bad input is refused

    shape = Shape.load(folder, str(model))
    card["before"] = shape.sizes()
    _change_structure(shape, config)
    if corpora:
        shape.check_vocabulary(extended=config.extend_vocabulary is not None)
    with _counting(target, card, overwrite=overwrite, needed=bool(corpora)) as partial:
        card |= _change_vocabulary(shape, config, partial, on_progress, note)
        card["after"] = shape.sizes()
        shape.write(target, card, overwrite=overwrite, on_note=note)
    return ReshapeResult(target, False, read_json(target / CARD))


def _change_structure(shape: Any, config: ReshapeConfig) -> None:
    if config.keep_layers is not None:
        shape.keep_layers(config.keep_layers)
    if config.grow_layers is not None:
        shape.deepen(config.grow_layers, config.depth_method)
    if config.grow_width is not None or config.inner_size is not None:
        factor = 1 if config.grow_width is None else config.grow_width
        shape.widen(factor, inner=config.inner_size, seed=config.seed)


def _change_vocabulary(
    shape: Any, config: ReshapeConfig, partial: Path, on_progress: OnProgress | None, note: OnNote
) -> dict[str, Any]:
    """Trim and extend; gives what the card says of the new words."""
    if config.trim_vocabulary:
        shape.trim(config.trim_vocabulary, partial, least_count=config.least_count, on_progress=on_progress)
    if not config.extend_vocabulary:
        return {}
    added = shape.extend(config.extend_vocabulary, partial, words=config.words, on_progress=on_progress)
    note(f"{len(added):,} words added, such as {', '.join(new.word for new in added[:5])}")
    return {"added": {new.word: new.saved for new in added}}


@contextlib.contextmanager
def _counting(target: Path, card: dict[str, Any], *, overwrite: bool, needed: bool) -> Iterator[Path]:
    """Hold a working folder where corpora are counted."""
    if not needed:
        yield target
        return
    with working_folder(target, card, overwrite=overwrite) as partial:
        try:
            yield partial
        except InputError:
            for name in COUNTS:
                (partial / name).unlink(missing_ok=True)  # of a corpus or options that cannot be used
            raise


def _card(config: ReshapeConfig, model: str, folder: Path) -> dict[str, Any]:
    """The run card; its `configuration` is what must be equal for a run to go on."""
    configuration = {name: str(value) for name, value in asdict(config).items()}
    for name in ("trim_vocabulary", "extend_vocabulary"):
        if corpus := getattr(config, name):
            configuration[name] = corpus_fingerprint(read_documents(corpus))
    configuration["model"] = folder_digest(folder)
    return {"made_by": "retrokit reshape", "model": model, "configuration": configuration}
