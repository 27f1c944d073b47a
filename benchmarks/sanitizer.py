"""python -m benchmarks.sanitizer: the CUDA toolkit's four checkers over the small GPU tests.

Explicit calls of CUDA, which are CuPy's, must succeed too: modules are loaded from memory, and not looked for
in files that may not be there. Implicit ones are the CUDA runtime's own, which tries what an older driver may
lack.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
ENVIRONMENT = {"CUPY_CACHE_IN_MEMORY": "1"}
OPTIONS = ("--report-api-errors", "explicit", "--error-exitcode", "1", "--target-processes", "all")
PYTEST = ("-m", "pytest", "-o", "addopts=", "-q")
"""pytest without this project's own options, which ask for pytest-xdist."""

TESTS = ("tests/test_gpu.py", "-m", "sanitize and not untried")


def command(tool: str, python: Sequence[str], program: str = "compute-sanitizer") -> list[str]:
    """The command that runs the tests under one checker, with CuPy's cache in memory."""
    return [program, "--tool", tool, *OPTIONS, *python, *PYTEST, *TESTS]


def main(program: str = "compute-sanitizer") -> int:
    """Run the checkers in turn, until one finds something."""
    for tool in TOOLS:
        environment = {**os.environ, **ENVIRONMENT}
        if status := subprocess.run(command(tool, [sys.executable], program), env=environment).returncode:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
