"""The convolution theorem with NumPy's pocketfft: see `fourier`, which has the mathematics.

Each block is one of a single group. It is not `exact`, therefore it is taken by name only.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.fft  # now: NumPy would on first use, under a lock that a forked process may never get

from .. import fourier
from ..dtypes import DTYPES
from ..problem import Request
from ..processor import Processor
from ..table import Algorithm, Schedule
from . import blocking
from .blocking import Launch
from .result import Result

_NUMPY = fourier.Library(np, np.fft)


def fprop(request: Request, launch: Launch, x: np.ndarray, w: np.ndarray, result: Result) -> None:
    fourier.fprop(_NUMPY, request, fourier.Tile(1, *launch.tile), x, w, _stored(result))


def dgrad(request: Request, launch: Launch, dy: np.ndarray, w: np.ndarray, result: Result) -> None:
    fourier.dgrad(_NUMPY, request, fourier.Tile(1, *launch.tile), dy, w, _stored(result))


def wgrad(request: Request, launch: Launch, x: np.ndarray, dy: np.ndarray, result: Result) -> None:
    fourier.wgrad(_NUMPY, request, fourier.Tile(1, *launch.tile), x, dy, _stored(result))


def _stored(result: Result) -> fourier.Store:
    """Blocks go to the result, as they are or rounded to the dtype that others are summed in."""

    def store(where: tuple[slice, ...], block: np.ndarray) -> None:
        result.store(where, block.astype(result.dtype))

    return store


# -- the table's entries ----------------------------------------------------------------------------


def _applies(request: Request, processor: Processor) -> str | None:
    if DTYPES[request.dtype].kind == "i":
        return "integers are exact, a Fourier transform is not"
    return None


def _plan(request: Request, processor: Processor) -> Schedule:
    # A spectrum and the arrays it is made from, which for complex cells are conjugated besides.
    cost = fourier.scratch_of(request, copies=3 if fourier.itemsize(request) == 8 else 4)
    bound = 4 * min(blocking.WORKSPACE, blocking.LIMIT)
    tile = fourier.tile_of(request, 1, cost, bound)
    cells = math.prod(fourier.Cut(request).lengths(tile.cells))
    workspace = cost(1, tile.channels, tile.images, cells)
    kernel = {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad}[request.op]
    axes = "c n cells" if request.op == "dgrad" else "k n cells"
    return Schedule(workspace, (Launch(kernel, axes, (tile.channels, tile.images, tile.cells)),))


def _estimate(request: Request, processor: Processor) -> float:
    """Transforms of every image, filter and result, and the products between them, window by window."""
    (launch,) = _plan(request, processor).launches
    problem, cut = request.problem, fourier.Cut(request)
    cells = math.prod(cut.lengths(launch.tile[-1]))
    windows = -(-cut.counts[cut.axis] // launch.tile[-1])
    c, k = problem.c // problem.groups, problem.k // problem.groups
    volumes = problem.groups * (windows * problem.n * (c + k) + c * k)
    products = problem.groups * windows * problem.n * c * k * cells
    return volumes * cells * math.log2(cells + 1) * 4e-9 + products * 4e-9 + 1e-4 * problem.groups


ENTRIES = {
    op: Algorithm("fft", _applies, _plan, _estimate, exact=False) for op in ("fprop", "wgrad", "dgrad")
}
