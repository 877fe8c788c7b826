"""Lexical index folders: the inverted lists, ids and texts of one corpus, without vectors."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.lexical import K1, B, Impacts, Lexical
from indexes.manifest import new_folder, open_manifest, seal
from indexes.names import Names
from indexes.postings import Postings, Terms
from indexes.segments import Entry
from indexes.texts import Texts, TextsWriter

KIND = "lexical index"
_IDS, _LISTS = "ids", "lexical"


class LexicalIndex:
    """An opened lexical index folder, which never changes; for what has vectors too, or changes, there is `Index`.

    Args:
        folder: Where it is.
        manifest: What `open_manifest` gave.

    Attributes:
        ids: n document ids.
        texts: Their texts.
        lexical: The inverted lists: BM25, or learned weights (`Impacts`).
        analyzer: The name of what made BM25's terms; or the record of the encoder that gave terms their weights.
        corpus: `source` and `fingerprint` of the corpus.
        bytes: Of its ids and inverted lists.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.analyzer: str | dict[str, Any] = manifest["analyzer"]
        self.corpus: dict[str, Any] = manifest["corpus"]
        self.ids = Names.open(folder, _IDS)
        texts, postings = Texts.open(folder), Postings.open(folder / _LISTS)
        counts = {len(self.ids), len(postings.lengths), -1 if texts is None else len(texts), manifest["documents"]}
        if texts is None or len(counts) > 1:
            raise InputError(f"{folder}: its parts hold {sorted(counts)} documents: make the index again")
        self.texts = texts
        lists = [(postings, None)]
        self.lexical = Impacts(lists) if postings.weighted else Lexical(lists, **manifest["bm25"])
        sizes = {name: record["bytes"] for name, record in manifest["files"].items()}
        self.bytes: int = sum(size for name, size in sizes.items() if name.startswith((f"{_LISTS}/", f"{_IDS}.")))

    @classmethod
    def build(
        cls,
        entries: Iterable[Entry],
        folder: str | Path,
        *,
        analyzer: str | Mapping[str, Any],
        corpus: Mapping[str, Any],
        overwrite: bool = False,
    ) -> "LexicalIndex":
        """Build a lexical index folder; it appears whole or not at all.

        Args:
            entries: The documents, ids being texts: their terms for BM25, or the weights of their terms. Attributes
                are not kept.
            folder: The folder to make.
            analyzer: The name of what made the terms, or the record of the encoder that gave them weights.
            corpus: `source` and `fingerprint` of the corpus; it is read after the last entry.
            overwrite: Replace an existing folder.

        Raises:
            InputError: The folder exists, an id occurs twice, or no document holds a term.
        """
        ids: list[str] = []
        with new_folder(Path(folder), overwrite=overwrite) as new:
            with TextsWriter(new) as writer:

                def terms() -> Iterator[Terms]:
                    for entry in entries:
                        ids.append(str(entry.id))
                        writer.add(ids[-1], entry.text)
                        yield entry.terms

                postings = Postings.of(terms())
            if len(set(ids)) < len(ids):
                twice = next(one for one in ids if ids.count(one) > 1)
                raise InputError(f"document {twice!r} occurs twice; every document needs an id of its own")
            if not postings.rows.size:
                raise InputError(f"none of the {len(ids)} documents holds a term; there is nothing to search by words")
            postings.save(new / _LISTS)
            Names.of(ids).save(new, _IDS)
            record = None if postings.weighted else {"k1": K1, "b": B}
            content = {"analyzer": analyzer, "corpus": dict(corpus), "documents": len(ids), "bm25": record}
            del postings
            seal(new, KIND, content)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> "LexicalIndex":
        """Open a lexical index folder, memory-mapped.

        Raises:
            InputError: There is none, or a file is missing or damaged.
        """
        return cls(Path(folder), open_manifest(Path(folder), KIND))

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, ids: Iterable[str]) -> NDArray[np.int64]:
        """The row of each document (m,); -1 where there is none."""
        return self.ids.numbers(list(ids))
