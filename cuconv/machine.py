"""Which machine this is, as far as the speed of an algorithm depends on it."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .cuda import jit

# What Linux says of a processor's kind; on virtual machines the model's name alone says little.
_KIND = re.compile(r"(?m)^(cpu family|model|model name|CPU implementer|CPU part)\s*:\s*(.*)$")


def fingerprint(backend: str) -> str:
    """One line on what a backend computes with here: where it changes, another algorithm may be faster."""
    from . import __version__

    if backend == "cuda":
        runtime = jit.require_cupy().cuda.runtime
        name = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
        versions = f"driver {runtime.driverGetVersion()}, CUDA {runtime.runtimeGetVersion()}"
        return f"cuconv {__version__}, {name}, {jit.current_arch()}, {versions}, kernels {jit.stamp()[:16]}"
    return f"cuconv {__version__}, {processor()}, {cores()} cores, NumPy {np.__version__}, {blas()}"


@functools.cache
def processor() -> str:
    """The kind of processor, as the system names it."""
    if sys.platform == "darwin":
        import subprocess

        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or platform.machine()
    try:
        kinds = _KIND.findall(Path("/proc/cpuinfo").read_text())
    except OSError:
        kinds = []
    return ", ".join(dict.fromkeys(map(" ".join, kinds))) or platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def blas() -> str:
    """The BLAS that NumPy was built with, its threads, and the kernels it chose for this processor.

    Only threadpoolctl knows the last two; without it, what the environment asks for stands in their place.
    """
    text, pools = blas_library(), blas_pools()
    if pools:
        text += f", {pools[0]['num_threads']} threads, {pools[0].get('architecture', 'unknown')} kernels"
    elif not importlib.util.find_spec("threadpoolctl"):
        asked = (f"{name} {value}" for name, value in os.environ.items() if name.endswith("_THREADS"))
        text = ", ".join([text, *sorted(asked)])
    core = os.environ.get("OPENBLAS_CORETYPE")
    return f"{text}, OPENBLAS_CORETYPE {core or 'not set'}"


def blas_library() -> str:
    """The name and version of the BLAS that NumPy was built with."""
    built: Any = np.show_config(mode="dicts")
    library = built.get("Build Dependencies", {}).get("blas", {})  # what is empty is left out
    return f"{library.get('name', 'unknown')} {library.get('version', 'unknown')}"


def blas_pools() -> list[dict[str, Any]]:
    """What threadpoolctl says of the BLAS libraries in this process; nothing without it."""
    if not importlib.util.find_spec("threadpoolctl"):
        return []
    from threadpoolctl import threadpool_info

    return [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
