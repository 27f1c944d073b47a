"""cuconv's functions on Dask arrays, for what is larger than one memory or one GPU.

Convolutions and their gradients make Dask arrays, which are computed when Dask is asked to::

    import cuconv.dask

    y = cuconv.dask.conv(x, w, padding="same")  # x and w are Dask arrays; nothing is computed yet
    dw = cuconv.dask.conv_weight_grad(x, y - target, w.shape, padding="same").compute()

Names, arguments and results are those of `cuconv`; the arrays' chunks are NumPy's or CuPy's.
"""

try:
    import dask.array as _dask_array
except ImportError as error:
    raise ImportError(
        f"cuconv.dask needs Dask ({error}): pip install 'dask[array]', for clusters 'dask[array,distributed]'"
    ) from error

if getattr(_dask_array, "ARRAY_EXPR_ENABLED", False):
    raise ImportError("cuconv.dask makes graphs itself: Dask's setting array.query-planning must not be True")

from .functions import (
    conv,
    conv_backward,
    conv_bias_grad,
    conv_input_grad,
    conv_transpose,
    conv_weight_grad,
)

__all__ = [
    "conv",
    "conv_backward",
    "conv_bias_grad",
    "conv_input_grad",
    "conv_transpose",
    "conv_weight_grad",
]
