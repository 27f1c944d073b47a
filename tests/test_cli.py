"""The command line: demo, info and check, as a user runs them."""

import subprocess
import sys

import numpy as np
import pytest

from cuconv import __version__, check, demo, info
from cuconv.__main__ import main
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
    monkeypatch.setattr(info.cuda_algorithms, "TABLE", {"fprop": ("one",)})
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


def test_check_fails_where_a_result_is_wrong(monkeypatch, capsys):
    real = check.conv
    monkeypatch.setattr(check, "conv", lambda *args, **options: real(*args, **options) * 1.01)
    monkeypatch.setattr(check, "DTYPES", {"float32": DTYPES["float32"]})
    assert main(["check"]) == 1
    assert "fprop float32 n2c3w40 k4s5" in capsys.readouterr().out


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
