"""Every CUDA kernel, run thread by thread, against the oracle: bit for bit on exactly summable data."""

import pytest

import cuconv

from . import emulator
from .cases import DTYPES, KERNELS, Case, applies, check
from .test_exact import PROBLEMS

# Depthwise kernels by stride, dilation, and how many channels a vector has.
DEPTHWISE = (
    "n2c4h13w5 k4r5s3 g4 p1",
    "n2c8h13w5 k8r3s3 g8 sh3sw1 dh2dw1 p2 circular",
    "n1c4h17w6 k8r3s2 g4 sh2sw2 p1",
    "n2c8w37 k8s4 g8 pw3:0",
    "n1c4h11w9 k4r3s3 g4 sh2sw2 dh2dw2 p2",
)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("algorithm", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_entry_of_the_table(dtype, algorithm, layout):
    for rank, lines in PROBLEMS.items():
        checked = 0
        for line in lines + DEPTHWISE:
            case = Case(cuconv.ConvProblem.parse(line), dtype, layout, bias=True)
            if case.problem.rank == rank and applies(case, algorithm, "fprop", "cuda"):
                check(case, algorithm, emulator.run)
                checked += 1
        assert checked
