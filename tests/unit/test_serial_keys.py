"""A serial key is held for others as long as was announced, and no longer here than its call runs.

Responsible for: what `ToolWorker` makes of the keys that commits name. Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

import asyncio

import pytest
from tests.support.bench import PLACE, Group, ToolBench, call
from tests.support.virtual import virtually
from tests.support.wait import until

from anabranch import App, Limit
from anabranch.kafka.seam import Committed
from anabranch.tools import marks
from anabranch.tools.lane import METADATA
from anabranch.tools.marks import Marks


class Bookings:
    """A tool with a serial key, whose calls end when the test says so."""

    def __init__(self, limit: Limit | None = None) -> None:
        self.app = App("t")
        self.begun: list[int] = []
        self.may_end: dict[int, asyncio.Event] = {}
        self.app.tool(queue="q", limit=limit, serial_key="account")(self.book)

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


async def test_a_call_is_given_up_before_its_key_is_free_for_others(bookings: Bookings) -> None:
    """Also if others that were handed off with it have more time: what it waits for between its tries may be long."""

    @bookings.app.tool(queue="q", timeout="10m")
    async def review(number: int) -> str:
        """Review."""
        return await bookings.book(1, number)

    async with ToolBench(bookings.app).running() as bench:
        await bench.assign()
        bench.deliver(CALLS[0], call(1, "review", {"number": 1}))
        await until(lambda: sorted(bookings.begun) == [0, 1], what="both run")
        await bench.revoke()
        now = asyncio.get_running_loop().time()
        given_up = {job.offset: job.ends.when() - now for job in bench.worker._calls.running() if job.ends is not None}
        assert given_up[0] < held(bench.group)["key"] - bench.clock.now < given_up[1]


OTHER_KEYS = [call(n, "book", {"account": n, "number": n}, key=f"key-{n}") for n in range(60)]


def test_calls_in_the_line_of_a_limit_that_stay_start_here() -> None:
    """Else nobody makes them before the end of their hand-off. In virtual time, for whoever is late is sent back."""

    async def run() -> None:
        bookings = Bookings(Limit("bank", "50/s"))
        async with ToolBench(bookings.app).running() as bench:
            await bench.assign()
            bench.deliver(*OTHER_KEYS)
            await until(lambda: bookings.begun, what="the first have started")
            await bench.revoke()
            at = bench.group.stands[PLACE]
            finished = at.offset + len(marks.read(at.offset, at.metadata).finished)
            assert finished > 30, "nobody reads these again"
            await until(lambda: len(bookings.begun) >= finished, what="they have started")
            for number in bookings.begun:
                bookings.end(number)
            await until(lambda: bench.worker.running == 0, what="they are over")
        assert bookings.begun == list(range(finished))

    virtually(run)


async def no_commit() -> None:
    """As if Kafka did not answer."""


async def test_one_whose_commit_is_under_way_at_a_revoke_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    bookings = Bookings(Limit("bank", "50/s"))
    async with ToolBench(bookings.app).running() as bench:
        await bench.assign()
        await until(lambda: bench.worker._lanes[PLACE].stands, what="a commit of ours stands")
        monkeypatch.setattr(bench.worker._commits, "_commit", no_commit)
        bench.deliver(OTHER_KEYS[0])
        await until(lambda: bench.worker._commits._confirmations, what="it has its turn, and waits for a commit")
        await bench.revoke()
        at = bench.group.stands[PLACE]
        assert (at.offset, marks.read(at.offset, at.metadata).finished) == (0, frozenset())
    assert bookings.begun == []
