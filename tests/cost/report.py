"""What the model finds, as text: one call in full, a line per call, the tables of docs/predictions.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean
from typing import Any

from benchmarks import predictions
from cuconv.plan import Plan

from . import model, table
from .gpus import GPUS

DOCUMENT = predictions.PREDICTIONS.parents[1] / "docs" / "predictions.md"
OPS = ("fprop", "dgrad", "wgrad")


def explained(plan: Plan, works: list[model.Work]) -> str:
    """All that is known of each launch."""
    assert plan.arch is not None
    gpu = GPUS[plan.arch]
    lines = [f"{plan.request} by {plan.algorithm} on {plan.arch}"]
    for work in works:
        main, units = work.main, model.units(work, gpu)
        lines += [
            f"\n{work.kernel}",
            f"  blocks         {work.blocks:,} of {work.threads} threads, {work.registers} registers each, "
            f"{work.shared:,} bytes of shared memory",
            f"  at once        {work.resident} on a multiprocessor: {_waves(work, gpu):.2f} waves",
            f"  main loop      {main.multiplies} of {main.instructions} instructions multiply; "
            f"{_loads(main)}; {main.branches} branches",
            f"  a warp         {work.instructions['all']:,.0f} instructions, {work.waits:,.0f} waits",
        ]
        for space, (requests, taken, least, from_l2) in work.memory.items():
            what = "wavefronts" if space == "shared" else "sectors"
            found = f"{requests:,.0f} requests, {taken:,.0f} {what}: {taken / least:.2f} of the ideal"
            beyond = "" if space == "shared" else f", {from_l2:,.0f} to or from the L2"
            lines.append(f"  {space:14} {found}{beyond}")
        alone = ", ".join(f"{unit} {seconds * 1e6:,.1f} us" for unit, seconds in units.items())
        lines.append(f"  in flight      {work.in_flight:,.0f} bytes per multiprocessor")
        lines.append(f"  alone          {alone}")
    whole = model.predicted(works, plan.request, plan.arch)
    times = f"{whole.of_floor:.2f} times the floor"
    return "\n".join([*lines, f"\npredicted {whole.seconds * 1e6:,.1f} us, by {whole.limit}: {times}"])


def _waves(work: model.Work, gpu: Any) -> float:
    return work.blocks / (gpu.multiprocessors * max(work.resident, 1))


def _loads(main: model.Main) -> str:
    each = [
        f"{count} loads of {width} bytes"
        for width, count in sorted(main.loads.items(), key=lambda x: int(x[0]))
    ]
    return ", ".join(each or ["no loads"]) + (f", {main.guarded} of them jumped over" if main.guarded else "")


def line(row: dict[str, Any]) -> str:
    """A row in short."""
    return f"{row['seconds'] * 1e6:9,.1f} us  {row['limit']:13} {row['of_floor']:6.2f} x floor"


# -- docs/predictions.md ------------------------------------------------------------------------------

_INTRODUCTION = """# Predicted times on a GPU

What the launches of each problem should take on an H200, and which unit they wait for, without one: registers
and instructions are those of the compiled kernels, accesses were counted in the emulator for a few blocks of
each launch, and the rest is arithmetic with the figures in `tests/cost/gpus.py`. `python -m tests.cost
"n32c64h56w56 k64r3s3 p1"` prints all that goes into one of them; [testing.md](testing.md) says how the model
works. None of these times was measured; a record made on a GPU has them beside its own.

This file is written by `python -m tests.cost --update`, from `benchmarks/predictions.json`.

"Floor" is the time of the products on the fastest unit that is as exact as the dtype asks, or of moving each
operand once, whichever is longer. That unit is the tensor cores, which take six products of bfloat16 for one
of float32 and four of those for one of complex64: see [accuracy.md](accuracy.md).
"""


def document() -> str:
    """All of docs/predictions.md."""
    return "\n".join([_INTRODUCTION, *_entries(), *_suites()]) + "\n"


def write() -> None:
    """Write the document."""
    DOCUMENT.write_text(document())


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(str, cells)) + " |" for cells in lines]


_OF_ENTRIES = """## The entries

The worst of each entry over the problems of `benchmarks/problems/home.txt` that it applies to: 32-byte
sectors of global memory and wavefronts of shared memory, over the least that the same bytes could take; the
share of the main loop's instructions that multiply; and the loads in it that a branch jumps over.
"""


def _entries() -> list[str]:
    """What each entry of the table is like on its home problems."""
    rows = []
    for name, found in sorted(entries().items()):
        limits = ", ".join(f"{limit} {count}" for limit, count in found.limits.most_common())
        ratios = (f"{found.sectors:.2f}", f"{found.wavefronts:.2f}", f"{found.multiplies:.0%}")
        rows.append((*name, limits, *ratios, found.guarded))
    head = ("entry", "op", "layout", "limits", "sectors", "wavefronts", "multiply", "jumped over")
    return [_OF_ENTRIES, *_table(head, rows)]


def _suites() -> list[str]:
    lines = []
    for name, kinds in table.SUITES.items():
        for kind in kinds:
            for algorithm in ("auto", *table.by_name(name, kind)):
                by = f", by `{algorithm}`" if algorithm != "auto" else ""
                lines += [f"\n## {name}, {kind}{by}\n"]
                lines += _table(("problem", "fprop", "dgrad", "wgrad"), _problems(name, kind, algorithm))
    return lines


def _problems(name: str, kind: table.Kind, algorithm: str) -> Iterator[list[str]]:
    """A row per problem with the entry for each op that it does, and their geometric mean."""
    ratios: dict[str, list[float]] = {op: [] for op in OPS}
    rates: dict[str, list[float]] = {op: [] for op in OPS}
    for problem in kind.problems(name):
        cells = [f"`{problem}`"]
        for op in OPS:
            case = table.Case(name, problem, op, kind, algorithm)
            if algorithm != "auto" and not case.applies():
                cells.append("")
                continue
            plan = case.plan()
            row = predictions.rows()[table.name(plan)]
            ratios[op].append(row["of_floor"])
            rates[op].append(problem.flops(op, kind.dtype) / row["seconds"])
            cells.append(
                f"{plan.algorithm}: {_time(row['seconds'])}, {_rate(rates[op][-1])}, {row['limit']}, "
                f"{row['of_floor']:.1f} x floor"
            )
        yield cells
    means = (
        f"{_rate(geometric_mean(rates[op]))}, {geometric_mean(ratios[op]):.1f} x floor" if rates[op] else ""
        for op in OPS
    )
    yield ["geometric mean", *means]


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def _rate(flops: float) -> str:
    return f"{flops / 1e12:.3g} TFLOP/s"


@dataclass
class Entry:
    """The worst of an entry over problems, and how many of them each unit limits."""

    sectors: float = 1.0
    wavefronts: float = 1.0
    multiplies: float = 1.0
    guarded: int = 0
    limits: Counter[str] = field(default_factory=Counter)


def entries() -> dict[tuple[str, str, str], Entry]:
    """By name, op and layout, each entry on the problems of `home`: of the launches that multiply, or else of
    all, the one with most instructions.
    """
    found: dict[tuple[str, str, str], Entry] = {}
    for case in table.cases(["home"]):
        plan = case.plan()
        row = predictions.rows()[table.name(plan)]
        entry = found.setdefault((plan.algorithm, case.op, case.kind.layout), Entry())
        entry.limits[row["limit"]] += 1
        work = max(
            table.works(row),
            key=lambda work: (work.main.multiplies > 0, work.instructions["all"] * work.blocks),
        )
        taken, least = (
            sum(totals[i] for space, totals in work.memory.items() if space != "shared") for i in (1, 2)
        )
        entry.sectors = max(entry.sectors, taken / least)
        if "shared" in work.memory:
            entry.wavefronts = max(entry.wavefronts, work.memory["shared"][1] / work.memory["shared"][2])
        entry.multiplies = min(entry.multiplies, work.main.multiplies / work.main.instructions)
        entry.guarded = max(entry.guarded, work.main.guarded)
    return found
