"""python -m benchmarks.furthest RECORD: run the calls whose times are furthest from their predictions.

Each is run once, for a profiler that says why.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cuconv.cli.timed_calls import Task, operands, ours
from cuconv.cuda import jit
from cuconv.problem import ConvProblem

from . import record
from .record import Key, Record


@dataclass(frozen=True)
class Compared:
    """A timed call of ours and its prediction."""

    key: Key
    algorithm: str
    measured_s: float
    predicted_s: float
    limit: str | None

    @property
    def ratio(self) -> float:
        """The measured time divided by the predicted one."""
        return self.measured_s / self.predicted_s

    @property
    def factor(self) -> float:
        """How many times the larger of the two is the smaller one."""
        return max(self.ratio, 1 / self.ratio)

    def __str__(self) -> str:
        return f"{self.key.problem} {self.key.op} {self.key.numbers} {self.key.layout} {self.algorithm}"


def compared(found: Record) -> list[Compared]:
    """All calls of ours that have a time and a prediction, those furthest from it first."""
    calls = [
        Compared(row.key, timing.contender, timing.median_s, timing.predicted_s, timing.limit)
        for row in found.rows.values()
        for timing in row.ours
        if timing.median_s and timing.predicted_s
    ]
    return sorted(calls, key=lambda each: -each.factor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them, each after a line that says which it is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.furthest", description=__doc__)
    parser.add_argument("record", type=Path)
    parser.add_argument("--count", type=int, default=3, help="how many (default: 3)")
    options = parser.parse_args(arguments)
    calls = compared(record.read(options.record))[: options.count]
    if not calls:
        print("no call of the record has a prediction")
    for each in calls:
        print(f"{each}: {each.ratio:.2f} times its prediction", flush=True)
        run(each.key, each.algorithm)
    return 0


def run(key: Key, algorithm: str) -> None:
    """One call on the GPU, and wait for it."""
    cupy, problem = jit.require_cupy(), ConvProblem.parse(key.problem)
    host = operands(problem, key.dtype, key.layout)
    arrays = {role: cupy.asarray(array) for role, array in host.items()}
    ours(Task(key.op, problem, key.dtype, key.layout, arrays, key.precision), algorithm).call()
    cupy.cuda.get_current_stream().synchronize()


if __name__ == "__main__":
    sys.exit(main())
