"""Calls of a limited tool in a worker: where they wait, what they hold meanwhile, and what a revoke makes of them.

Responsible for: what `ToolWorker`, `Service` and `Paced` make of a limit. Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson
import pytest
from tests.support.bench import NAMESPACE, PLACE, Group, ToolBench, call
from tests.support.wait import until

from anabranch import App, Limit, RateLimited
from anabranch.config import ToolSettings
from anabranch.homes import homes
from anabranch.kafka.seam import Committed, Place
from anabranch.tools import marks
from anabranch.tools.slots import Slots
from anabranch.tools.worker import SATED


class Api:
    """An App with a tool behind a limit and one without; what started, in order."""

    def __init__(self, rate: str = "100/s", name: str = "api", limit: Limit | None = None, **options: Any) -> None:
        self.app, self.limit = App("t"), limit or Limit(name, rate)
        self.started: list[int] = []
        self.answers: dict[int, list[Exception]] = {}
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.app.tool(queue="q", limit=self.limit, **options)(self.ask)
        self.app.tool(queue="q")(self.look)

    async def ask(self, n: int) -> str:
        """Ask."""
        self.started.append(n)
        if answers := self.answers.get(n):
            raise answers.pop(0)
        await self.may_end.wait()
        return "asked"

    async def look(self, n: int) -> str:
        """Look."""
        self.started.append(n)
        return "looked"


def ask(offset: int) -> Any:
    return call(offset, "ask", {"n": offset})


def over(bench: ToolBench) -> set[int]:
    """What nobody reads again, by the commit."""
    at = bench.group.stands[PLACE]
    return {*range(at.offset), *marks.read(at.offset, at.metadata).finished}


def published_again(bench: ToolBench) -> set[int]:
    """Each to the place where it was, and once."""
    again = [record for record in bench.sent.records if record.topic == PLACE.topic]
    found = [int(orjson.loads(record.value or b"")["idempotency_key"][1:]) for record in again]
    assert len(set(found)) == len(found)
    assert {record.partition for record in again} <= {PLACE.partition}
    return set(found)


def results(bench: ToolBench) -> list[int]:
    return [int(call_id.rpartition("/")[2]) for call_id in bench.sent.returned]


@asynccontextmanager
async def in_line(api: Api, bench: ToolBench | None = None) -> AsyncIterator[ToolBench]:
    """A worker with 300 calls, of which the first have started."""
    async with (bench or ToolBench(api.app)).running() as bench:
        await bench.assign()
        bench.deliver(*(ask(offset) for offset in range(300)))
        await until(lambda: len(api.started) >= 2, what="the first have started")
        yield bench


async def test_those_of_one_home_start_in_order_and_others_do_not_wait() -> None:
    api = Api("20/s")
    async with ToolBench(api.app).running() as bench:
        await bench.assign()
        bench.deliver(*(ask(offset) for offset in range(8)), call(8, "look", {"n": 8}))
        await until(lambda: len(api.started) == 9, what="all have started")
    assert api.started[0] == 8, "it has no limit"
    assert api.started[1:] == list(range(8))


async def test_a_queue_that_nobody_has_served_starts_at_once() -> None:
    api = Api("1/h")
    async with ToolBench(api.app, Group(anew=True)).running() as bench:
        await bench.assign()
        bench.deliver(ask(0), ask(1))
        await until(lambda: results(bench) == [0], what="the first one is over")
        await bench.revoke()
        await bench.assign()
        bench.deliver(ask(1), call(2, "look", {"n": 2}))
        await until(lambda: results(bench) == [0, 2], what="one without a limit is over")
    assert api.started == [0, 2], "the second call has its turn an hour after the first"


async def test_who_has_many_calls_wants_no_more_at_once_until_they_are_fewer() -> None:
    api = Api("1000/s")
    async with ToolBench(api.app).running() as bench:
        await bench.assign()
        bench.deliver(*(ask(offset) for offset in range(SATED - 1)))
        before = bench.worker.is_sated
        bench.deliver(ask(SATED - 1), ask(SATED))
        assert (before, bench.worker.is_sated) == (False, True)
        await until(lambda: not bench.worker.is_sated, what="some are over")


async def test_calls_of_the_interactive_lane_pass_those_of_the_bulk_lane_that_wait_for_the_same_limit() -> None:
    api = Api("40/s")
    async with ToolBench(api.app).running() as bench:
        await bench.assign()
        bulk = [call(offset, "ask", {"n": offset}, lane="bulk") for offset in range(60)]
        bench.deliver(*bulk, *(ask(offset) for offset in range(60, 68)))
        await until(lambda: {*range(60, 68)} <= set(api.started), what="those of the interactive lane have started")
    last = max(api.started.index(offset) for offset in range(60, 68))
    assert last < 14, "eight, two of the other lane beside them, and who came before"
    assert [n for n in api.started if n < 60] == list(range(len(api.started) - 8))


async def test_while_it_waits_a_call_holds_no_slot() -> None:
    api = Api("1/min")
    async with ToolBench(api.app).running() as bench:
        bench.worker._service._slots = Slots(1)
        await bench.assign()
        bench.deliver(*(ask(offset) for offset in range(50)), *(call(n, "look", {"n": n}) for n in range(50, 60)))
        await until(lambda: len(api.started) == 10, what="those without a limit have started")
    assert api.started == list(range(50, 60))


async def test_copies_of_a_call_that_runs_let_others_of_their_limit_pass() -> None:
    """There are as many after an agent worker was killed."""
    api = Api("20/s")
    api.may_end.clear()
    async with ToolBench(api.app).running() as bench:
        await bench.assign()
        bench.deliver(ask(0), *(replace(ask(0), offset=n) for n in range(1, 5)), *map(ask, range(5, 8)))
        await until(lambda: len(api.started) == 4, what="the others have started")
        api.may_end.set()
        await until(lambda: over(bench) == {*range(8)}, what="all are over, the copies too")
    assert api.started == [0, 5, 6, 7]


async def test_a_pause_sends_the_call_back_to_the_front_of_the_line() -> None:
    api = Api("5/s")
    api.answers[1] = [RateLimited(after=0.02), RateLimited(after=0.01)]
    async with ToolBench(api.app).running() as bench:
        await bench.assign()
        bench.deliver(*(ask(offset) for offset in range(4)))
        await until(lambda: len(results(bench)) == 4, what="all have results")
    assert api.started == [0, 1, 1, 1, 2, 3]


async def test_a_call_that_is_refused_for_ever_lets_more_and_more_others_go_first() -> None:
    api = Api("100/s")
    api.answers[0] = [RateLimited(after=0.005) for _ in range(1000)]
    async with ToolBench(api.app).running() as bench:
        await bench.assign()
        bench.deliver(*(ask(offset) for offset in range(20)))
        await until(lambda: results(bench) == list(range(1, 20)), what="all others have results")
    assert api.started[:13] == [0, 0, 0, 1, 0, 2, 3, 0, 4, 5, 6, 7, 0]
    assert api.started[: api.started.index(19)].count(0) <= 7


async def test_a_call_that_waits_for_the_end_of_a_pause_is_given_back() -> None:
    api = Api("5/s")
    api.answers[0] = [RateLimited(after=60)]
    async with ToolBench(api.app).running() as bench:
        await bench.assign()
        bench.deliver(ask(0), ask(1))
        await until(lambda: bench.worker.running == 1 and api.started == [0], what="it was told to wait")
        await bench.revoke()
        assert [record.topic for record in bench.sent.records] == [], "nothing was handed off"
        at = bench.group.stands[PLACE]
        assert at.offset == 0
        assert not marks.read(0, at.metadata).finished
        due_ms = max(share.due_ms for share in marks.read(0, at.metadata).shares)
        assert due_ms > (bench.clock.now + 55) * 1000, "the next owner keeps the pause"


async def test_the_next_in_line_start_here_after_a_revoke_and_are_handed_off() -> None:
    api = Api("20/s")
    async with in_line(api) as bench:
        await bench.revoke()
        at = bench.group.stands[PLACE]
        told = marks.read(at.offset, at.metadata)
        gone = at.offset + len(told.finished)
        assert 95 <= gone <= 110, "five seconds of the line, and what was done"
        assert told.shares[0].due_ms / 1000 - bench.clock.now == pytest.approx((gone - len(api.started)) / 20, abs=0.3)
        await until(lambda: len(api.started) >= 20, what="they start, one by one")
        assert api.started == list(range(len(api.started)))


async def test_one_that_stays_and_does_not_come_to_its_turn_is_published_again_to_its_home() -> None:
    api = Api("20/s")
    async with in_line(api) as bench:
        await bench.revoke()
        told = over(bench)
        for pacer in bench.worker._shares._pacers.values():
            pacer.shut()  # as if this process had stood still until the end of what it may start
        await until(lambda: bench.worker.running == 0, what="none stays")
    assert len(published_again(bench)) > 50
    assert published_again(bench) | set(api.started) >= told, "nobody reads them again: each has started or lies anew"


@pytest.mark.parametrize("before", ["the first commit", "a commit that is refused", "the end of a pause"])
async def test_one_that_stayed_and_may_not_stay_again_is_published_again_too(before: str) -> None:
    """The commit of the first revoke has said that it is over: nobody reads it again."""
    api = Api("20/s")
    async with in_line(api) as bench:
        await bench.revoke()
        told = over(bench)
        bench.group.refuses = before == "the first commit"
        await bench.assign()
        if before == "the end of a pause":
            bench.worker._shares.pause("api", None, 60.0)
        elif before == "a commit that is refused":
            count = len(api.started)
            await until(lambda: len(api.started) > count, what="its own commit stands")
        bench.group.refuses = before == "a commit that is refused"
        await bench.revoke()
        await until(lambda: bench.worker.running == 0, what="none stays")
        await until(lambda: published_again(bench) | set(api.started) >= told, what="each has started or lies anew")
    assert not published_again(bench) & set(api.started)


async def test_one_that_stays_and_has_no_turn_in_its_hand_offs_time_does_not_count_as_running() -> None:
    """The owner of its run publishes it again then."""
    api = Api("20/s")
    async with in_line(api, ToolBench(api.app, settings=ToolSettings(hand_off_s=1.5))) as bench:
        await bench.revoke()
        await bench.assign()
        bench.worker._shares.pause("api", None, 60.0)
        assert bench.worker.running > 5
        await until(lambda: bench.worker.running == 0, what="their time is up")
        assert not bench.worker._calls.intake.count


async def test_one_of_at_most_once_stays_only_when_the_commit_says_so() -> None:
    api = Api("50/s", delivery="at_most_once")
    bench = ToolBench(api.app)
    bench.group.stands[PLACE] = Committed(0, marks.write(0, marks.Marks(held=(("x", 1),))))
    async with in_line(api, bench):
        await bench.revoke()
        count = len(api.started)
        await until(lambda: len(api.started) > count + 5, what="they go on")
        bench.group.refuses = True
        await bench.assign()
        await bench.revoke()
        await until(lambda: bench.worker.running == 0, 15, "all that stayed has ended")
    assert len(api.started) == len(set(api.started)) > count + 5


async def test_without_a_confirmed_commit_nothing_more_starts() -> None:
    api = Api("20/s")
    async with in_line(api) as bench:
        bench.group.refuses = True
        await bench.revoke()
        started = len(api.started)
        await until(lambda: bench.worker.running == 0, what="those in line are given up")
    assert len(api.started) == started


@pytest.mark.parametrize("concurrency", [3, None])
async def test_without_a_confirmed_commit_no_call_keeps_a_place_of_which_the_next_owner_does_not_know(
    concurrency: int | None,
) -> None:
    api = Api(limit=Limit("api", "100/s", concurrency=concurrency))
    api.may_end.clear()
    async with ToolBench(api.app).running() as bench:
        await bench.assign()
        bench.deliver(*(ask(offset) for offset in range(3)))
        await until(lambda: len(api.started) == 3, what="all have started")
        bench.group.refuses = True
        await bench.revoke()
        if concurrency is None:
            assert bench.worker.running == 3, "these hold nothing that is another's now"
            api.may_end.set()
        await until(lambda: bench.worker.running == 0, what="none runs")
    assert len(results(bench)) == (3 if concurrency is None else 0)


async def test_those_in_line_whose_places_a_commit_has_no_room_for_are_given_back() -> None:
    api = Api(limit=Limit("api", "5/s", concurrency=3, per="tenant"))
    async with ToolBench(api.app).running() as bench:
        await bench.assign()
        bench.deliver(*(call(n, "ask", {"n": n}, tenant=f"tenant-{n % 40}") for n in range(160)))
        await until(lambda: api.started, what="the first have started")
        await bench.revoke()
        told = over(bench)
        assert 0 < len(told) < 160
        await until(lambda: bench.worker.running == 0, what="those that stay have ended")
        await until(lambda: published_again(bench) | set(api.started) == told, what="each has started or lies anew")
    assert len(api.started) + len(published_again(bench)) == len(told)


async def test_a_lost_session_starts_nothing_more() -> None:
    api = Api("20/s")
    async with in_line(api) as bench:
        await bench.worker.revoked(frozenset({PLACE}), lost=True)
        started = len(api.started)
        await until(lambda: bench.worker.running == 0, what="those in line are given up")
    assert len(api.started) == started


async def test_a_partition_that_comes_back_goes_on_with_its_line() -> None:
    api = Api("50/s")
    async with ToolBench(api.app).running() as bench:
        calls = [ask(offset) for offset in range(40)]
        await bench.assign()
        bench.deliver(*calls)
        await until(lambda: len(api.started) >= 5, what="the first have started")
        await bench.revoke()
        await bench.assign()
        bench.deliver(*calls)
        await until(lambda: len(results(bench)) == 40, what="all have results")
    assert api.started == list(range(40))


@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
async def test_a_call_that_has_missed_its_home_is_sent_there(delivery: str) -> None:
    api = Api("5/s", delivery=delivery)
    (home,) = homes(api.limit.spec("q"), None, 8)
    assert home != PLACE.partition, "choose another name for the limit"
    bench = ToolBench(api.app, partitions=8)
    bench.group.stands[PLACE] = Committed(0, marks.write(0, marks.Marks(held=(("x", 1),))))
    async with bench.running():
        await bench.assign()
        bench.deliver(ask(0))
        await until(lambda: bench.sent.records, what="it is sent on")
        await until(lambda: bench.group.stands[PLACE].offset == 1, what="it is done with here")
    (sent,) = bench.sent.records
    assert (sent.topic, sent.partition, sent.key, sent.value) == (NAMESPACE.calls("q"), home, b"key", ask(0).value)
    assert sent.headers == ask(0).headers
    assert api.started == []


async def test_homes_are_others_once_partitions_were_added() -> None:
    api = Api("20/s", "d")
    few, more = (homes(api.limit.spec("q"), None, count) for count in (8, 64))
    assert PLACE.partition in set(few) - set(more), "choose another name for the limit"
    async with ToolBench(api.app, partitions=8).running() as bench:
        await bench.assign()
        bench.deliver(ask(0))
        await until(lambda: results(bench) == [0], what="it is at home")
        await bench.revoke()
        bench.group.count = 64
        await bench.assign()
        bench.deliver(ask(1))
        await until(lambda: len(bench.sent.records) == 2, what="it is sent on")
    assert bench.sent.records[-1].partition in more
    assert api.started == [0]


async def test_a_place_that_is_held_where_the_home_was_is_free_when_its_time_is_over() -> None:
    limits = (Limit(f"d-{n}", "20/s", concurrency=1) for n in range(99))
    api = Api(limit=next(limit for limit in limits if homes(limit.spec("q"), None, 8) == (PLACE.partition,)))
    budget = hashlib.blake2b(api.limit.name.encode(), digest_size=5).hexdigest()
    bench = ToolBench(api.app, partitions=8)
    held = marks.Marks(shares=(marks.ShareMark(budget, 0, 1, int(bench.clock.now) + 1),))
    bench.group.stands[Place(PLACE.topic, 3)] = Committed(0, marks.write(0, held))
    async with bench.running():
        await bench.assign()
        began = asyncio.get_running_loop().time()
        bench.deliver(ask(0))
        await until(lambda: api.started == [0], what="it starts")
    assert asyncio.get_running_loop().time() - began > 0.9


async def test_a_call_leaves_the_line_of_a_low_limit_at_its_deadline() -> None:
    api = Api("1/h")
    async with ToolBench(api.app).running() as bench:
        await bench.assign()
        late = [call(offset, "ask", {"n": offset}, deadline=bench.clock.now + 0.5) for offset in range(3)]
        bench.deliver(*late, call(3, "look", {"n": 3}))
        await until(lambda: over(bench) == {3}, what="the call without a limit is over")
        bench.clock.now += 1
        assert bench.worker.oldest_waiting_s == 1.0
        await until(lambda: over(bench) == {0, 1, 2, 3}, what="those whose time is over are, too")
        assert bench.worker.oldest_waiting_s == 0.0
    assert (api.started, results(bench)) == ([3], [3])


async def test_nothing_of_a_home_starts_before_its_first_commit() -> None:
    api = Api("100/s")
    async with ToolBench(api.app).running() as bench:
        bench.group.refuses = True
        await bench.assign()
        bench.deliver(ask(0), call(1, "look", {"n": 1}))
        await until(lambda: api.started == [1], what="what has no limit has started")
        bench.group.refuses = False
        await until(lambda: api.started == [1, 0], what="then the other one")
