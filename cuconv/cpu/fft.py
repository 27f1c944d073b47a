"""The convolution theorem, for long and large filters and circular problems (NumPy's pocketfft).

With the padded input and the filter (its taps spread by the dilation) transformed over L cells per axis,
L at least the padded extent so that nothing wraps around, the correlation and its gradients are

    fprop  Y = sum over c of X conj(W)
    dgrad  dX = sum over k of dY W
    wgrad  dW = sum over n of X conj(dY)

frequency by frequency, dY having zeros between its cells where the stride is above 1. The cost does not
grow with the filter. Transforms are done in double precision whatever the dtype, so for the narrower
dtypes the error is that of the final rounding. It is still not `exact`: a transform mixes all cells of an
image, so a zero comes out as a rounding error and one NaN or infinity spoils its whole image. Therefore
it is taken by name only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.fft  # now: NumPy would on first use, under a lock that a forked process may never get

from ..dtypes import DTYPES
from ..problem import Request
from ..processor import Processor
from ..table import Algorithm, Schedule
from .blocking import ALL, Launch, Scratch, blocks, fit
from .blockwise import all_of, channels_of, channels_of_group
from .padding import CHANNELS_FIRST, fold, gather
from .result import Result

_AXES = (2, 3, 4)


class _Transform:
    """The forward and inverse transforms of one problem, real or complex."""

    def __init__(self, request: Request) -> None:
        self.problem = request.problem.volumetric
        self.real = DTYPES[request.dtype].kind == "f"
        self.dtype = np.dtype(np.float64 if self.real else np.complex128)
        self.shape = tuple(map(fast_length, self.problem.padded))

    def forward(self, a: np.ndarray) -> np.ndarray:
        """The spectrum of (outer, inner, *cells), zeros behind its cells."""
        transform = np.fft.rfftn if self.real else np.fft.fftn
        return transform(a.astype(self.dtype, copy=False), s=self.shape, axes=_AXES)

    def mirrored(self, a: np.ndarray) -> np.ndarray:
        """The spectrum of the cells in reverse about cell 0, which makes a product a correlation."""
        return self.forward(a.conj()).conj()

    def inverse(self, spectrum: np.ndarray) -> np.ndarray:
        transform = np.fft.irfftn if self.real else np.fft.ifftn
        return transform(spectrum, s=self.shape, axes=_AXES)

    def input(self, x: np.ndarray) -> np.ndarray:
        """The spectrum of the padded input."""
        return self.forward(
            gather(
                x,
                [-before for before, _ in self.problem.padding],
                self.problem.padded,
                self.problem.padding_mode,
                self.dtype,
                Scratch(),
                CHANNELS_FIRST,
            )
        )

    def spread(self, a: np.ndarray, steps: Sequence[int]) -> np.ndarray:
        """The cells of `a`, `steps` apart, with zeros between."""
        extents = [(count - 1) * step + 1 for count, step in zip(a.shape[2:], steps, strict=True)]
        apart = np.zeros((*a.shape[:2], *extents), self.dtype)
        apart[(ALL, ALL, *(slice(None, None, step) for step in steps))] = a
        return apart


def fast_length(extent: int) -> int:
    """The next length at or above `extent` that has no prime factor above 7."""
    bits = extent.bit_length()
    best = 1 << bits
    for fives, sevens in itertools.product(range(bits // 2 + 1), range(bits // 2 + 1)):
        product = 5**fives * 7**sevens
        while product < best:
            # Twos for what is missing.
            length = product << (-(-extent // product) - 1).bit_length()
            best = min(best, length)
            product *= 3
    return best


def _every(step: int, count: int) -> slice:
    return slice(0, (count - 1) * step + 1, step)


def fprop(request: Request, launch: Launch, x: np.ndarray, w: np.ndarray, result: Result) -> None:
    """Y = sum over c of X conj(W), then the cells at the stride."""
    transform = _Transform(request)
    problem = transform.problem
    keep = tuple(map(_every, problem.stride, problem.output))

    for g, k, n in blocks(_extents(request), (1, *launch.tile)):
        outputs = channels_of(g, k, problem.k // problem.groups)
        filters = w[outputs].conj() if request.conjugate else w[outputs]
        filters = transform.mirrored(transform.spread(filters, problem.dilation))
        images = transform.input(x[n, all_of(g, problem.c // problem.groups)])
        product = np.einsum("nc...,kc...->nk...", images, filters)
        y = transform.inverse(product)[(ALL, ALL, *keep)]
        result.store((n, outputs, ALL, ALL, ALL), y.astype(result.dtype))


def dgrad(request: Request, launch: Launch, dy: np.ndarray, w: np.ndarray, result: Result) -> None:
    """dX = sum over k of dY W, folded from the padded input onto the input."""
    transform = _Transform(request)
    problem = transform.problem
    inside = tuple(slice(0, extent) for extent in problem.padded)

    for g, c, n in blocks(_extents(request), (1, *launch.tile)):
        outputs = all_of(g, problem.k // problem.groups)
        filters = w[outputs, c].conj() if request.conjugate else w[outputs, c]
        filters = transform.forward(transform.spread(filters, problem.dilation))
        grad = transform.forward(transform.spread(dy[n, outputs], problem.stride))
        product = np.einsum("nk...,kc...->nc...", grad, filters)
        dx = fold(transform.inverse(product)[(ALL, ALL, *inside)], problem)
        inputs = channels_of(g, c, problem.c // problem.groups)
        result.store((n, inputs, ALL, ALL, ALL), dx.astype(result.dtype))


def wgrad(request: Request, launch: Launch, x: np.ndarray, dy: np.ndarray, result: Result) -> None:
    """dW = sum over n of X conj(dY), then the cells at the dilation."""
    transform = _Transform(request)
    problem = transform.problem
    keep = tuple(map(_every, problem.dilation, problem.filter))

    def spectrum(n: slice, k: slice, inputs: slice) -> np.ndarray:
        images = x[n, inputs].conj() if request.conjugate else x[n, inputs]
        grad = transform.mirrored(transform.spread(dy[n, k], problem.stride))
        return np.einsum("nk...,nc...->kc...", grad, transform.input(images))

    for g, k in blocks(_extents(request)[:2], (1, launch.tile[0])):
        inputs = all_of(g, problem.c // problem.groups)
        outputs = channels_of(g, k, problem.k // problem.groups)
        # No image at all sums to zero, of the spectrum's shape.
        total = spectrum(slice(0, 0), outputs, inputs)
        for (n,) in blocks((problem.n,), launch.tile[1:]):
            total += spectrum(n, outputs, inputs)
        dw = transform.inverse(total)[(ALL, ALL, *keep)]
        result.store((outputs, ALL, ALL, ALL, ALL), dw.astype(result.dtype))


def _extents(request: Request) -> tuple[int, int, int]:
    """What blocks cut: groups, channels of each that the result has, and images; the others are whole."""
    _, made = channels_of_group(request)
    return request.problem.groups, made, request.problem.n


# -- the table's entries ----------------------------------------------------------------------------


def _applies(request: Request, processor: Processor) -> str | None:
    if DTYPES[request.dtype].kind == "i":
        return "integers are exact, a Fourier transform is not"
    return None


def _plan(request: Request, processor: Processor) -> Schedule:
    transform = _Transform(request)
    summed, _ = channels_of_group(request)
    # A spectrum and the arrays it is made from, which for complex cells are conjugated besides. The
    # spectrum of real cells has half of the frequencies, so it takes as much memory as they do.
    copies = 3 if transform.real else 4
    volume = copies * math.prod(transform.shape) * transform.dtype.itemsize

    # wgrad has one sum of spectra beside another that is to be added.
    sums = 2 if request.op == "wgrad" else 1

    def cost(channels: int, n: int) -> int:
        return volume * (n * summed + (sums * channels) * summed + n * channels)

    tile = fit(_extents(request)[1:], cost, share=4, order=(1, 0))
    kernel = {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad}[request.op]
    return Schedule(cost(*tile), (Launch(kernel, "c n" if request.op == "dgrad" else "k n", tile),))


def _estimate(request: Request, processor: Processor) -> float:
    """Transforms of every image, filter and result, and the products between them."""
    transform = _Transform(request)
    problem = transform.problem
    cells = math.prod(transform.shape)
    c, k = problem.c // problem.groups, problem.k // problem.groups
    volumes = problem.groups * (problem.n * (c + k) + c * k)
    products = problem.groups * problem.n * c * k * cells
    return volumes * cells * math.log2(cells + 1) * 4e-9 + products * 4e-9 + 1e-4 * problem.groups


ENTRIES = {
    "fprop": Algorithm("fft", _applies, _plan, _estimate, exact=False),
    "wgrad": Algorithm("fft", _applies, _plan, _estimate, exact=False),
    "dgrad": Algorithm("fft", _applies, _plan, _estimate, exact=False),
}
