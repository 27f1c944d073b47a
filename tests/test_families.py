"""The corners of each family of the NumPy path: what tiles, runs and columns leave over, by the oracle."""

import contextlib
import dataclasses
import itertools
import time

import numpy as np
import pytest

import cuconv
from cuconv.cpu import TABLE, im2col, padding, products, toeplitz, windows
from cuconv.cpu.padding import room
from cuconv.plan import INPUTS, forget, make_plan
from cuconv.problem import Request

from .cases import HUGE, OPS, PUBLIC, Case, applies, check, ops_of, threads, values, workspace
from .reference import Reference, activated, wrapped

CORNERS = {
    "mec": (
        "n2c3h40w12 k4r3s3 sh2sw1 dh17dw1 p1",
        "n2c2h50w45 k3r2s3 g1 sh20sw11 p2",
        "n1c2d30h9w31 k3t2r2s3 dd25dh2dw13 p1 circular",
        "n2c3w19 k4s4 sw3 dw2 p2",
        "n2c4h9w8 k6r3s2 g2 sh2sw1 dh1dw3 p2",
        "n3c2h7w9 k3r2s4 sh3sw2 dh2dw2 ph-1pw3:1",
        "n2c3d4h5w5 k2t2r3s2 sd2sh1sw2 dd1dh2dw1 p1 circular",
        "n1c2h3w3 k2r5s5 p3 reflect",
    ),
    "im2col": (
        "n2c3h12w50 k4r2s3 dh10dw21 p2",
        "n2c2h33w9 k3r2s3 sh16sw2 p1 reflect",
        "n3c4h7w5 k6r3s2 g2 sh2sw1 p1",
        "n2c3h6w9 k5r2s3 dh2dw3 ph-1pw2",
        "n1c6d3h4w5 k6t2r2s3 g3 sd1sh2sw1 p1 reflect",
        "n4c2w33 k9s5 sw2 p3:1 circular",
        "n5c8h1w2 k16r1s2",
    ),
    "col2im": (
        "n2c2h20w21 k3r3s2 sh7sw1 dh5dw15 p3",
        "n3c2w17 k4s2 sw5 p1",
        "n2c3h11w9 k4r2s2 sh3sw4 p1",
        "n2c4h12w11 k6r3s3 g2 ph-2:-1pw-1:1",
        "n2c3h10w9 k2r3s2 sh2sw1 dh2dw3 p2",
        "n1c2d4h6w5 k3t1r3s2 sd3sh1sw2 dd2dh1dw2 p-1:2 replicate",
        "n2c2h8w8 k2r3s3 p-2 circular",
        "n2c48h3w3 k4r3s3 g4 p1",
    ),
    "toeplitz": (
        "n2c3h19w60 k3r3s3 g3 dw25 p1",
        "n2c2d40h9w50 k4t2r3s2 g2 sd1sh2sw14 dd33dh1dw1 p1",
        "n2c3h19w9 k3r3s3 g3 p1",
        "n3c2h23w7 k4r2s3 g2 sh2sw3 p1",
        "n1c3h31w5 k9r3s2 g3 sh3sw1 dh2dw3 p2",
        "n2c2h5w4 k4r7s6 g2 p4",
        "n2c2h4w5 k2r9s3 g2 ph6pw1 circular",
        "n2c2h11w8 k6r3s4 g2 sh1sw2 dh3dw2 p3 reflect",
        "n1c2d5h19w4 k4t3r2s3 g2 sd2sh1sw1 dd1dh2dw1 p1",
        "n2c3h18w4 k3r1s5 g3 sh1sw2 p2 replicate",
    ),
    "depthwise": (
        "n2c3h70w9 k6r3s3 g3 sh1sw2 dh31dw1 ph31pw2",
        "n2c2d5h41w50 k2t2r2s3 g2 sd1sh17sw2 dd1dh3dw20 p1 circular",
        "n5c3h9w8 k3r3s3 g3 p1",
        "n4c2w21 k6s4 g2 sw2 dw3 p3",
        "n3c2d3h5w6 k4t2r2s3 g2 sd1sh2sw3 dd2dh1dw1 p1 circular",
    ),
    "gemm": (
        "n2c4h41w12 k6r3s2 g2 sh3sw1 dh18dw2 p2",
        "n3c2w90 k3s3 sw2 dw40 p1:3 replicate",
        "n2c3h31w44 k2r1s2 sh9sw13 p2",
        "n3c4h1w1 k5r1s1",
        "n5c6h4w3 k6r1s1 g2 sh2sw1",
        "n4c3h8w7 k3r2s1 g3 sh3sw2 p-1:2",
    ),
}


@pytest.mark.parametrize("small", [(1, 1), (200, 30)])
@pytest.mark.parametrize("line", CORNERS["toeplitz"])
def test_toeplitz_however_its_products_are_split(line, small, monkeypatch):
    """From one column and one row at a time."""
    monkeypatch.setattr(toeplitz, "UNCOPIED", small)
    case = Case(cuconv.ConvProblem.parse(line), "float64", threads=2)
    check(case, "toeplitz", ops=ops_of(case, "toeplitz"))


@pytest.mark.parametrize(("small", "piece"), [(100, 1), (100, 5), (1000, 7), (1000, 1000)])
@pytest.mark.parametrize(
    "line", [*CORNERS["gemm"], "n2c2h9w7 k4r2s2 g2 p1", "n3c2w31 k3s2 p1:0", "n1c2w51 k2s1"]
)
def test_wgrad_however_its_sums_are_split(line, small, piece, monkeypatch):
    """Into pieces of a few cells, with a rest or without."""
    monkeypatch.setattr(products, "SMALL", small)
    monkeypatch.setattr(products, "PIECE", piece)
    for name, dtype in itertools.product(("gemm", "im2col"), ("float16", "float64", "complex64", "int32")):
        check(Case(cuconv.ConvProblem.parse(line), dtype, threads=2), name, ops=("wgrad",))


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("columns", [1, 31, 32, 50])
def test_products_of_integers_however_they_lie(dtype, rows, columns):
    """Wrapping as NumPy's own, from and to memory in either order, gaps in it, and one matrix for many."""
    rng = np.random.default_rng(0)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max

    def lying(shape, transposed):
        *outer, m, n = shape
        memory = rng.integers(low, high, (*outer, n, 2 * m) if transposed else (*outer, m, 2 * n), dtype)
        return memory[..., :m].swapaxes(-1, -2) if transposed else memory[..., :n]

    for in_a, in_b, in_out in itertools.product([False, True], repeat=3):
        for one, many, terms in itertools.product([(), (1,), (2, 1)], [(1,), (2, 3)], [0, 1, 7]):
            a, b = lying((*one, rows, terms), in_a), lying((*many, terms, columns), in_b)
            expected = np.matmul(a, b)
            out = lying(expected.shape, in_out)
            products.matmul(a, b, out)
            np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("few", [0, 1 << 30])
@pytest.mark.parametrize(
    ("name", "line"), [(name, line) for name in ("im2col", "col2im") for line in CORNERS[name]]
)
def test_columns_shared_by_cells_or_by_channels(name, line, few, monkeypatch):
    """What threads share does not change what they compute."""
    monkeypatch.setattr(im2col, "FEW", few)
    for dtype, layout in itertools.product(("float16", "complex128"), ("channels_first", "channels_last")):
        case = Case(cuconv.ConvProblem.parse(line), dtype, layout, workspace=3000, threads=2)
        check(case, name, ops=ops_of(case, name))


@pytest.mark.parametrize("images", [*range(1, 12), 16, 32, 100])
@pytest.mark.parametrize(
    "line",
    [
        "c512h7w7 k512r3s3 p1",
        "c512h14w14 k512r3s3 sh2sw2 p1",
        "c256d12h13w13 k256t3r3s3",
        "c512h7w7 k2048r1s1",
        "c2048h7w7 k512r1s1",
    ],
)
def test_products_of_columns_are_not_thin(line, images):
    """What does not fit in memory is cells too many, and no block of fewer channels makes up for it."""
    problem = cuconv.ConvProblem.parse(f"n{images}{line}")
    for op, name in (("fprop", "im2col"), ("wgrad", "im2col"), ("dgrad", "col2im")):
        plan = make_plan(Request(op, problem, "float32"), name, "cpu", "2 threads")
        (launch,) = plan.launches
        extent = dict(zip(launch.axes.split(), launch.tile, strict=True))
        assert extent["k" if op == "fprop" else "c"] >= 64, str(plan)


@pytest.mark.parametrize("bound", [1, pytest.param(3000, marks=pytest.mark.long), 20000, 1 << 20])
@pytest.mark.parametrize(("name", "line"), [(name, line) for name in CORNERS for line in CORNERS[name]])
def test_corners(name, line, bound):
    for dtype in ("float32", "complex64", "int32"):
        case = Case(cuconv.ConvProblem.parse(line), dtype, workspace=bound, threads=2)
        ops = ops_of(case, name)
        assert ops or (name == "toeplitz" and dtype != "float32")
        check(case, name, ops=ops)


@pytest.mark.parametrize("memory", ["plain", "reversed", "sliced", "transposed", "broadcast"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    "line", ["n3c4h1w1 k6r1s1", "n3c4w3 k6s3", "n3c12w1 k4s1 g4 sw3 p1:-1 reflect", "n2c3h4w5 k2r1s1"]
)
def test_one_tap_or_one_cell_in_any_memory(line, layout, memory):
    """Matrices as thin as a row or a column, of any strides, and their products land where they belong."""
    for name, dtype in itertools.product(("gemm", "mec", "col2im"), ("float32", "complex128", "int64")):
        case = Case(cuconv.ConvProblem.parse(line), dtype, layout, memory=memory)
        check(case, name, ops=ops_of(case, name))


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("line", ["n3c4h1w1 k6r1s1", "n2c3w1 k4s1", "n3c4h1w1 k4r1s1 g2", "n3c2h3w4 k2r1s1"])
def test_images_in_reverse(line, layout):
    """Only the images' stride is negative, or zero: what else is in order may still be read in place."""
    problem, rng = cuconv.ConvProblem.parse(line), np.random.default_rng(0)
    x, w, dy = (
        values(rng, shape(layout), "float64", exact=True)
        for shape in (problem.x_shape, problem.w_shape, problem.y_shape)
    )
    options = problem.options() | dict(layout=layout)
    for turned in (lambda a: a[::-1], lambda a: np.broadcast_to(a[:1], a.shape)):
        calls = {
            "fprop": (turned(x), w),
            "dgrad": (turned(dy), w, x.shape),
            "wgrad": (turned(x), dy, w.shape),
        }
        for op, (first, second, *shape) in calls.items():
            for name in ops_names(op, Case(problem, "float64")):
                plain = PUBLIC[op](first.copy(), second, *shape, **options, algorithm="fft")
                got = PUBLIC[op](first, second, *shape, **options, algorithm=name)
                np.testing.assert_array_equal(got, np.rint(plain), f"{op} by {name}")


def ops_names(op, case):
    return [entry.name for entry in TABLE[op] if entry.exact and applies(case, entry.name, op)]


NOT_FINITE = (
    "n2c3h7w8 k6r3s3 g3 p1",
    "n2c3h9w8 k3r3s2 g3 sh2sw3 ph2pw1",
    "n1c2h9w9 k2r3s3 g2 dh2dw2 p2 circular",
    "n2c2h8w9 k2r2s3 g2 sh3sw2 dh2dw1 p1 reflect",
    "n1c2h7w7 k6r3s3 g2 p2 replicate",
    "n2c4h7w6 k4r3s2 g2 sh2sw1 p1",
    "n1c3d3h4w5 k3t2r2s3 g3 sd2sh1sw2 p1",
    "n2c2w11 k4s3 g2 sw2 p2",
    "n2c3h6w7 k2r3s3 p-1:2",
)
READS = {"fprop": "xw", "dgrad": "yw", "wgrad": "xy"}


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("line", NOT_FINITE)
def test_one_cell_that_is_not_finite_reaches_only_those_who_see_it(line, value, dtype):
    """In x or dy; every other result keeps its bits, and those reached are what the plain sum is.

    Only in wgrad may dy also meet the zeros of the padding, which makes NaN.
    """
    problem, rng = cuconv.ConvProblem.parse(line), np.random.default_rng(0)
    reference = oracle(problem, problem.x_shape(), problem.padding, problem.padding_mode)
    shapes = dict(x=problem.x_shape(), w=problem.w_shape(), y=problem.y_shape())
    for op, bound in itertools.product(OPS, (1500, 1 << 20)):
        for spoiled in sorted(set(READS[op]) - {"w"}):
            arrays = {name: values(rng, shape, dtype, exact=True) for name, shape in shapes.items()}
            arrays[spoiled].flat[rng.integers(arrays[spoiled].size)] = value
            inputs = [arrays[name] for name in READS[op]]
            expected = wrapped(getattr(reference, op)(*inputs), dtype)
            finite, judged = np.isfinite(expected), np.ones(expected.shape, bool)
            if (op, spoiled, problem.padding_mode) == ("wgrad", "y", "zeros"):
                x = padded(arrays["x"], problem.padding)
                explicit = oracle(problem, x.shape, [(0, 0)] * problem.rank).wgrad(x, arrays["y"])
                judged = np.isfinite(wrapped(explicit, dtype)) == finite
            assert (finite & judged).any()
            shape = {"fprop": (), "dgrad": (shapes["x"],), "wgrad": (shapes["w"],)}[op]
            for name in ops_names(op, Case(problem, dtype)):
                with workspace(bound), threads(2):
                    got = PUBLIC[op](*inputs, *shape, **problem.options(), algorithm=name)
                context = f"{op} by {name}, {spoiled} spoiled, {bound} bytes"
                np.testing.assert_array_equal(np.isfinite(got)[judged], finite[judged], context)
                np.testing.assert_array_equal(got[finite & judged], expected[finite & judged], context)
                if dtype == "float32":
                    np.testing.assert_array_equal(got[judged], expected[judged], context)


def oracle(problem, x_shape, padding, mode="zeros"):
    return Reference(
        x_shape, problem.w_shape(), problem.stride, problem.dilation, padding, problem.groups, mode
    )


def padded(x, pairs):
    """The images with the padding's zeros around them, or cropped."""
    x = np.pad(x, [(0, 0), (0, 0), *((max(before, 0), max(after, 0)) for before, after in pairs)])
    inside = [
        slice(max(-before, 0), extent - max(-after, 0))
        for (before, after), extent in zip(pairs, x.shape[2:], strict=True)
    ]
    return x[(slice(None), slice(None), *inside)]


FAR = (
    "n1c1w60000 k1s3 dw20000",
    "n2c2h90w80 k4r3s3 g2 dh40dw36 p30",
    "n1c3d40h44w48 k2t3r2s2 dd18dh40dw44 p1",
    "n1c2h300w9 k3r2s3 sh50sw1 p1",
    "n1c2w70000 k2s2 sw3000 dw45000 p9",
)


@pytest.mark.parametrize("line", FAR)
@pytest.mark.parametrize("op", OPS)
def test_what_lies_between_far_taps_is_not_copied(line, op, monkeypatch):
    """Whatever the blocks are, at most twice what the windows see is brought together."""
    problem, gathered = cuconv.ConvProblem.parse(line), []
    monkeypatch.setattr(windows, "room", lambda *arguments: counted(room(*arguments)))
    monkeypatch.setattr(padding, "room", lambda *arguments: counted(room(*arguments)))

    def counted(array):
        gathered.append(array.size)
        return array

    shapes = {"x": problem.x_shape(), "w": problem.w_shape(), "dy": problem.y_shape()}
    operands = [np.ones(shapes[role]) for role in INPUTS[op]]
    taps = int(np.prod(problem.filter))
    read = problem.k if op == "dgrad" else problem.c
    seen = problem.n * read * taps * int(np.prod(problem.input if op == "dgrad" else problem.output))
    for size in (10_000, 1 << 24):
        for name in ops_names(op, Case(problem, "float64")):
            if name == "col2im":
                continue  # which has no windows
            gathered.clear()
            with workspace(size):
                make_plan(Request(op, problem, "float64"), name, "cpu", "1 thread")(*operands)
            assert sum(gathered) <= 2 * seen, f"{name} in {size} bytes"


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize(
    "line",
    ["n2c3w23 k4s2 sw5", "n3c4h17w14 k4r1s3 g2 sh4sw5 p1", "n2c2h13w11 k2r2s2 g2 sh4sw2 dh2dw4 p1:0"],
)
def test_cells_that_no_tap_meets_are_finished_too(line, activation, layout):
    """With bias, activation and accumulation, as a transposed convolution has them."""
    problem, rng = cuconv.ConvProblem.parse(line), np.random.default_rng(0)
    assert windows.unmet(Request("dgrad", problem, "float64"))
    reference = oracle(problem, problem.x_shape(), problem.padding)
    for dtype, accumulate in itertools.product(("float64", "float16", "int32"), (False, True)):
        if dtype == "int32" and activation == "sigmoid":
            continue
        dy, w, start = (
            rng.integers(-3, 4, shape).astype(dtype)
            for shape in (problem.y_shape(), problem.w_shape(), problem.x_shape())
        )
        bias = rng.integers(-3, 4, problem.c).astype(dtype)
        column = bias.reshape(-1, *(1,) * problem.rank)
        expected = activated(wrapped(reference.dgrad(dy, w), dtype) + column, activation)
        expected = (expected + start * accumulate).astype(np.float64)
        request = Request(
            "dgrad", problem, dtype, layout, bias=True, activation=activation, accumulate=accumulate
        )
        for name in ops_names("dgrad", Case(problem, dtype)):
            arrays = [dy, w, start.copy()]
            if layout == "channels_last":
                arrays = [np.ascontiguousarray(np.moveaxis(array, 1, -1)) for array in arrays]
            out = arrays[2]
            with threads(2):
                make_plan(request, name, "cpu")(*arrays[:2], bias=bias, out=out)
            got = np.moveaxis(out, -1, 1) if layout == "channels_last" else out
            tolerance = 0 if activation != "sigmoid" else 2e-3 if dtype == "float16" else 1e-15
            np.testing.assert_allclose(
                got, expected, rtol=tolerance, atol=tolerance, err_msg=f"{name} {dtype}"
            )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("line", HUGE)
def test_plans_take_milliseconds_whatever_the_numbers(line, op):
    """Of every entry: it is made, or refused, at once."""
    for padding_mode, name in itertools.product(("zeros", "circular"), ["auto", *map(entry_name, TABLE[op])]):
        seconds = []
        for _ in range(3):
            forget()
            windows.phases_of.cache_clear()
            start = time.perf_counter()
            with contextlib.suppress(ValueError):
                problem = dataclasses.replace(cuconv.ConvProblem.parse(line), padding_mode=padding_mode)
                make_plan(Request(op, problem, "float64"), name, "cpu", "2 threads")
            seconds.append(time.perf_counter() - start)
        assert min(seconds) < 0.05, f"{min(seconds):.3f} s for {name}"


def entry_name(entry):
    return entry.name


def test_many_residues_are_left_to_col2im():
    request = Request("dgrad", cuconv.ConvProblem.parse(HUGE[0]), "float32")
    with pytest.raises(ValueError, match="taps meet 216,000 residues of the stride, more than 1,024"):
        make_plan(request, "gemm", "cpu")
    assert make_plan(request, "auto", "cpu").algorithm == "col2im"
