"""Convolution and its gradients on NumPy and CuPy arrays, without a deep-learning framework."""

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

__version__ = "0.1.0"

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
