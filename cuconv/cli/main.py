"""The command line: python -m cuconv info | check | explain | bench | demo"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from .. import __version__
from ..dtypes import DTYPES, NARROW
from ..plan import avoided, current_arch
from ..problem import LAYOUTS, OPS, ConvProblem

NOTATION = (
    "n32c64h56w56 k64r3s3 p1: batch, input channels and extents (w, h w or d h w); output channels and "
    "filter extents (s, r s or t r s); then, where they are not 1 or 0, g groups, sh sw strides, dh dw "
    "dilations, ph pw (or p for all) padding, before:after where they differ; last a padding "
    "mode: circular, reflect, replicate or symmetric"
)
"""How a problem is written, by an example."""

_INTERRUPTED, _NO_READER = 130, 141
"""The exit status of a program that SIGINT or SIGPIPE ends, as a shell gives it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Ctrl-C, a reader that wants no more (`| head`) and what the system refuses end it without a traceback.
    """
    try:
        try:
            return _run(arguments)
        finally:
            print(end="", flush=True)  # here, since what fails at exit can no longer be caught
    except KeyboardInterrupt:
        status, reason = _INTERRUPTED, "interrupted"
    except BrokenPipeError:
        status, reason = _NO_READER, ""
    except OSError as error:
        status, reason = 1, f"cuconv: {error}"
    # The exception is gone by now, and a progress bar that it held has ended its line.
    if reason:
        print(reason, file=sys.stderr)
    _discard(sys.stdout)
    if status == _NO_READER:
        _discard(sys.stderr)
    return status


def _discard(stream: TextIO | None) -> None:
    """Send what a stream still holds nowhere: Python tries to write it once more at exit."""
    if stream is not None:
        with contextlib.suppress(OSError):  # it may be no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cuconv", description="Convolution and its gradients.")
    parser.add_argument("--version", action="version", version=f"cuconv {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add(commands, "info", "what was found on this machine, and what is missing")
    check = _add(commands, "check", "a self-test: every algorithm against plain sums in double precision")
    check.add_argument("--seed", type=at_least(0), default=0, help="of the random operands")
    check.add_argument(
        "--algorithm",
        action="append",
        default=[],
        help="only this one, whether a GPU has run it or not",
    )
    explain = commands.add_parser(
        "explain", help="which algorithm would do a problem, and why",
        description="Which algorithm would do a problem, and why. Times are estimates that rank candidates.",
    )  # fmt: skip
    explain.add_argument("problem", nargs="+", help=NOTATION)
    explain.add_argument("--op", choices=OPS, action="append", help="by default fprop, dgrad and wgrad")
    explain.add_argument("--dtype", choices=[*DTYPES, *NARROW], default="float32")
    explain.add_argument(
        "--out-dtype",
        choices=("int32", "int64"),
        help="of fprop's result, where x and w are narrower integers",
    )
    explain.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0])
    explain.add_argument("--algorithm", default="auto", help="a name, or auto")
    explain.add_argument(
        "--device", help="cpu, or an architecture, sm_80 and the like; by default what is here"
    )
    _add(commands, "bench", "time and error of every op on a dozen problems, beside PyTorch if installed")
    demo = _add(commands, "demo", "learn a filter and train a network, with a picture at the end")
    demo.add_argument("--out", type=Path, default=Path("cuconv-demo.png"), help="the picture's file (PNG)")
    demo.add_argument("--quick", action="store_true", help="a few steps only, without a goal")
    options = parser.parse_args(arguments)

    if options.command == "info":
        from . import info

        return info.main()
    try:
        avoided()
    except ValueError as error:
        parser.error(str(error))
    if options.command == "check":
        from . import check as self_test

        try:
            return self_test.main(options.seed, options.algorithm)
        except ValueError as error:
            check.error(str(error))
    if options.command == "explain":
        return _explain(explain, options)
    if options.command == "bench":
        from . import bench

        return bench.main()
    return _demo(demo, options)


def _add(commands: Any, name: str, does: str) -> argparse.ArgumentParser:
    """A command whose own help says what the list of commands says."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=does, description=f"{does[0].upper()}{does[1:]}."
    )
    return parser


def at_least(least: int) -> Callable[[str], int]:
    """A type of arguments: integers from `least` on."""

    def integer(text: str) -> int:
        with contextlib.suppress(ValueError):
            if (value := int(text)) >= least:
                return value
        raise argparse.ArgumentTypeError(f"must be an integer of at least {least}, got {text!r}")

    return integer


def _explain(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from . import explain

    arch = options.device if options.device is not None else current_arch("cuda") or "cpu"
    try:
        ops = tuple(options.op or (OPS[:1] if options.out_dtype else OPS[:3]))
        arch = None if arch == "cpu" else arch
        problem = read_problem(" ".join(options.problem))
        return explain.main(
            problem, ops, options.dtype, options.layout, arch, options.algorithm, options.out_dtype
        )
    except (TypeError, ValueError) as error:
        parser.error(str(error))


def read_problem(text: str) -> ConvProblem:
    """A problem in the one-line notation; who writes it wrong is told how it is written."""
    try:
        return ConvProblem.parse(text)
    except ValueError as error:
        how = textwrap.fill(f"A problem is written like {NOTATION}.", 80)
        raise ValueError(f"{error}\n\n{how}") from None


def _demo(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from . import demo, info

    if lacks := info.demo_lacks():
        print(f"the demo needs {lacks}: pip install 'cuconv[demo]'", file=sys.stderr)
        return 1
    if options.out.suffix.lower() != ".png" or not options.out.absolute().parent.is_dir():
        parser.error(f"--out must be a .png file in an existing folder, got {options.out}")
    try:
        _try_to_write(options.out)
    except OSError as error:
        parser.error(f"--out must be a file that can be written: {error}")
    return demo.main(options.out, options.quick)


def _try_to_write(path: Path) -> None:
    """Raise OSError where a file cannot be written, and leave everything as it was."""
    path = Path(os.path.realpath(path))  # a link to nothing stays
    new = not path.exists()
    path.open("ab").close()
    if new:
        path.unlink()
