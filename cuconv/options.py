"""Checks of plain option values, and the sentences of their errors."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable
from typing import Any


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
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise TypeError(f"{argument} must be a sequence of ints, got {value!r}")
    return tuple(integer(argument, item, minimum) for item in value)


def per_axis(argument: str, value: Any, rank: int, minimum: int) -> tuple[int, ...]:
    """Return one int per spatial axis, from one int for all of them or one for each."""
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return (integer(argument, value, minimum),) * rank
    numbers = integers(argument, value, minimum)
    if len(numbers) != rank:
        raise ValueError(f"{argument} must be one int or {rank} of them, one per spatial axis, got {value!r}")
    return numbers


def flag(argument: str, value: Any) -> bool:
    """Return a truth value; anything but a bool is refused, since 0-d arrays and strings mislead."""
    if value is True or value is False:
        return value
    raise TypeError(f"{argument} must be True or False, got {value!r}")
