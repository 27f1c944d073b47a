"""fprop and dgrad lowered along W only: memory-efficient convolution (MEC).

One output row of all images of a block is a matrix product,

    fprop  Y[k, (n, q)] = sum over (r, s, c) of  W[k, (r, s, c)] X[(r, s, c), (n, q)]

whose X is the cells of the rows r of the input that the taps s along W see for the outputs q. Each row of
the input is lowered once, S times its size. As rows lie next to each other in memory, those of one output
row are its matrix: the taps along H cost no copies, where `gemm` makes R of them, and what is copied are
runs of whole rows. Along D, and along H if it is dilated, the taps' products are added up. dgrad is as
fprop, phase by phase as in `gemm`.

Source: Minsik Cho and Daniel Brand, MEC: Memory-efficient Convolution for Deep Neural Network, 2017.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from ..problem import Request
from ..processor import Processor
from .blocking import fit, while_long
from .blockwise import Bytes, Family
from .cost import Cost, Cut, longest
from .lowering import Rows, columns_inside, filter_matrices, rows_elements
from .products import matmul
from .windows import Axes, Sizes, Windows, phases_of, too_many_residues, within

COLUMNS = 256
"""Output cells of a product, of several images or planes, up to which more of them make it faster."""


class Mec(Family):
    """A product for each output row of a block."""

    name, share = "mec", 0.25

    def applies(self, request: Request, processor: Processor) -> str | None:
        if reason := too_many_residues(request):
            return reason
        phases = phases_of(request.op, request.problem.volumetric)
        windows = [math.prod(axis.taps for axis in phase.axes) for phase in phases]
        return None if max(windows, default=0) > 1 else "windows have one cell: nothing is to be lowered"

    def arrange(self, filters: np.ndarray, axes: Axes, dtype: np.dtype, threads: int) -> np.ndarray:
        return filter_matrices(filters, dtype, threads)

    def make(self, seen: Windows, filters: np.ndarray) -> np.ndarray:
        groups, made, terms = filters.shape
        if not terms:
            nothing = seen.scratch("product", (len(seen.a), groups, made, *seen.counts), seen.dtype)
            nothing[...] = 0
            return nothing
        rows, count = Rows(seen, groups), seen.counts[1]
        down, parts = rows.axes[1].stride, list(itertools.product(*map(range, _parts(rows.axes))))
        total = seen.scratch("product", (groups, *rows.outside, count, made, rows.columns), seen.dtype)
        more = seen.scratch("more", total.shape, total.dtype) if len(parts) > 1 else total
        size = terms // len(parts)
        for index, (t, r) in enumerate(parts):
            part = filters[:, None, None, None, :, index * size : (index + 1) * size]
            matmul(part, rows.seen(t, r, count, down, size), more if index else total)
            if index:
                np.add(total, more, out=total)
        return rows.cells(total, 1)

    def elements(self, sizes: Sizes) -> int:
        products = min(2, max(1, math.prod(_parts(within(sizes.axes, sizes.counts)))))
        return rows_elements(sizes) + products * sizes.groups * sizes.made * sizes.pixels

    def tile(self, request: Request, extents: Sequence[int], cost: Bytes, threads: int) -> tuple[int, ...]:
        """As few images and planes as make long products, then fewer rows; then fewer of all."""
        long = while_long(cost, (2, 3, 5), COLUMNS)
        tile = fit(extents, long, threads, order=(2, 3), share=self.share, parts=1)
        return fit(tile, cost, threads, order=(4, 3, 2, 5, 0), share=self.share)

    def count(self, cost: Cost, cut: Cut) -> None:
        """Filters arranged, gathering, lowering along W, products and their sums, storing."""
        depth, _, width = cut.axes
        parts = max(math.prod(_parts(within(cut.axes, cut.counts))), 1)
        groups = cost.problem.groups
        c = cost.read_channels // groups
        cost.add("call", 8 + 2 * cut.places + 2 * parts * cut.blocks)
        cost.megabytes("copied", 2 * cut.weights)
        cost.gather(cut)
        run = longest(cut.width, depth.read(cut.counts[0]), cut.images, c)
        lowered = cut.reading * cut.reads[0] * cut.reads[1] * width.taps * cut.width
        cost.copy(lowered, run, width.within(cut.width).stride == 1)
        long = cut.width * math.prod(columns_inside(cut.images, depth.within(cut.counts[0])))
        cost.product(parts * groups * cut.pixels / long, cut.made, cut.taps * c / parts, long)
        cost.megabytes("copied", (parts - 1) * groups * cut.pixels * cut.made)
        cost.store_blocks(cut, by_group=True)


def _parts(axes: Axes) -> tuple[int, int]:
    """How many taps along D and H begin a product each; where those along H are neighbours, one has all."""
    depth, height, _ = axes
    return depth.taps, 1 if height.step == 1 else height.taps


FAMILY = Mec()
ENTRIES = FAMILY.entries("fprop", "dgrad")
