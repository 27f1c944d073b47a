"""cuconv.dask: equal to the call on whole arrays, lazy, and on a cluster that loses workers."""

import cProfile
import inspect
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

import cuconv
from cuconv import described
from cuconv.cuda import jit
from cuconv.plan import forget

from . import chunked, emulator
from .cases import seeded_case, values
from .memory import peak_memory

da = pytest.importorskip("dask.array")
import dask  # noqa: E402

import cuconv.dask as ours  # noqa: E402
from benchmarks import moved, splits  # noqa: E402
from cuconv.dask import cuts, tasks  # noqa: E402

pytestmark = pytest.mark.peer
ROOT = Path(__file__).parents[1]
NAMES = ("conv", "conv_input_grad", "conv_weight_grad", "conv_bias_grad", "conv_backward", "conv_transpose")
LINE = "n4c6h13w11 k4r3s2 g2 sh2sw1 dh1dw2 ph2:1pw3:0"


@pytest.fixture(autouse=True)
def _in_this_thread():
    """Unless a test says otherwise."""
    with dask.config.set(scheduler="sync"):
        yield


def drawn(problem, dtype="float32", exact=True, seed=0):
    """x, w, dy and bias: small integers, or normal numbers."""
    rng = np.random.default_rng(seed)
    shapes = problem.x_shape(), problem.w_shape(), problem.y_shape(), (problem.k,)
    return [values(rng, shape, dtype, exact) for shape in shapes]


def in_chunks(array, *sizes):
    return da.from_array(array, chunks=sizes)


def all_of(problem, x, w, dy, bias, library=cuconv, **more):
    """By name, what every function makes of these arrays."""
    options = problem.options() | more
    activation = None if x.dtype.kind == "c" else "relu"
    dx, dw, db = library.conv_backward(dy, x, w, **options)
    return {
        "conv": library.conv(x, w, bias, **options, activation=activation),
        "conv_input_grad": library.conv_input_grad(dy, w, x.shape, **options),
        "conv_weight_grad": library.conv_weight_grad(x, dy, w.shape, **options),
        "conv_bias_grad": library.conv_bias_grad(dy),
        "conv_transpose": library.conv_transpose(dy, w, None, **options),
        "dx": dx,
        "dw": dw,
        "db": db,
    }


def in_many_chunks(x, w, dy, bias):
    """Cut along every axis, none of them alike."""
    return (
        in_chunks(x, 3, 2, *(4,) * (x.ndim - 2)),
        in_chunks(w, 3, 2, *(2,) * (w.ndim - 2)),
        in_chunks(dy, 2, 3, *(3,) * (dy.ndim - 2)),
        in_chunks(bias, 3),
    )


# -- results ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", range(0, 160, 20))
def test_generated_cases(first):
    """In chunks by chance, beside the oracle: exact cases bit for bit, and blocks as they are announced."""
    for seed in range(first, first + 20):
        chunked.check(seeded_case(seed))


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate", "symmetric"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64", "int32"])
def test_every_function_is_that_on_whole_arrays(dtype, mode):
    problem = cuconv.ConvProblem.parse(f"{LINE} {mode}" if mode != "zeros" else LINE)
    operands = drawn(problem, dtype)
    whole, cut = all_of(problem, *operands), all_of(problem, *in_many_chunks(*operands), ours)
    for name, expected in whole.items():
        got = cut[name].compute()
        assert got.dtype == cut[name].dtype == expected.dtype, name
        np.testing.assert_array_equal(got, expected, name)


def test_gradient_of_a_bias_without_batches_or_pixels():
    for shape, options in (
        ((4, 9), {}),
        ((4, 9, 3), dict(batched=False)),
        ((9, 3, 4), dict(batched=False, layout="channels_last")),
        ((2, 4, 0), {}),
        ((0, 4, 5), {}),
    ):
        dy = np.random.default_rng(0).integers(-9, 9, shape).astype("f4")
        got = ours.conv_bias_grad(in_chunks(dy, *(2,) * dy.ndim), **options)
        np.testing.assert_array_equal(got, cuconv.conv_bias_grad(dy, **options), str(shape))


def test_channels_last_unbatched_flip_and_wider_integers():
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 255, (20, 17, 3), np.uint8), rng.integers(-9, 9, (4, 3, 5, 3), np.int8)
    bias = rng.integers(-9, 9, 4, np.int32)
    options = dict(padding="same", layout="channels_last", flip=True, out_dtype="int32", activation="relu")
    got = ours.conv(in_chunks(x, 6, 7, 2), in_chunks(w, 3, 2, 2, 2), bias, **options)
    np.testing.assert_array_equal(got, cuconv.conv(x, w, bias, **options))
    assert got.chunks[:2] == ((6, 6, 6, 2), (7, 7, 3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_rounded_once(dtype):
    """Sums in parts that only a wider dtype holds: over images, pixels, and channels of either operand."""
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    x, w, dy = (np.ones(shape, dtype) for shape in ((3, 700, 1, 9), (700, 700, 1, 1), (3, 700, 1, 9)))
    x[0, :3], w[:3, 0], dy[0, :3] = (dtype.type(1.25) for _ in range(3))
    bias = np.full(700, 0.5, dtype)
    xd, wd, dyd = in_chunks(x, 1, 97, 1, 2), in_chunks(w, 101, 700, 1, 1), in_chunks(dy, 2, 99, 1, 4)
    for got, expected in (
        (ours.conv(xd, wd, bias, activation="relu"), cuconv.conv(x, w, bias, activation="relu")),
        *zip(ours.conv_backward(dyd, xd, wd), cuconv.conv_backward(dy, x, w), strict=True),
        (ours.conv_transpose(dyd, wd, bias), cuconv.conv_transpose(dy, w, bias)),
    ):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got.compute().astype("float64"), expected.astype("float64"))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("spoilt", range(3))
def test_infinities_and_nan_go_where_they_go_without_chunks(spoilt, mode):
    """Zeros of the padding, and those around dy, are multiplied in blocks as they are in the whole."""
    problem = cuconv.ConvProblem.parse(LINE if mode == "zeros" else f"{LINE} {mode}")
    for value in (np.inf, np.nan):
        operands = drawn(problem, "float64")
        operands[spoilt].reshape(-1)[7::97] = value
        whole, cut = all_of(problem, *operands), all_of(problem, *in_many_chunks(*operands), ours)
        for name, expected in whole.items():
            np.testing.assert_array_equal(cut[name].compute(), expected, name)


def test_halos_wider_than_chunks_and_windows_of_nothing_but_padding():
    for line in (
        "n1c1w40 k1s9 dw3 p12",
        "n1c2w9 k1s3 p50 circular",
        "n1c1w12 k1s2 pw-5:9",
        "n1c1w6 k2s2 sw9 pw20:31",
        "n2c1w0 k1s1 p3",
    ):
        problem = cuconv.ConvProblem.parse(line)
        x, w, dy, bias = drawn(problem)
        xd, dyd = in_chunks(x, 1, 1, 2), in_chunks(dy, 1, 1, 2)
        options = problem.options()
        y = cuconv.conv(x, w, bias, **options)
        np.testing.assert_array_equal(ours.conv(xd, w, bias, **options), y, line)
        for got, expected in zip(
            ours.conv_backward(dyd, xd, w, **options), cuconv.conv_backward(dy, x, w, **options), strict=True
        ):
            np.testing.assert_array_equal(got, expected, line)


def test_same_bits_from_run_to_run():
    """Whichever block is done first: sums that are rounded are added in an order of their own."""
    problem = cuconv.ConvProblem.parse("n9c12h20w20 k8r3s3 p1")
    x, w, dy, _ = drawn(problem, exact=False)

    def late(block, block_id):
        time.sleep(0.001 * (hash((block_id, time.perf_counter_ns())) % 5))
        return block

    bits = set()
    for scheduler in ("sync", "threads", "threads", "threads"):
        xd, dyd = (in_chunks(a, 1, 5, 7, 20).map_blocks(late, dtype=a.dtype) for a in (x, dy))
        results = [ours.conv(xd, w, padding=1), *ours.conv_backward(dyd, xd, w, padding=1)]
        computed = dask.compute(*results, scheduler=scheduler, num_workers=4)
        bits.add(b"".join(result.tobytes() for result in computed))
    assert len(bits) == 1


def test_bits_do_not_depend_on_where_chunks_come_from():
    """As views of an array, in this process, or as arrays of their own, from another one."""
    x, w, dy, _ = drawn(cuconv.ConvProblem.parse("n2c8h46w46 k16r3s3 p1"), "float64", exact=False)
    results = [
        (ours.conv_bias_grad(of_dy), *ours.conv_backward(of_dy, of_x, w, padding=1)[:2])
        for of_x, of_dy in (
            [in_chunks(each, 1, each.shape[1], 30, 30).map_blocks(how, dtype="f8") for each in (x, dy)]
            for how in (np.asarray, np.ascontiguousarray, np.asfortranarray)
        )
    ]
    first, *others = ([each.tobytes() for each in dask.compute(*these)] for these in results)
    assert others == [first, first]


def test_kernels_in_blocks():
    """The CUDA path, emulated: blocks have paddings and groups of their own."""
    problem = cuconv.ConvProblem.parse("n2c4h7w6 k4r3s2 g2 sh2sw1 ph2:1pw1 circular")
    operands = drawn(problem)
    whole = all_of(problem, *operands)
    with emulator.emulated():
        cut = all_of(problem, *in_many_chunks(*operands), ours, algorithm="simt")
        for name, expected in whole.items():
            np.testing.assert_array_equal(cut[name].compute(), expected, name)


@pytest.mark.gpu
@pytest.mark.skipif(jit.usable_cupy() is None, reason="there is no GPU that CuPy can use")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_cupy_chunks(dtype):
    cupy = jit.usable_cupy()
    problem = cuconv.ConvProblem.parse(f"{LINE} reflect")
    operands = drawn(problem, dtype)
    whole = all_of(problem, *operands)
    on_gpu = [each.map_blocks(cupy.asarray) for each in in_many_chunks(*operands)]
    for name, got in all_of(problem, *on_gpu, ours).items():
        assert isinstance(got._meta, cupy.ndarray)
        assert isinstance(got.compute(), cupy.ndarray)
        np.testing.assert_array_equal(got.compute().get(), whole[name], name)


# -- graphs -------------------------------------------------------------------------------------------------


def test_nothing_is_computed_while_graphs_are_made():
    def never(*_, **__):
        raise AssertionError("a chunk was computed")

    problem = cuconv.ConvProblem.parse("n2c1d4000h4000w4000 k2t2r3s3 pd1:0ph1pw1")
    meta, many = np.empty((0,) * 5, "f4"), ((1000,) * 4,) * 3
    x, dy, w = (
        da.map_blocks(never, dtype=meta.dtype, chunks=chunks, meta=meta)
        for chunks in (((1, 1), (1,), *many), ((1, 1), (2,), *many), ((2,), (1,), (2,), (3,), (3,)))
    )
    for name, result in all_of(problem, x, w, dy, None, ours).items():
        assert isinstance(result, da.Array), name
        with pytest.raises(AssertionError, match="a chunk was computed"):
            result.blocks[(0,) * result.ndim].compute()


def test_metadata_and_chunks():
    """A result is cut where its operands are: at the centres of the windows, and as x where there is one."""
    x, w = da.zeros((5, 4, 20, 30), chunks=(2, 4, 6, 30), dtype="f4"), np.zeros((6, 4, 3, 5), "f4")
    y = ours.conv(x, w, padding="same")
    assert y.chunks == ((2, 2, 1), (6,), (6, 6, 6, 2), (30,))
    assert (y.shape, y.dtype, type(y._meta)) == ((5, 6, 20, 30), np.float32, np.ndarray)
    assert ours.conv(x, w).chunks[2] == (5, 6, 6, 1)
    assert ours.conv(x, w, stride=4, padding=1).chunks[2] == (2, 1, 2)
    dx, dw, db = ours.conv_backward(y, x, w, padding="same")
    assert dx.chunks == x.chunks
    assert dw.chunks == ((6,), (4,), (3,), (5,))
    assert db.chunks == ((6,),)
    cut = x.rechunk({1: (1, 3)})
    dx, dw, _ = ours.conv_backward(y, cut, w, padding="same")
    assert dx.chunks == cut.chunks
    assert dw.chunks == ((6,), (1, 3), (3,), (5,))
    x_in_groups, w_in_groups = da.zeros((1, 12, 9), chunks=(1, 5, 9)), da.zeros((6, 4, 3), chunks=(5, 4, 3))
    grouped = ours.conv(x_in_groups, w_in_groups, groups=3)
    assert grouped.chunks[1] == (2, 2, 1, 1)
    assert ours.conv(x[0], w).shape == (6, 18, 26)


def test_equal_calls_have_equal_keys_and_different_ones_do_not():
    x, w = da.zeros((2, 3, 20), chunks=5), da.ones((4, 3, 3), chunks=4)
    names = [
        ours.conv(x, w, **options).name
        for options in ({}, dict(padding=1), dict(flip=True), dict(algorithm="gemm"), dict(activation="relu"))
    ]
    assert len(set(names)) == len(names)
    assert ours.conv(x, w).name == names[0]
    assert ours.conv(x.rechunk(4), w).name != names[0]
    y = ours.conv(x, w, padding=1)
    assert ours.conv_bias_grad(y).name == ours.conv_backward(y, x, w, padding=1)[2].name
    spelled = {
        ours.conv(x.astype("i4"), w.astype("i4"), out_dtype=dtype).name
        for dtype in ("int32", "i4", np.int32, np.dtype("int32"))
    }
    assert len(spelled) == 1


def test_only_halos_are_cut_out_and_shared():
    """A window is its chunk with what its neighbours give; blocks of other filters read the same windows."""
    x, w = da.zeros((1, 2, 12, 8), chunks=(1, 2, 4, 8), dtype="f4"), np.zeros((4, 2, 3, 3), "f4")
    graph = dict(ours.conv(x, in_chunks(w, 2, 2, 3, 3), padding=1).__dask_graph__())
    kinds = [key[0].rpartition("-")[0] for key in graph]
    halos = [key for key in graph if "-window-halo" in key[0]]
    assert len(halos) == 4  # a row of 8 from above or below, at both cuts
    assert kinds.count("conv-window") == 3
    assert kinds.count("conv") == 6
    for _, *parts in halos:  # chunk, start and stop on each axis
        assert math.prod(np.subtract(parts[2::3], parts[1::3])) == 2 * 8
    graph = dict(ours.conv(x, w[..., :1, :1]).__dask_graph__())
    assert not any(key[0].startswith("conv-window") for key in graph)


def test_sums_are_trees_of_bounded_width():
    x = da.zeros((100, 1, 8), chunks=(1, 1, 8), dtype="f4")
    dw = ours.conv_weight_grad(x, x, (1, 1, 1))
    graph = {key: task for key, task in dict(dw.__dask_graph__()).items() if isinstance(task, tuple)}
    # 100 parts: 12 sums of 8 and one of 4; of these one of 8 and one of 5; and their sum.
    sums = [task for task in graph.values() if task[0] is tasks.added]
    assert sorted(len(task[1]) for task in sums) == [2, 4, 5, *[8] * 13]
    np.testing.assert_array_equal(dw, np.zeros((1, 1, 1)))


def test_images_are_cut_where_either_operand_is():
    """Otherwise a part would hold all chunks of the one that is cut."""
    x, dy = (
        da.zeros((6, 1, 8), chunks=(3, 1, 8), dtype="f4"),
        da.zeros((6, 1, 8), chunks=(2, 1, 8), dtype="f4"),
    )
    graph = dict(ours.conv_weight_grad(x, dy, (1, 1, 1)).__dask_graph__())
    assert sum(key[0].startswith("conv_weight_grad-part") for key in graph) == 4


def test_padding_modes_put_no_more_than_edges_into_graphs():
    for mode in ("circular", "reflect", "replicate", "symmetric"):
        x, w = da.zeros((2, 1, 10**6), chunks=(1, 1, 500_000), dtype="f4"), np.zeros((1, 1, 5), "f4")
        options = dict(padding=2, padding_mode=mode)
        for result in (ours.conv(x, w, **options), ours.conv_input_grad(x, w, x.shape, **options)):
            sizes = [len(pickle.dumps(task)) for task in dict(result.__dask_graph__()).values()]
            assert max(sizes) < 3000


def test_the_end_of_a_sum_takes_no_more_memory_than_its_block():
    total, bias = np.ones((1, 4, 1 << 20), "f4"), np.ones(4, "f4")
    tasks.finished(total[..., :8].copy(), bias, activation="gelu", channel=1, dtype="f4")
    allowed = 2 * total.nbytes
    peak = peak_memory(lambda: tasks.finished(total, bias, activation="gelu", channel=1, dtype="f4"), allowed)
    assert peak < allowed


def test_channels_are_summed_in_parts_where_they_are_cut():
    x, w = da.ones((1, 12, 8), chunks=(1, 4, 8), dtype="f4"), np.ones((2, 12, 3), "f4")
    keys = [key[0] for key in dict(ours.conv(x, w).__dask_graph__())]
    assert sum(key.startswith("conv-part") for key in keys) == 3
    assert not any(key.startswith("conv-window") for key in keys)


def test_graphs_grow_by_little_for_every_block():
    """Few calls to make each, and of tasks only what windows, neighbours and blocks ask for.

    Calls are counted, since what they take depends on what else a machine and its process have in hand.
    """
    x = da.zeros((16, 8, 256, 256), chunks=(1, 8, 32, 32), dtype="f4")
    w = np.zeros((8, 8, 3, 3), "f4")
    profile = cProfile.Profile()
    with profile:
        y = ours.conv(x, w, padding=1)
        graph = dict(y.__dask_graph__())
    blocks = math.prod(y.numblocks)
    assert sum(entry.callcount for entry in profile.getstats()) < 500 * blocks
    assert len(graph) < (1 + 8 + 1 + 1 + 0.1) * blocks  # a chunk, neighbours' halos, window, block


# -- more than fits into memory -----------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="the example limits its memory by means of Linux")
def test_a_volume_larger_than_memory_is_filtered_and_its_filter_learned(tmp_path):
    size, memory = 380, 192  # 219 MB, twice
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    example = [ROOT / "examples" / "volume.py", "--size", size, "--memory", memory, "--steps", 3]
    ran = subprocess.run(
        [sys.executable, *map(str, example)], capture_output=True, text=True, check=False, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    assert "219 MB of noise, in 192 MB of memory" in ran.stdout
    errors = [float(error) for error in re.findall(r"largest error of the filter (\S+)", ran.stdout)]
    assert len(errors) == 3
    assert errors[-1] < 1e-5
    assert "100% Completed" in ran.stdout
    # The same limit refuses the volume as an array.
    program = f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r}); import volume\n"
    program += f"volume.limit_memory({memory}); volume.np.ones(({size},) * 3, 'f4')"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    assert "ArrayMemoryError" in ran.stderr


# -- where blocks are cut -----------------------------------------------------------------------------------


def test_cells_of_chunks():
    axis = cuts.Axis((3, 0, 4, 2))
    for low in range(10):
        for high in range(low, 10):
            assert cells_of(axis, axis.between(low, high)) == list(range(low, high))
    rng = np.random.default_rng(0)
    for _ in range(300):
        low, high = sorted(rng.integers(0, 10, 2).tolist())
        others = rng.integers(0, 9, rng.integers(0 if low < high else 1, 5))
        parts, inside, places = axis.gathered(low, high, others)
        cells = cuts.Cells(parts, (places, inside, places[:1]))
        expected = [*others.tolist(), *range(low, high), *others[:1].tolist()]
        assert cells_of(axis, cells) == expected
        assert cells.count == len(expected)
        assert len({number for number, _, _ in parts}) == len(parts)
    assert cells_of(cuts.Axis((0,)), cuts.Axis((0,)).between(0, 0)) == []


def cells_of(axis, cells):
    found = [axis.starts[number] + cell for number, *part in cells.parts for cell in range(*part)]
    if not cells.order:
        return found
    return [cell for places in cells.order for cell in np.array(found, int)[places].tolist()]


def test_runs_of_groups_tile_the_channels():
    rng = np.random.default_rng(0)
    for _ in range(300):
        groups, per_k, per_c = rng.integers(1, 5, 3).tolist()
        problem = cuconv.ConvProblem.parse(f"c{groups * per_c}w1 k{groups * per_k}s1 g{groups}")
        k_cuts, c_cuts = (rng.integers(0, most + 1, 3).tolist() for most in (problem.k, problem.c))
        found = cuts.runs(problem, k_cuts, c_cuts)
        for blocks, extent, given in (
            ([block for run in found for block in run.k], problem.k, k_cuts),
            ([block for run in found for block in run.c], problem.c, c_cuts),
        ):
            bounds = [blocks[0][0], *(high for _, high in blocks)]
            assert bounds == sorted(set(bounds))
            assert {0, extent, *given} <= set(bounds)
        for run in found:
            assert run.groups == 1 or len(run.k) == len(run.c) == 1
            assert run.c[0][0] == run.first * per_c
            assert run.c[-1][1] == (run.first + run.groups) * per_c


# -- a cluster ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """Six processes, which keep to where data are."""
    pytest.importorskip("distributed")
    with moved.client() as client:
        yield client


def test_processes_give_the_same(cluster):
    problem = cuconv.ConvProblem.parse(LINE)
    for dtype in ("float32", "bfloat16"):
        operands = x, w, dy, bias = drawn(problem, dtype)
        whole = all_of(problem, *operands)
        cut = all_of(problem, in_chunks(x, 2, 6, 7, 11), w, in_chunks(dy, 4, 2, 7, 3), bias, ours)
        for name, future in cluster.compute(cut).result().items():
            np.testing.assert_array_equal(future.astype("f8"), whole[name].astype("f8"), f"{name} {dtype}")


def slowly(block):
    time.sleep(0.25)
    return block


def test_workers_lost_in_the_middle(cluster):
    """Of six one is killed while it has blocks that others need: they are computed again, the same bits."""
    problem = cuconv.ConvProblem.parse("n8c4h64w64 k4r3s3 p1")
    x, w, dy, _ = drawn(problem, exact=False)
    of_x, of_dy = in_chunks(x, 1, 4, 16, 64), in_chunks(dy, 1, 4, 16, 64)
    expected = ours.conv_weight_grad(of_x, of_dy, w.shape, padding=1).compute()
    slow = of_x.map_blocks(slowly, dtype=x.dtype)
    dw = ours.conv_weight_grad(slow, of_dy, w.shape, padding=1)
    (future,) = cluster.compute([dw])
    processes = cluster.run(os.getpid)
    assert os.getpid() not in processes.values()
    while not (holders := [name for name, keys in cluster.has_what().items() if keys]):
        time.sleep(0.05)
    assert not future.done(), "it was over before a worker was killed"
    lost = holders[0]
    os.kill(processes[lost], signal.SIGKILL)
    np.testing.assert_array_equal(future.result(timeout=120), expected)
    cluster.wait_for_workers(len(processes), timeout=120)
    assert processes[lost] not in cluster.run(os.getpid).values()


def test_what_is_moved_is_what_the_page_says(cluster):
    """Bytes of halos and of parts, on paper and by Dask, to the last one."""
    found = moved.rows(cluster)
    for row in found.splitlines()[2:]:
        *_, on_paper, by_dask = row.strip("| ").split(" | ")
        assert on_paper == by_dask, row
    assert splits.PAGE.read_text() == moved.written(found)


# -- wrong input --------------------------------------------------------------------------------------------

X, W = da.zeros((2, 4, 9, 8), chunks=2, dtype="f4"), np.zeros((6, 4, 3, 3), "f4")
HUGE = da.map_blocks(np.zeros, dtype="f4", chunks=((1,), (1,), (2**60, 2**60)), meta=np.empty((0,) * 3, "f4"))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ours.conv(W, W), TypeError, "x or w must be a Dask array, got x a ndarray, w a ndarray"),
        (lambda: ours.conv(None, None), TypeError, "x must be a NumPy array.*got builtins.NoneType"),
        (lambda: ours.conv_bias_grad(None), TypeError, "dy must be a NumPy array.*got builtins.NoneType"),
        (
            lambda: ours.conv(HUGE, W[0, :1]),
            ValueError,
            r"x of shape .* 2\^63 bytes",
        ),
        (lambda: ours.conv([[1]], X), TypeError, r"x must be a NumPy array.*got builtins.list"),
        (lambda: ours.conv(X, W.astype("f8")), TypeError, "w must have the dtype of x, float32, got float64"),
        (lambda: ours.conv(X.astype("i2"), W), TypeError, "x has dtype int16"),
        (lambda: ours.conv(X, W[:, :3]), ValueError, "x has 4 channels"),
        (lambda: ours.conv(X, W, W[0, 0, 0]), ValueError, r"bias must have shape \(6,\)"),
        (lambda: ours.conv(X, W, stride=0), ValueError, "stride must be at least 1"),
        (lambda: ours.conv(X, W, padding="sane"), ValueError, "did you mean 'same'"),
        (lambda: ours.conv(X, W, paddin=1), TypeError, "no argument 'paddin'; did you mean 'padding'"),
        (lambda: ours.conv(X), TypeError, "missing 1 required positional argument: 'w'"),
        (lambda: ours.conv(X, W, padding_mode="wrap"), ValueError, "'circular'"),
        (lambda: ours.conv(X, W, algorithm="fats"), ValueError, "algorithm must be one of"),
        (lambda: ours.conv(X, W, algorithm="simt"), ValueError, "is for arrays on a GPU"),
        (lambda: ours.conv(X, W, algorithm=1), TypeError, "algorithm must be a string"),
        (lambda: ours.conv(X, W, precision="tf16"), ValueError, "precision must be one of"),
        (
            lambda: ours.conv(X, W, out=W),
            TypeError,
            "out must be None: Dask arrays cannot be written to, got array",
        ),
        (
            lambda: ours.conv(X, W, accumulate=True),
            ValueError,
            "accumulate=True adds to out, but out is None",
        ),
        (lambda: ours.conv(X[X[:, 0, 0, 0] > 0], W), ValueError, "x must have chunks of known sizes"),
        (lambda: ours.conv_input_grad(X, W, (2, 4, 9, 8)), ValueError, "dy must have shape"),
        (lambda: ours.conv_weight_grad(X, X, (4, 4, 3, 3)), ValueError, "dy must have shape"),
        (lambda: ours.conv_bias_grad(X, layout="nchw"), ValueError, "layout must be one of"),
        (lambda: ours.conv_bias_grad(X, batched=1), TypeError, "batched must be True or False"),
        (lambda: ours.conv_backward(X, X, W, needs=True), ValueError, "needs must have three entries"),
        (lambda: ours.conv_transpose(X, W), ValueError, "x has 4 channels"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_the_core_says_where_dask_arrays_go():
    with pytest.raises(TypeError, match=r"x must be .*; what Dask has not computed yet is for cuconv\.dask"):
        cuconv.conv(X, W)


def test_a_halo_does_not_keep_its_chunk_in_memory():
    chunk = np.zeros((1, 1, 50, 40))
    halo = tasks._cut(chunk, (slice(None), slice(None), slice(0, 1), slice(None)))
    assert halo.shape == (1, 1, 1, 40)
    assert halo.base is None


def test_chunks_are_not_moved_for_being_few():
    """Dask's scheduler goes by the names of tasks: see `Graph.window`."""
    for chunks, names in ((2, 2), (4, 4), (5, 1), (9, 1)):
        x = da.zeros((1, 1, 10 * chunks), chunks=(1, 1, 10), dtype="f4")
        graph = dict(ours.conv(x, np.zeros((1, 1, 3), "f4"), padding=1).__dask_graph__())
        assert len({key[0] for key in graph if "-window-halo" in key[0]}) == names


def test_parts_of_half_types_are_multiplied_on_tensor_cores(monkeypatch):
    """In float32 they have no more than 11 bits, which TF32 keeps."""
    seen = []
    monkeypatch.setattr(cuconv.api, "conv", lambda *operands, **options: seen.append((operands, options)))
    half = np.ones((1, 1, 3), "f2")
    for wide in (True, False):
        tasks.part("conv", dict(precision=None, groups=1), wide, half, half)
    assert [options for _, options in seen] == [
        dict(precision=precision, groups=1) for precision in ("tf32", None)
    ]
    assert [operands[0].dtype for operands, _ in seen] == ["float32", "float16"]


class OnGPU:
    """What there is to know of CuPy's chunks while nothing is computed."""

    __module__ = "cupy"
    shape, dtype = (0, 0, 0, 0), np.dtype("f4")


def test_chunks_on_a_gpu_are_planned_for_it():
    x, w = X.map_blocks(np.copy), da.from_array(W)
    x._meta = OnGPU()
    with pytest.raises(TypeError, match=r"w must be the same kind of array as x .cupy array on the GPU"):
        ours.conv(x, w)
    w._meta = OnGPU()
    with pytest.raises(ValueError, match="algorithm='mec' is for arrays on the CPU"):
        ours.conv(x, w, algorithm="mec")
    with pytest.raises(ValueError, match="algorithm='grouped' cannot do"):
        ours.conv(x, w, algorithm="grouped")
    for algorithm in ("simt", "tune", "auto"):
        with mock.patch.object(tasks, "meta_from_array", return_value=np.empty((0,) * 4, "f4")):
            assert ours.conv(x, w, algorithm=algorithm).shape == (2, 6, 7, 6)


def test_tf32_of_the_environment_counts_for_a_named_algorithm(monkeypatch, fresh_plans):
    x, w = X.map_blocks(np.copy), da.from_array(W)
    x._meta = w._meta = OnGPU()
    with (
        mock.patch.object(tasks, "meta_from_array", return_value=np.empty((0,) * 4, "f4")),
        mock.patch.object(described, "make_plan", wraps=described.make_plan) as make_plan,
    ):
        for setting, precision in ((None, None), ("1", "tf32")):
            if setting:
                monkeypatch.setenv("CUPY_TF32", setting)
            forget()
            make_plan.reset_mock()
            assert ours.conv(x, w, algorithm="mma").shape == (2, 6, 7, 6)
            assert {call.args[0].precision for call in make_plan.call_args_list} == {precision}


def test_a_named_algorithm_has_to_do_every_block():
    x, w = np.ones((2, 4, 9, 8), "f4"), np.ones((4, 1, 3, 3), "f4")
    options = dict(padding=1, groups=4, algorithm="toeplitz")
    whole = cuconv.conv(x, w, **options)
    np.testing.assert_array_equal(ours.conv(in_chunks(x, 2, 4, 3, 8), w, **options), whole)
    with pytest.raises(ValueError, match=r"algorithm='toeplitz' cannot do .*n2c4h2w8 "):
        ours.conv(in_chunks(x, 2, 4, 2, 8), w, **options)


def test_chunks_of_other_libraries_are_refused():
    jnp = pytest.importorskip("jax.numpy")
    x = da.Array({("q", 0, 0, 0): jnp.ones((1, 1, 8))}, "q", ((1,), (1,), (8,)), meta=jnp.ones((0, 0, 0)))
    with pytest.raises(
        TypeError, match=r"x must be a Dask array of NumPy or CuPy.*got chunks of a jax array"
    ):
        ours.conv(x, x)


def test_only_what_is_needed():
    dy = da.zeros((2, 6, 7, 6), chunks=3, dtype="f4")
    dx, dw, db = ours.conv_backward(dy, X, W, needs=(False, True, False))
    assert dx is None
    assert db is None
    assert dw.shape == W.shape


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_the_cores(name):
    function, core = getattr(ours, name), getattr(cuconv, name)
    assert inspect.signature(function) == inspect.signature(core)
    assert core.__doc__ in function.__doc__
    assert sorted(NAMES) == ours.__all__


def test_without_dask_it_says_what_to_install():
    program = "import sys; sys.modules['dask'] = None; import cuconv; import cuconv.dask"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ImportError: cuconv.dask needs Dask" in ran.stderr
    assert "pip install 'dask[array]'" in ran.stderr
    program = "import cuconv, sys; assert not [name for name in sys.modules if name.startswith('dask')]"
    subprocess.run([sys.executable, "-c", program], check=True)
