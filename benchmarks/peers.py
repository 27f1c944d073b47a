"""The libraries that cuconv is compared with. A peer is a class with a name, and one line in PEERS.

`prepare` gets the operands as NumPy or CuPy arrays and does all conversion; only the call that it returns is
timed. It returns None where the peer cannot do the task, or would need an unreasonable amount of memory.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

import numpy as np

from cuconv.cli import timed_calls
from cuconv.cli.clock import Clock
from cuconv.cli.timed_calls import Contender, Task
from cuconv.dtypes import DTYPES
from cuconv.problem import ConvProblem

WINDOWS = 2 << 30
"""The bytes of windows beyond which the naive peer gives up."""


class Peer:
    """One way to do the same without cuconv, on the devices named."""

    name: str
    devices: tuple[str, ...] = ("cpu",)
    module: str = "numpy"

    def available(self, clock: Clock) -> bool:
        """Whether it can run here."""
        return clock.device in self.devices and importlib.util.find_spec(self.module) is not None

    def start(self, clock: Clock, threads: int) -> None:
        """Settings for the process, before the first task."""

    def prepare(self, task: Task, threads: int) -> Contender | None:
        """What to time for a task, or None."""
        raise NotImplementedError


class Torch(Peer):
    """PyTorch: oneDNN on the CPU, cuDNN on a GPU. Its tensors lie as its name says."""

    devices, module = ("cpu", "cuda"), "torch"

    def __init__(self, memory: str) -> None:
        self.name, self.memory = f"torch {memory}", memory

    def available(self, clock: Clock) -> bool:
        if not super().available(clock):
            return False
        import torch

        return clock.device == "cpu" or torch.cuda.is_available()

    def start(self, clock: Clock, threads: int) -> None:
        timed_calls.ready_torch(clock, threads)

    def prepare(self, task: Task, threads: int) -> Contender | None:
        return timed_calls.torch(task, self.memory)


class Scipy(Peer):
    """scipy.signal by FFT, whole or in overlapping parts, for one filter per channel at stride 1."""

    module = "scipy"

    def __init__(self, function: str) -> None:
        self.name, self.function = f"scipy {function}", function

    def prepare(self, task: Task, threads: int) -> Contender | None:
        import scipy.fft
        import scipy.signal

        p = task.problem
        if (
            task.op == "bgrad"
            or not _one_to_one(p)
            or {*p.stride, *p.dilation} != {1}
            or DTYPES[task.dtype].itemsize == 2
        ):
            return None
        if _crops(p) or p.padding_mode != "zeros" or DTYPES[task.dtype].kind == "i":
            return None
        function, axes = getattr(scipy.signal, self.function), tuple(range(2, 2 + p.rank))
        x, w, dy = (_channels_first(task.arrays[role], task.layout) for role in ("x", "w", "dy"))
        w, turned = w.swapaxes(0, 1), _turned(p)  # one filter per channel, the same for all images
        calls = {
            "fprop": lambda: function(_padded(np, x, p), w[turned], mode="valid", axes=axes),
            "dgrad": lambda: function(dy, _conj(w), mode="full", axes=axes)[_inside(p)],
            "wgrad": lambda: (
                function(_padded(np, _conj(x), p), dy[turned], mode="valid", axes=axes)
                .sum(axis=0, keepdims=True)
                .swapaxes(0, 1)
            ),
        }
        call = calls[task.op]

        def limited() -> Any:
            with scipy.fft.set_workers(threads):
                return call()

        return Contender(limited, lambda result: _laid_out(result, task.layout))


class Naive(Peer):
    """Windows of the input and one tensordot, which lowers to a GEMM; an einsum where channels stay apart."""

    def __init__(self, name: str, device: str, module: str) -> None:
        self.name, self.devices, self.module = name, (device,), module

    def prepare(self, task: Task, threads: int) -> Contender | None:
        p = task.problem
        if task.op == "bgrad":
            dy = _channels_first(task.arrays["dy"], task.layout)
            return Contender(lambda: dy.sum(axis=(0, *range(2, dy.ndim))))
        if not self._can(task):
            return None
        x, w, dy = (_channels_first(task.arrays[role], task.layout) for role in ("x", "w", "dy"))
        xp, ones = importlib.import_module(self.module), (1,) * p.rank

        def windows(x: Any) -> Any:
            return _windows(xp, _padded(xp, x, p), p.filter, p.stride, p.dilation)

        calls = {
            "fprop": lambda: _product(xp, task, windows(x), w),
            "dgrad": lambda: _product(
                xp, task, _windows(xp, _spread(xp, dy, p), p.filter, ones, p.dilation), _conj(w)[_turned(p)]
            ),
            "wgrad": lambda: _product(xp, task, windows(_conj(x)), dy),
        }
        return Contender(calls[task.op], lambda result: _laid_out(result, task.layout))

    def _can(self, task: Task) -> bool:
        p = task.problem
        if p.padding_mode != "zeros" or _crops(p) or not (p.groups == 1 or _one_to_one(p)):
            return False
        if self.module == "numpy" and DTYPES[task.dtype].itemsize == 2:  # NumPy has no BLAS for these
            return False
        places, channels = (p.input, p.k) if task.op == "dgrad" else (p.output, p.c)
        cells = p.n * channels * math.prod(places) * math.prod(p.filter)
        return cells * DTYPES[task.dtype].itemsize <= WINDOWS


def _product(xp: Any, task: Task, windows: Any, other: Any) -> Any:
    """The sums over taps and channels, or over places and images, of windows times the other operand."""
    rank = task.problem.rank
    places, taps = "pqo"[:rank], "rst"[:rank]
    if task.problem.groups == 1:
        left = f"nc{places}{taps}" if task.op != "dgrad" else f"nk{places}{taps}"
        right, result = {
            "fprop": (f"kc{taps}", f"nk{places}"),
            "dgrad": (f"kc{taps}", f"nc{places}"),
            "wgrad": (f"nk{places}", f"kc{taps}"),
        }[task.op]
        return _tensordot(xp, left, right, result, windows, other)
    if task.op == "wgrad":
        return xp.einsum(f"nc{places}{taps},nc{places}->c{taps}", windows, other)[:, None]
    return xp.einsum(f"nc{places}{taps},c{taps}->nc{places}", windows, other[:, 0])


def _tensordot(xp: Any, left: str, right: str, result: str, a: Any, b: Any) -> Any:
    """What einsum would give for these axes, as one matrix product."""
    shared = [letter for letter in left if letter in right]
    axes = [left.index(letter) for letter in shared], [right.index(letter) for letter in shared]
    order = [letter for letter in left + right if letter not in shared]
    return xp.tensordot(a, b, axes=axes).transpose([order.index(letter) for letter in result])


def _windows(xp: Any, x: Any, extents: Any, stride: Any, dilation: Any) -> Any:
    """The view (N, C, *places, *taps) of what each filter sees."""
    axes = list(zip(x.shape[2:], extents, stride, dilation, x.strides[2:], strict=True))
    places = [(h - d * (r - 1) - 1) // s + 1 for h, r, s, d, _ in axes]
    steps = [s * step for _, _, s, _, step in axes] + [d * step for _, _, _, d, step in axes]
    shape = (*x.shape[:2], *places, *extents)
    return xp.lib.stride_tricks.as_strided(x, shape, (*x.strides[:2], *steps))


def _spread(xp: Any, dy: Any, p: ConvProblem) -> Any:
    """dy with zeros between for the stride and around, so that its windows give dx."""
    axes = list(zip(p.input, p.reach, p.padding, p.output, p.stride, strict=True))
    spread = xp.zeros((*dy.shape[:2], *(h + reach - 1 for h, reach, *_ in axes)), dy.dtype)
    places, kept = [], []
    for h, reach, (before, _), outputs, stride in axes:
        first = reach - 1 - before
        # Outputs that see the padding alone have nothing to give.
        skipped = max(0, -(first // stride))
        last = min(outputs, (h + reach - 2 - first) // stride + 1)
        places.append(slice(first + skipped * stride, first + (last - 1) * stride + 1, stride))
        kept.append(slice(skipped, last))
    spread[(..., *places)] = dy[(..., *kept)]
    return spread


def _turned(p: ConvProblem) -> tuple[Any, ...]:
    """The index that turns filters by 180 degrees."""
    return (..., *[slice(None, None, -1)] * p.rank)


def _conj(array: Any) -> Any:
    """The complex conjugate; of real arrays not the copy that NumPy would make."""
    return array.conj() if array.dtype.kind == "c" else array


def _one_to_one(p: ConvProblem) -> bool:
    return p.groups == p.c == p.k


def _crops(p: ConvProblem) -> bool:
    return min(cells for pair in p.padding for cells in pair) < 0


def _padded(xp: Any, x: Any, p: ConvProblem) -> Any:
    return xp.pad(x, [(0, 0), (0, 0), *p.padding]) if any(map(any, p.padding)) else x


def _inside(p: ConvProblem) -> tuple[Any, ...]:
    """Where the input lies within its padding."""
    return (..., *(slice(a, a + h) for (a, _), h in zip(p.padding, p.input, strict=True)))


def _channels_first(array: Any, layout: str) -> Any:
    if layout == "channels_first":
        return array
    return array.transpose(0, array.ndim - 1, *range(1, array.ndim - 1))


def _laid_out(array: Any, layout: str) -> Any:
    return array if layout == "channels_first" else array.transpose(0, *range(2, array.ndim), 1)


PEERS: tuple[Peer, ...] = (
    Torch("channels_first"),
    Torch("channels_last"),
    Scipy("fftconvolve"),
    Scipy("oaconvolve"),
    Naive("naive", "cpu", "numpy"),
    Naive("cupy im2col", "cuda", "cupy"),
)
