"""What becomes of producers and their batches on a real Kafka, where our doubles could be wrong about aiokafka.

Responsible for: `KafkaAppender` and the producers that it makes and ends. Must never: run a role.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic
from tests.support.kafka_admin import admin_of
from tests.support.raw import read_until
from tests.support.wait import until

from anabranch.codec import Outgoing
from anabranch.kafka import appender
from anabranch.kafka.appender import KafkaAppender
from anabranch.kafka.sent import Sent

SOON_S = 30.0
PARTITIONS = 6


@pytest.fixture
async def topic(kafka: str, namespace: str) -> str:
    name = f"{namespace}.log"
    new: Any = NewTopic
    async with admin_of(kafka) as admin:
        created = await admin.create_topics([new(name, PARTITIONS, 1)])
    assert not any(error[1] for error in created.topic_errors), created
    return name


async def test_what_comes_while_a_fresh_producer_looks_the_topic_up_lies_where_it_is_acknowledged(
    kafka: str, topic: str
) -> None:
    """Every producer has to, the first time; meanwhile more comes for partitions that wait for their turn."""
    acked: list[tuple[int, int | None]] = []
    for _ in range(10):
        async with KafkaAppender.opened({"bootstrap_servers": kafka, "security_protocol": "PLAINTEXT"}, True) as opened:
            sent: list[Sent] = []
            for _ in range(10):
                places = range(PARTITIONS)
                sent += [opened.append(Outgoing(topic, b"k", str(len(sent) + n).encode(), (), n)) for n in places]
                await asyncio.sleep(0)
            async with asyncio.timeout(SOON_S):
                acked += [(number, (await each).offset) for number, each in enumerate(sent)]
    found = await read_until(kafka, topic, lambda records: len(records) >= len(acked))
    lies = {(record.partition, record.offset): record.value for record in found}
    assert lies == {(number % PARTITIONS, offset): str(number).encode() for number, offset in acked}


async def test_a_producer_that_cannot_stop_is_ended_and_writes_nothing_more(
    kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would write what it has whenever the leader is back, long after its successor."""
    monkeypatch.setattr(appender, "STOP_S", 0.5)
    before = asyncio.all_tasks()
    producer: Any = AIOKafkaProducer(bootstrap_servers=kafka, enable_idempotence=True)
    await producer.start()
    await producer.send_and_wait(topic, b"first", partition=0)
    there = producer.client.cluster.leader_for_partition
    monkeypatch.setattr(producer.client.cluster, "leader_for_partition", lambda _: -1)
    batch = producer.create_batch()
    batch.append(timestamp=None, key=b"k", value=b"late")
    sent = await producer.send_batch(batch, topic, partition=0)
    await appender._stop(producer)
    monkeypatch.setattr(producer.client.cluster, "leader_for_partition", there)
    assert there(TopicPartition(topic, 0)) is not None
    assert sent.exception() is not None
    await until(lambda: asyncio.all_tasks() <= before, SOON_S, "nothing of it is at work")
