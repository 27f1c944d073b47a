"""fprop and dgrad by columns of shifted images: lowering for few channels and large maps.

The lowered matrix has a row per tap and channel and a column per output cell, in

    fprop  Y = W X        dgrad  dX = W' Y', phase by phase as in `gemm`

and its rows are copied as runs of memory as long as an image (see `runs`), where `gemm` copies runs of one
window's channels. The price are the cells between rows of an image, which are multiplied too.

Only the taps along the last axes are lowered, as many as make the products long enough. For the taps along
the others the same matrix is multiplied again from another column on, and the products are added up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from ..problem import Request
from ..processor import Processor
from ..table import Algorithm
from . import gemm
from .blocking import Launch, Scratch
from .lowering import Axes, windows_and_columns
from .result import Result, accumulator
from .runs import Runs, extent, run_elements, used_phases

TERMS = 64
"""How many terms a product should have at the least."""


def fprop(request: Request, launch: Launch, x: np.ndarray, w: np.ndarray, result: Result) -> None:
    """Y = W X, a block of output cells of one image at a time."""
    gemm.fprop(request, launch, x, w, result, by_columns)


def dgrad(request: Request, launch: Launch, dy: np.ndarray, w: np.ndarray, result: Result) -> None:
    """dX = W' Y' for the residues of the stride, a block of input cells of one image at a time."""
    gemm.dgrad(request, launch, dy, w, result, by_columns)


def by_columns(
    a: np.ndarray,
    axes: Axes,
    cells: Sequence[slice],
    mode: str,
    filters: np.ndarray,
    result: Result,
    places: gemm.Places,
    scratch: Scratch,
) -> None:
    """Multiply matrices (groups, taps C/groups, K/groups) by the shifted images of a block, and store it."""
    groups, terms, columns = filters.shape
    c = a.shape[1] // groups
    runs = Runs(a, axes, cells, mode, filters.dtype, scratch)
    product = scratch("product", (groups, columns, runs.size), filters.dtype)
    total, begun = product[..., : runs.length], False
    more = scratch("more", total.shape, filters.dtype)
    if not terms:
        total[...] = 0
    outer, inner = _outer_and_inner(axes, c)
    rows, w = len(inner) * c, filters.swapaxes(1, 2)
    for lowered, taps in _shifted(runs, outer, inner, groups, scratch) if terms else ():
        for index, first in taps:
            part = w[..., index * rows : (index + 1) * rows]
            np.matmul(part, lowered[..., first : first + runs.length], out=more if begun else total)
            if begun:
                np.add(total, more, out=total)
            begun = True
    k = columns // len(places)
    y = runs.inside(product.reshape(groups, len(places), k, runs.size))
    gemm.store_by_place(y, places, result)


Taps = list[tuple[int, ...]]


def _outer_and_inner(axes: Axes, c: int) -> tuple[Taps, Taps]:
    """The taps along the first axes and along the last; the last ones' images are lowered.

    The outer taps share what is lowered, and have their products added. So the inner ones are no more than
    make the products long enough.
    """
    taps = [axis.taps for axis in axes]
    for last in (2, 1, 0):
        if math.prod(taps[last:]) * c >= TERMS or math.prod(taps[:last]) == 1:
            break
    outer, inner = (list(itertools.product(*map(range, part))) for part in (taps[:last], taps[last:]))
    return outer, inner


def _shifted(
    runs: Runs, outer: Taps, inner: Taps, groups: int, scratch: Scratch
) -> Iterator[tuple[np.ndarray, list[tuple[int, int]]]]:
    """The images shifted by every inner tap, (groups, rows, cells), with the outer taps that see them.

    Outer taps are given by their index and by the cell from which on they see. There is one such matrix for
    each phase of the stride along the outer axes.
    """
    start = (0,) * len(inner[0])
    phases: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for index, tap in enumerate(outer):
        phase, first = runs.place((*tap, *start))
        phases.setdefault(phase[: len(tap)], []).append((index, first))
    places = [runs.place((0,) * len(outer[0]) + tap) for tap in inner]
    for phase, taps in phases.items():
        images = [(runs.phases[(*phase, *within[len(phase) :])], first) for within, first in places]
        cells = images[0][0].shape[1] - max(first for _, first in images)
        shape = (groups, len(inner), images[0][0].shape[0] // groups, cells)
        lowered = scratch("shifted", shape, images[0][0].dtype)
        for row, (image, first) in enumerate(images):
            lowered[:, row] = image[:, first : first + cells].reshape(groups, -1, cells)
        yield lowered.reshape(groups, shape[1] * shape[2], cells), taps


def _applies(request: Request, processor: Processor) -> str | None:
    return None if math.prod(request.problem.filter) > 1 else "the filter has one tap: nothing is shifted"


def _elements(n: int, c: int, columns: int, counts: Sequence[int], axes: Axes, mode: str, groups: int) -> int:
    """Scratch elements that `by_columns` needs at the most, its products included."""
    images, run = run_elements(n, c, counts, axes, mode)
    _, inner = _outer_and_inner(axes, c // groups)
    image = n * math.prod(extent(axis, count) for axis, count in zip(axes, counts, strict=True))
    return images + c * len(inner) * image + 2 * columns * run


def _estimate(request: Request, processor: Processor) -> float:
    """As for `gemm`, with runs as long as an image's rows, sums of products, and cells that are left out."""
    problem, item = request.problem.volumetric, accumulator(request).itemsize
    seconds = 5e-5 * problem.groups**0.5
    strided = 0 if request.layout == "channels_first" else 1e-8
    channels = gemm.channels_read(request)
    for axes, columns in windows_and_columns(request):
        outer, inner = _outer_and_inner(axes, channels // problem.groups)
        counts = [axis.cells for axis in axes]
        _, height, width = (extent(axis, count) for axis, count in zip(axes, counts, strict=True))
        computed = problem.n * counts[0] * height * width
        stored = problem.n * math.prod(counts) * (channels + columns)
        seconds += stored * (item / 1e10 + strided + 1.5e-8 / max(counts[2], 1))
        copied = len(inner) * channels + 3 * max(len(outer) - 1, 0) * columns
        seconds += computed * copied * item / (1.1e10 if len(used_phases(axes)) == 1 else 5e9)
        terms = len(inner) * channels // problem.groups
        seconds += len(outer) * gemm.product_time(request, computed, terms, columns)
    return seconds / processor.threads


ENTRIES = {
    "fprop": Algorithm("flat", _applies, partial(gemm.schedule, kernel=fprop, elements=_elements), _estimate),
    "dgrad": Algorithm("flat", _applies, partial(gemm.schedule, kernel=dgrad, elements=_elements), _estimate),
}
