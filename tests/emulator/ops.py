"""The public functions, their kernels emulated: any problem through any named kernel without a GPU."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from cuconv import arrays, prepared
from cuconv.cuda import fft
from cuconv.cuda.kernel import VECTOR
from cuconv.cuda.strides import not_in_vectors, strides_by_role
from cuconv.fourier import Library
from cuconv.plan import READY, RESULT
from tests.cases import PUBLIC
from tests.emulator.runner import run_plan


class _EmulatedOwner(arrays.Owner):
    on_gpu = False
    arch = None


def run(op: str, *operands: Any, **options: Any) -> np.ndarray:
    """What the public function of an op returns, computed by the CUDA path on NumPy arrays.

    Takes the arguments of `conv` for "fprop", `conv_input_grad` for "dgrad", `conv_weight_grad` for "wgrad"
    and `conv_bias_grad` for "bgrad"; `algorithm` names an entry of the CUDA table.
    """
    with emulated():
        return PUBLIC[op](*operands, **options)


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """A copy in C order that begins at a whole vector, as a GPU's new arrays do."""
    memory = np.empty(array.nbytes + VECTOR, np.uint8)
    start = -memory.ctypes.data % VECTOR
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def transformed(request: Any, schedule: Any, arrays: Any) -> None:
    """A schedule's transforms, by SciPy in place of `cupyx.scipy.fft`, which has its signatures.

    Inputs are read-only, and what the result has before is only read where it is added to.
    """
    import scipy.fft  # which what kernels are run for does without

    (work,), views = schedule.launches, {role: array.view() for role, array in arrays.items()}
    result = RESULT[request.op]
    for role, view in views.items():
        view.flags.writeable = role == result
    if not request.accumulate:
        views[result][...] = np.nan
    with np.errstate(all="ignore"):  # as on a GPU
        fft.run(Library(np, scipy.fft), request, work, views)


@contextmanager
def emulated(seed: int | None = None):
    """Within it every public function takes NumPy arrays for a GPU's and runs its kernels in the emulator."""

    def owner_of(name, array):
        owner = real_owner_of(name, array)
        return _EmulatedOwner(owner.library, "cuda")

    def ready(request, schedule, arrays):
        if any(isinstance(launch, fft.Transforms) for launch in schedule.launches):
            return lambda _: transformed(request, schedule, arrays)
        for role, never in not_in_vectors(request, schedule.launches, arrays).items():
            if never or arrays[role].ctypes.data % VECTOR:
                arrays[role] = aligned_copy(arrays[role])
        where = strides_by_role(request, arrays)
        return lambda _: run_plan(schedule.launches, arrays, where, schedule.workspace_bytes, seed=seed)

    real_owner_of = arrays.owner_of
    with (
        mock.patch.object(arrays, "owner_of", owner_of),
        mock.patch.object(prepared, "_look", side_effect=LookupError),  # nothing of it is kept
        mock.patch.dict(READY, cuda=ready),
    ):
        yield
