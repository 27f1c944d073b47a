"""The self-test: every op on a spread of problems, on the user's own machine, against a plain evaluation.

It runs on the GPU where there is one that CuPy can use.

The plain evaluation is in double precision and does not use the library: it lists for every output cell and
filter tap the input cell that `numpy.pad` says lies there, and sums.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .. import ConvProblem, conv, conv_bias_grad, conv_input_grad, conv_weight_grad
from ..arrays import on_host
from ..cuda import jit
from ..dtypes import DTYPES
from .oracle import terms, units

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

_NUMPY_MODES = {
    "zeros": "constant",
    "circular": "wrap",
    "reflect": "reflect",
    "replicate": "edge",
    "symmetric": "symmetric",
}


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


def main(seed: int = 0) -> int:
    """Run the self-test and print a table of errors; 0 if every element is within its bound."""
    cupy = jit.usable_cupy()
    print(f"On {place()}.")
    print(f"Largest error of each op over {len(PROBLEMS)} problems, as a share of its bound: the number of")
    print("products times the accumulator's epsilon times the sum of |products|. Integers must be equal.\n")
    ops = ("fprop", "dgrad", "wgrad", "bgrad")
    print(f"{'dtype':12}" + "".join(f"{op:>9}" for op in ops))
    failures = []
    for dtype in DTYPES:
        worst = dict.fromkeys(ops, 0.0)
        for line in PROBLEMS:
            for op, share in errors(ConvProblem.parse(line), dtype, seed, cupy or np).items():
                worst[op] = max(worst[op], share)
                if not share <= 1:
                    failures.append(f"{op} {dtype} {line}: {share:.3g} times its bound")
        print(f"{dtype:12}" + "".join(f"{worst[op]:9.1%}" for op in ops))
    wrong = [line for line in PROBLEMS if bytes_differ(ConvProblem.parse(line), seed, cupy or np)]
    failures += [f"fprop of bytes in int32 {line} is not exact" for line in wrong]
    print(f'{"uint8":12}{np.inf if wrong else 0:9.1%}    (x and w of bytes, out_dtype="int32")')
    print("\n" + ("\n".join(failures) if failures else "all within their bounds"))
    return 1 if failures else 0


def place() -> str:
    """Where arrays are computed with by default: the GPU at hand, or the CPU."""
    cupy = jit.usable_cupy()
    if cupy is None:
        return f"the CPU with NumPy {np.__version__}"
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["name"].decode()
    return f"{name} ({jit.current_arch()}) with CuPy {cupy.__version__}"


def errors(problem: ConvProblem, dtype: str, seed: int = 0, xp: Any = np) -> dict[str, float]:
    """Per op, the largest error as a share of what a sum of so many products may lose.

    xp is the library whose arrays are computed with, numpy or cupy.
    """
    rng = np.random.default_rng(seed)
    kind = DTYPES[dtype].kind
    real = np.dtype(getattr(ml_dtypes, dtype, dtype))

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        if kind == "i":
            return rng.integers(-(2**20), 2**20, shape).astype(real)
        values = rng.standard_normal(shape)
        return (values + 1j * rng.standard_normal(shape) if kind == "c" else values).astype(real)

    x, w, dy = draw(problem.x_shape()), draw(problem.w_shape()), draw(problem.y_shape())
    options = problem.options()
    x_there, w_there, dy_there = (xp.asarray(array) for array in (x, w, dy))
    results = {
        "fprop": conv(x_there, w_there, None, **options),
        "dgrad": conv_input_grad(dy_there, w_there, x.shape, **options),
        "wgrad": conv_weight_grad(x_there, dy_there, w.shape, **options),
        "bgrad": conv_bias_grad(dy_there),
    }
    got = {op: on_host(result) for op, result in results.items()}
    plain = PlainEvaluation(problem)
    wide = {"f": np.float64, "c": np.complex128, "i": np.int64}[kind]
    operands = {"fprop": (x, w), "dgrad": (dy, w), "wgrad": (x, dy), "bgrad": (dy,)}
    found = {}
    for op, arrays in operands.items():
        expected = getattr(plain, op)(*(array.astype(wide) for array in arrays))
        magnitude = getattr(plain, op)(*(np.abs(array.astype(wide)) for array in arrays))
        found[op] = units(got[op], expected, magnitude, dtype) / terms(problem, op, kind)
    return found


def bytes_differ(problem: ConvProblem, seed: int, xp: Any) -> bool:
    """Whether sums of unsigned times signed bytes differ from the plain evaluation's."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, problem.x_shape(), dtype=np.uint8)
    w = rng.integers(-128, 128, problem.w_shape(), dtype=np.int8)
    got = on_host(conv(xp.asarray(x), xp.asarray(w), **problem.options(), out_dtype="int32"))
    return not np.array_equal(got, PlainEvaluation(problem).fprop(x.astype(np.int64), w.astype(np.int64)))
