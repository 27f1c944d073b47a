"""`sum`: the bias gradient. See cuda_src/sums.cuh."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..problem import ConvProblem, Request
from .cost import Threads, seconds
from .device import Device
from .geometry import digits
from .kernel import Kernel, Launch
from .schedule import C_TYPES, LIMIT, THREADS, Draft, lanes_of, parts, per, reduce_seconds, split_sum


def build(draft: Draft) -> list[Launch]:
    problem = draft.problem
    z, p, q = problem.output
    lanes = draft.lanes if problem.k < LIMIT else 32
    tiles, cut = _parts(problem, lanes)
    fields = {"items": problem.n * z * p * q, "digit": digits((q, p, z)), "lanes": lanes}
    return split_sum(draft, _kernel(draft.request.dtype), tiles, fields, cut)


def applies(request: Request, device: Device | None) -> None:
    return None


def estimate(request: Request, device: Device | None) -> float:
    assert device is not None
    lanes = lanes_of(request)
    tiles, (splits, chunk) = _parts(request.problem, lanes)
    passes = chunk * lanes / THREADS
    threads = Threads(tiles * splits, THREADS, 8, 200 + 50 * passes, waits=passes * (2 if lanes > 1 else 1))
    return seconds(request, device, threads, request.bytes) + reduce_seconds(request, device, splits)


def kernels(dtype: str) -> Iterator[Kernel]:
    """Every instance for a dtype."""
    yield _kernel(dtype)


def _parts(problem: ConvProblem, lanes: int) -> tuple[int, tuple[int, int]]:
    """How many blocks a part takes, and how the sums are cut."""
    tiles = per(problem.k, lanes)
    return tiles, parts(problem.n * math.prod(problem.output), tiles, 4 / lanes)


def _kernel(dtype: str) -> Kernel:
    return Kernel("sums.cuh", "conv_bgrad_sum", (C_TYPES[dtype], THREADS), THREADS)
