"""The commands that change an index: `retrokit add`, `delete` and `compact`."""

import itertools
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from indexes.checksums import fingerprint
from indexes.errors import InputError
from indexes.manifest import write_json
from indexes.partial import discard
from retrieval.commands import CORPUS, Json, encode_terms_to, encode_to, is_kind
from retrieval.console import note, out

if TYPE_CHECKING:
    from indexes.index import Index
    from indexes.names import Id
    from indexes.terms import TermStore

_DAY = 86_400
Folder = Annotated[Path, typer.Argument(help="An index folder.", metavar="INDEX_FOLDER")]


def add(
    index: Folder,
    source: Annotated[str, typer.Argument(help=f"A vectors folder, or a corpus, which is encoded first. {CORPUS}")],
    *,
    replace: Annotated[bool, typer.Option("--replace", help="Replace documents that are there already.")] = False,
    corpus: Annotated[str | None, typer.Option(help="The vectors' documents, if they moved since encoding.")] = None,
    attributes: Annotated[str, typer.Option(help="Fields of the corpus to filter by, such as year,lang.")] = "",
    encoder: Annotated[str | None, typer.Option(help="The index's encoder, if it moved.", metavar="MODEL")] = None,
    sparse: Annotated[
        str | None, typer.Option(help="The index's sparse encoder, if it moved.", metavar="MODEL")
    ] = None,
    json: Json = None,
) -> None:
    """Add documents to an index, all or none.

    Killed while encoding? Run the same command again: finished shards are kept.
    """
    from indexes.index import Index
    from indexes.vectors import KIND, VectorStore
    from retrieval.building import add_to_index
    from retrieval.documents import read_documents

    opened = Index.open(index)
    folder, made_here, place = Path(source), not is_kind(Path(source), KIND), _place_for(index, source)
    if made_here:
        folder = place
        _encode_for(opened, source, folder, encoder)
    vectors = VectorStore.open(folder)
    sources = [corpus] if corpus else [part["source"] for part in vectors.corpus.get("parts") or [vectors.corpus]]
    wanted = [name.strip() for name in attributes.split(",") if name.strip()]
    lexical = opened.reader.lexical is not None
    if None in sources and (wanted or lexical):
        raise InputError(f"{folder} does not say what it was made of; pass --corpus for BM25, texts and attributes")
    texts = itertools.chain.from_iterable(read_documents(one, wanted) for one in sources)
    alone = {one.id: one.attributes or {} for one in texts} if wanted and not lexical else None
    terms = _terms_for(opened, sources, place.with_name(f"{place.name}.terms"), sparse)
    replaced = add_to_index(
        opened, vectors, documents=texts if lexical else None, terms=terms, attributes=alone, replace=replace
    )
    for mine in ([folder] if made_here else []) + ([] if terms is None else [terms.folder]):
        shutil.rmtree(mine)
    _sweep(place)
    added = vectors.documents
    said = f"{added:,} documents added, {replaced:,} of them in place of older ones"
    _say(opened, json, {"added": added, "replaced": replaced}, said)


def delete(
    index: Folder,
    ids: Annotated[list[str] | None, typer.Argument(help="Of the documents to delete.")] = None,
    *,
    filter: Annotated[str | None, typer.Option(help="Delete documents that meet it: 'year < 2000'.")] = None,
    ids_from: Annotated[Path | None, typer.Option(help="A file of ids, one a line.", metavar="FILE")] = None,
    missing_ok: Annotated[bool, typer.Option("--missing-ok", help="Pass over ids that are not there.")] = False,
    json: Json = None,
) -> None:
    """Delete documents from an index by id, by filter, or both.

    Their space is given back by retrokit compact.
    """
    from indexes.index import Index

    named: list[Id] = list(ids or [])
    if ids_from is not None:
        try:
            named += [line for line in ids_from.read_text(encoding="utf-8").splitlines() if line]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{ids_from}: cannot be read ({error}); expected a text file of ids") from None
    if not named and filter is None:
        raise InputError("nothing to delete is named; give ids, --ids-from or --filter")
    opened = Index.open(index)
    if opened.reader.whole_ids:
        named = [_whole(one) for one in named]
    gone = opened.delete(named, filter=filter, missing_ok=missing_ok)
    _say(opened, json, {"deleted": gone}, f"{gone:,} documents deleted")
    if opened.stats()["deleted"] > len(opened):
        note(f"more are deleted than left; next: retrokit compact {index}")


def compact(
    index: Folder,
    *,
    segments: Annotated[int, typer.Option(help="How many to make; more than one to share them out (sharded).")] = 1,
    json: Json = None,
) -> None:
    """Make one segment of an index and give the space of deleted documents back."""
    from indexes.index import Index

    opened = Index.open(index)
    before = opened.stats()
    opened.compact(segments)
    after = opened.stats()
    said = (
        f"{len(before['segments'])} segments to {len(after['segments'])}, {before['deleted']:,} deleted documents gone"
    )
    _say(opened, json, {"bytes before": before["bytes"]}, said)


def _whole(id_: "Id") -> int:
    if not re.fullmatch("-?[1-9][0-9]*|0", str(id_)):
        raise InputError(f"an id is {id_!r}; the ids of this index are whole numbers")
    return int(id_)


def _place_for(index: Path, source: str) -> Path:
    """Where a source is encoded to: the same place only as long as the source is the same."""
    path = Path(source).resolve()
    files = sorted(one for one in (path, *path.rglob("*")) if one.is_file()) if path.exists() else []
    state = [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    index = index.resolve()
    return index.with_name(f"{index.name}.adding-{fingerprint([source if not files else state])[:12]}")


def _sweep(place: Path) -> None:
    """Remove what runs left that were killed a day ago or earlier and whose sources changed since."""
    for old in place.parent.glob(f"{place.name.rpartition('-')[0]}-*"):
        if not re.fullmatch(r"[0-9a-f]{12}(\.terms)?(\.partial)?", old.name.rpartition("-")[2]):
            continue
        if time.time() - old.stat().st_mtime < _DAY:
            continue
        if old.name.endswith(".partial"):
            discard(old)
        elif is_kind(old, "vectors") or is_kind(old, "terms"):
            shutil.rmtree(old)


def _encode_for(opened: "Index", source: str, folder: Path, name: str | None) -> None:
    """Encode a corpus as the documents of an index were."""
    from retrieval.building import long_documents_of
    from retrieval.retriever import encoder_of

    encode_to(encoder_of(opened, name), source, folder, long_documents=long_documents_of(opened.reader))


def _terms_for(opened: "Index", sources: list[str], folder: Path, name: str | None) -> "TermStore | None":
    """Encode a corpus by the sparse encoder of an index, if that has one."""
    from retrieval.retriever import sparse_encoder_of

    if not isinstance(opened.reader.analyzer, dict):
        if name is not None:
            raise InputError(f"{opened.folder} has no sparse encoder; leave --sparse out")
        return None
    # What another corpus left at this place, which is our own, is replaced.
    return encode_terms_to(sparse_encoder_of(opened, name), sources, folder, overwrite=True)


def _say(opened: "Index", json: Path | None, fields: dict[str, Any], what: str) -> None:
    stats = opened.stats()
    if json is not None:
        write_json(json, {**fields, "index": stats})
    size = f"{stats['documents']:,} documents, generation {stats['generation']}, {stats['bytes'] / 1e6:,.1f} MB"
    out.print(f"{opened.folder}: {what}; {size}", markup=False)
