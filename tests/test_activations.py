"""Activations: their values over the whole range, their tails, NaN, and the way without SciPy."""

import importlib
import sys

import numpy as np
import pytest

import cuconv
from cuconv import activations
from cuconv.problem import ACTIVATIONS

from .reference import activated

NAMES = ACTIVATIONS[1:]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_relative_error_over_the_whole_range(name, dtype):
    """The small tails too: gelu(-10) is tiny, not zero. Its exp(-x^2 / 2) magnifies rounding by x^2."""
    x = np.linspace(-10, 10, 81).astype(dtype)
    y = cuconv.conv(x[None, None], np.ones((1, 1, 1), dtype), activation=name)[0, 0]
    expected = activated(x.astype(np.float64), name).astype(np.float64)
    relative = (10 + x.astype(np.float64) ** 2) * np.finfo(dtype).eps
    bound = relative * np.abs(expected) + np.finfo(dtype).smallest_subnormal
    assert (np.abs(y.astype(np.float64) - expected) <= bound).all()


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_and_large_values_do_not_overflow(name):
    x = np.array([[[np.nan, -800.0, 800.0]]])
    y = cuconv.conv(x, np.ones((1, 1, 1)), activation=name)[0, 0]
    assert np.isnan(y[0])
    low, high = activated(x[0, 0, 1:], name)
    assert abs(y[1] - low) < 1e-300
    assert y[2] == high


def test_gelu_of_float32_is_rounded_once():
    x = np.linspace(-6, 6, 1001).astype(np.float32)
    expected = activations.gelu(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(activations.gelu(x), expected)


def test_gelu_without_scipy(monkeypatch):
    x = np.linspace(-10, 10, 41)
    expected = activations.gelu(x)
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    try:
        without = importlib.reload(activations).gelu(x)
    finally:
        monkeypatch.undo()
        importlib.reload(activations)
    np.testing.assert_allclose(without, expected, rtol=1e-13)
