"""Shapes: a loaded model whose vocabulary, layers and width can be changed, and the folder that it is written to."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from indexes.errors import InputError
from indexes.manifest import new_folder, read_json, seal, write_json
from pretraining.backbones import FAMILIES, refuse_unsupported
from pretraining.base import HEADS, load_language_head
from pretraining.census import Census, OnProgress, take_census
from pretraining.growth import widen, widen_head
from pretraining.heads import VocabularyHead
from pretraining.layers import deepen, keep_layers
from pretraining.reshaping import COUNTS
from pretraining.vocabulary import NewWord, Vocabulary, choose_words, extend, kind_of, trim
from retrieval.digests import tokenizer_digest
from retrieval.documents import read_documents
from retrieval.loading import quiet
from retrieval.model_folder import ModelFolder, read_model_folder
from retrieval.run_card import CARD, KIND, package_versions

_HEAD = "head."
_VOCABULARY_FILES = ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spm.model")


class Shape:
    """A model that is being changed.

    Attributes:
        model: A SentenceTransformer, on the CPU.
        backbone: Its transformer.
        tokenizer: Its tokenizer; after a change of the vocabulary a new one.
        head: The vocabulary head, if the folder has one.
        heads: The tensors of the terms' heads in `heads/`, by name; without those of the vocabulary head.
    """

    def __init__(
        self, model: Any, settings: ModelFolder, head: VocabularyHead | None, heads: dict[str, Tensor]
    ) -> None:
        self.model, self.settings, self.head, self.heads = model, settings, head, heads
        self.backbone, self.tokenizer = model[0].auto_model, model.tokenizer
        self._left_out: list[str] = []
        self._record: dict[str, Any] = {}

    @classmethod
    def load(cls, folder: Path, name: str) -> "Shape":
        """Load a model folder.

        Raises:
            InputError: It is of no supported family, its tokenizer is no fast one, or it cannot be loaded.
        """
        settings = _settings(folder)
        try:
            with quiet(), _reproducibly():
                model = _sentence_transformer(folder, settings)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{name} cannot be loaded as a model: {' '.join(str(error).split())[:200]}") from None
        backbone = model[0].auto_model
        refuse_unsupported(backbone.config)
        if not model.tokenizer.is_fast:
            raise InputError(f"{name}'s tokenizer is not a fast one; reshaping needs a fast tokenizer")
        head, heads = _heads(folder, settings, backbone)
        shape = cls(model, settings, head, heads)
        if (folder / HEADS / "config.json").is_file():
            shape._record = read_json(folder / HEADS / "config.json")
        return shape

    def sizes(self) -> dict[str, int]:
        """What of it can be counted: parameters and bytes of all weights, vocabulary, layers, dim."""
        weights = [*self.model.parameters(), *(self.head.parameters() if self.head else ()), *self.heads.values()]
        config = self.backbone.config
        return {
            "parameters": sum(one.numel() for one in weights),
            "bytes": sum(one.numel() * one.element_size() for one in weights),
            "vocabulary": config.vocab_size,
            "layers": config.num_hidden_layers,
            "dim": config.hidden_size,
        }

    def check_vocabulary(self, *, extended: bool) -> None:
        """Refuse a tokenizer whose vocabulary cannot be changed, before a corpus is read.

        Raises:
            InputError: It is of another kind than those of `vocabulary.KINDS`, or words cannot be added to it.
        """
        if extended:
            choose_words(self._state(), Census(), 0)
        kind_of(self._state())

    def trim(self, corpus: str, partial: Path, *, least_count: int, on_progress: OnProgress | None) -> None:
        """Leave out the pieces that a corpus does not use (`vocabulary.trim`)."""
        census = self._census(corpus, partial / COUNTS[0], words=False, on_progress=on_progress)
        keep = set(self.tokenizer.all_special_ids)
        if FAMILIES[self.backbone.config.model_type].padded_positions:
            keep |= set(range(self.tokenizer.pad_token_id))  # positions are counted from this id
        self._use(trim(self._state(), census, least_count=least_count, keep=keep))

    def extend(self, corpus: str, partial: Path, *, words: int, on_progress: OnProgress | None) -> list[NewWord]:
        """Add words of a corpus as pieces (`vocabulary.extend`); gives them.

        Raises:
            InputError: No word would save a token.
        """
        census = self._census(corpus, partial / COUNTS[1], words=True, on_progress=on_progress)
        chosen = choose_words(self._state(), census, words)
        if not chosen:
            raise InputError(f"no word that occurs twice in {corpus} is split; there is nothing to add")
        self._use(extend(self._state(), len(self.tokenizer), chosen))
        return chosen

    def keep_layers(self, kept: int | Sequence[int]) -> None:
        """Keep some layers (`layers.keep_layers`)."""
        self._replace(keep_layers(self.backbone, kept))

    def deepen(self, total: int, method: str) -> None:
        """Add layers (`layers.deepen`)."""
        self._replace(deepen(self.backbone, total, method))

    def widen(self, factor: int, *, inner: int | None, seed: int) -> None:
        """Add hidden units and heads (`growth.widen`); heads of terms do not follow.

        Raises:
            InputError: The model has a dense layer after pooling, or cannot be widened.
        """
        if self.settings.dense and factor > 1:
            raise InputError(
                "the model has a dense layer after pooling, which growth in width does not change; grow its depth"
            )
        wide = widen(self.backbone, factor, inner=inner, seed=seed)
        if factor > 1:
            from sentence_transformers.sentence_transformer.modules import Pooling

            self.model[1] = Pooling(wide.config.hidden_size, pooling_mode=self.settings.pooling)
            self._left_out = sorted({name.partition(".")[0] for name in self.heads})
            self.heads = {}
            self.head = widen_head(self.head, wide.config, factor, seed) if self.head else None
        self._replace(wide)

    def write(self, target: Path, card: Mapping[str, Any], *, overwrite: bool, on_note: Callable[[str], None]) -> None:
        """Publish it as a model folder, in one step."""
        if self._left_out:
            on_note(f"left behind, since they do not grow: the heads {', '.join(self._left_out)}")
        with new_folder(target, overwrite=overwrite) as new:
            with quiet():
                self.model.save_pretrained(str(new), create_model_card=False)
            self._write_tokenizer(new)
            self._write_heads(new)
            write_json(new / CARD, {**card, "packages": package_versions()})
            seal(new, KIND, {})

    def _census(self, corpus: str, state: Path, *, words: bool, on_progress: OnProgress | None) -> Census:
        return take_census(read_documents(corpus), self.tokenizer, state, words=words, on_progress=on_progress)

    def _state(self) -> dict[str, Any]:
        return dict(json.loads(self.tokenizer.backend_tokenizer.to_str()))

    def _use(self, vocabulary: Vocabulary) -> None:
        """Take over a changed vocabulary: tokenizer, word embeddings, the head's bias, the ids in the settings."""
        embeddings, config = self.backbone.embeddings, self.backbone.config
        name, ids = FAMILIES[config.model_type].words, vocabulary.ids
        table = getattr(embeddings, name)
        padding = None if table.padding_idx is None else ids[table.padding_idx]
        weight = mean_rows(table.weight.detach(), vocabulary.rows)
        setattr(embeddings, name, nn.Embedding.from_pretrained(weight, freeze=False, padding_idx=padding))
        for key, value in config.to_dict().items():
            if key.endswith("_token_id") and isinstance(value, int) and value in ids:
                setattr(config, key, ids[value])
        config.vocab_size = len(weight)
        if self.head is not None:
            # A mean of rows and biases: the word's logit is the mean of its pieces' logits, whatever the text.
            self.head.bias = nn.Parameter(mean_rows(self.head.bias.detach()[:, None], vocabulary.rows)[:, 0])
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            self.tokenizer = _with_state(Path(folder), vocabulary.state)
        length = self.model.max_seq_length  # which lives in the tokenizer
        self.model[0].processor = self.tokenizer
        self.model.max_seq_length = length

    def _replace(self, backbone: Any) -> None:
        self.backbone = self.model[0].model = backbone

    def _write_tokenizer(self, folder: Path) -> None:
        """Check that the tokenizer that a reader of the folder gets is this one."""
        from transformers import AutoTokenizer

        place = read_model_folder(folder).backbone
        found = AutoTokenizer.from_pretrained(place)
        if tokenizer_digest(found) != tokenizer_digest(self.tokenizer):
            raise InputError(
                "the changed tokenizer cannot be saved so that transformers loads it again; leave it as it is"
            )

    def _write_heads(self, folder: Path) -> None:
        tensors = dict(self.heads)
        if self.head is not None:
            tensors |= {f"{_HEAD}{key}": value for key, value in self.head.state_dict().items()}
        if not tensors:
            return
        (folder / HEADS).mkdir()
        kept = {key: value.detach().contiguous() for key, value in tensors.items()}
        save_file(kept, folder / HEADS / "model.safetensors", metadata={"format": "pt"})
        config, names = self.backbone.config, {key.partition(".")[0] for key in tensors}
        sizes = {name: getattr(config, name) for name in ("model_type", "hidden_size", "vocab_size")}
        write_json(folder / HEADS / "config.json", {**self._record, **sizes, "heads": sorted(names)})


def mean_rows(table: Tensor, rows: Sequence[tuple[int, ...]]) -> Tensor:
    """For each tuple of row numbers the mean of these rows of a table (v, d); one row alone is that row, to the bit."""
    made = table[[row[0] for row in rows]].clone()
    for place, row in enumerate(rows):
        if len(row) > 1:
            made[place] = table[list(row)].double().mean(0).to(table.dtype)
    return made


def _with_state(folder: Path, state: Mapping[str, Any]) -> Any:
    """A saved tokenizer with another state.

    Raises:
        InputError: transformers makes another tokenizer of it.
    """
    from transformers import AutoTokenizer

    for name in _VOCABULARY_FILES:
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
    config = read_json(folder / "tokenizer_config.json")
    config.pop("added_tokens_decoder", None)  # the state has them
    write_json(folder / "tokenizer_config.json", config)
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder)
    found = json.loads(tokenizer.backend_tokenizer.to_str())
    if any(
        found[part] != state[part]
        for part in ("model", "normalizer", "pre_tokenizer", "post_processor", "added_tokens")
    ):
        raise InputError(
            f"transformers' {type(tokenizer).__name__} does not read back the changed vocabulary as it is; "
            "leave the vocabulary of this model as it is"
        )
    return tokenizer


@contextlib.contextmanager
def _reproducibly() -> Iterator[None]:
    """Draw weights that a folder lacks, such as an unused pooler's, from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _settings(folder: Path) -> ModelFolder:
    """What the folder records; a plain transformers folder pools by its first token and does not normalise."""
    if (folder / "modules.json").is_file():
        return read_model_folder(folder)
    return ModelFolder(folder, "cls", max_length=0, normalize=False)


def _sentence_transformer(folder: Path, settings: ModelFolder) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    if (folder / "modules.json").is_file():
        return SentenceTransformer(str(folder), device="cpu")
    transformer = Transformer(str(folder))
    pooling = Pooling(transformer.auto_model.config.hidden_size, pooling_mode=settings.pooling)
    return SentenceTransformer(modules=[transformer, pooling], device="cpu")


def _heads(folder: Path, settings: ModelFolder, backbone: Any) -> tuple[VocabularyHead | None, dict[str, Tensor]]:
    """The vocabulary head of a folder, and the tensors of the terms' heads; where there are none, None and nothing."""
    head = VocabularyHead(backbone.config)
    path = folder / HEADS / "model.safetensors"
    tensors = load_file(path) if path.is_file() else {}
    own = {key.removeprefix(_HEAD): value for key, value in tensors.items() if key.startswith(_HEAD)}
    others = {key: value for key, value in tensors.items() if not key.startswith(_HEAD)}
    if own:
        try:
            head.load_state_dict(own)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{path.parent} does not fit the model ({reason}…); remove that folder") from None
    elif not load_language_head(head, settings.backbone, backbone.config.model_type):
        return None, others
    return head, others
