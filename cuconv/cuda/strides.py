"""Where the elements of a call's arrays are, as kernels are told: a start and strides, in elements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..arrays import Array, canonical
from ..problem import Request
from .kernel import VECTOR, Launch, Strides


def strides_by_role(request: Request, arrays: Mapping[str, Array | None]) -> dict[str, Strides]:
    """Where each array's elements are, by its role, the bias among them; of any library with NumPy's strides.

    The stride of an axis with one cell is 0, whatever the library says.

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
    steps = zip(view.strides, view.shape, strict=True)
    return start // item, tuple(step // item if extent > 1 else 0 for step, extent in steps)


def not_in_vectors(
    request: Request, launches: Iterable[Launch], arrays: Mapping[str, Array | None]
) -> dict[str, bool]:
    """By the roles of inputs that launches read in vectors of channels, whether their strides forbid it.

    Channels have to be contiguous, if there are several, and all other strides whole vectors. Of an array
    with other strides, and of one that does not begin at a whole vector, a copy in C order will do. Of an
    empty one nothing is read.
    """
    problem = request.problem
    channels = {"x": problem.c, "w": problem.c // max(problem.groups, 1), "dy": problem.k}
    inputs = {getattr(launch, slot) for launch in launches for slot in launch.vectors}
    read = {role: array for role, array in arrays.items() if role in inputs and array is not None}
    found = {}
    for role, (start, strides) in strides_by_role(request, read).items():
        item, others = read[role].dtype.itemsize, (start, *strides[:1], *strides[2:])
        misplaced = (channels[role] > 1 and strides[1] != 1) or any(step * item % VECTOR for step in others)
        found[role] = misplaced and 0 not in read[role].shape
    return found
