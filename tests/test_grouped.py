"""`grouped`: what it takes, how its tiles are cut, and what tensor cores leave of long sums."""

import itertools
from unittest import mock

import numpy as np
import pytest

import cuconv
from benchmarks import suites
from cuconv.cuda import grouped, schedule
from cuconv.cuda.device import device
from cuconv.plan import forget, make_plan
from cuconv.problem import Request

from . import emulator
from .cases import OPS

NAMED = dict(algorithm="grouped")


def request_of(op, line, dtype="float16", layout="channels_last"):
    return Request(op, cuconv.ConvProblem.parse(line), dtype, layout)


@pytest.mark.parametrize(
    ("op", "line", "dtype", "arch", "reason"),
    [
        ("fprop", "n2c16h9w9 k16r3s3 g4", "float16", "sm_80", None),
        ("wgrad", "n2c16w9 k16s3 g2", "bfloat16", "sm_90", None),
        ("dgrad", "n2c16d1h9w9 k16t1r3s3 g2", "float16", "sm_90", None),
        ("fprop", "n2c128h9w9 k7r1s1", "float16", "sm_90", None),
        (
            "wgrad",
            "n2c3h9w9 k200r3s3 sh2sw2",
            "float16",
            "sm_90",
            "3 channels and 200 filters, and not 1 to 128",
        ),
        ("fprop", "n2c0h9w9 k8r3s3", "float16", "sm_90", "it has 0 channels and 8 filters"),
        ("fprop", "n2c16h9w9 k16r3s3 g4", "float32", "sm_90", "it multiplies numbers of 16 bits"),
        ("fprop", "n2c16h9w9 k16r3s3 g4", "float16", "sm_75", "sm_75 has no tensor cores for it"),
        ("fprop", "n2c16d3h9w9 k16t1r3s3 g4", "float16", "sm_90", "first axis has more than one cell"),
        (
            "fprop",
            "n2c12h9w9 k16r3s3 g2",
            "float16",
            "sm_90",
            "have 6 channels and 8 filters, and not 4, 8, ",
        ),
        ("fprop", "n2c12h9w9 k12r3s3 g3", "float16", "sm_90", "C and K are no multiples of 8"),
        ("wgrad", "n2c64h9w9 k8r3s3 g2", "float16", "sm_90", "32 channels and 4 filters, one more than 4"),
        ("fprop", "n2c16h9000w9 k16r3s3 g4 dh4000", "float16", "sm_90", "do not fit in 98304 bytes"),
        ("fprop", "n2c16h99w9999 k16r3s99 g4 dh9dw99", "float16", "sm_90", "do not fit in 98304 bytes"),
        ("fprop", "n1073741823c16w129 k16s1 g4", "float16", "sm_90", "2^30 blocks, or tiles of pixels"),
    ],
)
def test_what_it_takes(op, line, dtype, arch, reason):
    found = grouped.applies(request_of(op, line, dtype), device(arch))
    assert (found is None) == (reason is None), found
    assert reason is None or reason in found


@pytest.mark.parametrize("line", [str(problem) for problem in suites.read("grouped").problems])
def test_auto_takes_it_where_cells_are_read_by_several_taps(line):
    """Of ResNeXt's layers all, but for strided ones with 16 channels or more, which `mma` may do as fast."""
    problem = cuconv.ConvProblem.parse(line)
    for op, dtype in itertools.product(OPS, grouped.PRODUCTS):
        chosen = make_plan(request_of(op, line, dtype), "auto", "cuda", "sm_90").algorithm
        strided = max(problem.stride) > 1 and problem.c >= 16 * problem.groups
        assert chosen in ("grouped", *["mma"] * strided), op
        assert make_plan(request_of(op, line, dtype), "auto", "cuda", "sm_75").algorithm != "grouped"


def test_long_sums_lose_nothing_that_grows_with_their_length():
    """Of 2304 and 4608 positive products: tensor cores alone would lose 2^-24 of the sum at every fourth."""
    rng = np.random.default_rng(0)

    def positive(*shape):
        return rng.integers(1024, 2048, shape) / 1024

    x, w, images, grads = (
        positive(1, 32, 72),
        positive(8, 32, 72),
        positive(72, 8, 8, 8),
        positive(72, 8, 8, 8),
    )
    shape = (8, 8, 1, 1)
    y, dw = cuconv.conv(x, w), cuconv.conv_weight_grad(images, grads, shape)
    near_y, near_dw = half(y, dw)  # to subtract, for the difference to show in 16 bits too
    with mock.patch.object(grouped, "WAVE", 1):
        forget()
        less_y = emulator.run("fprop", *half(x, w), -near_y.ravel(), **NAMED)
        less_dw = emulator.run("wgrad", *half(images, grads), shape, **NAMED, out=-near_dw, accumulate=True)
    forget()
    for exact, near, less, products in ((y, near_y, less_y, 2304), (dw, near_dw, less_dw, 4608)):
        lost = np.mean((exact - near - less) / exact)
        assert abs(lost) < 16 * 2.0**-24 < products / 4 * 2.0**-24 / 4


def half(*arrays):
    return [array.astype("float16") for array in arrays]


def test_tiles_have_no_more_slots_than_a_block_and_fill_a_multiprocessor():
    """And lines of whole octets; they cover an image, however few pixels it has."""
    for op, line in itertools.product(
        OPS,
        (
            "n2c16h9w11 k16r3s3 g4 p1",
            "n32c128h56w56 k128r3s3 g32 p1",
            "n1c16w100000 k16s9 g2",
            "n1c64h3w3 k64r3s3 g2 p1",
            "n1c32h300w500 k32r3s3 g8 sh3sw2",
        ),
    ):
        request = request_of(op, line)
        problem = grouped.zero_padded(request)
        tile = grouped._tile(request)
        _, height, width = schedule.pixels(problem, op)
        assert tile.slots <= grouped.MOST
        assert tile.slots % 8 == 0
        assert (tile.tiles_h - 1) * tile.high < height <= tile.tiles_h * tile.high
        assert (tile.tiles_w - 1) * tile.wide < width <= tile.tiles_w * tile.wide
        runs, chunk = grouped._runs(problem, op, tile)
        tiles = problem.n * tile.tiles_h * tile.tiles_w
        assert (runs - 1) * chunk < tiles <= runs * chunk
        blocks = runs * np.prod(grouped._digits(problem, op, tile))
        assert chunk == 1 or blocks <= grouped.WAVE * tile.residents(op)


def test_a_filter_in_an_odd_place_is_read_element_by_element():
    """Only x and dy are copied where they are not whole vectors; w is read as it lies."""
    rng = np.random.default_rng(1)
    x = rng.integers(-3, 4, (2, 6, 5, 16)).astype("float16")
    wide = rng.integers(-3, 4, (16, 3, 3, 9)).astype("float16")
    for w in (wide[..., 1:], wide[..., :8], np.ascontiguousarray(wide[..., 1:])):
        y = emulator.run("fprop", x, w, groups=2, layout="channels_last", **NAMED)
        np.testing.assert_array_equal(y, cuconv.conv(x, w, groups=2, layout="channels_last"))


@pytest.mark.parametrize(
    ("op", "line", "channels", "taps", "columns"),
    [
        ("fprop", "n2c3h9w9 k16r7s7 sh2sw2 p3", 6, 4, 8),
        ("wgrad", "n2c3h9w9 k16r7s7 sh2sw2 p3", 6, 4, 8),
        ("dgrad", "n2c3h9w9 k16r7s7 sh2sw2 p3", 3, 7, None),
        ("fprop", "n2c1h9w9 k16r3s3 p1", 3, 1, 9),
        ("fprop", "n2c1w40 k16s20 dw2 sw3", 8, 3, 33),
        ("fprop", "n2c4w16 k16s4 sw4", 8, 2, 8),
        ("fprop", "n2c5h9w9 k16r3s3 p1", 5, 3, None),
        ("fprop", "n2c3h9w9 k16r3s1", 3, 1, None),
        ("fprop", "n2c8h9w9 k16r3s3 g2 p1", 8, 3, None),
    ],
)
def test_taps_side_by_side(op, line, channels, taps, columns):
    """As many as an octet holds, at every column where one of a window's octets begins; never in dgrad."""
    request = request_of(op, line)
    seen, _ = next(iter(grouped._views(request).values()))
    assert (seen.c, seen.filter[2]) == (channels, taps)
    assert seen.output == request.problem.volumetric.output
    launches = make_plan(request, "grouped", "cuda", "sm_90").launches
    copies = [launch.out.shape for launch in launches if launch.kernel.template == "conv_folded"]
    height = request.problem.volumetric.input[1]
    assert copies == ([(2, 8, 1, height, columns)] if columns else [])


@pytest.mark.parametrize(
    ("line", "filters", "taps", "places"),
    [
        ("n2c3h12w12 k16r4s4 sh4sw4", 48, (1, 1), (3, 3)),
        ("n2c3h12w13 k16r7s7 sh2sw2 p3", 12, (4, 4), (7, 7)),
        ("n2c3h9w8 k16r3s3 sh2sw1 ph-1:2pw1", 6, (2, 3), (5, 8)),
        ("n2c3w9 k16s2 sw4", 12, (1, 1), (1, 3)),
        ("n2c3d1h12w12 k16t1r4s4 sd3sh4sw4", 48, (1, 1), (3, 3)),
        ("n2c3h12w12 k16r4s4", None, None, None),
        ("n2c8h12w12 k16r4s4 sh4sw4 g2", None, None, None),
        ("n2c9h12w12 k16r4s4 sh4sw4", None, None, None),
        ("n2c3h12w12 k16r4s2 sh2sw2 dw2", None, None, None),
        ("n2c3h0w9 k16r3s3 sh2sw2 p2", None, None, None),
    ],
)
def test_residues_together(line, filters, taps, places):
    """dgrad as a convolution of dy, where a group has few channels and no strided axis is dilated."""
    problem = request_of("dgrad", line).problem.volumetric
    seen = grouped._together(problem)
    if filters is None:
        assert seen is None
    else:
        assert (seen.c, seen.k, seen.filter[1:], seen.output[1:]) == (problem.k, filters, taps, places)


def test_infinities_stay_within_their_residue():
    """Of 3 taps with a stride of 2, of which one residue has two and the other one."""
    dy, w = np.ones((1, 8, 4), "float16"), np.ones((8, 1, 3), "float16")
    dy[0, 0, 1] = np.inf
    together_first = dict(MOST=64, _rank=lambda request, tile: not tile.together)
    with mock.patch.multiple(grouped, **together_first):
        forget()
        dx = emulator.run("dgrad", dy, w, (1, 1, 9), stride=2, **NAMED)
    forget()
    np.testing.assert_array_equal(dx[0, 0], [8, 8, np.inf, np.inf, np.inf, 8, 16, 8, 8])
