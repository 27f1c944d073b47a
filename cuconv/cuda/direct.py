"""`direct`: one thread per element of the result, for every valid problem. See cuda_src/direct.cuh."""

from __future__ import annotations

from collections.abc import Iterator

from ..problem import Request
from .device import Device
from .kernel import Kernel, Launch
from .schedule import LAUNCH, Draft, memory_seconds, per_element_kernel, rate


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
    problem = request.problem
    arithmetic = problem.flops(request.op, request.dtype) / (0.05 * rate(request, device))
    latency = problem.gemm("wgrad")[2] * 2e-8 if request.op == "wgrad" else 0.0
    return max(arithmetic, latency, memory_seconds(request, device)) + LAUNCH


def kernels(dtype: str) -> Iterator[Kernel]:
    """Every instance for a dtype."""
    yield from (_kernel(op, dtype) for op in ("fprop", "dgrad", "wgrad"))


def _kernel(op: str, dtype: str) -> Kernel:
    return per_element_kernel("direct.cuh", f"conv_{op}_direct", dtype)
