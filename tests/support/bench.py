"""A tool worker on a bench: its group is a dictionary, and what it appends is acknowledged at once.

Responsible for: a subscription that delivers what the test says, commits that are kept, results in a list.
Must never: run a broker, or decide what the worker does. Called by: tests of `ToolWorker`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

from anabranch import App
from anabranch.bodies import whole
from anabranch.codec import Outgoing, header
from anabranch.config import ToolSettings
from anabranch.fields import Lane
from anabranch.kafka.seam import Appender, Committed, Place, Subscription
from anabranch.kafka.sent import Acked, Sent
from anabranch.messages import ReplyTopic, ToolCall
from anabranch.spans import Traces
from anabranch.store import NO_STORE, Store
from anabranch.tasks import alongside
from anabranch.tools.executor import Executor
from anabranch.tools.serving import Bench
from anabranch.tools.traces import ToolTraces
from anabranch.tools.worker import ToolWorker
from anabranch.topics import Namespace
from tests.support import builders as b
from tests.support.desk import Clock
from tests.support.wait import until

NAMESPACE = Namespace("t")
PLACE = Place(NAMESPACE.calls("q"), 0)


class Group:
    """What is committed for the queue's group; `refuses` commits when it is told to. All offsets begin at 0, and end
    at `end`. Unless it is `anew`, the partition was somebody's before.
    """

    end = 1_000_000

    def __init__(self, anew: bool = False) -> None:
        self.stands: dict[Place, Committed] = {} if anew else {PLACE: Committed(0, "")}
        self.sought: dict[Place, int] = {}
        self.refuses = False
        self.alive = True
        self.paused: set[Place] = set()
        self.count = 1  # partitions of the queue

    async def commit(self, offsets: Mapping[Place, Committed]) -> bool:
        if not self.refuses:
            self.stands.update(offsets)
        return not self.refuses

    async def committed(self, places: Iterable[Place]) -> dict[Place, Committed]:
        return {place: self.stands[place] for place in places if place in self.stands}

    async def begins(self, places: Iterable[Place]) -> dict[Place, int]:
        return dict.fromkeys(places, 0)

    async def ends(self, places: Iterable[Place]) -> dict[Place, int]:
        return dict.fromkeys(places, self.end)

    async def partitions(self, topic: str) -> int:
        return self.count

    def seek(self, place: Place, offset: int) -> None:
        self.sought[place] = offset
        self.paused.discard(place)

    def pause(self, place: Place) -> None:
        self.paused.add(place)

    def resume(self, place: Place) -> None:
        self.paused.discard(place)


class Results:
    """An appender that has acknowledged everything already."""

    def __init__(self) -> None:
        self.records: list[Outgoing] = []

    def append(self, record: Outgoing, once: bool = False) -> Sent:
        self.records.append(record)
        sent = Sent()
        sent.succeed(Acked(len(self.records)))
        return sent

    @property
    def outstanding(self) -> int:
        return 0

    async def flush(self, timeout_s: float) -> int:
        return 0

    @property
    def returned(self) -> list[str]:
        """The ids of the calls that have a result."""
        kinds = [(header(r.headers, "ce_type"), header(r.headers, "ce_callid") or "") for r in self.records]
        return [call_id for kind, call_id in kinds if kind == "tool.returned"]


class ToolBench:
    """One tool worker of queue `q`, and the partition `PLACE` of it. `calls` outlive workers, like a topic."""

    def __init__(
        self,
        app: App,
        group: Group | None = None,
        worker_id: str = "w",
        partitions: int = 1,
        settings: ToolSettings | None = None,
        traces: Traces | None = None,
        store: Store = NO_STORE,
        sent: Results | None = None,
    ) -> None:
        self.group, self.sent, self.clock = group or Group(), sent or Results(), Clock(100.0)
        self.group.count = partitions
        settings = settings or ToolSettings()
        now = lambda: self.clock.now  # noqa: E731
        self.executor = Executor(settings, now)
        appender = cast(Appender, self.sent)
        told = None if traces is None else ToolTraces(traces, "q")
        bench = Bench(
            NAMESPACE, worker_id, app, "q", appender, self.executor, settings, now, partitions, store=store, traces=told
        )
        self.worker = ToolWorker(bench, commit_s=0.01)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ToolBench]:
        self.worker.attach(cast(Subscription, self.group))
        try:
            async with alongside(self.worker.run(), "worker"):
                yield self
                self.worker.end()
        finally:
            self.executor.close()

    async def assign(self, *places: Place) -> None:
        """The partitions (`PLACE`, unless said otherwise) are assigned, and their commits have been read."""
        wanted = frozenset(places or {PLACE})
        self.group.sought.clear()
        self.worker.assigned(wanted)
        await until(lambda: wanted <= self.group.sought.keys(), what="the partitions are taken over")

    async def revoke(self) -> None:
        await self.worker.revoked(frozenset({PLACE}), lost=False)

    def deliver(self, *records: b.Read) -> None:
        """What lies at or above the position is read."""
        by_place: dict[Place, list[b.Read]] = {}
        for record in records:
            by_place.setdefault(Place(record.topic, record.partition), []).append(record)
        for place, read in by_place.items():
            self.worker.records(place, [record for record in read if record.offset >= self.group.sought[place]])


def call(
    offset: int,
    tool: str,
    arguments: dict[str, Any] | None = None,
    *,
    key: str = "key",
    run_id: str = "r",
    tenant: str | None = None,
    partition: int = 0,
    at_ms: int = 0,
    trace: str | None = None,
    lane: Lane | None = None,
    deadline: float = 1e6,
) -> b.Read:
    """A call as it lies in the queue."""
    body = ToolCall(
        call_id=f"{run_id}/1.a{partition or ''}/{offset}", run_id=run_id, agent="a", tool=tool, input=arguments or {},
        dispatch=1, deadline=deadline, idempotency_key=f"k{offset}", reply=ReplyTopic(b.LOG, 0), tenant=tenant,
        lane=lane,
    )  # fmt: skip
    headers = [("ce_life", b"0"), *([("traceparent", trace.encode())] if trace is not None else [])]
    return b.Read(PLACE.topic, partition, offset, at_ms, key.encode(), whole(body), tuple(headers))
