"""The log's double with a member of a group that is a process of its own, in virtual time.

Responsible for: what several tests of the double need. Called by: tests of the memory log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from anabranch.kafka.memory.cluster import MemoryBroker
from anabranch.kafka.seam import Place, Subscription
from anabranch.topics import TopicSpec
from tests.support.log_worlds import Member

LOG = Place("log", 0)
SPECS = [TopicSpec("log", 2, {"message.timestamp.type": "LogAppendTime"}), TopicSpec("requests", 2, {})]


def in_turn(*answers: bool) -> Callable[[], bool]:
    """These answers one after the other, then False."""
    left = iter(answers)
    return lambda: next(left, False)


def values(broker: MemoryBroker, place: Place = LOG) -> list[bytes | None]:
    return [record.value for record in broker.records(place)]


async def settled(condition: Callable[[], object]) -> None:
    """Let virtual time pass until `condition()` holds."""
    async with asyncio.timeout(3600):
        while not condition():  # noqa: ASYNC110  # time is virtual: this waits for nothing else
            await asyncio.sleep(0.001)


class Process:
    """A member of group `g`, subscribed and reading, in a process of its own."""

    def __init__(self, cluster: MemoryBroker, member: Member, topics: Iterable[str] = ("log",)) -> None:
        self.broker, self.member, self._topics = cluster.another(), member, list(topics)
        self._leaving = asyncio.Event()
        self._task = asyncio.create_task(self._live())

    async def _live(self) -> None:
        async with self.broker.subscribe(self._topics, "g", self.member) as subscription:
            self.member.subscribed(subscription)
            running = asyncio.create_task(subscription.run())
            await self._leaving.wait()
            subscription.stop()
            await running

    @property
    def subscription(self) -> Subscription:
        return self.member.subscription

    async def begun(self) -> Process:
        await settled(lambda: self._task.done() or self.member._subscription is not None)
        return self

    async def end(self) -> None:
        self._leaving.set()
        await self._task
