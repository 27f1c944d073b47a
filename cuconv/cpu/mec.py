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
from .blocking import Launch, Scratch, block_count, fit, lengths, while_long
from .cost import Cost, Cut, estimate, longest
from .lowering import Rows, columns_inside, rows_elements
from .products import matmul
from .result import Result
from .windows import Axes, too_many_residues, windows_and_columns, within

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
    down, parts = rows.axes[1].stride, list(itertools.product(*map(range, _parts(rows.axes))))
    total = scratch("product", (groups, *rows.outside, count, columns, rows.columns), filters.dtype)
    more = scratch("more", total.shape, total.dtype) if len(parts) > 1 else total
    size = terms // len(parts)
    for index, (t, r) in enumerate(parts):
        part = filters[:, None, None, None, index * size : (index + 1) * size].swapaxes(-1, -2)
        matmul(part, rows.seen(t, r, count, down, size), more if index else total)
        if index:
            np.add(total, more, out=total)
    gemm.store_by_place(rows.cells(total.reshape(*total.shape[:4], *k, rows.columns), 1), places, result)


def _parts(axes: Axes) -> tuple[int, int]:
    """How many taps along D and H begin a product each; where those along H are neighbours, one has all."""
    depth, height, _ = axes
    return depth.taps, 1 if height.step == 1 else height.taps


# -- the table's entries ----------------------------------------------------------------------------


def _applies(request: Request, processor: Processor) -> str | None:
    if reason := too_many_residues(request):
        return reason
    windows = [math.prod(axis.taps for axis in axes) for axes, _ in windows_and_columns(request)]
    return None if max(windows, default=0) > 1 else "windows have one cell: nothing is to be lowered"


def _elements(n: int, c: int, columns: int, counts: Sequence[int], axes: Axes, mode: str, groups: int) -> int:
    """Scratch elements that `by_rows` needs at the most, its products included."""
    products = columns * n * math.prod(counts) * min(2, max(1, math.prod(_parts(within(axes, counts)))))
    return c * rows_elements(n, counts, axes, mode) + products


def _shape(extents: Sequence[int], cost: gemm.Bytes, threads: int) -> tuple[int, ...]:
    """As few images and planes as make long products, then fewer rows; then fewer of all."""
    tile = fit(extents, while_long(cost, (0, 1, 3), COLUMNS), threads, order=(0, 1), share=SHARE, parts=1)
    return fit(tile, cost, threads, order=(2, 1, 0, 3), share=SHARE)


def _cost(request: Request, processor: Processor) -> Cost:
    """Gathering, lowering along W, products and their sums, storing."""
    problem, groups = request.problem.volumetric, request.problem.groups
    (launch,) = _schedule(request, processor, None).launches
    cost, channels = Cost(request, launch), gemm.channels_read(request)
    cost.megabytes("copied", 2 * math.prod(problem.w_shape()) + gemm.unmet_elements(request))
    images = launch.tile[-4]
    for axes, columns in windows_and_columns(request):
        cut = Cut(axes, launch.tile[-3:])
        blocks = cut.blocks * block_count((problem.n,), (images,))
        parts, made = max(math.prod(_parts(within(axes, cut.counts))), 1), problem.n * cut.cells * columns
        cost.share(blocks)
        places = columns // gemm.result_channels(request)
        cost.add("call", blocks * (groups * places + 2 * parts) + 8 * places)
        cost.gather(problem.n * channels, cut, channels, blocks)
        lowered = problem.n * channels * cut.read / max(cut.reads[2], 1) * axes[2].taps * cut.width
        run = longest(cut.width, axes[0].read(cut.counts[0]), min(images, problem.n), channels // groups)
        cost.copy(lowered, run, axes[2].within(cut.width).stride == 1)
        long = cut.width * math.prod(columns_inside(min(images, problem.n), axes[0].within(cut.counts[0])))
        terms = cut.taps * channels // groups / parts
        cost.product(made * parts / (columns // groups * long), columns // groups, terms, long)
        cost.megabytes("copied", (parts - 1) * made)
        cost.store(made, cut.row, columns // places, columns // places // groups, stride=cost.apart)
    return cost


_schedule = partial(gemm.schedule, elements=_elements, shape=_shape)

ENTRIES = {
    "fprop": Algorithm("mec", _applies, partial(_schedule, kernel=fprop), estimate(_cost)),
    "dgrad": Algorithm("mec", _applies, partial(_schedule, kernel=dgrad), estimate(_cost)),
}
