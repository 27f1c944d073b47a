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
    block_digits,
    gemm_k,
    not_by_tiles,
    padding_is_cheap,
    per,
    planar,
    reduce_seconds,
    result_shape,
    seen_by,
    split_sum,
    table_bytes,
    too_short,
)
from .transform import (
    REAL,
    as_real,
    channels_last,
    channels_last_seconds,
    fold,
    fold_seconds,
    folded,
    folded_bytes,
    real_filters,
    real_filters_seconds,
    to_transform,
)


@dataclass(frozen=True)
class Tile:
    """A block's tile of the product, the depth of a slice, a warp's part of the tile, how many slices are in
    shared memory, whether only problems of one or two axes may take it, and the number of blocks that a
    multiprocessor shall have registers for; `newest` is the last compute capability, times ten, for which the
    compiler has enough.

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
    newest: int | None = None

    @property
    def threads(self) -> int:
        return 32 * (self.bm // self.wm) * (self.bn // self.wn)


@dataclass(frozen=True)
class Product:
    """What tensor cores multiply: its name in mma.cuh, the one in `Device.tensor`, gemm_k of an instruction,
    and by op the tiles to choose from, and those that read by a padding mode; how many products of parts one
    product is, or 1.
    """

    name: str
    unit: str
    k: int
    tiles: dict[str, tuple[Tile, ...]]
    shown: dict[str, tuple[Tile, ...]]
    parts: int = 1


def _by_op(*tiles: Tile, narrow: tuple[Tile, ...] = ()) -> dict[str, tuple[Tile, ...]]:
    """Tiles of all ops, and before the last one those for results with few channels."""
    of_channels = (*tiles[:-1], *narrow, tiles[-1])
    return {"fprop": of_channels, "dgrad": of_channels, "wgrad": tiles}


_HALF = _by_op(
    Tile(128, 128, 32, 64, 64, 4, True, 2, 470, 560, 90),
    Tile(128, 128, 32, 64, 64, 4, False, 2, 480, 590, 90),
    Tile(128, 64, 32, 64, 32, 4, False, 2, 345, 450),
    Tile(64, 64, 32, 32, 32, 4, False, 3, 245, 300),
    narrow=(Tile(128, 32, 32, 32, 32, 4, False, 3, 215, 290),),
)
_HALF_SHOWN = {"fprop": _HALF["wgrad"][1:], "wgrad": _HALF["wgrad"][1::2]}
_TF32 = _by_op(
    Tile(128, 128, 16, 64, 64, 4, True, 2, 500, 860, 90),
    Tile(128, 64, 16, 64, 32, 4, False, 2, 360, 600),
    Tile(64, 64, 16, 32, 32, 4, False, 3, 255, 400),
    narrow=(Tile(128, 32, 16, 32, 32, 4, False, 3, 230, 380),),
)
_TF32["dgrad"] = _TF32["dgrad"][1:]  # for which the first one has too few registers
_TF32_SHOWN = {
    op: (replace(tiles[0], planar=False), *others)
    for op, tiles, others in (
        ("fprop", _TF32["fprop"], _TF32["fprop"][1:2]),
        ("wgrad", _TF32["wgrad"], _TF32["wgrad"][2:]),
    )
}
_FLOAT32 = _by_op(
    Tile(128, 128, 16, 64, 32, 2, False, 1, 1250, 1250, 90),
    Tile(128, 64, 16, 64, 32, 2, False, 2, 750, 900, 90),
    Tile(64, 64, 16, 32, 32, 2, False, 3, 500, 600),
    narrow=(Tile(128, 32, 16, 32, 32, 2, False, 3, 480, 620),),
)
_FLOAT64 = _by_op(Tile(64, 64, 16, 32, 32, 3, False, 2, 512, 460))

PRODUCTS = {
    ("float16", None): Product("Float16Product", "half", 16, _HALF, _HALF_SHOWN),
    ("bfloat16", None): Product("Bfloat16Product", "half", 16, _HALF, _HALF_SHOWN),
    ("float32", "tf32"): Product("Tf32Product", "tf32", 8, _TF32, _TF32_SHOWN),
    ("float32", None): Product("Float32Product", "half", 16, _FLOAT32, {}, parts=6),
    ("complex64", None): Product("Complex64Product", "half", 16, _FLOAT32, {}, parts=6),
    ("complex128", None): Product("Complex128Product", "double", 16, _FLOAT64, {}),
    ("float64", None): Product(
        "Float64Product", "double", 16, _FLOAT64, {op: _FLOAT64[op] for op in ("fprop", "wgrad")}
    ),
}
"""By dtype and precision."""

SHORT = 32
"""Products of floats in a sum, from which on parts lose no more than plain sums."""

LEAST = 16
"""Channels and filters that a group needs to be worth a tile, where there is more than one."""

_H200, _BANDWIDTH, _CACHE = DEVICES["sm_90"], 3.5e12, 40 << 20
"""The GPU for which schedules are made; bytes per second that it reaches, and of its cache that count."""

_ROUNDS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
"""How many rounds of blocks, one for each multiprocessor, parts of a sum may fill."""

_FILL = 6
"""Slices that a block's beginning and end take as long as."""

_ENDS = {"fprop": 2050, "dgrad": 2400, "wgrad": 2200}
"""Instructions of a thread before its first slice and after the last one."""


def build(draft: Draft) -> list[Launch]:
    request, op = draft.request, draft.request.op
    is_complex, product, whole = request.dtype in REAL, _product(request), draft.problem
    launches = [fold(draft, slot, whole.filter[2]) for slot in _folded(request, whole)]
    launches += [channels_last(draft, slot) for slot in _transformed(request, whole)]
    if _folded(request, whole):
        draft = replace(draft, problem=folded(whole, whole.filter[2]))
    if is_complex and op != "wgrad":
        launches.append(real_filters(draft))
    problem = dense(request, whole)
    tile, splits, chunk = choice(problem, request)
    tile = _on(draft.device, request, tile)
    item = itemsize(request)
    blocks = block_digits(problem, op, tile.bm, tile.bn, VECTOR // item)
    shown = _table_bytes(problem, op, tile, item) if reads_padding(request) else 0
    kernel = _kernel(op, product, tile, shown > 0)
    fields = {
        "items": math.prod(result_shape(whole, op)),
        "digit": digits(blocks),
        "channels": problem.c // problem.groups,
        "filters": problem.k // problem.groups,
    }
    of_folded = op == "wgrad" and draft.problem is not whole
    return launches + split_sum(
        replace(draft, problem=whole), kernel, math.prod(blocks), draft.fields() | fields, (splits, chunk),
        channels_last=True, seen=result_shape(draft.problem, op) if of_folded else None,
        shared_bytes=_shared_bytes(op, product, tile, item, shown), vectors=("a", "b"),
        reals=() if not is_complex else ("a", "b") if op == "wgrad" else ("a",),
    )  # fmt: skip


def dense(request: Request, problem: ConvProblem) -> ConvProblem:
    """What is multiplied: taps as channels where these are few, and complex numbers as real ones."""
    return as_real(request, folded(problem, problem.filter[2]) if _folded(request, problem) else problem)


def _folded(request: Request, problem: ConvProblem) -> str:
    """The slots of the inputs whose last axis has taps as channels: where that saves a third of gemm_k."""
    vector, taps = VECTOR // DTYPES[request.dtype].itemsize, problem.filter[2]
    few = problem.groups == 1 and 0 < problem.c < vector
    saves = 3 * per(problem.c * taps, vector) <= 2 * taps
    return {"fprop": "ab", "wgrad": "a"}.get(request.op, "") if few and saves else ""


def itemsize(request: Request) -> int:
    """Bytes of the numbers that are multiplied."""
    return DTYPES[REAL.get(request.dtype, request.dtype)].itemsize


def reads_padding(request: Request) -> bool:
    product = PRODUCTS.get((request.dtype, request.precision))
    if product is None or not product.shown or _folded(request, request.problem.volumetric):
        return False
    return padding_is_cheap(request)


def applies(request: Request, device: Device | None) -> str | None:
    problem = dense(request, seen_by(reads_padding, request))
    product = PRODUCTS.get((request.dtype, request.precision))
    if product is None:
        return f"tensor cores do not multiply {request.dtype}"
    if device is not None and product.unit not in device.tensor:
        return f"{device.arch} has no tensor cores for it"
    item = itemsize(request)
    if reason := not_by_tiles(request, problem, LEAST, VECTOR // item):
        return reason
    tile, splits, _ = choice(problem, request)
    tile = _on(device, request, tile)
    if splits * _blocks(problem, request.op, tile, item) >= 2**31:
        return "it would take 2^31 blocks or more"
    return None


def except_for(request: Request) -> str | None:
    product = PRODUCTS.get((request.dtype, request.precision))
    if product is None or product.parts == 1:
        return None
    return too_short(as_real(request, request.problem), request.op, SHORT)


def estimate(request: Request, device: Device | None) -> float:
    assert device is not None
    seen, op = seen_by(reads_padding, request), request.op
    product, item, problem = _product(request), itemsize(request), dense(request, seen)
    tile, splits, chunk = choice(problem, request)
    tile = _on(device, request, tile)
    if op == "dgrad":  # of whose residues most have fewer taps than the first
        chunk = math.ceil(problem.gemm(op)[2] / math.prod(problem.stride) / splits)
    slices = per(chunk, tile.bk)
    fragments, steps = tile.wm // 16 * (tile.wn // 8), tile.bk // product.k
    each, lines = fragments * (steps + 4) + 110, (tile.wm + tile.wn) * tile.bk * item / 64
    if product.parts > 1:  # made once by a block, of 6 bytes, and added by three instructions
        share = (tile.bm + tile.bn) * tile.bk / tile.threads * 32
        each, lines = 18 * fragments + 360, ((tile.wm + tile.wn) * tile.bk * 6 + 14 * share) / 128
    # Pixels of one residue are no neighbours in memory: stored one by one where pixels are the fastest axis.
    apart = (
        0 if op != "dgrad" or max(problem.stride) == 1 else 240 if request.layout == "channels_first" else 25
    )
    threads = Threads(
        splits * _blocks(problem, op, tile, item), tile.threads, tile.residents,
        instructions=slices * each + _ENDS[op] + apart * fragments,
        products=slices * (each - 110),
        waits=4,
        lines=slices * lines + 300,
        tensor=2 * slices * tile.bm * tile.bn * tile.bk * product.parts,
        unit=product.unit,
    )  # fmt: skip
    before = sum(channels_last_seconds(request, seen, device, slot) for slot in _transformed(request, seen))
    size = request.bytes
    if _folded(request, seen):
        before += fold_seconds(request, seen, device, seen.filter[2])
        size += folded_bytes(request, seen, seen.filter[2]) - math.prod(seen.x_shape()) * item
    if request.dtype in REAL and op != "wgrad":
        before += real_filters_seconds(request, seen, device)
    return before + seconds(request, device, threads, size) + reduce_seconds(request, device, splits)


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
            for splits, chunk in _cuts(problem, request.op, tile, itemsize(request))
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
    item = itemsize(request)
    blocks, slices = splits * _blocks(problem, request.op, tile, item), per(chunk, tile.bk)
    at_once = _H200.multiprocessors * tile.residents
    crowded = per(blocks, _H200.multiprocessors) * tile.clocks
    products = (slices + _FILL) * max(crowded, per(blocks, at_once) * tile.latency)
    # What does not fit into the second-level cache is read again from DRAM.
    inputs = sum(math.prod(request.shape(role)) for role in OPERANDS[request.op][:2] if role)
    inputs *= DTYPES[request.dtype].itemsize
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


def _shared_bytes(op: str, product: Product, tile: Tile, item: int, shown: int) -> int:
    """The struct `Shared`; the slices and tables, that of what padding shows included, or then the sums."""
    slices = 0
    for rows, k_major in ((tile.bm, op != "wgrad"), (tile.bn, op == "fprop")):
        lines, length = (rows, tile.bk) if k_major else (tile.bk, rows)
        padded = item == 8 or (item == 4 and not k_major)  # which are read element by element
        slices += lines * (length * item + (32 if padded else 0))
    slices *= tile.stages
    if product.parts > 1:  # of 16 bits, and what has not been split yet
        slices = (tile.bm + tile.bn) * tile.bk * (tile.stages * 3 * 2 + item)
    sums = max(tile.bm * (tile.bn + 16), tile.bn * (tile.bm + 4)) * max(item, 4)
    columns = 32 * tile.threads * (2 if op == "dgrad" else 1)  # of which dgrad's matrices have their own
    shared = 8 * (tile.bm + tile.bn) + 32 * max(tile.bm, tile.bn) + 32
    return per(shared, 128) * 128 + max(slices + columns + shown, sums)


def _table_bytes(problem: ConvProblem, op: str, tile: Tile, item: int) -> int:
    """The table of what padding shows: see Source in gather.cuh."""
    if op == "fprop":
        return table_bytes(problem, tile.bm)
    vector = VECTOR // item
    return table_bytes(problem, tile.threads, per(problem.c // problem.groups, vector) * vector, tile.bn)


def _transformed(request: Request, problem: ConvProblem) -> list[str]:
    """The slots of the inputs that are in no vectors of channels, and are not folded or made real either."""
    made_real = "b" if request.dtype in REAL and request.op != "wgrad" else ""
    return [
        slot for slot in to_transform(request, problem) if slot not in _folded(request, problem) + made_real
    ]


def _blocks(problem: ConvProblem, op: str, tile: Tile, item: int) -> int:
    """Of one part of gemm_k."""
    return math.prod(block_digits(problem, op, tile.bm, tile.bn, VECTOR // item))
