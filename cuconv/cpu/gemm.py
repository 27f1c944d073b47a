"""Lowering to matrix products through BLAS (im2col), block by block, for every valid problem.

With columns X[(c t r s), (n z p q)] = x[n, c, z s + t d, ...] of one group, a convolution and its two
gradients are products of matrices:

    fprop  Y = W X        dgrad  columns of dX = W^T dY, each added where it was taken from
    wgrad  dW = dY X^T

NumPy hands float and complex products to BLAS and does the integer ones itself, modulo 2^32 or 2^64.
Blocks are done in a fixed order, so the same call gives the same bits for a given number of BLAS threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..cuda.device import Device
from ..problem import ConvProblem, Request
from ..table import Algorithm, Schedule
from .blocking import ALL, Launch, blocks, filter_cells, fit, lengths, tap_cells
from .padding import fold, fold_elements, slab, slab_elements
from .result import Result, accumulator, finishing_blocks


def columns(x: np.ndarray, problem: ConvProblem, pixels: Sequence[slice], dtype: np.dtype) -> np.ndarray:
    """The lowered x of one block of output pixels: (groups, C/groups T R S, N Z P Q)."""
    shape = lengths(pixels)
    windows = sliding_window_view(slab(x, problem, pixels, dtype), problem.reach, axis=(2, 3, 4))
    steps = (*problem.stride, *problem.dilation)
    windows = windows[(ALL, ALL, *(slice(None, None, step) for step in steps))]
    taps_first = windows.transpose(1, 5, 6, 7, 0, 2, 3, 4)
    return taps_first.reshape(
        problem.groups,
        problem.c // problem.groups * math.prod(problem.filter),
        x.shape[0] * math.prod(shape),
    )


def rows(dy: np.ndarray, groups: int, dtype: np.dtype) -> np.ndarray:
    """A block of dy as one matrix per group: (groups, K/groups, N Z P Q)."""
    channels_first = np.ascontiguousarray(dy.swapaxes(0, 1), dtype)
    return channels_first.reshape(groups, dy.shape[1] // groups, dy.shape[0] * math.prod(dy.shape[2:]))


# Each op does one block per call of an inner function, so that a block's memory is free before the next.


def fprop(request: Request, tile: Sequence[int], x: np.ndarray, w: np.ndarray, result: Result) -> None:
    """Y = W X, a block of images and output pixels at a time."""
    problem, dtype = request.problem.volumetric, accumulator(request)
    matrix = w.reshape(_filter_shape(problem)).astype(dtype, copy=False)

    def block(n: slice, *pixels: slice) -> None:
        product = matrix @ columns(x[n], problem, pixels, dtype)
        y = product.reshape(problem.k, *lengths((n, *pixels))).swapaxes(0, 1)
        result.store((n, ALL, *pixels), y)

    for part in blocks((problem.n, *problem.output), tile):
        block(*part)


def wgrad(request: Request, tile: Sequence[int], x: np.ndarray, dy: np.ndarray, result: Result) -> None:
    """dW = dY X^T, summed over blocks of images and output pixels in order."""
    problem, dtype = request.problem.volumetric, accumulator(request)
    total = np.zeros(_filter_shape(problem), dtype)

    def block(n: slice, *pixels: slice) -> None:
        lowered = columns(x[n], problem, pixels, dtype)
        if request.conjugate:
            lowered = lowered.conj()
        total[...] += rows(dy[(n, ALL, *pixels)], problem.groups, dtype) @ lowered.swapaxes(1, 2)

    for part in blocks((problem.n, *problem.output), tile):
        block(*part)
    result.store((ALL,) * 5, total.reshape(problem.w_shape()))


def dgrad(request: Request, tile: Sequence[int], dy: np.ndarray, w: np.ndarray, result: Result) -> None:
    """Columns of dX = W^T dY for a block of images and input channels, added into the padded input."""
    problem, dtype = request.problem.volumetric, accumulator(request)
    c, k = problem.c // problem.groups, problem.k // problem.groups
    matrix = w.reshape(problem.groups, k, c, math.prod(problem.filter)).astype(dtype, copy=False)
    if request.conjugate:
        matrix = matrix.conj()

    def add_columns(padded: np.ndarray, part: np.ndarray, grad: np.ndarray, pixels: Sequence[slice]) -> None:
        """Add the columns of a block of pixels to the cells that they were lowered from."""
        product = part.reshape(*part.shape[:2], part.shape[2] * part.shape[3]).swapaxes(1, 2) @ grad
        extents = lengths(pixels)
        lowered = product.reshape(padded.shape[1], *problem.filter, padded.shape[0], *extents)
        if math.prod(problem.filter) <= math.prod(extents):
            for tap in itertools.product(*map(range, problem.filter)):
                padded[(ALL, ALL, *tap_cells(problem, tap, pixels))] += lowered[(ALL, *tap)].swapaxes(0, 1)
        else:
            # Few pixels under a large filter: a pixel's whole window at a time is fewer additions.
            windows = lowered.transpose(4, 0, 1, 2, 3, 5, 6, 7)
            for pixel in itertools.product(*map(range, extents)):
                padded[(ALL, ALL, *filter_cells(problem, pixel, pixels))] += windows[(..., *pixel)]

    def block(n: slice, group: slice, channel: slice) -> None:
        count_n, count_g, count_c = lengths((n, group, channel))
        padded = np.zeros((count_n, count_g * count_c, *problem.padded), dtype)
        outputs = slice(group.start * k, group.stop * k)
        for pixels in blocks(problem.output, tile[3:]):
            grad = rows(dy[(n, outputs, *pixels)], count_g, dtype)
            add_columns(padded, matrix[group, :, channel], grad, pixels)
            del grad
        inputs = slice(group.start * c + channel.start, (group.stop - 1) * c + channel.stop)
        result.store((n, inputs, ALL, ALL, ALL), fold(padded, problem))

    for part in blocks((problem.n, problem.groups, c), tile[:3]):
        block(*part)


def _filter_shape(problem: ConvProblem) -> tuple[int, int, int]:
    groups = problem.groups
    return groups, problem.k // groups, problem.c // groups * math.prod(problem.filter)


# -- the table's entries ----------------------------------------------------------------------------


def _plan_lowered(request: Request) -> Schedule:
    """fprop and wgrad: blocks of output pixels over all channels."""
    problem, item = request.problem.volumetric, accumulator(request).itemsize
    lowered_copies, dy_copies = (2 if request.conjugate else 1), finishing_blocks(request)

    def cost(n: int, *pixels: int) -> int:
        count = n * math.prod(pixels)
        lowered = lowered_copies * count * problem.c * math.prod(problem.filter)
        return (slab_elements(n, problem.c, pixels, problem) + lowered + dy_copies * count * problem.k) * item

    tile = fit((problem.n, *problem.output), cost)
    kernel = fprop if request.op == "fprop" else wgrad
    # The filters as a matrix, or their gradient and one block's part of it.
    filters = 2 * math.prod(problem.w_shape()) * item
    return Schedule(cost(*tile) + filters, (Launch(kernel, "n z p q", tile),))


def _plan_dgrad(request: Request) -> Schedule:
    """Half of the workspace for the padded input, half for the columns that are added into it."""
    problem, item = request.problem.volumetric, accumulator(request).itemsize
    c, k = problem.c // problem.groups, problem.k // problem.groups
    per_channel = fold_elements(problem) + (finishing_blocks(request) - 1) * math.prod(problem.input)

    def padded(n: int, g: int, c: int, *pixels: int) -> int:
        return n * g * c * per_channel * item

    def lowered(n: int, g: int, c: int, *pixels: int) -> int:
        return n * math.prod(pixels) * g * (c * math.prod(problem.filter) + k) * item

    extents = (problem.n, problem.groups, c, *problem.output)
    tile = fit(extents, padded, order=(0, 1, 2), share=0.5)
    tile = fit(tile, lowered, order=(0, 3, 4, 5, 1, 2), share=0.5)
    # The filters as a matrix, conjugated, and the part of it that a block of channels needs.
    filters = 3 * math.prod(problem.w_shape()) * item
    launch = Launch(dgrad, "n g c z p q", tile)
    return Schedule(padded(*tile) + lowered(*tile) + filters, (launch,))


def _estimate(request: Request, device: Device | None) -> float:
    """Time of the products at BLAS's rate, of the lowering at a copy's, and of the calls themselves."""
    problem, item = request.problem, accumulator(request).itemsize
    rate = {"f": 2e11 / item, "c": 4e11 / item, "i": 1e9}[accumulator(request).kind]
    lowered = problem.n * math.prod(problem.output) * problem.c * math.prod(problem.filter) * item
    calls = 2e-6 * problem.groups * max(1, problem.n * math.prod(problem.output) // 4096)
    return problem.flops(request.op, request.dtype) / rate + lowered / 3e9 + calls


def _applies(request: Request, device: Device | None) -> None:
    return None


ENTRIES = {
    "fprop": Algorithm("gemm", _applies, _plan_lowered, _estimate),
    "wgrad": Algorithm("gemm", _applies, _plan_lowered, _estimate),
    "dgrad": Algorithm("gemm", _applies, _plan_dgrad, _estimate),
}
