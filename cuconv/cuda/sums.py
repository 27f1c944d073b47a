"""`sum`: the bias gradient. See cuda_src/sums.cuh."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..dtypes import DTYPES
from ..problem import ConvProblem, Request
from .cost import Threads, seconds
from .device import Device
from .geometry import digits
from .kernel import VECTOR, Kernel, Launch
from .schedule import C_TYPES, LIMIT, PART, Draft, parts, per, reduce_seconds, split_sum

_THREADS = 256
_ACROSS = 8
"""Neighbouring threads that have the channels of one cell, at the most: 128 bytes of them."""

_UNDER_WAY = 4
"""Vectors that a thread reads at once."""


def build(draft: Draft) -> list[Launch]:
    problem = draft.problem
    z, p, q = problem.output
    tiles, lanes, cut = _parts(draft.request, problem)
    numbers = digits((q, p, z, z * p * q, tiles))
    fields = {"items": problem.n * z * p * q, "digit": numbers, "lanes": lanes}
    return split_sum(draft, _kernel(draft.request.dtype), tiles, fields, cut)


def applies(request: Request, device: Device | None) -> None:
    return None


def estimate(request: Request, device: Device | None) -> float:
    assert device is not None
    tiles, lanes, (splits, chunk) = _parts(request, request.problem)
    vectors = chunk * lanes * DTYPES[request.dtype].itemsize / VECTOR / _THREADS
    threads = Threads(tiles * splits, _THREADS, 4, 300 + 50 * vectors, waits=vectors / _UNDER_WAY)
    return seconds(request, device, threads, request.bytes) + reduce_seconds(request, device, splits)


def kernels(dtype: str) -> Iterator[Kernel]:
    """Every instance for a dtype."""
    yield _kernel(dtype)


def _parts(request: Request, problem: ConvProblem) -> tuple[int, int, tuple[int, int]]:
    """How many blocks a part takes, of how many channels each, and how the sums are cut.

    A block has vectors of channels where these are neighbours, and where there are no others.
    """
    vector, pixels = VECTOR // DTYPES[request.dtype].itemsize, math.prod(problem.output)
    across = request.layout == "channels_last" or pixels == 1 or problem.k >= LIMIT
    threads = min(1 << (per(problem.k, vector) - 1).bit_length(), _ACROSS) if across else 0
    lanes = max(threads * vector, 1)
    tiles = per(problem.k, lanes)
    least = _THREADS * _UNDER_WAY * vector / lanes  # what a block reads at once
    cut = parts(problem.n * pixels, tiles, least / PART, 1 if across else vector)
    return tiles, lanes, cut


def _kernel(dtype: str) -> Kernel:
    return Kernel("sums.cuh", "conv_bgrad_sum", (C_TYPES[dtype], _THREADS), _THREADS)
