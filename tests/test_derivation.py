"""The identities of docs/derivation.md, each checked by numbers.

One side of every equation is cuconv; the other is SciPy, numpy.fft, a loop, an explicit matrix or a
difference quotient. Small integers make the sums exact, so those comparisons are for equality. A convolution
is linear in each operand, so what it gains by a step of 1 is its derivative, exactly.
"""

import functools
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import signal, special

import cuconv
import cuconv.nn
from cuconv.problem import ACTIVATIONS, PADDING_MODES

from . import emulator
from .test_padding import MODES

DOCUMENT = (Path(__file__).parents[1] / "docs" / "derivation.md").read_text(encoding="utf-8")

# One axis: input extent H, filter extent R, stride s, dilation d, cells added (before, after), groups.
GEOMETRIES = [
    (7, 3, 1, 1, (0, 0), 1),
    (9, 3, 2, 1, (1, 1), 1),
    (10, 3, 2, 3, (2, 1), 2),
    (11, 2, 3, 2, (0, 4), 2),
    (8, 3, 1, 2, (-1, 2), 1),
]
geometries = pytest.mark.parametrize("geometry", GEOMETRIES)
close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
equal = np.testing.assert_array_equal


def integers(seed, *shape):
    return np.random.default_rng(seed).integers(-9, 10, shape)


def gaussian_integers(seed, *shape):
    return integers(seed, *shape) + 1j * integers(seed + 1000, *shape)


def reals(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def turned(a):
    """The last two axes turned by 180 degrees."""
    return a[..., ::-1, ::-1]


def options(geometry):
    _, _, s, d, pair, groups = geometry
    return {"stride": s, "padding": [pair], "dilation": d, "groups": groups}


def places(geometry):
    """How many outputs there are: the places where the filter, spread by d, lies inside the padded input."""
    extent, taps, s, d, pair, _ = geometry
    return sum(p * s + d * (taps - 1) < extent + sum(pair) for p in range(extent + sum(pair)))


def operands(geometry, make=integers):
    """x, w and dy with 2 images, 4 input channels and 6 output channels."""
    extent, taps, groups = geometry[0], geometry[1], geometry[5]
    return make(1, 2, 4, extent), make(2, 6, 4 // groups, taps), make(3, 2, 6, places(geometry))


def channels(w, groups):
    """(k, c within the group, c in x) for every pair of channels that a group joins."""
    per_group = w.shape[0] // groups
    for k, c in itertools.product(range(w.shape[0]), range(w.shape[1])):
        yield k, c, k // per_group * w.shape[1] + c


def differences(function, a, step=1):
    """What function gains when one element of a, each in its turn, grows by step."""
    base, gains = function(a), []
    for index in np.ndindex(a.shape):
        moved = a.copy()
        moved[index] += step
        gains.append(function(moved) - base)
    return np.reshape(gains, a.shape)


def complex_step(function, a):
    """The gradient of a real-analytic function, to rounding: Im f(a + i e) / e has nothing to cancel."""
    gradient = np.empty(a.shape)
    for index in np.ndindex(a.shape):
        moved = a.astype(complex)
        moved[index] += 1e-30j
        gradient[index] = function(moved).imag / 1e-30
    return gradient


# -- 1. correlation and convolution -----------------------------------------------------------------


def test_correlation_is_the_plain_sum():
    x, w, bias = integers(1, 2, 3, 6, 5), integers(2, 4, 3, 3, 2), integers(3, 4)
    y = cuconv.conv(x, w, bias)
    for n, k in np.ndindex(2, 4):
        expected = sum(signal.correlate2d(x[n, c], w[k, c], "valid") for c in range(3)) + bias[k]
        equal(y[n, k], expected)


@geometries
def test_correlation_with_stride_dilation_and_padding(geometry):
    x, w, dy = operands(geometry)
    (extent, taps, s, d, (a, _), groups), expected = geometry, np.zeros_like(dy)
    for n, (k, c, channel), p, r in itertools.product(
        range(2), channels(w, groups), range(dy.shape[2]), range(taps)
    ):
        h = p * s - a + r * d
        expected[n, k, p] += x[n, channel, h] * w[k, c, r] if 0 <= h < extent else 0
    equal(cuconv.conv(x, w, **options(geometry)), expected)


def test_convolution_is_correlation_with_flipped_filter():
    x, w = integers(1, 1, 1, 6, 7), integers(2, 1, 1, 3, 2)
    y = cuconv.conv(x, w, flip=True)
    equal(y[0, 0], signal.convolve2d(x[0, 0], w[0, 0], "valid"))
    equal(y, cuconv.conv(x, turned(w)))


def test_correlation_equals_convolution_only_for_symmetric_filters():
    impulse = np.zeros((1, 1, 5, 5), np.int64)
    impulse[0, 0, 2, 2] = 1
    w = integers(2, 1, 1, 3, 3)
    # An impulse shows the filter itself, so agreement on it is agreement on every input.
    equal(cuconv.conv(impulse, w, flip=True), w)
    equal(cuconv.conv(impulse, w), turned(w))
    assert (w != turned(w)).any()
    symmetric, x = w + turned(w), integers(1, 1, 1, 7, 6)
    equal(cuconv.conv(x, symmetric), cuconv.conv(x, symmetric, flip=True))


def test_convolution_commutes_and_correlation_is_reversed():
    a, b = integers(1, 1, 1, 4, 5), integers(2, 1, 1, 3, 2)
    full = functools.partial(cuconv.conv, padding="full")
    equal(full(a, b, flip=True), full(b, a, flip=True))
    equal(full(a, b), turned(full(b, a)))
    assert (full(a, b) != full(b, a)).any()


def test_output_extent_counts_the_places_of_the_filter():
    grid = itertools.product(range(1, 8), (1, 2, 3), (1, 2, 3), (1, 2), ((0, 0), (2, 1), (-1, 0)), (1,))
    for geometry in grid:
        x, w = np.zeros((1, 1, geometry[0])), np.zeros((1, 1, geometry[1]))
        if places(geometry) == 0:
            with pytest.raises(ValueError, match="no output"):
                cuconv.conv(x, w, **options(geometry))
            continue
        assert cuconv.conv(x, w, **options(geometry)).shape == (1, 1, places(geometry)), geometry


@pytest.mark.parametrize("sizes", [(7, 3, 1, 1), (8, 3, 2, 1), (9, 4, 3, 2), (9, 5, 1, 2)])
def test_named_paddings_give_their_extents(sizes):
    extent, taps, s, d = sizes
    x, w = np.zeros((1, 1, extent)), np.zeros((1, 1, taps))
    conv = functools.partial(cuconv.conv, x, w, dilation=d)
    assert conv(stride=s, padding="valid").shape[2] == places((extent, taps, s, d, (0, 0), 1))
    assert conv(stride=s, padding="same").shape[2] == -(-extent // s)
    assert conv(padding="full").shape[2] == extent + d * (taps - 1)
    if taps % 2:
        assert conv(padding=d * (taps - 1) // 2).shape[2] == extent


# -- 2. the gradients -------------------------------------------------------------------------------


@geometries
def test_gradients_are_difference_quotients(geometry):
    x, w, dy = operands(geometry)

    def loss(x, w):
        return (dy * cuconv.conv(x, w, **options(geometry))).sum()

    dx = cuconv.conv_input_grad(dy, w, x.shape, **options(geometry))
    dw = cuconv.conv_weight_grad(x, dy, w.shape, **options(geometry))
    equal(dx, differences(lambda moved: loss(moved, w), x))
    equal(dw, differences(lambda moved: loss(x, moved), w))


@geometries
def test_gradients_with_stride_dilation_padding_and_groups(geometry):
    x, w, dy = operands(geometry)
    (extent, taps, s, d, (a, _), groups), outputs = geometry, dy.shape[2]
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for n, (k, c, channel), r in itertools.product(range(2), channels(w, groups), range(taps)):
        for h in range(extent):
            p, rest = divmod(h + a - r * d, s)
            if rest == 0 and 0 <= p < outputs:
                dx[n, channel, h] += dy[n, k, p] * w[k, c, r]
        for p in range(outputs):
            h = p * s - a + r * d
            dw[k, c, r] += dy[n, k, p] * x[n, channel, h] if 0 <= h < extent else 0
    equal(cuconv.conv_input_grad(dy, w, x.shape, **options(geometry)), dx)
    equal(cuconv.conv_weight_grad(x, dy, w.shape, **options(geometry)), dw)


def test_input_grad_is_full_convolution_with_the_filter():
    w, dy = integers(2, 4, 3, 3, 2), integers(3, 2, 4, 5, 6)
    dx = cuconv.conv_input_grad(dy, w, (2, 3, 7, 7))
    for n, c in np.ndindex(2, 3):
        equal(dx[n, c], sum(signal.convolve2d(dy[n, k], w[k, c], "full") for k in range(4)))
        equal(dx[n, c], sum(signal.correlate2d(dy[n, k], turned(w[k, c]), "full") for k in range(4)))
    # The same as a forward call: channels exchanged, filters turned, every overlap kept.
    equal(dx, cuconv.conv(dy, turned(w).swapaxes(0, 1), padding="full"))


def test_transpose_of_valid_convolution_is_full_with_flipped_filter():
    w, dy = integers(2, 3), integers(3, 6)
    matrix = np.stack([np.convolve(unit, w, "valid") for unit in np.eye(8, dtype=np.int64)], axis=1)
    transposed = matrix.T @ dy
    equal(transposed, np.convolve(dy, w[::-1], "full"))
    equal(cuconv.conv_input_grad(dy[None], w[None, None], (1, 8), flip=True)[0], transposed)


def test_weight_grad_is_correlation_of_input_with_dy():
    x, dy = integers(1, 2, 3, 7, 7), integers(3, 2, 4, 5, 6)
    dw = cuconv.conv_weight_grad(x, dy, (4, 3, 3, 2))
    for k, c in np.ndindex(4, 3):
        equal(dw[k, c], sum(signal.correlate2d(x[n, c], dy[n, k], "valid") for n in range(2)))


def test_weight_grad_of_convolution_is_flipped_input_convolved_with_dy():
    x, dy = integers(1, 2, 3, 7, 7), integers(3, 2, 4, 5, 6)
    dw = cuconv.conv_weight_grad(x, dy, (4, 3, 3, 2), flip=True)
    for k, c in np.ndindex(4, 3):
        equal(dw[k, c], sum(signal.convolve2d(turned(x[n, c]), dy[n, k], "valid") for n in range(2)))


@geometries
def test_strided_input_grad_spreads_dy_with_zeros(geometry):
    x, w, dy = operands(geometry)
    (extent, taps, s, d, (a, _), groups), outputs = geometry, dy.shape[2]
    spread = np.zeros((*dy.shape[:2], (outputs - 1) * s + 1), dy.dtype)
    spread[..., ::s] = dy
    spread_w = np.zeros((*w.shape[:2], (taps - 1) * d + 1), w.dtype)
    spread_w[..., ::d] = w
    expected = np.zeros_like(x)
    for n, (k, c, channel) in itertools.product(range(2), channels(w, groups)):
        full = np.convolve(spread[n, k], spread_w[k, c], "full")
        for i, value in enumerate(full):
            if 0 <= i - a < extent:
                expected[n, channel, i - a] += value
    equal(cuconv.conv_input_grad(dy, w, x.shape, **options(geometry)), expected)


def test_weight_grad_exchanges_stride_and_dilation():
    x, dy = integers(1, 2, 3, 14), integers(3, 2, 4, 5)
    dw = cuconv.conv_weight_grad(x, dy, (4, 3, 3), stride=2, dilation=3, padding=1)
    exchanged = cuconv.conv(x.swapaxes(0, 1), dy.swapaxes(0, 1), stride=3, dilation=2, padding=1)
    # x is long enough for one place more than the filter has taps: the stride leaves its extent open.
    assert exchanged.shape == (3, 4, 3)
    equal(dw, exchanged.swapaxes(0, 1))


def test_groups_are_separate_convolutions():
    geometry = (9, 3, 2, 1, (1, 1), 2)
    x, w, dy = operands(geometry)
    halves = (slice(0, 2), slice(0, 3)), (slice(2, 4), slice(3, 6))
    alone = {**options(geometry), "groups": 1}
    y = cuconv.conv(x, w, **options(geometry))
    dx = cuconv.conv_input_grad(dy, w, x.shape, **options(geometry))
    dw = cuconv.conv_weight_grad(x, dy, w.shape, **options(geometry))
    for c, k in halves:
        equal(y[:, k], cuconv.conv(x[:, c], w[k], **alone))
        equal(dx[:, c], cuconv.conv_input_grad(dy[:, k], w[k], (2, 2, 9), **alone))
        equal(dw[k], cuconv.conv_weight_grad(x[:, c], dy[:, k], (3, 2, 3), **alone))


@pytest.mark.parametrize("make", [integers, gaussian_integers])
@geometries
def test_adjoint_identities(geometry, make):
    x, w, dy = operands(geometry, make)
    forward = np.vdot(dy, cuconv.conv(x, w, **options(geometry)))
    assert forward != 0
    assert forward == np.vdot(cuconv.conv_input_grad(dy, w, x.shape, **options(geometry)), x)
    assert forward == np.vdot(cuconv.conv_weight_grad(x, dy, w.shape, **options(geometry)), w)


@geometries
def test_complex_gradients_conjugate_the_other_operand(geometry):
    x, w, dy = operands(geometry, gaussian_integers)

    def loss(x, w):
        return np.vdot(dy, cuconv.conv(x, w, **options(geometry))).real

    def gradient(function, a):
        return differences(function, a, 1) + 1j * differences(function, a, 1j)

    dx = cuconv.conv_input_grad(dy, w, x.shape, **options(geometry))
    dw = cuconv.conv_weight_grad(x, dy, w.shape, **options(geometry))
    equal(dx, gradient(lambda moved: loss(moved, w), x))
    equal(dw, gradient(lambda moved: loss(x, moved), w))


def convolution_matrix(extent, filter, s, d, a, outputs):
    """A of y = A x for one channel, from the definition."""
    matrix = np.zeros((outputs, extent), filter.dtype)
    for p, (r, value) in itertools.product(range(outputs), enumerate(filter)):
        if 0 <= p * s - a + r * d < extent:
            matrix[p, p * s - a + r * d] += value
    return matrix


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_transposed_convolution_is_the_transposed_matrix(extra):
    (outputs, taps, s, d, a), extent = (4, 3, 3, 2, 1), 3 * 3 + 2 * 2 + 1 - 2 + extra
    x, w = gaussian_integers(1, outputs), gaussian_integers(2, taps)
    y = cuconv.conv_transpose(x[None], w[None, None], None, s, a, extra, 1, d)
    assert y.shape == (1, extent)
    equal(y[0], convolution_matrix(extent, w, s, d, a, outputs).T @ x)


def test_transposed_convolution_is_the_input_gradient_without_conjugation():
    dy, w = gaussian_integers(3, 2, 6, 5), gaussian_integers(2, 6, 4, 3)
    y = cuconv.conv_transpose(dy, w, stride=2, padding=1)
    equal(y, cuconv.conv_input_grad(dy, w.conj(), (2, 4, 9), stride=2, padding=1))
    assert (y != cuconv.conv_input_grad(dy, w, (2, 4, 9), stride=2, padding=1)).any()


def test_gradients_of_the_transposed_convolution():
    x, w = gaussian_integers(1, 2, 6, 5), gaussian_integers(2, 6, 2, 3)
    options = dict(stride=2, padding=1, groups=2, dilation=2)
    y = cuconv.conv_transpose(x, w, **options)
    dy = gaussian_integers(3, *y.shape)
    dx, dw, db = cuconv.conv_transpose_backward(dy, x, w, **options)
    equal(dx, cuconv.conv(dy, w.conj(), **options))
    equal(dw, cuconv.conv_weight_grad(dy, x, w.shape, **options).conj())
    # A linear map gains by a step of 1 what the gradient says, in either part of either operand.
    for operand, gradient, forward in (
        (x, dx, lambda moved: cuconv.conv_transpose(moved, w, **options)),
        (w, dw, lambda moved: cuconv.conv_transpose(x, moved, **options)),
    ):
        for step, part in ((1, gradient.real), (1j, gradient.imag)):
            equal(
                differences(lambda moved, forward=forward: np.vdot(dy, forward(moved)).real, operand, step),
                part,
            )
    equal(db, dy.sum(axis=(0, 2)))


# -- 3. the bias ------------------------------------------------------------------------------------


def test_bias_gradient_sums_over_images_and_pixels():
    x, w, bias, dy = integers(1, 2, 3, 6, 5), integers(2, 4, 3, 3, 2), integers(4, 4), integers(3, 2, 4, 4, 4)
    quotient = differences(lambda moved: (dy * cuconv.conv(x, w, moved)).sum(), bias)
    sums = [sum(int(value) for value in dy[:, k].flat) for k in range(4)]
    equal(quotient, sums)
    equal(cuconv.conv_bias_grad(dy), sums)


def test_all_three_gradients_in_one_call():
    x, w, dy = integers(1, 1, 1, 6, 5), integers(2, 1, 1, 3, 2), integers(3, 1, 1, 4, 4)
    dx, dw, db = cuconv.conv_backward(dy, x, w)
    equal(dx[0, 0], signal.convolve2d(dy[0, 0], w[0, 0], "full"))
    equal(dw[0, 0], signal.correlate2d(x[0, 0], dy[0, 0], "valid"))
    equal(db, [dy.sum()])


# -- 4. the lowering --------------------------------------------------------------------------------


def seen(geometry):
    """(p, r, h) for every output, tap and the input cell that they join."""
    extent, taps, s, d, (a, _), _ = geometry
    for p, r in itertools.product(range(places(geometry)), range(taps)):
        if 0 <= p * s - a + r * d < extent:
            yield p, r, p * s - a + r * d


def im2col(x, geometry):
    """X[(c r), (n p)] = x[n, c, p s - a + r d]."""
    images, depth, _ = x.shape
    lowered = np.zeros((depth, geometry[1], images, places(geometry)), x.dtype)
    for p, r, h in seen(geometry):
        lowered[:, r, :, p] = x[:, :, h].T
    return lowered.reshape(depth * geometry[1], -1)


def col2im(lowered, geometry, images):
    """Every entry of a matrix like X, added to the cell of x that it was read from."""
    lowered = lowered.reshape(-1, geometry[1], images, places(geometry))
    x = np.zeros((images, lowered.shape[0], geometry[0]), lowered.dtype)
    for p, r, h in seen(geometry):
        x[:, :, h] += lowered[:, r, :, p].T
    return x


def as_rows(y):
    """y (N, K, P) as the matrix Y (K, N P)."""
    return y.swapaxes(0, 1).reshape(y.shape[1], -1)


UNGROUPED = pytest.mark.parametrize("geometry", [(*geometry[:5], 1) for geometry in GEOMETRIES])


def test_matrix_product_derivatives():
    a, b = integers(1, 3, 4), integers(2, 4, 5)

    def error(a, b):
        return ((a @ b) ** 2).sum()

    def central(function, m):
        # For a polynomial of the second degree the central difference is exact.
        return (differences(function, m, 1) - differences(function, m, -1)) / 2

    slope = 2 * (a @ b)
    equal(central(lambda moved: error(moved, b), a), slope @ b.T)
    equal(central(lambda moved: error(a, moved), b), a.T @ slope)
    # A filter of one cell makes a convolution out of a product: b is one image of 4 channels.
    equal(cuconv.conv_weight_grad(b, slope, (3, 4, 1))[..., 0], slope @ b.T)
    equal(cuconv.conv_input_grad(slope, a[..., None], (4, 5)), a.T @ slope)


@UNGROUPED
def test_convolution_is_the_product_of_filters_and_columns(geometry):
    x, w, _ = operands(geometry)
    y = cuconv.conv(x, w, **options(geometry), algorithm="gemm")
    equal(as_rows(y), w.reshape(6, -1) @ im2col(x, geometry))


@UNGROUPED
def test_weight_grad_is_dy_times_transposed_columns(geometry):
    x, w, dy = operands(geometry)
    dw = cuconv.conv_weight_grad(x, dy, w.shape, **options(geometry), algorithm="gemm")
    equal(dw.reshape(6, -1), as_rows(dy) @ im2col(x, geometry).T)


@UNGROUPED
def test_input_grad_is_col2im_of_transposed_filters_times_dy(geometry):
    x, w, dy = operands(geometry)
    dx = cuconv.conv_input_grad(dy, w, x.shape, **options(geometry), algorithm="gemm")
    equal(dx, col2im(w.reshape(6, -1).T @ as_rows(dy), geometry, 2))


@UNGROUPED
def test_col2im_is_the_transpose_of_im2col(geometry):
    extent, taps = geometry[:2]
    units = np.eye(2 * extent, dtype=np.int64).reshape(-1, 1, 2, extent)
    lowering = np.stack([im2col(unit, geometry).ravel() for unit in units], axis=1)
    assert set(np.unique(lowering)) == {0, 1}
    assert lowering.sum(axis=1).max() == 1
    entries = integers(5, lowering.shape[0])
    back = col2im(entries, geometry, 1)
    equal(back.ravel(), lowering.T @ entries)
    # One filter per cell of the window makes `conv` the lowering itself, and its gradient col2im.
    each = np.eye(2 * taps, dtype=np.int64).reshape(2 * taps, 2, taps)
    x, rows = integers(1, 1, 2, extent), entries.reshape(1, 2 * taps, -1)
    equal(cuconv.conv(x, each, **options(geometry)).ravel(), lowering @ x.ravel())
    equal(cuconv.conv_input_grad(rows, each, x.shape, **options(geometry)), back)


@UNGROUPED
def test_input_grad_is_also_one_product_of_gathered_dy(geometry):
    (extent, taps, *_), (x, w, dy) = geometry, operands(geometry)
    gathered = np.zeros((2, extent, 6, taps), dy.dtype)
    for p, r, h in seen(geometry):
        gathered[:, h, :, r] = dy[:, :, p]
    product = gathered.reshape(2 * extent, 6 * taps) @ w.transpose(0, 2, 1).reshape(6 * taps, 4)
    dx = cuconv.conv_input_grad(dy, w, x.shape, **options(geometry))
    equal(dx.swapaxes(1, 2).reshape(2 * extent, 4), product)


@UNGROUPED
def test_gemm_sizes_are_those_of_the_matrices(geometry):
    (extent, taps, *_), (x, w, dy) = geometry, operands(geometry)
    problem = cuconv.ConvProblem.from_shapes(x.shape, w.shape, **options(geometry))
    (rows, pixels), inner = as_rows(dy).shape, im2col(x, geometry).shape[0]
    assert problem.gemm("fprop") == (pixels, rows, inner)
    assert problem.gemm("wgrad") == (rows, inner, pixels)
    assert problem.gemm("dgrad") == (2 * extent, 4, 6 * taps)


# -- 5. circular convolution and the Fourier transform ----------------------------------------------


def circular_convolution(f, g):
    """The sum over m of f(m) g(n - m), indices modulo the common length."""
    length = len(f)
    return np.array([sum(f[m] * g[(n - m) % length] for m in range(length)) for n in range(length)])


def around(x, w, pair, **kwargs):
    """conv of one signal with one filter, the ends joined."""
    return cuconv.conv(x[None], w[None, None], padding=[pair], padding_mode="circular", **kwargs)[0]


def behind(a, length):
    """The signal with zeros behind it up to a length."""
    return np.pad(a, (0, length - len(a)))


@pytest.mark.parametrize("make", [integers, gaussian_integers])
@pytest.mark.parametrize("taps", [1, 3, 8])
def test_circular_convolution_theorem(make, taps):
    x, w = make(1, 8), make(2, taps)
    expected = circular_convolution(x, behind(w, 8))
    equal(around(x, w, (taps - 1, 0), flip=True), expected)
    close(np.fft.fft(expected), np.fft.fft(x) * np.fft.fft(w, 8), atol=1e-10)


@pytest.mark.parametrize("make", [integers, gaussian_integers])
def test_circular_correlation_conjugates_the_spectrum_of_the_filter(make):
    x, w = make(1, 8), make(2, 3)
    y = around(x, w, (0, 2))
    equal(y, [sum(x[(p + r) % 8] * w[r] for r in range(3)) for p in range(8)])
    # `conv` does not conjugate a complex filter, so the conjugate of w's own conjugate is what turns it.
    close(np.fft.fft(y), np.fft.fft(x) * np.fft.fft(w.conj(), 8).conj(), atol=1e-10)


def test_gradients_in_the_frequency_domain():
    x, w, dy = (integers(1, 8), integers(2, 3), integers(3, 8))
    spectrum_x, spectrum_w, spectrum_dy = np.fft.fft(x), np.fft.fft(w, 8), np.fft.fft(dy)
    circular = {"padding": [(0, 2)], "padding_mode": "circular"}
    dx = cuconv.conv_input_grad(dy[None], w[None, None], (1, 8), **circular)[0]
    dw = cuconv.conv_weight_grad(x[None], dy[None], (1, 1, 3), **circular)[0, 0]
    close(dx, np.fft.ifft(spectrum_dy * spectrum_w).real, atol=1e-10)
    close(dw, np.fft.ifft(spectrum_x * spectrum_dy.conj()).real[:3], atol=1e-10)


@pytest.mark.parametrize("length", range(6, 12))
def test_circular_result_is_the_linear_one_folded(length):
    x, w = integers(1, 6), integers(2, 4)
    linear = np.convolve(x, w, "full")
    folded = np.zeros(length, np.int64)
    for n, value in enumerate(linear):
        folded[n % length] += value
    circular = around(behind(x, length), w, (3, 0), flip=True)
    equal(circular, folded)
    # 6 + 4 - 1 cells are the fewest that keep the ends apart.
    assert np.array_equal(circular, behind(linear, max(length, 9))[:length]) == (length >= 9)


def test_zero_padding_makes_the_transform_linear():
    x, w = reals(1, 1, 1, 6, 7), reals(2, 1, 1, 4, 3)
    shape = (6 + 4 - 1, 7 + 3 - 1)
    product = np.fft.rfft2(x[0, 0], shape) * np.fft.rfft2(w[0, 0], shape)
    linear = np.fft.irfft2(product, shape)
    close(linear, signal.convolve2d(x[0, 0], w[0, 0], "full"))
    close(cuconv.conv(x, w, padding="full", flip=True, algorithm="fft")[0, 0], linear)


def test_valid_cells_survive_folding():
    x, w = integers(1, 8), integers(2, 3)
    folded = np.fft.ifft(np.fft.fft(x) * np.fft.fft(w, 8)).real
    full = np.convolve(x, w, "full")
    close(folded[2:], np.convolve(x, w, "valid"), atol=1e-10)
    assert abs(folded[:2] - full[:2]).min() > 0.5
    y = cuconv.conv(x[None].astype(float), w[None, None].astype(float), flip=True, algorithm="fft")
    close(y[0], folded[2:], atol=1e-10)


# -- 6. the worked example --------------------------------------------------------------------------

EXAMPLE = DOCUMENT[DOCUMENT.index("\n## 6.") : DOCUMENT.index("\n## 7.")]


def example(x, w, dy):
    """The example's three results, by the library."""
    dx, dw, _ = cuconv.conv_backward(dy[None], x[None], w[None, None])
    return {"y": cuconv.conv(x[None], w[None, None])[0], "dw": dw[0, 0], "dx": dx[0]}


@pytest.mark.parametrize(("name", "shape"), [("y", (2, 2)), ("dw", (2, 2)), ("dx", (3, 3))])
def test_worked_example_formulas_as_printed(name, shape):
    given = {"x": integers(1, 3, 3), "w": integers(2, 2, 2), "dy": integers(3, 2, 2)}
    printed = re.findall(rf"^{name}_{{(\d)(\d)}} &= (.*?)(?: \\cr)?$", EXAMPLE, re.MULTILINE)
    assert len(printed) == shape[0] * shape[1]
    result = np.full(shape, 10**6)
    for row, column, terms in printed:
        factors = [re.findall(r"(\w+)_{(\d)(\d)}", term) for term in terms.split("+")]
        result[int(row) - 1, int(column) - 1] = sum(
            np.prod([given[letter][int(i) - 1, int(j) - 1] for letter, i, j in term]) for term in factors
        )
    equal(result, example(**given)[name])


def test_worked_example_numbers_as_printed():
    matrices = {}
    for name, body in re.findall(r"(\w+) = \\begin{pmatrix}(.*?)\\end{pmatrix}", EXAMPLE, re.DOTALL):
        matrices[name] = np.array([[int(cell) for cell in row.split("&")] for row in body.split(r"\cr")])
    assert set(matrices) == {"x", "w", "dy", "y", "dw", "dx"}
    for name, result in example(matrices["x"], matrices["w"], matrices["dy"]).items():
        equal(matrices[name], result)
    assert matrices["dx"].sum() == matrices["dy"].sum() * matrices["w"].sum()


# -- 7. padding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [(2, 1), (0, 3), (6, 5)])
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_padding_is_a_matrix_and_its_transpose_folds_back(mode, pair):
    x, w = integers(1, 1, 4), integers(2, 1, 1, 3)
    padder = np.pad(np.eye(4, dtype=np.int64), (pair, (0, 0)), mode=MODES[mode])
    y = cuconv.conv(x, w, padding=[pair], padding_mode=mode)
    equal(y[0], np.correlate(padder @ x[0], w[0, 0], "valid"))
    dy = integers(3, *y.shape)
    dx = cuconv.conv_input_grad(dy, w, x.shape, padding=[pair], padding_mode=mode)
    equal(dx[0], padder.T @ np.convolve(dy[0], w[0, 0], "full"))
    dw = cuconv.conv_weight_grad(x, dy, w.shape, padding=[pair], padding_mode=mode)
    equal(dw[0, 0], np.correlate(padder @ x[0], dy[0], "valid"))


@pytest.mark.parametrize("extent", [1, 2, 5])
@pytest.mark.parametrize(("mode", "both"), [("reflect", 0), ("symmetric", -1)])
def test_mirror_images_by_formula(mode, both, extent):
    """A coordinate and its mirror image are `both` together."""
    period, positions = max(2 * extent - 2 - 2 * both, 1), range(-17, extent + 16)
    copied = [min(h % period, period + both - h % period) for h in positions]
    given = {"padding": [(17, 16)], "padding_mode": mode}
    x, w = integers(1, 1, extent), np.ones((1, 1, 1), np.int64)
    equal(cuconv.conv(x, w, **given)[0], x[0, copied])
    dy = integers(3, 1, len(positions))
    shown = [
        {cell + j * period for j in range(-20, 20)} | {both - cell + j * period for j in range(-20, 20)}
        for cell in range(extent)
    ]
    expected = [sum(dy[0, h + 17] for h in cells if h in positions) for cells in shown]
    equal(cuconv.conv_input_grad(dy, w, x.shape, **given)[0], expected)


@pytest.mark.parametrize(
    ("arguments", "unseen"),
    [
        ({"stride": 3}, [2, 5, 8, 9]),
        ({"dilation": 9}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"padding": [(-2, -1)]}, [0, 1, 9]),
    ],
)
def test_cells_that_no_output_sees_get_zero(arguments, unseen):
    w = np.ones((1, 1, 2), np.int64)
    outputs = cuconv.conv(np.zeros((1, 10), np.int64), w, **arguments).shape
    dx = cuconv.conv_input_grad(np.ones(outputs, np.int64), w, (1, 10), **arguments)
    assert np.flatnonzero(dx[0] == 0).tolist() == unseen


# -- 8. pooling and ReLU ----------------------------------------------------------------------------


def windows(extent, taps, s):
    return [range(p * s, p * s + taps) for p in range((extent - taps) // s + 1)]


def test_max_pool_gradient_goes_to_the_winner():
    # Distinct even numbers: a step of 1 never changes the winner, so the difference quotient is exact.
    x = 2.0 * np.random.default_rng(1).permutation(49).reshape(1, 1, 7, 7)
    pool, dy = cuconv.nn.MaxPool(3, stride=2), integers(3, 1, 1, 3, 3).astype(float)
    expected = [[x[0, 0][np.ix_(i, j)].max() for j in windows(7, 3, 2)] for i in windows(7, 3, 2)]
    equal(pool.forward(x)[0, 0], expected)
    equal(pool.backward(dy), differences(lambda moved: (dy * cuconv.nn.MaxPool(3, 2)(moved)).sum(), x))


def test_max_pool_gives_a_tie_to_the_first_cell():
    pool = cuconv.nn.MaxPool(2, rank=1)
    equal(pool.forward(np.array([[[3.0, 3.0, 1.0, 2.0]]])), [[[3, 2]]])
    equal(pool.backward(np.array([[[5.0, 7.0]]])), [[[5, 0, 0, 7]]])


def test_average_pool_is_a_convolution_with_a_constant_filter():
    x, dy = reals(1, 2, 3, 7, 7), reals(3, 2, 3, 3, 3)
    pool, w = cuconv.nn.AvgPool(3, stride=2), np.full((3, 1, 3, 3), 1 / 9)
    y, dx, expected = pool.forward(x), pool.backward(dy), np.zeros_like(x)
    for (p, i), (q, j) in itertools.product(enumerate(windows(7, 3, 2)), repeat=2):
        at = (slice(None), slice(None), slice(i.start, i.stop), slice(j.start, j.stop))
        close(y[:, :, p, q], x[at].mean(axis=(2, 3)))
        expected[at] += dy[:, :, p, q, None, None] / 9
    close(dx, expected)
    close(cuconv.conv(x, w, stride=2, groups=3), y)
    close(cuconv.conv_input_grad(dy, w, x.shape, stride=2, groups=3), dx)


def test_relu_gradient_is_masked_by_the_sign_of_the_input():
    x, dy = np.array([-2.0, -0.5, 0.0, 0.5, 3.0]), np.array([3.0, 5.0, 7.0, 11.0, 13.0])
    layer = cuconv.nn.ReLU()
    equal(layer.forward(x), [0, 0, 0, 0.5, 3])
    equal(layer.backward(dy), [0, 0, 0, 11, 13])
    # Away from the corner it is the derivative; at the corner it is the one from the left.
    from_the_left = differences(lambda moved: (dy * cuconv.nn.ReLU()(moved)).sum(), x, -0.25) / -0.25
    equal(layer.backward(dy), from_the_left)


def test_slopes_of_the_activations():
    z = np.linspace(-4, 4, 17) + 1 / 32

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    formulas = {
        "relu": lambda z: np.where(z.real > 0, z, 0),
        "sigmoid": sigmoid,
        "tanh": np.tanh,
        "silu": lambda z: z * sigmoid(z),
        "gelu": lambda z: z * special.erfc(-z / np.sqrt(2)) / 2,
    }
    assert (None, *formulas) == ACTIVATIONS
    for name, formula in formulas.items():
        slope = complex_step(lambda moved, formula=formula: formula(moved).sum(), z)
        close(cuconv.activation_backward(np.ones(17), name, pre_activation=z), slope)
        if name not in ("silu", "gelu"):
            close(cuconv.activation_backward(np.ones(17), name, y=formula(z)), slope)


# -- 9. the sigmoid and the squared loss ------------------------------------------------------------


def chain(x, w, target, divisor=1):
    """L for one image, written out so that it takes a complex filter too."""
    height, width = x.shape[0] - w.shape[0] + 1, x.shape[1] - w.shape[1] + 1
    total = 0
    for p, q in np.ndindex(height, width):
        z = (x[p : p + w.shape[0], q : q + w.shape[1]] * w).sum() / divisor
        total = total + (1 / (1 + np.exp(-z)) - target[p, q]) ** 2
    return total


def chain_gradient(x, w, target, divisor=1):
    """The formula of the text, by the library."""
    o = 1 / (1 + np.exp(-cuconv.conv(x[None], w[None, None]) / divisor))
    dz = 2 * (o - target) * o * (1 - o)
    return cuconv.conv_weight_grad(x[None], dz, (1, 1, *w.shape))[0, 0]


def test_sigmoid_slope():
    x = np.linspace(-6, 6, 13)
    layer = cuconv.nn.Sigmoid()
    close(layer.forward(x), 1 / (1 + np.exp(-x)))
    close(layer.backward(np.ones(13)), complex_step(lambda moved: (1 / (1 + np.exp(-moved))).sum(), x))


def test_squared_error_slope():
    o, target = reals(1, 3, 4), reals(2, 3, 4)
    slope = complex_step(lambda moved: ((moved - target) ** 2).sum(), o)
    for reduction, cells in (("sum", 1), ("mean", 12)):
        loss = cuconv.nn.SquaredError(reduction)
        squares = [(a - b) ** 2 for a, b in zip(o.flat, target.flat, strict=True)]
        close(loss.forward(o, target), sum(squares) / cells)
        close(loss.backward(), slope / cells)


def test_kernel_gradient_of_the_sigmoid_chain():
    x, w, target = reals(1, 3, 3), reals(2, 2, 2), reals(3, 2, 2)
    slope = complex_step(lambda moved: chain(x, moved, target), w)
    close(chain_gradient(x, w, target), slope)
    network = cuconv.nn.Sequential(cuconv.nn.Conv(1, 1, 2, bias=False), cuconv.nn.Sigmoid())
    network.parts[0].parameters["w"] = w[None, None]
    loss = cuconv.nn.SquaredError("sum")
    close(loss.forward(network.forward(x[None, None]), target[None, None]), chain(x, w, target))
    network.backward(loss.backward())
    close(network.parts[0].gradients["w"][0, 0], slope)


def test_dividing_by_the_area_divides_the_derivative_too():
    x, w, target = reals(1, 3, 3), reals(2, 2, 2), reals(3, 2, 2)
    slope = complex_step(lambda moved: chain(x, moved, target, divisor=4), w)
    close(chain_gradient(x, w, target, divisor=4) / 4, slope)
    assert abs(chain_gradient(x, w, target, divisor=4) - slope).min() > 1e-3


def test_gradient_descent_recovers_the_filter():
    # The program is the one that the document prints.
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    names = {}
    exec(program, names)
    assert names["w"] is not names["secret"]
    np.testing.assert_allclose(names["w"], names["secret"], rtol=1e-6)


# -- the document -----------------------------------------------------------------------------------


@geometries
def test_residues_of_the_stride_are_dense_correlations(geometry):
    extent, taps, s, d, (before, _), groups = geometry
    c, k = 2, 3
    w, x_shape = integers(0, k * groups, c, taps), (2, c * groups, extent)
    dy = integers(1, 2, k * groups, places(geometry))
    dx = np.zeros(x_shape, int)
    common = math.gcd(s, d)
    for residue in range(s):
        meeting = [r for r in range(taps) if (residue + before - r * d) % s == 0]
        for i, r in enumerate(meeting):
            assert r == meeting[0] + i * (s // common)
            for j, h in enumerate(range(residue, extent, s)):
                p = (residue + before - meeting[0] * d) // s + j - i * (d // common)
                if 0 <= p < dy.shape[2]:
                    for group in range(groups):
                        own = slice(group * k, group * k + k)
                        dx[:, group * c : group * c + c, h] += dy[:, own, p] @ w[own, :, r]
    equal(cuconv.conv_input_grad(dy, w, x_shape, **options(geometry)), dx)
    with emulator.emulated():
        for algorithm in ("simt", "direct"):
            equal(cuconv.conv_input_grad(dy, w, x_shape, **options(geometry), algorithm=algorithm), dx)


def test_document_and_tests_agree():
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT))
    assert named == {name for name in globals() if name.startswith("test_")}
    paths = set(re.findall(r"\bcuconv((?:\.\w+)+)", DOCUMENT))
    assert ".conv" in paths
    for path in paths:
        assert functools.reduce(getattr, path[1:].split("."), cuconv) is not None
