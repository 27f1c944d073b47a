"""`direct`: one thread per element of the result, for every valid problem. See cuda_src/direct.cuh."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..problem import Request
from .cost import Threads, real_products, seconds
from .device import Device
from .kernel import Kernel, Launch
from .schedule import OPERANDS, THREADS, Draft, per, per_element_kernel, zero_padded


def build(draft: Draft) -> list[Launch]:
    problem, op = draft.problem, draft.request.op
    extents = {
        "fprop": (problem.n, problem.k, problem.output),
        "dgrad": (problem.n, problem.c, problem.input),
        "wgrad": (problem.k, problem.c // problem.groups, problem.filter),
    }
    return [draft.per_element(_kernel(op, draft.request.dtype), extents[op], draft.fields())]


def applies(request: Request, device: Device | None) -> None:
    return None


def estimate(request: Request, device: Device | None) -> float:
    """Nothing is reused but through caches; a weight gradient has few threads, with long sums."""
    assert device is not None
    op, problem = request.op, zero_padded(request)
    # Products of one element of the result.
    sums = problem.gemm(op)[2] / (math.prod(problem.stride) if op == "dgrad" else 1)
    of_tap, of_sum, missed, lines = _COSTS[op, request.layout]
    if (op, request.layout) == ("dgrad", "channels_last"):
        lines += 32 / min(32, max(problem.c, 1))  # a line of dy for each pixel that a warp has
    results = math.prod(request.shape(OPERANDS[op][2]))
    threads = Threads(
        per(results, THREADS), THREADS, 9,
        instructions=400 + of_tap * math.prod(problem.filter) + of_sum * sums,
        products=sums * real_products(request),
        waits=missed * sums,
        lines=lines * sums,
    )  # fmt: skip
    return seconds(request, device, threads, request.bytes)


_COSTS: dict[tuple[str, str], tuple[float, float, float, float]] = {
    ("fprop", "channels_first"): (80, 18, 0.75, 3),
    ("fprop", "channels_last"): (80, 20, 0.3, 35),
    ("dgrad", "channels_first"): (110, 18, 0.65, 3),
    ("dgrad", "channels_last"): (110, 20, 0.2, 1),
    ("wgrad", "channels_first"): (0, 32, 0.35, 14),
    ("wgrad", "channels_last"): (0, 37, 0.7, 3),
}
"""Instructions for each tap and for each product; for each product, waits for memory, and lines."""


def kernels(dtype: str) -> Iterator[Kernel]:
    """Every instance for a dtype."""
    yield from (_kernel(op, dtype) for op in ("fprop", "dgrad", "wgrad"))


def _kernel(op: str, dtype: str) -> Kernel:
    return per_element_kernel("direct.cuh", f"conv_{op}_direct", dtype)
