"""Vocabularies made smaller or larger: pieces that no text uses are left out, words that many texts use come in.

What changes is the state of a tokenizer, the JSON that the tokenizers library reads and writes.
"""

import copy
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from indexes.errors import InputError
from pretraining.census import Census

KINDS = ("WordPiece", "BPE", "Unigram")
_BYTE_LENGTH = len("<0x00>")

Merge = tuple[str, str]
State = dict[str, Any]


class Vocabulary(NamedTuple):
    """A changed vocabulary.

    Attributes:
        state: The tokenizer's.
        rows: For each new id the old ids that its vector is the mean of: one, where the piece was there before.
    """

    state: State
    rows: list[tuple[int, ...]]

    @property
    def ids(self) -> dict[int, int]:
        """Old to new ids, of the pieces that were there before."""
        return {row[0]: new for new, row in enumerate(self.rows) if len(row) == 1}


class NewWord(NamedTuple):
    """A word to be added."""

    word: str
    pieces: tuple[int, ...]
    """The ids that it is split into now."""
    saved: int
    """How many tokens fewer the corpus has with it."""


def trim(state: State, census: Census, *, least_count: int, keep: Collection[int]) -> Vocabulary:
    """Leave out the pieces that occur in a corpus fewer than `least_count` times.

    Texts all of whose pieces stay are split as before:

    - WordPiece takes the longest piece that matches, and a longest one that stays is still the longest. A word that was
      unknown might become known when what it began with is left out; such pieces stay, for the words of the corpus.
    - BPE makes each piece by merges that do not depend on its surroundings; those of every piece that stays are kept,
      in their order, and with them the pieces that they pass through.
    - Unigram takes the split of the largest sum of scores, and the best one of all is the best one of fewer. The score
      of unknown characters comes of the lowest score there is: a piece that has it stays.

    Special and added tokens, single characters and bytes always stay; so do those in `keep`. Other texts are split into
    smaller pieces.

    Raises:
        InputError: The tokenizer is of a kind for which that does not hold.
    """
    kind = kind_of(state)
    pieces = _pieces(state)
    keep = {*keep, *(token["id"] for token in state["added_tokens"])}
    kept = {
        piece
        for piece, number in pieces.items()
        if census.pieces[number] >= least_count or number in keep or _is_single(piece, state)
    }
    state = copy.deepcopy(state)
    model = state["model"]
    if kind == "WordPiece":
        kept |= {piece for word in census.unknown for piece in _beginning(word, model)}
    elif kind == "BPE":
        merges = _kept_merges(kept, model)
        kept |= {part for pair in merges for part in (*pair, "".join(pair))}
        model["merges"] = [list(pair) for pair in merges]
    else:
        kept.add(min(model["vocab"], key=lambda entry: entry[1])[0])
    if isinstance(model.get("unk_token"), str):
        kept.add(model["unk_token"])
    old = {number for piece, number in pieces.items() if piece in kept} | keep
    rows: list[tuple[int, ...]] = [(number,) for number in sorted(old)]
    return Vocabulary(_renumbered(state, {row[0]: new for new, row in enumerate(rows)}), rows)


def choose_words(state: State, census: Census, count: int) -> list[NewWord]:
    """The words of a corpus whose addition saves most tokens, most first: times it occurs x (pieces - 1).

    A word has a letter and occurs at least twice.

    Raises:
        InputError: The tokenizer is no WordPiece one, or a longer word might become unknown.
    """
    if kind_of(state) != "WordPiece":
        raise InputError(
            f"the tokenizer is of kind {kind_of(state)}, in which a whole word cannot be added without a change to how "
            "other words are split and spaces are read; extension supports WordPiece"
        )
    mark = state["model"]["continuing_subword_prefix"]
    pieces = _pieces(state)
    _refuse_unspellable(pieces, mark)
    names = {number: piece for piece, number in pieces.items()}
    longest = state["model"]["max_input_chars_per_word"]
    found = []
    for ids, times in census.splits.items():
        if not all(number in names for number in ids):
            continue
        first, *rest = (names[number] for number in ids)
        word = first + "".join(piece.removeprefix(mark) for piece in rest)
        if times > 1 and word not in pieces and len(word) <= longest and any(map(str.isalpha, word)):
            found.append(NewWord(word, ids, times * (len(ids) - 1)))
    return sorted(found, key=lambda new: (-new.saved, new.word))[:count]


def extend(state: State, size: int, words: Sequence[NewWord]) -> Vocabulary:
    """Add whole words to a WordPiece vocabulary, after its pieces.

    A word that is one of them is one token from then on; a longer word that begins with one is split behind it.

    Args:
        state: The tokenizer's.
        size: Its ids.
        words: What `choose_words` gave.
    """
    state = copy.deepcopy(state)
    vocabulary = state["model"]["vocab"]
    inner = sorted(set(vocabulary.values()))
    outer = sorted(set(range(size)) - set(inner))  # added tokens that the model does not know come after its pieces
    rows: list[tuple[int, ...]] = [(number,) for number in inner]
    rows += [new.pieces for new in words]
    rows += [(number,) for number in outer]
    state = _renumbered(state, {row[0]: new for new, row in enumerate(rows) if len(row) == 1})
    state["model"]["vocab"] |= {new.word: len(inner) + place for place, new in enumerate(words)}
    return Vocabulary(state, rows)


def kind_of(state: State) -> str:
    """The kind of a tokenizer's model.

    Raises:
        InputError: It cannot be changed exactly.
    """
    model = state["model"]
    kind = str(model.get("type"))
    if kind not in KINDS:
        raise InputError(f"the tokenizer is of kind {kind}; changing a vocabulary supports {', '.join(KINDS)}")
    if kind == "BPE":
        unsupported = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        for name in unsupported:
            if model.get(name):
                raise InputError(f"the tokenizer is of kind BPE with {name} {model[name]!r}, which is not supported")
    return kind


def _pieces(state: State) -> dict[str, int]:
    """The ids of the pieces that the tokenizer's model knows."""
    vocabulary = state["model"]["vocab"]
    if isinstance(vocabulary, Mapping):
        return dict(vocabulary)
    return {piece: number for number, (piece, _) in enumerate(vocabulary)}


def _is_single(piece: str, state: State) -> bool:
    """Whether a piece is one character, with or without its mark, or one byte."""
    model = state["model"]
    if piece.startswith("<0x") and len(piece) == _BYTE_LENGTH:
        return True
    if model["type"] == "WordPiece":
        piece = piece.removeprefix(model["continuing_subword_prefix"])
    elif model["type"] == "Unigram":
        piece = piece.removeprefix("▁")
    return len(piece) <= 1


def _beginning(word: str, model: State) -> list[str]:
    """The pieces that WordPiece takes of a word before it knows none that goes on; all of them, if it gets through."""
    if len(word) > model["max_input_chars_per_word"]:
        return []
    taken: list[str] = []
    start = 0
    while start < len(word):
        mark = model["continuing_subword_prefix"] if start else ""
        ends = (end for end in range(len(word), start, -1) if mark + word[start:end] in model["vocab"])
        end = next(ends, None)
        if end is None:
            break
        taken.append(mark + word[start:end])
        start = end
    return taken


def _kept_merges(pieces: Iterable[str], model: State) -> list[Merge]:
    """The merges that make these pieces, in the order in which they count."""
    every = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    ranks = {pair: rank for rank, pair in enumerate(every)}
    used = {pair for piece in pieces for pair in merges_of(piece, ranks)}
    return [pair for pair in every if pair in used]


def merges_of(piece: str, ranks: Mapping[Any, int]) -> list[Merge]:
    """The merges by which BPE makes a piece of its characters; none if it does not come out whole."""
    parts, used = list(piece), []
    while len(parts) > 1:
        pairs = list(itertools.pairwise(parts))
        ranked = [(ranks[pair], place) for place, pair in enumerate(pairs) if pair in ranks]
        if not ranked:
            return []
        place = min(ranked)[1]
        used.append(pairs[place])
        parts[place : place + 2] = ["".join(pairs[place])]
    return used


def _refuse_unspellable(pieces: Iterable[str], mark: str) -> None:
    """A word that begins with an added one must be spelled on, if need be letter by letter."""
    continuing = {piece.removeprefix(mark) for piece in pieces if piece.startswith(mark) and piece != mark}
    lacking = sorted({letter for piece in continuing for letter in piece} - continuing)
    if lacking:
        raise InputError(
            f"the vocabulary has {mark}…{lacking[0]}… but no {mark}{lacking[0]}: words that begin with an added one "
            "might become unknown; extend a vocabulary that has all its letters"
        )


def _renumbered(state: State, new: Mapping[int, int]) -> State:
    """A state whose ids are changed; pieces that have none any more are left out."""
    model = state["model"]
    if model["type"] == "Unigram":
        if model["unk_id"] is not None:
            model["unk_id"] = new[model["unk_id"]]
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new]
    else:
        left = sorted((new[number], piece) for piece, number in model["vocab"].items() if number in new)
        model["vocab"] = {piece: number for number, piece in left}
    state["added_tokens"] = sorted(
        ({**token, "id": new[token["id"]]} for token in state["added_tokens"]), key=lambda token: token["id"]
    )
    if state["post_processor"]:
        _renumber_specials(state["post_processor"], new)
    return {**state, "truncation": None, "padding": None}  # set anew at every call


def _renumber_specials(processor: State, new: Mapping[int, int]) -> None:
    """Change the ids of the special tokens that a post-processor puts around a text.

    Raises:
        InputError: It is of a kind whose ids are not known here.
    """
    kind = processor["type"]
    if kind == "Sequence":
        for one in processor["processors"]:
            _renumber_specials(one, new)
    elif kind == "TemplateProcessing":
        for token in processor["special_tokens"].values():
            token["ids"] = [new[number] for number in token["ids"]]
    elif kind in ("BertProcessing", "RobertaProcessing"):
        for name in ("sep", "cls"):
            processor[name] = [processor[name][0], new[processor[name][1]]]
    elif kind != "ByteLevel":
        raise InputError(f"the tokenizer's post-processor is of kind {kind}, whose ids are not known here")
