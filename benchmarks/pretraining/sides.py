"""One side of the throughput benchmark, in a process of its own: training steps from token ids to the optimiser.

Prints one JSON object: samples a second of each step, and the peak of memory. The side's own interpreter runs it.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TEXTS, TOKENS = 16, 128
Step = Callable[[list[Any]], torch.Tensor]


def transformers_mlm(folder: str) -> tuple[Step, Any]:
    """Transformers' masked-language model with its standard collator and its dense head."""
    from transformers import AutoTokenizer, BertForMaskedLM, DataCollatorForLanguageModeling

    model = BertForMaskedLM.from_pretrained(folder).train()
    collate = DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(folder), mlm_probability=0.15)

    def loss(rows: list[Any]) -> torch.Tensor:
        return model(**collate([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])).loss

    return loss, model


def pretense(name: str, folder: str) -> tuple[Step, Any]:
    """Pretense's model under its collator, which is spared the tokenizing."""
    from pretense import MAECollator, create_pretraining_model
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    class OfIds(MAECollator):
        def _tokenize(self, texts: list[str], *, add_special_tokens: bool = True) -> dict[str, torch.Tensor]:
            ids = torch.tensor([json.loads(text) for text in texts])
            special = torch.zeros_like(ids)
            special[:, [0, -1]] = 1
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "special_tokens_mask": special}

    model = create_pretraining_model(name, AutoModelForMaskedLM.from_pretrained(folder)).train()
    collate = OfIds(AutoTokenizer.from_pretrained(folder), TOKENS, include_bow=name == "dupmae")

    def loss(rows: list[Any]) -> torch.Tensor:
        return model(**collate([{"text": json.dumps(row)} for row in rows])).loss

    return loss, model


def retrokit(name: str, folder: str) -> tuple[Step, Any]:
    """An objective of ours, as the loop computes it."""
    import numpy as np

    from pretraining import MaskOptions, Objective, seeded
    from pretraining.base import load_base
    from pretraining.tokens import Collator

    objective = Objective.parse(name.removeprefix("half "))
    if name.startswith("half "):
        objective = objective.with_option("decoder_mlm", "row_fraction", 0.5)
    base = load_base(folder, objective, MaskOptions(), pooling=None, seed=0)
    model, collate = base.model.train(), Collator(base.tokenizer)
    cpu, count = torch.device("cpu"), iter(range(1000))

    def loss(rows: list[Any]) -> torch.Tensor:
        items: Any = [
            {"ids": np.asarray(row[1:-1]), "word_starts": np.asarray(row[1:-1]) % 5 > 0} for row in rows
        ]  # (four words in five begin anew)
        given = collate(items)
        tensors = given["ids"], given["attention_mask"], given["word_starts"]
        return model(model.sample(*tensors, generator=seeded(cpu, next(count))))["total"]

    return loss, model


def main() -> None:
    side, folder, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    kind, _, name = side.partition(" ")
    if kind == "transformers":
        loss, model = transformers_mlm(folder)
    else:
        loss, model = (pretense if kind == "pretense" else retrokit)(name, folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    chance = torch.Generator().manual_seed(0)
    speeds = []
    for step in range(steps + 1):
        rows = torch.randint(1000, 30_000, (TEXTS, TOKENS), generator=chance)
        rows[:, 0], rows[:, -1] = 101, 102
        listed = rows.tolist()
        start = time.perf_counter()
        value = loss(listed)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step:  # the first one warms up
            speeds.append(TEXTS / (time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    Path("/dev/stdout").write_text(json.dumps({"samples/s": speeds, "peak GB": peak}))


if __name__ == "__main__":
    main()
