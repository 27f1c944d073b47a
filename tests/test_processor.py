"""The CPU's threads: blocks shared among them, BLAS held to one, and the same bits whoever calls beside."""

import itertools
import os
import platform
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import cuconv
from cuconv import processor
from cuconv.cpu import TABLE
from cuconv.processor import Processor, spread

from .cases import DTYPES, OPS, PUBLIC, Case, applies, threads, values, workspace
from .test_tuning import in_threads


@pytest.fixture
def two():
    """BLAS with two threads, whatever the environment says."""
    with threadpool_limits(2, user_api="blas"):
        if processor._blas.threads() != 2:
            pytest.skip("BLAS takes no second thread here")
        yield


def blas_threads():
    """What BLAS itself says, held or not."""
    return max(processor._blas._counts())


def hold(inside, leave):
    """Hold BLAS until told to leave."""
    with processor._blas.held_to_one():
        inside.set()
        leave.wait()


@pytest.mark.parametrize("count", [1, 2, 3, 50])
@pytest.mark.parametrize("parts", [0, 1, 2, 7, 100])
def test_every_part_is_done_exactly_once(parts, count):
    done = []
    spread(lambda first, second: done.append((first, second)), ((i, -i) for i in range(parts)), count)
    assert sorted(done) == [(i, -i) for i in range(parts)]


@pytest.mark.parametrize(("parts", "count"), [(1, 8), (5, 1)])
def test_one_part_or_one_thread_stays_with_the_caller_and_blas(two, parts, count):
    seen = []
    spread(lambda i: seen.append((threading.current_thread(), blas_threads())), zip(range(parts)), count)
    assert seen == [(threading.current_thread(), 2)] * parts


def test_blas_has_one_thread_while_blocks_run(two):
    together, seen = threading.Barrier(2, timeout=60), []

    def work(i):
        together.wait()  # both threads are at work, so neither does all
        seen.append((threading.current_thread(), blas_threads(), processor.current_arch()))

    spread(work, zip(range(2)), 2)
    assert len({thread for thread, *_ in seen}) == 2
    assert [rest for _, *rest in seen] == [[1, "2 threads"]] * 2
    assert blas_threads() == 2


@pytest.mark.parametrize("failing", ["caller", "helper"])
def test_the_first_exception_ends_the_call(two, failing):
    """It is raised, nobody begins another part, and BLAS has its threads again."""
    caller, together, done = threading.current_thread(), threading.Barrier(2, timeout=60), []

    def work(i):
        if i < 2:
            together.wait()
            if (threading.current_thread() is caller) == (failing == "caller"):
                raise KeyError(i)
            time.sleep(0.2)
        done.append(i)

    with pytest.raises(KeyError):
        spread(work, zip(range(100)), 2)
    assert len(done) == 1
    assert blas_threads() == 2
    spread(done.append, zip(range(100)), 2)
    assert len(done) == 101


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


def test_blas_is_restored_whatever_the_interleaving(two):
    """Callers that come and go while others hold BLAS all see one thread in it, and plan for two."""
    seen = set()

    def calls(number):
        for i in range(20):
            time.sleep(1e-4 * ((number * 7 + i) % 5))
            spread(lambda part: seen.add((blas_threads(), processor.current_arch())), zip(range(4)), 2)

    in_threads(8, calls)
    assert seen == {(1, "2 threads")}
    assert blas_threads() == 2
    assert processor._blas.holders == 0


def test_the_last_to_let_go_restores_blas_whoever_held_it_first(two):
    inside, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=hold, args=(inside, leave))
    with processor._blas.held_to_one():
        thread.start()
        inside.wait()
    assert (blas_threads(), processor.current_arch()) == (1, "2 threads")
    leave.set()
    thread.join()
    assert (blas_threads(), processor.current_arch()) == (2, "2 threads")


def test_spread_within_spread_ends(two):
    done = []

    def outer(i):
        spread(lambda j: done.append((i, j)), zip(range(5)), 3)

    in_threads(4, lambda number: spread(outer, zip(range(6)), 50))
    assert sorted(done) == sorted([*itertools.product(range(6), range(5))] * 4)


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
    blas, done = processor._Blas(), []
    blas.libraries = []
    monkeypatch.setattr(processor, "_blas", blas)
    assert processor.current_arch() == "1 thread"
    spread(done.append, ((i,) for i in range(10)), 2)
    assert sorted(done) == list(range(10))


@pytest.mark.parametrize("count", [1, 2, 64])
def test_an_architecture_is_a_processor(count):
    with threads(count):
        assert processor.processor(processor.current_arch()) == Processor(count)
        assert processor.current_arch() == ("1 thread" if count == 1 else f"{count} threads")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("holder", ["nobody", "the forking thread", "another thread"])
def test_a_forked_child_can_convolve(two, holder):
    """Whoever holds BLAS at that moment, the child has neither the lock nor the limit."""
    x, w = np.ones((4, 8, 20, 20), np.float32), np.ones((8, 8, 3, 3), np.float32)
    child = -1

    def convolved():
        with threads(2):
            return cuconv.conv(x, w, algorithm="gemm")

    def fork():
        nonlocal child
        child = os.fork()
        if child == 0:
            status = 1
            try:
                assert blas_threads() == 2
                assert processor._blas.holders == 0
                np.testing.assert_array_equal(convolved(), np.full((4, 8, 18, 18), 72))
                assert blas_threads() == 2
                status = 0
            finally:
                os._exit(status)

    convolved()
    if holder == "nobody":
        fork()
    elif holder == "the forking thread":
        with processor._blas.held_to_one():
            fork()
    else:
        inside, leave = threading.Event(), threading.Event()
        thread = threading.Thread(target=hold, args=(inside, leave))
        thread.start()
        inside.wait()
        fork()
        leave.set()
        thread.join()
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert status == 0


LINES = (
    "n3c6h9w10 k6r3s3 p1",
    "n2c6h11w8 k12r3s2 g6 sh2sw1 p1 circular",
    "n4c4h8w9 k6r2s3 g2 dh2dw1 p1:0 reflect",
    "n2c3w40 k5s7 sw2 p3",
)


def all_calls():
    """Every op by every algorithm on several problems and dtypes: (function, arrays, options)."""
    rng = np.random.default_rng(0)
    for line, dtype in itertools.product(LINES, ("float32", "float64", "complex64", "float16", "int32")):
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
