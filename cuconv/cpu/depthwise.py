"""Depthwise convolution without a matrix product: a multiplication and an addition per filter tap.

With groups == C every output channel reads one input channel; k = c m + j for the multiplier m = K / C:

    fprop  y[n, c m + j] = sum over taps of  x[n, c, shifted by the tap]  w[c m + j, tap]

dgrad likewise, residue by residue of the stride, from dy and the taps that meet the residue; wgrad is, per
tap, the product of dy and the shifted x. A matrix product would be as thin as one row here.

What one tap sees of one channel, for all images of a block, is one run of memory: see `flat`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from ..problem import Request
from ..processor import Processor
from .blocking import ALL, fit
from .blockwise import Bytes, Family, folds
from .cost import Cost, Cut
from .flat import FlatImages, extent, flat_elements, residue_count
from .windows import Axes, Sizes, Windows, too_many_residues, within


class Depthwise(Family):
    """Each tap's weight times what it sees, added up in the taps' order."""

    name, share = "depthwise", 1.0

    def applies(self, request: Request, processor: Processor) -> str | None:
        problem = request.problem
        if problem.c == problem.groups:
            return too_many_residues(request)
        return f"it needs groups == C, and groups is {problem.groups}, C {problem.c}"

    def arrange(self, filters: np.ndarray, axes: Axes, dtype: np.dtype, threads: int) -> np.ndarray:
        return filters.astype(dtype, copy=False)

    def make(self, seen: Windows, filters: np.ndarray) -> np.ndarray:
        c, made, read = filters.shape[:3]
        images = FlatImages(seen)
        whole = seen.scratch("total", (c, made, images.size), seen.dtype)
        total, begun = whole[..., : images.length], False
        product = seen.scratch("product", whole.shape, seen.dtype)[..., : images.length]
        for tap, j in itertools.product(images.taps(), range(read)):
            weight = filters[(ALL, ALL, j, *tap)]
            np.multiply(images.seen(tap)[j::read, None], weight[..., None], out=product if begun else total)
            if begun:
                np.add(total, product, out=total)
            begun = True
        if not begun:
            total[...] = 0
        return images.inside(whole)

    def elements(self, sizes: Sizes) -> int:
        images, size = flat_elements(sizes)
        return images + 2 * sizes.groups * sizes.made * size

    def tile(self, request: Request, extents: Sequence[int], cost: Bytes, threads: int) -> tuple[int, ...]:
        """Fewer channels first, so that runs are long."""
        share = min(self.share, 0.5) if folds(request) else self.share
        return fit(extents, cost, threads, order=(0, 2, 3, 4, 5), share=share)

    def count(self, cost: Cost, cut: Cut) -> None:
        """Gathering, residues of the stride, and per tap a call and a pass over a block in cache; storing."""
        rows, length = self._count_images(cost, cut)
        passes = cut.taps * cost.read_channels // cost.problem.groups
        cost.add("call", cut.blocks * (10 + 3 * passes))
        cost.add("scaled row", rows * cut.made * passes)
        cost.passed("scaled", rows * cut.made * passes * length)
        cost.store_blocks(cut)

    def sums(self, axes: Axes, groups: int, k: int, c: int) -> tuple[int, ...]:
        return (groups, k, c, *(axis.taps for axis in axes))

    def sum_up(self, seen: Windows, dy: np.ndarray, sums: np.ndarray) -> None:
        c, multiplier = sums.shape[:2]
        images = FlatImages(seen)
        grad = seen.scratch("grad", (c, multiplier, images.size), seen.dtype)
        grad[...] = 0
        inside = images.inside(grad)
        inside[...] = dy.reshape(inside.shape)
        if grad.dtype.kind == "c":
            np.conjugate(grad, out=grad)  # as vecdot does once more
        for tap in images.taps():
            sums[(ALL, ALL, 0, *tap)] = _dot(images, tap, grad, seen)

    def gradient(self, axes: Axes, c: int, sums: np.ndarray) -> np.ndarray:
        return sums

    def sum_elements(self, sizes: Sizes) -> int:
        images, size = flat_elements(sizes)
        return images + 2 * sizes.groups * (sizes.made + 1) * size

    def wgrad_tile(self, request: Request, cost: Bytes, threads: int) -> tuple[int, ...]:
        problem = request.problem.volumetric
        extents = (problem.c, 1, problem.n, *problem.output)
        return max(problem.n, 1), *fit(extents, cost, threads, share=self.share)

    def count_sums(self, cost: Cost, cut: Cut) -> None:
        """The same, with dy read to lie as the runs do."""
        rows, length = self._count_images(cost, cut)
        rows *= cost.problem.k // cost.problem.groups
        cost.add("call", cut.blocks * 3 * cut.taps)
        cost.add("dotted row", rows * cut.taps)
        cost.passed("dotted", rows * cut.taps * length)
        cost.megabytes("copied", rows * length)

    def _count_images(self, cost: Cost, cut: Cut) -> tuple[float, int]:
        """Count `FlatImages`; returns how many runs there are of one tap, and how long they are."""
        cost.gather(cut)
        axes = within(cut.axes, cut.counts)
        (depth, height, width), residues = map(extent, axes), math.prod(map(residue_count, axes))
        if any(axis.stride > 1 for axis in axes):
            cost.add("phase cell", residues * cut.reading * depth * height * width)
            cost.add("call", cut.blocks * residues * 7)
        planes, lines, cells = cut.counts
        length = ((planes - 1) * height + lines) * cut.images * width - width + cells
        return cut.blocks * cut.groups, length


def _dot(images: FlatImages, tap: Sequence[int], grad: np.ndarray, seen: Windows) -> np.ndarray:
    """The sums (C, m) of dy, conjugate and with zeros between its cells, times what a tap sees."""
    read = images.seen(tap)
    dot = np.vecdot(grad[..., : images.length], read[:, None])
    if dot.dtype.kind in "fc" and not np.isfinite(dot).all():
        # A zero between the cells of dy that meets an infinity is no product of the tap: it must not count.
        whole = seen.scratch("whole", (len(read), images.size), read.dtype)
        np.conjugate(read, out=whole[:, : images.length])
        dot = np.einsum("ncdhw,ncmdhw->cm", images.inside(whole), images.inside(grad)).conj()
    return dot


FAMILY = Depthwise()
ENTRIES = FAMILY.entries("fprop", "wgrad", "dgrad")
