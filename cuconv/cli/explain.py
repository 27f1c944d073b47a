"""Which algorithm would do a problem, and why: candidates with their estimates, launches and costs."""

from __future__ import annotations

import argparse
from typing import Any

from .. import processor
from ..api import plan
from ..cuda.device import Device
from ..dtypes import DTYPES, NARROW
from ..plan import AVOID, TABLES, Plan, avoided, current_arch, device_of
from ..problem import LAYOUTS, OPS
from ..table import Algorithm
from . import report
from .arguments import NOTATION, UsageError, add_json, add_ops, read_problem

DOES = "which algorithm would do a problem, and why; times are estimates that rank candidates"
EXAMPLE = 'python -m cuconv explain "n32c64h56w56 k64r3s3 p1" --device sm_80 --op fprop'


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be asked."""
    parser.add_argument("problem", nargs="+", help=NOTATION)
    add_ops(parser, OPS, OPS[:3])
    names = ", ".join([*DTYPES, *NARROW])
    parser.add_argument(
        "--dtype",
        choices=[*DTYPES, *NARROW],
        default="float32",
        metavar="DTYPE",
        help=f"{names}; by default float32",
    )
    parser.add_argument(
        "--out-dtype",
        choices=("int32", "int64"),
        help="of fprop's result, where x and w are narrower integers",
    )
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0])
    parser.add_argument("--algorithm", default="auto", help="a name, or auto")
    parser.add_argument(
        "--device", help="cpu, or an architecture, sm_80 and the like; by default what is here"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the plan of each op for a problem."""
    ops = options.op or (OPS[:1] if options.out_dtype else OPS[:3])
    arch = options.device if options.device is not None else current_arch("cuda") or "cpu"
    backend, device = ("cpu", None) if arch == "cpu" else ("cuda", arch)
    try:
        problem = read_problem(" ".join(options.problem))
        plans = [
            plan(
                op,
                problem.x_shape(options.layout),
                problem.w_shape(options.layout),
                options.dtype,
                **problem.options(),
                layout=options.layout,
                algorithm=options.algorithm,
                out_dtype=options.out_dtype,
                backend=backend,
                device=device,
            )
            for op in dict.fromkeys(ops)
        ]
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    where = f"the CPU with {processor.current_arch()}"
    if isinstance(example := device_of(backend, device), Device):
        where = f"{device}, estimated by the data sheet of {example.example}"
    if options.json:
        report.write(
            {
                "problem": str(problem),
                "dtype": options.dtype,
                "out_dtype": options.out_dtype,
                "layout": options.layout,
                "device": arch,
                "on": where,
                "plans": [facts(each) for each in plans],
            }
        )
        return 0
    print(report.wrapped(f"{problem} in {options.dtype}, {options.layout}, on {where}", 2))
    for each in plans:
        print()
        for line in explained(each).splitlines():
            print(report.wrapped(line, 17))
    return 0


def facts(chosen: Plan) -> dict[str, Any]:
    """A plan as data, with the algorithms that were not chosen."""
    request, problem = chosen.request, chosen.request.problem
    device, matrices = device_of(chosen.backend, chosen.arch), None
    if request.op != "bgrad":
        sizes = (problem.groups, *problem.gemm(request.op))
        matrices = dict(zip(("groups", "m", "n", "k"), sizes, strict=True))
    return {
        "op": request.op,
        "algorithm": chosen.algorithm,
        "why": chosen.why,
        "matrices": matrices,
        "flops": problem.flops(request.op, request.dtype),
        "bytes": request.bytes,
        "candidates": [_candidate(entry, chosen, device) for entry in TABLES[chosen.backend][request.op]],
        "workspace_bytes": chosen.workspace_bytes,
        "launches": [str(launch) for launch in chosen.launches],
    }


def _candidate(entry: Algorithm, chosen: Plan, device: Any) -> dict[str, Any]:
    """An algorithm: why it does not apply, or its estimate and why `auto` would not take it."""
    reason, by_name_only = entry.applies(chosen.request, device), None
    if reason is None:
        by_name_only = entry.by_name_only(chosen.request)
        if by_name_only is None and entry.name in avoided():
            by_name_only = f"{AVOID} leaves it out"
    return {
        "algorithm": entry.name,
        "does_not_apply": reason,
        "estimated_seconds": entry.estimate(chosen.request, device) if reason is None else None,
        "proof": entry.proof or None,
        "by_name_only": by_name_only,
    }


def explained(chosen: Plan) -> str:
    """A plan in words, with the algorithms that were not chosen."""
    found = facts(chosen)
    lines = [f"{found['op']}: {found['algorithm']}, {found['why']}"]
    if found["matrices"]:
        groups, m, n, k = found["matrices"].values()
        lines.append(f"  as matrices  {groups:,} x ({m:,} x {n:,} x {k:,})")
    flops, size = found["flops"], found["bytes"]
    lines.append(
        f"  work         {flops:,} FLOP, at least {size:,} bytes: {flops / max(size, 1):.1f} FLOP/byte"
    )
    lines += [f"  candidate    {_in_words(candidate)}" for candidate in found["candidates"]]
    lines.append(f"  workspace    {found['workspace_bytes']:,} bytes")
    lines += [f"  launch       {launch}" for launch in found["launches"]]
    return "\n".join(lines)


def _in_words(candidate: dict[str, Any]) -> str:
    name, reason = candidate["algorithm"], candidate["does_not_apply"]
    if reason is not None:
        return f"{name}: no, {reason}"
    notes = [f"about {candidate['estimated_seconds'] * 1e3:,.3f} ms"]
    if candidate["proof"]:
        notes.append(candidate["proof"])
    if candidate["by_name_only"]:
        notes.append(f"by name only: {candidate['by_name_only']}")
    return f"{name}: {', '.join(notes)}"
