"""conv1d, conv2d, conv3d and their transposes: the general functions with the rank checked."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from . import api, arrays
from .prepared import repeatable
from .problem import advice


def _of_rank(rank: int, general: Callable[..., Any], name: str) -> Callable[..., Any]:
    of_any_rank = inspect.unwrap(general)  # says what is to be run

    def ranked(x: Any, w: Any, *args: Any, **kwargs: Any) -> Any:
        arrays.owner_of("w", w)
        if len(w.shape) != rank + 2:
            message = (
                f"w must have {rank + 2} axes for {name} ({rank} of them spatial), got shape {tuple(w.shape)}"
            )
            if len(w.shape) == rank:
                arrays.owner_of("x", x)
                hint = advice(("x", "w"), x.shape, tuple(w.shape), kwargs.get("layout", "channels_first"))
                message += hint and f"; {hint}"
            raise ValueError(message)
        return of_any_rank(x, w, *args, **kwargs)

    functools.update_wrapper(ranked, general)
    ranked.__name__ = ranked.__qualname__ = name
    ranked.__doc__ = _documented(rank, general, name)
    return repeatable(ranked)


def _documented(rank: int, general: Callable[..., Any], name: str) -> str:
    """The general function's docstring with an example, its last section, of so many axes."""
    text = (general.__doc__ or "").partition("Examples\n")[0]
    margin = text.rpartition("\n")[2]  # none from Python 3.13 on
    filters, shapes = (4, 3, *(5,) * rank), [(2, 3, *(7,) * rank), (2, 4, *(2,) * rank)]
    x, y = reversed(shapes) if general is api.conv_transpose else shapes
    lines = (
        "Examples",
        "--------",
        f">>> x, w = np.ones({x}), np.ones({filters})",
        f">>> cuconv.{name}(x, w, stride=2).shape",
        f"{y}",
        "",
    )
    axes = f"{rank} spatial {'axis' if rank == 1 else 'axes'}"
    return f"`{general.__name__}` with filters of {axes}.\n\n{margin}{text}" + f"\n{margin}".join(lines)


conv1d = _of_rank(1, api.conv, "conv1d")
conv2d = _of_rank(2, api.conv, "conv2d")
conv3d = _of_rank(3, api.conv, "conv3d")
conv_transpose1d = _of_rank(1, api.conv_transpose, "conv_transpose1d")
conv_transpose2d = _of_rank(2, api.conv_transpose, "conv_transpose2d")
conv_transpose3d = _of_rank(3, api.conv_transpose, "conv_transpose3d")
