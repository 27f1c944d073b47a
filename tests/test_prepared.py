"""Calls that are made again: what they launch, what is not the same call, errors, and how little they do.

On a GPU's arrays over a stand-in for CuPy, which notes the bytes that the driver would be given.
"""

import itertools
import sys
import threading
import types
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

import cuconv
from benchmarks import stand_in
from benchmarks.stand_in import Array
from cuconv import arrays, prepared, processor
from cuconv.cuda import launch
from cuconv.cuda.kernel import Scratch
from cuconv.cuda.strides import not_in_vectors, strides_by_role
from cuconv.plan import INPUTS, RESULT, forget

from .cases import OPS, PUBLIC, laid_out, seeded_case, to_layout
from .device_arrays import Foreign

X, W, Y = (2, 6, 9, 8), (6, 6, 3, 3), (2, 6, 9, 8)


@pytest.fixture
def cupy():
    with stand_in.installed() as module:
        yield module


def again(call):
    """The result of a call that has been made before, held to be no more than a look-up."""
    with mock.patch.object(arrays, "adopt", side_effect=AssertionError("the long way")):
        return call()


def is_kept(call):
    """Whether a call, made for the first time and then again, is looked up the second time."""
    call()
    try:
        again(call)
    except AssertionError:
        return False
    return True


def given():
    """x, w, bias, dy and out."""
    return Array(X), Array(W), Array(6), Array(Y), Array(Y)


CALLS = {
    "conv": (6, lambda x, w, bias, dy, out: cuconv.conv(x, w, padding=1)),
    "all of conv": (
        8,
        lambda x, w, bias, dy, out: cuconv.conv(
            x, w, bias, (1, 1), ((1, 1), [1, 1]), dilation=[1, 1], activation="relu", out=out
        ),
    ),
    "accumulate": (7, lambda x, w, bias, dy, out: cuconv.conv(x, w, None, 1, 1, out=out, accumulate=True)),
    "conv2d": (6, lambda x, w, bias, dy, out: cuconv.conv2d(x, w, padding=1)),
    "tune": (6, lambda x, w, bias, dy, out: cuconv.conv(x, w, padding=1, algorithm="tune")),
    "dgrad": (6, lambda x, w, bias, dy, out: cuconv.conv_input_grad(dy, w, x.shape, padding=1)),
    "wgrad": (6, lambda x, w, bias, dy, out: cuconv.conv_weight_grad(x, dy, w.shape, padding=1)),
    "bgrad": (6, lambda x, w, bias, dy, out: cuconv.conv_bias_grad(dy)),
    "backward": (6, lambda x, w, bias, dy, out: cuconv.conv_backward(dy, x, w, padding=1)),
    "some of it": (
        8,
        lambda x, w, bias, dy, out: cuconv.conv_backward(
            dy, x, w, padding=1, needs=(True, False, True), out=(out, None, bias)
        ),
    ),
    "transpose": (6, lambda x, w, bias, dy, out: cuconv.conv_transpose(dy, w, padding=1)),
    "its backward": (
        6,
        lambda x, w, bias, dy, out: cuconv.conv_transpose_backward(x, dy, w, padding=1),
    ),
    "Plan": (
        6,
        lambda x, w, bias, dy, out: cuconv.plan("fprop", X, W, padding=1, backend="cuda")(x, w, out=out),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_repeated_call_does_little(cupy, name):
    """Python functions entered, here and in NumPy, which unlike time do not depend on the machine."""
    most, function = CALLS[name]
    operands = given()
    call = (lambda: function(*operands)) if name != "Plan" else (lambda: planned(operands[0], operands[1]))
    planned = cuconv.plan("fprop", X, W, padding=1, backend="cuda")
    call()
    entered, ours = [], (str(Path(cuconv.__file__).parent), str(Path(np.__file__).parent))

    def count(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(ours):
            entered.append(frame.f_code.co_name)

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    assert len(entered) <= most, entered


def launches(cupy, call, operands):
    """What a call launches, with the pointers by name."""
    cupy.launched.clear()
    cupy.allocated.clear()
    results = call()
    results = results if isinstance(results, tuple) else (results,)
    named = {f"result {i}": array for i, array in enumerate(results) if array is not None} | operands
    addresses = {array.data.ptr: name for name, array in named.items()}
    return [
        (
            each.kernel, each.device, each.grid, each.block, each.shared_bytes, each.arguments[4:],
            [addresses.get(pointer, pointer) for pointer in each.pointers],
        )
        for each in cupy.launched
    ], list(cupy.allocated)  # fmt: skip


@pytest.mark.parametrize("seed", range(150))
def test_the_same_is_launched_as_the_first_time_and_as_planned(cupy, seed):
    case = seeded_case(seed)
    problem, rng = case.problem, np.random.default_rng(seed)

    def array(shape, volume=True, dtype=case.dtype, memory=case.memory):
        like = np.empty(shape, getattr(ml_dtypes, dtype, dtype))
        like = laid_out(to_layout(like, case, volume), memory, rng)
        return Array(like.shape, like.dtype, like.strides)

    x, w = array(problem.x_shape()), array(problem.w_shape(), volume=False)
    y, db = array(problem.y_shape()), Array(problem.k, x.dtype)
    narrow = case.inputs or (case.dtype, case.dtype)
    x_of, w_of = array(problem.x_shape(), dtype=narrow[0]), array(problem.w_shape(), False, narrow[1])
    bias = dict(bias=db) if case.bias else {}
    calls = {
        "fprop": (dict(x=x_of, w=w_of) | bias, ()),
        "dgrad": (dict(dy=y, w=w), (x.shape,)),
        "wgrad": (dict(x=x, dy=y), (w.shape,)),
    }
    shapes = problem.x_shape(case.layout), problem.w_shape(case.layout)
    if not case.batched:
        shapes = (x.shape, w.shape)
    for op in OPS:
        operands, shape = calls[op]
        options = case.options() | dict(flip=case.flip)
        planned = dict(dtype=case.dtype, backend="cuda", device="sm_90")
        if op == "fprop":
            options |= dict(activation=case.activation)
            planned |= dict(bias=case.bias)
            if case.inputs:
                options |= dict(out_dtype=case.dtype)
                planned |= dict(dtype=case.inputs)
        if case.accumulate:
            options |= dict(accumulate=True)
        plan = cuconv.plan(op, *shapes, **options | planned)
        inputs = dict(zip(INPUTS[op], operands.values(), strict=False))
        if any(not_in_vectors(plan.request, plan.launches, inputs).values()):
            continue  # a copy, another one each time, is launched in its place: see test_launch
        out = {}
        if case.accumulate:
            result = {"fprop": problem.y_shape, "dgrad": problem.x_shape, "wgrad": problem.w_shape}[op]()
            memory = "plain" if case.memory == "broadcast" else case.memory
            out = dict(out=array(result, op != "wgrad", memory=memory))

        def call(op=op, operands=operands, shape=shape, options=options | out):
            return PUBLIC[op](*operands.values(), *shape, **options)

        first = launches(cupy, call, operands | out)
        assert again(lambda call=call, all=operands | out: launches(cupy, call, all)) == first
        # What the plan says of arrays like these, its workspace being where the stand-in's pool is.
        roles = dict(zip(INPUTS[op], operands.values(), strict=False))
        roles[RESULT[op]] = out.get("out") or Array(plan.request.shape(RESULT[op]), x.dtype)
        roles |= bias if op == "fprop" else {}
        names = dict(zip((*INPUTS[op], "bias"), operands, strict=False))
        names[RESULT[op]] = "out" if out else "result 0"
        start = 12345 * 256 if plan.workspace_bytes else 0
        expected = [
            (
                each.kernel, 0, (each.blocks,), (each.kernel.threads,), each.shared_bytes,
                (each.params(strides_by_role(plan.request, roles)).tobytes(),),
                [
                    start + operand.offset if isinstance(operand, Scratch) else names.get(operand, 0)
                    for operand in (each.a, each.b, "bias", each.out)
                ],
            )
            for each in plan.launches
        ]  # fmt: skip
        assert first == (expected, [plan.workspace_bytes] if plan.workspace_bytes else [])


def test_results_are_new_ones_or_those_given(cupy):
    x, w, bias, dy, out = given()
    y = cuconv.conv(x, w, padding=1)
    other = again(lambda: cuconv.conv(Array(X), Array(W), padding=1))
    assert (other.shape, other.dtype, other is y) == (Y, np.float32, False)
    for place in (out, Array(Y)):
        assert cuconv.conv(x, w, padding=1, out=place) is place
    for places in ((None, Array(W), None), (out, None, bias)):
        call = lambda places=places: cuconv.conv_backward(dy, x, w, padding=1, out=places)  # noqa: E731
        call()
        results = again(call)
        assert [array.shape for array in results] == [X, W, (6,)]
        assert all(place in (None, result) for place, result in zip(places, results, strict=True))
    assert cuconv.conv_backward(dy, x, w, padding=1, needs=(False,) * 3) == (None, None, None)


@pytest.mark.parametrize("values", [(1, True, 1.0, np.int64(1), np.float64(1), np.True_, "1")], ids=str)
@pytest.mark.parametrize("wrap", ["{}", "({}, {})", "[{}, {}]", "(({0}, {0}), ({0}, {0}))"])
def test_what_is_equal_is_not_yet_the_same(cupy, values, wrap):
    """Each value is taken or refused as if no other had come before, in whatever order they come."""

    def answer(value):
        items = {"{}": value, "({}, {})": (value, 1), "[{}, {}]": [value, 1]}
        padding = items.get(wrap, ((value, 1), (1, 1)))
        try:
            return cuconv.conv(*given()[:2], padding=padding).shape
        except (TypeError, ValueError) as error:
            return str(error)

    alone = []
    for value in values:
        prepared.forget()
        alone.append(answer(value))
    for first, second in itertools.permutations(range(len(values)), 2):
        prepared.forget()
        assert [answer(values[i]) for i in (first, second, first)] == [
            alone[i] for i in (first, second, first)
        ]


def test_flags_are_no_numbers(cupy):
    x, w, _, dy, out = given()
    call = lambda one: cuconv.conv(x, w, padding=1, flip=one, out=out, accumulate=one)  # noqa: E731
    backward = lambda one: cuconv.conv_backward(dy, x, w, padding=1, needs=(one, one, one))  # noqa: E731
    for function, name in ((call, "flip"), (backward, "needs")):
        assert is_kept(lambda function=function: function(True))
        with pytest.raises(TypeError, match=f"{name} must be True or False, got 1$"):
            function(1)


def test_calls_that_differ_in_one_thing(cupy):
    x, w, *_ = given()
    shapes = [
        cuconv.conv(x, w, **options).shape
        for options in (dict(stride=2), dict(dilation=2), dict(padding=2), dict(stride=(2, 1)))
    ]
    assert shapes == [(2, 6, 4, 3), (2, 6, 5, 4), (2, 6, 11, 10), (2, 6, 4, 6)]
    row, taps = Array((2, 6, 9)), Array((6, 6, 3))
    assert cuconv.conv(row, taps, None, 1, ((1, 1),), (1,)).shape == (2, 6, 9)
    with pytest.raises(ValueError, match="padding must be an int, 1 ints"):
        cuconv.conv(row, taps, None, 1, ((1, 1), (1,)))
    assert cuconv.conv1d(row, taps).shape == (2, 6, 7)
    assert cuconv.conv_transpose(row, taps).shape == (2, 6, 11)
    for dtype, of_kernel in ((np.float32, "float"), (np.int32, "int32")):
        assert cuconv.conv(Array(X, dtype), Array(W, dtype)).dtype == dtype
        assert cupy.launched[-1].kernel.arguments[0] == of_kernel


def test_options_of_all_kinds(cupy):
    x, w, *_ = given()
    narrow = Array(X, np.uint8), Array(W, np.int8)
    for options in (
        dict(padding="same"), dict(padding=[1, (0, 1)]), dict(stride=np.int32(1)), dict(flip=np.True_),
        dict(layout="channels_first"), dict(precision="tf32"), dict(algorithm="simt"), dict(algorithm="tune"),
    ):  # fmt: skip
        assert is_kept(lambda options=options: cuconv.conv(x, w, **options)), options
    for dtype in ("int32", np.int32, np.dtype("int32"), np.int64):
        assert is_kept(lambda dtype=dtype: cuconv.conv(*narrow, out_dtype=dtype))
        assert cuconv.conv(*narrow, out_dtype=dtype).dtype == dtype


class Changing:
    """An int that becomes another."""

    value = 1

    def __index__(self):
        return self.value


@pytest.mark.parametrize("kind", [Changing, lambda: np.array(1), lambda: [np.array(1), 1]])
def test_options_that_change_are_looked_at_each_time(cupy, kind):
    stride, (x, w, *_) = kind(), given()
    assert not is_kept(lambda: cuconv.conv(x, w, stride=stride))
    if isinstance(stride, Changing):
        stride.value = 2
    else:
        (stride[0] if isinstance(stride, list) else stride)[...] = 2
    assert cuconv.conv(x, w, stride=stride).shape[2] == 4


def test_a_list_that_contains_itself(cupy):
    padding = [1]
    padding.append(padding)
    for _ in range(2):
        with pytest.raises(TypeError, match="padding must be an int"):
            cuconv.conv(*given()[:2], padding=padding)


def test_lists_are_looked_into_each_time(cupy):
    padding, (x, w, *_) = [1, 1], given()
    assert cuconv.conv(x, w, padding=padding).shape == Y
    padding[0] = 2
    assert cuconv.conv(x, w, padding=padding).shape == (2, 6, 11, 8)


def errors_before_and_after(call, good, bad):
    """The error of a call with bad arrays, first and once the same call is known from good ones."""
    texts = []
    for ready in (False, True):
        forget()
        if ready:
            call(*good)
            again(lambda: call(*good))
        with pytest.raises(ValueError, match=r".") as caught:
            call(*bad)
        texts.append(str(caught.value))
    again(lambda: call(*good))  # which the error has not undone
    return texts


def test_errors_are_the_same_once_a_call_is_known(cupy):
    def conv(x, w, out=None):
        return cuconv.conv(x, w, padding=1, out=out)

    def backward(dy, x, w, dx, dw):
        return cuconv.conv_backward(dy, x, w, padding=1, out=(dx, dw, None))

    def moved(shape, ptr):
        array = Array(shape)
        array.data.ptr = ptr
        return array

    x, w, _, dy, out = given()
    (text,) = {*errors_before_and_after(conv, (x, w), (x, Array(W, device_id=1)))}
    assert text == "w is on GPU 1, but the current one is 0: call within cupy.cuda.Device(1)"
    (text,) = {*errors_before_and_after(conv, (x, w), (moved(X, x.data.ptr + 2), w))}
    assert text == "x must be aligned to its elements of 4 bytes"
    for shift in (-4 * 863, 0, 4 * 863):
        bad = (x, w, moved(Y, x.data.ptr + shift))
        (text,) = {*errors_before_and_after(conv, (x, w, out), bad)}
        assert text == "out must not overlap x: it is written while x is needed"
    bad = (dy, x, w, out, moved(W, out.data.ptr))
    (text,) = {*errors_before_and_after(backward, (dy, x, w, out, Array(W)), bad)}
    assert text == "out[0] must not overlap out[1]: it is written while out[1] is needed"
    conv(x, w, out)
    again(lambda: conv(x, w, moved(Y, x.data.ptr + 4 * 864)))
    again(lambda: conv(x, w, moved(Y, x.data.ptr - 4 * 864)))


def test_what_lies_between_elements_is_looked_at_closely(cupy):
    w = Array((1, 1, 1))
    x, out = Array((1, 1, 8), strides=(64, 64, 8)), Array((1, 1, 8), strides=(64, 64, 8))
    call = lambda: cuconv.conv(x, w, out=out)  # noqa: E731
    assert is_kept(call)
    out.data.ptr = x.data.ptr + 4
    cupy.launched.clear()
    assert call() is out
    assert len(cupy.launched) == 1
    out.data.ptr = x.data.ptr + 8
    with pytest.raises(ValueError, match="out must not overlap x"):
        call()


def test_each_device_has_its_own(cupy):
    for device in (0, 1, 0, 1):
        cupy.device = device
        cuconv.conv(Array(X, device_id=device), Array(W, device_id=device))
    assert [each.device for each in cupy.launched] == [0, 1, 0, 1]


def test_workspaces_are_kept_in_every_capture(cupy, monkeypatch):
    kept = []
    monkeypatch.setattr(launch, "_captured", kept)
    call = lambda: cuconv.conv(*given()[:2], padding=1, padding_mode="reflect")  # noqa: E731
    assert is_kept(call)
    assert kept == []
    cupy.capturing = True
    again(call)
    again(call)
    assert len(kept) == 2


def test_one_array_given_twice(cupy):
    """Not kept, since another call may give two: each operand is its own then."""
    x = Array((3, 3, 3))
    cuconv.conv(x, x, padding=1)
    cuconv.conv(x, Array((3, 3, 3)), padding=1)
    first, second = (each.pointers for each in cupy.launched)
    assert first[0] == first[1] == second[0] != second[1]


def test_places_in_something_else_than_a_tuple(cupy):
    """An array of arrays, which might be filled with others the next time."""
    x, w, _, dy, out = given()
    places = np.empty(3, object)
    for place in (out, Array(Y)):
        places[0] = place
        assert cuconv.conv_backward(dy, x, w, padding=1, out=places)[0] is place


def test_no_pixels(cupy):
    """A sum over nothing, which is computed as something else than was given."""
    for _ in range(2):
        assert cuconv.conv_bias_grad(Array((2, 6, 0))).shape == (6,)
    assert all(each.pointers[0] for each in cupy.launched)


def test_what_is_kept_is_bounded(cupy, monkeypatch):
    monkeypatch.setattr(prepared, "_MOST", 3)
    for extent in range(3, 20):
        assert is_kept(lambda extent=extent: cuconv.conv(Array((1, 6, extent)), Array((6, 6, 3))))
        assert len(prepared._kept) <= 3


def test_several_threads(cupy, monkeypatch):
    """Making the same and different calls, while what is kept is forgotten all the time."""
    monkeypatch.setattr(prepared, "_MOST", 4)
    wrong, start = [], threading.Barrier(4)

    def work(seed):
        start.wait()
        try:
            for i in range(200):
                extent = 3 + (i * seed) % 7
                y = cuconv.conv(Array((1, 6, extent)), Array((6, 6, 3)), padding=1)
                if y.shape != (1, 6, extent):
                    wrong.append(y.shape)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(cupy.launched) == 800


def test_forget(cupy, monkeypatch):
    """After it, calls are planned by what is there then."""
    call = lambda: cuconv.conv(*given()[:2])  # noqa: E731
    assert is_kept(call)
    table = sys.modules["cuconv.plan"].TABLES["cuda"]
    monkeypatch.setitem(table, "fprop", table["fprop"][-1:])
    again(call)
    forget()
    call()
    assert [launched.kernel.template for launched in cupy.launched][-2:] == [
        "conv_gather_depthwise",
        "conv_fprop_direct",
    ]


def test_another_librarys_arrays(cupy, monkeypatch):
    """They are read anew, and handed over, in each call."""

    class Tensor(Foreign, Array):
        __module__ = "other"
        pending = False

        def is_neg(self):
            return self.pending

    read, handed = [], []
    cupy.from_dlpack = lambda array: read.append(array) or array
    other = types.SimpleNamespace(from_dlpack=lambda array: handed.append(array) or array)
    monkeypatch.setitem(sys.modules, "other", other)
    x, w, out = Tensor(X), Tensor(W), Tensor(Y)
    assert is_kept(lambda: cuconv.conv(x, w, padding=1, out=out))
    read.clear()
    handed.clear()
    assert again(lambda: cuconv.conv(x, w, padding=1, out=out)) is out
    assert (read, handed) == ([x, w, out], [out])
    assert is_kept(lambda: cuconv.conv(x, w, padding=1))
    assert again(lambda: cuconv.conv(x, w, padding=1)) is handed[-1] is not out
    x.pending = True
    with pytest.raises(TypeError, match="x is a view that other negates only on reading it"):
        cuconv.conv(x, w, padding=1)


def test_on_the_cpu():
    """The same for NumPy arrays: results, places for them, their errors, and the number of threads."""
    forget()
    rng = np.random.default_rng(0)
    x, w, bias = (rng.integers(-9, 9, shape).astype(float) for shape in (X, W, (6,)))
    expected = cuconv.conv(x, w, bias, padding=(1, 1))
    np.testing.assert_array_equal(again(lambda: cuconv.conv(x, w, bias, padding=(1, 1))), expected)
    out = np.zeros(Y).view(type("Sub", (np.ndarray,), {}))
    call = lambda out: cuconv.conv(x, w, bias, padding=1, out=out)  # noqa: E731
    call(out)
    out[...] = 0
    assert again(lambda: call(out)) is out
    np.testing.assert_array_equal(out, expected)
    plain = np.zeros(Y)
    call(plain)
    plain.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writable, got a read-only array"):
        call(plain)
    with pytest.raises(ValueError, match="out must not overlap x"):
        cuconv.conv(x, w, padding=1, out=x)
    with mock.patch.object(processor, "threads", return_value=7), pytest.raises(AssertionError):
        again(lambda: cuconv.conv(x, w, bias, padding=(1, 1)))
    again(lambda: cuconv.conv(x, w, bias, padding=(1, 1)))
