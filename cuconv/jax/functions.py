"""The core's functions with arrays that may not be there yet: checked when traced, computed when run."""

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
from ..described import bound, described, documented
from ..dtypes import DTYPES
from ..plan import INPUTS
from . import operators

_ARRAYS = ("x", "w", "dy", "bias")


def _check_kind(name: str, array: Any) -> None:
    """Raise unless an array is JAX's, traced or not, or NumPy's, of a dtype that NumPy has."""
    if not isinstance(array, (jax.Array, np.ndarray)):
        hint = "; jax.numpy.asarray makes one of it" if isinstance(array, (list, tuple)) else ""
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        raise TypeError(f"{name} must be a jax.Array or a NumPy array, got {kind}{hint}")
    if not isinstance(array.dtype, np.dtype):
        raise TypeError(f"{name} must be an array of numbers, got dtype {array.dtype}")


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

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = bound(function, args, kwargs, "JAX's arrays")
        arrays = {name: given[name] for name in _ARRAYS if name in given}
        if arrays.get("bias", 0) is None:
            del arrays["bias"]
        for name, array in arrays.items():
            _check_kind(name, array)
        planned = described(function, given, arrays)
        arrays = {name: _jax_array(name, array) for name, array in arrays.items()}
        algorithm = given.get("algorithm", "auto")
        if isinstance(planned, tuple):
            return tuple(each and _result(each.call, arrays, algorithm) for each in planned)
        return _result(planned.call, arrays, algorithm)

    call.__doc__ = _documented(function)
    call.__module__ = __name__
    return call


_TEXT = """\
It works within `jax.jit`, `jax.grad`, `jax.vmap` and JAX's other transforms. Arrays are
`jax.Array` or NumPy's, and results are `jax.Array`. `out` must be None, since these cannot be
written to. Errors are raised when a call is traced; those about the name of an algorithm, when it
is compiled. JAX's derivatives of complex arrays conjugate nothing, as those of its own
convolutions; `conv_input_grad` and the others, called by name, conjugate. All else is as in cuconv:
"""

_EXAMPLE = """\
On JAX's arrays, a gradient, compiled:

>>> import jax
>>> import cuconv.jax
>>> x, w = jax.numpy.ones((1, 2{eights})), jax.numpy.ones((2, 2{threes}))
>>> jax.jit(jax.grad(lambda w: cuconv.jax.{name}(x, w).sum()))(w).shape
(2, 2{threes})
"""


def _documented(function: Callable[..., Any]) -> str:
    """The core's docstring for JAX's users."""
    name, example = function.__name__, ""
    if list(inspect.signature(function).parameters)[:2] == ["x", "w"]:
        rank = int(name[-2]) if name[-1] == "d" else 2
        example = _EXAMPLE.format(name=name, eights=", 8" * rank, threes=", 3" * rank)
    return documented(function, f"`cuconv.{name}` on JAX's arrays.", _TEXT, example)


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
