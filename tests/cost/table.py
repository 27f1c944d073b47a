"""The predictions that are kept: of which calls, in which file, and whether they are of today's code."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cuconv
from benchmarks import predictions, suites
from cuconv.cuda import jit
from cuconv.plan import TABLES, Plan
from tests.emulator import build

from . import code, model, traffic
from .gpus import GPUS

ARCH = "sm_90"
FIRST, LAST = "channels_first", "channels_last"


class Kind(NamedTuple):
    """What a suite is predicted in: its own numbers of images, or so many."""

    dtype: str
    layout: str
    precision: str | None = None
    images: int | None = None

    def __str__(self) -> str:
        tf32 = f" as {self.precision}" if self.precision else ""
        return f"{self.dtype}{tf32}, {self.layout}" + (f", n {self.images}" if self.images else "")

    def problems(self, suite: str) -> tuple[cuconv.ConvProblem, ...]:
        """Those of a suite."""
        found = suites.read(suite)
        return (found.with_batch(self.images) if self.images else found).problems


_BOTH = (Kind("float16", LAST), Kind("float32", FIRST))
_TF32 = Kind("float32", LAST, "tf32")
SUITES: dict[str, tuple[Kind, ...]] = {
    "home": _BOTH,
    "resnet50": (
        *_BOTH,
        Kind("float16", FIRST),
        Kind("float16", LAST, images=256),
        Kind("float32", LAST),
        _TF32,
        Kind("float64", LAST),
    ),
    "vgg16": (Kind("float16", LAST), Kind("float16", FIRST), _TF32),
    "mobilenet_dw": _BOTH,
    "convnext": _BOTH,
    "large_kernel": _BOTH,
    "conv1d": (Kind("float32", FIRST),),
    "images": (Kind("float32", FIRST), Kind("complex64", FIRST)),
    "grouped": _BOTH,
    "first": _BOTH,
    "unet3d": (Kind("float32", FIRST), Kind("float16", LAST)),
    "small_batch": _BOTH,
    "scientific": (Kind("float64", FIRST), Kind("complex64", FIRST), Kind("complex128", FIRST)),
}
"""The suites, by what they are predicted in: `home` by every entry, the others by auto's."""

_LARGE = Kind("float16", LAST, images=256)
BY_NAME: dict[str, dict[str, tuple[Kind, ...]]] = {
    "wgmma": {
        "resnet50": (Kind("float16", LAST), _LARGE, Kind("float16", FIRST), _TF32),
        "vgg16": (Kind("float16", LAST), Kind("float16", FIRST), _TF32),
    },
}
"""What is predicted by the name of an entry too that auto does not choose from yet, where it applies."""


@dataclass(frozen=True)
class Case:
    """A call that is predicted."""

    suite: str
    problem: cuconv.ConvProblem
    op: str
    kind: Kind
    algorithm: str = "auto"

    def plan(self, arch: str = ARCH) -> Plan:
        problem, kind = self.problem, self.kind
        return cuconv.plan(
            self.op, problem.x_shape(kind.layout), problem.w_shape(kind.layout), kind.dtype,
            **problem.options(), layout=kind.layout, precision=None if self.op == "bgrad" else kind.precision,
            algorithm=self.algorithm, backend="cuda", device=arch,
        )  # fmt: skip

    def applies(self) -> bool:
        """Whether the entry of that name does it."""
        request = replace(self, algorithm="auto").plan().request
        (entry,) = (entry for entry in TABLES["cuda"][self.op] if entry.name == self.algorithm)
        return entry.applies(request, None) is None


def cases(names: Iterable[str] = SUITES) -> Iterator[Case]:
    """What is predicted of the suites of these names."""
    for name in names:
        ops = ("fprop", "dgrad", "wgrad", *(["bgrad"] if name == "home" else []))
        for kind in SUITES[name]:
            for problem in kind.problems(name):
                for op in ops:
                    case = Case(name, problem, op, kind)
                    yield case
                    if name == "home":
                        yield from _others(case)
                    for algorithm in by_name(name, kind):
                        named = replace(case, algorithm=algorithm)
                        if named.applies():
                            yield named


def _others(case: Case) -> Iterator[Case]:
    """The same call by the other entries that apply."""
    chosen = case.plan().algorithm
    for entry in TABLES["cuda"][case.op]:
        named = replace(case, algorithm=entry.name)
        # Transforms are no launches of kernels that could be counted.
        if entry.exact and entry.name != chosen and named.applies():
            yield named


def by_name(suite: str, kind: Kind) -> list[str]:
    """The entries by which a suite is predicted in that kind beside auto's choice."""
    return [algorithm for algorithm, suites in BY_NAME.items() if kind in suites.get(suite, ())]


def name(plan: Plan) -> str:
    """The name of a plan's row in the file."""
    return predictions.key(plan.request, plan.algorithm, plan.arch or ARCH)


def row(plan: Plan) -> dict[str, Any]:
    """A plan's launches counted, and what follows from the counts."""
    assert plan.arch is not None
    works = [rounded(work) for work in model.work(plan, GPUS[plan.arch])]
    return {"made_of": made_of(plan), "launches": [asdict(work) for work in works]} | result(works, plan)


def result(works: list[model.Work], plan: Plan) -> dict[str, Any]:
    """What follows from counts."""
    assert plan.arch is not None
    found = model.predicted(works, plan.request, plan.arch)
    return {
        "seconds": _rounded(found.seconds),
        "limit": found.limit,
        "of_floor": _rounded(found.of_floor),
    }


def works(row: dict[str, Any]) -> list[model.Work]:
    """The counts of a row of the file."""
    return [model.Work(**launch | {"main": model.Main(**launch["main"])}) for launch in row["launches"]]


def rounded(work: model.Work) -> model.Work:
    """Counts as the file has them, to four digits."""
    return model.Work(**_rounded(asdict(work)) | {"main": work.main})


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    if isinstance(value, float):
        short = float(f"{value:.4g}")
        return int(short) if short == math.floor(short) and short < 1e15 else short
    return value


def made_of(plan: Plan) -> str:
    """A digest of what a plan's counts depend on: its kernels without comments, and what they are told."""
    places = traffic.places(plan, traffic.arrays(plan))
    digest = hashlib.sha256(_ptx().encode())
    for launch in plan.launches:
        kernel = launch.kernel
        digest.update(_plain(build.preprocessed(kernel, counting=True)).encode())
        digest.update(f"{kernel.residents} {launch.blocks} {launch.shared_bytes}".encode())
        digest.update(launch.params(places).tobytes())
    return digest.hexdigest()[:16]


@functools.cache
def _plain(source: str) -> str:
    """A preprocessed source without the places that its lines come from."""
    lines = (line.strip() for line in source.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("# "))


@functools.cache
def _ptx() -> str:
    """The wrappers of PTX, which the emulator has its own of, without comments."""
    return "".join(
        re.sub(r"//.*", "", path.read_text()) for path in sorted((jit.SOURCES / "ptx").glob("*.cuh"))
    )


def method() -> str:
    """A digest of how counts are made."""
    files = [build.HERE / "traffic.h", *(Path(module.__file__ or "") for module in (code, traffic))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def read() -> dict[str, dict[str, Any]]:
    """The rows that are kept, if they were counted as it is done now."""
    if not predictions.PREDICTIONS.exists() or predictions.kept()["method"] != method():
        return {}
    return dict(predictions.rows())


def write(rows: dict[str, dict[str, Any]]) -> None:
    """Keep rows, a line each."""
    lines = [f" {json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows)]
    body = ",\n".join(lines)
    predictions.PREDICTIONS.write_text(f'{{"method": "{method()}", "rows": {{\n{body}\n}}}}\n')
    predictions.kept.cache_clear()
