"""What GPUs do at best, as far as the model needs it: one table, with its sources.

Throughputs per clock and multiprocessor: CUDA C++ Programming Guide, table "Throughput of Native Arithmetic
Instructions", and the maker's white papers of A100 and H100. Clock and multiprocessors: data sheets.
Bandwidths, latencies and launches: measured by others on these GPUs (Chips and Cheese, "Nvidia's H100:
Microbenchmarking", 2023; Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via
Microbenchmarking", 2024; for the launch, an H200). What a device record shows otherwise is changed here and
nowhere else.
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
    tensor: dict[str, int]  # FLOP, by the name of the instruction; of mma.sync, see SUSTAINED
    tensor_peak: dict[str, int]  # FLOP by any instruction, by the dtype of the operands
    shared: int  # bytes, of shared memory and of the first-level cache
    l1: int  # bytes, of both together
    l2: int  # bytes that it holds
    l2_read: int  # bytes
    dram: float
    latency: dict[str, int]
    launch: float  # seconds, of a launch in a stream

    def seconds(self, clocks: float) -> float:
        return clocks / self.clock


_LATENCY = {"alu": 4, "branch": 12, "barrier": 30, "shared": 29, "l1": 38, "l2": 273, "dram": 650}

GPUS = {
    "sm_80": Gpu(
        80, 1.41e9, 108, 4,
        {"float": 64, "double": 32, "integer": 64, "multiply": 64},
        {"HMMA": 2048, "DMMA": 128},
        {"float16": 2048, "bfloat16": 2048, "tf32": 1024, "float64": 128},
        128, 192 << 10, 30 << 20, 36, 1.5e12, _LATENCY, 2.4e-6,
    ),
    "sm_90": Gpu(
        90, 1.83e9, 132, 4,
        {"float": 128, "double": 64, "integer": 64, "multiply": 64},
        {"HMMA": 2458, "DMMA": 256},
        {"float16": 4096, "bfloat16": 4096, "tf32": 2048, "float64": 256},
        128, 256 << 10, 40 << 20, 36, 3.9e12, _LATENCY, 2.4e-6,
    ),
}  # fmt: skip
"""By architecture: A100, and H200 at the clock that makes its data sheet's rates."""
