"""The run card of a model that was trained here, and whether a folder is what a configuration makes."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from indexes.checksums import verify
from indexes.errors import InputError
from indexes.manifest import differences, open_manifest, read_json, refuse_existing
from retrieval.working import sweep

CARD = "retrokit.json"
"""The run card in a finished model folder; its `configuration` is what must be equal for two runs to be the same."""
KIND = "model"
LOG = "log.jsonl"
"""The log in it and in a working folder: a JSON object a step."""

_PACKAGES = ("torch", "transformers", "tokenizers", "sentence-transformers", "accelerate", "numpy")


def package_versions() -> dict[str, str]:
    """The versions of the packages that decide what a run computes."""
    return {name: version(name) for name in _PACKAGES}


def finished_card(target: Path, configuration: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """The card of a model folder that this very configuration made and that is whole; None if it has to be made.

    Raises:
        InputError: The folder exists and is another's or damaged, and may not be overwritten.
    """
    if overwrite or not target.exists():
        refuse_existing(target, overwrite=overwrite)
        return None
    if not (target / CARD).is_file():
        refuse_existing(target, overwrite=False)
    card = read_json(target / CARD)
    found = differences(configuration, card.get("configuration", {}))
    if found:
        raise InputError(f"{target} was made otherwise ({found}); choose another --output or pass --overwrite")
    verify(target, open_manifest(target, KIND))
    sweep(target, configuration)
    return card
