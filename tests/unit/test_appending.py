"""What becomes of records on their way: their order, their batches, and what is left of them at the end.

Responsible for: `KafkaAppender` against producers that play their part. Must never: reach a broker; tests/integration
does. Called by: pytest.
"""

from __future__ import annotations

import random

import pytest
from aiokafka.errors import KafkaTimeoutError
from tests.support.producers import OTHER, TOPIC, Broker, Packed, all_of, appending, prepare, record, turns

from anabranch.errors import BrokerError
from anabranch.kafka import appender
from anabranch.kafka.sent import Acked, Sent


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    return prepare(monkeypatch)


async def test_what_comes_while_the_topic_is_looked_up_is_sent_once_and_acknowledged_where_it_lies(
    broker: Broker,
) -> None:
    """The partitions that wait for their turn meanwhile must not be taken for sent, nor sent twice."""
    broker.known.clear()
    async with appending() as opened:
        sent = [opened.append(record(number, number % 3)) for number in range(3)]
        await turns()
        sent += [opened.append(record(number, number % 3)) for number in range(3, 9)]
        broker.known.set()
        await turns(3)
        sent += [opened.append(record(number, number % 3)) for number in range(9, 15)]
        acked = await all_of(sent)
    for number, at in enumerate(acked):
        assert at.offset is not None
        assert broker.written[TOPIC, number % 3][at.offset] == str(number).encode()
    assert sum(map(len, broker.written.values())) == 15


async def test_what_comes_while_a_batch_is_under_way_goes_in_one_batch(broker: Broker) -> None:
    broker.away.add((TOPIC, 0))
    async with appending() as opened:
        first = opened.append(record(0))
        await turns()
        sent = [opened.append(record(number)) for number in range(1, 50)]
        await turns()
        broker.away.clear()
        broker.producers[0].arrive((TOPIC, 0))
        await all_of([first, *sent])
    assert broker.batches == 2
    assert broker.written[TOPIC, 0] == [str(number).encode() for number in range(50)]


async def test_what_does_not_fit_into_a_batch_follows_in_the_next_one(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Packed, "room", 7)
    async with appending() as opened:
        acked = await all_of([opened.append(record(number)) for number in range(20)])
    assert [at.offset for at in acked] == list(range(20))
    assert broker.batches == 3


async def test_a_partition_whose_leader_is_away_holds_up_no_other(broker: Broker) -> None:
    broker.away.add((TOPIC, 0))
    async with appending() as opened:
        stuck = [opened.append(record(number)) for number in range(3)]
        await turns()
        stuck += [opened.append(record(number)) for number in range(3, 6)]
        for number in range(5):
            await all_of([opened.append(record(number, 1)), opened.append(record(number, 0, OTHER))])
        assert not any(each.done() for each in stuck)
        broker.away.clear()
        broker.producers[0].arrive((TOPIC, 0))
        await all_of(stuck)
    assert broker.written[TOPIC, 0] == [str(number).encode() for number in range(6)]


async def test_an_acknowledgement_without_a_place_or_the_brokers_time_says_so(broker: Broker) -> None:
    broker.away.add((TOPIC, 0))
    async with appending() as opened:
        sent = opened.append(record(0))
        await turns()
        broker.producers[0].held.pop((TOPIC, 0)).then(Acked(None, None))
        assert await all_of([sent]) == [Acked(None, None)]


async def test_a_closed_appender_leaves_nobody_waiting(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "STOP_S", 0.01)
    broker.away.add((TOPIC, 0))
    async with appending() as opened:
        under_way = opened.append(record(0))
        await turns()
        waiting = opened.append(record(1))
    assert under_way.cancelled()
    assert waiting.cancelled()
    assert isinstance(opened.append(record(2)).exception(), BrokerError)


async def test_a_closing_appender_sends_what_it_was_given(broker: Broker) -> None:
    async with appending() as opened:
        sent = [opened.append(record(number, number % 4)) for number in range(40)]
    assert all(each.is_written for each in sent)


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_fails_each_partition_keeps_its_order(
    broker: Broker, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each record's first copy lies behind the first copy of the one before it."""
    chance = random.Random(seed)
    monkeypatch.setattr(Packed, "room", chance.choice([1, 3, 1000]))
    sent: list[Sent] = []
    async with appending() as opened:
        for number in range(150):
            place = chance.choice([record(number, chance.randrange(3)), record(number, None, OTHER)])
            sent.append(opened.append(place))
            if chance.random() < 0.1:
                broker.known.clear() if broker.known.is_set() else broker.known.set()
            if chance.random() < 0.1 and (held := list(broker.producers[-1].held)):
                broker.producers[-1].arrive(chance.choice(held), KafkaTimeoutError() if chance.random() < 0.5 else None)
            if chance.random() < 0.2:
                broker.away ^= {(TOPIC, chance.randrange(3))}
            await turns(chance.randrange(4))
        broker.away.clear()
        broker.known.set()
        for where in list(broker.producers[-1].held):
            broker.producers[-1].arrive(where)
        await all_of(sent)
    for values in broker.written.values():
        firsts = list(dict.fromkeys(int(value) for value in values))
        assert firsts == sorted(firsts)
    assert {int(value) for values in broker.written.values() for value in values} == set(range(150))
