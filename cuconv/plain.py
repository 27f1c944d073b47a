"""Plain n-D arrays, without batch and channels, as calls of `conv` and its gradients.

What `signal` and `ndimage` share: arrays and numbers in, as SciPy takes them; the correlation along any
number of axes; results in another dtype, converted as C does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from numbers import Number
from typing import Any

import numpy as np

from .api import conv, conv_input_grad, conv_weight_grad
from .arrays import OWNERS, Array, Owner, owner_of_all, view_of
from .dtypes import holds
from .options import entries, flag, held_by_float64, integer, integers, is_one, shown

Shape = tuple[int, ...]

SUPPORTED = (
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)

_SUPPORTED = {(np.dtype(name).kind, np.dtype(name).itemsize) for name in SUPPORTED}


def supported(dtype: np.dtype) -> bool:
    """Whether a dtype is one of `SUPPORTED`, in any byte order."""
    return (dtype.kind, dtype.itemsize) in _SUPPORTED


def adopted(**arguments: Any) -> tuple[Owner, dict[str, Array]]:
    """Who owns a call's arrays, and these by the caller's names, as the backend computes with them.

    Numbers, lists and tuples become arrays of the others' kind, of NumPy's where there are no others.
    Raises TypeError for arrays of several kinds, and for dtypes that are not `SUPPORTED`.
    """
    given = {
        name: value
        for name, value in arguments.items()
        if not isinstance(value, (list, tuple, Number, np.generic))
    }
    owner = owner_of_all(given) if given else OWNERS[np.ndarray]
    views = {
        name: view_of(name, value, owner) if name in given else owner.namespace.asarray(value)
        for name, value in arguments.items()
    }
    for name, view in views.items():
        if not supported(view.dtype):
            raise TypeError(f"{name} must have dtype {', '.join(SUPPORTED)}, got {view.dtype}")
    return owner, views


def axes_of(argument: str, value: Any, rank: int) -> tuple[int, ...]:
    """One axis or several, counted from the front; ValueError unless all are there, and each once."""
    axes = (integer(argument, value),) if is_one(value) else integers(argument, value)
    for axis in axes:
        if not -rank <= axis < rank:
            raise ValueError(f"{argument} must be among the {rank} axes of the array, got {shown(value)}")
    axes = tuple(axis % rank for axis in axes)
    if len(set(axes)) < len(axes):
        raise ValueError(f"{argument} must name each axis once, got {shown(value)}")
    return axes


def number(argument: str, value: Any) -> Any:
    """A number as one of Python's."""
    if isinstance(value, (np.generic, np.ndarray)) and value.shape == ():
        value = value.item()
    if not isinstance(value, (int, float, complex)):
        raise TypeError(f"{argument} must be a number, got {shown(value)}")
    held_by_float64(argument, value)
    return value


def turned(array: Array, axes: Sequence[int]) -> Array:
    """The array reversed along some axes."""
    steps = (slice(None, None, -1 if axis in axes else 1) for axis in range(array.ndim))
    return array[(*steps, ...)]


def two_needs(needs: Any, of: dict[str, Array]) -> list[bool]:
    """Which gradients of two operands are wanted; TypeError where one of integers is."""
    if is_one(needs) or len(entries("needs", needs)) != 2:
        names = " and ".join(f"d_{name}" for name in of)
        raise ValueError(f"needs must have two entries, for {names}, got {shown(needs)}")
    wanted = [flag("needs", need) for need in needs]
    for need, (name, array) in zip(wanted, of.items(), strict=True):
        if need and array.dtype.kind not in "fc":
            others = tuple(other != name for other in of)
            raise TypeError(
                f"{name} must be of floats or complex numbers to have a gradient, got {array.dtype}; "
                f"needs={others} leaves it out"
            )
    return wanted


def check_dy(dy: Array, shape: Shape, complex_result: bool) -> None:
    """Raise unless dy can be the gradient of a result of that shape."""
    if dy.shape != shape:
        raise ValueError(f"dy must have the shape of the result, {shape}, got {dy.shape}")
    if dy.dtype.kind not in ("fc" if complex_result else "f"):
        kinds = "floats or complex numbers" if complex_result else "floats, as the result is"
        raise TypeError(f"dy must be of {kinds}, got {dy.dtype}")


def converted(array: Array, dtype: np.dtype) -> Array:
    """The array in a dtype and in C order; floats are cut off towards zero and wrap around in integers."""
    if dtype.kind in "iu" and array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # NaN has no integer; SciPy says nothing either
            if dtype.itemsize < 8 or dtype.kind == "i":
                array = array.astype(np.int64)
            else:  # of whose range int64 has half
                above = array >= 2.0**63
                half = (array - above * 2.0**63).astype(np.int64)
                array = half.astype(np.uint64) + above.astype(np.uint64) * np.uint64(1 << 63)
    return array.astype(dtype, order="C", copy=False)


def gradient_of(operand: Array, gradient: Array) -> Array:
    """A gradient in the dtype of its operand: of a real one the real part, as it moves along that only."""
    real = operand.dtype.kind == "f" and gradient.dtype.kind == "c"
    return converted(gradient.real if real else gradient, operand.dtype)


class Correlation:
    """The correlation of an n-D x with an n-D w, and its gradients, as calls of `conv`.

    On an axis with the padding (a, b), x of extent H and w of extent R,

        y[p] = sum over r of  x[p - a + r] w[r],    P = H + a + b - R + 1

    On an axis whose padding is None x and w are broadcast, as NumPy does. What only x has cells of there are
    the images of a batch; what only w has, filters; what both have, groups. Where more than three axes are
    convolved, the first ones are summed tap by tap, each a call that accumulates.

    x, w and dy may have any `SUPPORTED` dtype; sums and results are of `dtype`, and modulo its range where it
    is int32 or int64. With padding_mode "zeros" the cells outside hold `fill`.
    """

    def __init__(
        self,
        xp: Any,
        dtype: np.dtype,
        x_shape: Shape,
        w_shape: Shape,
        padding: Sequence[tuple[int, int] | None],
        padding_mode: str = "zeros",
        fill: Any = 0,
        algorithm: str = "auto",
    ) -> None:
        self._rim: list[tuple[int, int]] = []
        if padding_mode == "zeros" and fill != 0:
            self._rim = [pair or (0, 0) for pair in padding]
            x_shape = tuple(h + sum(pair) for h, pair in zip(x_shape, self._rim, strict=True))
            padding = [pair and (0, 0) for pair in padding]
        y_shape: list[int] = []
        convolved: list[int] = []
        images: list[int] = []
        groups: list[int] = []
        filters: list[int] = []
        for axis, (h, r, pair) in enumerate(zip(x_shape, w_shape, padding, strict=True)):
            if pair is None or (r == 1 and pair == (0, 0)):
                y_shape.append(h if r == 1 else r)
                (images if r == 1 else filters if h == 1 else groups).append(axis)
            else:
                y_shape.append(h + sum(pair) - r + 1)
                convolved.append(axis)
        summed, spatial = convolved[:-3], convolved[-3:]
        # Neighbouring cells stay neighbours: axes behind the last spatial one are another, with one tap.
        last = max(spatial, default=-1)
        tail = [axis for axis in images if axis > last] if len(spatial) < 3 else []
        joined = [summed + [axis for axis in images if axis not in tail], groups + filters]
        joined += [[axis] for axis in spatial] + ([tail] if tail or not spatial else [])

        self.y_shape = tuple(y_shape)
        self._xp, self._dtype, self._fill, self._x_shape, self._w_shape = xp, dtype, fill, x_shape, w_shape
        self._summed, self._joined = summed, joined
        self._order = [axis for axes in joined for axis in axes]
        self._options: dict[str, Any] = dict(
            padding=[padding[axes[0]] if axes and axes[0] in spatial else (0, 0) for axes in joined[2:]],
            padding_mode=padding_mode,
            groups=math.prod(x_shape[axis] for axis in groups),
            algorithm=algorithm,
        )
        self._border: Correlation | None = None
        if summed:  # an axis is padded where it is correlated with one tap, which is 1
            pairs = [pair if axis in summed else None for axis, pair in enumerate(padding)]
            self._one = xp.ones((1,) * len(x_shape), dtype)
            self._border = Correlation(xp, dtype, x_shape, self._one.shape, pairs, padding_mode)

    def forward(self, x: Array, w: Array) -> Array:
        """y, of the shape `y_shape`."""
        if 0 in self.y_shape:
            return self._xp.zeros(self.y_shape, self._dtype)
        x, w = self._padded(x), self._taken(w)
        out_dtype = self._dtype.name if self._dtype.kind == "i" else None
        y = None
        for of_x, of_w in self._parts():
            images, filters = self._volume(x[of_x]), self._filters(w[of_w])
            y = conv(images, filters, out=y, out_dtype=out_dtype, accumulate=y is not None, **self._options)
        return self._plain(y, self.y_shape)

    def input_grad(self, dy: Array, w: Array) -> Array:
        """The gradient with respect to x, given dy, that of y."""
        dy, w = self._volume(self._taken(dy)), self._taken(w)
        if 0 in self.y_shape:
            dx = self._xp.zeros(self._x_shape, self._dtype)
        elif self._border is None:
            dx = self._part_of_input_grad(dy, w, self._x_shape)
        else:
            padded = self._xp.zeros(self._border.y_shape, self._dtype)
            for of_x, of_w in self._parts():
                place = padded[of_x]
                place += self._part_of_input_grad(dy, w[of_w], place.shape)
            dx = self._border.input_grad(padded, self._one)
        if self._rim:
            dx = dx[tuple(slice(a, h - b) for (a, b), h in zip(self._rim, dx.shape, strict=True))]
        return dx

    def _part_of_input_grad(self, dy: Array, w: Array, shape: Shape) -> Array:
        part = conv_input_grad(dy, self._filters(w), self._volume_shape(shape), **self._options)
        return self._plain(part, shape)

    def weight_grad(self, x: Array, dy: Array) -> Array:
        """The gradient with respect to w, given dy, that of y."""
        if 0 in self.y_shape:
            return self._xp.zeros(self._w_shape, self._dtype)
        x, dy = self._padded(x), self._volume(self._taken(dy))
        dw = self._xp.empty(self._w_shape, self._dtype)
        for of_x, of_w in self._parts():
            place = dw[of_w]
            one, k, *taps = self._volume_shape(place.shape)
            part = conv_weight_grad(self._volume(x[of_x]), dy, (k, one, *taps), **self._options)
            place[...] = self._plain(part.swapaxes(0, 1), place.shape)
        return dw

    def _taken(self, array: Array) -> Array:
        """An operand as `conv` takes it."""
        if self._dtype.kind != "i":
            return array.astype(self._dtype, copy=False)
        if array.dtype.kind == "b":
            return array.view(np.uint8)
        known = array.dtype.isnative and holds(self._dtype.name, array.dtype.name)
        return array if known else array.astype(self._dtype)

    def _padded(self, x: Array) -> Array:
        """x, with the cells outside that `conv` does not pad by itself."""
        if self._rim:
            x = self._xp.pad(x.astype(self._dtype, copy=False), self._rim, constant_values=self._fill)
        x = self._taken(x)
        return x if self._border is None else self._border.forward(x, self._one)

    def _parts(self) -> Iterator[tuple[Any, Any]]:
        """For each tap on the summed axes: the cells of the padded x that it meets, and itself."""
        every = [slice(None)] * len(self._x_shape)
        for taps in np.ndindex(*(self._w_shape[axis] for axis in self._summed)):
            of_x, of_w = every.copy(), every.copy()
            for axis, tap in zip(self._summed, taps, strict=True):
                of_x[axis] = slice(tap, tap + self.y_shape[axis])
                of_w[axis] = slice(tap, tap + 1)
            yield (*of_x, ...), (*of_w, ...)  # with the dots a view also where there are no axes

    def _volume_shape(self, shape: Shape) -> Shape:
        """(N, C, *spatial) of x or y, from their extents; of w (1, K, *spatial)."""
        return tuple(math.prod(shape[axis] for axis in axes) for axes in self._joined)

    def _volume(self, array: Array) -> Array:
        return array.transpose(self._order).reshape(self._volume_shape(array.shape))

    def _filters(self, w: Array) -> Array:
        return self._volume(w).swapaxes(0, 1)

    def _plain(self, volume: Array, shape: Shape) -> Array:
        """The inverse of `_volume`."""
        apart = volume.reshape([shape[axis] for axis in self._order])
        return apart.transpose(np.argsort(self._order).tolist())
