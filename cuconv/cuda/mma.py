"""`mma`: implicit GEMM on tensor cores. See cuda_src/mma.cuh."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace

from ..dtypes import DTYPES
from ..problem import ConvProblem, Request
from .cost import LAUNCH, Threads, seconds
from .device import DEVICES, Device
from .geometry import digits
from .kernel import VECTOR, Kernel, Launch
from .schedule import (
    LIMIT,
    OPERANDS,
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
from .transform import channels_last, channels_last_seconds


@dataclass(frozen=True)
class Tile:
    """A block's tile of the product, the depth of a slice, a warp's part of the tile, how many slices are in
    shared memory, whether only problems of one or two axes may take it, and the number of blocks that a
    multiprocessor shall have registers for.

    By the cost model a multiprocessor of an H200 does a slice in `clocks` where it has blocks enough, and a
    block alone in `latency`.
    """

    bm: int
    bn: int
    bk: int
    wm: int
    wn: int
    stages: int
    planar: bool
    residents: int
    clocks: int
    latency: int

    @property
    def threads(self) -> int:
        return 32 * (self.bm // self.wm) * (self.bn // self.wn)

    @property
    def newest(self) -> int | None:
        """The last compute capability, times ten, for which the compiler has registers enough."""
        return 90 if self.wm * self.wn > 2048 else None


@dataclass(frozen=True)
class Product:
    """What tensor cores multiply: its name in mma.cuh, the one in `Device.tensor`, gemm_k of an instruction,
    and by op the tiles to choose from, and those that read by a padding mode.
    """

    name: str
    unit: str
    k: int
    tiles: dict[str, tuple[Tile, ...]]
    shown: dict[str, tuple[Tile, ...]]


def _of_all_ops(*tiles: Tile) -> dict[str, tuple[Tile, ...]]:
    return dict.fromkeys(("fprop", "dgrad", "wgrad"), tiles)


_HALF = _of_all_ops(
    Tile(128, 128, 32, 64, 64, 4, True, 2, 470, 560),
    Tile(128, 128, 32, 64, 64, 4, False, 2, 480, 590),
    Tile(128, 64, 32, 64, 32, 4, False, 2, 345, 450),
    Tile(64, 64, 32, 32, 32, 4, False, 3, 245, 300),
)
_HALF_SHOWN = {"fprop": _HALF["fprop"][1:], "wgrad": _HALF["wgrad"][1::2]}
_TF32 = _of_all_ops(
    Tile(128, 128, 16, 64, 64, 4, True, 2, 500, 860),
    Tile(128, 64, 16, 64, 32, 4, False, 2, 360, 600),
    Tile(64, 64, 16, 32, 32, 4, False, 3, 255, 400),
)
_TF32["dgrad"] = _TF32["dgrad"][1:]  # for which the first one has too few registers
_TF32_SHOWN = {
    op: (replace(tiles[0], planar=False), *others)
    for op, tiles, others in (
        ("fprop", _TF32["fprop"], _TF32["fprop"][1:2]),
        ("wgrad", _TF32["wgrad"], _TF32["wgrad"][2:]),
    )
}
_FLOAT64 = _of_all_ops(Tile(64, 64, 16, 32, 32, 3, False, 2, 512, 460))

PRODUCTS = {
    ("float16", None): Product("Float16Product", "half", 16, _HALF, _HALF_SHOWN),
    ("bfloat16", None): Product("Bfloat16Product", "half", 16, _HALF, _HALF_SHOWN),
    ("float32", "tf32"): Product("Tf32Product", "tf32", 8, _TF32, _TF32_SHOWN),
    ("float64", None): Product(
        "Float64Product", "double", 16, _FLOAT64, {op: _FLOAT64[op] for op in ("fprop", "wgrad")}
    ),
}
"""By dtype and precision."""

LEAST = 16
"""Channels and filters that a group needs to be worth a tile, where there is more than one."""

_H200, _BANDWIDTH, _CACHE = DEVICES["sm_90"], 3.5e12, 40 << 20
"""The GPU for which schedules are made; bytes per second that it reaches, and of its cache that count."""

_ROUNDS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
"""How many rounds of blocks, one for each multiprocessor, parts of a sum may fill."""

_FILL = 6
"""Slices that a block's beginning and end take as long as."""


def build(draft: Draft) -> list[Launch]:
    request, op = draft.request, draft.request.op
    launches = [channels_last(draft, slot) for slot in _transformed(request, draft.problem)]
    tile, splits, chunk = choice(draft.problem, request)
    tile = _on(draft.device, request, tile)
    item = DTYPES[request.dtype].itemsize
    blocks = block_digits(draft.problem, op, tile.bm, tile.bn, VECTOR // item)
    shown = _table_bytes(draft.problem, op, tile, item) if reads_padding(request) else 0
    kernel = _kernel(op, _product(request), tile, shown > 0)
    fields = {"items": math.prod(result_shape(draft.problem, op)), "digit": digits(blocks)}
    return launches + split_sum(
        draft, kernel, math.prod(blocks), fields, (splits, chunk),
        channels_last=True, shared_bytes=_shared_bytes(op, tile, item, shown), vectors=True,
    )  # fmt: skip


def reads_padding(request: Request) -> bool:
    return padding_is_cheap(request)


def applies(request: Request, device: Device | None) -> str | None:
    problem = seen_by(reads_padding, request)
    product = PRODUCTS.get((request.dtype, request.precision))
    if product is None:
        precision = "" if request.dtype != "float32" else " with a precision other than 'tf32'"
        return f"tensor cores do not multiply {request.dtype}{precision}"
    if device is not None and product.unit not in device.tensor:
        return f"{device.arch} has no tensor cores for it"
    if problem.groups > 1 and min(problem.c, problem.k) < LEAST * problem.groups:
        return f"its groups have fewer than {LEAST} channels or filters"
    if reason := beyond_32_bits(request):
        return reason
    item = DTYPES[request.dtype].itemsize
    vector, channels = VECTOR // item, max(problem.c, problem.k) // problem.groups
    if math.prod(problem.filter) * per(channels, vector) * vector >= LIMIT:
        return "the channels of a filter, times its taps, are 2^30 or more"
    tile, splits, _ = choice(problem, request)
    tile = _on(device, request, tile)
    if splits * _blocks(problem, request.op, tile, item) >= 2**31:
        return "it would take 2^31 blocks or more"
    return None


def estimate(request: Request, device: Device | None) -> float:
    assert device is not None
    problem, op = seen_by(reads_padding, request), request.op
    product, item = _product(request), DTYPES[request.dtype].itemsize
    tile, splits, chunk = choice(problem, request)
    tile = _on(device, request, tile)
    if op == "dgrad":  # of whose residues most have fewer taps than the first
        chunk = math.ceil(problem.gemm(op)[2] / math.prod(problem.stride) / splits)
    slices = per(chunk, tile.bk)
    fragments, steps = tile.wm // 16 * (tile.wn // 8), tile.bk // product.k
    # Of a residue pixels are no neighbours in memory: results are stored one by one if these are fastest.
    apart = (
        0 if op != "dgrad" or max(problem.stride) == 1 else 240 if request.layout == "channels_first" else 40
    )
    threads = Threads(
        splits * _blocks(problem, op, tile, item), tile.threads, tile.residents,
        instructions=slices * (fragments * (steps + 4) + 110) + 2200 + apart * fragments,
        products=slices * fragments * (steps + 4),
        waits=4,
        lines=slices * (tile.wm + tile.wn) * tile.bk * item / 128 * 2 + 300,
        tensor=2 * slices * tile.bm * tile.bn * tile.bk,
        unit=product.unit,
    )  # fmt: skip
    before = sum(
        channels_last_seconds(request, problem, device, slot) for slot in _transformed(request, problem)
    )
    return before + seconds(request, device, threads, request.bytes) + reduce_seconds(request, device, splits)


def kernels(dtype: str) -> Iterator[Kernel]:
    """Every instance for a dtype."""
    for (of, _), product in PRODUCTS.items():
        if of == dtype:
            yield from (_kernel(op, product, tile) for op, tiles in product.tiles.items() for tile in tiles)
            yield from (
                _kernel(op, product, tile, shown=True)
                for op, tiles in product.shown.items()
                for tile in tiles
            )


def choice(problem: ConvProblem, request: Request) -> tuple[Tile, int, int]:
    """The tile, and into how many parts of what depth gemm_k is cut: what is done first on an H200."""
    return min(
        (
            (tile, splits, chunk)
            for tile in tiles_of(request)
            if not tile.planar or planar(problem)
            for splits, chunk in _cuts(problem, request.op, tile, DTYPES[request.dtype].itemsize)
        ),
        key=lambda made: _clocks(problem, request, *made),
    )


def _on(device: Device | None, request: Request, tile: Tile) -> Tile:
    """The tile, or on a device that it is not for the next one that is, which sums in the same order."""
    tiles = tiles_of(request)
    fit = [
        each
        for each in tiles[tiles.index(tile) :]
        if device is None or each.newest is None or int(device.arch[3:]) <= each.newest
    ]
    return fit[0]


def _cuts(problem: ConvProblem, op: str, tile: Tile, item: int) -> Iterator[tuple[int, int]]:
    """The parts to choose from: as many as fill whole rounds of blocks, none shorter than the ring."""
    depth, blocks = gemm_k(problem, op, VECTOR // item), max(_blocks(problem, op, tile, item), 1)
    slices = max(per(depth, tile.bk), 1)
    least = per(depth, LIMIT // tile.bk * tile.bk)
    found = {
        max(1, min(_H200.multiprocessors * rounds // blocks, slices // tile.stages)) for rounds in _ROUNDS
    }
    for splits in sorted({1, *found}):
        chunk = per(slices, max(splits, least)) * tile.bk
        yield max(per(depth, chunk), 1), chunk


def _clocks(problem: ConvProblem, request: Request, tile: Tile, splits: int, chunk: int) -> float:
    """Of an H200, for the products and for adding up the parts."""
    item = DTYPES[request.dtype].itemsize
    blocks, slices = splits * _blocks(problem, request.op, tile, item), per(chunk, tile.bk)
    at_once = _H200.multiprocessors * tile.residents
    crowded = per(blocks, _H200.multiprocessors) * tile.clocks
    products = (slices + _FILL) * max(crowded, per(blocks, at_once) * tile.latency)
    # What blocks at work read is read again from DRAM as far as it does not fit the second-level cache.
    inputs = sum(math.prod(request.shape(role)) for role in OPERANDS[request.op][:2] if role) * item  # bytes
    again = max(blocks * slices * (tile.bm + tile.bn) * tile.bk * item - inputs, 0)
    missed = max(0.0, 1 - _CACHE / max(inputs * min(at_once / max(blocks, 1), 1), 1))
    work = max(products, _H200.clock * (inputs + again * missed) / _BANDWIDTH)
    if splits == 1:
        return work
    size = (2 * splits + 1) * math.prod(result_shape(problem, request.op)) * max(item, 4)
    return work + _H200.clock * (LAUNCH + size / _BANDWIDTH)


def tiles_of(request: Request) -> tuple[Tile, ...]:
    """The tiles to choose from."""
    product = _product(request)
    return (product.shown if reads_padding(request) else product.tiles)[request.op]


def _product(request: Request) -> Product:
    return PRODUCTS[request.dtype, request.precision]


def _kernel(op: str, product: Product, tile: Tile, shown: bool = False) -> Kernel:
    arguments = (product.name, *astuple(tile)[:6], str(tile.planar).lower(), *("true",) * shown)
    return Kernel("mma.cuh", f"conv_{op}_mma", arguments, tile.threads, tile.residents, tile.newest)


def _shared_bytes(op: str, tile: Tile, item: int, shown: int) -> int:
    """The struct `Shared`; the slices and tables, that of what padding shows included, or then the sums."""
    slices = 0
    for rows, k_major in ((tile.bm, op != "wgrad"), (tile.bn, op == "fprop")):
        lines, length = (rows, tile.bk) if k_major else (tile.bk, rows)
        padded = item == 8 or (item == 4 and not k_major)  # which are read element by element
        slices += lines * (length * item + (32 if padded else 0))
    sums = max(tile.bm * (tile.bn + 8), tile.bn * (tile.bm + 4)) * max(item, 4)
    columns = 32 * tile.threads * (2 if op == "dgrad" else 1)  # of which dgrad's matrices have their own
    shared = 8 * (tile.bm + tile.bn) + 32 * max(tile.bm, tile.bn) + 24
    return per(shared, 128) * 128 + max(tile.stages * slices + columns + shown, sums)


def _table_bytes(problem: ConvProblem, op: str, tile: Tile, item: int) -> int:
    """The table of what padding shows: see Source in gather.cuh."""
    if op == "fprop":
        return table_bytes(problem, tile.bm)
    vector = VECTOR // item
    return table_bytes(problem, tile.threads, per(problem.c // problem.groups, vector) * vector, tile.bn)


def _transformed(request: Request, problem: ConvProblem) -> list[str]:
    """The slots of the inputs that are not in vectors of channels as they are."""
    vector = VECTOR // DTYPES[request.dtype].itemsize
    channels = {"x": problem.c, "w": problem.c, "dy": problem.k}
    roles = zip("ab", OPERANDS[request.op], strict=False)
    return [
        slot
        for slot, role in roles
        if role and (request.layout == "channels_first" or channels[role] // problem.groups % vector)
    ]


def _blocks(problem: ConvProblem, op: str, tile: Tile, item: int) -> int:
    """Of one part of gemm_k."""
    return math.prod(block_digits(problem, op, tile.bm, tile.bn, VECTOR // item))
