"""Operands made dense and channels-last, in the workspace, for kernels that read vectors of channels.

See cuda_src/transform.cuh.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..dtypes import DTYPES
from ..problem import ConvProblem, Request
from .cost import Threads, seconds
from .device import Device
from .geometry import digits, divisor
from .kernel import VECTOR, Kernel, Launch
from .schedule import OPERANDS, Draft, per

_ELEMENTS = {2: "unsigned short", 4: "unsigned", 8: "unsigned long long"}
"""What elements are copied as, by their size."""

_THREADS = 256
_TILES = {1: 1024, 2: 256, 4: 256, 8: 128}
"""How many places a block has, by its vectors of channels."""


def channels_last(draft: Draft, slot: str) -> Launch:
    """The launch that copies the operand of a slot, "a" or "b", to the workspace, which the draft has then.

    It is dense and channels-last, and each group of its channels is padded with zeros to whole vectors: its
    shape has them all. Filters count as one group. Elements have 2, 4 or 8 bytes.
    """
    item = DTYPES[draft.request.dtype].itemsize
    outer, groups, channels, spatial = _extents(draft.problem, draft.request.op, slot)
    padded, places = _padded(channels, item), outer * math.prod(spatial)
    copy = draft.room((outer, groups * padded, *spatial), draft.request.dtype, channels_last=True)
    kernel, blocks = _tiles(places, groups * padded, item)
    d, h, w = spatial
    fields = {
        "groups": groups,
        "channels": channels,
        "group": divisor(padded),
        "items": places,
        "digit": digits((w, h, d, d * h * w)),
    }
    launch = draft.launch(kernel, blocks, fields, a=None, b=getattr(draft, slot), out=copy)
    setattr(draft, slot, copy)
    return launch


def channels_last_seconds(request: Request, problem: ConvProblem, device: Device, slot: str) -> float:
    """The estimate of that launch, the problem being as a family sees it."""
    item = DTYPES[request.dtype].itemsize
    outer, groups, channels, spatial = _extents(problem, request.op, slot)
    padded, places = _padded(channels, item), outer * math.prod(spatial)
    kernel, blocks = _tiles(places, groups * padded, item)
    threads = Threads(blocks, kernel.threads, kernel.residents, instructions=600)
    return seconds(request, device, threads, places * groups * (channels + padded) * item)


def kernels() -> Iterator[Kernel]:
    """Every instance."""
    yield from (_kernel(item, vectors) for item in _ELEMENTS for vectors in _TILES)


def _kernel(itemsize: int, vectors: int) -> Kernel:
    arguments = (_ELEMENTS[itemsize], _THREADS, _TILES[vectors], vectors)
    return Kernel("transform.cuh", "conv_channels_last", arguments, _THREADS, residents=4)


def _tiles(places: int, channels: int, itemsize: int) -> tuple[Kernel, int]:
    """The kernel for so many places and padded channels, and its blocks."""
    needed = channels * itemsize // VECTOR
    vectors = next((vectors for vectors in _TILES if vectors >= needed), max(_TILES))
    return _kernel(itemsize, vectors), per(places, _TILES[vectors]) * per(needed, vectors)


def _padded(channels: int, itemsize: int) -> int:
    """The channels of a group in whole vectors."""
    vector = VECTOR // itemsize
    return per(channels, vector) * vector


def _extents(problem: ConvProblem, op: str, slot: str) -> tuple[int, int, int, tuple[int, ...]]:
    """(outer, groups, channels of a group, three spatial extents) of an operand."""
    role = OPERANDS[op]["ab".index(slot)]
    if role == "w":
        return problem.k, 1, problem.c // problem.groups, problem.filter
    outer, channels, *spatial = problem.x_shape() if role == "x" else problem.y_shape()
    return outer, problem.groups, channels // problem.groups, tuple(spatial)
