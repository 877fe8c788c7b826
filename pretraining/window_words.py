"""Sets of words of a run's windows: what they are drawn from is prepared once, beside the tokens."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from indexes.checksums import fingerprint
from indexes.manifest import read_manifest
from pretraining.attended_words import Reader, write_attended_words
from pretraining.base import Base
from pretraining.configuration import PretrainConfig
from pretraining.contrastive_terms import ContrastiveTerms
from pretraining.tokens import KIND, DrawSets, WindowTexts
from pretraining.word_sets import SetOptions, WordCounts, WordSets, WordSetSampler

COUNTS, ATTENDED = "word-counts", "attended-words"


def prepare_word_sets(tokens: Path, config: PretrainConfig, base: Base, note: Callable[[str], None]) -> None:
    """Make what sets of words are drawn from, if the objective needs any and it is not there.

    For PROP that are counts of words; for B-PROP what the base, as it came, attends to in each window.

    Args:
        tokens: The tokens folder of the run, with the texts of its windows.
        config: Of the run.
        base: What is trained; its weights are still those that it came with.
        note: Called with lines for a person.

    Raises:
        InputError: B-PROP is asked for, and no window has a word.
    """
    wanted = config.parsed.word_sets
    if wanted is None:
        return
    texts, key = WindowTexts(tokens), _key(tokens)
    if wanted.kind == "prop":
        if WordCounts.saved(tokens.with_name(COUNTS), key) is None:
            WordCounts.of(texts).save(tokens.with_name(COUNTS), key)
        return
    reader = Reader(base.model.parts, base.tokenizer, config.max_length)
    key = fingerprint({"model": base.fingerprint, "texts": key})
    write_attended_words(texts, tokens.with_name(ATTENDED), lambda: reader, key, note)


def open_word_sets(tokens: Path, options: SetOptions) -> DrawSets:
    """What draws two sets of words for a window of a tokens folder, by its number.

    Raises:
        InputError: No word of the windows occurs ten times, or for B-PROP nothing was prepared.
    """
    if options.kind == "bprop":
        return ContrastiveTerms(tokens.with_name(ATTENDED), options.temperature).draw_two
    texts = WindowTexts(tokens)
    sampler = WordSetSampler(WordCounts.saved(tokens.with_name(COUNTS), _key(tokens)) or WordCounts.of(texts))

    def draw(row: int, generator: np.random.Generator) -> WordSets | None:
        return sampler.draw(texts[row], generator)

    return draw


def _key(tokens: Path) -> str:
    """What says which texts the windows of a tokens folder have."""
    return str(read_manifest(tokens, KIND)["files"]["characters.npy"]["sha256"])
