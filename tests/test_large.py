"""Problems of more than 2^31 elements: windows of them in the emulator, and plans across the boundary.

The arrays are reserved, not allocated: only the pages that a window touches take memory.
"""

import dataclasses
import itertools
import math
import mmap
import re
import sys
import time
from unittest import mock

import numpy as np
import pytest

import cuconv
from cuconv.cli.clock import uncollected
from cuconv.cuda import depthwise, mma, schedule, simt, transform
from cuconv.cuda.algorithms import TABLE
from cuconv.cuda.device import DEFAULT, DEVICES
from cuconv.cuda.kernel import Launch
from cuconv.cuda.strides import not_in_vectors, strides_by_role
from cuconv.plan import INPUTS, RESULT, forget, make_plan
from cuconv.problem import LAYOUTS, Request

from .cases import HUGE
from .emulator import run_window

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is reserved by Linux's flags")

NORESERVE = 0x4000  # mmap.MAP_NORESERVE, which Python has from 3.13 on
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE


def reserved(shape, dtype):
    """An array of zeros, as large as you like."""
    memory = mmap.mmap(-1, math.prod(shape) * np.dtype(dtype).itemsize, flags=FLAGS)
    return np.frombuffer(memory, dtype).reshape(shape)


def integers(shape, dtype="float16"):
    return np.random.default_rng(0).integers(-3, 4, shape).astype(dtype)


def planned(op, line, algorithm, layout="channels_first", dtype="float16"):
    problem = cuconv.ConvProblem.parse(line)
    return make_plan(Request(op, problem, dtype, layout), algorithm, "cuda", DEFAULT)


def arrays_of(plan, **changes):
    """Reserved arrays by role, some of them replaced."""
    request = plan.request
    roles = (*INPUTS[request.op], RESULT[request.op])
    return {
        role: reserved(request.shape(role), request.dtype) for role in roles if role not in changes
    } | changes


def run_last_blocks(plan, arrays, count=1):
    (launch,) = plan.launches
    strides, blocks = strides_by_role(plan.request, arrays), range(launch.blocks - count, launch.blocks)
    run_window(launch, arrays, strides, blocks)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("algorithm", ["simt", "direct"])
@pytest.mark.parametrize("op", ["fprop", "dgrad"])
def test_the_last_images_of_many(op, algorithm, layout):
    """2^32 pixels: numbers of pixels and offsets beyond 32 bits."""
    plan = planned(op, "n1048576c2w4096 k2s3 sw2 p1", algorithm, layout)
    source, result = INPUTS[op][0], RESULT[op]
    arrays = arrays_of(plan, w=integers(plan.request.shape("w")))
    arrays[source][-3:] = integers(arrays[source][-3:].shape)
    run_last_blocks(plan, arrays, plan.launches[0].blocks * 3 // 1048576)
    small = {"x": arrays[source][-3:], "dy": arrays[source][-3:], "w": arrays["w"]}
    options = dict(stride=2, padding=1, layout=layout)
    if op == "fprop":
        expected = cuconv.conv(small["x"], small["w"], **options)
    else:
        expected = cuconv.conv_input_grad(small["dy"], small["w"], arrays[result][-3:].shape, **options)
    # The last image is whole; dgrad ends with the last residue of every image, so that only that one is.
    got = arrays[result][-1]
    pixels = [slice(None)] * got.ndim
    if op == "dgrad" and algorithm == "simt":
        pixels[1 if layout == "channels_first" else 0] = slice(1, None, 2)
    np.testing.assert_array_equal(got[tuple(pixels)], expected[-1][tuple(pixels)])
    assert np.any(got)


@pytest.mark.parametrize("op", ["fprop", "dgrad"])
def test_the_last_images_of_many_on_tensor_cores(op):
    """2^32 elements of x and of y, read as they lie."""
    plan = planned(op, "n1048576c8w512 k8s3 p1", "mma", "channels_last")
    source, result = INPUTS[op][0], RESULT[op]
    arrays = arrays_of(plan, w=integers(plan.request.shape("w")))
    assert min(arrays[source].size, arrays[result].size) >= 2**31
    arrays[source][-3:] = integers(arrays[source][-3:].shape)
    run_last_blocks(plan, arrays, plan.launches[0].blocks * 3 // 1048576)
    options = dict(padding=1, layout="channels_last")
    if op == "fprop":
        expected = cuconv.conv(arrays[source][-3:], arrays["w"], **options)
    else:
        expected = cuconv.conv_input_grad(arrays[source][-3:], arrays["w"], (3, 512, 8), **options)
    np.testing.assert_array_equal(arrays[result][-3:], expected)
    assert np.any(expected)


def test_a_depthwise_problem_of_many_images():
    plan = planned("fprop", "n1048576c4h32w32 k4r3s3 g4 p1", "depthwise")
    arrays = arrays_of(plan, w=integers((4, 1, 3, 3)))
    arrays["x"][-1] = integers((4, 32, 32))
    run_last_blocks(plan, arrays, 8)  # those of the last run of images
    expected = cuconv.conv(arrays["x"][-1:], arrays["w"], groups=4, padding=1)
    np.testing.assert_array_equal(arrays["y"][-1:], expected)


@pytest.mark.parametrize("algorithm", ["simt", "depthwise"])
def test_the_last_part_of_a_long_sum(algorithm):
    """2^32 products per element, cut so that a part is short."""
    line = "n4194304c1h32w32 k1r3s3 p1" if algorithm == "simt" else "n2097152c2h32w32 k2r3s3 g2 p1"
    tile = simt.TILES["wgrad"]["float16"][-1]
    with (
        mock.patch.object(schedule, "BLOCKS", 1 << 23),
        mock.patch.object(simt, "_schedule", return_value=(tile, 1 << 23, 512)),
        mock.patch.object(depthwise, "_cut", lambda items, blocks: (-(-items // 4), 4)),
    ):
        forget()
        plan = planned("wgrad", line, algorithm)
    forget()
    launch = plan.launches[0]
    arrays = arrays_of(plan)
    n = plan.request.problem.n
    arrays["x"][n - 2 :], arrays["dy"][n - 2 :] = integers(arrays["x"][n - 2 :].shape), 1
    parts = reserved(launch.out.shape, launch.out.dtype)
    where = strides_by_role(plan.request, {role: arrays[role] for role in ("x", "dy", "dw")})
    # The blocks that sum the last two images, whatever tile or tap they are for.
    chunk, splits = launch.params(where)["chunk"][0], launch.params(where)["splits"][0]
    pixels = n * 1024 if algorithm == "simt" else launch.params(where)["items"][0]
    last = -(-2 * (pixels // n) // chunk)
    assert splits * chunk >= pixels > (splits - 1) * chunk
    blocks = launch.blocks // splits
    window = range(launch.blocks - last * blocks, launch.blocks)
    run_window(launch, {**arrays, launch.out: parts}, where, window)
    expected = cuconv.conv_weight_grad(
        arrays["x"][n - 2 :], arrays["dy"][n - 2 :], arrays["dw"].shape, 1, 1, 1, plan.request.problem.groups
    )
    np.testing.assert_array_equal(parts[splits - last :].sum(axis=0).reshape(expected.shape), expected)
    assert np.any(expected)


def test_the_last_part_of_a_long_sum_on_tensor_cores():
    """2^32 pixels of 8 channels, 1024 of them in a part."""
    tile = mma.PRODUCTS["float16", None].tiles["wgrad"][-1]
    with mock.patch.object(mma, "choice", return_value=(tile, 1 << 22, 1024)):
        forget()
        plan = planned("wgrad", "n4194304c8h32w32 k8r3s3 p1", "mma", "channels_last")
    forget()
    launch = plan.launches[0]
    arrays = arrays_of(plan)
    arrays["x"][-1:], arrays["dy"][-1:] = integers(arrays["x"][-1:].shape), 1
    parts = reserved((1 << 22, 8, 3, 3, 8), launch.out.dtype)  # with channels last, as dw
    where = strides_by_role(plan.request, arrays)
    run_window(launch, {**arrays, launch.out: parts}, where, range(launch.blocks - 2, launch.blocks))
    expected = cuconv.conv_weight_grad(
        arrays["x"][-1:], arrays["dy"][-1:], (8, 3, 3, 8), 1, 1, layout="channels_last"
    )
    np.testing.assert_array_equal(parts[-1], expected)
    assert np.any(expected)


def test_the_last_cells_of_a_padded_copy():
    plan = planned("fprop", "n1048576c2w4096 k2s3 p2 circular", "direct")
    pad = plan.launches[0]
    x, padded = reserved(plan.request.shape("x"), "float16"), reserved(pad.out.shape, "float16")
    x[-1] = integers(x[-1].shape)
    where = strides_by_role(plan.request, {"x": x})
    run_window(pad, {"x": x, pad.out: padded}, where, range(pad.blocks - 2 * 4100 // 128, pad.blocks))
    np.testing.assert_array_equal(padded[-1, 1, 0, 0], np.pad(x[-1, 1], 2, "wrap"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("line", ["n2097152c3w1023 k1s1", "n65536c65w1023 k1s1", "n65536c64w1024 k1s1"])
def test_the_last_places_of_a_channels_last_copy(line, layout):
    request = Request("fprop", cuconv.ConvProblem.parse(line), "float16", layout)
    draft = schedule.Draft(request, schedule.zero_padded(request), *schedule.OPERANDS["fprop"])
    launch = transform.channels_last(draft, "a")
    x, copy = reserved(request.shape("x"), "float16"), reserved(draft.a.shape, "float16")
    assert min(x.size, copy.size) >= 2**31
    x[-1] = integers(x[-1].shape)
    where = strides_by_role(request, {"x": x})
    run_window(launch, {"x": x, launch.out: copy}, where, range(launch.blocks - 20, launch.blocks))
    last = x[-1].T if layout == "channels_first" else x[-1]
    cells = copy.reshape(-1, draft.a.shape[1])[-len(last) :]  # as they lie
    np.testing.assert_array_equal(cells[:, : last.shape[1]], last)
    assert not cells[:, last.shape[1] :].any()
    assert np.any(last)


def test_the_last_part_of_a_long_bias_gradient():
    with mock.patch.multiple(schedule, BLOCKS=1 << 23, PART=1):
        forget()
        plan = planned("bgrad", "n1048576c1w4096 k1s1", "auto")
    forget()
    launch = plan.launches[0]
    dy = reserved(plan.request.shape("dy"), "float16")
    dy[-1] = integers(dy[-1].shape)
    parts = reserved(launch.out.shape, launch.out.dtype)
    where = strides_by_role(plan.request, {"dy": dy, "db": np.zeros(1, "float16")})
    chunk = int(launch.params(where)["chunk"][0])
    run_window(
        launch, {"dy": dy, launch.out: parts}, where, range(launch.blocks - 4096 // chunk, launch.blocks)
    )
    assert parts.reshape(-1)[-4096 // chunk :].sum() == dy[-1].astype(float).sum() != 0


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("role", ["x", "w", "y"])
@pytest.mark.parametrize("algorithm", ["direct", "simt", "depthwise", "mma"])
@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
def test_strides_beyond_32_bits(op, algorithm, role, axis):
    """A small problem whose images, filters, channels or cells lie 2^32 elements apart in one array."""
    line, layout = {
        "depthwise": ("n2c2w6 k4s3 g2 p1", "channels_first"),
        "mma": ("n2c8w6 k8s3 p1", "channels_last"),
    }.get(algorithm, ("n2c4w6 k4s3 g2 p1", "channels_first"))
    plan = planned(op, line, algorithm, layout)
    request = plan.request
    spread = {
        "fprop": dict(x="x", w="w", y="y"),
        "dgrad": dict(x="dx", w="w", y="dy"),
        "wgrad": dict(x="x", w="dw", y="dy"),
    }
    wide = spread[op][role]
    arrays = {name: integers(request.shape(name)) for name in (*INPUTS[op], RESULT[op])}
    values = arrays[wide]
    strides = [*values.strides]
    strides[axis] = 1 << 33
    memory = reserved((values.shape[axis], 1 << 32), "float16")
    arrays[wide] = np.lib.stride_tricks.as_strided(memory, values.shape, strides)
    arrays[wide][...] = values
    if algorithm == "mma" and axis == 2 and wide != RESULT[op]:  # channels that are no vectors
        assert not_in_vectors(request, plan.launches, arrays)[wide]
        return
    inputs = [arrays[name] for name in INPUTS[op]]
    options = dict(padding=1, groups=request.problem.groups, layout=layout)
    if op == "fprop":
        expected = cuconv.conv(*inputs, **options)
    elif op == "dgrad":
        expected = cuconv.conv_input_grad(*inputs, request.shape("dx"), **options)
    else:
        expected = cuconv.conv_weight_grad(*inputs, request.shape("dw"), **options)
    (launch,) = plan.launches
    run_window(launch, arrays, strides_by_role(request, arrays), range(launch.blocks))
    np.testing.assert_array_equal(arrays[RESULT[op]], expected)


@pytest.mark.parametrize(
    ("op", "algorithm", "line"),
    [
        ("wgrad", "simt", "n8c16384w8 k32768s1"),
        ("wgrad", "depthwise", "n16c4194304w107 k4194304s100 g4194304"),
        ("bgrad", "sum", "n32c1w8 k67108864s1"),
    ],
)
def test_parts_beyond_32_bits(op, algorithm, line):
    """2^31 sums or more in front of the last part: its last block."""
    tile = simt.TILES["wgrad"]["float16"][-1]
    with (
        mock.patch.multiple(schedule, BLOCKS=1 << 31, PART=1),
        mock.patch.object(simt, "_schedule", return_value=(tile, 64 // tile.bk, tile.bk)),
        mock.patch.object(depthwise, "_cut", lambda items, blocks: (items, 1)),
    ):
        forget()
        plan = planned(op, line, algorithm, "channels_last")
    forget()
    launch = plan.launches[0]
    arrays = arrays_of(plan)
    for array in (arrays[role] for role in INPUTS[op]):
        array[-1, ..., -4:] = integers(array[-1, ..., -4:].shape)
    parts = reserved(launch.out.shape, launch.out.dtype)
    where = strides_by_role(plan.request, arrays)
    run_window(launch, {**arrays, launch.out: parts}, where, range(launch.blocks - 1, launch.blocks))
    assert math.prod(parts.shape) - math.prod(parts.shape[1:]) >= 2**31
    x, dy = (arrays[role][-1:, ..., -1:].astype("float64") for role in (INPUTS[op][0], "dy"))
    if op == "bgrad":
        last = dy[:, -dict(launch.fields)["chunk"] :].sum()
    else:
        shape = (1, *plan.request.problem.filter, 1)
        last = cuconv.conv_weight_grad(x, dy, shape, layout="channels_last").flat[-1]
    assert parts.reshape(-1)[-1] == last != 0


def reasons(op, line, dtype="float16"):
    request = Request(op, cuconv.ConvProblem.parse(line), dtype)
    return {entry.name: entry.applies(request, DEVICES[DEFAULT]) for entry in TABLE[op]}


@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
def test_coordinates_of_30_bits_are_the_last_that_fit(op):
    below, above = 2**30 - 1, 2**30
    found = reasons(op, f"c2w{below // 16} k2s3 g2")
    refused = [name for name, reason in found.items() if reason]
    assert refused == ["grouped", "wgmma", "mma"]  # whose groups are larger
    for line in (f"c1w{above} k1s3", f"c1w{below} k1s3 p1", f"c1w9 k1s3 pw-9:{above}", f"c{above} w1 k1s1"):
        found = reasons(op, line)
        assert found.pop("direct") is None
        assert "2^30" in found["simt"]
        assert "2^30" in found["mma"]
        assert "2^30" in found["depthwise"] or "groups == C" in found["depthwise"]
    found = reasons(op, f"c1w{below} k1s3")
    assert found["simt"] is found["mma"] is None


def test_depthwise_counts_tiles_in_30_bits():
    assert "tiles of pixels" in reasons("wgrad", "n536870912c1w8192 k1s3")["depthwise"]
    assert reasons("wgrad", "n16777216c1w8192 k1s3")["depthwise"] is None


@pytest.mark.parametrize(("stride", "blocks"), [(1, 10), (3, 12)])
def test_depthwise_has_no_tiles_without_results(stride, blocks):
    """Taps far apart leave each result to itself: as many tiles as results, or places of residues."""
    (launch,) = planned("dgrad", f"c1w10 k1s2 sw{stride} dw9600001 pw9599998:0", "depthwise").launches
    assert launch.blocks == blocks


def test_large_problems_have_plans():
    """Every op of problems across the boundary, by auto; direct is there for what nothing else takes."""
    for line in ("n3c1024h1024w1024 k8r3s3 p1", "n1c1w4294967296 k1s5 p2", "n65536c70000w1 k70000s1 g70000"):
        for op in ("fprop", "dgrad", "wgrad", "bgrad"):
            plan = planned(op, line, "auto", dtype="float32")
            assert all(0 < launch.blocks < 2**31 for launch in plan.launches), str(plan)


@pytest.mark.parametrize("line", HUGE)
@pytest.mark.parametrize("op", TABLE)
def test_a_plan_takes_milliseconds_whatever_the_numbers(op, line):
    """Every entry makes its plan, or refuses, in a time that has nothing to do with how large numbers are."""
    names = ("auto", *(entry.name for entry in TABLE[op]))
    with uncollected():
        for algorithm, layout in itertools.product(names, LAYOUTS):
            launches, refusal = (), None
            start = time.thread_time()
            try:
                launches = planned(op, line, algorithm, layout).launches
            except ValueError as error:
                refusal = str(error)
            assert time.thread_time() - start < 0.05
            assert all(0 < launch.blocks < 2**31 for launch in launches if isinstance(launch, Launch))
            assert bool(launches) != bool(refusal)
            assert refusal is None or re.search(
                r"2\^\d\d|shared memory|needs groups == C|groups have|first axis|it has \d+ channels", refusal
            )


def test_what_64_bits_do_not_hold_is_refused():
    plan = planned("fprop", "n1c1w5 k1s3", "simt")
    places = {"x": (0, (1,) * 5), "w": (0, (1,) * 5), "y": (0, (1,) * 5)}
    (launch,) = plan.launches
    axis = dict(launch.fields)["axis"]
    for name, value in (
        ("batch", 2**63),
        ("axis", ((2**63, *axis[0][1:]), *axis[1:])),
        ("chunk", -(2**63) - 1),
    ):
        wrong = dataclasses.replace(launch, fields=(*launch.fields, (name, value)))
        with pytest.raises(
            ValueError,
            match=rf"{name} of conv_fprop_simt must fit 64 bits, got \(*{value if name != 'axis' else 2**63}",
        ):
            wrong.params(places)
