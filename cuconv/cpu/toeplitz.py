"""Depthwise convolution as products with banded Toeplitz matrices, which BLAS does faster than sums per tap.

Along H, a tile of h output cells is a matrix times the cells it sees: for the taps w[r, s] of one channel

    B_s[p, i] = w[r, s]  where  i = p stride + r dilation,  otherwise 0
    fprop  Y[p, q] = sum over s of  (B_s X)[p, q stride + s dilation]
    wgrad  dw[r, s] = sum over p of  (dY X_s^T)[p, p stride + r dilation]

with X_s the cells shifted by the tap s. All S matrices are one product, whose columns are all cells along W
of all images of a block; then its S parts are shifted and added up. Most products are with zeros, and still
BLAS is done before `depthwise` has passed over the block twice for each tap. dgrad is as fprop, residue by
residue of the stride.

A zero of B times an infinity would spoil its neighbours in the tile, so a block of images that are not finite
is left to `depthwise`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..dtypes import DTYPES
from ..problem import Request
from ..processor import Processor, spread
from ..table import Algorithm
from . import depthwise
from .blocking import ALL, Launch, Scratch, blocks, lengths
from .lowering import Axes, Axis, windows_of
from .result import Result, accumulator
from .runs import Runs


def fprop(request: Request, launch: Launch, x: np.ndarray, w: np.ndarray, result: Result) -> None:
    """Y = sum over s of shifted B_s X."""
    depthwise.fprop(request, launch, x, w, result, by_bands)


def dgrad(request: Request, launch: Launch, dy: np.ndarray, w: np.ndarray, result: Result) -> None:
    """The same from dy, with the taps that meet a residue of the stride."""
    depthwise.dgrad(request, launch, dy, w, result, by_bands)


class Tiles:
    """A block of images, padded, in overlapping tiles along H: (C, D, tiles, cells that a tile sees, N W)."""

    def __init__(
        self, a: np.ndarray, axes: Axes, cells: Sequence[slice], mode: str, dtype: np.dtype, scratch: Scratch
    ) -> None:
        depth, height, width = axes
        self.axes, (self.depth, self.rows, self.columns) = axes, lengths(cells)
        self.count, self.tile = tiling(height, self.rows)
        self.seen = height.read(self.tile)
        # Every row is a cell of its own here, strides included, up to the end of the last tile.
        first = cells[1].start * height.stride
        each = Axis(height.start + first, 1, 1, 1, height.read(self.count * self.tile))
        self.runs = Runs(
            a, (depth, each, width), (cells[0], slice(0, each.cells), cells[2]), mode, dtype, scratch
        )
        self.row = self.runs.row
        self.width = self.row - max((t * width.step // width.stride for t in range(width.taps)), default=0)

    def phase(self, t: int, residue: int) -> np.ndarray:
        """The tiles that the taps t along D see, of one residue of the stride along W."""
        depth, height, _ = self.axes
        shift, phase = divmod(t * depth.step, depth.stride)
        image = self.runs.phases[phase, 0, residue]
        channel, item = image.strides
        plane = self.runs.extents[1] * self.row
        return as_strided(
            image[:, shift * plane :],
            (image.shape[0], self.depth, self.count, self.seen, self.row),
            (channel, plane * item, self.tile * height.stride * self.row * item, self.row * item, item),
            writeable=False,
        )

    def inside(self, tiles: np.ndarray) -> np.ndarray:
        """The output cells (N, C, m, D, H, W) of tiles (C, m, D, tiles, rows of N W)."""
        cells = (self.count * self.tile, self.runs.images, self.runs.extents[2])
        rows = tiles.reshape(*tiles.shape[:3], *cells)[..., : self.rows, :, : self.columns]
        return np.moveaxis(rows, -2, 0)

    def taps(self) -> list[tuple[int, int, list[int]]]:
        """For every tap along D and residue along W: the taps along W that fall on it."""
        depth, _, width = self.axes
        by_residue: dict[int, list[int]] = {}
        for s in range(width.taps):
            by_residue.setdefault(s * width.step % width.stride, []).append(s)
        return [(t, residue, s) for t in range(depth.taps) for residue, s in by_residue.items()]


def tiling(height: Axis, rows: int) -> tuple[int, int]:
    """How many tiles, and of how many output rows, so many rows are taken apart into."""
    longest = max(8, 2 * height.taps)
    count = max(1, -(-rows // longest))
    return count, -(-rows // count)


def by_bands(
    a: np.ndarray,
    axes: Axes,
    cells: Sequence[slice],
    mode: str,
    weights: np.ndarray,
    scratch: Scratch,
    summed: bool,
) -> np.ndarray:
    """What `depthwise.by_taps` gives, by way of matrices."""
    if not weights.size:
        return depthwise.by_taps(a, axes, cells, mode, weights, scratch, summed)
    c, multiplier = weights.shape[:2]
    tiles = Tiles(a, axes, cells, mode, weights.dtype, scratch)
    width, length = axes[2], (tiles.tile - 1) * tiles.row + tiles.width
    made = 1 if summed else multiplier
    whole = scratch("total", (c, made, tiles.depth, tiles.count, tiles.tile * tiles.row), weights.dtype)
    total, begun, finite = whole[..., :length], False, True
    for t, residue, taps in tiles.taps():
        seen = tiles.phase(t, residue)
        seen = seen.reshape(c, multiplier, *seen.shape[1:]) if summed else seen[:, None]
        bands = _bands(weights[:, :, t][..., taps], axes[1], tiles.tile, scratch)
        shape = (c, multiplier, tiles.depth, tiles.count)
        product = scratch("product", (*shape, bands.shape[-2], tiles.row), weights.dtype)
        np.matmul(bands, seen, out=product)
        finite = finite and bool(np.isfinite(product[..., -1, :].sum()))
        by_tap = product[..., :-1, :].reshape(*shape, len(taps), tiles.tile * tiles.row)
        shifts = [s * width.step // width.stride for s in taps]
        shifted = [by_tap[..., index, shift : shift + length] for index, shift in enumerate(shifts)]
        if summed:
            shifted = [part[:, j : j + 1] for part in shifted for j in range(multiplier)]
        if not begun:
            begun, first = True, shifted.pop(0)
            np.add(first, shifted.pop(0) if shifted else 0, out=total)
        for part in shifted:
            np.add(total, part, out=total)
    if not finite:
        return depthwise.by_taps(a, axes, cells, mode, weights, scratch, summed)
    y = tiles.inside(whole)
    return y.reshape(y.shape[0], c * made, *y.shape[3:])


def _bands(weights: np.ndarray, height: Axis, tile: int, scratch: Scratch) -> np.ndarray:
    """The matrices B_s, one above the other, of weights (C, m, R, S), and a row of ones.

    (C, m, 1, 1, S tile + 1, seen); the ones add up what is seen, so that what is not finite shows.
    """
    c, multiplier, taps, shifts = weights.shape
    seen = height.read(tile)
    rows = scratch("bands", (c, multiplier, 1, 1, shifts * tile + 1, seen), weights.dtype)
    rows[...] = 0
    rows[..., -1, :] = 1
    bands = rows[..., 0, 0, :-1, :].reshape(c, multiplier, shifts, tile, seen)
    for r in range(taps):
        _diagonal(bands, r, height)[...] = weights[:, :, r, :, None]
    return rows


def _diagonal(matrices: np.ndarray, r: int, height: Axis) -> np.ndarray:
    """The elements [p, p stride + r step] of matrices, which belong to one tap."""
    *outer, tile, _ = matrices.shape
    *strides, down, across = matrices.strides
    first = matrices[..., r * height.step :]
    return as_strided(first, (*outer, tile), (*strides, down + height.stride * across))


def wgrad(request: Request, launch: Launch, x: np.ndarray, dy: np.ndarray, result: Result) -> None:
    """dw from the diagonals of dY X_s^T, summed over tiles and blocks of images."""
    problem, dtype = request.problem.volumetric, accumulator(request)
    axes, scratch = windows_of(problem), Scratch()
    multiplier = problem.k // problem.c
    depth, height, width = axes
    grads = np.empty((problem.c, multiplier, *problem.filter), dtype)

    def part(channels: slice) -> None:
        outputs = depthwise.outputs_of(channels, multiplier)
        c = channels.stop - channels.start
        sums = np.zeros((c, multiplier, *problem.filter), dtype)
        for n, *cells in blocks((problem.n, *problem.output), launch.tile[1:]):
            tiles = Tiles(x[n, channels], axes, cells, problem.padding_mode, dtype, scratch)
            shape = (c, multiplier, tiles.depth, tiles.count, tiles.tile, tiles.row)
            grad = scratch("grad", shape, dtype)
            grad[...] = 0
            inside = tiles.inside(grad)
            inside[...] = dy[(n, outputs, *cells)].reshape(inside.shape)
            grad = grad[..., : tiles.width]
            found = np.empty((c, multiplier, depth.taps, width.taps, tiles.tile, tiles.seen), dtype)
            for t, residue, taps in tiles.taps():
                seen = tiles.phase(t, residue)[:, None]
                for s in taps:
                    shift = s * width.step // width.stride
                    shifted = seen[..., shift : shift + tiles.width].swapaxes(-1, -2)
                    products = scratch("products", (*grad.shape[:5], tiles.seen), dtype)
                    found[:, :, t, s] = np.matmul(grad, shifted, out=products).sum(axis=(2, 3))
            for r in range(height.taps):
                sums[:, :, :, r] += _diagonal(found, r, height).sum(axis=-1)
        grads[channels] = sums

    spread(part, blocks((problem.c,), launch.tile[:1]), launch.threads)
    if not np.isfinite(grads.sum()):
        depthwise.wgrad(request, launch, x, dy, result)
        return
    result.store((ALL,) * 5, grads.reshape(problem.w_shape()))


# -- the table's entries ----------------------------------------------------------------------------


def _applies(request: Request, processor: Processor) -> str | None:
    if DTYPES[request.dtype].kind != "f":
        return "it needs real numbers, for BLAS"
    if request.problem.volumetric.output[1] == 1:
        return "there is one row of cells along H: no matrix"
    return depthwise.applies(request, processor)


def _elements(c: int, n: int, counts: Sequence[int], axes: Axes, mode: str, multiplier: int) -> int:
    """Scratch elements beside the images and the result: bands, their products, rows beyond the last tile."""
    depth, height, width = axes
    count, tile = tiling(height, counts[1])
    row = n * (counts[2] + max(width.taps - 1, 0) * width.step // width.stride)
    made = counts[0] * count * max(width.taps, 1) * tile * row
    bands = depth.taps * width.taps * tile * max(height.read(tile), 0)
    beyond = 3 * max(depth.read(counts[0]), 0) * height.stride * (tile + 1) * width.stride * row
    return c * multiplier * (made + 2 * bands) + c * beyond


def _estimate(request: Request, processor: Processor) -> float:
    """Passes over the images and one per tap along W; the products, zeros included; the calls."""
    problem, item = request.problem.volumetric, accumulator(request).itemsize
    _, height, width = windows_of(problem)
    _, tile = tiling(height, height.cells)
    elements = problem.n * problem.k * math.prod(problem.output)
    planes = problem.filter[0] * width.taps
    products = planes * (2 * height.read(tile) / 8e11 + 4e-11)
    return elements * item * (2e-10 + products) / processor.threads + 2e-4


_schedule = partial(depthwise.schedule, elements=_elements)
_plan_wgrad = partial(depthwise.plan_wgrad, kernel=wgrad, elements=_elements)

ENTRIES = {
    "fprop": Algorithm("toeplitz", _applies, partial(_schedule, kernel=fprop), _estimate),
    "wgrad": Algorithm("toeplitz", _applies, _plan_wgrad, _estimate),
    "dgrad": Algorithm("toeplitz", _applies, partial(_schedule, kernel=dgrad), _estimate),
}
