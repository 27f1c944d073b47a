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
from .problem import ACTIVATIONS, LAYOUTS, OPS, ConvProblem, Request


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

    On each spatial axis, with stride s, dilation d, and a cells of padding before and b after,

        y[n, k, p] = activation(bias[k] + sum over c, r of  x[n, c, p s - a + r d] w[k, c, r])

    with c over the C/groups channels of k's group, and P = floor((H + a + b - d (R - 1) - 1) / s) + 1
    output cells.

    ============  ==========================================  ======================================
    array         layout="channels_first"                     layout="channels_last"
    ============  ==========================================  ======================================
    x             (N, C, *input) or (C, *input)               (N, *input, C) or (*input, C)
    w             (K, C/groups, *filter)                      (K, *filter, C/groups)
    bias          (K,)                                        (K,)
    y             (N, K, *output) or (K, *output)             (N, *output, K) or (*output, K)
    ============  ==========================================  ======================================

    All arrays have one dtype: float16, bfloat16, float32, float64, complex64, complex128, int32 or int64.
    Half types are summed in float32 and rounded once; integers are exact modulo 2^32 or 2^64. Sums of
    narrower integers, as images have, do not fit those: `out_dtype` names a wider dtype for them. Arrays may
    have any strides. Extents are in elements; zero-size batches and channels are allowed. Unlike in PyTorch
    the layout is that of the filters too. To filter each channel with the same kernel, repeat it C times
    along w's first axis and set groups=C.

    stride, dilation    one int, or one per spatial axis; at least 1
    padding             one int, one per axis, one (before, after) pair per axis, or "valid", "same"
                        (P = ceil(H / s), the odd cell at the end), "same_lower", "full"; negative crops
    padding_mode        what the padding holds: "zeros"; "circular", the other end (NumPy's "wrap");
                        "reflect", the mirror image about the outermost cell (SciPy's "mirror");
                        "replicate", the outermost cell (NumPy's "edge", SciPy's "nearest"); or
                        "symmetric", the mirror image that repeats the outermost cell (scipy.ndimage's
                        "reflect", scipy.signal's "symm")
    flip                turn the filters by 180 degrees: true convolution, as in SciPy and MATLAB
    activation          None, "relu", "sigmoid", "tanh", "silu" or "gelu"
    precision           None for the dtype's own accuracy; "tf32" permits float32 to be multiplied as
                        numbers rounded to 11 bits, on tensor cores ("mma"), and summed in float32. For CuPy
                        arrays CUPY_TF32=1, in the environment, has None mean it
    algorithm           "auto", "tune" (time the candidates once) or a name, which never falls back: for NumPy
                        arrays "gemm", "mec", "im2col", "toeplitz", "depthwise" or "fft", for CuPy arrays
                        "mma", "wgmma", "grouped", "simt", "depthwise", "direct" or "fft", which needs cuFFT
    out_dtype           "int32" or "int64": the dtype of y, bias and out, and of all sums, where x and w are
                        integers that it holds, each of its own: int8, uint8, int16, uint16 or int32; for
                        int64 also uint32. Truth values go in as x.view("uint8")
    out, accumulate     write the result to `out`, or add it to `out`

    Zeros of the padding are multiplied like any other cell, in the gradients too: where one meets an infinity
    or NaN of the other operand the result is NaN. Only `algorithm="fft"` mixes all cells of an image.

    Raises ValueError for shapes and values, TypeError for dtypes and kinds of array, before any work.
    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 9.1; padding names as in
    TensorFlow and NumPy.
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
    """The gradient of `conv` with respect to x, given dy, the gradient of its result before activation.

        dx[n, c, h] = sum over k, r, p with p s - a + r d = h of  dy[n, k, p] conj(w[k, c, r])

    With stride 1 and no padding this is the full correlation of dy with the filter turned by 180 degrees.
    It is the adjoint of `conv`: <dy, conv(x, w)> = <conv_input_grad(dy, w), x>. Cells that no output sees
    get zero where w is finite; outside of its P cells dy counts as zeros, for every tap whose p is whole.

    dy          the shape of `conv`'s result
    w           the filters, as in `conv`
    input_shape the shape of x, which the stride leaves open
    returns     dx, of shape input_shape

    Shapes, dtypes, options and errors are those of `conv`; the algorithms are "gemm", "mec", "col2im",
    "toeplitz", "depthwise" and "fft" for NumPy arrays, "mma", "wgmma", "grouped", "simt", "depthwise",
    "direct" and "fft" for CuPy arrays. Source: Wang, Forward and Backward Propagation of Convolutional Layer
    (2015), equations 7 to 9.
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
    """The gradient of `conv` with respect to w, given dy, the gradient of its result before activation.

        dw[k, c, r] = sum over n, p of  dy[n, k, p] conj(x[n, c, p s - a + r d])

    With stride 1 this is the correlation of x with dy. It is the adjoint of `conv` in w:
    <dy, conv(x, w)> = <conv_weight_grad(x, dy), w>.

    x             the input, as in `conv`
    dy            the shape of `conv`'s result
    weight_shape  the shape of w, which the stride leaves open
    returns       dw, of shape weight_shape

    Shapes, dtypes, options and errors are those of `conv`; the algorithms are "gemm", "im2col", "toeplitz",
    "depthwise" and "fft" for NumPy arrays, "mma", "wgmma", "grouped", "simt", "depthwise", "direct" and
    "fft" for CuPy arrays. Source: Wang, Forward and Backward Propagation of Convolutional Layer (2015),
    equations 4 to 6.
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
    """The gradient of `conv` with respect to its bias: db[k] = sum over n and all pixels of dy[n, k, ...].

    dy       (N, K, *output), or (N, *output, K) for channels_last; `batched=False` says that the axis N is
             missing, which the shape alone does not tell
    returns  db, of shape (K,)

    Dtypes and errors are those of `conv`.
    """
    operands = arrays.adopt(dy=dy, out=out)
    one_of("layout", layout, LAYOUTS)
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
    """The gradients of `conv` with respect to x, w and the bias, given dy.

    needs    which of the three to compute; the others are None in the result
    out      three arrays or None, one for each gradient; with `accumulate` each needed one is added to
    returns  (dx, dw, db): see `conv_input_grad`, `conv_weight_grad` and `conv_bias_grad`

    Shapes, dtypes, the other options and errors are those of `conv`.
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
    """Transposed convolution: the linear map of `conv_input_grad`, used forward, with bias and activation.

        y[n, c, h] = activation(bias[c] + sum over k, r, p with p s - a + r d = h of  x[n, k, p] w[k, c, r])

    with H = (P - 1) s - a - b + d (R - 1) + output_padding + 1 on each spatial axis, P being x's extent and
    a and b the padding before and after of the convolution that is transposed.

    ============  ==========================================  ======================================
    array         layout="channels_first"                     layout="channels_last"
    ============  ==========================================  ======================================
    x             (N, K, *input) or (K, *input)               (N, *input, K) or (*input, K)
    w             (K, C/groups, *filter)                      (K, *filter, C/groups)
    bias          (C,)                                        (C,)
    y             (N, C, *output) or (C, *output)             (N, *output, C) or (*output, C)
    ============  ==========================================  ======================================

    `output_padding` cells, fewer than the stride or the dilation, are added at the end of each axis.
    `padding="same"` makes the result stride times as large as x, and output_padding more. Cells that no
    product reaches get the activation of the bias. Complex filters are not conjugated. The other options,
    dtypes and errors are those of `conv`; the order of arguments is that of
    `torch.nn.functional.conv_transpose2d`. `conv_transpose_backward` has its gradients.
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
    """The gradients of `conv_transpose` with respect to x, w and the bias, given dy, before its activation.

        dx[n, k, p] = sum over c, r of  dy[n, c, p s - a + r d] conj(w[k, c, r])
        dw[k, c, r] = sum over n, p of  conj(x[n, k, p]) dy[n, c, p s - a + r d]
        db[c] = sum over n and all pixels of  dy[n, c, ...]

    dx is the convolution that is transposed, of dy, and dw its weight gradient with x and dy exchanged.

    dy       the shape of `conv_transpose`'s result
    needs    which of the three to compute; the others are None in the result
    out      three arrays or None, one for each gradient; with `accumulate` each needed one is added to
    returns  (dx, dw, db), of the shapes of x, w and the bias

    Shapes, dtypes, the other options and errors are those of `conv_transpose`. Source: that of
    `conv_weight_grad`, with the roles of x and dy exchanged.
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

    op       "fprop" (called with x, w), "dgrad" (dy, w), "wgrad" (x, dy) or "bgrad" (dy)
    dtype    of all arrays; with out_dtype of x and w, one for both or a pair
    bias     whether a bias will be fused; the plan is then called with `bias=`
    backend  "cpu" for NumPy arrays, "cuda" for CuPy arrays
    device   for "cuda", the architecture of the GPU, "sm_90" and the like, which none need be there for;
             None for the current GPU's, or "sm_90" where there is none

    The other options and errors are those of `conv`; the plan of `conv_transpose` is not made here.
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
