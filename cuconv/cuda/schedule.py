"""What all families of CUDA algorithms share: a request on its way to launches.

Padding modes other than zeros, where a family does not read by them itself, and sums in parts, are launches
around those of a family. The schedule of an algorithm depends on the request alone, not on the GPU, so that
it sums in the same order everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ..dtypes import DTYPES, holds
from ..problem import ACTIVATIONS, PADDING_MODES, ConvProblem, Request
from ..table import Schedule
from .cost import Threads, seconds
from .device import Device
from .geometry import Fields, axes, digits, divisor, repeating_axes
from .kernel import VECTOR, Kernel, Launch, Scratch

C_TYPES = {"float32": "float", "float64": "double"} | {
    name: name for name in DTYPES if name not in ("float32", "float64")
}
"""The names that cuda_src/numerics.cuh has for the dtypes."""

THREADS = 128
"""Threads per block where a kernel leaves the choice."""

BLOCKS = 264
"""Blocks that keep a large GPU busy; long sums are cut until there are so many."""

PART = 512
"""The least number of products that a part of a split sum has."""

LIMIT = 2**30
"""What kernels that count in 32 bits keep below."""

SHOWN_TAPS, SHOWN_CHANNELS = 16, 16
"""The most taps of a table of cells that padding shows, and the least channels that are worth one."""

OPERANDS: dict[str, tuple[str, str | None, str]] = {
    "fprop": ("x", "w", "y"),
    "dgrad": ("dy", "w", "dx"),
    "wgrad": ("x", "dy", "dw"),
    "bgrad": ("dy", None, "db"),
}


def lanes_of(request: Request) -> int:
    """How many neighbouring threads read neighbouring channels."""
    return 32 if request.layout == "channels_last" else 1


def pixels(problem: ConvProblem, op: str) -> tuple[int, ...]:
    """The spatial extents that an implicit GEMM counts: of dy, or in dgrad of dx's largest residue."""
    if op != "dgrad":
        return problem.output
    return tuple(per(extent, stride) for extent, stride in zip(problem.input, problem.stride, strict=True))


def planar(problem: ConvProblem) -> bool:
    """Whether the first axis has one cell in every array, always the same one."""
    return problem.input[0] == problem.filter[0] == 1 and not any(problem.padding[0])


def result_shape(problem: ConvProblem, op: str) -> tuple[int, ...]:
    """The shape of a result, canonical."""
    return {
        "fprop": problem.y_shape(),
        "dgrad": problem.x_shape(),
        "wgrad": problem.w_shape(),
        "bgrad": (problem.k, 1, 1, 1, 1),
    }[op]


def gemm_k(problem: ConvProblem, op: str, vector: int = 1) -> int:
    """gemm_k, channels rounded up to whole vectors; of the residue of the stride that has most."""
    if op == "wgrad":
        return problem.gemm(op)[2]
    channels, taps = problem.c // problem.groups, math.prod(problem.filter)
    if op == "dgrad":
        periods = (s // math.gcd(s, d) for s, d in zip(problem.stride, problem.dilation, strict=True))
        channels = problem.k // problem.groups
        taps = math.prod(per(r, period) for r, period in zip(problem.filter, periods, strict=True))
    return taps * per(channels, vector) * vector


def shortest_sum(problem: ConvProblem, op: str) -> int:
    """Products in a sum; of the residue of the stride that has least taps, if any."""
    if op != "dgrad":
        return problem.gemm(op)[2]
    axes = zip(problem.filter, problem.stride, problem.dilation, strict=True)
    taps = math.prod(max(r // (s // math.gcd(s, d)), 1) for r, s, d in axes)
    return problem.k // problem.groups * taps


def too_short(problem: ConvProblem, op: str, least: int) -> str | None:
    """Why sums by parts may be less exact than plain ones, if they may: see docs/accuracy.md."""
    short = shortest_sum(problem, op) < least
    return f"sums of fewer than {least} products are less exact by parts" if short else None


def per(extent: int, tile: int) -> int:
    """How many tiles cover an extent."""
    return -(-extent // tile)


def block_digits(problem: ConvProblem, op: str, bm: int, bn: int, vector: int = 1) -> tuple[int, ...]:
    """What blocks of one part of gemm_k are numbered by, the fastest first: tiles, residues, groups.

    wgrad's columns count channels rounded up to whole vectors.
    """
    groups, c, k = problem.groups, problem.c // problem.groups, problem.k // problem.groups
    if op == "wgrad":
        columns = math.prod(problem.filter) * per(c, vector) * vector
        return per(columns, bn), per(k, bm), groups
    tiles_m = per(problem.n * math.prod(pixels(problem, op)), bm)
    if op == "fprop":
        return per(k, bn), tiles_m, groups
    return per(c, bn), tiles_m, *reversed(problem.stride), groups


@dataclass
class Draft:
    """A request on its way to launches: its problem, volumetric, and its operands.

    It is padded with zeros, but where the family reads padded cells of x of itself.
    `partial` says that the result is scratch of the accumulator's dtype, for a later launch to finish. Sums
    are in one order whatever the `device`.
    """

    request: Request
    problem: ConvProblem
    a: str | Scratch
    b: str | Scratch | None
    out: str | Scratch
    partial: bool = False
    device: Device | None = None
    scratch: list[Scratch] = field(default_factory=list)

    @property
    def c_type(self) -> str:
        return C_TYPES[self.request.dtype]

    @property
    def lanes(self) -> int:
        """How many neighbouring threads read neighbouring channels."""
        return lanes_of(self.request)

    @property
    def workspace_bytes(self) -> int:
        return max((scratch.end for scratch in self.scratch), default=0)

    def room(self, shape: tuple[int, ...], dtype: str, channels_last: bool = False) -> Scratch:
        """A new array in the workspace, aligned for any vector."""
        self.scratch.append(Scratch(per(self.workspace_bytes, 256) * 256, shape, dtype, channels_last))
        return self.scratch[-1]

    def padded_room(self, dtype: str) -> Scratch:
        """A new array for the padded x, or its gradient, in the layout of x."""
        shape = (self.problem.n, self.problem.c, *self.problem.padded)
        return self.room(shape, dtype, self.request.layout == "channels_last")

    def fields(self, **more: Any) -> Fields:
        """What every kernel is told, and more."""
        problem, request = self.problem, self.request
        channels, filters = problem.c // problem.groups, problem.k // problem.groups
        zeros = problem.padding_mode == "zeros"
        return {
            "batch": problem.n,
            "groups": problem.groups,
            "channels": channels,
            "filters": filters,
            "axis": axes(problem),
            "group": divisor(channels if request.op == "dgrad" else filters),
            "pixel": tuple(divisor(extent) for extent in reversed(pixels(problem, request.op))),
            "mode": 0 if zeros else PADDING_MODES.index(problem.padding_mode),
            "activation": ACTIVATIONS.index(request.activation),
            "accumulate": int(request.accumulate),
            "conjugate": request.conjugate + request.conjugate_sum,
            "partial": int(self.partial),
            "splits": 1,
            "lanes": self.lanes,
        } | more

    def launch(self, kernel: Kernel, blocks: int, fields: Fields, **changes: Any) -> Launch:
        """A launch on the work's operands; `changes` are other members of Launch."""
        return replace(Launch(kernel, blocks, self.a, self.b, self.out, tuple(fields.items())), **changes)

    def per_element(
        self, kernel: Kernel, extents: tuple[int, int, tuple[int, ...]], fields: Fields, **changes: Any
    ) -> Launch:
        """A launch with one thread per element of an array (outer, channels, (three spatial axes))."""
        outer, channels, (d, h, w) = extents
        order = (channels, w, h, d) if fields["lanes"] > 1 else (w, h, d, channels)
        items = outer * channels * d * h * w
        fields = fields | {"items": items, "digit": digits(order)}
        return self.launch(kernel, per(items, kernel.threads), fields, **changes)

    def by_tables(
        self,
        kernel: Kernel,
        each: int,
        extents: tuple[int, int, tuple[int, ...]],
        fields: Fields,
        **changes: Any,
    ) -> Launch:
        """A launch of a kernel with tables of such an array's rows and columns, `each` elements per thread.

        See cuda_src/elements.cuh.
        """
        launch = self.per_element(kernel, extents, fields, **changes)
        found = dict(launch.fields)
        order = [extent for extent, *_ in found["digit"][:4]]
        fast = next((i for i in range(1, 5) if math.prod(order[:i]) >= 32), 5)
        columns = math.prod(order[:fast]) if fast < 5 else found["items"]
        found |= {"digit": digits((*order, columns)), "chunk": fast}
        return replace(launch, blocks=per(found["items"], each * kernel.threads), fields=tuple(found.items()))


def per_element_kernel(file: str, template: str, dtype: str) -> Kernel:
    """An instance of a template with one thread per element."""
    return Kernel(file, template, (C_TYPES[dtype],), THREADS)


# -- narrower integers and padding modes, around the launches of any family --------------------------


Reads = Callable[[Request], bool]
"""Whether a family reads padded cells of x of itself: `reads_padding` of its file, if it ever does.

It may be true where `padding_is_near`: the family is given the problem with its padding, and `Params.mode`.
"""

_COPIED, _FOLDED = 16, 8
"""Elements of a thread that copies them, and of one that folds them."""


def scheduled(
    build: Callable[[Draft], list[Launch]], request: Request, device: Device, reads: Reads | None = None
) -> Schedule:
    """The launches that a family builds, with those for narrower integers and the padding mode around them.

    Raises ValueError where one would need more blocks than a grid can have.
    """
    a, b, out = OPERANDS[request.op]
    draft = Draft(request, _volumetric(request), a, b, out, device=device)
    if 0 in request.shape(out):
        return Schedule(0, ())
    launches = _widened(draft)
    if not _pads(request) or (reads and reads(request)):
        launches += build(draft)
    elif request.op == "dgrad":
        launches += _folded(build, draft)
    else:
        launches += _padded(build, draft)
    for launch in launches:
        if launch.blocks >= 2**31:
            raise ValueError(
                f"{request} is too large for a GPU: {launch.kernel.template} would take 2^31 blocks or more"
            )
    return Schedule(draft.workspace_bytes, tuple(launch for launch in launches if launch.blocks))


def zero_padded(request: Request) -> ConvProblem:
    """The problem that a family sees of which no padded cells are read."""
    problem = _volumetric(request)
    return _without_padding(problem) if _pads(request) else problem


def seen_by(reads: Reads, request: Request) -> ConvProblem:
    """The problem that a family sees which reads padded cells of x of itself where it says so."""
    return _volumetric(request) if reads(request) else zero_padded(request)


def padding_is_near(request: Request) -> bool:
    """Whether x is read by its padding mode, no padded cell being more than one period from the input.

    Such cells are found without a division: `near_source` in padding.cuh.
    """
    problem = request.problem
    least = {"reflect": 1, "replicate": -LIMIT}.get(problem.padding_mode, 0)
    return (
        request.op in ("fprop", "wgrad")
        and _pads(request)
        and all(max(pair) + least <= h for pair, h in zip(problem.padding, problem.input, strict=True))
    )


def padding_is_cheap(request: Request) -> bool:
    """Whether a table of the cells that padding shows takes less than a padded copy of x: see gather.cuh.

    It has all taps of a tile's pixels, and all channels have the same one.
    """
    problem = request.problem
    small = math.prod(problem.filter) <= SHOWN_TAPS and problem.c // problem.groups >= SHOWN_CHANNELS
    return small and padding_is_near(request)


def table_bytes(problem: ConvProblem, pixels: int, channels: int = 1, columns: int = LIMIT) -> int:
    """The size of that table, where a tile has so many pixels and columns, `channels` of these for a tap."""
    return 8 * pixels * min(math.prod(problem.filter), per(columns - 1, channels) + 1)


def padding_seconds(request: Request, device: Device, reads: Reads | None) -> float:
    """The estimate of the launch that pads x in the workspace, if there is one; all families fold dx."""
    if not _pads(request) or request.op == "dgrad" or (reads and reads(request)):
        return 0.0
    problem = request.problem
    x, padded = (problem.n * problem.c * math.prod(extents) for extents in (problem.input, problem.padded))
    threads = Threads(per(padded, THREADS * _COPIED), THREADS, 8, instructions=250, waits=2)
    return seconds(request, device, threads, (x + padded) * DTYPES[request.dtype].itemsize)


def _volumetric(request: Request) -> ConvProblem:
    """The problem with three axes; a single tap is dilated by nothing, a single window moved by nothing."""
    problem = request.problem.volumetric
    taps = zip(problem.filter, problem.dilation, strict=True)
    windows = zip(problem.padded, problem.reach, problem.stride, strict=True)
    return replace(
        problem,
        dilation=tuple(d if r > 1 else 1 for r, d in taps),
        stride=tuple(s if padded > reach else 1 for padded, reach, s in windows),
    )


def _pads(request: Request) -> bool:
    """Whether there is padding of another mode than zeros."""
    problem = request.problem
    return request.op != "bgrad" and problem.padding_mode != "zeros" and max(map(max, problem.padding)) > 0


def _widened(draft: Draft) -> list[Launch]:
    """Operands of narrower integers are copied to the workspace in the dtype of the result."""
    request, problem, launches = draft.request, draft.problem, []
    shapes = {"a": problem.x_shape(), "b": problem.w_shape()}
    for (slot, shape), dtype in zip(shapes.items(), request.inputs or (), strict=False):
        if dtype == request.dtype:
            continue
        kernel, extents = _widen_kernel(dtype, request.dtype), (shape[0], shape[1], shape[2:])
        narrow = getattr(draft, slot)
        wide = draft.room(shape, request.dtype, request.layout == "channels_last")
        launches.append(draft.by_tables(kernel, _COPIED, extents, draft.fields(), a=None, b=narrow, out=wide))
        setattr(draft, slot, wide)
    return launches


def _padded(build: Callable[[Draft], list[Launch]], draft: Draft) -> list[Launch]:
    """x is padded in the workspace first."""
    problem = draft.problem
    extents = (problem.n, problem.c, problem.padded)
    kernel = _pad_kernel(DTYPES[draft.request.dtype].itemsize)
    padded = draft.padded_room(draft.request.dtype)
    pad = draft.by_tables(kernel, _COPIED, extents, _repeating(draft), b=None, out=padded)
    draft.a, draft.problem = padded, _without_padding(problem)
    return [pad, *build(draft)]


def _folded(build: Callable[[Draft], list[Launch]], draft: Draft) -> list[Launch]:
    """The gradient of the padded x is summed in the workspace, and folded back onto x last."""
    problem, out = draft.problem, draft.out
    extents = (problem.n, problem.c, problem.input)
    kernel = _fold_kernel(draft.request.dtype)
    padded = draft.padded_room(DTYPES[draft.request.dtype].accumulator)
    fold = draft.by_tables(kernel, _FOLDED, extents, _repeating(draft), a=padded, b=None, out=out)
    draft.out, draft.partial, draft.problem = padded, True, _without_padding(problem)
    return [*build(draft), fold]


def _repeating(draft: Draft) -> Fields:
    mode = PADDING_MODES.index(draft.problem.padding_mode)
    return draft.fields(axis=repeating_axes(draft.problem), mode=mode)


def _without_padding(problem: ConvProblem) -> ConvProblem:
    return replace(problem, input=problem.padded, padding=((0, 0),) * 3, padding_mode="zeros")


_C_INTEGERS = {
    "int8": "signed char",
    "uint8": "unsigned char",
    "int16": "short",
    "uint16": "unsigned short",
    "int32": "int",
    "uint32": "unsigned",
}
"""C++'s names for integers that are narrower than a result, with their signs."""


def _widen_kernel(dtype: str, wide: str) -> Kernel:
    return Kernel("widening.cuh", "conv_widen", (_C_INTEGERS[dtype], C_TYPES[wide], THREADS), THREADS)


def widening_kernels() -> Iterator[Kernel]:
    """Every instance that narrower integers take."""
    pairs = ((dtype, wide) for wide in ("int32", "int64") for dtype in _C_INTEGERS)
    yield from (_widen_kernel(*pair) for pair in pairs if pair[0] != pair[1] and holds(pair[1], pair[0]))


def _pad_kernel(itemsize: int) -> Kernel:
    return Kernel("padding.cuh", "conv_pad", (itemsize, THREADS), THREADS)


def _fold_kernel(dtype: str) -> Kernel:
    return Kernel("padding.cuh", "conv_fold", (C_TYPES[dtype], THREADS), THREADS)


def padding_kernels() -> Iterator[Kernel]:
    """Every instance that a padding mode takes."""
    yield from map(_pad_kernel, sorted({dtype.itemsize for dtype in DTYPES.values()}))
    yield from (_fold_kernel(dtype) for dtype in DTYPES)


# -- sums in parts ------------------------------------------------------------------------------------


def parts(length: int, blocks: int, share: float = 1.0, multiple: int = 1) -> tuple[int, int]:
    """(splits, chunk): how a sum of so many terms is cut, which done whole would keep `blocks` blocks busy.

    A part has a share of PART terms or more, and a multiple of `multiple`.
    """
    least = max(int(PART * share), 1)
    splits = max(1, min(per(BLOCKS, max(blocks, 1)), length // least), per(length, LIMIT))
    chunk = max(per(per(length, splits), multiple), 1) * multiple
    return max(per(length, chunk), 1), chunk


def split_sum(
    draft: Draft,
    kernel: Kernel,
    tiles: int,
    fields: Fields,
    cut: tuple[int, int],
    channels_last: bool = False,
    seen: tuple[int, ...] | None = None,
    blocks: int | None = None,
    **changes: Any,
) -> list[Launch]:
    """A kernel that sums in parts, and, where there is more than one, the launch that adds them in order.

    The parts are in C order, or have their channels last. A kernel that sees the result in another shape, the
    same in memory, leaves a part even where there is but one. Tiles have a block each, or so many in all.
    """
    splits, chunk = cut
    blocks = splits * tiles if blocks is None else blocks
    fields = draft.fields() | fields | {"splits": splits, "chunk": chunk}
    if splits == 1 and seen is None:
        return [draft.launch(kernel, blocks, fields, **changes)]
    dtype, op = draft.request.dtype, draft.request.op
    shape = result_shape(draft.problem, op)
    summands = draft.room((splits, *(seen or shape)), sum_dtype(op, dtype), channels_last)
    each = _summed_by_a_thread(shape, summands.dtype)
    batch = shape[0] // each
    kernel_of_parts = _reduce_kernel(dtype, summands.dtype)
    lanes = 32 if channels_last else 1  # in the order of the parts
    of_sum = draft.fields(splits=splits, chunk=each, batch=batch, lanes=lanes)
    add = draft.per_element(kernel_of_parts, (batch, shape[1], shape[2:]), of_sum, a=summands, b=None)
    return [draft.launch(kernel, blocks, fields | {"partial": 1}, out=summands, **changes), add]


def _summed_by_a_thread(shape: tuple[int, ...], dtype: str) -> int:
    """How many elements: a vector of them, where there are enough to keep a GPU busy, or one."""
    vector = VECTOR // DTYPES[dtype].itemsize
    busy = math.prod(shape) >= BLOCKS * THREADS * vector
    return vector if busy and shape[0] % vector == 0 else 1


def reduce_seconds(request: Request, device: Device, splits: int) -> float:
    """The estimate of that last launch."""
    if splits == 1:
        return 0.0
    shape, dtype = result_shape(zero_padded(request), request.op), sum_dtype(request.op, request.dtype)
    size, each = math.prod(shape) * DTYPES[dtype].itemsize, _summed_by_a_thread(shape, dtype)
    passes = per(splits, 16 if each == 1 else 8)
    blocks = per(math.prod(shape), each * THREADS)
    threads = Threads(blocks, THREADS, 9, instructions=250 + 64 * passes, waits=passes)
    return seconds(request, device, threads, splits * size)


def sum_dtype(op: str, dtype: str) -> str:
    """The dtype of the parts of a sum: the bias gradient is summed in double precision."""
    accumulator = DTYPES[dtype].accumulator
    return (
        {"float32": "float64", "complex64": "complex128"}.get(accumulator, accumulator)
        if op == "bgrad"
        else accumulator
    )


def _reduce_kernel(dtype: str, summands: str) -> Kernel:
    return Kernel("sums.cuh", "conv_reduce", (C_TYPES[dtype], C_TYPES[summands]), THREADS)


def reduce_kernels() -> Iterator[Kernel]:
    """Every instance that a sum in parts takes."""
    for dtype in DTYPES:
        yield from (
            _reduce_kernel(dtype, of)
            for of in dict.fromkeys(sum_dtype(op, dtype) for op in ("wgrad", "bgrad"))
        )


# -- what families ask of a request -------------------------------------------------------------------


_TOO_MANY = "the channels of a filter, times its taps, are 2^30 or more"


def beyond_32_bits(request: Request) -> str | None:
    """Why 32 bits are too few for coordinates, or for the channels and taps of a filter, if they are."""
    problem = _volumetric(request)
    for axis in range(3):
        reaches = (problem.input, problem.padded, problem.reach, problem.stride, problem.dilation)
        if max(*(lengths[axis] for lengths in reaches), *map(abs, problem.padding[axis])) >= LIMIT:
            return "an axis, its padding included, has 2^30 cells or more"
    if max(problem.n, max(problem.c, problem.k) * math.prod(problem.filter)) >= LIMIT:
        return _TOO_MANY
    return None


def not_by_tiles(request: Request, problem: ConvProblem, least: int, vector: int) -> str | None:
    """Why groups do not fill tiles, which takes so many channels and filters of each, or why 32 bits are too
    few for what is multiplied in vectors.
    """
    if problem.groups > 1 and min(problem.c, problem.k) < least * problem.groups:
        return f"its groups have fewer than {least} channels or filters"
    if reason := beyond_32_bits(request):
        return reason
    channels = max(problem.c, problem.k) // problem.groups
    if math.prod(problem.filter) * per(channels, vector) * vector >= LIMIT:
        return _TOO_MANY
    return None
