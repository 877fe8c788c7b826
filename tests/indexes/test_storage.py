"""The forms in which numbers are kept: each against its formula, written out anew; what they lose; their edges."""

import math

import numpy as np
import pytest

from indexes.errors import InputError
from indexes.storage import FORMS, Storage, calibrate

N, D = 40, 16


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


def form_of(form, sample):
    return Storage.of(form, sample.shape[1], calibrate(sample) if form == "int8" else None)


def test_float32_is_kept_and_passed_on_without_a_copy(vectors):
    form = form_of("float32", vectors)
    np.testing.assert_array_equal(form.encode(vectors), vectors)
    assert np.shares_memory(form.decode(vectors), vectors)


def test_float16_rounds_to_eleven_bits(vectors):
    form = form_of("float16", vectors)
    stored = form.encode(vectors)
    assert stored.dtype == np.float16
    for number, kept in zip(vectors.flat, form.decode(stored).flat, strict=True):
        mantissa, exponent = math.frexp(float(number))
        assert float(kept) == math.ldexp(round(mantissa * 2**11) / 2**11, exponent)  # Python's round is to even, too


def test_int8_counts_steps_of_a_127th_of_the_largest_of_each_dimension(vectors):
    form = form_of("int8", vectors)
    stored, back = form.encode(vectors), form.decode(form.encode(vectors))
    steps = [max(abs(float(number)) for number in column) / 127 for column in vectors.T]
    expected = [[round(float(number) / step) for number, step in zip(row, steps, strict=True)] for row in vectors]
    assert stored.dtype == np.int8
    assert stored.tolist() == expected
    assert (np.abs(stored).max(axis=0) == 127).all()
    assert (np.abs(back - vectors) <= np.array(steps) * 0.5001).all()
    np.testing.assert_allclose(back, stored * np.array(steps), rtol=1e-6)


def test_int8_cuts_what_is_beyond_the_calibration_and_never_turns_it_round(vectors):
    form = form_of("int8", vectors)
    assert (form.encode(vectors * 1000) == np.sign(vectors) * 127).all()
    assert form.encode(-np.abs(vectors) * 1e30).min() == -127


def test_a_dimension_that_is_zero_in_the_calibration_is_counted_in_127ths(vectors):
    sample = vectors.copy()
    sample[:, 3] = 0
    sample[:, 4] = 1e-44  # less than 127 of the smallest numbers that float32 has
    form = form_of("int8", sample)
    np.testing.assert_allclose(form.scale[3:5], 1 / 127)
    assert (form.decode(form.encode(sample))[:, 3:5] == 0).all()
    assert calibrate(np.empty((0, 2), np.float32)) == {"scale": [np.float32(1 / 127)] * 2}


def test_binary_keeps_signs_first_dimension_in_the_highest_bit(vectors):
    form = form_of("binary", vectors)
    stored = form.encode(vectors)
    assert (stored.dtype, stored.shape) == (np.uint8, (N, D // 8))
    for row, packed in zip(vectors, stored.tolist(), strict=True):
        bits = "".join("1" if number > 0 else "0" for number in row)
        assert [int(bits[:8], 2), int(bits[8:], 2)] == packed
    back = form.decode(stored)
    np.testing.assert_array_equal(back > 0, vectors > 0)
    np.testing.assert_allclose(np.linalg.norm(back, axis=1), 1, rtol=1e-6)
    assert form.encode(np.zeros((1, 8), np.float32)).tolist() == [[0]]


@pytest.mark.parametrize("form", FORMS)
def test_shapes_types_and_nothing_at_all(vectors, form):
    storage = form_of(form, vectors)
    for some in (vectors, vectors[:0], vectors[::2]):
        stored = storage.encode(some)
        assert (stored.shape, stored.dtype) == ((len(some), storage.width), storage.dtype)
        back = storage.decode(stored)
        assert (back.shape, back.dtype) == (some.shape, np.float32)
    assert storage.dtype.itemsize * storage.width == {"float32": 64, "float16": 32, "int8": 16, "binary": 2}[form]


@pytest.mark.parametrize(("form", "least"), [("float16", 0.999999), ("int8", 0.9999), ("binary", 0.6)])
def test_read_back_vectors_point_where_they_pointed(vectors, form, least):
    storage = form_of(form, vectors)
    back = storage.decode(storage.encode(vectors))
    cosines = (back * vectors).sum(axis=1) / np.linalg.norm(back, axis=1) / np.linalg.norm(vectors, axis=1)
    assert cosines.min() > least


def test_what_does_not_fit_is_refused(vectors):
    with pytest.raises(InputError, match="storage is 'float8'; expected one of float32, float16, int8, binary"):
        Storage.of("float8", D)
    with pytest.raises(InputError, match="packs 8 numbers a byte; 12 dimensions are no multiple of 8"):
        Storage.of("binary", 12)
    with pytest.raises(InputError, match="a vector holds 70000; float16 ends at 65504: store float32"):
        Storage.of("float16", 2).encode(np.array([[1, -70000]], np.float32))
    assert np.isfinite(Storage.of("float16", 2).encode(np.array([[1, -65504]], np.float32))).all()
    with pytest.raises(InputError, match="int8 vectors come without their calibration"):
        Storage.of("int8", D).encode(vectors)
