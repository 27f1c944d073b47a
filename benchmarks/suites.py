"""The problem lists: a file of one-line problems per suite, '#' for comments.

A comment `# dtypes: float64 complex64` names the dtypes that a suite is run in by default.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cuconv import ConvProblem
from cuconv.dtypes import described

FOLDER = Path(__file__).parent / "problems"
HOME = "home"
"""A few problems of the other suites, for a first look at a device: run where it is named."""


@dataclass(frozen=True)
class Suite:
    """Problems that belong together, and the dtypes they are run in where none are asked for."""

    name: str
    problems: tuple[ConvProblem, ...]
    dtypes: tuple[str, ...] = ("float32",)

    def with_batch(self, batch: int) -> Suite:
        """The same problems, each once, for another number of images."""
        problems = dict.fromkeys(replace(problem, n=batch) for problem in self.problems)
        return replace(self, problems=tuple(problems))


def names() -> list[str]:
    """The suites there are."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def default() -> list[str]:
    """Those that are run where none is named."""
    return [name for name in names() if name != HOME]


def read(name: str) -> Suite:
    """A suite by name; ValueError, naming the file and the line, for what is not a problem."""
    problems, dtypes = [], Suite.dtypes
    for number, line in enumerate((FOLDER / f"{name}.txt").read_text().splitlines(), start=1):
        text, _, comment = line.partition("#")
        if comment.strip().startswith("dtypes:"):
            dtypes = tuple(described(word).name for word in comment.partition(":")[2].split())
        if text.strip():
            try:
                problems.append(ConvProblem.parse(text))
            except ValueError as error:
                raise ValueError(f"{name}.txt, line {number}: {error}") from error
    return Suite(name, tuple(problems), dtypes)
