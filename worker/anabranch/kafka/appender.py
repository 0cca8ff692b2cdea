"""Writes records to Kafka: in order, until the broker has them, whatever becomes of the producer.

A send that fails (for whatever reason) may have been written. So the producer is replaced, and all that is
not acknowledged is sent again in its order: the log's presumptions make the copy harmless. A topic that
cannot be written holds up no other: each has a lane of its own. It never reads, and never drops a record
without failing its future.
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
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    UnknownError,
    UnknownTopicOrPartitionError,
    UnsupportedVersionError,
)

from anabranch.codec import Outgoing
from anabranch.errors import BrokerError, TooLarge
from anabranch.kafka.refusals import refusal
from anabranch.kafka.seam import Acked
from anabranch.tasks import alongside
from anabranch.topics import RECORD_BYTES

log = logging.getLogger(__name__)

STOP_S = 5.0
BACKOFF_S = (0.05, 2.0)
REQUEST_S = 15.0
STUCK_S = 40.0
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


@dataclass(slots=True, eq=False)
class _Item:
    record: Outgoing
    future: asyncio.Future[Acked]
    once: bool
    sent_at: float = 0.0  # by the loop's clock
    alone: bool = False  # to be sent in a batch of its own
    was_alone: bool = False

    def succeed(self, acked: Acked) -> None:
        if not self.future.done():
            self.future.set_result(acked)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(slots=True, eq=False)
class _Lane:
    """The records of one topic: waiting, and sent but not acknowledged."""

    waiting: deque[_Item] = field(default_factory=deque)
    unacked: dict[int, _Item] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    trying: bool = False  # a record is under way that must have its batch for itself

    def push(self, item: _Item) -> None:
        self.waiting.append(item)
        self.wake.set()

    def rewind(self) -> None:
        """What is not acknowledged goes first, in its order, but for what may be sent only once."""
        for item in self.unacked.values():
            if item.once:
                item.fail(BrokerError(f"a record for {item.record.topic} may have been written, and is not sent again"))
        self.waiting.extendleft(item for item in reversed(self.unacked.values()) if not item.once)
        self.unacked.clear()
        self.trying = False
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

    def append(self, record: Outgoing, once: bool = False) -> asyncio.Future[Acked]:
        future: asyncio.Future[Acked] = asyncio.get_running_loop().create_future()
        if record.size > RECORD_BYTES:
            future.set_exception(
                TooLarge(f"a record of {record.size} bytes does not fit {record.topic} ({RECORD_BYTES})")
            )
            return future
        self._outstanding += 1
        self._idle.clear()
        future.add_done_callback(self._settled)
        lane = self._lanes.get(record.topic)
        if lane is None:
            lane = self._lanes[record.topic] = _Lane()
            self._new_lane.set()
        lane.push(_Item(record, future, once))
        return future

    def _settled(self, future: asyncio.Future[Acked]) -> None:
        if not future.cancelled():
            future.exception()  # it was logged: whoever does not look for it need not be told again
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
            _end_if_cancelled()
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
            oldest = [next(iter(lane.unacked.values())) for lane in self._lanes.values() if lane.unacked]
            if any(loop.time() - item.sent_at > STUCK_S for item in oldest):
                topics = sorted({item.record.topic for item in oldest})
                log.error(
                    "nothing was acknowledged for %g s on %s: is the broker full, or gone? See its log and its disks; "
                    "%d records wait, and go again until it has them",
                    STUCK_S, ", ".join(topics), self._outstanding,
                )  # fmt: skip
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
        loop = asyncio.get_running_loop()
        while True:
            while not lane.waiting or (lane.unacked and (lane.waiting[0].alone or lane.trying)):
                lane.wake.clear()
                await lane.wake.wait()
            item = lane.waiting.popleft()
            lane.unacked[id(item)] = item
            item.was_alone = lane.trying = item.alone
            item.sent_at = loop.time()
            r = item.record
            try:
                sent = await producer.send(
                    r.topic, value=r.value, key=r.key, partition=r.partition, headers=list(r.headers)
                )
            except UnknownTopicOrPartitionError as error:
                if await _is_missing(producer, r.topic):
                    self._refused(lane, item, error)
                else:
                    self._failed(lane, item, KafkaTimeoutError("no broker could be asked"))
            except _HOPELESS as error:
                self._refused(lane, item, error)
            except (KafkaError, OSError) as error:
                self._failed(lane, item, error)
            else:
                sent.add_done_callback(partial(self._sent, lane, item))

    def _sent(self, lane: _Lane, item: _Item, sent: asyncio.Future[Any]) -> None:
        if id(item) not in lane.unacked:
            return  # sent again meanwhile, by a fresh producer
        if sent.cancelled() or (error := sent.exception()) is not None:
            self._failed(lane, item, None if sent.cancelled() else error)
            return
        if self._broken.is_set() and not item.once:
            return  # it may have overtaken one that failed: both go again, in their order
        del lane.unacked[id(item)]
        lane.trying = False
        lane.wake.set()
        offset = sent.result().offset
        item.succeed(Acked(offset if offset >= 0 else None))

    def _refused(self, lane: _Lane, item: _Item, error: BaseException) -> None:
        """Nothing of it was sent, so the producer is as good as before."""
        self._give_up(lane, item, error)
        lane.trying = False

    def _give_up(self, lane: _Lane, item: _Item, error: BaseException) -> None:
        """A record that no repetition writes. If that is for its topic, those that wait behind it wait in vain."""
        explained = self._explained(item.record, error)
        log.error("a record is given up: %s", explained)
        lane.unacked.pop(id(item), None)
        item.fail(explained)
        if isinstance(error, _HOPELESS_TOPIC):
            for other in lane.waiting:
                other.fail(self._explained(other.record, error))
            lane.waiting.clear()

    def _failed(self, lane: _Lane, item: _Item, error: BaseException | None) -> None:
        """It may have been written. Whatever cannot be cured fails alone; the rest goes again."""
        if isinstance(error, MessageSizeTooLargeError) and not item.was_alone:
            for other in lane.unacked.values():  # the broker refused a batch: whose fault was it?
                other.alone = True
        elif isinstance(error, _HOPELESS):
            self._give_up(lane, item, error)
        else:
            log.warning("a send to %s failed: %r", item.record.topic, error)
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
