"""python -m tests.emulated_device -m MODULE [ARGUMENTS]: as python -m MODULE, the emulator in place of a GPU.

NumPy stands in for CuPy, as much of it as the clock, the benchmarks and the tests use; kernels are compiled
and run by the emulator. What would take it minutes is made small: the self-test, the ceilings, the rounds of
the clock.
"""

import contextlib
import importlib.machinery
import runpy
import sys
import time
import types
from functools import partial
from typing import ClassVar
from unittest import mock

import numpy as np
import scipy.fft

from . import emulator

NAME = "Emulated device"


class Event:
    """A point in time: nothing is queued here."""

    def record(self, stream):
        self.at = time.perf_counter()

    def synchronize(self):
        pass


class Stream:
    """All calls have ended when they return; a graph has nothing left to do."""

    ptr = 0
    entered: ClassVar[list] = []

    def __init__(self, non_blocking=False):
        pass

    def __enter__(self):
        self.entered.append(self)

    def __exit__(self, *_):
        self.entered.pop()

    def synchronize(self):
        pass

    def begin_capture(self):
        assert self.entered[-1:] == [self], "calls go to another stream than the one that is captured"

    def end_capture(self):
        return types.SimpleNamespace(launch=lambda stream: None)


class Pool:
    """A pool from which nothing is taken."""

    def malloc(self, size):
        raise AssertionError("the emulator takes no memory from here")

    def total_bytes(self):
        return 0

    def free_all_blocks(self):
        pass


class CuPy(types.ModuleType):
    """NumPy under CuPy's name, with a device."""

    __version__ = "0"

    def __init__(self):
        super().__init__("cupy")
        self.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
        properties = {"name": NAME.encode(), "l2CacheSize": 1}
        runtime = types.SimpleNamespace(
            is_hip=False,
            CUDARuntimeError=RuntimeError,
            getDevice=lambda: 0,
            getDeviceCount=lambda: 1,
            getDeviceProperties=lambda device: properties,
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 13000,
        )
        self.cuda = types.SimpleNamespace(
            runtime=runtime,
            Device=lambda device: types.SimpleNamespace(compute_capability="90"),
            Event=Event,
            Stream=Stream,
            MemoryPool=Pool,
            get_current_stream=Stream,
            get_elapsed_time=lambda start, end: 1e3 * (end.at - start.at),
            using_allocator=lambda allocator: contextlib.nullcontext(),
        )

    def __getattr__(self, name):
        return getattr(np, name)

    def asnumpy(self, array):
        return array

    def get_default_memory_pool(self):
        return Pool()

    def empty(self, shape, dtype):
        """Of what the clock writes to flush the L2 cache, a byte will do."""
        return np.empty(1 if shape == 1 << 29 else shape, dtype)


@contextlib.contextmanager
def installed():
    """Within it there is a GPU."""
    sys.modules["cupy"] = CuPy()
    from benchmarks import ceilings
    from cuconv.cli import check, clock
    from cuconv.cuda import jit, launch

    from . import device

    with (
        emulator.emulated(),
        mock.patch.object(jit, "function", lambda kernel, device, shared=0: emulator.build.instance(kernel)),
        mock.patch.object(launch, "_transforms", return_value=scipy.fft),
        mock.patch.object(device, "run", emulator.run),
        mock.patch.object(check, "PROBLEMS", ("n1c2h5w5 k2r3s3 p1",)),
        mock.patch.object(check, "COLUMNS", ("float32",)),
        mock.patch.multiple(clock.GpuClock, rounds=2, rounds_of_slow=2),
        mock.patch.multiple(ceilings, _COPIED={"cuda": 1 << 16}, _EXTENT={"cuda": 64}),
        mock.patch.object(ceilings, "host_seconds", partial(clock.host_seconds, calls=1, rounds=1)),
    ):
        yield


if __name__ == "__main__":
    _, option, module, *words = sys.argv
    assert option == "-m"
    sys.argv = [module, *words]
    with installed():
        runpy.run_module(module, run_name="__main__", alter_sys=True)
