"""`depthwise`: groups == C, by tiles in shared memory. See cuda_src/depthwise.cuh."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..dtypes import DTYPES
from ..problem import ConvProblem, Request
from .cost import Threads, real_products, seconds
from .device import Device
from .geometry import Fields, axes, digits, divisor
from .kernel import VECTOR, Kernel, Launch
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
"""Bytes of shared memory that a block may have: every architecture has so much, and most can have several blocks."""

LANES = 32
"""Channels that neighbouring threads have in channels-last arrays."""

WAVE = 264
"""Blocks that a large GPU does at once."""

START, ADDED = 0.3, 0.7
"""What a block takes before its first tile, or to add up what its threads have, in tiles."""

reads_padding = padding_is_near


class Shape(NamedTuple):
    """Template arguments: results of a thread, taps that are unrolled or 0, cells between results, results between taps."""

    rows: int
    out: int
    taps_r: int = 0
    taps_s: int = 0
    step: int = 1
    spread: int = 1


@dataclass(frozen=True)
class Line:
    """One axis as a block sees it: results, taps, cells from one result to the next, how many results interleave, and cells
    from one tap to the next in the source."""

    results: int
    taps: int
    step: int
    apart: int
    delta: int

    def tiles(self, length: int) -> int:
        return self.apart * per(per(self.results, self.apart), length)


@dataclass(frozen=True)
class Tile:
    """What a block does: strips along columns and rows, channels, and into how many passes taps are cut; what it
    needs; a pass's instructions and multiplications of all warps; and all blocks' cost, to compare tiles by.
    """

    along: int
    across: int
    held: int
    cut_s: int
    cut_r: int
    shared_bytes: int
    width: int
    instructions: float
    products: float
    cost: float


class View(NamedTuple):
    """A request as a template sees it: the order of axes, the template, its shape, rows and columns, channels of x,
    whether threads lie along channels."""

    order: tuple[int, int, int]
    template: str
    shape: Shape
    rows: Line
    columns: Line
    channels: int
    last: bool


def build(draft: Draft) -> list[Launch]:
    request, problem = draft.request, draft.problem
    view, tile = _plan(request, problem)
    kernel = _kernel(view.template, request.dtype, view.last, reads_padding(request), view.shape)
    first = view.order[0]
    lanes = LANES if view.last else _lanes(request, tile)
    rows, columns = view.rows, view.columns
    height, width = tile.across * view.shape.rows, tile.along * view.shape.out
    tiles_w, tiles_h = columns.tiles(width), rows.tiles(height)
    tiles_c = per(problem.c, tile.held) * (1 if request.op == "dgrad" else problem.k // problem.c)
    shared: Fields = {"channels": tile.held, "lanes": lanes}
    if not reads_padding(request):  # no cell is outside, as where all is cropped, or outside are zeros
        shared["mode"] = 0
    strips = (tile.along, tile.across)
    if view.template != "conv_wgrad_depthwise":
        cells = (problem.output if request.op == "fprop" else problem.input)[first]
        residues = 1
        if view.template == "conv_residues_depthwise":
            cells = per(cells, problem.stride[first])
            residues = math.prod(problem.stride)
        fields = draft.fields(
            axis=_axes(request, problem, view, tile),
            digit=digits((tiles_w, tiles_h, tiles_c, cells, *strips)),
            pixel=tuple(map(divisor, (tile.cut_s, tile.cut_r, 1))),
            **shared,
        )
        tiles = residues * cells * tiles_c * tiles_h * tiles_w
        fields["chunk"] = chunk = _images(problem.n, tiles)
        blocks = per(problem.n, chunk) * tiles
        return [draft.launch(kernel, blocks, fields, axes=view.order, shared_bytes=tile.shared_bytes)]
    taps, cells = problem.filter[first], problem.output[first]
    if view.shape.taps_r:
        passes, (tiles_w, tiles_h) = (tiles_w, tiles_h), (1, 1)
    else:
        passes = (tile.cut_s, tile.cut_r)
    items = problem.n * cells * math.prod(passes)
    blocks = taps * tiles_c * tiles_h * tiles_w
    fields = {
        "axis": _axes(request, problem, view, tile),
        "digit": digits((tiles_w, tiles_h, tiles_c, taps, *strips)),
        "pixel": tuple(map(divisor, (*passes, cells))),
        "items": items,
        **shared,
    }
    return split_sum(
        draft, kernel, blocks, fields, _cut(items, blocks), axes=view.order, shared_bytes=tile.shared_bytes
    )


def _images(images: int, tiles: int) -> int:
    """How many images a block does, so that the last wave of blocks on a large GPU is a full one."""

    def taken(chunk: int) -> float:
        return per(tiles * per(images, chunk), WAVE) * (chunk + START)

    return min(range(1, max(images, 1) + 1), key=taken)


def _cut(items: int, blocks: int) -> tuple[int, int]:
    """(parts, items of each) of a weight gradient, likewise; a part more costs as much as it takes to add it."""

    def taken(parts: int) -> float:
        return per(blocks * parts, WAVE) * (per(items, parts) + ADDED)

    most = min(max(per(4 * WAVE, max(blocks, 1)), 1), max(items, 1))
    chunk = max(per(items, min(range(1, most + 1), key=taken)), 1)
    return max(per(items, chunk), 1), chunk


def applies(request: Request, device: Device | None) -> str | None:
    problem = seen_by(reads_padding, request)
    if problem.c != problem.groups:
        return f"it needs groups == C, and groups is {problem.groups}, C {problem.c}"
    if reason := beyond_32_bits(request):
        return reason
    view, tile = _plan(request, problem)
    height, width = tile.across * view.shape.rows, tile.along * view.shape.out
    for line, length in ((view.rows, height), (view.columns, width)):
        if (length * line.step + line.taps) * line.delta >= LIMIT:
            return "its tiles would reach over 2^30 cells or more"
    return None


def estimate(request: Request, device: Device | None) -> float:
    assert device is not None
    problem = seen_by(reads_padding, request)
    view, tile = _plan(request, problem)
    first, height, width = view.order[0], tile.across * view.shape.rows, tile.along * view.shape.out
    tiles = view.rows.tiles(height) * view.columns.tiles(width) * per(view.channels, tile.held)
    passes = tile.cut_s * tile.cut_r
    if request.op == "wgrad":
        cells, taps = problem.output[first], problem.filter[first]
        inside = tiles if view.shape.taps_r else passes
        blocks = max(taps * per(view.channels, tile.held) if view.shape.taps_r else taps * tiles, 1)
        if view.shape.taps_r:
            inside //= per(view.channels, tile.held)
        parts, chunk = _cut(problem.n * cells * inside, blocks)
        blocks, after = blocks * parts, 1000 + 30 * max(view.shape.taps_r * view.shape.taps_s, 16)
        added = reduce_seconds(request, device, parts)
    else:
        residues = problem.stride[first] if view.template == "conv_residues_depthwise" else 1
        cells = _channels_cells(request, problem, first) * math.prod(problem.stride) // residues
        tiles *= (
            cells if view.template == "conv_residues_depthwise" else _channels_cells(request, problem, first)
        )
        chunk = _images(problem.n, tiles)
        blocks, after, added = per(problem.n, chunk) * tiles, 500, 0.0
        chunk *= (
            passes * problem.filter[first] * (problem.k // max(problem.c, 1) if request.op == "dgrad" else 1)
        )
    threads = Threads(
        blocks, THREADS, 2,
        instructions=after + chunk * 32 * tile.instructions / THREADS,
        products=real_products(request) * chunk * 32 * tile.products / THREADS,
        waits=3 * chunk,
    )  # fmt: skip
    return seconds(request, device, threads, request.bytes) + added


def _channels_cells(request: Request, problem: ConvProblem, axis: int) -> int:
    """The result's cells on an axis."""
    return problem.output[axis] if request.op == "fprop" else problem.input[axis]


# -- what is compiled ---------------------------------------------------------------------------------

_GATHERS = (
    Shape(7, 4, 3, 3),
    Shape(7, 4, 5, 5),
    Shape(7, 4, 7, 7),
    Shape(4, 4, 3, 3, step=2),
    Shape(6, 4, 3, 3, spread=2),
)
"""Unrolled filters of fprop and dgrad, for floats of up to 32 bits."""

_WGRADS = (Shape(7, 4, 3, 3), Shape(7, 4, 5, 5), Shape(7, 4, 7, 7), Shape(7, 4, 3, 3, step=2))


def _any(dtype: str) -> tuple[Shape, Shape]:
    """For any filter: of planes, and of lines."""
    item = DTYPES[DTYPES[dtype].accumulator].itemsize
    return Shape(4 if item == 4 else 2, 4), Shape(1, 8 if item <= 8 else 4)


def _unrolled(dtype: str, op: str) -> tuple[Shape, ...]:
    if DTYPES[dtype].accumulator != "float32":
        return ()
    return _WGRADS if op == "wgrad" else _GATHERS


def kernels(dtype: str) -> Iterator[Kernel]:
    """Every instance for a dtype."""
    for last in (False, True) if _has_lanes(dtype) else (False,):
        for shape in (*_unrolled(dtype, "fprop"), *_any(dtype)):
            yield _kernel("conv_gather_depthwise", dtype, last, False, shape)
        for shape in (*_unrolled(dtype, "wgrad"), *_any(dtype)):
            yield _kernel("conv_wgrad_depthwise", dtype, last, False, shape)
        for shape in _any(dtype):
            yield _kernel("conv_residues_depthwise", dtype, last, False, shape)
            yield _kernel("conv_gather_depthwise", dtype, last, True, shape)
            yield _kernel("conv_wgrad_depthwise", dtype, last, True, shape)


def _has_lanes(dtype: str) -> bool:
    """Whether neighbouring threads may have neighbouring channels: floats of less than 16 bytes."""
    return DTYPES[dtype].kind not in "iu" and dtype != "complex128"


def _kernel(template: str, dtype: str, last: bool, shown: bool, shape: Shape) -> Kernel:
    count = {"conv_gather_depthwise": 6, "conv_wgrad_depthwise": 5, "conv_residues_depthwise": 2}[template]
    flags = (int(last), int(shown)) if count > 2 else (int(last),)
    arguments = (C_TYPES[dtype], THREADS, *flags, *shape[:count])
    many_registers = template == "conv_residues_depthwise" or dtype == "complex128"
    return Kernel("depthwise.cuh", template, arguments, THREADS, residents=1 if many_registers else 2)


# -- how a problem is cut into tiles ------------------------------------------------------------------


def _order(problem: ConvProblem) -> tuple[int, int, int]:
    """(first axis, rows, columns): neighbouring columns are neighbours in memory."""
    columns = next((axis for axis in (2, 1, 0) if problem.output[axis] > 1 or problem.input[axis] > 1), 2)
    rows, first = sorted(
        {0, 1, 2} - {columns}, key=lambda axis: (-problem.filter[axis], problem.output[axis] == 1, -axis)
    )
    return first, rows, columns


def _plan(request: Request, problem: ConvProblem) -> tuple[View, Tile]:
    channels_last = request.layout == "channels_last"
    # What is unrolled rounds sums or what relu makes of them, nothing else, and shows no cell but itself.
    folded = request.op == "dgrad" and request.problem.padding_mode != "zeros"
    plain = request.op == "wgrad" or not (
        request.activation not in (None, "relu") or request.accumulate or request.conjugate_sum or folded
    )
    return _planned(request.op, request.dtype, channels_last, plain and not reads_padding(request), problem)


@functools.lru_cache(4096)
def _planned(
    op: str, dtype: str, channels_last: bool, plain: bool, problem: ConvProblem
) -> tuple[View, Tile]:
    order = _order(problem)
    lines = [_line(op, problem, axis) for axis in order[1:]]
    rows, columns = lines
    channels = max(problem.c, 1)
    template = "conv_wgrad_depthwise" if op == "wgrad" else "conv_gather_depthwise"
    taps = tuple(problem.filter[axis] for axis in order[1:])
    stride, dilation = (
        tuple(extents[axis] for axis in order) for extents in (problem.stride, problem.dilation)
    )
    shape = None
    for candidate in _unrolled(dtype, op) if plain else ():
        if (candidate.taps_r, candidate.taps_s) != taps:
            continue
        if op == "dgrad":
            fits = stride == ((1,) * 3 if candidate.spread == 1 else (1, 2, 2)) and candidate.step == 1
            fits = fits and (candidate.spread == 1 or dilation[1:] == (1, 1))
        else:
            steps = {s // math.gcd(s, d) for s, d in zip(stride[1:], dilation[1:], strict=True)}
            fits = steps == {candidate.step} and candidate.spread == 1
        if fits:
            shape = candidate
            break
    if shape is None:
        if op == "dgrad" and math.prod(problem.stride) > 1:
            template = "conv_residues_depthwise"
        if op == "wgrad":  # a gather of taps
            rows, columns = (_line("taps", problem, axis) for axis in order[1:])
        shape = _any(dtype)[rows.results == 1]
    elif shape.spread == 2:
        rows, columns = (_spread(problem, axis) for axis in order[1:])
    last = channels_last and channels >= LANES // 2 and math.prod(taps) <= 64 and _has_lanes(dtype)
    view = View(order, template, shape, rows, columns, channels, last)
    tile = _tile(view, op, dtype)
    if tile is None:
        view = view._replace(last=False)
        tile = _tile(view, op, dtype)
    assert tile is not None
    return view, tile


def _line(op: str, problem: ConvProblem, axis: int) -> Line:
    stride, dilation = problem.stride[axis], problem.dilation[axis]
    common = math.gcd(stride, dilation)
    step, apart = stride // common, dilation // common
    results, taps = problem.output[axis], problem.filter[axis]
    if op == "dgrad":
        results = per(problem.input[axis], stride)
        return Line(results, per(taps, step), 1, apart, apart)
    if op == "taps":
        return Line(taps, results, apart, min(step, max(taps, 1)), stride)
    return Line(results, taps, step, min(apart, max(results, 1)), dilation)


def _spread(problem: ConvProblem, axis: int) -> Line:
    """An axis of dgrad with stride 2, where taps meet every second result: see described_axis in depthwise.cuh."""
    begin = problem.padding[axis][0] - (problem.filter[axis] - 1)
    return Line(problem.input[axis] + begin % 2, problem.filter[axis], 1, 1, 1)


def _axes(request: Request, problem: ConvProblem, view: View, tile: Tile) -> tuple[object, ...]:
    """The members of Params.axis: those of the problem, or of a gather whose results, taps and strides are others."""
    found = []
    lines = (None, view.rows, view.columns)
    divisors = (tile.width, view.rows.apart, view.columns.apart)
    described = view.template == "conv_gather_depthwise" or not view.shape.taps_r
    described = described and view.template != "conv_residues_depthwise"
    for axis, standard, line, number in zip(
        view.order, axes(problem, view.order), lines, divisors, strict=True
    ):
        members = tuple(standard)[:8]
        if described and (line or request.op == "dgrad"):
            x, r, y = problem.input[axis], problem.filter[axis], problem.output[axis]
            stride, dilation, before = problem.stride[axis], problem.dilation[axis], problem.padding[axis][0]
            step, apart = (line.step, line.apart) if line else (1, 1)
            members = {
                "fprop": (x, r, y, stride, dilation, before, step, apart),
                "dgrad": (y, r, x, 1, dilation, (r - 1) * dilation - before, -1, apart),
                "wgrad": (x, y, r, dilation, stride, before, step, apart),
            }[request.op]
        found.append((*members, divisor(number)))
    return tuple(found)


def _tile(view: View, op: str, dtype: str) -> Tile | None:
    """The cheapest tile whose cells fit in shared memory."""
    shape, rows, columns = view.shape, view.rows, view.columns
    strips_w = per(per(columns.results, columns.apart), shape.out)
    strips_h = per(per(rows.results, rows.apart), shape.rows)
    slots = THREADS // LANES if view.last else THREADS
    best: Tile | None = None
    for along in _shares(strips_w, slots):
        for across in _shares(strips_h, slots // along):
            most = LANES if view.last else min(view.channels, slots // (along * across))
            for held in dict.fromkeys((most, per(most, 2), per(most, 4), 1)) if not view.last else (LANES,):
                tile = _fitted(view, op, dtype, along, across, held)
                if tile and (best is None or tile.cost < best.cost):
                    best = tile
    return best


def _shares(strips: int, most: int) -> Iterator[int]:
    """How many of so many strips a tile may have on an axis, cut evenly."""
    found = (per(strips, parts) for parts in range(max(per(strips, most), 1), max(per(strips, most), 1) + 8))
    yield from dict.fromkeys(max(1, share) for share in found)


def _fitted(view: View, op: str, dtype: str, along: int, across: int, held: int) -> Tile | None:
    """A tile with as few passes as fit, and what all blocks of the problem take with it, in instructions of warps."""
    shape, rows, columns, last = view.shape, view.rows, view.columns, view.last
    item = DTYPES[DTYPES[dtype].accumulator].itemsize
    wgrad, unrolled = op == "wgrad", bool(shape.taps_r)
    height, width = across * shape.rows, along * shape.out
    taps_r, taps_s = rows.taps, columns.taps
    cut_r = cut_s = 1
    if wgrad and not unrolled:  # passes over dy need not be longer than what fills shared memory well
        cut_s = per(taps_s, 4096)
    while True:
        part_r, part_s = per(max(taps_r, 1), cut_r), per(max(taps_s, 1), cut_s)
        lines = ((height - 1) * rows.step + part_r - 1) // shape.spread + 1
        cells = ((width - 1) * columns.step + part_s - 1) // shape.spread + 1
        brought = _shelf(last, held, lines, cells)
        if not wgrad:
            if last:
                weights = part_r * part_s * (LANES + 1)
            else:
                weights = held * (part_r * part_s | 1 if unrolled else part_r * per(part_s, 4) * 4)
            size = per(weights, 4) * 4 + max(
                brought + 8 * (LANES if last else 1), THREADS * shape.rows * shape.out
            )
        else:
            grads = _shelf(last, held, height, width) if unrolled else _shelf(last, held, part_r, part_s)
            size = max(grads + brought + 8 * (LANES if last else 1), (8 if item > 8 else 16) * THREADS)
            weights = grads
        if size * item <= SHARED:
            break
        if unrolled or (part_r == 1 and part_s <= 4):
            return None
        if part_r > 1 and (part_r > 4 or part_s < 64):
            cut_r = per(taps_r, part_r - max(1, part_r // 4))
        else:
            cut_s = per(taps_s, max(part_s - max(4, part_s // 4), 4))
    passes = cut_r * cut_s
    blocks = rows.tiles(height) * columns.tiles(width) * per(view.channels, held)
    warps = per(along * across * held, 32) if not last else along * across
    each_has, products = shape.rows * shape.out, part_r * part_s
    copies = 3 if last else 5 + 14 / held
    groups = 1
    if wgrad and not unrolled:
        groups = max(THREADS // (along * across * (LANES if last else held)), 1)
        warps = min(warps * groups, THREADS // 32)
    complex_products = 4 if DTYPES[dtype].kind == "c" else 1
    multiply = complex_products * each_has * products / groups
    each = (brought + weights) / 32 * copies + warps * multiply * (1.1 if last or unrolled else 1.05)
    # A sector of 32 bytes takes the L2 about as long as four instructions take a multiprocessor.
    stored = DTYPES[dtype].itemsize
    sectors = lines * held * cells * stored / 32 if last else held * lines * (cells * stored / 32 + 1)
    instructions = each + THREADS / 32 * 60 + warps * (0 if wgrad else 6 * each_has)
    each += 4 * sectors
    cost = blocks * (passes * (each + THREADS / 32 * 60) + THREADS / 32 * (150 + 5 * each_has))
    return Tile(
        along,
        across,
        held,
        cut_s,
        cut_r,
        per(size * item, 16) * 16,
        cells,
        instructions,
        warps * each_has * products / groups,
        cost,
    )


def _shelf(last: bool, held: int, lines: int, width: int) -> int:
    """Elements of a Shelf in depthwise.cuh."""
    return lines * width * LANES if last else held * lines * per(width, 4) * 4


def _lanes(request: Request, tile: Tile) -> int:
    """How many threads copy neighbouring channels."""
    if request.layout != "channels_last":
        return 1
    return min(_power_of_two(tile.held), LANES)


def _power_of_two(number: int) -> int:
    """The least power of two that is as large."""
    return 1 << max(number - 1, 0).bit_length()
