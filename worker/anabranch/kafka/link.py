"""A connection to a broker for the requests of the hot path: an answer is handed over in the turn that received it.

aiokafka connects, logs in, and closes what is idle or broken. What it makes of each request besides (a structure of
Python objects, a future, a timeout, and a task that reads) costs several times what the broker takes to answer: here a
request is bytes, and so is its answer. The connection is one of its own for each broker and client, so that neither a
request for metadata nor a fetch that waits for records stands before another.

Responsible for: framing, the order of answers, and a bound on waiting for one. Must never: know what is in a request,
or ask again. Called by: `produce/producing.py`, and `fetch/`.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from aiokafka.conn import CloseReason
from aiokafka.errors import CorrelationIdError, IncompatibleBrokerVersion, KafkaConnectionError, NodeNotReadyError

from anabranch.kafka.silent import Silent

log = logging.getLogger(__name__)

GROUP: Final = "records"
"""aiokafka keeps a connection for each broker and group; whatever it asks itself goes through others."""
LATE_S: Final = 1.0
"""A process that looks later than this stood still itself: what was answered meanwhile is still to be read."""
DEAF_S: Final = 300.0
"""A broker is given no more, whatever it asks for: it may have died meanwhile, and nobody would find another one."""
TOLD_S: Final = 1.0
"""A longer pause that a quota asks for is told of."""
_SIZE: Final = struct.Struct(">i")
_HEAD: Final = struct.Struct(">ihhih")
_CORRELATION: Final = struct.Struct(">i")
_LAST_CORRELATION: Final = 2**31 - 1

Then = Callable[[bytes | Exception], object]
"""Told once: the answer behind its correlation id, or why there is none (it may have been heard all the same)."""


class _Asked:
    """A request under way, as aiokafka's connection knows its own: a future that tells at once."""

    __slots__ = ("_then",)

    def __init__(self, then: Then) -> None:
        self._then: Then | None = then

    def done(self) -> bool:
        return self._then is None

    def set_result(self, answer: bytes) -> None:
        self._tell(answer)

    def set_exception(self, error: Exception) -> None:
        self._tell(error)

    def _tell(self, what: bytes | Exception) -> None:
        if (then := self._then) is not None:
            self._then = None
            then(what)


class Link:
    """One connection of aiokafka's that nobody else uses, and over which nothing is under way yet."""

    def __init__(self, connection: Any, timeout_s: float, on_silence: Callable[[], None] = lambda: None) -> None:
        self._connection, self._timeout_s, self._on_silence = connection, timeout_s, on_silence
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._correlation_id = 0
        self._client_id: bytes = connection._client_id.encode()
        self._watch: asyncio.TimerHandle | None = None
        self._deaf_until = 0.0
        connection._reader.feed_data = self._feed  # instead of waking the task that reads

    @property
    def is_open(self) -> bool:
        return bool(self._connection.connected())

    def version(self, api_key: int, lowest: int, highest: int) -> int:
        """The highest version of a request that both sides know. Raises `IncompatibleBrokerVersion`."""
        least, most = self._connection._versions.get(api_key, (0, -1))
        if max(least, lowest) > min(most, highest):
            raise IncompatibleBrokerVersion(
                f"the broker speaks versions {least} to {most} of request {api_key}, and we {lowest} to {highest}"
            )
        return int(min(most, highest))

    def ask(self, api_key: int, version: int, body: bytes, then: Then) -> None:
        """Write a request at once. `then` is called from the loop, or from here if the connection is gone."""
        connection = self._connection
        asked = _Asked(then)
        if connection._writer is None:
            asked.set_exception(KafkaConnectionError(f"the connection to {self._name} is closed"))
            return
        self._correlation_id = correlation_id = self._correlation_id % _LAST_CORRELATION + 1
        client_id = self._client_id
        size = _HEAD.size - _SIZE.size + len(client_id) + len(body)
        head = _HEAD.pack(size, api_key, version, correlation_id, len(client_id))
        connection._requests.append((correlation_id, time.monotonic(), asked))
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout_s, self._look)
        try:
            connection._writer.transport.write(head + client_id + body)
        except OSError as error:
            self._close(CloseReason.CONNECTION_BROKEN, error)

    def throttled(self, for_ms: int) -> None:
        """The broker has answered that we exceed a quota. What it is sent from now on over this connection it reads
        when that time is up, and so is not silent.
        """
        for_s = for_ms / 1000
        self._deaf_until = max(self._deaf_until, time.monotonic() + min(for_s, DEAF_S))
        if for_s > TOLD_S:
            log.warning("%s hears nothing more for %.1f s: a quota of Kafka is exceeded", self._name, for_s)

    @property
    def is_deaf(self) -> bool:
        return self.is_open and time.monotonic() < self._deaf_until

    def abort(self) -> None:
        self._close(CloseReason.SHUTDOWN, KafkaConnectionError(f"the connection to {self._name} was ended"))

    @property
    def _name(self) -> str:
        return f"{self._connection.host}:{self._connection.port}"

    def _look(self, has_read: bool = False) -> None:
        """Answers come in order, so the oldest request is the one to look at."""
        self._watch = None
        if not (under_way := self._connection._requests):
            return
        left_s = max(under_way[0][1], self._deaf_until) + self._timeout_s - time.monotonic()
        if left_s > 0:
            self._watch = self._loop.call_later(left_s, self._look)
        elif left_s < -LATE_S and not has_read:
            self._watch = self._loop.call_later(LATE_S, self._look, True)
        else:
            log.warning("%s has not answered for %g s: connecting anew", self._name, self._timeout_s)
            self._close(CloseReason.CONNECTION_TIMEOUT, TimeoutError(f"no answer for {self._timeout_s:g} s"))
            self._on_silence()

    def _close(self, reason: Any, error: Exception) -> None:
        """Whoever waits for an answer hears of it. What is still to be written never is: it may be sent again."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._connection._writer is not None:
            self._connection._writer.transport.abort()
        self._connection.close(reason=reason, exc=error)

    def _feed(self, data: bytes) -> None:
        """Called by the transport. Whatever goes wrong in here ends the connection, and nothing else."""
        received = self._received
        received += data
        at, end = 0, len(received)
        try:
            while end - at >= 4:
                (size,) = _SIZE.unpack_from(received, at)
                if size < _CORRELATION.size:
                    raise ValueError(f"an answer of {size} bytes")
                if end - at - 4 < size:
                    break
                at += 4 + size
                self._hear(bytes(memoryview(received)[at - size : at]))
        except Exception as error:
            log.exception("an answer of %s cannot be understood", self._name)
            at = end
            self._close(CloseReason.CONNECTION_BROKEN, error)
        del received[:at]

    def _hear(self, frame: bytes) -> None:
        connection = self._connection
        if not connection._requests:
            return  # it was closed meanwhile
        connection._last_action = time.monotonic()
        (answers,) = _CORRELATION.unpack_from(frame)
        correlation_id, _, asked = connection._requests.popleft()
        if answers != correlation_id:
            error = CorrelationIdError(f"{self._name} answered {answers} where {correlation_id} was due")
            asked.set_exception(error)
            raise error
        asked.set_result(frame)


async def linked(client: Any, node_id: int, timeout_s: float) -> Link:
    """The link of `client` (an `AIOKafkaClient`, of which `Silent` knows) to a broker.

    Raises `NodeNotReadyError` if it cannot be connected to.
    """
    connection = await client._get_conn(node_id, group=GROUP)
    if connection is None or connection._reader is None:
        raise NodeNotReadyError(f"broker {node_id} cannot be connected to")
    link: Link | None = getattr(connection, "link", None)
    if link is None:
        link = connection.link = Link(connection, timeout_s, partial(Silent.of(client).leave, node_id))
    return link
