"""The benchmarks: problem lists, the sampled oracle, clocks, rows that are wrong, records, the report."""

import functools
import itertools
import json
import re
import shutil
import sys
import time
import types
from dataclasses import replace

import numpy as np
import pytest

import cuconv
from benchmarks import environment, host, measure, peers, predictions, record, report, steps, suites
from benchmarks.__main__ import main
from cuconv import ConvProblem
from cuconv.cli import bench, check, clock, oracle, timed_calls
from cuconv.cli.main import main as command_line
from cuconv.cpu import TABLE
from cuconv.cuda import jit
from cuconv.plan import INPUTS, TABLES, device_of, make_plan
from cuconv.problem import LAYOUTS, Request

from .cases import Case, applies, threads
from .reference import Reference, wrapped

LINES = (
    *check.PROBLEMS,
    "n2c4h6w7 k4r3s2 g2 sh2 dw2 p-1",
    "n1c1d2h3w1 k2t1r2s3 sd2 pw2:1 reflect",
)
LARGE = ConvProblem.parse("n8c64h56w56 k64r3s3 p1")
TINY = ("--problem", "n1c2h5w5 k2r3s3 p1", "--seconds", "0.001", "--threads", "1", "--device", "cpu")


@pytest.mark.parametrize("name", suites.names())
def test_problem_lists(name):
    suite = suites.read(name)
    lines = (suites.FOLDER / f"{name}.txt").read_text().splitlines()
    assert [str(problem) for problem in suite.problems] == [line for line in lines if line[0] != "#"]
    assert len(set(suite.problems)) == len(suite.problems) > 0
    assert {problem.n for problem in suite.with_batch(8).problems} == {8}


def test_suites_have_their_own_dtypes():
    assert suites.read("scientific").dtypes == ("float64", "complex64")
    assert suites.read("resnet50").dtypes == ("float32",)
    assert len(suites.read("small_batch").with_batch(4).problems) == 7


def test_home_is_measured_where_it_is_named():
    """Its problems are other suites', or like them, and every family of kernels has one that is its own."""
    assert suites.default() == [name for name in suites.names() if name != suites.HOME]
    home = suites.read(suites.HOME)
    assert home.dtypes == ("float16", "float32")
    device = device_of("cuda", "sm_90")
    for op in report.OPS:
        measured = set()
        for dtype in home.dtypes:
            requests = [Request(op, problem, dtype) for problem in home.problems]
            for entry in exact(TABLES["cuda"][op]):
                applicable = [request for request in requests if entry.applies(request, device) is None]
                if entry.name == "grouped" and dtype == "float32":
                    assert not applicable  # it is for 16 bits
                    continue
                assert len(applicable) > 1, entry.name
                assert any(near(entry, request, device) for request in applicable), (entry.name, dtype)
                measured.add(entry.name)
        assert measured == {entry.name for entry in exact(TABLES["cuda"][op])}


def exact(entries):
    """Those that are timed without being named."""
    return [entry for entry in entries if entry.exact]


def near(entry, request, device):
    """Whether a row of the request has a time of that entry."""
    others = [other for other in exact(TABLES["cuda"][request.op]) if other.applies(request, device) is None]
    least = min(other.estimate(request, device) for other in others)
    return entry.estimate(request, device) <= measure.FAR * least


def test_a_bad_problem_is_named(monkeypatch, tmp_path):
    (tmp_path / "odd.txt").write_text("# nothing\nn1c2h5w5 k2r3s3 # fine\nn1c2h5w5 k2q3\n")
    monkeypatch.setattr(suites, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"odd\.txt, line 3: each key of the problem"):
        suites.read("odd")


def integers(problem):
    rng = np.random.default_rng(0)
    shapes = (problem.x_shape(), problem.w_shape(), problem.y_shape())
    return tuple(rng.integers(-9, 9, shape).astype(np.float64) for shape in shapes)


@pytest.mark.parametrize("line", LINES)
def test_the_sampled_oracle_is_the_oracle(line):
    """Exactly, on integers, in both layouts; and complex gradients conjugate."""
    p = ConvProblem.parse(line)
    x, w, dy = integers(p)
    complex_x, complex_w, complex_dy = (array + 1j * array[::-1] for array in (x, w, dy))
    reference = Reference(x.shape, w.shape, p.stride, p.dilation, p.padding, p.groups, p.padding_mode)
    for op, real, imaginary in (
        ("fprop", (x, w), (complex_x, complex_w)),
        ("dgrad", (dy, w), (complex_dy, complex_w)),
        ("wgrad", (x, dy), (complex_x, complex_dy)),
    ):
        for dtype, operands in (("float64", real), ("complex128", imaginary)):
            expected = wrapped(getattr(reference, op)(*operands), dtype)
            found = oracle.sample(op, p, dtype, "channels_first", *operands)
            np.testing.assert_array_equal(found.exact, expected[found.index])
            assert found.error(expected) == found.share(expected) == found.share_overall(expected) == 0
            last = [np.moveaxis(array, 1, -1) for array in (*operands, expected)]
            found = oracle.sample(op, p, dtype, "channels_last", *last[:2])
            np.testing.assert_array_equal(found.exact, last[2][found.index])


@pytest.mark.parametrize("line", LINES)
def test_the_oracle_of_bias_gradients(line):
    p = ConvProblem.parse(line)
    _, _, dy = integers(p)
    for dtype, given in (("int64", dy.astype(np.int64)), ("complex128", dy + 1j * dy[::-1])):
        expected = wrapped(np.array([given[:, k].sum() for k in range(p.k)]), dtype)
        for layout, there in (("channels_first", given), ("channels_last", np.moveaxis(given, 1, -1))):
            found = oracle.sample("bgrad", p, dtype, layout, there)
            np.testing.assert_array_equal(found.exact, expected[found.index])
            assert found.share(expected) == 0
            assert not found.share(expected + 1) <= 1


def test_a_sample_has_the_corners(monkeypatch):
    """Of a result too large to be evaluated whole, and of sums too long to gather at once."""
    monkeypatch.setattr(oracle, "_CHUNK", 40)
    p = ConvProblem.parse("n3c4h20w20 k6r3s3 p1")
    x, w, dy = integers(p)
    reference = Reference(x.shape, w.shape, p.stride, p.dilation, p.padding, p.groups)
    for op, operands in {"fprop": (x, w), "dgrad": (dy, w), "wgrad": (x, dy)}.items():
        expected = wrapped(getattr(reference, op)(*operands), np.float64)
        found = oracle.sample(op, p, "float64", "channels_first", *operands, samples=100)
        np.testing.assert_array_equal(found.exact, expected[found.index])
        assert 50 < len(found.exact) <= 200
        corners = [
            index for index in zip(*found.index, strict=True) if index[2:] in ((0, 0), (19, 19), (2, 2))
        ]
        assert len(corners) > 2


def test_the_oracle_finds_a_wrong_element():
    p = ConvProblem.parse("n1c2h5w5 k2r3s3 p1")
    x, w, _ = (array.astype(np.float32) for array in integers(p))
    found = oracle.sample("fprop", p, "float32", "channels_first", x, w)
    result = bench.timed_calls.conv(x, w, padding=1)
    assert found.share(result) <= 1
    for wrong in (1e-3, np.nan):
        result[0, 1, 2, 3] += wrong
        assert not found.share(result) <= 1
    assert not found.share_overall(result) <= 1


def test_what_tf32_may_lose():
    """Operands cut to ten bits pass where it is permitted; cut to seven, as in bfloat16, nowhere."""

    def cut(array, bits):
        return (array.view(np.uint32) & np.uint32(-(1 << (23 - bits)) % (1 << 32))).view(np.float32)

    problem = ConvProblem.parse("n2c16h12w12 k8r3s3 p1")
    arrays = timed_calls.operands(problem, "float32", "channels_first")
    x, w = np.abs(arrays["x"]), np.abs(arrays["w"])  # nothing cancels, so that the errors add up
    options = problem.options()
    for precision, passing in ((None, [23]), ("tf32", [23, 10])):
        truth = oracle.sample("fprop", problem, "float32", "channels_first", x, w, precision=precision)
        results = {bits: cuconv.conv(cut(x, bits), cut(w, bits), **options) for bits in (23, 10, 7)}
        for share in (truth.share, truth.share_overall):
            assert [bits for bits, result in results.items() if share(result) <= 1] == passing


def test_every_peer_computes_the_same():
    available = [peer for peer in peers.PEERS if peer.available(clock.CpuClock())]
    used = set()
    for line in ("n2c4h9w8 k6r3s3 sh2sw2 p1", "n2c4w20 k4s3 g4 pw2:0", "n1c3h8w9 k3r1s1 g3 sh2 p2"):
        p = ConvProblem.parse(line)
        for dtype in ("float32", "complex64"):
            for layout in ("channels_first", "channels_last"):
                arrays = timed_calls.operands(p, dtype, layout)
                for op in INPUTS:
                    task = timed_calls.Task(op, p, dtype, layout, arrays)
                    truth = oracle.sample(op, p, dtype, layout, *task.inputs)
                    for peer in available:
                        if found := peer.prepare(task, 1):
                            used.add(peer.name)
                            assert truth.share_overall(np.asarray(found.result(found.call()))) <= 1, peer.name
    assert used == {peer.name for peer in available}


def test_naive_refuses_too_much_memory():
    p = ConvProblem.parse("n64c64h224w224 k64r3s3 p1")
    task = timed_calls.Task("fprop", p, "float32", "channels_first", {})
    assert peers.Naive("naive", "cpu", "numpy").prepare(task, 1) is None


# -- clocks ------------------------------------------------------------------------------------------


def test_turns(monkeypatch):
    """Every contender is warmed up, then has its turns; slow ones have fewer."""
    now = itertools.count(0, 0.02)  # two readings of the clock are as far apart as two calls
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(clock.time, "sleep", lambda seconds: None)
    called = []
    calls = {name: lambda name=name: called.append(name) for name in ("a", "b")}
    times = clock.interleaved(clock.CpuClock(), calls, 0)
    turns = [called[i : i + 4] for i in range(2, len(called), 4)]
    assert called[:2] == ["a", "b"]
    assert len(turns) == 5
    assert {*map(tuple, turns)} == {("a", "a", "b", "b"), ("b", "b", "a", "a")}
    assert [len(each.seconds) for each in times.values()] == [5, 5]
    slow = clock.CpuClock()
    slow.once = lambda call: 2.0
    assert clock.interleaved(slow, calls, 0)["a"].seconds == [2.0] * 3
    assert clock.interleaved(slow, {}, 1) == {}


def test_rotation():
    assert [clock.in_turn([lambda: 1])() for _ in range(2)] == [1, 1]
    call = clock.in_turn([lambda: 1, lambda: 2])
    assert [call() for _ in range(3)] == [1, 2, 1]


class StandIn:
    """As much of CuPy as the clock uses; notes what happens on the clock's stream, where a call takes 3 ms.

    As in CuPy, leaving a stream makes current the one that was entered before.
    """

    def __init__(self):
        self.log, self.now, outer = [], 0.0, self
        self.entered = ["default"]

        class Stream:
            ptr = 7

            def __init__(self, non_blocking):
                assert non_blocking

            def __enter__(self):
                outer.entered.append(self)
                outer.current = self

            def __exit__(self, *_):
                outer.entered.pop()
                outer.current = outer.entered[-1]

            def use(self):
                outer.current = self

            def synchronize(self):
                outer.log.append("synchronize")

            def begin_capture(self):
                outer.log.append("begin")

            def end_capture(self):
                outer.log.append("end")
                return types.SimpleNamespace(launch=lambda stream: outer.work())

        class Event:
            def record(self, stream):
                outer.log.append("event")
                self.at = outer.now

            def synchronize(self):
                pass

        self.cuda = types.SimpleNamespace(
            Stream=Stream,
            Event=Event,
            get_elapsed_time=lambda start, end: end.at - start.at,
            runtime=types.SimpleNamespace(
                getDevice=lambda: 0, getDeviceProperties=lambda device: {"l2CacheSize": 50 << 20}
            ),
        )

    def empty(self, size, dtype):
        assert size >= 100 << 20
        return types.SimpleNamespace(fill=lambda value: self.note("flush"))

    def asnumpy(self, array):
        """A copy of what has to be reordered first, which is done within the current stream."""
        with self.current:
            return array

    def note(self, what):
        assert self.current is not self.entered[0], "on the default stream"
        self.log.append(what)

    def work(self):
        self.note("call")
        self.now += 3.0


def test_gpu_clock():
    """On its stream, also after a copy to the host."""
    cupy = StandIn()
    gpu = clock.GpuClock(cupy)
    assert cupy.log == []
    with gpu.stream:
        assert gpu.once(cupy.work) == 3e-3
        assert cupy.log == ["flush", "event", "call", "event"]
        gpu.to_host([])
        times = clock.interleaved(gpu, {"a": cupy.work}, 0)["a"]
        assert (len(times.seconds), times.median, times.least) == (20, 3e-3, 3e-3)
        cupy.log.clear()
        assert gpu.replayed(cupy.work) == 3e-3
        assert cupy.log[:4] == ["begin", "call", "end", "flush"]
        assert cupy.log.count("flush") == 20
    with pytest.raises(AssertionError, match="on the default stream"):
        gpu.once(cupy.work)


@pytest.fixture
def stream(monkeypatch):
    """The clock's stream, which must be entered where a call is timed, and once."""

    class Stream(list):
        def __enter__(self):
            self.append("entered")

        def __exit__(self, *_):
            self.append("left")

    made, once = Stream(), clock.CpuClock.once

    def timed(self, call):
        assert made == ["entered"]
        return once(self, call)

    monkeypatch.setattr(clock.CpuClock, "stream", made)
    monkeypatch.setattr(clock.CpuClock, "once", timed)
    return made


def test_benchmarks_enter_the_clocks_stream(quick, stream, tmp_path):
    assert main([*TINY, "--op", "fprop", "--peers", "none", "--out", str(tmp_path / "record.json")]) == 0
    assert stream == ["entered", "left"]


# -- runs --------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Ceilings and overheads of no account, and no pauses."""
    pytest.importorskip("threadpoolctl")
    known = record.Ceilings(1e10, {"float32": 1e11, "float64": 5e10})
    monkeypatch.setattr(measure.ceilings, "measured", lambda *_: known)
    monkeypatch.setattr(measure.ceilings, "overheads", lambda *_: (record.Overhead("cuconv", 1e-5, None),))
    monkeypatch.setattr(clock.time, "sleep", lambda seconds: None)


def test_a_run_is_kept_and_gone_on_with(quick, tmp_path, capsys, monkeypatch):
    out = tmp_path / "record.json"
    command = (*TINY, "--peers", "naive", "--out", str(out))
    assert main([*command, "--op", "fprop"]) == 0
    assert main(command) == 0
    made = record.read(out)
    assert [key.op for key in made.rows] == ["fprop", "dgrad", "wgrad"]
    for row in made.rows.values():
        assert row.algorithm in [timing.contender for timing in row.ours]
        assert row.best().contender == "naive"
        assert row.chosen.calls >= 5
        assert row.chosen.least_s <= row.chosen.median_s
        assert row.chosen.error < 1e-6
        assert row.memory.kept
        assert row.of_floor > 0
        assert row.command.startswith("python -m benchmarks --problem 'n1c2h5w5 k2r3s3 p1' --op")
    assert capsys.readouterr().out.count("naive: ") == 3
    monkeypatch.setattr(measure.Bench, "row", None)
    assert main(command) == 0
    assert "has all 3 rows" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_other_kernels_are_another_source(monkeypatch):
    """Rows of the record are measured again when a kernel has changed, which is no file of the package."""
    source = environment.code().source
    monkeypatch.setattr(jit, "stamp", lambda: "other")
    assert environment.code.__wrapped__().source != source


def test_a_row_of_a_suite_has_its_dtypes(quick, tmp_path):
    out = tmp_path / "record.json"
    command = (*TINY, "--suite", "scientific", "--op", "fprop", "--peers", "none", "--out", str(out))
    assert main(command) == 0
    assert [key.dtype for key in record.read(out).rows] == ["float64", "complex64"]


def test_rows_of_less_precision(quick, tmp_path, capsys, monkeypatch):
    """Beside those of float32's own, and of no other dtype; we and the peers are told."""
    told, out = set(), tmp_path / "record.json"
    ours, prepare = timed_calls.ours, peers.Naive.prepare

    def note(who, task):
        told.add((who, task.dtype, bench.plan_of(task, clock.CpuClock()).request.precision))

    monkeypatch.setattr(measure, "ours", lambda task, algorithm: note("ours", task) or ours(task, algorithm))
    monkeypatch.setattr(
        peers.Naive, "prepare", lambda peer, task, threads: note("peer", task) or prepare(peer, task, threads)
    )
    both = ("--precision", "none", "--precision", "tf32", "--dtype", "float32", "--dtype", "float64")
    assert main([*TINY, *both, "--op", "fprop", "--peers", "naive", "--out", str(out)]) == 0
    rows = record.read(out).rows
    expected = [("float32", None), ("float32", "tf32"), ("float64", None)]
    assert [(key.dtype, key.precision) for key in rows] == expected
    assert told == {(who, *each) for who in ("ours", "peer") for each in expected}
    plain, less, _ = (row.command for row in rows.values())
    assert "--precision" not in plain
    assert "--layout channels_first --precision tf32 --device" in less
    assert " float32 as tf32 channels_first " in capsys.readouterr().out


def permitted_by_cupys_variable(precision, dtype, backend):
    return "tf32" if dtype == "float32" else precision


def test_rows_of_float32_are_never_of_tf32(quick, tmp_path, capsys, monkeypatch):
    """Where the environment would have them be, on a GPU: what says that it is of TF32 is measured."""
    monkeypatch.setattr(sys.modules[main.__module__], "permitted", permitted_by_cupys_variable)
    command = [*TINY, "--op", "fprop", "--peers", "none", "--out", str(tmp_path / "record.json")]
    with pytest.raises(SystemExit):
        main(command)
    assert "CUPY_TF32 has float32 done as tf32: unset it, and say --precision tf32" in capsys.readouterr().err
    assert main([*command, "--precision", "tf32"]) == 0


def test_the_floor_of_less_precision_is_what_moves():
    problem, known = ConvProblem.parse("n1c512h7w7 k512r3s3 p1"), record.Ceilings(1e12, {"float32": 1e10})
    floors = [measure.ceilings.floor(known, problem, "fprop", "float32", each) for each in (None, "tf32")]
    assert floors == [problem.flops("fprop", "float32") / 1e10, problem.bytes("fprop", "float32") / 1e12]


@pytest.mark.peer
def test_torch_uses_tf32_where_the_task_permits_it():
    torch = pytest.importorskip("torch")
    problem = ConvProblem.parse("n1c2h5w5 k2r3s3")
    arrays = timed_calls.operands(problem, "float32", "channels_first")
    for precision in (None, "tf32", None):
        timed_calls.torch(
            timed_calls.Task("fprop", problem, "float32", "channels_first", arrays, precision),
            "channels_first",
        )
        for backend in (torch.backends.cudnn, torch.backends.cuda.matmul):
            assert backend.allow_tf32 == (precision == "tf32")


def test_another_environment_is_another_record(quick, tmp_path, capsys):
    out = tmp_path / "record.json"
    command = [*TINY, "--peers", "none", "--op", "fprop", "--out", str(out)]
    assert main(command) == 0
    made = record.read(out)
    replace(made, environment=replace(made.environment, threads=99)).write(out)
    with pytest.raises(SystemExit):
        main(command)
    assert "made in another environment (threads differ)" in capsys.readouterr().err
    assert main([*command, "--again"]) == 0
    assert record.read(out).environment == made.environment


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bias_gradients_are_measured_where_they_are_asked_for(quick, tmp_path, layout):
    out = tmp_path / "record.json"
    assert main([*TINY, "--op", "bgrad", "--layout", layout, "--peers", "naive", "--out", str(out)]) == 0
    (row,) = record.read(out).rows.values()
    assert row.algorithm == "sum"
    assert row.best().contender == "naive"
    assert row.memory.output == 4 * ConvProblem.parse(row.key.problem).k
    assert row.chosen.error < 1e-6


def test_an_interruption_keeps_what_is_there(quick, tmp_path, capsys, monkeypatch):
    out, real = tmp_path / "record.json", measure.Bench.row

    def interrupted(self, key):
        if key.op == "dgrad":
            raise KeyboardInterrupt
        return real(self, key)

    command = [*TINY, "--peers", "none", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(measure.Bench, "row", interrupted)
        assert main(command) == 130
    assert [key.op for key in record.read(out).rows] == ["fprop"]
    assert "2 of 3 rows not measured" in capsys.readouterr().out
    assert main([*command, "--minutes", "1e-9"]) == 0
    assert len(record.read(out).rows) == 1
    assert main(command) == 0
    assert len(record.read(out).rows) == 3


def test_one_that_is_far_behind_is_timed_by_the_call_that_was_checked(quick, tmp_path, monkeypatch):
    real, calls = timed_calls.ours, []

    def slow(task, algorithm):
        call = real(task, algorithm).call

        def late():
            calls.append(algorithm)
            ends = time.perf_counter() + 0.7
            while time.perf_counter() < ends:
                pass
            return call()

        return timed_calls.Contender(late if algorithm == "fft" else call)

    monkeypatch.setattr(measure, "ours", slow)
    out = tmp_path / "record.json"
    both = ("--algorithm", "gemm", "--algorithm", "fft", "--op", "fprop", "--peers", "none")
    assert main([*TINY, *both, "--out", str(out)]) == 0
    (row,) = record.read(out).rows.values()
    timings = {timing.contender: timing for timing in row.ours}
    assert (row.algorithm, timings["fft"].calls, calls) == ("gemm", 1, ["fft"])
    assert timings["fft"].median_s >= 0.7
    assert timings["gemm"].calls >= 5


def test_a_wrong_result_fails_and_is_not_timed(quick, tmp_path, capsys, monkeypatch):
    real = timed_calls.ours

    def wrong(task, algorithm):
        call = real(task, algorithm).call
        return timed_calls.Contender(lambda: call() * np.float32(1.001))

    monkeypatch.setattr(measure, "ours", wrong)
    out = tmp_path / "record.json"
    assert main([*TINY, "--op", "fprop", "--peers", "naive", "--out", str(out)]) == 1
    (row,) = record.read(out).rows.values()
    assert row.chosen.failure.startswith("wrong: ")
    assert row.chosen.median_s is row.ratio() is row.memory is None
    text = capsys.readouterr().out
    assert f"FAILED {row.algorithm}: wrong" in text
    assert f"again: {row.command}" in text


def test_a_peer_that_raises_is_noted(quick, tmp_path, monkeypatch):
    def broken(self, task, threads):
        raise MemoryError("/some/path")

    monkeypatch.setattr(peers.Naive, "prepare", broken)
    out = tmp_path / "record.json"
    assert main([*TINY, "--op", "fprop", "--peers", "naive", "--out", str(out)]) == 0
    (row,) = record.read(out).rows.values()
    assert [peer.failure for peer in row.peers] == ["raised MemoryError"]
    assert "/some" not in out.read_text()


def test_candidates_that_are_far_behind_have_to_be_named(quick, tmp_path, monkeypatch):
    def timed(*more):
        assert main([*command, *more]) == 0
        (row,) = record.read(out).rows.values()
        return [timing.contender for timing in row.ours]

    out = tmp_path / "record.json"
    command = [*TINY, "--op", "fprop", "--peers", "none", "--again", "--out", str(out)]
    chosen, other, *more = timed()
    slow = [
        replace(entry, estimate=lambda *_: 1.0) if entry.name == other else entry for entry in TABLE["fprop"]
    ]
    monkeypatch.setitem(TABLES["cpu"], "fprop", tuple(slow))
    assert timed() == [chosen, *more]
    assert timed("--algorithm", other) == [other]


def test_named_algorithms(quick, tmp_path, capsys):
    out = tmp_path / "record.json"
    command = [*TINY, "--op", "fprop", "--peers", "none", "--out", str(out), "--algorithm"]
    assert main([*command, "depthwise"]) == 0
    assert "none of the algorithms named can do it" in capsys.readouterr().out
    assert main([*command, "fft", "--algorithm", "gemm"]) == 0
    (row,) = record.read(out).rows.values()
    assert [timing.contender for timing in row.ours] == ["fft", "gemm"]
    assert row.chosen is row.fastest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "alexnet"], "invalid choice: 'alexnet'"),
        (["--peers", "caffe"], "--peers must be none or of 'torch channels_first'"),
        (["--problem", "n1c2h5 k2r3s3"], "'w' is missing in the problem"),
        (["--problem", "n1c2h5w5 k2r3s3", "--suite", "vgg16", "--suite", "unet3d"], "a row of one --suite"),
        (["--algorithm", "magic"], "--algorithm must be one of auto, "),
        (["--threads", "0"], "invalid positive int value: '0'"),
        (["--precision", "tf32", "--dtype", "float64"], "--precision tf32 is for float32, got no row of it"),
        (["--precision", "tf16"], "invalid choice: 'tf16'"),
    ],
)
def test_refusals(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        main([*arguments, "--device", "cpu"])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


# -- records and the report --------------------------------------------------------------------------


def made_record():
    """A record of two problems, one of them with a failure."""
    here = record.Environment("cpu", "Some CPU", 2, 2, "SkylakeX", None, {"NumPy": "2.4", "BLAS": "blas 1"})
    made = record.Record(
        here, record.Ceilings(4e10, {"float32": 2e11}), (record.Overhead("cuconv", 2e-5, None),)
    )
    code = record.Code("0123456789ab", False, "ff")
    for index, problem in enumerate(suites.read("resnet50").with_batch(8).problems[:2]):
        for op in report.OPS:
            key = record.Key("resnet50", 8, str(problem), op, "float32", "channels_first", None)
            timing = record.Timing("gemm", 1e-7, 0.002, 0.002, 5, None)
            peer = record.Timing("torch channels_first", 2e-7, 0.001 * 4**index, 0.001, 5, None)
            made.rows[key] = record.Row(
                key=key,
                code=code,
                command="again",
                algorithm="gemm",
                why="least",
                ours=(timing,),
                peers=(peer,),
                memory=record.Memory(8, 9, 10),
                floor_s=1e-3,
                graph_s=None,
                steps={"products": 0.75, "calls": 0.21, "storing": 0.04},
            )
    return made


def test_steps_of_a_call():
    """They are all of its time, and what multiplies and what copies is told apart."""
    x, w = np.ones((8, 64, 28, 28), np.float32), np.ones((64, 64, 3, 3), np.float32)
    for algorithm in ("gemm", "mec", "im2col"):
        found = steps.steps(lambda name=algorithm: cuconv.conv(x, w, padding=1, algorithm=name))
        assert sum(found.values()) == pytest.approx(1)
        assert min(found["products"], found["lowering"], found["storing"]) > 0.001
        assert found["products"] + found["lowering"] > 0.3


@pytest.mark.parametrize(
    ("op", "name"), [(op, entry.name) for op in ("fprop", "dgrad", "wgrad") for entry in TABLE[op]]
)
def test_steps_know_every_entry_of_the_table(op, name):
    """Most of its time is in functions that have a step, and little is calls."""
    known = {}
    for line in ("n4c64h28w28 k64r3s3 p1", "n4c64h56w56 k64r1s1", "n8c32h64w64 k32r5s5 g32 p2"):
        problem = ConvProblem.parse(line)
        if applies(Case(problem), name, op):
            shapes = {"x": problem.x_shape(), "w": problem.w_shape(), "dy": problem.y_shape()}
            operands = [np.ones(shapes[role], np.float32) for role in INPUTS[op]]
            with threads(1):
                plan = cuconv.plan(op, shapes["x"], shapes["w"], **problem.options(), algorithm=name)
            call = functools.partial(plan, *operands)
            # What else runs on the machine falls into some function's time: of three looks one is enough.
            known[line] = any(steps.steps(call)["calls"] < 0.6 for _ in range(3))
    assert known, "it applies to none of these problems: add one"
    assert all(known.values()), known


def test_steps_name_functions_that_there_are():
    """What is renamed must not count as Python's calls from then on."""
    for files in steps.STEPS.values():
        for name, functions in files.items():
            path = steps.SHARED if name == steps.SHARED.name else steps.FOLDER / name
            defined = re.findall(r"^ *def (\w+)\(", path.read_text(), re.MULTILINE)
            assert set(functions) <= set(defined), name


def test_a_record_comes_back(tmp_path):
    made = made_record()
    made.write(tmp_path / "one.json")
    assert record.all_records(tmp_path) == {"one": made}
    other = made_record()
    other.rows.clear()
    other.write(tmp_path / "empty.json")
    assert list(record.all_records(tmp_path)) == ["one", "empty"]


def test_predictions_are_kept_beside_times(tmp_path, monkeypatch):
    made = made_record()
    key, row = next(iter(made.rows.items()))
    timing = replace(row.ours[0], predicted_s=1e-3, limit="copy")
    made.rows[key] = replace(row, ours=(timing,))
    path = tmp_path / "one.json"
    made.write(path)
    assert record.read(path).rows[key].ours == (timing,)
    # A record from before there were any.
    content = json.loads(path.read_text()) | {"format": 3}
    for each in content["rows"]:
        for old in (*each["ours"], *each["peers"]):
            del old["predicted_s"], old["limit"]
    path.write_text(json.dumps(content))
    assert record.read(path).rows[key].ours == (row.ours[0],)


def test_the_model_predicts_what_is_for_a_gpu(monkeypatch):
    given = []

    def predicted(*arguments):
        given.append(arguments)
        return predictions.Prediction(2e-3, "copy", 1.0)

    monkeypatch.setattr(predictions, "predicted", predicted)
    timing, request = record.Timing("simt", None, 1.0, 1.0, 1, None), Request("fprop", LARGE, "float32")
    plan = make_plan(request, "simt", "cuda", "sm_80")
    assert measure._predicted(timing, plan) == replace(timing, predicted_s=2e-3, limit="copy")
    assert measure._predicted(timing, make_plan(request, "gemm", "cpu")) == timing
    assert given == [(request, "simt", "sm_80")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("format"), "format must be 3 or 4"),
        (lambda content: content.update(format=99), "format must be 3 or 4"),
        (lambda content: content.update(more=1), r"record must have the fields .*got .*'more'"),
        (lambda content: content["environment"].pop("cores"), "record.environment must have the fields"),
        (lambda content: content["environment"].update(cores="2"), "environment.cores must be int, got '2'"),
        (
            lambda content: content["rows"][1]["key"].update(op=None),
            r"rows\[1\].key.op must be str, got None",
        ),
        (lambda content: content["rows"][0]["ours"][0].update(calls=True), r"calls must be int, got True"),
        (lambda content: content["rows"][0].update(ratio_to_peer=9.0), r"rows\[0\] must have .* beside"),
        (lambda content: content["rows"][0].update(algorithm="fft"), "algorithm must be one of ours"),
        (lambda content: content["rows"].append(content["rows"][0]), "two rows have the same key"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path, change, message):
    path = tmp_path / "one.json"
    made_record().write(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as raised:
        record.read(path)
    assert str(raised.value).startswith("one.json: ")


def test_the_report(tmp_path, capsys):
    root, results = tmp_path, tmp_path / "results"
    (root / "docs").mkdir()
    (root / "README.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    made_record().write(results / "cpu.json")
    options = ["--results", str(results), "--root", str(root)]
    assert report.main([*options, "--check"]) == 1
    pytest.importorskip("matplotlib")
    assert report.main(options) == 0
    assert report.main([*options, "--check"]) == 0
    readme = (root / "README.md").read_text()
    assert "| resnet50, n 8 | float32 | 1.00 | 1.00 | 1.00 |" in readme
    assert "target" not in readme
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    details = (root / "docs/benchmarks.md").read_text()
    assert "| resnet50, n 8 | float32 | channels-first | 2 | 1.00 (0.50), target 0.8 |" in details
    assert "`python -m benchmarks --device cpu --threads 2 --suite resnet50 --batch 8" in details
    assert "| 2.000 | gemm | torch channels_first | 4.000 | 2.00 | 2.0 |" in details
    plots = sorted(root.glob("docs/*.svg"))
    assert [path.name for path in plots] == ["benchmarks-cpu-roofline.svg", "benchmarks-cpu-speedup.svg"]
    first = [path.read_bytes() for path in plots]
    (root / "README.md").write_text(readme.replace("1.00", "2.00"))
    assert report.main(options) == 0
    assert [path.read_bytes() for path in plots] == first
    (root / "README.md").write_text("no markers")
    with pytest.raises(SystemExit):
        report.main(options)
    assert "README.md must have the lines" in capsys.readouterr().err
    shutil.rmtree(results)


def test_the_report_says_which_layout_and_precision():
    """Where they are not the usual ones; a target is for the dtype's own precision."""
    made = made_record()
    for key, row in list(made.rows.items()):
        for layout, precision in (("channels_last", None), ("channels_first", "tf32")):
            other = replace(key, layout=layout, precision=precision)
            made.rows[other] = replace(row, key=other)
    (table,) = (part for part in report.summary({"one": made}).split("\n\n") if part.startswith("|"))
    assert [line.split(" | ")[1] for line in table.splitlines()[2:]] == [
        "float32",
        "float32, channels-last",
        "float32 as tf32",
    ]
    details = report.details({"one": made})
    assert "### resnet50, n 8, float32, channels-last\n" in details
    assert "### resnet50, n 8, float32 as tf32, channels-first\n" in details
    assert "| resnet50, n 8 | float32 as tf32 | channels-first | 2 | 1.00 (0.50) |" in details
    assert "geometric mean (largest): float32 0.50 (0.50), float32 as tf32 0.50 (0.50)." in details
    options = "--layout channels_first --layout channels_last --precision none --precision tf32`"
    assert options in details


def test_the_readme_says_what_the_records_say():
    """Every committed record is valid, and the texts are what the report makes of them."""
    assert report.main(["--check"]) == 0


def test_targets_name_suites_that_exist():
    assert {name for target in report.TARGETS for name in target.suites} <= set(suites.names())


# -- the short benchmark -----------------------------------------------------------------------------


def test_bench(stream, monkeypatch, capsys):
    monkeypatch.setattr(bench, "PROBLEMS", ("n1c2h8w8 k4r3s3 p1 circular",))
    monkeypatch.setattr(clock.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(clock.jit, "usable_cupy", lambda: None)
    monkeypatch.setattr(bench, "SECONDS", 0)
    assert command_line(["bench"]) == 0
    text = capsys.readouterr().out
    assert "all within their bounds" in text
    assert [text.count(op) for op in report.OPS] == [1, 1, 1]
    assert stream == ["entered", "left"]
    stream.clear()
    real = timed_calls.ours
    monkeypatch.setattr(
        timed_calls,
        "ours",
        lambda task, name: timed_calls.Contender(lambda: real(task, name).call() * np.float32(2)),
    )
    assert command_line(["bench"]) == 1
    assert "wgrad n1c2h8w8 k4r3s3 p1 circular is beyond its bound" in capsys.readouterr().out


def test_bench_says_what_cupys_variable_permits(stream, monkeypatch, capsys):
    """With a bound for it: an error of 2^-13 passes."""
    monkeypatch.setattr(bench, "permitted", permitted_by_cupys_variable)
    monkeypatch.setattr(bench, "PROBLEMS", ("n1c2h8w8 k4r3s3 p1",))
    monkeypatch.setattr(clock.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(clock.jit, "usable_cupy", lambda: None)
    monkeypatch.setattr(bench, "SECONDS", 0)
    exact = clock.CpuClock.to_host
    monkeypatch.setattr(clock.CpuClock, "to_host", lambda self, y: exact(self, y) * np.float32(1 + 2**-13))
    assert command_line(["bench"]) == 0
    assert ": float32 as tf32, by CUPY_TF32, channels_first; errors" in capsys.readouterr().out


def test_bench_problems_parse():
    for line in bench.PROBLEMS:
        assert str(ConvProblem.parse(line)) == line


def test_what_a_call_takes_of_the_host(tmp_path, capsys, monkeypatch):
    """Every call has its steps, which are all there is; those of other libraries are known by their total."""
    monkeypatch.setattr(jit, "usable_cupy", lambda: None)
    assert host.main(["--rounds", "2", "--json", str(tmp_path / "host.json")]) == 0
    first, header, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith("over a stand-in for CuPy: all but CuPy's and the driver's own work")
    assert tuple(header.split()) == host.STEPS
    found = json.loads((tmp_path / "host.json").read_text())["microseconds"]
    assert [line[:28].strip() for line in lines] == list(found)
    assert len(found) >= 9
    for name, each in found.items():
        if not name.startswith(("PyTorch", "JAX", "cuconv.jax")):
            parts = each["launches"] + each["results"] + each["cuconv"]
            assert each["total"] == pytest.approx(parts), name
            assert 0 < each["total"] < 10_000
            assert each["replayed"] is None
