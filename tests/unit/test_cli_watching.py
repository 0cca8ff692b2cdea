"""What `run` and `runs watch` tell of a run.

Responsible for: a line for each step, however the records come. Must never: reach for a broker.
Called by: pytest.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from tests.support import builders as b

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.cli.picture.logs import RunLog
from anabranch.cli.picture.watching import Watch
from anabranch.codec import Record
from anabranch.kafka.seam import Place

PLACE = Place(b.LOG, 0)


class AtOnce:
    """A reader that gives all records in one batch."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records, self._end = records, len(records)

    async def read(self, timeout_s: float) -> Sequence[Record]:
        given, self._records = self._records, []
        return given

    async def ends(self) -> dict[Place, int]:
        return {PLACE: self._end}

    def position(self, place: Place) -> int:
        return self._end - len(self._records)


def watched() -> tuple[Watch, io.StringIO]:
    plan = (b.planned(0, tool="first"), b.planned(1, tool="second"))
    events: tuple[e.Event, ...] = (b.requested(), b.calls(*plan), b.returned(1), b.returned(0), b.replied("final", 2))
    reader = AtOnce([b.record(event, offset, at=1.0 + offset) for offset, event in enumerate(events)])
    told = io.StringIO()
    return Watch(RunLog(b.RUN, PLACE, reader), Console(file=told, width=200)), told


async def test_steps_that_are_read_at_once_are_told_one_by_one() -> None:
    watch, told = watched()
    await watch.until(lambda: False)
    assert_each_step_is_told(told.getvalue())


async def test_what_has_happened_already_is_told_step_by_step() -> None:
    watch, told = watched()
    await watch.catch_up()
    assert_each_step_is_told(told.getvalue())


def assert_each_step_is_told(text: str) -> None:
    lines = text.splitlines()
    assert ["admitted" in lines[0], "first, second" in lines[1]] == [True, True]
    assert [line.split()[2] for line in lines[2:]] == ["second:", "first:", "turn"]


async def test_a_model_that_keeps_failing_is_told_while_it_does() -> None:
    """What names its attempts costs nothing and moves nothing on."""
    tried = e.Tried("m", 1.0, 0.1, "overload", "529: busy")
    fails = e.ModelDiscarded(b.RUN, b.LIFE, 1, "x", m.Usage(), "529: busy", None, (tried, tried))
    events: tuple[e.Event, ...] = (b.requested(), fails, fails)
    reader, told = AtOnce([b.record(event, offset, at=1.0) for offset, event in enumerate(events)]), io.StringIO()
    await Watch(RunLog(b.RUN, PLACE, reader), Console(file=told, width=200)).catch_up()
    _, *lines = told.getvalue().splitlines()
    assert [line.split("  ")[-1] for line in lines] == [
        "turn 1: the model has failed 2 times, and is asked again: 529: busy"
    ]
