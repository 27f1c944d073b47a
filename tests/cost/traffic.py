"""What a launch asks of memory: counted in the emulator for a few of its blocks, and taken for all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from cuconv.cuda.kernel import Launch, Scratch, Strides
from cuconv.cuda.strides import strides_by_role
from cuconv.plan import Plan
from tests.emulator import runner

BLOCKS = 5
"""How many blocks are run, spread evenly. An odd number meets all residues of a stride of two, whatever
number of groups or images they come in; four met the first residue of four groups.
"""


class Count(NamedTuple):
    """Of all accesses of one kind, in a whole launch: see tests/emulator/traffic.h."""

    requests: float
    taken: float
    least: float
    lines: float
    from_l2: float


Traffic = dict[tuple[str, str, int], Count]
"""By space (a, b, bias, out, shared), kind (read, write, copy) and bytes per lane."""


class Counted(NamedTuple):
    """The traffic of a launch, or of some threads of each block; by (file, line) how often one runs what
    begins there; the lines that none runs; and how many bytes a thread's asynchronous copies have to bring at
    the most.
    """

    traffic: Traffic
    lines: dict[runner.Line, float]
    never: frozenset[runner.Line]
    under_way: int


Arrays = dict[str | Scratch, np.ndarray]


def arrays(plan: Plan) -> Arrays:
    """Zeros for every operand of a plan's launches, of which only what is touched takes memory."""
    request = plan.request
    dtypes = dict(zip("xw", request.inputs or (), strict=False))
    found: Arrays = {}
    for operand in {operand for launch in plan.launches for operand in (launch.a, launch.b, launch.out)}:
        if isinstance(operand, Scratch):
            found[operand] = zeros(operand.shape, operand.dtype)
        elif operand is not None:
            found[operand] = zeros(request.shapes[operand], dtypes.get(operand, request.dtype))
    return found


def places(plan: Plan, operands: Arrays) -> dict[str, Strides]:
    """Where the elements of a plan's operands are."""
    return strides_by_role(
        plan.request, {role: each for role, each in operands.items() if isinstance(role, str)}
    )


def zeros(shape: Iterable[int], dtype: str) -> np.ndarray:
    """Zeros aligned as a GPU's allocations are, to 256 bytes."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    size = math.prod(shape) * kind.itemsize
    memory = np.zeros(size + 256, np.uint8)
    start = -memory.ctypes.data % 256
    return memory[start : start + size].view(kind).reshape(shape)


def counted(
    launch: Launch,
    operands: Arrays,
    places: Mapping[str, Strides],
    l1_bytes: int,
    threads: range | None = None,
) -> Counted:
    """What a launch does: a few blocks of it, taken for all; of each all threads, or so many side by side."""
    count = min(BLOCKS, launch.blocks)
    blocks = [launch.blocks * (2 * i + 1) // (2 * count) for i in range(count)]
    found = runner.count_window(launch, operands, places, blocks, l1_bytes, threads)
    every = tiles(launch)
    share = every / sum(len(range(block, every, launch.blocks)) for block in blocks)  # how many times as much
    of_lines = launch.blocks * len(threads or range(launch.kernel.threads)) / share
    lines = {place: passes / of_lines for place, passes in found.lines.items()}
    return Counted(scaled(found.tallies, share), lines, found.never, found.under_way)


def tiles(launch: Launch) -> int:
    """How many tiles blocks have, one each but where they take turns: every so many blocks the next one."""
    fields = dict(launch.fields)
    if launch.kernel.file != "wgmma.cuh":
        return launch.blocks
    return int(fields["splits"] * math.prod(extent for extent, *_ in fields["digit"]))


def scaled(tallies: np.ndarray, factor: float) -> Traffic:
    """The runner's tallies that are not empty, times a factor."""
    found = {}
    for i, space in enumerate(runner.SPACES):
        for j, kind in enumerate(runner.KINDS):
            for k, width in enumerate(runner.WIDTHS):
                tally = tallies[i, j, k]
                if tally["requests"]:
                    found[space, kind, width] = Count(
                        *(float(tally[name]) * factor for name in Count._fields)
                    )
    return found
