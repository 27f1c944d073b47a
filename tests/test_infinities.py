"""Zeros of the padding are multiplied like any other cell, so an infinity or NaN that meets one gives NaN.

The plain evaluation pads with zeros and multiplies all that is there: x for fprop and wgrad, dy for dgrad,
which a cell of dx meets by every tap of its residue of the stride.
"""

import itertools

import numpy as np
import pytest

import cuconv
from cuconv.cpu import TABLE
from cuconv.cpu.padding import fold
from cuconv.plan import make_plan
from cuconv.problem import ConvProblem, Request

from .cases import OPS, Case, applies, threads, workspace

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
    "n2c2h6w7 k3r3s3 p2 circular",
    "n1c2h9w7 k2r2s3 sh2sw2 ph2:1pw1 reflect",
)


def windows(problem, x):
    """(N, groups, C/groups, *output, *filter) of x, padded with zeros or by its mode."""
    each = zip(problem.input, problem.padding, strict=True)
    crops = tuple(slice(max(-before, 0), extent - max(-after, 0)) for extent, (before, after) in each)
    pads = [(0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in problem.padding)]
    mode = {"zeros": "constant", "circular": "wrap", "reflect": "reflect"}[problem.padding_mode]
    padded = np.pad(x[(slice(None), slice(None), *crops)], pads, mode)
    seen = np.lib.stride_tricks.sliding_window_view(padded, problem.reach, tuple(range(2, padded.ndim)))
    steps = tuple(slice(None, None, step) for step in problem.stride + problem.dilation)
    seen = seen[(slice(None), slice(None), *steps)]
    return seen.reshape(problem.n, problem.groups, -1, *seen.shape[2:])


def plain_fprop(problem, x, w):
    g, rank = problem.groups, problem.rank
    seen, filters = windows(problem, x), w.reshape(g, -1, *w.shape[1:])
    o, r = "zpq"[3 - rank :], "tsr"[3 - rank :]
    return np.einsum(f"ngc{o}{r},gkc{r}->ngk{o}", seen, filters).reshape(problem.y_shape())


def plain_wgrad(problem, x, dy):
    g, rank = problem.groups, problem.rank
    seen, grads = windows(problem, x), dy.reshape(problem.n, g, -1, *problem.output)
    o, r = "zpq"[3 - rank :], "tsr"[3 - rank :]
    return np.einsum(f"ngc{o}{r},ngk{o}->gkc{r}", seen, grads).reshape(problem.w_shape())


def plain_dgrad(problem, dy, w):
    zeros = problem.padding_mode == "zeros"
    extents = problem.input if zeros else problem.padded
    befores = [before if zeros else 0 for before, _ in problem.padding]
    far = 64
    around = np.pad(dy, [(0, 0), (0, 0), *((far, far),) * problem.rank])
    around = around.reshape(problem.n, problem.groups, -1, *around.shape[2:])
    dx = np.zeros((problem.n, problem.groups, problem.c // problem.groups, *extents))
    filters = w.reshape(problem.groups, -1, *w.shape[1:])
    for tap in itertools.product(*map(range, problem.filter)):
        cells, places = [], []
        for axis, r in enumerate(tap):
            reach = np.arange(extents[axis]) + befores[axis] - r * problem.dilation[axis]
            met = reach % problem.stride[axis] == 0
            cells.append(np.flatnonzero(met))
            places.append(far + reach[met] // problem.stride[axis])
        seen = around[(slice(None), slice(None), slice(None), *np.ix_(*places))]
        products = np.einsum("ngk...,gkc->ngc...", seen, filters[(slice(None),) * 3 + tap])
        dx[(slice(None), slice(None), slice(None), *np.ix_(*cells))] += products
    dx = dx.reshape(problem.n, problem.c, *extents)
    if zeros:
        return dx
    lead = (1,) * (3 - problem.rank)
    return fold(dx.reshape(problem.n, problem.c, *lead, *extents), problem.volumetric).reshape(
        problem.x_shape()
    )


PLAIN = {"fprop": plain_fprop, "dgrad": plain_dgrad, "wgrad": plain_wgrad}


def spoilt(line, op):
    """A problem, and pairs of operands of small integers in one of which a few elements are not finite."""
    problem = ConvProblem.parse(line)
    shapes = {"x": problem.x_shape(), "w": problem.w_shape(), "dy": problem.y_shape()}
    roles = {"fprop": ("x", "w"), "dgrad": ("dy", "w"), "wgrad": ("x", "dy")}[op]
    rng = np.random.default_rng(0)
    plain = [rng.integers(1, 4, shapes[role]).astype(float) for role in roles]
    for which, value in itertools.product((0, 1), (np.inf, -np.inf, np.nan)):
        operands = [array.copy() for array in plain]
        chosen = rng.choice(operands[which].size, 2, replace=False)
        operands[which].reshape(-1)[chosen] = value
        yield problem, operands


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("line", LINES)
def test_every_entry_multiplies_the_zeros_of_the_padding(line, op):
    found, spoilt_results = set(), 0
    for problem, operands in spoilt(line, op):
        with np.errstate(invalid="ignore"):
            expected = PLAIN[op](problem, *operands)
        spoilt_results += not np.isfinite(expected).all()
        for size, count in ((1 << 24, 1), (2000, 2)):
            with workspace(size), threads(count):
                for entry in TABLE[op]:
                    if entry.exact and applies(Case(problem, "float64", threads=count), entry.name, op):
                        plan = make_plan(Request(op, problem, "float64"), entry.name, "cpu")
                        np.testing.assert_array_equal(plan(*operands), expected, str(plan))
                        found.add(entry.name)
    assert len(found) > 1
    assert spoilt_results > 3  # a cell between two windows is seen by none


def test_the_example_of_the_documentation():
    dy, w = np.ones((1, 1, 4)), np.array([[[np.inf, 1, 1]]])
    for entry in ("gemm", "mec", "col2im", "depthwise"):
        dx = cuconv.conv_input_grad(dy, w, (1, 1, 6), algorithm=entry)
        np.testing.assert_array_equal(dx[0, 0], [np.inf] * 4 + [np.nan] * 2)
