"""`depthwise`: groups of one channel, or few, by tiles in shared memory. See cuda_src/depthwise.cuh."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

from ..dtypes import DTYPES
from ..problem import ConvProblem, Request
from .cost import Threads, real_products, seconds
from .device import Device
from .geometry import Fields, axes, digits, divisor
from .kernel import Kernel, Launch
from .schedule import (
    C_TYPES,
    LIMIT,
    Draft,
    beyond_32_bits,
    padding_is_near,
    per,
    reduce_seconds,
    seen_by,
    split_sum,
)

THREADS = 256

SHARED = 63 << 10
"""Bytes of shared memory that a block may have: every architecture has them, most for several blocks."""

MOST = 4096
"""Taps of a line, or lines of them, in a pass."""

MOST_CHANNELS = 16
"""Channels of x that a group may have."""

LANES = 32
"""Channels that neighbouring threads have in channels-last arrays."""

WAVE = 132
"""Multiprocessors of a large GPU, of which each does two blocks at once."""

START, ADDED, PARTS = 0.3, 0.7, 1.501
"""In tiles, what a block takes before its first one, or to add up its threads' sums; and a second launch."""


def reads_padding(request: Request) -> bool:
    problem = request.problem
    return problem.c == problem.groups and padding_is_near(request)


def build(draft: Draft) -> list[Launch]:
    request, problem = draft.request, draft.problem
    view = _view(request, problem)
    assert view is not None
    tile, grid = view.tile, _grid(request, problem, view)
    fields: Fields = {
        "axis": _axes(request, problem, view),
        "channels": tile.held,
        "lanes": _lanes(request, view),
        "digit": digits((*grid.digits, tile.along, tile.across)),
        "pixel": tuple(map(divisor, grid.passes)),
        "group": divisor(grid.shares),
        "chunk": grid.chunk,
        "items": grid.items,
    }
    if not view.shown:
        fields["mode"] = 0  # also where all of an axis's padding crops
    kernel = _kernel(view.template, request.dtype, view.last, view.shown, view.shape, view.several)
    if request.op == "wgrad":
        return split_sum(
            draft, kernel, math.prod(grid.digits), fields, (grid.runs, grid.chunk),
            axes=view.order, shared_bytes=tile.shared_bytes,
        )  # fmt: skip
    sources, results = _of_group(request.op, problem)
    fields |= {"filters": sources, "splits": tile.together, "items": results}
    return [
        draft.launch(
            kernel, grid.blocks, draft.fields(**fields), axes=view.order, shared_bytes=tile.shared_bytes
        )
    ]


def applies(request: Request, device: Device | None) -> str | None:
    problem = seen_by(reads_padding, request)
    several = problem.c != problem.groups
    if several and not _has_several(request, problem):
        one = f"it needs groups == C, and groups is {problem.groups}, C {problem.c}"
        return f"{one}, or groups of {MOST_CHANNELS} channels at the most and 3x3 filters, in float32"
    if reason := beyond_32_bits(request):
        return reason
    view = _view(request, problem)
    if view is None:
        return f"the cells of a few results do not fit in {SHARED} bytes of shared memory"
    for line, length in ((view.rows, view.height), (view.columns, view.width)):
        if (length * line.step + line.taps) * line.delta >= LIMIT:
            return "its tiles would reach over 2^30 cells or more"
    grid = _grid(request, problem, view)
    for count, name in ((grid.blocks, "blocks"), (grid.items, "tiles of pixels")):
        if count >= LIMIT:
            return f"it would take {count} {name}, 2^30 or more"
    return None


def estimate(request: Request, device: Device | None) -> float:
    assert device is not None
    problem = seen_by(reads_padding, request)
    view = _view(request, problem)
    assert view is not None
    grid, tile, wgrad = _grid(request, problem, view), view.tile, request.op == "wgrad"
    sources, results = _of_group(request.op, problem)
    multiplier = problem.k // problem.groups
    if wgrad:
        passes, parts = grid.chunk, grid.runs  # of one block
        once = 1000 + 30 * max(view.shape.taps_r * view.shape.taps_s, 16)
    else:
        passes = grid.chunk * math.prod(grid.passes[:2]) * problem.filter[view.order[0]]
        passes *= sources // tile.together * per(results, max(grid.shares, 1) * tile.aside)
        once, parts = 300, 1
    size = float(request.bytes)
    if multiplier > 1 and request.layout == "channels_last":  # a block has one of so many neighbours in y
        size += 0.6 * min(multiplier, 16) * math.prod(problem.y_shape()) * DTYPES[request.dtype].itemsize
    waits, lines = _contention(view, wgrad)
    threads = Threads(
        grid.blocks, THREADS, 2,
        instructions=once + passes * tile.instructions * _more(view, wgrad),
        products=real_products(request) * passes * tile.products,
        waits=passes * waits,
        lines=passes * lines,
    )  # fmt: skip
    return seconds(request, device, threads, size) + reduce_seconds(request, device, parts)


def _contention(view: View, wgrad: bool) -> tuple[float, float]:
    """A pass's waits for memory, and the lines of shared memory that a strip's threads read."""
    shape, short = view.shape, view.width <= 8
    if view.last:
        return (10 if wgrad else 7) + (shape.step == 2) - 3 * short, 0
    if view.several:  # which read the same ones
        return 3, 0
    vectors = (shape.rows + shape.taps_r) * per(shape.out + shape.taps_s, 4)
    # Vectors of short lines meet in banks, most of all those of whole planes.
    if short and shape.taps_r == 3:
        planes = not wgrad and shape.step == shape.spread == 1
        return 3, vectors * (48 if planes else 16)
    return 3, vectors * (8 if view.width <= 16 else 4)


def _more(view: View, wgrad: bool) -> float:
    """How many times a tile's instructions it takes."""
    if view.several:
        return 1.45 if wgrad else 1.6 if max(view.shape.step, view.shape.spread) > 1 else 1.15
    if not wgrad:
        return 1
    # Threads share lines, of which there may be few.
    if not view.shape.taps_r and view.tile.along * view.tile.across * view.tile.held <= LANES:
        return 1.9
    return 1 if view.last else 1.15


# -- what is compiled ---------------------------------------------------------------------------------


class Shape(NamedTuple):
    """Template arguments: a thread's strip; taps that are unrolled, or 0; STEP, SPREAD and ODD."""

    rows: int
    out: int
    taps_r: int = 0
    taps_s: int = 0
    step: int = 1
    spread: int = 1
    odd: int = 0


_GATHERS = (
    Shape(7, 4, 3, 3),
    Shape(7, 4, 5, 5),
    Shape(7, 4, 7, 7),
    Shape(4, 4, 3, 3, step=2),
    Shape(6, 4, 3, 3, spread=2),
    Shape(6, 4, 3, 3, spread=2, odd=1),
    Shape(1, 8, 1, 4),
)
_WGRADS = (
    Shape(7, 4, 3, 3),
    Shape(7, 4, 5, 5),
    Shape(7, 4, 7, 7),
    Shape(7, 4, 3, 3, step=2),
    Shape(1, 8, 1, 4),
)


def _unrolled(dtype: str, op: str) -> tuple[Shape, ...]:
    """Those with a filter in registers, of floats with sums of 32 bits."""
    if DTYPES[dtype].accumulator != "float32":
        return ()
    return _WGRADS if op == "wgrad" else _GATHERS


def _of_several(shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """Those for groups of several channels, in float32: for 16 bits there are tensor cores."""
    return tuple(shape for shape in shapes if shape.taps_r == shape.taps_s == 3)


def _any(dtype: str) -> tuple[Shape, Shape]:
    """Those for any filter: of planes, and of lines."""
    item = DTYPES[DTYPES[dtype].accumulator].itemsize
    return Shape(4 if item == 4 else 2, 4), Shape(1, 8 if item <= 8 else 4)


def _has_lanes(dtype: str) -> bool:
    """Whether neighbouring threads may have neighbouring channels: floats of less than 16 bytes."""
    return DTYPES[dtype].kind not in "iu" and dtype != "complex128"


def kernels(dtype: str) -> Iterator[Kernel]:
    """Every instance for a dtype."""
    for last in (False, True) if _has_lanes(dtype) else (False,):
        for shape in (*_unrolled(dtype, "fprop"), *_any(dtype)):
            yield _kernel("conv_gather_depthwise", dtype, last, False, shape)
        for shape in (*_unrolled(dtype, "wgrad"), *_any(dtype)):
            yield _kernel("conv_wgrad_depthwise", dtype, last, False, shape)
    for shape in _any(dtype):
        yield _kernel("conv_residues_depthwise", dtype, False, False, shape)
        yield _kernel("conv_gather_depthwise", dtype, False, True, shape)
        yield _kernel("conv_wgrad_depthwise", dtype, False, True, shape)
    if dtype == "float32":
        for shape in _of_several(_GATHERS):
            yield _kernel("conv_gather_depthwise", dtype, False, False, shape, several=True)
        for shape in _of_several(_WGRADS):
            yield _kernel("conv_wgrad_depthwise", dtype, False, False, shape, several=True)


def _kernel(
    template: str, dtype: str, last: bool, shown: bool, shape: Shape, several: bool = False
) -> Kernel:
    arguments: tuple[int, ...] = {
        "conv_gather_depthwise": (last, shown, *shape, *(1,) * several),
        "conv_wgrad_depthwise": (last, shown, *shape[:5], *(1,) * several),
        "conv_residues_depthwise": shape[:2],
    }[template]
    many_registers = template == "conv_residues_depthwise" or dtype == "complex128"
    return Kernel(
        "depthwise.cuh", template, (C_TYPES[dtype], THREADS, *map(int, arguments)), THREADS,
        residents=1 if many_registers else 2,
    )  # fmt: skip


# -- how a problem is seen and cut --------------------------------------------------------------------


class Line(NamedTuple):
    """An axis in a block's own numbers: results, taps, cells from a result to the next; how many results
    interleave in the array; and there from a cell to the next one that is read.
    """

    results: int
    taps: int
    step: int
    apart: int
    delta: int

    def tiles(self, length: int) -> int:
        return self.apart * per(per(self.results, self.apart), length)


class Tile(NamedTuple):
    """What a block does at once: strips along columns and rows, and groups, with so many of their channels
    together and so many results aside; how many passes the taps of columns and rows take; cells in a line;
    shared memory; a thread's instructions and products in a pass; and the cost of all tiles, to compare.
    """

    along: int
    across: int
    held: int
    together: int
    aside: int
    cut_s: int
    cut_r: int
    cells: int
    shared_bytes: int
    instructions: float
    products: float
    cost: float


class View(NamedTuple):
    """A request as a template sees it: the order of axes, whether threads lie along channels, whether the
    padding shows cells, whether a gather's groups have several channels, and the cheapest tile.
    """

    template: str
    shape: Shape
    order: tuple[int, int, int]
    rows: Line
    columns: Line
    last: bool
    shown: bool
    several: bool
    tile: Tile

    @property
    def height(self) -> int:
        """A tile's results on the axis of rows."""
        return self.tile.across * self.shape.rows

    @property
    def width(self) -> int:
        return self.tile.along * self.shape.out


class Grid(NamedTuple):
    """What blocks are numbered by, and how often: `runs` of `chunk` images, or of `items` in all. A group's
    results, or pairs of channels, come in so many `shares`.
    """

    digits: tuple[int, int, int, int]
    shares: int
    residues: int
    runs: int
    chunk: int
    items: int
    passes: tuple[int, int, int]

    @property
    def blocks(self) -> int:
        return math.prod(self.digits) * self.residues * self.runs


def _view(request: Request, problem: ConvProblem) -> View | None:
    """None where cells that one strip meets are too far apart for shared memory."""
    shown, plain = reads_padding(request), _is_plain(request)
    return _seen(request.op, request.dtype, request.layout == "channels_last", plain, shown, problem)


def _is_plain(request: Request) -> bool:
    """What is unrolled rounds sums or what relu makes of them, nothing else, and shows no cell but itself."""
    folded = request.op == "dgrad" and request.problem.padding_mode != "zeros"
    fused = request.activation not in (None, "relu") or request.accumulate or request.conjugate_sum
    return not reads_padding(request) and (request.op == "wgrad" or not (folded or fused))


def _has_several(request: Request, problem: ConvProblem) -> bool:
    """Whether there are kernels for groups of so many channels."""
    few = 0 < problem.c <= MOST_CHANNELS * problem.groups
    shapes = _of_several(_WGRADS if request.op == "wgrad" else _GATHERS)
    order = _order(problem)
    fit = any(_fits(shape, request.op, problem, order) for shape in shapes)
    return request.dtype == "float32" and few and _is_plain(request) and fit


@functools.lru_cache(4096)
def _seen(
    op: str, dtype: str, channels_last: bool, plain: bool, shown: bool, problem: ConvProblem
) -> View | None:
    order = _order(problem)
    template = "conv_wgrad_depthwise" if op == "wgrad" else "conv_gather_depthwise"
    several = problem.c != problem.groups
    shapes = _unrolled(dtype, op) if plain else ()
    shape = next((each for each in shapes if _fits(each, op, problem, order)), None)
    kind = op
    if shape is None:
        kind = "taps" if op == "wgrad" else op  # a gather of taps
        if op == "dgrad" and math.prod(problem.stride) > 1:
            template = "conv_residues_depthwise"
    elif shape.spread == 2:
        kind = "spread"
    rows, columns = (_line(kind, problem, axis) for axis in order[1:])
    shape = shape or _any(dtype)[rows.results == 1]
    few_taps = problem.filter[order[1]] * problem.filter[order[2]] <= 64
    usual = not shown and template != "conv_residues_depthwise"
    last = (
        channels_last and not several and problem.c >= LANES // 2 and few_taps and usual and _has_lanes(dtype)
    )
    of_group = _of_group(op, problem)
    for lanes in (True, False) if last else (False,):
        once = problem.filter[order[0]] == 1
        tiles = _tiles(op, dtype, problem.groups, of_group, several, once, shape, rows, columns, lanes)
        if tile := min(tiles, key=lambda tile: tile.cost, default=None):
            return View(template, shape, order, rows, columns, lanes, shown, several, tile)
    return None


def _order(problem: ConvProblem) -> tuple[int, int, int]:
    """(first axis, rows, columns): neighbouring columns are neighbours in memory, and rows have most taps."""
    columns = next((axis for axis in (2, 1, 0) if problem.output[axis] > 1 or problem.input[axis] > 1), 2)
    rows, first = sorted(
        {0, 1, 2} - {columns}, key=lambda axis: (-problem.filter[axis], problem.output[axis] == 1, -axis)
    )
    return first, rows, columns


def _fits(shape: Shape, op: str, problem: ConvProblem, order: tuple[int, int, int]) -> bool:
    """Whether an unrolled filter is the problem's."""
    taps, strides, dilations = (
        tuple(extents[axis] for axis in order)
        for extents in (problem.filter, problem.stride, problem.dilation)
    )
    if taps[1:] != (shape.taps_r, shape.taps_s):
        return False
    if op != "dgrad":
        steps = {s // math.gcd(s, d) for s, d in zip(strides[1:], dilations[1:], strict=True)}
        return shape.spread == 1 and steps == {shape.step}
    if shape.spread == 2:
        begins = {(problem.padding[axis][0] - (problem.filter[axis] - 1)) % 2 for axis in order[1:]}
        return strides == (1, 2, 2) and dilations[1:] == (1, 1) and begins == {shape.odd}
    return strides == (1, 1, 1) and shape.step == 1


def _line(kind: str, problem: ConvProblem, axis: int) -> Line:
    """An axis of an op; or of a weight gradient as a gather of taps; or of dgrad where taps are spread."""
    x, r, y = problem.input[axis], problem.filter[axis], problem.output[axis]
    stride, dilation = problem.stride[axis], problem.dilation[axis]
    common = math.gcd(stride, dilation)
    step, apart = stride // common, dilation // common
    if kind == "dgrad":
        results = per(x, stride)
        return Line(results, per(r, step), 1, min(apart, max(results, 1)), apart)
    if kind == "taps":
        return Line(r, y, apart, min(step, max(r, 1)), stride)
    if kind == "spread":
        return Line(x, r, 1, 1, 1)
    return Line(y, r, step, min(apart, max(y, 1)), dilation)


def _axes(request: Request, problem: ConvProblem, view: View) -> tuple[object, ...]:
    """The members of Params.axis: the problem's, or a gather's, whose results and taps are others."""
    gather = view.template == "conv_gather_depthwise"
    taps = view.template == "conv_wgrad_depthwise" and not view.shape.taps_r
    lines = (None, view.rows, view.columns)
    divisors = (view.tile.cells, view.rows.apart, view.columns.apart)
    found = []
    for axis, standard, line, number in zip(
        view.order, axes(problem, view.order), lines, divisors, strict=True
    ):
        members = standard[:8]
        x, r, y = problem.input[axis], problem.filter[axis], problem.output[axis]
        stride, dilation, before = problem.stride[axis], problem.dilation[axis], problem.padding[axis][0]
        if gather and request.op == "dgrad":
            members = (y, r, x, 1, dilation, (r - 1) * dilation - before, -1, dilation)
        elif taps and line:
            members = (x, y, r, dilation, stride, before, line.step, line.apart)
        elif gather and line:
            members = (*members[:6], line.step, line.apart)
        found.append((*members, divisor(number)))
    return tuple(found)


def _grid(request: Request, problem: ConvProblem, view: View) -> Grid:
    first, shape, tile = view.order[0], view.shape, view.tile
    tiles = view.columns.tiles(view.width), view.rows.tiles(view.height)
    sources, results = _of_group(request.op, problem)
    groups = per(problem.groups, tile.held)
    if request.op == "wgrad":
        shares = results * sources
        channels = groups * (1 if view.several else shares)
        cells, taps = problem.output[first], problem.filter[first]
        passes = tiles if shape.taps_r else (tile.cut_s, tile.cut_r)
        digits = (*((1, 1) if shape.taps_r else tiles), channels, taps)
        items = problem.n * cells * math.prod(passes)
        return Grid(digits, shares, 1, *_cut(items, math.prod(digits)), items, (*passes, cells))
    cells, residues = (problem.output if request.op == "fprop" else problem.input)[first], 1
    if view.template == "conv_residues_depthwise":
        cells, residues = per(cells, problem.stride[first]), math.prod(problem.stride)
    # As few shares of the results as keep all multiprocessors busy.
    blocks = math.prod(tiles) * groups * cells * residues
    runs = per(results, tile.aside)
    most = min(runs, per(2 * WAVE, max(blocks * problem.n, 1))) if view.several else runs
    shares = per(runs, per(runs, most)) if results else 0
    chunk = _images(problem.n, blocks * shares)
    digits = (*tiles, groups * shares, cells)
    cuts = (tile.cut_s, tile.cut_r, tile.aside)
    return Grid(digits, shares, residues, per(problem.n, chunk), chunk, 0, cuts)


def _of_group(op: str, problem: ConvProblem) -> tuple[int, int]:
    """The channels that a group has of the source, and of the result; in wgrad of x and of dy."""
    channels, filters = problem.c // problem.groups, problem.k // problem.groups
    return (filters, channels) if op == "dgrad" else (channels, filters)


def _rounds(blocks: int) -> float:
    """How many blocks a multiprocessor has, in turns: each is done after the other, or two wait at once."""
    return (per(blocks, WAVE) + 2 * per(blocks, 2 * WAVE)) / 2


def _images(images: int, tiles: int) -> int:
    """How many images a block does, so that all multiprocessors are done at about the same time."""

    def taken(chunk: int) -> float:
        return _rounds(tiles * per(images, chunk)) * (chunk + START)

    return min(range(1, min(max(images, 1), 64) + 1), key=taken)


def _cut(items: int, blocks: int) -> tuple[int, int]:
    """(parts, items of each) of a weight gradient, likewise."""

    def taken(parts: int) -> float:
        return _rounds(blocks * parts) * (per(items, parts) + ADDED) + PARTS * (parts > 1)

    most = min(max(per(8 * WAVE, max(blocks, 1)), 1), max(items, 1))
    chunk = max(per(items, min(range(1, most + 1), key=taken)), 1)
    return max(per(items, chunk), 1), chunk


def _lanes(request: Request, view: View) -> int:
    """How many threads copy neighbouring channels of a position, a power of two."""
    if request.layout != "channels_last":
        return 1
    tile = view.tile
    return LANES if view.last else min(1 << (tile.held * tile.together - 1).bit_length(), LANES)


# -- tiles --------------------------------------------------------------------------------------------


def _tiles(
    op: str, dtype: str, groups: int, of_group: tuple[int, int], several: bool, once: bool,
    shape: Shape, rows: Line, columns: Line, last: bool,
) -> Iterator[Tile]:  # fmt: skip
    """Tiles whose cells fit in shared memory; `once` says that the first axis has one tap."""
    slots = THREADS // LANES if last else THREADS
    for along in _shares(per(per(columns.results, columns.apart), shape.out), slots):
        for across in _shares(per(per(rows.results, rows.apart), shape.rows), slots // along):
            room = slots // (along * across)
            all_results = math.prod(of_group) if op == "wgrad" else of_group[1]
            for aside in dict.fromkeys((1, max(min(all_results, room), 1) if several else 1)):
                if op == "wgrad" and several and aside != all_results:
                    continue  # of pairs a block has all
                most = LANES if last else max(min(groups, room // aside), 1)
                for held in (LANES,) if last else dict.fromkeys((most, per(most, 2), per(most, 4), 1)):
                    for together in _together(op, of_group[0], several):
                        found = _fitted(
                            op, dtype, groups, of_group, several, once, shape, rows, columns, last,
                            along, across, held, together, aside,
                        )  # fmt: skip
                        if found:
                            yield found


def _together(op: str, sources: int, several: bool) -> Iterator[int]:
    """How many channels of the source a block may have at once."""
    yield max(sources, 1) if several else 1
    if several and sources > 1 and op != "wgrad":
        yield 1


def _shares(strips: int, most: int) -> Iterator[int]:
    """How many of so many strips a tile may have on an axis, cut evenly."""
    least = max(per(strips, most), 1)
    yield from dict.fromkeys(max(per(strips, parts), 1) for parts in range(least, least + 8))


def _fitted(
    op: str, dtype: str, groups: int, of_group: tuple[int, int], several: bool, once: bool,
    shape: Shape, rows: Line, columns: Line, last: bool,
    along: int, across: int, held: int, together: int, aside: int,
) -> Tile | None:  # fmt: skip
    """A tile with as few passes as fit, if one does."""
    planes = held * together
    unrolled, item = shape.taps_r > 0, DTYPES[DTYPES[dtype].accumulator].itemsize
    height, width = across * shape.rows, along * shape.out
    cut_r, cut_s = (1, 1) if unrolled else (max(per(line.taps, MOST), 1) for line in (rows, columns))
    if op == "wgrad" and not unrolled and rows.taps > 1:  # groups of threads share lines
        cut_s = max(per(columns.taps, 256), cut_s)
    while True:
        taps_r, taps_s = per(max(rows.taps, 1), cut_r), per(max(columns.taps, 1), cut_s)
        lines = ((height - 1) * rows.step + taps_r - 1 + shape.odd) // shape.spread + 1
        cells = ((width - 1) * columns.step + taps_s - 1 + shape.odd) // shape.spread + 1
        brought = _shelf(last, planes, lines, cells, item if several else 0)
        if op == "wgrad":
            of_dy = (height, width) if unrolled else (taps_r, taps_s)
            others = _shelf(last, held * max(aside // together, 1), *of_dy, item if several else 0)
            least = (8 if item > 8 else 16) * THREADS  # to add up
        else:
            line = per(taps_s, 4) * 4 if not unrolled else taps_s
            weights = taps_r * taps_s * (LANES + 1) if last else planes * aside * (taps_r * line | unrolled)
            others = per(weights, 4) * 4
            least = others + (0 if unrolled else THREADS * shape.rows * shape.out)  # to finish one by one
        # Lines are read in vectors, which may go a little past the last one.
        size = max(others + brought + 8 * (LANES if last else 1), least) * item
        if size <= SHARED:
            break
        if unrolled or (taps_r == 1 and taps_s <= 4):
            return None
        if taps_r > 1 and (taps_r > 4 or taps_s < 64):
            cut_r = per(rows.taps, taps_r - max(1, taps_r // 4))
        else:
            cut_s = per(columns.taps, max(taps_s - max(4, taps_s // 4), 4))
    # Instructions of warps: cells come in vectors or one by one; then products, perhaps of groups of threads.
    strips = along * across * (LANES if last else held * aside)
    sharing = max(THREADS // strips, 1) if op == "wgrad" and not unrolled else 1
    warps = min(per(strips * sharing, 32), THREADS // 32)
    products = shape.rows * shape.out * taps_r * taps_s / sharing
    if several and op != "wgrad":  # of spread taps only some meet
        products *= together / shape.spread**2
    real = 4 if DTYPES[dtype].kind == "c" else 1
    # Results, and channels of the source, one after the other.
    results = 1 if op == "wgrad" else max(per(of_group[1], aside), 1)
    passes = 1 if op == "wgrad" else max(of_group[0] // together, 1)
    # Cells stay for all results of a group, if they are there at once.
    share = 1 / results if several and passes * cut_r * cut_s == 1 and once else 1
    instructions = (share * brought + others) / 32 * (5 if last else 5 + 14 / planes)
    instructions += warps * real * products * (1.15 if unrolled else 1.6)
    instructions += warps * (0 if op == "wgrad" else 9 * shape.rows * shape.out)
    instructions += THREADS / 32 * 120
    # A sector takes the L2 about as long as four instructions take a multiprocessor.
    stored = DTYPES[dtype].itemsize
    sectors = share * lines * planes * (cells * stored / 32 + (0 if last else 1))
    blocks = rows.tiles(height) * columns.tiles(width) * per(groups, held)
    cost = results * passes * blocks * (cut_r * cut_s * (instructions + 4 * sectors) + THREADS / 32 * 150)
    return Tile(
        along, across, held, together, aside, cut_s, cut_r, cells, per(size, 16) * 16,
        instructions / (THREADS / 32), products * warps / (THREADS / 32), cost,
    )  # fmt: skip


def _shelf(last: bool, held: int, lines: int, width: int, apart: int) -> int:
    """Elements of a Shelf in depthwise.cuh, of so many bytes if its lines are to be apart."""
    line = per(width, 4) * 4
    line += 4 if apart and line % (128 // apart) == 0 else 0
    return lines * width * LANES if last else held * lines * line
