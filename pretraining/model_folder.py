"""The model folder that pretraining makes: a sentence-transformers folder, the run card, the log and the heads."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from indexes.manifest import new_folder, seal, write_json
from pretraining.base import Base, save_heads
from pretraining.cross_encoder import FOLDER, save_cross_encoder
from pretraining.report import REPORT, write_report
from pretraining.terms.word_order import WordSetOrder
from retrieval.loading import quiet
from retrieval.run_card import CARD, KIND, LOG


def write_model_folder(
    target: Path, base: Base, *, max_length: int, card: Mapping[str, Any], log: Path, overwrite: bool
) -> None:
    """Publish a trained model in one step.

    Args:
        target: The folder to make.
        base: The trained model with its tokenizer.
        max_length: Tokens, special ones included, at which the folder's users cut texts.
        card: What `retrokit.json` says.
        log: The run's log, copied into the folder.
        overwrite: Whether an existing folder is replaced.
    """
    with new_folder(target, overwrite=overwrite) as new:
        with quiet():
            save_encoder(new, base, max_length)
        save_heads(base.model, new)
        for term in base.model.terms.values():
            if isinstance(term, WordSetOrder):
                save_cross_encoder(new / FOLDER, base.model.backbone, base.tokenizer, term)
        shutil.copyfile(log, new / LOG)
        write_json(new / CARD, card)
        write_report(new, new / REPORT, name=target.name)
        seal(new, KIND, {})


def save_encoder(folder: Path, base: Base, max_length: int, projection: Tensor | None = None) -> None:
    """Write a sentence-transformers folder of an encoder, its pooling, and a linear map (m, d) after it, if given."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    backbone = base.model.backbone
    base.tokenizer.model_max_length = max_length
    plain = folder / "plain"  # sentence-transformers builds its module from a folder, not from a model
    backbone.save_pretrained(plain)
    base.tokenizer.save_pretrained(plain)
    transformer = Transformer(str(plain), max_seq_length=max_length)
    modules = [transformer, Pooling(backbone.config.hidden_size, pooling_mode=base.model.pooling)]
    if projection is not None:
        given = {"bias": False, "activation_function": nn.Identity(), "init_weight": projection}
        modules.append(Dense(projection.shape[1], projection.shape[0], **given))
    modules += [Normalize()] if base.normalize else []
    model = SentenceTransformer(modules=modules, prompts=base.prompts, device="cpu")
    model.save(str(folder), create_model_card=False)
    shutil.rmtree(plain)
