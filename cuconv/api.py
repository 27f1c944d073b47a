"""The public functions: describe the problem and look up its plan. Nothing else.

What a `repeatable` function says is to be run is then run, and kept for calls like it (see `prepared`). So
every function takes and returns arrays of one library (NumPy, CuPy, or any with DLPack) and raises before
any work is done: ValueError for shapes and values, TypeError for dtypes and kinds of array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from . import arrays
from .arrays import Array, Operands
from .cuda.device import asked_for
from .dtypes import is_complex
from .options import checked_keywords, entries, flag, integers, is_one, one_of, shown
from .plan import Call, Plan, current_arch, expect_shape, make_plan, permitted
from .prepared import repeatable
from .problem import ACTIVATIONS, OPS, ConvProblem, Request, checked_layout


@repeatable
def conv(
    x: Array,
    w: Array,
    bias: Array | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[Any] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "channels_first",
    flip: bool = False,
    activation: str | None = None,
    precision: str | None = None,
    algorithm: str = "auto",
    out_dtype: Any = None,
    out: Array | None = None,
    accumulate: bool = False,
) -> Array:
    """Cross-correlate x with the filters w, in one to three dimensions, as deep learning defines it.

    On each spatial axis, with stride s, dilation d, and a cells of padding before and b after::

        y[n, k, p] = activation(bias[k] + sum over c, r of  x[n, c, p s - a + r d] w[k, c, r])

        P = floor((H + a + b - d (R - 1) - 1) / s) + 1

    where c runs over the C/groups channels of k's group, and x has H cells, the filter R and the
    result P.

    =====  ==========================  ==========================
    array  layout="channels_first"     layout="channels_last"
    =====  ==========================  ==========================
    x      ``(N, C, *input)``          ``(N, *input, C)``
    w      ``(K, C/groups, *filter)``  ``(K, *filter, C/groups)``
    bias   ``(K,)``                    ``(K,)``
    y      ``(N, K, *output)``         ``(N, *output, K)``
    =====  ==========================  ==========================

    x may come without the axis N; y then has none either.

    Parameters
    ----------
    x, w : array
        The input and the filters: NumPy's, CuPy's, or of another library with DLPack. All arrays of a
        call are of one library and one dtype: float16, bfloat16, float32, float64, complex64,
        complex128, int32 or int64; for narrower integers see `out_dtype`. They may have any strides.
    bias : array, optional
        One number for each filter.
    stride : int or sequence of int, default 1
        One int, or one per spatial axis; at least 1.
    padding : int, str or sequence, default 0
        One int, one per axis, one (before, after) pair per axis, or "valid" (none), "same"
        (P = ceil(H / s), the odd cell at the end), "same_lower" (the odd cell at the beginning) or
        "full" (d (R - 1) on both sides); negative numbers crop.
    dilation : int or sequence of int, default 1
        One int, or one per spatial axis; at least 1.
    groups : int, default 1
        Channels and filters are divided into so many groups; a filter sees its own group's channels.
    padding_mode : {"zeros", "circular", "reflect", "replicate", "symmetric"}
        What the padding holds: zeros; "circular", the other end (NumPy's "wrap"); "reflect", the mirror
        image about the outermost cell (SciPy's "mirror"); "replicate", the outermost cell (NumPy's
        "edge", SciPy's "nearest"); or "symmetric", the mirror image that repeats the outermost cell
        (scipy.ndimage's "reflect", scipy.signal's "symm").
    layout : {"channels_first", "channels_last"}
        Where the axis of the channels is. Unlike in PyTorch this is the layout of the filters too.
    flip : bool, default False
        Turn the filters by 180 degrees: true convolution, as in SciPy and MATLAB.
    activation : {None, "relu", "sigmoid", "tanh", "silu", "gelu"}
        What is applied to each element, before it is rounded. Integers have "relu" alone, complex
        numbers none.
    precision : {None, "tf32"}
        None for the dtype's own accuracy. "tf32" permits float32 to be rounded to 11 bits before it is
        multiplied, on tensor cores ("mma"); sums stay in float32. For CuPy arrays None means "tf32" if
        CUPY_TF32=1 is in the environment.
    algorithm : str, default "auto"
        "auto" takes the algorithm that is estimated to be fastest, "tune" times the candidates once.
        An algorithm by name never falls back to another: for NumPy arrays "gemm", "mec", "im2col",
        "toeplitz", "depthwise" or "fft", for CuPy arrays "mma", "wgmma", "grouped", "simt",
        "depthwise", "direct" or "fft", which needs cuFFT.
    out_dtype : {None, "int32", "int64"}
        For integers x and w, the dtype of y, bias, out and all sums. Then x and w may each be int8,
        uint8, int16, uint16 or int32; for "int64" also uint32 or int64. Truth values go in as
        ``x.view("uint8")``.
    out : array, optional
        The array that the result is written to. It must not overlap the others.
    accumulate : bool, default False
        Add the result to what `out` holds.

    Returns
    -------
    y : array
        A new array of x's library and dtype (or of `out_dtype`), or `out` where it is given.

    Raises
    ------
    ValueError
        For shapes and values, before any work is done.
    TypeError
        For dtypes and kinds of array, likewise.

    See Also
    --------
    conv_backward : Its gradients.
    conv_transpose : The map from y's shape to x's.
    plan : How a call would be done, and why.

    Notes
    -----
    float16 and bfloat16 are summed in float32 and rounded once. int32 and int64 are exact modulo 2^32
    or 2^64. Sums of narrower integers, as images have, do not fit their own dtype: `out_dtype` names a
    wider one. Extents are in elements; zero-size batches and channels are allowed.

    Zeros of the padding are multiplied like any other cell, in the gradients too: where one meets an
    infinity or NaN of the other operand the result is NaN. Only ``algorithm="fft"`` mixes all cells of
    an image.

    The formula is that of [1]_, section 9.1; padding names are as in TensorFlow and NumPy.

    References
    ----------
    .. [1] Goodfellow, Bengio and Courville, Deep Learning (2016).

    Examples
    --------
    >>> x = np.arange(9.0).reshape(1, 3, 3)  # C, H, W
    >>> cuconv.conv(x, np.ones((1, 1, 2, 2)))
    array([[[ 8., 12.],
            [20., 24.]]])

    To filter each channel with the same kernel, repeat it C times along w's first axis and set
    groups=C:

    >>> image, kernel = np.ones((3, 6, 8)), np.ones((1, 1, 3, 3))
    >>> cuconv.conv(image, np.repeat(kernel, 3, axis=0), padding="same", groups=3).shape
    (3, 6, 8)
    """
    operands = arrays.adopt(out_dtype, widens=True, x=x, w=w, bias=bias, out=out)
    request = _request(
        "fprop", operands.owner.backend, operands.dtype,
        operands.shape("x"), operands.shape("w"), ("x", "w"),
        stride, padding, dilation, groups, padding_mode, layout,
        flip, bias is not None, activation, accumulate, precision, operands.inputs,
    )  # fmt: skip
    return Call(request, operands, ("x", "w")).planned(algorithm)


@repeatable
def conv_input_grad(
    dy: Array,
    w: Array,
    input_shape: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[Any] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "channels_first",
    flip: bool = False,
    precision: str | None = None,
    algorithm: str = "auto",
    out: Array | None = None,
    accumulate: bool = False,
) -> Array:
    """The gradient of `conv` with respect to x.

    It is computed from dy, the gradient with respect to `conv`'s result before its activation::

        dx[n, c, h] = sum over k, r, p with p s - a + r d = h of  dy[n, k, p] conj(w[k, c, r])

    With stride 1 and no padding this is the full correlation of dy with the filter turned by 180
    degrees. It is the adjoint of `conv`: <dy, conv(x, w)> = <conv_input_grad(dy, w), x>.

    Parameters
    ----------
    dy : array
        Of the shape of `conv`'s result.
    w : array
        The filters, as in `conv`.
    input_shape : sequence of int
        The shape of x: with a stride, several shapes of x give the same shape of dy.
    stride, padding, dilation, groups, padding_mode, layout, flip, precision : optional
        As in `conv`.
    algorithm : str, default "auto"
        As in `conv`; the names are "gemm", "mec", "col2im", "toeplitz", "depthwise" and "fft" for NumPy
        arrays, "mma", "wgmma", "grouped", "simt", "depthwise", "direct" and "fft" for CuPy arrays.
    out, accumulate : optional
        As in `conv`.

    Returns
    -------
    dx : array
        Of shape `input_shape`, and of the dtype of dy and w, which is any of those of `conv`.

    Raises
    ------
    ValueError, TypeError
        As in `conv`.

    See Also
    --------
    conv_backward : All three gradients by one call.

    Notes
    -----
    Cells that no output sees get zero, if w is finite. Outside of its P cells dy counts as zeros, which
    are multiplied by each tap for which p is a whole number: an infinity there gives NaN. The formula
    is in [1]_, equations 7 to 9.

    References
    ----------
    .. [1] Wang, Forward and Backward Propagation of Convolutional Layer (2015).

    Examples
    --------
    >>> cuconv.conv_input_grad(np.ones((1, 2, 2)), np.ones((1, 1, 2, 2)), (1, 3, 3))
    array([[[1., 2., 1.],
            [2., 4., 2.],
            [1., 2., 1.]]])
    """
    operands = arrays.adopt(dy=dy, w=w, out=out)
    input_shape = integers("input_shape", input_shape, 0)
    request = _request(
        "dgrad", operands.owner.backend, operands.dtype,
        input_shape, operands.shape("w"), ("input_shape", "w", "dy"),
        stride, padding, dilation, groups, padding_mode, layout,
        flip, False, None, accumulate, precision,
    )  # fmt: skip
    return Call(request, operands, ("dy", "w")).planned(algorithm)


@repeatable
def conv_weight_grad(
    x: Array,
    dy: Array,
    weight_shape: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[Any] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "channels_first",
    flip: bool = False,
    precision: str | None = None,
    algorithm: str = "auto",
    out: Array | None = None,
    accumulate: bool = False,
) -> Array:
    """The gradient of `conv` with respect to w.

    It is computed from dy, the gradient with respect to `conv`'s result before its activation::

        dw[k, c, r] = sum over n, p of  dy[n, k, p] conj(x[n, c, p s - a + r d])

    With stride 1 this is the correlation of x with dy. It is the adjoint of `conv` in w:
    <dy, conv(x, w)> = <conv_weight_grad(x, dy), w>.

    Parameters
    ----------
    x : array
        The input, as in `conv`.
    dy : array
        Of the shape of `conv`'s result.
    weight_shape : sequence of int
        The shape of w: with a stride, several shapes of w give the same shape of dy.
    stride, padding, dilation, groups, padding_mode, layout, flip, precision : optional
        As in `conv`.
    algorithm : str, default "auto"
        As in `conv`; the names are "gemm", "im2col", "toeplitz", "depthwise" and "fft" for NumPy
        arrays, "mma", "wgmma", "grouped", "simt", "depthwise", "direct" and "fft" for CuPy arrays.
    out, accumulate : optional
        As in `conv`.

    Returns
    -------
    dw : array
        Of shape `weight_shape`, and of the dtype of x and dy, which is any of those of `conv`.

    Raises
    ------
    ValueError, TypeError
        As in `conv`.

    See Also
    --------
    conv_backward : All three gradients by one call.

    Notes
    -----
    The formula is in [1]_, equations 4 to 6.

    References
    ----------
    .. [1] Wang, Forward and Backward Propagation of Convolutional Layer (2015).

    Examples
    --------
    >>> x = np.arange(9.0).reshape(1, 3, 3)
    >>> cuconv.conv_weight_grad(x, np.ones((1, 2, 2)), (1, 1, 2, 2))
    array([[[[ 8., 12.],
             [20., 24.]]]])
    """
    operands = arrays.adopt(x=x, dy=dy, out=out)
    weight_shape = integers("weight_shape", weight_shape, 0)
    request = _request(
        "wgrad", operands.owner.backend, operands.dtype,
        operands.shape("x"), weight_shape, ("x", "weight_shape", "dy"),
        stride, padding, dilation, groups, padding_mode, layout,
        flip, False, None, accumulate, precision,
    )  # fmt: skip
    return Call(request, operands, ("x", "dy")).planned(algorithm)


@repeatable
def conv_bias_grad(
    dy: Array,
    *,
    layout: str = "channels_first",
    batched: bool = True,
    out: Array | None = None,
    accumulate: bool = False,
) -> Array:
    """The gradient of `conv` with respect to its bias.

    It is computed from dy, the gradient with respect to `conv`'s result before its activation::

        db[k] = sum over n and all pixels of  dy[n, k, ...]

    Parameters
    ----------
    dy : array
        ``(N, K, *output)``, or ``(N, *output, K)`` for channels_last.
    layout : {"channels_first", "channels_last"}
        Where dy's axis K is.
    batched : bool, default True
        False if dy has no axis N: its shape alone does not tell.
    out, accumulate : optional
        As in `conv`.

    Returns
    -------
    db : array
        Of shape ``(K,)``, and of the dtype of dy, which is any of those of `conv`.

    Raises
    ------
    ValueError, TypeError
        As in `conv`.

    See Also
    --------
    conv_backward : All three gradients by one call.

    Examples
    --------
    >>> cuconv.conv_bias_grad(np.ones((5, 2, 4, 4)))
    array([80., 80.])
    """
    operands = arrays.adopt(dy=dy, out=out)
    checked_layout(layout)
    return _bias_call(operands, layout, flag("batched", batched), accumulate, "out").planned("auto")


def _bias_call(operands: Operands, layout: str, batched: bool, accumulate: bool, out: str) -> Call:
    """The sum of dy over all axes but that of its channels."""
    shape = operands.shape("dy")
    batched = batched and len(shape) > 2
    rank = len(shape) - 1 - batched
    if not 1 <= rank <= 3:
        raise ValueError(
            f"dy must have 1 to 3 spatial axes beside K{' and N' if batched else ''}, got shape {shape}"
        )
    channel = len(shape) - 1 if layout == "channels_last" else int(batched)
    spatial = tuple(extent for axis, extent in enumerate(shape) if axis >= batched and axis != channel)
    empty = 0 in spatial
    problem = ConvProblem(
        n=0 if empty else shape[0] if batched else 1, c=1, k=shape[channel],
        input=tuple(max(extent, 1) for extent in spatial), filter=(1,) * rank,
        stride=(1,) * rank, dilation=(1,) * rank, padding=((0, 0),) * rank,
    )  # fmt: skip
    request = Request("bgrad", problem, operands.dtype, layout, batched or empty, accumulate=accumulate)
    if not empty:
        return Call(request, operands, ("dy",), out)
    # A sum over no pixels is one over no images, and that a problem can describe.
    operands.views["no images"] = operands.empty(request.shape("dy"))
    return Call(request, operands, ("no images",), out)


@repeatable
def conv_backward(
    dy: Array,
    x: Array,
    w: Array,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[Any] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    needs: Sequence[bool] = (True, True, True),
    padding_mode: str = "zeros",
    layout: str = "channels_first",
    flip: bool = False,
    precision: str | None = None,
    algorithm: str = "auto",
    out: Sequence[Array | None] | None = None,
    accumulate: bool = False,
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients of `conv` with respect to x, w and the bias.

    They are computed from dy, the gradient with respect to `conv`'s result before its activation. If
    the call had an activation, `activation_backward` makes dy of the gradient after the activation.
    The formulas are those of `conv_input_grad`, `conv_weight_grad` and `conv_bias_grad`.

    Parameters
    ----------
    dy : array
        Of the shape of `conv`'s result.
    x, w : array
        The input and the filters, as in `conv`.
    stride, padding, dilation, groups : optional
        As in `conv`.
    needs : sequence of three bool, optional
        Which of the three to compute, all by default; the others are None in the result.
    padding_mode, layout, flip, precision : optional
        As in `conv`.
    algorithm : str, default "auto"
        As in `conv`, for dx and dw. If both are needed, a name must be one that both have.
    out : sequence of three arrays or None, optional
        One place for each gradient.
    accumulate : bool, default False
        Add each gradient that is needed to what its place holds.

    Returns
    -------
    dx, dw, db : array or None
        Of the shapes of x, w and the bias, and of their dtype, which is any of those of `conv`.

    Raises
    ------
    ValueError, TypeError
        As in `conv`.

    See Also
    --------
    conv_input_grad, conv_weight_grad, conv_bias_grad : One gradient each, without the other operand.
    activation_backward : From the gradient after an activation to that before it.

    Examples
    --------
    >>> x, w = np.ones((1, 4)), np.array([[[1.0, 2.0]]])
    >>> dx, dw, db = cuconv.conv_backward(np.ones((1, 3)), x, w)
    >>> dx
    array([[1., 3., 3., 2.]])
    >>> dw, db
    (array([[[3., 3.]]]), array([3.]))
    """
    wanted, places = _three(needs, out)
    operands = arrays.adopt(dy=dy, x=x, w=w, **places)
    request = _request(
        "dgrad", operands.owner.backend, operands.dtype,
        operands.shape("x"), operands.shape("w"), ("x", "w", "dy"),
        stride, padding, dilation, groups, padding_mode, layout,
        flip, False, None, accumulate, precision,
    )  # fmt: skip
    expect_shape(request, "dy", "dy", operands)
    bgrad = replace(request, op="bgrad", conjugate=False, precision=None)
    calls = (
        Call(request, operands, ("dy", "w"), "out[0]") if wanted[0] else None,
        Call(replace(request, op="wgrad"), operands, ("x", "dy"), "out[1]") if wanted[1] else None,
        Call(bgrad, operands, ("dy",), "out[2]") if wanted[2] else None,
    )
    return _all_planned(calls, algorithm)


def _three(needs: Sequence[bool], out: Sequence[Array | None] | None) -> tuple[list[bool], dict[str, Any]]:
    """Which of dx, dw and db are wanted, and their places by the names `out[0]` to `out[2]`."""
    outs = (None, None, None) if out is None else out
    for name, given in (("needs", needs), ("out", outs)):
        if is_one(given) or len(entries(name, given)) != 3:
            raise ValueError(f"{name} must have three entries, for dx, dw and db, got {shown(given)}")
    return [flag("needs", need) for need in needs], {f"out[{i}]": array for i, array in enumerate(outs)}


def _all_planned(calls: Sequence[Call | None], algorithm: str) -> tuple[Any, Any, Any]:
    """Calls with their plans, to be run once all of them are checked and planned."""
    dx, dw, db = (
        call and call.planned("auto" if call.request.op == "bgrad" else algorithm) for call in calls
    )
    return dx, dw, db


@repeatable
def conv_transpose(
    x: Array,
    w: Array,
    bias: Array | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[Any] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "channels_first",
    flip: bool = False,
    activation: str | None = None,
    precision: str | None = None,
    algorithm: str = "auto",
    out: Array | None = None,
    accumulate: bool = False,
) -> Array:
    """Transposed convolution: the linear map of `conv_input_grad`, with bias and activation.

    On each spatial axis, with stride s, dilation d, and a and b cells of padding before and after (all
    of them those of the convolution that is transposed)::

        y[n, c, h] = activation(bias[c] + sum over k, r, p with p s - a + r d = h of
                                          x[n, k, p] w[k, c, r])

        H = (P - 1) s - a - b + d (R - 1) + output_padding + 1

    where x has P cells, the filter R and the result H.

    =====  ==========================  ==========================
    array  layout="channels_first"     layout="channels_last"
    =====  ==========================  ==========================
    x      ``(N, K, *input)``          ``(N, *input, K)``
    w      ``(K, C/groups, *filter)``  ``(K, *filter, C/groups)``
    bias   ``(C,)``                    ``(C,)``
    y      ``(N, C, *output)``         ``(N, *output, C)``
    =====  ==========================  ==========================

    x may come without the axis N; y then has none either.

    Parameters
    ----------
    x, w : array
        The input and the filters, of any library and dtype that `conv` takes.
    bias : array, optional
        One number for each channel of the result.
    stride : int or sequence of int, default 1
        As in `conv`; the result is about so many times as large as x.
    padding : int, str or sequence, default 0
        As in `conv`, but it is cut off the result. "same" makes the result stride times as large as x,
        plus `output_padding`.
    output_padding : int or sequence of int, default 0
        How many cells are added at the end of each axis, fewer than the stride or the dilation.
    groups, dilation, padding_mode, layout, flip, activation, precision : optional
        As in `conv`.
    algorithm : str, default "auto"
        As in `conv_input_grad`.
    out, accumulate : optional
        As in `conv`.

    Returns
    -------
    y : array
        A new array of x's library and dtype, or `out` where it is given.

    Raises
    ------
    ValueError, TypeError
        As in `conv`.

    See Also
    --------
    conv_transpose_backward : Its gradients.
    conv_input_grad : The same map for gradients, which conjugates complex filters.

    Notes
    -----
    Cells that no product reaches get the activation of the bias. Complex filters are not conjugated.
    The order of arguments is that of `torch.nn.functional.conv_transpose2d`.

    Examples
    --------
    >>> cuconv.conv_transpose(np.array([[1.0, 2.0, 3.0]]), np.ones((1, 1, 2)), stride=2)
    array([[1., 1., 2., 2., 3., 3.]])
    """
    operands = arrays.adopt(x=x, w=w, bias=bias, out=out)
    request = _transposed(
        operands, stride, padding, output_padding, groups, dilation, padding_mode, layout,
        flip=flip, bias=bias is not None, activation=activation, accumulate=accumulate, precision=precision,
    )  # fmt: skip
    return Call(request, operands, ("x", "w")).planned(algorithm)


@repeatable
def conv_transpose_backward(
    dy: Array,
    x: Array,
    w: Array,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[Any] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    needs: Sequence[bool] = (True, True, True),
    padding_mode: str = "zeros",
    layout: str = "channels_first",
    flip: bool = False,
    precision: str | None = None,
    algorithm: str = "auto",
    out: Sequence[Array | None] | None = None,
    accumulate: bool = False,
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients of `conv_transpose` with respect to x, w and the bias.

    They are computed from dy, the gradient with respect to `conv_transpose`'s result before its
    activation::

        dx[n, k, p] = sum over c, r of  dy[n, c, p s - a + r d] conj(w[k, c, r])
        dw[k, c, r] = sum over n, p of  conj(x[n, k, p]) dy[n, c, p s - a + r d]
        db[c] = sum over n and all pixels of  dy[n, c, ...]

    dx is the convolution of dy, the one that `conv_transpose` transposes. dw is its weight gradient,
    with x and dy exchanged.

    Parameters
    ----------
    dy : array
        Of the shape of `conv_transpose`'s result.
    x, w : array
        The input and the filters, as in `conv_transpose`.
    stride, padding, output_padding, groups, dilation : optional
        As in `conv_transpose`.
    needs : sequence of three bool, optional
        Which of the three to compute, all by default; the others are None in the result.
    padding_mode, layout, flip, precision : optional
        As in `conv`.
    algorithm : str, default "auto"
        As in `conv` for dx, and as in `conv_weight_grad` for dw. If both are needed, a name must be one
        that both have.
    out : sequence of three arrays or None, optional
        One place for each gradient.
    accumulate : bool, default False
        Add each gradient that is needed to what its place holds.

    Returns
    -------
    dx, dw, db : array or None
        Of the shapes of x, w and the bias, and of their dtype, which is any of those of `conv`.

    Raises
    ------
    ValueError, TypeError
        As in `conv`.

    See Also
    --------
    conv_backward : The gradients of `conv`.

    Notes
    -----
    dw is that of [1]_, equations 4 to 6, with the roles of x and dy exchanged.

    References
    ----------
    .. [1] Wang, Forward and Backward Propagation of Convolutional Layer (2015).

    Examples
    --------
    >>> x, w = np.array([[1.0, 2.0, 3.0]]), np.ones((1, 1, 2))
    >>> dx, dw, db = cuconv.conv_transpose_backward(np.ones((1, 6)), x, w, stride=2)
    >>> dx
    array([[2., 2., 2.]])
    >>> dw, db
    (array([[[6., 6.]]]), array([6.]))
    """
    wanted, places = _three(needs, out)
    operands = arrays.adopt(dy=dy, x=x, w=w, **places)
    forward = _transposed(
        operands, stride, padding, output_padding, groups, dilation, padding_mode, layout,
        flip=flip, accumulate=accumulate, precision=precision,
    )  # fmt: skip
    expect_shape(forward, "dx", "dy", operands)
    adjoint = replace(forward, op="fprop", conjugate=is_complex(forward.dtype))
    exchanged = replace(adjoint, op="wgrad", conjugate_sum=adjoint.conjugate)
    calls = (
        Call(adjoint, operands, ("dy", "w"), "out[0]") if wanted[0] else None,
        Call(exchanged, operands, ("dy", "x"), "out[1]") if wanted[1] else None,
        _bias_call(operands, layout, forward.batched, accumulate, "out[2]") if wanted[2] else None,
    )
    return _all_planned(calls, algorithm)


def _transposed(operands: Operands, *geometry: Any, precision: str | None, **fused: Any) -> Request:
    """The request for conv_transpose's x and w, from what `ConvProblem.transposed` takes besides."""
    x_shape, w_shape, layout = operands.shape("x"), operands.shape("w"), geometry[-1]
    problem = ConvProblem.transposed(
        x_shape, w_shape, *geometry, names=("x", "w", "dy")[: 2 + ("dy" in operands.views)]
    )
    precision = permitted(precision, operands.dtype, operands.owner.backend)
    batched = _batched(x_shape, problem)
    return Request("dgrad", problem, operands.dtype, layout, batched, precision=precision, **fused)


@checked_keywords
def plan(
    op: str,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    dtype: Any = "float32",
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[Any] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "channels_first",
    flip: bool = False,
    bias: bool = False,
    activation: str | None = None,
    precision: str | None = None,
    algorithm: str = "auto",
    out_dtype: Any = None,
    accumulate: bool = False,
    backend: str = "cpu",
    device: str | None = None,
) -> Plan:
    """The plan by which an op would be done: print it, inspect it, or call it with the op's arrays.

    Parameters
    ----------
    op : {"fprop", "dgrad", "wgrad", "bgrad"}
        "fprop" is the result of `conv`, "dgrad" its gradient with respect to x, "wgrad" to w, and
        "bgrad" to the bias. The plan is called with x and w, with dy and w, with x and dy, or with dy.
    x_shape, w_shape : sequence of int
        The shapes of x and w, for every op.
    dtype : dtype or pair of them, default "float32"
        Of all arrays; with `out_dtype` that of x and w, one for both or a pair.
    stride, padding, dilation, groups, padding_mode, layout, flip : optional
        As in `conv`.
    bias : bool, default False
        Whether a bias will be fused; the plan is then called with ``bias=``.
    activation, precision, algorithm, out_dtype : optional
        As in `conv`, but "tune" is an error, since there are no arrays to time.
    accumulate : bool, default False
        Whether results will be added to `out`; the plan is then called with ``out=``.
    backend : {"cpu", "cuda"}
        "cpu" for NumPy arrays, "cuda" for CuPy arrays.
    device : str, optional
        For "cuda", the architecture of a GPU, such as "sm_90"; that GPU need not be there. None is that
        of the current GPU, or "sm_90" if there is none.

    Returns
    -------
    plan : Plan
        Which algorithm, why, its launches and its workspace.

    Raises
    ------
    ValueError, TypeError
        As in `conv`.

    See Also
    --------
    Plan : What is returned.

    Notes
    -----
    The plan of `conv_transpose` is not made here.

    Examples
    --------
    >>> print(cuconv.plan("fprop", (1, 1, 5), (1, 1, 2), "float64", algorithm="gemm"))
    fprop float64 channels_first n1c1w5 k1s2
      algorithm  gemm on cpu with ... asked for by name
      work       16 FLOP, at least 88 bytes
      workspace  ... bytes
      launch     ...
    >>> plan = cuconv.plan("fprop", (1, 1, 5), (1, 1, 2), "float64")
    >>> plan(np.arange(5.0).reshape(1, 1, 5), np.ones((1, 1, 2)))
    array([[[1., 3., 5., 7.]]])
    """
    name, inputs = arrays.dtype_names(dtype, out_dtype)
    one_of("op", op, OPS)
    if not isinstance(backend, str) or backend not in ("cpu", "cuda"):
        error = ValueError if isinstance(backend, str) else TypeError
        raise error(
            f"backend must be 'cpu', for NumPy arrays, or 'cuda', for CuPy arrays, got {shown(backend)}"
        )
    if device is not None:
        if backend != "cuda":
            raise ValueError(f"device={shown(device)} is for backend='cuda', got backend={backend!r}")
        asked_for(device, lambda: current_arch("cuda"))  # raises if it is none
    bias = flag("bias", bias)
    one_of("activation", activation, ACTIVATIONS)
    if op != "fprop" and (bias or activation):
        raise ValueError(f"bias and activation are fused into fprop, not into {op}")
    request = _request(
        op, backend, name,
        integers("x_shape", x_shape, 0), integers("w_shape", w_shape, 0), ("x_shape", "w_shape"),
        stride, padding, dilation, groups, padding_mode, layout,
        flip, bias, activation, accumulate, precision, inputs,
    )  # fmt: skip
    return make_plan(request, algorithm, backend, current_arch(backend) if device is None else device)


def _request(
    op: str,
    backend: str,
    dtype: str,
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    names: tuple[str, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: str,
    layout: str,
    flip: bool,
    bias: bool,
    activation: str | None,
    accumulate: bool,
    precision: str | None,
    inputs: tuple[str, str] | None = None,
) -> Request:
    problem = ConvProblem.from_shapes(
        x_shape, w_shape, stride, padding, dilation, groups, padding_mode, layout, names=names
    )
    if op != "bgrad":
        precision = permitted(precision, dtype, backend)
    return Request(
        op, problem, dtype, layout, _batched(x_shape, problem), flip, bias, activation, accumulate,
        conjugate=op in ("dgrad", "wgrad") and is_complex(dtype), precision=precision, inputs=inputs,
    )  # fmt: skip


def _batched(x_shape: Sequence[int], problem: ConvProblem) -> bool:
    return len(x_shape) == problem.rank + 2
