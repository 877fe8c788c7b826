"""Samplers: query–document pairs made out of the documents themselves, without labels."""

import hashlib
import itertools
import random
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from indexes.errors import InputError
from retrieval.documents import Document
from retrieval.pairs import Pair

if TYPE_CHECKING:
    from pretraining.contrastive_terms import ContrastiveTerms

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[]?[A-Z0-9])|\n\s*\n")
_LEAST_QUERY_WORDS = 3
_LEAST_TEXT_WORDS = 8
_KEPT_WHOLE = 0.1
_SPAN_WORDS = (3, 10)
_PASSAGE_WORDS = 60

Sampler = Callable[[Document, random.Random], tuple[str, str] | None]
"""Makes (query, text) out of a document, or None where it is too short."""
OnNote = Callable[[str], None]


def title_and_body(document: Document, draw: random.Random) -> tuple[str, str] | None:
    """The title asks for the body (Chang et al. 2020 call a variant of it BFS)."""
    return _long_enough(document.title, document.text, least_query=1)


def lead_and_rest(document: Document, draw: random.Random) -> tuple[str, str] | None:
    """The first sentence asks for the rest."""
    first, *rest = sentences(document.text)
    return _long_enough(first, " ".join(rest))


def sentence_and_document(document: Document, draw: random.Random) -> tuple[str, str] | None:
    """A random sentence asks for the document without it; one time in ten for the whole document.

    The inverse cloze task of Lee, Chang and Toutanova (2019), whose 10% keep exact matches useful.
    """
    parts = sentences(document.text)
    place = draw.randrange(len(parts))
    whole = draw.random() < _KEPT_WHOLE
    rest = document.content if whole else f"{document.title} {' '.join(parts[:place] + parts[place + 1 :])}".strip()
    return _long_enough(parts[place], rest)


def span_and_document(document: Document, draw: random.Random) -> tuple[str, str] | None:
    """3–10 consecutive words, as short as what people type, ask for the whole document."""
    words = document.text.split()
    length = min(draw.randint(*_SPAN_WORDS), len(words))
    start = draw.randrange(len(words) - length + 1)
    return _long_enough(" ".join(words[start : start + length]), document.content)


def section_and_passage(document: Document, draw: random.Random) -> tuple[str, str] | None:
    """A random sentence of the beginning asks for a random passage of what follows: body first selection.

    Source: Chang et al., "Pre-training Tasks for Embedding-based Large-scale Retrieval" (ICLR 2020), who have pages of
    sections; here the beginning is the first fifth of the sentences, and a passage 60 words or more from one on.
    """
    parts = sentences(document.text)
    first = _beginning(parts)
    starts = _starts(parts, first)
    if not starts:
        return None
    query = parts[draw.randrange(first)]
    return _long_enough(query, _passage(parts, draw.choice(starts)))


SAMPLERS: dict[str, Sampler] = {
    "title": title_and_body,
    "lead": lead_and_rest,
    "sentence": sentence_and_document,
    "span": span_and_document,
    "section": section_and_passage,
}
USUAL = ("title", "lead", "sentence", "span")
"""Those that are taken where none is named."""


WORDS, TERMS, LINKS = "words", "terms", "links"
"""Samplers that need the whole collection. `words`: a set of words that represent the document asks for it (PROP);
`terms`: so does one of words that an encoder attends to in it (B-PROP); `links`: a sentence of a document's beginning
asks for a passage of another one that links to it."""
NAMES = (*SAMPLERS, WORDS, TERMS, LINKS)

_Maker = Callable[[Document, random.Random], Pair | None]


def sample_pairs(
    documents: Collection[Document],
    samplers: Sequence[str],
    seed: int,
    *,
    terms: "ContrastiveTerms | None" = None,
    note: OnNote | None = None,
) -> Iterator[Pair]:
    """Make pairs: every sampler once for each document that is long enough for it.

    What is drawn from a document depends on the seed, the sampler and the document's id alone (and on the collection,
    for `words`, `terms` and `links`).

    Args:
        documents: With the attribute `links`, ids of the documents that each one links to, for the sampler of that
            name.
        samplers: Some of `NAMES`.
        seed: Of what is drawn.
        terms: Those of these documents, in this order; for the sampler of that name.
        note: Told which links lead nowhere.

    Raises:
        InputError: A sampler's name is unknown, no word of the collection occurs ten times (`words`), or no document
            has a link to another one (`links`).
    """
    unknown = [name for name in samplers if name not in NAMES]
    if unknown:
        raise InputError(f"sampler {unknown[0]!r} is unknown; expected one of {', '.join(NAMES)}")
    makers: dict[str, _Maker] = {name: _of_document(sampler) for name, sampler in SAMPLERS.items()}
    if WORDS in samplers:
        makers[WORDS] = _of_document(_representative_words(documents))
    if TERMS in samplers:
        if terms is None:
            raise ValueError("the sampler `terms` needs the terms of the documents")
        makers[TERMS] = _of_document(_attended_words(documents, terms))
    if LINKS in samplers:
        makers[LINKS] = _linked_passages(documents, note or (lambda _: None))
    for document in documents:
        for name in samplers:
            key = hashlib.sha256(f"{seed}\0{name}\0{document.id}".encode("utf-8", "replace")).digest()
            made = makers[name](document, random.Random(key)) if document.text.strip() else None  # noqa: S311
            if made:
                yield made


def _of_document(sampler: Sampler) -> _Maker:
    """A sampler whose texts are of the very document."""

    def make(document: Document, draw: random.Random) -> Pair | None:
        made = sampler(document, draw)
        return made and Pair(*made, document.id)

    return make


def _representative_words(documents: Collection[Document]) -> Sampler:
    from pretraining.word_sets import WordCounts, WordSetSampler

    sets = WordSetSampler(WordCounts.of(documents))

    def words_and_document(document: Document, draw: random.Random) -> tuple[str, str] | None:
        drawn = sets.draw(document, np.random.default_rng(draw.getrandbits(64)))
        return drawn and _long_enough(" ".join(drawn.better), document.content, least_query=1)

    return words_and_document


def _attended_words(documents: Collection[Document], terms: "ContrastiveTerms") -> Sampler:
    rows = {document.id: row for row, document in enumerate(documents)}

    def terms_and_document(document: Document, draw: random.Random) -> tuple[str, str] | None:
        drawn = terms.draw(rows[document.id], np.random.default_rng(draw.getrandbits(64)))
        return _long_enough(" ".join(drawn), document.content, least_query=1) if drawn else None

    return terms_and_document


def _linked_passages(documents: Collection[Document], note: OnNote) -> _Maker:
    """A random sentence of a document's beginning asks for a random passage of another that links to it.

    Wiki link prediction, of Chang et al. (see `section_and_passage`). As in their sampler it is any passage of the
    linking page: where in it a link stands is not known. The pair counts as one of the linking document, whose text it
    asks for: two of them are never each other's negatives.
    """
    pages = {document.id: document for document in documents}
    towards, unknown, own = defaultdict[str, list[str]](list), 0, 0
    for document in documents:
        for target in dict.fromkeys(links_of(document)):
            if target == document.id:
                own += 1
            elif target not in pages:
                unknown += 1
            elif len(document.text.split()) >= _LEAST_TEXT_WORDS:
                towards[target].append(document.id)
    if not towards:
        raise InputError(
            f"none of {len(documents):,} documents links to another one ({unknown:,} links to unknown ids, {own:,} to "
            f"the very document); the sampler links needs a field `links` with ids of the corpus: leave it out"
        )
    if unknown or own:
        note(f"links left out: {unknown:,} to unknown ids, {own:,} to the very document")

    def sentence_and_passage(document: Document, draw: random.Random) -> Pair | None:
        if document.id not in towards:
            return None
        parts = sentences(document.text)
        query, linking = parts[draw.randrange(_beginning(parts))], pages[draw.choice(towards[document.id])]
        rest = sentences(linking.text)
        made = _long_enough(query, _passage(rest, draw.choice(_starts(rest, 0))))
        return made and Pair(*made, linking.id)

    return sentence_and_passage


def links_of(document: Document) -> list[str]:
    """The ids in a document's attribute `links`.

    Raises:
        InputError: It is no list of ids.
    """
    links = (document.attributes or {}).get(LINKS)
    if links is None:
        return []
    if not isinstance(links, list | tuple):
        raise InputError(f"links of document {document.id!r} is {links!r}; expected a list of ids")
    wrong = next((one for one in links if isinstance(one, bool) or not isinstance(one, str | int)), None)
    if wrong is not None:
        raise InputError(f"links of document {document.id!r} has {wrong!r}; expected ids")
    return list(map(str, links))


def _beginning(parts: Sequence[str]) -> int:
    """How many sentences are a document's beginning: the first fifth."""
    return -(-len(parts) // 5)


def _starts(parts: Sequence[str], first: int) -> list[int]:
    """The sentences, from the first allowed one on, with which a passage may begin."""
    left = list(itertools.accumulate(len(part.split()) for part in reversed(parts)))[::-1]  # words from each one on
    return [at for at in range(first, len(parts)) if left[at] >= _LEAST_TEXT_WORDS]


def _passage(parts: Sequence[str], start: int) -> str:
    """60 words or more, whole sentences, or what is left."""
    passage: list[str] = []
    for part in parts[start:]:
        passage += part.split()
        if len(passage) >= _PASSAGE_WORDS:
            break
    return " ".join(passage)


def sentences(text: str) -> list[str]:
    """Split at sentence ends followed by a capital or digit, and at empty lines; never empty."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part and part.strip()] or [text.strip()]


def _long_enough(query: str, text: str, least_query: int = _LEAST_QUERY_WORDS) -> tuple[str, str] | None:
    query = " ".join(query.split())
    if len(query.split()) < least_query or len(text.split()) < _LEAST_TEXT_WORDS:
        return None
    return query, text
