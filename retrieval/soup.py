"""Soups: the weights of several models of one architecture, averaged or interpolated into one model."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from indexes.errors import InputError
from indexes.manifest import new_folder, read_json, refuse_existing, seal, write_json
from retrieval.ingredients import WEIGHTS, Ingredient, is_idle
from retrieval.run_card import CARD, KIND, finished_card

OnProgress = Callable[[int, int | None], None]
Blend = Callable[[str, Sequence[Tensor]], Tensor]
"""From a tensor's name and its values in all models to its value in the soup."""
METHODS = ("linear", "slerp", "task")
_SUM = 1e-6
_PARALLEL = 1e-7


@dataclass(frozen=True)
class SoupResult:
    """What a call of `make_soup` or `greedy_soup` did.

    Attributes:
        output: The model folder.
        already_complete: Whether the folder was there, made by the same call; nothing was done then.
        card: The run card, as in the folder's `retrokit.json`.
    """

    output: Path
    already_complete: bool
    card: dict[str, Any]


def interpolate(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Σ wᵢ θᵢ: the weighted mean of models (Wortsman et al., Model Soups, arXiv:2203.05482, equation of section 2).

    Each tensor is summed in float64, then rounded once to the type that it has in the first state, and put where that
    one is. Tensors of whole numbers have to be equal in all, and are the first's.

    Args:
        states: Of models of one architecture; mappings that read their tensors when asked keep memory low.
        weights: One for each, of sum 1; those beyond 0 and 1 extrapolate.

    Raises:
        InputError: Names, shapes or whole numbers differ, or the weights are not one for each, finite and of sum 1.
    """
    blend = linear(weights, len(states))
    _refuse_unlike(states)
    return {name: blend(name, [state[name] for state in states]) for name in states[0]}


def slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Spherical interpolation of two tensors, taken as vectors: sin((1-t)Ω)/sin Ω · a + sin(tΩ)/sin Ω · b.

    Ω is the angle between them (Shoemake, Animating Rotation with Quaternion Curves, 1985). Where a straight line
    shortens the mean of vectors that point apart, this keeps their length. Vectors that are parallel, opposite or zero
    are interpolated straight.

    Args:
        one: a, of any shape.
        other: b, of the same shape.
        share: t: 0 gives a and 1 gives b.

    Returns:
        Float64, of the same shape.
    """
    first, second = one.detach().double(), other.detach().double().to(one.device)
    lengths = first.norm(), second.norm()
    near, far = 1 - share, share
    if lengths[0] > 0 and lengths[1] > 0:
        ours, theirs = first / lengths[0], second / lengths[1]
        angle = 2 * math.atan2((ours - theirs).norm(), (ours + theirs).norm())  # exact where an arccosine is not
        if math.sin(angle) > _PARALLEL:
            near, far = (math.sin(part * angle) / math.sin(angle) for part in (near, far))
    return near * first + far * second


def make_soup(
    models: Sequence[str | Path],
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    method: str = "linear",
    base: str | Path | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> SoupResult:
    """Make one model folder of several of one architecture.

    Fine-tuned from one base, such models often lie in one basin, and their mean is better than each. Settings, prompts
    and tokenizer, which have to be equal, are the first model's; heads of pretraining are left behind. Weights are read
    and blended tensor by tensor, so that memory holds about one model.

    Args:
        models: Folders or names of dense or sparse encoders, cross-encoders or transformers.
        output: The model folder to make.
        weights: One for each model. For `linear` of sum 1 (None: equal ones); for `slerp` of two models and of sum 1;
            for `task` any.
        method: `linear`: Σ wᵢ θᵢ. `slerp`: spherical, each tensor for itself (`slerp`). `task`: θ + Σ wᵢ (θᵢ - θ),
            what each model learned beside the base θ (Ilharco et al., Editing Models with Task Arithmetic,
            arXiv:2212.04089); a weight below 0 unlearns it.
        base: θ, for `task`.
        overwrite: Replace an existing folder.
        on_progress: Called with the tensors done and their total.

    Raises:
        InputError: Models that differ in anything but the values of their weights (the first difference is named),
            weights that do not fit the method, or an output that exists.
    """
    target, names = Path(output), [str(model) for model in models]
    shares = _shares(len(names), weights, method, base is not None)
    all_names = [str(base), *names] if base is not None else names
    ingredients = alike(all_names, target)
    configuration = {"method": method, "weights": shares, "models": [one.fingerprint() for one in ingredients]}
    finished = finished_card(target, configuration, overwrite=overwrite)
    if finished:
        return SoupResult(target, True, finished)
    card = {"made_by": "retrokit soup", "models": all_names, "configuration": configuration, **packages()}
    write_soup(target, ingredients, _blend(method, shares), card, overwrite=overwrite, on_progress=on_progress)
    return SoupResult(target, False, read_json(target / CARD))


def check_count(count: int, least: int) -> None:
    """Refuse fewer models than a soup needs.

    Raises:
        InputError: There are fewer.
    """
    if count < least:
        raise InputError(f"{count} models are given; expected at least {least}")


def equal_shares(count: int) -> list[float]:
    """The weights of a plain mean."""
    return [1 / count] * count


def _shares(count: int, weights: Sequence[float] | None, method: str, has_base: bool) -> list[float]:
    """The weights of all models, a base's first, as the method needs them.

    Raises:
        InputError: They do not fit the method or the number of models.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    check_count(count, 1 if method == "task" else 2)
    if (method == "task") != has_base:
        raise InputError(f"method {method} takes {'a base: give base' if method == 'task' else 'no base'}")
    if method == "slerp" and count != 2:
        raise InputError(f"{count} models are given; slerp takes two")
    if weights is None and method == "task":
        raise InputError("method task needs weights: how much of what each model learned is added to the base")
    shares = equal_shares(count) if weights is None else [float(weight) for weight in weights]
    _check_shares(shares, count, whole=method != "task")
    return [1 - sum(shares), *shares] if method == "task" else shares


def _check_shares(shares: Sequence[float], count: int, *, whole: bool) -> None:
    if len(shares) != count:
        raise InputError(f"{len(shares)} weights are given for {count} models; expected one for each")
    if not all(map(math.isfinite, shares)):
        raise InputError(f"weights are {', '.join(f'{share:g}' for share in shares)}; expected finite numbers")
    if whole and abs(sum(shares) - 1) > _SUM:
        raise InputError(f"the weights' sum is {sum(shares):g}; expected 1: divide each by their sum")


def _blend(method: str, shares: Sequence[float]) -> Blend:
    if method != "slerp":
        return linear(shares, len(shares))

    def spherical(name: str, tensors: Sequence[Tensor]) -> Tensor:
        first = tensors[0]
        return (
            slerp(first, tensors[1], shares[1]).to(first.dtype) if first.is_floating_point() else _same(name, tensors)
        )

    return spherical


def linear(shares: Sequence[float], count: int) -> Blend:
    """The weighted mean of so many tensors, as `interpolate` describes it."""
    _check_shares(shares, count, whole=True)

    def mean(name: str, tensors: Sequence[Tensor]) -> Tensor:
        first = tensors[0]
        if not first.is_floating_point():
            return _same(name, tensors)
        counted = [(share, tensor) for share, tensor in zip(shares, tensors, strict=True) if share]
        total = counted[0][0] * counted[0][1].detach().to("cpu", torch.float64)  # begun by a zero, -0 would become 0
        for share, tensor in counted[1:]:
            total.add_(tensor.detach().to("cpu", torch.float64), alpha=share)
        return total.to(first.dtype).to(first.device)

    return mean


def _same(name: str, tensors: Sequence[Tensor]) -> Tensor:
    """A tensor of whole numbers or truth values, which nothing lies between."""
    first = tensors[0].detach()
    if not all(torch.equal(first.cpu(), other.detach().cpu()) for other in tensors[1:]):
        raise InputError(f"{name} holds whole numbers ({first.dtype}) that differ; such models cannot be averaged")
    return first.clone()


def _refuse_unlike(states: Sequence[Mapping[str, Tensor]]) -> None:
    first = states[0]
    for number, other in enumerate(states[1:], start=1):
        for name in [*first, *other]:
            if name not in first or name not in other:
                raise InputError(f"states 0 and {number} differ: {name} is in one only; expected one architecture")
            if first[name].shape != other[name].shape:
                shapes = f"{tuple(first[name].shape)} ≠ {tuple(other[name].shape)}"
                raise InputError(f"states 0 and {number} differ: {name} has shapes {shapes}; expected one architecture")
            if first[name].is_floating_point() != other[name].is_floating_point():
                types = f"{first[name].dtype} ≠ {other[name].dtype}"
                raise InputError(f"states 0 and {number} differ: {name} has types {types}; expected one architecture")


def alike(names: Sequence[str], target: Path) -> list[Ingredient]:
    """Open models that are to be blended into a folder.

    Raises:
        InputError: They differ in anything but the values of their weights, or the folder is or holds one of them.
    """
    refuse_existing(target, overwrite=True, inputs=names)
    ingredients = [Ingredient(name) for name in names]
    refuse_existing(target, overwrite=True, inputs=[one.folder for one in ingredients])
    for other in ingredients[1:]:
        ingredients[0].refuse_unlike(other)
    return ingredients


def write_soup(
    target: Path,
    ingredients: Sequence[Ingredient],
    blend: Blend,
    card: Mapping[str, Any],
    *,
    overwrite: bool,
    on_progress: OnProgress | None = None,
) -> None:
    """Publish a blend as a model folder, in one step."""
    first, done = ingredients[0], 0
    total = sum(map(len, first.parts.values()))
    with new_folder(target, overwrite=overwrite) as new:
        for path in first.files:
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(first.folder / path, new / path)
        for place in first.places:
            (new / place).mkdir(parents=True, exist_ok=True)
        for place, part in first.parts.items():
            parts, made = [one.parts[place] for one in ingredients], {}
            for name in part:
                whole = not is_idle(name) or all(name in other for other in parts)
                made[name] = blend(name, [other[name] for other in parts]) if whole else part[name]
                done += 1
                if on_progress:
                    on_progress(done, total)
            save_file(made, new / place / WEIGHTS, metadata={"format": "pt"})
        write_json(new / CARD, card)
        seal(new, KIND, {})


def packages() -> dict[str, Any]:
    """The versions of what computed a soup."""
    return {"packages": {name: version(name) for name in ("torch", "safetensors")}}
