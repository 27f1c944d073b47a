"""The linear filters of scipy.ndimage, by its names, on NumPy and CuPy arrays, with gradients.

Each function has its gradient, as `correlate` has `correlate_grad`. It takes dy, the gradient with
respect to the function's result, then the arguments of the function without `output`. Filters with
fixed weights (`gaussian_filter`, `sobel`, `laplace`) are linear maps of the input alone: their
gradients take dy in the place of the input. The interfaces are those of SciPy 1.17 and of
cupyx.scipy.ndimage; SciPy is not imported.

SciPy computes in double precision and rounds at the end. Here floats are summed in the common dtype
of input and output: float32 for an image of float32, float64 where output=numpy.float64 asks for
it. Integers with integer weights give exact integers, modulo the range of the output. With weights
of floats they are summed in float64, cut off towards zero and wrapped around, as in SciPy.
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
    """Correlate an n-D array with weights, as `scipy.ndimage.correlate` does.

    The result has the shape of the input. On each axis, with a filter of R cells::

        y[p] = sum over r of  input[p - R // 2 - origin + r] conj(weights[r])

    Parameters
    ----------
    input : array_like
        What is filtered, of any number of axes. An array is NumPy's, CuPy's or that of another
        library with DLPack; numbers and lists become arrays.
    weights : array_like
        The filter, an array with one axis for each that is filtered. R is its extent there.
    output : dtype or array, optional
        A dtype for the result; or an array of the input's shape to write it to, which may be the
        input. By default the result is a new array of the dtype of the input, or where weights are
        complex of the smallest complex dtype that holds it.
    mode : str, optional
        What lies outside of the array. "reflect", the default, or "grid-mirror": the mirror image
        that repeats the outermost cell; "mirror": the one that does not; "nearest": the outermost
        cell; "wrap" or "grid-wrap": the other end; "constant" or "grid-constant": cval.
    cval : number, optional
        What lies outside in the modes "constant" and "grid-constant", by default 0. Real where the
        input is.
    origin : int or sequence of ints, optional
        How many cells the filter is shifted by, one number or one for each axis that is filtered:
        from -(R // 2) to (R - 1) // 2. By default its middle is above the cell whose result it
        gives.
    axes : int or sequence of ints, optional
        Which axes to filter, all by default.

    Returns
    -------
    y : array
        The correlation, of the input's shape and the arrays' own library; or the array given as
        output.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken. Nothing has been computed then.

    See Also
    --------
    correlate_grad : Its gradients with respect to input and weights.
    convolve : The same with the weights turned around.
    correlate1d : With weights along one axis.

    Notes
    -----
    What differs from `scipy.ndimage.correlate` [1]_:

    - Floats are summed in the common dtype of input and output, where SciPy computes in double
      precision and rounds at the end. output=numpy.float64 asks for as much.
    - Integers with integer weights give exact integers, modulo the range of the output; SciPy
      rounds those of 64 bits to doubles.
    - Integers with weights of floats are summed in float64, cut off towards zero and wrapped
      around, as in SciPy. But a sum that only rounding keeps from being an integer counts as that
      integer, where SciPy's may be 1 away from it.
    - Weights that are 0 are multiplied like any other: next to a NaN or an infinity the result is
      NaN. SciPy leaves them out.
    - origin goes with axes, in their order, as SciPy's documentation says.
    - float16 is taken. Truth values are an error unless output names a dtype of numbers, where
      SciPy's result is of truth values too.

    References
    ----------
    .. [1] SciPy 1.17, `scipy.ndimage.correlate`.

    Examples
    --------
    >>> from cuconv import ndimage
    >>> ndimage.correlate([1, 2, 3, 4], [1, 2, 3])
    array([ 9, 14, 20, 23])
    >>> ndimage.correlate([1, 2, 3, 4], [1, 2, 3], mode="constant")
    array([ 8, 14, 20, 11])
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
    """Gradients of `correlate` with respect to input and weights.

    Given dy, the gradient of a loss with respect to the result of `correlate`, they are the adjoint
    maps, where cval is 0::

        <dy, correlate(input, weights)> = <d_input, input> = <d_weights, weights>

    where <a, b> is the real part of the sum of conj(a) b over all cells.

    Parameters
    ----------
    dy : array_like
        The gradient of the result, of its shape, that of the input. Floats, or where input or
        weights are complex also complex numbers.
    input, weights : array_like
        What `correlate` was given.
    mode : str, optional
        What lies outside of the array, as it was given to `correlate`.
    cval : number, optional
        What lies outside in the modes "constant" and "grid-constant".
    origin : int or sequence of ints, optional
        How many cells the filter is shifted by, as it was given to `correlate`.
    axes : int or sequence of ints, optional
        Which axes to filter, as it was given to `correlate`.
    needs : sequence of two bools, optional
        Which of the two gradients to compute, by default both. The other one is None. Integers have
        no gradient.

    Returns
    -------
    d_input, d_weights : array or None
        The gradients, of the shapes and dtypes of input and weights, and of the arrays' own
        library. Where one of input and weights is real and the other complex, that of the real one
        is the real part.

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

    Notes
    -----
    Sums are made in the common dtype of dy and input. With a cval other than 0 the result depends
    on weights also through the border, and d_weights has that part.

    Examples
    --------
    >>> from cuconv import ndimage
    >>> d_input, d_weights = ndimage.correlate_grad(np.ones(4), [1.0, 2, 3, 4], [1.0, 2, 3])
    >>> d_input
    array([4., 6., 6., 8.])
    >>> d_weights
    array([ 7., 10., 13.])
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
    """Convolve an n-D array with weights, as `scipy.ndimage.convolve` does.

    The result has the shape of the input. On each axis, with a filter of R cells::

        y[p] = sum over r of  input[p + R // 2 + origin - r] weights[r]

    Parameters
    ----------
    input : array_like
        What is filtered, of any number of axes. An array is NumPy's, CuPy's or that of another
        library with DLPack; numbers and lists become arrays.
    weights : array_like
        The filter, an array with one axis for each that is filtered. R is its extent there.
    output : dtype or array, optional
        A dtype for the result; or an array of the input's shape to write it to, which may be the
        input. By default the result is a new array of the dtype of the input, or where weights are
        complex of the smallest complex dtype that holds it.
    mode : str, optional
        What lies outside of the array. "reflect", the default, or "grid-mirror": the mirror image
        that repeats the outermost cell; "mirror": the one that does not; "nearest": the outermost
        cell; "wrap" or "grid-wrap": the other end; "constant" or "grid-constant": cval.
    cval : number, optional
        What lies outside in the modes "constant" and "grid-constant", by default 0. Real where the
        input is.
    origin : int or sequence of ints, optional
        How many cells the filter is shifted by, one number or one for each axis that is filtered:
        from -(R // 2) to (R - 1) // 2. By default its middle is above the cell whose result it
        gives.
    axes : int or sequence of ints, optional
        Which axes to filter, all by default.

    Returns
    -------
    y : array
        The convolution, of the input's shape and the arrays' own library; or the array given as
        output.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken. Nothing has been computed then.

    See Also
    --------
    convolve_grad : Its gradients with respect to input and weights.
    correlate : The same without turning the weights around, which are conjugated instead.
    convolve1d : With weights along one axis.

    Notes
    -----
    What differs from `scipy.ndimage.convolve` [1]_:

    - Floats are summed in the common dtype of input and output, where SciPy computes in double
      precision and rounds at the end. output=numpy.float64 asks for as much.
    - Integers with integer weights give exact integers, modulo the range of the output; SciPy
      rounds those of 64 bits to doubles.
    - Integers with weights of floats are summed in float64, cut off towards zero and wrapped
      around, as in SciPy. But a sum that only rounding keeps from being an integer counts as that
      integer, where SciPy's may be 1 away from it.
    - Weights that are 0 are multiplied like any other: next to a NaN or an infinity the result is
      NaN. SciPy leaves them out.
    - origin goes with axes, in their order, as SciPy's documentation says.
    - float16 is taken. Truth values are an error unless output names a dtype of numbers, where
      SciPy's result is of truth values too.

    References
    ----------
    .. [1] SciPy 1.17, `scipy.ndimage.convolve`.

    Examples
    --------
    >>> from cuconv import ndimage
    >>> ndimage.convolve([1, 2, 3, 4], [1, 2, 3])
    array([ 7, 10, 16, 21])
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
    """Gradients of `convolve` with respect to input and weights.

    Given dy, the gradient of a loss with respect to the result of `convolve`, they are the adjoint
    maps, where cval is 0::

        <dy, convolve(input, weights)> = <d_input, input> = <d_weights, weights>

    where <a, b> is the sum of conj(a) b over all cells, or the real part of it where one of input
    and weights is real.

    Parameters
    ----------
    dy : array_like
        The gradient of the result, of its shape, that of the input. Floats, or where input or
        weights are complex also complex numbers.
    input, weights : array_like
        What `convolve` was given.
    mode : str, optional
        What lies outside of the array, as it was given to `convolve`.
    cval : number, optional
        What lies outside in the modes "constant" and "grid-constant".
    origin : int or sequence of ints, optional
        How many cells the filter is shifted by, as it was given to `convolve`.
    axes : int or sequence of ints, optional
        Which axes to filter, as it was given to `convolve`.
    needs : sequence of two bools, optional
        Which of the two gradients to compute, by default both. The other one is None. Integers have
        no gradient.

    Returns
    -------
    d_input, d_weights : array or None
        The gradients, of the shapes and dtypes of input and weights, and of the arrays' own
        library. Where one of input and weights is real and the other complex, that of the real one
        is the real part.

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

    Notes
    -----
    Sums are made in the common dtype of dy and input. With a cval other than 0 the result depends
    on weights also through the border, and d_weights has that part.

    Examples
    --------
    >>> from cuconv import ndimage
    >>> d_input, d_weights = ndimage.convolve_grad(np.ones(4), [1.0, 2, 3, 4], [1.0, 2, 3])
    >>> d_input
    array([8., 6., 6., 4.])
    >>> d_weights
    array([13., 10.,  7.])
    """
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
    """Correlate an n-D array with weights along one axis, as `scipy.ndimage.correlate1d` does.

    It is `correlate` along that axis, with weights of R cells::

        y[p] = sum over r of  input[p - R // 2 - origin + r] conj(weights[r])

    Parameters
    ----------
    input : array_like
        What is filtered, of any number of axes. An array is NumPy's, CuPy's or that of another
        library with DLPack; numbers and lists become arrays.
    weights : array_like
        The filter, an array of one axis, of extent R.
    axis : int, optional
        Which axis to filter, the last by default.
    output : dtype or array, optional
        A dtype for the result; or an array of the input's shape to write it to, which may be the
        input. By default the result is a new array of the dtype of the input, or where weights are
        complex of the smallest complex dtype that holds it.
    mode : str, optional
        What lies outside of the array. "reflect", the default, or "grid-mirror": the mirror image
        that repeats the outermost cell; "mirror": the one that does not; "nearest": the outermost
        cell; "wrap" or "grid-wrap": the other end; "constant" or "grid-constant": cval.
    cval : number, optional
        What lies outside in the modes "constant" and "grid-constant", by default 0. Real where the
        input is.
    origin : int, optional
        How many cells the filter is shifted by: from -(R // 2) to (R - 1) // 2. By default its
        middle is above the cell whose result it gives.

    Returns
    -------
    y : array
        The correlation, of the input's shape and the arrays' own library; or the array given as
        output.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken. Nothing has been computed then.

    See Also
    --------
    correlate1d_grad : Its gradients with respect to input and weights.
    convolve1d : The same with the weights turned around.
    correlate : With weights along all axes or some of them.

    Notes
    -----
    What differs from `scipy.ndimage.correlate1d` [1]_:

    - Floats are summed in the common dtype of input and output, where SciPy computes in double
      precision and rounds at the end. output=numpy.float64 asks for as much.
    - Integers with integer weights give exact integers, modulo the range of the output; SciPy
      rounds those of 64 bits to doubles.
    - Integers with weights of floats are summed in float64, cut off towards zero and wrapped
      around, as in SciPy. But a sum that only rounding keeps from being an integer counts as that
      integer, where SciPy's may be 1 away from it.
    - float16 is taken. Truth values are an error unless output names a dtype of numbers, where
      SciPy's result is of truth values too.

    References
    ----------
    .. [1] SciPy 1.17, `scipy.ndimage.correlate1d`.

    Examples
    --------
    >>> from cuconv import ndimage
    >>> ndimage.correlate1d([[1, 2, 4], [3, 5, 8]], [-1, 0, 1], mode="nearest")
    array([[1, 3, 2],
           [2, 5, 3]])
    """
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
    """Gradients of `correlate1d` with respect to input and weights.

    Given dy, the gradient of a loss with respect to the result of `correlate1d`, they are the
    adjoint maps, where cval is 0::

        <dy, correlate1d(input, weights)> = <d_input, input> = <d_weights, weights>

    where <a, b> is the real part of the sum of conj(a) b over all cells.

    Parameters
    ----------
    dy : array_like
        The gradient of the result, of its shape, that of the input. Floats, or where input or
        weights are complex also complex numbers.
    input, weights : array_like
        What `correlate1d` was given.
    axis : int, optional
        Which axis is filtered, as it was given to `correlate1d`.
    mode : str, optional
        What lies outside of the array, as it was given to `correlate1d`.
    cval : number, optional
        What lies outside in the modes "constant" and "grid-constant".
    origin : int, optional
        How many cells the filter is shifted by, as it was given to `correlate1d`.
    needs : sequence of two bools, optional
        Which of the two gradients to compute, by default both. The other one is None. Integers have
        no gradient.

    Returns
    -------
    d_input, d_weights : array or None
        The gradients, of the shapes and dtypes of input and weights, and of the arrays' own
        library. Where one of input and weights is real and the other complex, that of the real one
        is the real part.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken, among them integers whose gradient is
        asked for. Nothing has been computed then.

    See Also
    --------
    correlate1d : What these are the gradients of.

    Notes
    -----
    Sums are made in the common dtype of dy and input. With a cval other than 0 the result depends
    on weights also through the border, and d_weights has that part.

    Examples
    --------
    >>> from cuconv import ndimage
    >>> d_input, d_weights = ndimage.correlate1d_grad(np.ones(4), [1.0, 2, 3, 4], [1.0, 2, 3])
    >>> d_input
    array([4., 6., 6., 8.])
    >>> d_weights
    array([ 7., 10., 13.])
    """
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
    """Convolve an n-D array with weights along one axis, as `scipy.ndimage.convolve1d` does.

    It is `convolve` along that axis, with weights of R cells::

        y[p] = sum over r of  input[p + R // 2 + origin - r] weights[r]

    Parameters
    ----------
    input : array_like
        What is filtered, of any number of axes. An array is NumPy's, CuPy's or that of another
        library with DLPack; numbers and lists become arrays.
    weights : array_like
        The filter, an array of one axis, of extent R.
    axis : int, optional
        Which axis to filter, the last by default.
    output : dtype or array, optional
        A dtype for the result; or an array of the input's shape to write it to, which may be the
        input. By default the result is a new array of the dtype of the input, or where weights are
        complex of the smallest complex dtype that holds it.
    mode : str, optional
        What lies outside of the array. "reflect", the default, or "grid-mirror": the mirror image
        that repeats the outermost cell; "mirror": the one that does not; "nearest": the outermost
        cell; "wrap" or "grid-wrap": the other end; "constant" or "grid-constant": cval.
    cval : number, optional
        What lies outside in the modes "constant" and "grid-constant", by default 0. Real where the
        input is.
    origin : int, optional
        How many cells the filter is shifted by: from -(R // 2) to (R - 1) // 2. By default its
        middle is above the cell whose result it gives.

    Returns
    -------
    y : array
        The convolution, of the input's shape and the arrays' own library; or the array given as
        output.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken. Nothing has been computed then.

    See Also
    --------
    convolve1d_grad : Its gradients with respect to input and weights.
    correlate1d : The same without turning the weights around, which are conjugated instead.
    convolve : With weights along all axes or some of them.

    Notes
    -----
    What differs from `scipy.ndimage.convolve1d` [1]_:

    - Floats are summed in the common dtype of input and output, where SciPy computes in double
      precision and rounds at the end. output=numpy.float64 asks for as much.
    - Integers with integer weights give exact integers, modulo the range of the output; SciPy
      rounds those of 64 bits to doubles.
    - Integers with weights of floats are summed in float64, cut off towards zero and wrapped
      around, as in SciPy. But a sum that only rounding keeps from being an integer counts as that
      integer, where SciPy's may be 1 away from it.
    - float16 is taken. Truth values are an error unless output names a dtype of numbers, where
      SciPy's result is of truth values too.

    References
    ----------
    .. [1] SciPy 1.17, `scipy.ndimage.convolve1d`.

    Examples
    --------
    >>> from cuconv import ndimage
    >>> ndimage.convolve1d([[1, 2, 4], [3, 5, 8]], [1, 0, -1], mode="nearest")
    array([[1, 3, 2],
           [2, 5, 3]])
    """
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
    """Gradients of `convolve1d` with respect to input and weights.

    Given dy, the gradient of a loss with respect to the result of `convolve1d`, they are the
    adjoint maps, where cval is 0::

        <dy, convolve1d(input, weights)> = <d_input, input> = <d_weights, weights>

    where <a, b> is the sum of conj(a) b over all cells, or the real part of it where one of input
    and weights is real.

    Parameters
    ----------
    dy : array_like
        The gradient of the result, of its shape, that of the input. Floats, or where input or
        weights are complex also complex numbers.
    input, weights : array_like
        What `convolve1d` was given.
    axis : int, optional
        Which axis is filtered, as it was given to `convolve1d`.
    mode : str, optional
        What lies outside of the array, as it was given to `convolve1d`.
    cval : number, optional
        What lies outside in the modes "constant" and "grid-constant".
    origin : int, optional
        How many cells the filter is shifted by, as it was given to `convolve1d`.
    needs : sequence of two bools, optional
        Which of the two gradients to compute, by default both. The other one is None. Integers have
        no gradient.

    Returns
    -------
    d_input, d_weights : array or None
        The gradients, of the shapes and dtypes of input and weights, and of the arrays' own
        library. Where one of input and weights is real and the other complex, that of the real one
        is the real part.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken, among them integers whose gradient is
        asked for. Nothing has been computed then.

    See Also
    --------
    convolve1d : What these are the gradients of.

    Notes
    -----
    Sums are made in the common dtype of dy and input. With a cval other than 0 the result depends
    on weights also through the border, and d_weights has that part.

    Examples
    --------
    >>> from cuconv import ndimage
    >>> d_input, d_weights = ndimage.convolve1d_grad(np.ones(4), [1.0, 2, 3, 4], [1.0, 2, 3])
    >>> d_input
    array([8., 6., 6., 4.])
    >>> d_weights
    array([13., 10.,  7.])
    """
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
    """Filter an n-D array with a Gaussian, as `scipy.ndimage.gaussian_filter` does.

    It is convolved with a Gaussian or a derivative of it, one axis after the other, each as by
    `convolve1d` with the weights w::

        g[t] = exp(-t^2 / (2 sigma^2)) / sum of these,    |t| <= radius
        w[t] = (-1 / sigma)^order He_order(t / sigma) g[t]

    with the Hermite polynomials He: the derivatives of the Gaussian, once it is normalised.

    Parameters
    ----------
    input : array_like
        What is filtered, of any number of axes. An array is NumPy's, CuPy's or that of another
        library with DLPack; numbers and lists become arrays.
    sigma : float or sequence of floats
        The standard deviation in cells, one for all axes or one for each that is filtered. An axis
        where it is 0 is left as it is.
    order : int or sequence of ints, optional
        Which derivative, one for all axes or one for each that is filtered. By default 0, the
        Gaussian itself.
    output : dtype or array, optional
        A dtype for the result; or an array of the input's shape to write it to, which may be the
        input. By default the result is a new array of the dtype of the input.
    mode : str or sequence of str, optional
        What lies outside of the array. "reflect", the default, or "grid-mirror": the mirror image
        that repeats the outermost cell; "mirror": the one that does not; "nearest": the outermost
        cell; "wrap" or "grid-wrap": the other end; "constant" or "grid-constant": cval. One for all
        axes, or one for each that is filtered.
    cval : number, optional
        What lies outside in the modes "constant" and "grid-constant", by default 0. Real where the
        input is.
    truncate : float, optional
        The radius of the filter in standard deviations, by default 4, rounded to cells. It counts
        only if radius is not given.
    radius : int or sequence of ints, optional
        The radius of the filter in cells, one for all axes or one for each that is filtered.
    axes : int or sequence of ints, optional
        Which axes to filter, all by default.

    Returns
    -------
    y : array
        The filtered array, of the input's shape and the arrays' own library; or the array given as
        output.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken. Nothing has been computed then.

    See Also
    --------
    gaussian_filter_grad : Its gradient with respect to the input.
    convolve1d : With other weights along one axis.

    Notes
    -----
    Between two axes the array has the dtype of the output, as in SciPy.

    What differs from `scipy.ndimage.gaussian_filter` [1]_:

    - Floats are summed in the common dtype of input and output, where SciPy computes in double
      precision and rounds after each axis. output=numpy.float64 asks for as much.
    - Integers are summed in float64, cut off towards zero and wrapped around, as in SciPy. But a
      sum that only rounding keeps from being an integer counts as that integer: a plain area stays
      as it is, where SciPy's may lose 1.
    - A sigma below 0 is an error.
    - float16 is taken. Truth values are an error unless output names a dtype of numbers, where
      SciPy's result is of truth values too.

    References
    ----------
    .. [1] SciPy 1.17, `scipy.ndimage.gaussian_filter`.

    Examples
    --------
    >>> from cuconv import ndimage
    >>> ndimage.gaussian_filter([0.0, 0.0, 1.0, 0.0, 0.0], sigma=1, radius=1).round(3)
    array([0.   , 0.274, 0.452, 0.274, 0.   ])
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
    """Gradient of `gaussian_filter` with respect to its input.

    Given dy, the gradient of a loss with respect to the result of `gaussian_filter`, it is the
    adjoint map, where cval is 0::

        <dy, gaussian_filter(input)> = <d_input, input>

    where <a, b> is the sum of conj(a) b over all cells.

    Parameters
    ----------
    dy : array_like
        The gradient of the result, of floats or complex numbers. It takes the place of the input,
        on which the gradient does not depend.
    sigma : float or sequence of floats
        The standard deviation in cells, as it was given to `gaussian_filter`.
    order : int or sequence of ints, optional
        Which derivative of the Gaussian, as it was given to `gaussian_filter`.
    mode : str or sequence of str, optional
        What lies outside of the array, as it was given to `gaussian_filter`.
    cval : number, optional
        What lies outside in the modes "constant" and "grid-constant". The gradient does not depend
        on it.
    truncate : float, optional
        The radius in standard deviations, as it was given to `gaussian_filter`.
    radius : int or sequence of ints, optional
        The radius in cells, as it was given to `gaussian_filter`.
    axes : int or sequence of ints, optional
        Which axes are filtered, as it was given to `gaussian_filter`.

    Returns
    -------
    d_input : array
        The gradient, of the shape, dtype and library of dy.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken. Nothing has been computed then.

    See Also
    --------
    gaussian_filter : What this is the gradient of.

    Examples
    --------
    >>> from cuconv import ndimage
    >>> ndimage.gaussian_filter_grad([1.0, 0.0, 0.0, 0.0], sigma=1, radius=1).round(3)
    array([0.726, 0.274, 0.   , 0.   ])
    """
    call = _Call(None, dy=dy)
    lines = _gaussians(call.first.ndim, sigma, order, mode, truncate, radius, axes)
    return call.finish(_back_through(call, lines, cval))


def sobel(
    input: Any, axis: int = -1, output: Any = None, mode: str | Sequence[str] = "reflect", cval: complex = 0.0
) -> Array:
    """Find edges across an axis with Sobel's filter, as `scipy.ndimage.sobel` does.

    The difference of neighbours along the axis, smoothed along all others, each a correlation::

        [-1, 0, 1]  along the axis
        [1, 2, 1]   along every other axis

    Parameters
    ----------
    input : array_like
        What is filtered, of any number of axes. An array is NumPy's, CuPy's or that of another
        library with DLPack; numbers and lists become arrays.
    axis : int, optional
        The axis along which the difference is taken, the last by default.
    output : dtype or array, optional
        A dtype for the result; or an array of the input's shape to write it to, which may be the
        input. By default the result is a new array of the dtype of the input.
    mode : str or sequence of str, optional
        What lies outside of the array. "reflect", the default, or "grid-mirror": the mirror image
        that repeats the outermost cell; "mirror": the one that does not; "nearest": the outermost
        cell; "wrap" or "grid-wrap": the other end; "constant" or "grid-constant": cval. One for all
        axes, or one for each.
    cval : number, optional
        What lies outside in the modes "constant" and "grid-constant", by default 0. Real where the
        input is.

    Returns
    -------
    y : array
        The filtered array, of the input's shape and the arrays' own library; or the array given as
        output.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken. Nothing has been computed then.

    See Also
    --------
    sobel_grad : Its gradient with respect to the input.
    laplace : Edges of all directions, by second differences.

    Notes
    -----
    Between two axes the array has the dtype of the output, as in SciPy.

    What differs from `scipy.ndimage.sobel` [1]_:

    - Floats are summed in the common dtype of input and output, where SciPy computes in double
      precision and rounds after each axis. output=numpy.float64 asks for as much.
    - Integers are exact, modulo the range of the output; SciPy rounds those of 64 bits to doubles.
    - float16 is taken. Truth values are an error unless output names a dtype of numbers, where
      SciPy's result is of truth values too.

    References
    ----------
    .. [1] SciPy 1.17, `scipy.ndimage.sobel`.

    Examples
    --------
    >>> from cuconv import ndimage
    >>> ndimage.sobel([[0, 0, 9], [0, 0, 9], [0, 0, 9]])
    array([[ 0, 36, 36],
           [ 0, 36, 36],
           [ 0, 36, 36]])
    """
    call = _Call(output, input=input)
    return call.finish(_through(call, _sobels(call.first.ndim, axis, mode), cval))


def sobel_grad(dy: Any, axis: int = -1, mode: str | Sequence[str] = "reflect", cval: complex = 0.0) -> Array:
    """Gradient of `sobel` with respect to its input.

    Given dy, the gradient of a loss with respect to the result of `sobel`, it is the adjoint map,
    where cval is 0::

        <dy, sobel(input)> = <d_input, input>

    where <a, b> is the sum of conj(a) b over all cells.

    Parameters
    ----------
    dy : array_like
        The gradient of the result, of floats or complex numbers. It takes the place of the input,
        on which the gradient does not depend.
    axis : int, optional
        The axis along which the difference is taken, as it was given to `sobel`.
    mode : str or sequence of str, optional
        What lies outside of the array, as it was given to `sobel`.
    cval : number, optional
        What lies outside in the modes "constant" and "grid-constant". The gradient does not depend
        on it.

    Returns
    -------
    d_input : array
        The gradient, of the shape, dtype and library of dy.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken. Nothing has been computed then.

    See Also
    --------
    sobel : What this is the gradient of.

    Examples
    --------
    >>> from cuconv import ndimage
    >>> ndimage.sobel_grad([0.0, 0.0, 1.0, 0.0, 0.0])
    array([ 0., -1.,  0.,  1.,  0.])
    """
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
    """Sum up an array's second differences along its axes, as `scipy.ndimage.laplace` does.

    Each is a correlation with these weights::

        [1, -2, 1]

    Parameters
    ----------
    input : array_like
        What is filtered, of any number of axes. An array is NumPy's, CuPy's or that of another
        library with DLPack; numbers and lists become arrays.
    output : dtype or array, optional
        A dtype for the result; or an array of the input's shape to write it to, which may be the
        input. By default the result is a new array of the dtype of the input.
    mode : str or sequence of str, optional
        What lies outside of the array. "reflect", the default, or "grid-mirror": the mirror image
        that repeats the outermost cell; "mirror": the one that does not; "nearest": the outermost
        cell; "wrap" or "grid-wrap": the other end; "constant" or "grid-constant": cval. One for all
        axes, or one for each that is filtered.
    cval : number, optional
        What lies outside in the modes "constant" and "grid-constant", by default 0. Real where the
        input is.
    axes : int or sequence of ints, optional
        The axes along which differences are taken, all by default.

    Returns
    -------
    y : array
        The sum of the differences, of the input's shape and the arrays' own library; or the array
        given as output.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken. Nothing has been computed then.

    See Also
    --------
    laplace_grad : Its gradient with respect to the input.
    sobel : Edges across one axis, by first differences.

    Notes
    -----
    What differs from `scipy.ndimage.laplace` [1]_:

    - Floats are summed in the common dtype of input and output, where SciPy computes in double
      precision and rounds at the end. output=numpy.float64 asks for as much.
    - Integers are exact, modulo the range of the output; SciPy rounds those of 64 bits to doubles.
    - float16 is taken. Truth values are an error unless output names a dtype of numbers, where
      SciPy's result is of truth values too.

    References
    ----------
    .. [1] SciPy 1.17, `scipy.ndimage.laplace`.

    Examples
    --------
    >>> from cuconv import ndimage
    >>> ndimage.laplace([0, 0, 1, 0, 0])
    array([ 0,  1, -2,  1,  0])
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
    """Gradient of `laplace` with respect to its input.

    Given dy, the gradient of a loss with respect to the result of `laplace`, it is the adjoint map,
    where cval is 0::

        <dy, laplace(input)> = <d_input, input>

    where <a, b> is the sum of conj(a) b over all cells.

    Parameters
    ----------
    dy : array_like
        The gradient of the result, of floats or complex numbers. It takes the place of the input,
        on which the gradient does not depend.
    mode : str or sequence of str, optional
        What lies outside of the array, as it was given to `laplace`.
    cval : number, optional
        What lies outside in the modes "constant" and "grid-constant". The gradient does not depend
        on it.
    axes : int or sequence of ints, optional
        The axes along which differences are taken, as it was given to `laplace`.

    Returns
    -------
    d_input : array
        The gradient, of the shape, dtype and library of dy.

    Raises
    ------
    ValueError
        For shapes and values that do not fit. Nothing has been computed then.
    TypeError
        For dtypes and kinds of array that are not taken. Nothing has been computed then.

    See Also
    --------
    laplace : What this is the gradient of.

    Examples
    --------
    >>> from cuconv import ndimage
    >>> ndimage.laplace_grad([0.0, 0.0, 1.0, 0.0, 0.0])
    array([ 0.,  1., -2.,  1.,  0.])
    """
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
