"""dgrad by columns: every cell of dy times every tap of the filter, added where the tap had read.

    columns = W^T dY,  a row per input channel and tap, and a column per output cell

A cell of dy is multiplied by each tap once, whatever the padding and the stride, where `gemm` multiplies the
zeros around dy too. That pays for filters that shrink the image much, and for few input channels, for which
the windows of `gemm` are long and its products thin.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from ..problem import ConvProblem, Request
from ..processor import Processor, spread
from ..table import Algorithm, Schedule
from .blocking import ALL, Launch, Scratch, block_count, blocks, fit, lengths, workers
from .blockwise import all_of, channels_of
from .cost import Cost, estimate, longest
from .im2col import few_cells, taken_by_one, tile_of_columns
from .lowering import arranged, by_channel
from .padding import fold, fold_elements
from .products import copies_filters, for_blas, matmul
from .result import Result, accumulator, finishing_blocks
from .windows import residue_axes


def dgrad(request: Request, launch: Launch, dy: np.ndarray, w: np.ndarray, result: Result) -> None:
    """The padded input's gradient for a block of images and channels, output cells in order."""
    problem, dtype = request.problem.volumetric, accumulator(request)
    scratch = Scratch()
    c, k = problem.c // problem.groups, problem.k // problem.groups
    taps = list(itertools.product(*map(range, problem.filter)))
    filters = arranged(w, 0, dtype, launch.threads).reshape(problem.groups, k, c * len(taps))
    filters = filters.conj() if request.conjugate else filters
    # Per input channel and tap, whether zeros around dy would give NaN.
    spoiling = ~np.isfinite(filters).all(axis=1).reshape(-1, len(taps))
    finite, folding = not spoiling.any(), problem.padding_mode != "zeros"

    def block(groups: slice, channels: slice, n: slice) -> None:
        images, g, count = lengths((n, groups, channels))
        padded = scratch("padded", (images, g, count, *problem.padded), dtype)
        padded[...] = 0
        rows = slice(channels.start * len(taps), channels.stop * len(taps))
        matrices = for_blas(filters[groups, :, rows].swapaxes(1, 2))
        for cells in blocks(problem.output, launch.tile[3:]):
            grad = by_channel(dy[(n, all_of(groups, k), *cells)], g, dtype)
            columns = scratch("columns", (g, count * len(taps), grad.shape[-1]), dtype)
            matmul(matrices, grad, columns)
            by_tap = columns.reshape(g, count, len(taps), images, *lengths(cells))
            for made, tap in zip(by_tap.transpose(2, 3, 0, 1, 4, 5, 6), taps, strict=True):
                met = zip(tap, cells, problem.stride, problem.dilation, strict=True)
                seen = (slice(p.start * s + t * d, (p.stop - 1) * s + t * d + 1, s) for t, p, s, d in met)
                padded[(ALL, ALL, ALL, *seen)] += made
        inputs = channels_of(groups, channels, c)
        dx = padded.reshape(images, g * count, *problem.padded)
        if folding and not finite:
            _spoil(dx, problem, spoiling[inputs])
        dx = fold(dx, problem)
        if not (folding or finite):
            _spoil(dx, problem, spoiling[inputs])
        result.store((n, inputs, ALL, ALL, ALL), dx)

    spread(block, blocks((problem.groups, c, problem.n), launch.tile[:3]), launch.threads)


def _spoil(dx: np.ndarray, problem: ConvProblem, spoiling: np.ndarray) -> None:
    """Make NaN of the cells where a tap that is not finite meets a zero outside of dy.

    Other algorithms multiply these zeros. dx is the padded input's where that is folded.
    """
    befores = [before for _, before, *_ in residue_axes(problem)]
    taps = itertools.product(*map(range, problem.filter))
    for tap, channels in zip(taps, spoiling.T, strict=True):
        if channels.any():
            outside = np.zeros(dx.shape[2:], bool)
            met = np.ones(dx.shape[2:], bool)
            for axis, (before, t) in enumerate(zip(befores, tap, strict=True)):
                reach = np.arange(dx.shape[2 + axis]) + before - t * problem.dilation[axis]
                cell, rest = np.divmod(reach, problem.stride[axis])
                shape = [-1 if other == axis else 1 for other in range(3)]
                met &= (rest == 0).reshape(shape)
                outside |= ((cell < 0) | (cell >= problem.output[axis])).reshape(shape)
            dx[:, channels] = np.where(met & outside, np.nan, dx[:, channels])


def _applies(request: Request, processor: Processor) -> None:
    return None


def _plan(request: Request, processor: Processor) -> Schedule:
    """A quarter of a thread's memory for the columns, so that they are added up while in cache."""
    problem, item = request.problem.volumetric, accumulator(request).itemsize
    c, k, taps = problem.c // problem.groups, problem.k // problem.groups, math.prod(problem.filter)
    threads = workers(request, processor)
    per_channel = fold_elements(problem) + (finishing_blocks(request) - 1) * math.prod(problem.input)

    def padded(g: int, c: int, n: int, *cells: int) -> int:
        return n * g * c * per_channel * item

    def columns(g: int, c: int, n: int, *cells: int) -> int:
        return n * math.prod(cells) * g * (c * taps + 2 * k) * item

    few = few_cells(problem, threads)
    channels = taken_by_one(problem.groups, c, threads) if few else (problem.groups, c)
    extents = (*channels, problem.n, *problem.output)
    # Part of a group's channels only with one group at a time.
    tile = fit(extents, padded, threads, order=(2, 0, 1), share=0.75, parts=1 if few else threads)
    tile = tile_of_columns(tile, columns, threads, 1, 0.25, 0.25)
    filters = (3 + threads * copies_filters(request)) * math.prod(problem.w_shape()) * item
    used = min(threads, block_count((problem.groups, c, problem.n), tile[:3]))
    launch = Launch(dgrad, "g c n z p q", tile, threads)
    return Schedule(used * (padded(*tile) + columns(*tile)) + filters, (launch,))


def _cost(request: Request, processor: Processor) -> Cost:
    """Reading dy for every block of channels, the products, the additions, and passes over dx."""
    problem, groups = request.problem.volumetric, request.problem.groups
    (launch,) = _plan(request, processor).launches
    g, c, images, *cells = launch.tile
    cost, taps = Cost(request, launch), math.prod(problem.filter)
    again = block_count((problem.c // groups,), (c,))
    places = block_count((problem.n, groups), (images, g)) * again
    cuts = block_count(problem.output, cells)
    pixels, row = problem.n * math.prod(problem.output), longest(*reversed(cells))
    cost.share(places)
    cost.add("call", places * cuts * (3 * taps + 10))
    cost.read(pixels * problem.k * again, row, problem.k)
    each = pixels / (block_count((problem.n,), (images,)) * cuts)
    cost.product(places * cuts * g, c * taps, problem.k // groups, each, cost.channels_first)
    added, whole = pixels * taps * problem.c, cells[2] == problem.padded[2] and problem.stride[1] == 1
    cost.megabytes("added", added)
    cost.add("run", added / (row * cells[1] if whole else row))
    cost.add("strided", added * (problem.stride[2] > 1))
    cost.megabytes("copied", problem.n * problem.c * math.prod(problem.padded))
    cost.store(problem.n * problem.c * math.prod(problem.input), problem.input[2], problem.c, c * g)
    cost.megabytes("copied", math.prod(problem.w_shape()))
    return cost


ENTRIES = {"dgrad": Algorithm("col2im", _applies, _plan, estimate(_cost))}
