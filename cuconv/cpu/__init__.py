"""The NumPy path: a table of algorithms and one file per family."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


def ready(
    request: Request, schedule: Schedule, arrays: Mapping[str, np.ndarray]
) -> Callable[[tuple[np.ndarray, ...]], None]:
    """What runs a schedule on arrays in the order of these roles, writing into the result's.

    Overflow gives infinity and infinity times zero NaN, without a warning, as on a GPU: with warnings turned
    into exceptions a result would be left half-written.

    BLAS has one thread in every call, also of a single block: how it adds depends on its threads, which
    others' calls set as well, and the bits shall depend on the plan only.
    """
    roles = tuple(arrays)

    def run(arrays: tuple[np.ndarray, ...]) -> None:
        keep_freed_memory()
        bias = arrays[-1] if roles[-1] == "bias" else None
        *inputs, out = (
            canonical(request, role, array)
            for role, array in zip(roles, arrays, strict=True)
            if role != "bias"
        )

        def launches() -> None:
            with processor.for_blocks():
                for launch in schedule.launches:
                    launch.kernel(request, launch, *inputs, Result(out, request, bias))

        processor.with_blas_alone(launches)

    return run
