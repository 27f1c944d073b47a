"""What a plan of the NumPy path costs: what it does, counted, times what each thing takes.

Every family counts what its blocks do: copies by their bytes and runs, products by their operations, operands
and number, and calls of NumPy. The rates are those of one machine, found from the times of random problems
(`python -m tests.sweep --fit`). They only have to rank; `algorithm="tune"` measures yours.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from ..problem import Request
from ..processor import Processor
from .blocking import Launch, block_count
from .products import LONG
from .result import accumulator
from .windows import PIECE, Axes, Axis, dense, piece_count

RATES: dict[str, float] = {
    "part": 49,
    "call": 1.6,
    "thread": 420,
    "copied MB": 41,
    "run": 0.004,
    "strided": 0.00017,
    "added MB": 87,
    "converted float16": 0.0021,
    "converted bfloat16": 5.3e-05,
    "scattered float16": 0.002,
    "scattered bfloat16": 0.0019,
    "far cell": 0.0046,
    "phase cell": 0.00098,
    "multiplied float32": 19,
    "multiplied float64": 38,
    "multiplied integers": 600,
    "multiplied rows MB": 36,
    "multiplied row": 0.0047,
    "thin result": 0.00012,
    "matrix": 0.068,
    "packed MB": 7.6,
    "packed complex MB": 19,
    "transposed": 0.0002,  # by the suites, in which it decides on wgrad; the fit makes it 5e-5
    "made MB": 31,
    "banded MB": 7.5,
    "small matrix": 0.12,
    "scaled MB": 53,
    "scaled integers MB": 55,
    "scaled row": 0.073,
    "dotted MB": 34,
    "dotted integers MB": 120,
    "dotted row": 0.018,
}
"""Microseconds for one of what `Cost` counts."""

CONTENTION = 1.3
"""How much longer threads take beside each other: they share caches and memory."""


class Cost:
    """What the blocks of a launch do, all of them together."""

    def __init__(self, request: Request, launch: Launch) -> None:
        self.dtype = accumulator(request)
        self.converted = request.dtype if self.dtype != request.dtype else None
        self.channels_first = request.layout == "channels_first"
        self.op, self.problem = request.op, request.problem.volumetric
        x, y = (self.problem.c, self.problem.input), (self.problem.k, self.problem.output)
        # Channels and extents of what is read through windows, and channels of the other activation.
        (self.read_channels, self.extents), (self.made_channels, _) = (y, x) if self.op == "dgrad" else (x, y)
        self.apart = self.problem.stride[2] if self.op == "dgrad" else 1  # cells along W of what is made
        self.threads, self.parts = launch.threads, 0.0
        self.counts: defaultdict[str, float] = defaultdict(float)

    def add(self, what: str, count: float) -> None:
        """Count something that has a rate."""
        self.counts[what] += count

    def share(self, parts: float) -> None:
        """Count parts that the threads share."""
        self.parts += parts
        self.add("part", parts)

    def megabytes(self, what: str, elements: float) -> None:
        """Count elements of the accumulator's dtype by their bytes."""
        self.add(f"{what} MB", elements * self.dtype.itemsize * 1e-6)

    def passed(self, what: str, elements: float) -> None:
        """Count elements that a multiplication passes over."""
        self.megabytes(f"{what} integers" if self.dtype.kind == "i" else what, elements)

    def copy(self, elements: float, run: float, contiguous: bool = True) -> None:
        """Count elements that are copied in runs of so many, one by one where these are not contiguous."""
        self.megabytes("copied", elements)
        self.add("run", elements / max(run, 1))
        if not contiguous:
            self.add("strided", elements)

    def read(self, elements: float, row: float, channels: float, inside: bool = False) -> None:
        """Count elements that are copied from an operand of so many channels, so many cells in a row.

        `inside` says that the copy has the channels inside, where it has the cells otherwise.
        """
        run = longest(channels, row) if inside else longest(row, channels)
        self._convert(elements, run, channels == 1 or inside != self.channels_first)

    def store(
        self,
        elements: float,
        row: float,
        channels: float,
        together: float,
        inside: bool = False,
        stride: int = 1,
    ) -> None:
        """The same for what is copied to the result, where cells along W are a stride apart.

        So many channels of it are stored `together`.
        """
        run = longest(row, together) if self.channels_first else longest(together, row)
        apart = self.channels_first and stride > 1
        self._convert(elements, run, (channels == 1 or inside != self.channels_first) and not apart)
        if stride > 1:  # cache lines of which less is stored
            line = 64 / self.dtype.itemsize / (1 if self.channels_first else together)
            self.megabytes("copied", elements * max(min(stride, line) - 1, 0))

    def _convert(self, elements: float, run: float, contiguous: bool) -> None:
        self.copy(elements, run, contiguous)
        if self.converted:
            self.add(f"{'converted' if contiguous else 'scattered'} {self.converted}", elements)

    def gather(self, cut: Cut, times: float = 1, inside: bool = False) -> None:
        """Count what `Windows.gather` brings together in all blocks, or in a part of them."""
        elements, blocks = times * cut.elements, times * cut.blocks
        if cut.dense:
            self.add("call", 18 * blocks)
        elif elements > PIECE * cut.pieces * blocks:
            self.add("call", 10 * blocks * cut.pieces)
        else:
            self.add("call", 60 * blocks)
            self.add("far cell", elements)
        self.read(elements, cut.run, self.read_channels, inside)

    def store_blocks(self, cut: Cut, inside: bool = False, by_group: bool = False) -> None:
        """Count what `store_by_place` does for all blocks; `inside` as in `store`.

        `by_group` says that the channels of one group alone lie at equal distances in a block.
        """
        self.add("call", cut.blocks * cut.places)
        made = cut.pixels * cut.places * self.made_channels
        together = (1 if by_group else cut.groups) * cut.made // cut.places
        self.store(made, cut.row, self.made_channels, together, inside, self.apart)

    def product(self, count: float, m: float, k: float, n: float, along_rows: bool = True) -> None:
        """Count so many matrix products of m by k by n; `along_rows` as `matmul` says."""
        operations = count * m * k * n
        if k == 1:
            self.megabytes("copied", operations)
            return
        if self.dtype.kind == "i" and along_rows and n >= LONG:
            self.megabytes("multiplied rows", operations)
            self.add("multiplied row", operations / n)
        elif self.dtype.kind == "i":
            self.add("multiplied integers", operations * 1e-6)
        elif min(m, n) < 2:
            self.add("thin result", count * m * n)
        else:
            real = np.empty(0, self.dtype).real.dtype
            tiles = count * math.ceil(m / 4) * math.ceil(n / 4) * (1 if real == self.dtype else 4)
            self.add(f"multiplied {real}", 16 * tiles * k * 1e-6)  # BLAS makes four by four at once
        self.add("matrix", count)
        self.megabytes("packed complex" if self.dtype.kind == "c" else "packed", count * (m + n) * k)
        self.megabytes("made", count * m * n)

    @property
    def rounds(self) -> float:
        """The part of all work that one thread does; threads share the parts as evenly as they can."""
        share = math.ceil(self.parts / self.threads) / max(self.parts, 1)
        return share * CONTENTION if self.started else share

    @property
    def started(self) -> float:
        """How many threads are started beside the caller."""
        return min(self.threads, max(self.parts, 1)) - 1

    @property
    def seconds(self) -> float:
        """The predicted time."""
        shared = sum(RATES[what] * count for what, count in self.counts.items())
        return 1e-6 * (shared * self.rounds + RATES["thread"] * self.started)


class Cut:
    """How a tile cuts what is made through windows: into how many blocks, and what these read.

    A block has so many `groups`, channels of each that are `made`, `images` and, along each axis, output
    cells `counts`, and brings together the cells `reads` of an image's channel; all blocks do so `reading`
    times, and bring together so many `elements`, in runs of `run`. `row` output cells are neighbours, `width`
    along W. So many `places` of the result are made of what the windows see, with so many `weights`.
    """

    def __init__(self, cost: Cost, axes: Axes, tile: Sequence[int], places: int = 1, again: int = 1) -> None:
        """Of a tile of groups, images and cells, `again` for so many parts of the channels of each group."""
        problem, self.axes, self.places, self.again = cost.problem, axes, places, again
        self.groups, self.images = (
            min(max(extent, 1), most) for extent, most in zip((problem.groups, problem.n), tile, strict=False)
        )
        self.counts = [min(max(axis.cells, 1), most) for axis, most in zip(axes, tile[2:], strict=True)]
        cuts = block_count([axis.cells for axis in axes], self.counts)
        self.blocks = again * cuts * block_count((problem.groups, problem.n), tile[:2])
        self.cells = math.prod(axis.cells for axis in axes)
        self.pixels = problem.n * self.cells
        self.taps = math.prod(axis.taps for axis in axes)
        self.weights = places * self.taps * problem.k * problem.c // problem.groups
        self.reads = list(map(Axis.read, axes, self.counts))
        self.made = -(-cost.made_channels // (problem.groups * (1 if cost.op == "wgrad" else again))) * places
        self.reading = problem.n * cost.read_channels * cuts
        if cost.op != "wgrad":  # in which each part reads channels of its own
            self.reading *= again
        self.elements = self.reading * math.prod(self.reads)
        self.dense, self.pieces = dense(axes, self.counts), piece_count(axes, self.counts)
        each = zip(axes, self.counts, self.reads, strict=True)
        piece = [read if axis.dense(count) else count for axis, count, read in each]
        self.width, self.row, self.run = self.counts[2], longest(*self.counts[::-1]), longest(*piece[::-1])

    def padded(self, extents: Sequence[int]) -> float:
        """The share of the blocks that read cells outside of an array of such extents."""
        inside = 1.0
        for axis, count, extent in zip(self.axes, self.counts, extents, strict=True):
            edges = (axis.start < 0) + (axis.start + axis.reach(axis.cells) > extent)
            inside *= max(1 - edges / block_count((axis.cells,), (count,)), 0)
        return 1 - inside


def longest(*extents: float) -> float:
    """The extent of the innermost axis, axes of one element left out."""
    return next((extent for extent in extents if extent > 1), 1)


def estimate(count: Callable[[Request, Processor], Cost]) -> Callable[[Request, Processor], float]:
    """The estimate of a table's entry, from a function that counts what its plan does."""

    @functools.wraps(count)
    def seconds(request: Request, processor: Processor) -> float:
        problem = request.problem
        return count(request, processor).seconds if problem.macs * math.prod(problem.input) else 0.0

    return seconds
