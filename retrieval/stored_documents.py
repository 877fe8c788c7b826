"""Documents by id, and texts by row of an index: its own stored ones, or those of a corpus, laid down on disk."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from indexes.errors import InputError
from indexes.manifest import new_folder
from indexes.names import Names
from indexes.reader import Reader
from indexes.texts import Texts, TextsWriter
from retrieval.corpora import Corpus
from retrieval.documents import Document

_IDS = "ids"


class IndexTexts(Mapping[str, Document]):
    """The documents of an index that keeps their texts; none is in memory.

    Args:
        reader: The generation that is read.

    Raises:
        InputError: It keeps no texts.
    """

    def __init__(self, reader: Reader) -> None:
        if any(segment.texts is None for segment in reader.segments):
            raise InputError(f"{reader.folder} keeps no texts of its documents; give their corpus (--corpus)")
        self._reader = reader
        self.folder = reader.folder

    def text(self, row: int) -> str:
        """The text of a row."""
        return self._reader.text(row) or ""

    def __getitem__(self, name: str) -> Document:
        row = int(self._reader.rows_of_names([name])[0])
        if row < 0:
            raise KeyError(name)
        return Document(name, self.text(row))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self._reader.rows_of_names([name])[0] >= 0)

    def __iter__(self) -> Iterator[str]:
        return (str(one.id) for one in self._reader)

    def __len__(self) -> int:
        return len(self._reader)


class CorpusTexts(Mapping[str, Document]):
    """The documents of a corpus, as `keep_texts` laid them down; none is in memory.

    Args:
        folder: Where they are.
        reader: The index whose rows are asked for.
    """

    def __init__(self, folder: Path, reader: Reader) -> None:
        texts = Texts.open(folder)
        if texts is None:
            raise InputError(f"{folder} holds no texts; delete it")
        self._reader = reader
        self.folder = reader.folder
        self._texts, self._names = texts, Names.open(folder, _IDS)

    def text(self, row: int) -> str:
        """The text of a row of the index.

        Raises:
            InputError: The corpus lacks its document.
        """
        name = str(self._reader.ids[row])
        number = int(self._names.numbers([name])[0])
        if number < 0:
            raise InputError(
                f"document {name!r} of {self._reader.folder} is not in the corpus ({len(self):,} documents); give the "
                "corpus that was indexed"
            )
        return self._texts[number]

    def __getitem__(self, name: str) -> Document:
        number = int(self._names.numbers([name])[0])
        if number < 0:
            raise KeyError(name)
        return Document(name, self._texts[number])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self._names.numbers([name])[0] >= 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


StoredDocuments = IndexTexts | CorpusTexts
"""Documents by id, and texts by row of an index."""


def keep_texts(corpus: Corpus, folder: Path) -> None:
    """Lay the texts of a corpus down in a folder, to be found by id; the folder is there whole or not at all."""
    with new_folder(folder) as temporary:
        ids = []
        with TextsWriter(temporary) as writer:
            for document in corpus:
                ids.append(document.id)
                writer.add(document.id, document.content)
        Names.of(ids).save(temporary, _IDS)
