"""Compare generated cases with the oracle: python -m tests.fuzz --count 5000 [--emulator | --dask]"""

import argparse
import sys

from cuconv.cli.main import at_least

from . import chunked, emulator
from .cases import ALGORITHMS, ON_GPU, check, ops_of, seeded_case, suited


def main(arguments=None):
    """Run; 0 if cases passed and none failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=at_least(1), default=1000)
    parser.add_argument("--seed", type=at_least(0), default=0, help="the first case's number")
    parser.add_argument("--algorithm", default="auto", choices=["auto", *dict.fromkeys(ALGORITHMS + ON_GPU)])
    parser.add_argument("--emulator", action="store_true", help="run the CUDA kernels, emulated")
    parser.add_argument("--dask", action="store_true", help="cut the arrays by chance, with cuconv.dask")
    arguments = parser.parse_args(arguments)
    if arguments.dask and (arguments.emulator or arguments.algorithm != "auto"):
        parser.error("argument --dask: goes without --emulator and --algorithm")
    names = ON_GPU if arguments.emulator else ALGORITHMS
    if arguments.algorithm not in ("auto", *names):
        parser.error(f"argument --algorithm: choose from auto, {', '.join(names)}")
    failed = unfit = 0
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        backend, run = ("cuda", emulator.run) if arguments.emulator else ("cpu", None)
        algorithm = arguments.algorithm
        case = suited(seeded_case(seed, backend), algorithm)
        ops = ops_of(case, algorithm, backend)
        if not ops:
            unfit += 1
            continue
        try:
            if arguments.dask:
                chunked.check(case)
            else:
                check(case, algorithm, run, ops)
        except Exception as error:
            failed += 1
            print(f"case {seed}: {type(error).__name__}: {error}", flush=True)
    passed = arguments.count - failed - unfit
    print(f"{passed} passed, {failed} failed" + (f", {unfit} did not apply" if unfit else ""))
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
