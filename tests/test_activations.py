"""Activations: their values over the whole range, their tails, NaN, and the way without SciPy."""

import sys
import types

import ml_dtypes
import numpy as np
import pytest

import cuconv
from cuconv import activations
from cuconv.problem import ACTIVATIONS

from .cases import DTYPES
from .emulator import emulated
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
    activations._erfc.cache_clear()
    without = activations.gelu(x)
    activations._erfc.cache_clear()
    np.testing.assert_allclose(without, expected, rtol=1e-13)


# -- derivatives ------------------------------------------------------------------------------------


def slopes(name, z):
    """f'(z) by central differences of the oracle's formula, in double precision."""
    step = 1e-5 * np.maximum(np.abs(z), 1)
    return (activated(z + step, name) - activated(z - step, name)).astype(np.float64) / (2 * step)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_derivatives(name, dtype):
    """From the pre-activation and, where that is enough, from the result."""
    dtype = DTYPES[dtype]
    z = np.linspace(-6.05, 6, 49).reshape(7, 7).astype(dtype)
    dy = np.random.default_rng(0).standard_normal(z.shape).astype(dtype)
    expected = dy.astype(np.float64) * slopes(name, z.astype(np.float64))
    bound = dict(
        rtol=4 * float(ml_dtypes.finfo(dtype).eps), atol=1e-8 + 8 * float(ml_dtypes.finfo(dtype).eps)
    )
    from_z = cuconv.activation_backward(dy, name, pre_activation=z)
    assert from_z.dtype == dtype
    np.testing.assert_allclose(from_z.astype(np.float64), expected, **bound)
    if name in ("relu", "sigmoid", "tanh"):
        y = cuconv.conv(z[None, None], np.ones((1, 1, 1, 1), dtype), activation=name)[0, 0]
        from_y = cuconv.activation_backward(dy, name, y=y)
        np.testing.assert_allclose(from_y.astype(np.float64), expected, **bound)


def test_derivatives_without_overflow_and_at_the_kink():
    far = np.array([-1e200, -800.0, 800.0, 1e200])
    for name in NAMES:
        with np.errstate(all="raise"):
            dz = cuconv.activation_backward(np.ones(4), name, pre_activation=far)
        np.testing.assert_array_equal(dz, [0, 0, *(2 * [0 if name in ("sigmoid", "tanh") else 1])])
    at_zero = cuconv.activation_backward(np.array([np.inf, 2]), "relu", y=np.zeros(2))
    np.testing.assert_array_equal(at_zero, [0, 0])
    assert np.isnan(cuconv.activation_backward(np.array([np.nan]), "relu", y=np.ones(1)))


@pytest.mark.parametrize("name", NAMES)
def test_slopes_at_infinity_are_their_limits(name):
    z = np.array([-np.inf, np.inf, np.nan])
    dz = cuconv.activation_backward(np.ones(3), name, pre_activation=z)
    np.testing.assert_array_equal(dz, [0, name not in ("sigmoid", "tanh"), 1 if name == "relu" else np.nan])


@pytest.mark.parametrize("name", [None, *NAMES])
def test_arrays_without_axes_stay_arrays(name):
    one = np.ones((), np.float32)
    given = dict(pre_activation=one) if name else {}
    dz = cuconv.activation_backward(one, name, **given)
    assert isinstance(dz, np.ndarray)
    assert (dz.shape, dz.dtype) == ((), np.float32)
    assert cuconv.activation_backward(dz, name, **given).shape == ()


def test_derivative_of_relu_of_integers():
    z = np.array([-2, 0, 3], np.int64)
    np.testing.assert_array_equal(cuconv.activation_backward(z * 5, "relu", pre_activation=z), [0, 0, 15])


def test_without_an_activation_dy_is_copied():
    dy = np.arange(3.0)
    dz = cuconv.activation_backward(dy, None, y=dy)
    np.testing.assert_array_equal(dz, dy)
    assert not np.shares_memory(dz, dy)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_through_a_fused_activation(name):
    """The chain that the function is for: finite differences of a loss through conv(..., activation=...)."""
    rng = np.random.default_rng(0)
    x, w, bias = rng.standard_normal((1, 2, 6)), rng.standard_normal((3, 2, 3)), rng.standard_normal(3)
    dy = rng.standard_normal((1, 3, 4))

    def loss(w):
        return np.vdot(dy, cuconv.conv(x, w, bias, activation=name))

    dz = cuconv.activation_backward(dy, name, pre_activation=cuconv.conv(x, w, bias))
    dw = cuconv.conv_weight_grad(x, dz, w.shape)
    for index in np.ndindex(*w.shape):
        step = np.zeros_like(w)
        step[index] = 1e-6
        assert abs((loss(w + step) - loss(w - step)) / 2e-6 - dw[index]) < 1e-7


def test_on_a_gpu_erfc_is_cupys(monkeypatch):
    """CuPy's module is asked for its function; here SciPy stands in for it, and NumPy for CuPy's arrays."""
    scipy_special = pytest.importorskip("scipy.special")
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", scipy_special)
    stand_in, z = types.ModuleType("cupy"), np.linspace(-3, 3, 13)
    stand_in.__dict__.update(vars(np))
    for array in (activations.gelu(z, stand_in), activations._gelu_slope(z, stand_in)):
        assert np.isfinite(array).all()
    np.testing.assert_array_equal(activations._gelu_slope(z, stand_in), activations._gelu_slope(z, np))
    with emulated():
        dz = cuconv.activation_backward(z, "gelu", pre_activation=z)
    np.testing.assert_array_equal(dz, cuconv.activation_backward(z, "gelu", pre_activation=z))
