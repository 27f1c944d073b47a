"""The pages of docs/kernels: their tables and drawings: python -m benchmarks.kernel_pages.

Tables stand between marks `<!-- costs: begin -->` and `<!-- costs: end -->`. Times are those of
predictions.json, which the cost model makes: none was measured. Tiles, and what fft's plans say, are those of
the code. The drawings, SVG beside the pages, are those of `drawings`. `--check` says what is out of date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cuconv
from cuconv import ConvProblem
from cuconv.cuda import mma, simt, wgmma
from cuconv.plan import TABLES, Plan

from . import predictions, suites
from .drawings import DRAWINGS, alike
from .report import table, with_part

FOLDER = Path(__file__).parents[1] / "docs" / "kernels"
ARCH = "sm_90"
FIRST, LAST = "channels_first", "channels_last"
OPS = ("fprop", "dgrad", "wgrad")


# -- what is predicted --------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What a table is of: dtype, layout and precision."""

    dtype: str
    layout: str
    precision: str | None = None

    def __str__(self) -> str:
        tf32 = f" as {self.precision}" if self.precision else ""
        return f"{self.dtype}{tf32}, {self.layout}"


_HALF, _FLOAT, _TF32 = Kind("float16", LAST), Kind("float32", FIRST), Kind("float32", LAST, "tf32")

_DENSE, _DEEP, _POINT = "n32c64h56w56 k64r3s3 p1", "n32c256h14w14 k256r3s3 p1", "n32c256h56w56 k64r1s1"
_STRIDED, _STEM = "n32c128h56w56 k128r3s3 sh2sw2 p1", "n32c3h224w224 k64r7s7 sh2sw2 p3"
_SIGNAL, _VOLUME, _ONE = "n8c64w4096 k64s15 p7", "n1c32d28h30w30 k32t3r3s3 p1", "n1c64h56w56 k64r3s3 p1"
_THIN, _THIN_LARGE = "n64c128h56w56 k128r3s3 g128 p1", "n64c192h28w28 k192r7s7 g192 p3"
_THIN_STRIDED = "n64c128h56w56 k128r3s3 g128 sh2sw2 p1"
_PICTURES = ("n1c1h4096w4096 k1r5s5 p2", "n1c1h4096w4096 k1r31s31 p15")

COSTS: dict[str, dict[Kind, tuple[str, ...]]] = {
    "direct": {_FLOAT: (_DENSE, _POINT, _THIN, _ONE), _HALF: (_DENSE, _THIN)},
    "simt": {_FLOAT: (_DENSE, _POINT, _STRIDED, _STEM, _SIGNAL, _ONE), _HALF: (_DENSE, _POINT, _THIN)},
    "depthwise": {
        _FLOAT: (_THIN, _THIN_LARGE, _THIN_STRIDED, *_PICTURES),
        _HALF: (_THIN, _THIN_LARGE, _THIN_STRIDED, "n16c384h64w64 k384r13s13 g384 p6"),
    },
    "grouped": {
        _HALF: (
            "n32c128h56w56 k128r3s3 g32 p1", "n32c512h14w14 k512r3s3 g32 p1", "n32c1024h7w7 k1024r3s3 g32 p1",
            _STEM, _DENSE, _ONE,
        )
    },
    "mma": {
        _HALF: (_DENSE, _DEEP, _POINT, _STRIDED, _SIGNAL, _VOLUME),
        _FLOAT: (_DENSE, _DEEP, _STRIDED),
        _TF32: (_DENSE, _DEEP),
        Kind("float64", LAST): (_DENSE, _DEEP),
        Kind("complex64", FIRST): ("n1c32h256w256 k32r5s5 p2",),
    },
    "wgmma": {
        _HALF: (_DENSE, _DEEP, _POINT, _STRIDED, _SIGNAL),
        _FLOAT: (_DENSE, _DEEP, _STRIDED),
        _TF32: (_DENSE, _DEEP),
    },
}  # fmt: skip
"""By family, the problems of its tables: of `home`, or of other suites for what `home` has not."""

BOUND_BY_MEMORY = ("depthwise",)
"""Families whose tables say GB/s."""


def plan_of(op: str, line: str, kind: Kind, algorithm: str = "auto") -> Plan:
    problem = ConvProblem.parse(line)
    return cuconv.plan(
        op, problem.x_shape(kind.layout), problem.w_shape(kind.layout), kind.dtype, **problem.options(),
        layout=kind.layout, precision=kind.precision, algorithm=algorithm, backend="cuda", device=ARCH,
    )  # fmt: skip


def costs(family: str) -> str:
    """A table per kind, and what was counted of the launches that multiply."""
    parts = []
    for kind, lines in COSTS[family].items():
        rows = [[f"`{line}`", *(_cost(family, op, line, kind) for op in OPS)] for line in lines]
        parts += [f"{kind}:\n", table(("problem", *OPS), rows)]
    return "\n".join([_PREDICTED, *parts, _COUNTED, counted(family)])


def _cost(family: str, op: str, line: str, kind: Kind) -> str:
    chosen = plan_of(op, line, kind)
    request = chosen.request
    row = predictions.rows().get(predictions.key(request, family, ARCH))
    if row is None:
        (entry,) = (entry for entry in TABLES["cuda"][op] if entry.name == family)
        if entry.applies(request, None) is not None:
            return "does not apply"
        if chosen.algorithm == family:
            raise ValueError(f"there is no prediction of {request} by {family}")
        return f"`auto` takes `{chosen.algorithm}`"
    time = seconds(row["seconds"])
    if chosen.algorithm == family:
        time = f"**{time}**"
    if family in BOUND_BY_MEMORY:
        rate = f"{request.bytes / row['seconds'] / 1e9:,.0f} GB/s"
    else:
        rate = f"{request.problem.flops(op, request.dtype) / row['seconds'] / 1e12:.3g} TFLOP/s"
    return f"{time}, {rate}, {row['limit']}, {row['of_floor']:.1f} x floor"


def seconds(time: float) -> str:
    return f"{time * 1e6:.0f} us" if time < 1e-3 else f"{time * 1e3:.2f} ms"


_PREDICTED = """Predicted for an H200, not measured; bold where `auto` chooses the family.
[What the words mean](index.md).
"""

_COUNTED = """Counted in the emulator and in the compiled kernels, the worst over the problems of
[home.txt](../../benchmarks/problems/home.txt) that the family takes:
"""


def counted(family: str) -> str:
    """Per op and kind, of the launch with most instructions among those that multiply."""
    found: dict[tuple[str, Kind], list[Any]] = {}
    for line in map(str, suites.read("home").problems):
        for kind in (_FLOAT, _HALF):
            for op in OPS:
                row = predictions.rows().get(predictions.key(plan_of(op, line, kind).request, family, ARCH))
                if row:
                    work = max(
                        row["launches"],
                        key=lambda it: (
                            it["main"]["multiplies"] > 0,
                            it["instructions"]["all"] * it["blocks"],
                        ),
                    )
                    found.setdefault((op, kind), []).append(work)
    rows = []
    for (op, kind), works in sorted(found.items()):
        registers = sorted({work["registers"] for work in works})
        resident = sorted({work["resident"] for work in works})
        rows.append([
            op, str(kind), f"{max(map(_sectors, works)):.2f}", f"{max(map(_wavefronts, works)):.2f}",
            f"{min(work['main']['multiplies'] / work['main']['instructions'] for work in works):.0%}",
            _span(registers), _span(resident),
        ])  # fmt: skip
    return table(("op", "arrays", "sectors", "wavefronts", "multiply", "registers", "blocks at once"), rows)


def _sectors(work: dict[str, Any]) -> float:
    """Of global memory, over the least that the same bytes could take."""
    taken, least = (
        sum(totals[i] for space, totals in work["memory"].items() if space != "shared") for i in (1, 2)
    )
    return taken / least


def _wavefronts(work: dict[str, Any]) -> float:
    shared = work["memory"].get("shared")
    return shared[1] / shared[2] if shared else 1.0


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


# -- what goes before and after -----------------------------------------------------------------------------

PASSES = (
    ("x made channels-last", "fprop", _DENSE, _FLOAT, "mma", "conv_channels_last"),
    ("the same, by parts", "fprop", _DENSE, _FLOAT, "wgmma", "conv_channels_last"),
    ("x with taps as channels", "fprop", _STEM, _HALF, "grouped", "conv_folded"),
    ("complex filters made real", "fprop", "n1c32h256w256 k32r5s5 p2", Kind("complex64", FIRST), "mma",
     "conv_real_filters"),
    ("parts of dw added up", "wgrad", _DENSE, _HALF, "mma", "conv_reduce"),
    ("bias gradient", "bgrad", _DENSE, _FLOAT, "sum", "conv_bgrad_sum"),
    ("bias gradient", "bgrad", _DENSE, _HALF, "sum", "conv_bgrad_sum"),
    ("parts of db added up", "bgrad", _DENSE, _HALF, "sum", "conv_reduce"),
)  # fmt: skip
"""Launches that are around those of a family: of which op, problem, arrays and algorithm."""


def costs_of_passes() -> str:
    """Each launch alone, by what the file has counted of it."""
    from tests.cost import model  # which has the arithmetic from counts to seconds
    from tests.cost.gpus import GPUS

    rows = []
    for what, op, line, kind, algorithm, template in PASSES:
        key = predictions.key(plan_of(op, line, kind).request, algorithm, ARCH)
        work = next(
            work for work in predictions.rows()[key]["launches"] if work["kernel"].startswith(template)
        )
        units = model.units(model.Work(**work | {"main": model.Main(**work["main"])}), GPUS[ARCH])
        limit = max(units, key=units.__getitem__)
        time, size = units[limit], sum(work["operands"].values()) + work["written"]
        rows.append([
            what, f"`{line}`, {kind}, {op} by `{algorithm}`", f"{size / 1e6:,.2f} MB",
            f"{time * 1e6:,.1f} us", f"{size / time / 1e9:,.0f} GB/s", limit, f"{_sectors(work):.2f}",
        ])  # fmt: skip
    return table(("launch", "in", "read and written", "time", "rate", "limit", "sectors"), rows)


# -- what plans say -----------------------------------------------------------------------------------------

TRANSFORMED = (
    "n1c1w1000000 k1s1023 p511",
    "n1c1h4096w4096 k1r31s31 p15",
    "n1c1w1000000000 k1s1023 p511",
    "n8c16h512w512 k16r63s63 p31",
)


def costs_of_fft() -> str:
    """How problems are cut, in float32."""
    rows = []
    for line in TRANSFORMED:
        for op in OPS:
            plan = plan_of(op, line, _FLOAT, "fft")
            (work,) = plan.launches
            tile, made = work.tile, "c" if op == "dgrad" else "k"
            lengths = " x ".join(f"{length:,}" for length in work.lengths if length > 1)
            block = f"g{tile.groups} {made}{tile.channels} n{tile.images}"
            rows.append([
                f"`{line}`", op, lengths, block, f"{tile.cells:,}", f"{plan.workspace_bytes / 1e6:,.0f} MB",
            ])  # fmt: skip
    return table(("problem", "op", "cells of a transform", "block", "cells made", "workspace"), rows)


# -- tiles --------------------------------------------------------------------------------------------------


def tiles_of_simt() -> str:
    """A row for each tile, with the dtypes and ops that may take it."""
    users: dict[Any, dict[str, list[str]]] = {}
    for op, by_dtype in simt.TILES.items():
        for dtype, tiles in by_dtype.items():
            for tile in tiles:
                if not tile.planar:
                    users.setdefault(tile, {}).setdefault(dtype, []).append(op)
    rows = []
    for tile, dtypes in users.items():
        rows.append([
            f"{tile.bm} x {tile.bn}", str(tile.bk), f"{tile.tm} x {tile.tn}", str(tile.threads),
            ", ".join(f"{dtype} ({_ops(ops)})" for dtype, ops in dtypes.items()),
        ])  # fmt: skip
    return table(("tile", "slice", "a thread's part", "threads", "for"), rows)


def tiles_of_mma() -> str:
    rows = []
    for dtype, product in (
        ("float16, bfloat16", mma.PRODUCTS["float16", None]),
        ("float32 as tf32", mma.PRODUCTS["float32", "tf32"]),
        ("float32, complex64", mma.PRODUCTS["float32", None]),
        ("float64, complex128", mma.PRODUCTS["float64", None]),
    ):
        of: dict[Any, list[str]] = {}
        for op, tiles in product.tiles.items():
            for tile in tiles:
                of.setdefault(tile, []).append(op)
        rows += [
            [
                dtype, f"{tile.bm} x {tile.bn}", str(tile.bk), f"{tile.wm} x {tile.wn}", str(tile.threads),
                str(tile.stages), _ops(ops) + (", up to two axes" if tile.planar else ""),
            ]
            for tile, ops in of.items()
        ]  # fmt: skip
    return table(("arrays", "tile", "slice", "a warp's part", "threads", "stages", "for"), rows)


def tiles_of_wgmma() -> str:
    rows = []
    for dtype, product in (
        ("float16, bfloat16", wgmma.PRODUCTS["float16", None]),
        ("float32 as tf32", wgmma.PRODUCTS["float32", "tf32"]),
        ("float32, complex64", wgmma.PRODUCTS["float32", None]),
    ):
        rows += [
            [
                dtype, f"{tile.bm} x {tile.bn}", str(product.depth), str(tile.stages),
                f"{wgmma._shared_bytes(product, tile):,}", _ops(product.ops),
            ]
            for tile in product.tiles
        ]  # fmt: skip
    return table(("arrays", "tile", "slice", "stages", "bytes of shared memory", "for"), rows)


def _ops(ops: Sequence[str]) -> str:
    return "all" if len(ops) == len(OPS) else ", ".join(ops)


# -- pages --------------------------------------------------------------------------------------------------

TABLES_OF: dict[str, dict[str, Callable[[], str]]] = {
    "direct": {"costs": lambda: costs("direct")},
    "simt": {"costs": lambda: costs("simt"), "tiles": tiles_of_simt},
    "depthwise": {"costs": lambda: costs("depthwise")},
    "grouped": {"costs": lambda: costs("grouped")},
    "mma": {"costs": lambda: costs("mma"), "tiles": tiles_of_mma},
    "wgmma": {"costs": lambda: costs("wgmma"), "tiles": tiles_of_wgmma},
    "fft": {"costs": costs_of_fft},
    "passes": {"costs": costs_of_passes},
}
"""By page, its tables."""


def marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def written(page: str, text: str) -> str:
    """A page's text with its tables as they are now."""
    for name, make in TABLES_OF[page].items():
        begin, end = marks(name)
        text = with_part(f"{page}.md", text, begin, make(), end)
    return text


# -- the command --------------------------------------------------------------------------------------------


def made(folder: Path) -> Iterator[tuple[Path, str]]:
    """All files, and what they should have."""
    for page in TABLES_OF:
        path = folder / f"{page}.md"
        yield path, written(page, path.read_text())
    for page, draw in DRAWINGS.items():
        yield folder / f"{page}.svg", draw().svg()


def differing(folder: Path = FOLDER) -> list[str]:
    """The names of the files that are not as this file makes them."""
    return [
        path.name
        for path, new in made(folder)
        if not path.exists()
        or not (alike(new, path.read_text()) if path.suffix == ".svg" else new == path.read_text())
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write tables and drawings, or say which differ: 1 if any does."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernel_pages", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if one is out of date")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the pages")
    options = parser.parse_args(arguments)
    if options.check:
        found = differing(options.folder)
        for name in found:
            print(f"{name} is not what benchmarks/kernel_pages.py makes")
        return 1 if found else 0
    for path, new in made(options.folder):
        if not path.exists() or path.read_text() != new:
            path.write_text(new)
            print(f"{path.name} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
