"""Writes records to Kafka: in order, until the broker has them, whatever becomes of the producer.

A send that fails (for whatever reason) may have been written. So the producer is replaced, and all that is
not acknowledged is sent again in its order: the log's presumptions make the copy harmless. A topic that
cannot be written holds up no other: each has a lane of its own. What is appended in one turn of the loop goes out
together in the next, one batch at a time for each partition, for a batch costs ten times what a record in it does.
It never reads, and never drops a record without saying so to whoever gave it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from aiokafka.errors import (
    IncompatibleBrokerVersion,
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    UnknownError,
    UnknownTopicOrPartitionError,
    UnsupportedVersionError,
)

from anabranch.codec import Outgoing
from anabranch.errors import BrokerError, TooLarge
from anabranch.kafka.login import unreachable
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.produce.batching import Item, Lane, Line
from anabranch.kafka.produce.producing import Batch, Producer
from anabranch.kafka.refusals import refusal, told
from anabranch.kafka.seam import Place
from anabranch.kafka.sent import Acked, Sent
from anabranch.tasks import alongside, happens
from anabranch.topics import RECORD_BYTES
from anabranch.wording import counted

log = logging.getLogger(__name__)

STOP_S = 5.0
BACKOFF_S = (0.05, 2.0)
COUNT_AGAIN_S = 60.0
"""How often the partitions of a topic are counted that records go to by their keys."""
STUCK_S = 40.0
PAUSE_PER_RECORD_S = 20e-6
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.010
"""Between two rounds of batches: nothing while little is under way, some milliseconds under load."""
_HOPELESS = (
    InvalidTopicError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    ValueError,  # a partition that the topic does not have
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
        self._producer: Producer | None = None
        self._lanes: dict[str, Lane] = {}
        self._due: dict[str, Lane] = {}
        self._round: asyncio.Handle | None = None
        self._round_at = 0.0
        self._unknown: dict[str, Lane] = {}
        self._lacks = asyncio.Event()
        self._broken = asyncio.Event()
        self.outstanding = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._is_written = True

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, arguments: dict[str, Any], idempotent: bool, meters: RoleMeters | None = None
    ) -> AsyncIterator[KafkaAppender]:
        appender = cls(arguments, idempotent, meters or RoleMeters())
        await appender._connect()
        try:
            async with alongside(appender._serve(), "appender"):
                yield appender
                await appender.flush(STOP_S)
        finally:
            await appender._end_producer()
            appender._close()

    def _close(self) -> None:
        """Nobody will send what is left, and whoever waits for it must not wait for ever."""
        self._closed = True
        if self._round is not None:
            self._round.cancel()
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
        if not self.outstanding:
            self._idle.clear()
        self.outstanding += 1
        lane = self._lanes.get(record.topic)
        if lane is None:
            lane = self._lanes[record.topic] = Lane(record.topic)
        if lane.push(Item(record, sent, once)):
            self._see_to(lane)
        return sent

    def _settled(self, records: int) -> None:
        """So many are about to hear what became of them."""
        self.outstanding -= records
        if not self.outstanding:
            self._idle.set()

    async def flush(self, timeout_s: float) -> int:
        await happens(self._idle, timeout_s)
        return self.outstanding

    # --- the task: what a producer needs -------------------------------------------------------------------

    async def _serve(self) -> None:
        pause = 0.0
        while True:
            self._is_written = False
            try:
                await self._serve_with(self._producer)
            except* _Replace:
                records = counted(self.outstanding, "record")
                log.warning("a send failed: replacing the producer; to be sent again: %s", records)
            _end_if_cancelled()
            self._meters.producer_replacements.count()
            await self._end_producer()
            self._rewind()
            pause = 0.0 if self._is_written else await _paused(pause)
            await self._connect_again()

    async def _end_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    def _rewind(self) -> None:
        """Those that hear of it may append: so nobody hears before all is in order again."""
        spent = [item for lane in self._lanes.values() for item in lane.rewind()]
        self._settled(len(spent))
        for item in spent:
            where = item.record.topic
            item.sent.fail(BrokerError(f"a record for {where} may have been written, and is not sent again"))

    async def _serve_with(self, producer: Producer | None) -> None:
        assert producer is not None
        self._broken.clear()
        self._unknown.clear()
        for lane in self._lanes.values():
            self._see_to(lane)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._raise_when_broken())
            tasks.create_task(self._watch())
            while True:
                self._lacks.clear()
                for lane in [lane for lane in self._unknown.values() if not lane.is_looked_up]:
                    lane.is_looked_up = True
                    tasks.create_task(self._look_up(producer, lane), name=f"look up {lane.topic}")
                await self._lacks.wait()

    async def _raise_when_broken(self) -> None:
        await self._broken.wait()
        raise _Replace

    async def _watch(self) -> None:
        """With idempotence a batch never expires while a leader is known: nothing may wait without a bound."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(STUCK_S / 4)
            stuck = self._stuck(loop.time() - STUCK_S)
            if stuck and not (self._producer is not None and self._producer.is_throttled):
                log.error(
                    "nothing was acknowledged for %g s on %s: is the broker full, or gone? See its log and its disks; "
                    "%s to be sent again until it has them",
                    STUCK_S, ", ".join(stuck), counted(self.outstanding, "record"),
                )  # fmt: skip
                self._broken.set()

    def _stuck(self, since: float) -> list[str]:
        """The topics of which a batch has been under way since then."""
        return sorted(
            lane.topic
            for lane in self._lanes.values()
            if any(line.items and line.sent_at < since for line in lane.lines.values())
        )

    async def _connect(self) -> None:
        """The first producer: whoever starts is told what is wrong."""
        try:
            await self._start_producer()
        except (KafkaError, OSError) as error:
            if not (self._idempotent and isinstance(error, _NOT_IDEMPOTENT)):
                refused = refusal(error, self._arguments, "Write", "any")
                raise refused or await unreachable(self._arguments, error) from None
            log.info("this broker has no idempotent producers: doing without (%r)", error)
            self._idempotent = False
            await self._connect()

    async def _connect_again(self) -> None:
        pause, _ = BACKOFF_S
        while True:
            try:
                return await self._start_producer()
            except (KafkaError, OSError) as error:
                where = self._arguments["bootstrap_servers"]
                log.warning("cannot connect a producer to %s: %s; trying again", where, error)
                pause = await _paused(pause)

    async def _start_producer(self) -> None:
        producer = Producer(self._arguments, self._idempotent)
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        self._producer = producer

    async def _look_up(self, producer: Producer, lane: Lane) -> None:
        """How many partitions it has; once more, if a record is for one beyond."""
        try:
            partitions = await producer.look_up(lane.topic, anew=lane.partitions is not None)
        except (KafkaError, OSError) as error:
            self._meters.send_failures.count()
            missing = isinstance(error, UnknownTopicOrPartitionError)
            if not isinstance(error, _HOPELESS) or (missing and not await producer.is_missing(lane.topic)):
                log.warning("the partitions of %s cannot be had: %r", lane.topic, error)
                self._broken.set()
                return
            self._give_up(lane, [], error)
        else:
            self._place(lane, partitions)
            for line in lane.take_beyond():
                beyond = ValueError(
                    f"it has {counted(partitions, 'partition')}, and this is for number {line.partition}"
                )
                self._give_up(lane, line.take_waiting(), beyond)
        lane.is_looked_up = False
        self._unknown.pop(lane.topic, None)
        self._see_to(lane)

    def _place(self, lane: Lane, partitions: int) -> None:
        lane.counted_at = self._loop.time()
        lane.place(partitions)

    # --- rounds: what is sent when ------------------------------------------------------------------------

    def _see_to(self, lane: Lane) -> None:
        """It has something to send. With much under way, a batch costs more than what is in it: let a few come
        together."""
        self._due[lane.topic] = lane
        if self._round is None:
            pause = self._round_at + min(LONGEST_PAUSE_S, self.outstanding * PAUSE_PER_RECORD_S) - self._loop.time()
            if pause > SHORTEST_PAUSE_S:
                self._round = self._loop.call_later(pause, self._send)
            else:
                self._round = self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._round = None
        if (producer := self._producer) is None or self._broken.is_set():
            return  # its successor begins with all that there is
        self._round_at = now = self._loop.time()
        due, self._due = self._due, {}
        batches: list[Batch] = []
        for lane in due.values():
            if lane.counted_at < now - COUNT_AGAIN_S and (partitions := producer.partitions(lane.topic)) is not None:
                self._place(lane, partitions)
            batches += [self._batch(lane, line, now) for line in lane.take_ready()]
            if lane.lacks:
                self._unknown[lane.topic] = lane
                self._lacks.set()
        if batches:
            producer.send(batches)

    def _batch(self, lane: Lane, line: Line, now: float) -> Batch:
        items: list[Item] = []
        batch = Batch(Place(lane.topic, line.partition), partial(self._told, lane, line, items))
        line.fill(batch, items)
        line.sent_at = now
        return batch

    def _told(self, lane: Lane, line: Line, items: list[Item], what: Acked | Exception) -> None:
        if line.items is not items:
            return  # sent again meanwhile, by a fresh producer
        if isinstance(what, Exception):
            self._failed(lane, line, items, what)
            return
        self._is_written = True
        line.end()
        if lane.has_more(line):
            self._see_to(lane)
        self._settled(len(items))
        offset, at_ms = what
        if offset is None:
            for item in items:
                item.sent.succeed(what)
        else:
            for number, item in enumerate(items, offset):
                item.sent.succeed(Acked(number, at_ms))

    def _give_up(self, lane: Lane, items: Sequence[Item], error: BaseException) -> None:
        """Records that no repetition writes. If that is for their topic, all that wait for it wait in vain."""
        if isinstance(error, _HOPELESS_TOPIC):
            items = [*items, *lane.take_waiting()]
        self._settled(len(items))
        if items:
            log.error("given up, %s: %s", counted(len(items), "record"), self._explained(items[0].record, error))
        for item in items:
            item.sent.fail(self._explained(item.record, error))

    def _failed(self, lane: Lane, line: Line, items: list[Item], error: Exception) -> None:
        """They may have been written. What cannot be cured fails alone; the rest goes again."""
        self._meters.send_failures.count()
        if isinstance(error, MessageSizeTooLargeError) and len(items) > 1:
            for item in items:  # the broker refused a batch: whose fault was it?
                item.alone = True
            line.none_written()
        elif isinstance(error, _HOPELESS):
            line.end()
            self._give_up(lane, items, error)
        else:
            log.warning("a send to %s failed: %s", lane.topic, told(error))
        self._broken.set()

    def _explained(self, record: Outgoing, error: BaseException) -> Exception:
        if isinstance(error, MessageSizeTooLargeError):
            return TooLarge(f"a record of {record.size} bytes is larger than {record.topic} takes (max.message.bytes)")
        refused = refusal(error, self._arguments, "Write", record.topic)
        return refused or BrokerError(f"cannot write to {record.topic}: {type(error).__name__}: {error}")


async def _paused(for_s: float) -> float:
    """One has failed that wrote nothing: so may the next one. Returns how long to wait after that."""
    await asyncio.sleep(for_s)
    shortest, longest = BACKOFF_S
    return min(longest, max(shortest, for_s * 2))


def _end_if_cancelled() -> None:
    """Until Python 3.13 a task group that ends with errors of its own forgets that it was cancelled from outside."""
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError
