"""DupMAE's hybrid representation: a reduced sentence vector and the heaviest words, for a dense and an inverted index.

Source: Liu et al., "RetroMAE-2: Duplex Masked Auto-Encoder For Pre-Training Retrieval-Oriented Language Models"
(arXiv 2305.02564), equations 10-12.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM

from indexes.errors import InputError
from indexes.manifest import new_folder, refuse_existing, seal, write_json
from pretraining.backbones import FAMILIES
from pretraining.base import Base, load_base
from pretraining.heads import VocabularyHead
from pretraining.masking import MaskOptions
from pretraining.model_folder import save_encoder
from pretraining.objective import Objective
from pretraining.view import sentence_vector
from retrieval.loading import quiet
from retrieval.run_card import CARD, KIND

DENSE, SPARSE = "dense", "sparse"
_TEXTS = 2000
_BATCH = 16


class Words(NamedTuple):
    """The heaviest words of texts."""

    ids: Tensor
    """(n, k)"""
    weights: Tensor
    """(n, k)"""


def heaviest_words(weights: Tensor, count: int, special: Tensor) -> Words:
    """The heaviest words of each text, of weights (n, v), without special and unused ones (v,): eq. 11's I_X."""
    found, ids = weights.masked_fill(special, -torch.inf).topk(min(count, int((~special).sum())), dim=1)
    return Words(ids, found)


def hybrid_scores(queries: Tensor, query_words: Tensor, documents: Tensor, document_words: Words) -> Tensor:
    """⟨h'_q, h'_d⟩ + Σ_{i ∈ I_d} μ_q[i] μ_d[i] of every query with every document, (q, d): eq. 12.

    Args:
        queries: Reduced sentence vectors (q, d').
        query_words: All words' weights (q, v): a query's are not pruned.
        documents: Reduced sentence vectors (d, d').
        document_words: Each document's heaviest words.
    """
    lexical = (query_words[:, document_words.ids] * document_words.weights).sum(-1)  # (q, d, k) summed
    return queries @ documents.T + lexical


def reduction(vectors: Tensor, dim: int) -> Tensor:
    """The map (dim, d) to fewer numbers that keeps inner products of vectors (n, d) best, in the least squares' sense.

    It is W_cls before fine-tuning: the first right singular vectors, not centred. (The paper learns it while
    fine-tuning, and does not say where it begins.)
    """
    _, _, right = torch.linalg.svd(vectors.double(), full_matrices=False)
    return right[:dim].to(vectors.dtype)


def export_hybrid(
    model: str | Path,
    output: str | Path,
    texts: Iterable[str],
    *,
    dim: int = 384,
    words: int | None = None,
    overwrite: bool = False,
    on_note: Callable[[str], None] | None = None,
) -> None:
    """Write the halves of a pretrained model: `dense/`, a sentence-transformers folder, and `sparse/`, a SPLADE one.

    The dense half ends in a linear map to `dim` numbers. The sparse half's weights are log(1 + max(0, μ)) where the
    paper takes μ as it is: an inverted index has no use for words that a text does not have (`hybrid_scores` takes
    any). Both are starts for fine-tuning, like the model itself. An index over both scores by their sum (`--fusion
    sum`).

    Args:
        model: A folder that `pretrain` made with a term that trains the vocabulary head, such as dupmae.
        output: The folder to make.
        texts: Some of the corpus (the first 2,000 are read), for `reduction`.
        dim: How many numbers the dense half has; as many as the model: no map.
        words: How many words of a text keep their weight, the heaviest; None: all. It goes for queries too: the paper
            prunes documents alone, as `SparseEncoder.load(document_terms=…)` does.
        overwrite: Replace an existing folder.
        on_note: Called with lines for a person.

    Raises:
        InputError: The model has no trained vocabulary head, too few texts are given, or a number is out of range.
    """
    target = Path(output)
    refuse_existing(target, overwrite=overwrite, inputs=[model])
    base = load_base(str(model), Objective.parse("mlm"), MaskOptions(), pooling=None, seed=0)
    if base.model.untrained_heads:
        raise InputError(f"{model} has no vocabulary head; take a folder that pretrain made, such as by dupmae")
    width = base.model.backbone.config.hidden_size
    if not 1 <= dim <= width:
        raise InputError(f"dim is {dim}; expected 1 to {width}, the width of {model}")
    if words is not None and words < 1:
        raise InputError(f"words is {words}; expected at least 1")
    projection = None
    if dim < width:
        vectors = _sentence_vectors(base, texts)
        if len(vectors) < dim:
            raise InputError(
                f"{len(vectors)} texts are given; a map to {dim} numbers needs as many: give more, or less dim"
            )
        projection = reduction(vectors, dim)
        kept = (vectors @ projection.T).square().sum() / vectors.square().sum()
        (on_note or (lambda _: None))(f"{dim} of {width} numbers keep {kept:.1%} of the vectors' squared length")
    length = min(base.model.parts.longest, base.tokenizer.model_max_length)
    with new_folder(target, overwrite=overwrite) as new:
        with quiet():
            save_encoder(new / DENSE, base, length, projection)
            _save_sparse(new / SPARSE, base, length, words)
        write_json(new / CARD, {"made_by": "retrokit hybrid", "base": str(model), "dim": dim, "words": words})
        seal(new, KIND, {})


def _save_sparse(folder: Path, base: Base, max_length: int, words: int | None) -> None:
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

    assert base.model.head is not None  # noqa: S101 - the objective is mlm
    with tempfile.TemporaryDirectory() as plain:  # the module is built from a folder, not from a model
        language_model(base.model.backbone, base.model.head).save_pretrained(plain)
        base.tokenizer.save_pretrained(plain)
        modules = [MLMTransformer(plain, max_seq_length=max_length), SpladePooling("max")]
        model = SparseEncoder(modules=modules, prompts=base.prompts, max_active_dims=words, device="cpu")
        model.save(str(folder), create_model_card=False)


def language_model(backbone: Any, head: VocabularyHead) -> Any:
    """A masked-language model of transformers with these weights."""
    place = FAMILIES[backbone.config.model_type].heads[0]
    model = AutoModelForMaskedLM.from_config(_with(backbone.config, place.loaded))
    own = model.base_model.state_dict()
    model.base_model.load_state_dict({name: value for name, value in backbone.state_dict().items() if name in own})
    model.get_submodule(place.dense).load_state_dict(head.transform.dense.state_dict())
    model.get_submodule(place.norm).load_state_dict(head.transform.LayerNorm.state_dict())
    with torch.no_grad():
        model.get_parameter(place.bias).copy_(head.bias)
    model.tie_weights()
    return model.eval()


def _with(config: Any, changes: Any) -> Any:
    return type(config)(**{**config.to_dict(), **changes})


@torch.no_grad()
def _sentence_vectors(base: Base, texts: Iterable[str]) -> Tensor:
    model, some = base.model.eval(), list(itertools.islice(texts, _TEXTS))
    length = min(base.model.parts.longest, base.tokenizer.model_max_length)
    out = [torch.zeros(0, model.backbone.config.hidden_size)]
    for start in range(0, len(some), _BATCH):
        batch = base.tokenizer(
            some[start : start + _BATCH], truncation=True, max_length=length, padding=True, return_tensors="pt"
        )
        hidden = model.parts.run(batch["input_ids"], batch["attention_mask"])[0]
        out.append(sentence_vector(hidden, batch["attention_mask"], model.pooling))
    return torch.cat(out)
