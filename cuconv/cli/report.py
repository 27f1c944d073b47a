"""How commands tell what they found: text as they go, or one JSON document at the end."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Callable
from typing import Any

WIDTH = 100
"""The columns that tables keep to."""

Say = Callable[..., None]


def teller(as_json: bool) -> Say:
    """A function like print: to standard output, or beside it where that is to be a document alone."""

    def say(*words: Any, end: str = "\n") -> None:
        stream = sys.stderr if as_json else sys.stdout
        if stream is not None:  # or else print would take standard output
            print(*words, end=end, flush=True, file=stream)

    return say


def write(document: dict[str, Any]) -> None:
    """Print a document as JSON, which has no infinities: what is none, or no number, becomes null."""
    print(json.dumps(_plain(document), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def wrapped(line: str, indent: int) -> str:
    """A line within WIDTH columns, those after the first one indented; no word is cut."""
    return textwrap.fill(
        line,
        WIDTH,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
