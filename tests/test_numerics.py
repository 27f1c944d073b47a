"""docs/numerics.md has what is measured, and what it promises holds on both backends."""

import math
import re
from fractions import Fraction
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

import cuconv

from . import emulator, numerics
from .cases import ALGORITHMS, DTYPES, KERNELS, ON_GPU, OPS, PUBLIC
from .numerics import COLUMNS, TABLES, TF32, bound, compare, head, measured, problem_of, read, rows

TEXT = numerics.DOCUMENT.read_text()
CELLS = [
    (backend, *key, data, *column)
    for backend in ("cpu", "cuda")
    for key, ops in rows(backend).items()
    for data in TABLES
    for column in head(data)
    if column[1] in ops
]
"""All that is measured: backend, dtype, algorithm, data, length, op."""

OF_SUMS = [
    ("float16", "grouped", "normal", "short", "fprop"),
    ("bfloat16", "depthwise", "positive", "long", "dgrad"),
    ("float32", "mma", "positive", "long", "fprop"),
    ("float32", "wgmma", "normal", "long", "dgrad"),
    ("float32", "simt", "normal", "short", "wgrad"),
    ("float64", "mma", "positive", "long", "dgrad"),
    ("float64", "fft", "positive", "long", "fprop"),
    ("complex64", "simt", "normal", "short", "dgrad"),
    ("int32", "direct", "positive", "long", "wgrad"),
    (TF32, "mma", "normal", "short", "fprop"),
]
"""Those of a GPU's that are measured again in every run."""


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
@pytest.mark.parametrize("data", TABLES)
def test_every_algorithm_has_its_line_in_every_dtype(backend, data):
    found = read(TEXT, backend, data)
    assert found.keys() == rows(backend).keys()
    assert {algorithm for _, algorithm in found} == {*(ALGORITHMS if backend == "cpu" else ON_GPU)}
    assert {dtype for dtype, _ in found} == {*COLUMNS} - ({TF32} if backend == "cpu" else set())
    for key, cells in found.items():
        for column, text in cells.items():
            assert column[1] not in rows(backend)[key] or text != "-"


def test_every_figure_is_below_its_bound():
    for backend, dtype, algorithm, data, length, op in CELLS:
        products = problem_of(algorithm, length, op).gemm(op)[2]
        assert products == 144 if length == "short" else products in (3200, 4608)
        text = read(TEXT, backend, data)[dtype, algorithm][length, op]
        mean, largest = map(float, text.split(", "))
        assert mean <= largest < bound(dtype, products) or mean == largest == bound(dtype, products) == 0


@pytest.mark.parametrize("asked", OF_SUMS, ids=" ".join)
def test_figures_of_the_emulator_are_measured_again(asked):
    compare(TEXT, "cuda", *asked)


@pytest.fixture(scope="module")
def process():
    """One with the kernels of BLAS that the page was measured with, if it has them."""
    with numerics.pool(1) as pool:
        yield pool


def test_figures_of_a_cpu_are_measured_again(process):
    """float32 and integers by all algorithms, float64 by some."""
    some = ("mec", "toeplitz", "depthwise")
    asked = [("cpu", "float64", name, "positive", "long", "fprop") for name in some]
    asked += [each for each in CELLS if each[:2] == ("cpu", "float32") and each[4] == "short"]
    asked += [each for each in CELLS if each[:2] == ("cpu", "int64") and each[3:5] == ("normal", "short")]
    for each in [process.submit(compare, TEXT, *one) for one in asked]:
        each.result()
    if process.submit(numerics.kernels).result() != numerics.KERNELS:
        pytest.skip(f"NumPy's BLAS has no kernels for {numerics.KERNELS}: bounds alone were looked at")


@pytest.mark.long
def test_all_figures_are_measured_again(process):
    for each in [process.submit(compare, TEXT, *asked) for asked in CELLS]:
        each.result()


@pytest.mark.skipif(numerics.kernels() != "SkylakeX", reason="NumPy's BLAS has no kernels for AVX-512 here")
def test_figures_of_kernels_for_avx_512():
    """They are in the page's prose."""
    said = re.findall(r"[\d.]+, [\d.]*\d", TEXT.split("kernels for AVX-512")[1].split("\n\n")[0])
    of = (("float64", "toeplitz"), ("float64", "mec"), ("float32", "toeplitz"))
    with numerics.pool(1, "SkylakeX") as pool:
        for (dtype, algorithm), pair in zip(of, said, strict=True):
            got = pool.submit(measured, "cpu", dtype, algorithm, "fprop", "long", "positive").result()
            assert numerics.near(pair, got), (dtype, algorithm, got)


# -- the comparison itself -----------------------------------------------------------------------------


def test_a_wrong_digit_on_the_page_is_found():
    asked = ("float32", "simt", "normal", "short", "wgrad")
    compare(TEXT, "cuda", *asked)
    said = read(TEXT, "cuda", "normal")["float32", "simt"]["short", "wgrad"]
    wrong = said[:-1] + str((int(said[-1]) + 1) % 10)
    begin, end = numerics.marks("cuda", "normal")
    before, rest = TEXT.split(begin)
    table = rest.split(end)[0]
    with pytest.raises(AssertionError, match="and not"):
        compare(before + begin + table.replace(said, wrong) + end, "cuda", *asked)


def test_a_wrong_figure_of_a_cpu_is_found(process):
    begin, end = numerics.marks("cpu", "normal")
    columns = ("fprop", "dgrad", "wgrad")
    text = f"{begin}\n\n| float32 | gemm | {' | '.join(['0.9, 1.1'] * 6)} |\n{end}"
    if process.submit(numerics.kernels).result() != numerics.KERNELS:
        pytest.skip("another BLAS's figures are not compared")
    for op in columns:
        with pytest.raises(AssertionError, match="far from"):
            process.submit(compare, text, "cpu", "float32", "gemm", "normal", "short", op).result()


@pytest.mark.parametrize(
    ("dtype", "lost", "message"),
    [
        ("float32", lambda y: y + np.float32(2e-4) * (np.arange(y.size) == 77).reshape(y.shape), "and not"),
        ("float32", lambda y: y * np.float32(1.001), "above the bound"),
        ("float16", lambda y: np.nextafter(y, np.float16(np.inf)), "above the bound"),
        ("int32", lambda y: y + (np.arange(y.size) == 77).reshape(y.shape), "1 integers are not exact"),
    ],
)
def test_a_kernel_that_loses_more_is_found(dtype, lost, message):
    computed = numerics.computed
    asked = ("cuda", dtype, "simt", "normal", "short", "fprop")
    compare(TEXT, *asked)
    with (
        mock.patch.object(
            numerics, "computed", lambda *given, **options: lost(computed(*given, **options)).astype(dtype)
        ),
        pytest.raises(AssertionError, match=message),
    ):
        compare(TEXT, *asked)


def test_sums_in_16_bits_would_be_found():
    """One after the other with a rounding each, as no algorithm adds: above the bound."""
    problem = problem_of("direct", "long", "fprop")
    (x, w), true = numerics.truth("fprop", problem, "float16", "positive")
    y = np.zeros((16, 64), np.float16)
    seen = sliding_window_view(np.pad(x[0], ((0, 0), (1, 1), (1, 1))), (8, 8), (1, 2))
    for channel, r, s in np.ndindex(512, 3, 3):
        y += w[:, channel, r, s, None] * seen[channel, r, s].ravel()
    assert true.share(y.reshape(1, 16, 8, 8)) > 1


def test_two_digits():
    values = (0, 0.00594, 0.0995, 0.1, 0.996, 1.04, 9.96, 28.4, 99.6, 234)
    said = ["0", "0.0059", "0.10", "0.10", "1.0", "1.0", "10", "28", "100", "230"]
    assert [*map(numerics.shown, values)] == said


def test_algorithms_share_a_line_where_they_have_the_same_figures():
    def of(*figures):
        return dict(zip([("positive", "long", op) for op in OPS], figures, strict=True))

    same, other = of((1.0, 2.0), (1.0, 2.0), None), of((1.0, 2.0), None, (3.0, 4.0))
    found = {("float32", "a"): same, ("float32", "b"): of((1.0, 2.1), None, None), ("float32", "c"): other}
    found |= {("float64", key): each for (_, key), each in found.items()}
    lines = numerics.table(found, "positive")
    assert lines[2:] == [
        "| float32, float64 | a, c | 1.0, 2.0 | 1.0, 2.0 | 3.0, 4.0 |",
        "| float32, float64 | b | 1.0, 2.1 | - | - |",
    ]
    begin, end = numerics.marks("cpu", "positive")
    again = read(begin + "\n".join(lines) + "\n" + end, "cpu", "positive")
    assert again.keys() == found.keys()
    assert again["float64", "c"]["long", "wgrad"] == "3.0, 4.0"


# -- what the page promises ----------------------------------------------------------------------------


def run(backend, op, *arrays, **options):
    return emulator.run(op, *arrays, **options) if backend == "cuda" else PUBLIC[op](*arrays, **options)


BOTH = pytest.mark.parametrize("backend", ["cpu", "cuda"])


@BOTH
def test_the_one_rounding_of_half_types_is_to_nearest_and_even(backend):
    for name in numerics.HALVES:
        dtype = DTYPES[name]
        last = numerics.LAST[name]
        small = np.array([last / 2, 3 * last / 2, 0.49 * last, 0.51 * last], dtype)  # beside one
        y = run(backend, "fprop", np.stack([np.ones_like(small), small])[None], np.ones((1, 2, 1), dtype))
        np.testing.assert_array_equal(y[0, 0].astype(float), [1, 1 + 2 * last, 1, 1 + last])


@BOTH
def test_half_types_overflow_when_they_are_stored_and_not_before(backend):
    x = np.full((1, 1, 3), 6e4, np.float16)
    assert run(backend, "fprop", x, np.ones((1, 1, 3), np.float16)) == np.inf
    assert run(backend, "fprop", x, np.array([[[1, 1, -1]]], np.float16)) == np.float16(6e4)


def test_subnormals_are_kept_by_every_algorithm():
    for dtype, least in (("float32", 2.0**-149), ("float16", 2.0**-24), ("bfloat16", 2.0**-133)):
        x = np.full((1, 1, 4, 4), least).astype(DTYPES[dtype])
        one = np.zeros((1, 1, 3, 3), x.dtype)
        one[..., 1, 1] = 1
        for backend, names in (("cpu", ALGORITHMS), ("cuda", ON_GPU)):
            for name in names:
                if "fprop" in rows(backend).get((dtype, name), ()):
                    y = run(backend, "fprop", x, one, padding=1, algorithm=name)
                    np.testing.assert_array_equal(y, x, f"{name} {dtype} {backend}")


def test_tf32_keeps_them_from_2_to_the_minus_136_on():
    x = np.array([[[2.0**-136, -(2.0**-136)]]], np.float32)
    y = emulator.run("fprop", x, np.ones((1, 1, 1), np.float32), algorithm="mma", precision=TF32)
    np.testing.assert_array_equal(y, x)


def test_nothing_is_rounded_to_tf32_but_by_tensor_cores_and_if_it_is_permitted():
    problem = cuconv.ConvProblem.parse("n1c1h12w12 k1r3s3 p1")
    drawn = numerics.operands(problem, "float32", "normal")
    differ = set()
    for backend, names in (("cpu", ALGORITHMS), ("cuda", KERNELS)):
        for name in names:
            if "fprop" not in rows(backend).get(("float32", name), ()):
                continue
            options = problem.options() | dict(algorithm=name)
            plain, permitted = (
                run(backend, "fprop", drawn["x"], drawn["w"], **options, precision=precision)
                for precision in (None, TF32)
            )
            if plain.tobytes() != permitted.tobytes():
                differ.add((backend, name))
    assert differ == {("cuda", name) for name in ON_GPU if numerics.rounds(name)}


@BOTH
@pytest.mark.parametrize("dtype", [name for name in DTYPES if DTYPES[name].kind in "fc"])
def test_the_bias_gradient_is_summed_in_double_precision(dtype, backend):
    """So that the last rounding is what it loses; float64 loses what a sum in it does."""
    real = DTYPES[dtype]
    dy = numerics.operands(cuconv.ConvProblem.parse("n4c1h32w32 k2r1s1"), dtype, "positive")["dy"]
    got = run(backend, "bgrad", dy)
    wide = np.complex128 if real.kind == "c" else np.float64
    for k in range(2):
        cells = dy[:, k].ravel().astype(wide)
        for of in (np.real, np.imag) if real.kind == "c" else (np.real,):
            exact = math.fsum(of(cells))
            last = float(ml_dtypes.finfo(real).eps) / 2 * abs(exact) + 4096 * 2.0**-53 * abs(exact)
            assert abs(float(of(got[k].astype(wide))) - exact) <= last


def test_the_sums_that_the_errors_are_taken_from_are_exact():
    """The oracle's, against fractions: within a thousandth of the last place of float64."""
    problem = problem_of("gemm", "long", "fprop")
    (x, w), true = numerics.truth("fprop", problem, "float64", "positive")
    seen = np.pad(x[0], ((0, 0), (1, 1), (1, 1)))
    for at in range(0, len(true.exact), len(true.exact) // 3):
        _, k, i, j = (int(axis[at]) for axis in true.index)
        products = zip(seen[:, i : i + 3, j : j + 3].flat, w[k].flat, strict=True)
        exact = sum(Fraction(float(a)) * Fraction(float(b)) for a, b in products)
        mantissa, exponent = np.frexp(true.exact[at])
        got = Fraction(int(mantissa * np.longdouble(2) ** 64)) * Fraction(2) ** (int(exponent) - 64)
        assert abs(got - exact) <= exact * Fraction(2) ** -52 / 100
