"""Compiles a kernel instance for the host, once: the shared object is named by a hash of all it is made of.

The instance's stub is preprocessed with the stand-in headers in front of the real ones, which takes about 10
ms and yields exactly the text that matters; the hash of that text, the flags and the compiler is the key. The
text is then changed where it declares shared memory: arrays become static variables, the only ones of an
instance, so that the runtime can find and poison them, and lie at addresses that are multiples of no more
than what they are declared to be aligned to; dynamic shared memory becomes a pointer from the runtime.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shlex
import subprocess
from pathlib import Path

from cuconv.cuda.jit import SOURCES
from cuconv.cuda.kernel import Kernel

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".emulator"
COMPILER = shlex.split(os.environ.get("CXX", "g++"))
SANITIZE = bool(os.environ.get("CUCONV_EMULATOR_SANITIZE"))
"""Whether instances are compiled for AddressSanitizer, which must be loaded into the process beforehand.

All others are compiled for UndefinedBehaviorSanitizer: with both of them compiling would take twice as long.
"""

COMMON = ("-std=c++17", "-fPIC", "-shared", "-Wall", "-Werror")
# The instance's own functions and variables are in an unnamed namespace, or instances would share the
# variables of equal templates; what goes unused there is no mistake. Nothing is linked that has variables of
# its own, and the sanitizer's handlers are in the runtime: hence -nostdlib. Contraction would make results
# depend on the compiler's version. That a pointer wraps around is looked for only beside AddressSanitizer,
# since it takes a fifth of the compiler's time: one that is used is found where it points to.
INSTANCE = (
    *(
        "-O1",
        "-g1",
        "-ffp-contract=off",
        "-Wno-unknown-pragmas",
        "-Wno-unused-function",
        "-Wno-maybe-uninitialized",
    ),
    *("-nostdlib", "-lm", "-lgcc"),
    *(
        ("-fsanitize=address,pointer-overflow",)
        if SANITIZE
        else ("-fsanitize=undefined", "-fno-sanitize=vptr,pointer-overflow")
    ),
    "-fno-sanitize-recover=undefined",
)
# Every load and store, and every stretch of code without a branch, calls a hook of the runtime. A vector
# stays one access, and loops that are to be unrolled are, so that every access of a pass has a place of its
# own in the code, as it has on a GPU.
COUNTING = (
    *("-O1", "-g1", "-ffp-contract=off", "-Wno-unused-function", "-Wno-maybe-uninitialized", "-fno-tree-sra"),
    *("--param", "max-completely-peeled-insns=20000", "--param", "max-completely-peel-times=64"),
    *("-fsanitize=thread", "-fsanitize-coverage=trace-pc", "-nostdlib", "-lm", "-lgcc"),
)
# Filling memory must not become a call of memset, which AddressSanitizer would check.
RUNTIME = ("-O3", "-fno-tree-loop-distribute-patterns", "-ldl", "-lpthread")

ALIGNED = r"(?:__attribute__\s*\(\(aligned\s*\([^()]*\)\)\)|alignas\s*\([^()]*\))\s*"
SHARED = re.compile(rf"((?:{ALIGNED})?)\b__shared__\s+((?:{ALIGNED})?)([\w:<>, ]+?)\s+(\w+\s*\[[^;]*\])\s*;")
DYNAMIC_SHARED = re.compile(
    r"\bextern\s+__shared__\s+"
    r"(?:(?:__attribute__\s*\(\(aligned\s*\(([^()]*)\)\)\)|alignas\s*\(([^()]*)\))\s*)?"
    r"([\w:<>, ]+?)\s+(\w+)\s*\[\s*\]\s*;"
)


class EmulatorError(Exception):
    """A kernel that does not compile, faults, or does what it must not."""


def instance(kernel: Kernel, counting: bool = False) -> Path:
    """The shared object with the kernel's instance, compiled if there is none yet.

    `counting` is for traffic.h to count accesses, and for nothing else: nothing is checked.
    """
    text = preprocessed(kernel, counting)
    return _compiled(kernel.name, text, ("-fpreprocessed", *(COUNTING if counting else INSTANCE)))


def runtime() -> Path:
    """The shared object with the runtime."""
    text = _run("runtime", [*COMMON[:1], "-E", str(HERE / "runtime.cpp")], "")
    return _compiled("runtime", text, ("-fpreprocessed", *RUNTIME))


@functools.cache
def preprocessed(kernel: Kernel, counting: bool = False) -> str:
    """All of an instance's source in one text, without comments, with shared memory as the host has it."""
    name = kernel.name
    source = f"namespace {{\n{kernel.stub('')}}}\nEMULATOR_ENTRY({name})\n"
    folders = (HERE / "include", HERE / "kernels", SOURCES)
    include = [word for folder in folders for word in ("-I", str(folder))]
    counts = ["-DEMULATOR_COUNTS"] if counting else []
    text = _run(
        name, [*COMMON[:1], *counts, "-E", "-x", "c++", *include, "-include", "device.h", "-"], source
    )
    if counting:
        text = re.sub(r"#pragma unroll\b *(\d*)", lambda found: f"#pragma GCC unroll {found[1] or 64}", text)

    def dynamic_shared(match: re.Match[str]) -> str:
        gnu_alignment, alignment, type_name, variable = match.groups()
        call = f"::emulator::dynamic_shared({gnu_alignment or alignment or 16})"
        return f"{type_name}* const {variable} = static_cast<{type_name}*>({call});"

    def shared(match: re.Match[str]) -> str:
        before, after, type_name, declarators = match.groups()
        return " ".join(
            f"alignas(64) static struct {{ char before; {before}{after}{type_name} array{extents}; }}"
            f" {variable}_place; auto& {variable} = {variable}_place.array;"
            for variable, extents in re.findall(r"(\w+)\s*((?:\[[^]]*\]\s*)+)", declarators)
        )

    return SHARED.sub(shared, DYNAMIC_SHARED.sub(dynamic_shared, text))


def _compiled(name: str, source: str, flags: tuple[str, ...]) -> Path:
    key = "\n".join((_compiler(), *COMMON, *flags, source))
    # A long name of a kernel would not fit in a file name.
    target = CACHE / f"{name[:100]}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.so"
    if not target.exists():
        CACHE.mkdir(exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        _run(name, [*COMMON, "-x", "c++", "-", "-o", str(partial), *flags], source)
        os.replace(partial, target)  # whole or not there, whatever other processes do
    return target


@functools.cache
def _compiler() -> str:
    return " ".join(COMPILER) + _run("the compiler", ["--version"], "")


def _run(name: str, arguments: list[str], text: str) -> str:
    try:
        done = subprocess.run([*COMPILER, *arguments], input=text, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise EmulatorError(f"there is no C++ compiler {COMPILER[0]!r}: install g++, or set CXX") from error
    if done.returncode:
        raise EmulatorError(f"{name} does not compile:\n{done.stderr}")
    return done.stdout


def sanitized_environment() -> dict[str, str]:
    """The environment of a process whose instances are compiled for AddressSanitizer."""
    library = _run("the compiler", ["-print-file-name=libasan.so"], "").strip()
    options = "detect_leaks=0:detect_stack_use_after_return=0"
    return {**os.environ, "CUCONV_EMULATOR_SANITIZE": "1", "LD_PRELOAD": library, "ASAN_OPTIONS": options}
