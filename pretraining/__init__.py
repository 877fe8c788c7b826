"""Learning encoders from raw text: objectives, masks, heads and the pretraining loop.

Letters in shapes: b batch, t tokens, d dim, v vocabulary, r decoded rows, w words, n rows with a loss.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretraining.adaptation import AdaptConfig as AdaptConfig
    from pretraining.adaptation import AdaptResult as AdaptResult
    from pretraining.adaptation import adapt as adapt
    from pretraining.configuration import PretrainConfig as PretrainConfig
    from pretraining.distillation import DistillConfig as DistillConfig
    from pretraining.distillation import DistillResult as DistillResult
    from pretraining.distillation import distill as distill
    from pretraining.hybrid import export_hybrid as export_hybrid
    from pretraining.hybrid import hybrid_scores as hybrid_scores
    from pretraining.masking import MaskOptions as MaskOptions
    from pretraining.masking import seeded as seeded
    from pretraining.model import PretrainingModel as PretrainingModel
    from pretraining.objective import Objective as Objective
    from pretraining.reshaping import ReshapeConfig as ReshapeConfig
    from pretraining.reshaping import ReshapeResult as ReshapeResult
    from pretraining.reshaping import reshape as reshape
    from pretraining.run import PretrainResult as PretrainResult
    from pretraining.run import pretrain as pretrain

_HOMES = {
    "AdaptConfig": "adaptation",
    "AdaptResult": "adaptation",
    "adapt": "adaptation",
    "DistillConfig": "distillation",
    "DistillResult": "distillation",
    "MaskOptions": "masking",
    "Objective": "objective",
    "PretrainConfig": "configuration",
    "PretrainResult": "run",
    "PretrainingModel": "model",
    "ReshapeConfig": "reshaping",
    "ReshapeResult": "reshaping",
    "distill": "distillation",
    "export_hybrid": "hybrid",
    "hybrid_scores": "hybrid",
    "pretrain": "run",
    "reshape": "reshaping",
    "seeded": "masking",
}

__all__ = [
    "AdaptConfig",
    "AdaptResult",
    "DistillConfig",
    "DistillResult",
    "MaskOptions",
    "Objective",
    "PretrainConfig",
    "PretrainResult",
    "PretrainingModel",
    "ReshapeConfig",
    "ReshapeResult",
    "adapt",
    "distill",
    "export_hybrid",
    "hybrid_scores",
    "pretrain",
    "reshape",
    "seeded",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
