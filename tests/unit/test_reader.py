"""A reader without a group takes what was fetched, and nothing is fetched ahead of it but once."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import TopicAuthorizationFailedError
from tests.support.fetches import Broker, batch, prepare

from anabranch.kafka.fetch import fetching
from anabranch.kafka.reader import KafkaReader
from anabranch.kafka.seam import Place

A, B = Place("log", 0), Place("log", 1)
LONG_S = 20.0
FORBIDDEN = 29


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()

    async def linked(client: object, node_id: int, timeout_s: float) -> Broker:
        return broker

    monkeypatch.setattr(fetching, "linked", linked)
    return broker


@pytest.fixture
async def reader(broker: Broker) -> AsyncIterator[KafkaReader]:
    new_consumer = AIOKafkaConsumer
    consumer = prepare(new_consumer(isolation_level="read_committed"), {A: 1, B: 1})
    reader = KafkaReader(consumer, [A, B])
    await reader._begin({A: 0, B: 5})
    yield reader
    await reader._fetching.end()


async def test_it_reads_all_that_was_fetched_and_from_there_on(reader: KafkaReader, broker: Broker) -> None:
    assert (await broker.request()).fetched == {A: 0, B: 5}
    broker.answer((A, 0, batch(0, 1000)), (B, 0, batch(5)))
    assert not broker.is_asked, "not before it was read"
    read = await reader.read(LONG_S)
    assert [record.offset for record in read if record.partition == A.partition] == [*range(1000)]
    assert [record.offset for record in read if record.partition == B.partition] == [5]
    assert (reader.position(A), reader.position(B)) == (1000, 6)
    assert (await broker.request()).fetched == {A: 1000, B: 6}


async def test_it_waits_for_records_no_longer_than_asked(reader: KafkaReader, broker: Broker) -> None:
    await broker.request()
    assert await reader.read(0) == []
    assert await reader.read(0.001) == []
    assert reader.position(B) == 5


async def test_its_position_moves_past_what_is_no_record(reader: KafkaReader, broker: Broker) -> None:
    await broker.request()
    broker.answer((A, 0, batch(0, 3, producer=5)), aborted=[(5, 0)])
    assert await reader.read(0.001) == []
    assert reader.position(A) == 3


async def test_what_is_forbidden_is_raised_where_it_is_read(reader: KafkaReader, broker: Broker) -> None:
    await broker.request()
    broker.answer((B, FORBIDDEN, b""))
    with pytest.raises(TopicAuthorizationFailedError):
        await reader.read(LONG_S)
