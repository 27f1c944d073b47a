"""Which algorithm would do a problem, and why: candidates with their estimates, launches and costs."""

from __future__ import annotations

from typing import Any

from .. import processor
from ..api import plan
from ..cuda.device import Device
from ..plan import AVOID, TABLES, Plan, avoided, device_of
from ..problem import ConvProblem, Request
from ..table import Algorithm


def main(
    problem: ConvProblem,
    ops: tuple[str, ...],
    dtype: str,
    layout: str,
    arch: str | None,
    algorithm: str = "auto",
    out_dtype: str | None = None,
) -> int:
    """Print the plan of each op for a problem; `arch` None is the CPU."""
    backend = "cpu" if arch is None else "cuda"
    device = device_of(backend, arch)
    where = f"the CPU with {processor.current_arch()}"
    if isinstance(device, Device):
        where = f"{arch}, estimated by the data sheet of {device.example}"
    shapes, options = (problem.x_shape(layout), problem.w_shape(layout)), problem.options()
    plans = [
        plan(
            op,
            *shapes,
            dtype,
            **options,
            layout=layout,
            algorithm=algorithm,
            out_dtype=out_dtype,
            backend=backend,
            device=arch,
        )
        for op in ops
    ]
    print(f"{problem} in {dtype}, {layout}, on {where}")
    for each in plans:
        print("\n" + explained(each))
    return 0


def explained(chosen: Plan) -> str:
    """A plan in words, with the algorithms that were not chosen."""
    request, problem = chosen.request, chosen.request.problem
    device = device_of(chosen.backend, chosen.arch)
    flops, size = problem.flops(request.op, request.dtype), request.bytes
    lines = [f"{request.op}: {chosen.algorithm}, {chosen.why}"]
    if request.op != "bgrad":
        m, n, k = problem.gemm(request.op)
        lines.append(f"  as matrices  {problem.groups:,} x ({m:,} x {n:,} x {k:,})")
    lines.append(
        f"  work         {flops:,} FLOP, at least {size:,} bytes: {flops / max(size, 1):.1f} FLOP/byte"
    )
    lines += [_candidate(entry, request, device) for entry in TABLES[chosen.backend][request.op]]
    lines.append(f"  workspace    {chosen.workspace_bytes:,} bytes")
    lines += [f"  launch       {launch}" for launch in chosen.launches]
    return "\n".join(lines)


def _candidate(entry: Algorithm, request: Request, device: Any) -> str:
    reason = entry.applies(request, device)
    if reason is not None:
        return f"  candidate    {entry.name}: no, {reason}"
    notes = [f"about {entry.estimate(request, device) * 1e3:,.3f} ms"]
    if entry.proof:
        notes.append(entry.proof)
    if reason := entry.by_name_only(request):
        notes.append(f"by name only: {reason}")
    elif entry.name in avoided():
        notes.append(f"by name only: {AVOID} leaves it out")
    return f"  candidate    {entry.name}: {', '.join(notes)}"
