"""What a run has used and what that cost, by turn: as a table, and for scripts. PURE. Called by `portrait.py`."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from anabranch.agent.state import Run
from anabranch.cli.figures import dollars
from anabranch.messages import Usage

_NAMES = ("", "tokens in", "cached", "out", "cost")
_WIDTHS = (12, 12, 12, 10, 12)
_CACHED = 2


def by_turn(run: Run) -> list[tuple[str, Usage]]:
    """What each reply used, and what was thrown away."""
    rows = [(f"turn {turn.number}", turn.usage) for turn in run.turns]
    return [*rows, ("thrown away", run.discarded)] if run.discards else rows


def lines(run: Run, width: int) -> Iterator[Text]:
    """The usage by turn; nothing where nothing was used. Where `width` is short of columns, they draw together, and
    what was read from the cache is left out.
    """
    rows = [_cells(name, used) for name, used in by_turn(run) if used != Usage()]
    if not rows:
        return
    widths = list(_WIDTHS)
    if sum(widths) > width:
        widths = [max(map(len, column)) + 2 for column in zip(_NAMES, *rows, strict=True)]
    if sum(widths) > width:
        widths[_CACHED] = 0
    for number, (name, *cells) in enumerate([_NAMES, *rows]):
        line = name.ljust(widths[0])
        for cell, columns in zip(cells, widths[1:], strict=True):
            line += cell.rjust(columns) if columns else ""
        yield Text(line, "dim" if not number else "red" if name == "thrown away" else "")


def _cells(name: str, used: Usage) -> tuple[str, ...]:
    cached = f"{used.cache_read_input_tokens:,}" if used.cache_read_input_tokens else "-"
    return name, f"{used.prompt_tokens:,}", cached, f"{used.output_tokens:,}", dollars(used.cost_usd)
