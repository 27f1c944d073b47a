"""The command line: demo, info and check, as a user runs them."""

import ctypes
import dataclasses
import functools
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from cuconv import ConvProblem, __version__, cpu
from cuconv.cli import bench, check, demo, info, report
from cuconv.cli.clock import CpuClock
from cuconv.cli.main import NOTATION, main
from cuconv.cli.timed_calls import Contender
from cuconv.cuda import jit
from cuconv.dtypes import DTYPES
from cuconv.plan import READY, RESULT, TABLES, avoided
from cuconv.problem import PADDING_MODES

from . import conftest, fuzz
from .emulator import emulated
from .reference import Reference, wrapped


def test_the_filter_is_recovered():
    run = demo.learn_filter(quiet=True)
    assert run.errors[0] > 0.5
    assert run.errors[-1] < demo.FILTER_GOAL
    np.testing.assert_allclose(run.learned, run.truth, atol=0.02)


def test_the_network_learns_to_read():
    run = demo.train_digits(quiet=True)
    assert len(run.labels) == 1797 // 4
    assert np.mean(run.answers == run.labels) == run.accuracies[-1] >= demo.DIGITS_GOAL


def test_demo_writes_a_picture(tmp_path, capsys):
    assert main(["demo", "--quick", "--out", str(tmp_path / "picture.png")]) == 0
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "relative error" in capsys.readouterr().out


def test_the_picture_shows_what_was_found():
    """Loss and accuracy on axes of their own, no legend over a curve, the truth beside a wrong answer."""
    rng = np.random.default_rng(0)
    square, falling = rng.standard_normal((5, 5)), [1.0, 0.1, 0.01]
    learnt = demo.FilterRun(*5 * [square], losses=falling, errors=falling)
    labels = np.arange(60) % 10
    answers = np.where(np.arange(60) == 47, 3, labels)
    digits = demo.DigitsRun(rng.random((60, 1, 8, 8)), labels, answers, falling, [0.5, 0.9, 59 / 60])
    figure = demo.drawn(learnt, digits)
    figure.draw_without_rendering()
    axes = {axis.get_ylabel(): axis for axis in figure.axes if axis.get_ylabel()}
    for name, values in (("training loss", falling), ("held-out accuracy", digits.accuracies)):
        (line,) = axes[name].get_lines()
        np.testing.assert_array_equal(line.get_xydata(), np.transpose([(1, 2, 3), values]))
        assert line.get_color() == axes[name].yaxis.get_label().get_color()
    assert not any(axis.get_legend() for axis in figure.axes)
    red = [axis.get_title() for axis in figure.axes if axis.title.get_color() == "red"]
    assert red == ["3, is 7"]
    # The first row is as high as its images: a higher plot would leave them in white.
    heights = [(axis.bbox.y0, axis.bbox.y1) for axis in figure.axes[:6]]
    np.testing.assert_allclose(heights, heights[:1] * 6, atol=1)


def test_the_picture_in_the_readme_is_the_demos():
    """Of the size that it draws, and small enough to be fetched with the page."""
    data = (Path(__file__).parents[1] / "docs" / "demo.png").read_bytes()
    made = demo.drawn(
        demo.FilterRun(*5 * [np.ones((5, 5))], losses=[1.0], errors=[1.0]),
        demo.DigitsRun(np.ones((40, 1, 8, 8)), np.ones(40), np.ones(40), [1.0], [1.0]),
    )
    assert data.startswith(b"\x89PNG")
    size = [int.from_bytes(data[at : at + 4], "big") for at in (16, 20)]
    assert size == [round(inches * demo.DPI) for inches in made.get_size_inches()]
    assert len(data) < 300_000


def test_demo_checks_the_path_first(tmp_path, capsys):
    for path in (tmp_path / "missing" / "picture.png", tmp_path / "picture.jpg"):
        with pytest.raises(SystemExit):
            main(["demo", "--out", str(path)])
        assert "--out must be a .png file in an existing folder" in capsys.readouterr().err
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "missing" / "picture.png")
    for name in ("folder.png", "link.png", "a" * 300 + ".png"):
        with pytest.raises(SystemExit):
            main(["demo", "--out", str(tmp_path / name)])
        assert "--out must be a file that can be written: [Errno" in capsys.readouterr().err


def test_demo_leaves_no_file_by_trying(tmp_path, monkeypatch):
    """Nor does it change one that is there, or a link, until it has a picture."""
    (tmp_path / "old.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to(tmp_path / "target.png")
    monkeypatch.setattr(demo, "main", lambda path, quick: 0)
    for name in ("old.png", "link.png", "new.png"):
        assert main(["demo", "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "old.png").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["link.png", "old.png"]


def test_demo_says_what_it_lacks(monkeypatch, capsys):
    monkeypatch.setattr(info, "demo_lacks", lambda: "sklearn")
    assert main(["demo"]) == 1
    assert "the demo needs sklearn: pip install 'cuconv[demo]'" in capsys.readouterr().err


def test_info(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for part in (__version__, np.__version__, "BLAS", "NVIDIA driver", "CuPy", "kernel cache"):
        assert part in text


def test_info_names_the_command_that_installs_what_is_missing(monkeypatch):
    monkeypatch.setattr(info, "_cupy", lambda: None)
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: None if name == "cupy" else name)
    for driver, extra in (((12, 4), "cuda12"), ((13, 0), "cuda13")):
        monkeypatch.setattr(info, "driver_version", lambda driver=driver: driver)
        assert f"pip install 'cuconv[{extra}]'" in "".join(info.findings()[1])
    monkeypatch.setattr(info, "driver_version", lambda: None)
    rows, missing = info.findings()
    assert dict(rows)["NVIDIA driver"] == "none: NumPy does it all"
    assert missing == []


def test_check_passes_here(capsys):
    assert main(["check"]) == 0
    text = capsys.readouterr().out
    assert all(dtype in text for dtype in DTYPES)
    assert "all within their bounds" in text


@pytest.fixture
def altered(monkeypatch, fresh_plans):
    """A function that has some results of the NumPy path changed after they were computed."""

    def alter(change, whose):
        def ready(request, plan, arrays):
            launches, place = cpu.ready(request, plan, arrays), [*arrays].index(RESULT[request.op])

            def run(given):
                launches(given)
                if whose(request, plan):
                    given[place][...] = change(given[place]).astype(given[place].dtype)

            return run

        monkeypatch.setitem(READY, "cpu", ready)

    return alter


@pytest.mark.parametrize(
    ("dtype", "wrong"),
    [
        ("float32", lambda y: y * np.float32(1.01)),
        ("float64", lambda y: y * np.nan),
        ("int32", lambda y: y + 1),
        ("complex64", lambda y: y * 1.001),
    ],
)
def test_check_fails_where_a_result_is_wrong(altered, monkeypatch, capsys, dtype, wrong):
    altered(wrong, lambda request, plan: request.op == "fprop" and plan.algorithm == "gemm")
    monkeypatch.setattr(check, "COLUMNS", (dtype,))
    assert main(["check"]) == 1
    text = capsys.readouterr().out
    assert f"gemm fprop {dtype} {check.PROBLEMS[0]}" in text
    assert text.endswith("\nCUCONV_AVOID=gemm, and auto and tune leave out what failed.\n")
    assert "within their bounds" not in text


def test_check_names_every_algorithm_that_is_wrong(altered, monkeypatch, capsys):
    altered(lambda dw: dw + 1, lambda request, plan: request.op == "wgrad")
    monkeypatch.setattr(check, "COLUMNS", ("float32",))
    assert main(["check"]) == 1
    names = [entry.name for entry in TABLES["cpu"]["wgrad"] if entry.exact]
    assert f"\nCUCONV_AVOID={','.join(names)}, and auto" in capsys.readouterr().out


def test_check_fails_where_sums_of_bytes_are_not_exact(altered, capsys):
    altered(lambda y: y + 1, lambda request, plan: request.inputs is not None)
    assert main(["check"]) == 1
    failures = [line for line in capsys.readouterr().out.splitlines() if line.endswith("times its bound")]
    assert {tuple(line.split()[1:3]) for line in failures} == {("fprop", check.BYTES)}
    assert "gemm" in [line.split()[0] for line in failures]


def test_check_holds_tf32_to_a_bound_of_its_own(emulated_check, monkeypatch):
    """Of requests that permit it, on a GPU, and of no other: an error of 2^-13 in every result."""
    share = check.units
    monkeypatch.setattr(check, "units", lambda y, *rest: share(y * np.float32(1 + 2**-13), *rest))
    monkeypatch.setattr(check, "COLUMNS", (check.TF32,))
    status, lines = emulated_check()
    assert (status, lines[-1]) == (0, "all within their bounds")
    # The bias gradient has nothing to permit.
    assert {line.split()[1] for line in lines if "%" in line} == {"fprop", "dgrad", "wgrad"}
    monkeypatch.setattr(check, "COLUMNS", ("float32", check.TF32))
    status, lines = emulated_check()
    failures = {line.split()[2] for line in lines if line.endswith("times its bound")}
    assert (status, failures) == (1, {"float32"})


def test_check_prints_the_worst(monkeypatch, capsys):
    shares = itertools.chain([0.5], itertools.repeat(0.25))
    monkeypatch.setattr(check, "COLUMNS", ("float32", "int32"))
    monkeypatch.setattr(check, "_entries", lambda *_: [("fprop", TABLES["cpu"]["fprop"][-1])])
    monkeypatch.setattr(check.Case, "share", lambda *_: next(shares))
    assert main(["check"]) == 0
    assert "fprop    50.0%  25.0%\n" in capsys.readouterr().out


def test_check_passes_its_seed_on(monkeypatch):
    seeds = set()
    monkeypatch.setattr(check, "_cells", lambda entries, columns, backend, xp, seed: seeds.add(seed) or [])
    assert main(["check", "--seed", "7"]) == 0
    assert seeds == {7}


@pytest.fixture
def emulated_check(monkeypatch, fresh_plans, capsys):
    """Runs `check` on the CUDA table, emulated, on little: its status and its lines."""

    def run(*algorithms):
        with emulated():
            document = check.check("cuda", algorithms=algorithms)
        return int(not document["passed"]), capsys.readouterr().out.splitlines()

    monkeypatch.setattr(check, "PROBLEMS", ("n1c2w9 k4s3 p1", "n1c2h5w6 k2r3s2 g2 p1 circular"))
    monkeypatch.setattr(check, "COLUMNS", ("float16", "float32", check.BYTES, check.TF32))
    return run


def plant(monkeypatch, name, plan):
    """Let an entry of the CUDA table plan fprop so: plan(entry, request, device)."""
    entries = list(TABLES["cuda"]["fprop"])
    (at,) = (index for index, entry in enumerate(entries) if entry.name == name)
    entries[at] = dataclasses.replace(entries[at], plan=functools.partial(plan, entries[at]))
    monkeypatch.setitem(TABLES["cuda"], "fprop", tuple(entries))


def checked():
    """The ops and entries of the CUDA table that run unless others are named."""
    every = [(op, entry) for op, of_op in TABLES["cuda"].items() for entry in of_op]
    return [(op, entry) for op, entry in every if entry.exact and not entry.untried]


UNTRIED = "No GPU has run wgmma yet: not run. python -m cuconv check --algorithm wgmma does."


def fused(entry, request, device):
    """The plan of another request: its kernel does more than it is asked for."""
    return entry.plan(dataclasses.replace(request, activation="relu"), device)


def refused(*_):
    raise RuntimeError("CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image\nis available")


def test_check_runs_every_exact_entry_of_the_cuda_table(emulated_check):
    """But for what no GPU has run: it might not end."""
    status, lines = emulated_check()
    assert (status, lines[-2:]) == (0, [UNTRIED, "all within their bounds"])
    assert sorted(tuple(line.split()[:2]) for line in lines if "%" in line) == sorted(
        (entry.name, op) for op, entry in checked()
    )


def test_check_runs_what_no_gpu_has_run_by_its_name(emulated_check, capsys):
    status, lines = emulated_check("wgmma")
    assert (status, lines[-1]) == (0, "all within their bounds")
    assert not any("No GPU has run" in line for line in lines)
    assert [line.split()[:2] for line in lines if "%" in line] == [
        ["wgmma", "fprop"], ["wgmma", "dgrad"], ["wgmma", "wgrad"]
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        main(["check", "--algorithm", "direkt"])
    assert "error: --algorithm must be one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (fused, "times its bound"),
        (refused, "raised RuntimeError: CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image"),
    ],
)
def test_check_says_which_entry_fails_and_how_to_avoid_it(emulated_check, monkeypatch, plan, words):
    """Whether or not auto would choose it. The others run all the same, and pass where it is left out."""
    plant(monkeypatch, "simt", plan)
    status, lines = emulated_check()
    assert status == 1
    failures = [line for line in lines if line.startswith("simt fprop ")]
    assert [line.split()[2] for line in failures] == ["float16", "float32", check.BYTES, check.TF32]
    assert all(line.endswith(words) for line in failures)
    assert sum("FAILED" in line for line in lines) == 1
    assert sum("%" in line for line in lines) == len(checked()) - 1
    assert lines[-1] == "CUCONV_AVOID=simt, and auto and tune leave out what failed."
    avoided.cache_clear()
    monkeypatch.setenv("CUCONV_AVOID", "simt")
    status, lines = emulated_check()
    assert status == 0
    assert lines[-3:] == ["CUCONV_AVOID leaves out simt: not run.", UNTRIED, "all within their bounds"]


def test_check_ends_where_the_gpu_answers_no_more(emulated_check, monkeypatch):
    """After some errors every call of a process fails, whoever's it is: only the first is to blame."""
    monkeypatch.setenv("CUCONV_AVOID", "depthwise")
    monkeypatch.setattr(check, "on_host", refused)
    status, lines = emulated_check()
    assert status == 1
    assert [line.split()[:3] for line in lines if "raised RuntimeError" in line] == [
        ["grouped", "fprop", "float16"]
    ]
    assert "Since then the GPU refuses all work of this process: leave out what failed" in lines
    assert lines[-1] == "CUCONV_AVOID=depthwise,grouped, and auto and tune leave out what failed."


@pytest.mark.parametrize("seed", ["-1", "1.5", "", "0x1"])
def test_check_refuses_what_is_no_seed(capsys, seed):
    with pytest.raises(SystemExit):
        main(["check", "--seed", seed])
    message = f"error: argument --seed: must be an integer of at least 0, got {seed!r}"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ops", "wrong", "status", "words"),
    [
        ((("dgrad",), (), ("fprop",), ()), "", 0, "2 passed, 0 failed, 2 did not apply"),
        (((), ("wgrad",), (), ("fprop",)), "wgrad", 1, "1 passed, 1 failed, 2 did not apply"),
        ((("wgrad",), ("fprop",), ("fprop",), ("fprop",)), "", 0, "4 passed, 0 failed"),
        (((), (), (), ()), "", 1, "0 passed, 0 failed, 4 did not apply"),
    ],
)
def test_the_fuzzer_says_how_many_cases_did_not_apply(monkeypatch, capsys, ops, wrong, status, words):
    """And a run in which nothing was compared is no success."""
    following = iter(ops)
    monkeypatch.setattr(fuzz, "ops_of", lambda *_: next(following))
    monkeypatch.setattr(fuzz, "check", lambda case, algorithm, run, ops: 1 / (wrong not in ops))
    assert fuzz.main(["--algorithm", "fft", "--count", "4"]) == status
    assert capsys.readouterr().out.splitlines()[-1] == words


def test_the_suite_says_why_tests_were_skipped():
    """In a line for each reason, not for each test."""
    reasons = ["Skipped: no GPU", "Skipped: no torch", "Skipped: no GPU"]
    reports = [types.SimpleNamespace(longrepr=("test_x.py", 7, reason)) for reason in reasons]
    lines = []
    for stats in ({"skipped": reports}, {"passed": reports}):
        terminal = types.SimpleNamespace(stats=stats, write_line=lines.append)
        conftest.pytest_terminal_summary(terminal)
    assert lines == ["2 skipped: no GPU", "1 skipped: no torch"]


def test_info_reads_the_driver(monkeypatch):
    def version(pointer):
        pointer._obj.value = 13010
        return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: types.SimpleNamespace(cuDriverGetVersion=version))
    assert info.driver_version() == (13, 1)


def test_info_lists_devices_and_cache(monkeypatch):
    properties = dict(name=b"GPU X", major=9, minor=0, totalGlobalMem=141 << 30)
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda index: properties,
        CUDARuntimeError=OSError,
    )
    nvrtc = types.SimpleNamespace(getVersion=lambda: (12, 9))
    cupy = types.SimpleNamespace(__version__="14.0", cuda=types.SimpleNamespace(runtime=runtime, nvrtc=nvrtc))
    monkeypatch.setattr(info, "_cupy", lambda: cupy)
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(info, "driver_version", lambda: (13, 0))
    monkeypatch.setattr(jit, "usable_cupy", lambda: cupy)
    monkeypatch.setenv("CUPY_CACHE_DIR", "some-folder")
    rows, missing = info.findings()
    assert ("GPU 0", "GPU X, sm_90, 141 GiB") in rows
    assert ("kernel cache", "some-folder") in rows
    assert ("NVRTC", "12.9") in rows
    assert missing == []


def test_info_says_why_a_gpu_is_of_no_use(monkeypatch):
    """A driver and CuPy are there, but do not fit."""

    def refuse():
        raise RuntimeError("the NVIDIA driver is too old: update the driver")

    monkeypatch.setattr(info, "_cupy", lambda: types.SimpleNamespace(__version__="14.0"))
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(info, "_devices", lambda cupy: ([], None))
    monkeypatch.setattr(info, "driver_version", lambda: (12, 0))
    monkeypatch.setattr(jit, "require_cupy", refuse)
    rows, missing = info.findings()
    assert "the NVIDIA driver is too old: update the driver" in missing
    assert dict(rows)["NVRTC"].startswith("missing: pip install")


def explained(capsys, *arguments):
    """What `explain` prints, lines that it wrapped being whole again."""
    assert main(["explain", *arguments]) == 0
    return re.sub("\n {17}", " ", capsys.readouterr().out)


def test_explain_prints_the_plan_and_the_candidates(capsys):
    line = "n32c64h56w56 k64r3s3 p1 reflect"
    text = explained(capsys, line, "--device", "sm_75", "--op", "wgrad")
    assert explained(capsys, *line.split(), "--device", "sm_75", "--op", "wgrad") == text
    for part in (
        "n32c64h56w56 k64r3s3 p1 reflect in float32, channels_first, on sm_75, estimated by",
        "wgrad: simt, least estimated time, before direct",
        "1 x (64 x 576 x 100,352)",
        "7,398,752,256 FLOP, at least 51,527,680 bytes",
        "depthwise: no, it needs groups == C, and groups is 1, C 64",
        "launch       conv_wgrad_simt_float_64_64_8_8_8_PIXEL_LANES_1_false_true, ",
        "launch       conv_reduce_float_float, ",
    ):
        assert part in text
    assert "fprop" not in text
    assert "conv_pad" not in text
    larger = explained(capsys, "n32c64h56w56 k64r5s5 p2 reflect", "--device", "sm_75", "--op", "wgrad")
    assert "launch       conv_pad_4_128, " in larger


def test_explain_says_what_stands_behind_a_candidate(capsys):
    text = explained(capsys, "n2c8h9w9 k8r3s3 g8", "--device", "sm_90", "--dtype", "complex64")
    assert text.count(" ms, proven without a device record\n") == 9
    assert "\nbgrad: sum" in explained(capsys, "n2c8h9w9 k8r3s3", "--device", "sm_90", "--op", "bgrad")
    text = explained(capsys, "n2c8h9w9 k8r3s3 g8", "--device", "cpu", "--algorithm", "fft", "--op", "fprop")
    assert "fprop: fft, asked for by name" in text
    assert "fft: about" in text
    assert " ms, by name only: it rounds where a plain sum is exact\n" in text
    assert "device record" not in text


def test_explain_and_info_say_what_is_avoided(fresh_plans, monkeypatch, capsys):
    monkeypatch.setenv("CUCONV_AVOID", "depthwise")
    text = explained(capsys, "n2c8h9w9 k8r3s3 g8", "--device", "sm_90", "--op", "fprop")
    assert "before simt; CUCONV_AVOID leaves out depthwise\n" in text
    assert re.search("depthwise: about .* by name only: CUCONV_AVOID leaves it out\n", text)
    assert dict(info.findings()[0])["CUCONV_AVOID"] == "depthwise"


def test_a_name_to_avoid_that_is_none(fresh_plans, monkeypatch, capsys):
    """`info` shows what is wrong with it; what would make plans says so and ends."""
    message = "each name in CUCONV_AVOID must be one of 'col2im', "
    monkeypatch.setenv("CUCONV_AVOID", "depthwize")
    for command in ("check", "bench", "demo", "explain n2c8h9w9 k8r3s3"):
        with pytest.raises(SystemExit):
            main(command.split(" ", 1))
        assert message in capsys.readouterr().err
    assert main(["info"]) == 0
    assert message in capsys.readouterr().out


def test_info_says_what_stands_behind_the_gpus_algorithms(monkeypatch):
    (total,) = TABLES["cuda"]["bgrad"]
    without = "proven without a device record: depthwise, fft, grouped, wgmma, mma, simt, direct"
    for recorded, proofs in (
        (False, f"{without}, sum"),
        (True, f"{without}; covered by a device record: sum"),
    ):
        monkeypatch.setitem(TABLES["cuda"], "bgrad", (dataclasses.replace(total, recorded=recorded),))
        assert dict(info.findings()[0])["GPU algorithms"] == proofs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["n2c8h9 k8r3s3"], "'w' is missing in the problem"),
        (["n2c8h9w9 k8r3s3", "--device", "sm_70"], "device must be an architecture from sm_75 on"),
        (["n2c8h9w9 k8r3s3", "--device", ""], "device must be an architecture from sm_75 on"),
        (["n2c8h9w9 k8r3s3", "--algorithm", "depthwise"], "algorithm='depthwise' cannot do fprop"),
        (["n2c8h9w9 k8r3s3", "--op", "bgrad", "--algorithm", "simt"], "algorithm must be one of"),
    ],
)
def test_explain_refuses(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["explain", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("line", ["hello", "", "n2c8h9 k8r3s3", "n2c8w9 k8s3 g3", "n1c1w2 k1s3"])
def test_explain_says_how_a_problem_is_written(capsys, line):
    with pytest.raises(SystemExit):
        main(["explain", line])
    words = " ".join(capsys.readouterr().err.split())
    assert words.endswith(f"A problem is written like {NOTATION}.")


def test_the_notation_is_shown_by_a_problem():
    assert str(ConvProblem.parse(NOTATION.partition(":")[0])) == NOTATION.partition(":")[0]
    for mode in PADDING_MODES[1:]:
        assert mode in NOTATION


class StandInClock(CpuClock):
    """Gives the times it was told to, a turn after the other, after a first call that warms up."""

    def __init__(self, **milliseconds):
        self.left = {name: [0.0, *times] for name, times in milliseconds.items()}

    def settle(self, call, slow):
        pass

    def once(self, call):
        return self.left["theirs" if call is rival else "ours"].pop(0) / 1e3


def rival():
    raise AssertionError("a stand-in is not called")


def benched(monkeypatch, capsys, ours, theirs):
    """The lines of `bench` on one op of one problem, for times in so many turns."""
    monkeypatch.setattr(bench, "PROBLEMS", ("n1c384h32w32 k384r21s21 g384 p10",))
    monkeypatch.setattr(bench, "OPS", ("wgrad",))
    monkeypatch.setattr(bench, "SECONDS", 0)
    monkeypatch.setattr(bench, "_peer", lambda clock: theirs and (lambda task: Contender(rival)))
    monkeypatch.setattr(bench, "clock_here", lambda: StandInClock(ours=ours, theirs=theirs))
    monkeypatch.setattr(jit, "usable_cupy", lambda: None)
    assert main(["bench"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= report.WIDTH
    (row,) = (line for line in lines if "wgrad" in line)
    assert ("? marks 1 of 1 rows" in "\n".join(lines)) == row.startswith("?")
    return row.split()


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        # Quiet, and one turn of five disturbed, which moves nothing.
        ([4, 4, 4, 4, 4], [], "4.000 0%"),
        ([4, 4, 4.4, 4, 4.4], [8, 8, 8.8, 8, 8.8], "4.000 10% 8.000 10% 2.00 2.00 to 2.00"),
        ([4, 900, 4, 4, 4], [8, 8, 8, 900, 8], "4.000 0% 8.000 0% 2.00 2.00 to 2.00"),
        # Disturbed together: the times are wide, and the ratio, in which turns are paired, is right.
        ([4, 9, 5, 9, 4], [8, 18, 10, 18, 8], "? 5.000 100% 10.000 100% 2.00 2.00 to 2.00"),
        # Each alone: most turns of the other's gave a ratio of hundreds.
        ([4, 4, 4, 4, 4], [8, 2000, 2000, 8, 2000], "? 4.000 0% 2000.000 100% 500.00 2.00 to 500.00"),
        ([4, 4.8, 4, 4.8, 4], [8.8, 7, 8.8, 7, 8], "? 4.000 20% 8.000 23% 2.00 1.46 to 2.20"),
        ([4, 4, 6, 6, 6], [], "? 6.000 33%"),
    ],
)
def test_bench_says_which_rows_were_disturbed(monkeypatch, capsys, ours, theirs, expected):
    row = benched(monkeypatch, capsys, ours, theirs)
    mark, rest = (row[:1], row[1:]) if row[0] == "?" else ([], row)
    assert rest[0] == "wgrad"
    assert " ".join(mark + rest[4:]) == expected


@pytest.mark.parametrize("load", [0.1, 4.9])
def test_bench_says_that_the_machine_was_not_idle(monkeypatch, capsys, load):
    """A load that is always there is in every turn, so that no spread tells of it."""
    monkeypatch.setattr(bench, "PROBLEMS", ())
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0), raising=False)
    assert main(["bench"]) == 0
    text = capsys.readouterr().out
    assert ("not idle: a load of 4.9 before this began" in text) == (load == 4.9)


def test_info_says_what_the_demo_lacks(monkeypatch):
    monkeypatch.setattr(info, "demo_lacks", lambda: "tqdm")
    assert "tqdm, for python -m cuconv demo: pip install 'cuconv[demo]'" in info.findings()[1]


@pytest.mark.parametrize("line", check.PROBLEMS)
def test_plain_evaluation_agrees_with_the_oracle(line):
    """What `check` compares with is right itself, on exact integers."""
    problem = check.ConvProblem.parse(line)
    rng = np.random.default_rng(0)
    shapes = (problem.x_shape(), problem.w_shape(), problem.y_shape())
    x, w, dy = (rng.integers(-9, 9, shape) for shape in shapes)
    plain = check.PlainEvaluation(problem)
    oracle = Reference(
        shapes[0], shapes[1], problem.stride, problem.dilation, problem.padding, problem.groups,
        problem.padding_mode,
    )  # fmt: skip
    for op, operands in {"fprop": (x, w), "dgrad": (dy, w), "wgrad": (x, dy), "bgrad": (dy,)}.items():
        expected = wrapped(getattr(oracle, op)(*operands), np.int64)
        np.testing.assert_array_equal(getattr(plain, op)(*operands), expected)


def test_module_runs():
    run = subprocess.run(
        [sys.executable, "-m", "cuconv", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == f"cuconv {__version__}"
    assert subprocess.run([sys.executable, "-m", "cuconv"], capture_output=True).returncode == 2


def started(*arguments, **streams):
    """A command as a user runs it."""
    return subprocess.Popen(
        [sys.executable, "-m", "cuconv", *arguments], stderr=subprocess.PIPE, text=True, **streams
    )


@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [("info", ""), ("info", "1"), ("check", "1"), ("bench", ""), ("explain n2c8w9 k8s3", ""), ("-h", "")],
)
def test_a_reader_that_wants_no_more_is_no_error(command, unbuffered, monkeypatch):
    """Nobody reads, be it while the command prints or at its end."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reading, writing = os.pipe()
    os.close(reading)
    with started(*command.split(" ", 1), stdout=writing) as run:
        os.close(writing)
        assert run.stderr.read() == ""
    assert run.returncode == 141


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch):
    """Nor of the progress bars."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    with started("demo", stdout=subprocess.PIPE) as run:
        assert run.stdout.readline().startswith("on ")
        run.stderr.read(1)
        run.stdout.close()
        run.stderr.close()
    assert run.returncode == 141


@pytest.mark.parametrize("command", ["check", "bench", "tune --bench", "demo"])
def test_an_interrupt_ends_in_one_line(command, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    with started(*command.split(), stdout=subprocess.PIPE, cwd=tmp_path) as run:
        assert run.stdout.readline().lower().startswith("on ")
        run.send_signal(signal.SIGINT)
        lines = run.stderr.read().splitlines()
    assert run.returncode == 130
    assert lines[-1] == "interrupted"
    assert [line for line in lines[:-1] if "learning a filter" not in line] == []
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
def test_a_full_disk_is_said_in_one_line():
    with open("/dev/full", "wb") as full, started("info", stdout=full) as run:
        assert run.stderr.read() == "cuconv: [Errno 28] No space left on device\n"
    assert run.returncode == 1


def test_commands_run_without_an_output():
    """As a shell's `>&-` starts them."""
    command = f"exec {shlex.quote(sys.executable)} -m cuconv info >&-"
    run = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE)
    assert (run.returncode, run.stderr) == (0, b"")
