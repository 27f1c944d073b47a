"""python -m benchmarks: measure suites or single problems, print a line per row, keep a record.

The record is rewritten after every row. Rows that it has of the same code are not measured again, so that a
run that was interrupted, or whose --minutes are over, goes on when the same command is given again. Runs of a
single problem, or of some algorithms or peers only, keep a record with --out alone.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cuconv import machine
from cuconv.cli.clock import Clock, CpuClock, GpuClock
from cuconv.cli.main import read_problem
from cuconv.cuda import jit
from cuconv.dtypes import DTYPES
from cuconv.plan import TABLES, TF32, permitted
from cuconv.problem import LAYOUTS, PRECISIONS
from cuconv.problem import OPS as EVERY_OP

from . import ceilings, environment, record, suites
from .measure import Bench
from .peers import PEERS, Peer
from .record import Ceilings, Key, Record, Row

OPS = ("fprop", "dgrad", "wgrad")
NAMED = {"none": None} | {name: name for name in PRECISIONS if name}
"""The precisions, by what the command line calls them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 1 if a result was wrong, 2 if the command was, 130 if it was interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        try:
            keys = list(_keys(options))
            if not keys:
                raise ValueError(
                    f"--precision {' '.join(options.precision)} is for float32, got no row of it"
                )
            clock = _clock(options.device)
            if any(key.precision != permitted(key.precision, key.dtype, clock.device) for key in keys):
                raise ValueError(f"{TF32} has float32 done as tf32: unset it, and say --precision tf32")
            stack.enter_context(clock.stream)
            _known_algorithms(options.algorithm or (), clock)
            peers = _peers(options.peers, clock)
            threads = stack.enter_context(_threads(options.threads or machine.cores(), clock, peers))
            path, kept = _opened(options, environment.environment(clock, threads))
        except (ImportError, TypeError, ValueError) as error:
            parser.error(str(error))
        missing = [key for key in keys if options.again or not _has(kept, key)]
        if not missing:
            print(f"{path} has all {len(keys)} rows; --again measures them again")
            return 0
        kept.ceilings = _with_ceilings(kept.ceilings, clock, sorted({key.dtype for key in missing}), threads)
        kept.overheads = ceilings.overheads(clock, peers, threads)
        _announce(kept)
        bench = Bench(clock, threads, peers, kept.ceilings, tuple(options.algorithm or ()), options.seconds)
        end = time.monotonic() + 60 * options.minutes if options.minutes else None
        return _measure(bench, missing, kept, path, end)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="cuconv against its peers: checked, timed, kept in a record."
    )
    add = parser.add_argument
    lists = f"a problem list (default: all but {suites.HOME})"
    add("--suite", action="append", choices=suites.names(), help=lists)
    add("--problem", help="one problem instead: n8c64h56w56 k64r3s3 p1; with --suite, as a row of that suite")
    add("--op", action="append", choices=EVERY_OP, help="default: all but bgrad")
    add("--dtype", action="append", choices=DTYPES, help="default: what the suite names, or float32")
    add("--layout", action="append", choices=LAYOUTS, help="default: channels_first")
    add("--precision", action="append", choices=NAMED, help="of float32 (default: none, its own)")
    add("--batch", type=_positive(int), help="images per problem, instead of the list's")
    add(
        "--algorithm",
        action="append",
        help="ours to time (default: auto's choice, and what is not far behind)",
    )
    add("--peers", nargs="+", metavar="NAME", help=f"none, or of: {', '.join(repr(p.name) for p in PEERS)}")
    add("--threads", type=_positive(int), help="for all alike (default: the cores this process may use)")
    add("--seconds", type=_positive(float), default=1.0, help="of timing per row (default: 1)")
    add("--minutes", type=_positive(float), help="begin no row after so long")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where CuPy can use a GPU")
    add(
        "--out",
        type=Path,
        help="the record's file (default: by device, in benchmarks/results; for suites only)",
    )
    add("--again", action="store_true", help="measure also what the record has")
    return parser


def _positive(kind: type) -> Any:
    def positive(text: str) -> Any:
        value = kind(text)
        if value <= 0:
            raise ValueError
        return value

    positive.__name__ = f"positive {kind.__name__}"  # argparse's word for what was expected
    return positive


def _keys(options: argparse.Namespace) -> Iterator[Key]:
    """The rows asked for, in order."""
    if options.problem is not None:
        if options.suite and len(options.suite) > 1:
            raise ValueError(f"--problem is a row of one --suite, got {', '.join(options.suite)}")
        name = options.suite[0] if options.suite else ""
        like = suites.read(name) if name else suites.Suite(name, ())
        chosen = [replace(like, problems=(read_problem(options.problem),))]
    else:
        chosen = [suites.read(name) for name in dict.fromkeys(options.suite or suites.default())]
    for suite in chosen:
        if options.batch:
            suite = suite.with_batch(options.batch)
        asked = itertools.product(
            suite.problems,
            options.dtype or suite.dtypes,
            options.layout or LAYOUTS[:1],
            options.precision or ("none",),
            options.op or OPS,
        )
        for problem, dtype, layout, precision, op in asked:
            if precision == "none" or dtype == "float32":
                yield Key(suite.name, options.batch, str(problem), op, dtype, layout, NAMED[precision])


def _clock(device: str | None) -> Clock:
    if device == "cpu" or (device is None and jit.usable_cupy() is None):
        return CpuClock()
    try:
        return GpuClock(jit.require_cupy())
    except RuntimeError as error:
        raise ValueError(f"--device cuda: {error}") from error


def _known_algorithms(names: Iterable[str], clock: Clock) -> None:
    known = {"auto"} | {entry.name for op in EVERY_OP for entry in TABLES[clock.device][op]}
    for name in names:
        if name not in known:
            raise ValueError(f"--algorithm must be one of {', '.join(sorted(known))}, got {name!r}")


def _peers(names: list[str] | None, clock: Clock) -> list[Peer]:
    known = {peer.name: peer for peer in PEERS if clock.device in peer.devices}
    if names == ["none"]:
        return []
    for name in names or ():
        if name not in known:
            raise ValueError(f"--peers must be none or of {', '.join(map(repr, known))}, got {name!r}")
        if not known[name].available(clock):
            raise ValueError(
                f"--peers {name!r} needs {known[name].module}, which is not installed for {clock.device}"
            )
    return [peer for name, peer in known.items() if (name in names if names else peer.available(clock))]


@contextmanager
def _threads(count: int, clock: Clock, peers: list[Peer]) -> Iterator[int]:
    """The same number of threads for NumPy's BLAS and for every peer."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ImportError("the benchmarks need threadpoolctl: pip install threadpoolctl") from error
    for peer in peers:
        peer.start(clock, count)
    with threadpool_limits(count):
        yield count


def _announce(kept: Record) -> None:
    """What the machine can do, and what a call costs whatever its work."""
    if kept.ceilings:
        rates = [f"{dtype} GEMM {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in kept.ceilings.gemm.items()]
        print(", ".join([f"copy {kept.ceilings.copy / 1e9:,.0f} GB/s", *rates]))
    for each in kept.overheads:
        replayed = f", {each.graph_s * 1e6:.1f} us in a graph" if each.graph_s else ""
        print(f"{each.contender}: {each.host_s * 1e6:.1f} us per call of {ceilings.TINY}{replayed}")


def _opened(options: argparse.Namespace, here: record.Environment) -> tuple[Path | None, Record]:
    """The record to go on with, the file's or a new one, and its file.

    By default there is one for whole rows of suites only: all candidates, all peers.
    """
    path: Path | None = options.out
    if path is None and not (options.algorithm or options.peers or (options.problem and not options.suite)):
        path = record.RESULTS / environment.file_name(here)
    if path is None or not path.exists():
        return path, Record(here)
    kept = record.read(path)
    if kept.environment == here:
        return path, kept
    if options.again:
        return path, Record(here)
    differ = [name for name in vars(here) if getattr(here, name) != getattr(kept.environment, name)]
    raise ValueError(
        f"{path} was made in another environment ({', '.join(differ)} differ): "
        "name another file with --out, or begin it afresh with --again"
    )


def _has(kept: Record, key: Key) -> bool:
    """Whether the record has the row, of the code as it is now."""
    return key in kept.rows and kept.rows[key].code.source == environment.code().source


def _with_ceilings(known: Ceilings | None, clock: Clock, dtypes: list[str], threads: int) -> Ceilings:
    """This run's ceilings, and those of dtypes that only earlier runs had."""
    print(f"measuring the ceilings of {', '.join(dtypes)}", file=sys.stderr)
    found = ceilings.measured(clock, dtypes, threads)
    return replace(found, gemm=(known.gemm if known else {}) | found.gemm)


def _measure(bench: Bench, keys: list[Key], kept: Record, path: Path | None, end: float | None) -> int:
    """Measure the rows, keeping each as soon as it is there."""
    failed = done = 0
    interrupted = False
    try:
        for key in _progress(keys):
            if end is not None and time.monotonic() > end:
                break
            row = bench.row(key)
            done += 1
            if row is None:
                print(f"{_about(key)}  none of the algorithms named can do it")
                continue
            kept.rows[key] = row
            if path:
                kept.write(path)
            print(line(row), flush=True)
            for failure in row.failures:
                failed += 1
                print(f"  FAILED {failure}\n  again: {row.command}", flush=True)
    except KeyboardInterrupt:
        interrupted = True
    if done < len(keys):
        where = f"; the others are kept in {path}" if path else ""
        print(
            f"{len(keys) - done} of {len(keys)} rows not measured{where}: the same command goes on from there"
        )
    if failed:
        print(f"{failed} results were wrong")
    return 130 if interrupted else 1 if failed else 0


def _progress(keys: list[Key]) -> Iterable[Key]:
    """The rows, with a bar where somebody looks and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return keys
    return tqdm(keys, unit="row", disable=not sys.stderr.isatty())


def _about(key: Key) -> str:
    return f"{key.problem:40} {key.op} {key.numbers} {key.layout}"


def line(row: Row) -> str:
    """A row in one line: our time and algorithm, the best peer's, their ratio, the floor, the errors."""
    mine, best, fastest, of_floor = row.chosen, row.best(), row.fastest, row.of_floor
    text = f"{_about(row.key)}  {_ms(mine.median_s)} {row.algorithm}"
    if fastest is not mine and fastest.median_s and fastest.median_s < 0.95 * (mine.median_s or 0):
        text += f" ({fastest.contender}: {_ms(fastest.median_s)})"
    if best:
        text += f", {best.contender}: {_ms(best.median_s)}"
    if ratio := row.ratio():
        text += f", ratio {ratio:.2f}"
    if of_floor:
        text += f", {of_floor:.1f} x floor"
    text += f", error {_figure(mine.error)}"
    return text + (f" and {_figure(best.error)}" if best else "")


def _ms(seconds: float | None) -> str:
    return "not timed" if seconds is None else f"{seconds * 1e3:.3f} ms"


def _figure(error: float | None) -> str:
    return "none" if error is None else f"{error:.1e}"


if __name__ == "__main__":
    sys.exit(main())
