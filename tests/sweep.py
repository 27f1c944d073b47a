"""Whether `auto` chooses well beyond the suites: python -m tests.sweep --count 3000 [--seed 0]

Seeded problems of all kinds, long dilation, large filters and large strides among them, one op each. Every exact
candidate is timed on the CPU; a choice of more than twice the best one's time is timed again, and printed if it
stays so. So is a plan that takes over 50 ms to make.
"""

import argparse
import math
import time

import numpy as np

import cuconv
from cuconv.plan import INPUTS, _make_plan, current_arch, exact_candidates, make_plan
from cuconv.problem import Request

from .cases import OPS, values

MACS, ELEMENTS = 1.5e8, 3e6
"""What a problem has at the most: multiply-adds, and elements of an operand."""

TOO_SLOW, TOO_LONG = 2.0, 0.05


def seeded_request(seed):
    """The request of a number."""
    rng = np.random.default_rng(seed)
    while True:
        try:
            request = _drawn(rng)
        except ValueError:  # no output, or too much of it
            continue
        problem = request.problem
        sizes = [math.prod(shape) for shape in (problem.x_shape(), problem.w_shape(), problem.y_shape())]
        if 0 < problem.macs <= MACS and max(sizes) <= ELEMENTS:
            return request


def _drawn(rng):
    def about(low, high):
        return round(math.exp(rng.uniform(math.log(low), math.log(high))))

    rank = int(rng.choice([1, 2, 2, 3]))
    kind = rng.choice(["plain", "dilated", "large filter", "strided", "all"])
    channels = [about(1, 96), about(1, 96)]
    groups = int(rng.choice([1, 1, channels[0], math.gcd(*channels)]))
    c = channels[0]
    k = -(-channels[1] // groups) * groups
    most = {1: 200_000, 2: 1200, 3: 120}[rank]
    axes = []
    for _ in range(rank):
        extent = about(4, most)
        large = kind in ("large filter", "all")
        taps = about(1, {1: 3000, 2: 60, 3: 20}[rank]) if large else int(rng.integers(1, 8))
        stride = about(1, 40) if kind in ("strided", "all") else int(rng.choice([1, 1, 1, 2]))
        dilation = about(1, max(2, extent // 2)) if kind in ("dilated", "all") else 1
        padding = int(rng.choice([0, taps // 2 * dilation, (taps - 1) * dilation]))
        axes.append((extent, taps, stride, dilation, (padding, padding)))
    extents, filters, strides, dilations, pads = zip(*axes, strict=True)
    n = about(1, 16)
    problem = cuconv.ConvProblem(n, c, k, extents, filters, strides, dilations, pads, groups)
    dtype = rng.choice(["float32", "float32", "float64", "complex64", "float16", "int32"])
    op = rng.choice(OPS)
    layout = rng.choice(["channels_first", "channels_first", "channels_last"])
    return Request(
        str(op), problem, str(dtype), str(layout), conjugate=bool(dtype == "complex64" and op != "fprop")
    )


class Candidates:
    """The exact candidates of a request on operands of their own, and the seconds that each took at the least."""

    def __init__(self, request):
        problem, rng = request.problem, np.random.default_rng(0)
        self.inputs = [
            values(rng, request.shape(role), request.dtype, exact=True) for role in INPUTS[request.op]
        ]
        _make_plan.cache_clear()
        start = time.perf_counter()
        self.auto = make_plan(request, "auto", "cpu").algorithm
        self.planning = time.perf_counter() - start
        names = [entry.name for entry in exact_candidates(request, "cpu")]
        self.plans = {name: make_plan(request, name, "cpu") for name in names}
        self.seconds = dict.fromkeys(names, math.inf)

    def time(self, rounds, budget=0.02):
        """Time all in turn, those that are far behind only once."""
        for turn in range(rounds):
            for name, plan in self.plans.items():
                behind = self.seconds[name] > 4 * min(self.seconds.values())
                if turn and behind and name != self.auto:
                    continue
                end = time.perf_counter() + budget / rounds
                while True:
                    start = time.perf_counter()
                    plan(*self.inputs)
                    now = time.perf_counter()
                    self.seconds[name] = min(self.seconds[name], now - start)
                    if now > end:
                        break

    @property
    def ratio(self):
        return self.seconds[self.auto] / min(self.seconds.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="the first problem's number")
    options = parser.parse_args()
    slow, ratios, longest = 0, [], 0.0
    for seed in range(options.seed, options.seed + options.count):
        request = seeded_request(seed)
        candidates = Candidates(request)
        longest = max(longest, candidates.planning)
        if candidates.planning > TOO_LONG:
            print(f"{seed}: {candidates.planning * 1e3:.0f} ms for the plan of {request}", flush=True)
        candidates.time(2)
        if candidates.ratio > TOO_SLOW:
            candidates.time(9, 0.3)
        ratios.append(candidates.ratio)
        if candidates.ratio > TOO_SLOW:
            slow += 1
            times = ", ".join(f"{name} {seconds * 1e3:.2f}" for name, seconds in candidates.seconds.items())
            print(f"{seed}: {candidates.auto} {candidates.ratio:.1f} for {request}: {times} ms", flush=True)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(
        f"{len(ratios)} problems with {current_arch('cpu')}: auto at {mean:.3f} of the best in the mean, {slow} above "
        f"{TOO_SLOW}; plans took {longest * 1e3:.1f} ms at the most"
    )
    return slow > 0 or longest > TOO_LONG


if __name__ == "__main__":
    raise SystemExit(main())
