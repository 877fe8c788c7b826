"""A tiny random BERT, a toy WordPiece vocabulary and a corpus, all made here."""

import json
import os
import string
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

WORDS = ["river", "stone", "green", "walk", "night", "paper", "music", "water", "house", "train"]
SPECIALS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    root = Path(__file__).parents[2]
    data = Path(os.environ.get("RETROKIT_TEST_DATA", root.parent / "shared" / "data"))
    folder = data.parent / "golden"
    if not (folder / "expected.json").is_file():
        pytest.skip("no golden values: set RETROKIT_TEST_DATA to a folder beside `golden`")
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join([*SPECIALS, *WORDS, *letters, "##ing", "."]) + "\n")
    lines = path.read_text().split("\n")[:-1]
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(lines)}, do_lower_case=True)


def bert_config(tokenizer, **changes) -> BertConfig:
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    sizes |= dict(max_position_embeddings=32, vocab_size=len(tokenizer), pad_token_id=0)
    return BertConfig(**(sizes | changes))


@pytest.fixture
def make_model(tokenizer):
    """A PretrainingModel over a random backbone without dropout."""
    from transformers import BertModel

    from pretraining.model import PretrainingModel

    def make(objective="dupmae", *, masks=None, pooling="cls", seed=0, **changes):
        torch.manual_seed(seed)
        quiet = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        backbone = BertModel(bert_config(tokenizer, **(quiet | changes)), add_pooling_layer=False)
        return PretrainingModel(backbone, tokenizer, objective, pooling=pooling, masks=masks)

    return make


@pytest.fixture(scope="session")
def base(tokenizer, tmp_path_factory) -> Path:
    """A folder with a BertForMaskedLM, as transformers saves it."""
    folder = tmp_path_factory.mktemp("models") / "base"
    torch.manual_seed(0)
    BertForMaskedLM(bert_config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    generator = torch.Generator().manual_seed(3)
    lines = []
    for number in range(24):
        length = 4 + number
        picked = torch.randint(len(WORDS), (length,), generator=generator).tolist()
        text = " ".join(WORDS[word] + ("ing" if word % 3 == 0 else "") for word in picked)
        lines.append(json.dumps({"_id": f"d{number}", "text": "" if number == 5 else text}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def batch(tokenizer):
    """Three texts of different length: ids, attention_mask (3, t) and word_starts."""
    texts = ["river walking stones night", "green paper musics of water houses trains at night", "stone"]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


@pytest.fixture
def pairs(tokenizer):
    """Four texts in two pairs."""
    texts = ["river walking stones", "green paper musics of water", "stone", "houses trains at night river"]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


@pytest.fixture
def beside(tokenizer):
    """What accompanies the four texts: some characters masked, and a field, which one of them has not."""
    masked = tokenizer(
        ["r [MASK] walking", "green [MASK] of water", "stone", "houses [MASK] river"], padding=True, return_tensors="pt"
    )
    field = tokenizer(["night water paper", "", "green trains", "s"], padding=True, return_tensors="pt")
    better = tokenizer(["river walking", "green", "", "houses at night"], padding=True, return_tensors="pt")
    worse = tokenizer(["stone", "stone train", "", "water"], padding=True, return_tensors="pt")
    texts = {"masked": masked, "reason": field, "better": better, "worse": worse}
    every = {name: torch.ones_like(text["input_ids"], dtype=torch.bool) for name, text in texts.items()}
    given = {
        name: {"ids": text["input_ids"], "attention_mask": text["attention_mask"], "word_starts": every[name]}
        for name, text in texts.items()
    }
    marked = every["reason"].clone()
    marked[0, 2] = False
    given["reason"]["marked"] = marked
    return given
