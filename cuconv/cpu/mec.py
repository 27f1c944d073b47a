"""fprop and dgrad lowered along W only: memory-efficient convolution (MEC).

One output row of all images of a block is a matrix product,

    fprop  Y[k, (n, q)] = sum over (r, s, c) of  W[k, (r, s, c)] X[(r, s, c), (n, q)]

whose X is the cells of the rows r of the input that the taps s along W see for the outputs q. Each row of
the input is lowered once, S times its size. As rows lie next to each other in memory, those of one output
row are its matrix: the taps along H cost no copies, where `gemm` makes R of them, and what is copied are
runs of whole rows. Along D, and along H if it is dilated, the taps' products are added up. dgrad is as
fprop, phase by phase as in `gemm`.

Source: Minsik Cho and Daniel Brand, MEC: Memory-efficient Convolution for Deep Neural Network, 2017.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from ..problem import Request
from ..processor import Processor
from ..table import Algorithm
from . import gemm
from .blocking import Launch, Scratch, fit, lengths, while_long
from .lowering import Axes, Rows, rows_elements, too_many_residues, windows_and_columns, within
from .result import Result, accumulator

COLUMNS = 256
"""Output cells of a product, of several images or planes, up to which more of them make it faster."""


SHARE = 0.25
"""Of the memory that blocks may have."""


def fprop(request: Request, launch: Launch, x: np.ndarray, w: np.ndarray, result: Result) -> None:
    """Y = W X, a block of images and output rows at a time."""
    gemm.fprop(request, launch, x, w, result, by_rows)


def dgrad(request: Request, launch: Launch, dy: np.ndarray, w: np.ndarray, result: Result) -> None:
    """dX = W' Y' for the residues of the stride, a block of images and input rows at a time."""
    gemm.dgrad(request, launch, dy, w, result, by_rows)


def by_rows(
    a: np.ndarray,
    axes: Axes,
    cells: Sequence[slice],
    mode: str,
    filters: np.ndarray,
    result: Result,
    places: gemm.Places,
    scratch: Scratch,
) -> None:
    """Multiply matrices (groups, taps C/groups, K/groups) by what each output row sees, and store it."""
    groups, terms, columns = filters.shape
    k = (len(places), columns // len(places))
    if not terms:
        nothing = scratch("product", (a.shape[0], groups, *k, *lengths(cells)), filters.dtype)
        nothing[...] = 0
        gemm.store_by_place(nothing, places, result)
        return
    rows, count = Rows(a, axes, cells, groups, mode, filters.dtype, scratch), lengths(cells)[1]
    down, parts = rows.axes[1].stride, _parts(rows.axes)
    total = scratch("product", (groups, *rows.outside, count, columns, rows.columns), filters.dtype)
    more = scratch("more", total.shape, total.dtype) if len(parts) > 1 else total
    size = terms // len(parts)
    for index, (t, r) in enumerate(parts):
        part = filters[:, None, None, None, index * size : (index + 1) * size].swapaxes(-1, -2)
        np.matmul(part, rows.seen(t, r, count, down, size), out=more if index else total)
        if index:
            np.add(total, more, out=total)
    gemm.store_by_place(rows.cells(total.reshape(*total.shape[:4], *k, rows.columns), 1), places, result)


def _parts(axes: Axes) -> list[tuple[int, int]]:
    """The taps along D and H that begin a product each; where those along H are neighbours, one has all."""
    depth, height, _ = axes
    return list(itertools.product(range(depth.taps), range(1 if height.step == 1 else height.taps)))


# -- the table's entries ----------------------------------------------------------------------------


def _applies(request: Request, processor: Processor) -> str | None:
    if reason := too_many_residues(request):
        return reason
    windows = [math.prod(axis.taps for axis in axes) for axes, _ in windows_and_columns(request)]
    return None if max(windows, default=0) > 1 else "windows have one cell: nothing is to be lowered"


def _elements(n: int, c: int, columns: int, counts: Sequence[int], axes: Axes, mode: str, groups: int) -> int:
    """Scratch elements that `by_rows` needs at the most, its products included."""
    products = columns * n * math.prod(counts) * min(2, max(1, len(_parts(within(axes, counts)))))
    return c * rows_elements(n, counts, axes, mode) + products


def _shape(extents: Sequence[int], cost: gemm.Cost, threads: int) -> tuple[int, ...]:
    """As few images and planes as make long products, then fewer rows; then fewer of all."""
    tile = fit(extents, while_long(cost, (0, 1, 3), COLUMNS), threads, order=(0, 1), share=SHARE, parts=1)
    return fit(tile, cost, threads, order=(2, 1, 0, 3), share=SHARE)


def _estimate(request: Request, processor: Processor) -> float:
    """The passes over the images, lowering, products, and storing, by bytes and rows; the calls."""
    problem, item = request.problem.volumetric, accumulator(request).itemsize
    seconds = 5e-5 * problem.groups**0.5
    first = request.layout == "channels_first"
    seconds += first * gemm.filters_time(request)
    strided, slow = 0 if first else 1e-8, 1.1 if request.op == "dgrad" else 1.0
    channels = gemm.channels_read(request)
    for axes, columns in windows_and_columns(request):
        counts, parts = [axis.cells for axis in axes], max(len(_parts(axes)), 1)
        cells = math.prod(counts)
        terms = math.prod(axis.taps for axis in axes) * channels // problem.groups
        lowered = channels * rows_elements(problem.n, counts, axes, "zeros")
        stored = problem.n * cells * columns
        seconds += (lowered * (1 if axes[2].stride == 1 else 2) + stored * (3 * parts - 1)) * item * 3e-11
        seconds += (lowered + stored) / max(counts[2], 1) * 6e-9
        seconds += problem.n * cells * (channels + columns) * strided
        long = counts[2] * (problem.n if counts[0] == 1 else counts[0])
        narrow = slow + 20 / max(min(long, COLUMNS), 1)
        each = gemm.product_time(request, problem.n * cells, terms // parts, columns)
        if columns == problem.groups:
            each += stored * 8e-9  # matrices of one row
        seconds += gemm.reading_time(request, problem.n * cells, terms, columns)
        seconds += parts * (narrow * each + problem.groups * counts[0] * counts[1] * 1e-6)
    return seconds / processor.threads


_schedule = partial(gemm.schedule, elements=_elements, shape=_shape)

ENTRIES = {
    "fprop": Algorithm("mec", _applies, partial(_schedule, kernel=fprop), _estimate),
    "dgrad": Algorithm("mec", _applies, partial(_schedule, kernel=dgrad), _estimate),
}
