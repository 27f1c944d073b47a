"""GPUs by architecture, as far as a plan has to know them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ..options import shown


@dataclass(frozen=True)
class Device:
    """An architecture, and the figures of one well-known GPU of it, from its maker's data sheet.

    They serve to compare estimates of time, nothing else: results do not depend on them. bandwidth is in
    bytes per second, rates are in FLOP per second of the ordinary cores, and the clock in Hz. `tensor` has
    the rates of tensor cores, by what they multiply, as far as single warps reach them.
    """

    arch: str
    example: str
    bandwidth: float
    float32: float
    float64: float
    multiprocessors: int
    clock: float
    tensor: dict[str, float] = field(default_factory=dict, hash=False)


DEVICES = {
    device.arch: device
    for device in (
        Device("sm_75", "T4", 0.32e12, 8.1e12, 0.25e12, 40, 1.59e9),
        Device(
            "sm_80",
            "A100",
            1.56e12,
            19.5e12,
            9.7e12,
            108,
            1.41e9,
            {"half": 312e12, "tf32": 156e12, "double": 19.5e12},
        ),
        Device("sm_86", "A10", 0.60e12, 31.2e12, 0.49e12, 72, 1.70e9, {"half": 125e12, "tf32": 62e12}),
        Device("sm_89", "L40S", 0.86e12, 91.6e12, 1.4e12, 142, 2.52e9, {"half": 362e12, "tf32": 181e12}),
        Device(
            "sm_90",
            "H200",
            4.8e12,
            67e12,
            34e12,
            132,
            1.83e9,
            {"half": 594e12, "tf32": 297e12, "double": 62e12},
        ),
        Device(
            "sm_100",
            "B200",
            8.0e12,
            75e12,
            37e12,
            148,
            1.97e9,
            {"half": 600e12, "tf32": 300e12, "double": 37e12},
        ),
        Device("sm_120", "RTX 5090", 1.79e12, 105e12, 1.6e12, 170, 2.41e9, {"half": 209e12, "tf32": 105e12}),
    )
}
DEFAULT = "sm_90"
"""The device that a plan is made for where no GPU is at hand."""


KNOWN = (75, 80, 86, 87, 88, 89, 90, 100, 101, 103, 110, 120, 121)
"""The compute capabilities, times ten, that GPUs are known to have."""


def device(arch: str) -> Device:
    """The device of an architecture written sm_XX; one that is not listed counts as the nearest below it.

    `arch` is taken at its word, since it may be a driver's, of a GPU newer than all that are known.
    """
    if not isinstance(arch, str):
        raise TypeError(f"device must be an architecture such as {DEFAULT!r}, got {shown(arch)}")
    if re.fullmatch("sm_[0-9]{2,4}", arch):
        below = [known for known in DEVICES if int(known[3:]) <= int(arch[3:])]
        if below:
            return DEVICES[max(below, key=lambda known: int(known[3:]))]
    raise _unknown(arch)


def asked_for(arch: str, at_hand: Callable[[], str | None]) -> Device:
    """The device of an architecture that a user names: one that GPUs have, or that of the GPU at hand."""
    found = device(arch)
    if int(arch[3:]) not in KNOWN and arch != at_hand():
        raise _unknown(arch)
    return found


def _unknown(arch: str) -> ValueError:
    examples = {known: f" ({entry.example})" for known, entry in DEVICES.items()}
    names = [f"sm_{number}{examples.get(f'sm_{number}', '')}" for number in KNOWN]
    return ValueError(
        f"device must be an architecture from sm_75 on that GPUs have, one of {', '.join(names)}; "
        f"got {shown(arch)}"
    )
