"""What this machine has for cuconv, and what is missing, with the command that installs it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

import numpy as np

from .. import __version__, tuning
from ..cuda import jit
from ..machine import blas
from ..plan import AVOID, TABLES, avoided


def main() -> int:
    """Print what was found. Always 0: a machine without a GPU is not an error."""
    rows, missing = findings()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")
    for line in missing:
        print(f"\nmissing: {line}")
    return 0


def findings() -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of what and which, and sentences on what is missing."""
    rows = [
        ("cuconv", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("numpy", np.__version__),
        ("ml_dtypes", importlib.metadata.version("ml_dtypes")),
        ("BLAS", blas()),
    ]
    missing = []
    driver = driver_version()
    rows.append(("NVIDIA driver", f"CUDA {driver[0]}.{driver[1]}" if driver else "none: NumPy does it all"))
    cupy = _cupy()
    installed = importlib.util.find_spec("cupy") is not None
    rows.append(
        ("CuPy", cupy.__version__ if cupy else "cannot be imported" if installed else "not installed")
    )
    if cupy:
        rows.append(("NVRTC", _nvrtc_version(cupy)))
    if cupy and driver:
        rows.extend(_devices(cupy))
    if installed and driver and not jit.usable_cupy():
        missing.append(_why_not())
    in_memory = os.environ.get("CUPY_CACHE_IN_MEMORY") == "1"
    rows.append(("kernel cache", "none: CUPY_CACHE_IN_MEMORY is 1" if in_memory else str(jit.cache_folder())))
    rows.append(("tuned", _tuned()))
    rows.append(("GPU algorithms", _proofs()))
    rows.append((AVOID, _avoided()))
    if driver and not installed:
        extra = "cuda13" if driver[0] >= 13 else "cuda12"
        missing.append(f"CuPy, to use the GPU: pip install 'cuconv[{extra}]'")
    if lacks := demo_lacks():
        missing.append(f"{lacks}, for python -m cuconv demo: pip install 'cuconv[demo]'")
    return rows, missing


def _tuned() -> str:
    """The folder that keeps what algorithm="tune" found, and how many winners are in it."""
    folder = tuning.folder()
    if folder is None:
        return "not kept: there is no home folder, and CUCONV_CACHE_DIR is not set"
    try:
        count = tuning.count()
    except OSError as error:
        return f"not kept: {error}"
    return f"{folder}, {count:,} winner{'' if count == 1 else 's'}"


def _proofs() -> str:
    """Which CUDA algorithms a device record covers, and which are so far proven without one."""
    proofs = {entry.name: entry.proof for entries in TABLES["cuda"].values() for entry in entries}
    return "; ".join(
        f"{each}: {', '.join(name for name, proof in proofs.items() if proof == each)}"
        for each in dict.fromkeys(proofs.values())
    )


def _avoided() -> str:
    """What `auto` and `tune` leave out, or what is wrong with the variable that says so."""
    try:
        return ", ".join(avoided()) or "not set: auto and tune leave nothing out"
    except ValueError as error:
        return f"of no use: {error}"


def _why_not() -> str:
    """Why CuPy is of no use here, in the words of the error that a call would raise."""
    try:
        jit.require_cupy()
    except (ImportError, RuntimeError) as error:
        return str(error)
    return ""


def demo_lacks() -> str:
    """The modules that the demo needs and that are not installed, as a list in words."""
    needed = ("sklearn", "matplotlib", "PIL", "tqdm")
    return ", ".join(module for module in needed if importlib.util.find_spec(module) is None)


def driver_version() -> tuple[int, int] | None:
    """The CUDA version of the installed NVIDIA driver, or None where there is none."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        version = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)) == 0:
            return version.value // 1000, version.value % 1000 // 10
    return None


def _cupy() -> Any:
    """CuPy, if it is installed and can be imported."""
    try:
        import cupy
    except (ImportError, OSError):
        return None
    return cupy


def _nvrtc_version(cupy: Any) -> str:
    """The version of the kernels' compiler."""
    try:
        return ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
    except (AttributeError, OSError, RuntimeError):
        return "missing: pip install 'cuconv[cuda12]' or 'cuconv[cuda13]', as CuPy is"


def _devices(cupy: Any) -> list[tuple[str, str]]:
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return [("GPU", f"none usable: {error}")]
    rows = []
    for index in range(count):
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        name = properties["name"].decode()
        memory = properties["totalGlobalMem"] / 2**30
        rows.append(
            (f"GPU {index}", f"{name}, sm_{properties['major']}{properties['minor']}, {memory:.0f} GiB")
        )
    return rows
