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
from .result import accumulator
from .windows import Axes, Axis, dense

RATES: dict[str, float] = {
    "part": 47,
    "call": 1.7,
    "thread": 600,
    "copied MB": 57,
    "run": 0.0038,
    "strided": 0.00025,
    "converted float16": 0.002,
    "converted bfloat16": 0.00049,
    "multiplied float32": 22,
    "multiplied float64": 41,
    "multiplied integers": 650,
    "multiplied by rows": 170,
    "thin result": 0.0015,
    "matrix": 0.018,
    "packed MB": 9.8,
    "made MB": 80,
    "banded MB": 8.2,
    "small matrix": 0.064,
    "scaled MB": 58,
    "scaled row": 0.28,
    "dotted MB": 40,
    "dotted row": 0.082,
    "dotted integers MB": 97,
    "phase cell": 0.00086,
    "far cell": 0.0011,
}
"""Microseconds for one of what `Cost` counts."""


class Cost:
    """What the blocks of a launch do, all of them together."""

    def __init__(self, request: Request, launch: Launch) -> None:
        self.dtype = accumulator(request)
        self.converted = request.dtype if self.dtype != request.dtype else None
        self.channels_first = request.layout == "channels_first"
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

    def copy(self, elements: float, run: float, contiguous: bool = True) -> None:
        """Count elements that are copied in runs of so many, one by one where these are not contiguous."""
        self.megabytes("copied", elements)
        self.add("run", elements / max(run, 1))
        if not contiguous:
            self.add("strided", elements)

    def image(self, elements: float, run: float, channels_inside: bool = False) -> None:
        """The same from or to an operand or the result, whose layout may be another than that of the copy."""
        self.copy(elements, run, channels_inside != self.channels_first)
        if self.converted:
            self.add(f"converted {self.converted}", elements)

    def gather(self, images: float, cut: Cut, inside: int = 0) -> None:
        """Count what is brought together for all windows of so many images, a channel each.

        Where so many channels go `inside`, neighbours are channels, otherwise cells along W.
        """
        elements = images * cut.read
        self.image(elements, inside if inside and not self.channels_first else cut.run, inside > 0)
        self.add("call", 15 * cut.blocks)
        if not cut.dense:
            self.add("far cell", elements)

    def product(self, count: float, m: float, k: float, n: float) -> None:
        """Count so many matrix products of m by k by n."""
        operations = count * m * k * n
        if self.dtype.kind == "i":
            self.add("multiplied integers", operations * 1e-6)
        elif min(m, n) < 2:
            self.add("thin result", count * m * n)
        else:
            real = np.empty(0, self.dtype).real.dtype
            self.add(f"multiplied {real}", operations * (1 if real == self.dtype else 4) * 1e-6)
        self.add("matrix", count)
        self.megabytes("packed", count * (m + n) * k)
        self.megabytes("made", count * m * n)

    @property
    def rounds(self) -> float:
        """The part of all work that one thread does; threads share the parts as evenly as they can."""
        return math.ceil(self.parts / self.threads) / max(self.parts, 1)

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
    """How a tile cuts the output cells of windows: into how many blocks, and what these read.

    `read` cells in all, in runs of `run` along W; `width` output cells of a block are neighbours along W.
    """

    def __init__(self, axes: Axes, tile: Sequence[int]) -> None:
        self.counts = [min(max(axis.cells, 1), most) for axis, most in zip(axes, tile, strict=True)]
        self.blocks = block_count([axis.cells for axis in axes], self.counts)
        self.cells = math.prod(axis.cells for axis in axes)
        self.taps = math.prod(axis.taps for axis in axes)
        reads = list(map(Axis.read, axes, self.counts))
        self.read = math.prod(reads) * self.blocks
        self.dense = dense(axes, self.counts)
        self.width, self.run = self.counts[2], reads[2]


def estimate(count: Callable[[Request, Processor], Cost]) -> Callable[[Request, Processor], float]:
    """The estimate of a table's entry, from a function that counts what its plan does."""

    @functools.wraps(count)
    def seconds(request: Request, processor: Processor) -> float:
        problem = request.problem
        return count(request, processor).seconds if problem.macs * math.prod(problem.input) else 0.0

    return seconds
