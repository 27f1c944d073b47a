"""Calls whose arrays have no values yet: the core says what they will compute, or what is wrong with them.

It is asked with stand-ins, arrays of the same shapes and dtypes without memory. So signatures, options and
errors of the adapters for JAX and Dask are the core's own.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .options import checked_keywords, shown
from .plan import TABLES, make_plan, permitted
from .problem import Request

_ON_GPU = {entry.name for entries in TABLES["cuda"].values() for entry in entries}


def bound(function: Callable[..., Any], args: Any, kwargs: Any, kind: str) -> dict[str, Any]:
    """The arguments of a public function by name, with its defaults; arrays of that kind are never `out`."""
    try:
        given = inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        checked_keywords(_describing(function))(*args, **kwargs)  # whose error says more
        raise
    given.apply_defaults()
    if given.arguments.get("out") is not None:
        raise TypeError(f"out must be None: {kind} cannot be written to, got {shown(given.arguments['out'])}")
    return given.arguments


def described(function: Callable[..., Any], given: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
    """What a public function would run with such arrays: a `plan.Planned`, or several. Raises what it would.

    The plan is for NumPy arrays, and of the core's choice where an algorithm has to be timed or may be meant
    for a GPU. So a name is yet to be checked for the arrays that there will be: see `check_algorithm`.
    """
    stand_ins = {name: _stand_in(name, tuple(array.shape), array.dtype) for name, array in arrays.items()}
    algorithm = given.get("algorithm")
    later = isinstance(algorithm, str) and (algorithm == "tune" or algorithm in _ON_GPU)
    return _describing(function)(**{**given, **stand_ins, **({"algorithm": "auto"} if later else {})})


def check_algorithm(request: Request, algorithm: str, backend: str, arch: str | None = None) -> None:
    """Raise where an algorithm's name is not one that can do a request on arrays of this backend."""
    if algorithm != "tune" and request.op != "bgrad":
        precision = permitted(request.precision, request.dtype, backend)
        make_plan(replace(request, precision=precision), algorithm, backend, arch)


def documented(function: Callable[..., Any], title: str, more: str, example: str) -> str:
    """A core function's docstring under an adapter's title, with what its users need more, and an example.

    The core's own examples are the last section of its docstring.
    """
    text = function.__doc__ or ""
    margin = text.partition("Parameters\n")[0].rpartition("\n")[2]  # none from Python 3.13 on
    before, after = (textwrap.indent(part, margin) for part in (more, example))
    return f"{title}\n\n{before}\n{margin}{text}\n{after}{margin}"


def _describing(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function within a public one that only says what is to be run."""
    return function.__wrapped__  # type: ignore[attr-defined]


def _stand_in(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if math.prod(shape) * dtype.itemsize >= 1 << 63:
        raise ValueError(f"{name} of shape {shape} must be smaller than 2^63 bytes")
    return np.broadcast_to(np.zeros((), dtype), shape)
