"""Launching on CuPy arrays, with a stand-in for CuPy: what kernels are given, checks, and work per call."""

import sys
import types

import numpy as np
import pytest

import cuconv
from benchmarks import stand_in
from benchmarks.stand_in import Array
from cuconv.cuda import launch, schedule
from cuconv.cuda.strides import strides_by_role
from cuconv.plan import make_plan


@pytest.fixture
def cupy():
    with stand_in.installed() as module:
        yield module


def test_what_a_kernel_is_given(cupy):
    x, w, bias = Array((2, 4, 9, 8)), Array((6, 4, 3, 3)), Array((6,))
    y = cuconv.conv(x, w, bias, padding=1, algorithm="direct")
    assert y.shape == (2, 6, 9, 8)
    (launched,) = cupy.launched
    assert (launched.kernel.name, launched.device) == ("conv_fprop_direct_float", 0)
    assert (launched.grid, launched.block, launched.shared_bytes) == ((7,), (128,), 0)
    assert launched.pointers == [array.data.ptr for array in (x, w, bias, y)]
    params = launched.params
    assert params["a"].tolist() == [288, 72, 0, 8, 1]
    assert params["items"] == 2 * 6 * 9 * 8
    assert cupy.allocated == []


def test_strides_are_looked_at_in_every_call(cupy):
    """The same shapes with other strides, one after the other, and turned filters."""
    w = Array((6, 4, 3))
    for strides in (None, (40, 4, 20), (-160, 40, 4)):
        cuconv.conv(Array((2, 4, 10), strides=strides), w, flip=True)
    first, second, third = (launched.params for launched in cupy.launched)
    assert first["a"].tolist() == [40, 10, 0, 0, 1]
    assert second["a"].tolist() == [10, 1, 0, 0, 5]
    assert third["a"].tolist() == [-40, 10, 0, 0, 1]
    assert first["b"].tolist()[4] == -1
    assert first["b_start"] == 2


def test_workspace_comes_from_the_pool_and_null_pointers_where_nothing_is(cupy):
    x, w = Array((2, 4, 9)), Array((6, 4, 3))
    cuconv.conv(x, w, padding=2, padding_mode="reflect")
    pad, main = cupy.launched
    assert cupy.allocated == [2 * 4 * 13 * 4]
    assert pad.pointers == [x.data.ptr, 0, 0, 12345 * 256]
    assert main.pointers[:3] == [12345 * 256, w.data.ptr, 0]


def test_a_workspace_of_nothing_but_empty_arrays(cupy):
    """A sum over no channels, of an x that has to be padded first."""
    cuconv.conv(Array((2, 0, 9)), Array((6, 0, 3)), padding=2, padding_mode="reflect")
    assert cupy.allocated == []
    assert cupy.launched[-1].pointers[0] == 0


def test_narrower_integers_are_widened_first(cupy):
    """Turned filters from where they start; an operand that is wide enough is read as it is."""
    x, w = Array((2, 4, 9), np.uint8), Array((6, 4, 3), np.int8)
    cuconv.conv(x, w, flip=True, out_dtype="int32", algorithm="direct")
    wide = Array((6, 4, 3), np.int32)
    cuconv.conv(x, wide, out_dtype="int32", algorithm="direct")
    of_x, of_w, main, again, alone = cupy.launched
    assert [launched.kernel.template for launched in (of_x, of_w, again)] == 3 * ["conv_widen"]
    start, wide_x = 12345 * 256, -(-4 * 2 * 4 * 9 // 256) * 256
    assert of_x.pointers == [0, x.data.ptr, 0, start]
    assert of_w.pointers == [0, w.data.ptr, 0, start + wide_x]
    assert main.pointers[:2] == [start, start + wide_x]
    params = of_w.params
    assert (params["b_start"], params["b"].tolist()) == (2, [12, 3, 0, 0, -1])
    params = main.params
    assert (params["b_start"], params["b"].tolist()) == (0, [12, 3, 3, 3, 1])
    assert alone.pointers[:2] == [start, wide.data.ptr]


def test_several_arrays_share_the_workspace(cupy, monkeypatch):
    """A padded x and the parts of a sum, each at its own offset."""
    monkeypatch.setattr(schedule, "PART", 1)
    x, dy = Array((2, 4, 30)), Array((2, 6, 32))
    cuconv.conv_weight_grad(x, dy, (6, 4, 3), padding=2, padding_mode="circular", algorithm="simt")
    pad, main, reduce = cupy.launched
    scratch = [pad.pointers[3], main.pointers[0], main.pointers[3], reduce.pointers[0]]
    start, padded = 12345 * 256, 2 * 4 * 34 * 4
    parts = start + -(-padded // 256) * 256
    assert scratch == [start, start, parts, parts]
    splits = int(reduce.params["splits"])
    assert splits > 1
    assert cupy.allocated == [parts - start + splits * 6 * 4 * 3 * 4]


def test_every_device_has_its_own_kernels(cupy):
    for device in (0, 1, 0):
        cupy.device = device
        cuconv.conv(Array((2, 4, 9), device_id=device), Array((6, 4, 3), device_id=device))
    assert [launched.device for launched in cupy.launched] == [0, 1, 0]


def test_the_workspace_of_a_captured_call_is_kept(cupy, monkeypatch):
    """A graph may be replayed when the pool has long given the memory to something else."""
    kept = []
    monkeypatch.setattr(launch, "_captured", kept)
    arguments = Array((2, 4, 9)), Array((6, 4, 3)), None, 1, 2
    cuconv.conv(*arguments, padding_mode="reflect")
    assert kept == []
    cupy.capturing = True
    cuconv.conv(*arguments, padding_mode="reflect")
    cuconv.conv(*arguments)
    assert [memory.ptr for memory in kept] == [12345 * 256]


def test_overlapping_arrays_of_different_origins(cupy):
    """What overlaps is a matter of addresses, whatever the arrays were cut from."""
    x, out = Array((1, 1, 8)), Array((1, 1, 8))
    out.data.ptr = x.data.ptr + 28
    with pytest.raises(ValueError, match="out must not overlap x"):
        cuconv.conv(x, Array((1, 1, 1)), out=out)


def test_another_librarys_out_waits_for_the_result(cupy, monkeypatch):
    """Handing the result over is what makes the other library's stream wait, wherever it was written."""

    class Tensor(Array):
        __module__ = "other"

        def __dlpack_device__(self):
            return (2, 0)

        def __dlpack__(self, **options):
            raise AssertionError("not read here")

    handed = []
    cupy.from_dlpack = lambda array: array
    other = types.SimpleNamespace(from_dlpack=lambda array: handed.append(array) or array)
    monkeypatch.setitem(sys.modules, "other", other)
    x, w, out = Tensor((1, 1, 8)), Tensor((1, 1, 1)), Tensor((1, 1, 8))
    assert cuconv.conv(x, w, out=out) is out
    assert handed == [out]


def test_out_may_lie_between_the_elements_of_x(cupy):
    """As on the CPU, what counts is whether elements share memory, not whether their ranges overlap."""
    w, memory = Array((1, 1, 1)), 1 << 40
    x, out = Array((1, 1, 8), strides=(64, 64, 8)), Array((1, 1, 8), strides=(64, 64, 8))
    x.data.ptr, out.data.ptr = memory, memory + 4
    assert cuconv.conv(x, w, out=out) is out
    out.data.ptr = memory + 8
    with pytest.raises(ValueError, match="out must not overlap x"):
        cuconv.conv(x, w, out=out)


def test_nothing_is_launched_for_empty_results(cupy):
    assert cuconv.conv(Array((0, 4, 9)), Array((6, 4, 3))).shape == (0, 6, 7)
    assert cupy.launched == []


def test_tune_times_every_candidate(cupy):
    for _ in range(2):
        cuconv.conv(Array((2, 4, 9)), Array((8, 1, 3)), groups=4, algorithm="tune")
    names = [launched.kernel.template for launched in cupy.launched]
    candidates = ["conv_fprop_depthwise", "conv_fprop_simt", "conv_fprop_direct"]
    assert names[:6] == [name for name in candidates for _ in range(2)]
    assert len(names) == 8


def test_arrays_elsewhere(cupy):
    x, w = Array((2, 4, 9)), Array((6, 4, 3), device_id=1)
    with pytest.raises(
        ValueError, match=r"w is on GPU 1, but the current one is 0: call within cupy\.cuda\.Dev"
    ):
        cuconv.conv(x, w)
    assert cupy.launched == []
    cupy.device = 1
    with pytest.raises(ValueError, match="x is on GPU 0"):
        cuconv.conv(x, w)


def test_unaligned_arrays(cupy):
    x, w = Array((2, 4, 9)), Array((6, 4, 3))
    x.data.ptr += 2
    with pytest.raises(ValueError, match="x must be aligned to its elements of 4 bytes"):
        cuconv.conv(x, w)
    with pytest.raises(ValueError, match="w must have strides in whole elements of 4 bytes"):
        cuconv.conv(Array((2, 4, 9)), Array((6, 4, 3), strides=(52, 13, 4)))
    assert cupy.launched == []


def test_plan_is_for_the_gpu_at_hand(cupy):
    plan = cuconv.plan("fprop", (2, 4, 9), (6, 4, 3), backend="cuda")
    assert plan is make_plan(plan.request, "auto", "cuda", "sm_90")
    assert plan(Array((2, 4, 9)), Array((6, 4, 3))).shape == (2, 6, 7)
    assert len(cupy.launched) == 1


def test_places_are_those_of_the_canonical_views():
    """Reversed, sliced, channels last and turned filters; the address is that of the turned first element."""
    w = np.zeros((6, 3, 10, 4))[::-1, :, ::2].transpose(0, 1, 3, 2)
    request = cuconv.plan("fprop", (2, 9, 9, 5), w.shape, layout="channels_last", flip=True).request
    start, strides = strides_by_role(request, {"w": w})["w"]
    view = cuconv.arrays.canonical(request, "w", w)
    assert start * 8 == view.__array_interface__["data"][0] - w.__array_interface__["data"][0] != 0
    assert tuple(step * 8 for step in strides) == view.strides
