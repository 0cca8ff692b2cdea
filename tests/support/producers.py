"""Producers that share a broker which only plays its part, and hold the appender to one batch of a partition at a time.

Responsible for: what such a broker writes, refuses and does not say; records for it, and waiting for them.
Must never: open a connection. Called by: the unit tests of `KafkaAppender`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError, UnknownTopicOrPartitionError

from anabranch.codec import Outgoing
from anabranch.kafka import appender
from anabranch.kafka.appender import KafkaAppender
from anabranch.kafka.produce.producing import Batch
from anabranch.kafka.sent import Acked, Sent

SOON_S = 10.0
TOPIC, OTHER = "t.agent.log", "t.tool.calls.q"
Where = tuple[str, int]


class Broker:
    """`written` are its logs. `known` opens the metadata; `away` are partitions without a leader; `refuses` a value."""

    def __init__(self) -> None:
        self.written: dict[Where, list[bytes]] = defaultdict(list)
        self.known = asyncio.Event()
        self.known.set()
        self.away: set[Where] = set()
        self.refuses: bytes | None = None
        self.unknown_topics: set[str] = set()
        self.unreachable = 0  # how many questions for a topic find nobody to be asked
        self.batches = 0
        self.producers: list[Producer] = []

    def make(self, arguments: dict[str, Any], idempotent: bool) -> Producer:
        self.producers.append(Producer(self))
        return self.producers[-1]


class Packed(Batch):
    """A batch that remembers its values, and takes no more than `room`."""

    room = 1000

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.values: list[bytes] = []

    def append(self, record: Outgoing) -> bool:
        if self.count == self.room:
            return False
        self.values.append(record.value or b"")
        return super().append(record)


class Producer:
    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.held: dict[Where, Packed] = {}
        self.stopped = self.is_throttled = False

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.stopped = True

    def partitions(self, topic: str) -> int | None:
        return 4 if self.broker.known.is_set() and topic not in self.broker.unknown_topics else None

    async def look_up(self, topic: str, anew: bool = False) -> int:
        await self.broker.known.wait()
        if topic in self.broker.unknown_topics:
            raise UnknownTopicOrPartitionError
        if self.broker.unreachable:
            self.broker.unreachable -= 1
            raise KafkaTimeoutError
        return 4

    async def is_missing(self, topic: str) -> bool:
        return topic in self.broker.unknown_topics

    def send(self, batches: Iterable[Any]) -> None:
        for batch in batches:
            where = batch.place
            assert batch.values, "an empty batch: a broker refuses it"
            assert where not in self.held, "a second batch of a partition waits for the first"
            self.broker.batches += 1
            self.held[where] = batch
            batch.is_out = True
            if where not in self.broker.away:
                asyncio.get_running_loop().call_soon(self.arrive, where)

    def arrive(self, where: Where, error: Exception | None = None) -> None:
        """The broker has the batch, or refuses it, or says `error` although it has written it."""
        batch = self.held.pop(where, None)
        if batch is None or self.stopped:
            return  # it has arrived already, or nobody hears of it
        if self.broker.refuses in batch.values:
            batch.then(MessageSizeTooLargeError())
            return
        offset = len(self.broker.written[where])
        self.broker.written[where] += batch.values
        batch.then(Acked(offset, 1234) if error is None else error)


def prepare(monkeypatch: pytest.MonkeyPatch) -> Broker:
    """The broker of all appenders that are opened from now on."""
    broker = Broker()
    monkeypatch.setattr(appender, "Producer", broker.make)
    monkeypatch.setattr(appender, "Batch", Packed)
    return broker


@asynccontextmanager
async def appending() -> AsyncIterator[KafkaAppender]:
    async with KafkaAppender.opened({"bootstrap_servers": "nowhere"}, idempotent=True) as opened:
        yield opened


def record(value: int | str, partition: int | None = 0, topic: str = TOPIC, key: bytes = b"k") -> Outgoing:
    return Outgoing(topic, key, str(value).encode(), partition=partition)


async def all_of(sent: list[Sent]) -> list[Acked]:
    async with asyncio.timeout(SOON_S):
        return [await each for each in sent]


async def turns(count: int = 10) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)
