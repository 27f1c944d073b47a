"""GPUs by architecture, as far as a plan has to know them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """An architecture, and the figures of one well-known GPU of it, from its maker's data sheet.

    They serve to compare estimates of time, nothing else: results do not depend on them. bandwidth is in
    bytes per second, rates are in FLOP per second of the ordinary cores.
    """

    arch: str
    example: str
    bandwidth: float
    float32: float
    float64: float


DEVICES = {
    device.arch: device
    for device in (
        Device("sm_75", "T4", 0.32e12, 8.1e12, 0.25e12),
        Device("sm_80", "A100", 1.56e12, 19.5e12, 9.7e12),
        Device("sm_86", "A10", 0.60e12, 31.2e12, 0.49e12),
        Device("sm_89", "L40S", 0.86e12, 91.6e12, 1.4e12),
        Device("sm_90", "H200", 4.8e12, 67e12, 34e12),
        Device("sm_100", "B200", 8.0e12, 75e12, 37e12),
        Device("sm_120", "RTX 5090", 1.79e12, 105e12, 1.6e12),
    )
}
DEFAULT = "sm_90"
"""The device that a plan is made for where no GPU is at hand."""


def device(arch: str) -> Device:
    """The device of an architecture written sm_XX; one that is not listed counts as the nearest below it."""
    if not isinstance(arch, str):
        raise TypeError(f"device must be an architecture such as {DEFAULT!r}, got {arch!r}")
    if arch.startswith("sm_") and arch[3:].isdecimal():
        below = [known for known in DEVICES if int(known[3:]) <= int(arch[3:])]
        if below:
            return DEVICES[max(below, key=lambda known: int(known[3:]))]
    known = ", ".join(f"{entry.arch} ({entry.example})" for entry in DEVICES.values())
    raise ValueError(f"device must be an architecture from sm_75 on, such as {known}; got {arch!r}")
