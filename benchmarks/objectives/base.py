"""Two small bases, trained here by masked words alone, for what a few minutes on 2 cores can show.

`untrained`: one that knows no similarity, a BERT of 4 layers and 256 dimensions from random numbers, with a vocabulary
of 8,192 pieces. `cut`: the first two layers of all-MiniLM-L6-v2 with the word pieces that the texts use:
it knows words; what the model knew of similarity went with the layers above (nDCG@10 as it is: .07 on average).

The texts are the documents of the test collections and the sentences of SICK and of STS-B's training part, without
scores. A base takes about ten minutes, and goes on where it was:

    python -m benchmarks.objectives.base FOLDER [--start cut]
"""

import argparse
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

from benchmarks.setting import HERE
from evaluation import load_dataset
from pretraining import pretrain, reshape

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = 8192
BATCH, LENGTH = 32, 96
STEPS = {"untrained": 1000, "cut": 400}


def data() -> Path:
    return Path(os.environ.get("RETROKIT_TEST_DATA", HERE.parents[1] / "shared" / "data"))


def sentences(name: str) -> Iterator[str]:
    """Both sentences of each line of an STS file."""
    for line in (data() / "sts" / f"{name}.jsonl").read_text().splitlines():
        pair = json.loads(line)
        yield from (pair["sentence1"], pair["sentence2"])


def texts() -> Iterator[str]:
    """What the base reads."""
    for folder in sorted((data() / "beir").iterdir()):
        if (folder / "qrels").is_dir():
            yield from (document.content for document in load_dataset(folder).documents())
    yield from dict.fromkeys(itertools.chain(sentences("sick"), sentences("stsb-train")))


def write_texts(lines: Iterator[str], path: Path) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for number, line in enumerate(lines):
            file.write(json.dumps({"_id": str(number), "text": line}) + "\n")
    return path


def untrained(corpus: Path, folder: Path) -> Path:
    """A BERT of random numbers over a vocabulary made of the corpus."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    if (folder / "model.safetensors").is_file():
        return folder
    maker = BertWordPieceTokenizer(lowercase=True)
    lines = (json.loads(line)["text"] for line in corpus.open(encoding="utf-8"))
    maker.train_from_iterator(lines, vocab_size=WORDS, special_tokens=SPECIALS, show_progress=False)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=maker.get_vocab_size(), hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=1024, max_position_embeddings=256,
    )  # fmt: skip
    BertTokenizerFast(vocab=maker.get_vocab(), model_max_length=256).save_pretrained(folder)
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def cut(corpus: Path, folder: Path) -> Path:
    """The first two layers of all-MiniLM-L6-v2, and the word pieces that occur in the corpus twice."""
    reshape("all-MiniLM-L6-v2", folder, keep_layers=(0, 1), trim_vocabulary=str(corpus), least_count=2)
    return folder


STARTS = {"untrained": untrained, "cut": cut}


def make(folder: Path, start: str = "untrained", steps: int | None = None) -> Path:
    """The base, made now or before: a model folder that pools by mean."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "texts.jsonl"
    if not corpus.is_file():
        write_texts(texts(), corpus.with_suffix(".new")).rename(corpus)
    base = folder / ("base" if start == "untrained" else f"base-{start}")
    pretrain(
        corpus, base, base=str(STARTS[start](corpus, folder / start)), objective="mlm",
        max_steps=steps or STEPS[start], batch_size=BATCH, max_length=LENGTH, learning_rate=5e-4, save_steps=200,
        precision="bfloat16", **({"pooling": "mean"} if start == "untrained" else {}),
        on_note=print, on_progress=lambda done, total: done % 100 == 0 and print(done, total, flush=True),
    )  # fmt: skip
    return base


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--start", choices=list(STARTS), default="untrained")
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    print(make(options.folder, options.start, options.steps))
