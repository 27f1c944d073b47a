"""PyTorch's convolutions, computed by cuconv: functions, modules and their operators.

They are used like PyTorch's own::

    import cuconv.torch

    y = cuconv.torch.conv2d(x, weight, bias, stride=2, padding=1)  # as torch.nn.functional.conv2d
    cuconv.torch.replace_convs(model)  # every torch.nn.Conv2d in it, and so on

CPU tensors are computed as NumPy arrays, CUDA tensors as CuPy arrays, both on the tensors' own
memory.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(f"cuconv.torch needs PyTorch ({error}): pip install torch") from error

from .functions import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from .modules import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    replace_convs,
)

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "replace_convs",
]
