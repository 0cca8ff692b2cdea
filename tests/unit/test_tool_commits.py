"""What a tool worker has to have committed before it executes an at-most-once call.

Responsible for: `ToolWorker`'s commits, against a subscription that only writes them down. Must never: run a broker.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from tests.support import builders as b
from tests.support.desk import Sent

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
    """In the place of a subscription: every commit is confirmed, and `last` is what stands in the group."""

    def __init__(self) -> None:
        self.last: dict[Place, Committed] = {}

    async def commit(self, offsets: Mapping[Place, Committed]) -> bool:
        self.last.update(offsets)
        return True

    def pause(self, place: Place) -> None: ...

    def resume(self, place: Place) -> None: ...


def worker_with(held: Mapping[str, int]) -> tuple[ToolWorker, Lane, Commits]:
    """A worker that has taken the call at offset 0, and holds these serial keys for others."""
    app, clock = App("t"), lambda: NOW
    app.tool(queue="q", delivery="at_most_once")(refund)
    settings = ToolSettings()
    sent = cast(Appender, Sent())
    bench = Bench(Namespace("t"), "w", app, "q", sent, Executor(settings, clock), settings, clock, 4)
    worker, commits, lane = ToolWorker(bench, COMMIT_S), Commits(), Lane(Progress(0), dict(held))
    worker.attach(cast(Subscription, commits))
    worker._lanes[PLACE] = lane
    lane.progress.take(0)
    return worker, lane, commits


async def refund(cents: int) -> str:
    """Refund."""
    return str(cents)


def job() -> Job:
    call: Any = ToolCall(
        call_id="r/1.a/0", run_id="r", agent="a", tenant=None, tool="refund", input={"cents": 1}, dispatch=1,
        deadline=NOW + 60, idempotency_key="k", reply=ReplyTopic(b.LOG, 0),
    )  # fmt: skip
    return Job(b.Read(*PLACE, 0, 0, b"r/1.a/0", b""), call, "0", NOW, None)


async def test_a_call_is_begun_only_when_the_commit_says_so() -> None:
    worker, lane, commits = worker_with({})
    committing = asyncio.create_task(worker._commits.run())
    assert await asyncio.wait_for(worker._is_begun(lane, job()), SOON_S)
    assert marks.read(0, commits.last[PLACE].metadata).begun == {0}
    committing.cancel()


async def test_a_call_is_not_begun_while_its_mark_does_not_fit_into_the_commit() -> None:
    """A commit that leaves the partition out confirms nothing of it."""
    worker, lane, commits = worker_with({f"{number:016x}": int(NOW) + 300 for number in range(200)})
    committing = asyncio.create_task(worker._commits.run())
    beginning = asyncio.create_task(worker._is_begun(lane, job()))
    _, waiting = await asyncio.wait({beginning}, timeout=20 * COMMIT_S)
    assert waiting
    assert commits.last == {}
    lane.held.clear()  # their time is up
    assert await asyncio.wait_for(beginning, SOON_S)
    assert marks.read(0, commits.last[PLACE].metadata).begun == {0}
    committing.cancel()
