"""The error of each dtype and algorithm: python -m tests.numerics writes the tables of docs/numerics.md.

Every algorithm of both backends computes short and long sums: a CPU's by one thread, a GPU's in the emulator.
An error is that of a result against the exact sum of its products, over the sum of their magnitudes, in units
of the dtype's last place.
"""

import functools
import math
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np

import cuconv
from benchmarks.report import with_part
from cuconv import dtypes
from cuconv.cli import oracle
from cuconv.cuda import mma, wgmma
from cuconv.machine import blas_pools
from cuconv.plan import INPUTS

from . import emulator
from .cases import ALGORITHMS, DTYPES, ON_GPU, OPS, PUBLIC, Case, applies, threads

DOCUMENT = Path(__file__).parents[1] / "docs" / "numerics.md"
TF32 = "tf32"
"""Stands for float32 whose factors may be rounded to 11 bits."""

COLUMNS = (*DTYPES, TF32)
LAST = {name: float(ml_dtypes.finfo(dtype).eps) for name, dtype in DTYPES.items() if dtype.kind != "i"}
LAST |= {TF32: 2.0**-10, "int32": 1.0, "int64": 1.0}
"""The last place of each dtype: the distance of 1 from the next larger number."""

SAMPLES = 4096
"""Results of which the errors are found: all, but of the long sums with few channels."""

_DENSE = "n1c16h12w12 k16r3s3 p1"
_OF_EACH_CHANNEL = "n1c2h23w23 k2r12s12 g2"
_LONG = ("n1c512h8w8 k16r3s3 p1", "n1c16h8w8 k512r3s3 p1", "n18c16h16w16 k16r3s3 p1")
_LONG_OF_EACH_CHANNEL = "n1c2h127w143 k2r64s72 g2"
PROBLEMS = {
    ("dense", "short"): (_DENSE,) * 3,
    ("dense", "long"): _LONG,
    ("grouped", "short"): (_DENSE,) * 3,
    ("grouped", "long"): ("n1c128h8w8 k8r5s5 p2", "n1c8h8w8 k128r5s5 p2", _LONG[2]),
    ("channels apart", "short"): (_OF_EACH_CHANNEL, "n1c2h12w12 k2r12s12 g2 p11", _OF_EACH_CHANNEL),
    ("channels apart", "long"): (
        _LONG_OF_EACH_CHANNEL,
        "n1c2h64w72 k2r64s72 g2 ph63pw71",
        _LONG_OF_EACH_CHANNEL,
    ),
}
"""By family and length of the sums, a problem for each of OPS."""

FAMILIES = {"toeplitz": "channels apart", "depthwise": "channels apart", "grouped": "grouped"}
"""Those of the algorithms that are not dense."""

TABLES = {"normal": ("short", "long"), "positive": ("long",)}
"""What is measured of either kind of numbers."""

HALVES = ("float16", "bfloat16")

KERNELS = "Haswell"
"""OpenBLAS's name for its kernels for AVX2, which the document is measured with: AMD's CPUs have them too.

In which order products are added, hence the error, is theirs to say.
"""


def problem_of(algorithm, length, op):
    line = PROBLEMS[FAMILIES.get(algorithm, "dense"), length][OPS.index(op)]
    return cuconv.ConvProblem.parse(line)


@functools.cache
def rows(backend):
    """Which algorithms do what: the ops of each (dtype, algorithm) that there is."""
    found = {}
    for dtype in COLUMNS:
        for algorithm in ALGORITHMS if backend == "cpu" else ON_GPU:
            ops = tuple(op for op in OPS if _does(backend, dtype, algorithm, op))
            if ops:
                found[dtype, algorithm] = ops
    return found


def _does(backend, dtype, algorithm, op):
    plain, precision = _plain(dtype)
    if precision and (backend == "cpu" or not rounds(algorithm)):
        return False
    case = Case(problem_of(algorithm, "long", op), plain, precision=precision)
    return applies(case, algorithm, op, backend)


def rounds(algorithm):
    """Whether an algorithm has products of floats that are rounded to TF32."""
    family = {"mma": mma, "wgmma": wgmma}.get(algorithm)
    return family is not None and ("float32", TF32) in family.PRODUCTS


def _plain(dtype):
    return ("float32", TF32) if dtype == TF32 else (dtype, None)


def operands(problem, dtype, data):
    """x, w and dy, always the same ones: normal numbers, or between 0 and 1; integers of all sizes."""
    real = DTYPES[_plain(dtype)[0]]
    shapes = {"x": problem.x_shape(), "w": problem.w_shape(), "dy": problem.y_shape()}
    found = {}
    for role, shape in shapes.items():
        rng = np.random.default_rng([0, *f"{problem} {dtype} {data} {role}".encode()])
        if real.kind == "i":
            low = 0 if data == "positive" else np.iinfo(real).min
            found[role] = rng.integers(low, np.iinfo(real).max, shape, real, endpoint=True)
            continue
        draw = rng.standard_normal if data == "normal" else rng.random
        values = draw(shape) + 1j * draw(shape) if real.kind == "c" else draw(shape)
        found[role] = values.astype(real)
    return found


def kernels():
    """What this process's OpenBLAS calls its kernels."""
    return next((found.get("architecture") for found in blas_pools()), None)


def pool(processes, name=KERNELS):
    """Processes whose OpenBLAS has one thread and the kernels of that name, where it can."""
    environment = dict(OPENBLAS_CORETYPE=name, OPENBLAS_NUM_THREADS="1", CUPY_TF32="0")
    with mock.patch.dict(os.environ, environment):
        found = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
        for each in [found.submit(kernels) for _ in range(processes)]:  # started now
            each.result()
    return found


def computed(backend, op, arrays, **options):
    """What the public function returns, on the backend named, with one thread on a CPU."""
    if backend == "cuda":
        return emulator.run(op, *arrays, **options)
    with threads(1):
        return PUBLIC[op](*arrays, **options)


@functools.lru_cache(maxsize=16)
def truth(op, problem, dtype, data):
    """Arguments of an op, and what its results truly are, at SAMPLES places."""
    plain, precision = _plain(dtype)
    drawn = operands(problem, dtype, data)
    arrays = [drawn[role] for role in INPUTS[op]]
    true = oracle.sample(op, problem, plain, "channels_first", *arrays, samples=SAMPLES, precision=precision)
    shape = {"dgrad": [problem.x_shape()], "wgrad": [problem.w_shape()]}.get(op, [])
    return [*arrays, *shape], true


def bound(dtype, products):
    """What a result may be off at the most, in units, by any algorithm that sums products: see the page."""
    plain, _ = _plain(dtype)
    if DTYPES[plain].kind == "i":
        return 0.0
    epsilon = LAST[dtypes.DTYPES[plain].accumulator] / LAST[dtype]
    times = 4 if DTYPES[plain].kind == "c" else 1
    rounding = 0.5 if dtype in HALVES else 1 + 2.0**-12 if dtype == TF32 else 0.0
    return times * (products + 2) * epsilon + rounding


def measured(backend, dtype, algorithm, op, length, data):
    """Root mean square and largest error, in units; AssertionError where the bound does not hold."""
    problem = problem_of(algorithm, length, op)
    arguments, true = truth(op, problem, dtype, data)
    options = problem.options() | dict(algorithm=algorithm, precision=true.precision)
    got = computed(backend, op, arguments, **options)
    context = f"{algorithm} {op} of {length} sums of {data} numbers in {dtype} ({backend})"
    wide = true.exact.dtype
    if wide.kind == "i":
        wrong = np.count_nonzero(got[true.index] != true.exact.astype(got.dtype))
        assert not wrong, f"{context}: {wrong} integers are not exact"
        return 0.0, 0.0
    error = np.abs(got[true.index].astype(wide) - true.exact) / true.magnitude / LAST[dtype]
    largest = float(error.max())
    if algorithm == "fft":
        assert true.share_overall(got) < 1, f"{context}: above its bound"
    else:
        most = bound(dtype, problem.gemm(op)[2])
        assert largest < most, f"{context}: {largest} is above the bound {most}"
    return float(np.sqrt(np.mean(error**2))), largest


def row(backend, dtype, algorithm):
    """All that is measured of an algorithm in a dtype, by (data, length, op): None for an op it has not."""
    ops = rows(backend)[dtype, algorithm]
    return {
        (data, length, op): measured(backend, dtype, algorithm, op, length, data) if op in ops else None
        for data, lengths in TABLES.items()
        for length in lengths
        for op in OPS
    }


# -- the document --------------------------------------------------------------------------------------


def shown(value):
    """Two significant digits."""
    if value == 0:
        return "0"
    digits = 1 - math.floor(math.log10(float(f"{value:.1e}")))
    return f"{round(value, digits):.{max(digits, 0)}f}"


def cell(pair):
    return "-" if pair is None else ", ".join(map(shown, pair))


def head(data):
    """The columns of a table: (length, op)."""
    return [(length, op) for length in TABLES[data] for op in OPS]


def table(found, data):
    """The lines of a table, from the rows of a backend.

    Algorithms of a dtype share a line where they have the same figures in the ops that both have, and dtypes
    where they have all lines in common.
    """
    of_dtype = {}
    for (dtype, algorithm), each in found.items():
        cells = [cell(each[(data, *column)]) for column in head(data)]
        lines = of_dtype.setdefault(dtype, [])
        for names, others in lines:
            if all(one == other or "-" in (one, other) for one, other in zip(cells, others, strict=True)):
                names.append(algorithm)
                others[:] = [other if one == "-" else one for one, other in zip(cells, others, strict=True)]
                break
        else:
            lines.append(([algorithm], cells))
    together = {}
    for dtype, lines in of_dtype.items():
        key = tuple((", ".join(names), *cells) for names, cells in lines)
        together.setdefault(key, []).append(dtype)
    rows = [("dtype", "algorithm", *(f"{op}, {length}" for length, op in head(data)))]
    rows += [("---",) * (2 + len(head(data)))]
    rows += [(", ".join(names), *line) for lines, names in together.items() for line in lines]
    return [f"| {' | '.join(each)} |" for each in rows]


def marks(backend, data):
    return f"<!-- {backend}, {data}: begin -->\n", f"<!-- {backend}, {data}: end -->"


def read(text, backend, data):
    """The cells of a table in the document's text, by dtype, algorithm and (length, op)."""
    begin, end = marks(backend, data)
    lines = text.split(begin)[1].split(end)[0].splitlines()
    found = {}
    for line in lines[2:]:
        names, of, *cells = (each.strip() for each in line.strip("| ").split("|"))
        for dtype in names.split(", "):
            for algorithm in of.split(", "):
                assert (dtype, algorithm) not in found, f"{algorithm} in {dtype} has two lines"
                found[dtype, algorithm] = dict(zip(head(data), cells, strict=True))
    return found


def compare(text, backend, dtype, algorithm, data, length, op):
    """Measure one cell of the document again; AssertionError where it says something else.

    A version of NumPy or SciPy may add, or transform, in another order: but for the emulator's kernels
    figures may be off by half. Of another BLAS only the bound is looked at.
    """
    said = read(text, backend, data)[dtype, algorithm][length, op]
    got = measured(backend, dtype, algorithm, op, length, data)
    where = f"{algorithm} {op} of {length} sums of {data} numbers in {dtype} ({backend})"
    if backend == "cpu" and kernels() != KERNELS:
        return
    if backend == "cuda" and algorithm != "fft":
        assert said == cell(got), f"{where}: {cell(got)}, and not {said}"
        return
    assert near(said, got), f"{where}: {cell(got)}, far from {said}"


def near(said, got):
    """Whether a cell's figures are those measured, or off by half at the most."""
    return all(
        other / 1.5 <= one <= other * 1.5
        for one, other in zip(map(float, said.split(", ")), got, strict=True)
    )


def main():
    asked = [(backend, *key) for backend in ("cpu", "cuda") for key in rows(backend)]
    found = {"cpu": {}, "cuda": {}}
    with pool(min(2, os.cpu_count() or 1)) as processes:
        if (name := processes.submit(kernels).result()) != KERNELS:
            sys.exit(f"NumPy's BLAS has kernels for {name}, and the document is measured with {KERNELS}'s")
        each_row = processes.map(row, *zip(*asked, strict=True))
        for (backend, *key), each in zip(asked, each_row, strict=True):
            found[backend][tuple(key)] = each
            print(backend, *key, *map(cell, each.values()), sep="  ", file=sys.stderr, flush=True)
    text = DOCUMENT.read_text()
    for backend, of_backend in found.items():
        for data in TABLES:
            begin, end = marks(backend, data)
            lines = "\n".join(table(of_backend, data))
            text = with_part(DOCUMENT.name, text, begin.strip(), f"{lines}\n", end)
    DOCUMENT.write_text(text)


if __name__ == "__main__":
    main()
