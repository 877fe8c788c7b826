"""Which backend and dtype encode fastest on this machine, by a short trial whose outcome is remembered."""

import importlib.metadata
import importlib.util
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from indexes.checksums import fingerprint
from indexes.errors import InputError
from indexes.manifest import read_json, write_json
from retrieval.cache import cache_home
from retrieval.calibration import calibration_digest, calibration_texts
from retrieval.console import note
from retrieval.devices import bfloat16_is_faster, cores

if TYPE_CHECKING:
    from retrieval.encoder import Encoder
    from retrieval.torch_backend import TorchBackend

Candidate = tuple[str, str]
"""Backend and dtype."""

_CANDIDATES: tuple[Candidate, ...] = (
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("torch", "float16"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("openvino", "int8"),
)
_ALLOWED = {"float32": 1e-5, "bfloat16": 1e-3, "float16": 1e-3, "int8": 1e-2}
"""How far, 1 - cosine, each dtype may be from float32 where the user names it (see `Encoder`)."""
_NEVER_WITHIN = {"bfloat16": 1e-5, "int8": 1e-3}
"""Tolerances that no model meets at this dtype, so that a trial would be in vain."""
_TEXTS = {"cpu": 32, "other": 1024}
_PASSES = 3
_LONG = 2.0
"""Seconds of a first pass that is not repeated."""


class Tried(NamedTuple):
    """What one candidate did."""

    backend: str
    dtype: str
    rate: float
    """Texts per second."""
    distance: float
    """The largest 1 - cosine from torch float32."""


def fastest(load: "Callable[..., Encoder]", dtype: str | None, tolerance: float) -> Candidate:
    """Try what this machine can run and choose the fastest that is near enough to float32 on torch.

    Without a dtype, every candidate has to keep the tolerance; torch float32 always does. A dtype that is given
    stands: then the candidates are the backends that have it, they may be as far from float32 as that dtype is allowed
    to be or as `tolerance` says, whichever is more, and the nearest is chosen if none keeps that.

    The decision is kept in the cache folder for this encoder, machine and software, so that a run that is resumed
    decides as it did before.

    Args:
        load: Called with `backend` and `dtype`; gives an `Encoder`.
        dtype: One of the encoder's, or None.
        tolerance: The largest distance, 1 - cosine.

    Returns:
        Backend and dtype.

    Raises:
        InputError: The tolerance is not positive, or not even torch can load the encoder.
    """
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance is {tolerance:g}; expected a distance, 1 - cosine, between 0 and 1")
    if dtype == "int8":
        return "openvino", dtype
    reference = load(backend="torch", dtype="float32")
    device = cast("TorchBackend", reference.backend).device
    candidates = _candidates(device.type, dtype, tolerance)
    if len(candidates) == 1:
        return candidates[0]
    decided_by = _decided_by(reference, str(device), dtype, tolerance)
    place = cache_home() / "trials" / f"{fingerprint(decided_by)}.json"
    chosen = _recalled(place)
    if chosen not in candidates:
        tried = _try_all(load, reference, candidates)
        chosen = choose(tried, max(tolerance, _ALLOWED[dtype]) if dtype else tolerance)
        _keep(place, {"chosen": chosen, "tried": [one._asdict() for one in tried], "decided_by": decided_by})
    note(f"encoding with backend {chosen[0]}, dtype {chosen[1]}")
    return chosen


def choose(tried: Sequence[Tried], limit: float) -> Candidate:
    """The fastest of those that are no farther from float32 than a limit; if there is none, the nearest."""
    within = [one for one in tried if one.distance <= limit]
    best = max(within, key=lambda one: one.rate) if within else min(tried, key=lambda one: one.distance)
    return best.backend, best.dtype


def _candidates(device: str, dtype: str | None, tolerance: float) -> list[Candidate]:
    """What this machine can run: with a dtype the backends that have it, else all that pay and may keep the tolerance.

    Bfloat16 pays where the device multiplies faster in it; float16 is never chosen unasked, since it overflows.
    """
    openvino = device == "cpu" and _version("openvino") is not None
    here = [(backend, name) for backend, name in _CANDIDATES if backend == "torch" or openvino]
    if dtype is not None:
        return [one for one in here if one[1] == dtype]
    pays = {"float16": False, "int8": _version("nncf") is not None}
    pays["bfloat16"] = device == "cuda" or (device == "cpu" and bfloat16_is_faster())
    return [one for one in here if pays.get(one[1], True) and tolerance > _NEVER_WITHIN.get(one[1], 0)]


def _try_all(load: "Callable[..., Encoder]", reference: "Encoder", candidates: Sequence[Candidate]) -> list[Tried]:
    from retrieval.openvino_models import distances

    count = _TEXTS["cpu" if cast("TorchBackend", reference.backend).device.type == "cpu" else "other"]
    texts = (calibration_texts() * count)[:count]
    right = reference.encode_documents(texts)
    tried = []
    for backend, dtype in candidates:
        try:
            encoder = load(backend=backend, dtype=dtype)
        except InputError as error:
            note(f"trial: {backend} {dtype} left out: {error}")
            continue
        vectors, rate = _measure(encoder, texts)
        tried.append(Tried(backend, dtype, rate, float(distances(right, vectors).max())))
        note(f"trial: {backend} {dtype}: {rate:,.1f} texts/s, 1 - cosine at most {tried[-1].distance:.1e}")
    return tried


def _measure(encoder: "Encoder", texts: Sequence[str]) -> tuple[Any, float]:
    """Vectors, and texts per second of the best of a few passes after a first one, unless that is long already."""
    seconds = []
    for number in range(1 + _PASSES):
        start = time.perf_counter()
        vectors = encoder.encode_documents(texts)
        seconds.append(time.perf_counter() - start)
        if number == 0 and seconds[0] > _LONG:
            break
    return vectors, len(texts) / min(seconds)


def _decided_by(reference: "Encoder", device: str, dtype: str | None, tolerance: float) -> dict[str, Any]:
    """Everything that may make a decision another one."""
    import torch

    return {
        "encoder": reference.fingerprint,
        "dtype": dtype,
        "tolerance": tolerance,
        "texts": calibration_digest(),
        "device": f"{device} {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else device,
        "processor": _processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "versions": {package: _version(package) for package in ("torch", "transformers", "openvino", "nncf")},
    }


def _processor() -> str:
    """The processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else f"{platform.machine()} {platform.processor()}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package) if importlib.util.find_spec(package) else None
    except importlib.metadata.PackageNotFoundError:
        return None


def _recalled(place: Path) -> Candidate | None:
    """The decision of an earlier trial; None where there is none that can be read."""
    try:
        backend, dtype = read_json(place)["chosen"]
    except (InputError, OSError, KeyError, TypeError, ValueError):
        return None
    return backend, dtype


def _keep(place: Path, decision: Mapping[str, Any]) -> None:
    try:
        write_json(place, decision)
    except OSError as error:
        note(f"the trial is not remembered: {place} cannot be written ({error.strerror})")
