"""Compiling and keeping kernels, with a stand-in for CuPy: errors with the way out, and the cache on disk.

The stand-in's compiler is NVRTC itself, so that what would be loaded on a GPU is looked at here.
"""

import errno
import functools
import hashlib
import inspect
import io
import os
import re
import shutil
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest

from cuconv.cuda import algorithms, jit
from cuconv.cuda.kernel import Kernel

from . import compiler
from .test_kept import soon

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NVRTC's wheel is taken from Linux's folders")

KERNEL = Kernel("planted.cuh", "planted", ("float", 3), 64)
SOURCE = """#pragma once
#include "more/params.cuh"
template <typename T, int N>
__device__ void planted(const void* a, const void*, const void*, void* out, const Params&) {
  const T* x = static_cast<const T*>(a);
  static_cast<T*>(out)[threadIdx.x] = x[threadIdx.x] * N + x[1];
}
"""


class DriverError(RuntimeError):
    pass


class CUDARuntimeError(RuntimeError):
    pass


class NVRTCError(RuntimeError):
    pass


class Module(types.SimpleNamespace):
    """An object with the attributes of a module, and hashable like one."""

    __hash__ = object.__hash__


class Program:
    """The stand-in's NVRTC program."""

    def __init__(self, source):
        self.source, self.log, self.code = source, "", None


class Function:
    """What cupy.cuda.Module.get_function gives: it remembers the code that it was loaded from."""

    def __init__(self, code, name):
        self.code, self.name, self.limit = code, name, 49152
        self.ptr = id(self)


class CuPy(Module):
    """As much of CuPy as cuda/jit.py calls, for one GPU; attributes say what is wrong with it."""

    __version__ = "14.2.0"

    def __init__(self):
        self.capability, self.current = "80", 0
        self.driver, self.needed, self.device_error = 12080, 12090, None
        self.refuses, self.nvrtc_error = False, None
        self.compiled, self.programs, self.functions = [], [], {}
        runtime = Module(
            is_hip=False,
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=self.device_count,
            getDevice=lambda: self.current,
            driverGetVersion=lambda: self.driver,
            runtimeGetVersion=lambda: self.needed,
        )
        nvrtc = Module(
            NVRTCError=NVRTCError,
            getVersion=lambda: (12, 9),
            getSupportedArchs=compiler.known,
            createProgram=self.create_program,
            compileProgram=self.compile_program,
            getProgramLog=lambda program: program.log,
            getPTX=lambda program: program.code[1].encode(),
            getCUBIN=lambda program: program.code[2][:-1],  # as CuPy does
            destroyProgram=lambda program: self.programs.remove(program),
        )
        self.cuda = Module(
            runtime=runtime,
            nvrtc=nvrtc,
            driver=Module(
                CUDADriverError=DriverError,
                CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8,
                funcGetAttribute=self.get_attribute,
                funcSetAttribute=self.set_attribute,
            ),
            Module=functools.partial(Loaded, self),
            Device=lambda number: Module(compute_capability=self.capability),
        )

    def device_count(self):
        if self.device_error:
            raise CUDARuntimeError(self.device_error)
        return 1

    def create_program(self, source, name, headers, include_names):
        if self.nvrtc_error:
            raise RuntimeError(self.nvrtc_error)
        self.programs.append(Program(source))
        return self.programs[-1]

    def compile_program(self, program, options):
        if program.source:
            self.compiled.append(options)
        try:
            program.code = compiler.build(program.source, options)
        except compiler.CompileError as error:
            program.log = str(error)
            raise NVRTCError("NVRTC_ERROR_COMPILATION (6)") from error

    def get_attribute(self, attribute, pointer):
        assert attribute == 8
        return self.functions[pointer].limit

    def set_attribute(self, pointer, attribute, value):
        assert attribute == 8
        if value > 100_000:
            raise DriverError("CUDA_ERROR_INVALID_VALUE")
        self.functions[pointer].limit = value


class Loaded:
    """What cupy.cuda.Module() gives."""

    def __init__(self, cupy):
        self.cupy, self.code = cupy, None

    def load(self, code):
        assert type(code) is bytes
        if self.cupy.refuses or not code:
            raise DriverError("CUDA_ERROR_NO_BINARY_FOR_GPU")
        self.code = code

    def get_function(self, name):
        # PTX names its entries in text, machine code in the names of sections.
        if name.encode() not in self.code:
            raise DriverError("CUDA_ERROR_NOT_FOUND")
        function = Function(self.code, name)
        self.cupy.functions[function.ptr] = function
        return function


@pytest.fixture
def cupy(monkeypatch, tmp_path):
    """A machine with one GPU, an empty cache in tmp_path/cache, and sources with one kernel."""
    sources = tmp_path / "cuda_src"
    (sources / "more").mkdir(parents=True)
    (sources / "planted.cuh").write_text(SOURCE)
    (sources / "more/params.cuh").write_text((jit.SOURCES / "params.cuh").read_text())
    monkeypatch.setattr(jit, "SOURCES", sources)
    monkeypatch.delenv("CUPY_CACHE_IN_MEMORY", raising=False)
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    module = CuPy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    forget()
    yield module
    forget()
    assert module.programs == []
    folder = tmp_path / "cache"
    assert [path.name for path in folder.glob("*.*")] == []  # nothing unfinished


def forget():
    """Begin again, as another process would."""
    jit._functions.clear()
    for cached in (jit.require_cupy, jit.stamp, jit._build, jit._arch, jit.kept.warn):
        cached.cache_clear()


def kept(tmp_path):
    return sorted((tmp_path / "cache").glob("*"))


def test_a_kernel_is_compiled_once_and_kept(cupy, tmp_path):
    first = jit.function(KERNEL, 0)
    assert jit.function(KERNEL, 0) is first
    assert len(cupy.functions) == 1
    assert first.code.startswith(b"\x7fELF")
    assert first.name == KERNEL.name
    digest = hashlib.sha256(first.code).hexdigest().encode()
    assert [path.read_bytes() for path in kept(tmp_path)] == [digest + first.code]
    forget()
    assert jit.function(KERNEL, 0).code == first.code
    assert len(cupy.compiled) == 1


def test_the_options_are_those_that_the_tests_compile_with(cupy):
    jit.function(KERNEL, 0)
    assert cupy.compiled == [jit.options("sm_80")]


def test_subnormals_and_exact_division(cupy):
    cupy.capability = "200"  # PTX, which can be read
    code = jit.function(KERNEL, 0).code.decode()
    assert "fma.rn.f32" in code
    assert ".ftz" not in code
    assert "--ftz=false" in jit.options("sm_80")


def test_what_is_kept_depends_on_sources_compiler_and_gpu(cupy, tmp_path, monkeypatch):
    jit.function(KERNEL, 0)
    jit.function(Kernel("planted.cuh", "planted", ("double", 3), 64), 0)
    assert len(kept(tmp_path)) == 2
    for name in ("planted.cuh", "more/params.cuh"):
        header = jit.SOURCES / name
        header.write_text(header.read_text() + "// another\n")
        forget()
        jit.function(KERNEL, 0)
    assert len(kept(tmp_path)) == 4
    jit._functions.clear()
    cupy.capability = "86"
    jit.function(KERNEL, 0)
    assert len(kept(tmp_path)) == 5
    forget()
    cupy.cuda.nvrtc.getPTX = lambda program: b"// another build\n.version 8.0"
    jit.function(KERNEL, 0)
    assert len(kept(tmp_path)) == 6
    jit._functions.clear()
    monkeypatch.setattr(jit, "_OPTIONS", ("--std=c++20", "--ftz=false"))
    jit.function(KERNEL, 0)
    assert len(kept(tmp_path)) == 7


def test_the_stamp_is_of_names_and_contents(cupy):
    stamps = [jit.stamp()]
    (jit.SOURCES / "planted.cuh").rename(jit.SOURCES / "other.cuh")
    assert jit.stamp() == stamps[0]  # once per process
    forget()
    stamps.append(jit.stamp())
    (jit.SOURCES / "README.md").write_text("not a source")
    forget()
    assert jit.stamp() == stamps[1] != stamps[0]
    assert re.fullmatch("[0-9a-f]{64}", stamps[0])


def test_each_device_has_its_own_function(cupy):
    jit.function(KERNEL, 0)
    assert len(jit._functions) == 1
    jit.function(KERNEL, 1)
    assert len(jit._functions) == 2
    assert len(cupy.compiled) == 1


def test_shared_memory_is_raised_and_never_lowered(cupy):
    found = jit.function(KERNEL, 0)
    assert found.limit == 49152
    assert jit.function(KERNEL, 0, 98304) is found
    assert found.limit == 98304
    assert jit.function(KERNEL, 0, 65536) is found
    assert found.limit == 98304
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"planted_float_3 takes 200,000 bytes .* choose another algorithm"
        ):
            jit.function(KERNEL, 0, 200_000)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:64],
        lambda content: content[:1000],
        lambda content: content[64:],  # without its digest, as it was kept once
        lambda content: content + b"\0",
        lambda content: content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:],
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: bytes(len(content)),
        lambda content: content + bytes(1 << 26),
    ],
    ids=range(10),
)
def test_a_damaged_file_is_replaced(cupy, tmp_path, damage):
    """It does not get as far as the driver."""
    code = jit.function(KERNEL, 0).code
    (path,) = kept(tmp_path)
    content = path.read_bytes()
    path.write_bytes(damage(content))
    forget()
    cupy.functions.clear()
    assert jit.function(KERNEL, 0).code == code
    assert [function.code for function in cupy.functions.values()] == [code]
    assert path.read_bytes() == content


@pytest.mark.parametrize("plant", [os.symlink, os.link, lambda _, path: os.mkfifo(path)])
def test_what_else_has_the_files_name(cupy, tmp_path, plant):
    """A planted link leads nowhere, a pipe is not waited for; all make room for the code."""
    code = jit.function(KERNEL, 0).code
    (path,) = kept(tmp_path)
    content = path.read_bytes()
    path.unlink()
    precious = tmp_path / "precious"
    precious.write_bytes(content[:-1])
    plant(precious, path)
    forget()
    assert soon(jit.function, KERNEL, 0).code == code
    assert precious.read_bytes() == content[:-1]
    assert not path.is_symlink()
    assert path.read_bytes() == content


def test_nothing_is_kept_in_memory(cupy, tmp_path, monkeypatch):
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "1")
    assert jit.function(KERNEL, 0).code
    jit.function(KERNEL, 0, 65536)
    assert len(cupy.compiled) == 1
    assert kept(tmp_path) == []


def test_a_folder_that_cannot_be_made(cupy, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "file/cache"))
    with pytest.warns(UserWarning, match=r"file/cache .*CUPY_CACHE_DIR.*CUPY_CACHE_IN_MEMORY=1"):
        assert jit.function(KERNEL, 0).code


DOUBLE = Kernel("planted.cuh", "planted", ("double", 3), 64)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOENT])
@pytest.mark.parametrize("step", ["mkdir", "open", "close", "replace"])
def test_a_folder_that_cannot_be_written(cupy, tmp_path, monkeypatch, step, number):
    """Permissions do not stop the superuser, so that the call is what fails here; one warning says so."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    class Closing(io.FileIO):
        def close(self):
            super().close()
            fail()

    owner = {"mkdir": Path, "replace": os}.get(step, jit.kept)
    name = "open" if step == "close" else step
    monkeypatch.setattr(owner, name, Closing if step == "close" else fail, raising=name != "open")
    with pytest.warns(UserWarning, match=rf"cannot be kept in .*cache \({os.strerror(number)}\)") as warned:
        codes = [jit.function(kernel, 0).code for kernel in (KERNEL, DOUBLE)]
    assert all(codes)
    assert len(warned) == 1
    assert kept(tmp_path) == []


def test_a_folder_that_is_removed_meanwhile(cupy, tmp_path):
    jit.function(KERNEL, 0)
    shutil.rmtree(tmp_path / "cache")
    assert jit.function(DOUBLE, 0).code
    assert len(kept(tmp_path)) == 1
    forget()
    assert jit.function(KERNEL, 0).code
    assert len(kept(tmp_path)) == 2


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_kept_fails_no_call(cupy, tmp_path, monkeypatch):
    """Not even where warnings are errors: it is shown and not raised."""
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(str(message)))
    (tmp_path / "cache").write_text("a file")
    for kernel in (KERNEL, DOUBLE):
        assert jit.function(kernel, 0).code
    assert [text.startswith("compiled kernels cannot be kept in ") for text in shown] == [True]


def test_an_interrupt_leaves_nothing_unfinished(cupy, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jit.kept.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            jit.function(KERNEL, 0)
    assert kept(tmp_path) == []
    assert jit.function(KERNEL, 0).code


def test_the_folder_is_cupys_own(cupy, tmp_path, monkeypatch):
    monkeypatch.delenv("CUPY_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    jit.function(KERNEL, 0)
    assert len(os.listdir(tmp_path / ".cupy/kernel_cache")) == 1


@pytest.mark.parametrize(
    ("capability", "known", "target"),
    [
        (75, (70, 75, 80), "sm_75"),
        (90, (75, 90, 100), "sm_90a"),
        (120, (75, 90, 120), "sm_120"),
        (89, (75, 80, 86), "compute_86"),
        (103, (75, 90, 100, 120), "compute_100"),
        (130, (75, 90, 100, 120), "compute_120"),
    ],
)
def test_architecture(capability, known, target):
    assert jit.architecture(capability, known) == target


def test_a_compiler_that_has_forgotten_an_architecture():
    with pytest.raises(RuntimeError, match=r"for no GPU as old as compute capability 7\.5"):
        jit.architecture(75, (80, 90))


def test_the_current_architecture(cupy):
    assert jit.current_arch() == "sm_80"
    cupy.capability, cupy.current = "90", 1
    assert jit.current_arch() == "sm_90"
    cupy.current = 0
    assert jit.current_arch() == "sm_80"  # looked up once for each device


def test_a_newer_gpu_gets_ptx(cupy):
    cupy.capability = "200"
    assert b".visible .entry planted_float_3(" in jit.function(KERNEL, 0).code
    (options,) = cupy.compiled
    assert f"--gpu-architecture=compute_{max(compiler.known())}" in options


def test_an_older_gpu_is_refused(cupy):
    cupy.capability = "70"
    with pytest.raises(RuntimeError, match=r"compute capability 7\.0, the kernels need 7\.5"):
        jit.function(KERNEL, 0)
    assert cupy.compiled == []


def test_a_compile_error_shows_the_log_and_asks_for_a_report(cupy):
    header = jit.SOURCES / "planted.cuh"
    header.write_text(SOURCE.replace("x[1]", "nonsense"))
    with pytest.raises(RuntimeError) as raised:
        jit.function(KERNEL, 0)
    message = str(raised.value)
    assert "planted_float_3 does not compile, please report this as a bug in cuconv" in message
    assert re.search(r"cuconv \d.*, CuPy 14\.2\.0, NVRTC 12\.9, sm_80", message)
    assert 'identifier "nonsense" is undefined' in message
    assert isinstance(raised.value.__cause__.__cause__, NVRTCError)


def test_a_driver_that_does_not_load_the_code(cupy):
    cupy.refuses = True
    with pytest.raises(
        RuntimeError, match=r"for CUDA 12, does not load .*NO_BINARY.*'cuconv\[cuda12\]'"
    ) as raised:
        jit.function(KERNEL, 0)
    assert isinstance(raised.value.__cause__, DriverError)


def test_no_nvrtc(cupy):
    cupy.nvrtc_error = 'Failure finding "libnvrtc.so.12"'
    with pytest.raises(
        RuntimeError, match=r"NVRTC.* missing .*'cuconv\[cuda12\]' \(Failure finding"
    ) as raised:
        jit.function(KERNEL, 0)
    assert raised.value.__cause__ is not None


def test_no_sources(cupy, monkeypatch, tmp_path):
    monkeypatch.setattr(jit, "SOURCES", tmp_path / "nowhere")
    with pytest.raises(
        RuntimeError, match=r"no kernel sources in .*nowhere: pip install --force-reinstall cuconv"
    ):
        jit.function(KERNEL, 0)


def test_no_cupy(cupy, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r"need CuPy.*'cuconv\[cuda12\]', or 'cuconv\[cuda13\]'") as raised:
        jit.function(KERNEL, 0)
    assert isinstance(raised.value.__cause__, ImportError)


def test_cupy_without_its_folder(cupy, monkeypatch):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "cupy":
                raise PermissionError(13, "Permission denied", "home/.cupy/kernel_cache")

    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(RuntimeError, match=r"home/\.cupy/kernel_cache.*CUPY_CACHE_DIR"):
        jit.require_cupy()


def test_cupy_for_amd(cupy):
    cupy.cuda.runtime.is_hip = True
    with pytest.raises(RuntimeError, match="AMD"):
        jit.require_cupy()


@pytest.mark.parametrize(
    ("driver", "needed", "message"),
    [
        (0, 12090, r"no NVIDIA driver: install one, or use NumPy arrays \(cudaError"),
        (11080, 12090, r"driver is for CUDA 11 and this CuPy for CUDA 12: update the driver \(cudaError"),
        (
            12080,
            13000,
            r"for CUDA 12 and this CuPy for CUDA 13: .* uninstall cupy-cuda13x and .*'cuconv\[cuda12\]'",
        ),
        (12080, 12090, "finds no GPU: see nvidia-smi, and .*CUDA_VISIBLE_DEVICES"),
    ],
)
def test_no_device(cupy, driver, needed, message):
    cupy.driver, cupy.needed, cupy.device_error = driver, needed, "cudaErrorSomething: some text"
    with pytest.raises(RuntimeError, match=message) as raised:
        jit.require_cupy()
    assert isinstance(raised.value.__cause__, CUDARuntimeError)


def test_cupy_is_asked_once(cupy):
    assert jit.require_cupy() is cupy
    cupy.device_error = "never read"
    assert jit.require_cupy() is cupy


def test_a_cubin_gets_its_last_byte_back():
    """CuPy leaves it out. Nothing is added to a cubin that is whole, nor is more than that byte needed."""
    for kernel in (KERNELS := algorithms.kernels())[:: len(KERNELS) // 6]:
        cubin = compiler.build(kernel.stub(jit.stamp()), jit.options("sm_80"))[2]
        assert jit._whole(cubin[:-1]) == jit._whole(cubin) == cubin


def test_cupys_own_binding_of_nvrtc():
    """The same machine code by CuPy's functions as by the tests' own; needs no GPU."""
    real = pytest.importorskip("cupy", exc_type=ImportError)
    nvrtc = real.cuda.nvrtc
    source = 'extern "C" __global__ void f(float* x) { x[0] = x[1] * x[2] + x[3]; }'
    whole = compiler.build(source, jit.options("sm_90a"))[2]
    assert len(jit.compiled(nvrtc, source, "sm_90a")) == len(whole)
    assert whole.startswith(b"\x7fELF")
    assert b"fma.rn.f32" in jit.compiled(nvrtc, source, "compute_75")
    assert {75, 80, 90} <= set(nvrtc.getSupportedArchs())
    with pytest.raises(RuntimeError, match=r'(?s)NVRTC_ERROR_COMPILATION.*identifier "x" is undefined'):
        jit.compiled(nvrtc, "__device__ int f() { return x; }", "sm_80")
    assert "release" in jit._build(nvrtc, 12)


def test_cupys_own_modules_and_functions():
    """What the stand-in has is there in CuPy, by these names and in this order; needs no GPU."""
    real = pytest.importorskip("cupy", exc_type=ImportError)
    driver = real.cuda.driver
    assert driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES == 8
    assert issubclass(driver.CUDADriverError, RuntimeError)
    assert driver.funcGetAttribute.__doc__.startswith("funcGetAttribute(int attribute, intptr_t f)")
    assert driver.funcSetAttribute.__doc__ == "funcSetAttribute(intptr_t f, int attribute, int value)"
    assert real.cuda.Module.load.__doc__ == "Module.load(self, bytes cubin)"
    assert real.cuda.Module.get_function.__doc__ == "Module.get_function(self, name)"
    struct = np.zeros(1, "V1000")  # whose address CuPy looks up once
    assert real.cuda.function.CNumpyArray(struct).ptr == struct.__array_interface__["data"][0]
    assert inspect.isgetsetdescriptor(real.cuda.Function.ptr)
