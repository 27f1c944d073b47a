"""The three ops block by block, whatever the products are that a block is made by.

fprop and dgrad make blocks of output cells, of the filters and of what the cells' windows see (`windows`);
dgrad does so residue by residue of the stride. wgrad adds up, block by block, the products of cells of dy and
what their windows see of x. A `Family` says how a block is made and what that takes. All else is here: which
blocks there are, who makes them and where they go, their memory, and what all estimates count.
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
from .cost import Cost, Cut, estimate
from .padding import fold, fold_elements
from .products import copies_filters
from .result import Result, accumulator, finishing_blocks
from .windows import (
    Axes,
    Phase,
    Sizes,
    Windows,
    every,
    phases_of,
    too_many_residues,
    unmet,
    unmet_cells,
    windows_of,
)

Places = Sequence[tuple[slice, ...]]
"""Where a block belongs in the result: it has the channels of each place in turn."""

Bytes = Callable[..., int]
"""Of a block of so many groups, channels of each that are made, images and cells: (g, made, n, z, p, q)."""


class Family:
    """A way to make blocks. There is one object of each subclass, by the name of `FAMILY` in its module.

    Channels are seen by group: `read` of each through windows, of which `made` are made.
    """

    name: str

    share = 0.5
    """Of the memory that blocks may have."""

    def __reduce__(self) -> str:
        return "FAMILY"  # a plan that was pickled is equal to itself

    def entries(self, *ops: str) -> dict[str, Algorithm]:
        """Its entries in the table, for these ops."""
        made = Algorithm(self.name, self.applies, self.plan, estimate(self.cost))
        summed = Algorithm(self.name, self.applies, self.plan_wgrad, estimate(self.wgrad_cost))
        return {op: summed if op == "wgrad" else made for op in ops}

    def applies(self, request: Request, processor: Processor) -> str | None:
        """None, or the reason why not."""
        return too_many_residues(request)

    # -- what a family says of fprop and dgrad --------------------------------------------------------

    def arrange(self, filters: np.ndarray, axes: Axes, dtype: np.dtype, threads: int) -> np.ndarray:
        """Filters (groups, made, read, T, R, S), arranged for all blocks; the groups stay the first axis."""
        raise NotImplementedError

    def arranged_elements(self, request: Request) -> int:
        """How many elements all filters then have, of every kind of windows."""
        return math.prod(request.problem.w_shape())

    def make(self, seen: Windows, filters: np.ndarray) -> np.ndarray:
        """A block (N, groups, made, D, H, W), in scratch memory, of what windows see and arranged filters."""
        raise NotImplementedError

    def make_and_store(self, seen: Windows, filters: np.ndarray, result: Result, places: Places) -> None:
        """The same, put where it belongs."""
        store_by_place(self.make(seen, filters), places, result)

    def elements(self, sizes: Sizes) -> int:
        """Scratch elements of `make` at the most, its block included."""
        raise NotImplementedError

    def tile(self, request: Request, extents: Sequence[int], cost: Bytes, threads: int) -> tuple[int, ...]:
        """The tile (g, made, n, z, p, q) of blocks."""
        return fit(extents, cost, threads, order=(2, 3, 4, 5, 0), share=self.share)

    def count(self, cost: Cost, cut: Cut) -> None:
        """Count what all blocks take, of windows of one kind."""
        raise NotImplementedError

    # -- what a family says of wgrad ------------------------------------------------------------------

    most_cells = 512
    """How many cells of several images a block has; the sums of fewer take as long to add up as to make."""

    in_place = False
    """Whether the sums have the order of the filters, so that they may be made where the gradient is kept."""

    def sums(self, axes: Axes, groups: int, k: int, c: int) -> tuple[int, ...]:
        """The shape (groups, k, ...) of the sums for so many output and input channels of each group."""
        raise NotImplementedError

    def sum_up(self, seen: Windows, dy: np.ndarray, sums: np.ndarray) -> None:
        """Set the sums to those of a block: of the products of dy's cells and what their windows see of x."""
        raise NotImplementedError

    def gradient(self, axes: Axes, c: int, sums: np.ndarray) -> np.ndarray:
        """The gradient (groups, k, c, T, R, S) that is in the sums of all blocks."""
        raise NotImplementedError

    def sum_elements(self, sizes: Sizes) -> int:
        """Scratch elements of `sum_up` at the most, the sums not included."""
        raise NotImplementedError

    def wgrad_tile(self, request: Request, cost: Bytes, threads: int) -> tuple[int, ...]:
        """How many images are summed up by one thread, and the tile (g, c, n, z, p, q) of blocks."""
        problem = request.problem.volumetric
        g, c = problem.groups, problem.c // problem.groups
        images = min(max(problem.n, 1), -(-self.most_cells // max(1, math.prod(problem.output))))
        share = (g, c)
        if g >= threads:
            share = (-(-g // threads), c)
        elif c >= 8 * threads and (math.prod(problem.w_shape()) > 1 << 18 or problem.n < threads):
            share = (1, -(-c // threads))
        sections = 1 if share != (g, c) else min(threads, max(problem.n, 1))
        section = -(-max(problem.n, 1) // sections)

        # Fewer cells first, as long as there are enough of them; then fewer channels.
        extents = (*share, min(images, section), *problem.output)
        long = while_long(cost, (2, 3, 4, 5), 1024)
        tile = fit(extents, long, threads, order=(2, 3, 4, 5), share=self.share, parts=1)
        return section, *fit(tile, cost, threads, share=self.share, parts=1)

    def count_sums(self, cost: Cost, cut: Cut) -> None:
        """Count what `sum_up` takes for all blocks, and adding up the sums."""
        raise NotImplementedError

    # -- the ops --------------------------------------------------------------------------------------

    def correlate(
        self, request: Request, launch: Launch, a: np.ndarray, w: np.ndarray, result: Result
    ) -> None:
        """y or dx, a block of groups, channels, images and cells of the same windows on x or dy at a time."""
        problem, dtype = request.problem.volumetric, accumulator(request)
        scratch, phases = Scratch(), phases_of(request.op, problem)
        (read, made), mode = channels_of_group(request), padding_mode(request)
        weights = by_group(w, problem)
        weights = weights.conj() if request.conjugate else weights
        if request.op == "dgrad":
            weights = weights.swapaxes(1, 2)

        def side_by_side(phase: Phase) -> np.ndarray:
            taken = [weights[(ALL, ALL, ALL, *taps)] for taps in phase.taps]
            together = taken[0] if len(taken) == 1 else np.concatenate(taken, axis=1)
            return self.arrange(together, phase.axes, dtype, launch.threads)

        filters = [side_by_side(phase) for phase in phases]

        def block(
            index: int, target: Result, first: int, groups: slice, channels: slice, n: slice, *part: slice
        ) -> None:
            """The block `part` of one phase; image `first` is the target's image 0."""
            phase, there = phases[index], slice(n.start - first, n.stop - first)
            seen = Windows(a[n, all_of(groups, read)], phase.axes, part, mode, dtype, scratch)
            where = there, channels_of(groups, channels, made)
            places = [(*where, *map(every, cells, part)) for cells in phase.cells]
            taken = filters[index][groups, channels] if len(places) == 1 else filters[index][groups]
            self.make_and_store(seen, taken, target, places)

        def parts(target: Result, images: slice) -> Iterator[tuple[Any, ...]]:
            """What `block` takes for these images."""
            for index, phase in enumerate(phases):
                extents = (problem.groups, made, images.stop - images.start, *phase.counts)
                for groups, channels, n, *part in blocks(extents, launch.tile[-6:]):
                    n = slice(images.start + n.start, images.start + n.stop)
                    yield (index, target, images.start, groups, channels, n, *part)

        if not folds(request):
            finish_unmet(request, result, launch.threads)
            spread(block, parts(result, slice(0, problem.n)), launch.threads)
            return

        def folded(images: slice, padded: np.ndarray, inputs: slice) -> None:
            result.store((images, inputs, ALL, ALL, ALL), fold(padded[:, inputs], problem))

        every_channel = list(blocks((problem.c,), (-(-max(problem.c, 1) // launch.threads),)))
        for (images,) in blocks((problem.n,), launch.tile[:1]):
            padded = scratch("gradient", (images.stop - images.start, problem.c, *problem.padded), dtype)
            if unmet(request):
                padded[...] = 0
            spread(block, parts(Result(padded), images), launch.threads)
            spread(folded, ((images, padded, inputs) for (inputs,) in every_channel), launch.threads)

    def wgrad(self, request: Request, launch: Launch, x: np.ndarray, dy: np.ndarray, result: Result) -> None:
        """dw for blocks of groups and input channels, summed over images and output cells in order.

        Where there are too few channels to share among the threads, the images are, in sections whose sums
        are added in order at the end.
        """
        problem, dtype, scratch = request.problem.volumetric, accumulator(request), Scratch()
        axes, (c, k) = windows_of(problem), channels_of_group(request)
        section, *channels_tile = launch.tile[:3]
        places = list(blocks((problem.groups, c), channels_tile))
        sections = [images for (images,) in blocks((max(problem.n, 1),), (section,))]
        sums: list[dict[int, np.ndarray]] = [{} for _ in places]

        def part(images: slice, index: int) -> None:
            groups, inputs = places[index]
            g, part_of_c = lengths(places[index])
            shape = self.sums(axes, g, k, part_of_c)
            there = result.for_sums(where(index)) if self.in_place and len(sections) == 1 else None
            total = np.empty(shape, dtype) if there is None else there.reshape(shape, copy=False)
            read, grad = x[images, channels_of(groups, inputs, c)], dy[images, all_of(groups, k)]
            found = self.summed(request, launch, axes, read, grad, total, scratch)
            if len(sections) > 1:
                sums[index][images.start] = found
            elif there is None:
                result.store(where(index), found)

        def add_up(index: int) -> None:
            first, *others = (sums[index].pop(images.start) for images in sections)
            for other in others:
                first += other
            result.store(where(index), first)

        def where(index: int) -> tuple[slice, ...]:
            groups, inputs = places[index]
            return (all_of(groups, k), inputs, ALL, ALL, ALL)

        each = range(len(places))
        spread(part, itertools.product(sections, each), launch.threads)
        if len(sections) > 1:
            spread(add_up, ((index,) for index in each), launch.threads)

    def summed(
        self,
        request: Request,
        launch: Launch,
        axes: Axes,
        x: np.ndarray,
        dy: np.ndarray,
        total: np.ndarray,
        scratch: Scratch,
    ) -> np.ndarray:
        """The gradient (groups, k, c, T, R, S) of some images and channels, of sums made in `total`."""
        begun = False
        for n, *cells in blocks((len(x), *(axis.cells for axis in axes)), launch.tile[3:]):
            grad = dy[(n, ALL, *cells)]
            sums = scratch("sums", total.shape, total.dtype) if begun else total
            seen = Windows(x[n], axes, cells, request.problem.padding_mode, total.dtype, scratch)
            self.sum_up(seen, grad.conj() if request.conjugate else grad, sums)
            if begun:
                np.add(total, sums, out=total)
            begun = True
        if not begun:
            total[...] = 0
        if request.conjugate:
            np.conjugate(total, out=total)
        return self.gradient(axes, x.shape[1] // len(total), total)

    # -- their plans ----------------------------------------------------------------------------------

    def plan(self, request: Request, processor: Processor) -> Schedule:
        """fprop or dgrad in blocks of groups, channels, images and cells; of dx those of the same windows."""
        problem, item = request.problem.volumetric, accumulator(request).itemsize
        (read, made), mode = channels_of_group(request), padding_mode(request)
        phases, finishing = phases_of(request.op, problem), finishing_blocks(request) - 1

        def cost(groups: int, channels: int, n: int, *cells: int) -> int:
            each = (
                self.elements(Sizes(phase.axes, mode, groups, read, channels * len(phase.cells), n, cells))
                for phase in phases
            )
            finished = 0 if folds(request) else finishing * groups * channels * n * math.prod(cells)
            return (max(each, default=0) + finished) * item

        threads = workers(request, processor)
        w_size = math.prod(problem.w_shape())
        filters = w_size * (1 + request.conjugate + threads * copies_filters(request))
        images, gradient = problem.n, 0
        if folds(request):
            # The padded input's gradient is shared by all threads, for as many images as their memory allows.
            per_image = (fold_elements(problem) + finishing * math.prod(problem.input)) * problem.c * item
            (images,) = fit((problem.n,), lambda n: n * per_image // threads, threads, share=0.5, parts=1)
            gradient = images * per_image
        most = [max((phase.counts[axis] for phase in phases), default=0) for axis in range(3)]
        extents = (problem.groups, made, images, *most)
        tile = self.tile(request, extents, cost, threads)
        used = max(1, min(threads, block_count(extents, tile) * len(phases)))
        workspace = used * cost(*tile) + gradient + (filters + self.arranged_elements(request)) * item
        axes = "g c n z p q" if request.op == "dgrad" else "g k n z p q"
        if folds(request):
            axes, tile = f"gradient {axes}", (images, *tile)
        return Schedule(workspace, (Launch(self.correlate, axes, tile, threads),))

    def plan_wgrad(self, request: Request, processor: Processor) -> Schedule:
        """wgrad in blocks of groups, input channels, images and cells."""
        problem, item = request.problem.volumetric, accumulator(request).itemsize
        axes, threads, k = windows_of(problem), workers(request, processor), problem.k // problem.groups

        def cost(groups: int, c: int, n: int, *cells: int) -> int:
            sizes = Sizes(axes, problem.padding_mode, groups, c, k, n, cells)
            return (self.sum_elements(sizes) + request.conjugate * groups * k * sizes.pixels) * item

        section, *tile = self.wgrad_tile(request, cost, threads)
        sections = block_count((problem.n,), (section,))
        parts = block_count((problem.groups, problem.c // problem.groups), tile[:2]) * sections
        sums = min(threads, parts) * 2 * math.prod(self.sums(axes, tile[0], k, tile[1]))
        if sections > 1:
            sums += sections * math.prod(problem.w_shape())
        workspace = min(threads, parts) * cost(*tile) + sums * item
        return Schedule(workspace, (Launch(self.wgrad, "section g c n z p q", (section, *tile), threads),))

    # -- their estimates ------------------------------------------------------------------------------

    def cost(self, request: Request, processor: Processor) -> Cost:
        (launch,) = self.plan(request, processor).launches
        cost, tile = Cost(request, launch), launch.tile[-6:]
        if unmet(request):
            cost.megabytes("copied", math.prod(request.shape("dx")))
        again = block_count((cost.made_channels // request.problem.groups,), tile[1:2])
        for phase in phases_of(request.op, request.problem.volumetric):
            cut = Cut(cost, phase.axes, (tile[0], *tile[2:]), len(phase.cells), again)
            cost.share(cut.blocks)
            self.count(cost, cut)
        return cost

    def wgrad_cost(self, request: Request, processor: Processor) -> Cost:
        (launch,) = self.plan_wgrad(request, processor).launches
        section, g, c, *tile = launch.tile
        cost, problem = Cost(request, launch), request.problem.volumetric
        sections = block_count((problem.n,), (section,))
        again = block_count((problem.c // problem.groups,), (c,))
        cut = Cut(cost, windows_of(problem), (g, *tile), again=again)
        cost.share(sections * again * block_count((problem.groups,), (g,)))
        cost.add("call", 10 * cut.blocks)
        cost.read(cut.pixels * problem.k * again, cut.row, problem.k)
        cost.megabytes("copied", (sections - 1) * math.prod(problem.w_shape()))
        self.count_sums(cost, cut)
        return cost


def folds(request: Request) -> bool:
    """Whether there is a gradient of the padded input first."""
    return request.op == "dgrad" and request.problem.padding_mode != "zeros"


def by_group(w: np.ndarray, problem: ConvProblem) -> np.ndarray:
    """The filters (groups, K/groups, C/groups, T, R, S)."""
    g = problem.groups
    return w.reshape(g, problem.k // g, problem.c // g, *problem.filter)


def padding_mode(request: Request) -> str:
    """What is seen outside of the array that is read; dgrad of the padded input reads zeros."""
    return "zeros" if request.op == "dgrad" else request.problem.padding_mode


def channels_of_group(request: Request) -> tuple[int, int]:
    """How many channels of each group fprop or dgrad read, and make."""
    problem = request.problem
    c, k = problem.c // problem.groups, problem.k // problem.groups
    return (k, c) if request.op == "dgrad" else (c, k)


def channels_of(groups: slice, part: slice, each: int) -> slice:
    """A part of the channels of one group, or all channels of some, of so many each."""
    return slice(groups.start * each + part.start, (groups.stop - 1) * each + part.stop)


def all_of(groups: slice, each: int) -> slice:
    return slice(groups.start * each, groups.stop * each)


def store_by_place(y: np.ndarray, places: Places, result: Result) -> None:
    """Store a block (N, groups, made, D, H, W), the channels of each place where they belong."""
    each = y.shape[2] // len(places)
    for index, place in enumerate(places):
        result.store(place, y[:, :, index * each : (index + 1) * each])


def finish_unmet(request: Request, result: Result, threads: int) -> None:
    """Finish the cells of dx that no tap meets, where zero is the sum; all others are still to be stored."""
    if not unmet(request):
        return
    # Zero everywhere is made faster than zero at every second cell.
    problem = request.problem.volumetric
    mask = None if result.plain else unmet_cells(problem)
    images = -(-max(problem.n, 1) // threads)
    spread(partial(result.store_zero, mask=mask), blocks((problem.n,), (images,)), threads)
