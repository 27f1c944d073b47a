"""`wgmma` in the emulator: tiles, parts, blocks that do several tiles, and what it says of itself."""

import contextlib
import dataclasses
import itertools
from unittest import mock

import numpy as np
import pytest

import cuconv
from cuconv.cli.explain import explained
from cuconv.cuda import schedule, transform, wgmma
from cuconv.cuda.algorithms import TABLE
from cuconv.cuda.device import DEFAULT, device
from cuconv.cuda.strides import not_in_vectors
from cuconv.plan import INPUTS, RESULT, exact_candidates, forget, make_plan
from cuconv.problem import LAYOUTS

from . import emulator
from .cases import DTYPES, OPS, Case, check, of_warpgroups, values
from .test_mma import KINDS as ALL_KINDS
from .test_mma import MEMORIES, request_of

# More than one tile and slice in every direction, with tails, by the number of parts that gemm_k is cut into.
SEVERAL = {
    1: "n1c72h11w14 k136r1s2 pw0:1",
    2: "n2c160h9w7 k192r2s1 g2 sh2sw1 p1",
    3: "n2c70h6w7 k66r2s3 sh1sw2 p2 circular",
}
VOLUME = "n2c19d3h5w6 k270t2r2s3 sd1sh2sw1 p1"
CROPPED = "n1c20d1h5w6 k17t1r2s3 sd2sh1sw1 pd2:-2ph1pw1"
WAYS = (
    dict(layout="channels_first", exact=True, memory="plain", activation="relu", accumulate=True),
    dict(layout="channels_last", exact=True, memory="transposed", activation="relu", accumulate=False),
    dict(layout="channels_last", exact=False, memory="plain", activation="silu", accumulate=True),
    dict(layout="channels_last", exact=True, memory="plain", activation=None, accumulate=False, bias=False),
    dict(layout="channels_first", exact=False, memory="sliced", activation=None, accumulate=True),
)


@contextlib.contextmanager
def chosen(number, parts, blocks=1 << 30):
    """Whatever the problem, this tile, this number of parts, and no more blocks than so many."""
    with (
        mock.patch.object(wgmma, "choice", lambda *asked: of_warpgroups(*asked, number, parts)),
        mock.patch.object(wgmma, "blocks_for", lambda tiles, device: min(tiles, blocks)),
    ):
        forget()
        yield
    forget()


KINDS = {name: kind for name, kind in ALL_KINDS.items() if kind in wgmma.PRODUCTS}
TILES = [(kind, number) for kind in KINDS for number in range(len(wgmma.PRODUCTS[KINDS[kind]].tiles))]


def tiles_of(op, line, kind, number, parts):
    """How many there are."""
    product = wgmma.PRODUCTS[KINDS[kind]]
    tile, problem = product.tiles[number], cuconv.ConvProblem.parse(line).volumetric
    counts = schedule.block_digits(problem, op, tile.bm, tile.bn, product.vector)
    return parts * int(np.prod(counts))


@pytest.mark.parametrize(
    ("kind", "number"),
    [  # of bfloat16 they are float16's, and of complex64 float32's
        pytest.param(
            kind,
            number,
            marks=pytest.mark.long if kind not in ("float16", "tf32", "float32") or number > 2 else (),
        )
        for kind, number in TILES
    ],
)
def test_every_tile_in_one_part_and_in_several(kind, number):
    """By a block for each and by two for all; with all that may follow a sum."""
    dtype, precision = KINDS[kind]
    ways = itertools.cycle(WAYS)
    several = 0
    for parts, line in (*SEVERAL.items(), (1, CROPPED), (2, VOLUME)):
        for blocks, op in zip((2, 1 << 30, 2) if number % 2 else (1 << 30, 2, 2), OPS, strict=True):
            way = dict(bias=True, precision=precision) | next(ways)
            way |= dict(activation=None) if dtype in transform.REAL else {}
            if op not in wgmma.PRODUCTS[dtype, precision].ops:
                continue
            several += tiles_of(op, line, kind, number, parts) > blocks
            with chosen(number, parts, blocks):
                check(Case(cuconv.ConvProblem.parse(line), dtype, **way), "wgmma", emulator.run, (op,))
        next(ways)  # so that an op of the next line goes another way
    assert several >= 3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("line", ["n2c0h5w6 k20r3s2 p1", "n0c24h5w6 k20r3s2 p1", "n2c24h5w6 k0r3s2 p1"])
def test_sums_of_nothing(line, layout):
    """Zeros, and the bias after activation, where there is a result."""
    problem = cuconv.ConvProblem.parse(line)
    for (dtype, precision), product in wgmma.PRODUCTS.items():
        case = Case(problem, dtype, layout, bias=True, precision=precision)
        check(case, "wgmma", emulator.run, product.ops)


def test_residues_without_a_tap_are_zeros_among_others():
    """One block does tiles of no slices between tiles of some."""
    for line in ("n1c24h9w9 k17r1s2 sh2sw3", "n1c24h9w9 k17r2s2 sh4sw4"):
        with chosen(-1, 1, blocks=1):
            check(Case(cuconv.ConvProblem.parse(line), "float16"), "wgmma", emulator.run, ("dgrad",))


def test_a_long_sum_is_cut_into_parts():
    """Each is short enough for what tensor cores cut off to be lost in rounding; and not without need."""
    for op, line, kind, least in (
        ("fprop", "n1c512h3w3 k64r3s3", "float16", 1),
        ("fprop", "n1c4616h2w2 k64r1s1", "float16", 2),
        ("fprop", "n1c4616h2w2 k64r1s1", "bfloat16", 1),
        ("fprop", "n1c2312h2w2 k64r1s1", "tf32", 2),
        ("dgrad", "n1c64h2w2 k9220r1s1", "float16", 3),
        ("wgrad", "n64c64h224w224 k64r3s3 p1", "float16", 697),
        ("wgrad", "n64c64h224w224 k64r3s3 p1", "bfloat16", 88),
    ):
        request = request_of(op, line, kind)
        problem, product = schedule.zero_padded(request), wgmma.PRODUCTS[KINDS[kind]]
        _, splits, chunk = wgmma.choice(problem, request)
        assert chunk <= product.depth * product.longest
        assert chunk % product.depth == 0
        assert splits * chunk >= schedule.gemm_k(problem, op, product.vector) > (splits - 1) * chunk
        assert splits >= least
        assert (least > 1) == (schedule.gemm_k(problem, op) > product.depth * product.longest)


@pytest.mark.parametrize(("dtype", "place"), [("float16", 2.0**-12), ("bfloat16", 2.0**-9)])
def test_what_tensor_cores_cut_off_is_lost_in_rounding(dtype, place):
    """Of the longest sum of positive products in one part: less than a fourth of half a place.

    The emulated ones cut off, and so do those of every GPU.
    """
    rng, length = np.random.default_rng(0), 64 * wgmma.PRODUCTS[dtype, None].longest
    x, w = (rng.integers(128, 256, (n, length, 1)) / 128 for n in (1, 4))
    w /= 4096
    expected = cuconv.conv(x, w).ravel()
    near = expected.astype(DTYPES[dtype])  # to subtract, for the difference to show in 16 bits too
    with chosen(-1, 1):
        halves = (array.astype(DTYPES[dtype]) for array in (x, w))
        y = emulator.run("fprop", *halves, np.broadcast_to(-near, 4), algorithm="wgmma").ravel()
    lost = (expected - near.astype(float) - y.astype(float)) / expected
    assert 0 < lost.mean() < lost.max() < place / 4


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("op", OPS)
def test_inputs_that_lie_otherwise(op, name):
    """Right whatever the strides; and which are not copied in any case, to be rounded or in parts."""
    laid, unfit = MEMORIES[name]
    rng = np.random.default_rng(0)
    for kind, flip in (("float16", False), ("tf32", True), ("float32", False)):
        dtype, precision = KINDS[kind]
        product = wgmma.PRODUCTS[dtype, precision]
        if op not in product.ops:
            continue
        request = request_of(op, "n3c16h6w7 k24r3s2 p1", kind, flip=flip)
        plan = make_plan(request, "wgmma", "cuda", DEFAULT)
        inputs = {role: laid(values(rng, request.shape(role), dtype, True)) for role in INPUTS[op]}
        arrays = inputs | {RESULT[op]: np.zeros(request.shape(RESULT[op]), dtype)}
        read = {None: [*INPUTS[op]], "tf32": [role for role in INPUTS[op] if role != "w"]}
        assert not_in_vectors(request, plan.launches, arrays) == dict.fromkeys(
            read.get(product.stored, []), unfit
        )
        operands = [*inputs.values()] + ([arrays[RESULT[op]].shape] if op != "fprop" else [])
        options = dict(padding=1, layout="channels_last", flip=flip)
        got = emulator.run(op, *operands, **options, precision=precision, algorithm="wgmma")
        np.testing.assert_array_equal(got, emulator.run(op, *operands, **options, algorithm="direct"))


def test_floats_are_rounded_to_the_nearest_tf32():
    """Not cut off, as tensor cores do: x where it lies, w on its way there; ties away from zero."""
    rng = np.random.default_rng(0)
    floats = np.exp2(rng.uniform(-100, 100, (2, 64))).astype("float32") * rng.choice([-1, 1], (2, 64))
    floats[:, :4] = [1 + 2**-11, -1 - 2**-11, 1 + 2**-11 - 2**-23, 3e38]
    nearest = (floats.astype("float32").view("uint32") + 0x1000 & 0xFFFFE000).view("float32")
    one = np.eye(64, dtype="float32").reshape(64, 64, 1)
    for x, w in ((floats[..., None], one), (one, floats[..., None])):
        y = emulator.run(
            "fprop", x.astype("float32"), w.astype("float32"), precision="tf32", algorithm="wgmma"
        )
        np.testing.assert_array_equal(y[..., 0], nearest if w is one else nearest.T)
    dy = np.eye(2, dtype="float32")[..., None]
    dx = emulator.run(
        "dgrad", dy, floats[..., None].astype("float32"), (2, 64, 1), precision="tf32", algorithm="wgmma"
    )
    np.testing.assert_array_equal(dx[..., 0], nearest)


@pytest.mark.parametrize(
    ("line", "dtype", "arch", "reason"),
    [
        ("n1c64h9w9 k64r3s3", "float16", "sm_90", None),
        ("n1c3h9w9 k5r3s3", "bfloat16", "sm_90", None),
        ("n1c128h9w9 k128r3s3 g2", "float16", "sm_90", None),
        ("n1c126h9w9 k128r3s3 g2", "float16", "sm_90", "its groups have fewer than 64 channels or filters"),
        ("n1c64h9w9 k64r3s3", "float16", "sm_80", "sm_80 has no products of warpgroups"),
        ("n1c64h9w9 k64r3s3", "float16", "sm_100", "sm_100 has no products of warpgroups"),
        ("n1c64h9w9 k64r3s3", "float64", "sm_90", "warpgroups do not multiply float64"),
        ("n1c64h9w9 k64r3s3", "float32", "sm_90", None),
        ("c1w1073741824 k1s3", "float16", "sm_90", "an axis, its padding included, has 2^30 cells or more"),
        (
            "c8w134217728 k1s134217728",
            "float16",
            "sm_90",
            "the channels of a filter, times its taps, are 2^30 or more",
        ),
    ],
)
def test_when_it_applies(line, dtype, arch, reason):
    for op in OPS:
        assert wgmma.applies(request_of(op, line, dtype), device(arch)) == reason, op


def test_floats_as_tf32_have_to_lie_along_gemm_k():
    reasons = [wgmma.applies(request_of(op, "n1c64h9w9 k64r3s3", "tf32"), device(DEFAULT)) for op in OPS]
    assert reasons == [None, None, "warpgroups do not multiply float32 as tf32 in wgrad"]


def test_auto_leaves_it_to_its_name_and_explain_says_so():
    """Since what its products see of copies is the one thing that the emulator can be wrong about."""
    for op, layout in itertools.product(OPS, LAYOUTS):
        request = request_of(op, "n64c256h56w56 k256r3s3 p1", layout=layout)
        assert "wgmma" not in [entry.name for entry in exact_candidates(request, "cuda", DEFAULT)]
        chosen = make_plan(request, "auto", "cuda", DEFAULT)
        assert chosen.algorithm == "mma"
        (said,) = (line for line in explained(chosen).splitlines() if "candidate    wgmma" in line)
        assert said.endswith("by name only: no GPU has run it yet")
        assert make_plan(request, "wgmma", "cuda", DEFAULT).algorithm == "wgmma"
        (entry,) = (entry for entry in TABLE[op] if entry.name == "wgmma")
        other = next(entry for entry in TABLE[op] if entry.name == "mma")
        assert entry.estimate(request, device(DEFAULT)) < other.estimate(request, device(DEFAULT))
        tried = dataclasses.replace(entry, untried=False)
        assert tried.by_name_only(request) is None
        short = request_of(op, "n1c100h1w1 k100r1s1", "float32")
        assert tried.by_name_only(short) == "sums of fewer than 128 products are less exact by parts"


def test_blocks_are_as_many_as_multiprocessors_and_share_the_tiles():
    """And the sums are in the same parts, however many these are."""
    for op, line in itertools.product(OPS, ("n64c256h56w56 k256r3s3 p1", "n1c64h9w9 k64r3s3 p1")):
        plan = make_plan(request_of(op, line), "wgmma", "cuda", DEFAULT)
        (main,) = (launch for launch in plan.launches if launch.vectors)
        fields = dict(main.fields)
        tiles = fields["splits"] * int(np.prod([digit[0] for digit in fields["digit"]]))
        assert main.blocks == min(tiles, device(DEFAULT).multiprocessors)
        assert main.kernel.threads == wgmma.THREADS
