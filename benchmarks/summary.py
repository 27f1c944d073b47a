"""The page that says what came of a run of `benchmarks.device`, from its record and the logs of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from . import furthest, record, report, turns
from .record import Record
from .turns import Outcome

PAGE, RECORD = "summary.md", "record.json"
OFF = 1.5
"""The factor between a time and its prediction from which on the prediction is off."""

_MOST, _QUOTED, _HOST = 10, 6, 24
"""How many wrong results and predictions are listed, and lines of parts that failed, and of host times."""


def page(folder: Path, outcomes: Mapping[str, Outcome]) -> str:
    """The whole page, in Markdown."""
    found = read_record(folder)
    sections = [f"# {found.environment.processor if found else 'No record yet'}\n"]
    if found:
        sections += [f"{report.environment(found)}\n", report.machine(found)]
    sections += [_parts(folder, outcomes), _failures(folder, outcomes, found)]
    if found:
        sections += [_predictions(found), f"## Best peer / ours\n\n{report.summary_table(found)}"]
    if host := last_lines(folder, "host", _HOST):
        sections.append(f"## Host time\n\n{_quoted(host)}")
    return "\n".join(sections)


def read_record(folder: Path) -> Record | None:
    """The folder's record, if there is one yet."""
    path = folder / RECORD
    return record.read(path) if path.exists() else None


def failed(outcomes: Mapping[str, Outcome]) -> list[str]:
    """The parts that failed."""
    return [name for name, outcome in outcomes.items() if outcome.status == "failed"]


def wrong(found: Record | None) -> list[str]:
    """Every result of the record that is wrong, with the command that measures its row again."""
    rows = found.rows.values() if found else ()
    return [f"{failure}: `{row.command}`" for row in rows for failure in row.failures]


def _parts(folder: Path, outcomes: Mapping[str, Outcome]) -> str:
    lines = []
    for name, outcome in outcomes.items():
        last = "".join(last_lines(folder, name, 1)).replace("|", "\\|")
        lines.append([name, outcome.status, f"{outcome.seconds:.0f}", last[:100]])
    return f"## Parts\n\n{report.table(['part', 'status', 'seconds', 'last line'], lines)}"


def _failures(folder: Path, outcomes: Mapping[str, Outcome], found: Record | None) -> str:
    quoted = [f"{name}:\n\n{_quoted(last_lines(folder, name, _QUOTED))}" for name in failed(outcomes)]
    results = wrong(found)
    listed = "".join(f"- {text}\n" for text in results[:_MOST])
    if len(results) > _MOST:
        listed += f"- and {len(results) - _MOST} more in the record\n"
    return "## Failures\n\n" + ("\n".join(filter(None, [*quoted, listed])) or "None.\n")


def _predictions(found: Record) -> str:
    """How many are off, and the worst of them."""
    calls = furthest.compared(found)
    off = [each for each in calls if each.factor > OFF]
    lines = [
        [str(each), _ms(each.measured_s), _ms(each.predicted_s), f"{each.ratio:.2f}", each.limit or ""]
        for each in off[:_MOST]
    ]
    text = f"## Predictions\n\n{len(off)} of {len(calls)} are off by more than {OFF}.\n"
    return text + (f"\n{report.table(['call', 'ms', 'predicted', 'ratio', 'limit'], lines)}" if off else "")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"


def _quoted(lines: list[str]) -> str:
    return "".join(f"    {line}\n" for line in lines)


def last_lines(folder: Path, name: str, count: int) -> list[str]:
    """The last of what a part printed in its last turn, without the names of folders above this one."""
    path = turns.log(folder, name)
    text = path.read_text(errors="replace") if path.exists() else ""
    _, _, output = text.replace(f"{folder}/", "").rpartition(turns.BEGINS)
    lines = [line.rstrip() for line in output.splitlines()[1:] if line.strip()]
    return lines[-count:]
