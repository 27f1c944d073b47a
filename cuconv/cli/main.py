"""The command line: python -m cuconv info | check | explain | tune | compile | bench | demo"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from .. import __version__
from ..plan import avoided
from . import bench, check, compile, demo, explain, info, tune
from .arguments import NOTATION, CommandError, Parser, UsageError, at_least, read_problem, short

__all__ = ["NOTATION", "at_least", "main", "read_problem"]

COMMANDS = {
    "info": info,
    "check": check,
    "explain": explain,
    "tune": tune,
    "compile": compile,
    "bench": bench,
    "demo": demo,
}
"""By name a module: what it DOES, an EXAMPLE, add_options(parser), and run(options) with an exit status."""

EXAMPLE = 'python -m cuconv explain "n32c64h56w56 k64r3s3 p1"'

_INTERRUPTED, _NO_READER = 130, 141
"""The exit status of a program that SIGINT or SIGPIPE ends, as a shell gives it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Ctrl-C, a reader that wants no more (`| head`) and what the system refuses end it without a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may have what no text has
    try:
        try:
            return _run(arguments)
        finally:
            print(end="", flush=True)  # here, since what fails at exit can no longer be caught
    except KeyboardInterrupt:
        status, reason = _INTERRUPTED, "interrupted"
    except BrokenPipeError:
        status, reason = _NO_READER, ""
    except (CommandError, OSError) as error:
        status, reason = 1, f"cuconv: {error}"
    except MemoryError as error:
        status, reason = 1, f"cuconv: there is not enough memory: {error}"
    # The exception is gone by now, and a progress bar that it held has ended its line.
    if reason and sys.stderr is not None:
        print(short(reason), file=sys.stderr)
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
    parser = Parser(prog="python -m cuconv", description="Convolution and its gradients.", example=EXAMPLE)
    parser.add_argument("--version", action="version", version=f"cuconv {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {}
    for name, module in COMMANDS.items():
        does = module.DOES
        parsers[name] = commands.add_parser(
            name, help=does, description=f"{does[0].upper()}{does[1:]}.", example=module.EXAMPLE
        )
        module.add_options(parsers[name])
    options = parser.parse_args(arguments)
    try:
        if options.command != "info":  # which says itself what is wrong with it
            _check_variables()
        status: int = COMMANDS[options.command].run(options)
    except UsageError as error:
        parsers[options.command].refuse(str(error))
    return status


def _check_variables() -> None:
    try:
        avoided()
    except ValueError as error:
        raise UsageError(str(error)) from None
