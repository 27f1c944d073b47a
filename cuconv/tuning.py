"""What `algorithm="tune"` found to be fastest, remembered from one process to the next.

Each winner is a file of its own, in the folder that CUCONV_CACHE_DIR names, otherwise in
$XDG_CACHE_HOME/cuconv or ~/.cache/cuconv, on all platforms. Its name is a hash of the machine (processor or
GPU, threads, versions: see `machine`) and of the request; its content says both, the winner, and the
candidates that it was timed against. A winner counts only on the same machine, among the same candidates, and
only where the file says just that, to the last byte: what is damaged counts as not there, and goes when the
request is tuned again.

So a new shape costs one small file, whatever else is kept, and there is nothing to lock: no winner is lost,
and no reader sees half of one (see `kept`). Names begin with the number of the format, so that versions with
different formats leave each other's files alone. Where nothing can be written, a warning says so, once, and
winners last as long as the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import kept
from .machine import fingerprint
from .problem import Request

FORMAT = "cuconv-tuned-2"
LIMIT = 10_000
"""How many winners are kept, the newest ones: a program may tune ever new shapes."""

_EVERY = 250
"""After how many winners of a process, the first one included, the oldest are looked for."""

_MOST_BYTES = 1 << 16
_written = itertools.count()


def folder() -> Path | None:
    """Where the winners are kept, if there is a place for them."""
    named = os.environ.get("CUCONV_CACHE_DIR")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # to be ignored, says the specification
        base = os.path.expanduser("~/.cache")
    return Path(base, "cuconv") if os.path.isabs(base) else None  # where there is no home


_anew = False


@contextlib.contextmanager
def anew() -> Iterator[None]:
    """Meanwhile no winner is known, so that all are found again; those that are kept stay until then."""
    global _anew
    _anew = True
    try:
        yield
    finally:
        _anew = False


def remembered(request: Request, backend: str, candidates: Sequence[str]) -> str | None:
    """The algorithm that won against exactly these candidates on this machine, if one is known."""
    place = folder()
    if place is None or _anew:
        return None
    machine = fingerprint(backend)
    content = kept.read(place / _name(request, machine), _MOST_BYTES)
    for algorithm in candidates:
        if content == _content(request, machine, candidates, algorithm):
            return algorithm
    return None


def remember(request: Request, backend: str, candidates: Sequence[str], algorithm: str) -> None:
    """Keep a winner for processes to come; a warning where that cannot be done."""
    place = folder()
    if place is None:
        _warn("there is no home folder")
        return
    machine = fingerprint(backend)
    try:
        kept.write(place / _name(request, machine), _content(request, machine, candidates, algorithm))
    except OSError as error:
        _warn(f"{place}: {error.strerror or error}")
    else:
        if next(_written) % _EVERY == 0:
            _forget(place)


def _warn(why: str) -> None:
    kept.warn(
        f"what algorithm='tune' found cannot be kept ({why}), every process times its own: set "
        "CUCONV_CACHE_DIR to a folder that can be written"
    )


def count() -> int:
    """How many winners are kept; OSError where the folder cannot be read."""
    place = folder()
    return sum(name.endswith(".json") for name in _names(place)) if place else 0


def _name(request: Request, machine: str) -> str:
    """The name of a winner's file."""
    digest = hashlib.sha256(f"{machine}\0{request}".encode()).hexdigest()
    return f"{FORMAT}-{digest}.json"


def _content(request: Request, machine: str, candidates: Sequence[str], algorithm: str) -> bytes:
    """What stands in a winner's file."""
    winner = dict(machine=machine, request=str(request), among=list(candidates), algorithm=algorithm)
    return json.dumps(winner, indent=1).encode()


def _names(place: Path) -> list[str]:
    """The names of all files with winners, and of those that a process which was killed left unfinished."""
    try:
        return [name for name in os.listdir(place) if name.startswith(f"{FORMAT}-")]
    except FileNotFoundError:
        return []


def _forget(place: Path) -> None:
    """Remove the oldest files beyond the limit; what others have removed or hold on to is left to them."""
    with contextlib.suppress(OSError):
        names = _names(place)
        if len(names) > LIMIT:
            for name in sorted(names, key=lambda name: _age(place / name))[LIMIT:]:
                with contextlib.suppress(OSError):
                    os.unlink(place / name)


def _age(path: Path) -> float:
    """A number that is larger for older files, and infinite for what has gone."""
    try:
        return -os.lstat(path).st_mtime
    except OSError:
        return float("inf")
