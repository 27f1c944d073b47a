"""NVRTC without a GPU and without CuPy: compiles kernels for real architectures and reads what ptxas says.

    python -m tests.compiler [--arch 80 ...] [--match simt]

prints registers, static shared memory, spills and occupancy of every instance in the table, and fails where
one has a problem. The options are those of cuda/jit.py, the library that of NVIDIA's wheel for CUDA 13 or 12.
"""

import argparse
import ctypes
import functools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cuconv.cuda import algorithms, jit

# Compute capability: warps, blocks and KiB of shared memory that a multiprocessor holds. From "Technical
# Specifications per Compute Capability" in section 5.1 of the CUDA programming guide,
# https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html
LIMITS = {
    75: (32, 16, 64),
    80: (64, 32, 164),
    86: (48, 16, 100),
    89: (48, 24, 100),
    90: (64, 32, 228),
    100: (64, 32, 228),
    120: (48, 24, 100),
}
REGISTERS = 65536
"""What a multiprocessor has, and the most that one block may have."""


class CompileError(Exception):
    """The message is NVRTC's log."""


@dataclass(frozen=True)
class Report:
    """One kernel, compiled: bytes are those of a block (`shared`) or of a thread (`stack`, `spills`)."""

    capability: int
    threads: int
    registers: int
    shared: int
    stack: int
    spills: int
    log: str
    ptx: str

    @property
    def blocks(self):
        """How many blocks a multiprocessor holds at once."""
        return occupancy(self.capability, self.threads, self.registers, self.shared)

    @property
    def problems(self):
        """What no kernel of the table may have, each as a phrase."""
        flushing = re.findall(r"\S+(?<!\.approx)\.ftz\S*", self.ptx)
        inexact = re.findall(r"\b(?:div\.full|div\.approx|sqrt\.approx)\S*", self.ptx)
        found = [f"{name} loses subnormals" for name in sorted(set(flushing))]
        found += [f"{name} is inexact" for name in sorted(set(inexact))]
        # ptxas calls it information that it cannot let wgmma run ahead: (C7508) and so on.
        found += re.findall(r".*(?:\bwarning\s*[:#]|Potential Performance Loss).*", self.log)
        whole = REGISTERS // self.threads // 8 * 8  # what warpgroups then share out among themselves
        if "setmaxnreg" in self.ptx and self.registers != whole:
            found.append(f"{self.registers} registers at launch, and setmaxnreg counts on {whole}")
        found += [f"{self.stack} bytes of stack frame"] * (self.stack > 0)
        found += [f"{self.spills} bytes of spills"] * (self.spills > 0)
        found += ["not one block fits a multiprocessor"] * (self.blocks == 0)
        return found


@functools.cache
def library():
    """NVRTC, which ctypes calls without the interpreter's lock: threads compile at the same time."""
    try:
        import nvidia

        folders = [Path(folder) for folder in nvidia.__path__]
    except ImportError:
        folders = []
    for pattern in ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12"):
        for folder in folders:
            if (folder / pattern).exists():
                return ctypes.CDLL(str(folder / pattern))
    raise RuntimeError("there is no NVRTC: pip install nvidia-cuda-nvrtc-cu12")


def call(name, *arguments):
    status = getattr(library(), f"nvrtc{name}")(*arguments)
    assert status == 0, f"nvrtc{name} returns {status}"


def text(name, program):
    """The log, the PTX or the machine code of a program, as bytes."""
    size = ctypes.c_size_t()
    call(f"Get{name}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    call(f"Get{name}", program, buffer)
    return buffer.raw


def build(source, options):
    """The log, the PTX and the machine code that NVRTC makes of a source, or CompileError."""
    program = ctypes.c_void_p()
    call("CreateProgram", ctypes.byref(program), source.encode(), b"test.cu", 0, None, None)
    try:
        words = (ctypes.c_char_p * len(options))(*map(str.encode, options))
        status = library().nvrtcCompileProgram(program, len(options), words)
        log = text("ProgramLog", program).rstrip(b"\0").decode()
        if status != 0:
            raise CompileError(log)
        return log, text("PTX", program).rstrip(b"\0").decode(), text("CUBIN", program)
    finally:
        call("DestroyProgram", ctypes.byref(program))


@functools.cache
def known():
    """The compute capabilities, times ten, that this NVRTC compiles for."""
    count = ctypes.c_int()
    call("GetNumSupportedArchs", ctypes.byref(count))
    found = (ctypes.c_int * count.value)()
    call("GetSupportedArchs", found)
    return tuple(found)


def capabilities(kernel):
    """Those of LIMITS that a kernel is for."""
    return [each for each in LIMITS if jit.suits(kernel, each)]


def report(source, capability, threads, *more_options):
    """What becomes of a source with one kernel, of so many threads, by the options of cuda/jit.py."""
    target = jit.architecture(capability, known())
    log, ptx, _ = build(source, (*jit.options(target), "--ptxas-options=-v", *more_options))

    def total(pattern):
        return sum(map(int, re.findall(pattern, log)))

    return Report(
        capability,
        threads,
        registers=total(r"Used (\d+) registers"),
        shared=total(r"(\d+) bytes smem"),
        stack=total(r"(\d+) bytes stack frame"),
        spills=total(r"(\d+) bytes spill (?:stores|loads)"),
        log=log,
        ptx=ptx,
    )


def report_kernel(kernel, capability):
    return report(kernel.stub(jit.stamp()), capability, kernel.threads)


def occupancy(capability, threads, registers, shared):
    """Blocks that fit a multiprocessor, by the rules of NVIDIA's cuda_occupancy.h.

    Registers are given to warps in units of 256, from four equal parts of the register file; shared memory to
    blocks in units of 128 bytes (256 on 7.5), with 1 KiB for the system from 8.0 on.
    """
    max_warps, max_blocks, kib = LIMITS[capability]
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256
    if per_warp * (-(-warps // 4) * 4) > REGISTERS:
        return 0
    unit, reserved = (256, 0) if capability < 80 else (128, 1024)
    per_block = -(-(shared + reserved) // unit) * unit
    by_registers = REGISTERS // 4 // per_warp * 4 // warps
    by_shared = kib * 1024 // per_block if per_block else max_blocks
    return min(max_blocks, max_warps // warps, by_registers, by_shared)


def main(words=None):
    parser = argparse.ArgumentParser(prog="python -m tests.compiler", description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", type=int, nargs="*", default=list(LIMITS), choices=LIMITS, metavar="80")
    parser.add_argument("--match", default="", help="only instances with this in their names")
    arguments = parser.parse_args(words)
    jobs = [
        (kernel, capability)
        for kernel in algorithms.kernels()
        for capability in capabilities(kernel)
        if arguments.match in kernel.name and capability in arguments.arch
    ]
    if not jobs:
        parser.error(f"no instance has {arguments.match!r} in its name")
    row = "{:>4} {:>9} {:>7} {:>6} {:>6} {:>6} {:>8}  {}"
    print(row.format("arch", "registers", "shared", "stack", "spills", "blocks", "warps", "name"))
    bad = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (kernel, capability), made in zip(
            jobs, pool.map(lambda job: report_kernel(*job), jobs), strict=True
        ):
            warps = f"{made.blocks * -(-kernel.threads // 32)} of {LIMITS[capability][0]}"
            numbers = (made.registers, made.shared, made.stack, made.spills, made.blocks)
            print(row.format(capability, *numbers, warps, kernel.name), *made.problems, sep="\n     ")
            bad += bool(made.problems)
    print(f"{bad} of {len(jobs)} have problems")
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
