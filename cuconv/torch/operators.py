"""The convolution, the transposed one and the gradient in w, as PyTorch's operators, and their derivatives.

Each is linear in either of its two tensors, and its derivatives are made of the other two, so that there are
derivatives of any order, backward and forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd as _below_autograd
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from .. import api
from ..problem import ConvProblem
from .tensors import check, kind_of, result, written

# The geometry of an operator is stride, padding, dilation, groups, padding_mode, and padding has two numbers
# per axis, before and after. The transposed one takes the padding of the convolution that is transposed.


def _options(stride: Any, padding: Any, dilation: Any, groups: int, mode: str) -> dict[str, Any]:
    """A geometry as cuconv's functions take it."""
    before, after = padding[::2], padding[1::2]
    pairs = before if before == after else tuple(zip(before, after, strict=True))
    return dict(stride=stride, padding=pairs, dilation=dilation, groups=groups, padding_mode=mode)


@lru_cache(maxsize=4096)
def _shape_and_options(
    transposed: bool, x: Any, w: Any, bias: Any,
    stride: Any, padding: Any, dilation: Any, groups: int, mode: str,
) -> tuple[tuple[int, ...], dict[str, Any]]:  # fmt: skip
    """The result's shape and cuconv's options, for tensors of these kinds. Raises if they do not fit."""
    check(x, weight=w, bias=bias)
    options, names = _options(stride, padding, dilation, groups, mode), ("input", "weight")
    if transposed:
        shape = ConvProblem.transposed(x[0], w[0], **options, names=names).x_shape()
    else:
        shape = ConvProblem.from_shapes(x[0], w[0], **options, names=names).y_shape()
    if bias and bias[0] != shape[1:2]:
        raise ValueError(
            f"bias must have shape {shape[1:2]}, one per channel of the result, got {tuple(bias[0])}"
        )
    return shape, options


def _checked(
    transposed: bool, x: Tensor, w: Tensor, bias: Tensor | None,
    stride: Any, padding: Any, dilation: Any, groups: int, mode: str,
) -> tuple[tuple[int, ...], dict[str, Any]]:  # fmt: skip
    """The same of tensors; looked up where there were such before."""
    return _shape_and_options(
        transposed, kind_of(x), kind_of(w), kind_of(bias),
        tuple(stride), tuple(padding), tuple(dilation), groups, mode,
    )  # fmt: skip


def _shape(transposed: bool, x: Tensor, w: Tensor, bias: Tensor | None, *geometry: Any) -> Sequence[Any]:
    """The result's shape, where the tensors' shapes may have symbols for numbers that are not known yet."""
    if not any(isinstance(extent, torch.SymInt) for extent in (*x.shape, *w.shape)):
        return _checked(transposed, x, w, bias, *geometry)[0]
    check(kind_of(x), weight=kind_of(w), bias=kind_of(bias))
    stride, padding, dilation, groups, _ = geometry
    axes = zip(x.shape[2:], w.shape[2:], stride, padding[::2], padding[1::2], dilation, strict=True)
    if transposed:
        extents = [(p - 1) * s - a - b + d * (r - 1) + 1 for p, r, s, a, b, d in axes]
        return (x.shape[0], w.shape[1] * groups, *extents)
    extents = [(h + a + b - d * (r - 1) - 1) // s + 1 for h, r, s, a, b, d in axes]
    return (x.shape[0], w.shape[0], *extents)


_library = torch.library.Library("cuconv", "DEF")
_GEOMETRY = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, str padding_mode"
_library.define(f"conv(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor")
_library.define(f"conv_transpose(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor")
_library.define(f"conv_weight_grad(Tensor input, Tensor grad, SymInt[] kernel, {_GEOMETRY}) -> Tensor")
conv, conv_transpose, conv_weight_grad = (
    getattr(torch.ops.cuconv, name).default for name in ("conv", "conv_transpose", "conv_weight_grad")
)


def _kernels(transposed: bool) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """What `conv` or `conv_transpose` does, with data and without: then it only makes a tensor."""
    function = api.conv_transpose if transposed else api.conv

    def run(x: Tensor, w: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        shape, options = _checked(transposed, x, w, bias, *geometry)
        return written(function, result(shape, x, w), x, w, bias, **options)

    def fake(x: Tensor, w: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        return result(_shape(transposed, x, w, bias, *geometry), x, w)

    return run, fake


def _run_weight_grad(x: Tensor, dy: Tensor, kernel: Sequence[int], *geometry: Any) -> Tensor:
    dw = _fake_weight_grad(x, dy, kernel, *geometry)
    return written(api.conv_weight_grad, dw, x, dy, weight_shape=dw.shape, **_options(*geometry))


def _fake_weight_grad(x: Tensor, dy: Tensor, kernel: Sequence[Any], *geometry: Any) -> Tensor:
    check(kind_of(x), grad=kind_of(dy))
    groups = geometry[3]
    return result((dy.shape[1], x.shape[1] // groups, *kernel), x, dy)


# <dy, conv(x, w)> is linear in each of the three: each operator is its gradient in one of them, given the
# others, so that all derivatives are operators again. Gradients of complex tensors are the adjoint maps.


def _input_grad(dy: Tensor, w: Tensor, extents: Sequence[int], *geometry: Any) -> Tensor:
    """The gradient of conv in x, of these extents: padding that no window reaches is left out."""
    stride, padding, dilation, groups, mode = geometry
    reached: list[Any] = []
    for h, p, r, s, a, d in zip(
        extents, dy.shape[2:], w.shape[2:], stride, padding[::2], dilation, strict=True
    ):
        reached += [a, (p - 1) * s + d * (r - 1) + 1 - h - a]
    return conv_transpose(dy, w.conj(), None, stride, reached, dilation, groups, mode)


def _bias_grad(dy: Tensor) -> Tensor:
    return dy.sum((0, *range(2, dy.ndim)))


def _grads_of_conv(needs: Sequence[bool], dy: Tensor, x: Tensor, w: Tensor, *geometry: Any) -> Any:
    return (
        _input_grad(dy, w, x.shape[2:], *geometry) if needs[0] else None,
        conv_weight_grad(x, dy, w.shape[2:], *geometry) if needs[1] else None,
        _bias_grad(dy) if needs[2] else None,
    )


def _grads_of_conv_transpose(needs: Sequence[bool], dy: Tensor, x: Tensor, w: Tensor, *geometry: Any) -> Any:
    return (
        conv(dy, w.conj(), None, *geometry) if needs[0] else None,
        conv_weight_grad(dy, x, w.shape[2:], *geometry).conj() if needs[1] else None,
        _bias_grad(dy) if needs[2] else None,
    )


def _grads_of_weight_grad(needs: Sequence[bool], dw: Tensor, x: Tensor, dy: Tensor, *geometry: Any) -> Any:
    return (
        _input_grad(dy, dw, x.shape[2:], *geometry) if needs[0] else None,
        conv(x, dw, None, *geometry) if needs[1] else None,
        None,
    )


def _under_autograd(op: Any, gradients: Callable[..., Any]) -> Callable[..., Tensor]:
    """An operator with its derivatives, whose `gradients` are those of its first three arguments.

    `torch.library.register_autograd` would be less, but has no forward derivatives (torch.func.jvp takes them
    for zero), raises under torch.func.grad, and adds twice the time to a call.
    """

    class Function(torch.autograd.function._SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, a: Tensor, b: Tensor, third: Any, *geometry: Any) -> Tensor:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(a, b)
            ctx.save_for_forward(a, b)
            ctx.kernel = None if isinstance(third, Tensor) else third
            ctx.geometry = geometry
            # Both were turned off here, but transforms that are further out, as in hessian(), may need them.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), _below_autograd():
                return op(a, b, third, *geometry)

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None) -> Any:
            rest = (None,) * len(ctx.geometry)
            if grad is None:
                return (None, None, None, *rest)
            return (*gradients(ctx.needs_input_grad, grad, *ctx.saved_tensors, *ctx.geometry), *rest)

        @staticmethod
        def jvp(ctx: Any, da: Tensor | None, db: Tensor | None, bias: Tensor | None, *_: Any) -> Tensor:
            a, b = ctx.saved_tensors
            third = ctx.kernel if bias is None else bias
            if db is None:
                return op(torch.zeros_like(a) if da is None else da, b, third, *ctx.geometry)
            tangent = op(a, db, third, *ctx.geometry)
            return tangent if da is None else tangent + op(da, b, ctx.kernel, *ctx.geometry)

    def call(*arguments: Any) -> Tensor:
        if torch.is_grad_enabled() or forward_ad._current_level >= 0:
            with enable_single_level_autograd_function():
                return Function.apply(*arguments)
        with _below_autograd():
            return op(*arguments)

    return call


def _stacked(tensor: Tensor, dim: int | None, axis: int, size: int) -> Tensor:
    """Tensors that are mapped over, one after another along an axis of each."""
    if dim is None:
        extents = [-1] * tensor.ndim
        tensor = tensor.unsqueeze(axis).expand(*extents[:axis], size, *extents[axis:])
    else:
        tensor = tensor.movedim(dim, axis)
    return tensor.flatten(axis, axis + 1)


def _mapped_conv(op: Any) -> Callable[..., tuple[Tensor, int]]:
    """Over inputs only, a larger batch; otherwise each has groups of its own."""

    def mapped(
        info: Any, dims: Any, x: Tensor, w: Tensor, bias: Tensor | None,
        stride: Any, padding: Any, dilation: Any, groups: int, mode: str,
    ) -> tuple[Tensor, int]:  # fmt: skip
        size = info.batch_size
        if dims[1] is None and dims[2] is None:
            y = op(_stacked(x, dims[0], 0, size), w, bias, stride, padding, dilation, groups, mode)
            return y.unflatten(0, (size, y.shape[0] // max(size, 1))), 0
        x, w = _stacked(x, dims[0], 1, size), _stacked(w, dims[1], 0, size)
        if bias is not None:
            bias = _stacked(bias, dims[2], 0, size)
        y = op(x, w, bias, stride, padding, dilation, groups * size, mode)
        return y.unflatten(1, (size, y.shape[1] // size)), 1

    return mapped


def _mapped_weight_grad(
    info: Any, dims: Any, x: Tensor, dy: Tensor, kernel: Any,
    stride: Any, padding: Any, dilation: Any, groups: int, mode: str,
) -> tuple[Tensor, int]:  # fmt: skip
    size = info.batch_size
    x, dy = _stacked(x, dims[0], 1, size), _stacked(dy, dims[1], 1, size)
    dw = conv_weight_grad(x, dy, kernel, stride, padding, dilation, groups * size, mode)
    return dw.unflatten(0, (size, dw.shape[0] // size)), 0


def _register(op: Any, run: Any, fake: Any, gradients: Any, mapped: Any) -> None:
    _library.impl(op, run, "CompositeExplicitAutograd")
    _library.impl(op, _under_autograd(op, gradients), "Autograd")
    torch.library.register_fake(op, fake, lib=_library)
    torch.library.register_vmap(op, mapped, lib=_library)


_register(conv, *_kernels(False), _grads_of_conv, _mapped_conv(conv))
_register(conv_transpose, *_kernels(True), _grads_of_conv_transpose, _mapped_conv(conv_transpose))
_register(conv_weight_grad, _run_weight_grad, _fake_weight_grad, _grads_of_weight_grad, _mapped_weight_grad)
