"""The tasks of a graph: windows of operands, parts, sums of parts.

Parts are added as a tree whose shape follows from the chunks alone, so that the same bits come out whichever
worker is done first. Half types are rounded once: where there are several parts, these are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate, product
from typing import Any

import dask.array as da
import numpy as np
from dask.array.utils import meta_from_array
from dask.highlevelgraph import HighLevelGraph

from .. import api
from ..activations import ACTIVATIONS
from ..arrays import Array, owner_of
from .cuts import Cells

Key = tuple[Any, ...]
Task = tuple[Any, ...]

BRANCHES = 8
"""How many partial sums a task adds up at the most."""

SLICE = 1 << 18
"""Elements to which an activation is applied at a time."""


class Graph:
    """The tasks of one op, as they are added; `name` is the result's."""

    def __init__(self, name: str, *operands: Any) -> None:
        self.name, self.operands = name, operands
        self.tasks: dict[Any, Task] = {}
        self.prefix, _, self.token = name.rpartition("-")

    def task(self, kind: str, at: Iterable[int], function: Callable[..., Any], *arguments: Any) -> Key:
        """The key of a task, which is added if it is not there yet."""
        key = (f"{self.prefix}-{kind}-{self.token}", *at)
        self.tasks.setdefault(key, (function, *arguments))
        return key

    def window(self, role: str, operand: Any, at: tuple[int, ...], cells: Sequence[Cells]) -> Key:
        """The block of an operand that has these cells of each axis; `at` numbers it among the role's blocks.

        Parts of chunks are cut out by tasks of their own, so that halos, not chunks, go to another worker.
        """
        pieces = []
        # Tasks of one name that follow from fewer than five others are spread over all workers by Dask's
        # scheduler, and whole chunks are moved: where there are so few chunks, each has a name of its own.
        few = operand.npartitions < 5
        for parts in product(*(each.parts for each in cells)):
            key = (operand.name, *(number for number, _, _ in parts))
            sizes = [chunks[number] for (number, _, _), chunks in zip(parts, operand.chunks, strict=True)]
            if any((start, stop) != (0, size) for (_, start, stop), size in zip(parts, sizes, strict=True)):
                slices = tuple(slice(start, stop) for _, start, stop in parts)
                bounds = [bound for part in parts for bound in part]
                kind = "-".join([role, "halo", *(map(str, key[1:]) if few else ())])
                key = self.task(kind, bounds, partial(_cut, slices=slices), key)
            pieces.append(key)
        orders = tuple(each.order for each in cells)
        if len(pieces) == 1 and not any(orders):
            return pieces[0]
        counts = tuple(len(each.parts) for each in cells)
        return self.task(role, at, partial(_joined, counts=counts, orders=orders), pieces)

    def sum(self, at: tuple[int, ...], parts: Sequence[Task]) -> Task:
        """The task that is the sum of parts, as a tree of further tasks where these are many."""
        if len(parts) == 1:
            return parts[0]
        keys = [self.task("part", (*at, i), *part) for i, part in enumerate(parts)]
        level = 0
        while len(keys) > BRANCHES:
            level += 1
            starts = range(0, len(keys), BRANCHES)
            groups = [keys[start : start + BRANCHES] for start in starts]
            keys = [
                self.task(f"sum-{level}", (*at, i), added, group) if len(group) > 1 else group[0]
                for i, group in enumerate(groups)
            ]
        return added, keys

    def array(self, blocks: Mapping[Any, Task], chunks: Any, like: Any, dtype: Any) -> Any:
        """The Dask array that has these blocks, of chunks like another array's."""
        self.tasks |= {(self.name, *at): task for at, task in blocks.items()}
        operands = [operand for operand in self.operands if operand is not None]
        graph = HighLevelGraph.from_collections(self.name, self.tasks, dependencies=operands)
        meta = meta_from_array(like._meta, ndim=len(chunks), dtype=dtype)
        return da.Array(graph, self.name, tuple(map(tuple, chunks)), meta=meta)


# -- what tasks do ------------------------------------------------------------------------------------------


def _cut(chunk: Array, slices: tuple[slice, ...]) -> Array:
    """A copy, so that a halo does not keep the chunk in memory."""
    return chunk[slices].copy()


def _joined(pieces: Sequence[Array], counts: tuple[int, ...], orders: tuple[Any, ...]) -> Array:
    """Pieces, so many along each axis, as one array, of which these places are taken."""
    grid = np.empty(counts, object)
    for place, piece in enumerate(pieces):
        grid.flat[place] = piece
    starts = []
    for axis in range(grid.ndim):
        first = grid[tuple(slice(None) if each == axis else 0 for each in range(grid.ndim))]
        starts.append([0, *accumulate(piece.shape[axis] for piece in first)])
    xp = _namespace(pieces[0])
    joined = xp.empty([each[-1] for each in starts], pieces[0].dtype)
    for at, piece in np.ndenumerate(grid):
        joined[tuple(slice(each[i], each[i + 1]) for each, i in zip(starts, at, strict=True))] = piece
    for axis, order in enumerate(orders):
        if order:
            lead = (slice(None),) * axis
            taken = [joined[(*lead, each if isinstance(each, slice) else xp.asarray(each))] for each in order]
            joined = xp.concatenate(taken, axis)
    return joined


def _namespace(array: Array) -> Any:
    """numpy or cupy."""
    return owner_of("block", array).namespace


def part(function: str, options: Mapping[str, Any], wide: bool, *operands: Array) -> Array:
    """One call of a public function. `wide`: half types are summed in float32, and the sum is not rounded.

    Whether chunks come as views of something larger depends on the scheduler, and on that the order of sums.
    """
    operands = tuple(_namespace(operand).ascontiguousarray(operand) for operand in operands)
    if wide:
        operands = tuple(operand.astype("float32") for operand in operands)
        if "precision" in options:  # of 11 bits, as many as a half type has
            options = {**options, "precision": "tf32"}
    return getattr(api, function)(*operands, **options)


def added(parts: Sequence[Array]) -> Array:
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    return total


def folded(padded: Array, folds: Sequence[Any], extents: Sequence[int], first: int) -> Array:
    """The gradient of a block of the input from that of the padded input, axis by axis from `first` on."""
    xp = _namespace(padded)
    for axis, (layers, extent) in enumerate(zip(folds, extents, strict=True), first):
        lead = (slice(None),) * axis
        shape = list(padded.shape)
        shape[axis] = extent
        folded = xp.zeros(shape, padded.dtype)
        for into, places in layers:
            here, there = (each if isinstance(each, slice) else xp.asarray(each) for each in (into, places))
            folded[(*lead, here)] += padded[(*lead, there)]
        padded = folded
    return padded


def finished(
    total: Array, bias: Array | None = None, *, activation: str | None, channel: int, dtype: Any
) -> Array:
    """A whole sum, which is overwritten, with bias and activation, and rounded."""
    if bias is not None:
        total += bias.astype(total.dtype).reshape(-1, *(1,) * (total.ndim - 1 - channel))
    if activation is not None:
        xp, flat = _namespace(total), total.reshape(-1)
        for start in range(0, flat.size, SLICE):  # of what functions hold on the way only so much
            cells = slice(start, start + SLICE)
            flat[cells] = ACTIVATIONS[activation].function(flat[cells], xp)
    return total.astype(dtype, copy=False)
