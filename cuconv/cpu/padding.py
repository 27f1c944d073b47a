"""Padding and its adjoint, for every padding mode, in blocks.

Padded coordinate i on an axis stands for input coordinate i - a, with a cells of padding before. Outside
0..H-1 the mode says which cell is seen: none (zeros), the coordinate mod H (circular), the mirror image
about the outermost cells (reflect) or about the edges beyond them (symmetric), or the outermost cell
(replicate). `gather` reads through this map; `fold`, its transpose, adds back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..problem import ConvProblem

CHANNELS_FIRST = (0, 1, 2, 3, 4)
CHANNELS_LAST = (0, 2, 3, 4, 1)
IMAGES_INSIDE = (1, 2, 3, 0, 4)
"""Orders of memory for `gather`, by axes of (N, C, D, H, W)."""


def source(mode: str, coordinate: Any, extent: int) -> Any:
    """The input cell that is seen at a coordinate outside or inside of 0..extent-1; not for zeros."""
    return _SOURCES[mode](coordinate, extent)


def _mirrored(coordinate: Any, image: Any, period: int) -> Any:
    """Which of a coordinate and its mirror image lies in the input, on an axis of that period."""
    return np.minimum(coordinate % period, image % period)


_SOURCES: dict[str, Callable[[Any, int], Any]] = {
    "circular": lambda coordinate, extent: coordinate % extent,
    "reflect": lambda coordinate, extent: _mirrored(coordinate, -coordinate, max(2 * (extent - 1), 1)),
    "replicate": lambda coordinate, extent: np.clip(coordinate, 0, extent - 1),
    "symmetric": lambda coordinate, extent: _mirrored(coordinate, -1 - coordinate, 2 * extent),
}
"""By the names in problem.PADDING_MODES, all but zeros."""


def gather(
    a: np.ndarray,
    lows: Sequence[int],
    counts: Sequence[int],
    mode: str,
    dtype: np.dtype,
    scratch: Callable[..., np.ndarray],
    order: Sequence[int],
) -> np.ndarray:
    """`counts` cells of `a` from `lows` on, per spatial axis, as `dtype`; those outside of it are padding.

    `a` and the result are indexed (N, C, D, H, W). The result's memory has the axes in the given order; where
    nothing has to be padded or converted, and the last of that order is last in `a` too, it is a view of it.
    """
    cells = [range(low, low + count) for low, count in zip(lows, counts, strict=True)]
    whole = _inside(cells, a)
    if mode != "zeros" and not whole:
        a, whole = _looked_up(a, cells, mode), True
        cells = list(map(range, counts))
    if whole and a.dtype == dtype:
        inside = a[(slice(None), slice(None), *(slice(at.start, at.stop) for at in cells))]
        if inside.strides[order[-1]] == a.itemsize:
            return inside
    padded = room((*a.shape[:2], *counts), dtype, scratch, order)
    fill(padded, a, cells, "zeros")
    return padded


def room(
    shape: Sequence[int],
    dtype: np.dtype,
    scratch: Callable[..., np.ndarray],
    order: Sequence[int],
    name: str = "padded",
) -> np.ndarray:
    """An uninitialised array (N, C, D, H, W) whose memory has the axes in the given order."""
    places = sorted(range(len(order)), key=order.__getitem__)
    return scratch(name, [shape[axis] for axis in order], dtype).transpose(places)


def fill(target: np.ndarray, a: np.ndarray, cells: Sequence[range], mode: str) -> None:
    """Set all of `target` to these cells of `a` on each spatial axis; those outside of it are padding."""
    if mode != "zeros" and not _inside(cells, a):
        target[...] = _looked_up(a, cells, mode)
        return
    source: list[Any] = [slice(None), slice(None)]
    there: list[Any] = [slice(None), slice(None)]
    for axis, at in enumerate(cells, 2):
        count, extent = target.shape[axis], a.shape[axis]
        first = min(max(-(at.start // at.step), 0), count)
        last = max(min(-((at.start - extent) // at.step), count), first)
        if first > 0:
            target[(slice(None),) * axis + (slice(0, first),)] = 0
        if last < count:
            target[(slice(None),) * axis + (slice(last, count),)] = 0
        there.append(slice(first, last))
        seen = at[first:last]
        source.append(slice(seen.start, seen.stop, seen.step) if seen else slice(0, 0))
    target[tuple(there)] = a[tuple(source)]


def take(target: np.ndarray, a: np.ndarray, cells: Sequence[np.ndarray], mode: str) -> None:
    """The same for cells in any order."""
    if a.size == 0:
        target[...] = 0
        return
    target[...] = _looked_up(a, cells, "replicate" if mode == "zeros" else mode)
    if mode == "zeros":
        for axis, (places, extent) in enumerate(zip(cells, a.shape[2:], strict=True), 2):
            target[(slice(None),) * axis + ((places < 0) | (places >= extent),)] = 0


def _inside(cells: Sequence[range], a: np.ndarray) -> bool:
    """Whether none of the cells is padding."""
    each = zip(cells, a.shape[2:], strict=True)
    return all(not at or (at[0] >= 0 and at[-1] < extent) for at, extent in each)


def _looked_up(a: np.ndarray, cells: Sequence[Any], mode: str) -> np.ndarray:
    """What is seen of `a` at these cells, in a padding mode other than zeros."""
    each = zip(cells, a.shape[2:], strict=True)
    places = (source(mode, np.asarray(at), extent) for at, extent in each)
    return a[(slice(None), slice(None), *np.ix_(*places))]


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
