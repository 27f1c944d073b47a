"""How the primitive is run: by a callback on the CPU, by a foreign function of XLA's on a CUDA GPU.

XLA gives such a function, its handler, the addresses of arrays on the GPU, and the stream. Ours is written in
Python and made a C function by ctypes: nothing is compiled, and nothing goes through the host. On the CPU it
would take less time than a callback, but XLA calls handlers in threads of its own, and a process that ends
while such a call is waiting hangs. Callbacks are waited for.

Source of the structs: xla/ffi/api/c_api.h of version 0.3, which jaxlib brings along. The handler says that it
goes by the version that runs it: what it reads is at the same place from 0.1 on, and moves with the 0 only.
"""

from __future__ import annotations

import ctypes
import functools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, Structure, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from dataclasses import asdict, replace
from typing import Any

import jax
import numpy as np
from jax.interpreters import mlir

from .. import arrays, prepared
from ..arrays import numpy_dtype
from ..cuda import jit
from ..described import check_algorithm
from ..plan import INPUTS, RESULT, Call, permitted
from ..problem import ConvProblem, Request

TARGET = "cuconv"


@functools.lru_cache(maxsize=4096)
def _function(request: Request, algorithm: str, backend: str) -> Callable[..., Any]:
    """What computes a request, of arrays of the backend's."""
    request = replace(request, precision=permitted(request.precision, request.dtype, backend))
    out_dtype = request.dtype if request.inputs else None

    def describe(a: Any, b: Any, *bias: Any, out: Any = None) -> Any:
        names = INPUTS[request.op]
        operands = arrays.adopt(
            out_dtype, **dict(zip(names, (a, b), strict=True)), bias=bias[0] if bias else None, out=out
        )
        return Call(request, operands, names).planned(algorithm)

    return lambda *operands, **out: prepared.run(describe, operands, out)


def on_cpu(ctx: Any, *operands: Any, request: Request, algorithm: str) -> Any:
    """The primitive's lowering for the CPU."""
    check_algorithm(request, algorithm, "cpu")
    function = _function(request, algorithm, "cpu")
    dtypes = [aval.dtype for aval in ctx.avals_in]

    def host(*given: Any) -> np.ndarray:
        operands = [np.asarray(each) for each in given]
        if [each.dtype for each in operands] != dtypes:
            raise TypeError(
                f"JAX's callback was given {operands[0].dtype} for {dtypes[0]}: its threads know "
                "jax.config.update('jax_enable_x64', True), but not the context jax.enable_x64"
            )
        result: np.ndarray = function(*operands)
        return result

    def run(*given: Any) -> Any:
        # Without the barrier, a result that one of several devices has leaves `jit` with a sharding that JAX
        # itself takes nowhere.
        return jax.lax.optimization_barrier(jax.pure_callback(host, ctx.avals_out[0], *given))

    return mlir.lower_fun(run, multiple_results=False)(ctx, *operands)


def on_cuda(ctx: Any, *operands: Any, request: Request, algorithm: str) -> Any:
    """The primitive's lowering for CUDA. Without CuPy it raises an ImportError or RuntimeError that helps."""
    check_algorithm(request, algorithm, "cuda", jit.current_arch())
    return jax.ffi.ffi_lowering(TARGET)(ctx, *operands, request=written(request, algorithm))


# A compiled program may be kept and read by another process, so that it says itself what is to be done.


def written(request: Request, algorithm: str) -> str:
    """A request and an algorithm as text."""
    return json.dumps([asdict(request), algorithm])


@functools.lru_cache(maxsize=4096)
def _program(text: bytes, backend: str) -> tuple[Callable[..., Any], tuple[tuple[Any, ...], ...]]:
    """What such a text says is to be done, and shape, dtype and bytes of the operands and the result."""
    fields, algorithm = json.loads(text)
    problem, inputs = ConvProblem(**fields["problem"]), fields["inputs"]
    request = Request(**fields | dict(problem=problem, inputs=inputs and tuple(inputs)))
    names = (*(request.inputs or (request.dtype,) * 2), *(request.dtype,) * 2)
    shapes = [request.shapes[role] for role in INPUTS[request.op]]
    if request.bias:
        shapes.append((problem.c if request.op == "dgrad" else problem.k,))
    shapes.append(request.shapes[RESULT[request.op]])
    kinds = [(shape, numpy_dtype(name)) for shape, name in zip(shapes, names, strict=False)]
    sizes = tuple((*kind, math.prod(kind[0]) * kind[1].itemsize) for kind in kinds)
    return _function(request, algorithm, backend), sizes


# -- XLA's structs ----------------------------------------------------------------------------------------


def _struct(**fields: Any) -> Any:
    """A struct of the C interface, which begins with its size."""
    return type("Struct", (Structure,), {"_fields_": [("size", c_size_t), *fields.items()]})


def _function_of(struct: Any) -> Any:
    """The type of a function that takes one and returns an error or a null pointer."""
    return ctypes.CFUNCTYPE(c_void_p, POINTER(struct))


class _Bytes(Structure):
    _fields_ = (("data", c_void_p), ("count", c_size_t))


_Version = _struct(extension=c_void_p, major=c_int, minor=c_int)
_Metadata = _struct(version=_Version, traits=c_uint32)
_Extension = _struct(kind=c_int, next=c_void_p, metadata=POINTER(_Metadata))
_Buffer = _struct(extension=c_void_p, dtype=c_int, data=c_void_p, rank=c_int64, dims=c_void_p)
_Buffers = _struct(extension=c_void_p, count=c_int64, kinds=c_void_p, entries=POINTER(POINTER(_Buffer)))
_Attributes = _struct(
    extension=c_void_p, count=c_int64, kinds=c_void_p, names=c_void_p, entries=POINTER(POINTER(_Bytes))
)
_Error = _struct(extension=c_void_p, message=c_char_p, code=c_int)
_Stream = _struct(extension=c_void_p, context=c_void_p, stream=c_void_p)
_Memory = _struct(extension=c_void_p, context=c_void_p, bytes=c_size_t, alignment=c_size_t, data=c_void_p)
_Release = _struct(extension=c_void_p, context=c_void_p, bytes=c_size_t, data=c_void_p)
_Api = _struct(
    extension=c_void_p, version=_Version, internal=c_void_p,
    create_error=_function_of(_Error), get_message=c_void_p, destroy_error=c_void_p, register=c_void_p,
    get_stream=_function_of(_Stream), register_type=c_void_p, get_context=c_void_p, set_state=c_void_p,
    get_state=c_void_p, allocate=_function_of(_Memory), free=_function_of(_Release),
)  # fmt: skip
_Frame = _struct(
    extension=POINTER(_Extension), api=POINTER(_Api), context=c_void_p, stage=c_int,
    arguments=_Buffers, results=_Buffers, attributes=_Attributes,
)  # fmt: skip


# -- the handler ------------------------------------------------------------------------------------------

_METADATA, _INTERNAL, _ALIGNMENT = 1, 13, 16  # an extension, a code of errors, the most that XLA grants

View = Callable[[int, tuple[int, ...], Any, int], Any]
"""An array of a shape and dtype on so many bytes at an address."""


class _Failed(Exception):  # noqa: N818  # it is no error of ours
    """XLA's own error, which goes back to it."""


def _asked(function: Any, struct: Any, *values: Any) -> Any:
    """The arguments of one of XLA's functions after it was called with them."""
    arguments = struct(ctypes.sizeof(struct), None, *values)
    if error := function(arguments):
        raise _Failed(error)
    return arguments


def handler(place: Callable[[Any], Any], backend: str) -> Any:
    """A handler that computes what its attribute says. `place` makes of a frame a context with a `View`."""

    @_function_of(_Frame)
    def handle(pointer: Any) -> Any:
        frame = pointer.contents
        try:
            if frame.extension and frame.extension.contents.kind == _METADATA:
                metadata = frame.extension.contents.metadata.contents
                minor = frame.api.contents.version.minor if frame.api else 1  # 0.1 asked without saying
                metadata.version = _Version(ctypes.sizeof(_Version), None, 0, minor)
                metadata.traits = 0  # not to be captured in a CUDA graph: a first call compiles and allocates
            else:
                with place(frame) as view:
                    _execute(frame, view, backend)
        except _Failed as failed:
            return failed.args[0]
        except BaseException as raised:  # none may leave through XLA
            message = f"{type(raised).__name__}: {raised}".encode()
            return frame.api.contents.create_error(_Error(ctypes.sizeof(_Error), None, message, _INTERNAL))
        return None

    return handle


def _execute(frame: Any, view: View, backend: str) -> None:
    text = frame.attributes.entries[0].contents
    function, kinds = _program(ctypes.string_at(text.data, text.count), backend)
    buffers = [*frame.arguments.entries[: frame.arguments.count], frame.results.entries[0]]
    *operands, out = (view(buffer.contents.data, *kind) for buffer, kind in zip(buffers, kinds, strict=True))
    function(*operands, out=out)


@contextmanager
def _on_gpu(frame: Any) -> Iterator[View]:
    """Within it CuPy has XLA's stream, on the device that XLA made the current one, and memory of XLA's."""
    cuda = jit.require_cupy().cuda
    api, context, device = frame.api.contents, frame.context, cuda.runtime.getDevice()
    stream = _stream(device, _asked(api.get_stream, _Stream, context, None).stream)
    held: list[Any] = []  # until all is launched: what XLA then does with the memory comes after it

    def memory(address: int | None, size: int) -> Any:
        return cuda.MemoryPointer(cuda.UnownedMemory(address or 0, size, None, device), 0)

    def allocator(size: int) -> Any:
        held.append(_asked(api.allocate, _Memory, context, size, _ALIGNMENT, None))
        return memory(held[-1].data, size)

    def view(address: int, shape: tuple[int, ...], dtype: Any, size: int) -> Any:
        return jit.require_cupy().ndarray(shape, dtype, memory(address, size))

    try:
        with stream, cuda.using_allocator(allocator):
            yield view
    finally:
        for each in held:
            _asked(api.free, _Release, context, each.bytes, each.data)


class _Address:
    """A stream of XLA's, as CuPy takes those of others."""

    def __init__(self, address: int | None) -> None:
        self.address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address or 0


@functools.lru_cache(maxsize=64)
def _stream(device: int, address: int | None) -> Any:
    return jit.require_cupy().cuda.Stream.from_external(_Address(address))


_handler = handler(_on_gpu, "cuda")  # which has to stay
jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(_handler), platform="CUDA")
