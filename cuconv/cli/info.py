"""What this machine has for cuconv, and what is missing, with the command that installs it."""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import platform
from typing import Any

import numpy as np

from .. import __version__, tuning
from ..cuda import jit
from ..machine import blas
from ..plan import AVOID, TABLES, avoided
from . import report
from .arguments import add_json

DOES = "what was found on this machine, and what is missing"
EXAMPLE = "python -m cuconv info"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be asked."""
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print what was found. Always 0: a machine without a GPU is not an error."""
    if options.json:
        report.write(found())
        return 0
    rows, missing = findings()
    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        print(report.wrapped(f"{name:{width}}{value}", width))
    for line in missing:
        print("\n" + report.wrapped(f"missing: {line}", 9))
    return 0


def found() -> dict[str, Any]:
    """What was found, as data: null is what is not there."""
    driver, cupy = driver_version(), _cupy()
    installed = importlib.util.find_spec("cupy") is not None
    gpus, gpu_error = _devices(cupy) if cupy and driver else ([], None)
    nvrtc, nvrtc_error = _nvrtc_version(cupy) if cupy else (None, None)
    missing = []
    if installed and driver and not jit.usable_cupy():
        missing.append(_why_not())
    if driver and not installed:
        extra = "cuda13" if driver[0] >= 13 else "cuda12"
        missing.append(f"CuPy, to use the GPU: pip install 'cuconv[{extra}]'")
    if lacks := demo_lacks():
        missing.append(f"{lacks}, for python -m cuconv demo: pip install 'cuconv[demo]'")
    leaves_out, avoid_error = _avoided()
    return {
        "cuconv": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "numpy": np.__version__,
        "ml_dtypes": importlib.metadata.version("ml_dtypes"),
        "blas": blas(),
        "driver_cuda": f"{driver[0]}.{driver[1]}" if driver else None,
        "cupy": cupy.__version__ if cupy else None,
        "cupy_error": "cannot be imported" if installed and not cupy else None,
        "nvrtc": nvrtc,
        "nvrtc_error": nvrtc_error,
        "gpus": gpus,
        "gpu_error": gpu_error,
        "kernel_cache": str(jit.cache_folder()) if jit.keeps() else None,
        "kernels_ahead": next(map(str, jit.ahead()), None),
        "tuned": _tuned(),
        "gpu_algorithms": {
            entry.name: entry.proof for entries in TABLES["cuda"].values() for entry in entries
        },
        "avoided": leaves_out,
        "avoid_error": avoid_error,
        "missing": missing,
    }


def findings() -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of what and which, and sentences on what is missing: what was found, in words."""
    data = found()
    driver = f"CUDA {data['driver_cuda']}" if data["driver_cuda"] else "none: NumPy does it all"
    rows = [
        ("cuconv", data["cuconv"]),
        ("python", f"{data['python']} on {data['platform']}"),
        ("numpy", data["numpy"]),
        ("ml_dtypes", data["ml_dtypes"]),
        ("BLAS", data["blas"]),
        ("NVIDIA driver", driver),
        ("CuPy", data["cupy"] or data["cupy_error"] or "not installed"),
    ]
    if data["cupy"]:
        rows.append(("NVRTC", data["nvrtc"] or data["nvrtc_error"]))
    if data["gpu_error"]:
        rows.append(("GPU", data["gpu_error"]))
    for index, gpu in enumerate(data["gpus"]):
        size = f"{gpu['memory_bytes'] / 2**30:.0f} GiB"
        rows.append((f"GPU {index}", f"{gpu['name']}, {gpu['architecture']}, {size}"))
    rows.append(("kernel cache", data["kernel_cache"] or "none: CUPY_CACHE_IN_MEMORY is 1"))
    if data["kernels_ahead"]:
        rows.append(("kernels ahead", data["kernels_ahead"]))
    tuned = data["tuned"]
    winners = f"{tuned['folder']}, {tuned['winners'] or 0:,} winner{'' if tuned['winners'] == 1 else 's'}"
    rows.append(("tuned", f"not kept: {tuned['error']}" if tuned["error"] else winners))
    proofs = data["gpu_algorithms"]
    words = (
        f"{each}: {', '.join(name for name, proof in proofs.items() if proof == each)}"
        for each in dict.fromkeys(proofs.values())
    )
    rows.append(("GPU algorithms", "; ".join(words)))
    leaves_out = ", ".join(data["avoided"]) or "not set: auto and tune leave nothing out"
    rows.append((AVOID, f"of no use: {data['avoid_error']}" if data["avoid_error"] else leaves_out))
    return rows, data["missing"]


def _tuned() -> dict[str, Any]:
    """The folder that keeps what algorithm="tune" found, and how many winners are in it."""
    folder, winners, error = tuning.folder(), None, None
    if folder is None:
        error = "there is no home folder, and CUCONV_CACHE_DIR is not set"
    else:
        try:
            winners = tuning.count()
        except OSError as refused:
            error = str(refused)
    return {"folder": str(folder) if folder else None, "winners": winners, "error": error}


def _avoided() -> tuple[list[str], str | None]:
    """What `auto` and `tune` leave out, and what is wrong with the variable that says so."""
    try:
        return [*avoided()], None
    except ValueError as error:
        return [], str(error)


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


def _nvrtc_version(cupy: Any) -> tuple[str | None, str | None]:
    """The version of the kernels' compiler, or what is to be done where it is missing."""
    try:
        return ".".join(map(str, cupy.cuda.nvrtc.getVersion())), None
    except (AttributeError, OSError, RuntimeError):
        return None, "missing: pip install 'cuconv[cuda12]' or 'cuconv[cuda13]', as CuPy is"


def _devices(cupy: Any) -> tuple[list[dict[str, Any]], str | None]:
    """The GPUs, or why there are none."""
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return [], f"none usable: {error}"
    gpus = []
    for index in range(count):
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        gpus.append(
            {
                "name": properties["name"].decode(),
                "architecture": f"sm_{properties['major']}{properties['minor']}",
                "memory_bytes": properties["totalGlobalMem"],
            }
        )
    return gpus, None
