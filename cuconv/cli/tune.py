"""Times a list of problems by algorithm="tune", so that later processes find the winners.

What is timed are the public functions, as callers make them. The winner is tuning's own choice; its time, and
that of what `auto` would take, are measured after that, in turn, since no two timings are the same.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import tuning
from ..dtypes import DTYPES
from ..plan import RESULT, current_arch, exact_candidates, forget, make_plan, permitted
from ..problem import ConvProblem
from . import report, timed_calls
from .arguments import CommandError, UsageError, add_json, add_problems, can_be_written, problems, ways
from .bench import plan_of
from .check import answers, place
from .clock import Clock, clock_here, interleaved
from .timed_calls import Task

DOES = 'time the algorithms of a list of problems, and keep the winners for algorithm="tune"'
EXAMPLE = 'python -m cuconv tune "n8c16h28w28 k16r3s3 p1" "n1c1h256w256 k1r5s5 p2" --op fprop'

OPS = ("fprop", "dgrad", "wgrad")
"""What there are several algorithms of."""

SECONDS, SLOW = 0.1, 1.0
"""For how long the winner and auto's choice are timed; but once each where one call takes so long."""


@dataclass
class Row:
    """What was found for an op on a problem. A winner that was remembered has no time."""

    problem: str
    dtype: str
    layout: str
    op: str
    winner: str | None = None
    winner_seconds: float | None = None
    auto: str | None = None
    auto_seconds: float | None = None
    remembered: bool = False
    error: str | None = None

    def __str__(self) -> str:
        if self.error:
            return f"failed: {self.error}"
        if self.remembered:
            return f"{self.winner:12}remembered  {self.auto}"
        return f"{self.winner:12}{_ms(self.winner_seconds)}  {self.auto:12}{_ms(self.auto_seconds)}"


def _ms(seconds: float | None) -> str:
    return f"{(seconds or 0) * 1e3:10.3f}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be asked."""
    add_problems(parser, OPS)
    parser.add_argument("--again", action="store_true", help="time anew what is remembered")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Tune where arrays are computed with by default; 0 if every winner is kept."""
    listed = problems(options)
    if not listed:
        raise UsageError("no problem is given: write one, name a file of them by --from, or take --bench")
    folder = tuning.folder()
    why_not = can_be_written(folder) if folder else "there is no home folder"
    if folder is None or why_not:
        where = f" in {folder}" if folder else ""
        raise CommandError(
            f"winners cannot be kept{where} ({why_not}): set CUCONV_CACHE_DIR to a folder that can be written"
        )
    clock = clock_here()
    with clock.stream:
        document = _tuned(listed, options, clock, folder, report.teller(options.json))
    if options.json:
        report.write(document)
    return 1 if document["failed"] else 0


def _tuned(
    listed: list[ConvProblem], options: argparse.Namespace, clock: Clock, folder: Path, say: report.Say
) -> dict[str, Any]:
    """Find the rows, and say them as they are found."""
    ops, dtypes, layouts = ways(options, OPS)
    forget()  # so that what counts is what is kept
    say(f"On {place()}. All that may win are timed, then the winner and what auto takes")
    say("once more, in turn.\n")
    say(f"  {'op':8}{'winner':12}{'ms':>10}  {'auto':12}{'ms':>10}")
    rows = []
    for problem, dtype, layout in itertools.product(listed, dtypes, layouts):
        say(report.wrapped(f"{problem}, {dtype}, {layout}", 2))
        group = _Group(problem, dtype, layout, clock)
        for op in ops:
            say(f"  {op:8}", end="")
            row = group.row(op, options.again)
            say(report.wrapped(f"{'':10}{row}", 10)[10:])
            rows.append(row)
        if any(row.error for row in rows[-len(ops) :]) and not answers(clock.namespace):
            say("\nThe GPU refuses all work of this process since then.")
            break
        group.release()
    failed = sum(row.error is not None for row in rows)
    remembered = sum(row.remembered for row in rows)
    say(f"\n{len(rows) - failed - remembered} timed, {remembered} remembered, {failed} failed.")
    say(f"The winners are in {folder}.")
    return {
        "on": place(),
        "folder": str(folder),
        "rows": [asdict(row) for row in rows],
        "timed": len(rows) - failed - remembered,
        "remembered": remembered,
        "failed": failed,
    }


class _Group:
    """The ops of a problem in a dtype and layout, which share their operands: made when first needed."""

    def __init__(self, problem: ConvProblem, dtype: str, layout: str, clock: Clock) -> None:
        self.problem, self.dtype, self.layout, self.clock = problem, dtype, layout, clock
        self.precision = permitted(None, dtype, clock.device)
        self.arrays: dict[str, Any] = {}

    def row(self, op: str, again: bool) -> Row:
        """Tune an op, unless its winner is remembered. What fails is said in the row."""
        row = Row(str(self.problem), self.dtype, self.layout, op)
        try:
            self._tune(row, again)
        except Exception as error:  # whatever a call raises, the others are tuned
            reason = next(iter(str(error).splitlines()), "")
            kinds = {MemoryError: "not enough memory", RuntimeError: "", ValueError: ""}
            kind = next((kinds[each] for each in kinds if isinstance(error, each)), type(error).__name__)
            row.error = f"{kind}: {reason}" if kind else reason
            with contextlib.suppress(Exception):  # of a GPU that is lost
                self.release()
        return row

    def _tune(self, row: Row, again: bool) -> None:
        clock = self.clock
        task = Task(row.op, self.problem, self.dtype, self.layout, self.arrays, self.precision)
        auto = plan_of(task, clock)
        request, arch = auto.request, current_arch(clock.device)
        names = [entry.name for entry in exact_candidates(request, clock.device, arch)]
        row.auto = auto.algorithm
        known = tuning.remembered(request, clock.device, names)
        if known and not again:
            row.winner, row.remembered = known, True
            return
        self._fits(row.op)
        workspaces = (make_plan(request, name, clock.device, arch).workspace_bytes for name in names)
        self._fits(row.op, max(workspaces))
        if not self.arrays:
            host = timed_calls.operands(self.problem, self.dtype, self.layout)
            while host:
                role, array = host.popitem()
                self.arrays[role] = clock.namespace.asarray(array)
        with tuning.anew():
            forget()
            timed_calls.ours(task, "tune").call()
        row.winner = tuning.remembered(request, clock.device, names)
        if row.winner is None:
            raise RuntimeError(f"its winner could not be kept in {tuning.folder()}")
        seconds = _seconds(clock, task, (row.winner, auto.algorithm))
        row.winner_seconds, row.auto_seconds = seconds[row.winner], seconds[auto.algorithm]

    def _fits(self, op: str, workspace: int = 0) -> None:
        """Raise MemoryError unless the operands, two results and the workspace fit the memory."""
        problem, size = self.problem, DTYPES[self.dtype].itemsize
        elements = {
            role: math.prod(shape)
            for role, shape in (("x", problem.x_shape()), ("w", problem.w_shape()), ("y", problem.y_shape()))
        }
        result = elements[RESULT[op][-1]]
        missing = 0 if self.arrays else sum(elements.values())
        needed = (missing + 2 * result) * size + workspace
        free = [_free_on_host()] if self.clock.device == "cpu" or missing else []
        if self.clock.device == "cuda":
            cupy = self.clock.namespace
            pool = cupy.get_default_memory_pool()
            free.append(cupy.cuda.runtime.memGetInfo()[0] + pool.free_bytes())
        least = min((each for each in free if each is not None), default=needed)
        if needed > least:
            raise MemoryError(f"it takes {needed:,} bytes, and {least:,} are free")

    def release(self) -> None:
        """Give up the operands."""
        self.arrays.clear()
        self.clock.release()


def _seconds(clock: Clock, task: Task, names: tuple[str, ...]) -> dict[str, float]:
    """What calls by these algorithms take, which have all been made before."""
    calls = {name: timed_calls.ours(task, name).call for name in names}
    once = {name: clock.once(call) for name, call in calls.items()}
    if max(once.values()) > SLOW:
        return once
    return {name: times.median for name, times in interleaved(clock, calls, SECONDS).items()}


_CGROUP = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Where Linux says what a container may take, and what it has taken."""


def _free_on_host() -> int | None:
    """The bytes of memory that are free for this process, if that is known."""
    free = None
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) << 10
        for limit, used in _CGROUP:
            if os.path.exists(limit) and (most := Path(limit).read_text().strip()).isdigit():
                left = int(most) - int(Path(used).read_text())
                free = left if free is None else min(left, free)
    except (OSError, ValueError):
        pass
    if free is None and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free
