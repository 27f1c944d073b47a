"""Lowering: every output cell's window as one row of a matrix, so that a convolution is a matrix product.

All three ops read one of their arrays, a, through windows. Along each axis the window of output cell j has
the cells

    a[start + j stride + t step]    for its taps t

fprop and wgrad read x so, with start = -padding, the problem's stride and step = dilation. dgrad is, for each
residue of the stride, a correlation of dy with the filter's taps that meet this residue, at stride 1.

Rows have the channels innermost, whatever the layout: then a row is copied in runs of all channels, and of
all taps along the last axis too where they are neighbours. Bringing channels inside is one pass over the
input, before it is read once per tap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..problem import ConvProblem, Request
from ..processor import spread
from .blocking import Scratch, blocks, lengths
from .padding import CHANNELS_FIRST, CHANNELS_LAST, gather


@dataclass(frozen=True)
class Axis:
    """How windows lie along one axis: output cell j has the cells start + j stride + t step."""

    start: int
    stride: int
    step: int
    taps: int
    cells: int

    def read(self, count: int) -> int:
        """How many cells a block of so many output cells spans; none where there is nothing."""
        return max((count - 1) * self.stride + (self.taps - 1) * self.step + 1, 0)


Axes = tuple[Axis, Axis, Axis]


def spanned(axes: Axes, cells: Sequence[slice]) -> tuple[list[int], list[int]]:
    """The cells that the windows of a block of output cells span: per axis the first, and how many."""
    parts = list(zip(axes, cells, strict=True))
    lows = [axis.start + part.start * axis.stride for axis, part in parts]
    return lows, [axis.read(part.stop - part.start) for axis, part in parts]


def windows_of(problem: ConvProblem) -> Axes:
    """The windows by which fprop and wgrad read x."""
    each = zip(problem.padding, problem.stride, problem.dilation, problem.filter, problem.output, strict=True)
    depth, height, width = (Axis(-before, *rest) for (before, _), *rest in each)
    return depth, height, width


@dataclass(frozen=True)
class Phase:
    """Residues of the stride whose cells of dx have the same windows on dy: for each its cells and taps."""

    axes: Axes
    cells: tuple[tuple[slice, ...], ...]
    taps: tuple[tuple[slice, ...], ...]

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(axis.cells for axis in self.axes)

    @property
    def empty(self) -> bool:
        """Whether no tap meets these cells."""
        return not all(axis.taps for axis in self.axes)


@lru_cache(maxsize=1024)
def phases_of(problem: ConvProblem) -> tuple[Phase, ...]:
    """All cells of dx; of the gradient of the padded input where the padding holds other than zeros."""
    if problem.padding_mode == "zeros":
        extents, befores = problem.input, [before for before, _ in problem.padding]
    else:
        extents, befores = problem.padded, [0, 0, 0]
    each = zip(extents, befores, problem.stride, problem.dilation, problem.filter, strict=True)
    together: dict[Any, list[Any]] = {}
    for residue in itertools.product(*(list(_residues(*axis)) for axis in each)):
        cells, taps, axes = zip(*residue, strict=True)
        together.setdefault(axes, []).append((cells, taps))
    return tuple(Phase(axes, *zip(*members, strict=True)) for axes, members in together.items())


def windows_and_columns(request: Request) -> list[tuple[Axes, int]]:
    """The windows by which an op reads, and how many channels come of each; several for dgrad."""
    problem = request.problem.volumetric
    if request.op == "dgrad":
        return [(phase.axes, problem.c * len(phase.taps)) for phase in phases_of(problem)]
    return [(windows_of(problem), problem.k)]


def most_cells(request: Request) -> tuple[int, ...]:
    """Per axis the largest number of output cells that windows of one kind have."""
    every = [axes for axes, _ in windows_and_columns(request)]
    return tuple(max((axes[axis].cells for axes in every), default=0) for axis in range(3))


def _residues(
    extent: int, before: int, stride: int, dilation: int, filter: int
) -> Iterator[tuple[slice, slice, Axis]]:
    """Along one axis: cell h meets tap r at dy's cell (h + before - r dilation) / stride."""
    between = stride // math.gcd(stride, dilation)  # taps of one residue are so far apart
    for first in range(min(stride, extent)):
        taps = [r for r in range(filter) if (first + before - r * dilation) % stride == 0]
        # The last tap meets the first cell of dy, so taps are taken in reverse.
        order = slice(taps[-1], taps[0] - 1 if taps[0] else None, -between) if taps else slice(0, 0)
        start = (first + before - taps[-1] * dilation) // stride if taps else 0
        step = dilation * between // stride
        cells = slice(first, extent, stride)
        yield cells, order, Axis(start, 1, step, len(taps), len(range(first, extent, stride)))


def lower(
    a: np.ndarray,
    axes: Axes,
    cells: Sequence[slice],
    groups: int,
    mode: str,
    dtype: np.dtype,
    scratch: Scratch,
) -> tuple[np.ndarray, bool]:
    """The windows of a block of output cells, as matrices (images, groups, cells, taps C/groups).

    `a` is (N, C, D, H, W). All images are one matrix, or, if the second value is true, each is one of its own
    with the cells inside. That is where the filter has one tap, nothing is padded, and channels come first in
    `a`; then, and where they come last, the matrices are views of `a` if its memory allows.
    """
    n, c = a.shape[:2]
    counts, (lows, spans) = lengths(cells), spanned(axes, cells)
    taps, pixels = math.prod(axis.taps for axis in axes), math.prod(counts)
    if taps == 0:
        return np.empty((1, groups, n * pixels, 0), dtype), False
    inside = all(
        low >= 0 and low + span <= extent for low, span, extent in zip(lows, spans, a.shape[2:], strict=True)
    )
    if taps == 1 and inside:
        read = (
            slice(low, low + span, axis.stride) for low, span, axis in zip(lows, spans, axes, strict=True)
        )
        x = a[(slice(None), slice(None), *read)].astype(dtype, copy=False)
        if x.strides[1] == x.itemsize and c > 1:
            rows = x.transpose(0, 2, 3, 4, 1).reshape(1, n * pixels, groups, c // groups).swapaxes(1, 2)
            return for_blas(rows), False
        return for_blas(x.reshape(n, groups, c // groups, pixels).swapaxes(2, 3)), True
    padded = gather(a, lows, spans, mode, dtype, scratch, CHANNELS_LAST)
    by_group = _windows(padded, axes, counts).reshape(
        n, groups, c // groups, *counts, *(axis.taps for axis in axes)
    )
    windows = by_group.transpose(1, 0, 3, 4, 5, 6, 7, 8, 2)
    rows = scratch("rows", windows.shape, dtype)
    rows[...] = windows
    return rows.reshape(1, groups, n * pixels, taps * (c // groups)), False


def _windows(padded: np.ndarray, axes: Axes, counts: Sequence[int]) -> np.ndarray:
    """A view of what the windows of so many output cells have: (N, C, D, H, W, T, R, S)."""
    along = list(zip(padded.strides[2:], axes, strict=True))
    return as_strided(
        padded,
        (*padded.shape[:2], *counts, *(axis.taps for axis in axes)),
        (
            *padded.strides[:2],
            *(stride * axis.stride for stride, axis in along),
            *(stride * axis.step for stride, axis in along),
        ),
        writeable=False,
    )


def lowered_elements(n: int, c: int, counts: Sequence[int], axes: Axes, mode: str) -> int:
    """Scratch elements that `lower` and `lower_columns` need at the most."""
    padded = math.prod(axis.read(count) for axis, count in zip(axes, counts, strict=True))
    copies = 1 if mode == "zeros" else 2
    taps = math.prod(axis.taps for axis in axes)
    return n * c * (copies * padded + taps * math.prod(counts))


def lower_columns(
    a: np.ndarray,
    axes: Axes,
    cells: Sequence[slice],
    groups: int,
    mode: str,
    dtype: np.dtype,
    scratch: Scratch,
) -> np.ndarray:
    """The windows of a block as matrices (groups, C/groups taps, images cells), in `lowered_elements`."""
    counts = lengths(cells)
    padded = gather(a, *spanned(axes, cells), mode, dtype, scratch, CHANNELS_FIRST)
    windows = _windows(padded, axes, counts).transpose(1, 5, 6, 7, 0, 2, 3, 4)
    columns = scratch("lowered", windows.shape, dtype)
    columns[...] = windows
    return columns.reshape(groups, math.prod(columns.shape[:4]) // groups, len(a) * math.prod(counts))


def by_group(a: np.ndarray, groups: int, taken: slice, channels: slice, dtype: np.dtype) -> np.ndarray:
    """Channels of some groups as matrices (groups, channels, images cells)."""
    n, c, *cells = a.shape
    each = a.reshape(n, groups, c // groups, *cells)[:, taken, channels].transpose(1, 2, 0, 3, 4, 5)
    return each.astype(dtype, copy=False).reshape(*each.shape[:2], math.prod(each.shape[2:]))


class Rows:
    """A block's images lowered along W: every row of cells once for each tap along W, as that tap sees it.

    In memory the axes are (groups, H, S, C/groups, N, D, W), W being that of the output. So rows that follow
    each other are the rows of one matrix (R S C/groups, columns). Its columns are the cells along W of all
    images, or of one image's planes; what is neither is a matrix of its own.
    """

    def __init__(
        self,
        a: np.ndarray,
        axes: Axes,
        cells: Sequence[slice],
        rows: int,
        groups: int,
        mode: str,
        dtype: np.dtype,
        scratch: Scratch,
    ) -> None:
        images, (planes, _, width), self.axes = a.shape[0], lengths(cells), axes
        lows, spans = spanned(axes, cells)
        spans[1] = rows
        padded = gather(a, lows, spans, mode, dtype, scratch, CHANNELS_FIRST)
        by_group = padded.reshape(images, groups, a.shape[1] // groups, *spans)
        image, group, channel, plane, row, item = by_group.strides
        shape = (groups, rows, axes[2].taps, by_group.shape[2], images, spans[0], width)
        strides = (group, row, item * axes[2].step, channel, image, plane, item * axes[2].stride)
        self.memory = scratch("lowered", shape, dtype)
        self.memory[...] = as_strided(by_group, shape, strides, writeable=False)
        # Along N and D: how many matrices, and how many of them are in the columns of one.
        self.inside = (images, 1) if spans[0] == 1 else (1, planes if axes[0].stride == 1 else 1)
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


def rows_elements(n: int, counts: Sequence[int], axes: Axes, rows: int, mode: str) -> int:
    """Scratch elements per channel that `Rows` needs at the most."""
    depth, _, width = axes
    planes = n * depth.read(counts[0]) * rows
    padded = (1 if mode == "zeros" else 2) * width.read(counts[2])
    return planes * (padded + width.taps * counts[2])


def filter_rows(problem: ConvProblem, w: np.ndarray, dtype: np.dtype, threads: int) -> np.ndarray:
    """The filters as matrices (groups, K/groups, taps C/groups), to meet the rows of `lower`."""
    g, c, k = problem.groups, problem.c // problem.groups, problem.k // problem.groups
    taps_outside = w.reshape(g, k, c, *problem.filter).transpose(0, 1, 3, 4, 5, 2)
    return arranged(taps_outside, 1, dtype, threads).reshape(g, k, math.prod(problem.filter) * c)


def filter_columns(
    problem: ConvProblem, w: np.ndarray, taps: Sequence[slice], dtype: np.dtype, threads: int
) -> np.ndarray:
    """Some taps of the filters as matrices (groups, taps K/groups, C/groups)."""
    g, c, k = problem.groups, problem.c // problem.groups, problem.k // problem.groups
    taken = w.reshape(g, k, c, *problem.filter)[(slice(None),) * 3 + tuple(taps)]
    taps_outside = taken.transpose(0, 3, 4, 5, 1, 2)
    return arranged(taps_outside, 4, dtype, threads).reshape(g, math.prod(taken.shape[3:]) * k, c)


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


def for_blas(matrices: np.ndarray) -> np.ndarray:
    """The matrices, copied if BLAS could not read them where they are."""
    rows, columns = matrices.shape[-2:]
    down, across = matrices.strides[-2:]
    item = matrices.itemsize
    fits = (across == item and down >= columns * item and down % item == 0) or (
        down == item and across >= rows * item and across % item == 0
    )
    return matrices if fits else np.ascontiguousarray(matrices)


def every(cells: slice, part: slice) -> slice:
    """A range of the cells that a slice takes, as a slice."""
    taken = range(cells.start, cells.stop, cells.step)[part]
    return slice(taken.start, taken.stop, taken.step)
