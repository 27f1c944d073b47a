"""Every op, algorithm, dtype, rank and layout against the oracle, bit for bit on exactly summable data."""

import numpy as np
import pytest

import cuconv

from .cases import ALGORITHMS, DTYPES, Case, applies, check, check_seeds, seeded_case

PROBLEMS = {
    1: ("n2c4w17 k6s4 g2 sw2 dw2 pw3:1", "n3c3w9 k3s3 g3 p1", "n1c2w8 k3s8 pw7:0 circular"),
    2: ("n2c3h8w7 k4r3s3 p1", "n2c4h9w8 k4r3s2 g4 sh2sw1 dh1dw2 ph1:0pw-1:2 reflect", "n2c4h6w5 k8r3s3 g4"),
    3: ("n2c2d4h5w6 k4t2r3s2 g2 sd2sh1sw2 p1", "n1c3d3h4w5 k3t3r2s2 g3 dd1dh2dw1 p1 replicate"),
}


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_every_entry_of_the_table(algorithm, dtype, rank, layout):
    checked = 0
    for line in PROBLEMS[rank]:
        for workspace in (1, 1 << 20):
            case = Case(cuconv.ConvProblem.parse(line), dtype, layout, bias=True, workspace=workspace)
            if algorithm == "auto" or applies(case, algorithm, "fprop"):
                check(case, algorithm)
                checked += 1
    assert checked or (algorithm == "fft" and DTYPES[dtype].kind == "i")


@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad", "bgrad"])
def test_last_entry_of_each_table_takes_every_problem(op):
    for seed in range(300):
        case = seeded_case(seed)
        assert applies(case, cuconv.cpu.TABLE[op][-1].name, op)


@pytest.mark.parametrize("part", range(8))
def test_seeded_cases(part):
    check_seeds(range(part * 100, part * 100 + 100))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_seeded_cases_by_name(algorithm):
    check_seeds(range(10_000, 10_200), algorithm)


def test_judge_sees_a_single_wrong_bit():
    """The comparison itself can fail: one ulp on one element is too much for exact data."""
    case = Case(cuconv.ConvProblem.parse("n1c2h4w4 k2r2s2"), "float32")

    def almost(op, *arrays, **options):
        result = {"fprop": cuconv.conv}[op](*arrays, **options)
        result[0, 1, 2, 2] = np.nextafter(result[0, 1, 2, 2], np.inf)
        return result

    with pytest.raises(AssertionError, match="differs at"):
        check(case, run=almost, ops=("fprop",))


def test_results_are_bitwise_repeatable():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 16, 20, 20)).astype(np.float32)
    w = rng.standard_normal((24, 16, 3, 3)).astype(np.float32)
    first = cuconv.conv_backward(cuconv.conv(x, w), x, w)
    for _ in range(20):
        again = cuconv.conv_backward(cuconv.conv(x, w), x, w)
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, other)
