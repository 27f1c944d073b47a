"""From a kernel instance to a function on a device: find the sources, compile, keep.

The compiler is NVRTC, called through CuPy's binding and not by `RawModule(code=...)`: there CuPy appends
`-ftz=true` to the options, the last one counts, and results would lose their subnormal numbers. So the
compiled code is kept here too, as files beside CuPy's own, in the folder that CUPY_CACHE_DIR names and not at
all under CUPY_CACHE_IN_MEMORY=1. What `python -m cuconv compile` has made ahead of time is found there, or in
the folder that CUCONV_KERNEL_DIR names, which is only read. No other environment variable matters here. As in
CuPy's files, a digest stands before the code. The driver is given the code from memory, once the digest has
been checked, so that a call works as well where nothing can be kept.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import kept
from .kernel import Kernel

_PACKAGE = Path(__file__).resolve().parent.parent
SOURCES = next(
    filter(Path.is_dir, (_PACKAGE / "cuda_src", _PACKAGE.parent / "cuda_src")), _PACKAGE / "cuda_src"
)
"""The kernels: inside an installed package, and beside it in the source tree."""

LOWEST = 75
"""The least compute capability, times ten, that the kernels are written for."""

_OPTIONS = ("--std=c++17", "--ftz=false")
_MOST_BYTES = 1 << 26
_functions: dict[tuple[Kernel, int], Any] = {}
_loading: dict[tuple[Kernel, int], threading.RLock] = {}
"""Held while a kernel is compiled: threads that need the same one wait for it."""


def function(kernel: Kernel, device: int, shared_bytes: int = 0) -> Any:
    """The kernel as CuPy's Function, ready to be launched on the current device, whose number is `device`.

    Each block may have `shared_bytes` of dynamic shared memory. Raises RuntimeError, with the way out.
    """
    found = _functions.get((kernel, device))
    if found is None:
        with _loading.setdefault((kernel, device), threading.RLock()):
            found = _functions.get((kernel, device))
            if found is None:
                found = _functions[kernel, device] = _load(kernel, device)
    driver = require_cupy().cuda.driver
    most = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    # One limit for all launches of the kernel: it must not fall below what another one was promised.
    if driver.funcGetAttribute(most, found.ptr) < shared_bytes:
        try:
            driver.funcSetAttribute(found.ptr, most, shared_bytes)
        except driver.CUDADriverError as error:
            raise RuntimeError(
                f"{kernel.name} takes {shared_bytes:,} bytes of shared memory per block, more than this "
                f"GPU has: choose another algorithm by name ({error})"
            ) from error
    return found


@functools.cache
def require_cupy() -> Any:
    """The module cupy, with a GPU that it can use; ImportError or RuntimeError otherwise."""
    if _lost:
        raise RuntimeError(_FORKED)
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            f"arrays on a GPU need CuPy, which cannot be imported ({error}): "
            "pip install 'cuconv[cuda12]', or 'cuconv[cuda13]' where nvidia-smi shows CUDA 13"
        ) from error
    except OSError as error:
        raise RuntimeError(
            f"CuPy cannot make its folder for compiled kernels ({error}): "
            "set the environment variable CUPY_CACHE_DIR to one that can be written"
        ) from error
    runtime = cupy.cuda.runtime
    if runtime.is_hip:
        raise RuntimeError("this CuPy is made for AMD GPUs; cuconv has CUDA kernels, for NVIDIA GPUs")
    try:
        runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if _forked and getattr(error, "status", None) == _NOT_INITIALIZED:
            raise RuntimeError(f"{_FORKED} ({error})") from error
        driver, needed = runtime.driverGetVersion() // 1000, runtime.runtimeGetVersion() // 1000
        if driver == 0:
            reason = "there is no NVIDIA driver: install one, or use NumPy arrays"
        elif driver < needed:
            reason = (
                f"the NVIDIA driver is for CUDA {driver} and this CuPy for CUDA {needed}: update the driver"
            )
            if driver == 12:
                reason += f", or pip uninstall cupy-cuda{needed}x and pip install 'cuconv[cuda12]'"
        else:
            reason = "CuPy finds no GPU: see nvidia-smi, and the environment variable CUDA_VISIBLE_DEVICES"
        raise RuntimeError(f"{reason} ({error})") from error
    return cupy


_FORKED = (
    "CUDA does not survive a fork, and this process was forked from one that had used the GPU: start "
    "processes with multiprocessing.get_context('spawn')"
)
_NOT_INITIALIZED = 3  # cudaErrorInitializationError, which CUDA returns in such a process

_forked = _lost = False
"""Whether this process was forked, and whether from one that had found a GPU here, whose handles are dead."""


def _after_fork(require_cupy: Any = require_cupy) -> None:
    """Every call on a GPU asks for CuPy, and so gets no further in a child."""
    global _forked, _lost
    _forked, _lost = True, _lost or require_cupy.cache_info().currsize > 0
    require_cupy.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def usable_cupy() -> Any:
    """The module cupy if there is a GPU that it can use, otherwise None."""
    try:
        return require_cupy()
    except (ImportError, RuntimeError):
        return None


def current_arch() -> str:
    """The architecture of the current device: sm_90 and the like."""
    cupy = require_cupy()
    return _arch(cupy.cuda.runtime.getDevice())


@functools.cache
def _arch(device: int) -> str:
    return f"sm_{require_cupy().cuda.Device(device).compute_capability}"


@functools.cache
def stamp() -> str:
    """A hash of all kernel sources: a part of every stub, since headers may change where it does not."""
    headers = {path.relative_to(SOURCES).as_posix(): path for path in SOURCES.rglob("*.cuh")}
    if not headers:
        raise RuntimeError(f"there are no kernel sources in {SOURCES}: pip install --force-reinstall cuconv")
    digest = hashlib.sha256()
    for name in sorted(headers):
        digest.update(f"{name}\0".encode() + headers[name].read_bytes() + b"\0")
    return digest.hexdigest()


def architecture(capability: int, known: Iterable[int]) -> str:
    """What NVRTC, which knows some capabilities, makes for a GPU: machine code, or PTX for one newer than it.

    The driver finishes PTX. Compute capability 9.0 is taken with what it alone has: wgmma.
    """
    if capability < LOWEST:
        raise RuntimeError(
            f"this GPU has compute capability {capability / 10}, the kernels need {LOWEST / 10} or more: "
            "use a GPU of the Turing generation (2018) or later, or NumPy arrays"
        )
    if capability in known:
        return f"sm_{capability}{'a' if capability == 90 else ''}"
    older = [number for number in known if number < capability]
    if not older:
        raise RuntimeError(
            f"this NVRTC compiles for no GPU as old as compute capability {capability / 10}: "
            "install an older NVRTC"
        )
    return f"compute_{max(older)}"


def options(target: str) -> tuple[str, ...]:
    """NVRTC's options: its defaults, which are exact division and roots, and subnormals kept."""
    return (*_OPTIONS, f"--gpu-architecture={target}", f"-I{SOURCES}")


def compiled(nvrtc: Any, source: str, target: str) -> bytes:
    """Machine code for an sm_ target, PTX for a compute_ one; RuntimeError with NVRTC's log.

    `nvrtc` is CuPy's binding, or what looks like it.
    """
    program = nvrtc.createProgram(source, "cuconv.cu", (), ())
    try:
        nvrtc.compileProgram(program, options(target))
        code: bytes = (nvrtc.getCUBIN if target.startswith("sm_") else nvrtc.getPTX)(program)
        if target.startswith("sm_"):
            code = _whole(code)
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{error}\n{nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)
    return code


def _whole(cubin: bytes) -> bytes:
    """A cubin with its last byte, the zero at the end of a table that CuPy drops as if it ended a string."""
    tables, sizes = struct.unpack_from("<QQ", cubin, 32), struct.unpack_from("<HHHH", cubin, 54)
    ends = [
        offset + size * count for offset, size, count in zip(tables, sizes[::2], sizes[1::2], strict=True)
    ]
    return cubin.ljust(max(ends), b"\0")


@functools.cache
def lowest(file: str) -> int:
    """The least compute capability, times ten, of a file's kernels: that of the PTX which it includes."""
    files, seen = [file], set[str]()
    while files:
        seen.add(name := files.pop())
        found = re.findall(r'#include [<"](.+)[>"]', (SOURCES / name).read_text())
        files += [file for file in found if file not in seen]
    return max(int(number) for number in re.findall(r"ptx/sm(\d+)", " ".join(seen)) or [LOWEST])


def suits(kernel: Kernel, capability: int) -> bool:
    """Whether GPUs of a compute capability, times ten, can have a kernel."""
    return lowest(kernel.file) <= capability <= (kernel.newest or capability)


@dataclass(frozen=True)
class Built:
    """A kernel's code for a target, and the name of the file that keeps it; `found` where one did."""

    name: str
    code: bytes
    target: str
    found: bool


def built(cupy: Any, kernel: Kernel, capability: int, folders: Sequence[Path]) -> Built:
    """The code for GPUs of a compute capability, times ten: what a folder keeps, or what NVRTC makes now.

    It needs no GPU. Raises RuntimeError, with the way out.
    """
    nvrtc = cupy.cuda.nvrtc
    build = _build(nvrtc, cupy.cuda.runtime.runtimeGetVersion() // 1000)
    target = architecture(capability, nvrtc.getSupportedArchs())
    source = kernel.stub(stamp())
    name = "cuconv-" + hashlib.sha256("\0".join((build, target, *_OPTIONS, source)).encode()).hexdigest()
    for folder in folders:
        code = _kept(folder / name)
        if code is not None:
            return Built(name, code, target, found=True)
    try:
        return Built(name, compiled(nvrtc, source, target), target, found=False)
    except RuntimeError as error:
        raise RuntimeError(
            f"{kernel.name} does not compile, please report this as a bug in cuconv: "
            f"{_about(cupy, target)}\n{error}"
        ) from error


def _about(cupy: Any, target: str) -> str:
    """The versions that a report is of use with."""
    from .. import __version__

    nvrtc_version = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
    return f"cuconv {__version__}, CuPy {cupy.__version__}, NVRTC {nvrtc_version}, {target}"


def _load(kernel: Kernel, device: int) -> Any:
    cupy = require_cupy()
    capability = int(cupy.cuda.Device(device).compute_capability)
    kept_in = [cache_folder()] if keeps() else []
    made = built(cupy, kernel, capability, kept_in + ahead())
    if keeps() and not made.found:
        _keep_or_warn(cache_folder(), made)
    module = cupy.cuda.Module()
    try:
        module.load(made.code)
        return module.get_function(kernel.name)
    except cupy.cuda.driver.CUDADriverError as error:
        driver, about = cupy.cuda.runtime.driverGetVersion() // 1000, _about(cupy, made.target)
        raise RuntimeError(
            f"the NVIDIA driver, for CUDA {driver}, does not load {kernel.name} ({about}): {error}. Update "
            f"it where NVRTC is newer, or uninstall that NVRTC and pip install 'cuconv[cuda{driver}]'"
        ) from error


@functools.cache
def _build(nvrtc: Any, cuda: int) -> str:
    """Which NVRTC this is, to the build, as it writes it above the PTX of an empty program."""
    try:
        return compiled(nvrtc, "", f"compute_{LOWEST}").decode().partition("\n.")[0]
    except RuntimeError as error:
        raise RuntimeError(
            "NVRTC, which compiles the kernels, is missing or broken: "
            f"pip install --force-reinstall 'cuconv[cuda{cuda}]' ({error})"
        ) from error


def cache_folder() -> Path:
    """CuPy's folder for compiled kernels."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache"))


def keeps() -> bool:
    """Whether calls keep what they compile: not where CuPy's variable says that all is to stay in memory."""
    return os.environ.get("CUPY_CACHE_IN_MEMORY") != "1"


def ahead() -> list[Path]:
    """The folder of kernels that were compiled ahead of time and come with a container, if one is named."""
    named = os.environ.get("CUCONV_KERNEL_DIR")
    return [Path(named)] if named else []


def _kept(path: Path) -> bytes | None:
    """The code that a file keeps, or None unless all of it is there: its digest stands before it."""
    content = kept.read(path, _MOST_BYTES)
    if content is None:
        return None
    length = len(_digest(b""))
    code = content[length:]
    return code if _digest(code) == content[:length] else None


def keep(folder: Path, made: Built) -> None:
    """Put code where `built` finds it; OSError where that cannot be done."""
    kept.write(folder / made.name, _digest(made.code) + made.code)


def _keep_or_warn(folder: Path, made: Built) -> None:
    """Keep code for processes to come; a warning where that cannot be done."""
    try:
        keep(folder, made)
    except OSError as error:
        kept.warn(
            f"compiled kernels cannot be kept in {folder} ({error.strerror or error}), every process "
            "compiles its own: set CUPY_CACHE_DIR to a folder that can be written, or CUPY_CACHE_IN_MEMORY=1 "
            "if this is wanted"
        )


def _digest(code: bytes) -> bytes:
    return hashlib.sha256(code).hexdigest().encode()
