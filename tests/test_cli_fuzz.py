"""The command line given what nobody means: it ends with 0, 1 or 2, soon, and says shortly what is wrong.

Lists of arguments are drawn by chance, from a seed that a failure prints with them:

    python -m tests.test_cli_fuzz SEED [COUNT]

runs others. What would take long for good reasons (timings, self-test, demo, compiler) is left out of it.
"""

import contextlib
import io
import json
import os
import random
import re
import sys
import time
import tracemalloc
from pathlib import Path
from unittest import mock

import pytest

from cuconv import machine, tuning
from cuconv.cli import bench, check, compile, demo, tune
from cuconv.cli.main import COMMANDS, main
from cuconv.problem import ConvProblem, Request

COUNT = 250
SECONDS, BYTES, LINES, LETTERS = 1.0, 64 << 20, 12, 2000
"""What a case may take of the processor and of memory, and how much it may say of what is wrong."""

GOOD = (
    "n2c4h9w9 k4r3s3 p1",
    "n1c1w64 k1s5 pw2:1 circular",
    "n2c4d6h7w8 k4t2r3s2 g4 sd2sh1sw2 p1",
    "c8h16w16 k8r1s1",
    "n32c64h56w56 k64r3s3 p1",
)
NUMBERS = [str(number) for number in (0, 1, 2, 3, 8, 24, 1000, 10**6, 2**31, 2**45, 2**61, 2**62)]
PIECES = (
    *(
        "",
        " ",
        "\0",
        "\n",
        "\t",
        "é",
        "٣",
        "\udcff",
        "🙂",
        "-",
        "--",
        ":",
        "/",
        ",",
        "=",
        "%s",
        "%",
        "{}",
        "'",
    ),
    *("0", "-1", "1", "7", "00", "1e9", "1_0", "0x1", "nan", "99999", str(2**31), str(2**62 - 1), str(2**62)),
    *("9" * 60, "9" * 5000, "x" * 3000, *"nchwdkrstgp", "ph", "sw", "dd", "reflect", "wrap"),
)
MEANT = {
    "--op": ("fprop", "dgrad", "wgrad", "bgrad"),
    "--dtype": ("float32", "float16", "complex128", "int32", "uint8"),
    "--layout": ("channels_last", "channels_first"),
    "--algorithm": ("auto", "tune", "gemm", "simt", "wgmma", "fft", "depthwise"),
    "--device": ("sm_80", "sm_90", "sm_88", "sm_121", "sm_9", "sm_9999", "sm_" + "9" * 400, "cpu"),
    "--out": ("picture.png", "out", "folder", "/dev/null/x", "a" * 400),
    "--out-dtype": ("int32", "int64"),
    "--from": ("list.txt", "binary", "folder", "missing", "-"),
    "--seed": ("0", "7", "9" * 400),
    **dict.fromkeys(("--json", "--again", "--all", "--bench", "--quick"), ()),
    **dict.fromkeys(("--help", "--version", "--o", "--", "-x"), ()),
}
"""Options, and values that may be meant."""

OF = {
    "info": ("--json",),
    "check": ("--seed", "--algorithm", "--json"),
    "explain": ("--op", "--dtype", "--out-dtype", "--layout", "--algorithm", "--device", "--json"),
    "tune": ("--op", "--dtype", "--layout", "--from", "--again", "--json"),
    "compile": (
        "--op",
        "--dtype",
        "--layout",
        "--algorithm",
        "--device",
        "--all",
        "--from",
        "--out",
        "--json",
    ),
    "bench": ("--json",),
    "demo": ("--out", "--quick"),
}
"""What belongs to a command."""


def mutated(chance, text):
    """A text in which some numbers are others, or some letters are added, doubled, left out or replaced."""
    if chance.random() < 0.6:
        share = chance.choice((0.1, 0.5))
        parts = re.split(r"(\d+)", text)  # every other one is a number
        parts[1::2] = [chance.choice(NUMBERS) if chance.random() < share else each for each in parts[1::2]]
        return "".join(parts)
    for _ in range(chance.randint(0, 3)):
        at = chance.randint(0, len(text))
        end = min(at + chance.randint(0, 3), len(text))
        piece = chance.choice((chance.choice(PIECES), text[at:end] * 2, "", chance.choice(GOOD)))
        text = text[:at] + piece + text[end:]
    return text


def drawn(chance):
    """A list of arguments: a command and what belongs to it, most of it; now and then something else."""
    words = [chance.choice([*COMMANDS, "explain", "tune", "compile"])]
    if words[0] in ("explain", "tune", "compile"):
        most = 1 if words[0] == "explain" else 3
        words += [mutated(chance, chance.choice(GOOD)) for _ in range(chance.randint(0, most))]
    for _ in range(chance.randint(0, 4)):
        option = chance.choice([*OF[words[0]]] if chance.random() < 0.9 else [*MEANT])
        words.append(option)
        if MEANT[option]:
            value = chance.choice(MEANT[option])
            words.append(mutated(chance, value) if chance.random() < 0.15 else value)
    if chance.random() < 0.05:
        chance.shuffle(words)
    if chance.random() < 0.1:
        words[chance.randrange(len(words))] = chance.choice(PIECES)
    return words


def ran(words, given=b""):
    """The status, what was printed, what was said beside it, and the seconds and bytes that it took."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    stdin = io.TextIOWrapper(io.BytesIO(given))
    tracemalloc.reset_peak()
    before, start = tracemalloc.get_traced_memory()[0], time.process_time()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "stdin", stdin),
    ):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
    seconds, size = time.process_time() - start, tracemalloc.get_traced_memory()[1] - before
    return status, *(stream.buffer.getvalue().decode() for stream in (out, err)), seconds, size


def judged(words, given=b""):
    """Raise AssertionError, with the arguments, unless the case ended as it should; its status."""
    name = f"arguments {words!r}"
    try:
        status, out, err, seconds, size = ran(words, given)
    except Exception as error:
        raise AssertionError(f"{name} raised {type(error).__name__}: {error}") from error
    assert status in (0, 1, 2), f"{name} ended with {status}"
    assert seconds < SECONDS, f"{name} took {seconds:.1f} s"
    assert size < BYTES, f"{name} took {size:,} bytes"
    if status == 2:
        assert "error: " in err, f"{name} gave no reason"
        assert out == "", f"{name} was wrong, and printed {out[:200]!r}"
        assert len(err.splitlines()) <= LINES, f"{name} said too much: {err}"
    assert len(err) < (LETTERS if "--json" not in words else 10 * LETTERS), f"{name} said too much: {err}"
    assert "Traceback" not in err, f"{name} said {err}"
    if status != 2 and "--json" in words and not {"-h", "--help", "--version"} & {*words} and out:
        json.loads(out, parse_constant=lambda text: pytest.fail(f"{name} printed {text}"))
    return status


@contextlib.contextmanager
def prepared(folder):
    """In a folder with some files, with commands that leave out what takes long."""
    (folder / "list.txt").write_text("# some\n\n" + "\n".join(GOOD))
    (folder / "binary").write_bytes(bytes(range(256)) * 9)
    (folder / "folder").mkdir()
    kept = {"CUCONV_CACHE_DIR": str(folder / "winners"), "CUPY_CACHE_DIR": str(folder / "kernels")}
    here = os.getcwd()
    os.chdir(folder)
    started = not tracemalloc.is_tracing()
    if started:
        tracemalloc.start()
    try:
        with (
            mock.patch.dict(os.environ, kept),
            mock.patch.object(tune, "_free_on_host", return_value=1 << 14),
            mock.patch.object(tune, "_seconds", lambda clock, task, names: dict.fromkeys(names, 1.0)),
            mock.patch.object(compile, "_compiled", return_value={"failed": 0}),
            mock.patch.object(check, "_cells", return_value=[]),
            mock.patch.object(bench, "_benched", return_value={"failures": []}),
            mock.patch.object(demo, "main", return_value=0),
        ):
            yield
    finally:
        os.chdir(here)
        if started:
            tracemalloc.stop()


def fuzz(seed, count):
    """How many cases ended with each status."""
    statuses = {0: 0, 1: 0, 2: 0}
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        words, given = drawn(chance), mutated(chance, chance.choice(GOOD))
        try:
            statuses[judged(words, given.encode(errors="surrogateescape"))] += 1
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, case {number}: {error}") from error
    return statuses


def test_arguments_drawn_by_chance(tmp_path):
    with prepared(tmp_path):
        statuses = fuzz(0, COUNT)
    assert all(statuses.values())  # all ways to end were taken


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        (["explain", *value], option)
        for option, value in {
            "argument --op": (GOOD[0], "--op", "frop"),
            "argument --dtype": (GOOD[0], "--dtype", "float33"),
            "argument --layout": (GOOD[0], "--layout", "NCHW"),
            "argument --out-dtype": (GOOD[0], "--out-dtype", "int8"),
            "algorithm must be": (GOOD[0], "--algorithm", "x" * 9000),
            "device must be": (GOOD[0], "--device", "sm_" + "9" * 9000),
            "problem": ("n1" * 9000,),
        }.items()
    ]
    + [
        (["check", "--seed", "9" * 9000], "argument --seed"),
        (["check", "--algorithm", "\udcff\n" * 9000], "--algorithm must be"),
        (["tune", GOOD[0], "--from", "a" * 9000], "--from "),
        (["tune", GOOD[0], "--from", "\0"], "--from "),
        (["compile", GOOD[0], "--device", "cpu"], "--device must be"),
        (["compile", GOOD[0], "--out", ""], "argument --out"),
        (["compile", GOOD[0], "--out", "a\0b"], "argument --out"),
        (["demo", "--out", "\udcff\n" * 9000], "--out must be"),
        (["demo", "--out", "a" * 9000 + ".png"], "--out must be"),
        (["x" * 9000], "argument COMMAND"),
        (["info", *["y\n"] * 9000], "unrecognized arguments"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_names_the_argument(tmp_path, words, argument):
    """However long, and whatever is in it, without repeating all of it."""
    with prepared(tmp_path):
        assert judged(words) == 2
        assert argument in ran(words)[2]


def contents():
    """What may stand in a list of problems, or in a winner's file, and is none."""
    return {
        "empty": b"",
        "zeros": bytes(1000),
        "binary": random.Random(0).randbytes(5000),
        "long line": b"n" * 1_000_000,
        "too much": b"n1c1w9 k1s3\n" * 100_000,
        "many numbers": b"n1" * 100_000,
        "utf-16": GOOD[0].encode("utf-16"),
        "nested": b"[" * 100_000,
        "numbers": b'{"algorithm": ' + b"9" * 100_000 + b"}",
        "nan": b'{"algorithm": NaN, "among": Infinity}',
        "foreign": b'{"algorithm": "../../etc/passwd", "among": ["gemm"]}',
        "surrogate": b'{"algorithm": "\\ud800"}',
    }


@pytest.mark.parametrize("name", contents())
@pytest.mark.parametrize("command", ["tune", "compile"])
def test_lists_that_are_none(tmp_path, command, name):
    with prepared(tmp_path):
        (tmp_path / "list.txt").write_bytes(contents()[name])
        assert judged([command, "--from", "list.txt"]) == 2
        assert judged([command, "--from", "-"], contents()[name]) == 2


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="the superuser may read everything")
def test_a_list_that_must_not_be_read(tmp_path):
    with prepared(tmp_path):
        (tmp_path / "list.txt").chmod(0)
        assert judged(["tune", "--from", "list.txt"]) == 2


def test_a_list_without_a_standard_input(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)  # as a shell's `<&-` leaves it
    with prepared(tmp_path), pytest.raises(SystemExit):
        main(["tune", "--from", "-"])
    assert "--from '-' cannot be read: there is no standard input" in capsys.readouterr().err


@pytest.mark.parametrize("name", contents())
def test_a_winner_that_is_none_is_timed_and_replaced(tmp_path, name):
    with prepared(tmp_path):
        request = Request("fprop", ConvProblem.parse(GOOD[1]), "float32")
        file = tmp_path / "winners" / tuning._name(request, machine.fingerprint("cpu"))
        command = ["tune", GOOD[1], "--op", "fprop"]
        assert judged(command) == 0
        sound = json.loads(file.read_text())
        file.write_bytes(contents()[name])
        assert judged(["info", "--json"]) == 0
        assert "remembered" not in ran(command)[1].splitlines()[-4]
        assert json.loads(file.read_text()).keys() == sound.keys()
        assert "1 remembered" in ran(command)[1]


def test_a_winners_name_that_something_else_has(tmp_path):
    """A folder cannot be replaced: that is said, and no winner is claimed."""
    with prepared(tmp_path):
        request = Request("fprop", ConvProblem.parse(GOOD[1]), "float32")
        (tmp_path / "winners" / tuning._name(request, machine.fingerprint("cpu")) / "x").mkdir(parents=True)
        tuning.kept.warn.cache_clear()
        with pytest.warns(UserWarning, match="cannot be kept"):
            status = judged(["tune", GOOD[1], "--op", "fprop", "--json"])
    assert status == 1


@pytest.mark.parametrize("extent", [10**5, 10**9, 2**40, 2**61])
@pytest.mark.parametrize(
    "form", ["n{}c1w9 k1s3", "c1h{0}w{0} k1r3s3", "c{0}w9 k{0}s3 g{0}", "c1w{0} k1s{0} p{0}"]
)
def test_extents_beyond_all_memory_are_answered_or_refused(tmp_path, form, extent):
    """And nothing of them is allocated."""
    line = form.format(extent)
    with prepared(tmp_path):
        for words in (["tune", line], ["explain", line], ["explain", line, "--device", "sm_90"]):
            assert judged(words) in (0, 1, 2)
        assert judged(["tune", line]) != 0


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary, prepared(Path(temporary)):
        print(fuzz(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else COUNT))
