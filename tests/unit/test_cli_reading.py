"""Who waits for a long log sees how far it is.

Responsible for: `cli/reading.py`. Must never: reach for a broker.
Called by: pytest.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from anabranch.cli.reading import HowFar, Newest
from anabranch.codec import Record
from anabranch.kafka.seam import Place

ENDS = {Place("log", 0): 120, Place("log", 1): 30, Place("log", 2): 0}


class At:
    """A reader that is where it is said to be."""

    def __init__(self, *positions: int) -> None:
        self.positions: Sequence[int] = positions

    async def read(self, timeout_s: float) -> Sequence[Record]:
        return ()

    async def ends(self) -> dict[Place, int]:
        return ENDS

    def position(self, place: Place) -> int:
        return self.positions[place.partition]


def said(reader: At, *then: int, terminal: bool = True, quiet_s: float = 0.0) -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=80, color_system=None)
    with HowFar("shop.agent.log", reader, ENDS, console, quiet_s) as far:
        reader.positions = then
        far.tell()
    return screen.getvalue()


@pytest.mark.parametrize(
    ("then", "percent"), [((20, 10, 0), 0), ((80, 10, 0), 50), ((120, 30, 0), 100), ((400, 31, 9), 100)]
)
def test_it_counts_what_there_was_when_the_reading_began(then: tuple[int, ...], percent: int) -> None:
    assert f"reading shop.agent.log: {percent} %" in said(At(20, 10, 0), *then)


def test_an_empty_topic_is_nothing_to_wait_for() -> None:
    assert "0 %" in said(At(120, 30, 0), 120, 30, 0)


def test_it_says_nothing_where_nobody_looks_or_what_does_not_take_long() -> None:
    assert said(At(20, 10, 0), 80, 10, 0, terminal=False) == ""
    assert said(At(20, 10, 0), 80, 10, 0, quiet_s=3600.0) == ""


def test_the_newest_are_kept_and_the_others_counted() -> None:
    newest = Newest[str](3)
    for at, what, name in ((2.0, "c", "y"), (1.0, "a", ""), (2.0, "b", "x"), (3.0, "d", ""), (3.0, "e", "")):
        newest.take(at, what, name)
    assert (newest.first_to_last(), newest.left_out) == (["c", "d", "e"], 2)
