"""Generated cases and how a result is judged: drawn by hypothesis in the tests, by a seed in the fuzzer.

`check` runs one case through any implementation of the ops that takes the public functions' arguments, so
that the same cases serve the public API and, by name, every algorithm.
"""

import contextlib
import dataclasses
import functools
from dataclasses import dataclass
from unittest import mock

import ml_dtypes
import numpy as np

import cuconv
from cuconv import dtypes, processor
from cuconv.cpu import blocking, blockwise, col2im
from cuconv.cuda import depthwise, fft, grouped, mma, schedule, simt, wgmma
from cuconv.cuda.kernel import VECTOR
from cuconv.plan import TABLES, device_of, forget
from cuconv.problem import ACTIVATIONS, PADDING_MODES

from .reference import Reference, activated, wrapped

DTYPES = {name: np.dtype(getattr(ml_dtypes, name, None) or name) for name in dtypes.DTYPES}
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52, "complex64": 2.0**-21, "complex128": 2.0**-50}
ROUNDING = {**EPSILON, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "complex64": 2.0**-149}
ROUNDED = {None: 0.0, "tf32": 2 * 2.0**-11 + 2.0**-22}
"""What rounding both factors to 11 bits may lose of a product."""

TAKEN = {wide: [name for name in dtypes.INTEGERS if dtypes.holds(wide, name)] for wide in ("int32", "int64")}
OPS = ("fprop", "dgrad", "wgrad")
HUGE = (
    "n1c3d240h240w240 k8t60r60s60 sd60sh60sw60",
    "c1w3000000 k1s3 sw1000000",
    "c2h3000w3000 k2r32s32 sh32sw32",
    "c1w1000000000000 k1s3",
    "c1w1000000000000 k1s300000 dw1000000",
    "c1w1000000000000 k1s1000003 sw1000000",
    "n1c2d97h97w97 k2t50r50s50 sd47sh47sw47 dd3dh5dw7 p200",
    "c1h100000w100000 k1r99999s99999",
    "n2c4d40h40w40 k4t3r3s3 g4 sd60sh60sw60",
    "n2c4h9w8 k4r3s3 sh1000000sw999983 p1000000",
    "n1c1w1000000000000 k1s3 sw1000 dw1000000 p1",
    "n1c2w1000000000000 k2s1000000 g2 dw7 p5:-1 reflect",
    "n1c1000000h5w5 k1000000r3s3 p1 circular",
    "n1c1000000h5w5 k1000000r3s3 g1000000 p2",
    "n3c6h1000003w7 k9r999983s5 g3 dh1dw5 ph0pw30",
    "n2305843009213693951c1w7 k1s3 p1",
    "n1c1w5 k1s3 p1:2305843009213693951 replicate",
    "n1c1d1000000h1000000w1000000 k1t999999r999999s999999",
)
"""Problems whose numbers are large: plans, on either backend, are made or refused in milliseconds."""


def _names(table):
    """Every name in a table, whatever the op."""
    return list(dict.fromkeys(entry.name for op in OPS for entry in table[op]))


ALGORITHMS, ON_GPU = _names(TABLES["cpu"]), _names(TABLES["cuda"])
KERNELS = [name for name in ON_GPU if name != "fft"]
"""The entries for a GPU whose launches are kernels of ours."""

MEMORIES = ("plain", "reversed", "sliced", "transposed", "broadcast")
MIXED = {"fprop": "xw", "dgrad": "yw", "wgrad": "xy"}
PUBLIC = {
    "fprop": cuconv.conv,
    "dgrad": cuconv.conv_input_grad,
    "wgrad": cuconv.conv_weight_grad,
    "bgrad": cuconv.conv_bias_grad,
}


@dataclass(frozen=True)
class Case:
    """A problem and everything else that a call may vary."""

    problem: cuconv.ConvProblem
    dtype: str = "float32"
    layout: str = "channels_first"
    batched: bool = True
    flip: bool = False
    memory: str = "plain"
    bias: bool = False
    activation: str | None = None
    accumulate: bool = False
    exact: bool = True
    workspace: int = blocking.WORKSPACE
    seed: int = 0
    threads: int = 1
    inputs: tuple[str, str] | None = None
    precision: str | None = None

    def __str__(self):
        default = Case(self.problem)
        fields = [field.name for field in dataclasses.fields(self) if field.name != "problem"]
        changed = {f: getattr(self, f) for f in fields if getattr(self, f) != getattr(default, f)}
        return f"{self.problem} {changed}"

    def options(self):
        return self.problem.options() | dict(layout=self.layout)


def draw_case(integer, pick, backend="cpu"):
    """A case from two sources of choice: integer(low, high), and pick(sequence).

    Only on a GPU does `precision` change anything: elsewhere a bound would be wider for nothing.
    """
    rank = pick((1, 2, 2, 3))
    groups = pick((1, 1, 2, 3, 4))
    few = 4 if rank < 3 else 3
    c_per_group, k_per_group = integer(1, few), integer(1, few)
    if integer(0, 19) == 0:
        c_per_group, k_per_group = pick(((0, 2), (2, 0), (1, 0), (0, 0)))
    mode = pick(("zeros", *PADDING_MODES))
    axes, far = [], integer(0, 4 * rank)  # the axis with a long stride or dilation, if any
    for axis in range(rank):
        taps, stride, dilation = integer(1, few), integer(1, 3), integer(1, 3)
        if axis == far:
            stride, dilation = pick(((1, 40), (2, 25), (15, 1), (20, 30)))
        pair = (integer(-2, 4), integer(-2, 4))
        reach = (taps - 1) * dilation + 1
        length = (integer(1, few + 2) - 1) * stride + reach + integer(0, stride - 1)
        extent = max(length - sum(pair), 0 if mode == "zeros" else 1)
        axes.append((extent, taps, stride, dilation, pair))
    extents, taps, strides, dilations, pairs = zip(*axes, strict=True)
    n, batched = pick(((1, True), (2, True), (3, True), (1, False)))
    if batched and integer(0, 19) == 0:
        n = 0
    problem = cuconv.ConvProblem(
        n, c_per_group * groups, k_per_group * groups, extents, taps, strides, dilations, pairs, groups, mode
    )
    dtype = pick(tuple(DTYPES))
    kind = DTYPES[dtype].kind
    floating = dtypes.DTYPES[dtype].kind == "f"
    return Case(
        problem,
        dtype,
        pick(("channels_first", "channels_last")),
        batched,
        pick((False, True)),
        pick(MEMORIES),
        pick((False, True)),
        pick((None, *ACTIVATIONS)) if floating else pick((None, "relu")) if kind == "i" else None,
        pick((False, True)),
        pick((True, False)) or kind == "i",
        pick((blocking.WORKSPACE, 1, 2000)),
        integer(0, 2**31 - 1),
        pick((1, 1, 2, 3)),
        (pick(TAKEN[dtype]), pick(TAKEN[dtype])) if kind == "i" else None,
        pick((None, "tf32")) if dtype == "float32" and backend == "cuda" else None,
    )


def seeded_case(seed, backend="cpu"):
    """The case of a number: draw_case with NumPy's generator."""
    rng = np.random.default_rng(seed)
    return draw_case(
        lambda low, high: int(rng.integers(low, high + 1)),
        lambda sequence: sequence[int(rng.integers(len(sequence)))],
        backend,
    )


def suited(case, algorithm):
    """The case, or one like it of a dtype and channels that tensor cores take, as few have by chance."""
    family = {"mma": mma, "grouped": grouped, "wgmma": wgmma}.get(algorithm)
    if family is None:
        return case
    rng, problem, groups = np.random.default_rng(case.seed), case.problem, case.problem.groups
    if family is wgmma:
        groups = min(groups, 2)
    if groups == 1:
        channels, filters = map(int, rng.integers(1, 90 if family is wgmma else 40, 2))
    elif family is not grouped:
        channels, filters = map(int, rng.integers(family.LEAST, family.LEAST + 8, 2))
    else:
        channels, filters = map(int, rng.choice(grouped.CHANNELS, 2))
        groups *= 2 if min(channels, filters) < grouped.OCTET else 1
    problem = dataclasses.replace(problem, c=channels * groups, k=filters * groups, groups=groups)
    kinds = [(of, None) if family is grouped else of for of in family.PRODUCTS]
    dtype, precision = kinds[rng.integers(len(kinds))]
    activation = None if DTYPES[dtype].kind == "c" else case.activation
    return dataclasses.replace(
        case, problem=problem, dtype=dtype, inputs=None, precision=precision, activation=activation
    )


def values(rng, shape, dtype, exact):
    """Random numbers: small integers, whose sums of products are exact, or normal ones."""
    dtype = np.dtype(DTYPES.get(dtype, dtype))
    if dtype.kind in "iu":
        # Far enough out that products and sums wrap.
        bound = np.iinfo(dtype).max if rng.integers(2) else 9
        return rng.integers(-bound if dtype.kind == "i" else 0, bound, shape, dtype=dtype)

    def real():
        return rng.integers(-3, 4, shape).astype(np.float64) if exact else rng.standard_normal(shape)

    return (real() + 1j * real() if dtype.kind == "c" else real()).astype(dtype)


def laid_out(array, memory, rng):
    """The same array with its elements side by side as its layout has them, or with other strides.

    `broadcast` repeats the first row, so it changes the values.
    """
    if memory == "plain":
        return np.ascontiguousarray(array)
    if memory == "reversed":
        return np.ascontiguousarray(array[(slice(None, None, -1),) * array.ndim])[
            (slice(None, None, -1),) * array.ndim
        ]
    if memory == "sliced":
        wide = np.full([2 * extent + 1 for extent in array.shape], 7).astype(array.dtype)
        view = wide[tuple(slice(1, 2 * extent + 1, 2) for extent in array.shape)]
        view[...] = array
        return view
    if memory == "transposed":
        order = rng.permutation(array.ndim)
        return np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))
    if memory == "broadcast" and array.size:
        return np.broadcast_to(array[:1], array.shape)
    return array


def to_layout(array, case, volume=True):
    """A batched channels-first array in the case's layout, without the batch axis where it has none."""
    if case.layout == "channels_last":
        array = np.moveaxis(array, 1, -1)
    return array[0] if volume and not case.batched else array


def from_layout(array, case, volume=True):
    """The inverse of to_layout."""
    if volume and not case.batched:
        array = array[None]
    return np.moveaxis(array, -1, 1) if case.layout == "channels_last" else array


def judge(got, expected, magnitude, terms, dtype, exact, context, extra=0.0):
    """Equal bit for bit where sums are exact, otherwise within a bound per element.

    The bound is that of a sum of so many products in the accumulator's precision, in any order, and one
    rounding to the result's dtype; `extra` is added for factors that were rounded, and for an algorithm that
    mixes elements.
    """
    name = dtype
    assert got.dtype == DTYPES[name], f"{context}: dtype {got.dtype}"
    assert got.shape == expected.shape, f"{context}: shape {got.shape}, expected {expected.shape}"
    if exact:
        rounded = wrapped(expected, got.dtype).astype(got.dtype)
        same = np.array_equal(got, rounded)
        assert same, f"{context}: differs at {np.argwhere(got != rounded)[:5].tolist()}"
        return
    accumulator = {"float16": "float32", "bfloat16": "float32"}.get(name, name)
    wide = wrapped(expected, got.dtype)
    error = np.abs(got.astype(wide.dtype) - wide)
    bound = (terms + 2) * EPSILON[accumulator] * magnitude.astype(np.float64)
    bound = bound + ROUNDING[name] * np.abs(wide) + SMALLEST.get(name, 0) + extra
    worst = np.argmax(error - bound) if error.size else 0
    assert (error <= bound).all(), (
        f"{context}: error {error.flat[worst]:.3g} above the bound {bound.flat[worst]:.3g} "
        f"at {np.unravel_index(worst, error.shape)}"
    )


@contextlib.contextmanager
def workspace(size):
    """Plan small problems as if they were large: in so many bytes, and on a GPU with sums in parts.

    The smallest size also has a GPU's largest tiles, the others the smallest, of tensor cores one of the last
    three; for `depthwise` passes of few taps and blocks of several images, the others weight gradients in
    parts; for `grouped` small tiles, many of them for a block, and the smallest size the largest blocks of
    a warp. In all of these x is not padded in the workspace where there are kernels that read what padding
    shows, of few channels too: their taps are no channels.
    """
    if size == blocking.WORKSPACE:
        yield
        return

    def tile(choice):
        return lambda problem, request: choice(problem, request, 0 if size == 1 else -1 - problem.k // 2 % 3)

    def rank(request, tile, seconds=grouped._rank):
        one, other = tile.arguments[:2]
        if request.op == "wgrad":
            return 0, 0, 0, seconds(request, tile)
        apart = tile.together != ((request.layout == "channels_last") == (size == 1))
        return apart, -one if size == 1 else one, -other, seconds(request, tile)

    with (
        mock.patch.object(blocking, "WORKSPACE", size),
        mock.patch.object(blocking, "LIMIT", 3 * size),
        mock.patch.object(fft, "WORKSPACE", size),
        mock.patch.object(schedule, "PART", 1 if size == 1 else 8),
        mock.patch.object(schedule, "SHOWN_CHANNELS", 1),
        mock.patch.object(simt, "SHOWN_FILTERS", 0),
        mock.patch.object(simt, "_first", lambda choices, cost: choices[0 if size == 1 else -1]),
        mock.patch.object(mma, "choice", tile(in_parts)),
        mock.patch.object(wgmma, "choice", tile(of_warpgroups)),
        mock.patch.object(wgmma, "blocks_for", lambda tiles, device: min(tiles, 1 if size == 1 else 3)),
        mock.patch.object(mma, "_folded", return_value=""),
        mock.patch.multiple(depthwise, **(dict(MOST=3, WAVE=1) if size == 1 else dict(ADDED=0, PARTS=0))),
        mock.patch.multiple(grouped, MOST=24 if size == 1 else 72, WAVE=1, _rank=rank),
    ):
        forget()
        yield
    forget()


def in_parts(problem, request, number, parts=3):
    """A tile for tensor cores, counted from the largest, and gemm_k in parts if it has so many slices."""
    tiles = [tile for tile in mma.tiles_of(request) if schedule.planar(problem) or not tile.planar]
    tile = tiles[max(number, -len(tiles))]
    return tile, *cut(problem, request, VECTOR // mma.itemsize(request), tile.bk, parts)


def of_warpgroups(problem, request, number, parts=3):
    """Likewise for warpgroups."""
    product = wgmma.PRODUCTS[request.dtype, request.precision]
    tile = product.tiles[max(number, -len(product.tiles))]
    return tile, *cut(problem, request, product.vector, product.depth, parts)


def cut(problem, request, vector, depth, parts):
    """How many parts gemm_k has, and how deep each is, in slices of `depth`."""
    slices = schedule.per(schedule.gemm_k(problem, request.op, vector), depth)
    chunk = max(schedule.per(slices, parts), 1) * depth
    return max(schedule.per(slices * depth, chunk), 1), chunk


@contextlib.contextmanager
def threads(count):
    """Plan for a CPU of so many threads, all of which are worth their start however small the problem."""
    if count == 1:
        with mock.patch.object(processor, "threads", return_value=1):
            yield
        return
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(processor, "threads", return_value=count))
        for room in (blockwise, col2im):
            patches.enter_context(mock.patch.object(room, "workers", lambda request, cpu: cpu.threads))
        forget()
        yield
    forget()


def check(case, algorithm="auto", run=None, ops=(*OPS, "bgrad")):
    """Run every op of a case and judge it against the oracle.

    `run(op, *arrays, **options)` takes what the public function of the op takes.
    """
    with workspace(case.workspace), threads(case.threads):
        _check(case, algorithm, run, ops)


def _check(case, algorithm, run, ops):
    run = run or (lambda op, *arrays, **options: PUBLIC[op](*arrays, **options))
    problem, rng = case.problem, np.random.default_rng(case.seed)
    context = f"{case} algorithm={algorithm}"

    def make(shape, volume=True, dtype=case.dtype):
        plain = values(rng, shape, dtype, case.exact)
        return laid_out(to_layout(plain, case, volume), case.memory, rng)

    x, w = make(problem.x_shape()), make(problem.w_shape(), volume=False)
    bias = (
        laid_out(values(rng, (problem.k,), case.dtype, case.exact), case.memory, rng) if case.bias else None
    )
    reference = _reference(
        problem.x_shape(), problem.w_shape(), problem.stride, problem.dilation, problem.padding,
        problem.groups, problem.padding_mode,
    )  # fmt: skip
    assert reference.y_shape == problem.y_shape(), f"{context}: output extents {problem.output}"
    dy = make(reference.y_shape)
    plain_x, plain_w, plain_dy = (
        from_layout(x, case),
        from_layout(w, case, volume=False),
        from_layout(dy, case),
    )
    spatial = tuple(range(2, plain_w.ndim))
    turned_w = np.flip(plain_w, spatial) if case.flip else plain_w
    per_group, taps = problem.c // problem.groups, int(np.prod(problem.filter))
    pixels = problem.n * int(np.prod(problem.output))

    def finish(op, arguments, expected, magnitude, terms, volume=True, exact=case.exact, **options):
        """Call the op, into a new array or onto an existing one, and compare."""
        out = start = None
        if case.accumulate and op != "bgrad":
            start = values(rng, expected.shape, case.dtype, case.exact)
            out = laid_out(
                to_layout(start, case, volume), "plain" if case.memory == "broadcast" else case.memory, rng
            )
            expected, magnitude = expected + _numbers(start), magnitude + np.abs(_numbers(start))
            options.update(out=out, accumulate=True)
        if op != "bgrad":
            options.update(case.options(), flip=case.flip, algorithm=algorithm, precision=case.precision)
        extra = ROUNDED[case.precision if op != "bgrad" else None] * magnitude.astype(np.float64)
        if algorithm == "fft" and op != "bgrad":
            # Transforms in double precision: an error relative to the norms of all that is mixed.
            norms = [np.linalg.norm(absolute["xwy".index(name)].astype(np.float64)) for name in MIXED[op]]
            exact, terms, extra = False, 2, 100 * EPSILON["float64"] * norms[0] * norms[1] * 4**problem.rank
        got = run(op, *arguments, **options)
        assert out is None or got is out
        if op != "bgrad":
            got = from_layout(got, case, volume)
        judge(got, expected, magnitude, terms, case.dtype, exact, f"{op} {context}", extra)

    absolute = (np.abs(_numbers(plain_x)), np.abs(_numbers(turned_w)), np.abs(_numbers(plain_dy)))

    def sums(op, *factors):
        return _sums(reference, op, case.dtype, factors)

    def magnitudes(op, *factors, smooth=False):
        """What a bound is made of, where results are not to be equal."""
        return sums(op, *factors) if smooth or not case.exact or algorithm == "fft" else np.zeros(())

    if "fprop" in ops:
        factors, options = (x, w), {}
        smooth = case.activation not in (None, "relu")
        y, magnitude = sums("fprop", plain_x, turned_w), magnitudes("fprop", *absolute[:2], smooth=smooth)
        if case.inputs:
            narrow_x = make(problem.x_shape(), dtype=case.inputs[0])
            narrow_w = make(problem.w_shape(), volume=False, dtype=case.inputs[1])
            factors, options = (narrow_x, narrow_w), dict(out_dtype=case.dtype)
            plain = _numbers(from_layout(narrow_w, case, volume=False))
            plain = np.flip(plain, spatial) if case.flip else plain
            y = sums("fprop", _numbers(from_layout(narrow_x, case)), plain)
        if bias is not None:
            shape = (1, -1) + (1,) * problem.rank
            y, magnitude = (
                y + _numbers(bias).reshape(shape),
                magnitude + np.abs(_numbers(bias)).reshape(shape),
            )
        if case.activation == "relu" and DTYPES[case.dtype].kind == "i":
            y = _numbers(wrapped(y, case.dtype))  # an activation sees the wrapped sum
        # Every activation's slope is below 1.13, and its own rounding is within a few units of its value.
        y = activated(y, case.activation)
        finish(
            "fprop", (*factors, bias), y, magnitude * 2 + 1 if smooth else magnitude,
            per_group * taps + 8 * smooth, exact=case.exact and not smooth, activation=case.activation,
            **options,
        )  # fmt: skip
    if "dgrad" in ops:
        dx, magnitude = sums("dgrad", plain_dy, turned_w), magnitudes("dgrad", absolute[2], absolute[1])
        terms = (
            problem.k // problem.groups * taps * (1 if problem.padding_mode == "zeros" else 4**problem.rank)
        )
        shape = to_layout(plain_x, case).shape
        finish("dgrad", (dy, w, shape), dx, magnitude, terms)
    if "wgrad" in ops:
        dw, magnitude = sums("wgrad", plain_x, plain_dy), magnitudes("wgrad", absolute[0], absolute[2])
        if case.flip:
            dw, magnitude = (np.flip(each, spatial) if each.ndim else each for each in (dw, magnitude))
        finish("wgrad", (x, dy, w.shape), dw, magnitude, pixels, volume=False)
    if "bgrad" in ops:
        db, magnitude = sums("bgrad", plain_dy), magnitudes("bgrad", absolute[2])
        finish("bgrad", (dy,), db, magnitude, pixels, layout=case.layout, batched=case.batched)


_reference = functools.lru_cache(maxsize=64)(Reference)

_KEPT = {}
"""The last sums of the oracle: the same are asked for in every layout, cut into parts, by every algorithm."""


def _sums(reference, op, dtype, factors):
    key = [array.tobytes() if array.dtype != object else tuple(array.ravel().tolist()) for array in factors]
    key = (reference, op, dtype, *(array.dtype.str for array in factors), *key)
    if key not in _KEPT:
        if len(_KEPT) == 64:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = getattr(reference, op)(*factors)
        _KEPT[key].flags.writeable = False
    return _KEPT[key]


def _numbers(array):
    """An array as Python numbers: exact ints, or float64 and complex128."""
    if array.dtype == object:
        return array
    wide = array if array.dtype.kind in "iu" else wrapped(array, array.dtype)
    return wide.astype(object)


def check_seeds(seeds, algorithm="auto", run=None, backend="cpu"):
    """`check` a range of seeded cases, in those ops that an algorithm by name says it can do.

    Each op in which the table has the algorithm must come up: one that applies to little is looked for
    among thousands of further cases.
    """
    table = TABLES[backend]
    missing = {op for op in OPS if algorithm in ("auto", *(entry.name for entry in table[op]))}
    for seed in range(seeds.start, seeds.stop + 20_000):
        if seed >= seeds.stop and not missing:
            break
        case = suited(seeded_case(seed, backend), algorithm)
        ops = ops_of(case, algorithm, backend)
        if seed in seeds or missing.intersection(ops):
            check(case, algorithm, run, ops)
            missing.difference_update(ops)
    assert not missing, f"{algorithm}: no case of {missing} among the seeds"


def ops_of(case, algorithm, backend="cpu"):
    """The ops of a case that an algorithm of a backend's table says it can do; `auto` does all."""
    if algorithm == "auto":
        return (*OPS, "bgrad")
    return tuple(op for op in OPS if applies(case, algorithm, op, backend))


def applies(case, algorithm, op, backend="cpu"):
    """Whether a backend's table has the algorithm for an op, and it says that it can do the case's."""
    request = cuconv.problem.Request(
        op, case.problem, case.dtype, case.layout, precision=case.precision, accumulate=case.accumulate,
        activation=case.activation if op == "fprop" else None,
    )  # fmt: skip
    device = device_of(backend, f"{case.threads} threads" if backend == "cpu" else None)
    entries = [entry for entry in TABLES[backend][op] if entry.name == algorithm]
    return bool(entries) and entries[0].applies(request, device) is None
