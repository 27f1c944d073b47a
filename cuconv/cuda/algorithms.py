"""The table of CUDA algorithms. When each applies, its tiles and launches are in the file of its family."""

from __future__ import annotations

from functools import partial
from types import ModuleType

from ..dtypes import DTYPES
from ..problem import Request
from ..table import Algorithm, Table
from . import depthwise, direct, fft, grouped, mma, simt, sums, transform, wgmma
from .device import Device
from .kernel import Kernel
from .schedule import padding_kernels, padding_seconds, reduce_kernels, scheduled, widening_kernels


def _entry(name: str, family: ModuleType, *, recorded: bool, untried: bool = False) -> Algorithm:
    reads = getattr(family, "reads_padding", None)

    def estimate(request: Request, device: Device) -> float:
        seconds: float = family.estimate(request, device)
        return seconds + padding_seconds(request, device, reads)

    plan = partial(scheduled, family.build, reads=reads)
    except_for = getattr(family, "except_for", lambda request: None)
    return Algorithm(
        name, family.applies, plan, estimate, except_for=except_for, recorded=recorded, untried=untried
    )


# The emulator, the compiler and the sanitizers prove an entry; benchmarks/results say which are recorded.
_CONVOLUTIONS = (
    _entry("depthwise", depthwise, recorded=False),
    fft.ENTRY,
    _entry("grouped", grouped, recorded=False),
    _entry("wgmma", wgmma, recorded=False, untried=True),  # asynchrony between proxies
    _entry("mma", mma, recorded=False),
    _entry("simt", simt, recorded=False),
    _entry("direct", direct, recorded=False),
)

TABLE: Table = {
    "fprop": _CONVOLUTIONS,
    "dgrad": _CONVOLUTIONS,
    "wgrad": _CONVOLUTIONS,
    "bgrad": (_entry("sum", sums, recorded=False),),
}
"""Per op, the algorithms in order; the last one takes every valid problem."""


def kernels() -> list[Kernel]:
    """Every instance that a plan can name."""
    found = [*widening_kernels(), *padding_kernels(), *transform.kernels(), *reduce_kernels()]
    for family in (direct, simt, depthwise, grouped, wgmma, mma, sums):
        found += [kernel for dtype in DTYPES for kernel in family.kernels(dtype)]
    return found
