"""Writes records to Kafka: in order, until the broker has them, whatever becomes of the producer.

A send that fails (for whatever reason) may have been written. So the producer is replaced, and all that is
not acknowledged is sent again in its order: the log's presumptions make the copy harmless. A topic that
cannot be written holds up no other: each has a lane of its own. Batches are made here, one at a time for each
partition, for a batch costs ten times what a record in it does. It never reads, and never drops a record
without saying so to whoever gave it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    InvalidTopicError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    ProducerClosed,
    TopicAuthorizationFailedError,
    UnknownError,
    UnknownTopicOrPartitionError,
    UnsupportedVersionError,
)

from anabranch.codec import Outgoing
from anabranch.errors import BrokerError, TooLarge
from anabranch.kafka.batching import Item, Lane, Line
from anabranch.kafka.login import unreachable
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.refusals import refusal
from anabranch.kafka.sent import Acked, Sent
from anabranch.tasks import alongside
from anabranch.topics import RECORD_BYTES

log = logging.getLogger(__name__)

STOP_S = 5.0
BACKOFF_S = (0.05, 2.0)
REQUEST_S = 15.0
COUNT_AGAIN_S = 60.0
"""How often the partitions of a topic are counted that records go to by their keys."""
STUCK_S = 40.0
PAUSE_PER_RECORD_S = 20e-6
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.010
"""Between two batches of a topic: nothing while little is under way, some milliseconds under load."""
LOG_APPEND_TIME = 1
_HOPELESS = (
    AssertionError,  # a partition that the topic does not have
    InvalidTopicError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    ValueError,
)
_HOPELESS_TOPIC = (InvalidTopicError, TopicAuthorizationFailedError, UnknownTopicOrPartitionError)
# How brokers refuse InitProducerId; the embedded one says "unknown". Without it an append may be doubled, no more,
# and the log's presumptions make the copy harmless.
_NOT_IDEMPOTENT = (IncompatibleBrokerVersion, UnknownError, UnsupportedVersionError)


class _Replace(Exception):
    """The producer is no longer to be trusted."""


class KafkaAppender:
    """See `seam.Appender`. Made by `opened`, which owns its task."""

    def __init__(self, arguments: dict[str, Any], idempotent: bool, meters: RoleMeters) -> None:
        self._arguments, self._idempotent, self._meters = arguments, idempotent, meters
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[str, Lane] = {}
        self._new_lane = asyncio.Event()
        self._broken = asyncio.Event()
        self._outstanding = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, arguments: dict[str, Any], idempotent: bool, meters: RoleMeters | None = None
    ) -> AsyncIterator[KafkaAppender]:
        appender = cls(arguments, idempotent, meters or RoleMeters())
        await appender._connect(once=True)
        try:
            async with alongside(appender._serve(), "appender"):
                yield appender
                await appender.flush(STOP_S)
        finally:
            await _stop(appender._producer)
            appender._close()

    def _close(self) -> None:
        """Nobody will send what is left, and whoever waits for it must not wait for ever."""
        self._closed = True
        left = [item for lane in self._lanes.values() for item in lane.take_all()]
        self._settled(len(left))
        for item in left:
            item.sent.cancel()

    def append(self, record: Outgoing, once: bool = False) -> Sent:
        sent = Sent(self._loop)
        if self._closed:
            sent.fail(BrokerError(f"the appender is closed; a record for {record.topic} came too late"))
            return sent
        if record.size > RECORD_BYTES:
            sent.fail(TooLarge(f"a record of {record.size} bytes does not fit {record.topic} ({RECORD_BYTES})"))
            return sent
        if not self._outstanding:
            self._idle.clear()
        self._outstanding += 1
        lane = self._lanes.get(record.topic)
        if lane is None:
            lane = self._lanes[record.topic] = Lane(record.topic)
            self._new_lane.set()
        lane.push(Item(record, sent, once))
        return sent

    def _settled(self, records: int) -> None:
        """So many are about to hear what became of them."""
        self._outstanding -= records
        if not self._outstanding:
            self._idle.set()

    @property
    def outstanding(self) -> int:
        return self._outstanding

    async def flush(self, timeout_s: float) -> int:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return self._outstanding

    # --- the task -----------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        while True:
            try:
                await self._serve_with(self._producer)
            except* _Replace:
                log.warning("a send failed: replacing the producer, %d records go again", self._outstanding)
            _end_if_cancelled()
            self._meters.producer_replacements.count()
            await _stop(self._producer)
            self._rewind()
            await self._connect()

    def _rewind(self) -> None:
        """Those that hear of it may append: so nobody hears before all is in order again."""
        spent = [item for lane in self._lanes.values() for item in lane.rewind()]
        self._settled(len(spent))
        for item in spent:
            where = item.record.topic
            item.sent.fail(BrokerError(f"a record for {where} may have been written, and is not sent again"))

    async def _serve_with(self, producer: AIOKafkaProducer) -> None:
        self._broken.clear()
        started: set[str] = set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._raise_when_broken())
            tasks.create_task(self._watch())
            while True:
                self._new_lane.clear()
                for topic in self._lanes.keys() - started:
                    tasks.create_task(self._send_lane(producer, self._lanes[topic]), name=f"append {topic}")
                    started.add(topic)
                await self._new_lane.wait()

    async def _raise_when_broken(self) -> None:
        await self._broken.wait()
        raise _Replace

    async def _watch(self) -> None:
        """With idempotence a batch never expires while a leader is known: nothing may wait without a bound."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(STUCK_S / 4)
            stuck = self._stuck(loop.time() - STUCK_S)
            if stuck:
                log.error(
                    "nothing was acknowledged for %g s on %s: is the broker full, or gone? See its log and its disks; "
                    "%d records wait, and go again until it has them",
                    STUCK_S, ", ".join(stuck), self._outstanding,
                )  # fmt: skip
                self._broken.set()

    def _stuck(self, since: float) -> list[str]:
        """The topics of which a batch has been under way since then."""
        return sorted(
            lane.topic
            for lane in self._lanes.values()
            if any(line.batch and line.sent_at < since for line in lane.lines.values())
        )

    async def _connect(self, once: bool = False) -> None:
        pause, longest = BACKOFF_S
        while True:
            producer = AIOKafkaProducer(
                **self._arguments,
                acks="all",
                enable_idempotence=self._idempotent,
                linger_ms=0,
                max_batch_size=524_288,
                max_request_size=RECORD_BYTES + 65_536,
                request_timeout_ms=int(REQUEST_S * 1000),
                metadata_max_age_ms=int(COUNT_AGAIN_S * 1000),
            )
            try:
                await producer.start()
            except asyncio.CancelledError:
                await _stop(producer)
                raise
            except (KafkaError, OSError) as error:
                await _stop(producer)
                if once and self._idempotent and isinstance(error, _NOT_IDEMPOTENT):
                    log.info("this broker has no idempotent producers: doing without (%r)", error)
                    self._idempotent = False
                    continue
                where = self._arguments["bootstrap_servers"]
                if once:
                    refused = refusal(error, self._arguments, "Write", "any")
                    raise refused or await unreachable(self._arguments, error) from None
                log.warning("cannot connect a producer to %s: %s; trying again", where, error)
                await asyncio.sleep(pause)
                pause = min(longest, pause * 2)
            else:
                self._producer = producer
                return

    async def _send_lane(self, producer: AIOKafkaProducer, lane: Lane) -> None:
        """One batch at a time for each partition: what comes meanwhile makes the next one larger."""
        loop = asyncio.get_running_loop()
        while True:
            lane.wake.clear()
            if lane.unplaced or (lane.partitions is not None and loop.time() > lane.counted_at + COUNT_AGAIN_S):
                lane.counted_at = loop.time()
                await self._place(producer, lane)
            await self._pace(lane.sent_at, loop)
            lane.sent_at = loop.time()
            for partition in list(lane.ready):
                if (line := lane.ready.pop(partition, None)) is not None:
                    await self._send_line(producer, lane, line)
            if not lane.ready:
                await lane.wake.wait()

    async def _place(self, producer: AIOKafkaProducer, lane: Lane) -> None:
        """Find out how many partitions there are, for what has none of its own."""
        try:
            lane.place(len(await producer.partitions_for(lane.topic)))
        except (KafkaError, OSError) as error:
            if (hopeless := await _hopeless(producer, lane.topic, error)) is None:
                log.warning("the partitions of %s cannot be had: %r", lane.topic, error)
                self._broken.set()
            else:
                self._give_up(lane, [], hopeless)

    async def _pace(self, sent_at: float, loop: asyncio.AbstractEventLoop) -> None:
        """With much under way, a batch costs more than what is in it: let a few come together."""
        pause = sent_at + min(LONGEST_PAUSE_S, self._outstanding * PAUSE_PER_RECORD_S) - loop.time()
        if pause > SHORTEST_PAUSE_S:
            await asyncio.sleep(pause)

    async def _send_line(self, producer: AIOKafkaProducer, lane: Lane, line: Line) -> None:
        batch = producer.create_batch()
        items = line.next_batch(batch)
        line.sent_at = lane.sent_at
        try:
            acked = await _send(producer, batch, lane.topic, line.partition)
        except (KafkaError, OSError, ValueError, AssertionError) as error:
            if (hopeless := await _hopeless(producer, lane.topic, error)) is None:
                self._failed(lane, line, items, KafkaTimeoutError(f"no broker could be asked: {error!r}"))
            else:
                self._refused(lane, line, hopeless)
        else:
            line.is_out = True
            acked.add_done_callback(partial(self._acked, lane, line, items))

    def _acked(self, lane: Lane, line: Line, items: list[Item], acked: asyncio.Future[Any]) -> None:
        if acked.cancelled() or (error := acked.exception()) is not None:
            self._failed(lane, line, items, None if acked.cancelled() else error)
            return
        if line.batch is not items:
            return  # sent again meanwhile, by a fresh producer
        line.batch = []
        lane.see_to(line)
        told = acked.result()
        at_ms = told.timestamp if told.timestamp_type == LOG_APPEND_TIME else None
        self._settled(len(items))
        for number, item in enumerate(items, told.offset):
            item.sent.succeed(Acked(number if told.offset >= 0 else None, at_ms))

    def _refused(self, lane: Lane, line: Line, error: BaseException) -> None:
        """Nothing of the batch was sent, so the producer is as good as before."""
        self._meters.send_failures.count()
        items, line.batch = line.batch, []
        self._give_up(lane, items, error)
        lane.see_to(line)

    def _give_up(self, lane: Lane, items: Sequence[Item], error: BaseException) -> None:
        """Records that no repetition writes. If that is for their topic, all that wait for it wait in vain."""
        if isinstance(error, _HOPELESS_TOPIC):
            items = [*items, *lane.take_waiting()]
        self._settled(len(items))
        if items:
            log.error("%d records are given up: %s", len(items), self._explained(items[0].record, error))
        for item in items:
            item.sent.fail(self._explained(item.record, error))

    def _failed(self, lane: Lane, line: Line, items: list[Item], error: BaseException | None) -> None:
        """They may have been written. What cannot be cured fails alone; the rest goes again."""
        if line.batch is not items:
            return
        self._meters.send_failures.count()
        if isinstance(error, MessageSizeTooLargeError) and len(items) > 1:
            for item in items:  # the broker refused a batch: whose fault was it?
                item.alone = True
            line.is_out = False  # none of them was written
        elif isinstance(error, _HOPELESS):
            line.batch = []
            self._give_up(lane, items, error)
        else:
            log.warning("a send to %s failed: %r", lane.topic, error)
        self._broken.set()

    def _explained(self, record: Outgoing, error: BaseException) -> Exception:
        if isinstance(error, MessageSizeTooLargeError):
            return TooLarge(f"a record of {record.size} bytes is larger than {record.topic} takes (max.message.bytes)")
        refused = refusal(error, self._arguments, "Write", record.topic)
        return refused or BrokerError(f"cannot write to {record.topic}: {type(error).__name__}: {error}")


def _end_if_cancelled() -> None:
    """Until Python 3.13 a task group that ends with errors of its own forgets that it was cancelled from outside."""
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError


async def _send(producer: AIOKafkaProducer, batch: Any, topic: str, partition: int) -> Any:
    try:
        return await producer.send_batch(batch, topic, partition=partition)
    except AssertionError:  # no such partition: it may have been added since the topic was looked at
        await producer.client.force_metadata_update()
        return await producer.send_batch(batch, topic, partition=partition)


async def _hopeless(producer: AIOKafkaProducer, topic: str, error: BaseException) -> BaseException | None:
    """The error, if no repetition cures it."""
    if isinstance(error, UnknownTopicOrPartitionError) and not await _is_missing(producer, topic):
        return None
    return error if isinstance(error, _HOPELESS) else None


async def _is_missing(producer: AIOKafkaProducer, topic: str) -> bool:
    """Whether a broker says that there is no such topic. A new producer that has reached none for `REQUEST_S` says
    so too, and then the broker is only away: its records must not be given up."""
    try:
        async with asyncio.timeout(REQUEST_S):
            known = await producer.client.fetch_all_metadata()
    except (KafkaError, OSError, TimeoutError):
        return False
    return known.partitions_for_topic(topic) is None


async def _stop(producer: AIOKafkaProducer) -> None:
    """Bounded: with idempotence, stopping can wait for a leader for ever."""
    try:
        async with asyncio.timeout(STOP_S):
            await producer.stop()
    except (TimeoutError, KafkaError, OSError) as error:
        log.warning("a producer did not stop cleanly: %r", error)
        await _end(producer)


async def _end(producer: AIOKafkaProducer) -> None:
    """aiokafka's `stop`, cut short, leaves the sender at work: it would keep its connections, and write what it has
    whenever the leader is back. There is no public way to end it."""
    sending: asyncio.Task[None] | None = producer._sender.sender_task if producer._sender is not None else None
    producer._message_accumulator.fail_all(ProducerClosed())
    if sending is not None:
        sending.cancel()
    closing = asyncio.create_task(producer.client.close(), name="close a producer's connections")
    _, late = await asyncio.wait({closing, sending} if sending is not None else {closing}, timeout=STOP_S)
    for task in late:
        task.cancel()
