"""The emulator: that it runs kernels as a GPU would, and that it finds each mistake it is there to find.

The kernels are in emulator/kernels. Tests named sanitized_subset run again under AddressSanitizer.
"""

import itertools
import math
import os
import re
import subprocess
import sys
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from cuconv.cuda.kernel import Kernel, Launch, Scratch
from tests.emulator import EmulatorError, execute, run_plan, sanitized_environment

RNG = np.random.default_rng(5)
CONTIGUOUS = {"x": (0, (1,)), "w": (0, (1,)), "y": (0, (1,))}


def launch(file, template, *arguments, threads=32, blocks=1, a="x", b=None, out="y", shared=0, fields=()):
    kernel = Kernel(f"{file}.cuh", template, arguments, threads)
    return Launch(kernel, blocks, a, b, out, tuple(fields), shared_bytes=shared)


def run(the_launch, x, y, **options):
    """The launch on contiguous x and y: what it leaves in y."""
    arrays = {"x": x, "y": y, "w": options.pop("w", None)}
    execute(the_launch, arrays, CONTIGUOUS, **options)
    return y


def floats(n):
    return RNG.standard_normal(n).astype(np.float32)


# ---- kernels that are right ----


@pytest.mark.parametrize("seed", [None, 3])
def test_static_shared_sanitized_subset(seed):
    x = floats(4 * 96)
    y = run(launch("positive", "static_shared", 96, threads=96, blocks=4), x, np.empty_like(x), seed=seed)
    np.testing.assert_array_equal(y, x.reshape(4, 96)[:, ::-1].ravel())


@pytest.mark.parametrize(("name", "dtype"), [("float", np.float32), ("double", np.float64)])
def test_dynamic_shared_sanitized_subset(name, dtype):
    x = RNG.standard_normal(2 * 40).astype(dtype)
    shared = 40 * x.itemsize
    the_launch = launch("positive", "dynamic_shared", name, threads=40, blocks=2, shared=shared)
    y = run(the_launch, x, np.empty_like(x))
    np.testing.assert_array_equal(y, x.reshape(2, 40)[:, ::-1].ravel())


def test_named_barrier():
    x = floats(32)
    y = run(launch("positive", "named_barrier", threads=64), x, np.empty_like(x))
    np.testing.assert_array_equal(y, x[::-1])


@pytest.mark.parametrize(
    ("name", "size"), [("signed char", 1), ("float16", 2), ("float", 4), ("complex64", 8), ("complex128", 16)]
)
def test_load_if_sanitized_subset(name, size):
    x = RNG.integers(1, 256, (32, size), dtype=np.uint8)
    y = run(launch("positive", "load_some", name), x, np.empty_like(x))
    wanted = np.arange(32) % 3 != 0
    np.testing.assert_array_equal(y, x * wanted[:, None])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
@pytest.mark.parametrize("width", [32, 8])
def test_shuffle(dtype, width):
    name = {"float32": "float", "float64": "double", "int32": "int", "int64": "long long"}[
        np.dtype(dtype).name
    ]
    x = RNG.integers(-1000, 1000, 64).astype(dtype)
    i = np.arange(64)
    first, last = i // width * width, i // width * width + width - 1
    sources = [first + 3, i ^ 5, np.where(i - 3 >= first, i - 3, i), np.where(i + 3 <= last, i + 3, i)]
    for which, source in enumerate(sources):
        y = run(launch("positive", "shuffle", name, which, width, threads=64), x, np.empty_like(x))
        np.testing.assert_array_equal(y, x[source])


def test_lanes_that_part_sanitized_subset():
    x = np.arange(64, dtype=np.float32)
    y = run(launch("positive", "half_warps", threads=64), x, np.empty_like(x))
    expected = []
    for warp in x.reshape(2, 32):
        expected += [warp[:16].sum()] * 16 + [warp[16:24].sum()] * 8 + [warp[24:].sum()] * 8
    np.testing.assert_array_equal(y, expected)


def test_votes():
    x = RNG.integers(-4, 9, 64).astype(np.int32)
    x[32:] = np.minimum(x[32:], 5)
    y = run(launch("positive", "votes", threads=64), x, np.empty(256, np.int32)).reshape(2, 32, 4)
    for warp, value in enumerate(x.reshape(2, 32)):
        ballot = sum(1 << i for i in range(32) if value[i] > 0)
        np.testing.assert_array_equal(y[warp, :, 0].view(np.uint32), ballot)
        np.testing.assert_array_equal(y[warp, :, 1], int((value > 5).any()))
        np.testing.assert_array_equal(y[warp, :, 2], 1)
        np.testing.assert_array_equal(y[warp, :, 3], 1)
    assert y[0, 0, 1] != y[1, 0, 1]


def test_integer_functions():
    x = RNG.integers(0, 2**32, 32, dtype=np.uint32) >> np.arange(32, dtype=np.uint32)
    x[-1] = 0
    y = run(launch("positive", "integers"), x, np.empty(128, np.uint32)).reshape(32, 4)
    expected = [
        (v * 0x9E3779B9 >> 32, v.bit_count(), (v & -v).bit_length(), 32 - v.bit_length()) for v in map(int, x)
    ]
    np.testing.assert_array_equal(y, expected)


def test_half_to_float():
    bits = np.arange(65536, dtype=np.uint16)
    y = run(launch("positive", "from_half", threads=256, blocks=256), bits, np.empty(65536, np.float32))
    np.testing.assert_array_equal(y, bits.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(np.signbit(y), bits >> 15)


def test_float_to_half():
    # Every half, the floats next to it, the middle between it and the next one, and the floats next to that.
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = halves[np.isfinite(halves)]
    middles = (finite[:-1] + finite[1:]) / 2
    centres = np.concatenate([halves, middles, np.array([65520, -65520], "f")])
    with np.errstate(all="ignore"):
        up, down = (np.nextafter(centres, np.float32(end)) for end in (np.inf, -np.inf))
    random = RNG.integers(0, 2**32, 50000, dtype=np.uint32).view(np.float32)
    x = np.concatenate([centres, up, down, random])
    x = np.concatenate([x, np.zeros(-len(x) % 256, np.float32)])
    y = run(launch("positive", "to_half", threads=256, blocks=len(x) // 256), x, np.empty(len(x), np.uint16))
    with np.errstate(all="ignore"):
        expected = x.astype(np.float16)
    nan = np.isnan(x)
    np.testing.assert_array_equal(y[~nan], expected.view(np.uint16)[~nan])
    assert np.isnan(y.view(np.float16)[nan]).all()


def test_float_to_bfloat():
    """Every sign, exponent and leading bits, with what is cut off at, next to and far from the middle."""
    cut = np.array([0, 1, 0x4000, 0x7FFF, 0x8000, 0x8001, 0xC000, 0xFFFF], np.uint32)
    bits = (np.arange(65536, dtype=np.uint32)[:, None] << 16 | cut).ravel()
    x, blocks = bits.view(np.float32), len(bits) // 256
    y = run(launch("positive", "to_bfloat", threads=256, blocks=blocks), x, np.empty(len(x), np.uint16))
    nan = np.isnan(x)
    with np.errstate(all="ignore"):
        expected = x.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(y[~nan], expected[~nan])
    np.testing.assert_array_equal(y[nan], bits[nan] >> 16 | 0x40)  # quiet, and not an infinity


def test_window_of_blocks():
    x, y = floats(320), np.zeros(320, np.float32)
    run(launch("positive", "copy", "float", blocks=10), x, y, blocks=range(3, 5))
    np.testing.assert_array_equal(y[96:160], x[96:160])
    assert not y[:96].any()
    assert not y[160:].any()


def test_no_blocks_and_empty_arrays():
    y = np.ones(0, np.float32)
    run(launch("positive", "copy", "float", blocks=0), y, y.copy())


@pytest.mark.parametrize("accumulate", [False, True])
def test_strides_and_fields_sanitized_subset(accumulate):
    x, y = floats(96)[::-3], np.ones(64, np.float32)
    places = {"x": (0, (-3,)), "y": (0, (2,))}
    fields = [("batch", 4), ("accumulate", accumulate)]
    arrays = {"x": x, "y": y[::2], "bias": np.array([0.5], np.float32)}
    execute(launch("positive", "strided", fields=fields), arrays, places)
    np.testing.assert_array_equal(y[::2], np.float32(accumulate) + x * 4 + np.float32(0.5))
    np.testing.assert_array_equal(y[1::2], 1)


def test_start_within_the_array():
    x, y = floats(32), np.empty(32, np.float32)
    execute(
        launch("positive", "strided", fields=[("batch", 1)]),
        {"x": x, "y": y},
        {"x": (0, (1,)), "y": (31, (-1,))},
    )
    np.testing.assert_array_equal(y, x[::-1])


def through_workspace(*scratches):
    names = ["x", *scratches, "y"]
    return [launch("positive", "copy", "float", a=a, out=b) for a, b in itertools.pairwise(names)]


def test_workspace():
    x, y = floats(32), np.empty(32, np.float32)
    first, second = Scratch(0, (32,), "float32"), Scratch(128, (4, 8), "float32")
    run_plan(through_workspace(first, second), {"x": x, "y": y}, CONTIGUOUS, 256)
    np.testing.assert_array_equal(y, x)


# ---- PTX ----


def truncated(a, b, step):
    """a b^T as tensor cores sum it, `step` of k at a time (tests/emulator/runtime.h), in exact arithmetic."""

    def add(terms):
        if not all(math.isfinite(term) for term in terms):
            return np.float32(sum(terms))  # the rules of IEEE 754: no sum of finite terms overflows here
        unit = Fraction(2) ** (math.frexp(max(map(abs, terms)))[1] - 1 - 24)
        exact = sum(int(Fraction(term) / unit) for term in terms) * unit
        if abs(exact) >= 2**128:
            return np.float32(np.inf if exact > 0 else -np.inf)
        last = Fraction(2) ** max(math.frexp(float(exact))[1] - 24, -149)
        return np.float32(float(int(exact / last) * last))

    sums = np.zeros((len(a), len(b)), np.float32)
    for start in range(0, a.shape[1], step):
        for place in np.ndindex(*sums.shape):
            of_k = slice(start, start + step)
            products = a[place[0], of_k].astype(np.float64) * b[place[1], of_k].astype(np.float64)
            sums[place] = add([float(sums[place]), *map(float, products)])
    return sums


def rounded_to_tf32(x):
    return ((x.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32)


@pytest.mark.parametrize("kernel", ["product_16bit", "product_by_formula"])
@pytest.mark.parametrize(("name", "dtype"), [("F16", np.float16), ("Bf16", ml_dtypes.bfloat16)])
def test_product_16bit(kernel, name, dtype):
    a, b = (RNG.standard_normal((n, 16)).astype(dtype) for n in (16, 8))
    expected = truncated(a, b, 8)
    assert (expected != (a.astype(np.float64) @ b.astype(np.float64).T).astype(np.float32)).any()
    for arguments in [(name, "false"), (name, "true")] if kernel == "product_16bit" else [(name,)]:
        y = run(launch("tensor", kernel, *arguments, b="w"), a, np.empty((16, 8), np.float32), w=b)
        np.testing.assert_array_equal(y, expected)


def test_product_tf32():
    a, b = (RNG.standard_normal((n, 8)).astype(np.float32) for n in (16, 8))
    y = run(launch("tensor", "product_tf32", b="w"), a, np.empty((16, 8), np.float32), w=b)
    np.testing.assert_array_equal(y, truncated(rounded_to_tf32(a), rounded_to_tf32(b), 4))
    assert (y != (a.astype(np.float64) @ b.T).astype(np.float32)).any()


def products_tf32(a, b, steps=1, staged="false"):
    """a b^T of gemm_k = 8 steps; staged, every instruction's sum starts from zero and is added in float."""
    the_launch = launch("tensor", "long_sum_tf32", steps, staged, b="w")
    return run(the_launch, a, np.empty((16, 8), np.float32), w=b)


@pytest.mark.parametrize("scale", [-140, -60, 0, 60, 126])
def test_products_of_all_sizes_are_truncated(scale):
    """Results from subnormal numbers to infinity, and cancellation; halves of k differ in scale."""
    a = RNG.standard_normal((16, 8)) * 2.0 ** (scale // 2 + RNG.integers(-9, 9, (16, 8)))
    b = RNG.standard_normal((8, 8)) * 2.0 ** (scale - scale // 2)
    a[3, 1], b[:, 1] = -a[3, 0], b[:, 0]
    a, b = (rounded_to_tf32(x.astype(np.float32)) for x in (a, b))
    expected = truncated(a, b, 4)
    assert np.isinf(expected).any() == (scale == 126)
    np.testing.assert_array_equal(products_tf32(a, b), expected)


def test_integers_that_fit_are_exact():
    """Sums of nearly 2^24, in many steps."""
    a, b = (RNG.integers(-(2**9), 2**9, (n, 256)).astype(np.float32) for n in (16, 8))
    a[0], b[0] = 2**8, 2**8 - 1
    for staged in ("false", "true"):
        y = products_tf32(a, b, 32, staged)
        np.testing.assert_array_equal(y, a.astype(np.int64) @ b.astype(np.int64).T)


def test_infinities_and_nans_are_those_of_ieee():
    a, b = np.ones((16, 8), np.float32), np.ones((8, 8), np.float32)
    a[0, 1], a[1, 2], a[2, 3], a[3, 4], a[4, [5, 6]] = np.inf, -np.inf, np.nan, np.inf, (np.inf, -np.inf)
    b[5, 4] = 0
    with np.errstate(invalid="ignore"):
        expected = a @ b.T
    assert np.isnan(expected[3, 5])
    assert np.isnan(expected[4]).all()
    assert expected[3, 0] == np.inf
    np.testing.assert_array_equal(products_tf32(a, b), expected)


def test_long_sums_lose_what_is_cut_off():
    """Of positive terms: a fourth to a fifth of 2^-24 for each in one accumulator, next to nothing staged."""
    steps = 200
    a, b = (rounded_to_tf32(RNG.random((n, 8 * steps), np.float32)) for n in (16, 8))
    exact = a.astype(np.float64) @ b.astype(np.float64).T
    lost = (1 - products_tf32(a, b, steps) / exact) * 2**24 / (8 * steps)
    assert lost.min() > 1 / 6
    assert lost.max() < 1 / 3
    staged = (1 - products_tf32(a, b, steps, "true") / exact) * 2**24
    assert abs(staged).max() < np.sqrt(steps)
    assert abs(staged.mean()) < 2


def test_product_f64():
    a, b = (RNG.integers(-99, 99, (8, 4)).astype(np.float64) for _ in range(2))
    y = run(launch("tensor", "product_f64", b="w"), a, np.empty((8, 8)), w=b)
    np.testing.assert_array_equal(y, a @ b.T)


def test_product_f64_k16():
    a, b = (RNG.integers(-99, 99, (n, 16)).astype(np.float64) for n in (16, 8))
    y = run(launch("tensor", "product_f64_k16", b="w"), a, np.empty((16, 8)), w=b)
    np.testing.assert_array_equal(y, 2 * (a @ b.T))  # the second product is added to the first


@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count):
    x = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    for transposed in (False, True):
        the_launch = launch("tensor", "load_tiles", count, str(transposed).lower())
        y = run(the_launch, x, np.empty(32 * count, np.uint32)).view(np.uint16)
        tiles = x.swapaxes(1, 2) if transposed else x
        np.testing.assert_array_equal(y.reshape(count, 8, 8), tiles[:count])


@pytest.mark.parametrize(("size", "tail"), [(4, 4), (8, 4), (16, 12), (16, 0)])
def test_cp_async_sanitized_subset(size, tail):
    x = floats(5 * 8 * size).reshape(5, 32, size // 4)
    y = run(launch("tensor", "pipeline", size, 5, tail), x, np.empty_like(x))
    expected = x.copy()
    expected[-1, :, tail // 4 :] = 0
    np.testing.assert_array_equal(y, expected[:, ::-1])


# ---- kernels that are not ----

FAULTS = [
    # template, arguments, threads, shared bytes, what the error says
    (
        "read_outside",
        (64,),
        64,
        0,
        "block 0, thread 0: .*reads from 0 bytes beyond the end of x .*faulty.cuh",
    ),
    ("read_outside", (1000,), 64, 0, "thread 0: .*3744 bytes beyond the end of x"),
    ("read_outside", (-1,), 64, 0, "thread 0: .*4 bytes before the start of x"),
    ("write_outside", (64,), 64, 0, "thread 0: .*writes to 0 bytes beyond the end of y"),
    ("write_outside", (-1,), 64, 0, "4 bytes before the start of y"),
    ("write_input", (), 64, 0, "thread 0: .*writes to x, an input"),
    ("read_null", (), 64, 0, "null pointer to 'const float' .*faulty.cuh:"),
    ("write_some", (), 64, 0, r"y\[5\] is nan and then .*never written"),
    (
        "static_shared_outside",
        (),
        32,
        0,
        r"thread 31: index 32 out of bounds of 'float \[32\]' .*faulty.cuh:",
    ),
    ("dynamic_shared_outside", (64,), 64, 256, "0 bytes beyond the end of dynamic shared memory"),
    ("dynamic_shared_outside", (-4,), 64, 256, "16 bytes before the start of dynamic shared memory"),
    ("dynamic_shared_slack", (), 64, 252, "wrote beyond the end of dynamic shared memory"),
    ("unwritten_shared", (), 32, 0, r"y\[7\] is nan and then .*never written"),
    ("misaligned", (), 32, 0, "misaligned address for 'const struct float4'"),
    ("shared_misaligned", (), 32, 0, "misaligned address for 'const struct float4'"),
    ("stack_overflow", (), 32, 0, "thread 0: stack overflow "),
    ("trap", (), 32, 0, "thread 3: __trap: called .*faulty.cuh"),
    ("missing_barrier", (), 64, 0, "depends on the order of threads"),
    ("missing_second_barrier", (), 64, 0, "depends on the order of threads"),
    ("missing_syncwarp", (), 64, 0, "depends on the order of threads"),
    (
        "divergent_barriers",
        (),
        64,
        0,
        "thread 32: __syncthreads: other threads wait at another __syncthreads",
    ),
    (
        "barrier_after_exit",
        (),
        64,
        0,
        "deadlock: threads 0 to 31 have exited; threads 32 to 63 wait at __sync",
    ),
    ("named_barrier_counts", (), 64, 0, "expects 32 threads at barrier 1, but those who wait expect 64"),
    (
        "shuffle_lanes_missing",
        (),
        64,
        0,
        "deadlock: threads 0 to 15 wait at __shfl_xor_sync .*16 to 31 have exi",
    ),
    ("shuffle_from_outside", (), 64, 0, "lane 16, which is read, is not in mask 0000ffff"),
    ("copy_not_awaited", (0,), 32, 0, r"y\[0\] is nan and then"),
    ("copy_not_awaited", (1,), 32, 0, r"y\[0\] is nan and then"),
    ("copy_without_barrier", (), 32, 0, "depends on the order of threads"),
    ("copy_misaligned", (), 32, 0, "cp.async: addresses .* are not multiples of 16 bytes"),
]


@pytest.mark.parametrize(("template", "arguments", "threads", "shared", "message"), FAULTS)
def test_fault(template, arguments, threads, shared, message):
    n = 128 if "copy" in template or "second" in template else threads
    x = floats(n)
    with pytest.raises(EmulatorError, match=f"^(?s:{template}.*{message})"):
        run(launch("faulty", template, *arguments, threads=threads, shared=shared), x, np.empty_like(x))
    # The runtime is none the worse for it.
    np.testing.assert_array_equal(run(launch("positive", "copy", "float", threads=n), x, np.empty_like(x)), x)


@pytest.mark.parametrize(
    ("template", "message"),
    [("overflow", "signed integer overflow"), ("divide_by_zero", "integer division by zero")],
)
def test_faulty_arithmetic(template, message):
    x = np.arange(5, -27, -1, dtype=np.int32)
    with pytest.raises(EmulatorError, match=f"{message} .*faulty.cuh:"):
        run(launch("faulty", template), x, np.empty_like(x))


def test_write_between_the_elements():
    x, y = floats(32), np.zeros(64, np.float32)
    places = {"x": (0, (1,)), "y": (1, (2,))}
    with pytest.raises(EmulatorError, match="writes 4 bytes from the start of y, where there is no element"):
        execute(
            launch("positive", "strided", fields=[("batch", 1)]),
            {"x": x, "y": y[:-1:2]},
            places,
            blocks=range(1),
        )


def test_unwritten_workspace():
    x, y = floats(32), np.empty(32, np.float32)
    scratch = Scratch(0, (32,), "float32")
    launches = [
        launch("faulty", "write_some", out=scratch),
        launch("positive", "copy", "float", a=scratch),
    ]
    with pytest.raises(EmulatorError, match=r"y\[5\] is nan and then .*never written"):
        run_plan(launches, {"x": x, "y": y}, CONTIGUOUS, 128)


def test_overwritten_workspace():
    x, y = floats(32), np.empty(32, np.float32)
    first, second = Scratch(0, (32,), "float32"), Scratch(64, (32,), "float32")
    launches = [launch("positive", "copy", "float", out=first), *through_workspace(second)]
    launches[-1] = launch("positive", "copy", "float", a=first)
    with pytest.raises(EmulatorError, match="never written"):
        run_plan(launches, {"x": x, "y": y}, CONTIGUOUS, 192)


def test_workspace_too_small():
    x, y = floats(32), np.empty(32, np.float32)
    with pytest.raises(EmulatorError, match="ends beyond 127 bytes of workspace"):
        run_plan(through_workspace(Scratch(0, (32,), "float32")), {"x": x, "y": y}, CONTIGUOUS, 127)


def test_does_not_compile():
    with pytest.raises(EmulatorError, match="does not compile"):
        run(launch("positive", "no_such_template"), floats(32), np.empty(32, np.float32))


# ---- AddressSanitizer ----


def pytest_sanitized(*arguments):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n0", *arguments, __file__]
    return subprocess.run(command, env=sanitized_environment(), capture_output=True, text=True)


@pytest.mark.skipif("CUCONV_EMULATOR_SANITIZE" in os.environ, reason="this is the sanitized run")
def test_sanitizer_finds_nothing():
    done = pytest_sanitized("-k", "sanitized_subset")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.skipif("CUCONV_EMULATOR_SANITIZE" in os.environ, reason="this is the sanitized run")
@pytest.mark.parametrize(
    ("template", "report"),
    [
        ("local_outside", "stack-buffer-overflow"),
        ("shared_outside_unseen", "global-buffer-overflow"),
        ("pointer_around", "EmulatorError: .*pointer arithmetic overflow"),
    ],
)
def test_sanitizer_finds_overflow(template, report):
    done = pytest_sanitized("-s", "-k", "planted and " + template)
    assert done.returncode != 0
    assert re.search(report, done.stdout + done.stderr), done.stdout + done.stderr


@pytest.mark.skipif("CUCONV_EMULATOR_SANITIZE" not in os.environ, reason="would end the process")
@pytest.mark.parametrize("template", ["local_outside", "shared_outside_unseen", "pointer_around"])
def test_planted_overflow(template):
    x = floats(32)
    run(launch("faulty", template), x, np.empty_like(x))
