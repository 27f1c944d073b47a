"""How a convolution is cut into blocks: what each computes, which cells it reads, with which padding.

One axis at a time, by the definition: output p reads the padded coordinates p s - a to p s - a + d (R - 1),
and an input cell is read by the outputs whose windows hold it. So a block of a result needs cells of its
neighbours' chunks, its halo; what lies beyond the input it gets as padding. Nothing here knows of Dask.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from ..cpu.padding import source
from ..problem import ConvProblem

Range = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of an axis: parts of chunks, (number, start, stop) each, one after another.

    With `order` they are those of the joined parts that it names, in its order.
    """

    parts: tuple[tuple[int, int, int], ...]
    order: np.ndarray | None = None


class Axis:
    """An axis in chunks."""

    def __init__(self, chunks: Sequence[int]) -> None:
        self.chunks = tuple(int(size) for size in chunks)
        self.starts = (0, *accumulate(self.chunks))
        self.extent = self.starts[-1]

    def between(self, low: int, high: int) -> Cells:
        """The cells from `low` on and before `high`, of which there may be none."""
        number = max(min(bisect_right(self.starts, low), len(self.chunks)) - 1, 0)
        parts: list[tuple[int, int, int]] = []
        while number < len(self.chunks):
            start = self.starts[number]
            if parts and start >= high:
                break
            parts.append((number, max(low - start, 0), min(high - start, self.chunks[number])))
            number += 1
        return Cells(tuple(part for part in parts if part[1] < part[2] or len(parts) == 1))

    def at(self, cells: np.ndarray) -> Cells:
        """One or more cells in any order: of each chunk what lies between the first and the last of them."""
        numbers = np.searchsorted(self.starts, cells, side="right") - 1
        parts, order, before = [], np.empty(len(cells), np.int64), 0
        for number in np.unique(numbers):
            mine = numbers == number
            first, last = int(cells[mine].min()), int(cells[mine].max())
            start = self.starts[number]
            parts.append((int(number), first - start, last + 1 - start))
            order[mine] = cells[mine] - first + before
            before += last + 1 - first
        return Cells(tuple(parts), None if np.array_equal(order, np.arange(before)) else order)


def ranges(extent: int, cuts: Iterable[int]) -> list[Range]:
    """What lies between the cuts inside of an axis; an empty axis is one range."""
    inside = sorted({cut for cut in cuts if 0 < cut < extent})
    return list(pairwise((0, *inside, extent)))


class Line(NamedTuple):
    """A convolution along one axis, in the letters of `ConvProblem`."""

    input: int
    filter: int
    output: int
    stride: int
    dilation: int
    before: int
    after: int
    mode: str

    @property
    def reach(self) -> int:
        return self.dilation * (self.filter - 1) + 1


def lines(problem: ConvProblem) -> list[Line]:
    """A problem's spatial axes."""
    befores, afters = zip(*problem.padding, strict=True)
    modes = (problem.padding_mode,) * problem.rank
    numbers = (problem.input, problem.filter, problem.output, problem.stride, problem.dilation)
    return list(map(Line, *numbers, befores, afters, modes))


def output_cuts(line: Line, cuts: Iterable[int]) -> list[int]:
    """Where the output is cut when the input is cut at `cuts`: an output is where its window's centre is."""
    centre = line.before - line.dilation * (line.filter - 1) // 2
    return [-(-(cut + centre) // line.stride) for cut in cuts]


def input_cuts(line: Line, cuts: Iterable[int]) -> list[int]:
    """Where the input is cut when the output is: at the centre of the first window behind the cut."""
    centre = line.before - line.dilation * (line.filter - 1) // 2
    return [cut * line.stride - centre for cut in cuts]


class Span(NamedTuple):
    """A block on one spatial axis: the cells of the operand that it reads, and what pads them."""

    block: Range
    cells: Cells
    padding: Range

    @property
    def extent(self) -> int:
        return self.block[1] - self.block[0]


def windows(line: Line, x: Axis, outputs: Range) -> Span:
    """What a block of outputs sees of the input."""
    low = outputs[0] * line.stride - line.before
    high = (outputs[1] - 1) * line.stride - line.before + line.reach
    if low >= 0 and high <= line.input:
        return Span(outputs, x.between(low, high), (0, 0))
    if line.mode != "zeros":
        return Span(outputs, x.at(source(line.mode, np.arange(low, high), line.input)), (0, 0))
    first = min(max(low, 0), line.input)
    last = max(min(high, line.input), first)
    if first == last:  # nothing but padding
        return Span(outputs, x.between(first, last), (high - low, 0))
    return Span(outputs, x.between(first, last), (first - low, high - last))


def seeing(line: Line, dy: Axis, inputs: Range) -> Span:
    """The outputs that see a block of the input, for its gradient.

    The padding is that of a convolution of this block alone which has just these outputs. Where no output
    sees the block it gets the nearest one, since an operand may not be empty along its spatial axes.
    """
    low = -(-(inputs[0] + line.before - line.reach + 1) // line.stride)
    high = (inputs[1] - 1 + line.before) // line.stride + 1
    first = min(max(low, 0), line.output - 1)
    last = max(min(high, line.output), first + 1)
    before = line.before + inputs[0] - first * line.stride
    covered = (last - first - 1) * line.stride + line.reach
    return Span(inputs, dy.between(first, last), (before, covered - (inputs[1] - inputs[0]) - before))


class Fold(NamedTuple):
    """How a block of the input is summed up from the gradient of the padded input, on one axis.

    A layer, (into, places), adds to the cells `into`, none of them twice, what was gathered at `places`.
    """

    cells: Cells
    layers: tuple[tuple[slice | np.ndarray, slice], ...]


def fold(line: Line, padded: Axis, inputs: Range) -> Fold:
    """Which cells of the padded input show those of a block: the cells themselves, and their images."""
    low, high = inputs
    own = np.arange(max(low, -line.before), min(high, line.input + line.after))
    outside = np.concatenate(
        (np.arange(-line.before, min(0, line.input + line.after)),
         np.arange(max(line.input, -line.before), line.input + line.after))
    )  # fmt: skip
    shown = source(line.mode, outside, line.input)
    mine = (low <= shown) & (shown < high)
    images, into = outside[mine], shown[mine] - low
    before = len(own)
    first = int(own[0]) - low if before else 0
    coordinates, layers = [own], [(slice(first, first + before), slice(before))]
    while len(into):
        _, once = np.unique(into, return_index=True)
        coordinates.append(images[once])
        layers.append((into[once], slice(before, before + len(once))))
        before += len(once)
        images, into = np.delete(images, once), np.delete(into, once)
    cells = np.concatenate(coordinates) + line.before
    if len(cells) == 0:  # all is cropped away
        return Fold(padded.between(0, 0), ())
    return Fold(padded.at(cells), tuple(layers))


class Run(NamedTuple):
    """Whole groups one after another, and where their channels are cut: only inside of a single group."""

    first: int
    groups: int
    k: list[Range]
    c: list[Range]

    def in_group(self, c: Range, per_group: int) -> Range:
        """Which channels of the filters' C/groups the input channels `c` of this run are."""
        if self.groups > 1:
            return 0, per_group
        return c[0] - self.first * per_group, c[1] - self.first * per_group


def runs(problem: ConvProblem, k_cuts: Iterable[int], c_cuts: Iterable[int]) -> list[Run]:
    """The channels of a convolution in runs of groups, such that each cut lies between two blocks."""
    groups = problem.groups
    per_k, per_c = problem.k // groups, problem.c // groups
    k_cuts, c_cuts = set(k_cuts), set(c_cuts)
    bounds = {0, groups}
    for cuts, per in ((k_cuts, per_k), (c_cuts, per_c)):
        for cut in cuts if per else ():
            bounds |= {cut // per, -(-cut // per)}
    found = []
    for first, last in pairwise(sorted(bound for bound in bounds if 0 <= bound <= groups)):
        blocks = [
            [(low + first * per, high + first * per)
             for low, high in ranges((last - first) * per, (cut - first * per for cut in cuts))]
            for cuts, per in ((k_cuts, per_k), (c_cuts, per_c))
        ]  # fmt: skip
        found.append(Run(first, last - first, *blocks))
    return found
