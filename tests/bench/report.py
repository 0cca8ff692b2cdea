"""The figures as a table for people and as JSON for machines.

Responsible for: how they look.
Must never: judge them.
Called by: `__main__.py`.
"""

from __future__ import annotations

import json
import pstats
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from tests.bench.measure import Figures

SHOWN: Final = 25
_COLUMNS: Final[list[tuple[str, Callable[[Figures], float], int]]] = [
    ("runs/s", lambda f: f.runs_s, 0),
    ("p50 ms", lambda f: f.p50_ms, 1),
    ("p99 ms", lambda f: f.p99_ms, 1),
    ("CPU ms/run", lambda f: f.cpu_ms_per_run, 2),
    ("agent", lambda f: f.cpu_ms_by_process["agent"], 2),
    ("tool", lambda f: f.cpu_ms_by_process["tool"], 2),
    ("client", lambda f: f.cpu_ms_by_process["client"], 2),
    ("bytes/run", lambda f: f.bytes_per_run, 0),
]


def print_table(console: Console, figures: Sequence[Figures]) -> None:
    """One section a load: Anabranch, the floor, and how many times the floor each other is."""
    table = Table(title="Three calls a run, on one Kafka")
    for head in ("tool ms", "in flight", ""):
        table.add_column(head, justify="left" if not head else "right")
    for head, _, _ in _COLUMNS:
        table.add_column(head, justify="right")
    for load in dict.fromkeys((f.tool_ms, f.concurrency) for f in figures):
        _add_section(table, [f for f in figures if (f.tool_ms, f.concurrency) == load])
    console.print(table)


def _add_section(table: Table, figures: Sequence[Figures]) -> None:
    for each in figures:
        cells = (f"{value(each):,.{digits}f}" for _, value, digits in _COLUMNS)
        table.add_row(str(each.tool_ms), str(each.concurrency), each.name, *cells)
    by_name = {each.name: each for each in figures}
    if (floor := by_name.pop("floor", None)) is not None:
        for name, each in by_name.items():
            of = "ratio" if name == "anabranch" else f"ratio, {name}"
            table.add_row("", "", of, *(_ratio(value(each), value(floor)) for _, value, _ in _COLUMNS), style="bold")
    table.add_section()


def _ratio(ours: float, floor: float) -> str:
    return f"{ours / floor:.2f}" if floor > 0 else "-"


def write_json(file: Path, figures: Sequence[Figures]) -> None:
    """A list with an entry for each subject and load."""
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = [{name: _rounded(value) for name, value in asdict(each).items()} for each in figures]
    file.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def write_profiles(folder: Path) -> list[Path]:
    """Beside each `.pstats` file a `.txt` with the functions that took most time of their own; returns these."""
    written = []
    for file in sorted(folder.glob("*.pstats")):
        text = file.with_suffix(".txt")
        with text.open("w", encoding="utf-8") as stream:
            pstats.Stats(str(file), stream=stream).strip_dirs().sort_stats("tottime").print_stats(SHOWN)
        written.append(text)
    return written
