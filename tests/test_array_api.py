"""Arrays of libraries with the array API standard or DLPack: same kind out, on the same device."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import cuconv
from cuconv import arrays

from .cases import values

pytestmark = pytest.mark.peer


@pytest.fixture(params=["array_api_strict", "torch", "jax.numpy", "mlx.core"])
def xp(request):
    """A library's namespace; the standard's names are all that is used of it."""
    return pytest.importorskip(request.param, exc_type=ImportError)


def of(xp, array):
    """A NumPy array as one of another library, in memory of its own."""
    return xp.asarray(array) if xp.__name__ != "mlx.core" else xp.array(array)


def to_numpy(array):
    """The inverse, also for bfloat16."""
    return arrays.view_of("array", array, arrays.owner_of("array", array))


PROBLEMS = [
    "n3c4h7w6 k6r3s2 g2 p1",
    "n2c3w9 k3s4 g3 sw2 pw3:0",
    "n2c2d3h4w5 k2t2r2s2 p1 circular",
    "n0c2w5 k3s2",
]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64", "int32"])
@pytest.mark.parametrize("line", PROBLEMS)
def test_same_kind_out(xp, line, dtype):
    """Small integers, so that all results are NumPy's bit for bit."""
    if not hasattr(xp, dtype):
        pytest.skip(f"{xp.__name__} has no {dtype}")
    problem = cuconv.ConvProblem.parse(line)
    shapes = problem.x_shape(), problem.w_shape(), (problem.k,), problem.y_shape()
    whole = [
        values(np.random.default_rng(seed), shape, "float32" if dtype == "bfloat16" else dtype, exact=True)
        for seed, shape in enumerate(shapes)
    ]

    def ours(array):
        array = of(xp, array)
        return array if dtype != "bfloat16" else to_bfloat16(xp, array)

    def same(got, expected):
        assert type(got) is type(x)
        assert got.dtype == x.dtype
        assert getattr(got, "device", None) == getattr(x, "device", None)
        np.testing.assert_array_equal(to_numpy(got), expected)

    x, w, bias, dy = map(ours, whole)
    if dtype == "bfloat16":
        whole = [to_numpy(array).copy() for array in (x, w, bias, dy)]
    options = problem.options()
    for _ in range(2):  # the second time as a call that was made before
        same(cuconv.conv(x, w, bias, **options), cuconv.conv(*whole[:3], **options))
        for got, expected in zip(
            cuconv.conv_backward(dy, x, w, **options),
            cuconv.conv_backward(whole[3], *whole[:2], **options),
            strict=True,
        ):
            same(got, expected)


def to_bfloat16(xp, array):
    """The standard has no bfloat16: by the name that each library has for a change of dtype."""
    return array.to(xp.bfloat16) if hasattr(array, "to") else array.astype(xp.bfloat16)


def test_float64_and_int64():
    """Of libraries that have them without being asked."""
    for name in ("array_api_strict", "torch"):
        xp = pytest.importorskip(name)
        for dtype in ("float64", "complex128", "int64"):
            x, w = np.arange(12).reshape(1, 1, 12).astype(dtype), np.arange(3).reshape(1, 1, 3).astype(dtype)
            y = cuconv.conv(of(xp, x), of(xp, w))
            assert y.dtype == getattr(xp, dtype)
            np.testing.assert_array_equal(to_numpy(y), cuconv.conv(x, w))


def test_operands_are_not_copied(xp):
    x = of(xp, np.arange(40, dtype=np.float32).reshape(2, 1, 20))
    assert np.shares_memory(np.from_dlpack(x), to_numpy(x))


@pytest.mark.parametrize("name", ["array_api_strict", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_are_not_copied(monkeypatch, name, dtype):
    xp = pytest.importorskip(name)
    if not hasattr(xp, dtype):
        pytest.skip(f"{name} has no {dtype}")
    computed = []
    given_back = arrays.given_back

    def spy(result, *rest):
        computed.append(result)
        return given_back(result, *rest)

    monkeypatch.setattr(arrays, "given_back", spy)
    ones = of(xp, np.ones((2, 1, 20), np.float32))
    x = to_bfloat16(xp, ones) if dtype == "bfloat16" else ones
    y = cuconv.conv(x, x[:, :, :3])
    assert np.shares_memory(to_numpy(y), computed[0])


def test_out_is_written_or_refused(xp):
    x, w = (of(xp, np.ones((1, 1, extent), np.float32)) for extent in (5, 3))
    out = of(xp, np.zeros((1, 1, 3), np.float32))
    if xp.__name__ in ("array_api_strict", "torch"):
        assert cuconv.conv(x, w, out=out) is out
        assert (to_numpy(out) == 3).all()
    else:
        with pytest.raises(ValueError, match="out must be writable, got a read-only array"):
            cuconv.conv(x, w, out=out)
        assert not to_numpy(out).any()


def test_libraries_do_not_mix(xp):
    x, w = (np.ones((1, 1, extent), np.float32) for extent in (5, 3))
    for first, second in ((x, of(xp, w)), (of(xp, x), w)):
        with pytest.raises(TypeError, match=r"w must be the same kind of array as x \(.*\), got a"):
            cuconv.conv(first, second)


def test_devices_of_one_library():
    """Three of them share NumPy's memory; calls that were made before with another device count too."""
    xp = pytest.importorskip("array_api_strict")
    for name in ("CPU_DEVICE", "device1", "device2"):
        device = xp.Device(name)
        x, w = xp.ones((1, 1, 5), device=device), xp.ones((1, 1, 3), device=device)
        for _ in range(2):
            assert cuconv.conv(x, w).device == device
            assert all(each.device == device for each in cuconv.conv_backward(w, x, w))
    with pytest.raises(
        TypeError,
        match=r"w must be on the device of x, .*device2.*, got one on .*CPU_DEVICE.*; nothing is copied",
    ):
        cuconv.conv(x, xp.ones((1, 1, 3)))


def test_devices_of_jax():
    pytest.importorskip("jax")
    program = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
import cuconv
devices = jax.devices()
for device in devices:
    x = jax.device_put(jax.numpy.ones((1, 1, 5)), device)
    y = cuconv.conv(x, x[:, :, :3])
    assert y.device == device and (y == 3).all(), y.device
try:
    cuconv.conv(x, jax.device_put(x, devices[0]))
except TypeError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "w must be on the device of x, " in run.stdout


class Wrapped:
    """Of a module that tells nothing: what the standard asks of a type is enough."""

    def __init__(self, array):
        self.array = array

    def __array_namespace__(self, api_version=None):
        return NAMESPACE

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


NAMESPACE = SimpleNamespace(from_dlpack=lambda array: Wrapped(np.from_dlpack(array)), __name__="wrapped.api")


def test_a_library_whose_namespace_alone_creates_arrays():
    x = np.arange(10.0).reshape(1, 1, 10)
    y = cuconv.conv(Wrapped(x), Wrapped(x[..., :3]))
    assert type(y) is Wrapped
    np.testing.assert_array_equal(y.array, cuconv.conv(x, x[..., :3]))
    with pytest.raises(TypeError, match=r"as x \(wrapped array on the CPU\), got a numpy array"):
        cuconv.conv(Wrapped(x), x[..., :3])


def test_a_subclass_belongs_to_the_library_that_it_extends():
    class Named(Wrapped):
        __module__ = "elsewhere"

    x = np.arange(10.0).reshape(1, 1, 10)
    y = cuconv.conv(Named(x), Wrapped(x[..., :3]))
    np.testing.assert_array_equal(y.array, cuconv.conv(x, x[..., :3]))
