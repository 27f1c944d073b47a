"""What a record says of the machine and of the code: versions, threads, commit; no host, no user."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

import cuconv
from cuconv import machine
from cuconv.cli.clock import Clock
from cuconv.cuda import jit

from .record import Code, Environment

LIBRARY = Path(cuconv.__file__).parent
_PACKAGES = {"ml_dtypes": "ml_dtypes", "PyTorch": "torch", "SciPy": "scipy"}


def environment(clock: Clock, threads: int) -> Environment:
    """The environment of a run, threads already being set."""
    versions = {"Python": platform.python_version(), "NumPy": np.__version__}
    for name, package in _PACKAGES.items():
        try:
            versions[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    processor = machine.processor().rpartition("model name ")[2]
    if clock.device == "cuda":
        processor = _gpu(clock.namespace, versions)
    versions["BLAS"] = machine.blas_library()
    kernels = next((str(pool.get("architecture", "unknown")) for pool in machine.blas_pools()), "unknown")
    coretype = os.environ.get("OPENBLAS_CORETYPE")
    return Environment(clock.device, processor, machine.cores(), threads, kernels, coretype, versions)


def _gpu(cupy: Any, versions: dict[str, str]) -> str:
    """The GPU's name; adds the versions that matter there."""
    runtime = cupy.cuda.runtime
    versions["CuPy"] = cupy.__version__
    versions["CUDA"] = _dotted(runtime.runtimeGetVersion())
    versions["driver for CUDA"] = _dotted(runtime.driverGetVersion())
    if "PyTorch" in versions:
        import torch

        versions["cuDNN"] = str(torch.backends.cudnn.version())
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        versions["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.split()[0]
    except (OSError, IndexError):
        pass
    name: bytes = runtime.getDeviceProperties(runtime.getDevice())["name"]
    return name.decode()


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


@functools.cache
def code() -> Code:
    """The library's state. Resuming goes by the hash: a commit elsewhere changes no time."""
    digest = hashlib.sha256(jit.stamp().encode())  # the kernels may lie beside the package
    for path in sorted(LIBRARY.rglob("*.py")):
        digest.update(path.relative_to(LIBRARY).as_posix().encode() + path.read_bytes())
    commit = _git("rev-parse", "--short=12", "HEAD")
    dirty = bool(_git("status", "--porcelain", "--", ".", str(jit.SOURCES)))
    return Code(commit, dirty, digest.hexdigest()[:16])


def _git(*arguments: str) -> str:
    """What git says in the library's folder; nothing where there is no repository, or no git."""
    try:
        return subprocess.run(["git", *arguments], cwd=LIBRARY, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def file_name(found: Environment) -> str:
    """A record's name: cpu-amd-epyc-2threads-skylakex.json, or the GPU's."""
    words = [found.processor.removeprefix("NVIDIA ")]
    if found.device == "cpu":
        words = ["cpu", *words, f"{found.threads}threads", found.blas_kernels]
    return re.sub("[^a-z0-9]+", "-", " ".join(words).lower()).strip("-") + ".json"
