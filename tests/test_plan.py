"""Plans: plain data, cached, printable, reusable; their workspace is what is used."""

import dataclasses
import itertools
import pickle

import numpy as np
import pytest

import cuconv
from benchmarks import suites
from benchmarks.record import all_records
from cuconv.activations import ACTIVATIONS as ACTIVATION_FUNCTIONS
from cuconv.cpu import TABLE, blocking
from cuconv.dtypes import DTYPES
from cuconv.plan import (
    TABLES,
    Call,
    _make_plan,
    _winners,
    avoided,
    current_arch,
    exact_candidates,
    make_plan,
)
from cuconv.problem import ACTIVATIONS, LAYOUTS, Request

from .cases import OPS, Case, applies, check_seeds, threads, workspace
from .memory import peak_memory


def test_plan_is_frozen_printable_data():
    plan = cuconv.plan("fprop", (2, 4, 9, 8), (6, 2, 3, 3), "float32", stride=2, padding=1, groups=2)
    assert (plan.backend, plan.arch) == ("cpu", current_arch("cpu"))
    text = str(plan)
    for part in (
        "n2c4h9w8 k6r3s3 g2 sh2sw2 p1",
        f"{plan.algorithm} on cpu with {current_arch('cpu')}",
        "8,640 FLOP",
        f"{plan.workspace_bytes:,} bytes",
    ):
        assert part in text
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.algorithm = "other"
    hash(plan.request)
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan
    assert hash(again) == hash(plan)
    assert "_hash" not in plan.request.__getstate__()


def test_plans_are_cached():
    arguments = ("wgrad", (2, 4, 9, 8), (6, 4, 3, 3))
    assert cuconv.plan(*arguments) is cuconv.plan(*arguments)


@pytest.mark.parametrize("count", [1, 3])
def test_a_plan_is_for_the_threads_there_are(count):
    with threads(count):
        plan = cuconv.plan("fprop", (3, 4, 9, 8), (6, 4, 3, 3), algorithm="gemm")
    assert plan.launches[0].threads == count
    text = "1 thread" if count == 1 else "3 threads"
    assert f"gemm on cpu with {text}: asked for by name" in str(plan)
    assert (f", {text}" in str(plan.launches[0])) == (count > 1)
    assert pickle.loads(pickle.dumps(plan)) == plan
    x, w = np.ones((3, 4, 9, 8), np.float32), np.ones((6, 4, 3, 3), np.float32)
    np.testing.assert_array_equal(plan(x, w), np.full((3, 6, 7, 6), 36))


def test_little_work_is_left_to_one_thread():
    small, large = (
        make_plan(Request("fprop", cuconv.ConvProblem.parse(line), "float32"), "gemm", "cpu", "2 threads")
        for line in ("n2c4h9w8 k6r3s3", "n8c64h56w56 k64r3s3 p1")
    )
    assert (small.launches[0].threads, large.launches[0].threads) == (1, 2)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_plan_runs_what_it_was_made_for(layout):
    rng = np.random.default_rng(0)
    problem = cuconv.ConvProblem.parse("n2c4h9w8 k6r3s3 g2 sh2sw2 p1")
    x, w = rng.standard_normal(problem.x_shape(layout)), rng.standard_normal(problem.w_shape(layout))
    dy, bias = rng.standard_normal(problem.y_shape(layout)), rng.standard_normal(6)
    options = problem.options() | dict(layout=layout)

    def plan(op, **more):
        return cuconv.plan(op, x.shape, w.shape, "float64", **options, **more)

    np.testing.assert_array_equal(plan("fprop")(x, w), cuconv.conv(x, w, None, **options))
    fused = plan("fprop", bias=True, activation="silu")(x, w, bias=bias)
    np.testing.assert_array_equal(fused, cuconv.conv(x, w, bias, activation="silu", **options))
    dx = cuconv.conv_input_grad(dy, w, x.shape, **options)
    np.testing.assert_array_equal(plan("dgrad")(dy, w), dx)
    np.testing.assert_array_equal(
        plan("dgrad", flip=True)(dy, w[:, ::-1, ::-1] if layout != "channels_first" else w[:, :, ::-1, ::-1]),
        dx,
    )
    out = np.zeros_like(w)
    assert plan("wgrad")(x, dy, out=out) is out
    np.testing.assert_array_equal(out, cuconv.conv_weight_grad(x, dy, w.shape, **options))
    np.testing.assert_array_equal(plan("bgrad")(dy), cuconv.conv_bias_grad(dy, layout=layout))


@pytest.mark.parametrize(
    "change",
    [
        dict(flip=True), dict(bias=True), dict(activation="relu"), dict(accumulate=True),
        dict(precision="tf32"), dict(padding_mode="circular"), dict(layout="channels_last"),
        dict(dtype="float64"), dict(padding=1),
    ],
    ids=str,
)  # fmt: skip
def test_every_option_makes_another_plan(change):
    shapes = (2, 4, 4, 4), (4, 4, 3, 4)
    plain, other = cuconv.plan("fprop", *shapes), cuconv.plan("fprop", *shapes, **change)
    assert plain != other
    assert cuconv.plan("fprop", *shapes) == plain
    assert str(other.request) != str(plain.request)


def test_plans_of_complex_gradients_and_of_unbatched_arrays():
    rng = np.random.default_rng(0)
    x, w, dy = (
        rng.integers(-9, 9, shape) + 1j * rng.integers(-9, 9, shape)
        for shape in ((2, 4, 6, 7), (8, 4, 3, 3), (2, 8, 4, 5))
    )

    def plan(op, x=x):
        return cuconv.plan(op, x.shape, w.shape, "complex128")

    np.testing.assert_array_equal(plan("fprop")(x, w), cuconv.conv(x, w))
    np.testing.assert_array_equal(plan("dgrad")(dy, w), cuconv.conv_input_grad(dy, w, x.shape))
    np.testing.assert_array_equal(plan("wgrad")(x, dy), cuconv.conv_weight_grad(x, dy, w.shape))
    np.testing.assert_array_equal(plan("bgrad")(dy), cuconv.conv_bias_grad(dy))
    np.testing.assert_array_equal(plan("fprop", x[0])(x[0], w), cuconv.conv(x[0], w))


def test_unbatched_plan_is_another_one():
    assert cuconv.plan("fprop", (1, 4, 9), (6, 4, 3)) != cuconv.plan("fprop", (4, 9), (6, 4, 3))


def test_plan_conjugates_only_gradients():
    for op, conjugate in (("fprop", False), ("dgrad", True), ("wgrad", True), ("bgrad", False)):
        assert cuconv.plan(op, (1, 4, 9), (6, 4, 3), "complex64").request.conjugate is conjugate
        assert not cuconv.plan(op, (1, 4, 9), (6, 4, 3), "float32").request.conjugate


def test_depthwise_takes_a_channel_multiplier():
    plan = cuconv.plan("fprop", (1, 4, 9), (8, 1, 3), groups=4, algorithm="depthwise")
    assert plan.algorithm == "depthwise"


def test_tune_times_once(monkeypatch):
    x, w = np.ones((2, 3, 9, 11)), np.ones((4, 3, 2, 3))
    timed, seconds = [], Call._seconds
    monkeypatch.setattr(Call, "_seconds", lambda *args: timed.append(1) or seconds(*args))
    for _ in range(2):
        cuconv.conv(x, w, algorithm="tune")
    request = cuconv.plan("fprop", x.shape, w.shape, "float64").request
    assert len(timed) == 2 * len(exact_candidates(request, "cpu"))


def test_plan_refuses_other_arrays():
    plan = cuconv.plan("fprop", (2, 4, 9), (6, 4, 3), "float32")
    x, w = np.ones((2, 4, 9), np.float32), np.ones((6, 4, 3), np.float32)
    with pytest.raises(ValueError, match=r"x must have shape \(2, 4, 9\)"):
        plan(x[..., :8], w)
    with pytest.raises(
        TypeError, match="made for arrays on the CPU of dtype float32, got arrays on the CPU of dtype float64"
    ):
        plan(x.astype(float), w.astype(float))
    with pytest.raises(TypeError, match="takes x, w, got 1"):
        plan(x)
    with pytest.raises(ValueError, match="bias was not announced"):
        plan(x, w, bias=np.ones(6, np.float32))
    with pytest.raises(ValueError, match="fused into fprop, not into dgrad"):
        cuconv.plan("dgrad", (2, 4, 9), (6, 4, 3), activation="relu")
    with pytest.raises(ValueError, match="algorithm='tune' times a call's arrays"):
        cuconv.plan("fprop", (2, 4, 9), (6, 4, 3), algorithm="tune")
    with pytest.raises(ValueError, match="device='sm_80' is for backend='cuda', got backend='cpu'"):
        cuconv.plan("fprop", (2, 4, 9), (6, 4, 3), device="sm_80")
    for device in ("sm80", "H100", "sm_70", ""):
        with pytest.raises(ValueError, match=rf"from sm_75 on .* one of sm_75 \(T4\), .*; got '{device}'"):
            cuconv.plan("fprop", (2, 4, 9), (6, 4, 3), backend="cuda", device=device)
    with pytest.raises(TypeError, match="device must be an architecture such as 'sm_90', got 0"):
        cuconv.plan("fprop", (2, 4, 9), (6, 4, 3), backend="cuda", device=0)
    with pytest.raises(ValueError, match=r"backend must be 'cpu', for NumPy arrays, or 'cuda', .* got 'gpu'"):
        cuconv.plan("fprop", (2, 4, 9), (6, 4, 3), backend="gpu")
    with pytest.raises(ValueError, match=r"algorithm='simt' is for arrays on a GPU, and these are .* 'gemm'"):
        cuconv.plan("fprop", (2, 4, 9), (6, 4, 3), algorithm="simt")
    with pytest.raises(
        ValueError, match=r"algorithm='mec' is for arrays on the CPU, and these are .* 'direct'"
    ):
        cuconv.plan("fprop", (2, 4, 9), (6, 4, 3), algorithm="mec", backend="cuda")


def test_auto_takes_a_depthwise_path_and_never_an_inexact_one():
    depthwise = cuconv.plan("fprop", (8, 32, 56, 56), (32, 1, 3, 3), groups=32, padding=1)
    assert depthwise.algorithm in ("depthwise", "toeplitz")
    long = cuconv.plan("fprop", (1, 1, 100_000), (1, 1, 20_000))
    assert long.algorithm != "fft"
    for table in TABLES.values():
        for op in OPS:
            assert [entry.name for entry in table[op] if not entry.exact] == ["fft"]


def test_tune_remembers_the_fastest_and_leaves_out_alone():
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 9, (2, 6, 9, 9)).astype(float), rng.integers(-9, 9, (6, 1, 3, 3)).astype(float)
    expected = cuconv.conv(x, w, groups=6)
    np.testing.assert_array_equal(cuconv.conv(x, w, groups=6, algorithm="tune"), expected)
    out = np.full_like(expected, 100)
    cuconv.conv(x, w, groups=6, algorithm="tune", out=out, accumulate=True)
    np.testing.assert_array_equal(out, expected + 100)
    request = cuconv.plan("fprop", x.shape, w.shape, "float64", groups=6).request
    assert _winners[request, "cpu", current_arch("cpu")].algorithm in [
        entry.name for entry in exact_candidates(request, "cpu")
    ]
    with pytest.raises(ValueError, match="out must have shape"):
        cuconv.conv(x, w, groups=6, algorithm="tune", out=out[:1])


PROBLEMS = (
    "n8c32h28w28 k48r3s3 p1",
    "n4c64h40w40 k64r1s1",
    "n2c3h112w112 k32r7s7 sh2sw2 p3",
    "n8c96h28w28 k96r7s7 g96 p3",
    "n2c16w8000 k16s15 p7",
    "n2c8d20h20w20 k8t3r3s3 p1 circular",
    "n2c8h50w50 k8r3s3 g2 dh2dw2 p2 reflect",
)


def random_operands(line, op, dtype):
    """A problem, one op's operands on it, and an array for the result."""
    problem = cuconv.ConvProblem.parse(line)
    rng = np.random.default_rng(0)
    shapes = {"x": problem.x_shape(), "w": problem.w_shape(), "dy": problem.y_shape()}
    inputs = {"fprop": ("x", "w"), "dgrad": ("dy", "w"), "wgrad": ("x", "dy")}[op]
    operands = [rng.standard_normal(shapes[name]).astype(dtype) for name in inputs]
    return problem, operands, np.zeros(shapes[{"fprop": "dy", "dgrad": "x", "wgrad": "w"}[op]], dtype)


def numpy_buffers(plan):
    """What NumPy itself may take for each thread: buffers of a ufunc's three operands, and small objects."""
    item = np.dtype(DTYPES[plan.request.dtype].accumulator).itemsize
    return plan.launches[0].threads * (3 * np.getbufsize() * item + 30_000)


def warm_up():
    """Run each entry once, on the first problem that it can do, for what first calls load and keep."""
    with threads(3):
        for op in OPS:
            for entry in TABLE[op]:
                for line in ("n3c3h6w6 k3r3s3 g3", *PROBLEMS):
                    problem, operands, out = random_operands(line, op, "float32")
                    if applies(Case(problem, threads=3), entry.name, op):
                        make_plan(Request(op, problem, "float32"), entry.name, "cpu")(*operands, out=out)
                        break


@pytest.fixture(scope="module")
def warm():
    """What the first calls load and keep is there, and SciPy, which the first gelu imports."""
    warm_up()
    ACTIVATION_FUNCTIONS["gelu"].function(np.ones(1))


def hold_to_its_word(plan, *arguments, **options):
    """Peak memory beyond operands and result is below what the plan says."""
    allowed = plan.workspace_bytes + numpy_buffers(plan)
    peak = peak_memory(lambda: plan(*arguments, **options), allowed)
    assert peak <= allowed, f"{plan}: peak {peak:,}"


def test_peak_memory_is_what_every_run_takes():
    """Not what is taken once, as by another thread meanwhile."""
    held, allowed = [], 400_000

    def run():
        held.append(None if held else np.zeros(1_000_000))
        np.zeros(300_000, np.uint8)

    assert 300_000 <= peak_memory(run, allowed) <= allowed
    assert len(held) == 2
    assert peak_memory(lambda: np.zeros(allowed, np.uint8), allowed) > allowed


@pytest.mark.parametrize(
    ("dtype", "bound", "count"),
    [
        ("float32", 1 << 20, 1),
        ("float32", 1 << 21, 2),
        ("float16", 1 << 20, 3),
        ("complex64", 1 << 21, 2),
        ("int32", 1 << 20, 2),
    ],
)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("line", PROBLEMS)
def test_workspace_is_honestly_stated(line, op, dtype, bound, count, warm):
    """Whatever the bound and the threads, for every entry of the table that applies."""
    problem, operands, out = random_operands(line, op, dtype)
    request = Request(op, problem, dtype, conjugate=dtype == "complex64" and op != "fprop")
    with workspace(bound), threads(count):
        for entry in TABLE[op]:
            # Transforms take long, and do not depend on the threads.
            if (entry.exact or count != 3) and applies(Case(problem, dtype, threads=count), entry.name, op):
                hold_to_its_word(make_plan(request, entry.name, "cpu"), *operands, out=out)


@pytest.mark.parametrize("taps", [(1, 1), (1, 1, 1)])
def test_an_entry_that_applies_to_little_trips_no_helper(monkeypatch, taps):
    """One of the problems here, or none, and one generated case in thousands."""

    def applies(request, cpu):
        problem = request.problem
        few = problem.filter == taps and problem.groups == 1 and set(problem.stride) == {1}
        return None if few else "it is for few problems"

    ran, last = [], TABLE["wgrad"][-1]
    picky = dataclasses.replace(
        last, name="picky", applies=applies, estimate=lambda request, cpu: np.inf,
        plan=lambda request, cpu: ran.append(request.problem.filter) or last.plan(request, cpu),
    )  # fmt: skip
    monkeypatch.setitem(TABLE, "wgrad", (picky, *TABLE["wgrad"]))
    warm_up()
    assert set(ran) == {line for line in [taps] if len(line) == 2}
    check_seeds(range(10_000, 10_001), "picky")
    assert set(ran) == {taps}


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_workspace_of_activations(activation, warm):
    x, w, bias = (np.ones(shape, np.float32) for shape in ((4, 8, 60, 60), (64, 8, 1, 1), (64,)))
    out = np.zeros((4, 64, 60, 60), np.float32)
    plan = cuconv.plan("fprop", x.shape, w.shape, bias=True, activation=activation, accumulate=True)
    hold_to_its_word(plan, x, w, bias=bias, out=out)


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("op", OPS)
def test_exact_algorithms_keep_to_the_bound(op, count):
    """On problems whose smallest block fits, filters apart, the workspace is at most the stated constants."""
    allowed = min(count * blocking.WORKSPACE, blocking.LIMIT)
    for line in PROBLEMS:
        problem = cuconv.ConvProblem.parse(line)
        filters = (2 + count) * 4 * int(np.prod(problem.w_shape()))
        request = Request(op, problem, "float32")
        for entry in exact_candidates(request, "cpu"):
            plan = make_plan(request, entry.name, "cpu", f"{count} threads")
            assert plan.workspace_bytes <= allowed + filters, str(plan)


SCRATCH = [
    ("n4c64h40w40 k64r4s4 g64 sh4sw4 p1 circular", "fprop", "float16", None, "depthwise"),
    ("n4c64h40w40 k64r3s3 g64 sh2sw2 p1 circular", "dgrad", "float32", None, "depthwise"),
    ("n8c64h60w60 k8r3s3 p-1", "dgrad", "float32", None, "gemm"),
    ("n8c64h60w60 k8r3s3 p-20", "dgrad", "float32", None, "gemm"),
    ("n8c64h60w60 k64r3s3 g64 ph-20:9pw3:-9 circular", "dgrad", "float16", None, "depthwise"),
    ("n8c32h28w28 k48r1s1", "fprop", "float32", "gelu", "gemm"),
    ("n8c96h28w28 k96r3s3 g96", "fprop", "float32", "silu", "depthwise"),
    ("n4c64h40w40 k64r4s4 g64 sh4sw4 p1", "wgrad", "complex64", None, "depthwise"),
    ("n4c16h40w40 k8r3s3", "wgrad", "complex64", None, "gemm"),
    ("n2c4h64w64 k256r1s1", "dgrad", "float32", None, "gemm"),
    ("n4c13h40w40 k64r2s3", "wgrad", "float16", None, "gemm"),
    ("n4c64h40w40 k64r4s4 g64 sh2sw2 p1 circular", "fprop", "float16", None, "toeplitz"),
    ("n4c64h40w40 k64r3s3 g64 sh2sw2 p1 circular", "dgrad", "float32", None, "toeplitz"),
    ("n8c64h60w60 k64r3s3 g64 ph-20:9pw3:-9 circular", "dgrad", "float16", None, "toeplitz"),
    ("n4c32h40w40 k96r7s7 g32 p3", "wgrad", "float32", None, "toeplitz"),
    ("n8c96h28w28 k96r3s3 g96", "fprop", "float32", "gelu", "toeplitz"),
    ("n8c8h60w60 k32r3s3 sh2sw2 p1 reflect", "fprop", "float16", None, "mec"),
    ("n8c8h60w60 k32r3s3 p1", "fprop", "float32", "gelu", "mec"),
    ("n8c8h60w60 k8r3s3 p-20", "dgrad", "float32", None, "mec"),
    ("n4c4h40w40 k16r5s5 g2 p2 circular", "dgrad", "complex64", None, "mec"),
    ("n8c8h60w60 k32r5s5 sh3sw3 p1 circular", "dgrad", "complex64", None, "col2im"),
    ("n8c64h60w60 k8r3s3 p-20", "dgrad", "float16", None, "col2im"),
    ("n1c1w300000 k1s101", "fprop", "float32", None, "fft"),
    ("n1c2w60000 k2s65 p32 circular", "dgrad", "complex64", None, "fft"),
    ("n1c1w300000 k1s101 sw2", "wgrad", "complex64", None, "fft"),
]


@pytest.mark.parametrize(("bound", "count"), [(1 << 18, 1), (1 << 20, 2), (1 << 22, 1)])
@pytest.mark.parametrize(("line", "op", "dtype", "activation", "name"), SCRATCH)
def test_workspace_where_one_part_of_it_dominates(line, op, dtype, activation, name, bound, count, warm):
    """Copies for padding modes, conjugates and activations, each where leaving it out would show."""
    problem, operands, out = random_operands(line, op, dtype)
    with workspace(bound), threads(count):
        request = Request(op, problem, dtype, activation=activation, conjugate=dtype == "complex64")
        hold_to_its_word(make_plan(request, name, "cpu"), *operands, out=out)


def test_fit_keeps_to_its_share():
    with workspace(100):
        assert blocking.fit((8, 8), lambda a, b: a * b, share=0.5) == (4, 8)
        assert blocking.fit((8, 8), lambda a, b: a * b, share=2) == (8, 8)
        assert blocking.fit((25,), lambda a: 5 * a) == (13,)


def test_fit_shrinks_in_order_down_to_the_bound():
    with workspace(100):
        assert blocking.fit((8, 8), lambda a, b: a * b) == (8, 8)
        assert blocking.fit((8, 8), lambda a, b: 4 * a * b) == (2, 8)
        assert blocking.fit((8, 8), lambda a, b: 4 * a * b, order=(1, 0)) == (8, 2)
        assert blocking.fit((8, 8), lambda a, b: 1000 * a * b) == (1, 1)
        assert blocking.fit((0, 8), lambda a, b: a * b) == (1, 8)


def test_fit_makes_parts_for_the_threads_and_shares_what_all_may_use():
    with workspace(100):
        assert blocking.fit((8, 8), lambda a, b: a * b, threads=2) == (4, 8)
        assert blocking.fit((8, 8), lambda a, b: a * b, threads=3) == (2, 8)
        assert blocking.fit((8, 8), lambda a, b: a * b, threads=4, order=(1, 0)) == (8, 2)
        assert blocking.fit((2, 8), lambda a, b: a * b, threads=4) == (1, 4)
        assert blocking.fit((1, 2), lambda a, b: a * b, threads=4) == (1, 1)
        assert blocking.fit((0, 8), lambda a, b: a * b, threads=4) == (1, 8)
        assert blocking.fit((8, 8), lambda a, b: a * b, threads=2, parts=1) == (8, 8)
        # Ten threads have 30 bytes each, of 300 for all.
        assert blocking.fit((8, 8), lambda a, b: a * b, threads=10, parts=1) == (2, 8)


@pytest.mark.parametrize(
    "line", ["n1c64h200w200 k64r3s3 p1 circular", "n2c64h200w200 k64r3s3 g64 p1 reflect"]
)
def test_a_gradient_to_be_folded_leaves_memory_for_its_blocks(line):
    """An image too large for the bound, which must be whole, does not make blocks of single cells."""
    request = Request("dgrad", cuconv.ConvProblem.parse(line), "float32")
    for entry in exact_candidates(request, "cpu"):
        (launch,) = make_plan(request, entry.name, "cpu", "2 threads").launches
        assert np.prod(launch.tile) >= 100, f"{entry.name}: {launch}"


def test_blocks_cover_every_cell_once():
    seen = np.zeros((5, 7), int)
    for block in blocking.blocks((5, 7), (2, 3)):
        seen[block] += 1
    assert (seen == 1).all()
    assert list(blocking.blocks((0, 7), (1, 3))) == []


def all_requests(suite):
    """The depthwise problems of a suite, in every dtype and layout, each op."""
    problems = [problem for problem in suites.read(suite).problems if problem.groups == problem.c]
    for problem, dtype, layout, op in itertools.product(problems, DTYPES, LAYOUTS, OPS):
        conjugate = dtype.startswith("complex") and op != "fprop"
        yield Request(op, problem, dtype, layout, conjugate=conjugate)


@pytest.mark.parametrize("suite", ["mobilenet_dw", "convnext", "large_kernel"])
def test_depthwise_does_depthwise_problems_on_a_gpu(suite):
    """It is proven as all entries are, so the least estimated time decides, record or not."""
    requests = list(all_requests(suite))
    assert len(requests) >= 4 * len(DTYPES) * len(LAYOUTS) * len(OPS)
    for request in requests:
        plan = make_plan(request, "auto", "cuda", "sm_90")
        assert (plan.algorithm, plan.why) == ("depthwise", "least estimated time, before simt, direct")


def test_a_plan_says_what_stands_behind_it():
    shapes = (8, 8, 40, 40), (8, 1, 3, 3)
    on_gpu = str(cuconv.plan("fprop", *shapes, groups=8, backend="cuda", device="sm_90"))
    assert "on sm_90: least estimated time, before simt, direct; proven without a device record\n" in on_gpu
    assert "record" not in str(cuconv.plan("fprop", *shapes, groups=8))


def test_entries_that_a_device_record_covers_say_so():
    """Where the records are, which are no part of a wheel."""
    timed = {
        timing.contender
        for found in all_records().values()
        if found.environment.device == "cuda"
        for row in found.rows.values()
        for timing in row.ours
        if timing.median_s
    }
    for op, entries in TABLES["cuda"].items():
        assert {entry.name for entry in entries if entry.recorded} == timed & {e.name for e in entries}, op
    assert all(entry.recorded is None for entries in TABLES["cpu"].values() for entry in entries)


# -- what the environment has auto leave out ----------------------------------------------------------

GROUPED = ("fprop", (8, 8, 40, 40), (8, 1, 3, 3), "float32")


def grouped(**options):
    return cuconv.plan(*GROUPED, groups=8, **options)


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_auto_leaves_out_what_is_to_be_avoided(backend, fresh_plans, monkeypatch):
    first = grouped(backend=backend)
    candidates = [entry.name for entry in exact_candidates(first.request, backend)]
    monkeypatch.setenv("CUCONV_AVOID", f" {first.algorithm}, {candidates[-1]},")
    avoided.cache_clear()
    _make_plan.cache_clear()
    second = grouped(backend=backend)
    assert second.algorithm in candidates[:-1]
    assert second.algorithm != first.algorithm
    assert second.why.endswith(f"; CUCONV_AVOID leaves out {first.algorithm}, {candidates[-1]}")
    assert second.why.count(first.algorithm) == 1
    assert grouped(backend=backend, algorithm=first.algorithm).algorithm == first.algorithm


def test_the_environment_is_read_once(fresh_plans, monkeypatch):
    """It is no work of each call, so a change goes unseen."""
    before = grouped()
    monkeypatch.setenv("CUCONV_AVOID", before.algorithm)
    _make_plan.cache_clear()
    assert grouped() == before


def test_nothing_is_left(fresh_plans, monkeypatch):
    monkeypatch.setenv("CUCONV_AVOID", "simt,direct,sum")
    message = (
        "CUCONV_AVOID leaves nothing that does fprop float32 .*, of simt, direct: take one of these out of "
        "it, or name one in the call, as algorithm='direct'"
    )
    shapes = (2, 3, 9), (6, 3, 3)
    with pytest.raises(ValueError, match=message):
        cuconv.plan("fprop", *shapes, backend="cuda")
    assert cuconv.plan("fprop", *shapes, backend="cuda", algorithm="direct").algorithm == "direct"
    assert grouped(backend="cuda").algorithm == "depthwise"
    with pytest.raises(ValueError, match="CUCONV_AVOID leaves nothing that does bgrad"):
        cuconv.conv_bias_grad(np.ones((2, 6, 7)))


def test_a_name_that_no_algorithm_has(fresh_plans, monkeypatch):
    """In every call, until it is mended."""
    monkeypatch.setenv("CUCONV_AVOID", "fft,depth-wise")
    message = (
        r"each name in CUCONV_AVOID must be one of 'col2im', .*, got 'depth-wise'; did you mean 'depthwise'\?"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            cuconv.conv(np.ones((1, 2, 9)), np.ones((2, 2, 3)))
    monkeypatch.setenv("CUCONV_AVOID", "fft,depthwise")
    assert cuconv.conv(np.ones((1, 2, 9)), np.ones((2, 2, 3))).shape == (1, 2, 7)
