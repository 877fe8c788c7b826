"""What precision and storage cost in ranking: nDCG@10 and Recall@100 on SciFact, exact search, all-MiniLM-L6-v2.

Queries are encoded at the precision of the documents; stored forms are those of the float32 vectors, and their queries
are float32. python -m benchmarks.encoding.quality (about 10 minutes on 2 cores)
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.setting import save, scifact
from evaluation import evaluate, load_dataset
from indexes import VectorStore, save_vectors
from retrieval import Encoder, Retriever, build_index
from retrieval.model_folder import PACKAGED

PRECISIONS = (
    ("torch", "float32"),
    ("openvino", "float32"),
    ("torch", "bfloat16"),
    ("openvino", "bfloat16"),
    ("openvino", "int8"),
)
FORMS = ("float16", "int8", "binary")


def measure(store: VectorStore, encoder: Encoder, folder: Path, testset: Any) -> dict[str, Any]:
    build_index(store, folder, documents=testset.documents())
    report = evaluate(Retriever.open(folder, encoder), testset, modes=["dense"])
    metrics = next(iter(report.systems.values())).metrics
    size = sum(path.stat().st_size for path in store.folder.glob("*.npy"))
    chosen = {name: round(metrics[name], 5) for name in ("nDCG@10", "Recall@100")}
    return {**chosen, "bytes a document": round(size / len(store))}


def main() -> None:
    testset = load_dataset(scifact())
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for backend, dtype in PRECISIONS:
            encoder = Encoder.load(PACKAGED, backend=backend, dtype=dtype, device="cpu")
            store = encoder.encode_corpus(testset.documents(), root / f"{backend}-{dtype}")
            label = f"{backend} {dtype}"
            rows[label] = measure(store, encoder, root / f"{backend}-{dtype}.index", testset)
            print(label, rows[label], flush=True)
        encoder = Encoder.load(PACKAGED)
        plain = VectorStore.open(root / "torch-float32")
        for form in FORMS:
            store = save_vectors(root / form, plain[:], plain.ids, made_by=plain.made_by, storage=form)
            rows[f"stored as {form}"] = measure(store, encoder, root / f"{form}.index", testset)
            print(form, rows[f"stored as {form}"], flush=True)
    save(__file__, {"systems": rows})


if __name__ == "__main__":
    main()
