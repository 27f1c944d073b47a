"""Work in blocks: how large, in which order, and what one launch of the NumPy path is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..problem import ConvProblem

WORKSPACE = 8 << 20
"""Bytes of scratch memory that a blocked algorithm keeps to, unless its smallest block needs more."""

ALL = slice(None)


@dataclass(frozen=True)
class Launch:
    """One run of a function of this path over all its blocks.

    `tile` is the extent of a block along each of `axes`.
    """

    kernel: Callable[..., None]
    axes: str
    tile: tuple[int, ...]

    def __str__(self) -> str:
        place = f"{self.kernel.__module__.rpartition('.')[2]}.{self.kernel.__name__}"
        sizes = " ".join(f"{axis}{extent}" for axis, extent in zip(self.axes.split(), self.tile, strict=True))
        return f"{place} in blocks of {sizes}" if sizes else place


def fit(
    extents: Sequence[int],
    cost: Callable[..., int],
    order: Sequence[int] | None = None,
    share: float = 1.0,
) -> tuple[int, ...]:
    """The largest tile whose cost(*tile) in bytes is within a share of WORKSPACE.

    Axes are halved in the given order, down to one cell where it must be.
    """
    tile = [max(extent, 1) for extent in extents]
    for axis in order if order is not None else range(len(extents)):
        while tile[axis] > 1 and cost(*tile) > share * WORKSPACE:
            tile[axis] = -(-tile[axis] // 2)
    return tuple(tile)


def blocks(extents: Sequence[int], tile: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """The slices of every block, last axis fastest. An empty extent gives no block at all."""
    steps = [
        [slice(start, min(start + step, extent)) for start in range(0, extent, step)]
        for extent, step in zip(extents, tile, strict=True)
    ]
    return itertools.product(*steps)


def lengths(block: Sequence[slice]) -> tuple[int, ...]:
    """The extents of a block."""
    return tuple(part.stop - part.start for part in block)


def span(pixels: Sequence[int], problem: ConvProblem) -> tuple[int, ...]:
    """How many padded input cells a block of so many output pixels reads along each axis."""
    axes = zip(pixels, problem.stride, problem.reach, strict=True)
    return tuple((count - 1) * stride + reach for count, stride, reach in axes)


def tap_cells(problem: ConvProblem, tap: Sequence[int], pixels: Sequence[slice]) -> tuple[slice, ...]:
    """The padded input cells that one filter tap meets for a block of output pixels."""
    axes = zip(tap, pixels, problem.stride, problem.dilation, strict=True)
    return tuple(slice(part.start * s + t * d, (part.stop - 1) * s + t * d + 1, s) for t, part, s, d in axes)


def filter_cells(problem: ConvProblem, pixel: Sequence[int], pixels: Sequence[slice]) -> tuple[slice, ...]:
    """The padded input cells that the whole filter meets for one output pixel of a block."""
    axes = zip(pixel, pixels, problem.stride, problem.dilation, problem.reach, strict=True)
    return tuple(
        slice((part.start + p) * s, (part.start + p) * s + reach, d) for p, part, s, d, reach in axes
    )
