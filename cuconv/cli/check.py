"""The self-test: every algorithm on a spread of problems, on the user's own machine, against plain sums.

It runs on the GPU where there is one that CuPy can use. Each exact entry of the table is taken by name,
whatever `auto` would choose; one that fails is named, with how to avoid it. What no GPU has run yet only
runs if it is asked for.

The plain evaluation is in double precision and does not use the library: it lists for every output cell and
filter tap the input cell that `numpy.pad` says lies there, and sums.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.random  # NumPy loads it when first used, and an interrupt meanwhile is lost
from numpy.lib.stride_tricks import sliding_window_view

from ..arrays import numpy_dtype, on_host
from ..cuda import jit
from ..dtypes import DTYPES
from ..options import one_of
from ..plan import AVOID, INPUTS, TABLES, avoided, current_arch, device_of, make_plan
from ..problem import ConvProblem, Request
from ..table import Algorithm, untried
from . import report
from .arguments import UsageError, add_json, at_least
from .oracle import ROUNDED, terms, units

DOES = "a self-test: every algorithm against plain sums in double precision"
EXAMPLE = "python -m cuconv check --algorithm gemm"

PROBLEMS = (
    "n2c3w40 k4s5",
    "n2c4w33 k6s3 g2 sw2 dw3 pw4:0",
    "n1c2w24 k2s24 pw12:11 circular",
    "n2c8h14w15 k16r3s3 p1",
    "n3c3h17w16 k8r7s7 sh2sw2 p3",
    "n2c16h12w12 k8r1s1",
    "n2c6h13w11 k12r3s3 g6 p1",
    "n2c4h9w12 k4r4s4 sh4sw4 p1",
    "n1c4h11w10 k6r3s2 g2 sh1sw2 dh2dw1 ph2:1pw0:3 reflect",
    "n2c2h9w9 k3r5s5 p2 replicate",
    "n2c3h6w7 k2r4s3 sh2sw1 ph7:2pw1:3 symmetric",
    "n1c3d7h8w9 k4t3r3s3 p1",
    "n2c4d6h7w8 k4t2r3s2 g4 sd2sh1sw2 p1 circular",
)
"""One-line problems: every rank, padding mode, groups, stride and dilation."""

BYTES = "uint8"
"""Stands for x of uint8 and w of int8, summed in int32."""

TF32 = "tf32"
"""Stands for float32 whose factors may be rounded to 11 bits, which only GPUs do."""

COLUMNS = (*DTYPES, BYTES, TF32)

_NUMPY_MODES = {
    "zeros": "constant",
    "circular": "wrap",
    "reflect": "reflect",
    "replicate": "edge",
    "symmetric": "symmetric",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be asked."""
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the random operands")
    parser.add_argument(
        "--algorithm", action="append", default=[], help="only this one, whether a GPU has run it or not"
    )
    add_json(parser)


class PlainEvaluation:
    """The four ops of one problem by direct sums over taps, in float64, complex128 or int64."""

    def __init__(self, problem: ConvProblem) -> None:
        self.problem = problem
        cells = np.arange(np.prod(problem.input)).reshape(problem.input)
        mode: Any = _NUMPY_MODES[problem.padding_mode]
        constant: dict[str, Any] = {"constant_values": -1} if mode == "constant" else {}
        seen = np.pad(cells, problem.padding, mode, **constant)
        windows = sliding_window_view(seen, problem.reach)
        steps = tuple(slice(None, None, step) for step in problem.stride + problem.dilation)
        taps, pixels = int(np.prod(problem.filter)), int(np.prod(problem.output))
        # cell[o, r]: the flat input cell that tap r of output cell o reads; the last one stands for padding.
        self.cell = windows[steps].reshape(pixels, taps) % (cells.size + 1)
        self.size = cells.size

    def fprop(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        y = np.einsum("ngcor,gkcr->ngko", self._tapped(x), self._filters(w))
        return y.reshape(self.problem.y_shape())

    def wgrad(self, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
        dw = np.einsum("ngcor,ngko->gkcr", self._tapped(x).conj(), self._outputs(dy))
        return dw.reshape(self.problem.w_shape())

    def dgrad(self, dy: np.ndarray, w: np.ndarray) -> np.ndarray:
        p = self.problem
        parts = np.einsum("ngko,gkcr->ngcor", self._outputs(dy), self._filters(w).conj())
        dx = np.zeros((p.n, p.c, self.size + 1), parts.dtype)
        every: Any = (slice(None), slice(None), self.cell)
        np.add.at(dx, every, parts.reshape(p.n, p.c, *self.cell.shape))
        return dx[..., : self.size].reshape(p.x_shape())

    def bgrad(self, dy: np.ndarray) -> np.ndarray:
        return self._outputs(dy).sum(axis=(0, 3)).reshape(self.problem.k)

    def _tapped(self, x: np.ndarray) -> np.ndarray:
        p = self.problem
        flat = np.zeros((p.n, p.groups, p.c // p.groups, self.size + 1), x.dtype)
        flat[..., : self.size] = x.reshape(p.n, p.groups, p.c // p.groups, self.size)
        return flat[..., self.cell]

    def _filters(self, w: np.ndarray) -> np.ndarray:
        p = self.problem
        return w.reshape(p.groups, p.k // p.groups, p.c // p.groups, -1)

    def _outputs(self, dy: np.ndarray) -> np.ndarray:
        p = self.problem
        return dy.reshape(p.n, p.groups, p.k // p.groups, -1)


class Case:
    """A problem in a dtype, or of bytes: operands by role, and the true result of each op that there is."""

    def __init__(self, problem: ConvProblem, dtype: str, seed: int = 0) -> None:
        self.problem, self.dtype = problem, {BYTES: "int32", TF32: "float32"}.get(dtype, dtype)
        self.precision = TF32 if dtype == TF32 else None
        self.inputs = ("uint8", "int8") if dtype == BYTES else None
        self.kind = DTYPES[self.dtype].kind
        rng = np.random.default_rng(seed)
        shapes = {"x": problem.x_shape(), "w": problem.w_shape(), "dy": problem.y_shape()}
        dtypes = dict.fromkeys(shapes, self.dtype) | dict(zip("xw", self.inputs or (), strict=False))
        self.operands = {role: _drawn(rng, shape, dtypes[role]) for role, shape in shapes.items()}
        wide: Any = {"f": np.float64, "c": np.complex128, "i": np.int64}[self.kind]
        plain = PlainEvaluation(problem)
        self.truth: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for op in INPUTS:
            if (self.inputs and op != "fprop") or (self.precision and op == "bgrad"):
                continue
            sums = getattr(plain, op)
            operands = [self.operands[role].astype(wide) for role in INPUTS[op]]
            self.truth[op] = sums(*operands), sums(*map(np.abs, operands))

    def request(self, op: str) -> Request:
        """The op on the problem, as the public functions ask for it."""
        conjugate = self.kind == "c" and op in ("dgrad", "wgrad")
        return Request(
            op, self.problem, self.dtype,
            conjugate=conjugate, precision=self.precision, inputs=self.inputs,
        )  # fmt: skip

    def share(self, op: str, algorithm: str, backend: str, xp: Any = np) -> float:
        """The largest error of an algorithm, as a share of what a sum of so many products may lose.

        xp is the library whose arrays are computed with, numpy or cupy.
        """
        plan = make_plan(self.request(op), algorithm, backend, current_arch(backend))
        result = on_host(plan(*(xp.asarray(self.operands[role]) for role in INPUTS[op])))
        most = terms(self.problem, op, self.kind) + ROUNDED[self.precision]
        return units(result, *self.truth[op], self.dtype) / most


def _drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Normal numbers, all bytes, or integers so large that sums of their products wrap around."""
    real = numpy_dtype(dtype)
    if real.kind in "iu":
        low, high = (-(2**20), 2**20) if real.itemsize > 1 else (np.iinfo(real).min, np.iinfo(real).max + 1)
        return rng.integers(low, high, shape, real)
    values: Any = rng.standard_normal(shape)
    return (values + 1j * rng.standard_normal(shape) if real.kind == "c" else values).astype(real)


def run(options: argparse.Namespace) -> int:
    """Run the self-test where arrays are computed with by default; 0 if every element is within its bound."""
    cupy = jit.usable_cupy()
    xp, backend = cupy or np, "cuda" if cupy else "cpu"
    document = check(backend, xp, options.seed, options.algorithm, report.teller(options.json))
    if options.json:
        report.write(document)
    return 0 if document["passed"] else 1


def check(
    backend: str, xp: Any = np, seed: int = 0, algorithms: Sequence[str] = (), say: report.Say = print
) -> dict[str, Any]:
    """Find the errors of all algorithms or of those named, and say them as they are found: a table, and what
    to do where one fails. Raises UsageError where an algorithm is named that there is not.
    """
    entries = _entries(backend, algorithms)
    say(f"On {place()}.")
    say(f"Largest error of each exact algorithm over {len(PROBLEMS)} problems, as a share of its bound:")
    say("the number of products times the accumulator's epsilon times the sum of |products|. Integers must")
    say(f"be equal; {BYTES} is x and w of bytes, summed in int32; - is where it applies to no problem.")
    if backend == "cuda":
        say(f"{TF32} is float32 of which factors may be rounded to 11 bits, with a bound for that.")
        say("Kernels are compiled when they are first needed: the first check of a GPU takes longest.")
    say()
    columns = [column for column in COLUMNS if backend == "cuda" or column != TF32]
    cells = [*_told(_cells(entries, columns, backend, xp, seed), columns, say)]
    failures: dict[str, list[str]] = {}
    for cell in cells:
        if cell.failure:
            line = f"{cell.algorithm} {cell.op} {cell.dtype} {cell.failure}"
            failures.setdefault(cell.algorithm, []).append(line)
    lost = bool(cells) and cells[-1].lost
    if lost:
        say("\n\nSince then the GPU refuses all work of this process: leave out what failed")
        say("to have the rest checked.")
    say()
    not_run = [] if algorithms else untried(TABLES[backend])
    if avoided():
        say(f"{AVOID} leaves out {', '.join(avoided())}: not run.")
    for name in not_run:
        say(f"No GPU has run {name} yet: not run. python -m cuconv check --algorithm {name} does.")
    if failures:
        say("\n".join(line for lines in failures.values() for line in lines))
        say("\nPlease report this, with what python -m cuconv info prints. Until it is mended, set")
        say(f"{AVOID}={','.join([*avoided(), *failures])}, and auto and tune leave out what failed.")
    else:
        say("all within their bounds")
    return {
        "on": place(),
        "backend": backend,
        "problems": [*PROBLEMS],
        "seed": seed,
        "results": [
            {
                "algorithm": cell.algorithm,
                "op": cell.op,
                "dtype": cell.dtype,
                "share_of_bound": cell.share,
                "failure": cell.failure or None,
            }
            for cell in cells
        ],
        "avoided": [*avoided()],
        "untried": not_run,
        "gpu_lost": lost,
        "passed": not failures,
    }


@dataclass(frozen=True)
class Cell:
    """An algorithm's largest share of a bound in one op and dtype, None where it has none, or its failure.

    After a `lost` one the device computes no more.
    """

    algorithm: str
    op: str
    dtype: str
    share: float | None
    failure: str
    lost: bool


def _cells(
    entries: Sequence[tuple[str, Algorithm]], columns: Sequence[str], backend: str, xp: Any, seed: int
) -> Iterator[Cell]:
    """What is found, entry by entry, as it is."""
    problems = [ConvProblem.parse(line) for line in PROBLEMS]
    cases = {dtype: [Case(problem, dtype, seed) for problem in problems] for dtype in columns}
    for op, entry in entries:
        for dtype in columns:
            share, failure = _worst(op, entry, cases[dtype], backend, xp)
            lost = bool(failure) and not answers(xp)
            yield Cell(entry.name, op, dtype, share, failure, lost)
            if lost:
                return


def _told(cells: Iterable[Cell], columns: Sequence[str], say: report.Say) -> Iterator[Cell]:
    """The cells, each printed as it comes: a row for an algorithm and op, a column for a dtype."""
    widths = {column: max(len(column), 6) + 1 for column in columns}
    say(" " * 16 + "".join(f"{dtype:>{width}}" for dtype, width in widths.items()))
    for cell in cells:
        if cell.dtype == columns[0]:
            say(f"{cell.algorithm:10}{cell.op:6}", end="")
        text = "FAILED" if cell.failure else "-" if cell.share is None else f"{cell.share:.1%}"
        ends = cell.dtype == columns[-1] and not cell.lost
        say(f"{text:>{widths[cell.dtype]}}", end="\n" if ends else "")
        yield cell


def _entries(backend: str, algorithms: Sequence[str]) -> list[tuple[str, Algorithm]]:
    """What runs, op by op and algorithm by algorithm."""
    entries = [(op, entry) for op, of_op in TABLES[backend].items() for entry in of_op if entry.exact]
    names = list(dict.fromkeys(entry.name for _, entry in entries))
    for name in algorithms:
        try:
            one_of("--algorithm", name, names)
        except ValueError as error:
            raise UsageError(str(error)) from None
    left_out = {*avoided(), *untried(TABLES[backend])}
    kept = algorithms or [name for name in names if name not in left_out]
    return sorted(
        (pair for pair in entries if pair[1].name in kept), key=lambda pair: names.index(pair[1].name)
    )


def _worst(
    op: str, entry: Algorithm, cases: Sequence[Case], backend: str, xp: Any
) -> tuple[float | None, str]:
    """An algorithm's largest share of a bound, None where it has none; and its first failure in words."""
    worst, device = None, device_of(backend, current_arch(backend))
    for case in cases:
        if op not in case.truth or entry.applies(case.request(op), device) is not None:
            continue
        try:
            share = case.share(op, entry.name, backend, xp)
        except Exception as raised:  # what does not compile, or cannot be launched
            reason = (str(raised).splitlines() or [""])[0]
            return None, f"{case.problem}: raised {type(raised).__name__}: {reason}"
        if not share <= 1:
            return None, f"{case.problem}: {share:.3g} times its bound"
        worst = max(worst or 0.0, share)
    return worst, ""


def answers(xp: Any) -> bool:
    """Whether the device still computes: after an access to foreign memory every call of a process fails."""
    try:
        return bool(on_host(xp.ones(1))[0] == 1)
    except Exception:
        return False


def place() -> str:
    """Where arrays are computed with by default: the GPU at hand, or the CPU."""
    cupy = jit.usable_cupy()
    if cupy is None:
        return f"the CPU with NumPy {np.__version__}"
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["name"].decode()
    return f"{name} ({jit.current_arch()}) with CuPy {cupy.__version__}"
