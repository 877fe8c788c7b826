"""What this machine computes with: its fastest device, its cores, and whether bfloat16 pays."""

import os

from indexes.errors import InputError
from indexes.products import bfloat16_pays


def best_device() -> str:
    """The fastest device torch can see: cuda (NVIDIA, or AMD through ROCm), xpu, mps or cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if torch.xpu.is_available():
        return "xpu"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def devices() -> list[str]:
    """Every device of the best kind, one name each: `cuda:0`, `cuda:1` …; `cpu` alone where there is no other."""
    import torch

    kind = best_device()
    count = {"cuda": torch.cuda.device_count, "xpu": torch.xpu.device_count}.get(kind)
    return [f"{kind}:{number}" for number in range(count())] if count else [kind]


def check_device(name: str) -> str:
    """Give a device's name back, if torch can compute on it.

    Raises:
        InputError: It cannot; the message says on what it can.
    """
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device {name!r} cannot be used ({reason}); here are {', '.join(devices())}") from None
    return name


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bfloat16_is_faster() -> bool:
    """Whether this machine computes on its processor, and that multiplies bfloat16 clearly faster than float32."""
    return best_device() == "cpu" and bfloat16_pays()
