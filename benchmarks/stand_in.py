"""A stand-in for CuPy, for its part in a call: arrays that are addresses only, launches that are noted.

At a launch each argument is put into bytes from where CuPy takes them, by the same look-ups, so that what it
spends on an argument shows in time and in calls: an array that is passed by value is asked for its
`__array_interface__` then, which NumPy makes anew, field by field for a structured dtype.
"""

from __future__ import annotations

import ctypes
import math
import types
from collections.abc import Iterator, MutableSequence, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

from cuconv.cuda import jit
from cuconv.cuda.kernel import PARAMS, Kernel
from cuconv.plan import forget


@dataclass
class Memory:
    """A piece of a GPU's memory: cupy.cuda.MemoryPointer."""

    ptr: int
    device_id: int = 0


class Array:
    """As much of cupy.ndarray as a call uses: shape, strides and an address."""

    __module__ = "cupy"
    addresses = iter(range(1 << 30, 1 << 62, 1 << 30))

    def __init__(
        self, shape: Any, dtype: Any = np.float32, strides: Sequence[int] | None = None, device_id: int = 0
    ) -> None:
        self.shape: tuple[int, ...] = (shape,) if isinstance(shape, int) else tuple(shape)
        self.dtype = np.dtype(dtype)
        self.ndim, self.itemsize, self.size = len(self.shape), self.dtype.itemsize, math.prod(self.shape)
        self.strides = _in_c_order(self.shape, self.itemsize) if strides is None else tuple(strides)
        self.data = Memory(next(self.addresses), device_id)

    def __setitem__(self, index: Any, value: Any) -> None:
        pass

    def copy(self, order: str = "K") -> Array:
        return Array(self.shape, self.dtype, device_id=self.data.device_id)


def _in_c_order(shape: tuple[int, ...], step: int) -> tuple[int, ...]:
    strides = []
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


class ByValue:
    """cupy.cuda.function.CNumpyArray: an array of one element, whose address has been looked up already."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.ptr = array, array.__array_interface__["data"][0]


@dataclass(frozen=True)
class Launch:
    """What the driver is given."""

    kernel: Kernel
    device: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[bytes, ...]
    shared_bytes: int

    @property
    def pointers(self) -> list[int]:
        """The addresses of a, b, bias and out."""
        return [int.from_bytes(argument, "little") for argument in self.arguments[:4]]

    @property
    def params(self) -> Any:
        """The struct that follows them."""
        return np.frombuffer(self.arguments[4], PARAMS)[0]


def _bytes(argument: Any) -> bytes:
    """The bytes of an argument, as CuPy finds them."""
    if argument is None:
        return bytes(8)
    if isinstance(argument, Array):
        return argument.data.ptr.to_bytes(8, "little")
    if isinstance(argument, Memory):
        return argument.ptr.to_bytes(8, "little")
    if isinstance(argument, ByValue):
        return ctypes.string_at(argument.ptr, argument.array.nbytes)
    if isinstance(argument, np.ndarray):
        if argument.size != 1:
            raise TypeError(f"only arrays of one element are passed by value, got shape {argument.shape}")
        return ctypes.string_at(argument.__array_interface__["data"][0], argument.nbytes)
    if isinstance(argument, int):
        return argument.to_bytes(8, "little", signed=argument < 0)
    if isinstance(argument, np.generic):
        return argument.tobytes()
    raise TypeError(f"CuPy passes no {type(argument).__name__} to a kernel")


class StandIn(types.SimpleNamespace):
    """The module cupy with one kind of GPU, sm_90; `launched` and `allocated` note what a call asks of it."""

    def __init__(self) -> None:
        super().__init__(launched=[], allocated=[], device=0, capturing=False, ndarray=self._array)
        self.launched: MutableSequence[Launch]
        self.empty = self._array
        stream = types.SimpleNamespace(synchronize=lambda: None, is_capturing=lambda: self.capturing)
        self.cuda = types.SimpleNamespace(
            alloc=self._alloc,
            function=types.SimpleNamespace(CNumpyArray=ByValue),
            get_current_stream=lambda: stream,
            runtime=types.SimpleNamespace(
                getDevice=lambda: self.device,
                getDeviceProperties=lambda device: dict(name=b"GPU X"),
                driverGetVersion=lambda: 13000,
                runtimeGetVersion=lambda: 12090,
            ),
        )

    def _array(self, shape: Any, dtype: Any) -> Array:
        return Array(shape, dtype, device_id=self.device)

    def _alloc(self, size: int) -> Memory:
        self.allocated.append(size)
        return Memory(12345 * 256, self.device)

    # In the place of jit's functions:

    def require_cupy(self) -> StandIn:
        return self

    def current_arch(self) -> str:
        return "sm_90"

    def function(self, kernel: Kernel, device: int, shared_bytes: int = 0) -> Any:
        """What CuPy's Function does with its arguments."""

        def launch(
            grid: tuple[int, ...], block: tuple[int, ...], arguments: Any, shared_mem: int = 0
        ) -> None:
            passed = tuple(map(_bytes, arguments))
            self.launched.append(Launch(kernel, device, grid, block, passed, shared_mem))

        return launch


@contextmanager
def installed() -> Iterator[StandIn]:
    """Within it the stand-in is the CuPy that cuconv finds; nothing is known of calls before or after."""
    cupy = StandIn()
    forget()
    try:
        with mock.patch.multiple(
            jit, require_cupy=cupy.require_cupy, current_arch=cupy.current_arch, function=cupy.function
        ):
            yield cupy
    finally:
        forget()
