"""What a tool worker has to have committed before it executes a call that is at most once, or has a serial key.

Responsible for: `ToolWorker`'s commits, against a subscription that only writes them down. Must never: run a broker.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, cast

import pytest
from tests.support import builders as b
from tests.support.desk import Outbox

from anabranch import App
from anabranch.config import ToolSettings
from anabranch.kafka.seam import Appender, Committed, Place, Subscription
from anabranch.messages import ReplyTopic, ToolCall
from anabranch.tools import marks
from anabranch.tools.executor import Executor
from anabranch.tools.lane import Lane
from anabranch.tools.progress import Progress
from anabranch.tools.serving import Bench, Job
from anabranch.tools.worker import ToolWorker
from anabranch.topics import Namespace

PLACE = Place("t.tool.calls.q", 0)
NOW, COMMIT_S = 100.0, 0.01
SOON_S = 10.0


class Commits:
    """In the place of a subscription: `last` is what stands in the group, confirmed or not; a `member` can commit."""

    def __init__(self) -> None:
        self.last: dict[Place, Committed] = {}
        self.confirms = self.member = True
        self.refused = asyncio.Event()

    async def commit(self, offsets: Mapping[Place, Committed]) -> bool:
        if not self.member:
            self.refused.set()
            return False
        self.last.update(offsets)
        return self.confirms

    def pause(self, place: Place) -> None: ...

    def resume(self, place: Place) -> None: ...


class Offsets:
    """In the place of a subscription: where the partition begins and ends, and that the group had committed at 10."""

    def __init__(self, known: marks.Marks, begin: int = 0, end: int = 20) -> None:
        self._committed, self._begin, self._end = Committed(10, marks.write(10, known)), begin, end
        self.sought = -1

    async def begins(self, places: Iterable[Place]) -> dict[Place, int]:
        return dict.fromkeys(places, self._begin)

    async def ends(self, places: Iterable[Place]) -> dict[Place, int]:
        return dict.fromkeys(places, self._end)

    async def committed(self, places: Iterable[Place]) -> dict[Place, Committed]:
        return dict.fromkeys(places, self._committed)

    def seek(self, place: Place, offset: int) -> None:
        self.sought = offset


def worker_with(held: Mapping[str, int]) -> tuple[ToolWorker, Lane, Commits]:
    """A worker that has taken the call at offset 0, and holds these serial keys for others."""
    app, clock = App("t"), lambda: NOW
    app.tool(queue="q", delivery="at_most_once")(refund)
    app.tool(queue="q", serial_key="account")(book)
    settings = ToolSettings()
    sent = cast(Appender, Outbox())
    bench = Bench(Namespace("t"), "w", app, "q", sent, Executor(settings, clock), settings, clock, 4)
    worker, commits, lane = ToolWorker(bench, COMMIT_S), Commits(), Lane(Progress(0), dict(held))
    worker.attach(cast(Subscription, commits))
    worker._lanes[PLACE] = lane
    lane.progress.take(0)
    return worker, lane, commits


async def refund(cents: int) -> str:
    """Refund."""
    return str(cents)


async def book(account: str) -> str:
    """Book."""
    return account


def job(worker: ToolWorker, tool: str = "refund") -> Job:
    call: Any = ToolCall(
        call_id="r/1.a/0", run_id="r", agent="a", tenant=None, tool=tool, input={}, dispatch=1,
        deadline=NOW + 60, idempotency_key="k", reply=ReplyTopic(b.LOG, 0),
    )  # fmt: skip
    return Job(b.Read(*PLACE, 0, 0, b"key", b""), PLACE, 0, call, "0", NOW, worker._tools[tool])


async def test_a_worker_that_stops_while_a_call_waits_for_its_commit_lets_others_act() -> None:
    worker, _, _ = worker_with({})
    worker._membership.stopping = True
    worker._commits._at_once.set()
    committing = asyncio.create_task(worker._commits.run())
    await asyncio.sleep(0)  # it hung here: whoever waits for what is set does not yield
    committing.cancel()


async def test_what_retention_has_eaten_of_a_queue_makes_nobody_forget_what_was_begun_above() -> None:
    worker, _, _ = worker_with({})
    eaten = Offsets(marks.Marks(finished=frozenset({11, 13}), begun=frozenset({14})), begin=12)
    worker._membership._subscription = cast(Subscription, eaten)
    await worker.take_over(frozenset({PLACE}))
    progress = worker._lanes[PLACE].progress
    assert eaten.sought == 12
    assert [progress.take(offset) for offset in range(12, 16)] == ["new", "known", "begun", "new"]


async def test_a_queue_that_ends_before_what_was_committed_is_read_from_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever is there may have been executed."""
    worker, _, _ = worker_with({})
    shorter = Offsets(marks.Marks(finished=frozenset({11, 13}), begun=frozenset({14})), end=5)
    worker._membership._subscription = cast(Subscription, shorter)
    await worker.take_over(frozenset({PLACE}))
    assert shorter.sought == 5
    assert [worker._lanes[PLACE].progress.take(offset) for offset in (5, 11, 14)] == ["new"] * 3
    assert "ends at 5, and calls up to 10 were finished" in caplog.text


async def test_what_runs_of_a_queue_that_was_created_anew_stands_for_no_call_of_the_new_one() -> None:
    worker, _, _ = worker_with({})
    for offset in (11, 14):
        running = job(worker)
        running.offset = offset
        running.record = b.Read(*PLACE, offset, 0, b"key", b"")
        worker._calls.intake.take(running)
        worker._calls.goes_on(running)
    anew = Offsets(marks.Marks(finished=frozenset({10})), end=12)
    worker._membership._subscription = cast(Subscription, anew)
    await worker.take_over(frozenset({PLACE}))
    lane, (kept, gone) = worker._lanes[PLACE], sorted(worker._calls.running(), key=lambda job: job.offset)
    assert worker.running == 2
    assert [lane.progress.take(offset) for offset in (11, 12, 14)] == ["known", "new", "new"]
    worker._calls.finish(gone)
    assert lane.progress.is_open(14)
    worker._calls.finish(kept)
    assert not lane.progress.is_open(11)
    worker._calls.intake.free(gone)
    worker._calls.intake.free(kept)
    assert worker._calls.intake.used == 0


@pytest.mark.parametrize(("end", "then"), [(8, ["new"] * 6), (13, ["known", "begun", "new", "new"])])
async def test_of_a_queue_that_has_lost_calls_only_what_is_there_is_over_and_keys_are_still_held(
    end: int, then: list[str]
) -> None:
    worker, _, _ = worker_with({})
    lost = Offsets(marks.Marks(frozenset({11, 13}), frozenset({12, 14}), (("key", int(NOW) + 60),)), end=end)
    worker._membership._subscription = cast(Subscription, lost)
    await worker.take_over(frozenset({PLACE}))
    lane = worker._lanes[PLACE]
    assert lost.sought == min(10, end)
    first = 11 if end > 10 else end
    assert [lane.progress.take(offset) for offset in range(first, first + len(then))] == then
    assert lane.held == {"key": int(NOW) + 60}


async def test_a_call_is_begun_only_when_the_commit_says_so() -> None:
    worker, lane, commits = worker_with({})
    worker._commits.metadata_kept = True
    committing = asyncio.create_task(worker._commits.run())
    assert await asyncio.wait_for(worker._calls._may_begin(lane, job(worker)), SOON_S)
    assert marks.read(0, commits.last[PLACE].metadata).begun == {0}
    committing.cancel()


async def test_a_call_is_not_begun_while_its_mark_does_not_fit_into_the_commit() -> None:
    """A commit that leaves the partition out confirms nothing of it."""
    worker, lane, commits = worker_with({f"{number:016x}": int(NOW) + 300 for number in range(200)})
    worker._commits.metadata_kept = True
    committing = asyncio.create_task(worker._commits.run())
    beginning = asyncio.create_task(worker._calls._may_begin(lane, job(worker)))
    _, waiting = await asyncio.wait({beginning}, timeout=20 * COMMIT_S)
    assert waiting
    assert commits.last == {}
    lane.held.clear()  # their time is up
    assert await asyncio.wait_for(beginning, SOON_S)
    assert marks.read(0, commits.last[PLACE].metadata).begun == {0}
    committing.cancel()


async def test_a_commit_that_may_stand_unconfirmed_is_followed_by_another_even_if_it_says_the_same_as_before() -> None:
    worker, lane, commits = worker_with({})
    await worker._commits._commit()
    before = commits.last[PLACE]
    commits.confirms = False
    lane.held["key"] = int(NOW) + 60
    await worker._commits._commit()
    assert commits.last[PLACE] != before
    commits.confirms = True
    lane.held.clear()
    await worker._commits._commit()
    assert commits.last[PLACE] == before


async def test_a_serial_call_begins_only_when_the_group_still_counts_us_in() -> None:
    """A worker that was frozen has calls of the key waiting, which its successor executes by now."""
    worker, lane, commits = worker_with({})
    worker._commits._committed[PLACE] = Committed(0, "")  # nothing new is to be said
    commits.member = False
    committing = asyncio.create_task(worker._commits.run())
    beginning = asyncio.create_task(worker._calls._may_begin(lane, job(worker, "book")))
    await asyncio.wait_for(commits.refused.wait(), SOON_S)
    assert not beginning.done()
    worker.let_go()
    assert not await asyncio.wait_for(beginning, SOON_S)
    committing.cancel()


async def test_a_serial_call_leaves_no_mark_for_it_may_be_executed_again() -> None:
    worker, lane, commits = worker_with({})
    committing = asyncio.create_task(worker._commits.run())
    assert await asyncio.wait_for(worker._calls._may_begin(lane, job(worker, "book")), SOON_S)
    assert commits.last[PLACE] == Committed(0, "")
    committing.cancel()
