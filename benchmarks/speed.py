"""Speed of retrokit beside a peer in the same run, as ratios; writes benchmarks/speed.json.

    python benchmarks/speed.py

Encoding: texts a second against SentenceTransformer.encode (same model, its batch size of 32). Pretraining: seconds of
a DupMAE step against the same losses with dense vocabulary heads. Each figure is the best of several repeats; the sides
take turns. benchmarks/encoding and benchmarks/indexes measure encoding and search in detail.
"""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch.nn import functional

from pretraining import MaskOptions, PretrainingModel, seeded
from pretraining.terms.bag_of_words import set_cross_entropy, word_set
from pretraining.terms.retromae import decoder_query
from retrieval import Encoder
from retrieval.loading import quiet
from retrieval.model_folder import resolve

WORDS = "the of search index vector model text query rank score data language system paper method result".split()


def best(repeats: int, *sides: Callable[[], object]) -> list[float]:
    """Least seconds of each side, the sides taking turns."""
    times = [[] for _ in sides]
    for _ in range(repeats):
        for side, seen in zip(sides, times, strict=True):
            start = time.perf_counter()
            side()
            seen.append(time.perf_counter() - start)
    return [min(seen) for seen in times]


def encoding() -> dict[str, float]:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=size)) for size in rng.integers(5, 200, size=300)]
    ours = Encoder.load()
    with quiet():
        peer = SentenceTransformer(str(resolve("all-MiniLM-L6-v2")), device="cpu")
    seconds = best(3, lambda: ours.encode_documents(texts), lambda: peer.encode(texts, show_progress_bar=False))
    return {"retrokit texts/s": 300 / seconds[0], "peer texts/s": 300 / seconds[1], "ratio": seconds[1] / seconds[0]}


def dense_losses(model: PretrainingModel, batch) -> torch.Tensor:
    """DupMAE's terms as the authors compute them: vocabulary logits at every position, then cross-entropy."""
    view = model.view(batch)
    embedding = model.backbone.embeddings
    words = embedding.word_embeddings.weight
    logits = model.head(view.hidden, words)  # (b, t, v)
    total = functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100)
    pooled = logits[:, 1:].masked_fill(~batch.attention_mask.bool()[:, 1:, None], -1000.0).amax(1)
    content = batch.attention_mask.bool().clone()
    content[:, 0] = False
    content[torch.arange(len(content)), batch.attention_mask.sum(1) - 1] = False
    target = word_set(batch.ids, content, len(words)) / content.sum(1, keepdim=True)
    source = torch.cat((view.vector[:, None], embedding(input_ids=batch.ids)[:, 1:]), 1)
    decoded = model.decoder(decoder_query(view.vector, batch.rows, embedding, "embedded"), source, batch.visible)
    labels = torch.where(batch.real, batch.ids.gather(1, batch.rows), -100)
    total = total + functional.cross_entropy(
        model.head(decoded, words).flatten(0, 1), labels.flatten(), ignore_index=-100
    )
    return total + 0.1 * set_cross_entropy(pooled, target)


def pretraining_step() -> dict[str, float]:
    folder = str(resolve("all-MiniLM-L6-v2"))
    with quiet():
        encoder = SentenceTransformer(folder, device="cpu")
    model = PretrainingModel(encoder[0].auto_model, encoder.tokenizer, "dupmae", masks=MaskOptions())
    model.eval()  # no dropout: the two sides must give one number
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(1000, 30_000, size=(16, 128)))
    ids[:, 0], ids[:, -1] = 101, 102
    mask = torch.ones_like(ids)
    batch = model.sample(ids, mask, generator=seeded(torch.device("cpu"), 0))

    def lean() -> float:
        model.zero_grad()
        total = model(batch)["total"]
        total.backward()
        return total.item()

    def dense() -> float:
        model.zero_grad()
        total = dense_losses(model, batch)
        total.backward()
        return total.item()

    assert abs(lean() - dense()) < 1e-3
    seconds = best(3, lean, dense)
    return {"lean s/step": seconds[0], "dense s/step": seconds[1], "ratio": seconds[1] / seconds[0]}


def main() -> None:
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "encoding all-MiniLM-L6-v2, 5–200 words": encoding(),
        "DupMAE step, all-MiniLM-L6-v2, 16 × 128 tokens": pretraining_step(),
    }
    text = json.dumps(result, indent=1, ensure_ascii=False)
    Path(__file__).with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
