"""A short benchmark of the user's machine: time, rate, algorithm and error of every op on a dozen problems.

It runs on the GPU where there is one that CuPy can use, and beside PyTorch where that is installed. Results
are checked before they are timed. The long one, with records, is in the folder `benchmarks` of the source.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from . import contenders
from .check import place
from .clock import Clock, CpuClock, GpuClock, Times, interleaved
from .contenders import Contender, Task
from .cuda import jit
from .plan import INPUTS, Plan, current_arch, make_plan
from .problem import ConvProblem, Request
from .sampled import sample

PROBLEMS = (
    "n4c3h224w224 k64r7s7 sh2sw2 p3",
    "n4c64h56w56 k64r3s3 p1",
    "n4c256h56w56 k64r1s1",
    "n4c256h14w14 k256r3s3 p1",
    "n1c512h7w7 k512r3s3 p1",
    "n4c64h112w112 k64r3s3 g64 sh2sw2 p1",
    "n4c96h56w56 k96r7s7 g96 p3",
    "n1c384h32w32 k384r21s21 g384 p10",
    "n1c32w16000 k32s2 dw16 p16:0",
    "n1c64w4096 k64s15 p7",
    "n1c64d28h30w30 k64t3r3s3",
    "n1c16d32h32w32 k16t3r3s3 p1 circular",
)
"""One or two of each list in `benchmarks`: networks for images, depthwise layers, sequences, volumes."""

DTYPE, LAYOUT, SECONDS = "float32", "channels_first", 0.15


def main() -> int:
    """Print a table; 0 if every result is within its bound."""
    cupy = jit.usable_cupy()
    clock: Clock = GpuClock(cupy) if cupy else CpuClock()
    peer = _peer(clock)
    print(f"On {place()}: median times of {DTYPE}, {LAYOUT}, and the error relative to double precision.\n")
    print(f"{'problem':38}{'op':7}{'ms':>9}{'GFLOP/s':>9}  {'algorithm':11}{'error':>8}", end="")
    print(f"{'PyTorch ms':>12}{'ratio':>7}" if peer else "")
    failures = []
    for line in PROBLEMS:
        problem = ConvProblem.parse(line)
        host = contenders.operands(problem, DTYPE, LAYOUT)
        arrays = {role: clock.namespace.asarray(array) for role, array in host.items()}
        for op in ("fprop", "dgrad", "wgrad"):
            text, good = _measured(Task(op, problem, DTYPE, LAYOUT, arrays), host, clock, peer)
            print(f"{line:38}{op:7}{text}", flush=True)
            if not good:
                failures.append(f"{op} {line} is beyond its bound")
    print("\n" + ("\n".join(failures) if failures else "all within their bounds"))
    return 1 if failures else 0


def _peer(clock: Clock) -> Callable[[Task], Contender | None] | None:
    """PyTorch in the same layout, if it is installed and computes where the clock does."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if clock.device == "cuda" and not torch.cuda.is_available():
        return None
    contenders.ready_torch(clock)
    return lambda task: contenders.torch(task, task.layout)


def _measured(
    task: Task, host: dict[str, np.ndarray], clock: Clock, peer: Callable[[Task], Contender | None] | None
) -> tuple[str, bool]:
    """The rest of a line of the table, and whether the result is right."""
    plan = plan_of(task, clock)
    mine = contenders.ours(task, "auto")
    inputs: Any = [host[role] for role in INPUTS[task.op]]
    truth = sample(task.op, task.problem, task.dtype, task.layout, *inputs)
    result = clock.to_host(mine.result(mine.call()))
    calls = {"ours": mine.call}
    if peer and (other := peer(task)):
        calls["peer"] = other.call
    good = truth.share(result) <= 1
    times = interleaved(clock, calls, SECONDS)
    text = _columns(task, plan, times["ours"], truth.error(result))
    if "peer" in times:
        theirs = times["peer"].median
        text += f"{theirs * 1e3:12.3f}{theirs / times['ours'].median:7.2f}"
    return text, good


def plan_of(task: Task, clock: Clock, algorithm: str = "auto") -> Plan:
    """The plan by which the task's op would be done."""
    conjugate = task.op != "fprop" and task.dtype.startswith("complex")
    request = Request(task.op, task.problem, task.dtype, task.layout, conjugate=conjugate)
    return make_plan(request, algorithm, clock.device, current_arch(clock.device))


def _columns(task: Task, plan: Plan, times: Times, error: float) -> str:
    rate = task.problem.flops(task.op, task.dtype) / times.median / 1e9
    return f"{times.median * 1e3:9.3f}{rate:9.1f}  {plan.algorithm:11}{error:8.1e}"
