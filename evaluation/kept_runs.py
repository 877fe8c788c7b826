"""Runs that are kept: what a system found on a test set, by fingerprints, so that killed work goes on where it was."""

import gzip
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.rankings import Ranking, Run, make_ranking
from evaluation.testsets import TestSet
from indexes.checksums import file_digest, fingerprint
from indexes.errors import InputError

_FORMAT = 1
_LARGEST_STATE = 1 << 22


def run_key(made_by: Mapping[str, str], mode: str, testset: TestSet, k: int, spec: str) -> str:
    """What decides a run, as one fingerprint: names of models or folders are not enough.

    Args:
        made_by: What the system says of itself, its models' fingerprints among it.
        mode: How it is searched.
        testset: Corpus, queries and profile.
        k: Hits for each query.
        spec: What it was opened by; if it names a folder, what is in the folder's JSON files (manifests with the
            checksums of all others) counts too.
    """
    return fingerprint(
        {
            "format": _FORMAT,
            "made_by": dict(made_by),
            "mode": mode,
            "dataset": testset.fingerprint,
            "corpus": testset.corpus_fingerprint,
            "drop_self_matches": testset.profile.drop_self_matches,
            "k": k,
            "spec": spec,
            "state": _state(Path(spec)),
        }
    )


def _state(folder: Path) -> dict[str, str]:
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return {path.name: file_digest(path) for path in paths if path.stat().st_size <= _LARGEST_STATE}


def keep_run(folder: Path, key: str, run: Mapping[str, Ranking]) -> None:
    """Keep a run, wholly or not at all.

    Args:
        folder: Where runs are kept.
        key: From `run_key`.
        run: With a ranking, perhaps an empty one, for every query.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{key}.{os.getpid()}"
    try:
        with temporary.open("wb") as raw:
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=1) as file:
                for query, ranking in run.items():
                    line = {"query": query, "ids": ranking.ids, "scores": ranking.scores.tolist()}
                    file.write(json.dumps(line).encode("ascii") + b"\n")
                file.write(json.dumps({"queries": len(run)}).encode("ascii") + b"\n")
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(_path(folder, key))
    finally:
        temporary.unlink(missing_ok=True)


def kept_run(folder: Path, key: str) -> Run | None:
    """A run that was kept, the very same; None if there is none, or if its file is damaged.

    Args:
        folder: Where runs are kept.
        key: From `run_key`.
    """
    try:
        with gzip.open(_path(folder, key), "rt", encoding="ascii") as file:
            *lines, last = [json.loads(line) for line in file]
        run = {line["query"]: _ranking(line) for line in lines}
        return run if last == {"queries": len(run)} else None
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, InputError):
        return None


def _ranking(line: Mapping[str, Any]) -> Any:
    return make_ranking(line["ids"], line["scores"], place=f"query {line['query']!r}")


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.jsonl.gz"
