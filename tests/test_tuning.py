"""What `algorithm="tune"` remembers: across processes and threads, and never from a damaged or stale file."""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import cuconv
from cuconv import kept, machine, prepared, tuning
from cuconv.cli import info
from cuconv.plan import Call, _winners, avoided, current_arch, exact_candidates, forget
from cuconv.problem import ConvProblem, Request

from .test_kept import soon

REQUEST = Request("fprop", ConvProblem.parse("n2c6h9w9 k6r3s3 g6"), "float64")
CANDIDATES = [entry.name for entry in exact_candidates(REQUEST, "cpu")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where winners are kept, a folder that is yet to be made; nothing is remembered."""
    monkeypatch.setenv("CUCONV_CACHE_DIR", str(tmp_path / "new/folder"))
    forget()
    yield tuning.folder()
    forget()


@pytest.fixture
def path(folder):
    """The file that keeps the winner of the request on this machine, yet to be written."""
    return folder / tuning._name(REQUEST, machine.fingerprint("cpu"))


def tune(request=REQUEST):
    """Tune a request as another process would, which has the file only."""
    forget()
    return tune_again(request)


def tune_again(request=REQUEST):
    problem = request.problem
    shapes = problem.x_shape(request.layout), problem.w_shape(request.layout)
    x, w = (np.ones(shape, request.dtype) for shape in shapes)
    expected = cuconv.conv(x, w, **problem.options())
    tuned = cuconv.conv(x, w, **problem.options(), algorithm="tune")
    np.testing.assert_array_equal(tuned, expected)
    return _winners[request, "cpu", current_arch("cpu")]


BOTH = [name for name in CANDIDATES for _ in range(2)]
PROGRAM = """
import numpy as np
import cuconv
from cuconv.plan import Call, _winners

timed, seconds = [], Call._seconds
Call._seconds = lambda *args: timed.append(1) or seconds(*args)
x, w = np.ones((2, 6, 9, 9)), np.ones((6, 1, 3, 3))
for _ in range(2):
    cuconv.conv(x, w, groups=6, algorithm="tune")
(winner,) = _winners.values()
print(len(timed), winner.algorithm)
"""


def process(program, *arguments):
    """What a program prints, run by another process in this one's environment."""
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_another_process_times_nothing(path):
    count, winner = process(PROGRAM)
    assert (count, winner in CANDIDATES) == (str(len(BOTH)), True)
    assert process(PROGRAM) == ["0", winner]
    assert tuning.remembered(REQUEST, "cpu", CANDIDATES) == winner


def test_the_file(path, timed):
    winner = tune()
    assert winner.why == "fastest when timed"
    assert timed == BOTH
    assert json.loads(path.read_text()) == {
        "machine": machine.fingerprint("cpu"),
        "request": "fprop float64 channels_first n2c6h9w9 k6r3s3 g6",
        "among": CANDIDATES,
        "algorithm": winner.algorithm,
    }
    assert os.listdir(path.parent) == [path.name]
    assert re.fullmatch("cuconv-tuned-2-[0-9a-f]{64}[.]json", path.name)
    again = tune()
    assert (again.algorithm, again.why) == (winner.algorithm, "fastest when timed by an earlier process")
    assert timed == BOTH


def test_what_is_to_be_avoided_is_neither_timed_nor_remembered(path, timed, fresh_plans, monkeypatch):
    """Winners of earlier processes count among the same candidates only, whichever these are."""
    first = tune()
    monkeypatch.setenv("CUCONV_AVOID", first.algorithm)
    avoided.cache_clear()
    timed.clear()
    left = [name for name in CANDIDATES if name != first.algorithm]
    second = tune()
    assert second.algorithm in left
    assert timed == [name for name in left for _ in range(2)]
    assert json.loads(path.read_text())["among"] == left
    assert tune().why == "fastest when timed by an earlier process"
    monkeypatch.delenv("CUCONV_AVOID")
    avoided.cache_clear()
    timed.clear()
    assert tune().why == "fastest when timed"
    assert timed == BOTH


def test_the_remembered_one_is_taken_whatever_is_faster(path, timed):
    for name in CANDIDATES:
        tuning.remember(REQUEST, "cpu", CANDIDATES, name)
        assert tune().algorithm == name
    assert timed == []


def test_a_repeated_call_reads_nothing(path, timed, monkeypatch):
    first = tune()
    monkeypatch.setattr(kept, "read", None)
    monkeypatch.setattr(tuning, "fingerprint", None)
    assert tune_again() is first


def damaged(**changes):
    """The content of a winner's file with other values, None for none."""
    sound = {
        "machine": machine.fingerprint("cpu"),
        "request": str(REQUEST),
        "among": CANDIDATES,
        "algorithm": "gemm",
    }
    entry = {name: value for name, value in {**sound, **changes}.items() if value is not None}
    return json.dumps(entry, indent=1).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        b"[]",
        damaged()[:-1],
        damaged()[:80],
        damaged() + b"}",
        damaged() + b"\n",
        damaged().replace(b"gemm", b"gemn"),
        damaged().replace(b"fprop", b"dgrad"),
        b"\0" * 4096,
        bytes(range(256)),
        b"[" * 60_000,
        damaged() + bytes(1 << 20),
        damaged(more=1),
        damaged(machine="another one"),
        damaged(machine=None),
        damaged(request=str(dataclasses.replace(REQUEST, flip=True))),
        damaged(algorithm="unknown"),
        damaged(algorithm="unknown", among=["unknown"]),
        damaged(algorithm=["gemm"]),
        damaged(algorithm=None),
        damaged(among=CANDIDATES[::-1]),
        damaged(among=", ".join(CANDIDATES)),
        damaged(among=None),
    ],
    ids=range(24),
)
def test_a_damaged_file_is_replaced(path, timed, content):
    """It is not trusted, not an error, and whole again after the next winner."""
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    tune()
    assert timed == BOTH
    tune()
    assert timed == BOTH


def test_the_sound_file_of_these_tests_is_trusted(path, timed):
    path.parent.mkdir(parents=True)
    path.write_bytes(damaged())
    assert tune().algorithm == "gemm"
    assert timed == []


def test_one_damaged_file_leaves_the_others(path):
    others = [dataclasses.replace(REQUEST, flip=True), dataclasses.replace(REQUEST, bias=True)]
    for request in (*others, REQUEST):
        tuning.remember(request, "cpu", CANDIDATES, "gemm")
    path.write_bytes(b"")
    known = [tuning.remembered(request, "cpu", CANDIDATES) for request in (*others, REQUEST)]
    assert known == ["gemm", "gemm", None]


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(cuconv, "__version__", "0.0.0"),
        lambda patch: patch.setattr(np, "__version__", "9.9.9"),
        lambda patch: patch.setattr(machine, "processor", lambda: "another one"),
        lambda patch: patch.setattr(machine, "cores", lambda: 1000),
        lambda patch: patch.setattr(machine, "blas", lambda: "another one"),
        lambda patch: patch.setenv("OPENBLAS_CORETYPE", "another one"),
    ],
)
def test_another_machine_tunes_for_itself(path, timed, monkeypatch, change):
    tune()
    with monkeypatch.context() as patch:
        change(patch)
        tune()
        assert timed == BOTH * 2
    tune()
    assert timed == BOTH * 2  # its winner is there as before


def test_threads_of_blas_count(path, timed):
    threadpoolctl = pytest.importorskip("threadpoolctl")
    tune()
    with threadpoolctl.threadpool_limits(7):
        tune()
    assert timed == BOTH * 2


def test_threads_that_the_environment_asks_for_count(monkeypatch):
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert "OPENBLAS_NUM_THREADS 3" in machine.blas()


def test_other_candidates_are_timed(path, timed):
    """A winner among fewer, among more or among others is stale, even if it is a candidate still."""
    for among in (["gemm"], [*CANDIDATES, "winograd"], ["gemm", "fft"]):
        tuning.remember(REQUEST, "cpu", among, "gemm")
        tune()
    assert timed == BOTH * 3


def test_a_gpu_counts_with_its_driver(monkeypatch):
    class Runtime:
        name, driver, cuda = b"GPU X", 13000, 12090

        getDevice = staticmethod(lambda: 0)  # noqa: N815
        getDeviceProperties = staticmethod(lambda device: dict(name=Runtime.name))  # noqa: N815
        driverGetVersion = staticmethod(lambda: Runtime.driver)  # noqa: N815
        runtimeGetVersion = staticmethod(lambda: Runtime.cuda)  # noqa: N815

    cupy = type("CuPy", (), {"cuda": type("cuda", (), {"runtime": Runtime})})
    monkeypatch.setattr(machine.jit, "require_cupy", lambda: cupy)
    monkeypatch.setattr(machine.jit, "current_arch", lambda: "sm_90")
    seen = [machine.fingerprint("cuda")]
    assert "GPU X, sm_90, driver 13000, CUDA 12090, kernels " in seen[0]
    for name, value in (("name", b"GPU Y"), ("driver", 13010), ("cuda", 13000)):
        monkeypatch.setattr(Runtime, name, value)
        seen.append(machine.fingerprint("cuda"))
    monkeypatch.setattr(machine.jit, "stamp", lambda: "other sources")
    seen.append(machine.fingerprint("cuda"))
    assert len(set(seen)) == 5


def test_requests_that_differ_have_texts_that_differ():
    """Every field of a request and of its problem shows: no request is taken for another."""
    base = Request("dgrad", ConvProblem.parse("n1c4h9w9 k4r3s3"), "float32")
    requests = dict(
        op="fprop", dtype="complex64", layout="channels_last", batched=False, flip=True, bias=True,
        activation="relu", accumulate=True, conjugate=True, conjugate_sum=True, precision="tf32",
    )  # fmt: skip
    problems = dict(
        n=2, c=8, k=8, input=(9, 8), filter=(3, 2), stride=(1, 2), dilation=(1, 2),
        padding=((0, 0), (0, 1)), groups=2, padding_mode="circular",
    )  # fmt: skip
    assert requests.keys() | {"problem", "inputs"} == {field.name for field in dataclasses.fields(Request)}
    assert problems.keys() == {field.name for field in dataclasses.fields(ConvProblem)}
    texts = {str(base)}
    texts |= {str(dataclasses.replace(base, **{name: value})) for name, value in requests.items()}
    for name, value in problems.items():
        problem = dataclasses.replace(base.problem, **{name: value})
        texts.add(str(dataclasses.replace(base, problem=problem)))
    sums = Request("fprop", base.problem, "int32")
    texts |= {str(dataclasses.replace(sums, inputs=inputs)) for inputs in (None, *2 * [("int8", "int32")])}
    texts.add(str(dataclasses.replace(sums, inputs=("int32", "int8"))))
    assert len(texts) == 1 + len(requests) + len(problems) + 3


WRITER = """
import sys
from cuconv import tuning
from cuconv.problem import ConvProblem, Request

for n in range(20):
    problem = ConvProblem.parse(f"n{n}c{sys.argv[1]}w9 k1s3")
    tuning.remember(Request("fprop", problem, "float32"), "cpu", ["gemm"], "gemm")
"""


def test_processes_that_write_at_once_lose_nothing(folder):
    command = [sys.executable, "-W", "error", "-c", WRITER]
    writers = [
        subprocess.Popen([*command, str(c)], cwd=Path(__file__).parents[1], stderr=subprocess.PIPE)
        for c in range(1, 5)
    ]
    for writer in writers:
        assert writer.communicate(timeout=120)[1] == b""
        assert writer.returncode == 0
    assert tuning.count() == len(os.listdir(folder)) == 80


def in_threads(count, work):
    """Run work(0), work(1) and so on at the same time."""
    start, failed = threading.Barrier(count), []

    def run(number):
        start.wait()
        try:
            work(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_threads_make_one_plan(path, timed):
    plans = [None] * 8

    def work(number):
        plans[number] = tune_again()

    in_threads(8, work)
    assert timed == BOTH
    assert all(plan is plans[0] for plan in plans)


def test_threads_that_write_at_once_lose_nothing(path):
    requests = [Request("fprop", ConvProblem.parse(f"n{n}c1w9 k1s3"), "float32") for n in range(40)]

    def work(number):
        for request in requests[number::4]:
            tuning.remember(request, "cpu", ["gemm"], "gemm")

    in_threads(4, work)
    assert all(tuning.remembered(request, "cpu", ["gemm"]) == "gemm" for request in requests)


def shapes(count):
    """Requests that differ."""
    return [Request("fprop", ConvProblem.parse(f"n{n}c1w9 k1s3"), "float32") for n in range(1, count + 1)]


def test_only_the_newest_are_kept(folder, monkeypatch):
    """With what a process that was killed left behind, and without what is not a winner."""
    monkeypatch.setattr(tuning, "LIMIT", 3)
    monkeypatch.setattr(tuning, "_EVERY", 1)
    requests = shapes(4)
    folder.mkdir(parents=True)
    others = {"cuconv-kernel", "cuconv-tuned-3-other.json", "photograph.jpeg"}
    left = f"{tuning.FORMAT}-0.json.0123"
    for age, name in enumerate((left, *others)):
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (age, age))
    for second, number in enumerate((0, 1, 0, 2, 3)):
        tuning.remember(requests[number], "cpu", CANDIDATES, "gemm")
        written = folder / tuning._name(requests[number], machine.fingerprint("cpu"))
        assert written.exists()
        os.utime(written, (1000 + second, 1000 + second))  # a file system's clock may be coarse
    known = [tuning.remembered(request, "cpu", CANDIDATES) for request in requests]
    assert known == ["gemm", None, "gemm", "gemm"]
    assert others < set(os.listdir(folder))
    assert len(os.listdir(folder)) == len(others) + 3


def test_what_cannot_be_removed_is_left(folder, monkeypatch):
    """In a folder that is shared with others, say, whose files they are."""
    monkeypatch.setattr(tuning, "LIMIT", 1)
    monkeypatch.setattr(tuning, "_EVERY", 1)
    stays, goes = (folder / f"{tuning.FORMAT}-{name}" for name in ("stays", "goes"))
    stays.mkdir(parents=True)
    goes.write_bytes(b"")
    os.utime(stays, (1, 1))
    os.utime(goes, (0, 0))
    tuning.remember(REQUEST, "cpu", CANDIDATES, "gemm")
    assert tuning.remembered(REQUEST, "cpu", CANDIDATES) == "gemm"
    assert len(os.listdir(folder)) == 2
    assert stays.is_dir()


def test_a_folder_that_cannot_be_listed(folder, monkeypatch):
    def fail(name):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))

    monkeypatch.setattr(tuning, "_EVERY", 1)
    monkeypatch.setattr(tuning.os, "listdir", fail)
    tuning.remember(REQUEST, "cpu", CANDIDATES, "gemm")
    assert tuning.remembered(REQUEST, "cpu", CANDIDATES) == "gemm"
    assert dict(info.findings()[0])["tuned"].startswith("not kept: ")


def test_a_new_shape_costs_one_small_file(folder, monkeypatch):
    """However many there are: each winner is read and written once, and the folder is listed now and then."""
    calls, sizes, listed = {"read": 0, "write": 0}, [], []
    read, write, listdir = kept.read, kept.write, os.listdir

    def counted_read(*arguments):
        calls["read"] += 1
        return read(*arguments)

    def counted_write(path, content):
        calls["write"] += 1
        sizes.append(len(content))
        write(path, content)

    monkeypatch.setattr(kept, "read", counted_read)
    monkeypatch.setattr(kept, "write", counted_write)
    monkeypatch.setattr(tuning.os, "listdir", lambda name: listed.append(name) or listdir(name))
    monkeypatch.setattr(tuning, "fingerprint", lambda backend: "this machine")
    requests = shapes(1500)
    for request in requests:
        assert tuning.remembered(request, "cpu", CANDIDATES) is None
        tuning.remember(request, "cpu", CANDIDATES, "gemm")
    assert calls == {"read": 1500, "write": 1500}
    assert max(sizes) < 1000
    assert len(listed) <= 7
    assert tuning.count() == 1500
    assert all(tuning.remembered(request, "cpu", CANDIDATES) == "gemm" for request in requests)


def test_winners_in_memory_are_bounded(folder, timed, monkeypatch):
    """The oldest goes, and is read again where its file was kept."""
    monkeypatch.setattr(sys.modules[Call.__module__], "_MOST_WINNERS", 2)
    first, *others = (dataclasses.replace(REQUEST, dtype=dtype) for dtype in ("float32", "float64", "int32"))
    tune(first)
    for request in others:
        tune_again(request)
    assert [request.dtype for request, *_ in _winners] == ["float64", "int32"]
    count = len(timed)
    prepared.forget()
    assert tune_again(first).why == "fastest when timed by an earlier process"
    assert len(timed) == count
    assert [request.dtype for request, *_ in _winners] == ["int32", "float32"]


WARNING = r"algorithm='tune' found cannot be kept .*set CUCONV_CACHE_DIR to a folder that can be written"


def test_a_folder_that_cannot_be_made(path, timed, tmp_path):
    (tmp_path / "new").write_text("a file")
    with pytest.warns(UserWarning, match=WARNING):
        winner = tune()
    assert tune_again() is winner  # in memory
    assert timed == BOTH
    tune(dataclasses.replace(REQUEST, dtype="float32"))  # warns no more
    assert dict(info.findings()[0])["tuned"].startswith("not kept: ")


@pytest.mark.parametrize("step", ["open", "replace"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_folder_that_cannot_be_written(folder, timed, monkeypatch, step, number):
    """What is in it counts; permissions do not stop the superuser, so that the call is what fails here."""
    tuning.remember(REQUEST, "cpu", CANDIDATES, "gemm")
    before = os.listdir(folder)

    def fail(name, how, **options):
        if how == "rb":
            return open(name, how, **options)
        raise OSError(number, os.strerror(number), str(name))

    monkeypatch.setattr(kept if step == "open" else kept.os, step, fail, raising=step != "open")
    assert tune().algorithm == "gemm"
    assert timed == []
    others = [dataclasses.replace(REQUEST, dtype=dtype) for dtype in ("float32", "complex64")]
    with pytest.warns(UserWarning, match=f"cannot be kept .*{os.strerror(number)}") as warned:
        tunes = [tune(request) for request in others]
    assert len(warned) == 1
    assert len(timed) == 2 * sum(len(exact_candidates(winner.request, "cpu")) for winner in tunes)
    assert os.listdir(folder) == before


def test_a_folder_that_is_removed_meanwhile(folder, timed):
    for _ in range(2):
        tune()
        shutil.rmtree(folder)
    assert timed == BOTH * 2
    tune()
    tune()
    assert timed == BOTH * 3


@pytest.mark.parametrize("plant", [os.symlink, os.link, lambda _, path: os.mkfifo(path)])
def test_what_else_has_the_files_name(path, timed, tmp_path, plant):
    """A planted link leads nowhere, a pipe is not waited for; all make room for the winner."""
    precious = tmp_path / "precious"
    content = damaged()[:-1] if plant is os.link else damaged()
    precious.write_bytes(content)
    path.parent.mkdir(parents=True)
    plant(precious, path)
    soon(tune)
    assert timed == BOTH
    assert precious.read_bytes() == content
    assert not path.is_symlink()
    assert path.is_file()
    tune()
    assert timed == BOTH


def test_a_folder_of_the_files_name_is_left_alone(path, timed):
    path.mkdir(parents=True)
    with pytest.warns(UserWarning, match=WARNING):
        tune()
    assert timed == BOTH
    assert path.is_dir()
    assert os.listdir(path.parent) == [path.name]


def test_no_file_of_others_is_locked_or_waited_for(folder, timed):
    """Not even one that another process holds locked, as versions before this one did."""
    fcntl = pytest.importorskip("fcntl")
    folder.mkdir(parents=True)
    tune()
    for name in (*os.listdir(folder), "cuconv-tuned-1.lock"):
        with open(folder / name, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert soon(tune).why == "fastest when timed by an earlier process"
            soon(lambda: [tuning.remember(REQUEST, "cpu", CANDIDATES, "gemm")])
    assert timed == BOTH


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no such signal")
def test_a_signal_handler_may_tune_meanwhile(folder, monkeypatch):
    """Here while the file of another winner is put in its place."""
    requests, replace = shapes(2), os.replace

    def interrupted(*names):
        if signal.getsignal(signal.SIGUSR1) is handler:
            signal.raise_signal(signal.SIGUSR1)
        replace(*names)

    def handler(*_):
        signal.signal(signal.SIGUSR1, before)
        tune_again(requests[1])

    before = signal.signal(signal.SIGUSR1, handler)
    monkeypatch.setattr(kept.os, "replace", interrupted)
    tune(requests[0])
    assert signal.getsignal(signal.SIGUSR1) is before
    assert [request for request, *_ in _winners] == requests[::-1]
    assert tuning.count() == 2


NOT_KEPT = """
import numpy as np
import cuconv
from cuconv.plan import _winners

x, w = np.ones((2, 6, 9, 9)), np.ones((6, 1, 3, 3))
for dtype in ("float64", "float32", "float64"):
    cuconv.conv(x.astype(dtype), w.astype(dtype), groups=6, algorithm="tune")
print(len(_winners), *cuconv.conv(x, w, groups=6, algorithm="tune").shape)
"""


@pytest.mark.parametrize("how", ["default", "always", "error"])
def test_what_cannot_be_kept_fails_no_call(tmp_path, how):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-W", how, "-c", NOT_KEPT]
    environment = dict(os.environ, CUCONV_CACHE_DIR=str(tmp_path / "file/folder"))
    run = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stdout) == (0, "2 2 6 7 7\n"), run.stderr
    assert run.stderr.count("cannot be kept") == 1


def test_the_folder(path, monkeypatch, tmp_path):
    monkeypatch.delenv("CUCONV_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tuning.folder() == tmp_path / "xdg/cuconv"
    monkeypatch.setattr(tuning.os.path, "expanduser", lambda name: name.replace("~", str(tmp_path)))
    for ignored in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert tuning.folder() == tmp_path / ".cache/cuconv"
    monkeypatch.setattr(tuning.os.path, "expanduser", lambda name: name)  # what it does without a home
    assert tuning.folder() is None
    assert tuning.remembered(REQUEST, "cpu", CANDIDATES) is None
    with pytest.warns(UserWarning, match=r"cannot be kept \(there is no home folder\)"):
        tuning.remember(REQUEST, "cpu", CANDIDATES, "gemm")
    assert "CUCONV_CACHE_DIR is not set" in dict(info.findings()[0])["tuned"]


def test_info_shows_the_folder(folder):
    assert dict(info.findings()[0])["tuned"] == f"{folder}, 0 winners"
    tuning.remember(REQUEST, "cpu", CANDIDATES, "gemm")
    (folder / f"{tuning.FORMAT}-0.json.0123").write_bytes(b"")
    assert dict(info.findings()[0])["tuned"] == f"{folder}, 1 winner"


def test_the_tests_keep_out_of_the_users_folder(monkeypatch):
    used = tuning.folder()
    monkeypatch.delenv("CUCONV_CACHE_DIR")
    assert tuning.folder() != used
