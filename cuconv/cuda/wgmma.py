"""`wgmma`: implicit GEMM by products of warpgroups, on Hopper. See cuda_src/wgmma.cuh."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..problem import ConvProblem, Request
from .cost import COPIED, LAUNCH
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
    per,
    pixels,
    reduce_seconds,
    result_shape,
    split_sum,
    too_short,
    zero_padded,
)
from .transform import (
    PARTS,
    REAL,
    as_real,
    channels_last,
    channels_last_seconds,
    real_filters,
    real_filters_seconds,
    small_flags,
    to_transform,
)

ARCH = "sm_90"
"""The one architecture that has these products."""

THREADS = 384
"""Two warpgroups that multiply, and one that brings what they do."""

LINE = 128
"""Bytes of gemm_k in a slice."""

PIECE = 3072
"""Bytes of shared memory that a warp's sums are stored by: of the same name in wgmma.cuh."""

SHORT = 128
"""Products of floats in a sum, from which on parts lose no more than plain sums."""

LEAST = 64
"""Channels and filters that a group needs to fill a tile, where there is more than one."""

_H200 = DEVICES[ARCH]
"""The GPU for which schedules are made."""

_L2, _ENDS = 36, 2000
"""Of its multiprocessors: bytes per clock from the second-level cache, and clocks at a tile's beginning and
end that nothing else overlaps.
"""

_CACHE = 40 << 20
"""Bytes of it that count."""

_ROUNDS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
"""How many rounds of tiles, one for each multiprocessor, parts of a sum may fill."""


@dataclass(frozen=True)
class Tile:
    """A block's tile of the product, and how many slices are in shared memory."""

    bm: int
    bn: int
    stages: int


@dataclass(frozen=True)
class Product:
    """What warpgroups multiply: its name in wgmma.cuh; bytes of a number in the matrices; its ops and tiles;
    how inputs are stored for it, if not as they are; how many sets of parts these have, and how many products
    of them are one.

    Sums of more than `longest` slices are cut into parts, where they are not added to others with rounding:
    tensor cores cut each term off at 24 bits below the sum, where all are positive a fourth of 2^-24 of it on
    average. In 16 bits that is a fourth of what is lost by rounding the result.
    """

    name: str
    item: int
    ops: tuple[str, ...]
    tiles: tuple[Tile, ...]
    longest: int | None
    stored: str | None = None
    sets: int = 1
    products: int = 1

    @property
    def vector(self) -> int:
        """Elements that are copied at once."""
        return VECTOR // self.item

    @property
    def depth(self) -> int:
        """Elements of gemm_k in a slice."""
        return LINE // self.item


_ALL = ("fprop", "dgrad", "wgrad")
_TILES = (Tile(128, 256, 4), Tile(128, 128, 6), Tile(256, 64, 4), Tile(128, 64, 8))
_OF_PARTS = (Tile(128, 128, 2), Tile(128, 64, 2))

PRODUCTS = {
    ("float16", None): Product("Float16Group", 2, _ALL, _TILES, 72),
    ("bfloat16", None): Product("Bfloat16Group", 2, _ALL, _TILES, 576),
    # Floats have to lie along gemm_k, which in a weight gradient they do not.
    ("float32", "tf32"): Product("Tf32Group", 4, _ALL[:2], _TILES, 72, "tf32"),
    ("float32", None): Product("Float32Group", 2, _ALL, _OF_PARTS, None, "parts", PARTS, 6),
    ("complex64", None): Product("Complex64Group", 2, _ALL, _OF_PARTS, None, "parts", PARTS, 6),
}
"""By dtype and precision."""


def build(draft: Draft) -> list[Launch]:
    request, op, whole = draft.request, draft.request.op, draft.problem
    product, problem = _product(request), as_real(request, draft.problem)
    launches, copies = [], {}
    for slot in _copied(request, whole):
        launches += _before(draft, slot)
        copies[slot] = launches[-1]
    tile, splits, chunk = choice(problem, request)
    counts = block_digits(problem, op, tile.bm, tile.bn, product.vector)
    tiles = splits * math.prod(counts)
    fields = {
        "items": math.prod(result_shape(whole, op)),
        "digit": digits(counts),
        "channels": problem.c // problem.groups,
        "filters": problem.k // problem.groups,
    }
    if product.stored == "parts":
        fields["mode"] = small_flags(copies["a"]) + (small_flags(copies["b"]) << 32)
    return launches + split_sum(
        draft, _kernel(op, product, tile), tiles, draft.fields() | fields, (splits, chunk),
        channels_last=True, shared_bytes=_shared_bytes(product, tile), vectors=("a", "b"),
        blocks=blocks_for(tiles, draft.device or _H200),
    )  # fmt: skip


def applies(request: Request, device: Device | None) -> str | None:
    product = PRODUCTS.get((request.dtype, request.precision))
    if product is None or request.op not in product.ops:
        precision = f" as {request.precision}" if request.precision else ""
        op = f" in {request.op}" if product else ""
        return f"warpgroups do not multiply {request.dtype}{precision}{op}"
    if device is not None and device.arch != ARCH:
        return f"{device.arch} has no products of warpgroups"
    return not_by_tiles(request, as_real(request, zero_padded(request)), LEAST, product.vector)


def except_for(request: Request) -> str | None:
    product = PRODUCTS.get((request.dtype, request.precision))
    if product is None or product.sets == 1:
        return None
    return too_short(as_real(request, request.problem), request.op, SHORT)


def estimate(request: Request, device: Device | None) -> float:
    assert device is not None
    whole, op, product = zero_padded(request), request.op, _product(request)
    problem = as_real(request, whole)
    tile, splits, chunk = choice(problem, request)
    before = sum(channels_last_seconds(request, whole, device, slot) for slot in _copied(request, whole))
    if request.dtype in REAL and op != "wgrad":
        before += real_filters_seconds(request, whole, device)
    tiles = splits * _tiles(problem, request, tile)
    clocks = _clocks(problem, request, tile, splits, chunk)
    # With channels first, results are stored one by one if pixels are no neighbours or fill no packs.
    of_residues = op == "dgrad" and max(problem.stride) > 1
    if (
        request.layout == "channels_first"
        and op != "wgrad"
        and (of_residues or math.prod(pixels(problem, op)) % 8)
    ):
        clocks += per(tiles, _H200.multiprocessors) * tile.bm * tile.bn / 2
    # What does not fit into the second-level cache is read again from DRAM.
    unread = 1 - math.prod(min(r / s, 1) for r, s in zip(problem.filter, problem.stride, strict=True))
    size = request.bytes - (unread * math.prod(request.shape("x")) * product.item if op == "fprop" else 0)
    read = tiles * per(chunk, product.depth) * product.sets * (tile.bm + tile.bn) * LINE
    missed = max(0.0, 1 - _CACHE / max(size * min(_H200.multiprocessors / max(tiles, 1), 1), 1))
    moved = (size + max(read - size, 0) * missed) / (COPIED * device.bandwidth)
    return before + max(clocks / device.clock, moved) + LAUNCH + reduce_seconds(request, device, splits)


def kernels(dtype: str) -> Iterator[Kernel]:
    """Every instance for a dtype."""
    for (of, _), product in PRODUCTS.items():
        if of == dtype:
            yield from (_kernel(op, product, tile) for op in product.ops for tile in product.tiles)


def choice(problem: ConvProblem, request: Request) -> tuple[Tile, int, int]:
    """The tile, and into how many parts of what depth gemm_k is cut: what is done first on an H200."""

    def seconds(made: tuple[Tile, int, int]) -> float:
        clocks = _clocks(problem, request, *made)
        return clocks / _H200.clock + reduce_seconds(request, _H200, made[1])

    tiles = _product(request).tiles
    return min(((tile, *cut) for tile in tiles for cut in _cuts(problem, request, tile)), key=seconds)


def blocks_for(tiles: int, device: Device) -> int:
    """One for each multiprocessor, which does its share of the tiles."""
    return min(tiles, device.multiprocessors)


def _cuts(problem: ConvProblem, request: Request, tile: Tile) -> Iterator[tuple[int, int]]:
    """The parts to choose from: as many as fill whole rounds of tiles, none longer than a sum may be."""
    product, tiles = _product(request), max(_tiles(problem, request, tile), 1)
    length = gemm_k(problem, request.op, product.vector)
    slices = max(per(length, product.depth), 1)
    least = per(slices, min(product.longest or LIMIT, LIMIT // product.depth))
    found = {min(_H200.multiprocessors * rounds // tiles, slices // tile.stages) for rounds in _ROUNDS}
    for splits in sorted({max(each, least) for each in (1, *found)}):
        chunk = per(slices, splits) * product.depth
        yield max(per(length, chunk), 1), chunk


def _clocks(problem: ConvProblem, request: Request, tile: Tile, splits: int, chunk: int) -> float:
    """Of a multiprocessor, which does one tile after the other: by tensor cores or the second-level cache."""
    product = _product(request)
    rounds = per(splits * _tiles(problem, request, tile), _H200.multiprocessors)
    if request.op == "dgrad":  # of whose residues most have fewer taps than the first
        chunk = math.ceil(problem.gemm("dgrad")[2] / math.prod(problem.stride) / splits)
    multiplied = product.products * tile.bm * tile.bn / 32
    brought = product.sets * (tile.bm + tile.bn) * LINE / _L2
    return rounds * (per(chunk, product.depth) * max(multiplied, brought) + _ENDS)


def _copied(request: Request, problem: ConvProblem) -> list[str]:
    """The slots of the inputs that another launch copies: of TF32 filters, and by parts all, in any case."""
    always = {"tf32": "b", "parts": "ab"}.get(_product(request).stored or "", "")
    return sorted({*to_transform(request, problem), *always})


def _before(draft: Draft, slot: str) -> list[Launch]:
    """The launches that copy an input. Of TF32 cells are rounded where they are multiplied."""
    request = draft.request
    stored = _product(request).stored
    filters = OPERANDS[request.op]["ab".index(slot)] == "w"
    if stored == "tf32" and filters:
        return [channels_last(draft, slot, stored, exchanged=request.op == "dgrad")]
    if stored != "parts":
        return [channels_last(draft, slot)]
    first = []
    if request.dtype in REAL and filters:
        first = [real_filters(draft)]
    elif request.dtype in REAL and slot in to_transform(request, draft.problem):
        first = [channels_last(draft, slot)]
    return [*first, channels_last(draft, slot, stored)]


def _product(request: Request) -> Product:
    return PRODUCTS[request.dtype, request.precision]


def _kernel(op: str, product: Product, tile: Tile) -> Kernel:
    arguments = (product.name, tile.bm, tile.bn, tile.stages)
    return Kernel("wgmma.cuh", f"conv_{op}_wgmma", arguments, THREADS, residents=1, newest=90)


def _shared_bytes(product: Product, tile: Tile) -> int:
    """The ring of slices, and the struct `GroupShared`."""
    ring = product.sets * tile.stages * (tile.bm + tile.bn) * LINE
    barriers, axes = 8 * (2 * tile.stages + 1), 3 * 3 * 40
    tables = 32 * max(tile.bm, 128) + 8 * (tile.bm + 2 * tile.bn)
    return ring + per(barriers + axes, 16) * 16 + tables + 8 * PIECE


def _tiles(problem: ConvProblem, request: Request, tile: Tile) -> int:
    """Of one part of gemm_k."""
    return math.prod(block_digits(problem, request.op, tile.bm, tile.bn, _product(request).vector))
