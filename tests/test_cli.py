"""The command line: demo, info and check, as a user runs them."""

import ctypes
import subprocess
import sys
import types

import numpy as np
import pytest

from cuconv import __version__, check, demo, info
from cuconv.__main__ import main
from cuconv.cuda import jit
from cuconv.dtypes import DTYPES

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


def test_demo_checks_the_path_first(tmp_path, capsys):
    for path in (tmp_path / "missing" / "picture.png", tmp_path / "picture.jpg"):
        with pytest.raises(SystemExit):
            main(["demo", "--out", str(path)])
        assert "--out must be a .png file in an existing folder" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("dtype", "wrong"),
    [
        ("float32", lambda y: y * np.float32(1.01)),
        ("float64", lambda y: y * np.nan),
        ("int32", lambda y: y + 1),
        ("complex64", lambda y: y * 1.001),
    ],
)
def test_check_fails_where_a_result_is_wrong(monkeypatch, capsys, dtype, wrong):
    real = check.conv
    monkeypatch.setattr(check, "conv", lambda *args, **options: wrong(real(*args, **options)).astype(dtype))
    monkeypatch.setattr(check, "DTYPES", {dtype: DTYPES[dtype]})
    assert main(["check"]) == 1
    assert f"fprop {dtype} {check.PROBLEMS[0]}" in capsys.readouterr().out


def test_check_prints_the_worst(monkeypatch, capsys):
    shares = iter([0.5] + [0.25] * (len(check.PROBLEMS) - 1))
    monkeypatch.setattr(check, "DTYPES", {"float32": DTYPES["float32"]})
    monkeypatch.setattr(check, "errors", lambda *_: {"fprop": next(shares)})
    assert main(["check"]) == 0
    assert "float32         50.0%" in capsys.readouterr().out


def test_check_passes_its_seed_on(monkeypatch):
    seeds = set()
    monkeypatch.setattr(check, "errors", lambda problem, dtype, seed, xp: seeds.add(seed) or {})
    assert main(["check", "--seed", "7"]) == 0
    assert seeds == {7}


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
    monkeypatch.setattr(info, "_devices", lambda cupy: [])
    monkeypatch.setattr(info, "driver_version", lambda: (12, 0))
    monkeypatch.setattr(jit, "require_cupy", refuse)
    rows, missing = info.findings()
    assert "the NVIDIA driver is too old: update the driver" in missing
    assert dict(rows)["NVRTC"].startswith("missing: pip install")


def explained(capsys, *arguments):
    assert main(["explain", *arguments]) == 0
    return capsys.readouterr().out


def test_explain_prints_the_plan_and_the_candidates(capsys):
    line = "n32c64h56w56 k64r3s3 p1 reflect"
    text = explained(capsys, line, "--device", "sm_80", "--op", "wgrad")
    assert explained(capsys, *line.split(), "--device", "sm_80", "--op", "wgrad") == text
    for part in (
        "n32c64h56w56 k64r3s3 p1 reflect in float32, channels_first, on sm_80, estimated by",
        "wgrad: simt, least estimated time, before direct",
        "1 x (64 x 576 x 100,352)",
        "7,398,752,256 FLOP, at least 51,527,680 bytes",
        "depthwise: no, it needs groups == C, and groups is 1, C 64",
        "launch       conv_pad_4, ",
        "launch       conv_reduce_float_float, ",
    ):
        assert part in text
    assert "fprop" not in text


def test_explain_says_what_auto_leaves_alone(capsys):
    text = explained(capsys, "n2c8h9w9 k8r3s3 g8", "--device", "sm_90", "--dtype", "complex64")
    assert text.count("by name only: no benchmark on a device covers it yet") == 3
    assert "\nbgrad: sum" in explained(capsys, "n2c8h9w9 k8r3s3", "--device", "sm_90", "--op", "bgrad")
    text = explained(capsys, "n2c8h9w9 k8r3s3 g8", "--device", "cpu", "--algorithm", "fft", "--op", "fprop")
    assert "fprop: fft, asked for by name" in text
    assert "fft: about" in text
    assert "it rounds where a plain sum is exact" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["n2c8h9 k8r3s3"], "'w' is missing in the problem"),
        (["n2c8h9w9 k8r3s3", "--device", "sm_70"], "device must be an architecture from sm_75 on"),
        (["n2c8h9w9 k8r3s3", "--algorithm", "depthwise"], "algorithm='depthwise' cannot do fprop"),
        (["n2c8h9w9 k8r3s3", "--op", "bgrad", "--algorithm", "simt"], "algorithm must be one of"),
    ],
)
def test_explain_refuses(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["explain", *arguments])
    assert message in capsys.readouterr().err


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
