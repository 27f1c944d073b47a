"""The NumPy path: a table of algorithms and one file per family."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .. import processor
from ..arrays import canonical
from ..problem import Request
from ..table import Schedule, Table
from . import bias, col2im, depthwise, fft, gemm, im2col, mec, toeplitz
from .blocking import keep_freed_memory
from .result import Result

_FAMILIES = (toeplitz, depthwise, fft, mec, im2col, gemm, col2im)

TABLE: Table = {
    op: tuple(family.ENTRIES[op] for family in _FAMILIES if op in family.ENTRIES)
    for op in ("fprop", "dgrad", "wgrad")
} | {"bgrad": (bias.ENTRIES["bgrad"],)}
"""Per op, the algorithms in order; the last one takes every valid problem."""


def run(
    request: Request,
    schedule: Schedule,
    operands: Mapping[str, np.ndarray],
    bias: np.ndarray | None,
) -> None:
    """Run a schedule on arrays by role, writing into that of the result.

    Overflow gives infinity and infinity times zero NaN, without a warning, as on a GPU: with warnings turned
    into exceptions a result would be left half-written.

    BLAS has one thread in every call, also of a single block: how it adds depends on its threads, which
    others' calls set as well, and the bits shall depend on the plan only.
    """
    keep_freed_memory()
    *inputs, out = (canonical(request, role, array) for role, array in operands.items())

    def launches() -> None:
        with processor.for_blocks():
            for launch in schedule.launches:
                launch.kernel(request, launch, *inputs, Result(out, request, bias))

    processor.with_blas_alone(launches)
