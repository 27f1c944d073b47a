"""The CPU as a device: how many threads share a call's blocks, and BLAS held to one thread meanwhile.

Blocks go to Python threads rather than to BLAS's own, since NumPy gives up its lock in copies, sums and
products alike: with BLAS's threads alone, all but the products would be left to one core. There are as many
threads as NumPy's BLAS would use, so what the environment or threadpoolctl says of BLAS holds here too.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Processor:
    """The CPU, as far as a plan has to know it."""

    threads: int


@functools.cache
def processor(arch: str) -> Processor:
    """The processor that `current_arch` described."""
    return Processor(int(arch.split()[0]))


def current_arch() -> str:
    """What stands for the CPU's architecture in plans: how many threads a call may use now."""
    count = _blas.threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def spread(work: Callable[..., None], parts: Iterable[tuple[Any, ...]], threads: int) -> None:
    """Call work(*part) for every part, shared among so many threads; which does which is left to chance.

    A single part is left to BLAS's own threads. The first exception ends the call, after the parts already
    begun.
    """
    rest = iter(parts)
    first = list(itertools.islice(rest, threads))
    left, lock, threads = itertools.chain(first, rest), threading.Lock(), len(first)
    if threads < 2:
        for part in left:
            work(*part)
        return

    def take() -> tuple[Any, ...] | None:
        with lock:
            return next(left, None)

    def drain() -> None:
        try:
            with np.errstate(all="ignore"):  # it does not go from one thread to another
                while (part := take()) is not None:
                    work(*part)
        except BaseException:
            with lock:
                list(left)  # nobody begins another part
            raise

    with _blas.held_to_one():
        helpers = [_pool().submit(drain) for _ in range(threads - 1)]
        try:
            drain()
        finally:
            # Those that never began, because others' calls keep the pool busy, are not waited for.
            begun = [helper for helper in helpers if not helper.cancel()]
            errors = [helper.exception() for helper in begun]
    for error in errors:
        if error is not None:
            raise error


class _Blas:
    """NumPy's BLAS and its number of threads, which belongs to the whole process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holders = 0
        self.before: list[int] = []

    @functools.cached_property
    def libraries(self) -> list[Any]:
        """The BLAS libraries; none without threadpoolctl, as from a source tree that was not installed."""
        try:
            from threadpoolctl import ThreadpoolController
        except ImportError:
            return []
        found: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
        return found

    def threads(self) -> int:
        """How many threads BLAS uses while nobody holds it; 1 where that cannot be known or set."""
        with self.lock:
            return max(self.before if self.holders else self._counts(), default=1)

    @contextmanager
    def held_to_one(self) -> Iterator[None]:
        """BLAS with one thread, until the last of those who hold it lets go."""
        with self.lock:
            if self.holders == 0:
                self.before = self._counts()
                self._set([1] * len(self.before))
            self.holders += 1
        try:
            yield
        finally:
            with self.lock:
                self.holders -= 1
                if self.holders == 0:
                    self._set(self.before)

    def _counts(self) -> list[int]:
        return [library.num_threads for library in self.libraries]

    def _set(self, counts: list[int]) -> None:
        """Set each library's threads, whichever thread does it.

        threadpoolctl itself lets one thread of a process set OpenBLAS's and leaves the others' wishes aside;
        here the first to hold and the last to let go are often not the same.
        """
        for library, count in zip(self.libraries, counts, strict=True):
            getattr(library, "_real_set_num_threads", library.set_num_threads)(count)


_blas = _Blas()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="cuconv")


def _after_fork() -> None:
    """A forked child has neither the pool's threads nor those that held BLAS."""
    global _blas
    if _blas.holders:
        _blas._set(_blas.before)
    _blas = _Blas()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
