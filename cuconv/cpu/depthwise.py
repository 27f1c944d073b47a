"""Depthwise convolution without a matrix product: one pass over the block per filter tap.

With groups == C every output channel reads one input channel; k = c m + j for the multiplier m = K / C:

    fprop  y[n, c m + j] = sum over taps of  x[n, c, shifted by the tap]  w[c m + j, tap]

and dgrad adds dy w back to the shifted cells, wgrad sums dy times the shifted x. A matrix product would
be as thin as one row here, and lowering would copy the input once per tap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..cuda.device import Device
from ..problem import ConvProblem, Request
from ..table import Algorithm, Schedule
from .blocking import ALL, Launch, blocks, fit, lengths, tap_cells
from .padding import fold, fold_elements, slab, slab_elements
from .result import Result, accumulator, finishing_blocks


def fprop(request: Request, tile: Sequence[int], x: np.ndarray, w: np.ndarray, result: Result) -> None:
    """Each tap's weight times the input shifted by the tap, added up in the taps' order."""
    problem, dtype = request.problem.volumetric, accumulator(request)
    weights = _per_channel(w, problem).astype(dtype, copy=False)
    multiplier = weights.shape[1]

    def block(n: slice, channel: slice, *pixels: slice) -> None:
        cells = slab(x[n, channel], problem, pixels, dtype)
        count_n, count_c, *extents = lengths((n, channel, *pixels))
        total = np.zeros((count_n, count_c, multiplier, *extents), dtype)
        for tap, shifted in _shifts(cells, problem, extents):
            total += np.einsum("nczpq,cm->ncmzpq", shifted, weights[(channel, ALL, *tap)])
        y = total.reshape(count_n, count_c * multiplier, *extents)
        result.store((n, _outputs(channel, multiplier), *pixels), y)

    for part in blocks((problem.n, problem.c, *problem.output), tile):
        block(*part)


def dgrad(request: Request, tile: Sequence[int], dy: np.ndarray, w: np.ndarray, result: Result) -> None:
    """Each tap's weight times dy, added to the padded input where the tap had read."""
    problem, dtype = request.problem.volumetric, accumulator(request)
    weights = _per_channel(w, problem).astype(dtype, copy=False)
    weights = weights.conj() if request.conjugate else weights
    multiplier = weights.shape[1]

    def block(n: slice, channel: slice) -> None:
        grad = _split(dy[n, _outputs(channel, multiplier)], channel, multiplier).astype(dtype, copy=False)
        padded = np.zeros((*lengths((n, channel)), *problem.padded), dtype)
        for tap, shifted in _shifts(padded, problem, problem.output):
            shifted += np.einsum("ncmzpq,cm->nczpq", grad, weights[(channel, ALL, *tap)])
        result.store((n, channel, ALL, ALL, ALL), fold(padded, problem))

    for part in blocks((problem.n, problem.c), tile):
        block(*part)


def wgrad(request: Request, tile: Sequence[int], x: np.ndarray, dy: np.ndarray, result: Result) -> None:
    """Per tap, the sum over images and pixels of dy times the input shifted by the tap."""
    problem, dtype = request.problem.volumetric, accumulator(request)
    multiplier = problem.k // problem.c
    total = np.zeros((problem.c, multiplier, *problem.filter), dtype)

    def block(n: slice, channel: slice, *pixels: slice) -> None:
        cells = slab(x[n, channel], problem, pixels, dtype)
        cells = cells.conj() if request.conjugate else cells
        dy_block = dy[(n, _outputs(channel, multiplier), *pixels)]
        grad = _split(dy_block, channel, multiplier).astype(dtype, copy=False)
        for tap, shifted in _shifts(cells, problem, lengths(pixels)):
            total[(channel, ALL, *tap)] += np.einsum("ncmzpq,nczpq->cm", grad, shifted)

    for part in blocks((problem.n, problem.c, *problem.output), tile):
        block(*part)
    result.store((ALL,) * 5, total.reshape(problem.w_shape()))


def _shifts(
    cells: np.ndarray, problem: ConvProblem, extents: Sequence[int]
) -> Iterator[tuple[Any, np.ndarray]]:
    """Each filter tap, as an index, and the view of the padded cells it meets for a block at the corner."""
    pixels = [slice(0, extent) for extent in extents]
    for tap in itertools.product(*map(range, problem.filter)):
        yield tap, cells[(ALL, ALL, *tap_cells(problem, tap, pixels))]


def _per_channel(w: np.ndarray, problem: ConvProblem) -> np.ndarray:
    """The filters as (C, m, T, R, S)."""
    return w.reshape(problem.c, problem.k // problem.c, *problem.filter)


def _outputs(channel: slice, multiplier: int) -> slice:
    """The output channels that come from a range of input channels."""
    return slice(channel.start * multiplier, channel.stop * multiplier)


def _split(dy: np.ndarray, channel: slice, multiplier: int) -> np.ndarray:
    """dy with its channel axis taken apart: (N, C, m, Z, P, Q)."""
    return dy.reshape(dy.shape[0], channel.stop - channel.start, multiplier, *dy.shape[2:])


# -- the table's entries ----------------------------------------------------------------------------


def _applies(request: Request, device: Device | None) -> str | None:
    problem = request.problem
    if problem.c == problem.groups:
        return None
    return f"it needs groups == C, and groups is {problem.groups}, C {problem.c}"


def _plan_slab(request: Request) -> Schedule:
    problem, item = request.problem.volumetric, accumulator(request).itemsize
    multiplier = problem.k // problem.c
    slabs = 2 if request.conjugate else 1
    dy_copies = 1 + finishing_blocks(request)

    def cost(n: int, c: int, *pixels: int) -> int:
        outputs = n * c * multiplier * math.prod(pixels)
        return (slabs * slab_elements(n, c, pixels, problem) + dy_copies * outputs) * item

    tile = fit((problem.n, problem.c, *problem.output), cost)
    kernel = fprop if request.op == "fprop" else wgrad
    filters = math.prod(problem.w_shape()) * item
    return Schedule(cost(*tile) + filters, (Launch(kernel, "n c z p q", tile),))


def _plan_dgrad(request: Request) -> Schedule:
    problem, item = request.problem.volumetric, accumulator(request).itemsize
    multiplier = problem.k // problem.c
    per_channel = fold_elements(problem) + (finishing_blocks(request) - 1) * math.prod(problem.input)
    per_channel += (1 + multiplier) * math.prod(problem.output)

    def cost(n: int, c: int) -> int:
        return n * c * per_channel * item

    tile = fit((problem.n, problem.c), cost)
    filters = 2 * math.prod(problem.w_shape()) * item
    return Schedule(cost(*tile) + filters, (Launch(dgrad, "n c", tile),))


def _estimate(request: Request, device: Device | None) -> float:
    """Per tap, a multiply-add over the block in cache, and the cost of the two calls that do it."""
    problem, item = request.problem, accumulator(request).itemsize
    taps = math.prod(problem.filter)
    elements = problem.n * problem.k * math.prod(problem.output)
    return taps * (elements * item / 6e9 + 1e-5)


ENTRIES = {
    "fprop": Algorithm("depthwise", _applies, _plan_slab, _estimate),
    "wgrad": Algorithm("depthwise", _applies, _plan_slab, _estimate),
    "dgrad": Algorithm("depthwise", _applies, _plan_dgrad, _estimate),
}
