"""The command line: python -m cuconv info | check | explain | bench | demo"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .dtypes import DTYPES
from .problem import LAYOUTS, OPS

_NOTATION = (
    "n32c64h56w56 k64r3s3 p1: batch, input channels and extents (w, h w or d h w); output channels and "
    "filter extents (s, r s or t r s); then, where they are not 1 or 0, g groups, sh sw strides, dh dw "
    "dilations, ph pw (or p for all) padding, before:after where they differ; last a padding mode"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m cuconv", description="Convolution and its gradients.")
    parser.add_argument("--version", action="version", version=f"cuconv {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="what was found on this machine, and what is missing")
    check = commands.add_parser("check", help="a self-test: every op against plain sums in double precision")
    check.add_argument("--seed", type=int, default=0, help="of the random operands")
    explain = commands.add_parser(
        "explain", help="which algorithm would do a problem, and why",
        description="Which algorithm would do a problem, and why. Times are estimates that rank candidates.",
    )  # fmt: skip
    explain.add_argument("problem", nargs="+", help=_NOTATION)
    explain.add_argument("--op", choices=OPS, action="append", help="by default fprop, dgrad and wgrad")
    explain.add_argument("--dtype", choices=DTYPES, default="float32")
    explain.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0])
    explain.add_argument("--algorithm", default="auto", help="a name, or auto")
    explain.add_argument(
        "--device", help="cpu, or an architecture, sm_80 and the like; by default what is here"
    )
    commands.add_parser(
        "bench", help="time and error of every op on a dozen problems, beside PyTorch if installed"
    )
    demo = commands.add_parser("demo", help="learn a filter and train a network, with a picture at the end")
    demo.add_argument("--out", type=Path, default=Path("cuconv-demo.png"), help="the picture's file (PNG)")
    demo.add_argument("--quick", action="store_true", help="a few steps only, without a goal")
    options = parser.parse_args(arguments)

    if options.command == "info":
        from . import info

        return info.main()
    if options.command == "check":
        from . import check as self_test

        return self_test.main(options.seed)
    if options.command == "explain":
        return _explain(explain, options)
    if options.command == "bench":
        from . import bench

        return bench.main()
    from . import demo as demonstration
    from . import info

    if lacks := info.demo_lacks():
        print(f"the demo needs {lacks}: pip install 'cuconv[demo]'", file=sys.stderr)
        return 1
    if options.out.suffix.lower() != ".png" or not options.out.absolute().parent.is_dir():
        parser.error(f"--out must be a .png file in an existing folder, got {options.out}")
    return demonstration.main(options.out, options.quick)


def _explain(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from . import explain
    from .plan import current_arch

    arch = options.device or current_arch("cuda") or "cpu"
    try:
        ops = tuple(options.op or OPS[:3])
        arch = None if arch == "cpu" else arch
        line = " ".join(options.problem)
        return explain.main(line, ops, options.dtype, options.layout, arch, options.algorithm)
    except (TypeError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
