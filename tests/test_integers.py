"""Images of narrow integers: x and w as they are, exact sums in the wider `out_dtype`, on both backends."""

import itertools

import numpy as np
import pytest

import cuconv
from cuconv.dtypes import INTEGERS, holds
from cuconv.plan import make_plan

from .cases import TAKEN, check_seeds, seeded_case
from .emulator import emulated
from .emulator import run as run_emulated


def anything(shape, dtype, seed):
    """Integers over the whole range of the dtype, its ends among them."""
    limits = np.iinfo(dtype)
    values = np.random.default_rng(seed).integers(limits.min, limits.max, shape, dtype, endpoint=True)
    values.flat[:2] = limits.min, limits.max
    return values


def test_what_is_taken_is_what_numpy_would_cast_safely():
    assert {
        wide: [name for name in INTEGERS if np.can_cast(name, wide)] for wide in ("int32", "int64")
    } == TAKEN
    assert not holds("float64", "uint8")
    assert not holds("int32", "float16")


@pytest.mark.parametrize(
    ("out_dtype", "x_dtype", "w_dtype"),
    [(wide, *pair) for wide, taken in TAKEN.items() for pair in itertools.product(taken, repeat=2)],
)
def test_sums_are_those_of_the_wider_dtype(out_dtype, x_dtype, w_dtype):
    """Of every pair of dtypes, over their whole ranges, on both backends."""
    x, w = anything((2, 3, 6, 7), x_dtype, 0), anything((4, 3, 2, 3), w_dtype, 1)
    bias = anything((4,), out_dtype, 2)
    options = dict(padding=1, padding_mode="reflect", flip=True, activation="relu")
    expected = cuconv.conv(x.astype(out_dtype), w.astype(out_dtype), bias, **options)
    got = cuconv.conv(x, w, bias, out_dtype=out_dtype, **options)
    assert got.dtype == out_dtype
    np.testing.assert_array_equal(got, expected)
    with emulated():
        np.testing.assert_array_equal(cuconv.conv(x, w, bias, out_dtype=out_dtype, **options), expected)


def test_a_box_filter_of_a_byte_image_does_not_wrap():
    image = np.full((1, 8, 8), 255, np.uint8)
    sums = cuconv.conv(image, np.ones((1, 1, 3, 3), np.uint8), out_dtype="int32")
    np.testing.assert_array_equal(sums, np.full((1, 6, 6), 9 * 255, np.int32))


def test_truth_values_are_counted_as_bytes():
    mask = np.eye(5, dtype=bool)[None]
    near = cuconv.conv(mask.view("uint8"), np.ones((1, 1, 3, 3), np.int8), padding="same", out_dtype=np.int32)
    assert near[0, 2, 2] == 3


def test_out_bias_and_accumulate_have_the_dtype_of_the_result():
    x, w = anything((2, 3, 9), "uint8", 0), anything((4, 3, 3), "int8", 1)
    out = anything((2, 4, 7), "int64", 2)
    expected = out + cuconv.conv(x.astype(np.int64), w.astype(np.int64))
    assert cuconv.conv(x, w, out=out, accumulate=True, out_dtype="int64") is out
    np.testing.assert_array_equal(out, expected)


def test_nothing_changes_where_x_and_w_have_the_dtype():
    x, w = anything((1, 2, 9), "int32", 0), anything((3, 2, 3), "int32", 1)
    np.testing.assert_array_equal(cuconv.conv(x, w, out_dtype="int32"), cuconv.conv(x, w))
    for dtype in ("int32", ("int32", "int32")):
        plan = cuconv.plan("fprop", x.shape, w.shape, dtype, out_dtype="int32")
        assert plan == cuconv.plan("fprop", x.shape, w.shape, "int32")


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_a_plan_says_what_is_read(backend):
    """Of the bytes, and on a GPU of the copy that is made of each operand that is narrower."""
    shapes = ((2, 3, 16, 16), (4, 3, 3, 3))
    wide = cuconv.plan("fprop", *shapes, "int32", backend=backend)
    plan = cuconv.plan("fprop", *shapes, ("uint8", "int32"), out_dtype="int32", backend=backend)
    assert wide.request.bytes - plan.request.bytes == 3 * 2 * 3 * 16 * 16
    assert "x=uint8 w=int32" in str(plan)
    if backend == "cuda":
        assert plan.workspace_bytes - wide.workspace_bytes == 4 * 2 * 3 * 16 * 16
        assert [launch.kernel.template for launch in plan.launches][:1] == ["conv_widen"]


def test_every_algorithm_by_name():
    x, w = anything((2, 4, 12, 11), "uint8", 0), anything((4, 1, 3, 3), "int16", 1)
    options = dict(groups=4, padding=1, out_dtype="int32")
    expected = cuconv.conv(x.astype("i4"), w.astype("i4"), groups=4, padding=1)
    for algorithm in ("depthwise", "gemm", "tune"):
        np.testing.assert_array_equal(cuconv.conv(x, w, **options, algorithm=algorithm), expected)
    for algorithm in ("depthwise", "simt", "direct"):
        with emulated():
            np.testing.assert_array_equal(cuconv.conv(x, w, **options, algorithm=algorithm), expected)


def test_generated_cases_have_them():
    """On a stretch of seeds that is run here; the fuzzer goes further."""
    seeds = [seed for seed in range(900) if seeded_case(seed).inputs]
    assert len(seeds) > 100
    for seed in seeds[:40]:
        check_seeds(range(seed, seed + 1))
    for seed in seeds[:10]:
        check_seeds(range(seed, seed + 1), run=run_emulated, backend="cuda")


def test_a_request_refuses_what_the_result_does_not_hold():
    problem = cuconv.ConvProblem.parse("n1c2w9 k3s3")
    for op, dtype, inputs in (
        ("fprop", "int32", ("uint32", "int8")),
        ("fprop", "float32", ("uint8", "uint8")),
        ("dgrad", "int32", ("uint8", "uint8")),
    ):
        with pytest.raises(TypeError, match=f"{op} in {dtype} cannot be computed from x of {inputs[0]}"):
            make_plan(cuconv.problem.Request(op, problem, dtype, inputs=inputs), "auto", "cpu")
