"""The convolutions of scipy.signal, by its names, on NumPy and CuPy arrays, with gradients.

Each function has its gradient, as `convolve` has `convolve_grad`. It takes dy, the gradient with
respect to the function's result, then the arguments of the function, and returns the gradients of
in1 and in2. The interfaces are those of SciPy 1.17 and of cupyx.scipy.signal. SciPy is not
imported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .arrays import Array, given_back
from .options import one_of, shown
from .plain import (
    Correlation,
    Shape,
    adopted,
    axes_of,
    check_dy,
    converted,
    gradient_of,
    number,
    turned,
    two_needs,
)

__all__ = [
    "convolve",
    "convolve2d",
    "convolve2d_grad",
    "convolve_grad",
    "correlate",
    "correlate2d",
    "correlate2d_grad",
    "correlate_grad",
    "fftconvolve",
    "fftconvolve_grad",
    "oaconvolve",
    "oaconvolve_grad",
]

Gradients = tuple[Array | None, Array | None]

_BOUNDARIES = {"fill": "zeros", "wrap": "circular", "symm": "symmetric"}
"""SciPy's words, and the padding modes of `conv`."""


def convolve(in1: Any, in2: Any, mode: str = "full", method: str = "auto") -> Array:
    """Convolve two n-D arrays, as `scipy.signal.convolve` does.

    Each cell of the result is a sum of products, with in2 turned around on every axis::

        y[p] = sum over i of  in1[i] in2[p - i]

    Parameters
    ----------
    in1, in2 : array_like
        What is convolved, of any number of axes, as many for both. Arrays are NumPy's, CuPy's or
        those of another library with DLPack; numbers and lists become arrays.
    mode : {"full", "same", "valid"}, optional
        Which part is returned, where in1 has n1 cells along an axis and in2 has n2. "full": all
        cells where the two overlap, n1 + n2 - 1 of them; "same": the n1 in their middle, so that y
        has the shape of in1; "valid": those where the smaller lies inside the larger, which needs
        one to be at least as large as the other on every axis.
    method : {"auto", "direct", "fft"}, optional
        "auto" and "direct": plain sums. "fft": by Fourier transforms, which round, and mix all
        cells of an array. CuPy arrays are summed where there is no cuFFT.

    Returns
    -------
    y : array
        The convolution, of the arrays' own library and of NumPy's common dtype of in1 and in2.
        Integers are exact modulo its range; with method="fft" they are rounded from float64.

    Raises
    ------
    ValueError
        For shapes and values that do not fit, and for an operand without cells where the result has
        some. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken. Nothing has been computed then.

    See Also
    --------
    convolve_grad : Its gradients with respect to in1 and in2.
    correlate : The same without turning in2 around, which is conjugated instead.
    convolve2d : Of two axes, with a choice of what lies outside of in1.
    fftconvolve : By Fourier transforms, along some of the axes.

    Notes
    -----
    What differs from `scipy.signal.convolve` [1]_:

    - method="auto" never chooses transforms. For an in2 of hundreds of cells say method="fft".
    - Truth values are an error; ``x.view("uint8")`` counts those that are True.

    References
    ----------
    .. [1] SciPy 1.17, `scipy.signal.convolve`.

    Examples
    --------
    >>> from cuconv import signal
    >>> signal.convolve([1, 2, 3], [1, 1])
    array([1, 3, 5, 3])
    >>> signal.convolve([1, 2, 3], [1, 1], mode="same")
    array([1, 3, 5])
    """
    return _Convolution(in1, in2, mode, method).result()


def convolve_grad(
    dy: Any,
    in1: Any,
    in2: Any,
    mode: str = "full",
    method: str = "auto",
    *,
    needs: Sequence[bool] = (True, True),
) -> Gradients:
    """Gradients of `convolve` with respect to in1 and in2.

    Given dy, the gradient of a loss with respect to the result of `convolve`, they are the adjoint
    maps::

        <dy, convolve(in1, in2)> = <d_in1, in1> = <d_in2, in2>

    where <a, b> is the sum of conj(a) b over all cells, or the real part of it where one of in1 and
    in2 is real.

    Parameters
    ----------
    dy : array_like
        The gradient of the result, of its shape. Floats, or where the result is complex also
        complex numbers.
    in1, in2 : array_like
        What `convolve` was given.
    mode : {"full", "same", "valid"}, optional
        As it was given to `convolve`: which part of the convolution dy belongs to.
    method : {"auto", "direct", "fft"}, optional
        Plain sums, or by Fourier transforms, as in `convolve`.
    needs : sequence of two bools, optional
        Which of the two gradients to compute, by default both. The other one is None. Integers have
        no gradient.

    Returns
    -------
    d_in1, d_in2 : array or None
        The gradients, of the shapes and dtypes of in1 and in2, and of the arrays' own library.
        Where one of in1 and in2 is real and the other complex, that of the real one is the real
        part.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken, among them integers whose gradient is
        asked for. Nothing has been computed then.

    See Also
    --------
    convolve : What these are the gradients of.

    Examples
    --------
    >>> from cuconv import signal
    >>> d_in1, d_in2 = signal.convolve_grad(np.ones(4), [1.0, 2.0, 3.0], [1.0, 10.0])
    >>> d_in1
    array([11., 11., 11.])
    >>> d_in2
    array([6., 6.])
    """
    return _Convolution(in1, in2, mode, method, dy=dy).gradients(needs)


def correlate(in1: Any, in2: Any, mode: str = "full", method: str = "auto") -> Array:
    """Cross-correlate two n-D arrays, as `scipy.signal.correlate` does.

    It is `convolve` with in2 reversed on each axis, and conjugated::

        y[p] = sum over i of  in1[i + p] conj(in2[i]),    p from -(n2 - 1) to n1 - 1 in "full"

    where in1 has n1 cells along an axis and in2 has n2.

    Parameters
    ----------
    in1, in2 : array_like
        What is correlated, of any number of axes, as many for both. Arrays are NumPy's, CuPy's or
        those of another library with DLPack; numbers and lists become arrays.
    mode : {"full", "same", "valid"}, optional
        Which part is returned, where in1 has n1 cells along an axis and in2 has n2. "full": all
        cells where the two overlap, n1 + n2 - 1 of them; "same": the n1 in their middle, so that y
        has the shape of in1; "valid": those where the smaller lies inside the larger, which needs
        one to be at least as large as the other on every axis.
    method : {"auto", "direct", "fft"}, optional
        "auto" and "direct": plain sums. "fft": by Fourier transforms, which round, and mix all
        cells of an array. CuPy arrays are summed where there is no cuFFT.

    Returns
    -------
    y : array
        The correlation, of the arrays' own library and of NumPy's common dtype of in1 and in2.
        Integers are exact modulo its range; with method="fft" they are rounded from float64.

    Raises
    ------
    ValueError
        For shapes and values that do not fit, and for an operand without cells where the result has
        some. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken. Nothing has been computed then.

    See Also
    --------
    correlate_grad : Its gradients with respect to in1 and in2.
    convolve : The same with in2 turned around, and not conjugated.
    correlate2d : Of two axes, with a choice of what lies outside of in1.

    Notes
    -----
    What differs from `scipy.signal.correlate` [1]_:

    - method="auto" never chooses transforms. For an in2 of hundreds of cells say method="fft".
    - Truth values are an error; ``x.view("uint8")`` counts those that are True.

    References
    ----------
    .. [1] SciPy 1.17, `scipy.signal.correlate`.

    Examples
    --------
    Where the pattern [1, 2] is found again, the correlation is largest:

    >>> from cuconv import signal
    >>> signal.correlate([0, 1, 2, 0, 0], [1, 2], mode="valid")
    array([2, 5, 2, 0])
    """
    return _Convolution(in1, in2, mode, method, correlates=True).result()


def correlate_grad(
    dy: Any,
    in1: Any,
    in2: Any,
    mode: str = "full",
    method: str = "auto",
    *,
    needs: Sequence[bool] = (True, True),
) -> Gradients:
    """Gradients of `correlate` with respect to in1 and in2.

    Given dy, the gradient of a loss with respect to the result of `correlate`, they are the adjoint
    maps::

        <dy, correlate(in1, in2)> = <d_in1, in1> = <d_in2, in2>

    where <a, b> is the real part of the sum of conj(a) b over all cells.

    Parameters
    ----------
    dy : array_like
        The gradient of the result, of its shape. Floats, or where the result is complex also
        complex numbers.
    in1, in2 : array_like
        What `correlate` was given.
    mode : {"full", "same", "valid"}, optional
        As it was given to `correlate`: which part of the correlation dy belongs to.
    method : {"auto", "direct", "fft"}, optional
        Plain sums, or by Fourier transforms, as in `correlate`.
    needs : sequence of two bools, optional
        Which of the two gradients to compute, by default both. The other one is None. Integers have
        no gradient.

    Returns
    -------
    d_in1, d_in2 : array or None
        The gradients, of the shapes and dtypes of in1 and in2, and of the arrays' own library.
        Where one of in1 and in2 is real and the other complex, that of the real one is the real
        part.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken, among them integers whose gradient is
        asked for. Nothing has been computed then.

    See Also
    --------
    correlate : What these are the gradients of.

    Examples
    --------
    >>> from cuconv import signal
    >>> d_in1, d_in2 = signal.correlate_grad(np.ones(2), [1.0, 2.0, 3.0], [1.0, 10.0], mode="valid")
    >>> d_in1
    array([ 1., 11., 10.])
    >>> d_in2
    array([3., 5.])
    """
    return _Convolution(in1, in2, mode, method, correlates=True, dy=dy).gradients(needs)


def convolve2d(
    in1: Any, in2: Any, mode: str = "full", boundary: str = "fill", fillvalue: complex = 0
) -> Array:
    """Convolve two 2-D arrays, as `scipy.signal.convolve2d` does.

    It is `convolve` with a choice of what lies outside of in1::

        y[p] = sum over i of  in1[i] in2[p - i]

    Parameters
    ----------
    in1, in2 : array_like
        What is convolved, of two axes each. Arrays are NumPy's, CuPy's or those of another library
        with DLPack; lists become arrays.
    mode : {"full", "same", "valid"}, optional
        Which part is returned, where in1 has n1 cells along an axis and in2 has n2. "full": all
        cells where the two overlap, n1 + n2 - 1 of them; "same": the n1 in their middle, so that y
        has the shape of in1; "valid": those where the smaller lies inside the larger, which needs
        one to be at least as large as the other on every axis.
    boundary : {"fill", "wrap", "symm"}, optional
        What lies outside of in1. "fill": fillvalue; "wrap": the other end; "symm": the mirror image
        that repeats the outermost cell.
    fillvalue : number, optional
        What "fill" fills with: a number that the dtype of the result holds, by default 0.

    Returns
    -------
    y : array
        The convolution, of the arrays' own library and of NumPy's common dtype of in1 and in2.
        Integers are exact modulo its range.

    Raises
    ------
    ValueError
        For shapes and values that do not fit, and for an operand without cells where the result has
        some. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken. Nothing has been computed then.

    See Also
    --------
    convolve2d_grad : Its gradients with respect to in1 and in2.
    correlate2d : The same without turning in2 around, which is conjugated instead.
    cuconv.ndimage.convolve : With more kinds of border, in the shape of the image.

    Notes
    -----
    With mode="valid" nothing of what lies outside is seen, and boundary and fillvalue do not
    matter.

    What differs from `scipy.signal.convolve2d` [1]_: an empty operand is an error where the result
    is not empty; there it gives zeros.

    References
    ----------
    .. [1] SciPy 1.17, `scipy.signal.convolve2d`.

    Examples
    --------
    >>> from cuconv import signal
    >>> signal.convolve2d([[1, 2], [3, 4]], [[1, 1]], boundary="symm")
    array([[2, 3, 4],
           [6, 7, 8]])
    """
    return _Convolution(in1, in2, mode, boundary=boundary, fillvalue=fillvalue).result()


def convolve2d_grad(
    dy: Any,
    in1: Any,
    in2: Any,
    mode: str = "full",
    boundary: str = "fill",
    fillvalue: complex = 0,
    *,
    needs: Sequence[bool] = (True, True),
) -> Gradients:
    """Gradients of `convolve2d` with respect to in1 and in2.

    Given dy, the gradient of a loss with respect to the result of `convolve2d`, they are the
    adjoint maps::

        <dy, convolve2d(in1, in2)> = <d_in1, in1> = <d_in2, in2>

    where <a, b> is the sum of conj(a) b over all cells, or the real part of it where one of in1 and
    in2 is real.

    Parameters
    ----------
    dy : array_like
        The gradient of the result, of its shape. Floats, or where the result is complex also
        complex numbers.
    in1, in2 : array_like
        What `convolve2d` was given.
    mode : {"full", "same", "valid"}, optional
        As it was given to `convolve2d`: which part of the convolution dy belongs to.
    boundary : {"fill", "wrap", "symm"}, optional
        What lies outside of in1, as it was given to `convolve2d`.
    fillvalue : number, optional
        What "fill" fills with, as it was given to `convolve2d`.
    needs : sequence of two bools, optional
        Which of the two gradients to compute, by default both. The other one is None. Integers have
        no gradient.

    Returns
    -------
    d_in1, d_in2 : array or None
        The gradients, of the shapes and dtypes of in1 and in2, and of the arrays' own library.
        Where one of in1 and in2 is real and the other complex, that of the real one is the real
        part.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken, among them integers whose gradient is
        asked for. Nothing has been computed then.

    See Also
    --------
    convolve2d : What these are the gradients of.

    Notes
    -----
    With a fillvalue other than 0 the result depends on in2 also through the border, and d_in2 has
    that part. The equation above then holds for d_in2, and for d_in1 with the border's part left
    out of the result.

    Examples
    --------
    >>> from cuconv import signal
    >>> image, weights = np.arange(4.0).reshape(2, 2), np.ones((1, 2))
    >>> d_in1, d_in2 = signal.convolve2d_grad(np.ones((2, 3)), image, weights)
    >>> d_in1
    array([[2., 2.],
           [2., 2.]])
    >>> d_in2
    array([[6., 6.]])
    """
    return _Convolution(in1, in2, mode, boundary=boundary, fillvalue=fillvalue, dy=dy).gradients(needs)


def correlate2d(
    in1: Any, in2: Any, mode: str = "full", boundary: str = "fill", fillvalue: complex = 0
) -> Array:
    """Cross-correlate two 2-D arrays, as `scipy.signal.correlate2d` does.

    It is `correlate` with a choice of what lies outside of in1::

        y[p] = sum over i of  in1[i + p] conj(in2[i]),    p from -(n2 - 1) to n1 - 1 in "full"

    where in1 has n1 cells along an axis and in2 has n2.

    Parameters
    ----------
    in1, in2 : array_like
        What is correlated, of two axes each. Arrays are NumPy's, CuPy's or those of another library
        with DLPack; lists become arrays.
    mode : {"full", "same", "valid"}, optional
        Which part is returned, where in1 has n1 cells along an axis and in2 has n2. "full": all
        cells where the two overlap, n1 + n2 - 1 of them; "same": the n1 in their middle, so that y
        has the shape of in1; "valid": those where the smaller lies inside the larger, which needs
        one to be at least as large as the other on every axis.
    boundary : {"fill", "wrap", "symm"}, optional
        What lies outside of in1. "fill": fillvalue; "wrap": the other end; "symm": the mirror image
        that repeats the outermost cell.
    fillvalue : number, optional
        What "fill" fills with: a number that the dtype of the result holds, by default 0.

    Returns
    -------
    y : array
        The correlation, of the arrays' own library and of NumPy's common dtype of in1 and in2.
        Integers are exact modulo its range.

    Raises
    ------
    ValueError
        For shapes and values that do not fit, and for an operand without cells where the result has
        some. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken. Nothing has been computed then.

    See Also
    --------
    correlate2d_grad : Its gradients with respect to in1 and in2.
    convolve2d : The same with in2 turned around, and not conjugated.
    cuconv.ndimage.correlate : With more kinds of border, in the shape of the image.

    Notes
    -----
    With mode="same" and an in2 of even length, y begins a cell later than that of `correlate`. With
    mode="valid" the smaller operand is the one that is conjugated, also where it is in1. Both are
    as in SciPy.

    With mode="valid" nothing of what lies outside is seen, and boundary and fillvalue do not
    matter.

    What differs from `scipy.signal.correlate2d` [1]_: an empty operand is an error where the result
    is not empty; there it gives zeros.

    References
    ----------
    .. [1] SciPy 1.17, `scipy.signal.correlate2d`.

    Examples
    --------
    >>> from cuconv import signal
    >>> signal.correlate2d([[1, 2, 4]], [[-1, 0, 1]], mode="same", boundary="wrap")
    array([[-2,  3, -1]])
    """
    return _Convolution(
        in1, in2, mode, correlates=True, boundary=boundary, fillvalue=fillvalue
    ).result()  # fmt: skip


def correlate2d_grad(
    dy: Any,
    in1: Any,
    in2: Any,
    mode: str = "full",
    boundary: str = "fill",
    fillvalue: complex = 0,
    *,
    needs: Sequence[bool] = (True, True),
) -> Gradients:
    """Gradients of `correlate2d` with respect to in1 and in2.

    Given dy, the gradient of a loss with respect to the result of `correlate2d`, they are the
    adjoint maps::

        <dy, correlate2d(in1, in2)> = <d_in1, in1> = <d_in2, in2>

    where <a, b> is the real part of the sum of conj(a) b over all cells.

    Parameters
    ----------
    dy : array_like
        The gradient of the result, of its shape. Floats, or where the result is complex also
        complex numbers.
    in1, in2 : array_like
        What `correlate2d` was given.
    mode : {"full", "same", "valid"}, optional
        As it was given to `correlate2d`: which part of the correlation dy belongs to.
    boundary : {"fill", "wrap", "symm"}, optional
        What lies outside of in1, as it was given to `correlate2d`.
    fillvalue : number, optional
        What "fill" fills with, as it was given to `correlate2d`.
    needs : sequence of two bools, optional
        Which of the two gradients to compute, by default both. The other one is None. Integers have
        no gradient.

    Returns
    -------
    d_in1, d_in2 : array or None
        The gradients, of the shapes and dtypes of in1 and in2, and of the arrays' own library.
        Where one of in1 and in2 is real and the other complex, that of the real one is the real
        part.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken, among them integers whose gradient is
        asked for. Nothing has been computed then.

    See Also
    --------
    correlate2d : What these are the gradients of.

    Notes
    -----
    With a fillvalue other than 0 the result depends on in2 also through the border, and d_in2 has
    that part. The equation above then holds for d_in2, and for d_in1 with the border's part left
    out of the result.

    Examples
    --------
    >>> from cuconv import signal
    >>> image, weights = np.arange(4.0).reshape(2, 2), np.ones((1, 2))
    >>> d_in1, d_in2 = signal.correlate2d_grad(np.ones((2, 1)), image, weights, mode="valid")
    >>> d_in1
    array([[1., 1.],
           [1., 1.]])
    >>> d_in2
    array([[2., 4.]])
    """
    return _Convolution(
        in1, in2, mode, correlates=True, boundary=boundary, fillvalue=fillvalue, dy=dy
    ).gradients(needs)  # fmt: skip


def fftconvolve(in1: Any, in2: Any, mode: str = "full", axes: int | Sequence[int] | None = None) -> Array:
    """Convolve two n-D arrays by Fourier transforms, as `scipy.signal.fftconvolve` does.

    It is `convolve` by transforms, along all axes or some of them; fast for a long in2::

        y[p] = sum over i of  in1[i] in2[p - i]

    Parameters
    ----------
    in1, in2 : array_like
        What is convolved, of any number of axes, as many for both. Arrays are NumPy's, CuPy's or
        those of another library with DLPack; numbers and lists become arrays.
    mode : {"full", "same", "valid"}, optional
        Which part is returned, where in1 has n1 cells along an axis and in2 has n2. "full": all
        cells where the two overlap, n1 + n2 - 1 of them; "same": the n1 in their middle, so that y
        has the shape of in1; "valid": those where the smaller lies inside the larger, which needs
        one to be at least as large as the other on every axis that is convolved.
    axes : int or sequence of ints, optional
        Which axes to convolve, all by default. On the others in1 and in2 are broadcast, as NumPy
        does.

    Returns
    -------
    y : array
        The convolution, of the arrays' own library and always of floats or complex numbers:
        integers and truth values are taken for float64, float16 for float32. Where in1 or in2 is
        empty, an empty array of one axis, as in SciPy.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken. Nothing has been computed then.

    See Also
    --------
    fftconvolve_grad : Its gradients with respect to in1 and in2.
    convolve : By plain sums, which do not mix the cells of an array.

    Notes
    -----
    Transforms are in double precision, whatever the dtype of the result. They mix all cells of an
    array: one NaN spreads. CuPy arrays are summed where there is no cuFFT, as in `convolve`, which
    is slower for a long in2.

    What differs from `scipy.signal.fftconvolve` [1]_: integers give floats also where no axis is
    left to transform.

    References
    ----------
    .. [1] SciPy 1.17, `scipy.signal.fftconvolve`.

    Examples
    --------
    >>> from cuconv import signal
    >>> signal.fftconvolve([1, 2, 3], [1, 1]).round(6)
    array([1., 3., 5., 3.])
    >>> signal.fftconvolve(np.ones((2, 3)), [[1, 1]], axes=1).round(6)
    array([[1., 2., 2., 1.],
           [1., 2., 2., 1.]])
    """
    return _Convolution(in1, in2, mode, "fft", axes=axes, floating=True).result()


def fftconvolve_grad(
    dy: Any,
    in1: Any,
    in2: Any,
    mode: str = "full",
    axes: int | Sequence[int] | None = None,
    *,
    needs: Sequence[bool] = (True, True),
) -> Gradients:
    """Gradients of `fftconvolve` with respect to in1 and in2.

    Given dy, the gradient of a loss with respect to the result of `fftconvolve`, they are the
    adjoint maps::

        <dy, fftconvolve(in1, in2)> = <d_in1, in1> = <d_in2, in2>

    where <a, b> is the sum of conj(a) b over all cells, or the real part of it where one of in1 and
    in2 is real.

    Parameters
    ----------
    dy : array_like
        The gradient of the result, of its shape. Floats, or where the result is complex also
        complex numbers.
    in1, in2 : array_like
        What `fftconvolve` was given.
    mode : {"full", "same", "valid"}, optional
        As it was given to `fftconvolve`: which part of the convolution dy belongs to.
    axes : int or sequence of ints, optional
        Which axes are convolved, as it was given to `fftconvolve`.
    needs : sequence of two bools, optional
        Which of the two gradients to compute, by default both. The other one is None. Integers have
        no gradient.

    Returns
    -------
    d_in1, d_in2 : array or None
        The gradients, of the shapes and dtypes of in1 and in2, and of the arrays' own library.
        Where one of in1 and in2 is real and the other complex, that of the real one is the real
        part.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken, among them integers whose gradient is
        asked for. Nothing has been computed then.

    See Also
    --------
    fftconvolve : What these are the gradients of.

    Examples
    --------
    >>> from cuconv import signal
    >>> d_in1, d_in2 = signal.fftconvolve_grad(np.ones(4), [1.0, 2.0, 3.0], [1.0, 10.0])
    >>> d_in1.round(6)
    array([11., 11., 11.])
    >>> d_in2.round(6)
    array([6., 6.])
    """
    return _Convolution(in1, in2, mode, "fft", axes=axes, floating=True, dy=dy).gradients(needs)


def oaconvolve(in1: Any, in2: Any, mode: str = "full", axes: int | Sequence[int] | None = None) -> Array:
    """Convolve two n-D arrays by Fourier transforms, as `scipy.signal.oaconvolve` does.

    The same as `fftconvolve`, which transforms long arrays in parts that overlap::

        y[p] = sum over i of  in1[i] in2[p - i]

    Parameters
    ----------
    in1, in2 : array_like
        What is convolved, of any number of axes, as many for both. Arrays are NumPy's, CuPy's or
        those of another library with DLPack; numbers and lists become arrays.
    mode : {"full", "same", "valid"}, optional
        Which part is returned, where in1 has n1 cells along an axis and in2 has n2. "full": all
        cells where the two overlap, n1 + n2 - 1 of them; "same": the n1 in their middle, so that y
        has the shape of in1; "valid": those where the smaller lies inside the larger, which needs
        one to be at least as large as the other on every axis that is convolved.
    axes : int or sequence of ints, optional
        Which axes to convolve, all by default. On the others in1 and in2 are broadcast, as NumPy
        does.

    Returns
    -------
    y : array
        The convolution, of the arrays' own library and always of floats or complex numbers:
        integers and truth values are taken for float64, float16 for float32. Where in1 or in2 is
        empty, an empty array of one axis, as in SciPy.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken. Nothing has been computed then.

    See Also
    --------
    oaconvolve_grad : Its gradients with respect to in1 and in2.
    fftconvolve : The same.

    Notes
    -----
    What is said of precision and of CuPy arrays in `fftconvolve` holds here too. Integers give floats
    also where no axis is left to transform, unlike in `scipy.signal.oaconvolve` [1]_.

    References
    ----------
    .. [1] SciPy 1.17, `scipy.signal.oaconvolve`.

    Examples
    --------
    >>> from cuconv import signal
    >>> signal.oaconvolve(np.ones(1000), [1, 1], mode="valid").shape
    (999,)
    """
    return fftconvolve(in1, in2, mode, axes)


def oaconvolve_grad(
    dy: Any,
    in1: Any,
    in2: Any,
    mode: str = "full",
    axes: int | Sequence[int] | None = None,
    *,
    needs: Sequence[bool] = (True, True),
) -> Gradients:
    """Gradients of `oaconvolve` with respect to in1 and in2.

    Given dy, the gradient of a loss with respect to the result of `oaconvolve`, they are the
    adjoint maps::

        <dy, oaconvolve(in1, in2)> = <d_in1, in1> = <d_in2, in2>

    where <a, b> is the sum of conj(a) b over all cells, or the real part of it where one of in1 and
    in2 is real.

    Parameters
    ----------
    dy : array_like
        The gradient of the result, of its shape. Floats, or where the result is complex also
        complex numbers.
    in1, in2 : array_like
        What `oaconvolve` was given.
    mode : {"full", "same", "valid"}, optional
        As it was given to `oaconvolve`: which part of the convolution dy belongs to.
    axes : int or sequence of ints, optional
        Which axes are convolved, as it was given to `oaconvolve`.
    needs : sequence of two bools, optional
        Which of the two gradients to compute, by default both. The other one is None. Integers have
        no gradient.

    Returns
    -------
    d_in1, d_in2 : array or None
        The gradients, of the shapes and dtypes of in1 and in2, and of the arrays' own library.
        Where one of in1 and in2 is real and the other complex, that of the real one is the real
        part.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken, among them integers whose gradient is
        asked for. Nothing has been computed then.

    See Also
    --------
    oaconvolve : What these are the gradients of.
    fftconvolve_grad : The same.

    Examples
    --------
    >>> from cuconv import signal
    >>> d_in1, d_in2 = signal.oaconvolve_grad(np.ones(4), [1.0, 2.0, 3.0], [1.0, 10.0])
    >>> d_in2.round(6)
    array([6., 6.])
    """
    return fftconvolve_grad(dy, in1, in2, mode, axes, needs=needs)


class _Convolution:
    """One call: its operands, checked, and the correlation of the one with the other that it is.

    x, which the correlation pads, is the larger operand; it is in1 where not zeros lie outside of it.
    """

    def __init__(
        self,
        in1: Any,
        in2: Any,
        mode: str,
        method: str = "auto",
        *,
        correlates: bool = False,
        boundary: str | None = None,
        fillvalue: complex = 0,
        axes: int | Sequence[int] | None = None,
        floating: bool = False,
        dy: Any = ...,
    ) -> None:
        self.owner, self.given = adopted(in1=in1, in2=in2, **({} if dy is ... else {"dy": dy}))
        one_of("mode", mode, ("full", "same", "valid"))
        one_of("method", method, ("auto", "direct", "fft"))
        of_images = boundary is not None
        boundary = one_of("boundary", boundary if of_images else "fill", _BOUNDARIES)
        shapes = shape1, shape2 = self.given["in1"].shape, self.given["in2"].shape
        if len(shape1) != len(shape2) or (of_images and len(shape1) != 2):
            expected = "2 axes each" if of_images else "the same number of axes"
            raise ValueError(f"in1 and in2 must have {expected}, got shapes {shape1} and {shape2}")
        self.dtype, self.working = self._dtypes(floating, method)
        self.fillvalue = _fitting("fillvalue", fillvalue, self.dtype)
        self.axes = _convolved(axes, shape1, shape2, mode) if floating else tuple(range(len(shape1)))
        if mode == "valid":  # sees nothing of what lies outside
            _check_valid(shape1, shape2, self.axes)
            boundary = "fill"
        if mode == "valid" or boundary != "fill":
            self.fillvalue = 0
        size1, size2 = (math.prod(shape[axis] for axis in self.axes) for shape in shapes)
        self.exchanged = boundary == "fill" and self.fillvalue == 0 and size1 < size2

        # SciPy's and CuPy's correlate2d conjugate the smaller operand in mode "valid", also where it is in1.
        as_exchanged = of_images and mode == "valid" and self.exchanged
        self.correlates, self.conjugated = correlates, "in1" if as_exchanged else "in2"
        self.correlation = self._correlation(
            mode, _BOUNDARIES[boundary], "fft" if method == "fft" and self._transforms() else "auto",
            later=correlates and of_images,
        )  # fmt: skip
        empty = [name for name in ("in1", "in2") if 0 in self.given[name].shape]
        self.nothing = None if not empty else (0,) if floating else self.correlation.y_shape
        if self.nothing is not None and 0 not in self.nothing:
            raise ValueError(f"{empty[0]} must not be empty, got shape {self.given[empty[0]].shape}")

    def _dtypes(self, floating: bool, method: str) -> tuple[np.dtype, np.dtype]:
        """The dtypes of the result and of the sums."""
        dtypes = []
        for name in ("in1", "in2"):
            dtype = self.given[name].dtype
            if floating:
                dtype = np.result_type(dtype, np.float32) if dtype.kind in "fc" else np.dtype(np.float64)
            elif dtype.kind == "b":
                advice = f"{name}.view('uint8') counts what is True"
                raise TypeError(f"{name} must be of numbers, got bool; {advice}")
            dtypes.append(dtype)
        result = np.result_type(*dtypes)
        if result.kind in "fc":
            return result, result
        if method == "fft":
            return result, np.dtype(np.float64)
        return result, np.dtype(np.int32 if result.itemsize <= 4 else np.int64)

    def _transforms(self) -> bool:
        """Whether there are Fourier transforms for these arrays: on a GPU where cuFFT is installed."""
        if self.owner.backend == "cpu":
            return True
        from .cuda import launch

        return launch.has_transforms()

    def _correlation(self, mode: str, padding_mode: str, algorithm: str, later: bool) -> Correlation:
        shape1, shape2 = self.given["in1"].shape, self.given["in2"].shape
        pairs = [
            _padding(mode, later, n1, n2, self.exchanged) if axis in self.axes else None
            for axis, (n1, n2) in enumerate(zip(shape1, shape2, strict=True))
        ]
        x_shape, w_shape = (shape2, shape1) if self.exchanged else (shape1, shape2)
        fill = np.asarray(self.fillvalue, self.dtype).astype(self.working)
        return Correlation(
            self.owner.namespace, self.working, x_shape, w_shape, pairs, padding_mode, fill[()], algorithm
        )

    def _operands(self) -> tuple[Array, Array]:
        """x and w. Turned, w makes the correlation a convolution; for `correlate` in2 was turned before."""
        in1, in2 = (self._of_convolution(name, self.given[name]) for name in ("in1", "in2"))
        return (in2, turned(in1, self.axes)) if self.exchanged else (in1, turned(in2, self.axes))

    def _of_convolution(self, name: str, array: Array) -> Array:
        """What is convolved for in1 or in2, and likewise its gradient for what is convolved."""
        if not self.correlates:
            return array
        array = array.conj() if name == self.conjugated else array
        return turned(array, self.axes) if name == "in2" else array

    def result(self) -> Array:
        """What the function returns."""
        if self.nothing is not None:
            y = self.owner.namespace.empty(self.nothing, self.dtype)
        else:
            y = self.correlation.forward(*self._operands())
        if self.dtype.kind in "iu" and y.dtype.kind == "f":
            y = self.owner.namespace.rint(y)[...]  # of no axes a number otherwise, not an array
        return given_back(converted(y, self.dtype), self.owner)

    def gradients(self, needs: Sequence[bool]) -> Gradients:
        """What the function's gradient returns."""
        dy = self.given.pop("dy")
        wanted = two_needs(needs, self.given)
        shape = self.correlation.y_shape if self.nothing is None else self.nothing
        check_dy(dy, shape, self.dtype.kind == "c")
        x, w = self._operands()

        def gradient(name: str) -> Array:
            operand = self.given[name]
            if self.nothing is not None:
                return given_back(self.owner.namespace.zeros_like(operand), self.owner)
            if self.exchanged == (name == "in2"):
                found = self.correlation.input_grad(dy, w)
            else:
                found = turned(self.correlation.weight_grad(x, dy), self.axes)
            found = self._of_convolution(name, found)
            return given_back(gradient_of(operand, found), self.owner)

        d_in1, d_in2 = (
            gradient(name) if need else None for name, need in zip(self.given, wanted, strict=True)
        )
        return d_in1, d_in2


def _padding(mode: str, later: bool, n1: int, n2: int, exchanged: bool) -> tuple[int, int]:
    """How many cells of padding a mode takes before and behind x, which is in1, or in2 where exchanged.

    Of the full convolution's n1 + n2 - 1 cells a mode takes `length` from `start` on; "same" begins a cell
    later by `later` where n2 is even.
    """
    start, length = {
        "full": (0, n1 + n2 - 1),
        "same": ((n2 - 1 + later) // 2, n1),
        "valid": (min(n1, n2) - 1, abs(n1 - n2) + 1),
    }[mode]
    h, r = (n2, n1) if exchanged else (n1, n2)
    before = r - 1 - start
    return before, length + r - 1 - h - before


def _convolved(axes: Any, shape1: Shape, shape2: Shape, mode: str) -> tuple[int, ...]:
    """The axes that `axes` names, without those on which one of in1 and in2 is broadcast."""
    rank = len(shape1)
    named = range(rank) if axes is None else axes_of("axes", axes, rank)
    if axes is not None and not named:
        raise ValueError("axes must name an axis at least, got none")
    convolved = []
    for axis, (n1, n2) in enumerate(zip(shape1, shape2, strict=True)):
        if (axis in named and n1 != 1 and n2 != 1) or (mode == "same" and n1 == 1 < n2):
            convolved.append(axis)  # for "same" the broadcast extent is cut to that of in1, as SciPy does
        elif n1 != n2 and n1 != 1 and n2 != 1:
            raise ValueError(
                f"in1 and in2 must have the same extents, or 1, on the axes that are not convolved, got "
                f"shapes {shape1} and {shape2}, and axes {shown(axes)}"
            )
    return tuple(convolved)


def _check_valid(shape1: Shape, shape2: Shape, axes: tuple[int, ...]) -> None:
    """Raise unless the one contains the other along the axes."""
    larger = {shape1[axis] > shape2[axis] for axis in axes if shape1[axis] != shape2[axis]}
    if len(larger) > 1:
        raise ValueError(
            "mode='valid' needs an in1 that is at least as large as in2 on every axis, or the reverse, got "
            f"shapes {shape1} and {shape2}"
        )


def _fitting(argument: str, value: Any, dtype: np.dtype) -> Any:
    """The number, if the dtype holds it."""
    value = number(argument, value)
    fits = dtype.kind == "c" or not isinstance(value, complex)
    if fits and dtype.kind in "iu":
        fits = value == np.rint(float(value)) and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
    if not fits:
        raise ValueError(f"{argument} must be a number that {dtype} holds, got {shown(value)}")
    return value
