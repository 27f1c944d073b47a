"""Every CUDA kernel, run thread by thread, against the oracle: bit for bit on exactly summable data."""

import itertools
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import cuconv
from cuconv import activations
from cuconv.cli.check import PROBLEMS as PLAIN_PROBLEMS
from cuconv.cpu import blocking
from cuconv.cuda import algorithms, depthwise, direct, grouped, jit, mma, schedule, simt, sums, wgmma
from cuconv.cuda.geometry import divisor
from cuconv.plan import INPUTS
from cuconv.problem import ACTIVATIONS, LAYOUTS, PADDING_MODES

from . import emulator
from .cases import (
    DTYPES,
    KERNELS,
    OPS,
    PUBLIC,
    Case,
    applies,
    check,
    check_seeds,
    from_layout,
    ops_of,
    to_layout,
    workspace,
)
from .reference import ZerosMultiplied
from .test_exact import PROBLEMS

# Depthwise kernels by stride, dilation, and how many channels a vector has.
DEPTHWISE = (
    "n2c4h13w5 k4r5s3 g4 p1",
    "n2c8h13w5 k8r3s3 g8 sh3sw1 dh2dw1 p2 circular",
    "n1c4h17w6 k8r3s2 g4 sh2sw2 p1",
    "n2c8w37 k8s4 g8 pw3:0",
    "n1c4h11w9 k4r3s3 g4 sh2sw2 dh2dw2 p2",
)
# Groups of several channels: their strips, of stride 2 from either residue on.
SEVERAL = ("n2c8h13w5 k12r3s3 g4 p1", "n1c6h9w11 k4r3s3 g2 sh2sw2 p1", "n1c6h9w11 k4r3s3 g2 sh2sw2")
# Channels for a warp, but not whole ones: unrolled filters, strided ones, lines; and what padding shows.
LANES = (
    "n3c18h9w6 k18r3s3 g18 p1",
    "n2c18h9w5 k18r5s5 g18 p2",
    "n1c24h8w9 k24r7s7 g24 p3",
    "n2c18h9w8 k18r3s3 g18 sh2sw2 p1",
    "n1c18h8w9 k18r3s3 g18 sh2sw2 p0:1",
    "n1c18h6w7 k18r2s4 g18 sh2sw3 p1",
    "n2c18h6w7 k18r4s3 g18 p1 reflect",
    "n1c18w21 k18s5 g18 sw2 p1",
    "n1c18w21 k18s4 g18 pw2:1 circular",
    "n2c18w21 k18s4 g18 pw3:0",
)
# Whole vectors of channels, of every dtype, where channels are last.
VECTORS = ("n2c8h5w6 k16r3s2 sh2sw1 p1", "n1c16w9 k16s3 g2 sw2 p1", "n1c8d3h4w3 k8t2r2s2 p1")
# Tensor cores: groups that fill a tile or none, channels that are whole vectors or not, residues of a stride.
TENSOR = (
    "n2c5w37 k7s4 sw2 dw3 pw3:1",
    "n1c8h9w8 k16r3s3 sh2sw1 dh1dw2 p1",
    "n2c48h5w7 k32r2s3 g2 p1 circular",
    "n1c24d3h4w5 k17t2r3s2 sd1sh2sw1 p1",
    "n1c24d1h4w5 k17t1r3s2 sd3sh2sw1 pd0ph1pw1",
    "n1c16h5w4 k20r3s2 ph0:2pw3:1 symmetric",
)
# Groups of few channels: two in an octet, as many as a set has, with more filters than channels and fewer;
# and a single one.
GROUPED = (
    "n1c3h9w11 k20r3s7 sh2sw2 p3",
    "n2c1h5w21 k8r2s3 p1",
    "n1c2w40 k5s9 sw3 dw3 p4",
    "n2c2w21 k8s5 sw2 p2",
    "n1c9h7w9 k6r3s2 sh2sw2 ph1:0pw0:1",
    "n1c70h3w4 k40r1s2 pw1",
    "n2c20w9 k5s3 p1",
    "n2c16w37 k16s5 g4 sw2 dw3 pw2",
    "n2c16h9w11 k16r3s3 g4 p1",
    "n1c32h7w6 k32r3s2 g2 p1 sh2sw1",
    "n1c32h5w9 k64r2s3 g2 p2 dh2",
    "n1c64h5w6 k16r2s3 g2 p1 circular",
    "n2c8h11w13 k16r5s5 g2 p2",
    "n1c48d1h6w5 k24t1r3s2 g6 pd0ph1pw1",
)
OWN = {"depthwise": (*LANES, *SEVERAL), "grouped": GROUPED}
FAMILIES = {
    "direct": direct, "simt": simt, "depthwise": depthwise, "grouped": grouped, "mma": mma, "wgmma": wgmma
}  # fmt: skip
ALIKE = ("bfloat16", "int32", "int64", "complex128")
"""Their instances are those of float16, float32 and complex64, but for sizes and rounding."""
AS_FLOAT32 = {
    ("float64", "simt"),
    ("float64", "depthwise"),
    ("float16", "simt"),
    ("float16", "depthwise"),
    ("complex64", "simt"),
    ("complex64", "mma"),
    ("complex64", "depthwise"),
}
"""Whose instances are those of float32, but for the same, and for what is made of a pair of numbers."""
BY_TILE = {("float32", "mma"), ("float64", "mma"), *((dtype, "wgmma") for dtype in DTYPES)}
"""Whose instances test_mma.py and test_wgmma.py run one by one."""
OF_DTYPES = [
    pytest.param(
        dtype,
        name,
        marks=pytest.mark.long
        if (dtype in ALIKE and name != "direct") or (dtype, name) in AS_FLOAT32 | BY_TILE
        else (),
    )
    for dtype in DTYPES
    for name, family in FAMILIES.items()
    if [*family.kernels(dtype)]
]


@pytest.mark.parametrize(("dtype", "algorithm"), OF_DTYPES)
def test_every_entry_of_the_table(dtype, algorithm):
    """Every rank and layout, in one part and in many, and so every instance of the algorithm's kernels."""
    executed, run_plan = set(), emulator.ops.run_plan

    def recorded(launches, *arguments, **options):
        executed.update(launch.kernel for launch in launches)
        run_plan(launches, *arguments, **options)

    with mock.patch.object(emulator.ops, "run_plan", recorded):
        for rank, lines in PROBLEMS.items():
            checked = 0
            for line in (*lines, *DEPTHWISE, *VECTORS, *OWN.get(algorithm, TENSOR)):
                case = Case(cuconv.ConvProblem.parse(line), dtype)
                if case.problem.rank == rank and applies(case, algorithm, "fprop", "cuda"):
                    for precision in precisions(dtype, algorithm):
                        check_in_all_ways(case.problem, dtype, algorithm, precision)
                    checked += 1
            assert checked
    of_dtype = (schedule.C_TYPES[dtype], DTYPES[dtype].itemsize)
    around = {
        "direct": [*sums.kernels(dtype), *schedule.padding_kernels()],
        "simt": schedule.reduce_kernels(),
        "mma": schedule.reduce_kernels(),
        "grouped": schedule.reduce_kernels(),
        "wgmma": schedule.reduce_kernels(),
    }
    expected = {kernel for kernel in around.get(algorithm, ()) if kernel.arguments[0] in of_dtype}
    expected |= {*FAMILIES[algorithm].kernels(dtype)}
    assert expected <= executed <= set(algorithms.kernels())


def precisions(dtype, algorithm):
    """All that change what an algorithm does."""
    return (None, "tf32") if dtype == "float32" and algorithm in ("mma", "wgmma") else (None,)


def ways(dtype, algorithms=KERNELS):
    """Algorithms that there are for a dtype, each with each of these."""
    return [
        (algorithm, precision)
        for algorithm in algorithms
        if algorithm != "grouped" or dtype in grouped.PRODUCTS
        for precision in precisions(dtype, algorithm)
        if algorithm != "wgmma" or (dtype, precision) in wgmma.PRODUCTS
    ]


"""What has to be permitted for an entry to apply, by dtype and name."""

# More than one tile, or block of channels, in every direction; a long filter on the axis that does not slide.
SEVERAL_TILES = (
    ("n1c3w9 k150s3 p1", ("simt", "direct")),
    ("n1c140w5 k140s2 g2", ("simt", "direct")),
    ("n2c20w100 k40s5 p2", ("simt", "direct")),
    ("n1c40h6w7 k40r3s6 g40 p3", ("depthwise", "simt", "direct")),
    ("n1c3d3h6w5 k3t1r3s2 pd-2:0ph1pw0", ("simt", "direct")),  # a first axis that is cropped to one cell
)


@pytest.mark.parametrize(("line", "names"), SEVERAL_TILES)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_several_tiles(dtype, line, names):
    for algorithm in names:
        check_in_all_ways(cuconv.ConvProblem.parse(line), dtype, algorithm)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_vectors_only_where_they_are_aligned(dtype):
    """Contiguous channels that start anywhere, pixels and images any number of elements apart, and others."""
    rng = np.random.default_rng(0)
    wide, filters = (
        rng.integers(-3, 4, (2, 6, 5, 12)).astype(dtype),
        rng.integers(-3, 4, (8, 3, 2, 1)).astype(dtype),
    )
    options = dict(groups=8, padding=1, layout="channels_last")
    for pitch in (8, 9, 10, 12):
        for start in range(12 - 8 + 1 if pitch == 12 else 1):
            x = np.ascontiguousarray(wide[..., :pitch])[..., start : start + 8]
            y = emulator.run("fprop", x, filters, **options, algorithm="depthwise")
            np.testing.assert_array_equal(y, cuconv.conv(x, filters, **options))
            dy = np.zeros((*y.shape[:-1], pitch), dtype)[..., start : start + 8]
            dy[...] = y
            arguments = (dy, np.asfortranarray(filters), x.shape)
            dx = emulator.run("dgrad", *arguments, **options, algorithm="depthwise")
            np.testing.assert_array_equal(dx, cuconv.conv_input_grad(*arguments, **options))
    for channels, steps in ((8, (301, 40, 8, 1)), (4, (240, 40, 8, 2))):
        shape, strides = (2, 6, 5, channels), [step * wide.itemsize for step in steps]
        x = np.lib.stride_tricks.as_strided(wide, shape, strides)
        w, same = np.ascontiguousarray(filters[:channels]), options | dict(groups=channels)
        y = emulator.run("fprop", x, w, **same, algorithm="depthwise")
        np.testing.assert_array_equal(y, cuconv.conv(x, w, **same))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_activations_of_special_values(activation, dtype):
    """Not a number stays so; both infinities, zeros and large values give what the NumPy path gives."""
    x = np.array([[[np.nan, np.inf, -np.inf, 0.0, -0.0, 1e4, -1e4, 3.0, -3.0]]], dtype)
    w = np.ones((1, 1, 1), dtype)
    expected = cuconv.conv(x, w, activation=activation)
    for algorithm, precision in ways(dtype):
        options = dict(algorithm=algorithm, precision=precision)
        y = emulator.run("fprop", x, w, activation=activation, **options)
        np.testing.assert_allclose(y, expected, rtol=4 * np.finfo(dtype).eps, atol=1e-30)


@pytest.mark.parametrize(
    ("op", "line", "layout"),
    [
        ("dgrad", "c1w10 k1s2 sw257 dw9600000 pw9599991:0", "channels_first"),
        ("wgrad", "c1d1h1w1 k1t2r1s1 dd67108864dh1dw1 pd67108864:0ph0pw0", "channels_last"),
        ("dgrad", "c1w3 k1s2 dw268435456 pw268435455:-1", "channels_first"),
        ("fprop", "c1w3 k1s2 dw536870000 pw536869999:1", "channels_last"),
    ],
)
def test_long_strides_and_dilations(op, line, layout):
    """Products near 2^31 that an index needs not: signed overflow is an error in the emulator."""
    problem = cuconv.ConvProblem.parse(line)
    rng = np.random.default_rng(0)
    shapes = dict(x=problem.x_shape(layout), w=problem.w_shape(layout), dy=problem.y_shape(layout))
    arrays = {role: rng.integers(1, 4, shape).astype("float32") for role, shape in shapes.items()}
    calls = {
        "fprop": (arrays["x"], arrays["w"]),
        "dgrad": (arrays["dy"], arrays["w"], shapes["x"]),
        "wgrad": (arrays["x"], arrays["dy"], shapes["w"]),
    }
    results = []
    for algorithm, precision in ways("float32"):
        if applies(Case(problem, layout=layout, precision=precision), algorithm, op, "cuda"):
            options = problem.options() | dict(layout=layout, algorithm=algorithm, precision=precision)
            results.append(emulator.run(op, *calls[op], **options))
            np.testing.assert_array_equal(results[-1], results[0])
    assert len(results) >= 2
    assert np.any(results[0])


def enumerators(file, name):
    """The names of an enum of cuda_src, in order and in lower case."""
    (names,) = re.findall(rf"enum {name} : int {{(.*?)}}", (jit.SOURCES / file).read_text())
    return names.lower().replace(" ", "").split(",")


def test_every_choice_is_known_by_the_same_name_everywhere():
    """The names that a request may have, in the order of the kernels' enums, and in the tests' problems."""
    assert enumerators("numerics.cuh", "Activation") == ["identity", *ACTIVATIONS[1:]]
    assert (None, *activations.ACTIVATIONS) == ACTIVATIONS
    assert enumerators("padding.cuh", "PaddingMode") == [*PADDING_MODES]
    for lines in (itertools.chain(*PROBLEMS.values()), PLAIN_PROBLEMS):
        assert {cuconv.ConvProblem.parse(line).padding_mode for line in lines} == {*PADDING_MODES}


@pytest.mark.parametrize(
    ("choices", "choice", "number", "dtype", "ops"),
    [
        ("ACTIVATIONS", "relu", len(ACTIVATIONS), "float32", ("fprop",)),
        ("ACTIVATIONS", "relu", len(ACTIVATIONS), "int32", ("fprop",)),
        ("ACTIVATIONS", None, 1, "complex64", ("fprop",)),
        ("PADDING_MODES", "circular", len(PADDING_MODES), "float32", ("fprop", "dgrad", "wgrad")),
        ("PADDING_MODES", "circular", 0, "float32", ("fprop", "dgrad", "wgrad")),
    ],
)
def test_what_a_kernel_does_not_know_ends_the_launch(choices, choice, number, dtype, ops):
    """It is not taken for another: the number beyond the last, and what a kernel has no case for."""
    options = {"activation": choice} if choices == "ACTIVATIONS" else {"padding": 1, "padding_mode": choice}
    x, w = np.ones((1, 1, 5), dtype), np.ones((1, 1, 3), dtype)
    y = cuconv.conv(x, w, **options)
    calls = {"fprop": (x, w), "dgrad": (y, w, x.shape), "wgrad": (x, y, w.shape)}
    entries = (
        KERNELS if choices == "PADDING_MODES" else ("auto",)
    )  # of which some read by it, and others do not
    for op, (algorithm, precision) in itertools.product(ops, ways(dtype, entries)):
        permitted = dict(algorithm=algorithm, precision=precision)
        if algorithm == "wgmma" and op not in wgmma.PRODUCTS[dtype, precision].ops:
            continue
        with (
            workspace(2),  # which leaves no plan behind
            mock.patch.object(schedule, choices, ("",) * number + (choice,)),
            pytest.raises(emulator.EmulatorError, match="__trap: called"),
        ):
            emulator.run(op, *calls[op], **options, **permitted)


def check_in_all_ways(problem, dtype, algorithm, precision=None):
    more = algorithm == "mma" or (algorithm, dtype) == ("simt", "float32")  # tiles than two
    for layout in ("channels_first", "channels_last"):
        sizes = (1, 2000) if algorithm in ("depthwise", "grouped", "wgmma") else (1, blocking.WORKSPACE)
        for size in (1, 2000, blocking.WORKSPACE) if more else sizes:
            case = Case(problem, dtype, layout, bias=True, workspace=size, precision=precision)
            check(case, algorithm, emulator.run, (*ops_of(case, algorithm, "cuda"), "bgrad"))


@pytest.mark.parametrize("part", range(6))
def test_seeded_cases(part):
    check_seeds(range(part * 50, part * 50 + 50), "auto", emulator.run, "cuda")


@pytest.mark.parametrize(("first", "times"), [(10_000, 1), pytest.param(20_000, 2, marks=pytest.mark.long)])
@pytest.mark.parametrize("algorithm", KERNELS)
def test_seeded_cases_by_name(algorithm, first, times):
    count = {"mma": 14, "grouped": 14, "wgmma": 6}.get(algorithm, 75)  # of which nearly all apply
    check_seeds(range(first, first + times * count), algorithm, emulator.run, "cuda")


@pytest.mark.parametrize("precision", [None, "tf32"])
def test_less_precision_is_held_to_its_bound(precision):
    """Factors of 11 bits pass where TF32 is permitted, of 10 bits never; integers of few bits are exact."""

    def of_bits(bits):
        cut = 24 - bits

        def run(op, *operands, **options):
            def rounded(x):
                bits = (x.view(np.uint32) + (1 << (cut - 1))) >> cut << cut
                return bits.view(np.float32)

            arrays = [rounded(x) if isinstance(x, np.ndarray) and op != "bgrad" else x for x in operands]
            return PUBLIC[op](*arrays, **options)

        return run

    problem = cuconv.ConvProblem.parse("n1c2h9w8 k2r1s1")
    for bits in (24, 11, 10):
        check(Case(problem, precision=precision), run=of_bits(bits) if bits < 24 else None)
        random = Case(problem, exact=False, precision=precision)
        if bits == 24 or (bits == 11 and precision):
            check(random, run=of_bits(bits) if bits < 24 else None)
        else:
            with pytest.raises(AssertionError, match="above the bound"):
                check(random, run=of_bits(bits))


def test_shuffled_threads():
    """The second pass with the threads of each block in a random order instead of the reverse one."""

    def run(op, *operands, **options):
        with emulator.emulated(seed=7):
            return PUBLIC[op](*operands, **options)

    for line in (*PROBLEMS[2], DEPTHWISE[0]):
        for algorithm in KERNELS:
            case = Case(cuconv.ConvProblem.parse(line), "float32", workspace=1)
            if applies(case, algorithm, "fprop", "cuda"):
                check(case, algorithm, run)


def test_the_emulator_takes_what_the_public_functions_take():
    """The entry point by itself: plain arrays, keywords, out and accumulate, errors; and a transposed one."""
    x, w = np.arange(24.0).reshape(1, 2, 12), np.ones((3, 2, 4))
    y = emulator.run("fprop", x, w, None, 2, "same", algorithm="simt")
    np.testing.assert_array_equal(y, cuconv.conv(x, w, None, 2, "same"))
    out = np.ones_like(y)
    assert emulator.run("fprop", x, w, stride=2, padding="same", out=out, accumulate=True) is out
    np.testing.assert_array_equal(out, y + 1)
    np.testing.assert_array_equal(emulator.run("bgrad", y), y.sum(axis=(0, 2)))
    with pytest.raises(ValueError, match="'gemm' is for arrays on the CPU, and these are arrays on a GPU"):
        emulator.run("fprop", x, w, algorithm="gemm")
    upward = dict(bias=np.ones(2), stride=2, padding=1, activation="relu")
    with emulator.emulated():
        up = cuconv.conv_transpose(y, w, **upward)
    np.testing.assert_array_equal(up, cuconv.conv_transpose(y, w, **upward))


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_bias_and_activation_come_after_the_fold(mode):
    x, w, bias = np.arange(12.0).reshape(1, 2, 6) - 5, np.ones((2, 2, 3)), np.array([-3.0, 5.0])
    w[1] = -1
    options = dict(bias=bias, padding=2, activation="relu", padding_mode=mode)
    expected = cuconv.conv_transpose(x, w, **options)
    plain = cuconv.conv_transpose(x, w, padding=2, padding_mode=mode)
    np.testing.assert_array_equal(expected, np.maximum(plain + bias[:, None], 0))
    for algorithm in ("direct", "simt"):
        with emulator.emulated():
            got = cuconv.conv_transpose(x, w, **options, algorithm=algorithm)
        np.testing.assert_array_equal(got, expected)


def test_a_wrong_kernel_is_found():
    """The comparison can fail: one digit too few in the division that spreads elements over threads."""

    def wrong(number):
        return divisor(number + 1) if number == 7 else divisor(number)

    case = Case(cuconv.ConvProblem.parse("n1c1h5w7 k1r1s1"))
    check(case, "direct", emulator.run, ops=("fprop",))
    with (
        mock.patch("cuconv.cuda.geometry.divisor", wrong),
        pytest.raises((AssertionError, emulator.EmulatorError)),
    ):
        check(Case(case.problem, workspace=2), "direct", emulator.run, ops=("fprop",))


# Padding on each side of every axis, taps beyond both ends of dy, cells that no tap reaches, cropped cells;
# for depthwise every shape of its strips.
SURROUNDED = (
    "n1c1w6 k1s3",
    "n2c2h6w5 k4r3s3 g2 p1",
    "n1c3h7w6 k2r2s3 sh2sw3 ph2:1pw0:2",
    "n1c2h9w4 k3r3s2 sh3sw1 dh2dw3 p3",
    "n1c2d3h4w3 k2t2r2s2 sd2sh1sw1 p1",
    "n1c1w12 k2s3 sw2 dw4 pw5:-2",
    "n1c2h8w7 k2r3s2 ph-2:1pw1:-3",
    "n1c1h7w3 k1r1s2 sh3sw1 pw2",
    "n1c4h13w5 k4r5s3 g4 p1",
    "n1c4h9w5 k4r3s3 g4 sh3sw1 dh2dw1 p2",
    "n1c2h17w6 k4r3s2 g2 sh2sw2 p1",
    "n2c2d5h5w3 k2t2r3s2 g2 sd2sh1sw2 dd1dh2dw1 p2",
    "n1c2w19 k2s4 g2 pw3:0",
)
IN_OCTETS = (
    "n1c16h4w5 k16r3s3 g4 p1",
    "n1c16h4w5 k8r2s3 g2 sh2sw1 p1",
    "n1c8h3w5 k16r2s2 g2 pw2:1",
    "n1c3h4w5 k9r3s2 p1",
)
"""Groups of which two share octets, whose infinities are not to meet, and a single one that fills none."""


@pytest.mark.parametrize("line", [*SURROUNDED, *IN_OCTETS])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_zeros_are_multiplied_as_any_cell_is(op, line):
    """Infinities and NaN in either operand reach the same results by every entry, by way of padding too."""
    problem, rng = cuconv.ConvProblem.parse(line), np.random.default_rng(0)
    shapes = {"x": problem.x_shape(), "w": problem.w_shape(), "dy": problem.y_shape()}
    geometry = (problem.stride, problem.dilation, problem.padding, problem.groups)
    plain = getattr(ZerosMultiplied(shapes["x"], shapes["w"], *geometry), op)
    finite, dtypes = [], ("float16",) if line in IN_OCTETS else ("float32", "complex64")
    for changed, number, dtype in itertools.product(INPUTS[op], (np.inf, np.nan), dtypes):
        operands = {role: rng.integers(-1, 2, shapes[role]).astype(dtype) for role in INPUTS[op]}
        operands[changed].flat[rng.integers(operands[changed].size)] = number
        expected = plain(*operands.values())
        finite.append(np.isfinite(expected).mean())
        for (algorithm, precision), layout in itertools.product(ways(dtype), LAYOUTS):
            case = Case(problem, dtype, layout, precision=precision)
            if applies(case, algorithm, op, "cuda"):
                options = case.options() | dict(algorithm=algorithm, precision=case.precision)
                arrays = [to_layout(array, case, role != "w") for role, array in operands.items()]
                if op != "fprop":
                    arrays.append(to_layout(expected, case, op != "wgrad").shape)
                got = emulator.run(op, *arrays, **options)
                got = from_layout(got, case, op != "wgrad")
                for part in (np.real, np.imag):
                    np.testing.assert_array_equal(part(got), part(expected), f"{algorithm} {layout}")
    assert min(finite) < 1


def test_division_by_multiplication():
    """What a kernel computes from a divisor, for numbers at and around every multiple that could go wrong."""
    for number in (
        *range(2, 70),
        641,
        2**20 - 1,
        2**31 - 1,
        2**31,
        2**31 + 1,
        2**40 + 3,
        2**62 + 1,
        2**63 - 1,
    ):
        by, multiplier, shift = divisor(number)
        assert by == number
        assert 0 < multiplier < 2**64
        largest = 2**63 - 1
        for multiple in (0, 1, 2, 12345, largest // number - 1, largest // number):
            for n in (multiple * number - 1, multiple * number, multiple * number + number - 1):
                if 0 <= n <= largest:
                    assert (n * multiplier >> 64) >> shift == n // number
        short = (multiplier - 1 >> 32) + 1  # of 32 bits, for numbers below 2^31
        largest = 2**31 - 1
        for multiple in (0, 1, 2, 12345, largest // number - 1, largest // number) if number < 2**31 else ():
            for n in (multiple * number - 1, multiple * number, multiple * number + number - 1):
                if 0 <= n <= largest:
                    assert short < 2**32
                    assert (n * short >> 32) >> shift == n // number
    assert divisor(1)[0] == divisor(0)[0] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the sanitizer's library is loaded as Linux does it")
@pytest.mark.parametrize("first", [3000, pytest.param(4000, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("algorithm", "count"),
    [
        ("auto", 5),
        ("depthwise", 20),
        *(
            pytest.param(*more, marks=pytest.mark.long)
            for more in (("mma", 3), ("simt", 3), ("grouped", 4), ("wgmma", 2))
        ),
    ],
)
def test_sanitized(algorithm, count, first):
    """A subset of the cases with the kernels compiled for AddressSanitizer."""
    command = [sys.executable, "-m", "tests.fuzz", "--emulator", "--algorithm", algorithm]
    done = subprocess.run(
        [*command, "--count", str(count), "--seed", str(first)],
        env=emulator.sanitized_environment(), cwd=Path(__file__).parents[1],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout
