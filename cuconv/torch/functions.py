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
        function.__doc__ = _written(text, function.__name__, rank)
    return conv, conv_transpose


_EXTENTS = {1: ("H", "R", "P"), 2: ("H, W", "R, S", "P, Q"), 3: ("D, H, W", "T, R, S", "Z, P, Q")}
"""The letters of an input, a filter and a result."""

_SIZES = {"twos": 2, "threes": 3, "eights": 8, "sixteens": 16}
"""Extents in the examples."""

_CONV = """Convolve as `torch.nn.functional.{name}` does, computed by cuconv.

    On each spatial axis, with stride s, padding a and dilation d::

        y[n, k, p] = bias[k] + sum over c, r of  input[n, c, p s - a + r d] weight[k, c, r]

        P = floor((H + 2 a - d (R - 1) - 1) / s) + 1

    where c runs over the C/groups channels of k's group, and the input has H cells, the filter R and
    the result P.

    Parameters
    ----------
    input : Tensor
        ``(N, C, {h})``, or without N: on the CPU or a CUDA GPU, of float16, bfloat16, float32,
        float64, complex64, complex128, or, without gradients, int32 or int64.
    weight : Tensor
        The filters, ``(K, C/groups, {r})``, of the input's dtype and device.
    bias : Tensor, optional
        One number for each filter, ``(K,)``, of the input's dtype and device.
    stride : int or sequence of ints, optional
        One int, or one per axis, by default 1.
    padding : int, sequence of ints, or str, optional
        How many zeros are added on either side: one int, or one per axis, by default 0; "valid",
        none; or "same", for stride 1, as many as give the result the input's extents, the odd one
        at the end.
    dilation : int or sequence of ints, optional
        One int, or one per axis, by default 1.
    groups : int, optional
        Into how many groups, by default 1, channels and filters are divided. A filter sees the
        channels of its group only.

    Returns
    -------
    y : Tensor
        ``(N, K, {p})``, or without N where the input is. Channels last where input or weight is.
{raises}
    See Also
    --------
    Conv{rank}d : The module.
    conv_transpose{rank}d : The transposed convolution.
    cuconv.conv : The same on arrays, with more kinds of padding and an activation.
{notes}
    - Negative padding crops.
    - Integers of 8 and 16 bits are an error: their sums would not fit.

    References
    ----------
    .. [1] PyTorch 2.13, `torch.nn.functional.{name}`.

    Examples
    --------
    >>> import torch
    >>> import cuconv.torch
    >>> x, weight = torch.ones(2, 3{eights}), torch.ones(4, 3{threes}, requires_grad=True)
    >>> y = cuconv.torch.{name}(x, weight, padding=1)
    >>> y.shape
    torch.Size([2, 4{eights}])
    >>> y.sum().backward()
    >>> weight.grad.shape
    torch.Size([4, 3{threes}])
    """

_CONV_TRANSPOSE = """Convolve transposed as `torch.nn.functional.{name}` does, computed by cuconv.

    On each spatial axis, with stride s, padding a and dilation d::

        y[n, c, h] = bias[c] + sum over k, r, p with p s - a + r d = h of
                               input[n, k, p] weight[k, c, r]

        H = (P - 1) s - 2 a + d (R - 1) + output_padding + 1

    where k runs over the K/groups channels of c's group, and the input has P cells, the filter R and
    the result H.

    Parameters
    ----------
    input : Tensor
        ``(N, K, {p})``, or without N: on the CPU or a CUDA GPU, of float16, bfloat16, float32,
        float64, complex64, complex128, or, without gradients, int32 or int64.
    weight : Tensor
        The filters, ``(K, C/groups, {r})``, of the input's dtype and device.
    bias : Tensor, optional
        One number for each channel of the result, ``(C,)``, of the input's dtype and device.
    stride : int or sequence of ints, optional
        One int, or one per axis, by default 1. The result is about so many times as large as the
        input.
    padding : int or sequence of ints, optional
        How many cells are cut off on either side of the result: one int, or one per axis, by
        default 0.
    output_padding : int or sequence of ints, optional
        How many cells more the result has at the far end, fewer than the stride or the dilation:
        one int, or one per axis, by default 0.
    groups : int, optional
        Into how many groups, by default 1, channels are divided. A channel of the result is made
        of the input's channels in its group only.
    dilation : int or sequence of ints, optional
        One int, or one per axis, by default 1.

    Returns
    -------
    y : Tensor
        ``(N, C, {h})``, or without N where the input is. Channels last where input or weight is.
{raises}
    See Also
    --------
    ConvTranspose{rank}d : The module.
    conv{rank}d : The convolution that is transposed.
    cuconv.conv_transpose : The same on arrays, with more kinds of padding and an activation.
{notes}
    - Negative padding adds cells.
    - Integers of 8 and 16 bits are an error: their sums would not fit.

    References
    ----------
    .. [1] PyTorch 2.13, `torch.nn.functional.{name}`.

    Examples
    --------
    >>> import torch
    >>> import cuconv.torch
    >>> x, weight = torch.ones(2, 4{eights}), torch.ones(4, 3{twos})
    >>> cuconv.torch.{name}(x, weight, stride=2).shape
    torch.Size([2, 3{sixteens}])
    """

_RAISES = """
    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and devices that are not taken, and for what is no tensor. Nothing has been
        computed then.
"""

_NOTES = """
    Notes
    -----
    There are derivatives of any order, backward and forward, and rules for `torch.func.vmap`,
    `torch.autocast` and `torch.compile`.

    What differs from PyTorch's function [1]_:

    - Results have the same bits from run to run, whatever `torch.use_deterministic_algorithms`
      says.
    - float32 keeps its accuracy on a GPU: `torch.backends.cudnn.allow_tf32` is not followed.
      CUPY_TF32=1 in the environment permits TF32."""


def _written(text: str, name: str, rank: int) -> str:
    """One of the two docstrings, for so many spatial axes."""
    h, r, p = _EXTENTS[rank]
    sizes = {word: f", {extent}" * rank for word, extent in _SIZES.items()}
    return text.format(name=name, rank=rank, h=h, r=r, p=p, raises=_RAISES, notes=_NOTES, **sizes)


conv1d, conv_transpose1d = _of_rank(1)
conv2d, conv_transpose2d = _of_rank(2)
conv3d, conv_transpose3d = _of_rank(3)
