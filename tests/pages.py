"""Runs the code in a page, and compares what it prints with what the page says that it prints.

    python -m tests.pages docs/tutorial/filtering.md

does so in the page's own folder, so that the pictures beside it are drawn anew. Python blocks share a scope.
A text block right after another block is what that one prints, "..." standing for anything. The lines of a
shell block are commands: cuconv's own that answer in seconds are run, of others only what they name is looked
for. Where there is no GPU that CuPy can use, `import cupy` finds a module of NumPy's functions.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from cuconv import cudnn
from cuconv.cuda import jit

ROOT = Path(__file__).parents[1]
ELSEWHERE = ("bench", "check", "compile", "demo")
"""Commands of cuconv's that take longer than a few seconds, or need CuPy, and have tests of their own."""

_BLOCK = re.compile(r"^```([\w{}-]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of a page: its kind, its text, the line it begins on, and what the page says that it prints."""

    kind: str
    text: str
    line: int
    prints: str | None = None


def blocks(page: str) -> list[Block]:
    """The blocks of a page in order, without those that are another one's output."""
    found: list[Block] = []
    end = -1
    for match in _BLOCK.finditer(page):
        kind, text = match.groups()
        follows = not page[end : match.start()].strip() if end >= 0 else False
        end = match.end()
        if kind == "text" and follows and found[-1].prints is None and found[-1].kind in ("python", "sh"):
            last = found.pop()
            found.append(Block(last.kind, last.text, last.line, text))
        else:
            found.append(Block(kind, text, page.count("\n", 0, match.start()) + 2))
    return found


def run(page: list[Block], name: str = "page") -> int:
    """Run a page's blocks in the current folder; how many. AssertionError where one prints something else."""
    executed = [block for block in page if block.kind in ("python", "sh")]
    scope = {"__name__": "__page__"}
    with cupy_or_numpy():
        for block in executed:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                if block.kind == "python":
                    code = "\n" * (block.line - 1) + block.text
                    exec(compile(code, name, "exec"), scope)
                else:
                    told = [command(words) for words in commands(block.text)]
                    print(*(each for each in told if each), sep="", end="")
            if block.prints is not None and (block.kind == "python" or told != [None] * len(told)):
                where = f"{name}:{block.line} prints\n{printed.getvalue()}\nand not\n{block.prints}"
                assert matches(printed.getvalue(), block.prints), where
    return len(executed)


@contextlib.contextmanager
def cupy_or_numpy() -> Iterator[None]:
    """A module cupy: CuPy itself where there is a GPU, or else NumPy's functions and idle streams."""
    if jit.usable_cupy():
        yield
        return
    stand_in, beside = types.ModuleType("cupy"), types.ModuleType("cupyx")
    vars(stand_in).update({name: getattr(np, name) for name in np.__all__})
    stand_in.__version__ = "14"
    stand_in.cuda = types.ModuleType("cupy.cuda")
    stand_in.cuda.Stream = mock.MagicMock
    modules = {"cupy": stand_in, "cupy.cuda": stand_in.cuda, "cupyx": beside}
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)  # what else a page imports stays
    try:
        yield
    finally:
        cudnn.uninstall()  # where a page has installed it
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def matches(printed: str, said: str) -> bool:
    """Whether a text is as it was said to be."""
    pattern = ".*".join(map(re.escape, _trimmed(said).split("...")))
    return re.fullmatch(pattern, _trimmed(printed), re.DOTALL) is not None


def _trimmed(text: str) -> str:
    return "\n".join(map(str.rstrip, text.strip().splitlines()))


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell block, as words, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def command(words: list[str]) -> str | None:
    """What a command prints, None if it is not to be run; AssertionError where it fails or names nothing."""
    settings = dict(itertools.takewhile(lambda pair: len(pair) == 2, (word.split("=", 1) for word in words)))
    program, *arguments = words[len(settings) :]
    for word in arguments:
        if re.fullmatch(r"(benchmarks|docs|examples|tests|docker)/[\w./-]+", word):
            assert (ROOT / word).exists(), f"{word} in {shlex.join(words)}"
    if program == "make":
        assert arguments[0] in _TARGETS, shlex.join(words)
    if program not in ("python", ".venv/bin/python") or arguments[0] not in ("-m", "-c"):
        return None
    if arguments[0] == "-m" and arguments[1] != "cuconv":
        if (ROOT / arguments[1].partition(".")[0]).exists():
            assert importlib.util.find_spec(arguments[1]) is not None, shlex.join(words)
        return None
    if {*arguments[2:3]} & {*ELSEWHERE}:
        return None
    env = {**os.environ, **settings, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{shlex.join(words)} ended with {done.returncode}:\n{done.stderr}"
    return done.stdout


def main(names: list[str]) -> int:
    for path in [Path(name).resolve() for name in names]:
        os.chdir(path.parent)
        print(f"{path.name}: {run(blocks(path.read_text()), path.name)} blocks")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
