"""Whether `auto` chooses well beyond the suites: python -m tests.sweep --count 3000 [--seed 0]

Seeded problems of all kinds, long dilation, large filters and large strides among them, one op each. Every
exact candidate is timed on the CPU; a choice of more than twice the best one's time is timed again, and
printed if it stays so. So is a plan that takes over 50 ms to make.

With --fit the rates of `cuconv/cpu/cost.py` are found from the times of so many problems, and of the suites'.
"""

import argparse
import itertools
import math
import time

import numpy as np

import cuconv
from benchmarks import suites
from cuconv.cpu import TABLE
from cuconv.plan import INPUTS, current_arch, device_of, exact_candidates, forget, make_plan
from cuconv.problem import Request

from .cases import DTYPES, OPS, values

MACS, ELEMENTS = 1e8, 2e6
"""What a problem has at the most: multiply-adds, and elements of an operand."""

TOO_SLOW, TOO_LONG = 2.0, 0.05


def seeded_request(seed):
    """The request of a number."""
    rng = np.random.default_rng(seed)
    while True:
        try:
            request = _drawn(rng)
        except ValueError:  # no output
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
    c, k = about(1, 96), about(1, 96)
    groups = int(rng.choice([1, 1, c, math.gcd(c, k)]))
    axes = []
    for _ in range(rank):
        extent = about(4, {1: 200_000, 2: 1200, 3: 120}[rank])
        large = kind in ("large filter", "all")
        taps = about(1, {1: 3000, 2: 60, 3: 20}[rank]) if large else int(rng.integers(1, 8))
        stride = about(1, 40) if kind in ("strided", "all") else int(rng.choice([1, 1, 1, 2]))
        dilation = about(1, max(2, extent // 2)) if kind in ("dilated", "all") else 1
        padding = int(rng.choice([0, taps // 2 * dilation, (taps - 1) * dilation]))
        axes.append((extent, taps, stride, dilation, (padding, padding)))
    n, k = about(1, 16), -(-k // groups) * groups
    problem = cuconv.ConvProblem(n, c, k, *zip(*axes, strict=True), groups)
    op, layout = str(rng.choice(OPS)), str(rng.choice(["channels_first", "channels_first", "channels_last"]))
    dtype = str(rng.choice(["float32", "float32", "float64", *DTYPES]))
    return Request(op, problem, dtype, layout, conjugate=dtype.startswith("complex") and op != "fprop")


class Candidates:
    """The exact candidates of a request on operands of their own, and the least seconds that each took."""

    def __init__(self, request):
        self.request, rng = request, np.random.default_rng(0)
        roles = INPUTS[request.op]
        self.inputs = [values(rng, request.shape(role), request.dtype, exact=True) for role in roles]
        forget()
        start = time.perf_counter()
        self.auto = make_plan(request, "auto", "cpu").algorithm
        self.planning = time.perf_counter() - start
        names = [entry.name for entry in exact_candidates(request, "cpu")]
        self.plans = {name: make_plan(request, name, "cpu") for name in names}
        self.seconds = dict.fromkeys(names, math.inf)

    def time(self, rounds, budget):
        """Time all in turn, within a budget of seconds each; those that are far behind only once."""
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

    def __str__(self):
        times = (f"{name} {seconds * 1e3:.2f}" for name, seconds in self.seconds.items())
        return f"{self.auto} {self.ratio:.1f} for {self.request}: {', '.join(times)} ms"


def sweep(seeds):
    """Print what `auto` chose badly; returns whether there was anything."""
    slow, ratios, longest = 0, [], 0.0
    for seed in seeds:
        candidates = Candidates(seeded_request(seed))
        longest = max(longest, candidates.planning)
        if candidates.planning > TOO_LONG:
            print(f"{seed}: {candidates.planning * 1e3:.0f} ms to plan {candidates.request}", flush=True)
        candidates.time(3, 0.02)
        if candidates.ratio > TOO_SLOW:
            candidates.time(9, 0.3)
        ratios.append(candidates.ratio)
        if candidates.ratio > TOO_SLOW:
            slow += 1
            print(f"{seed}: {candidates}", flush=True)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(
        f"{len(ratios)} problems with {current_arch('cpu')}: {mean:.3f} of the best one's time in the mean,"
    )
    print(f"{slow} times more than {TOO_SLOW}; plans took {longest * 1e3:.1f} ms at the most")
    return slow > 0 or longest > TOO_LONG


# -- the rates of the estimates -----------------------------------------------------------------------


def suite_requests():
    """The dense, depthwise and one-dimensional suites, as they are benchmarked."""
    for suite in ("resnet50", "mobilenet_dw", "convnext", "conv1d", "small_batch"):
        for problem in suites.read(suite).with_batch(8).problems:
            yield from (Request(op, problem, "float32") for op in OPS)


def counted(request, name):
    """What an entry's `Cost` multiplies its rates with."""
    (entry,) = (entry for entry in TABLE[request.op] if entry.name == name)
    found = entry.estimate.__wrapped__(request, device_of("cpu", None))
    each = {what: count * found.rounds for what, count in found.counts.items()}
    return each | {"thread": found.started}


def fit(seeds):
    """Print the rates that bring the estimates nearest to the measured times, in the logarithm.

    A suite's times weigh as much as those of eight random problems.
    """
    from scipy.optimize import least_squares

    rows, measured, weights, choices = [], [], [], []
    drawn = ((seeded_request(seed), 1) for seed in seeds)
    for request, weight in itertools.chain(drawn, ((request, 8) for request in suite_requests())):
        candidates = Candidates(request)
        candidates.time(3, 0.03)
        choices.append(slice(len(rows), len(rows) + len(candidates.seconds)))
        for name, seconds in candidates.seconds.items():
            rows.append(counted(request, name))
            measured.append(seconds * 1e6)
            weights.append(weight)
    names = sorted({name for row in rows for name in row})
    table = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    measured, weights = np.array(measured), np.sqrt(weights)
    scale = np.array([np.median(measured[column > 0] / column[column > 0]) for column in table.T])
    scaled = table * scale

    def errors(logarithms):
        return weights * np.log(scaled @ np.exp(logarithms) / measured)

    def slopes(logarithms):
        shares = scaled * np.exp(logarithms)
        return weights[:, None] * shares / shares.sum(axis=1, keepdims=True)

    start = np.full(len(names), -2.5)
    found = least_squares(errors, start, jac=slopes, bounds=(-14, 6), loss="soft_l1", f_scale=0.5)
    for name, rate in zip(names, np.exp(found.x) * scale, strict=True):
        print(f'    "{name}": {rate:.2g},')
    off = errors(found.x) / weights
    predicted = measured * np.exp(off)
    ratios = np.array([measured[at][np.argmin(predicted[at])] / measured[at].min() for at in choices])
    print(f"{len(rows)} times, predicted within a factor of {np.exp(np.sqrt(np.mean(off**2))):.2f} (rms);")
    print(f"choices of {np.exp(np.mean(np.log(ratios))):.3f} of the best time, {np.sum(ratios > 2)} above 2")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="the first problem's number")
    parser.add_argument("--fit", action="store_true", help="find the rates of the estimates")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.count)
    if options.fit:
        fit(seeds)
        return 0
    return int(sweep(seeds))


if __name__ == "__main__":
    raise SystemExit(main())
