"""The CPU as a device: how many threads share a call's blocks, and BLAS held to one thread meanwhile.

Blocks go to Python threads rather than to BLAS's own, since NumPy gives up its lock in copies, sums and
products alike: with BLAS's threads alone, all but the products would be left to one core. There are as many
threads as NumPy's BLAS would use, so what the environment or threadpoolctl says of BLAS holds here too.

A call may be broken off between any two instructions of the main thread, which is where Python runs signal
handlers: by Ctrl-C, or by a handler that calls these functions itself. Whatever has to be put right therefore
may be done twice, is done in an order that leaves no gap, and waits for nothing that the main thread holds.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

try:
    import threadpoolctl
except ImportError:  # as from a source tree that was not installed
    threadpoolctl = None

T = TypeVar("T")


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
    count = threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def threads() -> int:
    """How many threads BLAS uses while no call holds it; 1 where that cannot be known or set."""
    libraries = itertools.chain(_blas.libraries, _blas_of_thread.libraries)
    return max((library.threads() for library in libraries), default=1)


def spread(work: Callable[..., None], parts: Iterable[tuple[Any, ...]], threads: int) -> None:
    """Call work(*part) for every part, shared among so many threads; which does which is left to chance.

    The caller is one of them. The others live no longer than the call, and where the system gives fewer,
    those there are do it all. Whatever ends the call, be it an exception that a signal's handler raises in
    the caller, nobody begins another part, and it returns or raises after the parts that others have begun.
    """
    rest = iter(parts)
    first = list(itertools.islice(rest, threads))
    rest = itertools.chain(first, rest)
    if len(first) > 1:
        team = _Team(work, rest)
        ending_with(team.end, lambda: team.run(len(first)))
    else:
        for part in rest:
            work(*part)


@contextlib.contextmanager
def for_blocks() -> Iterator[None]:
    """What NumPy is told in every thread that works on blocks: no warnings, and a small buffer.

    A ufunc reads rows that are longer than its buffer where they are; shorter ones it first copies there,
    and takes three times as long. NumPy's own choice is a buffer of 8192 elements.
    """
    with np.errstate(all="ignore"):  # which also puts the buffer back
        np.setbufsize(512)
        yield


def with_blas_alone(work: Callable[[], T]) -> T:
    """What work() returns, called while BLAS has one thread, whatever other calls do meanwhile."""
    return _blas.alone(lambda: _blas_of_thread.alone(work))


def ending_with(after: Callable[[], None], work: Callable[[], T]) -> T:
    """What work() returns; whether it does or raises, after() has been called.

    Twice, since a signal may come on the way into the first after(), whose exception then is raised before
    anything was done there: after() must do no harm where nothing is left to do.
    """
    try:
        try:
            return work()
        finally:
            after()
    finally:
        after()


class _Team:
    """The caller and other threads that share the parts of one call.

    Another thread counts as at work before it takes a part, unless the team has ended: who comes late, even
    after the call, touches nothing. The threads are the system's own: what `threading` keeps of its threads
    can be left wrong, or locked, where an exception breaks off their start.
    """

    def __init__(self, work: Callable[..., None], parts: Iterator[tuple[Any, ...]]) -> None:
        self.work, self.parts = work, parts
        self.lock, self.done = threading.Lock(), threading.Lock()
        self.done.acquire()
        self.over = False
        self.at_work = 0
        self.error: BaseException | None = None

    def run(self, threads: int) -> None:
        """Have all parts done by at most so many threads, the caller among them."""
        _start(self._help, threads - 1)
        self._work()
        self._wait()
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # it refers to this frame, and so to the arrays

    def end(self) -> None:
        """Nobody begins another part; those begun are waited for, however often a signal interrupts that."""
        interrupt = None
        while True:
            try:
                with self.lock:
                    self.over = True
                self._wait()
                break
            except BaseException as error:
                interrupt = error
        try:
            if interrupt is not None:
                raise interrupt
        finally:
            del interrupt

    def _wait(self) -> None:
        while self.at_work:
            self.done.acquire(timeout=0.1)  # an exception may come between being woken and this one's return

    def _help(self) -> None:
        with self.lock:
            if self.over:
                return
            self.at_work += 1
        try:
            _blas_of_thread.hold(self)  # this thread ends with the call
            self._work()
        except BaseException as error:
            with self.lock:
                self.over, self.error = True, self.error or error
        with self.lock:
            self.at_work -= 1
            if not self.at_work:
                self.done.release()

    def _work(self) -> None:
        with for_blocks():  # it does not go from one thread to another
            while (part := self._take()) is not None:
                self.work(*part)

    def _take(self) -> tuple[Any, ...] | None:
        with self.lock:
            part = None if self.over else next(self.parts, None)
            self.over = part is None
            return part


def _start(work: Callable[[], None], threads: int) -> None:
    """Have work() called in at most so many new threads."""
    for _ in range(threads):
        try:
            _thread.start_new_thread(work, ())
        except Exception:  # a limit, memory, or the interpreter's end: those there are will do
            return


class _Library:
    """A BLAS library's number of threads, which belongs to the whole process, or in some to each thread."""

    def __init__(self, get: Callable[[], int], set: Callable[[int], None]) -> None:
        self.get, self.set = get, set
        self.found = 0  # what goes back in place of 1, if anything does
        self.held = False  # whether it was set to 1 since

    def threads(self) -> int:
        """How many there are while no call holds the library."""
        now = self.get()
        return now if now != 1 else self.found or 1

    def hold(self) -> None:
        now = self.get()
        if now != 1:
            self.held, self.found = False, now
            self.set(1)
            self.held = True

    def restore(self) -> None:
        """Put back what was found.

        Where there no longer is the 1 that was set, somebody else's limit began meanwhile. It stays, but will
        itself put back the 1 that it found, so what was found here is kept in mind until then.
        """
        found = self.found
        if found and not (self.held and self.get() != 1):
            self.held = False
            self.set(found)
            self.found = 0


class _Blas:
    """Who alone sets the number of BLAS's threads: to one while calls hold it, and back after the last.

    Between any two steps an exception may end the call, which then releases, or a signal's handler may hold
    and release in the same thread. So a holder is noted before anything else, which keeps others from putting
    back; what was found is noted before 1 is set, and forgotten after it was put back.
    """

    def __init__(self, *functions: tuple[Callable[[], int], Callable[[int], None]]) -> None:
        """Of libraries whose number of threads is read and set by such functions."""
        self.libraries = [_Library(*pair) for pair in functions]
        self.lock = threading.RLock()
        self.holders: set[object] = set()

    def alone(self, work: Callable[[], T]) -> T:
        """What work() returns, called while these libraries have one thread."""
        if not self.libraries:
            return work()
        holder = object()

        def held() -> T:
            self.hold(holder)
            return work()

        return ending_with(lambda: self.release(holder), held)

    def hold(self, holder: object) -> None:
        with self.lock:
            self.holders.add(holder)
            for library in self.libraries:
                library.hold()

    def release(self, holder: object) -> None:
        with self.lock:
            self.holders.discard(holder)
            if not self.holders:
                for library in self.libraries:
                    library.restore()

    def forget(self) -> None:
        """Let go for all, as in a forked child, which has none of the threads that hold."""
        self.holders.clear()
        self.release(None)


class _BlasOfThread(threading.local, _Blas):
    """The same of libraries in which each thread sets its own number: a state for every thread."""


def _libraries(of_thread: bool) -> Iterator[tuple[Callable[[], int], Callable[[int], None]]]:
    """How this process's BLAS libraries are read and set, NumPy's among them; none without threadpoolctl.

    threadpoolctl itself lets one thread of a process set OpenBLAS's and leaves the others' wishes aside; here
    the first to hold and the last to let go are often not the same.
    """
    if threadpoolctl is None:
        return
    for library in threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers:
        own = library.internal_api == "mkl" or getattr(library, "threading_layer", None) == "openmp"
        if own == of_thread:
            change = getattr(library, "_real_set_num_threads", library.set_num_threads)
            yield library.get_num_threads, change


_blas = _Blas(*_libraries(of_thread=False))
_blas_of_thread = _BlasOfThread(*_libraries(of_thread=True))


def _after_fork() -> None:
    _blas.lock.release()
    _blas.forget()
    _blas_of_thread.forget()


if hasattr(os, "register_at_fork"):
    # The lock is held so that no fork comes between two steps of another thread.
    os.register_at_fork(
        before=_blas.lock.acquire, after_in_parent=_blas.lock.release, after_in_child=_after_fork
    )
