"""Encoders: equal to sentence-transformers, explicit about what they do, and their fingerprint."""

import itertools
import json
import shutil
import threading

import numpy as np
import pytest
from fixtures import make_model, random_texts

from indexes.errors import InputError
from indexes.vectors import VectorStore
from retrieval.devices import devices
from retrieval.digests import tokenizer_digest
from retrieval.documents import Document
from retrieval.encoder import Encoder, load_options
from retrieval.model_folder import PACKAGED_SHA256, read_model_folder, resolve

TEXTS = ["", *random_texts(20, seed=1, longest=60)]


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
@pytest.mark.parametrize("normalize", [True, False])
def test_equals_sentence_transformers(tmp_path, pooling, normalize):
    from sentence_transformers import SentenceTransformer

    prompts = {"query": "green river: ", "document": "paper "}
    folder = make_model(tmp_path / "model", pooling=pooling, normalize=normalize, prompts=prompts)
    encoder = Encoder.load(str(folder))
    plain = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), plain.encode_query(TEXTS), atol=1e-5)
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), plain.encode_document(TEXTS), atol=1e-5)
    assert np.abs(encoder.encode_queries(TEXTS) - encoder.encode_documents(TEXTS)).max() > 1e-3
    assert (encoder.fields["pooling"], encoder.fields["normalize"]) == (pooling, normalize)


def test_shapes_and_order(encoder):
    assert encoder.encode_queries([]).shape == encoder.encode_documents([]).shape == (0, 32)
    together = encoder.encode_documents(TEXTS)
    assert together.dtype == np.float32
    alone = np.concatenate([encoder.encode_documents([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    with pytest.raises(InputError, match="expected a list of texts"):
        encoder.encode_queries("one text")


def test_the_fingerprint_knows_everything_that_changes_a_vector(tmp_path, model_folder):
    seen = {Encoder.load(str(model_folder)).fingerprint}
    shutil.copytree(model_folder, tmp_path / "moved")
    assert {Encoder.load(str(tmp_path / "moved")).fingerprint} == seen

    def edit(name, change):
        folder = tmp_path / f"edited-{len(seen)}"
        shutil.copytree(model_folder, folder)
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))
        seen.add(Encoder.load(str(folder)).fingerprint)

    edit("1_Pooling/config.json", lambda config: config.update(pooling_mode="cls"))
    edit("config_sentence_transformers.json", lambda config: config.update(prompts={"query": "q: "}))
    edit("modules.json", lambda modules: modules.pop())
    edit("tokenizer_config.json", lambda config: config.update(do_lower_case=False))
    seen.add(Encoder.load(str(make_model(tmp_path / "other", seed=1))).fingerprint)
    seen.add(Encoder.load(str(model_folder), max_length=16).fingerprint)
    seen.add(Encoder.load(str(model_folder), dtype="bfloat16").fingerprint)
    assert len(seen) == 8


def test_encoding_does_not_change_the_fingerprint(model_folder):
    encoder = Encoder.load(str(model_folder))
    encoder.encode_documents(TEXTS)
    assert tokenizer_digest(encoder.tokenizer.tokenizer) == encoder.fields["tokenizer"]


def test_nothing_is_guessed(tmp_path, model_folder):
    plain = tmp_path / "plain"
    shutil.copytree(model_folder, plain)
    (plain / "modules.json").unlink()
    with pytest.raises(InputError, match="does not record its pooling .* encode it with --pooling"):
        Encoder.load(str(plain))
    assert Encoder.load(str(plain), pooling="cls").fields["pooling"] == "cls"
    with pytest.raises(InputError, match="records pooling 'mean', not 'cls'"):
        Encoder.load(str(model_folder), pooling="cls")
    with pytest.raises(InputError, match="pooling is 'first'; expected one of cls"):
        Encoder.load(str(plain), pooling="first")
    with pytest.raises(InputError, match="max_length is 100; expected 3 to 32"):
        Encoder.load(str(model_folder), max_length=100)
    with pytest.raises(InputError, match="dtype int8 needs backend openvino"):
        Encoder.load(str(model_folder), dtype="int8")
    modules = json.loads((model_folder / "modules.json").read_text())
    shutil.copytree(model_folder, tmp_path / "strange")
    modules[2]["type"] = "somewhere.CNN"
    (tmp_path / "strange" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="Transformer → Pooling → CNN; expected"):
        Encoder.load(str(tmp_path / "strange"))
    with pytest.raises(InputError, match="neither modules.json nor config.json"):
        Encoder.load(str(tmp_path))


OPTIONS = {
    "nothing": {},
    "max_length": {"max_length": 16},
    "dtype": {"dtype": "bfloat16"},
    "half": {"dtype": "float16"},
    "normalize": {"normalize": False},
    "dim": {"dim": 8},
    "query_prompt": {"query_prompt": "query: "},
    "no query_prompt": {"query_prompt": ""},
    "document_prompt": {"document_prompt": "query: "},
    "no document_prompt": {"document_prompt": ""},
    "all": {
        "max_length": 20,
        "dtype": "bfloat16",
        "normalize": False,
        "dim": 3,
        "query_prompt": "",
        "document_prompt": "a ",
    },
}


@pytest.fixture(scope="module")
def prompted_folder(tmp_path_factory):
    prompts = {"query": "green river: ", "document": "paper "}
    return str(make_model(tmp_path_factory.mktemp("prompted") / "model", prompts=prompts))


def test_every_option_is_in_the_fingerprint_and_comes_back_from_the_record(prompted_folder):
    prints = {}
    for name, options in OPTIONS.items():
        encoder = Encoder.load(prompted_folder, **options)
        record = json.loads(json.dumps(encoder.made_by))  # as a folder keeps it
        assert {key: record[key] for key in options} == options
        again = Encoder.load(prompted_folder, **load_options(record))
        assert again.fingerprint == encoder.fingerprint
        assert again.encode_queries(TEXTS[:3]).tobytes() == encoder.encode_queries(TEXTS[:3]).tobytes()
        assert Encoder.load(**encoder.options).made_by == encoder.made_by
        prints[name] = encoder.fingerprint
    assert len(set(prints.values())) == len(OPTIONS)
    # What is asked for counts, not that it was: the folder's own values make the folder's own encoder.
    same = {"max_length": 32, "dtype": "float32", "normalize": True, "dim": 32, "pooling": "mean"}
    same |= {"query_prompt": "green river: ", "document_prompt": "paper "}
    assert Encoder.load(prompted_folder, **same).fingerprint == prints["nothing"]


def test_dim_cuts_and_then_scales(prompted_folder):
    raw = Encoder.load(prompted_folder, normalize=False).encode_documents(TEXTS)
    cut = Encoder.load(prompted_folder, dim=8)
    assert (cut.dim, cut.fields["dim"]) == (8, 8)
    by_hand = raw[:, :8] / np.linalg.norm(raw[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(cut.encode_documents(TEXTS), by_hand, atol=1e-6)
    np.testing.assert_allclose(cut.encode_documents(TEXTS[:1]), by_hand[:1], atol=1e-6)
    kept = Encoder.load(prompted_folder, dim=8, normalize=False).encode_documents(TEXTS)
    np.testing.assert_allclose(kept, raw[:, :8], atol=1e-6)
    assert cut.encode_queries([]).shape == (0, 8)
    for dim in (0, 33, -1):
        with pytest.raises(InputError, match=f"dim is {dim}; expected 1 to 32, the model's own"):
            Encoder.load(prompted_folder, dim=dim)


def test_normalize_over_what_the_folder_says(tmp_path, prompted_folder):
    raw = Encoder.load(prompted_folder, normalize=False).encode_documents(TEXTS)
    unit = Encoder.load(prompted_folder).encode_documents(TEXTS)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.1
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
    folder = str(make_model(tmp_path / "raw", normalize=False))
    assert Encoder.load(folder).fields["normalize"] is False
    scaled = Encoder.load(folder, normalize=True).encode_documents(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1, atol=1e-6)


def test_prompts_over_what_the_folder_says(prompted_folder):
    own, bare = Encoder.load(prompted_folder), Encoder.load(prompted_folder, query_prompt="", document_prompt="")
    other = Encoder.load(prompted_folder, query_prompt="cat ", document_prompt="dog, ")
    expected = bare.encode_queries([f"cat {text}" for text in TEXTS])
    np.testing.assert_allclose(other.encode_queries(TEXTS), expected, atol=1e-6)
    expected = bare.encode_documents([f"dog, {text}" for text in TEXTS])
    np.testing.assert_allclose(other.encode_documents(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(bare.encode_queries(TEXTS), bare.encode_documents(TEXTS), atol=1e-6)
    assert np.abs(own.encode_queries(TEXTS) - bare.encode_queries(TEXTS)).max() > 1e-3
    half = Encoder.load(prompted_folder, query_prompt="cat ")
    np.testing.assert_allclose(half.encode_documents(TEXTS), own.encode_documents(TEXTS), atol=1e-6)


def test_what_this_machine_or_backend_does_not_have(model_folder):
    with pytest.raises(InputError, match=rf"device 'cuda:9' cannot be used \(.+\); here are {', '.join(devices())}"):
        Encoder.load(str(model_folder), device="cuda:9")
    with pytest.raises(InputError, match="dtype is 'float64'; expected one of float32, bfloat16, float16, int8"):
        Encoder.load(str(model_folder), dtype="float64")
    with pytest.raises(InputError, match="backend is 'onnx'; expected one of torch, openvino, auto"):
        Encoder.load(str(model_folder), backend="onnx")
    with pytest.raises(InputError, match="backend openvino computes in float32, bfloat16 or int8; dtype is float16"):
        Encoder.load(str(model_folder), backend="openvino", dtype="float16")
    assert Encoder.load(str(model_folder), device="cpu").backend.device.type == "cpu"


def test_stream_takes_whatever_documents_are(encoder):
    texts = random_texts(7, seed=4, longest=50)
    forms = [
        texts,
        [(str(row), text) for row, text in enumerate(texts)],
        [{"_id": row, "text": text} for row, text in enumerate(texts)],
        [Document(str(row), text) for row, text in enumerate(texts)],
        [(str(row), text.partition(" ")[2], text.partition(" ")[0]) for row, text in enumerate(texts)],  # with a title
    ]
    plain = encoder.encode_documents(texts)
    for form in forms:
        for source in (form, iter(form)):
            parts = list(encoder.stream(source, window=3))
            assert [ids for ids, _ in parts] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
            assert [vectors.dtype for _, vectors in parts] == [np.float32] * 3
            np.testing.assert_allclose(np.concatenate([vectors for _, vectors in parts]), plain, atol=1e-6)
    ((ids, vectors),) = encoder.stream(texts)
    assert ids == list("0123456")
    assert vectors.tobytes() == plain.tobytes()


def aheads():
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


def test_stream_reads_no_further_than_it_must(encoder):
    read = []
    endless = ((f"d{number}", f"river {number}") for number in itertools.count() if read.append(number) is None)
    before = aheads()
    stream = encoder.stream(endless, window=4)
    assert not read
    for taken in range(1, 6):
        ids, vectors = next(stream)
        assert ids == [f"d{number}" for number in range(4 * taken - 4, 4 * taken)]
        assert vectors.shape == (4, 32)
        # Two windows are made ahead, and ids are checked in blocks that double.
        assert len(read) <= 2 * 4 * (taken + 2)
    stream.close()
    assert aheads() == before


def test_stream_refuses_what_cannot_be_encoded(encoder):
    def stream(documents, **options):
        return [one for ids, _ in encoder.stream(documents, window=2, **options) for one in ids]

    with pytest.raises(InputError, match="id 'a' occurs twice"):
        stream([("a", "x"), ("b", "y"), ("c", "z"), ("a", "z")])
    with pytest.raises(InputError, match="item 1: found a int"):
        stream([("a", "x"), 3])
    with pytest.raises(InputError, match="no documents found"):
        stream([])
    with pytest.raises(InputError, match="window is 0 documents; expected at least 1"):
        list(encoder.stream(["a"], window=0))
    # What came before the bad one has come out.
    parts = encoder.stream([("a", "x"), ("b", "y"), ("a", "z")], window=1)
    assert [next(parts)[0], next(parts)[0]] == [["a"], ["b"]]
    with pytest.raises(InputError, match="id 'a' occurs twice"):
        next(parts)


def test_many_windows_equal_one_and_tell_how_far_they_are(encoder, monkeypatch):
    texts = random_texts(50, seed=6, longest=50)
    whole, seen, calls = encoder.encode_documents(texts), [], []
    run = Encoder.run
    monkeypatch.setattr(Encoder, "run", lambda self, part, *a: calls.append(part.documents) or run(self, part, *a))
    monkeypatch.setattr("retrieval.encoder._WINDOW", 8)
    monkeypatch.setattr(encoder.backend, "tokens_in_a_batch", 64)
    before, threads = encoder.truncated, aheads()
    parts = encoder.encode_documents(texts, lambda done, total: seen.append((done, total)))
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert calls == [8] * 6 + [2]
    done = [done for done, _ in seen]
    assert done == sorted(set(done))
    assert done[-1] == 50
    assert len(done) > 7  # within windows too
    assert {total for _, total in seen} == {50}
    assert encoder.truncated - before == sum(len(text.split()) > 30 for text in texts)
    assert aheads() == threads
    alone = []
    encoder.encode_queries(texts[:1], lambda *progress: alone.append(progress))
    assert alone == [(1, 1)]


def test_an_error_in_the_middle_of_many_windows_ends_the_thread(encoder, monkeypatch):
    monkeypatch.setattr("retrieval.encoder._WINDOW", 2)

    def stop(done, total):
        if done == 4:
            raise Killed

    before = aheads()
    with pytest.raises(Killed):
        encoder.encode_documents(random_texts(40), stop)
    assert aheads() == before


def test_names_that_lead_nowhere():
    with pytest.raises(InputError, match="no such model folder"):
        resolve("./nowhere")
    with pytest.raises(InputError, match="not to be had from the model hub"):
        resolve("nobody/nothing")


def test_hub_models_are_found_in_its_cache(tmp_path, monkeypatch, model_folder):
    """The hub's own cache layout, as a download leaves it, is read without network."""
    import huggingface_hub.constants

    cache = tmp_path / "hub" / "models--me--tiny"
    shutil.copytree(model_folder, cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert read_model_folder(resolve("me/tiny")).pooling == "mean"


def test_the_packaged_model_is_checked(monkeypatch):
    folder = resolve("all-MiniLM-L6-v2")
    assert read_model_folder(folder).max_length == 256
    monkeypatch.setattr("retrieval.model_folder.file_digest", lambda path: "0" * 64)
    with pytest.raises(InputError, match=f"SHA-256 000000000000…, not {PACKAGED_SHA256[:12]}"):
        resolve("all-MiniLM-L6-v2")


def test_weights_without_a_pooler_have_one_fingerprint_and_half_a_model_is_refused(tmp_path, model_folder):
    from safetensors.torch import load_file, save_file

    shutil.copytree(model_folder, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    prints = {Encoder.load(str(tmp_path / "m")).fingerprint for _ in range(2)}
    assert prints == {Encoder.load(str(model_folder)).fingerprint}
    half = {name: value for name, value in kept.items() if "layer.1." not in name}
    save_file(half, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks \d+ weights, such as encoder.layer.1"):
        Encoder.load(str(tmp_path / "m"))
    (tmp_path / "m" / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(InputError, match="cannot be loaded as a model"):
        Encoder.load(str(tmp_path / "m"))


def test_overwriting_gets_past_an_unfinished_folder_of_another_corpus(tmp_path, encoder, documents):
    with pytest.raises(Killed):
        encoder.encode_corpus(documents, tmp_path / "v", shard_rows=16, on_progress=stop_after(3))
    changed = [Document("d0", "something else"), *documents[1:]]
    store = encoder.encode_corpus(changed, tmp_path / "v", shard_rows=16, overwrite=True)
    np.testing.assert_allclose(store[:], encoder.encode_documents([d.content for d in changed]), atol=1e-5)


class Killed(Exception):
    pass


def stop_after(calls):
    left = iter(range(calls))

    def report(done, total):
        if next(left, None) is None:
            raise Killed

    return report


def test_encode_corpus_goes_on_where_it_was_killed(tmp_path, encoder, documents, monkeypatch):
    whole = encoder.encode_corpus(iter(documents), tmp_path / "whole", shard_rows=16)
    assert whole.ids == [document.id for document in documents]
    np.testing.assert_allclose(whole[:], encoder.encode_documents([d.content for d in documents]), atol=1e-5)
    with pytest.raises(Killed):
        encoder.encode_corpus(iter(documents), tmp_path / "parts", shard_rows=16, on_progress=stop_after(3))
    made = sorted((tmp_path / "parts.partial").glob("*.done.json"))
    assert 0 < len(made) < 4
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts.partial").glob("shard-*.npy")}
    calls = []
    encode = Encoder.run
    monkeypatch.setattr(
        Encoder, "run", lambda self, tokens, *a: calls.append(tokens.documents) or encode(self, tokens, *a)
    )
    parts = encoder.encode_corpus(iter(documents), tmp_path / "parts", shard_rows=16)
    assert sum(calls) == 50 - 16 * len(made)
    for path, stamp in stamps.items():
        if path.with_suffix(".done.json") in made:
            assert (tmp_path / "parts" / path.name).stat().st_mtime_ns == stamp
    for name in ("shard-00000.npy", "shard-00003.npy", "shard-00001.ids.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert parts.corpus["fingerprint"] == whole.corpus["fingerprint"]
    calls.clear()
    encoder.encode_corpus(iter(documents), tmp_path / "parts")
    assert calls == []


def test_encode_corpus_refuses_another_encoder_or_corpus(tmp_path, encoder, documents, model_folder):
    folder = tmp_path / "v"
    encoder.encode_corpus(documents, folder, shard_rows=16)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = Encoder.load(str(model_folder), max_length=16)
    with pytest.raises(InputError, match=r"made by another encoder \(.*max_length: 32 ≠ 16"):
        other.encode_corpus(documents, folder)
    with pytest.raises(InputError, match="made from another corpus"):
        encoder.encode_corpus(documents[1:], folder)
    with pytest.raises(InputError, match="id 'd0' occurs twice"):
        encoder.encode_corpus([*documents, documents[0]], tmp_path / "w")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(Killed):
        encoder.encode_corpus(documents, tmp_path / "x", shard_rows=16, on_progress=stop_after(3))
    changed = [Document("d0", "something else"), *documents[1:]]
    with pytest.raises(InputError, match=r"shard 0, from document 0 on, was made of other documents"):
        encoder.encode_corpus(changed, tmp_path / "x", shard_rows=16)
    with pytest.raises(InputError, match="begun differently"):
        other.encode_corpus(documents, tmp_path / "x", shard_rows=16)
    store = other.encode_corpus(documents[1:], folder, overwrite=True)
    assert VectorStore.open(folder).made_by["max_length"] == 16
    assert len(store) == 49
    store.verify()


@pytest.mark.slow
def test_the_packaged_model_equals_sentence_transformers():
    from sentence_transformers import SentenceTransformer

    texts = [f"{text} retrieval {number}" for number, text in enumerate(random_texts(40, longest=200))]
    plain = SentenceTransformer(str(resolve("all-MiniLM-L6-v2")), device="cpu")
    np.testing.assert_allclose(Encoder.load().encode_documents(texts), plain.encode_document(texts), atol=1e-5)
