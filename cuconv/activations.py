"""Activation functions, element by element, on NumPy or CuPy arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

try:
    from scipy.special import erfc as _erfc
except ImportError:  # SciPy is optional: the same function from the C library, one element at a time
    _erfc = np.frompyfunc(math.erfc, 1, 1)

from .arrays import Array


def relu(x: Array, xp: Any = np) -> Array:
    """max(x, 0); NaN stays NaN."""
    return xp.maximum(x, x.dtype.type(0))


def sigmoid(x: Array, xp: Any = np) -> Array:
    """1 / (1 + exp(-x)), written with exp(-|x|), which cannot overflow."""
    small = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, x.dtype.type(1), small) / (1 + small)


def tanh(x: Array, xp: Any = np) -> Array:
    """The hyperbolic tangent."""
    return xp.tanh(x)


def silu(x: Array, xp: Any = np) -> Array:
    """x sigmoid(x)."""
    return x * sigmoid(x, xp)


def gelu(x: Array, xp: Any = np) -> Array:
    """x Phi(x), Phi being the normal distribution: exact, by erfc, which keeps the small tail. NumPy only."""
    tail = np.asarray(_erfc(x.astype(np.float64) * -math.sqrt(0.5)), dtype=np.float64)
    return (0.5 * x * tail).astype(x.dtype)


@dataclass(frozen=True)
class Activation:
    """A function, and how many more arrays like its argument it holds at its peak, its result included."""

    function: Callable[[Array], Array]
    blocks: int


ACTIVATIONS = {
    "relu": Activation(relu, 1),
    "sigmoid": Activation(sigmoid, 4),
    "tanh": Activation(tanh, 1),
    "silu": Activation(silu, 5),
    "gelu": Activation(gelu, 16),
}
"""By the names in problem.ACTIVATIONS."""
