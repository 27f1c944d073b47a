"""The public functions: arguments as the core checks them, then the graph. Nothing is computed.

The core is asked what it would run for arrays of these shapes, for which it gets stand-ins without memory: so
its checks are ours, and its errors.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize

from .. import api, arrays
from ..options import checked_keywords, shown
from ..plan import make_plan
from ..problem import Request
from . import graphs
from .graphs import Op

_ARRAYS = ("dy", "x", "w", "bias")

Arguments = dict[str, Any]
Operands = dict[str, Any]


def _lazy(core: Callable[..., Any], build: Callable[..., Any], text: str) -> Callable[..., Any]:
    """A core function on Dask arrays: what `build` makes of its arguments, arrays and requests."""
    describe, signature = inspect.unwrap(core), inspect.signature(core)

    def function(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{core.__name__}() has {error}") from None
        bound.apply_defaults()
        given = bound.arguments
        for name, default in (("out", None), ("accumulate", False)):
            if given[name] is not default:
                came = shown(given[name])
                raise TypeError(
                    f"{name} must be {default} for Dask arrays, which are not written to, got {came}"
                )
        operands = _adopted(given)
        return build(given, operands, _described(describe, given, operands))

    functools.update_wrapper(function, core)
    title = f"`cuconv.{core.__name__}` on Dask arrays; nothing is computed yet."
    function.__doc__ = f"{title}\n\n{text}\n\n    {core.__doc__}"
    function.__module__ = __name__
    return checked_keywords(function)


def _adopted(given: Mapping[str, Any]) -> Operands:
    """The arrays among the arguments as Dask arrays, with one kind of chunks. TypeError if none was one."""
    operands = {name: given[name] for name in _ARRAYS if given.get(name) is not None}
    if not any(isinstance(array, da.Array) for array in operands.values()):
        came = ", ".join(f"{name} a {type(array).__qualname__}" for name, array in operands.items())
        raise TypeError(
            f"{' or '.join(operands)} must be a Dask array, got {came}; others are for cuconv's own functions"
        )
    for name, array in operands.items():
        if not isinstance(array, da.Array):
            owner = arrays.owner_of(name, array)
            if owner.library not in ("numpy", "cupy"):
                raise TypeError(f"{name} must be a Dask array, or one of NumPy or CuPy, got a {owner}")
            operands[name] = da.from_array(arrays.view_of(name, array, owner), chunks=-1, asarray=False)
        elif any(math.isnan(size) for sizes in array.chunks for size in sizes):
            known = f"{name}.compute_chunk_sizes()"
            raise ValueError(
                f"{name} must have chunks of known sizes, got {array.chunks}; {known} finds them"
            )
    arrays.owner_of_all({name: array._meta for name, array in operands.items()})
    return operands


def _described(describe: Callable[..., Any], given: Mapping[str, Any], operands: Operands) -> Any:
    """The request, or the several, of a call with arrays of these shapes and dtypes. Raises what it would."""
    backend = arrays.owner_of("block", next(iter(operands.values()))._meta).backend
    given = {**given}
    for name, array in operands.items():
        given[name] = np.broadcast_to(np.zeros((), array.dtype), array.shape)
    algorithm = given.get("algorithm")
    tuned = isinstance(algorithm, str) and algorithm == "tune"
    if algorithm is not None and (tuned or backend == "cuda"):
        given["algorithm"] = "auto"  # stand-ins are not worth timing, and are not on a GPU
    planned = describe(**given)
    requests = [each and each.call.request for each in (planned if isinstance(planned, tuple) else [planned])]
    if algorithm is not None and backend == "cuda" and not tuned:
        for request in filter(None, requests):
            make_plan(request, "auto" if request.op == "bgrad" else algorithm, backend)
    return requests if isinstance(planned, tuple) else requests[0]


def _op(core: Callable[..., Any], request: Request, given: Arguments, *operands: Any) -> Op:
    """The op of a request, whose parts a core function computes; its name tells all that it follows from."""
    name, problem = core.__name__, request.problem
    options: dict[str, Any] = dict(layout=request.layout)
    if request.op != "bgrad":
        options |= dict(stride=problem.stride, dilation=problem.dilation, flip=request.flip)
        options |= {key: given[key] for key in ("precision", "algorithm", "out_dtype") if key in given}
    names = [operand is not None and operand.name for operand in operands]
    token = tokenize(name, str(request), options, *names)
    return Op(f"{name}-{token}", request, name, options)


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


_CUT = """\
    At least one of the arrays is Dask's, with chunks of NumPy's or CuPy's along any of its axes; NumPy's and
    CuPy's own count as one chunk. The result is that of whole arrays, bit for bit where sums are exact. It
    is cut where the operands are, at the centres of windows; `conv_backward` cuts dx as x is. Dask arrays are
    not written to, so that `out` and `accumulate` are refused. All else is as in cuconv:"""

conv = _lazy(api.conv, _conv, _CUT)
conv_input_grad = _lazy(api.conv_input_grad, _input_grad, _CUT)
conv_weight_grad = _lazy(api.conv_weight_grad, _weight_grad, _CUT)
conv_bias_grad = _lazy(api.conv_bias_grad, _bias_grad_alone, _CUT)
conv_backward = _lazy(api.conv_backward, _backward, _CUT)
conv_transpose = _lazy(api.conv_transpose, _transpose, _CUT)
