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
from .geometry import Fields, digits, divisor
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
from .transform import channels_last, channels_last_seconds

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
    request, problem = draft.request, draft.problem
    op = request.op
    draft = replace(draft, problem=_one_group(problem))
    launches = [channels_last(draft, slot) for slot in _transformed(request, problem)]
    draft.problem = problem
    tile = _tile(request)
    assert tile is not None
    runs, chunk = _runs(problem, op, tile)
    blocks = _digits(problem, op, tile)
    fields: Fields = {
        "items": math.prod(result_shape(problem, op)),
        "digit": digits((*blocks, *(1,) * (4 - len(blocks)), tile.wide, tile.high)),
        "pixel": tuple(map(divisor, (tile.tiles_w, tile.tiles_h, 1))),
        "group": divisor(tile.groups),
        "chunk": chunk,
    }
    kernel = _kernel(op, request.dtype, tile.arguments)
    count = math.prod(blocks)
    if op == "wgrad":
        return launches + split_sum(
            draft, kernel, count, fields, (runs, chunk), channels_last=True,
            seen=result_shape(problem, op), vectors=("a", "b"), shared_bytes=tile.shared_bytes,
        )  # fmt: skip
    launch = draft.launch(
        kernel, count * runs, draft.fields(**fields), vectors=("a",), shared_bytes=tile.shared_bytes
    )
    return [*launches, launch]


def applies(request: Request, device: Device | None) -> str | None:
    problem, op = zero_padded(request), request.op
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
        if op == "wgrad" and not channels <= 4 * filters <= 16 * channels:
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
    runs, _ = _runs(problem, op, tile)
    if max(runs * math.prod(_digits(problem, op, tile)), problem.n * tile.tiles_h * tile.tiles_w) >= LIMIT:
        return "it would take 2^30 blocks, or tiles of pixels, or more"
    return None


def estimate(request: Request, device: Device | None) -> float:
    assert device is not None
    problem, op = zero_padded(request), request.op
    tile = _tile(request)
    assert tile is not None
    runs, _ = _runs(problem, op, tile)
    whole, slots = _one_group(problem), _transformed(request, problem)
    before = sum(channels_last_seconds(request, whole, device, slot) for slot in slots)
    after = reduce_seconds(request, device, runs) if op == "wgrad" else 0
    return before + seconds(request, device, _work(request, tile), request.bytes) + after


def _work(request: Request, tile: Tile) -> Threads:
    """What threads do, as counted in compiled code."""
    problem, op = zero_padded(request), request.op
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
        instructions = chunk * (slices * (pairs * (8 + 12 * fragments) + 12) + 22 * copies + 120) + 2400
        lines = chunk * (slices * (8 * pairs + 4 * fragments + 2) + 6 * copies)
    else:
        m, fragments = map(int, tile.arguments)
        sources, results = of.sides(op)
        # Of dgrad's residues most have fewer taps than the first.
        taps = math.prod(problem.filter) / (math.prod(problem.stride) if op == "dgrad" else 1)
        steps = math.ceil(taps * sources * of.bundled / (2 * OCTET))
        parts = per(per(tile.slots, 16 * m) * per(tile.groups * results, OCTET * fragments), warps)
        copies = tile.cells * tile.groups * sources / OCTET / threads
        stores = tile.slots * tile.groups * results / OCTET / threads
        if request.layout == "channels_first":  # one by one
            stores *= 6
        products = parts * steps * m * fragments
        each = parts * (steps * (9 + m * (2 + 5 * fragments)) + 40 + 14 * m * fragments)
        put = 100 * steps * tile.groups * results / threads
        instructions = chunk * (each + 45 * copies + 50 * stores + 250) + put + 600
        of_parts = parts * (steps * (4 * m + 2 * fragments + 1) + 8 * m * fragments)
        lines = chunk * (of_parts + 4 * copies + 16 * stores) + put / 3
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
        for op, choices in (("fprop", _BLOCKS), ("dgrad", _BLOCKS), ("wgrad", _JOBS)):
            yield from (_kernel(op, dtype, arguments) for arguments in choices)


def _kernel(op: str, dtype: str, arguments: Arguments) -> Kernel:
    threads, residents = 32 * _WARPS[op], _residents(op, arguments)
    return Kernel("grouped.cuh", f"conv_{op}_grouped", (PRODUCTS[dtype], *arguments), threads, residents)


def _residents(op: str, arguments: Arguments) -> int:
    """How many blocks a multiprocessor has registers for."""
    if op == "wgrad":
        return 2
    return 2 if arguments == (4, 4) else 3 if arguments == (4, 2) else 4


# -- how a problem is seen and cut --------------------------------------------------------------------


def _transformed(request: Request, problem: ConvProblem) -> list[str]:
    """The slots of what is read in planes, where channels are not last, or no whole octets."""
    first = request.layout == "channels_first"
    read = {"fprop": {"a": problem.c}, "dgrad": {"a": problem.k}, "wgrad": {"a": problem.c, "b": problem.k}}
    return [slot for slot, channels in read[request.op].items() if first or channels % OCTET]


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
    problem, op = zero_padded(request), request.op
    _, height, width = pixels(problem, op)
    sizes = (
        (max(per(width, across), 1), max(per(height, along), 1))
        for across in _cuts(width)
        for along in _cuts(height)
    )
    fit = (
        tile
        for wide, high in sizes
        if per(wide, OCTET) * OCTET * high <= most
        for arguments in _fitting(_channels(problem), op, problem)
        if (tile := _of_pixels(problem, op, wide, high, arguments)).shared_bytes <= SHARED
    )
    return min(fit, key=lambda tile: _rank(request, tile), default=None)


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
