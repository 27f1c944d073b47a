"""Arrays in and out: strides, out=, accumulate=, DLPack, and threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import cuconv
from cuconv.cpu.windows import Axis

from .cases import ALGORITHMS, MEMORIES, OPS, Case, applies, check, values


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_any_strides(memory, layout, accumulate):
    for line in ("n3c4h7w6 k6r3s2 g2 p1", "n2c3w9 k3s4 g3 pw3:0", "n2c2d3h4w5 k2t2r2s2 p1 circular"):
        problem = cuconv.ConvProblem.parse(line)
        check(Case(problem, "float32", layout, memory=memory, accumulate=accumulate, flip=True, bias=True))


def test_out_is_returned_and_filled_whatever_it_held():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 6, 7)), rng.standard_normal((8, 4, 3, 3))
    y = cuconv.conv(x, w)
    out = np.full(y.shape, np.nan)
    assert cuconv.conv(x, w, out=out) is out
    np.testing.assert_array_equal(out, y)
    gradients = cuconv.conv_backward(y, x, w)
    outs = tuple(np.full(gradient.shape, np.nan) for gradient in gradients)
    for given, got, expected in zip(outs, cuconv.conv_backward(y, x, w, out=outs), gradients, strict=True):
        assert got is given
        np.testing.assert_array_equal(got, expected)


def test_accumulate_adds():
    x, w, dy = np.ones((1, 1, 4)), np.ones((1, 1, 2)), np.ones((1, 1, 3))
    outs = np.full((1, 1, 4), 10.0), np.full((1, 1, 2), 20.0), np.full(1, 30.0)
    dx, dw, db = cuconv.conv_backward(dy, x, w, out=outs, accumulate=True)
    np.testing.assert_array_equal(dx[0, 0], [11, 12, 12, 11])
    np.testing.assert_array_equal(dw[0, 0], [23, 23])
    np.testing.assert_array_equal(db, [33])


def test_interleaved_out_does_not_count_as_overlap():
    buffer = np.arange(40.0).reshape(1, 1, 20, 2)
    x, out = buffer[..., 0], buffer[..., 1]
    cuconv.conv(x, np.full((1, 1, 1), 2.0), out=out)
    np.testing.assert_array_equal(out[0, 0], np.arange(20) * 4)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("batched", [True, False])
def test_backward_is_the_three_gradients(dtype, batched):
    rng = np.random.default_rng(0)
    problem = cuconv.ConvProblem.parse("n1c4h7w8 k6r3s2 g2 sh2sw1 dh1dw2 ph1pw0:2 reflect")
    x, w, dy = (
        values(rng, shape, dtype, exact=True)
        for shape in (problem.x_shape(), problem.w_shape(), problem.y_shape())
    )
    x, dy = (x, dy) if batched else (x[0], dy[0])
    options = problem.options() | dict(flip=True)
    dx, dw, db = cuconv.conv_backward(dy, x, w, **options)
    np.testing.assert_array_equal(dx, cuconv.conv_input_grad(dy, w, x.shape, **options))
    np.testing.assert_array_equal(dw, cuconv.conv_weight_grad(x, dy, w.shape, **options))
    np.testing.assert_array_equal(db, cuconv.conv_bias_grad(dy, batched=batched))


def test_bias_gradient_is_summed_in_double_precision():
    dy = np.full((1, 1, 1 << 16), 0.1, np.float32)
    dy[0, 0, 0] = 2.0**24
    assert cuconv.conv_bias_grad(dy)[0] == np.float32(dy.astype(np.float64).sum())


def test_overlap_that_is_too_hard_to_rule_out_is_refused(monkeypatch):
    def too_hard(a, b, max_work):
        raise np.exceptions.TooHardError

    monkeypatch.setattr(np, "shares_memory", too_hard)
    with pytest.raises(ValueError, match="out must not overlap x"):
        cuconv.conv(np.ones((1, 1, 4)), np.ones((1, 1, 2)), out=np.empty((1, 1, 3)))


def test_a_unit_axis_of_out_may_have_any_stride():
    x, w, out = np.ones((1, 4, 6, 7)), np.ones((8, 4, 3, 3)), np.empty((8, 4, 5))
    cuconv.conv(x, w, out=out[None])
    np.testing.assert_array_equal(out, cuconv.conv(x[0], w))


def test_needs_selects_gradients():
    x, w, dy = np.ones((1, 1, 4)), np.ones((1, 1, 2)), np.ones((1, 1, 3))
    for needs in [(True, False, False), (False, True, False), (False, False, True), (False, False, False)]:
        got = cuconv.conv_backward(dy, x, w, needs=needs)
        assert tuple(gradient is not None for gradient in got) == needs


def test_unbatched_arrays_give_unbatched_results():
    x, w = np.ones((4, 6, 7)), np.ones((8, 4, 3, 3))
    y = cuconv.conv(x, w)
    assert y.shape == (8, 4, 5)
    assert [gradient.shape for gradient in cuconv.conv_backward(y, x, w)] == [x.shape, w.shape, (8,)]
    last = cuconv.conv(np.ones((6, 7, 4)), np.ones((8, 3, 3, 4)), layout="channels_last")
    assert last.shape == (4, 5, 8)


def test_bias_grad_of_unbatched_dy():
    dy = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(cuconv.conv_bias_grad(dy), dy.sum(axis=(0, 2)))
    np.testing.assert_array_equal(cuconv.conv_bias_grad(dy, batched=False), dy.sum(axis=(1, 2)))
    np.testing.assert_array_equal(cuconv.conv_bias_grad(dy[0]), dy[0].sum(axis=1))
    np.testing.assert_array_equal(cuconv.conv_bias_grad(dy, layout="channels_last"), dy.sum(axis=(0, 1)))


def test_subclasses_and_memory_maps(tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(1, 2, 5))
    x[...] = 1
    y = cuconv.conv(x, np.ones((3, 2, 2), np.float32))
    np.testing.assert_array_equal(y, np.full((1, 3, 4), 4))


def test_subclasses_are_taken_as_plain_arrays():
    """Whatever their own indexing and arithmetic do, as of matrices and of quantities with units."""

    class Own(np.ndarray):
        def __getitem__(self, where):
            raise AssertionError("indexed")

        def __array_ufunc__(self, *arguments, **options):
            raise AssertionError("computed with")

    x, w, bias = np.arange(10.0).reshape(2, 5), np.ones((3, 2, 2)), np.ones(3)
    y, out = cuconv.conv(x, w, bias), np.zeros((3, 4)).view(Own)
    assert cuconv.conv(*(array.view(Own) for array in (x, w, bias)), out=out) is out
    np.testing.assert_array_equal(np.asarray(out), y)
    assert type(cuconv.conv(x.view(np.matrix), w, bias)) is np.ndarray


def test_inputs_are_left_as_they_were():
    rng = np.random.default_rng(0)
    x, w, bias = rng.standard_normal((2, 4, 6, 7)), rng.standard_normal((8, 2, 3, 3)), rng.standard_normal(8)
    copies = x.copy(), w.copy(), bias.copy()
    for algorithm in ("gemm", "fft"):
        y = cuconv.conv(x, w, bias, groups=2, padding=1, activation="gelu", algorithm=algorithm)
        cuconv.conv_backward(y, x, w, groups=2, padding=1, algorithm=algorithm)
    for array, copy in zip((x, w, bias), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_many_threads_at_once():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 8, 20, 20)), rng.standard_normal((8, 8, 3, 3))
    expected = cuconv.conv(x, w, padding=1)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: cuconv.conv(x, w, padding=1), range(64)):
            np.testing.assert_array_equal(result, expected)


class TestDLPack:
    """Arrays of another library, on the CPU, without a copy; a stand-in for torch and its like."""

    @pytest.fixture
    def other(self, monkeypatch):
        import sys
        import types

        class Tensor:
            __module__ = "other"

            def __init__(self, array):
                self.array = array
                self.shape = array.shape

            def __dlpack__(self, **options):
                return self.array.__dlpack__(**options)

            def __dlpack_device__(self):
                return self.array.__dlpack_device__()

        def from_dlpack(array):
            return Tensor(np.from_dlpack(array))

        monkeypatch.setitem(sys.modules, "other", types.SimpleNamespace(from_dlpack=from_dlpack))
        return Tensor

    def test_same_kind_out(self, other):
        x, w = np.arange(10.0).reshape(1, 1, 10), np.ones((1, 1, 3))
        y = cuconv.conv(other(x), other(w))
        assert type(y) is other
        np.testing.assert_array_equal(y.array, cuconv.conv(x, w))

    def test_out_is_written_in_place(self, other):
        x, w, out = np.arange(10.0).reshape(1, 1, 10), np.ones((1, 1, 3)), np.zeros((1, 1, 8))
        given = other(out)
        assert cuconv.conv(other(x), other(w), out=given) is given
        np.testing.assert_array_equal(out, cuconv.conv(x, w))

    def test_read_only_memory(self, other):
        x, out = np.arange(10.0).reshape(1, 1, 10), np.zeros((1, 1, 8))
        x.flags.writeable = out.flags.writeable = False
        np.testing.assert_array_equal(
            cuconv.conv(other(x), other(x[..., :3])).array, cuconv.conv(x, x[..., :3])
        )
        with pytest.raises(ValueError, match="out must be writable"):
            cuconv.conv(other(x), other(x[..., :3]), out=other(out))

    def test_negative_and_zero_strides(self, other):
        x, w = np.arange(10.0).reshape(1, 1, 10)[..., ::-1], np.broadcast_to(2.0, (1, 1, 3))
        np.testing.assert_array_equal(cuconv.conv(other(x), other(w)).array, cuconv.conv(x, w))

    @pytest.mark.parametrize(
        ("question", "way_out"), [("is_neg", "negates.*resolve_neg"), ("is_conj", "conjug")]
    )
    @pytest.mark.parametrize("place", ["x", "w", "out"])
    def test_values_that_are_yet_to_be_changed(self, other, question, way_out, place):
        """PyTorch's lazy views: DLPack passes their memory on as it is, with the wrong sign."""
        arrays = {name: other(np.ones((1, 1, 3 if name != "out" else 1))) for name in ("x", "w", "out")}
        setattr(arrays[place], question, lambda: False)
        cuconv.conv(**arrays)
        setattr(arrays[place], question, lambda: True)
        with pytest.raises(TypeError, match=rf"{place} is a view that other {way_out}"):
            cuconv.conv(**arrays)

    def test_dtypes_without_astype(self, other):
        with pytest.raises(TypeError, match="x converted to int32 and w converted to int32 lose nothing"):
            cuconv.conv(other(np.ones((1, 1, 5), np.int8)), other(np.ones((1, 1, 3), np.int8)))

    @pytest.mark.parametrize("error", [AttributeError, KeyError, NotImplementedError])
    def test_a_library_that_fails(self, other, error):
        class Failing(other):
            __module__ = "other"

            def __dlpack_device__(self):
                raise error("not here")

        with pytest.raises(TypeError, match=r"x cannot be read through DLPack: .*not here"):
            cuconv.conv(Failing(np.ones((1, 1, 5))), other(np.ones((1, 1, 3))))

    def test_mixed_kinds(self, other):
        with pytest.raises(TypeError, match="w must be the same kind of array as x"):
            cuconv.conv(other(np.ones((1, 1, 5))), np.ones((1, 1, 3)))

    def test_what_dlpack_cannot_say(self, other):
        class Locked(other):
            __module__ = "other"

            def __dlpack__(self, **options):
                raise BufferError("it requires a gradient")

        with pytest.raises(TypeError, match="x cannot be read through DLPack: it requires a gradient"):
            cuconv.conv(Locked(np.ones((1, 1, 5))), other(np.ones((1, 1, 3))))


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
def test_overflow_and_infinity_follow_ieee_in_silence(dtype):
    """No warning, which as an exception would leave `out` half-written."""
    large = np.full((1, 1, 6, 6), np.finfo(dtype).max).astype(dtype)
    w = np.full((1, 1, 3, 3), 2, dtype)
    assert np.isinf(cuconv.conv(large, w)).all()
    assert not np.isfinite(cuconv.conv_bias_grad(large)).any()
    x = np.zeros((1, 1, 6, 6), dtype)
    x[0, 0, 0, 0] = np.inf
    y = cuconv.conv(x, np.zeros_like(w))
    assert np.isnan(y).sum() == 1
    for gradient in cuconv.conv_backward(np.ones_like(y), x, w)[:2]:
        assert gradient.dtype == x.dtype


def test_filters_without_output_channels():
    """K = 0 under every algorithm: no result in fprop, zeros in dgrad, nothing in wgrad."""
    x, w, dy = np.ones((8, 8, 30, 30)), np.ones((0, 1, 3, 3)), np.ones((8, 0, 28, 28))
    for algorithm in ("auto", "tune", "gemm", "depthwise", "fft"):
        options = dict(groups=8, algorithm=algorithm)
        assert cuconv.conv(x, w, **options).shape == dy.shape
        assert not cuconv.conv_input_grad(dy, w, x.shape, **options).any()
        assert cuconv.conv_weight_grad(x, dy, w.shape, **options).shape == w.shape


def test_blocks_of_few_pixels_and_many_channels():
    check(Case(cuconv.ConvProblem.parse("n2c6h3w3 k240r3s3 g3 p1"), workspace=2000), "gemm")


@pytest.mark.parametrize(
    "line", ["n2c2h20w20 k3r17s17 p9", "n1c2w40 k2s30 sw3 dw2 p40 circular", "n1c1d4h4w4 k1t9r9s9 p8"]
)
@pytest.mark.parametrize("bound", [1, 1 << 16, 1 << 22])
def test_large_filters_under_few_pixels(line, bound):
    check(Case(cuconv.ConvProblem.parse(line), "int64", workspace=bound), "gemm", ops=("dgrad",))


def test_a_step_counts_as_far_as_it_leads():
    """That of a single output cell too: cells are laid apart by it."""
    assert Axis(0, 16, 1, 16, 9).within(1) == (0, 16, 1, 16, 1)
    assert Axis(0, 2**61, 1, 16, 1).within(1) == (0, 16, 1, 16, 1)
    assert Axis(0, 2, 2**61, 1, 9).within(5) == (0, 2, 9, 1, 5)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize("line", ["n2c4h8w9 k4r2s2 g4 sh{}sw2", "n2c4h8w9 k4r1s2 g4 sw{} dh{}"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_steps_that_lead_nowhere_may_be_larger_than_memory(algorithm, line, dtype):
    """From a single output cell, or from a single tap."""
    case = Case(cuconv.ConvProblem.parse(line.format(2**61, 2**61)), dtype)
    check(case, algorithm, ops=[op for op in OPS if applies(case, algorithm, op)])


def test_numbers_may_be_numpy_scalars_and_sequences_of_any_kind():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 9, 9)), rng.standard_normal((4, 2, 3, 3))
    expected = cuconv.conv(x, w, None, 2, 1, 1, 2)
    for two, one in ((np.int64(2), np.int32(1)), (np.array(2), np.array(1)), ([2, 2], np.array([1, 1]))):
        got = cuconv.conv(x, w, stride=two, padding=one, dilation=one, groups=np.int8(2), flip=np.False_)
        np.testing.assert_array_equal(got, expected)
    dx = cuconv.conv_input_grad(expected, w, np.array(x.shape), 2, 1, 1, 2)
    np.testing.assert_array_equal(dx, cuconv.conv_input_grad(expected, w, list(x.shape), 2, 1, 1, 2))
