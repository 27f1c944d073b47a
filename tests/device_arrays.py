"""A stand-in for CuPy's arrays, for what adapters do with them before and after a convolution.

A `DeviceArray` has those of CuPy's methods that adapters may use, with NumPy behind them, and, as CuPy's do,
it refuses to become a NumPy array. Within `installed` cuconv takes it for an array on a GPU; the convolutions
of `cuconv.plain` are then done by the NumPy path.
"""

import contextlib
import types
from unittest import mock

import numpy as np

import cuconv
from cuconv import plain
from cuconv.cuda import jit

METHODS = ("astype", "conj", "copy", "reshape", "swapaxes", "transpose", "view")
FUNCTIONS = ("copysign", "empty", "ones", "pad", "rint", "zeros", "zeros_like")


class Foreign:
    """Mixed into a stand-in's array: one that another library has on a GPU, whose elements none may read."""

    kind = 2  # kDLCUDA of DLPack

    def __dlpack_device__(self):
        return (self.kind, 0)

    def __dlpack__(self, **options):
        raise AssertionError("not read here")


class DeviceArray:
    """As much of cupy.ndarray as an adapter may use."""

    __module__ = "cupy"
    __array_ufunc__ = None

    def __init__(self, array):
        self.on_host = array
        self.dtype, self.shape, self.ndim, self.strides = array.dtype, array.shape, array.ndim, array.strides

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def get(self):
        return self.on_host.copy()

    @property
    def real(self):
        return DeviceArray(self.on_host.real)

    def __getitem__(self, index):
        return DeviceArray(np.asarray(self.on_host[index]))

    def __setitem__(self, index, value):
        self.on_host[index] = there(value)

    def __add__(self, other):
        return DeviceArray(self.on_host + there(other))

    def __iadd__(self, other):
        self.on_host += there(other)
        return self


def there(value):
    """What the array stands for; other arrays do not go to a GPU in silence."""
    assert not isinstance(value, np.ndarray)
    return value.on_host if isinstance(value, DeviceArray) else value


def _lifted(function):
    def call(*args, **kwargs):
        return DeviceArray(np.asarray(function(*map(there, args), **kwargs)))

    return call


for _name in METHODS:
    setattr(DeviceArray, _name, _lifted(getattr(np.ndarray, _name)))


def _convolution(function):
    def call(*args, out=None, **options):
        if not isinstance(args[0], DeviceArray):
            return function(*args, out=out, **options)
        result = function(*map(there, args), out=None if out is None else out.on_host, **options)
        return DeviceArray(result) if out is None else out

    return call


class Entered:
    """A context, a stream's or an allocator's, that can be entered again and is noted while it is."""

    def __init__(self, noted, what):
        self.noted, self.what = noted, what

    def __enter__(self):
        self.noted.append(self.what)

    def __exit__(self, *_):
        assert self.noted.pop() == self.what


@contextlib.contextmanager
def installed():
    """Within it there are such arrays, on a GPU."""
    module = types.SimpleNamespace(
        asarray=lambda value: DeviceArray(np.array(value)),
        **{name: _lifted(getattr(np, name)) for name in FUNCTIONS},
    )
    names = ("conv", "conv_input_grad", "conv_weight_grad")
    convolutions = {name: _convolution(getattr(cuconv, name)) for name in names}
    with (
        mock.patch.object(jit, "require_cupy", return_value=module),
        mock.patch.multiple(plain, **convolutions),
    ):
        yield
