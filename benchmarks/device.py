"""python -m benchmarks.device: all that a GPU is wanted for, what matters most first, in the time there is.

Tests, repeats, records and checkers are parts that take turns (see `turns`). The same command goes on where
the last one ended. All is kept in one folder: a log of each part, the record, the compiled kernels, and
summary.md, which is written anew after each turn.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cuconv import machine, table
from cuconv.cuda.algorithms import TABLE

from . import environment, kernels, sanitizer, summary, turns
from .turns import Outcome, Part

TINY = "n1c2h5w5 k2r3s3 p1"
"""The problem of --quick."""

GPU_TESTS = (
    "tests/test_gpu.py", "tests/test_cudnn.py", "tests/test_docs.py", "tests/test_examples.py",
    "tests/test_ndimage.py", "tests/test_signal.py", "tests/test_torch_adapter.py",
    "tests/test_dask_adapter.py", "tests/test_jax_adapter.py",
)  # fmt: skip
"""The files with tests for a GPU: others may ask for libraries that are not there."""

UNTRIED = tuple(table.untried(TABLE))
"""What no GPU has run yet, in parts of its own: it may not end."""

SUITES = (
    "mobilenet_dw", "convnext", "resnet50", "scientific", "unet3d", "conv1d", "small_batch", "large_kernel",
)  # fmt: skip
"""Those that are measured in their own dtypes, channels first, in order of worth."""


def parts(folder: Path, python: Sequence[str], quick: bool = False) -> list[Part]:
    """The parts in order of worth; with `quick` on a small problem or with a single test."""
    kept, for_tests = str(folder / summary.RECORD), ("pytest", "hypothesis")
    halves = ("--dtype", "float16", "--layout", "channels_last")
    profiler = ("ncu", "--clock-control", "none", "--set", "full", "--kernel-name", "regex:conv_")

    def if_quick(*words: str) -> tuple[str, ...]:
        return words if quick else ()

    def module(name: str, limit: float, *words: str, **more: Any) -> Part:
        return Part(name, limit, (*python, "-m", *words), **more)

    def rows(name: str, limit: float, suite: str, *words: str) -> Part:
        few = if_quick("--problem", TINY, *(() if "--op" in words else ("--op", "fprop")))
        command = ("benchmarks", "--device", "cuda", "--out", kept, "--seconds", "0.2", "--suite", suite)
        return module(name, limit, *command, *words, *few, needs=("threadpoolctl",))

    one_test = if_quick("tests/test_gpu.py", "-k", "images_of_integers")
    workers = ("-n", str(min(8, machine.cores()))) if importlib.util.find_spec("xdist") else ()
    whole = (*GPU_TESTS, "--continue-on-collection-errors", *workers)
    tests = (*python, *sanitizer.PYTEST, "-m", "gpu and not untried", *(one_test or whole))
    untried = ("tests/test_gpu.py", *if_quick("-k", "small_problems and float16"))
    return [
        module(
            "kernels", 90, "benchmarks.kernels", *if_quick("--match", "fprop_direct"), decides=kernels.NO_GPU
        ),
        module("check", 60, "cuconv", "check"),
        Part("gpu", 150, tests, for_tests),
        *(module(name, 45, "cuconv", "check", "--algorithm", name) for name in UNTRIED),
        Part("untried", 60, (*python, *sanitizer.PYTEST, "-m", "gpu and untried", *untried), for_tests),
        module(
            "repeats",
            60,
            "benchmarks.repeats",
            *if_quick("--runs", "3", "--problem", TINY, "--dtype", "float32"),
        ),
        rows("home-float16", 60, "home", *halves),
        rows("home-float32", 60, "home", "--dtype", "float32"),
        rows("home-bgrad", 30, "home", "--op", "bgrad"),
        rows("home-float64", 45, "home", "--dtype", "float64"),
        module(
            "host", 45, "benchmarks.host", "--json", str(folder / "host.json"), *if_quick("--rounds", "1")
        ),
        rows("home-layouts", 60, "home", "--layout", "channels_last", "--layout", "channels_first"),
        rows("resnet50-float16", 90, "resnet50", *halves),
        *(rows(f"resnet50-{name}", 60, "resnet50", *halves, "--algorithm", name) for name in UNTRIED),
        rows("vgg16-float16", 90, "vgg16", *halves),
        rows("grouped-float16", 60, "grouped", *halves),
        rows("first-float16", 60, "first", *halves),
        *(rows(suite, 90, suite) for suite in SUITES),
        *(
            Part(tool, 120, (*sanitizer.command(tool, python), *one_test), for_tests, sanitizer.ENVIRONMENT)
            for tool in sanitizer.TOOLS
        ),
        Part("ncu", 90, (*profiler, *python, "-m", "benchmarks.furthest", kept)),
    ]


def main(arguments: Sequence[str] | None = None, python: Sequence[str] = (sys.executable,)) -> int:
    """Run; 1 if a part failed or a result was wrong, 130 if it was interrupted.

    `python` is the command that stands for Python.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=9, help="after so long no part goes on (default: 9)")
    add("--from", dest="start", metavar="PART", help="begin with this part, again if it has ended")
    add("--out", type=Path, default=turns.ROOT / "device", help="the folder (default: device)")
    add("--quick", action="store_true", help="a small problem of each part, to see that all of it runs")
    options = parser.parse_args(arguments)
    folder = options.out.resolve()
    try:
        summary.read_record(folder)
    except ValueError as error:
        parser.error(f"--out has a record that cannot be gone on with: {error}")
    every = parts(folder, python, options.quick)
    names = [part.name for part in every]
    if options.start not in (None, *names):
        parser.error(f"--from must be one of {', '.join(names)}, got {options.start!r}")
    # A signal that this process handles is not ignored by those that it begins, whoever began this one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return run(every, folder, 60 * options.minutes, options.start)


def run(parts: Sequence[Part], folder: Path, seconds: float, start: str | None = None) -> int:
    """Run the parts from `start` on, or all that have not passed, and keep the page on them."""
    folder.mkdir(parents=True, exist_ok=True)
    source, names = environment.code().source, [part.name for part in parts]
    first = names.index(start) if start else 0
    kept = turns.read(folder, source)
    outcomes = {name: kept.get(name, Outcome()) for name in names}
    if start:
        outcomes |= {name: Outcome() for name in names[first:]}

    def after(part: Part, outcome: Outcome) -> None:
        turns.write(folder, source, outcomes)
        (folder / summary.PAGE).write_text(summary.page(folder, outcomes))
        print(f"{part.name:20} {outcome.seconds:6.0f} s  {outcome.status}", flush=True)
        if outcome.status == "failed":
            print(*summary.last_lines(folder, part.name, 3), sep="\n", flush=True)

    interrupted = False
    try:
        turns.run(parts[first:], outcomes, folder, seconds, after)
    except KeyboardInterrupt:
        interrupted = True
    open_parts = [name for name, outcome in outcomes.items() if outcome.status in ("waiting", "stopped")]
    if open_parts:
        print(f"{len(open_parts)} parts have not ended ({', '.join(open_parts)}): the same command goes on")
    print(f"see {folder / summary.PAGE}")
    failed = summary.failed(outcomes) or summary.wrong(summary.read_record(folder))
    return 130 if interrupted else 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
