"""The convolutions of `cupy.cudnn`, which CuPy had up to version 13, for programs that use them.

`install` has ``from cupy import cudnn`` find these functions, and SigPy find them too::

    import cuconv.cudnn
    print(cuconv.cudnn.install())

Each writes its result into an array that it is given and returns None. On each spatial axis, with
stride s, dilation d, and a cells of padding at either end, `convolution_forward`,
`convolution_backward_data` and `convolution_backward_filter` are::

    y[n, k, p] = b[k] + sum over c, r of  x[n, c, p s - a + r d] W[k, c, r]

    y[n, c, h] = b[c] + sum over k, r, p with p s - a + r d = h of  x[n, k, p] conj(W[k, c, r])

    gW[k, c, r] = sum over n, p of  gy[n, k, p] conj(x[n, c, p s - a + r d])

In the second one y and x are what others call gx and gy, and b is added to the rounded sums. The
three are `cuconv.conv`, `cuconv.conv_input_grad` and `cuconv.conv_weight_grad` by CuPy's names. All
arrays of a call have one dtype, any of those of `cuconv.conv`.

===========  ==========================  ==========================
array        CUDNN_TENSOR_NCHW           CUDNN_TENSOR_NHWC
===========  ==========================  ==========================
the input    ``(N, C, *input)``          ``(N, *input, C)``
the filters  ``(K, C/groups, *filter)``  ``(K, *filter, C/groups)``
the output   ``(N, K, *output)``         ``(N, *output, K)``
===========  ==========================  ==========================

b has as many numbers as the result has channels, in any shape, or is None.

Sources: `cupyx/cudnn.pyx` of CuPy 13 for the interface, cuDNN's `cudnnConvolutionForward` for beta.
"""
# ruff: noqa: N803  (W and gW are CuPy's names)

from __future__ import annotations

import importlib
import numbers
import sys
import warnings
from collections.abc import Callable, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from . import arrays
from .api import conv, conv_input_grad, conv_weight_grad
from .arrays import Array, Operands
from .dtypes import described
from .options import checked_keywords, flag, held_by_float64, integer, one_of, per_axis, shown
from .problem import ConvProblem

__all__ = [
    "CUDNN_TENSOR_NCHW",
    "CUDNN_TENSOR_NHWC",
    "available",
    "convolution_backward_data",
    "convolution_backward_filter",
    "convolution_forward",
    "install",
    "uninstall",
]

CUDNN_TENSOR_NCHW, CUDNN_TENSOR_NHWC = 0, 1

available = True
"""What `cupy.cuda.cudnn` said of itself where cuDNN was there."""

_LAYOUTS = {CUDNN_TENSOR_NCHW: "channels_first", CUDNN_TENSOR_NHWC: "channels_last"}


@checked_keywords
def convolution_forward(
    x: Array,
    W: Array,
    b: Array | None,
    y: Array,
    pad: Any,
    stride: Any,
    dilation: Any,
    groups: int,
    *,
    auto_tune: bool,
    tensor_core: str,
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
    beta: float = 0,
) -> None:
    """Write the cross-correlation of x with the filters W, plus b, to y.

    On each spatial axis, with stride s, dilation d, and a cells of padding at either end::

        y[n, k, p] = b[k] + sum over c, r of  x[n, c, p s - a + r d] W[k, c, r]

    Parameters
    ----------
    x, W : array
        The input and the filters, in the shapes of the module `cuconv.cudnn`, of 1 to 3 spatial axes;
        all arrays are of one dtype, which is any of those of `cuconv.conv`.
    b : array or None
        One number per channel of y, in any shape.
    y : array
        Where the result goes.
    pad, stride, dilation : int or sequence of int
        One int per spatial axis, or one for all of them.
    groups : int
        As in `cuconv.conv`.
    auto_tune : bool
        True is ``algorithm="tune"``: the first call of its kind times the algorithms, the others use
        the fastest one. Otherwise "auto".
    tensor_core : {"always", "auto", "never"}
        All mean the same here: tensor cores are used where they lose nothing, and as TF32 only where
        CUPY_TF32=1 in the environment permits it.
    d_layout, w_layout : {CUDNN_TENSOR_NCHW, CUDNN_TENSOR_NHWC}
        The layout of the input and the output, and that of the filters.
    beta : float, default 0
        The result is added to beta times what y holds. 0 writes over y, even over NaN, as CuPy's
        functions did, which had no such argument. For integers it is 0 or 1.

    Raises
    ------
    ValueError
        For shapes and values, before any work.
    TypeError
        For dtypes and kinds of array, likewise.

    See Also
    --------
    cuconv.conv : The same, with more options and its result returned.

    Examples
    --------
    >>> from cuconv import cudnn
    >>> x, W, y = np.ones((1, 1, 4)), np.ones((1, 1, 2)), np.empty((1, 1, 5))
    >>> cudnn.convolution_forward(x, W, None, y, 1, 1, 1, 1, auto_tune=False, tensor_core="auto")
    >>> y
    array([[[1., 2., 2., 2., 1.]]])
    """
    call = _checked(
        ("x", "W", "y"), dict(x=x, W=W, b=b, y=y), "y", auto_tune, tensor_core,
        (pad, stride, dilation, groups), (d_layout, w_layout), beta,
    )  # fmt: skip
    call.write(conv, call["x"], call["W"], call["b"])


@checked_keywords
def convolution_backward_filter(
    x: Array,
    gy: Array,
    gW: Array,
    pad: Any,
    stride: Any,
    dilation: Any,
    groups: int,
    *,
    deterministic: bool,
    auto_tune: bool,
    tensor_core: str,
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
    beta: float = 0,
) -> None:
    """Write the gradient with respect to the filters to gW, given the input x and the gradient gy.

    On each spatial axis, with stride s, dilation d, and a cells of padding at either end::

        gW[k, c, r] = sum over n, p of  gy[n, k, p] conj(x[n, c, p s - a + r d])

    Parameters
    ----------
    x, gy : array
        The input, and the gradient of the output, as in `convolution_forward`.
    gW : array
        Where the result goes, of the filters' shape.
    pad, stride, dilation, groups
        As in `convolution_forward`.
    deterministic : bool
        True switches `auto_tune` off, as in CuPy. No result depends on the order of threads anyway.
    auto_tune, tensor_core
        As in `convolution_forward`.
    d_layout, w_layout, beta : optional
        As in `convolution_forward`.

    Raises
    ------
    ValueError, TypeError
        As in `convolution_forward`.

    See Also
    --------
    cuconv.conv_weight_grad : The same, with more options and its result returned.

    Examples
    --------
    >>> from cuconv import cudnn
    >>> x, gy, gW = np.arange(4.0).reshape(1, 1, 4), np.ones((1, 1, 3)), np.empty((1, 1, 2))
    >>> cudnn.convolution_backward_filter(
    ...     x, gy, gW, 0, 1, 1, 1, deterministic=True, auto_tune=False, tensor_core="auto"
    ... )
    >>> gW
    array([[[3., 6.]]])
    """
    call = _checked(
        ("x", "gW", "gy"), dict(x=x, gy=gy, gW=gW), "gW", auto_tune, tensor_core,
        (pad, stride, dilation, groups), (d_layout, w_layout), beta, deterministic,
    )  # fmt: skip
    call.write(conv_weight_grad, call["x"], call["gy"], call["gW"].shape)


@checked_keywords
def convolution_backward_data(
    W: Array,
    x: Array,
    b: Array | None,
    y: Array,
    pad: Any,
    stride: Any,
    dilation: Any,
    groups: int,
    *,
    deterministic: bool,
    auto_tune: bool,
    tensor_core: str,
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
    beta: float = 0,
) -> None:
    """Write the gradient with respect to the input, plus b, to y, given the filters W and the gradient x.

    On each spatial axis, with stride s, dilation d, and a cells of padding at either end::

        y[n, c, h] = b[c] + sum over k, r, p with p s - a + r d = h of  x[n, k, p] conj(W[k, c, r])

    Chainer's transposed convolutions are this.

    Parameters
    ----------
    W, x : array
        The filters, and the gradient of the output, as in `convolution_forward`.
    b : array or None
        One number per channel of y, in any shape; added to the rounded sums.
    y : array
        Where the result goes, of the input's shape.
    pad, stride, dilation, groups
        As in `convolution_forward`.
    deterministic, auto_tune, tensor_core
        As in `convolution_backward_filter`.
    d_layout, w_layout, beta : optional
        As in `convolution_forward`.

    Raises
    ------
    ValueError, TypeError
        As in `convolution_forward`.

    See Also
    --------
    cuconv.conv_input_grad : The same, with more options and its result returned.

    Examples
    --------
    >>> from cuconv import cudnn
    >>> W, x, y = np.ones((1, 1, 2)), np.ones((1, 1, 3)), np.empty((1, 1, 4))
    >>> cudnn.convolution_backward_data(
    ...     W, x, None, y, 0, 1, 1, 1, deterministic=True, auto_tune=False, tensor_core="auto"
    ... )
    >>> y
    array([[[1., 2., 2., 1.]]])
    """
    call = _checked(
        ("y", "W", "x"), dict(W=W, x=x, b=b, y=y), "y", auto_tune, tensor_core,
        (pad, stride, dilation, groups), (d_layout, w_layout), beta, deterministic,
    )  # fmt: skip
    call.write(conv_input_grad, call["x"], call["W"], call["y"].shape, then_add=call["b"])


@dataclass(frozen=True)
class _Call:
    """The arrays of a call by the caller's names, all in one layout, and what cuconv's functions are told.

    `out` is the name of the array that is written to.
    """

    operands: Operands
    out: str
    beta: float
    options: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.operands[name]

    def write(self, function: Callable[..., Array], *inputs: Any, then_add: Array | None = None) -> None:
        """Add what a function makes of the inputs to beta times the result, then one number per channel."""
        out = self[self.out]
        if self.beta not in (0, 1):
            out *= out.dtype.type(self.beta)
        function(*inputs, out=out, accumulate=self.beta != 0, **self.options)
        if then_add is not None:
            spatial = out.ndim - 2 if self.options["layout"] == "channels_first" else 0
            out += then_add.reshape(-1, *(1,) * spatial)
        self.operands.give_back(self.out, out)


def _checked(
    roles: tuple[str, str, str],
    given: dict[str, Any],
    out: str,
    auto_tune: bool,
    tensor_core: str,
    geometry: tuple[Any, Any, Any, Any],
    layouts: tuple[int, int],
    beta: float,
    deterministic: bool = False,
) -> _Call:
    """A call, once all that it is given has been found to fit.

    `roles` are the caller's names for the input, the filters and the output, `out` is one of them; `geometry`
    is pad, stride, dilation and groups; `layouts` are d_layout and w_layout.
    """
    image, filters, output = roles
    one_of("tensor_core", tensor_core, ("always", "auto", "never"))
    auto_tune, deterministic = _truth("auto_tune", auto_tune), _truth("deterministic", deterministic)
    layout, of_filters = map(_layout, ("d_layout", "w_layout"), layouts)
    given = {name: array for name, array in given.items() if name != "b" or array is not None}
    operands = arrays.adopt(**given)
    _check_beta(beta, operands.dtype)
    shapes = [operands.shape(name) for name in roles]
    if {len(shape) for shape in shapes} not in ({3}, {4}, {5}):
        raise ValueError(
            f"{image}, {filters} and {output} must have the same number of axes, 3, 4 or 5 (1 to 3 spatial "
            f"ones), got shapes {', '.join(map(str, shapes))}"
        )
    if of_filters != layout:
        here, there = (1, -1) if layout == "channels_last" else (-1, 1)
        operands.views[filters] = operands.owner.namespace.moveaxis(operands.views[filters], here, there)
    rank = len(shapes[0]) - 2
    pad, stride, dilation, groups = geometry
    problem = _problem(
        (operands.shape(image), operands.shape(filters)),
        per_axis("stride", stride, rank, 1),
        per_axis("pad", pad, rank, 0),
        per_axis("dilation", 1 if dilation is None else dilation, rank, 1),
        integer("groups", groups, 1),
        layout,
        (image, filters),
    )
    expected = problem.y_shape(layout)
    if operands.shape(output) != expected:
        raise ValueError(
            f"{output} must have shape {expected}, to go with {image} {shapes[0]} and {filters} {shapes[1]}, "
            f"got {operands.shape(output)}"
        )
    if "b" in given:
        channels, bias = problem.c if out == image else problem.k, operands.views["b"]
        if bias.size != channels:
            raise ValueError(
                f"b must have {channels} elements, one per channel of {out}, got shape {tuple(bias.shape)}"
            )
        operands.views["b"] = bias.reshape(-1)
    operands.check_out(out, operands.shape(out))
    options = problem.options() | dict(
        layout=layout, algorithm="tune" if auto_tune and not deterministic else "auto"
    )
    return _Call(operands, out, beta, options)


@lru_cache(maxsize=4096)
def _problem(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    stride: tuple[int, ...],
    pad: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    layout: str,
    names: tuple[str, str],
) -> ConvProblem:
    """The geometry, made once for calls that are made again."""
    return ConvProblem.from_shapes(*shapes, stride, pad, dilation, groups, layout=layout, names=names)


def _truth(argument: str, value: Any) -> bool:
    """A truth value; CuPy took numbers for one."""
    return bool(value) if isinstance(value, numbers.Integral) else flag(argument, value)


def _layout(argument: str, value: Any) -> str:
    """cuconv's word for a layout that is given as cuDNN's number."""
    is_number = isinstance(value, numbers.Integral)
    if not is_number or value not in _LAYOUTS:
        raise (ValueError if is_number else TypeError)(
            f"{argument} must be CUDNN_TENSOR_NCHW, {CUDNN_TENSOR_NCHW}, or CUDNN_TENSOR_NHWC, "
            f"{CUDNN_TENSOR_NHWC}, got {shown(value)}"
        )
    return _LAYOUTS[int(value)]


def _check_beta(beta: Any, dtype: str) -> None:
    """Raise unless a result of that dtype can be multiplied by beta."""
    if not isinstance(beta, numbers.Real):
        raise TypeError(f"beta must be a real number, got {shown(beta)}")
    held_by_float64("beta", beta)
    if described(dtype).kind == "i" and beta not in (0, 1):
        raise ValueError(f"beta must be 0 or 1 for {dtype}, got {shown(beta)}")


NAMES = ("cupy.cudnn", "cupyx.cudnn", "cupy.cuda.cudnn")
"""Where CuPy had these functions, and what told its users that it had them."""

_undo: ExitStack | None = None
"""What takes everything back that `install` has put in place, where it has."""


def install() -> str:
    """Put this module into CuPy under the names of its cuDNN functions.

    From then on ``from cupy import cudnn``, ``import cupyx.cudnn`` and ``import cupy.cuda.cudnn`` find
    this module. SigPy looks for them when it is imported, so that it convolves on GPUs again; if it has
    been imported already, it looks once more. Nothing is changed where CuPy has cuDNN functions that
    work, as up to version 13.

    Returns
    -------
    done : str
        What was done, in words.

    Raises
    ------
    ImportError
        Without CuPy.

    See Also
    --------
    uninstall : Takes it back.
    """
    global _undo
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            f"cuconv.cudnn.install() needs CuPy, which cannot be imported ({error}): "
            "pip install 'cuconv[cuda12]', or 'cuconv[cuda13]' where nvidia-smi shows CUDA 13"
        ) from error
    if _undo is not None:
        return f"nothing to do: {_listed(NAMES)} are cuconv.cudnn already"
    if _has_cudnn():
        return f"nothing was changed: CuPy {cupy.__version__} has cuDNN functions of its own"
    with ExitStack() as undo:
        for name in NAMES:
            package, _, attribute = name.rpartition(".")
            _set(undo, vars(importlib.import_module(package)), attribute, sys.modules[__name__])
            _set(undo, sys.modules, name, sys.modules[__name__])
        told = _tell_sigpy(undo)
        _undo = undo.pop_all()
    return f"{_listed(NAMES)} are now cuconv.cudnn{'; SigPy, imported before, has been told' if told else ''}"


def uninstall() -> str:
    """Take back what `install` did, exactly.

    A module that has imported a name meanwhile, as SigPy does, keeps the functions behind it.

    Returns
    -------
    done : str
        What was done, in words.

    Examples
    --------
    >>> from cuconv import cudnn
    >>> cudnn.uninstall()
    'nothing to do: cuconv.cudnn is not installed'
    """
    global _undo
    if _undo is None:
        return "nothing to do: cuconv.cudnn is not installed"
    _undo.close()
    _undo = None
    return f"{_listed(NAMES)} are again what they were"


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _has_cudnn() -> bool:
    """Whether CuPy's own functions can be imported, which takes version 13 or older and cuDNN itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a deprecated name, or of a library that is not there
        try:
            importlib.import_module("cupy.cudnn")
        except ImportError:
            return False
    return True


def _set(undo: ExitStack, names: MutableMapping[str, Any], name: str, value: Any) -> None:
    """Give a name a value, and have it undone."""
    if name in names:
        undo.callback(names.__setitem__, name, names[name])
    else:
        undo.callback(names.pop, name, None)
    names[name] = value


def _tell_sigpy(undo: ExitStack) -> bool:
    """Let SigPy find out anew what it found out when it was imported, if it was and found CuPy.

    `sigpy.conv` defines its functions for GPUs only where there is cuDNN, so that it is executed once more.
    The functions that it had stay the same objects, since others have imported them, and see the new ones.
    """
    config, module = sys.modules.get("sigpy.config"), sys.modules.get("sigpy.conv")
    if config is None or module is None or not config.cupy_enabled:
        return False
    _set(undo, vars(config), "cudnn_enabled", True)
    names, before = vars(module), dict(vars(module))
    undo.callback(lambda: [names.pop(name) for name in names.keys() - before.keys()])
    importlib.reload(module)
    names.update(before)
    return True
