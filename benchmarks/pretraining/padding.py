"""Share of a batch that is padding, in random order and with texts of like length together (`group_by_length`).

What it is with grouping bounds what batches without padding could bring: a share s of padding makes 1 / (1 - s) times
the tokens that there are, of which attention alone costs more than in proportion. One epoch of each collection.

    python -m benchmarks.pretraining.padding
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from benchmarks.pretraining.cleaning import COLLECTIONS
from benchmarks.setting import save, scifact
from pretraining.orders import GroupedByLength
from pretraining.token_writer import write_tokens
from pretraining.tokens import SPECIALS, TokenWindows
from retrieval.documents import read_documents
from retrieval.model_folder import PACKAGED, resolve
from retrieval.orders import EpochOrder

LENGTHS, BATCHES = (128, 256, 512), (16, 64)


def padding(order: Any, lengths: np.ndarray, batch: int) -> float:
    """Share of padding in the batches of an order of rows of so many tokens (rows,)."""
    rows = lengths[np.fromiter(order, dtype=np.int64)].reshape(-1, batch)
    return round(float(1 - rows.mean() / rows.max(1).mean()), 4)


def measure(windows: TokenWindows) -> dict[str, Any]:
    lengths, found = np.asarray(windows.lengths) + SPECIALS, {}
    for batch in BATCHES:
        order = EpochOrder(len(lengths), len(lengths) // batch * batch, 0)  # as runs have it: whole batches
        found[f"batches of {batch}"] = {
            "random": padding(order, lengths, batch),
            "grouped": padding(GroupedByLength(order, lengths, batch, 0), lengths, batch),
        }
    middle, longest = np.quantile(lengths, (0.5, 0.9))
    return {"windows": len(lengths), "median tokens": int(middle), "90% have up to": int(longest), **found}


def main() -> None:
    tokenizer, result = AutoTokenizer.from_pretrained(resolve(PACKAGED)), {}
    for name in COLLECTIONS:
        for length in LENGTHS:
            with tempfile.TemporaryDirectory() as folder:
                tokens = Path(folder) / "tokens"
                write_tokens(read_documents(scifact().with_name(name)), tokenizer, tokens, max_length=length)
                result[f"{name}, up to {length} tokens"] = measure(TokenWindows(tokens))
    save(__file__, {"texts": result})


if __name__ == "__main__":
    main()
