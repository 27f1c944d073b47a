"""Windows: which cells of an array every output cell reads, along each axis and in blocks.

All three ops read one of their arrays, a, through windows. Along each axis the window of output cell j has
the cells

    a[start + j stride + t step]    for its taps t

fprop and wgrad read x so, with start = -padding, the problem's stride and step = dilation. dgrad is, for each
residue of the stride that taps meet, a correlation of dy with these taps, at stride 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..problem import ConvProblem, Request
from .blocking import Scratch, lengths
from .padding import fill, gather, room, take


class Axis(NamedTuple):
    """How windows lie along one axis: output cell j has the cells start + j stride + t step."""

    start: int
    stride: int
    step: int
    taps: int
    cells: int

    def reach(self, count: int) -> int:
        """From the first to the last cell that so many output cells see; none where there is nothing."""
        return max((count - 1) * self.stride + (self.taps - 1) * self.step + 1, 0)

    def dense(self, count: int) -> bool:
        """Whether so many output cells see half of these cells or more."""
        return 2 * self.taps * count >= self.reach(count)

    def within(self, count: int) -> Axis:
        """How the windows of a block of so many output cells lie in what `Windows.gather` gives.

        As in the array, or, where few cells are seen, what each tap sees, one tap after the other. No step
        leads out of what is reached: that of a single output cell or tap may be larger than memory.
        """
        if self.dense(count):
            reached = max(self.reach(count), 1)
            return Axis(0, min(self.stride, reached), min(self.step, reached), self.taps, count)
        return Axis(0, 1, count, self.taps, count)

    def read(self, count: int) -> int:
        """How many cells are there."""
        return self.reach(count) if self.dense(count) else self.taps * count


Axes = tuple[Axis, Axis, Axis]


def within(axes: Axes, counts: Sequence[int]) -> Axes:
    """How the windows of a block of so many output cells lie in what `Windows.gather` gives."""
    depth, height, width = map(Axis.within, axes, counts)
    return depth, height, width


@dataclass(frozen=True)
class Windows:
    """What a block of output cells sees of an array `a`, (N, C, D, H, W), outside of which is padding."""

    a: np.ndarray
    axes: Axes
    cells: Sequence[slice]
    mode: str
    dtype: np.dtype
    scratch: Scratch

    @property
    def counts(self) -> tuple[int, ...]:
        """How many output cells the block has along each axis."""
        return lengths(self.cells)

    def gather(self, order: Sequence[int]) -> tuple[np.ndarray, Axes]:
        """The cells that the windows see, as `padding.gather` gives them, and how the windows lie there."""
        a, axes, mode, counts = self.a, self.axes, self.mode, self.counts
        there = within(axes, counts)
        lows = [axis.start + part.start * axis.stride for axis, part in zip(axes, self.cells, strict=True)]
        reads = [axis.reach(axis.cells) for axis in there]
        if dense(axes, counts):
            return gather(a, lows, reads, mode, self.dtype, self.scratch, order), there
        padded = room((*a.shape[:2], *reads), self.dtype, self.scratch, order)
        block = [axis._replace(cells=count) for axis, count in zip(axes, counts, strict=True)]
        if padded.size > PIECE * piece_count(axes, counts):
            for piece in itertools.product(*map(_pieces, lows, block)):
                target, seen = zip(*piece, strict=True)
                fill(padded[(slice(None), slice(None), *target)], a, seen, mode)
        else:
            take(padded, a, list(map(_coordinates, lows, block)), mode)
        return padded, there


class Sizes(NamedTuple):
    """How large a block is: its groups, channels of each that are read and made, images and output cells."""

    axes: Axes
    mode: str
    groups: int
    read: int
    made: int
    images: int
    counts: tuple[int, ...]

    @property
    def pixels(self) -> int:
        return self.images * math.prod(self.counts)

    @property
    def gathered(self) -> int:
        """Scratch elements that `Windows.gather` needs at the most."""
        copies = 1 if self.mode == "zeros" and dense(self.axes, self.counts) else 2
        cells = math.prod(axis.read(count) for axis, count in zip(self.axes, self.counts, strict=True))
        return copies * self.images * self.groups * self.read * cells


PIECE = 2048
"""Elements up to which it is faster to look up each than to copy a piece."""


def _pieces(low: int, axis: Axis) -> list[tuple[slice, range]]:
    """What is copied at once along an axis: where it goes, and which cells it is."""
    count, stride = axis.cells, axis.stride
    if axis.dense(count):
        return [(slice(None), range(low, low + axis.reach(count)))]
    firsts = range(low, low + axis.taps * axis.step, axis.step)
    return [
        (slice(t * count, (t + 1) * count), range(first, first + count * stride, stride))
        for t, first in enumerate(firsts)
    ]


def _coordinates(low: int, axis: Axis) -> np.ndarray:
    """The same cells one after the other."""
    if axis.dense(axis.cells):
        return np.arange(low, low + axis.reach(axis.cells))
    firsts = low + np.arange(axis.taps) * axis.step
    return (firsts[:, None] + np.arange(axis.cells) * axis.stride).ravel()


def dense(axes: Axes, counts: Sequence[int]) -> bool:
    """Whether all cells from the first to the last are brought together."""
    return all(map(Axis.dense, axes, counts))


def piece_count(axes: Axes, counts: Sequence[int]) -> int:
    """In how many pieces what so many output cells see is brought together: one, or one for each far tap."""
    each = zip(axes, counts, strict=True)
    return math.prod(1 if axis.dense(count) else axis.taps for axis, count in each)


def windows_of(problem: ConvProblem) -> Axes:
    """The windows by which fprop and wgrad read x."""
    each = zip(problem.padding, problem.stride, problem.dilation, problem.filter, problem.output, strict=True)
    depth, height, width = (Axis(-before, *rest) for (before, _), *rest in each)
    return depth, height, width


@dataclass(frozen=True)
class Phase:
    """Output cells with the same windows, in dgrad several residues of the stride: of each cells and taps."""

    axes: Axes
    cells: tuple[tuple[slice, ...], ...]
    taps: tuple[tuple[slice, ...], ...]

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(axis.cells for axis in self.axes)


RESIDUES = 1024
"""Residues of the stride, of all axes together, beyond which `col2im` alone makes dgrad."""


def too_many_residues(request: Request) -> str | None:
    """Why dgrad cannot go residue by residue of the stride, if it is for their number."""
    if request.op != "dgrad":
        return None
    problem = request.problem
    axes = zip(problem.filter, problem.stride, problem.dilation, strict=True)
    count = math.prod(min(filter, _between(stride, dilation)) for filter, stride, dilation in axes)
    return (
        None if count <= RESIDUES else f"taps meet {count:,} residues of the stride, more than {RESIDUES:,}"
    )


@lru_cache(maxsize=256)
def phases_of(op: str, problem: ConvProblem) -> tuple[Phase, ...]:
    """All output cells by what they see: one kind but in dgrad.

    There they are the cells of dx that taps meet, or of the gradient of the padded input where padding is not
    of zeros. At most RESIDUES in all; see `unmet` for the other cells.
    """
    if op != "dgrad":
        everything = tuple(slice(0, extent, 1) for extent in problem.output)
        return (Phase(windows_of(problem), (everything,), ((slice(None),) * 3,)),)
    every_axis: list[dict[Axis, list[tuple[slice, slice]]]] = []
    for extent, before, *rest in residue_axes(problem):
        together: dict[Axis, list[tuple[slice, slice]]] = {}
        for cells, taps, axis in _residues(extent, before, *rest):
            together.setdefault(axis, []).append((cells, taps))
        every_axis.append(together)
    phases = []
    for depth, height, width in itertools.product(*every_axis):
        axes = (depth, height, width)
        residues = list(itertools.product(*map(dict.__getitem__, every_axis, axes)))
        places = tuple(tuple(part for part, _ in residue) for residue in residues)
        phases.append(Phase(axes, places, tuple(tuple(part for _, part in residue) for residue in residues)))
    return tuple(phases)


def unmet(request: Request) -> bool:
    """Whether there are cells of dx, or of the padded input's gradient, that `phases_of` leaves out."""
    if request.op != "dgrad":
        return False
    problem = request.problem.volumetric
    met = sum(len(phase.cells) * math.prod(phase.counts) for phase in phases_of(request.op, problem))
    return met < math.prod(extent for extent, *_ in residue_axes(problem))


def unmet_cells(problem: ConvProblem) -> np.ndarray:
    """Which they are, as a mask (D, H, W)."""
    met = []
    for extent, before, *rest in residue_axes(problem):
        met.append(np.zeros(extent, bool))
        for cells, _, _ in _residues(extent, before, *rest):
            met[-1][cells] = True
    depth, height, width = met
    return ~(depth[:, None, None] & height[:, None] & width)


def residue_axes(problem: ConvProblem) -> Iterator[tuple[int, int, int, int, int]]:
    """What `_residues` takes, axis by axis: of dx, or of the padded input's gradient if that is folded."""
    if problem.padding_mode == "zeros":
        extents, befores = problem.input, [before for before, _ in problem.padding]
    else:
        extents, befores = problem.padded, [0] * problem.rank
    return zip(extents, befores, problem.stride, problem.dilation, problem.filter, strict=True)


def _between(stride: int, dilation: int) -> int:
    """How far apart the taps of one residue are, and how many residues are met if there are as many taps."""
    return stride // math.gcd(stride, dilation)


def _residues(
    extent: int, before: int, stride: int, dilation: int, filter: int
) -> Iterator[tuple[slice, slice, Axis]]:
    """Along one axis: cell h meets tap r at dy's cell (h + before - r dilation) / stride."""
    between = _between(stride, dilation)
    for tap in range(min(filter, between)):
        first = (tap * dilation - before) % stride
        if first >= extent:
            continue
        taps = range(tap, filter, between)
        # The last tap meets the first cell of dy, so taps are taken in reverse.
        order = slice(taps[-1], tap - 1 if tap else None, -between)
        start = (first + before - taps[-1] * dilation) // stride
        cells = range(first, extent, stride)
        axis = Axis(start, 1, dilation * between // stride, len(taps), len(cells))
        yield slice(cells.start, cells.stop, cells.step), order, axis


def every(cells: slice, part: slice) -> slice:
    """A range of the cells that a slice takes, as a slice."""
    taken = range(cells.start, cells.stop, cells.step)[part]
    return slice(taken.start, taken.stop, taken.step)
