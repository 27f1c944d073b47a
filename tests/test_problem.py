"""The geometry: extents, padding, costs, and the one-line notation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cuconv
from cuconv import ConvProblem
from cuconv.problem import padding_pairs

from .cases import draw_case, seeded_case


@st.composite
def cases(draw):
    return draw_case(
        lambda low, high: draw(st.integers(low, high)), lambda sequence: draw(st.sampled_from(sequence))
    )


@given(cases())
def test_notation_round_trips(case):
    assert ConvProblem.parse(str(case.problem)) == case.problem


def test_notation_by_example():
    problem = ConvProblem.parse("n32c64h56w56 k64r3s3 p1")
    assert problem == ConvProblem(32, 64, 64, (56, 56), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    assert problem.output == (56, 56)
    assert str(problem) == "n32c64h56w56 k64r3s3 p1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("c3w16000 k32s2 dw512", "n1c3w16000 k32s2 dw512"),
        ("n1c32d114h130w130 k64t3r3s3", "n1c32d114h130w130 k64t3r3s3"),
        ("n32c3h224w224 k64r7s7 sh2/sw2 p3", "n32c3h224w224 k64r7s7 sh2sw2 p3"),
        ("n1c4h8w8k4r3s3g4ph1pw1", "n1c4h8w8 k4r3s3 g4 p1"),
        ("n1c4h8w8 k4r3s3 sh2", "n1c4h8w8 k4r3s3 sh2sw1"),
        ("n1c1w8 k1s3 p2:-1 circular", "n1c1w8 k1s3 p2:-1 circular"),
        ("n1c1h8w8 k1r3s3 p1 pw0", "n1c1h8w8 k1r3s3 ph1pw0"),
    ],
)
def test_notation_normalises(text, expected):
    assert str(ConvProblem.parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("n1c1 k1r3s3", "no input extent"),
        ("n1h8w8 k1r3s3", "'c' is missing"),
        ("n1c1h8w8 k1r3s3 q2", "'q'.*did you mean|must be one of"),
        ("n1c1h8w8 k1r3s3 p1 p2", "'p' stands twice"),
        ("n1c1w8 k1s3 ph1", "'ph' does not belong"),
        ("n1c1w8 k1s3 sw2:3", "'sw' takes one number"),
        ("n1c1w8 k1s3 circula", "did you mean 'circular'"),
        ("n1c1w8 k1s3 p1.5", "cannot read '.5'"),
        ("n1c1w2 k1s3", "axis w gives no output"),
        ("n1c1w5 k1s3 circular reflect", "'reflect' needs a number, or is too much"),
        ("n1c1w5 k1s3 p", "'p' needs a number"),
        ("n\N{FULLWIDTH DIGIT ONE}c1w5 k1s3", "cannot read"),
        ("garbage", "each word of the problem 'garbage' must be one of"),
        ("n-1c1w8 k1s3", "n must be at least 0"),
        ("n1c1w8 k-1s3", "k must be at least 0"),
        ("n1c1w-8 k1s3 p9", "input must be at least 0"),
        ("n1c1w8 k1s0", "filter must be at least 1"),
        ("n1c1w8 k1s3 sw0", "stride must be at least 1"),
        ("n1c1w8 k1s3 dw0", "dilation must be at least 1"),
        ("n1c1w8 k1s3 g0", "groups must be at least 1"),
        ("n1c3w8 k4s3 g2", "groups=2 does not divide C=3"),
    ],
)
def test_notation_refuses(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        ConvProblem.parse(text)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        (0, ((0, 0), (0, 0))),
        (2, ((2, 2), (2, 2))),
        (-1, ((-1, -1), (-1, -1))),
        ((1, 2), ((1, 1), (2, 2))),
        (((1, 2), (3, -4)), ((1, 2), (3, -4))),
        ([(1, 2), 3], ((1, 2), (3, 3))),
        (np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4))),
        ("valid", ((0, 0), (0, 0))),
        ("full", ((6, 6), (1, 1))),
        # ceil(9 / 2) = 5 outputs reach over (5 - 1) 2 + 7 = 15 cells: 6 more than 9; ceil(8 / 3) = 3 over 8.
        ("same", ((3, 3), (0, 0))),
        ("same_lower", ((3, 3), (0, 0))),
    ],
)
def test_padding_forms(padding, expected):
    assert padding_pairs(padding, (9, 8), (4, 2), (2, 3), (2, 1)) == expected


@pytest.mark.parametrize("extent", range(1, 12))
@pytest.mark.parametrize("taps", range(1, 6))
@pytest.mark.parametrize("stride", range(1, 5))
def test_same_gives_ceil_of_input_over_stride(extent, taps, stride):
    for name in ("same", "same_lower"):
        problem = ConvProblem.from_shapes((1, 1, extent), (1, 1, taps), stride, name)
        assert problem.output == (-(-extent // stride),)
        before, after = problem.padding[0]
        assert 0 <= (after - before if name == "same" else before - after) <= 1


@pytest.mark.parametrize("rank", [0, 4])
def test_rank_is_1_to_3(rank):
    with pytest.raises(ValueError, match="1 to 3 spatial axes"):
        ConvProblem(1, 1, 1, (8,) * rank, (3,) * rank, (1,) * rank, (1,) * rank, ((0, 0),) * rank)


@pytest.mark.parametrize("name", ["filter", "stride", "dilation", "padding"])
def test_every_field_has_one_entry_per_axis(name):
    fields = dict(input=(8,), filter=(3,), stride=(1,), dilation=(1,), padding=((0, 0),)) | {name: ()}
    with pytest.raises(ValueError, match=f"{name} must"):
        ConvProblem(1, 1, 1, **fields)


def test_same_never_crops():
    assert padding_pairs("same", (8, 7), (1, 2), (4, 5), (1, 1)) == ((0, 0), (0, 0))


def test_a_transposed_same_problem_has_exactly_its_outputs():
    for extent, taps, stride, dilation in np.ndindex(4, 4, 5, 3):
        extent, taps, stride, dilation = extent + 1, taps + 1, stride + 1, dilation + 1
        for name in ("same", "same_lower"):
            for extra in range(max(stride, dilation)):
                problem = ConvProblem.transposed(
                    (1, 1, extent), (1, 1, taps), stride, name, extra, dilation=dilation
                )
                assert (problem.input, problem.output) == ((stride * extent + extra,), (extent,))


HUGE = 1 << 62
LIMITS = {
    "n": lambda: ConvProblem(HUGE, 1, 1, (5,), (3,), (1,), (1,), ((0, 0),)),
    "c": lambda: ConvProblem.parse(f"c{HUGE}w5 k1s3"),
    "k": lambda: ConvProblem.parse(f"c1w5 k{10**900}s3"),
    "'w'": lambda: ConvProblem.parse(f"c1w{'9' * 5000} k1s3"),
    "'pw'": lambda: ConvProblem.parse(f"c1w5 k1s3 pw1:-{'9' * 5000}"),
    "input": lambda: ConvProblem.parse(f"c1w{HUGE} k1s3"),
    "filter": lambda: ConvProblem.parse(f"c1w5 k1s{HUGE}"),
    "stride": lambda: ConvProblem.from_shapes((1, 1, 5), (1, 1, 3), stride=HUGE),
    "dilation": lambda: ConvProblem.from_shapes((1, 1, 5), (1, 1, 3), dilation=HUGE),
    "dilation .* spreads": lambda: ConvProblem.from_shapes((1, 1, 5), (1, 1, 3), 1, "same", HUGE // 2),
    "dilation .* spreads a": lambda: ConvProblem.transposed((1, 1, 5), (1, 1, 3), dilation=HUGE // 2),
    "groups": lambda: ConvProblem.from_shapes((1, 1, 5), (1, 1, 3), groups=HUGE),
    "padding": lambda: ConvProblem.from_shapes((1, 1, 5), (1, 1, 3), padding=HUGE),
    "padding .*": lambda: ConvProblem.from_shapes((1, 1, 5), (1, 1, 3), padding=[(0, -HUGE)]),
    "padding must leave axis w": lambda: ConvProblem.parse(f"c1w5 k1s3 p{HUGE // 2}"),
    "output_padding": lambda: ConvProblem.transposed((1, 1, 5), (1, 1, 3), output_padding=10**4999),
    "stride must leave axis w": lambda: ConvProblem.transposed((1, 1, 5), (1, 1, 3), HUGE // 2, "same"),
    "x_shape": lambda: ConvProblem.from_shapes((1, 1, 10**4999), (1, 1, 3)),
    "w_shape": lambda: ConvProblem.from_shapes((1, 1, 5), (HUGE, 1, 3)),
    "x of shape": lambda: ConvProblem.parse(f"n2c{HUGE // 2}w5 k1s3"),
    "w of shape": lambda: ConvProblem.parse(f"c{1 << 30}w5 k{1 << 31}s3"),
    "y of shape": lambda: ConvProblem.parse(f"n{1 << 31}c1w5 k{1 << 31}s3"),
}


@pytest.mark.parametrize("beginning", LIMITS)
def test_numbers_beyond_64_bits(beginning):
    with pytest.raises(ValueError, match=f"^{beginning}.* (below|less than|over) 2\\^62"):
        LIMITS[beginning]()


def test_numbers_up_to_the_limit():
    """None of them, nor what follows from them, is more than 64 bits long."""
    large = HUGE - 1
    for line in (f"c1w{large} k1s1", f"n{large}c1w1 k1s1", f"c1w1 k1s1 sw{large} dw{large} p{large // 2}"):
        problem = ConvProblem.parse(line)
        assert problem.output == problem.input
        assert str(ConvProblem.parse(str(problem))) == str(problem)


def test_numbers_of_a_problem_are_python_ints():
    i = np.int32
    shapes = np.array([2, 4, 9, 8], i), np.array([6, 2, 3, 3], i)
    problem = ConvProblem.from_shapes(*shapes, i(2), i(1), i(1), i(2))
    numbers = (problem.n, problem.c, problem.k, problem.groups, *problem.input, *problem.filter)
    numbers += (*problem.stride, *problem.dilation, *problem.padding[0])
    assert {type(number) for number in numbers} == {int}


def test_made_by_hand_it_is_normalised():
    by_hand = ConvProblem(np.int64(1), 1, 1, [5], np.array([3]), (1,), [True], [[1, 2]])
    assert by_hand == ConvProblem.parse("n1c1w5 k1s3 p1:2")
    assert hash(by_hand) == hash(ConvProblem.parse("n1c1w5 k1s3 p1:2"))
    assert str(by_hand) == "n1c1w5 k1s3 p1:2"


def test_costs():
    problem = ConvProblem.parse("n2c4h5w6 k8r3s3 g2 p1")
    assert problem.macs == 2 * 8 * 30 * 2 * 9
    assert problem.flops("fprop") == 2 * problem.macs
    assert problem.flops("wgrad", "complex64") == 8 * problem.macs
    assert problem.flops("bgrad") == 2 * 8 * 30
    assert problem.flops("bgrad", "complex64") == 2 * 2 * 8 * 30
    assert problem.bytes("bgrad", "float32") == 4 * (2 * 8 * 30 + 8)
    assert problem.bytes("fprop", "float16") == 2 * (2 * 4 * 30 + 8 * 2 * 9 + 2 * 8 * 30)
    assert problem.gemm("fprop") == (60, 4, 18)
    assert problem.gemm("dgrad") == (60, 2, 36)
    assert problem.gemm("wgrad") == (4, 18, 60)


def test_volumetric_form_has_the_same_costs_and_cells():
    for seed in range(200):
        problem = seeded_case(seed).problem
        volume = problem.volumetric
        assert volume.rank == 3
        assert volume.output == (1,) * (3 - problem.rank) + problem.output
        assert volume.macs == problem.macs


def test_problem_module_needs_no_array_library():
    import subprocess
    import sys

    code = """if True:
        import sys
        sys.modules["numpy"] = sys.modules["ml_dtypes"] = sys.modules["cupy"] = None
        import importlib.util, types
        package = types.ModuleType("cuconv")
        package.__path__ = [sys.argv[1]]
        sys.modules["cuconv"] = package
        from cuconv.problem import ConvProblem
        print(ConvProblem.parse("n1c1w8 k1s3"))
    """
    folder = cuconv.__path__[0]
    run = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "n1c1w8 k1s3"


def test_nothing_imports_cupy_before_a_cupy_array_arrives():
    import subprocess
    import sys

    code = "import sys, cuconv, cuconv.nn; sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
