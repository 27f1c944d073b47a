"""Padding and its adjoint, for every padding mode, in blocks.

Padded coordinate i on an axis stands for input coordinate i - a, with a cells of padding before. Outside
0..H-1 the mode says which cell is seen: none (zeros), the coordinate mod H (circular), the mirror image
about the outermost cells (reflect), or the outermost cell (replicate). `gather` reads through this map;
`fold`, its transpose, adds back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..problem import ConvProblem
from .blocking import lengths, span


def source(mode: str, coordinate: Any, extent: int) -> Any:
    """The input cell that is seen at a coordinate outside or inside of 0..extent-1; not for zeros."""
    if mode == "circular":
        return coordinate % extent
    if mode == "replicate":
        return np.clip(coordinate, 0, extent - 1)
    period = max(2 * (extent - 1), 1)
    mirrored = coordinate % period
    return np.minimum(mirrored, period - mirrored)


def gather(
    x: np.ndarray, problem: ConvProblem, start: Sequence[int], count: Sequence[int], dtype: Any
) -> np.ndarray:
    """`count` cells of the padded x from `start` on, per spatial axis, as `dtype`.

    x is (N, C, D, H, W); the result is a view of it where nothing has to be padded or converted.
    """
    lows = [first - before for first, (before, _) in zip(start, problem.padding, strict=True)]
    highs = [low + length for low, length in zip(lows, count, strict=True)]
    if problem.padding_mode != "zeros" and (
        min(lows) < 0 or any(high > extent for high, extent in zip(highs, problem.input, strict=True))
    ):
        axes = zip(lows, highs, problem.input, strict=True)
        cells = (source(problem.padding_mode, np.arange(low, high), extent) for low, high, extent in axes)
        return x[(slice(None), slice(None), *np.ix_(*cells))].astype(dtype, copy=False)
    margins = [(0, 0), (0, 0)]
    for axis, (low, high, extent) in enumerate(zip(lows, highs, problem.input, strict=True)):
        inside = slice(min(max(low, 0), extent), max(min(high, extent), 0))
        x = x[(slice(None),) * (axis + 2) + (inside,)]
        before = min(max(-low, 0), count[axis])
        margins.append((before, count[axis] - before - x.shape[axis + 2]))
    if not any(map(any, margins)):
        return x.astype(dtype, copy=False)
    padded = np.zeros((*x.shape[:2], *count), dtype)
    padded[tuple(slice(before, before + n) for (before, _), n in zip(margins, x.shape, strict=True))] = x
    return padded


def slab(x: np.ndarray, problem: ConvProblem, pixels: Sequence[slice], dtype: Any) -> np.ndarray:
    """The padded input that a block of output pixels reads."""
    start = [part.start * stride for part, stride in zip(pixels, problem.stride, strict=True)]
    return gather(x, problem, start, span(lengths(pixels), problem), dtype)


def slab_elements(n: int, c: int, pixels: Sequence[int], problem: ConvProblem) -> int:
    """Scratch elements that `slab` needs at the most, for so many images, channels and output pixels."""
    copies = 1 if problem.padding_mode == "zeros" else 2
    return copies * n * c * math.prod(span(pixels, problem))


def fold_elements(problem: ConvProblem) -> int:
    """Scratch elements per image and channel for a gradient of the padded input and for folding it."""
    elements = math.prod(problem.padded)
    if min(min(pair) for pair in problem.padding) < 0:
        # Where cells are cropped, `fold` goes from one array to the next, axis by axis.
        elements += 2 * math.prod(map(max, problem.padded, problem.input))
    return elements


def fold(padded: np.ndarray, problem: ConvProblem) -> np.ndarray:
    """Add a gradient of the padded input, (N, C, *problem.padded), back onto the input's own cells.

    Cells that the padding crops away get zero. `padded` is overwritten; the result is a view of it unless
    cells were cropped.
    """
    for axis in range(3):
        extent, (before, after) = problem.input[axis], problem.padding[axis]
        lead: tuple[Any, ...] = (slice(None),) * (axis + 2)
        low, high = max(before, 0), min(before + extent, problem.padded[axis])
        inside = padded[(*lead, slice(low, max(low, high)))]
        if inside.shape[axis + 2] == extent:
            folded = inside
        else:
            shape = list(padded.shape)
            shape[axis + 2] = extent
            folded = np.zeros(shape, padded.dtype)
            first = max(-before, 0)
            folded[(*lead, slice(first, first + inside.shape[axis + 2]))] = inside
        if problem.padding_mode != "zeros":
            # The cells read here lie outside of those written, so that both may be in one array.
            for coordinate in (i for i in range(-before, extent + after) if not 0 <= i < extent):
                cell = int(source(problem.padding_mode, coordinate, extent))
                folded[(*lead, cell)] += padded[(*lead, coordinate + before)]
        padded = folded
    return padded
