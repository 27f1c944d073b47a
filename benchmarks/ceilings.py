"""What the device does at best, measured in the run: the floor of each row is computed from it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np

from cuconv.cli.clock import Call, Clock, host_seconds
from cuconv.cli.timed_calls import Task, operands, ours
from cuconv.dtypes import DTYPES
from cuconv.problem import ConvProblem

from .peers import Peer
from .record import Ceilings, Overhead

TINY = "n1c1w1 k1s1"
"""The problem whose time is all overhead."""

_REPEATS = 15
_COPIED = {"cpu": 1 << 28, "cuda": 1 << 31}
_EXTENT = {"cpu": 1536, "cuda": 8192}


def measured(clock: Clock, dtypes: list[str], threads: int) -> Ceilings:
    """Copy bandwidth, and a GEMM's rate in each dtype."""
    rates = {dtype: _gemm(clock, dtype) for dtype in dtypes}
    return Ceilings(_copy(clock, threads), {dtype: rate for dtype, rate in rates.items() if rate})


def floor(
    ceilings: Ceilings, problem: ConvProblem, op: str, dtype: str, precision: str | None = None
) -> float:
    """The seconds that moving the operands, or multiplying at the GEMM's rate, takes at the least.

    No GEMM is measured at a precision below the dtype's: what moves is the floor there.
    """
    moving = problem.bytes(op, dtype) / ceilings.copy
    rate = None if precision else ceilings.gemm.get(dtype)
    return max(moving, problem.flops(op, dtype) / rate) if rate else moving


def overheads(clock: Clock, peers: list[Peer], threads: int) -> tuple[Overhead, ...]:
    """Time per call of a tiny fprop, ours and PyTorch's."""
    problem = ConvProblem.parse(TINY)
    host = operands(problem, "float32", "channels_first")
    arrays = {role: clock.namespace.asarray(array) for role, array in host.items()}
    task = Task("fprop", problem, "float32", "channels_first", arrays)
    mine = ours(task, "auto").call
    found = [Overhead("cuconv", host_seconds(clock, mine), clock.replayed(mine))]
    for peer in peers:
        other = peer.prepare(task, threads) if peer.name == "torch channels_first" else None
        if other:
            found.append(Overhead(peer.name, host_seconds(clock, other.call), None))
    return tuple(found)


def _best(clock: Clock, call: Call) -> float:
    clock.settle(call, slow=False)
    return min(clock.once(call) for _ in range(_REPEATS))


def _copy(clock: Clock, threads: int) -> float:
    """Bytes read and written per second by a copy of an array far larger than the caches."""
    size = _COPIED[clock.device]
    xp = clock.namespace
    source, target = xp.ones(size // 4, np.float32), xp.empty(size // 4, np.float32)
    if clock.device == "cuda":
        return 2 * size / _best(clock, lambda: xp.copyto(target, source))
    # NumPy copies with one thread; it lets others copy meanwhile.
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        return (
            2 * size / _best(clock, lambda: list(pool.map(lambda part: np.copyto(part[1], part[0]), parts)))
        )


def _gemm(clock: Clock, dtype: str) -> float | None:
    """FLOP per second of a square product; None where the library has no fast one of that dtype."""
    described = DTYPES[dtype]
    if described.kind == "i":
        return None
    # On the CPU half types are computed with in their accumulator's dtype.
    name: Any = described.accumulator if clock.device == "cpu" else getattr(ml_dtypes, dtype, dtype)
    extent, xp = _EXTENT[clock.device], clock.namespace
    try:
        a = xp.ones((extent, extent), np.float32).astype(name)
        seconds = _best(clock, lambda: xp.matmul(a, a))
    except (NotImplementedError, TypeError, ValueError):
        # GPUs multiply bfloat16 at float16's rate.
        return _gemm(clock, "float16") if dtype == "bfloat16" else None
    return extent**3 * (8 if described.kind == "c" else 2) / seconds
