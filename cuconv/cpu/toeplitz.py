"""Depthwise convolution as products with banded Toeplitz matrices, which BLAS does faster than sums per tap.

Along H, a tile of h output cells is a matrix times the cells it sees: for the taps w[r, s] of one channel

    B[p, (i, s)] = w[r, s]  where  i = p stride + r dilation,  otherwise 0
    fprop  Y[p, q] = sum over i and s of  B[p, (i, s)] X[(i, s), q]
    wgrad  dw[r, s] = sum over p of  (dY X^T)[p, (p stride + r dilation, s)]

with X[(i, s), q] the cell of row i that the tap s along W sees for the output cell q; q runs along W of
all images of a block. So the images are lowered along W only, one row of memory for each of their rows and
taps s, and what a tile sees is a piece of that memory. Most products are with zeros, and still BLAS is done
before `depthwise` has passed over the block twice for each tap. dgrad is as fprop, residue by residue of the
stride.

A zero of B times an infinity would spoil its neighbours in the tile, so a block of images that are not finite
is left to `depthwise`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..dtypes import DTYPES
from ..problem import Request
from ..processor import Processor
from . import depthwise
from .blocking import Launch, Scratch, blocks
from .cost import Cost, Cut, longest
from .depthwise import Depthwise
from .lowering import Rows, columns_inside, rows_elements
from .products import SMALL
from .windows import Axes, Axis, Sizes, Windows, phases_of, within

TILE = 4
"""Output rows of a tile. More are more zeros to multiply; OpenBLAS multiplies four rows at a time."""

UNCOPIED = SMALL, 1_200
"""Multiplications of one product, in wgrad also its elements, up to which OpenBLAS copies no operand."""


class Tiles(Rows):
    """A block of images, lowered along W, in overlapping tiles along H."""

    def __init__(self, seen: Windows) -> None:
        depth, height, width = seen.cells
        self.rows = height.stop - height.start
        self.tile, self.seen_rows = tiling(seen.axes[1])
        self.count = -(-self.rows // self.tile)
        # The last tile may be of no output.
        whole = slice(height.start, height.start + self.count * self.tile)
        super().__init__(replace(seen, cells=(depth, whole, width)), seen.a.shape[1])
        self.shape = (*self.outside, self.count, self.tile, self.columns)

    def seen_by(self, t: int) -> np.ndarray:
        """What the taps t along D see: (C, 1, *outside, tiles, rows of a tile times taps, columns)."""
        _, height, width = self.axes
        return self.seen(t, 0, self.count, self.tile * height.stride, self.seen_rows * width.taps)[:, None]

    def outputs(self, tiles: np.ndarray) -> np.ndarray:
        """The output cells (N, C, m, D, H, W) of (C, m, *self.shape)."""
        rows = tiles.reshape(*tiles.shape[:4], self.count * self.tile, self.columns)
        return self.cells(rows, 2)[..., : self.rows, :]


class Toeplitz(Depthwise):
    """A product with a band matrix for each tile; where not all is finite, tap by tap."""

    name = "toeplitz"

    share = 0.375  # what is lowered is read at once, from a cache as near as possible

    def applies(self, request: Request, processor: Processor) -> str | None:
        if DTYPES[request.dtype].kind != "f":
            return "it needs real floating-point numbers, for BLAS"
        if request.problem.volumetric.output[1] == 1:
            return "there is one row of cells along H: no matrix"
        if reason := super().applies(request, processor):
            return reason
        heights = [phase.axes[1] for phase in phases_of(request.op, request.problem.volumetric)]
        if any(height.stride > 2 * height.taps or not height.dense(tiling(height)[0]) for height in heights):
            return "taps or output cells along H are so far apart that a matrix would be mostly zeros"
        return None

    def arrange(self, filters: np.ndarray, axes: Axes, dtype: np.dtype, threads: int) -> np.ndarray:
        """The matrices B: (C, made, read, T, tile, seen S)."""
        *outer, _, shifts = filters.shape
        tile, seen = tiling(axes[1])
        bands = np.zeros((*outer, tile, seen, shifts), dtype)
        _diagonals(bands, axes[1])[...] = filters[..., None, :, :]
        return bands.reshape(*outer, tile, seen * shifts)

    def arranged_elements(self, request: Request) -> int:
        problem, elements = request.problem.volumetric, 0
        for phase in phases_of(request.op, problem):
            depth, height, width = phase.axes
            elements += len(phase.cells) * depth.taps * math.prod(tiling(height)) * width.taps
        return problem.k * elements

    def make(self, seen: Windows, filters: np.ndarray) -> np.ndarray:
        y = _products(Tiles(seen), filters, seen.scratch) if filters.size else None
        if y is None:
            seen.scratch.clear()
            return super().make(seen, _weights(filters, seen.axes))
        return y

    def elements(self, sizes: Sizes) -> int:
        lowered, tiles, _ = _tiles_elements(sizes)
        return max(lowered + 2 * sizes.groups * sizes.made * tiles, super().elements(sizes))

    def count(self, cost: Cost, cut: Cut) -> None:
        """Matrices made, gathering, lowering along W, the products, zeros included, and storing."""
        self._count_products(cost, cut)
        cost.add("call", 10 * cut.blocks * cut.axes[0].taps * cost.read_channels // cost.problem.groups)
        cost.store_blocks(cut)

    def sums(self, axes: Axes, groups: int, k: int, c: int) -> tuple[int, ...]:
        """Products of the rows of a tile of dy with what the tile sees: (C, m, T, tile, seen, S)."""
        depth, height, width = axes
        return (groups, k, depth.taps, *tiling(height), width.taps)

    def sum_up(self, seen: Windows, dy: np.ndarray, sums: np.ndarray) -> None:
        tiles = Tiles(seen)
        grad = seen.scratch("grad", (*sums.shape[:2], *tiles.shape), seen.dtype)
        grad[..., -1, :, :] = 0  # the last tile may be longer than what is left for it
        inside = tiles.outputs(grad)
        inside[...] = dy.reshape(inside.shape)
        for t in range(sums.shape[2]):
            dots = _dots(grad, tiles.seen_by(t), seen.scratch).sum(axis=(2, 3, 4))
            sums[:, :, t] = dots.reshape(sums.shape[:2] + sums.shape[3:])

    def gradient(self, axes: Axes, c: int, sums: np.ndarray) -> np.ndarray:
        return _diagonals(sums, axes[1]).sum(axis=-3)[:, :, None]

    def summed(
        self,
        request: Request,
        launch: Launch,
        axes: Axes,
        x: np.ndarray,
        dy: np.ndarray,
        total: np.ndarray,
        scratch: Scratch,
    ) -> np.ndarray:
        found = super().summed(request, launch, axes, x, dy, total, scratch)
        if np.isfinite(found.sum()):
            return found
        scratch.clear()
        return depthwise.FAMILY.summed(request, launch, axes, x, dy, found, scratch)

    def sum_elements(self, sizes: Sizes) -> int:
        lowered, tiles, count = _tiles_elements(sizes)
        _, height, width = sizes.axes
        dots = (count + 1) * math.prod(tiling(height)) * width.taps
        return max(lowered + sizes.groups * sizes.made * (tiles + dots), super().sum_elements(sizes))

    def count_sums(self, cost: Cost, cut: Cut) -> None:
        """The same, with dy read to lie as the tiles do, and the diagonals."""
        depth, height, width = cut.axes
        products = self._count_products(cost, cut)
        cost.add("call", 10 * cut.blocks * (depth.taps - 1))
        cost.megabytes("made", products * math.prod(tiling(height)) * width.taps)

    def _count_products(self, cost: Cost, cut: Cut) -> float:
        """Count matrices, lowering and the products; returns how many products there are."""
        depth, height, width = within(cut.axes, cut.counts)
        tile, seen = tiling(cut.axes[1])
        tiles, planes = -(-cut.counts[1] // tile), depth.read(depth.cells)
        read = cut.reading * planes * height.reach(tiles * tile)
        cost.read(read * cut.reads[2], cut.run, cost.read_channels)
        cost.copy(read * width.taps * cut.width, longest(cut.width, planes, cut.images), width.stride == 1)
        long = cut.width * math.prod(columns_inside(cut.images, depth))
        products = cut.reading * cut.made * depth.taps * depth.cells * tiles * cut.width / long
        operations = products * tile * seen * width.taps * long
        cost.megabytes("banded", operations)
        cost.add("small matrix", max(products, operations / UNCOPIED[0]))
        cost.megabytes("copied", cut.weights // max(height.taps, 1) * tile * seen)
        cost.add("call", 40 * cut.places)  # for the matrices
        return products


def tiling(height: Axis) -> tuple[int, int]:
    """Of how many output rows a tile is, and how many rows it sees."""
    tile = min(TILE, height.cells)
    return tile, height.read(tile)


def _weights(bands: np.ndarray, axes: Axes) -> np.ndarray:
    """The weights that `arrange` was given: a tile's first row meets each tap once."""
    _, height, width = axes
    if not bands.size:
        return np.empty((*bands.shape[:3], *(axis.taps for axis in axes)), bands.dtype)
    by_row = bands[..., 0, :].reshape(*bands.shape[:4], -1, width.taps)
    return by_row[..., :: height.step, :][..., : height.taps, :]


def _diagonals(matrices: np.ndarray, height: Axis) -> np.ndarray:
    """The elements [p, p stride + r step] of matrices (tile, seen, S), which belong to taps: (tile, R, S)."""
    *outer, tile, _, shifts = matrices.shape
    *strides, down, across, item = matrices.strides
    rows = height.within(tile)
    each = (down + rows.stride * across, rows.step * across, item)
    return as_strided(matrices, (*outer, tile, rows.taps, shifts), (*strides, *each))


def _products(tiles: Tiles, bands: np.ndarray, scratch: Scratch) -> np.ndarray | None:
    """The output cells, or None where something was not finite."""
    c, made, read = bands.shape[:3]
    total = scratch("total", (c, made, *tiles.shape), bands.dtype)
    for index, (t, j) in enumerate(itertools.product(range(tiles.axes[0].taps), range(read))):
        product = scratch("product", total.shape, total.dtype) if index else total
        _multiply(bands[:, :, j, t, None, None, None], tiles.seen_by(t)[j::read], product)
        if index:
            np.add(total, product, out=total)
    # An infinity or NaN shows in every row of a tile that sees it, also where it is multiplied by a zero.
    return tiles.outputs(total) if np.isfinite(total[..., 0, :].sum()) else None


def _multiply(bands: np.ndarray, seen: np.ndarray, out: np.ndarray) -> None:
    """The matrices' products, of so many columns at a time that each is small."""
    step = max(1, UNCOPIED[0] // math.prod(bands.shape[-2:]))
    for (columns,) in blocks(seen.shape[-1:], (step,)):
        np.matmul(bands, seen[..., columns], out=out[..., columns])


def _dots(grad: np.ndarray, seen: np.ndarray, scratch: Scratch) -> np.ndarray:
    """dY X^T, of so many columns and rows of X at a time that each product is small."""
    (tile, columns), rows = grad.shape[-2:], seen.shape[-2]
    found = scratch("dots", (*grad.shape[:-1], rows), grad.dtype)
    step = max(1, min(UNCOPIED[1], UNCOPIED[0] // columns) // tile)
    for (part,) in blocks((rows,), (step,)):
        np.matmul(grad, seen[..., part, :].swapaxes(-1, -2), out=found[..., part])
    return found


def _tiles_elements(sizes: Sizes) -> tuple[int, int, int]:
    """Scratch elements that `Tiles` needs at the most, output cells of tiles of one channel, and matrices."""
    depth, height, _ = sizes.axes
    planes, rows, width = sizes.counts
    tile, _ = tiling(height)
    count = -(-rows // max(tile, 1))
    inside = math.prod(columns_inside(sizes.images, depth.within(planes)))
    matrices = sizes.images * planes * count // max(inside, 1)
    lowered = rows_elements(sizes._replace(counts=(planes, count * tile, width)))
    return lowered, sizes.images * planes * count * tile * width, matrices


FAMILY = Toeplitz()
ENTRIES = FAMILY.entries("fprop", "wgrad", "dgrad")
