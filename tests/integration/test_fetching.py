"""What a real broker answers to our fetches: sessions, transactions, compression, a log that was cut, large records.

Responsible for: what the unit tests' fake of a broker takes for granted. Must never: need more than one broker. Called
by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete
from tests.support.kafka_admin import admin_of
from tests.support.log_worlds import KafkaWorld, Member, joined, topic
from tests.support.wait import until

from anabranch.kafka.fetch.sessions import Session
from anabranch.kafka.pump import KafkaSubscription
from anabranch.kafka.reader import KafkaReader
from anabranch.kafka.seam import Place, Reader

SOON_S = 15.0
_producer: Any = AIOKafkaProducer


@pytest.fixture
def world(kafka: str, namespace: str) -> KafkaWorld:
    return KafkaWorld(kafka, namespace)


@asynccontextmanager
async def producing(bootstrap: str, **arguments: Any) -> AsyncIterator[Any]:
    async with _producer(bootstrap_servers=bootstrap, acks="all", **arguments) as producer:
        yield producer


async def write(producer: Any, place: Place, *values: bytes) -> None:
    for value in values:
        await producer.send_and_wait(place.topic, value, partition=place.partition)


async def read_to(reader: Reader, place: Place, offset: int) -> list[bytes | None]:
    found: list[bytes | None] = []

    async def has_read() -> bool:
        found.extend(record.value for record in await reader.read(0.1))
        return reader.position(place) >= offset

    await until(has_read, SOON_S, f"{place} to be read up to {offset}")
    return found


async def test_of_transactions_only_what_was_committed_is_read(world: KafkaWorld, kafka: str) -> None:
    """Each transaction ends with a record of its own, which nobody is told of, and the position moves past it."""
    place = Place(await topic(world, "t", 1), 0)
    async with producing(kafka, transactional_id=world.namespace) as producer:
        async with producer.transaction():
            await write(producer, place, b"0", b"1")
        await producer.begin_transaction()
        await write(producer, place, b"3", b"4")
        await producer.abort_transaction()
        async with producer.transaction():
            await write(producer, place, b"6")
    member = Member(begin={place: 0})
    async with joined(world, member, [place.topic], world.namespace):
        await until(lambda: member.positions.get(place) == 8, SOON_S, "the last marker to be passed")
        assert member.offsets(place) == [0, 1, 6]
    async with world.broker().reader([place], "begin") as reader:
        assert await read_to(reader, place, 8) == [b"0", b"1", b"6"]


async def test_a_partition_ends_behind_what_an_open_transaction_holds_back(world: KafkaWorld, kafka: str) -> None:
    """Whoever takes a log over reads up to there before it does anything: a reply behind it is paid for already."""
    place = Place(await topic(world, "t", 1), 0)
    member = Member(begin={place: 0})
    async with producing(kafka, transactional_id=world.namespace) as stranger, producing(kafka) as producer:
        await stranger.begin_transaction()
        await write(stranger, place, b"0")
        await write(producer, place, b"1")
        async with joined(world, member, [place.topic], world.namespace):
            assert await member.subscription.ends([place]) == {place: 2}
            await write(producer, place, b"2")
            assert member.offsets(place) == []
            await stranger.abort_transaction()
            await until(lambda: member.offsets(place) == [1, 2], SOON_S, "what it held back")


@pytest.mark.parametrize("compression", ["gzip", None])
async def test_compressed_records_are_read_from_their_middle_on(
    world: KafkaWorld, kafka: str, compression: str | None
) -> None:
    place = Place(await topic(world, "t", 1), 0)
    async with producing(kafka, compression_type=compression) as producer:
        batch = producer.create_batch()
        for number in range(9):
            batch.append(key=None, value=b"%d" % number, timestamp=None)
        await (await producer.send_batch(batch, place.topic, partition=0))
    async with world.broker().reader([place], {place: 4}) as reader:
        assert await read_to(reader, place, 9) == [b"4", b"5", b"6", b"7", b"8"]


async def test_a_log_that_was_cut_is_read_from_where_it_begins(world: KafkaWorld, kafka: str) -> None:
    place = Place(await topic(world, "t", 1), 0)
    async with producing(kafka) as producer:
        await write(producer, place, *(b"%d" % number for number in range(6)))
        async with admin_of(kafka) as admin:
            await admin.delete_records({TopicPartition(*place): RecordsToDelete(before_offset=4)})
        member = Member(begin={place: 1})
        async with joined(world, member, [place.topic], world.namespace):
            await until(lambda: member.offsets(place) == [4, 5], SOON_S, "what is left")
            await write(producer, place, b"6")
            await until(lambda: member.offsets(place) == [4, 5, 6], SOON_S, "what comes next")


async def test_a_record_that_is_larger_than_a_fetch_is_read(world: KafkaWorld, kafka: str) -> None:
    """Since version 3 a broker sends the first batch whole, however small the bounds."""
    place = Place(await topic(world, "t", 1), 0)
    sizes = (400_000, 10, 400_000)
    async with producing(kafka) as producer:
        await write(producer, place, *(b"x" * size for size in sizes))
    async with world.broker().reader([place], "begin") as reader:
        assert isinstance(reader, KafkaReader)
        reader._fetching.bounds.partition_bytes = 1000  # type: ignore[misc]
        assert [len(value or b"") for value in await read_to(reader, place, 3)] == [*sizes]


async def test_large_records_of_many_places_are_all_read_though_a_fetch_has_room_for_none(
    world: KafkaWorld, kafka: str
) -> None:
    """In an answer only the first place may be over the bound, and those that brought something are the last the next
    time."""
    name = await topic(world, "t", 4)
    places = [Place(name, number) for number in range(4)]
    member = Member(begin=dict.fromkeys(places, 0))
    member.ahead_bytes = 1000
    async with producing(kafka) as producer, joined(world, member, [name], world.namespace):
        for _ in range(5):
            await write(producer, places[0], *[b"x" * 300] * 3)
            for place in places[1:]:
                await write(producer, place, b"x" * 400_000)
        await until(lambda: all(len(member.offsets(place)) == 5 for place in places[1:]), SOON_S, "the large ones")
        await until(lambda: len(member.offsets(places[0])) == 15, SOON_S, "the small ones")


async def test_a_session_goes_on_and_names_only_what_has_changed(
    world: KafkaWorld, kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await topic(world, "t", 12)
    places = [Place(name, number) for number in range(12)]
    member, asked = Member(begin=dict.fromkeys(places, 0)), _spied(monkeypatch)
    async with joined(world, member, [name], world.namespace), producing(kafka) as producer:
        await until(lambda: len(asked) > 2, SOON_S, "a session")
        for number, place in enumerate(places):
            await write(producer, place, b"%d" % number)
        await until(lambda: len(member.got) == 12, SOON_S, "a record of each")
        named = len(asked)
        await until(lambda: len(asked) > named + 3, SOON_S, "some fetches")
    epochs, sizes = zip(*asked, strict=True)
    assert epochs == tuple(range(len(asked))), "one session"
    assert sizes[0] == max(sizes) > 12 * 28, "at first each partition is named"
    assert sizes[-1] == min(sizes) < 60, "and in the end none"


def _spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of each fetch its epoch, and how many bytes it has."""
    asked: list[tuple[int, int]] = []
    write_request = Session.request

    def request(session: Session, *arguments: Any) -> bytes:
        body = write_request(session, *arguments)
        asked.append((session.epoch, len(body)))
        return body

    monkeypatch.setattr(Session, "request", request)
    return asked


async def test_a_connection_that_is_cut_is_made_anew_and_nothing_is_lost(world: KafkaWorld, kafka: str) -> None:
    place = Place(await topic(world, "t", 1), 0)
    member = Member(begin={place: 0})
    async with joined(world, member, [place.topic], world.namespace) as subscription, producing(kafka) as producer:
        for number in range(3):
            assert isinstance(subscription, KafkaSubscription)
            for broker in subscription._fetching._brokers.values():
                if broker._link is not None:
                    broker._link._connection._writer.transport.abort()
            await write(producer, place, b"%d" % number)
            await until(lambda wanted=number: len(member.offsets(place)) > wanted, SOON_S, "the record")  # type: ignore[misc]
    assert member.offsets(place) == [0, 1, 2]


async def test_a_reader_leaves_no_task_behind(world: KafkaWorld, kafka: str) -> None:
    place = Place(await topic(world, "t", 1), 0)
    before = asyncio.all_tasks()
    async with world.broker().reader([place], "begin") as reader:
        assert await reader.read(0.3) == []
    assert asyncio.all_tasks() <= before
