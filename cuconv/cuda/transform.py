"""Operands made dense and channels-last, in the workspace, for kernels that read vectors of channels.

See cuda_src/transform.cuh.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ..dtypes import DTYPES
from ..problem import ConvProblem, Request
from .cost import Threads, seconds
from .device import Device
from .geometry import axes, digits, divisor
from .kernel import VECTOR, Kernel, Launch, Scratch
from .schedule import BLOCKS, C_TYPES, OPERANDS, THREADS, Draft, per

_ELEMENTS = {2: "unsigned short", 4: "unsigned", 8: "unsigned long long", 16: "Quad"}
"""What elements are copied as, by their size."""

_FLOATS = {"tf32": "FloatAsTf32", "parts": "FloatInParts"}
"""What floats are copied as that are stored otherwise."""

PARTS = 3
"""Into which floats are taken apart: see cuda_src/parted.cuh."""

REAL = {"complex64": "float32", "complex128": "float64"}
"""The dtypes of the parts of complex numbers."""

LANES = 32
"""Any number but one says that neighbouring threads have neighbouring channels."""

_THREADS = 256
_TILES = {1: 1024, 2: 256, 4: 256, 8: 128}
"""How many places a block has, by its vectors of channels."""

_LINES = 4
"""Of the folded x, in which a thread that folds has a vector, where there are enough of them."""


def channels_last(draft: Draft, slot: str, stored: str | None = None, exchanged: bool = False) -> Launch:
    """The launch that copies the operand of a slot, "a" or "b", to the workspace, which the draft has then.

    It is dense and channels-last, and each group of its channels is padded with zeros to whole vectors: its
    shape has them all. Filters count as one group; with their filters and channels `exchanged`, they have the
    groups of their filters. Floats may be `stored` as "tf32", or by their "parts": then their first axis has
    PARTS times as many cells, and behind them those that hold what `small_flags` counts. By parts complex
    numbers are two floats, their channels being neighbours.
    """
    request, operand = draft.request, getattr(draft, slot)
    parts, problem = stored == "parts", draft.problem
    dtype, item = request.dtype, DTYPES[request.dtype].itemsize
    cells = OPERANDS[request.op]["ab".index(slot)] != "w"
    more: dict[str, tuple[str, ...]] = {"exchanged": ("b",) * exchanged}
    if parts and dtype in REAL:
        problem, item = as_real(request, problem), item // 2
        if cells:
            more |= {"reals": ("b",), "vectors": ("b",)}
    outer, groups, channels, spatial = _extents(problem, request.op, slot, exchanged)
    if cells and more.get("reals") and isinstance(operand, Scratch):
        channels = 2 * operand.shape[1] // groups  # with those that fill vectors
    places, padded = outer * math.prod(spatial), _padded(channels, item // 2 if parts else item)
    kernel, blocks = _tiles(places, groups * padded, item, stored)
    rows = outer
    if parts:
        row = max(groups * padded * math.prod(spatial), 1)
        rows, dtype = PARTS * outer + per(_flags(kernel, blocks), row), "bfloat16"
    copy = draft.room((rows, groups * padded, *spatial), dtype, channels_last=True)
    d, h, w = spatial
    fields = {
        "groups": groups,
        "channels": channels,
        "group": divisor(padded),
        "items": places,
        "digit": digits((w, h, d, d * h * w)),
    }
    launch = draft.launch(kernel, blocks, fields, a=None, b=operand, out=copy, **more)
    setattr(draft, slot, copy)
    return launch


def small_flags(launch: Launch) -> int:
    """How many numbers a launch that stores parts leaves behind them: one for each warp."""
    return _flags(launch.kernel, launch.blocks)


def _flags(kernel: Kernel, blocks: int) -> int:
    return blocks * kernel.threads // 32


def as_real(request: Request, problem: ConvProblem) -> ConvProblem:
    """The problem with complex numbers as real ones in twice the channels."""
    return replace(problem, c=2 * problem.c, k=2 * problem.k) if request.dtype in REAL else problem


def to_transform(request: Request, problem: ConvProblem) -> list[str]:
    """The slots of the inputs whose channels lie in no whole vectors, so that a copy has to have them so."""
    vector = VECTOR // DTYPES[request.dtype].itemsize
    channels = {"x": problem.c, "w": problem.c, "dy": problem.k}
    return [
        slot
        for slot, role in zip("ab", OPERANDS[request.op], strict=False)
        if role and (request.layout == "channels_first" or channels[role] // problem.groups % vector)
    ]


def channels_last_seconds(request: Request, problem: ConvProblem, device: Device, slot: str) -> float:
    """The estimate of that launch, the problem being as a family sees it."""
    item = DTYPES[request.dtype].itemsize
    outer, groups, channels, spatial = _extents(problem, request.op, slot)
    padded, places = _padded(channels, item), outer * math.prod(spatial)
    kernel, blocks = _tiles(places, groups * padded, item)
    threads = Threads(blocks, kernel.threads, kernel.residents, instructions=600)
    return seconds(request, device, threads, places * groups * (channels + padded) * item)


def folded(problem: ConvProblem, run: int) -> ConvProblem:
    """The problem with runs of so many taps of its last axis as channels: see cuda_src/folding.cuh."""
    d, h, _ = problem.input
    taps, stride, apart = per(problem.filter[2], run), problem.stride[2], run * problem.dilation[2]
    step = _fold_step(problem, run)
    stride, dilation = stride // step, apart // step if taps > 1 else 1
    return replace(
        problem,
        c=problem.c * run,
        input=(d, h, (problem.output[2] - 1) * stride + (taps - 1) * dilation + 1),
        filter=(*problem.filter[:2], taps),
        stride=(*problem.stride[:2], stride),
        dilation=(*problem.dilation[:2], dilation),
        padding=(*problem.padding[:2], (0, 0)),
    )


def fold(draft: Draft, slot: str, run: int) -> Launch:
    """The launch that brings x, "a", or w, "b", to the workspace as that problem has it.

    Its channels are whole vectors.
    """
    problem, dtype = draft.problem, draft.request.dtype
    seen = folded(problem, run)
    if slot == "a":
        outer, extents, step = problem.n, seen.input, _fold_step(problem, run)
        line = problem
    else:
        outer, extents, step = problem.k, seen.filter, run
        line = replace(problem, input=problem.filter, dilation=(1, 1, 1), padding=((0, 0),) * 3)
    line = replace(line, filter=(*line.filter[:2], run), stride=(*line.stride[:2], step))
    item = DTYPES[dtype].itemsize
    padded = _padded(seen.c, item)
    copy = draft.room((outer, padded, *extents), dtype, channels_last=True)
    (d, h, w), vectors, kernel = extents, padded * item // VECTOR, _fold_kernel(item)
    lines = _fold_lines(outer * d * w * vectors, h)
    runs = per(h, lines)
    items = outer * d * runs * w * vectors
    fields = draft.fields(axis=axes(line), group=divisor(problem.c), items=items, chunk=lines)
    fields["digit"] = digits((vectors, w, runs, d))
    blocks = per(items, kernel.threads)
    launch = draft.launch(kernel, blocks, fields, a=None, b=getattr(draft, slot), out=copy)
    setattr(draft, slot, copy)
    return launch


def folded_bytes(request: Request, problem: ConvProblem, run: int) -> int:
    """Of the folded x."""
    item, seen = DTYPES[request.dtype].itemsize, folded(problem, run)
    return seen.n * math.prod(seen.input) * _padded(seen.c, item) * item


def fold_seconds(request: Request, problem: ConvProblem, device: Device, run: int) -> float:
    """The estimate of that launch for x."""
    item = DTYPES[request.dtype].itemsize
    kernel = _fold_kernel(item)
    made, height = folded_bytes(request, problem, run), problem.input[1]
    lines = _fold_lines(made // VECTOR // max(height, 1), height)
    each = 20 + 5 * VECTOR // item
    threads = Threads(
        per(made, VECTOR * kernel.threads * lines), kernel.threads, 8,
        instructions=150 + 10 * VECTOR // item + lines * each,
    )  # fmt: skip
    return seconds(request, device, threads, math.prod(problem.x_shape()) * item + made)


def real_filters(draft: Draft) -> Launch:
    """The launch that makes real filters of complex ones in the workspace, which the draft has then as "b".

    They have whole vectors of channels. See cuda_src/complex.cuh.
    """
    request, problem = draft.request, draft.problem
    channels, real = problem.c // problem.groups, REAL[request.dtype]
    padded = _padded(channels, DTYPES[request.dtype].itemsize)
    copy = draft.room((2 * problem.k, 2 * padded, *problem.filter), real, channels_last=True)
    conjugate = request.conjugate if request.op == "fprop" else not request.conjugate
    fields = draft.fields(channels=channels, conjugate=int(conjugate), lanes=LANES)
    extents = problem.k, padded, problem.filter
    launch = draft.per_element(_filters_kernel(request.dtype), extents, fields, a=None, out=copy)
    draft.b = copy
    return launch


def real_filters_seconds(request: Request, problem: ConvProblem, device: Device) -> float:
    """The estimate of that launch."""
    item = DTYPES[request.dtype].itemsize
    filters = problem.k * _padded(problem.c // problem.groups, item) * math.prod(problem.filter)
    kernel = _filters_kernel(request.dtype)
    threads = Threads(per(filters, kernel.threads), kernel.threads, 8, instructions=150)
    return seconds(request, device, threads, 3 * filters * item)


def kernels() -> Iterator[Kernel]:
    """Every instance."""
    elements = (*_ELEMENTS.values(), *_FLOATS.values())
    yield from (_kernel(element, vectors) for element in elements for vectors in _TILES)
    yield from map(_filters_kernel, REAL)
    yield from map(_fold_kernel, _ELEMENTS)


def _kernel(element: str, vectors: int) -> Kernel:
    arguments = (element, _THREADS, _TILES[vectors], vectors)
    return Kernel("transform.cuh", "conv_channels_last", arguments, _THREADS, residents=4)


def _fold_kernel(itemsize: int) -> Kernel:
    return Kernel("folding.cuh", "conv_folded", (_ELEMENTS[itemsize],), THREADS)


def _filters_kernel(dtype: str) -> Kernel:
    return Kernel("complex.cuh", "conv_real_filters", (C_TYPES[dtype], C_TYPES[REAL[dtype]]), THREADS)


def _tiles(places: int, channels: int, itemsize: int, stored: str | None = None) -> tuple[Kernel, int]:
    """The kernel for so many places and padded channels, and its blocks."""
    needed = channels * itemsize // VECTOR
    vectors = next((vectors for vectors in _TILES if vectors >= needed), max(_TILES))
    element = _FLOATS[stored] if stored else _ELEMENTS[itemsize]
    return _kernel(element, vectors), per(places, _TILES[vectors]) * per(needed, vectors)


def _fold_step(problem: ConvProblem, run: int) -> int:
    """Columns of x from one place of the folded x to the next: those that windows and runs begin at."""
    stride, one = problem.stride[2], run >= problem.filter[2]
    return stride if one else math.gcd(stride, run * problem.dilation[2])


def _fold_lines(vectors: int, height: int) -> int:
    """How many vectors, one below the other, a thread makes, of so many that each line has in all planes."""
    return max(min(_LINES, height, vectors * height // (BLOCKS * THREADS)), 1)


def _padded(channels: int, itemsize: int) -> int:
    """The channels of a group in whole vectors."""
    vector = VECTOR // itemsize
    return per(channels, vector) * vector


def _extents(
    problem: ConvProblem, op: str, slot: str, exchanged: bool = False
) -> tuple[int, int, int, tuple[int, ...]]:
    """(outer, groups, channels of a group, three spatial extents) of an operand."""
    role, groups = OPERANDS[op]["ab".index(slot)], problem.groups
    if exchanged:
        return problem.c // groups, groups, problem.k // groups, problem.filter
    if role == "w":
        return problem.k, 1, problem.c // problem.groups, problem.filter
    outer, channels, *spatial = problem.x_shape() if role == "x" else problem.y_shape()
    return outer, problem.groups, channels // problem.groups, tuple(spatial)
