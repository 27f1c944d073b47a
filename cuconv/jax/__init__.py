"""The core's functions on JAX's arrays, to be compiled, differentiated and mapped as JAX's own.

They are used like those of `cuconv`, within JAX's transforms too::

    import cuconv.jax

    y = cuconv.jax.conv(x, w, bias, stride=2, padding="same", activation="relu")  # as cuconv.conv
    dw = jax.jit(jax.grad(loss))(w)  # where the loss uses it

On the CPU they are computed as NumPy arrays, on a CUDA GPU as CuPy arrays on XLA's own memory.
"""

try:
    import jax as _jax  # noqa: F401
except ImportError as error:
    raise ImportError(f"cuconv.jax needs JAX ({error}): pip install jax") from error

from .functions import (
    conv,
    conv1d,
    conv2d,
    conv3d,
    conv_backward,
    conv_bias_grad,
    conv_input_grad,
    conv_transpose,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    conv_transpose_backward,
    conv_weight_grad,
)

__all__ = [
    "conv",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_backward",
    "conv_bias_grad",
    "conv_input_grad",
    "conv_transpose",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "conv_transpose_backward",
    "conv_weight_grad",
]
