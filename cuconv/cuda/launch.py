"""Runs the launches of a schedule on CuPy arrays: on the current stream, in memory from CuPy's pool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arrays import Array
from ..problem import Request
from ..table import Schedule
from . import jit
from .strides import strides_by_role

_NULL = np.uintp(0)
_MOST = 4096
_prepared: dict[tuple[Any, ...], tuple[Schedule, list[tuple[Any, ...]]]] = {}
"""Ready launches by schedule, device and the arrays' strides. Kept with its schedule, whose id is the key."""

_captured: list[Any] = []
"""The workspaces of calls that were captured in a CUDA graph, which may be replayed at any time."""


def run(request: Request, schedule: Schedule, operands: Mapping[str, Array], bias: Array | None) -> None:
    """Run a schedule on arrays by role, writing into that of the result. Nothing is copied or waited for."""
    cupy = jit.require_cupy()
    device = cupy.cuda.runtime.getDevice()
    arrays = dict(operands) if bias is None else dict(operands, bias=bias)
    key = (id(schedule), device, *[array.strides for array in arrays.values()])
    found = _prepared.get(key)
    if found is None:
        if len(_prepared) >= _MOST:
            _prepared.clear()
        found = _prepared[key] = (schedule, _prepare(request, schedule, arrays, device))
    _check(arrays, device)
    start = 0  # where all arrays of the workspace are empty
    if schedule.workspace_bytes:
        workspace = cupy.cuda.alloc(schedule.workspace_bytes)
        start = workspace.ptr
        if cupy.cuda.get_current_stream().is_capturing():
            _captured.append(workspace)
    for function, grid, block, operands_of_launch, params, shared_bytes in found[1]:
        pointers = [
            _NULL if operand is None
            else arrays[operand] if isinstance(operand, str)
            else np.uintp(start + operand.offset)
            for operand in operands_of_launch
        ]  # fmt: skip
        function(grid, block, (*pointers, params), shared_mem=shared_bytes)


def _prepare(
    request: Request, schedule: Schedule, arrays: Mapping[str, Array], device: int
) -> list[tuple[Any, ...]]:
    """Per launch: its function, grid and block, its operands, its parameters, its shared memory."""
    strides = strides_by_role(request, arrays)
    bias = "bias" if "bias" in arrays else None
    return [
        (
            jit.function(launch.kernel, device, launch.shared_bytes),
            (launch.blocks,),
            (launch.kernel.threads,),
            (launch.a, launch.b, bias, launch.out),
            launch.params(strides),
            launch.shared_bytes,
        )
        for launch in schedule.launches
    ]


def _check(arrays: Mapping[str, Array], device: int) -> None:
    """Raise unless all arrays are where the kernels can read them, whole element by whole element."""
    for role, array in arrays.items():
        if array.data.device_id != device:
            raise ValueError(
                f"{role} is on GPU {array.data.device_id}, but the current one is {device}: "
                f"call within cupy.cuda.Device({array.data.device_id})"
            )
        if array.data.ptr % array.itemsize:
            raise ValueError(f"{role} must be aligned to its elements of {array.itemsize} bytes")
