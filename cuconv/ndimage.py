"""The linear filters of scipy.ndimage, by its names, on NumPy and CuPy arrays, with their gradients.

`X_grad` takes dy, the gradient of what `X` returns, then the arguments of `X` without its output; filters
with weights of their own are linear maps of the input alone, and theirs take dy in its place. The interfaces
are those of SciPy 1.17 and of cupyx.scipy.ndimage; SciPy is not imported.

Where SciPy computes in double precision and rounds at the end, floats here are summed in the common dtype of
input and output: float32 for an image of float32, float64 where output=numpy.float64 asks for it. Integers
with integer weights give exact integers, modulo the range of the output; with weights of floats they are
summed in float64, cut off towards zero and wrapped around, as in SciPy.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .arrays import Array, given_back, owner_of
from .options import entries, integer, is_one, one_of, shown
from .plain import (
    SUPPORTED,
    Correlation,
    Shape,
    adopted,
    axes_of,
    check_dy,
    converted,
    gradient_of,
    number,
    supported,
    turned,
    two_needs,
)

__all__ = [
    "convolve",
    "convolve1d",
    "convolve1d_grad",
    "convolve_grad",
    "correlate",
    "correlate1d",
    "correlate1d_grad",
    "correlate_grad",
    "gaussian_filter",
    "gaussian_filter_grad",
    "laplace",
    "laplace_grad",
    "sobel",
    "sobel_grad",
]

Gradients = tuple[Array | None, Array | None]

_ROUNDING = 2.0**-28
"""Before a sum is cut off to an integer it is made larger by this: one that is an integer but for its
rounding, as all are where a blur meets a plain area, is not to lose 1.
"""

_MODES = {
    "reflect": "symmetric",
    "grid-mirror": "symmetric",
    "constant": "zeros",
    "grid-constant": "zeros",
    "nearest": "replicate",
    "mirror": "reflect",
    "wrap": "circular",
    "grid-wrap": "circular",
}
"""SciPy's words, and the padding modes of `conv`."""


def correlate(
    input: Any,
    weights: Any,
    output: Any = None,
    mode: str = "reflect",
    cval: complex = 0.0,
    origin: int | Sequence[int] = 0,
    *,
    axes: int | Sequence[int] | None = None,
) -> Array:
    """Correlate an n-D array with weights, to an array of the same shape.

        y[p] = sum over r of  input[p - R // 2 - origin + r] conj(weights[r])

    weights  an array with an axis for each of axes, of extent R
    output   None for the dtype of the input (the complex one to it where weights are complex), a dtype, or an
             array to write to, which may be the input
    mode     what lies outside: "reflect" or "grid-mirror", the mirror image that repeats the outermost cell;
             "mirror", the one that does not; "nearest", the outermost cell; "wrap" or "grid-wrap", the other
             end; "constant" or "grid-constant", cval
    origin   how many cells the filter is shifted by, one number or one for each of axes: from -(R // 2) to
             (R - 1) // 2
    axes     which to filter, all by default
    returns  y, or the array given as output

    Any number of axes. Arrays are of NumPy, CuPy or a library with DLPack; numbers and lists become arrays.
    Raises ValueError for shapes and values, TypeError for dtypes and kinds of array, before any work. Source:
    `scipy.ndimage.correlate`.
    """
    return _filtered(False, input, weights, output, mode, cval, origin, axes)


def correlate_grad(
    dy: Any,
    input: Any,
    weights: Any,
    mode: str = "reflect",
    cval: complex = 0.0,
    origin: int | Sequence[int] = 0,
    *,
    axes: int | Sequence[int] | None = None,
    needs: Sequence[bool] = (True, True),
) -> Gradients:
    """The gradients of `correlate` with respect to input and weights, given dy, the gradient of its result.

    It is the adjoint map: <dy, correlate(input, weights)> = <d_input, input> = <d_weights, weights> where
    cval is 0, of real parts where one of input and weights is real.

    needs    which of the two to compute; the other is None. Integers have no gradient
    returns  (d_input, d_weights), of the shapes and dtypes of input and weights; summed in the common dtype
             of dy and input
    """
    return _gradients(False, dy, input, weights, mode, cval, origin, axes, needs)


def convolve(
    input: Any,
    weights: Any,
    output: Any = None,
    mode: str = "reflect",
    cval: complex = 0.0,
    origin: int | Sequence[int] = 0,
    *,
    axes: int | Sequence[int] | None = None,
) -> Array:
    """Convolve an n-D array with weights, to an array of the same shape.

        y[p] = sum over r of  input[p + R // 2 + origin - r] weights[r]

    Arguments, result and errors are those of `correlate`. Source: `scipy.ndimage.convolve`.
    """
    return _filtered(True, input, weights, output, mode, cval, origin, axes)


def convolve_grad(
    dy: Any,
    input: Any,
    weights: Any,
    mode: str = "reflect",
    cval: complex = 0.0,
    origin: int | Sequence[int] = 0,
    *,
    axes: int | Sequence[int] | None = None,
    needs: Sequence[bool] = (True, True),
) -> Gradients:
    """The gradients of `convolve` with respect to input and weights, given dy: see `correlate_grad`."""
    return _gradients(True, dy, input, weights, mode, cval, origin, axes, needs)


def correlate1d(
    input: Any,
    weights: Any,
    axis: int = -1,
    output: Any = None,
    mode: str = "reflect",
    cval: complex = 0.0,
    origin: int = 0,
) -> Array:
    """`correlate` along one axis, with weights of one axis. Source: `scipy.ndimage.correlate1d`."""
    return _filtered(False, input, weights, output, mode, cval, origin, (axis,), "axis")


def correlate1d_grad(
    dy: Any,
    input: Any,
    weights: Any,
    axis: int = -1,
    mode: str = "reflect",
    cval: complex = 0.0,
    origin: int = 0,
    *,
    needs: Sequence[bool] = (True, True),
) -> Gradients:
    """The gradients of `correlate1d` with respect to input and weights, given dy: see `correlate_grad`."""
    return _gradients(False, dy, input, weights, mode, cval, origin, (axis,), needs, "axis")


def convolve1d(
    input: Any,
    weights: Any,
    axis: int = -1,
    output: Any = None,
    mode: str = "reflect",
    cval: complex = 0.0,
    origin: int = 0,
) -> Array:
    """`convolve` along one axis, with weights of one axis. Source: `scipy.ndimage.convolve1d`."""
    return _filtered(True, input, weights, output, mode, cval, origin, (axis,), "axis")


def convolve1d_grad(
    dy: Any,
    input: Any,
    weights: Any,
    axis: int = -1,
    mode: str = "reflect",
    cval: complex = 0.0,
    origin: int = 0,
    *,
    needs: Sequence[bool] = (True, True),
) -> Gradients:
    """The gradients of `convolve1d` with respect to input and weights, given dy: see `correlate_grad`."""
    return _gradients(True, dy, input, weights, mode, cval, origin, (axis,), needs, "axis")


def gaussian_filter(
    input: Any,
    sigma: float | Sequence[float],
    order: int | Sequence[int] = 0,
    output: Any = None,
    mode: str | Sequence[str] = "reflect",
    cval: complex = 0.0,
    truncate: float = 4.0,
    *,
    radius: int | Sequence[int] | None = None,
    axes: int | Sequence[int] | None = None,
) -> Array:
    """Convolve an n-D array with a Gaussian, or a derivative of it, one axis after the other.

        g[t] = exp(-t^2 / (2 sigma^2)) / sum of these,    |t| <= radius
        w[t] = (-1 / sigma)^order He_order(t / sigma) g[t]

    with the Hermite polynomials He: the derivatives of the Gaussian, once it is normalised.

    sigma     the standard deviation in cells; an axis where it is 0 is left as it is
    order     which derivative
    truncate  the radius in standard deviations, rounded to cells, where `radius` does not give it in cells
    axes      which to filter, all by default; sigma, order, mode and radius are one value or one for each

    Between two axes the array has the dtype of the output, as in SciPy. Output, mode, cval, result and errors
    are those of `correlate`. Source: `scipy.ndimage.gaussian_filter`.
    """
    call = _Call(output, input=input)
    lines = _gaussians(call.first.ndim, sigma, order, mode, truncate, radius, axes)
    return call.finish(_through(call, lines, cval))


def gaussian_filter_grad(
    dy: Any,
    sigma: float | Sequence[float],
    order: int | Sequence[int] = 0,
    mode: str | Sequence[str] = "reflect",
    cval: complex = 0.0,
    truncate: float = 4.0,
    *,
    radius: int | Sequence[int] | None = None,
    axes: int | Sequence[int] | None = None,
) -> Array:
    """The gradient of `gaussian_filter` with respect to its input, given dy, that of its result.

    It is the adjoint map: <dy, gaussian_filter(input)> = <d_input, input> where cval is 0, which plays no
    part in it. dy is of floats or complex numbers; d_input has its shape and dtype.
    """
    call = _Call(None, dy=dy)
    lines = _gaussians(call.first.ndim, sigma, order, mode, truncate, radius, axes)
    return call.finish(_back_through(call, lines, cval))


def sobel(
    input: Any, axis: int = -1, output: Any = None, mode: str | Sequence[str] = "reflect", cval: complex = 0.0
) -> Array:
    """Sobel's edge filter: the difference [-1, 0, 1] along an axis, smoothed by [1, 2, 1] along all others.

    mode is one, or one for each axis. Between two axes the array has the dtype of the output, as in SciPy.
    Output, mode, cval, result and errors are those of `correlate`. Source: `scipy.ndimage.sobel`.
    """
    call = _Call(output, input=input)
    return call.finish(_through(call, _sobels(call.first.ndim, axis, mode), cval))


def sobel_grad(dy: Any, axis: int = -1, mode: str | Sequence[str] = "reflect", cval: complex = 0.0) -> Array:
    """The gradient of `sobel` with respect to its input, given dy: see `gaussian_filter_grad`."""
    call = _Call(None, dy=dy)
    return call.finish(_back_through(call, _sobels(call.first.ndim, axis, mode), cval))


def laplace(
    input: Any,
    output: Any = None,
    mode: str | Sequence[str] = "reflect",
    cval: complex = 0.0,
    *,
    axes: int | Sequence[int] | None = None,
) -> Array:
    """The sum of the second differences [1, -2, 1] along the axes, all by default.

    mode is one, or one for each of axes. Output, mode, cval, result and errors are those of `correlate`.
    Source: `scipy.ndimage.laplace`.
    """
    call = _Call(output, input=input)
    lines = _laplaces(call.first.ndim, mode, axes)
    return call.finish(_sum(_through(call, ways, cval) for ways in lines))


def laplace_grad(
    dy: Any,
    mode: str | Sequence[str] = "reflect",
    cval: complex = 0.0,
    *,
    axes: int | Sequence[int] | None = None,
) -> Array:
    """The gradient of `laplace` with respect to its input, given dy: see `gaussian_filter_grad`."""
    call = _Call(None, dy=dy)
    lines = _laplaces(call.first.ndim, mode, axes)
    return call.finish(_sum(_back_through(call, ways, cval) for ways in lines))


class _Call:
    """A call's arrays, checked, the first of them, and the dtype of the result."""

    def __init__(self, output: Any = None, **arguments: Any) -> None:
        self.output = None if output is None or isinstance(output, (str, type, np.dtype)) else output
        if self.output is not None:
            owner_of("output", output)  # which a list has not: it could not be written to
            arguments["output"] = output
        self.owner, self.given = adopted(**arguments)
        self.xp = self.owner.namespace
        self.place = self.given.pop("output", None)
        self.first = next(iter(self.given.values()))
        if "dy" in self.given:
            check_dy(self.first, self.first.shape, complex_result=True)
        is_complex = any(array.dtype.kind == "c" for array in self.given.values())
        if self.place is not None:
            self.dtype = self.place.dtype
        elif output is not None:
            try:
                self.dtype = np.dtype(output)
            except TypeError:
                raise TypeError(f"output must be an array or a dtype, got {shown(output)}") from None
        else:
            least = np.dtype(np.complex64) if is_complex else self.first.dtype
            self.dtype = np.result_type(self.first.dtype, least)  # in native byte order
        if not supported(self.dtype) or self.dtype.kind == "b":
            came = "that of the input, bool" if output is None else self.dtype
            raise TypeError(f"output must have dtype {', '.join(SUPPORTED[1:])}, got {came}")
        if is_complex and self.dtype.kind != "c":
            raise TypeError(
                f"output must have a complex dtype, as {' or '.join(self.given)} has, got {self.dtype}"
            )
        if self.place is not None:
            if self.place.shape != self.first.shape:
                raise ValueError(
                    f"output must have the shape of input, {self.first.shape}, got {self.place.shape}"
                )
            if not self.owner.on_gpu and not self.place.flags.writeable:
                raise ValueError("output must be writable, got a read-only array")

    def finish(self, result: Array) -> Array:
        """The result in the caller's library, or in the caller's array."""
        if self.place is None:
            return given_back(result, self.owner)
        self.place[...] = result
        return given_back(self.place, self.owner, self.output)


# -- filters whose weights are given -------------------------------------------------------------------


def _filtered(
    convolution: bool, input: Any, weights: Any, output: Any, mode: Any, cval: Any, origin: Any, axes: Any,
    named: str = "axes",
) -> Array:  # fmt: skip
    """What the function returns; `named` is what the caller calls the axes."""
    call = _Call(output, input=input, weights=weights)
    w, before = _placed(convolution, call.given["weights"], call.first.ndim, origin, axes, named)
    return call.finish(_correlated(call, call.first, w, before, mode, cval))


def _gradients(
    convolution: bool, dy: Any, input: Any, weights: Any, mode: Any, cval: Any, origin: Any, axes: Any,
    needs: Any, named: str = "axes",
) -> Gradients:  # fmt: skip
    """What its gradient returns."""
    owner, given = adopted(dy=dy, input=input, weights=weights)
    dy = given.pop("dy")
    x, weights = given.values()
    is_complex = "c" in (x.dtype.kind, weights.dtype.kind)
    check_dy(dy, x.shape, is_complex)
    of_input, of_weights = two_needs(needs, given)
    w, before = _placed(convolution, weights, x.ndim, origin, axes, named)
    dtype = np.result_type(dy.dtype, x.dtype, np.complex64 if is_complex else dy.dtype)
    outside = _outside(mode, cval, x.dtype, dtype)
    correlation = _correlation(owner.namespace, dtype, x.shape, w.shape, before, mode, outside)
    d_input = d_weights = None
    if of_input:
        d_input = given_back(gradient_of(x, correlation.input_grad(dy, w)), owner)
    if of_weights:
        d_w = correlation.weight_grad(x, dy)
        d_weights = gradient_of(weights, _taken(convolution, d_w.reshape(weights.shape)))
        d_weights = given_back(d_weights, owner)
    return d_input, d_weights


def _placed(
    convolution: bool, weights: Array, rank: int, origin: Any, axes: Any, named: str
) -> tuple[Array, list[int]]:
    """The weights as `Correlation` takes them, with as many axes as the input, and the padding before it."""
    axes = tuple(range(rank)) if axes is None else axes_of(named, axes, rank)
    if weights.ndim != len(axes) or 0 in weights.shape:
        raise ValueError(
            f"weights must have {len(axes)} axes, as many as are filtered, none of them empty, got shape "
            f"{weights.shape}"
        )
    extents, before = [1] * rank, [0] * rank
    for axis, taps in zip(sorted(axes), weights.shape, strict=True):
        extents[axis] = taps
    for axis, shift in zip(axes, _each("origin", origin, len(axes)), strict=True):
        taps, shift = extents[axis], integer("origin", shift)
        least, most = -(taps // 2), (taps - 1) // 2
        if not least <= shift <= most:
            raise ValueError(f"origin must be from {least} to {most} for {taps} weights, got {shown(origin)}")
        before[axis] = taps - 1 - taps // 2 - shift if convolution else taps // 2 + shift
    return _taken(convolution, weights).reshape(extents), before


def _taken(convolution: bool, weights: Array) -> Array:
    """What a convolution or a correlation multiplies with; likewise its gradient for that of the weights."""
    return turned(weights, range(weights.ndim)) if convolution else weights.conj()[...]


# -- filters of one line after the other -----------------------------------------------------------------

Line = tuple[int, Any, str]
"""An axis, the weights, an odd number, that it is correlated with, and SciPy's mode."""


def _gaussians(
    rank: int, sigma: Any, order: Any, mode: Any, truncate: Any, radius: Any, axes: Any
) -> list[Line]:
    axes = tuple(range(rank)) if axes is None else axes_of("axes", axes, rank)
    lines: list[Line] = []
    widths, orders, radii = (
        _each(name, values, len(axes))
        for name, values in (("sigma", sigma), ("order", order), ("radius", radius))
    )
    modes = _modes(mode, len(axes))
    for axis, width, derivative, reach, of_axis in zip(axes, widths, orders, radii, modes, strict=True):
        width = _not_negative("sigma", width)
        derivative = integer("order", derivative, 0)
        reach = int(_not_negative("truncate", truncate) * width + 0.5) if reach is None else reach
        reach = integer("radius", reach, 0)
        if width > 1e-15:  # SciPy's own bound
            lines.append((axis, _gaussian(width, derivative, reach)[::-1], of_axis))
    return lines


def _gaussian(sigma: float, order: int, radius: int) -> np.ndarray:
    """The weights w[t] of `gaussian_filter`, t from -radius to radius."""
    t = np.arange(-radius, radius + 1) / sigma
    g = np.exp(-0.5 * t**2)
    hermite = np.polynomial.hermite_e.hermeval(t, [0] * order + [1])
    return (-1 / sigma) ** order * hermite * (g / g.sum())


def _sobels(rank: int, axis: Any, mode: Any) -> list[Line]:
    (along,) = axes_of("axis", (axis,), rank)
    modes = _modes(mode, rank)
    across = [(each, [1, 2, 1], modes[each]) for each in range(rank) if each != along]
    return [(along, [-1, 0, 1], modes[along]), *across]


def _laplaces(rank: int, mode: Any, axes: Any) -> list[list[Line]]:
    """The lines of which each is a summand; without any axis the input is the only one."""
    axes = tuple(range(rank)) if axes is None else axes_of("axes", axes, rank)
    modes = _modes(mode, len(axes))
    return [[(axis, [1, -2, 1], mode)] for axis, mode in zip(axes, modes, strict=True)] or [[]]


def _through(call: _Call, lines: list[Line], cval: Any) -> Array:
    """The call's array, after each of the lines in the dtype of the result."""
    x = call.first
    for axis, taps, mode in lines:
        w, before = _line(call, axis, taps)
        x = _correlated(call, x, w, before, mode, cval)
    return x if lines else converted(x, call.dtype).copy()


def _back_through(call: _Call, lines: list[Line], cval: Any) -> Array:
    """The adjoint map."""
    dy = call.first
    for axis, taps, mode in reversed(lines):
        w, before = _line(call, axis, taps)
        _outside(mode, cval, call.dtype, call.dtype)
        dy = _correlation(call.xp, call.dtype, dy.shape, w.shape, before, mode).input_grad(dy, w)
    return converted(dy if lines else dy.copy(), call.dtype)


def _line(call: _Call, axis: int, taps: Any) -> tuple[Array, list[int]]:
    """Weights of an axis, and the padding before it, as `_placed` gives them."""
    rank = call.first.ndim
    shape, before = [1] * rank, [0] * rank
    shape[axis], before[axis] = len(taps), len(taps) // 2
    return call.xp.asarray(taps).reshape(shape), before


# -- one correlation -------------------------------------------------------------------------------------


def _correlated(call: _Call, x: Array, w: Array, before: list[int], mode: Any, cval: Any) -> Array:
    """x correlated with w, in the dtype of the result."""
    outside = _outside(mode, cval, x.dtype, call.dtype)
    dtype = _working(x.dtype, w.dtype, call.dtype, outside)
    correlation = _correlation(call.xp, dtype, x.shape, w.shape, before, mode, outside)
    y = correlation.forward(x, w)
    if y.dtype.kind == "f" and call.dtype.kind in "iu":
        y += call.xp.copysign(_ROUNDING, y)
    return converted(y, call.dtype)


def _correlation(
    xp: Any, dtype: np.dtype, shape: Shape, taps: Shape, before: list[int], mode: str, outside: Any = 0
) -> Correlation:
    padding = [(a, r - 1 - a) for a, r in zip(before, taps, strict=True)]
    return Correlation(xp, dtype, shape, taps, padding, _MODES[mode], outside)


def _working(x: np.dtype, w: np.dtype, result: np.dtype, outside: Any) -> np.dtype:
    """The dtype of the sums: what lies outside has to fit in it too."""
    if result.kind not in "iu":
        return np.result_type(x, result)
    whole = x.kind in "biu" and w.kind in "biu" and outside == np.rint(outside) and abs(outside) < 1 << 31
    return np.dtype((np.int32 if result.itemsize <= 4 else np.int64) if whole else np.float64)


def _outside(mode: Any, cval: Any, x: np.dtype, result: np.dtype) -> Any:
    """What lies outside in a mode that takes it from cval, otherwise 0."""
    cval = number("cval", cval)
    if _MODES[one_of("mode", mode, _MODES)] != "zeros":
        return 0
    if isinstance(cval, complex) and x.kind != "c":
        raise ValueError(f"cval must be real, as the input is, got {shown(cval)}")
    if result.kind in "iu" and not np.isfinite(cval):
        raise ValueError(f"cval must be finite for a result of {result}, got {shown(cval)}")
    return cval


def _each(argument: str, value: Any, count: int) -> Sequence[Any]:
    """One value for each axis, from one for all or a sequence of them."""
    values = (value,) * count if is_one(value) else entries(argument, value)
    if len(values) != count:
        raise ValueError(f"{argument} must be one, or {count}, one for each axis, got {shown(value)}")
    return values


def _modes(mode: Any, count: int) -> list[str]:
    """SciPy's mode for each axis."""
    return [one_of("mode", each, _MODES) for each in _each("mode", mode, count)]


def _not_negative(argument: str, value: Any) -> float:
    value = number(argument, value)
    if isinstance(value, complex) or not 0 <= value < np.inf:
        raise ValueError(f"{argument} must be 0 or more, and finite, got {shown(value)}")
    return float(value)


def _sum(arrays: Iterable[Array]) -> Array:
    return functools.reduce(operator.add, arrays)
