"""The road on the real thing: published values, a killed pretraining run, plain loaders. Minutes long."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RETROKIT = [sys.executable, "-c", "import sys; sys.argv[0] = 'retrokit'; from retrieval.cli import main; main()"]


def retrokit(*arguments):
    done = subprocess.run([*RETROKIT, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_scifact_has_the_published_value(test_data, real_cache, tmp_path):
    """MTEB publishes 64.508 for all-MiniLM-L6-v2: a check of the whole chain, to all its digits."""
    options = ["--dataset", test_data / "beir" / "scifact", "--cache", real_cache]
    retrokit("evaluate", "--encoder", "all-MiniLM-L6-v2", *options, "--json", tmp_path / "dense.json")
    assert json.loads((tmp_path / "dense.json").read_text())["metrics"]["nDCG@10"] == pytest.approx(0.64508, abs=2e-5)
    retrokit("evaluate", "--encoder", "all-MiniLM-L6-v2", *options, "--hybrid", "--json", tmp_path / "hybrid.json")
    systems = json.loads((tmp_path / "hybrid.json").read_text())["systems"]
    assert systems["hybrid"]["nDCG@10"] >= 0.735
    assert systems["lexical"]["nDCG@10"] == pytest.approx(0.676, abs=1e-3)


def random_base(folder):
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    from retrieval.model_folder import resolve

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve("all-MiniLM-L6-v2"))
    sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_pretraining_on_cranfield_survives_sigkill_bit_for_bit(test_data, tmp_path):
    from safetensors.numpy import load_file
    from sentence_transformers import SentenceTransformer

    from retrieval.encoder import Encoder

    base = random_base(tmp_path / "base")
    corpus = test_data / "beir" / "cranfield" / "corpus.jsonl"
    command = ["pretrain", corpus, "--objective", "dupmae", "--base", base, "--max-steps", 24, "--save-steps", 4]
    command += ["--batch-size", 8, "--max-length", 64, "--seed", 3, "--learning-rate", "1e-3", "--output"]
    retrokit(*command, tmp_path / "alone")
    killed = tmp_path / "killed"
    process = subprocess.Popen([*RETROKIT, *map(str, command), str(killed)], stderr=subprocess.DEVNULL)
    log = tmp_path / "killed.partial" / "log.jsonl"
    while not log.is_file() or len(log.read_text().splitlines()) < 10:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    assert "going on from step" in retrokit(*command, killed).stderr
    for name in ("model.safetensors", "heads/model.safetensors"):
        one, other = load_file(tmp_path / "alone" / name), load_file(killed / name)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)
    losses = [json.loads(line)["total"] for line in (killed / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 24
    assert losses[-1] < losses[0]
    texts = ["boundary layer flow", "heat transfer over a flat plate"]
    plain = SentenceTransformer(str(killed), device="cpu").encode(texts)
    np.testing.assert_allclose(Encoder.load(str(killed)).encode_documents(texts), plain, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "lexical", "dense", "hybrid"),
    [("cranfield", 0.343, 0.374, 0.415), ("cisi", 0.373, 0.421, 0.461)],
)
def test_classic_collections_have_their_known_values(test_data, real_cache, tmp_path, name, lexical, dense, hybrid):
    options = ["--dataset", test_data / "beir" / name, "--cache", real_cache, "--json", tmp_path / "out.json"]
    retrokit("evaluate", "--encoder", "all-MiniLM-L6-v2", *options, "--hybrid")
    systems = json.loads((tmp_path / "out.json").read_text())["systems"]
    found = [systems[mode]["nDCG@10"] for mode in ("lexical", "dense", "hybrid")]
    assert found == pytest.approx([lexical, dense, hybrid], abs=1e-3)
