"""What `algorithm="tune"` remembers: across processes and threads, and never from a damaged or stale file."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import cuconv
from cuconv import info, machine, tuning
from cuconv.plan import Call, _winners, current_arch, exact_candidates
from cuconv.problem import ConvProblem, Request

REQUEST = Request("fprop", ConvProblem.parse("n2c6h9w9 k6r3s3 g6"), "float64")
CANDIDATES = [entry.name for entry in exact_candidates(REQUEST, "cpu")]


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Where winners are kept, in a folder that is yet to be made; nothing is remembered."""
    monkeypatch.setenv("CUCONV_CACHE_DIR", str(tmp_path / "new/folder"))
    _winners.clear()
    yield tuning.file()
    _winners.clear()


@pytest.fixture
def timed(monkeypatch):
    """The algorithms that are timed, in order."""
    names, seconds = [], Call._seconds
    monkeypatch.setattr(
        Call, "_seconds", lambda call, *rest: names.append(rest[0].algorithm) or seconds(call, *rest)
    )
    return names


def tune(request=REQUEST):
    """Tune a request as another process would, which has the file only."""
    _winners.clear()
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
        "format": "cuconv-tuned-1",
        "winners": {
            machine.fingerprint("cpu"): {
                "fprop float64 channels_first n2c6h9w9 k6r3s3 g6": {
                    "algorithm": winner.algorithm,
                    "among": CANDIDATES,
                }
            }
        },
    }
    assert sorted(os.listdir(path.parent)) == ["cuconv-tuned-1.json", "cuconv-tuned-1.lock"]
    again = tune()
    assert (again.algorithm, again.why) == (winner.algorithm, "fastest when timed by an earlier process")
    assert timed == BOTH


def test_the_remembered_one_is_taken_whatever_is_faster(path, timed):
    for name in CANDIDATES:
        tuning.remember(REQUEST, "cpu", CANDIDATES, name)
        assert tune().algorithm == name
    assert timed == []


def test_a_repeated_call_reads_nothing(path, timed, monkeypatch):
    first = tune()
    monkeypatch.setattr(tuning, "read", None)
    monkeypatch.setattr(tuning, "fingerprint", None)
    assert tune_again() is first


def damaged(change):
    """The file of one winner, as bytes, after a change of its content."""
    entry = {"algorithm": "gemm", "among": CANDIDATES}
    content = {
        "format": tuning.FORMAT,
        "winners": {machine.fingerprint("cpu"): {str(REQUEST): entry}},
    }
    return json.dumps(change(content, entry) or content).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda content, entry: [content],
        lambda content, entry: "text",
        lambda content, entry: 7,
        lambda content, entry: {"winners": content["winners"]},
        lambda content, entry: {"format": tuning.FORMAT},
        lambda content, entry: content.update(format="cuconv-tuned-2"),
        lambda content, entry: content.update(format=1),
        lambda content, entry: content.update(winners=[content["winners"]]),
        lambda content, entry: content.update(winners=None),
        lambda content, entry: content["winners"].update({machine.fingerprint("cpu"): [entry]}),
        lambda content, entry: content["winners"][machine.fingerprint("cpu")].update({str(REQUEST): []}),
        lambda content, entry: entry.clear(),
        lambda content, entry: entry.update(more=1),
        lambda content, entry: entry.update(algorithm="unknown"),
        lambda content, entry: entry.update(algorithm="unknown", among=["unknown"]),
        lambda content, entry: entry.update(algorithm=["gemm"]),
        lambda content, entry: entry.update(algorithm=None, among=[None]),
        lambda content, entry: entry.update(among=", ".join(CANDIDATES)),
        lambda content, entry: entry.update(among={"gemm": 1}),
        lambda content, entry: entry.update(among=None),
    ],
    ids=range(20),
)
def test_a_file_of_another_structure_is_rebuilt(path, timed, change):
    rebuilt_from(damaged(change), path, timed)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        damaged(lambda *_: None)[:-1],
        damaged(lambda *_: None)[:80],
        damaged(lambda *_: None) + b"}",
        b"\0" * 4096,
        bytes(range(256)),
        b"[" * 200_000,
        b'{"format": ' + b"9" * 10_000 + b"}",
    ],
    ids=range(9),
)
def test_a_file_that_is_not_json_is_rebuilt(path, timed, content):
    rebuilt_from(content, path, timed)


def rebuilt_from(content, path, timed):
    """It is not trusted, not an error, and whole again after the next winner."""
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    tune()
    assert timed == BOTH
    tune()
    assert timed == BOTH


def test_the_sound_file_of_these_tests_is_trusted(path, timed):
    path.parent.mkdir(parents=True)
    path.write_bytes(damaged(lambda *_: None))
    assert tune().algorithm == "gemm"
    assert timed == []


def test_one_damaged_winner_leaves_the_others(path):
    others = [dataclasses.replace(REQUEST, flip=True), dataclasses.replace(REQUEST, bias=True)]
    for request in others:
        tuning.remember(request, "cpu", CANDIDATES, "gemm")
    content = json.loads(path.read_text())
    next(iter(content["winners"].values()))[str(others[0])]["algorithm"] = 0
    content["winners"]["another machine"] = 0
    path.write_text(json.dumps(content))
    tuning.remember(REQUEST, "cpu", CANDIDATES, "gemm")
    kept = [tuning.remembered(request, "cpu", CANDIDATES) for request in (*others, REQUEST)]
    assert kept == [None, "gemm", "gemm"]


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
        activation="relu", accumulate=True, conjugate=True, precision="tf32",
    )  # fmt: skip
    problems = dict(
        n=2, c=8, k=8, input=(9, 8), filter=(3, 2), stride=(1, 2), dilation=(1, 2),
        padding=((0, 0), (0, 1)), groups=2, padding_mode="circular",
    )  # fmt: skip
    assert requests.keys() | {"problem"} == {field.name for field in dataclasses.fields(Request)}
    assert problems.keys() == {field.name for field in dataclasses.fields(ConvProblem)}
    texts = {str(base)}
    texts |= {str(dataclasses.replace(base, **{name: value})) for name, value in requests.items()}
    for name, value in problems.items():
        problem = dataclasses.replace(base.problem, **{name: value})
        texts.add(str(dataclasses.replace(base, problem=problem)))
    assert len(texts) == 1 + len(requests) + len(problems)


WRITER = """
import sys
from cuconv import tuning
from cuconv.problem import ConvProblem, Request

for n in range(20):
    problem = ConvProblem.parse(f"n{n}c{sys.argv[1]}w9 k1s3")
    tuning.remember(Request("fprop", problem, "float32"), "cpu", ["gemm"], "gemm")
"""


def test_processes_that_write_at_once_lose_nothing(path):
    command = [sys.executable, "-W", "error", "-c", WRITER]
    writers = [
        subprocess.Popen([*command, str(c)], cwd=Path(__file__).parents[1], stderr=subprocess.PIPE)
        for c in range(1, 5)
    ]
    for writer in writers:
        assert writer.communicate(timeout=120)[1] == b""
        assert writer.returncode == 0
    assert sum(map(len, tuning.read(path).values())) == 80


def test_a_process_that_dies_leaves_no_lock_behind(path):
    path.parent.mkdir(parents=True)
    program = f"""
import os
from pathlib import Path
from cuconv import tuning

path = Path({str(path)!r})
path.with_suffix(".new").write_text("half a fi")
with tuning._locked(path.with_suffix(".lock")):
    os._exit(0)
"""
    process(program)
    tuning.remember(REQUEST, "cpu", CANDIDATES, "gemm")
    assert tuning.remembered(REQUEST, "cpu", CANDIDATES) == "gemm"


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


def test_only_the_newest_are_kept(path, monkeypatch):
    monkeypatch.setattr(tuning, "LIMIT", 2)
    requests = [dataclasses.replace(REQUEST, dtype=dtype) for dtype in ("float32", "float64", "int32")]
    for request in (requests[0], *requests[:2], requests[0], requests[2]):
        tuning.remember(request, "cpu", CANDIDATES, "gemm")
    kept = [tuning.remembered(request, "cpu", CANDIDATES) for request in requests]
    assert kept == ["gemm", None, "gemm"]


WARNING = r"algorithm='tune' found cannot be kept .*set CUCONV_CACHE_DIR to a folder that can be written"


def test_a_folder_that_cannot_be_made(path, timed, tmp_path):
    (tmp_path / "new").write_text("a file")
    with pytest.warns(UserWarning, match=WARNING):
        winner = tune()
    assert tune_again() is winner  # in memory
    assert timed == BOTH


def test_a_folder_that_cannot_be_written(path, timed, monkeypatch):
    """What is in it counts; permissions do not stop the superuser, so that opening is what fails here."""
    tuning.remember(REQUEST, "cpu", CANDIDATES, "gemm")
    before = path.read_bytes()

    def read_only(file, mode):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(tuning, "open", read_only, raising=False)
    assert tune().algorithm == "gemm"
    assert timed == []
    with pytest.warns(UserWarning, match=r"cannot be kept .*Permission denied"):
        tune(dataclasses.replace(REQUEST, dtype="float32"))
    assert timed == BOTH
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_read_is_left_alone(path, timed):
    path.mkdir(parents=True)
    with pytest.warns(UserWarning, match=WARNING):
        tune()
    assert timed == BOTH
    assert path.is_dir()
    assert dict(info.findings()[0])["tuned"].startswith("not kept: ")


def test_who_replaces_the_file_waits_for_readers(path, monkeypatch):
    """On Windows a file that somebody reads cannot be replaced."""
    refusals, replace = [1, 1], os.replace

    def busy(*paths):
        if refusals:
            refusals.pop()
            raise PermissionError(13, "Permission denied")
        replace(*paths)

    monkeypatch.setattr(tuning.os, "replace", busy)
    tuning.remember(REQUEST, "cpu", CANDIDATES, "gemm")
    assert tuning.remembered(REQUEST, "cpu", CANDIDATES) == "gemm"


def test_the_folder(path, monkeypatch, tmp_path):
    monkeypatch.delenv("CUCONV_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tuning.file() == tmp_path / "xdg/cuconv/cuconv-tuned-1.json"
    monkeypatch.setattr(tuning.os.path, "expanduser", lambda name: name.replace("~", str(tmp_path)))
    for ignored in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert tuning.file() == tmp_path / ".cache/cuconv/cuconv-tuned-1.json"
    monkeypatch.setattr(tuning.os.path, "expanduser", lambda name: name)  # what it does without a home
    assert tuning.file() is None
    assert tuning.remembered(REQUEST, "cpu", CANDIDATES) is None
    with pytest.warns(UserWarning, match=r"cannot be kept \(there is no home folder\)"):
        tuning.remember(REQUEST, "cpu", CANDIDATES, "gemm")
    assert "CUCONV_CACHE_DIR is not set" in dict(info.findings()[0])["tuned"]


def test_info_shows_the_file(path):
    assert dict(info.findings()[0])["tuned"] == f"{path}, 0 winners"
    tuning.remember(REQUEST, "cpu", CANDIDATES, "gemm")
    assert dict(info.findings()[0])["tuned"] == f"{path}, 1 winner"


def test_the_tests_keep_out_of_the_users_folder(monkeypatch):
    used = tuning.file()
    monkeypatch.delenv("CUCONV_CACHE_DIR")
    assert tuning.file() != used
