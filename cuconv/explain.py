"""Which algorithm would do a problem, and why: candidates with their estimates, launches and costs."""

from __future__ import annotations

from dataclasses import replace

from .cuda.device import Device
from .dtypes import is_complex
from .plan import TABLES, Plan, device_of, make_plan
from .problem import ConvProblem, Request
from .table import Algorithm


def main(
    line: str, ops: tuple[str, ...], dtype: str, layout: str, arch: str | None, algorithm: str = "auto"
) -> int:
    """Print the plan of each op for a problem in the one-line notation; `arch` None is the CPU."""
    problem = ConvProblem.parse(line)
    backend = "cpu" if arch is None else "cuda"
    device = device_of(backend, arch)
    plans = []
    for op in ops:
        request = Request(op, problem, dtype, layout)
        if op in ("dgrad", "wgrad"):
            request = replace(request, conjugate=is_complex(dtype))
        plans.append(make_plan(request, algorithm, backend, arch))
    where = f"{arch}, estimated by the data sheet of {device.example}" if device else "the CPU"
    print(f"{problem} in {dtype}, {layout}, on {where}")
    for plan in plans:
        print("\n" + explained(plan))
    return 0


def explained(plan: Plan) -> str:
    """A plan in words, with the algorithms that were not chosen."""
    request, problem = plan.request, plan.request.problem
    device = device_of(plan.backend, plan.arch)
    flops, size = problem.flops(request.op, request.dtype), problem.bytes(request.op, request.dtype)
    lines = [f"{request.op}: {plan.algorithm}, {plan.why}"]
    if request.op != "bgrad":
        m, n, k = problem.gemm(request.op)
        lines.append(f"  as matrices  {problem.groups:,} x ({m:,} x {n:,} x {k:,})")
    lines.append(
        f"  work         {flops:,} FLOP, at least {size:,} bytes: {flops / max(size, 1):.1f} FLOP/byte"
    )
    lines += [_candidate(entry, request, device) for entry in TABLES[plan.backend][request.op]]
    lines.append(f"  workspace    {plan.workspace_bytes:,} bytes")
    lines += [f"  launch       {launch}" for launch in plan.launches]
    return "\n".join(lines)


def _candidate(entry: Algorithm, request: Request, device: Device | None) -> str:
    reason = entry.applies(request, device)
    if reason is not None:
        return f"  candidate    {entry.name}: no, {reason}"
    note = ""
    if not entry.exact:
        note = ", by name only: it rounds where a plain sum is exact"
    elif not (entry.on_device or entry.floor):
        note = ", by name only: no benchmark on a device covers it yet"
    return f"  candidate    {entry.name}: about {entry.estimate(request, device) * 1e3:,.3f} ms{note}"
