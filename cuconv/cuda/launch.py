"""Runs the launches of a schedule, or its transforms, on CuPy arrays: on the current stream, in memory from
CuPy's pool.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any

import numpy as np

from ..arrays import Array
from ..fourier import Library
from ..problem import Request
from ..table import Schedule
from . import fft, jit
from .kernel import VECTOR
from .strides import not_in_vectors, strides_by_role

_MOST = 4096
_ready: dict[tuple[Any, ...], tuple[Schedule, Ready | Transforming]] = {}
"""Launches by schedule, device and the arrays' strides. Kept with its schedule, whose id is the key."""

_captured: list[Any] = []
"""Workspaces and copies of calls that were captured in a CUDA graph, which may be replayed at any time."""


def ready(request: Request, schedule: Schedule, arrays: Mapping[str, Array]) -> Ready | Transforming:
    """The launches of a schedule for the current device and arrays by role, or others with their strides."""
    device = jit.require_cupy().cuda.runtime.getDevice()
    key = (id(schedule), device, *[array.strides for array in arrays.values()])
    found = _ready.get(key)
    if found is None:
        if len(_ready) >= _MOST:
            _ready.clear()
        transforms = any(isinstance(launch, fft.Transforms) for launch in schedule.launches)
        kind = Transforming if transforms else Ready
        found = _ready[key] = (schedule, kind(request, schedule, arrays, device))
    return found[1]


class Ready:
    """Launches with their functions and parameters. Nothing is copied or waited for.

    It is called with arrays in the order of the roles that it was made for, and writes into the result's.
    """

    def __init__(
        self, request: Request, schedule: Schedule, arrays: Mapping[str, Array], device: int
    ) -> None:
        self.cupy, self.device, self.roles = jit.require_cupy(), device, tuple(arrays)
        self.request, self.schedule = request, schedule
        unfit = not_in_vectors(request, schedule.launches, arrays)
        self.vectors = [(self.roles.index(role), never) for role, never in unfit.items()]
        self.workspace_bytes = schedule.workspace_bytes
        strides = strides_by_role(request, arrays)
        bias = "bias" if "bias" in arrays else None
        # What launches take their pointers from: the arrays, a null pointer, the arrays of the workspace.
        places: list[Any] = [*arrays, None]
        self.launches = []
        for launch in schedule.launches:
            operands = (launch.a, launch.b, bias, launch.out)
            places += [operand for operand in operands if operand not in places]
            self.launches.append(
                (
                    jit.function(launch.kernel, device, launch.shared_bytes),
                    (launch.blocks,),
                    (launch.kernel.threads,),
                    itemgetter(*map(places.index, operands)),
                    _by_value(self.cupy, launch.params(strides)),
                    launch.shared_bytes,
                )
            )
        self.offsets = [scratch.offset for scratch in places[len(arrays) + 1 :]]

    def __call__(self, arrays: tuple[Array, ...]) -> None:
        for array in arrays:
            memory = array.data
            if memory.device_id != self.device or memory.ptr % array.itemsize:
                _refuse(self.roles, arrays, self.device)
        for index, never in self.vectors:
            if never or arrays[index].data.ptr % VECTOR:
                self._copied(index, arrays)
                return
        pointers = (*arrays, 0)
        if self.offsets:
            start = 0  # where all arrays of the workspace are empty
            if self.workspace_bytes:
                workspace = self.cupy.cuda.alloc(self.workspace_bytes)  # held until all is launched
                start = workspace.ptr
                if self.cupy.cuda.get_current_stream().is_capturing():
                    _captured.append(workspace)
            pointers = (*pointers, *[start + offset for offset in self.offsets])
        for function, grid, block, taken, params, shared_bytes in self.launches:
            function(grid, block, (*taken(pointers), params), shared_bytes)

    def _copied(self, index: int, arrays: tuple[Array, ...]) -> None:
        """Run with a copy in place of an input that cannot be read in vectors."""
        copy = arrays[index].copy(order="C")  # held until all is launched
        if self.cupy.cuda.get_current_stream().is_capturing():
            _captured.append(copy)
        changed = {**dict(zip(self.roles, arrays, strict=True)), self.roles[index]: copy}
        ready(self.request, self.schedule, changed)(tuple(changed.values()))


class Transforming:
    """A schedule's transforms, called like `Ready`.

    Raises ImportError where there is no cuFFT, before anything is done.
    """

    def __init__(
        self, request: Request, schedule: Schedule, arrays: Mapping[str, Array], device: int
    ) -> None:
        self.cupy, self.device, self.roles = jit.require_cupy(), device, tuple(arrays)
        self.request, (self.work,) = request, schedule.launches
        self.library = Library(self.cupy, require_transforms())
        strides_by_role(request, arrays)  # raises where there are parts of elements between elements

    def __call__(self, arrays: tuple[Array, ...]) -> None:
        _refuse(self.roles, arrays, self.device)
        if self.cupy.cuda.get_current_stream().is_capturing():
            raise RuntimeError(
                "algorithm='fft' cannot be captured in a CUDA graph: cuFFT's plans and the memory between "
                "its transforms are CuPy's, which may give them to others before the graph is replayed; "
                "capture another algorithm, or call outside of the capture"
            )
        fft.run(self.library, self.request, self.work, dict(zip(self.roles, arrays, strict=True)))


def require_transforms() -> Any:
    """The module cupyx.scipy.fft, with cuFFT; ImportError otherwise, which says what to install."""
    try:
        return _transforms()
    except _MISSING as error:
        major = jit.require_cupy().cuda.runtime.runtimeGetVersion() // 1000
        reason = str(error).partition("\n")[0]
        raise ImportError(
            f"algorithm='fft' needs cuFFT for arrays on a GPU, which CuPy cannot load ({reason}): "
            f"pip install 'cuda-toolkit[cufft]=={major}.*', or choose another algorithm"
        ) from error


def has_transforms() -> bool:
    """Whether `algorithm="fft"` finds cuFFT for the GPU at hand."""
    try:
        return bool(_transforms())
    except _MISSING:
        return False


@functools.cache
def _transforms() -> Any:
    """CuPy loads cuFFT when the attribute is first asked for, and raises where there is none."""
    cufft = jit.require_cupy().cuda.cufft
    return cufft and importlib.import_module("cupyx.scipy.fft")


_MISSING = (AttributeError, ImportError, OSError, RuntimeError)
"""What comes of CuPy without cuFFT, without what cuFFT needs, or with another one."""


def _refuse(roles: Iterable[str], arrays: Iterable[Array], device: int) -> None:
    """Raise for an array that is not where kernels can read it, whole element by whole element."""
    for role, array in zip(roles, arrays, strict=True):
        if array.data.device_id != device:
            raise ValueError(
                f"{role} is on GPU {array.data.device_id}, but the current one is {device}: "
                f"call within cupy.cuda.Device({array.data.device_id})"
            )
        if array.data.ptr % array.itemsize:
            raise ValueError(f"{role} must be aligned to its elements of {array.itemsize} bytes")


def _by_value(cupy: Any, params: np.ndarray) -> Any:
    """A struct as CuPy passes it by value with the least to do: it reads an array's `__array_interface__`.

    For a struct NumPy describes every field there, which takes longer than all else in a call. As bytes it is
    quick, and once and for all where CuPy has what it makes of an array at each launch.
    """
    plain = params.view(f"V{params.nbytes}")
    wrapper = getattr(cupy.cuda.function, "CNumpyArray", None)
    return wrapper(plain) if wrapper else plain
