"""The most memory that a run takes, as Python's own tracing counts it, NumPy's arrays among it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

from cuconv.cli.clock import uncollected

TRIES = 3


def peak_memory(run: Callable[[], object], allowed: float) -> int:
    """The most bytes that a run takes beyond what is there before it, in all threads.

    A thread that has nothing to do with the run can only add to it, as that of pytest-xdist does when one of
    its workers hands on tests. So a run that took more than `allowed` is measured again: what it takes of
    its own, it takes every time.
    """
    peak = _peak(run)
    for _ in range(TRIES - 1):
        if peak <= allowed:
            break
        peak = min(peak, _peak(run))
    return peak


def _peak(run: Callable[[], object]) -> int:
    with uncollected():  # a collection would empty the lists again
        _fill_free_lists()
        tracemalloc.start()
        try:
            run()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


def _fill_free_lists() -> None:
    """Let Python keep as many freed tuples as it ever does: else those that a run leaves count as taken."""
    for size in range(1, 20):
        every = [(None,) * size for _ in range(2000)]
        del every
