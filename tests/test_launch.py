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
from cuconv.plan import forget, make_plan

from .device_arrays import Foreign


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
    assert (params["b_start"], params["b"].tolist()) == (0, [12, 3, 0, 0, 1])
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


@pytest.fixture
def copied(monkeypatch):
    """(array, its copy) of each copy that a call makes."""
    made, copy = [], Array.copy
    monkeypatch.setattr(
        Array, "copy", lambda array, order: made.append((array, copy(array, order))) or made[-1][1]
    )
    return made


def by_mma(x, w, **options):
    return cuconv.conv(x, w, layout="channels_last", algorithm="mma", **options)


HALF = dict(x=((2, 9, 8, 16), "float16"), w=((24, 3, 3, 16), "float16"))


def halves(**changes):
    """x and w of 16 channels, some of them with other strides; or behind where a vector begins, in bytes."""
    arrays = {}
    for role, arguments in HALF.items():
        change = changes.get(role)
        arrays[role] = Array(*arguments, strides=change if isinstance(change, tuple) else None)
        arrays[role].data.ptr += change if isinstance(change, int) else 0
    return arrays


@pytest.mark.parametrize(
    ("changes", "roles"),
    [
        ({}, ""),
        (dict(x=16), ""),
        (dict(x=(0, 256, 32, 2), w=(-288, 96, 32, 2)), ""),
        (dict(x=2), "x"),
        (dict(x=(2304, 256, 32, -2)), "x"),
        (dict(w=(306, 102, 34, 2)), "w"),
        (dict(x=8, w=8), "xw"),
    ],
)
def test_inputs_are_copied_where_vectors_cannot_be_read(cupy, copied, changes, roles):
    """Once in a call, the first time and again; the kernel is given the copy's address and strides."""
    arrays = halves(**changes)
    for _ in range(2):
        by_mma(**arrays)
        assert [array for array, _ in copied] == [arrays[role] for role in roles]
        read = arrays | {role: copy for role, (_, copy) in zip(roles, copied, strict=True)}
        *_, launched = cupy.launched
        assert launched.kernel.template == "conv_fprop_mma"
        assert launched.pointers[:2] == [read["x"].data.ptr, read["w"].data.ptr]
        steps = {role: [step // 2 for step in read[role].strides] for role in "xw"}
        for role, slot in (("x", "a"), ("w", "b")):
            n, h, w, c = steps[role]
            assert launched.params[slot].tolist() == [n, c, 0, h, w]
        copied.clear()
    assert len(cupy.launched) == 2


def test_addresses_are_looked_at_in_every_call(cupy, copied):
    """Arrays with the strides of others that were aligned, or were not."""
    for behind in (0, 2, 0, 2):
        by_mma(**halves(x=behind))
        assert len(copied) == bool(behind)
        copied.clear()


def test_turned_filters_are_read_as_they_lie(cupy, copied):
    by_mma(**halves(), flip=True)
    assert copied == []
    assert cupy.launched[0].params["b"].tolist() == [144, 1, 0, -48, -16]
    assert cupy.launched[0].params["b_start"] == 8 * 16


def test_empty_inputs_are_not_copied(cupy, copied):
    by_mma(Array((2, 9, 8, 0), "float16"), Array((24, 3, 3, 0), "float16"))
    assert copied == []


def test_copies_of_a_captured_call_are_kept(cupy, copied, monkeypatch):
    kept = []
    monkeypatch.setattr(launch, "_captured", kept)
    by_mma(**halves(x=2))
    assert kept == []
    cupy.capturing = True
    by_mma(**halves(x=2, w=2))
    assert kept == [copy for _, copy in copied[1:]]
    assert len(kept) == 2


def test_overlapping_arrays_of_different_origins(cupy):
    """What overlaps is a matter of addresses, whatever the arrays were cut from."""
    x, out = Array((1, 1, 8)), Array((1, 1, 8))
    out.data.ptr = x.data.ptr + 28
    with pytest.raises(ValueError, match="out must not overlap x"):
        cuconv.conv(x, Array((1, 1, 1)), out=out)


def test_another_librarys_out_waits_for_the_result(cupy, monkeypatch):
    """Handing the result over is what makes the other library's stream wait, wherever it was written."""

    class Tensor(Foreign, Array):
        __module__ = "other"

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
    candidates = ["conv_gather_depthwise", "conv_fprop_simt", "conv_fprop_direct"]
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


@pytest.fixture
def requests(monkeypatch):
    """The requests that calls make plans for."""
    made = []

    def noted(request, *arguments):
        made.append(request)
        return make_plan(request, *arguments)

    monkeypatch.setattr(sys.modules["cuconv.plan"], "make_plan", noted)
    return made


def test_cupys_variable_permits_tf32(cupy, fresh_plans, monkeypatch, requests):
    """Every op of float32 on a GPU that multiplies; not what names its precision, nor any other array."""
    monkeypatch.setenv("CUPY_TF32", "1")
    x, w, dy = Array((2, 6, 9)), Array((6, 6, 3)), Array((2, 6, 9))
    for _ in range(2):
        cuconv.conv(x, w, padding=1)
        cuconv.conv_backward(dy, x, w, padding=1)
        cuconv.conv_transpose(x, w, padding=1)
        cuconv.conv_transpose_backward(dy, x, w, padding=1)
        cuconv.conv_input_grad(dy, w, x.shape, padding=1)
        cuconv.conv_weight_grad(x, dy, w.shape, padding=1)
    found = [(request.op, request.precision) for request in requests]
    once = ["fprop", "dgrad", "wgrad", "bgrad", "dgrad", "fprop", "wgrad", "bgrad", "dgrad", "wgrad"]
    assert found == [(op, None if op == "bgrad" else "tf32") for op in once]  # the second time looked up
    requests.clear()
    cuconv.conv(Array((2, 6, 9), np.float16), Array((6, 6, 3), np.float16))
    cuconv.conv(np.ones((2, 6, 9), np.float32), np.ones((6, 6, 3), np.float32))
    assert [request.precision for request in requests] == [None, None]
    for op, backend, precision in (
        ("wgrad", "cuda", "tf32"),
        ("bgrad", "cuda", None),
        ("wgrad", "cpu", None),
    ):
        assert cuconv.plan(op, x.shape, w.shape, backend=backend).request.precision == precision


def test_cupys_variable_is_read_once(cupy, fresh_plans, monkeypatch, requests):
    """When a call first depends on it, as CuPy does: a plan made then and one made later agree."""
    x, w = Array((2, 6, 9)), Array((6, 6, 3))
    cuconv.conv(Array((2, 6, 9), np.float16), Array((6, 6, 3), np.float16))
    for value in ("2", "0"):
        monkeypatch.setenv("CUPY_TF32", value)
        cuconv.conv(x, w, stride=1 + int(value))
    forget()
    cuconv.conv(x, w)
    assert [request.precision for request in requests] == [None, "tf32", "tf32", None]


def test_a_wrong_value_of_cupys_variable(cupy, fresh_plans, monkeypatch):
    monkeypatch.setenv("CUPY_TF32", "yes")
    with pytest.raises(ValueError, match="CUPY_TF32 must be an int, in the environment, got 'yes'"):
        cuconv.conv(Array((2, 6, 9)), Array((6, 6, 3)))
    assert cupy.launched == []


def test_places_are_those_of_the_canonical_views():
    """Reversed, sliced, channels last and turned filters; the address is that of the turned first element."""
    w = np.zeros((6, 3, 10, 4))[::-1, :, ::2].transpose(0, 1, 3, 2)
    request = cuconv.plan("fprop", (2, 9, 9, 5), w.shape, layout="channels_last", flip=True).request
    start, strides = strides_by_role(request, {"w": w})["w"]
    view = cuconv.arrays.canonical(request, "w", w)
    assert start * 8 == view.__array_interface__["data"][0] - w.__array_interface__["data"][0] != 0
    assert tuple(step * 8 for step in strides) == view.strides
