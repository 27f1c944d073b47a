"""Images as runs of memory: what one tap sees of one channel, for all output cells, is a piece of memory.

Once images are padded, a tap sees a channel's memory from some cell on. Where the stride is above 1, one tap
meets only every stride-th cell from a residue on; such a phase of the images is taken out first. Between the
end of one row and the start of the next a run has cells that belong to no output: they are computed, and left
out. In memory the axes are (C, D, H, N, W), so that a run goes through all images of a block.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .blocking import Scratch, lengths
from .padding import IMAGES_INSIDE
from .windows import Axes, Axis, gather_windows, gathered_elements, within


class Runs:
    """A block's padded images as runs of memory, one for each channel and phase of the stride.

    `seen` gives what a tap sees: (C, length), of which `cells` are the block's output cells.
    """

    def __init__(
        self, a: np.ndarray, axes: Axes, cells: Sequence[slice], mode: str, dtype: np.dtype, scratch: Scratch
    ) -> None:
        self.counts, self.images = lengths(cells), a.shape[0]
        self.axes = within(axes, self.counts)
        self.extents = list(map(extent, self.axes))
        depth, height, width = self.counts
        self.row = self.images * self.extents[2]
        self.length = ((depth - 1) * self.extents[1] + height) * self.row - self.extents[2] + width
        self.phases: dict[tuple[int, ...], np.ndarray] = {}
        if not all(axis.taps for axis in axes):
            return
        padded, _ = gather_windows(a, axes, cells, mode, dtype, scratch, IMAGES_INSIDE)
        for phase in used_phases(self.axes):
            image = phase_cells(padded, phase, self.axes, self.extents, scratch)
            ordered = image.transpose(IMAGES_INSIDE)
            self.phases[phase] = ordered.reshape(a.shape[1], math.prod(ordered.shape[1:]))

    def seen(self, tap: Sequence[int]) -> np.ndarray:
        """What a tap sees of every channel: (C, length)."""
        phase, first = self.place(tap)
        return self.phases[phase][:, first : first + self.length]

    def place(self, tap: Sequence[int]) -> tuple[tuple[int, ...], int]:
        """The phase that a tap falls on, and the cell of its memory from which on it sees."""
        steps = [divmod(t * axis.step, axis.stride) for t, axis in zip(tap, self.axes, strict=True)]
        (depth, height, width), phase = zip(*steps, strict=True)
        return phase, (depth * self.extents[1] + height) * self.row + width

    def taps(self) -> Iterator[tuple[Any, ...]]:
        return itertools.product(*(range(axis.taps) for axis in self.axes))

    @property
    def size(self) -> int:
        """Cells of a channel's memory that all of the block's output cells lie in."""
        return self.counts[0] * self.extents[1] * self.row

    def inside(self, runs: np.ndarray) -> np.ndarray:
        """The output cells among `size` cells of memory: (N, ..., D, H, W) of (..., size)."""
        _, height, width = self.counts
        images = runs.reshape(*runs.shape[:-1], self.counts[0], self.extents[1], self.images, self.extents[2])
        return np.moveaxis(images[..., :height, :, :width], -2, 0)


def extent(axis: Axis) -> int:
    """How many cells of one phase a block's windows read along an axis."""
    return axis.cells + max(axis.taps - 1, 0) * axis.step // axis.stride


def used_phases(axes: Axes) -> list[tuple[int, ...]]:
    """The residues of the stride that taps fall on."""
    each = (sorted({t * axis.step % axis.stride for t in range(axis.taps)}) for axis in axes)
    return list(itertools.product(*each))


def phase_count(axis: Axis) -> int:
    """How many residues of the stride taps fall on."""
    return min(axis.taps, axis.stride // math.gcd(axis.stride, axis.step))


def phase_cells(
    padded: np.ndarray,
    phase: tuple[int, ...],
    axes: Axes,
    extents: Sequence[int],
    scratch: Scratch,
) -> np.ndarray:
    """Every stride-th cell of the padded images from a residue on, with zeros where there are no more."""
    if all(axis.stride == 1 for axis in axes):
        return padded
    taken = tuple(slice(first, None, axis.stride) for first, axis in zip(phase, axes, strict=True))
    cells = padded[(slice(None), slice(None), *taken)]
    cells = cells[(slice(None), slice(None), *map(slice, extents))]
    shape = (*padded.shape[:2], *extents)
    image = scratch(f"phase {phase}", [shape[axis] for axis in IMAGES_INSIDE], padded.dtype)
    image = image.transpose(np.argsort(IMAGES_INSIDE))
    if cells.shape != shape:
        image[...] = 0
    image[(slice(None), slice(None), *map(slice, cells.shape[2:]))] = cells
    return image


def run_elements(n: int, c: int, counts: Sequence[int], axes: Axes, mode: str) -> tuple[int, int]:
    """Scratch elements that `Runs` needs at the most, and cells of memory around a channel's output cells."""
    there = within(axes, counts)
    extents = list(map(extent, there))
    padded = math.prod(axis.reach(axis.cells) for axis in there)
    phases = math.prod(map(phase_count, there))
    copies = gathered_elements(axes, counts, mode) + padded + phases * math.prod(extents)
    return n * c * copies, n * counts[0] * extents[1] * extents[2]
