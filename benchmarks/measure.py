"""One row: check every contender against float64, time those that are right, measure the workspace."""

from __future__ import annotations

import math
import shlex
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from cuconv.cli.bench import plan_of
from cuconv.cli.clock import Call, Clock, Times, in_turn, interleaved
from cuconv.cli.oracle import Sampled, sample
from cuconv.cli.timed_calls import Contender, Task, operands, ours
from cuconv.plan import INPUTS, RESULT, Plan, device_of, exact_candidates
from cuconv.problem import ConvProblem

from . import ceilings, environment, predictions
from .peers import Peer
from .record import Ceilings, Key, Memory, Row, Timing
from .steps import steps

FAR = 20
"""Candidates whose estimate is more than so many times the least are measured only if named."""

_operands = lru_cache(maxsize=1)(operands)
"""The ops of a problem follow one another, and drawing takes longer than their calls on a GPU."""


@dataclass(frozen=True)
class Bench:
    """What all rows of a run share.

    `algorithms` names what to time of ours; without any it is auto's choice and every exact candidate
    whose estimate is not FAR behind.
    """

    clock: Clock
    threads: int
    peers: Sequence[Peer]
    ceilings: Ceilings
    algorithms: tuple[str, ...] = ()
    budget: float = 1.0

    def row(self, key: Key) -> Row | None:
        """Measure a row; None where none of the named algorithms can do it."""
        problem = ConvProblem.parse(key.problem)
        host = _operands(problem, key.dtype, key.layout)
        tasks = [self._task(key, problem, host) for _ in range(self.clock.copies)]
        plans = self._plans(tasks[0])
        if not plans:
            return None
        mine = [_entry(name, partial(ours, algorithm=name), tasks) for name in plans]
        rivals = [
            _entry(peer.name, partial(peer.prepare, threads=self.threads), tasks) for peer in self.peers
        ]
        inputs: Any = [host[role] for role in INPUTS[key.op]]
        truth = sample(key.op, problem, key.dtype, key.layout, *inputs, precision=key.precision)
        for entry in mine:
            self._check(entry, truth, truth.share if plans[entry.name].entry.exact else truth.share_overall)
        for entry in rivals:
            self._check(entry, truth, truth.share_overall)
        row = self._timed(key, tasks[0], plans, mine, [entry for entry in rivals if entry.takes_part])
        self.clock.release()
        if self.clock.device == "cuda" and "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()
        return row

    def command(self, key: Key) -> str:
        """The command that measures this row again."""
        words = ["python", "-m", "benchmarks", "--problem", key.problem, "--op", key.op, "--dtype", key.dtype]
        words += ["--layout", key.layout, *(["--precision", key.precision] if key.precision else [])]
        words += ["--device", self.clock.device, "--threads", str(self.threads)]
        words += [word for name in self.algorithms for word in ("--algorithm", name)]
        return shlex.join(words)

    def _task(self, key: Key, problem: ConvProblem, host: dict[str, np.ndarray]) -> Task:
        """The operands where the clock's device computes, in memory of their own."""
        arrays = {role: self.clock.namespace.asarray(array) for role, array in host.items()}
        return Task(key.op, problem, key.dtype, key.layout, arrays, key.precision)

    def _plans(self, task: Task) -> dict[str, Plan]:
        """The plans of our contenders, by the name that is asked for; auto's choice is the first."""
        if not self.algorithms:
            auto = plan_of(task, self.clock)
            device = device_of(auto.backend, auto.arch)
            candidates = exact_candidates(auto.request, auto.backend, auto.arch)
            estimates = {entry.name: entry.estimate(auto.request, device) for entry in candidates}
            near = [name for name, seconds in estimates.items() if seconds <= FAR * min(estimates.values())]
            others = {name: plan_of(task, self.clock, name) for name in near if name != auto.algorithm}
            return {auto.algorithm: auto} | others
        plans = {}
        for name in self.algorithms:
            try:
                plans[name] = plan_of(task, self.clock, name)
            except ValueError:  # it cannot do this problem
                continue
        return plans

    def _check(self, entry: _Entry, truth: Sampled, share: Callable[[np.ndarray], float]) -> None:
        """Compare a contender's result with the truth, before any timing."""
        if entry.call is None:
            return
        try:
            start = time.perf_counter()
            given = entry.call()
            self.clock.wait()
            entry.first_s = time.perf_counter() - start
            result = self.clock.to_host(entry.result(given))
            error, part = truth.error(result), share(result)
        except Exception as raised:
            entry.fail(raised)
            return
        entry.error = error if math.isfinite(error) else None
        if not part <= 1:
            entry.failure = f"wrong: {part:.3g} times the bound"

    def _timed(
        self, key: Key, task: Task, plans: dict[str, Plan], mine: list[_Entry], rivals: list[_Entry]
    ) -> Row:
        """The row, once all is checked."""
        right = {entry.name: entry.call for entry in (*mine, *rivals) if entry.call and not entry.failure}
        # Of one that is far behind, the call that was checked is time enough.
        first = {entry.name: entry.first_s for entry in (*mine, *rivals) if entry.name in right}
        limit = 10 * min(first.values(), default=0.0) + 0.5
        far = {name: seconds for name, seconds in first.items() if seconds > limit}
        times = interleaved(self.clock, {n: call for n, call in right.items() if n not in far}, self.budget)
        times |= {name: Times([[seconds]]) for name, seconds in far.items()}
        timings = {entry.name: entry.timing(times) for entry in (*mine, *rivals)}
        chosen = next(iter(plans))
        if self.algorithms:
            chosen = min(plans, key=lambda name: timings[name].median_s or math.inf)
        plan = plans[chosen]
        call = ours(task, chosen).call if chosen in right else None
        return Row(
            key=key,
            code=environment.code(),
            command=self.command(key),
            algorithm=chosen,
            why=plan.why,
            ours=tuple(_predicted(timings[entry.name], plans[entry.name]) for entry in mine),
            peers=tuple(timings[entry.name] for entry in rivals),
            memory=workspace(self.clock, plan, call) if call else None,
            floor_s=ceilings.floor(self.ceilings, task.problem, key.op, key.dtype, key.precision),
            graph_s=self._replayed(call) if call else None,
            steps=steps(call) if call and self.clock.device == "cpu" else None,
        )

    def _replayed(self, call: Call) -> float | None:
        try:
            return self.clock.replayed(call)
        except Exception as raised:
            print(f"not captured in a graph: {raised}", file=sys.stderr)
            return None


@dataclass
class _Entry:
    """A contender, once per copy of the operands, and what its check found."""

    name: str
    call: Call | None = None
    result: Callable[[Any], Any] = lambda result: result
    error: float | None = None
    failure: str | None = None
    first_s: float = 0.0

    @property
    def takes_part(self) -> bool:
        return self.call is not None or self.failure is not None

    def fail(self, raised: Exception) -> None:
        """Keep the kind of an error; its text, which may name paths, goes to the terminal only."""
        print(f"{self.name}: {raised}", file=sys.stderr)
        self.failure = f"raised {type(raised).__name__}"

    def timing(self, times: dict[str, Times]) -> Timing:
        """What the record keeps."""
        if self.name not in times:
            return Timing(self.name, self.error, None, None, 0, self.failure)
        taken = times[self.name]
        return Timing(self.name, self.error, taken.median, taken.least, len(taken.seconds), None)


def _entry(name: str, prepare: Callable[[Task], Contender | None], tasks: list[Task]) -> _Entry:
    entry = _Entry(name)
    try:
        contenders = [contender for contender in map(prepare, tasks) if contender]
    except Exception as raised:
        entry.fail(raised)
        return entry
    if contenders:
        entry.call = in_turn([contender.call for contender in contenders])
        entry.result = contenders[0].result
    return entry


def _predicted(timing: Timing, plan: Plan) -> Timing:
    """The timing beside what the cost model, which is for GPUs, says of the plan."""
    if plan.backend != "cuda" or plan.arch is None:
        return timing
    found = predictions.predicted(plan.request, plan.algorithm, plan.arch)
    return replace(timing, predicted_s=found.seconds, limit=found.limit) if found else timing


def workspace(clock: Clock, plan: Plan, call: Call) -> Memory:
    """The peak of memory in one call beyond its result, in bytes, beside what the plan states."""
    output = math.prod(plan.request.shape(RESULT[plan.request.op]))
    output *= np.dtype(call().dtype).itemsize
    if clock.device == "cuda":
        pool = clock.namespace.cuda.MemoryPool()
        with clock.namespace.cuda.using_allocator(pool.malloc):
            result = call()
        clock.wait()
        peak = pool.total_bytes()  # a fresh pool only grows
        del result
    else:
        tracemalloc.start()
        try:
            call()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    return Memory(plan.workspace_bytes, max(0, peak - output), output)
