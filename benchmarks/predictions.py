"""What the cost model says that a call takes on a GPU, and what limits it there.

The figures are kept in predictions.json, which `python -m tests.cost --update` writes where there is a
compiler and an emulator, so that a record made elsewhere can have them beside what it measures.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuconv.problem import Request

PREDICTIONS = Path(__file__).parent / "predictions.json"


@dataclass(frozen=True)
class Prediction:
    """The seconds of a call, the unit that they are spent in, and how many times the floor they are."""

    seconds: float
    limit: str
    of_floor: float


def key(request: Request, algorithm: str, arch: str) -> str:
    """The name of a prediction in the file."""
    return f"{request} {algorithm} {arch}"


def predicted(request: Request, algorithm: str, arch: str) -> Prediction | None:
    """The prediction for an algorithm of the CUDA table; None where there are no counts of its launches."""
    row = rows().get(key(request, algorithm, arch))
    return row and Prediction(row["seconds"], row["limit"], row["of_floor"])


def rows() -> dict[str, dict[str, Any]]:
    """All rows of the file by their names."""
    found: dict[str, dict[str, Any]] = kept()["rows"]
    return found


@functools.cache
def kept() -> dict[str, Any]:
    """The file."""
    found: dict[str, Any] = json.loads(PREDICTIONS.read_text())
    return found
