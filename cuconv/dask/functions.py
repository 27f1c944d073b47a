"""The public functions: arguments as the core checks them, then the graph. Nothing is computed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import dask.array as da
from dask.base import tokenize

from .. import api, arrays
from ..described import bound, check_algorithm, described, documented
from ..problem import Request
from . import graphs
from .graphs import Op

_ARRAYS = ("dy", "x", "w", "bias")

Arguments = dict[str, Any]
Operands = dict[str, Any]


def _lazy(core: Callable[..., Any], build: Callable[..., Any], example: str) -> Callable[..., Any]:
    """A core function on Dask arrays: what `build` makes of its arguments, arrays and requests."""

    @functools.wraps(core)
    def function(*args: Any, **kwargs: Any) -> Any:
        given = bound(core, args, kwargs, "Dask arrays")
        operands = _adopted(given)
        planned = described(core, given, operands)
        if isinstance(planned, tuple):
            return build(given, operands, [each and each.call.request for each in planned])
        return build(given, operands, planned.call.request)

    title = f"`cuconv.{core.__name__}` on Dask arrays; nothing is computed yet."
    function.__doc__ = documented(core, title, _TEXT, _EXAMPLE + example)
    function.__module__ = __name__
    return function


_TEXT = """\
At least one of the arrays is a Dask array, cut along any of its axes, with NumPy's or CuPy's
arrays as chunks. Plain NumPy or CuPy arrays count as one chunk. The result is that of whole
arrays, bit for bit where sums are exact. It is cut where the operands are cut: an output belongs
to the chunk that has the centre of its window. `conv_backward` cuts dx where x is cut. `out` must
be None: Dask arrays cannot be written to. All else is as in cuconv:
"""

_EXAMPLE = """\
On Dask arrays:

>>> import dask.array as da
>>> import cuconv.dask
>>> x, w = da.ones((1, 1, 8, 8), chunks=(1, 1, 4, 8)), np.ones((1, 1, 3, 3))
"""


def _adopted(given: Mapping[str, Any]) -> Operands:
    """The arrays among the arguments as Dask arrays, with one kind of chunks. TypeError if none was one."""
    operands = {name: given[name] for name in _ARRAYS if given.get(name) is not None}
    if operands and not any(isinstance(array, da.Array) for array in operands.values()):
        came = ", ".join(f"{name} a {type(array).__qualname__}" for name, array in operands.items())
        raise TypeError(
            f"{' or '.join(operands)} must be a Dask array, got {came}; others are for cuconv's own functions"
        )
    for name, array in operands.items():
        lazy = isinstance(array, da.Array)
        owner = arrays.owner_of(name, array._meta if lazy else array)
        if owner.library not in ("numpy", "cupy"):
            came = f"chunks of a {owner}" if lazy else f"a {owner}"
            raise TypeError(f"{name} must be a Dask array of NumPy or CuPy, or an array of these, got {came}")
        if not lazy:
            operands[name] = da.from_array(arrays.view_of(name, array, owner), chunks=-1, asarray=False)
        elif any(math.isnan(size) for sizes in array.chunks for size in sizes):
            known = f"{name}.compute_chunk_sizes()"
            raise ValueError(
                f"{name} must have chunks of known sizes, got {array.chunks}; {known} finds them"
            )
    if operands:
        arrays.owner_of_all({name: array._meta for name, array in operands.items()})
    return operands


def _op(core: Callable[..., Any], request: Request, given: Arguments, *operands: Any) -> Op:
    """The op of a request, whose parts a core function computes; its name tells all that it follows from."""
    name, problem = core.__name__, request.problem
    backend = arrays.owner_of("chunk", operands[0]._meta).backend
    options: dict[str, Any] = dict(layout=request.layout)
    if request.op != "bgrad":
        options |= dict(stride=problem.stride, dilation=problem.dilation, flip=request.flip)
        options |= dict(precision=given["precision"], algorithm=given["algorithm"])
        if given.get("out_dtype") is not None:
            options["out_dtype"] = request.dtype
        check_algorithm(request, given["algorithm"], backend)
    about = "" if request.op == "bgrad" else str(request)
    names = [operand is not None and operand.name for operand in operands]
    return Op(f"{name}-{tokenize(name, about, options, *names)}", request, name, options, backend)


def _batches(request: Request, array: Any) -> Any:
    """An array with the axis of batches, which it may not have."""
    return array if request.batched else array[None]


def _conv(given: Arguments, operands: Operands, request: Request) -> Any:
    x, w, bias = _batches(request, operands["x"]), operands["w"], operands.get("bias")
    y = graphs.conv(_op(api.conv, request, given, x, w, bias), x, w, bias)
    return y if request.batched else y[0]


def _input_grad(given: Arguments, operands: Operands, request: Request) -> Any:
    dy, w = _batches(request, operands["dy"]), operands["w"]
    x = operands.get("x")
    like = None if x is None else _batches(request, x)
    dx = graphs.input_grad(_op(api.conv_input_grad, request, given, dy, w, like), dy, w, like=like)
    return dx if request.batched else dx[0]


def _transpose(given: Arguments, operands: Operands, request: Request) -> Any:
    x, w, bias = _batches(request, operands["x"]), operands["w"], operands.get("bias")
    y = graphs.input_grad(_op(api.conv_transpose, request, given, x, w, bias), x, w, bias)
    return y if request.batched else y[0]


def _weight_grad(given: Arguments, operands: Operands, request: Request) -> Any:
    x, dy = (_batches(request, operands[name]) for name in ("x", "dy"))
    return graphs.weight_grad(_op(api.conv_weight_grad, request, given, x, dy), x, dy)


def _bias_grad(given: Arguments, operands: Operands, request: Request) -> Any:
    dy = _batches(request, operands["dy"])
    return graphs.bias_grad(_op(api.conv_bias_grad, request, given, dy), dy)


def _bias_grad_alone(given: Arguments, operands: Operands, request: Request) -> Any:
    batched = given["batched"] and operands["dy"].ndim > 2  # a request for no images says nothing of it
    return _bias_grad(given, operands, replace(request, batched=bool(batched)))


def _backward(given: Arguments, operands: Operands, requests: Any) -> Any:
    builders = (_input_grad, _weight_grad, _bias_grad)
    return tuple(
        request and build(given, operands, request) for build, request in zip(builders, requests, strict=True)
    )


conv = _lazy(api.conv, _conv, """\
>>> y = cuconv.dask.conv(x, w, padding="same")
>>> y.chunks
((1,), (1,), (4, 4), (8,))
>>> float(y.max().compute())
9.0
""")  # fmt: skip
conv_input_grad = _lazy(api.conv_input_grad, _input_grad, """\
>>> dx = cuconv.dask.conv_input_grad(x, w, x.shape, padding="same")
>>> dx.chunks
((1,), (1,), (4, 4), (8,))
>>> float(dx.max().compute())
9.0
""")  # fmt: skip
conv_weight_grad = _lazy(api.conv_weight_grad, _weight_grad, """\
>>> cuconv.dask.conv_weight_grad(x, x, w.shape, padding="same").compute()
array([[[[49., 56., 49.],
         [56., 64., 56.],
         [49., 56., 49.]]]])
""")  # fmt: skip
conv_bias_grad = _lazy(api.conv_bias_grad, _bias_grad_alone, """\
>>> cuconv.dask.conv_bias_grad(x).compute()
array([64.])
""")  # fmt: skip
conv_backward = _lazy(api.conv_backward, _backward, """\
>>> dx, dw, db = cuconv.dask.conv_backward(x, x, w, padding="same")
>>> dx.chunks
((1,), (1,), (4, 4), (8,))
>>> db.compute()
array([64.])
""")  # fmt: skip
conv_transpose = _lazy(api.conv_transpose, _transpose, """\
>>> cuconv.dask.conv_transpose(x, w, stride=2, padding="same").shape
(1, 1, 16, 16)
""")  # fmt: skip
