"""What becomes of records on their way: their order, their batches, and what a producer's end does to them.

Responsible for: `KafkaAppender` against producers that share a broker which only plays its part, and hold it to its
promise: a partition has one batch under way. Must never: reach a broker; tests/integration does. Called by: pytest.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.errors import (
    InvalidTimestampError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    UnknownTopicOrPartitionError,
)
from tests.support.wait import until

from anabranch.codec import Outgoing
from anabranch.errors import BrokerError, TooLarge
from anabranch.kafka import appender
from anabranch.kafka.appender import KafkaAppender
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.producing import Batch
from anabranch.kafka.sent import Acked, Sent, settled

SOON_S = 10.0
TOPIC, OTHER = "t.agent.log", "t.tool.calls.q"
Where = tuple[str, int]


class Broker:
    """`written` are its logs. `known` opens the metadata; `away` are partitions without a leader; `refuses` a value."""

    def __init__(self) -> None:
        self.written: dict[Where, list[bytes]] = defaultdict(list)
        self.known = asyncio.Event()
        self.known.set()
        self.away: set[Where] = set()
        self.refuses: bytes | None = None
        self.unknown_topics: set[str] = set()
        self.unreachable = 0  # how many questions for a topic find nobody to be asked
        self.batches = 0
        self.producers: list[Producer] = []

    def make(self, arguments: dict[str, Any], idempotent: bool) -> Producer:
        self.producers.append(Producer(self))
        return self.producers[-1]


class Packed(Batch):
    """A batch that remembers its values, and takes no more than `room`."""

    room = 1000

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.values: list[bytes] = []

    def append(self, record: Outgoing) -> bool:
        if self.count == self.room:
            return False
        self.values.append(record.value or b"")
        return super().append(record)


class Producer:
    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.held: dict[Where, Packed] = {}
        self.stopped = False

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.stopped = True

    def partitions(self, topic: str) -> int | None:
        return 4 if self.broker.known.is_set() and topic not in self.broker.unknown_topics else None

    async def look_up(self, topic: str, anew: bool = False) -> int:
        await self.broker.known.wait()
        if topic in self.broker.unknown_topics:
            raise UnknownTopicOrPartitionError
        if self.broker.unreachable:
            self.broker.unreachable -= 1
            raise KafkaTimeoutError
        return 4

    async def is_missing(self, topic: str) -> bool:
        return topic in self.broker.unknown_topics

    def send(self, batches: Iterable[Any]) -> None:
        for batch in batches:
            where = batch.where
            assert batch.values, "an empty batch: a broker refuses it"
            assert where not in self.held, "a second batch of a partition waits for the first"
            self.broker.batches += 1
            self.held[where] = batch
            batch.is_out = True
            if where not in self.broker.away:
                asyncio.get_running_loop().call_soon(self.arrive, where)

    def arrive(self, where: Where, error: Exception | None = None) -> None:
        """The broker has the batch, or refuses it, or says `error` although it has written it."""
        batch = self.held.pop(where, None)
        if batch is None or self.stopped:
            return  # it has arrived already, or nobody hears of it
        if self.broker.refuses in batch.values:
            batch.then(MessageSizeTooLargeError())
            return
        offset = len(self.broker.written[where])
        self.broker.written[where] += batch.values
        batch.then(Acked(offset, 1234) if error is None else error)


@pytest.fixture
async def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    monkeypatch.setattr(appender, "Producer", broker.make)
    monkeypatch.setattr(appender, "Batch", Packed)
    return broker


@asynccontextmanager
async def appending() -> AsyncIterator[KafkaAppender]:
    async with KafkaAppender.opened({"bootstrap_servers": "nowhere"}, idempotent=True) as opened:
        yield opened


def record(value: int | str, partition: int | None = 0, topic: str = TOPIC, key: bytes = b"k") -> Outgoing:
    return Outgoing(topic, key, str(value).encode(), partition=partition)


async def all_of(sent: list[Sent]) -> list[Acked]:
    async with asyncio.timeout(SOON_S):
        return [await each for each in sent]


async def turns(count: int = 10) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


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
