"""Mining hard negatives: what an index finds for a query that is not what answers it; resumable, cached, in blocks."""

import contextlib
import dataclasses
import hashlib
import itertools
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from indexes.checksums import file_digest, fingerprint
from indexes.errors import InputError
from indexes.manifest import differences, read_json, write_json
from indexes.reader import Reader
from retrieval.batches import ahead
from retrieval.cache import cache_home
from retrieval.documents import corpus_fingerprint, read_documents
from retrieval.example_lines import refuse_sentences
from retrieval.examples import Candidate, Example, OnNote, examples_digest, read_examples
from retrieval.lines import whole_file
from retrieval.mined_blocks import FUSED, Block, Found, Miner
from retrieval.negatives import REASONS, MineConfig
from retrieval.reranker import Reranker
from retrieval.retriever import Retriever
from retrieval.row_scores import refuse_ranks
from retrieval.stored_documents import CorpusTexts, IndexTexts, StoredDocuments, keep_texts
from retrieval.working import sweep, working_folder

if TYPE_CHECKING:
    from retrieval.console import OnProgress

_KIND = "mined examples"
_CORPUS = "corpus"


class MineResult(NamedTuple):
    """What was mined."""

    output: Path
    report: dict[str, Any]
    """`examples`, `positives`, of which some may be `absent` from the index, `negatives` mined, `given` ones that the
    examples came with, `missing` to the number that was asked for and `short`, the examples that miss any; `hits`, and
    why how many of them were `left_out`."""
    already_complete: bool
    resumed_from: int
    """How many blocks an earlier run had made."""


def mine(
    pairs: str | Path,
    index: str | Path | Retriever,
    output: str | Path,
    *,
    corpus: str | None = None,
    teacher: Reranker | str | None = None,
    cache: str | Path | None = None,
    overwrite: bool = False,
    on_progress: "OnProgress | None" = None,
    on_note: OnNote | None = None,
    **options: Any,
) -> MineResult:
    """Add hard negatives to training examples: documents that an index finds for a query and that do not answer it.

    A document is no negative of a query if it is judged relevant for it, has the text of one that is, or of the query,
    or of another negative; or by the rules of `MineConfig` and by the teacher, which calls those false negatives that
    it scores above the query's positive (the lowest of several). Negatives that an example came with are kept, before
    the mined ones.

    A killed run goes on with the block of queries it was at, and its file has the same bytes. Hits are kept by the
    fingerprints of index, encoder, examples and of how was searched, so that other filters do not search again.

    Args:
        pairs: What `read_examples` reads. Ids are those of the index.
        index: An index folder, or a retriever that is open.
        output: The file to make, JSON lines as `read_examples` reads them; beside it OUTPUT.card.json says how it was
            made. If both are there, made by the same options, nothing is done.
        corpus: What `read_documents` reads: the documents' texts, for an index that keeps none.
        teacher: A cross-encoder or its name, or `fused`: the index's fused score. Its scores of positives and negatives
            are written.
        cache: Where hits are kept; None: `~/.cache/retrokit`.
        overwrite: Replace a file that other options made.
        on_progress: Called with the examples done so far and their total.
        on_note: Told what is odd about the examples.
        options: Of `MineConfig`; `mode` is the index's usual one if it is not given.

    Raises:
        InputError: A malformed example, an option out of range or one that this index cannot follow, a file that was
            not made by mining or by other options, a model that cannot be loaded.

    Source: Karpukhin et al., "Dense Passage Retrieval" (EMNLP 2020), section 3.2, for negatives by search; Qu et al.,
    "RocketQA" (NAACL 2021), for leaving out those that a cross-encoder takes for positives; Moreira et al.,
    "NV-Retriever" (arXiv:2407.15831), for limits by the positive's score.
    """
    output = Path(output)
    _refuse_input(output, pairs)
    retriever = index if isinstance(index, Retriever) else Retriever.open(index)
    reader = retriever.index.reader
    config = MineConfig(**{"mode": retriever.modes[-1], **options})
    if isinstance(teacher, str) and teacher != FUSED:
        teacher = Reranker.load(teacher)
    _check(retriever, reader, config, teacher)
    configuration = _configuration(pairs, retriever, reader, corpus, teacher, config)
    card = _finished(output, configuration, overwrite=overwrite)
    if card is not None:
        return MineResult(output, card["report"], already_complete=True, resumed_from=0)
    with working_folder(output, {"configuration": configuration}, overwrite=overwrite) as partial:
        texts, rows = _texts(reader, corpus, partial / _CORPUS), _Rows(reader)
        try:
            total, absent = _survey(pairs, rows, texts, (config, teacher), on_note)
        except InputError:
            shutil.rmtree(partial / _CORPUS, ignore_errors=True)  # nothing of it is left to stand in the way
            raise
        miner = Miner(retriever, reader, texts, config, teacher, _cache(cache, configuration))
        counts: Counter[str] = Counter()
        resumed = 0
        with contextlib.closing(ahead(_searched(_blocks(pairs, rows, texts, config.block), miner, partial))) as parts:
            for block, found, of_block in parts:
                if on_progress:
                    on_progress(block.number * config.block, total)
                resumed += of_block is not None
                counts.update(of_block if found is None else _mined(miner, block, found, partial))
        if on_progress:
            on_progress(total, total)
        report = _report(counts | Counter(absent=absent))
        _publish(partial, output, -(-total // config.block), {"configuration": configuration, "report": report})
    return MineResult(output, report, already_complete=False, resumed_from=resumed)


def card_file(output: Path) -> Path:
    """Where the card of a mined file is."""
    return output.with_name(f"{output.name}.card.json")


def _refuse_input(output: Path, pairs: str | Path) -> None:
    if output.resolve() == Path(pairs).resolve():
        raise InputError(f"--output {output} is the input; choose another --output")
    if Path(pairs).is_file():
        refuse_sentences(Path(pairs))
    if output.is_dir() or output.suffix.lower() in (".gz", ".zst"):
        raise InputError(f"--output {output} cannot be a file of plain JSON lines; give a name such as mined.jsonl")


def _check(retriever: Retriever, reader: Reader, config: MineConfig, teacher: Reranker | str | None) -> None:
    """Refuse what this index cannot do, before any work."""
    reader.check_encoder(retriever.encoder.made_by, retriever.encoder.name)
    if config.mode not in retriever.modes:
        raise InputError(f"{reader.folder} cannot be searched by {config.mode!r}; it has {', '.join(retriever.modes)}")
    if not len(reader):
        raise InputError(f"{reader.folder} holds no documents; add some")
    if teacher == FUSED and "hybrid" not in retriever.modes:
        raise InputError(f"{reader.folder} has no words to fuse with; take a cross-encoder as teacher, or index texts")
    if teacher == FUSED or (config.mode == "hybrid" and config.positive_aware):
        refuse_ranks(retriever.fusion)


def _configuration(
    pairs: str | Path,
    retriever: Retriever,
    reader: Reader,
    corpus: str | None,
    teacher: Reranker | str | None,
    config: MineConfig,
) -> dict[str, Any]:
    """What decides the bytes of the file, all of it by content and nothing by name."""
    fuses = config.mode == "hybrid" or teacher == FUSED
    return {
        "pairs": examples_digest(pairs),
        "index": _content(reader),
        "encoder": retriever.encoder.fingerprint,
        "fusion": retriever.fusion if fuses else None,
        "weight": retriever.weight if fuses else None,
        "corpus": None if corpus is None else corpus_fingerprint(read_documents(corpus)),
        "teacher": teacher.fingerprint if isinstance(teacher, Reranker) else teacher,
        **dataclasses.asdict(config),
    }


def _content(reader: Reader) -> str:
    """A fingerprint of what an index finds: of its files, and of what its manifest says about how they are read."""
    manifest = reader.manifest
    read = ("metric", "bm25", "impacts", "encoding", "factory", "deleted", "tuned")
    analyzer = reader.analyzer
    return fingerprint(
        {
            "files": {name: entry["sha256"] for name, entry in manifest["files"].items()},
            "analyzer": analyzer["fingerprint"] if isinstance(analyzer, Mapping) else analyzer,
            **{name: manifest.get(name) for name in read},
        }
    )


def _finished(output: Path, configuration: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """The card of a file that these options made and that is whole; None if it has to be made.

    Raises:
        InputError: There is a file that was not made so.
    """
    if not output.exists():
        return None
    card = read_json(card_file(output)) if card_file(output).is_file() else None
    if not isinstance(card, dict) or card.get("kind") != _KIND:
        raise InputError(f"{output} exists and was not mined; choose another --output")
    found = differences(configuration, card["configuration"])
    same = card["sha256"] == file_digest(output)
    if same and not found:
        sweep(output, configuration)
        return card
    if not overwrite:
        what = f"was mined otherwise ({found})" if found else "was changed since it was mined"
        raise InputError(f"{output} {what}; choose another --output or pass --overwrite")
    return None


def _cache(cache: str | Path | None, configuration: Mapping[str, Any]) -> Path:
    """Where the hits of this search are kept, whatever filters follow."""
    names = ("pairs", "index", "encoder", "fusion", "weight", "corpus", "mode", "to_rank", "block")
    key = fingerprint({name: configuration[name] for name in names})
    return (cache_home() if cache is None else Path(cache)) / "mining" / key[:32]


def _texts(reader: Reader, corpus: str | None, folder: Path) -> StoredDocuments:
    if corpus is None:
        return IndexTexts(reader)
    if not folder.is_dir():
        keep_texts(read_documents(corpus), folder)
    return CorpusTexts(folder, reader)


class _Rows:
    """The rows of candidates in an index: by id, or by text where they have none or the index has no such id."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._by_text: dict[bytes, int] = {}

    def of(self, candidates: Sequence[Candidate]) -> list[int]:
        """The row of each candidate; -1 where there is none."""
        named = [place for place, one in enumerate(candidates) if one.id is not None]
        found = self._reader.rows_of_names([str(candidates[place].id) for place in named])
        rows = [-1] * len(candidates)
        for place, row in zip(named, found.tolist(), strict=True):
            rows[place] = row
        return [
            self._by_text.get(_digest(one.text), -1) if row < 0 else row
            for one, row in zip(candidates, rows, strict=True)
        ]

    def knows(self, digest: bytes) -> bool:
        """Whether a document with a text of this digest was found."""
        return digest in self._by_text

    def learn(self, wanted: set[bytes], texts: StoredDocuments) -> None:
        """Find the documents of some texts, by their digests: the first of each."""
        live = self._reader.live
        for row in range(self._reader.rows) if live is None else np.flatnonzero(live).tolist():
            if not wanted:
                break
            digest = _digest(texts.text(row))
            if digest in wanted:
                self._by_text[digest] = row
                wanted.remove(digest)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.strip().encode(), digest_size=16).digest()


def _survey(
    pairs: str | Path,
    rows: _Rows,
    texts: StoredDocuments,
    how: tuple[MineConfig, Reranker | str | None],
    on_note: OnNote | None,
) -> tuple[int, int]:
    """Read all examples once, find those of their documents that have no id; counts examples, and absent positives.

    Raises:
        InputError: An example is malformed, or has a document that is not in the index, and whose score is needed.
    """
    config, teacher = how
    total = 0
    wanted: set[bytes] = set()
    positives: Counter[bytes] = Counter()
    for block in _blocks(pairs, rows, texts, config.block, on_note):
        total += len(block.examples)
        wanted.update(_digest(one.text) for one, _ in _absent(block, given=True))
        positives.update(_digest(one.text) for one, _ in _absent(block, given=False))
    rows.learn(set(wanted), texts)
    absent = sum(count for digest, count in positives.items() if not rows.knows(digest))
    if absent and on_note:
        on_note(
            f"{absent:,} positives are no documents of {texts.folder}, by id or text: a document that says the same in "
            "other words may become a negative"
        )
    of_positives = config.positive_aware and config.mode != "dense"
    if wanted and (teacher == FUSED or of_positives):
        mode = "fused" if teacher == FUSED else config.mode
        for block in _blocks(pairs, rows, texts, config.block):
            for one, query in _absent(block, given=teacher == FUSED):
                raise InputError(
                    f"{pairs}: the text {' '.join(one.text.split())[:40]!r} of query {query[:40]!r} is no document of "
                    f"{texts.folder}, and has no {mode} score to compare with; add it, or mine by the mode dense "
                    "without the teacher fused"
                )
    return total, absent


def _absent(block: Block, *, given: bool) -> Iterator[tuple[Candidate, str]]:
    """Positives that are not in the index, as far as that is known, and their queries; given negatives too, if so."""
    for example, positives, negatives in zip(block.examples, block.positives, block.negatives, strict=True):
        for one, row in zip(example.positives, positives, strict=True):
            if row < 0:
                yield one, example.query
        for one, row in zip(example.negatives, negatives, strict=True):
            if row < 0 and given:
                yield one, example.query


def _blocks(
    pairs: str | Path, rows: _Rows, texts: StoredDocuments, size: int, on_note: OnNote | None = None
) -> Iterator[Block]:
    examples = read_examples(pairs, texts, on_note=on_note)
    for number in itertools.count():
        some: list[Example] = list(itertools.islice(examples, size))
        if not some:
            return
        ends = np.cumsum([0, *(len(one.positives) + len(one.negatives) for one in some)]).tolist()
        found = rows.of([candidate for one in some for candidate in (*one.positives, *one.negatives)])
        of_each = [found[begin:end] for begin, end in itertools.pairwise(ends)]
        positives = [these[: len(one.positives)] for one, these in zip(some, of_each, strict=True)]
        negatives = [these[len(one.positives) :] for one, these in zip(some, of_each, strict=True)]
        yield Block(number, some, positives, negatives)


def _searched(
    blocks: Iterable[Block], miner: Miner, partial: Path
) -> Iterator[tuple[Block, Found | None, dict[str, int] | None]]:
    """Each block with what was found for it; or with its counts, if an earlier run made it."""
    for block in blocks:
        of_block = _counted(partial, block.number)
        yield block, miner.find(block) if of_block is None else None, of_block


def _mined(miner: Miner, block: Block, found: Found, partial: Path) -> Counter[str]:
    """Mine a block and write it down; its counts come last and say that it is whole."""
    lines, counts = miner.draw(block, found)
    with whole_file(_part(partial, block.number)) as file:
        file.writelines(lines)
    write_json(_part(partial, block.number).with_suffix(".json"), counts)
    return counts


def _counted(partial: Path, number: int) -> dict[str, int] | None:
    """The counts of a block that an earlier run made; None if none did."""
    path = _part(partial, number).with_suffix(".json")
    return read_json(path) if path.is_file() else None


def _part(partial: Path, number: int) -> Path:
    return partial / f"block-{number:05d}.jsonl"


def _report(counts: Mapping[str, int]) -> dict[str, Any]:
    names = ("examples", "positives", "absent", "given", "negatives", "missing", "short", "hits")
    left_out = {name: count for name in REASONS if (count := counts.get(f"left out: {name}", 0))}
    return {**{name: counts.get(name, 0) for name in names}, "left_out": left_out}


def _publish(partial: Path, output: Path, blocks: int, card: Mapping[str, Any]) -> None:
    """Put the blocks together, and the card beside them first: a file without a card is nobody's."""
    digest = hashlib.sha256()
    with whole_file(output) as file:
        for number in range(blocks):
            text = _part(partial, number).read_text(encoding="utf-8")
            digest.update(text.encode())
            file.write(text)
        file.flush()
        write_json(card_file(output), {"kind": _KIND, **card, "sha256": digest.hexdigest()})
