"""Terms folders: what a learned sparse encoder gave each document's terms for weight, kept until it is indexed."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from indexes.checksums import describe
from indexes.errors import InputError
from indexes.manifest import differences, open_manifest, publish, read_json, refuse_existing, seal, sole_writer, sync
from indexes.manifest import write_json as write_record
from indexes.partial import CONTENT, PLAN, discard, empty, read_plan, refuse_foreign, write_plan
from indexes.vectors import partial_folder

KIND = "terms"
_PART = "part-{:05d}.arrow"
_RECORD = "part-{:05d}.done.json"
_RECORDS = "part-*.done.json"
_SCHEMA = pa.schema([("id", pa.string()), ("terms", pa.list_(pa.string())), ("weights", pa.list_(pa.float32()))])


class TermStore:
    """An opened terms folder: documents in the order of their corpus, each with its terms' weights.

    Args:
        folder: Where it is.
        manifest: What `open_manifest` gave.

    Attributes:
        made_by: The record of the sparse encoder, with its `fingerprint`.
        corpus: `source` and `fingerprint` of the corpus.
        truncated: How many documents were longer than the encoder reads.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.made_by: dict[str, Any] = manifest["made_by"]
        self.corpus: dict[str, Any] = manifest["corpus"]
        self.truncated: int = manifest["truncated"]
        self._documents: int = manifest["documents"]
        self._parts: int = manifest["parts"]

    @classmethod
    def open(cls, folder: str | Path) -> "TermStore":
        """Open a finished terms folder.

        Raises:
            InputError: There is none, or a file is missing or damaged.
        """
        return cls(Path(folder), open_manifest(Path(folder), KIND))

    def __len__(self) -> int:
        return self._documents

    def __iter__(self) -> Iterator[tuple[str, dict[str, float]]]:
        for part in range(self._parts):
            with pa.memory_map(str(self.folder / _PART.format(part))) as file:
                table = pa.ipc.open_file(file).read_all()
            for id_, terms, weights in zip(*(column.to_pylist() for column in table.columns), strict=True):
                yield id_, dict(zip(terms, weights, strict=True))


class TermWriter:
    """Fills a terms folder part by part; a part that is there and whole is never made again. Use it as a context.

    Until it is finished, everything lies in a folder beside it, and a killed writer's parts are taken over. Where there
    are none, nothing is left behind.

    Args:
        folder: The terms folder to make.
        made_by: The record of the sparse encoder.
        overwrite: Replace a folder, or begin anew what was begun with another encoder.

    Raises:
        InputError: The folder exists, another process writes it, or it was begun with another encoder.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, Any], *, overwrite: bool = False) -> None:
        refuse_existing(folder, overwrite=overwrite)
        self.folder = folder
        self.partial = partial_folder(folder)
        self._made_by = dict(made_by)
        self._overwrite = overwrite
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> "TermWriter":
        refuse_foreign(self.partial)
        self.partial.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(sole_writer(self.partial))
        try:
            self._begin()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()
        if not any(self.partial.glob(_RECORDS)):
            discard(self.partial)

    def _begin(self) -> None:
        if (self.partial / PLAN).is_file():
            begun = read_plan(self.partial)["made_by"]
            if begun["fingerprint"] != self._made_by["fingerprint"]:
                if not self._overwrite:
                    raise InputError(
                        f"{self.partial} was begun by another sparse encoder ({differences(begun, self._made_by)}); "
                        "go on with that one, choose another --output or pass --overwrite"
                    )
                empty(self.partial)
        write_plan(self.partial, {"made_by": self._made_by, "encoding": {"content": KIND}})
        (self.partial / CONTENT).mkdir(exist_ok=True)

    def has(self, part: int, source: str) -> bool:
        """Whether a part is there and whole, made of the documents of this digest."""
        record, place = self.partial / _RECORD.format(part), self.partial / CONTENT / _PART.format(part)
        if not record.is_file() or not place.is_file():
            return False
        said = read_json(record)
        return bool(said["source"] == source and said["file"] == describe(place))

    def write(
        self,
        part: int,
        ids: Sequence[str],
        weights: Sequence[Mapping[str, float]],
        source: str,
        truncated: int = 0,
    ) -> None:
        """Write a part.

        Args:
            part: Its number, from 0.
            ids: Of its n documents.
            weights: {term: weight} of each.
            source: The digest of its documents.
            truncated: How many of them were longer than the encoder reads.
        """
        record, place = self.partial / _RECORD.format(part), self.partial / CONTENT / _PART.format(part)
        record.unlink(missing_ok=True)
        columns = [list(ids), [list(one) for one in weights], [list(one.values()) for one in weights]]
        table = pa.Table.from_arrays(
            [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA
        )
        with pa.OSFile(str(place), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
            writer.write_table(table)
        sync(place)
        said = {"source": source, "documents": len(ids), "rows": len(ids), "truncated": truncated}
        write_record(record, {**said, "file": describe(place)})

    def finish(self, parts: int, corpus: Mapping[str, Any]) -> TermStore:
        """Publish the folder, all of its parts being there, and open it."""
        content = self.partial / CONTENT
        wanted = {_PART.format(part) for part in range(parts)}
        for path in content.iterdir():
            if path.name not in wanted:
                path.unlink()
        records = [read_json(self.partial / _RECORD.format(part)) for part in range(parts)]
        counts = {name: sum(record[name] for record in records) for name in ("documents", "truncated")}
        files = {_PART.format(part): record["file"] for part, record in enumerate(records)}
        seal(content, KIND, {"made_by": self._made_by, "corpus": dict(corpus), **counts, "parts": parts}, files)
        publish(content, self.folder, overwrite=self._overwrite)
        self._lock.close()
        discard(self.partial)
        return TermStore.open(self.folder)
