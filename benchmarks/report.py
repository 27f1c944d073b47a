"""python -m benchmarks.report: the README's summary, docs/benchmarks.md and its plots, from the records.

No figure in them is typed by hand; --check says whether they are what the records give.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cuconv.problem import LAYOUTS

from . import record, suites
from .record import Key, Record, Row

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
OPS = ("fprop", "dgrad", "wgrad")
HALVES = ("float16", "bfloat16")
LEAST = 0.3
"""The ratio to the best peer that no problem is to stay below."""


@dataclass(frozen=True)
class Target:
    """The geometric mean of best peer / ours that the project wants of suites, per op.

    None stands for any dtype, layout or number of images; `peer` names the only one it is measured against.
    There is none for less than the dtype's own precision.
    """

    device: str
    suites: tuple[str, ...]
    least: tuple[float, float, float]
    dtypes: tuple[str, ...] | None = None
    layout: str | None = None
    batches: tuple[int | None, ...] | None = None
    peer: str = ""

    def covers(self, group: Group) -> bool:
        return (
            self.device == group.device
            and group.suite in self.suites
            and group.precision is None
            and (self.dtypes is None or group.dtype in self.dtypes)
            and self.layout in (None, group.layout)
            and (self.batches is None or group.batch in self.batches)
        )


# The first that covers a group counts.
TARGETS = (
    Target("cuda", ("resnet50", "vgg16"), (1.0, 1.0, 1.0), HALVES, "channels_last"),
    Target("cuda", ("resnet50", "vgg16"), (1.5, 1.5, 1.3), HALVES, "channels_first", peer="channels_first"),
    Target("cuda", ("resnet50",), (2.0, 2.0, 1.5), ("float32",)),
    Target("cuda", ("scientific",), (5, 5, 5), ("float64",)),
    Target("cuda", ("resnet50",), (5, 5, 5), ("float64",), batches=(None, 32)),
    Target("cuda", ("mobilenet_dw", "convnext"), (2.5, 3, 5)),
    Target("cuda", ("large_kernel",), (5, 5, 5)),
    Target("cuda", ("conv1d",), (2, 2, 2)),
    Target("cuda", ("unet3d", "small_batch"), (1.3, 1.3, 1.3)),
    Target("cpu", ("resnet50",), (0.8, 0.8, 0.8), ("float32",), batches=(8,)),
    Target("cpu", ("mobilenet_dw", "convnext"), (0.5, 0.5, 2), ("float32",), batches=(8,)),
    Target("cpu", ("conv1d", "unet3d"), (0.8, 0.8, 1.5), ("float32",)),
)


@dataclass(frozen=True)
class Group:
    """Rows that are summed up in one line: a suite in one dtype, precision and layout on one device."""

    device: str
    suite: str
    batch: int | None
    dtype: str
    layout: str
    precision: str | None

    @property
    def title(self) -> str:
        return self.suite + (f", n {self.batch}" if self.batch else "")

    @property
    def numbers(self) -> str:
        return record.numbers(self.dtype, self.precision)

    @property
    def memory(self) -> str:
        return self.layout.replace("_", "-")

    @property
    def target(self) -> Target | None:
        return next((target for target in TARGETS if target.covers(self)), None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report, or with --check compare it; 1 if it differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a text is out of date")
    parser.add_argument("--results", type=Path, default=record.RESULTS, help="the folder of the records")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder of README.md and docs")
    options = parser.parse_args(arguments)
    try:
        records = record.all_records(options.results)
        texts = written(records, options.root)
    except ValueError as error:
        parser.error(str(error))
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{path.name} {'is not what the records give' if options.check else 'written'}")
    if options.check:
        return 1 if stale else 0
    for path in stale:
        path.write_text(texts[path])
    if records:
        from . import plots

        plots.write(records, options.root / "docs")
    return 0


def written(records: dict[str, Record], root: Path) -> dict[Path, str]:
    """The texts of the README and of docs/benchmarks.md, by path."""
    readme = root / "README.md"
    return {
        readme: replaced(readme, BEGIN, summary(records), END),
        root / "docs" / "benchmarks.md": details(records),
    }


def replaced(page: Path, begin: str, part: str, end: str) -> str:
    """The text of a page with a part anew, which stands between two lines."""
    return with_part(page.name, page.read_text(), begin, part, end)


def with_part(name: str, text: str, begin: str, part: str, end: str) -> str:
    """A text, of a page of that name, with a part anew, which stands between two lines."""
    before, begins, rest = text.partition(begin)
    _, ends, after = rest.partition(end)
    if not begins or not ends or begin in rest or end in after:
        raise ValueError(f"{name} must have the lines {begin} and {end} once each")
    return f"{before}{begin}\n{part}{end}{after}"


def summary(records: dict[str, Record]) -> str:
    """The README's part: the means of the record with most rows."""
    if not records:
        return "There is no record yet; `python -m benchmarks` makes one.\n"
    found = next(iter(records.values()))
    where, versions = found.environment, found.environment.versions
    peers = " and ".join(f"{name} {versions[name]}" for name in ("PyTorch", "SciPy") if name in versions)
    lines = []
    for group, rows in groups(found).items():
        means = (_mean(ratios) if (ratios := _of_op(group, rows, op)) else None for op in OPS)
        kind = group.numbers if group.layout == LAYOUTS[0] else f"{group.numbers}, {group.memory}"
        lines.append([group.title, kind, *(_number(mean, 1, ".2f") for mean in means)])
    return (
        f"{where.processor}, {where.threads} of {where.cores} cores; the peers are {peers}.\n\n"
        f"{table(['suite', 'dtype', *OPS], lines)}"
    )


def summary_table(found: Record) -> str:
    """A record's suites: the geometric mean, the lowest in brackets, and the target."""
    header = ["suite", "dtype", "layout", "problems", *OPS]
    lines = []
    for group, rows in groups(found).items():
        problems = str(len({row.key.problem for row in rows}))
        ratios = (_ratios(group, rows, op) for op in OPS)
        lines.append([group.title, group.numbers, group.memory, problems, *ratios])
    return table(header, lines)


def _of_op(group: Group, rows: list[Row], op: str) -> list[float]:
    """Best peer / ours in each row of an op that has a peer."""
    peer = group.target.peer if group.target else ""
    ratios = [row.ratio(peer) for row in rows if row.key.op == op]
    return [ratio for ratio in ratios if ratio is not None]


def _ratios(group: Group, rows: list[Row], op: str) -> str:
    ratios = _of_op(group, rows, op)
    if not ratios:
        return ""
    text = f"{_mean(ratios):.2f} ({min(ratios):.2f})"
    return text + (f", target {group.target.least[OPS.index(op)]:g}" if group.target else "")


INTRODUCTION = """\
# Benchmarks

Written by `python -m benchmarks.report` from the records in `benchmarks/results`;
[performance.md](performance.md) says what explains the figures.

**How it is measured.** Each call of cuconv and of its peers is timed in one process and run, with the same
threads, after its result has been checked against sums in float64. Times are medians. A ratio is the best
peer's time divided by ours, so above one cuconv is faster.

**The first table of a record** has a line for each suite, and for each op the geometric mean of the ratios,
with the lowest in brackets. A suite is a file in `benchmarks/problems`, which says where its problems are
from. A target is the mean that the project wants to reach there, and no measurement.

**The tables below it** have a line for each problem. Errors are root mean squares relative to float64. The
floor is the least time by the copy bandwidth and the GEMM rate that were measured in the same run. The last
column says in which steps the calling thread spends its time (cProfile): products, with the sums that belong
to them; lowering and padding; bringing filters into order; storing results; waiting for other threads; the
rest is Python's calls, which the profiler makes longer than they are.
"""


def details(records: dict[str, Record]) -> str:
    """docs/benchmarks.md: every row of every record."""
    parts = [INTRODUCTION]
    if not records:
        parts.append("There is no record yet; `python -m benchmarks` makes one.\n")
    for name, found in records.items():
        where = found.environment
        kernels = f", {where.blas_kernels} kernels" if where.device == "cpu" else ""
        parts.append(f"## {where.processor}, {where.device}{kernels}\n\n{environment(found)}\n")
        parts += [
            summary_table(found),
            f"Measured by {commands(found)}.\n",
            machine(found),
            _together(found),
        ]
        parts.append(
            f"![Speed-up](benchmarks-{name}-speedup.svg)\n\n![Roofline](benchmarks-{name}-roofline.svg)\n"
        )
        for group, rows in groups(found).items():
            parts += [
                f"### {group.title}, {group.numbers}, {group.memory}\n",
                _rows_table(rows),
            ]
    return "\n".join(parts)


def machine(found: Record) -> str:
    """The ceilings and the overheads in a line each."""
    lines = []
    if found.ceilings:
        rates = [f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in sorted(found.ceilings.gemm.items())]
        lines.append(
            f"Copy {found.ceilings.copy / 1e9:,.0f} GB/s; GEMM {', '.join(rates) or 'not measured'}."
        )
    costs = [
        f"{each.contender} {each.host_s * 1e6:.1f} µs"
        + (f" ({each.graph_s * 1e6:.1f} µs in a graph)" if each.graph_s else "")
        for each in found.overheads
    ]
    return "\n".join([*lines, f"A call of a tiny problem: {', '.join(costs)}."]) + "\n"


def _together(found: Record) -> str:
    """What all rows together say of errors, of memory, and of the least ratio."""
    counted = [row for rows in groups(found).values() for row in rows]
    lines = []
    by_dtype: dict[str, list[float]] = {}
    for row in counted:
        mine, best = row.chosen.error, row.best()
        if mine and best and best.error:
            by_dtype.setdefault(row.key.numbers, []).append(mine / best.error)
    if by_dtype:
        each = (f"{dtype} {_mean(of):.2f} ({max(of):.2f})" for dtype, of in sorted(by_dtype.items()))
        lines.append(f"Errors, ours divided by the best peer's, geometric mean (largest): {', '.join(each)}.")
    known = [(row.memory, row.key) for row in counted if row.memory]
    if known:
        memory, key = max(known, key=lambda pair: pair[0].measured)
        beyond = sum(not memory.kept for memory, _ in known)
        lines.append(
            f"Workspace: {memory.measured / 2**20:.1f} MiB at the most "
            f"({key.problem} {key.op} {key.numbers}); {beyond} of {len(known)} rows take more than 64 MiB "
            "or their output, whichever is larger."
        )
    ratios = [(row.ratio() or math.inf, row.key.suite) for row in counted]
    low = [suite for ratio, suite in ratios if ratio < LEAST]
    suites_of = ", ".join(f"{suite} {low.count(suite)}" for suite in dict.fromkeys(low))
    lines.append(
        f"Ratio below {LEAST}: {len(low)} of {len(ratios)} rows" + (f" ({suites_of})." if low else ".")
    )
    return "\n".join(lines) + "\n"


def _mean(ratios: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def _rows_table(rows: list[Row]) -> str:
    header = [
        "problem", "op", "ms", "algorithm", "best peer", "its ms", "ratio", "x floor", "error", "peer's",
        "workspace MiB", "time in, %",
    ]  # fmt: skip
    lines = []
    for row in rows:
        mine, best = row.chosen, row.best()
        lines.append([
            row.key.problem, row.key.op, _number(mine.median_s, 1e3, ".3f"), row.algorithm,
            best.contender if best else "", _number(best.median_s if best else None, 1e3, ".3f"),
            _number(row.ratio(), 1, ".2f"), _number(row.of_floor, 1, ".1f"), _number(mine.error, 1, ".1e"),
            _number(best.error if best else None, 1, ".1e"),
            _number(row.memory.measured if row.memory else None, 2**-20, ".1f"), _parts(row.steps),
        ])  # fmt: skip
    return table(header, lines)


def _parts(steps: dict[str, float] | None) -> str:
    """The steps that take at least a twentieth of the time, the longest first."""
    ordered = sorted((steps or {}).items(), key=lambda step: -step[1])
    return ", ".join(f"{name} {100 * part:.0f}" for name, part in ordered if part >= 0.05)


def _number(value: float | None, scale: float, form: str) -> str:
    return "" if value is None else format(value * scale, form)


def table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(header)
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def groups(found: Record) -> dict[Group, list[Row]]:
    """The rows of suites, by what they are about, in the order of the suites and their problems."""
    known = suites.names()
    made: dict[Group, list[Row]] = {}
    for row in found.rows.values():
        key: Key = row.key
        if key.suite in known:
            about = (key.suite, key.batch, key.dtype, key.layout, key.precision)
            group = Group(found.environment.device, *about)
            made.setdefault(group, []).append(row)
    order = sorted(made, key=lambda g: (known.index(g.suite), g.batch or 0, g.numbers, g.layout))
    return {group: made[group] for group in order}


def environment(found: Record) -> str:
    """One line on where and of what a record was made."""
    where, versions = found.environment, dict(found.environment.versions)
    commits = sorted(
        {row.code.commit + (" with changes" if row.code.dirty else "") for row in found.rows.values()}
    )
    blas = f"{versions.pop('BLAS')} with {where.blas_kernels} kernels"
    if where.openblas_coretype:
        blas += f" (OPENBLAS_CORETYPE={where.openblas_coretype})"
    parts = [f"{where.processor}, {where.threads} of {where.cores} cores", blas]
    parts += [f"{name} {version}" for name, version in versions.items()]
    return ", ".join([*parts, f"commit {', '.join(commits)}"]) + "."


def commands(found: Record) -> str:
    """The commands that make a record like this one: one for each number of images asked for."""
    where = found.environment
    start = f"python -m benchmarks --device {where.device} --threads {where.threads}"
    if where.openblas_coretype and where.device == "cpu":
        start = f"OPENBLAS_CORETYPE={where.openblas_coretype} {start}"
    by_batch: dict[int | None, list[Key]] = {}
    for key in found.rows:
        if key.suite in suites.names():
            by_batch.setdefault(key.batch, []).append(key)
    return " and ".join(f"`{start}{_asked(keys)}`" for keys in by_batch.values())


def _asked(keys: list[Key]) -> str:
    """The options that ask for these rows."""
    asked = {
        "suite": [key.suite for key in keys],
        "batch": [str(key.batch) for key in keys if key.batch],
        "dtype": [key.dtype for key in keys if key.dtype not in suites.read(key.suite).dtypes],
        "layout": [key.layout for key in keys],
        "precision": [key.precision or "none" for key in keys if any(key.precision for key in keys)],
    }
    pairs = [(option, value) for option, values in asked.items() for value in dict.fromkeys(values)]
    return "".join(f" --{option} {value}" for option, value in pairs)


if __name__ == "__main__":
    sys.exit(main())
