"""Convolution as matrix products, which NumPy hands to BLAS.

With X the lowered input (a row per output cell, holding the cell's window), W the filters as a matrix
and Y the output, per group:

    fprop  Y = X W^T        wgrad  dW = dY^T X        dgrad  dX = Y' W', residue by residue

where Y' lowers dy and W' has the taps that meet the residue. A block is lowered and multiplied while it is in
cache, and threads share the blocks. The product goes straight to the result where that has a matrix's
layout: so a 1x1 filter needs neither a copy of its input nor one of its output.
"""

from __future__ import annotations

import math

import numpy as np

from .blockwise import Family, Places, store_by_place
from .cost import Cost, Cut, longest
from .lowering import by_channel, filter_matrices, lower, lowered_elements
from .products import for_blas, long_product, long_product_elements, matmul
from .result import Result
from .windows import Axes, Sizes, Windows


class Gemm(Family):
    """Windows as rows, channels inside."""

    name = "gemm"

    def arrange(self, filters: np.ndarray, axes: Axes, dtype: np.dtype, threads: int) -> np.ndarray:
        return filter_matrices(filters, dtype, threads)

    def make_and_store(self, seen: Windows, filters: np.ndarray, result: Result, places: Places) -> None:
        groups, made, _ = filters.shape
        rows, cells_inside = lower(seen, groups)
        images, _, count, _ = rows.shape
        target = result.matrices(places[0], images, groups, cells_inside) if len(places) == 1 else None
        if target is not None:
            matmul(rows, filters.swapaxes(1, 2), target)
            result.finish(places[0])
            return
        if cells_inside:
            product = seen.scratch("product", (images, groups, made, count), seen.dtype).swapaxes(2, 3)
        else:
            product = seen.scratch("product", (images, groups, count, made), seen.dtype)
        matmul(rows, filters.swapaxes(1, 2), product)
        # Images are the first axis or the third; the other of the two is 1.
        y = product.reshape(images, groups, len(seen.a) // max(images, 1), *seen.counts, made)
        y = y.transpose(0, 2, 1, 6, 3, 4, 5)
        store_by_place(y.reshape(len(seen.a), *y.shape[2:]), places, result)

    def elements(self, sizes: Sizes) -> int:
        return lowered_elements(sizes) + sizes.groups * sizes.made * sizes.pixels

    def count(self, cost: Cost, cut: Cut) -> None:
        """Filters arranged, channels brought inside, lowering, products, storing."""
        groups, count = cost.problem.groups, cut.blocks * cut.groups
        terms, by_image = cut.taps * cost.read_channels // groups, cut.taps == 1 and cost.channels_first
        cost.add("call", 8 + 2 * cut.places)  # for the filters
        cost.megabytes("copied", 2 * cut.weights)
        self._count_lowering(cost, cut, cost.read_channels // groups)
        if by_image:
            count *= cut.images
            cost.product(count, cut.made, terms, cut.pixels * groups / count, False)
        else:
            cost.product(count, cut.pixels * groups / count, terms, cut.made, cost.op == "dgrad")
        in_place = by_image or (cut.taps == 1 and groups == 1)
        if not in_place or cost.converted or (cost.op == "dgrad" and max(cost.problem.stride) > 1):
            cost.store_blocks(cut, not by_image, by_group=not by_image)

    def _count_lowering(self, cost: Cost, cut: Cut, c: int) -> None:
        """Of so many channels of each group; of one tap only where windows reach into the padding."""
        depth, height, width = cut.axes
        elements, share = cut.pixels * cost.read_channels, 1.0
        if cut.taps == 1:
            share = cut.padded(cost.extents)
            if max(axis.stride for axis in cut.axes) > 1:
                cost.copy((1 - share) * elements, cut.row, width.stride == 1)
        together = width.step == 1 and cut.groups == 1
        inner = (c * width.taps,) if together else (c, width.taps)
        run = longest(*inner, height.taps, depth.taps, cut.width)
        cost.gather(cut, share, inside=True)
        cost.copy(share * elements * cut.taps, run, c > 1 or (together and width.taps > 1))

    def sums(self, axes: Axes, groups: int, k: int, c: int) -> tuple[int, ...]:
        return (groups, k, math.prod(axis.taps for axis in axes) * c)

    def sum_up(self, seen: Windows, dy: np.ndarray, sums: np.ndarray) -> None:
        rows, _ = lower(seen, len(sums))
        long_product(by_channel(dy, len(sums), seen.dtype), _merged(rows), sums, seen.scratch)

    def gradient(self, axes: Axes, c: int, sums: np.ndarray) -> np.ndarray:
        return np.moveaxis(sums.reshape(*sums.shape[:2], *(axis.taps for axis in axes), c), -1, 2)

    def sum_elements(self, sizes: Sizes) -> int:
        return lowered_elements(sizes) + long_product_elements(sizes)

    def count_sums(self, cost: Cost, cut: Cut) -> None:
        """Lowering, products, and their sums."""
        groups, count = cost.problem.groups, cut.blocks * cut.groups
        k, c = cost.problem.k // groups, cost.problem.c // (groups * cut.again)
        cost.product(count, k, cut.pixels * groups * cut.again / count, c * cut.taps)
        cost.megabytes("copied", count * k * c * cut.taps)
        cost.copy(cut.weights, c * cut.taps, cut.taps == 1)
        if cut.taps == 1 and cut.images > 1:
            cost.copy(cut.pixels * cost.problem.c, cut.row)
        self._count_lowering(cost, cut, c)


def _merged(rows: np.ndarray) -> np.ndarray:
    """The rows of all images in one matrix per group."""
    images, g, cells, columns = rows.shape
    if images == 1:
        return for_blas(rows[0])
    return rows.transpose(1, 3, 0, 2).reshape(g, columns, images * cells).swapaxes(1, 2)


FAMILY = Gemm()
ENTRIES = FAMILY.entries("fprop", "wgrad", "dgrad")
