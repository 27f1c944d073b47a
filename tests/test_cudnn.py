"""The old CuPy cuDNN functions: values, calls, errors, and their place in CuPy and SigPy."""

import contextlib
import importlib.util
import inspect
import itertools
import sys
import types
import warnings
from functools import partial
from importlib.machinery import ModuleSpec

import numpy as np
import pytest

import cuconv
from cuconv import cudnn
from cuconv.cuda import jit

from . import device, emulator
from .cases import DTYPES, judge, laid_out, values
from .reference import Reference

NHWC = cudnn.CUDNN_TENSOR_NHWC
FORWARD = dict(auto_tune=False, tensor_core="auto")
BACKWARD = dict(deterministic=False, **FORWARD)
FUNCTIONS = cudnn.convolution_forward, cudnn.convolution_backward_data, cudnn.convolution_backward_filter
ON_A_GPU = pytest.mark.skipif(jit.usable_cupy() is None, reason="there is no GPU that CuPy can use")


# -- values -----------------------------------------------------------------------------------------


def drawn(seed, dtype):
    """pad, stride, dilation and groups, the reference, and x, W, y of small integers in NCHW."""
    rng = np.random.default_rng(seed)
    rank, groups = rng.integers(1, 4), int(rng.integers(1, 4))
    taps, stride, dilation = (tuple(map(int, rng.integers(1, 4, rank))) for _ in range(3))
    pad = tuple(map(int, rng.integers(0, 3, rank)))
    least = [d * (r - 1) + 1 - 2 * a for r, d, a in zip(taps, dilation, pad, strict=True)]
    extents = [max(each, 0) + int(rng.integers(1, 4)) for each in least]
    n, c, k = map(int, rng.integers(1, 4, 3))
    shapes = (n, c * groups, *extents), (k * groups, c, *taps)
    reference = Reference(*shapes, stride, dilation, [(a, a) for a in pad], groups)
    arrays = [values(rng, shape, dtype, exact=True) for shape in (*shapes, reference.y_shape)]
    return (pad, stride, dilation, groups), reference, arrays


def numbers(array):
    """An array of Python's ints, or in double precision."""
    kind = array.dtype.kind
    return array.astype({"i": object, "c": np.complex128}.get(kind, np.float64))


def per_channel(b, rank):
    return numbers(b).reshape(-1, *[1] * rank)


def check_against_loops(seed, dtype, on_device=lambda array: array, on_host=lambda array: array):
    """All three functions on a drawn problem, in drawn layouts and strides: bit for bit."""
    rng = np.random.default_rng(seed)
    geometry, reference, (x, W, y) = drawn(seed, dtype)
    layouts = dict(d_layout=int(rng.integers(2)), w_layout=int(rng.integers(2)))
    beta = int(rng.integers(2))

    def given(array, layout="d_layout"):
        array = np.moveaxis(array, 1, -1) if layouts[layout] == NHWC else array
        return on_device(laid_out(array, rng.choice(["plain", "reversed", "sliced", "transposed"]), rng))

    def holds(call, expected, layout="d_layout"):
        start = values(rng, expected.shape, dtype, exact=True)
        if beta:
            expected = expected + numbers(start)
        elif start.dtype.kind != "i":
            start[...] = np.nan  # which must not be read
        result = given(start, layout)
        assert call(result, *geometry, beta=beta, **layouts, **FORWARD) is None
        got = on_host(result)
        got = np.moveaxis(got, -1, 1) if layouts[layout] == NHWC else got
        judge(got, expected, None, None, dtype, True, f"{call} of seed {seed}")

    b = values(rng, (W.shape[0],), dtype, exact=True)
    of_x, of_W, of_y, of_b = given(x), given(W, "w_layout"), given(y), on_device(b)
    forward, data, filter = FUNCTIONS
    how = dict(deterministic=bool(seed % 2))
    expected = reference.fprop(x, W) + per_channel(b, x.ndim - 2)
    holds(partial(forward, of_x, of_W, of_b), expected)
    holds(partial(data, of_W, of_y, None, **how), reference.dgrad(y, W))
    holds(partial(filter, of_x, of_y, **how), reference.wgrad(x, y), "w_layout")


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_those_of_plain_loops(dtype):
    for seed in range(40):
        check_against_loops(seed, dtype)


def test_the_kernels_are_given_the_same_problem():
    """In the emulator, as for CuPy arrays."""
    with emulator.emulated():
        for seed in range(4):
            check_against_loops(seed, "float32")


@pytest.mark.parametrize("layout", [cudnn.CUDNN_TENSOR_NCHW, NHWC])
@pytest.mark.parametrize("shape", [(4,), (1, 4, 1, 1), (2, 2)])
def test_b_in_any_shape_and_added_to_the_gradient_too(shape, layout):
    """As in transposed convolutions, one element per channel of the result."""
    rng = np.random.default_rng(0)
    W, gy = (values(rng, each, "float32", True) for each in ((6, 2, 3, 3), (2, 6, 4, 3)))
    b = values(rng, shape, "float32", True)
    expected = cuconv.conv_transpose(gy, W, b.ravel(), stride=2, padding=1, groups=2)
    y = np.empty((2, 4, 7, 5), np.float32)
    last = (lambda array: np.moveaxis(array, 1, -1)) if layout == NHWC else np.asarray
    geometry, layouts = ((1, 1), (2, 2), (1, 1), 2), dict(d_layout=layout, w_layout=layout)
    cudnn.convolution_backward_data(last(W), last(gy), b, last(y), *geometry, **layouts, **BACKWARD)
    np.testing.assert_array_equal(y, expected)
    x, taps = values(rng, (2, 4, 7, 5), "float32", True), values(rng, (4, 2, 3, 3), "float32", True)
    y = np.empty((2, 4, 4, 3), np.float32)
    cudnn.convolution_forward(last(x), last(taps), b, last(y), *geometry, **layouts, **FORWARD)
    np.testing.assert_array_equal(y, cuconv.conv(x, taps, b.ravel(), stride=2, padding=1, groups=2))


def check_beta(beta, dtype, on_device=lambda array: array, on_host=lambda array: array):
    """beta times what is there, plus the convolution, plus b, where b is not fused too."""
    geometry, reference, (x, W, y) = drawn(3, dtype)
    rng = np.random.default_rng(1)
    forward, data, _ = FUNCTIONS
    for call, start, expected in (
        (partial(forward, on_device(x), on_device(W)), y, reference.fprop(x, W)),
        (partial(data, on_device(W), on_device(y), deterministic=True), x, reference.dgrad(y, W)),
    ):
        start = (2 * values(rng, start.shape, dtype, True)).astype(DTYPES[dtype])  # half of it is whole
        b = values(rng, start.shape[1:2], dtype, True)
        expected = expected + per_channel(b, start.ndim - 2) + float(beta) * numbers(start)
        result = on_device(start.copy())
        call(on_device(b), result, *geometry, beta=beta, **FORWARD)
        judge(on_host(result), expected, None, None, dtype, True, f"beta={beta} {call}")


BETAS = [0.5, -2, np.float32(2), 1.0, 0.0]
FLOATS = ["float16", "bfloat16", "float32", "complex128"]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("beta", BETAS)
def test_beta_scales_what_is_there(beta, dtype):
    check_beta(beta, dtype)


def test_dilation_none_and_single_numbers():
    geometry, _, (x, W, y) = drawn(3, "float32")
    expected = cuconv.conv(x, W, None, 2, 1, 1, geometry[-1])
    for one in ((2,) * (x.ndim - 2), None), (2, 1):
        y = np.empty_like(expected)
        cudnn.convolution_forward(x, W, None, y, 1, one[0], one[1], geometry[-1], **FORWARD)
        np.testing.assert_array_equal(y, expected)


def test_no_images_and_no_channels():
    x, W, y = np.empty((0, 4, 9)), np.full((6, 4, 3), np.nan), np.empty((0, 6, 7))
    cudnn.convolution_forward(x, W, np.ones(6), y, 0, 1, 1, 1, **FORWARD)
    cudnn.convolution_backward_data(W, y, np.ones(4), x, 0, 1, 1, 1, **BACKWARD)
    cudnn.convolution_backward_filter(x, y, W, 0, 1, 1, 1, **BACKWARD)
    assert not W.any()
    y = np.full((2, 6, 7), np.nan)
    cudnn.convolution_forward(np.empty((2, 0, 9)), W[:, :0], np.ones(6), y, 0, 1, 1, 1, **FORWARD)
    assert (y == 1).all()


@pytest.mark.peer
def test_arrays_of_another_library_are_written_to():
    torch = pytest.importorskip("torch")
    x, W, y = torch.ones(2, 4, 9), torch.ones(6, 3, 4), torch.empty(2, 6, 7)
    cudnn.convolution_forward(x, W, torch.ones(6), y, 0, 1, 1, 1, w_layout=NHWC, **FORWARD)
    assert (y == 13).all()


# -- calls ------------------------------------------------------------------------------------------


def test_signatures_are_those_of_cupy():
    """`cupyx/cudnn.pyx` of CuPy 13: nothing beyond the layouts may be left out; beta is cuconv's own."""
    positional = {
        "convolution_forward": ["x", "W", "b", "y"],
        "convolution_backward_data": ["W", "x", "b", "y"],
        "convolution_backward_filter": ["x", "gy", "gW"],
    }
    for function in FUNCTIONS:
        parameters = inspect.signature(function).parameters.values()
        names = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
        assert names == [*positional[function.__name__], "pad", "stride", "dilation", "groups"]
        assert all(each.default is each.empty for each in parameters if each.name in names)
        options = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
        required = {name for name, default in options.items() if default is inspect.Parameter.empty}
        assert required == ({"deterministic"} if "back" in function.__name__ else set()) | FORWARD.keys()
        assert {name: options[name] for name in options.keys() - required} == dict(
            d_layout=0, w_layout=0, beta=0
        )


@pytest.mark.parametrize("layout", [None, cudnn.CUDNN_TENSOR_NCHW, NHWC])
def test_chainers_calls(layout):
    """Of its functions with two spatial axes, which name layouts, and with others, which name none.

    Results are memory from `cupy.empty`, the numbers of the geometry tuples, and all arrays in C order.
    """
    rank = 3 if layout is None else 2
    layouts = {} if layout is None else dict(d_layout=layout, w_layout=layout)
    modes = dict(auto_tune=True, tensor_core="auto", **layouts)
    options = dict(stride=(2, 1, 1)[:rank], padding=(1, 0, 1)[:rank], dilation=(1, 2, 1)[:rank], groups=2)
    geometry = tuple(options[name] for name in ("padding", "stride", "dilation", "groups"))
    options["layout"] = "channels_last" if layout == NHWC else "channels_first"
    rng = np.random.default_rng(0)

    def draw(*shape):
        array = values(rng, shape, "float32", True)
        return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if layout == NHWC else array

    x, W = draw(2, 4, *(7, 6, 5)[:rank]), draw(6, 2, *(3, 2, 3)[:rank])
    b, b_of_x = (values(rng, (channels,), "float32", True) for channels in (6, 4))

    forward = cuconv.conv(x, W, b, **options)
    y = np.full_like(forward, np.nan)
    cudnn.convolution_forward(x, W, b, y, *geometry, **modes)
    np.testing.assert_array_equal(y, forward)

    gW = np.full_like(W, np.nan)
    cudnn.convolution_backward_filter(x, y, gW, *geometry, deterministic=False, **modes)
    np.testing.assert_array_equal(gW, cuconv.conv_weight_grad(x, y, W.shape, **options))

    per_pixel = b_of_x if layout == NHWC else b_of_x.reshape(-1, *[1] * rank)
    transposed = np.full_like(x, np.nan)
    cudnn.convolution_backward_data(W, y, b_of_x, transposed, *geometry, deterministic=False, **modes)
    np.testing.assert_array_equal(transposed, cuconv.conv_input_grad(y, W, x.shape, **options) + per_pixel)


@pytest.mark.parametrize(
    ("deterministic", "auto_tune", "algorithm"),
    [(False, True, "tune"), (True, True, "auto"), (False, False, "auto"), (0, 1, "tune")],
)
def test_auto_tune_is_left_out_where_deterministic(monkeypatch, deterministic, auto_tune, algorithm):
    asked = []
    for name in ("conv", "conv_input_grad", "conv_weight_grad"):
        monkeypatch.setattr(cudnn, name, lambda *_, algorithm, **__: asked.append(algorithm))
    x, W, y = np.ones((1, 1, 4)), np.ones((1, 1, 3)), np.ones((1, 1, 2))
    geometry = (0,), (1,), (1,), 1
    options = dict(deterministic=deterministic, auto_tune=auto_tune, tensor_core="never")
    cudnn.convolution_backward_data(W, y, None, x, *geometry, **options)
    cudnn.convolution_backward_filter(x, y, W, *geometry, **options)
    assert asked == [algorithm] * 2
    cudnn.convolution_forward(x, W, None, y, *geometry, auto_tune=auto_tune, tensor_core="never")
    assert asked[2] == ("tune" if auto_tune else "auto")


@pytest.mark.parametrize("tensor_core", ["always", "auto", "never"])
def test_tensor_core_takes_no_bits_of_float32(tensor_core):
    rng = np.random.default_rng(0)
    x, W = (rng.standard_normal(shape, dtype=np.float32) for shape in ((2, 4, 9), (6, 4, 3)))
    y = np.empty((2, 6, 7), np.float32)
    cudnn.convolution_forward(x, W, None, y, 0, 1, 1, 1, auto_tune=False, tensor_core=tensor_core)
    np.testing.assert_array_equal(y, cuconv.conv(x, W))


# -- errors -----------------------------------------------------------------------------------------

READ_ONLY = np.ones((2, 6, 7), np.float32)
READ_ONLY.flags.writeable = False


def arguments(function):
    """A good call of one of the functions, by name."""
    names = [*inspect.signature(function).parameters][: -(6 if "back" in function.__name__ else 5)]
    shapes = {"x": (2, 4, 9), "W": (6, 2, 3), "b": (6,), "y": (2, 6, 7), "gy": (2, 6, 7), "gW": (6, 2, 3)}
    if function is cudnn.convolution_backward_data:
        shapes |= {"x": (2, 6, 7), "y": (2, 4, 9), "b": (4,)}
    plain = {"pad": (0,), "stride": (1,), "dilation": (1,), "groups": 2}
    arrays = {name: np.ones(shapes[name], np.float32) for name in names if name in shapes}
    return arrays | plain | (BACKWARD if "back" in function.__name__ else FORWARD)


BAD = [
    (0, dict(x=np.ones((2, 4, 9))), TypeError, "W must have the dtype of x, float64, got float32"),
    (0, dict(W=np.ones((6, 2, 3), np.int8)), TypeError, "W has dtype int8"),
    (0, dict(b=np.ones(6)), TypeError, "b must have the dtype of x"),
    (0, dict(b=[1.0] * 6), TypeError, "b must be a NumPy array"),
    (0, dict(y=None), TypeError, "y must be a NumPy array"),
    (0, dict(y=np.ones((2, 6, 7))), TypeError, "y must have the dtype of x"),
    (0, dict(y=np.ones((2, 6, 8), np.float32)), ValueError, r"y must have shape \(2, 6, 7\)"),
    (0, dict(y=READ_ONLY), ValueError, "y must be writable"),
    (0, dict(x=np.ones((4, 9), np.float32)), ValueError, "x, W and y must have the same number of axes"),
    (0, dict(x=np.ones((2, 5, 9), np.float32)), ValueError, "x has 5 channels"),
    (0, dict(b=np.ones(5, np.float32)), ValueError, "b must have 6 elements, one per channel of y"),
    (0, dict(pad=(1, 1)), ValueError, "pad must be one int or 1 of them"),
    (0, dict(pad=(-1,)), ValueError, "pad must be at least 0"),
    (0, dict(pad="same"), TypeError, "pad must be an int"),
    (0, dict(stride=(0,)), ValueError, "stride must be at least 1"),
    (0, dict(dilation=(1.0,)), TypeError, "dilation must be an int"),
    (0, dict(groups=4), ValueError, "x has 4 channels"),
    (0, dict(groups=0), ValueError, "groups must be at least 1"),
    (0, dict(dilation=(9,)), ValueError, "axis w gives no output"),
    (0, dict(tensor_core="sometimes"), ValueError, "tensor_core must be one of 'always', 'auto', 'never'"),
    (0, dict(tensor_core=True), TypeError, "tensor_core must be one of"),
    (0, dict(d_layout=2), ValueError, "d_layout must be CUDNN_TENSOR_NCHW, 0, or CUDNN_TENSOR_NHWC, 1"),
    (0, dict(w_layout="NHWC"), TypeError, "w_layout must be CUDNN_TENSOR_NCHW, 0, or"),
    (0, dict(auto_tune="no"), TypeError, "auto_tune must be True or False, got 'no'"),
    (1, dict(deterministic=None), TypeError, "deterministic must be True or False, got None"),
    (0, dict(d_layout=NHWC), ValueError, "x has 9 channels"),
    (0, dict(beta=10**400), ValueError, "beta must be a number that float64 holds"),
    (0, dict(beta="1"), TypeError, "beta must be a real number"),
    (0, dict(autotune=True), TypeError, "no argument 'autotune'; did you mean 'auto_tune'"),
    (1, dict(W=np.ones((6, 3, 3), np.float32)), ValueError, "y has 4 channels"),
    (1, dict(x=np.ones((2, 6, 8), np.float32)), ValueError, r"x must have shape \(2, 6, 7\), to go with y "),
    (1, dict(x=np.ones((2, 6, 7))), TypeError, "x must have the dtype of W"),
    (1, dict(b=np.ones(6, np.float32)), ValueError, "b must have 4 elements"),
    (2, dict(gy=np.ones((2, 5, 7), np.float32)), ValueError, r"gy must have shape \(2, 6, 7\)"),
    (2, dict(gW=np.ones((6, 3, 3), np.float32)), ValueError, "x has 4 channels .* but gW"),
    (2, dict(gW=np.broadcast_to(np.ones(3, np.float32), (6, 2, 3))), ValueError, "gW must be writable"),
]


@pytest.mark.parametrize("beta", [0, 0.5])
@pytest.mark.parametrize(("which", "change", "error", "message"), BAD)
def test_errors_name_the_argument_and_nothing_is_written(which, change, error, message, beta):
    function = FUNCTIONS[which]
    given = dict(beta=beta) | arguments(function) | change
    with pytest.raises(error, match=message):
        function(**given)
    assert all((value == 1).all() for value in given.values() if isinstance(value, np.ndarray))


def test_good_arguments_are_good():
    for function in FUNCTIONS:
        function(**arguments(function))


def test_beta_of_integers():
    given = arguments(cudnn.convolution_forward)
    given |= {name: each.astype(np.int32) for name, each in given.items() if isinstance(each, np.ndarray)}
    cudnn.convolution_forward(**given, beta=1)
    assert (given["y"] == 1 + 1 + 6).all()
    with pytest.raises(ValueError, match="beta must be 0 or 1 for int32, got 2"):
        cudnn.convolution_forward(**given, beta=2)
    assert (given["y"] == 8).all()


def test_the_result_must_not_overlap_an_operand():
    memory = np.ones((2, 6, 9), np.float32)
    with pytest.raises(ValueError, match="y must not overlap x"):
        cudnn.convolution_forward(
            memory[:, :4], np.ones((6, 4, 3), np.float32), None, memory[..., :7], 0, 1, 1, 1, **FORWARD
        )


# -- its place in CuPy ------------------------------------------------------------------------------


class OnGPU(np.ndarray):
    """What the stand-in for CuPy has for an array: NumPy's, by another type."""

    device = 0


class StandIn(types.ModuleType):
    """A package that has what NumPy has, and no modules but those that are put there."""

    def __init__(self, name, **names):
        super().__init__(name)
        self.__path__, self.__spec__ = [], ModuleSpec(name, None, is_package=True)
        vars(self).update(names)

    def __getattr__(self, name):
        return getattr(np, name)


@pytest.fixture
def cupy():
    """A stand-in for CuPy 14, installed; whatever is imported meanwhile is forgotten."""
    before = dict(sys.modules)
    cuda = StandIn("cupy.cuda", Device=contextlib.nullcontext)
    module = StandIn("cupy", __version__="14.0.0", ndarray=OnGPU, cuda=cuda)
    module.asarray = lambda array: np.asarray(array).view(OnGPU)
    module.get_array_module = lambda *each: module if any(isinstance(a, OnGPU) for a in each) else np
    module.ElementwiseKernel = module.RawKernel = lambda *arguments, **options: None
    forget_modules("cupy", "cupyx", "sigpy")
    sys.modules.update({"cupy": module, "cupy.cuda": cuda, "cupyx": StandIn("cupyx")})
    yield module
    cudnn.uninstall()
    forget_modules("cupy", "cupyx", "sigpy")
    sys.modules.update(before)


def forget_modules(*packages):
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


def state():
    """All that `install` may change."""
    packages = [sys.modules[name] for name in ("cupy", "cupyx", "cupy.cuda")]
    return [dict(vars(each)) for each in packages], {
        name: module for name, module in sys.modules.items() if "cudnn" in name
    }


def test_install_and_uninstall(cupy):
    before = state()
    assert cudnn.install() == "cupy.cudnn, cupyx.cudnn and cupy.cuda.cudnn are now cuconv.cudnn"
    import cupy.cuda.cudnn
    import cupyx.cudnn
    from cupy import cudnn as found

    assert found is cupy.cudnn is cupy.cuda.cudnn is cupyx.cudnn is cudnn
    assert importlib.util.find_spec("cupy.cuda.cudnn") is not None
    assert found.available
    assert cudnn.install().startswith("nothing to do: cupy.cudnn")
    assert cudnn.uninstall() == "cupy.cudnn, cupyx.cudnn and cupy.cuda.cudnn are again what they were"
    assert state() == before
    assert cudnn.uninstall() == "nothing to do: cuconv.cudnn is not installed"
    assert state() == before
    with pytest.raises(ImportError):
        importlib.import_module("cupy.cudnn")
    assert importlib.util.find_spec("cupy.cuda.cudnn") is None


def test_install_where_cupy_has_its_own(cupy, tmp_path):
    """CuPy 13, which warns of the name when it is imported."""
    (tmp_path / "cudnn.py").write_text("import warnings; warnings.warn('deprecated', DeprecationWarning)")
    cupy.__path__, cupy.__version__ = [str(tmp_path)], "13.6.0"
    assert cudnn.install() == "nothing was changed: CuPy 13.6.0 has cuDNN functions of its own"
    assert importlib.import_module("cupy.cudnn").__file__ == str(tmp_path / "cudnn.py")
    assert importlib.util.find_spec("cupy.cuda.cudnn") is None
    assert cudnn.uninstall().startswith("nothing to do")


def test_install_where_cupys_own_do_not_work(cupy):
    """CuPy 13 without cuDNN: `cupy.cuda.cudnn` is there, and says that it is not available."""
    own = types.ModuleType("cupy.cuda.cudnn")
    own.available = False
    sys.modules["cupy.cuda.cudnn"] = cupy.cuda.cudnn = own
    before = state()
    cudnn.install()
    assert importlib.import_module("cupy.cuda.cudnn") is cupy.cuda.cudnn is cudnn
    cudnn.uninstall()
    assert cupy.cuda.cudnn is own
    assert state() == before


def test_install_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r"needs CuPy, .*: pip install 'cuconv\[cuda12\]'"):
        cudnn.install()


def test_an_install_that_fails_leaves_nothing(cupy):
    del sys.modules["cupyx"]
    sys.modules["cupyx"] = None
    before = [dict(vars(module)) for module in (cupy, cupy.cuda)]
    with pytest.raises(ImportError):
        cudnn.install()
    assert [dict(vars(module)) for module in (cupy, cupy.cuda)] == before
    assert not [name for name in sys.modules if name.startswith("cupy") and "cudnn" in name]


def test_install_into_cupy_itself():
    pytest.importorskip("cupy")
    install_or_skip()
    try:
        from cupy import cudnn as found

        assert found is cudnn
    finally:
        cudnn.uninstall()
    with pytest.raises(ImportError):
        importlib.import_module("cupy.cudnn")


def install_or_skip():
    if cudnn.install().startswith("nothing was changed"):
        pytest.skip("this CuPy has cuDNN functions of its own")


# -- SigPy ------------------------------------------------------------------------------------------

SIGPY = [
    (shape, taps, strides, mode, multi_channel)
    for (shape, taps), mode, strided, multi_channel in itertools.product(
        [((9,), (4,)), ((7, 6), (3, 2)), ((5, 6, 4), (2, 3, 2))], ["full", "valid"], [0, 1], [False, True]
    )
    for strides in [tuple(range(2, 2 + len(shape))) if strided else None]
]


def sigpys_calls(sigpy, to, shape, taps, dtype, seed=0, mode="full", strides=None, multi_channel=False):
    """SigPy's convolution and its two adjoints, of arrays passed through `to`."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        real = rng.standard_normal(shape)
        return (real + 1j * rng.standard_normal(shape) if "complex" in dtype else real).astype(dtype)

    data, filt = draw((2, 3, *shape)), draw(((2, 3) if multi_channel else ()) + taps)
    how = dict(mode=mode, strides=strides, multi_channel=multi_channel)
    there = sigpy.convolve(to(data), to(filt), **how)
    output = draw(there.shape)
    yield there
    yield sigpy.convolve_data_adjoint(to(output), to(filt), data.shape, **how)
    yield sigpy.convolve_filter_adjoint(to(output), to(data), filt.shape, **how)


def check_sigpy(sigpy, to, back, monkeypatch):
    """Its path for GPUs against its own with SciPy; each function is to be called through the adapter."""
    called = []
    for function in FUNCTIONS:
        note = lambda *arguments, function=function, **options: (  # noqa: E731
            called.append(function.__name__),
            function(*arguments, **options),
        )
        monkeypatch.setattr(cudnn, function.__name__, note)
    names = [function.__name__ for function in FUNCTIONS]
    for (shape, taps, strides, mode, multi_channel), (dtype, tolerance) in itertools.product(
        SIGPY, {"float32": 1e-4, "float64": 1e-12, "complex64": 1e-4, "complex128": 1e-12}.items()
    ):
        how = dict(mode=mode, strides=strides, multi_channel=multi_channel)
        expected = sigpys_calls(sigpy, np.asarray, shape, taps, dtype, **how)
        got = sigpys_calls(sigpy, to, shape, taps, dtype, **how)
        for name, mine, own in zip(names, got, expected, strict=True):
            assert called == [name] * (4 if "complex" in dtype else 1)  # real and imaginary parts
            called.clear()
            assert mine.dtype == own.dtype == np.dtype(dtype)
            np.testing.assert_allclose(
                back(mine), own, rtol=tolerance, atol=tolerance * 10, err_msg=f"{name} {shape} {how}"
            )


@pytest.mark.peer
@pytest.mark.parametrize("imported", ["before", "afterwards"])
def test_sigpy_runs_its_path_for_gpus(cupy, monkeypatch, imported):
    pytest.importorskip("scipy")
    if imported == "before":
        sigpy = pytest.importorskip("sigpy")
        function, names = sigpy.conv.convolve, set(vars(sigpy.conv))
        with pytest.raises(RuntimeError, match="cudnn must be installed"):
            sigpy.convolve(cupy.asarray(np.ones(4)), cupy.asarray(np.ones(2)))
        assert cudnn.install().endswith("; SigPy, imported before, has been told")
        assert sigpy.convolve is sigpy.conv.convolve is function
    else:
        cudnn.install()
        sigpy = pytest.importorskip("sigpy")
    check_sigpy(sigpy, cupy.asarray, np.asarray, monkeypatch)
    operator = sigpy.linop.ConvolveData((6, 5), np.ones((2, 3)))
    assert operator(cupy.asarray(np.ones((6, 5)))).shape == (7, 7)
    cudnn.uninstall()
    if imported == "before":
        assert set(vars(sigpy.conv)) == names
        assert sigpy.conv.convolve is function
        assert not sigpy.config.cudnn_enabled
        with pytest.raises(RuntimeError, match="cudnn must be installed"):
            sigpy.convolve(cupy.asarray(np.ones(4)), cupy.asarray(np.ones(2)))


def test_a_sigpy_that_found_no_cupy_is_left_alone(cupy):
    config = types.SimpleNamespace(cupy_enabled=False, cudnn_enabled=False)
    sys.modules.update({"sigpy.config": config, "sigpy.conv": types.SimpleNamespace()})
    assert cudnn.install().endswith("are now cuconv.cudnn")
    assert not config.cudnn_enabled


# -- on a GPU ---------------------------------------------------------------------------------------


@pytest.mark.gpu
@ON_A_GPU
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_on_a_gpu(dtype):
    for seed in range(40):
        check_against_loops(seed, dtype, device.on_device, lambda array: array.get())


@pytest.mark.gpu
@ON_A_GPU
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("beta", BETAS)
def test_beta_on_a_gpu(beta, dtype):
    check_beta(beta, dtype, device.on_device, lambda array: array.get())


@pytest.mark.gpu
@pytest.mark.peer
@ON_A_GPU
def test_sigpy_on_a_gpu(monkeypatch):
    cupy = jit.require_cupy()
    install_or_skip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy says so where there is no NCCL
            sigpy = pytest.importorskip("sigpy")
        check_sigpy(sigpy, cupy.asarray, cupy.asnumpy, monkeypatch)
    finally:
        cudnn.uninstall()
