"""One primitive for the three operators, with its derivatives and its rule for vmap.

The sum over everything of dy[n, k, p] x[n, c, p s - a + r d] w[k, c, r] is linear in each of the three, and
`fprop`, `dgrad` and `wgrad` are its gradients in one of them, given the other two. So every derivative of one
is another, and an axis that is mapped over becomes a part of an extent. Nothing is conjugated: cotangents of
complex functions are those of the transposed map in JAX.

A primitive has derivatives backward and forward, of any order. `jax.custom_vjp` has none forward, and
`jax.hessian` takes both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ..arrays import numpy_dtype
from ..dtypes import DTYPES
from ..problem import Request
from . import lowering

ROLES = {"fprop": "xwy", "dgrad": "ywx", "wgrad": "xyw"}
"""Of an operator's two operands and of its result."""

_EXTENTS = {"x": "nc", "w": "kc", "y": "nk"}
"""What a role's first axis is, and what its axis of channels."""

_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}

_primitive = Primitive("cuconv")
mlir.register_lowering(_primitive, lowering.on_cpu, platform="cpu")
mlir.register_lowering(_primitive, lowering.on_cuda, platform="cuda")


def conv(*operands: Any, request: Request, algorithm: str) -> Any:
    """The result of a request, which has a batch and conjugates nothing, for operands and maybe a bias."""
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit in mesh.axis_types:  # each device has all, and cotangents are spread as the operands
        operands = tuple(jax.sharding.reshard(operand, PartitionSpec()) for operand in operands)
    if AxisType.Manual in mesh.axis_types:
        operands = tuple(_varying_like(operands, operand) for operand in operands)
    return _primitive.bind(*operands, request=request, algorithm=algorithm)


def _varying_like(others: Sequence[Any], operand: Any) -> Any:
    """An operand that may differ from device to device if others do, so that its cotangents will be added up.

    Within `jax.shard_map` JAX sees to that for its own primitives, as this `select` of one value. Its names
    for it change from version to version, and to XLA it is nothing.
    """
    for other in others:
        operand = jax.lax.select(jax.lax.full_like(other, False, bool, ()), operand, operand)
    return operand


@_primitive.def_impl
def _run(*operands: Any, request: Request, algorithm: str) -> Any:
    with jax.disable_jit(False):  # which would otherwise come back here
        return _compiled(request, algorithm)(*operands)


@functools.lru_cache(maxsize=4096)
def _compiled(request: Request, algorithm: str) -> Callable[..., Any]:
    return jax.jit(functools.partial(conv, request=request, algorithm=algorithm))


@_primitive.def_abstract_eval
def _kind(*operands: Any, request: Request, algorithm: str) -> Any:
    shape = request.shapes[ROLES[request.op][2]]
    whole = NamedSharding(operands[0].sharding.mesh, PartitionSpec(*(None for _ in shape)))
    # The operands know along which axes of the mesh the result varies.
    return operands[0].update(shape=shape, dtype=numpy_dtype(request.dtype), weak_type=False, sharding=whole)


# -- derivatives ------------------------------------------------------------------------------------------


def _transposed(place: int) -> Callable[..., Any]:
    """The rule for the cotangent of the first or second operand, given the result's and the other operand."""

    def rule(cotangent: Any, *operands: Any, request: Request, algorithm: str) -> Any:
        roles = ROLES[request.op]
        known = {roles[1 - place]: operands[1 - place], roles[2]: cotangent}
        op = next(op for op, others in ROLES.items() if others[2] == roles[place])
        a, b = (known[role] for role in ROLES[op][:2])
        # A name is that of an algorithm for one operator, and this is another one.
        algorithm = algorithm if algorithm == "tune" else "auto"
        return conv(a, b, request=replace(request, op=op), algorithm=algorithm)

    return rule


def _forward(primals: Sequence[Any], tangents: Sequence[Any], *, request: Request, algorithm: str) -> Any:
    """The result and its tangent, of which only the terms that are not zero are computed."""
    linear = functools.partial(conv, request=_linear(request), algorithm=algorithm)
    z = conv(*primals, request=replace(request, activation=None), algorithm=algorithm)
    a, b = primals[:2]
    rules = (
        lambda da: linear(da, b),
        lambda db: linear(a, db),
        lambda dbias: jnp.broadcast_to(_along_channels(dbias, request), z.shape),
    )
    terms = [rule(t) for rule, t in zip(rules, tangents, strict=False) if type(t) is not ad.Zero]
    tangent = functools.reduce(jnp.add, terms)
    if request.activation is None:
        return z, tangent
    return jax.jvp(functools.partial(_activated, request), (z,), (tangent,))


def _linear(request: Request) -> Request:
    return replace(request, bias=False, activation=None)


def _along_channels(bias: Any, request: Request) -> Any:
    """A bias that adds to a result."""
    return bias.reshape(-1, *(1,) * request.problem.rank) if request.layout == "channels_first" else bias


def _activated(request: Request, z: Any) -> Any:
    """The activation as JAX has it, with its derivatives, half types in float32."""
    if request.activation is None:
        return z
    return _ACTIVATIONS[request.activation](z.astype(DTYPES[request.dtype].accumulator)).astype(z.dtype)


ad.defbilinear(_primitive, _transposed(0), _transposed(1))
ad.primitive_jvps[_primitive] = _forward  # with a bias and an activation, which is then linear in neither


# -- vmap -------------------------------------------------------------------------------------------------


def _mapped(args: Sequence[Any], dims: Sequence[Any], *, request: Request, algorithm: str) -> Any:
    """One call for all of a mapped axis.

    If one operand is mapped, so is the result, and these two have an extent in common that the other operand
    has not: n, c or k becomes so many times as long. If both are, there are so many times as many groups.
    """
    problem, roles, bias = request.problem, ROLES[request.op], args[2:]
    size = next(array.shape[dim] for array, dim in zip(args, dims, strict=True) if dim is not None)
    if size == 0:
        return jnp.zeros((0, *request.shapes[roles[2]]), numpy_dtype(request.dtype)), 0
    if bias and dims[1] is None and dims[2] is not None:
        # Filters for all are worth more than a bias that is fused.
        def apart(a: Any, b: Any, bias: Any) -> Any:
            z = conv(a, b, request=_linear(request), algorithm=algorithm)
            return _activated(request, z + _along_channels(bias, request))

        return jax.vmap(apart, dims)(*args), 0
    if dims[0] is not None and dims[1] is not None:
        longer = dict(x="c", w="k", y="k")
        grown = {name: getattr(problem, name) * size for name in ("c", "k", "groups")}
    else:
        mapped = roles[0 if dims[1] is None else 1]
        extent = next(each for each in _EXTENTS[mapped] if each in _EXTENTS[roles[2]])
        longer = {mapped: extent, roles[2]: extent}
        grown = {extent: getattr(problem, extent) * size}

    def place(role: str) -> tuple[int, int]:
        """The axis of an array's longer extent, and into how many parts it is divided."""
        first = longer[role] == _EXTENTS[role][0]
        whole = longer[role] == "n" or role + longer[role] == "wc"
        channels = 1 if request.layout == "channels_first" else problem.rank + 1
        return 0 if first else channels, 1 if whole else problem.groups

    operands = [
        _laid_in(array, dim, size, *place(role)) if role in longer else array
        for role, array, dim in zip(roles[:2], args, dims, strict=False)
    ]
    if bias and dims[1] is not None:
        bias = (_laid_in(bias[0], dims[2], size, 0, problem.groups),)
    request = replace(request, problem=replace(problem, **grown))
    result = conv(*operands, *bias, request=request, algorithm=algorithm)
    return _taken_out(result, size, *place(roles[2])), 0


def _laid_in(array: Any, dim: int | None, size: int, axis: int, parts: int) -> Any:
    """A mapped axis made the outer one within each part of another axis."""
    array = jnp.broadcast_to(array, (size, *array.shape)) if dim is None else jnp.moveaxis(array, dim, 0)
    before, extent, after = array.shape[1 : axis + 1], array.shape[axis + 1], array.shape[axis + 2 :]
    array = jnp.moveaxis(array.reshape(size, *before, parts, extent // parts, *after), 0, axis + 1)
    return array.reshape(*before, size * extent, *after)


def _taken_out(array: Any, size: int, axis: int, parts: int) -> Any:
    """The inverse: the mapped axis is the first."""
    before, extent, after = array.shape[:axis], array.shape[axis] // size, array.shape[axis + 1 :]
    array = jnp.moveaxis(array.reshape(*before, parts, size, extent // parts, *after), axis + 1, 0)
    return array.reshape(size, *before, extent, *after)


batching.primitive_batchers[_primitive] = _mapped
