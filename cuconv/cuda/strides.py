"""Where the elements of a call's arrays are, as kernels are told: a start and strides, in elements."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..arrays import Array, canonical
from ..problem import Request
from .kernel import Strides


def strides_by_role(request: Request, arrays: Mapping[str, Array | None]) -> dict[str, Strides]:
    """Where each array's elements are, by its role, the bias among them; of any library with NumPy's strides.

    Layout, rank, batch and flip are resolved by the same views that the NumPy path takes, of a stand-in that
    has the array's shape and strides but no memory of its own.
    """
    return {role: _strides(request, role, array) for role, array in arrays.items() if array is not None}


def _strides(request: Request, role: str, array: Array) -> Strides:
    stand_in = as_strided(np.empty(1, array.dtype), array.shape, array.strides)
    view = stand_in if role == "bias" else canonical(request, role, stand_in)
    item = array.dtype.itemsize
    if any(step % item for step, extent in zip(array.strides, array.shape, strict=True) if extent > 1):
        raise ValueError(f"{role} must have strides in whole elements of {item} bytes, got {array.strides}")
    start = view.__array_interface__["data"][0] - stand_in.__array_interface__["data"][0]
    return start // item, tuple(step // item for step in view.strides)
