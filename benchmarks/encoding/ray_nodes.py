"""A Ray cluster of two nodes on this machine, one of which is killed in the middle: same bytes as one process.

python -m benchmarks.encoding.ray_nodes
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.setting import save, text, tiny_model
from retrieval import Document, Encoder, RayActors


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=40_000)
    count = parser.parse_args().documents
    from ray.cluster_utils import Cluster

    root = Path(tempfile.mkdtemp())
    encoder = Encoder.load(str(tiny_model(root / "model")))
    documents = [Document(f"d{number}", text(number, 30)) for number in range(count)]
    encoder.encode_corpus(documents, root / "whole", shard_rows=256)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    runner = RayActors(workers=2, address=cluster.address)
    nodes = sum(node["Alive"] for node in runner.ray.nodes())
    killed_at: list[int] = []

    def kill_one(done: int, total: int | None) -> None:
        if done > count // 3 and not killed_at:
            killed_at.append(done)
            cluster.remove_node(second, allow_graceful=False)

    start = time.perf_counter()
    encoder.encode_corpus(documents, root / "v", shard_rows=256, runner=runner, on_progress=kill_one)
    spent = time.perf_counter() - start
    alive = sum(node["Alive"] for node in runner.ray.nodes())
    equal = files(root / "v") == files(root / "whole")
    runner.ray.shutdown()
    cluster.shutdown()
    shutil.rmtree(root)
    result = {
        "documents": count,
        "nodes at the start": nodes,
        "documents done when one was killed": killed_at[0],
        "nodes at the end": alive,
        "seconds": round(spent, 1),
        "same bytes as one process": equal,
    }
    save(__file__, result)


if __name__ == "__main__":
    main()
