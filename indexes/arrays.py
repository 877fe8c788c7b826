"""Arrays in `.npy` files, memory-mapped or read."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError

_ONE_AT_A_TIME = threading.Lock()


def map_array(path: Path) -> NDArray[Any]:
    """Map an `.npy` file for reading.

    Raises:
        InputError: It is none.
    """
    return _load(path, "r")


def read_array(path: Path) -> NDArray[Any]:
    """Read an `.npy` file.

    Raises:
        InputError: It is none.
    """
    return _load(path, None)


def _load(path: Path, mode: Any) -> NDArray[Any]:
    try:
        # Numpy parses headers by `ast`, whose depth threads of Python 3.11 confuse among themselves (cpython#106905).
        with _ONE_AT_A_TIME:
            return np.load(path, mmap_mode=mode, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not readable as an array ({error}); make the folder again") from None
