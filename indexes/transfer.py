"""Vectors folders made of arrays or of other folders, and exported to files that other programs read."""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.checksums import damaged_files, fingerprint
from indexes.errors import InputError
from indexes.interchange import write_arrow, write_npy, write_parquet
from indexes.manifest import differences, new_folder, refuse_existing, seal
from indexes.names import WHOLE, Id, text_of
from indexes.storage import calibrate
from indexes.vector_writer import VectorWriter, link_or_copy
from indexes.vectors import KIND, VectorStore, files_of, joined_corpus, shard_name

_COLLISIONS = 1000
"""Repeated digests looked at: of 10^9 different ids, 64 bits let not one pair collide on average."""

_WRITERS = {".npy": write_npy, ".parquet": write_parquet, ".arrow": write_arrow}

OnProgress = Callable[[int, int | None], None]
"""Called with what is done so far and the total."""


def save_vectors(
    folder: str | Path,
    vectors: NDArray[np.float32],
    ids: Sequence[Id] | NDArray[np.integer],
    *,
    made_by: Mapping[str, Any],
    storage: str = "float32",
    overwrite: bool = False,
) -> VectorStore:
    """Write vectors (n, d) that are already in memory, made elsewhere, to a vectors folder of one shard.

    Args:
        folder: The folder to make.
        vectors: (n, d) float32.
        ids: One for each row: texts, or whole numbers.
        made_by: What made them; `normalize` (true: unit length, compared by cosine) decides the metric of an index.
        storage: `float32`, `float16`, `int8` (calibrated on these vectors) or `binary`.
        overwrite: Replace an existing folder.

    Raises:
        InputError: The ids are not one a row, not distinct or not of one kind, or the folder exists.
    """
    whole = len(ids) > 0 and not isinstance(ids[0], str)
    names = [text_of(one, whole=whole) for one in ids]
    if vectors.ndim != 2 or len(names) != len(vectors) or len(set(names)) != len(names):
        raise InputError(
            f"{len(names)} ids ({len(set(names))} distinct) for vectors of shape {vectors.shape}; one id a row"
        )
    vectors = vectors.astype(np.float32, copy=False)
    digest = hashlib.sha256(np.ascontiguousarray(vectors).tobytes())
    digest.update(json.dumps(names).encode())
    identity = made_by.get("fingerprint") or fingerprint(dict(made_by))
    record = {**made_by, "fingerprint": identity, "dim": vectors.shape[1]}
    encoding = {"shard_rows": max(len(names), 1), "storage": storage, **({"ids": WHOLE} if whole else {})}
    plan = VectorWriter(Path(folder), made_by=record, encoding=encoding, overwrite=overwrite)
    with contextlib.closing(plan) as writer:
        if storage == "int8":
            writer.set_calibration(calibrate(vectors))
        writer.write(0, vectors, names, digest.hexdigest())
        return writer.finish(1, {"source": None, "fingerprint": None})


def merge_vectors(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> VectorStore:
    """Make one vectors folder out of several, in the order given; the shards keep their bytes.

    Every file is compared with its checksum on the way, and linked where the file system can, else copied. The folder
    appears whole or not at all. Its corpus names the parts: `source`, `fingerprint` and `documents` of each.

    Args:
        folders: Vectors folders of one encoder, encoded alike, without a document in common.
        output: The folder to make.
        overwrite: Replace `output` if it exists.
        on_progress: Called with the documents merged and their total.

    Raises:
        InputError: The folders do not fit together (both sides are named), a document is in two of them, a file is
            damaged, or `output` exists or is one of them.
    """
    if not folders:
        raise InputError("no folders to merge; give at least one")
    output = Path(output)
    refuse_existing(output, overwrite=overwrite, inputs=folders)
    stores = [VectorStore.open(folder) for folder in folders]
    refuse_inside(output, stores)
    given: set[Path] = set()
    for store in stores:
        if store.folder.resolve() in given:
            raise InputError(f"{store.folder} is given twice; merge each folder once")
        given.add(store.folder.resolve())
        _refuse_misfit(stores[0], store)
    _refuse_common_ids(stores)
    total = sum(store.documents for store in stores)
    with new_folder(output, overwrite=overwrite) as new:
        shards: list[dict[str, Any]] = []
        files: dict[str, Any] = {}
        for shard, entries in _take_shards(stores, new):
            shards.append(shard)
            files.update(entries)
            if on_progress:
                on_progress(sum(taken["documents"] for taken in shards), total)
        seal(new, KIND, _content(stores, shards), files)
    return VectorStore.open(output)


def refuse_inside(path: Path, stores: Sequence[VectorStore]) -> None:
    """Refuse an output that lies in a vectors folder, which must stay as it is.

    Raises:
        InputError: It does.
    """
    for store in stores:
        if store.folder.resolve() in path.resolve().parents:
            raise InputError(f"--output {path} lies inside {store.folder}; choose another --output")


def _take_shards(stores: Sequence[VectorStore], new: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Give the files of every shard their new names in `new`; yield its record and what the manifest says of them."""
    number = itertools.count()
    for store in stores:
        known = store.manifest["files"]
        for shard in store.manifest["shards"]:
            names = files_of(shard, known)
            damaged = damaged_files(store.folder, {name: known[name] for name in names})
            if damaged:
                raise InputError(
                    f"{store.folder / damaged[0]} is damaged (size or SHA-256 is not the manifest's); "
                    "make that folder again before it is merged"
                )
            name = shard_name(next(number))
            renamed = {old: name + old.removeprefix(shard["name"]) for old in names}
            for old, fresh in renamed.items():
                link_or_copy(store.folder / old, new / fresh)
            yield {**shard, "name": name}, {fresh: known[old] for old, fresh in renamed.items()}


def _content(stores: Sequence[VectorStore], shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = stores[0]
    rows = {store.encoding.get("shard_rows") for store in stores}
    return {
        "made_by": first.made_by,
        "encoding": {**first.encoding, "shard_rows": rows.pop() if len(rows) == 1 else None},
        "calibration": first.manifest["calibration"],
        "corpus": joined_corpus([(store.corpus, store.documents) for store in stores]),
        **{count: sum(shard[count] for shard in shards) for count in ("rows", "documents", "truncated")},
        "shards": list(shards),
    }


def _refuse_misfit(first: VectorStore, other: VectorStore) -> None:
    """Refuse a folder whose numbers mean something else than those of the first."""
    pair = f"{first.folder} and {other.folder}"
    ours, theirs = ((store.made_by["fingerprint"], store.dim) for store in (first, other))
    if ours != theirs:
        raise InputError(
            f"{pair} were made by different encoders ({differences(first.made_by, other.made_by)}); "
            "merge folders of one encoder"
        )
    records = ({**store.encoding, "shard_rows": None} for store in (first, other))
    if differs := differences(*records):
        raise InputError(f"{pair} were encoded differently ({differs}); merge folders that were encoded alike")
    if first.storage.scale is not None and other.storage.scale is not None:
        apart = np.flatnonzero(first.storage.scale != other.storage.scale)
        if len(apart):
            here = int(apart[0])
            raise InputError(
                f"{pair} have different int8 calibrations (step of dimension {here}: {first.storage.scale[here]:g} ≠ "
                f"{other.storage.scale[here]:g}); encode them as one corpus, or as float16"
            )


def _refuse_common_ids(stores: Sequence[VectorStore]) -> None:
    """Refuse documents that are in two folders; about 8 bytes a document are held in memory."""
    digests = np.fromiter((_digest(name) for store in stores for ids in store.shard_ids() for name in ids), np.uint64)
    digests.sort()
    repeated = np.unique(digests[1:][digests[1:] == digests[:-1]])[:_COLLISIONS]
    if not len(repeated):
        return
    suspects: set[int] = set(repeated.tolist())
    found: dict[str, VectorStore] = {}
    for store in stores:
        for name in itertools.chain.from_iterable(store.shard_ids()):
            if _digest(name) in suspects and found.setdefault(name, store) is not store:
                raise InputError(
                    f"document {name!r} is in {found[name].folder} and in {store.folder}; "
                    "ids must be distinct: leave it out of one corpus, or rename it"
                )


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())


def export_vectors(
    store: VectorStore,
    path: str | Path,
    *,
    overwrite: bool = False,
    stored: bool = False,
    on_progress: OnProgress | None = None,
) -> list[Path]:
    """Write a vectors folder to a file for other programs, block by block.

    | suffix | what is in it |
    |---|---|
    | .npy | (n, d) array; beside it `<name>.ids.txt`, the ids of the documents, one a line |
    | .parquet, .arrow | columns `id` and `vector` (fixed_size_list); in the schema's metadata `made_by`, `corpus` … |

    Where rows are passages, there is `<name>.passages.npy`, which is `VectorStore.passages`, beside the array; in a
    table, each row has its document's `id` and the columns `begin` and `end`.

    Args:
        store: What to export.
        path: The file to make; its suffix says which kind.
        overwrite: Replace files that exist.
        stored: Write the numbers as they are stored (float16, int8, bits packed in uint8) instead of as float32. What
            int8 has to be multiplied with goes to `<name>.scale.npy`, or as `calibration` into the metadata.
        on_progress: Called with the rows written and their total.

    Returns:
        The files made, that of the vectors first. They appear when all is written.

    Raises:
        InputError: The suffix is none of these, a file exists, or it cannot be written.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise InputError(f"--output {path} ends in {path.suffix!r}; expected one of {', '.join(_WRITERS)}")
    refuse_inside(path, [store])
    wanted = {path.suffix: True}
    if path.suffix == ".npy":
        scaled = stored and store.storage.form == "int8"
        wanted |= {"ids.txt": True, "passages.npy": store.has_passages, "scale.npy": scaled}
    places = {name: path if name == path.suffix else path.with_name(f"{path.stem}.{name}") for name in wanted}
    for file in places.values():
        refuse_file(file, overwrite=overwrite)
    files = {name: file for name, file in places.items() if wanted[name]}
    try:
        with new_files(files) as new:
            for done in _WRITERS[path.suffix](new, store, stored=stored):
                if on_progress:
                    on_progress(done, len(store))
        for name in places.keys() - files.keys():
            places[name].unlink(missing_ok=True)  # it belonged to the export that was replaced
    except OSError as error:
        raise InputError(f"{path} was not written ({error.strerror or error}); choose another --output") from None
    return list(files.values())


def refuse_file(path: Path, *, overwrite: bool) -> None:
    """Refuse to write a file where there is one, or a folder.

    Raises:
        InputError: There is.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; choose another --output")
    if path.exists() and not overwrite:
        raise InputError(f"{path} already exists; choose another --output or pass --overwrite")


@contextlib.contextmanager
def new_files(files: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """Give temporary siblings to fill, and put them in their places when the block ends well, the first one last."""
    new = {name: file.with_name(f".{file.name}.new-{os.getpid()}") for name, file in files.items()}
    try:
        for file in new.values():
            file.parent.mkdir(parents=True, exist_ok=True)
        yield new
        for file in new.values():
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        for name in reversed(list(files)):
            new[name].replace(files[name])
    finally:
        for file in new.values():
            file.unlink(missing_ok=True)
