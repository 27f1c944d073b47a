"""Lowering: every output cell's window as one row of a matrix, so that a convolution is a matrix product.

Rows have the channels innermost, whatever the layout: then a row is copied in runs of all channels, and of
all taps along the last axis too where they are neighbours. Bringing channels inside is one pass over the
input, before it is read once per tap. Columns are the other way round: cells are innermost. And where an
array is lowered along W only, the taps along H are met in place.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..processor import spread
from .blocking import blocks
from .padding import CHANNELS_FIRST, CHANNELS_LAST
from .products import for_blas
from .windows import Axes, Axis, Sizes, Windows


def lower(seen: Windows, groups: int) -> tuple[np.ndarray, bool]:
    """The windows of a block of output cells, as matrices (images, groups, cells, taps C/groups).

    All images are one matrix, or, if the second value is true, each is one of its own with the cells inside.
    That is where the filter has one tap, nothing is padded, and channels come first; then, and where they
    come last, the matrices are views of the array if its memory allows.
    """
    a, axes, dtype, counts = seen.a, seen.axes, seen.dtype, seen.counts
    n, c = a.shape[:2]
    taps, pixels = math.prod(axis.taps for axis in axes), math.prod(counts)
    if taps == 0:
        return np.empty((1, groups, n * pixels, 0), dtype), False
    lows = [axis.start + part.start * axis.stride for axis, part in zip(axes, seen.cells, strict=True)]
    highs = [low + (count - 1) * axis.stride + 1 for low, axis, count in zip(lows, axes, counts, strict=True)]
    inside = all(
        low >= 0 and high <= extent for low, high, extent in zip(lows, highs, a.shape[2:], strict=True)
    )
    if taps == 1 and inside:
        read = (slice(low, high, axis.stride) for low, high, axis in zip(lows, highs, axes, strict=True))
        x = a[(slice(None), slice(None), *read)].astype(dtype, copy=False)
        if x.strides[1] == x.itemsize and c > 1:
            rows = x.transpose(0, 2, 3, 4, 1).reshape(1, n * pixels, groups, c // groups).swapaxes(1, 2)
            return for_blas(rows), False
        return for_blas(x.reshape(n, groups, c // groups, pixels).swapaxes(2, 3)), True
    padded, there = seen.gather(CHANNELS_LAST)
    by_group = _windows(padded, there).reshape(n, groups, c // groups, *counts, *(axis.taps for axis in axes))
    windows = by_group.transpose(1, 0, 3, 4, 5, 6, 7, 8, 2)
    rows = seen.scratch("rows", windows.shape, dtype)
    rows[...] = windows
    return rows.reshape(1, groups, n * pixels, taps * (c // groups)), False


def _windows(padded: np.ndarray, axes: Axes) -> np.ndarray:
    """A view of what the windows have: (N, C, D, H, W, T, R, S)."""
    along = list(zip(padded.strides[2:], axes, strict=True))
    return as_strided(
        padded,
        (*padded.shape[:2], *(axis.cells for axis in axes), *(axis.taps for axis in axes)),
        (
            *padded.strides[:2],
            *(stride * axis.stride for stride, axis in along),
            *(stride * axis.step for stride, axis in along),
        ),
        writeable=False,
    )


def lower_columns(seen: Windows, groups: int) -> np.ndarray:
    """The windows of a block as matrices (groups, C/groups taps, images cells)."""
    windows = _windows(*seen.gather(CHANNELS_FIRST)).transpose(1, 5, 6, 7, 0, 2, 3, 4)
    columns = seen.scratch("lowered", windows.shape, seen.dtype)
    columns[...] = windows
    return columns.reshape(groups, math.prod(columns.shape[:4]) // groups, math.prod(columns.shape[4:]))


def lowered_elements(sizes: Sizes) -> int:
    """Scratch elements that `lower` and `lower_columns` need at the most."""
    taps = math.prod(axis.taps for axis in sizes.axes)
    return sizes.gathered + sizes.groups * sizes.read * taps * sizes.pixels


def by_channel(a: np.ndarray, groups: int, dtype: np.dtype) -> np.ndarray:
    """Cells as matrices (groups, channels, images cells)."""
    n, c, *cells = a.shape
    each = a.reshape(n, groups, c // groups, *cells).transpose(1, 2, 0, 3, 4, 5)
    return for_blas(each.astype(dtype, copy=False).reshape(groups, c // groups, n * math.prod(cells)))


class Rows:
    """A block's images lowered along W: every row of cells once for each tap along W, as that tap sees it.

    In memory the axes are (groups, H, S, C/groups, N, D, W), W being that of the output. So rows that follow
    each other are the rows of one matrix (R S C/groups, columns). Its columns are the cells along W of all
    images, or of one image's planes; what is neither is a matrix of its own.
    """

    def __init__(self, seen: Windows, groups: int) -> None:
        images, channels = seen.a.shape[:2]
        planes, _, width = seen.counts
        padded, self.axes = seen.gather(CHANNELS_FIRST)
        by_group = padded.reshape(images, groups, channels // groups, *padded.shape[2:])
        image, group, channel, plane, row, item = by_group.strides
        _, _, _, read, rows, _ = by_group.shape
        across = self.axes[2]
        shape = (groups, rows, across.taps, by_group.shape[2], images, read, width)
        strides = (group, row, item * across.step, channel, image, plane, item * across.stride)
        self.memory = seen.scratch("lowered", shape, seen.dtype)
        self.memory[...] = as_strided(by_group, shape, strides, writeable=False)
        # Along N and D: how many matrices, and how many of them are in the columns of one.
        self.inside = columns_inside(images, self.axes[0])
        self.outside = (images // max(self.inside[0], 1), planes // max(self.inside[1], 1))
        self.columns = math.prod(self.inside) * width

    def seen(self, t: int, r: int, count: int, down: int, terms: int) -> np.ndarray:
        """What is seen from the taps t and r on by rows of output cells, each so many rows further down.

        Matrices (groups, *outside, count, terms, columns).
        """
        depth, height, _ = self.axes
        group, row, _, channel, image, plane, item = self.memory.strides
        return as_strided(
            self.memory[:, r * height.step :, :, :, :, t * depth.step :],
            (len(self.memory), *self.outside, count, terms, self.columns),
            (group, image, plane * depth.stride, down * row, channel, item),
            writeable=False,
        )

    def cells(self, y: np.ndarray, lead: int) -> np.ndarray:
        """The output cells (N, ..., D, H, W) of (lead axes, *outside, H, further axes, columns)."""
        further = y.ndim - lead - 4
        split = y.reshape(*y.shape[:-1], *self.inside, self.memory.shape[-1])
        first, (n, d, h) = range(lead), range(lead, lead + 3)
        *others, n_inside, d_inside, w = range(lead + 3, split.ndim)
        ordered = split.transpose(n, n_inside, *first, *others, d, d_inside, h, w)
        middle = ordered.shape[2 : 2 + lead + further]
        images, planes = math.prod(ordered.shape[:2]), math.prod(ordered.shape[-4:-2])
        return ordered.reshape(images, *middle, planes, *ordered.shape[-2:])


def columns_inside(images: int, depth: Axis) -> tuple[int, int]:
    """How many images, and how many planes of each, are in the columns of one matrix of `Rows`."""
    if depth.read(depth.cells) == 1:
        return images, 1
    return 1, depth.cells if depth.stride == 1 else 1


def rows_elements(sizes: Sizes) -> int:
    """Scratch elements that `Rows` needs at the most."""
    _, _, width = sizes.axes
    planes, rows, _ = (axis.read(count) for axis, count in zip(sizes.axes, sizes.counts, strict=True))
    lowered = planes * rows * width.taps * sizes.counts[2]
    return sizes.gathered + sizes.images * sizes.groups * sizes.read * lowered


def filter_matrices(filters: np.ndarray, dtype: np.dtype, threads: int) -> np.ndarray:
    """Filters (groups, made, read, T, R, S) as matrices (groups, made, taps read), as `lower` has them."""
    g, made, read, *taps = filters.shape
    if filters.strides[1] > filters.strides[2]:
        matrices = arranged(filters.transpose(0, 1, 3, 4, 5, 2), 1, dtype, threads)
        return matrices.reshape(g, made, math.prod(taps) * read)
    # What is made of them lies inside of what is read, and stays there.
    matrices = arranged(filters.transpose(0, 3, 4, 5, 2, 1), 4, dtype, threads)
    return matrices.reshape(g, math.prod(taps) * read, made).swapaxes(1, 2)


def arranged(a: np.ndarray, axis: int, dtype: np.dtype, threads: int) -> np.ndarray:
    """The array, in memory in the order of its axes; a large one is copied by all threads along one axis."""
    if a.flags.c_contiguous and a.dtype == dtype:
        return a
    copy, extent = np.empty(a.shape, dtype), a.shape[axis]

    def part(cells: slice) -> None:
        where = (slice(None),) * axis + (cells,)
        copy[where] = a[where]

    pieces = threads if a.size > 1 << 20 else 1
    spread(part, blocks((extent,), (-(-max(extent, 1) // pieces),)), threads)
    return copy
