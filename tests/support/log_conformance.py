"""What every `Appender`, `Reader` and admin side of a `Broker` guarantees: the seam's docstrings, as tests.

Responsible for: one test for each guarantee. A test class that inherits gives the fixture `world`.
Must never: know which implementation it runs on.
Called by: `tests/integration/test_log_conformance.py`.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from anabranch.codec import Outgoing
from anabranch.errors import BrokerError, TooLarge, TopicsError
from anabranch.kafka.seam import Place, Reader
from anabranch.topics import RECORD_BYTES, TopicSpec, partition_of
from tests.support.log_worlds import SOON_S, World, numbers, offset_of, read_all, record_for, topic, write
from tests.support.wait import until


class AppenderConformance:
    """Of `Appender`."""

    async def test_records_of_a_partition_lie_in_the_order_in_which_they_were_given(self, world: World) -> None:
        name = await topic(world, "t", 3)
        places = [Place(name, number) for number in range(3)]
        async with world.broker().appender() as appender:
            futures = [appender.append(record_for(places[n % 3], str(n).encode())) for n in range(300)]
            await asyncio.gather(*futures)
        found = await read_all(world, places, 300)
        for place in places:
            assert [record.value for record in found[place]] == [
                str(n).encode() for n in range(place.partition, 300, 3)
            ]

    async def test_offsets_ascend_by_one_and_the_acknowledgement_names_them(self, world: World) -> None:
        place = Place(await topic(world, "t"), 0)
        offsets = await write(world, place, numbers(50))
        found = (await read_all(world, [place], 50))[place]
        assert offsets == list(range(50))
        assert [record.offset for record in found] == offsets
        assert [record.value for record in found] == numbers(50)

    async def test_a_record_comes_back_as_it_was_given(self, world: World) -> None:
        place = Place(await topic(world, "t"), 0)
        headers = (("b", b"1"), ("a", b"\xff\x00"), ("b", b"2"), ("empty", b""))
        given = [
            Outgoing(place.topic, b"key", b"value", headers, 0),
            Outgoing(place.topic, None, b"no key", (), 0),
            Outgoing(place.topic, b"tombstone", None, (), 0),
            Outgoing(place.topic, b"", b"", (), 0),
        ]
        async with world.broker().appender() as appender:
            await asyncio.gather(*[appender.append(record) for record in given])
        found = (await read_all(world, [place], len(given)))[place]
        assert [
            Outgoing(record.topic, record.key, record.value, tuple(record.headers), record.partition)
            for record in found
        ] == given

    async def test_without_a_partition_the_key_decides_as_in_the_java_client(self, world: World) -> None:
        name = await topic(world, "t", 7)
        keys = [f"run-{number}".encode() for number in range(40)]
        async with world.broker().appender() as appender:
            await asyncio.gather(*[appender.append(Outgoing(name, key, b"")) for key in keys])
        found = await read_all(world, [Place(name, number) for number in range(7)], 40)
        for place, records in found.items():
            assert all(partition_of(record.key or b"", 7) == place.partition for record in records)

    @pytest.mark.parametrize("kind", ["LogAppendTime", "CreateTime"])
    async def test_a_timestamp_is_milliseconds_of_now(self, world: World, kind: str) -> None:
        place = Place(await topic(world, "t", message_timestamp_type=kind), 0)
        before = int(time.time() * 1000)
        await write(world, place, numbers(3))
        after = int(time.time() * 1000)
        stamps = [record.timestamp for record in (await read_all(world, [place], 3))[place]]
        assert stamps == sorted(stamps)
        assert all(before - 1 <= stamp <= after + 1 for stamp in stamps)

    async def test_a_record_larger_than_its_topic_takes_fails_alone(self, world: World) -> None:
        place = Place(await topic(world, "t", max_message_bytes="20000"), 0)
        values = [b"1", b"x" * 40_000, b"2", b"x" * (RECORD_BYTES + 1), b"3"]
        async with world.broker().appender() as appender:
            ends = await asyncio.wait_for(
                asyncio.gather(
                    *[appender.append(record_for(place, value)) for value in values], return_exceptions=True
                ),
                SOON_S,
            )
            assert offset_of(await appender.append(record_for(place, b"4"))) >= 3
        assert [isinstance(end, TooLarge) for end in ends] == [False, True, False, True, False]
        found = (await read_all(world, [place], 4))[place]
        assert list(dict.fromkeys(record.value for record in found)) == [b"1", b"2", b"3", b"4"]

    async def test_a_topic_that_does_not_exist_fails_its_own_records_alone(self, world: World) -> None:
        place = Place(await topic(world, "t"), 0)
        missing = Outgoing(f"{world.namespace}.missing", b"key", b"value", partition=0)
        async with world.broker().appender() as appender:
            lost, kept = appender.append(missing), appender.append(record_for(place, b"1"))
            await asyncio.wait_for(kept, SOON_S)
            with pytest.raises(BrokerError, match=r"missing"):
                await asyncio.wait_for(lost, 60)
            await asyncio.wait_for(appender.append(record_for(place, b"2")), SOON_S)

    async def test_flush_waits_until_all_is_acknowledged(self, world: World) -> None:
        place = Place(await topic(world, "t"), 0)
        async with world.broker().appender() as appender:
            futures = [appender.append(record_for(place, value)) for value in numbers(20)]
            assert await appender.flush(SOON_S) == 0
            assert all(future.done() for future in futures)

    async def test_closing_an_appender_sends_what_it_was_given(self, world: World) -> None:
        place = Place(await topic(world, "t"), 0)
        async with world.broker().appender() as appender:
            future = appender.append(record_for(place, b"1"))
        assert offset_of(future.result()) == 0

    async def test_who_stops_waiting_for_a_record_does_not_stop_the_record(self, world: World) -> None:
        place = Place(await topic(world, "t"), 0)
        async with world.broker().appender() as appender:
            appender.append(record_for(place, b"1")).cancel()
            await appender.append(record_for(place, b"2"))
        assert [record.value for record in (await read_all(world, [place], 2))[place]] == [b"1", b"2"]

    async def test_an_error_of_the_caller_leaves_the_appender_as_it_is(self, world: World) -> None:
        await topic(world, "t")
        with pytest.raises(ZeroDivisionError):
            async with world.broker().appender():
                raise ZeroDivisionError


class ReaderConformance:
    """Of `Reader`."""

    async def test_from_the_beginning_a_reader_reads_all_that_is_there_and_what_follows(self, world: World) -> None:
        place = Place(await topic(world, "t"), 0)
        await write(world, place, numbers(3))
        async with world.broker().reader([place], "begin") as reader:
            assert reader.position(place) == 0
            assert await reader.ends() == {place: 3}
            await until(lambda: _reads_up_to(reader, place, 3), SOON_S)
            await write(world, place, numbers(2))
            await until(lambda: _reads_up_to(reader, place, 5), SOON_S)
            assert await reader.ends() == {place: 5}

    async def test_from_the_end_a_reader_reads_only_what_follows(self, world: World) -> None:
        place = Place(await topic(world, "t"), 0)
        await write(world, place, numbers(3))
        async with world.broker().reader([place], "end") as reader:
            assert reader.position(place) == 3
            await write(world, place, [b"new"])
            records = await until(lambda: reader.read(1.0), SOON_S)
        assert [record.value for record in records] == [b"new"]

    async def test_from_a_time_a_reader_reads_what_is_not_older(self, world: World) -> None:
        place = Place(await topic(world, "t", message_timestamp_type="LogAppendTime"), 0)
        await write(world, place, [b"old"])
        (old,) = (await read_all(world, [place], 1))[place]
        await until(lambda: time.time() * 1000 > old.timestamp + 5)
        await write(world, place, [b"new"])
        (_, new) = (await read_all(world, [place], 2))[place]
        async with world.broker().reader([place], new.timestamp / 1000) as reader:
            assert reader.position(place) == 1
        async with world.broker().reader([place], time.time() + 3600) as reader:
            assert reader.position(place) == 2

    async def test_an_empty_read_ends_after_its_timeout(self, world: World) -> None:
        place = Place(await topic(world, "t"), 0)
        async with world.broker().reader([place], "begin") as reader:
            assert list(await asyncio.wait_for(reader.read(0.05), SOON_S)) == []
            assert reader.position(place) == 0

    async def test_a_reader_reads_several_places_each_in_its_order(self, world: World) -> None:
        name = await topic(world, "t", 3)
        places = [Place(name, 0), Place(name, 2)]
        for place in [*places, Place(name, 1)]:
            await write(world, place, numbers(20, first=100 * place.partition))
        found = await read_all(world, places, 40)
        assert {place: [r.value for r in records] for place, records in found.items()} == {
            place: numbers(20, first=100 * place.partition) for place in places
        }

    async def test_an_error_of_the_caller_passes_through_a_reader(self, world: World) -> None:
        place = Place(await topic(world, "t"), 0)
        with pytest.raises(ZeroDivisionError):
            async with world.broker().reader([place], "begin"):
                raise ZeroDivisionError


class AdminConformance:
    """Of `Broker`'s questions about topics."""

    async def test_partitions_are_counted_and_a_missing_topic_is_named(self, world: World) -> None:
        name = await topic(world, "t", 5)
        assert await world.broker().partitions(name) == 5
        with pytest.raises(TopicsError, match=r"missing"):
            await world.broker().partitions(f"{world.namespace}.missing")

    async def test_apply_makes_topics_as_they_are_wanted_once(self, world: World) -> None:
        spec = TopicSpec(f"{world.namespace}.t", 2, {"cleanup.policy": "delete", "retention.ms": "700000000"})
        broker = world.broker()
        assert [lack.topic for lack in await broker.lacks([spec])] == [spec.name]
        assert len(await broker.apply([spec])) == 1
        assert await broker.lacks([spec]) == []
        assert await broker.apply([spec]) == []

    async def test_apply_adds_partitions_and_alters_settings(self, world: World) -> None:
        name = await topic(world, "t", 2, max_message_bytes="30000")
        spec = TopicSpec(name, 4, {"cleanup.policy": "delete", "max.message.bytes": "60000"})
        broker = world.broker()
        assert [lack.dangerous for lack in await broker.lacks([spec])] == [False, True]
        assert len(await broker.apply([spec])) == 2
        assert await broker.partitions(name) == 4
        assert await broker.lacks([spec]) == []


async def _reads_up_to(reader: Reader, place: Place, offset: int) -> bool:
    await reader.read(0.2)
    return reader.position(place) == offset
