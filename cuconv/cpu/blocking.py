"""Work in blocks: how large, in which order, and what one launch of the NumPy path is."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..problem import Request
from ..processor import Processor

WORKSPACE = 16 << 20
"""Bytes of scratch memory that one thread's block keeps to, unless the smallest block needs more."""

LIMIT = 48 << 20
"""Bytes that the blocks of all threads together keep to."""

ALL = slice(None)


@dataclass(frozen=True)
class Launch:
    """One run of a function of this path over all its blocks, which `threads` threads share.

    `tile` is the extent of a block along each of `axes`.
    """

    kernel: Callable[..., None]
    axes: str
    tile: tuple[int, ...]
    threads: int = 1

    def __str__(self) -> str:
        place = self.kernel.__name__
        sizes = " ".join(f"{axis}{extent}" for axis, extent in zip(self.axes.split(), self.tile, strict=True))
        shared = f", {self.threads} threads" if self.threads > 1 else ""
        return f"{place} in blocks of {sizes}{shared}" if sizes else place


@functools.cache
def keep_freed_memory() -> None:
    """Have the C library keep what scratch arrays and results give back, for the next call.

    glibc returns freed memory to the system beyond a size that depends on the largest piece freed so far, up
    to 32 MiB. Every page that comes back then costs a fault, and all of them as long as a convolution may
    take. So one such piece is freed here, of which no page was ever touched.
    """
    with contextlib.suppress(MemoryError):
        np.empty((32 << 20) - (64 << 10), np.uint8)


class Scratch(threading.local):
    """Memory that one thread's blocks use one after the other, by name, as long as this object lives."""

    def __call__(self, name: str, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """An uninitialised array; it is what the last call with this name returned, or a larger one."""
        size = math.prod(shape)
        memory = self.__dict__.get(name)
        if memory is None or memory.size < size or memory.dtype != dtype:
            del memory
            self.__dict__.pop(name, None)  # before another is made
            memory = self.__dict__[name] = np.empty(size, dtype)
        return memory[:size].reshape(shape)

    def clear(self) -> None:
        """Give this thread's memory back."""
        self.__dict__.clear()


def fit(
    extents: Sequence[int],
    cost: Callable[..., int],
    threads: int = 1,
    order: Sequence[int] | None = None,
    share: float = 1.0,
    parts: int | None = None,
) -> tuple[int, ...]:
    """The largest tile of which there are at least `parts`, by default one for each thread, and whose
    cost(*tile) in bytes is within a share of what each thread may use.

    Axes are halved in the given order, down to one cell where it must be.
    """
    tile = [max(extent, 1) for extent in extents]
    parts = threads if parts is None else parts
    budget = share * min(WORKSPACE, LIMIT / threads)

    for axis in order if order is not None else range(len(extents)):
        while tile[axis] > 1 and (0 < block_count(extents, tile) < parts or cost(*tile) > budget):
            tile[axis] = -(-tile[axis] // 2)
    return tuple(tile)


def while_long(cost: Callable[..., int], axes: Sequence[int], least: int) -> Callable[..., int]:
    """The cost of tiles that have more than so many cells along these axes together; nothing for others."""
    return lambda *tile: cost(*tile) if math.prod(tile[axis] for axis in axes) > least else 0


def workers(request: Request, processor: Processor) -> int:
    """How many threads are worth their start, which takes as long as this many bytes and operations."""
    problem = request.problem
    work = request.bytes * 20 + problem.flops(request.op, request.dtype)
    return processor.threads if work > 6e7 else 1


def blocks(extents: Sequence[int], tile: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """The slices of every block, last axis fastest. An empty extent gives no block at all."""
    return itertools.product(*map(_parts, extents, tile))


def _parts(extent: int, step: int) -> Sequence[slice]:
    """The slices along one axis."""
    if 0 < extent <= step:
        return (slice(0, extent),)
    return [slice(start, min(start + step, extent)) for start in range(0, extent, step)]


def block_count(extents: Sequence[int], tile: Sequence[int]) -> int:
    """How many blocks there are."""
    return math.prod(-(-extent // part) for extent, part in zip(extents, tile, strict=True))


def lengths(block: Sequence[slice]) -> tuple[int, ...]:
    """The extents of a block."""
    return tuple(part.stop - part.start for part in block)
