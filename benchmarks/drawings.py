"""The drawings of docs/kernels, as SVG: what a block, a warp and a thread own. `kernel_pages` writes them.

Extents are those of the code, by plans and tables of tiles.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from cuconv.cuda import depthwise, fft, grouped, mma, simt, wgmma
from cuconv.cuda.kernel import VECTOR
from cuconv.cuda.schedule import THREADS
from cuconv.problem import ConvProblem, Request

A, B, OUT, PLAIN = (
    ("#cfe0f5", "#3b6ea8"),
    ("#fbe0c3", "#b3661b"),
    ("#d5ebd0", "#3c7d33"),
    ("#f2f2f2", "#777777"),
)
DARK_A, DARK_B, DARK_OUT = ("#6f9fd8", "#24507f"), ("#eba65c", "#8a4a0c"), ("#7fc274", "#265a1f")
"""Fill and edge of what is of the first matrix, or source; of the second, or filters; of the result."""

Colour = tuple[str, str]


class Sheet:
    """A drawing in units of a 12th of an inch, y downwards. A letter of 8 points is some 0.8 units wide."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(width / 12, height / 12), facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()

    def box(
        self, x: float, y: float, width: float, height: float, colour: Colour = PLAIN, *, line: float = 0.8,
        dashed: bool = False, filled: bool = True, label: str = "", size: float = 8,
    ) -> None:  # fmt: skip
        from matplotlib.patches import Rectangle

        fill, edge = colour
        self.axes.add_patch(
            Rectangle(
                (x, y), width, height, facecolor=fill if filled else "none", edgecolor=edge, linewidth=line,
                linestyle=(0, (3, 2)) if dashed else "-",
            )
        )  # fmt: skip
        if label:
            self.text(x + width / 2, y + height / 2, label, size=size)

    def grid(
        self, x: float, y: float, rows: int, columns: int, cell: float,
        colour: Callable[[int, int], Colour | None], *, high: float | None = None, line: float = 0.5,
    ) -> None:  # fmt: skip
        """Cells, `cell` wide, and as high if not `high`; none where there is no colour. Those of one colour
        are one path.
        """
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path as Outline

        tall = cell if high is None else high
        found: dict[Colour, list[tuple[float, float]]] = {}
        for row in range(rows):
            for column in range(columns):
                if one := colour(row, column):
                    left, top = x + column * cell, y + row * tall
                    corners = [(left, top), (left + cell, top), (left + cell, top + tall), (left, top + tall)]
                    found.setdefault(one, []).extend([*corners, corners[0]])
        codes = [Outline.MOVETO, *[Outline.LINETO] * 3, Outline.CLOSEPOLY]
        for (fill, edge), corners in found.items():
            outline = Outline(corners, codes * (len(corners) // 5))
            self.axes.add_patch(PathPatch(outline, facecolor=fill, edgecolor=edge, linewidth=line))

    def text(
        self, x: float, y: float, words: str, *, size: float = 8, align: str = "center", turned: bool = False
    ) -> None:
        """Lines about y, each placed by itself: viewers have fonts of other widths."""
        style = {"fontsize": size, "ha": align, "color": "#222222"}
        if turned:
            self.axes.text(x, y, words, va="center", rotation=90, **style)
            return
        lines, step = words.split("\n"), 1.3 * size / 6
        for i, line in enumerate(lines):
            middle = y + (i - (len(lines) - 1) / 2) * step
            self.axes.text(x, middle + 0.36 * size / 6, line, va="baseline", **style)

    def small(self, x: float, y: float, words: str, **more: Any) -> None:
        self.text(x, y, words, size=7, **more)

    def note(self, x: float, y: float, words: str) -> None:
        """Small, from here on."""
        self.text(x, y, words, size=7, align="left")

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        self.axes.annotate(
            "", (to_x, to_y), (x, y),
            arrowprops={"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0,
                        "mutation_scale": 8},
        )  # fmt: skip

    def svg(self) -> str:
        """The same bytes from the same version of matplotlib, whose name is in them."""
        import matplotlib

        found = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "cuconv", "svg.fonttype": "none"}):
            self.figure.savefig(found, format="svg", metadata={"Date": None}, facecolor="white")
        return "\n".join(line.rstrip() for line in found.getvalue().decode().splitlines()) + "\n"


def drawn_direct() -> Sheet:
    sheet = Sheet(96, 34)

    def planes(x: float, y: float, width: float, colour: Colour) -> None:
        for back in (2, 1):
            sheet.box(x + 1.2 * back, y - 1.2 * back, width, width, colour, line=0.6)

    window = range(4, 7)
    planes(4, 7, 20, A)
    sheet.grid(
        4, 7, 10, 10, 2,
        lambda i, j: PLAIN if i in (0, 9) or j in (0, 9) else DARK_A if i in window and j in window else A,
    )  # fmt: skip
    sheet.text(14, 29.2, "x[n]: a plane for each channel c;\nthe grey ring is padding, zeros")
    planes(36, 13, 6, B)
    sheet.grid(36, 13, 3, 3, 2, lambda i, j: DARK_B)
    sheet.text(39.5, 29.2, "w[k]: the taps r, s\nof each channel c")
    sheet.text(31.2, 16, "x", size=14)
    sheet.arrow(47, 16, 57, 16)
    sheet.small(52, 13.4, "sum over\nc, r, s")
    block = range(1, 7)
    planes(61, 9, 16, OUT)
    sheet.grid(
        61, 9, 8, 8, 2,
        lambda i, j: DARK_OUT if (i, j) == (4, 4) else ("#b5dcab", OUT[1]) if i == 4 and j in block else OUT,
    )  # fmt: skip
    sheet.text(70, 29.2, "y[n]: a plane for each filter k;\none thread owns one element")
    sheet.note(81.5, 18, f"neighbouring\nthreads: the same\nline; {THREADS} of\nthem are a block")
    sheet.arrow(81, 18, 75.2, 18)
    return sheet


def _gemm(sheet: Sheet, names: tuple[str, str, str], tile: str, slices: str) -> None:
    """The matrices of an implicit GEMM, a tile of the result and the slices that walk to it."""
    a, b, c = names
    sheet.box(3, 21, 16, 20, A)
    sheet.box(21, 4, 16, 15, B)
    sheet.box(21, 21, 16, 20, OUT)
    for i in range(8):
        sheet.box(3 + 2 * i, 27, 2, 7, DARK_A if i == 3 else A, line=0.6)
        sheet.box(26, 4 + 1.875 * i, 6, 1.875, DARK_B if i == 3 else B, line=0.6)
    sheet.box(26, 27, 6, 7, DARK_OUT)
    sheet.arrow(9, 36.5, 18, 36.5)
    sheet.small(11, 38.8, "gemm_k")
    sheet.arrow(34.6, 8, 34.6, 18)
    sheet.text(36.2, 11.5, "gemm_k", size=7, turned=True)
    sheet.text(11, 23.5, a)
    sheet.text(29, 2.2, b)
    sheet.text(29, 23.5, c)
    sheet.small(29, 37.5, f"a block's tile\n{tile}")
    sheet.small(11, 17, f"slices, {slices} deep,\none after the other")


def drawn_simt() -> Sheet:
    tile = simt.TILES["fprop"]["float32"][0]
    sheet = Sheet(96, 44)
    _gemm(sheet, ("A: cells of x", "B: w", "C: y"), f"{tile.bm} x {tile.bn}", str(tile.bk))
    # A tile, a quarter of a unit for each element.
    x, y, unit = 44.0, 7.0, 0.25
    sheet.box(x, y, tile.bn * unit, tile.bm * unit, OUT)
    vector = VECTOR // 4
    across, down = tile.bn // tile.tn, tile.bm // tile.tm  # threads
    wide = min(across, 8)
    high = 32 // wide
    for half_m in range(tile.tm // vector):
        for half_n in range(tile.tn // vector):
            top, left = y + half_m * down * vector * unit, x + half_n * across * vector * unit
            sheet.box(left, top, wide * vector * unit, high * vector * unit, ("#b5dcab", OUT[1]), line=0.6)
            sheet.box(left, top, vector * unit, vector * unit, DARK_OUT, line=0.6)
    sheet.text(x + 8, 3.2, f"the tile: {tile.threads} threads,\n{tile.threads // 32} warps below one another")
    sheet.small(x + 8, 41.2, f"light: one warp; dark: one thread,\n{tile.tm} x {tile.tn} sums in registers")
    # Where slices are.
    left = 66.0
    sheet.box(left, 4, 27, 5, PLAIN, label="global memory: x, w")
    sheet.arrow(left + 13.5, 9, left + 13.5, 12)
    sheet.box(left, 12, 27, 5, A, label="registers: the next slice")
    sheet.arrow(left + 13.5, 17, left + 13.5, 20.4)
    sheet.small(left + 20, 18.7, "widened")
    sheet.box(left, 20.5, 13, 7, DARK_A, label="shared:\nthis slice", size=7)
    sheet.box(left + 14, 20.5, 13, 7, A, label="shared:\nthe other one", size=7)
    sheet.arrow(left + 6.5, 27.5, left + 6.5, 31)
    sheet.box(left, 31, 27, 5, OUT, label="registers: sums")
    sheet.small(left + 13.5, 39, "two buffers take turns: one barrier\nfor each slice")
    return sheet


def drawn_mma() -> Sheet:
    product = mma.PRODUCTS["float16", None]
    tile = product.tiles["fprop"][0]
    sheet = Sheet(96, 48)
    _gemm(sheet, ("A: cells of x", "B: w", "C: y"), f"{tile.bm} x {tile.bn}", str(tile.bk))
    x, y, unit = 43.0, 7.0, 0.1875
    for i in range(tile.bm // tile.wm):
        for j in range(tile.bn // tile.wn):
            left, top = x + j * tile.wn * unit, y + i * tile.wm * unit
            first = i == j == 0
            sheet.box(left, top, tile.wn * unit, tile.wm * unit, OUT, line=1.2)
            if first:
                sheet.grid(
                    left, top, tile.wm // 16, tile.wn // 8, 8 * unit,
                    lambda i, j: DARK_OUT if (i, j) == (1, 2) else OUT, high=16 * unit, line=0.4,
                )  # fmt: skip
            else:
                sheet.text(left + tile.wn * unit / 2, top + tile.wm * unit / 2, f"warp {i * 2 + j}")
    sheet.text(
        x + 12,
        3.2,
        f"the tile: {tile.threads // 32} warps, {tile.wm} x {tile.wn} each,\nin fragments of 16 x 8",
    )
    # A fragment.
    lane = 9
    mine = {
        (row, column) for row in (lane // 4, lane // 4 + 8) for column in (lane % 4 * 2, lane % 4 * 2 + 1)
    }
    sheet.grid(
        75, 7, 16, 8, 1.5, lambda i, j: DARK_OUT if (i, j) in mine else OUT, line=0.4,
    )  # fmt: skip
    sheet.arrow(47.8, 11.5, 74, 11.5)
    sheet.text(81, 3.2, "a fragment: four sums\nof each thread")
    # The ring.
    states = ["is multiplied", *["under way"] * (tile.stages - 1)]
    for stage, state in enumerate(states):
        sheet.box(43 + 11 * stage, 37, 10, 5, DARK_A if stage == 0 else A, label=state, size=7)
    sheet.small(65, 34.5, f"the ring in shared memory: slices of A and B in {tile.stages} stages")
    sheet.small(65, 44.8, f"the newest copies, of {VECTOR} bytes, fill the stage that was multiplied before")
    return sheet


def drawn_wgmma() -> Sheet:
    product = wgmma.PRODUCTS["float16", None]
    tile = product.tiles[0]
    sheet = Sheet(96, 46)
    sheet.box(3, 4, 22, 6, A, label="producer warpgroup:\nbrings slices", size=8)
    for stage in range(tile.stages):
        colour = DARK_A if stage < 1 else A
        sheet.box(34 + 10 * stage, 4, 9, 6, colour, label=f"slice\n{stage}", size=7)
    sheet.arrow(25, 7, 33.6, 7)
    sheet.small(29.2, 5.4, "copies")
    sheet.small(34 + 5 * tile.stages, 2.2, f"ring of {tile.stages} slices of A and B in shared memory")
    sheet.note(77, 7, "each has two barriers:\nfull (copies are done),\nempty (multiplied)")
    # The tile.
    unit = 0.1
    x, y = 34.0, 14.0
    half = tile.bm // wgmma_consumers()
    for i in range(wgmma_consumers()):
        sheet.box(
            x, y + i * half * unit, tile.bn * unit, half * unit, (("#b5dcab", OUT[1]), OUT)[i], line=1,
            label=f"consumer {i}: {half} x {tile.bn}",
        )  # fmt: skip
    sheet.arrow(38.5, 10, 38.5, 13.8)
    sheet.text(
        x - 1,
        y + 6.4,
        f"the tile of {tile.bm} x {tile.bn}:\nsums in registers of\ntwo warpgroups",
        size=7,
        align="right",
    )
    sheet.note(
        61.5,
        20.4,
        "products read both operands from\nshared memory and run on while the\nnext ones are issued",
    )
    # Time.
    sheet.text(3, 31, "brings", align="left")
    sheet.text(3, 36, "multiply", align="left")
    sheet.text(3, 41, "store", align="left")
    begin, unit, each, stored = 13.0, 3.4, 6, 2.4
    colours = ((DARK_A, DARK_OUT), (A, OUT))
    free, done = 0.0, [0.0] * tile.stages  # when the ring's stages are empty
    ready = 0.0
    for number in range(2 * each):
        of_a, of_out = colours[number // each]
        free = max(free, done[-tile.stages])
        sheet.box(begin + free * unit, 29.2, unit, 3.6, of_a, line=0.5)
        free += 1
        ready = max(ready, free + 0.2)
        sheet.box(begin + ready * unit, 34.2, unit, 3.6, of_out, line=0.5)
        ready += 1
        done.append(ready)
        if number % each == each - 1:
            words = f"tile {number // each}"
            sheet.box(begin + ready * unit, 39.2, stored * unit, 3.6, of_out, line=0.5, label=words, size=7)
            ready += stored
    sheet.note(
        begin + 13.4 * unit,
        31,
        "a block does one tile after the other; slices\nof the next one come while this one is stored",
    )
    sheet.arrow(begin, 44.6, 92, 44.6)
    sheet.small(88, 43.2, "time")
    return sheet


def wgmma_consumers() -> int:
    """Warpgroups of a block that multiply: all but one."""
    return wgmma.THREADS // 128 - 1


def depthwise_view() -> depthwise.View:
    """How the first depthwise problem of `home` is seen in float32."""
    request = Request("fprop", ConvProblem.parse("n64c128h56w56 k128r3s3 g128 p1"), "float32")
    view = depthwise._view(request, request.problem.volumetric)
    assert view is not None
    return view


def drawn_depthwise() -> Sheet:
    view = depthwise_view()
    shape, tile = view.shape, view.tile
    sheet = Sheet(96, 40)
    x, y, unit = 5.0, 11.0, 0.6
    sheet.box(x - unit, y - unit, (view.width + 2) * unit, (view.height + 2) * unit, A, dashed=True)
    sheet.grid(
        x, y, tile.across, tile.along, shape.out * unit,
        lambda i, j: DARK_OUT if (i, j) == (1, 5) else OUT, high=shape.rows * unit,
    )  # fmt: skip
    sheet.text(
        x + view.width * unit / 2, 6.2,
        f"a block's tile of one channel: {view.height} x {view.width} results,\n"
        f"{tile.across} x {tile.along} strips, a thread each; the cells\n"
        "with their halo are in shared memory",
    )  # fmt: skip
    sheet.small(
        x + view.width * unit / 2, 33, f"the same of {tile.held} channels at once,\nthen of the next image"
    )
    lines, width = shape.rows + shape.taps_r - 1, shape.out + shape.taps_s - 1
    cell, at_x, at_y, line = 2.4, 47.0, 10.0, 4
    sheet.grid(at_x, at_y, lines, width, cell, lambda i, j: DARK_A if i == line else A)
    sheet.box(at_x + cell, at_y + cell, shape.out * cell, shape.rows * cell, DARK_OUT, filled=False, line=1.6)
    sheet.text(
        at_x + width * cell / 2, 6.2, f"a thread's strip: {lines} lines\nof {width} cells, each read once"
    )
    sheet.arrow(at_x + width * cell + 1, at_y + (line + 0.5) * cell, 73, at_y + (line + 0.5) * cell)
    sheet.small(
        67.6, at_y + 1.6 * cell, f"times {shape.taps_r} x {shape.taps_s}\ntaps, which are\nin registers"
    )
    fed = range(line - shape.taps_r + 1, line + 1)
    sheet.grid(74, at_y + cell, shape.rows, shape.out, cell, lambda i, j: DARK_OUT if i in fed else OUT)
    sheet.text(74 + 2 * cell, 6.2, f"{shape.rows} x {shape.out} results\nin registers")
    sheet.small(79, 33.8, f"one line adds to {len(fed)} rows\nof results")
    return sheet


def grouped_tile() -> grouped.Tile:
    """The tile of ResNeXt's first layer."""
    problem = ConvProblem.parse("n32c128h56w56 k128r3s3 g32 p1")
    tile = grouped._tile(Request("fprop", problem, "float16", "channels_last"))
    assert tile is not None
    return tile


def drawn_grouped() -> Sheet:
    tile = grouped_tile()
    sheet = Sheet(96, 42)
    unit = 1.4
    rows, columns = tile.high + 2, tile.wide + 2
    planes = tile.groups * grouped.CHANNELS[0] // grouped.OCTET
    x, y = 4.0, 11.0
    for back in reversed(range(1, planes)):
        sheet.box(x + 1.1 * back, y - 1.1 * back, columns * unit, rows * unit, A, line=0.6)
    sheet.grid(x, y, rows, columns, unit, lambda i, j: A, line=0.3)
    for (row, column), colour in (((0, 0), DARK_A), ((1, 2), DARK_B)):
        sheet.box(
            x + column * unit, y + row * unit, tile.wide * unit, 2 * unit, colour, filled=False, line=1.8,
            dashed=colour is DARK_B,
        )  # fmt: skip
    sheet.text(
        12.5, 4,
        f"{tile.high} x {tile.wide} pixels with their halo,\na plane for each octet of channels",
    )  # fmt: skip
    sheet.small(12.5, 37.4, f"{planes} octets are {tile.groups} groups\nof {grouped.CHANNELS[0]} channels")
    # A product.
    cell, left, top = 0.9, 38.0, 11.0
    sheet.grid(left, top, 16, 8, cell, lambda i, j: A, line=0.3)
    sheet.grid(left + 8 * cell, top, 16, 8, cell, lambda i, j: B, line=0.3)
    sheet.box(left, top, 8 * cell, 16 * cell, DARK_A, filled=False, line=1.8)
    sheet.box(left + 8 * cell, top, 8 * cell, 16 * cell, DARK_B, filled=False, line=1.8, dashed=True)
    sheet.arrow(20, 13, left - 0.6, 13)
    sheet.small(31, 10.8, "ldmatrix")
    sheet.text(left + 8 * cell, 7, "16 pixels by the octets\nof two taps, or units")
    sheet.small(left + 7 * cell, 30, "the same cells serve\nall taps: only the\nplace changes")
    sheet.text(55, 18, "x", size=14)
    of, groups = grouped.CHANNELS[0], 2
    for half in (0, 1):
        sheet.grid(
            58, 11 + half * 8 * cell, 8, 8, cell,
            lambda i, j: DARK_B if i // of == j // of else ("white", "#999999"), line=0.3,
        )  # fmt: skip
    sheet.text(61.6, 7, "filters: two groups\nare a bundle")
    sheet.small(61.6, 30, f"white: zeros, as\n{groups} groups of {of}\nshare an octet")
    sheet.arrow(67, 18, 75, 18)
    sheet.grid(77, 11, 16, 8, cell, lambda i, j: OUT if j < of else ("#b5dcab", OUT[1]), line=0.3)
    sheet.text(80.6, 7, "16 pixels by\n8 results")
    sheet.small(80.6, 29.2, "in registers, then by\nlines of shared memory")
    return sheet


def drawn_fft() -> Sheet:
    sheet = Sheet(96, 40)
    # A signal in windows.
    x, width = 22.0, 60.0
    sheet.box(x, 3, width, 3, A)
    sheet.text(x - 1, 4.5, "x, with its padding", align="right")
    made, reach = 18.0, 6.0
    for i in range(3):
        top = 8 + 4 * i
        left = x + i * made
        sheet.box(left, top, made, 3, DARK_A, line=0.6)
        sheet.box(left + made, top, reach, 3, A, line=0.6, dashed=True)
        sheet.small(x - 1, top + 1.5, f"window {i}", align="right")
    sheet.note(x + made + reach + 1, 9.5, "the filter reaches so far into the next window's cells")
    for i in range(3):
        sheet.box(
            x + i * made,
            21,
            made,
            3,
            (OUT, ("#b5dcab", OUT[1]), OUT)[i],
            line=0.6,
            label=f"from window {i}",
            size=7,
        )
    sheet.text(x - 1, 22.5, "y", align="right")
    # What happens to one.
    steps = (("a block of groups,\nchannels, images", A), ("transform,\ndouble precision", PLAIN),
             ("times conj(W),\nsum over c", B), ("transform back,\nfirst cells only", PLAIN),
             ("bias, activation,\none rounding", OUT))  # fmt: skip
    for i, (words, colour) in enumerate(steps):
        sheet.box(3 + 18.4 * i, 29, 15.6, 6, colour, label=words, size=7)
        if i:
            sheet.arrow(3 + 18.4 * i - 2.6, 32, 3 + 18.4 * i - 0.2, 32)
    room = f"a workspace of {fft.WORKSPACE >> 30} GiB"
    sheet.small(48, 37.6, f"fprop, of each window of each block one after the other, within {room}")
    return sheet


def drawn_passes() -> Sheet:
    sheet = Sheet(96, 58)
    cell = 1.6

    def head(x: float, y: float, words: str) -> None:
        sheet.text(x, y, words, align="left", size=8.5)

    three = (A, B, OUT)
    # Channels in vectors.
    head(3, 2.5, "channels in vectors (transform.cuh)")
    for c in range(3):
        sheet.grid(3, 5 + 2.4 * c, 1, 6, cell, lambda i, j, c=c: three[c])
        sheet.note(13.2, 5.8 + 2.4 * c, f"channel {c}")
    sheet.arrow(20, 8.2, 25, 8.2)
    for place in range(3):
        sheet.grid(26, 5 + 2.4 * place, 1, 4, cell, lambda i, j: three[j] if j < 3 else ("white", "#999999"))
        sheet.note(33.2, 5.8 + 2.4 * place, f"place {place}")
    sheet.note(3, 14, "neighbours along W become neighbours along C;\nwhite: zeros that fill a vector")
    # Taps as channels.
    head(51, 2.5, "taps as channels (folding.cuh)")
    sheet.grid(51, 6, 1, 6, cell, lambda i, j: A)
    for j in range(6):
        sheet.text(51.8 + cell * j, 6.8, str(j), size=6)
    sheet.arrow(62, 6.8, 67, 6.8)
    for place in range(3):
        top = 4.4 + 2.4 * place
        sheet.grid(68, top, 1, 4, cell, lambda i, j: A if j < 3 else ("white", "#999999"))
        for tap in range(3):
            sheet.text(68.8 + cell * tap, top + 0.8, str(place + tap), size=6)
        sheet.note(75.4, top + 0.8, f"place {place}: a window's three cells")
    sheet.note(51, 14, "one channel of three taps becomes three channels of one tap")
    # Padding and its fold.
    head(3, 20, "padding modes (padding.cuh)")
    sheet.text(3, 23.5, "x", size=8, align="left")
    sheet.grid(6, 22.7, 1, 4, cell, lambda i, j: A)
    for j in range(4):
        sheet.text(6.8 + cell * j, 23.5, "abcd"[j], size=6.5)
    sheet.arrow(14, 23.5, 19, 23.5)
    sheet.grid(20, 22.7, 1, 8, cell, lambda i, j: A if 2 <= j < 6 else PLAIN)
    for j, letter in enumerate("cdabcdab"):
        sheet.text(20.8 + cell * j, 23.5, letter, size=6.5)
    sheet.note(34, 23.5, "padded, circular")
    sheet.text(3, 28.3, "dx", size=8, align="left")
    sheet.grid(6, 27.5, 1, 4, cell, lambda i, j: OUT)
    sheet.arrow(19, 28.3, 14, 28.3)
    sheet.grid(20, 27.5, 1, 8, cell, lambda i, j: OUT if 2 <= j < 6 else PLAIN)
    sheet.note(34, 28.3, "gradient of padded x")
    sheet.note(3, 32, "folding: an element of dx is the sum of all places that show it")
    # Widening.
    head(51, 20, "narrower integers (widening.cuh)")
    sheet.grid(51, 22.7, 1, 6, 0.8, lambda i, j: A, high=1.6)
    sheet.arrow(57.5, 23.5, 62.5, 23.5)
    sheet.grid(63.5, 22.7, 1, 6, 3.2, lambda i, j: A, high=1.6)
    sheet.note(51, 27, "bytes to the dtype of the result, before any kernel")
    # Parts.
    head(3, 38, "sums in parts (sums.cuh)")
    for part in range(3):
        sheet.grid(3, 41 + 2.4 * part, 1, 8, cell, lambda i, j: OUT)
        sheet.note(16.6, 41.8 + 2.4 * part, f"part {part}")
    sheet.arrow(22.5, 44.2, 27.5, 44.2)
    sheet.grid(28.5, 43.4, 1, 8, cell, lambda i, j: DARK_OUT)
    sheet.text(42, 44.2, "dw", size=8, align="left")
    sheet.note(
        3, 50, "a thread adds the parts of its elements in order,\nthen bias, activation and the one rounding"
    )
    # Bias gradient.
    head(51, 38, "bias gradient (sums.cuh)")
    for n in range(3):
        sheet.grid(51, 41 + 2.4 * n, 1, 8, cell, lambda i, j: A)
        sheet.note(64.6, 41.8 + 2.4 * n, f"dy[{n}, k]")
    sheet.arrow(71.5, 44.2, 76.5, 44.2)
    sheet.grid(77.5, 43.4, 1, 1, cell, lambda i, j: DARK_OUT)
    sheet.text(80, 44.2, "db[k]", size=8, align="left")
    sheet.note(51, 50, "a block adds up a run of cells in double precision,\nthen its threads by a tree")
    # By parts, and complex filters.
    sheet.note(
        3,
        55.4,
        "Floats by parts are stored by the pass of channels in vectors, complex filters by complex.cuh.",
    )
    return sheet


DRAWINGS: dict[str, Callable[[], Sheet]] = {
    "direct": drawn_direct,
    "simt": drawn_simt,
    "depthwise": drawn_depthwise,
    "grouped": drawn_grouped,
    "mma": drawn_mma,
    "wgmma": drawn_wgmma,
    "fft": drawn_fft,
    "passes": drawn_passes,
}
"""By page, its drawing."""


def alike(drawn: str, kept: str) -> bool:
    """Whether a drawing is the one that is kept: byte for byte, or, of another version of matplotlib, by what
    is written in it.
    """
    if _creator(drawn) == _creator(kept):
        return drawn == kept
    return texts(drawn) == texts(kept)


def _creator(svg: str) -> str:
    found = re.search(r"<dc:title>(.*?)</dc:title>", svg)
    return found[1] if found else ""


def texts(svg: str) -> list[str]:
    """What is written in a drawing."""
    return re.findall(r"<text[^>]*>(.*?)</text>", svg)
