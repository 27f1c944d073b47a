"""What commands share of reading their arguments: problems, files, and errors that name the argument."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ..dtypes import DTYPES
from ..options import shown
from ..problem import LAYOUTS, ConvProblem

NOTATION = (
    "n32c64h56w56 k64r3s3 p1: batch, input channels and extents (w, h w or d h w); output channels and "
    "filter extents (s, r s or t r s); then, where they are not 1 or 0, g groups, sh sw strides, dh dw "
    "dilations, ph pw (or p for all) padding, before:after where they differ; last a padding "
    "mode: circular, reflect, replicate or symmetric"
)
"""How a problem is written, by an example."""

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

STATUS = "exit status: 0 done, 1 something failed or was not within its bound, 2 wrong usage, 130 interrupted"

_MOST_BYTES = 1 << 20
"""Of a file of problems."""

_LONG = re.compile(r"(\S{120})\S{120,}(\S{40})")
_MOST_TEXT = 1200


class UsageError(Exception):
    """The message says which argument is wrong, and how."""


class CommandError(Exception):
    """The message says what cannot be done here, and the way out."""


class Parser(argparse.ArgumentParser):
    """One whose errors are short, whatever was given, and whose help ends with an example."""

    def __init__(self, *, example: str = "", **options: Any) -> None:
        epilog = f"example: {example}\n\n{textwrap.fill(STATUS, 78)}"
        options["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(epilog=epilog, **options)

    def error(self, message: str) -> NoReturn:
        """End with the status of wrong usage; what argparse quotes of the arguments is on one line."""
        self.refuse("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message))

    def refuse(self, message: str) -> NoReturn:
        """End with the status of wrong usage, for a reason that may have several lines."""
        text = short(message)
        hint = "" if "\n" in text else f"\n{self.prog} --help shows how it is used."
        self.exit(2, f"{self.prog}: error: {text}{hint}\n")


def short(message: str) -> str:
    """An error's text without the middle of long words, and without an end that nobody would read."""
    text = _LONG.sub(r"\1 ... \2", message)
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]} ..."


def at_least(least: int) -> Callable[[str], int]:
    """A type of arguments: integers from `least` on."""

    def integer(text: str) -> int:
        with contextlib.suppress(ValueError):
            if (value := int(text)) >= least:
                return value
        raise argparse.ArgumentTypeError(f"must be an integer of at least {least}, got {shown(text)}")

    return integer


def path(text: str) -> Path:
    """A type of arguments: names of files and folders, which may not be there."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"must be the name of a file or folder, got {shown(text)}")
    return Path(text)


def read_problem(text: str) -> ConvProblem:
    """A problem in the one-line notation; who writes it wrong is told how it is written."""
    try:
        return ConvProblem.parse(text)
    except ValueError as error:
        how = textwrap.fill(f"A problem is written like {NOTATION}.", 80)
        raise ValueError(f"{error}\n\n{how}") from None


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option that asks for data in place of text."""
    parser.add_argument("--json", action="store_true", help="print one JSON document, and nothing else")


def add_problems(parser: argparse.ArgumentParser, ops: tuple[str, ...]) -> None:
    """Add a list of problems, and how they are to be done: by all of these ops, unless some are named."""
    parser.add_argument("problem", nargs="*", help=f"each one argument, like {NOTATION}")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FILE",
        help="a file of more problems, one a line, - for standard input; # begins a comment",
    )
    parser.add_argument("--bench", action="store_true", help="also the problems of python -m cuconv bench")
    add_ops(parser, ops, ops)
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        action="append",
        metavar="DTYPE",
        help=f"{', '.join(DTYPES)}; by default float32; may be given again",
    )
    parser.add_argument(
        "--layout", choices=LAYOUTS, action="append", help=f"by default {LAYOUTS[0]}; may be given again"
    )


def add_ops(parser: argparse.ArgumentParser, ops: tuple[str, ...], default: tuple[str, ...]) -> None:
    """Add the choice of ops."""
    words = f"{', '.join(default[:-1])} and {default[-1]}"
    parser.add_argument("--op", choices=ops, action="append", help=f"by default {words}; may be given again")


def problems(options: argparse.Namespace) -> list[ConvProblem]:
    """The problems that were asked for, each once; UsageError where one is written wrong."""
    found = [_problem("", text) for text in options.problem]
    if options.source is not None:
        name = f"--from {shown(options.source)}"
        for number, line in enumerate(_lines(name, options.source), 1):
            text = line.partition("#")[0].strip()
            if text:
                found.append(_problem(f"{name}, line {number}: ", text))
    if options.bench:
        found += map(ConvProblem.parse, PROBLEMS)
    return list(dict.fromkeys(found))


def ways(options: argparse.Namespace, ops: tuple[str, ...]) -> tuple[list[str], list[str], list[str]]:
    """The ops, or all of these, dtypes and layouts that were asked for, each once."""
    asked = (options.op or ops, options.dtype or ["float32"], options.layout or LAYOUTS[:1])
    first, second, third = (list(dict.fromkeys(names)) for names in asked)
    return first, second, third


def _problem(where: str, text: str) -> ConvProblem:
    try:
        return read_problem(text)
    except ValueError as error:
        raise UsageError(f"{where}{error}") from None


def _lines(name: str, source: str) -> list[str]:
    """The lines of a file, or of standard input."""
    try:
        if source == "-":
            if sys.stdin is None:
                raise UsageError(f"{name} cannot be read: there is no standard input")
            content = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            # A pipe is waited for, as by other programs: a shell's <(...) is one.
            with open(path(source), "rb") as file:
                content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise UsageError(f"{name} must have at most {_MOST_BYTES:,} bytes")
        return content.decode("utf-8-sig").splitlines()
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--from {error}") from None
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not a text: it must be in UTF-8") from None


def can_be_written(folder: Path) -> str | None:
    """Why a folder, made where it is missing, cannot be written to; None where it can."""
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)
