"""Checks of plain option values, and the sentences of their errors."""

from __future__ import annotations

import difflib
import functools
import inspect
import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast


def one_of(argument: str, value: Any, choices: Iterable[Any]) -> Any:
    """Return `value` if it is one of `choices`; otherwise raise and name the nearest choice."""
    choices = tuple(choices)
    if (value is None or isinstance(value, str)) and value in choices:
        return value
    names = [choice for choice in choices if isinstance(choice, str)]
    near = difflib.get_close_matches(str(value).lower(), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    expected = ", ".join(map(repr, choices))
    error = ValueError if isinstance(value, str) else TypeError
    raise error(f"{argument} must be one of {expected}, got {value!r}{hint}")


def integer(argument: str, value: Any, minimum: int | None = None) -> int:
    """Return `value` as an int; floats and strings are refused even when they look whole."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{argument} must be an int, got {value!r}") from None
    if minimum is not None and number < minimum:
        raise ValueError(f"{argument} must be at least {minimum}, got {value!r}")
    return number


def integers(argument: str, value: Any, minimum: int | None = None) -> tuple[int, ...]:
    """Return a sequence of ints as a tuple."""
    if len(getattr(value, "shape", ())) > 1:
        raise TypeError(f"{argument} must be a sequence of ints, got an array: did you mean its shape?")
    if is_one(value) or isinstance(value, (set, frozenset, dict)):
        raise TypeError(f"{argument} must be a sequence of ints, got {value!r}")
    return tuple(integer(argument, item, minimum) for item in value)


def is_one(value: Any) -> bool:
    """Whether a value stands for itself and not for a sequence; strings and 0-d arrays have __iter__ too."""
    return isinstance(value, str) or not hasattr(value, "__iter__") or getattr(value, "shape", None) == ()


def per_axis(argument: str, value: Any, rank: int, minimum: int) -> tuple[int, ...]:
    """Return one int per spatial axis, from one int for all of them or one for each."""
    if is_one(value):
        return (integer(argument, value, minimum),) * rank
    numbers = integers(argument, value, minimum)
    if len(numbers) != rank:
        raise ValueError(f"{argument} must be one int or {rank} of them, one per spatial axis, got {value!r}")
    return numbers


def flag(argument: str, value: Any) -> bool:
    """Return a truth value, Python's or NumPy's; numbers and strings are refused, since they mislead."""
    if value is True or value is False:
        return value
    if getattr(value, "shape", None) == () and value.dtype.kind == "b":
        return bool(value)
    raise TypeError(f"{argument} must be True or False, got {value!r}")


_Function = TypeVar("_Function", bound=Callable[..., Any])


def checked_keywords(function: _Function) -> _Function:
    """Make a function name the nearest keyword it has when it is given one that it has not."""
    known = tuple(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"{function.__name__}() has no argument {name!r}{hint}")
        return function(*args, **kwargs)

    return cast(_Function, call)
