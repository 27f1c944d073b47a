"""The cost model: what it counts, of kernels that are known; what it makes of that; and what is kept."""

import json
from dataclasses import replace
from statistics import geometric_mean

import pytest

import cuconv
from benchmarks import predictions, suites
from cuconv.cuda import algorithms, schedule, transform
from cuconv.cuda.device import device
from cuconv.cuda.kernel import Kernel, Launch
from cuconv.cuda.strides import strides_by_role
from cuconv.plan import TABLES
from cuconv.problem import LAYOUTS, Request
from tests.cost import __main__ as command
from tests.cost import code, model, report, table, traffic
from tests.cost.gpus import GPUS
from tests.emulator import build

H200 = GPUS["sm_90"]
CONTIGUOUS = {"x": (0, (1,)), "y": (0, (1,))}


def counted(template, *arguments, blocks=4, size=1 << 16, **fields):
    """What a planted kernel does in blocks of one warp."""
    launch = Launch(
        Kernel("counted.cuh", template, arguments, 32), blocks, "x", None, "y", tuple(fields.items())
    )
    arrays = {"x": traffic.zeros((size,), "float32"), "y": traffic.zeros((size,), "float32")}
    return model.of_launch(launch, arrays, CONTIGUOUS, code.PRODUCTS["float32"], H200)


# ---- accesses ----


@pytest.mark.parametrize(
    ("kind", "step", "sectors"),
    [
        ("float", 1, 4),
        ("float", 2, 8),
        ("float", 32, 32),
        ("double", 1, 8),
        ("float4", 1, 16),
        ("short", 1, 2),
    ],
)
def test_sectors_of_a_copy(kind, step, sectors):
    """A copy side by side, with gaps, and as of a matrix that is read by columns."""
    work = counted("strided_copy", kind, step)
    assert work.memory["a"][:2] == [4, 4 * sectors]
    assert work.memory["a"][3] == 4 * sectors
    ideal = work.memory["a"][2]
    assert work.memory["a"][1] / ideal == min(step, 8)
    assert work.memory["out"][1] == ideal == work.memory["out"][2]


def test_what_is_in_the_first_level_cache_is_not_asked_for_again():
    """Two passes over the same 32 KB: the second finds them, unless the cache is smaller."""
    launch = Launch(
        Kernel("counted.cuh", "nested", (), 32), 1, "x", None, "y", (("items", 2), ("chunk", 256))
    )
    arrays = {"x": traffic.zeros((1 << 13,), "float32"), "y": traffic.zeros((32,), "float32")}
    for l1_bytes, passes in ((1 << 15, 1), (1 << 14, 2)):
        found = traffic.counted(launch, arrays, CONTIGUOUS, l1_bytes).traffic["a", "read", 4]
        assert (found.requests, found.taken, found.from_l2) == (512, 2048, passes * 1024)


@pytest.mark.parametrize("ways", [1, 2, 8, 32])
def test_conflicts_of_banks(ways):
    requests, taken, least, _ = counted("conflict", ways, blocks=1).memory["shared"]
    assert (requests, taken, least) == (2, 1 + ways, 2)


@pytest.mark.parametrize(("same", "wavefronts"), [(1, 4), (2, 2), (8, 2), (32, 2)])
def test_wide_reads_of_shared_memory(same, wavefronts):
    """128 bits a lane take four wavefronts, or two where neighbours read the same; stores take four."""
    requests, taken, least, _ = counted("wide_reads", same, blocks=1).memory["shared"]
    assert (requests, taken) == (2, 4 + wavefronts)
    assert least == 4 + (4 if same == 1 else 2)


@pytest.mark.parametrize(("pitch", "wavefronts"), [(144, 4), (128, 32), (80, 4), (32, 8)])
def test_ldmatrix(pitch, wavefronts):
    """Four tiles of eight rows: a wavefront each if the rows are in different banks."""
    launch = Launch(Kernel("counted.cuh", "load_matrix", (pitch,), 32), 1, "x", None, "y", ())
    arrays = {"x": traffic.zeros((32,), "float32"), "y": traffic.zeros((32,), "float32")}
    found = traffic.counted(launch, arrays, CONTIGUOUS, 1 << 15).traffic["shared", "read", 16]
    assert (found.requests, found.taken, found.least) == (1, wavefronts, 4)


@pytest.mark.parametrize(("size", "stages"), [(16, 3), (16, 1), (8, 2), (4, 4)])
def test_asynchronous_copies(size, stages):
    work = counted("copies", size, stages, blocks=1, items=8)
    assert work.memory["a"][:2] == [8, 8 * size]
    assert work.in_flight == work.resident * 32 * size * stages
    assert work.waits == 0


@pytest.mark.parametrize(
    ("line", "op", "algorithm"),
    [
        ("n8c64h14w14 k64r3s3 g8 sh2sw2 p1", "dgrad", "simt"),
        ("n16c64h14w14 k64r3s3 g64 sh2sw2 p1", "dgrad", "depthwise"),
        ("n8c64h14w14 k64r3s3 p1", "fprop", "simt"),
        ("n8c64h14w14 k64r3s3 p1", "wgrad", "simt"),
    ],
)
def test_the_blocks_that_are_run_stand_for_all(monkeypatch, line, op, algorithm):
    kind = table.Kind("float32", "channels_first")
    plan = table.Case("", cuconv.ConvProblem.parse(line), op, kind, algorithm).plan()
    some = model.work(plan, H200)[0]
    monkeypatch.setattr(traffic, "BLOCKS", some.blocks)
    every = model.work(plan, H200)[0]
    assert some.blocks > 16
    assert some.instructions["float"] == pytest.approx(every.instructions["float"], rel=0.15)
    assert some.memory["a"][0] == pytest.approx(every.memory["a"][0], rel=0.15)


# ---- instructions ----


@pytest.mark.parametrize("multiplies", [8, 33])
def test_the_main_loop(multiplies):
    work = counted("multiplications", multiplies, items=100)
    assert work.main.multiplies == multiplies
    assert multiplies < work.main.instructions < multiplies + 20
    assert work.main.loads == {"4": 1}
    assert work.main.guarded == 0
    assert work.waits == pytest.approx(100, rel=0.01)
    assert work.instructions["float"] == pytest.approx(101 * multiplies, rel=0.02)
    assert work.in_flight == work.resident * 32 * 4


def test_loops_in_loops():
    """The inner one by its loads, the outer one, which has none, by its line."""
    work = counted("nested", items=7, chunk=30)
    assert work.waits == pytest.approx(7 * 30, rel=0.02)
    launch = Launch(Kernel("counted.cuh", "nested", (), 32), 1, "x", None, "y", (("items", 7), ("chunk", 30)))
    arrays = {"x": traffic.zeros((1 << 13,), "float32"), "y": traffic.zeros((32,), "float32")}
    lines = traffic.counted(launch, arrays, CONTIGUOUS, 1 << 15).lines
    made = code.compiled(launch.kernel, 90)
    passes = made.passes({("global", "read", 4): 210, ("global", "write", 4): 1}, lines)
    outer = next(i for i, loop in enumerate(made.loops) if i and not loop.accesses)
    assert passes[outer] == pytest.approx(7, abs=1)


def made_of(*loops):
    """Code of loops, each given as names of instructions, the number of their block and a line."""
    found = [
        tuple(
            code.Instruction(i, name, None, (("k.cuh", line),), False, block) for i, name in enumerate(names)
        )
        for names, block, line in loops
    ]
    return code.Code(32, 0, 1, tuple(code.Loop(each, each) for each in ((), *found)))


def test_loops_with_the_same_accesses_are_told_apart_by_their_lines():
    made = made_of((["LDG.E"], 1, 1), (["LDG.E"], 2, 2))
    found = made.passes({("global", "read", 4): 30}, {("k.cuh", 1): 10, ("k.cuh", 2): 20})
    assert found == pytest.approx([1, 10, 20], rel=0.02)


def test_half_of_a_vector_counts_as_one():
    made = made_of((["LDS.128", "LDS.64"], 1, 1))
    assert made.passes({("shared", "read", 16): 20}, {})[1] == pytest.approx(10, rel=0.02)


def test_blocks_that_store_more_narrowly_than_anyone_did_have_not_run():
    made = made_of((["FADD", "STG.E.128"], 1, 1), (["FMUL", "STG.E"], 2, 2))
    wide, narrow = (made.without({("global", "write", width): 3}).loops for width in (16, 4))
    assert [len(loop.own) for loop in wide] == [0, 2, 0]
    assert [len(loop.own) for loop in narrow] == [0, 2, 2]  # a vector may have been taken apart


def test_lines_that_no_thread_runs_do_not_count():
    """Of a call the line that makes it, wherever the callee's lines are run from otherwise."""
    called = (("callee.cuh", 7), ("k.cuh", 1)), (("callee.cuh", 7), ("k.cuh", 2))
    each = tuple(code.Instruction(i, "FADD", None, lines, False) for i, lines in enumerate(called))
    made = code.Code(32, 0, 1, (code.Loop(each, each),))
    (loop,) = made.without({}, {("k.cuh", 1)}).loops
    assert loop.own == each[1:]


APART = """
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
        /*0010*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R0], R1 ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
.L_x_1:
        /*0030*/                   HGMMA.64x128x16.F32 R24, gdesc[UR8], R24 ;
        /*0040*/               @P1 BRA `(.L_x_0) ;
        /*0050*/                   BRX R2 -0x60 (*"BRANCH_TARGETS .L_x_3,.L_x_4"*);
.L_x_3:
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R0], R1 ;
        /*0080*/              @!P0 BRA `(.L_x_2) ;
        /*0090*/                   BRA `(.L_x_1) ;
.L_x_4:
        /*00a0*/                   FADD R1, R1, R2 ;
        /*00b0*/                   BRA.DIV UR8, `(.L_x_4) ;
        /*00c0*/                   EXIT ;
.L_x_5:
        /*00d0*/                   BRA `(.L_x_5) ;
"""


def test_what_compilers_put_behind_a_loop_is_part_of_it():
    """And a branch back from there makes no loop, nor does the one to itself after the end."""
    once, outer, retry, last = code.loops(code.instructions(APART))
    places = [[each.at for each in loop.own] for loop in (once, outer, retry, last)]
    assert places == [
        [0x00, 0x50, 0x60, 0xC0, 0xD0], [0x10, 0x20, 0x90, 0x30, 0x40], [0x70, 0x80], [0xA0, 0xB0]
    ]  # fmt: skip
    assert outer.all[-1].at == 0x40
    assert retry.all[-1].at == 0x80


def test_the_main_loop_is_the_innermost_of_those_that_multiply():
    main = counted("products_inside", items=7, chunk=30).main
    assert (main.multiplies, main.loads) == (1, {})
    assert main.instructions < 10


def test_a_branch_around_a_load():
    assert counted("guarded", items=100).main.guarded == 1


@pytest.mark.parametrize(
    ("kind", "size"), [("unsigned char", 1), ("short", 2), ("float", 4), ("double", 8), ("float4", 16)]
)
def test_loads_that_a_predicate_guards(kind, size):
    """One wide load each, without a branch, on both sides; what is not wanted is not asked of memory."""
    launch = Launch(Kernel("counted.cuh", "predicated", (kind, 4), 32), 1, "x", None, "y", (("items", 3),))
    arrays = {name: traffic.zeros((4 * 32 * size,), "uint8") for name in "xy"}
    found = traffic.counted(launch, arrays, CONTIGUOUS, 1 << 15).traffic
    assert found["a", "read", size].requests == 3
    assert found["a", "read", size].taken == 3 * size
    made = code.compiled(launch.kernel, 90).loops
    assert len(made) == 1
    assert made[0].accesses["global", "read", size] == 4
    assert made[0].guarded == 0


def test_accesses_by_their_names():
    def access(name):
        return code.Instruction(0, name, None, (), False).access

    assert access("LDG.E.128.CONSTANT") == ("global", "read", 16)
    assert access("LDG.E.U16") == ("global", "read", 2)
    assert access("STG.E.64") == ("global", "write", 8)
    assert access("LDGSTS.E.BYPASS.128") == ("global", "copy", 16)
    assert access("LDS.U8") == ("shared", "read", 1)
    assert access("STS") == ("shared", "write", 4)
    assert access("LDSM.16.M88.4") == ("shared", "read", 16)
    assert access("HGMMA.64x128x16.F32.BF16") == ("shared", "product", 16)
    assert access("HMMA.16816.F32") is None
    assert access("LDC.64") is None
    assert access("IADD3") is None


@pytest.mark.parametrize(
    ("name", "kind", "flop"),
    [
        ("HMMA.16816.F32.BF16", "half", 4096),
        ("HMMA.1688.F32", "half", 2048),
        ("HMMA.1688.F32.TF32", "tf32", 2048),
        ("DMMA.8x8x4", "double", 512),
        ("DMMA.16x8x16", "double", 4096),
        ("HGMMA.64x256x16.F32.BF16", "half by warpgroups", 64 * 256 * 16 * 2 // 4),
        ("HFMA2.MMA", "", 0),
        ("FFMA", "", 0),
    ],
)
def test_products_of_tensor_cores(name, kind, flop):
    """Names as NVRTC 12.9 has them for sm_90a."""
    assert code.Instruction(0, name, None, (), False).product == (kind, flop)


def test_operands_of_warpgroups_take_shared_memory():
    """32 bytes of gemm_k of 64 rows and of N columns, by lines of 128 bytes, for four warps."""
    for name, lines in (
        ("HGMMA.64x256x16.F32.BF16", 80),
        ("HGMMA.64x64x8.F32.TF32", 32),
        ("HMMA.16816.F32", 0),
    ):
        assert 4 * code.Instruction(0, name, None, (), False).operands == lines


def warpgroups(line="n8c64h28w28 k64r3s3 p1", **blocks):
    """What `wgmma` does of fprop, but for what is said to be otherwise."""
    case = table.Case("", cuconv.ConvProblem.parse(line), "fprop", table.Kind("float16", table.LAST), "wgmma")
    (work,) = model.work(case.plan(), H200)
    return case, replace(work, **blocks)


def test_warpgroups_are_counted_apart():
    """Two multiply and one copies; all products are there, and the slowest of them is waited for."""
    case, work = warpgroups()
    problem, tiles = case.problem, work.tiles
    assert tiles == work.blocks == 49  # 128 pixels by 64 channels each
    of_warp = 2 * 49 * 128 * 64 * (9 * 64) / (work.blocks * 12)
    assert work.tensor == {"half by warpgroups": pytest.approx(of_warp, rel=0.01)}
    assert problem.flops("fprop", "float16") == 2 * 49 * 128 * 64 * 9 * 64
    first, second, copying = work.roles
    assert first["all"] == pytest.approx(second["all"], rel=0.1)  # of which the first begins
    assert (first["tensor"], copying["tensor"]) == (pytest.approx(36, rel=0.01), 0)  # 9 slices of 4 products
    slower = replace(work, roles=[first, second, copying | {"all": 100 * copying["all"]}])
    assert model.units(slower, H200)["latency"] > 50 * model.units(work, H200)["latency"]
    assert work.in_flight == 128 * 8 * 16 * (8 + 4)  # the whole ring: 12 copies of 16 bytes for each slice


def test_the_busiest_block_is_waited_for():
    """Of 49 tiles that 48 blocks share out one has two; what memory has to do is the same."""
    _, work = warpgroups()
    alone = model.units(work, H200)
    shared_out = model.units(replace(work, tiles=49, blocks=48), H200)
    for unit in ("multipliers", "latency"):
        assert shared_out[unit] == pytest.approx(2 * 48 / 49 * alone[unit]), unit
    assert shared_out["DRAM"] == alone["DRAM"]


def test_activations_are_not_counted():
    """Their code is in every kernel, and a request without one does not run it."""
    kernel = next(kernel for kernel in algorithms.kernels() if kernel.name == "conv_reduce_float_float")
    every = list(code.compiled(kernel, 90).loops[0].all)
    assert sum(each.idle for each in every) > len(every) / 4
    assert not any(each.idle for each in code.compiled(kernel, 90).loops[0].own)


def test_without_a_disassembler(monkeypatch, capsys):
    monkeypatch.setattr(code.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(code.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit):
        command.main(["n1c1w9 k1s3"])
    assert "pip install nvidia-cuda-nvdisasm" in capsys.readouterr().err


# ---- the model ----


def plain_work(**changes):
    """A launch of one wave that only issues instructions."""
    instructions = dict.fromkeys((*code.UNITS, *code.NAMES, "all"), 0.0)
    main = model.Main(10, 0, {}, 0, 0)
    work = dict(
        kernel="k", blocks=132, threads=128, registers=32, shared=0, resident=1, main=main, tensor={},
        waits=0.0, memory={}, lines=0.0, copied_lines=0.0, operands={}, written=0, in_flight=0.0,
        roles=[], tiles=changes.get("blocks", 132),
    )  # fmt: skip
    given = instructions | changes.pop("instructions", {})
    return model.Work(**work | changes | {"instructions": given})


@pytest.mark.parametrize(
    ("unit", "changes", "seconds"),
    [
        ("issue", {"instructions": {"all": 1e6}}, 1e6 * 4 / 4 / H200.clock),
        ("multipliers", {"instructions": {"float": 1e6}}, 1e6 * 4 * 32 / 128 / H200.clock),
        ("multipliers", {"instructions": {"double": 1e6}}, 1e6 * 4 * 32 / 64 / H200.clock),
        ("multipliers", {"tensor": {"half": 4096e6}}, 4096e6 * 4 / 2458 / H200.clock),
        ("multipliers", {"tensor": {"double": 512e6}}, 512e6 * 4 / 256 / H200.clock),
        ("shared memory", {"memory": {"shared": [1e6, 132e6, 1e6, 0]}}, 1e6 / H200.clock),
        (
            "L2",
            {"memory": {"a": [0, 1e9, 1e9, 1e9]}, "operands": {"a": 1 << 20}},
            32e9 / 132 / 36 / H200.clock,
        ),
        ("DRAM", {"memory": {"a": [0, 1e9, 1e9, 1e9]}, "operands": {"a": 32 * 10**9}}, 32e9 / H200.dram),
        ("DRAM", {"written": 10**9}, 1e9 / H200.dram),
        ("latency", {"waits": 1000.0, "blocks": 264}, 2 * 1000 * 273 / H200.clock),
    ],
)
def test_units(unit, changes, seconds):
    assert model.units(plain_work(**changes), H200)[unit] == pytest.approx(seconds, rel=1e-6)


def test_the_busiest_multiprocessor_counts():
    even, odd = (
        model.units(plain_work(blocks=blocks, instructions={"all": 1e6}), H200)["issue"]
        for blocks in (132, 133)
    )
    assert odd == 2 * even


def test_what_does_not_fit_the_second_level_is_read_again():
    """An operand of 400 MB, asked for three times: from DRAM once, if blocks that run together fit."""
    work = plain_work(blocks=264, memory={"a": [0, 1, 1, 1.2e9 / 32]}, operands={"a": 400 * 10**6})
    assert model.dram_bytes(work, H200, {"a": 1.2e9}) == pytest.approx(400e6 + 800e6 * (1 - H200.l2 / 200e6))
    small = plain_work(blocks=2640, memory={"a": [0, 1, 1, 1.2e9 / 32]}, operands={"a": 400 * 10**6})
    assert model.dram_bytes(small, H200, {"a": 1.2e9}) == 400e6


def test_launches_follow_one_another():
    request = cuconv.plan("fprop", (1, 1, 9), (1, 1, 3)).request
    works = [plain_work(instructions={"all": 1e6}), plain_work(instructions={"float": 1e7})]
    found = model.predicted(works, request, "sm_90")
    each = [max(model.units(work, H200).values()) for work in works]
    assert found.seconds == pytest.approx(sum(each) + 2 * H200.launch)
    assert found.limit == "multipliers"
    assert model.predicted([plain_work()], request, "sm_90").limit == "launch"


def test_floor():
    """Products by the fastest unit that is as exact as the dtype, or bytes."""
    dense, thin = (
        cuconv.ConvProblem.parse("n32c256h56w56 k256r3s3 p1"),
        cuconv.ConvProblem.parse("n8c1w99 k1s1"),
    )

    def floor(problem, dtype):
        plan = cuconv.plan("fprop", problem.x_shape(), problem.w_shape(), dtype, **problem.options())
        return model.floor(plan.request, "sm_90")

    flops = dense.flops("fprop")
    assert flops / floor(dense, "float16") == pytest.approx(989e12, rel=0.01)
    assert flops / floor(dense, "float32") == pytest.approx(4096 / 6 * 132 * H200.clock)
    assert flops / floor(dense, "float64") == pytest.approx(256 * 132 * H200.clock)
    assert 4 * flops / floor(dense, "complex64") == pytest.approx(4096 / 6 * 132 * H200.clock)
    assert 4 * flops / floor(dense, "complex128") == pytest.approx(256 * 132 * H200.clock)
    assert flops / floor(dense, "int32") == pytest.approx(2 * 128 * 132 * H200.clock)
    assert floor(thin, "float32") == thin.bytes("fprop", "float32") / H200.dram


# ---- the command ----


def test_one_problem_in_full(capsys):
    words = ["n8c8h12w12 k8r3s3 p1", "--dtype", "float16", "--layout", "channels_last", "--algorithm", "simt"]
    assert command.main([*words, "--op", "wgrad"]) == 0
    text = capsys.readouterr().out
    assert "conv_wgrad_simt_float16" in text
    assert "conv_reduce" in text
    for part in (
        "registers",
        "waves",
        "instructions multiply",
        "wavefronts",
        "sectors",
        "in flight",
        "predicted",
    ):
        assert part in text
    for unit in ("issue", "multipliers", "shared memory", "L2", "DRAM", "latency"):
        assert f"{unit} " in text
    assert command.main([*words, "--op", "fprop", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] > 0
    assert found["limit"] in found["launches"][0]["units"]


def test_without_a_compiler(monkeypatch, capsys):
    """That of C++, for the emulator."""
    monkeypatch.setattr(build, "COMPILER", ["no-such-compiler"])
    build.preprocessed.cache_clear()
    with pytest.raises(SystemExit):
        command.main(["n1c1w9 k1s3"])
    build.preprocessed.cache_clear()
    assert "there is no C++ compiler 'no-such-compiler'" in capsys.readouterr().err


def test_a_suite_leaves_the_file_alone(monkeypatch, capsys):
    """A line per call, counted anew where the file has nothing of the kind."""
    monkeypatch.setattr(table, "SUITES", {"small_batch": (table.Kind("float32", "channels_first"),)})
    monkeypatch.setattr(table, "write", lambda rows: pytest.fail("nothing is to be written"))
    assert command.main(["--suite", "small_batch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len({table.name(case.plan()) for case in table.cases(["small_batch"])})
    assert all(" us " in line and line.endswith("x floor") for line in lines)


@pytest.mark.parametrize("words", [[], ["n1c1w9 k1s3", "--suite", "conv1d"], ["--suite", "none"], ["n1c1"]])
def test_wrong_words(words):
    with pytest.raises(SystemExit):
        command.main(words)


# ---- what is kept ----

CASES = list(table.cases())


def test_kept_predictions_are_of_the_code_as_it_is():
    """python -m tests.cost --update brings them up to date."""
    kept = table.read()  # nothing, where counts are made in another way now
    plans = {table.name(plan): plan for plan in (case.plan() for case in CASES)}
    assert sorted(kept) == sorted(plans)
    stale = [name for name, plan in plans.items() if kept[name]["made_of"] != table.made_of(plan)]
    assert stale == []


def test_kept_predictions_follow_from_their_counts():
    for case in CASES:
        plan = case.plan()
        row = predictions.rows()[table.name(plan)]
        assert row == row | table.result(table.works(row), plan), table.name(plan)
        assert predictions.predicted(plan.request, plan.algorithm, "sm_90").seconds == row["seconds"]
    assert predictions.predicted(plan.request, "none", "sm_90") is None


@pytest.mark.parametrize("case", CASES[:: len(CASES) // 6], ids=str)
def test_kept_counts_are_found_again(case):
    """Other versions of the compilers may make other code of a kernel, but not much of another one."""
    plan = case.plan()
    for found, kept in zip(
        model.work(plan, H200), table.works(predictions.rows()[table.name(plan)]), strict=True
    ):
        assert found.instructions["all"] == pytest.approx(kept.instructions["all"], rel=0.1)
        for space, (requests, taken, _, from_l2) in found.memory.items():
            assert [requests, taken, from_l2] == pytest.approx(
                [*kept.memory[space][:2], kept.memory[space][3]], rel=0.05
            )


def test_documented_tables_are_current():
    assert report.DOCUMENT.read_text() == report.document()


def test_every_suite_is_predicted():
    assert sorted(table.SUITES) == suites.names()


# ---- what is asked of kernels ----

BUDGETS = {
    # Sectors and wavefronts over the least; the share of multiplications; loads that are jumped over.
    ("depthwise", "dgrad", "channels_first"): (1.11, 1.7, 0.11, 11),
    ("depthwise", "dgrad", "channels_last"): (1.02, 1.2, 0.1, 7),
    ("depthwise", "fprop", "channels_first"): (1.2, 2.07, 0.25, 11),
    ("depthwise", "fprop", "channels_last"): (1.0, 1.22, 0.21, 7),
    ("depthwise", "wgrad", "channels_first"): (1.18, 2.02, 0.24, 16),
    ("depthwise", "wgrad", "channels_last"): (1.17, 1.29, 0.19, 8),
    ("direct", "dgrad", "channels_first"): (1.53, 1.0, 0.05, 0),
    ("direct", "dgrad", "channels_last"): (8.96, 1.0, 0.05, 0),
    ("direct", "fprop", "channels_first"): (1.98, 1.0, 0.05, 0),
    ("direct", "fprop", "channels_last"): (11.5, 1.0, 0.05, 0),
    ("direct", "wgrad", "channels_first"): (6.6, 1.0, 0.03, 0),
    ("direct", "wgrad", "channels_last"): (9.84, 1.0, 0.02, 0),
    ("grouped", "dgrad", "channels_last"): (1.22, 1.33, 0.11, 0),
    ("grouped", "fprop", "channels_last"): (1.93, 1.33, 0.11, 0),
    ("grouped", "wgrad", "channels_last"): (1.06, 1.36, 0.15, 0),
    ("mma", "dgrad", "channels_first"): (2.31, 1.12, 0.21, 0),
    ("mma", "dgrad", "channels_last"): (1.08, 1.18, 0.09, 0),
    ("mma", "fprop", "channels_first"): (1.16, 1.06, 0.22, 0),
    ("mma", "fprop", "channels_last"): (1.28, 1.13, 0.11, 0),
    ("mma", "wgrad", "channels_first"): (1.08, 1.18, 0.25, 0),
    ("mma", "wgrad", "channels_last"): (1.21, 1.22, 0.11, 0),
    ("simt", "dgrad", "channels_first"): (2.19, 1.25, 0.63, 0),
    ("simt", "dgrad", "channels_last"): (8.29, 1.29, 0.59, 0),
    ("simt", "fprop", "channels_first"): (1.95, 1.28, 0.63, 0),
    ("simt", "fprop", "channels_last"): (10.95, 1.47, 0.6, 0),
    ("simt", "wgrad", "channels_first"): (1.43, 1.14, 0.72, 0),
    ("simt", "wgrad", "channels_last"): (9.57, 1.1, 0.68, 0),
    ("sum", "bgrad", "channels_first"): (1.06, 1.0, 0.0, 0),
    ("sum", "bgrad", "channels_last"): (1.0, 1.06, 0.0, 0),
    ("wgmma", "dgrad", "channels_first"): (1.9, 1.14, 0.03, 0),
    ("wgmma", "dgrad", "channels_last"): (1.05, 1.22, 0.03, 0),
    ("wgmma", "fprop", "channels_first"): (1.3, 1.09, 0.03, 0),
    ("wgmma", "fprop", "channels_last"): (1.3, 1.17, 0.03, 0),
    ("wgmma", "wgrad", "channels_first"): (1.12, 1.07, 0.03, 0),
    ("wgmma", "wgrad", "channels_last"): (1.26, 1.16, 0.03, 0),
}


def test_budgets():
    """On its home problems no entry does worse; a budget that an entry no longer needs is to be tightened."""
    found = report.entries()
    assert sorted(BUDGETS) == sorted(found)
    for name, (sectors, wavefronts, multiplies, guarded) in BUDGETS.items():
        entry = found[name]
        assert 0.9 * sectors <= entry.sectors <= sectors, name
        assert 0.9 * wavefronts <= entry.wavefronts <= wavefronts, name
        assert multiplies <= entry.multiplies <= multiplies + 0.05, name
        assert entry.guarded == guarded, name


RATES = {
    # TFLOP/s that dense layers shall reach, the first one with its three channels apart: geometric means.
    ("resnet50", "float32", "channels_last"): {"fprop": 70, "dgrad": 70, "wgrad": 70},
    ("resnet50", "float32", "channels_first"): {"fprop": 52, "dgrad": 52, "wgrad": 48},
    ("scientific", "complex64", "channels_first"): {"fprop": 58, "dgrad": 52, "wgrad": 35},
    ("scientific", "complex128", "channels_first"): {"fprop": 40, "dgrad": 36, "wgrad": 37},
}


@pytest.mark.parametrize(("suite", "dtype", "layout"), RATES)
def test_rates_of_single_precision_and_complex_numbers(suite, dtype, layout):
    """Of real products, by the model; more than these is a reason to raise them."""
    for op, least in RATES[suite, dtype, layout].items():
        rates = [
            case.problem.flops(op, dtype) / row["seconds"]
            for case, row in kept_rows(suite, table.Kind(dtype, layout), op)
            if case.problem.c > 3
        ]
        assert least < geometric_mean(rates) / 1e12 < 1.2 * least, op


def kept_rows(suite, kind, op, algorithm="auto"):
    """Each case of that kind, and what is predicted for it."""
    return [
        (case, predictions.rows()[table.name(case.plan())])
        for case in table.cases([suite])
        if case.kind == kind and case.op == op and case.algorithm == algorithm
    ]


OF_WARPGROUPS = {
    # TFLOP/s of layers of 16 bits with 256 channels and filters or more, and of those with 128.
    ("resnet50", 256): {"fprop": (585, 410), "dgrad": (525, 375), "wgrad": (430, 335)},
    ("vgg16", None): {"fprop": (665, 590), "dgrad": (665, 505), "wgrad": (625, 610)},
}


@pytest.mark.parametrize(("suite", "images"), OF_WARPGROUPS)
def test_rates_of_warpgroups(suite, images):
    """By the model, geometric means; of 1x1 filters many are bound by DRAM below that."""
    kind = table.Kind("float16", table.LAST, images=images)
    for op, (large, small) in OF_WARPGROUPS[suite, images].items():
        rows = kept_rows(suite, kind, op, "wgmma")
        for least, channels in ((large, range(256, 1 << 20)), (small, range(128, 256))):
            rates = [
                case.problem.flops(op, "float16") / row["seconds"]
                for case, row in rows
                if min(case.problem.c, case.problem.k) in channels
            ]
            assert least < geometric_mean(rates) / 1e12 < 1.1 * least, (op, channels)


OF_FLOOR = {
    # Times over the least that memory and multipliers allow, launches counted: geometric means.
    ("grouped", "float16", "channels_last"): {"fprop": 2.3, "dgrad": 2.7, "wgrad": 3.1},
    ("grouped", "float32", "channels_first"): {"fprop": 3.4, "dgrad": 3.4, "wgrad": 5.0},
    ("first", "float16", "channels_last"): {"fprop": 2.7, "dgrad": 4.2, "wgrad": 2.6},
}


@pytest.mark.parametrize(("suite", "dtype", "layout"), OF_FLOOR)
def test_few_channels_are_near_the_floor(suite, dtype, layout):
    """By the model; less than these is a reason to lower them."""
    for op, most in OF_FLOOR[suite, dtype, layout].items():
        rows = kept_rows(suite, table.Kind(dtype, layout), op)
        assert 0.9 * most < geometric_mean(row["of_floor"] for _, row in rows) < most, op


def test_estimates_agree_with_predictions():
    """What auto compares and explain shows; `direct`, for what no other entry does, less closely."""
    for case in CASES:
        plan = case.plan()
        entry = next(entry for entry in TABLES["cuda"][case.op] if entry.name == plan.algorithm)
        estimate = entry.estimate(plan.request, device("sm_90"))
        ratio = predictions.rows()[table.name(plan)]["seconds"] / estimate
        bound = 2 if plan.algorithm == "direct" else 1.5
        assert 1 / bound < ratio < bound, f"{table.name(plan)}: {ratio:.2f}"


def copied(line, dtype, layout="channels_first"):
    """The work of the launch that makes x channels-last, and the request that it is for."""
    request = Request("fprop", cuconv.ConvProblem.parse(line), dtype, layout)
    draft = schedule.Draft(request, schedule.zero_padded(request), *schedule.OPERANDS["fprop"])
    launch = transform.channels_last(draft, "a")
    arrays = {
        "x": traffic.zeros(request.shape("x"), dtype),
        launch.out: traffic.zeros(launch.out.shape, dtype),
    }
    where = strides_by_role(request, {"x": arrays["x"]})
    return model.of_launch(launch, arrays, where, code.PRODUCTS["float32"], H200), request


def bound_by_memory(work, share=0.75):
    """Whether a copy runs at so much of DRAM's bandwidth or more."""
    moved = sum(work.operands.values()) + work.written
    return moved >= share * H200.dram * max(model.units(work, H200).values())


COPIES = (
    "n32c64h56w56 k1r1s1",
    "n32c256h56w56 k1r1s1",
    "n32c512h28w28 k1r1s1",
    "n64c64h224w224 k1r1s1",
)


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
@pytest.mark.parametrize("line", COPIES)
def test_a_channels_last_copy_goes_by_vectors(line, dtype):
    work, request = copied(line, dtype)
    assert bound_by_memory(work)
    assert all(taken == least for _, taken, least, _ in work.memory.values())
    for space, size in (("b", work.operands["b"]), ("out", work.written)):
        requests, _, _, from_l2 = work.memory[space]
        assert 512 * requests == 32 * from_l2 == size
    estimate = transform.channels_last_seconds(request, schedule.zero_padded(request), device("sm_90"), "a")
    seconds = max(model.units(work, H200).values()) + H200.launch
    assert 1 / 1.5 < seconds / estimate < 1.5


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_channels_last_copy_of_few_channels(layout, dtype):
    work, _ = copied("n32c3h224w224 k1r1s1", dtype, layout)
    assert bound_by_memory(work)
    assert 32 * work.memory["b"][3] == work.operands["b"]
    assert 32 * work.memory["out"][3] == work.written


@pytest.mark.parametrize(
    ("line", "share"),
    [("n32c512h7w7 k1r1s1", 0.65), ("n128c512h7w7 k1r1s1", 0.75), ("n32c1024h14w14 k1r1s1", 0.75)],
)
def test_a_channels_last_copy_of_odd_images(line, share):
    """Cells of 16 bits are read one by one. The first is of one wave, and limited by a block's latency."""
    work, _ = copied(line, "float16")
    assert bound_by_memory(work, share)
    assert work.memory["shared"][1] == work.memory["shared"][2]
    assert 32 * work.memory["b"][3] < 1.35 * work.operands["b"]


IMAGES = "n32c64h56w56 k64r3s3 p1"
LESS = {
    # Images that are not whole vectors are read by elements: instructions; and the latency of few blocks.
    ("bgrad", "n64c64h7w7 k2048r1s1", "float16", "channels_first"): 0.24,
    ("bgrad", "n64c64h7w7 k2048r1s1", "float32", "channels_first"): 0.5,
    ("bgrad", "n64c64h7w7 k2048r1s1", "float16", "channels_last"): 0.7,
    # Columns are looked up in shared memory for elements of 16 bits, whose padded rows begin anywhere.
    ("fprop", f"{IMAGES} circular", "float16", "channels_first"): 0.68,
    # Two images are looked for in each row and column of a vector, besides where it goes: instructions.
    ("dgrad", f"{IMAGES} reflect", "float16", "channels_last"): 0.4,
    ("dgrad", f"{IMAGES} circular", "float32", "channels_first"): 0.5,
    ("dgrad", f"{IMAGES} circular", "complex64", "channels_first"): 0.45,
}
"""What does not reach three quarters of the bandwidth, why, and how much it does reach."""

PASSES = [
    *(
        ("bgrad_sum", "bgrad", line, dtype, layout)
        for line in ("n64c1h56w56 k256r1s1", "n64c64h7w7 k2048r1s1")
        for dtype in ("float16", "float32", "float64", "complex64")
        for layout in LAYOUTS
    ),
    ("pad", "fprop", f"{IMAGES} circular", "float16", "channels_first"),
    ("pad", "fprop", f"{IMAGES} reflect", "float16", "channels_last"),
    ("pad", "fprop", f"{IMAGES} replicate", "float64", "channels_first"),
    ("pad", "fprop", f"{IMAGES} circular", "complex64", "channels_last"),
    ("fold", "dgrad", f"{IMAGES} reflect", "float16", "channels_last"),
    ("fold", "dgrad", f"{IMAGES} circular", "float32", "channels_first"),
    ("fold", "dgrad", f"{IMAGES} circular", "complex64", "channels_first"),
    ("reduce", "wgrad", "n32c256h14w14 k1024r1s1", "float16", "channels_last"),
    ("reduce", "wgrad", "n32c256h14w14 k1024r1s1", "float32", "channels_first"),
    ("reduce", "wgrad", IMAGES, "float64", "channels_first"),
    ("reduce", "wgrad", IMAGES, "complex64", "channels_last"),
]


@pytest.mark.parametrize(("kernel", "op", "line", "dtype", "layout"), PASSES)
def test_passes_over_memory_run_at_its_bandwidth(kernel, op, line, dtype, layout):
    """The bias gradient, copies and folds of padding, and what adds the parts of a sum: large ones."""
    kind = table.Kind(dtype, layout)
    algorithm = "sum" if op == "bgrad" else "simt"
    plan = table.Case("", cuconv.ConvProblem.parse(line), op, kind, algorithm).plan()
    operands = traffic.arrays(plan)
    where = traffic.places(plan, operands)
    (launch,) = (each for each in plan.launches if each.kernel.template == f"conv_{kernel}")
    work = model.of_launch(launch, operands, where, code.PRODUCTS["float32"], H200)
    assert bound_by_memory(work, LESS.get((op, line, dtype, layout), 0.75))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_widened_integers_run_at_the_bandwidth(layout):
    problem = cuconv.ConvProblem.parse(IMAGES)
    shapes = problem.x_shape(layout), problem.w_shape(layout)
    plan = cuconv.plan(
        "fprop", *shapes, "uint8", **problem.options(), layout=layout, out_dtype="int32", backend="cuda",
        device="sm_90",
    )  # fmt: skip
    operands = traffic.arrays(plan)
    launch = plan.launches[0]
    assert launch.kernel.template == "conv_widen"
    work = model.of_launch(launch, operands, traffic.places(plan, operands), code.PRODUCTS["float32"], H200)
    assert bound_by_memory(work)
