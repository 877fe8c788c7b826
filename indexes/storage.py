"""The forms in which a folder keeps the numbers of its vectors: float32, float16, int8, one bit each."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError

FORMS = ("float32", "float16", "int8", "binary")
_LARGEST_INT8 = 127
_SMALLEST = 1e-30
"""What is smaller than this in all of a sample is 0: a step of its size would be no normal float32."""
_FLOAT16_MAX = float(np.finfo(np.float16).max)


class Storage(NamedTuple):
    """How a vector of `dim` numbers is kept, and read back as float32.

    | form | bytes a number | read back as |
    |---|---|---|
    | float32 | 4 | itself |
    | float16 | 2 | rounded to 11 significant bits |
    | int8 | 1 | multiples of 1/127 of each dimension's largest value in the calibration sample; beyond it, cut |
    | binary | 1/8 | ±1/√dim: the sign alone, of unit length |

    Use float32 where space allows, float16 for half of it at no measurable loss; int8 and binary lose ranking quality,
    which an index over the same vectors cannot win back.
    """

    form: str
    dim: int
    scale: NDArray[np.float32] | None = None
    """(d,) the step of each dimension; int8 only."""

    @classmethod
    def of(cls, form: str, dim: int, calibration: Mapping[str, Any] | None = None) -> "Storage":
        """Make a form; int8 takes its steps from `calibration`, as `calibrate` gave it.

        Raises:
            InputError: There is no such form, or one bit each and dim is no multiple of 8.
        """
        if form not in FORMS:
            raise InputError(f"storage is {form!r}; expected one of {', '.join(FORMS)}")
        if form == "binary" and dim % 8:
            raise InputError(f"storage 'binary' packs 8 numbers a byte; {dim} dimensions are no multiple of 8")
        scale = np.asarray(calibration["scale"], dtype=np.float32) if calibration else None
        return cls(form, dim, scale)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored array; bits are packed in uint8."""
        return np.dtype("uint8" if self.form == "binary" else self.form)

    @property
    def width(self) -> int:
        """Columns of the stored array."""
        return self.dim // 8 if self.form == "binary" else self.dim

    def encode(self, vectors: NDArray[np.float32]) -> NDArray[Any]:
        """float32 (n, d) -> stored (n, width).

        Raises:
            InputError: A number is too large for float16.
        """
        if self.form == "binary":
            return np.packbits(vectors > 0, axis=1)
        if self.form == "int8":
            steps = np.rint(vectors / self._step())
            return np.clip(steps, -_LARGEST_INT8, _LARGEST_INT8).astype(np.int8)
        if self.form == "float16" and len(vectors) and (largest := float(np.abs(vectors).max())) > _FLOAT16_MAX:
            raise InputError(f"a vector holds {largest:g}; float16 ends at {_FLOAT16_MAX:g}: store float32")
        return np.ascontiguousarray(vectors, dtype=self.dtype)

    def decode(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Stored (n, width) -> float32 (n, d); what is stored as float32 is passed on without a copy."""
        if self.form == "binary":
            bits = np.unpackbits(stored, axis=1, count=self.dim)
            return (bits * np.float32(2) - np.float32(1)) / np.float32(np.sqrt(self.dim))
        if self.form == "int8":
            return stored * self._step()
        return stored.astype(np.float32, copy=False)

    def _step(self) -> NDArray[np.float32]:
        if self.scale is None:
            raise InputError("int8 vectors come without their calibration; make them again")
        return self.scale


def calibrate(sample: NDArray[np.float32]) -> dict[str, list[float]]:
    """The calibration of int8: the step of each dimension, 1/127 of its largest magnitude in a sample (n, d).

    It is made once and kept with the folder, so that all shards agree on what a number means.
    """
    largest = np.abs(sample).max(axis=0) if len(sample) else np.ones(sample.shape[1], np.float32)
    steps = np.where(largest > _SMALLEST, largest, 1).astype(np.float32) / _LARGEST_INT8
    return {"scale": [float(step) for step in steps]}
