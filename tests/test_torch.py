"""The same calls through torch.nn.functional: values, gradients, argument order. Skipped without torch."""

import numpy as np
import pytest

import cuconv
from cuconv.cli import oracle, timed_calls
from cuconv.plan import INPUTS
from cuconv.problem import ACTIVATIONS

torch = pytest.importorskip("torch")
functional = torch.nn.functional
pytestmark = pytest.mark.peer

GEOMETRIES = [
    dict(),
    dict(stride=2, padding=1),
    dict(stride=3, dilation=2, padding=2, groups=2),
    dict(padding="same", dilation=2),
    dict(padding="valid", groups=4),
]
DTYPES = {"float32": 1e-5, "float64": 1e-12, "complex64": 1e-5, "complex128": 1e-12}


def operands(rank, groups, dtype, seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        values = rng.standard_normal(shape)
        return (values + 1j * rng.standard_normal(shape) if "complex" in dtype else values).astype(dtype)

    return draw(2, 4, *(9, 8, 7)[:rank]), draw(8, 4 // groups, *(3, 2, 3)[:rank]), draw(8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_and_its_gradients(rank, geometry, dtype):
    x, w, bias = operands(rank, geometry.get("groups", 1), dtype)
    tensors = [torch.tensor(array, requires_grad=True) for array in (x, w, bias)]
    expected = getattr(functional, f"conv{rank}d")(*tensors, **geometry)
    y = getattr(cuconv, f"conv{rank}d")(x, w, bias, **geometry)
    tolerance = dict(rtol=DTYPES[dtype], atol=20 * DTYPES[dtype])
    np.testing.assert_allclose(y, expected.detach().numpy(), **tolerance)
    expected.backward(torch.tensor(y))
    for got, tensor in zip(cuconv.conv_backward(y, x, w, **geometry), tensors, strict=True):
        np.testing.assert_allclose(got, tensor.grad.numpy(), rtol=DTYPES[dtype], atol=1e3 * DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_positional_order(rank, dtype):
    x, w, bias = operands(rank, 2, dtype)
    tensors = [torch.tensor(array) for array in (x, w, bias)]
    expected = getattr(functional, f"conv{rank}d")(*tensors, 2, 1, 2, 2)
    np.testing.assert_allclose(cuconv.conv(x, w, bias, 2, 1, 2, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stride", "padding", "output_padding", "groups", "dilation"),
    [(1, 0, 0, 1, 1), (2, 1, 1, 2, 1), (3, 2, 2, 1, 2), (1, 0, 1, 2, 2), (2, 1, 2, 4, 3), (1, 1, 3, 1, 4)],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_transpose(rank, dtype, stride, padding, output_padding, groups, dilation):
    rng = np.random.default_rng(0)
    shape = (4, 3, *(3, 2, 3)[:rank])
    w = (
        (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
        if "complex" in dtype
        else rng.standard_normal(shape).astype(dtype)
    )
    x, bias = operands(rank, 1, dtype)[0], np.ones(3 * groups, dtype)
    arguments = (stride, padding, output_padding, groups, dilation)
    tensors = [torch.tensor(array) for array in (x, w, bias)]
    expected = getattr(functional, f"conv_transpose{rank}d")(*tensors, *arguments)
    got = getattr(cuconv, f"conv_transpose{rank}d")(x, w, bias, *arguments)
    np.testing.assert_allclose(got, expected, rtol=DTYPES[dtype], atol=50 * DTYPES[dtype])


@pytest.mark.parametrize(
    ("stride", "padding", "output_padding", "groups", "dilation"),
    [(1, 0, 0, 1, 1), (2, 1, 1, 2, 1), (3, 2, 2, 1, 2), (2, 1, 2, 4, 3), (1, 1, 3, 1, 4)],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_transpose_backward(rank, dtype, stride, padding, output_padding, groups, dilation):
    x, w = operands(rank, 1, dtype)[0], operands(rank, 1, dtype, seed=1)[1][:4, :3]
    bias, arguments = np.ones(3 * groups, dtype), (stride, padding, output_padding, groups, dilation)
    tensors = [torch.tensor(array, requires_grad=True) for array in (x, w, bias)]
    y = getattr(functional, f"conv_transpose{rank}d")(*tensors, *arguments)
    dy = operands(rank, 1, dtype, seed=2)[0].ravel()
    dy = np.resize(dy, y.shape)
    y.backward(torch.tensor(dy))
    for got, tensor in zip(cuconv.conv_transpose_backward(dy, x, w, *arguments), tensors, strict=True):
        np.testing.assert_allclose(got, tensor.grad.numpy(), rtol=DTYPES[dtype], atol=1e3 * DTYPES[dtype])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", ACTIVATIONS[1:])
def test_activation_backward(name, dtype):
    """On tensors, of which bfloat16 ones are computed in float32 there too."""
    generator = torch.Generator().manual_seed(0)
    z, dy = (torch.randn(5, 7, generator=generator).to(getattr(torch, dtype)) for _ in range(2))
    z[0, :3] = torch.tensor([0.0, -8.0, 8.0])
    z.requires_grad_()
    y = getattr(torch, name, getattr(functional, name, None))(z)
    y.backward(dy)
    eps = torch.finfo(z.dtype).eps
    got = cuconv.activation_backward(dy, name, pre_activation=z.detach())
    assert got.dtype == z.dtype
    torch.testing.assert_close(got, z.grad, rtol=4 * eps, atol=8 * eps)
    if name in ("relu", "sigmoid", "tanh"):
        got = cuconv.activation_backward(dy, name, y=y.detach())
        torch.testing.assert_close(got, z.grad, rtol=4 * eps, atol=4 * eps)


def test_images_of_integers():
    x, w = torch.arange(0, 250, 2, dtype=torch.uint8).reshape(1, 5, 25), torch.ones(2, 5, 3, dtype=torch.int8)
    y = cuconv.conv(x, w, out_dtype="int32")
    assert y.dtype == torch.int32
    torch.testing.assert_close(y, functional.conv1d(x.double(), w.double()).int())


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_modes(mode):
    x, w, _ = operands(2, 1, "float64")
    x_tensor = torch.tensor(x, requires_grad=True)
    expected = functional.conv2d(functional.pad(x_tensor, (1, 2, 3, 0), mode), torch.tensor(w))
    options = dict(padding=((3, 0), (1, 2)), padding_mode=mode)
    y = cuconv.conv(x, w, **options)
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-12, atol=1e-12)
    expected.backward(torch.tensor(y))
    np.testing.assert_allclose(
        cuconv.conv_input_grad(y, w, x.shape, **options), x_tensor.grad, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(
    ("line", "can"),
    [
        ("p9:-1 zeros", True),
        ("p5:3 circular", True),
        ("p6 circular", False),
        ("p3:-1 circular", False),
        ("p4 reflect", True),
        ("p3:-1 reflect", True),
        ("p5 reflect", False),
        ("p9:-1 replicate", True),
        ("p1 symmetric", False),
    ],
)
@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
def test_padding_of_what_is_timed(line, can, op):
    """Where PyTorch pads otherwise, or not as wide, it is no contender."""
    problem = cuconv.ConvProblem.parse(f"n2c2h5w6 k4r3s2 {line}")
    arrays = timed_calls.operands(problem, "float64", "channels_first")
    task = timed_calls.Task(op, problem, "float64", "channels_first", arrays)
    theirs = timed_calls.torch(task, "channels_first")
    assert (theirs is not None) == can
    if theirs:
        truth = oracle.sample(op, problem, "float64", "channels_first", *(arrays[a] for a in INPUTS[op]))
        assert truth.share(theirs.result(theirs.call())) <= 1


@pytest.mark.parametrize("name", ACTIVATIONS[1:])
def test_activations(name):
    x, w, bias = operands(2, 1, "float64")
    expected = getattr(torch, name, getattr(functional, name, None))(
        functional.conv2d(*map(torch.tensor, (x, w, bias)))
    )
    np.testing.assert_allclose(cuconv.conv(x, w, bias, activation=name), expected, rtol=1e-12, atol=1e-13)


def test_gradients_by_name():
    """conv_input_grad and conv_weight_grad are torch.nn.grad's functions, the operands in our order."""
    x, w, _ = operands(2, 2, "float64")
    dy = np.random.default_rng(1).standard_normal((2, 8, 5, 5))
    arguments = (2, 1, 1, 2)
    dx = torch.nn.grad.conv2d_input(x.shape, torch.tensor(w), torch.tensor(dy), *arguments)
    dw = torch.nn.grad.conv2d_weight(torch.tensor(x), w.shape, torch.tensor(dy), *arguments)
    np.testing.assert_allclose(cuconv.conv_input_grad(dy, w, x.shape, *arguments), dx, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        cuconv.conv_weight_grad(x, dy, w.shape, *arguments), dw, rtol=1e-12, atol=1e-12
    )


def test_tensors_in_tensors_out():
    x, w, bias = operands(2, 1, "float32")
    x_tensor, w_tensor, bias_tensor = map(torch.tensor, (x, w, bias))
    y = cuconv.conv(x_tensor, w_tensor, bias_tensor, stride=2)
    assert isinstance(y, torch.Tensor)
    np.testing.assert_array_equal(y.numpy(), cuconv.conv(x, w, bias, stride=2))
    out = torch.zeros_like(y)
    assert cuconv.conv(x_tensor, w_tensor, bias_tensor, stride=2, out=out) is out
    np.testing.assert_array_equal(out.numpy(), y.numpy())
    strided = x_tensor.permute(0, 1, 3, 2)
    expected = cuconv.conv(np.ascontiguousarray(x.transpose(0, 1, 3, 2)), w)
    np.testing.assert_array_equal(cuconv.conv(strided, w_tensor).numpy(), expected)
    with pytest.raises(TypeError, match="w must be the same kind of array as x"):
        cuconv.conv(x_tensor, w)
    with pytest.raises(
        TypeError, match=r"x cannot be read through DLPack.*differentiates is in cuconv\.torch"
    ):
        cuconv.conv(x_tensor.requires_grad_(), w_tensor)


def test_bfloat16_tensors():
    x, w, bias = (torch.tensor(array).bfloat16() for array in operands(2, 1, "float32"))
    out = torch.zeros((2, 8, 7, 7), dtype=torch.bfloat16)
    y = cuconv.conv(x.permute(0, 1, 3, 2), w.permute(0, 1, 3, 2), bias)
    assert y.dtype == torch.bfloat16
    expected = functional.conv2d(x.double(), w.double(), bias.double()).permute(0, 1, 3, 2)
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-4)
    assert cuconv.conv(x, w, bias, out=out) is out
    assert torch.equal(out, y.permute(0, 1, 3, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.complex64, torch.int32, torch.int64])
def test_tensors_of_every_dtype(dtype):
    x, w = torch.arange(18).reshape(1, 2, 9).to(dtype), torch.arange(12).reshape(2, 2, 3).to(dtype)
    y = cuconv.conv(x, w)
    assert y.dtype == dtype
    wide = torch.complex128 if dtype.is_complex else torch.float64
    assert torch.equal(y.to(wide), functional.conv1d(x.to(wide), w.to(wide)))


def test_subclasses_and_tensors_without_data():
    class Named(torch.Tensor):
        pass

    x, w = torch.ones(1, 1, 5), torch.ones(1, 1, 3)
    assert isinstance(cuconv.conv(x.as_subclass(Named), w.as_subclass(Named)), torch.Tensor)
    with pytest.raises(TypeError, match="x cannot be read through DLPack"):
        cuconv.conv(x.to("meta"), w)


def test_views_that_are_negated_or_conjugated_on_reading():
    z, w = torch.arange(5.0).reshape(1, 1, 5) * (1 + 1j), torch.ones(1, 1, 3)
    negated, conjugated = z.conj().imag, z.conj()
    with pytest.raises(TypeError, match=r"x is a view that torch negates .* x\.resolve_neg\(\) makes"):
        cuconv.conv(negated, w)
    with pytest.raises(TypeError, match=r"x is a view that torch conjugates .* x\.resolve_conj\(\) makes"):
        cuconv.conv(conjugated, w + 0j)
    with pytest.raises(TypeError, match="out is a view that torch negates"):
        cuconv.conv(w, w, out=z.conj().imag[..., :1])
    expected = functional.conv1d(negated, w)
    torch.testing.assert_close(cuconv.conv(negated.resolve_neg(), w), expected)
    torch.testing.assert_close(cuconv.conv(negated.clone(), w), expected)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:ComplexHalf")
def test_tensors_that_are_no_plain_memory():
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, w = torch.ones(1, 1, 5), torch.ones(1, 1, 3)
    with FakeTensorMode():
        fake = torch.ones(1, 1, 5)
    others = [x.to_sparse(), torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), fake, x.to(torch.complex32)]
    for tensor in (*others, torch.nn.Parameter(x)):
        with pytest.raises(TypeError, match=r"^x cannot be read through DLPack"):
            cuconv.conv(tensor, w)
    with pytest.raises(TypeError, match=r"^x cannot be read through DLPack"):
        torch.func.vmap(lambda one: cuconv.conv(one, w))(x)
    expanded = torch.ones(1, 1, 1).expand(1, 1, 5)
    torch.testing.assert_close(cuconv.conv(expanded, w), torch.full((1, 1, 3), 3.0))
    with pytest.raises(ValueError, match="out must not overlap itself"):
        cuconv.conv(x, w, out=expanded[..., :3])


def test_numbers_and_flags_that_are_tensors():
    x, w = torch.ones(1, 1, 5), torch.ones(1, 1, 3)
    expected = cuconv.conv(x, w, stride=2)
    assert torch.equal(cuconv.conv(x, w, stride=torch.tensor(2)), expected)
    assert torch.equal(cuconv.conv(x, w, stride=torch.tensor([2])), expected)
    assert cuconv.conv_input_grad(expected, w, x.shape, 2).shape == x.shape
    with pytest.raises(TypeError, match="stride must be an int, got tensor"):
        cuconv.conv(x, w, stride=torch.empty((), dtype=torch.int64, device="meta"))
    with pytest.raises(TypeError, match="flip must be True or False, got tensor"):
        cuconv.conv(x, w, flip=torch.tensor(True))


def test_dtypes_of_tensors_that_are_not_supported():
    x = torch.ones(1, 1, 5)
    with pytest.raises(TypeError, match="x converted to int32 and w converted to int32 lose nothing"):
        cuconv.conv(x.to(torch.uint8), x.to(torch.uint8))
    with pytest.raises(
        TypeError, match="w must have the dtype of x, float32, got float64; x converted to fl"
    ):
        cuconv.conv(x, x.double())
