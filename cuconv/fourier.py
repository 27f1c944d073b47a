"""The convolution theorem, in blocks, on arrays of NumPy or CuPy: for long and large filters.

With the padded input and the filter (its taps spread by the dilation) transformed over L cells per axis,
L at least the padded extent so that nothing wraps around, the correlation and its gradients are

    fprop  Y = sum over c of X conj(W)
    dgrad  dX = sum over k of dY W
    wgrad  dW = sum over n of X conj(dY)

frequency by frequency, dY having zeros between its cells where the stride is above 1. The cost does not
grow with the filter. Transforms are done in double precision whatever the dtype, so for the narrower
dtypes the error is that of the final rounding. It is still not exact: a transform mixes all cells of an
image, so a zero comes out as a rounding error and one NaN or infinity spoils its whole image.

Blocks are of groups, channels of the result and images. Where the smallest is still too large, the longest
axis is cut into windows: the cells of the result that one window makes are read from its own cells of the
operand, as far as the filter reaches beyond them (overlap-save: Oppenheim and Schafer, Discrete-Time Signal
Processing, section 8.7.3). So L is that of a window, and a signal may be of any length.

A library is a namespace of arrays and one of transforms, which has `rfftn`, `irfftn`, `fftn` and `ifftn`.
Spectra are added up channel by channel, by elementwise operations alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .dtypes import DTYPES
from .problem import ConvProblem, Request

Array = Any
Cells = tuple[slice, slice, slice]
Store = Callable[[tuple[slice, ...], Array], None]
"""Takes where a block belongs in the result, and the block: in double precision, its own memory or a view."""

ALL = slice(None)


@dataclass(frozen=True)
class Library:
    """Arrays, and their transforms."""

    arrays: Any
    transforms: Any


@dataclass(frozen=True)
class Tile:
    """How much is done at once: groups, channels of each that the result has, images, and cells of the result
    along the axis that is cut.
    """

    groups: int
    channels: int
    images: int
    cells: int


# -- how problems are cut -----------------------------------------------------------------------------


class Cut:
    """The axis of a problem that windows are cut along, and how many cells of the result they are to make.

    dx is counted as it lies; in a padding mode other than zeros it is the padded dx, folded later.
    """

    def __init__(self, request: Request) -> None:
        problem = self.problem = request.problem.volumetric
        self.folds = request.op == "dgrad" and problem.padding_mode != "zeros"
        self.dgrad = request.op == "dgrad"
        self.axis = max(range(3), key=lambda axis: problem.padded[axis] - problem.reach[axis])
        self.counts = problem.output
        if self.dgrad:
            self.counts = problem.padded if self.folds else problem.input
        self.whole = tuple(map(fast_length, problem.padded))
        self.reach, self.stride = problem.reach[self.axis], problem.stride[self.axis]

    def lengths(self, cells: int) -> tuple[int, ...]:
        """Of the transforms, per axis, for windows that make so many cells of the result."""
        if cells >= self.counts[self.axis]:
            return self.whole
        length = cells + self.reach - 1 if self.dgrad else (cells - 1) * self.stride + self.reach
        lengths = list(self.whole)
        lengths[self.axis] = min(fast_length(length), self.whole[self.axis])
        return tuple(lengths)

    def fitted(self, cost: Callable[[int], int], bound: int) -> int:
        """How many cells windows are to make, the cost of transforms of so many cells being within a bound.

        A window is at least twice as long as what the filter reaches over.
        """
        whole = length = self.whole[self.axis]
        least, others = fast_length(2 * self.reach), math.prod(self.whole) // whole
        while length > least and cost(others * length) > bound:
            length = max(least, 1 << ((length - 1).bit_length() - 1))
        most = max(self.counts[self.axis], 1)
        if length >= whole:
            return most
        made = length - self.reach + 1 if self.dgrad else (length - self.reach) // self.stride + 1
        return min(made, most)

    def windows(self, cells: int, extents: Sequence[int] | None = None) -> Iterator[Cells]:
        """Which cells of the result are made one after the other, or of another array of these extents."""
        counts = self.counts if extents is None else extents
        tile = [max(extent, 1) for extent in counts]
        tile[self.axis] = cells
        d, h, w = (parts(*each) for each in zip(counts, tile, strict=True))
        return itertools.product(d, h, w)


Bytes = Callable[[int, int, int, int], int]
"""Of scratch memory for a block of so many groups, channels and images, transformed over so many cells."""


def tile_of(request: Request, groups: int, cost: Bytes, bound: int) -> Tile:
    """The largest block within the bound: fewer images first, then groups, then channels, then windows."""
    cut = Cut(request)
    cells = math.prod(cut.whole)
    images, groups = max(request.problem.n, 1), max(groups, 1)
    channels = max(channels_of(request)[1], 1)
    while images > 1 and cost(groups, channels, images, cells) > bound:
        images = -(-images // 2)
    while groups > 1 and cost(groups, channels, images, cells) > bound:
        groups = -(-groups // 2)
    while channels > 1 and cost(groups, channels, images, cells) > bound:
        channels = -(-channels // 2)
    # Arrays that are held whole must leave memory for windows: very short windows would take too long.
    held = cost(groups, channels, images, 0)
    room = max(bound - held, bound // 2)
    fitted = cut.fitted(lambda cells: cost(groups, channels, images, cells) - held, room)
    return Tile(groups, channels, images, fitted)


def scratch_of(request: Request, copies: int) -> Bytes:
    """The bytes of a block, where a transform and what it is made from are so many times its real cells.

    The spectrum of real cells has half of the frequencies, so it takes as much memory as they do.
    """
    cut, (summed, _) = Cut(request), channels_of(request)
    item = itemsize(request)
    # wgrad holds two: a sum of spectra, and another one that is added to it.
    sums = 2 if request.op == "wgrad" else 1
    inside = math.prod(cut.problem.input) if cut.folds else 0

    def cost(groups: int, channels: int, images: int, cells: int) -> int:
        transformed = images * summed + sums * channels * summed + images * channels
        return groups * item * (copies * cells * transformed + images * channels * inside)

    return cost


def channels_of(request: Request) -> tuple[int, int]:
    """How many channels of each group are transformed beside those of the result, and those.

    The result of wgrad has filters for channels, and what they are of beside them.
    """
    problem = request.problem
    c, k = problem.c // problem.groups, problem.k // problem.groups
    return (k, c) if request.op == "dgrad" else (c, k)


def itemsize(request: Request) -> int:
    """Bytes of a cell that is transformed, real or complex."""
    return 16 if DTYPES[request.dtype].kind == "c" else 8


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


def parts(extent: int, step: int) -> Iterator[slice]:
    """The slices along one axis."""
    return (slice(start, min(start + step, extent)) for start in range(0, extent, step))


# -- padding ------------------------------------------------------------------------------------------

Run = tuple[slice, slice]
"""Neighbouring cells of a window, and those of the input that are seen there: as many, or one by all."""


def runs(low: int, count: int, extent: int, mode: str) -> list[Run]:
    """What a window of so many cells sees of an axis of the input, from coordinate `low` on, zeros apart."""
    end = low + count
    inner = (max(low, 0), min(end, extent))
    found = []
    if inner[0] < inner[1]:
        found.append((slice(inner[0] - low, inner[1] - low), slice(*inner)))
    if mode == "zeros":
        return found
    if mode == "replicate" or extent == 1:
        if low < 0:
            found.append((slice(0, min(end, 0) - low), slice(0, 1)))
        if end > extent:
            found.append((slice(max(low, extent) - low, count), slice(extent - 1, extent)))
        return found
    # The axis repeats itself after so many cells, every second time in reverse unless it is circular.
    period = extent - 1 if mode == "reflect" else extent
    for start, stop in ((low, min(end, 0)), (max(low, extent), end)):
        while start < stop:
            turn, cell = divmod(start, period)
            length = min(period - cell, stop - start)
            if turn % 2 and mode != "circular":
                first = extent - 1 - cell
                here = slice(first, first - length if first >= length else None, -1)
            else:
                here = slice(cell, cell + length)
            found.append((slice(start - low, start - low + length), here))
            start += length
    return found


def _all_runs(problem: ConvProblem, lows: Sequence[int], counts: Sequence[int]) -> list[tuple[Run, ...]]:
    """The runs of a window of the padded input, along all three axes, given by padded coordinates."""
    each = (
        runs(low - before, count, extent, problem.padding_mode)
        for low, count, extent, (before, _) in zip(lows, counts, problem.input, problem.padding, strict=True)
    )
    return list(itertools.product(*each))


# -- what is transformed ------------------------------------------------------------------------------


class Transform:
    """The forward and inverse transforms of one request, real or complex, and the arrays that they take.

    Arrays that are transformed have six axes: two of channels beside groups or images, and three spatial.
    """

    def __init__(self, library: Library, request: Request, tile: Tile) -> None:
        self.xp, self.transforms = library.arrays, library.transforms
        self.request, self.tile, self.cut = request, tile, Cut(request)
        self.problem = self.cut.problem
        self.real = DTYPES[request.dtype].kind == "f"
        self.dtype = "float64" if self.real else "complex128"
        self.lengths = self.cut.lengths(tile.cells)
        # Leading axes of one cell are left out: transforms of neighbouring axes up to the last are one call.
        first = next((axis for axis in range(3) if self.lengths[axis] > 1), 2)
        self.axes = tuple(range(3 + first, 6))
        self.spectral = self.lengths
        if self.real:
            self.spectral = (*self.lengths[:2], self.lengths[2] // 2 + 1)

    def forward(self, a: Array) -> Array:
        """The spectrum of an array, zeros behind its cells."""
        if 0 in a.shape:
            return self.zeros(a.shape[:3])
        transform = self.transforms.rfftn if self.real else self.transforms.fftn
        return transform(a.astype(self.dtype, copy=False), s=self.lengths[self.axes[0] - 3 :], axes=self.axes)

    def mirrored(self, a: Array) -> Array:
        """The spectrum of the cells in reverse about cell 0, which makes a product a correlation."""
        spectrum = self.forward(a.conj())
        return self.xp.conjugate(spectrum, out=spectrum)

    def inverse(self, spectrum: Array) -> Array:
        transform = self.transforms.irfftn if self.real else self.transforms.ifftn
        return transform(spectrum, s=self.lengths[self.axes[0] - 3 :], axes=self.axes)

    def zeros(self, outer: Sequence[int]) -> Array:
        """Spectra of nothing."""
        return self.xp.zeros((*outer, *self.spectral), "complex128")

    def spread(self, a: Array, steps: Sequence[int]) -> Array:
        """The cells of an array (outer, inner, D, H, W), `steps` apart, with zeros between."""
        if set(steps) == {1}:
            return a
        extents = [(count - 1) * step + 1 for count, step in zip(a.shape[2:], steps, strict=True)]
        apart = self.xp.zeros((*a.shape[:2], *extents), self.dtype)
        apart[(ALL, ALL, *(slice(None, None, step) for step in steps))] = a
        return apart

    def window(self, x: Array, cells: Cells) -> Array:
        """What cells of y see of the images, from the first one's first tap on."""
        problem = self.problem
        each = list(zip(cells, problem.stride, problem.reach, strict=True))
        lows = [part.start * stride for part, stride, _ in each]
        counts = [(part.stop - part.start - 1) * stride + reach for part, stride, reach in each]
        found = _all_runs(problem, lows, counts)
        if len(found) == 1:
            there, here = zip(*found[0], strict=True)
            if all(part == slice(0, count) for part, count in zip(there, counts, strict=True)):
                seen = x[(ALL, ALL, *here)]
                if seen.shape[2:] == tuple(counts):
                    return seen
        window = self.xp.zeros((*x.shape[:2], *counts), self.dtype)
        for run in found:
            there, here = zip(*run, strict=True)
            window[(ALL, ALL, *there)] = x[(ALL, ALL, *here)]
        return window

    def filters(self, w: Array, groups: slice, channels: slice) -> Array:
        """The filters of a block of the result, or in dgrad those that it is summed over, with their taps
        spread: (groups, K/groups, C/groups, ...).
        """
        each = self.problem.k // self.problem.groups
        if self.cut.dgrad:
            taken = w[slice(groups.start * each, groups.stop * each), channels]
        else:
            taken = w[of_groups(groups, channels, each)]
        if self.request.conjugate:
            taken = taken.conj()
        spread = self.spread(taken, self.problem.dilation)
        count = groups.stop - groups.start
        return spread.reshape(count, spread.shape[0] // count, *spread.shape[1:])

    def by_group(self, a: Array, groups: slice) -> Array:
        """An array (N, channels, D, H, W) as (N, groups, channels of each, D, H, W)."""
        count = groups.stop - groups.start
        return a.reshape(a.shape[0], count, a.shape[1] // count, *a.shape[2:])

    def summed(self, a: Array, b: Array, axis: int) -> Array:
        """The sum along an axis of the products of two spectra that broadcast, in order."""
        total = term = None
        for index in range(a.shape[axis]):
            place = (ALL,) * axis + (index,)
            if total is None:
                total = a[place] * b[place]
                continue
            term = self.xp.multiply(a[place], b[place], out=term)
            total += term
        if total is None:
            shape = [max(each) for each in zip(a.shape[:4], b.shape[:4], strict=True)]
            return self.zeros([extent for i, extent in enumerate(shape) if i != axis])
        return total

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Groups, and channels of each that the result has."""
        made = channels_of(self.request)[1]
        return itertools.product(
            parts(self.problem.groups, self.tile.groups), parts(made, self.tile.channels)
        )

    def images(self) -> Iterator[slice]:
        return parts(self.problem.n, self.tile.images)

    def every(self, array: Array, steps: Sequence[int], counts: Sequence[int]) -> Array:
        """The first cells of a result at these steps."""
        places = (slice(0, (count - 1) * step + 1, step) for step, count in zip(steps, counts, strict=True))
        return array[(..., *places)]


def of_groups(groups: slice, channels: slice, each: int) -> slice:
    """A part of the channels of one group, or all channels of some, of so many each."""
    return slice(groups.start * each + channels.start, (groups.stop - 1) * each + channels.stop)


def _flat(block: Array) -> Array:
    """A block (N, groups, channels, D, H, W) as (N, channels, D, H, W)."""
    return block.reshape(block.shape[0], block.shape[1] * block.shape[2], *block.shape[3:])


def fprop(library: Library, request: Request, tile: Tile, x: Array, w: Array, store: Store) -> None:
    """Y = sum over c of X conj(W), then the cells at the stride."""
    transform = Transform(library, request, tile)
    problem, (read, made) = transform.problem, channels_of(request)
    for groups, channels in transform.blocks():
        filters = transform.mirrored(transform.filters(w, groups, channels))[None]
        outputs = of_groups(groups, channels, made)
        for n in transform.images():
            images = x[n, of_groups(groups, slice(0, read), read)]
            for cells in transform.cut.windows(tile.cells):
                seen = transform.by_group(transform.window(images, cells), groups)
                spectra = transform.forward(seen)[:, :, None]
                y = transform.inverse(transform.summed(spectra, filters, axis=3))
                y = transform.every(y, problem.stride, [part.stop - part.start for part in cells])
                store((n, outputs, *cells), _flat(y))


def dgrad(library: Library, request: Request, tile: Tile, dy: Array, w: Array, store: Store) -> None:
    """dX = sum over k of dY W, folded from the padded input onto the input."""
    transform = Transform(library, request, tile)
    problem, (read, made) = transform.problem, channels_of(request)
    before = [0 if transform.cut.folds else pair[0] for pair in problem.padding]
    for groups, channels in transform.blocks():
        filters = transform.forward(transform.filters(w, groups, channels))[None]
        inputs = of_groups(groups, channels, made)
        for n in transform.images():
            grad = dy[n, of_groups(groups, slice(0, read), read)]
            total = None
            if transform.cut.folds:
                shape = (n.stop - n.start, inputs.stop - inputs.start, *problem.input)
                total = library.arrays.zeros(shape, transform.dtype)
            for cells in transform.cut.windows(tile.cells):
                lows = [part.start + shift for part, shift in zip(cells, before, strict=True)]
                counts = [part.stop - part.start for part in cells]
                dx = _gradient(transform, grad, filters, groups, lows, counts)
                if total is None:
                    store((n, inputs, *cells), dx)
                else:
                    _fold(problem, total, dx, lows)
            if total is None:
                continue
            for cells in transform.cut.windows(tile.cells, problem.input):
                store((n, inputs, *cells), total[(ALL, ALL, *cells)])


def _gradient(
    transform: Transform,
    dy: Array,
    filters: Array,
    groups: slice,
    lows: Sequence[int],
    counts: Sequence[int],
) -> Array:
    """The gradient of some cells of the padded input: of so many, from `lows` on."""
    problem = transform.problem
    seen, source, target = [], [], []
    for axis, (low, count) in enumerate(zip(lows, counts, strict=True)):
        stride, reach = problem.stride[axis], problem.reach[axis]
        # The cells of dy whose taps reach there, and where those begin.
        first = max(-(-(low - reach + 1) // stride), 0)
        last = max(min(-(-(low + count) // stride), problem.output[axis]), first)
        start = first * stride
        begin = min(max(low, start), low + count)
        end = max(min(low + count, start + transform.lengths[axis]), begin)
        seen.append(slice(first, last))
        source.append(slice(begin - start, end - start))
        target.append(slice(begin - low, end - low))
    channels = filters.shape[1] * filters.shape[3]
    empty = any(part.start >= part.stop for part in (*seen, *source))
    if not empty:
        spread = transform.spread(dy[(ALL, ALL, *seen)], problem.stride)
        spectra = transform.forward(transform.by_group(spread, groups))[:, :, :, None]
        dx = _flat(transform.inverse(transform.summed(spectra, filters, axis=2))[(..., *source)])
        if dx.shape[2:] == tuple(counts):
            return dx
    whole = transform.xp.zeros((dy.shape[0], channels, *counts), transform.dtype)
    if not empty:
        whole[(ALL, ALL, *target)] = dx
    return whole


def _fold(problem: ConvProblem, dx: Array, window: Array, lows: Sequence[int]) -> None:
    """Add the gradient of some cells of the padded input to those of the input that are seen there."""
    for run in _all_runs(problem, lows, window.shape[2:]):
        there, here = zip(*run, strict=True)
        part, target = window[(ALL, ALL, *there)], dx[(ALL, ALL, *here)]
        for axis in range(2, 5):
            if target.shape[axis] < part.shape[axis]:
                part = part.sum(axis=axis, keepdims=True)
        target += part


def wgrad(library: Library, request: Request, tile: Tile, x: Array, dy: Array, store: Store) -> None:
    """dW = sum over n of X conj(dY), then the cells at the dilation."""
    transform = Transform(library, request, tile)
    problem, (c, k) = transform.problem, channels_of(request)
    for groups, channels in transform.blocks():
        outputs = of_groups(groups, channels, k)
        total = transform.zeros((groups.stop - groups.start, channels.stop - channels.start, c))
        for n in transform.images():
            images = x[n, of_groups(groups, slice(0, c), c)]
            for cells in transform.cut.windows(tile.cells):
                seen = transform.by_group(transform.window(images, cells), groups)
                seen = seen.conj() if request.conjugate else seen
                spread = transform.spread(dy[(n, outputs, *cells)], problem.stride)
                grad = transform.mirrored(transform.by_group(spread, groups))
                seen = transform.forward(seen)
                total += transform.summed(seen[:, :, None], grad[:, :, :, None], axis=0)
        if 0 in total.shape:
            continue
        dw = transform.every(transform.inverse(total), problem.dilation, problem.filter)
        store((outputs, ALL, ALL, ALL, ALL), dw.reshape(-1, *dw.shape[2:]))


OPS = {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad}
