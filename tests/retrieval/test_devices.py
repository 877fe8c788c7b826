"""Which devices there are, a device that cannot be used, and whether bfloat16 pays."""

import os
import time

import pytest
import torch

from indexes.errors import InputError
from indexes.products import bfloat16_pays
from retrieval.devices import best_device, bfloat16_is_faster, check_device, cores, devices


@pytest.fixture
def machine(monkeypatch):
    """Make torch see devices that are not there."""

    def pretend(cuda=0, xpu=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.xpu, "is_available", lambda: xpu > 0)
        monkeypatch.setattr(torch.xpu, "device_count", lambda: xpu)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("there", "best", "names"),
    [
        ({}, "cpu", ["cpu"]),
        ({"cuda": 3, "xpu": 1}, "cuda", ["cuda:0", "cuda:1", "cuda:2"]),
        ({"xpu": 2}, "xpu", ["xpu:0", "xpu:1"]),
        ({"mps": True}, "mps", ["mps"]),
    ],
)
def test_devices(machine, there, best, names):
    machine(**there)
    assert best_device() == best
    assert devices() == names


def test_a_device_that_can_be_used_is_given_back():
    assert check_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["cuda:9", "cuda", "toaster", "xpu:0", "cpu:x"])
def test_a_device_that_cannot_be_used_is_refused_with_those_that_can(machine, monkeypatch, name):
    empty = torch.empty

    def not_here(*size, device):
        return empty(*size, device=device if device.startswith(("toaster", "cpu")) else "cuda:99")

    monkeypatch.setattr(torch, "empty", not_here)  # so that this fails on a machine with GPUs too
    with pytest.raises(InputError, match=rf"^device '{name}' cannot be used \(.+\); here are {', '.join(devices())}$"):
        check_device(name)
    machine(cuda=2)
    with pytest.raises(InputError, match="here are cuda:0, cuda:1"):
        check_device(name)


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    if hasattr(os, "sched_getaffinity"):
        assert cores() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8}, raising=False)
    assert cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


@pytest.mark.parametrize(("low", "expected"), [(0.5, True), (0.9, False), (2.0, False)])
def test_bfloat16_is_faster_if_it_is_clearly_faster(machine, monkeypatch, request, low, expected):
    bfloat16_pays.cache_clear()
    request.addfinalizer(bfloat16_pays.cache_clear)
    clock = [0.0]

    class Matrix:
        """Takes its time, the first time more (a cold cache)."""

        def __init__(self, seconds):
            self.seconds, self.cold = seconds, 10.0

        def __matmul__(self, other):
            clock[0] += self.seconds + self.cold
            self.cold = 0.0

    machine()
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "ones", lambda *size, dtype: Matrix(low if dtype == torch.bfloat16 else 1.0))
    assert bfloat16_is_faster() is expected
    machine(cuda=1)
    assert bfloat16_is_faster() is False
