"""What the compiler made of a kernel: its registers, and its loops, by NVRTC and NVIDIA's disassembler.

How often a loop is passed the machine code does not say. The emulator's counts do: the passes of all loops
with loads or stores are those, none negative, that explain best how many of each width a warp makes, since a
compiler may unroll a loop or make two of it; a loop without any is passed as often as its line is run.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from cuconv.cuda import jit
from cuconv.cuda.kernel import Kernel
from tests import compiler
from tests.emulator import build

UNITS = {
    "float": r"FFMA|FADD|FMUL",
    "double": r"DFMA|DADD|DMUL",
    "multiply": r"IMAD",
    "integer": r"IADD|VIADD|LOP3|ISETP|LEA|SHF|SEL|PRMT|IMNMX|VIMNMX|PLOP3|IABS|MOV|HADD2|HFMA2|F2FP",
}
"""The unit of an instruction, by the start of its name; others only take an issue slot."""

NAMES = {"tensor": r"[HD]G?MMA", "branch": r"BRA", "barrier": r"BAR"}
"""Instructions that are counted apart, likewise."""

_SINGLE, _DOUBLE, _INTEGER = r"FFMA|HG?MMA", r"DFMA|DMMA", r"IMAD(?!\.MOV|\.SHL|\.IADD|\.X)"
PRODUCTS = {
    "float32": _SINGLE,
    "complex64": _SINGLE,
    "float64": _DOUBLE,
    "complex128": _DOUBLE,
    "int32": _INTEGER,
    "int64": _INTEGER,
}
"""The multiplications that a convolution consists of, by the dtype of its sums."""

HINT = 1e-5
"""How much the count of a loop's line weighs beside those of its accesses."""

Line = tuple[str, int]
"""A file's name, and a line's number."""

Access = tuple[str, str, int]
"""global or shared; read, write, copy or product; bytes."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: its place, its full name, where it goes if it is a branch, its file and line and those
    where that was inlined.
    """

    at: int
    name: str
    target: int | None
    lines: tuple[Line, ...]
    idle: bool  # part of what no request that is measured does: see _idle
    block: int = 0  # of instructions that are run one after the other
    goals: tuple[int, ...] = ()  # where it may go: where a branch does, one of several, or to the next one

    @property
    def line(self) -> Line:
        return (*self.lines, ("", 0))[0]

    def starts(self, pattern: str) -> bool:
        return re.match(rf"(?:{pattern})(?![A-Z])", self.name) is not None

    @functools.cached_property
    def counts_as(self) -> tuple[str, ...]:
        """The units that do it, and the names that are counted apart."""
        return tuple(name for name, pattern in (UNITS | NAMES).items() if self.starts(pattern))

    @functools.cached_property
    def product(self) -> tuple[str, int]:
        """What a product of tensor cores multiplies, and a warp's FLOP: HMMA.1688.F32.TF32, DMMA.8x8x4."""
        shape = re.search(r"\.(?:(\d+)x(\d+)x(\d+)|(16|8)(8)(4|8|16|32))(?=\.|$)", self.name)
        if shape is None or not self.starts(NAMES["tensor"]):
            return "", 0
        m, n, k = (int(extent) for extent in shape.groups() if extent)
        kind = "double" if self.name.startswith("D") else "tf32" if ".TF32" in self.name else "half"
        if self.name[1] == "G":  # by four warps together
            return f"{kind} by warpgroups", 2 * m * n * k // 4
        return kind, 2 * m * n * k

    @functools.cached_property
    def operands(self) -> float:
        """Wavefronts of shared memory that bring the operands of a product of warpgroups, a warp's share."""
        shape = re.search(r"\.64x(\d+)x", self.name)
        if shape is None or not self.starts("HGMMA"):
            return 0.0
        return (64 + int(shape[1])) * 32 / 128 / 4  # 32 bytes of gemm_k, for four warps

    @functools.cached_property
    def access(self) -> Access | None:
        """What it asks of memory, constants and registers apart; that it is a product of warpgroups."""
        if self.name.startswith("LDSM"):
            return "shared", "read", 16
        if self.starts("HGMMA"):
            return "shared", "product", 16
        kinds = {"LDGSTS": ("global", "copy"), "LDG": ("global", "read"), "STG": ("global", "write")}
        kinds |= {"LDS": ("shared", "read"), "STS": ("shared", "write")}
        kinds |= {"LD": ("global", "read"), "ST": ("global", "write")}
        kind = kinds.get(self.name.partition(".")[0])
        if kind is None:
            return None
        width = re.search(r"\.(?:[US])?(8|16|32|64|128)(?=\.|$)", self.name)
        return *kind, int(width[1]) // 8 if width else 4


@dataclass(frozen=True)
class Loop:
    """Instructions from which a branch back is reached, the last one of `all`, without passing where it goes:
    `own` are those in no loop inside, not idle.
    """

    own: tuple[Instruction, ...]
    all: tuple[Instruction, ...]

    @property
    def accesses(self) -> Counter[Access]:
        return Counter(each.access for each in self.own if each.access)

    @property
    def line(self) -> Line:
        """That of its branch back, the `for` or `while` as a rule."""
        return self.all[-1].line

    @property
    def loaded(self) -> int:
        """Bytes that a thread loads from global memory in a pass."""
        return sum(
            each.access[2] for each in self.all if each.access and each.access[:2] == ("global", "read")
        )

    @property
    def guarded(self) -> int:
        """Loads from global memory that a branch jumps over."""
        skips = [(each.at, each.target) for each in self.all if each.target and each.target > each.at]
        loads = [each.at for each in self.all if each.access and each.access[:2] == ("global", "read")]
        return sum(any(begin < at < end for begin, end in skips) for at in loads)


@dataclass(frozen=True)
class Code:
    """A compiled kernel. The first of its loops is all that is passed once."""

    registers: int
    shared: int
    resident: int
    loops: tuple[Loop, ...]

    @property
    def by_warpgroups(self) -> bool:
        """Whether these multiply, and share out what there is to be done."""
        return any(each.starts("HGMMA") for loop in self.loops for each in loop.own)

    def main(self, products: str) -> Loop:
        """The innermost loop with the most multiplications, or accesses where nothing is multiplied."""

        def weight(loop: Loop) -> tuple[int, int, int]:
            multiplies = sum(each.starts(products) and not each.idle for each in loop.all)
            accesses = sum(each.access is not None for each in loop.all)
            return multiplies, 0 if multiplies else accesses, -len(loop.all)

        return max(self.loops[1:] or self.loops, key=weight)

    def without(self, accesses: Mapping[Access, float], lines: Set[Line] = frozenset()) -> Code:
        """The code but for these lines, which no thread runs, and blocks that cannot have been run by a warp
        that makes these accesses.

        Those are blocks with a narrower access to global memory than any that was made: for arrays that have
        no vectors, say. Wider ones count as made, since the emulator's compiler may take them apart.
        """
        least: dict[str, int] = {}
        for (space, kind, width), count in accesses.items():
            if space == "global" and count:
                least[kind] = min(width, least.get(kind, width))
        never = {
            each.block
            for loop in self.loops
            for each in loop.own
            if each.access and each.access[0] == "global" and each.access[2] < least.get(each.access[1], 0)
        }
        kept = [
            tuple(each for each in loop.own if each.block not in never and lines.isdisjoint(each.lines))
            for loop in self.loops
        ]
        return replace(
            self, loops=tuple(replace(loop, own=own) for loop, own in zip(self.loops, kept, strict=True))
        )

    def passes(self, accesses: Mapping[Access, float], lines: Mapping[Line, float]) -> list[float]:
        """How often a warp passes each loop, if it makes these accesses, and runs these lines so often.

        Where none of 8 bytes were made, such in the code are of 16: compilers may read but half of a vector.
        """

        def alike(counts: Mapping[Access, float]) -> Counter[Access]:
            found: Counter[Access] = Counter()
            for (space, kind, width), count in counts.items():
                whole = width == 8 and not accesses.get((space, kind, 8))
                found[space, kind, 16 if whole else width] += count  # type: ignore[assignment]
            return found

        asked = alike(accesses)
        of_loops = [alike(loop.accesses) for loop in self.loops]
        kinds = sorted({*asked, *(kind for loop in of_loops for kind in loop)})
        made = np.array([asked[kind] for kind in kinds], float)
        weight = 1 / np.sqrt(np.maximum(made, 1))
        once = np.array([of_loops[0][kind] for kind in kinds])
        known = [i for i, loop in enumerate(self.loops) if i and loop.accesses]
        passes = [1.0] + [0.0] * (len(self.loops) - 1)
        run = {i: self._as_often_as_its_line(i, lines) for i in range(1, len(self.loops))}
        if known:
            matrix = np.array([[of_loops[i][kind] for i in known] for kind in kinds])
            # Where loops make the same accesses, their lines have to tell how often each is passed.
            hints = np.array([HINT / np.sqrt(max(run[i], 1)) for i in known])
            found, _ = nnls(
                np.vstack([matrix * weight[:, None], np.diag(hints)]),
                np.concatenate([np.maximum(made - once, 0) * weight, hints * [run[i] for i in known]]),
            )
            for i, count in zip(known, found, strict=True):
                passes[i] = float(count)
        for i, loop in enumerate(self.loops):
            if i and not loop.accesses:
                passes[i] = run[i]
        return passes

    def _as_often_as_its_line(self, i: int, lines: Mapping[Line, float]) -> float:
        copies = sum(other.line == self.loops[i].line for other in self.loops[1:])
        return lines.get(self.loops[i].line, 0.0) / copies


@functools.cache
def compiled(kernel: Kernel, capability: int, shared_bytes: int = 0) -> Code:
    """A kernel for an architecture."""
    target = jit.architecture(capability, compiler.known())
    planted = build.HERE / "kernels"
    options = (*jit.options(target), f"-I{planted}", "--ptxas-options=-v", "--generate-line-info")
    log, _, cubin = compiler.build(kernel.stub(jit.stamp()), options)
    registers = int(re.findall(r"Used (\d+) registers", log)[0])
    shared = sum(map(int, re.findall(r"(\d+) bytes smem", log))) + shared_bytes
    resident = compiler.occupancy(capability, kernel.threads, registers, shared)
    return Code(registers, shared, resident, loops(instructions(disassembled(cubin))))


def disassembler() -> str:
    """NVIDIA's disassembler, or RuntimeError with the way to get it."""
    if importlib.util.find_spec("nvidia") is not None:
        import nvidia

        for folder in nvidia.__path__:
            for found in sorted(Path(folder).glob("*/bin/nvdisasm")):
                return str(found)
    on_path = shutil.which("nvdisasm")
    if on_path is None:
        raise RuntimeError("the cost model needs NVIDIA's disassembler: pip install nvidia-cuda-nvdisasm")
    return on_path


def disassembled(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [disassembler(), "-c", "-gi", file.name], capture_output=True, text=True, check=True
        )
    return done.stdout


@functools.cache
def _idle() -> frozenset[Line]:
    """The lines that compute activations, finish sums one by one, or add to what is there; and those of
    products that are for subnormal numbers, and for infinite ones and NaN. Each with its file.
    """
    lines = (jit.SOURCES / "numerics.cuh").read_text().splitlines()

    def found(begin: str) -> int:
        return next(i for i, line in enumerate(lines, 1) if line.startswith(begin))

    spans = (
        ("enum Activation", "// Put a sum in its place"),
        ("// Finish a thread's sums one after the other", "// COUNT neighbours"),
    )
    adding = (i for i, line in enumerate(lines, 1) if "if (p.accumulate)" in line)
    numerics = (*(i for begin, end in spans for i in range(found(begin), found(end))), *adding)
    calls = {
        "mma.cuh": ("multiply_slice<Tile, true>(", "multiply_plainly<Tile>(", "if (small_a"),
        "grouped.cuh": ("multiply_block<Product, true>(", "put_block<true>("),
    }
    rare = []
    for name, texts in calls.items():
        source = (jit.SOURCES / name).read_text().splitlines()
        for text in texts:
            rare.append((name, next(i for i, line in enumerate(source, 1) if text in line)))
    return frozenset((*(("numerics.cuh", i) for i in numerics), *rare))


_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)")

GOING = ("BRA", "BRX", "EXIT", "RET")
"""What a stretch of code ends with that nothing but a label begins after."""

_NEVER = "@!PT"
"""The guard of an instruction that does nothing: ptxas puts loads so guarded before asynchronous copies."""


def instructions(text: str) -> list[Instruction]:
    """The instructions of a disassembled kernel; branches go to places, of which labels are the names."""
    lines: list[tuple[int, str, str, list[Line], bool]] = []  # and whether it is guarded
    labels: dict[str, int | None] = {}
    places: list[Line] = []  # of what follows, and where that was inlined
    used = False
    for line in text.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = None
        elif place := re.search(r'//## File ".*?([^/"]+)", line (\d+)', line):
            places = [*([] if used else places), (place[1], int(place[2]))]
            used = False
        elif found := _LINE.search(line):
            used = True
            at = int(found[1], 16)
            labels |= {name: at for name, place in labels.items() if place is None}
            guard = (found[2] or "").strip()
            lines.append((at, "NOP" if guard == _NEVER else found[3], found[4], places, bool(guard)))
    made: list[Instruction] = []
    block = 0
    nexts = [*(at for at, *_ in lines[1:]), None]
    for (at, name, operands, places, guarded), following in zip(lines, nexts, strict=True):
        kind = name.partition(".")[0]
        found = [labels[label] for label in re.findall(r"\.L_x_\d+", operands)] if kind in GOING else []
        # Conditions are guards, or operands before the goal.
        ends = not guarded and kind in GOING and (kind != "BRA" or operands.lstrip().startswith("`"))
        goals = tuple(goal for goal in (*found, None if ends else following) if goal is not None)
        idle = not _idle().isdisjoint(places)
        block += at in labels.values() or (bool(made) and made[-1].name.partition(".")[0] in GOING)
        target = found[0] if kind == "BRA" and found else None
        made.append(Instruction(at, name, target, tuple(places), idle, block, goals))
    return made


def loops(code: list[Instruction]) -> tuple[Loop, ...]:
    """The loops, outer ones first, after all that is in none.

    Compilers put what is seldom done behind everything else, so that a loop is no stretch of the code, and a
    branch to what comes before makes one only if that is always passed on the way to the branch.
    """
    blocks = [[*members] for _, members in itertools.groupby(code, lambda each: each.block)]
    number = {members[0].at: i for i, members in enumerate(blocks)}
    after = [{number[goal] for goal in members[-1].goals} for members in blocks]
    before = [[j for j, goals in enumerate(after) if i in goals] for i in range(len(blocks))]
    passed = _dominators(before)
    bodies: dict[int, set[int]] = {}
    backs: dict[int, int] = {}
    for i, goals in enumerate(after):
        for head in goals:
            to_itself = head == i and len(blocks[i]) == 1  # after the end
            if passed[i] >> head & 1 and not to_itself:
                body, found = bodies.setdefault(head, {head}), [i]
                while found:
                    if (one := found.pop()) not in body:
                        body.add(one)
                        found += before[one]
                backs[head] = max(i, backs.get(head, 0))
    heads = sorted(bodies, key=lambda head: -len(bodies[head]))
    inside = [[*range(len(blocks))]] + [
        [*sorted(bodies[head] - {backs[head]}), backs[head]] for head in heads
    ]
    deepest = {block: i for i, members in enumerate(inside) for block in members}
    return tuple(
        Loop(
            tuple(each for b in members if deepest[b] == i for each in blocks[b] if not each.idle),
            tuple(each for b in members for each in blocks[b]),
        )
        for i, members in enumerate(inside)
    )


def _dominators(before: list[list[int]]) -> list[int]:
    """By block a set of bits: the blocks that are always passed on the way to it, itself among them.

    Where no block goes to one, it is begun at.
    """
    every = (1 << len(before)) - 1
    passed = [every if goals and i else 1 << i for i, goals in enumerate(before)]
    changed = True
    while changed:
        changed = False
        for i, goals in enumerate(before):
            if goals and i:
                now = functools.reduce(int.__and__, (passed[j] for j in goals)) | 1 << i
                changed, passed[i] = changed or now != passed[i], now
    return passed
