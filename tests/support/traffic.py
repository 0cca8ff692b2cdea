"""Records that are written and read all the while, over our ways to Kafka: by an appender, a group's member, a reader.

Responsible for: knowing what was written, acknowledged and read, and that each is there once and in order. Only a
producer that was given up, as it is when all brokers are away for too long, leaves copies to its successor.
Must never: break anything. Called by: the tests of the cluster.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from anabranch.codec import Record
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.seam import Appender, Committed, Place, Reader
from anabranch.kafka.sent import Sent
from anabranch.tasks import happens
from tests.support.log_worlds import KafkaWorld, Member, joined, record_for
from tests.support.wait import until

PACE_S: Final = 0.02
"""Between two records of a partition."""


def told_by(records: Iterable[Any], copies: bool) -> list[bytes]:
    """Their values; with `copies` each where it first is."""
    values = [record.value for record in records]
    return list(dict.fromkeys(values)) if copies else values


class Traffic:
    """Of each partition the numbers 0, 1, 2 and so on. Made by `going`, which owns its tasks."""

    def __init__(self, topic: str, partitions: int, appender: Appender, reader: Reader, meters: RoleMeters) -> None:
        self.topic, self._meters = topic, meters
        self.places = [Place(topic, number) for number in range(partitions)]
        self.member = Member(begin=dict.fromkeys(self.places, 0))
        self.read: dict[Place, list[Record]] = {}
        self.slowest_s = 0.0
        self._appender, self._reader = appender, reader
        self._sent: dict[Place, list[Sent]] = {place: [] for place in self.places}
        self._ended = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def going(cls, world: KafkaWorld, topic: str, partitions: int) -> AsyncIterator[Traffic]:
        places = [Place(topic, number) for number in range(partitions)]
        broker = world.broker()
        async with broker.appender() as appender, broker.reader(places, "begin") as reader:
            traffic = cls(topic, partitions, appender, reader, world.meters)
            async with joined(world, traffic.member, [topic], world.namespace), asyncio.TaskGroup() as tasks:
                tasks.create_task(traffic._write())
                reading = tasks.create_task(traffic._read())
                await traffic.goes_on(20.0)
                try:
                    yield traffic
                finally:
                    traffic._ended.set()
                    reading.cancel()

    async def _write(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            for place, sent in self._sent.items():
                record = self._appender.append(record_for(place, b"%d" % len(sent)))
                record.add_done_callback(lambda _, began=began: self._acknowledged(began))  # type: ignore[misc]
                sent.append(record)
            await happens(self._ended, PACE_S)

    def _acknowledged(self, began: float) -> None:
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    async def _read(self) -> None:
        while True:
            for record in await self._reader.read(0.2):
                self.read.setdefault(Place(record.topic, record.partition), []).append(record)

    @property
    def written(self) -> int:
        return sum(len(sent) for sent in self._sent.values())

    async def goes_on(self, within_s: float) -> None:
        """What is written from now on is acknowledged, and read by both, in each partition."""
        wanted = {place: len(sent) for place, sent in self._sent.items()}
        await self._has_come(lambda place: wanted[place] + 1, within_s)

    async def commits(self, within_s: float) -> None:
        """The member can commit."""
        place = self.places[0]
        at = {place: Committed(len(self.member.got[place]), "so far")}
        await until(lambda: self.member.subscription.commit(at), within_s, "a commit")
        assert await self.member.subscription.committed([place]) == at

    async def end(self, within_s: float) -> None:
        """Write no more; all that was written is acknowledged, and read by both."""
        self._ended.set()
        await self._has_come(lambda place: len(self._sent[place]), within_s)

    async def _has_come(self, count: Callable[[Place], int], within_s: float) -> None:
        def has_come(place: Place) -> bool:
            acked, most = self._sent[place], count(place)
            got, read = self.member.got.get(place, ()), self.read.get(place, ())
            return min(len(acked), len(got), len(read)) >= most and acked[most - 1].is_written

        try:
            await until(lambda: all(has_come(place) for place in self.places), within_s, "the traffic to go on")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self}") from None

    def is_all(self, there: Iterable[Any]) -> bool:
        """Whether all that was written is among these records."""
        return len({(record.partition, record.value) for record in there}) >= self.written

    def check(self, there: Iterable[Any]) -> None:
        """`there` is what a client of somebody else's finds: each record once, where it was acknowledged, in order, and
        both of ours were given the same."""
        copies = any(self._meters.producer_replacements.copied().values())
        lies: dict[Place, list[Any]] = {place: [] for place in self.places}
        for record in there:
            lies[Place(record.topic, record.partition)].append(record)
        for place, records in lies.items():
            values = [b"%d" % number for number in range(len(self._sent[place]))]
            assert told_by(records, copies) == values, f"{place} as it lies there"
            assert told_by(self.member.got[place], copies) == values, f"{place} as the member got it"
            assert told_by(self.read[place], copies) == values, f"{place} as it was read"
            at = {record.offset: record.value for record in records}
            told = [sent.result().offset for sent in self._sent[place]]
            wrong = [(n, offset) for n, offset in enumerate(told) if offset is not None and at.get(offset) != b"%d" % n]
            assert not wrong, f"{place} as it was acknowledged"

    def __repr__(self) -> str:
        parts = [
            f"{place.partition}: {len(sent)} written, {sum(each.is_written for each in sent)} acknowledged, "
            f"{len(self.member.got.get(place, ()))} got, {len(self.read.get(place, ()))} read"
            for place, sent in self._sent.items()
        ]
        return f"{'; '.join(parts)}; the slowest took {self.slowest_s:.1f} s"
