"""Runs launches on NumPy arrays and checks everything that a result alone does not show.

Every array is copied between two inaccessible stretches of memory, and all launches run twice: with threads
in order, arrays flush against their upper guards and unwritten memory NaN; then with threads in reverse (or
shuffled), arrays flush against their lower guards and unwritten memory of another pattern. A result that
depends on the order of threads, on memory that nothing wrote or on bytes outside of the arrays differs
between the two. Inputs are read-only memory, and what lies between a view's elements must come out as it went
in.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.array_utils import byte_bounds

from cuconv.cuda.kernel import Kernel, Launch, Scratch, Strides
from tests.emulator import build
from tests.emulator.build import EmulatorError

ALIGNMENT = 16
"""Copies keep an array's address modulo this, the widest access of a kernel to global memory."""

REGISTERS, MOST_REGISTERS = 65536, 248
"""Of a multiprocessor, and of a thread at launch; they are given out in eights."""

ORDERS = ("forward", "reverse", "shuffled")


class _Job(ctypes.Structure):
    _fields_ = [
        ("entry", ctypes.c_void_p),
        ("pointers", ctypes.c_void_p * 4),
        ("params", ctypes.c_void_p),
        ("statics", ctypes.c_void_p * 2),
        ("shared_bytes", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_uint) for name in ("threads", "grid", "first", "blocks", "order", "poison", "low")),
        ("registers", ctypes.c_uint),
        ("l1_bytes", ctypes.c_uint64),
        ("operands", ctypes.c_uint64 * 2 * 4),
        ("tallies", ctypes.c_void_p),
        ("passes", ctypes.c_void_p),
        ("code_bytes", ctypes.c_uint64),
        ("under_way", ctypes.c_void_p),
        ("counted_from", ctypes.c_uint),
        ("counted", ctypes.c_uint),
    ]


TALLY = np.dtype([(name, np.float64) for name in ("requests", "taken", "least", "lines", "from_l2")])
"""What traffic.h counts, in an array by space (a, b, bias, out, shared), kind and width."""

SPACES, KINDS = ("a", "b", "bias", "out", "shared"), ("read", "write", "copy", "product")
WIDTHS = (1, 2, 4, 8, 16)


class _Report(ctypes.Structure):
    _fields_ = [
        ("message", ctypes.c_char * 2048),
        ("module", ctypes.c_char * 1024),
        ("offset", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("block", ctypes.c_int64),
        ("thread", ctypes.c_int64),
        ("fault", ctypes.c_int),
    ]


@dataclass(frozen=True)
class Pass:
    """One way to run the launches: the order of threads, what unwritten memory holds, where arrays lie."""

    order: str = "forward"
    poison: int = 0xFF
    low: bool = False
    seed: int = 0


def run_plan(
    launches: Iterable[Launch],
    arrays: Mapping[str, np.ndarray | None],
    strides: Mapping[str, Strides],
    workspace_bytes: int = 0,
    *,
    seed: int | None = None,
    blocks: range | None = None,
) -> None:
    """Run a plan's launches on the arrays of its roles, writing into those that a launch names as its result.

    strides: where each role's elements are, relative to the array's own data pointer.
    seed: shuffles the threads in the second pass, which else has them in reverse.
    blocks: run only these of each launch; what they do not write stays as it was.
    Raises EmulatorError.
    """
    launches = [launch for launch in launches if launch.blocks > 0]
    present = {role: array for role, array in arrays.items() if array is not None}
    results = {launch.out for launch in launches if isinstance(launch.out, str)}
    kept = (
        results
        if blocks is not None
        else {each.out for each in launches if each.params(strides)["accumulate"][0]}
    )
    _check_workspace(launches, workspace_bytes)
    second = Pass("reverse" if seed is None else "shuffled", 0x5A, low=True, seed=seed or 0)
    outcomes = []
    for how in (Pass(), second):
        with _buffers(launches, present, how) as buffers:
            for role in results & kept:
                buffers[role].view[...] = present[role]
            for launch in launches:
                _run(launch, buffers, strides, how, blocks)
            outcomes.append({role: buffers[role].view.copy() for role in results})
    for role in results:
        first, again = (_element_bytes(outcome[role]) for outcome in outcomes)
        if first.tobytes() != again.tobytes():
            index = tuple(map(int, np.argwhere((first != again).any(axis=-1))[0]))
            names = ", ".join(launch.kernel.name for launch in launches)
            one, other = (outcome[role][index] for outcome in outcomes)
            raise EmulatorError(
                f"{names}: {role}{list(index)} is {one} and then {other}: "
                "it depends on the order of threads or on memory that was never written"
            )
        present[role][...] = outcomes[0][role]


def execute(
    launch: Launch,
    arrays: Mapping[str, np.ndarray | None],
    strides: Mapping[str, Strides],
    **options: int | range | None,
) -> None:
    """run_plan of a single launch without a workspace."""
    run_plan([launch], arrays, strides, **options)  # type: ignore[arg-type]


def run_window(
    launch: Launch,
    arrays: Mapping[str | Scratch, np.ndarray],
    strides: Mapping[str, Strides],
    blocks: range,
) -> None:
    """Run some blocks of a launch on the arrays themselves, which may be too large to copy: once, unguarded.

    `arrays` has the launch's operands as it names them, those in the workspace too.
    """
    pointers = [
        arrays[operand].ctypes.data if operand in arrays else None
        for operand in (launch.a, launch.b, "bias", launch.out)
    ]
    report = _blocks(launch, pointers, strides, Pass(), blocks)
    if report is not None:
        raise EmulatorError(f"{launch.kernel.name}: {_explain(report, [])}")


Line = tuple[str, int]
"""A file's name, and a line's number."""


@dataclass
class Counts:
    """What threads of some blocks of a launch did: their accesses, by space, kind and width; by (file, line)
    how often they in all ran what begins there; the lines of which nothing was run; and how many bytes a
    thread's asynchronous copies had to bring at the most.
    """

    tallies: np.ndarray
    lines: dict[Line, int]
    never: frozenset[Line]
    under_way: int


def count_window(
    launch: Launch,
    arrays: Mapping[str | Scratch, np.ndarray],
    strides: Mapping[str, Strides],
    blocks: Iterable[int],
    l1_bytes: int,
    threads: range | None = None,
) -> Counts:
    """run_window of some blocks, one by one, that counts: what all threads do, or so many side by side.

    Each block has a first-level cache of so many bytes, empty at first.
    """
    operands = [arrays.get(operand) for operand in (launch.a, launch.b, "bias", launch.out)]
    pointers = [None if array is None else array.ctypes.data for array in operands]
    library = build.instance(launch.kernel, counting=True)
    counting = _Counting(
        l1_bytes,
        [(0, 0) if array is None else byte_bounds(array) for array in operands],
        np.zeros((len(SPACES), len(KINDS), len(WIDTHS)), TALLY),
        np.zeros(library.stat().st_size, np.uint64),
        ctypes.c_uint64(),
        threads or range(launch.kernel.threads),
    )
    for block in blocks:
        report = _blocks(launch, pointers, strides, Pass(), range(block, block + 1), counting)
        if report is not None:
            raise EmulatorError(f"{launch.kernel.name}: {_explain(report, [])}")
    lines, never = _by_line(library, counting.passes)
    return Counts(counting.tallies, lines, never, counting.under_way.value)


@dataclass
class _Counting:
    """What the runtime counts with, and into."""

    l1_bytes: int
    ranges: list[tuple[int, int]]
    tallies: np.ndarray
    passes: np.ndarray
    under_way: ctypes.c_uint64
    threads: range


def _by_line(library: Path, passes: np.ndarray) -> tuple[dict[Line, int], frozenset[Line]]:
    """The passes of the busiest place of each line, and the lines that have places and were never run."""
    found: dict[Line, int] = {}
    run, every = set[Line](), set[Line]()
    for place, lines in _places(library).items():
        count = int(passes[place])
        every.update(lines)
        if count and lines:
            run.update(lines)
            found[lines[0]] = max(found.get(lines[0], 0), count)
    return found, frozenset(every - run)


@functools.cache
def _places(library: Path) -> dict[int, list[Line]]:
    """By its address, where each counted place is in the source, and where that was inlined."""
    command = ["objdump", "-d", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    calls = re.findall(r"\tcall +.*<__sanitizer_cov_trace_pc.*\n *([0-9a-f]+):", text)
    places = [int(address, 16) for address in calls]
    # The calls before these return addresses.
    command = ["addr2line", "-a", "-i", "-e", str(library), *(hex(place - 1) for place in places)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[int, list[Line]] = {}
    for place, part in zip(places, re.split(r"^0x[0-9a-f]+\n", text, flags=re.M)[1:], strict=True):
        lines = (each.partition(" ")[0].rpartition(":") for each in part.splitlines())
        found[place] = [(_name(file), int(line)) for file, _, line in lines if line.isdecimal()]
    return found


def _name(file: str) -> str:
    """A file's name, but of the emulator's own headers, which are named like others, its path."""
    return file if build.HERE / "include" in Path(file).parents else Path(file).name


class _Buffer:
    """A copy of an array between two guards: `pointer` is the address of its first element.

    Bytes that are not the array's elements hold the poison.
    """

    def __init__(self, name: str, array: np.ndarray, how: Pass) -> None:
        self.name = name
        origin = array.ctypes.data
        start, end = byte_bounds(array) if array.size else (origin, origin)
        self.length = end - start
        self.size = max(1, -(-(self.length + ALIGNMENT) // mmap.PAGESIZE)) * mmap.PAGESIZE
        self.base = _runtime().emulator_map(self.size)
        if not self.base:
            raise MemoryError(f"{self.size} bytes for {name}")
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.base))
        self.bytes[...] = how.poison
        residue = start % ALIGNMENT
        highest = self.size - self.length
        offset = residue if how.low else highest - (highest - residue) % ALIGNMENT
        self.start = self.base + offset
        # An empty array's pointer is that of the guard.
        self.pointer = self.start + (origin - start) if array.size else self.base + self.size
        self.view = self._view(self.bytes, array, self.pointer - self.base if array.size else 0)
        self._array = array

    @staticmethod
    def _view(data: np.ndarray, array: np.ndarray, offset: int) -> np.ndarray:
        return np.ndarray(array.shape, array.dtype, data.data, offset, array.strides)

    def protect(self, writable: bool) -> None:
        _runtime().emulator_protect(self.base, self.size, writable)

    def poison(self, how: Pass) -> None:
        self.protect(True)
        self.bytes[...] = how.poison

    def stray(self, before: np.ndarray) -> int | None:
        """The offset of a byte that is not an element's and is not what it was before."""
        after = self.bytes.copy()
        if self.view.size:
            offset = self.pointer - self.base
            self._view(after, self._array, offset)[...] = self._view(before, self._array, offset)
        changed = np.flatnonzero(after != before)
        return int(changed[0]) - (self.start - self.base) if changed.size else None

    def describe(self, address: int) -> str | None:
        """Where an address is, if it is in this buffer or not far from it."""
        near = 16 << 20
        if not self.base - near <= address < self.base + self.size + near:
            return None
        if address < self.start:
            return f"{self.start - address} bytes before the start of {self.name}"
        beyond = address - (self.start + self.length)
        return f"{beyond} bytes beyond the end of {self.name}" if beyond >= 0 else f"{self.name}, an input"

    def release(self) -> None:
        _runtime().emulator_unmap(self.base, self.size)


@contextmanager
def _buffers(
    launches: list[Launch], arrays: Mapping[str, np.ndarray], how: Pass
) -> Iterator[dict[str | Scratch, _Buffer]]:
    """A buffer for every operand of the launches, and "bias": inputs copied, the others poisoned."""
    operands = {operand for launch in launches for operand in (launch.a, launch.b, launch.out)}
    results = {launch.out for launch in launches}
    buffers: dict[str | Scratch, _Buffer] = {}
    try:
        for operand in operands | ({"bias"} & arrays.keys()):
            if isinstance(operand, Scratch):
                name = f"the workspace at {operand.offset}"
                buffers[operand] = _Buffer(name, np.empty(operand.shape, operand.dtype), how)
            elif operand in arrays:
                buffers[operand] = _Buffer(operand, arrays[operand], how)
                if operand not in results:
                    buffers[operand].view[...] = arrays[operand]
        yield buffers
    finally:
        for buffer in buffers.values():
            buffer.release()


def _run(
    launch: Launch,
    buffers: Mapping[str | Scratch, _Buffer],
    strides: Mapping[str, Strides],
    how: Pass,
    blocks: range | None,
) -> None:
    window = (
        range(launch.blocks)
        if blocks is None
        else range(max(0, blocks.start), min(launch.blocks, blocks.stop))
    )
    operands = [buffers.get(operand) for operand in (launch.a, launch.b, "bias", launch.out)]
    result = buffers[launch.out]
    if isinstance(launch.out, Scratch):
        for other, buffer in buffers.items():
            if isinstance(other, Scratch) and other != launch.out and _overlap(other, launch.out):
                buffer.poison(how)
    for buffer in buffers.values():
        buffer.protect(writable=buffer is result)
    before = result.bytes.copy()

    pointers = [buffer.pointer if buffer else None for buffer in operands]
    report = _blocks(launch, pointers, strides, how, window)
    if report is not None:
        raise EmulatorError(f"{launch.kernel.name}, {how.order}, {_explain(report, operands)}")
    stray = result.stray(before)
    if stray is not None:
        where = "before the start" if stray < 0 else "from the start"
        raise EmulatorError(
            f"{launch.kernel.name}, {how.order}: writes {abs(stray)} bytes {where} of {result.name}, "
            "where there is no element of it"
        )


def _blocks(
    launch: Launch,
    pointers: list[int | None],
    strides: Mapping[str, Strides],
    how: Pass,
    window: range,
    counting: _Counting | None = None,
) -> _Report | None:
    """Run some blocks; the report of what went wrong, or None."""
    entry, statics = _instance(launch.kernel, counting is not None)
    params = np.ascontiguousarray(launch.params(strides))
    job = _Job(
        entry=entry,
        pointers=tuple(pointers),
        params=params.ctypes.data,
        statics=statics,
        shared_bytes=launch.shared_bytes,
        seed=how.seed,
        threads=launch.kernel.threads,
        grid=launch.blocks,
        first=window.start,
        blocks=len(window),
        order=ORDERS.index(how.order),
        poison=how.poison,
        low=how.low,
        registers=_registers(launch.kernel),
    )
    if counting is not None:
        job.l1_bytes = counting.l1_bytes
        job.operands = tuple((ctypes.c_uint64 * 2)(*bounds) for bounds in counting.ranges)
        job.tallies = counting.tallies.ctypes.data
        job.passes, job.code_bytes = counting.passes.ctypes.data, len(counting.passes)
        job.under_way = ctypes.addressof(counting.under_way)
        job.counted_from, job.counted = counting.threads.start, len(counting.threads)
    report = _Report()
    return report if _runtime().emulator_run(ctypes.byref(job), ctypes.byref(report)) else None


def _registers(kernel: Kernel) -> int:
    """What each thread has of them at launch: the most that all residents can have."""
    return min(MOST_REGISTERS, REGISTERS // (kernel.threads * kernel.residents) // 8 * 8)


def _explain(report: _Report, operands: list[_Buffer | None]) -> str:
    where = f"block {report.block}" if report.block >= 0 else "launch"
    if report.thread >= 0:
        where += f", thread {report.thread}"
    message = report.message.decode()
    if report.fault:
        found = (buffer.describe(report.address) for buffer in operands if buffer)
        message += f" {next(filter(None, found), f'address {report.address:#x}')}"
    if report.module:
        message += f" ({_source_line(report.module.decode(), report.offset)})"
    return f"{where}: {message}"


def _source_line(module: str, offset: int) -> str:
    """Where in the source an instruction is, as well as this machine can tell."""
    if shutil.which("addr2line") is None:
        return f"{module}+{offset:#x}"
    command = ["addr2line", "-e", module, hex(offset)]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _check_workspace(launches: list[Launch], workspace_bytes: int) -> None:
    for launch in launches:
        for operand in (launch.a, launch.b, launch.out):
            if isinstance(operand, Scratch) and operand.end > workspace_bytes:
                raise EmulatorError(f"{launch}: {operand} ends beyond {workspace_bytes} bytes of workspace")


def _overlap(one: Scratch, other: Scratch) -> bool:
    return one.offset < other.end and other.offset < one.end


def _element_bytes(array: np.ndarray) -> np.ndarray:
    """The array with a last axis of bytes in place of its dtype."""
    return np.ascontiguousarray(array).reshape(*array.shape, 1).view(np.uint8)


@functools.cache
def _runtime() -> ctypes.PyDLL:
    """The runtime. It has one state, so it keeps the interpreter's lock; instances see its symbols."""
    library = ctypes.PyDLL(str(build.runtime()), mode=ctypes.RTLD_GLOBAL)
    library.emulator_map.argtypes = [ctypes.c_size_t]
    library.emulator_map.restype = ctypes.c_size_t
    library.emulator_unmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    library.emulator_protect.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
    return library


@functools.cache
def _instance(kernel: Kernel, counting: bool) -> tuple[int, tuple[int | None, int | None]]:
    """The address of the instance's entry, and the bounds of its static shared memory."""
    _runtime()
    library = ctypes.CDLL(str(build.instance(kernel, counting)))
    statics = (ctypes.c_void_p * 2)()
    library.emulator_statics(statics)
    return ctypes.cast(library.emulator_entry, ctypes.c_void_p).value, tuple(statics)
