"""The commands encode, index and show."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from indexes.checksums import verify
from indexes.errors import InputError
from indexes.manifest import MANIFEST, open_manifest, read_json, refuse_existing, write_json
from retrieval.console import note, out, progress, table

if TYPE_CHECKING:
    from indexes.terms import TermStore
    from indexes.vectors import VectorStore
    from retrieval.encoder import Encoder
    from retrieval.runners import Runner
    from retrieval.sparse import SparseEncoder

CORPUS = (
    "A BEIR folder, a file or folder of JSON lines (plain, .gz, .zst), Parquet or Arrow, a folder of texts, "
    "hf:NAME or hf:NAME:CONFIG@SPLIT, or python-docs[:PACKAGE,…]."
)
ENCODER = "A model folder, a name on the model hub, or all-MiniLM-L6-v2 (packaged)."
JSON = "Also write the result as JSON to this file."

_VERIFIED = "all as their checksums say"

Json = Annotated[Path | None, typer.Option("--json", help=JSON, metavar="FILE")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]


def encode(
    corpus: Annotated[str, typer.Argument(help=CORPUS)],
    *,
    encoder: Annotated[str, typer.Option(help=ENCODER, metavar="MODEL")] = "all-MiniLM-L6-v2",
    output: Annotated[Path, typer.Option(help="The vectors folder to make.", metavar="VECTORS_FOLDER")],
    pooling: Annotated[str | None, typer.Option(help="cls, mean, max or lasttoken, if the model does not say.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Cut texts at fewer tokens than the model does.")] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Unit length or not, against what the model says.")
    ] = None,
    dim: Annotated[int | None, typer.Option(help="Keep the first so many numbers (Matryoshka models).")] = None,
    query_prompt: Annotated[str | None, typer.Option(help="Before each query, instead of the model's own.")] = None,
    document_prompt: Annotated[str | None, typer.Option(help="Before each document, instead of the model's.")] = None,
    task: Annotated[str | None, typer.Option(help="Before each query, the model's prompt of this name.")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Before each query, `Instruct: …` (decoders trained with instructions).")
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="bidirectional: a decoder's tokens see later ones too, if it was trained so.")
    ] = None,
    attention_temperature: Annotated[
        float | None, typer.Option(help="Below 1: sharper attention over long texts (TempScale), such as 0.8.")
    ] = None,
    append_eos: Annotated[
        bool | None,
        typer.Option("--append-eos/--no-append-eos", help="End each text with the end-of-text token, or do not."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 (the default), bfloat16, float16 or int8: the precision to compute in.")
    ] = None,
    backend: Annotated[str, typer.Option(help="torch, openvino, or auto: the fastest within --tolerance.")] = "torch",
    tolerance: Annotated[float, typer.Option(help="For auto: largest 1 - cosine from float32 on torch.")] = 1e-5,
    device: Annotated[str | None, typer.Option(help="Such as cuda:1 or cpu; the best there is by default.")] = None,
    storage: Annotated[str, typer.Option(help="float32, float16, int8 or binary: how to keep numbers.")] = "float32",
    long_documents: Annotated[
        str, typer.Option(help="truncate, passages, mean or late: what to do with documents that are too long.")
    ] = "truncate",
    passage_tokens: Annotated[int | None, typer.Option(help="Of a passage; the model's length by default.")] = None,
    overlap: Annotated[int | None, typer.Option(help="Tokens that passages share; an eighth by default.")] = None,
    shard_rows: Annotated[int, typer.Option(help="Documents in a shard: the most a killed run can lose.")] = 2048,
    workers: Annotated[int | None, typer.Option(help="Worker processes of this machine, or actors with --ray.")] = None,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster, auto, or local for a new one here.", metavar="ADDRESS")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """Turn a corpus into vectors: a folder of memory-mapped shards.

    Killed? Run the same command again: finished shards are kept.

    Under torchrun or in a Slurm array each process makes its share.
    """
    from retrieval.encoder import Encoder
    from retrieval.passages import LongDocuments
    from retrieval.runners import local_device

    refuse_existing(output, overwrite=True, inputs=[corpus])
    model = Encoder.load(
        encoder,
        pooling=pooling,
        max_length=max_length,
        normalize=normalize,
        dim=dim,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        task=task,
        instruction=instruction,
        attention=attention,
        attention_temperature=attention_temperature,
        append_eos=append_eos,
        dtype=dtype,
        backend=backend,
        tolerance=tolerance,
        device=device or (None if backend == "openvino" else local_device()),
    )
    long = LongDocuments(long_documents, passage_tokens, overlap)
    runner = _runner(workers, ray, device)
    how = {"shard_rows": shard_rows, "storage": storage, "long_documents": long, "runner": runner}
    store = encode_to(model, corpus, output, overwrite=overwrite, **how)
    sizes = {"rows": len(store), "documents": store.documents, "dim": store.dim, "truncated": store.truncated}
    _write_json(json, {**sizes, "fingerprint": model.fingerprint, "backend": model.backend.name, "storage": storage})
    of = f" of {store.documents:,} documents" if len(store) != store.documents else ""
    out.print(f"{output}: {len(store):,} vectors{of}, {store.dim} dimensions, {storage}", markup=False)
    note(f"next: retrokit index {output} --output {output.with_suffix('.index')}")


def index(
    source: Annotated[str, typer.Argument(help="A vectors folder, or a corpus, which is then encoded first.")],
    *,
    output: Annotated[Path, typer.Option(help="The index folder to make.", metavar="INDEX_FOLDER")],
    factory: Annotated[
        str, typer.Option(help="FAISS factory string: Flat (exact), HNSW32, IVF256,PQ48x4fs …; auto.")
    ] = "Flat",
    encoder: Annotated[
        str, typer.Option(help=f"To encode a corpus with. {ENCODER}", metavar="MODEL")
    ] = "all-MiniLM-L6-v2",
    corpus: Annotated[str | None, typer.Option(help="The vectors' documents, if they moved since encoding.")] = None,
    sparse: Annotated[
        str | None, typer.Option(help="A sparse encoder (SPLADE …) in the place of BM25.", metavar="MODEL")
    ] = None,
    dense_only: Annotated[bool, typer.Option("--dense-only", help="Leave BM25 and the texts out.")] = False,
    attributes: Annotated[
        str, typer.Option(help="Fields of the corpus to filter by, such as year,lang or metadata.year.")
    ] = "",
    language: Annotated[
        str | None, typer.Option(help="Of BM25's stemmer (Snowball), or none  [default: english]")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """Build an index: FAISS over the vectors, BM25 or a sparse encoder's terms and the texts over the documents.

    From a corpus, the vectors go to OUTPUT.vectors, a sparse encoder's terms to OUTPUT.terms: used again next time.
    """
    from indexes.candidates import AUTO
    from indexes.faiss_files import empty_index
    from indexes.vectors import KIND, VectorStore, partial_folder
    from retrieval.analyzer import Analyzer
    from retrieval.building import build_index
    from retrieval.documents import read_documents
    from retrieval.encoder import Encoder
    from retrieval.sparse import SparseEncoder

    refuse_existing(output, overwrite=overwrite, inputs=[source, *([corpus] if corpus else [])])
    if sparse is not None and dense_only:
        raise InputError("--sparse makes what --dense-only leaves out; give one or the other")
    if sparse is not None and language is not None:
        raise InputError("--language is of BM25, which --sparse takes the place of; give one or the other")
    folder, place = Path(source), output.with_name(f"{output.name}.terms")
    if sparse is not None:
        refuse_existing(place, overwrite=True, inputs=[source, sparse, *([corpus] if corpus else [])])
    weighing = None if sparse is None else SparseEncoder.load(sparse)
    if not is_kind(folder, KIND) and not partial_folder(folder).is_dir():
        folder = output.with_name(f"{output.name}.vectors")
        model = Encoder.load(encoder)
        if factory != AUTO:
            empty_index(factory, model.dim)  # a wrong factory or language is refused before hours of encoding
        Analyzer(language or "english")
        encode_to(model, source, folder, overwrite=overwrite)
    vectors = VectorStore.open(folder)
    sources = [corpus] if corpus else [part["source"] for part in vectors.corpus.get("parts") or [vectors.corpus]]
    if None in sources and (attributes or not dense_only):
        raise InputError(
            f"{folder} does not say what it was made of; pass --corpus for BM25, texts and attributes, or --dense-only"
        )
    wanted = [name.strip() for name in attributes.split(",") if name.strip()]
    texts = itertools.chain.from_iterable(read_documents(one, wanted) for one in sources)
    alone = {one.id: one.attributes or {} for one in texts} if dense_only and wanted else None
    terms = encode_terms_to(weighing, sources, place, overwrite=overwrite) if weighing else None
    built = build_index(
        vectors,
        output,
        factory=factory,
        documents=None if dense_only else texts,
        language=language,
        terms=terms,
        attributes=alone,
        overwrite=overwrite,
    )
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    reader, lexical = built.reader, built.reader.lexical is not None
    _write_json(json, {"rows": len(built), "factory": reader.factory, "bytes": size, "lexical": lexical})
    kind = "sparse terms" if sparse else "BM25"
    parts = f"{reader.factory} ({reader.metric})" + (f" + {kind} + texts" if lexical else "")
    out.print(f"{output}: {len(built):,} documents, {parts}, {size / 1e6:,.1f} MB", markup=False)
    note(f'next: retrokit search {output} "your question"')


def show(
    folder: Annotated[str, typer.Argument(help="Any folder that retrokit made, or a model folder or name.")],
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every file with its checksum.")] = False,
    json: Json = None,
) -> None:
    """Show what a folder is and what made it: encoder, pooling, prompts, lengths, fingerprints."""
    fields = _describe(Path(folder), folder, check=verify)
    _write_json(json, fields)
    out.print(table(("field", "value"), list(_flat(fields)), numbers=False))


def _runner(workers: int | None, ray: str | None, device: str | None) -> "Runner | None":
    if ray is not None:
        from retrieval.ray_runner import RayActors

        return RayActors(workers, None if ray == "local" else ray)
    if workers is None:
        return None
    from retrieval.runners import Processes

    return Processes(workers, [device] if device else None)


def encode_to(model: "Encoder", corpus: str, folder: Path, *, overwrite: bool = False, **how: Any) -> "VectorStore":
    """Encode a corpus to a vectors folder with progress, going on where an earlier run was interrupted."""
    from indexes.partial import unfinished
    from retrieval.documents import read_documents

    refuse_existing(folder, overwrite=True, inputs=[corpus])
    documents = read_documents(corpus)
    begun = unfinished(folder)
    if begun and begun["documents"]:
        note(f"going on: {begun['documents']:,} documents are in {begun['partial']} already")

    def encode(overwrite: bool) -> "VectorStore":
        with progress(f"Encoding {corpus}", "documents") as report:
            return model.encode_corpus(
                documents, folder, source=_source(corpus), overwrite=overwrite, on_progress=report, **how
            )

    if overwrite and folder.exists():
        with contextlib.suppress(InputError):
            return encode(overwrite=False)  # finished by this encoder from this corpus: nothing to replace
    store = encode(overwrite)
    if store.truncated:
        length = model.settings.max_length
        note(
            f"notice: {store.truncated:,} documents are longer than {length} tokens; their vectors read the first "
            f"{length} only (BM25 reads all): encode --long-documents passages, mean or late reads everything"
        )
    return store


def encode_terms_to(
    model: "SparseEncoder", sources: Sequence[str], folder: Path, *, overwrite: bool = False
) -> "TermStore":
    """Encode a corpus, or several as one, to a terms folder with progress, going on where it was interrupted."""
    from retrieval.documents import read_documents

    refuse_existing(folder, overwrite=True, inputs=sources)
    one = sources[0] if len(sources) == 1 else None

    def encode(overwrite: bool) -> "TermStore":
        corpus = read_documents(one or itertools.chain.from_iterable(map(read_documents, sources)))
        with progress(f"Encoding terms by {model.name}", "documents") as report:
            return model.encode_corpus(
                corpus, folder, source=_source(one) if one else None, overwrite=overwrite, on_progress=report
            )

    store = None
    if overwrite and folder.exists():
        with contextlib.suppress(InputError):
            store = encode(overwrite=False)  # finished by this encoder from this corpus: nothing to replace
    store = store or encode(overwrite)
    if store.truncated:
        note(
            f"notice: {store.truncated:,} documents are longer than {model.name} reads; their terms are those of their "
            "beginnings"
        )
    return store


def _describe(path: Path, name: str, *, check: bool) -> dict[str, Any]:
    if path.with_name(f"{path.name}.partial").is_dir() and not path.exists():
        raise InputError(f"{path} is unfinished; run the command that makes it again")
    if path.is_file():
        raise InputError(f"{path} is a file; expected a folder or the name of a model")
    if (path / MANIFEST).is_file() and not (path / "modules.json").is_file():
        from indexes.index import Index
        from indexes.vectors import VectorStore

        kind = read_json(path / MANIFEST).get("kind")
        if kind == "vectors":
            VectorStore.open(path)
        manifest = open_manifest(path, kind)
        if check:
            verify(path, manifest)
        fields = {name: value for name, value in manifest.items() if name not in ("files", "shards")}
        if kind == "index":
            opened = Index.open(path, "size")
            fields |= {**opened.stats(), "tuned": opened.explain()}
            fields["segments"] = {one["name"]: one for one in fields["segments"]}
        return {**fields, **({"files": _VERIFIED} if check else {})}
    from retrieval.encoder import Encoder
    from retrieval.model_folder import resolve

    if check and not (path / MANIFEST).is_file():
        raise InputError(f"{name} has no {MANIFEST} to verify it by; only folders that retrokit made have one")
    if check:
        verify(path, open_manifest(path, "model"))
    model = Encoder.load(name)
    card = resolve(name) / "retrokit.json"
    verified = {"files": _VERIFIED} if check else {}
    sides = {} if model.queries is None else {"queries": model.queries.made_by, "both": model.fingerprint}
    return {
        "kind": "model",
        **model.made_by,
        **sides,
        **({"run card": read_json(card)} if card.is_file() else {}),
        **verified,
    }


def is_kind(folder: Path, kind: str) -> bool:
    """Whether there is a finished folder of a kind."""
    path = folder / MANIFEST
    found = read_json(path) if path.is_file() else None
    return isinstance(found, dict) and found.get("kind") == kind


def _source(corpus: str) -> str:
    """What a vectors folder remembers of its corpus: absolute, so that it is found from any working directory."""
    return corpus if corpus.startswith(("python-docs", "hf:")) else str(Path(corpus).resolve())


def _write_json(path: Path | None, value: Any) -> None:
    if path is not None:
        write_json(path, value)


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", repr(value) if value == "" else str(value)
