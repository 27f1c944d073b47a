"""python -m benchmarks.repeats: every op by every algorithm again and again, whose bits must stay.

On a GPU blocks begin and end in another order each time, so a result that depends on the order shows here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from cuconv.arrays import Array
from cuconv.cli.timed_calls import operands
from cuconv.cuda import jit, launch
from cuconv.plan import INPUTS, TABLES, Plan, current_arch, device_of, make_plan
from cuconv.problem import LAYOUTS, OPS, ConvProblem, Request

from . import suites


def main(arguments: Sequence[str] | None = None) -> int:
    """Repeat; 1 if a result differs from the first one."""
    home = suites.read(suites.HOME)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repeats", description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="of each call (default: 100)")
    parser.add_argument("--problem", help=f"one problem (default: those of {home.name} with 8 images)")
    parser.add_argument("--dtype", action="append", help=f"default: {', '.join(home.dtypes)}")
    options = parser.parse_args(arguments)
    problems = [ConvProblem.parse(options.problem)] if options.problem else home.with_batch(8).problems
    calls = differing = 0
    for problem in problems:
        for dtype in options.dtype or home.dtypes:
            for layout in LAYOUTS:
                for plan, inputs in plans(problem, dtype, layout):
                    calls += 1
                    run = first_that_differs(plan, inputs, options.runs)
                    if run is not None:
                        differing += 1
                        print(f"{plan.algorithm}, run {run}: {plan.request}", flush=True)
    print(f"{calls} calls, {options.runs} runs of each: {differing or 'none'} not bitwise equal")
    return 1 if differing else 0


def plans(problem: ConvProblem, dtype: str, layout: str) -> Iterator[tuple[Plan, list[Array]]]:
    """Every op by every algorithm that can do it, and its operands on the GPU."""
    xp, arch = jit.require_cupy(), current_arch("cuda")
    arrays = {role: xp.asarray(array) for role, array in operands(problem, dtype, layout).items()}
    for op in OPS:
        request = Request(op, problem, dtype, layout)
        for entry in TABLES["cuda"][op]:
            if entry.untried or (entry.name == "fft" and not launch.has_transforms()):
                continue
            if entry.applies(request, device_of("cuda", arch)) is None:
                yield make_plan(request, entry.name, "cuda", arch), [arrays[role] for role in INPUTS[op]]


def first_that_differs(plan: Plan, inputs: list[Array], runs: int) -> int | None:
    """The number of the first run whose bits are not those of run 1, if there is one."""
    first = plan(*inputs).view(np.uint8)
    for run in range(2, runs + 1):
        if (plan(*inputs).view(np.uint8) != first).any():
            return run
    return None


if __name__ == "__main__":
    sys.exit(main())
