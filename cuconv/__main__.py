"""The command line: python -m cuconv info | check | demo"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m cuconv", description="Convolution and its gradients.")
    parser.add_argument("--version", action="version", version=f"cuconv {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="what was found on this machine, and what is missing")
    check = commands.add_parser("check", help="a self-test: every op against plain sums in double precision")
    check.add_argument("--seed", type=int, default=0, help="of the random operands")
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
    from . import demo as demonstration
    from . import info

    if lacks := info.demo_lacks():
        print(f"the demo needs {lacks}: pip install 'cuconv[demo]'", file=sys.stderr)
        return 1
    if options.out.suffix.lower() != ".png" or not options.out.absolute().parent.is_dir():
        parser.error(f"--out must be a .png file in an existing folder, got {options.out}")
    return demonstration.main(options.out, options.quick)


if __name__ == "__main__":
    sys.exit(main())
