"""Convolution and its gradients on NumPy and CuPy arrays, without a deep-learning framework.

`conv` convolves, `conv_backward` has its gradients, `conv_transpose` is its transpose, and `plan`
says how a call would be done. ``help(cuconv.conv)`` has formula, shapes, dtypes and options, which
the others share. `cuconv.nn` has layers. The modules `cuconv.signal`, `cuconv.ndimage`,
`cuconv.torch`, `cuconv.jax`, `cuconv.dask` and `cuconv.cudnn` are for users of other libraries,
each to be imported by its name.

>>> x = np.arange(9.0).reshape(1, 1, 3, 3)  # N, C, H, W
>>> w = np.ones((1, 1, 2, 2))  # K, C, R, S
>>> y = cuconv.conv(x, w)
>>> y
array([[[[ 8., 12.],
         [20., 24.]]]])
>>> dx, dw, db = cuconv.conv_backward(np.ones_like(y), x, w)  # of the loss y.sum()
>>> db
array([4.])
"""

from . import nn as nn
from .activations import activation_backward
from .api import (
    conv,
    conv_backward,
    conv_bias_grad,
    conv_input_grad,
    conv_transpose,
    conv_transpose_backward,
    conv_weight_grad,
    plan,
)
from .plan import Plan
from .problem import ConvProblem
from .ranked import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d

__version__ = "0.2.0"

__all__ = [
    "ConvProblem",
    "Plan",
    "activation_backward",
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
    "plan",
]
