"""An owner of a partition on a desk: what it appends is written down, and acknowledged when the test says so.

Responsible for: a log in a list, an appender under control, a thinker that only collects jobs.
Must never: run a broker, a model or a clock of its own.
Called by: tests of `Owner` and `Admission`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from anabranch import log_events as e
from anabranch.agent.admission.room import Room
from anabranch.agent.admission.saturation import Saturation
from anabranch.agent.commit import Commit
from anabranch.agent.deadlines import Moment
from anabranch.agent.model.calling import ModelCalls
from anabranch.agent.model.jobs import Job
from anabranch.agent.model.thinking import Thinker
from anabranch.agent.owner import Hooks, Owner
from anabranch.agent.prompt.offer import Offers
from anabranch.agent.state import Nexts
from anabranch.agent.station import Station
from anabranch.agent.telemetry.traces import AgentTraces
from anabranch.clockwork import Clockwork
from anabranch.codec import Outgoing, decode, encode, header
from anabranch.config import AgentSettings
from anabranch.kafka.seam import Appender
from anabranch.kafka.sent import Acked, Sent
from anabranch.registry import Registry
from anabranch.security.signing import NO_SIGNER, Signer
from anabranch.spans import Traces
from anabranch.store import NO_STORE, Store
from anabranch.topics import Namespace
from tests.support import builders as b

NAMESPACE = Namespace("t")


class Outbox:
    """An appender: everything is in `records`, and nothing is acknowledged before `ack` or `fail`."""

    def __init__(self) -> None:
        self.records: list[Outgoing] = []
        self.sent: list[Sent] = []

    def append(self, record: Outgoing, once: bool = False) -> Sent:
        sent = Sent()
        self.records.append(record)
        self.sent.append(sent)
        return sent

    @property
    def outstanding(self) -> int:
        return sum(not sent.done() for sent in self.sent)

    async def flush(self, timeout_s: float) -> int:
        return self.outstanding

    def to(self, topic: str) -> list[Outgoing]:
        return [record for record in self.records if record.topic == topic]

    async def ack(self, topic: str | None = None) -> None:
        """The broker has all that is outstanding (of this topic)."""
        await self._settle(topic, None)

    async def fail(self, error: Exception, topic: str | None = None) -> None:
        await self._settle(topic, error)

    async def _settle(self, topic: str | None, error: Exception | None) -> None:
        for record, sent in zip(list(self.records), list(self.sent), strict=True):
            if topic in (None, record.topic):
                sent.succeed(Acked(0)) if error is None else sent.fail(error)
        await asyncio.sleep(0)


@dataclass
class Jobs:
    """In the place of a thinker: `due` are the model calls that were submitted and not cancelled, and `begun` those
    that a test has begun.
    """

    due: list[Job] = field(default_factory=list)
    cancelled: list[Job] = field(default_factory=list)
    used: dict[Job, e.ModelDiscarded] = field(default_factory=dict)
    begun: set[Job] = field(default_factory=set)

    def submit(self, job: Job) -> None:
        self.due.append(job)

    def has_begun(self, job: Job) -> bool:
        return job in self.begun

    def spent(self, job: Job) -> e.ModelDiscarded | None:
        return self.used.get(job)

    def cancel(self, job: Job, why: str = "") -> None:
        self.cancelled.append(job)
        if job in self.due:
            self.due.remove(job)


@dataclass
class Clock:
    """`set_back` is by how many seconds somebody has set it back: the steady one knows nothing of that."""

    now: float = 10.0
    set_back: float = 0.0

    def steady(self) -> float:
        return self.now + self.set_back


class Log:
    """The partition's log, which outlives its owners."""

    def __init__(self) -> None:
        self.records: list[b.Read] = []

    @property
    def end(self) -> int:
        return len(self.records)

    def write(self, *events: e.Event, at: float = 1.0) -> None:
        for event in events:
            self.take(encode(event, NAMESPACE.log, 0, "elsewhere"), at)

    def take(self, sent: Outgoing, at: float = 1.0) -> None:
        self.records.append(b.as_read(sent, self.end, at))


_DESKS = itertools.count(1)


class Desk:
    """An owner with what it needs. Make it inside of a running loop."""

    def __init__(
        self,
        log: Log | None = None,
        settings: AgentSettings | None = None,
        partitions: int = 1,
        store: Store = NO_STORE,
        signer: Signer = NO_SIGNER,
        traces: Traces | None = None,
    ) -> None:
        self.log, self.sent, self.jobs, self.clock = log or Log(), Outbox(), Jobs(), Clock()
        self.registry, self.lives = Registry(), 0
        self.registry.add([b.tool()], [b.agent()])
        ids = itertools.count(1000 * next(_DESKS))  # those of another process are others
        clockwork = Clockwork(
            lambda: self.clock.now, lambda: f"id{next(ids)}", random.Random(1), steady=self.clock.steady
        )
        settings = settings or AgentSettings()
        self.station = Station(
            NAMESPACE, "w", cast(Appender, self.sent), cast(Thinker, self.jobs), self.registry, settings, {}, clockwork,
            Room(settings.max_open_bytes), Saturation(self.registry, settings.hold_after_s, lambda: self.clock.now),
            partitions, response_partitions=4, store=store, signer=signer,
            traces=None if traces is None else AgentTraces(traces, NAMESPACE, clockwork.now),
        )  # fmt: skip
        self.time_up: list[Moment] = []
        self.alive, self.commits_asked_for = True, 0
        hooks = Hooks(
            self._count_live, lambda _, key: self.time_up.append(key), lambda: self.alive, self._count_commits
        )
        self.owner = Owner(0, self.station, ModelCalls(0, self.station, Offers(self.registry)), hooks)
        self._landed = 0
        self.unheard: list[tuple[Sent, Acked]] = []  # what lies in the log, and has not been acknowledged

    def _count_live(self, owner: Owner) -> None:
        self.lives += 1

    def _count_commits(self) -> None:
        self.commits_asked_for += 1

    def commit(self) -> Commit:
        """What the owner would commit is committed."""
        commit = self.owner.commit(True)
        assert commit is not None, "it is silent"
        self.owner.committed(commit.low)
        return commit

    def begin(self, commit: Commit | None = None, end: int | None = None) -> Desk:
        """The partition is assigned."""
        position = self.owner.begin(commit, 0, self.log.end if end is None else end, Nexts(0, 0))
        self.owner.caught_up(position)
        return self

    def read(self, up_to: int | None = None) -> Desk:
        """What lies in the log is read."""
        self.owner.fold(self.log.records[self.owner.state.position : up_to])
        return self

    def ring(self) -> None:
        """Its clocks have moved on."""
        for timers in (self.owner._alarms._deadlines, self.owner._alarms._spans):
            timers._due()

    @property
    def armed(self) -> dict[Moment, float]:
        """What is waited for, and until when."""
        return {**self.owner._alarms._deadlines._armed, **self.owner._alarms._spans._armed}

    def land(self, at: float = 1.0) -> Desk:
        """What was appended to the log since the last time lies in it now; it is not read yet."""
        fresh = range(self._landed, len(self.sent.records))
        self._landed = len(self.sent.records)
        for number in fresh:
            if self.sent.records[number].topic == NAMESPACE.log:
                self.unheard.append((self.sent.sent[number], Acked(self.log.end, int(at * 1000))))
                self.log.take(self.sent.records[number], at)
        return self

    def hear(self, first: int | None = None, timed: bool = True) -> Desk:
        """The broker says where what has landed lies (or only the `first` of it), and, if `timed`, since when."""
        heard = self.unheard[:first]
        del self.unheard[:first]
        for sent, acked in heard:
            sent.succeed(acked if timed else Acked(acked.offset))
        return self

    def write(self, *events: e.Event, at: float = 1.0) -> Desk:
        """Others append, and it is read."""
        self.log.write(*events, at=at)
        return self.read()

    # --- what it did ---------------------------------------------------------------------------------------

    @property
    def appended(self) -> list[e.Event]:
        return [decode(b.as_read(record, 0)) for record in self.sent.to(NAMESPACE.log)]

    @property
    def called(self) -> list[str]:
        """The ids of the calls that were published."""
        sent = self.sent.to(NAMESPACE.calls("q"))
        return [header(record.headers, "ce_callid") or "" for record in sent]

    @property
    def answers(self) -> list[Any]:
        return [orjson.loads(record.value or b"") for record in self.sent.to(NAMESPACE.responses)]


def replies(desk: Desk, event: e.Event) -> None:
    """The model call that is due is answered."""
    job = desk.jobs.due.pop()
    assert job.prepare() is not None
    job.append(event)
