"""Which library owns an array: views in, results of the same kind out.

NumPy arrays are taken as they are, CuPy arrays likewise, and anything else through DLPack, without a
copy. Nothing here imports cupy: whoever passes a CuPy array has done so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from . import processor
from .cuda import jit
from .dtypes import DTYPES, INTEGERS, NARROW, described, holds
from .options import shown
from .problem import Request

Array = Any
"""An array of any library that is supported: NumPy, CuPy, or one that speaks DLPack."""

_DLPACK_CPU = (1, 3)  # kDLCPU, kDLCUDAHost
_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


@dataclass(frozen=True)
class Owner:
    """A library and the kind of memory its array lives in; arrays of one call must share both.

    Libraries other than NumPy and CuPy have a namespace with their own `from_dlpack`, and, where they tell, a
    device among several of one kind, which the arrays must share too.
    """

    library: str
    backend: str
    home: Any = None
    device: Any = None

    def __str__(self) -> str:
        return f"{self.library} array on the {'GPU' if self.backend == 'cuda' else 'CPU'}"

    @property
    def namespace(self) -> Any:
        """The module that makes the arrays the backend computes with: numpy or cupy."""
        return jit.require_cupy() if self.on_gpu else np

    @property
    def on_gpu(self) -> bool:
        """Whether the arrays are CuPy's to compute with, and NumPy must not touch their memory."""
        return self.backend == "cuda"

    @property
    def arch(self) -> str | None:
        """The architecture of the current GPU, sm_90 and the like; on the CPU how many threads there are."""
        return jit.current_arch() if self.on_gpu else processor.current_arch()

    def wait(self) -> None:
        """Wait for what was launched."""
        if self.on_gpu:
            self.namespace.cuda.get_current_stream().synchronize()


_NUMPY, _CUPY = Owner("numpy", "cpu"), Owner("cupy", "cuda")

OWNERS: dict[type, Owner] = {np.ndarray: _NUMPY}
"""Of arrays that are computed with as they are, by their type; CuPy's is added when one comes."""


@dataclass
class Operands:
    """The arrays of one call by the caller's names: as given, and as views that the backend computes with.

    All have one owner and one dtype; with `inputs` x and w have these, integers that `dtype` holds.
    """

    owner: Owner
    dtype: str
    given: dict[str, Array]
    views: dict[str, Array]
    inputs: tuple[str, str] | None = None

    def __getitem__(self, name: str) -> Array | None:
        return self.views.get(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.views[name].shape)

    def empty(self, shape: tuple[int, ...]) -> Array:
        """A new array of the call's dtype, uninitialised, in C order."""
        return self.owner.namespace.empty(shape, dtype=_DTYPES[self.dtype])

    def give_back(self, name: str, result: Array) -> Array:
        """A result in the caller's own library, not copied: the array given as `name`, or a new one."""
        return given_back(result, self.owner, self.given.get(name))

    def check_out(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise unless `name` can take a result: of its shape, writable, and overlapping nothing."""
        out = self.views[name]
        if tuple(out.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(out.shape)}")
        if self.owner.backend == "cpu" and not out.flags.writeable:
            raise ValueError(f"{name} must be writable, got a read-only array")
        if _overlaps_itself(out):
            raise ValueError(f"{name} must not overlap itself, got strides {out.strides} for shape {shape}")
        for other, view in self.views.items():
            if other != name and _share_memory(out, view, self.owner):
                raise ValueError(f"{name} must not overlap {other}: it is written while {other} is needed")


def adopt(out_dtype: Any = None, widens: bool = False, **arguments: Array | None) -> Operands:
    """Take a call's arrays by argument name; `bias` and `out` (or `out[0]` and so on) may be None.

    Raises TypeError unless all are arrays of one library, on one kind of device, of one supported dtype; with
    `out_dtype`, int32 or int64, x and w may be of any integers that it holds. `widens` says that the caller
    has this option, for its errors to tell.
    """
    given: dict[str, Any] = {
        name: array
        for name, array in arguments.items()
        if array is not None or not name.startswith(("bias", "out"))
    }
    owner = owner_of_all(given)
    views = {name: view_of(name, array, owner) for name, array in given.items()}
    if out_dtype is not None:
        name, inputs = _integers(out_dtype, {name: view.dtype for name, view in views.items()})
        return Operands(owner, name, given, views, inputs)
    first, dtype = next((name, view.dtype) for name, view in views.items())
    for name, view in views.items():
        if view.dtype not in _NAMES:
            raise TypeError(
                f"{name} has dtype {view.dtype}, supported are {', '.join(DTYPES)} in native byte order"
                f"{_advice(name, given, views, widens)}"
            )
        if view.dtype != dtype:
            raise TypeError(
                f"{name} must have the dtype of {first}, {dtype}, got {view.dtype}"
                f"{_advice(name, given, views, widens)}"
            )
    return Operands(owner, _NAMES[dtype], given, views)


def owner_of_all(given: Mapping[str, Array]) -> Owner:
    """The library and device of one or more arrays by name, or TypeError unless all have the same."""
    owners = {name: owner_of(name, array) for name, array in given.items()}
    first, owner = next(iter(owners.items()))
    for name, other in owners.items():
        if other != owner:
            came, expected = f"a {other}", f"the same kind of array as {first} ({owner})"
            if str(other) == str(owner):
                came, expected = f"one on {other.device}", f"on the device of {first}, {owner.device}"
            raise TypeError(
                f"{name} must be {expected}, got {came}; "
                "nothing is copied between libraries or devices in silence"
            )
    return owner


def _integers(out_dtype: Any, dtypes: dict[str, Any]) -> tuple[str, tuple[str, str] | None]:
    """The name of an `out_dtype`, and the dtypes of x and w where they are not both of it.

    Takes the dtypes of all arrays by name. Raises TypeError unless each can be taken for such a result.
    """
    result = _native_name(out_dtype)
    if result not in DTYPES or DTYPES[result].kind != "i":
        raise TypeError(
            f"out_dtype must be 'int32' or 'int64', for x and w of integers, got {shown(out_dtype)}"
        )
    names = {name: _native_name(dtype) for name, dtype in dtypes.items()}
    for name, dtype in dtypes.items():
        taken = [each for each in INTEGERS if holds(result, each)] if name in "xw" else [result]
        if names[name] not in taken:
            came = names[name] or shown(dtype)
            order, advice = "" if names[name] else " in native byte order", ""
            if came == "bool" and name in "xw":
                advice = f"; {name}.view('uint8') counts what is True"
            elif name in "xw" and holds("int64", came):
                advice = "; out_dtype='int64' takes it"
            raise TypeError(
                f"{name} must have dtype {', '.join(taken)}{order} for out_dtype={result!r}, "
                f"got {came}{advice}"
            )
    inputs = (names["x"], names["w"])
    return result, None if inputs == (result, result) else inputs


def numpy_dtype(name: str) -> np.dtype:
    """NumPy's dtype of a name, which for bfloat16 is of `ml_dtypes`."""
    return np.dtype(getattr(ml_dtypes, name, name))


_DTYPES = {name: numpy_dtype(name) for name in DTYPES}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
"""The supported dtypes, in native byte order."""

_BY_KIND = sorted(_NAMES, key=lambda dtype: "ifc".index(DTYPES[_NAMES[dtype]].kind))
"""The same, integers first, so that the first that will do is the one to take."""


_ROUNDED = {
    "u": ("int64", "is right where no value is above 2^63 - 1"),
    "f": ("float64", "rounds it"),
    "c": ("complex128", "rounds it"),
}
"""What comes nearest to a dtype that no supported one holds, by its kind."""

_DIGITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53, "complex64": 24, "complex128": 53}
"""The bits of the largest integers up to which a dtype holds all."""


def _advice(name: str, given: dict[str, Any], views: dict[str, Any], widens: bool) -> str:
    """How to make all operands of one supported dtype without losing anything, for the end of an error.

    If that cannot be, what is lost by converting `name`. Nothing for a place for results, nor for what is
    no number. `widens` says that the caller has the option `out_dtype`.
    """

    def converted(operand: str, target: str) -> str:
        astype = hasattr(given[operand], "astype")
        return f"{operand}.astype('{target}')" if astype else f"{operand} converted to {target}"

    dtypes = {operand: view.dtype for operand, view in views.items() if not operand.startswith("out")}
    if name not in dtypes:
        return ""
    for target in _BY_KIND:
        if all(_keeps(target, dtype) for dtype in dtypes.values()):
            calls = [converted(operand, _NAMES[target]) for operand in dtypes if dtypes[operand] != target]
            text = f"; {' and '.join(calls)} lose{'s' if len(calls) == 1 else ''} nothing"
            return text + (_taken_as_they_are(_NAMES[target], dtypes) if widens else "")
    if dtypes[name] in _NAMES:
        rounded = {dtype for dtype in dtypes.values() if dtype.kind not in "biu"}
        if len(rounded) == 1 and (target := _NAMES.get(*rounded)):
            calls = [converted(operand, target) for operand in dtypes if dtypes[operand] not in rounded]
            verb = "is" if len(calls) == 1 else "are"
            return f"; {' and '.join(calls)} {verb} exact for integers up to 2^{_DIGITS[target]}"
        return "; no supported dtype holds every value of all operands"
    if dtypes[name].kind in _ROUNDED:
        nearest, loss = _ROUNDED[dtypes[name].kind]
        return f"; {converted(name, nearest)} {loss}"
    return ""


def _taken_as_they_are(target: str, dtypes: dict[str, Any]) -> str:
    """That there is a word for results wider than x and w, where these are integers or truth values."""
    if DTYPES[target].kind != "i":
        return ""
    plain = {
        operand: f"{operand}.view('uint8')" if dtypes[operand].kind == "b" else operand for operand in "xw"
    }
    if all(dtype.isnative for dtype in dtypes.values()):
        return f"; out_dtype={target!r} takes {plain['x']} and {plain['w']} as they are"
    return ""


def _keeps(target: Any, dtype: Any) -> bool:
    """Whether `target` holds every value of `dtype`; NumPy says so of floats and 64-bit integers too."""
    wide = dtype.kind in "iu" and dtype.itemsize == 8
    return np.can_cast(dtype, target) and (target.kind == "i" or not wide)


def dtype_name(dtype: Any) -> str:
    """The name of a dtype given as a name, a NumPy dtype or a scalar type, or TypeError."""
    return described(_native_name(dtype) or dtype).name


def _native_name(dtype: Any) -> str:
    """NumPy's name for a dtype in native byte order, or nothing if it is none."""
    try:
        found = np.dtype(dtype) if isinstance(dtype, (str, type, np.dtype)) else None
    except Exception:  # of as many types as NumPy reads notations
        found = None
    return found.name if found is not None and found.isnative else ""


def dtype_names(dtype: Any, out_dtype: Any) -> tuple[str, tuple[str, str] | None]:
    """What `Operands` has as dtype and inputs, from what a plan is told: a dtype, or a pair for x and w."""
    if out_dtype is None:
        if _native_name(dtype) in NARROW:
            raise TypeError(
                f"dtype {_native_name(dtype)} needs an out_dtype, 'int32' or 'int64', for its sums"
            )
        return dtype_name(dtype), None
    each = dtype if isinstance(dtype, (tuple, list)) else (dtype, dtype)
    if len(each) != 2:
        raise ValueError(f"dtype must be one, or a pair for x and w, got {shown(dtype)}")
    return _integers(out_dtype, dict(zip("xw", each, strict=True)))


def owner_of(name: str, array: Array) -> Owner:
    """The library and device of one array, or TypeError naming the argument."""
    if type(array) in OWNERS:
        return OWNERS[type(array)]
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost: fill it first")
    if isinstance(array, np.ndarray):
        return _NUMPY
    if type(array).__module__.partition(".")[0] == "cupy" and hasattr(array, "dtype"):
        return OWNERS.setdefault(type(array), _CUPY)
    known = _LIBRARIES.get(type(array))
    speaks_dlpack = known or (hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"))
    if speaks_dlpack and not isinstance(array, type):
        try:
            device = int(array.__dlpack_device__()[0])
        except Exception as error:  # whatever the library raises
            raise TypeError(f"{name} cannot be read through DLPack: {error}") from error
        found = known or _library(array)
        if found is not None and device in _DLPACK_CPU + _DLPACK_CUDA:
            library, home = found
            backend = "cuda" if device in _DLPACK_CUDA else "cpu"
            return Owner(library, backend, home, getattr(array, "device", None))
    hint = ""
    if isinstance(array, (list, tuple)):
        hint = "; numpy.asarray makes one of it"
    elif name == "bias" and isinstance(array, int):
        hint = "; stride and the rest come after the bias, or by name"
    elif (library := type(array).__module__.partition(".")[0]) in _LAZY:
        hint = f"; what {_LAZY[library]} has not computed yet is for cuconv.{library}"
    raise TypeError(
        f"{name} must be a NumPy array, a CuPy array or an array on CPU or GPU of a library with DLPack, "
        f"got {type(array).__module__}.{type(array).__qualname__}{hint}"
    )


_LAZY = {"dask": "Dask", "jax": "JAX"}
"""Libraries with arrays that have no values yet, which an adapter takes; others of theirs speak DLPack."""

_LIBRARIES: dict[type, tuple[str, Any]] = {}
"""Of arrays that have come through DLPack, by type: the library's name, and where its `from_dlpack` is."""


def _library(array: Array) -> tuple[str, Any] | None:
    """The library of an array; a subclass belongs to that of the class it extends."""
    for name, home in _homes(array):
        if hasattr(home, "from_dlpack"):
            return _LIBRARIES.setdefault(type(array), (name, home))
    return None


def _homes(array: Array) -> Iterator[tuple[str, Any]]:
    """Libraries and where each may keep its `from_dlpack`: the array API standard's namespace, or modules."""
    if hasattr(array, "__array_namespace__"):
        namespace = array.__array_namespace__()
        name = getattr(namespace, "__name__", type(array).__module__)
        yield name.partition(".")[0], namespace
    for kind in type(array).__mro__:
        name = kind.__module__.partition(".")[0]
        yield name, sys.modules.get(name)
        yield name, sys.modules.get(f"{name}.dlpack")


_PENDING = {"is_neg": ("negates", "resolve_neg"), "is_conj": ("conjugates", "resolve_conj")}
"""PyTorch's questions whether something is yet to be done to a tensor's values, and what does it."""

# NumPy's DLPack does not know bfloat16, so that it travels as int16, in and out.


def view_of(name: str, array: Array, owner: Owner) -> Array:
    """An array of the backend's library on the memory of one of the owner's."""
    if owner.library == "cupy":
        return array
    if owner.library == "numpy":
        return np.asarray(array)  # subclasses have ways of their own
    for question, (pending, resolve) in _PENDING.items():
        if getattr(array, question, bool)() is True:
            raise TypeError(
                f"{name} is a view that {owner.library} {pending} only on reading it ({question}), which "
                f"DLPack does not pass on: {name}.{resolve}() makes a plain copy"
            )
    bfloat16 = getattr(owner.home, "bfloat16", None)
    try:
        namespace = owner.namespace
    except ImportError as error:
        raise TypeError(f"{name} cannot be read through DLPack: {error}") from error
    try:
        if owner.backend == "cpu" and bfloat16 is not None and getattr(array, "dtype", None) == bfloat16:
            return np.from_dlpack(array.view(owner.home.int16)).view(ml_dtypes.bfloat16)
        view = namespace.from_dlpack(array)
    except Exception as error:  # whatever the library raises
        hint = ""
        if getattr(array, "requires_grad", False) is True:
            hint = f"; what {owner.library} differentiates is in cuconv.{owner.library}"
        raise TypeError(f"{name} cannot be read through DLPack: {error}{hint}") from error
    if owner.backend == "cpu" and view.size and view.flags.owndata:
        # For a null pointer NumPy takes memory of its own.
        raise TypeError(f"{name} cannot be read through DLPack: it has no memory, only a shape")
    return view


def given_back(result: Array, owner: Owner, place: Array | None = None) -> Array:
    """A result in the owner's library, not copied: the array that was given for it, or a new one."""
    if owner.library in ("numpy", "cupy"):
        return result if place is None else place
    if place is None:
        return _handed_over(result, owner)
    if owner.on_gpu:
        _handed_over(result, owner)  # which makes the library's stream wait for ours
    return place


def _handed_over(result: Array, owner: Owner) -> Array:
    """An array of the owner's library on the memory of one of the backend's: the inverse of `view_of`."""
    if owner.backend == "cpu" and result.dtype == ml_dtypes.bfloat16:
        array = owner.home.from_dlpack(result.view(np.int16)).view(owner.home.bfloat16)
    else:
        array = owner.home.from_dlpack(result)
    if owner.device is None or array.device == owner.device:
        return array
    return array.to_device(owner.device)  # of several that share a memory


def on_host(array: Array) -> np.ndarray:
    """A NumPy or CuPy array as a NumPy array."""
    host: np.ndarray = array if isinstance(array, np.ndarray) else array.get()
    return host


def _overlaps_itself(array: Array) -> bool:
    """Whether two elements may share a cell: no axis may step within the span of the finer ones."""
    span = array.dtype.itemsize
    axes = [
        (abs(step), extent) for step, extent in zip(array.strides, array.shape, strict=True) if extent > 1
    ]
    for step, extent in sorted(axes):
        if step < span:
            return array.size > 0
        span += step * (extent - 1)
    return False


def may_overlap_at(a: Array, b: Array) -> tuple[int, int]:
    """Between which distances of b's address from a's the memory that they span overlaps."""
    (low, high), (low_of_b, high_of_b) = _span(a), _span(b)
    return low - high_of_b, high - low_of_b


def _span(array: Array) -> tuple[int, int]:
    """Where an array's elements begin and end, in bytes from its address; nowhere if there are none."""
    if 0 in array.shape:
        return 0, 0
    reach = [step * (extent - 1) for step, extent in zip(array.strides, array.shape, strict=True)]
    return sum(min(each, 0) for each in reach), sum(max(each, 0) for each in reach) + array.dtype.itemsize


class _Addresses:
    """Where the elements of a CuPy array lie, for NumPy to compare; nothing is read there."""

    def __init__(self, array: Array) -> None:
        self.__array_interface__ = {
            "version": 3,
            "shape": array.shape,
            "strides": tuple(array.strides),
            "typestr": f"|V{array.dtype.itemsize}",
            "data": (array.data.ptr, True),
        }


def _share_memory(a: Array, b: Array, owner: Owner) -> bool:
    if owner.on_gpu:
        a, b = np.asarray(_Addresses(a)), np.asarray(_Addresses(b))
    try:
        return np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


# Every algorithm sees three spatial axes, channels second: (N, C, D, H, W), (N, K, Z, P, Q) and
# (K, C/groups, T, R, S). Layout, batching, rank and flip are strides of a view, nothing else.


def canonical(request: Request, role: str, array: Array) -> Array:
    """The view of an operand that algorithms compute with, by its role x, w, dy, y, dx, dw or db."""
    if role == "db":
        return array
    if role.endswith("w"):
        return filters(array, request.problem.rank, request.layout, request.flip)
    return volume(array, request.problem.rank, request.layout)


def volume(array: Array, rank: int, layout: str) -> Array:
    """A view of an activation or its gradient as (N, C, D, H, W)."""
    if array.ndim == rank + 1:
        array = array[None]
    if layout == "channels_last":
        array = array.transpose(0, rank + 1, *range(1, rank + 1))
    return array[(slice(None), slice(None)) + (None,) * (3 - rank)]


def filters(array: Array, rank: int, layout: str, flip: bool) -> Array:
    """A view of filters or their gradient as (K, C/groups, T, R, S), turned by 180 degrees for `flip`."""
    array = volume(array, rank, layout)
    return array[:, :, ::-1, ::-1, ::-1] if flip else array
