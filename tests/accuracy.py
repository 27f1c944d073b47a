"""How exact products of floats by parts are: python -m tests.accuracy writes the tables of docs/accuracy.md.

The kernels of `mma` and `simt` sum the same products in the emulator, whose tensor cores truncate. An error
is that of a sum against exact arithmetic, over the sum of its products' magnitudes, in units of 2^-24, which
is half of the last place of a float.
"""

import contextlib
import functools
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks import suites
from benchmarks.report import with_part
from cuconv.cuda import mma, simt, wgmma
from cuconv.cuda.schedule import gemm_k
from cuconv.plan import forget

from . import emulator
from .cases import in_parts, of_warpgroups

DOCUMENT = Path(__file__).parents[1] / "docs" / "accuracy.md"
SUMS = 64
"""Rows and columns of a product of matrices: 4096 sums, a tile of the smallest size."""

UNIT = 2.0**-24


def cancelling(rng, shape, other):
    """The second half of each sum takes back the first one, but for the last bits of its factors."""
    x, w = rng.standard_normal(shape), rng.standard_normal(other)
    half = shape[-1] // 2
    x[:, half : 2 * half] = -x[:, :half] * (1 + 2.0**-20 * rng.uniform(-1, 1, (shape[0], half)))
    w[:, half : 2 * half] = w[:, :half]
    return x, w


def scaled(rng, shape, other, low, high, at=0):
    """Normal numbers whose exponents are spread from low to high in x, and those of w moved by `at`."""
    x = rng.standard_normal(shape) * 2.0 ** rng.uniform(low, high, shape)
    return x, rng.standard_normal(other) * 2.0**at


DATA = {
    "normal": lambda rng, *shapes: [rng.standard_normal(shape) for shape in shapes],
    "positive": lambda rng, *shapes: [rng.uniform(0, 1, shape) for shape in shapes],
    "over 2^40": functools.partial(scaled, low=-20, high=20),
    "cancelling": cancelling,
    "subnormal x": functools.partial(scaled, low=-140, high=-130, at=40),
    "subnormal sums": functools.partial(scaled, low=-70, high=-60, at=-75),
    "near overflow": functools.partial(scaled, low=100, high=119, at=0),
}
"""Matrices of SUMS rows each, by names."""

LENGTHS = (9, 27, 32, 64, 147, 576, 4608)
LONG = (100_000, 1_000_000)
"""Products in a sum; the long ones are of normal and of positive numbers."""

ALGORITHMS = {"plain": "simt", "by parts": "mma"}


@contextlib.contextmanager
def in_one_part():
    """Sums are not cut, and tiles are of the smallest size."""

    def uncut(problem, op, tile):
        return [(1, gemm_k(problem, op))]

    with (
        mock.patch.object(mma, "choice", lambda *asked: in_parts(*asked, -1, 1)),
        mock.patch.object(wgmma, "choice", lambda *asked: of_warpgroups(*asked, -1, 1)),
        mock.patch.object(simt, "_cuts", uncut),
    ):
        forget()
        yield
    forget()


def operands(data, length):
    """Two matrices of floats with so many columns."""
    rng = np.random.default_rng([0, length, *data.encode()])
    return [matrix.astype(np.float32) for matrix in DATA[data](rng, (SUMS, length), (SUMS, length))]


def sums(x, w, algorithm):
    """The products of all rows by a convolution with a filter of one tap, in one part."""
    with in_one_part():
        y = emulator.run("fprop", x[None], w[:, None], layout="channels_last", algorithm=algorithm)
    return y[0].T


def errors(x, w, algorithm):
    """Root mean square and largest error of all sums, in units."""
    got, wide = sums(x, w, algorithm), np.longdouble
    exact, magnitude = np.zeros((SUMS, SUMS), wide), np.zeros((SUMS, SUMS), wide)
    for begin in range(0, x.shape[1], 512):  # of 48 bits each, in 64
        of_x, of_w = (matrix[:, begin : begin + 512].astype(wide) for matrix in (x, w))
        exact += of_w @ of_x.T
        magnitude += np.abs(of_w) @ np.abs(of_x).T
    error = np.abs(got - exact) / np.maximum(magnitude, np.finfo(np.float32).smallest_subnormal) / UNIT
    return float(np.sqrt(np.mean(error**2))), float(error.max())


def measured(data, length):
    """By the names of ALGORITHMS, errors of sums of so many products."""
    return {name: errors(*operands(data, length), algorithm) for name, algorithm in ALGORITHMS.items()}


# -- the document --------------------------------------------------------------------------------------


def lengths(suite):
    """The lengths of the sums of a suite that `auto` may give to tensor cores, cut at a hundred thousand."""
    found = set()
    for problem in suites.read(suite).problems:
        dense = min(problem.c, problem.k) // problem.groups >= mma.LEAST or problem.groups == 1
        for op in ("fprop", "dgrad", "wgrad") if dense else ():
            length = problem.gemm(op)[2]
            if op == "dgrad":  # of a residue of the stride
                length = max(length // math.prod(problem.stride), 1)
            if length >= mma.SHORT:
                found.add(min(length, LONG[0]))
    return found


def row(*cells):
    return f"| {' | '.join(map(str, cells))} |"


def shown(value):
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def tables(found):
    """The tables of the document, from the errors by data and length."""
    lines = [
        row("data", "products", "plain", "by parts", "plain, largest", "by parts, largest"),
        row(*["---"] * 6),
    ]
    for (data, length), each in found.items():
        if length in LENGTHS + LONG and (length in LENGTHS or data in ("normal", "positive")):
            (plain, most), (parts, most_parts) = (each[name] for name in ALGORITHMS)
            lines.append(row(data, f"{length:,}", *map(shown, (plain, parts, most, most_parts))))
    yield lines
    lines = [
        row("suite", "products", "data", "plain", "by parts", "by parts over plain, at the most"),
        row(*["---"] * 6),
    ]
    for suite in suites.names():
        of_suite = sorted(lengths(suite))
        for data in ("normal", "positive") if of_suite else ():
            each = [found[data, length] for length in of_suite]
            worst = [max(one[name][0] for one in each) for name in ALGORITHMS]
            ratio = max(one["by parts"][0] / one["plain"][0] for one in each)
            reach = f"{of_suite[0]:,} to {of_suite[-1]:,}"
            lines.append(row(suite, reach, data, *map(shown, worst), shown(ratio)))
    yield lines


def wanted():
    """What is measured: (data, length)."""
    found = dict.fromkeys((data, length) for data in DATA for length in LENGTHS)
    listed = sorted({length for suite in suites.names() for length in lengths(suite)} | {*LONG})
    return [*found, *((data, n) for data in ("normal", "positive") for n in listed if (data, n) not in found)]


def main():
    pairs = sorted(wanted(), key=lambda pair: -pair[1])  # the long ones first
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = {}
        for pair, each in zip(pairs, pool.map(measured, *zip(*pairs, strict=True)), strict=True):
            found[pair] = each
            print(f"{len(found)} of {len(pairs)}: {pair}", each, file=sys.stderr, flush=True)
    order = [*DATA]
    found = {pair: found[pair] for pair in sorted(found, key=lambda pair: (order.index(pair[0]), pair[1]))}
    text = DOCUMENT.read_text()
    for number, lines in enumerate(tables(found)):
        begin, end = f"<!-- table {number}: begin -->", f"<!-- table {number}: end -->"
        text = with_part(DOCUMENT.name, text, begin, "\n".join(lines) + "\n", end)
    DOCUMENT.write_text(text)


if __name__ == "__main__":
    main()
