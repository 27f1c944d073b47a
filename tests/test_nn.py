"""Layers, losses and optimizers: every backward against finite differences, in float64."""

import re

import numpy as np
import pytest

from cuconv import nn

from . import emulator
from .test_errors import ODD, complaint


def rng():
    return np.random.default_rng(0)


def slopes(function, array, step=1e-6):
    """Central differences of a scalar function with respect to each element of an array."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(*array.shape):
        value = array[index]
        array[index] = value + step
        above = function()
        array[index] = value - step
        below = function()
        array[index] = value
        gradient[index] = (above - below) / (2 * step)
    return gradient


double = dict(dtype=np.float64, rng=rng())
LAYERS = {
    "Conv": (nn.Conv(4, 6, 3, 2, 1, groups=2, **double), (2, 4, 5, 6)),
    "Conv channels_last": (
        nn.Conv(3, 4, (2, 3), padding="same", layout="channels_last", **double),
        (2, 4, 5, 3),
    ),
    "Conv without bias, 1-D": (nn.Conv(2, 3, (3,), dilation=2, bias=False, **double), (2, 2, 8)),
    "Conv circular, 3-D": (
        nn.Conv(1, 2, 2, rank=3, padding=1, padding_mode="circular", **double),
        (1, 1, 3, 2, 3),
    ),
    "Dense": (nn.Dense(5, 3, **double), (4, 5)),
    "ReLU": (nn.ReLU(), (3, 4)),
    "Sigmoid": (nn.Sigmoid(), (3, 4)),
    "Flatten": (nn.Flatten(), (3, 2, 4)),
    "MaxPool": (nn.MaxPool(2), (2, 2, 4, 6)),
    "MaxPool overlapping, padded": (nn.MaxPool(3, 2, 1), (2, 2, 5, 6)),
    "MaxPool channels_last, 1-D": (nn.MaxPool((2,), layout="channels_last"), (2, 5, 3)),
    "AvgPool": (nn.AvgPool((2, 3)), (2, 2, 4, 6)),
    "AvgPool overlapping, padded, 3-D": (nn.AvgPool(2, 1, 1, rank=3), (1, 2, 3, 2, 3)),
    "Sequential": (
        nn.Sequential(nn.Conv(1, 2, 3, **double), nn.Sigmoid(), nn.Flatten(), nn.Dense(8, 3, **double)),
        (2, 1, 4, 4),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_backward_is_the_slope_of_forward(name):
    layer, shape = LAYERS[name]
    generator = rng()
    # Values that are apart from each other and from 0, where max and ReLU have corners.
    x = generator.permutation(np.arange(1, 1 + np.prod(shape))).reshape(shape) * 0.1
    x *= generator.choice([-1, 1], shape)
    weights = generator.standard_normal(layer.forward(x).shape)

    def objective():
        return float((layer.forward(x) * weights).sum())

    objective()
    dx = layer.backward(weights)
    gradients = [
        (part, name, gradient) for part in layer.layers() for name, gradient in part.gradients.items()
    ]
    np.testing.assert_allclose(dx, slopes(objective, x), rtol=1e-6, atol=1e-7)
    assert {(id(part), name) for part, name, _ in gradients} == {
        (id(part), name) for part in layer.layers() for name in part.parameters
    }
    for part, name, gradient in gradients:
        expected = slopes(objective, part.parameters[name])
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7, err_msg=name)


def test_softmax_cross_entropy():
    scores, labels = rng().standard_normal((5, 4)) * 3, np.array([0, 3, 1, 1, 2])
    loss = nn.SoftmaxCrossEntropy()
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert loss.forward(scores, labels) == pytest.approx(-np.log(probabilities[np.arange(5), labels]).mean())
    gradient = loss.backward()
    np.testing.assert_allclose(gradient, slopes(lambda: loss.forward(scores, labels), scores), atol=1e-8)
    assert np.isfinite(loss.forward(scores * 1e4, labels))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_squared_error(reduction):
    output, target = rng().standard_normal((3, 4)), rng().standard_normal((3, 4)) + 1
    loss = nn.SquaredError(reduction)
    assert loss.forward(output, target) == pytest.approx(getattr(np, reduction)((output - target) ** 2))
    gradient = loss.backward()
    np.testing.assert_allclose(gradient, slopes(lambda: loss.forward(output, target), output), atol=1e-8)
    with pytest.raises(ValueError, match="target must have the shape of output"):
        loss.forward(output, target[:2])


def test_max_pool_takes_the_first_of_equals_and_passes_nan_on():
    pool = nn.MaxPool(2)
    x = np.zeros((1, 1, 2, 4))
    x[0, 0, 1, 3] = np.nan
    y = pool.forward(x)
    assert y[0, 0, 0, 0] == 0
    assert np.isnan(y[0, 0, 0, 1])
    np.testing.assert_array_equal(pool.backward(np.ones_like(y))[0, 0], [[1, 0, 0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: nn.MaxPool(2, padding=2), "padding must be at most half of kernel"),
        (lambda: nn.MaxPool(5).forward(np.ones((1, 1, 4, 4))), "is larger than x"),
        (lambda: nn.AvgPool(2).forward(np.ones((1, 4, 4))), "x must have 4 axes"),
        (lambda: nn.AvgPool(0), "kernel must be at least 1"),
        (lambda: nn.MaxPool(2, layout="first"), "layout must be one of"),
        (lambda: nn.SquaredError("men"), "did you mean 'mean'"),
        (lambda: nn.Conv(1, 2, 5)(np.ones((8, 1, 32))), "x must have 4 axes, N, C and 2 spatial ones"),
        (lambda: nn.Conv(1, 2, (3, 3), rank=1), "kernel must be one int or 1"),
        (lambda: nn.Dense(3, 2)(np.ones((4, 5))), r"x must have shape \(N, 3\)"),
        (lambda: nn.SoftmaxCrossEntropy().forward(np.ones((2, 3)), np.ones(2)), "labels must be integers"),
        (
            lambda: nn.SoftmaxCrossEntropy().forward(np.ones((2, 3)), np.array([0, 3])),
            "labels must be from 0 to 2",
        ),
        (
            lambda: nn.SoftmaxCrossEntropy().forward(np.ones((2, 3)), np.array([-1, 0])),
            "labels must be from 0 to 2",
        ),
        (lambda: nn.Conv(3, 4, 3, groups=0), "groups must be at least 1"),
        (lambda: nn.Conv(-3, 4, 3), "in_channels must be at least 0"),
        (lambda: nn.Conv(3, 4, 3, groups=2), "groups=2 does not divide in_channels=3"),
        (lambda: nn.Conv(4, 3, 3, groups=2), "groups=2 does not divide out_channels=3"),
    ],
)
def test_layers_refuse(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


def test_wrong_order_and_wrong_kinds():
    with pytest.raises(RuntimeError, match=r"Conv\.backward needs a forward"):
        nn.Conv(1, 2, 3).backward(np.ones((1, 2, 3, 3)))
    network = nn.Sequential(nn.Conv(1, 2, 3), nn.ReLU())
    with pytest.raises(RuntimeError, match="step needs gradients"):
        nn.SGD(network, 0.1).step()
    with pytest.raises(TypeError, match="network must be a layer, such as a Sequential, got dict"):
        nn.Adam(network.parameters)
    with pytest.raises(TypeError, match="Sequential takes layers one by one, got list"):
        nn.Sequential([nn.ReLU()])


def test_layers_without_parameters_may_be_stepped():
    nn.SGD(nn.Sequential(nn.ReLU()), 0.1).step()


class Quadratic(nn.Layer):
    """Half of the squared distance of w from the target, a different scale along each axis."""

    scales = np.array([1.0, 10.0])

    def __init__(self):
        super().__init__()
        self.parameters["w"] = np.array([3.0, -2.0])

    def backward(self, dy=1.0):
        self.gradients["w"] = self.scales * self.parameters["w"]


def test_sgd_is_the_recurrence():
    network = Quadratic()
    parameter, momentum, rate = network.parameters["w"], 0.9, 0.05
    optimizer = nn.SGD(network, rate, momentum)
    w, v = parameter.copy(), np.zeros(2)
    for _ in range(5):
        network.backward()
        optimizer.step()
        v = momentum * v + Quadratic.scales * w
        w = w - rate * v
        np.testing.assert_allclose(parameter, w, rtol=1e-14)
    assert network.parameters["w"] is parameter


def test_adam_is_the_recurrence():
    network = Quadratic()
    optimizer = nn.Adam(network, 0.1)
    w, m, s = network.parameters["w"].copy(), np.zeros(2), np.zeros(2)
    for t in range(1, 6):
        network.backward()
        optimizer.step()
        gradient = Quadratic.scales * w
        m, s = 0.9 * m + 0.1 * gradient, 0.999 * s + 0.001 * gradient**2
        w = w - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(s / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(network.parameters["w"], w, rtol=1e-12)


def test_momentum_is_not_the_callers_array():
    network = Quadratic()
    optimizer = nn.SGD(network, 1.0, 1.0)
    network.backward()
    optimizer.step()
    network.gradients["w"][...] = 0
    before = network.parameters["w"].copy()
    optimizer.step()
    np.testing.assert_array_equal(network.parameters["w"], before - Quadratic.scales * [3.0, -2.0])


def test_pools_of_integers_and_half_floats():
    x = np.arange(16, dtype=np.int32).reshape(1, 1, 4, 4)
    np.testing.assert_array_equal(
        nn.MaxPool(2, padding=1)(-x)[0, 0], [[0, -1, -3], [-4, -5, -7], [-12, -13, -15]]
    )
    large = np.full((1, 1, 4, 4), 60000, np.float16)
    assert nn.AvgPool(4)(large)[0, 0, 0, 0] == large[0, 0, 0, 0]
    assert nn.SquaredError("sum").forward(large / 2, -large / 2) == 16 * float(large[0, 0, 0, 0]) ** 2


def test_pools_keep_the_dtype_and_max_pool_never_takes_the_padding():
    x = np.full((1, 1, 3, 3), -1, np.float32)
    for pool in (nn.MaxPool(2, 2, 1), nn.AvgPool(2, 2, 1)):
        assert pool(x).dtype == np.float32
    np.testing.assert_array_equal(nn.MaxPool(2, 2, 1)(x)[0, 0], np.full((2, 2), -1))


def test_filters_start_with_variance_2_over_fan_in():
    layer = nn.Conv(64, 256, 3, groups=2, rng=rng())
    w = layer.parameters["w"]
    assert w.std() == pytest.approx(np.sqrt(2 / (32 * 9)), rel=0.02)
    assert not layer.parameters["bias"].any()
    assert nn.Conv(0, 2, 3).parameters["w"].shape == (2, 0, 3, 3)


class Free(nn.Layer):
    """One parameter, whose gradient the test sets."""

    def __init__(self, value):
        super().__init__()
        self.parameters["w"] = np.array([value])


@pytest.mark.parametrize("make", [lambda net: nn.SGD(net, 0.1, 0.9), lambda net: nn.Adam(net, 0.1)])
def test_optimizers_keep_every_parameter_apart(make):
    """Trained together, two parameters end where each ends when it is trained alone."""

    def trained(*slopes):
        parts = [Free(1.0) for _ in slopes]
        optimizer = make(nn.Sequential(*parts))
        for step in range(1, 4):
            for part, slope in zip(parts, slopes, strict=True):
                part.gradients["w"] = np.array([slope * step**slope])
            optimizer.step()
        return [part.parameters["w"][0] for part in parts]

    assert trained(1.0, 2.0) == trained(1.0) + trained(2.0)


def test_defaults():
    assert nn.SGD(nn.ReLU(), 0.1).momentum == 0
    adam = nn.Adam(nn.ReLU())
    assert (adam.rate, adam.beta1, adam.beta2, adam.epsilon) == (1e-3, 0.9, 0.999, 1e-8)
    assert nn.SquaredError().reduction == "mean"


def test_backward_belongs_to_the_last_forward():
    x, dy = rng().standard_normal((2, 1, 2, 5, 5)), np.ones((1, 3, 3, 3))
    layer, fresh = (nn.Conv(2, 3, 3, dtype=np.float64, rng=rng()) for _ in range(2))
    layer(x[0])
    layer(x[1])
    fresh(x[1])
    np.testing.assert_array_equal(layer.backward(dy), fresh.backward(dy))
    np.testing.assert_array_equal(layer.gradients["w"], fresh.gradients["w"])


def test_convert_forgets_gradients_and_reaches_nested_layers():
    inner = nn.Dense(2, 2)
    network = nn.Sequential(nn.Sequential(inner), nn.ReLU())
    network(np.ones((1, 2), np.float32))
    network.backward(np.ones((1, 2), np.float32))
    network.convert(lambda array: array.astype(np.float64))
    assert inner.parameters["w"].dtype == np.float64
    assert inner.gradients == {}


def test_convert_replaces_every_parameter():
    network = nn.Sequential(nn.Conv(1, 2, 3), nn.Flatten(), nn.Dense(8, 3))
    network.convert(lambda array: array.astype(np.float64))
    assert network(np.ones((1, 1, 4, 4))).dtype == np.float64


def test_a_network_trains_on_kernels():
    """Two steps on the CUDA path, emulated, and on the NumPy path."""

    def trained():
        generator = np.random.default_rng(3)
        network = nn.Sequential(
            nn.Conv(1, 4, 3, padding="same", dtype=np.float64, rng=generator),
            nn.ReLU(),
            nn.MaxPool(2),
            nn.Conv(4, 4, 3, padding="same", groups=4, dtype=np.float64, rng=generator),
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Dense(16, 3, dtype=np.float64, rng=generator),
        )
        loss, optimizer = nn.SoftmaxCrossEntropy(), nn.Adam(network, 0.1)
        x, labels = generator.integers(-3, 4, (5, 1, 4, 4)).astype(float), np.arange(5) % 3
        losses = []
        for _ in range(2):
            losses.append(loss.forward(network(x), labels))
            network.backward(loss.backward())
            optimizer.step()
        return losses, [layer.parameters["w"] for layer in network.layers() if layer.parameters]

    losses, filters = trained()
    with emulator.emulated():
        emulated_losses, emulated_filters = trained()
    assert losses[1] < losses[0]
    np.testing.assert_allclose(emulated_losses, losses, rtol=1e-12)
    for one, other in zip(emulated_filters, filters, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


IMAGES = np.ones((2, 3, 6, 6), np.float32)
CALLS = {
    "Conv": (nn.Conv, dict(in_channels=3, out_channels=4, kernel=3, groups=1, bias=True, rank=2, rng=0)),
    "Conv with a dtype": (nn.Conv, dict(in_channels=3, out_channels=4, kernel=(3, 3), dtype="float64")),
    "Dense": (nn.Dense, dict(inputs=3, outputs=2, dtype=np.float32, rng=None)),
    "MaxPool": (nn.MaxPool, dict(kernel=2, stride=2, padding=0, rank=2, layout="channels_first")),
    "SquaredError": (nn.SquaredError, dict(reduction="mean")),
    "forward of Conv": (nn.Conv(3, 4, 3).forward, dict(x=IMAGES)),
    "forward of Dense": (nn.Dense(3, 4).forward, dict(x=IMAGES[..., 0, 0])),
    "forward of Flatten": (nn.Flatten().forward, dict(x=IMAGES)),
    "forward of MaxPool": (nn.MaxPool(2).forward, dict(x=IMAGES)),
    "cross-entropy": (
        nn.SoftmaxCrossEntropy().forward,
        dict(scores=np.ones((2, 3)), labels=np.zeros(2, int)),
    ),
    "squared error": (nn.SquaredError().forward, dict(output=IMAGES, target=IMAGES)),
}


@pytest.mark.parametrize("name", CALLS)
def test_odd_arguments_are_taken_or_named(name):
    function, right = CALLS[name]
    function(**right)
    for argument in right:
        for value in ODD:
            error = complaint(function, right | {argument: value})
            if error is not None:
                assert type(error) in (ValueError, TypeError), (argument, error)
                assert re.search(rf"\b{argument}\b|^array is too big", str(error)), (argument, error)
