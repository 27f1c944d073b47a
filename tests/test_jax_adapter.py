"""cuconv.jax beside JAX: values, derivatives, vmap, compilation, errors, a training, and the way to a GPU."""

import ctypes
import dataclasses
import functools
import inspect
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
import types
from contextlib import contextmanager
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

import cuconv
from cuconv.cuda import jit
from cuconv.plan import Call

from .cases import PUBLIC, check, seeded_case
from .device_arrays import Entered
from .emulator import emulated

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402
from jax import lax, test_util  # noqa: E402
from jax.interpreters import mlir  # noqa: E402

import cuconv.jax as ours  # noqa: E402
from cuconv.jax import lowering, operators  # noqa: E402

pytestmark = pytest.mark.peer

NAMES = ("conv", "conv_input_grad", "conv_weight_grad", "conv_transpose")
REAL, COMPLEX = ["float32", "float64"], ["complex64", "complex128"]


@pytest.fixture(autouse=True, scope="module")
def _wide():
    """float64 for JAX, in all of its threads."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def through_jax(op, *arrays, **options):
    """What the public function of an op takes and returns, by way of JAX."""
    arrays = [jnp.asarray(each) if isinstance(each, np.ndarray) else each for each in arrays]
    result = getattr(ours, PUBLIC[op].__name__)(*arrays, **options)
    assert isinstance(result, jax.Array)
    return np.asarray(result)


def compiled(op, *arrays, **options):
    """The same under `jit`, with shapes and options fixed."""
    traced = [jnp.asarray(each) for each in arrays if isinstance(each, np.ndarray)]

    def function(*traced):
        left = iter(traced)
        given = [next(left) if isinstance(each, np.ndarray) else each for each in arrays]
        return getattr(ours, PUBLIC[op].__name__)(*given, **options)

    return np.asarray(jax.jit(function)(*traced))


def whole_numbers(seed, *shapes, dtype="float64"):
    """Arrays of integers so small that all sums of their products are exact."""
    rng = np.random.default_rng(seed)

    def some(shape):
        return rng.integers(-3, 4, shape).astype(np.float64)

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    return [
        jnp.asarray((some(s) + 1j * some(s) if kind.kind == "c" else some(s)).astype(kind)) for s in shapes
    ]


# -- values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [through_jax, compiled])
def test_generated_calls_against_the_oracle(run):
    """Ranks, layouts, dtypes, padding modes, activations, flipped, without a batch, of narrow integers."""
    first = 1000 * (run is compiled)
    for seed in range(first, first + 25):
        check(dataclasses.replace(seeded_case(seed), accumulate=False), run=run)


@pytest.mark.parametrize("dtype", [*REAL, *COMPLEX, "float16", "bfloat16", "int32"])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_bits_are_the_cores(dtype, transposed):
    """Of conv_transpose and of what gives all gradients too, which the oracle's cases do not have."""
    function, backward = (
        ("conv_transpose", "conv_transpose_backward") if transposed else ("conv", "conv_backward")
    )
    x, w, bias, dy = whole_numbers(3, (2, 4, 7, 6), (4, 2, 3, 2), (4,), (2, 4, 4, 4), dtype=dtype)
    options = dict(stride=2, padding=[(1, 2), 1], groups=2)
    if transposed:
        options["output_padding"] = 1
        dy = jnp.ones((2, 4, 13, 11), x.dtype)
    same(ours_and_core(function, x, w, bias, **options))
    for needs in itertools.product((False, True), repeat=3):
        same(ours_and_core(backward, dy, x, w, needs=needs, **options))
    if dtype in REAL:
        for activation in cuconv.problem.ACTIVATIONS[1:]:
            same(ours_and_core(function, x, w, bias, activation=activation, **options))


def ours_and_core(name, *arrays, **options):
    mine = getattr(ours, name)(*arrays, **options)
    core = getattr(cuconv, name)(*map(np.asarray, arrays), **options)
    return mine, core


def same(pair):
    """To the bit, but for subnormal numbers, which are zeros in XLA's threads."""
    mine, core = (each if isinstance(each, tuple) else (each,) for each in pair)
    for one, other in zip(mine, core, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            tiny = np.finfo("float32").tiny if one.dtype == np.float32 else 0
            one, other = (np.where(np.abs(each) < tiny, 0, each) for each in (np.asarray(one), other))
            np.testing.assert_array_equal(one, other)


def computed(function, *operands):
    """The operators in what JAX makes of a function."""
    return sorted(re.findall(r"request=(\w+)", str(jax.make_jaxpr(function)(*operands))))


def test_names_with_a_rank():
    for rank, (x, w) in enumerate((((1, 2, 9), (3, 2, 3)), ((1, 2, 9, 9), (3, 2, 3, 3))), 1):
        x, w = whole_numbers(1, x, w)
        same(ours_and_core(f"conv{rank}d", x, w, padding="same"))
        with pytest.raises(
            ValueError, match=r"^w must have 5 axes for conv3d \(3 of them spatial\), got shape"
        ):
            ours.conv3d(x, w)


def test_tuning_times_the_arrays_not_their_stand_ins():
    x, w = whole_numbers(1, (2, 3, 9, 9), (4, 3, 3, 3))
    calls = []
    with mock.patch.object(Call, "_tuned", lambda call: calls.append(call) or call.planned("auto").plan):
        y = jax.jit(functools.partial(ours.conv, algorithm="tune"))(x, w)
        grad = jax.grad(lambda w: ours.conv(x, w, algorithm="tune").sum())(w)
        jax.block_until_ready((y, grad))
    assert [call.request.op for call in calls][-1] == "wgrad"
    assert all(call.operands["x"].strides[-1] for call in calls)  # a stand-in's strides are 0


# -- derivatives ------------------------------------------------------------------------------------------

DRAWN = [
    dict(x=(2, 4, 11), w=(6, 2, 3), stride=2, padding=[(1, 2)], dilation=2, groups=2),
    dict(x=(2, 3, 8, 7), w=(4, 3, 3, 2), stride=(2, 1), padding=[(2, 0), (1, 1)], dilation=(1, 2)),
    dict(x=(1, 2, 5, 6, 4), w=(2, 1, 2, 3, 2), stride=(1, 2, 1), padding=1, groups=2),
    dict(x=(2, 4, 9, 9), w=(4, 1, 3, 3), padding="same", groups=4),
    dict(x=(2, 9, 8, 3), w=(4, 3, 2, 3), stride=3, padding=-1, layout="channels_last", flip=True),
]


def laxs(x, w, stride=1, padding=0, dilation=1, groups=1, layout="channels_first", flip=False, mode=None):
    """jax.lax's convolution, with cuconv's options."""
    rank = w.ndim - 2
    last = layout == "channels_last"
    letters = "DHW"[3 - rank :]
    problem = cuconv.ConvProblem.from_shapes(
        x.shape, w.shape, stride, padding, dilation, groups, layout=layout
    )
    pads = problem.padding
    if flip:
        w = jnp.flip(w, range(1, rank + 1) if last else range(2, rank + 2))
    if mode:
        x = jnp.pad(x, [(0, 0), *pads, (0, 0)] if last else [(0, 0), (0, 0), *pads], mode)
        pads = [(0, 0)] * rank
    forms = ("N" + letters + "C", "O" + letters + "I") if last else ("NC" + letters, "OI" + letters)
    return lax.conv_general_dilated(
        x, w, problem.stride, pads, None, problem.dilation, (*forms, forms[0]), groups,
        precision="highest",
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("drawn", DRAWN, ids=lambda drawn: f"w{drawn['w']}")
def test_derivatives_of_conv_are_those_of_lax(drawn, dtype):
    """To the bit: for complex arrays the transposed map, not the adjoint one."""
    options = {key: value for key, value in drawn.items() if key not in "xw"}
    x, w = whole_numbers(5, drawn["x"], drawn["w"], dtype=dtype)
    y, pull = jax.vjp(functools.partial(ours.conv, **options), x, w)
    expected, pull_lax = jax.vjp(functools.partial(laxs, **options), x, w)
    np.testing.assert_array_equal(y, expected)
    (dy,) = whole_numbers(6, y.shape, dtype=dtype)
    for mine, theirs in zip(pull(dy), pull_lax(dy), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)
    tangents = whole_numbers(7, x.shape, w.shape, dtype=dtype)
    np.testing.assert_array_equal(
        jax.jvp(functools.partial(ours.conv, **options), (x, w), tuple(tangents))[1],
        jax.jvp(functools.partial(laxs, **options), (x, w), tuple(tangents))[1],
    )
    # Called by name, they are the adjoint maps, as the core's are.
    grads = ours.conv_backward(dy, x, w, **options)
    adjoints = (
        [each.conj() for each in pull_lax(dy.conj())]
        if dtype in REAL
        else [
            jax.vjp(lambda x: laxs(x, w.conj(), **options), x)[1](dy)[0],
            jax.vjp(lambda w: laxs(x.conj(), w, **options), w)[1](dy)[0],
        ]
    )
    for mine, theirs in zip(grads, adjoints, strict=False):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_every_function_has_the_derivatives_of_its_map(name, dtype):
    """The gradients and conv_transpose as maps of lax's, differentiated by JAX, with the conjugates."""
    options = dict(stride=2, padding=1, groups=2)
    x, w, y = whole_numbers(8, (2, 4, 7, 6), (6, 2, 3, 2), (2, 6, 4, 4), dtype=dtype)
    forward = functools.partial(laxs, **options)
    mine, theirs, operands = {
        "conv": (functools.partial(ours.conv, **options), forward, (x, w)),
        "conv_input_grad": (
            lambda dy, w: ours.conv_input_grad(dy, w, x.shape, **options),
            lambda dy, w: jax.vjp(lambda x: forward(x, w.conj()), x)[1](dy)[0],
            (y, w),
        ),
        "conv_weight_grad": (
            lambda x, dy: ours.conv_weight_grad(x, dy, w.shape, **options),
            lambda x, dy: jax.vjp(lambda w: forward(x.conj(), w), w)[1](dy)[0],
            (x, y),
        ),
        "conv_transpose": (
            lambda u, w: ours.conv_transpose(u, w, output_padding=(0, 0), **options),
            lambda u, w: jax.vjp(lambda x: forward(x, w), jnp.zeros((2, 4, 7, 6), u.dtype))[1](u)[0],
            (y, w),
        ),
    }[name]
    expected = theirs(*operands)
    np.testing.assert_array_equal(mine(*operands), expected)
    (ct,) = whole_numbers(9, expected.shape, dtype=dtype)
    for one, other in zip(jax.vjp(mine, *operands)[1](ct), jax.vjp(theirs, *operands)[1](ct), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        jax.jvp(mine, operands, operands)[1], jax.jvp(theirs, operands, operands)[1]
    )


@pytest.mark.parametrize(
    ("mode", "name"),
    [("circular", "wrap"), ("reflect", "reflect"), ("replicate", "edge"), ("symmetric", "symmetric")],
)
def test_derivatives_where_padding_is_not_zeros(mode, name):
    x, w = whole_numbers(5, (2, 2, 7, 6), (3, 2, 3, 3))
    options = dict(stride=(2, 1), padding=[(2, 1), (3, 2)])
    y, pull = jax.vjp(functools.partial(ours.conv, padding_mode=mode, **options), x, w)
    expected, pull_lax = jax.vjp(functools.partial(laxs, mode=name, **options), x, w)
    np.testing.assert_array_equal(y, expected)
    (dy,) = whole_numbers(6, y.shape)
    for mine, theirs in zip(pull(dy), pull_lax(dy), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def normal(seed, *shapes, dtype="float64"):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape).astype(dtype)) for shape in shapes]


ACTIVATIONS = {
    None: lambda z: z,
    "relu": lambda z: jnp.where(z > 0, z, 0),
    "sigmoid": lambda z: 1 / (1 + jnp.exp(-z)),
    "tanh": lambda z: (jnp.exp(z) - jnp.exp(-z)) / (jnp.exp(z) + jnp.exp(-z)),
    "silu": lambda z: z / (1 + jnp.exp(-z)),
    "gelu": lambda z: z * lax.erfc(-z / 2**0.5) / 2,
}


@pytest.mark.parametrize("activation", cuconv.problem.ACTIVATIONS)
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_bias_and_activation_are_differentiated(activation, layout):
    first = layout == "channels_first"
    x, w, bias = normal(
        1, (2, 3, 6, 5) if first else (2, 6, 5, 3), (4, 3, 3, 2) if first else (4, 3, 2, 3), (4,)
    )
    options = dict(stride=2, padding=1, layout=layout)

    def theirs(x, w, bias):
        z = laxs(x, w, **options) + (bias[:, None, None] if first else bias)
        return ACTIVATIONS[activation](z)

    mine = functools.partial(ours.conv, activation=activation, **options)
    value, _ = jax.vjp(mine, x, w, bias)  # in which JAX applies the activation, and in the other the core
    for each in (mine(x, w, bias), value):
        np.testing.assert_allclose(each, theirs(x, w, bias), rtol=1e-12, atol=1e-12)
    for wrt in (0, 1, 2, (0, 1, 2)):
        grads, expected = (
            jax.grad(lambda *a, f=f: (f(*a) ** 3).sum(), wrt)(x, w, bias) for f in (mine, theirs)
        )
        for one, other in zip(*map(jax.tree.leaves, (grads, expected)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_second_derivatives():
    """Forward and backward, in each order, by differences, and against lax's."""
    x, w, bias = normal(2, (1, 2, 4, 3), (2, 1, 2, 2), (2,))
    options = dict(padding=1, groups=2)
    dy = ours.conv(x, w, **options)
    for function, operands in (
        (lambda x, w, b: ours.conv(x, w, b, activation="gelu", **options), (x, w, bias)),
        (lambda x, w, b: ours.conv_transpose(x, w, b, activation="tanh", **options), (x, w, bias)),
        (lambda x, dy: ours.conv_weight_grad(x, dy, w.shape, **options), (x, dy)),
        (lambda dy: ours.conv_bias_grad(dy) ** 2, (dy,)),
    ):
        test_util.check_grads(function, operands, order=1)
        test_util.check_grads(jax.grad(lambda *a, f=function: jnp.tanh(f(*a)).sum()), operands, order=1)

    def loss(conv, w):
        return jnp.sum(jnp.tanh(conv(x, w, **options)) ** 2)

    expected = jax.hessian(functools.partial(loss, laxs))(w)
    for hessian in (jax.hessian, lambda f: jax.jacrev(jax.jacrev(f)), lambda f: jax.jacrev(jax.jacfwd(f))):
        np.testing.assert_allclose(hessian(functools.partial(loss, ours.conv))(w), expected, atol=1e-11)


def test_only_what_is_asked_for_is_computed():
    """A gradient in w alone is one wgrad beside the forward call, not a product with a zero tangent."""
    x, w, bias = normal(2, (1, 2, 5, 4), (2, 2, 2, 3), (2,))
    for wrt, expected in ((0, ["dgrad", "fprop"]), (1, ["fprop", "wgrad"]), (2, ["fprop"])):
        loss = lambda *a: jnp.sum(jnp.tanh(ours.conv(*a, activation="relu")))  # noqa: E731
        assert computed(jax.grad(loss, wrt), x, w, bias) == expected


def test_integers_have_no_derivative():
    x, w = whole_numbers(1, (1, 2, 6, 6), (2, 2, 3, 3), dtype="int32")
    y, pull = jax.vjp(lambda x, w: ours.conv(x, w, activation="relu"), x, w)
    assert y.dtype == jnp.int32
    assert all(each.dtype == jax.dtypes.float0 for each in pull(np.zeros(y.shape, jax.dtypes.float0)))
    with pytest.raises(TypeError, match="int32"):
        jax.grad(lambda x: ours.conv(x, w).sum())(x)


def test_an_algorithm_by_name_is_for_the_call_not_for_its_derivatives():
    x, w = whole_numbers(1, (1, 2, 6, 6), (2, 2, 3, 3))
    gradient = jax.grad(lambda x: ours.conv(x, w, algorithm="im2col").sum())  # which no dgrad has
    np.testing.assert_array_equal(gradient(x), jax.grad(lambda x: ours.conv(x, w).sum())(x))


# -- vmap -------------------------------------------------------------------------------------------------


def called(name, layout, groups):
    """A function of arrays, of which two are multiplied, and the shapes of these arrays."""
    options = dict(stride=(2, 1), padding=1, groups=groups, layout=layout)
    x, w, y, bias = (2, 4, 5, 4), (6, 4 // groups, 3, 2), (2, 6, 3, 5), (6,)
    if layout == "channels_last":
        x, w, y = ((s[0], *s[2:], s[1]) for s in (x, w, y))
    if name == "conv":
        return functools.partial(ours.conv, activation="relu", **options), (x, w, bias)
    if name == "conv_transpose":
        return functools.partial(ours.conv_transpose, activation="relu", **options), (y, w, (4,))
    if name == "conv_input_grad":
        return lambda dy, w: ours.conv_input_grad(dy, w, x, **options), (y, w)
    return lambda x, dy: ours.conv_weight_grad(x, dy, w, **options), (x, y)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("layout", "groups"), [("channels_first", 1), ("channels_first", 2), ("channels_last", 2)]
)
def test_vmap_over_every_choice_of_arguments(name, layout, groups):
    """One call for all of them, equal to the bit to calls one by one; mapped axes anywhere."""
    function, shapes = called(name, layout, groups)
    for seed, mapped in enumerate(itertools.product((False, True), repeat=len(shapes))):
        if not any(mapped):
            continue
        dims = [
            (seed + i) % (len(shape) + 1) if m else None
            for i, (m, shape) in enumerate(zip(mapped, shapes, strict=True))
        ]
        operands = whole_numbers(
            seed, *(s if d is None else (*s[:d], 3, *s[d:]) for d, s in zip(dims, shapes, strict=True))
        )
        got = jax.vmap(function, dims)(*operands)
        each = [
            function(*(a if d is None else jnp.take(a, i, d) for a, d in zip(operands, dims, strict=True)))
            for i in range(3)
        ]
        np.testing.assert_array_equal(got, jnp.stack(each), f"{dims}")
        assert len(computed(jax.vmap(function, dims), *operands)) == 1


def test_vmap_of_vmap_and_of_derivatives():
    function, shapes = called("conv", "channels_first", 2)
    x, w, bias = whole_numbers(1, (2, 3, *shapes[0]), (3, *shapes[1]), (2, *shapes[2]))
    nested = jax.vmap(jax.vmap(function, (0, 0, None)), (0, None, 0))
    each = jnp.stack([jnp.stack([function(x[i, j], w[j], bias[i]) for j in range(3)]) for i in range(2)])
    np.testing.assert_array_equal(nested(x, w, bias), each)

    def loss(x, w, bias):
        return (function(x, w, bias) ** 2).sum()

    gradient = jax.grad(loss, (0, 1, 2))
    singles = [gradient(x[0, j], w[j], bias[0]) for j in range(3)]
    expected = [jnp.stack(parts) for parts in zip(*singles, strict=True)]
    mapped = jax.vmap(gradient, (0, 0, None))
    of_sum = jax.grad(lambda x, w, b: jax.vmap(loss, (0, 0, None))(x, w, b).sum(), (0, 1, 2))
    for compile in (lambda f: f, jax.jit):
        for one, other in zip(compile(mapped)(x[0], w, bias[0]), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        for i, one in enumerate(compile(of_sum)(x[0], w, bias[0])):
            np.testing.assert_array_equal(one, expected[i].sum(0) if i == 2 else expected[i])


def test_vmap_without_a_batch_and_over_nothing():
    x, w = whole_numbers(1, (3, 2, 6, 6), (2, 2, 3, 3))
    np.testing.assert_array_equal(jax.vmap(ours.conv, (0, None))(x, w), ours.conv(x, w))
    assert jax.vmap(ours.conv, (0, None))(x[:0], w).shape == (0, 2, 4, 4)
    assert jax.vmap(ours.conv, (None, 0))(x, jnp.zeros((0, 2, 2, 3, 3))).shape == (0, 3, 2, 4, 4)


# -- within JAX's other transforms ------------------------------------------------------------------------


def test_within_jaxs_other_transforms():
    x, w = normal(3, (2, 3, 8, 8), (4, 3, 3, 3, 3))

    def deep(conv, x, w):
        def layer(x, w):
            y = conv(x, w, padding="same")
            return lax.cond(y.sum() > 0, jnp.tanh, jnp.sin, y), y.mean()

        return lax.scan(jax.checkpoint(layer), x, w[:, :3])[0].sum()

    mine, theirs = (
        jax.jit(jax.value_and_grad(functools.partial(deep, conv), (0, 1)))(x, w) for conv in (ours.conv, laxs)
    )
    for one, other in zip(*map(jax.tree.leaves, (mine, theirs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
    expected = ours.conv(x, w[0])
    same_size = functools.partial(ours.conv, padding="same")
    given_away = jax.jit(same_size, donate_argnums=0)(x + 0, w[0])
    np.testing.assert_array_equal(given_away, same_size(x, w[0]))
    assert jax.eval_shape(ours.conv, x, w[0]).shape == expected.shape
    with jax.disable_jit():
        np.testing.assert_array_equal(ours.conv(x, w[0]), expected)
    convs = functools.partial(ours.conv, w=w[0])
    np.testing.assert_array_equal(lax.map(convs, x[:, None], batch_size=2)[:, 0], expected)
    np.testing.assert_array_equal(jax.linearize(convs, x)[1](x), expected)
    (dx,) = jax.linear_transpose(convs, x)(expected)
    np.testing.assert_array_equal(dx, ours.conv_input_grad(expected, w[0], x.shape))
    compiled = jax.jit(ours.conv, static_argnames=("stride", "padding"))
    assert compiled(x, w[0], stride=2, padding="same").shape == (2, 3, 4, 4)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_several_devices():
    """In a process of its own, since JAX counts its devices once."""
    run_python(
        """
import jax, numpy as np, cuconv.jax
from jax import numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
devices = jax.devices()
assert len(devices) == 2
rng = np.random.default_rng(0)
x, w = (jnp.asarray(rng.integers(-3, 4, s).astype("f")) for s in ((4, 2, 6, 6), (4, 2, 3, 3)))
theirs = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME")
mine = lambda x, w: cuconv.jax.conv(x, w, padding="same")
on_second = mine(*(jax.device_put(each, devices[1]) for each in (x, w)))
assert on_second.device == devices[1] and (on_second == theirs(x, w)).all()
mesh = Mesh(np.array(devices), ("d",))
there = jax.device_put(x, NamedSharding(mesh, P("d")))
assert (jax.jit(mine)(there, w) == theirs(x, w)).all()
assert (mine(there, jax.device_put(w, NamedSharding(mesh, P()))) == theirs(x, w)).all()
for check in (True, False):
    def loss(conv, x, w):
        mapped = jax.shard_map(conv, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"), check_vma=check)
        return (mapped(x, w) ** 2).sum()
    def inner(conv, x, w):  # a gradient taken within, in what all devices have
        gradient = lambda x, w: jax.grad(lambda w: (conv(x, w) ** 2).sum())(w)
        added = gradient if check else lambda x, w: jax.lax.psum(gradient(x, w), "d")
        return jax.shard_map(added, mesh=mesh, in_specs=(P("d"), P()), out_specs=P(), check_vma=check)(x, w)
    outer = lambda conv: jax.grad(lambda *a: loss(conv, *a), (0, 1))
    for run in (outer, lambda conv: lambda *a: inner(conv, *a)):
        one, other = (jax.tree.leaves(jax.jit(run(conv))(x, w)) for conv in (mine, theirs))
        for a, b in zip(one, other, strict=True):
            assert (a == b).all(), (check, a - b)
gradient = lambda conv: jax.jit(jax.value_and_grad(lambda x, w: (conv(x, w) ** 2).sum(), (0, 1)))
expected = jax.tree.leaves(gradient(theirs)(x, w))
for kind in AxisType.Auto, AxisType.Explicit:
    mesh = jax.make_mesh((2,), ("d",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        for spread in ((x, P("d")), (w, P())), ((x, P()), (w, P("d"))):
            xs, ws = (jax.device_put(each, NamedSharding(mesh, spec)) for each, spec in spread)
            for a, b in zip(jax.tree.leaves(gradient(mine)(xs, ws)), expected, strict=True):
                assert (np.asarray(a) == np.asarray(b)).all(), (kind, a, b)
            assert (np.asarray(mine(xs, ws)) == np.asarray(theirs(x, w))).all()
""",
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )


def run_python(program, **environment):
    """A program run by a new interpreter, whose standard error it returns."""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_from_several_threads():
    x, w = whole_numbers(1, (4, 8, 32, 32), (8, 8, 3, 3))
    step = jax.jit(lambda x, w: sum(ours.conv(x * i, w).sum() for i in range(4)))
    expected, results = step(x, w), []
    threads = [threading.Thread(target=lambda: results.append(step(x, w))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [expected] * 6


# -- errors, all when a call is traced --------------------------------------------------------------------


@pytest.mark.parametrize("name", ours.__all__)
def test_signatures_are_the_cores(name):
    assert inspect.signature(getattr(ours, name)) == inspect.signature(getattr(cuconv, name))
    assert getattr(ours, name).__doc__.startswith(f"`cuconv.{name}` on JAX's arrays.")


def wrong(name, *arrays, **options):
    """An error of a call that is traced only: nothing is run."""
    arrays = [jax.ShapeDtypeStruct(a, "float32") if isinstance(a, tuple) else a for a in arrays]
    traced = [a for a in arrays if isinstance(a, jax.ShapeDtypeStruct)]

    def function(*given):
        left = iter(given)
        full = [next(left) if isinstance(a, jax.ShapeDtypeStruct) else a for a in arrays]
        return getattr(ours, name)(*full, **options)

    with mock.patch.object(jax, "pure_callback", side_effect=AssertionError):
        jax.eval_shape(function, *traced)


X, W = (1, 2, 6, 6), (4, 2, 3, 3)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "^x has 3 channels", ("conv", (1, 3, 6, 6), W)),
        (ValueError, "^bias must have shape", ("conv", X, W, (3,))),
        (ValueError, "^stride must be at least 1, got 0", ("conv", X, W, None, 0)),
        (ValueError, "^dy must have shape", ("conv_input_grad", (1, 4, 5, 5), W, list(X))),
        (ValueError, "^dy must have shape", ("conv_weight_grad", X, (1, 4, 5, 5), list(W))),
        (ValueError, "^dy must have shape", ("conv_backward", (1, 4, 5, 5), X, W)),
        (ValueError, "^output_padding must be below", ("conv_transpose", X, (2, 4, 3, 3), None, 1, 0, 1)),
        (ValueError, "^dy must have 1 to 3 spatial axes", ("conv_bias_grad", (2,))),
        (TypeError, "^x has dtype object", ("conv", np.empty(X, object), W)),
        (TypeError, "^w must have the dtype of x, float32, got float64", ("conv", X, np.ones(W))),
        (TypeError, "^w must be a jax.Array or a NumPy array, got builtins.list; ", ("conv", X, [1.0])),
        (TypeError, "^bias must be a jax.Array or a NumPy array, got builtins.int", ("conv", X, W, 2)),
        (TypeError, "^x must be a jax.Array or a NumPy array, got builtins.NoneType", ("conv", None, W)),
    ],
    ids=str,
)  # fmt: skip
def test_errors_of_shapes_and_kinds(error, message, call):
    with pytest.raises(error, match=message):
        wrong(*call)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, r"^conv\(\) has no argument 'strides'; did you mean 'stride'\?", dict(strides=2)),
        (TypeError, "^stride must be an int, got .*Tracer", dict(stride="traced")),
        (TypeError, "^padding must be .*Tracer", dict(padding="traced")),
        (TypeError, "^groups must be an int, got .*Tracer", dict(groups="traced")),
        (TypeError, "^flip must be True or False, got .*Tracer", dict(flip="traced")),
        (
            ValueError,
            "^padding_mode must be one of .*; NumPy's and SciPy's 'wrap'",
            dict(padding_mode="wrap"),
        ),
        (ValueError, "^layout must be one of", dict(layout="NHWC")),
        (ValueError, "^activation must be one of", dict(activation="swish")),
        (ValueError, "^algorithm must be one of .*; did you mean 'gemm'", dict(algorithm="gem")),
        (TypeError, "^algorithm must be a string", dict(algorithm=1)),
        (TypeError, "^precision='tf32' is for float32", dict(precision="tf32", dtype="float64")),
        (TypeError, "^x has dtype int8", dict(dtype="int8")),
        (TypeError, "^out_dtype must be 'int32' or 'int64'", dict(out_dtype="float32")),
        (TypeError, "^out must be None: JAX's arrays cannot be written to", dict(out="x")),
        (ValueError, "^accumulate=True adds to out, but out is None", dict(accumulate=True)),
    ],
    ids=str,
)
def test_errors_of_options(error, message, options):
    dtype = options.pop("dtype", "float32")
    (option, value), *_ = options.items() if options else [(None, None)]

    def function(x, w, n):
        given = {"traced": n, "x": x}.get(value, value) if isinstance(value, str) else value
        return ours.conv(x, w, **({option: given} if option else {}))

    with pytest.raises(error, match=message):
        jax.eval_shape(function, jnp.ones(X, dtype), jnp.ones(W, dtype), 2)


def test_numpy_arrays_are_taken_as_by_jax_but_not_rounded():
    x, w = (np.asarray(each) for each in whole_numbers(1, X, W))
    y = ours.conv(x, jnp.asarray(w))
    assert isinstance(y, jax.Array)
    np.testing.assert_array_equal(y, cuconv.conv(x, w))
    with (
        jax.enable_x64(False),
        pytest.raises(TypeError, match=r"^x has dtype float64, .* only; x.astype\('float32'\) rounds it"),
    ):
        ours.conv(x, w)


def test_what_is_no_array_of_numbers():
    key = jax.random.key(0)
    with pytest.raises(TypeError, match=r"^w must be an array of numbers, got dtype key<"):
        ours.conv(jnp.ones(X), key)
    with pytest.raises(TypeError, match=r"missing a required argument: 'w'|missing 1 required"):
        ours.conv(jnp.ones(X))


def test_names_of_algorithms_for_a_gpu_are_known_but_not_on_the_cpu():
    x, w = jnp.ones(X), jnp.ones(W)
    call = functools.partial(ours.conv, algorithm="simt")
    assert jax.eval_shape(call, x, w).shape == (1, 4, 4, 4)
    with pytest.raises(
        ValueError, match=r"^algorithm='simt' is for arrays on a GPU, and these are arrays on the CPU"
    ):
        jax.jit(call)(x, w)


def test_float64_in_a_context_is_not_taken_for_float32():
    """JAX's threads do not know of the context: a callback from one of them is given rounded numbers."""
    stderr = run_python(
        """
import jax, cuconv.jax, jax.numpy as jnp
with jax.enable_x64(True):
    x, w = jnp.ones((2, 8, 64, 64)), jnp.ones((8, 8, 3, 3))
    assert cuconv.jax.conv(x, w).dtype == "float64"  # called in this thread
    step = jax.jit(lambda x, w: [cuconv.jax.conv(x * i, w) for i in range(64)])
    try:
        assert {each.dtype.name for each in step(x, w)} == {"float64"}
    except Exception as error:
        assert "jax.config.update('jax_enable_x64', True)" in str(error), error
"""
    )
    assert "Error" not in stderr or "jax_enable_x64" in stderr


def test_the_core_says_where_traced_arrays_go():
    with pytest.raises(TypeError, match=r"x must be .*; what JAX has not computed yet is for cuconv\.jax"):
        jax.jit(cuconv.conv)(jnp.ones((1, 1, 5)), jnp.ones((1, 1, 3)))


def test_without_jax_the_error_says_what_to_install():
    program = (
        "import sys; sys.modules['jax'] = None\n"
        "try: import cuconv.jax\n"
        "except ImportError as error: text = str(error)\n"
        "assert 'cuconv.jax needs JAX' in text and 'pip install jax' in text"
    )
    run_python(program)
    run_python("import sys, cuconv; assert 'jax' not in sys.modules")


# -- a training -------------------------------------------------------------------------------------------


def losses(conv, dtype):
    """Those of 30 steps of a network that learns which of three patterns was blurred."""
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((3, 1, 12, 12))
    labels = rng.integers(0, 3, 96)
    images = jnp.asarray(patterns[labels] + 0.5 * rng.standard_normal((96, 1, 12, 12)), dtype)
    weights = {
        name: jnp.asarray(rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), dtype)
        for name, shape in (("a", (6, 1, 3, 3)), ("b", (6, 3, 3, 3)), ("c", (3, 6)))
    }

    def loss(weights, images, labels):
        y = jnp.tanh(conv(images, weights["a"], stride=2, padding="same"))
        y = jnp.tanh(conv(y, weights["b"], padding=1, groups=2)).mean((2, 3))
        scores = jax.nn.log_softmax(10 * y @ weights["c"].T)
        return -scores[jnp.arange(len(labels)), labels].mean()

    @jax.jit
    def step(weights, images, labels):
        value, gradient = jax.value_and_grad(loss)(weights, images, labels)
        return jax.tree.map(lambda w, g: w - 0.3 * g, weights, gradient), value

    curve = []
    for i in range(30):
        batch = slice(i % 3 * 32, i % 3 * 32 + 32)
        weights, value = step(weights, images[batch], labels[batch])
        curve.append(float(value))
    return np.array(curve)


@pytest.mark.parametrize("dtype", REAL)
def test_a_network_trains_as_it_does_with_lax(dtype):
    """One bound for both dtypes, in units of their rounding, which 30 steps may make larger by so much."""
    mine, theirs = losses(ours.conv, dtype), losses(laxs, dtype)
    assert theirs[-3:].mean() < 0.5 * theirs[:3].mean()
    np.testing.assert_allclose(mine, theirs, rtol=2**12 * np.finfo(dtype).eps)


# -- the way to a GPU: the handler on the CPU's memory, its stream over a stand-in, what is lowered ----------


@contextmanager
def in_memory(frame):
    """In the place of CuPy's arrays on a GPU, NumPy's on the addresses that XLA gives."""

    def view(address, shape, dtype, size):
        memory = (ctypes.c_char * size).from_address(address) if size else bytes(0)
        return np.ndarray(shape, dtype, memory)

    yield view


HANDLERS = {backend: lowering.handler(in_memory, backend) for backend in ("cpu", "cuda")}


@pytest.fixture
def by_handler():
    """The primitive run by the handler, computing on one of the backends; XLA's functions are real."""

    def begin(backend):
        def lowered(ctx, *operands, request, algorithm):
            text = lowering.written(request, algorithm)
            return jax.ffi.ffi_lowering(f"cuconv on {backend}")(ctx, *operands, request=text)

        change(lowered)

    def change(rule):
        mlir.register_lowering(operators._primitive, rule, platform="cpu")
        operators._compiled.cache_clear()
        jax.clear_caches()

    for backend, handler in HANDLERS.items():
        jax.ffi.register_ffi_target(f"cuconv on {backend}", jax.ffi.pycapsule(handler), platform="cpu")
    yield begin
    change(lowering.on_cpu)


def test_generated_calls_by_the_handler(by_handler):
    """Every dtype and kind of operand, by addresses: without callbacks."""
    by_handler("cpu")
    with mock.patch.object(jax, "pure_callback", side_effect=AssertionError):
        for seed in range(2000, 2012):
            check(dataclasses.replace(seeded_case(seed), accumulate=False), run=through_jax)
        x, w, bias = whole_numbers(3, (2, 4, 7, 6), (4, 2, 3, 2), (8,))
        same(ours_and_core("conv_transpose", x, w, bias, stride=2, padding=1, groups=4))


def test_the_kernels_are_run_by_the_handler(by_handler):
    """Emulated, on XLA's own memory, with the derivatives and mapped: all but CuPy and the device."""
    by_handler("cuda")
    x, w, bias = whole_numbers(1, (2, 2, 5, 4), (2, 2, 2, 3), (2,), dtype="float32")
    options = dict(stride=2, padding=1)

    def results(conv):
        def loss(x, w, bias):
            return (conv(x, w, **options) + bias[:, None, None]).sum()

        mapped = jax.vmap(functools.partial(conv, **options), (0, None))(jnp.stack([x, x + 1]), w)
        return conv(x, w, **options), jax.grad(loss, (0, 1, 2))(x, w, bias), mapped

    expected = results(laxs)
    with emulated():
        got = jax.block_until_ready(results(ours.conv))
    for one, other in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_handler_in_loops_and_threads(by_handler):
    by_handler("cpu")
    x, w = whole_numbers(1, (4, 8, 32, 32), (8, 8, 3, 3))

    @jax.jit
    def step(x, w):
        def layer(x, i):
            return jnp.clip(ours.conv(x, w, padding=1), -i, i), None

        return lax.scan(layer, x, jnp.arange(1.0, 5))[0] + sum(
            ours.conv(x * i, w, padding=1) for i in range(4)
        )

    y = np.asarray(x)
    for i in range(1, 5):
        y = np.clip(cuconv.conv(y, np.asarray(w), padding=1), -i, i)
    expected = y + 6 * cuconv.conv(np.asarray(x), np.asarray(w), padding=1)
    results = []
    threads = [threading.Thread(target=lambda: results.append(np.asarray(step(x, w)))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 6
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_what_the_handler_raises_is_raised_by_jax(by_handler):
    by_handler("cpu")
    x, w = whole_numbers(1, X, W)
    for error in (MemoryError("no room: \N{SNOWMAN}"), KeyboardInterrupt()):
        with (
            mock.patch.object(lowering, "_program", side_effect=error),
            pytest.raises(jax.errors.JaxRuntimeError, match=re.escape(f"{type(error).__name__}: {error}")),
        ):
            jax.block_until_ready(ours.conv(x, w))
    assert ours.conv(x, w).shape == (1, 4, 4, 4)


def test_what_is_compiled_says_itself_what_it_does():
    """By value, since it may be kept and run by another process."""
    x, w = whole_numbers(1, X, W)
    for seed in range(50):
        case = seeded_case(seed)
        request = cuconv.problem.Request(
            "fprop", case.problem, case.dtype, case.layout, flip=case.flip, bias=case.bias,
            activation=case.activation, inputs=case.inputs, precision=case.precision,
        )  # fmt: skip
        with mock.patch.object(lowering, "_function") as function:
            lowering._program.cache_clear()
            _, kinds = lowering._program(lowering.written(request, "auto").encode(), "cpu")
        function.assert_called_once_with(request, "auto", "cpu")
        assert [kind[0] for kind in kinds[:2]] == [request.shape("x"), request.shape("w")]
        assert kinds[-1][:2] == (request.shape("y"), np.dtype(getattr(ml_dtypes, case.dtype, case.dtype)))
    with gpu_of(jit, "sm_90"):
        traced = jax.jit(functools.partial(ours.conv, algorithm="simt")).trace(x, w)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert "@cuconv(" in text
        assert r"\22op\22: \22fprop\22" in text
        assert "callback" not in text
        with pytest.raises(ValueError, match=r"^algorithm='gemm' is for arrays on the CPU"):
            jax.jit(functools.partial(ours.conv, algorithm="gemm")).trace(x, w).lower(
                lowering_platforms=("cuda",)
            )


def test_tf32_is_permitted_on_a_gpu_where_cupys_products_have_it():
    request = cuconv.problem.Request("fprop", cuconv.ConvProblem.parse("n1c1w5 k1s3"), "float32")
    x, w = np.ones((1, 1, 5), np.float32), np.ones((1, 1, 3), np.float32)
    lowering._function.cache_clear()
    with (
        mock.patch.object(sys.modules["cuconv.plan"], "tf32_permitted", return_value=True),
        mock.patch.object(lowering.prepared, "run", lambda describe, operands, out: describe(*operands)),
    ):
        found = {
            backend: lowering._function(request, "auto", backend)(x, w).call.request.precision
            for backend in ("cpu", "cuda")
        }
    lowering._function.cache_clear()
    assert found == dict(cpu=None, cuda="tf32")


@contextmanager
def gpu_of(jit, arch, cupy=None):
    with mock.patch.multiple(jit, require_cupy=lambda: cupy, current_arch=lambda: arch):
        yield


def test_a_gpu_needs_cupy():
    if jit.usable_cupy() is not None:
        pytest.skip("there is a GPU that CuPy can use")
    traced = jax.jit(ours.conv).trace(*whole_numbers(1, X, W))
    with pytest.raises((ImportError, RuntimeError), match=r"CuPy|NVIDIA|GPU"):
        traced.lower(lowering_platforms=("cuda",))
    with mock.patch.dict(sys.modules, cupy=None):
        jit.require_cupy.cache_clear()
        with pytest.raises(ImportError, match=r"arrays on a GPU need CuPy.*pip install 'cuconv\[cuda12\]'"):
            traced.lower(lowering_platforms=("cuda",))
    jit.require_cupy.cache_clear()
    with pytest.raises(NotImplementedError, match=r"cuconv.*tpu"):
        traced.lower(lowering_platforms=("tpu",))


STRUCTS = {
    "Api_Version": (lowering._Version, "struct_size extension_start major_version minor_version"),
    "Metadata": (lowering._Metadata, "struct_size api_version traits"),
    "Buffer": (lowering._Buffer, "struct_size extension_start dtype data rank dims"),
    "Args": (lowering._Buffers, "struct_size extension_start size types args"),
    "Rets": (lowering._Buffers, "struct_size extension_start size types rets"),
    "ByteSpan": (lowering._Bytes, "ptr len"),
    "Attrs": (lowering._Attributes, "struct_size extension_start size types names attrs"),
    "Error_Create_Args": (lowering._Error, "struct_size extension_start message errc"),
    "Stream_Get_Args": (lowering._Stream, "struct_size extension_start ctx stream"),
    "DeviceMemory_Allocate_Args": (
        lowering._Memory,
        "struct_size extension_start ctx size alignment data",
    ),
    "DeviceMemory_Free_Args": (lowering._Release, "struct_size extension_start ctx size data"),
    "Api": (
        lowering._Api,
        "struct_size extension_start api_version internal_api XLA_FFI_Error_Create XLA_FFI_Error_GetMessage "
        "XLA_FFI_Error_Destroy XLA_FFI_Handler_Register XLA_FFI_Stream_Get XLA_FFI_Type_Register "
        "XLA_FFI_ExecutionContext_Get XLA_FFI_State_Set XLA_FFI_State_Get XLA_FFI_DeviceMemory_Allocate "
        "XLA_FFI_DeviceMemory_Free",
    ),
    "CallFrame": (
        lowering._Frame,
        "struct_size extension_start api ctx stage args rets attrs",
    ),
    "Metadata_Extension": (
        lowering._Extension,
        "extension_base.struct_size extension_base.type extension_base.next metadata",
    ),
}
"""Those of XLA's header, in whose names `XLA_FFI_` comes first, with the fields in our order."""


def test_structs_are_those_of_the_header(tmp_path):
    """Each field's offset and size, by a compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    parts = [
        f"offsetof({name}, {field}), sizeof((({name}*)0)->{field})"
        for struct, (_, fields) in STRUCTS.items()
        for name in [f"XLA_FFI_{struct}"]
        for field in fields.split()
    ]
    source, program = tmp_path / "offsets.cpp", tmp_path / "offsets"
    source.write_text(
        '#include "xla/ffi/api/c_api.h"\n#include <cstdio>\n'
        f"int main() {{ size_t all[] = {{{', '.join(parts)}}}; "
        'for (size_t each : all) printf("%zu\\n", each); '
        'printf("%d\\n%d\\n", XLA_FFI_Extension_Metadata, XLA_FFI_Error_Code_INTERNAL); }'
    )
    include = f"-I{jax.ffi.include_dir()}"
    subprocess.run([compiler, "-Wno-invalid-offsetof", include, source, "-o", program], check=True)
    *numbers, metadata, internal = map(int, subprocess.check_output([program], text=True).split())
    ours_ = [
        getattr(getattr(struct, name), what)
        for struct, fields in STRUCTS.values()
        for (name, _), _ in zip(struct._fields_, fields.split(), strict=True)
        for what in ("offset", "size")
    ]
    assert ours_ == numbers
    assert (metadata, internal) == (lowering._METADATA, lowering._INTERNAL)


class Xla:
    """XLA's functions that the handler calls: a stream, memory, errors; what was asked is noted."""

    def __init__(self, refuse=()):
        self.asked, self.refuse, self.memory = [], refuse, iter((0x5000, 0x6000))
        api = lowering._Api()
        fields = dict(api._fields_)
        for name in ("create_error", "get_stream", "allocate", "free"):
            setattr(api, name, fields[name](functools.partial(self.call, name)))
        self.frame = lowering._Frame(api=ctypes.pointer(api), context=0xC0, stage=3)
        self.kept = api

    def call(self, name, pointer):
        given = pointer.contents
        assert given.size == ctypes.sizeof(given)
        if name == "create_error":
            self.asked.append((name, given.message.decode(), given.code))
            return 0xE0
        assert given.context == 0xC0
        if name in self.refuse:
            return 0xBAD
        if name == "get_stream":
            given.stream = 0x77
            self.asked.append(name)
        elif name == "allocate":
            assert given.alignment in (1, 2, 4, 8, 16)
            given.data = next(self.memory)
            self.asked.append((name, given.bytes, given.data))
        else:
            self.asked.append((name, given.bytes, given.data))
        return None


@pytest.fixture
def cupy():
    """As much of CuPy as the handler uses, device 1 being the current one."""
    noted = []
    cuda = types.SimpleNamespace(
        UnownedMemory=lambda *arguments: arguments,
        MemoryPointer=lambda memory, offset: (*memory, offset),
        Stream=types.SimpleNamespace(
            from_external=lambda stream: Entered(noted, ("stream", *stream.__cuda_stream__()))
        ),
        using_allocator=lambda allocator: Entered(noted, allocator),
        runtime=types.SimpleNamespace(getDevice=lambda: 1),
    )
    lowering._stream.cache_clear()
    stand_in = types.SimpleNamespace(cuda=cuda, ndarray=lambda *arguments: arguments, noted=noted)
    with gpu_of(jit, "sm_90", stand_in):
        yield stand_in
    lowering._stream.cache_clear()


def test_the_handler_is_on_xlas_stream_and_in_xlas_memory(cupy):
    xla = Xla()
    with lowering._on_gpu(xla.frame) as view:
        stream, allocator = cupy.noted
        assert stream == ("stream", 0, 0x77)
        assert view(0x1000, (2, 3), np.float32, 24) == ((2, 3), np.float32, (0x1000, 24, None, 1, 0))
        assert view(None, (0, 3), np.float32, 0) == ((0, 3), np.float32, (0, 0, None, 1, 0))
        assert [allocator(size)[:4] for size in (512, 40)] == [(0x5000, 512, None, 1), (0x6000, 40, None, 1)]
        assert not [
            each for each in xla.asked if each[0] == "free"
        ]  # as long as there is something to launch
    assert cupy.noted == []
    assert xla.asked[-2:] == [("free", 512, 0x5000), ("free", 40, 0x6000)]


@pytest.mark.parametrize("refuse", ["get_stream", "allocate"])
def test_an_error_of_xlas_goes_back_to_it(cupy, refuse):
    xla = Xla({refuse})
    request = cuconv.problem.Request("fprop", cuconv.ConvProblem.parse("n1c1w5 k1s3"), "float32")
    text = lowering.written(request, "auto").encode()

    def function(*operands, out):
        cupy.noted[-1](64)  # CuPy's allocator

    frame = xla.frame
    buffers = [lowering._Buffer(data=0x1000 * i) for i in (1, 2, 3)]
    pointers = (ctypes.POINTER(lowering._Buffer) * 3)(*map(ctypes.pointer, buffers))
    out = (ctypes.POINTER(lowering._Buffer) * 1)(pointers[2])
    memory = ctypes.create_string_buffer(text)
    span = lowering._Bytes(data=ctypes.addressof(memory), count=len(text))
    spans = (ctypes.POINTER(lowering._Bytes) * 1)(ctypes.pointer(span))
    frame.arguments.count, frame.arguments.entries = 2, pointers
    frame.results.count, frame.results.entries = 1, out
    frame.attributes.count, frame.attributes.entries = 1, spans
    with mock.patch.object(lowering, "_function", return_value=function):
        lowering._program.cache_clear()
        assert lowering._handler(ctypes.pointer(frame)) == 0xBAD
        xla.refuse = ()
        assert lowering._handler(ctypes.pointer(frame)) is None
    lowering._program.cache_clear()
    assert cupy.noted == []
    xla.memory = iter(())  # which raises in the callback itself: an error that is made
    with mock.patch.object(lowering, "_function", side_effect=ValueError("no such thing")):
        assert lowering._handler(ctypes.pointer(frame)) == 0xE0
    lowering._program.cache_clear()
    assert xla.asked[-1] == ("create_error", "ValueError: no such thing", 13)


def test_what_the_handler_says_of_itself(cupy):
    """The version of XLA that asks, and that its launches are not to be captured in a graph."""
    xla = Xla()
    xla.kept.version.major, xla.kept.version.minor = 0, 9
    metadata = lowering._Metadata(traits=1)
    extension = lowering._Extension(kind=lowering._METADATA, metadata=ctypes.pointer(metadata))
    xla.frame.extension = ctypes.pointer(extension)
    assert lowering._handler(ctypes.pointer(xla.frame)) is None
    assert (metadata.version.major, metadata.version.minor, metadata.traits) == (0, 9, 0)
    xla.frame.api = None  # as in version 0.1
    assert lowering._handler(ctypes.pointer(xla.frame)) is None
    assert (metadata.version.major, metadata.version.minor) == (0, 1)
    assert xla.asked == cupy.noted == []


@pytest.mark.gpu
@pytest.mark.skipif(
    jit.usable_cupy() is None or not any(device.platform == "gpu" for device in jax.devices()),
    reason="there is no GPU that CuPy and JAX can use",
)
def test_on_a_gpu():
    """Values, derivatives and mapped calls, computed where the arrays are."""
    x, w, bias = whole_numbers(1, (2, 4, 9, 8), (6, 2, 3, 3), (6,), dtype="float32")
    function = jax.jit(functools.partial(ours.conv, stride=2, padding=1, groups=2, activation="relu"))
    y = function(x, w, bias)
    assert y.device.platform == "gpu"
    options = dict(stride=2, padding=1, groups=2)
    np.testing.assert_array_equal(
        y, cuconv.conv(*map(np.asarray, (x, w, bias)), activation="relu", **options)
    )
    for one, other in zip(
        *(jax.grad(lambda *a, f=f: (f(*a, **options) ** 2).sum(), (0, 1))(x, w) for f in (ours.conv, laxs)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    mapped = jax.vmap(function, (0, None, None))(jnp.stack([x, x + 1]), w, bias)
    np.testing.assert_array_equal(mapped[1], function(x + 1, w, bias))
