"""Padding: modes against numpy.pad, names, cropping, and what happens at the edges."""

import numpy as np
import pytest
from scipy import ndimage, signal

import cuconv
from cuconv.cli import check, oracle
from cuconv.problem import LAYOUTS, MODES_ELSEWHERE, PADDING_MODES

from . import cases, emulator

MODES = {
    "zeros": "constant",
    "circular": "wrap",
    "reflect": "reflect",
    "replicate": "edge",
    "symmetric": "symmetric",
}
ZERO = {"zeros": {"constant_values": -1}}


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("pairs", [((1, 2), (3, 0)), ((9, 7), (8, 11)), ((0, 0), (0, 5))])
def test_modes_are_those_of_numpy_pad(mode, pairs):
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 9, (2, 3, 4, 5)), rng.integers(-9, 9, (4, 3, 3, 2))
    padded = np.pad(x, ((0, 0), (0, 0), *pairs), MODES[mode])
    expected = cuconv.conv(padded, w)
    np.testing.assert_array_equal(cuconv.conv(x, w, padding=pairs, padding_mode=mode), expected)


@pytest.mark.parametrize(
    ("word", "whose", "mode"),
    [
        *((word, *meant) for word, meant in MODES_ELSEWHERE.items()),
        ("reflect", "NumPy's", "reflect"),
        ("reflect", "SciPy's", "symmetric"),
    ],
)
def test_words_of_other_libraries_mean_these_modes(word, whose, mode):
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 9, (5, 6)), rng.integers(-9, 9, (7, 5))
    y = cuconv.conv(x[None], w[None, None], padding=(3, 2), padding_mode=mode)[0]
    if "NumPy's" in whose:
        padded = np.pad(x, ((3, 3), (2, 2)), word)
        np.testing.assert_array_equal(signal.correlate2d(padded, w, "valid"), y)
    if "SciPy's" in whose and word in ("fill", "wrap", "symm"):
        np.testing.assert_array_equal(signal.correlate2d(x, w, "same", word), y)
    if "SciPy's" in whose and word not in ("fill", "symm"):
        np.testing.assert_array_equal(ndimage.correlate(x, w, mode=word), y)


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_those_who_judge_results_know_every_mode(mode):
    for extent, pair in ((5, (4, 3)), (1, (2, 6)), (3, (11, 13))):
        problem = cuconv.ConvProblem(1, 1, 1, (extent,), (3,), (1,), (2,), (pair,), 1, mode)
        shown = np.pad(np.arange(extent), pair, MODES[mode], **ZERO.get(mode, {}))
        expected = [[shown[p + 2 * r] for r in range(3)] for p in range(problem.output[0])]
        np.testing.assert_array_equal(oracle._axis_cells(problem, 0), expected)
        cells = check.PlainEvaluation(problem).cell
        np.testing.assert_array_equal(np.where(cells == extent, -1, cells), expected)


@pytest.mark.parametrize("run", [None, emulator.run], ids=["cpu", "cuda"])
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize(
    "line",
    [
        "n2c1w1 k2s3 p4:7",
        "n2c2w5 k4s2 g2 sw2 p23:-2",
        "n1c2h3w4 k2r2s3 sh1sw2 ph-1:13pw9:8",
        "n1c2d1h2w3 k2t2r2s1 g2 pd3:0ph-1:9pw7:-2",
    ],
)
def test_padding_many_times_as_wide_as_the_image(line, mode, run):
    """Each op against the oracle, bit for bit, with cropped axes and axes of one cell among them."""
    problem = cuconv.ConvProblem.parse(f"{line} {mode}")
    for layout in LAYOUTS:
        cases.check(cases.Case(problem, layout=layout), run=run)


def test_negative_padding_crops():
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 9, (2, 3, 9, 8)), rng.integers(-9, 9, (4, 3, 3, 2))
    cropped = cuconv.conv(x[:, :, 1:-2, 3:], w)
    np.testing.assert_array_equal(cuconv.conv(x, w, padding=((-1, -2), (-3, 0))), cropped)
    dx = cuconv.conv_input_grad(cropped, w, x.shape, padding=((-1, -2), (-3, 0)))
    assert not dx[:, :, 0].any()
    assert not dx[:, :, -2:].any()
    assert not dx[..., :3].any()


def test_circular_is_the_product_of_spectra():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 1, 12)), rng.standard_normal((1, 1, 12))
    y = cuconv.conv(x, w, padding=[(11, 0)], padding_mode="circular", flip=True)
    expected = np.fft.ifft(np.fft.fft(x) * np.fft.fft(w)).real
    np.testing.assert_allclose(y, expected, atol=1e-13)


def test_full_with_flip_is_numpy_convolve():
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 9, 7), rng.integers(-9, 9, 4)
    y = cuconv.conv(x[None, None], w[None, None], padding="full", flip=True)[0, 0]
    np.testing.assert_array_equal(y, np.convolve(x, w))


def test_cells_that_no_output_sees_get_zero():
    dy, w = np.ones((1, 1, 2)), np.ones((1, 1, 2))
    dx = cuconv.conv_input_grad(dy, w, (1, 1, 9), stride=4)
    np.testing.assert_array_equal(dx[0, 0], [1, 1, 0, 0, 1, 1, 0, 0, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_zero_size_batches_and_channels(dtype):
    x, w, bias = np.ones((0, 3, 5, 5), dtype), np.ones((4, 3, 2, 2), dtype), np.arange(4).astype(dtype)
    assert cuconv.conv(x, w, bias).shape == (0, 4, 4, 4)
    dx, dw, db = cuconv.conv_backward(np.ones((0, 4, 4, 4), dtype), x, w)
    assert dx.shape == x.shape
    assert not dw.any()
    assert not db.any()
    no_channels = cuconv.conv(np.ones((2, 0, 5, 5), dtype), np.ones((4, 0, 2, 2), dtype), bias)
    np.testing.assert_array_equal(no_channels, np.broadcast_to(bias[:, None, None], (2, 4, 4, 4)))
    assert cuconv.conv(x[:, :0], np.ones((0, 0, 2, 2), dtype)).shape == (0, 0, 4, 4)


def test_empty_input_axis_under_padding():
    x, w, bias = np.ones((2, 3, 0)), np.ones((4, 3, 2)), np.arange(4.0)
    y = cuconv.conv(x, w, bias, padding=1)
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None], (2, 4, 1)))
    assert cuconv.conv_input_grad(y, w, x.shape, padding=1).shape == (2, 3, 0)
    assert not cuconv.conv_weight_grad(x, y, w.shape, padding=1).any()


def test_bias_grad_over_no_pixels_is_zero():
    np.testing.assert_array_equal(cuconv.conv_bias_grad(np.ones((3, 4, 0))), np.zeros(4))
    np.testing.assert_array_equal(cuconv.conv_bias_grad(np.ones((0, 4, 5))), np.zeros(4))


@pytest.mark.parametrize("algorithm", ["auto", "gemm"])
def test_not_a_number_travels_only_where_the_filter_reaches(algorithm):
    x, w = np.zeros((1, 1, 9, 9)), np.ones((1, 1, 3, 3))
    x[0, 0, 4, 4] = np.nan
    y = cuconv.conv(x, w, padding=1, algorithm=algorithm)
    assert np.isnan(y).sum() == 9
