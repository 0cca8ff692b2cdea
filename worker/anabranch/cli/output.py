"""What commands print: results on stdout and nothing else there, messages on stderr, a table, JSON, an answer.

Must never: let through what a terminal would obey, or import anything slow at its head. Called by every command.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from anabranch.cli.terminal import printable, printable_json
from anabranch.wording import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


def stdout() -> Console:
    """For results. Colours and boxes on a terminal alone; elsewhere no line is wrapped or cut."""
    return _console(sys.stdout)


def stderr() -> Console:
    """For messages, progress and whatever else is not the result."""
    return _console(sys.stderr)


def _console(file: Any) -> Console:
    from rich.console import Console

    width = None if file.isatty() else 100_000
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False, soft_wrap=not file.isatty())


LEAST: Final = 9
"""Columns of a terminal that each further column of a table has at least, its margin included."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "") -> None:
    """A table on stdout. A cell is a rich `Text`, or anything else: then its text, made printable.

    A column whose name begins with ">" is right-justified. The first, which names the row and is what people copy, is
    kept whole if that leaves some room to the others; where no column has room, each cell has a line. Without rows,
    `empty` goes to stderr.
    """
    console, lines = stdout(), [[*map(_cell, row)] for row in rows]
    if not lines:
        return say(empty)
    if console.width < LEAST * len(columns):
        return console.print(_upright(columns, lines))
    table = _across(columns, lines, console)
    if console.is_terminal:
        return console.print(table)
    with console.capture() as written:
        console.print(table)
    return click.echo("\n".join(line.rstrip() for line in written.get().splitlines()))


def _cell(value: object) -> Text:
    from rich.text import Text

    return value if isinstance(value, Text) else Text(printable(str(value)))


def _upright(columns: Sequence[str], lines: Sequence[Sequence[Text]]) -> Table:
    """Each row below the one before it, as names and values."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for number, line in enumerate(lines):
        if number:
            table.add_row()
        for column, cell in zip(columns, line, strict=True):
            table.add_row(column.removeprefix(">"), cell)
    return table


def _across(columns: Sequence[str], lines: Sequence[Sequence[Text]], console: Console) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, header_style="bold")
    rest = console.width - max(len(line[0]) for line in lines)
    for number, column in enumerate(columns):
        whole = number == 0 and rest >= LEAST * (len(columns) - 1)
        justify: Literal["right", "left"] = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=justify, overflow="fold", no_wrap=whole)
    for line in lines:
        table.add_row(*line)
    return table


def print_json(value: Any) -> None:
    """Any plain value or dataclass as JSON on stdout; a list is one array."""
    import orjson

    flags = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
    sys.stdout.write(printable_json(orjson.dumps(value, default=str, option=flags).decode()))


def print_answer(text: str) -> None:
    """What a run said, on stdout: as it is, but on a terminal made printable."""
    click.echo(printable(text) if sys.stdout.isatty() else text)


def say(message: str) -> None:
    """A message for the user, on stderr."""
    if message:
        click.echo(printable(message), err=True)


def say_left_out(many: int, what: str) -> None:
    """That a list shows the newest alone, if there are others."""
    if many:
        say(f"({counted(many, f'older {what}')} not shown: --limit N shows more)")
