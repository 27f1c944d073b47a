"""The record of one device: its environment, ceilings, and a row per measured op, as JSON.

What follows from other fields (which peer is best, the ratios) is written too, for readers in other
languages, and must agree when read.
"""

from __future__ import annotations

import json
import os
import tempfile
import types
import typing
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

FORMAT = 4
READABLE = (3, FORMAT)
"""Older records lack fields that have a default."""

RESULTS = Path(__file__).parent / "results"
KEPT_FREE = 64 << 20
"""The workspace that an op may always take, in bytes; beyond it, no more than its output has."""


@dataclass(frozen=True)
class Environment:
    """Where a record was made: rows of one record share all of it."""

    device: str
    processor: str
    cores: int
    threads: int
    blas_kernels: str
    openblas_coretype: str | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Code:
    """The library that was measured: its commit, whether files differed from it, and a hash of them all."""

    commit: str
    dirty: bool
    source: str


@dataclass(frozen=True)
class Ceilings:
    """What the device does at best: bytes read and written per second, FLOP per second of a GEMM by dtype."""

    copy: float
    gemm: dict[str, float]


@dataclass(frozen=True)
class Overhead:
    """Seconds of the host per call of a tiny problem, and those of its replay in a CUDA graph."""

    contender: str
    host_s: float
    graph_s: float | None


@dataclass(frozen=True)
class Timing:
    """A contender: its error relative to float64, its seconds per call, or why it has none.

    Of ours on a GPU, also the seconds that the cost model predicts, and the unit that it says limits them.
    """

    contender: str
    error: float | None
    median_s: float | None
    least_s: float | None
    calls: int
    failure: str | None
    predicted_s: float | None = None
    limit: str | None = None


@dataclass(frozen=True)
class Key:
    """What a row is about. `batch` is the number of images where it replaced that of the suite's list.

    `precision` is what was permitted, None for the dtype's own.
    """

    suite: str
    batch: int | None
    problem: str
    op: str
    dtype: str
    layout: str
    precision: str | None

    @property
    def numbers(self) -> str:
        return numbers(self.dtype, self.precision)


def numbers(dtype: str, precision: str | None) -> str:
    """A dtype, and the precision where less than its own was permitted."""
    return f"{dtype} as {precision}" if precision else dtype


@dataclass(frozen=True)
class Memory:
    """Bytes of scratch memory, as the plan states it and as measured, and of the result."""

    stated: int
    measured: int
    output: int

    @property
    def kept(self) -> bool:
        """Whether the workspace keeps to 64 MiB, or to the size of the output where that is more."""
        return self.measured <= max(KEPT_FREE, self.output)


@dataclass(frozen=True)
class Row:
    """One measured op: ours by algorithm, the peers, and what they are compared with.

    `algorithm` is auto's choice, or the fastest of those that were named; its time is what counts as ours.
    """

    key: Key
    code: Code
    command: str
    algorithm: str
    why: str
    ours: tuple[Timing, ...]
    peers: tuple[Timing, ...]
    memory: Memory | None
    floor_s: float
    graph_s: float | None
    steps: dict[str, float] | None
    """On the CPU, the part of the time that each step takes: see `steps`."""

    @property
    def chosen(self) -> Timing:
        """Our algorithm that counts."""
        return next(timing for timing in self.ours if timing.contender == self.algorithm)

    @property
    def fastest(self) -> Timing:
        """Our fastest algorithm, chosen or not."""
        return min(self.ours, key=lambda timing: timing.median_s or float("inf"))

    def best(self, among: str = "") -> Timing | None:
        """The fastest peer whose name contains `among`, if one was timed."""
        timed = [peer for peer in self.peers if peer.median_s and among in peer.contender]
        return min(timed, key=lambda peer: peer.median_s or 0, default=None)

    def ratio(self, among: str = "") -> float | None:
        """The best peer's time divided by ours: above one we are faster."""
        best, mine = self.best(among), self.chosen.median_s
        return best.median_s / mine if best and best.median_s and mine else None

    @property
    def of_floor(self) -> float | None:
        """Our time divided by the floor."""
        return self.chosen.median_s / self.floor_s if self.chosen.median_s else None

    @property
    def failures(self) -> list[str]:
        """Our algorithms that went wrong, each with what was wrong."""
        return [f"{timing.contender}: {timing.failure}" for timing in self.ours if timing.failure]

    def derived(self) -> dict[str, Any]:
        """What is written beside the fields."""
        best = self.best()
        return {
            "best_peer": best.contender if best else None,
            "ratio_to_peer": self.ratio(),
            "ratio_to_floor": self.of_floor,
            "workspace_kept": self.memory.kept if self.memory else None,
        }


@dataclass
class Record:
    """A whole record. Rows are by key."""

    environment: Environment
    ceilings: Ceilings | None = None
    overheads: tuple[Overhead, ...] = ()
    rows: dict[Key, Row] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Put the record in the file's place, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(row) | row.derived() for row in self.rows.values()]
        content = (
            {"format": FORMAT}
            | asdict(Record(self.environment, self.ceilings, self.overheads))
            | {"rows": rows}
        )
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
            try:
                json.dump(content, file, indent=1, allow_nan=False)
                file.write("\n")
                file.close()
                os.chmod(file.name, 0o644)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise


def read(path: Path) -> Record:
    """Read and validate a record; ValueError names the file, the field, what was expected and what came."""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or content.get("format") not in READABLE:
            raise ValueError(f"format must be {' or '.join(map(str, READABLE))}")
        rows = [_row(row, f"rows[{index}]") for index, row in enumerate(content.pop("rows", []))]
        del content["format"]
        record: Record = _made(Record, content | {"rows": {}}, "record")
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    record.rows = {row.key: row for row in rows}
    if len(record.rows) != len(rows):
        raise ValueError(f"{path.name}: two rows have the same key")
    return record


def all_records(folder: Path = RESULTS) -> dict[str, Record]:
    """The records of a folder, by the names of their files; that of most rows first."""
    found = {path.stem: read(path) for path in sorted(folder.glob("*.json"))}
    return dict(sorted(found.items(), key=lambda item: -len(item[1].rows)))


def _row(content: Any, where: str) -> Row:
    names = {each.name for each in fields(Row)}
    if not isinstance(content, dict):
        raise ValueError(f"{where} must be an object, got {content!r}")
    row: Row = _made(Row, {name: value for name, value in content.items() if name in names}, where)
    if row.algorithm not in [timing.contender for timing in row.ours]:
        raise ValueError(f"{where}.algorithm must be one of ours, got {row.algorithm!r}")
    rest = {name: value for name, value in content.items() if name not in names}
    if rest != row.derived():
        raise ValueError(f"{where} must have {row.derived()} beside its fields, got {rest}")
    return row


def _made(kind: Any, content: Any, where: str) -> Any:
    """A value of that type from what JSON gave, checked all the way down."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        types_of = typing.get_type_hints(kind)
        needed = {each.name for each in fields(kind) if each.default is each.default_factory is MISSING}
        if not isinstance(content, dict) or not needed <= content.keys() <= types_of.keys():
            got = sorted(content) if isinstance(content, dict) else repr(content)
            raise ValueError(f"{where} must have the fields {sorted(types_of)}, got {got}")
        made = {name: _made(types_of[name], content[name], f"{where}.{name}") for name in content}
        return kind(**made)  # type: ignore[operator]
    if origin is types.UnionType:
        options = [option for option in inner if option is not types.NoneType]
        return None if content is None else _made(options[0], content, where)
    if origin is tuple and isinstance(content, list):
        return tuple(_made(inner[0], item, f"{where}[{index}]") for index, item in enumerate(content))
    if origin is dict and isinstance(content, dict):
        return {name: _made(inner[1], value, f"{where}.{name}") for name, value in content.items()}
    plain = (int, float) if kind is float else (origin or kind)
    if origin is tuple or not isinstance(content, plain) or (isinstance(content, bool) and kind is not bool):
        raise ValueError(f"{where} must be {getattr(kind, '__name__', kind)}, got {content!r}")
    return content
