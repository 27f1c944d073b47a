"""Depthwise convolution without a matrix product: a multiplication and an addition per filter tap.

With groups == C every output channel reads one input channel; k = c m + j for the multiplier m = K / C:

    fprop  y[n, c m + j] = sum over taps of  x[n, c, shifted by the tap]  w[c m + j, tap]

dgrad likewise, residue by residue of the stride, from dy and the taps that meet the residue; wgrad is, per
tap, the product of dy and the shifted x. A matrix product would be as thin as one row here.

What one tap sees of one channel, for all images of a block, is one run of memory: see `runs`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..problem import Request
from ..processor import Processor, spread
from ..table import Algorithm, Schedule
from .blocking import ALL, Launch, Scratch, block_count, blocks, fit, lengths, workers
from .cost import Cost, Cut, estimate
from .gemm import channels_read, finish_unmet, result_channels, unmet_elements
from .padding import fold, fold_elements
from .result import Result, accumulator, finishing_blocks
from .runs import Runs, extent, phase_count, run_elements
from .windows import (
    Axes,
    every,
    most_cells,
    phases_of,
    too_many_residues,
    unmet,
    windows_and_columns,
    windows_of,
    within,
)


def by_taps(
    a: np.ndarray,
    axes: Axes,
    cells: Sequence[slice],
    mode: str,
    weights: np.ndarray,
    scratch: Scratch,
    summed: bool,
) -> np.ndarray:
    """The sum over taps of what each sees of `a` times its weight (C, m, T, R, S): (N, C m, D, H, W).

    `summed` says that `a` has the C m channels, to be added up over m: (N, C, D, H, W).
    """
    c, multiplier = weights.shape[:2]
    runs = Runs(a, axes, cells, mode, weights.dtype, scratch)
    shape = (c, 1 if summed else multiplier, runs.size)
    whole = scratch("total", shape, weights.dtype)
    total, begun = whole[..., : runs.length], False
    product = scratch("product", shape, weights.dtype)[..., : runs.length]
    for tap, j in itertools.product(runs.taps(), range(multiplier) if summed else [None]):
        seen = runs.seen(tap) if j is None else runs.seen(tap)[j::multiplier]
        weight = weights[(ALL, ALL, *tap)] if j is None else weights[(ALL, slice(j, j + 1), *tap)]
        np.multiply(seen[:, None], weight[..., None], out=product if begun else total)
        if begun:
            np.add(total, product, out=total)
        begun = True
    if not begun:
        total[...] = 0
    made = runs.inside(whole)
    return made.reshape(made.shape[0], made.shape[1] * made.shape[2], *made.shape[3:])


def elements(op: str, c: int, n: int, counts: Sequence[int], axes: Axes, mode: str, multiplier: int) -> int:
    """Scratch elements of a block of so many channels of x, images and output cells."""
    images, run = run_elements(n, c * multiplier if op == "dgrad" else c, counts, axes, mode)
    beside = {"fprop": 2 * multiplier, "dgrad": 1 + multiplier, "wgrad": 2 * multiplier + 2}
    return images + c * beside[op] * run


class Way(NamedTuple):
    """How filters meet what they see, and the memory that it takes."""

    arrange: Callable[[np.ndarray, Axes], np.ndarray]
    """The weights (C, m, T, R, S) of windows, arranged once for all blocks; C stays the first axis."""

    block: Callable[..., np.ndarray]
    """`by_taps`, or another function that does the same, with arranged weights."""

    elements: Callable[[str, int, int, Sequence[int], Axes, str, int], int]
    """As `elements`."""

    filters: Callable[[Request], int]
    """Scratch elements for all filters."""

    share: float
    """The part it takes of the memory that blocks may have."""


TAPS = Way(
    lambda weights, axes: weights,
    by_taps,
    elements,
    lambda request: 2 * math.prod(request.problem.w_shape()),
    1.0,
)


def outputs_of(channels: slice, multiplier: int) -> slice:
    """The output channels that are made of a range of input channels."""
    return slice(channels.start * multiplier, channels.stop * multiplier)


def fprop(
    request: Request, launch: Launch, x: np.ndarray, w: np.ndarray, result: Result, way: Way = TAPS
) -> None:
    """Each tap's weight times the input shifted by the tap, added up in the taps' order."""
    problem, dtype = request.problem.volumetric, accumulator(request)
    axes, scratch = windows_of(problem), Scratch()
    multiplier = problem.k // problem.c
    weights = w.reshape(problem.c, multiplier, *problem.filter).astype(dtype, copy=False)
    weights = way.arrange(weights, axes)

    def block(channels: slice, n: slice, *cells: slice) -> None:
        y = way.block(x[n, channels], axes, cells, problem.padding_mode, weights[channels], scratch, False)
        outputs = outputs_of(channels, multiplier)
        result.store((n, outputs, *cells), y)

    parts = blocks((problem.c, problem.n, *problem.output), launch.tile)
    spread(block, parts, launch.threads)


def dgrad(
    request: Request, launch: Launch, dy: np.ndarray, w: np.ndarray, result: Result, way: Way = TAPS
) -> None:
    """The same for each residue of the stride, with dy, the taps that meet the residue, and a sum over j."""
    problem, dtype = request.problem.volumetric, accumulator(request)
    scratch, multiplier = Scratch(), problem.k // problem.c
    weights = w.reshape(problem.c, multiplier, *problem.filter).astype(dtype, copy=False)
    weights = weights.conj() if request.conjugate else weights
    phases = [
        (phase.axes, cells, way.arrange(weights[(ALL, ALL, *taps)], phase.axes))
        for phase in phases_of(problem)
        for cells, taps in zip(phase.cells, phase.taps, strict=True)
    ]

    def block(
        index: int, target: Result, channels: slice, where: tuple[slice, slice], n: slice, *part: slice
    ) -> None:
        """The block `part` of one residue, put at the images and channels `where` of the target."""
        axes, cells, filters = phases[index]
        outputs = outputs_of(channels, multiplier)
        dx = way.block(dy[n, outputs], axes, part, "zeros", filters[channels], scratch, True)
        target.store((*where, *map(every, cells, part)), dx)

    def folded(channels: slice, n: slice) -> None:
        """The gradient of the padded input, folded onto the input."""
        padded = scratch("gradient", (*lengths((n, channels)), *problem.padded), dtype)
        if unmet(problem):
            padded[...] = 0
        for index, (axes, _, _) in enumerate(phases):
            for part in blocks([axis.cells for axis in axes], launch.tile[2:]):
                block(index, Result(padded), channels, (ALL, ALL), n, *part)
        result.store((n, channels, ALL, ALL, ALL), fold(padded, problem))

    if problem.padding_mode == "zeros":
        parts = (
            (index, result, channels, (n, channels), n, *part)
            for index, (axes, _, _) in enumerate(phases)
            for channels, n, *part in blocks(
                (problem.c, problem.n, *(axis.cells for axis in axes)), launch.tile
            )
        )
        finish_unmet(problem, result, launch.threads)
        spread(block, parts, launch.threads)
    else:
        spread(folded, blocks((problem.c, problem.n), launch.tile[:2]), launch.threads)


def wgrad(request: Request, launch: Launch, x: np.ndarray, dy: np.ndarray, result: Result) -> None:
    """Per tap, the sum over images and cells of dy times the input shifted by the tap."""
    problem, dtype = request.problem.volumetric, accumulator(request)
    axes, scratch = windows_of(problem), Scratch()
    multiplier = problem.k // problem.c

    def part(channels: slice) -> None:
        outputs = outputs_of(channels, multiplier)
        count = channels.stop - channels.start
        total = np.zeros((count, multiplier, *problem.filter), dtype)
        for n, *cells in blocks((problem.n, *problem.output), launch.tile[1:]):
            runs = Runs(x[n, channels], axes, cells, problem.padding_mode, dtype, scratch)
            grad = scratch("grad", (count, multiplier, runs.size), dtype)
            grad[...] = 0
            cells_of_dy = dy[(n, outputs, *cells)]
            inside = runs.inside(grad)
            inside[...] = cells_of_dy.reshape(inside.shape)
            for tap in runs.taps():
                total[(ALL, ALL, *tap)] += _dot(runs, tap, grad, request.conjugate, scratch)
        result.store((outputs, ALL, ALL, ALL, ALL), total.reshape(count * multiplier, 1, *problem.filter))

    spread(part, blocks((problem.c,), launch.tile[:1]), launch.threads)


def _dot(runs: Runs, tap: Sequence[int], grad: np.ndarray, conjugate: bool, scratch: Scratch) -> np.ndarray:
    """The product of dy, zeros between its cells, with what a tap sees: (C, m)."""
    seen = runs.seen(tap)
    if seen.dtype.kind == "c" and not conjugate:
        seen = np.conjugate(seen, out=scratch("conjugate", seen.shape, seen.dtype))
    dot = np.vecdot(seen[:, None], grad[..., : runs.length])
    if dot.dtype.kind in "fc" and not np.isfinite(dot).all():
        # Zeros times infinities that the tap does not see as its own must not count.
        whole = scratch("whole", (seen.shape[0], runs.size), seen.dtype)
        whole[:, : runs.length] = seen.conj() if seen.dtype.kind == "c" else seen
        dot = np.einsum("ncdhw,ncmdhw->cm", runs.inside(whole), runs.inside(grad))
    return dot


# -- the table's entries ----------------------------------------------------------------------------


def applies(request: Request, processor: Processor) -> str | None:
    problem = request.problem
    if problem.c == problem.groups:
        return too_many_residues(request)
    return f"it needs groups == C, and groups is {problem.groups}, C {problem.c}"


def schedule(request: Request, processor: Processor, kernel: Any, way: Way = TAPS) -> Schedule:
    """fprop or dgrad in blocks of channels, images and cells; those of dx of one residue of the stride."""
    problem, item = request.problem.volumetric, accumulator(request).itemsize
    multiplier, threads = problem.k // problem.c, workers(request, processor)
    mode = "zeros" if request.op == "dgrad" else problem.padding_mode
    folding = request.op == "dgrad" and problem.padding_mode != "zeros"
    per_channel = fold_elements(problem) + (finishing_blocks(request) - 1) * math.prod(problem.input)
    made = 1 if request.op == "dgrad" else multiplier

    def cost(c: int, n: int, *cells: int) -> int:
        largest = 0
        for axes, _ in windows_and_columns(request):
            finishing = 0 if folding else (finishing_blocks(request) - 1) * n * c * made * math.prod(cells)
            largest = max(largest, way.elements(request.op, c, n, cells, axes, mode, multiplier) + finishing)
        return largest * item

    def gradient(c: int, n: int, *cells: int) -> int:
        return folding * n * c * per_channel * item

    extents = (problem.c, problem.n, *most_cells(request))
    if folding:
        tile = fit(extents, gradient, threads, order=(0, 1), share=0.5)
        tile = fit(tile, cost, threads, share=0.5, parts=1)
    else:
        tile = fit(extents, cost, threads, share=way.share)
    workspace = threads * (cost(*tile) + gradient(*tile)) + way.filters(request) * item
    return Schedule(workspace, (Launch(kernel, "c n z p q", tile, threads),))


def plan_wgrad(request: Request, processor: Processor, kernel: Any = wgrad, way: Way = TAPS) -> Schedule:
    problem, item = request.problem.volumetric, accumulator(request).itemsize
    axes, multiplier, threads = windows_of(problem), problem.k // problem.c, workers(request, processor)

    def cost(c: int, n: int, *cells: int) -> int:
        return way.elements(request.op, c, n, cells, axes, problem.padding_mode, multiplier) * item

    tile = fit((problem.c, problem.n, *problem.output), cost, threads, share=way.share)
    return Schedule(
        threads * cost(*tile) + way.filters(request) * item, (Launch(kernel, "c n z p q", tile, threads),)
    )


def count_blocks(request: Request, cost: Cost, cut: Cut, same: int, tile: Sequence[int]) -> int:
    """Count the parts that threads share; returns how many blocks there are."""
    blocks = same * cut.blocks * block_count((request.problem.c, request.problem.n), tile[:2])
    cost.share(block_count((request.problem.c,), tile[:1]) if request.op == "wgrad" else blocks)
    return blocks


def kinds_of_windows(request: Request) -> list[tuple[Axes, int]]:
    """The windows by which an op reads, and, for dgrad, how many residues of the stride have them."""
    every_kind = windows_and_columns(request)
    return [
        (axes, columns // request.problem.c if request.op == "dgrad" else 1) for axes, columns in every_kind
    ]


def _cost(request: Request, processor: Processor) -> Cost:
    """Gathering, phases of the stride, and per tap a call and a pass over a block in cache; storing."""
    problem, op = request.problem.volumetric, request.op
    plan = plan_wgrad(request, processor) if op == "wgrad" else schedule(request, processor, None)
    (launch,) = plan.launches
    cost = Cost(request, launch)
    cost.megabytes("copied", unmet_elements(request))
    passes = problem.k // problem.c if op == "dgrad" else 1
    for axes, same in kinds_of_windows(request):
        cut = Cut(axes, launch.tile[2:])
        blocks = count_blocks(request, cost, cut, same, launch.tile)
        images = same * problem.n * channels_read(request)
        there = within(axes, cut.counts)
        depth, height, width = map(extent, there)
        cost.gather(images, cut, channels_read(request), blocks)
        if any(axis.stride > 1 for axis in there):
            phases = math.prod(map(phase_count, there))
            cost.add("phase cell", images * phases * depth * height * width * cut.blocks)
            cost.add("call", blocks * phases * 7)
        planes, lines, cells = cut.counts
        length = ((planes - 1) * height + lines) * min(launch.tile[1], problem.n) * width - width + cells
        rows = blocks * problem.k / block_count((problem.c,), launch.tile[:1])
        run = rows * length
        cost.add("call", blocks * (10 + 3 * cut.taps * passes))
        if op == "wgrad":
            cost.add("dotted row", rows * cut.taps)
            cost.passed("dotted", run * cut.taps)
            cost.megabytes("copied", run)
        else:
            cost.add("scaled row", rows * cut.taps)
            cost.passed("scaled", run * cut.taps)
        count_result(request, cost, cut, same, launch.tile[0])
    return cost


def count_result(request: Request, cost: Cost, cut: Cut, same: int, channels: int) -> None:
    """Count what is stored, so many input channels together, of windows of one kind; or, for wgrad, read."""
    problem, made = request.problem, result_channels(request)
    elements = same * problem.n * cut.cells * made
    if request.op == "wgrad":
        cost.read(elements, cut.row, made)
    else:
        cost.store(elements, cut.row, made, channels * made // problem.c, stride=cost.apart)


ENTRIES = {
    "fprop": Algorithm("depthwise", applies, partial(schedule, kernel=fprop), estimate(_cost)),
    "wgrad": Algorithm("depthwise", applies, plan_wgrad, estimate(_cost)),
    "dgrad": Algorithm("depthwise", applies, partial(schedule, kernel=dgrad), estimate(_cost)),
}
