"""How a convolution is cut into blocks: what each computes, which cells it reads, with which padding.

One axis at a time, by the definition: output p reads the padded coordinates p s - a to p s - a + d (R - 1),
and an input cell is read by the outputs whose windows hold it. So a block of a result needs cells of its
neighbours' chunks, its halo; what lies beyond the input it gets as padding. Nothing here knows of Dask.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from ..cpu.padding import source
from ..problem import ConvProblem

Range = tuple[int, int]

Part = tuple[int, int, int]
"""Of a chunk: its number, and the first cell within it and the one behind the last."""

Places = slice | np.ndarray


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of an axis: parts of chunks, one after another; with `order` those places of the joined parts."""

    parts: tuple[Part, ...]
    order: tuple[Places, ...] = ()

    @property
    def count(self) -> int:
        if self.order:
            return sum(map(_count, self.order))
        return sum(stop - start for _, start, stop in self.parts)


def _count(places: Places) -> int:
    return len(places) if isinstance(places, np.ndarray) else places.stop - places.start


class Axis:
    """An axis in chunks."""

    def __init__(self, chunks: Sequence[int]) -> None:
        self.chunks = tuple(int(size) for size in chunks)
        self.starts = (0, *accumulate(self.chunks))
        self.extent = self.starts[-1]

    @property
    def blocks(self) -> list[Range]:
        """The chunks as ranges, but for empty ones; an empty axis is one."""
        return ranges(self.extent, self.starts)

    def between(self, low: int, high: int) -> Cells:
        """The cells from `low` on and before `high`, of which there may be none."""
        number = max(min(bisect_right(self.starts, low), len(self.chunks)) - 1, 0)
        parts: list[Part] = []
        while number < len(self.chunks):
            start = self.starts[number]
            if parts and start >= high:
                break
            parts.append((number, max(low - start, 0), min(high - start, self.chunks[number])))
            number += 1
        return Cells(tuple(part for part in parts if part[1] < part[2] or len(parts) == 1))

    def gathered(self, low: int, high: int, others: np.ndarray) -> tuple[tuple[Part, ...], slice, np.ndarray]:
        """Parts that hold all cells between, and a few others, and where the ones and the others are in them.

        Of each chunk it is one part, from the first of the cells to the last.
        """
        wanted = {
            number: (start, stop) for number, start, stop in self.between(low, high).parts if low < high
        }
        numbers = np.array([bisect_right(self.starts, cell) - 1 for cell in others.tolist()], np.int64)
        for number in np.unique(numbers).tolist():
            cells = others[numbers == number] - self.starts[number]
            start, stop = wanted.get(number, (self.extent, 0))
            wanted[number] = min(start, int(cells.min())), max(stop, int(cells.max()) + 1)
        parts = tuple((number, *wanted[number]) for number in sorted(wanted))
        shift, before = {}, 0
        for number, start, stop in parts:
            shift[number] = before - start - self.starts[number]
            before += stop - start
        places = others + np.array([shift[number] for number in numbers.tolist()], np.int64)
        first = low + shift[bisect_right(self.starts, low) - 1] if low < high else 0
        return parts, slice(first, first + max(high - low, 0)), places


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

    @property
    def shift(self) -> int:
        """From the cell at the centre of a window to where the window's output is, times the stride."""
        return self.before - (self.reach - 1) // 2


def lines(problem: ConvProblem) -> list[Line]:
    """A problem's spatial axes."""
    befores, afters = zip(*problem.padding, strict=True)
    modes = (problem.padding_mode,) * problem.rank
    numbers = (problem.input, problem.filter, problem.output, problem.stride, problem.dilation)
    return list(map(Line, *numbers, befores, afters, modes))


def output_cuts(line: Line, cuts: Iterable[int]) -> list[int]:
    """Where the output is cut when the input is cut at `cuts`: an output is where its window's centre is."""
    return [-(-(cut + line.shift) // line.stride) for cut in cuts]


def input_cuts(line: Line, cuts: Iterable[int]) -> list[int]:
    """Where the input is cut when the output is: at the centre of the first window behind the cut."""
    return [cut * line.stride - line.shift for cut in cuts]


class Span(NamedTuple):
    """A block on one spatial axis: the cells of the operand that it reads, and what pads them."""

    block: Range
    cells: Cells
    padding: Range


def windows(line: Line, x: Axis, outputs: Range) -> Span:
    """What a block of outputs sees of the input."""
    low = outputs[0] * line.stride - line.before
    high = (outputs[1] - 1) * line.stride - line.before + line.reach
    if low >= 0 and high <= line.input:
        return Span(outputs, x.between(low, high), (0, 0))
    if line.mode != "zeros":
        first, last = max(low, 0), min(high, line.input)
        before, after = np.arange(low, min(0, high)), np.arange(max(line.input, low), high)
        shown = source(line.mode, np.concatenate((before, after)), line.input)
        parts, inside, places = x.gathered(first, last, shown)
        pieces: tuple[Places, ...] = (places[: len(before)], inside, places[len(before) :])
        return Span(outputs, Cells(parts, tuple(filter(_count, pieces))), (0, 0))
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
    layers: tuple[tuple[Places, Places], ...]


def fold(line: Line, padded: Axis, inputs: Range) -> Fold:
    """Which cells of the padded input show those of a block: the cells themselves, and their images."""
    # But for what is cropped away.
    low, high = max(inputs[0], -line.before), min(inputs[1], line.input + line.after)
    outside = np.concatenate(
        (np.arange(-line.before, min(0, line.input + line.after)),
         np.arange(max(line.input, -line.before), line.input + line.after))
    )  # fmt: skip
    shown = source(line.mode, outside, line.input)
    mine = (inputs[0] <= shown) & (shown < inputs[1])
    images, into = outside[mine], shown[mine] - inputs[0]
    if low >= high and not len(images):
        return Fold(padded.between(0, 0), ())
    parts, own, places = padded.gathered(low + line.before, high + line.before, images + line.before)
    layers: list[tuple[Places, Places]] = []
    if low < high:
        layers.append((slice(low - inputs[0], high - inputs[0]), own))
    while len(into):
        _, once = np.unique(into, return_index=True)
        layers.append((into[once], places[once]))
        places, into = np.delete(places, once), np.delete(into, once)
    return Fold(Cells(parts), tuple(layers))


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
    sides = [(sorted(set(cuts)), per) for cuts, per in ((k_cuts, per_k), (c_cuts, per_c))]
    bounds = {0, groups}
    for cuts, per in sides:
        for cut in cuts if per else ():
            bounds |= {cut // per, -(-cut // per)}
    found = []
    for first, last in pairwise(sorted(bound for bound in bounds if 0 <= bound <= groups)):
        blocks = []
        for cuts, per in sides:
            low, high = first * per, last * per
            inside = cuts[bisect_right(cuts, low) : bisect_left(cuts, high)]
            blocks.append(list(pairwise((low, *inside, high))))
        found.append(Run(first, last - first, *blocks))
    return found
