"""The openvino backend: the vectors of torch, any batch and length, a cache that heals, errors that surface."""

import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fixtures import make_model, random_texts

from indexes.errors import InputError
from retrieval.batches import Batch, token_batches
from retrieval.calibration import calibration_texts
from retrieval.encoder import Encoder
from retrieval.passages import LongDocuments

# Not importorskip: an import of openvino that is not ours would bring its telemetry along.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra openvino")
TEXTS = ["", *random_texts(20, seed=1, longest=60), "one"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "retrokit" / "openvino"


@pytest.fixture(autouse=True)
def one_thread():
    """Torch's threads would wait for each other longer than these models compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def never_convert(monkeypatch):
    def refuse(module):
        raise AssertionError("converted again")

    return lambda: monkeypatch.setattr("retrieval.openvino_models.convert", refuse)


def load(folder: Path, dtype: str = "float32", **options) -> Encoder:
    return Encoder.load(str(folder), backend="openvino", dtype=dtype, **options)


def entry(cache: Path) -> Path:
    (found,) = (path for path in cache.iterdir() if path.is_dir())
    return found


def cosines(one, other):
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def add_dense(folder: Path, dim: int) -> None:
    """A linear layer between pooling and normalisation, as sentence-transformers writes it."""
    import torch
    from safetensors.torch import save_file

    (folder / "2_Dense").mkdir()
    config = {"in_features": 32, "out_features": dim, "bias": True, "activation_function": "torch.nn.Identity"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    torch.manual_seed(5)
    save_file(
        {"linear.weight": torch.randn(dim, 32), "linear.bias": torch.randn(dim)}, folder / "2_Dense/model.safetensors"
    )
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("pooling", "normalize", "dense", "dim"),
    [("mean", True, None, None), ("cls", False, None, 8), ("max", True, None, None), ("lasttoken", False, None, None),
     ("mean", True, 12, None), ("mean", True, 12, 5)],
)  # fmt: skip
def test_float32_equals_torch(tmp_path, pooling, normalize, dense, dim):
    prompts = {"query": "green river: ", "document": "paper "}
    folder = make_model(tmp_path / "model", pooling=pooling, normalize=normalize, prompts=prompts)
    if dense:
        add_dense(folder, dense)
    ours, torchs = load(folder, dim=dim), Encoder.load(str(folder), dim=dim)
    assert ours.backend.name == "openvino"
    assert (ours.fingerprint, ours.fields, ours.dim) == (torchs.fingerprint, torchs.fields, torchs.dim)
    np.testing.assert_allclose(ours.encode_documents(TEXTS), torchs.encode_documents(TEXTS), atol=1e-5)
    np.testing.assert_allclose(ours.encode_queries(TEXTS), torchs.encode_queries(TEXTS), atol=1e-5)
    assert np.abs(ours.encode_queries(TEXTS) - ours.encode_documents(TEXTS)).max() > 1e-3


@pytest.mark.parametrize("kind", ["Roberta", "ModernBert", "Qwen3", "Gemma3Text"])
def test_other_architectures(kind):
    """Encoders with other positions or with masks of windows, and decoders."""
    import torch
    import transformers

    from retrieval.openvino_models import begin, convert, core, vectors_of
    from retrieval.torch_backend import EmbeddingModule

    sizes = {"vocab_size": 90, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    more = {
        "Roberta": {"intermediate_size": 64, "pad_token_id": 0},
        "ModernBert": {"intermediate_size": 64, "local_attention": 8, "global_attn_every_n_layers": 2, **special},
        "Qwen3": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0},
        "Gemma3Text": {
            "intermediate_size": 64,
            "head_dim": 8,
            "sliding_window": 8,
            "use_bidirectional_attention": True,
        },
    }
    config = getattr(transformers, f"{kind}Config")(**sizes, **more[kind])
    torch.manual_seed(0)
    backbone = transformers.AutoModel.from_config(config)
    pooling = "lasttoken" if kind == "Qwen3" else "mean"
    module = EmbeddingModule(backbone, pooling, [], dim=32, normalize=True).eval().requires_grad_(False)
    compiled = core().compile_model(convert(module), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rng = np.random.default_rng(0)
    for batch in token_batches([rng.integers(3, 90, length).tolist() for length in (1, 3, 20, 20, 40)], 60, 0):
        with torch.inference_mode():
            right = module(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)).numpy()
        ours = vectors_of(begin(compiled.create_infer_request(), batch))
        np.testing.assert_allclose(ours, right, atol=1e-5)


def test_shapes_and_order(model_folder):
    encoder = load(model_folder)
    assert encoder.encode_queries([]).shape == (0, 32)
    together = encoder.encode_documents(TEXTS)
    assert (together.dtype, together.shape) == (np.float32, (len(TEXTS), 32))
    alone = np.concatenate([encoder.encode_documents([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_bfloat16_is_near_float32(model_folder, encoder):
    half = load(model_folder, "bfloat16")
    right = encoder.encode_documents(TEXTS)
    assert 0.999 < cosines(half.encode_documents(TEXTS), right).min() < 0.9999999
    torchs = Encoder.load(str(model_folder), dtype="bfloat16")
    assert half.fingerprint == torchs.fingerprint != encoder.fingerprint
    assert cosines(half.encode_documents(TEXTS), torchs.encode_documents(TEXTS)).min() > 0.999


@pytest.mark.slow
def test_int8_is_the_same_wherever_it_is_made(tmp_path, monkeypatch, model_folder, encoder, capfd):
    right = encoder.encode_documents(TEXTS)
    made = []
    for place in ("here", "there"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
        made.append(load(model_folder, "int8"))
    shown = capfd.readouterr()
    assert shown.out == ""
    assert [line.split(" (")[0] for line in shown.err.splitlines()[::2]] == ["making the int8 model for openvino"] * 2
    assert "cosine of int8 with float32 vectors of calibration texts: 0.9" in shown.err
    one, other = made
    assert one.fingerprint == other.fingerprint != encoder.fingerprint
    assert len(one.fields["calibration"]) == 64
    vectors = one.encode_documents(TEXTS)
    assert np.array_equal(vectors, other.encode_documents(TEXTS))
    assert 0.95 < cosines(vectors, right).min() < 0.9999


def test_the_cache_knows_what_a_model_is_made_of(tmp_path, cache, model_folder, never_convert, capsys):
    load(model_folder)
    assert "making the float32 model for openvino (once; kept in" in capsys.readouterr().err
    edited = tmp_path / "edited"
    shutil.copytree(model_folder, edited)
    config = json.loads((edited / "config.json").read_text())
    (edited / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    load(edited)
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2
    right = load(model_folder).encode_documents(TEXTS)
    capsys.readouterr()
    never_convert()
    assert np.array_equal(load(model_folder, max_length=32).encode_documents(TEXTS), right)
    load(model_folder, max_length=16)
    shutil.copytree(model_folder, tmp_path / "moved")
    load(tmp_path / "moved")
    assert capsys.readouterr().err == ""
    for changed in ({"dim": 8}, {"normalize": False}, {"dtype": "bfloat16"}):
        with pytest.raises(AssertionError, match="converted again"):
            load(model_folder, **changed)


def flip(entry: Path) -> None:
    content = bytearray((entry / "model.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (entry / "model.bin").write_bytes(content)


def test_a_damaged_model_is_made_again(cache, model_folder, capsys, never_convert):
    right = load(model_folder).encode_documents(TEXTS)
    for damage in (
        flip,
        lambda entry: (entry / "model.xml").unlink(),
        lambda entry: (entry / "manifest.json").write_text("{}"),
        lambda entry: (entry / "manifest.json").unlink(),
    ):
        damage(entry(cache))
        capsys.readouterr()
        load(model_folder)
        assert "making the float32 model" in capsys.readouterr().err
    never_convert()
    assert np.array_equal(load(model_folder).encode_documents(TEXTS), right)


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, cache, monkeypatch, model_folder, encoder, capsys):
    import openvino

    def full(model, path, **options):
        raise RuntimeError("No space left on device")

    def cut(model, path, **options):
        path.write_text("<net")

    right = encoder.encode_documents(TEXTS)
    for save in (full, cut):
        monkeypatch.setattr(openvino, "save_model", save)
        np.testing.assert_allclose(load(model_folder).encode_documents(TEXTS), right, atol=1e-5)
    monkeypatch.undo()
    assert "is not kept: " in (shown := capsys.readouterr().err)
    assert "cannot be written (No space left on device)" in shown
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    np.testing.assert_allclose(load(model_folder).encode_documents(TEXTS), right, atol=1e-5)
    assert "is not kept: " in capsys.readouterr().err


def test_of_two_at_once_one_converts(model_folder, monkeypatch):
    from retrieval import openvino_models

    calls, found = [], []
    convert = openvino_models.convert
    monkeypatch.setattr(openvino_models, "convert", lambda module: calls.append(1) or convert(module))
    work = [threading.Thread(target=lambda: found.append(load(model_folder).fingerprint)) for _ in range(2)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert (len(calls), len(found)) == (1, 2)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("int8", marks=pytest.mark.slow)])
def test_bytes_depend_neither_on_threads_nor_on_the_run(model_folder, dtype):
    from retrieval.openvino_backend import OpenVINOBackend

    encoder = load(model_folder, dtype)
    texts = random_texts(200, seed=3)
    right = encoder.encode_documents(texts)
    for threads in (1, 2, 2, 3):
        encoder.backend = OpenVINOBackend(encoder.backend.model, dtype, threads)
        encoder.backend.tokens_in_a_batch = 64
        many = encoder.encode_documents(texts)
        assert np.array_equal(many, encoder.encode_documents(texts))
        if threads == 1:
            first = many
        assert np.array_equal(many, first)
    np.testing.assert_allclose(first, right, atol=1e-5 if dtype == "float32" else 0.2)


def test_threads_are_those_of_torch_but_no_more_than_cores(monkeypatch):
    from retrieval.openvino_backend import OpenVINOBackend

    monkeypatch.setattr("retrieval.openvino_backend.cores", lambda: 8)
    for found, expected in ((3, 3), (16, 8)):
        monkeypatch.setattr("torch.get_num_threads", lambda found=found: found)
        assert OpenVINOBackend(None, "float32").threads == expected
    assert OpenVINOBackend(None, "float32", threads=5).threads == 5


def test_errors_surface_and_a_reader_may_leave(model_folder):
    backend = load(model_folder).backend
    good = [Batch(np.arange(1), np.ones((1, 5), np.int64), np.ones((1, 5), np.int64))] * 9
    bad = Batch(np.arange(1), np.ones((1, 5), np.int64), np.ones((1, 3), np.int64))
    (right,) = {vectors.tobytes() for _, vectors in backend.run(good)}
    for batches in ([bad], [*good, bad], [bad, *good]):
        with pytest.raises(RuntimeError, match="hape infer"):
            list(backend.run(batches))
        assert {vectors.tobytes() for _, vectors in backend.run(good)} == {right}
    with pytest.raises(RuntimeError, match="hape infer"):
        backend.run_one(bad)
    np.testing.assert_allclose(backend.run_one(good[0]), np.frombuffer(right, np.float32)[None], atol=1e-5)

    def failing():
        yield from good[:3]
        raise OSError("the corpus is gone")

    with pytest.raises(OSError, match="the corpus is gone"):
        list(backend.run(failing()))
    for _ in range(20):
        leaving = backend.run(iter(good))
        next(leaving)
        leaving.close()
    assert {vectors.tobytes() for _, vectors in backend.run(good)} == {right}


def test_results_come_before_everything_is_read(model_folder):
    backend = load(model_folder).backend
    taken = []

    def batches():
        for number in range(100):
            taken.append(number)
            yield Batch(np.array([number]), np.ones((1, 5), np.int64), np.ones((1, 5), np.int64))

    rows = [rows[0] for rows, _ in zip((rows for rows, _ in backend.run(batches())), range(3), strict=False)]
    assert rows == [0, 1, 2]
    assert len(taken) <= 2 * backend.threads + 4


def test_missing_extras_and_other_refusals(model_folder, monkeypatch):
    with pytest.raises(InputError, match="float32, bfloat16 or int8; dtype is float16"):
        load(model_folder, "float16")
    late = LongDocuments("late")
    with pytest.raises(InputError, match="late chunking needs the backend torch, not openvino"):
        load(model_folder).check_long_documents(late)
    monkeypatch.setitem(sys.modules, "nncf", None)
    load(model_folder)
    with pytest.raises(InputError, match=r"backend openvino needs nncf .*: pip install 'retrokit\[openvino\]'"):
        load(model_folder, "int8")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r"backend openvino needs openvino .*: pip install 'retrokit\[openvino\]'"):
        load(model_folder)


def test_what_cannot_be_converted_is_refused(model_folder, monkeypatch, cache):
    import torch

    from retrieval import torch_backend

    monkeypatch.setitem(torch_backend._POOLINGS, "mean", lambda hidden, mask: torch.linalg.eigvals(hidden[:, :32]).real)
    with pytest.raises(InputError, match=r"openvino cannot convert BertModel \(.+\); use backend torch"):
        load(model_folder)
    long_ones = lambda hidden, mask: hidden[:, 0] if hidden.shape[1] > 8 else hidden.mean(1)  # noqa: E731
    monkeypatch.setitem(torch_backend._POOLINGS, "mean", long_ones)
    with pytest.raises(
        InputError, match=r"computes BertModel otherwise than torch does \(1 - cosine .*; use backend to"
    ):
        load(model_folder)
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_telemetry_stays_out(model_folder):
    """In a process of its own: something else may have loaded it here."""
    code = (
        "import sys; from retrieval import Encoder; "
        f"Encoder.load({str(model_folder)!r}, backend='openvino'); assert sys.modules['openvino_telemetry'] is None"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_calibration_texts_are_many_and_varied():
    words = [len(text.split()) for text in calibration_texts()]
    assert len(set(calibration_texts())) == len(words) == 128
    assert min(words) < 12
    assert max(words) > 300
