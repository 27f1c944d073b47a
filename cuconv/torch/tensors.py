"""Tensors as arrays on their memory; memory, stream and device of PyTorch's for what cuconv does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from ..arrays import numpy_dtype
from ..cuda import jit
from ..dtypes import DTYPES

_DTYPES = {getattr(torch, name): numpy_dtype(name) for name in DTYPES}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_streams: dict[tuple[int, int], Any] = {}
"""PyTorch's streams as CuPy's, by device and address. They are kept: PyTorch has few, and destroys none."""


def _on_cpu(tensor: Tensor | None) -> np.ndarray | None:
    """A NumPy array on a tensor's memory, with its strides."""
    if tensor is None:
        return None
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:  # which NumPy knows by ml_dtypes only
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _on_gpu(tensor: Tensor | None) -> Any:
    """A CuPy array on a tensor's memory, with its strides; through DLPack it would take longer."""
    if tensor is None:
        return None
    dtype = _DTYPES[tensor.dtype]
    strides = [step * dtype.itemsize for step in tensor.stride()]
    return jit.require_cupy().ndarray(tuple(tensor.shape), dtype, _memory(tensor, tensor), strides)


def _memory(tensor: Tensor, owner: Any) -> Any:
    """A tensor's memory, as CuPy takes it, with what it is to keep."""
    cuda = jit.require_cupy().cuda
    memory = cuda.UnownedMemory(tensor.data_ptr(), tensor.nbytes, owner, tensor.device.index)
    return cuda.MemoryPointer(memory, 0)


@contextmanager
def _on_its_stream(device: Any) -> Iterator[None]:
    """Within it CuPy has PyTorch's current stream of a device, and memory of PyTorch's to work in."""
    cuda = jit.require_cupy().cuda
    held: list[Tensor] = []  # until all is launched; what is captured in a graph has a pool of its own

    def allocator(size: int) -> Any:
        held.append(torch.empty(size, dtype=torch.uint8, device=device))
        return _memory(held[-1], None)

    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        key = (device.index, stream.cuda_stream)
        ours = _streams.get(key) or _streams.setdefault(key, cuda.Stream.from_external(stream))
        with ours, cuda.using_allocator(allocator):
            yield


def written(function: Callable[..., Any], out: Tensor, *operands: Tensor | None, **options: Any) -> Tensor:
    """`out`, with the result of one of cuconv's functions."""
    if out.is_cuda:
        with _on_its_stream(out.device):
            function(*map(_on_gpu, operands), **options, out=_on_gpu(out))
    else:
        function(*map(_on_cpu, operands), **options, out=_on_cpu(out))
    return out


def result(shape: Sequence[int], a: Tensor, b: Tensor) -> Tensor:
    """Memory for what is made of two tensors: channels last if one of them is, as PyTorch has it."""
    format = _CHANNELS_LAST.get(len(shape))
    if format is None or not (_has_only(format, a) or _has_only(format, b)):
        format = torch.contiguous_format
    return torch.empty(shape, dtype=a.dtype, device=a.device, memory_format=format)


def _has_only(format: Any, tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=format) and not tensor.is_contiguous()


Kind = tuple[Any, Any, Any, Any]
"""A tensor's shape, dtype, device and layout: all that a call's checks are about."""


def kind_of(tensor: Tensor | None) -> Kind | None:
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device, tensor.layout)


def check(input: Any, **others: Any) -> None:
    """Raise unless tensors of these kinds are plain ones, of one dtype and on one device."""
    _, dtype, device, layout = input
    if layout is not torch.strided or device.type not in ("cpu", "cuda", "meta"):
        raise TypeError(f"input must be a dense tensor on a CPU or a CUDA GPU, got {layout} on {device}")
    if dtype not in _DTYPES:
        raise TypeError(f"input has dtype {dtype}, supported are {', '.join(map(str, _DTYPES))}")
    for name, other in others.items():
        for what, expected, came in zip(
            ("dtype", "device", "layout"), input[1:], (other or input)[1:], strict=True
        ):
            if came != expected:
                raise TypeError(f"{name} must have the {what} of input, {expected}, got {came}")
