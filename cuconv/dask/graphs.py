"""The ops as graphs: which block of a result is the sum of which parts.

A part is a call of a public function on two windows: what a block reads of the one operand and of the other.
A result is cut where its operands are, and `conv` is summed over the blocks of input channels,
`conv_input_grad` over those of the output's channels, `conv_weight_grad` over those of images and pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from inspect import signature
from itertools import product
from types import SimpleNamespace
from typing import Any, TypeVar

from .. import api
from ..arrays import Array, numpy_dtype
from ..described import check_algorithm, described
from ..dtypes import DTYPES
from ..problem import Request
from . import cuts
from .cuts import Axis, Cells, Line, Range, Run, Span, lines, ranges, runs
from .tasks import Graph, Key, Task, finished, folded, part

T = TypeVar("T")


@dataclass(frozen=True)
class Op:
    """What is asked for: the result's name, the request, and the function and options of all parts."""

    name: str
    request: Request
    function: str
    options: Mapping[str, Any]
    backend: str

    @property
    def of_halves(self) -> bool:
        """Whether sums are wider than what they are rounded to."""
        return self.dtype() != self.dtype(wide=True)

    def dtype(self, wide: bool = False) -> Any:
        """NumPy's dtype of the result, or of its sums."""
        return numpy_dtype(DTYPES[self.request.dtype].accumulator if wide else self.request.dtype)

    def part(self, wide: bool, *windows: Sequence[Cells], **options: Any) -> Callable[..., Array]:
        """What computes a part, given windows of such cells. Raises where a named algorithm cannot do it."""
        call = {**self.options, **options}
        if call.get("algorithm", "auto") not in ("auto", "tune"):
            shapes = tuple(tuple(cells.count for cells in window) for window in windows)
            dtypes = self.request.inputs or (self.dtype(wide).name,) * 2
            _check(self.function, shapes, dtypes, tuple(call.items()), self.backend)
        return partial(part, self.function, call, wide)

    def finished(self, total: Task, wide: bool, bias: Key | None = None) -> Task:
        """What is left to do with a whole sum: bias, activation, and the rounding of half types."""
        activation = self.request.activation
        if not wide and bias is None and activation is None:
            return total
        channel = 1 if self.request.layout == "channels_first" else 1 + self.request.problem.rank
        return partial(finished, activation=activation, channel=channel, dtype=self.dtype()), total, bias

    def volume(self, first: Any, channel: Any, spatial: Iterable[Any]) -> tuple[Any, ...]:
        """What there is for each axis of a volume, or of filters, in the order of the layout."""
        if self.request.layout == "channels_first":
            return (first, channel, *spatial)
        return (first, *spatial, channel)

    def axes(self, array: Any) -> tuple[Axis, Axis, list[Axis]]:
        """The axes of a volume, or of filters: the first, the channels, and the spatial ones."""
        first, *rest = map(Axis, array.chunks)
        channel = rest.pop(0 if self.request.layout == "channels_first" else -1)
        return first, channel, rest


def conv(op: Op, x: Any, w: Any, bias: Any) -> Any:
    """y, in blocks as those of x and of the filters are."""
    places = lines(op.request.problem)
    n, c, axes = op.axes(x)
    k, per_group, _ = op.axes(w)
    blocks = [
        ranges(line.output, cuts.output_cuts(line, axis.starts))
        for line, axis in zip(places, axes, strict=True)
    ]
    channels = runs(op.request.problem, k.starts, {*c.starts, *_inside_of_one_group(op, per_group)})
    return _products(op, x, w, bias, n.blocks, channels, _each(cuts.windows, places, axes, blocks))


def input_grad(op: Op, dy: Any, w: Any, bias: Any = None, like: Any = None) -> Any:
    """dx, or the transposed convolution, in blocks as those of dy and of the filters are, or of x, `like`.

    Where padding shows cells of the input there is first the gradient of the padded input, then its fold.
    """
    problem = op.request.problem
    n, k, axes = op.axes(dy)
    k_of_w, per_group, _ = op.axes(w)
    c_cuts = {*_inside_of_one_group(op, per_group)}
    places = lines(problem)
    starts: list[Iterable[int]]
    if like is None:
        starts = [cuts.input_cuts(line, axis.starts) for line, axis in zip(places, axes, strict=True)]
    else:
        n, c, of_like = op.axes(like)
        c_cuts.update(c.starts)
        starts = [axis.starts for axis in of_like]
    blocks = [ranges(line.input, each) for line, each in zip(places, starts, strict=True)]
    channels = runs(problem, {*k.starts, *k_of_w.starts}, c_cuts)
    if problem.padding_mode == "zeros":
        spans = _each(cuts.seeing, places, axes, blocks)
        return _products(op, dy, w, bias, n.blocks, channels, spans)
    no_padding = ((0, 0),) * problem.rank
    padded = replace(problem, input=problem.padded, padding=no_padding, padding_mode="zeros")
    of_padded = [
        ranges(extent, (block[1] + line.before for block in there[:-1]))
        for extent, line, there in zip(padded.input, places, blocks, strict=True)
    ]
    spans = _each(cuts.seeing, lines(padded), axes, of_padded)
    first = replace(op, name=op.name.replace("-", "_of_padded-", 1))
    gradient = _products(first, dy, w, None, n.blocks, channels, spans, finish=False)
    return _folds(op, gradient, bias, blocks)


def weight_grad(op: Op, x: Any, dy: Any) -> Any:
    """dw, in blocks as the channels of dy and of x are: a sum over the images and over the blocks of dy."""
    problem, graph = op.request.problem, Graph(op.name, x, dy)
    per_group = problem.c // problem.groups
    (n, c, axes), (n_of_dy, k, axes_of_dy) = op.axes(x), op.axes(dy)
    windows = _each(cuts.windows, lines(problem), axes, [axis.blocks for axis in axes_of_dy])
    spans = [
        [(span, axis.between(*span.block)) for span in each]
        for axis, each in zip(axes_of_dy, windows, strict=True)
    ]
    both = ranges(problem.n, {*n.starts, *n_of_dy.starts})
    batches = [(n.between(*batch), n_of_dy.between(*batch)) for batch in both]
    # An array's rows are all cut alike: where groups differ, none is cut.
    whole = (start for start in c.starts if problem.groups == 1 or not per_group or start % per_group == 0)
    channels = [(run, block) for run in runs(problem, k.starts, whole) for block in run.k]
    wide = op.of_halves and len(batches) * math.prod(map(len, spans)) > 1
    blocks: dict[tuple[int, ...], Task] = {}
    for number, (run, of_k) in enumerate(channels):
        given_channels = k.between(*of_k)
        for place, of_c in enumerate(run.c):
            seen_channels = c.between(*of_c)
            extents = op.volume(_size(of_k), _size(run.in_group(of_c, per_group)), problem.filter)
            parts = []
            for at, ((seen_batch, given_batch), *spot) in _numbered([batches, *spans]):
                padding = tuple(span.padding for span, _ in spot)
                seen = op.volume(seen_batch, seen_channels, (span.cells for span, _ in spot))
                given = op.volume(given_batch, given_channels, (cells for _, cells in spot))
                parts.append(
                    (
                        op.part(wide, seen, given, weight_shape=extents, groups=run.groups, padding=padding),
                        graph.window("window", x, (run.first, place, *at), seen),
                        graph.window("dy", dy, (number, *at), given),
                    )
                )
            index = op.volume(number, place, (0,) * problem.rank)
            blocks[index] = op.finished(graph.sum(index, parts), wide)
    run = channels[0][0]
    k_sizes = _sizes(of_k for _, of_k in channels)
    c_sizes = _sizes(run.in_group(of_c, per_group) for of_c in run.c)
    chunks = op.volume(k_sizes, c_sizes, ([extent] for extent in problem.filter))
    return graph.array(blocks, chunks, x, op.dtype())


def bias_grad(op: Op, dy: Any) -> Any:
    """db, in blocks as the channels of dy are: a sum over all others."""
    graph = Graph(op.name, dy)
    n, k, axes = op.axes(dy)
    pixels = [[axis.between(*block) for block in axis.blocks] for axis in (n, *axes)]
    channels = k.blocks
    wide = op.of_halves and math.prod(map(len, pixels)) > 1
    blocks: dict[tuple[int, ...], Task] = {}
    for number, channel in enumerate(channels):
        parts = []
        for at, (images, *spot) in _numbered(pixels):
            cells = op.volume(images, k.between(*channel), spot)
            parts.append((op.part(wide, cells), graph.window("dy", dy, (number, *at), cells)))
        blocks[number,] = op.finished(graph.sum((number,), parts), wide)
    return graph.array(blocks, (_sizes(channels),), dy, op.dtype())


@lru_cache(maxsize=4096)
def _check(
    function: str, shapes: tuple[Any, ...], dtypes: tuple[str, ...], options: tuple[Any, ...], backend: str
) -> None:
    """Raise where the algorithm among the options of a part cannot compute it."""
    core, call = getattr(api, function), dict(options)
    windows = {
        name: SimpleNamespace(shape=shape, dtype=numpy_dtype(dtype))
        for name, shape, dtype in zip(signature(core).parameters, shapes, dtypes, strict=False)
    }
    planned = described(core, call, windows)
    check_algorithm(planned.call.request, call["algorithm"], backend)


def _size(block: Range) -> int:
    return block[1] - block[0]


def _sizes(blocks: Iterable[Range]) -> list[int]:
    return list(map(_size, blocks))


def _inside_of_one_group(op: Op, per_group: Axis) -> Sequence[int]:
    """Where the input channels are cut as the filters' C/groups are: with several groups nowhere."""
    return per_group.starts if op.request.problem.groups == 1 else ()


def _each(
    of_block: Callable[[Line, Axis, Range], T],
    places: Sequence[Line],
    axes: Sequence[Axis],
    blocks: Sequence[Sequence[Range]],
) -> list[list[T]]:
    """What a function makes of every block, on each spatial axis."""
    return [
        [of_block(line, axis, block) for block in there]
        for line, axis, there in zip(places, axes, blocks, strict=True)
    ]


def _bias(graph: Graph, bias: Any, number: int, channel: Range) -> Key | None:
    """The part of a bias for a block of channels, if there is a bias."""
    if bias is None:
        return None
    return graph.window("bias", bias, (number,), [Axis(bias.chunks[0]).between(*channel)])


def _numbered(blocks: Sequence[Iterable[Any]]) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
    """All combinations of one block for each axis, with their numbers."""
    for combination in product(*map(enumerate, blocks)):
        yield tuple(number for number, _ in combination), tuple(block for _, block in combination)


def _products(
    op: Op, operand: Any, w: Any, bias: Any,
    batches: Sequence[Range], channels: Sequence[Run], spans: Sequence[Sequence[Span]], finish: bool = True,
) -> Any:  # fmt: skip
    """fprop of x, or dgrad of dy: every block is a sum over the blocks of the operand's channels.

    Without `finish` half types stay as wide as their sums, and the activation is left out.
    """
    graph, forward = Graph(op.name, operand, w, bias), op.request.op == "fprop"
    n, channel_axis, _ = op.axes(operand)
    cells_of_batches = [n.between(*batch) for batch in batches]
    made = [(run, block) for run in channels for block in (run.k if forward else run.c)]
    wide = op.of_halves and (not finish or any(len(run.c if forward else run.k) > 1 for run in channels))
    blocks: dict[tuple[int, ...], Task] = {}
    for number, (run, channel) in enumerate(made):
        others = run.c if forward else run.k
        read = [channel_axis.between(*other) for other in others]
        filters = [
            _filters(op, w, run, *((channel, other) if forward else (other, channel))) for other in others
        ]
        of_w = [graph.window("filters", w, (number, place), cells) for place, cells in enumerate(filters)]
        of_bias = _bias(graph, bias, number, channel)
        fused = finish and not wide and len(others) == 1
        for at, (batch, *spot) in _numbered([batches, *spans]):
            options: dict[str, Any] = dict(groups=run.groups, padding=tuple(span.padding for span in spot))
            if op.function == "conv_input_grad":
                extents = _sizes(span.block for span in spot)
                options["input_shape"] = op.volume(_size(batch), _size(channel), extents)
            if fused and op.request.activation is not None:
                options["activation"] = op.request.activation
            parts = []
            for place, cells in enumerate(read):
                seen = op.volume(cells_of_batches[at[0]], cells, (span.cells for span in spot))
                window = graph.window("window", operand, (run.first, place, *at), seen)
                parts.append((op.part(wide, seen, filters[place], **options), window, of_w[place]))
            index = op.volume(at[0], number, at[1:])
            if fused:
                blocks[index] = parts[0] if of_bias is None else (*parts[0], of_bias)
            else:
                total = graph.sum(index, parts)
                blocks[index] = op.finished(total, wide, of_bias) if finish else total
    pixels = (_sizes(span.block for span in each) for each in spans)
    chunks = op.volume(_sizes(batches), _sizes(channel for _, channel in made), pixels)
    return graph.array(blocks, chunks, operand, op.dtype(wide and not finish))


def _filters(op: Op, w: Any, run: Run, k: Range, c: Range) -> tuple[Cells, ...]:
    """The filters between two blocks of channels."""
    k_axis, c_axis, taps = op.axes(w)
    cells = (k_axis.between(*k), c_axis.between(*run.in_group(c, c_axis.extent)))
    return op.volume(*cells, (axis.between(0, axis.extent) for axis in taps))


def _folds(op: Op, padded: Any, bias: Any, blocks: Sequence[Sequence[Range]]) -> Any:
    """The gradient of the input, in these blocks, from that of the padded input."""
    graph, problem = Graph(op.name, padded, bias), op.request.problem
    n, channels, axes = op.axes(padded)
    folds = _each(cuts.fold, lines(problem), axes, blocks)
    first = 2 if op.request.layout == "channels_first" else 1
    made: dict[tuple[int, ...], Task] = {}
    for at, (batch, channel, *spot) in _numbered([n.blocks, channels.blocks, *folds]):
        extents = [_size(there[number]) for there, number in zip(blocks, at[2:], strict=True)]
        cells = op.volume(n.between(*batch), channels.between(*channel), (each.cells for each in spot))
        window = graph.window("window", padded, at, cells)
        of_bias = _bias(graph, bias, at[1], channel)
        task = (partial(folded, folds=[each.layers for each in spot], extents=extents, first=first), window)
        made[op.volume(at[0], at[1], at[2:])] = op.finished(task, op.of_halves, of_bias)
    chunks = op.volume(_sizes(n.blocks), _sizes(channels.blocks), map(_sizes, blocks))
    return graph.array(made, chunks, padded, op.dtype())
