"""Activation functions and their derivatives, element by element, on NumPy or CuPy arrays."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import arrays
from .arrays import Array
from .dtypes import DTYPES
from .options import checked_keywords
from .problem import check_activation


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
    """x Phi(x), Phi being the normal distribution: exact, by erfc, which keeps the small tail."""
    return (x * _normal(x, xp)).astype(x.dtype)


def _normal(x: Array, xp: Any) -> Array:
    """Phi(x), in double precision."""
    return 0.5 * xp.asarray(_erfc(xp)(x.astype("float64") * -math.sqrt(0.5)), dtype="float64")


@functools.cache
def _erfc(xp: Any) -> Callable[[Array], Array]:
    """SciPy's function, or CuPy's. SciPy is optional, and takes longer to import than all of cuconv."""
    try:
        found: Callable[[Array], Array] = importlib.import_module(
            "scipy.special" if xp is np else "cupyx.scipy.special"
        ).erfc
    except ImportError:  # the same from the C library, one element at a time
        found = np.frompyfunc(math.erfc, 1, 1)
    return found


@dataclass(frozen=True)
class Activation:
    """A function, and how many more arrays like its argument it holds at its peak, its result included."""

    function: Callable[..., Array]
    blocks: int


ACTIVATIONS = {
    "relu": Activation(relu, 1),
    "sigmoid": Activation(sigmoid, 4),
    "tanh": Activation(tanh, 1),
    "silu": Activation(silu, 5),
    "gelu": Activation(gelu, 16),
}
"""By the names in problem.ACTIVATIONS."""


# -- derivatives ------------------------------------------------------------------------------------


def _silu_slope(z: Array, xp: Any) -> Array:
    s = sigmoid(z, xp)
    return _with_limits(z, s * (1 + z * (1 - s)), xp)


def _gelu_slope(z: Array, xp: Any) -> Array:
    density = xp.exp(z.astype("float64") ** 2 / -2) / math.sqrt(2 * math.pi)
    return _with_limits(z, _normal(z, xp) + z * density, xp)


def _with_limits(z: Array, slope: Array, xp: Any) -> Array:
    """A slope with its limits, 0 and 1, put where the formula has infinity times 0."""
    return xp.where(xp.isinf(z), (z > 0).astype(slope.dtype), slope)


_FROM_RESULT: dict[str, Callable[[Array, Array, Any], Array]] = {
    "relu": lambda dy, y, xp: xp.where(y <= 0, dy.dtype.type(0), dy),  # NaN lets through
    "sigmoid": lambda dy, y, xp: dy * (y * (1 - y)),
    "tanh": lambda dy, y, xp: dy * ((1 - y) * (1 + y)),
}
"""dz from dy and y."""

_SLOPES: dict[str, Callable[[Array, Any], Array]] = {"silu": _silu_slope, "gelu": _gelu_slope}
"""f'(z), where y does not tell which z it came from."""


@checked_keywords
def activation_backward(
    dy: Array, activation: str | None, *, y: Array | None = None, pre_activation: Array | None = None
) -> Array:
    """The gradient before an activation, given dy, the gradient after it.

    It is what `conv_backward` takes as dy. With y = f(z), f being the activation::

        dz = dy f'(z)

    ============  =================================================
    activation    f'(z), Phi being the normal distribution
    ============  =================================================
    "relu"        1 where z > 0, else 0; NaN lets dy through
    "sigmoid"     y (1 - y)
    "tanh"        1 - y^2
    "silu"        s (1 + z (1 - s)), with s = sigmoid(z)
    "gelu"        Phi(z) + z Phi'(z)
    None          1
    ============  =================================================

    Give one of y and pre_activation; for None neither is needed.

    Parameters
    ----------
    dy : array
        An array of any shape, of the dtypes that the activation is defined for: real ones, and integers
        for relu.
    activation : {"relu", "sigmoid", "tanh", "silu", "gelu", None}
        The activation that was applied.
    y : array, optional
        Its result, as ``conv(..., activation=...)`` returns it: enough for relu, sigmoid and tanh. Of
        the shape and dtype of dy.
    pre_activation : array, optional
        Its argument z, as `conv` without the activation returns it: enough for all, and needed for silu
        and gelu, where two values of z have the same y. Of the shape and dtype of dy.

    Returns
    -------
    dz : array
        Of the shape, dtype and kind of dy.

    Raises
    ------
    ValueError
        For shapes and values.
    TypeError
        For dtypes and kinds of array.

    See Also
    --------
    conv_backward, conv_transpose_backward : What takes dz as its dy.

    Notes
    -----
    float16 and bfloat16 are computed in float32 and rounded once.

    Examples
    --------
    >>> y = np.array([0.0, 2.0, 5.0])  # what relu returned
    >>> cuconv.activation_backward(np.array([1.0, 1.0, 3.0]), "relu", y=y)
    array([0., 1., 3.])
    """
    given = {"y": y, "pre_activation": pre_activation}
    known: dict[str, Any] = {name: array for name, array in given.items() if array is not None}
    operands = arrays.adopt(dy=dy, **known)
    check_activation(activation, operands.dtype)
    for name in known:
        if operands.shape(name) != operands.shape("dy"):
            raise ValueError(
                f"{name} must have the shape of dy, {operands.shape('dy')}, got {operands.shape(name)}"
            )
    if activation is None:
        return operands.give_back("dz", operands.views["dy"].copy())
    if len(known) != 1:
        raise ValueError(
            f"{activation} takes one of y and pre_activation, got {' and '.join(known) or 'neither'}"
        )
    if activation in _SLOPES and "y" in known:
        raise ValueError(f"{activation} needs pre_activation, since two of its arguments have one y; got y")
    xp, accumulator = operands.owner.namespace, DTYPES[operands.dtype].accumulator
    wide = {name: view.astype(accumulator, copy=False) for name, view in operands.views.items()}
    with np.errstate(all="ignore"):
        if activation in _SLOPES:
            dz = wide["dy"] * _SLOPES[activation](wide["pre_activation"], xp)
        else:
            result = (
                wide["y"] if "y" in wide else ACTIVATIONS[activation].function(wide["pre_activation"], xp)
            )
            dz = _FROM_RESULT[activation](wide["dy"], result, xp)
        # Arithmetic makes scalars of arrays without axes.
        return operands.give_back("dz", xp.asarray(dz).astype(operands.views["dy"].dtype, copy=False))
