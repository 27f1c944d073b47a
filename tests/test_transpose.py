"""conv_transpose: the adjoint of conv as a forward map, with bias, activation and output padding."""

import itertools

import numpy as np
import pytest

import cuconv
from cuconv.cpu import TABLE
from cuconv.problem import PADDING_MODES

from .cases import workspace
from .emulator import emulated


def scattered(x, w, stride, padding, output_padding, dilation, groups):
    """Transposed convolution by its definition: every input cell adds a scaled filter to the output."""
    n, k = x.shape[:2]
    c, taps = w.shape[1], w.shape[2:]
    rank = len(taps)
    whole = [(x.shape[2 + a] - 1) * stride[a] + dilation[a] * (taps[a] - 1) + 1 for a in range(rank)]
    room = [whole[a] + output_padding[a] for a in range(rank)]
    y = np.zeros((n, c * groups, *room), x.dtype)
    for cell in np.ndindex(*x.shape[2:]):
        where = tuple(
            slice(cell[a] * stride[a], cell[a] * stride[a] + dilation[a] * (taps[a] - 1) + 1, dilation[a])
            for a in range(rank)
        )
        for g in range(groups):
            inputs = slice(g * (k // groups), (g + 1) * (k // groups))
            part = np.tensordot(x[(slice(None), inputs, *cell)], w[inputs], axes=1)
            y[(slice(None), slice(g * c, (g + 1) * c), *where)] += part
    return y[(..., *(slice(padding[a], room[a] - padding[a]) for a in range(rank)))]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("stride", "padding", "output_padding", "dilation"),
    [
        ((1, 1), (0, 0), (0, 0), (1, 1)),
        ((2, 3), (1, 0), (1, 2), (1, 1)),
        ((1, 2), (2, 1), (2, 0), (3, 1)),
        # Output padding at and above the stride, which the dilation allows.
        ((1, 2), (0, 1), (1, 2), (2, 3)),
        ((1, 1), (1, 0), (3, 2), (4, 3)),
    ],
)
def test_against_the_definition(stride, padding, output_padding, dilation, groups):
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 9, (2, 4, 3, 5)), rng.integers(-9, 9, (4, 3, 3, 2))
    bias = rng.integers(-9, 9, 3 * groups)
    expected = scattered(x, w, stride, padding, output_padding, dilation, groups) + bias[:, None, None]
    got = cuconv.conv_transpose(x, w, bias, stride, padding, output_padding, groups, dilation)
    np.testing.assert_array_equal(got, expected)
    relu = cuconv.conv_transpose(
        x, w, bias, stride, padding, output_padding, groups, dilation, activation="relu"
    )
    np.testing.assert_array_equal(relu, np.maximum(expected, 0))
    x_last, w_last = np.moveaxis(x, 1, -1), np.moveaxis(w, 1, -1)
    last = cuconv.conv_transpose(
        x_last, w_last, bias, stride, padding, output_padding, groups, dilation, layout="channels_last"
    )
    np.testing.assert_array_equal(np.moveaxis(last, -1, 1), expected)
    alone = cuconv.conv_transpose(x[1], w, bias, stride, padding, output_padding, groups, dilation)
    np.testing.assert_array_equal(alone, expected[1])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_ranked_names(rank):
    x, w = np.ones((1, 2) + (4,) * rank), np.ones((2, 3) + (2,) * rank)
    function = getattr(cuconv, f"conv_transpose{rank}d")
    np.testing.assert_array_equal(function(x, w, stride=2), cuconv.conv_transpose(x, w, stride=2))
    with pytest.raises(ValueError, match="w must have"):
        function(x[..., None], w[..., None])


SAME = [
    (extent, taps, stride, dilation, extra)
    for extent, taps, stride, dilation in itertools.product((1, 2, 5), (1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3))
    for extra in range(max(stride, dilation))
]


def sum_of_products(x, w, stride, dilation, extra, name):
    """conv_transpose(padding=name) of one channel: every product goes to the cell its formula names."""
    y = np.zeros(stride * len(x) + extra, x.dtype)
    total = max(dilation * (len(w) - 1) + 1 - stride, 0)  # what "same" pads an input of stride len(x) cells
    before = total // 2 if name == "same" else total - total // 2
    for p, r in np.ndindex(len(x), len(w)):
        cell = p * stride - before + r * dilation
        if 0 <= cell < len(y):
            y[cell] += x[p] * w[r]
    return y


@pytest.mark.parametrize("name", ["same", "same_lower"])
def test_same_makes_the_result_stride_times_as_large(name):
    """Also where a stride is longer than the filter's reach: the cells left over are at the end."""
    rng = np.random.default_rng(0)
    for extent, taps, stride, dilation, extra in SAME:
        x, w, bias = rng.integers(-9, 9, extent), rng.integers(-9, 9, taps), rng.integers(-9, 9, 1)
        expected = sum_of_products(x, w, stride, dilation, extra, name)
        x, w = x[None, None], w[None, None]
        options = dict(stride=stride, dilation=dilation, padding=name)
        y = cuconv.conv_transpose(x, w, bias, output_padding=extra, activation="relu", **options)
        np.testing.assert_array_equal(y[0, 0], np.maximum(expected + bias, 0))
        if extra == 0:
            adjoint = cuconv.conv_input_grad(x, w, (1, 1, stride * extent), **options)
            np.testing.assert_array_equal(adjoint[0, 0], expected)


@pytest.mark.parametrize("name", ["same", "same_lower"])
@pytest.mark.parametrize("algorithm", ["direct", "simt"])
def test_same_on_a_gpu(name, algorithm):
    rng = np.random.default_rng(0)
    x, w, bias = rng.integers(-9, 9, (1, 2, 3, 4)), rng.integers(-9, 9, (2, 3, 1, 2)), rng.integers(-9, 9, 3)
    for stride, dilation, extra in (((2, 3), (1, 1), (0, 0)), ((3, 5), (2, 3), (2, 4)), ((1, 4), (1, 5), 0)):
        arguments = (x, w, bias, stride, name, extra, 1, dilation)
        with emulated():
            y = cuconv.conv_transpose(*arguments, activation="relu", algorithm=algorithm)
        assert y.shape == (1, 3, *(np.multiply(stride, x.shape[2:]) + extra))
        np.testing.assert_array_equal(y, cuconv.conv_transpose(*arguments, activation="relu"))


def test_complex_filters_are_not_conjugated():
    x, w = np.full((1, 1, 1), 1j), np.full((1, 1, 1), 1j)
    assert cuconv.conv_transpose(x, w)[0, 0, 0] == -1
    assert cuconv.conv_input_grad(x, w, (1, 1, 1))[0, 0, 0] == 1


def test_flip_and_accumulate():
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 9, (2, 4, 5)), rng.integers(-9, 9, (4, 3, 3))
    out = rng.integers(-9, 9, (2, 3, 7))
    expected = out + cuconv.conv_transpose(x, w[..., ::-1])
    assert cuconv.conv_transpose(x, w, flip=True, out=out, accumulate=True) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (dict(output_padding=2, stride=2), "output_padding must be below the stride or the dilation, here 2"),
        (dict(output_padding=-1), "output_padding must be at least 0"),
        (dict(padding=4), "axis w gives no output"),
        (dict(padding=[(3, 4)]), "axis w gives no output"),
        (dict(groups=3), "groups=3 does not divide K=4"),
        (dict(bias=np.ones(4)), r"bias must have shape \(3,\)"),
    ],
)
def test_refuses(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        cuconv.conv_transpose(np.ones((2, 4, 5)), np.ones((4, 3, 3)), **arguments)


def test_refuses_channels_that_do_not_match():
    with pytest.raises(ValueError, match=r"x has 5 channels .* w \(4, 3, 3\) expects 4"):
        cuconv.conv_transpose(np.ones((2, 5, 5)), np.ones((4, 3, 3)))
    with pytest.raises(ValueError, match="x must not be empty along its spatial axes"):
        cuconv.conv_transpose(np.ones((2, 4, 0)), np.ones((4, 3, 3)))


# -- gradients --------------------------------------------------------------------------------------

BACKWARD = [
    # stride, padding, output padding, groups, dilation
    ((1, 1), (0, 0), (0, 0), 1, (1, 1)),
    ((2, 3), ((1, 0), (0, 2)), (1, 2), 2, (1, 1)),
    ((1, 2), (2, 1), (2, 0), 1, (3, 1)),
    ((2, 1), "same", (0, 0), 2, (1, 2)),
    ((2, 2), (-1, 1), (1, 0), 4, (1, 1)),
]


def drawn(rng, shape, dtype):
    """Small integers, whose sums are exact, in that dtype."""
    values = rng.integers(-5, 6, shape).astype(np.float64)
    if "complex" in dtype:
        return (values + 1j * rng.integers(-5, 6, shape)).astype(dtype)
    return values.astype(dtype)


def gradients_by_definition(dy, x, w, *arguments, **options):
    """dx and dw from the map's value at every basis vector: it is linear in x and in w."""

    def of(operand, forward):
        gradient = np.zeros_like(operand)
        for index in np.ndindex(*operand.shape):
            basis = np.zeros_like(operand)
            basis[index] = 1
            gradient[index] = np.vdot(forward(basis), dy)
        return gradient

    return (
        of(x, lambda basis: cuconv.conv_transpose(basis, w, None, *arguments, **options)),
        of(w, lambda basis: cuconv.conv_transpose(x, basis, None, *arguments, **options)),
    )


@pytest.mark.parametrize("dtype", ["float64", "complex128", "float32"])
@pytest.mark.parametrize("case", BACKWARD, ids=str)
def test_backward_is_the_adjoint(case, dtype):
    """Element by element, in both layouts, with the filter turned or not, with and without a batch axis."""
    rng = np.random.default_rng(0)
    x, w = drawn(rng, (2, 4, 3, 4), dtype), drawn(rng, (4, 2, 3, 2), dtype)
    dy = drawn(rng, cuconv.conv_transpose(x, w, None, *case).shape, dtype)
    for flip in (False, True):
        dx, dw, db = cuconv.conv_transpose_backward(dy, x, w, *case, flip=flip)
        expected_dx, expected_dw = gradients_by_definition(dy, x, w, *case, flip=flip)
        np.testing.assert_array_equal(dx, expected_dx)
        np.testing.assert_array_equal(dw, expected_dw)
        np.testing.assert_array_equal(db, dy.sum(axis=(0, 2, 3)))
        last = [np.moveaxis(array, 1, -1) for array in (dy, x, w)]
        dx_last, dw_last, db_last = cuconv.conv_transpose_backward(
            *last, *case, flip=flip, layout="channels_last"
        )
        np.testing.assert_array_equal(np.moveaxis(dx_last, -1, 1), dx)
        np.testing.assert_array_equal(np.moveaxis(dw_last, -1, 1), dw)
        np.testing.assert_array_equal(db_last, db)
    alone = cuconv.conv_transpose_backward(dy[1], x[1], w, *case)
    for got, expected in zip(alone, cuconv.conv_transpose_backward(dy[1:], x[1:], w, *case), strict=True):
        np.testing.assert_array_equal(got, expected[0] if got.ndim == 3 else expected)


@pytest.mark.parametrize("mode", [*PADDING_MODES[1:]])
def test_backward_in_padding_modes(mode):
    rng = np.random.default_rng(0)
    x, w = drawn(rng, (1, 2, 3, 4), "complex128"), drawn(rng, (2, 1, 3, 2), "complex128")
    options = dict(stride=(2, 1), padding=((3, 1), (0, 2)), padding_mode=mode)
    dy = drawn(rng, cuconv.conv_transpose(x, w, **options).shape, "complex128")
    expected = gradients_by_definition(dy, x, w, **options)
    for got, right in zip(cuconv.conv_transpose_backward(dy, x, w, **options), expected, strict=False):
        np.testing.assert_array_equal(got, right)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64", "complex128", "int32"])
def test_backward_on_a_gpu(dtype, layout):
    """Every algorithm, sums in parts among them, into new arrays and onto old ones."""
    rng = np.random.default_rng(0)
    for groups, channels in ((2, 3), (4, 1)):
        x, w = drawn(rng, (3, 4, 5, 6), dtype), drawn(rng, (4, channels, 3, 2), dtype)
        if layout == "channels_last":
            x, w = np.moveaxis(x, 1, -1), np.moveaxis(w, 1, -1)
        case = ((2, 3), (1, 0), (1, 2), groups, (1, 2))
        y = cuconv.conv_transpose(x, w, None, *case, layout=layout)
        dy = drawn(rng, y.shape, dtype)
        for accumulate in (False, True):
            outs = [drawn(rng, shape, dtype) for shape in (x.shape, w.shape, (groups * channels,))]

            def backward(algorithm, outs=outs, accumulate=accumulate, dy=dy, x=x, w=w, case=case):
                out = [array.copy() for array in outs]
                options = dict(layout=layout, algorithm=algorithm, out=out, accumulate=accumulate)
                return cuconv.conv_transpose_backward(dy, x, w, *case, **options)

            expected = backward("auto")
            for algorithm in ("direct", "simt", *(["depthwise"] if channels == 1 else [])):
                with emulated(), workspace(2000):
                    got = backward(algorithm)
                for one, right in zip(got, expected, strict=True):
                    np.testing.assert_array_equal(one, right)


@pytest.mark.parametrize("algorithm", ["gemm", "im2col", "mec", "depthwise", "fft"])
def test_backward_by_name(algorithm):
    """Each algorithm conjugates the filter of a convolution, and either operand of a weight gradient."""
    rng = np.random.default_rng(0)
    x, w = drawn(rng, (2, 4, 5, 6), "complex128"), drawn(rng, (4, 1, 3, 2), "complex128")
    dy = drawn(rng, cuconv.conv_transpose(x, w, groups=4, stride=2).shape, "complex128")
    names = {op: [entry.name for entry in TABLE[op]] for op in ("fprop", "wgrad")}
    needs = (algorithm in names["fprop"], algorithm in names["wgrad"], False)
    expected = cuconv.conv_transpose_backward(dy, x, w, groups=4, stride=2, algorithm="auto")
    got = cuconv.conv_transpose_backward(dy, x, w, groups=4, stride=2, needs=needs, algorithm=algorithm)
    assert needs == tuple(gradient is not None for gradient in got)
    for one, right in zip(got, expected, strict=True):
        if one is not None:
            np.testing.assert_allclose(one, right, rtol=1e-12, atol=1e-11)


def test_backward_out_and_accumulate():
    rng = np.random.default_rng(0)
    x, w = drawn(rng, (2, 4, 3), "complex64"), drawn(rng, (4, 2, 3), "complex64")
    dy = drawn(rng, (2, 2, 7), "complex64")
    plain = cuconv.conv_transpose_backward(dy, x, w, stride=2)
    starts = [drawn(rng, gradient.shape, "complex64") for gradient in plain]
    outs = [start.copy() for start in starts]
    given = cuconv.conv_transpose_backward(dy, x, w, stride=2, out=outs, accumulate=True)
    for got, out, start, gradient in zip(given, outs, starts, plain, strict=True):
        assert got is out
        np.testing.assert_array_equal(out, start + gradient)
    needed = cuconv.conv_transpose_backward(dy, x, w, stride=2, needs=(False, True, False))
    assert needed[0] is needed[2] is None
    np.testing.assert_array_equal(needed[1], plain[1])


def test_backward_of_conv_transpose_checks_all_before_it_writes():
    x, w, dy = np.ones((2, 4, 3)), np.ones((4, 2, 3)), np.ones((2, 2, 7))
    outs = [np.zeros_like(x), np.zeros_like(w), np.zeros(5)]
    with pytest.raises(ValueError, match=r"out\[2\] must have shape \(2,\)"):
        cuconv.conv_transpose_backward(dy, x, w, stride=2, out=outs)
    assert not any(out.any() for out in outs)
