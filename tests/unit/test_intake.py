"""How much a worker takes in: so many bytes, and of those each partition has its part, whatever waits in others.

Responsible for: `tools/intake.py`, the pauses of `ToolWorker`, what it tells of its oldest call, the requests that
`Admission` holds.
Must never: run a broker.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.bench import PLACE, ToolBench, call
from tests.support.desk import Desk
from tests.support.wait import until
from tests.unit.test_admission import admitting, good

from anabranch import App
from anabranch.agent.admission.admission import Admission
from anabranch.agent.admission.room import RUN_BYTES
from anabranch.agent.admission.waiting import BUFFER_BYTES
from anabranch.config import AgentSettings, ToolSettings
from anabranch.kafka.seam import Place
from anabranch.tools.intake import CALL_BYTES

KB = 1000
OTHER = Place(PLACE.topic, 1)


class Slow:
    """A tool whose calls end when the test says so."""

    def __init__(self) -> None:
        self.app, self.may_end = App("t"), asyncio.Event()
        self.app.tool(queue="q")(self.work)

    async def work(self, text: str = "") -> str:
        """Work."""
        await self.may_end.wait()
        return "done"


def bench_of(slow: Slow, calls: int, **settings: Any) -> ToolBench:
    """With room for about so many small calls."""
    return ToolBench(slow.app, settings=ToolSettings(max_taken_bytes=calls * (CALL_BYTES + 600), **settings))


def waited_s(bench: ToolBench) -> float:
    return bench.worker.oldest_waiting_s


def small(offset: int, **fields: Any) -> Any:
    return call(offset, "work", **fields)


async def test_a_partition_pauses_by_bytes_and_goes_on_when_half_of_them_are_free() -> None:
    slow = Slow()
    async with bench_of(slow, 10).running() as bench:
        await bench.assign()
        bench.deliver(*(small(number) for number in range(3)))
        assert bench.group.paused == set()
        bench.deliver(call(3, "work", {"text": "x" * 40 * KB}))
        assert bench.group.paused == {PLACE}
        slow.may_end.set()
        await until(lambda: bench.group.paused == set(), what="it goes on")
        assert len(bench.sent.returned) == 4


async def test_calls_that_wait_in_one_partition_leave_room_for_those_of_others() -> None:
    slow = Slow()
    async with bench_of(slow, 20).running() as bench:
        await bench.assign(PLACE, OTHER)
        bench.deliver(*(small(number) for number in range(30)))
        assert bench.group.paused == {PLACE}
        bench.deliver(*(small(number, partition=1) for number in range(3)))
        assert bench.group.paused == {PLACE}, "the other one has its own part"
        bench.deliver(*(small(number, partition=1) for number in range(3, 8)))
        assert bench.group.paused == {PLACE, OTHER}
        slow.may_end.set()
        await until(lambda: bench.group.paused == set(), what="both go on")


async def test_what_is_dropped_by_a_revoke_gives_its_room_back() -> None:
    slow = Slow()
    async with bench_of(slow, 10, concurrency=1).running() as bench:
        await bench.assign()
        bench.deliver(*(small(number) for number in range(10)))
        assert bench.group.paused == {PLACE}
        await bench.revoke()
        slow.may_end.set()
        await bench.assign()
        await until(lambda: bench.worker._calls.intake.used == 0, what="nothing is held")


async def test_a_call_that_is_given_back_before_its_task_begins_is_not_executed_and_holds_nothing() -> None:
    slow = Slow()
    async with bench_of(slow, 10).running() as bench:
        await bench.assign()
        bench.deliver(small(0))
        await bench.revoke()
        await until(lambda: not bench.worker._calls._serving, what="its task has ended")
        assert (bench.worker.running, bench.sent.records, bench.worker._calls.intake.used) == (0, [], 0)
        slow.may_end.set()
        await bench.assign()
        bench.deliver(small(0))
        await until(lambda: len(bench.sent.returned) == 1, what="it is executed when it comes again")


async def test_the_oldest_call_that_waits_for_a_place_is_told_by_when_it_was_published() -> None:
    slow = Slow()
    async with bench_of(slow, 1000, concurrency=1).running() as bench:
        await bench.assign()
        bench.deliver(small(0, at_ms=10_000))
        await until(lambda: bench.worker.running == 1, what="it runs")
        assert waited_s(bench) == 0
        bench.deliver(small(1, at_ms=40_000), small(2, at_ms=60_000))
        assert waited_s(bench) == 100 - 40
        slow.may_end.set()
        await until(lambda: waited_s(bench) == 0, what="nothing waits")


async def test_a_paused_partition_all_of_whose_calls_run_is_taken_to_have_more_behind_them() -> None:
    slow = Slow()
    async with bench_of(slow, 4).running() as bench:
        await bench.assign()
        bench.deliver(*(small(number) for number in range(4)))
        await until(lambda: bench.worker.running == 4, what="all run")
        bench.clock.now += 20
        assert waited_s(bench) == 20
        slow.may_end.set()
        await until(lambda: waited_s(bench) == 0, what="it goes on")


async def test_calls_behind_their_own_key_are_not_the_queues_backlog() -> None:
    app, may_end = App("t"), asyncio.Event()

    @app.tool(queue="q", serial_key="account")
    async def book(account: int) -> str:
        """Book."""
        await may_end.wait()
        return "booked"

    async with ToolBench(app).running() as bench:
        await bench.assign()
        bench.deliver(*(call(number, "book", {"account": 1}, at_ms=1000) for number in range(3)))
        await until(lambda: bench.worker.running == 1, what="the first one runs")
        assert waited_s(bench) == 0
        may_end.set()
        await until(lambda: len(bench.sent.returned) == 3, what="all have a result")


# --- requests ---------------------------------------------------------------------------------------------------------


async def test_few_large_requests_fill_the_buffer() -> None:
    admission = Admission(Desk().begin().owner, Desk().station)
    large = [good(number, input="x" * 300 * KB) for number in range(4)]
    assert sum(len(record.value or b"") for record in large) >= BUFFER_BYTES
    found, waiting = [], admission.lanes["interactive"]
    for record in large:
        found.append(waiting.full)
        admission.feed([record])
    assert [*found, waiting.full] == [False, False, False, False, True]
    admission.suspend()
    assert waiting.hungry


async def test_small_runs_take_room_beside_their_bytes() -> None:
    desk = Desk(settings=AgentSettings(max_open_bytes=3 * RUN_BYTES)).begin()
    async with admitting(desk) as admission:
        admission.feed([good(number) for number in range(10)])
        await until(lambda: desk.appended)
        await asyncio.sleep(0.01)
        assert len(desk.appended) == 3


async def test_what_partitions_take_up_at_the_same_time_counts_against_the_same_room() -> None:
    desk = Desk(settings=AgentSettings(max_open_bytes=3 * RUN_BYTES)).begin()
    other = Admission(desk.owner, desk.station)
    async with admitting(desk) as admission:
        admission.feed([good(number) for number in range(3)])
        await until(lambda: len(desk.appended) == 3)
        other.feed([good(3)])
        taking_up = asyncio.create_task(other.run())
        await asyncio.sleep(0.01)
        assert len(desk.appended) == 3
        admission.drop()
        await until(lambda: desk.station.room.used > 0, what="the other one goes on")
        taking_up.cancel()
        other.drop()
    assert desk.station.room.used == 0
