"""What Dask moves between processes for cuconv.dask, beside what splits.py says:

    python -m benchmarks.moved [--update]

Each of six processes has one chunk of the operands, computes what Dask gives it, and notes what it is sent.
Where Dask takes a process for busy it may compute a block elsewhere, where the chunk is sent and fewer halos:
such a run is made again. Bytes only: six processes of one machine say nothing of the time that many take.
"""

from __future__ import annotations

import argparse
import math
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np

import cuconv.dask
from cuconv.problem import ConvProblem

from . import splits
from .report import replaced, table

BEGIN, END = "<!-- moved:begin -->", "<!-- moved:end -->"
PROCESSES = 6
DTYPE = "float32"

CASES = (
    ("n1c8h512w512 k8r3s3 p1", (1, 1, 2, 3)),
    ("n1c16h397w490 k6r7s5 sh2sw3 dh1dw2 p3", (1, 1, 3, 2)),
    ("n1c16d24h60w60 k4t3r3s3", (1, 1, 3, 2, 1)),
    ("n1c1w100000 k1s1023 p511", (1, 1, 6)),
    ("n12c16h14w14 k16r3s3 p1", (6, 1, 1, 1)),
    ("n2c64h14w14 k32r3s3 p1", (1, 6, 1, 1)),
)
"""Problems, and into how many chunks x is cut along N, C and space: one for each process."""


def client() -> Any:
    """A cluster of processes on this machine that keep to where data are."""
    from distributed import Client, LocalCluster

    settings = {"work-stealing": False, "unknown-task-duration": "1us"}
    with dask.config.set({f"distributed.scheduler.{name}": value for name, value in settings.items()}):
        cluster = LocalCluster(
            n_workers=PROCESSES, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
        )
    return Client(cluster)


def placed(there: Any, shape: Sequence[int], chunks: Any) -> Any:
    """A new array whose chunks lie with one process each."""
    from distributed import wait

    like, name = da.ones(shape, dtype=DTYPE, chunks=chunks), f"placed-{uuid.uuid4().hex}"
    blocks = {}
    for at, owner in zip(np.ndindex(like.numblocks), there.nthreads(), strict=False):
        size, key = like.blocks[at].shape, (name, *at)
        blocks[key] = there.submit(np.ones, size, DTYPE, key=key, workers=[owner], allow_other_workers=False)
    wait(list(blocks.values()))
    return da.Array(blocks, name, like.chunks, DTYPE)


def moved(there: Any, made: Callable[[], Any], kind: str) -> int:
    """Bytes of some kind of tasks' results that processes are sent while what is made is computed.

    Raises RuntimeError if whole chunks are sent too, five times of five, each of them with new arrays.
    """
    from distributed import wait

    def log(dask_worker: Any) -> list[Any]:
        return list(dask_worker.transfer_incoming_log)

    for _ in range(5):
        result, before = made(), there.run(log)
        wait(there.persist(result))
        entries = [
            entry for worker, found in there.run(log).items() for entry in found[len(before[worker]) :]
        ]
        sizes = [(key[0], size) for entry in entries for key, size in entry["keys"].items()]
        if not any(name.startswith("placed-") for name, _ in sizes):
            return sum(size for name, size in sizes if kind in name)
    raise RuntimeError("whole chunks were moved in every run")


def counted(there: Any, line: str, parts: Sequence[int]) -> list[tuple[str, int, int]]:
    """For each op of a case what is moved, in words, the bytes on paper, and those that Dask moved."""
    problem = ConvProblem.parse(line)
    n, c, *space = (
        splits.even(extent, count) for extent, count in zip(problem.x_shape(), parts, strict=True)
    )
    outputs = (splits.outputs(problem, axis, chunks) for axis, chunks in enumerate(space))
    of_dy = (n, (problem.k,), *(tuple(end - begin for begin, end in ranges) for ranges in outputs))
    w, options = np.ones(problem.w_shape(), DTYPE), problem.options()

    def made(op: str) -> Any:
        x = placed(there, problem.x_shape(), (n, c, *space))
        if op == "fprop":
            return cuconv.dask.conv(x, w, **options)
        dy = placed(there, problem.y_shape(), of_dy)
        needs = (op == "dgrad", op == "wgrad", False)
        return cuconv.dask.conv_backward(dy, x, w, needs=needs, **options)[needs.index(True)]

    others, item = math.prod(parts) - 1, np.dtype(DTYPE).itemsize
    for blocks, what, op, shape in (
        (c, "parts of y", "fprop", problem.y_shape()), (n, "parts of dw", "wgrad", problem.w_shape())
    ):  # fmt: skip
        if len(blocks) > 1:
            return [(what, others * math.prod(shape) * item, moved(there, partial(made, op), "-part-"))]
    halos = (("x, for y", "fprop"), ("dy, for dx", "dgrad"), ("x, for dw", "wgrad"))
    return [
        (
            f"halo of {what}",
            splits.halo_bytes(problem, space, DTYPE, op),
            moved(there, partial(made, op), "-window-halo"),
        )
        for what, op in halos
    ]


def rows(there: Any) -> str:
    """The table of the page."""
    found = []
    for line, parts in CASES:
        for what, on_paper, by_dask in counted(there, line, parts):
            chunks = " x ".join(map(str, parts))
            found.append([f"`{line}`", chunks, what, f"{on_paper:,}", f"{by_dask:,}"])
    return table(["problem", "chunks of x", "what", "bytes on paper", "bytes that Dask moved"], found)


def written(rows: str) -> str:
    """The page with this table."""
    return replaced(splits.PAGE, BEGIN, rows, END)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moved", description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write the table of docs/scale.md")
    options = parser.parse_args(arguments)
    with client() as there:
        found = rows(there)
    if options.update:
        splits.PAGE.write_text(written(found))
    else:
        print(found, end="")


if __name__ == "__main__":
    main()
