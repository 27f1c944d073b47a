"""The oracle: convolution and its gradients as plain loops over Python numbers.

Shares no code with cuconv. Every op sums over the same list of terms (output cell, filter tap, input cell),
made axis by axis from the definition. Python floats are float64, Python ints are exact; integer results
are then wrapped to their dtype. Arrays are batched and channels-first; padding is (before, after) pairs.
"""

import itertools
import math

import numpy as np


def seen(mode, position, extent):
    """The input cell seen at a position that may lie outside 0..extent-1, or None."""
    if mode == "zeros":
        return position if 0 <= position < extent else None
    if mode == "replicate":
        return min(max(position, 0), extent - 1)
    while not 0 <= position < extent:
        if mode == "circular":
            position += extent if position < 0 else -extent
        elif extent == 1:
            position = 0
        else:
            position = -position if position < 0 else 2 * (extent - 1) - position
    return position


def axis_terms(extent, taps, stride, dilation, pair, mode):
    """All (output cell, tap, input cell) of one axis, and the number of output cells."""
    found, output = [], 0
    while output * stride + (taps - 1) * dilation < extent + pair[0] + pair[1]:
        for tap in range(taps):
            cell = seen(mode, output * stride + tap * dilation - pair[0], extent)
            if cell is not None:
                found.append((output, tap, cell))
        output += 1
    return found, output


class Reference:
    """The terms of one geometry, ready to be summed for each op."""

    def __init__(self, x_shape, w_shape, stride, dilation, padding, groups, mode="zeros"):
        axes = [
            axis_terms(*arguments, mode)
            for arguments in zip(x_shape[2:], w_shape[2:], stride, dilation, padding, strict=True)
        ]
        self.x_shape, self.w_shape = tuple(x_shape), tuple(w_shape)
        self.y_shape = (x_shape[0], w_shape[0], *(output for _, output in axes))
        self.groups = groups
        self.terms = []
        for combination in itertools.product(*(found for found, _ in axes)):
            outputs, taps, cells = zip(*combination, strict=True)
            self.terms.append(
                tuple(
                    sum(i * math.prod(shape[axis + 1 :]) for axis, i in enumerate(index))
                    for index, shape in (
                        (outputs, self.y_shape[2:]),
                        (taps, self.w_shape[2:]),
                        (cells, self.x_shape[2:]),
                    )
                )
            )

    def _pairs(self):
        """Start offsets (in y, w, x) of every image, output channel and input channel of its group."""
        x, w, y = (math.prod(shape[2:]) for shape in (self.x_shape, self.w_shape, self.y_shape))
        k_per_group, c_per_group = self.w_shape[0] // self.groups, self.w_shape[1]
        for n, k, c in itertools.product(range(self.x_shape[0]), range(self.w_shape[0]), range(c_per_group)):
            channel = k // k_per_group * c_per_group + c
            yield (
                (n * self.w_shape[0] + k) * y,
                (k * c_per_group + c) * w,
                (n * self.x_shape[1] + channel) * x,
            )

    def fprop(self, x, w):
        x, w, total = _list(x), _list(w), [0] * math.prod(self.y_shape)
        for y0, w0, x0 in self._pairs():
            for o, r, i in self.terms:
                total[y0 + o] += x[x0 + i] * w[w0 + r]
        return _array(total, self.y_shape)

    def dgrad(self, dy, w):
        dy, w, total = _list(dy), _list(np.conj(w)), [0] * math.prod(self.x_shape)
        for y0, w0, x0 in self._pairs():
            for o, r, i in self.terms:
                total[x0 + i] += dy[y0 + o] * w[w0 + r]
        return _array(total, self.x_shape)

    def wgrad(self, x, dy):
        x, dy, total = _list(np.conj(x)), _list(dy), [0] * math.prod(self.w_shape)
        for y0, w0, x0 in self._pairs():
            for o, r, i in self.terms:
                total[w0 + r] += dy[y0 + o] * x[x0 + i]
        return _array(total, self.w_shape)

    def bgrad(self, dy):
        total = [0] * self.y_shape[1]
        values, pixels = _list(dy), math.prod(self.y_shape[2:])
        for n, k, o in itertools.product(*map(range, (*self.y_shape[:2], pixels))):
            total[k] += values[(n * self.y_shape[1] + k) * pixels + o]
        return _array(total, (self.y_shape[1],))


def _list(array):
    """The array's elements as Python numbers, in C order."""
    array = np.asarray(array)
    if array.dtype.kind in "iuO":
        return array.ravel().tolist()
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64).ravel().tolist()


def _array(values, shape):
    """An array of Python numbers: exact ints stay objects until `wrapped` cuts them to their dtype."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape)


def activated(values, name):
    """An activation of an array of Python numbers, from the functions of the C library."""
    functions = {
        None: lambda v: v,
        "relu": lambda v: max(v, 0),
        "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
        "tanh": math.tanh,
        "silu": lambda v: v / (1 + math.exp(-v)),
        "gelu": lambda v: v / 2 * math.erfc(-v / math.sqrt(2)),
    }
    return np.vectorize(functions[name], otypes=[object])(values) if values.size else values


def wrapped(values, dtype):
    """Exact Python ints as an integer dtype, modulo 2**bits; other numbers as float64 or complex128."""
    dtype = np.dtype(dtype)
    if dtype.kind == "i":
        modulus = 1 << (8 * dtype.itemsize)
        half = modulus // 2
        flat = [(int(v) + half) % modulus - half for v in values.ravel()]
        return np.array(flat, dtype=dtype).reshape(values.shape)
    return values.astype(np.complex128 if dtype.kind == "c" else np.float64)
