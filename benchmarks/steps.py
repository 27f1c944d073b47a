"""Where the time of a call on the CPU goes: each function's own time, as cProfile has it, by its step.

What a function has NumPy do counts as its own, so the functions that multiply, copy or store stand for these
steps. The calling thread is looked at, which does as much as the others.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import cuconv.cpu

FOLDER, TRANSFORMS = Path(cuconv.cpu.__file__).parent, Path(np.fft.__file__).parent
SHARED = FOLDER.parent / "fourier.py"
"""What the CPU and GPUs share."""

STEPS = {
    "products": {
        "products.py": ("long_product", "matmul"),
        "blockwise.py": ("summed",),
        "bias.py": ("bgrad",),
        "gemm.py": ("make_and_store", "sum_up"),
        "mec.py": ("make",),
        "im2col.py": ("make", "sum_up"),
        "col2im.py": ("block",),
        "toeplitz.py": ("_multiply", "_dots", "_products", "gradient", "sum_up"),
        "depthwise.py": ("make", "_dot", "sum_up"),
        "fourier.py": ("forward", "inverse", "mirrored", "summed", "wgrad", "zeros"),
    },
    "lowering": {
        "lowering.py": ("__init__", "by_channel", "lower", "lower_columns"),
        "padding.py": ("_looked_up", "fill", "gather", "take"),
        "products.py": ("for_blas",),
        "flat.py": ("__init__", "_cells_of"),
        "fourier.py": ("_gradient", "spread", "window"),
    },
    "filters": {
        "blockwise.py": ("correlate", "side_by_side"),
        "lowering.py": ("arranged", "filter_matrices", "part"),
        "toeplitz.py": ("arrange",),
        "fourier.py": ("filters",),
    },
    "storing": {
        "blockwise.py": ("add_up", "store_by_place"),
        "fft.py": ("store",),
        "fourier.py": ("_fold",),
        "padding.py": ("fold",),
        "result.py": ("_finished", "finish", "store", "store_zero"),
    },
}
"""The functions of each step, by file; `products` include the sums that belong to them, and transforms."""


def steps(call: Callable[[], Any], seconds: float = 0.1, calls: int = 3) -> dict[str, float]:
    """The parts of the time of calls that the steps take, waiting for other threads, and all else."""
    profile, end = cProfile.Profile(), time.perf_counter() + seconds
    profile.enable()
    try:
        while calls > 0 or time.perf_counter() < end:
            call()
            calls -= 1
    finally:
        profile.disable()
    taken: defaultdict[str, float] = defaultdict(float)
    for function, (*_, own, _, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if "acquire" in function[2]:
            taken["waiting"] += own
        elif function[0] == "~" and callers:
            # What is built in belongs to whoever called it.
            for caller, (*_, there, _) in callers.items():
                taken[_step(caller)] += there
        else:
            taken[_step(function)] += own
    total = sum(taken.values())
    return {name: taken[name] / total for name in (*STEPS, "waiting", "calls")}


def _step(function: tuple[str, int, str]) -> str:
    path, _, name = function
    if Path(path).parent == TRANSFORMS:
        return "products"
    if Path(path).parent == FOLDER or Path(path) == SHARED:
        for step, files in STEPS.items():
            if name in files.get(Path(path).name, ()):
                return step
    return "calls"
