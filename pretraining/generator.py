"""A frozen masked-language model that fills masks with what it finds likely, for terms that read replaced texts."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer

from indexes.errors import InputError
from pretraining.masking import Vocabulary
from retrieval.loading import quiet
from retrieval.model_folder import resolve

_ROWS_AT_ONCE = 1024


class Generator:
    """Samples tokens for masked places. It is no part of the module that trains: nothing of it is learned or saved.

    Args:
        name: A folder with a masked-language model, or a name of the hub, such as google/electra-base-generator.

    Raises:
        InputError: No name is given, or no such model.
    """

    def __init__(self, name: str) -> None:
        if not name:
            raise InputError("generator is ''; expected a masked-language model, such as google/electra-base-generator")
        folder = resolve(name)
        try:
            with quiet():
                self._model, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
                pieces = AutoTokenizer.from_pretrained(folder).get_vocab()
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"generator {name} is no masked-language model ({str(error).splitlines()[0]})") from None
        if report["missing_keys"]:
            lack = sorted(report["missing_keys"])
            raise InputError(f"generator {name} lacks {len(lack)} weights, such as {lack[0]}; it would guess at random")
        self._model.requires_grad_(False).eval()
        self.name, self._digest = name, pieces_digest(pieces)

    @torch.no_grad()
    def fill(
        self, ids: Tensor, attention_mask: Tensor, places: Tensor, vocabulary: Vocabulary, generator: torch.Generator
    ) -> Tensor:
        """Put [MASK] at places (b, t) of ids (b, t), and draw each from what the model expects there: ids (b, t).

        Raises:
            InputError: Its pieces and ids are not those of the encoder.
        """
        if self._digest != vocabulary.digest:
            raise InputError(f"generator {self.name} has another vocabulary than the base; choose one of the same")
        self._model.to(ids.device)
        masked = torch.where(places, vocabulary.mask_id, ids)
        logits = self._model(input_ids=masked, attention_mask=attention_mask).logits[places]  # (n, v)
        drawn = [
            torch.multinomial(rows[:, : vocabulary.size].float().softmax(-1), 1, generator=generator)[:, 0]
            for rows in logits.split(_ROWS_AT_ONCE)
        ]
        filled = ids.clone()
        filled[places] = torch.cat(drawn)
        return filled


def pieces_digest(pieces: Mapping[str, Any]) -> str:
    """SHA-256 over a vocabulary's pieces and ids."""
    return hashlib.sha256(json.dumps(sorted(pieces.items())).encode()).hexdigest()
