"""What an algorithm is. Each backend lists its own, per op, in one table of these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .problem import Request


@dataclass(frozen=True)
class Schedule:
    """How an algorithm will do one request: its launches, in order, and the scratch memory they share."""

    workspace_bytes: int
    launches: tuple[Any, ...]


@dataclass(frozen=True)
class Algorithm:
    """One entry of a backend's table.

    applies    None where it can do the request, otherwise the reason why not, as half a sentence.
    plan       the launches for a request it applies to.
    estimate   predicted seconds; only compared between entries of one table.
    exact      every result is the plain sum of its products in the accumulator dtype, or as near the true
               one as that is.
    except_for why it is not for a certain request, as half a sentence, or None.
    recorded   whether a benchmark record of a GPU times it; None for the CPU, which every test runs on.
    untried    whether no GPU has run it yet, though its proof rests on what an emulator knows least surely.

    `auto` and `tune` take exact entries; the others have to be named. Entries are told what they are for: a
    `cuda.device.Device`, or a `processor.Processor`.
    """

    name: str
    applies: Callable[[Request, Any], str | None]
    plan: Callable[[Request, Any], Schedule]
    estimate: Callable[[Request, Any], float]
    exact: bool = True
    except_for: Callable[[Request], str | None] = lambda request: None
    recorded: bool | None = None
    untried: bool = False

    def by_name_only(self, request: Request) -> str | None:
        """Why `auto` and `tune` do not take it for a request, if they do not."""
        if not self.exact:
            return "it rounds where a plain sum is exact"
        if self.untried:
            return "no GPU has run it yet"
        return self.except_for(request)

    @property
    def proof(self) -> str:
        """What stands behind an entry's name in a plan: whether a device record covers it."""
        return {None: "", True: "covered by a device record", False: "proven without a device record"}[
            self.recorded
        ]


Table = dict[str, tuple[Algorithm, ...]]


def untried(table: Table) -> list[str]:
    """The names of the entries that no GPU has run yet."""
    return list(dict.fromkeys(entry.name for of_op in table.values() for entry in of_op if entry.untried))
