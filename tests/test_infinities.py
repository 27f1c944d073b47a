"""Zeros of the padding are multiplied like any other cell, by every entry of the NumPy path.

So an infinity or NaN that meets one gives NaN. `test_kernels.py` has the same for a GPU.
"""

import itertools

import numpy as np
import pytest

import cuconv
from cuconv.cpu import TABLE
from cuconv.cpu.padding import fold
from cuconv.plan import INPUTS, make_plan
from cuconv.problem import ConvProblem, Request

from .cases import OPS, Case, applies, threads, workspace
from .reference import ZerosMultiplied

LINES = (
    "n1c1w6 k1s3 p2",
    "n2c4h7w6 k6r3s3 g2 p1",
    "n1c3h9w8 k2r3s2 sh2sw3 p2",
    "n2c2h8w9 k4r3s3 dh2dw3 p3",
    "n1c2h9w9 k2r2s2 sh3sw3 p1",
    "n2c3h8w7 k2r3s3 ph-2:1pw1:-1",
    "n3c4h9w8 k8r3s3 g4 p1",
    "n1c3h12w11 k3r4s3 g3 sh2sw2 dh3dw1 p2",
    "n1c2d5h6w4 k2t3r2s3 p1",
    "n1c2w40 k2s3 dw12 p12",
)
FOLDED = ("n2c2h6w7 k3r3s3 p2 circular", "n1c2h9w7 k2r2s3 sh2sw2 ph2:1pw1 reflect")


def spoilt(problem, op):
    """Operands of small integers, in one of which two elements are not finite."""
    shapes = {"x": problem.x_shape(), "w": problem.w_shape(), "dy": problem.y_shape()}
    rng = np.random.default_rng(0)
    plain = [rng.integers(1, 4, shapes[role]).astype(float) for role in INPUTS[op]]
    for which, value in itertools.product((0, 1), (np.inf, -np.inf, np.nan)):
        operands = [array.copy() for array in plain]
        chosen = rng.choice(operands[which].size, 2, replace=False)
        operands[which].reshape(-1)[chosen] = value
        yield operands


def every_entry_gives(expected, problem, op, operands):
    """In one block and in many."""
    names = [entry.name for entry in TABLE[op] if entry.exact]
    names = [name for name in names if applies(Case(problem, "float64"), name, op)]
    for (size, count), name in itertools.product(((1 << 24, 1), (2000, 2)), names):
        with workspace(size), threads(count):
            plan = make_plan(Request(op, problem, "float64"), name, "cpu")
            np.testing.assert_array_equal(plan(*operands), expected, str(plan))
    assert len(names) > 1


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("line", LINES)
def test_every_entry_multiplies_the_zeros_of_the_padding(line, op):
    problem, finite = ConvProblem.parse(line), []
    geometry = (problem.stride, problem.dilation, problem.padding, problem.groups)
    plain = ZerosMultiplied(problem.x_shape(), problem.w_shape(), *geometry)
    for operands in spoilt(problem, op):
        expected = getattr(plain, op)(*operands)
        finite.append(np.isfinite(expected).all())
        every_entry_gives(expected, problem, op, operands)
    assert sum(finite) < 3  # a cell between two windows is seen by none


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("line", FOLDED)
def test_zeros_around_dy_are_folded_back_with_the_rest(line):
    """Where the padding holds other than zeros, the gradient of the padded input has them."""
    problem = ConvProblem.parse(line)
    shape, none = (problem.n, problem.c, *problem.padded), ((0, 0),) * problem.rank
    plain = ZerosMultiplied(shape, problem.w_shape(), problem.stride, problem.dilation, none, problem.groups)
    for operands in spoilt(problem, "dgrad"):
        padded = plain.dgrad(*operands).reshape(problem.n, problem.c, *problem.volumetric.padded)
        expected = fold(padded, problem.volumetric).reshape(problem.x_shape())
        every_entry_gives(expected, problem, "dgrad", operands)


def test_the_ends_of_an_input_gradient():
    dy, w = np.ones((1, 1, 4)), np.array([[[np.inf, 1, 1]]])
    for entry in ("gemm", "mec", "col2im", "depthwise"):
        dx = cuconv.conv_input_grad(dy, w, (1, 1, 6), algorithm=entry)
        np.testing.assert_array_equal(dx[0, 0], [np.inf] * 4 + [np.nan] * 2)
