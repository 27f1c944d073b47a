"""What `algorithm="tune"` found to be fastest, remembered from one process to the next.

The winners stand in one JSON file, in the folder that CUCONV_CACHE_DIR names, otherwise in
$XDG_CACHE_HOME/cuconv or ~/.cache/cuconv, on all platforms: by machine (processor or GPU, threads, versions:
see `machine`), then by request, each with the candidates that it was timed against. A winner counts only on
the same machine, among the same candidates.

The file is a memory, never a truth: what is damaged in it counts as not there, and goes when the next winner
is written. Its name has the number of its format, so that versions with different formats leave each other's
files alone. Who writes holds a lock, reads what others have written meanwhile, and puts a new file in the
old one's place: no winner is lost, and no reader sees half a file. Where nothing can be written, a warning
says so, and winners last as long as the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .machine import fingerprint
from .problem import Request

FORMAT = "cuconv-tuned-1"
LIMIT = 10_000
"""How many winners are kept for one machine, the newest ones: a program may tune ever new shapes."""

Winners = dict[str, dict[str, dict[str, Any]]]
"""By machine and request: {"algorithm": the winner's name, "among": the candidates' names}."""


def file() -> Path | None:
    """Where the winners are kept, if there is a place for them."""
    folder = os.environ.get("CUCONV_CACHE_DIR")
    if not folder:
        base = os.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(base):  # to be ignored, says the specification
            base = os.path.expanduser("~/.cache")
        if not os.path.isabs(base):  # there is no home
            return None
        folder = os.path.join(base, "cuconv")
    return Path(folder, f"{FORMAT}.json")


def remembered(request: Request, backend: str, candidates: Sequence[str]) -> str | None:
    """The algorithm that won against exactly these candidates on this machine, if one is known."""
    path = file()
    try:
        winners = read(path) if path else {}
    except OSError:
        return None
    winner = winners.get(fingerprint(backend), {}).get(str(request))
    return winner["algorithm"] if winner and winner["among"] == list(candidates) else None


def remember(request: Request, backend: str, candidates: Sequence[str], algorithm: str) -> None:
    """Keep a winner for processes to come; a warning where that cannot be done."""
    path = file()
    try:
        if path is None:
            raise OSError("there is no home folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            winners = read(path)
            here = winners.setdefault(fingerprint(backend), {})
            here.pop(str(request), None)  # the newest stands last
            here[str(request)] = {"algorithm": algorithm, "among": list(candidates)}
            for oldest in list(here)[:-LIMIT]:
                del here[oldest]
            _write(path, winners)
    except OSError as error:
        warnings.warn(
            f"what algorithm='tune' found cannot be kept ({error}), every process times its own: set "
            "CUCONV_CACHE_DIR to a folder that can be written",
            stacklevel=2,
        )


def read(path: Path) -> Winners:
    """The winners in a file, none where it is missing or damaged; OSError where it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            return {}
        return {
            machine: {request: winner for request, winner in winners.items() if _sound(winner)}
            for machine, winners in content["winners"].items()
            if isinstance(winners, dict)
        }
    except FileNotFoundError:
        return {}
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return {}  # not JSON, or another structure


def _sound(winner: Any) -> bool:
    """Whether this is a winner and its candidates."""
    return (
        isinstance(winner, dict)
        and winner.keys() == {"algorithm", "among"}
        and isinstance(winner["among"], list)
        and all(isinstance(name, str) for name in winner["among"])
        and winner["algorithm"] in winner["among"]
    )


def _write(path: Path, winners: Winners) -> None:
    """Write the file whole; under the lock, so that one name for what is not yet finished is enough."""
    unfinished = path.with_suffix(".new")
    unfinished.write_text(json.dumps({"format": FORMAT, "winners": winners}, indent=1))
    for pause in (0.01, 0.1, 1, 0):
        try:
            os.replace(unfinished, path)
            return
        except PermissionError:  # on Windows, as long as somebody reads the old one
            if not pause:
                raise
            time.sleep(pause)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock against other threads and processes; the system takes it from a process that ends."""
    with open(path, "ab") as file:
        _lock(file.fileno(), True)
        try:
            yield
        finally:  # closing would not do: a process that was forked meanwhile has the file open too
            _lock(file.fileno(), False)


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int, hold: bool) -> None:
        msvcrt.locking(file, msvcrt.LK_LOCK if hold else msvcrt.LK_UNLCK, 1)  # gives up after ten seconds
else:
    import fcntl

    def _lock(file: int, hold: bool) -> None:
        fcntl.flock(file, fcntl.LOCK_EX if hold else fcntl.LOCK_UN)
