"""The convolution theorem with cuFFT, by `cupyx.scipy.fft`: see `fourier`, which has the mathematics.

For filters of hundreds of taps, whose cost it does not have. It is no kernel of ours: a schedule has one
`Transforms` in place of launches, which `launch` runs on CuPy's arrays. Beside transforms they take CuPy's
elementwise operations, so that cuFFT is all that has to be installed for it. It is not `exact`, therefore it
is taken by name only. cuFFT and elementwise operations add in an order of their own, always the same.

What is transformed at once keeps to WORKSPACE, but for the smallest block. CuPy keeps the plans of cuFFT with
their work areas, 16 for each GPU and thread, so these stay taken after a call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .. import fourier
from ..activations import ACTIVATIONS
from ..arrays import Array, canonical
from ..dtypes import DTYPES
from ..problem import Request
from ..table import Algorithm, Schedule
from .cost import COPIED, LAUNCH
from .device import Device
from .schedule import OPERANDS

WORKSPACE = 1 << 30
"""Bytes of scratch memory that a block keeps to, unless the smallest block needs more."""

LIMIT = 2**31
"""What cuFFT counts in 32 bits and so keeps below: the cells that are transformed at once."""

_PASS = 12
"""Base 2 logarithm of the length that cuFFT transforms in one pass over memory, about."""


@dataclass(frozen=True)
class Transforms:
    """All of a request, in blocks of a tile, by transforms of these lengths."""

    op: str
    tile: fourier.Tile
    lengths: tuple[int, ...]

    def __str__(self) -> str:
        tile, channels = self.tile, "c" if self.op == "dgrad" else "k"
        lengths = " x ".join(f"{length:,}" for length in self.lengths if length > 1) or "1"
        return (
            f"{self.op} by transforms of {lengths} cells in blocks of g{tile.groups} "
            f"{channels}{tile.channels} n{tile.images}, {tile.cells:,} cells of the result at a time"
        )


def run(library: fourier.Library, request: Request, work: Transforms, arrays: Mapping[str, Array]) -> None:
    """Do a request on arrays by role, with the library that they are of; `arrays` has the result's too."""
    a, b, out = OPERANDS[request.op]
    views = {role: canonical(request, role, arrays[role]) for role in (a, str(b), out)}
    accumulator, bias = DTYPES[request.dtype].accumulator, arrays.get("bias")

    def store(where: tuple[slice, ...], block: Array) -> None:
        """Bias, activation, the one rounding, and the addition to what is there."""
        place = views[out][where]
        block = block.astype(accumulator)
        if request.conjugate_sum:
            block = block.conj()
        if bias is not None:
            block += bias[where[1]].astype(accumulator)[:, None, None, None]
        if request.activation:
            block = ACTIVATIONS[request.activation].function(block, library.arrays)
        if request.accumulate:
            block += place.astype(accumulator)
        place[...] = block

    fourier.OPS[request.op](library, request, work.tile, views[a], views[str(b)], store)


# -- the table's entries ------------------------------------------------------------------------------


def _work(request: Request) -> tuple[Transforms, int]:
    """How a request is done, and in how many bytes.

    Beside a spectrum there are what it is made from, with zeros and without, and with conjugates of complex
    cells; what CuPy copies of a spectrum that is to be kept; and cuFFT's work area, as large again.
    """
    real = fourier.itemsize(request) == 8
    cost = fourier.scratch_of(request, copies=5 if real else 6)
    tile = fourier.tile_of(request, request.problem.groups, cost, WORKSPACE)
    lengths = fourier.Cut(request).lengths(tile.cells)
    workspace = cost(tile.groups, tile.channels, tile.images, math.prod(lengths))
    return Transforms(request.op, tile, lengths), workspace


def applies(request: Request, device: Device | None) -> str | None:
    if DTYPES[request.dtype].kind == "i":
        return "integers are exact, a Fourier transform is not"
    work, _ = _work(request)
    tile, (summed, _) = work.tile, fourier.channels_of(request)
    volumes = max(summed * tile.images, summed * tile.channels, tile.images * tile.channels)
    if tile.groups * volumes * math.prod(work.lengths) >= LIMIT:
        return "what is transformed at once has 2^31 cells or more"
    return None


def plan(request: Request, device: Device) -> Schedule:
    if 0 in request.shape(OPERANDS[request.op][2]):
        return Schedule(0, ())
    work, workspace = _work(request)
    return Schedule(workspace, (work,))


def estimate(request: Request, device: Device) -> float:
    """The time that memory, or double precision, takes: no device has been asked.

    Every transform reads and writes its cells a few times beside cuFFT's own passes, a product of spectra
    reads and writes them five times, at a copy's bandwidth. A transform of L cells is 2.5 L log2(L) FLOP, of
    complex cells twice as many. Each block takes the time of its launches.
    """
    work, _ = _work(request)
    problem, tile, cut = request.problem, work.tile, fourier.Cut(request)
    summed, made = fourier.channels_of(request)
    cells, item = math.prod(work.lengths), fourier.itemsize(request)
    windows = -(-max(cut.counts[cut.axis], 1) // tile.cells)
    transformed = problem.groups * (windows * problem.n * (summed + made) + summed * made)
    products = problem.groups * windows * problem.n * summed * made
    passes = 2 * math.ceil(math.log2(cells + 1) / _PASS) + 6
    size = item * cells * (passes * transformed + 5 * products)
    flop = (item // 8) * cells * (2.5 * math.log2(cells + 1) * transformed + 4 * products)
    blocks = -(-problem.groups // tile.groups) * -(-made // tile.channels)
    blocks *= -(-max(problem.n, 1) // tile.images) * windows
    terms = tile.images if request.op == "wgrad" else summed
    launches = blocks * (20 + 2 * terms)
    return max(size / (COPIED * device.bandwidth), flop / device.float64) + launches * LAUNCH


ENTRY = Algorithm("fft", applies, plan, estimate, exact=False, recorded=False)
