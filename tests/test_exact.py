"""Every op, algorithm, dtype, rank and layout against the oracle, bit for bit on exactly summable data."""

import numpy as np
import pytest

import cuconv
from cuconv.cpu import TABLE

from .cases import ALGORITHMS, DTYPES, OPS, Case, applies, check, check_seeds, ops_of, seeded_case

PROBLEMS = {
    1: (
        "n2c4w17 k6s4 g2 sw2 dw2 pw3:1",
        "n3c3w9 k3s3 g3 p1",
        "n1c2w8 k3s8 pw7:0 circular",
        "n2c2w3 k4s3 g2 pw8:-1 symmetric",
    ),
    2: ("n2c3h8w7 k4r3s3 p1", "n2c4h9w8 k4r3s2 g4 sh2sw1 dh1dw2 ph1:0pw-1:2 reflect", "n2c4h6w5 k8r3s3 g4"),
    3: ("n2c2d4h5w6 k4t2r3s2 g2 sd2sh1sw2 p1", "n1c3d3h4w5 k3t3r2s2 g3 dd1dh2dw1 p1 replicate"),
}


def case_of(line, dtype="float32", **more):
    return Case(cuconv.ConvProblem.parse(line), dtype, bias=True, **more)


COMBINATIONS = [
    (algorithm, dtype, rank)
    for algorithm in ("auto", *ALGORITHMS)
    for dtype in DTYPES
    for rank, lines in PROBLEMS.items()
    if any(ops_of(case_of(line, dtype), algorithm) for line in lines)
]


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(("algorithm", "dtype", "rank"), COMBINATIONS)
def test_every_entry_of_the_table(algorithm, dtype, rank, layout):
    for line in PROBLEMS[rank]:
        for workspace, threads in ((1, 2), (1 << 20, 1)):
            case = case_of(line, dtype, layout=layout, workspace=workspace, threads=threads)
            check(case, algorithm, ops=ops_of(case, algorithm))


def test_every_entry_of_the_table_is_among_the_combinations():
    reached = {
        (op, algorithm)
        for algorithm, dtype, rank in COMBINATIONS
        for line in PROBLEMS[rank]
        for op in ops_of(case_of(line, dtype), algorithm)
    }
    missing = {(op, entry.name) for op in OPS for entry in TABLE[op]} - reached
    assert not missing, f"PROBLEMS has none that these can do: {sorted(missing)}"


ODD = {
    "one image": "n1c2h5w4 k3r2s3 ph1pw0",
    "one channel": "n3c1h5w4 k1r3s2 sh2sw1 p1",
    "three groups": "n2c3h6w5 k6r3s2 g3 sh1sw2 p1",
    "one of all": "n1c1h2w3 k1r2s2 p1",
    "no image": "n0c2h5w4 k2r2s2",
    "fewer parts than threads, folded": "n1c2h4w3 k2r2s3 g2 p1 reflect",
    "residues that no tap meets": "n2c3h7w6 k3r2s1 g3 sh3sw2",
    "strides and dilations": "n2c3h9w11 k6r3s3 g3 sh2sw3 dh3dw2 p2 circular",
}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("line", ODD.values(), ids=ODD)
def test_threads_share_odd_sizes(line, count):
    """Fewer parts than threads, blocks of one cell: every algorithm, bit for bit."""
    for algorithm in ALGORITHMS:
        for workspace in (1, 500):
            case = case_of(line, workspace=workspace, threads=count, activation="relu", accumulate=True)
            check(case, algorithm, ops=ops_of(case, algorithm))


@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad", "bgrad"])
def test_last_entry_of_each_table_takes_every_problem(op):
    for seed in range(300):
        case = seeded_case(seed)
        assert applies(case, TABLE[op][-1].name, op)


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
