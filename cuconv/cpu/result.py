"""Where finished blocks go: bias, activation, the one rounding, and the addition to `out`."""

from __future__ import annotations

import numpy as np

from ..activations import ACTIVATIONS
from ..dtypes import DTYPES
from ..problem import Request


def accumulator(request: Request) -> np.dtype:
    """The dtype in which the request's products are summed."""
    return np.dtype(DTYPES[request.dtype].accumulator)


def finishing_blocks(request: Request) -> int:
    """How many blocks of scratch memory `Result.store` needs, the finished block itself included."""
    return 1 + (ACTIVATIONS[request.activation].blocks if request.activation else 0)


class Result:
    """The result of one call, stored block by block; every element is stored exactly once."""

    def __init__(
        self, out: np.ndarray, request: Request | None = None, bias: np.ndarray | None = None
    ) -> None:
        """With a request, its activation and accumulation are part of storing; otherwise blocks are kept."""
        self.out = out
        self.dtype = accumulator(request) if request else out.dtype
        self.bias = None if bias is None else bias.astype(self.dtype)[:, None, None, None]
        self.activation = ACTIVATIONS[request.activation].function if request and request.activation else None
        self.accumulate = request is not None and request.accumulate
        self.conjugate = request is not None and request.conjugate_sum

    @property
    def plain(self) -> bool:
        """Whether blocks are stored as they come."""
        return not (self.bias is not None or self.activation or self.accumulate or self.conjugate)

    def store(self, where: tuple[slice, ...], block: np.ndarray) -> None:
        """Finish `block`, of the accumulator dtype, and put it at out[where]; axis 1 has the channels.

        In the block they may be split into groups, by one axis more. It is the caller's own memory and is
        overwritten.
        """
        y = self.out[where].reshape(block.shape, copy=False)
        block = self._finished(where, np.conjugate(block, out=block) if self.conjugate else block)
        if self.accumulate:
            block += y
        y[...] = block

    def store_zero(self, images: slice, mask: np.ndarray | None) -> None:
        """Store sums of zero for some images, at the cells (D, H, W) of a mask or everywhere."""
        y = self.out[images]
        if mask is None:
            y[...] = 0
            return
        zero = np.zeros((1, y.shape[1], 1, 1, 1), self.dtype)
        finished = self._finished((images, slice(None)), zero)
        if self.accumulate:
            np.add(y, finished, out=y, where=mask, casting="unsafe")
        else:
            np.copyto(y, finished, where=mask, casting="unsafe")

    def matrices(
        self, where: tuple[slice, ...], images: int, groups: int, cells_inside: bool
    ) -> np.ndarray | None:
        """out[where] as matrices (images, groups, cells, channels), for a product to be written there.

        None where that needs a copy, where BLAS could not write it in this order, or where the product is
        to be added or rounded. Then it goes to `store`; otherwise `finish` follows.
        """
        if self.accumulate or self.out.dtype != self.dtype:
            return None
        y = self.out[where]
        try:
            if cells_inside:
                split = y.reshape(images, groups, y.shape[1] // groups, -1, copy=False)
                return split.swapaxes(2, 3) if split.strides[3] == y.itemsize else None
            if groups == 1 and y.strides[1] == y.itemsize:
                return y.transpose(0, 2, 3, 4, 1).reshape(1, 1, -1, y.shape[1], copy=False)
        except ValueError:
            pass
        return None

    def for_sums(self, where: tuple[slice, ...]) -> np.ndarray | None:
        """out[where] for sums to be made there, if `store` did no more and BLAS can write its rows."""
        dw = self.out[where]
        kept = self.plain and dw.dtype == self.dtype and dw.size > 0
        return dw if kept and dw[0].flags.c_contiguous and dw.strides[0] >= dw[0].nbytes else None

    def finish(self, where: tuple[slice, ...]) -> None:
        """Bias and activation for a product that stands at out[where]."""
        y = self.out[where]
        finished = self._finished(where, y)
        if finished is not y:
            y[...] = finished

    def _finished(self, where: tuple[slice, ...], block: np.ndarray) -> np.ndarray:
        """A block, overwritten by itself with the bias, or what the activation makes of that."""
        if self.bias is not None:
            bias = self.bias[where[1]]
            block += bias.reshape(*block.shape[1:-3], 1, 1, 1)
        return block if self.activation is None else self.activation(block)
