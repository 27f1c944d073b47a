"""Images laid flat: what one tap sees of one channel, for all output cells, is one run of memory.

Once images are padded, a tap sees a channel's memory from some cell on. Where the stride is above 1, one tap
meets only every stride-th cell from a residue on; the cells of each residue are laid apart first. Between the
end of one row and the start of the next a run has cells that belong to no output: they are computed, and left
out. In memory the axes are (C, D, H, N, W), so that a run goes through all images of a block.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .blocking import ALL
from .padding import IMAGES_INSIDE, room
from .windows import Axis, Sizes, Windows, within


class FlatImages:
    """A block's padded images as runs of memory, one for each channel and residue of the stride.

    `seen` gives what a tap sees: (C, length), of the `size` cells that all output cells lie among.
    """

    def __init__(self, seen: Windows) -> None:
        self.counts, self.images = seen.counts, len(seen.a)
        self.axes = within(seen.axes, self.counts)
        self.extents = list(map(extent, self.axes))
        depth, height, width = self.counts
        self.row = self.images * self.extents[2]
        self.size = depth * self.extents[1] * self.row
        self.length = ((depth - 1) * self.extents[1] + height) * self.row - self.extents[2] + width
        self.runs: dict[tuple[int, ...], np.ndarray] = {}
        if not all(axis.taps for axis in seen.axes):
            return
        padded, _ = seen.gather(IMAGES_INSIDE)
        for residue in itertools.product(*map(_residues, self.axes)):
            image = self._cells_of(residue, padded, seen).transpose(IMAGES_INSIDE)
            self.runs[residue] = image.reshape(len(image), math.prod(image.shape[1:]))

    def _cells_of(self, residue: tuple[int, ...], padded: np.ndarray, seen: Windows) -> np.ndarray:
        """Every stride-th cell of the padded images from a residue on, with zeros where there are no more."""
        if all(axis.stride == 1 for axis in self.axes):
            return padded
        taken = (slice(first, None, axis.stride) for first, axis in zip(residue, self.axes, strict=True))
        cells = padded[(ALL, ALL, *taken)][(ALL, ALL, *map(slice, self.extents))]
        shape = (*padded.shape[:2], *self.extents)
        image = room(shape, seen.dtype, seen.scratch, IMAGES_INSIDE, f"residue {residue}")
        if cells.shape != shape:
            image[...] = 0
        image[(ALL, ALL, *map(slice, cells.shape[2:]))] = cells
        return image

    def taps(self) -> Iterator[tuple[Any, ...]]:
        return itertools.product(*(range(axis.taps) for axis in self.axes))

    def seen(self, tap: Sequence[int]) -> np.ndarray:
        """What a tap sees of every channel: (C, length)."""
        steps = [divmod(t * axis.step, axis.stride) for t, axis in zip(tap, self.axes, strict=True)]
        (depth, height, width), residue = zip(*steps, strict=True)
        first = (depth * self.extents[1] + height) * self.row + width
        return self.runs[residue][:, first : first + self.length]

    def inside(self, runs: np.ndarray) -> np.ndarray:
        """The output cells among `size` cells of memory: (N, ..., D, H, W) of (..., size)."""
        _, height, width = self.counts
        images = runs.reshape(*runs.shape[:-1], self.counts[0], self.extents[1], self.images, self.extents[2])
        return np.moveaxis(images[..., :height, :, :width], -2, 0)


def extent(axis: Axis) -> int:
    """How many cells of one residue a block's windows read along an axis."""
    return axis.cells + max(axis.taps - 1, 0) * axis.step // axis.stride


def _residues(axis: Axis) -> list[int]:
    """The residues of the stride that taps fall on."""
    return sorted({t * axis.step % axis.stride for t in range(residue_count(axis))})


def residue_count(axis: Axis) -> int:
    """How many there are."""
    return min(axis.taps, axis.stride // math.gcd(axis.stride, axis.step))


def flat_elements(sizes: Sizes) -> tuple[int, int]:
    """Scratch elements that `FlatImages` needs at the most, and `size`."""
    axes, counts = within(sizes.axes, sizes.counts), sizes.counts
    extents, channels = list(map(extent, axes)), sizes.images * sizes.groups * sizes.read
    padded = math.prod(axis.reach(axis.cells) for axis in axes)
    laid_apart = math.prod(map(residue_count, axes)) * math.prod(extents)
    size = sizes.images * counts[0] * extents[1] * extents[2]
    return sizes.gathered + channels * (padded + laid_apart), size
