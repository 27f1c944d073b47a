"""`fft` on either backend: windows, their memory, what it asks of a library, and CuPy without cuFFT.

The results on NumPy arrays are `tests/test_exact.py`'s too; here a GPU's path is run with SciPy's transforms.
"""

import inspect
import itertools
import pickle
import re
import types
from unittest import mock

import numpy as np
import pytest
import scipy.fft

import cuconv
from benchmarks import stand_in
from benchmarks.stand_in import Array
from cuconv import arrays, fourier, prepared
from cuconv.cli.explain import explained
from cuconv.cpu import blocking, padding
from cuconv.cuda import fft, launch
from cuconv.cuda.device import DEVICES
from cuconv.plan import INPUTS, RESULT, make_plan
from cuconv.problem import PADDING_MODES, Request

from . import device_arrays, emulator, fuzz
from .cases import OPS, Case, check, check_seeds, values, workspace
from .cost import model
from .cost.gpus import GPUS
from .memory import peak_memory

# A stride beyond the reach, cells before and behind all windows, cropped ones, modes, groups, two long axes.
WINDOWS = (
    "n2c2w90 k3s4 sw3 dw2 p5:3",
    "n1c2w70 k2s2 sw7 p-3:4",
    "n2c4w61 k6s5 g2 p-6:9",
    "n3c2w40 k2s7 p6 circular",
    "n1c3w37 k2s3 sw2 p9:40 reflect",
    "n1c2h30w5 k4r4s2 g2 sh2sw1 dh2dw1 p3 symmetric",
    "n1c1w50 k1s3 sw2 p-7:30 replicate",
    "n2c1d3h4w40 k2t2r2s3 p1",
    "n1c2h9w120 k2r3s9 dh1dw3 ph1pw-2",
)


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
@pytest.mark.parametrize("line", WINDOWS)
def test_windows(line, backend):
    """The smallest ones, some that are longer, and none."""
    problem, run = cuconv.ConvProblem.parse(line), emulator.run if backend == "cuda" else None
    windows = set()
    for size, dtype, exact in ((1, "float32", True), (3000, "complex64", False), (1 << 24, "float16", True)):
        case = Case(problem, dtype, workspace=size, exact=exact, bias=True, flip=exact, accumulate=exact)
        check(case, "fft", run, OPS)
        with workspace(size):
            for op in OPS:
                (work,) = make_plan(Request(op, problem, dtype), "fft", backend).launches
                cut = fourier.Cut(Request(op, problem, dtype))
                cells = work.tile.cells if backend == "cuda" else work.tile[-1]
                windows.add(len(list(cut.windows(cells))))
    assert 1 in windows
    assert max(windows) > 2


def test_seeded_cases_on_a_gpu():
    check_seeds(range(10_000, 10_150), "fft", emulator.run, "cuda")


def test_the_fuzzer_takes_it(capsys):
    assert fuzz.main(["--emulator", "--algorithm", "fft", "--count", "10"]) == 0
    assert " 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_gradients_of_the_transposed_convolution(dtype):
    """Bias and activation are fused into dgrad, and conjugates are of the sum."""
    rng = np.random.default_rng(0)
    x, w = values(rng, (2, 4, 9, 8), dtype, True), values(rng, (4, 3, 3, 2), dtype, True)
    options = dict(stride=2, padding=1, output_padding=1, groups=2)
    fused = dict(bias=np.arange(6, dtype=dtype), activation="relu" if dtype == "float32" else None)
    expected = cuconv.conv_transpose(x, w, **fused, **options)
    dy = values(rng, expected.shape, dtype, True)
    gradients = cuconv.conv_transpose_backward(dy, x, w, **options)
    with emulator.emulated():
        got = cuconv.conv_transpose(x, w, **fused, **options, algorithm="fft")
        np.testing.assert_allclose(got, expected, atol=1e-4)
        found = cuconv.conv_transpose_backward(dy, x, w, **options, algorithm="fft")
    for got, wanted in zip(found, gradients, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-3)


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_runs_are_what_each_coordinate_sees(mode):
    for extent, low, count in itertools.product((1, 2, 3, 5), range(-11, 9), (1, 4, 13)):
        seen = np.full(count, -1)
        for there, here in fourier.runs(low, count, extent, mode):
            assert (seen[there] == -1).all()
            seen[there] = np.arange(extent)[here]
        at = np.arange(low, low + count)
        if mode == "zeros":
            expected = np.where((at >= 0) & (at < extent), at, -1)
        else:
            expected = padding.source(mode, at, extent)
        np.testing.assert_array_equal(seen, expected, f"{extent} {low}")


# -- memory -------------------------------------------------------------------------------------------

LONG = ("fprop", (1, 1, 100_000_000), (1, 1, 10_000))


def test_long_signals_keep_to_the_bound():
    """10^8 samples and 10^4 taps on either backend; the filter's reach is a small part of a window."""
    for op in OPS:
        for dtype in ("float16", "float32", "complex128"):
            for backend, bound in (("cpu", 4 * blocking.WORKSPACE), ("cuda", fft.WORKSPACE)):
                plan = cuconv.plan(op, *LONG[1:], dtype, algorithm="fft", backend=backend)
                assert bound / 8 < plan.workspace_bytes <= bound, str(plan)
                (length,) = fourier.Cut(plan.request).lengths(_cells(plan))[2:]
                assert length > 20 * 10_000


def _cells(plan):
    (work,) = plan.launches
    return work.tile.cells if plan.backend == "cuda" else work.tile[-1]


def as_cupy_does(name, plans):
    """A transform of SciPy's that holds meanwhile what CuPy's does (cupy/fft/_fft.py): the array padded to
    its shape, a copy of that which cuFFT may overwrite, and from then on a plan with a work area, as large
    as the result.
    """

    def call(x, s, axes):
        result = getattr(scipy.fft, name)(x, s=s, axes=axes)
        shape = [*x.shape[: axes[0]], *s]
        if name == "irfftn":
            shape[-1] = shape[-1] // 2 + 1
        padded = x if list(x.shape) == shape else np.zeros(shape, x.dtype)
        held = padded.copy()
        plans.setdefault((name, *held.shape), np.empty_like(result))
        return result

    return call


@pytest.mark.parametrize(
    "line", ["n1c1w300000 k1s101", "n3c8w4096 k8s33 g8 p16", "n1c2w100000 k3s65 p32 circular"]
)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("op", OPS)
def test_workspace_on_a_gpu_is_honestly_stated(op, dtype, line):
    """Peak memory, of NumPy arrays with what CuPy's transforms hold; the bound is kept where no image is held
    whole.
    """
    problem, rng = cuconv.ConvProblem.parse(line), np.random.default_rng(0)
    shapes = {"x": problem.x_shape(), "w": problem.w_shape(), "dy": problem.y_shape()}
    shapes |= {"y": shapes["dy"], "dx": shapes["x"], "dw": shapes["w"]}
    operands = {role: rng.standard_normal(shapes[role]).astype(dtype) for role in INPUTS[op]}
    operands[RESULT[op]] = np.zeros(shapes[RESULT[op]], dtype)
    request = Request(op, problem, dtype, conjugate=op != "fprop" and dtype == "complex64")
    with workspace(1 << 20):
        plan = make_plan(request, "fft", "cuda", "sm_90")
    plans = {}
    transforms = types.SimpleNamespace(**{name: as_cupy_does(name, plans) for name in TRANSFORMS})
    library, (work,) = fourier.Library(np, transforms), plan.launches
    fft.run(library, request, work, operands)  # for what a first call keeps
    plans.clear()
    allowed = plan.workspace_bytes + (1 << 15)
    peak = peak_memory(lambda: fft.run(library, request, work, operands), allowed)
    assert 0.3 * plan.workspace_bytes < peak <= allowed, f"{plan}: peak {peak:,}"
    if problem.padding_mode == "zeros":
        assert plan.workspace_bytes <= 1 << 20


def test_what_cufft_cannot_count_is_refused():
    """Windows of all channels together."""
    shapes = (1, 1 << 15, 70_000), (1, 1 << 15, 40_000)
    with pytest.raises(ValueError, match=r"cannot do fprop .* at once has 2\^31 cells or more"):
        cuconv.plan("fprop", *shapes, algorithm="fft", backend="cuda")


# -- what is asked of a library -----------------------------------------------------------------------


class Device(device_arrays.DeviceArray):
    """A DeviceArray with the arithmetic that CuPy's arrays have; NumPy's functions do not take it."""

    @property
    def size(self):
        return self.on_host.size


def _lifted(function):
    """A function of NumPy's or SciPy's as one of such arrays, with `out` among them."""

    def call(*args, out=None, **options):
        given = [device_arrays.there(each) for each in args]
        result = function(*given, **options) if out is None else function(*given, out=out.on_host, **options)
        return Device(np.asarray(result)) if out is None else out

    return call


for _name in ("astype", "conj", "reshape", "sum", "transpose", "__getitem__", "__add__", "__mul__"):
    setattr(Device, _name, _lifted(getattr(np.ndarray, _name)))

NAMESPACE = {name: _lifted(getattr(np, name)) for name in ("conjugate", "maximum", "multiply", "zeros")}
TRANSFORMS = {name: _lifted(getattr(scipy.fft, name)) for name in ("rfftn", "irfftn", "fftn", "ifftn")}


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
@pytest.mark.parametrize("line", WINDOWS)
def test_nothing_but_a_library_of_arrays_is_asked(line, dtype):
    """Arrays stay where they are, whatever the request: these refuse to become NumPy's."""
    problem, rng = cuconv.ConvProblem.parse(line), np.random.default_rng(0)
    library = fourier.Library(types.SimpleNamespace(**NAMESPACE), types.SimpleNamespace(**TRANSFORMS))
    shapes = {"x": problem.x_shape("channels_last"), "w": problem.w_shape("channels_last")}
    shapes |= {"dy": problem.y_shape("channels_last")}
    shapes |= {"y": shapes["dy"], "dx": shapes["x"], "dw": shapes["w"]}
    for op, size in itertools.product(OPS, (1, 1 << 24)):
        real_fprop = op == "fprop" and dtype != "complex64"
        request = Request(
            op, problem, dtype, "channels_last", flip=True, accumulate=True, conjugate=op != "fprop",
            bias=op == "fprop", activation="relu" if real_fprop else None, conjugate_sum=op == "wgrad",
        )  # fmt: skip
        on_host = {role: values(rng, shapes[role], dtype, True) for role in (*INPUTS[op], RESULT[op])}
        if request.bias:
            on_host["bias"] = values(rng, (problem.k,), dtype, True)
        there = {role: Device(array.copy()) for role, array in on_host.items()}
        with workspace(size):
            (work,) = make_plan(request, "fft", "cuda", "sm_90").launches
        fft.run(library, request, work, there)
        fft.run(fourier.Library(np, scipy.fft), request, work, on_host)
        for role, array in there.items():
            np.testing.assert_array_equal(array.on_host, on_host[role])


def test_cupy_has_what_is_called():
    """Its transforms with these arguments. Of its arrays only what NumPy's have too is used."""
    transforms = pytest.importorskip("cupyx.scipy.fft")
    for name in TRANSFORMS:
        inspect.signature(getattr(transforms, name)).bind("a", s=(8, 8), axes=(4, 5))


# -- plans and calls ----------------------------------------------------------------------------------


def test_a_plan_needs_neither_gpu_nor_cupy():
    plan = cuconv.plan(*LONG, algorithm="fft", backend="cuda", device="sm_90")
    assert plan.algorithm == "fft"
    text = str(plan)
    assert "fft on sm_90: asked for by name; proven without a device record\n" in text
    assert re.search(
        r"launch     fprop by transforms of 8,388,608 cells in blocks of g1 k1 n1, 8,378,609 cells", text
    )
    assert "fft: about" in explained(plan)
    assert "by name only: it rounds where a plain sum is exact" in explained(plan)
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert make_plan(plan.request, "auto", "cuda", "sm_90").algorithm != "fft"


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"algorithm='fft' cannot do fprop int32 .*: integers are exact, a"):
        cuconv.plan("fprop", (1, 1, 9), (1, 1, 3), "int32", algorithm="fft", backend="cuda")


def test_no_prediction_is_made_of_transforms():
    plan = cuconv.plan(*LONG, algorithm="fft", backend="cuda", device="sm_90")
    with pytest.raises(ValueError, match="algorithm='fft' is cuFFT's transforms and no kernels of cuconv"):
        model.work(plan, GPUS["sm_90"])


@pytest.mark.parametrize("op", OPS)
def test_estimates(op):
    """They grow with the signal, hardly with the filter, and are those of no less than memory takes."""

    def seconds(line, arch="sm_90", dtype="float32"):
        request = Request(op, cuconv.ConvProblem.parse(line), dtype)
        return fft.estimate(request, DEVICES[arch])

    once, twice = (seconds(f"c1w{extent} k1s1000") for extent in (1 << 26, 1 << 27))
    assert 1.8 < twice / once < 2.4
    assert seconds("c1w67108864 k1s8000") < 1.1 * once
    assert once > 2 * 8 * (1 << 26) / 4.8e12
    assert seconds("c1w67108864 k1s1000", "sm_86") > 5 * once
    assert 1.5 < seconds("c1w67108864 k1s1000", dtype="complex64") / once < 3


@pytest.fixture
def cupy():
    with stand_in.installed() as module:
        yield module


X, W, Y = (2, 4, 9), (6, 4, 3), (2, 6, 7)


def conv(x=None, w=None, **options):
    return cuconv.conv(Array(X) if x is None else x, Array(W) if w is None else w, algorithm="fft", **options)


@pytest.mark.parametrize("major", [12, 13])
def test_without_cufft(cupy, major):
    """What to install; before anything is done, and in every call. Other algorithms need none."""
    cupy.cuda.runtime.runtimeGetVersion = lambda: 1000 * major + 10

    class Cuda(types.SimpleNamespace):
        @property
        def cufft(self):
            raise ImportError('Failure finding "libcufft.so"\nin many places')

    cupy.cuda = Cuda(**vars(cupy.cuda))
    assert not launch.has_transforms()
    for _ in range(2):
        with pytest.raises(ImportError) as raised:
            conv()
        assert str(raised.value) == (
            "algorithm='fft' needs cuFFT for arrays on a GPU, which CuPy cannot load (Failure finding "
            f"\"libcufft.so\"): pip install 'cuda-toolkit[cufft]=={major}.*', or choose another algorithm"
        )
    assert cupy.launched == cupy.allocated == []
    cuconv.conv(Array(X), Array(W))
    assert len(cupy.launched) == 1


@pytest.fixture
def runs(cupy, monkeypatch):
    """What transforms are asked for: the request, the work, and the arrays by role."""
    asked = []
    transforms = types.SimpleNamespace()
    monkeypatch.setattr(launch, "_transforms", lambda: transforms)

    def run(library, *arguments):
        assert (library.arrays, library.transforms) == (cupy, transforms)
        asked.append(arguments)

    monkeypatch.setattr(fft, "run", run)
    return asked


def test_a_call_runs_its_plan_on_its_arrays(cupy, runs):
    """The first time, and again, when it is looked up; no kernel of ours is launched."""
    x, w, bias, out = Array(X), Array(W), Array(6), Array(Y)
    for again in (False, True):
        long_way = AssertionError("the long way") if again else None
        with mock.patch.object(arrays, "adopt", side_effect=long_way, wraps=arrays.adopt):
            assert conv(x, w, bias=bias, activation="relu", out=out) is out
            assert conv(x, w).shape == Y
    first, second, third, _ = runs
    assert first == third
    assert first[2] == {"x": x, "w": w, "y": out, "bias": bias}
    assert list(second[2]) == ["x", "w", "y"]
    assert first[1] == cuconv.plan("fprop", X, W, bias=True, algorithm="fft", backend="cuda").launches[0]
    assert cupy.launched == []
    prepared.forget()


def test_empty_results_take_no_transforms(cupy, runs):
    assert conv(Array((0, 4, 9))).shape == (0, 6, 7)
    assert runs == []


def test_arrays_that_transforms_cannot_read(cupy, runs):
    with pytest.raises(ValueError, match=r"w is on GPU 1, but the current one is 0: call within cupy\.cuda"):
        conv(w=Array(W, device_id=1))
    with pytest.raises(ValueError, match="w must have strides in whole elements of 4 bytes"):
        conv(w=Array(W, strides=(52, 13, 4)))
    x = Array(X)
    x.data.ptr += 2
    with pytest.raises(ValueError, match="x must be aligned to its elements of 4 bytes"):
        conv(x)
    assert runs == []


def test_a_graph_does_not_capture_transforms(cupy, runs):
    conv()
    cupy.capturing = True
    with pytest.raises(
        RuntimeError, match="algorithm='fft' cannot be captured in a CUDA graph: cuFFT's plans"
    ):
        conv()
    assert len(runs) == 1
