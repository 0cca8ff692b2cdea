"""A Kafka cluster in memory: the double that passes the same conformance suite as Kafka.

Responsible for: `MemoryBroker`, one process's view of a cluster, and what a test does to it: cut a process off, expel
a member, trim a partition, look at what lies where.
Must never: use a thread, a clock or chance of its own. Clock, faults and random generator are injected and all waiting
is asyncio's, so that a simulation on a loop with virtual time repeats exactly.
Called by: tests and simulations, in place of `kafka/connect.KafkaBroker`.

    broker = MemoryBroker(namespace.specs(["io"]))    # a cluster, and the first process's view of it
    other = broker.another(Faults(lost_ack=...))      # a second process, with troubles of its own
    other.cut()                                       # from now on nothing passes: a crash, unless `mend` follows
"""

from __future__ import annotations

import time
from asyncio import TimerHandle, get_running_loop
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Final, Self

from anabranch.kafka import comparison
from anabranch.kafka.memory.append import MemoryAppender
from anabranch.kafka.memory.group import Group, Timing
from anabranch.kafka.memory.link import Faults, Link
from anabranch.kafka.memory.log import DEFAULT_RECORD_BYTES, MemoryLog, MemoryRecord
from anabranch.kafka.memory.read import MemoryReader, MemorySubscription
from anabranch.kafka.seam import Committed, Lack, Listener, Place, Start
from anabranch.topics import DAY_MS, TopicSpec
from anabranch.wording import counted

__all__ = ["Faults", "MemoryBroker", "MemoryRecord", "MemorySubscription", "Timing"]

CLOSE_S: Final = 5.0
"""How long an appender that is closed waits for its last acknowledgements."""
DEFAULTS: Final = {
    "cleanup.policy": "delete",
    "retention.ms": str(7 * DAY_MS),
    "max.message.bytes": str(DEFAULT_RECORD_BYTES),
    "message.timestamp.type": "CreateTime",
}


@dataclass(slots=True)
class _Cluster:
    """What all processes share."""

    log: MemoryLog
    timing: Timing
    metadata: bool
    random: Random | None
    groups: dict[str, Group] = field(default_factory=dict)

    def group(self, name: str) -> Group:
        if name not in self.groups:
            self.groups[name] = Group(self.log, self.timing, self.metadata, self.random)
        return self.groups[name]


class MemoryBroker:
    """See `Broker`. Appenders, subscriptions and readers are those of one process, and share its fate.

    `clock` gives epoch seconds. Without `metadata`, commits keep none, like those of the embedded broker. With
    `random`, batches, turns and the order of a group's members are drawn from it.
    """

    def __init__(
        self,
        specs: Iterable[TopicSpec] = (),
        *,
        clock: Callable[[], float] = time.time,
        metadata: bool = True,
        timing: Timing | None = None,
        random: Random | None = None,
        faults: Faults | None = None,
    ) -> None:
        cluster = _Cluster(MemoryLog(clock), timing or Timing(), metadata, random)
        for spec in specs:
            cluster.log.create(spec)
        self._enter(cluster, faults)

    def another(self, faults: Faults | None = None) -> Self:
        """Another process's view of the same cluster."""
        other = type(self).__new__(type(self))
        other._enter(self._cluster, faults)
        return other

    def _enter(self, cluster: _Cluster, faults: Faults | None) -> None:
        self._cluster, self._log = cluster, cluster.log
        self._link = Link(faults or Faults(), cluster.timing.request_s)
        self._appenders: dict[MemoryAppender, None] = {}
        self._readers: dict[MemoryReader, None] = {}
        self._subscriptions: dict[MemorySubscription, None] = {}
        self._sessions: list[TimerHandle] = []

    # --- the broker -------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def appender(self) -> AsyncIterator[MemoryAppender]:
        appender = MemoryAppender(self._log, self._link)
        self._appenders[appender] = None
        try:
            yield appender
            await appender.flush(CLOSE_S if self._link.is_whole else 0.0)
        finally:
            appender.close()
            del self._appenders[appender]

    @asynccontextmanager
    async def subscribe(
        self, topics: Sequence[str], group: str, listener: Listener, newer: Sequence[str] = ()
    ) -> AsyncIterator[MemorySubscription]:
        """As with aiokafka, the first `assigned` comes before this has been entered.

        Raises `TopicsError` for a topic that does not exist.
        """
        await self._link.pass_over()
        topics = [*topics, *newer]  # all members of the double know the same topics
        for topic in topics:
            self._log.topic(topic)
        subscription = MemorySubscription(
            self._log, self._link, self._cluster.group(group), topics, listener, self._cluster.random
        )
        self._subscriptions[subscription] = None
        try:
            async with subscription.attended():
                yield subscription
        finally:
            subscription.close()
            self._drop_if_gone(subscription)

    @asynccontextmanager
    async def reader(self, places: Sequence[Place], start: Start) -> AsyncIterator[MemoryReader]:
        await self._link.pass_over()
        reader = MemoryReader(self._log.partitions(places), self._link, start, self._cluster.random)
        self._readers[reader] = None
        try:
            yield reader
        finally:
            reader.close()
            del self._readers[reader]

    async def partitions(self, topic: str) -> int:
        await self._link.pass_over()
        return len(self._log.topic(topic).partitions)

    async def lacks(self, specs: Sequence[TopicSpec]) -> list[Lack]:
        await self._link.pass_over()
        return comparison.lacks(specs, self._seen())

    async def apply(self, specs: Sequence[TopicSpec]) -> list[str]:
        await self._link.pass_over()
        done = [line for spec in specs for line in self._apply(spec, specs)]
        if done:
            for group in self._cluster.groups.values():
                if group.members:
                    group.rebalance()
        return done

    def _drop_if_gone(self, subscription: MemorySubscription) -> None:
        """Forget one that has left. One that was closed behind a cut has yet to."""
        if subscription.closed and self._link.is_whole:
            self._subscriptions.pop(subscription, None)

    def _seen(self) -> comparison.Cluster:
        def seen(partitions: int, settings: Mapping[str, str]) -> comparison.Seen:
            return comparison.Seen(partitions, 1, configs=comparison.Configs({**DEFAULTS, **settings}, settings))

        topics = self._log.topics.items()
        return comparison.Cluster(1, {name: seen(len(topic.partitions), topic.settings) for name, topic in topics})

    def _apply(self, spec: TopicSpec, specs: Sequence[TopicSpec]) -> list[str]:
        cluster = self._seen()
        if spec.name not in cluster.topics:
            count = comparison.partitions_to_create(spec, specs, cluster)
            self._log.create(TopicSpec(spec.name, count, spec.settings))
            return [f"created {spec.name} with {counted(count, 'partition')}"]
        topic, seen = self._log.topics[spec.name], cluster.topics[spec.name]
        done = []
        if more := comparison.partitions_to_add(spec, specs, cluster):
            topic.grow(spec.partitions)
            done.append(f"added {counted(more, 'partition')} to {spec.name}, which now has {spec.partitions}")
        for key, value in comparison.changes(spec, seen, new=False).items():
            done.append(f"set {key} of {spec.name} to {value} (was {topic.settings.get(key, DEFAULTS.get(key))})")
            topic.settings[key] = value
        return done

    # --- what tests do ----------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Nothing of this process passes any more; its members are expelled after the session timeout."""
        self._link.cut()
        loop, session_s = get_running_loop(), self._cluster.timing.session_s
        self._sessions += [loop.call_later(session_s, self.expel, member) for member in self._subscriptions]

    def mend(self) -> None:
        """Undo `cut`: what waited goes on, and members learn what has become of them."""
        for session in self._sessions:
            session.cancel()
        self._sessions.clear()
        self._link.mend()
        for appender in self._appenders:
            appender.send_on()
        for reader in self._readers:
            reader.reconnect()
        for member in list(self._subscriptions):
            member.reconnect()
            self._drop_if_gone(member)

    def expel(self, member: MemorySubscription) -> None:
        """Take `member` out of its group, as if its session were over. It learns of it with its next contact."""
        member.group.expel(member)

    def members(self, group: str) -> list[MemorySubscription]:
        """All members of `group`, of every process, in the order in which they joined."""
        members = self._cluster.group(group).members
        return [member for member in members if isinstance(member, MemorySubscription)]

    def commits(self, group: str) -> Mapping[Place, Committed]:
        """What `group` has committed."""
        return self._cluster.group(group).commits

    def records(self, place: Place) -> Sequence[MemoryRecord]:
        """What lies in `place`."""
        partition = self._log.partition(place)
        return partition.read(partition.begin, partition.end)

    def trim(self, place: Place, offset: int) -> None:
        """Forget the records of `place` below `offset`, as retention does."""
        self._log.partition(place).trim(offset)
