"""Padding: modes against numpy.pad, names, cropping, and what happens at the edges."""

import dataclasses
import itertools
from unittest import mock

import numpy as np
import pytest
from scipy import ndimage, signal

import cuconv
from cuconv import cuda
from cuconv.cli import check, oracle
from cuconv.plan import make_plan
from cuconv.problem import LAYOUTS, MODES_ELSEWHERE, PADDING_MODES, Request

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


# Filters larger than the input, strides, dilation, groups; and how deep padding is on each axis: 1 is as deep
# as is read without a padded copy, 0 none, -1 a cell cropped.
NEAR = {
    "n2c3w6 k7s4 dw3 p9": ((1, 1),),
    "n2c4h4w3 k6r5s2 g2 sh2sw1 p9": ((1, 1), (-1, 1)),
    "n1c24h5w4 k8r3s3 sh1sw2 p9": ((0, 1), (1, 0)),
    "n1c2d2h3w4 k3t2r2s3 dd1dh2dw1 p9": ((1, 0), (0, 1), (1, -1)),
}
READERS = (
    ("simt", "float32", None),
    ("mma", "float16", None),
    ("mma", "float32", "tf32"),
    ("mma", "float64", None),
)


def near(line, mode, more=0):
    """The problem padded as deep as NEAR says, and so many cells more."""
    problem = cuconv.ConvProblem.parse(line)
    deepest = [2 * h if mode == "replicate" else h - (mode == "reflect") for h in problem.input]
    pairs = [
        tuple(d + more if side > 0 else side for side in sides)
        for d, sides in zip(deepest, NEAR[line], strict=True)
    ]
    return dataclasses.replace(problem, padding=tuple(pairs), padding_mode=mode)


def templates_of(check, *arguments):
    """The kernels that are launched by it."""
    seen, run_plan = [], emulator.ops.run_plan

    def recorded(launches, *arguments, **options):
        seen.extend(launch.kernel.template for launch in launches)
        run_plan(launches, *arguments, **options)

    with mock.patch.object(emulator.ops, "run_plan", recorded):
        check(*arguments)
    return seen


@pytest.mark.parametrize("mode", PADDING_MODES[1:])
@pytest.mark.parametrize("line", NEAR)
def test_what_padding_shows_is_read_from_the_input(line, mode):
    """By every algorithm that does so, in both layouts, bit for bit; a cell deeper from a padded copy."""
    for (algorithm, dtype, precision), layout, size in itertools.product(READERS, LAYOUTS, (1, 2000)):
        for more in (0, 1) if size == 1 else (0,):
            case = cases.Case(
                near(line, mode, more), dtype, layout, bias=True, precision=precision, workspace=size
            )
            with cases.workspace(size):
                ops = [op for op in ("fprop", "wgrad") if cases.applies(case, algorithm, op, "cuda")]
                requests = [Request(op, case.problem, dtype, layout, precision=precision) for op in ops]
                reads = [getattr(cuda, algorithm).reads_padding(request) for request in requests]
            copies = templates_of(cases.check, case, algorithm, emulator.run, ops).count("conv_pad")
            assert copies == reads.count(False)
            if layout == "channels_first" and ops:
                assert all(reads) == (not more or mode == "replicate"), (algorithm, dtype)


@pytest.mark.parametrize(
    ("line", "op", "dtype", "layout", "algorithm", "copied"),
    [
        ("n8c64h9w9 k64r3s3 p1 circular", "fprop", "float32", "channels_first", "simt", False),
        ("n8c64h9w9 k64r3s3 p1 circular", "wgrad", "float32", "channels_last", "simt", False),
        ("n8c64h9w9 k64r3s3 p1 circular", "fprop", "float16", "channels_last", "mma", False),
        ("n8c64h9w9 k64r3s3 p1 circular", "wgrad", "float64", "channels_last", "mma", False),
        ("n8c64h9w9 k64r3s3 ph9pw0 circular", "fprop", "float16", "channels_last", "mma", False),
        ("n8c64h9w9 k64r3s3 ph10pw0 circular", "fprop", "float16", "channels_last", "mma", True),
        ("n8c64h9w9 k64r3s3 ph9pw0 reflect", "fprop", "float16", "channels_last", "mma", True),
        ("n8c64h9w9 k64r3s3 ph99pw0 replicate", "fprop", "float16", "channels_last", "mma", False),
        ("n8c64h9w9 k64r5s5 p2 circular", "fprop", "float32", "channels_first", "simt", True),
        ("n8c8h9w9 k64r3s3 p1 circular", "fprop", "float32", "channels_first", "simt", True),
        ("n8c64h9w9 k32r3s3 p1 circular", "fprop", "float32", "channels_first", "simt", True),
        ("n8c64h9w9 k32r3s3 p1 circular", "wgrad", "float32", "channels_first", "simt", False),
        ("n8c66h9w9 k64r3s3 p1 circular", "fprop", "float32", "channels_last", "simt", True),
        ("n8c64h9w9 k64r3s3 p1 circular", "fprop", "complex64", "channels_first", "simt", True),
    ],
)
def test_when_x_is_padded_in_the_workspace(line, op, dtype, layout, algorithm, copied):
    problem = cuconv.ConvProblem.parse(line)
    plan = make_plan(Request(op, problem, dtype, layout), algorithm, "cuda", "sm_90")
    zeros = dataclasses.replace(problem, padding_mode="zeros")
    same = make_plan(Request(op, zeros, dtype, layout), algorithm, "cuda", "sm_90")
    assert (plan.launches[0].kernel.template == "conv_pad") == copied
    assert op == "wgrad" or (plan.workspace_bytes > same.workspace_bytes) == copied


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
