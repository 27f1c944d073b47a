"""The core's functions with arrays that may not be there yet: checked when traced, computed when run.

What a call is to compute the core itself says, of stand-ins that have a shape and a dtype and no memory. So
signatures, options and errors are the core's, and nothing of them is written here a second time.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import api, ranked
from ..dtypes import DTYPES
from ..options import checked_keywords, shown
from ..plan import INPUTS, TABLES
from . import operators

_ARRAYS = ("x", "w", "dy", "bias")
_ON_GPU = {entry.name for entries in TABLES["cuda"].values() for entry in entries}


def _stand_in(name: str, array: Any) -> np.ndarray:
    """An array of the same shape and dtype on the memory of one element."""
    if not isinstance(array, (jax.Array, np.ndarray)):
        hint = "; jax.numpy.asarray makes one of it" if isinstance(array, (list, tuple)) else ""
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        raise TypeError(f"{name} must be a jax.Array or a NumPy array, got {kind}{hint}")
    if not isinstance(array.dtype, np.dtype):
        raise TypeError(f"{name} must be an array of numbers, got dtype {array.dtype}")
    return np.broadcast_to(np.zeros((), array.dtype), array.shape)


def _jax_array(name: str, array: Any) -> jax.Array:
    """An array as JAX's, as its own functions take NumPy's; but not with fewer bits in silence."""
    taken = jnp.asarray(array)
    if taken.dtype != array.dtype:
        raise TypeError(
            f"{name} has dtype {array.dtype}, which JAX has under jax.config.update('jax_enable_x64', True) "
            f"only; {name}.astype('{taken.dtype}') rounds it"
        )
    return taken


def _traceable(function: Callable[..., Any]) -> Callable[..., Any]:
    """A public function of the core, for JAX's arrays."""
    describe = checked_keywords(function.__wrapped__)  # type: ignore[attr-defined]  # says what is to be run
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            describe(*args, **kwargs)  # whose error says more
            raise
        if given.get("out") is not None:
            raise TypeError(f"out must be None: JAX's arrays cannot be written to, got {shown(given['out'])}")
        arrays = {name: given[name] for name in _ARRAYS if name in given}
        if arrays.get("bias", 0) is None:
            del arrays["bias"]
        stand_ins = {name: _stand_in(name, array) for name, array in arrays.items()}
        algorithm = given.get("algorithm", "auto")
        # Which device it will be, a trace does not know, and tuning would time the stand-ins.
        later = isinstance(algorithm, str) and (algorithm == "tune" or algorithm in _ON_GPU)
        described = describe(**given | stand_ins | (dict(algorithm="auto") if later else {}))
        arrays = {name: _jax_array(name, array) for name, array in arrays.items()}
        if isinstance(described, tuple):
            return tuple(each and _result(each.call, arrays, algorithm) for each in described)
        return _result(described.call, arrays, algorithm)

    call.__doc__ = f"`cuconv.{function.__name__}` on JAX's arrays.\n\n    {function.__doc__}"
    return call


def _result(call: Any, arrays: dict[str, Any], algorithm: str) -> Any:
    """What a call that was described with stand-ins makes of the arrays by name."""
    request = call.request
    if request.op == "bgrad":
        return _sum_of_channels(arrays["dy"], request)
    operands = [arrays[name] for name in call.inputs]
    if request.conjugate:  # the second factor, which is wgrad's first operand, or with the sum the other one
        index = int((request.op != "wgrad") != request.conjugate_sum)
        operands[index] = jnp.conj(operands[index])
    if not request.batched:
        operands = [
            operand if role == "w" else operand[None]
            for role, operand in zip(INPUTS[request.op], operands, strict=True)
        ]
    bias = [arrays["bias"]] if request.bias else []
    plain = replace(request, batched=True, conjugate=False, conjugate_sum=False)
    result = operators.conv(*operands, *bias, request=plain, algorithm=algorithm)
    return result if request.batched or request.op == "wgrad" else result[0]


def _sum_of_channels(dy: Any, request: Any) -> Any:
    channel = dy.ndim - 1 - (request.layout == "channels_first") * request.problem.rank
    axes = [axis for axis in range(dy.ndim) if axis != channel]
    return jnp.sum(dy, axes, dtype=DTYPES[request.dtype].accumulator).astype(dy.dtype)


conv = _traceable(api.conv)
conv_input_grad = _traceable(api.conv_input_grad)
conv_weight_grad = _traceable(api.conv_weight_grad)
conv_bias_grad = _traceable(api.conv_bias_grad)
conv_backward = _traceable(api.conv_backward)
conv_transpose = _traceable(api.conv_transpose)
conv_transpose_backward = _traceable(api.conv_transpose_backward)
conv1d, conv2d, conv3d = map(_traceable, (ranked.conv1d, ranked.conv2d, ranked.conv3d))
conv_transpose1d, conv_transpose2d, conv_transpose3d = map(
    _traceable, (ranked.conv_transpose1d, ranked.conv_transpose2d, ranked.conv_transpose3d)
)
