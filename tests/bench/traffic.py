"""How many bytes were written to the topics of a namespace: by reading them back.

A record counts as its key, its value, the names and values of its headers, and 70 bytes of framing: what Kafka's format
adds to a record that has a batch for itself. Records that share a batch take less on disk, by up to 61 bytes each.
Replication and the group's commits are not counted. (aiokafka cannot ask the broker for the size of its logs.)

Responsible for: ends of logs, and the sizes of what lies between.
Must never: read while something is being measured.
Called by: `measure.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from tests.support.kafka_admin import admin_of

FRAMING_BYTES: Final = 70
READ_S: Final = 60.0

Ends = dict[TopicPartition, int]


async def ends(bootstrap: str, namespace: str) -> Ends:
    """The end of every partition of every topic of `namespace`."""
    places = await _places(bootstrap, f"{namespace}.")
    async with _consumer(bootstrap) as consumer:
        return dict(await consumer.end_offsets(places))


async def written(bootstrap: str, since: Ends, until: Ends) -> int:
    """The bytes of the records from `since` up to `until`. Raises TimeoutError if they cannot be read."""
    grown = [place for place, end in until.items() if end > since.get(place, 0)]
    async with _consumer(bootstrap) as consumer, asyncio.timeout(READ_S):
        consumer.assign(grown)
        for place in grown:
            consumer.seek(place, since.get(place, 0))
        total, left = 0, set(grown)
        while left:
            for place, records in (await consumer.getmany(timeout_ms=100)).items():
                total += sum(_size(record) for record in records if record.offset < until[place])
            left = {place for place in left if await consumer.position(place) < until[place]}
        return total


async def _places(bootstrap: str, prefix: str) -> list[TopicPartition]:
    async with admin_of(bootstrap) as admin:
        names = [name for name in await admin.list_topics() if name.startswith(prefix)]
        topics = await admin.describe_topics(names)
    return [TopicPartition(topic["topic"], each["partition"]) for topic in topics for each in topic["partitions"]]


def _size(record: Any) -> int:
    headers = sum(len(name) + len(value) for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers + FRAMING_BYTES


@asynccontextmanager
async def _consumer(bootstrap: str) -> AsyncIterator[Any]:
    consumer: Any = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=100
    )
    async with consumer:
        yield consumer
