"""What becomes of producers and their batches on a real Kafka, where our doubles could be wrong about aiokafka.

Responsible for: `KafkaAppender` and the producers that it makes and ends. Must never: run a role.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka.admin import NewTopic
from tests.support.kafka_admin import admin_of
from tests.support.raw import read_until
from tests.support.wait import until

from anabranch.codec import Outgoing
from anabranch.kafka.appender import KafkaAppender
from anabranch.kafka.link import Link
from anabranch.kafka.produce import producing
from anabranch.kafka.produce.producing import Batch, Producer
from anabranch.kafka.seam import Place
from anabranch.kafka.sent import Acked, Sent

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


def links_of(producer: Producer) -> Iterator[Link]:
    return (leader.link for leader in producer._leaders.values() if leader.link is not None)


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


async def test_whatever_breaks_the_connection_each_record_lies_there_once_and_in_order(
    kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is sent again with the same sequence number, whether or not the broker had it: so it is there once."""
    monkeypatch.setattr(producing, "AGAIN_S", 0.005)
    records, cuts = 3000, 0
    chance = random.Random(random.randrange(2**32))
    async with KafkaAppender.opened({"bootstrap_servers": kafka, "security_protocol": "PLAINTEXT"}, True) as opened:
        producer: Any = opened._producer
        sent: list[Sent] = []
        for number in range(records):
            sent.append(opened.append(Outgoing(topic, b"k", str(number).encode(), (), number % PARTITIONS)))
            if chance.random() < 0.1:
                await asyncio.sleep(0)
            if number % 200 == 0:
                await until(lambda: any(link.is_open for link in links_of(producer)), SOON_S, "it is connected")
                await asyncio.sleep(chance.random() * 0.01)  # into whatever is under way then
                next(links_of(producer)).abort()
                cuts += 1
        async with asyncio.timeout(SOON_S):
            acked = [await each for each in sent]
        assert opened._producer is producer, "none was given up"
    assert cuts == 15
    found = await read_until(kafka, topic, lambda there: len(there) >= records)
    for partition in range(PARTITIONS):
        values = [int(record.value) for record in found if record.partition == partition]
        assert values == list(range(partition, records, PARTITIONS))
    lies = {(record.partition, record.offset): int(record.value) for record in found}
    told = {(n % PARTITIONS, at.offset): n for n, at in enumerate(acked) if at.offset is not None}
    assert told.items() <= lies.items()


async def test_a_producer_that_is_stopped_with_batches_in_hand_writes_nothing_more(kafka: str, topic: str) -> None:
    """Else it would write what it has whenever the leader is back, long after its successor."""
    before = asyncio.all_tasks()
    producer = Producer({"bootstrap_servers": kafka}, idempotent=True)
    await producer.start()
    await producer.look_up(topic)
    told: list[Acked | Exception] = []

    def send(value: bytes) -> None:
        batch = Batch(Place(topic, 0), told.append)
        batch.append(Outgoing(topic, b"k", value))
        producer.send([batch])

    send(b"first")
    await until(lambda: bool(told), SOON_S, "it is written")
    cluster: Any = producer._client.cluster
    there = cluster.leader_for_partition
    cluster.leader_for_partition = lambda _: -1
    send(b"late")
    await producer.stop()
    cluster.leader_for_partition = there
    await until(lambda: asyncio.all_tasks() <= before, SOON_S, "nothing of it is at work")
    async with KafkaAppender.opened({"bootstrap_servers": kafka, "security_protocol": "PLAINTEXT"}, True) as opened:
        await opened.append(Outgoing(topic, b"k", b"successor", (), 0))
    found = await read_until(kafka, topic, lambda records: any(r.value == b"successor" for r in records))
    assert [record.value for record in found] == [b"first", b"successor"]
    assert len(told) == 1
