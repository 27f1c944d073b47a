"""The commands that prepare for later processes: tune and compile; and what all commands share."""

import importlib.machinery
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cuconv
from cuconv import tuning
from cuconv.cli import arguments, bench, check, clock, compile, demo, info, report, tune
from cuconv.cli.arguments import STATUS
from cuconv.cli.main import COMMANDS, main
from cuconv.cuda import algorithms, jit, launch
from cuconv.dtypes import DTYPES
from cuconv.plan import TABLES, Call, forget
from cuconv.problem import OPS, ConvProblem

from . import compiler, test_jit
from .test_cli import started
from .test_kept import soon

LINES = ("n2c4h9w9 k4r3s3 p1", "n1c1w64 k1s5 p2")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where winners are kept, a folder that is yet to be made; nothing is remembered yet."""
    monkeypatch.setenv("CUCONV_CACHE_DIR", str(tmp_path / "winners"))
    monkeypatch.setattr(jit, "usable_cupy", lambda: None)
    monkeypatch.setattr(clock.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(tune, "SECONDS", 0)
    forget()
    yield tmp_path / "winners"
    forget()


def told(capsys, *arguments, status=0):
    """The document that a command prints with --json."""
    assert main([*arguments, "--json"]) == status
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def failed(capsys, *arguments, status=2):
    """What a command that does not go on says of it, as one line."""
    try:
        ended = main([*arguments])
    except SystemExit as end:
        ended = end.code
    captured = capsys.readouterr()
    assert (ended, captured.out) == (status, "")
    return " ".join(captured.err.split())


# -- tune ---------------------------------------------------------------------------------------------


def test_tune_fills_the_folder_that_calls_look_into(folder, timed, capsys):
    found = told(capsys, "tune", *LINES, "--op", "fprop", "--op", "wgrad")
    assert [(row["problem"], row["op"]) for row in found["rows"]] == [
        (line, op) for line in LINES for op in ("fprop", "wgrad")
    ]
    assert (found["folder"], found["timed"], found["remembered"], found["failed"]) == (str(folder), 4, 0, 0)
    assert len(os.listdir(folder)) == 4
    for row in found["rows"]:
        assert row["winner_seconds"] > 0
        assert row["auto_seconds"] > 0
        assert (row["dtype"], row["layout"], row["error"]) == ("float32", "channels_first", None)
    assert timed != []
    forget()
    timed.clear()
    for row in found["rows"]:
        problem = ConvProblem.parse(row["problem"])
        x, w, dy = (
            np.ones(shape, np.float32) for shape in (problem.x_shape(), problem.w_shape(), problem.y_shape())
        )
        if row["op"] == "fprop":
            cuconv.conv(x, w, **problem.options(), algorithm="tune")
        else:
            cuconv.conv_weight_grad(x, dy, w.shape, **problem.options(), algorithm="tune")
    assert timed == []


def test_tune_does_every_op_dtype_and_layout_that_is_asked_for(folder, capsys):
    words = "--dtype float64 --dtype complex64 --layout channels_first --layout channels_last"
    found = told(capsys, "tune", LINES[0], LINES[0], *shlex.split(words))
    assert [(row["dtype"], row["layout"], row["op"]) for row in found["rows"]] == [
        (dtype, layout, op)
        for dtype in ("float64", "complex64")
        for layout in ("channels_first", "channels_last")
        for op in OPS[:3]
    ]


def test_tune_says_what_is_remembered_and_times_it_again_if_asked(folder, timed, capsys):
    command = ("tune", LINES[0], "--op", "dgrad")
    (first,) = told(capsys, *command)["rows"]
    timed.clear()
    assert main([*command]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"dgrad +{first['winner']} +remembered", text)
    assert "0 timed, 1 remembered, 0 failed." in text
    assert f"The winners are in {folder}." in text
    assert timed == []
    (row,) = told(capsys, *command)["rows"]
    assert (row["remembered"], row["winner"], row["winner_seconds"]) == (True, first["winner"], None)
    (row,) = told(capsys, *command, "--again")["rows"]
    assert row["remembered"] is False
    assert timed != []
    assert len(os.listdir(folder)) == 1


def test_an_interrupted_second_timing_leaves_the_first_winner(folder, monkeypatch, capsys):
    command = ("tune", LINES[0], "--op", "fprop")
    (first,) = told(capsys, *command)["rows"]
    before = [path.read_bytes() for path in folder.iterdir()]

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Call, "_seconds", interrupted)
        assert main([*command, "--again"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert [path.read_bytes() for path in folder.iterdir()] == before
    (row,) = told(capsys, *command)["rows"]
    assert (row["remembered"], row["winner"]) == (True, first["winner"])


def test_tune_reads_a_list(folder, tmp_path, capsys, monkeypatch):
    """Of a file or of standard input, each problem once, whatever stands around it."""
    (tmp_path / "list.txt").write_text(f"# a comment\n\n{LINES[1]}   # more\r\n  {LINES[0]}\n{LINES[1]}")
    rows = told(capsys, "tune", "--from", str(tmp_path / "list.txt"), "--op", "fprop")["rows"]
    assert [row["problem"] for row in rows] == [LINES[1], LINES[0]]
    rows = told(capsys, "tune", LINES[0], "--from", str(tmp_path / "list.txt"), "--op", "fprop")["rows"]
    assert [row["problem"] for row in rows] == [*LINES]
    with open(tmp_path / "list.txt") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert len(told(capsys, "tune", "--from", "-", "--op", "fprop")["rows"]) == 2


def test_the_lists_of_the_benchmarks_can_be_read(capsys, monkeypatch):
    monkeypatch.setattr(tune, "_tuned", lambda listed, *_: {"failed": 0, "problems": len(listed)})
    for path in (Path(__file__).parents[1] / "benchmarks/problems").glob("*.txt"):
        lines = [line for line in path.read_text().splitlines() if line.partition("#")[0].strip()]
        assert told(capsys, "tune", "--from", str(path))["problems"] == len(set(lines)) > 0


def test_tune_takes_the_problems_of_bench(folder, capsys, monkeypatch):
    monkeypatch.setattr(arguments, "PROBLEMS", LINES)
    rows = told(capsys, "tune", "--bench", "--op", "fprop")["rows"]
    assert [row["problem"] for row in rows] == [*LINES]


@pytest.mark.parametrize("command", ["tune", "compile"])
def test_a_list_that_is_wrong_is_named_with_its_line(folder, tmp_path, capsys, command):
    path = tmp_path / "list.txt"
    for content, words in (
        (f"{LINES[0]}\n\nn2c4 k4s3\n".encode(), "line 3: no input extent"),
        (b"\xff\xfe\n", "is not a text"),
        (b"# nothing\n\n", "no problem is given"),
        (b"#" * (1 << 20) + b"\n", "must have at most 1,048,576 bytes"),
    ):
        path.write_bytes(content)
        message = failed(capsys, command, "--from", str(path))
        assert words in message
        assert words == "no problem is given" or f"--from {str(path)!r}" in message
    assert "cannot be read: No such file" in failed(capsys, command, "--from", str(tmp_path / "none"))
    assert "cannot be read: Is a directory" in failed(capsys, command, "--from", str(tmp_path))
    assert "no problem is given" in failed(capsys, command)
    assert not folder.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_list_may_come_by_a_pipe(folder, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    writer = subprocess.Popen(["sh", "-c", f"echo '{LINES[0]}' > {shlex.quote(str(tmp_path / 'pipe'))}"])
    assert soon(main, ["tune", "--from", str(tmp_path / "pipe"), "--op", "fprop"]) == 0
    assert writer.wait() == 0


def test_tune_refuses_before_it_times_where_nothing_can_be_kept(folder, timed, monkeypatch, capsys):
    folder.write_text("a file")
    message = failed(capsys, "tune", LINES[0], status=1)
    assert message.startswith(f"cuconv: winners cannot be kept in {folder} (")
    assert message.endswith("set CUCONV_CACHE_DIR to a folder that can be written")
    monkeypatch.setattr(tuning, "folder", lambda: None)
    assert "(there is no home folder)" in failed(capsys, "tune", LINES[0], status=1)
    assert timed == []


def test_tune_says_which_winner_could_not_be_kept(folder, monkeypatch, capsys):
    """A disk that is full, say; the others are tuned."""
    write, left = tuning.kept.write, [0]

    def full(path, content):
        left[0] += 1
        if left[0] == 1:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(tuning.kept, "write", full)
    tuning.kept.warn.cache_clear()
    with pytest.warns(UserWarning, match="No space left"):
        found = told(capsys, "tune", *LINES, "--op", "fprop", status=1)
    assert [row["error"] for row in found["rows"]] == [f"its winner could not be kept in {folder}", None]
    assert (found["timed"], found["failed"]) == (1, 1)


def test_a_problem_that_is_too_large_is_said_so_and_the_rest_goes_on(folder, monkeypatch, capsys):
    """Before any of its memory is taken."""
    made, operands = [], tune.timed_calls.operands
    monkeypatch.setattr(
        tune.timed_calls, "operands", lambda *what: made.append(str(what[0])) or operands(*what)
    )
    huge = "n1000000000c3h1000w1000 k1r3s3"
    assert main(["tune", huge, LINES[0], "--op", "fprop"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"fprop failed: not enough memory: it takes [\d,]{17,} bytes, and [\d,]+ are free", text)
    assert "1 timed, 0 remembered, 1 failed." in text
    assert made == [LINES[0]]


def test_the_memory_that_is_asked_for_is_that_of_operands_results_and_workspace(folder, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(tune, "_free_on_host", lambda: asked.append(1) and None)
    assert main(["tune", LINES[0], "--op", "fprop"]) == 0
    assert asked
    problem, forgotten = ConvProblem.parse(LINES[0]), capsys.readouterr()
    assert forgotten.out
    arrays = [np.prod(shape) for shape in (problem.x_shape(), problem.w_shape(), problem.y_shape())]
    least = 4 * (sum(arrays) + 2 * arrays[2])
    for free, status in ((least - 1, 1), (1 << 30, 0)):
        monkeypatch.setattr(tune, "_free_on_host", lambda free=free: free)
        assert main(["tune", LINES[0], "--op", "fprop", "--again"]) == status
    assert f"it takes {least:,} bytes, and {least - 1:,} are free" in capsys.readouterr().out


def test_what_there_is_no_memory_for_is_said_in_its_row(folder, monkeypatch, capsys):
    def none(*_):
        raise MemoryError("Unable to allocate 8 EiB\nfor an array")

    monkeypatch.setattr(tune.timed_calls, "operands", none)
    (row,) = told(capsys, "tune", LINES[0], "--op", "fprop", status=1)["rows"]
    assert row["error"] == "not enough memory: Unable to allocate 8 EiB"


def test_whatever_a_call_raises_the_others_are_tuned(folder, monkeypatch, capsys):
    ours = tune.timed_calls.ours

    def odd(task, name):
        if task.op == "fprop":
            raise OverflowError("Python int too large to convert to C long\nand more")
        return ours(task, name)

    monkeypatch.setattr(tune.timed_calls, "ours", odd)
    rows = told(capsys, "tune", LINES[0], status=1)["rows"]
    assert [row["error"] for row in rows] == [
        "OverflowError: Python int too large to convert to C long", None, None
    ]  # fmt: skip


def test_free_memory_is_known_on_linux():
    free = tune._free_on_host()
    if sys.platform == "linux":
        assert 1 << 20 < free < 1 << 50


@pytest.mark.parametrize(("limit", "used"), [("1073741824", "73741824"), ("max", "0")])
def test_free_memory_of_a_container_is_what_it_has_not_taken(tmp_path, monkeypatch, limit, used):
    for name, content in (("limit", limit), ("used", used)):
        (tmp_path / name).write_text(f"{content}\n")
    monkeypatch.setattr(tune, "_CGROUP", [(tmp_path / "limit", tmp_path / "used")])
    free = tune._free_on_host()
    assert free == 1000000000 or limit == "max"


def test_a_list_by_an_editor_that_marks_its_encoding(folder, tmp_path, capsys):
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbf" + LINES[0].encode())
    (row,) = told(capsys, "tune", "--from", str(tmp_path / "list"), "--op", "fprop")["rows"]
    assert row["problem"] == LINES[0]


def test_without_an_error_stream_a_document_is_all_that_is_printed(folder):
    command = [sys.executable, "-m", "cuconv", "tune", LINES[0], "--op", "fprop", "--json"]
    run = subprocess.run([sys.executable, "-c", CLOSED, *command], stdout=subprocess.PIPE, text=True)
    assert run.returncode == 0
    assert json.loads(run.stdout)["timed"] == 1


CLOSED = "import os, sys; os.close(2); os.execv(sys.argv[1], sys.argv[1:])"
"""A program that starts another without a standard error stream."""


def test_the_ways_to_avoid_are_kept_to(folder, monkeypatch, capsys, fresh_plans):
    monkeypatch.setenv("CUCONV_AVOID", "gemm,mec,im2col,toeplitz,depthwise")
    (row,) = told(capsys, "tune", LINES[0], "--op", "fprop", status=1)["rows"]
    assert row["error"].startswith("CUCONV_AVOID leaves nothing that does fprop")


EMULATED = """
import sys
from cuconv.cli.main import main
from tests import emulated_device
with emulated_device.installed():
    import cupy
    cupy.cuda.runtime.memGetInfo = lambda: (1 << 20, 1 << 21)
    emulated_device.Pool.free_bytes = lambda pool: 0
    sys.exit(main(sys.argv[1:]))
"""


def test_tune_on_a_gpu(tmp_path):
    """An emulated one: CuPy's arrays and its memory, and the winners of that GPU."""
    too_large = "n64c8h16w16 k8r3s3"
    words = ["tune", too_large, "n1c2h5w5 k2r3s3 p1", "--op", "fprop", "--json"]
    command = [sys.executable, "-c", EMULATED, *words]
    environment = {**os.environ, "CUCONV_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1]
    )
    assert run.returncode == 1, run.stderr
    found = json.loads(run.stdout)
    assert found["on"].startswith("Emulated device (sm_90)")
    assert found["rows"][0]["error"].endswith("and 1,048,576 are free")
    assert found["rows"][1]["winner"] in [entry.name for entry in TABLES["cuda"]["fprop"]]
    (path,) = tmp_path.iterdir()
    assert "Emulated device" in json.loads(path.read_text())["machine"]


# -- compile ------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(sys.platform != "linux", reason="NVRTC's wheel is taken from Linux's folders")
SMALL = "n1c2w9 k4s3 p1"


@pytest.fixture
def cupy(monkeypatch, tmp_path):
    """CuPy, as far as a kernel's way to the driver needs it, on a machine with one GPU of sm_80."""
    for name in ("CUPY_CACHE_IN_MEMORY", "CUCONV_KERNEL_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    module = test_jit.CuPy()
    module.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    monkeypatch.setitem(sys.modules, "cupy", module)
    test_jit.forget()
    yield module
    test_jit.forget()
    assert module.programs == []


def launched(line, op, arch, **options):
    """The kernels that a call would launch."""
    problem = ConvProblem.parse(line)
    shapes = problem.x_shape(), problem.w_shape()
    plan = cuconv.plan(op, *shapes, **problem.options(), backend="cuda", device=arch, **options)
    return [each.kernel for each in plan.launches]


@linux
def test_a_call_compiles_nothing_that_was_compiled_ahead(cupy, tmp_path, capsys):
    found = told(capsys, "compile", SMALL)
    kernels = [kernel for op in OPS for kernel in launched(SMALL, op, "sm_80")]
    assert [row["kernel"] for row in found["rows"]] == list(dict.fromkeys(kernel.name for kernel in kernels))
    assert sorted(row["file"] for row in found["rows"]) == sorted(os.listdir(tmp_path / "cache"))
    assert found["compiled"] == len(cupy.compiled) == len(found["rows"]) > 0
    assert (found["kept"], found["failed"], found["folder"]) == (0, 0, str(tmp_path / "cache"))
    assert found["bytes"] == sum(row["bytes"] for row in found["rows"]) > 0
    test_jit.forget()
    cupy.compiled.clear()
    for kernel in kernels:
        assert jit.function(kernel, 0).code.startswith(b"\x7fELF")
    assert cupy.compiled == []


@linux
@pytest.mark.parametrize("in_memory", ["", "1"])
def test_a_folder_that_a_container_carries(cupy, tmp_path, monkeypatch, capsys, in_memory):
    """It is read and never written, whatever else is kept; what is not in it goes where it always did."""
    carried = tmp_path / "carried"
    told(capsys, "compile", SMALL, "--op", "fprop", "--out", str(carried))
    before = sorted(os.listdir(carried))
    assert before != []
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("CUCONV_KERNEL_DIR", str(carried))
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", in_memory)
    test_jit.forget()
    cupy.compiled.clear()
    (kernel,) = launched(SMALL, "fprop", "sm_80")
    assert jit.function(kernel, 0).code
    assert cupy.compiled == []
    assert not (tmp_path / "cache").exists()
    (other,) = launched(SMALL, "fprop", "sm_80", dtype="int32")
    assert jit.function(other, 0).code
    assert len(cupy.compiled) == 1
    assert (tmp_path / "cache").exists() == (in_memory == "")
    assert sorted(os.listdir(carried)) == before


@linux
def test_what_is_there_and_sound_is_not_compiled_again(cupy, tmp_path, capsys):
    command = ("compile", SMALL, "--op", "fprop", "--device", "sm_90", "--out", str(tmp_path / "out"))
    first = told(capsys, *command)
    cupy.compiled.clear()
    again = told(capsys, *command)
    assert (again["compiled"], again["kept"], cupy.compiled) == (0, len(first["rows"]), [])
    assert [(row["kept"], row["seconds"]) for row in again["rows"]] == [(True, 0)] * len(first["rows"])
    assert again["bytes"] == first["bytes"]
    path = tmp_path / "out" / first["rows"][0]["file"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert main([*command]) == 0
    assert re.search(r"\n1 compiled, \d+ kept, 0 failed: [\d,]+ bytes, \d+\.\d s\n$", capsys.readouterr().out)
    assert path.read_bytes() == whole


@linux
def test_an_architecture_that_nvrtc_knows_as_ptx_only(cupy, tmp_path, capsys):
    device = "sm_88"
    assert int(device[3:]) not in compiler.known()
    command = ("compile", SMALL, "--op", "fprop", "--device", device, "--out", str(tmp_path / "out"))
    assert main([*command]) == 0
    assert re.search(rf"(?m)^{device} .* \d+\.\d\d  conv_\w+ as PTX$", capsys.readouterr().out)
    (row,) = told(capsys, *command)["rows"]
    assert (row["architecture"], row["target"], row["kept"]) == (device, "compute_87", True)


@linux
def test_two_architectures_are_compiled_with_their_own_options(cupy, capsys):
    found = told(capsys, "compile", SMALL, "--op", "fprop", "--device", "sm_75", "--device", "sm_90")
    assert [row["architecture"] for row in found["rows"]] == ["sm_75", "sm_90"]
    assert sorted(cupy.compiled) == sorted([jit.options("sm_75"), jit.options("sm_90a")])


def test_tune_is_all_that_would_be_timed(cupy, monkeypatch, capsys):
    monkeypatch.setattr(compile, "_compiled", lambda cupy, jobs, *_: {"failed": 0, "jobs": jobs})
    monkeypatch.setattr(report, "write", lambda document: asked.append(document["jobs"]))
    line, asked = "n2c8h9w9 k8r3s3 g8", []
    for algorithm in ("auto", "tune", "simt"):
        assert main(["compile", line, "--op", "fprop", "--algorithm", algorithm, "--json"]) == 0
    auto, tuned, simt = ({kernel.template for _, kernel in jobs} for jobs in asked)
    assert auto | simt < tuned
    assert "conv_fprop_simt" in simt


def test_all_is_every_kernel_that_an_architecture_can_have(cupy, monkeypatch, capsys):
    monkeypatch.setattr(compile, "_compiled", lambda cupy, jobs, *_: {"failed": 0, "jobs": jobs})
    monkeypatch.setattr(report, "write", lambda document: asked.append(document["jobs"]))
    asked = []
    for capability in (75, 80, 120):
        assert main(["compile", "--all", "--device", f"sm_{capability}", "--json"]) == 0
        expected = [kernel for kernel in algorithms.kernels() if capability in compiler.capabilities(kernel)]
        assert [kernel for _, kernel in asked.pop()] == expected


def test_plans_need_no_other_kernels_than_their_own():
    """What launches of a plan are is what is compiled: those of `launch` have no kernel beside it."""
    source = Path(launch.__file__).read_text()
    assert source.count("jit.function(") == source.count("jit.function(launch.kernel, ")


@linux
def test_a_kernel_that_does_not_compile_is_reported_and_the_rest_goes_on(cupy, monkeypatch, capsys):
    compiled = jit.compiled

    def broken(nvrtc, source, target):
        if "reduce" in source:
            raise RuntimeError("NVRTC_ERROR_COMPILATION\nthe log")
        return compiled(nvrtc, source, target)

    monkeypatch.setattr(jit, "compiled", broken)
    line = "n4c16h28w28 k16r3s3 p1"
    found = told(capsys, "compile", line, "--op", "wgrad", status=1)
    errors = {row["kernel"]: row["error"] for row in found["rows"] if row["error"]}
    assert list(errors) == ["conv_reduce_float_float"]
    assert "please report this as a bug in cuconv" in errors["conv_reduce_float_float"]
    assert errors["conv_reduce_float_float"].endswith("the log")
    assert (found["failed"], found["compiled"]) == (1, len(found["rows"]) - 1)


def test_a_full_disk_fails_the_kernel(cupy, monkeypatch, capsys):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jit, "compiled", lambda *_: b"code\n.")
    monkeypatch.setattr(jit.kept, "write", full)
    assert main(["compile", SMALL, "--op", "fprop"]) == 1
    assert re.search(r"sm_80 +failed  conv_\w+: .*No space left on device", capsys.readouterr().out)


def test_compile_says_what_is_missing(cupy, monkeypatch, tmp_path, capsys):
    assert "no problem is given" in failed(capsys, "compile")
    message = failed(capsys, "compile", SMALL, "--device", "sm_7")
    assert "--device must be an architecture from sm_75 on" in message
    assert "algorithm must be one of" in failed(capsys, "compile", SMALL, "--algorithm", "direkt")
    (tmp_path / "file").write_text("")
    message = failed(capsys, "compile", SMALL, "--out", str(tmp_path / "file"), status=1)
    assert message.startswith(f"cuconv: kernels cannot be kept in {tmp_path / 'file'} (")
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "1")
    assert "name a folder by --out" in failed(capsys, "compile", SMALL)
    monkeypatch.delenv("CUPY_CACHE_IN_MEMORY")
    cupy.cuda.nvrtc.getVersion = lambda: (_ for _ in ()).throw(RuntimeError("no libnvrtc.so.12"))
    message = failed(capsys, "compile", SMALL, status=1)
    assert "compiling needs NVRTC, which CuPy cannot load (no libnvrtc.so.12): pip install" in message
    cupy.cuda.runtime.is_hip = True
    assert "AMD" in failed(capsys, "compile", SMALL, "--device", "sm_80", status=1)
    monkeypatch.setitem(sys.modules, "cupy", None)
    test_jit.forget()
    assert "name an architecture, as --device sm_80" in failed(capsys, "compile", SMALL)
    message = failed(capsys, "compile", SMALL, "--device", "sm_80", status=1)
    assert "compiling needs CuPy, which cannot be imported" in message
    assert "pip install 'cuconv[cuda12]', or 'cuconv[cuda13]'" in message
    assert not (tmp_path / "cache").exists()


def test_an_interrupt_ends_compiling(cupy, monkeypatch, tmp_path, capsys):
    calls = []

    def interrupted(*_):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(jit, "built", interrupted)
    assert soon(main, ["compile", "--all"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert len(calls) < len(algorithms.kernels())


@linux
def test_cupy_itself_compiles_ahead(tmp_path, capsys):
    """Needs no GPU."""
    pytest.importorskip("cupy", exc_type=ImportError)
    command = ("compile", SMALL, "--op", "fprop", "--device", "sm_80", "--out", str(tmp_path))
    assert told(capsys, *command)["compiled"] == 1
    assert told(capsys, *command)["kept"] == 1


# -- all commands -------------------------------------------------------------------------------------


def with_a_gpu(found):
    gpus = [{"name": "GPU X", "architecture": "sm_90", "memory_bytes": 141 << 30}]
    return lambda: {**found(), "gpus": gpus}


@pytest.fixture
def quick(folder, cupy, monkeypatch, tmp_path):
    """Commands have little to do, and compile nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jit, "compiled", lambda *_: b"code\n.")
    monkeypatch.setattr(bench, "PROBLEMS", ("n1c384h16w16 k384r3s3 g384 p1",))
    monkeypatch.setattr(bench, "SECONDS", 0)
    monkeypatch.setattr(check, "COLUMNS", ("float32", "int32"))
    monkeypatch.setattr(info, "found", with_a_gpu(info.found))
    monkeypatch.setattr(demo, "main", lambda path, quick: path.write_text("a picture") and 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_each_help_runs(name, quick, capsys):
    text = COMMANDS[name].EXAMPLE
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert f"\nexample: {text}\n" in shown
    assert shown.split("\n\n")[-1].split() == STATUS.split()
    python, option, module, *words = shlex.split(text)
    assert (python, option, module, words[0]) == ("python", "-m", "cuconv", name)
    assert main(words) == 0


def test_the_example_of_the_programs_help_runs(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    (example,) = re.findall(r"^example: python -m cuconv (.*)$", shown, re.M)
    assert all(name in shown for name in COMMANDS)
    assert main(shlex.split(example)) == 0


def test_tables_and_helps_fit_their_columns(quick, monkeypatch, capsys):
    """With numbers, names and problems as wide as they come."""
    monkeypatch.setenv("COLUMNS", str(report.WIDTH))
    for name in ("CUCONV_CACHE_DIR", "CUPY_CACHE_DIR"):
        monkeypatch.setenv(name, "cache")  # a longer name makes a longer line
    for words in ([], *([name] for name in COMMANDS)):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
    wide = "n1c12h11w111 k12r2s2 g12 sh2sw2 dh1dw3 ph100:101pw102:103 symmetric"
    words = {"explain": [wide], "tune": [wide], "compile": ["--all", "--device", "sm_88"]}
    for name in COMMANDS:
        assert main([name, *words.get(name, [])]) == 0
    assert main(["explain", f"n10000{wide[2:]}", "--device", "sm_90", "--dtype", "complex128"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 500
    assert [line for line in lines if len(line) > report.WIDTH] == []
    middle = bench.Middle(1234.567, 1234.567, 1234.567)
    row = bench.Row("fprop", "depthwise", True, 1e-7, 10**15, middle, middle, middle)
    assert len(str(row)) <= report.WIDTH
    widths = [max(len(dtype), 6) + 1 for dtype in (*DTYPES, check.BYTES, check.TF32)]
    assert 16 + sum(widths) <= report.WIDTH


KEYS = {
    "info": {"cuconv", "python", "numpy", "blas", "driver_cuda", "gpus", "kernel_cache", "tuned", "missing"},
    "check": {"on", "backend", "problems", "seed", "results", "avoided", "untried", "gpu_lost", "passed"},
    "explain": {"problem", "dtype", "out_dtype", "layout", "device", "on", "plans"},
    "tune": {"on", "folder", "rows", "timed", "remembered", "failed"},
    "compile": {"folder", "rows", "compiled", "kept", "failed", "bytes", "seconds"},
    "bench": {"on", "dtype", "precision", "layout", "load_before", "rows", "failures"},
}


@pytest.mark.parametrize("name", KEYS)
def test_a_document_is_all_that_is_printed(name, quick, capsys):
    """Progress goes beside it, where there is some."""
    words = {"explain": [SMALL], "tune": [SMALL], "compile": [SMALL, "--device", "sm_80"]}.get(name, [])
    assert main([name, *words, "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out, parse_constant=pytest.fail)
    assert KEYS[name] <= document.keys()
    assert name == "info" or KEYS[name] == document.keys()
    assert captured.err == "" if name in ("info", "explain") else len(captured.err.splitlines()) > 2

    def keys(value):
        if isinstance(value, dict):
            yield from value
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from keys(each)

    assert [key for key in keys(document) if not re.fullmatch("[a-z][a-z0-9_]*", key)] == []
    page = (Path(__file__).parents[1] / "docs/command-line.md").read_text().partition("## As data")[2]
    (line,) = re.findall(rf"^\| `{name}` \| .*$", page, re.MULTILINE)
    beside = {*document.get("gpu_algorithms", ()), "groups", "m", "n", "k"}  # names, and sizes of matrices
    told = {*re.findall("`([a-z0-9_]+)`", line)}
    assert {*keys(document)} - told - beside == set()
    assert document.keys() <= told


def test_numbers_that_json_does_not_have_become_null(capsys):
    report.write({"a": [float("nan"), (float("inf"), 1)], "b": {"c": -float("inf")}, "d": 1.5})
    text = capsys.readouterr().out
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": [None, [None, 1]],
        "b": {"c": None},
        "d": 1.5,
    }


def test_a_failure_is_in_the_document_and_in_the_status(quick, monkeypatch, capsys):
    monkeypatch.setattr(check.Case, "share", lambda *_: float("nan"))
    found = told(capsys, "check", status=1)
    assert found["passed"] is False
    assert {row["failure"].rsplit(": ", 1)[1] for row in found["results"] if row["failure"]} == {
        "nan times its bound"
    }


def test_the_package_does_not_import_its_command_line():
    program = "import cuconv, sys; sys.exit(any(name.startswith('cuconv.cli') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_name_that_no_text_has_is_printed_all_the_same(quick, tmp_path):
    """A folder's, on systems where names are bytes."""
    odd = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff")
    environment = {**os.environ, "CUPY_CACHE_DIR": odd, "PYTHONIOENCODING": "ascii"}
    for words in (["info"], ["info", "--json"]):
        run = subprocess.run(
            [sys.executable, "-m", "cuconv", *words], capture_output=True, env=environment,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        assert (run.returncode, run.stderr) == (0, b"")
        assert rb"\udcff" in run.stdout


def test_a_reader_that_wants_no_more_ends_tuning(monkeypatch, folder):
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    with started("tune", "--bench", stdout=subprocess.PIPE) as run:
        assert run.stdout.readline().startswith("On ")
        run.stdout.close()
        assert run.stderr.read() == ""
    assert run.returncode == 141
