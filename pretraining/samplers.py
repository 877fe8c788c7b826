"""Samplers: query–document pairs made out of the documents themselves, without labels."""

import hashlib
import random
import re
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from indexes.errors import InputError
from retrieval.documents import Document
from retrieval.pairs import Pair

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[]?[A-Z0-9])|\n\s*\n")
_LEAST_QUERY_WORDS = 3
_LEAST_TEXT_WORDS = 8
_KEPT_WHOLE = 0.1
_SPAN_WORDS = (3, 10)
_PASSAGE_WORDS = 60

Sampler = Callable[[Document, random.Random], tuple[str, str] | None]
"""Makes (query, text) out of a document, or None where it is too short."""


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
    first = -(-len(parts) // 5)
    starts = [at for at in range(first, len(parts)) if len(" ".join(parts[at:]).split()) >= _LEAST_TEXT_WORDS]
    if not starts:
        return None
    query, passage = parts[draw.randrange(first)], []
    for part in parts[draw.choice(starts) :]:
        passage += part.split()
        if len(passage) >= _PASSAGE_WORDS:
            break
    return _long_enough(query, " ".join(passage))


SAMPLERS: dict[str, Sampler] = {
    "title": title_and_body,
    "lead": lead_and_rest,
    "sentence": sentence_and_document,
    "span": span_and_document,
    "section": section_and_passage,
}
USUAL = ("title", "lead", "sentence", "span")
"""Those that are taken where none is named."""


WORDS = "words"
"""The sampler that needs the whole collection: a set of words that represent the document asks for it (PROP)."""


def sample_pairs(documents: Collection[Document], samplers: Sequence[str], seed: int) -> Iterator[Pair]:
    """Make pairs: every sampler once for each document that is long enough for it.

    What is drawn from a document depends on the seed, the sampler and the document's id alone (and on the collection,
    for `words`).

    Raises:
        InputError: A sampler's name is unknown, or no word of the collection occurs ten times.
    """
    unknown = [name for name in samplers if name not in (*SAMPLERS, WORDS)]
    if unknown:
        raise InputError(f"sampler {unknown[0]!r} is unknown; expected one of {', '.join(SAMPLERS)}, {WORDS}")
    known = dict(SAMPLERS)
    if WORDS in samplers:
        known[WORDS] = _representative_words(documents)
    for document in documents:
        for name in samplers:
            key = hashlib.sha256(f"{seed}\0{name}\0{document.id}".encode("utf-8", "replace")).digest()
            made = known[name](document, random.Random(key)) if document.text.strip() else None  # noqa: S311
            if made:
                yield Pair(*made, document.id)


def _representative_words(documents: Collection[Document]) -> Sampler:
    from pretraining.word_sets import WordSetSampler

    sets = WordSetSampler(documents)

    def words_and_document(document: Document, draw: random.Random) -> tuple[str, str] | None:
        drawn = sets.draw(document, np.random.default_rng(draw.getrandbits(64)))
        return drawn and _long_enough(" ".join(drawn.better), document.content, least_query=1)

    return words_and_document


def sentences(text: str) -> list[str]:
    """Split at sentence ends followed by a capital or digit, and at empty lines; never empty."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part and part.strip()] or [text.strip()]


def _long_enough(query: str, text: str, least_query: int = _LEAST_QUERY_WORDS) -> tuple[str, str] | None:
    query = " ".join(query.split())
    if len(query.split()) < least_query or len(text.split()) < _LEAST_TEXT_WORDS:
        return None
    return query, text
