"""How `enrich` shows itself: a bar on a terminal, a line now and then elsewhere, a table at the end.

Responsible for: stderr while runs are out. It counts nothing (`tally.py` does) and must never take stdout, which is
for results. Called by `enrich` and by the demonstration.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

from anabranch.cli.enriching import tally as t
from anabranch.cli.enriching.tally import Tally
from anabranch.cli.terminal import printable

LINE_EVERY_S: Final = 3.0
FRAMES_A_SECOND: Final = 8


class BarScreen:
    """A bar that stays at the bottom; what is said scrolls above it."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._progress = _Bar(
            max(20, console.width - len("^C^C")),
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, complete_style="cyan", finished_style="green", table_column=Column(ratio=1)),
            _Figures(table_column=Column(no_wrap=True)),
            console=console,
            refresh_per_second=FRAMES_A_SECOND,
        )
        self._task = self._progress.add_task(title, total=None, tally=Tally(), pace=t.Pace(time.monotonic()))

    def say(self, text: str) -> None:
        self._progress.console.print(Text(printable(text), style="yellow"))

    def update(self, tally: Tally) -> None:
        self._progress.update(self._task, total=tally.total, completed=tally.over, tally=tally)

    @contextmanager
    def shown(self) -> Iterator[BarScreen]:
        with self._progress:
            yield self


class _Bar(Progress):
    """Almost as wide as the terminal: the `^C` that it echoes must not start a new line, or the bar stands twice."""

    def __init__(self, width: int, *columns: ProgressColumn, **options: Any) -> None:
        self._width = width  # first: rich draws once while it is being made
        super().__init__(*columns, **options)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        table = super().make_tasks_table(tasks)
        table.expand, table.width = True, self._width
        return table


class _Figures(ProgressColumn):
    """Done, failed, running, records/s, and the time left."""

    max_refresh = 0.25

    def render(self, task: Task) -> Text:
        tally: Tally = task.fields["tally"]
        pace = task.fields["pace"].take(time.monotonic(), tally.ran)
        text = Text()
        text.append(f"{tally.there + tally.completed:,}", "bold green")
        text.append("" if tally.total is None else f"/{tally.total:,}").append(" done  ")
        text.append(f"{tally.failed:,} failed", "bold red" if tally.failed else "dim").append("  ")
        if tally.bad:
            text.append(f"{tally.bad:,} skipped", "yellow").append("  ")
        text.append(f"{tally.running:,} running", "cyan").append("  ")
        text.append(f"{pace:5.1f}/s")
        rest = t.left(tally, pace)
        if rest is not None and tally.over < (tally.total or 0):
            text.append(f"  {_clock(rest)} left")
        return text


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours = f"{whole // 3600}:" if whole >= 3600 else ""
    return f"{hours}{whole // 60 % 60:0{2 if hours else 1}}:{whole % 60:02}"


class LineScreen:
    """A line every few seconds, for logs; `every_s` None: none at all."""

    def __init__(self, console: Console, title: str, every_s: float | None = LINE_EVERY_S) -> None:
        self._console, self._title, self._every_s = console, title, every_s
        self._pace, self._last = t.Pace(time.monotonic()), time.monotonic()

    def say(self, text: str) -> None:
        self._console.print(printable(text))

    def update(self, tally: Tally) -> None:
        now = time.monotonic()
        pace = self._pace.take(now, tally.ran)
        if self._every_s is not None and now - self._last >= self._every_s:
            self._last = now
            self.say(f"{self._title}: {t.line(tally, pace)}")

    @contextmanager
    def shown(self) -> Iterator[LineScreen]:
        yield self


def screen_for(console: Console, title: str, quiet: bool = False) -> BarScreen | LineScreen:
    """The one that suits the console; `quiet`: only what is said."""
    if console.is_terminal and not quiet:
        return BarScreen(console, title)
    return LineScreen(console, title, None if quiet else LINE_EVERY_S)


def print_summary(console: Console, title: str, tally: Tally, wall_s: float) -> None:
    """The table at the end."""
    styles = {"completed": "bold green", "failed": "bold red" if tally.failed else "", "one after another": "bold"}
    styles |= {"wall time": "bold", "skipped": "yellow" if tally.bad else ""}
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in t.facts(tally, wall_s):
        table.add_row(name, Text(printable(value), styles.get(name, "")))
    console.print(table)
