"""python -m tests.cost: predict the time of a call on a GPU, and name what limits it, without one.

    python -m tests.cost "n32c64h56w56 k64r3s3 p1" --op fprop --dtype float16 --layout channels_last
    python -m tests.cost --suite resnet50
    python -m tests.cost --update

The first prints all that is known of each launch, the second a line per call, and the last brings
benchmarks/predictions.json and the tables of docs/predictions.md up to date, counting only what has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

from benchmarks import predictions
from cuconv.cli.main import read_problem
from cuconv.dtypes import DTYPES
from cuconv.plan import Plan
from cuconv.problem import LAYOUTS, OPS, PRECISIONS
from tests.emulator import EmulatorError

from . import code, model, report, table
from .gpus import GPUS


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cost", description=__doc__, formatter_class=_AsWritten
    )
    add = parser.add_argument
    add("problem", nargs="?", help="one problem: n8c64h56w56 k64r3s3 p1")
    add("--op", choices=OPS, default="fprop")
    add("--dtype", choices=DTYPES, default="float32")
    add("--layout", choices=LAYOUTS, default=LAYOUTS[0])
    add("--precision", choices=PRECISIONS[1:], help="what float32 may lose")
    add("--algorithm", default="auto", help="a name of the CUDA table (default: auto's choice)")
    add("--device", choices=GPUS, default=table.ARCH)
    add("--suite", choices=table.SUITES, action="append", help="a line per call of a suite instead")
    add("--update", action="store_true", help="count what has changed, and write the file and the tables")
    add("--json", action="store_true", help="the same as data")
    options = parser.parse_args(words)
    if bool(options.problem) + bool(options.suite) + options.update != 1:
        parser.error("one of a problem, --suite and --update is expected")
    try:
        code.disassembler()
        if options.update:
            update()
        elif options.suite:
            suite(options.suite, options.json)
        else:
            problem = read_problem(options.problem)
            kind = table.Kind(options.dtype, options.layout, options.precision)
            case = table.Case("", problem, options.op, kind, options.algorithm)
            call(case.plan(options.device), options.json)
    except (EmulatorError, RuntimeError, TypeError, ValueError) as error:
        parser.error(str(error))
    return 0


class _AsWritten(argparse.RawDescriptionHelpFormatter):
    """The description keeps its lines."""


def call(plan: Plan, as_json: bool) -> None:
    """All that is known of one call."""
    assert plan.arch is not None
    gpu = GPUS[plan.arch]
    works = [table.rounded(work) for work in model.work(plan, gpu)]
    if as_json:
        launches = [asdict(work) | {"units": model.units(work, gpu)} for work in works]
        print(json.dumps({"launches": launches} | table.result(works, plan), indent=1))
    else:
        print(report.explained(plan, works))


def suite(names: list[str], as_json: bool) -> None:
    """A line per call, from what is kept where that is of the code as it is."""
    rows = counted([case.plan() for case in table.cases(names)])
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        print("\n".join(f"{name:80} {report.line(row)}" for name, row in rows.items()))


def update() -> None:
    """Bring the file and the tables up to date."""
    rows = counted([case.plan() for case in table.cases()], keep=True)
    table.write(rows)
    report.write()
    print(f"{len(rows)} predictions in {predictions.PREDICTIONS.name}")


def counted(plans: list[Plan], keep: bool = False) -> dict[str, dict[str, Any]]:
    """A row for each plan: the one in the file if nothing has changed, or a new one.

    With `keep` new ones go to the file every now and then, so that an interrupted run was not in vain.
    """
    kept = table.read()
    rows, missing = {}, []
    for plan in plans:
        name = table.name(plan)
        row = kept.get(name)
        if row is not None and row["made_of"] == table.made_of(plan):
            rows[name] = row | table.result(table.works(row), plan)
        elif name not in rows:
            rows[name] = {}
            missing.append(plan)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for i, (plan, row) in enumerate(zip(missing, pool.map(table.row, missing), strict=True), 1):
            rows[table.name(plan)] = row
            print(f"counted {i} of {len(missing)}: {table.name(plan)}", file=sys.stderr, flush=True)
            if keep and i % 20 == 0:
                table.write(kept | {name: row for name, row in rows.items() if row})
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
