"""A serial key is held for others as long as was announced, and no longer here than its call runs.

Responsible for: what `ToolWorker` makes of the keys that commits name. Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

import asyncio

import pytest
from tests.support.bench import PLACE, Group, ToolBench, call
from tests.support.wait import until

from anabranch import App
from anabranch.kafka.seam import Committed
from anabranch.tools import marks
from anabranch.tools.lane import METADATA
from anabranch.tools.marks import Marks


class Bookings:
    """A tool with a serial key, whose calls end when the test says so."""

    def __init__(self) -> None:
        self.app = App("t")
        self.begun: list[int] = []
        self.may_end: dict[int, asyncio.Event] = {}
        self.app.tool(queue="q", serial_key="account")(self.book)

    async def book(self, account: int, number: int) -> str:
        """Book."""
        self.begun.append(number)
        await self.may_end.setdefault(number, asyncio.Event()).wait()
        return "booked"

    def end(self, number: int) -> None:
        self.may_end[number].set()


@pytest.fixture
def bookings() -> Bookings:
    return Bookings()


CALLS = [call(offset, "book", {"account": 1, "number": offset}) for offset in range(3)]


def held(group: Group) -> dict[str, int]:
    at = group.stands[PLACE]
    return dict(marks.read(at.offset, at.metadata).held)


async def with_one_handed_off(bench: ToolBench, bookings: Bookings) -> None:
    await bench.assign()
    bench.deliver(CALLS[0])
    await until(lambda: bookings.begun == [0], what="the first call runs")
    await bench.revoke()
    assert list(held(bench.group)) == ["key"]


async def test_a_key_that_comes_back_is_free_once_its_call_is_over(bookings: Bookings) -> None:
    async with ToolBench(bookings.app).running() as bench:
        await with_one_handed_off(bench, bookings)
        await bench.assign()
        bench.deliver(*CALLS)
        bookings.end(0)
        await until(lambda: bookings.begun == [0, 1], what="the next call of the key runs")
        await until(lambda: held(bench.group) == {}, what="the key is no longer named in the commit")
        bookings.end(1)
        await until(lambda: 2 in bookings.begun, what="and the one after it")
        bookings.end(2)


async def test_a_key_is_free_if_its_call_ended_while_the_partition_was_away(bookings: Bookings) -> None:
    async with ToolBench(bookings.app).running() as bench:
        await with_one_handed_off(bench, bookings)
        bookings.end(0)
        await until(lambda: bench.sent.returned == ["r/1.a/0"], what="its result is there")
        await bench.assign()
        bench.deliver(*CALLS)
        await until(lambda: bookings.begun == [0, 1], what="the next call of the key runs")
        bookings.end(1)
        await until(lambda: 2 in bookings.begun, what="and the one after it")
        bookings.end(2)


async def test_a_key_that_comes_back_is_held_while_its_call_runs(bookings: Bookings) -> None:
    async with ToolBench(bookings.app).running() as bench:
        await with_one_handed_off(bench, bookings)
        await bench.assign()
        bench.deliver(*CALLS)
        await until(lambda: bench.worker._lanes[PLACE].progress.position == 3, what="they are taken in")
        assert bookings.begun == [0]
        assert list(held(bench.group)) == ["key"], "a later owner would have to wait"
        bookings.end(0)
        await until(lambda: 1 in bookings.begun, what="the next call of the key runs")
        bookings.end(1)
        await until(lambda: 2 in bookings.begun, what="and the one after it")
        bookings.end(2)


async def test_another_worker_holds_the_key_for_its_time_and_carries_it_on(bookings: Bookings) -> None:
    group = Group()
    group.stands[PLACE] = Committed(1, marks.write(1, Marks(held=(("key", 130),))))
    async with ToolBench(bookings.app, group).running() as bench:
        await bench.assign()
        bench.deliver(*CALLS)
        await until(lambda: bench.worker._lanes[PLACE].progress.position == 3, what="they are taken in")
        await bench.revoke()
        assert (bookings.begun, held(group)) == ([], {"key": 130})


async def test_a_key_that_finds_no_room_in_the_commit_leaves_what_it_said_before(bookings: Bookings) -> None:
    async with ToolBench(bookings.app).running() as bench:
        bench.clock.now = 240.0
        await bench.assign()
        bench.deliver(CALLS[0])
        await until(lambda: bookings.begun == [0], what="the call runs")
        said = {"key": 0xFA}
        full = {**said, "x" * (METADATA - len(marks.write(0, Marks(held=tuple(said.items())))) - 5): 0xFFF}
        bench.worker._lanes[PLACE].held.update(full)
        await bench.revoke()
        assert held(bench.group) == full
        await until(lambda: bench.worker.running == 0, what="the call is cancelled: its time cannot be told")


async def test_a_serial_call_is_cancelled_if_the_commit_leaves_its_partition_out(
    bookings: Bookings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ToolBench(bookings.app).running() as bench:
        await bench.assign()
        bench.deliver(CALLS[0])
        await until(lambda: bookings.begun == [0], what="the call runs")
        monkeypatch.setattr(bench.worker._commits, "_offsets", lambda: {PLACE._replace(partition=1): Committed(0, "")})
        await bench.revoke()
        await until(lambda: bench.worker.running == 0, what="the call is cancelled")
        assert bench.sent.returned == []
