"""fprop and wgrad by columns, filters as they are: for few cells of many channels.

    fprop  Y = W X        wgrad  dW = dY X^T

W is the filter's own memory, a row per output channel. X has a row per input channel and tap, in the order of
those rows, and a column per output cell. `gemm` copies windows in longer runs, but brings the filter into
another order first; where there are fewer cells than output channels, that is the larger part of the work.
`col2im` is the same for dgrad.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..problem import ConvProblem, Request
from ..processor import Processor
from .blocking import fit, while_long
from .blockwise import Bytes, Family
from .cost import Cost, Cut, longest
from .lowering import arranged, by_channel, lower_columns, lowered_elements
from .products import long_product, long_product_elements, matmul
from .windows import Axes, Sizes, Windows, within

FEW = 1024
"""Output cells per thread below which threads share the output channels and not the cells."""


class Im2col(Family):
    """Windows as columns, cells inside."""

    name, in_place, most_cells = "im2col", True, 1 << 30

    def applies(self, request: Request, processor: Processor) -> None:
        return None

    def arrange(self, filters: np.ndarray, axes: Axes, dtype: np.dtype, threads: int) -> np.ndarray:
        return arranged(filters, 1, dtype, threads).reshape(*filters.shape[:2], math.prod(filters.shape[2:]))

    def make(self, seen: Windows, filters: np.ndarray) -> np.ndarray:
        groups, made, _ = filters.shape
        columns = lower_columns(seen, groups)
        product = seen.scratch("product", (groups, made, columns.shape[-1]), seen.dtype)
        matmul(filters, columns, product)
        return product.reshape(groups, made, len(seen.a), *seen.counts).transpose(2, 0, 1, 3, 4, 5)

    def elements(self, sizes: Sizes) -> int:
        return lowered_elements(sizes) + sizes.groups * sizes.made * sizes.pixels

    def tile(self, request: Request, extents: Sequence[int], cost: Bytes, threads: int) -> tuple[int, ...]:
        parts = threads
        if few_cells(request.problem, threads):
            extents, parts = (*taken_by_one(extents[0], extents[1], threads), *extents[2:]), 1
        return tile_of_columns(extents, cost, threads, parts, 0.5, 0.75)

    def count(self, cost: Cost, cut: Cut) -> None:
        """Gathering and lowering for every block of output channels, products, storing."""
        _count_lowering(cost, cut, cut.again)
        count, c = cut.blocks * cut.groups, cost.problem.c // cost.problem.groups
        each = cut.pixels * cost.problem.groups * cut.again / count
        cost.add("call", count)
        cost.product(count, cut.made, cut.taps * c, each)
        cost.store_blocks(cut)

    def sums(self, axes: Axes, groups: int, k: int, c: int) -> tuple[int, ...]:
        return (groups, k, c * math.prod(axis.taps for axis in axes))

    def sum_up(self, seen: Windows, dy: np.ndarray, sums: np.ndarray) -> None:
        columns = lower_columns(seen, len(sums))
        long_product(by_channel(dy, len(sums), seen.dtype), columns.swapaxes(1, 2), sums, seen.scratch)

    def gradient(self, axes: Axes, c: int, sums: np.ndarray) -> np.ndarray:
        return sums.reshape(*sums.shape[:2], c, *(axis.taps for axis in axes))

    def sum_elements(self, sizes: Sizes) -> int:
        return lowered_elements(sizes) + long_product_elements(sizes)

    def count_sums(self, cost: Cost, cut: Cut) -> None:
        """Gathering, lowering, products, in which BLAS transposes, and their sums."""
        _count_lowering(cost, cut, 1)
        count, k = cut.blocks * cut.groups, cost.problem.k // cost.problem.groups
        each = cut.pixels * cost.problem.groups * cut.again / count
        window = cut.taps * cost.problem.c // (cost.problem.groups * cut.again)
        cost.product(count, k, each, window, False)
        cost.megabytes("copied", count * k * window)
        cost.add("transposed", count * each * (k + window))


def few_cells(problem: ConvProblem, threads: int) -> bool:
    """Whether threads share the channels, and each all cells."""
    return problem.n * math.prod(problem.output) < FEW * threads


def taken_by_one(groups: int, channels: int, threads: int) -> tuple[int, int]:
    """The groups and the channels of each that one of the threads takes."""
    if groups >= threads:
        return -(-groups // threads), channels
    return 1, -(-max(channels, 1) // threads)


def tile_of_columns(
    extents: Sequence[int], cost: Bytes, threads: int, parts: int, share: float, most: float
) -> tuple[int, ...]:
    """A tile (g, channels, n, z, p, q) within a share of the memory, or a larger one where channels are cut.

    Fewer cells first, as long as there are enough of them; then fewer groups, and fewer cells of one group;
    fewer channels, of one group, where that leaves too little.
    """
    cells = (2, 3, 4, 5)
    long, of_no_channels = while_long(cost, cells, FEW // 2), lambda g, channels, *rest: cost(g, 0, *rest)
    tile = fit(extents, long, threads, order=cells, share=share, parts=parts)
    tile = fit(tile, of_no_channels, threads, order=(0, *cells), share=share, parts=1)
    return fit(tile, cost, threads, order=(0, 1, *cells), share=most, parts=1)


def _count_lowering(cost: Cost, cut: Cut, times: int) -> None:
    """Count gathering, and copying every window so many times."""
    cost.gather(cut)
    _, height, width = within(cut.axes, cut.counts)
    run = longest(*reversed(cut.counts), cut.images)
    if cut.width == width.read(cut.width) and height.stride == 1:  # whole rows
        run = max(run, cut.width * cut.counts[1])
    cost.copy(cut.pixels * cut.taps * cost.problem.c * times, run, width.stride == 1)


FAMILY = Im2col()
ENTRIES = FAMILY.entries("fprop", "wgrad")
