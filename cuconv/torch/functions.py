"""conv1d, conv2d, conv3d and the transposed ones, with the signatures of torch.nn.functional."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..options import LIMIT, integer, one_of, per_axis, shown
from . import operators


def _call(
    op: Any, rank: int, input: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Any, padding: Sequence[Any], dilation: Any, groups: Any, mode: str = "zeros",
) -> Tensor:  # fmt: skip
    """An operator on what may have no batch, under what may be autocast."""
    if type(groups) is not int:
        groups = integer("groups", groups, 1)
    device = input.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        input, weight, bias = (_cast(tensor, dtype) for tensor in (input, weight, bias))
    if input.ndim == rank + 1:
        return op(input[None], weight, bias, stride, padding, dilation, groups, mode)[0]
    return op(input, weight, bias, stride, padding, dilation, groups, mode)


def _cast(tensor: Tensor | None, dtype: Any) -> Tensor | None:
    """A tensor as autocast has it for PyTorch's own convolutions."""
    if tensor is None or not tensor.is_floating_point() or tensor.dtype is torch.float64:
        return tensor
    return tensor.to(dtype)


def _check_tensors(rank: int, input: Any, weight: Any, bias: Any) -> None:
    for name, value in (("input", input), ("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor) and (name != "bias" or value is not None):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__qualname__}")
    if weight.ndim != rank + 2:
        raise ValueError(
            f"weight must have {rank + 2} axes ({rank} of them spatial), got shape {tuple(weight.shape)}"
        )


def _ints(name: str, value: Any, rank: int, minimum: int = 1) -> Sequence[int]:
    """One int per axis, from one for all of them or one for each."""
    if type(value) is int:
        return [value] * rank
    if type(value) is tuple or type(value) is list:
        if len(value) == rank and all(type(each) is int for each in value):
            return value
        if len(value) == 1:
            value = value[0]
    return per_axis(name, value, rank, minimum)


def convolve(
    rank: int, input: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Any, padding: Any, dilation: Any, groups: Any, padding_mode: str = "zeros",
) -> Tensor:  # fmt: skip
    _check_tensors(rank, input, weight, bias)
    stride, dilation = _ints("stride", stride, rank), _ints("dilation", dilation, rank)
    pads: list[Any] = []
    if isinstance(padding, str):
        if one_of("padding", padding, ("valid", "same")) == "same" and any(step != 1 for step in stride):
            raise ValueError(f"padding='same' is for stride 1, as in PyTorch, got stride {shown(stride)}")
        for taps, d in zip(weight.shape[2:], dilation, strict=True):
            total = d * (taps - 1) if padding == "same" else 0
            pads += [total // 2, total - total // 2]
    else:
        for each in _ints("padding", padding, rank, -LIMIT):
            pads += [each, each]
    return _call(operators.conv, rank, input, weight, bias, stride, pads, dilation, groups, padding_mode)


def convolve_transposed(
    rank: int, input: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any,
) -> Tensor:  # fmt: skip
    _check_tensors(rank, input, weight, bias)
    stride, dilation = _ints("stride", stride, rank), _ints("dilation", dilation, rank)
    extra = _ints("output_padding", output_padding, rank, 0)
    pads: list[Any] = []
    for pad, more, s, d in zip(_ints("padding", padding, rank, -LIMIT), extra, stride, dilation, strict=True):
        if not 0 <= more < max(s, d):
            raise ValueError(
                "output_padding must be at least 0 and below the stride or the dilation, here "
                f"{max(s, d)}, got {shown(output_padding)}"
            )
        pads += [pad, pad - more]
    return _call(operators.conv_transpose, rank, input, weight, bias, stride, pads, dilation, groups)


def _of_rank(rank: int) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The two functions for so many spatial axes."""

    def conv(
        input: Tensor, weight: Tensor, bias: Tensor | None = None,
        stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        return convolve(rank, input, weight, bias, stride, padding, dilation, groups)

    def conv_transpose(
        input: Tensor, weight: Tensor, bias: Tensor | None = None,
        stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
    ) -> Tensor:  # fmt: skip
        return convolve_transposed(
            rank, input, weight, bias, stride, padding, output_padding, groups, dilation
        )

    for function, text in ((conv, _CONV), (conv_transpose, _CONV_TRANSPOSE)):
        function.__name__ = function.__qualname__ = f"{function.__name__}{rank}d"
        function.__doc__ = f"`torch.nn.functional.{function.__name__}`, computed by cuconv.{text}"
    return conv, conv_transpose


_SHARED = """
    Tensors are on the CPU or on a CUDA GPU, all of one dtype: float16, bfloat16, float32, float64, complex64,
    complex128, or, without gradients, int32 or int64. The result is channels last where input or weight is.
    There are derivatives of any order, backward and forward, and rules for vmap, autocast and torch.compile.

    Raises ValueError for shapes and values, TypeError for dtypes, devices and what is no tensor, before any
    work. Source: torch.nn.functional.
    """

_CONV = (
    """

        y[n, k, p] = bias[k] + sum over c, r of  input[n, c, p s - a + r d] weight[k, c, r]

    with stride s, padding a, dilation d and c over the C/groups channels of k's group: see `cuconv.conv`.

    input    (N, C, *extents), or without N
    weight   (K, C/groups, *kernel)
    bias     (K,) or None
    stride, dilation, padding    one int, or one per axis; padding may be "valid", or "same" for stride 1, and
             negative padding crops
    returns  (N, K, *output), with floor((H + 2 a - d (R - 1) - 1) / s) + 1 cells for H
"""
    + _SHARED
)

_CONV_TRANSPOSE = (
    """

        y[n, c, h] = bias[c] + sum over k, r, p with p s - a + r d = h of  input[n, k, p] weight[k, c, r]

    with stride s, padding a and dilation d: see `cuconv.conv_transpose`.

    input    (N, K, *extents), or without N
    weight   (K, C/groups, *kernel)
    bias     (C,) or None
    stride, dilation, padding    one int, or one per axis; negative padding adds cells
    output_padding    how many cells more at the far end, fewer than the stride or the dilation
    returns  (N, C, *output), with (P - 1) s - 2 a + d (R - 1) + output_padding + 1 cells for P
"""
    + _SHARED
)

conv1d, conv_transpose1d = _of_rank(1)
conv2d, conv_transpose2d = _of_rank(2)
conv3d, conv_transpose3d = _of_rank(3)
