"""A short benchmark of the user's machine: time, rate, algorithm and error of every op on a dozen problems.

It runs on the GPU where there is one that CuPy can use, and beside PyTorch where that is installed. Results
are checked before they are timed. The long one, with records, is in the folder `benchmarks` of the source.

Contenders take turns, and a ratio is that of the two times of one turn: what slows a machine down for a while
slows both. A number is printed as the median over the turns, with the middle half of them, from the first
quartile to the third: one turn of five that was disturbed moves neither, three widen it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..plan import INPUTS, TF32, Plan, current_arch, make_plan, permitted
from ..problem import ConvProblem, Request
from . import report, timed_calls
from .arguments import PROBLEMS, add_json
from .check import place
from .clock import Clock, clock_here, interleaved
from .oracle import sample
from .timed_calls import Contender, Task

DOES = "time and error of every op on a dozen problems, beside PyTorch if installed"
EXAMPLE = "python -m cuconv bench --json"

OPS, DTYPE, LAYOUT, SECONDS = ("fprop", "dgrad", "wgrad"), "float32", "channels_first", 0.15

WIDE = 0.25
"""The spread above which a number is not to be trusted: of turns that differ for no reason of their own."""

BUSY = 0.5
"""The load, in running programs over the last minute, above which a machine is not idle."""


@dataclass(frozen=True)
class Middle:
    """The median of a number over the turns, and the quartiles on either side of it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Middle:
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    @property
    def spread(self) -> float:
        """The width of the middle half, as a share of the median."""
        return (self.high - self.low) / self.median


@dataclass(frozen=True)
class Row:
    """What was found for an op on a problem; without PyTorch there are neither its times nor a ratio."""

    op: str
    algorithm: str
    good: bool
    error: float
    flops: int
    ours: Middle
    theirs: Middle | None
    ratio: Middle | None

    @property
    def wide(self) -> bool:
        """Whether the turns differ too much for the row to be trusted."""
        return any(middle.spread > WIDE for middle in (self.ours, self.theirs, self.ratio) if middle)

    def facts(self) -> dict[str, Any]:
        """The row as data; a ratio is PyTorch's time divided by ours."""
        return {
            "op": self.op,
            "algorithm": self.algorithm,
            "within_bound": self.good,
            "relative_error": self.error,
            "flops": self.flops,
            "seconds": vars(self.ours),
            "pytorch_seconds": self.theirs and vars(self.theirs),
            "ratio": self.ratio and vars(self.ratio),
            "disturbed": self.wide,
        }

    def __str__(self) -> str:
        text = f"{'?' if self.wide else '':2}{self.op:6}{self.algorithm:10}{self.error:8.1e}"
        text += f"{self.flops / self.ours.median / 1e9:9.1f}{_ms(self.ours)}"
        if self.theirs and self.ratio:
            low, median, high = self.ratio.low, self.ratio.median, self.ratio.high
            text += f"{_ms(self.theirs)}{median:8.2f}  {low:.2f} to {high:.2f}"
        return text


def _ms(middle: Middle) -> str:
    return f"{middle.median * 1e3:11.3f}{middle.spread:7.0%}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be asked."""
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Time on the GPU where there is one, otherwise on the CPU; 0 if every result is within its bound."""
    clock = clock_here()
    with clock.stream:
        document = _benched(clock, report.teller(options.json))
    if options.json:
        report.write(document)
    return 1 if document["failures"] else 0


def _benched(clock: Clock, say: report.Say) -> dict[str, Any]:
    """Find the rows, and say them as they are found."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    precision = permitted(None, DTYPE, clock.device)
    numbers = f"{DTYPE} as {precision}, by {TF32}" if precision else DTYPE
    say(f"On {place()}: {numbers}, {LAYOUT}; errors relative to double precision.")
    say("Each result is checked, then timed. Times are medians over turns; the spread is the middle half of")
    say("the turns, as a share of that.\n")
    peer = _peer(clock)
    heading = f"  {'op':6}{'algorithm':10}{'error':>8}{'GFLOP/s':>9}{'ms':>11}{'spread':>7}"
    say(heading + (f"{'PyTorch ms':>11}{'spread':>7}{'ratio':>8}  middle half" if peer else ""))
    rows: dict[str, list[Row]] = {}
    for line in PROBLEMS:
        say(line)
        rows[line] = []
        for row in _rows(line, precision, clock, peer):
            say(row)
            rows[line].append(row)
    failures = [f"{row.op} {line} is beyond its bound" for line in rows for row in rows[line] if not row.good]
    if wide := sum(row.wide for of_line in rows.values() for row in of_line):
        say(f"\n? marks {wide} of {len(OPS) * len(PROBLEMS)} rows that were disturbed: a spread is above")
        say(f"{WIDE:.0%}. Do not trust them; run this again when nothing else runs.")
    if load > BUSY:
        say(f"\nThe machine was not idle: a load of {load:.1f} before this began, on {os.cpu_count()} cores.")
        say("What runs all the time slows every turn, and shows in no spread.")
    say("\n" + ("\n".join(failures) if failures else "all within their bounds"))
    return {
        "on": place(),
        "dtype": DTYPE,
        "precision": precision,
        "layout": LAYOUT,
        "load_before": load,
        "rows": [{"problem": line, **row.facts()} for line in rows for row in rows[line]],
        "failures": failures,
    }


def _rows(
    line: str, precision: str | None, clock: Clock, peer: Callable[[Task], Contender | None] | None
) -> Iterator[Row]:
    """The rows of a problem, op by op."""
    problem = ConvProblem.parse(line)
    host = timed_calls.operands(problem, DTYPE, LAYOUT)
    arrays = {role: clock.namespace.asarray(array) for role, array in host.items()}
    for op in OPS:
        yield _measured(Task(op, problem, DTYPE, LAYOUT, arrays, precision), host, clock, peer)


def _peer(clock: Clock) -> Callable[[Task], Contender | None] | None:
    """PyTorch in the same layout, if it is installed and computes where the clock does."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if clock.device == "cuda" and not torch.cuda.is_available():
        return None
    timed_calls.ready_torch(clock)
    return lambda task: timed_calls.torch(task, task.layout)


def _measured(
    task: Task, host: dict[str, np.ndarray], clock: Clock, peer: Callable[[Task], Contender | None] | None
) -> Row:
    """A row of the table; the result is compared with the truth before it is timed."""
    plan = plan_of(task, clock)
    mine = timed_calls.ours(task, "auto")
    a, b = (host[role] for role in INPUTS[task.op])
    truth = sample(task.op, task.problem, task.dtype, task.layout, a, b, precision=task.precision)
    result = clock.to_host(mine.result(mine.call()))
    calls = {"ours": mine.call}
    if peer and (other := peer(task)):
        calls["peer"] = other.call
    good, error = truth.share(result) <= 1, truth.error(result)
    turns = {name: times.medians for name, times in interleaved(clock, calls, SECONDS).items()}
    middles = {name: Middle.of(medians) for name, medians in turns.items()}
    if "peer" in turns:
        middles["ratio"] = Middle.of(b / a for a, b in zip(turns["ours"], turns["peer"], strict=True))
    flops = task.problem.flops(task.op, task.dtype)
    return Row(
        task.op, plan.algorithm, good, error, flops,
        middles["ours"], middles.get("peer"), middles.get("ratio"),
    )  # fmt: skip


def plan_of(task: Task, clock: Clock, algorithm: str = "auto") -> Plan:
    """The plan by which the task's op would be done."""
    conjugate = task.op in ("dgrad", "wgrad") and task.dtype.startswith("complex")
    request = Request(
        task.op, task.problem, task.dtype, task.layout, conjugate=conjugate, precision=task.precision
    )
    return make_plan(request, algorithm, clock.device, current_arch(clock.device))
