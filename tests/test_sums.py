"""Bias gradients and second passes of split sums on memory of any layout; padding copies in many blocks."""

import itertools
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

import cuconv
from cuconv.cuda import schedule
from cuconv.problem import LAYOUTS, PADDING_MODES

from . import emulator
from .cases import Case, applies, check, workspace
from .test_transform import STRIDED

DTYPES = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "int32", "int64")


def integers(array):
    """The same memory with small integers in it, whose sums are exact in every dtype."""
    base = array
    while base.base is not None:
        base = base.base
    kind = array.dtype
    values = np.random.default_rng(0).integers(-3, 4, base.nbytes // kind.itemsize)
    base.reshape(-1).view(kind)[...] = values.astype(kind)
    return array


def check_sum(dy, layout="channels_first"):
    axes = (0, 2, 3) if layout == "channels_first" else (0, 1, 2)
    wide = dy.astype("float64") if dy.dtype == ml_dtypes.bfloat16 else dy
    expected = wide.sum(axis=axes, dtype=np.result_type(wide.dtype, "float32")).astype(dy.dtype)
    got = emulator.run("bgrad", dy, layout=layout)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("part", [1, schedule.PART])
@pytest.mark.parametrize("name", STRIDED)
def test_strides_of_a_bias_gradient(name, part):
    """Channels first by their shape, whatever they are in memory; in many parts and in one."""
    with workspace(2), mock.patch.object(schedule, "PART", part):
        for dtype in ("float16", "float32", "complex64"):
            for channels, h, w in ((3, 6, 8), (17, 8, 16), (66, 3, 7), (72, 4, 4)):
                check_sum(integers(STRIDED[name](3, channels, h, w, dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_extents_of_a_bias_gradient(layout, dtype):
    """Vectors that are whole and not, of cells and of channels; more of either than a block takes at once."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rng = np.random.default_rng(0)
    for n, channels, h, w in (
        *((2, channels, 1, 1) for channels in (1, 5, 64, 131)),
        *((3, 2, 1, w) for w in (1, 7, 8, 9, 4100)),
        *((5, channels, 7, 7) for channels in (1, 3, 8, 12, 72, 130)),
        (3, 5, 40, 1),
        (40, 3, 24, 24),
    ):
        shape = (n, channels, h, w) if layout == "channels_first" else (n, h, w, channels)
        check_sum(rng.integers(-2, 3, shape).astype(kind), layout)


def test_a_bias_gradient_that_starts_anywhere():
    for layout in LAYOUTS:
        for start in range(1, 9):
            memory = np.random.default_rng(0).integers(-3, 4, 4 * 16 * 8 * 8 + 8).astype("float16")
            shape = (4, 16, 8, 8) if layout == "channels_first" else (4, 8, 8, 16)
            check_sum(memory[start : start + 4 * 16 * 8 * 8].reshape(shape), layout)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("op", ["wgrad", "fprop"])
def test_several_sums_by_a_thread(op, dtype):
    """As of large results: neighbours, or elements of several filters or images, with what follows a sum."""

    def of_large_results(shape, dtype):
        vector = 16 // schedule.DTYPES[dtype].itemsize
        return vector if shape[0] % vector == 0 else 1

    with mock.patch.object(schedule, "_summed_by_a_thread", of_large_results):
        for line in ("n4c4h5w6 k8r3s2 p1", "n8c5w9 k12s3 p1"):
            for layout, algorithm in itertools.product(LAYOUTS, ("simt", "mma")):
                case = Case(cuconv.ConvProblem.parse(line), dtype, layout, bias=op == "fprop", workspace=2)
                if applies(case, algorithm, op, "cuda"):
                    check(case, algorithm, emulator.run, ops=(op,))


# More than a block of padded elements, and of folded ones: short rows, rows that blocks cut, few channels.
LARGE = (
    "n2c5h30w29 k1r3s3 p1",
    "n1c2h3w2900 k1r1s2 ph0pw2:3",
    "n1c3w5000 k1s3 p1",
    "n2c70d3h5w4 k1t2r2s2 pd1ph2:1pw0:3",
    "n300c3h2w3 k1r2s2 p1",
    "n1c40h9w9 k1r2s2 ph-1:3pw4:-2",
)


@pytest.mark.parametrize("mode", PADDING_MODES[1:])
@pytest.mark.parametrize("line", LARGE)
def test_padding_in_many_blocks(line, mode):
    """The copy and the fold of every size of elements, in both layouts, bit for bit."""
    for layout in LAYOUTS:
        for dtype in ("float16", "float32", "complex64", "complex128"):
            case = Case(cuconv.ConvProblem.parse(f"{line} {mode}"), dtype, layout)
            check(case, "direct", emulator.run, ops=("fprop", "dgrad"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_widening_in_many_blocks(layout):
    rng = np.random.default_rng(0)
    shape = (3, 20, 40, 5) if layout == "channels_last" else (3, 5, 20, 40)
    for dtype, wide in (("int8", "int32"), ("uint8", "int64"), ("uint16", "int32")):
        for x in (
            rng.integers(0, 100, shape).astype(dtype),
            rng.integers(0, 100, shape).astype(dtype)[:, ::-1],
        ):
            w = rng.integers(0, 9, (2, 2, 2, 5) if layout == "channels_last" else (2, 5, 2, 2)).astype(dtype)
            options = dict(layout=layout, out_dtype=wide, flip=True)
            np.testing.assert_array_equal(
                emulator.run("fprop", x, w, **options), cuconv.conv(x, w, **options)
            )
