"""fprop and wgrad by columns, filters as they are: for few cells of many channels.

    fprop  Y = W X        wgrad  dW = dY X^T

W is the filter's own memory, a row per output channel. X has a row per input channel and tap, in the order of
those rows, and a column per output cell. `gemm` copies windows in longer runs, but brings the filter into
another order first; where there are fewer cells than output channels, that is the larger part of the work.
`col2im` is the same for dgrad.
"""

from __future__ import annotations

import math

import numpy as np

from ..problem import ConvProblem, Request
from ..processor import Processor, spread
from ..table import Algorithm, Schedule
from .blocking import ALL, Launch, Scratch, block_count, blocks, fit, lengths, while_long, workers
from .cost import Cost, Cut, estimate, longest
from .lowering import arranged, by_group, lower_columns, lowered_elements
from .products import for_blas, long_product, matmul, piece_elements
from .result import Result, accumulator, finishing_blocks
from .windows import windows_of, within

FEW = 1024
"""Output cells per thread below which threads share the output channels and not the cells."""


def fprop(request: Request, launch: Launch, x: np.ndarray, w: np.ndarray, result: Result) -> None:
    """Y = W X, a block of images, groups, output channels and output cells at a time."""
    problem, dtype = request.problem.volumetric, accumulator(request)
    axes, scratch = windows_of(problem), Scratch()
    c, k = problem.c // problem.groups, problem.k // problem.groups
    filters = arranged(w, 0, dtype, launch.threads).reshape(problem.groups, k, c * math.prod(problem.filter))

    def block(n: slice, groups: slice, outputs: slice, *cells: slice) -> None:
        images, g, count = lengths((n, groups, outputs))
        inputs = slice(groups.start * c, groups.stop * c)
        columns = lower_columns(x[n, inputs], axes, cells, g, problem.padding_mode, dtype, scratch)
        product = scratch("product", (g, count, columns.shape[-1]), dtype)
        matmul(filters[groups, outputs], columns, product)
        y = product.reshape(g, count, images, *lengths(cells)).swapaxes(1, 2)
        for group, made in enumerate(y, groups.start):
            result.store((n, _channels(problem, group, outputs), *cells), made)

    spread(block, blocks((problem.n, problem.groups, k, *problem.output), launch.tile), launch.threads)


def wgrad(request: Request, launch: Launch, x: np.ndarray, dy: np.ndarray, result: Result) -> None:
    """dW = dY X^T for blocks of groups and output channels, summed over images and output cells in order."""
    problem, dtype = request.problem.volumetric, accumulator(request)
    axes, scratch = windows_of(problem), Scratch()
    c, k, taps = problem.c // problem.groups, problem.k // problem.groups, math.prod(problem.filter)
    images, groups_tile, outputs_tile, *cells_tile = launch.tile

    def part(groups: slice, outputs: slice) -> None:
        g, count = lengths((groups, outputs))
        inputs = slice(groups.start * c, groups.stop * c)
        target = result.matrix(_channels(problem, groups.start, outputs)) if g == 1 else None
        total = scratch("total", (g, count, c * taps), dtype) if target is None else target[None]
        begun = False
        for n, *cells in blocks((problem.n, *problem.output), (images, *cells_tile)):
            columns = lower_columns(x[n, inputs], axes, cells, g, problem.padding_mode, dtype, scratch)
            grad = for_blas(by_group(dy[(n, ALL, *cells)], problem.groups, groups, outputs, dtype))
            product = scratch("product", total.shape, dtype) if begun else total
            grad = grad.conj() if request.conjugate else grad
            long_product(grad, columns.swapaxes(1, 2), product, scratch)
            if begun:
                np.add(total, product, out=total)
            begun = True
        if not begun:
            total[...] = 0
        if request.conjugate:
            np.conjugate(total, out=total)
        if target is None:
            for group, dw in enumerate(total, groups.start):
                where = (_channels(problem, group, outputs), ALL, ALL, ALL, ALL)
                result.store(where, dw.reshape(count, c, *problem.filter))

    spread(part, blocks((problem.groups, k), (groups_tile, outputs_tile)), launch.threads)


def _channels(problem: ConvProblem, group: int, outputs: slice) -> slice:
    """The output channels of one group's range."""
    first = group * (problem.k // problem.groups)
    return slice(first + outputs.start, first + outputs.stop)


# -- the table's entries ----------------------------------------------------------------------------


def _applies(request: Request, processor: Processor) -> None:
    return None


def few_cells(problem: ConvProblem, threads: int) -> bool:
    """Whether threads share the channels, and each all cells."""
    return problem.n * math.prod(problem.output) < FEW * threads


def taken_by_one(groups: int, channels: int, threads: int) -> tuple[int, int]:
    """The groups and the channels of each that one of the threads takes."""
    if groups >= threads:
        return -(-groups // threads), channels
    return 1, -(-max(channels, 1) // threads)


def _plan(request: Request, processor: Processor) -> Schedule:
    problem, item = request.problem.volumetric, accumulator(request).itemsize
    axes, threads = windows_of(problem), workers(request, processor)
    c, k, taps = problem.c // problem.groups, problem.k // problem.groups, math.prod(problem.filter)

    def lowered(n: int, g: int, k: int, *cells: int) -> int:
        return lowered_elements(n, g * c, cells, axes, problem.padding_mode) * item

    def block(n: int, g: int, k: int, *cells: int) -> int:
        split = 0
        if request.op == "fprop":
            made = finishing_blocks(request) * n * math.prod(cells)
        else:
            split = g * piece_elements(n * math.prod(cells), k, c * taps) * item
            # A product that is alone may be made where it belongs; others wait to be added up.
            here = g == 1 and not request.accumulate and accumulator(request) == request.dtype
            sums = 2 - here - (n * math.prod(cells) == problem.n * math.prod(problem.output))
            made = 2 * n * math.prod(cells) + sums * c * taps
        return lowered(n, g, k, *cells) + g * k * made * item + split

    by_channels = request.op == "wgrad" or few_cells(problem, threads)
    channels = taken_by_one(problem.groups, k, threads) if by_channels else (problem.groups, k)
    parts = 1 if by_channels else threads

    # Fewer cells first, as long as there are enough of them; then fewer groups, and fewer cells of one group;
    # fewer channels where that leaves too little.
    extents, cells_first = (problem.n, *channels, *problem.output), (0, 3, 4, 5)
    long = while_long(block, cells_first, FEW // 2)
    tile = fit(extents, long, threads, order=cells_first, share=0.5, parts=parts)
    tile = fit(tile, lowered, threads, order=(1, *cells_first), share=0.5, parts=1)
    tile = fit(tile, block, threads, order=(2, 1, *cells_first), share=0.75, parts=1)
    filters = math.prod(problem.w_shape()) * item if request.op == "fprop" else 0
    kernel = {"fprop": fprop, "wgrad": wgrad}[request.op]
    return Schedule(threads * block(*tile) + filters, (Launch(kernel, "n g k z p q", tile, threads),))


def _cost(request: Request, processor: Processor) -> Cost:
    """Gathering and lowering for every block of output channels, products, and storing, or reading dy."""
    problem, groups = request.problem.volumetric, request.problem.groups
    (launch,) = _plan(request, processor).launches
    images, g, k, *cells = launch.tile
    cost, axes = Cost(request, launch), windows_of(problem)
    cut, c = Cut(axes, cells), problem.c // groups
    again = block_count((problem.k // groups,), (k,))
    places = again * block_count((groups,), (g,))
    blocks = cut.blocks * block_count((problem.n,), (images,)) * places
    pixels = problem.n * cut.cells
    cost.gather(problem.n * problem.c * again, cut, problem.c, blocks)
    _, height, width = within(axes, cut.counts)
    run = longest(*reversed(cut.counts), min(images, problem.n))
    if cut.width == width.read(cut.width) and height.stride == 1:  # whole rows
        run = max(run, cut.width * cut.counts[1])
    cost.copy(pixels * cut.taps * problem.c * again, run, width.stride == 1)
    if request.op == "fprop":
        cost.store(pixels * problem.k, cut.row, problem.k, k)
    else:
        cost.read(pixels * problem.k, cut.row, problem.k)
    each = pixels * places / max(blocks, 1)
    if request.op == "fprop":
        cost.share(blocks)
        cost.add("call", blocks * g)
        cost.product(blocks * g, k, cut.taps * c, each)
    else:
        cost.share(places)
        cost.add("call", 10 * blocks)
        cost.product(blocks * g, k, each, cut.taps * c, False)
        cost.megabytes("copied", blocks * g * k * c * cut.taps)
        cost.add("transposed", blocks * g * each * (k + cut.taps * c))  # by BLAS
    return cost


ENTRIES = {
    "fprop": Algorithm("im2col", _applies, _plan, estimate(_cost)),
    "wgrad": Algorithm("im2col", _applies, _plan, estimate(_cost)),
}
