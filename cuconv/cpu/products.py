"""Matrix products, as NumPy and BLAS do them fastest."""

from __future__ import annotations

import math

import numpy as np

from ..problem import Request
from .blocking import Scratch
from .result import accumulator
from .windows import Sizes

SMALL, PIECE = 800_000, 160
"""Multiplications of one product up to which OpenBLAS copies no operand, and the fewest terms of such."""

LONG = 32
"""Elements of a row from which on einsum goes faster along it."""


def for_blas(matrices: np.ndarray) -> np.ndarray:
    """The matrices, copied if BLAS could not read them where they are, by columns if these are the denser."""
    rows, columns = matrices.shape[-2:]
    down, across = matrices.strides[-2:]
    item = matrices.itemsize
    fits = (across == item and down >= columns * item and down % item == 0) or (
        down == item and across >= rows * item and across % item == 0
    )
    if fits:
        return matrices
    if down < across:
        return np.ascontiguousarray(matrices.swapaxes(-1, -2)).swapaxes(-1, -2)
    return np.ascontiguousarray(matrices)


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """out = a @ b.

    Of sums of one term NumPy's product makes far more than the multiplication they are. And BLAS has no
    integers: its own product of these goes down every column of b, from cache line to cache line. Where rows
    of b and out are long, einsum goes along them, two to ten times as fast.
    """
    if a.shape[-1] == 1:
        np.multiply(a, b, out=out)
    elif out.dtype.kind == "i" and goes_along_rows(b, out):
        np.einsum("...ij,...jk->...ik", np.ascontiguousarray(a), b, out=out)
    else:
        np.matmul(a, b, out=out)


def goes_along_rows(b: np.ndarray, out: np.ndarray) -> bool:
    return b.strides[-1] == b.itemsize and out.strides[-1] == out.itemsize and out.shape[-1] >= LONG


def copies_filters(request: Request) -> bool:
    """Whether `matmul` may need a copy of the filters in every thread: those of integers, as rows."""
    return accumulator(request).kind == "i"


def long_product(a: np.ndarray, b: np.ndarray, out: np.ndarray, scratch: Scratch) -> None:
    """out = a @ b, long sums of few rows and columns in pieces, which are added in order."""
    g, k, cells = a.shape
    count, size = pieces(cells, k, b.shape[2])
    if count < 2:
        matmul(a, b, out)
        return
    taken = count * size
    products = scratch("pieces", (g, count, k, b.shape[2]), out.dtype)
    first = a[:, :, :taken].reshape(g, k, count, size).swapaxes(1, 2)
    matmul(first, b[:, :taken].reshape(g, count, size, b.shape[2]), products)
    np.add.reduce(products, axis=1, out=out)
    if taken < cells:
        rest = products[:, 0]
        matmul(a[:, :, taken:], b[:, taken:], rest)
        np.add(out, rest, out=out)


def pieces(cells: int, rows: int, columns: int) -> tuple[int, int]:
    """Into how many products of how many terms each a sum over so many cells is split."""
    size = SMALL // max(rows * columns, 1)
    return (cells // size, size) if PIECE <= size < cells else (1, cells)


def long_product_elements(sizes: Sizes) -> int:
    """Elements that `long_product` needs at the most for a block of wgrad, its first operand included."""
    columns = sizes.read * math.prod(axis.taps for axis in sizes.axes)
    each = min(max(sizes.made * columns, 1), SMALL // PIECE)
    pieces = sizes.pixels // (SMALL // each) * each
    return sizes.groups * (pieces + sizes.made * sizes.pixels)
