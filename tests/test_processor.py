"""The CPU's threads: blocks shared among them, BLAS held to one, and the same bits whoever calls beside."""

import _thread
import ast
import contextlib
import itertools
import os
import platform
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import cuconv
from cuconv import cpu, problem, processor
from cuconv.cpu import TABLE
from cuconv.cpu.result import Result
from cuconv.plan import Call, forget
from cuconv.processor import Processor, spread

from .cases import DTYPES, OPS, PUBLIC, Case, applies, threads, values, workspace
from .test_tuning import in_threads


@contextlib.contextmanager
def blas_of(count):
    """BLAS with so many threads, whatever the environment says, and set so that any thread may set limits."""
    before = [library.threads() for library in processor._blas.libraries]
    for library in processor._blas.libraries:
        library.set(count)
    yield
    for library, former in zip(processor._blas.libraries, before, strict=True):
        library.set(former)


@pytest.fixture
def two():
    with blas_of(2):
        if processor.threads() != 2:
            pytest.skip("BLAS takes no second thread here")
        yield


@pytest.fixture(autouse=True)
def nothing_is_left():
    """After each test nobody holds BLAS, and there are the threads that there were."""
    before = threading.active_count(), _thread._count()
    yield
    assert_blas_is_free()
    assert_threads_are(*before)


def assert_blas_is_free():
    assert not processor._blas.holders
    assert [(library.found, library.held) for library in processor._blas.libraries] == [
        (0, False) for _ in processor._blas.libraries
    ]


def assert_threads_are(known, started):
    """As `threading` counts them, and as the system does but for the main one."""
    for _ in range(1000):  # the system's thread ends a little after what it ran
        if _thread._count() == started:
            break
        time.sleep(0.01)
    assert (threading.active_count(), _thread._count()) == (known, started)


def blas_threads():
    """What BLAS itself says, held or not."""
    return max(library.get() for library in processor._blas.libraries)


def hold(inside, leave):
    """Hold BLAS until told to leave."""

    def held():
        inside.set()
        leave.wait()

    processor.with_blas_alone(held)


@contextlib.contextmanager
def in_another_thread(function, *arguments):
    """The thread runs function(inside, leave, *arguments); here it is inside, and is told to leave."""
    inside, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=function, args=(inside, leave, *arguments))
    thread.start()
    assert inside.wait(60)
    try:
        yield
    finally:
        leave.set()
        thread.join()


def in_a_process(program, seconds=240):
    """Run a function of this module, or a program, where it may hang or be killed by a signal."""
    if callable(program):
        program = f"from tests import test_processor\ntest_processor.{program.__name__}()"
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


# -- blocks shared among threads ----------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 50])
@pytest.mark.parametrize("parts", [0, 1, 2, 7, 100])
def test_every_part_is_done_exactly_once(parts, count):
    done = []
    spread(lambda first, second: done.append((first, second)), ((i, -i) for i in range(parts)), count)
    assert sorted(done) == [(i, -i) for i in range(parts)]


@pytest.mark.parametrize(("parts", "count"), [(1, 8), (5, 1)])
def test_one_part_or_one_thread_stays_with_the_caller(parts, count):
    seen = []
    spread(lambda i: seen.append(threading.get_ident()), zip(range(parts)), count)
    assert seen == [threading.get_ident()] * parts


def test_the_caller_is_one_of_the_threads():
    together, seen = threading.Barrier(2, timeout=60), set()

    def work(i):
        together.wait()  # both threads are at work, so neither does all
        seen.add(threading.get_ident())

    spread(work, zip(range(2)), 2)
    assert len(seen) == 2
    assert threading.get_ident() in seen


def test_the_first_exception_ends_the_call(two):
    """It is raised after the parts already begun, nobody begins another, and BLAS has its threads again."""
    together, done = threading.Barrier(2, timeout=60), []

    def work(i):
        if together.wait() == 0:
            raise KeyError(i)
        time.sleep(0.2)
        done.append(i)

    with pytest.raises(KeyError):
        processor.with_blas_alone(lambda: spread(work, zip(range(100)), 2))
    assert len(done) == 1
    assert blas_threads() == 2
    spread(done.append, zip(range(100)), 2)
    assert len(done) == 101


def test_an_exception_of_the_parts_themselves_ends_the_call():
    def parts():
        yield from zip(range(5))
        raise KeyError

    done = []
    with pytest.raises(KeyError):
        spread(done.append, parts(), 2)
    assert sorted(done) == list(range(5))


def test_no_thread_warns_of_overflow():
    together = threading.Barrier(3, timeout=60)

    def work(i):
        together.wait()
        assert set(np.geterr().values()) == {"ignore"}
        np.float32(3e38) * np.ones(3, np.float32) * 10

    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        spread(work, zip(range(3)), 3)
        assert set(np.geterr().values()) == {"raise"}


def test_the_buffer_of_ufuncs_is_small_only_while_blocks_are_done():
    found, seen = np.getbufsize(), []
    together = threading.Barrier(2, timeout=60)

    def work(i):
        together.wait()
        seen.append(np.getbufsize())
        raise KeyError(i)

    with pytest.raises(KeyError):
        spread(work, zip(range(2)), 2)
    assert max(seen) < found == np.getbufsize()
    cuconv.conv(*SMALL)
    assert np.getbufsize() == found


def test_spread_within_spread_ends(two):
    done = []

    def outer(i):
        spread(lambda j: done.append((i, j)), zip(range(5)), 3)

    in_threads(4, lambda number: spread(outer, zip(range(6)), 50))
    assert sorted(done) == sorted([*itertools.product(range(6), range(5))] * 4)


# -- threads that cannot be had -----------------------------------------------------------------------


class Starts:
    """In place of `_thread.start_new_thread`: the given starts, one after the other, and then the last."""

    def __init__(self, *starts):
        self.starts = itertools.chain(starts, itertools.repeat(starts[-1]))
        self.real = _thread.start_new_thread

    def __call__(self, work, arguments):
        return next(self.starts)(self.real, work)


def well(start, work):
    return start(work, ())


def late(start, work):
    return start(lambda: (time.sleep(0.3), work()), ())


def not_at_all(start, work):
    raise RuntimeError("can't start new thread")


def no_memory(start, work):
    raise MemoryError


def interrupted(start, work):
    start(work, ())
    raise KeyboardInterrupt


def interrupted_early(start, work):
    late(start, work)
    raise KeyboardInterrupt


SMALL = np.arange(2 * 3 * 8 * 8, dtype=np.float64).reshape(2, 3, 8, 8), np.ones((2, 3, 3, 3))


@contextlib.contextmanager
def in_blocks(seconds=0.0):
    """SMALL by three threads in many blocks, each of which is stored after so many seconds."""
    store = Result.store

    def slow_store(*arguments):
        time.sleep(seconds)
        store(*arguments)

    with workspace(2000), threads(3), mock.patch.object(Result, "store", slow_store):
        yield


def small(out=None):
    return cuconv.conv(*SMALL, algorithm="im2col", out=out)


@pytest.mark.parametrize(
    "starts",
    [[not_at_all], [no_memory], [well, not_at_all], [well, no_memory], [well, late], [late]],
    ids=lambda starts: " ".join(start.__name__ for start in starts),
)
def test_a_call_goes_on_with_the_threads_it_has(two, monkeypatch, starts):
    """Where they are fewer or late, the result is the same, and nobody writes after the call."""
    with in_blocks(0.001):
        expected = small()
        monkeypatch.setattr(_thread, "start_new_thread", Starts(*starts))
        out = np.zeros_like(expected)
        small(out)
        np.testing.assert_array_equal(out, expected)
        out[...] = -1
        monkeypatch.undo()
        np.testing.assert_array_equal(small(), expected)
        time.sleep(0.4)
        assert (out == -1).all()
    assert blas_threads() == 2


@pytest.mark.parametrize(
    "starts",
    [[interrupted], [well, interrupted], [interrupted_early], [well, interrupted_early]],
    ids=lambda starts: " ".join(start.__name__ for start in starts),
)
def test_no_call_writes_after_it_has_raised(two, monkeypatch, starts):
    """Also where the exception came between a thread's start and its first step."""
    with in_blocks(0.01):
        expected = small()
        out = np.zeros_like(expected)
        monkeypatch.setattr(_thread, "start_new_thread", Starts(*starts))
        with pytest.raises(KeyboardInterrupt):
            small(out)
        before = out.copy()
        monkeypatch.undo()
        assert blas_threads() == 2
        np.testing.assert_array_equal(small(), expected)
        time.sleep(0.4)
        np.testing.assert_array_equal(out, before)


def at_the_end():
    """A call in each of the places where Python no longer gives a pool threads."""
    import atexit

    expected = small()

    def call(where):
        with in_blocks():
            np.testing.assert_array_equal(small(), expected)
        print(where, flush=True)

    def after_main():
        threading.main_thread().join()
        call("after the main thread")

    atexit.register(call, "at exit")
    threading.Thread(target=after_main).start()


def test_calls_once_the_main_thread_has_ended():
    assert sorted(in_a_process(at_the_end).split("\n")) == ["", "after the main thread", "at exit"]


# -- BLAS held to one ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_blas_has_one_thread_in_every_call(two, monkeypatch, count):
    """Also in calls of one thread or one block, whose bits would depend on what others do meanwhile."""
    seen = set()

    class Spy(Result):
        def __init__(self, *arguments):
            seen.add(blas_threads())
            super().__init__(*arguments)

    monkeypatch.setattr(cpu, "Result", Spy)
    with threads(count):
        for function, inputs, options in all_calls():
            function(*inputs, **options)
        cuconv.conv_bias_grad(np.ones((2, 3, 4, 5)))
    assert seen == {1}
    assert blas_threads() == 2


def test_a_held_blas_is_planned_for_as_it_was(two):
    seen = []
    processor.with_blas_alone(lambda: seen.append((blas_threads(), processor.current_arch())))
    assert seen == [(1, "2 threads")]
    assert (blas_threads(), processor.current_arch()) == (2, "2 threads")


def test_blas_is_restored_whatever_the_interleaving(two):
    """Callers that come and go while others hold BLAS all see one thread in it, and plan for two."""
    seen = set()

    def calls(number):
        for i in range(20):
            time.sleep(1e-4 * ((number * 7 + i) % 5))
            processor.with_blas_alone(
                lambda: spread(
                    lambda part: seen.add((blas_threads(), processor.current_arch())), zip(range(4)), 2
                )
            )

    in_threads(8, calls)
    assert seen == {(1, "2 threads")}
    assert blas_threads() == 2


def test_the_last_to_let_go_restores_blas_whoever_held_it_first(two):
    inside, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=hold, args=(inside, leave))

    def held():
        thread.start()
        inside.wait()

    processor.with_blas_alone(held)
    assert (blas_threads(), processor.current_arch()) == (1, "2 threads")
    leave.set()
    thread.join()
    assert (blas_threads(), processor.current_arch()) == (2, "2 threads")


def limit(inside, leave, count):
    """Limit BLAS until told to leave."""
    with threadpool_limits(count, user_api="blas"):
        inside.set()
        leave.wait()


@pytest.mark.parametrize("count", [2, 3])
def test_a_limit_that_begins_in_a_call_and_ends_after_it(two, count):
    """Lifted, it puts back the one thread that it found; the next call knows better."""
    with contextlib.ExitStack() as stack:
        processor.with_blas_alone(lambda: stack.enter_context(in_another_thread(limit, count)))
        assert processor.threads() == blas_threads() == count
    assert blas_threads() == 1
    assert processor.current_arch() == "2 threads"
    cuconv.conv(*SMALL)
    assert blas_threads() == 2
    with threadpool_limits(1, user_api="blas"):
        cuconv.conv(*SMALL)
        assert processor.threads() == blas_threads() == 1


def test_a_limit_that_ends_in_a_call_has_the_last_word(two):
    with contextlib.ExitStack() as stack:
        stack.enter_context(in_another_thread(limit, 3))
        assert processor.threads() == 3
        processor.with_blas_alone(stack.close)
    assert processor.threads() == blas_threads() == 2
    cuconv.conv(*SMALL)
    assert processor.threads() == blas_threads() == 2


def test_a_users_limit_makes_plans_for_it(two):
    shapes = (8, 64, 56, 56), (64, 64, 3, 3)
    with threadpool_limits(1, user_api="blas"):
        assert processor.current_arch() == "1 thread"
        one = cuconv.plan("fprop", *shapes, padding=1)
    assert processor.current_arch() == "2 threads"
    both = cuconv.plan("fprop", *shapes, padding=1)
    assert (one.arch, both.arch) == ("1 thread", "2 threads")
    assert (one.launches[0].threads, both.launches[0].threads) == (1, 2)


def test_where_blas_is_unknown_there_is_one_thread(monkeypatch):
    """And a plan that was made elsewhere, for more, still runs."""
    done = []
    monkeypatch.setattr(processor, "_blas", processor._Blas())
    assert processor.current_arch() == "1 thread"
    processor.with_blas_alone(lambda: spread(done.append, ((i,) for i in range(10)), 2))
    assert sorted(done) == list(range(10))


def test_a_blas_in_which_each_thread_has_its_own_number(monkeypatch):
    """As in MKL: one in every thread of a call, and back in the callers, whoever holds it first and last."""

    class Own(threading.local):
        count = 4

    own, seen, together = Own(), [], threading.Barrier(2, timeout=60)
    functions = (lambda: own.count), (lambda count: setattr(own, "count", count))
    monkeypatch.setattr(processor, "_blas", processor._Blas())
    monkeypatch.setattr(processor, "_blas_of_thread", processor._BlasOfThread(functions))

    def call():
        together.wait()
        seen.append(own.count)
        spread(lambda part: seen.append(own.count), zip(range(3)), 2)

    def caller(number):
        own.count = 2 + number
        processor.with_blas_alone(call)
        assert own.count == processor.threads() == 2 + number

    in_threads(2, caller)
    assert seen == [1] * 8
    assert own.count == processor.threads() == 4


@pytest.mark.parametrize("count", [1, 2, 64])
def test_an_architecture_is_a_processor(count):
    with threads(count):
        assert processor.processor(processor.current_arch()) == Processor(count)
        assert processor.current_arch() == ("1 thread" if count == 1 else f"{count} threads")


LINES = (
    "n3c6h9w10 k6r3s3 p1",
    "n2c6h11w8 k12r3s2 g6 sh2sw1 p1 circular",
    "n4c4h8w9 k6r2s3 g2 dh2dw1 p1:0 reflect",
    "n2c3w40 k5s7 sw2 p3",
)


LARGER = (
    ("n1c146h5w11 k31r3s3", "float64"),
    ("n2c98h9w6 k125r1s1", "float64"),
    ("n3c76h6w13 k129r3s3", "complex64"),
    ("n2c77h8w16 k145r3s3", "float32"),
    ("n3c9h13w22 k142r1s1", "float32"),
)
"""With OpenBLAS, by one of its threads and by two, results here differ in most algorithms' bits."""


CALLS = tuple(itertools.product(LINES, ("float32", "float64", "complex64", "float16", "int32")))


def all_calls(cases=CALLS):
    """Every op by every algorithm on several problems and dtypes: (function, arrays, options)."""
    rng = np.random.default_rng(0)
    for line, dtype in cases:
        problem = cuconv.ConvProblem.parse(line)
        x, w, dy = (
            values(rng, shape, dtype, exact=False)
            for shape in (problem.x_shape(), problem.w_shape(), problem.y_shape())
        )
        inputs = {"fprop": (x, w), "dgrad": (dy, w, x.shape), "wgrad": (x, dy, w.shape)}
        for op in OPS:
            for entry in TABLE[op]:
                if applies(Case(problem, dtype, threads=2), entry.name, op):
                    yield PUBLIC[op], inputs[op], problem.options() | dict(algorithm=entry.name)


@pytest.mark.parametrize("count", [1, 2])
def test_bits_do_not_depend_on_other_threads_calls(two, count):
    """Of calls in one block, or by one thread, too."""
    with threads(count):
        calls = list(all_calls(LARGER))
        alone = [function(*inputs, **options) for function, inputs, options in calls]
        with in_another_thread(hold):
            for (function, inputs, options), expected in zip(calls, alone, strict=True):
                np.testing.assert_array_equal(function(*inputs, **options), expected)


def test_calls_from_many_threads_give_the_bits_of_serial_calls(two):
    """Real numbers, where another order of summing would show, in blocks of 2000 bytes shared by two."""
    with workspace(2000), threads(2):
        calls = list(all_calls())
        serial = [function(*inputs, **options) for function, inputs, options in calls]
        assert {result.dtype for result in serial} > {DTYPES["float32"], DTYPES["complex64"]}

        def work(number):
            for i in np.random.default_rng(number).permutation(len(calls))[: len(calls) // 4]:
                function, inputs, options = calls[i]
                np.testing.assert_array_equal(function(*inputs, **options), serial[i])

        in_threads(8, work)
    assert blas_threads() == 2


# -- signals ------------------------------------------------------------------------------------------


class Aim:
    """Traces a call in this thread, and does something at the n-th step of the code that holds and shares.

    A step is a line of it, or a function's begin or end: wherever Python may run a signal's handler, and at
    some places more. Left out is where a `with` block is left, before the lock's own exit: Python itself runs
    no handler there, since no instruction at which it looks for signals lies between.
    """

    def __init__(self, step, action):
        self.left, self.action = step, action
        self.files = {file.__file__: with_blocks(file.__file__) for file in (processor, cpu)}

    def __enter__(self):
        sys.settrace(self.trace)

    def __exit__(self, *error):
        sys.settrace(None)

    def trace(self, frame, event, argument):
        if frame.f_code.co_filename not in self.files:
            return None
        blocks, previous = self.files[frame.f_code.co_filename], None

        def step(frame, event, argument):
            nonlocal previous
            line, before = frame.f_lineno, previous
            previous = line
            if not (event == "line" and before in blocks.get(line, ())):
                self.left -= 1
                if self.left == 0:
                    self.action()
            return step

        return step(frame, event, argument)


def with_blocks(path):
    """The lines inside each `with`, by its own line."""
    nodes = ast.walk(ast.parse(Path(path).read_text()))
    return {
        node.lineno: range(node.lineno + 1, node.end_lineno + 1) for node in nodes if type(node) is ast.With
    }


def interrupt():
    signal.raise_signal(signal.SIGINT)


def interrupted_at_every_step():
    """Ctrl-C at each step of a call: it raises, nobody writes any more, and all is as before."""
    with blas_of(2), in_blocks(0.002):
        expected = small()
        for step in itertools.count(1):
            out = np.zeros_like(expected)
            aim = Aim(step, interrupt)
            try:
                with aim:
                    small(out)
            except KeyboardInterrupt:
                pass
            else:
                assert aim.left > 0, f"the interrupt at step {step} was lost"
                break
            before = out.copy()
            assert blas_threads() == 2, step
            assert_blas_is_free()
            assert_threads_are(1, 0)
            if step % 10 == 0:
                np.testing.assert_array_equal(small(), expected)
            time.sleep(0.003)
            np.testing.assert_array_equal(out, before, err_msg=f"step {step}")
        np.testing.assert_array_equal(out, expected)
        print(step)


def called_by_a_handler_at_every_step():
    """A handler that calls conv: both calls give what they give alone, with BLAS at one thread."""
    seen, store = set(), Result.store

    def spy(*arguments):
        seen.add(blas_threads())
        store(*arguments)

    with blas_of(2), in_blocks(), mock.patch.object(Result, "store", spy):
        expected, inner = small(), []
        signal.signal(signal.SIGINT, lambda *_: inner.append(small()))
        for step in itertools.count(1):
            aim = Aim(step, interrupt)
            with aim:
                out = small()
            np.testing.assert_array_equal(out, expected)
            assert blas_threads() == 2, step
            if aim.left > 0:
                break
            np.testing.assert_array_equal(inner.pop(), expected)
            assert_blas_is_free()
        assert seen == {1}
        assert_threads_are(1, 0)
        print(step)


def interrupted_at_random():
    """Real signals, at any instruction, for some seconds."""
    rng = random.Random(0)
    armed = False

    def handler(*_):
        if armed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, handler)
    end, broken_off = time.monotonic() + 5, 0
    with blas_of(2), in_blocks():
        expected = small()
        while time.monotonic() < end:
            out = np.zeros_like(expected)
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 4e-3))
                small(out)
                armed = False
            except KeyboardInterrupt:
                broken_off += 1
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            before = out.copy()
            assert blas_threads() == 2
            np.testing.assert_array_equal(small(), expected)
            np.testing.assert_array_equal(out, before)
        assert_blas_is_free()
        assert_threads_are(1, 0)
    assert broken_off > 20
    print(broken_off)


def interrupted_again_and_again():
    """Ctrl-C every few milliseconds while the parts already begun go on for half a second."""
    hits = 0

    def handler(*_):
        nonlocal hits
        hits += 1
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, handler)
    with blas_of(2):
        with in_blocks():
            expected = small()
        for _ in range(5):
            out = np.zeros_like(expected)
            with in_blocks(0.5):
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.01)
                        small(out)
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    pass
            assert blas_threads() == 2
            before = out.copy()
            assert 0 < np.count_nonzero(before) < before.size  # what was begun was done, the rest not begun
            time.sleep(0.6)
            np.testing.assert_array_equal(out, before)
            np.testing.assert_array_equal(small(), expected)
        assert_blas_is_free()
        assert_threads_are(1, 0)
    assert hits > 20
    print(hits)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers that signal")
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(interrupted_at_every_step, marks=pytest.mark.long),
        called_by_a_handler_at_every_step,
        interrupted_at_random,
        interrupted_again_and_again,
    ],
)
def test_signals(two, how):
    assert int(in_a_process(how)) > 20  # so many steps or signals


# -- forks --------------------------------------------------------------------------------------------


def in_a_child(function, seconds=60):
    """Fork, and have the child call the function: it must end well, in time."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    for _ in range(seconds * 10):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert status == 0


def convolve_and_tune():
    """As a child must, with BLAS's two threads before and after."""
    assert blas_threads() == 2
    assert_blas_is_free()
    with in_blocks():
        plain = small()
        np.testing.assert_array_equal(cuconv.conv(*SMALL, algorithm="tune"), plain)
        np.testing.assert_array_equal(cuconv.conv(*SMALL, algorithm="fft").round(), plain)
    assert blas_threads() == 2


def calls_first(inside, leave):
    """Be in the midst of computing what a problem keeps of itself."""
    real = problem.replace

    def replace(*arguments, **changes):
        inside.set()
        leave.wait()
        return real(*arguments, **changes)

    with mock.patch.object(problem, "replace", replace):
        assert cuconv.ConvProblem.parse("n2c3h9w9 k4r3s3").volumetric.rank == 3


def tunes(inside, leave):
    """Be in the midst of timing candidates."""

    def seconds(*arguments):
        inside.set()
        leave.wait()
        return 1.0

    with mock.patch.object(Call, "_seconds", seconds):
        cuconv.conv(*SMALL, stride=2, algorithm="tune")


def changes_blas(inside, leave):
    """Be between two steps of holding BLAS, the first of which is done."""
    library = processor._blas.libraries[0]
    real = library.set

    def set(count):
        inside.set()
        time.sleep(0.5)
        real(count)

    with mock.patch.object(library, "set", set):
        processor.with_blas_alone(leave.wait)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("other", [None, hold, calls_first, tunes, changes_blas])
def test_a_forked_child_can_convolve_and_tune(two, monkeypatch, tmp_path, other):
    """Whatever another thread does at that moment."""
    monkeypatch.setenv("CUCONV_CACHE_DIR", str(tmp_path))
    forget()
    library = processor._blas.libraries[0]
    seconds, replace, set = Call._seconds, problem.replace, library.set

    def child():
        Call._seconds, problem.replace, library.set = seconds, replace, set
        convolve_and_tune()

    if other is None:
        in_a_child(child)
        processor.with_blas_alone(lambda: in_a_child(child))
    else:
        with in_another_thread(other):
            in_a_child(child)
    assert blas_threads() == 2
    forget()


IMPORTS = """
import sys
sys.modules["scipy"] = None  # as if it were not installed: it imports more than we do
import cuconv
import numpy as np
from cuconv.cpu import TABLE

before = set(sys.modules)
x, w, y = np.ones((2, 1, 9, 9)), np.ones((1, 1, 3, 3)), np.ones((2, 1, 7, 7))
for op, function, *inputs in (
    ("fprop", cuconv.conv, x, w),
    ("dgrad", cuconv.conv_input_grad, y, w, x.shape),
    ("wgrad", cuconv.conv_weight_grad, x, y, w.shape),
):
    for algorithm in ("auto", "tune", *(entry.name for entry in TABLE[op])):
        function(*inputs, algorithm=algorithm)
print(*sorted(set(sys.modules) - before))
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="there tuning asks a subprocess for the processor")
def test_calls_import_nothing(tmp_path, monkeypatch):
    """Imports hold locks, which a process forked meanwhile would never get."""
    monkeypatch.setenv("CUCONV_CACHE_DIR", str(tmp_path))
    assert in_a_process(IMPORTS).split() == []


# -- memory -------------------------------------------------------------------------------------------


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back")
def test_memory_of_one_call_serves_the_next():
    """Scratch arrays and results do not come back page by page, in a process where nothing else was large."""
    script = """
import resource
import numpy as np
import cuconv
x, w = np.ones((8, 256, 14, 14), np.float32), np.ones((256, 256, 3, 3), np.float32)
for _ in range(3):
    cuconv.conv(x, w, padding=1, algorithm="gemm")
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    cuconv.conv(x, w, padding=1, algorithm="gemm")
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 10 * 256  # a result alone has 392 pages
