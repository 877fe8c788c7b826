"""Ingredients of soups: model folders, compared part by part, their weights read tensor by tensor."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from indexes.checksums import file_digest, fingerprint
from indexes.errors import InputError
from indexes.manifest import MANIFEST, read_json
from retrieval.digests import tokenizer_digest
from retrieval.loading import quiet
from retrieval.model_folder import ADAPTER, read_model_folder, resolve

WEIGHTS = "model.safetensors"
_SHARDS = "model.safetensors.index.json"
_SETTINGS = (".json", ".txt", ".model", ".jinja")
_NOT_COPIED = (MANIFEST, _SHARDS, "retrokit.json", ADAPTER)
_OLD = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_VOLATILE = (
    "_name_or_path",
    "_attn_implementation_autoset",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "gradient_checkpointing",
    "initializer_range",
    "initializer_cutoff_factor",
    "__version__",
    "version",
)
"""Settings that do not decide what the model computes; those of dropout do not either."""
_BY_DEFAULT = {"position_embedding_type": "absolute"}
_OTHER_SETTINGS = {
    "config_sentence_transformers.json": ("prompts", "default_prompt_name", "activation_fn"),
    "sentence_bert_config.json": ("max_seq_length",),
    "tokenizer_config.json": ("model_max_length",),
}
_TEXT_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "added_tokens", "model")


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of safetensors files, read one at a time, when they are asked for.

    Raises:
        InputError: A file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        names = [WEIGHTS]
        if (folder / _SHARDS).is_file():
            names = sorted(set(read_json(folder / _SHARDS)["weight_map"].values()))
        self.files = [folder / name for name in names]
        self._homes: dict[str, Any] = {}
        for path in self.files:
            try:
                opened = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise InputError(f"{path} cannot be read as safetensors: {' '.join(str(error).split())}") from None
            self._homes.update(dict.fromkeys(opened.keys(), opened))

    def __getitem__(self, name: str) -> Tensor:
        return self._homes[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._homes[name].get_slice(name).get_shape())


class Ingredient:
    """A model folder: of sentence-transformers (dense, sparse, cross-encoders) or of transformers.

    Attributes:
        name: What the user calls it.
        folder: Where it is.
        places: The folders of its modules within it; the first is the transformer's.
        parts: The weights of those modules that have some, by their places.
        tokenizer: Its tokenizer.
        description: Everything beside weights and tokenizer that decides what it computes, as one flat record.

    Raises:
        InputError: There is no such model, it is an adapter without its base, or its weights are not safetensors.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoTokenizer

        self.name, self.folder = name, resolve(name)
        if not any((self.folder / file).is_file() for file in ("modules.json", "config.json", ADAPTER)):
            raise InputError(f"{self.folder} is no model folder: it has neither modules.json nor config.json")
        plain = not (self.folder / "modules.json").is_file()
        modules = [{"type": "Transformer", "path": ""}] if plain else read_json(self.folder / "modules.json")
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        self.places = [str(module["path"]) for module in modules]
        if "Router" in kinds:
            raise InputError(f"{self.folder} has a model for queries and one for documents; a soup needs one for both")
        for place in self.places:
            self._refuse_other_weights(place)
        self.parts = {place: StoredTensors(self.folder / place) for place in self.places if self._has_weights(place)}
        if not self.parts:
            raise InputError(f"{name} has no weights: {self.folder / self.places[0] / WEIGHTS} is missing")
        self.description = {"modules": " → ".join(kinds), **self._described(kinds)}
        try:
            with quiet():
                self.tokenizer = AutoTokenizer.from_pretrained(self.folder / self.places[0])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{name}'s tokenizer cannot be loaded: {' '.join(str(error).split())[:200]}") from None

    @property
    def files(self) -> list[Path]:
        """The files beside weights that make it what it is: settings and tokenizer, within the folder."""
        folders = [self.folder / place for place in dict.fromkeys(["", *self.places])]
        return [
            path.relative_to(self.folder)
            for folder in folders
            if folder.is_dir()  # copies of models lose empty ones, such as that of normalisation
            for path in sorted(folder.iterdir())
            if path.is_file() and path.suffix in _SETTINGS and path.name not in _NOT_COPIED
        ]

    def fingerprint(self) -> str:
        """SHA-256 over the contents of its settings, its tokenizer and its weights' files, as 64 hex digits."""
        weights = [path.relative_to(self.folder) for part in self.parts.values() for path in part.files]
        return fingerprint({path.as_posix(): file_digest(self.folder / path) for path in [*self.files, *weights]})

    def refuse_unlike(self, other: "Ingredient") -> None:
        """Refuse another model unless it differs from this one in the values of its weights alone.

        Raises:
            InputError: It differs; the message names the first difference.
        """
        found = _first_difference(self.description, other.description) or self._other_text(other)
        for place, part in self.parts.items():
            found = found or _other_tensors(part, other.parts.get(place, {}))
        if found:
            raise InputError(f"{self.name} and {other.name} are not of one kind ({found}); a soup needs such models")

    def _refuse_other_weights(self, place: str) -> None:
        folder = self.folder / place
        if (folder / ADAPTER).is_file():
            raise InputError(f"{folder} is an adapter without its base; merge it into the base first")
        if not self._has_weights(place) and any((folder / name).is_file() for name in _OLD):
            raise InputError(f"{folder} has weights as pickles only; save it as safetensors")

    def _has_weights(self, place: str) -> bool:
        return any((self.folder / place / name).is_file() for name in (WEIGHTS, _SHARDS))

    def _described(self, kinds: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if kinds[:2] == ["Transformer", "Pooling"] and set(kinds[2:]) <= {"Dense", "Normalize"}:
            settings = read_model_folder(self.folder)
            prompts = {f"prompt {name!r}": text for name, text in settings.tasks.items() if text}
            found = {"pooling": settings.pooling, "max_length": settings.max_length, **prompts}
        else:
            found = self._other_settings()
        for place, kind in zip(self.places, kinds, strict=True):
            path = self.folder / place / "config.json"
            if kind in ("Pooling", "Normalize") or not path.is_file():
                continue
            config = _config(self.folder / place) if "model_type" in (raw := read_json(path)) else raw
            found |= {f"{place or 'model'}.{name}": value for name, value in config.items() if _decides(name)}
        return found

    def _other_settings(self) -> dict[str, Any]:
        """What cross-encoders and sparse encoders keep beside their configuration: lengths, prompts, activations."""
        found: dict[str, Any] = {}
        for file, names in _OTHER_SETTINGS.items():
            for folder in dict.fromkeys([self.folder, self.folder / self.places[0]]):
                path = folder / file
                record = read_json(path) if path.is_file() else {}
                found |= {f"{file}: {name}": record[name] for name in names if record.get(name)}
        return found

    def _other_text(self, other: "Ingredient") -> str:
        """How the other's tokenizer differs; empty: it does not."""
        if tokenizer_digest(self.tokenizer) == tokenizer_digest(other.tokenizer):
            return ""
        ours, theirs = (sorted(one.tokenizer.get_vocab().items(), key=lambda entry: entry[1]) for one in (self, other))
        for (piece, number), (another, _) in zip(ours, theirs, strict=False):
            if piece != another:
                return f"vocabulary: token {number} is {piece!r} ≠ {another!r}"
        if len(ours) != len(theirs):
            return f"vocabulary: {len(ours):,} ≠ {len(theirs):,} tokens"
        return f"tokenizer: another {_other_part(self.tokenizer, other.tokenizer)}"


def _config(folder: Path) -> dict[str, Any]:
    """A transformer's settings, as the installed transformers understand them, whichever version wrote them."""
    from transformers import AutoConfig

    try:
        with quiet():
            return dict(AutoConfig.from_pretrained(folder).to_dict())
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} cannot be loaded as a model: {' '.join(str(error).split())[:200]}") from None


def _decides(name: str) -> bool:
    return name not in _VOLATILE and "dropout" not in name and not name.endswith("_drop")


def _first_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    for name in {**ours, **theirs}:
        default = _BY_DEFAULT.get(name.rpartition(".")[2])
        one, other = ours.get(name, default), theirs.get(name, default)
        if one != other:
            return f"{name}: {one!r} ≠ {other!r}"
    return ""


def _other_part(one: Any, other: Any) -> str:
    """Which part of a fast tokenizer differs."""
    import json

    if not (one.is_fast and other.is_fast):
        return "kind"
    states = [json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (one, other)]
    return next((part for part in _TEXT_PARTS if states[0].get(part) != states[1].get(part)), "part")


def is_idle(name: str) -> bool:
    """Whether a tensor takes no part in vectors and some folders lack it: a pooler's, or positions counted out."""
    return "pooler." in f".{name}" or name.endswith("embeddings.position_ids")


def _other_tensors(ours: StoredTensors, theirs: Mapping[str, Tensor]) -> str:
    """The first tensor that only one has or that has two shapes; empty: there is none."""
    for name in sorted({*ours, *theirs}):
        if isinstance(theirs, StoredTensors) and name in ours and name in theirs:
            if ours.shape(name) != theirs.shape(name):
                return f"shape of {name}: {ours.shape(name)} ≠ {theirs.shape(name)}"
        elif not is_idle(name):
            return f"tensor {name} is in one only"
    return ""
