"""python -m benchmarks.host: microseconds of the host per call that is made again, and where they go.

On the current GPU calls are queued and not waited for, so that the kernels' time does not count. Where there
is none, calls run over a stand-in for CuPy: then the column of cuconv counts, the others are the stand-in's.

    launches  CuPy's and the driver's part of a call's launches
    results   memory for what the call returns
    cuconv    all else: the look-up, checks, arguments, memory to work in
    replayed  the call in a CUDA graph, the GPU's own time included
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import cuconv
from cuconv import prepared
from cuconv.cli import timed_calls
from cuconv.cli.clock import Clock, clock_here, host_seconds
from cuconv.cuda import jit

from . import stand_in

X, W = (1, 8, 8, 8), (8, 8, 3, 3)
STEPS = ("total", "launches", "results", "cuconv", "replayed")
Call = Callable[[], Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write it to a file where one is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__.partition(":")[2])
    parser.add_argument("--rounds", type=int, default=100, help="of 50 calls each; the best one counts")
    parser.add_argument("--json", type=Path, metavar="PATH", help="a file for the same figures")
    options = parser.parse_args(arguments)
    cupy = jit.usable_cupy()
    with ExitStack() as stack:
        clock = clock_here()
        stack.enter_context(clock.stream)
        where = "on a GPU" if cupy else "over a stand-in for CuPy: all but CuPy's and the driver's own work"
        array = cupy.ones if cupy else stand_in.Array
        if not cupy:
            stack.enter_context(stand_in.installed()).launched = deque(maxlen=0)
        print(f"microseconds of the host per call, {where}")
        print(f"{'':28}" + "".join(f"{step:>10}" for step in STEPS))
        found, ours = {}, calls(array)
        for name, call in (ours | torch_calls(clock) | jax_calls(clock)).items():
            steps = found[name] = measured(clock, call, options.rounds)
            seconds = clock.replayed(call) if name in ours else None
            steps["replayed"] = None if seconds is None else 1e6 * seconds
            print(f"{name:28}" + "".join(f"{_text(steps.get(step)):>10}" for step in STEPS), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"where": where, "microseconds": found}, indent=1) + "\n")
    return 0


def _text(microseconds: float | None) -> str:
    return "" if microseconds is None else f"{microseconds:.1f}"


def calls(array: Callable[..., Any]) -> dict[str, Call]:
    """The calls by name, on arrays that are made of their shapes."""
    x, w, bias, y, dy = (array(shape, "float32") for shape in (X, W, W[:1], X, X))
    plan = cuconv.plan("fprop", X, W, padding=1, backend="cuda")
    tuples = dict(stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1))
    return {
        "conv": lambda: cuconv.conv(x, w, padding=1),
        "conv, out": lambda: cuconv.conv(x, w, padding=1, out=y),
        "conv, out, bias, tuples": lambda: cuconv.conv(x, w, bias, **tuples, out=y),
        "a plan": lambda: plan(x, w),
        "conv_input_grad": lambda: cuconv.conv_input_grad(dy, w, X, padding=1),
        "conv_weight_grad": lambda: cuconv.conv_weight_grad(x, dy, W, padding=1),
        "conv_bias_grad": lambda: cuconv.conv_bias_grad(dy),
        "conv_backward": lambda: cuconv.conv_backward(dy, x, w, padding=1),
        "conv_transpose": lambda: cuconv.conv_transpose(dy, w, padding=1),
    }


def torch_calls(clock: Clock) -> dict[str, Call]:
    """PyTorch's own small convolution, and on a GPU cuconv's of its tensors, where PyTorch is installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    import cuconv.torch

    if clock.device == "cuda" and not torch.cuda.is_available():
        return {}
    timed_calls.ready_torch(clock, threads=1)
    x, w = (torch.ones(shape, device=clock.device) for shape in (X, W))
    theirs = {f"PyTorch on {clock.device}": lambda: torch.nn.functional.conv2d(x, w, padding=1)}
    ours = {
        "conv of PyTorch's tensors": lambda: cuconv.conv(x, w, padding=1),
        "cuconv.torch.conv2d": lambda: cuconv.torch.conv2d(x, w, padding=1),
    }
    return ours | theirs if clock.device == "cuda" else theirs


def jax_calls(clock: Clock) -> dict[str, Call]:
    """JAX's own small convolution and cuconv's of its arrays, compiled, where JAX has the clock's device.

    On a CPU they are waited for, with what they compute.
    """
    if importlib.util.find_spec("jax") is None:
        return {}
    import jax

    import cuconv.jax

    if (jax.default_backend() == "gpu") != (clock.device == "cuda"):
        return {}
    x, w = map(jax.numpy.ones, (X, W))
    wait: Callable[[Any], Any] = jax.block_until_ready if clock.device == "cpu" else lambda result: result
    ours = jax.jit(partial(cuconv.jax.conv, padding=1))
    theirs = jax.jit(partial(jax.lax.conv, window_strides=(1, 1), padding="SAME"))
    return {
        "cuconv.jax.conv in jit": lambda: wait(ours(x, w)),
        f"JAX on {clock.device}": lambda: wait(theirs(x, w)),
    }


def measured(clock: Clock, call: Call, rounds: int) -> dict[str, float | None]:
    """Microseconds per call, in all and by step; in all only where it is none of ours on a GPU."""
    prepared.forget()
    found: dict[str, float | None] = {"total": least(clock, call, rounds)}
    for known in prepared._kept.values():
        if not known.owner.on_gpu:  # JAX's on a CPU, by a callback
            continue
        steps = [step for step in known.steps if step]
        launches = [step.launches.launches for step in steps]
        for step in steps:
            step.launches.launches = [(_nothing, *rest) for _, *rest in step.launches.launches]
        without = least(clock, call, rounds)
        for step, real in zip(steps, launches, strict=True):
            step.launches.launches = real
        new = [(step.shape, step.dtype) for step in steps if step.out is None]
        results = sum(least(clock, partial(known.namespace.ndarray, *each), rounds) for each in new)
        found |= {"launches": found["total"] - without, "results": results, "cuconv": without - results}
    return found


def least(clock: Clock, call: Call, rounds: int) -> float:
    """The least microseconds per call of some rounds: what others do to the machine only adds to it."""
    return 1e6 * host_seconds(clock, call, calls=50, rounds=rounds, of=min)


def _nothing(*arguments: Any) -> None:
    """In the place of a launch."""


if __name__ == "__main__":
    sys.exit(main())
