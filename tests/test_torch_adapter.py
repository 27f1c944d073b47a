"""cuconv.torch beside PyTorch: values, derivatives, transforms, compilation, modules, a training."""

import copy
import gzip
import importlib
import pickle
import sys
import types
import weakref
from contextlib import nullcontext
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import cuconv
from cuconv.cuda import jit

from .device_arrays import Entered

torch = pytest.importorskip("torch")
import cuconv.torch as ours  # noqa: E402
from cuconv.torch import operators, tensors  # noqa: E402

pytestmark = [
    pytest.mark.peer,
    pytest.mark.usefixtures("one_thread_of_torch"),
    # Of PyTorch's own, on being compiled, exported and differentiated forward.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch"),
]
functional = torch.nn.functional

FLOATS = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def draw(generator, *shape, dtype=torch.float64, exact=False):
    """Normal numbers, or integers so small that all sums of their products are exact."""
    if exact:
        parts = [torch.randint(-4, 5, shape, generator=generator) for _ in range(2)]
    else:
        parts = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    if dtype.is_complex:
        return torch.complex(*(part.double() for part in parts)).to(dtype)
    return parts[0].to(dtype)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def cases(seed, dtype=torch.float64, exact=False):
    """A convolution and a transposed one: name, tensors and options, drawn by the seed."""
    rng, generator = np.random.default_rng(seed), seeded(seed)
    rank = int(rng.integers(1, 4))

    def some(low, high):
        numbers = rng.integers(low, high, rank).tolist()
        return numbers[0] if len(set(numbers)) == 1 and rng.random() < 0.5 else tuple(numbers)

    groups = int(rng.choice([1, 1, 2, 3]))
    c, k = (groups * int(rng.integers(1, 4)) for _ in range(2))
    kernel = rng.integers(1, 4, rank).tolist()
    extents = [int(rng.integers(5, 10)) for _ in range(rank)]
    batch = [int(rng.integers(0, 4))] if rng.random() < 0.9 else []
    stride, dilation, padding = some(1, 4), some(1, 3), some(0, 3)
    if rng.random() < 0.2:
        stride, padding = 1, str(rng.choice(["same", "valid"]))
    w = draw(generator, k, c // groups, *kernel, dtype=dtype, exact=exact)
    bias = draw(generator, k, dtype=dtype, exact=exact) if rng.random() < 0.7 else None
    x = draw(generator, *batch, c, *extents, dtype=dtype, exact=exact)
    options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    yield f"conv{rank}d", (x, w, bias), options
    if not isinstance(padding, str):
        most = [
            max(pair) for pair in zip(*(np.broadcast_to(n, rank) for n in (stride, dilation)), strict=True)
        ]
        options["output_padding"] = tuple(int(rng.integers(0, n)) for n in most)
        x = draw(generator, *batch, k, *extents, dtype=dtype, exact=exact)
        bias = draw(generator, c, dtype=dtype, exact=exact) if bias is not None else None
        yield f"conv_transpose{rank}d", (x, w, bias), options


def with_gradients(namespace, name, operands, options):
    """The result and the gradients of some weighted sum of it."""
    leaves = [tensor if tensor is None else tensor.clone().requires_grad_() for tensor in operands]
    y = getattr(namespace, name)(*leaves, **options)
    dy = draw(seeded(1), *y.shape, dtype=y.dtype, exact=True)
    return y, *torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy)


# -- values and first derivatives -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_small_integers_to_the_bit(dtype):
    """Values and gradients of generated cases, which no rounding hides."""
    for seed in range(100 * FLOATS.index(dtype), 100 * FLOATS.index(dtype) + 10):
        for name, operands, options in cases(seed, dtype, exact=True):
            got = with_gradients(ours, name, operands, options)
            expected = with_gradients(functional, name, operands, options)
            for ours_, theirs in zip(got, expected, strict=True):
                assert ours_.dtype == theirs.dtype
                assert torch.equal(ours_, theirs), (seed, name, options)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float16, torch.bfloat16], ids=str)
def test_values_within_their_rounding(dtype):
    for seed in range(10):
        for name, operands, options in cases(seed, dtype):
            check_rounding(name, operands, options, getattr(ours, name)(*operands, **options))


def check_rounding(name, operands, options, y):
    """Each element within its sum's rounding: the sizes of the terms, times their number, times epsilon."""
    dtype = operands[0].dtype
    wide = torch.complex128 if dtype.is_complex else torch.float64
    summed = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    there = [tensor if tensor is None else tensor.to(wide) for tensor in operands]
    exact = getattr(functional, name)(*there, **options)
    size = getattr(functional, name)(*(t if t is None else t.abs() for t in there), **options)
    bound = size * 4 * operands[1].numel() * torch.finfo(summed).eps + exact.abs() * torch.finfo(dtype).eps
    assert y.dtype == dtype
    assert torch.all((y.to(wide) - exact).abs() <= bound + torch.finfo(dtype).tiny), (name, options)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integers(dtype):
    for name, operands, options in cases(3, torch.float64, exact=True):
        y = getattr(ours, name)(*(t if t is None else t.to(dtype) for t in operands), **options)
        assert y.dtype == dtype
        assert torch.equal(y.double(), getattr(functional, name)(*operands, **options))


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_memory_format_is_pytorchs(rank, transposed):
    name = f"conv_transpose{rank}d" if transposed else f"conv{rank}d"
    last = {2: torch.channels_last, 3: torch.channels_last_3d}[rank]
    # In float64 PyTorch's conv3d on a CPU keeps none.
    x = draw(seeded(0), 2, 4, *(6, 5, 7)[:rank], dtype=torch.float32, exact=True)
    w = draw(seeded(1), 4, 4, *(3, 2, 3)[:rank], dtype=torch.float32, exact=True)
    for formats in ((False, False), (True, False), (False, True), (True, True)):
        operands = [
            tensor.to(memory_format=last) if format else tensor
            for tensor, format in zip((x, w), formats, strict=True)
        ]
        got, expected = (getattr(there, name)(*operands, padding=1) for there in (ours, functional))
        assert got.stride() == expected.stride()
        assert torch.equal(got, expected)


def test_tensors_of_all_strides():
    x, w = draw(seeded(0), 3, 9, 8, 4).permute(0, 3, 2, 1)[..., ::2], draw(seeded(1), 4, 1, 3, 3)
    expected = functional.conv2d(x, w, groups=4)
    torch.testing.assert_close(ours.conv2d(x, w, groups=4), expected)
    every = w[:1].expand(4, 1, 3, 3)  # the same filter for all channels, its gradient the sum of theirs
    leaf = w[:1].clone().requires_grad_()
    for there in (ours, functional):
        there.conv2d(x, leaf.expand(4, 1, 3, 3), groups=4).sum().backward()
    first, second = leaf.grad / 2, functional.conv2d(x, every, groups=4)
    torch.testing.assert_close(ours.conv2d(x, every, groups=4), second)
    leaf.grad = None
    functional.conv2d(x, leaf.expand(4, 1, 3, 3), groups=4).sum().backward()
    torch.testing.assert_close(first, leaf.grad)


def test_views_that_are_conjugated_or_negated_on_reading():
    z, w = draw(seeded(0), 1, 2, 9, dtype=torch.complex128), draw(seeded(1), 3, 2, 2, dtype=torch.complex128)
    torch.testing.assert_close(ours.conv1d(z.conj(), w.conj()), functional.conv1d(z.conj(), w.conj()))
    negated = z.conj().imag
    assert negated.is_neg()
    torch.testing.assert_close(ours.conv1d(negated, w.real), functional.conv1d(negated, w.real))


def test_no_memory_is_shared_with_the_arguments_and_none_is_changed():
    x, w = draw(seeded(0), 1, 1, 4), torch.ones(1, 1, 1, dtype=torch.float64)
    before = x.clone()
    y = ours.conv1d(x, w)
    assert torch.equal(y, x)
    y.zero_()
    assert torch.equal(x, before)


# -- derivatives of higher order, forward, and by transforms ------------------------------------------------

SMALL = [
    ("conv1d", (1, 4, 6), (4, 2, 3), dict(stride=2, padding=2, groups=2)),
    ("conv2d", (2, 2, 4, 5), (2, 1, 3, 2), dict(padding="same", dilation=(1, 2), groups=2)),
    ("conv3d", (1, 1, 3, 3, 4), (2, 1, 2, 2, 2), dict(stride=(1, 2, 3), padding=1)),
    ("conv_transpose1d", (1, 4, 4), (4, 1, 3), dict(stride=2, padding=1, output_padding=1, groups=2)),
    ("conv_transpose2d", (2, 2, 3, 2), (2, 2, 2, 3), dict(dilation=3, output_padding=(1, 2))),
    ("conv_transpose3d", (1, 2, 2, 1, 2), (2, 1, 2, 2, 1), dict(stride=(1, 2, 3))),
]


def small(name, x, w, dtype=torch.float64):
    channels = w[1] if "transpose" in name else w[0]
    groups = {each[0]: each[3].get("groups", 1) for each in SMALL}[name]
    bias = channels * groups if "transpose" in name else channels
    return [draw(seeded(seed), *shape, dtype=dtype) for seed, shape in enumerate((x, w, (bias,)))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize(("name", "x", "w", "options"), SMALL, ids=[each[0] for each in SMALL])
def test_gradcheck(name, x, w, options, dtype):
    operands = [tensor.requires_grad_() for tensor in small(name, x, w, dtype)]

    def call(*operands):
        return getattr(ours, name)(*operands, **options)

    assert torch.autograd.gradcheck(call, operands, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, operands, check_fwd_over_rev=True, fast_mode=True)


def test_gradcheck_of_every_entry():
    name, x, w, options = SMALL[1]
    for dtype in (torch.float64, torch.complex128):
        operands = [tensor.requires_grad_() for tensor in small(name, x, w, dtype)]
        assert torch.autograd.gradcheck(lambda *o: ours.conv2d(*o, **options), operands)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_gradgradcheck_of_the_operators(dtype, mode):
    """Each by itself, whose padding need not be the same on both sides."""
    x, w = draw(seeded(0), 1, 2, 5, dtype=dtype), draw(seeded(1), 2, 1, 2, dtype=dtype)
    dy = draw(seeded(2), 1, 2, 3, dtype=dtype)  # the end of the padding is not reached
    geometry = ([2], [1, 1], [2], 2, mode)
    exact = ([2], [1, 0], [2], 2, mode)
    for call, operands in (
        (lambda x, w: operators.conv(x, w, None, *geometry), (x, w)),
        (lambda dy, w: operators.conv_transpose(dy, w, None, *exact), (dy, w)),
        (lambda x, dy: operators.conv_weight_grad(x, dy, [2], *geometry), (x, dy)),
    ):
        leaves = [tensor.clone().requires_grad_() for tensor in operands]
        assert torch.autograd.gradcheck(call, leaves, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(call, leaves)


def test_only_what_is_needed_is_computed(monkeypatch):
    """A first layer's input has no gradient, frozen filters have none, and without any nothing is kept."""
    computed, written = [], operators.written

    def noted(function, *rest, **options):
        computed.append(function.__name__)
        return written(function, *rest, **options)

    monkeypatch.setattr(operators, "written", noted)
    x, w, _ = small(*SMALL[0][:3])
    ours.conv1d(x.requires_grad_(), w, groups=2).sum().backward()
    ours.conv1d(x.detach(), w.requires_grad_(), groups=2).sum().backward()
    assert computed == ["conv", "conv_transpose", "conv", "conv_weight_grad"]
    with torch.no_grad():
        assert ours.conv1d(x, w, groups=2).grad_fn is None
    with torch.inference_mode():
        assert ours.conv1d(x, w, groups=2).is_inference()
    assert ours.conv1d(x.detach(), w.detach(), groups=2).grad_fn is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_opcheck(dtype, format):
    x, w = draw(seeded(0), 2, 4, 6, 5, dtype=dtype), draw(seeded(1), 6, 2, 3, 2, dtype=dtype)
    bias, geometry = draw(seeded(2), 6, dtype=dtype), ([2, 1], [1, 0, 2, 1], [1, 2], 2, "zeros")
    x, w = (tensor.to(memory_format=format).requires_grad_() for tensor in (x, w))
    dy = operators.conv(x, w, bias, *geometry).detach().requires_grad_()
    for op, arguments in (
        (operators.conv, (x, w, bias, *geometry)),
        (operators.conv, (x.detach(), w.detach(), None, *geometry)),
        (operators.conv_transpose, (dy, w, None, *geometry)),
        (operators.conv_transpose, (dy, w, draw(seeded(3), 4, dtype=dtype).requires_grad_(), *geometry)),
        (operators.conv_weight_grad, (x, dy, [3, 2], *geometry)),
    ):
        verdicts = torch.library.opcheck(op, arguments)
        assert set(verdicts.values()) == {"SUCCESS"}


DIMS = [
    (0, None, None),
    (None, 0, None),
    (None, None, 0),
    (0, 1, None),
    (1, None, 0),
    (None, 0, 0),
    (2, 1, 0),
]


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize(("name", "x", "w", "options"), [SMALL[0], SMALL[4]], ids=["conv", "transposed"])
def test_vmap(name, x, w, options, dims):
    """Of the function and of its gradients, over some of its arguments, beside PyTorch's own."""
    shapes = [(3, *shape) if dim is not None else shape for shape, dim in zip((x, w), dims, strict=False)]
    operands = [draw(seeded(seed), *shape) for seed, shape in enumerate(shapes)]
    channels = small(name, x, w)[2].shape[0]
    operands.append(
        draw(seeded(2), *((channels, 3) if dims[2] else (3, channels) if dims[2] == 0 else (channels,)))
    )
    operands = [t.movedim(0, d) if d else t for t, d in zip(operands, dims, strict=True)]

    def results(there):
        def call(*operands):
            return getattr(there, name)(*operands, **options)

        def loss(*operands):
            return call(*operands).sin().sum()

        return torch.vmap(call, dims)(*operands), *torch.vmap(torch.func.grad(loss, (0, 1, 2)), dims)(
            *operands
        )

    for got, expected in zip(results(ours), results(functional), strict=True):
        torch.testing.assert_close(got, expected)


def test_vmap_over_nothing():
    x, w = torch.ones(0, 3, 4, 7), torch.ones(5, 4, 3)
    got, expected = (torch.vmap(lambda x: there.conv1d(x, w))(x) for there in (ours, functional))  # noqa: B023
    assert got.shape == expected.shape


def test_vmap_within_vmap_and_gradients_by_sample():
    x, w, bias = small(*SMALL[0][:3])
    many = [torch.stack([tensor, tensor + 1, 2 * tensor]) for tensor in (x, w)]

    def results(there):
        def call(x, w):
            return there.conv1d(x, w, bias, padding=1, groups=2)

        def of_one(w, x):
            return call(x[None], w).sin().sum()

        yield torch.vmap(torch.vmap(call, (0, None)), (None, 0))(*many)
        yield torch.vmap(torch.func.grad(of_one), (None, 0))(w, many[0][:, 0])
        yield torch.func.grad(lambda w: torch.vmap(call)(many[0], w).sin().sum())(many[1])

    for got, expected in zip(results(ours), results(functional), strict=True):
        torch.testing.assert_close(got, expected)


def test_transforms():
    """grad, vjp, jvp, hessian in both orders of the two modes, under no_grad too."""
    operands = small(*SMALL[0][:3])
    tangents = [tensor + 1 for tensor in operands]

    def results(there):
        def call(x, w, bias):
            return there.conv1d(x, w, bias, stride=2, padding=2, groups=2)

        def loss(w):
            return call(operands[0], w, operands[2]).sin().sum()

        for context in (nullcontext(), torch.no_grad()):
            with context:
                yield torch.func.grad(lambda *o: call(*o).sin().sum(), (0, 1, 2))(*operands)
                yield torch.func.jvp(call, tuple(operands), tuple(tangents))
                for index in range(3):
                    fixed = list(operands)

                    def of_one(one, index=index, fixed=fixed):
                        return call(*fixed[:index], one, *fixed[index + 1 :])

                    yield torch.func.jvp(of_one, (operands[index],), (tangents[index],))
                yield torch.func.hessian(loss)(operands[1])
                yield torch.func.jacrev(torch.func.jacrev(loss))(operands[1])
                yield torch.func.jacfwd(torch.func.jacfwd(loss))(operands[1])
        yield torch.func.vjp(call, *operands)[1](call(*operands))

    for got, expected in zip([*results(ours)], [*results(functional)], strict=True):
        torch.testing.assert_close(got, expected)


# -- compiled, exported, autocast ---------------------------------------------------------------------------


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole(compiler, dynamic):
    """Without a break in the graph, and with gradients; the same bits as without."""

    def call(x, w, bias):
        y = ours.conv2d(x, w, bias, stride=2, padding=1, groups=2)
        return ours.conv_transpose2d(y.relu(), w, None, (2, 2), output_padding=1, groups=2)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    w, bias = draw(seeded(0), 6, 2, 3, 2).requires_grad_(), draw(seeded(1), 6).requires_grad_()
    for shape in ((2, 4, 9, 8), (3, 4, 12, 8), (5, 4, 7, 8)):
        x = draw(seeded(2), *shape).requires_grad_()
        results = []
        for function in (compiled, call):
            y = function(x, w, bias)
            results.append((y, *torch.autograd.grad(y.sin().sum(), (x, w, bias))))
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_exported_for_any_batch_and_height():
    model = ours.replace_convs(
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, (2, 3), padding="same", padding_mode="reflect"),
            torch.nn.ReLU(),
            torch.nn.ConvTranspose2d(4, 2, 3, 2, 1, 1),
        )
    )
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=3)}
    exported = torch.export.export(model, (torch.randn(2, 3, 9, 8),), dynamic_shapes=(sizes,))
    called = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert operators.conv in called
    assert operators.conv_transpose in called
    x = torch.randn(5, 3, 6, 8)
    assert torch.equal(exported.module()(x), model(x))


def test_traced_as_pytorchs_modules_are():
    """By torch.fx, which knows no shapes, and by torch.jit.trace."""
    layers = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ConvTranspose2d(4, 2, 3, 2, output_padding=1)
    model, x = ours.replace_convs(torch.nn.Sequential(*layers)), torch.randn(2, 3, 9, 8)
    for traced in (torch.fx.symbolic_trace(model), torch.jit.trace(model, x)):
        for images in (x, x[:1, :, :5]):
            assert torch.equal(traced(images), model(images))


def test_fake_tensors_are_checked_like_others():
    x, w = torch.empty(2, 4, 9, device="meta"), torch.empty(6, 2, 3, device="meta")
    assert ours.conv1d(x, w, groups=2).shape == (2, 6, 7)
    assert ours.conv1d(x, w, groups=2).device.type == "meta"
    with pytest.raises(ValueError, match="input has 4 channels"):
        ours.conv1d(x, w)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    x, w, bias = (tensor.float().requires_grad_() for tensor in small(*SMALL[0][:3]))
    results = []
    for there in (ours, functional):
        with torch.autocast("cpu", dtype):
            y = there.conv1d(x.to(dtype), w, bias, groups=2)
            assert there.conv1d(x.double(), w.double(), groups=2).dtype == torch.float64
            assert y.dtype == dtype
        results.append((y, *torch.autograd.grad(y.float().sum(), (x, w, bias))))
    for got, expected in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(
            got, expected, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps
        )


# -- modules ------------------------------------------------------------------------------------------------

MODULES = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_pytorchs(name):
    """Parameters, state, text and results, for options of every kind."""
    rank, transposed = int(name[-2]), "Transpose" in name
    choices = [dict(), dict(stride=2, padding=1, bias=False), dict(groups=2, dilation=2, dtype=torch.float64)]
    if transposed:
        choices.append(dict(stride=3, output_padding=2))
    else:
        choices += [dict(padding="same", padding_mode="reflect"), dict(padding=2, padding_mode="circular")]
        choices.append(dict(padding=(1,) * rank, padding_mode="replicate", dilation=2))
    for options in choices:
        made = []
        for there in (ours, torch.nn):
            torch.manual_seed(0)
            made.append(getattr(there, name)(4, 6, 3, **options))
        mine, theirs = made
        assert repr(mine) == repr(theirs)
        assert list(mine.state_dict()) == list(theirs.state_dict())
        theirs.load_state_dict(mine.state_dict())
        for module in (mine, copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
            x = draw(seeded(0), 2, 4, *(9, 8, 7)[:rank], dtype=theirs.weight.dtype)
            results = []
            for each in (module, theirs):
                leaf = x.clone().requires_grad_()
                y = each(leaf)
                results.append((y, *torch.autograd.grad(y.sum(), [leaf, *each.parameters()])))
            for got, expected in zip(*results, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_wider_than_the_input(mode):
    """As cuconv has it; PyTorch's modules raise for the first two."""
    module = ours.Conv1d(2, 3, 4, padding=11, padding_mode=mode, dtype=torch.float64)
    x = draw(seeded(0), 1, 2, 5)
    expected = cuconv.conv(x, module.weight.detach(), module.bias.detach(), padding=11, padding_mode=mode)
    torch.testing.assert_close(module(x).detach(), expected)


def test_output_size_of_a_transposed_module():
    x, module = torch.randn(2, 4, 5), ours.ConvTranspose1d(4, 3, 3, stride=2)
    theirs = torch.nn.ConvTranspose1d(4, 3, 3, stride=2)
    theirs.load_state_dict(module.state_dict())
    for length in (11, 12):
        torch.testing.assert_close(module(x, output_size=[length]), theirs(x, output_size=[length]))
    with pytest.raises(ValueError, match="output size"):
        module(x, output_size=[14])


def test_replace_convs():
    """In place: the same modules with the same parameters, hooks and mode; others are left alone."""

    class Special(torch.nn.Conv2d):
        pass

    shared, called = torch.nn.Conv2d(4, 4, 3, padding=1), []
    shared.register_forward_hook(lambda *_: called.append(1))
    shared.weight.requires_grad_(False)
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(4, 4, 1))
    lazy, special = torch.nn.LazyConv2d(4, 1), Special(4, 4, 1)
    model = torch.nn.Sequential(
        shared, torch.nn.Sequential(torch.nn.BatchNorm2d(4), shared), torch.nn.ConvTranspose2d(4, 4, 1),
        normed, special, lazy,
    ).eval()  # fmt: skip
    x = torch.randn(2, 4, 6, 6)
    model(x)
    kinds, parameters = [type(normed), Special, type(lazy)], list(model.parameters())
    expected = model(x)
    called.clear()
    assert ours.replace_convs(model) is model
    assert model[0] is model[1][1] is shared
    assert [type(module) for module in (shared, model[2])] == [ours.Conv2d, ours.ConvTranspose2d]
    assert [type(module) for module in (normed, special, lazy)] == [*kinds[:2], ours.Conv2d]
    assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))
    assert not shared.weight.requires_grad
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(model(x), expected)
    assert len(called) == 2
    alone = torch.nn.Conv1d(2, 2, 1)
    assert type(ours.replace_convs(alone)) is ours.Conv1d
    assert type(ours.replace_convs(torch.nn.LazyConv1d(2, 1))) is torch.nn.LazyConv1d
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        ours.replace_convs([alone])


# -- bad input ----------------------------------------------------------------------------------------------

X, W = torch.ones(2, 4, 6, 5), torch.ones(6, 2, 3, 2)
BAD = [
    ((X.numpy(), W), {}, TypeError, "input must be a torch.Tensor, got ndarray"),
    ((X, [1.0]), {}, TypeError, "weight must be a torch.Tensor, got list"),
    ((X, W, 2), {}, TypeError, "bias must be a torch.Tensor, got int"),
    ((X, W[0]), {}, ValueError, r"weight must have 4 axes \(2 of them spatial\), got shape \(2, 3, 2\)"),
    ((X[0, 0], W), {}, ValueError, "input must have 4 axes .*, or 3 without N"),
    ((X, W), {}, ValueError, "input has 4 channels .* weight .* groups=1 expects 2"),
    ((X, W), dict(groups=0), ValueError, "groups must be at least 1, got 0"),
    ((X, W), dict(groups=2.0), TypeError, "groups must be an int, got 2.0"),
    ((X, W, torch.ones(5)), dict(groups=2), ValueError, r"bias must have shape \(6,\), .* got \(5,\)"),
    ((X, W.double()), dict(groups=2), TypeError, "weight must have the dtype of input, torch.float32, got"),
    ((X, W, torch.ones(6).half()), dict(groups=2), TypeError, "bias must have the dtype of input"),
    ((X.to("meta"), W), dict(groups=2), TypeError, "weight must have the device of input, meta, got cpu"),
    (
        (X.byte(), W.byte()),
        dict(groups=2),
        TypeError,
        "input has dtype torch.uint8, supported are torch.float16",
    ),
    (
        (X.to_sparse(), W),
        dict(groups=2),
        TypeError,
        "input must be a dense tensor .* got torch.sparse_coo on cpu",
    ),
    ((X, W), dict(groups=2, stride=0), ValueError, "stride must be at least 1, got 0"),
    ((X, W), dict(groups=2, stride=(1, 2, 3)), ValueError, "stride must be one int or 2 of them"),
    ((X, W), dict(groups=2, dilation=1.5), TypeError, "dilation must be an int, got 1.5"),
    ((X, W), dict(groups=2, dilation=9), ValueError, "axis h gives no output"),
    (
        (X, W),
        dict(groups=2, padding="full"),
        ValueError,
        "padding must be one of 'valid', 'same', got 'full'",
    ),
    ((X, W), dict(groups=2, padding="same", stride=2), ValueError, "padding='same' is for stride 1"),
    ((X, W), dict(groups=2, padding=None), TypeError, "padding must be an int, got None"),
]


@pytest.mark.parametrize(("operands", "options", "error", "message"), BAD, ids=[each[3] for each in BAD])
def test_errors(operands, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        ours.conv2d(*operands, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(output_padding=1), ValueError, "output_padding must be at least 0 and below .*, here 1, got 1"),
        (dict(output_padding=-1, stride=2), ValueError, "output_padding must be at least 0"),
        (dict(padding="same"), TypeError, "padding must be an int, got 'same'"),
        (dict(padding=9), ValueError, "axis h gives no output"),
        (dict(groups=4), ValueError, "groups=4 does not divide K=6"),
    ],
)
def test_errors_of_the_transposed(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        ours.conv_transpose2d(torch.ones(2, 6, 6, 5), W, **options)
    with pytest.raises(ValueError, match=r"input has 4 channels .* weight .* expects 6"):
        ours.conv_transpose2d(X, W)


def test_arguments_in_pytorchs_order_and_forms():
    x, w, bias = draw(seeded(0), 2, 4, 9, 8), draw(seeded(1), 6, 2, 3, 2), draw(seeded(2), 6)
    for arguments in ((bias, 2, 1, 2, 2), (None, (2,), [1], (2, 1), 2), (bias, [1, 2], (1, 0), 1, 2)):
        torch.testing.assert_close(ours.conv2d(x, w, *arguments), functional.conv2d(x, w, *arguments))
    x, bias = draw(seeded(3), 2, 6, 5, 4), draw(seeded(4), 4)
    for arguments in ((bias, 2, 1, 1, 2, 1), (None, (3,), [1], (2, 1), 2, (1, 2))):
        got, expected = (there.conv_transpose2d(x, w, *arguments) for there in (ours, functional))
        torch.testing.assert_close(got, expected)


def test_without_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "cuconv.torch")
    with pytest.raises(ImportError, match=r"cuconv\.torch needs PyTorch .*: pip install torch"):
        importlib.import_module("cuconv.torch")


# -- a training ---------------------------------------------------------------------------------------------


def digits():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    return data.images[:, None] / 16, data.target


def fashion_mnist():
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.exists():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    images, labels = (
        np.frombuffer(gzip.decompress((folder / f"train-{name}-ubyte.gz").read_bytes()), np.uint8)
        for name in ("images-idx3", "labels-idx1")
    )
    return images[16:].reshape(-1, 1, 28, 28)[:800] / 255, labels[8:808]


class Residual(torch.nn.Module):
    """A block of a ResNet, with a smooth activation: at a kink rounding decides where a training goes."""

    def __init__(self, c, k, stride):
        super().__init__()
        self.first = torch.nn.Conv2d(c, k, 3, stride, padding=1, bias=False)
        self.second = torch.nn.Conv2d(k, k, 3, padding=1, bias=False)
        self.short = torch.nn.Conv2d(c, k, 1, stride, bias=False)
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(k) for _ in range(3))

    def forward(self, x):
        y = self.norms[1](self.second(functional.silu(self.norms[0](self.first(x)))))
        return functional.silu(y + self.norms[2](self.short(x)))


def losses(data, dtype, replace):
    """Those of 50 steps of a small ResNet, from one seed."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, 2, padding=1), torch.nn.BatchNorm2d(8), torch.nn.SiLU(),
        Residual(8, 8, 1), Residual(8, 16, 2),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 10),
    ).to(dtype)  # fmt: skip
    if replace:
        ours.replace_convs(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    images, labels = torch.tensor(data[0], dtype=dtype), torch.tensor(data[1], dtype=torch.int64)
    curve = []
    for step in range(50):
        batch = slice(step * 16, step * 16 + 16)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return np.array(curve)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("load", [digits, fashion_mnist])
def test_a_small_resnet_trains_as_it_does_with_pytorch(load, dtype):
    """One bound for both dtypes, in units of their rounding, which 50 steps may make larger by so much."""
    data = load()
    theirs, mine = (losses(data, dtype, replace) for replace in (False, True))
    assert theirs[-5:].mean() < 0.8 * theirs[:5].mean()
    np.testing.assert_allclose(mine, theirs, rtol=2**12 * torch.finfo(dtype).eps)


# -- CUDA tensors: over a stand-in for CuPy, and on a GPU ---------------------------------------------------


@pytest.fixture
def stand_in(monkeypatch):
    """As much of CuPy, and of PyTorch's view of a GPU, as the way of a tensor takes."""
    noted, streams = [], []

    def from_external(stream):
        streams.append(stream.cuda_stream)
        return Entered(noted, ("stream", stream.cuda_stream))

    cuda = types.SimpleNamespace(
        UnownedMemory=lambda *arguments: arguments,
        MemoryPointer=lambda memory, offset: (*memory, offset),
        Stream=types.SimpleNamespace(from_external=from_external),
        using_allocator=lambda allocator: Entered(noted, ("allocator", allocator)),
    )
    cupy = types.SimpleNamespace(
        cuda=cuda, ndarray=lambda *arguments: arguments, noted=noted, streams=streams
    )
    monkeypatch.setattr(jit, "require_cupy", lambda: cupy)
    monkeypatch.setattr(tensors, "_streams", {})
    monkeypatch.setattr(torch.cuda, "device", lambda device: Entered(noted, ("device", device)))
    cupy.current = types.SimpleNamespace(cuda_stream=77)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: cupy.current)
    return cupy


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex128", "int64"])
def test_a_tensors_memory_as_cupy_takes_it(stand_in, dtype):
    x = torch.zeros(3, 4, 6, dtype=getattr(torch, dtype))[1:, ::2].permute(0, 2, 1)
    shape, kind, (address, size, owner, _, offset), strides = tensors._on_gpu(x)
    assert (shape, kind) == ((2, 6, 2), np.dtype(getattr(ml_dtypes, dtype, dtype)))
    assert (address, size, offset) == (x.data_ptr(), x.nbytes, 0)
    assert strides == [step * kind.itemsize for step in (24, 1, 12)]
    assert owner is x
    assert tensors._on_gpu(None) is None


def test_a_call_is_made_on_pytorchs_device_and_stream(stand_in):
    device = torch.device("cuda", 1)
    for pointer in (77, 77, 0):
        stand_in.current.cuda_stream = pointer
        with tensors._on_its_stream(device):
            assert stand_in.noted[:2] == [("device", device), ("stream", pointer)]
        assert stand_in.noted == []
    assert stand_in.streams == [77, 0]  # once for each


def test_workspaces_are_tensors_until_the_call_is_over(stand_in, monkeypatch):
    """Also if CuPy's pointer is kept, as it is for a call that is captured in a graph."""
    made, empty = [], torch.empty

    def noted(size, dtype, device):
        made.append((empty(size, dtype=dtype), device))
        return made[-1][0]

    device = torch.device("cuda", 1)
    monkeypatch.setattr(torch, "empty", noted)
    with tensors._on_its_stream(device):
        ((_, allocate),) = (what for what in stand_in.noted if what[0] == "allocator")
        kept = allocate(1000)
        ((tensor, where),) = made
        assert where == device
        assert kept[:3] == (tensor.data_ptr(), 1000, None)
        made.clear()
        alive = weakref.ref(tensor)
        del tensor, allocate
        assert alive() is not None
    assert alive() is None


on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        jit.usable_cupy() is None or not torch.cuda.is_available(),
        reason="there is no GPU that CuPy and PyTorch can use",
    ),
]


def gpu(test):
    for mark in on_a_gpu:
        test = mark(test)
    return test


@gpu
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_same_bits_on_a_gpu(dtype):
    """Small integers: values and gradients of CUDA tensors are those of CPU tensors."""
    for seed in range(40):
        for name, operands, options in cases(seed, dtype, exact=True):
            there = [tensor if tensor is None else tensor.cuda() for tensor in operands]
            expected = with_gradients(ours, name, operands, options)
            for got, right in zip(on_cuda(name, there, options), expected, strict=True):
                assert got.is_cuda
                assert torch.equal(got.cpu(), right), (seed, name, options)


def on_cuda(name, operands, options):
    leaves = [tensor if tensor is None else tensor.clone().requires_grad_() for tensor in operands]
    y = getattr(ours, name)(*leaves, **options)
    dy = draw(seeded(1), *y.shape, dtype=y.dtype, exact=True).cuda()
    return y, *torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy)


@gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_beside_pytorch_on_a_gpu(dtype, format):
    x, w = draw(seeded(0), 4, 32, 20, 18), draw(seeded(1), 48, 32, 3, 3)
    x, w = (tensor.to("cuda", dtype, memory_format=format) for tensor in (x, w))
    y = ours.conv2d(x, w, padding=1)
    check_rounding("conv2d", (x, w), dict(padding=1), y)
    if dtype is not torch.float64:  # of which cuDNN makes no channels last
        assert y.stride() == functional.conv2d(x, w, padding=1).stride()


@gpu
def test_memory_is_pytorchs_and_nothing_is_copied():
    """A call allocates its result, and what it works in, from PyTorch and nothing from CuPy's pool."""
    cupy = jit.require_cupy()
    x, w = torch.ones(8, 64, 32, 32, device="cuda"), torch.ones(64, 64, 3, 3, device="cuda")
    ours.conv2d(x, w)  # compiles
    pool, before = cupy.get_default_memory_pool().total_bytes(), torch.cuda.memory_allocated()
    y = ours.conv2d(x, w)
    assert cupy.get_default_memory_pool().total_bytes() == pool
    assert torch.cuda.memory_allocated() - before == y.nbytes  # a multiple of the allocator's blocks
    assert torch.all(y == 64 * 9)
    array = tensors._on_gpu(x[:, ::2])
    assert array.data.ptr == x.data_ptr()
    assert array.strides == tuple(4 * step for step in x[:, ::2].stride())
    x[0, 0, 0, 0] = 5
    assert array[0, 0, 0, 0] == 5


@gpu
def test_pytorchs_current_stream():
    """What was queued there before a call is done before it."""
    x, w = torch.zeros(1, 8, 64, 64, device="cuda"), torch.ones(8, 8, 3, 3, device="cuda")
    ours.conv2d(x, w)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.fill_(1)
        y = ours.conv2d(x, w)
    stream.synchronize()
    assert torch.all(y == 72)


@gpu
def test_captured_in_a_cuda_graph():
    """Forward and backward, replayed with new data in the same tensors."""
    x, w = torch.zeros(2, 3, 64, 64, device="cuda"), torch.ones(4, 3, 3, 3, device="cuda", requires_grad=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(ours.conv2d(x, w).sum(), w)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ours.conv2d(x, w)
        (dw,) = torch.autograd.grad(y.sum(), w)
    torch.full((1 << 20,), torch.nan, device="cuda")
    x.fill_(1)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.all(y == 27)
    assert torch.all(dw == 2 * 62 * 62)


@gpu
def test_compiled_and_autocast_on_a_gpu():
    x, w = (
        torch.randn(2, 8, 16, 16, device="cuda"),
        torch.randn(8, 8, 3, 3, device="cuda", requires_grad=True),
    )
    compiled = torch.compile(
        lambda x, w: ours.conv2d(x, w, padding=1).relu(), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(x, w), ours.conv2d(x, w, padding=1).relu())
    with torch.autocast("cuda", torch.bfloat16):
        y = ours.conv2d(x, w)
    assert y.dtype == torch.bfloat16
    torch.autograd.grad(y.float().sum(), w)


@gpu
def test_tensors_on_two_devices():
    with pytest.raises(TypeError, match="weight must have the device of input, cuda:0, got cpu"):
        ours.conv2d(X.cuda(), W, groups=2)
