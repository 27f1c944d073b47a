"""cuconv.ndimage beside scipy.ndimage, over generated calls; its gradients by the adjoint identities."""

import re

import numpy as np
import pytest

from cuconv import ndimage
from cuconv.cuda import jit

from . import device_arrays

scipy = pytest.importorskip("scipy")

WITH_WEIGHTS = ("correlate", "convolve", "correlate1d", "convolve1d")
FUNCTIONS = (*WITH_WEIGHTS, "sobel", "laplace", "gaussian_filter")
MODES = ("reflect", "mirror", "nearest", "wrap", "constant", "grid-mirror", "grid-wrap", "grid-constant")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "int64")
FLOATS = ("float32", "float64", "complex64", "complex128")
LARGEST = {0: 1, 1: 9, 2: 6, 3: 4, 4: 4, 5: 3}
cupy = jit.usable_cupy()


class Call:
    """A call of a function by its seed: small integers in any dtype, filters longer than the image too."""

    def __init__(self, function, seed, dtypes=(*INTEGERS, *FLOATS), weights=(*INTEGERS, *FLOATS)):
        self.rng = np.random.default_rng([FUNCTIONS.index(function), seed])
        self.function = function
        rank = int(self.rng.choice([0, 1, 1, 2, 2, 2, 3, 3, 4, 5]))
        if function in ("correlate1d", "convolve1d", "sobel"):
            rank = max(rank, 1)
        self.input = self.array(self.rng.integers(1, LARGEST[rank] + 1, rank), self.one_of(*dtypes))
        self.arguments, self.options = (), dict(mode=self.one_of(*MODES), cval=self.one_of(0, 0, 3, -2, 300))
        axes = [int(axis) for axis in self.rng.permutation(rank)[: self.rng.integers(rank + 1)]]
        getattr(self, "of_" + function.replace("1d", ""))(rank, axes, dtypes=weights)

    def of_correlate(self, rank, axes, dtypes):
        if self.function.endswith("1d"):
            self.options["axis"] = int(self.rng.integers(-rank, rank))
            taps = [self.rng.integers(1, 8)]
        elif self.rng.random() < 0.4:
            self.options["axes"] = sorted(axes)
            taps = self.rng.integers(1, 5, len(axes))
        else:
            taps = self.rng.integers(1, LARGEST[rank] + 2, rank)
        if self.options["cval"] != 0 and self.input.dtype.kind != "c":  # which SciPy does not take
            dtypes = [dtype for dtype in dtypes if not dtype.startswith("complex")]
        weights = self.array(taps, self.one_of(*dtypes))
        origins = [int(self.rng.integers(-(r // 2), (r - 1) // 2 + 1)) for r in taps]
        self.arguments = (weights,)
        self.options["origin"] = origins[0] if self.function.endswith("1d") else origins

    of_convolve = of_correlate

    def of_sobel(self, rank, axes, **_):
        self.options["axis"] = int(self.rng.integers(-rank, rank))
        self.several_modes(rank)

    def of_laplace(self, rank, axes, **_):
        if self.rng.random() < 0.5:
            self.options["axes"] = axes
        self.several_modes(len(self.options.get("axes", range(rank))))

    def of_gaussian_filter(self, rank, axes, **_):
        self.of_laplace(rank, axes)
        count = len(self.options.get("axes", range(rank)))
        sigmas = [self.one_of(0, 0.5, 0.8, 1.5) for _ in range(count)]
        self.arguments = (self.one_of(0.7, sigmas),)
        self.options["order"] = self.one_of(0, 1, [self.one_of(0, 1, 2, 3) for _ in range(count)])
        self.options |= self.one_of({}, dict(radius=2), dict(truncate=2.5))

    def several_modes(self, count):
        if self.rng.random() < 0.5:
            self.options["mode"] = [self.one_of(*MODES) for _ in range(count)]

    def one_of(self, *values):
        return values[self.rng.integers(len(values))]

    def array(self, shape, dtype):
        dtype = np.dtype(dtype)
        real, imaginary = self.rng.integers(-9 if dtype.kind in "ifc" else 0, 10, (2, *shape))
        return np.asarray((real + 1j * imaginary if dtype.kind == "c" else real).astype(dtype))

    def of(self, module, **options):
        return getattr(module, self.function)(self.input, *self.arguments, **self.options, **options)

    def gradients(self, dy, **options):
        """(d_input, d_weights), or (d_input,) where the filter has weights of its own."""
        inputs = (dy, self.input) if self.function in WITH_WEIGHTS else (dy,)
        found = getattr(ndimage, self.function + "_grad")(*inputs, *self.arguments, **self.options, **options)
        return found if self.function in WITH_WEIGHTS else (found,)

    def __repr__(self):
        operands = (
            f"{each.dtype}{each.shape}" for each in (self.input, *self.arguments) if hasattr(each, "dtype")
        )
        return f"{self.function} {' '.join(operands)} {self.arguments} {self.options}"


def calls(function, seeds, **options):
    return (Call(function, seed, **options) for seed in range(seeds))


@pytest.mark.filterwarnings("ignore:promoting specified output dtype to complex")
@pytest.mark.parametrize("function", FUNCTIONS[:-1])
def test_the_same_as_scipy(function):
    """Shape, dtype, and numbers bit for bit: small integers have exact sums, those of bytes wrap around."""
    for call in calls(function, 200):
        output = {}
        if not any(np.iscomplexobj(each) for each in (call.input, *call.arguments)):
            output = call.one_of({}, {}, dict(output="float32"), dict(output=np.int16), dict(output=np.uint8))
        expected, got = call.of(scipy.ndimage, **output), call.of(ndimage, **output)
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype), call
        np.testing.assert_array_equal(got, expected, err_msg=f"{call} {output}")


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_within_bounds_of_sums_in_double_precision(function, dtype):
    """SciPy rounds once, at the end of a line of weights; sums here are rounded in the image's dtype."""
    for call in calls(function, 40, dtypes=[dtype], weights=["float32"]):
        call.input = np.sin(call.input)
        call.options["cval"] = np.sin(call.options["cval"])
        expected, got = call.of(scipy.ndimage), call.of(ndimage)
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype), call
        weights = call.arguments[0] if function in WITH_WEIGHTS else 16.0**call.input.ndim
        largest = max(np.abs(call.input).max(), abs(call.options["cval"]))
        bound = np.sum(np.abs(weights)) * largest * (np.size(weights) + 20) * np.finfo(dtype).eps
        np.testing.assert_allclose(got, expected, rtol=0, atol=bound, err_msg=str(call))


def test_float32_in_double_precision_where_the_output_asks_for_it():
    x = np.random.default_rng(0).random((20, 30), np.float32)
    wide = ndimage.gaussian_filter(x, 2, output=np.float64)
    np.testing.assert_allclose(
        wide, scipy.ndimage.gaussian_filter(x, 2, output=np.float64), rtol=0, atol=1e-15
    )
    assert np.abs(ndimage.gaussian_filter(x, 2) - wide).max() > 1e-9


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_with_weights_of_floats_are_cut_off(dtype):
    """As SciPy does; where the sum is an integer but for its rounding, which that is decides."""
    rng = np.random.default_rng(0)
    sides = set()
    for shape, taps in (((40, 50), (3, 4)), ((9, 10, 11), (2, 3, 2)), ((300,), (5,))):
        x, w = rng.integers(-100 if dtype[0] == "i" else 0, 100, shape).astype(dtype), rng.normal(size=taps)
        unwrapped = scipy.ndimage.correlate(x, w, output=np.float64)
        expected, got = scipy.ndimage.correlate(x, w), ndimage.correlate(x, w)
        sure = np.abs(unwrapped - np.rint(unwrapped)) > 1e-9
        assert sure.mean() > 0.9
        np.testing.assert_array_equal(got[sure], expected[sure])
        sides |= {(unwrapped < -1).any(), (unwrapped > 1).any()}
    assert sides == {True}


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_pictures_of_integers(dtype):
    """What is between two lines of weights is cut off too."""
    x = np.random.default_rng(0).integers(0, 256, (60, 70)).astype(dtype)
    for sigma in (0.6, 1, 2.3):
        for order in (0, (1, 0), (0, 2)):
            got = ndimage.gaussian_filter(x, sigma, order).astype(int)
            expected = scipy.ndimage.gaussian_filter(x, sigma, order).astype(int)
            off = np.abs(got - expected)
            assert np.mean(off > 0) < 0.01
            assert np.minimum(off, 256 - off).max() <= 1


def test_a_blur_leaves_a_plain_area_as_it_is():
    """Weights that add up to 1 but for their rounding: nothing is cut off for that."""
    for sigma in np.arange(0.3, 4, 0.05):
        for value in (1, 7, 100, 255, 65535):
            dtype = np.uint8 if value < 256 else np.uint16
            plain, signed = np.full((12, 12), value, dtype), np.full(12, -value, np.int32)
            np.testing.assert_array_equal(ndimage.gaussian_filter(plain, sigma), plain)
            np.testing.assert_array_equal(ndimage.gaussian_filter(signed, sigma), signed)


def test_floats_to_the_upper_half_of_uint64():
    x = np.full(5, 2**63 + 2**40, np.uint64)
    np.testing.assert_array_equal(ndimage.correlate(x, [0.5, 0.5]), x)
    assert ndimage.correlate([1e19, -1.0], [1.0], output=np.uint64).tolist() == [10**19, 2**64 - 1]


@pytest.mark.parametrize("order", range(8))
@pytest.mark.parametrize("sigma", [0.4, 1, 3.7])
def test_derivatives_of_a_gaussian(sigma, order):
    impulse = np.zeros(61)
    impulse[30] = 1
    got, expected = (
        module.gaussian_filter(impulse, sigma, order, mode="constant") for module in (ndimage, scipy.ndimage)
    )
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_are_the_adjoint_maps(function):
    """<dy, f(input, w)> = <d_input, input> = <d_weights, w>, of real parts: exactly, but for Gaussians.

    With a cval f is not linear in the input: the part that the cval gives is taken away.
    """
    for call in calls(function, 120, dtypes=FLOATS, weights=FLOATS):
        y, x = call.of(ndimage), call.input
        dy = call.array(y.shape, y.dtype)
        found = call.gradients(dy)
        call.input = np.zeros_like(x)
        constant = call.of(ndimage)
        pairs = [(inner(dy, y - constant), inner(found[0], x))]
        assert (found[0].shape, found[0].dtype) == (x.shape, x.dtype), call
        if function in WITH_WEIGHTS:
            (weights,) = call.arguments
            assert (found[1].shape, found[1].dtype) == (weights.shape, weights.dtype), call
            pairs.append((inner(dy, y), inner(found[1], weights)))
        bound = 1e-4 * (inner(dy, dy) + inner(x, x)) * 60 if function == "gaussian_filter" else 0
        np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=0, atol=bound, err_msg=str(call))


def inner(a, b):
    """The real part of the inner product, in double precision."""
    return np.vdot(a.astype(complex), b.astype(complex)).real


def test_only_what_is_needed():
    """Weights are learned from pictures of bytes too."""
    x, w, dy = np.arange(6, dtype=np.uint8), np.ones(3), np.ones(6, np.float32)
    assert ndimage.correlate1d_grad(dy, x, w, needs=(False, False)) == (None, None)
    none, d_w = ndimage.correlate1d_grad(dy, x, w, needs=(False, True))
    assert none is None
    np.testing.assert_array_equal(d_w, [10, 15, 20])
    d_x, none = ndimage.correlate1d_grad(dy, x.astype(np.float32), [1, 2, 1], needs=(True, False))
    assert none is None
    assert d_x.dtype == np.float32


def test_output_may_be_an_array_and_the_input_itself():
    x, w = np.arange(12.0).reshape(3, 4), np.ones((2, 3))
    expected = scipy.ndimage.correlate(x, w)
    place = np.empty((4, 3), np.int32).T
    assert ndimage.correlate(x, w, place) is place
    np.testing.assert_array_equal(place, expected)
    assert ndimage.correlate(x, w, x) is x
    np.testing.assert_array_equal(x, expected)


def test_the_input_is_never_the_result():
    x = np.arange(4.0)
    for y in (
        ndimage.gaussian_filter(x, 0),
        ndimage.laplace(x, axes=()),
        ndimage.gaussian_filter_grad(x, 0),
        ndimage.laplace_grad(x, axes=()),
    ):
        np.testing.assert_array_equal(y, x)
        assert not np.shares_memory(y, x)


def test_truth_values_are_counted():
    x = np.array([True, True, False, True])
    np.testing.assert_array_equal(ndimage.correlate1d(x, [1, 1, 1], output=np.int32), [3, 2, 2, 2])
    assert ndimage.gaussian_filter(x, 1, output=np.float32).dtype == np.float32


def test_integers_of_64_bits_are_exact_where_doubles_are_not():
    x = np.array([2**60 + 1, 1, -1])
    np.testing.assert_array_equal(
        ndimage.correlate1d(x, [1, 1, 0], mode="constant"), [2**60 + 1, 2**60 + 2, 0]
    )
    large = np.array([2**64 - 1, 0], np.uint64)
    np.testing.assert_array_equal(ndimage.correlate1d(large, [1], mode="constant"), large)


def test_memory_of_any_strides_and_byte_order():
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 9, (6, 8)).astype(">u2")[::-1, ::2].T, np.broadcast_to(3, (2, 3))
    y = ndimage.convolve(x, w)
    np.testing.assert_array_equal(y, scipy.ndimage.convolve(x, w))
    for module in (ndimage, scipy.ndimage):
        z = module.laplace(x.astype(">f4"))
        np.testing.assert_array_equal(z, scipy.ndimage.laplace(x.astype("f4")))
        assert z.dtype.isnative
    np.testing.assert_array_equal(ndimage.sobel_grad(z), ndimage.sobel_grad(z.astype(">f4")))
    for axes in ((0, 2), (1,)):
        y = ndimage.correlate(rng.random((3, 4, 5)), np.ones((2,) * len(axes)), axes=axes)
        assert y.flags.c_contiguous


@pytest.mark.parametrize("function", FUNCTIONS)
def test_empty_images(function):
    x = np.zeros((3, 0), np.float32)
    arguments = dict(correlate=(np.ones((2, 2)),), sobel=(), laplace=(), gaussian_filter=(1,))
    arguments = arguments.get(function.replace("convolve", "correlate"), ([1.0, 2.0],))
    for options in ({}, dict(mode="constant", cval=1)):
        y = getattr(ndimage, function)(x, *arguments, **options)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        inputs = (x, x) if function in WITH_WEIGHTS else (x,)
        gradients = getattr(ndimage, function + "_grad")(*inputs, *arguments, **options)
        d_x = gradients[0] if function in WITH_WEIGHTS else gradients
        assert d_x.shape == x.shape
        if function in WITH_WEIGHTS:
            np.testing.assert_array_equal(gradients[1], np.zeros_like(arguments[0]))


X, W = np.ones((4, 5)), np.ones((2, 3))
ERRORS = [
    (lambda: ndimage.correlate(X, W, mode="edge"), ValueError, "mode must be one of 'reflect'"),
    (lambda: ndimage.correlate(X, W, mode=["wrap", "wrap"]), TypeError, "mode must be one of 'reflect'"),
    (
        lambda: ndimage.sobel(X, mode=["wrap"]),
        ValueError,
        "mode must be one, or 2, one for each axis, got ['wrap']",
    ),
    (
        lambda: ndimage.correlate(X, W, origin=(0, 2)),
        ValueError,
        "origin must be from -1 to 1 for 3 weights, got",
    ),
    (
        lambda: ndimage.correlate(X, W, origin=(0, 0, 0)),
        ValueError,
        "origin must be one, or 2, one for each axis",
    ),
    (lambda: ndimage.correlate(X, W, origin=0.5), TypeError, "origin must be an int, got 0.5"),
    (
        lambda: ndimage.correlate(X, W[0]),
        ValueError,
        "weights must have 2 axes, as many as are filtered, none of",
    ),
    (lambda: ndimage.correlate(X, W, axes=0), ValueError, "weights must have 1 axes"),
    (lambda: ndimage.correlate(X, W[:, :0]), ValueError, "got shape (2, 0)"),
    (lambda: ndimage.correlate(X, W, axes=(0, 5)), ValueError, "axes must be among the 2 axes of the array"),
    (lambda: ndimage.correlate1d(X, W[0], axis=2), ValueError, "axis must be among the 2 axes of the array"),
    (lambda: ndimage.correlate1d(X, W[0], axis=(0, 1)), TypeError, "axis must be an int"),
    (lambda: ndimage.sobel(1.0), ValueError, "axis must be among the 0 axes"),
    (
        lambda: ndimage.correlate([1], [1], cval=10**400),
        ValueError,
        "cval must be a number that float64 holds",
    ),
    (lambda: ndimage.correlate(X, W, cval="0"), TypeError, "cval must be a number, got '0'"),
    (
        lambda: ndimage.correlate(X, W, mode="constant", cval=1j),
        ValueError,
        "cval must be real, as the input is",
    ),
    (
        lambda: ndimage.laplace([1, 2], mode="constant", cval=np.nan),
        ValueError,
        "cval must be finite for a result",
    ),
    (lambda: ndimage.correlate(X > 0, W), TypeError, "output must have dtype int8"),
    (lambda: ndimage.correlate(X, W, bool), TypeError, "got bool"),
    (lambda: ndimage.correlate(X, W, "real"), TypeError, "output must be an array or a dtype, got 'real'"),
    (
        lambda: ndimage.correlate(X, W, W),
        ValueError,
        "output must have the shape of input, (4, 5), got (2, 3)",
    ),
    (lambda: ndimage.correlate(X, W, [0]), TypeError, "output must be a NumPy array"),
    (lambda: ndimage.correlate(X, W, np.broadcast_to(0.0, (4, 5))), ValueError, "output must be writable"),
    (lambda: ndimage.correlate(X, W * 1j, float), TypeError, "output must have a complex dtype, as input or"),
    (lambda: ndimage.correlate(X.astype(np.longdouble), W), TypeError, "input must have dtype bool, int8"),
    (lambda: ndimage.correlate("x", W), TypeError, "input must be a NumPy array"),
    (lambda: ndimage.gaussian_filter(X, -1), ValueError, "sigma must be 0 or more, and finite, got -1"),
    (
        lambda: ndimage.gaussian_filter(X, [1]),
        ValueError,
        "sigma must be one, or 2, one for each axis, got [1]",
    ),
    (lambda: ndimage.gaussian_filter(X, 1, -1), ValueError, "order must be at least 0, got -1"),
    (lambda: ndimage.gaussian_filter(X, 1, radius=1.0), TypeError, "radius must be an int, got 1.0"),
    (lambda: ndimage.gaussian_filter(X, 1, truncate="4"), TypeError, "truncate must be a number, got '4'"),
    (
        lambda: ndimage.correlate_grad(W, X, W),
        ValueError,
        "dy must have the shape of the result, (4, 5), got (2, 3)",
    ),
    (lambda: ndimage.correlate_grad(X * 1j, X, W), TypeError, "dy must be of floats, as the result is"),
    (
        lambda: ndimage.correlate_grad(X, X > 0, W),
        TypeError,
        "input must be of floats or complex numbers to have a",
    ),
    (lambda: ndimage.correlate_grad(X, X, W > 0), TypeError, "got bool; needs=(True, False) leaves it out"),
    (lambda: ndimage.sobel_grad([1, 2]), TypeError, "dy must be of floats or complex numbers, got int64"),
    (lambda: ndimage.gaussian_filter_grad(X, 1, mode="edge"), ValueError, "mode must be one of 'reflect'"),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS)
def test_errors_name_the_argument(call, error, text):
    with pytest.raises(error, match=re.escape(text)):
        call()


def on_both_sides(function, seeds, to_device):
    """The results and gradients of calls here and on a device."""
    for call in calls(function, seeds):
        x, arguments, y = call.input, call.arguments, call.of(ndimage)
        dy = call.array(y.shape, np.result_type(y, np.float16))
        needs = {}
        if function in WITH_WEIGHTS:
            needs = dict(needs=[operand.dtype.kind in "fc" for operand in (x, *arguments)])
        expected = [y, *call.gradients(dy, **needs)]
        call.input = to_device(x)
        call.arguments = tuple(
            to_device(each) if isinstance(each, np.ndarray) else each for each in arguments
        )
        got = [call.of(ndimage), *call.gradients(to_device(dy), **needs)]
        yield call, expected, got


@pytest.mark.parametrize("function", FUNCTIONS)
def test_arrays_on_a_gpu_stay_there(function):
    """The same bits from a stand-in whose arrays do not become NumPy's."""
    with device_arrays.installed():
        for call, expected, got in on_both_sides(function, 60, device_arrays.DeviceArray):
            for ours, there in zip(expected, got, strict=True):
                assert (ours is None) == (there is None)
                if ours is not None:
                    np.testing.assert_array_equal(there.get(), ours, err_msg=str(call))
        x = device_arrays.DeviceArray(np.arange(12.0).reshape(3, 4))
        place = device_arrays.DeviceArray(np.empty((3, 4)))
        assert ndimage.correlate(x, [[1, 2], [3, 4]], place) is place
        np.testing.assert_array_equal(place.get(), scipy.ndimage.correlate(x.get(), [[1, 2], [3, 4]]))
        with pytest.raises(TypeError, match="output must be the same kind of array as input"):
            ndimage.correlate(x, [[1, 2], [3, 4]], np.empty((3, 4)))


@pytest.mark.peer
def test_arrays_of_other_libraries_come_back():
    torch = pytest.importorskip("torch")
    x, w = torch.arange(12.0, dtype=torch.float32).reshape(3, 4), [[1, 2], [3, 4]]
    expected = scipy.ndimage.convolve(x.numpy(), w)
    place = torch.empty_like(x)
    for y in (ndimage.convolve(x, w), ndimage.convolve(x, w, place)):
        assert isinstance(y, torch.Tensor)
        np.testing.assert_array_equal(y.numpy(), expected)
    assert y is place
    d_x, d_w = ndimage.convolve_grad(x, x, torch.ones(2, 2))
    assert isinstance(d_x, torch.Tensor)
    assert d_w.shape == (2, 2)


@pytest.mark.gpu
@pytest.mark.skipif(cupy is None, reason="there is no GPU that CuPy can use")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_on_a_gpu(function):
    """Bit for bit, but for Gaussians, which take their sums in another order."""
    rounds = function == "gaussian_filter"
    for call, expected, got in on_both_sides(function, 80, lambda array: cupy.asarray(array)):
        for ours, there in zip(expected, got, strict=True):
            assert (ours is None) == (there is None)
            if ours is not None:
                bound = (1 if ours.dtype.kind in "iu" else 1e-3) if rounds else 0
                np.testing.assert_allclose(there.get(), ours, rtol=0, atol=bound, err_msg=str(call))
