"""`mma` in the emulator: tiles, parts, sums that are cut off, vectors, and when it is chosen."""

import contextlib
import itertools
from unittest import mock

import numpy as np
import pytest

import cuconv
from benchmarks import suites
from cuconv.cuda import mma, schedule, transform
from cuconv.cuda.algorithms import TABLE
from cuconv.cuda.device import DEFAULT, DEVICES, device
from cuconv.cuda.kernel import VECTOR
from cuconv.cuda.strides import not_in_vectors
from cuconv.plan import INPUTS, RESULT, forget, make_plan
from cuconv.problem import LAYOUTS, Request

from . import emulator
from .cases import (
    DTYPES,
    OPS,
    Case,
    applies,
    check,
    from_layout,
    in_parts,
    seeded_case,
    to_layout,
    values,
)
from .reference import ZerosMultiplied

KINDS = {
    "float16": ("float16", None),
    "bfloat16": ("bfloat16", None),
    "float32": ("float32", None),
    "tf32": ("float32", "tf32"),
    "float64": ("float64", None),
    "complex64": ("complex64", None),
    "complex128": ("complex128", None),
}
"""dtype and precision of what tensor cores multiply, by one name."""


def request_of(op, line, kind="float16", layout="channels_last", **options):
    problem = cuconv.ConvProblem.parse(line)
    dtype, precision = KINDS.get(kind, (kind, None))
    return Request(op, problem, dtype, layout, precision=precision, **options)


@contextlib.contextmanager
def chosen(choice):
    """Whatever the problem, this tile, this number of parts and their depth."""
    with mock.patch.object(mma, "choice", choice):
        forget()
        yield
    forget()


# -- tiles and parts ----------------------------------------------------------------------------------

# More than one tile and slice in every direction, with tails, by the number of parts that gemm_k is cut into.
SEVERAL = {
    1: "n1c40h11w14 k136r1s2 pw0:1",
    2: "n2c80h9w7 k96r3s2 g2 sh2sw1 dh1dw2 p1",
    3: "n2c70h6w7 k66r2s3 sh1sw2 p2 circular",
}
VOLUME = "n2c19d3h5w6 k70t2r2s3 sd1sh2sw1 p1"
CROPPED = "n1c20d1h5w6 k17t1r2s3 sd2sh1sw1 pd2:-2ph1pw1"
TILES = [
    (kind, number)
    for kind in KINDS
    for number in range(len(mma.PRODUCTS[KINDS[kind]].tiles["fprop"]))
    if kind != "bfloat16" or number == 0  # whose tiles are float16's
]
WAYS = (
    dict(layout="channels_first", exact=True, memory="plain", activation="relu", accumulate=True),
    dict(layout="channels_last", exact=True, memory="transposed", activation="relu", accumulate=False),
    dict(layout="channels_last", exact=False, memory="plain", activation="silu", accumulate=True),
    dict(layout="channels_first", exact=False, memory="sliced", activation=None, accumulate=True),
)


@pytest.mark.parametrize(
    ("kind", "number"),
    [  # of complex64 they are float32's
        pytest.param(*tile, marks=pytest.mark.long if tile[0] == "complex64" and tile[1] < 3 else ())
        for tile in TILES
    ],
)
def test_every_tile_in_one_part_and_in_several(kind, number):
    """With bias and activation after the last part, out with strides of its own, and x padded circularly."""
    dtype, precision = KINDS[kind]
    ways = itertools.cycle(WAYS)
    for parts, line in (*SEVERAL.items(), (1, CROPPED), (2, VOLUME)):
        problem = cuconv.ConvProblem.parse(line)
        for op in OPS:
            tiles = mma.tiles_of(request_of(op, line, kind))
            if number >= len(tiles) or (tiles[number].planar and line in (CROPPED, VOLUME)):
                continue
            at, made = number - len(tiles), []  # from the end, since those of plane problems may be missing

            def choice(*asked, at=at, parts=parts, made=made):
                made.append(in_parts(*asked, at, parts))
                return made[-1]

            with chosen(choice):
                way = next(ways) | (dict(activation=None) if dtype in transform.REAL else {})
                case = Case(problem, dtype, bias=True, precision=precision, **way)
                check(case, "mma", emulator.run, (op,))
            assert {(tile, splits) for tile, splits, _ in made} == {(tiles[number], parts)}
        next(ways)  # so that an op of the next line goes another way


def test_a_tile_of_plane_problems_is_for_those_whose_first_axis_has_one_cell():
    planar = {
        line: schedule.planar(cuconv.ConvProblem.parse(line).volumetric)
        for line in (*SEVERAL.values(), VOLUME)
    }
    assert planar == dict.fromkeys(SEVERAL.values(), True) | {VOLUME: False}
    assert schedule.planar(cuconv.ConvProblem.parse("n1c8d1h5w6 k8t1r2s3 sd2sh1sw1 p0"))
    for line in (
        CROPPED,
        "n1c8d1h5w6 k8t1r2s3 pd1ph0pw0",
        "n1c8d2h5w6 k8t2r2s3",
        "n1c8d2h5w6 k8t1r2s3 pd-1:0ph0pw0",
    ):
        assert not schedule.planar(cuconv.ConvProblem.parse(line)), line


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("line", ["n2c0h5w6 k20r3s2 p1", "n0c24h5w6 k20r3s2 p1", "n2c24h5w6 k0r3s2 p1"])
def test_sums_of_nothing(line, kind, layout):
    """Zeros, and the bias after activation, where there is a result."""
    dtype, precision = KINDS[kind]
    case = Case(cuconv.ConvProblem.parse(line), dtype, layout, bias=True, precision=precision)
    check(case, "mma", emulator.run)


# -- sums ---------------------------------------------------------------------------------------------


def test_no_bias_grows_with_the_length_of_a_sum():
    """Of 4608 positive products in one part: tensor cores alone would lose 2^-24 of it at every fourth.

    The emulated ones cut off, and so do those of every GPU. Factors of 11 bits are not rounded.
    """
    rng = np.random.default_rng(0)
    x, w = (rng.integers(1024, 2048, shape) / 1024 for shape in ((1, 512, 3, 3), (16, 512, 3, 3)))
    expected = cuconv.conv(x, w).ravel()
    near = expected.astype("float16")  # to subtract, for the difference to show in 16 bits too
    with chosen(lambda *asked: in_parts(*asked, -1, 1)):
        for kind, shift in (("float32", np.float32(0)), ("tf32", np.float32(0)), ("float16", near)):
            dtype, precision = KINDS[kind]
            options = dict(precision=precision, algorithm="mma")
            bias = np.broadcast_to(-shift, 16)
            y = emulator.run("fprop", x.astype(dtype), w.astype(dtype), bias, **options).ravel()
            lost = np.mean((expected - shift - y) / expected)
            assert abs(lost) < 16 * 2.0**-24 < 4608 / 4 * 2.0**-24 / 8


# Channels and filters in whole vectors and not, in more than one slice; padding, and taps beyond dy's ends.
SURROUNDED = (
    "n1c24h5w4 k17r3s3 p1",
    "n1c40h6w5 k36r3s2 g2 sh2sw1 p2",
    "n1c70w6 k9s3 dw2 p2",
    "n1c3h5w8 k17r3s5 sh1sw2 p2",
)


@pytest.mark.parametrize("line", SURROUNDED)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_infinities_reach_what_they_meet_and_nothing_else(op, line):
    """No cell that only fills a vector or a tile meets one; the zeros of the padding do."""
    problem, rng = cuconv.ConvProblem.parse(line), np.random.default_rng(0)
    shapes = {"x": problem.x_shape(), "w": problem.w_shape(), "dy": problem.y_shape()}
    geometry = (problem.stride, problem.dilation, problem.padding, problem.groups)
    plain = getattr(ZerosMultiplied(shapes["x"], shapes["w"], *geometry), op)
    finite = []
    for changed, number in itertools.product(INPUTS[op], (-np.inf, np.nan)):
        operands = {role: rng.integers(1, 4, shapes[role]).astype(float) for role in INPUTS[op]}
        operands[changed].flat[[0, -1]] = number
        expected = plain(*operands.values())
        finite.append(np.isfinite(expected).mean())
        for kind, layout in itertools.product(("float16", "float32", "tf32", "float64"), LAYOUTS):
            dtype, precision = KINDS[kind]
            case = Case(problem, dtype, layout, precision=precision)
            arrays = [
                to_layout(array.astype(DTYPES[dtype]), case, role != "w") for role, array in operands.items()
            ]
            if op != "fprop":
                arrays.append(to_layout(expected, case, op != "wgrad").shape)
            for name in filter(lambda name: applies(case, name, op, "cuda"), ("mma", "grouped", "wgmma")):
                options = case.options() | dict(algorithm=name, precision=precision)
                got = from_layout(emulator.run(op, *arrays, **options), case, op != "wgrad")
                np.testing.assert_array_equal(
                    got.astype(float), expected.astype(DTYPES[dtype]).astype(float), f"{name} {kind} {layout}"
                )
    assert 0 < min(finite) < 1


# -- vectors ------------------------------------------------------------------------------------------


def misaligned(array):
    """The same array one element behind a whole vector."""
    memory = np.empty(array.nbytes + 32, np.uint8)
    start = -memory.ctypes.data % 16 + array.itemsize
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def some_channels(array):
    """The first channels of more: their strides are no whole vectors."""
    return np.concatenate([array, array[..., :3]], axis=-1)[..., : array.shape[-1]]


# How an array lies, and whether its strides have no whole vectors of channels.
MEMORIES = {
    "plain": (lambda array: array, False),
    "aligned": (emulator.ops.aligned_copy, False),
    "misaligned": (misaligned, False),
    "some channels": (some_channels, True),
    "channels apart": (lambda array: np.repeat(array, 2, axis=-1)[..., ::2], True),
    "channels backwards": (lambda array: array[..., ::-1].copy()[..., ::-1], True),
    "channels first": (lambda array: np.moveaxis(np.moveaxis(array, -1, 1).copy(), 1, -1), True),
    "backwards": (lambda array: array[::-1, ::-1].copy()[::-1, ::-1], False),
    "cells apart": (lambda array: np.repeat(array, 2, axis=2)[:, :, ::2], False),
    "rows between": (lambda array: array.swapaxes(0, 1).copy().swapaxes(0, 1), False),
    "one image": (lambda array: np.broadcast_to(array[:1], array.shape), False),
    "one channel": (lambda array: np.broadcast_to(array[..., :1], array.shape), True),
}


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("op", OPS)
def test_inputs_that_lie_otherwise(op, name):
    """Right whatever the strides; and which of them a copy is made of."""
    laid, unfit = MEMORIES[name]
    rng = np.random.default_rng(0)
    for kind, flip in (
        ("float16", False), ("float32", False), ("tf32", True), ("float64", False), ("complex64", True)
    ):  # fmt: skip
        dtype, precision = KINDS[kind]
        request = request_of(op, "n3c16h6w7 k24r3s2 p1", kind, flip=flip)
        plan = make_plan(request, "mma", "cuda", DEFAULT)
        inputs = {role: laid(values(rng, request.shape(role), dtype, True)) for role in INPUTS[op]}
        arrays = inputs | {RESULT[op]: np.zeros(request.shape(RESULT[op]), dtype)}
        read = [role for role in INPUTS[op] if role != "w" or dtype not in transform.REAL]  # made real first
        assert not_in_vectors(request, plan.launches, arrays) == dict.fromkeys(read, unfit)
        options = dict(padding=1, layout="channels_last", flip=flip)
        operands = [*inputs.values()] + ([arrays[RESULT[op]].shape] if op != "fprop" else [])
        got = emulator.run(op, *operands, **options, precision=precision, algorithm="mma")
        np.testing.assert_array_equal(got, emulator.run(op, *operands, **options, algorithm="direct"))


def test_which_inputs_are_read_as_they_lie():
    """With channels last and groups of whole vectors; all else is copied in the workspace, and none twice."""
    for line, layout, copied in (
        ("n2c16h6w7 k24r3s2", "channels_last", []),
        ("n2c16h6w7 k24r3s2", "channels_first", ["x", "w"]),
        ("n2c20h6w7 k24r3s2", "channels_last", ["x", "w"]),
        ("n2c32h6w7 k48r3s2 g2", "channels_last", []),
        ("n2c40h6w7 k48r3s2 g2", "channels_last", ["x", "w"]),
    ):
        for op in OPS:
            roles = {"fprop": copied, "dgrad": ["w"] if copied else [], "wgrad": ["x"] if copied else []}[op]
            if layout == "channels_first":
                roles = [*INPUTS[op]]
            launches = make_plan(request_of(op, line, layout=layout), "mma", "cuda", DEFAULT).launches
            copies = [launch.b for launch in launches if launch.kernel.template == "conv_channels_last"]
            assert copies == roles, (line, layout, op)
            (main,) = (launch for launch in launches if launch.vectors)
            inputs = [operand for operand in (main.a, main.b) if isinstance(operand, str)]
            assert sorted(inputs + copies) == sorted(INPUTS[op])
    arrays = {role: np.zeros((2, 6, 5, 3), "float16") for role in "xw"}
    launches = make_plan(request_of("fprop", "n2c3h6w5 k2r6s5"), "mma", "cuda", DEFAULT).launches
    assert not_in_vectors(request_of("fprop", "n2c3h6w5 k2r6s5"), launches, arrays) == {}


FEW = (
    "n2c3h9w11 k20r5s5 sh2sw2 p2",
    "n2c1h8w9 k17r3s4 dh1dw2 p1 symmetric",
    "n1c1d3h5w6 k19t2r2s3 sd1sh1sw2 p1",
    "n2c2w20 k17s5 pw2:1",
    "n1c1w9 k1s9",
)


@pytest.mark.parametrize("line", FEW)
@pytest.mark.parametrize("kind", KINDS)
def test_taps_as_channels(kind, line):
    """Bit for bit, with all that may follow a sum, in one part and in three."""
    dtype, precision = KINDS[kind]
    for layout, parts, memory in (("channels_last", 1, "reversed"), ("channels_first", 3, "plain")):
        case = Case(
            cuconv.ConvProblem.parse(line), dtype, layout, memory=memory, bias=True, accumulate=True,
            flip=parts == 1, activation=None if dtype in transform.REAL else "relu", precision=precision,
        )  # fmt: skip
        with chosen(lambda *asked, parts=parts: in_parts(*asked, -1, parts)):
            check(case, "mma", emulator.run)


def test_when_taps_are_channels():
    """Where channels are fewer than a vector has and that saves a third of the products; never in dgrad."""

    def folded(op, line, kind="float16"):
        launches = make_plan(request_of(op, line, kind), "mma", "cuda", DEFAULT).launches
        return [launch.b for launch in launches if launch.kernel.template == "conv_folded"]

    assert folded("fprop", "n2c3h9w9 k16r3s3") == ["x", "w"]
    assert folded("wgrad", "n2c3h9w9 k16r3s3") == ["x"]
    assert folded("dgrad", "n2c3h9w9 k16r3s3") == []
    for line, kind in (
        ("n2c8h9w9 k16r3s3", "float16"),
        ("n2c3h9w9 k16r3s1", "float16"),
        ("n2c7h9w9 k16r3s3", "float16"),
        ("n2c3h9w9 k16r3s3", "float32"),
        ("n2c1h9w9 k16r3s3", "complex128"),
    ):
        assert folded("fprop", line, kind) == [], line
    assert folded("fprop", "n2c1h9w9 k16r3s3", "complex64") == ["x", "w"]


def test_an_empty_input_has_nothing_to_copy():
    request = request_of("fprop", "n2c0h6w7 k24r3s2")
    launches = make_plan(request, "mma", "cuda", DEFAULT).launches
    arrays = {role: np.zeros(request.shape(role), "float16") for role in ("x", "w", "y")}
    assert not any(not_in_vectors(request, launches, arrays).values())


# -- when it applies, and when it is chosen -----------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "dtype", "arch", "reason"),
    [
        ("n1c64h9w9 k64r3s3", "float16", "sm_90", None),
        ("n1c64h9w9 k64r3s3", "bfloat16", "sm_80", None),
        ("n1c64h9w9 k64r3s3", "float32", "sm_120", None),
        ("n1c64h9w9 k64r3s3", "float64", "sm_80", None),
        ("n1c3h9w9 k1r3s3", "float16", "sm_80", None),
        ("n1c64h9w9 k64r3s3", "float64", "sm_89", "sm_89 has no tensor cores for it"),
        ("n1c64h9w9 k64r3s3", "float16", "sm_75", "sm_75 has no tensor cores for it"),
        ("n1c64h9w9 k64r3s3", "complex64", "sm_80", None),
        ("n1c64h9w9 k64r3s3", "complex128", "sm_90", None),
        ("n1c64h9w9 k64r3s3", "complex128", "sm_120", "sm_120 has no tensor cores for it"),
        ("n1c16h9w9 k16r3s3 g2", "complex64", "sm_90", None),
        ("n1c14h9w9 k16r3s3 g2", "complex64", "sm_90", "its groups have fewer than 16 channels or filters"),
        ("n1c64h9w9 k64r3s3", "int32", "sm_90", "tensor cores do not multiply int32"),
        ("n1c30h9w9 k64r3s3 g2", "float16", "sm_90", "its groups have fewer than 16 channels or filters"),
        ("n1c64h9w9 k30r3s3 g2", "float16", "sm_90", "its groups have fewer than 16 channels or filters"),
        ("c1w1073741824 k1s3", "float16", "sm_90", "an axis, its padding included, has 2^30 cells or more"),
        (
            "c8w134217728 k1s134217728",
            "float16",
            "sm_90",
            "the channels of a filter, times its taps, are 2^30 or more",
        ),
        ("c1w134217727 k1s134217727", "float16", "sm_90", None),
        ("n536870912c1h128w128 k64r1s1", "float16", "sm_90", "it would take 2^31 blocks or more"),
    ],
)
def test_when_it_applies(line, dtype, arch, reason):
    """In every op alike, but that the sums of a weight gradient may have any length."""
    for op in OPS:
        if op != "wgrad" or "blocks" not in (reason or ""):
            assert mma.applies(request_of(op, line, dtype), device(arch)) == reason, op


def test_short_sums_of_floats_are_taken_by_name_only():
    """Those of the residue of the stride that has least taps; of tf32 and other types all may be taken."""
    (entry,) = (entry for entry in TABLE["fprop"] if entry.name == "mma")
    for op, line, short in (
        ("fprop", "n2c31h5w6 k40r1s1", True),
        ("fprop", "n2c32h5w6 k40r1s1", False),
        ("fprop", "n2c64h5w6 k128r1s1 g4", True),
        ("dgrad", "n2c40h5w6 k31r1s1", True),
        ("dgrad", "n2c40h5w6 k16r3s3 sh2sw2", True),
        ("dgrad", "n2c40h5w6 k32r3s3 sh2sw2", False),
        ("dgrad", "n2c40h9w6 k16r4s2 sh2sw1 dh2dw1", False),
        ("wgrad", "n1c40h5w6 k40r1s1", True),
        ("wgrad", "n2c40h5w6 k40r1s1", False),
    ):
        reason = entry.by_name_only(request_of(op, line, "float32"))
        assert (reason == "sums of fewer than 32 products are less exact by parts") == short, (op, line)
        assert short or reason is None
        for kind in KINDS.keys() - {"float32", "complex64"}:
            assert entry.by_name_only(request_of(op, line, kind)) is None
    assert entry.by_name_only(request_of("fprop", "n2c15h5w6 k40r1s1", "complex64"))
    assert entry.by_name_only(request_of("fprop", "n2c16h5w6 k40r1s1", "complex64")) is None


def picked(request, arch=DEFAULT):
    return make_plan(request, "auto", "cuda", arch).algorithm


def test_devices_without_tensor_cores_have_other_algorithms():
    for op, layout, kind in itertools.product(OPS, LAYOUTS, KINDS):
        request = request_of(op, "n32c64h56w56 k64r3s3 p1", kind, layout)
        names = {arch: picked(request, arch) for arch in DEVICES}
        doubles = kind in ("float64", "complex128")
        without = {"sm_75", "sm_86", "sm_89", "sm_120"} if doubles else {"sm_75"}
        assert {arch for arch in DEVICES if mma.applies(request, device(arch))} == without
        assert "mma" not in {names[arch] for arch in without}
        assert names["sm_80"] == names["sm_90"] == "mma", (op, layout, kind)
        assert doubles or names["sm_75"] == "simt"


@pytest.mark.parametrize("arch", ["sm_75", "sm_86", "sm_90"])
def test_auto_picks_what_applies(arch):
    names = set()
    for seed in range(300):
        case = seeded_case(seed, "cuda")
        for op in OPS:
            request = Request(op, case.problem, case.dtype, case.layout, precision=case.precision)
            (entry,) = (entry for entry in TABLE[op] if entry.name == picked(request, arch))
            assert entry.applies(request, device(arch)) is None
            names.add(entry.name)
            if entry.name == "mma":
                assert (case.dtype, case.precision) in mma.PRODUCTS
    assert {"depthwise", "simt", "direct"} <= names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suite", ["resnet50", "vgg16"])
def test_dense_layers_of_64_channels_and_more_are_for_tensor_cores(suite, kind):
    """But for 1x1 filters with channels first, where operands take as long to copy as to multiply."""
    for problem, op, layout in itertools.product(suites.read(suite).problems, OPS, LAYOUTS):
        copied = layout == "channels_first" and set(problem.filter) == {1}
        if min(problem.c, problem.k) >= 64 and not copied:
            dtype, precision = KINDS[kind]
            request = Request(op, problem, dtype, layout, precision=precision)
            # Of 64 by 64 channels `grouped` needs fewer of 16 bits from the second-level cache.
            narrow = max(problem.c, problem.k) == 64 and DTYPES[dtype].itemsize == 2
            assert picked(request) in ("mma", *["grouped"] * narrow), str(request)


def test_every_entry_is_picked_for_some_listed_problem():
    """In every op, but that sums as long as a weight gradient's are never one thread's."""
    problems = [problem for name in suites.names() for problem in suites.read(name).problems]
    asked = [
        ("float16", None),
        ("float32", None),
        ("float32", "tf32"),
        ("float64", None),
        ("complex64", None),
    ]
    for op in OPS:
        names = {
            picked(Request(op, problem, dtype, layout, precision=precision))
            for problem, (dtype, precision), layout in itertools.product(problems, asked, LAYOUTS)
        }
        expected = {entry.name for entry in TABLE[op] if entry.exact and not entry.untried}
        assert names == (expected if op != "wgrad" else expected - {"direct"}), op


@pytest.mark.parametrize("kind", KINDS)
def test_launches_do_not_depend_on_the_device(kind):
    """So a result by name is summed in the same parts everywhere, of slices of one depth, in either layout.

    From sm_100 on a tile may be another, for which there are registers enough.
    """
    for line, op in itertools.product((*SEVERAL.values(), VOLUME, "n1c512h7w7 k512r3s3 p1"), OPS):
        cuts, tiles = set(), set()
        for layout, arch in itertools.product(LAYOUTS, ("sm_80", "sm_90", "sm_100", "sm_120")):
            request = request_of(op, line, kind, layout)
            if kind in ("float64", "complex128") and "double" not in DEVICES[arch].tensor:
                continue
            plan = make_plan(request, "mma", "cuda", arch)
            (main,) = (launch for launch in plan.launches if launch.vectors)
            fields, newest = dict(main.fields), main.kernel.newest
            cuts.add((fields["splits"], fields.get("chunk"), main.kernel.arguments[3]))
            assert newest is None or int(arch[3:]) <= newest
            if arch in ("sm_80", "sm_90"):
                tiles.add((main.kernel, main.blocks))
        assert len(cuts) == len(tiles) == 1


def test_long_sums_of_few_tiles_are_cut_into_parts():
    """None shorter than the ring of slices, and as many as it takes to cover gemm_k."""
    for kind, op in itertools.product(KINDS, OPS):
        for line, cut in (
            ("n1c512h7w7 k512r3s3 p1", op != "wgrad"),
            ("n64c64h112w112 k128r3s3 p1", op == "wgrad"),
        ):
            request = request_of(op, line, kind)
            problem = mma.dense(request, schedule.zero_padded(request))
            tile, splits, chunk = mma.choice(problem, request)
            depth = schedule.gemm_k(problem, op, VECTOR // mma.itemsize(request))
            assert (splits > 1) == cut, (kind, op, line)
            assert (splits - 1) * chunk < depth <= splits * chunk
            assert chunk % tile.bk == 0
            assert chunk >= tile.stages * tile.bk or splits == 1
