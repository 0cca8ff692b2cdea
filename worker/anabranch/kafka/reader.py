"""Reads given partitions of Kafka without a group: the registry, a client's inbox, the log for the commands."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError

from anabranch.codec import Record
from anabranch.errors import BrokerError
from anabranch.kafka.fetch.fetching import LOOK_S, SILENT_S, Fetching
from anabranch.kafka.login import unreachable
from anabranch.kafka.refusals import refusal
from anabranch.kafka.seam import Place, Start
from anabranch.tasks import bounded, happens

log = logging.getLogger(__name__)

STOP_S: Final = 5.0
"""How long a broker may take to let us go: one that is frozen says nothing, and TLS waits for its word."""

AT_ONCE: Final = 10_000
"""Records in one reading, about: a batch that was compressed may have millions."""


class KafkaReader:
    """See `seam.Reader`."""

    def __init__(self, consumer: AIOKafkaConsumer, places: Sequence[Place]) -> None:
        self._consumer = consumer
        self._wheres = [TopicPartition(*place) for place in places]
        self._positions: dict[Place, int] = {}
        self._news = asyncio.Event()
        self._fetching = Fetching(consumer, self._news.set)

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, arguments: dict[str, Any], places: Sequence[Place], start: Start
    ) -> AsyncIterator[KafkaReader]:
        consumer = AIOKafkaConsumer(
            **arguments,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            request_timeout_ms=int(SILENT_S * 1000),
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=4 * 1024 * 1024,
            isolation_level="read_committed",
        )
        reader = cls(consumer, places)
        try:
            await _start(consumer, arguments)
            await reader._begin(start)
            yield reader
        except (KafkaError, OSError) as error:
            where, topic = arguments["bootstrap_servers"], places[0].topic
            refused = refusal(error, arguments, "Read", topic)
            raise refused or BrokerError(f"cannot read {topic} from Kafka at {where}: {error}") from error
        finally:
            await reader._fetching.end()
            if not await bounded(consumer.stop(), STOP_S):
                log.warning("a reader of %s did not stop within %g s", places[0].topic, STOP_S)

    async def _begin(self, start: Start) -> None:
        self._fetching.keep_to_resets()
        self._consumer.assign(self._wheres)
        for topic in {where.topic for where in self._wheres}:  # else the offsets of a forbidden one are asked for long
            await self._consumer._client._wait_on_metadata(topic)
        for where, offset in (await self._offsets(start)).items():
            self._consumer.seek(where, offset)
            self._positions[Place(*where)] = offset
        self._fetching.begin()

    async def _offsets(self, start: Start) -> dict[TopicPartition, int]:
        if isinstance(start, Mapping):
            return {TopicPartition(*place): offset for place, offset in start.items()}
        if start == "begin":
            return dict(await self._consumer.beginning_offsets(self._wheres))
        ends = dict(await self._consumer.end_offsets(self._wheres))
        if start == "end":
            return ends
        found = await self._consumer.offsets_for_times({where: max(0, int(start * 1000)) for where in self._wheres})
        return {where: at.offset if (at := found.get(where)) is not None else end for where, end in ends.items()}

    async def read(self, timeout_s: float) -> Sequence[Record]:
        until = time.monotonic() + timeout_s
        while True:
            self._news.clear()
            self._fetching.check()
            self._fetching.look()
            records = self._taken()
            left_s = until - time.monotonic()
            if records or left_s <= 0:
                break
            await happens(self._news, min(left_s, LOOK_S))
        if not records:  # what is no record is passed over, too
            for place in self._positions:
                if (position := self._fetching.position(place)) is not None:
                    self._positions[place] = position
        return records

    def _taken(self) -> list[Any]:
        """All that was fetched, or so much of it."""
        records: list[Any] = []
        while len(records) < AT_ONCE and (taken := self._fetching.take(AT_ONCE)) is not None:
            place, more = taken
            self._positions[place] = more[-1].offset + 1
            records += more
        return records

    async def ends(self) -> dict[Place, int]:
        ends = await self._consumer.end_offsets(self._wheres)
        return {Place(*where): offset for where, offset in ends.items()}

    def position(self, place: Place) -> int:
        return self._positions[place]


async def _start(consumer: AIOKafkaConsumer, arguments: Mapping[str, Any]) -> None:
    try:
        await consumer.start()
    except KafkaConnectionError as error:
        raise await unreachable(arguments, error) from error
