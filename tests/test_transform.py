"""Operands made dense, channels-last and padded to whole vectors of channels, against NumPy, bit for bit."""

import dataclasses
import math

import ml_dtypes
import numpy as np
import pytest

import cuconv
from cuconv.arrays import canonical
from cuconv.cuda import schedule, transform
from cuconv.cuda.device import DEFAULT, device
from cuconv.cuda.strides import strides_by_role
from cuconv.problem import LAYOUTS, Request

from .emulator import run_plan


def request_of(line, op="fprop", dtype="float16", layout="channels_first", **options):
    return Request(op, cuconv.ConvProblem.parse(line), dtype, layout, **options)


def draft_of(request):
    return schedule.Draft(request, schedule.zero_padded(request), *schedule.OPERANDS[request.op])


def kind_of(dtype):
    return np.dtype(getattr(ml_dtypes, dtype, dtype))


def noise(shape, dtype):
    """Elements of any bits, those of NaN among them."""
    size = math.prod(shape) * kind_of(dtype).itemsize
    return np.random.default_rng(0).integers(0, 256, size, np.uint8).view(kind_of(dtype)).reshape(shape)


def bits(array):
    return array.view(f"u{array.itemsize}")


def laid_out_as(scratch):
    """An array that a launch can write into instead of one of the workspace, as aligned as that needs."""
    kind = kind_of(scratch.dtype)
    memory = np.empty(math.prod(scratch.shape) * kind.itemsize + 16, np.uint8)
    strides = [step * kind.itemsize for step in scratch.strides]
    return np.ndarray(scratch.shape, kind, memory, -memory.ctypes.data % 16, strides)


def padded_groups(array, groups):
    """What a canonical array becomes."""
    outer, channels, *spatial = array.shape
    within = channels // groups
    missing = -within % (16 // array.itemsize)
    grouped = bits(np.array(array)).reshape(outer, groups, within, *spatial)
    grouped = np.pad(grouped, ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0), (0, 0)))
    return grouped.reshape(outer, groups * (within + missing), *spatial)


def check(request, array, slot="a"):
    """The copy of an array that a call has in a slot; the kernel that makes it."""
    draft = draft_of(request)
    role = getattr(draft, slot)
    launch = transform.channels_last(draft, slot)
    scratch = getattr(draft, slot)
    assert launch.out is scratch
    assert scratch.channels_last
    assert scratch.end == draft.workspace_bytes
    expected = padded_groups(canonical(request, role, array), 1 if role == "w" else request.problem.groups)
    copy = laid_out_as(scratch)
    places = strides_by_role(request, {role: array}) | {"copy": (0, scratch.strides)}
    run_plan([dataclasses.replace(launch, out="copy")], {role: array, "copy": copy}, places)
    np.testing.assert_array_equal(bits(copy), expected)
    return launch.kernel


# From one cell to more than a tile of them, in vectors and not.
CELLS = {"w1": "s1", "w63": "s1", "w64": "s1", "w65": "s1"}
CELLS |= {"h7w7": "r1s1", "d3h5w4": "t1r1s1", "h56w56": "r1s1"}
CHANNELS = (1, 3, 8, 12, 20, 64, 65)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int32", "float64", "complex64"])
def test_numbers_of_cells_and_channels(dtype):
    """In both layouts and in one group and three; and so every instance for elements of a size."""
    executed = set()
    for cells, taps in CELLS.items():
        for channels in CHANNELS:
            for groups in (1, 3):
                for layout in LAYOUTS:
                    line = f"n2c{groups * channels}{cells} k{groups}{taps} g{groups}"
                    request = request_of(line, dtype=dtype, layout=layout)
                    executed.add(check(request, noise(request.shape("x"), dtype)))
    element = next(iter(executed)).arguments[0]
    copies = {kernel for kernel in transform.kernels() if kernel.template == "conv_channels_last"}
    assert executed == {kernel for kernel in copies if kernel.arguments[0] == element}


def reordered(shape, dtype, order):
    """An array with its axes in another order in memory, the slowest first."""
    array = noise([shape[axis] for axis in order], dtype)
    return array.transpose(np.argsort(order))


STRIDED = {
    "cropped": lambda n, c, h, w, t: noise((n, c, h + 3, w + 5), t)[:, :, 1 : h + 1, 3 : w + 3],
    "rows apart": lambda n, c, h, w, t: noise((n, c, h, w + 8), t)[..., :w],
    "images apart": lambda n, c, h, w, t: noise((n, c * h * w + 1), t)[:, :-1].reshape(n, c, h, w),
    "channels apart": lambda n, c, h, w, t: noise((n, c, h * w + 1), t)[..., :-1].reshape(n, c, h, w),
    "starts anywhere": lambda n, c, h, w, t: noise((n * c * h * w + 1,), t)[1:].reshape(n, c, h, w),
    "every second cell": lambda n, c, h, w, t: noise((n, c, h, 2 * w), t)[..., ::2],
    "every second row": lambda n, c, h, w, t: noise((n, c, 2 * h, w), t)[:, :, 1::2],
    "every second channel": lambda n, c, h, w, t: noise((n, 2 * c, h, w), t)[:, ::2],
    "some channels": lambda n, c, h, w, t: noise((n, h, w, c + 5), t)[..., 3 : c + 3].transpose(0, 3, 1, 2),
    "backwards": lambda n, c, h, w, t: noise((n, c, h, w), t)[::-1, ::-1, ::-1, ::-1],
    "cells backwards": lambda n, c, h, w, t: noise((n, c, h, w), t)[..., ::-1],
    "rows backwards": lambda n, c, h, w, t: noise((n, c, h, w), t)[:, :, ::-1],
    "channels backwards": lambda n, c, h, w, t: noise((n, h, w, c), t)[..., ::-1].transpose(0, 3, 1, 2),
    "one image": lambda n, c, h, w, t: np.broadcast_to(noise((1, c, h, w), t), (n, c, h, w)),
    "one row": lambda n, c, h, w, t: np.broadcast_to(noise((n, c, 1, w), t), (n, c, h, w)),
    "one channel": lambda n, c, h, w, t: np.broadcast_to(noise((n, 1, h, w), t), (n, c, h, w)),
    "one element": lambda n, c, h, w, t: np.broadcast_to(noise((1, 1, 1, 1), t), (n, c, h, w)),
    "columns first": lambda *extents: reordered(extents[:4], extents[4], (0, 1, 3, 2)),
    "channels between": lambda *extents: reordered(extents[:4], extents[4], (0, 2, 1, 3)),
    "images last": lambda *extents: reordered(extents[:4], extents[4], (1, 2, 3, 0)),
    "images within": lambda *extents: reordered(extents[:4], extents[4], (1, 0, 2, 3)),
}


@pytest.mark.parametrize("name", STRIDED)
def test_strides(name):
    """Where an image's cells are not dense, or vectors of them not aligned, and where they are."""
    for dtype in ("float16", "float32", "complex64"):
        for channels, h, w in ((3, 6, 8), (17, 8, 16), (66, 3, 7), (72, 4, 4)):
            request = request_of(f"n3c{channels}h{h}w{w} k1r1s1", dtype=dtype)
            check(request, STRIDED[name](3, channels, h, w, dtype))


@pytest.mark.parametrize(
    "line", ["n1c3w9 k5s4", "n1c40h9w9 k70r3s3 g2", "n1c130d3h3w3 k9t3r2s1", "n1c64w5 k64s1"]
)
def test_filters(line):
    """As they are and turned, in both layouts; they count as one group."""
    for op, dtype in (("fprop", "float16"), ("dgrad", "float32"), ("fprop", "float64")):
        for layout in LAYOUTS:
            for flip in (False, True):
                request = request_of(line, op, dtype, layout, flip=flip)
                check(request, noise(request.shape("w"), dtype), "b")


@pytest.mark.parametrize(("op", "slot"), [("dgrad", "a"), ("wgrad", "b"), ("wgrad", "a")])
def test_operands_of_gradients(op, slot):
    request = request_of("n2c6h9w9 k20r3s2 g2 sh2sw1", op, "float32")
    role = schedule.OPERANDS[op]["ab".index(slot)]
    check(request, noise(request.shape(role), "float32"), slot)


def test_without_a_batch_axis():
    request = request_of("n1c20w70 k1s1", batched=False)
    check(request, noise((20, 70), "float16"))


@pytest.mark.parametrize("line", ["n0c3w9 k5s4", "n2c0w9 k5s4"])
def test_an_empty_copy_is_not_launched(line):
    assert transform.channels_last(draft_of(request_of(line)), "a").blocks == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_after_padding_and_widening(layout):
    """What is in the workspace already is copied from there."""
    problem = "n2c3h5w6 k4r3s3 p2 circular"
    request = request_of(problem, dtype="int32", layout=layout, inputs=("int8", "int8"))
    copies = []

    def build(draft):
        copies.extend(transform.channels_last(draft, slot) for slot in "ab")
        return copies

    made = schedule.scheduled(build, request, device(DEFAULT))
    arrays = {role: noise(request.shape(role), "int8") for role in "xw"}
    x, w = (canonical(request, role, arrays[role]).astype("int32") for role in "xw")
    wrapped = np.pad(x, ((0, 0), (0, 0), (0, 0), (2, 2), (2, 2)), "wrap")
    for last, expected in zip(copies, (wrapped, w), strict=True):
        copy = laid_out_as(last.out)
        launches = [each for each in made.launches if each not in copies]
        launches.append(dataclasses.replace(last, out="copy"))
        places = strides_by_role(request, arrays) | {"copy": (0, last.out.strides)}
        run_plan(launches, arrays | {"copy": copy}, places, made.workspace_bytes)
        np.testing.assert_array_equal(bits(copy), padded_groups(expected, 1))
