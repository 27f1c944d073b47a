"""Clocks: how long calls take, contenders in turn, on the CPU or on the current GPU.

Whoever times enters the clock's stream first, once: `with clock.stream:`.

Contenders take turns, so that what disturbs the machine disturbs all alike, and in another order each round,
so that nobody always follows the one who leaves memory and caches the worst. On the CPU a turn begins with a
pause: threads of another library's pool go on spinning for tens of milliseconds after its call, on cores that
the next contender needs (OpenBLAS's for 2^26 cycles); then come untimed calls, since a core that was idle is
slow at first. On a GPU a time is taken by events on the stream, and
before each call a buffer larger than the L2 cache is written: that leaves the operands in memory only, and
keeps the GPU busy until the host has queued the call.
"""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays import Array
from ..cuda import jit

Call = Callable[[], Any]


@dataclass
class Times:
    """The seconds that each of some calls took, turn by turn."""

    turns: list[list[float]] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        return list(itertools.chain.from_iterable(self.turns))

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        return min(self.seconds)

    @property
    def medians(self) -> list[float]:
        """The median of each turn."""
        return [statistics.median(turn) for turn in self.turns]


class CpuClock:
    """Times calls on NumPy arrays: by the wall, waiting for nothing."""

    device, copies = "cpu", 1
    namespace: Any = np
    stream: Any = nullcontext()
    rounds, rounds_of_slow = 5, 3

    def settle(self, call: Call, slow: bool) -> None:
        """Begin a turn: wait until no other pool spins, then call until the cores are at speed."""
        time.sleep(0.05)
        end = time.perf_counter() + 0.03
        while not slow and time.perf_counter() < end:
            call()

    def once(self, call: Call) -> float:
        """The seconds that one call takes; its result is freed after the clock has stopped."""
        start = time.perf_counter()
        result = call()
        end = time.perf_counter()
        del result
        return end - start

    def wait(self) -> None:
        """Wait for what was launched: nothing."""

    def release(self) -> None:
        """Give back memory that a pool holds: there is none."""

    def to_host(self, array: Array) -> np.ndarray:
        """The array as NumPy's."""
        return np.asarray(array)

    def replayed(self, call: Call) -> float | None:
        """The seconds of a call that is replayed from a CUDA graph: none here."""
        return None


class GpuClock:
    """Times calls on CuPy arrays on a stream of its own, which is the current one where it has been entered.

    `stream.use()` would not do: where CuPy copies to the host and reorders, it enters the current stream and
    on leaving goes back to the one that was entered before, which is then the default stream. A library with
    streams of its own has to be told to use this one: `stream.ptr` is its address.
    """

    device, copies = "cuda", 3
    rounds = rounds_of_slow = 20

    def __init__(self, cupy: Any) -> None:
        self.namespace: Any = cupy
        # The default stream cannot be captured.
        self.stream = cupy.cuda.Stream(non_blocking=True)
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
        self._flushed = cupy.empty(max(2 * properties["l2CacheSize"], 1 << 29), np.uint8)

    def settle(self, call: Call, slow: bool) -> None:
        """Begin a turn: nothing spins on a GPU."""

    def once(self, call: Call) -> float:
        """The seconds between two events around the call, with nothing of its operands in the L2 cache."""
        start, end = self.namespace.cuda.Event(), self.namespace.cuda.Event()
        self._flushed.fill(0)
        start.record(self.stream)
        result = call()
        end.record(self.stream)
        end.synchronize()
        del result
        return float(self.namespace.cuda.get_elapsed_time(start, end)) / 1e3

    def wait(self) -> None:
        """Wait for what was launched."""
        self.stream.synchronize()

    def release(self) -> None:
        """Give free blocks of CuPy's pool back to the device, for other libraries to have."""
        self.wait()
        self.namespace.get_default_memory_pool().free_all_blocks()

    def to_host(self, array: Array) -> np.ndarray:
        """The array as NumPy's."""
        host: np.ndarray = self.namespace.asnumpy(array)
        return host

    def replayed(self, call: Call) -> float | None:
        """The median seconds of the call replayed from a CUDA graph; it has run on this stream before."""
        self.stream.begin_capture()
        try:
            result = call()  # kept until the last replay, since each writes there
        finally:
            graph = self.stream.end_capture()
        seconds = [self.once(lambda: graph.launch(stream=self.stream)) for _ in range(self.rounds)]
        del result
        return statistics.median(seconds)


Clock = CpuClock | GpuClock


def clock_here() -> Clock:
    """That of the GPU where there is one that CuPy can use, otherwise of the CPU."""
    cupy = jit.usable_cupy()
    return GpuClock(cupy) if cupy else CpuClock()


def interleaved(clock: Clock, calls: Mapping[str, Call], budget: float) -> dict[str, Times]:
    """Time each call after a warm-up, turn by turn, for about `budget` seconds in all.

    There are `clock.rounds` turns each, or three on the CPU where one call takes over a second; a turn is one
    timed call, or as many as fit in its share of the time.
    """
    times: dict[str, Times] = {name: Times() for name in calls}
    slow = max((clock.once(call) for call in calls.values()), default=0.0) > 1
    rounds = clock.rounds_of_slow if slow else clock.rounds
    share = budget / max(rounds * len(calls), 1)
    order, chance = list(calls.items()), random.Random(0)
    gc.collect()
    with uncollected():
        for _ in range(rounds):
            chance.shuffle(order)
            for name, call in order:
                clock.settle(call, slow)
                end = time.perf_counter() + share
                turn = [clock.once(call)]
                while time.perf_counter() < end:
                    turn.append(clock.once(call))
                times[name].turns.append(turn)
    return times


def host_seconds(
    clock: Clock,
    call: Call,
    calls: int = 200,
    rounds: int = 9,
    of: Callable[[list[float]], float] = statistics.median,
) -> float:
    """The seconds the host spends per call, not waiting for a GPU to end it: their median over the rounds."""
    call()
    found = []
    gc.collect()
    with uncollected():
        for _ in range(rounds):
            clock.wait()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            found.append((time.perf_counter() - start) / calls)
            clock.wait()
    return of(found)


def in_turn(calls: list[Call]) -> Call:
    """One call that makes the given ones in rotation, so that operands are not the last call's."""
    following = itertools.cycle(calls)
    return calls[0] if len(calls) == 1 else lambda: next(following)()


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collections, which would fall into what is measured."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
