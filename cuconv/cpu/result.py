"""Where finished blocks go: bias, activation, the one rounding, and the addition to `out`."""

from __future__ import annotations

import numpy as np

from ..activations import ACTIVATIONS
from ..dtypes import DTYPES
from ..problem import Request


def accumulator(request: Request) -> np.dtype:
    """The dtype in which the request's products are summed."""
    return np.dtype(DTYPES[request.dtype].accumulator)


# How many more blocks an activation holds at its peak, in the accumulator dtype.
_ACTIVATION_BLOCKS = {None: 0, "relu": 1, "tanh": 1, "sigmoid": 4, "silu": 5, "gelu": 16}


def finishing_blocks(request: Request) -> int:
    """How many blocks of scratch memory `Result.store` needs, the finished block itself included."""
    return 1 + _ACTIVATION_BLOCKS[request.activation]


class Result:
    """The result of one call, stored block by block; every element is stored exactly once."""

    def __init__(self, request: Request, out: np.ndarray, bias: np.ndarray | None) -> None:
        self.out = out
        self.dtype = accumulator(request)
        self.bias = None if bias is None else bias.astype(self.dtype)[:, None, None, None]
        self.activation = ACTIVATIONS[request.activation] if request.activation else None
        self.accumulate = request.accumulate

    def store(self, where: tuple[slice, ...], block: np.ndarray) -> None:
        """Finish `block`, of the accumulator dtype, and put it at out[where]; axis 1 has the channels.

        The block is the caller's own memory and is overwritten.
        """
        if self.bias is not None:
            block += self.bias[where[1]]
        if self.activation is not None:
            block = self.activation(block)
        if self.accumulate:
            block += self.out[where]
        self.out[where] = block
