"""What is timed: the public functions, and PyTorch's for the same, each as a caller would write them.

PyTorch's gradients go through the operator that autograd calls, asked for the one gradient only; where it
cannot (complex dtypes, padding modes), through autograd itself, on a graph made before.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.random  # NumPy loads it when first used, and an interrupt meanwhile is lost

from .. import conv, conv_bias_grad, conv_input_grad, conv_weight_grad
from ..arrays import Array, numpy_dtype
from ..dtypes import DTYPES
from ..plan import INPUTS
from ..problem import ConvProblem

DIFFERENT = (1 << 22) - 3
"""How many numbers are drawn before they repeat: drawing takes far longer than a GPU does."""


@dataclass(frozen=True)
class Task:
    """One op on one problem with its operands: x, w and dy, in that dtype and layout, of one library.

    `precision` permits less than the dtype's own, to PyTorch too.
    """

    op: str
    problem: ConvProblem
    dtype: str
    layout: str
    arrays: Mapping[str, Array]
    precision: str | None = None

    @property
    def inputs(self) -> list[Array]:
        """The operands that the op reads."""
        return [self.arrays[role] for role in INPUTS[self.op]]


@dataclass(frozen=True)
class Contender:
    """A call to time, and how its result becomes an array in the task's layout, outside of the time."""

    call: Callable[[], Any]
    result: Callable[[Any], Array] = lambda result: result


def operands(problem: ConvProblem, dtype: str, layout: str) -> dict[str, np.ndarray]:
    """Standard-normal x, w and dy, or small integers, seeded by the problem and the dtype."""
    rng = np.random.default_rng(zlib.crc32(f"{problem} {dtype}".encode()))
    shapes = {"x": problem.x_shape(layout), "w": problem.w_shape(layout), "dy": problem.y_shape(layout)}
    return {role: _drawn(rng, shape, dtype) for role, shape in shapes.items()}


def _drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    described, size = DTYPES[dtype], min(math.prod(shape), DIFFERENT)
    if described.kind == "i":
        return np.resize(rng.integers(-99, 100, size).astype(dtype), shape)
    precise = dtype in ("float64", "complex128")
    values: Any = rng.standard_normal(size, np.float64 if precise else np.float32)
    if described.kind == "c":
        values = values + np.array(1j, dtype) * rng.standard_normal(size, values.dtype)
    return np.resize(values.astype(numpy_dtype(dtype), copy=False), shape)


def ours(task: Task, algorithm: str) -> Contender:
    """The public function of the op. Of bgrad there is one algorithm, so nothing is asked for by name."""
    if task.op == "bgrad":
        return Contender(lambda: conv_bias_grad(task.arrays["dy"], layout=task.layout))
    a, b = task.inputs
    options = dict(task.problem.options(), layout=task.layout, precision=task.precision, algorithm=algorithm)
    if task.op == "fprop":
        return Contender(lambda: conv(a, b, **options))
    gradient = {"dgrad": conv_input_grad, "wgrad": conv_weight_grad}[task.op]
    shape = tuple(task.arrays["x" if task.op == "dgrad" else "w"].shape)
    return Contender(lambda: gradient(a, b, shape, **options))


def torch(task: Task, memory: str) -> Contender | None:
    """PyTorch's function on tensors in the memory format channels_first or channels_last.

    None where there is no such format, which sequences lack, no such padding, or no such function. From then
    on PyTorch may use TF32 if the task permits it.
    """
    import torch as library

    library.backends.cudnn.allow_tf32 = library.backends.cuda.matmul.allow_tf32 = task.precision == "tf32"
    problem = task.problem
    if (memory == "channels_last" and problem.rank == 1) or DTYPES[task.dtype].kind == "i":
        return None
    if _torch_mode(problem) is None:
        return None
    formats = {1: None, 2: library.channels_last, 3: library.channels_last_3d}
    form = formats[problem.rank] if memory == "channels_last" else library.contiguous_format
    tensors = {
        role: _tensor(library, array, task).contiguous(memory_format=form)
        for role, array in task.arrays.items()
    }
    if task.op == "bgrad":
        dy = tensors["dy"]
        return Contender(lambda: dy.sum((0, *range(2, dy.ndim))), lambda sums: _on_host(library, sums, task))
    call = _torch_call(library, task, *(tensors[role] for role in ("x", "w", "dy")))
    return Contender(call, lambda result: _from_tensor(library, result, task))


def _torch_mode(problem: ConvProblem) -> str | None:
    """What functional.pad calls the padding mode, or None where it has none that pads so."""
    axes = list(zip(problem.input, problem.padding, strict=True))
    modes = {
        "zeros": "constant",
        # once around at the most; where it crops too, it is the cropped input that repeats itself
        "circular": "circular" if all(0 <= min(pair) <= max(pair) <= h for h, pair in axes) else None,
        "reflect": "reflect" if all(max(pair) < h for h, pair in axes) else None,
        "replicate": "replicate",
    }
    return modes.get(problem.padding_mode)


def _torch_call(library: Any, task: Task, x: Any, w: Any, dy: Any) -> Callable[[], Any]:
    problem, functional = task.problem, library.nn.functional
    function = getattr(functional, f"conv{problem.rank}d")
    even = problem.padding_mode == "zeros" and all(a == b >= 0 for a, b in problem.padding)
    padding = [a if even else 0 for a, _ in problem.padding]
    # functional.pad takes the last axis first.
    pads = [cells for pair in reversed(problem.padding) for cells in pair]
    mode = _torch_mode(problem)
    geometry = (list(problem.stride), padding, list(problem.dilation))

    def padded(x: Any) -> Any:
        return x if even else functional.pad(x, pads, mode)

    def forward(x: Any, w: Any) -> Any:
        return function(padded(x), w, None, *geometry, problem.groups)

    def gradient(x: Any, mask: list[bool]) -> Any:
        return library.ops.aten.convolution_backward(
            dy, x, w, None, *geometry, False, [0] * problem.rank, problem.groups, mask
        )

    if task.op == "fprop":
        return lambda: forward(x, w)
    if problem.padding_mode != "zeros" or x.is_complex():
        leaf = (x if task.op == "dgrad" else w).detach().requires_grad_()
        y = forward(leaf, w) if task.op == "dgrad" else forward(x, leaf)
        return lambda: library.autograd.grad(y, leaf, dy, retain_graph=True)[0]
    if task.op == "wgrad":
        return lambda: gradient(padded(x), [False, True, False])[1]
    if even:
        return lambda: gradient(x, [True, False, False])[0]
    like, crop = padded(x), [-cells for cells in pads]
    return lambda: functional.pad(gradient(like, [True, False, False])[0], crop)


def _tensor(library: Any, array: Array, task: Task) -> Any:
    """A tensor (N, C, *spatial) on the memory of an array in the task's layout."""
    if task.layout == "channels_last":
        array = array.transpose(0, array.ndim - 1, *range(1, array.ndim - 1))
    if task.dtype == "bfloat16":
        return _tensor_of(library, array.view(np.int16)).view(library.bfloat16)
    return _tensor_of(library, array)


def _tensor_of(library: Any, array: Array) -> Any:
    if isinstance(array, np.ndarray):
        return library.from_numpy(array)
    return library.as_tensor(array, device="cuda")


def _from_tensor(library: Any, tensor: Any, task: Task) -> np.ndarray:
    array = _on_host(library, tensor, task)
    return np.moveaxis(array, 1, -1) if task.layout == "channels_last" else array


def _on_host(library: Any, tensor: Any, task: Task) -> np.ndarray:
    tensor = tensor.detach().cpu().resolve_conj()
    if task.dtype == "bfloat16":
        array: np.ndarray = tensor.view(library.int16).numpy().view(ml_dtypes.bfloat16)
    else:
        array = tensor.numpy()
    return array


def ready_torch(clock: Any, threads: int | None = None) -> None:
    """Settings for PyTorch, for the process: so many threads; on a GPU its best.

    It runs on the clock's stream there, since that is where the clock's events are.
    """
    import torch as library

    if threads is not None:
        library.set_num_threads(threads)
    if clock.device == "cuda":
        library.cuda.set_stream(library.cuda.ExternalStream(clock.stream.ptr))
        library.backends.cudnn.benchmark = True
        library.backends.cudnn.deterministic = False
