"""When the machine misbehaves: memory that runs short, forks, Ctrl-C, many threads, shapes beyond all bounds.

Calls on a GPU run over a stand-in for CuPy with a pool and streams, which has the emulator run each launch on
the addresses that it is given: results are looked at, and not only what was asked for.
"""

import contextlib
import errno
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
import types
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import scipy.fft

import cuconv
from benchmarks import stand_in
from cuconv import kept as kept_module
from cuconv import prepared, tuning
from cuconv.cuda import fft, jit, launch, schedule
from cuconv.cuda.kernel import PARAMS
from cuconv.fourier import Library
from cuconv.plan import _winners, forget

from .device_arrays import Foreign
from .emulator import runner
from .test_jit import DOUBLE, KERNEL, cupy, kept  # noqa: F401
from .test_processor import in_a_child
from .test_tuning import in_threads

ROOT = Path(__file__).parents[1]


# -- a GPU with little memory ---------------------------------------------------------------------------


class OutOfMemoryError(MemoryError):
    """CuPy's, which takes no text."""

    def __init__(self, size, total):
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


class Block(stand_in.Memory):
    """Memory of a stream's, which can have it again as soon as nobody holds it."""

    def __init__(self, pool, stream, size):
        memory = np.full(size + 512, 0xFF, np.uint8)
        self.memory = memory[-memory.ctypes.data % 512 :][:size]
        self.pool, self.stream, self.device_id, self.ptr = pool, stream, 0, self.memory.ctypes.data

    def __del__(self):
        self.memory[...] = 0xFF
        self.pool.release(self)


class Pool:
    """CuPy's pool: what is free is kept for its stream until memory runs short."""

    def __init__(self, machine, size):
        self.machine, self.size, self.lock = machine, size, threading.RLock()
        self.used, self.free = 0, []

    def malloc(self, size):
        self.machine.step("alloc")
        size, stream = -(-size // 512) * 512, self.machine.get_current_stream()
        with self.lock:
            for index, (owner, extent) in enumerate(self.free):
                if owner is stream and extent == size:
                    del self.free[index]
                    break
            else:
                if self.used + self.free_bytes() + size > self.size:
                    self.free.clear()
                if self.used + size > self.size:
                    raise OutOfMemoryError(size, self.used)
            self.used += size
        return Block(self, stream, size)

    def release(self, block):
        with self.lock:
            self.used -= block.memory.size
            self.free.append((block.stream, block.memory.size))

    def free_bytes(self):
        return sum(extent for _, extent in self.free)


class Array(stand_in.Array):
    """An array in the pool's memory, some elements behind where it begins."""

    __module__ = "cupy"

    def __init__(self, machine, shape, dtype=np.float32, strides=None, behind=0):
        super().__init__(shape, dtype, strides)
        self.machine, behind = machine, behind * self.itemsize
        self.block = machine.pool.malloc(self.size * self.itemsize + behind)
        self.data = types.SimpleNamespace(ptr=self.block.ptr + behind, device_id=0)
        self.on_host = np.ndarray(self.shape, self.dtype, self.block.memory, behind, self.strides)

    def __setitem__(self, index, value):
        self.on_host[index] = value

    def copy(self, order):
        self.machine.step("copy")
        copy = Array(self.machine, self.shape, self.dtype)
        copy[...] = self.on_host
        return copy


class Machine(stand_in.StandIn):
    """CuPy with a pool of so many bytes, and in each thread a stream of its own; launches are run.

    `steps` has what was done. The exception `error`, if there is one, is raised in place of a step of the
    kind that `breaks` says, after some others of this kind.
    """

    def __init__(self, size=1 << 26):
        super().__init__()
        self.streams, self.steps, self.error, self.breaks, self.after = threading.local(), [], None, "", 0
        self.pool, self.on_streams, self.runs = Pool(self, size), [], True
        self.get_default_memory_pool = lambda: self.pool
        self.cuda.get_current_stream = self.get_current_stream
        self.cuda.memory = types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
        runtime = vars(self.cuda.runtime)
        runtime |= dict(is_hip=False, getDeviceCount=lambda: 1, CUDARuntimeError=CUDARuntimeError)
        runtime |= dict(memGetInfo=lambda: (self.pool.size - self.pool.used, self.pool.size))

    def step(self, kind):
        self.steps.append(kind)
        if self.error is not None and kind in self.breaks:
            if not self.after:
                raise self.error
            self.after -= 1

    @contextlib.contextmanager
    def broken(self, kinds, after=0, error=None):
        """Within it a step of one of these kinds fails, after so many that do not."""
        self.steps.clear()
        self.breaks, self.after = kinds.split(), after
        self.error = OutOfMemoryError(1 << 40, self.pool.used) if error is None else error
        try:
            yield
        finally:
            self.error = None

    def get_current_stream(self):
        if not hasattr(self.streams, "current"):
            self.streams.current = types.SimpleNamespace(
                synchronize=lambda: None, is_capturing=lambda: self.capturing
            )
        return self.streams.current

    def _array(self, shape, dtype):
        return Array(self, shape, dtype)

    def _alloc(self, size):
        return self.pool.malloc(size)

    def function(self, kernel, device, shared_bytes=0):
        self.step("compile")

        def launch(grid, block, arguments, shared_mem=0):
            self.step("launch")
            *pointers, params = map(stand_in._bytes, arguments)
            pointers = [int.from_bytes(pointer, "little") or None for pointer in pointers]
            self.on_streams.append((self.get_current_stream(), pointers))
            what = types.SimpleNamespace(
                kernel=kernel, blocks=grid[0], shared_bytes=shared_mem,
                params=lambda strides: np.frombuffer(params, PARAMS),
            )  # fmt: skip
            if self.runs:
                report = runner._blocks(what, pointers, {}, runner.Pass(), range(grid[0]))
                assert report is None, runner._explain(report, [])

        return launch

    def array(self, shape, dtype=np.float32, seed=0, **options):
        """An array of small integers."""
        array = Array(self, shape, dtype, **options)
        array[...] = np.random.default_rng(seed).integers(-4, 5, array.shape)
        return array


class CUDARuntimeError(RuntimeError):
    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


@contextlib.contextmanager
def installed(machine):
    """Within it CuPy is that machine's, and found as CuPy is: by importing it."""
    forget()
    jit.require_cupy.cache_clear()
    try:
        with (
            mock.patch.dict(sys.modules, cupy=machine),
            mock.patch.multiple(jit, current_arch=machine.current_arch, function=machine.function),
            mock.patch.object(launch, "_ready", {}),
        ):
            yield machine
    finally:
        forget()
        jit.require_cupy.cache_clear()


@pytest.fixture
def compiler(cupy):  # noqa: F811
    """The CuPy of the tests of compiling, whose compiler is NVRTC."""
    return cupy


@pytest.fixture
def gpu():
    with installed(Machine()) as machine:
        yield machine


X, W = (2, 6, 9, 8), (6, 6, 3, 3)
REFLECTED = dict(padding=1, padding_mode="reflect", algorithm="simt")
"""What takes a workspace: a padded copy of x, or a padded gradient."""


class Example:
    """A call and its arrays; `outs` are given for results, and hold something before."""

    def __init__(self, machine, function, options, given, outs=0, results=(X, W, X[1:2])):
        self.function, self.options = function, options
        self.given = [machine.array(shape, seed=seed) for seed, shape in enumerate(given)]
        self.outs = [machine.array(shape, seed=9) for shape in results[:outs]]
        self.before = [out.on_host.copy() for out in self.outs]

    def call(self, given=None, outs=None):
        """On these arrays, by default those on the GPU."""
        given, outs = given or self.given, self.outs if outs is None else outs
        options = self.options
        if outs:
            several = self.function is cuconv.conv_backward
            options = options | dict(out=(*outs, *[None] * (3 - len(outs))) if several else outs[0])
        return self.function(*given, **options)

    def refill(self):
        for out, before in zip(self.outs, self.before, strict=True):
            out[...] = before

    def assert_untouched(self):
        for out, before in zip(self.outs, self.before, strict=True):
            np.testing.assert_array_equal(out.on_host, before)

    def assert_right(self):
        """What the call gives is what NumPy arrays give."""
        self.refill()
        on_host = [array.on_host.copy() for array in self.given]
        options = {name: value for name, value in self.options.items() if name != "algorithm"}
        expected = Example.call(
            types.SimpleNamespace(function=self.function, options=options, outs=[], given=None),
            on_host,
            [before.copy() for before in self.before],
        )
        results = self.call()
        if not isinstance(results, tuple):
            results, expected = (results,), (expected,)
        for result, right in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result.on_host, right)


def examples(machine):
    add = REFLECTED | dict(accumulate=True)
    conv, backward = cuconv.conv, cuconv.conv_backward
    return {
        "conv": Example(machine, conv, REFLECTED, (X, W)),
        "conv into out": Example(machine, conv, REFLECTED, (X, W), 1),
        "conv added to out": Example(machine, conv, add, (X, W), 1),
        "backward": Example(machine, backward, REFLECTED, (X, X, W)),
        "backward into some": Example(machine, backward, REFLECTED, (X, X, W), 1),
        "backward added": Example(machine, backward, add, (X, X, W), 3),
    }


NAMES = list(examples(Machine()))


def forget_all():
    """Have the next call made the long way, with nothing ready for its launches."""
    forget()
    launch._ready.clear()


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_without_memory_nothing_is_launched_or_written(gpu, name, known):
    """Whichever of its pieces a call cannot have, the first time or when it is made again."""
    example = examples(gpu)[name]
    failures = 0
    while True:
        if known:
            example.call()
        else:
            forget_all()
        example.refill()
        with gpu.broken("alloc", failures):
            try:
                example.call()
                break
            except OutOfMemoryError:
                failures += 1
        assert "launch" not in gpu.steps
        assert ("compile" in gpu.steps) <= (not known)
        example.assert_untouched()
        example.assert_right()
    assert failures == {"conv": 2, "backward": 4, "backward into some": 3}.get(name, 1)


def test_one_workspace_does_for_all_gradients(gpu):
    """The largest one, beside all results."""
    example = examples(gpu)["backward"]
    example.call()
    requested, malloc = [], gpu.pool.malloc
    gpu.pool.malloc = lambda size: requested.append(size) or malloc(size)
    example.call()
    workspaces = [workspace_of(op) for op in ("dgrad", "wgrad", "bgrad")]
    assert requested == [*(4 * np.prod(shape) for shape in (X, W, X[1:2])), max(workspaces)]
    assert sum(size > 0 for size in workspaces) >= 2


def test_copies_are_had_before_the_first_launch_too(gpu):
    """Of inputs that cannot be read in vectors; one of dy does for both gradients."""
    gpu.runs = False  # mma's kernels take long to be compiled for the emulator
    options = dict(layout="channels_last", algorithm="mma", padding=1)
    x, dy, w = (
        gpu.array(shape, np.float16, behind=behind)
        for shape, behind in (((2, 9, 8, 16), 1), ((2, 9, 8, 24), 3), ((24, 3, 3, 16), 0))
    )
    out = [gpu.array(shape, np.float16) for shape in (x.shape, w.shape, (24,))]
    call = partial(cuconv.conv_backward, dy, x, w, **options, out=out, accumulate=True)
    for _ in range(2):
        gpu.steps.clear()
        call()
        assert gpu.steps.count("copy") == 2
        asked = gpu.steps.index("launch")
        assert set(gpu.steps[asked:]) == {"launch"}
        for after in range(gpu.steps.count("alloc")):
            with gpu.broken("alloc", after), pytest.raises(OutOfMemoryError):
                call()
            assert "launch" not in gpu.steps


def test_what_is_said_where_memory_runs_short(gpu, monkeypatch):
    """What was needed, what there is, and what helps; the error is CuPy's own."""
    monkeypatch.setattr(schedule, "PART", 1)  # as if sums were long, whose parts take a workspace
    x, dy, workspace = gpu.array(X), gpu.array(X), workspace_of("wgrad", padding_mode="zeros")
    call = partial(cuconv.conv_weight_grad, x, dy, W, padding=1, algorithm="simt")
    gpu.pool.free_bytes = lambda: 4096
    text = (
        f"Out of memory allocating 1,099,511,627,776 bytes (allocated so far: {gpu.pool.used:,} bytes). The "
        f"call takes {4 * np.prod(W):,} bytes for results and {workspace:,} bytes of workspace, "
        "beside copies of inputs that no kernel reads as they lie; the GPU has "
        f"{gpu.pool.size - gpu.pool.used - 1536:,} bytes free, and CuPy's pool holds 4,096 bytes unused. "
        "What helps: a smaller batch, or algorithm='depthwise', which takes no workspace, or "
        "cupy.get_default_memory_pool().free_all_blocks()"
    )
    for _ in range(2):
        with gpu.broken("alloc", 1), pytest.raises(OutOfMemoryError) as raised:
            call()
        assert str(raised.value) == text
        del raised
        call()


def workspace_of(op, **options):
    options = dict(algorithm="auto" if op == "bgrad" else "simt", padding_mode="reflect") | options
    return cuconv.plan(op, X, W, padding=1, backend="cuda", **options).workspace_bytes


@pytest.mark.parametrize(
    ("options", "ways"),
    [
        (dict(algorithm="simt"), "a smaller batch, or algorithm='depthwise', which takes no workspace"),
        (dict(algorithm="direct"), "a smaller batch"),
        (dict(padding_mode="reflect"), "a smaller batch"),
    ],
)
def test_no_way_out_is_named_that_is_none(gpu, monkeypatch, options, ways):
    """Nor an algorithm where all take a workspace, nor the pool's memory where all of it is in use."""
    monkeypatch.setattr(schedule, "PART", 1)
    gpu.pool.free_bytes = lambda: 0
    dy, x, w = gpu.array(X), gpu.array(X), gpu.array(W)
    for _ in range(2):
        with gpu.broken("alloc"), pytest.raises(OutOfMemoryError, match=f"What helps: {ways}$"):
            cuconv.conv_backward(dy, x, w, padding=1, **options)


def test_what_helps_one_gradient_must_help_all(gpu, monkeypatch):
    """The one that needs no workspace now may need one by the algorithm that is named for the other."""
    shapes = (1, 8, 8, 8, 8), (8, 8, 5, 5, 7)
    plans = [cuconv.plan(op, *shapes, "int32", padding=1, backend="cuda") for op in ("dgrad", "wgrad")]
    assert [plan.workspace_bytes > 0 for plan in plans].count(True) == 1
    dy, x, w = gpu.array((1, 8, 6, 6, 4), np.int32), *(gpu.array(shape, np.int32) for shape in shapes)
    with gpu.broken("alloc"), pytest.raises(OutOfMemoryError) as raised:
        cuconv.conv_backward(dy, x, w, padding=1)
    for name in re.findall("algorithm='(.*?)'", str(raised.value)):
        for op in ("dgrad", "wgrad"):
            plan = cuconv.plan(op, *shapes, "int32", padding=1, backend="cuda", algorithm=name)
            assert plan.workspace_bytes == 0


def test_an_error_that_cannot_be_explained_stays_what_it_is(gpu, monkeypatch):
    def lost():
        raise RuntimeError("the GPU is lost")

    x, w = gpu.array(X), gpu.array(W)
    monkeypatch.setitem(vars(gpu.cuda.runtime), "memGetInfo", lost)
    with gpu.broken("alloc"), pytest.raises(OutOfMemoryError, match=r"^Out of memory .* bytes\)\.$"):
        cuconv.conv(x, w, padding=1)


def test_tuning_without_memory(gpu):
    """Nothing is written, and nothing wins."""
    x, w, out = gpu.array(X), gpu.array(W), gpu.array(X, seed=9)
    before = out.on_host.copy()
    call = partial(cuconv.conv, x, w, padding=1, padding_mode="reflect", algorithm="tune", out=out)
    for after in range(2):
        with gpu.broken("alloc", after), pytest.raises(OutOfMemoryError, match="What helps: a smaller batch"):
            call()
        np.testing.assert_array_equal(out.on_host, before)
        assert not _winners
    assert call() is out
    assert len(_winners) == 1


def test_cupys_own_error_takes_another_text():
    """What the stand-in's does; needs no GPU."""
    real = pytest.importorskip("cupy", exc_type=ImportError)
    error = real.cuda.memory.OutOfMemoryError(512, 0)
    assert isinstance(error, MemoryError)
    assert str(error).startswith("Out of memory allocating 512 bytes (allocated so far: 0 bytes)")
    error.args = ("another text",)
    assert str(error) == "another text"
    assert callable(real.get_default_memory_pool().free_bytes)


class Steps:
    """Functions for which memory is left so many times."""

    def __init__(self, left):
        self.left = left

    def __call__(self, function):
        def call(*arguments, **options):
            if not self.left:
                raise MemoryError
            self.left -= 1
            return function(*arguments, **options)

        return call


def test_transforms_without_memory():
    """They take theirs as they go, but whatever a block of the result needs, before it is stored."""
    x, w = (np.random.default_rng(0).standard_normal(shape) for shape in (X, W))
    made = cuconv.plan("fprop", X, W, "float64", algorithm="fft", padding=1, backend="cuda")
    failures = 0
    while True:
        out, steps = np.full(X, 7.0), Steps(failures)
        library = Library(
            types.SimpleNamespace(zeros=steps(np.zeros), multiply=np.multiply, conjugate=np.conjugate),
            types.SimpleNamespace(rfftn=steps(scipy.fft.rfftn), irfftn=steps(scipy.fft.irfftn)),
        )
        try:
            fft.run(library, made.request, made.launches[0], dict(x=x, w=w, y=out))
            break
        except MemoryError:
            failures += 1
            assert (out == 7).all()
    assert failures >= 3
    np.testing.assert_allclose(out, cuconv.conv(x, w, padding=1), atol=1e-10)


SHORT = """
import resource
import numpy as np
import cuconv

filters = 1 << 22
dy, x = np.ones((1, filters, 5)), np.ones((1, 1, 5))
w = np.ones((filters, 1, 1))
call = lambda out: cuconv.conv_backward(dy, x, w, needs=(True, True, False), out=(out, None, None))
for known in (False, True):
    if known:
        held = [call(np.empty((1, 1, 5))), *(np.empty(filters) for _ in range(4))]  # what was freed too
    out = np.full((1, 1, 5), 7.0)
    (used,) = (int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20), resource.RLIM_INFINITY))
    try:
        call(out)
    except MemoryError as error:
        print("shape (4194304, 1, 1)" in str(error), (out == 7).all())
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
call(out)
print((out == filters).all())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does it")
def test_on_a_cpu_all_results_are_there_before_one_is_written():
    said = run(SHORT).split()
    assert said == ["True"] * 5


def run(program, **environment):
    """What a program prints, run by another process."""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ, **environment), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- forks ----------------------------------------------------------------------------------------------

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
no_warning = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
LOST = r"^CUDA does not survive a fork.* multiprocessing\.get_context\('spawn'\)"


@forks
@no_warning
def test_a_child_does_not_launch_what_its_parent_made_ready(gpu):
    """No call on a GPU gets far in it, of whatever array; NumPy's go on. The parent is as it was."""
    example = examples(gpu)["conv"]
    x, w = example.given
    on_host = x.on_host.copy(), w.on_host.copy()
    expected = cuconv.conv(*on_host, padding=1)
    planned = cuconv.plan("fprop", X, W, backend="cuda")
    calls = [
        example.call,
        partial(cuconv.conv_backward, x, x, w, padding=1),
        partial(cuconv.conv, x, w, padding=1, algorithm="tune"),
        partial(cuconv.conv, x, w, padding=2, algorithm="direct"),
        partial(planned, x, w),
    ]
    for call in calls[:-2]:
        call()
    steps = list(gpu.steps)

    class Tensor(Foreign, Array):
        __module__ = "other"

    tensors = [Tensor(gpu, shape) for shape in (X, W)]
    steps = list(gpu.steps)

    def child():
        other = types.SimpleNamespace(from_dlpack=None)
        with mock.patch.dict(sys.modules, other=other):
            for call in (*calls, partial(cuconv.conv, *tensors)):
                for _ in range(2):
                    with pytest.raises(RuntimeError, match=LOST):
                        call()
        assert jit.usable_cupy() is None
        np.testing.assert_array_equal(cuconv.conv(*on_host, padding=1), expected)
        assert cuconv.plan("fprop", X, W, backend="cuda", device="sm_90").workspace_bytes >= 0
        assert gpu.steps == steps

    def child_and_its_own():
        child()
        in_a_child(child)

    in_a_child(child_and_its_own)
    example.assert_right()


@forks
@no_warning
def test_a_child_may_be_the_first_to_use_the_gpu(gpu):
    """Calls on NumPy arrays do not look for a GPU."""
    on_host = np.ones(X, np.float32), np.ones(W, np.float32)
    for algorithm in ("auto", "tune"):
        cuconv.conv(*on_host, padding=1, algorithm=algorithm)
        cuconv.conv_backward(np.ones(X, np.float32), *on_host, padding=1)
    cuconv.plan("fprop", X, W)
    assert jit.require_cupy.cache_info().currsize == 0
    in_a_child(lambda: examples(gpu)["conv"].assert_right())
    examples(gpu)["backward"].assert_right()


@forks
@no_warning
@pytest.mark.parametrize(("status", "said"), [(3, LOST), (100, "CuPy finds no GPU")])
def test_a_parent_that_used_cupy_without_us(gpu, status, said):
    """CUDA says in the child that it cannot be initialized, and not that there is no GPU."""

    def count():
        raise CUDARuntimeError(status, "cudaErrorSomething: some text")

    def child():
        gpu.cuda.runtime.getDeviceCount = count
        with pytest.raises(RuntimeError, match=said):
            cuconv.conv(*given)

    given = gpu.array(X), gpu.array(W)
    in_a_child(child)
    gpu.cuda.runtime.getDeviceCount = count
    with pytest.raises(RuntimeError, match="CuPy finds no GPU"):
        cuconv.conv(*given)


# -- processes and threads at once ----------------------------------------------------------------------

COMPILES = """
import hashlib, sys
from pathlib import Path
from tests import test_jit
from cuconv.cuda import jit

sys.modules["cupy"] = test_jit.CuPy()
jit.SOURCES = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(hashlib.sha256(jit.function(test_jit.KERNEL, 0).code).hexdigest())
"""


@pytest.mark.parametrize("count", [2, 4])
def test_processes_that_compile_the_same_at_once(compiler, tmp_path, count):
    """Into a folder that is yet to be made: all have the code, and one sound file is left."""
    command = [sys.executable, "-W", "error", "-c", COMPILES, str(jit.SOURCES)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(count)]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120) for process in processes]
    digests, errors = zip(*said, strict=True)
    assert errors == ("",) * count
    code = jit.function(KERNEL, 0).code
    assert compiler.compiled == []
    assert set(digests) == {hashlib.sha256(code).hexdigest() + "\n"}
    assert len(kept(tmp_path)) == 1


def test_threads_that_compile_the_same_at_once(compiler):
    """One does, and the others wait for it and not for another kernel's."""
    found, build = [None] * 8, compiler.cuda.nvrtc.compileProgram
    together = threading.Barrier(2, timeout=60)

    def compile_program(program, options):
        if program.source:
            together.wait()  # both kernels are being compiled
        build(program, options)

    def work(number):
        found[number] = jit.function((KERNEL, DOUBLE)[number % 2], 0)

    compiler.cuda.nvrtc.compileProgram = compile_program
    jit._build(compiler.cuda.nvrtc, 12)
    in_threads(8, work)
    assert len(compiler.compiled) == len(set(map(id, found))) == 2


@pytest.mark.parametrize("most", [4096, 2])
def test_threads_with_streams_of_their_own(gpu, monkeypatch, most):
    """Launches go to the caller's own, workspaces are not shared, also while what is kept is forgotten."""
    monkeypatch.setattr(prepared, "_MOST", most)
    monkeypatch.setattr(launch, "_MOST", most)
    made, streams = [], {}

    def work(number):
        stream = gpu.get_current_stream()
        for _ in range(3):
            for example in list(examples(gpu).values())[number % 3 :]:
                made.append(example)  # whose memory no other is given
                streams.update((array.data.ptr, stream) for array in example.given)
                example.assert_right()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        in_threads(8, work)
    finally:
        sys.setswitchinterval(before)
    assert len(prepared._kept) <= most
    pairs = ((stream, streams.get(place)) for stream, places in gpu.on_streams for place in places)
    read = [(stream, caller) for stream, caller in pairs if caller is not None]
    assert all(stream is caller for stream, caller in read)
    assert len({id(stream) for stream, _ in read}) == 8


# -- Ctrl-C ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_an_interrupt_in_any_step(gpu, name, known):
    """The next call is right, and nothing that is half done is kept."""
    example, interrupts = examples(gpu)[name], 0
    while True:
        if known:
            example.call()
        else:
            forget_all()
        with gpu.broken("alloc copy compile launch", interrupts, KeyboardInterrupt()):
            try:
                example.call()
                break
            except KeyboardInterrupt:
                interrupts += 1
        assert sum(each.owner.on_gpu for each in prepared._kept.values()) == known
        example.assert_right()
    assert interrupts == len(gpu.steps) > 2


def test_an_interrupt_while_a_kernel_is_compiled(compiler, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(compiler.cuda.nvrtc, "compileProgram", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            jit.function(KERNEL, 0)
    assert (jit._functions, kept(tmp_path)) == ({}, [])
    with monkeypatch.context() as patch:
        patch.setattr(compiler.cuda, "Module", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            jit.function(KERNEL, 0)
    assert jit._functions == {}
    in_threads(2, lambda number: jit.function(KERNEL, 0))


def test_an_interrupt_while_candidates_are_timed(gpu, tmp_path, monkeypatch):
    """There is no winner, in memory or in a file, and others may tune."""
    x, w = gpu.array((2, 6, 9)), gpu.array((6, 1, 3))
    call = partial(cuconv.conv, x, w, groups=6, algorithm="tune")
    gpu.steps.clear()
    call()
    timed = gpu.steps[: -gpu.steps[::-1].index("alloc") - 1]  # what follows is the call by the winner
    assert timed.count("launch") == 6
    monkeypatch.setenv("CUCONV_CACHE_DIR", str(tmp_path / "tuned"))
    for after in range(len(timed)):
        forget_all()
        with gpu.broken("alloc compile launch", after, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
            call()
        assert (_winners, prepared._kept, tuning.count()) == ({}, {}, 0)
    in_threads(2, lambda number: call())
    assert (len(_winners), tuning.count()) == (1, 1)


# -- shapes beyond all bounds -----------------------------------------------------------------------------

BIG = 1 << 61


def one(*shape, dtype="float64"):
    """An array of as many elements as you like, all of them the same."""
    return np.broadcast_to(np.ones((), dtype), shape)


def none(*shape):
    """An array without elements."""
    return np.empty(shape)


SMALL = one(1, 1, 5), one(1, 1, 3)
TOO_LARGE = {
    "padding": (lambda: cuconv.conv(*SMALL, padding=1 << 45), MemoryError),
    "more padding": (lambda: cuconv.conv(*SMALL, padding=BIG), "padding must leave axis w below 2.62 cells"),
    "all is cropped": (lambda: cuconv.conv(*SMALL, padding=-3), "axis w gives no output: .* is -1 long"),
    "all is cropped by far": (lambda: cuconv.conv(*SMALL, padding=-BIG), "axis w gives no output"),
    "dilation": (lambda: cuconv.conv(*SMALL, dilation=BIG), "spreads a filter of .* over 2.62 cells or more"),
    "filters": (lambda: cuconv.conv(SMALL[0], one(1 << 45, 1, 3)), MemoryError),
    "groups": (lambda: cuconv.conv(one(1, 1 << 45, 5), one(1 << 45, 1, 3), groups=1 << 45), MemoryError),
    "a product": (
        lambda: cuconv.conv(none(1 << 31, 0, 1), none(1 << 31, 0, 1)),
        r"y of shape \(2147483648, 2147483648, 1\) must have less than 2.62 elements",
    ),
    "bytes of y": (lambda: cuconv.conv(none(1 << 55, 0, 5), none(64, 0, 3)), ValueError),
    "images without channels": (lambda: cuconv.conv(none(1 << 55, 0, 5), none(3, 0, 3)), MemoryError),
    "wider integers": (
        lambda: cuconv.conv(one(1 << 45, 1, 5, dtype="u1"), one(1, 1, 3, dtype="i1"), out_dtype="int64"),
        MemoryError,
    ),
    "input_shape": (
        lambda: cuconv.conv_input_grad(*SMALL, (1, 1, 1 << 63)),
        "input_shape must be below 2.62 in magnitude",
    ),
    "an input that does not fit": (
        lambda: cuconv.conv_input_grad(*SMALL, (1, 1, 1 << 60), stride=1 << 59),
        r"dy must have shape \(1, 1, 2\)",
    ),
    "weight_shape": (
        lambda: cuconv.conv_weight_grad(one(1, 1, 1 << 55), one(1, 1, 1), (1, 1, 1 << 55)),
        MemoryError,
    ),
    "channels of a bias": (lambda: cuconv.conv_bias_grad(one(1, 1 << 45, 1)), MemoryError),
    "gradients": (
        lambda: cuconv.conv_backward(one(1, 1 << 45, 5), SMALL[0], one(1 << 45, 1, 1)),
        MemoryError,
    ),
    "gradients of the transposed": (
        lambda: cuconv.conv_transpose_backward(one(1, 1, 1 << 45), one(1, 1, 1 << 45), one(1, 1, 1)),
        MemoryError,
    ),
    "stride of the transposed": (lambda: cuconv.conv_transpose(*SMALL, stride=1 << 50), MemoryError),
    "bytes of the transposed": (
        lambda: cuconv.conv_transpose(one(1, 1, 2), SMALL[1], stride=BIG),
        ValueError,
    ),
    "more stride": (
        lambda: cuconv.conv_transpose(*SMALL, stride=BIG, output_padding=BIG >> 1),
        "stride must leave axis w of the result below 2.62 cells",
    ),
    "output_padding": (
        lambda: cuconv.conv_transpose(*SMALL, output_padding=BIG),
        "output_padding must be",
    ),
    "a derivative": (lambda: cuconv.activation_backward(one(1 << 45), "relu", y=one(1 << 45)), MemoryError),
    "a plan": (
        lambda: cuconv.plan("wgrad", (BIG,) * 3, (BIG, BIG, 3)),
        r"x of shape .* must have less than 2.62 elements",
    ),
    "a problem": (lambda: cuconv.ConvProblem.parse(f"n{10**30}c1w5 k1s3"), "n must be below 2.62"),
}
"""Calls, and what is raised, or the text of a ValueError."""


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_is_too_large(name):
    """An error at once, by the library's own checks or the system's, and nothing has been computed."""
    call, raised = TOO_LARGE[name]
    kind, text = (ValueError, raised) if isinstance(raised, str) else (raised, None)
    start = time.thread_time()
    with pytest.raises(kind, match=text):
        call()
    assert time.thread_time() - start < 1


EMPTY = {
    "conv": lambda: cuconv.conv(one(1 << 40, 3, 5), none(0, 3, 3)),
    "conv_input_grad": lambda: cuconv.conv_input_grad(
        one(1 << 40, 3, 3), none(3, 0, 3), (1 << 40, 0, 5), algorithm="gemm"
    ),
    "conv_weight_grad": lambda: cuconv.conv_weight_grad(one(1 << 40, 3, 5), none(1 << 40, 0, 3), (0, 3, 3)),
    "conv_bias_grad": lambda: cuconv.conv_bias_grad(none(1 << 55, 0, 3)),
    "conv_transpose": lambda: cuconv.conv_transpose(one(1 << 40, 3, 3), none(3, 0, 3)),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_result_of_astronomic_arrays(name):
    start = time.thread_time()
    for _ in range(2):
        assert 0 in EMPTY[name]().shape
    assert time.thread_time() - start < 1


@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad", "bgrad"])
@pytest.mark.parametrize(
    "place", [dict(backend="cpu"), dict(backend="cuda", device="sm_90")], ids=["cpu", "gpu"]
)
def test_plans_of_what_no_machine_holds(op, place):
    """They can be made and printed; a GPU's are refused where a grid would have too many blocks."""
    for x, w in (
        ((1 << 20, 1 << 10, 1 << 14, 1 << 14), (1 << 10, 1 << 10, 3, 3)),
        ((1, 1, 1 << 58), (1, 1, 3)),
    ):
        start, text = time.thread_time(), ""
        with contextlib.suppress(ValueError) if "device" in place else contextlib.nullcontext():
            text = str(cuconv.plan(op, x, w, "float32", **place))
        assert time.thread_time() - start < 1
        if text:
            least = re.search(r"at least ([\d,]+) bytes", text)[1]
            assert int(least.replace(",", "")) > 1 << 59
        else:
            with pytest.raises(
                ValueError, match=r"is too large for a GPU: \w+ would take 2\^31 blocks or more$"
            ):
                cuconv.plan(op, x, w, "float32", **place)


# -- folders that cannot be used --------------------------------------------------------------------------


@pytest.fixture(params=["tuned", "kernels"])
def folder(request, tmp_path, monkeypatch):
    """A folder, and what keeps something there and returns it: tuning, or compiling."""
    place = tmp_path / "cache"
    if request.param == "kernels":
        request.getfixturevalue("compiler")  # whose folder this is

        def keep():
            jit._functions.clear()
            return jit.function(KERNEL, 0).code

    else:
        monkeypatch.setenv("CUCONV_CACHE_DIR", str(place))
        kept_module.warn.cache_clear()
        x, w = np.ones((2, 6, 9)), np.ones((6, 1, 3))

        def keep():
            forget()
            return cuconv.conv(x, w, groups=6, algorithm="tune").tobytes()

    yield place, keep
    kept_module.warn.cache_clear()
    forget()


def fails(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("step", ["mkdir", "open", "replace"])
def test_a_folder_that_takes_nothing(folder, monkeypatch, step, number):
    """One warning, and each call does what it is for; permissions do not stop the superuser, so that the call
    is what fails here.
    """
    place, keep = folder
    owner = {"mkdir": Path, "replace": os}.get(step, kept_module)
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fails(number), raising=step != "open")
        with pytest.warns(UserWarning, match=rf"cannot be kept .*{os.strerror(number)}") as warned:
            results = {keep() for _ in range(2)}
    assert len(warned) == len(results) == 1
    assert not place.exists() or os.listdir(place) == []
    assert {keep()} == results
    assert len(os.listdir(place)) == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ELOOP])
@pytest.mark.parametrize("step", ["open", "fstat"])
def test_a_folder_that_cannot_be_read(folder, monkeypatch, step, number):
    """What it keeps is made again, and put there where that can be done."""
    place, keep = folder
    result = keep()
    (name,) = os.listdir(place)
    with monkeypatch.context() as patch:
        patch.setattr(kept_module, "os", types.SimpleNamespace(**vars(os) | {step: fails(number)}))
        if step == "fstat":
            patch.setattr(kept_module.os, "close", lambda opened: os.close(opened))
        assert keep() == result
    assert os.listdir(place) == [name]
    assert keep() == result


@pytest.mark.skipif(sys.platform == "win32", reason="links are for the superuser there")
@pytest.mark.parametrize("target", ["nowhere", "cache", "file/below", "file"])
def test_a_folder_that_is_a_link_to_none(folder, tmp_path, target):
    """To what is not there, to itself, to what lies below a file, to a file: nothing is made of it."""
    place, keep = folder
    (tmp_path / "file").write_text("precious")
    place.symlink_to(tmp_path / target)
    before = sorted(os.listdir(tmp_path))
    with pytest.warns(UserWarning, match="cannot be kept"):
        result = keep()
    assert keep() == result
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "file").read_text() == "precious"
    place.unlink()


@pytest.mark.skipif(sys.platform == "win32", reason="links are for the superuser there")
def test_a_folder_that_is_a_link_to_one(folder, tmp_path):
    place, keep = folder
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    assert keep() == keep()
    assert len(os.listdir(tmp_path / "elsewhere")) == 1
