"""The troubles that the log's double can make, in virtual time. The rest of it is in the conformance suite."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from tests.support.log_worlds import Member, record_for
from tests.support.memory_log import LOG, SPECS, Process, in_turn, values
from tests.support.virtual import now, virtually

from anabranch.kafka.memory.cluster import Faults, MemoryBroker
from anabranch.kafka.seam import Place
from anabranch.kafka.sent import Acked

# --- appending --------------------------------------------------------------------------------------------------


def test_a_lost_acknowledgement_writes_the_batch_twice_in_its_order() -> None:
    async def story() -> tuple[list[Acked], list[bytes | None]]:
        broker = MemoryBroker(SPECS, faults=Faults(lost_ack=in_turn(True)))
        async with broker.appender() as appender:
            acked = await asyncio.gather(*[appender.append(record_for(LOG, value)) for value in (b"1", b"2")])
        return acked, values(broker)

    acked, written = virtually(story)
    assert written == [b"1", b"2", b"1", b"2"]
    assert [each.offset for each in acked] == [2, 3]


def test_a_record_is_not_written_before_the_copies_of_those_given_earlier() -> None:
    async def story() -> list[bytes | None]:
        broker = MemoryBroker(SPECS, faults=Faults(delay=lambda: 1.0, lost_ack=in_turn(True)))
        async with broker.appender() as appender:
            first = appender.append(record_for(LOG, b"1"))
            await asyncio.sleep(1.5)
            await asyncio.gather(first, appender.append(record_for(LOG, b"2")))
        return values(broker)

    assert virtually(story) == [b"1", b"1", b"2"]


def test_a_blind_acknowledgement_names_no_offset() -> None:
    async def story() -> Acked:
        broker = MemoryBroker(SPECS, faults=Faults(blind_ack=in_turn(True)))
        async with broker.appender() as appender:
            return await appender.append(record_for(LOG, b"1"))

    assert virtually(story) == Acked(None)


def test_delays_take_their_time_on_the_way_there_and_back_and_the_broker_stamps_the_arrival() -> None:
    async def story() -> tuple[float, int]:
        broker = MemoryBroker(SPECS, clock=now, faults=Faults(delay=lambda: 2.0))
        async with broker.appender() as appender:
            await appender.append(record_for(LOG, b"1"))
            return now(), broker.records(LOG)[0].timestamp

    acknowledged, stamp = virtually(story)
    assert acknowledged == pytest.approx(4.0)
    assert stamp == 2000


def test_without_log_append_time_a_record_has_the_time_at_which_it_was_sent() -> None:
    async def story() -> int:
        broker = MemoryBroker(SPECS, clock=now, faults=Faults(delay=lambda: 2.0))
        place = Place("requests", 0)
        async with broker.appender() as appender:
            await asyncio.sleep(1.0)
            await appender.append(record_for(place, b"1"))
        return broker.records(place)[0].timestamp

    assert virtually(story) == 1000


def test_what_is_appended_while_the_link_is_cut_waits_for_it() -> None:
    async def story() -> tuple[int, list[bytes | None], int | None]:
        broker = MemoryBroker(SPECS)
        async with broker.appender() as appender:
            broker.cut()
            future = appender.append(record_for(LOG, b"1"))
            left, before = await appender.flush(60.0), values(broker)
            broker.mend()
            return left, before, (await future).offset

    assert virtually(story) == (1, [], 0)


def test_a_process_that_is_cut_off_for_good_may_have_written_what_it_never_heard_of() -> None:
    async def story() -> tuple[bool, list[bytes | None]]:
        cluster = MemoryBroker(SPECS)
        process = cluster.another(Faults(delay=lambda: 1.0))
        async with process.appender() as appender:
            future = appender.append(record_for(LOG, b"1"))
            await asyncio.sleep(1.5)
            process.cut()
        return future.cancelled(), values(cluster)

    assert virtually(story) == (True, [b"1"])


# --- simulations ------------------------------------------------------------------------------------------------


async def turmoil(seed: int) -> tuple[list[object], MemoryBroker]:
    """Two members read what a third process writes, all with faults, while members are expelled and cut off."""
    random = Random(seed)
    cluster = MemoryBroker(SPECS, clock=now, random=random, faults=Faults.seeded(random, 0.0, 0.0))
    history: list[object] = []

    class Noting(Member):
        """Reads on from the start with each assignment."""

        def records(self, place: Place, records: object) -> None:
            history.append((now(), self.name, place, repr(records)))

        async def revoked(self, places: frozenset[Place], lost: bool) -> None:
            history.append((now(), self.name, sorted(places), lost))
            await asyncio.sleep(random.random())

    places = [LOG, Place("log", 1)]
    processes = [Process(cluster, Noting(name, dict.fromkeys(places, 0))) for name in "ab"]
    writer = cluster.another(Faults.seeded(random, 0.2, 0.5))
    async with writer.appender() as appender:
        for number in range(50):
            appender.append(record_for(random.choice(places), str(number).encode()))
            await asyncio.sleep(random.random())
            for member in cluster.members("g"):
                if random.random() < 0.05:
                    cluster.expel(member)
        assert await appender.flush(60.0) == 0
    for process in processes:
        await process.end()
    return history, cluster


@pytest.mark.parametrize("nth", range(5))
def test_a_seed_repeats_a_simulation_exactly(seed: int, nth: int) -> None:
    first, _ = virtually(lambda: turmoil(seed + nth))
    again, _ = virtually(lambda: turmoil(seed + nth))
    assert first
    assert first == again


@pytest.mark.parametrize("nth", range(5))
def test_whatever_goes_wrong_the_first_copies_lie_in_order_and_none_is_missing(seed: int, nth: int) -> None:
    _, cluster = virtually(lambda: turmoil(seed + nth))
    found = []
    for place in (LOG, Place("log", 1)):
        first_copies = [int(value or b"") for value in dict.fromkeys(values(cluster, place))]
        assert first_copies == sorted(first_copies)
        found += first_copies
    assert sorted(found) == list(range(50))
