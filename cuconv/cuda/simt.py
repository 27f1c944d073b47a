"""`simt`: tiled implicit GEMM on the ordinary cores. See cuda_src/simt.cuh."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace

from ..dtypes import DTYPES
from ..problem import ConvProblem, Request
from . import schedule
from .cost import Threads, real_products, seconds
from .device import DEVICES, Device
from .geometry import digits
from .kernel import VECTOR, Kernel, Launch
from .schedule import (
    C_TYPES,
    LIMIT,
    Draft,
    beyond_32_bits,
    block_digits,
    gemm_k,
    padding_is_cheap,
    per,
    planar,
    reduce_seconds,
    result_shape,
    seen_by,
    split_sum,
    table_bytes,
)


@dataclass(frozen=True)
class Tile:
    """A block's tile of the product, the depth of a slice, a thread's part of the tile, whether it is for
    problems of two axes, and the number of blocks that a multiprocessor shall have registers for.
    """

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    planar: bool
    residents: int

    @property
    def threads(self) -> int:
        return self.bm // self.tm * (self.bn // self.tn)


Choice = tuple[Tile, int, int]
"""A tile, and into how many parts of what depth gemm_k is cut."""

_LINES, _LOAD, _SLICE, _ONCE = 6, 10, 25, 1600
"""Instructions to bring what is loaded at once to shared memory; for a slice besides; for all but slices."""

_H200 = DEVICES["sm_90"]

_WIDE, _NARROW = Tile(128, 64, 8, 8, 8, False, 3), Tile(128, 32, 16, 8, 4, False, 4)
_SQUARE, _DOUBLE = Tile(64, 64, 8, 8, 8, False, 6), Tile(64, 32, 8, 8, 4, False, 4)
_PAIRS, _QUADS = Tile(64, 32, 8, 4, 4, False, 4), Tile(32, 32, 8, 4, 2, False, 4)
_PLANAR = replace(_WIDE, planar=True)
_OTHERS = {"float64": (_DOUBLE,), "complex64": (_PAIRS,), "complex128": (_QUADS,), "int64": (_PAIRS,)}
_OF_PIXELS = {
    "float16": (_WIDE, _NARROW),
    "bfloat16": (_WIDE, _NARROW),
    "float32": (_PLANAR, _WIDE, _NARROW),
    "int32": (_NARROW,),
} | _OTHERS
_OF_FILTERS = {
    "float16": (_SQUARE,),
    "bfloat16": (_SQUARE,),
    "float32": (_PLANAR, _SQUARE),
    "int32": (_SQUARE,),
} | _OTHERS

TILES: dict[str, dict[str, tuple[Tile, ...]]] = {
    "fprop": _OF_PIXELS,
    "dgrad": _OF_PIXELS,
    "wgrad": _OF_FILTERS,
}
"""Per op and dtype, the tiles to choose from, most for what tensor cores do not take. The last takes all."""

SHOWN = {
    ("fprop", "channels_first"): (_WIDE,),
    ("fprop", "channels_last"): (_WIDE,),
    ("wgrad", "channels_first"): (_WIDE, _SQUARE),
    ("wgrad", "channels_last"): (_SQUARE,),
}
"""Per op and layout, the tiles that read by a padding mode, of float32: other dtypes multiply for longer."""

SHOWN_FILTERS = 32
"""More filters of a group than this fill such a tile."""


def build(draft: Draft) -> list[Launch]:
    request, problem = draft.request, draft.problem
    vector = _vector(request, problem)
    tile, splits, chunk = _schedule(request, problem)
    shown = reads_padding(request)
    kernel = _kernel(request.op, request.dtype, tile, draft.lanes, vector, shown)
    blocks = block_digits(problem, request.op, tile.bm, tile.bn)
    fields = {"items": math.prod(result_shape(problem, request.op)), "digit": digits(blocks)}
    return split_sum(
        draft, kernel, math.prod(blocks), fields, (splits, chunk), request.layout == "channels_last",
        vectors=("a", "b") if vector > 1 else (),
        shared_bytes=_table_bytes(request, problem, tile) if shown else 0,
    )  # fmt: skip


def reads_padding(request: Request) -> bool:
    """In whole vectors where channels are last."""
    problem = request.problem
    return (
        request.dtype == "float32"
        and padding_is_cheap(request)
        and (request.op == "wgrad" or problem.k // problem.groups > SHOWN_FILTERS)
        and (request.layout == "channels_first" or _vector(request, problem) > 1)
    )


def applies(request: Request, device: Device | None) -> str | None:
    problem, op = seen_by(reads_padding, request), request.op
    if reason := beyond_32_bits(request):
        return reason
    tile, splits, _ = _schedule(request, problem)
    if splits * _blocks(problem, op, tile) >= 2**31:
        return "it would take 2^31 blocks or more"
    return None


def estimate(request: Request, device: Device | None) -> float:
    """Tiles are multiplied whole, however little of them is needed."""
    assert device is not None
    problem = seen_by(reads_padding, request)
    # Channels that are alone in their group are read from a line each; residues of a stride are stored apart.
    alone = request.layout == "channels_last" and problem.c == problem.groups > 1
    apart = request.op == "dgrad" and max(problem.stride) > 1
    factor = (1.35 if alone else 1) * (1.1 if apart else 1)
    return factor * _seconds(request, problem, device, _schedule(request, problem))


def _seconds(request: Request, problem: ConvProblem, device: Device, choice: Choice) -> float:
    tile, splits, chunk = choice
    # Most of dgrad's residues have fewer taps than the first.
    depth = per(problem.gemm(request.op)[2], math.prod(problem.stride) if request.op == "dgrad" else 1)
    slices = per(chunk, tile.bk) * depth / max(gemm_k(problem, request.op), 1)
    products = real_products(request) * tile.tm * tile.tn * tile.bk
    operands = tile.bk * (tile.tm + tile.tn) * _item(DTYPES[request.dtype].accumulator) / VECTOR
    elements = (tile.bm + tile.bn) * tile.bk / tile.threads
    loads = elements / _vector(request, problem)
    threads = Threads(
        splits * _blocks(problem, request.op, tile), tile.threads, tile.residents,
        instructions=slices * (products + operands + _LOAD * loads + _SLICE) + _ONCE,
        products=slices * products,
        waits=slices + 4,
        lines=slices * (2 * operands + _LINES * elements),
    )  # fmt: skip
    return seconds(request, device, threads, request.bytes) + reduce_seconds(request, device, splits)


def kernels(dtype: str) -> Iterator[Kernel]:
    """Every instance for a dtype."""
    most = _most(dtype)
    for op, tiles in TILES.items():
        for tile in tiles[dtype]:
            yield _kernel(op, dtype, tile, 1, 1)
            if most > 1:
                yield _kernel(op, dtype, tile, 32, most)
        yield _kernel(op, dtype, tiles[dtype][-1], 32, 1)
    for (op, layout), shown in SHOWN.items():
        for tile in shown if dtype == "float32" else ():
            lanes, vector = (32, most) if layout == "channels_last" else (1, 1)
            yield _kernel(op, dtype, tile, lanes, vector, shown=True)


def _kernel(op: str, dtype: str, tile: Tile, lanes: int, vector: int, shown: bool = False) -> Kernel:
    order = "CHANNEL_LANES" if lanes > 1 else "PIXEL_LANES"
    arguments = (C_TYPES[dtype], *astuple(tile)[:5], order, vector, str(tile.planar).lower())
    arguments += ("true",) * shown
    return Kernel("simt.cuh", f"conv_{op}_simt", arguments, tile.threads, tile.residents)


def _table_bytes(request: Request, problem: ConvProblem, tile: Tile) -> int:
    """The table of what padding shows: see Source in gather.cuh."""
    if request.op == "fprop":
        return table_bytes(problem, tile.bm)
    in_turn = request.layout == "channels_first"
    return table_bytes(
        problem, tile.threads + tile.bk, 1 if in_turn else problem.c // problem.groups, tile.bn
    )


def _item(dtype: str) -> int:
    return DTYPES[dtype].itemsize


def _most(dtype: str) -> int:
    """How many neighbouring channels a thread reads at once."""
    return min(VECTOR // _item(dtype), 4)


def _vector(request: Request, problem: ConvProblem) -> int:
    """The same for a request: one where channels are no neighbours, or do not make whole vectors."""
    channels = [problem.c] if request.op == "fprop" else [problem.c, problem.k]
    whole = VECTOR // _item(request.dtype)
    fits = all(each // problem.groups % whole == 0 for each in channels)
    return _most(request.dtype) if fits and request.layout == "channels_last" else 1


def _blocks(problem: ConvProblem, op: str, tile: Tile) -> int:
    """Of one part of gemm_k."""
    return math.prod(block_digits(problem, op, tile.bm, tile.bn))


def _schedule(request: Request, problem: ConvProblem) -> Choice:
    """What is done first on an H200."""
    tiles = [tile for tile in TILES[request.op][request.dtype] if not tile.planar or planar(problem)]
    if reads_padding(request):
        tiles = [*SHOWN[request.op, request.layout]]
    elif request.layout == "channels_last" and _vector(request, problem) == 1:
        tiles = tiles[-1:]
    choices = [(tile, *cut) for tile in tiles for cut in _cuts(problem, request.op, tile)]
    return _first(choices, lambda choice: _seconds(request, problem, _H200, choice))


def _cuts(problem: ConvProblem, op: str, tile: Tile) -> list[tuple[int, int]]:
    """The parts to choose from, as many as fill whole rounds of blocks; the most come first."""
    depth, blocks = gemm_k(problem, op), max(_blocks(problem, op, tile), 1)
    most, least = max(4 * depth // schedule.PART, 1), per(depth, LIMIT)
    splits = {min(max(rounds * _H200.multiprocessors // blocks, 1), most) for rounds in (1, 2, 3, 4, 6)} | {1}
    chunks = {max(per(per(depth, max(count, least)), tile.bk), 1) * tile.bk for count in splits}
    return [(max(per(depth, chunk), 1), chunk) for chunk in sorted(chunks)]


def _first(choices: list[Choice], cost: Callable[[Choice], float]) -> Choice:
    """That of least cost, the largest tile where several have it."""
    return min(choices, key=cost)
