"""What becomes of records whose batch fails: which go again and in what order, and which must not.

Responsible for: `KafkaAppender` against producers that play their part, and fail. Must never: reach a broker;
tests/integration does. Called by: pytest.
"""

from __future__ import annotations

import pytest
from aiokafka.errors import InvalidTimestampError, KafkaTimeoutError
from tests.support.producers import OTHER, SOON_S, TOPIC, Broker, all_of, appending, prepare, record, turns
from tests.support.wait import until

from anabranch.errors import BrokerError, TooLarge
from anabranch.kafka import appender
from anabranch.kafka.appender import KafkaAppender
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.sent import Sent, settled


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    return prepare(monkeypatch)


async def test_a_failed_batch_and_the_producer_that_is_replaced_for_it_are_counted(broker: Broker) -> None:
    broker.away.add((TOPIC, 0))
    meters = RoleMeters()
    async with KafkaAppender.opened({"bootstrap_servers": "nowhere"}, True, meters) as opened:
        sent = [opened.append(record(0))]
        await turns()
        assert opened.outstanding == 1
        broker.away.clear()
        broker.producers[0].arrive((TOPIC, 0), KafkaTimeoutError())
        await all_of(sent)
        assert opened.outstanding == 0
    assert meters.send_failures.copied() == meters.producer_replacements.copied() == {(): 1}


async def test_a_producer_that_is_stuck_is_replaced_unless_kafka_has_it_wait(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "STUCK_S", 0.04)
    broker.away.add((TOPIC, 0))
    async with appending() as opened:
        stuck, looked = opened._stuck, list[list[str]]()

        def look(since: float) -> list[str]:
            looked.append(stuck(since))
            return looked[-1]

        monkeypatch.setattr(opened, "_stuck", look)
        broker.producers[0].is_throttled = True
        sent = [opened.append(record(0))]
        await until(lambda: looked[-3:].count([TOPIC]) == 3, SOON_S, "it has looked")
        assert len(broker.producers) == 1
        broker.producers[0].is_throttled = False
        await until(lambda: len(broker.producers) > 1, SOON_S, "it is replaced")
        broker.away.clear()
        await all_of(sent)


async def test_a_failed_batch_goes_again_before_what_came_later(broker: Broker) -> None:
    broker.away.add((TOPIC, 0))
    async with appending() as opened:
        sent = [opened.append(record(0)), opened.append(record(1))]
        await turns()
        sent.append(opened.append(record(2)))
        broker.away.clear()
        broker.producers[0].arrive((TOPIC, 0), KafkaTimeoutError())
        await all_of(sent)
    assert broker.written[TOPIC, 0] == [b"0", b"1", b"0", b"1", b"2"]
    assert len(broker.producers) == 2


async def test_a_broker_that_takes_nothing_is_asked_ever_less_often_and_it_is_said_why(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waited, pause = list[float](), appender._paused

    async def paused(for_s: float) -> float:
        waited.append(for_s)
        return await pause(for_s)

    monkeypatch.setattr(appender, "_paused", paused)
    monkeypatch.setattr(appender, "BACKOFF_S", (0.001, 0.003))
    broker.away.add((TOPIC, 0))
    async with appending() as opened:
        sent = opened.append(record(0))
        for _ in range(4):
            await until(lambda: broker.producers[-1].held, what="it is sent")
            broker.producers[-1].held.pop((TOPIC, 0)).then(InvalidTimestampError())
        broker.away.clear()
        await all_of([sent])
    assert waited == [0.0, 0.001, 0.002, 0.003]
    assert "the clock of this machine is ahead" in caplog.text
    assert broker.written[TOPIC, 0] == [b"0"], "it is sent until the clock is right"


async def test_only_the_record_that_the_broker_refuses_fails(broker: Broker) -> None:
    """Also where one that may be sent only once lies in the same batch: none of that was written."""
    broker.refuses = b"3"
    async with appending() as opened:
        sent = [opened.append(record(number), once=number == 1) for number in range(6)]
        assert not await settled(sent, SOON_S)
        with pytest.raises(TooLarge):
            sent[3].result()
        assert all(each.is_written for number, each in enumerate(sent) if number != 3)
    assert broker.written[TOPIC, 0] == [b"0", b"1", b"2", b"4", b"5"]


async def test_a_record_that_may_be_sent_only_once_is_not_sent_again(broker: Broker) -> None:
    broker.away.add((TOPIC, 0))
    async with appending() as opened:
        sent = [opened.append(record(number), once=number == 1) for number in range(3)]
        await turns()
        broker.away.clear()
        broker.producers[0].arrive((TOPIC, 0), KafkaTimeoutError())
        await all_of([sent[0], sent[2]])
        with pytest.raises(BrokerError, match="may have been written"):
            await sent[1]
    assert broker.written[TOPIC, 0] == [b"0", b"1", b"2", b"0", b"2"]


async def test_a_batch_knows_of_a_record_that_may_be_sent_only_once(broker: Broker) -> None:
    broker.away.add((TOPIC, 0))
    broker.away.add((TOPIC, 1))
    async with appending() as opened:
        sent = [opened.append(record(number, number % 2), once=number == 1) for number in range(4)]
        await turns()
        assert {where: batch.once for where, batch in broker.producers[0].held.items()} == {
            (TOPIC, 0): False,
            (TOPIC, 1): True,
        }
        for where in list(broker.producers[0].held):
            broker.producers[0].arrive(where)
        await all_of(sent)


async def test_a_record_that_no_broker_has_seen_is_not_spent_by_that(broker: Broker) -> None:
    """Neither where the batch found no broker, nor where its producer was replaced for another's fault."""
    broker.unreachable = 1
    async with appending() as opened:
        await all_of([opened.append(record(0), once=True)])
        broker.away.add((OTHER, 0))
        other = opened.append(record(0, 0, OTHER))
        await turns()
        broker.known.clear()
        waits = opened.append(record(1), once=True)
        await turns()
        broker.away.clear()
        broker.producers[-1].arrive((OTHER, 0), KafkaTimeoutError())
        await turns(20)
        broker.known.set()
        await all_of([other, waits])
    assert broker.written[TOPIC, 0] == [b"0", b"1"]


async def test_a_producer_that_is_to_be_replaced_is_sent_nothing_more(broker: Broker) -> None:
    """Its sequence has a gap. What it was sent may have been written, and then goes again, or must not."""
    broker.refuses = b"0"
    async with appending() as opened:
        after: list[Sent] = []

        def append_more(_: Sent) -> None:
            broker.away |= {(TOPIC, 0), (TOPIC, 1)}
            after.extend([opened.append(record(1)), opened.append(record(2, 1), once=True)])

        opened.append(record(0)).add_done_callback(append_more)
        await turns(30)
        assert len(broker.producers) == 2
        assert not broker.producers[0].held
        broker.away.clear()
        for where in list(broker.producers[1].held):
            broker.producers[1].arrive(where)
        await all_of(after)


async def test_whoever_hears_that_a_record_is_not_sent_again_may_append(broker: Broker) -> None:
    broker.away.add((TOPIC, 0))
    async with appending() as opened:
        after: list[Sent] = []

        def append_more(_: Sent) -> None:
            after.extend(opened.append(record(9, number, f"t.new.{number}")) for number in range(3))
            after.append(opened.append(record(9, 3)))

        opened.append(record(0), once=True).add_done_callback(append_more)
        await turns()
        broker.away.clear()
        broker.producers[0].arrive((TOPIC, 0), KafkaTimeoutError())
        assert await all_of([opened.append(record(1))])
        assert len(await all_of(after)) == 4


async def test_a_missing_topic_fails_all_that_waits_for_it_and_nothing_else(broker: Broker) -> None:
    broker.unknown_topics.add(TOPIC)
    async with appending() as opened:
        lost = [opened.append(record(number, number % 2)) for number in range(6)]
        fine = opened.append(record(0, 0, OTHER))
        assert not await settled([*lost, fine], SOON_S)
        assert all(isinstance(each.exception(), BrokerError) for each in lost)
        assert fine.is_written
        broker.unknown_topics.clear()
        await all_of([opened.append(record(7))])
    assert len(broker.producers) == 1
