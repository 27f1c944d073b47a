"""torch.nn's convolutions computed by cuconv, and what puts them into a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .functions import convolve, convolve_transposed

# Not traced into, like what torch.nn's own modules do.
torch.fx.wrap("convolve")
torch.fx.wrap("convolve_transposed")


class _Conv:
    """What turns PyTorch's modules into ours: they keep their parameters, options and all else."""

    def forward(self: Any, input: Tensor) -> Tensor:
        """Convolve an input with the module's weight and bias.

        Parameters
        ----------
        input : Tensor
            ``(N, C, *spatial)``, or without N.

        Returns
        -------
        y : Tensor
            ``(N, K, *spatial)``, or without N where the input is.
        """
        return convolve(
            len(self.kernel_size), input, self.weight, self.bias,
            self.stride, self.padding, self.dilation, self.groups, self.padding_mode,
        )  # fmt: skip


class _ConvTranspose:
    """The same for the transposed ones."""

    def forward(self: Any, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Convolve an input transposed, with the module's weight and bias.

        Parameters
        ----------
        input : Tensor
            ``(N, K, *spatial)``, or without N.
        output_size : sequence of ints, optional
            The extents of the result, in place of output_padding. The batch and the channels may stand
            before them.

        Returns
        -------
        y : Tensor
            ``(N, C, *spatial)``, or without N where the input is.
        """
        rank = len(self.kernel_size)
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, rank, self.dilation
        )
        return convolve_transposed(
            rank, input, self.weight, self.bias,
            self.stride, self.padding, output_padding, self.groups, self.dilation,
        )  # fmt: skip


_CONV = """`torch.nn.Conv{rank}d`, computed by cuconv.

    A subclass of it, with its parameters, options and state dict, that computes by `conv{rank}d`.

    Parameters
    ----------
    in_channels, out_channels : int
        The channels of the input and of the result.
    kernel_size : int or tuple of ints
        The extents of the filters.
    stride : int or tuple of ints, optional
        By default 1.
    padding : int, tuple of ints, or str, optional
        How many cells are added on either side, by default 0; "valid", none; or "same", for stride
        1, as many as give the result the input's extents.
    dilation : int or tuple of ints, optional
        By default 1.
    groups : int, optional
        Into how many groups channels and filters are divided, by default 1.
    bias : bool, optional
        Whether the module has a bias, by default True.
    padding_mode : {{"zeros", "reflect", "replicate", "circular"}}, optional
        What the padding holds, by default zeros.
    device, dtype : optional
        Of the parameters.

    Raises
    ------
    ValueError
        For options that do not fit together, and when called for shapes that do not fit.
    TypeError
        When called, for dtypes and devices that are not taken, and for what is no tensor.

    See Also
    --------
    conv{rank}d : The function: what is computed, and what differs from PyTorch's.
    replace_convs : Turns the modules of a model into these.

    Notes
    -----
    Padding is part of the convolution, in any padding mode. It may be wider than the input is; in
    `torch.nn.Conv{rank}d` [1]_ it may not be for "reflect" and "circular".

    References
    ----------
    .. [1] PyTorch 2.13, `torch.nn.Conv{rank}d`.

    Examples
    --------
    >>> import torch
    >>> import cuconv.torch
    >>> module = cuconv.torch.Conv{rank}d(3, 4, 5, padding=2, padding_mode="reflect")
    >>> module(torch.ones(2, 3{eights})).shape
    torch.Size([2, 4{eights}])
    """

_CONV_TRANSPOSE = """`torch.nn.ConvTranspose{rank}d`, computed by cuconv.

    A subclass of it, with its parameters, options and state dict, that computes by
    `conv_transpose{rank}d`.

    Parameters
    ----------
    in_channels, out_channels : int
        The channels of the input and of the result.
    kernel_size : int or tuple of ints
        The extents of the filters.
    stride : int or tuple of ints, optional
        By default 1. The result is about so many times as large as the input.
    padding : int or tuple of ints, optional
        How many cells are cut off on either side of the result, by default 0.
    output_padding : int or tuple of ints, optional
        How many cells more the result has at the far end, by default 0.
    groups : int, optional
        Into how many groups channels are divided, by default 1.
    bias : bool, optional
        Whether the module has a bias, by default True.
    dilation : int or tuple of ints, optional
        By default 1.
    padding_mode : {{"zeros"}}, optional
        There is no other, as in PyTorch.
    device, dtype : optional
        Of the parameters.

    Raises
    ------
    ValueError
        For options that do not fit together, and when called for shapes that do not fit.
    TypeError
        When called, for dtypes and devices that are not taken, and for what is no tensor.

    See Also
    --------
    conv_transpose{rank}d : The function: what is computed, and what differs from PyTorch's.
    replace_convs : Turns the modules of a model into these.

    Examples
    --------
    >>> import torch
    >>> import cuconv.torch
    >>> module = cuconv.torch.ConvTranspose{rank}d(4, 3, 2, stride=2)
    >>> module(torch.ones(2, 4{eights})).shape
    torch.Size([2, 3{sixteens}])
    """


def _written(text: str, rank: int) -> str:
    """One of the two docstrings, for so many spatial axes."""
    return text.format(rank=rank, eights=", 8" * rank, sixteens=", 16" * rank)


class Conv1d(_Conv, torch.nn.Conv1d):
    __doc__ = _written(_CONV, 1)


class Conv2d(_Conv, torch.nn.Conv2d):
    __doc__ = _written(_CONV, 2)


class Conv3d(_Conv, torch.nn.Conv3d):
    __doc__ = _written(_CONV, 3)


class ConvTranspose1d(_ConvTranspose, torch.nn.ConvTranspose1d):
    __doc__ = _written(_CONV_TRANSPOSE, 1)


class ConvTranspose2d(_ConvTranspose, torch.nn.ConvTranspose2d):
    __doc__ = _written(_CONV_TRANSPOSE, 2)


class ConvTranspose3d(_ConvTranspose, torch.nn.ConvTranspose3d):
    __doc__ = _written(_CONV_TRANSPOSE, 3)


_OURS = {
    getattr(torch.nn, ours.__name__): ours
    for ours in (Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
}


def replace_convs(model: Any) -> Any:
    """Have cuconv compute the convolutions of a model, in place.

    Every module in it, itself included, whose type is `torch.nn.Conv1d`, `Conv2d`, `Conv3d`,
    `ConvTranspose1d`, `ConvTranspose2d` or `ConvTranspose3d` changes its class to that of the same
    name here. So it stays the same object, with its parameters, hooks and mode, wherever it is
    used.

    Parameters
    ----------
    model : torch.nn.Module
        Any module: a network, or a single layer.

    Returns
    -------
    model : torch.nn.Module
        The same object.

    Raises
    ------
    TypeError
        Unless model is a `torch.nn.Module`.

    Notes
    -----
    Subclasses of these types are left alone, because it is not known what they change. Lazy, quantized
    and parametrized modules are such subclasses.

    Examples
    --------
    >>> import torch
    >>> import cuconv.torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU())
    >>> type(cuconv.torch.replace_convs(model)[0]).__module__
    'cuconv.torch.modules'
    >>> model(torch.ones(1, 1, 8, 8)).shape
    torch.Size([1, 8, 6, 6])
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__qualname__}")
    for module in model.modules():
        module.__class__ = _OURS.get(type(module), type(module))
    return model
