"""A producer of our own: batches to the brokers that lead their partitions, each again until one of them has it.

aiokafka's takes five turns of the loop and three tasks for a batch, and has one request under way for each broker, so
that a record of the log waits for a call to be acknowledged. Here all batches of a turn go out in it, one request for
each broker, a few requests at a time. Idempotence is simple where a partition has one batch under way: a batch keeps
its sequence number and its bytes however often it is sent, so a broker that has it says so.

aiokafka still connects, logs in, finds the leaders, and packs the records (in C).

Responsible for: sending, sequence numbers, sending again what a broker may take later.
Must never: have two batches of one partition under way (the caller's promise), or give up one without saying so.
Called by: `kafka/appender.py`.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    DuplicateSequenceNumber,
    KafkaConnectionError,
    KafkaError,
    KafkaProtocolError,
    KafkaTimeoutError,
    NoError,
    NotCoordinatorError,
    NotEnoughReplicasAfterAppendError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
    UnknownError,
    for_code,
)
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from anabranch.codec import Outgoing
from anabranch.kafka import silent
from anabranch.kafka.link import Link, linked
from anabranch.kafka.produce.wire import HIGHEST, LOWEST, PRODUCE, read_produced, read_throttled_ms, write_produce
from anabranch.kafka.refusals import told
from anabranch.kafka.seam import Place
from anabranch.kafka.sent import Acked
from anabranch.kafka.silent import Silent
from anabranch.wording import counted

log = logging.getLogger(__name__)

REQUEST_S: Final = 15.0
REPLICAS_S: Final = 10.0
"""For how long a leader waits for its replicas, and then says so: a broker that says nothing for longer is silent."""
AGAIN_S: Final = 0.1
"""Before what could not be written is sent again: its leader may be changing."""
STOP_S: Final = 5.0
NUMBERED_S: Final = 40.0
"""For how long brokers may say that they have no number for a new producer. Those that had asked a controller that fell
silent ask its successor after 30 s (`controller.socket.timeout.ms`)."""
METADATA_S: Final = 60.0
UNDER_WAY: Final = 5
"""Requests to one broker at a time, at most; what comes meanwhile makes the next one larger."""
BATCH_BYTES: Final = 524_288
REQUEST_BYTES: Final = 16 * 1024 * 1024
"""In one request, about: a broker takes 100 MB (`socket.request.max.bytes`)."""
_NEWEST_FORMAT: Final = 2
_NOBODY: Final = (-1, -1)
_NO_SEQUENCE: Final = -1
_SEQUENCES: Final = 2**31
_PERHAPS_WRITTEN: Final = (
    KafkaConnectionError,
    KafkaProtocolError,
    NotEnoughReplicasAfterAppendError,
    RequestTimedOutError,
)
_NOT_YET: Final = (CoordinatorLoadInProgressError, CoordinatorNotAvailableError, NotCoordinatorError)

Then = Callable[[Acked | Exception], object]
"""Told once what became of a batch: where its first record lies, or why it cannot be known to be written."""


class Batch:
    """Records of one partition on their way. `is_out` once a broker may have written them. With `once` there is one
    among them that may be sent only once."""

    __slots__ = ("_builder", "_data", "count", "is_out", "once", "place", "since", "then", "was_late")

    def __init__(self, place: Place, then: Then) -> None:
        self.place, self.then = place, then
        self._builder: Any = DefaultRecordBatchBuilder(_NEWEST_FORMAT, 0, 0, *_NOBODY, 0, BATCH_BYTES)
        self._data: bytearray | None = None
        self.count, self.since = 0, time.monotonic()
        self.is_out = self.once = self.was_late = False

    def append(self, record: Outgoing) -> bool:
        """False if it is full; the first record always goes in."""
        written = self._builder.append(self.count, None, record.key, record.value, list(record.headers))
        if written is None:
            return False
        self.count += 1
        return True

    def packed(self, number: Callable[[Batch], tuple[int, int, int]]) -> bytearray:
        """Its bytes: the same ones each time, with the producer's id and epoch and the sequence that `number` gave."""
        if self._data is None:
            self._builder.set_producer_state(*number(self))
            self._data = self._builder.build()
            self._builder = None
        return self._data


class _Leader:
    """A broker: the link to it, how many requests are under way, and the batches that wait for the one or the other."""

    __slots__ = ("is_connecting", "link", "node_id", "under_way", "waiting")

    def __init__(self, node_id: int) -> None:
        self.node_id, self.under_way, self.is_connecting = node_id, 0, False
        self.link: Link | None = None
        self.waiting: list[Batch] = []

    def take_waiting(self) -> list[Batch]:
        waiting, self.waiting = self.waiting, []
        return waiting


class Producer:
    """See the module. Of no use once something it sent has failed: a successor begins new sequences."""

    def __init__(self, arguments: dict[str, Any], idempotent: bool) -> None:
        self._client: Any = AIOKafkaClient(
            **arguments, request_timeout_ms=int(REQUEST_S * 1000), metadata_max_age_ms=int(METADATA_S * 1000)
        )
        Silent(self._client)
        self._loop = asyncio.get_running_loop()
        self._idempotent = idempotent
        self._identity = _NOBODY
        self._sequences: dict[Place, int] = {}
        self._leaders: dict[int, _Leader] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._late: list[Batch] = []
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def start(self) -> None:
        """Connect. Raises `KafkaError` or `OSError`, also where idempotence is wanted and not to be had."""
        await self._client.bootstrap()
        if self._idempotent:
            async with asyncio.timeout(REQUEST_S) as patience:
                self._identity = await self._identify(patience)

    async def _identify(self, patience: asyncio.Timeout) -> tuple[int, int]:
        last = self._loop.time() + NUMBERED_S
        while True:
            node_id = self._client.get_random_node()
            try:
                answer = await self._ask_who(node_id)
            except KafkaError as error:
                if not error.retriable:
                    raise
                log.info("broker %s cannot be asked who we are: %r", node_id, error)  # the next one may be another
            else:
                kind = for_code(answer.error_code)
                if kind is NoError:
                    return answer.producer_id, answer.producer_epoch
                if not issubclass(kind, _NOT_YET):
                    raise kind()
                if self._loop.time() > last:
                    raise KafkaTimeoutError("its brokers get no numbers for producers: does the controller answer?")
                patience.reschedule(last + REQUEST_S)
            await asyncio.sleep(AGAIN_S)

    async def _ask_who(self, node_id: int) -> Any:
        """If there are others, there is time to ask one of them too."""
        patience_s = silent.SERVER_S if len(self._client.cluster.brokers()) > 1 else None
        try:
            async with asyncio.timeout(patience_s):
                return await self._client.send(node_id, InitProducerIdRequest(None, int(REQUEST_S * 1000)))
        except TimeoutError:
            Silent.of(self._client).leave(node_id)
            raise RequestTimedOutError from None

    async def stop(self) -> None:
        """Nothing that it holds is written from now on, and nobody hears of it. Bounded; never raises."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for leader in self._leaders.values():
            if leader.link is not None:
                leader.link.abort()
        closing = self._loop.create_task(self._client.close(), name="close a producer's connections")
        for task in self._tasks:
            task.cancel()
        _, late = await asyncio.wait({closing, *self._tasks}, timeout=STOP_S)
        for task in late:
            log.warning("a producer did not stop within %g s", STOP_S)
            task.cancel()
        if closing.done() and not closing.cancelled() and (error := closing.exception()) is not None:
            log.warning("a producer did not stop cleanly: %r", error)

    # --- topics -------------------------------------------------------------------------------------------

    def partitions(self, topic: str) -> int | None:
        """How many it has, as far as is known."""
        known = self._client.cluster.partitions_for_topic(topic)
        return len(known) if known else None

    async def look_up(self, topic: str, anew: bool = False) -> int:
        """How many partitions it has. Raises `KafkaError`: `UnknownTopicOrPartitionError` also if nobody could be
        asked for a while."""
        if anew:
            await self._client.force_metadata_update()
        return len(await self._client._wait_on_metadata(topic))

    async def is_missing(self, topic: str) -> bool:
        """Whether a broker says that there is no such topic, rather than none at all."""
        try:
            async with asyncio.timeout(REQUEST_S):
                known = await self._client.fetch_all_metadata()
        except (KafkaError, OSError, TimeoutError):
            return False
        return known.partitions_for_topic(topic) is None

    @property
    def is_throttled(self) -> bool:
        """Whether a broker hears nothing just now because we have exceeded a quota."""
        return any(leader.link is not None and leader.link.is_deaf for leader in self._leaders.values())

    # --- sending ------------------------------------------------------------------------------------------

    def send(self, batches: Iterable[Batch]) -> None:
        """Their topics are known; none is empty, and none of their partitions has another one under way."""
        of_leader: dict[int, list[Batch]] = {}
        leader_of = self._client.cluster.leader_for_partition
        for batch in batches:
            node_id = leader_of(batch.place)
            if node_id is None or node_id < 0:
                self._client.force_metadata_update()
                self._try_later(batch, "{}/{} has no leader".format(*batch.place), may_expire=True)
            else:
                of_leader.setdefault(node_id, []).append(batch)
        for node_id, theirs in of_leader.items():
            leader = self._leaders.get(node_id)
            if leader is None:
                leader = self._leaders[node_id] = _Leader(node_id)
            self._send_to(leader, theirs)

    def _send_to(self, leader: _Leader, batches: list[Batch]) -> None:
        link = leader.link
        if link is not None and link.is_open:
            if leader.under_way < UNDER_WAY:
                self._ask(leader, link, batches)
                return
        elif not leader.is_connecting:
            leader.is_connecting = True
            task = self._loop.create_task(self._connect(leader), name="connect a producer")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        leader.waiting += batches

    async def _connect(self, leader: _Leader) -> None:
        error: Exception | None = None
        try:
            leader.link = await linked(self._client, leader.node_id, REQUEST_S)
        except (KafkaError, OSError) as failure:
            error = failure
        leader.is_connecting = False
        waiting = leader.take_waiting()
        if error is None:
            self.send(waiting)
        else:
            for batch in waiting:
                self._failed(batch, error)

    def _ask(self, leader: _Leader, link: Link, batches: list[Batch]) -> None:
        try:
            version = link.version(PRODUCE, LOWEST, HIGHEST)
        except KafkaError as error:
            for batch in batches:
                batch.then(error)
            return
        size, packed, now = 0, list[tuple[Place, bytearray]](), list[Batch]()
        for batch in batches:
            data = batch.packed(self._number)
            size += len(data)
            if now and size > REQUEST_BYTES:
                break
            packed.append((batch.place, data))
            now.append(batch)
            batch.is_out = True
        leader.under_way += 1
        body = write_produce(packed, int(REPLICAS_S * 1000))
        link.ask(PRODUCE, version, body, partial(self._answered, leader, version, now))
        if len(now) < len(batches):
            self._send_to(leader, batches[len(now) :])

    def _number(self, batch: Batch) -> tuple[int, int, int]:
        """Who writes it, and where it stands among what is written to its partition."""
        if not self._idempotent:
            return *_NOBODY, _NO_SEQUENCE
        sequence = self._sequences.get(batch.place, 0)
        self._sequences[batch.place] = (sequence + batch.count) % _SEQUENCES
        return *self._identity, sequence

    def _answered(self, leader: _Leader, version: int, batches: list[Batch], answer: bytes | Exception) -> None:
        leader.under_way -= 1
        if self._closed:
            return
        if leader.waiting and not leader.is_connecting:
            self.send(leader.take_waiting())
        if isinstance(answer, Exception):
            for batch in batches:
                self._failed(batch, answer)
            return
        try:
            results = read_produced(answer, version)
            if (throttled_ms := read_throttled_ms(answer)) and leader.link is not None:
                leader.link.throttled(throttled_ms)
        except (struct.error, ValueError) as error:
            for batch in batches:
                batch.then(KafkaError(f"an answer to a request to write cannot be understood: {error}"))
            return
        for batch in batches:
            code, offset, at_ms = results.get(batch.place, (UnknownError.errno, -1, -1))
            if code in (NoError.errno, DuplicateSequenceNumber.errno):
                batch.then(Acked(offset if offset >= 0 else None, at_ms if at_ms >= 0 else None))
            else:
                self._failed(batch, _error(code, batch.place.topic))

    def _failed(self, batch: Batch, error: Exception) -> None:
        doubles = batch.once and not self._idempotent and isinstance(error, _PERHAPS_WRITTEN)
        if doubles or not getattr(error, "retriable", False):
            batch.then(error)
            return
        if getattr(error, "invalid_metadata", False):
            self._client.force_metadata_update()
        self._try_later(batch, told(error), may_expire=not self._idempotent)

    def _try_later(self, batch: Batch, why: str, may_expire: bool) -> None:
        """One with a sequence number that may be written must not be given up while its leader may say so."""
        if may_expire and time.monotonic() > batch.since + REQUEST_S:
            batch.then(KafkaTimeoutError(f"not written for {REQUEST_S:g} s: {why}"))
            return
        if not batch.was_late:
            batch.was_late = True
            records = counted(batch.count, "record")
            log.warning("%s for %s/%d to be sent again: %s", records, *batch.place, why)
        self._late.append(batch)
        if self._timer is None and not self._closed:
            self._timer = self._loop.call_later(AGAIN_S, self._send_late)

    def _send_late(self) -> None:
        self._timer = None
        late, self._late = self._late, []
        self.send(late)


def _error(code: int, topic: str) -> Exception:
    kind: type[Exception] = for_code(code)
    return kind(topic) if issubclass(kind, TopicAuthorizationFailedError) else kind()
