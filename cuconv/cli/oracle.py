"""The oracle for large problems: the defining sum at sampled places, in double precision.

Shares no code with the algorithms. For every sampled element it lists, axis by axis, which cells of the two
operands meet in it, turns them into offsets in the flat arrays, and sums the gathered products: float64 or
complex128 for narrower dtypes, long double for those two. Corners and faces are always sampled, since that
is where an index goes wrong.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ..dtypes import DTYPES
from ..problem import ConvProblem

SAMPLES = 500
"""How many elements of a result are evaluated, as long as their sums have not more than PRODUCTS in all."""

PRODUCTS, LEAST = 1 << 24, 16
_CHUNK = 1 << 21

ROUNDED = {None: 0, "tf32": 2**14 + 8}
"""What rounding both factors of a product may lose, by precision, in epsilons of float32.

TF32 cuts each to 10 bits behind the first: (1 + 2^-10)^2 - 1 = 2^-9 + 2^-20.
"""

_WIDE = {"float64": np.longdouble, "complex128": np.clongdouble}
_WIDE_KINDS = {"f": np.float64, "c": np.complex128, "i": np.int64}


@dataclass(frozen=True)
class Sampled:
    """Some elements of an op's true result: their indices, values, and the sums of |products|.

    `index` selects them in a result in the problem's layout, as NumPy indexing does.
    """

    problem: ConvProblem
    op: str
    dtype: str
    index: tuple[np.ndarray, ...]
    exact: np.ndarray
    magnitude: np.ndarray
    precision: str | None = None

    def error(self, result: np.ndarray) -> float:
        """The root mean square of result - exact, divided by that of exact."""
        difference = self._wide(result) - self.exact
        return float(_rms(difference) / max(_rms(self.exact), float(np.finfo(np.float64).tiny)))

    def share(self, result: np.ndarray) -> float:
        """The largest error as a share of what a plain sum may lose: right where it is 1 or less.

        The bound is the number of products, times the accumulator's epsilon, times the sum of |products|.
        """
        return units(result[self.index], self.exact, self.magnitude, self.dtype) / self._terms

    def share_overall(self, result: np.ndarray) -> float:
        """The same for methods that spread an error over the result, as the FFT does: of root mean squares.

        A transform of length L loses a further log2(L) epsilon, with a small factor; half types are rounded
        twice at the most.
        """
        if DTYPES[self.dtype].kind == "i":
            return self.share(result)
        steps = self._terms
        steps += 8 * math.ceil(math.log2(max(math.prod(self.problem.padded), 2)))
        rounded = float(np.finfo(DTYPES[self.dtype].accumulator).eps) * steps * _rms(self.magnitude)
        if DTYPES[self.dtype].itemsize == 2:
            rounded += float(ml_dtypes.finfo(result.dtype).eps) * _rms(self.exact)
        return _rms(self._wide(result) - self.exact) / max(rounded, float(np.finfo(np.float64).tiny))

    @property
    def _terms(self) -> int:
        return terms(self.problem, self.op, DTYPES[self.dtype].kind) + ROUNDED[self.precision]

    def _wide(self, result: np.ndarray) -> np.ndarray:
        return result[self.index].astype(self.exact.dtype)


def sample(
    op: str,
    problem: ConvProblem,
    dtype: str,
    layout: str,
    a: np.ndarray,
    b: np.ndarray | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    precision: str | None = None,
) -> Sampled:
    """Evaluate fprop (a, b are x, w), dgrad (dy, w) or wgrad (x, dy) at about so many places, or bgrad (dy).

    The arrays have the shapes of the problem in that layout. For complex dtypes the gradients conjugate.
    """
    wide = _WIDE.get(dtype, _WIDE_KINDS[DTYPES[dtype].kind])
    if b is None:
        return _bias_gradient(problem, dtype, layout, a.astype(wide))
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    sums = _SUMS[op](problem, _steps(a, layout), _steps(b, layout))
    count = max(LEAST, min(samples, PRODUCTS // max(sums.products, 1)))
    index = _places(sums.shape, count, np.random.default_rng(seed))
    exact: np.ndarray = np.zeros(len(index), wide)
    magnitude = np.abs(exact)
    chunk = max(1, _CHUNK // max(sums.products, 1))
    for start in range(0, len(index), chunk):
        some = slice(start, start + chunk)
        for left, right, valid in sums.offsets(index[some]):
            first, second = a.ravel()[left].astype(wide), b.ravel()[right].astype(wide)
            products = np.where(valid, _conjugated(op, first, second), 0)
            exact[some] += products.sum(axis=(1, 2))
            magnitude[some] += np.abs(products).sum(axis=(1, 2))
    columns = tuple(index.T) if layout == "channels_first" else (index[:, 0], *index[:, 2:].T, index[:, 1])
    return Sampled(problem, op, dtype, columns, exact, magnitude, precision)


def _bias_gradient(problem: ConvProblem, dtype: str, layout: str, dy: np.ndarray) -> Sampled:
    """All of bgrad: dy summed over images and places."""
    channels = 1 if layout == "channels_first" else dy.ndim - 1
    others = tuple(axis for axis in range(dy.ndim) if axis != channels)
    exact, magnitude = dy.sum(axis=others), np.abs(dy).sum(axis=others)
    return Sampled(problem, "bgrad", dtype, (np.arange(problem.k),), exact, magnitude)


def units(got: np.ndarray, expected: np.ndarray, magnitude: np.ndarray, dtype: str) -> float:
    """The largest error in units of the accumulator's epsilon times the sum of |products|."""
    if DTYPES[dtype].kind == "i":
        return 0.0 if np.array_equal(got, expected.astype(got.dtype)) else np.inf
    epsilon = float(np.finfo(DTYPES[dtype].accumulator).eps)
    error = np.abs(got.astype(expected.dtype) - expected)
    if DTYPES[dtype].itemsize == 2:
        # Half types are rounded once at the end, which is not the sum's doing.
        error = error - float(ml_dtypes.finfo(got.dtype).eps) / 2 * np.abs(expected)
    lost = np.maximum(error, 0) / np.maximum(epsilon * magnitude, np.finfo(np.float64).tiny)
    return float(lost.max(initial=0.0))


def terms(problem: ConvProblem, op: str, kind: str) -> int:
    """How many products one sum has at the most, which is the bound; a complex one counts fourfold."""
    folded = 1 if problem.padding_mode == "zeros" else 4**problem.rank
    pixels = problem.n * int(np.prod(problem.output))
    terms = pixels if op == "bgrad" else problem.gemm(op)[2] * (folded if op == "dgrad" else 1)
    return (terms + 2) * (4 if kind == "c" else 1)


def _conjugated(op: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if op == "dgrad":
        return first * second.conj()
    return first.conj() * second if op == "wgrad" else first * second


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.abs(values.astype(np.clongdouble)) ** 2))) if values.size else 0.0


def _steps(array: np.ndarray, layout: str) -> tuple[int, ...]:
    """How far apart neighbours lie in the flat array, along (N, C, *spatial)."""
    steps = [step // array.itemsize for step in array.strides]
    return tuple(steps) if layout == "channels_first" else (steps[0], steps[-1], *steps[1:-1])


def _places(shape: tuple[int, ...], count: int, rng: np.random.Generator) -> np.ndarray:
    """Different indices into an array of that shape, a row each: corners, faces, anywhere."""
    size = math.prod(shape)
    if size <= count:
        return np.stack(np.unravel_index(np.arange(size), shape), axis=1)
    corners = np.array(list(itertools.product(*(sorted({0, extent - 1}) for extent in shape))))
    anywhere = rng.integers(0, shape, (count, len(shape)))
    faces = anywhere[: count // 2]  # a view: half of them are moved to the first or last place of an axis
    axes = rng.integers(0, len(shape), len(faces))
    faces[np.arange(len(faces)), axes] = rng.integers(0, 2, len(faces)) * (np.array(shape)[axes] - 1)
    if len(corners) > count // 2:
        corners = rng.permutation(corners)[: count // 2]
    return np.unique(np.concatenate([corners, anywhere]), axis=0)


class _Sums:
    """Which elements of two flat operands meet in an element of the result; one subclass per op.

    `length` is the extent of the axis that is summed beside the spatial ones: channels, or images.
    """

    shape: tuple[int, ...]
    length: int

    def __init__(self, problem: ConvProblem, a_steps: tuple[int, ...], b_steps: tuple[int, ...]) -> None:
        self.problem, self.a_steps, self.b_steps = problem, a_steps, b_steps
        self.c, self.k = problem.c // problem.groups, problem.k // problem.groups
        self.cells = [_axis_cells(problem, axis) for axis in range(problem.rank)]
        self.describe(problem)
        self.products = self.length * math.prod(self.per_axis(axis) for axis in range(problem.rank))

    def offsets(self, index: np.ndarray) -> Any:
        """Yield (offsets in a, offsets in b, whether they count), each (elements, length, meetings)."""
        a_start, a_step, b_start, b_step = self.starts(index)
        a, b, valid = a_start[:, None], b_start[:, None], np.ones((len(index), 1), bool)
        for axis in range(self.problem.rank):
            left, right, meet = self.meetings(axis, index[:, 2 + axis])
            a, b, valid = (
                joined.reshape(len(index), -1)
                for joined in (
                    a[:, :, None] + (left * self.a_steps[2 + axis])[:, None, :],
                    b[:, :, None] + (right * self.b_steps[2 + axis])[:, None, :],
                    valid[:, :, None] & meet[:, None, :],
                )
            )
        some = max(1, _CHUNK // max(a.size, 1))
        for start in range(0, self.length, some):
            along = np.arange(start, min(start + some, self.length))[None, :, None]
            yield a[:, None, :] + along * a_step, b[:, None, :] + along * b_step, valid[:, None, :]

    def describe(self, problem: ConvProblem) -> None:
        raise NotImplementedError

    def per_axis(self, axis: int) -> int:
        raise NotImplementedError

    def starts(self, index: np.ndarray) -> tuple[np.ndarray, int, np.ndarray, int]:
        raise NotImplementedError

    def meetings(self, axis: int, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per element the cells of a and of b that meet on one axis, and whether each pair counts."""
        raise NotImplementedError


class _Fprop(_Sums):
    """y[n, k, p] = sum over c, r of x[n, c, cell(p, r)] w[k, c, r]."""

    def describe(self, problem: ConvProblem) -> None:
        self.shape, self.length = (problem.n, problem.k, *problem.output), self.c

    def per_axis(self, axis: int) -> int:
        return self.problem.filter[axis]

    def starts(self, index: np.ndarray) -> tuple[np.ndarray, int, np.ndarray, int]:
        n, k = index[:, 0], index[:, 1]
        x = n * self.a_steps[0] + k // self.k * self.c * self.a_steps[1]
        return x, self.a_steps[1], k * self.b_steps[0], self.b_steps[1]

    def meetings(self, axis: int, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        cells = self.cells[axis][place]
        taps = np.broadcast_to(np.arange(cells.shape[1]), cells.shape)
        return np.maximum(cells, 0), taps, cells >= 0


class _Dgrad(_Sums):
    """dx[n, c, i] = sum over k and all p, r with cell(p, r) = i of dy[n, k, p] conj(w[k, c, r])."""

    def describe(self, problem: ConvProblem) -> None:
        self.shape, self.length = (problem.n, problem.c, *problem.input), self.k
        self.sorted = []
        for cells, extent in zip(self.cells, problem.input, strict=True):
            order = np.argsort(cells, axis=None, kind="stable")
            self.sorted.append((order, np.searchsorted(cells.ravel()[order], np.arange(extent + 1))))

    def per_axis(self, axis: int) -> int:
        return int(np.diff(self.sorted[axis][1]).max(initial=0))

    def starts(self, index: np.ndarray) -> tuple[np.ndarray, int, np.ndarray, int]:
        n, c = index[:, 0], index[:, 1]
        first = c // self.c * self.k
        w = first * self.b_steps[0] + c % self.c * self.b_steps[1]
        return n * self.a_steps[0] + first * self.a_steps[1], self.a_steps[1], w, self.b_steps[0]

    def meetings(self, axis: int, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        order, bounds = self.sorted[axis]
        at = bounds[place][:, None] + np.arange(self.per_axis(axis))
        valid = at < bounds[place + 1][:, None]
        outputs, taps = np.divmod(order[np.where(valid, at, 0)], self.problem.filter[axis])
        return outputs, taps, valid


class _Wgrad(_Sums):
    """dw[k, c, r] = sum over n, p of conj(x[n, c, cell(p, r)]) dy[n, k, p]."""

    def describe(self, problem: ConvProblem) -> None:
        self.shape, self.length = (problem.k, self.c, *problem.filter), problem.n

    def per_axis(self, axis: int) -> int:
        return self.problem.output[axis]

    def starts(self, index: np.ndarray) -> tuple[np.ndarray, int, np.ndarray, int]:
        k, c = index[:, 0], index[:, 1]
        x = (k // self.k * self.c + c) * self.a_steps[1]
        return x, self.a_steps[0], k * self.b_steps[1], self.b_steps[0]

    def meetings(self, axis: int, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        cells = self.cells[axis][:, place].T
        pixels = np.broadcast_to(np.arange(cells.shape[1]), cells.shape)
        return np.maximum(cells, 0), pixels, cells >= 0


_SUMS: dict[str, type[_Sums]] = {"fprop": _Fprop, "dgrad": _Dgrad, "wgrad": _Wgrad}


def _axis_cells(problem: ConvProblem, axis: int) -> np.ndarray:
    """The input cell that output p sees through tap r, as (P, R); -1 where it sees a zero of the padding."""
    extent, outputs = problem.input[axis], np.arange(problem.output[axis])[:, None]
    taps = np.arange(problem.filter[axis])
    seen = outputs * problem.stride[axis] + taps * problem.dilation[axis] - problem.padding[axis][0]
    if problem.padding_mode == "zeros":
        return np.where((seen >= 0) & (seen < extent), seen, -1)
    return _SHOWN[problem.padding_mode](seen, extent)


def _repeated(seen: np.ndarray, period: np.ndarray) -> np.ndarray:
    return period[seen % len(period)]


_SHOWN: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "circular": lambda seen, extent: seen % extent,
    "reflect": lambda seen, extent: _repeated(seen, np.r_[:extent, extent - 2 : 0 : -1]),
    "replicate": lambda seen, extent: seen.clip(0, extent - 1),
    "symmetric": lambda seen, extent: _repeated(seen, np.r_[:extent, extent - 1 : -1 : -1]),
}
"""The input cell that is shown at a place in or out of the input, by padding mode, all but zeros."""
