"""What GPUs do at best, as far as the model needs it: one table, with its sources.

Throughputs per clock and multiprocessor: CUDA C++ Programming Guide, table "Throughput of Native Arithmetic
Instructions", and the maker's white papers of A100 and H100. Clocks and multiprocessors: data sheets.
Latencies: Luo et al., Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking
(2024). The bandwidths of the second level and of DRAM, what single warps reach of the tensor cores' rate, and
a launch: reported by others for these GPUs, in round numbers. What a device record shows otherwise is changed
here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Rates are per clock and multiprocessor, latencies in clocks, bandwidths in bytes per second."""

    capability: int
    clock: float
    multiprocessors: int
    issue: int  # warp instructions
    lanes: dict[str, int]  # that each unit does at once, by the units of code.UNITS
    tensor: dict[str, int]  # FLOP of products, as code.Instruction.product names them
    tensor_peak: dict[str, int]  # FLOP by any instruction, by the dtype of the operands, or the precision
    l1: int  # bytes of the first-level cache and shared memory together
    l2: int  # bytes that it holds
    l2_read: int  # bytes
    dram: float
    latency: dict[str, int]
    launch: float  # seconds, of a launch in a stream

    def seconds(self, clocks: float) -> float:
        return clocks / self.clock


_WARPGROUPS = {"half by warpgroups": 4096, "tf32 by warpgroups": 2048}
_LATENCY = {"alu": 4, "branch": 12, "barrier": 30, "l1": 38, "l2": 273, "dram": 650}

GPUS = {
    "sm_80": Gpu(
        capability=80,
        clock=1.41e9,
        multiprocessors=108,
        issue=4,
        lanes={"float": 64, "double": 32, "integer": 64, "multiply": 64},
        tensor={"half": 2048, "tf32": 1024, "double": 128},
        tensor_peak={"float16": 2048, "bfloat16": 2048, "tf32": 1024, "float64": 128},
        l1=192 << 10,
        l2=30 << 20,
        l2_read=36,
        dram=1.5e12,
        latency=_LATENCY,
        launch=2.4e-6,
    ),
    # Products of single warps reach 60% of what those of warpgroups do.
    "sm_90": Gpu(
        capability=90,
        clock=1.83e9,
        multiprocessors=132,
        issue=4,
        lanes={"float": 128, "double": 64, "integer": 64, "multiply": 64},
        tensor=dict(_WARPGROUPS, half=2458, tf32=1229, double=256),
        tensor_peak={"float16": 4096, "bfloat16": 4096, "tf32": 2048, "float64": 256},
        l1=256 << 10,
        l2=40 << 20,
        l2_read=36,
        dram=3.9e12,
        latency=_LATENCY,
        launch=2.4e-6,
    ),
}
"""By architecture: A100, and H200 at the clock that makes its data sheet's rates."""
