"""The trial: the fastest that is near enough wins, and the decision is remembered."""

import importlib.util
import time
from types import SimpleNamespace

import numpy as np
import pytest

from indexes.errors import InputError
from retrieval import trial
from retrieval.encoder import Encoder
from retrieval.trial import Tried, choose, fastest

SECONDS = {"torch": 0.02, "openvino": 0.01}
DISTANCES = {"float32": 0.0, "bfloat16": 1e-4, "float16": 1e-4, "int8": 3e-3}


class Fake:
    """Encoders that take as long and lie as far from float32 as they are told, and which of them were loaded."""

    def __init__(self):
        self.seconds = {(b, d): s * (0.4 if d == "int8" else 1) for b, s in SECONDS.items() for d in DISTANCES}
        self.distances = {(b, d): DISTANCES[d] for b, d in self.seconds}
        self.loaded = []
        self.fingerprint = "f" * 64
        self.refused = ()
        self.clock = 0.0

    def load(self, *, backend, dtype):
        if (backend, dtype) in self.refused:
            raise InputError("openvino cannot convert Strange; use backend torch")
        self.loaded.append((backend, dtype))
        angle = np.arccos(1 - self.distances[backend, dtype])

        def encode(texts):
            self.clock += self.seconds[backend, dtype]
            return np.tile(np.array([[np.cos(angle), np.sin(angle)]], dtype=np.float64), (len(texts), 1))

        return SimpleNamespace(
            encode_documents=encode,
            fingerprint=self.fingerprint,
            backend=SimpleNamespace(device=SimpleNamespace(type="cpu")),
        )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "retrokit" / "trials"


@pytest.fixture
def fake(monkeypatch):
    """On a machine that has everything."""
    monkeypatch.setattr(trial, "_version", lambda package: "1")
    monkeypatch.setattr(trial, "bfloat16_is_faster", lambda: True)
    fake = Fake()
    monkeypatch.setattr(time, "perf_counter", lambda: fake.clock)
    return fake


def test_the_fastest_within_the_tolerance_is_chosen():
    tried = [Tried("a", "float32", 10, 0.0), Tried("b", "float32", 20, 1e-6), Tried("b", "int8", 50, 4e-3)]
    assert choose(tried, 1e-7) == ("a", "float32")
    assert choose(tried, 1e-6) == ("b", "float32")
    assert choose(tried, 1e-2) == ("b", "int8")
    assert choose(tried[1:], 1e-9) == ("b", "float32")


@pytest.mark.parametrize(
    ("tolerance", "expected", "tried"),
    [
        (1e-5, ("openvino", "float32"), 2),
        (2e-3, ("openvino", "bfloat16"), 5),
        (1e-2, ("openvino", "int8"), 5),
    ],
)
def test_the_tolerance_decides(fake, capsys, tolerance, expected, tried):
    fake.seconds["openvino", "bfloat16"] = 0.006
    assert fastest(fake.load, None, tolerance) == expected
    said = capsys.readouterr().err.splitlines()
    assert len(said) == tried + 1
    assert all(line.startswith("trial: ") and "texts/s, 1 - cosine at most" in line for line in said[:-1])
    assert said[-1] == f"encoding with backend {expected[0]}, dtype {expected[1]}"


def test_torch_float32_is_always_left(fake):
    fake.distances = dict.fromkeys(fake.distances, 0.1) | {("torch", "float32"): 0.0}
    assert fastest(fake.load, None, 1e-2) == ("torch", "float32")
    fake.distances = dict.fromkeys(fake.distances, float("nan")) | {("torch", "float32"): 0.0}
    assert fastest(fake.load, None, 2e-2) == ("torch", "float32")


def test_a_dtype_that_is_given_stands(fake):
    assert fastest(fake.load, "bfloat16", 1e-5) == ("openvino", "bfloat16")
    fake.distances["openvino", "bfloat16"] = 0.005
    fake.fingerprint = "e" * 64
    assert fastest(fake.load, "bfloat16", 1e-5) == ("torch", "bfloat16")
    assert fastest(fake.load, "bfloat16", 1e-2) == ("openvino", "bfloat16")
    fake.loaded.clear()
    assert fastest(fake.load, "int8", 1e-5) == ("openvino", "int8")
    assert fake.loaded == []
    assert fastest(fake.load, "float16", 1e-5) == ("torch", "float16")


def test_what_this_machine_has_not_is_not_tried(fake, monkeypatch):
    monkeypatch.setattr(trial, "_version", lambda package: None)
    monkeypatch.setattr(trial, "bfloat16_is_faster", lambda: False)
    assert fastest(fake.load, None, 1e-2) == ("torch", "float32")
    assert fake.loaded == [("torch", "float32")]


def test_the_decision_is_remembered(fake, cache, monkeypatch, capsys):
    assert fastest(fake.load, None, 1e-5) == ("openvino", "float32")
    fake.seconds["openvino", "float32"] = 0.05
    fake.loaded.clear()
    capsys.readouterr()
    assert fastest(fake.load, None, 1e-5) == ("openvino", "float32")
    assert fake.loaded == [("torch", "float32")]
    assert capsys.readouterr().err == "encoding with backend openvino, dtype float32\n"
    for change in (
        lambda: setattr(fake, "fingerprint", "d" * 64),
        lambda: monkeypatch.setattr(trial, "cores", lambda: 77),
        lambda: monkeypatch.setattr(trial, "_processor", lambda: "another"),
        lambda: monkeypatch.setattr(trial, "_version", lambda package: "2"),
    ):
        change()
        assert fastest(fake.load, None, 1e-5) == ("torch", "float32")
    for damaged in ("{", "[]", "{}", '{"chosen": ["torch"]}', '{"chosen": ["gpu", "float32"]}'):
        for path in cache.iterdir():
            path.write_text(damaged)
        assert fastest(fake.load, None, 1e-5) == ("torch", "float32")


def test_a_candidate_that_cannot_be_loaded_is_left_out(fake, capsys):
    fake.refused = (("openvino", "float32"),)
    assert fastest(fake.load, None, 1e-5) == ("torch", "float32")
    assert "trial: openvino float32 left out: openvino cannot convert Strange" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_no_error(fake, tmp_path, monkeypatch, capsys):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert fastest(fake.load, None, 1e-5) == ("openvino", "float32")
    assert "the trial is not remembered: " in capsys.readouterr().err


@pytest.mark.parametrize("tolerance", [0, -1e-3, 1, float("nan")])
def test_tolerances_that_make_no_sense_are_refused(fake, tolerance):
    with pytest.raises(InputError, match="tolerance is .*; expected a distance, 1 - cosine, between 0 and 1"):
        fastest(fake.load, None, tolerance)


def test_auto_makes_an_encoder(model_folder, encoder, capsys):
    chosen = Encoder.load(str(model_folder), backend="auto")
    assert chosen.fingerprint == encoder.fingerprint
    assert chosen.backend.name in ("torch", "openvino")
    shown = capsys.readouterr().err
    if importlib.util.find_spec("openvino"):
        assert "trial: openvino float32: " in shown
    assert Encoder.load(str(model_folder), backend="auto").backend.name == chosen.backend.name
