"""Parts of a long run, each a process with a limit of its own, and what became of them, kept in a folder.

Of the parts that have not ended, the one that had the fewest turns is next, and of several the first. A part
that reaches its limit is stopped; its next turn is twice as long.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The source tree, in which the processes run."""

LEAST = 10
"""The seconds for which no turn is begun."""

GRACE = 10
"""The seconds that a process has to end by itself once it is interrupted."""

BEGINS = "\n$ "
"""What a turn begins with in a log; its command follows."""

_STATE = "state.json"


@dataclass(frozen=True)
class Part:
    """A command, the seconds that it may take at first, the modules it needs, what its environment has.

    Where it ends with the status `decides`, no other part is begun.
    """

    name: str
    limit: float
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    decides: int | None = None

    def missing(self) -> list[str]:
        """What it needs and is not installed."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return absent + [program for program in self.command[:1] if shutil.which(program) is None]


@dataclass
class Outcome:
    """What became of a part: its turns, except one that the end of a run cut short, and their seconds.

    The status is waiting, passed, failed, stopped, or not installed and what.
    """

    status: str = "waiting"
    code: int | None = None
    turns: int = 0
    seconds: float = 0.0


def read(folder: Path, source: str) -> dict[str, Outcome]:
    """The outcomes that the folder keeps, by the parts' names, if they are those of this source."""
    try:
        content = json.loads((folder / _STATE).read_text())
    except FileNotFoundError:
        return {}
    if content["source"] != source:
        return {}
    return {name: Outcome(**outcome) for name, outcome in content["parts"].items()}


def write(folder: Path, source: str, outcomes: Mapping[str, Outcome]) -> None:
    """Keep the outcomes, whole or not at all."""
    content = {"source": source, "parts": {name: asdict(outcome) for name, outcome in outcomes.items()}}
    partial = folder / f"{_STATE}.part"
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, folder / _STATE)


def log(folder: Path, name: str) -> Path:
    """The file of what a part printed."""
    return folder / f"{name}.log"


def run(
    parts: Sequence[Part],
    outcomes: dict[str, Outcome],
    folder: Path,
    seconds: float,
    after: Callable[[Part, Outcome], None],
) -> None:
    """Give parts their turns until all have ended or the time is over; those that passed before have none."""
    end = time.monotonic() + seconds
    waiting = [part for part in parts if outcomes[part.name].status != "passed"]
    while waiting and (left := end - time.monotonic()) > LEAST:
        part = min(waiting, key=lambda part: outcomes[part.name].turns)
        outcome = outcomes[part.name]
        try:
            _turn(part, outcome, folder, left)
        finally:
            after(part, outcome)
        if outcome.status != "stopped":
            waiting.remove(part)
        if part.decides is not None and outcome.code == part.decides:
            break


def _turn(part: Part, outcome: Outcome, folder: Path, left: float) -> None:
    """One turn of a part, in the seconds that are left; says in the outcome what became of it."""
    if missing := part.missing():
        outcome.status = f"not installed: {', '.join(missing)}"
        return
    limit, start = part.limit * 2**outcome.turns, time.monotonic()
    outcome.status = "stopped"
    try:
        outcome.code = _ended(part, folder, min(limit, left))
    finally:
        outcome.seconds += time.monotonic() - start
    if outcome.code is not None:
        outcome.status = "failed" if outcome.code else "passed"
    outcome.turns += outcome.code is not None or limit <= left


def _ended(part: Part, folder: Path, seconds: float) -> int | None:
    """The exit status of a part's process, whose output is added to its log; None if it had to be stopped."""
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "CUPY_CACHE_DIR": str(folder / "kernels"),
        **part.environment,
    }
    with log(folder, part.name).open("ab") as file:
        file.write(f"{BEGINS}{shlex.join(part.command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            part.command, stdout=file, stderr=file, env=environment, cwd=ROOT, start_new_session=True
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own processes too
            process.wait()
