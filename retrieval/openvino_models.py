"""Torch modules to openvino models: converted, checked, quantised to int8, and kept in the cache folder."""

import contextlib
import functools
import importlib.metadata
import io
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from indexes.checksums import fingerprint, verify
from indexes.errors import InputError
from indexes.manifest import LOCK, held, new_folder, open_manifest, seal
from retrieval.batches import Batch, token_batches
from retrieval.cache import cache_home
from retrieval.calibration import calibration_texts
from retrieval.console import note
from retrieval.loading import quiet
from retrieval.tokenizing import TextTokenizer
from retrieval.torch_backend import EmbeddingModule

_KIND = "openvino model"
_LAYOUT = 1
"""To be raised whenever the same module is to give another model."""
_MODEL = "model.xml"
_SAME = 1e-4
"""How far, 1 - cosine, a converted model may be from torch in float32; what is converted rightly stays below 1e-6."""
_NOT_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


def import_openvino(package: str = "openvino") -> Any:
    """Import openvino or nncf without their telemetry, which reports to Google Analytics without being asked to.

    Raises:
        InputError: The extra is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"backend openvino needs {package} ({error}): pip install 'retrokit[openvino]'") from None


@functools.cache
def core() -> Any:
    """The one `openvino.Core` of this process."""
    return import_openvino().Core()


def begin(request: Any, batch: Batch) -> Any:
    """Start computing a batch; give the request back.

    Never by its method `infer`, in the caller's thread: there an error ends the process (openvino 2026.4).
    """
    request.start_async([batch.ids, batch.mask])
    return request


def vectors_of(request: Any) -> NDArray[np.float32]:
    """Wait for a batch that was begun and give its vectors (b, d).

    Raises:
        RuntimeError: It could not be computed.
    """
    request.wait()
    return request.get_output_tensor(0).data.copy()


def prepared(module: EmbeddingModule, texts: TextTokenizer, fields: Mapping[str, Any]) -> Any:
    """The openvino model of a torch module, from the cache if it was made before.

    A damaged cache entry is made again; where the cache cannot be written the model stays in memory. Of several
    processes that want the same model at once, one makes it and the others wait.

    Args:
        module: Weights of bfloat16 or float32; it has float32 ones afterwards if a model was made of it.
        texts: Its tokenizer, for calibration.
        fields: Of the encoder.

    Returns:
        An `openvino.Model`: token ids (b, t) and mask (b, t) -> vectors (b, d).

    Raises:
        InputError: The extra is not installed, or openvino cannot convert the module.
    """
    made_of = _made_of(module, fields)
    place = cache_home() / "openvino" / fingerprint(made_of)
    found = _read(place)
    if found is not None:
        return found
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # of a place that cannot be written; `_keep` says so
            place.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(place.parent / LOCK, wait=True))
        found = _read(place)
        if found is not None:
            return found
        note(f"making the {fields['dtype']} model for openvino (once; kept in {place.parent})")
        return _keep(place, _made(module, texts, fields), made_of)


def _made(module: EmbeddingModule, texts: TextTokenizer, fields: Mapping[str, Any]) -> Any:
    """Convert, compare with torch (tracing follows one way through the code, perhaps not the only one), quantise."""
    model = convert(module)
    found = _compare(model, module, texts, 8).max()
    if not found <= _SAME:
        raise InputError(
            f"openvino computes {type(module.backbone).__name__} otherwise than torch does (1 - cosine {found:.2g}, "
            f"at most {_SAME:g} expected); use backend torch"
        )
    if fields["dtype"] != "int8":
        return model
    model = quantize(model, texts, fields)
    cosines = 1 - _compare(model, module, texts, 32)
    note(f"cosine of int8 with float32 vectors of calibration texts: {cosines.mean():.4f} (least {cosines.min():.4f})")
    return model


def convert(module: EmbeddingModule) -> Any:
    """A torch module as an `openvino.Model` in float32, for any number and length of texts.

    Raises:
        InputError: Openvino cannot convert it.
    """
    openvino = import_openvino()
    module.float()
    module.backbone.config.use_cache = False
    ids, mask = torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long)
    mask[1, 5:] = 0
    try:
        with quiet(), _traceable_masks(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return openvino.convert_model(module, example_input={"input_ids": ids, "attention_mask": mask})
    except Exception as error:  # whatever tracing and conversion run into
        kind = type(module.backbone).__name__
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"openvino cannot convert {kind} ({reason}); use backend torch") from None


@contextlib.contextmanager
def _traceable_masks() -> Iterator[None]:
    """Have transformers make attention masks by plain operations, in which every token sees at least itself.

    Where padding lies farther than a sliding window from any token, it would see nothing at all; openvino makes NaN of
    that, which the next layer spreads. What tokens see is not changed.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as FUNCTIONS

    plain = FUNCTIONS["sdpa"]

    def mask(*args: Any, **options: Any) -> Any:
        made = plain(*args, **{**options, "use_vmap": False})  # (b, 1, t, t) bool
        return None if made is None else made | torch.eye(made.shape[-2], made.shape[-1], dtype=torch.bool)

    FUNCTIONS["sdpa"] = mask
    try:
        yield
    finally:
        FUNCTIONS["sdpa"] = plain


def quantize(model: Any, texts: TextTokenizer, fields: Mapping[str, Any]) -> Any:
    """An `openvino.Model` with int8 matrix products, its ranges measured on the calibration texts.

    Every second text goes through as a query, the others as documents, each after its prompt.
    """
    nncf = import_openvino("nncf")
    prompts = fields["document_prompt"], fields["query_prompt"]
    tokens = texts.truncate([prompts[row % 2] + text for row, text in enumerate(calibration_texts())], "").tokens
    samples = [dict(zip(("input_ids", "attention_mask"), _alone(ids), strict=True)) for ids in tokens]
    nncf.set_log_level(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        warnings.simplefilter("ignore")
        return nncf.quantize(
            model, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples)
        )


def _alone(ids: list[int]) -> tuple[Any, Any]:
    row = np.array([ids], dtype=np.int64)
    return row, np.ones_like(row)


def _made_of(module: EmbeddingModule, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides what the model is; texts and prompts do only where it is calibrated with them."""
    calibrated = fields["dtype"] == "int8"
    decisive = ("weights", "pooling", "normalize", "dim", "dtype", "attention_temperature")
    names = fields if calibrated else [name for name in decisive if name in fields]
    config = module.backbone.config.to_dict()
    packages = ("openvino", "torch", "transformers", *(["nncf"] if calibrated else []))
    for package in ("openvino", *(["nncf"] if calibrated else [])):
        import_openvino(package)
    return {
        "layout": _LAYOUT,
        "fields": {name: fields[name] for name in names},
        "config": fingerprint({name: str(config[name]) for name in config if name not in _NOT_THE_MODEL}),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def _compare(model: Any, module: EmbeddingModule, texts: TextTokenizer, count: int) -> NDArray[np.float64]:
    """1 - cosine between vectors of a model and of its torch module, for texts alone and together (2 × count,)."""
    tokens = texts.truncate(calibration_texts()[:count], "").tokens
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = []
    for budget in (1, sum(map(len, tokens)) * count):
        for batch in token_batches(tokens, budget, texts.pad):
            with torch.inference_mode():
                right = module(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)).numpy()
            found.append(distances(right, vectors_of(begin(compiled.create_infer_request(), batch))))
    return np.concatenate(found)


def distances(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """1 - cosine of each row of one matrix with the same row of another: (n, d), (n, d) -> (n,)."""
    one, other = (np.asarray(part, dtype=np.float64) for part in (one, other))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return 1 - (one * other).sum(axis=1) / np.maximum(lengths, 1e-300)


def _read(place: Path) -> Any:
    """A kept model; None where there is none, or only a damaged one."""
    try:
        verify(place, open_manifest(place, _KIND))
        return core().read_model(place / _MODEL)
    except (InputError, OSError, RuntimeError):
        return None


def _keep(place: Path, model: Any, made_of: Mapping[str, Any]) -> Any:
    """Write a model to the cache and give back what is there: the same way now and at the next start."""
    try:
        shutil.rmtree(place, ignore_errors=True)
        with new_folder(place, overwrite=True) as folder:
            import_openvino().save_model(model, folder / _MODEL, compress_to_fp16=False)
            seal(folder, _KIND, made_of)
    except (OSError, RuntimeError) as error:
        note(f"the model is not kept: {place.parent} cannot be written ({' '.join(str(error).split())[:200]})")
        return model
    kept = _read(place)
    return model if kept is None else kept
