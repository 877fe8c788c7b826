"""Greedy soups: models join a mean one after another, as long as held-out queries do not suffer."""

import contextlib
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexes.errors import InputError
from indexes.manifest import LOCK, differences, read_json, sole_writer, write_json
from retrieval.ingredients import Ingredient
from retrieval.run_card import CARD, finished_card
from retrieval.soup import (
    SoupResult,
    alike,
    check_count,
    equal_shares,
    linear,
    packages,
    write_soup,
)

if TYPE_CHECKING:
    from retrieval.encoder import Encoder

_SCORES = "scores.json"
_CANDIDATE = "candidate"


def greedy_soup(
    models: Sequence[str | Path],
    score: "Callable[[Encoder], float]",
    output: str | Path,
    *,
    measure: str,
    overwrite: bool = False,
    on_note: Callable[[str], None] | None = None,
) -> SoupResult:
    """Make the greedy soup of encoders: each joins the mean, best first, if it does not make it worse.

    Wortsman et al., Model Soups, arXiv:2203.05482, recipe 1. By `score` it is no worse than the best model; take
    queries held out from training and from the final test. A killed call goes on after its last score.

    Args:
        models: Folders or names of encoders of one architecture.
        score: From an encoder to its value on held-out queries, the more the better.
        output: The model folder to make.
        measure: What `score` measures, in words: recorded, and what tells kept scores from those of another measure.
        overwrite: Replace an existing folder, and discard scores of another measure or of other models.
        on_note: Called with lines for a person.

    Raises:
        InputError: As `make_soup`; or a score is not a number.
    """
    target, names = Path(output), [str(model) for model in models]
    check_count(len(names), 2)
    ingredients = alike(names, target)
    fingerprints = [one.fingerprint() for one in ingredients]
    configuration = {"method": "greedy", "measure": measure, "models": fingerprints}
    finished = finished_card(target, configuration, overwrite=overwrite)
    partial = target.with_name(f"{target.name}.partial")
    if finished:
        _sweep(partial, configuration)
        return SoupResult(target, True, finished)
    partial.mkdir(parents=True, exist_ok=True)
    with sole_writer(partial):
        kept = _kept(partial, configuration, overwrite=overwrite)
        scores = _Scores(ingredients, score, partial, configuration, kept, on_note or (lambda _: None))
        chosen = _choose(len(names), scores)
        found = {"chosen": [names[number] for number in chosen], "score": scores.of(chosen), "scores": scores.kept}
        card = {"made_by": "retrokit greedy soup", "models": names, "configuration": configuration, **found}
        mean = [ingredients[number] for number in chosen]
        blend = linear(equal_shares(len(mean)), len(mean))
        write_soup(target, mean, blend, {**card, **packages()}, overwrite=overwrite)
    shutil.rmtree(partial)
    return SoupResult(target, False, read_json(target / CARD))


class _Scores:
    """What means of ingredients score, computed once and kept on disk."""

    def __init__(
        self,
        ingredients: Sequence[Ingredient],
        score: "Callable[[Encoder], float]",
        partial: Path,
        configuration: dict[str, Any],
        kept: dict[str, float],
        note: Callable[[str], None],
    ) -> None:
        self.ingredients, self.score, self.partial, self.note = ingredients, score, partial, note
        self.configuration, self.kept = configuration, kept
        self._keep()

    def of(self, chosen: Sequence[int]) -> float:
        """The score of the mean of some ingredients, by their numbers."""
        from retrieval.encoder import Encoder

        chosen = sorted(chosen)
        key = "+".join(map(str, chosen))
        if key not in self.kept:
            mean, measure = [self.ingredients[number] for number in chosen], self.configuration["measure"]
            write_soup(self.partial / _CANDIDATE, mean, linear(equal_shares(len(mean)), len(mean)), {}, overwrite=True)
            value = float(self.score(Encoder.load(str(self.partial / _CANDIDATE))))
            if not math.isfinite(value):
                raise InputError(f"{measure} is {value} for the mean of models {key}; expected a finite number")
            self.kept[key] = value
            self._keep()
            self.note(f"{' + '.join(one.name for one in mean)}: {measure} {value:.4f}")
        return self.kept[key]

    def _keep(self) -> None:
        write_json(self.partial / _SCORES, {"configuration": self.configuration, "scores": self.kept})


def _choose(count: int, scores: _Scores) -> list[int]:
    """The numbers of the ingredients of the greedy soup."""
    order = sorted(range(count), key=lambda number: (-scores.of([number]), number))
    chosen = order[:1]
    for number in order[1:]:
        if scores.of([*chosen, number]) >= scores.of(chosen):
            chosen.append(number)
    return sorted(chosen)


def _sweep(partial: Path, configuration: dict[str, Any]) -> None:
    """Remove what a call of this configuration left, that was killed after publishing; another's stays."""
    scores = partial / _SCORES
    if scores.is_file() and not differences(configuration, read_json(scores)["configuration"]):
        with contextlib.suppress(InputError):  # somebody is at work in it
            with sole_writer(partial):
                pass
            shutil.rmtree(partial)


def _kept(partial: Path, configuration: dict[str, Any], *, overwrite: bool) -> dict[str, float]:
    """The scores that a killed call left behind.

    Raises:
        InputError: They are of other models or another measure, or the folder is something else's.
    """
    if not (partial / _SCORES).is_file():
        others = [path.name for path in partial.iterdir() if path.name != LOCK and not path.name.startswith(".")]
        if others:
            raise InputError(f"{partial} holds {others[0]} and belongs to no soup; choose another output")
        return {}
    kept = read_json(partial / _SCORES)
    found = differences(configuration, kept["configuration"])
    if found and not overwrite:
        raise InputError(
            f"{partial} belongs to another soup ({found}); give the same models and measure, choose another output, or "
            "overwrite"
        )
    return {} if found else dict(kept["scores"])
