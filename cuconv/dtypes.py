"""The dtypes cuconv computes in, by NumPy's names. Imports no array library."""

from __future__ import annotations

from dataclasses import dataclass

from .options import shown


@dataclass(frozen=True)
class DType:
    """What an algorithm has to know about a dtype.

    itemsize is in bytes; `accumulator` names the dtype in which products are summed before the one
    rounding to this dtype; `kind` is NumPy's letter: f real, c complex, i integer, u unsigned.
    """

    name: str
    itemsize: int
    accumulator: str
    kind: str


DTYPES = {
    dtype.name: dtype
    for dtype in (
        DType("float16", 2, "float32", "f"),
        DType("bfloat16", 2, "float32", "f"),
        DType("float32", 4, "float32", "f"),
        DType("float64", 8, "float64", "f"),
        DType("complex64", 8, "complex64", "c"),
        DType("complex128", 16, "complex128", "c"),
        DType("int32", 4, "int32", "i"),
        DType("int64", 8, "int64", "i"),
    )
}

NARROW = {
    dtype.name: dtype
    for dtype in (
        DType("int8", 1, "int32", "i"),
        DType("uint8", 1, "int32", "u"),
        DType("int16", 2, "int32", "i"),
        DType("uint16", 2, "int32", "u"),
        DType("uint32", 4, "int64", "u"),
    )
}
"""Integers that are computed with in a wider dtype only, the least of which is their accumulator."""

INTEGERS = NARROW | {dtype.name: dtype for dtype in DTYPES.values() if dtype.kind == "i"}


def described(name: str) -> DType:
    """The dtype of that name, or TypeError with the names there are."""
    if not isinstance(name, str) or name not in DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(DTYPES)}, got {shown(name)}")
    return DTYPES[name]


def holds(wide: str, dtype: str) -> bool:
    """Whether sums in an integer dtype `wide` may be made of the integers of another, or the same."""
    if dtype not in INTEGERS or wide not in INTEGERS:
        return False
    return INTEGERS[INTEGERS[dtype].accumulator].itemsize <= INTEGERS[wide].itemsize


def is_complex(name: str) -> bool:
    """Whether a dtype is one of the complex ones, whose gradients conjugate."""
    return described(name).kind == "c"
