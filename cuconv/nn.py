"""Layers with forward and backward, losses and optimizers: enough to train a small network.

`forward` keeps what `backward` needs; `backward` takes the gradient of the loss with respect to the
layer's output, sets `gradients` (it does not add to them) and returns the gradient with respect to
its input. Parameters and gradients are plain arrays in dicts.

Activations are batched: ``(N, C, *spatial)`` or, for layout="channels_last", ``(N, *spatial, C)``.
Parameters are made by NumPy in float32 unless `dtype` says otherwise; ``network.convert(function)``
replaces each of them, ``network.convert(cupy.asarray)`` by CuPy's arrays.

>>> from cuconv import nn
>>> images, labels = np.ones((2, 1, 8, 8), np.float32), np.array([3, 3])
>>> network = nn.Sequential(
...     nn.Conv(1, 8, 3, rng=0), nn.ReLU(), nn.Flatten(), nn.Dense(8 * 6 * 6, 10, rng=0)
... )
>>> loss, optimizer = nn.SoftmaxCrossEntropy(), nn.Adam(network)
>>> before = loss.forward(network(images), labels)
>>> d_images = network.backward(loss.backward())
>>> optimizer.step()
>>> loss.forward(network(images), labels) < before
True
>>> for layer in network.layers():
...     for name, array in layer.parameters.items():
...         print(name, array.shape, layer.gradients[name].shape)
w (8, 1, 3, 3) (8, 1, 3, 3)
bias (8,) (8,)
w (10, 288) (10, 288)
bias (10,) (10,)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from . import activations
from .api import conv, conv_backward
from .arrays import Array, dtype_name, owner_of
from .dtypes import described
from .options import entries, flag, integer, is_one, one_of, per_axis
from .problem import checked_layout


def _namespace(x: Array) -> Any:
    return owner_of("x", x).namespace


class Layer:
    """A differentiable map with named parameters: the base class of all layers, and of your own.

    A layer of your own has `forward` and `backward`; where backward needs more than dy, forward leaves
    it in ``self.kept``, and ``self.recall()`` finds it there. Calling a layer calls its forward.

    Attributes
    ----------
    parameters : dict of str to array
        What is learned, by name.
    gradients : dict of str to array
        The gradient of the loss with respect to each parameter, as the last backward left it.

    Examples
    --------
    >>> class Double(cuconv.nn.Layer):
    ...     def forward(self, x):
    ...         return 2 * x
    ...     def backward(self, dy):
    ...         return 2 * dy
    >>> Double()(np.ones((1, 3)))
    array([[2., 2., 2.]])
    """

    def __init__(self) -> None:
        self.parameters: dict[str, Array] = {}
        self.gradients: dict[str, Array] = {}
        self.kept: Any = None  # what the last forward left for backward

    def recall(self) -> Any:
        """What the last forward kept.

        Returns
        -------
        kept : object
            What `forward` left in ``self.kept``.

        Raises
        ------
        RuntimeError
            Where there was no forward.
        """
        if self.kept is None:
            raise RuntimeError(f"{type(self).__name__}.backward needs a forward before it")
        return self.kept

    def forward(self, x: Array) -> Array:
        """The layer's output for x.

        Parameters
        ----------
        x : array
            The input, with an axis N.

        Returns
        -------
        y : array
            The output.

        Raises
        ------
        ValueError, TypeError
            Where x has not the shape that the layer is for, or is no array.
        """
        raise NotImplementedError

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to the last forward's input.

        It sets `gradients`, those with respect to the layer's parameters.

        Parameters
        ----------
        dy : array
            The gradient with respect to the last forward's output.

        Returns
        -------
        dx : array
            Of the shape of the last forward's input.

        Raises
        ------
        RuntimeError
            Where there was no forward.
        """
        raise NotImplementedError

    def layers(self) -> Iterator[Layer]:
        """This layer, or the layers it is made of.

        Yields
        ------
        layer : Layer
            Each of them, in order.
        """
        yield self

    def convert(self, function: Callable[[Array], Array]) -> None:
        """Replace every parameter by function(parameter), for example `cupy.asarray`.

        Gradients that were there are forgotten.

        Parameters
        ----------
        function : callable
            From an array to an array.
        """
        for layer in self.layers():
            layer.parameters = {name: function(value) for name, value in layer.parameters.items()}
            layer.gradients = {}

    def __call__(self, x: Array) -> Array:
        """The same as `forward`.

        Parameters
        ----------
        x : array
            The input.

        Returns
        -------
        y : array
            The output.
        """
        return self.forward(x)


class Sequential(Layer):
    """Layers one after another, as one layer.

    Parameters
    ----------
    *parts : Layer
        The layers, the first one first.

    Raises
    ------
    TypeError
        For what is no layer.

    Examples
    --------
    >>> from cuconv import nn
    >>> network = nn.Sequential(nn.Conv(1, 4, 3), nn.ReLU(), nn.Flatten())
    >>> network(np.ones((2, 1, 8, 8), np.float32)).shape
    (2, 144)
    """

    def __init__(self, *parts: Layer) -> None:
        super().__init__()
        for part in parts:
            if not isinstance(part, Layer):
                raise TypeError(f"Sequential takes layers one by one, got {type(part).__name__}")
        self.parts = parts

    def forward(self, x: Array) -> Array:
        for part in self.parts:
            x = part.forward(x)
        return x

    def backward(self, dy: Array) -> Array:
        for part in reversed(self.parts):
            dy = part.backward(dy)
        return dy

    def layers(self) -> Iterator[Layer]:
        for part in self.parts:
            yield from part.layers()


class Conv(Layer):
    """Convolution with learned filters and bias: `cuconv.conv`, with its gradients in backward.

    Filters, ``parameters["w"]``, are ``(K, C/groups, *kernel)``, or ``(K, *kernel, C/groups)`` for
    layout="channels_last"; ``parameters["bias"]`` is ``(K,)``.

    Parameters
    ----------
    in_channels, out_channels : int
        C and K.
    kernel : int or sequence of int
        The filters' extents: one int per spatial axis, or one for all of them.
    stride, padding, dilation, groups : optional
        As in `cuconv.conv`.
    bias : bool, default True
        Whether there is a bias.
    rank : int, optional
        The number of spatial axes; needed where `kernel` is one int for 1 or 3 of them, otherwise 2.
    padding_mode, layout : optional
        As in `cuconv.conv`.
    dtype : dtype, default float32
        Of the parameters, and so of x.
    rng : numpy.random.Generator or int, optional
        What the filters are drawn with, or its seed.

    Raises
    ------
    ValueError, TypeError
        For numbers and dtypes that a convolution cannot have; stride, padding, dilation and
        padding_mode are looked at by `forward`.

    Notes
    -----
    The filters start as normal numbers of variance 2 / fan-in [1]_, the bias as zeros.

    References
    ----------
    .. [1] He et al., Delving Deep into Rectifiers, 2015.

    Examples
    --------
    >>> layer = cuconv.nn.Conv(3, 16, 5, padding="same")
    >>> y = layer(np.ones((8, 3, 32, 32), np.float32))
    >>> y.shape
    (8, 16, 32, 32)
    >>> layer.backward(y).shape
    (8, 3, 32, 32)
    >>> layer.gradients["w"].shape, layer.gradients["bias"].shape
    ((16, 3, 5, 5), (16,))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[Any] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        *,
        bias: bool = True,
        rank: int | None = None,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        taps, groups = _kernel(kernel, rank), integer("groups", groups, 1)
        in_channels = integer("in_channels", in_channels, 0)
        out_channels = integer("out_channels", out_channels, 0)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"groups={groups} does not divide {name}={channels}")
        shape = (out_channels, in_channels // groups, *taps)
        if checked_layout(layout) == "channels_last":
            shape = (out_channels, *taps, in_channels // groups)
        self.parameters["w"] = _he_normal(shape, math.prod(shape[1:]), dtype, rng)
        if flag("bias", bias):
            self.parameters["bias"] = np.zeros(out_channels, dtype)
        self.options: dict[str, Any] = dict(
            stride=stride, padding=padding, dilation=dilation, groups=groups,
            padding_mode=padding_mode, layout=layout,
        )  # fmt: skip

    def forward(self, x: Array) -> Array:
        _check_axes(x, self.parameters["w"].ndim - 2)
        self.kept = x
        return conv(x, self.parameters["w"], self.parameters.get("bias"), **self.options)

    def backward(self, dy: Array) -> Array:
        needs = (True, True, "bias" in self.parameters)
        dx, dw, db = conv_backward(dy, self.recall(), self.parameters["w"], needs=needs, **self.options)
        self.gradients = {"w": dw, "bias": db} if needs[2] else {"w": dw}
        return dx


class Dense(Layer):
    """A fully connected layer.

    With x (N, inputs), w (outputs, inputs), bias (outputs,) and y (N, outputs)::

        y = x w^T + bias

        dx = dy w        dw = dy^T x        d_bias = sum over n of dy[n]

    Parameters
    ----------
    inputs, outputs : int
        How many numbers go in and come out for each n.
    dtype : dtype, default float32
        Of the parameters, and so of x.
    rng : numpy.random.Generator or int, optional
        What w is drawn with, as the filters of `Conv` are, or its seed. The bias starts as zeros.

    Raises
    ------
    ValueError, TypeError
        For numbers and dtypes that a layer cannot have.

    Notes
    -----
    It is done as a convolution of a single pixel, since CuPy's matrix products need cuBLAS, which
    cuconv does not install. So it has all dtypes of `cuconv.conv`, and gradients of complex ones are
    conjugated.

    Examples
    --------
    >>> layer = cuconv.nn.Dense(3, 2, dtype="float64")
    >>> layer.parameters["w"] = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 2.0]])
    >>> layer(np.array([[5.0, 6.0, 7.0]]))
    array([[ 5., 26.]])
    >>> layer.backward(np.array([[1.0, 1.0]]))
    array([[1., 2., 2.]])
    """

    def __init__(
        self, inputs: int, outputs: int, *, dtype: Any = np.float32, rng: np.random.Generator | None = None
    ) -> None:
        super().__init__()
        inputs, outputs = integer("inputs", inputs, 0), integer("outputs", outputs, 0)
        self.parameters["w"] = _he_normal((outputs, inputs), inputs, dtype, rng)
        self.parameters["bias"] = np.zeros(outputs, dtype)

    def forward(self, x: Array) -> Array:
        inputs = self.parameters["w"].shape[1]
        owner_of("x", x)
        if x.ndim != 2 or x.shape[1] != inputs:
            raise ValueError(f"x must have shape (N, {inputs}) for this Dense layer, got {x.shape}")
        self.kept = x
        return conv(x[..., None], self.parameters["w"][..., None], self.parameters["bias"])[..., 0]

    def backward(self, dy: Array) -> Array:
        x, w = self.recall(), self.parameters["w"]
        gradients: Any = conv_backward(dy[..., None], x[..., None], w[..., None])
        dx, dw, db = gradients
        self.gradients = {"w": dw[..., 0], "bias": db}
        return dx[..., 0]


class ReLU(Layer):
    """Positive numbers as they are, zero for the others.

    On each element, the slope at 0 being taken as 0::

        y = max(x, 0)

        dx = dy where x > 0, else 0

    Examples
    --------
    >>> layer = cuconv.nn.ReLU()
    >>> layer(np.array([[-1.0, 0.0, 2.0]]))
    array([[0., 0., 2.]])
    >>> layer.backward(np.array([[3.0, 3.0, 3.0]]))
    array([[0., 0., 3.]])
    """

    def forward(self, x: Array) -> Array:
        xp = _namespace(x)
        self.kept = x > 0
        return activations.relu(x, xp)

    def backward(self, dy: Array) -> Array:
        return dy * self.recall()


class Sigmoid(Layer):
    """From all numbers to those between 0 and 1.

    On each element::

        y = 1 / (1 + exp(-x))

        dx = dy y (1 - y)

    Examples
    --------
    >>> layer = cuconv.nn.Sigmoid()
    >>> layer(np.array([[0.0]]))
    array([[0.5]])
    >>> layer.backward(np.array([[4.0]]))
    array([[1.]])
    """

    def forward(self, x: Array) -> Array:
        self.kept = activations.sigmoid(x, _namespace(x))
        return self.kept

    def backward(self, dy: Array) -> Array:
        y = self.recall()
        return dy * y * (1 - y)


class Flatten(Layer):
    """All axes but N as one: from ``(N, ...)`` to ``(N, features)``, and backward.

    Examples
    --------
    >>> layer = cuconv.nn.Flatten()
    >>> y = layer(np.ones((2, 3, 4, 4)))
    >>> y.shape, layer.backward(y).shape
    ((2, 48), (2, 3, 4, 4))
    """

    def forward(self, x: Array) -> Array:
        owner_of("x", x)
        if not x.shape:
            raise ValueError("x must have an axis N, got a single number")
        self.kept = x.shape
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))

    def backward(self, dy: Array) -> Array:
        return dy.reshape(self.recall())


class _Pool(Layer):
    """What the pooling layers share: windows of `kernel` cells, `stride` apart, over a padded input.

    Output extents are floor((H + 2 padding - kernel) / stride) + 1. stride defaults to kernel.
    """

    def fill(self, dtype: Any) -> Any:
        """What the padding holds.

        Parameters
        ----------
        dtype : numpy.dtype
            Of the input.

        Returns
        -------
        fill : int or float
            A number of that dtype.
        """
        raise NotImplementedError

    def __init__(
        self,
        kernel: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        *,
        rank: int | None = None,
        layout: str = "channels_first",
    ) -> None:
        super().__init__()
        self.kernel = _kernel(kernel, rank)
        rank = len(self.kernel)
        self.stride = per_axis("stride", kernel if stride is None else stride, rank, 1)
        self.padding = per_axis("padding", padding, rank, 0)
        if any(2 * pad > taps for pad, taps in zip(self.padding, self.kernel, strict=True)):
            raise ValueError(f"padding must be at most half of kernel {self.kernel}, got {self.padding}")
        first = 2 if checked_layout(layout) == "channels_first" else 1
        self.axes = range(first, first + rank)

    def _padded(self, x: Array) -> Array:
        _check_axes(x, len(self.axes))
        widths = [(0, 0)] * x.ndim
        for axis, pad in zip(self.axes, self.padding, strict=True):
            widths[axis] = (pad, pad)
        self.inside = tuple(slice(before, before + n) for (before, _), n in zip(widths, x.shape, strict=True))
        self.padded_shape = tuple(n + sum(pair) for n, pair in zip(x.shape, widths, strict=True))
        extents = [self.padded_shape[axis] for axis in self.axes]
        if any(extent < taps for extent, taps in zip(extents, self.kernel, strict=True)):
            raise ValueError(f"kernel {self.kernel} is larger than x with its padding, got shape {x.shape}")
        padded = _namespace(x).full(self.padded_shape, self.fill(x.dtype), dtype=x.dtype)
        padded[self.inside] = x
        return padded

    def _windows(self) -> Iterator[tuple[slice, ...]]:
        """For each cell of a window, in order, where it lies for all windows at once."""
        for tap in itertools.product(*map(range, self.kernel)):
            where = [slice(None)] * len(self.padded_shape)
            for axis, offset, taps, step in zip(self.axes, tap, self.kernel, self.stride, strict=True):
                count = (self.padded_shape[axis] - taps) // step + 1
                where[axis] = slice(offset, offset + (count - 1) * step + 1, step)
            yield tuple(where)


class MaxPool(_Pool):
    """The largest cell of each window.

    On each spatial axis, with windows of `kernel` cells, `stride` apart, over an input of H cells::

        y[n, c, p] = max over r of  x[n, c, p stride - padding + r],    0 <= r < kernel

        P = floor((H + 2 padding - kernel) / stride) + 1

    The gradient goes to the first cell of a window that has the largest number. The padding holds the
    least number there is; NaN counts as larger than all.

    Parameters
    ----------
    kernel : int or sequence of int
        The windows' extents: one int per spatial axis, or one for all of them.
    stride : int or sequence of int, optional
        How far windows are apart; `kernel` by default.
    padding : int or sequence of int, default 0
        How many cells are added at both ends, at most half of `kernel`.
    rank : int, optional
        The number of spatial axes; needed where `kernel` is one int for 1 or 3 of them, otherwise 2.
    layout : {"channels_first", "channels_last"}
        Where the axis of the channels is.

    Raises
    ------
    ValueError, TypeError
        For extents that windows cannot have.

    Examples
    --------
    >>> layer = cuconv.nn.MaxPool(2, rank=1)
    >>> layer(np.array([[[1.0, 5.0, 4.0, 3.0]]]))
    array([[[5., 4.]]])
    >>> layer.backward(np.array([[[1.0, 2.0]]]))
    array([[[0., 1., 2., 0.]]])
    """

    def fill(self, dtype: Any) -> Any:
        return np.iinfo(dtype).min if dtype.kind == "i" else -math.inf

    def forward(self, x: Array) -> Array:
        padded = self._padded(x)
        cells = (padded[where] for where in self._windows())
        best = next(cells).copy()
        winner = _namespace(x).zeros(best.shape, np.int32)
        for index, cell in enumerate(cells, start=1):
            better = (cell > best) | (cell != cell)  # NaN wins, as in every reduction
            best[better], winner[better] = cell[better], index
        self.kept = winner
        return best

    def backward(self, dy: Array) -> Array:
        winner = self.recall()
        padded = _namespace(dy).zeros(self.padded_shape, dy.dtype)
        for index, where in enumerate(self._windows()):
            padded[where] += dy * (winner == index)
        return padded[self.inside]


class AvgPool(_Pool):
    """The mean of each window, the padding counted as zeros.

    On each spatial axis, with windows of `kernel` cells, `stride` apart, over an input of H cells::

        y[n, c, p] = sum over r of  x[n, c, p stride - padding + r] / kernel,    0 <= r < kernel

        P = floor((H + 2 padding - kernel) / stride) + 1

    The gradient goes to all cells of a window in equal parts.

    Parameters
    ----------
    kernel : int or sequence of int
        As in `MaxPool`.
    stride, padding, rank, layout : optional
        As in `MaxPool`.

    Raises
    ------
    ValueError, TypeError
        As in `MaxPool`.

    Examples
    --------
    >>> layer = cuconv.nn.AvgPool(2, rank=1)
    >>> layer(np.array([[[1.0, 5.0, 4.0, 3.0]]]))
    array([[[3. , 3.5]]])
    >>> layer.backward(np.array([[[1.0, 2.0]]]))
    array([[[0.5, 0.5, 1. , 1. ]]])
    """

    def fill(self, dtype: Any) -> Any:
        return 0

    def forward(self, x: Array) -> Array:
        padded = self._padded(x)
        cells = (padded[where] for where in self._windows())
        total = next(cells).astype(described(x.dtype.name).accumulator)
        for cell in cells:
            total += cell
        self.kept = x.shape
        return (total / math.prod(self.kernel)).astype(x.dtype, copy=False)

    def backward(self, dy: Array) -> Array:
        self.recall()
        padded = _namespace(dy).zeros(self.padded_shape, dy.dtype)
        share = dy / math.prod(self.kernel)
        for where in self._windows():
            padded[where] += share
        return padded[self.inside]


class SoftmaxCrossEntropy:
    """How unlikely a network's scores make the right labels: the loss for classification.

    With scores of shape (N, classes) and integer labels of shape (N,)::

        loss = mean over n of  -log softmax(scores[n])[labels[n]]

        d_scores = (softmax(scores) - one_hot(labels)) / N

    Examples
    --------
    >>> loss = cuconv.nn.SoftmaxCrossEntropy()
    >>> round(loss.forward(np.zeros((1, 2)), np.array([1])), 4)  # log(2)
    0.6931
    >>> loss.backward()
    array([[ 0.5, -0.5]])
    """

    def forward(self, scores: Array, labels: Array) -> float:
        """The loss.

        Parameters
        ----------
        scores : array
            A network's output, (N, classes).
        labels : array of int
            Of shape (N,), from 0 to classes - 1.

        Returns
        -------
        loss : float
            The mean over the batch.

        Raises
        ------
        ValueError, TypeError
            For shapes, labels that are no classes, and what is no array.
        """
        xp = owner_of("scores", scores).namespace
        owner_of("labels", labels)
        if scores.ndim != 2 or labels.shape != scores.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels must be integers of shape (N,) for scores (N, classes), here {scores.shape}, got "
                f"{labels.dtype} of shape {labels.shape}"
            )
        if labels.size and not 0 <= labels.min() <= labels.max() < scores.shape[1]:
            raise ValueError(
                f"labels must be from 0 to {scores.shape[1] - 1}, got {labels.min()} to {labels.max()}"
            )
        shifted = scores - scores.max(axis=1, keepdims=True)
        log_sum = xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
        self.rows, self.labels = xp.arange(len(labels)), labels
        self.log_probabilities = shifted - log_sum
        return float(-self.log_probabilities[self.rows, labels].mean())

    def backward(self) -> Array:
        """The gradient of the last loss with respect to the scores.

        Returns
        -------
        d_scores : array
            (softmax(scores) - one_hot(labels)) / N.
        """
        gradient = _namespace(self.log_probabilities).exp(self.log_probabilities)
        gradient[self.rows, self.labels] -= 1
        return gradient / len(self.rows)


class SquaredError:
    """The sum, or the mean, over all cells of the squared difference.

    For an output and a target of one shape, with count = 1 for the sum, and the number of cells for the
    mean::

        loss = sum over all cells of  (output - target)^2 / count

        d_output = 2 (output - target) / count

    Parameters
    ----------
    reduction : {"mean", "sum"}
        Which of the two.

    Raises
    ------
    ValueError, TypeError
        For another `reduction`.

    Examples
    --------
    >>> loss = cuconv.nn.SquaredError()
    >>> loss.forward(np.array([1.0, 3.0]), np.array([0.0, 1.0]))
    2.5
    >>> loss.backward()
    array([1., 2.])
    """

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = one_of("reduction", reduction, ("mean", "sum"))

    def forward(self, output: Array, target: Array) -> float:
        """The loss, summed in float64.

        Parameters
        ----------
        output, target : array
            Of one shape.

        Returns
        -------
        loss : float
            The sum or the mean.

        Raises
        ------
        ValueError, TypeError
            For two shapes, and what is no array.
        """
        owner_of("output", output)
        owner_of("target", target)
        if output.shape != target.shape:
            raise ValueError(f"target must have the shape of output, {output.shape}, got {target.shape}")
        self.difference = output - target
        return float((self.difference.astype("float64") ** 2).sum()) / self._count

    def backward(self) -> Array:
        """The gradient of the last loss with respect to the output.

        Returns
        -------
        d_output : array
            2 (output - target), divided by the number of cells for the mean.
        """
        return 2 * self.difference / self._count

    @property
    def _count(self) -> int:
        return max(self.difference.size, 1) if self.reduction == "mean" else 1


class _Optimizer:
    """Changes a network's parameters in place, from its gradients."""

    def __init__(self, network: Layer, rate: float) -> None:
        if not isinstance(network, Layer):
            raise TypeError(f"network must be a layer, such as a Sequential, got {type(network).__name__}")
        self.network, self.rate = network, rate
        self.state: dict[tuple[int, str], Any] = {}

    def step(self) -> None:
        """Apply the gradients of the last backward, in place.

        Raises
        ------
        RuntimeError
            Where the network has parameters and there was no backward.
        """
        layers = list(self.network.layers())
        if any(layer.parameters for layer in layers) and not any(layer.gradients for layer in layers):
            raise RuntimeError("step needs gradients: call the network's backward before it")
        for index, layer in enumerate(layers):
            for name, gradient in layer.gradients.items():
                self._update((index, name), layer.parameters[name], gradient)

    def _update(self, key: tuple[int, str], parameter: Array, gradient: Array) -> None:
        raise NotImplementedError


class SGD(_Optimizer):
    """Gradient descent with momentum.

    Each step changes each parameter in place. g is its gradient; v is zero at first and kept from step
    to step::

        v = momentum v + g

        parameter -= rate v

    Parameters
    ----------
    network : Layer
        What is trained: a layer, such as a `Sequential`.
    rate : float
        How large steps are.
    momentum : float, default 0.0
        How much of a step goes on in the next one: 0 for none, less than 1.

    Raises
    ------
    TypeError
        Where `network` is no layer.

    Examples
    --------
    >>> layer = cuconv.nn.Dense(2, 1, dtype="float64")
    >>> layer.parameters["w"] = np.array([[1.0, 1.0]])
    >>> optimizer = cuconv.nn.SGD(layer, rate=0.5)
    >>> y = layer(np.array([[1.0, 2.0]]))
    >>> dx = layer.backward(np.array([[1.0]]))  # of the loss y.sum()
    >>> optimizer.step()
    >>> layer.parameters["w"]
    array([[0.5, 0. ]])
    """

    def __init__(self, network: Layer, rate: float, momentum: float = 0.0) -> None:
        super().__init__(network, rate)
        self.momentum = momentum

    def _update(self, key: tuple[int, str], parameter: Array, gradient: Array) -> None:
        self.state[key] = self.momentum * self.state.get(key, 0) + gradient
        parameter -= self.rate * self.state[key]


class Adam(_Optimizer):
    """Steps scaled by running means of the gradient and of its square.

    Step t, counted from 1, changes each parameter in place. g is its gradient; m and v are zero at
    first and kept from step to step::

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2

        parameter -= rate (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)

    Parameters
    ----------
    network : Layer
        What is trained: a layer, such as a `Sequential`.
    rate : float, default 0.001
        About how much a step changes a number.
    beta1, beta2 : float, default 0.9 and 0.999
        How much of each mean stays from step to step.
    epsilon : float, default 1e-08
        What keeps the divisor from zero.

    Raises
    ------
    TypeError
        Where `network` is no layer.

    Notes
    -----
    The algorithm is that of [1]_.

    References
    ----------
    .. [1] Kingma and Ba, Adam, 2015.

    Examples
    --------
    >>> layer = cuconv.nn.Dense(2, 1, dtype="float64")
    >>> layer.parameters["w"] = np.array([[1.0, 1.0]])
    >>> optimizer = cuconv.nn.Adam(layer, rate=0.25)
    >>> y = layer(np.array([[1.0, 2.0]]))
    >>> dx = layer.backward(np.array([[1.0]]))  # of the loss y.sum()
    >>> optimizer.step()
    >>> layer.parameters["w"].round(6)
    array([[0.75, 0.75]])
    """

    def __init__(
        self,
        network: Layer,
        rate: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(network, rate)
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon

    def _update(self, key: tuple[int, str], parameter: Array, gradient: Array) -> None:
        mean, square, count = self.state.get(key, (0.0, 0.0, 0))
        count += 1
        mean = self.beta1 * mean + (1 - self.beta1) * gradient
        square = self.beta2 * square + (1 - self.beta2) * gradient**2
        self.state[key] = (mean, square, count)
        # Both means start at zero; dividing takes that bias out.
        scale = (square / (1 - self.beta2**count)) ** 0.5 + self.epsilon
        parameter -= self.rate / (1 - self.beta1**count) * mean / scale


def _kernel(kernel: int | Sequence[int], rank: int | None) -> tuple[int, ...]:
    """The kernel's extents; their number, or else `rank`, or else 2, is that of the spatial axes."""
    if rank is None:
        rank = 2 if is_one(kernel) else len(entries("kernel", kernel))
    if not 1 <= integer("rank", rank) <= 3:
        raise ValueError(f"kernel must have 1 to 3 spatial axes, their number is the rank, got {rank}")
    return per_axis("kernel", kernel, rank, 1)


def _check_axes(x: Array, rank: int) -> None:
    owner_of("x", x)
    if x.ndim != rank + 2:
        raise ValueError(
            f"x must have {rank + 2} axes, N, C and {rank} spatial ones, for a layer of rank {rank}; "
            f"got shape {tuple(x.shape)}"
        )


def _he_normal(shape: Sequence[int], fan_in: int, dtype: Any, rng: np.random.Generator | None) -> np.ndarray:
    dtype_name(dtype)  # raises if it is none
    seed = rng if rng is None or isinstance(rng, np.random.Generator) else integer("rng", rng, 0)
    return (np.random.default_rng(seed).standard_normal(shape) * math.sqrt(2 / max(fan_in, 1))).astype(dtype)
