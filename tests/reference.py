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
    inward = {
        "circular": lambda i: i + extent if i < 0 else i - extent,
        "reflect": lambda i: 0 if extent == 1 else -i if i < 0 else 2 * (extent - 1) - i,
        "replicate": lambda i: min(max(i, 0), extent - 1),
        "symmetric": lambda i: -1 - i if i < 0 else 2 * extent - 1 - i,
    }[mode]
    while not 0 <= position < extent:
        position = inward(position)
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


class ZerosMultiplied:
    """The three ops, in NumPy's numbers, with the zeros that surround x and dy multiplied like cells.

    It shows what infinities do: zero times infinity is not a number. dy is continued by zeros for ever, and
    a tap that the stride steps over at a cell of dx meets none of them.
    """

    def __init__(self, x_shape, w_shape, stride, dilation, padding, groups):
        self.x_shape, self.w_shape, self.groups = x_shape, w_shape, groups
        self.outer = (*x_shape[:1], w_shape[0])
        axes = zip(x_shape[2:], w_shape[2:], stride, dilation, padding, strict=True)
        self.axes = [(h, r, s, d, a, (h + a + b - d * (r - 1) - 1) // s + 1) for h, r, s, d, (a, b) in axes]

    def fprop(self, x, w):
        y = np.zeros((*self.outer, *(axis[-1] for axis in self.axes)), x.dtype)
        for tap, k, c in self._products():
            y[:, k] += self._x_at(x[:, c], tap) * w[(k, c % w.shape[1], *tap)]
        return y

    def wgrad(self, x, dy):
        dw = np.zeros(self.w_shape, x.dtype)
        for tap, k, c in self._products():
            dw[(k, c % dw.shape[1], *tap)] = (dy[:, k] * self._x_at(x[:, c], tap).conj()).sum()
        return dw

    def dgrad(self, dy, w):
        dx = np.zeros(self.x_shape, dy.dtype)
        for tap, k, c in self._products():
            cells, outputs = [], []
            for (h, _, s, d, a, _), r in zip(self.axes, tap, strict=True):
                cells.append([i for i in range(h) if (i + a - r * d) % s == 0])
                outputs.append([(i + a - r * d) // s for i in cells[-1]])
            product = _or_zero(dy[:, k], outputs) * w[(k, c % w.shape[1], *tap)].conj()
            for cell, image in itertools.product(np.ndindex(product.shape[1:]), range(len(dy))):
                place = tuple(axis[i] for axis, i in zip(cells, cell, strict=True))
                dx[(image, c, *place)] += product[(image, *cell)]
        return dx

    def _products(self):
        """Every tap, with every filter and channel of x that it joins."""
        k_per_group, c_per_group = self.w_shape[0] // self.groups, self.w_shape[1]
        for tap, k, c in itertools.product(
            np.ndindex(self.w_shape[2:]), range(self.w_shape[0]), range(c_per_group)
        ):
            yield tap, k, k // k_per_group * c_per_group + c

    def _x_at(self, x, tap):
        """What every output cell sees of a channel through a tap."""
        places = [
            [o * s - a + r * d for o in range(output)]
            for (_, _, s, d, a, output), r in zip(self.axes, tap, strict=True)
        ]
        return _or_zero(x, places)


def _or_zero(images, places):
    """images[:, places of each axis], zero where a place is not in it."""
    found = np.zeros((len(images), *map(len, places)), images.dtype)
    for index in np.ndindex(found.shape[1:]):
        place = tuple(axis[i] for axis, i in zip(places, index, strict=True))
        if all(0 <= i < extent for i, extent in zip(place, images.shape[1:], strict=True)):
            found[(slice(None), *index)] = images[(slice(None), *place)]
    return found


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
        "sigmoid": lambda v: 1 / (1 + math.exp(min(-v, 700))),
        "tanh": math.tanh,
        "silu": lambda v: v / (1 + math.exp(min(-v, 700))),
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
