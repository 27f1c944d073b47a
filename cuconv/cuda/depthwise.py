"""`depthwise`: groups == C, by windows that slide in registers. See cuda_src/depthwise.cuh."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..dtypes import DTYPES
from ..problem import ConvProblem, Request
from .cost import Threads, real_products, seconds
from .device import Device
from .geometry import axes, digits
from .kernel import Kernel, Launch
from .schedule import (
    C_TYPES,
    LIMIT,
    THREADS,
    Draft,
    beyond_32_bits,
    lanes_of,
    parts,
    per,
    reduce_seconds,
    split_sum,
    zero_padded,
)

TAPS = 4
"""Taps on the sliding axis, and for the weight gradient on the last one too, that are done at once."""


def build(draft: Draft) -> list[Launch]:
    op, dtype, problem = draft.request.op, draft.request.dtype, draft.problem
    order, shape, pixels, items = _strips(draft.request, problem)
    if op == "wgrad":
        kernel = _kernel(op, dtype, (*shape[:3], TAPS))
        tiles, cut = _parts(problem, order, items, draft.lanes)
        fields = {"axis": axes(problem, order), "items": items, "digit": digits(pixels)}
        return split_sum(draft, kernel, tiles, fields, cut, axes=order)
    channels = _channels(problem, op) // shape[-1]
    numbers = (channels, *pixels[:2]) if draft.lanes > 1 else pixels
    fields = draft.fields(axis=axes(problem, order), items=items, digit=digits(numbers))
    blocks = _images(problem, op) * per(items, THREADS)
    return [draft.launch(_kernel(op, dtype, shape), blocks, fields, axes=order)]


def applies(request: Request, device: Device | None) -> str | None:
    problem = zero_padded(request)
    if problem.c != problem.groups:
        return f"it needs groups == C, and groups is {problem.groups}, C {problem.c}"
    if reason := beyond_32_bits(request):
        return reason
    (_, sliding, _), _, _, items = _strips(request, problem)
    if problem.dilation[sliding] * (problem.filter[sliding] + 16) >= LIMIT:
        return "its strips would reach over 2^30 cells or more"
    if items >= LIMIT:
        return f"it would take {items} work items, 2^30 or more"
    if request.op != "wgrad" and _images(problem, request.op) * per(items, THREADS) >= 2 * LIMIT:
        return "it would take 2^31 blocks or more"
    return None


def estimate(request: Request, device: Device | None) -> float:
    assert device is not None
    op, problem, item = request.op, zero_padded(request), DTYPES[request.dtype].itemsize
    order, (out, step, taps, wide), _, items = _strips(request, problem)
    each, lanes = real_products(request), lanes_of(request)
    cells = (out - 1) * step + taps
    if op == "wgrad":
        tiles, (splits, chunk) = _parts(problem, order, items, lanes)
        strips, width = chunk * lanes / THREADS, problem.filter[order[2]]
        across, inside = width / per(width, TAPS), _inside(problem)  # only what is there is loaded
        rows = 1 if lanes > 1 else 4 + min(6, 42 / problem.output[order[2]])  # that a warp's cells are in
        products = strips * out * taps * across
        threads = Threads(
            splits * tiles, THREADS, 5,
            instructions=strips * inside * (170 + 155 * across) + (each - 1) * products,
            products=each * products,
            waits=strips,
            lines=strips * inside * across * cells * rows,
        )  # fmt: skip
        return seconds(request, device, threads, request.bytes) + reduce_seconds(request, device, splits)
    residues = problem.stride if op == "dgrad" else (1, 1, 1)
    first, sliding, last = (problem.filter[axis] / residues[axis] for axis in order)
    sources = problem.k // max(problem.c, 1) if op == "dgrad" else 1
    passes = sources * first * last * math.ceil(sliding / taps)
    products = passes * out * taps * wide
    # A filter's taps lie between those of neighbouring channels in channels-last filters.
    neighbours = min(32, _channels(problem, op) // wide) if lanes > 1 else 1
    apart = wide * math.prod(problem.filter) * item
    # So do the channels of dy that belong to one of dx; 28 lines take as long as 32 sectors from the L2.
    spread = max(2.5, min(28, sources * item / 2)) if lanes > 1 else 2.5
    threads = Threads(
        _images(problem, op) * per(items, THREADS), THREADS, 7 if op == "fprop" and wide == 1 else 4,
        instructions=_STRIP[op] + 50 * out * (wide - 1) + passes * 120 + (2.5 + each) * products,
        products=each * products,
        waits=passes,
        lines=passes * (spread * cells + taps * wide * max(1, neighbours * min(1, apart / 128))),
    )  # fmt: skip
    return seconds(request, device, threads, request.bytes)


_STRIP = {"fprop": 500, "dgrad": 900}
"""Instructions to find a strip and to put its results in their places."""


def kernels(dtype: str) -> Iterator[Kernel]:
    """Every instance for a dtype."""
    vector = _vector(dtype)
    wide = ((4, 1, TAPS, vector),) if vector > 1 else ()
    shapes = {
        "fprop": ((8, 1, TAPS, 1), (4, 2, TAPS, 1), (1, 1, TAPS, 1), *wide),
        "dgrad": ((8, 1, TAPS, 1), *wide),
        "wgrad": ((4, 1, TAPS, TAPS), (4, 2, TAPS, TAPS), (1, 1, TAPS, TAPS)),
    }
    for op, found in shapes.items():
        yield from (_kernel(op, dtype, shape) for shape in found)


def _kernel(op: str, dtype: str, shape: tuple[int, ...]) -> Kernel:
    return Kernel("depthwise.cuh", f"conv_{op}_depthwise", (C_TYPES[dtype], THREADS, *shape), THREADS)


def _vector(dtype: str) -> int:
    """How many channels a vector of 8 bytes has."""
    return max(8 // DTYPES[dtype].itemsize, 1)


def _order(problem: ConvProblem, channels_last: bool) -> tuple[int, int, int]:
    """(first, sliding, last) axis. Neighbouring threads differ in the last one, if not in channels."""
    candidates: tuple[int, ...] = (1, 0, 2) if channels_last else (1, 0)
    if not channels_last and problem.filter[0] == problem.filter[1] == 1:
        candidates = (2,)
    sliding = max(candidates, key=lambda axis: (problem.filter[axis], problem.output[axis] > 1))
    first, last = (axis for axis in range(3) if axis != sliding)
    return first, sliding, last


def _strips(
    request: Request, problem: ConvProblem
) -> tuple[tuple[int, int, int], tuple[int, int, int, int], tuple[int, int, int], int]:
    """The order of axes, (OUT, STEP, TAPS, WIDE) of the kernel, its strips on each axis, and its work items.

    The strips are counted on the last axis, the sliding and the first one, and are those of one residue. The
    work items are those of one image and residue, or for the weight gradient of all images.
    """
    op, channels_last = request.op, request.layout == "channels_last"
    first, sliding, last = order = _order(problem, channels_last)
    extents = problem.output
    if op == "dgrad":  # of the first residue, which has the most
        extents = tuple(per(h, s) for h, s in zip(problem.input, problem.stride, strict=True))
    common = math.gcd(problem.stride[sliding], problem.dilation[sliding])
    step = 1 if op == "dgrad" else problem.stride[sliding] // common
    apart = problem.dilation[sliding] // common
    vector = _vector(request.dtype)
    if step > 2 or (extents[sliding] <= apart and op != "dgrad"):
        out, step, apart, vector = 1, 1, 1, 1
    elif op == "wgrad":
        out, vector = 4, 1
    elif channels_last and vector > 1 and step == 1 and problem.k == problem.c and problem.c % vector == 0:
        out = 4
    else:
        out, vector = (8 if step == 1 else 4), 1
    whole, rest = divmod(extents[sliding], apart * out)
    strips = whole * apart + min(rest, apart)
    pixels = (extents[last], strips, extents[first])
    outer = problem.n if op == "wgrad" else _channels(problem, op) // vector
    return order, (out, step, TAPS, vector), pixels, outer * math.prod(pixels)


def _parts(
    problem: ConvProblem, order: tuple[int, int, int], items: int, lanes: int
) -> tuple[int, tuple[int, int]]:
    """How many blocks a part of a weight gradient takes, and how its sums are cut."""
    first, sliding, last = (problem.filter[axis] for axis in order)
    tiles = per(problem.k, lanes) * first * per(sliding, TAPS) * per(last, TAPS)
    return tiles, parts(items, tiles, 4 / lanes)


def _inside(problem: ConvProblem) -> float:
    """About the share of all pairs of an output cell and a tap that meet in a cell of the input."""
    share = 1.0
    for axis, (before, after) in enumerate(problem.padding):
        pairs = problem.output[axis] * problem.filter[axis]
        outside = (before**2 + after**2) / (2 * problem.stride[axis] * problem.dilation[axis])
        share *= max(0.1, 1 - outside / pairs)
    return share


def _channels(problem: ConvProblem, op: str) -> int:
    """The result's channels."""
    return problem.c if op == "dgrad" else problem.k


def _images(problem: ConvProblem, op: str) -> int:
    """How often the items of an image are done: for every image, and every residue of the stride."""
    return problem.n * (math.prod(problem.stride) if op == "dgrad" else 1)
