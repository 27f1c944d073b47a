"""The plots of a record: what is reached of the roofline, and the speed-up over the best peer.

The same record gives the same bytes: no date, and names within the SVG from a fixed salt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cuconv import ConvProblem

from .record import Record, Row

_COLOURS = {"fprop": "tab:blue", "dgrad": "tab:orange", "wgrad": "tab:green", "bgrad": "tab:red"}


def write(records: dict[str, Record], folder: Path) -> None:
    """Both plots of every record, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    with matplotlib.rc_context({"svg.hashsalt": "cuconv", "font.size": 8}):
        for name, found in records.items():
            timed = [row for row in found.rows.values() if row.chosen.median_s]
            _save(_roofline(found, timed), folder / f"benchmarks-{name}-roofline.svg")
            _save(_speedup(timed), folder / f"benchmarks-{name}-speedup.svg")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)


def _roofline(found: Record, rows: list[Row]) -> Any:
    """FLOP per byte against FLOP per second, under the ceilings of the run."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    points: dict[str, list[tuple[float, float]]] = {op: [] for op in _COLOURS}
    for row in rows:
        problem, key = ConvProblem.parse(row.key.problem), row.key
        flops = problem.flops(key.op, key.dtype)
        points[key.op].append((flops / problem.bytes(key.op, key.dtype), flops / (row.chosen.median_s or 1)))
    for op, found_of_op in points.items():
        if found_of_op:
            x, y = zip(*found_of_op, strict=True)
            axes.plot(x, y, ".", markersize=4, color=_COLOURS[op], label=op)
    if found.ceilings and rows:
        intensities = [x for each in points.values() for x, _ in each]
        ends = [min(intensities) / 2, max(intensities) * 2]
        for dtype in sorted({row.key.dtype for row in rows} & found.ceilings.gemm.keys()):
            rate = found.ceilings.gemm[dtype]
            corner = [ends[0], min(max(rate / found.ceilings.copy, ends[0]), ends[1]), ends[1]]
            roof = [min(rate, x * found.ceilings.copy) for x in corner]
            axes.plot(corner, roof, color="0.5", linewidth=1)
            axes.annotate(f"{dtype} GEMM", (ends[1], roof[-1]), ha="right", va="bottom")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="FLOP per second")
    axes.legend()
    return figure


def _speedup(rows: list[Row]) -> Any:
    """The best peer's time divided by ours, problem by problem, sorted."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for op, colour in _COLOURS.items():
        ratios = sorted(ratio for row in rows if row.key.op == op and (ratio := row.ratio()))
        shares = [(index + 0.5) / len(ratios) for index in range(len(ratios))]
        axes.plot(shares, ratios, ".-", color=colour, linewidth=0.7, markersize=4, label=op)
    axes.axhline(1, color="0.5", linewidth=1)
    axes.set(yscale="log", xlabel="share of the problems, slowest first", ylabel="best peer's time / ours")
    axes.legend()
    return figure
