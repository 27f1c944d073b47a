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
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..dtypes import DTYPES
from ..problem import Request
from ..processor import Processor, spread
from ..table import Algorithm
from . import depthwise, gemm
from .blocking import ALL, Launch, Scratch, blocks
from .cost import Cost, Cut, estimate, longest
from .lowering import Rows, columns_inside, rows_elements
from .products import SMALL
from .result import Result, accumulator
from .windows import Axes, Axis, windows_and_columns, windows_of, within

TILE = 4
"""Output rows of a tile. More are more zeros to multiply; OpenBLAS multiplies four rows at a time."""

UNCOPIED = SMALL, 1_200
"""Multiplications of one product, in wgrad also its elements, up to which OpenBLAS copies no operand."""

SHARE = 0.375
"""Of the memory a block may have: what is lowered is read at once, from a cache as near as possible."""


def fprop(request: Request, launch: Launch, x: np.ndarray, w: np.ndarray, result: Result) -> None:
    """Y = B X."""
    depthwise.fprop(request, launch, x, w, result, BANDS)


def dgrad(request: Request, launch: Launch, dy: np.ndarray, w: np.ndarray, result: Result) -> None:
    """The same from dy, with the taps that meet a residue of the stride."""
    depthwise.dgrad(request, launch, dy, w, result, BANDS)


class Tiles(Rows):
    """A block of images, lowered along W, in overlapping tiles along H."""

    def __init__(
        self, a: np.ndarray, axes: Axes, cells: Sequence[slice], mode: str, dtype: np.dtype, scratch: Scratch
    ) -> None:
        self.tile, self.seen_rows = tiling(axes[1])
        self.rows = cells[1].stop - cells[1].start
        self.count = -(-self.rows // self.tile)
        first = cells[1].start
        whole = (
            cells[0],
            slice(first, first + self.count * self.tile),
            cells[2],
        )  # the last may be of no output
        super().__init__(a, axes, whole, a.shape[1], mode, dtype, scratch)
        self.shape = (*self.outside, self.count, self.tile, self.columns)

    def seen_by(self, t: int) -> np.ndarray:
        """What the taps t along D see: (C, 1, *outside, tiles, rows of a tile times taps, columns)."""
        _, height, width = self.axes
        return self.seen(t, 0, self.count, self.tile * height.stride, self.seen_rows * width.taps)[:, None]

    def outputs(self, tiles: np.ndarray) -> np.ndarray:
        """The output cells (N, C, m, D, H, W) of (C, m, *self.shape)."""
        rows = tiles.reshape(*tiles.shape[:4], self.count * self.tile, self.columns)
        return self.cells(rows, 2)[..., : self.rows, :]


def tiling(height: Axis) -> tuple[int, int]:
    """Of how many output rows a tile is, and how many rows it sees."""
    tile = min(TILE, height.cells)
    return tile, height.read(tile)


def _bands(weights: np.ndarray, axes: Axes) -> np.ndarray:
    """The matrices B of weights (C, m, T, R, S): (C, m, T, tile, seen S)."""
    c, multiplier, depth, taps, shifts = weights.shape
    tile, seen = tiling(axes[1])
    bands = np.zeros((c, multiplier, depth, tile, seen, shifts), weights.dtype)
    for r in range(taps):
        _diagonal(bands, r, axes[1])[...] = weights[..., None, r, :]
    return bands.reshape(c, multiplier, depth, tile, seen * shifts)


def _weights(bands: np.ndarray, axes: Axes) -> np.ndarray:
    """The weights that `_bands` arranged: a tile's first row meets each tap once."""
    _, height, width = axes
    if not bands.size:
        return np.empty((*bands.shape[:2], *(axis.taps for axis in axes)), bands.dtype)
    by_row = bands[..., 0, :].reshape(*bands.shape[:3], -1, width.taps)
    return by_row[..., :: height.step, :][..., : height.taps, :]


def _diagonal(matrices: np.ndarray, r: int, height: Axis) -> np.ndarray:
    """The elements [p, p stride + r step] of matrices (tile, seen, S), which belong to one tap: (tile, S)."""
    *outer, tile, _, shifts = matrices.shape
    *strides, down, across, item = matrices.strides
    first = matrices[..., r * height.step :, :]
    return as_strided(first, (*outer, tile, shifts), (*strides, down + height.stride * across, item))


def by_bands(
    a: np.ndarray,
    axes: Axes,
    cells: Sequence[slice],
    mode: str,
    bands: np.ndarray,
    scratch: Scratch,
    summed: bool,
) -> np.ndarray:
    """What `depthwise.by_taps` gives, by way of matrices where all is finite."""
    y = None
    if bands.size:
        y = _products(Tiles(a, axes, cells, mode, bands.dtype, scratch), bands, scratch, summed)
    if y is None:
        scratch.clear()
        return depthwise.by_taps(a, axes, cells, mode, _weights(bands, axes), scratch, summed)
    return y


def _products(tiles: Tiles, bands: np.ndarray, scratch: Scratch, summed: bool) -> np.ndarray | None:
    """The output cells, or None where something was not finite."""
    c, multiplier = bands.shape[:2]
    made = 1 if summed else multiplier
    total = scratch("total", (c, made, *tiles.shape), bands.dtype)
    parts = list(itertools.product(range(tiles.axes[0].taps), range(multiplier) if summed else [None]))
    for index, (t, j) in enumerate(parts):
        seen, matrices = tiles.seen_by(t), bands[:, :, t, None, None, None]
        if j is not None:
            seen, matrices = seen[j::multiplier], matrices[:, j : j + 1]
        product = scratch("product", total.shape, total.dtype) if index else total
        _multiply(matrices, seen, product)
        if index:
            np.add(total, product, out=total)
    # What is not finite shows in every row of a tile that sees it, by a product with a zero or without.
    if not np.isfinite(total[..., 0, :].sum()):
        return None
    y = tiles.outputs(total)
    return y.reshape(y.shape[0], c * made, *y.shape[3:])


def _multiply(bands: np.ndarray, seen: np.ndarray, out: np.ndarray) -> None:
    """The matrices' products, of so many columns at a time that each is small."""
    step = max(1, UNCOPIED[0] // math.prod(bands.shape[-2:]))
    for (columns,) in blocks(seen.shape[-1:], (step,)):
        np.matmul(bands, seen[..., columns], out=out[..., columns])


def wgrad(request: Request, launch: Launch, x: np.ndarray, dy: np.ndarray, result: Result) -> None:
    """dw from the diagonals of dY X^T, summed over tiles and blocks of images."""
    problem, dtype = request.problem.volumetric, accumulator(request)
    axes, scratch = windows_of(problem), Scratch()
    multiplier = problem.k // problem.c
    tile, seen = tiling(axes[1])
    products = np.zeros((problem.c, multiplier, problem.filter[0], tile, seen * problem.filter[2]), dtype)

    def part(channels: slice) -> None:
        outputs = depthwise.outputs_of(channels, multiplier)
        for n, *cells in blocks((problem.n, *problem.output), launch.tile[1:]):
            tiles = Tiles(x[n, channels], axes, cells, problem.padding_mode, dtype, scratch)
            grad = scratch("grad", (len(tiles.memory), multiplier, *tiles.shape), dtype)
            grad[..., -1, :, :] = 0  # the last tile may be longer than what is left for it
            inside = tiles.outputs(grad)
            inside[...] = dy[(n, outputs, *cells)].reshape(inside.shape)
            for t in range(problem.filter[0]):
                products[channels, :, t] += _dots(grad, tiles.seen_by(t), scratch).sum(axis=(2, 3, 4))

    spread(part, blocks((problem.c,), launch.tile[:1]), launch.threads)
    grads = np.empty((problem.c, multiplier, *problem.filter), dtype)
    by_row = products.reshape(*products.shape[:-1], seen, problem.filter[2])
    for r in range(problem.filter[1]):
        grads[..., r, :] = _diagonal(by_row, r, axes[1]).sum(axis=-2)
    if not np.isfinite(grads.sum()):
        depthwise.wgrad(request, launch, x, dy, result)
        return
    result.store((ALL,) * 5, grads.reshape(problem.w_shape()))


def _dots(grad: np.ndarray, seen: np.ndarray, scratch: Scratch) -> np.ndarray:
    """dY X^T, of so many columns and rows of X at a time that each product is small."""
    (tile, columns), rows = grad.shape[-2:], seen.shape[-2]
    found = scratch("dots", (*grad.shape[:-1], rows), grad.dtype)
    step = max(1, min(UNCOPIED[1], UNCOPIED[0] // columns) // tile)
    for (part,) in blocks((rows,), (step,)):
        np.matmul(grad, seen[..., part, :].swapaxes(-1, -2), out=found[..., part])
    return found


# -- the table's entries ----------------------------------------------------------------------------


def _applies(request: Request, processor: Processor) -> str | None:
    if DTYPES[request.dtype].kind != "f":
        return "it needs real numbers, for BLAS"
    if request.problem.volumetric.output[1] == 1:
        return "there is one row of cells along H: no matrix"
    if reason := depthwise.applies(request, processor):
        return reason
    heights = [axes[1] for axes, _ in windows_and_columns(request)]
    if any(height.stride > 2 * height.taps or not height.dense(tiling(height)[0]) for height in heights):
        return "taps or output cells along H are so far apart that a matrix would be mostly zeros"
    return None


def _elements(op: str, c: int, n: int, counts: Sequence[int], axes: Axes, mode: str, multiplier: int) -> int:
    _, height, width = axes
    tile, seen = tiling(height)
    count = -(-counts[1] // max(tile, 1))
    lowered = rows_elements(n, (counts[0], count * tile, counts[2]), axes, mode)
    made = counts[0] * count * tile * n * counts[2]
    if op == "wgrad":
        own = lowered + multiplier * (made + (counts[0] * count + 1) * tile * seen * width.taps)
    elif op == "fprop":
        own = lowered + multiplier * 2 * made
    else:
        own = multiplier * lowered + 2 * made
    return max(c * own, depthwise.elements(op, c, n, counts, axes, mode, multiplier))


def _band_elements(request: Request) -> int:
    """Elements of the matrices of all filters, of every residue of the stride."""
    problem, elements = request.problem.volumetric, 0
    for axes, same in depthwise.kinds_of_windows(request):
        depth, height, width = axes
        elements += same * problem.k * depth.taps * math.prod(tiling(height)) * width.taps
    return elements


BANDS = depthwise.Way(_bands, by_bands, _elements, _band_elements, SHARE)

_schedule = partial(depthwise.schedule, way=BANDS)
_plan_wgrad = partial(depthwise.plan_wgrad, kernel=wgrad, way=BANDS)


def _cost(request: Request, processor: Processor) -> Cost:
    """Gathering, lowering along W, the products, zeros included, and storing."""
    problem, op = request.problem.volumetric, request.op
    plan = _plan_wgrad(request, processor) if op == "wgrad" else _schedule(request, processor, None)
    (launch,) = plan.launches
    cost = Cost(request, launch)
    cost.megabytes("copied", _band_elements(request) + gemm.unmet_elements(request))
    for axes, same in depthwise.kinds_of_windows(request):
        cut = Cut(axes, launch.tile[2:])
        blocks = depthwise.count_blocks(request, cost, cut, same, launch.tile)
        images = same * problem.n * gemm.channels_read(request)
        depth, height, width = within(axes, cut.counts)
        tile, seen = tiling(axes[1])
        tiles = -(-cut.counts[1] // tile)
        read = images * depth.read(depth.cells) * height.reach(tiles * tile) * cut.blocks
        cost.read(read * cut.reads[2], cut.run, gemm.channels_read(request))
        run = longest(cut.width, depth.read(depth.cells), min(launch.tile[1], problem.n))
        cost.copy(read * width.taps * cut.width, run, width.stride == 1)
        long = cut.width * math.prod(columns_inside(min(launch.tile[1], problem.n), depth))
        products = (
            same * problem.n * problem.k * depth.cells * tiles * cut.width * cut.blocks / long * depth.taps
        )
        operations = products * tile * seen * width.taps * long
        cost.add("call", 10 * blocks * depth.taps * (problem.k // problem.c if op == "dgrad" else 1))
        cost.add("call", same * (30 + 10 * height.taps))  # for the matrices
        cost.megabytes("banded", operations)
        cost.add("small matrix", max(products, operations / UNCOPIED[0]))
        depthwise.count_result(request, cost, cut, same, launch.tile[0])
        if op == "wgrad":
            cost.megabytes("made", products * tile * seen * width.taps)
    return cost


ENTRIES = {
    "fprop": Algorithm("toeplitz", _applies, partial(_schedule, kernel=fprop), estimate(_cost)),
    "wgrad": Algorithm("toeplitz", _applies, _plan_wgrad, estimate(_cost)),
    "dgrad": Algorithm("toeplitz", _applies, partial(_schedule, kernel=dgrad), estimate(_cost)),
}
