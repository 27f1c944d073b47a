"""`grouped`: few channels in a group, on tensor cores, by tiles with their halo. See cuda_src/grouped.cuh."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from ..problem import ConvProblem, Request
from .cost import Threads, seconds
from .device import DEVICES, Device
from .geometry import digits, divisor
from .kernel import VECTOR, Kernel, Launch
from .schedule import (
    LIMIT,
    Draft,
    beyond_32_bits,
    gemm_k,
    per,
    pixels,
    planar,
    reduce_seconds,
    result_shape,
    split_sum,
    zero_padded,
)
from .transform import channels_last, channels_last_seconds, fold, fold_seconds, folded

PRODUCTS = {"float16": "Float16Product", "bfloat16": "Bfloat16Product"}
"""By dtype, the name in mma.cuh."""

CHANNELS, MOST_CHANNELS = (4, 8, 16, 32), 128
"""That one of several groups may have, and filters; the most of a single one."""

SET, OCTET, SLICE, PAIRS, JOBS = 32, 8, 32, 5, 4
"""Channels that a block has at the most in wgrad, in the others where there is a choice; those of a plane. Of
wgrad: pixels of a slice, pairs of taps that registers have, and jobs of a block, an octet of channels each.
"""

MOST = 128
"""Slots of a tile, for its pixels."""

SHARED = 96 << 10
"""Bytes of shared memory that a block may have."""

WAVE = 132
"""Multiprocessors of a large GPU."""

_H200, _MULTIPROCESSOR = DEVICES["sm_90"], 228 << 10
"""The GPU for which tiles are chosen, and shared memory of one of its multiprocessors."""

_WARPS = {"fprop": 4, "dgrad": 4, "wgrad": 8}

Arguments = tuple[int | str, ...]


class Tile(NamedTuple):
    """Pixels of a tile along the last axis and the one before, and how many tiles an image has there; the
    cells that a tile meets; groups, and in wgrad filters, of a set; the kernel's template arguments; and
    bytes of shared memory.
    """

    wide: int
    high: int
    tiles_w: int
    tiles_h: int
    cells: int
    groups: int
    filters: int
    arguments: Arguments
    shared_bytes: int

    @property
    def together(self) -> bool:
        """Whether results are those of all residues of dgrad's stride."""
        return self.arguments[2:] == ("true",)

    @property
    def slots(self) -> int:
        """Of pixels: whole octets in each line."""
        return per(self.wide, OCTET) * OCTET * self.high

    def residents(self, op: str) -> int:
        """How many blocks a multiprocessor of an H200 has at once."""
        return max(min(_residents(op, self.arguments), _MULTIPROCESSOR // (self.shared_bytes + 1024)), 1)


class Channels(NamedTuple):
    """Of a group, as kernels have them: a single one's are rounded up to a power of two. `bundled` groups
    have whole octets of both.
    """

    channels: int
    filters: int
    bundled: int

    def sides(self, op: str) -> tuple[int, int]:
        """The source's and the result's."""
        return (self.channels, self.filters) if op == "fprop" else (self.filters, self.channels)


def _channels(problem: ConvProblem) -> Channels:
    channels, filters = problem.c // problem.groups, problem.k // problem.groups
    if problem.groups == 1:
        channels, filters = (max(1 << (each - 1).bit_length(), OCTET) for each in (channels, filters))
    return Channels(channels, filters, 2 if min(channels, filters) < OCTET else 1)


def build(draft: Draft) -> list[Launch]:
    request, whole, run = draft.request, draft.problem, _run(draft.request)
    op, tile = request.op, _tile(request)
    assert tile is not None
    problem, seen_op = _seen(request, tile)
    launches = [fold(draft, "a", run)] if run > 1 else []
    draft = replace(draft, problem=_one_group(whole))
    launches += [channels_last(draft, slot) for slot in _transformed(request, whole)]
    draft.problem = problem if run > 1 else whole
    runs, chunk = _runs(problem, seen_op, tile)
    blocks = _digits(problem, seen_op, tile)
    of_tap = whole.c // whole.groups
    last = of_tap * (whole.filter[2] - run * (problem.filter[2] - 1)) if run > 1 else of_tap
    fields = draft.fields() | {
        "items": math.prod(result_shape(whole, op)),
        "digit": digits((*blocks, *(1,) * (3 - len(blocks)), of_tap, tile.wide, tile.high)),
        "pixel": tuple(map(divisor, (tile.tiles_w, tile.tiles_h, last))),
        "group": divisor(tile.groups),
        "chunk": chunk,
    }
    kernel = _kernel(op, request.dtype, tile.arguments)
    count = math.prod(blocks)
    if op == "wgrad":
        return launches + split_sum(
            replace(draft, problem=whole), kernel, count, fields, (runs, chunk), channels_last=True,
            seen=result_shape(whole, op), vectors=("a", "b"), shared_bytes=tile.shared_bytes,
        )  # fmt: skip
    launch = draft.launch(kernel, count * runs, fields, vectors=("a",), shared_bytes=tile.shared_bytes)
    return [*launches, launch]


def applies(request: Request, device: Device | None) -> str | None:
    problem = zero_padded(request)
    if request.dtype not in PRODUCTS:
        return "it multiplies numbers of 16 bits"
    if device is not None and "half" not in device.tensor:
        return f"{device.arch} has no tensor cores for it"
    if not planar(problem):
        return "its first axis has more than one cell"
    channels, filters = problem.c // problem.groups, problem.k // problem.groups
    if problem.groups == 1:
        if not 0 < min(channels, filters) <= max(channels, filters) <= MOST_CHANNELS:
            return f"it has {channels} channels and {filters} filters, and not 1 to {MOST_CHANNELS}"
    else:
        if channels not in CHANNELS or filters not in CHANNELS:
            wanted = ", ".join(map(str, CHANNELS))
            return f"its groups have {channels} channels and {filters} filters, and not {wanted}"
        if request.op == "wgrad" and not channels <= 4 * filters <= 16 * channels:
            return (
                f"its groups have {channels} channels and {filters} filters, one more than 4 times the other"
            )
        if problem.c % OCTET or problem.k % OCTET:
            return f"C and K are no multiples of {OCTET}"
    if reason := beyond_32_bits(request):
        return reason
    tile = _tile(request)
    if tile is None:
        return f"the cells of a few results do not fit in {SHARED} bytes of shared memory"
    problem, op = _seen(request, tile)
    runs, _ = _runs(problem, op, tile)
    if max(runs * math.prod(_digits(problem, op, tile)), problem.n * tile.tiles_h * tile.tiles_w) >= LIMIT:
        return "it would take 2^30 blocks, or tiles of pixels, or more"
    return None


def estimate(request: Request, device: Device | None) -> float:
    assert device is not None
    whole, run, tile = zero_padded(request), _run(request), _tile(request)
    assert tile is not None
    slots = _transformed(request, whole)
    before = sum(channels_last_seconds(request, _one_group(whole), device, slot) for slot in slots)
    if run > 1:
        before += fold_seconds(request, whole, device, run)
    after = 0.0
    if request.op == "wgrad":
        after = reduce_seconds(request, device, _runs(*_seen(request, tile), tile)[0])
    return before + seconds(request, device, _work(request, tile), request.bytes) + after


def _work(request: Request, tile: Tile) -> Threads:
    """What threads do, as counted in compiled code."""
    problem, op = _seen(request, tile)
    runs, chunk = _runs(problem, op, tile)
    warps, of = _WARPS[op], _channels(problem)
    threads = 32 * warps
    if op == "wgrad":
        fragments, halves = int(tile.arguments[0]), tile.arguments[1] == "true"
        pairs = min(per(math.prod(problem.filter), 2), PAIRS)
        slices = per(tile.slots, SLICE) / (2 if halves else 1)
        copies = (
            (tile.cells * min(tile.groups * of.channels, SET) + tile.slots * tile.filters) / OCTET / threads
        )
        products = slices * pairs * 2 * fragments
        instructions = chunk * (slices * (pairs * (8 + 6 * fragments) + 36) + 22 * copies + 120) + 2400
        lines = chunk * (slices * (8 * pairs + 4 * fragments + 2) + 6 * copies)
    else:
        m, fragments = map(int, tile.arguments[:2])
        sources, results = of.sides(op)
        # Most of dgrad's residues have fewer taps than the first.
        taps = math.prod(problem.filter) / (math.prod(problem.stride) if op == "dgrad" else 1)
        steps = math.ceil(taps * sources * of.bundled / (2 * OCTET))
        parts = per(per(tile.slots, 16 * m) * per(tile.groups * results, OCTET * fragments), warps)
        copies = tile.cells * tile.groups * sources / OCTET / threads
        stores, store, store_lines = tile.slots * tile.groups * results / OCTET / threads, 50, 16.0
        if tile.together:  # one by one, along a line of dx
            store, store_lines = 740, 32
        elif request.layout == "channels_first":  # one by one, along lines of the tile
            store, store_lines = 60, OCTET * (2 + max(32 / tile.wide, 1))
        products = parts * steps * m * fragments
        each = parts * (steps * (9 + m * (2 + 5 * fragments)) + 40 + 14 * m * fragments)
        whole = request.op == "fprop" and sources % OCTET == 0 and _run(request) == 1
        put = (100 if whole else 200) * steps * tile.groups * results / threads
        instructions = chunk * (each + 45 * copies + store * stores + 250) + put + 600
        of_parts = parts * (steps * (4 * m + 2 * fragments + 1) + 8 * m * fragments)
        lines = chunk * (of_parts + 4 * copies + store_lines * stores) + put / 3
    return Threads(
        runs * math.prod(_digits(problem, op, tile)), threads, tile.residents(op),
        instructions=instructions,
        waits=2 * chunk + 4,
        lines=lines,
        tensor=4096 * products * warps * chunk,
        unit="half",
    )  # fmt: skip


# -- what is compiled ---------------------------------------------------------------------------------

_BLOCKS: tuple[Arguments, ...] = ((4, 1), (4, 2), (4, 4), (2, 1), (2, 2))
"""A warp's fragments of 16 pixels, and of 8 results."""

_JOBS: tuple[Arguments, ...] = ((1, "true"), (2, "true"), (2, "false"))
"""Octets of filters of a job, and whether two warps do one."""


def kernels(dtype: str) -> Iterator[Kernel]:
    """Every instance for a dtype."""
    if dtype in PRODUCTS:
        for op in _WARPS:
            choices = _JOBS if op == "wgrad" else _BLOCKS
            yield from (_kernel(op, dtype, (*one, *more)) for more in _FORMS[op] for one in choices)


_FORMS: dict[str, tuple[Arguments, ...]] = {"fprop": ((),), "dgrad": (("false",), ("true",)), "wgrad": ((),)}
"""Further arguments: of dgrad, whether all residues are done together."""


def _kernel(op: str, dtype: str, arguments: Arguments) -> Kernel:
    threads, residents = 32 * _WARPS[op], _residents(op, arguments)
    return Kernel("grouped.cuh", f"conv_{op}_grouped", (PRODUCTS[dtype], *arguments), threads, residents)


def _residents(op: str, arguments: Arguments) -> int:
    """How many blocks a multiprocessor has registers for."""
    if op == "wgrad":
        return 2
    fragments = 1 if arguments[0] == 2 else int(arguments[1])
    return {4: 2, 2: 3}.get(fragments, 4)


# -- how a problem is seen and cut --------------------------------------------------------------------


def _seen(request: Request, tile: Tile) -> tuple[ConvProblem, str]:
    """The problem, and the op that it is, by which tiles are cut."""
    views = _views(request)
    return views[tile.arguments[2:]]


@lru_cache(4096)
def _views(request: Request) -> dict[Arguments, tuple[ConvProblem, str]]:
    """By further arguments of the kernel what tiles are cut by.

    Runs of taps are channels, where an octet has those of more than one.
    """
    problem, op, run = zero_padded(request), request.op, _run(request)
    if op != "dgrad":
        return {(): (folded(problem, run) if run > 1 else problem, op)}
    together = _together(problem)
    views: dict[Arguments, tuple[ConvProblem, str]] = {("false",): (problem, op)}
    if together:
        views["true",] = together, "fprop"
    return views


def _together(problem: ConvProblem) -> ConvProblem | None:
    """dgrad of all residues of the stride together, as the convolution of dy that it is.

    Place u of an axis has the cells u stride - padding + residue, each a filter of its own, and the i-th tap
    meets p = u - i.
    """
    residues = math.prod(problem.stride[1:])
    dilated = any(s > 1 < d for s, d in zip(problem.stride, problem.dilation, strict=True))
    many = problem.groups > 1 or residues * problem.c > MOST_CHANNELS
    if many or dilated or residues == 1 or 0 in problem.input:
        return None
    taps = tuple(per(r, s) for r, s in zip(problem.filter, problem.stride, strict=True))
    pairs = []
    for axis in range(3):
        stride, before = problem.stride[axis], problem.padding[axis][0]
        first, last = before // stride, (problem.input[axis] - 1 + before) // stride
        reach = (taps[axis] - 1) * problem.dilation[axis]
        pairs.append((reach - first, last + 1 - problem.output[axis]))
    return replace(
        problem,
        c=problem.k,
        k=residues * problem.c,
        input=problem.output,
        filter=taps,
        stride=(1, 1, 1),
        padding=tuple(pairs),
    )


def _run(request: Request) -> int:
    """How many taps of the last axis have their channels in one octet of x: in dgrad only one."""
    problem = request.problem
    few = problem.groups == 1 and problem.c > 0 and request.op != "dgrad"
    return max(min(OCTET // problem.c, problem.filter[-1]), 1) if few else 1


def _transformed(request: Request, problem: ConvProblem) -> list[str]:
    """The slots of what is read in planes, but not folded, where channels are not last or no whole octets."""
    first = request.layout == "channels_first"
    read = {"fprop": {"a": problem.c}, "dgrad": {"a": problem.k}, "wgrad": {"a": problem.c, "b": problem.k}}
    return [
        slot
        for slot, channels in read[request.op].items()
        if (first or channels % OCTET) and not (slot == "a" and _run(request) > 1)
    ]


def _one_group(problem: ConvProblem) -> ConvProblem:
    """So that a copy of its channels has no gaps between groups."""
    return replace(problem, groups=1)


def _digits(problem: ConvProblem, op: str, tile: Tile) -> tuple[int, ...]:
    """What blocks of one run are numbered by, the fastest first."""
    sets = per(problem.groups, tile.groups)
    if op == "dgrad":
        return sets, problem.stride[2], problem.stride[1]
    if op == "wgrad":
        if problem.groups == 1:
            sets = per(problem.k, tile.filters) * max(_channels(problem).channels // SET, 1)
        return sets, per(math.prod(problem.filter), 2 * PAIRS)
    return (sets,)


def _runs(problem: ConvProblem, op: str, tile: Tile) -> tuple[int, int]:
    """How many runs of tiles there are, and how many tiles one has: so many that blocks fill an H200 once."""
    tiles = problem.n * tile.tiles_h * tile.tiles_w
    blocks = math.prod(_digits(problem, op, tile))
    chunk = max(per(tiles, max(WAVE * tile.residents(op) // blocks, 1)), 1)
    return max(per(tiles, chunk), 1), chunk


def _tile(request: Request) -> Tile | None:
    return _first(request, MOST)


@lru_cache(4096)
def _first(request: Request, most: int) -> Tile | None:
    """The tile, of so many slots at the most, by which all is done first on an H200."""
    fit = (
        tile
        for form, (problem, op) in _views(request).items()
        for wide, high in _sizes(problem, op, most)
        for arguments in _fitting(_channels(problem), op, problem)
        if (tile := _of_pixels(problem, op, wide, high, (*arguments, *form))).shared_bytes <= SHARED
    )
    return min(fit, key=lambda tile: _rank(request, tile), default=None)


def _sizes(problem: ConvProblem, op: str, most: int) -> Iterator[tuple[int, int]]:
    """Of tiles, which have so many slots at the most: (wide, high)."""
    _, height, width = pixels(problem, op)
    for across in _cuts(width):
        for along in _cuts(height):
            wide, high = max(per(width, across), 1), max(per(height, along), 1)
            if per(wide, OCTET) * OCTET * high <= most:
                yield wide, high


def _rank(request: Request, tile: Tile) -> float:
    return seconds(request, _H200, _work(request, tile), 0)


def _cuts(extent: int) -> list[int]:
    """How many tiles an axis may have, for all lengths that they may have."""
    return sorted({per(extent, length) for length in range(1, min(extent, MOST) + 1)}) or [1]


def _fitting(of: Channels, op: str, problem: ConvProblem) -> Iterator[Arguments]:
    """The template arguments for such groups."""
    if op != "wgrad":
        most = of.bundled * of.sides(op)[1] // OCTET
        yield from (arguments for arguments in _BLOCKS if int(arguments[1]) <= most)
    elif problem.groups == 1:
        octets = per(of.filters * min(of.channels, SET), OCTET * OCTET * JOBS)  # of filters, for each job
        yield min(octets, 2), "true"
    else:
        octets = max(max(OCTET // of.channels, 1) * of.filters // OCTET, 1)  # that one of channels meets
        yield min(octets, 2), "true" if octets <= 2 else "false"


def _of_pixels(problem: ConvProblem, op: str, wide: int, high: int, arguments: Arguments) -> Tile:
    _, height, width = pixels(problem, op)
    of = _channels(problem)
    cells_h, span_h = _reach(problem, op, 1, high)
    cells_w, _ = _reach(problem, op, 2, wide)
    cells, slots = cells_h * cells_w, per(wide, OCTET) * OCTET * high
    groups, filters = 1, of.filters
    if op != "wgrad":
        m = int(arguments[0])
        if problem.groups > 1:
            groups = max(SET // max(of.channels, of.filters), of.bundled)
        sources, results = of.sides(op)
        planes, blocks = groups * sources // OCTET, per(slots, 16 * m)
        steps = per(gemm_k(problem, op, sources) * of.bundled, 2 * OCTET)
        shared = VECTOR + 48 * steps + 8 * 16 * m * blocks + 256 * groups * results // OCTET * steps
        shared += 2 * VECTOR * planes * _pitch(cells, planes) + 4 * 16 * m * blocks * (groups * results + 8)
    else:
        if problem.groups > 1:
            groups = SET // of.channels
            filters = groups * of.filters
        else:
            filters = SET // min(of.channels, SET) * OCTET * int(arguments[0])
        octets = min(groups * of.channels, SET) // OCTET
        planes, rows = filters // OCTET, per(slots, SLICE) * SLICE
        span = (span_h + 1) * cells_w
        of_cells = octets * _pitch(cells + span, octets)
        shared = 48 + 8 * rows + 2 * VECTOR * (of_cells + planes * _pitch(rows, planes))
        shared = max(shared, 128 * 4 * PAIRS * 4 * 2)  # to add up two warps' sums
    tiles_w, tiles_h = per(width, wide), per(height, high)
    return Tile(wide, high, tiles_w, tiles_h, cells, groups, filters, arguments, shared)


def _reach(problem: ConvProblem, op: str, axis: int, length: int) -> tuple[int, int]:
    """The cells that so many pixels meet on an axis, whole rounds of the stride on the last one, and those
    from the first tap to the last.
    """
    stride, dilation, taps = problem.stride[axis], problem.dilation[axis], problem.filter[axis]
    step, delta = stride, dilation
    if op == "dgrad":
        common = math.gcd(stride, dilation)
        step, delta, taps = 1, dilation // common, per(taps, stride // common)
    span = (taps - 1) * delta
    cells = (length - 1) * step + span + 1
    return per(cells, step) * step if axis == 2 else cells, span


def _pitch(cells: int, planes: int) -> int:
    """From a plane of so many cells to the next one, as in the kernels."""
    rest = max(OCTET // planes, 1)
    return per(cells - rest, OCTET) * OCTET + rest
