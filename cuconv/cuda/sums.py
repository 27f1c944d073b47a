"""`sum`: the bias gradient. See cuda_src/sums.cuh."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..problem import Request
from .device import Device
from .geometry import digits
from .kernel import Kernel, Launch
from .schedule import C_TYPES, LAUNCH, LIMIT, THREADS, Draft, memory_seconds, parts, per, split_sum


def build(draft: Draft) -> list[Launch]:
    problem = draft.problem
    z, p, q = problem.output
    cells = problem.n * math.prod(problem.output)
    lanes = draft.lanes if problem.k < LIMIT else 32
    tiles = per(problem.k, lanes)
    cut = parts(cells, tiles, lanes / 8)
    fields = {"items": cells, "digit": digits((q, p, z)), "lanes": lanes}
    return split_sum(draft, _kernel(draft.request.dtype), tiles, fields, cut)


def applies(request: Request, device: Device | None) -> None:
    return None


def estimate(request: Request, device: Device | None) -> float:
    assert device is not None
    return memory_seconds(request, device) / 0.5 + 2 * LAUNCH


def kernels(dtype: str) -> Iterator[Kernel]:
    """Every instance for a dtype."""
    yield _kernel(dtype)


def _kernel(dtype: str) -> Kernel:
    return Kernel("sums.cuh", "conv_bgrad_sum", (C_TYPES[dtype], THREADS), THREADS)
