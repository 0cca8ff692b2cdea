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
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aiokafka import AIOKafkaProducer
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
from anabranch.kafka.sent import Acked, Sent
from anabranch.tasks import alongside
from anabranch.topics import RECORD_BYTES, partition_of

log = logging.getLogger(__name__)

STOP_S = 5.0
BACKOFF_S = (0.05, 2.0)
REQUEST_S = 15.0
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
# How brokers refuse InitProducerId; the embedded one says "unknown". Without it an append may be doubled, no more,
# and the log's presumptions make the copy harmless.
_NOT_IDEMPOTENT = (IncompatibleBrokerVersion, UnknownError, UnsupportedVersionError)


class _Replace(Exception):
    """The producer is no longer to be trusted."""


@dataclass(slots=True, eq=False)
class _Item:
    record: Outgoing
    sent: Sent
    once: bool
    alone: bool = False  # to be sent in a batch of its own


@dataclass(slots=True, eq=False)
class _Line:
    """The records of one partition: those that wait, and the batch that is under way. There is one at a time."""

    partition: int
    waiting: deque[_Item] = field(default_factory=deque)
    batch: list[_Item] = field(default_factory=list)
    sent_at: float = 0.0  # by the loop's clock

    def next_batch(self, batch: Any) -> list[_Item]:
        """Fill `batch` with what waits, as far as it goes; returns what is in it."""
        items = self.batch
        while self.waiting and not (items and (items[0].alone or self.waiting[0].alone)):
            r = self.waiting[0].record
            if batch.append(timestamp=None, key=r.key, value=r.value, headers=list(r.headers)) is None:
                break
            items.append(self.waiting.popleft())
        return items

    def rewind(self) -> None:
        """What is not acknowledged goes first, in its order, but for what may be sent only once."""
        for item in self.batch:
            if item.once:
                where = item.record.topic
                item.sent.fail(BrokerError(f"a record for {where} may have been written, and is not sent again"))
        self.waiting.extendleft(item for item in reversed(self.batch) if not item.once)
        self.batch = []


@dataclass(slots=True, eq=False)
class _Lane:
    """One topic. `ready` are the lines that may be sent; `partitions` is how many it has, once that is known."""

    topic: str
    partitions: int | None = None
    lines: dict[int, _Line] = field(default_factory=dict)
    ready: dict[int, _Line] = field(default_factory=dict)
    unplaced: deque[_Item] = field(default_factory=deque)  # until it is known how many partitions there are
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    sent_at: float = 0.0

    def push(self, item: _Item) -> None:
        partition = item.record.partition
        if partition is None and self.partitions is not None:
            partition = partition_of(item.record.key or b"", self.partitions)
        if partition is None:
            self.unplaced.append(item)
        else:
            line = self.lines.get(partition)
            if line is None:
                line = self.lines[partition] = _Line(partition)
            line.waiting.append(item)
            if not line.batch:
                self.ready[partition] = line
        self.wake.set()

    def place(self, partitions: int) -> None:
        """So many partitions there are: what has waited for that finds its place."""
        self.partitions = partitions
        unplaced, self.unplaced = self.unplaced, deque()
        for item in unplaced:
            self.push(item)

    def rewind(self) -> None:
        self.partitions = None  # whoever comes next asks again
        for line in self.lines.values():
            line.rewind()
        self.ready = {number: line for number, line in self.lines.items() if line.waiting}
        self.wake.set()


class KafkaAppender:
    """See `seam.Appender`. Made by `opened`, which owns its task."""

    def __init__(self, arguments: dict[str, Any], idempotent: bool) -> None:
        self._arguments, self._idempotent = arguments, idempotent
        self._lanes: dict[str, _Lane] = {}
        self._new_lane = asyncio.Event()
        self._broken = asyncio.Event()
        self._outstanding = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @classmethod
    @asynccontextmanager
    async def opened(cls, arguments: dict[str, Any], idempotent: bool) -> AsyncIterator[KafkaAppender]:
        appender = cls(arguments, idempotent)
        await appender._connect(once=True)
        try:
            async with alongside(appender._serve(), "appender"):
                yield appender
                await appender.flush(STOP_S)
        finally:
            await _stop(appender._producer)

    def append(self, record: Outgoing, once: bool = False) -> Sent:
        sent = Sent()
        if record.size > RECORD_BYTES:
            sent.fail(TooLarge(f"a record of {record.size} bytes does not fit {record.topic} ({RECORD_BYTES})"))
            return sent
        self._outstanding += 1
        self._idle.clear()
        sent.add_done_callback(self._settled)
        lane = self._lanes.get(record.topic)
        if lane is None:
            lane = self._lanes[record.topic] = _Lane(record.topic)
            self._new_lane.set()
        lane.push(_Item(record, sent, once))
        return sent

    def _settled(self, _: Sent) -> None:
        self._outstanding -= 1
        if self._outstanding == 0:
            self._idle.set()

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
            await _stop(self._producer)
            for lane in self._lanes.values():
                lane.rewind()
            await self._connect()

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
            since = loop.time() - STUCK_S
            stuck = {
                lane.topic
                for lane in self._lanes.values()
                for line in lane.lines.values()
                if line.batch and line.sent_at < since
            }
            if stuck:
                topics = sorted(stuck)
                log.error("nothing was acknowledged for %g s: is the broker full, or gone? (%s)", STUCK_S, topics)
                self._broken.set()

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
            )
            try:
                await producer.start()
            except (KafkaError, OSError) as error:
                await _stop(producer)
                if once and self._idempotent and isinstance(error, _NOT_IDEMPOTENT):
                    log.info("this broker has no idempotent producers: doing without (%r)", error)
                    self._idempotent = False
                    continue
                where = self._arguments["bootstrap_servers"]
                if once:
                    raise BrokerError(f"cannot connect to Kafka at {where} (ANABRANCH_BOOTSTRAP): {error}") from None
                log.warning("cannot connect a producer to %s: %s; trying again", where, error)
                await asyncio.sleep(pause)
                pause = min(longest, pause * 2)
            else:
                self._producer = producer
                return

    async def _send_lane(self, producer: AIOKafkaProducer, lane: _Lane) -> None:
        """One batch at a time for each partition: what comes meanwhile makes the next one larger."""
        loop = asyncio.get_running_loop()
        while True:
            lane.wake.clear()
            if lane.unplaced:
                await self._place(producer, lane)
            await self._pace(lane.sent_at, loop)
            ready, lane.ready = lane.ready, {}
            lane.sent_at = loop.time()
            for line in ready.values():
                await self._send_line(producer, lane, line)
            if not lane.ready:
                await lane.wake.wait()

    async def _place(self, producer: AIOKafkaProducer, lane: _Lane) -> None:
        try:
            lane.place(len(await producer.partitions_for(lane.topic)))
        except (KafkaError, OSError) as error:
            unplaced, lane.unplaced = lane.unplaced, deque()
            for item in unplaced:
                item.sent.fail(_explained(item.record, error))
            self._broken.set()

    async def _pace(self, sent_at: float, loop: asyncio.AbstractEventLoop) -> None:
        """With much under way, a batch costs more than what is in it: let a few come together."""
        pause = sent_at + min(LONGEST_PAUSE_S, self._outstanding * PAUSE_PER_RECORD_S) - loop.time()
        if pause > SHORTEST_PAUSE_S:
            await asyncio.sleep(pause)

    async def _send_line(self, producer: AIOKafkaProducer, lane: _Lane, line: _Line) -> None:
        batch = producer.create_batch()
        items = line.next_batch(batch)
        line.sent_at = lane.sent_at
        try:
            acked = await producer.send_batch(batch, lane.topic, partition=line.partition)
        except (KafkaError, OSError, ValueError, AssertionError) as error:
            self._failed(line, items, error)
        else:
            acked.add_done_callback(partial(self._acked, lane, line, items))

    def _acked(self, lane: _Lane, line: _Line, items: list[_Item], acked: asyncio.Future[Any]) -> None:
        if line.batch is not items:
            return  # sent again meanwhile, by a fresh producer
        if acked.cancelled() or (error := acked.exception()) is not None:
            self._failed(line, items, None if acked.cancelled() else error)
            return
        line.batch = []
        if line.waiting:
            lane.ready[line.partition] = line
            lane.wake.set()
        told = acked.result()
        at_ms = told.timestamp if told.timestamp_type == LOG_APPEND_TIME else None
        for number, item in enumerate(items):
            item.sent.succeed(Acked(told.offset + number if told.offset >= 0 else None, at_ms))

    def _failed(self, line: _Line, items: list[_Item], error: BaseException | None) -> None:
        """They may have been written. What cannot be cured fails alone; the rest goes again."""
        if line.batch is not items:
            return
        if isinstance(error, MessageSizeTooLargeError) and len(items) > 1:
            for item in items:  # the broker refused a batch: whose fault was it?
                item.alone = True
        elif isinstance(error, _HOPELESS):
            line.batch = []
            for item in items:
                item.sent.fail(_explained(item.record, error))
        log.warning("a send to %s failed: %r", items[0].record.topic, error)
        self._broken.set()


def _explained(record: Outgoing, error: BaseException) -> Exception:
    if isinstance(error, MessageSizeTooLargeError):
        return TooLarge(f"a record of {record.size} bytes is larger than {record.topic} takes (max.message.bytes)")
    mend = "create it with: anabranch topics apply APP" if isinstance(error, UnknownTopicOrPartitionError) else ""
    return BrokerError(f"cannot write to {record.topic}: {type(error).__name__}: {error} {mend}".rstrip())


async def _stop(producer: AIOKafkaProducer) -> None:
    """Bounded: with idempotence, stopping can wait for a leader for ever."""
    try:
        async with asyncio.timeout(STOP_S):
            await producer.stop()
    except (TimeoutError, KafkaError, OSError) as error:
        log.warning("a producer did not stop cleanly: %r", error)
