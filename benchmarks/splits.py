"""What it costs to split a convolution and its gradients over GPUs, on paper: python -m benchmarks.splits.

Tensors lie split before an op as after it. Over the batch and over space x and y are in parts that match, and
w is whole on every GPU; over channels each GPU has an equal part of x, of w and of y. Then this moves:

    split over        fprop                   dgrad                   wgrad
    batch             nothing                 nothing                 sum of dw
    space             halo of x               halo of dy              halo of x, sum of dw
    input channels    sum of parts of y       dy of the others        dy of the others
    output channels   x of the others         sum of parts of dx      x of the others

The batch and one of the others can be split at once. Each op is a call of its own: a training that keeps what
fprop was sent saves it in wgrad. Where GPUs differ, the one that receives, holds or computes most counts.

`--update` writes the tables of docs/scale.md; `--check` says whether they are what this file computes. No
time in them was measured.
"""

from __future__ import annotations

import argparse
import bisect
import functools
import itertools
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cuconv.dtypes import described
from cuconv.problem import ConvProblem

from .report import table

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- splits:begin -->", "<!-- splits:end -->"
OPS = ("fprop", "dgrad", "wgrad")
DEVICES = (8, 64, 1024)

PROBLEMS = {
    "n32c256h14w14 k256r3s3 p1": "bfloat16",
    "n256c256h14w14 k256r3s3 p1": "bfloat16",
    "n64c64h224w224 k64r3s3 p1": "bfloat16",
    "n32c2048h7w7 k512r1s1": "bfloat16",
    "n1c64d56h64w64 k64t3r3s3": "bfloat16",
    "n1c1d2048h2048w2048 k8t3r3s3 p1": "float32",
    "n1c1w1000000000 k1s1023 p511": "float32",
}
"""Layers of ResNet-50, of VGG-16 and of the 3-D U-Net; a large volume; a long signal."""

# -- what machines do at best ------------------------------------------------------------------------------

FLOPS = {"bfloat16": 790e12, "float32": 67e12}
"""FLOP per second of an H200: timed, a product of 8192 x 8192 by PyTorch; the data sheet's, without TF32."""

COPY = 4.3e12
"""Bytes per second that a copy on an H200 reads and writes: timed."""

MEMORY = 141e9
"""Bytes of an H200: the data sheet's."""

CALL = {"LL": 6.6e-6, "Simple": 8.4e-6}
"""Seconds of a call beside its messages, by the protocols that NCCL has for small and for large ones.

These, and those of each message, are the figures of rings by which NCCL itself chooses: `baseLat` and `hwLat`
in its src/graph/tuning.cc, from 2.19 on.
"""

SHARE = {"LL": 0.5, "Simple": 1.0}
"""Of a link's rate: every word of LL has a flag beside it, so that nobody waits for a whole buffer."""

BOX = 8
"""GPUs that NVLink joins in an HGX H200."""


@dataclass(frozen=True)
class Link:
    """Bytes per second that each GPU receives, and the seconds of a message by each protocol."""

    name: str
    rate: float
    message: dict[str, float]

    def seconds(self, messages: int, size: float) -> float:
        """Of messages that wait for one another: call + messages * each + bytes / rate, by the faster way."""
        if messages == 0:
            return 0.0
        return min(
            CALL[protocol] + messages * each + size / (self.rate * SHARE[protocol])
            for protocol, each in self.message.items()
        )


NVLINK = Link("NVLink", 450e9, {"LL": 0.6e-6, "Simple": 3.4e-6})
INFINIBAND = Link("InfiniBand", 50e9, {"LL": 2.7e-6, "Simple": 14.0e-6})
ETHERNET = Link("Ethernet", 12.5e9, {"LL": 2.7e-6, "Simple": 14.0e-6})
LINKS = (NVLINK, INFINIBAND, ETHERNET)

SOURCES = {
    "NVLink": "NVLink 4 of H100 and H200 SXM, data sheet: 900 GB/s, half of it each way",
    "InfiniBand": "NDR, data sheet: 400 Gb/s, an adapter for each GPU as in a DGX H200",
    "Ethernet": "100 Gb/s for each GPU, with remote DMA; over TCP messages take longer",
}

# -- which cells a chunk needs -----------------------------------------------------------------------------

Range = tuple[int, int]


def even(extent: int, parts: int) -> tuple[int, ...]:
    """Equal chunks, those at the beginning one cell longer where it does not come out even."""
    return tuple(extent // parts + (part < extent % parts) for part in range(parts))


def bounds(chunks: Sequence[int]) -> list[Range]:
    """Where each chunk begins and ends."""
    ends = list(itertools.accumulate(chunks))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def outputs(problem: ConvProblem, axis: int, chunks: Sequence[int]) -> list[Range]:
    """The outputs that belong to each chunk of the input: those whose window has its middle there.

    The middle of window p is cell p s - a + floor(d (R - 1) / 2), so a chunk from cell h on begins with
    output ceil((h + a - floor(d (R - 1) / 2)) / s). Those with their middle in the padding belong to the
    first chunk and to the last.
    """
    if sum(chunks) != problem.input[axis]:
        raise ValueError(f"chunks must add up to {problem.input[axis]} on axis {axis}, got {tuple(chunks)}")
    shift = problem.padding[axis][0] - (problem.reach[axis] - 1) // 2
    last, stride = problem.output[axis], problem.stride[axis]
    inner = [min(max(-(-(begin + shift) // stride), 0), last) for begin, _ in bounds(chunks)[1:]]
    return list(zip([0, *inner], [*inner, last], strict=True))


def read(problem: ConvProblem, axis: int, made: Range) -> Range:
    """What outputs p0 to p1 - 1 read: p0 s - a to (p1 - 1) s - a + d (R - 1), of which there are 0..H-1."""
    (first, end), before, stride = made, problem.padding[axis][0], problem.stride[axis]
    if first == end:
        return (0, 0)
    return _within(
        first * stride - before, (end - 1) * stride - before + problem.reach[axis], problem.input[axis]
    )


def readers(problem: ConvProblem, axis: int, cells: Range) -> Range:
    """What reads cells h0 to h1 - 1: outputs ceil((h0 + a - d (R - 1)) / s) to floor((h1 - 1 + a) / s)."""
    (begin, end), before, stride = cells, problem.padding[axis][0], problem.stride[axis]
    if begin == end:
        return (0, 0)
    first = -(-(begin + before - problem.reach[axis] + 1) // stride)
    return _within(first, (end - 1 + before) // stride + 1, problem.output[axis])


def _within(begin: int, end: int, extent: int) -> Range:
    begin, end = max(begin, 0), min(end, extent)
    return (begin, end) if begin < end else (0, 0)


@dataclass(frozen=True)
class Need:
    """Of a chunk on an axis: the cells it needs, those of them it has, how many chunks have the others."""

    cells: int
    own: int
    neighbours: int


@functools.cache
def needs(problem: ConvProblem, axis: int, chunks: tuple[int, ...], op: str) -> tuple[Need, ...]:
    """What each chunk of an axis needs of x, or for dgrad of dy.

    Raises ValueError for padding that shows cells again: it would need those of the other end.
    """
    if problem.padding_mode != "zeros":
        raise ValueError(f"padding_mode must be 'zeros' where space is split, got {problem.padding_mode!r}")
    inputs, made = bounds(chunks), outputs(problem, axis, chunks)
    if op == "dgrad":
        parts, needed = made, [readers(problem, axis, cells) for cells in inputs]
    else:
        parts, needed = inputs, [read(problem, axis, part) for part in made]
    starts, ends = zip(*parts, strict=True)
    found = []
    for (begin, end), part in zip(needed, parts, strict=True):
        own = max(min(end, part[1]) - max(begin, part[0]), 0)
        # Parts follow one another, so those that hold some of the cells are neighbours in the list too.
        holders = (
            parts[bisect.bisect_right(ends, begin) : bisect.bisect_left(starts, end)] if begin < end else []
        )
        found.append(Need(end - begin, own, sum(a < b for a, b in holders) - (own > 0)))
    return tuple(found)


def halo_bytes(
    problem: ConvProblem, axis_chunks: Sequence[Sequence[int]], dtype: str, op: str = "fprop"
) -> int:
    """Bytes of x, for dgrad of dy, that all chunks together need beyond their own cells.

    `axis_chunks` has the chunks' sizes on every spatial axis. A chunk of the grid needs a box of cells,
    corners included, and has a box of them; sums of their sizes over the grid are products of sums over axes.
    """
    axes = [needs(problem, axis, tuple(chunks), op) for axis, chunks in enumerate(axis_chunks)]
    if len(axes) != problem.rank:
        raise ValueError(f"axis_chunks must have the chunks of {problem.rank} axes, got {len(axes)}")
    needed = math.prod(sum(need.cells for need in axis) for axis in axes)
    own = math.prod(sum(need.own for need in axis) for axis in axes)
    channels = problem.k if op == "dgrad" else problem.c
    return problem.n * channels * (needed - own) * described(dtype).itemsize


# -- what a split costs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Into how many parts the batch, each spatial axis, and input or output channels are split."""

    batch: int = 1
    space: tuple[int, ...] = ()
    c: int = 1
    k: int = 1

    @property
    def devices(self) -> int:
        return self.batch * math.prod(self.space) * self.c * self.k

    def __str__(self) -> str:
        space = " x ".join(map(str, self.space)) if math.prod(self.space) > 1 else ""
        channels = [
            f"{name} {n}" for name, n in (("input channels", self.c), ("output channels", self.k)) if n > 1
        ]
        batch = [f"batch {self.batch}"] if self.batch > 1 else []
        return ", ".join([*batch, *([f"space {space}"] if space else []), *channels]) or "none"

    def unfit(self, problem: ConvProblem) -> str | None:
        """Why a problem cannot be split so; None where it can."""
        space = self.space or (1,) * problem.rank
        parts = (self.batch, self.c, self.k, *space)
        extents = (problem.n, problem.c, problem.k, *map(min, problem.input, problem.output))
        channels = self.c * self.k
        if len(space) != problem.rank:
            return f"space has {problem.rank} axes"
        if any(part > extent for part, extent in zip(parts, extents, strict=True)):
            return "not every GPU would have a part"
        if sum(count > 1 for count in (self.c, self.k, math.prod(space))) > 1:
            return "of space and channels only one is split here"
        if problem.groups % channels and channels % problem.groups:
            return "neither is a part made of whole groups nor a group of whole parts"
        return None


@dataclass(frozen=True)
class Cost:
    """Of one op, on the GPU that has most of each: bytes of halo or channels that it is sent, and how many
    messages wait for one another; bytes of dw, and over how many GPUs it is summed; FLOPs; bytes held.

    The halo goes along one axis after the other, corners with it: a message from each neighbour on an axis.
    In an exchange among q GPUs each message brings twice as much as the one before: ceil(log2 q) of them.
    """

    exchanged: int
    messages: int
    summed: int
    summands: int
    flops: int
    held: int
    dtype: str

    @property
    def received(self) -> float:
        return self.exchanged + ring_bytes(self.summed, self.summands)

    @property
    def floor(self) -> float:
        """Seconds of the products, or of moving operands and results once between the GPU and its memory."""
        return max(self.flops / FLOPS[self.dtype], self.held / COPY)

    def seconds(self, link: Link) -> float:
        """The floor and then the communication, as if neither could go on beside the other."""
        exchange = link.seconds(self.messages, self.exchanged)
        return self.floor + exchange + all_reduce_seconds(self.summed, self.summands, link)


def ring_bytes(size: float, devices: int) -> float:
    """That each of q GPUs receives where they sum up arrays of a size: 2 (q - 1) / q of it.

    In q - 1 steps each q-th part of the array goes round and is summed up, in q - 1 more its sum goes round.
    """
    return 2 * (devices - 1) / devices * size


def all_reduce_seconds(size: float, devices: int, link: Link) -> float:
    """Round a ring, 2 (q - 1) messages; or up a tree and down, 2 ceil(log2 q), the whole array each way."""
    if devices == 1 or not size:
        return 0.0
    ring = link.seconds(2 * (devices - 1), ring_bytes(size, devices))
    return min(ring, link.seconds(2 * math.ceil(math.log2(devices)), 2 * size))


def boxed_all_reduce_seconds(size: float, devices: int, inside: Link, outside: Link) -> float:
    """Each GPU sums up its eighth of the array, over its box, then over all; then boxes share the eighths."""
    within = inside.seconds(BOX - 1, (BOX - 1) / BOX * size)
    return 2 * within + all_reduce_seconds(size / BOX, devices // BOX, outside)


def cost(problem: ConvProblem, op: str, dtype: str, split: Split) -> Cost:
    """What an op costs when it is split so."""
    if reason := split.unfit(problem):
        raise ValueError(f"{split} is no way to split {problem}: {reason}")
    size, space = described(dtype).itemsize, split.space or (1,) * problem.rank
    grid = [even(extent, parts) for extent, parts in zip(problem.input, space, strict=True)]
    x_cells = math.prod(max(chunks) for chunks in grid)
    y_cells = math.prod(
        max(end - begin for begin, end in outputs(problem, axis, chunks)) for axis, chunks in enumerate(grid)
    )
    n, c, k = (
        -(-extent // parts)
        for extent, parts in ((problem.n, split.batch), (problem.c, split.c), (problem.k, split.k))
    )
    channels = split.c * split.k
    x, y, w = (
        -(-elements // channels) * size
        for elements in (n * problem.c * x_cells, n * problem.k * y_cells, math.prod(problem.w_shape()))
    )
    exchanged = messages = 0
    if math.prod(space) > 1:
        axes = [needs(problem, axis, chunks, op) for axis, chunks in enumerate(grid)]
        halo = max(
            math.prod(need.cells for need in chunk) - math.prod(need.own for need in chunk)
            for chunk in itertools.product(*map(set, axes))
        )
        exchanged = n * (problem.k if op == "dgrad" else problem.c) * halo * size
        messages = sum(max(need.neighbours for need in axis) for axis in axes)
    # Who has channels of one group needs what the others have of it, or makes parts of their sums.
    sharing = max(channels // problem.groups, 1)
    if sharing > 1:
        exchanged, messages = (sharing - 1) * (x if split.k > 1 else y), math.ceil(math.log2(sharing))
    made, whole = (x_cells, problem.input) if op == "dgrad" else (y_cells, problem.output)
    part = n * c * k * made / (problem.n * problem.c * problem.k * math.prod(whole))
    return Cost(
        exchanged=exchanged,
        messages=messages,
        summed=w if op == "wgrad" else 0,
        summands=split.batch * math.prod(space),
        flops=math.ceil(problem.flops(op, dtype) * part),
        held=x + w + y + exchanged,
        dtype=dtype,
    )


def training_seconds(problem: ConvProblem, dtype: str, split: Split, link: Link) -> float:
    """Of the three ops, one after the other."""
    return sum(cost(problem, op, dtype, split).seconds(link) for op in OPS)


def floor_seconds(problem: ConvProblem, dtype: str, split: Split) -> float:
    """The same without communication."""
    return sum(cost(problem, op, dtype, split).floor for op in OPS)


def efficiency(problem: ConvProblem, dtype: str, split: Split, link: Link) -> float:
    """The floor on one GPU, if it could hold all, over the time on q of them times q."""
    one = floor_seconds(problem, dtype, Split())
    return one / (split.devices * training_seconds(problem, dtype, split, link))


def splits(problem: ConvProblem, dtype: str, devices: int, link: Link = INFINIBAND) -> Iterator[Split]:
    """One of each kind that there is for so many GPUs: the one that takes least over a link."""
    pairs = [(n, devices // n) for n in range(1, devices + 1) if devices % n == 0]
    grids = {rest: list(_grids(rest, problem.rank)) for _, rest in pairs}
    kinds = [
        [Split(batch=devices)],
        [Split(space=grid) for grid in grids[devices]],
        [Split(c=devices)],
        [Split(k=devices)],
        [Split(batch=n, space=grid) for n, rest in pairs[1:-1] for grid in grids[rest]],
        [Split(batch=n, c=rest) for n, rest in pairs[1:-1]],
        [Split(batch=n, k=rest) for n, rest in pairs[1:-1]],
    ]
    for kind in kinds:
        fit = [split for split in kind if split.unfit(problem) is None]
        if fit:
            yield min(fit, key=lambda split: training_seconds(problem, dtype, split, link))


def fastest(problem: ConvProblem, dtype: str, devices: int, link: Link) -> Split:
    """The split that takes least for fprop, dgrad and wgrad."""
    kinds = splits(problem, dtype, devices, link)
    return min(kinds, key=lambda split: training_seconds(problem, dtype, split, link))


def _grids(parts: int, rank: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as a product of one factor per axis."""
    if rank == 1:
        yield (parts,)
        return
    for first in (n for n in range(1, parts + 1) if parts % n == 0):
        for rest in _grids(parts // first, rank - 1):
            yield (first, *rest)


# -- the page ----------------------------------------------------------------------------------------------


def written(text: str) -> str:
    """The page with its tables anew."""
    parts = iter((rates(), best(), boxes(), details()))
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    found = pattern.sub(lambda _: f"{BEGIN}\n{next(parts)}{END}", text)
    if next(parts, None) is not None:
        raise ValueError(f"{PAGE.name} must have {BEGIN} and {END} for each of its tables")
    return found


def rates() -> str:
    """The figures of links and where they are from, and those of the GPU."""
    lines = [
        [
            link.name,
            f"{link.rate / 1e9:g} GB/s",
            *(_time(link.message[name]) for name in CALL),
            SOURCES[link.name],
        ]
        for link in LINKS
    ]
    products = " and ".join(f"{rate / 1e12:g} TFLOP/s in {dtype}" for dtype, rate in FLOPS.items())
    calls = " and ".join(f"{_time(seconds)} by {name}" for name, seconds in CALL.items())
    return (
        table(["link", "rate", *(f"message, {name}" for name in CALL), "rate from"], lines)
        + f"\nA call takes {calls} beside its messages. The GPU: {products}, copies of {COPY / 1e12:g} TB/s, "
        f"{_bytes(MEMORY)}.\n"
    )


def best() -> str:
    """The fastest split of each problem, by link and number of GPUs."""
    lines = []
    for text, dtype in PROBLEMS.items():
        problem = ConvProblem.parse(text)
        for link in LINKS:
            cells = []
            for devices in DEVICES:
                found = fastest(problem, dtype, devices, link)
                cells.append(f"{found}: {_percent(efficiency(problem, dtype, found, link))}")
            lines.append([f"`{text}`" if link is NVLINK else "", link.name, *cells])
    return table(["problem", "link", *(f"{devices:,} GPUs" for devices in DEVICES)], lines)


def boxes() -> str:
    """The sum of dw over a network alone, and with boxes of eight GPUs."""
    lines = []
    for text, dtype in PROBLEMS.items():
        size = math.prod(ConvProblem.parse(text).w_shape()) * described(dtype).itemsize
        cells = [f"`{text}`", _bytes(size)]
        for devices in DEVICES[1:]:
            cells.append(_time(all_reduce_seconds(size, devices, INFINIBAND)))
            cells.append(_time(boxed_all_reduce_seconds(size, devices, NVLINK, INFINIBAND)))
        lines.append(cells)
    header = [f"{devices:,} GPUs{how}" for devices in DEVICES[1:] for how in ("", f" in boxes of {BOX}")]
    return table(["problem", "dw", *header], lines)


def details() -> str:
    """A table for each problem: every kind of split, what it moves, and the time of a training step."""
    return "\n".join(_detail(ConvProblem.parse(text), dtype) for text, dtype in PROBLEMS.items())


def _detail(problem: ConvProblem, dtype: str) -> str:
    one = [cost(problem, op, dtype, Split()) for op in OPS]
    held = max(each.held for each in one)
    fits = "" if held <= MEMORY else f", which is more than the {MEMORY / 1e9:g} GB of an H200"
    lines = []
    for devices in DEVICES:
        for split in splits(problem, dtype, devices):
            costs = [cost(problem, op, dtype, split) for op in OPS]
            each = [
                f"{_time(training_seconds(problem, dtype, split, link))}, "
                f"{_percent(efficiency(problem, dtype, split, link))}"
                for link in LINKS
            ]
            lines.append([
                f"{devices:,}", str(split), *(_bytes(cost.received) for cost in costs),
                str(sum(cost.messages for cost in costs)), _bytes(max(cost.held for cost in costs)),
                _number(max(cost.flops for cost in costs), _FLOPS),
                _time(sum(cost.floor for cost in costs)), *each,
            ])  # fmt: skip
    header = ["GPUs", "split", *OPS, "messages", "held", "FLOP", "floor", *(link.name for link in LINKS)]
    return (
        f"### `{problem}`, {dtype}\n\n"
        f"On one GPU: {_bytes(held)}{fits}; {_number(one[0].flops, _FLOPS)} in each op; a floor of "
        f"{_time(sum(each.floor for each in one))}.\n\n"
        f"{table(header, lines)}"
    )


_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
_FLOPS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1, "FLOP"))
_SECONDS = ((1, "s"), (1e-3, "ms"), (1e-6, "µs"))


def _number(value: float, units: Sequence[tuple[float, str]]) -> str:
    """In the largest unit that leaves at least one of it, with three digits."""
    unit, name = next((each for each in units if value >= each[0]), units[-1])
    return f"{float(f'{value / unit:.3g}'):g} {name}" if value else "0"


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%" if value >= 0.1 else f"{100 * value:.1g}%"


def _bytes(value: float) -> str:
    return _number(value, _BYTES)


def _time(value: float) -> str:
    return _number(value, _SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, write them into the page, or compare the page with them; 1 if it differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.splits", description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write the tables of docs/scale.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if they are out of date")
    parser.add_argument("--page", type=Path, default=PAGE, help="another page to write or compare")
    options = parser.parse_args(arguments)
    if not options.update and not options.check:
        print("\n".join((rates(), best(), boxes(), details())), end="")
        return 0
    text = options.page.read_text()
    new = written(text)
    if text != new:
        print(f"{options.page.name} {'is not what this file computes' if options.check else 'written'}")
        if options.check:
            return 1
        options.page.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
