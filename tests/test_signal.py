"""cuconv.signal beside scipy.signal, over generated calls; its gradients by the adjoint identities."""

import re
import subprocess
import sys

import numpy as np
import pytest

from cuconv import signal
from cuconv.cuda import jit

from . import device_arrays

scipy = pytest.importorskip("scipy")

FUNCTIONS = ("convolve", "correlate", "convolve2d", "correlate2d", "fftconvolve", "oaconvolve")
DTYPES = (
    *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float32", "float64", "complex64", "complex128"),
)
LARGEST = {1: 9, 2: 6, 3: 4, 4: 4, 5: 3}
cupy = jit.usable_cupy()


class Call:
    """A call of a function by its seed: small integers in any dtype, either operand the larger one."""

    def __init__(self, function, seed, dtypes=DTYPES, ranks=(1, 2, 3, 4, 5)):
        self.rng = np.random.default_rng([FUNCTIONS.index(function), seed])
        self.function = function
        rank = 2 if function.endswith("2d") else self.rng.choice(ranks)
        shape1, shape2 = (self.rng.integers(1, LARGEST[rank] + 1, rank) for _ in range(2))
        self.options = dict(mode=self.one_of("full", "same", "valid"))
        if function.endswith("2d"):
            self.options |= dict(boundary=self.one_of("fill", "wrap", "symm"), fillvalue=self.one_of(0, 0, 3))
        elif function.endswith("lve") and function != "convolve":
            axes = [axis for axis in range(rank) if self.rng.random() < 0.7]
            if axes and self.rng.random() < 0.7:
                self.options["axes"] = axes
                for axis in {*range(rank)}.difference(axes):
                    shape2[axis] = self.one_of(1, shape1[axis])
                    shape1[axis] = self.one_of(1, shape1[axis], shape2[axis])
        if self.options["mode"] == "valid":
            self.contain(shape1, shape2)
        self.in1, self.in2 = (self.array(shape, self.one_of(*dtypes)) for shape in (shape1, shape2))

    def one_of(self, *values):
        return values[self.rng.integers(len(values))]

    def contain(self, shape1, shape2):
        """The larger extents to one side, on the axes that are convolved."""
        low, high = np.minimum(shape1, shape2), np.maximum(shape1, shape2)
        shape1[:], shape2[:] = (low, high) if self.rng.random() < 0.5 else (high, low)

    def array(self, shape, dtype):
        dtype = np.dtype(dtype)
        real, imaginary = self.rng.integers(-9 if dtype.kind in "ifc" else 0, 10, (2, *shape))
        return (real + 1j * imaginary if dtype.kind == "c" else real).astype(dtype)

    def of(self, module, *first, suffix="", **options):
        return getattr(module, self.function + suffix)(*first, self.in1, self.in2, **self.options, **options)

    def rounding(self):
        """What a transform may be off by, in the narrower operand's dtype: a part of all products' sum."""
        exact = [operand.dtype for operand in (self.in1, self.in2) if operand.dtype.kind in "fc"]
        eps = max(np.finfo(dtype).eps for dtype in (*exact, np.float64))
        return 8 * eps * np.abs(self.in1.astype(complex)).sum() * np.abs(self.in2.astype(complex)).max()

    def __repr__(self):
        operands = (f"{operand.dtype}{operand.shape}" for operand in (self.in1, self.in2))
        return f"{self.function} {' '.join(operands)} {self.options}"


def calls(function, seeds, **options):
    return (Call(function, seed, **options) for seed in range(seeds))


def broadcast_only(call):
    """Whether no axis is left to transform: SciPy then multiplies integers as integers, which may wrap."""
    axes = call.options.get("axes", range(call.in1.ndim))
    return all(1 in (call.in1.shape[axis], call.in2.shape[axis]) for axis in axes)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # SciPy's own, of uint64
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_same_as_scipy(function):
    """Shape, dtype, and numbers: bit for bit where SciPy does not transform."""
    modes = set()
    for call in calls(function, 200):
        transforms = function in FUNCTIONS[4:]
        if transforms and broadcast_only(call):
            continue
        direct = dict(method="direct") if function in FUNCTIONS[:2] else {}
        expected, got = call.of(scipy.signal, **direct), call.of(signal, **direct)
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype), call
        bound = call.rounding() if transforms else 0
        np.testing.assert_allclose(got, expected, rtol=0, atol=bound, err_msg=str(call))
        modes.add((call.in1.size > call.in2.size, call.options["mode"]))
    assert len(modes) == 6


@pytest.mark.parametrize("method", ["auto", "fft"])
@pytest.mark.parametrize("function", FUNCTIONS[:2])
def test_methods_agree(function, method):
    """Integers are rounded to what sums give."""
    for call in calls(function, 80):
        expected, got = call.of(signal, method="direct"), call.of(signal, method=method)
        assert got.dtype == expected.dtype
        unsure = method == "fft" and got.dtype.kind in "fc"
        np.testing.assert_allclose(
            got, expected, rtol=0, atol=call.rounding() if unsure else 0, err_msg=str(call)
        )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_within_bounds_of_sums_in_double_precision(function, dtype):
    """Numbers that are no integers: each cell is off by the rounding of its sum, at the most."""
    for call in calls(function, 40, dtypes=[dtype], ranks=(1, 2, 3)):
        call.in1, call.in2 = (np.sin(operand).astype(dtype) for operand in (call.in1, call.in2))
        got, bound = call.of(signal), call.rounding()
        call.in1, call.in2 = (operand.astype(np.result_type(dtype, "f8")) for operand in (call.in1, call.in2))
        expected = call.of(scipy.signal)
        if function not in FUNCTIONS[4:]:
            terms = min(call.in1.size, call.in2.size) + 2
            call.in1, call.in2 = np.abs(call.in1), np.abs(call.in2)
            bound = 2 * terms * np.finfo(dtype).eps * call.of(scipy.signal)
        bound += np.finfo(got.dtype).eps * np.abs(expected) + 1e-300
        assert (np.abs(got - expected) <= bound).all(), call


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_are_the_adjoint_maps(function):
    """Exactly, on small integers: <dy, f(in1, in2)> = <d_in1, in1> = <d_in2, in2>, of real parts.

    The fillvalue is an input too: what it gives is not linear in in1.
    """
    dtypes = ("float32", "float64", "complex64", "complex128")
    for call in calls(function, 120, dtypes=dtypes):
        y = call.of(signal)
        dy = call.array(y.shape, y.dtype)
        d_in1, d_in2 = call.of(signal, dy, suffix="_grad")
        assert (d_in1.shape, d_in1.dtype) == (call.in1.shape, call.in1.dtype), call
        assert (d_in2.shape, d_in2.dtype) == (call.in2.shape, call.in2.dtype), call
        filled, in1 = call.options.get("fillvalue", 0), call.in1
        call.in1 = np.zeros_like(in1)
        constant = call.of(signal) if filled else np.zeros_like(y)
        got = [inner(dy, y - constant), inner(d_in1, in1), inner(dy, y), inner(d_in2, call.in2)]
        bound = 1e-4 * max(map(abs, got)) + 1e-3 if function in FUNCTIONS[4:] else 0
        np.testing.assert_allclose(got[::2], got[1::2], rtol=0, atol=bound, err_msg=str(call))


def inner(a, b):
    """The real part of the inner product, in double precision."""
    return np.vdot(a.astype(complex), b.astype(complex)).real


def test_only_what_is_needed():
    x, w, dy = np.ones(5), np.ones(3), np.ones(7)
    assert signal.convolve_grad(dy, x, w, needs=(False, False)) == (None, None)
    d_in1, none = signal.convolve_grad(dy, x, [1, 1, 1], needs=(True, False))
    assert none is None
    np.testing.assert_array_equal(d_in1, np.full(5, 3.0))
    none, d_in2 = signal.convolve_grad(dy, [1, 1, 1, 1, 1], w, needs=(False, True))
    assert none is None
    np.testing.assert_array_equal(d_in2, np.full(3, 5.0))


def test_lists_and_numbers():
    assert signal.convolve([1, 2, 3], [1, 1]).tolist() == [1, 3, 5, 3]
    assert signal.correlate(3, 2j) == -6j
    assert signal.convolve([255, 255], np.array([2], np.uint8)).dtype == np.int64


def test_arrays_of_no_axes_stay_arrays():
    three = np.array(3)
    for y in (signal.convolve(three, three, method="fft"), signal.convolve(three, three)):
        assert type(y) is np.ndarray
        assert y == 9


def test_integers_wrap_around():
    x, w = np.array([100, 120, 3], np.uint8), np.array([3, 2], np.uint8)
    assert signal.convolve(x, w).tolist() == [44, 48, 249, 6]
    assert signal.convolve(x[None], w[None].view(np.int8)).dtype == np.int16


def test_memory_of_any_strides_and_byte_order():
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 9, (6, 8)).astype(">i2")[::-1, ::2].T, np.broadcast_to(np.int16(3), (2, 3))
    np.testing.assert_array_equal(signal.convolve(x, w), scipy.signal.convolve(x, w))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_empty_arrays(function):
    nothing, some = np.zeros((0, 3)), np.ones((2, 2))
    f, gradient = getattr(signal, function), getattr(signal, function + "_grad")
    if function in FUNCTIONS[4:]:
        y = f(nothing, some)
        assert (y.shape, y.dtype) == ((0,), np.float64)
    else:
        with pytest.raises(ValueError, match=r"^in1 must not be empty, got shape \(0, 3\)"):
            f(nothing, some)
        y = f(nothing, some, "same")
        assert y.shape == (0, 3)
    d_in1, d_in2 = gradient(y, nothing, some, "same")
    assert d_in1.shape == (0, 3)
    np.testing.assert_array_equal(d_in2, np.zeros((2, 2)))


IMAGE, FILTER = np.ones((4, 5)), np.ones((2, 3))
ERRORS = [
    (
        lambda: signal.convolve(IMAGE, FILTER[0]),
        ValueError,
        "in1 and in2 must have the same number of axes, got shapes (4, 5)",
    ),
    (
        lambda: signal.convolve2d([1], [1]),
        ValueError,
        "in1 and in2 must have 2 axes each, got shapes (1,) and (1,)",
    ),
    (lambda: signal.convolve(IMAGE, FILTER, "vlid"), ValueError, "got 'vlid'; did you mean 'valid'?"),
    (
        lambda: signal.convolve(IMAGE, FILTER, 2),
        TypeError,
        "mode must be one of 'full', 'same', 'valid', got 2",
    ),
    (lambda: signal.convolve(IMAGE, FILTER, method="dir"), ValueError, "method must be one of 'auto'"),
    (lambda: signal.convolve2d(IMAGE, FILTER, boundary="pad"), ValueError, "boundary must be one of 'fill'"),
    (
        lambda: signal.convolve2d(IMAGE, FILTER, fillvalue=1j),
        ValueError,
        "fillvalue must be a number that float64",
    ),
    (lambda: signal.convolve2d([[1]], [[1]], fillvalue=0.5), ValueError, "that int64 holds, got 0.5"),
    (lambda: signal.convolve2d([[1]], [[1]], fillvalue=1 + 0j), ValueError, "that int64 holds, got (1+0j)"),
    (lambda: signal.convolve2d([[1]], [[1]], fillvalue=10**400), ValueError, "number that float64 holds"),
    (
        lambda: signal.convolve2d([[1]], [[1]], fillvalue="1"),
        TypeError,
        "fillvalue must be a number, got '1'",
    ),
    (lambda: signal.convolve(IMAGE, FILTER.T[:, :1], "valid"), None, ""),
    (
        lambda: signal.convolve(IMAGE, np.ones((2, 6)), "valid"),
        ValueError,
        "mode='valid' needs an in1 that is",
    ),
    (
        lambda: signal.fftconvolve(IMAGE, FILTER, axes=0),
        ValueError,
        "on the axes that are not convolved, got",
    ),
    (lambda: signal.fftconvolve(IMAGE, FILTER, axes=2), ValueError, "axes must be among the 2 axes"),
    (lambda: signal.fftconvolve(IMAGE, FILTER, axes=(0, -2)), ValueError, "axes must name each axis once"),
    (lambda: signal.fftconvolve(IMAGE, FILTER, axes=()), ValueError, "axes must name an axis at least"),
    (lambda: signal.fftconvolve(IMAGE, FILTER, axes=1.0), TypeError, "axes must be an int, got 1.0"),
    (lambda: signal.convolve(IMAGE > 0, FILTER), TypeError, "in1.view('uint8') counts what is True"),
    (
        lambda: signal.convolve(IMAGE, FILTER.astype(np.longdouble)),
        TypeError,
        "in2 must have dtype bool, int8",
    ),
    (lambda: signal.convolve("image", FILTER), TypeError, "in1 must be a NumPy array"),
    (
        lambda: signal.convolve_grad(FILTER, IMAGE, FILTER),
        ValueError,
        "dy must have the shape of the result, (5, 7)",
    ),
    (
        lambda: signal.convolve_grad(IMAGE + 1j, IMAGE, [[1.0]]),
        TypeError,
        "dy must be of floats, as the result is",
    ),
    (lambda: signal.convolve_grad(IMAGE > 0, IMAGE, [[1.0]]), TypeError, "got bool"),
    (lambda: signal.convolve_grad(None, IMAGE, [[1.0]]), TypeError, "dy must be a NumPy array"),
    (
        lambda: signal.convolve_grad(IMAGE, IMAGE, [[1]]),
        TypeError,
        "got int64; needs=(True, False) leaves it out",
    ),
    (
        lambda: signal.convolve_grad(IMAGE, IMAGE, [[1.0]], needs=True),
        ValueError,
        "needs must have two entries",
    ),
    (
        lambda: signal.convolve_grad(IMAGE, IMAGE, [[1.0]], needs=(1, 1)),
        TypeError,
        "needs must be True or False",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS)
def test_errors_name_the_argument(call, error, text):
    if error is None:
        call()
        return
    with pytest.raises(error, match=re.escape(text)):
        call()


def test_arrays_on_a_gpu_stay_there():
    """The same bits from a stand-in whose arrays do not become NumPy's; lists go to it."""
    with device_arrays.installed():
        for function in FUNCTIONS:
            for call in calls(function, 40, dtypes=("uint8", "int64", "float32", "complex64")):
                alike = dict(method="direct") if function in FUNCTIONS[:2] else {}
                expected, inputs = call.of(signal, **alike), (call.in1, call.in2)
                dy = call.array(expected.shape, np.result_type(expected, np.float16))
                needs = [operand.dtype.kind in "fc" for operand in inputs]
                gradients = call.of(signal, dy, suffix="_grad", needs=needs)
                call.in1, call.in2 = map(device_arrays.DeviceArray, inputs)
                results = [call.of(signal, **alike)]
                results += call.of(signal, device_arrays.DeviceArray(dy), suffix="_grad", needs=needs)
                for got, wanted in zip(results, (expected, *gradients), strict=True):
                    if wanted is None:
                        assert got is None
                    else:  # where there are no transforms, sums take their place
                        np.testing.assert_allclose(got.get(), wanted, rtol=1e-5, atol=1e-3, err_msg=str(call))
        device = device_arrays.DeviceArray(np.arange(4.0))
        assert signal.convolve(device, [1.0, 2.0]).get().tolist() == [0, 1, 4, 7, 6]
        with pytest.raises(TypeError, match="in2 must be the same kind of array as in1"):
            signal.convolve(device, np.arange(4.0))


@pytest.mark.gpu
@pytest.mark.skipif(cupy is None, reason="there is no GPU that CuPy can use")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_on_a_gpu(function):
    """Integers bit for bit; in float32 what is summed there is transformed here."""
    for call in calls(function, 60):
        expected = call.of(signal)
        inputs = call.in1, call.in2
        dy = call.array(expected.shape, np.result_type(expected, np.float16))
        needs = [operand.dtype.kind in "fc" for operand in inputs]
        gradients = call.of(signal, dy, suffix="_grad", needs=needs)
        call.in1, call.in2 = map(cupy.asarray, inputs)
        results = [call.of(signal), *call.of(signal, cupy.asarray(dy), suffix="_grad", needs=needs)]
        for got, wanted in zip(results, (expected, *gradients), strict=True):
            if wanted is None:
                assert got is None
            else:
                np.testing.assert_allclose(got.get(), wanted, rtol=1e-5, atol=1e-3, err_msg=str(call))


def test_scipy_is_not_imported():
    code = (
        "import sys, cuconv.signal, cuconv.ndimage; sys.exit('scipy' in sys.modules or 'cupy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "import sys, cuconv; sys.exit(any(f'cuconv.{name}' in sys.modules for name in ('signal', 'ndimage')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
