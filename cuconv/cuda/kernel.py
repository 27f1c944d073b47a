"""What is launched: a kernel instance, and one launch of it, as plain data.

Every kernel has one signature, `(const void* a, const void* b, const void* bias, void* out, Params)`, so
that a launch is two inputs, a bias, a result and one struct, and whoever runs it (CuPy, or the tests'
emulator) needs to know nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dtypes import DTYPES

DIVISOR = np.dtype([("divisor", np.int64), ("multiplier", np.uint64), ("shift", np.int64)])
_EXTENTS = ("input", "filter", "output", "stride", "dilation", "padding", "period", "shift")
AXIS = np.dtype([*((name, np.int64) for name in _EXTENTS), ("by_stride", DIVISOR)])
PARAMS = np.dtype(
    [
        ("batch", np.int64),
        ("groups", np.int64),
        ("channels", np.int64),
        ("filters", np.int64),
        ("axis", AXIS, 3),
        ("a", np.int64, 5),
        ("b", np.int64, 5),
        ("out", np.int64, 5),
        ("b_start", np.int64),
        ("out_start", np.int64),
        ("bias", np.int64),
        ("items", np.int64),
        ("digit", DIVISOR, 6),
        ("group", DIVISOR),
        ("pixel", DIVISOR, 3),
        ("mode", np.int64),
        ("activation", np.int64),
        ("accumulate", np.int64),
        ("conjugate", np.int64),
        ("partial", np.int64),
        ("splits", np.int64),
        ("chunk", np.int64),
        ("lanes", np.int64),
    ]
)
"""The struct `Params` of `cuda_src/params.cuh`, field by field. All fields are 64 bits wide."""

VECTOR = 16
"""Bytes that a thread reads or writes at once at the most."""

Strides = tuple[int, tuple[int, ...]]
"""Where an array's elements are: its first one's offset from the pointer, and strides, in elements."""


@dataclass(frozen=True)
class Kernel:
    """An instance of a template in `cuda_src`: its file, its name, its arguments, its threads per block.

    Registers are given out so that so many `residents`, blocks on one multiprocessor, have enough. Where the
    number is left out ptxas spills some of them for the sake of more blocks. `newest` is the last compute
    capability, times ten, whose compiler has registers enough for it.
    """

    file: str
    template: str
    arguments: tuple[str | int, ...]
    threads: int
    residents: int = 1
    newest: int | None = None

    @property
    def name(self) -> str:
        """The instance's own name, a C identifier."""
        words = [str(argument) for argument in self.arguments]
        return "_".join([self.template, *(re.sub(r"\W+", "_", word).strip("_") for word in words)])

    def stub(self, stamp: str) -> str:
        """The source text that instantiates the kernel; `stamp` stands for the state of the headers."""
        arguments = ", ".join(map(str, self.arguments))
        return (
            f"// headers {stamp}\n"
            f'#include "{self.file}"\n'
            f'extern "C" __global__ void __launch_bounds__({self.threads}, {self.residents})\n'
            f"{self.name}(const void* a, const void* b, const void* bias, void* out,\n"
            f"    const __grid_constant__ Params params) {{\n"
            f"  {self.template}<{arguments}>(a, b, bias, out, params);\n"
            f"}}\n"
        )


@dataclass(frozen=True)
class Scratch:
    """An array of a plan's workspace, `offset` bytes from its start, in C order or with its channels last."""

    offset: int
    shape: tuple[int, ...]
    dtype: str
    channels_last: bool = False

    @property
    def strides(self) -> tuple[int, ...]:
        """In elements, of the axes as the shape has them; 0 for one of a single cell."""
        axes = [*range(len(self.shape))]
        if self.channels_last:
            axes.append(axes.pop(-4))
        strides, step = [0] * len(axes), 1
        for axis in reversed(axes):
            strides[axis] = step if self.shape[axis] > 1 else 0
            step *= self.shape[axis]
        return tuple(strides)

    @property
    def end(self) -> int:
        """Where the next array may start."""
        return self.offset + math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Launch:
    """One kernel over `blocks` blocks. a, b and out name an operand by its role, or lie in the workspace.

    `fields` are the members of Params that are known before the arrays are; `axes` is the order in which
    the kernel takes the three spatial axes. `vectors` are the slots of inputs that have to be readable in
    vectors of channels: see `strides.not_in_vectors`; `reals` those of complex ones that are read as real
    ones of twice the channels, and `exchanged` those whose first two axes change places.
    """

    kernel: Kernel
    blocks: int
    a: str | Scratch | None
    b: str | Scratch | None
    out: str | Scratch
    fields: tuple[tuple[str, Any], ...]
    axes: tuple[int, int, int] = (0, 1, 2)
    shared_bytes: int = 0
    vectors: tuple[str, ...] = ()
    reals: tuple[str, ...] = ()
    exchanged: tuple[str, ...] = ()

    def params(self, strides_by_role: Mapping[str, Strides]) -> np.ndarray:
        """The struct Params, given where each role's canonical view has its elements.

        Raises ValueError where a member needs more than 64 bits.
        """
        record = np.zeros(1, PARAMS)
        for name, value in self.fields:
            nested = PARAMS[name].subdtype
            try:
                record[name] = np.array([*value], nested[0]) if nested else value
            except OverflowError:
                raise ValueError(f"{name} of {self.kernel.template} must fit 64 bits, got {value}") from None
        for slot in ("a", "b", "out"):
            operand = getattr(self, slot)
            if operand is None:
                continue
            start, strides = strides_by_role[operand] if isinstance(operand, str) else (0, operand.strides)
            if len(strides) >= 5:
                strides = (*strides[-5:-3], *(strides[axis - 3] for axis in self.axes))
            if slot in self.reals:
                start, strides = 2 * start, tuple(2 * step for step in strides)
                strides = (strides[0], 1, *strides[2:])
            if slot in self.exchanged:
                strides = (strides[1], strides[0], *strides[2:])
            record[slot][0, : len(strides)] = strides
            if start:
                record[slot + "_start"] = start
        if "bias" in strides_by_role:
            _, (record["bias"],) = strides_by_role["bias"]
        return record

    def __str__(self) -> str:
        def named(operand: str | Scratch | None) -> str:
            return operand if isinstance(operand, str) else "workspace" if operand else ""

        inputs = ", ".join(filter(None, (named(self.a), named(self.b))))
        blocks = "1 block" if self.blocks == 1 else f"{self.blocks:,} blocks"
        size = f"{blocks} of {self.kernel.threads} threads"
        return f"{self.kernel.name}, {size}: {inputs} -> {named(self.out)}"
