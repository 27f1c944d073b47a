"""What kernels are told of a problem: the members of Params that are known before the arrays are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..problem import ConvProblem

Fields = dict[str, Any]


def divisor(number: int) -> tuple[int, int, int]:
    """Divide by multiplying: for 0 <= n < 2^63, n // number is (n * multiplier >> 64) >> shift.

    With l = ceil(log2(number)) the multiplier 2^(63 + l) / number, rounded up, has 64 bits, and its excess
    adds less than 1 / number to the quotient. Source: Granlund and Montgomery, Division by Invariant
    Integers using Multiplication (1994), section 4. For 1 the kernels do not divide.
    """
    if number <= 1:
        return (1, 0, 0)
    length = (number - 1).bit_length()
    return (number, (1 << (63 + length)) // number + 1, length - 1)


def axes(problem: ConvProblem, order: Sequence[int] = (0, 1, 2)) -> tuple[tuple[Any, ...], ...]:
    """The members of Params.axis, in the order in which a kernel takes the axes."""
    return tuple(_axis(problem, axis) for axis in order)


def _axis(problem: ConvProblem, axis: int) -> tuple[Any, ...]:
    stride, dilation = problem.stride[axis], problem.dilation[axis]
    common = math.gcd(stride, dilation)
    return (
        problem.input[axis],
        problem.filter[axis],
        problem.output[axis],
        stride,
        dilation,
        problem.padding[axis][0],
        stride // common,
        dilation // common,
        divisor(stride),
    )


_PERIODS: dict[str, Callable[[int], int]] = {
    "circular": lambda extent: extent,
    "reflect": lambda extent: max(2 * (extent - 1), 1),
    "replicate": lambda extent: 1,  # not used: nothing repeats
    "symmetric": lambda extent: 2 * extent,
}
"""After how many cells a padded axis repeats itself, by the names in problem.PADDING_MODES, all but zeros."""


def repeating_axes(problem: ConvProblem) -> tuple[object, ...]:
    """The same for the kernels of padding.cuh: the output is the padded input, the stride the period."""
    found = []
    for extent, padded, (before, _) in zip(problem.input, problem.padded, problem.padding, strict=True):
        period = _PERIODS[problem.padding_mode](extent)
        found.append((extent, 1, padded, period, 1, before, 1, 1, divisor(period)))
    return tuple(found)


def digits(fastest_first: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """The members of Params.digit, for numbers whose fastest digits have these extents."""
    padded = [*fastest_first, *(1,) * (6 - len(fastest_first))]
    return tuple(divisor(extent) for extent in padded)
