"""Calls that end, or are sent away, in the midst of a revoke: while it is told what runs, and while that is committed.

Responsible for: what `ToolWorker.give_up` makes of what happens meanwhile. Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import orjson
import pytest
from tests.support.bench import PLACE, Group, Results, ToolBench, call
from tests.support.virtual import virtually
from tests.support.wait import until

from anabranch import App, Limit, RateLimited
from anabranch.codec import Outgoing, header
from anabranch.fields import Delivery
from anabranch.kafka.seam import Committed, Place
from anabranch.kafka.sent import Acked, Sent
from anabranch.limits import Left, Pacer
from anabranch.tools import marks
from anabranch.tools.marks import Marks
from anabranch.tools.shares import ROOM

KEEPS_METADATA = Committed(0, marks.write(0, Marks(held=(("x", 1),))))


class SlowGroup(Group):
    """Its commits take until the test says so, once it is `slow`."""

    def __init__(self) -> None:
        super().__init__()
        self.stands[PLACE] = KEEPS_METADATA
        self.slow, self.answers = False, asyncio.Event()

    async def commit(self, offsets: Mapping[Place, Committed]) -> bool:
        if self.slow:
            await self.answers.wait()
        return await super().commit(offsets)


class SlowHandOffs(Results):
    """Hand-offs are acknowledged when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Sent] = []

    def append(self, record: Outgoing, once: bool = False) -> Sent:
        if header(record.headers, "ce_type") != "calls.handed_off":
            return super().append(record, once)
        self.told.append(sent := Sent())
        return sent

    def acknowledge(self) -> None:
        for sent in self.told:
            sent.succeed(Acked(0))

    @property
    def published_again(self) -> int:
        return sum(record.topic == PLACE.topic for record in self.records)


class Bank:
    """A tool behind a limit, whose API asks each call for a pause, when the test says so."""

    def __init__(self, delivery: Delivery, limit: Limit) -> None:
        self.app = App("t")
        self.started: list[int] = []
        self.may_end = asyncio.Event()
        self.app.tool(queue="q", limit=limit, delivery=delivery)(self.pay)

    async def pay(self, n: int) -> str:
        """Pay."""
        self.started.append(n)
        await self.may_end.wait()
        raise RateLimited(after=0)


def read_again(bench: ToolBench) -> Marks | None:
    """What is said of the first call to whoever reads it again; None if nobody does."""
    at = bench.group.stands[PLACE]
    found = marks.read(at.offset, at.metadata)
    return None if at.offset > 0 or 0 in found.finished else found


@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
@pytest.mark.parametrize("meanwhile", ["it is told", "it is committed"])
async def test_a_call_that_wants_to_be_tried_again_in_the_midst_of_a_revoke_is_not_forgotten(
    meanwhile: str, delivery: Delivery
) -> None:
    """Its home is given up by then. It may be read again or published again, but not both."""
    bank, sent, group = Bank(delivery, Limit("bank", "100/s")), SlowHandOffs(), SlowGroup()
    async with ToolBench(bank.app, group, sent=sent).running() as bench:
        await bench.assign()
        bench.deliver(call(0, "pay", {"n": 0}))
        await until(lambda: bank.started == [0], what="it runs")
        group.slow = True
        revoking = asyncio.create_task(bench.revoke())
        await until(lambda: sent.told, what="it is told that it goes on here")
        if meanwhile == "it is committed":
            sent.acknowledge()
            await until(lambda: not bench.worker._lanes[PLACE].progress.open, what="a commit says that it is over")
        bank.may_end.set()
        await until(lambda: bench.worker.running == 0, what="it is not here any more")
        sent.acknowledge()
        group.answers.set()
        await revoking
        if meanwhile == "it is told":
            found = read_again(bench)
            assert found is not None
            assert (found.begun, sent.published_again) == (frozenset(), 0)
        else:
            await until(lambda: sent.published_again, what="it is published again")
            assert (read_again(bench), sent.published_again) == (None, 1)
    assert bank.started == [0]


async def test_one_of_at_most_once_that_is_cancelled_in_a_revoke_is_not_executed_again() -> None:
    """A commit has no room to say that it holds a place of its limit."""
    bank, sent, group = Bank("at_most_once", Limit("bank", "1000/s", 1, "tenant")), SlowHandOffs(), SlowGroup()
    calls = [call(n, "pay", {"n": n}, tenant=f"tenant-{n}") for n in range(ROOM + 4)]
    async with ToolBench(bank.app, group, sent=sent).running() as bench:
        await bench.assign()
        bench.deliver(*calls)
        await until(lambda: len(bank.started) == len(calls), what="all run")
        revoking = asyncio.create_task(bench.revoke())
        await until(lambda: bench.worker.running == ROOM, what="some are cancelled")
        sent.acknowledge()
        await revoking
        await bench.assign()
        bench.deliver(*calls)
        await until(lambda: len(sent.returned) == 4, what="they have results")
    outcomes = [header(record.headers, "ce_outcome") for record in sent.records]
    assert (outcomes, len(bank.started)) == (["unknown"] * 4, len(calls))


def hand_offs(sent: Results) -> list[tuple[list[str], float]]:
    """Of which calls, and for how long, one after the other."""
    told = [record for record in sent.records if header(record.headers, "ce_type") == "calls.handed_off"]
    return [(orjson.loads(r.value or b"")["calls"], float(header(r.headers, "ce_for") or "nan")) for r in told]


async def test_nobody_waits_for_a_call_that_is_cancelled_after_it_was_handed_off() -> None:
    """The commit of the first revoke says that it is over, so nobody reads it again."""
    bank, sent, group = Bank("at_least_once", Limit("bank", "100/s", 1)), Results(), SlowGroup()
    async with ToolBench(bank.app, group, sent=sent).running() as bench:
        await bench.assign()
        bench.deliver(call(0, "pay", {"n": 0}), call(1, "pay", {"n": 1}))
        await until(lambda: bank.started == [0], what="it runs")
        await bench.revoke()
        assert read_again(bench) is None
        handed_off = len(hand_offs(sent))
        await bench.assign()
        group.refuses = True
        await bench.revoke()
        await until(lambda: bench.worker.running == 0, what="it is cancelled")
    *again, last = hand_offs(sent)[handed_off:]
    assert [ids for ids, time_s in again if time_s > 0] == [["r/1.a/0"]]
    assert last == (["r/1.a/0"], 0.0)


def test_while_the_last_commit_is_under_way_no_other_says_what_it_does() -> None:
    """Where the last one is refused, calls that hold a place are cancelled, to be read again: another that stands would
    say that they are over.
    """
    bank, group = Bank("at_least_once", Limit("bank", "100/s", 1)), Group()

    async def revoke() -> int:
        count, commit = [0], group.commit

        async def slowly(offsets: Mapping[Place, Committed]) -> bool:
            count[0] += 1
            await asyncio.sleep(1.0)
            return await commit(offsets)

        async with ToolBench(bank.app, group).running() as bench:
            await bench.assign()
            bench.deliver(call(0, "pay", {"n": 0}))
            await until(lambda: bank.started == [0], what="it runs")
            group.commit = slowly  # type: ignore[method-assign]
            await bench.revoke()
            return count[0]

    assert virtually(revoke) == 1


async def test_a_call_that_is_cancelled_and_read_again_is_not_made_by_its_owner_too() -> None:
    bank, sent, group = Bank("at_least_once", Limit("bank", "100/s", 1)), Results(), SlowGroup()
    async with ToolBench(bank.app, group, sent=sent).running() as bench:
        await bench.assign()
        bench.deliver(call(0, "pay", {"n": 0}))
        await until(lambda: bank.started == [0], what="it runs")
        group.refuses = True
        await bench.revoke()
        await until(lambda: bench.worker.running == 0, what="it is cancelled")
        assert read_again(bench) is not None
    assert all(time_s > 0 for _, time_s in hand_offs(sent))


async def test_what_is_left_of_a_home_is_reckoned_once_however_many_calls_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The group waits for a revoke: of a thousand tenants with a call each it took a minute."""
    bank, reckoned, left = Bank("at_least_once", Limit("bank", "1000/s", 1, "tenant")), [0], Pacer.left

    def counting(pacer: Pacer) -> Left:
        reckoned[0] += 1
        return left(pacer)

    monkeypatch.setattr(Pacer, "left", counting)
    async with ToolBench(bank.app).running() as bench:
        await bench.assign()
        bench.deliver(*(call(n, "pay", {"n": n}, tenant=f"tenant-{n}") for n in range(60)))
        await until(lambda: len(bank.started) == 60, what="all run")
        await bench.revoke()
    assert reckoned == [60]
