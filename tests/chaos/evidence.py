"""What Kafka holds in the end: the replies in the log, the calls in their queue, the answers, and the commits.

Responsible for: reading topics from their start as somebody who knows only docs/wire.md, and the groups' commits.
Must never: use our own workers or codec. Called by: `__main__.py`, when all is mended.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from tests.chaos.app import QUEUE
from tests.chaos.ledger import Answer, Committed, Logged, Published
from tests.support.kafka_admin import admin_of
from tests.support.wait import until

READ_S: Final = 120.0


async def logged(bootstrap: str, namespace: str) -> tuple[Logged, ...]:
    """Every `model.replied` of the run log."""
    records = await _all(bootstrap, f"{namespace}.agent.log")
    return tuple(_logged(record) for record in records if dict(record.headers).get("ce_type") == b"model.replied")


def _logged(record: Any) -> Logged:
    token, turn = json.loads(record.value)["content"][0]["text"], int(dict(record.headers)["ce_turn"])
    return Logged(token, record.key.decode(), turn, record.partition, record.offset, record.timestamp / 1000)


async def published(bootstrap: str, namespace: str) -> tuple[Published, ...]:
    """Every call of the queue."""
    records = await _all(bootstrap, f"{namespace}.tool.calls.{QUEUE}")
    return tuple(Published(dict(r.headers)["ce_callid"].decode(), r.partition, r.offset) for r in records)


async def answers(bootstrap: str, namespace: str) -> tuple[Answer, ...]:
    """Every record of `agent.responses`."""
    return tuple(_answer(record.value) for record in await _all(bootstrap, f"{namespace}.agent.responses"))


def _answer(value: bytes) -> Answer:
    body = json.loads(value)
    return Answer(body["run_id"], body["status"], body["output"] or "", hashlib.sha256(value).hexdigest())


async def all_answered(bootstrap: str, namespace: str, runs: set[str], deadline_s: float) -> None:
    """Wait until each of `runs` has an answer, or the time is up: what is missing the checker will say."""
    missing = set(runs)
    async with _consumer(bootstrap, f"{namespace}.agent.responses") as (consumer, _):
        try:
            async with asyncio.timeout(deadline_s):
                while missing:
                    for records in (await consumer.getmany(timeout_ms=200)).values():
                        missing -= {record.key.decode() for record in records}
        except TimeoutError:
            return


async def settled(bootstrap: str, namespace: str, deadline_s: float) -> tuple[Committed, ...]:
    """Where the groups stand, as soon as nothing is left to read, or when the time is up."""
    found: tuple[Committed, ...] = ()

    async def nothing_left() -> bool:
        nonlocal found
        found = await _committed(bootstrap, namespace)
        return all(place.offset == place.end or (place.offset is None and not place.end) for place in found)

    try:
        await until(nothing_left, deadline_s, "nothing is left to read")
    except AssertionError:
        return found
    return found


async def _committed(bootstrap: str, namespace: str) -> tuple[Committed, ...]:
    agents, tools = f"{namespace}.agents", f"{namespace}.tools.{QUEUE}"
    topics = dict.fromkeys(("agent.requests", "agent.requests.bulk", "agent.log"), agents)
    topics[f"tool.calls.{QUEUE}"] = tools
    found: list[Committed] = []
    async with admin_of(bootstrap) as admin:
        offsets = {group: await admin.list_consumer_group_offsets(group) for group in (agents, tools)}
    for short, group in topics.items():
        topic = f"{namespace}.{short}"
        async with _consumer(bootstrap, topic) as (_, ends):
            for place, end in sorted(ends.items()):
                at = offsets[group].get(place)
                offset = at.offset if at is not None and at.offset >= 0 else None
                found.append(Committed(group, topic, place.partition, offset, end))
    return tuple(found)


@asynccontextmanager
async def _consumer(bootstrap: str, topic: str) -> AsyncIterator[tuple[Any, dict[TopicPartition, int]]]:
    """One that reads a topic from its start, and where each partition ends now."""
    consumer: Any = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        await consumer.seek_to_beginning()
        yield consumer, await consumer.end_offsets(consumer.assignment())
    finally:
        await consumer.stop()


async def _all(bootstrap: str, topic: str) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(READ_S), _consumer(bootstrap, topic) as (consumer, ends):
        while any([await consumer.position(place) < end for place, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += records
    return sorted(found, key=lambda record: (record.partition, record.offset))
