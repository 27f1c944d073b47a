"""Every wrong input raises before any work; the message names the argument, what was expected, what came."""

import inspect
import random
import re
import sys
import types
from dataclasses import fields
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

import cuconv
import cuconv.nn
from cuconv import prepared
from cuconv.cuda import jit
from cuconv.cuda.device import DEVICES, KNOWN
from cuconv.plan import READY, device_of
from cuconv.problem import LAYOUTS, MODES_ELSEWHERE, PADDING_MODES

from .emulator import emulated

X, W, DY = np.ones((2, 4, 6, 7)), np.ones((8, 4, 3, 3)), np.ones((2, 8, 4, 5))
BUFFER, WIDE = np.ones(31), np.ones(1000)


def fake(library, name="ndarray", **attributes):
    """An object of a type that claims to come from another library."""
    kind = type(
        name, (), {"__module__": library, "shape": (2, 4, 6, 7), "dtype": np.dtype(float), **attributes}
    )
    return kind()


def conv(x=X, w=W, *args, **options):
    return lambda: cuconv.conv(x, w, *args, **options)


def dgrad(dy=DY, w=W, shape=X.shape, *args, **options):
    return lambda: cuconv.conv_input_grad(dy, w, shape, *args, **options)


def wgrad(x=X, dy=DY, shape=W.shape, *args, **options):
    return lambda: cuconv.conv_weight_grad(x, dy, shape, *args, **options)


VALUES = {
    "ONNX's same": (
        conv(padding="SAME_UPPER"),
        "got 'SAME_UPPER'; ONNX's 'same_upper' is called 'same' here",
    ),
    "a picture whose channels are last": (
        lambda: cuconv.conv(np.ones((40, 60, 3)), np.ones((3, 3))),
        r"each of the 3 channels of x \(40, 60, 3\) is w\[None, ..., None\]\[\[0\] \* 3\] of shape "
        r"\(3, 3, 3, 1\) with groups=3 \(layout='channels_last'\)",
    ),
    "y of another shape": (
        lambda: cuconv.activation_backward(DY, "relu", y=DY[:1]),
        r"y must have the shape of dy, \(.*\), got \(1, ",
    ),
    "neither y nor its argument": (
        lambda: cuconv.activation_backward(DY, "tanh"),
        "tanh takes one of y and pre_activation, got neither",
    ),
    "both y and its argument": (
        lambda: cuconv.activation_backward(DY, "tanh", y=DY, pre_activation=DY),
        "tanh takes one of y and pre_activation, got y and pre_activation",
    ),
    "y where its argument is needed": (
        lambda: cuconv.activation_backward(DY, "gelu", y=DY),
        "gelu needs pre_activation, since two of its arguments have one y; got y",
    ),
    "a pair of three dtypes": (
        lambda: cuconv.plan("fprop", X.shape, W.shape, ("uint8",) * 3, out_dtype="int32"),
        "dtype must be one, or a pair for x and w, got",
    ),
    "dy of conv_transpose_backward": (
        lambda: cuconv.conv_transpose_backward(X, DY, W, stride=2),
        r"dy must have shape \(",
    ),
    "rank of w": (conv(w=np.ones((8, 4))), r"w must have 3, 4 or 5 axes .* got shape \(8, 4\)"),
    "rank of x": (
        conv(x=np.ones((6, 7))),
        r"x must have 4 axes \(N, C, H, W\), or 3 without N.* got shape \(6, 7\)",
    ),
    "channels": (
        conv(x=np.ones((2, 5, 6, 7))),
        r"x has 5 channels .* w \(8, 4, 3, 3\) with groups=1 expects 4 x 1",
    ),
    "channels of the other layout": (conv(layout="channels_last"), r"layout='channels_last'"),
    "groups do not divide K": (
        conv(x=np.ones((2, 12, 6, 7)), groups=3),
        r"groups=3 does not divide K=8 \(n2c12h6w7 k8r3s3 g3\)",
    ),
    "groups below 1": (conv(groups=0), "groups must be at least 1, got 0"),
    "stride below 1": (conv(stride=0), "stride must be at least 1, got 0"),
    "stride of the wrong length": (conv(stride=(1, 1, 1)), r"stride must be one int or 2 .* got \(1, 1, 1\)"),
    "dilation below 1": (conv(dilation=(1, 0)), "dilation must be at least 1, got 0"),
    "padding of the wrong length": (conv(padding=(1, 1, 1)), r"padding must be an int, 2 ints or"),
    "padding pair for one axis": (
        lambda: cuconv.conv1d(np.ones((1, 1, 5)), np.ones((1, 1, 3)), padding=(2, 0)),
        r"a pair for the one axis is written \[\(2, 0\)\]",
    ),
    "padding that is no pair": (conv(padding=((1, 2, 3), (1, 2))), r"padding takes \(before, after\) pairs"),
    "padding name": (conv(padding="smae"), "padding must be one of 'valid'.* did you mean 'same'"),
    "a mode for padding": (conv(padding="reflect"), "did you mean padding_mode='reflect'"),
    "padding mode": (conv(padding_mode="reflection"), "did you mean 'reflect'"),
    "padding mode in capitals": (
        conv(padding_mode="WRAP"),
        "got 'WRAP'; .* 'wrap' is called 'circular' here",
    ),
    "padding mode of a layer": (
        lambda: cuconv.nn.Conv(4, 8, 3, rank=2, padding_mode="edge").forward(X.astype(np.float32)),
        "got 'edge'; NumPy's 'edge' is called 'replicate' here",
    ),
    "padding mode of a transpose": (
        lambda: cuconv.conv_transpose(DY, W, padding="Symm"),
        "got 'Symm': did you mean padding_mode='symmetric'",
    ),
    "padding mode of a problem": (
        lambda: cuconv.ConvProblem.parse("c1w5 k1s3 p1 grid-wrap"),
        "each word of the problem .* got 'grid-wrap'; SciPy's 'grid-wrap' is called 'circular' here",
    ),
    "layout": (conv(layout="channel_last"), "did you mean 'channels_last'"),
    "layout elsewhere": (conv(layout="NHWC"), "cuDNN's 'nhwc' is called 'channels_last' here"),
    "picture whose channels are last": (
        conv(x=np.ones((2, 6, 7, 4))),
        r"x has 6 channels .*; its last axis has 4: layout='channels_last' is for that, with filters \(K, ",
    ),
    "activation": (conv(activation="ReLU"), "activation must be one of None, 'relu'.* did you mean 'relu'"),
    "precision": (conv(precision="tf31"), "did you mean 'tf32'"),
    "algorithm": (conv(algorithm="gem"), "algorithm must be one of 'auto', 'tune'.* did you mean 'gemm'"),
    "algorithm that does not apply": (
        conv(algorithm="depthwise"),
        r"algorithm='depthwise' cannot do fprop float64 .*n2c4h6w7 k8r3s3: it needs groups == C",
    ),
    "empty output": (
        conv(x=np.ones((2, 4, 2, 7)), dilation=(3, 1), padding=(1, 0)),
        r"axis h gives no output: input 2 with padding \(1, 1\) is 4 long, but the filter reaches over 7 "
        r"\(extent 3, dilation 3\) \(n2c4h2w7 k8r3s3 dh3dw1 ph1pw0\)",
    ),
    "empty filter": (conv(w=np.ones((8, 4, 0, 3))), "w must not be empty along its spatial axes"),
    "nothing to repeat": (
        conv(x=np.ones((2, 4, 0, 7)), padding=3, padding_mode="circular"),
        "padding_mode='circular' needs input to repeat, but axis h is empty",
    ),
    "bias": (conv(X, W, np.ones(4)), r"bias must have shape \(8,\).* got \(4,\)"),
    "shape of out": (
        conv(out=np.ones((2, 8, 4, 4))),
        r"out must have shape \(2, 8, 4, 5\), got \(2, 8, 4, 4\)",
    ),
    "out that is x": (conv(w=np.ones((4, 4, 1, 1)), out=X), "out must not overlap x"),
    "out that overlaps x": (
        conv(x=BUFFER[:16].reshape(1, 1, 4, 4), w=np.ones((1, 1, 1, 1)), out=BUFFER[15:].reshape(1, 1, 4, 4)),
        "out must not overlap x",
    ),
    "read-only out": (conv(out=np.broadcast_to(np.ones(()), (2, 8, 4, 5))), "out must be writable"),
    "out that overlaps itself": (
        conv(out=np.lib.stride_tricks.as_strided(np.ones(99), (2, 8, 4, 5), (8, 0, 8, 8))),
        "out must not overlap itself",
    ),
    "accumulate without out": (conv(accumulate=True), "accumulate=True adds to out, but out is None"),
    "shape of dy": (
        dgrad(dy=np.ones((2, 8, 4, 4))),
        r"dy must have shape \(2, 8, 4, 5\) in n2c4h6w7 k8r3s3, got \(2, 8, 4, 4\)",
    ),
    "input_shape": (dgrad(shape=(2, 5, 6, 7)), "input_shape has 5 channels"),
    "rank of input_shape": (dgrad(shape=(2, 4)), "input_shape must have 4 axes"),
    "negative input_shape": (dgrad(shape=(2, 4, -6, 7)), "input_shape must be at least 0"),
    "unbatched dy for a batched input": (dgrad(dy=DY[0]), r"dy must have shape \(2, 8, 4, 5\)"),
    "weight_shape": (wgrad(shape=(8, 2, 3, 3)), r"x has 4 channels .* weight_shape \(8, 2, 3, 3\)"),
    "dy in wgrad": (wgrad(dy=np.ones((2, 7, 4, 5))), r"dy must have shape \(2, 8, 4, 5\)"),
    "needs": (lambda: cuconv.conv_backward(DY, X, W, needs=(True, True)), "needs must have three entries"),
    "needs that is none": (
        lambda: cuconv.conv_backward(DY, X, W, needs=None),
        "needs must have three entries",
    ),
    "dy in backward": (lambda: cuconv.conv_backward(DY[:, :7], X, W), r"dy must have shape \(2, 8, 4, 5\)"),
    "out of the wrong length": (
        lambda: cuconv.conv_backward(DY, X, W, out=(None,) * 4),
        "out must have three entries",
    ),
    "out that overlaps w": (
        conv(w=WIDE[:288].reshape(8, 4, 3, 3), out=WIDE[287:607].reshape(2, 8, 4, 5)),
        "out must not overlap w",
    ),
    "out that overlaps the bias": (
        conv(X, W, WIDE[:8], out=WIDE[7:327].reshape(2, 8, 4, 5)),
        "out must not overlap bias",
    ),
    "six axes of w": (conv(np.ones((1,) * 6), np.ones((1,) * 6)), "w must have 3, 4 or 5 axes"),
    "out that overlaps itself in part": (
        conv(out=np.lib.stride_tricks.as_strided(np.ones(400), (2, 8, 4, 5), (1280, 160, 32, 8))),
        "out must not overlap itself",
    ),
    "bias of a gradient's plan": (
        lambda: cuconv.plan("dgrad", X.shape, W.shape, bias=True),
        "fused into fprop, not into dgrad",
    ),
    "bias that was announced": (
        lambda: cuconv.plan("fprop", X.shape, W.shape, float, bias=True)(X, W),
        "bias was announced",
    ),
    "backend": (
        lambda: cuconv.plan("fprop", X.shape, W.shape, backend="gpu"),
        "backend must be 'cpu', for NumPy arrays, or 'cuda'",
    ),
    "precision of dgrad": (dgrad(precision="tf31"), "did you mean 'tf32'"),
    "precision of wgrad": (wgrad(precision="tf31"), "did you mean 'tf32'"),
    "precision of backward": (
        lambda: cuconv.conv_backward(DY, X, W, precision="tf31"),
        "did you mean 'tf32'",
    ),
    "precision of the transpose": (
        lambda: cuconv.conv_transpose(DY, W, precision="tf31"),
        "did you mean 'tf32'",
    ),
    "layout of a bias": (lambda: cuconv.conv_bias_grad(DY, layout="channel_last"), "did you mean"),
    "rank of dy for a bias, above": (
        lambda: cuconv.conv_bias_grad(np.ones((1,) * 6)),
        "dy must have 1 to 3 spatial axes",
    ),
    "input that reflects nothing": (
        conv(x=np.ones((2, 4, 0, 7)), padding=3, padding_mode="reflect"),
        "padding_mode='reflect' needs input",
    ),
    "dy in backward of nothing": (
        lambda: cuconv.conv_backward(DY[0, :0], X, W, needs=(False, False, False)),
        r"dy must have shape \(2, 8, 4, 5\)",
    ),
    "dy of a plan for the bias": (
        lambda: cuconv.plan("bgrad", X.shape, W.shape, float)(DY[:, :, :0]),
        r"dy must have shape \(2, 8, 4, 5\)",
    ),
    "dy in backward of the bias alone": (
        lambda: cuconv.conv_backward(DY[:, :7], X, W, needs=(False, False, True)),
        r"dy must have shape \(2, 8, 4, 5\)",
    ),
    "huge groups": (
        conv(groups=10**5000),
        "groups must be below 2.62 in magnitude, got a number of 16610 bits",
    ),
    "huge stride": (conv(stride=10**30), "stride must be below 2.62 in magnitude"),
    "hugely negative stride": (
        conv(stride=-(10**5000)),
        "stride must be at least 1, got a value of type int",
    ),
    "huge padding": (conv(padding=[(0, 10**400), (0, 0)]), "padding must be below 2.62 in magnitude"),
    "long stride": (conv(stride=range(10**30)), "stride must have 64 entries at the most, got range"),
    "long shape": (dgrad(shape=[1] * 100), "input_shape must have 64 entries at the most"),
    "long word": (conv(padding="same" * 10**6), "padding must be one of 'valid'.* [.]{3} \\w+samesame'$"),
    "long text": (lambda: cuconv.ConvProblem.parse("c1 " * 10**5), "'c' stands twice in .* [.]{3} .*c1 '$"),
    "needs that has no length": (
        lambda: cuconv.conv_backward(DY, X, W, needs=np.array(True)),
        "needs must have three entries",
    ),
    "rank of conv1d": (lambda: cuconv.conv1d(X, W), r"w must have 3 axes for conv1d"),
    "rank of conv3d": (lambda: cuconv.conv3d(X, W), r"w must have 5 axes for conv3d"),
    "rank of dy for a bias": (lambda: cuconv.conv_bias_grad(np.ones(3)), "dy must have 1 to 3 spatial axes"),
    "op of a plan": (lambda: cuconv.plan("frop", X.shape, W.shape), "did you mean 'fprop'"),
}

TYPES = {
    "out_dtype and foreign bytes": (
        conv(X.astype(">u2"), W.astype("u1"), out_dtype="int32"),
        "x must have dtype .* in native byte order for out_dtype='int32', got ",
    ),
    "truth values as bias": (
        conv(X.astype("u1"), W.astype("u1"), bias=np.ones(8, bool), out_dtype="int32"),
        "bias must have dtype int32 for out_dtype='int32', got bool$",
    ),
    "a plan of bytes": (
        lambda: cuconv.plan("fprop", X.shape, W.shape, "uint8"),
        "dtype uint8 needs an out_dtype, 'int32' or 'int64', for its sums",
    ),
    "bytes where there is no out_dtype": (
        lambda: cuconv.conv_backward(DY.astype("u1"), X.astype("u1"), W.astype("u1")),
        r"dy has dtype uint8, .* x\.astype\('int32'\) and w\.astype\('int32'\) lose nothing$",
    ),
    "an activation of a gradient": (
        lambda: cuconv.conv_backward(DY, X, W, activation="relu"),
        "no argument 'activation'; dy is the gradient before the activation: activation_backward makes",
    ),
    "out_dtype of floats": (
        conv(out_dtype="int32"),
        "x must have dtype int8, uint8, int16, uint16, int32 for out_dtype='int32', got float64",
    ),
    "out_dtype that is narrow": (
        conv(X.astype("u1"), W.astype("u1"), out_dtype="uint16"),
        "out_dtype must be 'int32' or 'int64', for x and w of integers, got 'uint16'",
    ),
    "out_dtype that does not hold x": (
        conv(X.astype("u4"), W.astype("u1"), out_dtype=np.int32),
        "got uint32; out_dtype='int64' takes it$",
    ),
    "truth values for out_dtype": (
        conv(X > 0, W.astype("u1"), out_dtype="int32"),
        r"x must have dtype .*, got bool; x\.view\('uint8'\) counts what is True",
    ),
    "bias of another dtype than out_dtype": (
        conv(X.astype("u1"), W.astype("u1"), bias=np.ones(8, "u1"), out_dtype="int32"),
        "bias must have dtype int32 for out_dtype='int32', got uint8",
    ),
    "out of another dtype than out_dtype": (
        conv(X.astype("u1"), W.astype("u1"), out=np.ones(DY.shape, "i8"), out_dtype="int32"),
        "out must have dtype int32 for out_dtype='int32', got int64",
    ),
    "a plan for integers with others": (
        lambda: cuconv.plan("fprop", X.shape, W.shape, ("uint8", "int8"), out_dtype="int32")(
            X.astype("i1"), W.astype("i1")
        ),
        "the plan was made for arrays on the CPU of dtype uint8 and int8, got .* of dtype int8 and int8",
    ),
    "a gradient of narrower integers": (
        lambda: cuconv.plan("wgrad", X.shape, W.shape, "uint8", out_dtype="int32"),
        "wgrad in int32 cannot be computed from x of uint8",
    ),
    "an activation of complex numbers": (
        lambda: cuconv.activation_backward(DY + 0j, "relu", y=DY + 0j),
        "activation='relu' is not defined for dtype complex128",
    ),
    "y of another dtype": (
        lambda: cuconv.activation_backward(DY, "relu", y=DY.astype("f4")),
        "y must have the dtype of dy, float64, got float32",
    ),
    "a list": (conv(x=[[1.0]]), "x must be a NumPy array.* got builtins.list"),
    "a list again": (conv(x=[1.0]), "numpy.asarray makes one of it"),
    "a stride for the bias": (conv(X, W, 2), "stride and the rest come after the bias"),
    "an array for a shape": (dgrad(shape=X), "input_shape must be a sequence of ints, got an array"),
    "needs": (lambda: cuconv.conv_backward(DY, X, W, needs=(1, 1, 1)), "needs must be True or False"),
    "no array": (conv(x=None), "x must be a NumPy array.* got builtins.NoneType"),
    "a masked array": (conv(x=np.ma.ones((2, 4, 6, 7))), "x is a masked array"),
    "dtypes": (conv(w=W.astype(np.float32)), "w must have the dtype of x, float64, got float32"),
    "dtype of the bias": (
        conv(X, W, np.ones(8, np.int32)),
        "bias must have the dtype of x, float64, got int32",
    ),
    "dtype of out": (conv(out=np.ones((2, 8, 4, 5), np.float32)), "out must have the dtype of x"),
    "unsupported dtype": (
        conv(X.astype(np.uint8), W.astype(np.uint8)),
        "x has dtype uint8, supported are float16",
    ),
    "object dtype": (conv(X.astype(object), W.astype(object)), "x has dtype object"),
    "byte order": (conv(X.astype(">f8"), W.astype(">f8")), "native byte order"),
    "set for padding": (conv(padding={1}), r"padding must be an int, ints or pairs per axis.* got \{1\}"),
    "set in padding": (conv(padding=[{1}, {2}]), r"padding must be an int, got \{1\}"),
    "dictionary for padding": (conv(padding={1: 2, 3: 4}), "padding must be an int, ints or pairs per axis"),
    "generator for padding": (conv(padding=(i for i in (1, 1))), "padding must be an int, ints or pairs"),
    "bytes for padding": (conv(padding=b"\1\1"), r"padding must be an int, ints or pairs .* got b'"),
    "digits in padding": (conv(padding=["1", "1"]), "padding must be an int, got '1'"),
    "padding nested too deep": (conv(padding=[[[1, 1]] * 2] * 2), r"padding must be an int, got \[1, 1\]"),
    "float array for padding": (conv(padding=np.ones(2)), "padding must be an int, got"),
    "bytes for a stride": (conv(stride=b"\1\1"), r"stride must be an int, got b'"),
    "memoryview for a stride": (conv(stride=memoryview(b"\1\1")), "stride must be an int, got <memory"),
    "iterator for a dilation": (conv(dilation=iter((1, 1))), "dilation must be an int, got <tuple_iter"),
    "generator for a shape": (dgrad(shape=(i for i in X.shape)), "input_shape must be a sequence of ints"),
    "array of no numbers for flip": (conv(flip=fake("other", shape=())), "flip must be True or False"),
    "a class": (conv(x=np.ndarray), "x must be a NumPy array.* got builtins.type"),
    "needs that has no length": (
        lambda: cuconv.conv_backward(DY, X, W, needs=(np.ones(2), True, True)),
        "needs must be True or False",
    ),
    "backend": (lambda: cuconv.plan("fprop", X.shape, W.shape, backend=np.array(["cpu"])), "backend must be"),
    "structure for a dtype": (lambda: cuconv.plan("fprop", X.shape, W.shape, "(2,"), "dtype must be one of"),
    "batched": (lambda: cuconv.conv_bias_grad(DY, batched="no"), "batched must be True or False"),
    "bias of a plan": (
        lambda: cuconv.plan("fprop", X.shape, W.shape, bias=1),
        "bias must be True or False",
    ),
    "a list for conv2d": (lambda: cuconv.conv2d(X, [[1.0]]), "w must be a NumPy array"),
    "precision of bfloat16": (
        lambda: cuconv.plan("fprop", X.shape, W.shape, "bfloat16", precision="tf32"),
        "is for float32",
    ),
    "float stride": (conv(stride=1.0), "stride must be an int, got 1.0"),
    "string stride": (conv(stride="1"), "stride must be an int, got '1'"),
    "float padding": (
        conv(padding=0.5),
        "padding must be an int, ints or pairs per axis, or a name, got 0.5",
    ),
    "float groups": (conv(groups=1.0), "groups must be an int, got 1.0"),
    "flip": (conv(flip=1), "flip must be True or False, got 1"),
    "accumulate": (conv(accumulate="yes"), "accumulate must be True or False"),
    "algorithm": (conv(algorithm=None), "algorithm must be a string, got None"),
    "input_shape": (dgrad(shape=7), "input_shape must be a sequence of ints, got 7"),
    "activation of complex": (
        conv(X + 0j, W + 0j, activation="relu"),
        "activation='relu' is not defined for dtype complex128",
    ),
    "activation of integers": (
        conv(X.astype(np.int64), W.astype(np.int64), activation="tanh"),
        "activation='tanh' is not defined for dtype int64",
    ),
    "precision of float64": (conv(precision="tf32"), "precision='tf32' is for float32, got dtype float64"),
    "dtype of a plan": (lambda: cuconv.plan("fprop", X.shape, W.shape, "uint64"), "dtype must be one of"),
    "layout that is an array": (conv(layout=np.array(["channels_first"])), "layout must be one of"),
    "layout that is no string": (conv(layout=3), "layout must be one of"),
    "keyword elsewhere": (conv(mode="same"), r"no argument 'mode'; how much is computed is said by padding="),
    "keyword of PyTorch's": (conv(weight=2), r"no argument 'weight'; it is called w here"),
    "unknown keyword": (conv(pading=2), r"conv\(\) has no argument 'pading'; did you mean 'padding'"),
    "unknown keyword of a ranked name": (lambda: cuconv.conv2d(X, W, strides=2), "did you mean 'stride'"),
    "algorithm that is no string": (conv(algorithm=["gemm"]), r"algorithm must be a string, got \['gemm'\]"),
    "set for a stride": (conv(stride={1, 2}), "stride must be"),
    "no dtype": (lambda: cuconv.plan("fprop", X.shape, W.shape, None), "dtype must be one of"),
    "misspelt dtype": (lambda: cuconv.plan("fprop", X.shape, W.shape, "flaot32"), "dtype must be one of"),
    "byte order of a plan": (lambda: cuconv.plan("fprop", X.shape, W.shape, ">f4"), "dtype must be one of"),
    "dtype of costs": (lambda: cuconv.ConvProblem.parse("c1w5 k1s3").flops("fprop", "int8"), "dtype must be"),
    "extents of a problem": (
        lambda: cuconv.ConvProblem(1, 1, 1, 5, (3,), (1,), (1,), ((0, 0),)),
        "input must be a sequence of ints, got 5",
    ),
    "padding of a problem": (
        lambda: cuconv.ConvProblem(1, 1, 1, (5,), (3,), (1,), (1,), ((0.5, 0.5),)),
        "padding must be an int, got 0.5",
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_value_errors(name):
    call, message = VALUES[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", TYPES)
def test_type_errors(name):
    call, message = TYPES[name]
    with pytest.raises(TypeError, match=message):
        call()


TAKEN = "; out_dtype={!r} takes {} and {} as they are"
CONVERSIONS = {
    ("int8", "int8"): "; x.astype('int32') and w.astype('int32') lose nothing"
    + TAKEN.format("int32", "x", "w"),
    ("uint8", "float32"): "; x.astype('float32') loses nothing",
    ("uint16", "int32"): "; x.astype('int32') loses nothing" + TAKEN.format("int32", "x", "w"),
    ("int32", "uint8"): "; w.astype('int32') loses nothing" + TAKEN.format("int32", "x", "w"),
    ("int16", "float16"): "; x.astype('float32') and w.astype('float32') lose nothing",
    ("bool", "bool"): "; x.astype('int32') and w.astype('int32') lose nothing"
    + TAKEN.format("int32", "x.view('uint8')", "w.view('uint8')"),
    ("bool", "int64"): "; x.astype('int64') loses nothing" + TAKEN.format("int64", "x.view('uint8')", "w"),
    ("bool", "float32"): "; x.astype('float32') loses nothing",
    ("uint32", "uint32"): "; x.astype('int64') and w.astype('int64') lose nothing"
    + TAKEN.format("int64", "x", "w"),
    ("uint32", "float32"): "; x.astype('float64') and w.astype('float64') lose nothing",
    ("uint64", "uint64"): "; x.astype('int64') is right where no value is above 2^63 - 1",
    (">f8", "float64"): "; x.astype('float64') loses nothing",
    (">i8", ">i8"): "; x.astype('int64') and w.astype('int64') lose nothing",
    (">f2", ">f2"): "; x.astype('float16') and w.astype('float16') lose nothing",
    (">c8", "float64"): "; x.astype('complex128') and w.astype('complex128') lose nothing",
    ("longdouble", "longdouble"): "; x.astype('float64') rounds it",
    ("clongdouble", "float64"): "; x.astype('complex128') rounds it",
    ("object", "float64"): "",
    ("U3", "U3"): "",
    ("M8[s]", "M8[s]"): "",
    ("m8[s]", "float64"): "",
    ("f4,f4", "f4,f4"): "",
    ("float32", "float64"): "; x.astype('float64') loses nothing",
    ("float64", "float32"): "; w.astype('float64') loses nothing",
    ("int32", "float32"): "; x.astype('float64') and w.astype('float64') lose nothing",
    ("int64", "float64"): "; x.astype('float64') is exact for integers up to 2^53",
    ("complex64", "int64"): "; w.astype('complex64') is exact for integers up to 2^24",
    ("int64", "bfloat16"): "; x.astype('bfloat16') is exact for integers up to 2^8",
    ("float16", "bfloat16"): "; x.astype('float32') and w.astype('float32') lose nothing",
    ("complex64", "float64"): "; x.astype('complex128') and w.astype('complex128') lose nothing",
    ("float64", "object"): "",
}


def extremes(name):
    """Three values that only a dtype at least as wide can hold."""
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.array([limits.min, 0, limits.max], dtype)
    if dtype.kind in "fc" or dtype == ml_dtypes.bfloat16:
        limits = ml_dtypes.finfo(dtype.newbyteorder("="))
        return np.array([limits.max, limits.tiny, 1 + limits.eps]).astype(dtype)
    return np.zeros(3, dtype)


def in_python(array):
    """An array as Python's numbers, which compare without rounding."""
    return (array.astype("float32") if array.dtype == ml_dtypes.bfloat16 else array).tolist()


@pytest.mark.parametrize(("first", "second"), CONVERSIONS)
def test_conversions_that_errors_propose(first, second):
    """They lose nothing, or the error says what; where no conversion would do, none is proposed."""
    values = dict(x=extremes(first), w=extremes(second))
    advice = CONVERSIONS[first, second]
    with pytest.raises(TypeError, match=r"^[xw] (has dtype|must have the dtype)") as caught:
        cuconv.conv(**{name: array[None, None] for name, array in values.items()})
    message = str(caught.value)
    assert message.endswith(advice)
    assert ("astype" in message) == ("astype" in advice)
    if "nothing" in advice:
        converted = dict(values)
        for name, target in re.findall(r"(\w)\.astype\('(\w+)'\)", message):
            converted[name] = values[name].astype(getattr(ml_dtypes, target, target))
            assert in_python(converted[name]) == in_python(values[name])
        of_converted = cuconv.conv(**{name: array[None, None] for name, array in converted.items()})
        assert of_converted.size == 1
    if match := re.search(r"\w\.astype\('(\w+)'\) is exact for integers up to 2\^(\d+)", message):
        first_lost = np.array([2 ** int(match[2]) + step for step in (-1, 0, 1)])
        kept = first_lost.astype(getattr(ml_dtypes, match[1], match[1])).astype("complex128").real
        np.testing.assert_array_equal(kept.astype(int) == first_lost, [True, True, False])
    if match := re.search(r"out_dtype='(\w+)' takes (.*) and (.*) as", message):
        as_they_are = (eval(operand, dict(values))[None, None] for operand in match.groups()[1:])
        np.testing.assert_array_equal(cuconv.conv(*as_they_are, out_dtype=match[1]), of_converted)


def test_no_conversion_is_proposed_of_a_place_for_results():
    for dtype in ("float32", "int8", ">f8"):
        with pytest.raises(TypeError, match=r"^out\[1\] (?!.*astype)"):
            cuconv.conv_backward(DY, X, W, out=(None, W.astype(dtype), None))


ADVISED = {
    "image": (cuconv.conv, dict(x=(64, 60), w=(3, 5))),
    "image by rank": (cuconv.conv2d, dict(x=(64, 60), w=(3, 5))),
    "signal": (cuconv.conv, dict(x=(100,), w=(5,))),
    "signal by rank": (cuconv.conv1d, dict(x=(100,), w=(5,))),
    "volume by rank": (cuconv.conv3d, dict(x=(6, 7, 8), w=(3, 2, 1))),
    "channels": (cuconv.conv, dict(x=(6, 7, 8), w=(3, 3))),
    "batch": (cuconv.conv, dict(x=(2, 6, 7, 8), w=(3, 3))),
    "batch of signals": (cuconv.conv, dict(x=(2, 6, 7), w=(3,))),
    "one channel": (cuconv.conv, dict(x=(1, 9, 1), w=(3, 3))),
    "image with filters": (cuconv.conv, dict(x=(6, 7), w=(1, 1, 1, 1))),
    "input gradient": (cuconv.conv_input_grad, dict(dy=(6, 7), w=(3, 3), input_shape=(6, 7))),
    "weight gradient": (cuconv.conv_weight_grad, dict(x=(6, 7), dy=(6, 7), weight_shape=(3, 3))),
    "of channels": (cuconv.conv_weight_grad, dict(x=(4, 6, 7), dy=(4, 6, 7), weight_shape=(3, 3))),
    "transpose": (cuconv.conv_transpose, dict(x=(6, 7), w=(3, 3))),
    "transpose by rank": (cuconv.conv_transpose2d, dict(x=(4, 6, 7), w=(3, 3))),
    "gradients": (cuconv.conv_backward, dict(dy=(6, 7), x=(6, 7), w=(3, 3))),
    "gradients of the transpose": (cuconv.conv_transpose_backward, dict(dy=(6, 7), x=(6, 7), w=(3, 3))),
    "shapes": (cuconv.ConvProblem.from_shapes, dict(x_shape=(6, 7), w_shape=(3, 3))),
    "shapes of channels": (cuconv.ConvProblem.transposed, dict(x_shape=(4, 6, 7), w_shape=(3, 3))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ADVISED)
def test_advice_for_filters_without_channels_works(name, layout):
    """What the error says to write, evaluated, has the shape it says, and the call then goes through."""
    function, shapes = ADVISED[name]
    given = {key: shape if "shape" in key else np.ones(shape) for key, shape in shapes.items()}
    with pytest.raises(ValueError, match=r"^\w+ must have .* got shape .*; ") as caught:
        function(**given, padding="same", layout=layout)
    arrays = r"((\w+)\[[None., *0-9[\]]+\])(?: of shape (\(.*?\)))?"
    tuples = r"(\([0-9*, ]*\*(\w+)[0-9, ]*\)) = (\(.*?\))"
    changed = {}
    for pattern in (arrays, tuples):
        for expression, key, shape in re.findall(pattern, str(caught.value)):
            changed[key] = eval(expression, dict(given))
            assert shape in ("", str(np.shape(changed[key]) if pattern is arrays else changed[key]))
    groups = dict(re.findall(r"(groups)=(\d+)", str(caught.value)))
    options = dict(padding="same", layout=layout, **{key: int(count) for key, count in groups.items()})
    result = function(**given | changed, **options)
    if hasattr(result, "shape"):  # a problem has none; padding="same" keeps that of x and dy
        expected = changed.get("weight_shape") or np.shape(
            changed.get("x", given.get("x", changed.get("dy")))
        )
        assert result.shape == expected


def test_advice_for_a_picture_whose_channels_are_last_works():
    photo, kernel = np.ones((40, 60, 3)), np.ones((3, 3))
    with pytest.raises(ValueError, match="layout='channels_last'") as caught:
        cuconv.conv(photo, kernel)
    code, groups, layout = re.search(
        r"is (w\[.*\]) of .* groups=(\d) \(layout='(\w+)'", str(caught.value)
    ).groups()
    y = cuconv.conv(photo, eval(code, {"w": kernel}), padding="same", groups=int(groups), layout=layout)
    assert y.shape == photo.shape
    assert y[5, 5, 0] == 9


def test_no_advice_where_it_is_open_what_is_meant():
    for x, w in (((100,), (3, 5)), ((2, 3, 4, 5, 6), (3, 3)), ((0, 6, 7), (3, 3)), ((6, 7), ())):
        with pytest.raises(ValueError, match=r"; one filter for one channel has K = C = 1$"):
            cuconv.conv(np.ones(x), np.ones(w))
    with pytest.raises(ValueError, match=r"w must have 4 axes for conv2d .* got shape \(3, 3\)$"):
        cuconv.conv2d(np.ones(100), np.ones((3, 3)))


def test_nothing_is_written_when_a_later_check_fails():
    """conv_backward checks all three gradients before it computes the first."""
    dx, dw = np.full(X.shape, 7.0), np.full(W.shape, 7.0)
    with pytest.raises(ValueError, match=r"out\[2\] must have shape \(8,\)"):
        cuconv.conv_backward(DY, X, W, out=(dx, dw, np.ones(9)))
    assert (dx == 7).all()
    assert (dw == 7).all()
    with pytest.raises(ValueError, match=r"accumulate=True adds to out\[1\], but out\[1\] is None"):
        cuconv.conv_backward(DY, X, W, out=(dx, None, None), accumulate=True)
    assert (dx == 7).all()


def test_backward_refuses_outputs_that_overlap():
    dx = np.zeros(X.shape)
    with pytest.raises(ValueError, match=r"out\[0\] must not overlap out\[2\]"):
        cuconv.conv_backward(DY, X, W, out=(dx, None, dx.reshape(-1)[:8]))
    with pytest.raises(ValueError, match=r"out\[0\] must not overlap x"):
        cuconv.conv_backward(DY, dx, W, out=(dx, None, None))


def test_mixed_kinds_of_array(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace())
    with pytest.raises(
        TypeError, match=r"w must be the same kind of array as x \(cupy array on the GPU\), got a numpy"
    ):
        cuconv.conv(fake("cupy"), W)
    with pytest.raises(TypeError, match="out must be the same kind of array as x"):
        cuconv.conv(X, W, out=fake("cupy"))


@pytest.mark.parametrize(("device", "backend"), [(1, "cpu"), (3, "cpu"), (2, "cuda"), (13, "cuda")])
@pytest.mark.parametrize("place", ["strange", "strange.dlpack"])
def test_dlpack_devices(monkeypatch, device, backend, place):
    monkeypatch.setitem(sys.modules, "strange", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, place, types.SimpleNamespace(from_dlpack=lambda array: array))
    tensor = fake("strange", __dlpack__=None, __dlpack_device__=lambda self: (device, 0))
    owner = cuconv.arrays.owner_of("x", tensor)
    assert owner == cuconv.arrays.Owner("strange", backend, sys.modules[place])


def test_an_array_on_a_gpu_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "strange", types.SimpleNamespace(from_dlpack=lambda array: array))
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(jit, "require_cupy", jit.require_cupy.__wrapped__)
    tensor = fake("strange", __dlpack__=None, __dlpack_device__=lambda self: (2, 0))
    with pytest.raises(TypeError, match="x cannot be read through DLPack: arrays on a GPU need CuPy"):
        cuconv.conv(tensor, tensor)


@pytest.mark.parametrize("error", [BufferError, RuntimeError, TypeError, ValueError])
def test_what_dlpack_cannot_say(monkeypatch, error):
    def refuse(self, **options):
        raise error("not so")

    monkeypatch.setitem(sys.modules, "strange", types.SimpleNamespace(from_dlpack=lambda array: array))
    tensor = fake("strange", __dlpack__=refuse, __dlpack_device__=lambda self: (1, 0))
    with pytest.raises(TypeError, match="x cannot be read through DLPack: not so"):
        cuconv.conv(tensor, tensor)


def test_one_library_on_two_devices(monkeypatch):
    def on(device):
        return fake("other", __dlpack__=None, __dlpack_device__=lambda self: (device, 0))

    monkeypatch.setitem(sys.modules, "other", types.SimpleNamespace(from_dlpack=lambda array: array))
    with pytest.raises(TypeError, match=r"w must be the same kind of array as x \(other array on the CPU\)"):
        cuconv.conv(on(1), on(2))


def test_a_plan_for_the_cpu_refuses_arrays_on_a_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace())
    plan = cuconv.plan("fprop", X.shape, W.shape, "float64")
    with pytest.raises(
        TypeError, match="made for arrays on the CPU of dtype float64, got arrays on a GPU of dtype float64"
    ):
        plan(fake("cupy"), fake("cupy", shape=W.shape))


@pytest.mark.parametrize(
    "device", ["sm_99", "sm_130", "sm_9", "sm_90a", "sm_\u0668\u0660", "sm_" + "9" * 5000]
)
def test_a_device_that_no_gpu_is(device):
    with pytest.raises(
        ValueError, match=r"^device must be .* one of sm_75 \(T4\), .* sm_87, .* got 'sm_"
    ) as caught:
        cuconv.plan("fprop", X.shape, W.shape, backend="cuda", device=device)
    for known in KNOWN:
        assert f"sm_{known}" in str(caught.value)


def test_every_device_that_a_gpu_is():
    counts_as = {87: "A10", 88: "A10", 101: "B200", 103: "B200", 110: "B200", 121: "RTX 5090"}
    for known in KNOWN:
        plan = cuconv.plan("fprop", X.shape, W.shape, backend="cuda", device=f"sm_{known}")
        assert plan.arch == f"sm_{known}"
        assert device_of("cuda", plan.arch).example == counts_as.get(known) or DEVICES[plan.arch].example


def test_a_gpu_newer_than_all_that_are_known(monkeypatch):
    """The driver's word is taken: what it says is planned for, and may be named too."""
    monkeypatch.setattr(cuconv.api, "current_arch", lambda backend: "sm_130")
    shapes = "fprop", X.shape, W.shape
    assert cuconv.plan(*shapes, backend="cuda").arch == "sm_130"
    assert cuconv.plan(*shapes, backend="cuda", device="sm_130").arch == "sm_130"
    assert device_of("cuda", "sm_130").example == "RTX 5090"
    with pytest.raises(ValueError, match="device must be"):
        cuconv.plan(*shapes, backend="cuda", device="sm_131")


def test_ranked_functions_take_positional_arguments():
    w, bias = np.ones((8, 2, 3, 3)), np.arange(8.0)
    expected = cuconv.conv(X, w, bias, stride=2, padding=1, dilation=2, groups=2)
    np.testing.assert_array_equal(cuconv.conv2d(X, w, bias, 2, 1, 2, 2), expected)


def test_a_library_that_takes_nothing_back():
    mute = fake("mute", __dlpack__=None, __dlpack_device__=lambda self: (1, 0))
    with pytest.raises(TypeError, match=r"x must be a NumPy array.* got mute"):
        cuconv.conv(mute, W)


def test_dlpack_on_an_unknown_device():
    strange = fake("strange", __dlpack__=None, __dlpack_device__=lambda self: (99, 0))
    with pytest.raises(TypeError, match=r"x must be a NumPy array.* got strange"):
        cuconv.conv(strange, W)


def test_bfloat16_by_name_and_type():
    for dtype in ("bfloat16", ml_dtypes.bfloat16):
        assert cuconv.plan("fprop", X.shape, W.shape, dtype).request.dtype == "bfloat16"


class Sequenced:
    """What looks like a table of another library: it has a shape and entries, but not of numbers."""

    shape = (2, 4)

    def __getitem__(self, index):
        raise KeyError(index)

    def __iter__(self):
        return iter("ab")


class Unreadable(list):
    """A sequence that cannot be read."""

    def __iter__(self):
        raise RuntimeError("not read")


class Stubborn:
    """An object that answers nothing."""

    def __repr__(self):
        raise RuntimeError("not printed")

    __index__ = __array__ = __repr__


ODD = [
    *(
        None,
        True,
        0,
        -1,
        1.5,
        float("nan"),
        float("inf"),
        1j,
        10**30,
        -(10**30),
        10**5000,
        -(10**5000),
        2**61,
    ),
    *(
        "a",
        "",
        "12",
        "same",
        "\ud800",
        "\0",
        b"12",
        bytearray(b"12"),
        memoryview(b"12"),
        ...,
        slice(1),
        object(),
    ),
    *(
        [],
        [1, 2],
        [[1], [2]],
        [[[1]]],
        (10**30, 1),
        (1.0, 2.0),
        (1, "a"),
        (None, None),
        [1] * 1000,
        range(10**30),
    ),
    *(
        {1, 2},
        {1: 2},
        {},
        iter([1, 2]),
        (i for i in ()),
        int,
        np.ndarray,
        list[int],
        len,
        np,
        Sequenced(),
        Stubborn(),
        Unreadable(),
    ),
    *(np.float32(1), np.int64(1), np.uint64(2**63), np.True_, np.float16, np.dtype("f4,f4"), np.dtype(">f4")),
    *map(np.array, (3, 3.0, True, [1.0, 2.0], [1, 2], [None, 1], ["a"], [], [[1, 2]], "2020-01-01")),
    *(
        X,
        X[::-1],
        X[..., 1:],
        X.astype("f4"),
        X.astype("i1"),
        X.astype(object),
        np.ma.ones(3),
        np.zeros(3, "f4,f4"),
    ),
    *(np.ones((1,) * 6), np.broadcast_to(1.0, (2, 8, 4, 5)), np.full(X.shape, np.nan), ml_dtypes.bfloat16),
]
"""Values that are wrong for most arguments."""

GEOMETRY = dict(stride=1, padding=0, dilation=1, groups=1)
OPTIONS = GEOMETRY | dict(padding_mode="zeros", layout="channels_first", flip=False, precision=None)
OPTIONS |= dict(algorithm="auto", accumulate=False)
FUSED = dict(bias=np.ones(8), activation="relu", out_dtype=None, out=np.ones(DY.shape))
BACK = dict(bias=np.ones(4), output_padding=0, activation=None, out=np.ones(X.shape))
SHAPES = dict(x_shape=X.shape, w_shape=W.shape)
PLANNED = OPTIONS | SHAPES | dict(op="fprop", dtype="float64", bias=True, activation="relu", out_dtype=None)
PROBLEM = cuconv.ConvProblem.parse("c1h5w6 k1r3s3")
MODE = dict(padding_mode="zeros", layout="channels_first")
CALLS = {
    "conv": (cuconv.conv, dict(x=X, w=W) | OPTIONS | FUSED),
    "conv2d": (cuconv.conv2d, dict(x=X, w=W) | OPTIONS | FUSED),
    "conv_input_grad": (cuconv.conv_input_grad, dict(dy=DY, w=W, input_shape=X.shape) | OPTIONS),
    "conv_weight_grad": (cuconv.conv_weight_grad, dict(x=X, dy=DY, weight_shape=W.shape) | OPTIONS),
    "conv_bias_grad": (
        cuconv.conv_bias_grad,
        dict(dy=DY, layout="channels_first", batched=True, accumulate=False),
    ),
    "conv_backward": (cuconv.conv_backward, dict(dy=DY, x=X, w=W, needs=(True,) * 3, out=None) | OPTIONS),
    "conv of integers": (
        cuconv.conv,
        dict(x=X.astype("u1"), w=W.astype("i1"), bias=np.ones(8, "i4"))
        | OPTIONS
        | dict(out_dtype="int32", activation="relu"),
    ),
    "conv_transpose_backward": (
        cuconv.conv_transpose_backward,
        dict(dy=X, x=DY, w=W, output_padding=0, needs=(True,) * 3, out=None) | OPTIONS,
    ),
    "activation_backward": (
        cuconv.activation_backward,
        dict(dy=DY, activation="relu", y=DY, pre_activation=None),
    ),
    "conv_transpose": (cuconv.conv_transpose, dict(x=DY, w=W) | OPTIONS | BACK),
    "conv_transpose2d": (cuconv.conv_transpose2d, dict(x=DY, w=W) | OPTIONS | BACK),
    "plan": (cuconv.plan, PLANNED | dict(backend="cpu", device=None)),
    "plan for a GPU": (cuconv.plan, PLANNED | dict(backend="cuda", device="sm_90")),
    "Plan": (
        lambda **arrays: cuconv.plan("fprop", *SHAPES.values(), "float64")(
            arrays["x"], arrays["w"], out=arrays["out"]
        ),
        dict(x=X, w=W, out=None),
    ),
    "ConvProblem": (
        cuconv.ConvProblem,
        {field.name: getattr(PROBLEM, field.name) for field in fields(PROBLEM)},
    ),
    "from_shapes": (cuconv.ConvProblem.from_shapes, SHAPES | GEOMETRY | MODE),
    "transposed": (
        cuconv.ConvProblem.transposed,
        dict(x_shape=DY.shape, w_shape=W.shape, output_padding=0) | GEOMETRY | MODE,
    ),
    "parse": (lambda problem: cuconv.ConvProblem.parse(problem), dict(problem="c1w5 k1s3")),
    "x_shape": (PROBLEM.x_shape, dict(layout="channels_first")),
    "flops": (PROBLEM.flops, dict(op="fprop", dtype="float32")),
    "bytes": (PROBLEM.bytes, dict(op="fprop", dtype="float32")),
    "gemm": (PROBLEM.gemm, dict(op="fprop")),
}


def complaint(function, arguments):
    """The error of a call whose work is left out, or None."""
    nothing = dict.fromkeys(READY, lambda *given: lambda arrays: None)
    with mock.patch.dict(READY, nothing), mock.patch.dict(prepared._kept, clear=True):
        try:
            function(**arguments)
        except Exception as error:
            return error
    return None


@pytest.mark.parametrize("word", MODES_ELSEWHERE)
def test_words_that_other_libraries_have_for_padding_modes(word):
    _, mode = MODES_ELSEWHERE[word]
    assert mode in PADDING_MODES
    with pytest.raises(ValueError, match=f"^padding_mode must be .* '{word}' is called '{mode}' here$"):
        cuconv.conv(X, W, padding_mode=word)
    with pytest.raises(ValueError, match=rf"^padding is .* did you mean padding_mode='{mode}'\?$"):
        cuconv.conv(X, W, padding=word)
    with pytest.raises(ValueError, match=f"^each word of .* '{word}' is called '{mode}' here$"):
        cuconv.ConvProblem.parse(f"c1w5 k1s3 p1 {word}")


@pytest.mark.parametrize("name", CALLS)
def test_every_argument_of_every_function(name):
    """An odd value is taken, or refused by an error that names the argument, on both backends alike.

    A value that is fine by itself may be refused for not fitting another argument, by that one's name.
    """
    fits = r"\w+ must have (shape|\d+ axes|one entry)|\w+ has \d+ channels|groups=\d+ does not|[xwy] of shape"
    function, right = CALLS[name]
    assert complaint(function, right) is None
    for argument in right:
        for value in ODD:
            given = right | {argument: value}
            error = complaint(function, given)
            if name.startswith("conv"):
                with emulated():
                    on_a_gpu = complaint(function, given)
                assert type(error) is type(on_a_gpu), (argument, error, on_a_gpu)
            if error is None:
                continue
            assert type(error) in (ValueError, TypeError), (argument, error)
            assert re.search(rf"\b{argument}\b|^({fits})", str(error)), (argument, error)
            assert len(str(error)) < 800, (argument, error)


@pytest.mark.parametrize("name", CALLS)
def test_pairs_of_odd_values(name):
    function, right = CALLS[name]
    draw = random.Random(0)
    for _ in range(300):
        given = right | {argument: draw.choice(ODD) for argument in draw.choices([*right], k=2)}
        assert type(complaint(function, given)) in (ValueError, TypeError, type(None)), given


def test_the_table_of_functions_is_complete():
    ranked = {name for name in cuconv.__all__ if re.search(r"[123]d$", name)}
    assert ranked | CALLS.keys() >= set(cuconv.__all__)
    for function, right in CALLS.values():
        if getattr(function, "__name__", "") in cuconv.__all__:
            assert inspect.signature(function).parameters.keys() - right.keys() <= {"out"}


@pytest.mark.parametrize("name", sorted(CALLS.keys() & {*cuconv.__all__} - {"Plan"}))
def test_too_few_too_many_and_misspelt_arguments(name):
    function = getattr(cuconv, name)
    for arguments, keywords in (((), {}), ((X,) * 20, {}), ((X, W), {"wieght": 1}), ((X, W), {"": 1})):
        with pytest.raises(TypeError, match=rf"^{name.removesuffix('2d')}(2d|\.__init__)?\(\) "):
            function(*arguments, **keywords)
