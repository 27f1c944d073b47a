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
        return convolve(
            len(self.kernel_size), input, self.weight, self.bias,
            self.stride, self.padding, self.dilation, self.groups, self.padding_mode,
        )  # fmt: skip


class _ConvTranspose:
    """The same for the transposed ones."""

    def forward(self: Any, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        rank = len(self.kernel_size)
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, rank, self.dilation
        )
        return convolve_transposed(
            rank, input, self.weight, self.bias,
            self.stride, self.padding, output_padding, self.groups, self.dilation,
        )  # fmt: skip


class Conv1d(_Conv, torch.nn.Conv1d):
    """`torch.nn.Conv1d`, computed by cuconv: `conv1d`, with any padding mode and no copy for it."""


class Conv2d(_Conv, torch.nn.Conv2d):
    """`torch.nn.Conv2d`, computed by cuconv: `conv2d`, with any padding mode and no copy for it."""


class Conv3d(_Conv, torch.nn.Conv3d):
    """`torch.nn.Conv3d`, computed by cuconv: `conv3d`, with any padding mode and no copy for it."""


class ConvTranspose1d(_ConvTranspose, torch.nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d`, computed by cuconv: `conv_transpose1d`."""


class ConvTranspose2d(_ConvTranspose, torch.nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d`, computed by cuconv: `conv_transpose2d`."""


class ConvTranspose3d(_ConvTranspose, torch.nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d`, computed by cuconv: `conv_transpose3d`."""


_OURS = {
    getattr(torch.nn, ours.__name__): ours
    for ours in (Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
}


def replace_convs(model: Any) -> Any:
    """Have cuconv compute the convolutions of a model, in place, and return the model.

    Every module in it, itself included, whose type is torch.nn.Conv1d, Conv2d, Conv3d, ConvTranspose1d,
    ConvTranspose2d or ConvTranspose3d changes its class to that of the same name here. So it stays the same
    object, with its parameters, hooks and mode, wherever it is used. Others are left alone, because it is not
    known what they change: subclasses, among them those of lazy, quantized and parametrized modules.

    Raises TypeError unless model is a torch.nn.Module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__qualname__}")
    for module in model.modules():
        module.__class__ = _OURS.get(type(module), type(module))
    return model
