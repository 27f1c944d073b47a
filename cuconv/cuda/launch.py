"""Runs the launches of a schedule, or its transforms, on CuPy arrays: on the current stream, in memory from
CuPy's pool.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Mapping, Sequence
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
    """Launches with their functions and parameters, for arrays in the order of these roles: see `run`."""

    def __init__(
        self, request: Request, schedule: Schedule, arrays: Mapping[str, Array], device: int
    ) -> None:
        self.cuda, self.device, self.roles = jit.require_cupy().cuda, device, tuple(arrays)
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
                    _by_value(self.cuda, launch.params(strides)),
                    launch.shared_bytes,
                )
            )
        self.offsets = [scratch.offset for scratch in places[len(arrays) + 1 :]]


class Transforming:
    """A schedule's transforms in place of launches, in `run` like `Ready`.

    They take their memory as they go. Raises ImportError where there is no cuFFT, before anything is done.
    """

    vectors: tuple[()] = ()
    offsets: tuple[()] = ()
    workspace_bytes = 0

    def __init__(
        self, request: Request, schedule: Schedule, arrays: Mapping[str, Array], device: int
    ) -> None:
        cupy = jit.require_cupy()
        self.cuda, self.device, self.roles = cupy.cuda, device, tuple(arrays)
        self.request, self.schedule, (self.work,) = request, schedule, schedule.launches
        self.library = Library(cupy, require_transforms())
        self.launches = [(self._transform, (), (), itemgetter(slice(len(arrays))), None, 0)]
        strides_by_role(request, arrays)  # raises where there are parts of elements between elements

    def _transform(self, grid: Any, block: Any, arguments: tuple[Any, ...], shared_bytes: int) -> None:
        if self.cuda.get_current_stream().is_capturing():
            raise RuntimeError(
                "algorithm='fft' cannot be captured in a CUDA graph: cuFFT's plans and the memory between "
                "its transforms are CuPy's, which may give them to others before the graph is replayed; "
                "capture another algorithm, or call outside of the capture"
            )
        fft.run(self.library, self.request, self.work, dict(zip(self.roles, arguments, strict=False)))


Work = tuple[Ready | Transforming, tuple[Array, ...]]
"""What is ready, and the arrays of its roles: those that it reads, and the result's."""


def run(work: Sequence[Work]) -> None:
    """Queue all launches or, where an array cannot be read or there is no memory to work in, none.

    Nothing is waited for. One workspace does for all, since on a stream each ends before the next begins.
    """
    workspace_bytes, fit = 0, True
    for each, arrays in work:
        for array in arrays:
            memory = array.data
            if memory.device_id != each.device or memory.ptr % array.itemsize:
                _refuse(each.roles, arrays, each.device)
        for index, never in each.vectors:
            if never or arrays[index].data.ptr % VECTOR:
                fit = False
        if each.workspace_bytes > workspace_bytes:
            workspace_bytes = each.workspace_bytes
    if not fit:
        work = _copied(work)
    start = 0  # where all arrays of the workspace are empty
    if workspace_bytes:
        workspace = each.cuda.alloc(workspace_bytes)  # held until all is launched
        start = workspace.ptr
        if each.cuda.get_current_stream().is_capturing():
            _captured.append(workspace)
    for each, arrays in work:
        pointers = (*arrays, 0)
        if each.offsets:
            pointers = (*pointers, *[start + offset for offset in each.offsets])
        for function, grid, block, taken, params, shared_bytes in each.launches:
            function(grid, block, (*taken(pointers), params), shared_bytes)


def _copied(work: Sequence[Work]) -> list[Work]:
    """The same with copies in place of inputs that cannot be read in vectors, one of each array."""
    copies: dict[int, Array] = {}
    changed = []
    for each, arrays in work:
        by_role = dict(zip(each.roles, arrays, strict=True))
        for index, never in each.vectors:
            array = arrays[index]
            if never or array.data.ptr % VECTOR:
                if id(array) not in copies:
                    copies[id(array)] = array.copy(order="C")
                by_role[each.roles[index]] = copies[id(array)]
        changed.append((ready(each.request, each.schedule, by_role), tuple(by_role.values())))
    if work[0][0].cuda.get_current_stream().is_capturing():
        _captured.extend(copies.values())
    return changed


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


def _by_value(cuda: Any, params: np.ndarray) -> Any:
    """A struct as CuPy passes it by value with the least to do: it reads an array's `__array_interface__`.

    For a struct NumPy describes every field there, which takes longer than all else in a call. As bytes it is
    quick, and once and for all where CuPy has what it makes of an array at each launch.
    """
    plain = params.view(f"V{params.nbytes}")
    wrapper = getattr(cuda.function, "CNumpyArray", None)
    return wrapper(plain) if wrapper else plain
