"""Checks of plain option values, and the sentences of their errors."""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, cast

LIMIT = 1 << 62
"""Every number given, and every extent that follows from some, is below this: sums of two fit 64 bits."""

_MOST_AXES = 64  # of an array, in NumPy


def shown(value: Any) -> str:
    """A value as it stands in an error's sentence: cut where it is long, and never an error itself."""
    try:
        text = repr(value)
    except Exception:  # Python writes no int of more than 4300 digits, and other objects may do as they like
        text = f"a value of type {type(value).__qualname__}"
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-40:]}"


def one_of(
    argument: str,
    value: Any,
    choices: Iterable[Any],
    elsewhere: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> Any:
    """Return `value` if it is one of `choices`; otherwise raise and name the nearest choice.

    `elsewhere` has other words for choices, in lower case: whose they are, and the choice.
    """
    choices = tuple(choices)
    if (value is None or isinstance(value, str)) and value in choices:
        return value
    expected = ", ".join(map(repr, choices))
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be one of {expected}, got {shown(value)}")
    word = value.lower()
    if word in elsewhere:
        whose, choice = elsewhere[word]
        hint = f"; {whose} {word!r} is called {choice!r} here"
    else:
        hint = _nearest(word, [choice for choice in choices if isinstance(choice, str)])
    raise ValueError(f"{argument} must be one of {expected}, got {shown(value)}{hint}")


def _nearest(word: str, choices: Iterable[str]) -> str:
    """A hint for a word that is none of the choices."""
    near = difflib.get_close_matches(word[:80], choices, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def integer(argument: str, value: Any, minimum: int | None = None) -> int:
    """Return `value` as an int; floats and strings are refused even when they look whole."""
    try:
        if _is_truth(value):  # which NumPy takes for an index in some versions, with a warning
            raise TypeError
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # which arrays of several numbers, or of no data, raise
        raise TypeError(f"{argument} must be an int, got {shown(value)}") from None
    if minimum is not None and number < minimum:
        raise ValueError(f"{argument} must be at least {minimum}, got {shown(value)}")
    if abs(number) >= LIMIT:
        raise ValueError(
            f"{argument} must be below 2^62 in magnitude, got a number of {number.bit_length()} bits"
        )
    return number


def integers(argument: str, value: Any, minimum: int | None = None) -> tuple[int, ...]:
    """Return a sequence of ints as a tuple."""
    if is_one(value):
        raise TypeError(f"{argument} must be a sequence of ints, got {shown(value)}")
    if len(getattr(value, "shape", ())) > 1:
        raise TypeError(f"{argument} must be a sequence of ints, got an array: did you mean its shape?")
    return tuple(integer(argument, item, minimum) for item in entries(argument, value))


def entries(argument: str, value: Any) -> tuple[Any, ...]:
    """The entries of a sequence, which must not be longer than an array has axes."""
    try:
        items = tuple(itertools.islice(value, _MOST_AXES + 1))
    except Exception:  # what looks like a sequence and is none, as list[int] in Python 3.10
        raise TypeError(f"{argument} must be a sequence, got {shown(value)}") from None
    if len(items) > _MOST_AXES:
        raise ValueError(f"{argument} must have {_MOST_AXES} entries at the most, got {shown(value)}")
    return items


def is_one(value: Any) -> bool:
    """Whether a value stands for itself and not for a sequence: one with an order and an end.

    So do strings, bytes, 0-d arrays, sets, dictionaries and iterators, though most of them can be iterated.
    """
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping, type)):
        return True
    ordered = hasattr(value, "__iter__") and hasattr(value, "__getitem__")
    return not ordered or getattr(value, "shape", None) == ()


def per_axis(argument: str, value: Any, rank: int, minimum: int) -> tuple[int, ...]:
    """Return one int per spatial axis, from one int for all of them or one for each."""
    if is_one(value):
        return (integer(argument, value, minimum),) * rank
    numbers = integers(argument, value, minimum)
    if len(numbers) != rank:
        raise ValueError(
            f"{argument} must be one int or {rank} of them, one per spatial axis, got {shown(value)}"
        )
    return numbers


def flag(argument: str, value: Any) -> bool:
    """Return a truth value, Python's or an array's; numbers and strings are refused, since they mislead."""
    if value is True or value is False:
        return value
    if _is_truth(value):
        return bool(value)
    raise TypeError(f"{argument} must be True or False, got {shown(value)}")


def held_by_float64(argument: str, value: Any) -> None:
    """Raise where a number, an int or a fraction, is too large for float64."""
    try:
        complex(value)
    except OverflowError:
        raise ValueError(f"{argument} must be a number that float64 holds, got {shown(value)}") from None


def _is_truth(value: Any) -> bool:
    """Whether a value is a truth value of NumPy's, or a 0-d array of one."""
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    return kind == "b" and getattr(value, "shape", None) == ()


_Function = TypeVar("_Function", bound=Callable[..., Any])


_ELSEWHERE = {
    "input": ("x", "; it is called x here"),
    "weight": ("w", "; it is called w here"),
    "mode": ("padding", "; how much is computed is said by padding='valid', 'same' or 'full'"),
    "activation": (
        "dy",
        "; dy is the gradient before the activation: activation_backward makes it of that after",
    ),
}
"""What to say of arguments that other functions have, to callers of functions with a certain one."""


def checked_keywords(function: _Function) -> _Function:
    """Make a function name the nearest keyword it has when it is given one that it has not."""
    known = dict.fromkeys(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in known:
                argument, words = _ELSEWHERE.get(name, ("", ""))
                hint = words if argument in known else _nearest(name, known)
                raise TypeError(f"{function.__name__}() has no argument {shown(name)}{hint}")
        return function(*args, **kwargs)

    return cast(_Function, call)
