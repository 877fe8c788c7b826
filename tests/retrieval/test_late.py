"""Late chunking against hidden states of the plain model in double precision; the mean of passages."""

import numpy as np
import pytest
from fixtures import WORDS, make_model, random_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes.errors import InputError
from retrieval.documents import Document
from retrieval.encoder import Encoder
from retrieval.late import mean_of_passages
from retrieval.passages import LongDocuments
from retrieval.torch_backend import TorchBackend

SIZE = 8
LATE = LongDocuments("late", tokens=SIZE)


def as_documents(texts):
    return [Document(str(row), text) for row, text in enumerate(texts)]


@pytest.fixture(scope="module")
def hidden_states(model_folder):
    """Of the model in double precision, as transformers runs it: text -> (t, d)."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from retrieval.model_folder import read_model_folder

    folder = read_model_folder(model_folder).backbone
    model = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def compute(text):
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so little work is slower on several threads where other processes want them too
    yield compute
    torch.set_num_threads(before)


def unit(rows):
    return np.stack(rows) / np.linalg.norm(np.stack(rows), axis=1, keepdims=True)


def late_by_hand(hidden_states, words: list[str], prompt: list[str], overlap: int):
    """(first word, last + 1, vector) of each chunk of words of one token; windows of 32 tokens, two of them markers."""
    found, covered, first = [], 0, 0
    room = 30 - len(prompt)
    while covered < len(words):
        last = min(first + room, len(words))
        states = hidden_states(" ".join(prompt + words[first:last]))
        assert len(states) == 2 + len(prompt) + last - first
        for begin in range(covered, last, SIZE):
            end = min(begin + SIZE, last)
            # Markers and prompt belong to the chunk beside them.
            head = 0 if begin == first else 1 + len(prompt) + begin - first
            tail = len(states) if end == last else 1 + len(prompt) + end - first
            found.append((begin, end, states[head:tail].mean(0)))
        covered, first = last, last - overlap
    return found


@pytest.mark.parametrize("prompt", ["", "paper music "])
@pytest.mark.parametrize("overlap", [None, 0, 11])
def test_chunks_are_means_of_hidden_states(model_folder, hidden_states, prompt, overlap):
    encoder = Encoder.load(str(model_folder), document_prompt=prompt)
    texts = random_texts(9, seed=2, longest=130)
    long = LongDocuments("late", tokens=SIZE, overlap=overlap)
    vectors, passages, truncated = encoder.run(encoder.tokenize(as_documents(texts), long))
    assert truncated == 0
    assert vectors.dtype == np.float32
    several = 0
    for row, text in enumerate(texts):
        shared = (30 - len(prompt.split())) // 8 if overlap is None else overlap
        oracle = late_by_hand(hidden_states, text.split(), prompt.split(), shared)
        mine = passages[:, 0] == row
        spoken = [text[begin:end].split() for begin, end in passages[mine, 1:]]
        assert spoken == [text.split()[begin:end] for begin, end, _ in oracle]
        np.testing.assert_allclose(vectors[mine], unit([vector for *_, vector in oracle]), atol=2e-6)
        several += len(text.split()) > 30
    assert several > 3  # documents of more than one window


def test_a_document_of_one_chunk_has_the_plain_vector(model_folder):
    encoder = Encoder.load(str(model_folder), document_prompt="paper music ")
    texts = ["river stone", "", "cat, dog. zebra", *random_texts(5, longest=20)]
    vectors, passages, _ = encoder.run(encoder.tokenize(as_documents(texts), LongDocuments("late", tokens=32)))
    assert passages[:, 0].tolist() == list(range(len(texts)))
    assert [texts[row][begin:end] for row, begin, end in passages] == texts
    np.testing.assert_allclose(vectors, encoder.encode_documents(texts), atol=1e-6)


def test_chunks_know_their_neighbours(encoder):
    """What the whole is for: the same words elsewhere have another vector, which passages of them would not."""
    same = " ".join(WORDS[:SIZE])
    texts = [f"{same} {' '.join(WORDS[5:13])}", f"{same} {' '.join(WORDS[9:17])}"]
    vectors, passages, _ = encoder.run(encoder.tokenize(as_documents(texts), LATE))
    assert passages[:, 0].tolist() == [0, 0, 1, 1]
    assert [texts[row][begin:end] for row, begin, end in passages[::2]] == [same, same]
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


def test_normalize_and_dim_hold_for_chunks(model_folder, hidden_states):
    encoder = Encoder.load(str(model_folder), normalize=False, dim=10)
    words = random_texts(1, seed=4, longest=100)[0].split()
    vectors, _, _ = encoder.run(encoder.tokenize(as_documents([" ".join(words)]), LATE))
    oracle = np.stack([vector for *_, vector in late_by_hand(hidden_states, words, [], 3)])
    np.testing.assert_allclose(vectors, oracle[:, :10], atol=1e-5)


pieces = st.text(st.sampled_from("abcz 0.,\n\té"), max_size=400)


@settings(max_examples=60, deadline=None)
@given(st.lists(pieces, min_size=1, max_size=4), st.integers(8, 32), st.integers(0, 29), st.sampled_from(["", "cat "]))
def test_chunks_cover_each_document_once(encoder, texts, size, overlap, prompt):
    """Windows overlap, chunks do not: whatever the text, each character of it is in one chunk."""
    overlap = min(overlap, 29 - len(prompt.split()))
    found = encoder.tokenizer.read(texts, prompt, LongDocuments("late", tokens=size, overlap=overlap))
    assert found.truncated == 0
    assert found.passages[:, 0].tolist() == sorted(found.passages[:, 0])
    assert len(found.passages) == len(found.chunks)
    special = 2 + len(prompt.split())
    for (text, first, last), (_, begin, end) in zip(found.chunks, found.passages, strict=True):
        assert 0 <= first < last <= len(found.tokens[text]) <= 32
        assert last - first <= size + special
        assert begin <= end
    for row, text in enumerate(texts):
        left = list(text)
        for begin, end in found.passages[found.passages[:, 0] == row, 1:]:
            assert "\0" not in left[begin:end]
            left[begin:end] = "\0" * (end - begin)
        assert not "".join(left).replace("\0", "").strip()
        assert row in found.passages[:, 0]


def test_chunks_are_a_quarter_of_a_window_unless_told(encoder):
    documents = as_documents(random_texts(4, seed=2, longest=130))
    default, told = (encoder.tokenize(documents, LongDocuments("late", tokens)) for tokens in (None, 32 // 4))
    np.testing.assert_array_equal(default.chunks, told.chunks)


def test_a_prompt_that_runs_into_the_text(model_folder):
    """ "riv" and "er" make one token: it is the text's, which then begins at its own first character."""
    encoder = Encoder.load(str(model_folder), document_prompt="riv")
    texts = ["er stone", "er " + " ".join(WORDS * 3)]
    vectors, passages, _ = encoder.run(encoder.tokenize(as_documents(texts), LATE))
    assert passages[0].tolist() == [0, 0, 8]
    assert passages[1, :2].tolist() == [1, 0]
    np.testing.assert_allclose(vectors[:1], encoder.encode_documents(texts[:1]), atol=1e-6)


def test_stream_of_chunks_and_progress(encoder):
    documents = as_documents(random_texts(9, seed=3, longest=100))
    whole = encoder.run(encoder.tokenize(documents, LATE))
    parts = list(encoder.stream(documents, long_documents=LATE, window=4))
    assert [one for ids, _ in parts for one in ids] == [str(row) for row in whole.passages[:, 0]]
    np.testing.assert_allclose(np.concatenate([vectors for _, vectors in parts]), whole.vectors, atol=1e-6)
    seen = []
    tokenized = encoder.tokenize(documents, LATE)
    encoder.run(tokenized, lambda done, total: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == len(tokenized.tokens)


def test_the_same_bytes_on_any_number_of_threads_and_with_little_memory(model_folder):
    import torch

    encoder = Encoder.load(str(model_folder))
    documents = as_documents(random_texts(20, seed=6, longest=100))
    before = torch.get_num_threads()
    found = set()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.add(encoder.run(encoder.tokenize(documents, LATE)).vectors.tobytes())
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert len(found) == 1

    module = encoder.backend.module
    hidden, failures = module.hidden, []

    def limited(ids, mask):
        if len(ids) > 3:
            failures.append(ids.shape)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(ids, mask)

    encoder.backend, module.hidden = TorchBackend(module, "cpu"), limited
    vectors = encoder.run(encoder.tokenize(documents, LATE)).vectors
    np.testing.assert_allclose(vectors, np.frombuffer(found.pop(), np.float32).reshape(vectors.shape), atol=1e-6)
    assert failures


def test_what_late_chunking_needs(tmp_path, model_folder):
    encoder = Encoder.load(str(model_folder))
    with pytest.raises(InputError, match="late chunking needs mean pooling; .* pools by cls"):
        Encoder.load(str(make_model(tmp_path / "cls", pooling="cls"))).check_long_documents(LATE)
    with pytest.raises(InputError, match="33 tokens is longer than the encoder reads; expected at most 32"):
        encoder.check_long_documents(LongDocuments("late", tokens=33))
    with pytest.raises(InputError, match="overlap is 30 of 30 tokens of text"):
        encoder.check_long_documents(LongDocuments("late", overlap=30))
    encoder.check_long_documents(LATE)
    encoder.backend.name = "openvino"
    with pytest.raises(InputError, match="late chunking needs the backend torch, not openvino"):
        list(encoder.stream(["a text"], long_documents=LATE))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), max_size=8), st.booleans(), st.integers(0, 1 << 30))
def test_mean_of_passages(counts, normalize, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(sum(counts), 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    before = vectors.copy()
    documents = np.repeat(np.arange(len(counts)), counts)
    found = mean_of_passages(vectors, documents, normalize=normalize)
    assert found.dtype == np.float32
    assert found.shape == (len(counts), 5)
    assert vectors.tobytes() == before.tobytes()
    for row, count in enumerate(counts):
        mean = vectors[documents == row].astype(np.float64).mean(0)
        oracle = mean / np.linalg.norm(mean) if normalize else mean
        np.testing.assert_allclose(found[row], oracle, atol=1e-5)
        if count == 1:
            assert found[row].tobytes() == vectors[documents == row].tobytes()


def test_passages_that_cancel_out_have_no_direction():
    found = mean_of_passages(np.array([[1, 0], [-1, 0]], dtype=np.float32), np.array([0, 0]), normalize=True)
    assert found.tolist() == [[0, 0]]
