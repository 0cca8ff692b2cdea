"""Kafka as somebody uses it who knows nothing but docs/wire.md: raw records, in and out.

Responsible for: producing any bytes to a topic, and reading a topic from its start until something is there.
Must never: use our own client, codec or workers. Called by: integration tests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

DEADLINE_S = 30.0

Record = Any  # aiokafka's own; its clients have no types
Headers = Sequence[tuple[str, bytes]]


async def produce(
    bootstrap: str,
    topic: str,
    value: bytes | None,
    *,
    key: bytes | None = None,
    partition: int | None = None,
    headers: Headers = (),
) -> tuple[int, int]:
    """Write one record; returns its partition and offset."""
    sizes = {"max_request_size": 2_000_000, "max_batch_size": 2_000_000}
    producer: Any = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", **sizes)
    await producer.start()
    try:
        if value is None and key is None:
            return await _produce_nothing(producer, topic, partition or 0, headers)
        sent = await producer.send_and_wait(topic, value, key, partition=partition, headers=list(headers))
        return sent.partition, sent.offset
    finally:
        await producer.stop()


async def _produce_nothing(producer: Any, topic: str, partition: int, headers: Headers) -> tuple[int, int]:
    """A record without key and value, which other clients send; aiokafka does only as a batch."""
    batch = producer.create_batch()
    batch.append(key=None, value=None, timestamp=None, headers=list(headers))
    batch.close()
    sent = await (await producer.send_batch(batch, topic, partition=partition))
    return sent.partition, sent.offset


async def produce_bomb(bootstrap: str, topic: str, size: int, partition: int = 0, codec: str = "zstd") -> int:
    """Write a batch of two records, compressed to next to nothing, that unpack to twice `size`. Returns its offset."""
    producer: Any = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", compression_type=codec, max_batch_size=3 * size
    )
    await producer.start()
    try:
        batch = producer.create_batch()
        for _ in range(2):
            assert batch.append(key=b"bomb", value=bytes(size), timestamp=None) is not None
        batch.close()
        sent = await (await producer.send_batch(batch, topic, partition=partition))
        return int(sent.offset)
    finally:
        await producer.stop()


async def read_until(
    bootstrap: str, topic: str, enough: Callable[[list[Record]], bool], deadline_s: float = DEADLINE_S
) -> list[Record]:
    """The records of a topic from its start, as soon as `enough` says that they are enough."""
    consumer: Any = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    found: list[Record] = []
    try:
        async with asyncio.timeout(deadline_s):
            while not enough(found):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
    except TimeoutError:
        shown = [(record.key, dict(record.headers), (record.value or b"")[:300]) for record in found]
        raise AssertionError(f"{topic} had not enough after {deadline_s:g} s: {shown}") from None
    finally:
        await consumer.stop()
    return found


async def answer_of(bootstrap: str, topic: str, run_id: str) -> dict[str, Any]:
    """The first answer of a run in `agent.responses`, by key."""
    key = run_id.encode()
    records = await read_until(bootstrap, topic, lambda found: any(record.key == key for record in found))
    body: dict[str, Any] = json.loads(next(record.value for record in records if record.key == key))
    return body


def reason_of(letter: Record) -> str:
    """Why a record became a dead letter."""
    reason: bytes = dict(letter.headers)["ce_reason"]
    return reason.decode()


async def everything(bootstrap: str, topic: str) -> list[Record]:
    """All that lies in a topic."""
    consumer: Any = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        ends = await consumer.end_offsets(list(consumer.assignment()))
        found: list[Record] = []
        while len(found) < sum(ends.values()):
            for batch in (await consumer.getmany(timeout_ms=500)).values():
                found += batch
        return found
    finally:
        await consumer.stop()
