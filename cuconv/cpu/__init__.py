"""The NumPy path: a table of algorithms and one file per family."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..problem import Request
from ..table import Table
from . import bias, depthwise, fft, gemm
from .blocking import Launch
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
    launches: Sequence[Launch],
    operands: Sequence[np.ndarray],
    bias: np.ndarray | None,
    out: np.ndarray,
) -> None:
    """Run a plan's launches on canonical views (see arrays.py), writing into `out`.

    Overflow gives infinity and infinity times zero NaN, without a warning, as on a GPU: with warnings turned
    into exceptions a result would be left half-written.
    """
    with np.errstate(all="ignore"):
        for launch in launches:
            launch.kernel(request, launch.tile, *operands, Result(request, out, bias))
