"""Reads given partitions of Kafka without a group: the registry, a client's inbox, the log for the commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError

from anabranch.codec import Record
from anabranch.errors import BrokerError
from anabranch.kafka.login import unreachable
from anabranch.kafka.refusals import refusal
from anabranch.kafka.seam import Place, Start
from anabranch.kafka.sessions import keep_sessions


class KafkaReader:
    """See `seam.Reader`."""

    def __init__(self, consumer: AIOKafkaConsumer, places: Sequence[Place]) -> None:
        self._consumer = consumer
        self._places = [TopicPartition(*place) for place in places]
        self._positions: dict[Place, int] = {}

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, arguments: dict[str, Any], places: Sequence[Place], start: Start
    ) -> AsyncIterator[KafkaReader]:
        consumer = AIOKafkaConsumer(
            **arguments,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=4 * 1024 * 1024,
            isolation_level="read_committed",
        )
        keep_sessions(consumer)
        try:
            await _start(consumer, arguments)
            reader = cls(consumer, places)
            await reader._begin(start)
            yield reader
        except (KafkaError, OSError) as error:
            where, topic = arguments["bootstrap_servers"], places[0].topic
            refused = refusal(error, arguments, "Read", topic)
            raise refused or BrokerError(f"cannot read {topic} from Kafka at {where}: {error}") from error
        finally:
            # As a task: if the broker is gone, `stop` lets the CancelledError of a fetch escape as if it were ours.
            await asyncio.wait([asyncio.ensure_future(consumer.stop())])

    async def _begin(self, start: Start) -> None:
        self._consumer.assign(self._places)
        for topic in {place.topic for place in self._places}:  # else the offsets of a forbidden one are asked for long
            await self._consumer._client._wait_on_metadata(topic)
        offsets = await self._offsets(start)
        for place, offset in offsets.items():
            self._consumer.seek(place, offset)
            self._positions[Place(place.topic, place.partition)] = offset

    async def _offsets(self, start: Start) -> dict[TopicPartition, int]:
        if isinstance(start, Mapping):
            return {TopicPartition(*place): offset for place, offset in start.items()}
        if start == "begin":
            return dict(await self._consumer.beginning_offsets(self._places))
        ends = dict(await self._consumer.end_offsets(self._places))
        if start == "end":
            return ends
        found = await self._consumer.offsets_for_times({place: max(0, int(start * 1000)) for place in self._places})
        return {place: at.offset if (at := found.get(place)) is not None else ends[place] for place in self._places}

    async def read(self, timeout_s: float) -> Sequence[Record]:
        batches = await self._consumer.getmany(timeout_ms=int(timeout_s * 1000))
        records = [record for batch in batches.values() for record in batch]
        for record in records:
            self._positions[Place(record.topic, record.partition)] = record.offset + 1
        if not records:
            for place in self._places:
                self._positions[Place(place.topic, place.partition)] = await self._consumer.position(place)
        return records

    async def ends(self) -> dict[Place, int]:
        ends = await self._consumer.end_offsets(self._places)
        return {Place(place.topic, place.partition): offset for place, offset in ends.items()}

    def position(self, place: Place) -> int:
        return self._positions[place]


async def _start(consumer: AIOKafkaConsumer, arguments: Mapping[str, Any]) -> None:
    try:
        await consumer.start()
    except KafkaConnectionError as error:
        raise await unreachable(arguments, error) from error
