"""Convolution as matrix products, which NumPy hands to BLAS.

With X the lowered input (a row per output cell, holding the cell's window), W the filters as a matrix
and Y the output, per group:

    fprop  Y = X W^T        wgrad  dW = dY^T X        dgrad  dX = Y' W', residue by residue

where Y' lowers dy and W' has the taps that meet the residue. A block is lowered and multiplied while it is in
cache, and threads share the blocks. The product goes straight to the result where that has a matrix's
layout: so a 1x1 filter needs neither a copy of its input nor one of its output.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..problem import ConvProblem, Request
from ..processor import Processor, spread
from ..table import Algorithm, Schedule
from .blocking import ALL, Launch, Scratch, block_count, blocks, fit, lengths, while_long, workers
from .cost import Cost, Cut, estimate, longest
from .lowering import filter_columns, filter_rows, lower, lowered_elements
from .padding import fold, fold_elements
from .products import copies_filters, for_blas, long_product, matmul, piece_elements
from .result import Result, accumulator, finishing_blocks
from .windows import (
    Axes,
    Phase,
    every,
    most_cells,
    phases_of,
    too_many_residues,
    unmet,
    unmet_cells,
    windows_and_columns,
    windows_of,
)

Places = Sequence[tuple[slice, ...]]
"""Where a product belongs in the result: its columns are the channels of each place in turn."""


def by_rows(
    a: np.ndarray,
    axes: Axes,
    cells: Sequence[slice],
    mode: str,
    filters: np.ndarray,
    result: Result,
    places: Places,
    scratch: Scratch,
) -> None:
    """Multiply a block of cells' windows by matrices (groups, taps C/groups, K/groups), and store it."""
    groups, _, columns = filters.shape
    k = columns // len(places)
    rows, cells_inside = lower(a, axes, cells, groups, mode, filters.dtype, scratch)
    images, _, count, _ = rows.shape
    target = result.matrices(places[0], images, groups, cells_inside) if len(places) == 1 else None
    if target is not None:
        matmul(rows, filters, target)
        result.finish(places[0])
        return
    if cells_inside:
        product = scratch("product", (images, groups, columns, count), rows.dtype).swapaxes(2, 3)
    else:
        product = scratch("product", (images, groups, count, columns), rows.dtype)
    matmul(rows, filters, product)
    # Images are the first axis or the third; the other of the two is 1.
    y = product.reshape(images, groups, a.shape[0] // max(images, 1), *lengths(cells), len(places), k)
    y = y.transpose(0, 2, 1, 6, 7, 3, 4, 5)
    store_by_place(y.reshape(a.shape[0], *y.shape[2:]), places, result)


def store_by_place(y: np.ndarray, places: Places, result: Result) -> None:
    """Store products (N, groups, places, K/groups, D, H, W), each where it belongs."""
    k = y.shape[3]
    for index, (n, _, *there) in enumerate(places):
        for group in range(y.shape[1]):
            result.store((n, slice(group * k, (group + 1) * k), *there), y[:, group, index])


Multiply = Callable[..., None]
"""`by_rows`, or another function that does the same."""


def fprop(
    request: Request,
    launch: Launch,
    x: np.ndarray,
    w: np.ndarray,
    result: Result,
    multiply: Multiply = by_rows,
) -> None:
    """Y = X W^T, a block of images and output cells at a time."""
    problem, dtype = request.problem.volumetric, accumulator(request)
    axes, scratch = windows_of(problem), Scratch()
    filters = filter_rows(problem, w, dtype, launch.threads).swapaxes(1, 2)

    def block(n: slice, *cells: slice) -> None:
        multiply(x[n], axes, cells, problem.padding_mode, filters, result, [(n, ALL, *cells)], scratch)

    spread(block, blocks((problem.n, *problem.output), launch.tile), launch.threads)


def dgrad(
    request: Request,
    launch: Launch,
    dy: np.ndarray,
    w: np.ndarray,
    result: Result,
    multiply: Multiply = by_rows,
) -> None:
    """dX = Y' W' for the residues of the stride, a block of images and input cells at a time."""
    problem, dtype = request.problem.volumetric, accumulator(request)
    scratch = Scratch()

    def filters_of(taps: Sequence[slice]) -> np.ndarray:
        matrix = filter_columns(problem, w, taps, dtype, launch.threads)
        return matrix.conj() if request.conjugate else matrix

    def side_by_side(phase: Phase) -> np.ndarray:
        matrices = [filters_of(taps) for taps in phase.taps]
        return for_blas(matrices[0] if len(matrices) == 1 else np.concatenate(matrices, axis=2))

    phases = phases_of(problem)
    filters = [side_by_side(phase) for phase in phases]

    def block(index: int, target: Result, n: slice, where: slice, *part: slice) -> None:
        """The block `part` of one phase for the images n, put at the images `where` of the target."""
        places = [(where, ALL, *map(every, cells, part)) for cells in phases[index].cells]
        multiply(dy[n], phases[index].axes, part, "zeros", filters[index], target, places, scratch)

    def parts(target: Result, first: int, images: int) -> Iterator[tuple[Any, ...]]:
        """What `block` takes for so many images; image `first` is the target's image 0."""
        for index, phase in enumerate(phases):
            for n, *part in blocks((images, *phase.counts), launch.tile[-4:]):
                yield (index, target, slice(first + n.start, first + n.stop), n, *part)

    if problem.padding_mode == "zeros":
        finish_unmet(problem, result, launch.threads)
        spread(block, parts(result, 0, problem.n), launch.threads)
        return
    for (images,) in blocks((problem.n,), launch.tile[:1]):
        padded = scratch("gradient", (images.stop - images.start, problem.c, *problem.padded), dtype)
        if unmet(problem):
            padded[...] = 0
        spread(block, parts(Result(padded), images.start, len(padded)), launch.threads)
        result.store((images, ALL, ALL, ALL, ALL), fold(padded, problem))


def finish_unmet(problem: ConvProblem, result: Result, threads: int) -> None:
    """Finish the cells of dx that no tap meets, where zero is the sum; all others are still to be stored."""
    if not unmet(problem):
        return
    # Zero everywhere is made faster than zero at every second cell.
    mask = None if result.plain else unmet_cells(problem)
    images = -(-max(problem.n, 1) // threads)
    spread(partial(result.store_zero, mask=mask), blocks((problem.n,), (images,)), threads)


def unmet_elements(request: Request) -> int:
    """How many elements `finish_unmet` passes over."""
    problem = request.problem.volumetric
    if request.op != "dgrad" or not unmet(problem):
        return 0
    return problem.n * problem.c * math.prod(problem.input)


def wgrad(request: Request, launch: Launch, x: np.ndarray, dy: np.ndarray, result: Result) -> None:
    """dW = dY^T X for blocks of groups and input channels, summed over images and output cells in order.

    Where there are too few channels to share among the threads, the images are, in sections whose sums are
    added in order at the end.
    """
    problem, dtype = request.problem.volumetric, accumulator(request)
    axes, scratch = windows_of(problem), Scratch()
    c, k = problem.c // problem.groups, problem.k // problem.groups
    section, *channels_tile = launch.tile[:3]
    places = list(blocks((problem.groups, c), channels_tile))
    sums: list[dict[int, np.ndarray]] = [{} for _ in places]

    def part(first: int, place: int) -> None:
        groups, channels = places[place]
        g, outputs = groups.stop - groups.start, slice(groups.start * k, groups.stop * k)
        inputs = slice(groups.start * c + channels.start, (groups.stop - 1) * c + channels.stop)
        total = None
        for n, *cells in blocks((min(section, problem.n - first), *problem.output), launch.tile[3:]):
            n = slice(first + n.start, first + n.stop)
            rows = _merged(lower(x[n, inputs], axes, cells, g, problem.padding_mode, dtype, scratch)[0])
            grad = dy[(n, outputs, *cells)]
            grad = grad.reshape(n.stop - n.start, g, k, math.prod(lengths(cells))).transpose(1, 2, 0, 3)
            grad = grad.reshape(g, k, rows.shape[1])
            grad = for_blas(grad.astype(dtype, copy=False))
            if request.conjugate:
                grad = grad.conj()
            shape = (g, k, rows.shape[2])
            product = np.empty(shape, dtype) if total is None else scratch("product", shape, dtype)
            long_product(grad, rows, product, scratch)
            total = product if total is None else np.add(total, product, out=total)
        if total is not None:
            sums[place][first] = total.conj() if request.conjugate else total

    def store(place: int) -> None:
        (groups, channels), sections = places[place], sums[place]
        shape = (groups.stop - groups.start, k, *problem.filter, channels.stop - channels.start)
        total = sections.pop(min(sections)) if sections else np.zeros(shape, dtype)
        for first in sorted(sections):
            total += sections[first]
        for group, dw in zip(range(groups.start, groups.stop), total.reshape(shape), strict=True):
            result.store(
                (slice(group * k, (group + 1) * k), channels, ALL, ALL, ALL), dw.transpose(0, 4, 1, 2, 3)
            )

    spread(part, itertools.product(range(0, problem.n, section), range(len(places))), launch.threads)
    spread(store, ((place,) for place in range(len(places))), launch.threads)


def _merged(rows: np.ndarray) -> np.ndarray:
    """The rows of all images in one matrix per group."""
    images, g, cells, columns = rows.shape
    if images == 1:
        return for_blas(rows[0])
    return rows.transpose(1, 3, 0, 2).reshape(g, columns, images * cells).swapaxes(1, 2)


# -- the table's entries ----------------------------------------------------------------------------


Elements = Callable[[int, int, int, Sequence[int], Axes, str, int], int]
"""Scratch elements: of images, channels, columns of the product, cells, windows, padding mode, groups."""


def _elements(n: int, c: int, columns: int, counts: Sequence[int], axes: Axes, mode: str, groups: int) -> int:
    """Scratch elements that `by_rows` needs at the most, its product included."""
    return lowered_elements(n, c, counts, axes, mode) + n * math.prod(counts) * columns


def channels_read(request: Request) -> int:
    """How many channels the array has that an op reads through windows."""
    return request.problem.k if request.op == "dgrad" else request.problem.c


Bytes = Callable[..., int]
"""Of a block of so many images and cells."""


def _shape(extents: Sequence[int], cost: Bytes, threads: int) -> tuple[int, ...]:
    return fit(extents, cost, threads, share=0.5)


def schedule(
    request: Request,
    processor: Processor,
    kernel: Any,
    elements: Elements = _elements,
    shape: Callable[[Sequence[int], Bytes, int], tuple[int, ...]] = _shape,
) -> Schedule:
    """fprop or dgrad in blocks of images and cells; those of dx of one residue of the stride."""
    problem, item = request.problem.volumetric, accumulator(request).itemsize
    channels, products = channels_read(request), windows_and_columns(request)
    counts = most_cells(request)
    mode = problem.padding_mode if request.op == "fprop" else "zeros"
    folding = request.op == "dgrad" and problem.padding_mode != "zeros"
    per_image = (
        fold_elements(problem) + (finishing_blocks(request) - 1) * math.prod(problem.input)
    ) * problem.c

    def cost(n: int, *cells: int) -> int:
        finishing = (0 if folding else finishing_blocks(request) - 1) * n * math.prod(cells)
        each = (
            elements(n, channels, columns, cells, axes, mode, problem.groups) + finishing * columns
            for axes, columns in products
        )
        return max(each, default=0) * item

    threads = workers(request, processor)
    filters = (2 + threads * copies_filters(request)) * math.prod(problem.w_shape()) * item
    images, axes, gradient = problem.n, "n z p q", 0
    if folding:
        # The padded input's gradient is shared by all threads, for as many images as their memory allows.
        (images,) = fit((problem.n,), lambda n: n * per_image * item // threads, threads, share=0.5, parts=1)
        axes, gradient = f"gradient {axes}", images * per_image * item
    tile = shape((images, *counts), cost, threads)
    used = max(1, min(threads, block_count((images, *counts), tile) * len(products)))
    launch = Launch(kernel, axes, (images, *tile) if folding else tile, threads)
    return Schedule(used * cost(*tile) + gradient + filters, (launch,))


def plan_wgrad(request: Request, processor: Processor) -> Schedule:
    problem, item = request.problem.volumetric, accumulator(request).itemsize
    axes, threads = windows_of(problem), workers(request, processor)
    g, c, k = problem.groups, problem.c // problem.groups, problem.k // problem.groups
    taps = math.prod(problem.filter)

    # Products of fewer rows would be added up in as much time as they took to be made.
    images = min(max(problem.n, 1), -(-512 // max(1, math.prod(problem.output))))

    def block(groups: int, channels: int, n: int, *cells: int) -> int:
        lowered = lowered_elements(n, groups * channels, cells, axes, problem.padding_mode)
        summed = n * math.prod(cells)
        pieces = groups * piece_elements(summed, k, channels * taps)
        return (lowered + pieces + (2 if request.conjugate else 1) * summed * groups * k) * item

    share = (g, c)
    if g >= threads:
        share = (-(-g // threads), c)
    elif c >= 8 * threads and (math.prod(problem.w_shape()) > 1 << 18 or problem.n < threads):
        share = (1, -(-c // threads))
    sections = 1 if share != (g, c) else min(threads, max(problem.n, 1))
    section = -(-max(problem.n, 1) // sections)

    # Fewer cells first, as long as there are enough of them; then fewer channels.
    extents = (*share, min(images, section), *problem.output)
    long = while_long(block, (2, 3, 4, 5), 1024)
    tile = fit(extents, long, threads, order=(0, 3, 4, 5), share=0.5, parts=1)
    tile = fit(tile, block, threads, share=0.5, parts=1)
    parts = block_count((g, c), tile[:2]) * sections
    products = tile[0] * k * taps * tile[1] * item
    sums = sections * math.prod(problem.w_shape()) * item
    workspace = min(threads, parts) * (block(*tile) + products) + sums
    launch = Launch(wgrad, "section g c n z p q", (section, *tile), threads)
    return Schedule(workspace, (launch,))


def _cost(request: Request, processor: Processor) -> Cost:
    """Channels brought inside, lowering, products, storing."""
    problem, groups = request.problem.volumetric, request.problem.groups
    (launch,) = schedule(request, processor, None).launches
    cost, channels, made = Cost(request, launch), channels_read(request), result_channels(request)
    cost.megabytes("copied", 2 * math.prod(problem.w_shape()) + unmet_elements(request))
    for axes, columns in windows_and_columns(request):
        cut, places = Cut(axes, launch.tile[-3:]), columns // made
        cost.add("call", 8 * places)  # for the filters
        blocks = cut.blocks * block_count((problem.n,), launch.tile[-4:-3])
        terms, pixels = cut.taps * channels // groups, problem.n * cut.cells
        cost.share(blocks)
        _count_lowering(cost, cut, pixels * channels, channels, groups, blocks)
        by_image = cut.taps == 1 and cost.channels_first
        if by_image:
            count, each = problem.n * cut.blocks * groups, cut.cells / cut.blocks
            cost.product(count, columns // groups, terms, each, False)
        else:
            cost.product(blocks * groups, pixels / blocks, terms, columns // groups, request.op == "dgrad")
        in_place = by_image or (cut.taps == 1 and groups == 1)
        if not in_place or cost.converted or (request.op == "dgrad" and max(problem.stride) > 1):
            cost.add("call", blocks * places * groups)
            cost.store(pixels * columns, cut.row, made, made // groups, not by_image, cost.apart)
    return cost


def _wgrad_cost(request: Request, processor: Processor) -> Cost:
    """The same for x; dy is read once for every block of channels, and products are added up."""
    problem, groups = request.problem.volumetric, request.problem.groups
    (launch,) = plan_wgrad(request, processor).launches
    section, g, c, images, *cells = launch.tile
    cost, cut, filters = Cost(request, launch), Cut(windows_of(problem), cells), problem.k // groups
    sections, again = block_count((problem.n,), (section,)), block_count((problem.c // groups,), (c,))
    places = block_count((groups,), (g,)) * again
    blocks = cut.blocks * places * sections * block_count((min(section, problem.n),), (images,))
    pixels = problem.n * cut.cells
    cost.share(sections * places)
    cost.add("call", 10 * blocks)
    cost.read(pixels * problem.k * again, cut.row, problem.k)
    cost.product(blocks * g, filters, pixels * places / max(blocks, 1), c * cut.taps)
    cost.megabytes("copied", blocks * g * filters * c * cut.taps + sections * math.prod(problem.w_shape()))
    if cut.taps == 1 and min(images, problem.n) > 1:
        cost.copy(pixels * problem.c, cut.row)
    _count_lowering(cost, cut, pixels * problem.c, c * g, g, blocks)
    return cost


def _count_lowering(cost: Cost, cut: Cut, elements: float, channels: int, groups: int, blocks: float) -> None:
    """Count what `lower` does for so many elements of single taps, of channels of so many groups at a time.

    Windows of one tap are read in place, but those that reach into the padding.
    """
    depth, height, width = cut.axes
    share = 1.0
    if cut.taps == 1:
        share = cut.padded(cost.extents)
        if max(axis.stride for axis in cut.axes) > 1:
            cost.copy((1 - share) * elements, cut.row, width.stride == 1)
    together = width.step == 1 and groups == 1
    c = channels // groups
    inner = (c * width.taps,) if together else (c, width.taps)
    run = longest(*inner, height.taps, depth.taps, cut.width)
    cost.gather(share * elements / cut.cells, cut, channels, share * blocks, inside=True)
    cost.copy(share * elements * cut.taps, run, c > 1 or (together and width.taps > 1))


def result_channels(request: Request) -> int:
    """How many channels an activation has that an op makes."""
    return request.problem.c if request.op == "dgrad" else request.problem.k


def _applies(request: Request, processor: Processor) -> str | None:
    return too_many_residues(request)


ENTRIES = {
    "fprop": Algorithm("gemm", _applies, partial(schedule, kernel=fprop), estimate(_cost)),
    "wgrad": Algorithm("gemm", _applies, plan_wgrad, estimate(_wgrad_cost)),
    "dgrad": Algorithm("gemm", _applies, partial(schedule, kernel=dgrad), estimate(_cost)),
}
