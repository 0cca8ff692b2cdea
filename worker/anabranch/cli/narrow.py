"""A table on a terminal that is too narrow for its columns: a line for each cell. PURE.

Must never: be asked where nobody looks, for a file has all the room it needs. Called by `frame.print_table`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from anabranch.cli.terminal import printable


def cell(value: object) -> Text:
    """What stands in a table: a `Text` as it is, anything else made printable."""
    return value if isinstance(value, Text) else Text(printable(str(value)))


def upright(names: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Each row below the one before it, as names and values."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for number, row in enumerate(rows):
        if number:
            table.add_row()
        for name, value in zip(names, row, strict=True):
            table.add_row(name, cell(value))
    return table
