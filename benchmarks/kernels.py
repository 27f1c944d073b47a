"""python -m benchmarks.kernels: compile every kernel for the GPU at hand, on all cores.

They are kept where a first call would have kept them, so that no later process has to wait for them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from cuconv import machine
from cuconv.cuda import algorithms, jit
from cuconv.cuda.kernel import Kernel

NO_GPU = 2
"""The exit status where there is no GPU to compile for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile; 1 if a kernel does not, with what the compiler says; 2 if there is no GPU, with why not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--match", default="", help="only those with this in their names")
    options = parser.parse_args(arguments)
    try:
        device, arch = jit.require_cupy().cuda.runtime.getDevice(), jit.current_arch()
    except (ImportError, RuntimeError) as error:
        print(error)
        return NO_GPU
    named = (kernel for kernel in algorithms.kernels() if options.match in kernel.name)
    here = int(arch[3:])
    kernels = [each for each in named if jit.suits(each, here)]

    def failure(kernel: Kernel) -> str | None:
        try:
            jit.function(kernel, device)
        except RuntimeError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(machine.cores()) as pool:  # NVRTC is called without the interpreter's lock
        failures = [text for text in pool.map(failure, kernels) if text]
    print(*failures, f"{len(kernels) - len(failures)} of {len(kernels)} kernels compiled", sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
