"""Bases: the model that pretraining starts from, with whatever heads it brings along."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

from indexes.errors import InputError
from indexes.manifest import read_json, write_json
from pretraining.backbones import FAMILIES, refuse_unsupported
from pretraining.heads import VocabularyHead
from pretraining.masking import MaskOptions
from pretraining.model import POOLINGS, PretrainingModel
from pretraining.objective import Objective
from retrieval.digests import weights_digest
from retrieval.loading import quiet
from retrieval.model_folder import ModelFolder, read_model_folder, resolve

HEADS = "heads"


@dataclass(frozen=True)
class Base:
    """A loaded base.

    Attributes:
        model: The encoder with its heads, in float32 on the CPU.
        tokenizer: Its fast tokenizer.
        normalize: Whether the base's folder scales vectors to unit length, which the result then does too.
        prompts: What the base's folder puts before queries and documents; the result does too.
        fingerprint: SHA-256 over the weights that came from the base; heads that start untrained are not in it.
    """

    model: PretrainingModel
    tokenizer: Any
    normalize: bool
    prompts: dict[str, str]
    fingerprint: str


def load_base(name: str, objective: Objective, masks: MaskOptions, *, pooling: str | None, seed: int) -> Base:
    """Load a base and the heads it has; heads that it lacks start from random numbers drawn from `seed`.

    Args:
        name: A sentence-transformers folder (also one that pretraining made: its `heads/` are loaded), a transformers
            folder, the packaged model's name, or one of the model hub.
        objective: What the heads are for.
        masks: Handed on to the model.
        pooling: `cls` or `mean`; None takes what the folder records, else `cls`.
        seed: Of the untrained heads.

    Raises:
        InputError: No such base, an architecture that is not supported, or a pooling that is not.
    """
    folder = resolve(name)
    settings = _settings(folder, name)
    backbone_folder, recorded = settings.backbone, settings.pooling
    pooling = pooling or recorded
    if pooling not in POOLINGS:
        raise InputError(f"{name} pools by {pooling}; pretraining supports {' or '.join(POOLINGS)}: pass --pooling")
    torch.manual_seed(seed)
    with quiet():
        refuse_unsupported(_config(backbone_folder, name))
        tokenizer = AutoTokenizer.from_pretrained(backbone_folder)
        backbone, report = AutoModel.from_pretrained(backbone_folder, dtype=torch.float32, output_loading_info=True)
    _refuse_slow(tokenizer, name)
    lacking = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if lacking:
        raise InputError(f"{name} lacks {len(lacking)} weights, such as {lacking[0]}; it is not a whole model")
    if getattr(backbone, "pooler", None) is not None:
        # It takes no part, and is kept, frozen, so that the folder loads elsewhere without missing weights.
        backbone.pooler.requires_grad_(False)
    model = PretrainingModel(backbone, tokenizer, objective, pooling=pooling, masks=masks)
    if model.head is not None and load_language_head(model.head, backbone_folder, backbone.config.model_type):
        model.untrained_heads.remove("head")
    load_heads(model, folder)
    fresh = ["head." if one == "head" else f"terms.{one}." for one in model.untrained_heads]
    fresh += ["backbone.pooler."] if report["missing_keys"] else []
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith(tuple(fresh))}
    return Base(model, tokenizer, settings.normalize, settings.prompts, weights_digest(weights))


def load_language_head(head: VocabularyHead, folder: Path, kind: str) -> bool:
    """Load the masked-language-model head of a folder, if it has one; say whether it has."""
    for place in FAMILIES[kind].heads:
        with quiet():
            lm, report = AutoModelForMaskedLM.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, **place.loaded
            )
        if any(key.startswith(place.dense) for key in report["missing_keys"]):
            continue
        head.transform.dense.load_state_dict(lm.get_submodule(place.dense).state_dict())
        head.transform.LayerNorm.load_state_dict(lm.get_submodule(place.norm).state_dict())
        with torch.no_grad():
            head.bias.copy_(lm.get_parameter(place.bias))
        return True
    return False


def save_heads(model: PretrainingModel, folder: Path) -> None:
    """Write `heads/`: the vocabulary head and those of each term, so that pretraining can go on from where it ended."""
    heads = folder / HEADS
    heads.mkdir()
    parts = _parts(model)
    weights = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, part in parts.items()
        for key, value in part.state_dict().items()
    }
    save_file(weights, heads / "model.safetensors", metadata={"format": "pt"})
    config = model.backbone.config
    record = {"model_type": config.model_type, "hidden_size": config.hidden_size, "vocab_size": config.vocab_size}
    write_json(heads / "config.json", {**record, "heads": list(parts), "objective": model.objective.record()})


def load_heads(model: PretrainingModel, folder: Path) -> None:
    """Load the heads that a model folder holds and take their names out of `untrained_heads`.

    Raises:
        InputError: They belong to a model of another size, or to terms of other options.
    """
    if not (folder / HEADS / "model.safetensors").is_file():
        return
    weights = load_file(folder / HEADS / "model.safetensors")
    there = read_json(folder / HEADS / "config.json")["heads"]
    for name, part in _parts(model).items():
        if name not in there:
            continue
        prefix = f"{name}."
        try:
            part.load_state_dict(
                {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{folder / HEADS} does not fit the model ({reason}…); remove that folder") from None
        model.untrained_heads = [each for each in model.untrained_heads if each != name]


def _parts(model: PretrainingModel) -> dict[str, nn.Module]:
    """What is kept in `heads/`, by name."""
    return {**({} if model.head is None else {"head": model.head}), **model.own_heads}


def _settings(folder: Path, name: str) -> ModelFolder:
    """What the folder records; a plain transformers folder pools by its first token and does not normalise."""
    if not (folder / "modules.json").is_file():
        return ModelFolder(folder, "cls", max_length=0, normalize=False)
    settings = read_model_folder(folder)
    if settings.dense:
        raise InputError(
            f"{name} has a dense layer after pooling, which pretraining would leave behind; use its backbone"
        )
    return settings


def _config(folder: Path, name: str) -> Any:
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name} is no transformers model ({str(error).splitlines()[0]})") from None


def _refuse_slow(tokenizer: Any, name: str) -> None:
    missing = [each for each in ("cls", "sep", "pad", "mask") if getattr(tokenizer, f"{each}_token_id") is None]
    if not tokenizer.is_fast or missing:
        lack = "is not a fast one" if not tokenizer.is_fast else f"has no {', '.join(missing)} token"
        raise InputError(f"{name}'s tokenizer {lack}; pretraining needs a fast tokenizer with BERT's special tokens")
