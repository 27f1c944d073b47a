"""make device: the whole script with the emulator in place of a GPU; turns, limits, and the page on them."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import device, environment, kernels, record, repeats, sanitizer, summary, turns
from benchmarks.turns import Outcome, Part
from cuconv.cuda import jit

from .test_benchmarks import made_record

EMULATED = (sys.executable, "-m", "tests.emulated_device")
TOOLS = ("compute-sanitizer", "ncu")


def part(name, code, limit=60.0, **more):
    """A part that runs a line of Python."""
    return Part(name, limit, (sys.executable, "-c", code), **more)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(turns, "LEAST", 0)


def statuses(folder):
    return {name: outcome.status for name, outcome in turns.read(folder, environment.code().source).items()}


def page(folder):
    return (folder / summary.PAGE).read_text()


@pytest.mark.long
def test_the_whole_script(tmp_path, monkeypatch, capsys):
    """Every part on a small problem; what only a GPU's machine has is said to be missing."""
    pytest.importorskip("threadpoolctl")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # else PyTorch might find what the emulator replaces
    monkeypatch.setattr(turns.shutil, "which", lambda program: None if program in TOOLS else program)
    command = ["--quick", "--out", str(tmp_path), "--minutes", "30"]
    assert device.main(command, EMULATED) == 0
    found = statuses(tmp_path)
    absent = dict.fromkeys(sanitizer.TOOLS, "not installed: compute-sanitizer") | {
        "ncu": "not installed: ncu"
    }
    assert found == {each.name: absent.get(each.name, "passed") for each in device.parts(tmp_path, EMULATED)}

    made = record.read(tmp_path / summary.RECORD)
    assert made.environment.processor == "Emulated device"
    assert {key.suite for key in made.rows} == {
        "home", "resnet50", "vgg16", "grouped", "first", *device.SUITES
    }  # fmt: skip
    asked = {(key.suite, key.dtype, key.layout) for key in made.rows}
    assert {("home", "float16", "channels_last"), ("home", "float64", "channels_first")} < asked
    assert {("vgg16", "float16", "channels_last"), ("scientific", "complex64", "channels_first")} < asked
    for row in made.rows.values():
        algorithms = {"sum"} if row.key.op == "bgrad" else {"simt", "direct"}
        if row.key.op != "bgrad" and row.key.dtype != "float32":  # whose sums of 18 products are plain
            algorithms.add("mma")
        if row.key.op != "bgrad" and row.key.dtype in ("float16", "float32"):
            algorithms.add("grouped" if row.key.dtype == "float16" else "depthwise")
        if row.key.suite == "resnet50" and row.key.dtype == "float16":  # by name too
            algorithms |= {*device.UNTRIED} & {timing.contender for timing in row.ours}
        assert {timing.contender for timing in row.ours} == algorithms
        assert all(timing.median_s for timing in row.ours)

    text = page(tmp_path)
    assert "On Emulated device (sm_90) with CuPy" in turns.log(tmp_path, "check").read_text()
    for line in (
        "# Emulated device",
        "| check | passed |",
        "32 calls, 3 runs of each: none not bitwise equal |",
        "| ncu | not installed: ncu | 0 |",
        "| scientific | complex64 | channels-first | 1 |",
        "    microseconds of the host per call, on a GPU",
        "## Failures\n\nNone.",
    ):
        assert line in text
    assert str(tmp_path) not in text
    assert re.search(r"gpu \| passed \| \d+ \| 1 passed", text)

    # What has passed is not run again, unless it is asked for.
    capsys.readouterr()
    assert device.main(command, EMULATED) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]] == [*absent]
    assert device.main([*command, "--from", "large_kernel"], EMULATED) == 0
    assert "has all 1 rows" in turns.log(tmp_path, "large_kernel").read_text()


def test_parts_that_fail(tmp_path, capsys):
    """The others run all the same, and the page quotes the end of what it said, in its last turn."""
    parts = [
        part("bad", "print('first'); raise SystemExit('second | third')"),
        part("good", "print('fine')"),
        part("absent", "", needs=("no_such_module", "json")),
    ]
    for _ in range(2):
        assert device.run(parts, tmp_path, 60) == 1
        assert statuses(tmp_path) == dict(bad="failed", good="passed", absent="not installed: no_such_module")
    assert "bad:\n\n    first\n    second | third\n" in page(tmp_path)
    assert r"| bad | failed | 0 | second \| third |" in page(tmp_path)
    assert page(tmp_path).startswith("# No record yet")
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    bad = ["bad", "first", "second"]
    assert printed == [*bad, "good", "absent", "see", "absent", *bad, "see"]


def test_limits(tmp_path, capsys):
    """A part that reaches its limit is interrupted; the others go first; then it has twice as long."""
    slow = f"""
import pathlib, time
turns = pathlib.Path({str(tmp_path)!r}) / "turns"
turns.open("a").write("x")
try:
    time.sleep(0 if turns.read_text() == "xx" else 60)
except KeyboardInterrupt:
    print("interrupted")
    raise
"""
    parts = [part("slow", slow, 5.0), part("quick", "print('done')")]
    assert device.run(parts, tmp_path, 60) == 0
    log = turns.log(tmp_path, "slow").read_text()
    assert log.count("$ ") == 2
    assert log.count("interrupted\n") == 1
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(words[0], words[-1]) for words in printed[:3]] == [
        ("slow", "stopped"),
        ("quick", "passed"),
        ("slow", "passed"),
    ]
    assert turns.read(tmp_path, environment.code().source)["slow"].turns == 2


def test_the_end_of_the_run(tmp_path, capsys):
    """It stops a part, which then has not had its turn, and the next run begins there."""
    parts = [part("long", "import time; time.sleep(60)"), part("next", "")]
    assert device.run(parts, tmp_path, 1) == 0
    assert statuses(tmp_path) == {"long": "stopped", "next": "waiting"}
    assert "2 parts have not ended (long, next): the same command goes on" in capsys.readouterr().out
    assert device.run([part("long", ""), part("next", "")], tmp_path, 60) == 0
    kept = turns.read(tmp_path, environment.code().source)
    assert [(outcome.status, outcome.turns) for outcome in kept.values()] == [("passed", 1)] * 2


def test_what_a_part_began_ends_with_it(tmp_path, monkeypatch):
    """Its own processes too, whether it had to be killed or has left them behind."""
    monkeypatch.setattr(turns, "GRACE", 0.1)
    began = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("pid", child.pid)
"""
    parts = [part("killed", began + "time.sleep(60)", 5.0), part("ended", began)]
    device.run(parts, tmp_path, 6)
    assert statuses(tmp_path) == {"killed": "stopped", "ended": "passed"}
    for each in parts:
        found = re.findall(r"^pid (\d+)$", turns.log(tmp_path, each.name).read_text(), re.MULTILINE)
        assert found
        for number in found:
            status = Path("/proc", number, "stat")
            assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_another_source_begins_anew(tmp_path):
    outcomes = {"one": Outcome("passed", 0, 1, 2.0)}
    turns.write(tmp_path, "this", outcomes)
    assert turns.read(tmp_path, "this") == outcomes
    assert turns.read(tmp_path, "other") == {}


def test_from(tmp_path, capsys):
    parts = [part(name, "") for name in ("one", "two", "three")]
    assert device.run(parts, tmp_path, 60, "two") == 0
    assert statuses(tmp_path) == {"one": "waiting", "two": "passed", "three": "passed"}
    assert device.run(parts, tmp_path, 60) == 0
    assert device.run(parts, tmp_path, 60, "three") == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^(\w+) .* passed$", printed, re.MULTILINE) == ["two", "three", "one", "three"]
    with pytest.raises(SystemExit):
        device.main(["--from", "four"])
    assert "--from must be one of kernels, check, gpu" in capsys.readouterr().err


def test_an_interruption(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    parts = [part("one", ""), part("two", "")]
    with monkeypatch.context() as patch:
        patch.setattr(turns, "_ended", interrupted)
        assert device.run(parts, tmp_path, 60) == 130
    assert statuses(tmp_path) == {"one": "stopped", "two": "waiting"}
    assert "| one | stopped |" in page(tmp_path)
    assert device.run(parts, tmp_path, 60) == 0


def test_nothing_is_begun_without_a_gpu(tmp_path):
    """A command of the tests, which has no kernels to compile for, ends the run."""
    first, *_ = device.parts(tmp_path, (sys.executable,))
    code = f"import sys; print('no GPU'); sys.exit({kernels.NO_GPU})"
    assert (
        device.run([replace(first, command=(sys.executable, "-c", code)), part("next", "")], tmp_path, 60)
        == 1
    )
    assert statuses(tmp_path) == {"kernels": "failed", "next": "waiting"}


def test_the_order_of_worth(tmp_path):
    parts = device.parts(tmp_path, ("python",))
    names = [each.name for each in parts]
    assert names[:7] == ["kernels", "check", "gpu", "wgmma", "untried", "repeats", "home-float16"]
    assert names[-5:] == [*sanitizer.TOOLS, "ncu"]
    assert len(set(names)) == len(names)
    assert all(each.command[0] in ("python", *TOOLS) for each in parts)


def test_wrong_results_fail_whatever_the_part_said(tmp_path):
    """A part that goes on does not measure wrong rows again."""
    made = made_record()
    key, row = next(iter(made.rows.items()))
    made.rows[key] = replace(row, ours=(replace(row.ours[0], failure="wrong: 9 times the bound"),))
    made.write(tmp_path / summary.RECORD)
    assert device.run([part("one", "")], tmp_path, 60) == 1
    assert "## Failures\n\n- gemm: wrong: 9 times the bound: `again`\n\n" in page(tmp_path)
    row, batches = made.rows[key], range(20)
    made.rows = {found: replace(row, key=found) for found in (replace(key, batch=n) for n in batches)}
    made.write(tmp_path / summary.RECORD)
    assert device.run([part("two", "")], tmp_path, 60) == 1
    assert page(tmp_path).count("- gemm: wrong") == 10
    assert "- and 10 more in the record\n" in page(tmp_path)


def test_a_record_that_cannot_be_read(tmp_path, capsys):
    (tmp_path / summary.RECORD).write_text('{"format": 1}')
    with pytest.raises(SystemExit):
        device.main(["--out", str(tmp_path)])
    assert "cannot be gone on with: record.json: format must be 3 or 4" in capsys.readouterr().err


def test_predictions_that_are_off(tmp_path):
    """Counted in both directions; shown from the worst on."""
    made = made_record()
    ratios = [1.0, 1.4, 1 / 1.4, 3.0, 1 / 9, None]
    for (key, row), ratio in zip(made.rows.items(), ratios, strict=True):
        timing = replace(row.ours[0], predicted_s=ratio and 0.002 / ratio, limit=ratio and "copy")
        made.rows[key] = replace(row, ours=(timing,))
    made.write(tmp_path / summary.RECORD)
    assert device.run([part("one", "")], tmp_path, 60) == 0
    text = page(tmp_path)
    assert "2 of 5 are off by more than 1.5." in text
    keys = list(made.rows)
    first, second = (f"| {key.problem} {key.op} float32 channels_first gemm |" for key in (keys[4], keys[3]))
    assert f"{first} 2.000 | 18.000 | 0.11 | copy |\n{second} 2.000 | 0.667 | 3.00 | copy |\n" in text


def test_the_calls_that_are_furthest_are_run(tmp_path):
    made = made_record()
    for index, (key, row) in enumerate(made.rows.items()):
        timing = replace(row.ours[0], contender="direct", predicted_s=0.002 * 2**index)
        small = replace(key, problem="n1c2h5w5 k2r3s3 p1")
        made.rows[key] = replace(row, key=small, algorithm="direct", ours=(timing,))
    made.rows = {row.key: row for row in made.rows.values()}
    made.write(tmp_path / "record.json")
    command = [*EMULATED, "-m", "benchmarks.furthest", str(tmp_path / "record.json"), "--count", "2"]
    printed = subprocess.run(command, cwd=turns.ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == [
        "n1c2h5w5 k2r3s3 p1 wgrad float32 channels_first direct: 0.03 times its prediction",
        "n1c2h5w5 k2r3s3 p1 dgrad float32 channels_first direct: 0.06 times its prediction",
    ]


def test_a_result_that_changes_is_found():
    results = [np.float32([1, 0.0]), np.float32([1, 0.0]), np.float32([1, -0.0])]
    for runs, expected in ((2, None), (3, 3)):
        left = iter(results)
        assert repeats.first_that_differs(lambda x, left=left: next(left), [None], runs) == expected


def test_kernels_that_do_not_compile(monkeypatch, capsys):
    def function(kernel, device):
        if "fprop" in kernel.name:
            raise RuntimeError(f"{kernel.name} does not compile")

    runtime = type("Runtime", (), {"getDevice": staticmethod(lambda: 0)})
    cupy = type("CuPy", (), {"cuda": type("Cuda", (), {"runtime": runtime})})
    monkeypatch.setattr(jit, "require_cupy", lambda: cupy)
    monkeypatch.setattr(jit, "current_arch", lambda: "sm_75")
    monkeypatch.setattr(jit, "function", function)
    assert kernels.main(["--match", "fprop_direct_float16"]) == 1
    assert capsys.readouterr().out == "conv_fprop_direct_float16 does not compile\n0 of 1 kernels compiled\n"
    assert kernels.main(["--match", "dgrad_direct_float16"]) == 0
    capsys.readouterr()
    assert kernels.main(["--match", "fprop_mma"]) == 0  # which are for sm_80 and newer
    assert capsys.readouterr().out == "0 of 0 kernels compiled\n"

    def none():
        raise RuntimeError("there is no driver")

    monkeypatch.setattr(jit, "require_cupy", none)
    assert kernels.main([]) == kernels.NO_GPU
    assert "there is no driver" in capsys.readouterr().out


@pytest.mark.parametrize("failing", [None, "racecheck"])
def test_the_checkers(tmp_path, failing):
    """Each in turn, over the tests that are marked for them; the one that finds something ends it."""
    program, noted = tmp_path / "checker", tmp_path / "noted"
    program.write_text(
        f"""#!{sys.executable}
import json, os, sys
note = sys.argv[1:], os.environ["CUPY_CACHE_IN_MEMORY"]
print(json.dumps(note), file=open({str(noted)!r}, "a"))
sys.exit(9 if {failing!r} in sys.argv else 0)
"""
    )
    program.chmod(0o755)
    assert sanitizer.main(str(program)) == (9 if failing else 0)
    calls = [json.loads(line) for line in noted.read_text().splitlines()]
    assert [words[1] for words, _ in calls] == list(sanitizer.TOOLS[: 2 if failing else 4])
    tests = [sys.executable, *sanitizer.PYTEST, *sanitizer.TESTS]
    for words, in_memory in calls:
        assert words[-len(tests) :] == tests
        assert in_memory == "1"
    assert "-m benchmarks.sanitizer $(SANITIZER)" in (turns.ROOT / "Makefile").read_text()


@pytest.mark.parametrize(("mark", "files"), [("gpu", device.GPU_TESTS), ("sanitize", sanitizer.TESTS[:1])])
def test_every_test_for_a_gpu_is_in_the_files_that_are_run(mark, files):
    folder = turns.ROOT / "tests"
    marks = re.compile(rf"^\s*@?pytest\.mark\.{mark}\b", re.MULTILINE)
    marked = [f"tests/{path.name}" for path in folder.glob("test_*.py") if marks.search(path.read_text())]
    assert sorted(marked) == sorted(files)
