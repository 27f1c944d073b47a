"""The same cases on a GPU: `pytest -m gpu`, where there is one that CuPy can use. Skipped elsewhere."""

import itertools
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import cuconv
from cuconv import table
from cuconv.cli.main import main
from cuconv.cuda import jit, launch
from cuconv.cuda.algorithms import TABLE
from cuconv.plan import forget
from cuconv.problem import ACTIVATIONS

from . import device, emulator
from .cases import DTYPES, KERNELS, PUBLIC, Case, applies, check, check_seeds, in_parts, values
from .test_exact import PROBLEMS
from .test_kernels import DEPTHWISE, TENSOR, precisions
from .test_mma import chosen
from .test_tuning import in_threads

cupy = jit.usable_cupy()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cupy is None, reason="there is no GPU that CuPy can use"),
]

no_transforms = cupy is None or not launch.has_transforms()
with_transforms = pytest.mark.skipif(no_transforms, reason="there is no cuFFT that CuPy can load")

UNTRIED = table.untried(TABLE)
BY_NAME = [pytest.param(name, marks=[pytest.mark.untried] * (name in UNTRIED)) for name in KERNELS]
ALL_AT_ONCE = pytest.mark.parametrize(
    "untried", [False, pytest.param(True, marks=pytest.mark.untried)], ids=["tried", "untried"]
)
"""Tests of all entries, those that a GPU has run before, and the others."""

SMALL = "n2c4h9w8 k4r3s2 g4 sh2sw1 dh1dw2 ph1:0pw-1:2 reflect"
OF_TENSOR_CORES = "n2c32h9w8 k34r3s2 g2 sh2sw1 dh1dw2 ph1:0pw-1:2 reflect"
OF_WARPGROUPS = "n2c128h9w8 k130r3s2 g2 sh2sw1 dh1dw2 ph1:0pw-1:2 reflect"
"""Problems that take every kind of kernel, for tools that slow each of them down."""


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("algorithm", BY_NAME)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_entry_of_the_table(dtype, algorithm, layout):
    lines = itertools.chain(*PROBLEMS.values(), DEPTHWISE, TENSOR)
    for line, permitted in itertools.product(lines, precisions(dtype, algorithm)):
        problem = cuconv.ConvProblem.parse(line)
        for workspace, exact, memory in (
            (1, True, "plain"),
            (2000, False, "sliced"),
            (1 << 23, True, "plain"),
        ):
            case = Case(
                problem, dtype, layout,
                bias=True, exact=exact, memory=memory, workspace=workspace, precision=permitted,
            )  # fmt: skip
            if applies(case, algorithm, "fprop", "cuda"):
                check(case, algorithm, device.run)


@pytest.mark.sanitize
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("algorithm", BY_NAME)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex128"])
def test_small_problems(dtype, algorithm, layout):
    line = {"mma": OF_TENSOR_CORES, "wgmma": OF_WARPGROUPS}.get(algorithm, SMALL)
    problem = cuconv.ConvProblem.parse(line)
    for workspace, permitted in itertools.product((1, 2000, 1 << 23), precisions(dtype, algorithm)):
        case = Case(problem, dtype, layout, accumulate=True, workspace=workspace, precision=permitted)
        if applies(case, algorithm, "fprop", "cuda"):
            check(case, algorithm, device.run)


@pytest.mark.parametrize("part", range(8))
def test_seeded_cases(part):
    check_seeds(range(part * 100, part * 100 + 100), "auto", device.run, "cuda")


@pytest.mark.parametrize("algorithm", BY_NAME)
def test_seeded_cases_by_name(algorithm):
    check_seeds(range(10_000, 10_400), algorithm, device.run, "cuda")


def test_the_self_test_passes(capsys):
    """Every entry by name, through plans."""
    assert main(["check"]) == 0, capsys.readouterr().out


LARGER = (
    "n4c32h28w28 k48r3s3 p1",
    "n4c24h30w30 k24r5s5 g24 sh2sw2 p2",
    "n2c8d9h20w20 k12t3r3s3 g4 p1 circular",
)


def operands(line, dtype, layout, exact=False):
    rng = np.random.default_rng(0)
    problem = cuconv.ConvProblem.parse(line)
    shapes = (problem.x_shape(layout), problem.w_shape(layout), problem.y_shape(layout))
    x, w, dy = (device.on_device(values(rng, shape, dtype, exact)) for shape in shapes)
    calls = {"fprop": (x, w), "dgrad": (dy, w, x.shape), "wgrad": (x, dy, w.shape)}
    return calls, problem.options() | dict(layout=layout)


def in_all_precisions(op, dtype, untried):
    entries = [entry for entry in TABLE[op] if entry.untried == untried]
    return [(entry, permitted) for entry in entries for permitted in precisions(dtype, entry.name)]


@ALL_AT_ONCE
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("line", LARGER)
@pytest.mark.parametrize("dtype", DTYPES)
def test_algorithms_agree_on_larger_problems(dtype, line, layout, untried):
    """Bit for bit on exactly summable data: every algorithm, and the NumPy path."""
    calls, options = operands(line, dtype, layout, exact=True)
    for op, arguments in calls.items():
        on_host = [
            argument.get() if isinstance(argument, cupy.ndarray) else argument for argument in arguments
        ]
        expected = PUBLIC[op](*on_host, **options)
        for entry, permitted in in_all_precisions(op, dtype, untried):
            case = Case(cuconv.ConvProblem.parse(line), dtype, layout, precision=permitted)
            if entry.exact and applies(case, entry.name, op, "cuda"):
                got = PUBLIC[op](*arguments, **options, algorithm=entry.name, precision=permitted)
                np.testing.assert_array_equal(got.get(), expected)


@ALL_AT_ONCE
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_results_are_bitwise_repeatable(dtype, untried):
    for line in LARGER:
        calls, options = operands(line, dtype, "channels_first")
        for op, arguments in calls.items():
            for entry, permitted in in_all_precisions(op, dtype, untried):
                case = Case(cuconv.ConvProblem.parse(line), dtype, precision=permitted)
                if not applies(case, entry.name, op, "cuda") or (entry.name == "fft" and no_transforms):
                    continue
                named = options | dict(algorithm=entry.name, precision=permitted)
                first = PUBLIC[op](*arguments, **named).tobytes()
                for _ in range(100):
                    assert PUBLIC[op](*arguments, **named).tobytes() == first


def test_the_emulator_computes_the_same_bits_on_integers():
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 9, (2, 6, 9, 8)), rng.integers(-9, 9, (4, 3, 3, 2))
    options = dict(groups=2, padding="same_lower", flip=True, algorithm="simt")
    np.testing.assert_array_equal(
        device.run("fprop", x, w, **options), emulator.run("fprop", x, w, **options)
    )


def test_subnormals_survive():
    tiny = np.full((1, 1, 4), 2.0**-149, np.float32)
    one = np.ones((1, 1, 1), np.float32)
    for algorithm in ("depthwise", "simt", "direct"):
        np.testing.assert_array_equal(device.run("fprop", tiny, one, algorithm=algorithm), tiny)
    for dtype, least in (("float16", 2.0**-24), ("bfloat16", 2.0**-133)):
        few = np.full((1, 1, 4), least).astype(DTYPES[dtype])
        for algorithm in KERNELS:
            got = device.run("fprop", few, np.ones((1, 1, 1), few.dtype), algorithm=algorithm)
            np.testing.assert_array_equal(got, few)


def test_the_current_stream_and_a_graph():
    """A call on another stream, captured and replayed with new data in the same arrays."""
    x, w = cupy.zeros((2, 3, 64, 64)), cupy.ones((4, 3, 3, 3))
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        # The first calls compile, and leave this stream's pool with what the captured ones take.
        out = cuconv.conv(x, w)
        cuconv.conv_weight_grad(x, out, w.shape)
        stream.begin_capture()
        cuconv.conv(x, w, out=out)
        dw = cuconv.conv_weight_grad(x, out, w.shape)
        graph = stream.end_capture()
        cupy.full(1 << 20, np.nan)  # would take the graph's workspace, were it free
        x[...] = 1
        graph.launch(stream)
    stream.synchronize()
    assert cupy.all(out == 27)
    assert cupy.all(dw == 2 * 62 * 62 * 27)


def test_more_than_2_31_elements():
    if cupy.cuda.runtime.memGetInfo()[0] < 30 << 30:
        pytest.skip("this takes 30 GB of GPU memory")
    x = cupy.zeros((3, 1, 1 << 30), np.float16)
    x[-1, 0, -5:] = 1
    w = cupy.ones((1, 1, 3), np.float16)
    for algorithm in ("direct", "simt", "depthwise"):
        try:
            y = cuconv.conv(x, w, algorithm=algorithm)
        except ValueError:
            continue  # it says that it is too long
        assert y[-1, 0, -8:].tolist() == [0, 0, 0, 1, 2, 3, 3, 3]
        assert int(cupy.count_nonzero(y)) == 5


def test_no_bias_grows_with_the_length_of_a_sum():
    """What tensor cores cut off is lost in slices, not in a sum of any length."""
    rng = np.random.default_rng(0)
    x, w = (rng.integers(1024, 2048, shape) / 1024 for shape in ((2, 512, 3, 3), (64, 512, 3, 3)))
    expected = cuconv.conv(x, w)
    with chosen(lambda *asked: in_parts(*asked, 0, 1)):
        y = device.run("fprop", x.astype("f4"), w.astype("f4"), precision="tf32", algorithm="mma")
    assert abs(np.mean(y / expected - 1)) < 16 * 2.0**-24


def test_factors_are_rounded_only_where_it_is_permitted():
    """TF32 loses the last of 13 bits; float32 keeps it, though auto may choose any algorithm."""
    x = cupy.full((1, 64, 9, 9), 1 + 2.0**-12, np.float32)
    w = cupy.ones((64, 64, 1, 1), np.float32)
    assert cupy.all(cuconv.conv(x, w) == 64 * (1 + 2.0**-12))
    assert cupy.all(cuconv.conv(x, w, precision="tf32", algorithm="mma") == 64)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_inputs_that_cannot_be_read_in_vectors(dtype):
    """One element behind a vector, and some channels of more."""
    calls, options = operands("n2c32h9w8 k32r3s3 p1", dtype, "channels_last", exact=True)
    for (op, arguments), permitted in itertools.product(calls.items(), precisions(dtype, "mma")):
        named = options | dict(algorithm="mma", precision=permitted)
        expected = PUBLIC[op](*arguments, **named)
        for start, channels in ((1, 32), (8, 43)):
            changed = []
            for array in arguments:
                if isinstance(array, cupy.ndarray):
                    memory = cupy.zeros(array.size // 32 * channels + start, array.dtype)
                    view = memory[start:].reshape(*array.shape[:-1], channels)[..., :32]
                    view[...] = array
                    array = view
                changed.append(array)
            assert cupy.array_equal(PUBLIC[op](*changed, **named), expected)


@pytest.mark.peer
def test_torch_arrays_come_back_as_torch_arrays():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    x, w = torch.randn(2, 3, 8, 8, device="cuda"), torch.randn(4, 3, 3, 3, device="cuda")
    y = cuconv.conv(x, w, padding=1)
    assert y.device.type == "cuda"
    with torch.backends.cudnn.flags(enabled=False):
        torch.testing.assert_close(y, torch.nn.functional.conv2d(x, w, padding=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_gradients_of_the_transposed_convolution(dtype):
    rng = np.random.default_rng(0)
    x, w = values(rng, (2, 4, 9, 8), dtype, True), values(rng, (4, 3, 3, 2), dtype, True)
    options = dict(stride=2, padding=1, output_padding=1, groups=2)
    dy = values(rng, cuconv.conv_transpose(x, w, **options).shape, dtype, True)
    there = map(device.on_device, (dy, x, w))
    expected = cuconv.conv_transpose_backward(dy, x, w, **options)
    for got, right in zip(cuconv.conv_transpose_backward(*there, **options), expected, strict=True):
        np.testing.assert_array_equal(got.get(), right)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", ACTIVATIONS[1:])
def test_derivatives_of_activations(name, dtype):
    z, dy = (values(np.random.default_rng(seed), (5, 7), dtype, False) for seed in (0, 1))
    expected = cuconv.activation_backward(dy, name, pre_activation=z).astype(np.float64)
    got = cuconv.activation_backward(device.on_device(dy), name, pre_activation=device.on_device(z))
    epsilon = 4 * float(ml_dtypes.finfo(z.dtype).eps)
    np.testing.assert_allclose(got.get().astype(np.float64), expected, rtol=epsilon, atol=epsilon)


@with_transforms
def test_transforms():
    """The cases of `fft`, whole and cut into windows, which CPUs prove with SciPy's transforms."""
    check_seeds(range(10_000, 10_400), "fft", device.run, "cuda")


@with_transforms
def test_a_long_signal_takes_the_memory_that_its_plan_says():
    """Of CuPy's pool, plans of cuFFT included; each sum is at its place."""
    rng, taps = np.random.default_rng(0), 10_001
    x, w = cupy.zeros((1, 1, 100_000_000), np.float32), cupy.asarray(rng.standard_normal((1, 1, taps)), "f4")
    at = [0, 12_345_678, 55_555_555, 99_999_999 - taps]
    x[0, 0, at] = 1
    out = cupy.empty((1, 1, x.size - taps + 1), np.float32)
    plan = cuconv.plan("fprop", x.shape, w.shape, algorithm="fft", backend="cuda")
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    plan(x, w, out=out)
    assert pool.total_bytes() - before <= 1.5 * plan.workspace_bytes  # the pool keeps pieces of all sizes
    turned = w[0, 0, ::-1]
    for place in at[1:]:
        near = out[0, 0, place - taps + 1 : place + 1]
        cupy.testing.assert_allclose(near, turned[-near.size :], atol=1e-6)


@with_transforms
def test_transforms_are_not_captured():
    x, w = cupy.zeros((1, 1, 64)), cupy.ones((1, 1, 5))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        out = cuconv.conv(x, w, algorithm="fft")
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"):
            cuconv.conv(x, w, out=out, algorithm="fft")
        stream.end_capture()


@pytest.mark.sanitize
def test_images_of_integers():
    x = np.arange(2 * 3 * 9 * 8, dtype=np.uint8).reshape(2, 3, 9, 8)
    w = np.arange(-24, 24, dtype=np.int8).reshape(4, 3, 2, 2)
    options = dict(padding=1, padding_mode="reflect", flip=True, out_dtype="int32")
    np.testing.assert_array_equal(device.run("fprop", x, w, **options), cuconv.conv(x, w, **options))


@pytest.fixture
def pool():
    """CuPy's pool, which may be given a limit for the time of a test."""
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    yield pool
    pool.set_limit(size=0)


@pytest.mark.parametrize("known", [False, True])
def test_memory_that_runs_short(pool, known):
    """Nothing is written, the error says what was needed, and the call works once memory is there."""
    shapes = (16, 64, 56, 56), (64, 64, 3, 3)
    x, w = (cupy.ones(shape, np.float32) for shape in shapes)
    dy, out = cupy.ones(shapes[0], np.float32), cupy.full(shapes[0], 7, np.float32)

    def call():
        return cuconv.conv_backward(dy, x, w, padding=1, algorithm="simt", out=(out, None, None))

    forget()
    if known:
        call()
        out[...] = 7
    cupy.cuda.get_current_stream().synchronize()
    pool.free_all_blocks()
    pool.set_limit(size=pool.used_bytes() + 4096)  # less than dw takes
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match=r"The call takes [\d,]+ bytes .*a smaller"):
        call()
    pool.set_limit(size=0)
    assert cupy.all(out == 7)
    dx, dw, _ = call()
    assert dx is out
    assert dw[0, 0, 1, 1] == 16 * 56 * 56


def test_threads_with_streams_of_their_own():
    """Eight at once, in turns over all ops, beside others' workspaces."""
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((4, 16, 20, 20), (16, 16, 3, 3)))
    options = dict(padding=1, padding_mode="reflect", algorithm="simt")
    on_host = options | dict(algorithm="auto")
    expected = cuconv.conv(x, w, **on_host), *cuconv.conv_backward(x, x, w, **on_host)

    def work(number):
        with cupy.cuda.Stream(non_blocking=True):
            there = cupy.asarray(x), cupy.asarray(w)
            for _ in range(50):
                results = cuconv.conv(*there, **options), *cuconv.conv_backward(there[0], *there, **options)
            for result, right in zip(results, expected, strict=True):
                np.testing.assert_array_equal(result.get(), right)

    in_threads(8, work)


FORKED = """
import multiprocessing, sys
import cupy, numpy as np
import cuconv

def child(queue):
    try:
        queue.put(float(cuconv.conv(cupy.ones((1, 1, 8)), cupy.ones((1, 1, 3)))[0, 0, 0]))
    except RuntimeError as error:
        queue.put(str(error))

def given(queue):
    try:
        cuconv.conv(*arrays)
    except RuntimeError as error:
        queue.put(str(error))
    queue.put(float(cuconv.conv(np.ones((1, 1, 8)), np.ones((1, 1, 3)))[0, 0, 0]))

fork = multiprocessing.get_context("fork")
def said(target, count):
    queue = fork.SimpleQueue()
    process = fork.Process(target=target, args=(queue,))
    process.start()
    for _ in range(count):
        print(queue.get())
    process.join()

cuconv.conv(np.ones((1, 1, 8)), np.ones((1, 1, 3)))
said(child, 1)
arrays = cupy.ones((1, 1, 8)), cupy.ones((1, 1, 3))
cuconv.conv(*arrays)
said(given, 2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_forks():
    """A child of a process that used NumPy arrays only has the GPU; of one that used the GPU it has not."""
    run = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120)
    first, second, third = run.stdout.splitlines()
    assert first == third == "3.0", run.stderr
    assert second.startswith("CUDA does not survive a fork")
