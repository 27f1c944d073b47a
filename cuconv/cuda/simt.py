"""`simt`: tiled implicit GEMM on the ordinary cores. See cuda_src/simt.cuh."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass

from ..dtypes import DTYPES
from ..problem import ConvProblem, Request
from .cost import Threads, real_products, seconds
from .device import Device
from .kernel import Kernel, Launch
from .schedule import (
    BLOCKS,
    C_TYPES,
    Draft,
    beyond_32_bits,
    parts,
    per,
    reduce_seconds,
    split_sum,
    zero_padded,
)


@dataclass(frozen=True)
class Tile:
    """A block's tile of the product, the depth of a slice, a thread's part of the tile, and the number of
    blocks that a multiprocessor shall have registers for.
    """

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    residents: int

    @property
    def threads(self) -> int:
        return self.bm // self.tm * (self.bn // self.tn)


# By the dtype of the sums. Complex numbers and integers have one tile each.
_LARGE = {"float32": Tile(128, 128, 8, 8, 8, 1), "float64": Tile(64, 64, 8, 4, 4, 2)}
_ROOMY = {"float32": Tile(128, 128, 8, 8, 8, 1), "float64": Tile(64, 64, 8, 4, 4, 1)}
_NARROW = {
    "float32": Tile(128, 32, 8, 8, 4, 3),
    "float64": Tile(64, 16, 8, 4, 2, 4),
    "complex64": Tile(64, 16, 8, 4, 2, 4),
    "complex128": Tile(64, 16, 8, 4, 2, 3),
    "int32": Tile(128, 32, 8, 8, 4, 1),
    "int64": Tile(64, 16, 8, 4, 2, 1),
}
_SQUARE = {
    "float32": Tile(64, 64, 8, 8, 4, 3),
    "float64": Tile(32, 32, 8, 4, 2, 4),
    "complex64": Tile(32, 32, 8, 4, 2, 4),
    "complex128": Tile(32, 32, 8, 4, 2, 3),
    "int32": Tile(64, 64, 8, 8, 4, 1),
    "int64": Tile(32, 32, 8, 4, 2, 1),
}

_LOAD, _STORE = 75, 45
"""Instructions to bring an element to shared memory, and to put one of the result in its place."""

TILES = {"fprop": (_LARGE, _NARROW), "dgrad": (_ROOMY, _NARROW), "wgrad": (_ROOMY, _SQUARE)}
"""Per op, the tiles to choose from. gemm_n is often short."""


def build(draft: Draft) -> list[Launch]:
    op, dtype = draft.request.op, draft.request.dtype
    tile = _tile(draft.problem, op, dtype)
    kernel = _kernel(op, dtype, tile, draft.lanes)
    blocks = _blocks(draft.problem, op, tile)
    if op != "wgrad":
        return [draft.launch(kernel, blocks, draft.fields())]
    return split_sum(draft, kernel, blocks, {}, _parts(draft.problem, tile))


def applies(request: Request, device: Device | None) -> str | None:
    problem, op = zero_padded(request), request.op
    if reason := beyond_32_bits(request):
        return reason
    tile = _tile(problem, op, request.dtype)
    blocks = _blocks(problem, op, tile)
    if blocks * (_parts(problem, tile)[0] if op == "wgrad" else 1) >= 2**31:
        return "it would take 2^31 blocks or more"
    return None


def estimate(request: Request, device: Device | None) -> float:
    """Tiles are multiplied whole, however little of them is needed, but only what is needed is loaded."""
    assert device is not None
    problem, op = zero_padded(request), request.op
    tile = _tile(problem, op, request.dtype)
    _, m, n, depth = _products(problem, op)
    splits, chunk = _parts(problem, tile) if op == "wgrad" else (1, depth)
    slices = per(chunk, tile.bk)
    blocks = splits * _blocks(problem, op, tile)
    products = real_products(request) * tile.tm * tile.tn * tile.bk
    vectors = tile.bk * (tile.tm + tile.tn) * DTYPES[request.dtype].itemsize / 16
    rows = [m / max(per(m, tile.bm), 1), n / max(per(n, tile.bn), 1)]
    if op == "wgrad" and request.layout == "channels_last":  # where a warp's threads have a row each
        rows = [per(math.ceil(each), 32) * 32 for each in rows]
    loads = sum(rows) * tile.bk / tile.threads
    threads = Threads(
        blocks, tile.threads, tile.residents,
        instructions=slices * (products + vectors + _LOAD * loads) + _STORE * tile.tm * tile.tn,
        products=slices * products,
        waits=slices + 8,
    )  # fmt: skip
    return seconds(request, device, threads, request.bytes) + reduce_seconds(request, device, splits)


def kernels(dtype: str) -> Iterator[Kernel]:
    """Every instance for a dtype."""
    for op in TILES:
        for tile in _tiles(op, dtype):
            yield from (_kernel(op, dtype, tile, lanes) for lanes in (1, 32))


def _tiles(op: str, dtype: str) -> list[Tile]:
    accumulator = DTYPES[dtype].accumulator
    return [tiles[accumulator] for tiles in TILES[op] if accumulator in tiles]


def _kernel(op: str, dtype: str, tile: Tile, lanes: int) -> Kernel:
    order = "CHANNEL_LANES" if lanes > 1 else "PIXEL_LANES"
    arguments = (C_TYPES[dtype], *astuple(tile)[:-1], order)
    return Kernel("simt.cuh", f"conv_{op}_simt", arguments, tile.threads, tile.residents)


def _products(problem: ConvProblem, op: str) -> tuple[int, int, int, int]:
    """(how many, gemm_m, gemm_n, gemm_k) of the products that one launch does, one per group and residue."""
    m, n, k = problem.gemm(op)
    if op != "dgrad":
        return problem.groups, m, n, k
    residues = math.prod(problem.stride)
    pixels = problem.n * math.prod(per(h, s) for h, s in zip(problem.input, problem.stride, strict=True))
    return problem.groups * residues, pixels, n, per(k, residues)


def _blocks(problem: ConvProblem, op: str, tile: Tile) -> int:
    count, m, n, _ = _products(problem, op)
    return count * per(m, tile.bm) * per(n, tile.bn)


def _parts(problem: ConvProblem, tile: Tile) -> tuple[int, int]:
    """How the sums of a weight gradient are cut."""
    return parts(problem.gemm("wgrad")[2], _blocks(problem, "wgrad", tile), multiple=tile.bk)


def _tile(problem: ConvProblem, op: str, dtype: str) -> Tile:
    """The tile that is done first where BLOCKS blocks run at once; the larger one does more per read."""

    def cost(tile: Tile) -> float:
        blocks = _blocks(problem, op, tile)
        if op != "wgrad":  # whose sum is cut until there are enough
            blocks = per(blocks, BLOCKS) * BLOCKS
        return blocks * tile.bm * tile.bn * (1 if tile.tm == tile.tn else 1.3)

    return min(_tiles(op, dtype), key=cost)
