"""Estimated seconds of launches, by the units that a GPU works with, for `auto` and `explain`.

A launch takes as long as the unit that is busy longest: what issues instructions, the multipliers, the
first-level cache, or memory; or as the instructions of one thread take one after the other, where blocks are
few. What the threads of a family's kernels do is in the file of the family, as counted in compiled code. A
test holds these estimates to the cost model's predictions, which look at each launch (docs/predictions.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..dtypes import DTYPES
from ..problem import Request
from .device import Device

LAUNCH = 2.4e-6
"""Seconds from a launch to the next one."""

ISSUED = 4
"""Instructions of a warp that a multiprocessor issues per clock."""

STALL, WAIT = 2.2, 300
"""Clocks from a warp's instruction to its next one, multiplications apart, and while it waits for memory."""

COPIED = 0.8
"""The share of a data sheet's bandwidth that is there."""


@dataclass(frozen=True)
class Threads:
    """What a launch's threads do, each: instructions, those of them that multiply, waits for memory; and
    lines of the first-level cache, and of shared memory, that its warp's requests touch. Of the blocks so
    many are `resident` at once on a multiprocessor. `tensor` is the FLOP of a block's products on tensor
    cores, of the kind that `unit` names in `Device.tensor`; where there are any, threads multiply nothing
    themselves.
    """

    blocks: int
    size: int
    resident: int
    instructions: float
    products: float = 0
    waits: float = 1
    lines: float = 0
    tensor: float = 0
    unit: str = ""


def seconds(request: Request, device: Device, threads: Threads, size: float) -> float:
    """The time of a launch that moves `size` bytes."""
    here = device.multiprocessors
    warps = math.ceil(threads.size / 32) * math.ceil(threads.blocks / here)  # where there are most
    chain = STALL * (threads.instructions - threads.products) + threads.products + WAIT * threads.waits
    clocks = max(
        threads.instructions * warps / ISSUED,
        threads.lines * warps,
        chain * math.ceil(threads.blocks / (here * threads.resident)),
    )
    if threads.tensor:
        blocks = here * math.ceil(threads.blocks / here)
        multiplying = threads.tensor * blocks / device.tensor[threads.unit]
    else:
        multiplying = 64 * threads.products * warps * here / _rate(request, device)
    return max(clocks / device.clock, multiplying, size / (COPIED * device.bandwidth)) + LAUNCH


def real_products(request: Request) -> int:
    """How many multiplications of real numbers a product of the request's is."""
    return 4 if DTYPES[request.dtype].kind == "c" else 1


def _rate(request: Request, device: Device) -> float:
    """Peak FLOP per second of the request's arithmetic; integers count like floats of their size."""
    wide = DTYPES[request.dtype].accumulator in ("float64", "complex128", "int64")
    return device.float64 if wide else device.float32
