"""Every row of docs/equivalents.md, evaluated in the other library and in cuconv; and its programs, run.

The page gives the shapes of each table's arrays in letters. Their values are small integers: sums are exact,
and what differs, differs by one at least.
"""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal

import cuconv

PAGE = (Path(__file__).parents[1] / "docs" / "equivalents.md").read_text()

EXTENTS = [
    dict(N=2, C=2, K=4, M=3, D=6, H=7, W=9, T=3, R=3, S=4),
    dict(N=1, C=4, K=2, M=1, D=4, H=8, W=8, T=2, R=2, S=3),
    dict(N=2, C=2, K=2, M=2, D=5, H=9, W=6, T=1, R=4, S=5),
    dict(N=3, C=2, K=6, M=2, D=5, H=5, W=7, T=2, R=5, S=2),
]
"""What the page's letters stand for, one after the other: odd and even filters on odd and even inputs."""

PYTHON = {"np": np, "cuconv": cuconv, "signal": scipy.signal, "ndimage": scipy.ndimage}
ALWAYS = ("NumPy", "SciPy")
PEERS = ("MATLAB and Octave", "PyTorch", "TensorFlow")
REAL = r"tf\.|torch\.nn\.grad|imfilter"  # what takes no complex numbers


def read():
    """The page's rows, as (section, shapes, other library's code, cuconv's code), and its programs."""
    rows, programs, section, shapes = [], [], "", {}
    for block in PAGE.split("\n\n"):
        if block.startswith("## "):
            section, shapes = block[3:], {}
        elif block.startswith("Arrays: "):
            shapes = dict(re.findall(r"`(\w+)` of shape `(.*?)`", block))
        elif block.startswith("| "):
            for line in block.splitlines()[2:]:
                _, theirs, ours, _remark, _ = (cell.strip() for cell in line.split("|"))
                assert theirs[0] + theirs[-1] + ours[0] + ours[-1] == "````", line
                rows.append((section, shapes, theirs[1:-1], ours[1:-1]))
    programs = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return rows, programs


ROWS, PROGRAMS = read()


def drawn(shapes, extents, imaginary):
    """The arrays of a table, of integers, with an imaginary part where it is asked for."""
    draw = np.random.default_rng(0).integers
    arrays = {}
    for name, shape in shapes.items():
        real, imag = (draw(-5, 6, eval(shape, dict(extents))).astype(float) for _ in range(2))
        arrays[name] = real + 1j * imag if imaginary else real
    return arrays


def in_python(code, cases):
    return [eval(code, PYTHON | arrays) for arrays in cases]


def in_torch(code, cases):
    torch = pytest.importorskip("torch")
    names = {"torch": torch, "F": torch.nn.functional}
    tensors = [{name: torch.from_numpy(array) for name, array in arrays.items()} for arrays in cases]
    return [eval(code, names | arrays).numpy() for arrays in tensors]


def in_tensorflow(code, cases):
    tensorflow = pytest.importorskip("tensorflow")
    return [eval(code, {"tf": tensorflow} | arrays).numpy() for arrays in cases]


def in_octave(code, cases):
    """One process for all cases, through text: a matrix is written as [1 2;3 4] both ways."""
    if shutil.which("octave-cli") is None:
        pytest.skip("octave-cli is not installed")
    lines = ["for name = {'image', 'signal'}, try, pkg('load', name{1}); end, end"]
    for arrays in cases:
        for name, array in arrays.items():
            text = ";".join(" ".join(f"{cell:g}" for cell in row) for row in np.atleast_2d(array))
            lines.append(f"{name} = [{text}];")
        lines.append(f"disp(mat2str({code}, 17))")
    command = ["octave-cli", "--quiet", "--norc", "--eval", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True)
    if re.search(r"'(imfilter|xcorr)' undefined", done.stderr):
        pytest.skip(f"no package of Octave with {code.partition('(')[0]} is installed")
    results = done.stdout.splitlines()
    assert len(results) == len(cases), done.stderr
    texts = (text.strip("[]").replace("i", "j").split(";") for text in results)
    return [np.array([[complex(cell) for cell in row.split()] for row in rows]) for rows in texts]


EVALUATE = dict.fromkeys(ALWAYS, in_python)
EVALUATE |= zip(PEERS, (in_octave, in_torch, in_tensorflow), strict=True)


def compare(row, ours=None):
    """Both calls give the same shapes and numbers, for each of the extents."""
    section, shapes, theirs, written = row
    kinds = (False,) if re.match(REAL, theirs) else (False, True)
    cases = [drawn(shapes, extents, imaginary) for extents in EXTENTS for imaginary in kinds]
    results = in_python(ours or written, cases)
    for arrays, expected, got in zip(cases, EVALUATE[section](theirs, cases), results, strict=True):
        if section == "MATLAB and Octave":  # where a signal is a matrix of one row
            got = np.atleast_2d(got)
        # By FFT, or with weights that are no integers, the other library rounds.
        exact = np.array_equal(expected, np.rint(expected))
        about = {name: array.shape for name, array in arrays.items()}
        assert got.shape == expected.shape, about
        np.testing.assert_allclose(got, expected, rtol=0, atol=0 if exact else 1e-10, err_msg=str(about))


def marked(row):
    # What the peers themselves warn of is not this page's business.
    marks = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")] if row[0] in PEERS else []
    return pytest.param(row, id=f"{row[0]}: {row[2]}", marks=marks)


@pytest.mark.parametrize("row", [marked(row) for row in ROWS])
def test_row(row):
    compare(row)


MUTATIONS = [
    *(('"same_lower"', '"same"'), ('"same"', '"same_lower"'), (", flip=True", ""), (".conj()", "")),
    *(('="symmetric"', '="reflect"'), ('="circular"', '="replicate"')),
]


@pytest.mark.parametrize("wrong", MUTATIONS)
def test_a_row_that_is_wrong_fails(wrong):
    """The end of the odd cell, direction, conjugation and padding mode show in the numbers of each row."""
    rows = [row for row in ROWS if row[0] in ALWAYS and wrong[0] in row[3]]
    assert len(rows) > 5
    for row in rows:
        with pytest.raises(AssertionError):
            compare(row, row[3].replace(*wrong))


def test_nothing_on_the_page_is_left_out():
    """Each line of a table is its head or a row that is run, each fenced block a program."""
    piped = [line for line in PAGE.splitlines() if "|" in line]
    heads = 2 * sum(line.startswith("| --- |") for line in piped)
    assert len(ROWS) == len(piped) - heads > 100
    assert {row[0] for row in ROWS} == EVALUATE.keys()
    assert 2 * len(PROGRAMS) == PAGE.count("```")


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_runs(program):
    exec(program, {})
