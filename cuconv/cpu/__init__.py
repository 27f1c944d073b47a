"""The NumPy path: a table of algorithms and one file per family."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..arrays import canonical
from ..problem import Request
from ..table import Schedule, Table
from . import bias, depthwise, fft, gemm
from .result import Result

TABLE: Table = {
    "fprop": (depthwise.ENTRIES["fprop"], fft.ENTRIES["fprop"], gemm.ENTRIES["fprop"]),
    "dgrad": (depthwise.ENTRIES["dgrad"], fft.ENTRIES["dgrad"], gemm.ENTRIES["dgrad"]),
    "wgrad": (depthwise.ENTRIES["wgrad"], fft.ENTRIES["wgrad"], gemm.ENTRIES["wgrad"]),
    "bgrad": (bias.ENTRIES["bgrad"],),
}
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
    """
    *inputs, out = (canonical(request, role, array) for role, array in operands.items())
    with np.errstate(all="ignore"):
        for launch in schedule.launches:
            launch.kernel(request, launch.tile, *inputs, Result(request, out, bias))
