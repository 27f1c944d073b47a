"""The bias gradient: db[k] = sum over n and pixels of dy[n, k, ...]."""

from __future__ import annotations

import numpy as np

from ..dtypes import DTYPES
from ..problem import Request
from ..table import Algorithm, Schedule
from .blocking import ALL, Launch
from .result import Result, accumulator


def bgrad(request: Request, launch: Launch, dy: np.ndarray, result: Result) -> None:
    """One sum, in double precision but for integers: it costs nothing beside reading dy."""
    double = {"f": np.float64, "c": np.complex128}
    dtype = double.get(DTYPES[request.dtype].kind, accumulator(request))
    result.store((ALL,), dy.sum(axis=(0, 2, 3, 4), dtype=dtype).astype(result.dtype))


ENTRIES = {
    "bgrad": Algorithm(
        "sum",
        lambda request, processor: None,
        lambda request, processor: Schedule(8 * request.problem.k, (Launch(bgrad, "", ()),)),
        lambda request, processor: request.bytes / 4e9,
    )
}
