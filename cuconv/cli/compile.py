"""Compiles kernels ahead of time, for architectures by name: with CuPy and NVRTC, and without a GPU.

A file has the name under which a call looks for it, which follows from the kernel's source, the options, the
compiler and what it compiles for: see `cuda/jit.py`, which makes both.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..api import plan
from ..cuda import algorithms, jit
from ..cuda.device import asked_for
from ..cuda.kernel import Kernel
from ..machine import cores
from ..plan import current_arch, exact_candidates
from ..problem import OPS, ConvProblem
from . import report
from .arguments import (
    CommandError,
    UsageError,
    add_json,
    add_problems,
    can_be_written,
    path,
    problems,
    ways,
)  # fmt: skip

DOES = "compile the kernels of a list of problems ahead of time, for GPUs that need not be here"
EXAMPLE = 'python -m cuconv compile "n32c64h56w56 k64r3s3 p1" --device sm_80 --op fprop --out kernels'


@dataclass(frozen=True)
class Row:
    """A kernel for an architecture: its bytes of code, and the seconds that making it took.

    `target` is what NVRTC compiled for: machine code for sm_80 and the like, PTX for compute_80 and the like,
    which the driver finishes when it is loaded.
    """

    kernel: str
    architecture: str
    target: str | None = None
    file: str | None = None
    bytes: int = 0
    seconds: float = 0.0
    kept: bool = False
    error: str | None = None

    def __str__(self) -> str:
        if self.error:
            return f"{self.architecture:6}{'failed':>17}  {self.kernel}: {self.error}"
        seconds = "kept" if self.kept else f"{self.seconds:.2f}"
        as_ptx = "" if (self.target or "").startswith("sm_") else " as PTX"
        return f"{self.architecture:6}{self.bytes:>9,}{seconds:>8}  {self.kernel}{as_ptx}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be asked."""
    add_problems(parser, OPS)
    parser.add_argument(
        "--algorithm", default="auto", help="a name; by default auto; tune is all that it would time"
    )
    parser.add_argument(
        "--device",
        action="append",
        help="an architecture, sm_80 and the like, by default that of the GPU at hand; may be given again",
    )
    parser.add_argument("--all", action="store_true", help="every kernel that there is, whatever the problem")
    parser.add_argument(
        "--out", type=path, metavar="FOLDER", help="by default the one that calls keep kernels in"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Compile, and keep; 0 if all kernels are there now."""
    listed = problems(options)
    if not listed and not options.all:
        raise UsageError(
            "no problem is given: write one, name a file of them by --from, or take --bench or --all"
        )
    architectures = _architectures(options.device)
    if sys.stderr and sys.stderr.isatty():
        print(f"finding the kernels of {len(listed):,} problems", file=sys.stderr)
    jobs = list(dict.fromkeys(_jobs(listed, options, architectures)))
    if options.out is None and not jit.keeps():
        raise UsageError("CUPY_CACHE_IN_MEMORY is 1, so that calls keep no kernels: name a folder by --out")
    folder = options.out or jit.cache_folder()
    cupy = _cupy()
    if why_not := can_be_written(folder):
        raise CommandError(f"kernels cannot be kept in {folder} ({why_not}): name another folder by --out")
    document = _compiled(cupy, jobs, folder, report.teller(options.json))
    if options.json:
        report.write(document)
    return 1 if document["failed"] else 0


def _architectures(names: list[str] | None) -> list[str]:
    """What to compile for; UsageError where that is no architecture, or there is no GPU to go by."""
    if not names:
        here = current_arch("cuda")
        if here is None:
            raise UsageError("there is no GPU to compile for: name an architecture, as --device sm_80")
        return [here]
    try:
        for name in names:
            asked_for(name, lambda: current_arch("cuda"))
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    return list(dict.fromkeys(names))


def _jobs(
    listed: list[ConvProblem], options: argparse.Namespace, architectures: list[str]
) -> Iterator[tuple[str, Kernel]]:
    """The kernels by architecture that calls of the problems would launch there, or all that it can have."""
    ops, dtypes, layouts = ways(options, OPS)
    for arch in architectures:
        here = int(arch[3:])
        for kernel in algorithms.kernels() if options.all else ():
            if jit.suits(kernel, here):
                yield arch, kernel
        for asked in itertools.product(listed, ops, dtypes, layouts):
            for kernel in _kernels(*asked, arch, options.algorithm):
                yield arch, kernel


def _kernels(
    problem: ConvProblem, op: str, dtype: str, layout: str, arch: str, algorithm: str
) -> Iterator[Kernel]:
    """What a call would launch, by its plan; with `tune` by those of all candidates."""

    def planned(algorithm: str) -> Any:
        shapes = problem.x_shape(layout), problem.w_shape(layout)
        return plan(
            op, *shapes, dtype, **problem.options(),
            layout=layout, algorithm=algorithm, backend="cuda", device=arch,
        )  # fmt: skip

    try:
        by_name = algorithm != "tune" and op != "bgrad"  # of which there is one
        plans = [planned(algorithm if by_name else "auto")]
        if algorithm == "tune":
            plans = [planned(entry.name) for entry in exact_candidates(plans[0].request, "cuda", arch)]
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    for each in plans:
        for launch in each.launches:
            if hasattr(launch, "kernel"):  # cuFFT's transforms have none
                yield launch.kernel


def _cupy() -> Any:
    """The module cupy, with its compiler; CommandError otherwise."""
    install = "pip install 'cuconv[cuda12]', or 'cuconv[cuda13]'"
    try:
        import cupy
    except (ImportError, OSError) as error:
        raise CommandError(f"compiling needs CuPy, which cannot be imported ({error}): {install}") from error
    if cupy.cuda.runtime.is_hip:
        raise CommandError("this CuPy is made for AMD GPUs; cuconv has CUDA kernels, for NVIDIA GPUs")
    try:
        cupy.cuda.nvrtc.getVersion()
    except (AttributeError, OSError, RuntimeError) as error:
        raise CommandError(f"compiling needs NVRTC, which CuPy cannot load ({error}): {install}") from error
    return cupy


def _compiled(cupy: Any, jobs: list[tuple[str, Kernel]], folder: Path, say: report.Say) -> dict[str, Any]:
    """Find the rows, and say them as they are found."""
    start, rows = time.perf_counter(), []
    say(f"Compiling {len(jobs):,} kernels into {folder}.\n")
    say(f"{'GPU':6}{'bytes':>9}{'s':>8}  kernel")
    pool = ThreadPoolExecutor(cores())  # NVRTC is called without the interpreter's lock
    try:
        for row in pool.map(lambda job: _row(cupy, folder, *job), jobs):
            rows.append(row)
            say(row)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    failed = sum(row.error is not None for row in rows)
    kept = sum(row.kept for row in rows)
    size, seconds = sum(row.bytes for row in rows), time.perf_counter() - start
    compiled = len(rows) - kept - failed
    say(f"\n{compiled:,} compiled, {kept:,} kept, {failed:,} failed: {size:,} bytes, {seconds:.1f} s")
    return {
        "folder": str(folder),
        "rows": [asdict(row) for row in rows],
        "compiled": compiled,
        "kept": kept,
        "failed": failed,
        "bytes": size,
        "seconds": seconds,
    }


def _row(cupy: Any, folder: Path, arch: str, kernel: Kernel) -> Row:
    start = time.perf_counter()
    try:
        made = jit.built(cupy, kernel, int(arch[3:]), [folder])
        if not made.found:
            jit.keep(folder, made)
    except (OSError, RuntimeError) as error:
        return Row(kernel.name, arch, error=str(error))
    seconds = 0.0 if made.found else time.perf_counter() - start
    return Row(kernel.name, arch, made.target, made.name, len(made.code), seconds, made.found)
