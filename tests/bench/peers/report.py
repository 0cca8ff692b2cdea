"""The peers' figures as a table for people and as JSON for machines.

Responsible for: how they look.
Must never: judge them.
Called by: `__main__.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Line:
    """One subject under one load. CPU in milliseconds a run: of its processes, of what they share, of the model's."""

    tool_ms: int
    concurrency: int
    runs: int
    runs_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms_per_run: float
    server_cpu_ms_per_run: float
    model_cpu_ms_per_run: float
    written_per_run: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a subject; `skipped` says why it could not be had, `failed` what went wrong, "" if nothing did."""

    name: str
    versions: Mapping[str, str] = field(default_factory=dict)
    lines: Sequence[Line] = ()
    skipped: str = ""
    failed: str = ""


_COLUMNS: Final[list[tuple[str, Callable[[Line], float | None], int]]] = [
    ("runs/s", lambda f: f.runs_s, 0),
    ("p50 ms", lambda f: f.p50_ms, 1),
    ("p99 ms", lambda f: f.p99_ms, 1),
    ("CPU ms/run", lambda f: f.cpu_ms_per_run, 2),
    ("+ servers", lambda f: f.server_cpu_ms_per_run, 2),
    ("(model)", lambda f: f.model_cpu_ms_per_run, 2),
    ("kB/run", lambda f: None if f.written_per_run is None else f.written_per_run / 1000, 1),
]


def print_table(console: Console, outcomes: Sequence[Outcome]) -> None:
    """One section a load, the subjects in the order in which they were measured; then a word about the missing ones."""
    table = Table(title="Two turns, three calls, one scripted model")
    for head in ("tool ms", "in flight", ""):
        table.add_column(head, justify="left" if not head else "right")
    for head, _, _ in _COLUMNS:
        table.add_column(head, justify="right")
    loads = dict.fromkeys((line.tool_ms, line.concurrency) for outcome in outcomes for line in outcome.lines)
    for load in loads:
        for outcome in outcomes:
            _add_lines(table, outcome, load)
        table.add_section()
    console.print(table)
    for outcome in outcomes:
        if word := _word(outcome):
            console.print(f"{outcome.name}: {word}", markup=False, highlight=False)


def _add_lines(table: Table, outcome: Outcome, load: tuple[int, int]) -> None:
    for line in outcome.lines:
        if (line.tool_ms, line.concurrency) == load:
            cells = (_shown(value(line), digits) for _, value, digits in _COLUMNS)
            table.add_row(str(line.tool_ms), str(line.concurrency), outcome.name, *cells)


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _word(outcome: Outcome) -> str:
    if outcome.skipped:
        return f"skipped: {outcome.skipped}"
    versions = ", ".join(f"{name} {version}" for name, version in outcome.versions.items())
    return f"failed: {outcome.failed}" if outcome.failed else versions


def write_json(file: Path, outcomes: Sequence[Outcome]) -> None:
    """A list with an entry for each subject, the skipped and failed ones too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = [asdict(outcome) for outcome in outcomes]
    for entry in entries:
        entry["lines"] = [{name: _rounded(value) for name, value in line.items()} for line in entry["lines"]]
    file.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def _rounded(value: float | None) -> float | None:
    return round(value, 3) if isinstance(value, float) else value
