"""From what a launch does to the seconds that it takes: each unit's time alone, and the largest of them.

    issue          all warp instructions, over what a multiprocessor issues
    multipliers    those of each arithmetic unit, over its lanes; tensor cores by their FLOP
    shared memory  wavefronts of shared memory, those of products' operands among them, and lines of the
                   first-level cache, one a clock; copies to shared memory pass the cache by, and only their
                   lines are looked up, beside all that
    L2             sectors that the first-level cache does not have
    DRAM           each operand once; what is read again, where the blocks at work do not fit the second level
    latency        a warp's own instructions, one waiting for another, and its waits for memory, once a pass

The first three are those of the multiprocessor that has most blocks; the last is that of as many blocks in a
row as one place for a block gets. Launches follow one another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cuconv.cuda.kernel import Launch, Strides
from cuconv.cuda.transform import REAL
from cuconv.dtypes import DTYPES
from cuconv.plan import Plan
from cuconv.problem import Request

from . import code, traffic
from .gpus import GPUS, Gpu

WARPGROUP = 128
"""Threads of four warps that multiply together."""

OF_PARTS = 6
"""Products of bfloat16 that one of floats takes by parts: see cuda_src/parts.cuh."""


@dataclass(frozen=True)
class Main:
    """The main loop: instructions of a pass, those that multiply, loads from global memory by bytes, those of
    them that a branch jumps over, and branches.
    """

    instructions: int
    multiplies: int
    loads: dict[str, int]
    guarded: int
    branches: int


@dataclass(frozen=True)
class Work:
    """What one launch does, as counted: all that a prediction takes, but for the GPU's own figures.

    `instructions` are a warp's, by unit, "all" among them, and `tensor` the FLOP of its products on tensor
    cores, by what they multiply; `waits` is how often it waits for global memory.
    `memory` has [requests, taken, least, from L2] of each operand and of shared memory, of the whole launch;
    `operands` their bytes. `in_flight` are the bytes that a multiprocessor's blocks ask for in a pass. Where
    warpgroups share out work, `roles` has the instructions of each one's warps, and "waits"; blocks share out
    `tiles`.
    """

    kernel: str
    blocks: int
    threads: int
    registers: int
    shared: int
    resident: int
    main: Main
    instructions: dict[str, float]
    tensor: dict[str, float]
    waits: float
    memory: dict[str, list[float]]
    lines: float
    copied_lines: float
    operands: dict[str, int]
    written: int
    in_flight: float
    roles: list[dict[str, float]]
    tiles: int


def work(plan: Plan, gpu: Gpu) -> list[Work]:
    """What each launch of a plan does, without running more than a few blocks of it.

    Raises ValueError where these are no kernels.
    """
    if plan.algorithm == "fft":
        raise ValueError(
            "algorithm='fft' is cuFFT's transforms and no kernels of cuconv, of whose code and accesses "
            "predictions are made; python -m cuconv explain has an estimate"
        )
    operands = traffic.arrays(plan)
    places = traffic.places(plan, operands)
    products = code.PRODUCTS[DTYPES[plan.request.dtype].accumulator]
    return [of_launch(launch, operands, places, products, gpu) for launch in plan.launches]


def of_launch(
    launch: Launch, operands: traffic.Arrays, places: Mapping[str, Strides], products: str, gpu: Gpu
) -> Work:
    """What a launch does; `products` are the instructions that count as multiplications."""
    made = code.compiled(launch.kernel, gpu.capability, launch.shared_bytes)
    products = "HGMMA" if made.by_warpgroups else products
    l1 = (gpu.l1 - made.resident * made.shared) // max(made.resident, 1)
    size, threads = launch.kernel.threads, range(launch.kernel.threads)
    groups = [threads[i : i + WARPGROUP] for i in threads[::WARPGROUP]] if made.by_warpgroups else [threads]
    counts = [traffic.counted(launch, operands, places, l1, group) for group in groups]
    share = launch.blocks * math.ceil(size / 32) / len(groups)  # the warps of each
    done = [_done(made, count, share) for count in counts]
    instructions, tensor = (
        _mean([getattr(each, name) for each in done]) for name in ("instructions", "tensor")
    )
    asked = [*itertools.chain(*(each.traffic.items() for each in counts))]
    memory: dict[str, list[float]] = {}
    for (space, kind, _), count in asked:
        if kind == "product":  # of whose operands the code says more
            continue
        totals = memory.setdefault(space, [0.0] * 4)
        for i, value in enumerate((count.requests, count.taken, count.least, count.from_l2)):
            totals[i] += value
    if made.by_warpgroups:
        shared, of_products = memory["shared"], sum(each.operands for each in done) * share
        shared[1], shared[2] = shared[1] + of_products, shared[2] + of_products
    loaded = [
        len(group) * max(made.main(products).loaded, count.under_way)
        for group, count in zip(groups, counts, strict=True)
    ]
    read = {"a": launch.a, "b": launch.b, "bias": "bias"}
    return Work(
        kernel=launch.kernel.name,
        blocks=launch.blocks,
        threads=size,
        registers=made.registers,
        shared=made.shared,
        resident=made.resident,
        main=_main(made.main(products), products),
        instructions=instructions,
        tensor=tensor,
        waits=sum(each.waits for each in done) / len(groups),
        memory=memory,
        lines=sum(count.lines for _, count in asked),
        copied_lines=sum(count.lines for (_, kind, _), count in asked if kind == "copy"),
        operands={space: operands[operand].nbytes for space, operand in read.items() if operand in operands},
        written=operands[launch.out].nbytes,
        in_flight=made.resident * sum(loaded),
        roles=[each.instructions | {"waits": each.waits} for each in done] if made.by_warpgroups else [],
        tiles=traffic.tiles(launch),
    )


class _Done(NamedTuple):
    """What a warp does, on average: see Work; and wavefronts for operands of products of warpgroups."""

    instructions: dict[str, float]
    tensor: dict[str, float]
    waits: float
    operands: float


def _done(made: code.Code, counted: traffic.Counted, warps: float) -> _Done:
    """By so many warps of a launch, which count together as they do."""
    accesses: dict[code.Access, float] = {}
    for (space, kind, width), count in counted.traffic.items():
        key = ("shared" if space == "shared" else "global", kind, width)
        accesses[key] = accesses.get(key, 0.0) + count.requests / warps
        if kind == "copy":  # whose writes to shared memory no store makes
            stores = ("shared", "write", width)
            accesses[stores] = accesses.get(stores, 0.0) - count.requests / warps
    made = made.without(accesses, counted.never)
    instructions = dict.fromkeys((*code.UNITS, *code.NAMES, "all"), 0.0)
    tensor: dict[str, float] = {}
    waits, operands = 0.0, 0.0
    for loop, count in zip(made.loops, made.passes(accesses, counted.lines), strict=True):
        for each in loop.own:
            instructions["all"] += count
            for name in each.counts_as:
                instructions[name] += count
            kind, flop = each.product
            if flop:
                tensor[kind] = tensor.get(kind, 0.0) + count * flop
            operands += count * each.operands
        waits += count * any(kind[:2] == ("global", "read") for kind in loop.accesses)
    return _Done(instructions, tensor, waits, operands)


def _mean(found: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(itertools.chain(*found))
    return {name: sum(each.get(name, 0.0) for each in found) / len(found) for name in names}


def _main(loop: code.Loop, products: str) -> Main:
    loads: dict[str, int] = {}
    for each in loop.all:
        if each.access and each.access[0] == "global" and each.access[1] != "write":
            loads[str(each.access[2])] = loads.get(str(each.access[2]), 0) + 1
    return Main(
        instructions=sum(not each.idle for each in loop.all),
        multiplies=sum(each.starts(products) and not each.idle for each in loop.all),
        loads=loads,
        guarded=loop.guarded,
        branches=sum(each.target is not None for each in loop.all),
    )


def units(work: Work, gpu: Gpu) -> dict[str, float]:
    """The seconds that each unit needs alone for a launch."""
    warps = math.ceil(work.threads / 32)
    at_work = min(gpu.multiprocessors, work.blocks)
    most = math.ceil(work.blocks / gpu.multiprocessors)  # blocks of one multiprocessor
    clocks = {unit: 32 * work.instructions[unit] * warps * most / lanes for unit, lanes in gpu.lanes.items()}
    clocks |= {kind: flop * warps * most / gpu.tensor[kind] for kind, flop in work.tensor.items()}
    shared = work.memory.get("shared", [0.0] * 4)
    crowded = most * at_work / work.blocks  # how much more the busiest multiprocessor has than the others
    read = {space: 32 * totals[3] for space, totals in work.memory.items() if space not in ("shared", "out")}
    from_l2, written = sum(read.values()), 32 * work.memory.get("out", [0.0] * 4)[3]
    from_dram = dram_bytes(work, gpu, read)
    l2_share = min(from_dram / from_l2, 1.0) if from_l2 else 0.0
    hit = sum(totals[1] for space, totals in work.memory.items() if space in read)
    l1_share = 1 - from_l2 / 32 / hit if hit else 0.0
    latency = gpu.latency
    wait = l1_share * latency["l1"] + (1 - l1_share) * (
        l2_share * latency["dram"] + (1 - l2_share) * latency["l2"]
    )

    def chain(made: Mapping[str, float]) -> float:
        """The clocks of a warp."""
        soon = made["float"] + made["double"] + made["tensor"]  # these seldom wait for one another
        return (
            soon
            + latency["branch"] * made["branch"]
            + latency["barrier"] * made["barrier"]
            + latency["alu"] / 2 * (made["all"] - soon - made["branch"] - made["barrier"])
            + wait * made["waits"]
        )

    longest = max(map(chain, work.roles or [work.instructions | {"waits": work.waits}]))
    rounds = math.ceil(work.blocks / (gpu.multiprocessors * max(work.resident, 1)))
    of_shared = max(shared[1] + work.lines - work.copied_lines, work.lines) / at_work * crowded
    seconds = {
        "issue": gpu.seconds(work.instructions["all"] * warps * most / gpu.issue),
        "multipliers": gpu.seconds(max(clocks.values())),
        "shared memory": gpu.seconds(of_shared),
        "L2": gpu.seconds((from_l2 + written) / at_work / gpu.l2_read),
        "latency": gpu.seconds(longest * rounds),
    }
    busiest = math.ceil(work.tiles / work.blocks) * work.blocks / work.tiles  # block, times the average
    seconds = {unit: time * busiest for unit, time in seconds.items()}
    return seconds | {"DRAM": (from_dram + work.written) / gpu.dram}


def dram_bytes(work: Work, gpu: Gpu, read: Mapping[str, float]) -> float:
    """Bytes to be read from DRAM: each operand once, and what is read again where it does not fit the L2."""
    once = {space: min(work.operands.get(space, 0), size) for space, size in read.items()}
    at_once = min(gpu.multiprocessors * max(work.resident, 1) / work.tiles, 1.0)
    working = at_once * sum(once.values())  # which blocks share or divide among themselves
    missed = max(0.0, 1 - gpu.l2 / working) if working else 0.0
    return sum(once[space] + (size - once[space]) * missed for space, size in read.items())


@dataclass(frozen=True)
class Prediction:
    """Seconds of a plan, the unit that most of it waits for, and how many times its floor that is."""

    seconds: float
    limit: str
    of_floor: float


def predicted(works: list[Work], request: Request, arch: str) -> Prediction:
    """The time of a plan's launches one after the other."""
    gpu = GPUS[arch]
    each = [units(work, gpu) for work in works]
    longest = [max(unit, key=unit.__getitem__) for unit in each]
    times = [unit[name] for unit, name in zip(each, longest, strict=True)]
    seconds = sum(times) + gpu.launch * len(works)
    main = times.index(max(times)) if times else 0
    limit = "launch" if not times or gpu.launch > times[main] else longest[main]
    return Prediction(seconds, limit, seconds / floor(request, arch))


def floor(request: Request, arch: str) -> float:
    """The least seconds by any unit that is as exact as the dtype asks: products, or bytes moved once."""
    gpu, dtype = GPUS[arch], request.dtype
    kind = dtype if dtype in ("float16", "bfloat16") else DTYPES[dtype].accumulator
    real = REAL.get(kind, kind)
    if real == "float32" and request.precision is None:
        rate = max(gpu.tensor_peak["bfloat16"] / OF_PARTS, 2 * gpu.lanes["float"])
    elif real in ("int32", "int64"):
        rate = 2 * gpu.lanes["double" if real == "int64" else "float"]
    else:
        rate = gpu.tensor_peak[request.precision or real]
    products = request.problem.flops(request.op, dtype) / (rate * gpu.multiprocessors * gpu.clock)
    return max(products, request.bytes / gpu.dram)
